/**
 * Errors: what a caller must know to go on. Rejected means that nothing was started, so repeating is safe; abandoned
 * means that the operation was started and its outcome is unknown.
 *
 * Promise: every error has a `name`, a stable `code` and the numbers; the guards recognise errors of any copy of this
 * package. Errors that end a call are real errors, yet carry no stack unless asked: capturing one costs more than the call.
 */
import type { Outcome } from './outcome.js';

const brand = Symbol.for('holdfast.error');

/** The families that the guards tell apart. */
type Family = 'rejected' | 'abandoned' | 'other';

/** What every error of holdfast takes besides its own numbers. */
export interface HoldfastErrorOptions {
  readonly cause?: unknown;
  /** Captures a stack, about 3 microseconds on Node 24. */
  readonly stack?: boolean | undefined;
}

/** The codes of this package's errors. */
export type HoldfastErrorCode =
  | 'ERR_TIMEOUT'
  | 'ERR_DEADLINE_EXCEEDED'
  | 'ERR_DEADLINE_TOO_SHORT'
  | 'ERR_CIRCUIT_OPEN'
  | 'ERR_BULKHEAD_FULL'
  | 'ERR_RATE_LIMITED'
  | 'ERR_SHED'
  | 'ERR_LOCK_UNAVAILABLE'
  | 'ERR_LOCK_LOST'
  | 'ERR_STALE_FENCE'
  | 'ERR_LOAD_BACKOFF'
  | 'ERR_HANDLES_FAILED'
  | 'ERR_STORE'
  | 'ERR_KEY_MISSING'
  | 'ERR_KEY_REUSED'
  | 'ERR_IN_FLIGHT'
  | 'ERR_IN_DOUBT'
  | 'ERR_OPTIONS'
  | 'ERR_ATTEMPTS_DISCARDED'
  | 'ERR_CONTEXT_UNAVAILABLE'
  | 'ERR_CRYPTO_UNAVAILABLE';

/** Base of all errors that end a call. */
export class HoldfastError extends Error {
  // An accessor costs nothing per error, and, unlike an assignment to the prototype, does not keep the classes that nobody
  // uses in a bundle.
  /** @internal */ static get label(): string {
    return 'HoldfastError';
  }

  override get name(): string {
    return (this.constructor as typeof HoldfastError).label;
  }

  /** Lets subclasses of yours set their name as subclasses of `Error` do: by assigning it. */
  override set name(value: string) {
    giveName(this, value);
  }

  /** Stable, for programs: `ERR_TIMEOUT` and so on, or one of a class of your own. */
  readonly code: HoldfastErrorCode | (string & Record<never, never>);

  constructor(code: string, message: string, { cause, stack = false }: HoldfastErrorOptions = {}) {
    const limit = Error.stackTraceLimit;
    const mute = !stack && typeof limit === 'number' && limit !== 0;
    if (mute) setStackLimit(0);
    super(message, cause === undefined ? undefined : { cause });
    if (mute) setStackLimit(limit);
    brandHoldfastError();
    this.code = code;
  }

  override toString(): string {
    return `${this.name} [${this.code}]: ${this.message}`;
  }
}

/** What refusals have in common. */
type RefusalNumbers = HoldfastErrorOptions & { readonly policy: string; readonly retryAfterMs?: number | undefined };

/** The operation was never started: repeating it is safe. */
export class RejectedError extends HoldfastError {
  /** @internal */ static override get label(): string {
    return 'RejectedError';
  }

  /** The policy that refused. */
  readonly policy: string;
  /** Milliseconds after which a new try may succeed, where that is known. */
  readonly retryAfterMs: number | undefined;

  constructor(code: string, message: string, options: RefusalNumbers) {
    super(code, message, options);
    brandRejectedError();
    this.policy = options.policy;
    this.retryAfterMs = options.retryAfterMs;
  }
}

/** The operation was started and then given up: its outcome is unknown. */
export class AbandonedError extends HoldfastError {
  /** @internal */ static override get label(): string {
    return 'AbandonedError';
  }

  /** The policy that gave up. */
  readonly policy: string;

  constructor(code: string, message: string, options: HoldfastErrorOptions & { readonly policy: string }) {
    super(code, message, options);
    brandAbandonedError();
    this.policy = options.policy;
  }
}

