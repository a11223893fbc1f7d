/**
 * Bulkhead: at most `limit` operations run at once, at most `queue` calls wait for one to end.
 *
 * Promise: a free slot passes to a waiting call synchronously, so no newcomer takes it first and no queued call is turned away for lack of space.
 * Each permit frees its slot exactly once. A call that is aborted or has waited too long leaves the queue at once. An operation that runs on after
 * its timeout keeps its slot until it ends.
 * After: golang.org/x/sync/semaphore (cancellation), Nygard, "Release It!", 2nd ed., ch. 5; for the orders Maurer, "Fail at scale" (ACM Queue, 2015).
 */
import { showBriefly } from '../core/brief.js';
import { type Call, outermostOf, roomForCopies } from '../core/call.js';
import { type Clock, systemClock } from '../core/clock.js';
import type { Duration } from '../core/duration.js';
import { BulkheadFullError, isAbandoned } from '../core/errors.js';
import { asMicrotask } from '../core/event-loop.js';
import { Events } from '../core/events.js';
import {
  type CheckedRefusalOptions,
  type CommonOptions,
  checkOptions,
  commonFields,
  duration,
  flag,
  impossibleOption,
  integer,
  oneOf,
  optional,
  type RefusalOptions,
  withDefault,
} from '../core/options.js';
import type { Outcome } from '../core/outcome.js';
import { type Guard, type Permit, type PolicyTraits, type Refusal, refuse } from '../core/policy.js';
import { CoDel } from '../structures/codel.js';
import { LinkedQueue } from '../structures/linked-queue.js';
import { Waiter, type WaitingRoom } from './waiter.js';

/** Options of {@link bulkhead}. */
export interface BulkheadOptions extends CommonOptions, RefusalOptions {
  /** Operations that may run at once. From 1. */
  readonly limit: number;
  /** Calls that may wait for a slot, from 0. Default 0: a call that finds no slot is refused. */
  readonly queue?: number | undefined;
  /**
   * Which call gets a free slot. Default `'oldest-first'`. `'newest-first'` serves the newest call, and evicts the
   * oldest when the queue is full. `'codel'` serves the oldest as long as the queue empties now and then; once a queue has
   * persisted for 100 ms, it serves the newest and turns away calls that have waited too long or have too little time left.
   */
  readonly order?: 'oldest-first' | 'newest-first' | 'codel' | undefined;
  /** The longest wait in the queue; requires `queue`. From 1 ms to 24.8 days. Default: as long as the call's own deadline allows. */
  readonly maxWait?: Duration | undefined;
  /**
   * When a call that was given up frees its slot. Default `'settle'`: when its operation has really ended.
   * `'timeout'`: as soon as nothing waits for it any more, which lets more than `limit` operations run.
   */
  readonly releaseOn?: 'settle' | 'timeout' | undefined;
}

/** A guard that bounds how many operations run at once. Outside a pipeline `admit()` works without a call. */
export interface BulkheadGuard extends Guard {
  /** Slots that are taken. */
  readonly running: number;
  /** Calls that wait for a slot. */
  readonly waiting: number;
  /** Operations that still run although a timeout or their caller has given them up. */
  readonly abandoned: number;
  /** Returns a permit or a refusal; a promise if the call has to wait. A call that is aborted while it waits gets a refusal. */
  admit(call?: Call): Permit | Refusal | Promise<Permit | Refusal>;
}

/**
 * Bounds how many operations run at once, and how many calls may wait for a slot.
 *
 * Use one per dependency, so that a slow one cannot take all sockets and memory of the process. Place it inside a retry,
 * or calls hold their slots while they wait for the next attempt, and around a timeout, so that queueing does not use up its time.
 * Use `adaptiveLimit` if you do not know the number.
 *
 * @param options - `limit`, `queue`, `order`, `maxWait`, `releaseOn`, `stack`, `name`, `on`, `clock`.
 * @throws {@link BulkheadFullError} `ERR_BULKHEAD_FULL` from the call. Its `reason` says whether the queue was full
 * (`'full'`), the call waited too long (`'waited'`), or newer calls took its place (`'overtaken'`).
 * @throws {@link OptionsError} `ERR_OPTIONS` from the factory, for an invalid option.
 * @example
 * ```ts
 * import { bulkhead, pipeline } from 'holdfast';
 *
 * const database = pipeline(bulkhead({ limit: 1 }));
 * const both = await Promise.all([database.attempt(async () => 'first'), database.attempt(async () => 'second')]);
 * console.log(both[0].ok, both[1].ok); // true false
 * ```
 */
