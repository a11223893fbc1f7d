/**
 * Controlled delay: tells a queue that only smooths a burst from a standing one.
 *
 * Promise: if the queue was empty or nearly empty at some moment of the last interval, it drops nothing. If it was not, a waiter that has waited longer than
 * twice the target is dropped. The target is 5 % of the median service time, but at least 5 ms.
 * After: Nichols and Jacobson, "Controlling queue delay" (2012), in the form of folly's `Codel`, which drops what waited too long instead of dropping ever
 * more often; the oldest waiter stands for the queue, even while the newest is served.
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

  /** The median service time; 0 before the first operation has ended. */
  get medianServiceMs(): number {
    return this.serviceMs.value ?? 0;
  }

  /** Records that an operation did not have to wait at all, so there is no standing queue. */
  noteNoWait(): void {
    this.isOverloaded = false;
    this.shortestWaitMs = 0;
  }

  /** Records how long an operation took. */
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
      // The first one of an interval is served, so that some calls get through however long the queue is.
      return false;
    }
    this.shortestWaitMs = Math.min(this.shortestWaitMs, waitedMs);
    return this.isOverloaded && waitedMs > 2 * targetMs;
  }
}
