/**
 * Timeout: stops waiting for one attempt after a time and aborts its signal.
 *
 * Promise: the call rejects on time even if the operation ignores its signal. A late error is consumed. The signal is not aborted after a success.
 * Nothing is left behind: one timer serves all calls, and the signal is created only if it is read.
 */
import type { Call } from '../core/call.js';
import { type Clock, systemClock } from '../core/clock.js';
import type { Duration } from '../core/duration.js';
import { DeadlineTooShortError, TimeoutError } from '../core/errors.js';
import { Events } from '../core/events.js';
import {
  type CommonOptions,
  checkOptions,
  commonFields,
  duration,
  flag,
  func,
  optional,
  type RefusalOptions,
  refuseSecond,
  withDefault,
} from '../core/options.js';
import type { Outcome } from '../core/outcome.js';
import { type Guard, type Permit, type PolicyTraits, type Refusal, refuse } from '../core/policy.js';

/** Options of {@link timeout}. */
export interface TimeoutOptions extends CommonOptions, RefusalOptions {
  /** Time allowed: milliseconds or a literal such as `'2s'`, from 1 ms to 24.8 days. */
  readonly after: Duration;
  /**
   * Receives the value of an operation that succeeded after the call had ended, to close a connection or undo a
   * booking. An exception in it is contained.
   */
  readonly onLateResult?: ((value: unknown) => void) | undefined;
}

/** A guard whose permits end after a time. Outside a pipeline `admit()` works without a call. */
export interface TimeoutGuard extends Guard {
  admit(call?: Call): Permit | Refusal;
}

/**
 * Bounds the time of one attempt: rejects on time and aborts the operation's signal.
 *
 * Use it innermost, so that each attempt of a retry gets the full time; use {@link deadline} to bound the sum. The clock
 * starts when the operation may start: time in an outer queue does not count.
 * An operation that ignores `call.signal` keeps running: its outcome is unknown.
 *
 * @param after - Time allowed: milliseconds, or a literal such as `'2s'`, from 1 ms to 24.8 days; or
 * `{ after, onLateResult, stack, name, on, clock }`.
 * @throws {@link TimeoutError} `ERR_TIMEOUT` from the call, when the time has passed.
 * @throws {@link DeadlineTooShortError} `ERR_DEADLINE_TOO_SHORT` from the call, when its deadline has already passed.
 * @throws {@link OptionsError} `ERR_OPTIONS` from the factory, for an invalid option.
 * @example
 * ```ts
 * import { isAbandoned, pipeline, timeout } from 'holdfast';
 *
 * const quick = pipeline(timeout('20ms'));
 * const hangs = () => new Promise(() => {});
 * const outcome = await quick.attempt(hangs);
 * console.log(!outcome.ok && isAbandoned(outcome.error)); // true
 * ```
 */
export function timeout(after: Duration | TimeoutOptions): TimeoutGuard;
export function timeout(...given: readonly unknown[]): TimeoutGuard {
  const options = checkOptions('timeout', afterOptions('timeout', given), {
    after: duration({}),
    onLateResult: optional(func<(value: unknown) => void>()),
    stack: withDefault(flag(), false),
    ...commonFields('timeout'),
  });
  const { name, after: afterMs, clock, stack, onLateResult } = options;
  const events = new Events(name, options.on);
  const traits = {
    kind: 'timeout',
    summary: `gives an attempt up after ${afterMs} ms and aborts its signal`,
    clock,
    afterMs,
  };
  const reason = () => {
    if (events.heard) events.emit({ type: 'timeout', name, afterMs });
    return new TimeoutError({ policy: name, afterMs });
  };
  return endingGuard({ name, traits, afterMs, clock, events, stack, reason, onLateResult });
}

/** Merges the two ways to call these factories: with a duration, or with options. */
export function afterOptions(policy: string, [given, second]: readonly unknown[]): unknown {
  refuseSecond(policy, second);
  return typeof given === 'object' && given !== null ? given : { after: given };
}

/** Describes a guard that ends a call after a time: a timeout or a deadline. */
interface Ending {
  readonly name: string;
  readonly traits: PolicyTraits;
  readonly afterMs: number;
  readonly clock: Clock | undefined;
  readonly events: Events;
  readonly stack: boolean;
  /** Publishes the event and returns the error. */
  readonly reason: () => unknown;
  readonly onLateResult?: ((value: unknown) => void) | undefined;
}

/** Builds the guard behind `timeout` and `deadline`. */
export function endingGuard(ending: Ending): TimeoutGuard {
  const { name, traits, afterMs, clock } = ending;
  const Permit = ending.onLateResult === undefined ? EndingPermit : LateResultPermit;
  const sharedPermit = new Permit(ending, { endsAfterMs: afterMs });
  const admit = (call?: Call) => {
    const nowMs = call === undefined ? (clock ?? systemClock).now() : call.admissionMs();
    return refusalIfLate(ending, call, nowMs) ?? new Permit(ending, { endsAt: nowMs + afterMs });
  };
  const admitFused = (call: Call) => refusalIfLate(ending, call, call.admissionMs()) ?? sharedPermit;
  return { name, traits, admit, fused: { of: admit, admit: admitFused } };
}

/** Refuses a call that has no time left to start. */
function refusalIfLate({ name, events, stack }: Ending, call: Call | undefined, nowMs: number): Refusal | undefined {
  if (call === undefined || nowMs < call.deadlineMs) return undefined;
  const remainingMs = call.deadlineMs - nowMs;
  if (events.heard) events.emit({ type: 'deadline-too-short', name, remainingMs });
  return refuse(new DeadlineTooShortError({ policy: name, remainingMs, stack }));
}

class EndingPermit implements Permit {
  declare readonly endsAt?: number;
  declare readonly endsAfterMs?: number;
  protected readonly ending: Ending;

  constructor(ending: Ending, end: { readonly endsAt: number } | { readonly endsAfterMs: number }) {
    this.ending = ending;
    Object.assign(this, end);
  }

  endReason(): unknown {
    return this.ending.reason();
  }

  settle(): void {}
  release(): void {}
}

class LateResultPermit extends EndingPermit {
  readonly takesLateValues = true;

  ended(late?: Outcome): void {
    const { events, onLateResult } = this.ending;
    if (late?.ok) events.contain('onLateResult', () => onLateResult!(late.value));
  }
}
