/** What one process does with its memory and its flights: hits, changes and tags at the same time, refreshes, keys, events. */
import { describe, expect, it } from 'vitest';
import { type LoadBackoffError, memoryStore, OptionsError } from '../../../src/index.js';
import { type Changes, setUp } from './support.ts';

const alone = { store: undefined } as const;

/** Both ways to run: in memory alone, and before a store. */
const ways: readonly (readonly [string, Changes])[] = [
  ['in memory alone', alone],
  ['before a store', {}],
];

describe.each(ways)('cache, %s, asked for a value,', (_, way) => {
  it('reports for each get where its value came from and how long it took', async () => {
    const { users, source, clock, events } = setUp({ ...way, early: 'off' });
    await clock.advance(1_000);
    source.delayMs = 40;
    const answers = [users.get('42'), users.get('42')];
    await clock.advance(40);
    await Promise.all(answers);
    // The first look makes sure that nothing happened before the watch was ready.
    for (let looks = 0; looks < 3; looks++) await users.get('42');
    users.peek('42');
    const gets = events.filter((event) => event.type === 'cache-get');
    const told = gets.map(({ source, durationMs }) => [source, durationMs]);
    expect(told.slice(0, 2)).toEqual([
      ['load', 40],
      ['wait', 40],
    ]);
    expect(told.slice(3)).toEqual([1, 2, 3].map(() => ['l1', 0]));
    expect(gets[0]).toMatchObject({ name: 'cache', key: '42' });
  });

  it('reports for each load how it ended, how long it took, and whether a caller waited for it', async () => {
    const { users, source, clock, events } = setUp({ ...way, early: 'off', staleWhileRevalidate: '1m' });
    const loads = () =>
      events.filter((event) => event.type === 'cache-load').map(({ name: _, type: __, ...rest }) => rest);
    const failure = new Error('down');
    await clock.advance(1_000);
    source.delayMs = 40;
    source.error = failure;
    const failing = users.get('bad').catch((error) => error);
    await clock.advance(40);
    expect(await failing).toBe(failure);
    source.error = undefined;
    const first = users.get('42');
    await clock.advance(40);
    await first;
    await clock.advance(10_000);
    await users.get('42');
    await clock.advance(40);
    expect(loads()).toEqual([
      { key: 'bad', durationMs: 40, isBackground: false, outcome: { ok: false, error: failure } },
      { key: '42', durationMs: 40, isBackground: false, outcome: { ok: true, value: undefined } },
      { key: '42', durationMs: 40, isBackground: true, outcome: { ok: true, value: undefined } },
    ]);
  });

  it('warns of loads that take more than 0.3 of the time to live', async () => {
    const { users, source, clock, warnings } = setUp({ ...way, early: 'off' });
    for (const [key, delayMs] of [
      ['quick', 3_000],
      ['slow', 3_001],
    ] as const) {
      source.delayMs = delayMs;
      const answer = users.get(key);
      await clock.advance(delayMs);
      await answer;
      expect(warnings()).toEqual(key === 'quick' ? [] : ['slow-load']);
    }
  });

  it('starts nothing for a signal that has already aborted, and returns it no value', async () => {
    const { users, source } = setUp(way);
    const signal = AbortSignal.abort('gone');
    await expect(users.get('42', { signal })).rejects.toBe('gone');
    expect(source.loads).toBe(0);
    await users.get('42');
    await users.get('42');
    await expect(users.get('42', { signal })).rejects.toBe('gone');
  });

  it('lets a caller with a signal join a first load, and leave it', async () => {
    const { users, source, clock } = setUp({ ...way, on: undefined });
    source.delayMs = 100;
    const controller = new AbortController();
    const patient = users.get('42');
    const impatient = users.get('42', { signal: controller.signal });
    controller.abort('gone');
    await expect(impatient).rejects.toBe('gone');
    await clock.advance(100);
    expect(await patient).toBe(1);
  });

  it('goes on loading for a caller without a signal when others leave', async () => {
    const { users, source, clock } = setUp({ ...way, on: undefined });
    source.delayMs = 100;
    const controller = new AbortController();
    const impatient = users.get('42', { signal: controller.signal });
    const patient = users.get('42');
    controller.abort('gone');
    await expect(impatient).rejects.toBe('gone');
    await clock.advance(100);
    expect([await patient, source.loads]).toEqual([1, 1]);
  });

  it('refreshes from the planned instant on', async () => {
    const { users, source, clock } = setUp({ ...way, random: () => 0 });
    source.delayMs = 100;
    const first = users.get('42');
    await clock.advance(100);
    await first;
    await users.get('42');
    await clock.advance(9_849);
    await users.get('42');
    await clock.flush();
    expect(source.loads).toBe(1);
    await clock.advance(1);
    await users.get('42');
    await clock.flush();
    expect(source.loads).toBe(2);
    await clock.advance(100);
  });

  it('reads no clock for callers that join a first load', async () => {
    const { clock, users, source } = setUp({ ...way, on: undefined });
    let reads = 0;
    const now = clock.now.bind(clock);
    clock.now = () => {
      reads++;
      return now();
    };
    source.delayMs = 10;
    const answers = [users.get('42')];
    await clock.flush();
    reads = 0;
    for (let joined = 0; joined < 10; joined++) answers.push(users.get('42'));
    expect(reads).toBe(0);
    await clock.advance(10);
    expect(new Set(await Promise.all(answers))).toEqual(new Set([1]));
    await users.close();
  });

  it('keeps nothing of flights that have ended, nor of tags that were invalidated during them', async () => {
    const { users, source, clock } = setUp({ ...way, early: 'off', staleWhileRevalidate: '1m', tags: () => ['a'] });
    const { engine } = users as unknown as { engine: Record<string, Map<unknown, unknown>> };
    source.delayMs = 50;
    const answers = ['a', 'b', 'b'].map((key) => users.get(key));
    await clock.advance(10);
    await users.invalidateTag('any');
    await users.delete('a');
    answers.push(users.get('b'));
    await clock.advance(1_000);
    await Promise.all(answers);
    await users.invalidateTag('other');
    const kept = () => ['flights', 'running', 'parted', 'recentTags', 'heldByTag'].map((name) => engine[name]!.size);
    expect(kept()).toEqual([0, 0, 0, 0, 1]);
    for (let refreshes = 0; refreshes < 5; refreshes++) {
      await clock.advance(11_000);
      await users.get('b');
    }
    await clock.advance(1_000);
    // A copy hears that there were changes, not of each of them.
    const { backing } = engine as unknown as { backing?: { watches: Map<string, { listeners: Set<unknown> }> } };
    for (const { listeners } of backing?.watches.values() ?? []) expect(listeners.size).toBe(1);
    await users.delete('b');
    expect(kept()).toEqual([0, 0, 0, 0, 0]);
    expect(backing?.watches.size ?? 0).toBe(0);
  });

  it('calls no loader for a caller that leaves at once', async () => {
    const { users, source, clock } = setUp(way);
    const controller = new AbortController();
    const left = users.get('42', { signal: controller.signal });
    controller.abort('gone');
    await expect(left).rejects.toBe('gone');
    await clock.flush();
    expect(source.loads).toBe(0);
  });

  it('lets the next caller join the load that began after a deletion, not the one before', async () => {
    const { users, source, clock } = setUp({ ...way, early: 'off' });
    source.delayMs = 100;
    void users.get('42');
    await clock.advance(50);
    await users.delete('42');
    void users.get('42');
    await clock.advance(60);
    // The first one has ended in the meantime.
    const third = users.get('42');
    await clock.advance(1_000);
    await third;
    expect(source.loads).toBe(2);
  });

  it.each([7, 7n, true, false])('uses %s as a key in its written form', async (key) => {
    const { users } = setUp(way);
    expect(await users.get(key as never)).toBe(1);
    await users.set(`${key}`, 2);
    expect(await users.get(key as never)).toBe(2);
  });

  it('accepts keys of 1 to 1,024 characters, in every operation', async () => {
    const { users } = setUp(way);
    const longest = 'k'.repeat(1_024);
    await users.set(longest, 5);
    expect(await users.get(longest)).toBe(5);
    for (const bad of ['', `${longest}k`]) {
      const message = /a key must have 1 to 1024 characters, got (0|1025); hash what is longer/;
      await expect(users.get(bad)).rejects.toThrow(message);
      await expect(users.set(bad, 1)).rejects.toThrow(message);
      await expect(users.delete(bad)).rejects.toThrow(message);
    }
  });

  it('says what to do about an invalid key', async () => {
    const { users } = setUp(way);
    await expect(users.get({} as never)).rejects.toThrow('give the cache the option "key"');
    const keyed = setUp({ ...way, name: 'keyed', key: (() => ({})) as never });
    await expect(keyed.users.get('42')).rejects.toThrow('"key" must answer a string');
    const good = setUp({ ...way, key: ((id: { id: string }) => id.id) as never });
    expect(await good.users.get({ id: 'a' } as never)).toBe(1);
    expect(good.users.peek({ id: 'b' } as never)).toBeUndefined();
  });

  it('holds nothing once it is closed, not even what ends during the closing', async () => {
    const { users, source, clock } = setUp(way);
    await users.get('42');
    await users.close();
    expect(users.size).toBe(0);
    await users.close();
    await expect(users.delete('42')).rejects.toThrow('the cache "cache" is closed');
    await expect(users.invalidateTag('a')).rejects.toThrow('closed');
    const late = setUp(way);
    late.source.delayMs = 10;
    const cut = late.users.get('42').catch(() => 'cut');
    await late.clock.advance(1);
    await late.users.close();
    await late.clock.advance(100);
    expect([await cut, late.users.size, source.loads, clock.pendingTimers]).toEqual(['cut', 0, 1, 0]);
  });

  it('does not wait if failBackoff returns an invalid time', async () => {
    for (const ms of [Number.NaN, Number.POSITIVE_INFINITY, -5_000]) {
      const { users, source } = setUp({ ...way, failBackoff: () => ms });
      source.error = new Error('down');
      for (let tries = 0; tries < 2; tries++) await expect(users.get('42')).rejects.toThrow('down');
      expect(source.loads).toBe(2);
    }
  });
});

