/**
 * Ends a test that a mutant lets wait in vain.
 *
 * It counts turns of the event loop instead of time: on a busy machine, a test that is merely late is not taken for one that hangs.
 */
import { type RunnerTestCase, TestRunner } from 'vitest';

const turnMs = 20;
const mostTurns = Number(process.env.HOLDFAST_HANGS_AFTER_MS ?? 20_000) / turnMs;
// Tests replace the global ones.
const { setInterval, clearInterval } = globalThis;

export default class extends TestRunner {
  async runTask(test: RunnerTestCase): Promise<void> {
    let turns = 0;
    let interval: ReturnType<typeof setInterval> | undefined;
    const hangs = new Promise<never>((_, reject) => {
      interval = setInterval(() => {
        if (++turns > mostTurns) reject(new Error('the test waits in vain'));
      }, turnMs);
    });
    try {
      await Promise.race([TestRunner.getTestFn(test)(), hangs]);
    } finally {
      clearInterval(interval);
    }
  }
}
