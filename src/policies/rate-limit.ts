/**
 * Rate limit: at most `limit` calls start per `period`, with bursts of at most `burst`.
 *
 * Promise: in any span of time no more calls start than `burst` plus what the rate allows for that span. A refusal says when there will be room.
 * Waiting calls start in order of arrival. A call that would wait too long is refused at once instead of after the wait, also if too little time would
 * be left for its operation: otherwise, in a lasting overload, every call would start just before its deadline, and none would succeed.
 * After: the generic cell rate algorithm, ITU-T I.371.
 */
import { showBriefly } from '../core/brief.js';
import type { Call } from '../core/call.js';
import { type Clock, systemClock } from '../core/clock.js';
import type { Duration } from '../core/duration.js';
import { HandlesError, isAbandoned, RateLimitedError } from '../core/errors.js';
import { Events } from '../core/events.js';
import {
  type CheckedRefusalOptions,
  type CommonOptions,
  checkOptions,
  commonFields,
  duration,
  type Field,
  flag,
  func,
  impossibleOption,
  integer,
  oneOf,
  optional,
  type RefusalOptions,
  show,
  withDefault,
} from '../core/options.js';
import type { Outcome } from '../core/outcome.js';
import { type Guard, type Permit, type PolicyTraits, type Refusal, refuse } from '../core/policy.js';
import { Gcra } from '../structures/gcra.js';
import { LinkedQueue } from '../structures/linked-queue.js';
import { UsualTime } from './usual-time.js';
import { Waiter, type WaitingRoom } from './waiter.js';

/** Options of {@link rateLimit}. */
export interface RateLimitOptions extends CommonOptions, RefusalOptions {
  /** Calls, or units of cost, per period. From 1. */
  readonly limit: number;
  /** The period of `limit`: milliseconds or a literal such as `'1s'`, from 1 ms to 24.8 days. Default one second. */
  readonly period?: Duration | undefined;
  /** Calls or units that may start at once after a pause. Default `limit`. From 1. */
  readonly burst?: number | undefined;
  /** What a call takes of the limit: a number from 0, or a function of the call. Default 1. */
  readonly cost?: number | ((call: Call) => number) | undefined;
  /** What happens to a call when there is no room: it is refused (default), or waits for its turn. */
  readonly whenFull?: 'reject' | 'wait' | undefined;
  /** Calls that may wait, from 0. Default 100. Only with `whenFull: 'wait'`. */
  readonly queue?: number | undefined;
  /** The longest wait, from 1 ms to 24.8 days. Only with `whenFull: 'wait'`. A call that would wait longer is refused at once. Default: what its deadline allows. */
  readonly maxWait?: Duration | undefined;
}

/** A guard that bounds how many calls may start in a period. Outside a pipeline `admit()` works without a call. */
export interface RateLimitGuard extends Guard {
  /** Units of cost that could start now. */
  readonly remaining: number;
  /** Milliseconds until the whole burst is available again. */
  readonly resetMs: number;
  /** Calls that wait for their turn. */
  readonly waiting: number;
  /** Returns a permit or a refusal; a promise if the call has to wait. A call that is aborted while it waits gets a refusal. */
  admit(call?: Call): Permit | Refusal | Promise<Permit | Refusal>;
}

/**
 * Bounds how many calls may start in a period, evenly and without the double load at the edge of fixed windows.
 *
 * Use it for a quota that a service sets, or to spread work. It bounds starts, not how many calls run at once: for that use {@link bulkhead}.
 * Its position decides what it counts: inside a retry every attempt, outside it every call.
 *
 * @param options - `limit`, `period`, `burst`, `cost`, `whenFull`, `queue`, `maxWait`, `stack`, `name`, `on`, `clock`.
 * @throws {@link RateLimitedError} `ERR_RATE_LIMITED` from the call, with `retryAfterMs`; without it when the call costs
 * more than `burst`, because then it can never start.
 * @throws {@link HandlesError} `ERR_HANDLES_FAILED` from the call, when `cost` throws or returns anything but a number from 0.
 * @throws {@link OptionsError} `ERR_OPTIONS` from the factory, for an invalid option.
 * @example
 * ```ts
 * import { pipeline, rateLimit } from 'holdfast';
 *
 * const quota = rateLimit({ limit: 10, period: '1m', burst: 2 });
 * const calls = pipeline(quota);
 * await calls.execute(async () => 'first');
 * await calls.execute(async () => 'second');
 * console.log((await calls.attempt(async () => 'third')).ok, quota.remaining); // false 0
 * ```
 */