describe.each(ways)('cache, %s, when values are put in,', (_, way) => {
  it('serves a value that was set, without a load, for as long as a loaded one', async () => {
    const { users, source, clock, sources } = setUp({ ...way, early: 'off', staleWhileRevalidate: '5s' });
    await users.set('42', 7);
    expect([await users.get('42'), await users.get('42'), users.peek('42'), source.loads]).toEqual([7, 7, 7, 0]);
    await clock.advance(10_000);
    expect([await users.get('42'), sources().at(-1)]).toEqual([7, 'stale']);
  });

  it('removes a value that is set to undefined, or keeps it with negativeTtl', async () => {
    const { users, source } = setUp(way);
    await users.set('42', 7);
    await users.set('42', undefined);
    expect([users.size, await users.get('42'), source.loads]).toEqual([0, 1, 1]);
    const negative = setUp({ ...way, negativeTtl: '1m' });
    await negative.users.set('42', undefined);
    expect([await negative.users.get('42'), negative.source.loads]).toEqual([undefined, 0]);
  });

  it('invalidates by a tag the values that were set or loaded with it, and no others', async () => {
    const { users, source } = setUp({ ...way, tags: (value) => [`tag ${value}`] });
    await users.set('a', 1);
    await users.set('b', 1);
    await users.set('c', 2);
    expect(await users.get('d')).toBe(1);
    await users.delete('a');
    source.value = 3;
    await users.invalidateTag('tag 1');
    expect([users.size, users.peek('b'), users.peek('d')]).toEqual([1, undefined, undefined]);
    expect([await users.get('b'), await users.get('d'), await users.get('c')]).toEqual([3, 3, 2]);
  });

  it('keeps no value of a load under way whose tag was invalidated, whatever else ends during it', async () => {
    const { users, source, clock } = setUp({ ...way, tags: (_value, key) => [`tag of ${key}`] });
    source.delayMs = 50;
    const quick = users.get('quick');
    await clock.advance(25);
    const slow = users.get('slow');
    await clock.flush();
    await users.invalidateTag('tag of slow');
    await clock.advance(25);
    await quick;
    expect(users.peek('slow')).toBeUndefined();
    source.value = 2;
    await clock.advance(25);
    // The value is old for those who asked before, and for nobody else.
    const after = users.get('slow');
    await clock.advance(100);
    expect([1, 2]).toContain(await slow);
    expect(await after).toBe(2);
    expect(await users.get('quick')).toBe(1);
  });

  it('keeps no value of any load that began before a deletion, however many were detached from new callers', async () => {
    const { users, clock } = setUp({
      ...way,
      load: async (_key, { signal: _ }) => {
        const delayMs = delays.shift()!;
        await clock.sleep(delayMs);
        return `took ${delayMs}`;
      },
    });
    const delays = [200, 100, 300];
    for (let loads = 0; loads < 3; loads++) {
      void users.get('42').catch(() => {});
      await clock.flush();
      await users.invalidateTag('any');
    }
    await clock.advance(150);
    // One of them has ended, and what it left is removed as well.
    await users.delete('42');
    expect(users.peek('42')).toBeUndefined();
    await clock.advance(1_000);
    expect(users.peek('42')).toBeUndefined();
    expect(users.size).toBe(0);
  });

  it('refuses invalid tags, and leaves everything as it was', async () => {
    const bad: unknown[] = [
      [''],
      ['good', ''],
      ['t'.repeat(201)],
      [5],
      [['a']],
      'abc',
      Array.from({ length: 101 }, (_, index) => `${index}`),
    ];
    for (const tags of bad) {
      const { users } = setUp({ ...way, tags: () => tags as string[] });
      const message = 'there may be at most 100 tags, each a string of 1 to 200 characters, got';
      await expect(users.get('42')).rejects.toThrow(message);
      await expect(users.set('42', 1)).rejects.toThrow(message);
      expect(users.size).toBe(0);
    }
    const most = Array.from({ length: 100 }, (_, index) => `${index}`.padEnd(200, 't'));
    const { users } = setUp({ ...way, tags: () => [...most] });
    await users.get('42');
    expect(users.size).toBe(1);
    for (const tag of ['', 5, 't'.repeat(201)]) {
      await expect(users.invalidateTag(tag as string)).rejects.toThrow('at most 100 tags');
    }
    await users.invalidateTag(most[99]!);
    expect(users.size).toBe(0);
  });

  it('drops a held value whose loader now returns undefined', async () => {
    const { users, source, clock } = setUp({ ...way, early: 'off', staleIfError: '1h', staleWhileRevalidate: '1h' });
    await users.get('42');
    await clock.advance(10_000);
    source.value = undefined;
    expect(await users.get('42')).toBe(1);
    await clock.flush();
    expect(users.size).toBe(0);
  });

  it('cuts all windows of a value by the same random time, and by the jitter at most', async () => {
    for (const [draw, cutMs] of [
      [0, 0],
      [0.5, 2_500],
      [0.999_999, 5_000],
    ] as const) {
      const windows = { staleWhileRevalidate: '10s', staleIfError: '20s' } as const;
      const { users, source, clock } = setUp({
        ...{ ...way, ...windows, early: 'off', jitter: 0.5, random: () => draw, failBackoff: () => 1 },
      });
      await users.get('42');
      source.error = new Error('down');
      await clock.advance(9_990 - cutMs);
      expect([await users.get('42'), source.loads]).toEqual([1, 1]);
      await clock.advance(20);
      expect(await users.get('42')).toBe(1);
      await clock.flush();
      expect(source.loads).toBe(2);
      // Once the value may no longer be shown during a refresh, the call waits for the load.
      source.delayMs = 5;
      const isAnswered = async () => {
        let is = false;
        const answer = users.get('42').then(() => {
          is = true;
        });
        await clock.flush();
        const was = is;
        await clock.advance(5);
        await answer;
        return was;
      };
      await clock.advance(9_980);
      expect(await isAnswered()).toBe(true);
      await clock.advance(10);
      expect(await isAnswered()).toBe(false);
      source.delayMs = 0;
      await clock.advance(9_970);
      expect(await users.get('42')).toBe(1);
      await clock.advance(30);
      await expect(users.get('42')).rejects.toThrow('down');
    }
  });
});

