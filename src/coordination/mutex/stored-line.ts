/**
 * Stored line: a lock that a store keeps for all processes. The waiters of this process wait in memory, and one campaign asks the store for them.
 *
 * Promise: a grant that arrives when nobody waits any more is given back. When it is unknown whether a grant was made, its possible remains
 * are looked for and removed. While others of this process wait, a lock passes from one to the next by one write each, for a slice of time; after
 * that the first in the store's queue gets it or, if the store has no queue, the first process to ask. For a fair lock each waiter has its own place in
 * that queue. A turn that arrives for a waiter that has left goes to the next waiter of its process, so that it is used however short their waits are.
 * After: Dice, Marathe and Shavit, "Lock cohorting" (2012), for the slice; DynamoDB's lock client for judging holders by their renewals.
 */
import { type Clock, callbackTimer, longestWaitMs, Timer } from '../../core/clock.js';
import type { Duration } from '../../core/duration.js';
import { StoreError } from '../../core/errors.js';
import { asMicrotask } from '../../core/event-loop.js';
import type { QueueTurn, StoreWatch } from '../../stores/store.js';
import { LinkedQueue, type QueueNode } from '../../structures/linked-queue.js';
import { LeaseKeeper, passedMs, safeLeaseMs } from '../lease.js';
import { LeaseBase, type LeaseRelease, type LossReason } from './lease-handle.js';
import { Line, type LockMode, type LockView, type Waiter } from './line.js';
import type { LockTable, Seat, Taken, Waiting } from './lock-table.js';
import type { LockSettings } from './settings.js';

/** How long a lock may pass from waiter to waiter inside one process before other processes get a chance. */
const sliceMs = 20;
/** The length of that chance: a few round trips to a nearby store. */
const chanceMs = 1.5;

/** The poll interval if the store reports changes: a waiter costs it at most half a request per second. */
const slowPollMs = 5_000;
/** The poll interval if it does not: of the first poll, and the longest. */
const firstPollMs = 5;
const lastPollMs = 250;

/**
 * The possible remains of a grant are looked for at once, because others wait for the lock; again after this, and then ever less often until they have
 * expired.
 */
const firstCleanUpMs = 50;
/** An owner starts to watch its record after this time. Most leases are held for less, and the first thing a watch does is to look for earlier changes. */
const watchAfterMs = 250;

/** How long a waiter that was handed the lock has to take it: the longest time for which a store reserves it. */
const claimMs = 1_000;

/** How many clean-ups of one key repeat at a time. Any beyond that look once; the remains then expire with their lease. */
const mostCleanUps = 100;
/** How many owners one request looks for. */
const mostTogether = 1_000;
/** How many requests remove owners at a time: several, because one may hang. */
const mostLeaves = 4;

/** Generates owner names that are unique within this process and among all processes. */
export class Owners {
  private readonly process = globalThis.crypto.randomUUID();
  private last = 0;

  next(): string {
    return `${this.process}:${++this.last}`;
  }
}

export class StoredLine extends Line {
  /** @internal */ readonly table: LockTable;
  private readonly owners: Owners;
  /** The leases of this key that this process holds. */
  private readonly held = new LinkedQueue<StoredLease>();
  /** Each campaign asks the store: for the first waiter here or, for a fair lock, for one waiter of its own. */
  private readonly campaigns = new Map<Waiter | undefined, Campaign>();
  private cleanUps = 0;
  /** Owners that have left and are still to be removed from the store. */
  private readonly leaving: string[] = [];
  private leaves = 0;
  /** Calls of `tryTake` and `forceRelease` that are still running. */
  private asks = 0;
  /** When this process last released the key by force. */
  private clearedMs = Number.NEGATIVE_INFINITY;

  constructor(key: string, settings: LockSettings, table: LockTable, owners: Owners) {
    super(key, settings);
    this.table = table;
    this.owners = owners;
  }

  /** Whether this line can be dropped without losing anything. Every waiter has a campaign. */
  private get isIdle(): boolean {
    return this.held.size + this.campaigns.size + this.cleanUps + this.leaves + this.asks === 0;
  }

