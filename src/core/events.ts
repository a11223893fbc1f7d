/**
 * Events: one typed union, published on the diagnostics channel `holdfast` and given to each policy's `on` hook.
 *
 * Promise: unheard, an event point costs one check; an exception in a hook changes nothing for the call and is reported
 * once per policy, as a process warning with the code `HOLDFAST_HOOK_FAILED` and as an event `hook-failed`.
 */

import { messageOf } from './errors.js';
import type { Outcome } from './outcome.js';

/** A retry is about to wait. */
export interface RetryEvent {
  readonly type: 'retry';
  readonly name: string;
  /** The attempt that failed, from 1. */
  readonly attempt: number;
  readonly delayMs: number;
  /** The error of the attempt; undefined when `handles` took a value for a failure. */
  readonly error: unknown;
  /** Its outcome, including a value that was taken for a failure. */
  readonly outcome: Outcome;
}

/** A call succeeded after at least one retry. */
export interface RetrySucceededEvent {
  readonly type: 'retry-succeeded';
  readonly name: string;
  readonly attempts: number;
}

/** A retry gave up. */
export interface RetryStoppedEvent {
  readonly type: 'retry-stopped';
  readonly name: string;
  readonly attempts: number;
  readonly stoppedBy: RetryStop;
  readonly error: unknown;
}

/** Why a retry made no further attempt. */
export type RetryStop = 'attempts' | 'deadline' | 'budget' | 'classifier' | 'pushback' | 'abort' | 'unsafe' | 'nested';

/** An attempt took longer than its `timeout`. */
export interface TimeoutEvent {
  readonly type: 'timeout';
  readonly name: string;
  readonly afterMs: number;
}

/** A call took longer than its deadline. */
export interface DeadlineExceededEvent {
  readonly type: 'deadline-exceeded';
  readonly name: string;
  readonly afterMs: number;
}

/** An operation was not started, because no time was left for it. */
export interface DeadlineTooShortEvent {
  readonly type: 'deadline-too-short';
  readonly name: string;
  readonly remainingMs: number;
}

/** A fallback answered in place of an error. */
export interface FallbackEvent {
  readonly type: 'fallback';
  readonly name: string;
  readonly error: unknown;
}

/** A bulkhead or an adaptive limit turned a call away. */
export interface BulkheadFullEvent {
  readonly type: 'bulkhead-full';
  readonly name: string;
  /** As in `BulkheadFullError`. */
  readonly reason: 'full' | 'waited' | 'overtaken';
  readonly running: number;
  readonly waiting: number;
}

/** An adaptive limit has moved by a tenth or more. */
export interface LimitChangedEvent {
  readonly type: 'limit-changed';
  readonly name: string;
  readonly limit: number;
  /** The limit of the previous event. */
  readonly previousLimit: number;
}

/** A rate limit had no room for a call. */
export interface RateLimitedEvent {
  readonly type: 'rate-limited';
  readonly name: string;
  /** When there will be room; undefined when there never is, because the call costs more than the burst. */
  readonly retryAfterMs: number | undefined;
}

/** A throttle turned a call away, because the service accepts too few. */
export interface ThrottledEvent {
  readonly type: 'throttled';
  readonly name: string;
  /** The probability with which it turns calls away now. */
  readonly probability: number;
}

/** A load shedder turned a call away, because this process is too busy. */
export interface ShedEvent {
  readonly type: 'shed';
  readonly name: string;
  readonly priority: 'low' | 'normal' | 'high' | 'critical';
  readonly eventLoopDelayMs: number;
  /** Share of the time that the event loop is busy, from 0 to 1; 0 where it is not watched. */
  readonly utilization: number;
}

/** Another copy of a slow or failed call is about to be sent. */
export interface HedgeEvent {
  readonly type: 'hedge';
  readonly name: string;
  /** The number of this copy, from 1; the first attempt is 0. */
  readonly copy: number;
  readonly because: 'slow' | 'failed';
  /** Since the call began. */
  readonly afterMs: number;
}