describe('cache in memory alone', () => {
  it('never reloads a fresh value, however long it is fresh', async () => {
    const { users, source, clock } = setUp({ ...alone, ttl: '1h', early: 'off' });
    await users.get('42');
    await clock.advance(3_599_999);
    expect([users.peek('42'), await users.get('42'), source.loads]).toEqual([1, 1, 1]);
  });

  it('measures values only if maxBytes is given', async () => {
    const encoded: unknown[] = [];
    const serializer = {
      encode: (value: unknown) => {
        encoded.push(value);
        return new Uint8Array(600);
      },
      decode: () => undefined,
    };
    const unbound = setUp({ ...alone, serializer });
    await unbound.users.get('a');
    await unbound.users.set('b', 1);
    expect([unbound.users.size, encoded]).toEqual([2, []]);
    const bound = setUp({ ...alone, serializer, maxBytes: 1_396 });
    // A key counts as two bytes per character.
    await bound.users.get('k'.repeat(49));
    await bound.users.set('l'.repeat(49), 1);
    expect(bound.users.size).toBe(2);
    await bound.users.set('m'.repeat(53), 1);
    expect(bound.users.size).toBe(1);
    await bound.users.set('n'.repeat(800), 1);
    expect(bound.users.size).toBe(1);
  });

  it('keeps a value that was set while a load found nothing', async () => {
    const { users, source, clock } = setUp({ ...alone, early: 'off', staleIfError: '1h' });
    await users.get('42');
    await clock.advance(10_000);
    source.value = undefined;
    source.delayMs = 100;
    const nothing = users.get('42');
    await clock.advance(50);
    await users.set('42', 7);
    await clock.advance(50);
    expect(await nothing).toBeUndefined();
    expect(users.peek('42')).toBe(7);
  });

  it('refreshes at random with xfetch, near the expiry of a value', async () => {
    let draw = 0;
    const { users, source, clock } = setUp({ ...alone, early: 'xfetch', random: () => draw });
    source.delayMs = 100;
    const first = users.get('42');
    await clock.advance(100);
    await first;
    source.delayMs = 0;
    await clock.advance(9_700);
    await users.get('42');
    await clock.flush();
    expect(source.loads).toBe(1);
    draw = 1 - Math.exp(-4);
    await users.get('42');
    await clock.flush();
    expect(source.loads).toBe(2);
  });
});

