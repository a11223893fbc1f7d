import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vitest/config';
import { BaseSequencer, type TestSpecification } from 'vitest/node';
import { viteLowering } from './tools/lowering.ts';

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const shared = {
  plugins: [viteLowering(here('./src'))],
  resolve: {
    alias: [
      { find: /^holdfast$/, replacement: here('./src/index.ts') },
      { find: /^holdfast\/testing$/, replacement: here('./src/testing/index.ts') },
    ],
  },
};

/** A property test draws a new seed each time, so a second try could not repeat what the first one found. */
const retry = process.env.CI ? { count: 1, condition: /^(?!Property failed)/ } : 0;

/**
 * What all unit tests share. Many wait for real servers, processes and real time, on machines that do other work as well; a condition that is met at
 * once ends the wait. Each project states how many files run at a time: more than there are cores, because most of the time is spent waiting. Otherwise,
 * on two cores the files of the second project would run one by one, and on eight vitest would refuse it beside the first.
 */
const unit = {
  maxWorkers: 4,
  testTimeout: 180_000,
  hookTimeout: 240_000,
  expect: { poll: { timeout: 60_000, interval: 10 } },
  retry,
};

const inProcesses = ['test/stores/redis-matrix.test.ts', 'test/stores/postgres-faults.test.ts'];

/**
 * The files that take longest begin first. Otherwise the largest would, one project after the other, and the last few minutes would be those of a file or
 * two that kill servers: short to read, long to run.
 */
class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const long = /\/contracts\/|\/[\w-]*(processes|failover|faults|kills|matrix|shops|laws|docs|demo|page)\.test\.ts$/;
    const group = ({ project }: TestSpecification) => project.config.sequence.groupOrder;
    const place = ({ moduleId }: TestSpecification) => (long.test(moduleId) ? 0 : 1);
    const sorted = await super.sort(files);
    return sorted.sort((one, other) => group(one) - group(other) || place(one) - place(other));
  }
}

export default defineConfig({
  test: {
    sequence: { sequencer: LongestFirst },
    // If a connection breaks at the wrong moment, postgres.js 3.4 writes to a socket that is gone, and nobody can catch the error.
    onUnhandledError: ({ stack }) => (stack?.includes('node_modules/postgres/src/connection.js') ? false : undefined),
    projects: [
      {
        ...shared,
        test: {
          ...unit,
          name: 'unit',
          include: ['test/**/*.test.ts'],
          exclude: ['test/package/**', ...inProcesses],
          pool: 'threads',
          typecheck: {
            enabled: true,
            checker: 'node_modules/ts7/bin/tsc',
            include: ['test/types/**/*.test-d.ts'],
            tsconfig: 'tsconfig.json',
          },
        },
      },
      {
        ...shared,
        // A thread that has cut thousands of connections does not always end; a process can be killed.
        test: { ...unit, name: 'unit in processes', include: inProcesses, pool: 'forks' },
      },
      {
        test: {
          name: 'package',
          include: ['test/package/**/*.test.ts'],
          testTimeout: 240_000,
          retry,
          hookTimeout: 240_000,
          // After the others: what is measured and shown here uses both cores for a moment.
          maxWorkers: 3,
          sequence: { groupOrder: 1 },
        },
      },
    ],
  },
});
