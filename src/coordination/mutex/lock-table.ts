/**
 * Lock table: the operations of a lock on a store; each changes one record by compare-and-set.
 *
 * Promise: a change whose reply was lost can be repeated, because the owner recognizes itself in the record. An owner never gives up a seat that is
 * not its own, and a seat that was given up never comes back: each write names the version that it is based on.
 */
import { StoreError } from '../../core/errors.js';
import { listOf } from '../../core/list-of.js';
import type {
  Entry,
  GuardRefused,
  QueueTurn,
  Refused,
  StoreQueue,
  StoreRemoveOptions,
  Written,
} from '../../stores/store.js';
import { type Instant, instantOf } from '../lease.js';
import type { LockMode } from './line.js';
import {
  encodeRecord,
  type Holder,
  type LockRecord,
  nothing,
  readRecord,
  type Seen,
  ttlOf,
  withFences,
} from './lock-record.js';
import type { LockSettings } from './settings.js';

/** The outcome of a decision: the new record, or an answer that needs no write. */
type Change<Answer> = { readonly record: LockRecord } | { readonly answer: Answer };

/** A change requested by a caller in this process. */
interface Request {
  /** The record as the caller saw it last. */
  readonly from: Seen;
  readonly decide: (record: LockRecord) => Change<unknown>;
  /** Whether it adds an owner. The owner's fence is the version of the write that adds it, so there is one such request per write. */
  readonly bringsOwner?: boolean;
  /** The answer while the store grants nothing after a restart. */
  readonly onQuiet?: (quietForMs: number) => unknown;
  readonly signal?: AbortSignal;
  /** Called with the changed record, or with the answer. */
  readonly resolve: (outcome: unknown) => void;
  readonly reject: (error: unknown) => void;
}

/** What was written, and the instant just before it was sent. */
interface Changed {
  readonly seen: Seen;
  readonly sent: Instant;
}

/** An owner's place in a record. */
export interface Seat extends Changed {
  readonly owner: string;
  readonly mode: LockMode;
  readonly fence: number;
}

/** The answer when there is no room. */
export interface Taken {
  /** Milliseconds until the first of the current holders expires, unless it renews. */
  readonly leftMs: number;
  /** Whether the store has a claim, or a place in its queue, for this owner. */
  readonly isClaimed: boolean;
  /** Whether the store will tell this owner, by a hint, that it is its turn. */
  readonly isTold?: boolean;
}

/** How an owner waits. */
export interface Waiting {
  /** Whether the store has a place or a claim of this owner. Set at once, because a later request of the same call may fail. */
  mayBeThere: boolean;
  /** When its last waiter stops waiting, as far as is known. */
  readonly endsAtMs: number;
  /** Called with each hint of a store that has a queue. */
  onTurn(turn: QueueTurn): void;
}

/** How long the store keeps a place in its queue: three times the poll interval. */
const longestPlaceMs = 15_000;
/** The trips that using a turn takes: the store counts from half a trip later; hearing of the turn and taking it need one and a half. */
const tripsToUse = 2;

/** Concurrent writes of this process. With more, each would make the others fail and retry. More than one, because one may hang. */
const mostWrites = 4;

/** How many writes in a row may be refused because another came first. Beyond that something is wrong. */
const mostTries = 200;

export class LockTable {
  private readonly settings: LockSettings;
  private readonly store: NonNullable<LockSettings['store']>;
  /**
   * For each holder of a shared record, since when it has been seen with the same fence and the same number of renewals. The fence counts because an owner
   * may come in anew.
   */
  private seenSince: Map<string, Pick<Holder, 'fence' | 'renewals'> & { readonly atMs: number }> | undefined =
    undefined;
  private readonly key: string;
  private readonly storeKey: string;
  /** Requests that wait for one of the writes in flight to end. */
  private requests: Request[] = [];
  private writes = 0;
  /** The last record written here. The next owner of this process that shares the key starts from it; otherwise its first write would be refused. */
  private last: Seen = nothing;
  /** The store's queue, for exclusive locks. */
  readonly queue: StoreQueue | undefined;

  constructor(settings: LockSettings, store: NonNullable<LockSettings['store']>, key: string, storeKey: string) {
    this.settings = settings;
    this.store = store;
    this.key = key;
    this.storeKey = storeKey;
    this.queue = settings.kind === 'semaphore' ? undefined : store.native?.queue;
  }