describe('options of a cache', () => {
  const refused = (options: Changes) => expect(() => setUp(options)).toThrow(OptionsError);

  it('are refused beyond their limits, and accepted at them', () => {
    for (const jitter of [-0.01, 0.51]) refused({ jitter });
    for (const max of [0, 10_000_001, 1.5]) refused({ max });
    for (const lease of [299, 3_600_001]) refused({ lease });
    refused({ maxBytes: 1_023 });
    refused({ maxConcurrentLoads: 0 });
    for (const ends of [
      { jitter: 0.5, lease: 3_600_000, maxBytes: 1_024, maxConcurrentLoads: 1 },
      { jitter: 0, max: 1, lease: 300, onWaitTimeout: 'reject' },
    ] as Changes[]) {
      expect(() => setUp(ends)).not.toThrow();
    }
    refused({ onWaitTimeout: 'other' as never });
    refused({ ttl: 'soon' as never });
  });

  it('allow the same name on a store again once the cache is closed', async () => {
    const store = memoryStore();
    const { users } = setUp({ store });
    expect(() => setUp({ store })).toThrow('different for each cache of a store');
    await users[Symbol.asyncDispose]();
    await expect(users.get('42')).rejects.toThrow('closed');
    expect(() => setUp({ store })).not.toThrow();
  });

  it('accept a time to live of 0: nothing is cached', async () => {
    const { users, source } = setUp({ ttl: 0 });
    await users.get('42');
    await users.get('42');
    expect([users.size, source.loads]).toEqual([0, 2]);
  });

  it('default to a backoff of a second at first, with full jitter, and of 30 s at most', async () => {
    const { users, source, clock } = setUp({ random: () => 0.999 });
    source.error = new Error('down');
    const waits: number[] = [];
    for (let failures = 0; failures < 7; failures++) {
      await expect(users.get('42')).rejects.toThrow('down');
      const refused = (await users.get('42').catch((error) => error)) as LoadBackoffError;
      const retryAfterMs = refused.retryAfterMs!;
      waits.push(Math.round(retryAfterMs / 1_000));
      await clock.advance(retryAfterMs);
    }
    expect(waits).toEqual([1, 2, 4, 8, 16, 30, 30]);
  });
});

