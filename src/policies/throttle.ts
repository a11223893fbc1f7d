/**
 * Throttle: turns calls away at random, about as many as an overloaded service would refuse anyway.
 *
 * Promise: while the service accepts at least one of `factor` calls nothing is turned away. When it accepts none, a tenth is still sent, so that its
 * recovery is noticed. Running calls, and calls that teach nothing, are not counted.
 * After: Beyer et al., "Site Reliability Engineering" (2016), ch. 21, adaptive throttling. There a request counts when it begins. Here it counts when
 * it has ended; otherwise the first calls of a new process would look refused.
 */
import { showBriefly } from '../core/brief.js';
import type { Call } from '../core/call.js';
import { systemClock } from '../core/clock.js';
import type { Duration } from '../core/duration.js';
import { ShedError } from '../core/errors.js';
import { Events } from '../core/events.js';
import {
  type CheckedRefusalOptions,
  type CommonOptions,
  checkOptions,
  commonFields,
  duration,
  flag,
  func,
  integer,
  number,
  type RefusalOptions,
  withDefault,
} from '../core/options.js';
import { type Handles, handlesThrows, judge, type Outcome } from '../core/outcome.js';
import { type Guard, type Permit, type PolicyTraits, type Refusal, refuse } from '../core/policy.js';
import { bucketsPerWindow, TimeWindow } from '../structures/time-window.js';

/** Options of {@link throttle}. */
export interface ThrottleOptions extends CommonOptions, RefusalOptions {
  /**
   * Calls sent for each one that the service accepts. Default 2: half of the calls to a service that refuses may be in
   * vain. Lower is stricter. From 1 to 100.
   */
  readonly factor?: number | undefined;
  /** How far back it looks, in ten steps. Default two minutes; from 10 ms to 24.8 days. Must be longer than the longest call. */
  readonly window?: Duration | undefined;
  /** Calls that must have ended in the window before anything is turned away. Default 20; from 1. */
  readonly minimumCalls?: number | undefined;
  /** The largest share that is turned away, from 0 to 1. Default 0.9, so that a tenth shows when the service has recovered. */
  readonly maxShedRate?: number | undefined;
  /**
   * Which outcomes count as not accepted. Default: every error, including our own timeout. Select the errors that mean overload, such
   * as a status 429 or 503, if other errors are ordinary answers.
   */
  readonly handles?: Handles | undefined;
  /** The source of randomness, in [0, 1). Default `Math.random`. */
  readonly random?: (() => number) | undefined;
}

/** A guard that turns away calls that would be refused. Outside a pipeline `admit()` works without a call. */
export interface ThrottleGuard extends Guard {
  /** The share of calls that was turned away as of the last call, from 0 to 1. */
  readonly probability: number;
  admit(call?: Call): Permit | Refusal;
}

/**
 * Turns calls away at random, as many as the service would refuse anyway, so that refusing does not use up its capacity.
 *
 * It is smoother than a circuit breaker: it reduces the load instead of cutting it off, and needs no probes. Place it inside a
 * retry, next to the operation; calls that it turns away are not retried.
 *
 * @param options - `factor`, `window`, `minimumCalls`, `maxShedRate`, `handles`, `random`, `stack`, `name`, `on`, `clock`.
 * @throws {@link ShedError} `ERR_SHED` from the call that is turned away.
 * @throws {@link HandlesError} `ERR_HANDLES_FAILED` from the call, when `handles` throws.
 * @throws {@link OptionsError} `ERR_OPTIONS` from the factory, for an invalid option.
 * @example
 * ```ts
 * import { isRejected, pipeline, throttle } from 'holdfast';
 *
 * const search = pipeline(throttle({ minimumCalls: 5, random: () => 0.5 }));
 * const busy = () => Promise.reject(new Error('503'));
 * for (let call = 0; call < 5; call++) await search.attempt(busy);
 * const outcome = await search.attempt(busy);
 * console.log(!outcome.ok && isRejected(outcome.error)); // true
 * ```
 */