interface EndOptions extends HoldfastErrorOptions {
  readonly policy: string;
  readonly afterMs?: number | undefined;
}

/** `ERR_TIMEOUT`: an attempt took longer than its `timeout`. */
export class TimeoutError extends AbandonedError {
  /** @internal */ static override get label(): string {
    return 'TimeoutError';
  }

  declare readonly code: 'ERR_TIMEOUT';

  /** The time allowed, in milliseconds; undefined when a guard of your own set the end. */
  readonly afterMs: number | undefined;

  constructor(options: EndOptions) {
    const { policy, afterMs } = options;
    super('ERR_TIMEOUT', `"${policy}" gave up ${whenOf(afterMs)}; the operation may still be running`, options);
    this.afterMs = afterMs;
  }
}

/** `ERR_DEADLINE_EXCEEDED`: the whole call took longer than its deadline. */
export class DeadlineExceededError extends AbandonedError {
  /** @internal */ static override get label(): string {
    return 'DeadlineExceededError';
  }

  declare readonly code: 'ERR_DEADLINE_EXCEEDED';

  /** The time allowed, in milliseconds; undefined when the deadline came with the call. */
  readonly afterMs: number | undefined;

  constructor(options: EndOptions) {
    const { policy, afterMs } = options;
    super('ERR_DEADLINE_EXCEEDED', `"${policy}" ended the call ${whenOf(afterMs)}; its outcome is unknown`, options);
    this.afterMs = afterMs;
  }
}

/** `ERR_DEADLINE_TOO_SHORT`: no time was left to start the operation. */
export class DeadlineTooShortError extends RejectedError {
  /** @internal */ static override get label(): string {
    return 'DeadlineTooShortError';
  }

  declare readonly code: 'ERR_DEADLINE_TOO_SHORT';

  /** Time left when the operation should have started, in milliseconds; zero or less. */
  readonly remainingMs: number;

  /** @param options - `hint`: what the caller that set the deadline probably meant. */
  constructor(
    options: HoldfastErrorOptions & { readonly policy: string; readonly remainingMs: number; readonly hint?: string },
  ) {
    const { policy, remainingMs, hint = '' } = options;
    super(
      'ERR_DEADLINE_TOO_SHORT',
      `"${policy}" did not start the operation: its deadline passed ${rounded(-remainingMs)} ms ago${hint}`,
      options,
    );
    this.remainingMs = remainingMs;
  }
}

/** `ERR_CIRCUIT_OPEN`: a circuit breaker lets no call through. */
export class CircuitOpenError extends RejectedError {
  /** @internal */ static override get label(): string {
    return 'CircuitOpenError';
  }

  declare readonly code: 'ERR_CIRCUIT_OPEN';

  /** Why: it is open, all probes of the half-open circuit are taken, it admits only a share of the calls so far, or an operator isolated it. */
  readonly state: 'open' | 'half-open' | 'ramping' | 'isolated';

  constructor(
    options: RefusalNumbers & { readonly state: CircuitOpenError['state']; readonly detail?: string | undefined },
  ) {
    const { state, detail } = options;
    const wait = options.retryAfterMs === undefined ? '' : ` for another ${rounded(options.retryAfterMs)} ms`;
    super(
      'ERR_CIRCUIT_OPEN',
      `"${options.policy}" is ${state}${wait}${detail === undefined ? '' : ` (${detail})`}`,
      options,
    );
    this.state = state;
  }
}

/** `ERR_BULKHEAD_FULL`: all slots of a bulkhead or limiter are taken, and there is no room, or no time, to wait for one. */
export class BulkheadFullError extends RejectedError {
  /** @internal */ static override get label(): string {
    return 'BulkheadFullError';
  }

  declare readonly code: 'ERR_BULKHEAD_FULL';

  /** Operations that may run at once. */
  readonly limit: number;
  /** Calls that may wait. */
  readonly queue: number;
  /** `'full'`: no place in the queue; `'waited'`: the call waited too long; `'overtaken'`: newer calls took its place. */
  readonly reason: 'full' | 'waited' | 'overtaken';

  constructor(
    options: RefusalNumbers & {
      readonly limit: number;
      readonly queue: number;
      readonly reason?: BulkheadFullError['reason'] | undefined;
    },
  ) {
    const { limit, queue, reason = 'full' } = options;
    super(
      'ERR_BULKHEAD_FULL',
      reason === 'full'
        ? `"${options.policy}" is full: ${limit} operations run and ${queue} may wait`
        : `"${options.policy}" let the call wait for one of ${limit} slots and gave it up (${reason})`,
      options,
    );
    this.limit = limit;
    this.queue = queue;
    this.reason = reason;
  }
}

