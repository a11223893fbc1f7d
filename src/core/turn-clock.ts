/**
 * Turn clock: the time for what is done so often that a look at the clock would be most of its cost.
 *
 * Promise: what it answers is not from before this turn of the event loop. Few reads are exact, and so is a clock that is not the
 * system's, or a platform that tells nobody when a turn ends. What goes by it may be as late as a turn is long.
 */
import { type Clock, systemClock } from './clock.js';

/** So many reads within a millisecond are worth being told when the turn ends. */
const readsWorthTelling = 16;
/** Comes when all that is to be done in this turn is done. No timer: on some platforms those end with the request that set them. */
const atTurnEnd: ((task: () => void) => void) | undefined = globalThis.process?.nextTick;

class TurnClock {
  /** What is answered until the turn ends; 0: nothing is held. */
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
      // Fake timers of a test may stand in its place: they hold back what they are told.
    } else if (++this.reads === readsWorthTelling && atTurnEnd !== undefined && atTurnEnd === process.nextTick) {
      this.heldMs = nowMs;
      atTurnEnd(this.letGo);
    }
    return nowMs;
  }
}

const ofSystem = /* @__PURE__ */ new TurnClock();

/** What tells the time of this turn by a clock; of the system's there is one for all. */
export function turnClockOf(clock: Clock): { now(): number } {
  return clock === systemClock ? ofSystem : clock;
}
