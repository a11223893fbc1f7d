/**
 * Ranked cache: a bounded map that forgets what costs least to lose, and among equals what was used longest ago.
 *
 * Promise: never more than `limit` entries; what ranks higher goes only when nothing lower is left; no timers. A use
 * costs a few operations of a Map, whose order of insertion is the order of use; forgetting costs the same in the long
 * run, because each entry that is passed over is set aside once per use.
 */

/** What losing a value costs: nothing, something, much. */
export type Rank = 0 | 1 | 2;

/** A value and when it was last used, in whole milliseconds. */
export class Kept<Value> {
  readonly value: Value;
  usedMs: number;

  constructor(value: Value, usedMs: number) {
    this.value = value;
    this.usedMs = usedMs;
  }
}

/** Entries that one sweep looks at, so that no call pays for all. */
const sweepLimit = 1_000;

export class RankedCache<Value> {
  private readonly limit: number;
  private readonly rankOf: (value: Value) => Rank;
  private readonly onDrop: (value: Value) => void;
  /** Entries since their last use; then, by rank, those that were passed over when something had to go. */
  private readonly tiers: readonly Tier<Value>[] = [new Tier(), new Tier(), new Tier()];
  private newestKey: string | undefined = undefined;

  constructor(limit: number, rankOf: (value: Value) => Rank, onDrop: (value: Value) => void) {
    this.limit = limit;
    this.rankOf = rankOf;
    this.onDrop = onDrop;
  }

  get size(): number {
    return this.tiers.reduce((sum, { entries }) => sum + entries.size, 0);
  }

  /** The value of a key, which counts as a use of it. */
  use(key: string, nowMs: number): Value | undefined {
    for (const { entries } of this.tiers) {
      const kept = entries.get(key);
      if (kept === undefined) continue;
      kept.usedMs = nowMs;
      if (key !== this.newestKey) {
        entries.delete(key);
        this.append(key, kept);
      }
      return kept.value;
    }
    return undefined;
  }

  /** What was used last, unless it is gone. */
  get newest(): Value | undefined {
    const key = this.newestKey;
    return key === undefined ? undefined : this.tiers[0]!.entries.get(key)?.value;
  }

  /** Adds the value of a key that is not there. */
  add(key: string, value: Value, nowMs: number): void {
    if (this.size >= this.limit) this.evict();
    this.append(key, new Kept(value, nowMs));
  }

  /** Drops what has not been used since `beforeMs`, except what would cost much. Answers whether there may be more of it. */
  sweep(beforeMs: number): boolean {
    for (const { entries } of this.tiers) {
      const isLast = entries === this.tiers[2]!.entries;
      // What is set aside comes to the end of the last tier, which is therefore gone over once.
      let left = isLast ? Math.min(entries.size, sweepLimit) : sweepLimit;
      for (const [key, kept] of entries) {
        if (kept.usedMs >= beforeMs) break;
        if (left-- === 0) return !isLast;
        entries.delete(key);
        if (this.rankOf(kept.value) === 2) this.tiers[2]!.entries.set(key, kept);
        else this.onDrop(kept.value);
      }
    }
    return false;
  }

  private append(key: string, kept: Kept<Value>): void {
    this.tiers[0]!.entries.set(key, kept);
    this.newestKey = key;
  }

  private evict(): void {
    for (const [index, tier] of this.tiers.entries()) {
      for (let oldest = tier.takeOldest(); oldest !== undefined; oldest = tier.takeOldest()) {
        const [key, kept] = oldest;
        const rank = this.rankOf(kept.value);
        if (rank <= index) return this.onDrop(kept.value);
        this.tiers[rank]!.entries.set(key, kept);
      }
    }
  }
}

class Tier<Value> {
  readonly entries = new Map<string, Kept<Value>>();
  /** Goes on where it stopped: a new iterator would step over all that was deleted before, each time. */
  private cursor: MapIterator<[string, Kept<Value>]> | undefined = undefined;

  takeOldest(): [string, Kept<Value>] | undefined {
    this.cursor ??= this.entries.entries();
    let step = this.cursor.next();
    if (step.done) {
      this.cursor = this.entries.entries();
      step = this.cursor.next();
    }
    if (step.done) {
      this.cursor = undefined;
      return undefined;
    }
    this.entries.delete(step.value[0]);
    return step.value;
  }
}