/** `ERR_RATE_LIMITED`: a rate limit has no room for the call now. */
export class RateLimitedError extends RejectedError {
  /** @internal */ static override get label(): string {
    return 'RateLimitedError';
  }

  declare readonly code: 'ERR_RATE_LIMITED';

  /** Calls allowed per period; undefined if the service sets the limit. */
  readonly limit: number | undefined;

  constructor(options: RefusalNumbers & { readonly limit?: number | undefined }) {
    const { limit } = options;
    const wait =
      options.retryAfterMs === undefined ? '' : `, the next one may start in ${rounded(options.retryAfterMs)} ms`;
    super('ERR_RATE_LIMITED', `"${options.policy}" has no room for the call${wait}`, options);
    this.limit = limit;
  }
}

/** `ERR_SHED`: the call was turned away because this process, or the service it calls, is overloaded. */
export class ShedError extends RejectedError {
  /** @internal */ static override get label(): string {
    return 'ShedError';
  }

  declare readonly code: 'ERR_SHED';

  /** The measurement, in words: `'event loop 130 ms late'`. */
  readonly reason: string;

  constructor(options: RefusalNumbers & { readonly reason: string }) {
    const { reason } = options;
    super('ERR_SHED', `"${options.policy}" turned the call away: ${reason}`, options);
    this.reason = reason;
  }
}

/** `ERR_LOCK_UNAVAILABLE`: a lock or permit could not be acquired, and nothing was started. */
export class LockUnavailableError extends RejectedError {
  /** @internal */ static override get label(): string {
    return 'LockUnavailableError';
  }

  declare readonly code: 'ERR_LOCK_UNAVAILABLE';

  /** The key, or the keys. */
  readonly key: string;
  /**
   * `'waited'`: the caller waited too long; `'full'`: too many callers wait already; `'reentrant'`: the caller itself runs inside this very
   * lock; `'lost'`: of several keys, one was lost while the caller waited for another.
   */
  readonly reason: 'waited' | 'full' | 'reentrant' | 'lost';

  constructor(
    options: RefusalNumbers & {
      readonly key: string;
      readonly reason: LockUnavailableError['reason'];
      /** What happened, in words. */
      readonly detail: string;
    },
  ) {
    const { key, reason, detail } = options;
    super('ERR_LOCK_UNAVAILABLE', `"${options.policy}" did not get "${key}": ${detail}`, options);
    this.key = key;
    this.reason = reason;
  }
}

/**
 * `ERR_LOCK_LOST`: another owner may hold the lock now. If an operation ran under it, `outcome` is how that ended, and `cause` is its
 * error, if it failed.
 */
export class LockLostError extends AbandonedError {
  /** @internal */ static override get label(): string {
    return 'LockLostError';
  }

  declare readonly code: 'ERR_LOCK_LOST';

  readonly key: string;
  readonly fence: number;
  /**
   * `'expired'`: it could not be renewed, or released, in time; `'taken'`: before it expired, the store reported another owner,
   * or that it was removed; `'released'`: it was released before; `'short'`: it is held, but not for as long as was asked for.
   */
  readonly reason: 'expired' | 'taken' | 'released' | 'short';
  /** How the operation under the lock ended; undefined if there was none, or if it still runs. */
  readonly outcome: Outcome | undefined;

  constructor(
    options: HoldfastErrorOptions & {
      readonly policy: string;
      readonly key: string;
      readonly fence: number;
      readonly reason: LockLostError['reason'];
      readonly outcome?: Outcome | undefined;
    },
  ) {
    const { key, fence, reason, outcome } = options;
    super('ERR_LOCK_LOST', `"${options.policy}" does not hold "${key}" any more (fence ${fence}, ${reason})`, options);
    this.key = key;
    this.fence = fence;
    this.reason = reason;
    this.outcome = outcome;
  }
}

/** `ERR_STALE_FENCE`: a resource has already been written under a newer lock, so this write was not done. */
export class StaleFenceError extends HoldfastError {
  /** @internal */ static override get label(): string {
    return 'StaleFenceError';
  }

