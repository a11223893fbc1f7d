/**
 * Adaptive limit: a bulkhead that finds its own size from how long operations take.
 *
 * Promise: only a success, or an operation given up by a timeout, teaches the limit anything, so an outage in which everything fails at once teaches
 * nothing. Nor does an operation that ended while this process itself was blocked. An operation that runs on after its timeout keeps its slot until
 * it ends, but when only such operations run, one more may start. Each permit frees its slot once. No timer is left when nothing runs.
 * After: Netflix concurrency-limits for the form; the queue serves the newest first, as in Maurer, "Fail at scale" (2015).
 */
import { showBriefly } from '../../core/brief.js';
import { type Call, outermostOf, roomForCopies } from '../../core/call.js';
import { type Clock, systemClock } from '../../core/clock.js';
import { BulkheadFullError, isAbandoned } from '../../core/errors.js';
import { asMicrotask } from '../../core/event-loop.js';
import { Events } from '../../core/events.js';
import {
  type CheckedRefusalOptions,
  type CommonOptions,
  checkOptions,
  commonFields,
  flag,
  func,
  impossibleOption,
  integer,
  oneOf,
  optional,
  type RefusalOptions,
  withDefault,
} from '../../core/options.js';
import type { Outcome } from '../../core/outcome.js';
import { type Guard, type Permit, type PolicyTraits, type Refusal, refuse } from '../../core/policy.js';
import { LinkedQueue } from '../../structures/linked-queue.js';
import { Waiter, type WaitingRoom } from '../waiter.js';
import { Aimd } from './aimd.js';
import type { LimitAlgorithm, LimitRange, RoundTrip } from './algorithm.js';
import { Gradient2 } from './gradient2.js';
import { Knee } from './knee.js';
import { StallWatch } from './stall-watch.js';
import { Vegas } from './vegas.js';

/** Options of {@link adaptiveLimit}; all are optional. */
export interface AdaptiveLimitOptions extends CommonOptions, RefusalOptions {
  /**
   * The rule that finds the limit. Default `'knee'`, our own, which needs no tuning. The others are published ones, for
   * comparison: `'aimd'`, `'vegas'`, `'gradient2'`.
   */
  readonly algorithm?: 'knee' | 'aimd' | 'vegas' | 'gradient2' | undefined;
  /**
   * The limit until something has been learned about the service. Default 100 for `'knee'`, 20 for the others;
   * within `min` and `max`.
   */
  readonly initial?: number | undefined;
  /** The limit never falls below this. Default 1; from 1 to 1,000,000. */
  readonly min?: number | undefined;
  /** The limit never rises above this. Default 1,000; from `min` to 1,000,000. */
  readonly max?: number | undefined;
  /** Calls that may wait for a slot, the newest served first. Default: as many as may run, at least 4. 0 for none. */
  readonly queue?: number | undefined;
  /** The source of randomness; only `'vegas'` uses it. Default `Math.random`. */
  readonly random?: (() => number) | undefined;
}

/** A guard that bounds how many operations run at once, by a learned limit. Outside a pipeline `admit()` works without a call. */
export interface AdaptiveLimitGuard extends Guard {
  /** How many operations may run at once now. */
  readonly limit: number;
  /** Slots that are taken. */
  readonly running: number;
  /** Calls that wait for a slot. */
  readonly waiting: number;
  /** Returns a permit or a refusal; a promise if the call has to wait. A call that is aborted while it waits gets a refusal. */
  admit(call?: Call): Permit | Refusal | Promise<Permit | Refusal>;
}

/**
 * Bounds how many operations run at once, with a limit that it learns from the calls themselves.
 *
 * Use it when you do not know the right size of a `bulkhead`, or when it changes: one per dependency, inside a retry and
 * around a timeout, without which calls that hang are never noticed. It learns from round trips, so use one limit
 * per kind of operation. The limit applies to this process alone.
 *
 * @param options - `algorithm`, `initial`, `min`, `max`, `queue`, `random`, `stack`, `name`, `on`, `clock`.
 * @throws {@link BulkheadFullError} `ERR_BULKHEAD_FULL` from the call. Its `reason` says whether the queue was full
 * (`'full'`), the call waited too long (`'waited'`), or newer calls took its place (`'overtaken'`).
 * @throws {@link OptionsError} `ERR_OPTIONS` from the factory, for an invalid option.
 * @example
 * ```ts
 * import { adaptiveLimit, pipeline, timeout } from 'holdfast';
 *
 * const limit = adaptiveLimit({ name: 'search' });
 * const search = pipeline(limit, timeout('1s'));
 * const found = await search.execute(async () => ['kelp']);
 * console.log(found, limit.running); // [ 'kelp' ] 0
 * ```
 */
