/** The unit tests as `npm run mutation` runs them, against one mutant at a time. */
import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vitest/config';
import { BaseSequencer, type TestSpecification } from 'vitest/node';
import { viteLowering } from './tools/lowering.ts';

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));

/** A run stops at the first failing test, so tests that draw thousands of worlds, or simulate crowds, run after those that take milliseconds. */
class QuickFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const isSlow = ({ moduleId }: TestSpecification) =>
      Number(/\/(composition\/|field-faults|mutex\/queue)/.test(moduleId));
    return files.sort((one, other) => isSlow(one) - isSlow(other) || one.moduleId.localeCompare(other.moduleId));
  }
}

export default defineConfig({
  plugins: [viteLowering(here('./src'))],
  resolve: {
    alias: [
      { find: /^holdfast$/, replacement: here('./src/index.ts') },
      { find: /^holdfast\/testing$/, replacement: here('./src/testing/index.ts') },
    ],
  },
  test: {
    include: process.env.HOLDFAST_TESTS?.split(',') ?? [],
    pool: 'threads',
    // A thread per test file would cost more than the tests.
    isolate: false,
    sequence: { sequencer: QuickFirst },
    runner: 'tools/proof/mutation-runner.ts',
    // The runner ends a test that hangs.
    testTimeout: 120_000,
    hookTimeout: 30_000,
    // A condition that a mutant never meets must not be awaited for as long as a slow machine is granted.
    expect: { poll: { timeout: 5_000, interval: 10 } },
    setupFiles: ['tools/proof/mutation-setup.ts'],
    env: {
      HOLDFAST_MODEL_STEPS: '10000',
      HOLDFAST_FUSION_RUNS: '200',
      HOLDFAST_FUZZ_RUNS: '2000',
      HOLDFAST_CROWD_MS: '500',
    },
  },
});
