import { describe, expect, it } from 'vitest';
import { cache, LoadBackoffError, memoryStore, OptionsError, TimeoutError } from '../../../src/index.js';
import { virtualClock } from '../../../src/testing/index.js';
import { bytesLeftBy } from '../../support/young-garbage.js';
import { type Changes, setUp, viewOf } from './support.ts';

const alone = { store: undefined } as const;

/** Both ways to run: in memory alone, and before a store. */
const ways: readonly (readonly [string, Changes])[] = [
  ['in memory alone', alone],
  ['before a store', {}],
];

describe.each(ways)('cache, %s,', (_, way) => {
  it('loads once for concurrent callers, and then not until the ttl is over', async () => {
    const { users, source, clock } = setUp({ ...way, early: 'off' });
    source.delayMs = 50;
    const answers = Promise.all(Array.from({ length: 200 }, () => users.get('42')));
    await clock.advance(50);
    expect(new Set(await answers)).toEqual(new Set([1]));
    await clock.advance(9_999);
    expect(await users.get('42')).toBe(1);
    expect(source.loads).toBe(1);
    await clock.advance(1);
    source.delayMs = 0;
    source.value = 2;
    expect(await users.get('42')).toBe(2);
    expect(source.loads).toBe(2);
  });

  it('gives each hit the same promise', async () => {
    const { users } = setUp(way);
    // The second look makes sure that nothing happened before the watch was ready.
    for (let looks = 0; looks < 2; looks++) await users.get('42');
    expect(users.get('42')).toBe(users.get('42'));
  });

  it('keeps no value of a load that an invalidated tag had detached before its key was deleted', async () => {
    const { users, source, clock } = setUp(way);
    source.delayMs = 50;
    const before = users.get('42');
    await clock.flush();
    await users.invalidateTag('prices');
    source.value = 2;
    await users.delete('42');
    await clock.advance(50);
    expect(await before).toBe(1);
    expect(users.peek('42')).toBeUndefined();
    const after = users.get('42');
    await clock.advance(50);
    expect(await after).toBe(2);
  });

  it('says that there is no loader, and accepts one with the call', async () => {
    const { users } = setUp({ ...way, load: undefined });
    await expect(users.get('42')).rejects.toThrow(/has no "load"; give the factory one, or this call/);
    expect(await users.get('42', { load: () => 5 })).toBe(5);
    expect(await users.get('42')).toBe(5);
  });

  it('holds at most "max" values, and drops the least recently used, by whichever way it was used', async () => {
    const { users } = setUp({ ...way, max: 3 });
    const { signal } = new AbortController();
    for (const key of ['1', '2', '3']) {
      // The second look makes sure that nothing happened before the watch was ready.
      for (let looks = 0; looks < 2; looks++) await users.get(key);
    }
    await users.get('1');
    await users.get('2', { signal });
    await users.get('4');
    expect(users.size).toBe(3);
    expect(['1', '2', '3'].map((key) => users.peek(key) !== undefined)).toEqual([true, true, false]);
  });

  it('peeks at what a get would return at once, and starts nothing', async () => {
    const { users, source, clock, sources } = setUp(way);
    const isKnown = () => users.peek('42') !== undefined;
    expect(isKnown()).toBe(false);
    expect(source.loads).toBe(0);
    source.delayMs = 100;
    const first = users.get('42');
    expect(isKnown()).toBe(false);
    await clock.advance(100);
    await first;
    await users.get('42');
    expect(users.peek('42')).toBe(1);
    expect(sources().at(-1)).toBe('l1');
    // A refresh is due: the next get begins it, but still returns the old value.
    await clock.advance(9_900);
    expect(isKnown()).toBe(false);
    await clock.advance(100);
    expect(isKnown()).toBe(false);
    expect(source.loads).toBe(1);
    await users.set('42', 2);
    await users.get('42');
    expect(users.peek('42')).toBe(2);
    await users.delete('42');
    expect(isKnown()).toBe(false);
    expect(() => users.peek({} as never)).toThrow(TypeError);
    await users.close();
    expect(isKnown()).toBe(false);
  });

  it('refuses options of other caches that it would ignore: a plain loader, a time to live for one value', async () => {
    const { users, source } = setUp(way);
    const wrong = users as unknown as Record<'get' | 'set', (...args: readonly unknown[]) => Promise<unknown>>;
    await expect(wrong.get('42', () => 7)).rejects.toThrow('get takes { signal, load }, got a function');
    await expect(wrong.get('42', { ttl: 7 })).rejects.toThrow('get takes { signal, load }, got "ttl"');
    await expect(wrong.set('42', 7, '1m')).rejects.toThrow('"ttl" is of the cache');
    await expect(wrong.set('42', 7, { ttl: '1m' })).rejects.toThrow(TypeError);
    expect(users.peek('42')).toBeUndefined();
    // An index is not taken for options.
    expect(await Promise.all(['42', '42'].map(wrong.get))).toEqual([1, 1]);
    expect(source.loads).toBe(1);
  });

  it.each([null, false, 0, '', [], {}])('hits %j as it hits any value', async (value) => {
    const { users, source } = setUp(way);
    source.value = value;
    expect([await users.get('42'), await users.get('42')]).toEqual([value, value]);
    expect(source.loads).toBe(1);
  });

  it('does not cache undefined, but with negativeTtl caches it like null, for that long', async () => {
    const { users, source, clock, caches } = setUp({ ...way }, 1);
    source.value = undefined;
    expect([await users.get('42'), await users.get('42'), source.loads]).toEqual([undefined, undefined, 2]);
    await caches[0]!.close();
    const negative = setUp({ ...way, negativeTtl: '1s', early: 'off' });
    negative.source.value = undefined;
    expect([await negative.users.get('a'), await negative.users.get('a')]).toEqual([undefined, undefined]);
    negative.source.value = null;
    expect([await negative.users.get('b'), await negative.users.get('b')]).toEqual([null, null]);
    expect(negative.source.loads).toBe(2);
    await negative.clock.advance(1_000);
    await negative.users.get('a');
    await negative.users.get('b');
    expect(negative.source.loads).toBe(4);
    expect(clock.pendingTimers).toBe(0);
  });

  it('rejects all waiters with what the loader throws, the same object, even if it throws synchronously', async () => {
    const error = new Error('down');
    const { users } = setUp({
      ...way,
      load: () => {
        throw error;
      },
    });
    const answers = await Promise.allSettled([users.get('42'), users.get('42')]);
    expect(answers.map((answer) => answer.status === 'rejected' && answer.reason)).toEqual([error, error]);
  });

  it('lets one caller abort, and the others get the value', async () => {
    const { users, source, clock } = setUp(way);
    source.delayMs = 100;
    const controller = new AbortController();
    const impatient = users.get('42', { signal: controller.signal });
    const patient = users.get('42');
    await clock.advance(10);
    controller.abort(new Error('gone'));
    await expect(impatient).rejects.toThrow('gone');
    await clock.advance(100);
    expect([await patient, source.loads]).toEqual([1, 1]);
  });

  it('aborts the load when the last caller has gone, and starts another for the next', async () => {
    const signals: AbortSignal[] = [];
    const { users, clock } = setUp({
      ...way,
      load: async (_key, { signal }) => {
        signals.push(signal);
        await clock.sleep(100);
        return signals.length;
      },
    });
    const controllers = [new AbortController(), new AbortController()];
    const answers = controllers.map(({ signal }) => users.get('42', { signal }).catch(() => 'gone'));
    await clock.advance(10);
    controllers[0]!.abort();
    await clock.flush();
    expect(signals[0]!.aborted).toBe(false);
    controllers[1]!.abort();
    await clock.flush();
    expect([signals[0]!.aborted, ...(await Promise.all(answers))]).toEqual([true, 'gone', 'gone']);
    const next = users.get('42');
    await clock.advance(100);
    expect(await next).toBe(2);
    await clock.advance(60_000);
    expect(clock.pendingTimers).toBe(0);
  });

  it('gives a load up at hardTimeout, aborts its signal, and ignores a late result', async () => {
    let late = (_: unknown) => {};
    let given: AbortSignal | undefined;
    const { users, clock, source } = setUp({
      ...way,
      hardTimeout: '1s',
      failBackoff: () => 0,
      load: (_key, { signal, remainingMs }) => {
        given = signal;
        expect(remainingMs).toBe(1_000);
        return new Promise((resolve) => {
          late = resolve;
        });
      },
    });
    const answer = users.get('42').catch((error) => error);
    await clock.advance(1_000);
    expect(await answer).toBeInstanceOf(TimeoutError);
    expect(await answer).toMatchObject({ policy: 'cache', afterMs: 1_000 });
    expect(given!.aborted).toBe(true);
    late('late');
    await clock.flush();
    expect(await users.get('42', { load: source.load })).toBe(1);
    await users.close();
    expect(clock.pendingTimers).toBe(0);
  });

  it('serves a stale value at once and refreshes it in the background, until staleWhileRevalidate is over', async () => {
    const { users, source, clock, sources } = setUp({ ...way, early: 'off', staleWhileRevalidate: '5s' });
    await users.get('42');
    source.value = 2;
    source.delayMs = 100;
    await clock.advance(12_000);
    expect(await users.get('42')).toBe(1);
    expect(await users.get('42')).toBe(1);
    await clock.advance(100);
    expect(await users.get('42')).toBe(2);
    expect(source.loads).toBe(2);
    await clock.advance(15_000);
    source.value = 3;
    const answer = users.get('42');
    await clock.advance(100);
    expect(await answer).toBe(3);
    expect(sources().slice(1, 3)).toEqual(['stale', 'stale']);
  });

  it('serves a stale value instead of an error until staleIfError is over, and not a moment longer', async () => {
    const { users, source, clock, sources } = setUp({ ...way, early: 'off', staleIfError: '1m' });
    await users.get('42');
    source.error = new Error('down');
    await clock.advance(69_000);
    expect(await users.get('42')).toBe(1);
    expect(sources().at(-1)).toBe('stale');
    await clock.advance(1_000);
    await expect(users.get('42')).rejects.toThrow('down');
  });

  it('tries a failing source at most once per backoff while there is a stale value', async () => {
    const { users, source, clock } = setUp({ ...way, early: 'off', staleIfError: '1h', failBackoff: () => 1_000 });
    await users.get('42');
    source.error = new Error('down');
    await clock.advance(10_000);
    for (let ms = 0; ms < 8_000; ms += 100) {
      expect(await users.get('42')).toBe(1);
      await clock.advance(100);
    }
    expect(source.loads).toBe(1 + 8);
    source.error = undefined;
    source.value = 2;
    await clock.advance(1_000);
    expect(await users.get('42')).toBe(2);
  });

  it('serves the stale value after softTimeout, and goes on loading', async () => {
    const { users, source, clock } = setUp({ ...way, early: 'off', staleIfError: '1m', softTimeout: 200 });
    await users.get('42');
    await clock.advance(10_000);
    source.delayMs = 1_000;
    source.value = 2;
    const answer = users.get('42');
    await clock.advance(200);
    expect(await answer).toBe(1);
    await clock.advance(800);
    expect(await users.get('42')).toBe(2);
    expect(source.loads).toBe(2);
  });

  it('refreshes before the expiry when asked near it, depending on how long loads take', async () => {
    const { users, source, clock, sources } = setUp(way);
    source.delayMs = 200;
    const first = users.get('42');
    await clock.advance(200);
    await first;
    // The refresh begins at most 2.25 load times before the end.
    await clock.advance(9_500);
    expect([await users.get('42'), source.loads]).toEqual([1, 1]);
    await clock.advance(250);
    source.value = 2;
    expect(await users.get('42')).toBe(1);
    await clock.flush();
    expect(source.loads).toBe(2);
    await clock.advance(200);
    expect(await users.get('42')).toBe(2);
    expect(sources()).not.toContain('stale');
  });

  it.each(['delete', 'set'] as const)('never serves what was loaded before a %s', async (verb) => {
    const { users, source, clock } = setUp(way);
    source.delayMs = 100;
    const before = users.get('42');
    await clock.advance(50);
    source.value = 2;
    if (verb === 'set') await users.set('42', 2);
    else await users.delete('42');
    const after = users.get('42');
    await clock.advance(1_000);
    expect([1, 2]).toContain(await before);
    expect(await after).toBe(2);
    expect(await users.get('42')).toBe(2);
    await clock.advance(1_000);
    expect(await users.get('42')).toBe(2);
  });

  it('never serves what was loaded before its tag was invalidated, in the foreground or in the background', async () => {
    const { users, source, clock } = setUp({
      ...way,
      staleWhileRevalidate: '1m',
      tags: (value) => [`t${value === 9}`, 'all'],
    });
    source.delayMs = 100;
    const before = users.get('42');
    await clock.advance(50);
    source.value = 2;
    await users.invalidateTag('all');
    const after = users.get('42');
    await clock.advance(1_000);
    expect([1, 2]).toContain(await before);
    expect(await after).toBe(2);
    await clock.advance(12_000);
    // The value is stale now, so a refresh begins in the background.
    expect(await users.get('42')).toBe(2);
    await clock.advance(50);
    source.value = 3;
    await users.invalidateTag('all');
    const last = users.get('42');
    await clock.advance(1_000);
    expect(await last).toBe(3);
    expect(await users.get('42')).toBe(3);
    await users.invalidateTag('tfalse');
    source.value = 4;
    const other = users.get('42');
    await clock.advance(1_000);
    expect(await other).toBe(4);
  });

  it('loads many keys by one loadMany, each with its own outcome', async () => {
    const batches: string[][] = [];
    const { users } = setUp({
      ...way,
      load: () => 'alone',
      loadMany: async (keys) => {
        batches.push([...keys]);
        return keys.map((key) => (key === 'b' ? new Error('no b') : key.toUpperCase()));
      },
    });
    await users.get('x');
    expect(await users.getMany(['a', 'x', 'b', 'c', 'a'])).toEqual([
      { ok: true, value: 'A' },
      { ok: true, value: 'alone' },
      { ok: false, error: new Error('no b') },
      { ok: true, value: 'C' },
      { ok: true, value: 'A' },
    ]);
    expect(batches).toEqual([['a', 'b', 'c']]);
    expect((await users.getMany(['a', 'c'])).map((one) => one.ok && one.value)).toEqual(['A', 'C']);
    expect(batches.length).toBe(1);
  });

  it('runs at most maxConcurrentLoads at once', async () => {
    let running = 0;
    let most = 0;
    const { users, clock } = setUp({
      ...way,
      maxConcurrentLoads: 3,
      load: async (key) => {
        most = Math.max(most, ++running);
        await clock.sleep(10);
        running--;
        return key;
      },
    });
    const keys = Array.from({ length: 20 }, (_, index) => `${index}`);
    const answers = Promise.all(keys.map((key) => users.get(key)));
    await clock.advance(1_000);
    expect([await answers, most]).toEqual([keys, 3]);
  });

  it('keeps at most max values and loses none of the flights', async () => {
    const { users, clock, source } = setUp({ ...way, max: 10 });
    source.delayMs = 10;
    const answers = Promise.all(Array.from({ length: 100 }, (_, index) => users.get(`${index}`)));
    await clock.advance(10);
    expect([(await answers).length, users.size]).toEqual([100, 10]);
  });

  it('holds no timer and rejects every call once it is closed', async () => {
    const { users, source, clock } = setUp(way);
    source.delayMs = 100;
    const cut = users.get('42').catch((error) => error.message);
    await clock.advance(10);
    await users.close();
    expect(await cut).toContain('closed');
    await expect(users.get('42')).rejects.toThrow('closed');
    await expect(users.set('42', 1)).rejects.toThrow('closed');
    expect(clock.pendingTimers).toBe(1); // the source's own
  });
});

