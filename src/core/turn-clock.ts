/**
 * Turn clock: the time for operations so frequent that reading the clock would be most of their cost.
 *
 * Promise: the time returned is never older than the current event loop turn. With few reads it is exact, and also with a clock other than the
 * system's or on a platform that does not report the end of a turn. What relies on it may be late by the length of one turn.
 */
import { type Clock, systemClock } from './clock.js';
import { atTickEnd } from './event-loop.js';

/** From this many reads within a millisecond on, it pays to be told when the turn ends. */
const readsWorthTelling = 16;

/** Returns a time that is no older than the current event loop turn. */
export interface Turns {
  now(): number;
  /** An id of the current turn while its time is held; 0 or absent while every read goes to the clock. */
  readonly turn?: number;
}

class TurnClock implements Turns {
  turn = 0;
  private turns = 0;
  /** The time returned until the turn ends; 0 if none is held. */
  private heldMs = 0;
  private sinceMs = Number.NEGATIVE_INFINITY;
  private reads = 0;
  /** The last result of `epoch` and its width; 0 if there is none in this turn. */
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
      // A test's fake timers may have replaced it; they hold tasks back.
    } else if (++this.reads === readsWorthTelling && atTickEnd !== undefined && atTickEnd === process.nextTick) {
      this.heldMs = nowMs;
      // The id may wrap around: nobody compares turns that far apart.
      this.turns = (this.turns % 1_000_000_000) + 1;
      this.turn = this.turns;
      atTickEnd(this.letGo);
    }
    return nowMs;
  }
}

const ofSystem = /* @__PURE__ */ new TurnClock();

/**
 * The index of the current time span, where all spans have the same width. While the time is held for a turn, the index is cached instead of
 * computed: an instant is a number with a fraction and takes 16 bytes wherever it is passed on.
 */
export function epochOfTurn(clock: Clock, widthMs: number): number {
  return clock === systemClock ? ofSystem.epoch(widthMs) : Math.floor(clock.now() / widthMs);
}

/** The turn clock of a clock. There is one for the system clock, shared by all. */
export function turnClockOf(clock: Clock): Turns {
  return clock === systemClock ? ofSystem : clock;
}
