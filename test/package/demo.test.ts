/** The demo as it is installed. In virtual time it prints what the README says, on every machine. */
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { promisify } from 'node:util';
import { describe, expect, it } from 'vitest';

const run = promisify(execFile);

describe('holdfast demo', () => {
  it('prints in virtual time what the README shows', async () => {
    const readme = readFileSync('README.md', 'utf8');
    const shown = /npx holdfast demo --sim --seed 7\n```\n\n```text\n([\s\S]*?)\n```/.exec(readme)?.[1];
    const { stdout } = await run(process.execPath, ['dist/cli.js', 'demo', '--sim', '--seed', '7']);
    const table = stdout.slice(stdout.indexOf('\nact ') + 1).trim();
    expect(table.split('\n\n')[0]).toBe(shown);
  });

  it('refuses what it does not know, and says how it is called', async () => {
    const wrong = run(process.execPath, ['dist/cli.js', 'demo', '--fast']);
    await expect(wrong).rejects.toMatchObject({ code: 2, stderr: expect.stringContaining('holdfast demo [--quick]') });
  });
});
