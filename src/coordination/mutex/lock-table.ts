/**
 * Lock table: what a lock asks of a store, each a change of one record by compare-and-set.
 *
 * Promise: a change whose reply was lost can be made again, because the owner knows itself in the record; nobody's seat but one's own is
 * ever given up, and nothing comes back that was given up: each write names the version that it stands on.
 */
import { StoreError } from '../../core/errors.js';
import type { Entry } from '../../stores/store.js';
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
  /** Whether the record has the claim of the one who asked. */
  readonly isClaimed: boolean;
}

/** Writes in a row that others came before: more than that many others at once means that something is wrong. */
const mostTries = 200;

export class LockTable {
  private readonly settings: LockSettings;
  private readonly store: NonNullable<LockSettings['store']>;
  /** Since when each holder of a shared record has been seen with the same number of renewals. */
  private readonly seenSince = new Map<string, { readonly renewals: number; readonly atMs: number }>();
  private readonly key: string;
  private readonly storeKey: string;

  constructor(settings: LockSettings, store: NonNullable<LockSettings['store']>, key: string, storeKey: string) {
    this.settings = settings;
    this.store = store;
    this.key = key;
    this.storeKey = storeKey;
  }

  /**
   * Takes a seat where there is room, or a seat of that owner whose grant was not answered.
   *
   * @param claims - Lets a writer stop readers from coming in before it.
   */
  async join(owner: string, mode: LockMode, claims: boolean): Promise<Seat | Taken> {
    const { ttlMs, permits } = this.settings;
    const outcome = await this.change<Taken>(nothing, undefined, ({ holders, claim }) => {
      const others = holders.filter((holder) => holder.owner !== owner);
      const mine = holders.find((holder) => holder.owner === owner);
      const claimed = claim !== undefined && claim.owner !== owner;
      const hasRoom =
        mode === 'exclusive'
          ? others.length === 0 && (!claimed || mine !== undefined)
          : !others.some((other) => other.mode === 'exclusive') &&
            others.length < permits &&
            (!claimed || mine !== undefined);
      if (hasRoom) {
        const seat = newHolder(owner, mode, ttlMs, mine);
        return { record: { holders: [...others, seat], claim: claimed ? claim : undefined } };
      }
      const wantsClaim = claims && mode === 'exclusive' && !claimed && others.every((other) => other.mode === 'shared');
      // Half of it must be over before it is worth a write.
      if (wantsClaim && (claim?.leftMs ?? 0) < ttlMs / 2) {
        return { record: { holders: others, claim: { owner, leftMs: ttlMs } } };
      }
      const leftMs = Math.min(
        ...others.map((other) => other.leftMs),
        claimed ? claim.leftMs : Number.POSITIVE_INFINITY,
      );
      const isClaimed = claim?.owner === owner;
      return { answer: { leftMs: Number.isFinite(leftMs) ? leftMs : ttlMs, isClaimed } };
    });
    if (!('sent' in outcome)) return outcome;
    const me = outcome.seen.record.holders.find((holder) => holder.owner === owner);
    // What was written was only the claim of a writer.
    if (me === undefined) return { leftMs: ttlOf({ holders: outcome.seen.record.holders }), isClaimed: true };
    return { ...outcome, owner, mode, fence: me.fence! };
  }

  /** Renews a seat; undefined when it is gone. */
  async renew(seat: Seat, leaseMs: number, signal: AbortSignal): Promise<Seat | undefined> {
    const outcome = await this.change<undefined>(seat.seen, signal, ({ holders, claim }) => {
      const mine = holders.find((holder) => holder.owner === seat.owner);
      if (mine === undefined) return { answer: undefined };
      return { record: { holders: replace(holders, mine, newHolder(seat.owner, seat.mode, leaseMs, mine)), claim } };
    });
    return outcome && { ...seat, ...outcome };
  }

  /** Gives a seat to another owner, in one write; undefined when it is gone. */
  async passOn(seat: Seat, owner: string): Promise<Seat | undefined> {
    const { mode } = seat;
    const outcome = await this.change<undefined>(seat.seen, undefined, ({ holders, claim }) => {
      const mine = holders.find((holder) => holder.owner === seat.owner);
      if (mine === undefined) return { answer: undefined };
      const heir = newHolder(owner, mode, this.settings.ttlMs, undefined);
      return { record: { holders: replace(holders, mine, heir), claim } };
    });
    return outcome && { ...outcome, owner, mode, fence: outcome.seen.version };
  }

  /** Takes owners, and the claims of writers, out of the record. Whether one of them was a holder. */
  async leave(owners: readonly string[], seen?: Seen): Promise<boolean> {
    let wasHolder = false;
    await this.change<undefined>(seen ?? (await this.look()), undefined, ({ holders, claim }) => {
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
    return this.store.remove(this.storeKey);
  }

  watch(onChange: () => void) {
    return this.store.native?.watch?.(this.storeKey, onChange);
  }

  private async change<Answer>(
    from: Seen,
    signal: AbortSignal | undefined,
    decide: (record: LockRecord) => Change<Answer>,
  ): Promise<Changed | Answer> {
    const { store, storeKey } = this;
    let seen = from;
    for (let tries = 1; tries <= mostTries; tries++) {
      const change = decide(seen.record);
      if ('answer' in change) return change.answer;
      const { record } = change;
      const { version } = seen;
      const sent = instantOf(this.settings.clock);
      if (record.holders.length === 0 && record.claim === undefined) {
        if (await store.remove(storeKey, { ifVersion: version, signal })) return { seen: nothing, sent };
        seen = this.read(await store.read(storeKey, { signal }));
      } else {
        const ttlMs = ttlOf(record);
        const answer = await store.write(storeKey, encodeRecord(record), { ttlMs, ifVersion: version, signal });
        if (answer.ok) return { seen: { version: answer.version, record: withFences(record, answer.version) }, sent };
        seen = this.read(answer.entry);
      }
    }
    const detail = `others came first ${mostTries} times in a row`;
    throw new StoreError({ store: 'lock', operation: 'write', reason: 'busy', applied: 'no', detail });
  }

  /** Without those who have not renewed for as long as their lease, by the clock of this process: a record that is rewritten all the time ages slowly. */
  private read(entry: Entry | undefined): Seen {
    if (entry === undefined) {
      this.seenSince.clear();
      return nothing;
    }
    const { version, record } = readRecord(this.key, entry);
    if (record.holders.length < 2 && this.seenSince.size === 0) return { version, record };
    const nowMs = this.settings.clock.now();
    const alive = record.holders.filter(({ owner, renewals, leaseMs }) => {
      const since = this.seenSince.get(owner);
      if (since?.renewals === renewals) return nowMs - since.atMs <= leaseMs;
      this.seenSince.set(owner, { renewals, atMs: nowMs });
      return true;
    });
    for (const owner of this.seenSince.keys()) {
      if (!record.holders.some((holder) => holder.owner === owner)) this.seenSince.delete(owner);
    }
    return { version, record: { ...record, holders: alive } };
  }
}

function newHolder(owner: string, mode: LockMode, leaseMs: number, before: Holder | undefined): Holder {
  return { owner, mode, leaseMs, leftMs: leaseMs, renewals: (before?.renewals ?? -1) + 1, fence: before?.fence };
}

function replace(holders: readonly Holder[], old: Holder, by: Holder): Holder[] {
  return holders.map((holder) => (holder === old ? by : holder));
}
