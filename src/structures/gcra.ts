/**
 * GCRA: the generic cell rate algorithm, a rate limit that is one number.
 *
 * Promise: what is granted never exceeds `burst` at once nor the rate in the long run; what is denied changes nothing.
 * After: ITU-T I.371; `tat` is its theoretical arrival time.
 */

/** What sums of binary fractions may be off by: a nanosecond. The rate does not drift by it, `tat` is never rounded. */
const toleranceMs = 1e-6;

export class Gcra {
  /** Milliseconds that a cost of one takes of the rate. */
  readonly intervalMs: number;
  readonly burst: number;
  /** When all that was granted is worked off. */
  private tatMs = Number.NEGATIVE_INFINITY;

  constructor(intervalMs: number, burst: number) {
    this.intervalMs = intervalMs;
    this.burst = burst;
  }

  /** Milliseconds until `cost` would be granted, 0 for now. It must not be above `burst`. */
  waitMs(cost: number, nowMs: number): number {
    const waitMs = Math.max(this.tatMs, nowMs) + (cost - this.burst) * this.intervalMs - nowMs;
    return waitMs > toleranceMs ? waitMs : 0;
  }

  /** Grants. */
  take(cost: number, nowMs: number): void {
    this.tatMs = Math.max(this.tatMs, nowMs) + cost * this.intervalMs;
  }

  /** What could be granted at once, in whole units. */
  remaining(nowMs: number): number {
    return Math.floor(this.burst - this.resetMs(nowMs) / this.intervalMs + toleranceMs);
  }

  /** Milliseconds until the whole burst is there again. */
  resetMs(nowMs: number): number {
    return Math.max(0, this.tatMs - nowMs);
  }
}