  /**
   * A waiter keeps the process alive through its campaign: through the request in flight, or the timer of the campaign. A timer of its own, scheduled and
   * cancelled for each lock that is free, would cost more than the lock.
   */
  protected get waitClock(): Clock {
    return this.settings.background;
  }

  takeNow(): undefined {}

  async tryTake(mode: LockMode): Promise<StoredLease | undefined> {
    if (this.waiters.size > 0 || this.isMine) return undefined;
    const owner = this.owners.next();
    this.asks++;
    try {
      const seat = await this.table.join(owner, mode);
      return 'owner' in seat ? this.hold(seat, this.sliceEnd()) : undefined;
    } catch (error) {
      if (isUncertain(error)) this.cleanUp([owner]);
      throw error;
    } finally {
      this.asks--;
      this.rest();
    }
  }

  async view(): Promise<LockView> {
    try {
      const [{ record }, queued] = await Promise.all([this.table.look(), this.table.queued()]);
      const holders = record.holders.map(({ owner, fence, leftMs, mode }) => {
        return { owner, fence: fence!, remainingMs: leftMs, mode };
      });
      let mine = 0;
      for (const { mayBeThere } of this.campaigns.values()) if (mayBeThere) mine++;
      return { holders, queueLength: this.waiters.size + Math.max(0, queued - mine) };
    } finally {
      this.rest();
    }
  }

  async forceRelease(): Promise<boolean> {
    const before = this.leases;
    this.asks++;
    try {
      const wasHeld = await this.table.clear();
      this.clearedMs = this.settings.clock.now();
      for (const lease of before) lease.takeAway();
      for (const lease of this.leases) this.doubt(lease);
      return wasHeld;
    } finally {
      this.asks--;
      this.rest();
    }
  }

  /** @internal Whether this process holds the lock exclusively, so that no other process can get it. */
  get isMine(): boolean {
    for (let lease = this.held.first; lease !== undefined; lease = lease.nextInQueue) {
      if (lease.seat.mode === 'exclusive') return true;
    }
    return false;
  }

  /** @internal */
  get first(): Waiter | undefined {
    return this.waiters.first;
  }

  /** @internal The only waiter, if there is just one. */
  get single(): Waiter | undefined {
    return this.waiters.size === 1 ? this.waiters.first : undefined;
  }

  /** @internal Releases the lease, or passes its seat to the next waiter. */
  async giveBack({ seat, sliceEndsMs }: StoredLease): Promise<LeaseRelease> {
    const next = this.waiters.first;
    const owner = this.owners.next();
    const { clock, isFair } = this.settings;
    const isPassedOn = !isFair && next?.mode === seat.mode && clock.now() < sliceEndsMs;
    try {
      if (!isPassedOn) return (await this.table.giveUp(seat)) ? 'released' : 'lost';
      const heir = await this.table.passOn(seat, owner);
      if (heir === undefined) return 'lost';
      this.grant(heir, this.waiters.first, sliceEndsMs);
      return 'released';
    } catch {
      // The old owner may still be in the store, or the heir may: look for both until they are gone.
      this.cleanUp([seat.owner, owner]);
      return 'unknown';
    }
  }

  /** @internal */
  drop(lease: StoredLease): void {
    if (lease.isDropped) return;
    lease.isDropped = true;
    this.held.remove(lease);
    if (!this.isMine) this.campaigns.get(undefined)?.poke();
    this.rest();
  }

  /** @internal Gives a seat to the waiter it was acquired for, or releases it. */
  grant(seat: Seat, heir: Waiter | undefined, sliceEndsMs = this.sliceEnd()): void {
    const lease = this.hold(seat, sliceEndsMs);
    if (lease === undefined) return;
    if (heir?.mode === seat.mode && !heir.isOver) {
      this.answer(heir, lease);
      // If the seat was the turn of another waiter that has left, the campaign of this one must give up its own place.
      this.campaigns.get(heir)?.poke();
    } else lease.decline();
  }

  /** @internal */
  fail(waiter: Waiter, error: unknown): void {
    this.takeOut(waiter);
    waiter.reject(error);
  }

