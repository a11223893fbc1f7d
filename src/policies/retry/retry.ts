/**
 * Retry: repeats a failed operation for as long as another attempt makes sense.
 *
 * Promise: there are never more attempts than allowed, none after an abort, none whose wait would outlive the deadline, none that the budget does not
 * grant, and none earlier than the service asked for. An abort ends a wait at once. A refusal of a policy inside is retried only if it says when to
 * try again. The error of the last attempt that was started is rethrown unchanged. A refusal means that nothing was started, so it reaches the caller
 * only when that is true.
 */
import type { Call, Dependent } from '../../core/call.js';
import { longestWaitMs, Timer } from '../../core/clock.js';
import type { Duration } from '../../core/duration.js';
import { HoldfastError, isRejected } from '../../core/errors.js';
import { Events, type RetryStop } from '../../core/events.js';
import {
  type CommonOptions,
  checkOptions,
  commonFields,
  duration,
  func,
  having,
  integer,
  optional,
  show,
  withDefault,
} from '../../core/options.js';
import {
  type Handles,
  handlesThrows,
  judge,
  type Outcome,
  rejectLater,
  unjudged,
  yesOrNo,
} from '../../core/outcome.js';
import type { Strategy } from '../../core/policy.js';
import { discard } from '../discard.js';
import { type Backoff, backoffField, exponential } from './backoff.js';
import { retryHintOf } from './retry-after.js';
import type { RetryBudget } from './retry-budget.js';

/** Options of {@link retry}. */
export interface RetryOptions extends CommonOptions {
  /** Attempts in all, including the first. Default 3; from 1 to 1,000. */
  readonly attempts?: number | undefined;
  /** How long to wait between two attempts. Default: `exponential({ initial: 100, max: '5s', jitter: 'full' })`. */
  readonly backoff?: Backoff | undefined;
  /** The budget that retries draw from. Default: none, so that only `attempts` bounds them. */
  readonly budget?: RetryBudget | undefined;
  /** Which outcomes are worth another attempt. Default: every throw. It is never asked about refusals and aborts. */
  readonly handles?: Handles | undefined;
  /** The longest wait that the service may ask for; if it asks for more, the retry gives up. Default 30 s; from 0 to 24.8 days. */
  readonly maxRetryAfter?: Duration | undefined;
  /** Time that must be left before the deadline to start another attempt. Default 0; from 0 to 24.8 days. */
  readonly minAttemptTime?: Duration | undefined;
  /**
   * Receives each value that `handles` took for a failure and that the caller does not get, because another attempt has taken
   * its place or the call has ended, so that you can close it: `(response) => response.body?.cancel()`. It also receives a value on
   * which `handles` or `backoff` threw, also the `handles` of a guard inside. An exception in it is contained.
   */
  readonly onDiscard?: ((value: unknown) => void) | undefined;
  /** The source of randomness, returning numbers in [0, 1). Default: `Math.random`. */
  readonly random?: (() => number) | undefined;
}

/** Reports on a retry that gave up. */
export interface AttemptsReport {
  readonly attempts: number;
  /** Why no further attempt was made. */
  readonly stoppedBy: RetryStop;
  /** The error of each attempt; undefined where `handles` took a value for a failure. */
  readonly errors: readonly unknown[];
  /** The wait that the service asked for after the last attempt, in milliseconds. */
  readonly retryAfterMs: number | undefined;
}

// On `globalThis`, so that a report is found whichever copy of the package created it.
const reportsKey = Symbol.for('holdfast.attempts');
const shared = globalThis as { [reportsKey]?: WeakMap<object, AttemptsReport> };