/** A copy, and not the first attempt, answered a hedged call. */
export interface HedgeWonEvent {
  readonly type: 'hedge-won';
  readonly name: string;
  readonly copy: number;
  readonly afterMs: number;
}

/** A copy was due but not sent: the budget is empty, or this process itself is late. */
export interface HedgeSkippedEvent {
  readonly type: 'hedge-skipped';
  readonly name: string;
  readonly reason: 'budget' | 'event-loop';
}

/** The first attempt and all copies failed. */
export interface HedgeFailedEvent {
  readonly type: 'hedge-failed';
  readonly name: string;
  readonly copies: number;
  /** In the order in which they failed; undefined where `handles` took a value for a failure. Refusals are left out. */
  readonly errors: readonly unknown[];
}

/** A call joined one in flight with the same key. */
export interface FlightSharedEvent {
  readonly type: 'flight-shared';
  readonly name: string;
  readonly key: string;
  /** How many calls wait for the result now. */
  readonly waiting: number;
}

/** An HTTP client delays a request, or refuses it, because of earlier responses of its origin. */
export interface PacedEvent {
  readonly type: 'paced';
  readonly name: string;
  readonly origin: string;
  readonly delayMs: number;
  /** Whether the wait would be too long, so that the request is refused. */
  readonly refused: boolean;
}

/** An HTTP client resends a request at once, because the idle connection it was sent on was closed. */
export interface ReconnectedEvent {
  readonly type: 'reconnected';
  readonly name: string;
  readonly origin: string;
  readonly error: unknown;
}

/** A circuit breaker changed its state. */
export interface CircuitChangedEvent {
  readonly type: 'circuit-changed';
  readonly name: string;
  readonly from: string;
  readonly to: string;
  /** Changes of state so far, including this one. */
  readonly generation: number;
  /** How long it stays open, in milliseconds, if it opened. */
  readonly openForMs: number | undefined;
  /** Why it opened: `'18 of 20 calls failed'`. */
  readonly detail: string | undefined;
}

/** A circuit breaker refused a call, or would have refused it without `shadow`. */
export interface CircuitRefusedEvent {
  readonly type: 'circuit-refused';
  readonly name: string;
  readonly state: string;
  readonly retryAfterMs: number | undefined;
  /** True if the call was let through nevertheless. */
  readonly shadow: boolean;
}

/** A circuit breaker stayed closed although it should have opened: so many of its group are open that the fault is probably elsewhere. */
export interface CircuitKeptClosedEvent {
  readonly type: 'circuit-kept-closed';
  readonly name: string;
  readonly detail: string;
}

/** A circuit breaker ignored an inconsistent snapshot. */
export interface CircuitNotRestoredEvent {
  readonly type: 'circuit-not-restored';
  readonly name: string;
  readonly snapshot: unknown;
}

/** An operation with an idempotency key has an outcome. */
export interface IdempotencyEvent {
  readonly type: 'idempotency';
  readonly name: string;
  readonly outcome: IdempotencyOutcome;
  readonly operation: string;
  /** Identifies the key without revealing it. */
  readonly keyHash: string;
  /** The attempt, from 1; undefined if nothing ran. */
  readonly attempt: number | undefined;
  /** How long it took to begin, complete or wait, depending on the outcome, in milliseconds. */
  readonly durationMs: number | undefined;
  /** For a replay: how long ago the result was stored. */
  readonly ageMs: number | undefined;
  /** For a replay or a takeover: the W3C `traceparent` of the attempt that ran or was lost, for a link to its trace. */
  readonly trace: string | undefined;
  readonly error: unknown;
}

/**
 * `'executed'` it ran and its result is stored; `'replayed'`, `'busy'`, `'mismatch'`, `'in-doubt'` and `'not-stored'` how it was answered without
 * running; `'waited'` a running one was waited for; `'takeover'` it runs after an attempt that was lost; `'lost'` this attempt was; `'released'` it
 * ended without a result; `'sealed'` it must not run again; `'unprotected'` it runs although the store is down; `'unrecorded'` the store did not
 * take its end in time; `'too-large'` it ran and its result could not be stored, with an `error` where the serializer did not take it; `'store-error'` the store failed.
 */
