/**
 * GCRA: the generic cell rate algorithm, a rate limit that needs only one number.
 *
 * Promise: what is granted never exceeds `burst` at once, nor the rate in the long run. A refusal changes nothing.
 * After: ITU-T I.371; `tat` is its theoretical arrival time.
 */

/** The rounding error allowed in sums of binary fractions: a nanosecond. It does not let the rate drift, because `tat` is never rounded. */
const toleranceMs = 1e-6;

export class Gcra {
  /** Milliseconds of the rate that a cost of one takes. */
  readonly intervalMs: number;
  readonly burst: number;
  /** When everything granted so far is worked off. */
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

  /** Grants the cost. */
  take(cost: number, nowMs: number): void {
    this.tatMs = Math.max(this.tatMs, nowMs) + cost * this.intervalMs;
  }

  /** Whole units that could be granted now. */
  remaining(nowMs: number): number {
    return Math.floor(this.burst - this.resetMs(nowMs) / this.intervalMs + toleranceMs);
  }

  /** Milliseconds until the whole burst is available again. */
  resetMs(nowMs: number): number {
    return Math.max(0, this.tatMs - nowMs);
  }
}
