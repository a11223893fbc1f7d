/**
 * Stored line: a lock that a store holds for all processes; those of this process wait in memory, and one of them asks the store.
 *
 * Promise: a grant that comes when nobody waits any more is given back; where it is not known whether a grant was made, what may be left of it
 * is looked for and taken away; while others of this process wait, a lock goes from hand to hand by one write, for a slice of time, and
 * then to whoever is first in the line of the store or, where it has none, asks it first. Of a fair lock each waiter stands in that line by itself, and a turn that
 * finds him gone is that of the next of his process, so that it is used however little patience they have.
 * After: Dice, Marathe and Shavit, "Lock cohorting" (2012), for the slice; DynamoDB's lock client for judging holders by their renewals.
 */
import { type Clock, callbackTimer, longestWaitMs, Timer } from '../../core/clock.js';
import type { Duration } from '../../core/duration.js';
import { StoreError } from '../../core/errors.js';
import { asMicrotask } from '../../core/event-loop.js';
import type { QueueTurn, StoreWatch } from '../../stores/store.js';
import { LeaseKeeper, safeLeaseMs } from '../lease.js';
import { LeaseBase, type LeaseRelease, type LossReason } from './lease-handle.js';
import { Line, type LockMode, type LockView, type Waiter } from './line.js';
import type { LockTable, Seat, Taken, Waiting } from './lock-table.js';
import type { LockSettings } from './settings.js';

/** How long a lock may go from hand to hand in one process before others get their chance. */
const sliceMs = 20;
/** Their chance: some trips to a store nearby. */
const chanceMs = 1.5;

/** From one look to the next where the store tells of changes: a waiter costs it at most half a request per second. */
const slowPollMs = 5_000;
/** Where it does not: from the first look to the slowest. */
const firstPollMs = 5;
const lastPollMs = 250;

/** What may be left of a grant is looked for at once, because others wait for it, after this, and ever later until it has expired. */
const firstCleanUpMs = 50;
/** An owner asks to be told of changes after this: most sections are shorter, and what happened before is looked for then. */
const watchAfterMs = 250;

/** How long a waiter that was handed a lock has to take it: as long as a store may claim it for. */
const claimMs = 1_000;

/** Looked for again and again at a time, of one key; what is beyond is looked for once, and ends by itself, with its lease. */
const mostCleanUps = 100;
/** Owners that are looked for by one request. */
const mostTogether = 1_000;
/** Requests at a time by which owners leave: some, because one may hang. */
const mostLeaves = 4;

