/** The built package under Node's own test runner. `holdfast/testing` does not need vitest. */
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { describe, expect, it } from 'vitest';

const run = promisify(execFile);
const fixture = fileURLToPath(new URL('node-test-fixture.mjs', import.meta.url));

interface Outcome {
  readonly code: number;
  readonly output: string;
}

/** Runs `node --test` on the fixture as a user would, without the variables that this test runner added to the environment. */
async function nodeTest(environment: Record<string, string> = {}): Promise<Outcome> {
  const { NODE_TEST_CONTEXT: _context, NODE_OPTIONS: _options, HOLDFAST_SEED: _seed, ...inherited } = process.env;
  const options = { env: { ...inherited, ...environment } };
  return run(process.execPath, ['--test', '--test-reporter=tap', fixture], options).then(
    ({ stdout }) => ({ code: 0, output: stdout }),
    (error: { code: number; stdout: string }) => ({ code: error.code, output: error.stdout }),
  );
}

describe('holdfast/testing under node:test', () => {
  it('passes what holds', async () => {
    const { code, output } = await nodeTest();
    expect(output).toContain('# pass 3');
    expect(code).toBe(0);
  });

  it('prints the seed and how to replay it when a promise is broken, and the seed repeats it', async () => {
    const { code, output } = await nodeTest({ PLANT_BUG: 'yes' });
    expect(code).not.toBe(0);
    const seed = /HOLDFAST_SEED=(\d+)/.exec(output)?.[1];
    const digest = /digest ([0-9a-f]{16})/.exec(output)?.[1];
    expect(seed).toBeDefined();
    const again = await nodeTest({ PLANT_BUG: 'yes', HOLDFAST_SEED: seed! });
    expect(again.output).toContain(`seed ${seed}`);
    expect(again.output).toContain(`digest ${digest}`);
  });
});
