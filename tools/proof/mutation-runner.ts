/**
 * Ends a test that a mutant lets wait in vain.
 *
 * It counts turns of the event loop instead of time: on a busy machine, a test that is merely late is not taken for one that hangs. Nor is one that
 * computes for long: only turns in which the loop mostly had nothing to do count in full, others as a tenth.
 */
import { performance } from 'node:perf_hooks';
import { type RunnerTestCase, TestRunner } from 'vitest';

const turnMs = 20;
const mostTurns = Number(process.env.HOLDFAST_HANGS_AFTER_MS ?? 20_000) / turnMs;
// Tests replace the global ones.
const { setInterval, clearInterval } = globalThis;

export default class extends TestRunner {
  async runTask(test: RunnerTestCase): Promise<void> {
    let turns = 0;
    let interval: ReturnType<typeof setInterval> | undefined;
    let before = performance.eventLoopUtilization();
    const hangs = new Promise<never>((_, reject) => {
      interval = setInterval(() => {
        const now = performance.eventLoopUtilization();
        turns += performance.eventLoopUtilization(now, before).utilization < 0.5 ? 1 : 0.1;
        before = now;
        if (turns > mostTurns) reject(new Error('the test waits in vain'));
      }, turnMs);
    });
    try {
      await Promise.race([TestRunner.getTestFn(test)(), hangs]);
    } finally {
      clearInterval(interval);
    }
  }
}
