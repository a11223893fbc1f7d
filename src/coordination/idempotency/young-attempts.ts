/**
 * Young attempts: those that need no renewal yet. They share one timer: most end before it fires, and a timer for each would cost more than the attempts
 * themselves.
 *
 * Promise: an attempt gets a lease keeper of its own before its first renewal is due.
 */
import { type Clock, callbackTimer } from '../../core/clock.js';
import { LinkedQueue } from '../../structures/linked-queue.js';
import { defaultMarginMs, safeLeaseMs } from '../lease.js';
import type { Attempt } from './attempt.js';

export class YoungAttempts {
  /** In the order of their acquisition. */
  private readonly attempts = new LinkedQueue<Attempt>();
  private readonly clock: Clock;
  private readonly youngMs: number;
  private isTimed = false;
  private readonly timer = callbackTimer(() => this.age());

  constructor(clock: Clock, leaseMs: number) {
    this.clock = clock.background ?? clock;
    // Earlier than the first renewal, however short the lease is.
    this.youngMs = Math.min(leaseMs / 3, safeLeaseMs(leaseMs, defaultMarginMs(leaseMs)) / 2);
  }

  add(attempt: Attempt): void {
    attempt.isYoung = true;
    this.attempts.add(attempt);
    if (this.isTimed) return;
    this.isTimed = true;
    this.clock.schedule(this.timer, attempt.acquiredMs + this.youngMs);
  }

  /** The timer stays armed: cancelling it and arming it for the next attempt would cost more than letting it find nothing to do. */
  delete(attempt: Attempt): void {
    if (!attempt.isYoung) return;
    attempt.isYoung = false;
    this.attempts.remove(attempt);
  }

  /** The queue is in the order of age: the first attempt that is still young ends the loop. */
  private age(): void {
    this.isTimed = false;
    const nowMs = this.clock.now();
    for (let { first } = this.attempts; first !== undefined; { first } = this.attempts) {
      const atMs = first.acquiredMs + this.youngMs;
      if (atMs > nowMs) {
        this.isTimed = true;
        this.clock.schedule(this.timer, atMs);
        return;
      }
      // The getter removes the attempt from the queue.
      void first.lease;
    }
  }
}