export type IdempotencyOutcome =
  | 'executed'
  | 'replayed'
  | 'busy'
  | 'waited'
  | 'mismatch'
  | 'takeover'
  | 'lost'
  | 'released'
  | 'sealed'
  | 'in-doubt'
  | 'not-stored'
  | 'unprotected'
  | 'unrecorded'
  | 'too-large'
  | 'store-error';

/** A lock or permit was acquired. */
export interface LockAcquiredEvent {
  readonly type: 'lock-acquired';
  readonly name: string;
  readonly key: string;
  readonly fence: number;
  readonly waitedMs: number;
}

/** A lock or permit could not be acquired. */
export interface LockUnavailableEvent {
  readonly type: 'lock-unavailable';
  readonly name: string;
  readonly key: string;
  /** As in `LockUnavailableError`; `'aborted'`: the caller gave up; `'store'`: the store failed, see `error`. */
  readonly reason: 'waited' | 'full' | 'reentrant' | 'lost' | 'aborted' | 'store';
  readonly waitedMs: number;
  readonly error: unknown;
}

/** A lock or permit may have another owner now, although its owner has not released it. */
export interface LockLostEvent {
  readonly type: 'lock-lost';
  readonly name: string;
  readonly key: string;
  readonly fence: number;
  readonly reason: 'expired' | 'taken';
}

/** The owner released a lock or permit. */
export interface LockReleasedEvent {
  readonly type: 'lock-released';
  readonly name: string;
  readonly key: string;
  readonly fence: number;
  readonly heldMs: number;
  /** The result of `release()`: it may have been lost before, or the store may not have confirmed. */
  readonly result: 'released' | 'lost' | 'unknown';
}

/** `forceRelease` removed a lock. */
export interface LockForceReleasedEvent {
  readonly type: 'lock-force-released';
  readonly name: string;
  readonly key: string;
}

/** A cache returned a value. */
export interface CacheGetEvent {
  readonly type: 'cache-get';
  readonly name: string;
  readonly key: string;
  /** `'l1'`: memory; `'l2'`: the store; `'load'`: loaded for this call; `'wait'`: loaded by another call or process; `'stale'`: past its `ttl`. */
  readonly source: 'l1' | 'l2' | 'load' | 'stale' | 'wait';
  readonly durationMs: number;
}

/** A cache's loader has ended. */
export interface CacheLoadEvent {
  readonly type: 'cache-load';
  readonly name: string;
  readonly key: string;
  readonly durationMs: number;
  /** Whether no caller waited for it. */
  readonly isBackground: boolean;
  /** How it ended, without the value. */
  readonly outcome: Outcome<undefined>;
}

/**
 * `'slow-load'`: the load took more than 0.3 of the time to live. `'fill-refused'`: the key was changed or loaded by another caller during the load.
 * `'not-stored'`: the store did not accept the value. `'undecodable'`: the stored bytes were not written by this serializer. `'gap'`: notices of
 * changes may have been lost. `'owed'`: an invalidation that the store did not accept is kept, to be written later. `'not-invalidated'`: the store
 * did not accept the invalidation of a response.
 */
export type CacheWarning =
  | 'slow-load'
  | 'fill-refused'
  | 'not-stored'
  | 'undecodable'
  | 'gap'
  | 'owed'
  | 'not-invalidated';

/** A cache warns its owner. */
export interface CacheWarningEvent {
  readonly type: 'cache-warning';
  readonly name: string;
  /** Empty if it concerns all keys. */
  readonly key: string;
  readonly reason: CacheWarning;
  readonly error: unknown;
}

/** A hook of yours threw; see `error`. Only on the diagnostics channel. */
export interface HookFailedEvent {
  readonly type: 'hook-failed';
  readonly name: string;
  readonly hook: string;
  readonly error: unknown;
}

