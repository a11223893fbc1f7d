/**
 * Consume: the result of a GCRA rate limit, for every store that keeps its one number.
 *
 * Promise: what is granted never exceeds `burst` at once, nor `limit` per period in the long run. A refusal changes nothing.
 * After: ITU-T I.371. The number is the instant at which everything granted so far will be worked off; the time until then is the debt.
 */
import type { Consumed, ConsumeOptions } from './store.js';

/** The rounding error allowed in sums of binary fractions. */
const toleranceMs = 1e-6;

export class ConsumeRate {
  readonly intervalMs: number;
  readonly burst: number;
  readonly cost: number;

  constructor({ limit, periodMs, burst = limit, cost = 1 }: ConsumeOptions) {
    this.intervalMs = periodMs / limit;
    this.burst = burst;
    this.cost = cost;
  }

  /** The debt when the whole burst is used up. Grants cannot make it larger; only a clock that was put back, or a changed limit, can. */
  get wholeMs(): number {
    return this.burst * this.intervalMs;
  }

  /** The debt after the cost is granted. */
  debtAfter(debtMs: number): number {
    return debtMs + this.cost * this.intervalMs;
  }

  isGranted(debtMs: number): boolean {
    return this.debtAfter(debtMs) - this.wholeMs <= toleranceMs;
  }

  /** The result, given the debt before the call. */
  answer(debtMs: number, ok: boolean): Consumed {
    const resetMs = ok ? this.debtAfter(debtMs) : debtMs;
    return {
      ok,
      remaining: Math.max(0, Math.floor(this.burst - resetMs / this.intervalMs + toleranceMs)),
      retryAfterMs: ok ? 0 : debtMs + (this.cost - this.burst) * this.intervalMs,
      resetMs,
    };
  }
}
