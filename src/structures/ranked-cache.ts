/**
 * Ranked cache: a bounded map that forgets what costs least to lose, and among equals what was used longest ago.
 *
 * Promise: never more than `limit` entries; what ranks higher goes only when nothing lower is left; no timers. A use
 * costs a few operations of a Map, whose order of insertion is the order of use; forgetting costs the same in the long
 * run, because each entry that is passed over is set aside once per use.
 */

/** What losing a value costs: nothing, something, much. */
export type Rank = 0 | 1 | 2;

/** Entries that one sweep looks at, so that no call pays for all. */
const sweepLimit = 1_000;

export class RankedCache<Value> {
  private readonly limit: number;
  private readonly rankOf: (value: Value) => Rank;
  private readonly onDrop: (value: Value) => void;
  /** Entries since their last use; then, by rank, those that were passed over when something had to go. */
  private readonly tiers: readonly Tier<Value>[] = [new Tier(), new Tier(), new Tier()];
  private newestKey: string | undefined = undefined;
  /** When a key was last used. Apart, because what nobody sweeps needs no times: 40 bytes per key. */
  private readonly usedMs = new Map<string, number>();

  constructor(limit: number, rankOf: (value: Value) => Rank, onDrop: (value: Value) => void) {
    this.limit = limit;
    this.rankOf = rankOf;
    this.onDrop = onDrop;
  }

  get size(): number {
    return this.tiers.reduce((sum, { entries }) => sum + entries.size, 0);
  }

  /** The value of a key, which counts as a use of it; without a time no sweep finds it. */
  use(key: string, nowMs: number | undefined): Value | undefined {
    for (const { entries } of this.tiers) {
      const value = entries.get(key);
      if (value === undefined) continue;
      if (nowMs !== undefined) this.usedMs.set(key, nowMs);
      if (key !== this.newestKey) {
        entries.delete(key);
        this.append(key, value);
      }
      return value;
    }
    return undefined;
  }

  /** What was used last, unless it is gone. */
  get newest(): Value | undefined {
    const key = this.newestKey;
    return key === undefined ? undefined : this.tiers[0]!.entries.get(key);
  }

  /** Adds the value of a key that is not there. */
  add(key: string, value: Value, nowMs: number | undefined): void {
    if (this.size >= this.limit) this.evict();
    if (nowMs !== undefined) this.usedMs.set(key, nowMs);
    this.append(key, value);
  }

  /** Drops what has not been used since `beforeMs`, except what would cost much. Answers whether there may be more of it. */
  sweep(beforeMs: number): boolean {
    for (const { entries } of this.tiers) {
      const isLast = entries === this.tiers[2]!.entries;
      // What is set aside comes to the end of the last tier, which is therefore gone over once.
      let left = isLast ? Math.min(entries.size, sweepLimit) : sweepLimit;
      for (const [key, value] of entries) {
        if ((this.usedMs.get(key) ?? beforeMs) >= beforeMs) break;
        if (left-- === 0) return !isLast;
        entries.delete(key);
        if (this.rankOf(value) === 2) this.tiers[2]!.entries.set(key, value);
        else this.drop(key, value);
      }
    }
    return false;
  }

  private append(key: string, value: Value): void {
    this.tiers[0]!.entries.set(key, value);
    this.newestKey = key;
  }

  private drop(key: string, value: Value): void {
    this.usedMs.delete(key);
    this.onDrop(value);
  }

  private evict(): void {
    for (const [index, tier] of this.tiers.entries()) {
      for (let oldest = tier.takeOldest(); oldest !== undefined; oldest = tier.takeOldest()) {
        const [key, value] = oldest;
        const rank = this.rankOf(value);
        if (rank <= index) return this.drop(key, value);
        this.tiers[rank]!.entries.set(key, value);
      }
    }
  }
}

class Tier<Value> {
  readonly entries = new Map<string, Value>();
  /** Goes on where it stopped: a new iterator would step over all that was deleted before, each time. */
  private cursor: MapIterator<[string, Value]> | undefined = undefined;

  takeOldest(): [string, Value] | undefined {
    // What is added comes behind it, and nothing is left before it.
    this.cursor ??= this.entries.entries();
    const step = this.cursor.next();
    if (step.done) {
      this.cursor = undefined;
      return undefined;
    }
    this.entries.delete(step.value[0]);
    return step.value;
  }
}