describe('a time to live as a function of the value', () => {
  const lifetimes: Record<string, unknown> = {
    plain: '2s',
    number: 3_000,
    whole: { ttl: '1s', staleWhileRevalidate: '4s', staleIfError: '6s' },
    none: 0,
    longest: 2 ** 31 - 1,
  };

  const options = {
    ...alone,
    early: 'off',
    staleWhileRevalidate: '1s',
    staleIfError: '2s',
    load: async (key: string) => key,
  } as const;
  const byValue = () => setUp({ ...options, ttl: ((value: string) => lifetimes[value]) as never });

  it('is a duration, or one for each window; omitted ones default to the options', async () => {
    const { users, clock, sources } = byValue();
    for (const key of ['plain', 'number', 'whole']) await users.get(key);
    const sourceAfter = async (ms: number, key: string) => {
      await clock.advance(ms);
      await users.get(key);
      return sources().at(-1);
    };
    expect(await sourceAfter(999, 'whole')).toBe('l1');
    expect(await sourceAfter(1, 'whole')).toBe('stale');
    expect(await sourceAfter(999, 'plain')).toBe('l1');
    expect(await sourceAfter(1, 'plain')).toBe('stale');
    expect(await sourceAfter(999, 'number')).toBe('l1');
    expect(await sourceAfter(1, 'number')).toBe('stale');
  });

  it('caches nothing for 0, and accepts up to 24.8 days', async () => {
    const { users } = byValue();
    await users.get('none');
    expect(users.size).toBe(0);
    await users.get('longest');
    expect(users.size).toBe(1);
  });

  it.each([
    ['no duration', 'soon', 'ttl'],
    ['nothing', undefined, 'ttl'],
    ['null', null, 'ttl'],
    ['a negative one', -1, 'ttl'],
    ['more than 24.8 days', 2 ** 31, 'ttl'],
    ['an object without ttl', { staleIfError: 1 }, 'ttl'],
    ['an object with a wrong window', { ttl: 1, staleIfError: 'soon' }, 'staleIfError'],
  ])('is refused when it is %s', async (_, lifetime, name) => {
    const { users } = setUp({ ...options, ttl: (() => lifetime) as never });
    const error = (await users.get('42').catch((reason) => reason)) as Error;
    expect(error).toBeInstanceOf(OptionsError);
    expect(error.message).toContain(`ttl (its answer's ${name})`);
  });
});
