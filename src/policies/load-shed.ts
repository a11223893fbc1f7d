/**
 * Load shedding: turns calls away while this process is overloaded, the less important ones first.
 *
 * Promise: it refuses as soon as the event loop is late, even within the very turn that blocks it. It never refuses a critical call. It measures only
 * while calls arrive or the loop is late, so an idle process owns no timer. With a clock other than `systemClock` nothing is measured, because the
 * event loop runs in real time.
 * After: Netflix, "Keeping Netflix reliable using prioritized load shedding" (2020).
 */
import type { Call } from '../core/call.js';
import { systemClock } from '../core/clock.js';
import type { Duration } from '../core/duration.js';
import { HandlesError, ShedError } from '../core/errors.js';
import { Events } from '../core/events.js';
import {
  type CommonOptions,
  checkOptions,
  commonFields,
  duration,
  flag,
  func,
  number,
  optional,
  type RefusalOptions,
  show,
  withDefault,
} from '../core/options.js';
import { type Guard, type Permit, type Refusal, refuse } from '../core/policy.js';
import { type LoopGauge, loopGauge, threadLoop } from '../structures/loop-gauge.js';

/** How important a call is. `'critical'` is never shed. */
export type Priority = 'low' | 'normal' | 'high' | 'critical';

/** Options of {@link loadShed}. */
export interface LoadShedOptions extends CommonOptions, RefusalOptions {
  /** How late the event loop may be for calls of normal priority. Default 100 ms; from 1 ms to 24.8 days. */
  readonly maxEventLoopDelay?: Duration | undefined;
  /** Share of the time that the event loop may be busy, from 0.01 to 1. Default: not watched, because a busy loop may still be on time. */
  readonly maxUtilization?: number | undefined;
  /**
   * How important a call is. `'low'` is shed at half of `maxEventLoopDelay` or nine tenths of `maxUtilization`, `'high'`
   * only at twice `maxEventLoopDelay`, `'critical'` never. Default: every call is `'normal'`.
   */
  readonly priority?: ((call: Call) => Priority) | undefined;
}

/** A guard that turns calls away while this process is too busy. Outside a pipeline `admit()` works without a call. */
export interface LoadShedGuard extends Guard {
  admit(call?: Call): Permit | Refusal;
}

/**
 * Turns calls away while the event loop of this process is late or too busy, the less important ones first.
 *
 * Place it outermost around the handling of incoming requests or messages: a refusal costs next to nothing, and
 * admitted calls are answered in time. To protect a service that you call, use {@link throttle} or a circuit breaker.
 *
 * @param options - `maxEventLoopDelay`, `maxUtilization`, `priority`, `stack`, `name`, `on`, `clock`.
 * @throws {@link ShedError} `ERR_SHED` from the call that is turned away; its `reason` gives the measurement.
 * @throws {@link HandlesError} `ERR_HANDLES_FAILED` from the call, when `priority` throws or returns no priority.
 * @throws {@link OptionsError} `ERR_OPTIONS` from the factory, for an invalid option.
 * @example
 * ```ts
 * import { loadShed, pipeline } from 'holdfast';
 *
 * const handling = pipeline(
 *   loadShed({ maxEventLoopDelay: '100ms', priority: ({ key }) => (key === 'report' ? 'low' : 'normal') }),
 * );
 * console.log(await handling.execute(async () => 'served', { key: 'order' })); // served
 * ```
 */
export function loadShed(options?: LoadShedOptions): LoadShedGuard {
  return loadShedWith(
    loopGauge(threadLoop, () => systemClock.now()),
    options,
  );
}

/** What each priority tolerates, as a multiple of the limits; a missing number means any value. */
const patience: Readonly<Record<Priority, { readonly delay?: number; readonly utilization?: number }>> = {
  low: { delay: 0.5, utilization: 0.9 },
  normal: { delay: 1, utilization: 1 },
  high: { delay: 2 },
  critical: {},
};

/** There is nothing to give back and nothing to learn, so one permit serves all calls. */
const permit: Permit = { settle() {}, release() {} };

/** @internal The same with a given gauge. */
export function loadShedWith(gauge: LoopGauge, options: LoadShedOptions | undefined): LoadShedGuard {
  const checked = checkOptions('loadShed', options, {
    maxEventLoopDelay: withDefault(duration({}), 100),
    maxUtilization: optional(number({ min: 0.01, max: 1 })),
    priority: optional(func<(call: Call) => Priority>()),
    stack: withDefault(flag(), false),
    ...commonFields('loadShed'),
  });
  const { name, clock, maxEventLoopDelay, maxUtilization, priority: priorityOf, stack } = checked;
  const events = new Events(name, checked.on);
  const busy = maxUtilization === undefined ? '' : ` or busy for more than ${maxUtilization} of the time`;

  function ask(call: Call | undefined): Priority | HandlesError {
    if (priorityOf === undefined || call === undefined) return 'normal';
    try {
      const priority: unknown = priorityOf(call);
      if (typeof priority === 'string' && Object.hasOwn(patience, priority)) return priority as Priority;
      throw new TypeError(`a priority is 'low', 'normal', 'high' or 'critical', got ${show(priority)}`);
    } catch (thrown) {
      return new HandlesError({ policy: name, option: 'priority', thrown });
    }
  }

  function shed(priority: Priority, eventLoopDelayMs: number, utilization: number, isLate: boolean): Refusal {
    if (events.heard) events.emit({ type: 'shed', name, priority, eventLoopDelayMs, utilization });
    const reason = isLate
      ? `event loop ${Math.round(eventLoopDelayMs)} ms late`
      : `event loop busy for ${Math.round(utilization * 100)} % of the time`;
    return refuse(new ShedError({ policy: name, reason: `${reason}, priority ${priority}`, stack }));
  }

  return {
    name,
    traits: {
      kind: 'load-shed',
      summary: `turns calls away while the event loop is more than ${maxEventLoopDelay} ms late${busy}`,
      clock,
    },
    admit(call) {
      if ((call?.clock ?? clock ?? systemClock) !== systemClock) return permit;
      const priority = ask(call);
      if (typeof priority !== 'string') return refuse(priority);
      const nowMs = call === undefined ? systemClock.now() : call.admissionMs();
      const delayMs = gauge.delayMs(nowMs);
      const utilization = maxUtilization === undefined ? 0 : gauge.utilization(nowMs);
      const { delay = Number.POSITIVE_INFINITY, utilization: share = Number.POSITIVE_INFINITY } = patience[priority];
      const isLate = delayMs > maxEventLoopDelay * delay;
      const isBusy = maxUtilization !== undefined && utilization > maxUtilization * share;
      return isLate || isBusy ? shed(priority, delayMs, utilization, isLate) : permit;
    },
  };
}
