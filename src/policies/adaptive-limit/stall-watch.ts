/**
 * Stall watch: how long this process itself was too busy to notice anything.
 *
 * Promise: a timer is pending only while somebody waits for a call, and it keeps no process alive. An answer that lay waiting while the event loop was blocked is told
 * from a slow one, also when it is handled before the late timer.
 */
import { type Clock, Timer } from '../../core/clock.js';

const everyMs = 20;
/** Timers of the platform come up to a few milliseconds late without anybody being blocked. */
const graceMs = 10;

export class StallWatch extends Timer {
  /** All the time that was lost so far, in milliseconds. */
  private totalMs = 0;
  private dueMs = 0;
  private clock: Clock | undefined = undefined;

  /** Begins or goes on to watch. Answers the time lost so far. */
  startedMs(clock: Clock, nowMs: number): number {
    if (this.clock === undefined) {
      this.clock = clock.background ?? clock;
      this.arm(nowMs);
    }
    return this.lostMs(nowMs);
  }

  /** The time lost so far, the stall that is just over included. */
  lostMs(nowMs: number): number {
    const lateMs = nowMs - this.dueMs;
    return this.clock !== undefined && lateMs > graceMs ? this.totalMs + lateMs : this.totalMs;
  }

  stop(): void {
    this.clock?.cancel(this);
    this.clock = undefined;
  }

  override expire(): void {
    if (this.clock === undefined) return;
    const nowMs = this.clock.now();
    this.totalMs = this.lostMs(nowMs);
    this.arm(nowMs);
  }

  private arm(nowMs: number): void {
    this.dueMs = nowMs + everyMs;
    this.clock?.schedule(this, this.dueMs);
  }
}