export function rateLimit(options: RateLimitOptions): RateLimitGuard {
  const checked = checkOptions('rateLimit', options, {
    limit: integer({ min: 1 }),
    period: withDefault(duration({}), 1_000),
    burst: optional(integer({ min: 1 })),
    cost: withDefault(costField, 1),
    whenFull: withDefault<'reject' | 'wait'>(oneOf(['reject', 'wait']), 'reject'),
    queue: optional(integer({ min: 0 })),
    maxWait: optional(duration({})),
    stack: withDefault(flag(), false),
    ...commonFields('rateLimit'),
  });
  const burst = checked.burst ?? checked.limit;
  if (typeof checked.cost === 'number' && checked.cost > burst) {
    throw impossibleOption('rateLimit', 'cost', checked.cost, `at most "burst" (${burst})`);
  }
  for (const option of ['queue', 'maxWait'] as const) {
    if (checked.whenFull === 'wait' || checked[option] === undefined) continue;
    throw impossibleOption('rateLimit', option, checked[option], "left out unless whenFull is 'wait'");
  }
  showBriefly(RateLimit.prototype, ({ name, remaining, waiting }) => ({ name, remaining, waiting }));
  return new RateLimit({ ...checked, burst, queue: checked.queue ?? 100 });
}

type Cost = number | ((call: Call) => number);

const costField: Field<Cost> = {
  allowed: 'a number of at least 0 or a function of the call',
  parse: (value) => (isCost(value) ? value : func<(call: Call) => number>().parse(value)),
};

function isCost(value: unknown): value is number {
  return typeof value === 'number' && value >= 0 && value < Number.POSITIVE_INFINITY;
}

interface CheckedOptions extends CheckedRefusalOptions {
  readonly limit: number;
  readonly period: number;
  readonly burst: number;
  readonly cost: Cost;
  readonly whenFull: 'reject' | 'wait';
  readonly queue: number;
  readonly maxWait: number | undefined;
}

/** Without a queue there is nothing to give back and nothing to learn, so one permit serves all calls. */
const permit: Permit = { settle() {}, release() {} };

class RateLimit implements RateLimitGuard, WaitingRoom {
  readonly name: string;
  readonly traits: PolicyTraits;
  private readonly options: CheckedOptions;
  private readonly events: Events;
  private readonly gcra: Gcra;
  private readonly waiters = new LinkedQueue<Waiter>();
  /** Only where calls wait. */
  private readonly usualTime: UsualTime | undefined;
  /** The total cost of all waiters. */
  private waitingCost = 0;
  /** The clock of the last call, for the getters. */
  private clock: Clock;

  constructor(options: CheckedOptions) {
    const { name, limit, period, burst, whenFull, clock } = options;
    this.options = options;
    this.name = name;
    this.traits = {
      kind: 'rate-limit',
      summary: `lets ${limit} per ${period} ms start, ${burst} at once${whenFull === 'wait' ? ', and others wait' : ''}`,
      clock,
    };
    this.events = new Events(name, options.on);
    this.usualTime = whenFull === 'wait' ? new UsualTime() : undefined;
    this.gcra = new Gcra(period / limit, burst);
    this.clock = clock ?? systemClock;
  }

  get remaining(): number {
    return this.gcra.remaining(this.clock.now());
  }

  get resetMs(): number {
    return this.gcra.resetMs(this.clock.now());
  }

  get waiting(): number {
    return this.waiters.size;
  }

  admit(call?: Call): Permit | Refusal | Promise<Permit | Refusal> {
    const { cost: given, burst } = this.options;
    const cost = typeof given === 'number' ? given : this.ask(given, call);
    if (typeof cost !== 'number') return refuse(cost);
    if (cost > burst) return this.refuseForEver(cost);
    if (call !== undefined) this.clock = call.clock;
    const nowMs = call === undefined ? this.clock.now() : call.admissionMs();
    // Nobody overtakes: while others wait, a newcomer waits for the sum of their costs and its own.
    const waitMs = this.gcra.waitMs(this.waitingCost + cost, nowMs);
    if (waitMs === 0 && this.waiters.size === 0) {
      this.gcra.take(cost, nowMs);
      return this.permit(nowMs);
    }
    if (!this.mayWait(call, waitMs, nowMs)) return this.refuse(waitMs);
    return this.wait(call, cost, nowMs);
  }