describe('cache, for several processes,', () => {
  it('loads once for all of them, and once at each expiry', async () => {
    const { caches, source, clock, sources } = setUp({ early: 'off', maxL1Ttl: '1h' }, 8);
    source.delayMs = 300;
    for (let round = 1; round <= 3; round++) {
      const answers = Promise.all(caches.flatMap((one) => Array.from({ length: 20 }, () => one.get('42'))));
      await clock.advance(1_000);
      expect(new Set(await answers)).toEqual(new Set([1]));
      expect(source.loads).toBe(round);
      await clock.advance(9_300);
    }
    expect(sources()).toContain('wait');
  });

  it('takes over from a process that has died, within the lease', async () => {
    const { caches, source, clock, store } = setUp({}, 2);
    let writes = 0;
    const dying = setUpDying(() => writes++ > 0);
    function setUpDying(isDead: () => boolean) {
      const view = viewOf(store);
      const never = () => new Promise<never>(() => {});
      return cache<unknown>({
        store: { ...view, write: (key, value, options) => (isDead() ? never() : view.write(key, value, options)) },
        ttl: '10s',
        clock,
        load: never,
      });
    }
    void dying.get('42').catch(() => {});
    await clock.advance(10);
    const answers = Promise.all(caches.map((one) => one.get('42')));
    await clock.advance(2_900);
    expect(source.loads).toBe(0);
    await clock.advance(300);
    expect([...(await answers), source.loads]).toEqual([1, 1, 1]);
  });

  it('remembers a failure for all of them', async () => {
    const { caches, source, clock } = setUp({ failBackoff: ({ attempt }) => attempt * 1_000 }, 3);
    source.error = new TypeError('no such table');
    await expect(caches[0]!.get('42')).rejects.toBe(source.error);
    const refused = (await caches[1]!.get('42').catch((error) => error)) as Error;
    expect(refused).toBeInstanceOf(LoadBackoffError);
    expect(refused).toMatchObject({ key: '42', retryAfterMs: 1_000, code: 'ERR_LOAD_BACKOFF' });
    expect(refused.message).toContain('no such table');
    await clock.advance(1_000);
    await expect(caches[2]!.get('42')).rejects.toBe(source.error);
    await clock.advance(1_999);
    await expect(caches[1]!.get('42')).rejects.toBeInstanceOf(LoadBackoffError);
    expect(source.loads).toBe(2);
    await clock.advance(1);
    source.error = undefined;
    expect(await caches[1]!.get('42')).toBe(1);
  });

  it('serves a changed value everywhere once maxL1Ttl is over, even if no change is reported', async () => {
    const { caches, source, clock } = setUp({ maxL1Ttl: '1s', early: 'off' }, 2);
    await caches[1]!.get('42');
    source.value = 2;
    await caches[0]!.delete('42');
    expect(await caches[0]!.get('42')).toBe(2);
    await clock.advance(1_000);
    expect(await caches[1]!.get('42')).toBe(2);
  });

  it('refuses two caches of the same name on one store', () => {
    const store = memoryStore();
    cache({ store, ttl: 1 });
    expect(() => cache({ store, ttl: 1 })).toThrow(OptionsError);
    expect(() => cache({ store, ttl: 1, name: 'other' })).not.toThrow();
  });
});

