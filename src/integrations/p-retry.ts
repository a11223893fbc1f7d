/**
 * p-retry: converts options of that package to options of our `retry`, and honours its `AbortError`.
 *
 * Promise: the attempts are the same and, without `randomize`, so are the waits, to the millisecond. An option without a counterpart is refused with
 * a hint at what replaces it.
 * Written against p-retry 9.
 */
import { longestWaitMs } from '../core/clock.js';
import type { HoldfastEvent } from '../core/events.js';
import { checkOptions, type Field, flag, func, integer, number, optional, withDefault } from '../core/options.js';
import type { Handles } from '../core/outcome.js';
import type { Strategy } from '../core/policy.js';

/** What `onFailedAttempt` of p-retry receives. */
export interface PRetryContext {
  readonly error: Error;
  readonly attemptNumber: number;
  readonly retriesLeft: number;
  readonly retriesConsumed: number;
  /** Milliseconds; 0 when no attempt follows. */
  readonly retryDelay: number;
}

/** The options of p-retry that {@link fromPRetry} understands. */
export interface PRetryOptions {
  /** Attempts after the first one. Default 10, as with p-retry; from 0 to 999. */
  readonly retries?: number | undefined;
  /** Default 2; from 0 to 100. 0 means 1. */
  readonly factor?: number | undefined;
  /** The first wait, in milliseconds. Default 1000; from 0 to 24.8 days. */
  readonly minTimeout?: number | undefined;
  /** The longest wait, in milliseconds. Default: none, that is 24.8 days. */
  readonly maxTimeout?: number | undefined;
  /** Default false. Up to doubles each wait; at `maxTimeout` it draws from the upper half, where p-retry waits the same each time. */
  readonly randomize?: boolean | undefined;
  /** Called after each failed attempt. An exception in it is contained, and it is not awaited. */
  readonly onFailedAttempt?: ((context: PRetryContext) => unknown) | undefined;
  /** Whether the error is worth another attempt. It must answer synchronously, and receives only the error. */
  readonly shouldRetry?: ((context: { readonly error: Error }) => boolean) | undefined;
}

/** What {@link fromPRetry} returns: options of `retry`. */
export interface FromPRetry {
  readonly attempts: number;
  readonly backoff: {
    (state: { readonly attempt: number; readonly random: () => number }): number;
    readonly ceilingMs: (attempt: number) => number;
    readonly summary: string;
  };
  readonly handles: Handles;
  readonly on?: (event: HoldfastEvent) => void;
}

/**
 * Translates options of p-retry into options of `retry`. Put {@link abortErrors} around that retry if operations throw `AbortError`.
 *
 * @throws {@link OptionsError} `ERR_OPTIONS` from the factory, for an option that is invalid or belongs elsewhere:
 * pass `signal` to each call, and put a `deadline` around the retry for `maxRetryTime`.
 * @example
 * ```ts
 * import { pipeline, retry } from 'holdfast';
 * import { abortErrors, fromPRetry } from 'holdfast/p-retry';
 *
 * const steady = pipeline(abortErrors(), retry(fromPRetry({ retries: 5, minTimeout: 10 })));
 * const answer = await steady.execute(({ attempt }) => {
 *   if (attempt < 3) throw new Error('busy');
 *   return `attempt ${attempt}`;
 * });
 * console.log(answer); // attempt 3
 * ```
 */
