/**
 * Loop gauge: how late the event loop of this thread is, and how busy.
 *
 * Promise: it samples only while it is asked: its timer outlives the last question by at most one sample, and does not keep the process alive. An overdue
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
/** An older sample says nothing about the present. */
const staleMs = 1_000;
/** The shortest time for which a share is meaningful. */
const shareMs = 250;

const unknownTimes = { idle: 0, active: 0 };

/** A gauge on a platform, and on the clock of its questions. */
export function loopGauge(platform: LoopPlatform, now: () => number): LoopGauge {
  let dueMs = Number.POSITIVE_INFINITY;
  let lookedMs = Number.NEGATIVE_INFINITY;
  let lastDelayMs = 0;
  let sharedMs = Number.NEGATIVE_INFINITY;
  let times = unknownTimes;
  let share = 0;
  const look = () => {
    lookedMs = now();
    lastDelayMs = Math.max(0, lookedMs - dueMs);
    dueMs = Number.POSITIVE_INFINITY;
  };

  return {
    delayMs(nowMs) {
      if (dueMs === Number.POSITIVE_INFINITY) {
        dueMs = nowMs + lookMs;
        platform.later(look, lookMs);
      }
      const seenMs = nowMs - lookedMs < staleMs ? lastDelayMs : 0;
      return Math.max(seenMs, nowMs - dueMs);
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