describe('cache without a listener for events', () => {
  const unheard = { on: undefined, early: 'off', staleIfError: '1m', softTimeout: 200 } as const;

  it('lets concurrent callers join a first load', async () => {
    const { users, source, clock } = setUp(unheard);
    source.delayMs = 50;
    const answers = [users.get('42'), users.get('42')];
    expect(users.get('43')).not.toBe(answers[0]);
    await clock.advance(50);
    expect([await answers[0], await answers[1], source.loads]).toEqual([1, 1, 2]);
    expect(users.get('42')).toBe(users.get('42'));
  });

  it('serves no new caller the stale value that a slow first load fell back to, once the key was changed', async () => {
    const clock = virtualClock();
    const shared = memoryStore({ clock });
    let value = 1;
    let loadMs = 0;
    const load = async () => {
      const read = value;
      await clock.sleep(loadMs);
      return read;
    };
    const process = () => {
      // This store does not report changes.
      const { native: _, ...store } = viewOf(shared);
      return setUp({ ...unheard, clock, store, load }).users;
    };
    const [one, other] = [process(), process()];
    const first = other.get('42');
    await clock.advance(0);
    await first;
    await clock.advance(10_000);
    loadMs = 1_000;
    const stale = one.get('42');
    await clock.advance(200);
    expect(await stale).toBe(1);
    value = 2;
    await other.delete('42');
    const answer = one.get('42');
    await clock.advance(5_000);
    expect(await answer).toBe(2);
  });
});

describe('cache that misses', () => {
  it('keeps nothing of its loads until a full garbage collection', async () => {
    const users = cache<number>({ ttl: '1m' });
    const churn = async (from: number, to: number) => {
      for (let first = from; first < to; first += 32) {
        const get = (_: unknown, index: number) => {
          const rows = new Array<number>(1_000).fill(index);
          const load = async () => {
            await new Promise(setImmediate);
            return rows.length;
          };
          return users.get(`${first + index}`, { load });
        };
        await Promise.all(Array.from({ length: 32 }, get));
      }
    };
    await bytesLeftBy(() => churn(0, 64));
    // The loads take eight megabytes in all, of which 32 loads hold some at a time. The values themselves stay in memory.
    expect(await bytesLeftBy(() => churn(64, 1_088))).toBeLessThan(3e6);
  });
});
