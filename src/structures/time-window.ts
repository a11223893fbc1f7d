/**
 * Time window: how many of the calls of the last ten time buckets failed, and how many were slow.
 *
 * Promise: a record costs the same however many calls the window holds. After any pause, the counts are those of the buckets that are still in the window,
 * because buckets are dropped by their epoch, not one per visit. While all counts lie in one bucket, no memory is allocated for others: this is true of most
 * windows in a large registry.
 */
export const bucketsPerWindow = 10;

/** Calls, failures and slow calls of one bucket are stored side by side. */
const numbersPerBucket = 3;

export class TimeWindow {
  calls = 0;
  failures = 0;
  slow = 0;
  /** The bucket of the latest record: its instant divided by the width of a bucket. */
  private epoch: number;
  private readonly firstEpoch: number;
  private buckets: number[] | undefined = undefined;

  constructor(epoch: number) {
    this.epoch = epoch;
    this.firstEpoch = epoch;
  }

  /** Whether it began less than its own length ago. */
  get isFilling(): boolean {
    return this.epoch - this.firstEpoch < bucketsPerWindow;
  }

  record(failed: boolean, slow: boolean, epoch: number): void {
    if (epoch !== this.epoch) this.moveTo(epoch);
    this.calls++;
    if (failed) this.failures++;
    if (slow) this.slow++;
    if (this.buckets === undefined) return;
    const at = startOf(this.epoch);
    this.buckets[at]!++;
    if (failed) this.buckets[at + 1]!++;
    if (slow) this.buckets[at + 2]!++;
  }

  /** Drops the buckets that are too old at this epoch. */
  moveTo(epoch: number): void {
    const steps = epoch - this.epoch;
    // If the clock went back, records count in the current bucket.
    if (steps <= 0) return;
    if (steps >= bucketsPerWindow || this.calls === 0) this.clear();
    else {
      this.buckets ??= this.spread();
      for (let next = this.epoch + 1; next <= epoch; next++) this.drop(this.buckets, startOf(next));
    }
    this.epoch = epoch;
  }

  private clear(): void {
    this.calls = 0;
    this.failures = 0;
    this.slow = 0;
    this.buckets = undefined;
  }

  private spread(): number[] {
    const buckets = new Array<number>(bucketsPerWindow * numbersPerBucket).fill(0);
    const at = startOf(this.epoch);
    buckets[at] = this.calls;
    buckets[at + 1] = this.failures;
    buckets[at + 2] = this.slow;
    return buckets;
  }

  private drop(buckets: number[], at: number): void {
    this.calls -= buckets[at]!;
    this.failures -= buckets[at + 1]!;
    this.slow -= buckets[at + 2]!;
    buckets.fill(0, at, at + numbersPerBucket);
  }
}

/** A clock may start at any instant, so an epoch may be negative. */
function startOf(epoch: number): number {
  const bucketIndex = epoch % bucketsPerWindow;
  return (bucketIndex < 0 ? bucketIndex + bucketsPerWindow : bucketIndex) * numbersPerBucket;
}