export function throttle(options?: ThrottleOptions): ThrottleGuard {
  showBriefly(Throttle.prototype, ({ name, probability }) => ({ name, probability }));
  return new Throttle(
    checkOptions('throttle', options, {
      factor: withDefault(number({ min: 1, max: 100 }), 2),
      window: withDefault(duration({ min: bucketsPerWindow }), 120_000),
      minimumCalls: withDefault(integer({ min: 1 }), 20),
      maxShedRate: withDefault(number({ min: 0, max: 1 }), 0.9),
      handles: withDefault(func<Handles>(), handlesThrows),
      random: withDefault(func<() => number>(), Math.random),
      stack: withDefault(flag(), false),
      ...commonFields('throttle'),
    }),
  );
}

/** @internal The share of calls to turn away from a service that accepted that many of these requests. */
export function shedProbability(requests: number, accepts: number, factor: number): number {
  return Math.max(0, (requests - factor * accepts) / (requests + 1));
}

interface CheckedOptions extends CheckedRefusalOptions {
  readonly factor: number;
  readonly window: number;
  readonly minimumCalls: number;
  readonly maxShedRate: number;
  readonly handles: Handles;
  readonly random: () => number;
}

class Throttle implements ThrottleGuard {
  readonly name: string;
  readonly traits: PolicyTraits;
  probability = 0;
  private readonly options: CheckedOptions;
  private readonly events: Events;
  private readonly bucketMs: number;
  private readonly window: TimeWindow;

  constructor(options: CheckedOptions) {
    const { name, factor, window, clock } = options;
    this.options = options;
    this.name = name;
    this.traits = {
      kind: 'throttle',
      summary: `turns calls away when fewer than one in ${factor} is accepted over ${window} ms`,
      clock,
    };
    this.events = new Events(name, options.on);
    this.bucketMs = window / bucketsPerWindow;
    this.window = new TimeWindow(Number.NEGATIVE_INFINITY);
  }

  admit(call?: Call): Permit | Refusal {
    const { factor, minimumCalls, maxShedRate, clock } = this.options;
    const { window } = this;
    const nowMs = call === undefined ? (clock ?? systemClock).now() : call.admissionMs();
    const epoch = Math.floor(nowMs / this.bucketMs);
    window.moveTo(epoch);
    const { calls } = window;
    const probability =
      calls < minimumCalls ? 0 : Math.min(maxShedRate, shedProbability(calls, calls - window.failures, factor));
    this.probability = probability;
    if (probability === 0 || this.draw() >= probability) return new ThrottlePermit(this, epoch);
    window.record(true, false, epoch);
    return this.turnAway(probability);
  }

  /** @internal Counts a call that has ended. One that began in an earlier bucket counts in the latest, which saves a clock read. */
  learn(outcome: Outcome, epoch: number): void {
    const { handles } = this.options;
    let isRefused = true;
    try {
      isRefused = handles === handlesThrows ? !outcome.ok : judge(handles, outcome, this.name);
    } finally {
      this.window.record(isRefused, false, epoch);
    }
  }

  /** Draws a random number. A broken source of randomness lets every call in. */
  private draw(): number {
    let drawn = 1;
    this.events.contain('random', () => {
      const answer = this.options.random();
      if (answer >= 0) drawn = answer;
    });
    return drawn;
  }

  private turnAway(probability: number): Refusal {
    const { name, events } = this;
    if (events.heard) events.emit({ type: 'throttled', name, probability });
    const percent = Math.round(probability * 100);
    const reason = `the service accepts too few calls, so ${percent} % are not sent`;
    return refuse(new ShedError({ policy: name, reason, stack: this.options.stack }));
  }
}

class ThrottlePermit implements Permit {
  private readonly throttle: Throttle;
  private readonly epoch: number;
  private isOver = false;

  constructor(throttle: Throttle, epoch: number) {
    this.throttle = throttle;
    this.epoch = epoch;
  }

  settle(outcome: Outcome): void {
    if (this.isOver) return;
    this.isOver = true;
    this.throttle.learn(outcome, this.epoch);
  }

  /** Aborted by its caller or refused further inside: the service neither accepted nor refused it, so it is not a request. */
  release(): void {
    this.isOver = true;
  }
}