  declare readonly code: 'ERR_STALE_FENCE';

  readonly resource: string;
  /** The fence of the refused write. */
  readonly fence: number;
  /** The newest fence that the resource has seen, if known. */
  readonly newestFence: number | undefined;

  constructor(
    options: HoldfastErrorOptions & {
      readonly resource: string;
      readonly fence: number;
      readonly newestFence?: number | undefined;
    },
  ) {
    const { resource, fence, newestFence } = options;
    const newest = newestFence === undefined ? 'a newer one' : String(newestFence);
    super('ERR_STALE_FENCE', `"${resource}" was not written: it has seen ${newest}, this is fence ${fence}`, options);
    this.resource = resource;
    this.fence = fence;
    this.newestFence = newestFence;
  }
}

/** `ERR_LOAD_BACKOFF`: a cache does not load the key now, because its last load failed a moment ago, in this process or another. */
export class LoadBackoffError extends RejectedError {
  /** @internal */ static override get label(): string {
    return 'LoadBackoffError';
  }

  declare readonly code: 'ERR_LOAD_BACKOFF';

  readonly key: string;

  constructor(options: RefusalNumbers & { readonly key: string; readonly detail: string }) {
    const { key, detail } = options;
    const wait = rounded(options.retryAfterMs ?? 0);
    super('ERR_LOAD_BACKOFF', `"${options.policy}" does not load "${key}" for another ${wait} ms: ${detail}`, options);
    this.key = key;
  }
}

/**
 * `ERR_HANDLES_FAILED`: a `handles`, `backoff` or other function given to a policy threw or returned an invalid value, so the
 * policy could not judge the outcome. `cause` is the error of the call if it failed, else what the function threw.
 */
export class HandlesError extends HoldfastError {
  /** @internal */ static override get label(): string {
    return 'HandlesError';
  }

  declare readonly code: 'ERR_HANDLES_FAILED';

  readonly policy: string;
  /** What the function threw. */
  readonly thrown: unknown;
  /**
   * What the operation returned, if the function could not judge that, so that you can close it: a response, for example.
   * Undefined if the operation failed, or an `onDiscard` has received the value. Not enumerable, so that logs do not show it.
   */
  declare readonly value: unknown;

  constructor({
    policy,
    option,
    thrown,
    cause = thrown,
    value,
  }: {
    readonly policy: string;
    readonly option: string;
    readonly thrown: unknown;
    readonly cause?: unknown;
    readonly value?: unknown;
  }) {
    super('ERR_HANDLES_FAILED', `"${policy}": its "${option}" function failed: ${messageOf(thrown)}`, { cause });
    this.policy = policy;
    this.thrown = thrown;
    Object.defineProperty(this, 'value', { value, writable: true });
  }
}

/** Takes the unjudged value out of an error, for the code that closes it. Nobody finds it there afterwards. */
export function takeUnjudged(error: unknown): unknown {
  // Not by its class: the policy that made it may be of another copy of the package.
  if (!isHoldfastError(error) || error.code !== 'ERR_HANDLES_FAILED') return undefined;
  const holder = error as { value: unknown };
  const { value } = holder;
  holder.value = undefined;
  return value;
}

/**
 * What was wrong: `'invalid'` an argument; `'full'` no room left; `'busy'` other connections kept it locked all the
 * time; `'timeout'` no reply in time; `'closed'` the store or its connection is closed; `'schema'` its tables are missing
 * or not as expected; `'failed'` anything else, see `cause`.
 */
export type StoreFailure = 'invalid' | 'full' | 'busy' | 'timeout' | 'closed' | 'schema' | 'failed';

/** `ERR_STORE`: a store could not do what it was asked, or could not say whether it did. */
export class StoreError extends HoldfastError {
  /** @internal */ static override get label(): string {
    return 'StoreError';
  }

  declare readonly code: 'ERR_STORE';

  /** The kind of store: `'memory'`, `'sqlite'` and so on. */
  readonly store: string;
  /** What was asked: `'read'`, `'write'`, `'remove'`, or a capability. */
  readonly operation: string;
  readonly reason: StoreFailure;
  /** `'no'`: nothing was changed. `'unknown'`: it may have been done, or may still be done. */
  readonly applied: 'no' | 'unknown';