export function bulkhead(options: BulkheadOptions): BulkheadGuard {
  showBriefly(Bulkhead.prototype, ({ name, running, waiting, abandoned }) => ({
    name,
    running,
    waiting,
    abandoned,
  }));
  const checked = checkOptions('bulkhead', options, {
    limit: integer({ min: 1 }),
    queue: optional(integer({ min: 0 })),
    order: withDefault<Order>(oneOf(['oldest-first', 'newest-first', 'codel']), 'oldest-first'),
    maxWait: optional(duration({})),
    releaseOn: withDefault<'settle' | 'timeout'>(oneOf(['settle', 'timeout']), 'settle'),
    stack: withDefault(flag(), false),
    ...commonFields('bulkhead'),
  });
  const { queue, maxWait } = checked;
  if (maxWait !== undefined && queue === undefined) {
    throw impossibleOption('bulkhead', 'maxWait', maxWait, 'given together with "queue", or nobody waits');
  }
  return new Bulkhead({ ...checked, queue: queue ?? 0 });
}

type Order = NonNullable<BulkheadOptions['order']>;

interface CheckedOptions extends CheckedRefusalOptions {
  readonly limit: number;
  readonly queue: number;
  readonly order: Order;
  readonly maxWait: number | undefined;
  readonly releaseOn: 'settle' | 'timeout';
}

class Bulkhead implements BulkheadGuard, WaitingRoom {
  readonly name: string;
  readonly traits: PolicyTraits;
  running = 0;
  abandoned = 0;
  /** @internal */ readonly releasesOnTimeout: boolean;
  /** @internal */ readonly codel: CoDel | undefined;
  private readonly options: CheckedOptions;
  private readonly events: Events;
  private readonly waiters = new LinkedQueue<Waiter>();

  constructor(options: CheckedOptions) {
    const { name, limit, queue, order, clock } = options;
    this.options = options;
    this.name = name;
    this.traits = {
      kind: 'bulkhead',
      summary: `lets ${limit} operations run at once${queue === 0 ? '' : ` and ${queue} calls wait, ${order}`}`,
      clock,
    };
    this.releasesOnTimeout = options.releaseOn === 'timeout';
    this.codel = order === 'codel' ? new CoDel() : undefined;
    this.events = new Events(name, options.on);
  }

  get waiting(): number {
    return this.waiters.size;
  }

  admit(call?: Call): Permit | Refusal | Promise<Permit | Refusal> {
    const { limit, queue } = this.options;
    if (call?.isCopy && this.running >= roomForCopies * limit) return this.refusal('full');
    if (this.running < limit) {
      this.running++;
      this.codel?.noteNoWait();
      return new Slot(this, call, this.codel === undefined ? 0 : this.admissionMs(call));
    }
    const { first, size } = this.waiters;
    if (size < queue) return this.wait(call);
    if (first === undefined || !this.servesNewest()) return this.refusal('full');
    this.takeOut(first);
    const place = this.wait(call);
    first.answer(this.refusal('overtaken'));
    return place;
  }

  /** @internal A slot is free: a waiter gets it at once, before a newcomer can. */
  giveBack(): void {
    for (let first = this.waiters.first; first !== undefined; first = this.waiters.first) {
      const nowMs = first.clock.now();
      const waiter = this.nextWaiter(first, nowMs);
      if (waiter !== undefined) {
        this.takeOut(waiter);
        waiter.answer(new Slot(this, waiter.call, nowMs));
        return;
      }
    }
    this.running--;
  }

  /** @internal Removes a waiter from the queue. The code that does so also answers the waiter. */
  takeOut(waiter: Waiter): void {
    this.waiters.remove(waiter);
    if (this.options.maxWait !== undefined) waiter.clock.cancel(waiter);
    waiter.call?.detach(waiter);
  }

