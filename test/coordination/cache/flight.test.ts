/** What one search for a key does, in memory alone and before a store: loads, refreshes, failures, and what it leaves behind. */
import { getEventListeners } from 'node:events';
import { describe, expect, it } from 'vitest';
import type { LoadContext } from '../../../src/index.js';
import { forbidUnhandledRejections } from '../../support/unhandled-rejections.ts';
import { type Changes, setUp } from './support.ts';

const alone = { store: undefined } as const;

/** Both ways to run: in memory alone, and before a store. */
const ways: readonly (readonly [string, Changes])[] = [
  ['in memory alone', alone],
  ['before a store', {}],
];

forbidUnhandledRejections();

describe.each(ways)('flight, %s,', (_, way) => {
  it('leaves no listener on the signal of a caller that was answered', async () => {
    const { users, source, clock } = setUp(way);
    source.delayMs = 10;
    const { signal } = new AbortController();
    const answer = users.get('42', { signal });
    expect(getEventListeners(signal, 'abort').length).toBe(1);
    await clock.advance(10);
    expect(await answer).toBe(1);
    expect(getEventListeners(signal, 'abort').length).toBe(0);
    source.error = new Error('down');
    const failure = users.get('43', { signal }).catch((error) => error);
    await clock.advance(10);
    expect(await failure).toBe(source.error);
    expect(getEventListeners(signal, 'abort').length).toBe(0);
  });

  it('is not joined by a caller that comes just after the last one has gone', async () => {
    const { users, source, clock } = setUp(way);
    source.delayMs = 100;
    const controller = new AbortController();
    const first = users.get('42', { signal: controller.signal });
    await clock.advance(10);
    controller.abort('gone');
    const second = users.get('42');
    await expect(first).rejects.toBe('gone');
    await clock.advance(1_000);
    expect([await second, source.loads]).toEqual([1, 2]);
  });

  it('tells the loader whether a caller waits, and how long it may take', async () => {
    const contexts: LoadContext[] = [];
    const { users, clock } = setUp({
      ...{ ...way, early: 'off', staleWhileRevalidate: '1m', hardTimeout: '2s' },
      load: (_key, context) => {
        contexts.push(context);
        return contexts.length;
      },
    });
    await users.get('42');
    await clock.advance(10_000);
    expect(await users.get('42')).toBe(1);
    await clock.flush();
    expect(contexts.map(({ isBackground }) => isBackground)).toEqual([false, true]);
    expect(contexts[1]!.remainingMs).toBe(2_000);
    await clock.advance(500);
    expect(contexts[1]!.remainingMs).toBe(1_500);
    await clock.advance(5_000);
    expect(contexts[1]!.remainingMs).toBe(0);
  });

  it('reports a failed refresh through events only', async () => {
    const { users, source, clock } = setUp({ ...way, early: 'off', staleWhileRevalidate: '1m' });
    await users.get('42');
    source.error = new Error('down');
    await clock.advance(10_000);
    expect(await users.get('42')).toBe(1);
    await clock.advance(100);
    expect(source.loads).toBe(2);
  });

  it('reports a refresh that is cut off, or fails when no stale value is left, through events only', async () => {
    const { users, source, clock } = setUp({ ...way, early: 'off', staleWhileRevalidate: '1s' });
    for (const key of ['42', '43']) await users.get(key);
    source.delayMs = 2_000;
    source.error = new Error('down');
    await clock.advance(10_500);
    expect(await users.get('42')).toBe(1);
    await clock.advance(2_000);
    expect(source.loads).toBe(3);
    const other = setUp({ ...way, early: 'off', staleWhileRevalidate: '1m' });
    await other.users.get('42');
    await other.clock.advance(10_000);
    other.source.delayMs = 2_000;
    await other.users.get('42');
    await other.clock.advance(10);
    await other.users.close();
  });

  it('goes on with a refresh when a caller that had joined it leaves', async () => {
    const { users, source, clock } = setUp({ ...way, early: 'off', staleWhileRevalidate: '1s' });
    await users.get('42');
    await clock.advance(10_500);
    source.delayMs = 1_000;
    source.value = 2;
    expect(await users.get('42')).toBe(1);
    await clock.advance(600);
    const controller = new AbortController();
    const joined = users.get('42', { signal: controller.signal });
    await clock.advance(10);
    controller.abort('gone');
    await expect(joined).rejects.toBe('gone');
    await clock.advance(500);
    expect([await users.get('42'), source.loads]).toEqual([2, 2]);
  });

  it('serves a stale value at once during a refresh, even without listeners', async () => {
    const { users, source, clock } = setUp({ ...way, on: undefined, early: 'off', staleWhileRevalidate: '1m' });
    await users.get('42');
    await clock.advance(12_000);
    source.delayMs = 1_000;
    for (let gets = 0; gets < 3; gets++) expect(await users.get('42')).toBe(1);
    await clock.advance(1_000);
    expect(source.loads).toBe(2);
  });

  it('serves the stale value at softTimeout and no sooner, to new callers at once, while one load goes on', async () => {
    const { users, source, clock, sources } = setUp({ ...way, early: 'off', staleIfError: '1m', softTimeout: 200 });
    for (let looks = 0; looks < 2; looks++) await users.get('42');
    await clock.advance(10_000);
    source.delayMs = 2_000;
    source.value = 2;
    const answers: unknown[] = [];
    void users.get('42').then((value) => answers.push(value));
    await clock.advance(199);
    expect(answers).toEqual([]);
    await clock.advance(1);
    expect(answers).toEqual([1]);
    void users.get('42').then((value) => answers.push(value));
    await clock.flush();
    expect([answers, source.loads]).toEqual([[1, 1], 2]);
    expect(sources().slice(-2)).toEqual(['stale', 'stale']);
    await clock.advance(2_000);
    expect([await users.get('42'), source.loads]).toEqual([2, 2]);
  });

  it('lets new callers wait for the load once the stale value that was served first has expired', async () => {
    const { users, source, clock } = setUp({ ...way, early: 'off', staleIfError: '1s', softTimeout: 200 });
    await users.get('42');
    await clock.advance(10_500);
    source.delayMs = 5_000;
    source.value = 2;
    const first = users.get('42');
    await clock.advance(200);
    expect(await first).toBe(1);
    await clock.advance(400);
    const answers: unknown[] = [];
    void users.get('42').then((value) => answers.push(value));
    await clock.flush();
    expect(answers).toEqual([]);
    await clock.advance(6_000);
    expect([answers, source.loads]).toEqual([[2], 2]);
  });

  it('leaves no timer when it is answered before softTimeout', async () => {
    const { users, source, clock } = setUp({ ...way, early: 'off', staleIfError: '1m', softTimeout: '5s' });
    await users.get('42');
    await clock.advance(10_000);
    source.delayMs = 10;
    const answer = users.get('42');
    await clock.advance(10);
    await answer;
    expect(clock.pendingTimers).toBe(0);
  });

  it('measures a load from its turn at the gate, and plans refreshes by that', async () => {
    const { users, source, clock, events } = setUp({ ...way, maxConcurrentLoads: 1 });
    source.delayMs = 1_000;
    const answers = [users.get('a'), users.get('b')];
    await clock.advance(2_000);
    await Promise.all(answers);
    const loads = events.flatMap((event) => (event.type === 'cache-load' ? [event.durationMs] : []));
    expect(loads).toEqual([1_000, 1_000]);
  });

  it('smooths load times: the newest counts 0.3', async () => {
    const { users, source, clock } = setUp({ ...way, random: () => 0 });
    const load = async (delayMs: number) => {
      source.delayMs = delayMs;
      const answer = users.get('42');
      await clock.advance(delayMs);
      await answer;
      // The look makes sure that nothing happened before the watch was ready.
      await users.get('42');
    };
    await load(100);
    await clock.advance(9_999);
    source.delayMs = 1_100;
    await users.get('42');
    await clock.advance(1_100);
    await users.get('42');
    const { loads } = source;
    // 0.7 times 100 and 0.3 times 1,100 are 400, and the refresh begins 1.5 times that before the end.
    source.delayMs = 0;
    await clock.advance(10_000 - 600 - 2);
    await users.get('42');
    await clock.flush();
    expect([loads, source.loads]).toEqual([2, 2]);
    await clock.advance(4);
    await users.get('42');
    await clock.flush();
    expect(source.loads).toBe(3);
  });

  it('serves the stale value at hardTimeout', async () => {
    const { users, source, clock } = setUp({ ...way, early: 'off', staleIfError: '1m', hardTimeout: '1s' });
    await users.get('42');
    await clock.advance(10_000);
    source.delayMs = 5_000;
    const answer = users.get('42');
    await clock.advance(1_000);
    expect(await answer).toBe(1);
  });

  it('does not count a load that every caller has given up as a failure', async () => {
    const { users, source, clock } = setUp({ ...way, early: 'off', staleIfError: '1m', failBackoff: () => 60_000 });
    await users.get('42');
    await clock.advance(10_000);
    source.delayMs = 1_000;
    source.value = 2;
    const controller = new AbortController();
    const given = users.get('42', { signal: controller.signal });
    await clock.advance(10);
    controller.abort('gone');
    await expect(given).rejects.toBe('gone');
    await clock.flush();
    const next = users.get('42');
    await clock.advance(1_000);
    expect([await next, source.loads]).toEqual([2, 3]);
  });

  it('leaves hits without further work after a failed refresh until the backoff is over', async () => {
    const { users, source, clock } = setUp({
      ...{ ...way, early: 'off', staleWhileRevalidate: '1m', failBackoff: () => 3_000 },
    });
    await users.get('42');
    source.error = new Error('down');
    await clock.advance(10_000);
    for (let ms = 0; ms < 6_500; ms += 500) {
      expect(await users.get('42')).toBe(1);
      await clock.advance(500);
    }
    expect(source.loads).toBe(1 + 3);
  });
});