  /** @internal */
  nextOwner(): string {
    return this.owners.next();
  }

  /** @internal */
  endCampaign(only: Waiter | undefined): void {
    this.campaigns.delete(only);
    this.rest();
  }

  /**
   * @internal Like `cleanUp`, for owners whose requests have all been answered. Owners that leave in the same turn, or while enough requests are in flight,
   * share a request.
   */
  leave(owner: string): void {
    this.leaving.push(owner);
    if (this.leaving.length > 1 || this.leaves >= mostLeaves) return;
    this.leaves++;
    asMicrotask(() => void this.leaveTogether());
  }

  private async leaveTogether(): Promise<void> {
    while (this.leaving.length > 0) {
      const owners = this.leaving.splice(0, mostTogether);
      await this.giveUpPlaces(owners).catch(() => this.cleanUp(owners, 'answered'));
    }
    this.leaves--;
    this.rest();
  }

  /**
   * A turn in flight to an owner that has left goes to the next waiter here. Returned to the store's queue it would go to the longest waiting one, which is
   * the next to leave if all wait equally long: then every turn would come too late. The holder is alone in the record of a turn, which the store writes
   * afresh each time, so nothing else is lost.
   */
  private async giveUpPlaces(owners: readonly string[]): Promise<void> {
    const seen = await this.table.leaveLine(owners);
    const turn = seen.record.holders.find(({ owner }) => owners.includes(owner));
    if (turn === undefined || turn.mode !== this.waiters.first?.mode) {
      await this.table.leave(owners, seen);
      return;
    }
    const owner = this.owners.next();
    try {
      const seat = await this.table.passOn({ ...turn, seen }, owner);
      if (seat !== undefined) this.grant(seat, this.waiters.first);
    } catch {
      this.cleanUp([turn.owner, owner]);
    }
  }

  /**
   * @internal Looks for these owners until they are found and removed, or until any grant they may have got has expired. If none of their requests is in
   * flight any more, the first answer is enough.
   */
  cleanUp(owners: readonly string[], until: 'found' | 'answered' = 'found'): void {
    this.cleanUps++;
    const { clock, background, ttlMs, random } = this.settings;
    const endsAtMs = clock.now() + (this.cleanUps > mostCleanUps ? 0 : ttlMs);
    let delayMs = firstCleanUpMs;
    const look = async () => {
      const isDone = await this.table.leave(owners).then(
        (isFound) => isFound || until === 'answered',
        (error) => error instanceof StoreError && isHopeless(error),
      );
      const atMs = clock.now() + delayMs * (0.5 + random());
      delayMs *= 2;
      if (!isDone && atMs < endsAtMs) return background.schedule(timer, atMs);
      this.cleanUps--;
      this.rest();
    };
    const timer = callbackTimer(() => void look());
    void look();
  }

  protected onArrival(waiter: Waiter): void {
    const only = this.settings.isFair ? waiter : undefined;
    const campaign = this.campaigns.get(only);
    if (campaign === undefined) this.campaigns.set(only, new Campaign(this, this.settings, only));
    else campaign.share();
  }

  protected onDeparture(waiter: Waiter): void {
    if (this.settings.isFair) this.campaigns.get(waiter)?.poke();
    else if (this.waiters.size === 0) this.campaigns.get(undefined)?.poke();
  }

  protected override retryAfterMs(): number | undefined {
    return this.anyCampaign?.leftMs;
  }

  protected override get failure(): unknown {
    return this.anyCampaign?.failure;
  }

  private get anyCampaign(): Campaign | undefined {
    return this.campaigns.values().next().value;
  }

  /** Undefined if the lease expired before the answer arrived. */
  private hold(seat: Seat, sliceEndsMs: number): StoredLease | undefined {
    const { clock, ttlMs, marginMs } = this.settings;
    if (passedMs(clock, seat.sent) >= safeLeaseMs(ttlMs, marginMs)) {
      this.cleanUp([seat.owner]);
      return undefined;
    }
    const lease = new StoredLease(this, this.settings, seat, sliceEndsMs);
    this.held.add(lease);
    this.doubt(lease);
    return lease;
  }