  /**
   * Takes a seat if there is room; or finds the seat of this owner, if the reply to its grant was lost.
   *
   * @param waiting - The owner waits: in the store's queue, if there is one; and a writer keeps new readers out.
   */
  join(owner: string, mode: LockMode, waiting?: Waiting): Promise<Seat | Taken> {
    const { queue } = this;
    if (mode === 'exclusive' && queue !== undefined) return this.enter(queue, owner, waiting);
    return this.sit(owner, mode, waiting);
  }

  /** Like `join`, by compare-and-set. */
  private async sit(owner: string, mode: LockMode, waiting: Waiting | undefined): Promise<Seat | Taken> {
    const { ttlMs, permits } = this.settings;
    const quiet = (leftMs: number) => ({ leftMs, isClaimed: false });
    const outcome = await this.change<Taken>(
      nothing,
      ({ holders, claim }) => {
        const others = holders.filter((holder) => holder.owner !== owner);
        const mine = holders.find((holder) => holder.owner === owner);
        const claimed = claim !== undefined && claim.owner !== owner;
        const hasRoom =
          mode === 'exclusive'
            ? others.length === 0 && !claimed
            : !others.some((other) => other.mode === 'exclusive') &&
              others.length < permits &&
              (!claimed || mine !== undefined);
        if (hasRoom) {
          const seat = newHolder(owner, mode, ttlMs, mine);
          return { record: { holders: [...others, seat], claim: claimed ? claim : undefined } };
        }
        if (waiting !== undefined && mode === 'exclusive' && this.wantsClaim(owner, { holders: others, claim })) {
          return { record: { holders: others, claim: { owner, leftMs: ttlMs } } };
        }
        return { answer: this.taken({ holders: others, claim: claimed ? claim : undefined }, claim?.owner === owner) };
      },
      { bringsOwner: true, onQuiet: quiet },
    );
    if (!('sent' in outcome)) return outcome;
    const me = outcome.seen.record.holders.find((holder) => holder.owner === owner);
    // The write has only placed the claim of a writer.
    if (me === undefined) return this.taken({ holders: outcome.seen.record.holders }, true);
    return { ...outcome, owner, mode, fence: me.fence! };
  }

  /** Like `join`, through the store's queue. */
  private async enter(queue: StoreQueue, owner: string, waiting: Waiting | undefined): Promise<Seat | Taken> {
    const { settings } = this;
    const { ttlMs, quietMs, clock } = settings;
    const record = { holders: [newHolder(owner, 'exclusive', ttlMs, undefined)] };
    const value = encodeRecord(record);
    const onTurn = waiting && ((turn: QueueTurn) => waiting.onTurn(turn));
    const isClaimed = waiting !== undefined;
    for (let tries = 1; tries <= mostTries; tries++) {
      const sent = instantOf(clock);
      const placeMs = waiting === undefined ? 0 : this.placeMsOf(waiting, sent.monotonicMs);
      const answer = await queue.enter(this.storeKey, owner, value, { ttlMs, quietMs, placeMs, onTurn });
      settings.noteTrip(clock.now() - sent.monotonicMs);
      if (answer.ok) {
        const { version } = answer;
        const seen = { version, record: withFences(record, version), atMs: sent.monotonicMs };
        return { seen, sent, owner, mode: 'exclusive', fence: version };
      }
      if (waiting !== undefined) waiting.mayBeThere = true;
      const { isTold, quietForMs } = answer;
      if (quietForMs > 0) return { leftMs: quietForMs, isClaimed, isTold };
      const { version, record: now } = this.read(answer.entry);
      // The record has no holder: the owner of a claim has its place in the queue.
      if (version > 0 && now.holders.length === 0) await queue.pass(this.storeKey, { ifVersion: version, quietMs });
      else if (isClaimed && this.wantsClaim(owner, now)) {
        const claimed = { holders: now.holders, claim: { owner, leftMs: ttlMs } };
        const ifVersion = version;
        await this.store.write(this.storeKey, encodeRecord(claimed), { ttlMs: ttlOf(claimed), ifVersion });
      } else return { ...this.taken(now, isClaimed), isTold };
    }
    throw this.busy();
  }

