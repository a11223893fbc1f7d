/**
 * Turn clock: the time for what is done so often that a look at the clock would be most of its cost.
 *
 * Promise: what it answers is not from before this turn of the event loop, or at most a millisecond old; few reads, and a clock that
 * is not the system's, are exact. What goes by it may be so much late, and never sees time go back.
 */
import { type Clock, systemClock } from './clock.js';

/** So many reads within a millisecond are worth a timer that ends the answer's life. */
const readsWorthATimer = 16;
// The platform's own, as the system's clock has it: under fake timers of a test it would stand still.
const setTimer = globalThis.setTimeout;

class TurnClock {
  /** What is answered until the timer fires; 0: nothing is held. */
  private heldMs = 0;
  private sinceMs = Number.NEGATIVE_INFINITY;
  private reads = 0;
  private readonly letGo = () => {
    this.heldMs = 0;
    this.reads = 0;
  };

  now(): number {
    const { heldMs } = this;
    return heldMs > 0 ? heldMs : this.read();
  }

  private read(): number {
    const nowMs = systemClock.now();
    if (nowMs - this.sinceMs >= 1) {
      this.sinceMs = nowMs;
      this.reads = 0;
    } else if (++this.reads === readsWorthATimer) {
      this.heldMs = nowMs;
      const timer: unknown = setTimer(this.letGo, 1);
      // Where a timer is a number there is no process to keep.
      (timer as { unref?(): void }).unref?.();
    }
    return nowMs;
  }
}

const ofSystem = /* @__PURE__ */ new TurnClock();

/** What tells the time of this turn by a clock; of the system's there is one for all. */
export function turnClockOf(clock: Clock): { now(): number } {
  return clock === systemClock ? ofSystem : clock;
}