  /** If the key was released by force while the request was in flight, the grant may date from before or after that: look. */
  private doubt(lease: StoredLease): void {
    if (lease.seat.sent.monotonicMs <= this.clearedMs) void lease.look();
  }

  private get leases(): readonly StoredLease[] {
    const leases: StoredLease[] = [];
    for (let lease = this.held.first; lease !== undefined; lease = lease.nextInQueue) leases.push(lease);
    return leases;
  }

  private sliceEnd(): number {
    return this.settings.clock.now() + sliceMs;
  }

  private rest(): void {
    if (this.isIdle) this.settings.onIdle(this);
  }
}

/** Asks the store for as long as any waiter of this process waits or, for a fair lock, for as long as one waiter does. */
class Campaign extends Timer implements Waiting {
  /** How long until the first of the current holders expires, as of the last answer. */
  leftMs: number | undefined = undefined;
  /** The error of the last request, if it failed. */
  failure: unknown = undefined;
  mayBeThere = false;
  endsAtMs = Number.POSITIVE_INFINITY;
  /** Whether a request of this owner may still be in flight. */
  private isUncertain = false;
  private readonly line: StoredLine;
  private readonly settings: LockSettings;
  private readonly only: Waiter | undefined;
  private owner: string;
  private watch: StoreWatch | undefined = undefined;
  private isTold = false;
  /** Whether a change in the store is a reason to try again. */
  private listens = false;
  private wasPoked = false;
  private wakeUp: (() => void) | undefined = undefined;
  constructor(line: StoredLine, settings: LockSettings, only: Waiter | undefined) {
    super();
    this.line = line;
    this.settings = settings;
    this.only = only;
    this.owner = line.nextOwner();
    void this.run();
  }

  override expire(): void {
    this.poke();
  }

  /** Called when something has happened that is worth another request. */
  poke(): void {
    const { wakeUp } = this;
    if (wakeUp === undefined) {
      this.wasPoked = true;
      return;
    }
    this.wakeUp = undefined;
    this.settings.clock.cancel(this);
    wakeUp();
  }

  /** Another waiter has come that can use the turn. If the place in the store's queue ends before the next request, ask again now. */
  share(): void {
    if (this.endsAtMs < this.settings.clock.now() + 2 * slowPollMs) this.poke();
  }

  /** The waiter that a grant is for. */
  private get heir(): Waiter | undefined {
    return this.only === undefined ? this.line.first : this.only.isOver ? undefined : this.only;
  }

  private async run(): Promise<void> {
    const { line } = this;
    const { random, isFair } = this.settings;
    const { queue } = line.table;
    let hasAnswered = false;
    let pollMs = firstPollMs;
    for (let { heir } = this; heir !== undefined; heir = this.heir) {
      if (!isFair && line.isMine) {
        await this.pause(longestWaitMs);
        // A process that has just held the lock lets others have a chance. In a store with a queue they have their place already.
        if (queue === undefined && !line.isMine) await this.pause(chanceMs * (1 + random()));
        continue;
      }
      const { mode } = heir;
      const isInLine = queue !== undefined && mode === 'exclusive';
      // A place that was taken for a writer is given up before this process asks for readers.
      if (!isInLine && queue !== undefined && this.mayBeThere) {
        this.leave();
        this.begin();
      }
      this.listens = true;
      this.wasPoked = false;
      const single = isInLine ? (this.only ?? line.single) : undefined;
      this.endsAtMs = single?.endsAtMs ?? Number.POSITIVE_INFINITY;
      let answer: Seat | Taken;
      try {
        answer = await line.table.join(this.owner, mode, this);
      } catch (error) {
        this.isUncertain ||= isUncertain(error);
        // A store that has never answered fails the waiters at once. One that has answered before may come back while they still have time.
        if (!hasAnswered || isHopeless(error)) {
          for (let next = this.heir; next !== undefined; next = this.heir) line.fail(next, error);
          break;
        }
        this.failure = error;
        pollMs = Math.min(lastPollMs, pollMs * 2);
        await this.pause(pollMs * (0.5 + random()));
        continue;
      }
      hasAnswered = true;
      this.failure = undefined;
      if ('owner' in answer) {
        this.begin();
        pollMs = firstPollMs;
        // If the waiter has left in the meantime, the turn goes to the next one here.
        line.grant(answer, this.heir ?? line.first);
        continue;
      }
      this.mayBeThere ||= answer.isClaimed;
      this.leftMs = answer.leftMs;
      if (!isInLine) this.listen();
      const isTold = isInLine ? answer.isTold : this.isTold;
      pollMs = isTold ? slowPollMs : Math.min(lastPollMs, pollMs * 1.5);
      // Random, so that not all processes ask at once when a lease has expired.
      await this.pause(Math.min(pollMs * (0.75 + random() / 2), answer.leftMs + 1 + 4 * random()));
    }
    this.watch?.close();
    this.leave();
    line.endCampaign(this.only);
  }