  /**
   * A place lasts only as long as a turn could still be used. A turn offered to a waiter that is about to leave comes too late, and in a long queue the first
   * one always is. It ends sooner by as much again, because trips vary; a waiter with little time does without that margin, down to half of its time.
   */
  private placeMsOf({ endsAtMs }: Waiting, nowMs: number): number {
    const leftMs = endsAtMs - nowMs;
    const useMs = tripsToUse * this.settings.tripMs;
    const usefulMs = Math.max(leftMs - 2 * useMs, Math.min(leftMs - useMs, leftMs / 2));
    return Math.min(longestPlaceMs, Math.max(0, usefulMs));
  }

  /** Whether a writer should keep further readers out. A claim is renewed only when half of its time has passed, since each renewal costs a write. */
  private wantsClaim(owner: string, { holders, claim }: LockRecord): boolean {
    if (claim !== undefined && (claim.owner !== owner || claim.leftMs >= this.settings.ttlMs / 2)) return false;
    return holders.length > 0 && holders.every(({ mode }) => mode === 'shared');
  }

  private taken({ holders, claim }: LockRecord, isClaimed: boolean): Taken {
    const leftMs = Math.min(...holders.map((holder) => holder.leftMs), claim?.leftMs ?? Number.POSITIVE_INFINITY);
    return { leftMs: Number.isFinite(leftMs) ? leftMs : this.settings.ttlMs, isClaimed };
  }

  /** Renews a seat. Undefined if it is gone. */
  async renew(seat: Seat, leaseMs: number, signal: AbortSignal): Promise<Seat | undefined> {
    const renewed = ({ holders, claim }: LockRecord) => {
      const mine = holders.find((holder) => holder.owner === seat.owner);
      if (mine === undefined) return { answer: undefined };
      return { record: { holders: replace(holders, mine, newHolder(seat.owner, seat.mode, leaseMs, mine)), claim } };
    };
    const outcome = await this.change<undefined>(seat.seen, renewed, { signal });
    return outcome && { ...seat, ...outcome };
  }

  /** Passes a seat to another owner, in one write. Undefined if it is gone. */
  async passOn(seat: Pick<Seat, 'owner' | 'mode' | 'seen'>, owner: string): Promise<Seat | undefined> {
    const { mode } = seat;
    const passedOn = ({ holders, claim }: LockRecord) => {
      const mine = holders.find((holder) => holder.owner === seat.owner);
      if (mine === undefined) return { answer: undefined };
      const heir = newHolder(owner, mode, this.settings.ttlMs, undefined);
      return { record: { holders: replace(holders, mine, heir), claim } };
    };
    const outcome = await this.change<undefined>(seat.seen, passedOn, { bringsOwner: true });
    return outcome && { ...outcome, owner, mode, fence: outcome.seen.version };
  }

  /** Removes owners from the queue, so that nothing is handed to them any more. Resolves with the record as it is then. */
  async leaveLine(owners: readonly string[]): Promise<Seen> {
    return this.read(await (this.queue?.leave(this.storeKey, owners) ?? this.store.read(this.storeKey)));
  }

  /** Removes owners and their claims from the record; and first from the queue, unless `seen` was read after that. Whether one of them was a holder. */
  async leave(owners: readonly string[], seen?: Seen): Promise<boolean> {
    let wasHolder = false;
    const from = seen ?? (await this.leaveLine(owners));
    await this.change<undefined>(from, ({ holders, claim }) => {
      const others = holders.filter((holder) => !owners.includes(holder.owner));
      const isClaimed = claim !== undefined && owners.includes(claim.owner);
      wasHolder = others.length < holders.length;
      if (!wasHolder && !isClaimed) return { answer: undefined };
      return { record: { holders: others, claim: isClaimed ? undefined : claim } };
    });
    return wasHolder;
  }

  /** Gives up the seat of a lease. Whether it was still there. */
  async giveUp({ owner, mode, seen }: Seat): Promise<boolean> {
    const { version, record } = seen;
    // An exclusive holder is alone: unless somebody has written since, the whole record goes, which needs no plan.
    if (mode !== 'exclusive' || record.claim !== undefined) return this.leave([owner], seen);
    return (await this.vacate({ ifVersion: version })) || this.leave([owner], await this.look());
  }

  async look(): Promise<Seen> {
    return this.read(await this.store.read(this.storeKey));
  }

  clear(): Promise<boolean> {
    return this.vacate({});
  }

  /** The number of owners in the store's queue. */
  async queued(): Promise<number> {
    return (await this.queue?.size(this.storeKey)) ?? 0;
  }