  /** @internal Starts all waiters whose turn has come. The first remaining one gets a timer, because its turn is known. */
  due(): void {
    for (let { first } = this.waiters; first !== undefined; { first } = this.waiters) {
      const nowMs = first.clock.now();
      const waitMs = this.gcra.waitMs(first.cost, nowMs);
      if (waitMs > 0) return first.clock.schedule(first, nowMs + waitMs);
      this.gcra.take(first.cost, nowMs);
      this.remove(first);
      first.answer(this.permit(nowMs));
    }
  }

  private permit(nowMs: number): Permit {
    const { usualTime, clock } = this;
    return usualTime === undefined ? permit : new TimedPermit(usualTime, clock, nowMs);
  }

  /** @internal Removes a waiter and moves those behind it forward. */
  takeOut(waiter: Waiter): void {
    this.remove(waiter);
    waiter.clock.cancel(waiter);
    this.due();
  }

  private remove(waiter: Waiter): void {
    this.waiters.remove(waiter);
    this.waitingCost = this.waiters.size === 0 ? 0 : this.waitingCost - waiter.cost;
    waiter.call?.detach(waiter);
  }

  /** Whether a call may wait that long. The wait is known and can only become shorter, so a call that would wait in vain is refused at once. */
  private mayWait(call: Call | undefined, waitMs: number, nowMs: number): boolean {
    const { usualTime } = this;
    if (usualTime === undefined) return false;
    const { queue, maxWait = Number.POSITIVE_INFINITY } = this.options;
    const remainingMs = call === undefined ? Number.POSITIVE_INFINITY : call.deadlineMs - nowMs;
    return this.waiters.size < queue && waitMs <= maxWait && waitMs + usualTime.ms < remainingMs;
  }

  private wait(call: Call | undefined, cost: number, nowMs: number): Promise<Permit | Refusal> {
    const waiter = new Waiter(this, call, this.clock, nowMs, cost);
    this.waitingCost += cost;
    const place = waiter.join(this.waiters);
    if (this.waiters.first === waiter) this.due();
    return place;
  }

  /** The cost of a call, or an error if the user's function fails. Without a call, in a direct `admit()`, the cost is 1. */
  private ask(costOf: (call: Call) => number, call: Call | undefined): number | HandlesError {
    if (call === undefined) return 1;
    try {
      const cost: unknown = costOf(call);
      if (isCost(cost)) return cost;
      throw new TypeError(`a cost is a number of at least 0, got ${show(cost)}`);
    } catch (thrown) {
      return new HandlesError({ policy: this.name, option: 'cost', thrown });
    }
  }

  private refuseForEver(cost: number): Refusal {
    const { burst } = this.options;
    return this.refuse(undefined, new RangeError(`it costs ${cost} and "burst" is ${burst}, so it can never start`));
  }

  private refuse(retryAfterMs: number | undefined, cause?: RangeError): Refusal {
    const { limit, stack } = this.options;
    const { name, events } = this;
    if (events.heard) events.emit({ type: 'rate-limited', name, retryAfterMs });
    return refuse(new RateLimitedError({ policy: name, limit, retryAfterMs, cause, stack }));
  }
}

/** Learns how long operations take. */
class TimedPermit implements Permit {
  private readonly usualTime: UsualTime;
  private readonly clock: Clock;
  private readonly startedMs: number;

  constructor(usualTime: UsualTime, clock: Clock, startedMs: number) {
    this.usualTime = usualTime;
    this.clock = clock;
    this.startedMs = startedMs;
  }

  settle(outcome: Outcome): void {
    if (outcome.ok) this.usualTime.noteSuccess(this.clock.now() - this.startedMs);
    else if (isAbandoned(outcome.error)) this.usualTime.noteGivenUp(this.clock.now() - this.startedMs);
  }

  /** Aborted by its caller or refused further inside: that does not tell how long the operation takes. */
  release(): void {}
}
