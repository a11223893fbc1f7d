/**
 * Ranked cache: a bounded map that evicts what costs least to lose and, among equals, the least recently used.
 *
 * Promise: never more than `limit` entries. A higher rank is evicted only when no lower one is left. No timers. A use costs a few operations of a Map, whose
 * insertion order is the order of use. So does an eviction, on average, because each entry that is passed over is set aside once per use.
 */

/** The cost of losing a value: nothing, something, much. */
export type Rank = 0 | 1 | 2;

/** How many entries one sweep looks at, so that no single call pays for all. */
const sweepLimit = 1_000;

export class RankedCache<Value> {
  private readonly limit: number;
  private readonly rankOf: (value: Value) => Rank;
  private readonly onDrop: (value: Value) => void;
  /** The first tier holds the entries in the order of their last use; each tier also those of its rank that an eviction has passed over. */
  private readonly tiers: readonly Tier<Value>[] = [new Tier(), new Tier(), new Tier()];
  private newestKey: string | undefined = undefined;
  /** When each key was last used. Kept apart, because a cache that is never swept needs no times: 40 bytes per key. */
  private readonly usedMs = new Map<string, number>();

  constructor(limit: number, rankOf: (value: Value) => Rank, onDrop: (value: Value) => void) {
    this.limit = limit;
    this.rankOf = rankOf;
    this.onDrop = onDrop;
  }

  get size(): number {
    return this.tiers.reduce((sum, { entries }) => sum + entries.size, 0);
  }

  /** All values, in no particular order. */
  *values(): Generator<Value> {
    for (const { entries } of this.tiers) yield* entries.values();
  }

  /** The value of a key; this counts as a use. Without a time, no sweep drops the entry. */
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

  /** The most recently used value, unless it is gone. */
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

  /** Drops what has not been used since `beforeMs`, except values of the highest rank. Returns whether there may be more to drop. */
  sweep(beforeMs: number): boolean {
    for (const { entries } of this.tiers) {
      const isLast = entries === this.tiers[2]!.entries;
      // Entries that are set aside go to the end of the last tier, so that tier is traversed only once.
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
  /** Kept between calls: a new iterator would have to skip all deleted entries each time. */
  private cursor: MapIterator<[string, Value]> | undefined = undefined;

  takeOldest(): [string, Value] | undefined {
    // New entries come after the cursor, and none is left before it.
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