/**
 * Reports on the retry that ended with an error: attempts, reason for stopping, all errors. It also takes the value of a call whose last
 * attempt `handles` took for a failure. If several retries ended with the same object, the last one counts.
 *
 * @returns undefined if no retry gave up with this, if it is not an object, and if the call was ended from outside
 * before an attempt had failed.
 * @example
 * ```ts
 * import { attemptsOf, constant, pipeline, retry } from 'holdfast';
 *
 * const steady = pipeline(retry({ attempts: 2, backoff: constant(1) }));
 * const outcome = await steady.attempt(() => Promise.reject(new Error('down')));
 * console.log(!outcome.ok && attemptsOf(outcome.error)?.stoppedBy); // attempts
 * ```
 */
export function attemptsOf(error: unknown): AttemptsReport | undefined {
  return shared[reportsKey]?.get(error as object);
}

/**
 * Repeats a failed operation, with growing random waits between the attempts.
 *
 * Put a {@link deadline} around it and a {@link timeout} inside. Give all retries to one dependency the same
 * {@link retryBudget}. An operation marked `unsafe` gets one attempt unless it has an idempotency key.
 *
 * @param options - `attempts`, `backoff`, `budget`, `handles`, `maxRetryAfter`, `minAttemptTime`, `onDiscard`, `random`, `name`, `on`, `clock`.
 * @throws The error of the last attempt that was started, unchanged; {@link attemptsOf} gives the other errors and why it stopped.
 * @throws {@link HoldfastError} `ERR_ATTEMPTS_DISCARDED` when the operation itself was refused, such as by a pipeline in it, after `onDiscard` had received the
 * result of an earlier attempt.
 * @throws {@link HandlesError} `ERR_HANDLES_FAILED` when `handles` or `backoff` throws, or `backoff` returns no delay.
 * @throws {@link OptionsError} `ERR_OPTIONS` from the factory, for an invalid option.
 * @example
 * ```ts
 * import { attemptsOf, constant, pipeline, retry } from 'holdfast';
 *
 * const steady = pipeline(retry({ attempts: 3, backoff: constant(1) }));
 * console.log(await steady.execute(({ attempt }) => (attempt < 3 ? Promise.reject(new Error('reset')) : 'done')));
 *
 * const outcome = await steady.attempt(() => Promise.reject(new Error('down')));
 * console.log(!outcome.ok && attemptsOf(outcome.error)?.stoppedBy); // attempts
 * ```
 */
export function retry(options?: RetryOptions): Strategy {
  const checked = checkOptions('retry', options, {
    attempts: { ...withDefault(integer({ min: 1, max: 1_000 }), 3), elsewhere: ['retries', 'maxRetries'] },
    backoff: withDefault(backoffField, exponential()),
    budget: optional(having<RetryBudget>('a budget such as retryBudget()', 'deposit', 'tryWithdraw')),
    handles: withDefault(func<Handles>(), handlesThrows),
    maxRetryAfter: withDefault(duration({ min: 0 }), 30_000),
    minAttemptTime: withDefault(duration({ min: 0 }), 0),
    onDiscard: optional(func<(value: unknown) => void>()),
    random: withDefault(func<() => number>(), Math.random),
    ...commonFields('retry'),
  });
  const { attempts, backoff, budget, name, clock } = checked;
  const plan: RetryPlan = { ...checked, events: new Events(name, checked.on) };
  return {
    name,
    traits: {
      kind: 'retry',
      summary: `makes up to ${attempts} attempts${backoff.summary === undefined ? '' : `, ${backoff.summary}`}${budget === undefined ? '' : ', drawn from a budget'}`,
      clock,
      attempts,
      totalDelayMs: totalDelayMs(backoff, attempts),
      hasBudget: budget !== undefined,
    },
    handle: (call, next) => firstAttempt(plan, call, next),
    resumable: {
      begin: (call) => begin(plan, call),
      accepts: (outcome, call) => accepts(plan, outcome, call),
      resume: (call, next, outcome) => new RetryRun(plan, call, next).goOn(outcome),
    },
  };
}

/** The longest total wait between that many attempts, if the backoff states a ceiling. */
function totalDelayMs({ ceilingMs }: Backoff, attempts: number): number | undefined {
  if (ceilingMs === undefined) return undefined;
  let totalMs = 0;
  for (let attempt = 1; attempt < attempts; attempt++) totalMs += ceilingMs(attempt);
  return totalMs;
}

