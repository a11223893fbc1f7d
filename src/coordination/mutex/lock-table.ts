/**
 * Lock table: what a lock asks of a store, each a change of one record by compare-and-set.
 *
 * Promise: a change whose reply was lost can be made again, because the owner knows itself in the record; nobody's seat but one's own is
 * ever given up, and nothing comes back that was given up: each write names the version that it stands on.
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

/** What a change comes to: the record to be, or an answer without one. */
type Change<Answer> = { readonly record: LockRecord } | { readonly answer: Answer };

/** A change that somebody of this process wants. */
interface Request {
  /** What he has seen last. */
  readonly from: Seen;
  readonly decide: (record: LockRecord) => Change<unknown>;
  /** Whether it brings in an owner: whose fence is the version of that write, so that there is one in a write. */
  readonly bringsOwner?: boolean;
  /** What he is told while the store grants nothing. */
  readonly onQuiet?: (quietForMs: number) => unknown;
  readonly signal?: AbortSignal;
  /** With what was changed, or with an answer. */
  readonly resolve: (outcome: unknown) => void;
  readonly reject: (error: unknown) => void;
}

/** What was written, and just before when. */
interface Changed {
  readonly seen: Seen;
  readonly sent: Instant;
}

/** A place in a record. */
export interface Seat extends Changed {
  readonly owner: string;
  readonly mode: LockMode;
  readonly fence: number;
}

/** There is no room. */
export interface Taken {
  /** Milliseconds until the first of those in the way is gone, unless it renews. */
  readonly leftMs: number;
  /** Whether the store has a claim, or a place in its line, of the one who asked. */
  readonly isClaimed: boolean;
  /** Whether the one who asked is told when it is his turn, in a line. */
  readonly isTold?: boolean;
}

/** How one waits. */
export interface Waiting {
  /** Whether the store has a place or a claim of it; set at once, since what is asked of the store after that may fail. */
  mayBeThere: boolean;
  /** When nobody waits for its turn any more, as far as is known. */
  readonly endsAtMs: number;
  /** Called with each hint of a store that has a line. */
  onTurn(turn: QueueTurn): void;
}

/** For how long a place in the line of a store is kept: three times as long as it takes to ask again. */
const longestPlaceMs = 15_000;
/** To use a turn: the store counts from half a trip later, and to hear of it and to take it are one and a half. */
const tripsToUse = 2;

/** Writes of this process at a time: of more, each comes before the others, which then try again. Some, because one may hang. */
const mostWrites = 4;

/** Writes in a row that others came before: more than that many others at once means that something is wrong. */
const mostTries = 200;

export class LockTable {
  private readonly settings: LockSettings;
  private readonly store: NonNullable<LockSettings['store']>;
  /** Since when each holder of a shared record has been seen with the same fence and number of renewals: an owner may come in anew. */
  private seenSince: Map<string, Pick<Holder, 'fence' | 'renewals'> & { readonly atMs: number }> | undefined =
    undefined;
  private readonly key: string;
  private readonly storeKey: string;
  /** What waits for one of the writes that are under way. */
  private requests: Request[] = [];
  private writes = 0;
  /** What was written last. Who shares the key with others of this process goes by that: else his first write would only tell him of them. */
  private last: Seen = nothing;
  /** The line of the store, for those who are alone. */
  readonly queue: StoreQueue | undefined;

  constructor(settings: LockSettings, store: NonNullable<LockSettings['store']>, key: string, storeKey: string) {
    this.settings = settings;
    this.store = store;
    this.key = key;
    this.storeKey = storeKey;
    this.queue = settings.kind === 'semaphore' ? undefined : store.native?.queue;
  }

  /**
   * Takes a seat where there is room, or a seat of that owner whose grant was not answered.
   *
   * @param waiting - It waits: in the line of the store, if there is one, and a writer stops readers from coming in before it.
   */
  async join(owner: string, mode: LockMode, waiting?: Waiting): Promise<Seat | Taken> {
    const { ttlMs, permits } = this.settings;
    if (mode === 'exclusive' && this.queue !== undefined) return this.enter(this.queue, owner, waiting);
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
    // What was written was only the claim of a writer.
    if (me === undefined) return this.taken({ holders: outcome.seen.record.holders }, true);
    return { ...outcome, owner, mode, fence: me.fence! };
  }

  /** As `join`, in the line of the store. */
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
      // Whoever has claimed it is in the line.
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
   * For as long as a turn could be used: one that is offered to who is about to leave comes too late, and in a long line the first always is. It ends sooner by as
   * much again, because trips differ; who has little time does without that, down to half of it.
   */
  private placeMsOf({ endsAtMs }: Waiting, nowMs: number): number {
    const leftMs = endsAtMs - nowMs;
    const useMs = tripsToUse * this.settings.tripMs;
    const usefulMs = Math.max(leftMs - 2 * useMs, Math.min(leftMs - useMs, leftMs / 2));
    return Math.min(longestPlaceMs, Math.max(0, usefulMs));
  }