/** Every event that holdfast publishes. */
export type HoldfastEvent =
  | RetryEvent
  | RetrySucceededEvent
  | RetryStoppedEvent
  | TimeoutEvent
  | DeadlineExceededEvent
  | DeadlineTooShortEvent
  | FallbackEvent
  | BulkheadFullEvent
  | LimitChangedEvent
  | RateLimitedEvent
  | ThrottledEvent
  | ShedEvent
  | HedgeEvent
  | HedgeWonEvent
  | HedgeSkippedEvent
  | HedgeFailedEvent
  | FlightSharedEvent
  | PacedEvent
  | ReconnectedEvent
  | CircuitChangedEvent
  | CircuitRefusedEvent
  | CircuitKeptClosedEvent
  | CircuitNotRestoredEvent
  | IdempotencyEvent
  | LockAcquiredEvent
  | LockUnavailableEvent
  | LockLostEvent
  | LockReleasedEvent
  | LockForceReleasedEvent
  | CacheGetEvent
  | CacheLoadEvent
  | CacheWarningEvent
  | HookFailedEvent;

interface EventChannel {
  readonly hasSubscribers: boolean;
  publish(event: HoldfastEvent): void;
}

const silence: EventChannel = { hasSubscribers: false, publish() {} };
const channel = /* @__PURE__ */ channelOfProcess();

/** The events of one policy. Check `heard` before building an event: if nobody listens, that check is the whole cost. */
export class Events {
  // TypeScript-private on purpose: V8 inlines the path of a cache hit only up to a size limit, and `#name` makes it too long.
  private readonly name: string;
  private readonly on: ((event: HoldfastEvent) => unknown) | undefined;
  private hookHasFailed = false;

  constructor(name: string, on: ((event: HoldfastEvent) => unknown) | undefined) {
    this.name = name;
    this.on = on;
  }

  get heard(): boolean {
    return this.on !== undefined || channel.hasSubscribers;
  }

  emit(event: HoldfastEvent): void {
    const { on } = this;
    if (on !== undefined) this.contain('on', () => on(event));
    if (channel.hasSubscribers) channel.publish(event);
  }

  /** Calls a user's hook. Neither an exception nor a rejected promise of the hook reaches the call. */
  contain(hook: string, task: () => unknown): void {
    try {
      const answer = task();
      if (answer instanceof Promise) answer.catch((error) => this.report(hook, error));
    } catch (error) {
      this.report(hook, error);
    }
  }

  /** Reports that a user's hook threw. */
  report(hook: string, error: unknown): void {
    if (channel.hasSubscribers) channel.publish({ type: 'hook-failed', name: this.name, hook, error });
    if (this.hookHasFailed) return;
    this.hookHasFailed = true;
    const text = `"${this.name}": its "${hook}" hook threw and was contained (said once): ${messageOf(error)}`;
    globalThis.process?.emitWarning?.(text, { code: 'HOLDFAST_HOOK_FAILED' });
  }
}

/** Subscribes to the events of the whole process and returns a function that unsubscribes. Exceptions of the listener are contained. */
export function hearEvents(name: string, listener: (event: HoldfastEvent) => void): () => void {
  const module = channelModule();
  const reports = new Events(name, undefined);
  // A diagnostics-channel subscriber that throws would end the process.
  const hear = (message: unknown) => {
    // Otherwise a listener that always throws would receive the report of its own exception, throw again, and so on.
    if ((message as Partial<HookFailedEvent>).hook === 'listener') return;
    reports.contain('listener', () => listener(message as HoldfastEvent));
  };
  module?.subscribe('holdfast', hear);
  return () => module?.unsubscribe('holdfast', hear);
}

function channelOfProcess(): EventChannel {
  return channelModule()?.channel('holdfast') ?? silence;
}

/** Node's own module, if there is one. Nothing is imported, so the core also runs on platforms without it. */
function channelModule() {
  return globalThis.process?.getBuiltinModule?.('node:diagnostics_channel');
}