export function adaptiveLimit(options?: AdaptiveLimitOptions): AdaptiveLimitGuard {
  const most = 1_000_000;
  const checked = checkOptions('adaptiveLimit', options, {
    algorithm: withDefault<Rule>(oneOf(['knee', 'aimd', 'vegas', 'gradient2']), 'knee'),
    initial: optional(integer({ min: 1, max: most })),
    min: withDefault(integer({ min: 1, max: most }), 1),
    max: withDefault(integer({ min: 1, max: most }), 1_000),
    queue: optional(integer({ min: 0 })),
    random: withDefault(func<() => number>(), Math.random),
    stack: withDefault(flag(), false),
    ...commonFields('adaptiveLimit'),
  });
  const { algorithm, min, max, random } = checked;
  if (max < min) throw impossibleOption('adaptiveLimit', 'max', max, `at least "min" (${min})`);
  const usual = algorithm === 'knee' ? 100 : 20;
  const { initial = Math.min(max, Math.max(min, usual)) } = checked;
  if (initial < min || initial > max) {
    throw impossibleOption('adaptiveLimit', 'initial', initial, `from "min" (${min}) to "max" (${max})`);
  }
  const range = { initial, min, max };
  showBriefly(AdaptiveLimit.prototype, ({ name, limit, running, waiting }) => ({
    name,
    limit,
    running,
    waiting,
  }));
  return new AdaptiveLimit(checked, ruleOf(algorithm, range, random));
}

type Rule = NonNullable<AdaptiveLimitOptions['algorithm']>;

function ruleOf(rule: Rule, range: LimitRange, random: () => number): LimitAlgorithm {
  if (rule === 'aimd') return new Aimd(range);
  if (rule === 'vegas') return new Vegas(range, random);
  return rule === 'gradient2' ? new Gradient2(range) : new Knee(range);
}

interface CheckedOptions extends CheckedRefusalOptions {
  readonly algorithm: Rule;
  readonly queue: number | undefined;
}

/** The smallest default queue: with a limit of two, a queue of two would turn ordinary bursts away. */
const leastQueue = 4;
/** A round trip says nothing about the service if the process was blocked for more than this share of it. */
const stalledShare = 0.1;
/** A change of the limit is published when it is at least this share of the limit. */
const toldShare = 0.1;

class AdaptiveLimit implements AdaptiveLimitGuard, WaitingRoom {
  readonly name: string;
  readonly traits: PolicyTraits;
  running = 0;
  /** The running operations that somebody waits for. */
  private awaited = 0;
  private readonly options: CheckedOptions;
  private readonly rule: LimitAlgorithm;
  private readonly events: Events;
  private readonly waiters = new LinkedQueue<Waiter>();
  private readonly stalls = new StallWatch();
  private readonly trip: RoundTrip = {
    roundTripMs: 0,
    order: 0,
    runningAtStart: 0,
    running: 0,
    wasLost: false,
    endedMs: 0,
  };
  private toldLimit: number;

  constructor(options: CheckedOptions, rule: LimitAlgorithm) {
    this.options = options;
    this.name = options.name;
    this.rule = rule;
    this.traits = {
      kind: 'adaptive-limit',
      summary: `lets as many operations run at once as the service can serve, by ${options.algorithm}`,
      clock: options.clock,
    };
    this.events = new Events(options.name, options.on);
    this.toldLimit = this.limit;
  }

  get limit(): number {
    return Math.floor(this.rule.limit);
  }

  get waiting(): number {
    return this.waiters.size;
  }

  /** If all slots are held by abandoned operations, which may never end, one more may run, or the limit could never learn better. */
  private get hasRoom(): boolean {
    return this.running < this.limit || this.awaited === 0;
  }

  private get queue(): number {
    return this.options.queue ?? Math.max(leastQueue, this.limit);
  }

  admit(call?: Call): Permit | Refusal | Promise<Permit | Refusal> {
    const nowMs = call === undefined ? this.clockOf(call).now() : call.admissionMs();
    if (call?.isCopy && this.running >= roomForCopies * this.limit) return this.refusal('full');
    if (this.hasRoom) return this.start(call, nowMs);
    const { queue } = this;
    if (queue === 0) return this.refusal('full');
    const overtaken = this.waiters.size < queue ? undefined : this.waiters.first;
    if (overtaken !== undefined) this.takeOut(overtaken);
    const place = this.wait(call, nowMs);
    overtaken?.answer(this.refusal('overtaken'));
    return place;
  }

  /** @internal */
  clockOf(call: Call | undefined): Clock {
    return call?.clock ?? this.options.clock ?? systemClock;
  }

  /** @internal An operation has ended for its caller. `wasLost`: whether a timeout ended it; undefined if there is nothing to learn. */
  leave(slot: Slot, wasLost: boolean | undefined): void {
    this.learn(slot, wasLost);
    // An abandoned operation, which may run for ever, must keep neither a timer nor the process alive.
    if (--this.awaited === 0) this.stalls.stop();
  }