  constructor(
    options: HoldfastErrorOptions & {
      readonly store: string;
      readonly operation: string;
      readonly reason: StoreFailure;
      readonly applied: StoreError['applied'];
      /** What went wrong and what may help, in words. */
      readonly detail: string;
    },
  ) {
    const { store, operation, reason, applied, detail } = options;
    super(
      'ERR_STORE',
      `${store} store, ${operation}: ${detail} (${applied === 'no' ? 'nothing was changed' : 'it may have been applied'})`,
      options,
    );
    this.store = store;
    this.operation = operation;
    this.reason = reason;
    this.applied = applied;
  }
}

/** What the errors of idempotency have in common. */
type KeyNumbers = HoldfastErrorOptions & { readonly policy: string };

/** `ERR_KEY_MISSING`: an operation that needs an idempotency key has none, or an invalid one. */
export class KeyMissingError extends HoldfastError {
  /** @internal */ static override get label(): string {
    return 'KeyMissingError';
  }

  declare readonly code: 'ERR_KEY_MISSING';

  readonly policy: string;

  constructor(options: KeyNumbers & { readonly detail: string }) {
    const { policy, detail } = options;
    super('ERR_KEY_MISSING', `"${policy}": ${detail}; nothing was started`, options);
    this.policy = policy;
  }
}

/** `ERR_KEY_REUSED`: the idempotency key was used before with a different input. Repeating it will not help; use a new key for a new operation. */
export class KeyReusedError extends HoldfastError {
  /** @internal */ static override get label(): string {
    return 'KeyReusedError';
  }

  declare readonly code: 'ERR_KEY_REUSED';

  readonly policy: string;

  constructor(options: KeyNumbers) {
    const { policy } = options;
    super(
      'ERR_KEY_REUSED',
      `"${policy}": the key was used before with a different input; nothing was started`,
      options,
    );
    this.policy = policy;
  }
}

/** `ERR_IN_FLIGHT`: the operation with this idempotency key is running. Ask again, with the same key, after `retryAfterMs`. */
export class InFlightError extends HoldfastError {
  /** @internal */ static override get label(): string {
    return 'InFlightError';
  }

  declare readonly code: 'ERR_IN_FLIGHT';

  readonly policy: string;
  readonly retryAfterMs: number;

  constructor(options: KeyNumbers & { readonly retryAfterMs: number }) {
    const { policy, retryAfterMs } = options;
    const wait = `ask again with the same key in ${rounded(retryAfterMs)} ms`;
    super('ERR_IN_FLIGHT', `"${policy}": the operation with this key is running; ${wait}`, options);
    this.policy = policy;
    this.retryAfterMs = retryAfterMs;
  }
}

/**
 * `ERR_IN_DOUBT`: the outcome of the operation with this idempotency key, or its result, is unknown. `reason` says why:
 * `'unknown'` its process was lost, `'lost'` this attempt's lease was lost, `'drift'` its phases changed, `'not-stored'` it was done but its result
 * could not be stored, `'unreadable'` the stored record cannot be read, `'too-old'` a client no longer sends the key, because the service may
 * have forgotten it, `'redirected'` a client was redirected to another origin, which does not get the key, so the request is not sent there twice.
 */
export class InDoubtError extends HoldfastError {
  /** @internal */ static override get label(): string {
    return 'InDoubtError';
  }

  declare readonly code: 'ERR_IN_DOUBT';

  readonly policy: string;
  readonly reason: 'unknown' | 'lost' | 'drift' | 'not-stored' | 'unreadable' | 'too-old' | 'redirected';

  constructor(options: KeyNumbers & { readonly reason: InDoubtError['reason']; readonly detail: string }) {
    const { policy, reason, detail } = options;
    super('ERR_IN_DOUBT', `"${policy}": ${detail}`, options);
    this.policy = policy;
    this.reason = reason;
  }
}

/** `ERR_OPTIONS`: an option is missing, misspelt, of the wrong type or out of range. Thrown by the factory, at once. */
export class OptionsError extends TypeError {
  override get name(): string {
    return 'OptionsError';
  }

  override set name(value: string) {
    giveName(this, value);
  }

  readonly code = 'ERR_OPTIONS';
  /** The factory that was called. */
  readonly policy: string;
  /** The option, or undefined when the options as a whole are wrong. */
  readonly option: string | undefined;
  /** What was given. Logs do not show it: it may be a secret, or a client that holds one. */
  declare readonly value: unknown;
  /** What would be accepted, in words. */
  readonly allowed: string;

