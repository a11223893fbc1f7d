import { leader, memoryStore, mutex, semaphore } from 'holdfast';
import { virtualClock } from 'holdfast/testing';
import { describe, expect, it } from 'vitest';
import { bench } from './support.ts';

describe('options of locks', () => {
  it('have limits, and accept the limits themselves', () => {
    const store = memoryStore();
    const good = [
      { ttl: 100 },
      { ttl: '1s', margin: 500 },
      { ttl: '1s', margin: 0 },
      { ttl: '10s', margin: '1s', renewEvery: 4_449 },
      { wait: 0 },
      { queue: 0 },
      { fair: true },
      { afterRestart: 'wait' },
      { stack: true },
    ] as const;
    for (const options of good) mutex(options);
    mutex({ store, fair: false, afterRestart: 'grant' });
    const bad: [object, string][] = [
      [{ ttl: 99 }, '"ttl" must be a duration'],
      [{ ttl: '1s', margin: 501 }, '"margin" must be at most half of "ttl", 500 ms'],
      [{ margin: -1 }, '"margin" must be a duration'],
      [
        { ttl: '10s', margin: '1s', renewEvery: 4_450 },
        '"renewEvery" must be at most half of what "ttl" and "margin" leave, 4449 ms',
      ],
      [{ renewEvery: 0 }, '"renewEvery" must be a duration'],
      [{ wait: -1 }, '"wait" must be a duration'],
      [{ queue: -1 }, '"queue" must be'],
      [{ fair: 1 }, '"fair" must be'],
      [{ stack: 1 }, '"stack" must be'],
      [{ afterRestart: 'never' }, '"afterRestart" must be'],
      [{ random: 5 }, '"random" must be'],
      [{ store: { read() {}, write() {} } }, '"store" must be a store such as memoryStore()'],
      [{ store, fair: true }, '"fair" must be false for a store without "native.queue"'],
      [{ store, afterRestart: 'wait' }, "'grant' for a store that cannot tell of its restarts"],
    ];
    for (const [options, message] of bad) expect(() => mutex(options)).toThrow(message);
    for (const permits of [1, 1_000]) semaphore({ permits });
    for (const permits of [0, 1_001, 1.5]) expect(() => semaphore({ permits })).toThrow('"permits" must be');
    expect(() => semaphore({ permits: 1, fair: true } as never)).toThrow('unknown option "fair"');
    expect(() => leader({ name: 'x', ttl: 99 })).toThrow('"ttl" must be a duration');
    expect(() => leader({ name: '' })).toThrow('"name" must be');
  });

  it('default to 10 s of lease, a tenth of it as margin, at least 50 ms, and 30 s of waiting', async () => {
    const { clock, store } = bench();
    const locks = mutex({ store, clock });
    const lease = await locks.acquire('key');
    expect(lease.remaining()).toBe(10_000 * 0.99 - 2 - 1_000);
    expect((await mutex({ store, clock, ttl: 200 }).acquire('short')).remaining()).toBe(200 * 0.99 - 2 - 50);
    const other = mutex({ store, clock });
    let error: unknown;
    other.acquire('key').catch((reason: unknown) => {
      error = reason;
    });
    await clock.advance(29_999);
    expect(error).toBe(undefined);
    await clock.advance(1);
    expect(error).toMatchObject({ reason: 'waited', policy: 'mutex' });
    expect([locks.name, semaphore({ permits: 1 }).name, leader({ name: 'chief' }).name]).toEqual([
      'mutex',
      'semaphore',
      'chief',
    ]);
  });

  it('decide whether a refusal has a stack', async () => {
    for (const stack of [undefined, false, true]) {
      const locks = mutex({ queue: 0, ...(stack !== undefined && { stack }) });
      await locks.acquire('key');
      const errors = await Promise.all(
        [locks.acquire('key'), locks.acquire('key', { wait: 0 })].map((call) => call.catch((error: Error) => error)),
      );
      for (const error of errors) expect(/\n {4}at /.test((error as Error).stack ?? '')).toBe(stack === true);
    }
  });

  it('decide how often a lease is renewed', async () => {
    const { clock, state, process } = bench();
    await process({ ttl: '3s', renewEvery: 500 }).acquire('key');
    await clock.advance(5_000);
    expect(state.times).toEqual([0, 500, 1_000, 1_500, 2_000, 2_500, 3_000, 3_500, 4_000, 4_500, 5_000]);
  });
});

describe('fences without a store', () => {
  it('grow from one run of the program to the next, by the wall clock', async () => {
    const clock = virtualClock({ wallNow: 1_000.7 });
    const locks = mutex({ clock });
    const first = await locks.acquire('a');
    expect([first.fence, first.owner]).toEqual([1_000_001, 'local:1000001']);
    expect((await locks.acquire('b')).fence).toBe(1_000_002);
  });
});