  private learn(slot: Slot, wasLost: boolean | undefined): void {
    const { rule, trip, running } = this;
    const nowMs = wasLost === undefined ? 0 : this.clockOf(slot.call).now();
    const roundTripMs = nowMs - slot.startedMs;
    if (wasLost === undefined || this.stalls.lostMs(nowMs) - slot.stalledMs > roundTripMs * stalledShare) {
      rule.ignored(slot.order);
      return;
    }
    trip.roundTripMs = roundTripMs;
    trip.order = slot.order;
    trip.runningAtStart = slot.runningAtStart;
    trip.running = running;
    trip.wasLost = wasLost;
    trip.endedMs = nowMs;
    rule.ended(trip);
    if (this.events.heard) this.tellLimit();
  }

  /** @internal A slot is free: the newest waiter gets it at once, before a newcomer can. */
  giveBack(): void {
    this.running--;
    this.serveWaiters();
  }

  /** @internal Removes a waiter from the queue. The code that does so also answers the waiter. */
  takeOut(waiter: Waiter): void {
    this.waiters.remove(waiter);
    waiter.clock.cancel(waiter);
    waiter.call?.detach(waiter);
  }

  /** @internal The waiter has waited too long. It leaves first, because a hook that hears of the refusal may abort the call or admit another. */
  due(waiter: Waiter): void {
    this.takeOut(waiter);
    waiter.answer(this.refusal('waited'));
  }

  private start(call: Call | undefined, nowMs: number): Slot {
    this.running++;
    this.awaited++;
    const stalledMs = this.stalls.startedMs(this.clockOf(call), nowMs);
    return new Slot(this, call, nowMs, stalledMs, this.running, this.rule.started(this.running));
  }

  /** @internal Starts waiters for as long as there is room. */
  serveWaiters(): void {
    while (this.waiters.size > 0 && this.hasRoom) {
      const waiter = this.waiters.last as Waiter;
      const nowMs = waiter.clock.now();
      // The timer of its deadline may be late, or fire before the operation can end.
      if (waiter.call !== undefined && waiter.call.deadlineMs - nowMs <= this.rule.usefulMs) {
        this.due(waiter);
      } else {
        this.takeOut(waiter);
        waiter.answer(this.start(waiter.call, nowMs));
      }
    }
  }

  private wait(call: Call | undefined, nowMs: number): Promise<Permit | Refusal> {
    const waiter = new Waiter(this, call, this.clockOf(call), nowMs);
    waiter.clock.schedule(waiter, nowMs + this.rule.waitMs);
    return waiter.join(this.waiters);
  }

  private tellLimit(): void {
    const { name, limit, toldLimit: previousLimit } = this;
    if (Math.abs(limit - previousLimit) < previousLimit * toldShare) return;
    this.toldLimit = limit;
    this.events.emit({ type: 'limit-changed', name, limit, previousLimit });
  }

  private refusal(reason: BulkheadFullError['reason']): Refusal {
    const { name, events, running, waiting, limit, queue } = this;
    if (events.heard) events.emit({ type: 'bulkhead-full', name, reason, running, waiting });
    return refuse(new BulkheadFullError({ policy: name, limit, queue, reason, stack: this.options.stack }));
  }
}

/** The right to run one operation. */
class Slot implements Permit {
  readonly call: Call | undefined;
  readonly startedMs: number;
  /** The time lost to stalls before the operation started. */
  readonly stalledMs: number;
  readonly runningAtStart: number;
  readonly order: number;
  private readonly guard: AdaptiveLimit;
  /** `settled`: nobody waits for the operation, and it is not yet known whether it has ended. */
  private state: 'running' | 'settled' | 'over' = 'running';

  constructor(
    guard: AdaptiveLimit,
    call: Call | undefined,
    startedMs: number,
    stalledMs: number,
    runningAtStart: number,
    order: number,
  ) {
    this.guard = guard;
    this.call = call;
    this.startedMs = startedMs;
    this.stalledMs = stalledMs;
    this.runningAtStart = runningAtStart;
    this.order = order;
  }

  settle(outcome: Outcome): void {
    if (this.state !== 'running') return;
    const wasLost = !outcome.ok && isAbandoned(outcome.error);
    // An operation that failed by itself may have failed at once, whatever the load.
    this.guard.leave(this, outcome.ok || wasLost ? wasLost : undefined);
    this.close(wasLost);
  }

  release(): void {
    if (this.state !== 'running') return;
    this.guard.leave(this, undefined);
    this.close(true);
  }

  ended(): void {
    if (this.state === 'over') return;
    this.state = 'over';
    this.guard.giveBack();
  }

  private close(mayRunOn: boolean): void {
    const { call } = this;
    if (call === undefined || !mayRunOn) return this.ended();
    this.state = 'settled';
    this.guard.serveWaiters();
    // A layer calls `ended` at once, or counts the operation as abandoned before this microtask runs. A direct caller, or a custom guard that does
    // not pass `ended` on, does neither, and the slot must still be freed.
    asMicrotask(() => outermostOf(call).onIdle(() => this.ended()));
  }
}
