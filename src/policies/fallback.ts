/**
 * Fallback: answers in place of an error.
 *
 * Promise: a call that its caller has aborted gets no fallback; if the fallback throws, the caller gets that error.
 */
import type { Call } from '../core/call.js';
import { Events } from '../core/events.js';
import { type CommonOptions, checkArgument, checkOptions, commonFields, func, withDefault } from '../core/options.js';
import { type Handles, handlesThrows, judge, type Outcome } from '../core/outcome.js';
import type { Strategy } from '../core/policy.js';

/** Options of {@link fallback}. */
export interface FallbackOptions extends CommonOptions {
  /**
   * Which outcomes the fallback replaces. Default: every error, including refusals by the policies inside.
   * It is never asked about an abort by the caller.
   */
  readonly handles?: Handles | undefined;
}

/**
 * Returns a value in place of an error: a cached value, a default, or one from a second source.
 *
 * Place it outermost. Inside a circuit breaker it would hide every failure, so `pipeline` rejects that.
 *
 * @param answer - Receives the error (undefined when `handles` selected a value), the call, and the outcome that it
 * replaces; its return value becomes the result.
 * @param options - `handles`, `name`, `on`, `clock`.
 * @throws Whatever `answer` throws.
 * @throws {@link OptionsError} `ERR_OPTIONS` from the factory, for an invalid option.
 * @example
 * ```ts
 * import { fallback, pipeline, timeout } from 'holdfast';
 *
 * const prices = pipeline(fallback(() => 'price on request'), timeout('1s'));
 * const price = await prices.execute(() => Promise.reject(new Error('no price service')));
 * console.log(price); // price on request
 * ```
 */
export function fallback<Value>(
  answer: (error: unknown, call: Call, outcome: Outcome) => Value | PromiseLike<Value>,
  options?: FallbackOptions,
): Strategy<Value> {
  checkArgument('fallback', 'answer', answer, func());
  const { name, on, clock, handles } = checkOptions('fallback', options, {
    handles: withDefault(func<Handles>(), handlesThrows),
    ...commonFields('fallback'),
  });
  const events = new Events(name, on);

  async function handle<T>(call: Call, next: (call: Call) => Promise<T>): Promise<T | Value> {
    let outcome: Outcome<T>;
    try {
      const value = await next(call);
      if (handles === handlesThrows) return value;
      outcome = { ok: true, value };
    } catch (error) {
      outcome = { ok: false, error };
    }
    // A caller that has aborted needs no answer; a deadline around this fallback has already answered.
    if (call.aborted) throw call.reason;
    if (!judge(handles, outcome, name)) {
      if (outcome.ok) return outcome.value;
      throw outcome.error;
    }
    const error = outcome.ok ? undefined : outcome.error;
    if (events.heard) events.emit({ type: 'fallback', name, error });
    return answer(error, call, outcome);
  }

  return { name, traits: { kind: 'fallback', summary: 'answers in place of an error', clock }, handle };
}