describe('flight in memory alone', () => {
  it('schedules refreshes on the clock that does not keep the process alive', async () => {
    const { clock } = setUp(alone);
    const scheduled: string[] = [];
    const clockOf = (name: string) => ({
      now: () => clock.now(),
      wallNow: () => clock.wallNow(),
      schedule: (...args: Parameters<typeof clock.schedule>) => {
        scheduled.push(name);
        clock.schedule(...args);
      },
      cancel: (...args: Parameters<typeof clock.cancel>) => clock.cancel(...args),
    });
    const both = { ...clockOf('waited for'), background: clockOf('background') };
    const { users } = setUp({
      ...alone,
      early: 'off',
      staleWhileRevalidate: '1m',
      clock: both as never,
      load: () => 1,
    });
    await users.get('42');
    await clock.advance(10_000);
    await users.get('42');
    await clock.flush();
    expect(scheduled).toEqual(['waited for', 'background']);
  });

  it('counts consecutive failures for the backoff, until a load succeeds', async () => {
    const attempts: number[] = [];
    const { users, source, clock } = setUp({
      ...{ ...alone, early: 'off', staleIfError: '1h' },
      failBackoff: ({ attempt }) => {
        attempts.push(attempt);
        return 1;
      },
    });
    await users.get('42');
    await clock.advance(10_000);
    for (const error of [new Error('down'), new Error('down'), undefined, new Error('down')]) {
      source.error = error;
      await users.get('42');
      await clock.advance(10_000);
    }
    expect(attempts).toEqual([1, 2, 1]);
  });
});