/** Makes owners that are unlike each other, and unlike those of all other processes. */
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
  /** What this process holds of the key. */
  private readonly held = new Set<StoredLease>();
  /** Who asks the store: for whoever is first here, or, of a fair lock, for one waiter each. */
  private readonly campaigns = new Map<Waiter | undefined, Campaign>();
  private cleanUps = 0;
  /** Of those who have gone and are not asked for yet. */
  private readonly leaving: string[] = [];
  private leaves = 0;
  /** What `tryTake` and `forceRelease` have asked for. */
  private asks = 0;
  /** When the key was taken away by force from here. */
  private clearedMs = Number.NEGATIVE_INFINITY;

  constructor(key: string, settings: LockSettings, table: LockTable, owners: Owners) {
    super(key, settings);
    this.table = table;
    this.owners = owners;
  }

  /** Whether nothing would be forgotten with it. Who waits has a campaign. */
  private get isIdle(): boolean {
    return this.held.size + this.campaigns.size + this.cleanUps + this.leaves + this.asks === 0;
  }

  /**
   * Who waits keeps the process alive by its campaign: by the request that is on its way, or by the campaign's alarm. A timer of its own, set and taken back for each
   * lock that is free, would cost more than the lock.
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
    const before = [...this.held];
    this.asks++;
    try {
      const wasHeld = await this.table.clear();
      this.clearedMs = this.settings.clock.now();
      for (const lease of before) lease.takeAway();
      for (const lease of this.held) this.doubt(lease);
      return wasHeld;
    } finally {
      this.asks--;
      this.rest();
    }
  }

  /** @internal Whether this process holds it such that nobody else can come in. */
  get isMine(): boolean {
    for (const { seat } of this.held) if (seat.mode === 'exclusive') return true;
    return false;
  }

  /** @internal */
  get first(): Waiter | undefined {
    return this.waiters.first;
  }

  /** @internal The only one who waits here, if there is just one. */
  get single(): Waiter | undefined {
    return this.waiters.size === 1 ? this.waiters.first : undefined;
  }

  /** @internal The owner gives back what it holds. */
  async giveBack({ seat, sliceEndsMs }: StoredLease): Promise<LeaseRelease> {
    const next = this.waiters.first;
    const owner = this.owners.next();
    const { clock, isFair } = this.settings;
    const isPassedOn = !isFair && next?.mode === seat.mode && clock.now() < sliceEndsMs;
    try {
      if (!isPassedOn) return (await this.table.leave([seat.owner], seat.seen)) ? 'released' : 'lost';
      const heir = await this.table.passOn(seat, owner);
      if (heir === undefined) return 'lost';
      this.grant(heir, this.waiters.first, sliceEndsMs);
      return 'released';
    } catch {
      // It may be there still, or the heir's may be: both are looked for until they are gone.
      this.cleanUp([seat.owner, owner]);
      return 'unknown';
    }
  }

  /** @internal */
  drop(lease: StoredLease): void {
    if (!this.held.delete(lease)) return;
    if (!this.isMine) this.campaigns.get(undefined)?.poke();
    this.rest();
  }

  /** @internal Gives a seat to the one that it was got for, or back. */
  grant(seat: Seat, heir: Waiter | undefined, sliceEndsMs = this.sliceEnd()): void {
    const lease = this.hold(seat, sliceEndsMs);
    if (lease === undefined) return;
    if (heir?.mode === seat.mode && !heir.isOver) {
      this.answer(heir, lease);
      // Where it was the turn of another, who has left, his own is still to be given up.
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

  /** @internal As `cleanUp`, for those who have had every answer; together go those of one turn, and those who find enough others on their way. */
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
   * A turn that was on its way to one who has left is that of whoever waits here. Back in the line it would go to the one who has waited longest, who is the next to
   * leave where all have the same patience: then each turn comes too late. A turn is alone in its record, which the store writes anew for each: nothing of the others is there.
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
   * @internal Looks for these owners until they are found and taken out, or what they may have got has expired. Where no request of theirs is on its way any
   * more, the first answer will do.
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

  /** Undefined when its time was over before the answer came. */
  private hold(seat: Seat, sliceEndsMs: number): StoredLease | undefined {
    const { clock, ttlMs, marginMs } = this.settings;
    const { sent } = seat;
    const passedMs = Math.max(clock.now() - sent.monotonicMs, clock.wallNow() - sent.wallMs);
    if (passedMs >= safeLeaseMs(ttlMs, marginMs)) {
      this.cleanUp([seat.owner]);
      return undefined;
    }
    const lease = new StoredLease(this, this.settings, seat, sliceEndsMs);
    this.held.add(lease);
    this.doubt(lease);
    return lease;
  }

  /** What was asked for while the key was taken away by force may have come before that, or after. */
  private doubt(lease: StoredLease): void {
    if (lease.seat.sent.monotonicMs <= this.clearedMs) void lease.look();
  }

  private sliceEnd(): number {
    return this.settings.clock.now() + sliceMs;
  }

  private rest(): void {
    if (this.isIdle) this.settings.onIdle(this);
  }
}

/** Asks the store for as long as somebody of this process waits, or for as long as one does. */
class Campaign extends Timer implements Waiting {
  /** Until the first of those in the way is gone, when it was last seen. */
  leftMs: number | undefined = undefined;
  /** Why the store did not answer the last time. */
  failure: unknown = undefined;
  mayBeThere = false;
  endsAtMs = Number.POSITIVE_INFINITY;
  /** Whether something of this owner may be on its way still. */
  private isUncertain = false;
  private readonly line: StoredLine;
  private readonly settings: LockSettings;
  private readonly only: Waiter | undefined;
  private owner: string;
  private watch: StoreWatch | undefined = undefined;
  private isTold = false;
  /** Whether a change in the store is worth another try. */
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

  /** Something has happened that is worth a look. */
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

  /** Another has come to use its turn: a place that ends before it is asked for again is asked for now. */
  share(): void {
    if (this.endsAtMs < this.settings.clock.now() + 2 * slowPollMs) this.poke();
  }

  /** Who is to have it. */
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
        // Who has just had it lets others have it. Those in a line have it already.
        if (queue === undefined && !line.isMine) await this.pause(chanceMs * (1 + random()));
        continue;
      }
      const { mode } = heir;
      const isInLine = queue !== undefined && mode === 'exclusive';
      // A writer that has gone leaves the line before readers of this process are asked for.
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
        // A store that has not answered at all is told of at once. One that has may come back while there is time to wait.
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
        // Of one who has left meanwhile it is the turn of whoever waits here.
        line.grant(answer, this.heir ?? line.first);
        continue;
      }
      this.mayBeThere ||= answer.isClaimed;
      this.leftMs = answer.leftMs;
      if (!isInLine) this.listen();
      const isTold = isInLine ? answer.isTold : this.isTold;
      pollMs = isTold ? slowPollMs : Math.min(lastPollMs, pollMs * 1.5);
      // Not all at once when a lease has run out.
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

  /** @internal Hints of the line of the store. */
  onTurn(turn: QueueTurn): void {
    if (turn !== 'next') return this.poke();
    // If the one before does not take it in time, it is this one's turn.
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
        // What happened before it was ready was not told.
        this.poke();
      },
      () => {},
    );
  }

  private async pause(ms: number): Promise<void> {
    const { clock } = this.settings;
    // What happened during the try may have been its own doing: a store that tells too much must not keep the process busy.
    const atMs = clock.now() + (this.wasPoked ? 1 : ms);
    await new Promise<void>((resolve) => {
      this.wakeUp = resolve;
      clock.schedule(this, atMs);
    });
    this.wasPoked = false;
    this.listens = false;
  }
}

class StoredLease extends LeaseBase {
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
    // Where many share a key it changes too often to look each time.
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
    // A store that has forgotten a longer lease would not wait for its end.
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

  /** @internal Gives back what nobody has had: no event tells of it, as none told that it was acquired. */
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

  /** @internal Its record was changed, perhaps by itself: is it still there? One look at a time. */
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
      // The next renewal will tell.
    } finally {
      this.isLooking = false;
    }
  }

  private async giveBack(): Promise<LeaseRelease> {
    const { keeper, line } = this;
    this.endWatch();
    const wasHeld = keeper.isHeld();
    await keeper.stop();
    const { seat } = this;
    // It is over here, yet perhaps not in the store, where others wait for it.
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

/** Trying again does not help. */
function isHopeless(error: unknown): boolean {
  if (!(error instanceof StoreError)) return true;
  return (
    error.reason === 'invalid' || error.reason === 'schema' || (error.reason === 'closed' && error.applied === 'no')
  );
}
