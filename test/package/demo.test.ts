/** The demo as it is installed. In virtual time it prints what the README says, on every machine. */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { afterEach, describe, expect, it, vi } from 'vitest';

const run = promisify(execFile);

let demos: ChildProcess[] = [];
afterEach(() => {
  for (const demo of demos) demo.kill('SIGKILL');
  demos = [];
});

/** Starts a demo and collects what it prints. */
function start(args: readonly string[]) {
  // In its own process group, as a shell starts it.
  const demo = spawn(process.execPath, ['dist/cli.js', 'demo', ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    detached: true,
  });
  demos.push(demo);
  const exit = once(demo, 'exit').then(([code, signal]) => code ?? signal);
  let text = '';
  demo.stdout.setEncoding('utf8').on('data', (more) => {
    text += more;
  });
  let complaints = '';
  demo.stderr.setEncoding('utf8').on('data', (more) => {
    complaints += more;
  });
  const said = async (pattern: RegExp) => {
    await vi.waitUntil(() => pattern.test(text) || demo.exitCode !== null, { timeout: 60_000 });
    const found = pattern.exec(text);
    if (found === null) throw new Error(`the demo ended with ${demo.exitCode} and did not say ${pattern}: ${text}`);
    return found;
  };
  return { demo, pid: demo.pid!, exit, said, text: () => text, complaints: () => complaints };
}

/** The processes of a demo's group that still run. */
function left(group: number): string[] {
  return readdirSync('/proc').filter((pid) => {
    if (!/^\d+$/.test(pid)) return false;
    try {
      // After the name, which is in parentheses: state, parent, group.
      const [state, , itsGroup] = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ').at(-1)!.split(' ');
      return itsGroup === String(group) && state !== 'Z';
    } catch {
      // It has ended meanwhile.
      return false;
    }
  });
}

describe('holdfast demo', () => {
  it('prints in virtual time what the README shows', async () => {
    const readme = readFileSync('README.md', 'utf8');
    const shown = /npx holdfast demo --sim --seed 7\n```\n\n```text\n([\s\S]*?)\n```/.exec(readme)?.[1];
    const { stdout } = await run(process.execPath, ['dist/cli.js', 'demo', '--sim', '--seed', '7']);
    const table = stdout.slice(stdout.indexOf('\nact ') + 1).trim();
    expect(table.split('\n\n')[0]).toBe(shown);
  });

  it.each([
    [['--fast'], "Unknown option '--fast'"],
    [['--shop', 'none.js'], '--shop: there is no file "none.js"'],
  ])('refuses what it does not know, and says how it is called: %j', async (words, complaint) => {
    const wrong = run(process.execPath, ['dist/cli.js', 'demo', ...words]);
    await expect(wrong).rejects.toMatchObject({ code: 2, stderr: expect.stringContaining('holdfast demo [--quick]') });
    await expect(wrong).rejects.toMatchObject({ stderr: expect.stringContaining(complaint) });
  });

  it('judges what must never happen when buttons were pressed, says so, and ends although a worker was killed twice', async () => {
    const { exit, said, text } = start(['--quick']);
    const [, address] = await said(/(http:\S+)/);
    const press = async (fault: string) => {
      const { status } = await fetch(`${address}faults/${fault}`, { method: 'POST' });
      expect(status).toBe(204);
    };
    await said(/^hot key: /m);
    await press('kill');
    await sleep(400);
    await press('kill');
    await said(/^kill -9: /m);
    await press('slow');
    expect(await exit).toBe(0);
    // Without a terminal, lines say what is redrawn in one.
    expect(text()).toMatch(
      /^ {2}1 s, naked and protected: loads per expiry \d.* and \d.*, users waiting \d+ and \d+$/m,
    );
    expect(text()).toContain('A button of the page was pressed in hot key, kill -9: ');
    expect(text()).toMatch(/^hot key +loads per expiry .* not judged$/m);
    expect(text()).toMatch(/^kill -9 +cards charged twice .*\d$/m);
    expect(text()).toMatch(/^double click, cards charged twice: checking before charging/m);
    expect(text()).toMatch(/in all 4 rows that were judged/);
  });

  it.skipIf(process.platform !== 'linux')(
    'that is killed leaves no process behind, not even the owner of a lock that is frozen',
    async () => {
      const { demo, pid, said } = start(['--quick']);
      await said(/^frozen: /m);
      await sleep(1_000);
      expect(left(pid).length).toBeGreaterThan(8);
      demo.kill('SIGKILL');
      await vi.waitFor(() => expect(left(pid)).toEqual([]), { timeout: 20_000, interval: 100 });
    },
  );

  it.skipIf(process.platform !== 'linux')('ends at once when it is told to while its processes start', async () => {
    const { demo, pid, exit } = start(['--quick']);
    // The first of them.
    await vi.waitUntil(() => left(pid).length > 1, { timeout: 20_000, interval: 5 });
    demo.kill('SIGTERM');
    expect(await exit).toBe(130);
    expect(left(pid)).toEqual([]);
  });

  it.skipIf(process.platform !== 'linux')(
    'that is killed while its processes start leaves none, and none complains',
    async () => {
      const { demo, pid, exit, complaints } = start(['--quick']);
      await vi.waitUntil(() => left(pid).length > 1, { timeout: 20_000, interval: 5 });
      demo.kill('SIGKILL');
      await exit;
      await vi.waitFor(() => expect(left(pid)).toEqual([]), { timeout: 20_000, interval: 100 });
      expect(complaints()).toBe('');
    },
  );

  it.skipIf(process.platform !== 'linux')(
    'calls it an interruption when a supervisor signals its whole group',
    async () => {
      const { pid, exit, said, text } = start(['--quick']);
      await said(/^hot key: /m);
      process.kill(-pid, 'SIGTERM');
      expect(await exit).toBe(130);
      expect(text()).toMatch(/The demo stopped: SIGTERM received\n$/);
      expect(left(pid)).toEqual([]);
    },
  );

  it('ends in virtual time, too, when nobody reads its output', async () => {
    const { demo, exit, said } = start(['--sim']);
    await said(/^brown-out: /m);
    demo.stdout!.destroy();
    expect(await exit).toBe(130);
  });
});
