/**
 * Turn clock: the time for what is done so often that a look at the clock would be most of its cost.
 *
 * Promise: what it answers is not from before this turn of the event loop. Few reads are exact, and so is a clock that is not the
 * system's, or a platform that tells nobody when a turn ends. What goes by it may be as late as a turn is long.
 */
import { type Clock, systemClock } from './clock.js';
import { atTickEnd } from './event-loop.js';

/** So many reads within a millisecond are worth being told when the turn ends. */
const readsWorthTelling = 16;

/** The time as of this turn of the event loop at the earliest. */
export interface Turns {
  now(): number;
  /** A number of this turn's own, while the time stands still in it; 0 or none while every look is at the clock. */
  readonly turn?: number;
}

class TurnClock implements Turns {
  turn = 0;
  private turns = 0;
  /** What is answered until the turn ends; 0: nothing is held. */
  private heldMs = 0;
  private sinceMs = Number.NEGATIVE_INFINITY;
  private reads = 0;
  /** The last answer of `epoch`, and for which width; 0: none of this turn. */
  private epochWidthMs = 0;
  private lastEpoch = 0;
  private readonly letGo = () => {
    this.heldMs = 0;
    this.turn = 0;
    this.reads = 0;
    this.epochWidthMs = 0;
  };

  now(): number {
    const { heldMs } = this;
    return heldMs > 0 ? heldMs : this.read();
  }

  epoch(widthMs: number): number {
    if (widthMs === this.epochWidthMs) return this.lastEpoch;
    const epoch = Math.floor(this.now() / widthMs);
    if (this.turn !== 0) {
      this.epochWidthMs = widthMs;
      this.lastEpoch = epoch;
    }
    return epoch;
  }

  private read(): number {
    const nowMs = systemClock.now();
    if (nowMs - this.sinceMs >= 1) {
      this.sinceMs = nowMs;
      this.reads = 0;
      // Fake timers of a test may stand in its place: they hold back what they are told.
    } else if (++this.reads === readsWorthTelling && atTickEnd !== undefined && atTickEnd === process.nextTick) {
      this.heldMs = nowMs;
      // It may wrap around: nobody looks back that far.
      this.turns = (this.turns % 1_000_000_000) + 1;
      this.turn = this.turns;
      atTickEnd(this.letGo);
    }
    return nowMs;
  }
}

const ofSystem = /* @__PURE__ */ new TurnClock();

/**
 * The number of the time span at hand, where all are equally wide. In a turn in which the time stands still it is looked up and not
 * computed: an instant is a number with a fraction, which takes 16 bytes wherever it is passed on.
 */
export function epochOfTurn(clock: Clock, widthMs: number): number {
  return clock === systemClock ? ofSystem.epoch(widthMs) : Math.floor(clock.now() / widthMs);
}

/** What tells the time of this turn by a clock; of the system's there is one for all. */
export function turnClockOf(clock: Clock): Turns {
  return clock === systemClock ? ofSystem : clock;
}