  private begin(): void {
    this.owner = this.line.nextOwner();
    this.mayBeThere = false;
    this.endsAtMs = Number.POSITIVE_INFINITY;
    this.isUncertain = false;
  }

  private leave(): void {
    if (this.isUncertain) this.line.cleanUp([this.owner]);
    else if (this.mayBeThere) this.line.leave(this.owner);
  }

  /** @internal Receives the hints of the store's queue. */
  onTurn(turn: QueueTurn): void {
    if (turn !== 'next') return this.poke();
    // If the waiter in front does not take the lock in time, it is the turn of this one.
    const { clock, ttlMs, random } = this.settings;
    if (this.wakeUp !== undefined) clock.schedule(this, clock.now() + Math.min(claimMs, ttlMs) + 1 + 4 * random());
  }

  private listen(): void {
    if (this.watch !== undefined) return;
    this.watch = this.line.table.watch(() => {
      if (this.listens) this.poke();
    });
    this.watch?.ready.then(
      () => {
        this.isTold = true;
        // Changes before the watch was ready were not reported.
        this.poke();
      },
      // The next poll begins another: the server may only have been slow.
      () => {
        this.watch = undefined;
      },
    );
  }

  private async pause(ms: number): Promise<void> {
    const { clock } = this.settings;
    // A poke during the request may stem from the request itself. The pause of 1 ms keeps a store that reports too much from keeping the process busy.
    const atMs = clock.now() + (this.wasPoked ? 1 : ms);
    await new Promise<void>((resolve) => {
      this.wakeUp = resolve;
      clock.schedule(this, atMs);
    });
    this.wasPoked = false;
    this.listens = false;
  }
}

class StoredLease extends LeaseBase implements QueueNode<StoredLease> {
  previousInQueue: StoredLease | undefined = undefined;
  nextInQueue: StoredLease | undefined = undefined;
  isDropped = false;
  seat: Seat;
  readonly sliceEndsMs: number;
  protected readonly policy: string;
  private readonly line: StoredLine;
  private readonly settings: LockSettings;
  private readonly keeper: LeaseKeeper;
  private releasing: Promise<LeaseRelease> | undefined = undefined;
  private isDeclined = false;
  private failure: unknown = undefined;
  private watch: StoreWatch | undefined = undefined;
  private isLooking = false;
  private looksAgain = false;
  private watchTimer: Timer | undefined = undefined;

  constructor(line: StoredLine, settings: LockSettings, seat: Seat, sliceEndsMs: number) {
    super();
    this.line = line;
    this.settings = settings;
    this.seat = seat;
    this.sliceEndsMs = sliceEndsMs;
    this.policy = settings.name;
    const { clock, background, random, ttlMs: leaseMs, marginMs, renewEveryMs } = settings;
    const renew = (ms: number, signal: AbortSignal) => this.renew(ms, signal);
    const onLost = (reason: LossReason) => this.lose(reason);
    // A shared key changes too often to look at each change.
    if (seat.mode === 'exclusive' && line.table.isWatchable) {
      this.watchTimer = callbackTimer(() => this.beginWatch());
      background.schedule(this.watchTimer, clock.now() + watchAfterMs);
    }
    this.keeper = new LeaseKeeper({ clock, random, leaseMs, marginMs, renewEveryMs, renew, onLost }, seat.sent);
  }