export function fromPRetry(options?: PRetryOptions): FromPRetry {
  const checked = checkOptions('fromPRetry', options, {
    retries: withDefault(integer({ min: 0, max: 999 }), 10),
    factor: withDefault(number({ min: 0, max: 100 }), 2),
    minTimeout: withDefault(number({ min: 0, max: longestWaitMs }), 1_000),
    maxTimeout: withDefault(number({ min: 0, max: Number.POSITIVE_INFINITY }), Number.POSITIVE_INFINITY),
    randomize: withDefault(flag(), false),
    onFailedAttempt: optional(func<(context: PRetryContext) => unknown>()),
    shouldRetry: optional(func<(context: { readonly error: Error }) => boolean>()),
    signal: elsewhere('given to each call: execute(task, { signal })'),
    maxRetryTime: elsewhere('a deadline around the retry: pipeline(deadline(...), retry(...))'),
    shouldConsumeRetry: elsewhere('left out: attempts that count for nothing have no limit'),
    unref: elsewhere('left out: a wait that a call depends on keeps the process alive'),
  });
  const { retries, minTimeout, randomize, onFailedAttempt, shouldRetry } = checked;
  const factor = checked.factor === 0 ? 1 : checked.factor;
  const capMs = Math.min(Math.ceil(checked.maxTimeout), longestWaitMs);
  // p-retry multiplies by up to two and caps afterwards. Here the cap bounds the range of the draw, so delays at the cap still spread.
  const ceilingMs = (attempt: number) =>
    minTimeout === 0 ? 0 : Math.min(capMs, (randomize ? 2 : 1) * minTimeout * factor ** (attempt - 1));
  const maxMs = Math.max(ceilingMs(1), ceilingMs(Math.max(1, retries)));
  const choose = ({ attempt, random }: { readonly attempt: number; readonly random: () => number }) =>
    Math.round(randomize ? (ceilingMs(attempt) / 2) * (1 + random()) : ceilingMs(attempt));
  return {
    attempts: retries + 1,
    backoff: Object.assign(choose, { ceilingMs, summary: `waiting up to ${maxMs} ms as p-retry does` }),
    handles: (outcome) => {
      if (outcome.ok || !isRetriable(outcome.error)) return false;
      return shouldRetry === undefined || shouldRetry({ error: outcome.error as Error });
    },
    ...(onFailedAttempt === undefined ? {} : { on: tellFailedAttempts(onFailedAttempt, retries) }),
  };
}

/**
 * Lets an `AbortError` of p-retry end the call with the error inside it, as p-retry does. Put it around the retry.
 *
 * @example
 * ```js
 * import { AbortError } from 'p-retry';
 * import { pipeline, retry } from 'holdfast';
 * import { abortErrors, fromPRetry } from 'holdfast/p-retry';
 *
 * const steady = pipeline(abortErrors(), retry(fromPRetry()));
 * const outcome = await steady.attempt(() => Promise.reject(new AbortError(new Error('not found'))));
 * console.log(String(outcome.error)); // Error: not found
 * ```
 */
export function abortErrors(): Strategy {
  return {
    name: 'abortErrors',
    traits: { kind: 'abort-errors', summary: 'ends a call with the error inside an AbortError of p-retry' },
    async handle(call, next) {
      try {
        return await next(call);
      } catch (error) {
        throw unwrapped(error);
      }
    },
  };
}

/** Recognised by its shape, because the class may come from any copy of p-retry. */
function isAbortError(error: unknown): error is Error & { readonly originalError: Error } {
  return (
    error instanceof Error &&
    error.name === 'AbortError' &&
    (error as { readonly originalError?: unknown }).originalError instanceof Error
  );
}

function unwrapped(error: unknown): unknown {
  let cause = error;
  // Wrappers can contain each other; nobody nests more than a few.
  for (let depth = 0; depth < 10 && isAbortError(cause); depth++) cause = cause.originalError;
  return cause;
}

/** A TypeError means a programming error, unless it is how the platform's `fetch` reports a network failure. */
function isRetriable(error: unknown): boolean {
  if (!(error instanceof Error) || isAbortError(error)) return false;
  return !(error instanceof TypeError) || networkFailures.test(error.message);
}

/** The messages of Node, Bun, workerd and Deno. */
const networkFailures =
  /^(?:fetch failed|terminated| ?A network error occurred\.|network error|Network connection lost|error sending request for url.*)$/s;

function tellFailedAttempts(
  onFailedAttempt: (context: PRetryContext) => unknown,
  retries: number,
): (event: HoldfastEvent) => unknown {
  return (event) => {
    const isLast = event.type === 'retry-stopped';
    if (event.type !== 'retry' && !isLast) return undefined;
    if (!(event.error instanceof Error) || isAbortError(event.error)) return undefined;
    if (isLast && event.stoppedBy === 'abort') return undefined;
    const attemptNumber = isLast ? event.attempts : event.attempt;
    const retriesConsumed = attemptNumber - 1;
    const retryDelay = isLast ? 0 : event.delayMs;
    const retriesLeft = retries - retriesConsumed;
    return onFailedAttempt({ error: event.error, attemptNumber, retriesLeft, retriesConsumed, retryDelay });
  };
}

function elsewhere(allowed: string): Field<undefined> {
  return { allowed, parse: () => undefined, fallback: { value: undefined } };
}
