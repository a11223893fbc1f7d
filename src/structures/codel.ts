/**
 * Controlled delay: tells a queue that only smooths a burst from one that stands.
 *
 * Promise: a queue that was empty, or nearly, at some moment of the last interval drops nothing; in one that was not,
 * who waited longer than twice the target is too late. What is nearly empty goes by the service: 5 % of the time that
 * half of the operations take, at least 5 ms.
 * After: Nichols and Jacobson, "Controlling queue delay" (2012), in the form of folly's `Codel`, which drops what waited
 * too long instead of dropping ever more often; the oldest waiter stands for the queue, also while the newest is served.
 */

import { QuantileEstimator } from './quantile.js';

const intervalMs = 100;
const minTargetMs = 5;
const targetShare = 0.05;

export class CoDel {
  /** Whether nobody left the queue in time during the last whole interval. */
  isOverloaded = false;
  private readonly serviceMs = new QuantileEstimator(0.5, 1);
  private shortestWaitMs = 0;
  private intervalEndsMs = Number.NEGATIVE_INFINITY;

  /** About half of the operations take less; 0 while none has ended. */
  get medianServiceMs(): number {
    return this.serviceMs.value ?? 0;
  }

  /** Somebody did not have to wait at all, so no queue stands. */
  noteNoWait(): void {
    this.isOverloaded = false;
    this.shortestWaitMs = 0;
  }

  /** An operation took this long. */
  noteService(tookMs: number): void {
    this.serviceMs.add(tookMs);
  }

  /** Whether the oldest waiter, whose turn it is, has waited too long to be served. */
  isTooLate(waitedMs: number, nowMs: number): boolean {
    const targetMs = Math.max(minTargetMs, this.medianServiceMs * targetShare);
    if (nowMs > this.intervalEndsMs) {
      this.isOverloaded = this.shortestWaitMs > targetMs;
      this.intervalEndsMs = nowMs + intervalMs;
      this.shortestWaitMs = waitedMs;
      // The first one of an interval is served, so that some call gets through however long the queue is.
      return false;
    }
    this.shortestWaitMs = Math.min(this.shortestWaitMs, waitedMs);
    return this.isOverloaded && waitedMs > 2 * targetMs;
  }
}