interface RetryPlan {
  readonly name: string;
  readonly attempts: number;
  readonly backoff: Backoff;
  readonly budget: RetryBudget | undefined;
  readonly handles: Handles;
  readonly maxRetryAfter: number;
  readonly minAttemptTime: number;
  readonly onDiscard: ((value: unknown) => void) | undefined;
  readonly random: () => number;
  readonly events: Events;
}

/** A successful call allocates nothing for failures that did not happen. `then` costs half of what `await` does. */
function firstAttempt<T>(plan: RetryPlan, call: Call, next: (call: Call) => Promise<T>): Promise<T> {
  const resume = (outcome: Outcome<T>) => new RetryRun(plan, call, next).goOn(outcome);
  begin(plan, call);
  const hasNothingToDo = plan.handles === handlesThrows && plan.budget === undefined;
  const onValue = (value: T) => (accepts(plan, { ok: true, value }, call) ? value : resume({ ok: true, value }));
  return next(call).then(hasNothingToDo ? undefined : onValue, (error) => resume({ ok: false, error }));
}

/** Registers this retry on the call for retries inside, unless it will not repeat the call either. */
function begin(plan: RetryPlan, call: Call): void {
  if (plan.attempts > 1 && !isOnce(call)) call.retriedBy ??= plan;
}

/** An unsafe operation without an idempotency key gets one attempt. */
function isOnce(call: Call): boolean {
  return call.unsafe && call.idempotencyKey === undefined;
}

/** Whether an outcome needs no further attempt. If so, it pays into the budget. */
function accepts(plan: RetryPlan, outcome: Outcome, call: Call): boolean {
  const { handles, budget, events } = plan;
  if (!outcome.ok || (handles !== handlesThrows && isFailure(plan, outcome))) return false;
  // A custom budget may throw; the call has still succeeded.
  if (budget !== undefined) events.contain('budget', () => budget.deposit(call.key));
  return true;
}

/** Asks `handles`. If it throws, the value goes to `onDiscard`, because no caller will get it. */
function isFailure(plan: RetryPlan, outcome: Outcome): boolean {
  try {
    return judge(plan.handles, outcome, plan.name);
  } catch (error) {
    discard(plan, { ok: false, error });
    throw error;
  }
}

function notWaiting(): void {}

/** A call whose first attempt failed. It is also the timer of its waits and the listener for its abort. */
class RetryRun<T> extends Timer implements Dependent {
  owner: Call | undefined = undefined;
  previousDependent: Dependent | undefined = undefined;
  nextDependent: Dependent | undefined = undefined;

  readonly #plan: RetryPlan;
  readonly #call: Call;
  readonly #next: (call: Call) => Promise<T>;
  readonly #errors: unknown[] = [];
  /** The outcome of the last attempt that was started, while the caller can still get it. */
  #started: Outcome<T> | undefined = undefined;
  #previousDelayMs: number | undefined = undefined;
  #hintMs: number | undefined = undefined;
  /** Whether the value of an attempt has been given to `onDiscard`. */
  #hasDiscarded = false;
  #wake = notWaiting;
  #hasTold = false;

  constructor(plan: RetryPlan, call: Call, next: (call: Call) => Promise<T>) {
    super();
    this.#plan = plan;
    this.#call = call;
    this.#next = next;
  }

  /** The wait is over. */
  override expire(): void {
    this.#wake();
  }

