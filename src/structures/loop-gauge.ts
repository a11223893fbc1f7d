/**
 * Loop gauge: how late the event loop of this thread is, and how busy.
 *
 * Promise: it samples only while it is asked or the loop is late: its timer ends with the first sample in time, and does not keep the process alive. An overdue
 * sample shows a blocked loop before the loop itself can report it. If the platform does not report how busy its loop is, the answer is 0.
 */

/** What the gauge needs from the platform. */
export interface LoopPlatform {
  /** Calls back after this many milliseconds, without keeping the process alive. */
  later(then: () => void, ms: number): void;
  /** Milliseconds for which the loop has been idle and busy since it began. */
  times(): { readonly idle: number; readonly active: number } | undefined;
}

/** Its answers are about an instant of real, monotonic time, in milliseconds. */
export interface LoopGauge {
  /** Milliseconds by which the loop is late, or was at the last sample. */
  delayMs(nowMs: number): number;
  /** The share of time for which the loop is busy, from 0 to 1. */
  utilization(nowMs: number): number;
}

/** Often enough to see a blocked loop, rarely enough to cost nothing. 10 ms is also the default of Node's histogram. */
const lookMs = 10;
/** A sample that is not later than this shows a loop that is in time: timers are as late as that on an idle loop. */
const inTimeMs = 1;
/** The shortest time for which a share is meaningful. */
const shareMs = 250;

const unknownTimes = { idle: 0, active: 0 };

/** A gauge on a platform, and on the clock of its questions. */
export function loopGauge(platform: LoopPlatform, now: () => number): LoopGauge {
  let dueMs = Number.POSITIVE_INFINITY;
  let lastDelayMs = 0;
  let sharedMs = Number.NEGATIVE_INFINITY;
  let times = unknownTimes;
  let share = 0;
  const lookFrom = (nowMs: number) => {
    dueMs = nowMs + lookMs;
    platform.later(look, lookMs);
  };
  const look = () => {
    const nowMs = now();
    lastDelayMs = Math.max(0, nowMs - dueMs);
    dueMs = Number.POSITIVE_INFINITY;
    // Samples are taken right after a call began, when its own work may block the loop. The delay must not outlast that work until the next call.
    if (lastDelayMs > inTimeMs) lookFrom(nowMs);
  };

  return {
    delayMs(nowMs) {
      if (dueMs === Number.POSITIVE_INFINITY) lookFrom(nowMs);
      return Math.max(lastDelayMs, nowMs - dueMs);
    },
    utilization(nowMs) {
      if (nowMs - sharedMs < shareMs) return share;
      const before = times;
      times = platform.times() ?? unknownTimes;
      const active = times.active - before.active;
      const passed = active + times.idle - before.idle;
      // The first sample would cover the start of the process.
      share = before !== unknownTimes && passed > 0 ? active / passed : 0;
      sharedMs = nowMs;
      return share;
    },
  };
}

/** The event loop of this thread. */
export const threadLoop: LoopPlatform = {
  later(then, ms) {
    const timer: unknown = setTimeout(then, ms);
    (timer as { unref?(): void }).unref?.();
  },
  times: () => globalThis.performance?.eventLoopUtilization?.(),
};
