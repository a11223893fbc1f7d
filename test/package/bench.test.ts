/** The bench can be run: that is done by hand and rarely, so nothing else would tell that a table cannot be loaded or measured. */
import { expect, it } from 'vitest';
import { checkout, run } from './consumer.ts';

it('loads all tables of the bench, and says their names', async () => {
  const refused = run(process.execPath, ['bench/run.ts', 'no-such-table'], checkout);
  await expect(refused).rejects.toMatchObject({
    code: 2,
    stderr: expect.stringMatching(/^unknown table no-such-table; there are .*\bretry\b.*\bpostgres-write\b/),
  });
});

// One of the few tables with only two contenders: each is a process of its own that loads all tables and warms up.
it('measures a table', async () => {
  const { stdout } = await run(process.execPath, ['bench/run.ts', 'memory-read', '--rounds=1'], checkout);
  expect(stdout).toMatch(/^holdfast.*\d/m);
});