  get isWatchable(): boolean {
    return this.store.native?.watch !== undefined;
  }

  watch(onChange: () => void) {
    return this.store.native?.watch?.(this.storeKey, onChange);
  }

  /** Requests that arrive while enough writes are in flight are combined into the next write. */
  private change<Answer>(
    from: Seen,
    decide: (record: LockRecord) => Change<Answer>,
    options: Pick<Request, 'signal' | 'onQuiet' | 'bringsOwner'> = {},
  ): Promise<Changed | Answer> {
    return new Promise<Changed | Answer>((resolve, reject) => {
      const request: Request = { ...options, from, decide, resolve: resolve as Request['resolve'], reject };
      // The first push to an empty array reserves room for sixteen more elements.
      if (this.requests.length === 0) this.requests = listOf(request);
      else this.requests.push(request);
      if (this.writes < mostWrites) void this.changeAll();
    });
  }

  private async changeAll(): Promise<void> {
    this.writes++;
    while (this.requests.length > 0) {
      const batch = this.requests;
      this.requests = [];
      try {
        const later = await this.changeTogether(batch);
        this.requests.unshift(...later);
      } catch (error) {
        for (const { reject } of batch) reject(error);
      }
    }
    this.writes--;
  }

  /** Applies all requests in one write, and answers them. Returns those that need a write of their own. */
  private async changeTogether(batch: readonly Request[]): Promise<readonly Request[]> {
    let requests = batch;
    let seen = newestOf(requests, isShared(this.last) ? this.judged(this.last) : nothing);
    // An owner may rely on what it last saw of its own seat. A record from anywhere else must be read again before it can answer a request.
    let isFresh = requests.length === 1 && requests[0]!.from === seen;
    for (let tries = 1; tries <= mostTries; tries++) {
      const plan = planOf(requests, this.aged(seen));
      const { changed, answered, later, record } = plan;
      const sent = instantOf(this.settings.clock);
      let outcome: { readonly version: number } | { readonly now: Seen } | { readonly quietForMs: number };
      // The abort of one request must not end the write of the others.
      const signal = requests.length === 1 ? requests[0]!.signal : undefined;
      if (changed.length > 0) outcome = await this.put(seen.version, record, changed, signal);
      else outcome = isFresh ? seen : { now: await this.look() };
      if ('version' in outcome) {
        const { version } = outcome;
        const atMs = sent.monotonicMs;
        const written = {
          seen: version === 0 ? nothing : { version, record: withFences(record, version), atMs },
          sent,
        };
        this.last = written.seen;
        for (const { resolve } of changed) resolve(written);
        for (const { request, answer } of answered) request.resolve(answer);
        return later;
      }
      if ('now' in outcome) {
        seen = outcome.now;
        isFresh = true;
      } else {
        const { quietForMs } = outcome;
        for (const { onQuiet, resolve } of requests) if (onQuiet !== undefined) resolve(onQuiet(quietForMs));
        requests = requests.filter(({ onQuiet }) => onQuiet === undefined);
        if (requests.length === 0) return [];
      }
    }
    throw this.busy();
  }

  /** Writes a record over the version that was seen. Returns the record found instead, or for how long the store grants nothing. */
  private async put(
    version: number,
    record: LockRecord,
    requests: readonly Request[],
    signal: AbortSignal | undefined,
  ): Promise<{ readonly version: number } | { readonly now: Seen } | { readonly quietForMs: number }> {
    const { store, storeKey } = this;
    const { quietMs } = this.settings;
    // If there is a queue, the owner of a claim has its place in it.
    if (record.holders.length === 0 && (record.claim === undefined || this.queue !== undefined)) {
      if (await this.vacate({ ifVersion: version })) return { version: 0 };
      return { now: await this.look() };
    }
    const options = { ttlMs: ttlOf(record), ifVersion: version, signal };
    const value = encodeRecord(record);
    const isGuarded = quietMs !== undefined && requests.some(({ onQuiet }) => onQuiet !== undefined);
    const guarded = isGuarded ? store.native?.guardedWrite : undefined;
    const answer: Written | (Refused & Partial<GuardRefused>) =
      guarded === undefined
        ? await store.write(storeKey, value, options)
        : await guarded(storeKey, value, { ...options, quietMs: quietMs! });
    if (answer.ok) return answer;
    const { quietForMs = 0 } = answer;
    return quietForMs > 0 ? { quietForMs } : { now: this.read(answer.entry) };
  }

