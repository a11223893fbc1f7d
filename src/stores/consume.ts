/**
 * Consume: what a rate limit of GCRA answers, for every store that keeps its one number.
 *
 * Promise: what is granted never exceeds `burst` at once nor `limit` per period in the long run; what is refused changes nothing.
 * After: ITU-T I.371. The number is when all that was granted will be worked off; what is left of that time is the debt.
 */
import type { Consumed, ConsumeOptions } from './store.js';

/** What sums of binary fractions may be off by. */
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

  /** The debt when nothing of the burst is left. More cannot come of granting, only of a clock that was put back or another limit. */
  get wholeMs(): number {
    return this.burst * this.intervalMs;
  }

  /** What the debt is when the cost is granted. */
  debtAfter(debtMs: number): number {
    return debtMs + this.cost * this.intervalMs;
  }

  isGranted(debtMs: number): boolean {
    return this.debtAfter(debtMs) - this.wholeMs <= toleranceMs;
  }

  /** The answer by the debt as it was before. */
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
