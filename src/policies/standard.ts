/**
 * Standard: a one-line preset of the policies that every call to another service should have, in an order that holds up.
 *
 * Promise: the load sent to a failing service stays near what its callers ask for, and calls succeed again within seconds of the service's recovery
 * (test/simulation). A key per host or tenant keeps each from harming the others: it has its own breaker and limit, and cannot take the others' retries.
 * After: the order of Microsoft.Extensions.Http.Resilience and Finagle, with a success-fed budget (Brooker, 2022).
 */
import type { Call } from '../core/call.js';
import type { Duration } from '../core/duration.js';
import {
  type CommonOptions,
  checkOptions,
  commonFields,
  duration,
  func,
  impossibleOption,
  integer,
  optional,
  withDefault,
} from '../core/options.js';
import { type Handles, handlesThrows } from '../core/outcome.js';
import { type Pipeline, pipeline } from '../core/pipeline.js';
import { adaptiveLimit } from './adaptive-limit/adaptive-limit.js';
import { circuitBreaker } from './circuit-breaker/circuit-breaker.js';
import { deadline } from './deadline.js';
import { keyed } from './keyed.js';
import { exponential } from './retry/backoff.js';
import { retry } from './retry/retry.js';
import { fairBudget } from './retry/retry-budget.js';
import { timeout } from './timeout.js';

/** Options of {@link standard}. */
export interface StandardOptions extends CommonOptions {
  /** Time for the whole call, waits and attempts together. Default 10 s; from 2 ms to 24.8 days. */
  readonly deadline?: Duration | undefined;
  /** Time for one attempt; below `deadline`, from 1 ms to 24 h. Default 3 s, or 0.3 of `deadline` if that is less. */
  readonly timeout?: Duration | undefined;
  /** Attempts in all. Default 3; from 1 to 1,000. */
  readonly attempts?: number | undefined;
  /** Which outcomes are failures, for the retry and for the breaker. Default: every throw, and no value. */
  readonly handles?: Handles | undefined;
  /** Which outcomes are failures for the breaker, if different. Default: `handles`. */
  readonly breakerHandles?: Handles | undefined;
  /** Receives each value that was taken for a failure and that the caller does not get, so that you can close it. */
  readonly onDiscard?: ((value: unknown) => void) | undefined;
  /** Keys, such as hosts, that have their own breaker and limit; the least used ones are evicted. Default 10,000; from 1 to 1,000,000. */
  readonly maxKeys?: number | undefined;
  /** The source of randomness, in [0, 1). Default `Math.random`. */
  readonly random?: (() => number) | undefined;
}

const longestBackoffMs = 500;
/** The longest time that a probe of the breaker may take. The breaker of a key is created by its first call, which would be too late for an error. */
const longestTimeoutMs = 86_400_000;
/** As a share of the deadline. Two waits, the second twice the first, fit into the tenth that three attempts leave. */
const shareOfFirstWait = 0.03;
/** Short, because a probe costs little and the service may recover as quickly as it failed. */
const openings = { openFor: 2_000, maxOpenFor: 4_000 };

/**
 * Composes the policies that every call to another service should have: a deadline, a retry with full jitter and a success-fed budget, a
 * circuit breaker and an adaptive concurrency limit per `call.key`, and a timeout for each attempt.
 *
 * Create one per service, once. Calls without a key share one breaker and one limit. If you need other numbers, compose
 * the policies yourself; `String(standard().explain())` shows the numbers in use.
 *
 * @param options - `name`, `deadline`, `timeout`, `attempts`, `handles`, `breakerHandles`, `onDiscard`, `maxKeys`, `random`, `on`, `clock`.
 * @throws {@link OptionsError} `ERR_OPTIONS` from the factory, for an invalid option, and for a `timeout` that is not below
 * `deadline`.
 * @throws From the call: the operation's last error; {@link DeadlineExceededError}, {@link TimeoutError},
 * {@link CircuitOpenError} or {@link BulkheadFullError}.
 * @example
 * ```ts
 * import { standard } from 'holdfast';
 *
 * const payments = standard({ name: 'payments' });
 * const receipt = await payments.execute(async ({ attempt }) => {
 *   if (attempt === 1) throw new Error('connection reset');
 *   return { id: 42 };
 * });
 * console.log(receipt.id); // 42
 * ```
 */
export function standard(options?: StandardOptions): Pipeline {
  return standardWith(circuitBreaker, options);
}

/** @internal The same with circuit breakers from another factory. */
export function standardWith(breaker: typeof circuitBreaker, options: StandardOptions | undefined): Pipeline {
  const checked = checkOptions('standard', options, {
    deadline: withDefault(duration({ min: 2 }), 10_000),
    timeout: optional(duration({ max: longestTimeoutMs })),
    attempts: withDefault(integer({ min: 1, max: 1_000 }), 3),
    handles: withDefault(func<Handles>(), handlesThrows),
    breakerHandles: optional(func<Handles>()),
    onDiscard: optional(func<(value: unknown) => void>()),
    maxKeys: withDefault(integer({ min: 1, max: 1_000_000 }), 10_000),
    random: withDefault(func<() => number>(), Math.random),
    ...commonFields('standard'),
  });
  const { name, on, clock, random, handles, onDiscard, attempts, maxKeys } = checked;
  const { breakerHandles = handles } = checked;
  const afterMs = checked.timeout ?? Math.max(1, Math.min(3_000, checked.deadline * 0.3));
  if (afterMs >= checked.deadline) {
    throw impossibleOption('standard', 'timeout', afterMs, `below "deadline" (${checked.deadline} ms)`);
  }
  const common = { name, ...(on && { on }), ...(clock && { clock }) };
  return pipeline(
    deadline({ ...common, after: checked.deadline }),
    retry({
      ...common,
      ...(onDiscard && { onDiscard }),
      attempts,
      backoff: exponential({
        initial: Math.min(100, Math.floor(checked.deadline * shareOfFirstWait)),
        max: longestBackoffMs,
      }),
      budget: fairBudget(maxKeys, clock),
      handles,
      random,
    }),
    keyed(
      () =>
        pipeline(
          breaker({ ...common, handles: breakerHandles, random, ...openings, halfOpen: { timeout: afterMs } }),
          adaptiveLimit(common),
          timeout({ ...common, after: afterMs }),
        ),
      { name, maxKeys, key: (call: Call) => call.key ?? name },
    ),
  );
}
