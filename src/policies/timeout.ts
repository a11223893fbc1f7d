/**
 * Timeout: stops waiting for one attempt after a time and aborts its signal.
 *
 * Promise: rejects on time even when the operation ignores its signal; a late error is consumed; the signal is not
 * aborted after a success; nothing is left behind: one timer serves all, and the signal is made only if it is read.
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
  withDefault,
} from '../core/options.js';
import type { Outcome } from '../core/outcome.js';
import { type Guard, type Permit, type Refusal, refuse } from '../core/policy.js';

/** Options of {@link timeout}. */
export interface TimeoutOptions extends CommonOptions, RefusalOptions {
  /** Time allowed: milliseconds or a literal such as `'2s'`, from 1 ms to 24.8 days. */
  readonly after: Duration;
  /**
   * Given the value of an operation that succeeded after nobody waited for it any more, to close a connection or undo a
   * booking. An exception in it is contained.
   */
  readonly onLateResult?: (value: unknown) => void;
}

/** Where the two ways to call these factories meet. */
export function afterOptions(given: unknown): unknown {
  return typeof given === 'object' && given !== null ? given : { after: given };
}

/**
 * Stops waiting for an operation after a time and aborts its signal.
 *
 * Use it innermost, so that each attempt of a retry gets the full time; use {@link deadline} to bound the sum. The time
 * begins when the operation may start: waiting in a queue around it does not count.
 * An operation that ignores `call.signal` keeps running: its outcome is unknown.
 *
 * @param after - Time allowed: milliseconds, or a literal such as `'2s'`, from 1 ms to 24.8 days; or
 * `{ after, onLateResult, stack, name, on, clock }`.
 * @throws {@link TimeoutError} `ERR_TIMEOUT` from the call, when the time has passed.
 * @throws {@link DeadlineTooShortError} `ERR_DEADLINE_TOO_SHORT` from the call, when its deadline has passed already.
 * @throws {@link OptionsError} `ERR_OPTIONS` at once, for an option that is wrong.
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
export function timeout(after: Duration | TimeoutOptions): TimeoutGuard {
  const options = checkOptions('timeout', afterOptions(after), {
    after: duration({}),
    onLateResult: optional(func<(value: unknown) => void>()),
    stack: withDefault(flag(), false),
    ...commonFields('timeout'),
  });
  const plan: TimeoutPlan = {
    name: options.name,
    afterMs: options.after,
    events: new Events(options.name, options.on),
    onLateResult: options.onLateResult,
    stack: options.stack,
  };
  return {
    name: options.name,
    traits: {
      kind: 'timeout',
      summary: `gives an attempt up after ${options.after} ms and aborts its signal`,
      clock: options.clock,
      afterMs: options.after,
    },
    admit: (call) => admit(plan, options.clock, call),
  };
}

/** A guard whose permits end after a time. Outside a pipeline `admit()` works without a call. */
export interface TimeoutGuard extends Guard {
  admit(call?: Call): Permit | Refusal;
}

interface TimeoutPlan {
  readonly stack: boolean;
  readonly name: string;
  readonly afterMs: number;
  readonly events: Events;
  readonly onLateResult: ((value: unknown) => void) | undefined;
}

function admit(plan: TimeoutPlan, clock: Clock | undefined, call: Call | undefined): Permit | Refusal {
  if (call === undefined) return permitOf(plan, (clock ?? systemClock).now());
  const nowMs = call.admissionMs();
  if (nowMs >= call.deadlineMs) return refuseTooLate(plan, call.deadlineMs - nowMs);
  return permitOf(plan, nowMs);
}

function permitOf(plan: TimeoutPlan, nowMs: number): Permit {
  return plan.onLateResult === undefined ? new TimeoutPermit(plan, nowMs) : new LateResultPermit(plan, nowMs);
}

/** The refusal that timeout and deadline share: no time is left to start. */
export function refuseTooLate(
  { name, events, stack }: { readonly name: string; readonly events: Events; readonly stack: boolean },
  remainingMs: number,
): Refusal {
  if (events.heard) events.emit({ type: 'deadline-too-short', name, remainingMs });
  return refuse(new DeadlineTooShortError({ policy: name, remainingMs, stack }));
}

class TimeoutPermit implements Permit {
  readonly plan: TimeoutPlan;
  readonly endsAt: number;

  constructor(plan: TimeoutPlan, nowMs: number) {
    this.plan = plan;
    this.endsAt = nowMs + plan.afterMs;
  }

  endReason(): unknown {
    const { name, afterMs, events } = this.plan;
    if (events.heard) events.emit({ type: 'timeout', name, afterMs });
    return new TimeoutError({ policy: name, afterMs });
  }

  settle(): void {}
  release(): void {}
}

class LateResultPermit extends TimeoutPermit {
  ended(late?: Outcome): void {
    if (late?.ok) this.plan.events.contain('onLateResult', () => this.plan.onLateResult?.(late.value));
  }
}