  constructor(
    message: string,
    {
      policy,
      option,
      value,
      allowed,
    }: {
      readonly policy: string;
      readonly option?: string | undefined;
      readonly value: unknown;
      readonly allowed: string;
    },
  ) {
    super(message);
    brandOptionsError();
    this.policy = policy;
    this.option = option;
    Object.defineProperty(this, 'value', { value });
    this.allowed = allowed;
  }
}

/**
 * Whether the operation was never started, so that repeating it is safe. Holds across copies of the package.
 *
 * @example
 * ```ts
 * import { isRejected, pipeline, rateLimit } from 'holdfast';
 *
 * const quota = pipeline(rateLimit({ limit: 1, period: '1m' }));
 * await quota.execute(() => 'first');
 * const second = await quota.attempt(() => 'second');
 * console.log(!second.ok && isRejected(second.error)); // true
 * ```
 */
export function isRejected(error: unknown): error is RejectedError {
  return familyOf(error) === 'rejected';
}

/**
 * Whether the operation was started and its outcome is unknown, so that only an idempotent operation may be repeated. Holds across copies of the package.
 *
 * @example
 * ```ts
 * import { isAbandoned, pipeline, timeout } from 'holdfast';
 *
 * const outcome = await pipeline(timeout('5ms')).attempt(() => new Promise(() => {}));
 * console.log(!outcome.ok && isAbandoned(outcome.error)); // true
 * ```
 */
export function isAbandoned(error: unknown): error is AbandonedError {
  return familyOf(error) === 'abandoned';
}

/**
 * Whether an error comes from holdfast, and so has a `code`. Holds across copies of the package.
 *
 * @example
 * ```ts
 * import { isHoldfastError, isRejected } from 'holdfast';
 *
 * const statusOf = (error: unknown) => (isRejected(error) ? 503 : isHoldfastError(error) ? 504 : 500);
 * console.log(statusOf(new Error('a bug'))); // 500
 * ```
 */
export function isHoldfastError(error: unknown): error is (HoldfastError | OptionsError) & Branded {
  return familyOf(error) !== undefined;
}

/** Tells the types apart: errors of Fastify and Node have a `code`, too, and where the answer is no, nothing of them would be left. */
interface Branded {
  readonly [brand]: unknown;
}

function giveName(error: Error, value: string): void {
  Object.defineProperty(error, 'name', { value, writable: true, configurable: true });
}

/** The first error of a class sets its brand. Setting brands when the module loads would keep unused classes in every bundle. */
// Outside the classes: a bundler renames a class that refers to itself, and logs would show "_OptionsError".
const brandHoldfastError = () => brandOnce(HoldfastError.prototype, 'other');
const brandRejectedError = () => brandOnce(RejectedError.prototype, 'rejected');
const brandAbandonedError = () => brandOnce(AbandonedError.prototype, 'abandoned');
const brandOptionsError = () => brandOnce(OptionsError.prototype, 'other');

function brandOnce(prototype: object, family: Family): void {
  if ((prototype as { [brand]?: Family })[brand] !== family) Object.defineProperty(prototype, brand, { value: family });
}

function familyOf(error: unknown): Family | undefined {
  try {
    return (error as { [brand]?: Family } | null | undefined)?.[brand];
  } catch {
    // A revoked proxy, or a getter that throws: anything can be thrown.
    return undefined;
  }
}

/** Has no effect under `--frozen-intrinsics` and in hardened realms; there errors keep their stacks. */
function setStackLimit(limit: number): void {
  try {
    Error.stackTraceLimit = limit;
  } catch {}
}

function whenOf(afterMs: number | undefined): string {
  return afterMs === undefined ? 'at its deadline' : `after ${rounded(afterMs)} ms`;
}

/** Rounds to tenths only for small numbers: formatting a fraction takes a third of the time of a whole refusal. */
function rounded(ms: number): number {
  return ms < 100 ? Math.round(ms * 10) / 10 : Math.round(ms);
}

/** A description of what was thrown. Anything can be thrown, including values that cannot be converted to a string. */
export function messageOf(thrown: unknown): string {
  try {
    return String(thrown instanceof Error ? thrown.message : thrown);
  } catch {
    return 'something that cannot be shown';
  }
}