  /** The call was ended. Reported at once, because the caller hears of it before a running attempt does. */
  onAbort(reason: unknown): void {
    this.#call.clock.cancel(this);
    if (!this.#hasTold) this.#tellStop('abort', { ok: false, error: reason });
    this.#wake();
  }

  async goOn(first: Outcome<T>): Promise<T> {
    this.#keep(first);
    this.#call.attach(this);
    try {
      return await this.#attemptFurther(first);
    } catch (error) {
      this.#discardStarted();
      if (!this.#hasTold) this.#tellStop('classifier', { ok: false, error });
      throw error;
    } finally {
      this.#call.detach(this);
    }
  }

  /** `failed` holds an error, or a value that `handles` took for a failure. */
  async #attemptFurther(failed: Outcome<T>): Promise<T> {
    const { events, name, minAttemptTime } = this.#plan;
    const call = this.#call;
    let outcome = failed;
    for (let attempt = 1; ; attempt++) {
      if (call.aborted) throw call.reason;
      const delayMs = this.#delayAfter(attempt, outcome);
      if (typeof delayMs === 'string') return this.#stop(delayMs, outcome);
      if (events.heard) events.emit({ type: 'retry', name, attempt, delayMs, error: errorOf(outcome), outcome });
      // A listener of the event may have ended the call.
      if (!call.aborted) await this.#wait(delayMs);
      if (call.aborted) throw call.reason;
      // The timer may have been so late that no time is left.
      if (call.remainingMs <= minAttemptTime) return this.#stop('deadline', outcome);
      outcome = await this.#attempt(attempt + 1);
      if (outcome.ok && accepts(this.#plan, outcome, call)) {
        this.#discardStarted();
        // A call that was ended meanwhile did not succeed, and its end has been reported.
        if (events.heard && !this.#hasTold) events.emit({ type: 'retry-succeeded', name, attempts: attempt + 1 });
        return outcome.value;
      }
      this.#keep(outcome);
    }
  }

  #keep(outcome: Outcome<T>): void {
    this.#errors.push(errorOf(outcome));
    if (!outcome.ok) discard(this.#plan, outcome);
    // A refusal says that nothing was started, so the caller can still get what was answered before.
    if (!outcome.ok && isRejected(outcome.error)) return;
    this.#discardStarted();
    this.#started = outcome;
  }

  /** Gives a value that the caller will not get to `onDiscard`, which may close it. */
  #discardStarted(): void {
    const started = this.#started;
    if (!started?.ok || this.#plan.onDiscard === undefined) return;
    this.#started = undefined;
    this.#hasDiscarded = true;
    discard(this.#plan, started);
  }

  /** Each further attempt has its own call, so that no attempt sees the abort of another. */
  async #attempt(attempt: number): Promise<Outcome<T>> {
    const child = this.#call.child({ attempt });
    const { task } = child;
    // Only now, because an attempt that is refused starts nothing, and not later, because the operation may need what the last value holds.
    child.task = (own) => {
      if (!own.aborted) this.#discardStarted();
      // `onDiscard` may have ended the call.
      return own.aborted ? rejectLater(own.reason) : task(own);
    };
    try {
      return { ok: true, value: await this.#next(child) };
    } catch (error) {
      return { ok: false, error };
    } finally {
      this.#call.detach(child);
    }
  }

  #wait(delayMs: number): Promise<void> {
    const { clock } = this.#call;
    return new Promise((wake) => {
      this.#wake = wake;
      clock.schedule(this, clock.now() + delayMs);
    });
  }

  /** The delay before the next attempt, or the reason why there is none. */
  #delayAfter(attempt: number, outcome: Outcome<T>): number | RetryStop {
    const call = this.#call;
    const { attempts, maxRetryAfter, minAttemptTime, budget } = this.#plan;
    const hint = retryHintOf(outcome, call.clock.wallNow());
    this.#hintMs = typeof hint === 'number' ? hint : undefined;
    if (!this.#isWorthRepeating(outcome)) return 'classifier';
    if (isOnce(call)) return 'unsafe';
    if (attempt >= attempts) return 'attempts';
    // Attempts of nested retries would multiply, so only the outermost retry makes them.
    if (call.isRetried(this.#plan)) return 'nested';
    if (hint === 'never' || (hint ?? 0) > maxRetryAfter) return 'pushback';
    const delayMs = this.#delay(attempt, outcome);
    if (delayMs >= call.remainingMs - minAttemptTime) return 'deadline';
    if (budget !== undefined && !this.#ask('budget', outcome, () => yesOrNo(budget.tryWithdraw(call.key))))
      return 'budget';
    return delayMs;
  }

  #isWorthRepeating(outcome: Outcome<T>): boolean {
    if (outcome.ok) return true;
    // Without a time at which it may end, a refusal would only use up the attempts.
    if (isRejected(outcome.error)) return this.#hintMs !== undefined;
    return judge(this.#plan.handles, outcome, this.#plan.name);
  }

  #delay(attempt: number, outcome: Outcome<T>): number {
    const { backoff, random } = this.#plan;
    const delayMs = this.#ask('backoff', outcome, () => {
      const delay: unknown = backoff({
        attempt,
        previousDelayMs: this.#previousDelayMs,
        error: errorOf(outcome),
        random,
      });
      if (typeof delay === 'number' && delay >= 0) return delay;
      throw new TypeError(`a delay is a number of milliseconds of at least 0, got ${show(delay)}`);
    });
    this.#previousDelayMs = delayMs;
    const spread = this.#hintMs === undefined ? 0 : this.#ask('random', outcome, () => clamped(random()));
    const hintedMs = (this.#hintMs ?? 0) * (1 + spread / 10);
    return Math.min(Math.max(delayMs, hintedMs), longestWaitMs);
  }

  /** Calls a user's function. If it throws, the call's own error becomes the cause. */
  #ask<Answer>(option: string, outcome: Outcome<T>, question: () => Answer): Answer {
    try {
      return question();
    } catch (thrown) {
      const error = unjudged(outcome, this.#plan.name, option, thrown);
      if (outcome.ok) this.#started = undefined;
      discard(this.#plan, { ok: false, error });
      throw error;
    }
  }

  #stop(stoppedBy: RetryStop, last: Outcome<T>): T {
    const outcome = !last.ok && isRejected(last.error) ? this.#insteadOf(last.error) : last;
    if (!this.#hasTold) this.#tellStop(stoppedBy, outcome);
    // A hook of the user may have ended the call: then the caller does not get the value.
    if (this.#call.aborted) throw this.#call.reason;
    // The caller has it, so an operation of a refused attempt that begins late must not discard it.
    this.#started = undefined;
    // A value that counts as a failure is still the best answer available: a response can be read.
    if (outcome.ok) return outcome.value;
    throw outcome.error;
  }

  /** Replaces a refusal. A refusal says that nothing was started, so the caller may get it only if that is true. */
  #insteadOf(refusal: Error): Outcome<T> {
    if (this.#started !== undefined) return this.#started;
    if (!this.#hasDiscarded) return { ok: false, error: refusal };
    const message = `"${this.#plan.name}" discarded what an attempt answered, and was refused a further one: ${refusal.message}`;
    return { ok: false, error: new HoldfastError('ERR_ATTEMPTS_DISCARDED', message, { cause: refusal }) };
  }

  #tellStop(stoppedBy: RetryStop, outcome: Outcome<T>): void {
    this.#hasTold = true;
    const { events, name } = this.#plan;
    const attempts = this.#errors.length;
    if (events.heard) events.emit({ type: 'retry-stopped', name, attempts, stoppedBy, error: errorOf(outcome) });
    const carrier = outcome.ok ? outcome.value : outcome.error;
    if (typeof carrier !== 'object' || carrier === null) return;
    shared[reportsKey] ??= new WeakMap();
    shared[reportsKey].set(carrier, { attempts, stoppedBy, errors: this.#errors.slice(), retryAfterMs: this.#hintMs });
  }
}

/** Spreads a delay above the hint, never below it: all clients got the same hint. */
function clamped(drawn: number): number {
  return drawn >= 0 && drawn <= 1 ? drawn : 0;
}

function errorOf(outcome: Outcome): unknown {
  return outcome.ok ? undefined : outcome.error;
}