  /** Whether a writer is to hold further readers off. Half of a claim must be over before it is worth another write. */
  private wantsClaim(owner: string, { holders, claim }: LockRecord): boolean {
    if (claim !== undefined && (claim.owner !== owner || claim.leftMs >= this.settings.ttlMs / 2)) return false;
    return holders.length > 0 && holders.every(({ mode }) => mode === 'shared');
  }

  private taken({ holders, claim }: LockRecord, isClaimed: boolean): Taken {
    const leftMs = Math.min(...holders.map((holder) => holder.leftMs), claim?.leftMs ?? Number.POSITIVE_INFINITY);
    return { leftMs: Number.isFinite(leftMs) ? leftMs : this.settings.ttlMs, isClaimed };
  }

  /** Renews a seat; undefined when it is gone. */
  async renew(seat: Seat, leaseMs: number, signal: AbortSignal): Promise<Seat | undefined> {
    const renewed = ({ holders, claim }: LockRecord) => {
      const mine = holders.find((holder) => holder.owner === seat.owner);
      if (mine === undefined) return { answer: undefined };
      return { record: { holders: replace(holders, mine, newHolder(seat.owner, seat.mode, leaseMs, mine)), claim } };
    };
    const outcome = await this.change<undefined>(seat.seen, renewed, { signal });
    return outcome && { ...seat, ...outcome };
  }

  /** Gives a seat to another owner, in one write; undefined when it is gone. */
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

  /** Takes owners out of the line, so that nothing is handed to them any more; what the record is then. */
  async leaveLine(owners: readonly string[]): Promise<Seen> {
    return this.read(await (this.queue?.leave(this.storeKey, owners) ?? this.store.read(this.storeKey)));
  }

  /** Takes owners, and the claims of writers, out of the record, and first out of the line unless it was `seen` after that. Whether one of them was a holder. */
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

  async look(): Promise<Seen> {
    return this.read(await this.store.read(this.storeKey));
  }

  clear(): Promise<boolean> {
    return this.vacate({});
  }

  /** Those in the line of the store. */
  async queued(): Promise<number> {
    return (await this.queue?.size(this.storeKey)) ?? 0;
  }

  get isWatchable(): boolean {
    return this.store.native?.watch !== undefined;
  }

  watch(onChange: () => void) {
    return this.store.native?.watch?.(this.storeKey, onChange);
  }

  /** What those of this process want while enough writes are under way goes into the next one. */
  private change<Answer>(
    from: Seen,
    decide: (record: LockRecord) => Change<Answer>,
    options: Pick<Request, 'signal' | 'onQuiet' | 'bringsOwner'> = {},
  ): Promise<Changed | Answer> {
    return new Promise<Changed | Answer>((resolve, reject) => {
      const request: Request = { ...options, from, decide, resolve: resolve as Request['resolve'], reject };
      // The first push to an empty list makes room for sixteen more.
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

  /** Does by one write what all of them want, but for those that must have one of their own: they are answered. */
  private async changeTogether(batch: readonly Request[]): Promise<readonly Request[]> {
    let requests = batch;
    let seen = newestOf(requests, isShared(this.last) ? this.judged(this.last) : nothing);
    // The owner of a seat may go by what he has seen of it; what somebody else wrote must be so by now to tell anybody anything.
    let isFresh = requests.length === 1 && requests[0]!.from === seen;
    for (let tries = 1; tries <= mostTries; tries++) {
      const plan = planOf(requests, this.aged(seen));
      const { changed, answered, later, record } = plan;
      const sent = instantOf(this.settings.clock);
      let outcome: { readonly version: number } | { readonly now: Seen } | { readonly quietForMs: number };
      // The end of one's try is none of the others'.
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

  /** Writes a record in place of the version that was seen; answers what is there instead, or for how long the store grants nothing. */
  private async put(
    version: number,
    record: LockRecord,
    requests: readonly Request[],
    signal: AbortSignal | undefined,
  ): Promise<{ readonly version: number } | { readonly now: Seen } | { readonly quietForMs: number }> {
    const { store, storeKey } = this;
    const { quietMs } = this.settings;
    // Whoever has claimed it is in the line, if there is one.
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

  /** Gives the key to the next in the line of the store, or to nobody. */
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

  /** With a claim as old as it is by now: a holder lives as long as its renewals move on, and nothing of a claim does. */
  private aged({ record, atMs }: Seen): LockRecord {
    if (record.claim === undefined) return record;
    const leftMs = record.claim.leftMs - (this.settings.clock.now() - atMs);
    return { holders: record.holders, claim: leftMs > 0 ? { ...record.claim, leftMs } : undefined };
  }

  /** Without those who have not renewed for as long as their lease, by the clock of this process: a record that is rewritten all the time ages slowly. */
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

/** What is to be done of what was asked for. */
interface Plan {
  readonly changed: readonly Request[];
  readonly answered: readonly { readonly request: Request; readonly answer: unknown }[];
  /** In a write of its own. */
  readonly later: readonly Request[];
  readonly record: LockRecord;
}

const none: readonly never[] = [];

/** One after another, each on what those before it leave behind. One that is alone, as most are, needs no lists. */
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