  /** Hands the key to the next in the store's queue or, if there is none, frees it. */
  private vacate(options: StoreRemoveOptions): Promise<boolean> {
    const { queue, store, storeKey } = this;
    return queue?.pass(storeKey, { ...options, quietMs: this.settings.quietMs }) ?? store.remove(storeKey, options);
  }

  private busy(): StoreError {
    const detail = `others came first ${mostTries} times in a row`;
    return new StoreError({ store: 'lock', operation: 'write', reason: 'busy', applied: 'no', detail });
  }

  private read(entry: Entry | undefined): Seen {
    if (entry !== undefined) return this.judged(readRecord(this.key, entry, this.settings.clock.now()));
    this.seenSince = undefined;
    return nothing;
  }

  /** With the claim aged to the present. Holders need no ageing, since they live as long as their renewals go on; a claim is not renewed that way. */
  private aged({ record, atMs }: Seen): LockRecord {
    if (record.claim === undefined) return record;
    const leftMs = record.claim.leftMs - (this.settings.clock.now() - atMs);
    return { holders: record.holders, claim: leftMs > 0 ? { ...record.claim, leftMs } : undefined };
  }

  /**
   * Drops holders that have not renewed for a whole lease, by the clock of this process: a record that others rewrite often hardly ages by the store's clock.
   */
  private judged(seen: Seen): Seen {
    const { record } = seen;
    if (record.holders.length < 2 && this.seenSince === undefined) return seen;
    this.seenSince ??= new Map();
    const { seenSince } = this;
    const nowMs = this.settings.clock.now();
    const alive = record.holders.filter(({ owner, fence, renewals, leaseMs }) => {
      const since = seenSince.get(owner);
      if (since?.fence === fence && since?.renewals === renewals) return nowMs - since.atMs <= leaseMs;
      seenSince.set(owner, { fence, renewals, atMs: nowMs });
      return true;
    });
    if (seenSince.size > record.holders.length) {
      const owners = new Set(record.holders.map(({ owner }) => owner));
      for (const owner of seenSince.keys()) if (!owners.has(owner)) seenSince.delete(owner);
    }
    return alive.length === record.holders.length ? seen : { ...seen, record: { ...record, holders: alive } };
  }
}

function isShared({ record: { holders } }: Seen): boolean {
  return holders[0]?.mode === 'shared';
}

function newestOf(requests: readonly Request[], last: Seen): Seen {
  return requests.reduce((seen, { from }) => (from.version > seen.version ? from : seen), last);
}

/** What becomes of a batch of requests. */
interface Plan {
  readonly changed: readonly Request[];
  readonly answered: readonly { readonly request: Request; readonly answer: unknown }[];
  /** Those that need a write of their own. */
  readonly later: readonly Request[];
  readonly record: LockRecord;
}

const none: readonly never[] = [];

/** Applies the requests one after another, each to the record that the earlier ones leave. A single request, the usual case, needs no lists. */
function planOf(requests: readonly Request[], from: LockRecord): Plan {
  const [first] = requests;
  if (first !== undefined && requests.length === 1) {
    const change = first.decide(from);
    return 'answer' in change
      ? { changed: none, answered: listOf({ request: first, answer: change.answer }), later: none, record: from }
      : { changed: requests, answered: none, later: none, record: change.record };
  }
  const changed: Request[] = [];
  const answered: { readonly request: Request; readonly answer: unknown }[] = [];
  const later: Request[] = [];
  let record = from;
  for (const request of requests) {
    const isSecond = request.bringsOwner === true && changed.some(({ bringsOwner }) => bringsOwner === true);
    const change = isSecond ? undefined : request.decide(record);
    if (change === undefined) later.push(request);
    else if ('answer' in change) answered.push({ request, answer: change.answer });
    else {
      changed.push(request);
      record = change.record;
    }
  }
  return { changed, answered, later, record };
}

function newHolder(owner: string, mode: LockMode, leaseMs: number, before: Holder | undefined): Holder {
  return { owner, mode, leaseMs, leftMs: leaseMs, renewals: (before?.renewals ?? -1) + 1, fence: before?.fence };
}

function replace(holders: readonly Holder[], old: Holder, by: Holder): Holder[] {
  return holders.map((holder) => (holder === old ? by : holder));
}
