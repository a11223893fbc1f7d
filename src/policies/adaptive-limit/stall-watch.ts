/**
 * Stall watch: measures how long this process itself was too busy to notice anything.
 *
 * Promise: a timer is pending only while somebody waits for a call, and it does not keep the process alive. An answer that arrived while the event
 * loop was blocked is told apart from a slow one, even if it is handled before the late timer.
 */
import { type Clock, Timer } from '../../core/clock.js';

const everyMs = 20;
/** Platform timers can be a few milliseconds late without a blocked event loop. */
const graceMs = 10;

export class StallWatch extends Timer {
  /** Total time lost so far, in milliseconds. */
  private totalMs = 0;
  private dueMs = 0;
  private clock: Clock | undefined = undefined;

  /** Starts watching, or continues. Returns the time lost so far. */
  startedMs(clock: Clock, nowMs: number): number {
    if (this.clock === undefined) {
      this.clock = clock.background ?? clock;
      this.arm(this.clock, nowMs);
    }
    return this.lostMs(nowMs);
  }

  /** The time lost so far, including a stall that has just ended. */
  lostMs(nowMs: number): number {
    const lateMs = nowMs - this.dueMs;
    return this.clock !== undefined && lateMs > graceMs ? this.totalMs + lateMs : this.totalMs;
  }

  stop(): void {
    this.clock?.cancel(this);
    this.clock = undefined;
  }

  override expire(): void {
    const { clock } = this;
    if (clock === undefined) return;
    const nowMs = clock.now();
    this.totalMs = this.lostMs(nowMs);
    this.arm(clock, nowMs);
  }

  private arm(clock: Clock, nowMs: number): void {
    this.dueMs = nowMs + everyMs;
    clock.schedule(this, this.dueMs);
  }
}
