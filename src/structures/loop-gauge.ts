/**
 * Loop gauge: how late the event loop of this thread is, and how busy.
 *
 * Promise: it looks only while it is asked: no timer outlives the last question by more than a look, and none keeps the
 * process alive. A look that is overdue tells of a blocked loop before the loop comes to tell it itself. Where the
 * platform does not tell how busy its loop is, the answer is 0.
 */

/** What the gauge takes from the platform. */
export interface LoopPlatform {
  /** Calls back after this many milliseconds, and keeps no process alive for it. */
  later(then: () => void, ms: number): void;
  /** Milliseconds that the loop was idle and busy, since it began. */
  times(): { readonly idle: number; readonly active: number } | undefined;
}

/** Answers of a gauge are about a moment of real time, monotonic, in milliseconds. */
export interface LoopGauge {
  /** Milliseconds that the loop is late, or was at the last look. */
  delayMs(nowMs: number): number;
  /** Share of the time that the loop is busy, from 0 to 1. */
  utilization(nowMs: number): number;
}

/** Often enough to see a blocked loop, seldom enough not to cost anything: 10 ms is also the histogram's default in Node. */
const lookMs = 10;
/** A look that is older says nothing of now. */
const staleMs = 1_000;
/** The shortest time over which a share of it means anything. */
const shareMs = 250;

const unknownTimes = { idle: 0, active: 0 };

/** A gauge on a platform, and on the clock that its questions are about. */
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
      // The first look would tell of the start of the process.
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
