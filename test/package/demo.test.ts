/** The demo as it is installed: in virtual time it prints what the README says, on every machine. */
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { promisify } from 'node:util';
import { describe, expect, it } from 'vitest';
import { provide, runtimes } from '../../tools/gates/runtimes.ts';

const run = promisify(execFile);
const oldest = await provide(runtimes[0]!);
const mustHaveAll = process.env.CI === 'true';

describe('holdfast demo', () => {
  it('prints in virtual time what the README shows', { timeout: 180_000 }, async () => {
    const readme = readFileSync('README.md', 'utf8');
    const shown = /npx holdfast demo --sim --seed 7\n```\n\n```text\n([\s\S]*?)\n```/.exec(readme)?.[1];
    const { stdout } = await run(process.execPath, ['dist/cli.js', 'demo', '--sim', '--seed', '7']);
    const table = stdout.slice(stdout.indexOf('\nact ') + 1).trim();
    // The last column is left out: why.
    const lines = table.split('\n\n')[0]!.split('\n');
    const width = lines[0]!.indexOf('why');
    const withoutCauses = lines.map((line) => line.slice(0, width).trimEnd()).join('\n');
    expect(shown).toBe(withoutCauses);
  });

  it('refuses what it does not know, and says how it is called', async () => {
    const wrong = run(process.execPath, ['dist/cli.js', 'demo', '--fast']);
    await expect(wrong).rejects.toMatchObject({ code: 2, stderr: expect.stringContaining('Usage: holdfast demo') });
  });

  it.skipIf(oldest === undefined && !mustHaveAll)(
    'needs no SQLite: on the oldest Node its processes share the memory of one of them',
    { timeout: 120_000 },
    async () => {
      const { stdout } = await run(oldest!, ['dist/cli.js', 'demo', '--quick']);
      expect(stdout).toContain('The protected path kept its word in all 4 rows that were judged.');
    },
  );
});
