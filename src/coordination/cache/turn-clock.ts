/**
 * Turn clock: the time for hits, which would cost more than the look into the memory if each read it.
 *
 * Promise: what it answers is not from before this turn of the event loop, or at most a millisecond old; few reads, and a clock that
 * is not the system's, are exact. A value may so be shown for the rest of a turn in which its time ends, and no longer.
 */
import { type Clock, systemClock } from '../../core/clock.js';

/** So many reads within a millisecond are worth a timer that ends the answer's life. */
const readsWorthATimer = 16;

export class TurnClock {
  private readonly clock: Clock;
  private readonly isExact: boolean;
  /** What is answered until the timer fires; 0: nothing is held. */
  private heldMs = 0;
  private sinceMs = Number.NEGATIVE_INFINITY;
  private reads = 0;
  private readonly letGo = () => {
    this.heldMs = 0;
    this.reads = 0;
  };

  constructor(clock: Clock) {
    this.clock = clock;
    this.isExact = clock !== systemClock;
  }

  now(): number {
    const { heldMs } = this;
    return heldMs > 0 ? heldMs : this.read();
  }

  private read(): number {
    const nowMs = this.clock.now();
    if (this.isExact) return nowMs;
    if (nowMs - this.sinceMs >= 1) {
      this.sinceMs = nowMs;
      this.reads = 0;
    } else if (++this.reads === readsWorthATimer) {
      this.heldMs = nowMs;
      const timer: unknown = setTimeout(this.letGo, 1);
      // Where a timer is a number there is no process to keep.
      (timer as { unref?(): void }).unref?.();
    }
    return nowMs;
  }
}