  /** @internal The waiter has waited too long. It leaves first, because a hook that hears of the refusal may abort the call or admit another. */
  due(waiter: Waiter): void {
    this.takeOut(waiter);
    waiter.answer(this.refusal('waited'));
  }

  /** @internal */
  clockOf(call: Call | undefined): Clock {
    return call?.clock ?? this.options.clock ?? systemClock;
  }

  private admissionMs(call: Call | undefined): number {
    return call === undefined ? this.clockOf(call).now() : call.admissionMs();
  }

  /** The waiter that gets the slot; undefined if that one was turned away. */
  private nextWaiter(first: Waiter, nowMs: number): Waiter | undefined {
    if (this.codel?.isTooLate(nowMs - first.sinceMs, nowMs)) {
      this.due(first);
      return undefined;
    }
    const waiter = this.servesNewest() ? (this.waiters.last as Waiter) : first;
    // The timer of its deadline may be late; the call would then be started for nobody.
    const neededMs = this.codel?.medianServiceMs ?? 0;
    if (waiter.call === undefined || waiter.call.deadlineMs - nowMs > neededMs) return waiter;
    this.due(waiter);
    return undefined;
  }

  private servesNewest(): boolean {
    return this.codel === undefined ? this.options.order === 'newest-first' : this.codel.isOverloaded;
  }

  private wait(call: Call | undefined): Promise<Permit | Refusal> {
    const { maxWait } = this.options;
    const waiter = new Waiter(this, call, this.clockOf(call), this.admissionMs(call));
    if (maxWait !== undefined) waiter.clock.schedule(waiter, waiter.sinceMs + maxWait);
    return waiter.join(this.waiters);
  }

  private refusal(reason: BulkheadFullError['reason']): Refusal {
    const { limit, queue, stack } = this.options;
    const { name, events, running, waiting } = this;
    if (events.heard) events.emit({ type: 'bulkhead-full', name, reason, running, waiting });
    return refuse(new BulkheadFullError({ policy: name, limit, queue, reason, stack }));
  }
}

/** The right to run one operation. */
class Slot implements Permit {
  private readonly bulkhead: Bulkhead;
  private readonly call: Call | undefined;
  private readonly startedMs: number;
  /** `settled`: nobody waits for the operation, and it is not yet known whether it has ended. `abandoned`: it is still running. */
  private state: 'running' | 'settled' | 'abandoned' | 'over' = 'running';

  constructor(bulkhead: Bulkhead, call: Call | undefined, startedMs: number) {
    this.bulkhead = bulkhead;
    this.call = call;
    this.startedMs = startedMs;
  }

  settle(outcome: Outcome): void {
    if (this.state !== 'running') return;
    const { bulkhead, call } = this;
    bulkhead.codel?.noteService(bulkhead.clockOf(call).now() - this.startedMs);
    this.close(!outcome.ok && isAbandoned(outcome.error));
  }

  release(): void {
    if (this.state === 'running') this.close(true);
  }

  ended(): void {
    const { bulkhead, state } = this;
    if (state === 'over') return;
    this.state = 'over';
    if (state === 'abandoned') bulkhead.abandoned--;
    if (state === 'running' || !bulkhead.releasesOnTimeout) bulkhead.giveBack();
  }

  private close(mayRunOn: boolean): void {
    const { bulkhead, call } = this;
    if (call === undefined || (!mayRunOn && call.isIdle)) return this.ended();
    this.state = 'settled';
    if (bulkhead.releasesOnTimeout) bulkhead.giveBack();
    this.expectEnd(call);
  }

  /**
   * Frees the slot if nobody announces the end. A layer calls `ended` at once, or counts the operation as abandoned before this microtask runs. A
   * direct caller, or a custom guard that does not pass `ended` on, does neither, and the slot must still be freed.
   */
  private expectEnd(call: Call): void {
    asMicrotask(() => this.awaitEnd(call));
  }

  private awaitEnd(call: Call): void {
    if (this.state !== 'settled') return;
    this.state = 'abandoned';
    this.bulkhead.abandoned++;
    outermostOf(call).onIdle(() => this.ended());
  }
}
