import { execFileSync } from 'node:child_process';
import { describe, expect, it, vi } from 'vitest';
import { callbackTimer, pipeline, systemClock, timeout } from '../../src/index.js';

const nextTurn = () => new Promise(setImmediate);
const platformTimers = () => process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length;

describe('systemClock', () => {
  it('fires timers in order and never early', async () => {
    const startedMs = systemClock.now();
    const fired: [number, number][] = [];
    await Promise.all(
      [12, 3, 7, 3, 1].map(
        (afterMs) =>
          new Promise<void>((resolve) => {
            const timer = callbackTimer(() => {
              fired.push([afterMs, systemClock.now() - startedMs]);
              resolve();
            });
            systemClock.schedule(timer, startedMs + afterMs);
          }),
      ),
    );
    expect(fired.map(([afterMs]) => afterMs)).toEqual([1, 3, 3, 7, 12]);
    for (const [afterMs, elapsedMs] of fired) expect(elapsedMs).toBeGreaterThanOrEqual(afterMs);
  });

  it('fires no timer that was taken back, and moves one that is scheduled again', async () => {
    const fired: string[] = [];
    const startedMs = systemClock.now();
    const taken = callbackTimer(() => fired.push('taken back'));
    systemClock.schedule(taken, startedMs + 1);
    systemClock.cancel(taken);
    systemClock.cancel(taken);
    await new Promise<void>((resolve) => {
      const moved = callbackTimer(() => {
        fired.push('moved');
        resolve();
      });
      systemClock.schedule(moved, startedMs + 60_000);
      systemClock.schedule(moved, startedMs + 4);
    });
    expect(fired).toEqual(['moved']);
  });

  it('holds one platform timer for ten thousand calls, and none a turn after the last has ended', async () => {
    const before = platformTimers();
    const quick = pipeline(timeout('1m'));
    const finish: (() => void)[] = [];
    const running = Array.from({ length: 10_000 }, () =>
      quick.execute(() => new Promise<void>((resolve) => finish.push(resolve))),
    );
    expect(platformTimers()).toBe(before + 1);
    for (const end of finish) end();
    await Promise.all(running);
    await nextTurn();
    expect(platformTimers()).toBe(before);
  });

  it('is that of the platform also when its first use falls under fake timers, and after them', async () => {
    vi.resetModules();
    const fresh = await import('../../src/index.js');
    const begin = performance.now();
    vi.useFakeTimers();
    try {
      vi.advanceTimersByTime(3_600_000);
      expect(fresh.systemClock.now() - begin).toBeLessThan(3_600_000);
      expect(await fresh.pipeline(fresh.timeout(2)).attempt(() => new Promise(() => {}))).toMatchObject({ ok: false });
    } finally {
      vi.useRealTimers();
    }
    expect(await fresh.pipeline(fresh.timeout(2)).attempt(() => new Promise(() => {}))).toMatchObject({ ok: false });
  });

  it('shows the wall time of the platform', () => {
    expect(Math.abs(systemClock.wallNow() - Date.now())).toBeLessThan(1_000);
  });
});

describe('a process', () => {
  const run = (script: string) => {
    const startedMs = Date.now();
    const source = `import { pipeline, timeout } from ${JSON.stringify(new URL('../../dist/index.js', import.meta.url).href)};${script}`;
    const output = execFileSync(process.execPath, ['--input-type=module', '--eval', source], {
      encoding: 'utf8',
      timeout: 20_000,
    });
    return { output, elapsedMs: Date.now() - startedMs };
  };

  it('stays alive for a timeout that a call waits for', () => {
    expect(
      run('pipeline(timeout(40)).attempt(() => new Promise(() => {})).then(({ error }) => console.log(error.code));')
        .output,
    ).toBe('ERR_TIMEOUT\n');
  });

  it('ends when no call waits, whatever its timeouts were', () => {
    const { output, elapsedMs } = run("await pipeline(timeout('1m')).execute(() => 1); console.log('done');");
    expect(output).toBe('done\n');
    expect(elapsedMs).toBeLessThan(15_000);
  });

  it('ends although the background still waits for something', () => {
    const { output, elapsedMs } = run(`
      import { callbackTimer, systemClock } from ${JSON.stringify(new URL('../../dist/index.js', import.meta.url).href)};
      const { background } = systemClock;
      background.schedule(callbackTimer(() => console.log('late')), background.now() + 60_000);
      await new Promise((resolve) => systemClock.schedule(callbackTimer(resolve), systemClock.now() + 20));
      console.log('done');`);
    expect(output).toBe('done\n');
    expect(elapsedMs).toBeLessThan(15_000);
  });
});