  get key(): string {
    return this.line.key;
  }

  get owner(): string {
    return this.seat.owner;
  }

  get fence(): number {
    return this.seat.fence;
  }

  get state(): 'held' | 'suspect' | 'lost' | 'released' {
    const { state } = this.keeper;
    return state === 'ended' ? 'released' : state;
  }

  remaining(): number {
    return this.keeper.remainingMs();
  }

  async extend(given?: Duration): Promise<number> {
    const { marginMs, quietMs } = this.settings;
    const min = Math.ceil((marginMs + 3) / 0.99);
    // A store that has lost a longer lease would not wait for its end.
    const leaseMs = this.checkExtension(given, quietMs === undefined ? { min } : { min, max: quietMs });
    const isDone = await this.keeper.extend(leaseMs);
    if (!this.held()) throw this.lossError();
    if (isDone === true) return this.remaining();
    throw this.failure ?? noAnswer();
  }

  release(): Promise<LeaseRelease> {
    this.releasing ??= this.giveBack();
    return this.releasing;
  }

  /** @internal Gives back a lease that no caller has had: it emits no event, just as its acquisition did not. */
  decline(): void {
    this.isDeclined = true;
    void this.release();
  }

  /** @internal */
  takeAway(): void {
    this.keeper.revoke();
  }

  private beginWatch(): void {
    this.watch = this.line.table.watch(() => void this.look());
    this.watch?.ready.then(
      () => this.look(),
      () => {},
    );
  }

  private endWatch(): void {
    if (this.watchTimer !== undefined) this.settings.background.cancel(this.watchTimer);
    this.watch?.close();
  }

  /** @internal The record has changed, perhaps by this lease itself: check that the lease is still in it. One look at a time. */
  async look(): Promise<void> {
    this.looksAgain = this.isLooking;
    if (this.isLooking) return;
    this.isLooking = true;
    try {
      do {
        this.looksAgain = false;
        const { record } = await this.line.table.look();
        if (!record.holders.some(({ owner }) => owner === this.owner)) this.keeper.revoke();
      } while (this.looksAgain && this.held());
    } catch {
      // The next renewal will show whether it is still held.
    } finally {
      this.isLooking = false;
    }
  }

  private async giveBack(): Promise<LeaseRelease> {
    const { keeper, line } = this;
    this.endWatch();
    const wasHeld = keeper.isHeld();
    const renewal = keeper.stop();
    if (renewal !== undefined) await renewal;
    const { seat } = this;
    // The lease is over here, but may still be in the store, where it blocks others.
    if (!wasHeld && !this.isTaken) line.cleanUp([seat.owner]);
    const result = wasHeld ? await line.giveBack(this) : 'lost';
    line.drop(this);
    if (wasHeld && !this.isDeclined) this.settings.noteReleased(this, result);
    return result;
  }

  private async renew(leaseMs: number, signal: AbortSignal): Promise<boolean> {
    this.failure = undefined;
    try {
      const seat = await this.line.table.renew(this.seat, leaseMs, signal);
      if (seat === undefined) return false;
      this.seat = seat;
      return true;
    } catch (error) {
      if (!signal.aborted) this.failure = error;
      throw error;
    }
  }

  private lose(reason: LossReason): void {
    this.endWatch();
    this.noteLoss(reason);
    this.settings.noteLost(this, reason);
    this.line.drop(this);
  }
}

function noAnswer(): StoreError {
  const detail = 'the store did not answer in time';
  return new StoreError({ store: 'lock', operation: 'extend', reason: 'timeout', applied: 'unknown', detail });
}

function isUncertain(error: unknown): boolean {
  return !(error instanceof StoreError) || error.applied === 'unknown';
}

/** Whether a retry cannot help. */
function isHopeless(error: unknown): boolean {
  if (!(error instanceof StoreError)) return true;
  return (
    error.reason === 'invalid' || error.reason === 'schema' || (error.reason === 'closed' && error.applied === 'no')
  );
}
