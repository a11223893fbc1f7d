/** The store is down, slow, or knows more than this process does. */
import { describe, expect, it } from 'vitest';
import { memoryStore, type Store, StoreError } from '../../../src/index.js';
import { setUp, viewOf } from './support.ts';

/** A store that can be frozen and broken. */
function breakable(inner: Store) {
  const state = { how: 'well' as 'well' | 'frozen' | 'broken' | 'closed', calls: 0 };
  const guard = <T>(verb: string, ask: () => Promise<T>, signal: AbortSignal | undefined): Promise<T> => {
    state.calls++;
    if (state.how === 'well') return ask();
    if (state.how === 'frozen') {
      return new Promise((_, reject) => signal?.addEventListener('abort', () => reject(signal.reason)));
    }
    const reason = state.how === 'closed' ? 'closed' : 'failed';
    return Promise.reject(
      new StoreError({ store: 'test', operation: verb, reason, applied: 'unknown', detail: state.how }),
    );
  };
  const store: Store = {
    read: (key, options) => guard('read', () => inner.read(key, options), options?.signal),
    write: (key, value, options) => guard('write', () => inner.write(key, value, options), options.signal),
    remove: (key, options) => guard('remove', () => inner.remove(key, options), options?.signal),
  };
  return { store, state };
}

function setUpBreakable(options: Parameters<typeof setUp>[0] = {}) {
  const held: { store?: Store } = {};
  const { store, state } = breakable({
    read: (...args) => held.store!.read(...args),
    write: (...args) => held.store!.write(...args),
    remove: (...args) => held.store!.remove(...args),
  });
  const world = setUp({ store, ...options });
  held.store = memoryStore({ clock: world.clock });
  return { ...world, state, inner: held.store };
}

describe('cache, when the store is down,', () => {
  it('costs the first cold keys a timeout and the others nothing', async () => {
    const { users, clock, state } = setUpBreakable();
    state.how = 'frozen';
    const tookMs: number[] = [];
    for (let key = 0; key < 6; key++) {
      const startedMs = clock.now();
      const answer = users.get(`key ${key}`).then(() => tookMs.push(Math.floor(clock.now() - startedMs)));
      while (tookMs.length === key) await clock.advance(1);
      await answer;
    }
    expect(tookMs.slice(0, 3).every((ms) => ms >= 500 && ms <= 502)).toBe(true);
    expect(tookMs.slice(3)).toEqual([0, 0, 0].map(() => expect.closeTo(0, -1)));
  });

  it('serves a stale value after a failed load no longer than staleIfError, however long the backoff', async () => {
    const { users, source, clock, state } = setUpBreakable({
      ...{ early: 'off', ttl: '1s', staleIfError: '3s', failBackoff: () => 60_000 },
    });
    await users.get('42');
    await clock.advance(1_500);
    state.how = 'broken';
    source.error = new Error('no source');
    expect(await users.get('42')).toBe(1);
    await clock.advance(2_000);
    expect([await users.get('42'), source.loads]).toEqual([1, 2]);
    await clock.advance(1_000);
    await expect(users.get('42')).rejects.toBe(source.error);
  });

  it('serves from memory, loads once for concurrent callers, and returns to the store', async () => {
    const { users, source, clock, state } = setUpBreakable({ early: 'off', ttl: '20s' });
    await users.get('42');
    state.how = 'broken';
    source.value = 2;
    await clock.advance(6_000);
    // Its copy is older than 5 s, and the store cannot say whether it is still valid.
    expect(await users.get('42')).toBe(1);
    await clock.advance(14_000);
    source.delayMs = 10;
    const answers = Promise.all([users.get('42'), users.get('42'), users.get('43')]);
    await clock.advance(100);
    expect([await answers, source.loads]).toEqual([[2, 2, 2], 3]);
    state.how = 'well';
    await clock.advance(15_000);
    source.delayMs = 0;
    const before = state.calls;
    await users.get('44');
    expect(state.calls).toBeGreaterThan(before);
    await clock.advance(11_000);
    expect(await users.get('44')).toBe(2);
  });

  it('serves its fresh copy, and asks the store again for it after a while', async () => {
    const { users, source, clock, state, sources } = setUpBreakable({ early: 'off', ttl: '20s' });
    await users.get('42');
    state.how = 'broken';
    await clock.advance(6_000);
    const { calls } = state;
    expect([await users.get('42'), sources().at(-1)]).toEqual([1, 'l1']);
    expect(state.calls).toBe(calls + 1);
    await clock.advance(2_700);
    expect([await users.get('42'), users.peek('42'), state.calls]).toEqual([1, 1, calls + 1]);
    await clock.advance(200);
    expect(await users.get('42')).toBe(1);
    await clock.flush();
    expect([state.calls, source.loads]).toEqual([calls + 2, 1]);
  });

  it('asks the store for an old copy no more than twice a second', async () => {
    const { users, clock, state } = setUpBreakable({ early: 'off', ttl: '1h' });
    await users.get('42');
    state.how = 'broken';
    await clock.advance(60_000);
    const { calls } = state;
    for (let ms = 0; ms < 500; ms += 100) {
      expect(await users.get('42')).toBe(1);
      await clock.advance(100);
    }
    expect(state.calls).toBe(calls + 1);
    await users.get('42');
    await clock.flush();
    expect(state.calls).toBe(calls + 2);
  });

  it('does not count a check without a request as a sign that the store is back', async () => {
    const { users, clock, state } = setUpBreakable();
    state.how = 'broken';
    for (let failures = 0; failures < 3; failures++) await users.set('42', 1).catch(() => {});
    await clock.advance(1_000);
    const { calls } = state;
    for (let sets = 0; sets < 3; sets++) await expect(users.set('42', 1)).rejects.toThrow();
    expect(state.calls).toBe(calls + 1);
  });

  it('serves its stale copy and loads in the background, and after a failure serves it until the backoff is over', async () => {
    const { users, source, clock, state, sources } = setUpBreakable({
      ...{ early: 'off', ttl: '10s', staleWhileRevalidate: '5s', staleIfError: '1m', failBackoff: () => 4_000 },
    });
    await users.get('42');
    state.how = 'broken';
    await clock.advance(12_000);
    source.value = 2;
    expect([await users.get('42'), sources().at(-1)]).toEqual([1, 'stale']);
    await clock.flush();
    expect([await users.get('42'), source.loads]).toEqual([2, 2]);
    await clock.advance(16_000);
    source.error = new Error('down');
    expect([await users.get('42'), sources().at(-1), source.loads]).toEqual([2, 'stale', 3]);
    await clock.advance(3_999);
    expect([await users.get('42'), sources().at(-1), source.loads]).toEqual([2, 'stale', 3]);
    await clock.advance(1);
    expect([await users.get('42'), source.loads]).toEqual([2, 4]);
    await clock.advance(60_000);
    await expect(users.get('42')).rejects.toThrow('down');
  });

  it('compares what it loaded during the outage with the store within 5 s', async () => {
    const { users, clock, state } = setUpBreakable({ early: 'off', ttl: '20s' });
    state.how = 'broken';
    await users.get('42');
    state.how = 'well';
    const { calls } = state;
    await clock.advance(4_000);
    await users.get('42');
    await clock.flush();
    expect(state.calls).toBeGreaterThan(calls);
  });

  it('rejects an invalidation that it cannot write, and drops its own copy anyway', async () => {
    const { users, source, state } = setUpBreakable();
    await users.get('42');
    state.how = 'broken';
    await expect(users.delete('42')).rejects.toBeInstanceOf(StoreError);
    await expect(users.invalidateTag('all')).rejects.toBeInstanceOf(StoreError);
    await expect(users.set('43', 1)).rejects.toBeInstanceOf(StoreError);
    source.value = 2;
    expect(await users.get('42')).toBe(2);
  });

  it('keeps an invalidation it could not write with onStoreDown replay, and writes it before it trusts the store again', async () => {
    const { users, source, clock, state, inner, warnings } = setUpBreakable({
      ...{ onStoreDown: 'replay', ttl: '1h', early: 'off', tags: (_value, key) => [`tag of ${key}`] },
    });
    for (const key of ['deleted', 'set', 'tagged']) await users.get(key);
    state.how = 'broken';
    source.value = 2;
    await users.delete('deleted');
    await users.set('set', 3);
    await users.invalidateTag('tag of tagged');
    expect(warnings()).toEqual(['owed', 'owed', 'owed']);
    // Nobody sees the old value in the meantime.
    expect([await users.get('deleted'), await users.get('set'), await users.get('tagged')]).toEqual([2, 2, 2]);
    state.how = 'well';
    // Another process does not see an old value either, once the store has been back for a while.
    await clock.advance(15_000);
    const other = setUp(
      { clock, load: async () => 'new', tags: (_value: unknown, key: string) => [`tag of ${key}`] },
      1,
      inner,
    );
    for (const key of ['deleted', 'set', 'tagged']) expect([key, await other.users.get(key)]).toEqual([key, 'new']);
  });

  it('writes the owed invalidation of a key before it reads it, however soon', async () => {
    const { users, clock, state, inner } = setUpBreakable({ onStoreDown: 'replay', ttl: '1h', early: 'off' });
    await users.get('42');
    // A connection broke under the verb, and nobody closed the store, but no error tells the two apart.
    state.how = 'closed';
    await users.delete('42');
    state.how = 'well';
    const { calls } = state;
    expect(await users.get('42')).toBe(1);
    expect(state.calls).toBe(calls + 4);
    expect((await inner.read('cache|cache|key|42'))!.ageMs).toBeLessThan(5);
    await clock.advance(60_000);
    expect(state.calls).toBe(calls + 4);
  });

  it('owes nothing for a key that was set after all', async () => {
    const { users, state, inner } = setUpBreakable({ onStoreDown: 'replay', ttl: '1h', early: 'off' });
    state.how = 'broken';
    await users.delete('42');
    state.how = 'well';
    await users.set('42', 7);
    expect(await users.get('42')).toBe(7);
    await users.close();
    expect(await inner.read('cache|cache|key|42')).toBeDefined();
  });

  it('keeps nothing that was read while the debt of a set was noted', async () => {
    const { users, clock, state, inner } = setUpBreakable({ onStoreDown: 'replay', ttl: '1h', early: 'off' });
    await users.get('42');
    const { remove, write } = inner;
    let fail = (_: Error) => {};
    inner.write = () => Promise.reject(new Error('down'));
    inner.remove = () =>
      new Promise((_, reject) => {
        fail = reject;
      });
    const set = users.set('42', 2);
    await clock.flush();
    inner.write = write;
    expect(await users.get('42')).toBe(1);
    expect(users.size).toBe(1);
    fail(new Error('down'));
    await set;
    expect(users.size).toBe(0);
    inner.remove = remove;
    expect(state.how).toBe('well');
    await clock.advance(2_000);
    expect(await inner.read('cache|cache|key|42')).toBeUndefined();
  });

  it('owes 10,000 at most, refuses the next, and tries once more when it is closed', async () => {
    const { users, clock, state, inner } = setUpBreakable({ onStoreDown: 'replay', ttl: '1h' });
    await users.get('0');
    state.how = 'broken';
    for (let key = 0; key < 10_000; key++) await users.delete(`${key}`);
    await users.delete('0');
    await expect(users.delete('one more')).rejects.toThrow('cache store');
    state.how = 'well';
    await clock.advance(11_000);
    expect(await inner.read('cache|cache|key|0')).toBeUndefined();
    await users.delete('one more');
    await users.close();
  });

  it('allows one more turn before a timeout: a blocked event loop is not an outage', async () => {
    const { users, source, sources, state } = setUpBreakable({ clock: undefined, l2Timeouts: { write: 20 } });
    const blocked = users.get('42');
    const untilMs = performance.now() + 60;
    while (performance.now() < untilMs);
    expect(await blocked).toBe(1);
    expect([source.loads, sources(), state.calls]).toEqual([1, ['load'], 2]);
    await users.close();
  });

  it('answers with what was loaded if it cannot be stored, and does not keep it', async () => {
    const { users, source, state, warnings, clock } = setUpBreakable({
      load: async () => {
        source.loads++;
        state.how = 'broken';
        return 'dear';
      },
    });
    expect(await users.get('42')).toBe('dear');
    expect(warnings()).toEqual(['not-stored']);
    state.how = 'well';
    // Its lease could not be given back.
    const again = users.get('42');
    await clock.advance(2_900);
    expect(source.loads).toBe(1);
    await clock.advance(200);
    expect([await again, source.loads]).toEqual(['dear', 2]);
  });
});

describe('cache, when the store holds other entries,', () => {
  it('replaces bytes of another release or serializer by a new load', async () => {
    const { users, caches, store, warnings } = setUp({}, 2);
    await users.get('42');
    const key = 'cache|cache|key|42';
    await store.write(key, Uint8Array.of(9, 9, 9, 9), { ttlMs: 60_000 });
    expect(await caches[1]!.get('42')).toBe(1);
    const entry = (await store.read(key))!;
    const spoilt = entry.value.with(entry.value.length - 1, 123);
    await store.write(key, spoilt, { ttlMs: 60_000 });
    const third = setUp({}, 1, viewOf(store));
    expect(await third.users.get('42')).toBe(1);
    expect([...warnings(), ...third.warnings()]).toContain('undecodable');
  });

  it('does not use bytes that another serializer has made', async () => {
    const { users, store, source } = setUp();
    source.value = 'text';
    await users.get('42');
    const third = setUp({ serializer: 'bytes', load: async () => Uint8Array.of(7) }, 1, viewOf(store));
    expect(await third.users.get('42')).toEqual(Uint8Array.of(7));
  });

  it.each([
    ['nothing', undefined],
    ['what it held', { value: Uint8Array.of(9, 9, 9, 9), version: 5, ageMs: 1, ttlMs: 60_000 }],
  ])('loads for itself when every write is refused and %s shown', async (_, entry) => {
    let calls = 0;
    const refuse = async () => {
      // Otherwise a cache that keeps asking would never end.
      if (++calls > 1_000) throw new Error('asked without end');
      return { ok: false, entry } as const;
    };
    const { users } = setUp({ store: { read: async () => entry, write: refuse, remove: async () => false } });
    expect(await users.get('42')).toBe(1);
    expect(calls).toBeLessThanOrEqual(300);
  });

  it('reports a value that is too large for the store, returns it, and delays nobody', async () => {
    const clock = undefined;
    const { users, source, warnings } = setUp({ clock }, 1, memoryStore({ maxValueBytes: 1_000 }));
    source.value = 'x'.repeat(2_000);
    expect([await users.get('42'), await users.get('42')]).toEqual([source.value, source.value]);
    expect(warnings()).toEqual(['not-stored', 'not-stored']);
    expect(source.loads).toBe(2);
  });

  it('distinguishes keys that a store would refuse, by their hash', async () => {
    const { caches, source } = setUp({}, 2);
    const long = 'k'.repeat(1_000);
    source.value = 'one';
    await caches[0]!.get(`${long}1`);
    source.value = 'two';
    await caches[0]!.get(`${long}2`);
    expect([await caches[1]!.get(`${long}1`), await caches[1]!.get(`${long}2`)]).toEqual(['one', 'two']);
    source.value = 'half';
    await caches[0]!.get(`${long}\ud800`);
    source.value = 'other half';
    expect([await caches[1]!.get(`${long}\ud801`), await caches[1]!.get(`${long}\ud800`)]).toEqual([
      'other half',
      'half',
    ]);
    await expect(caches[0]!.get('k'.repeat(1_025))).rejects.toThrow('1 to 1024 characters');
    await expect(caches[0]!.get('')).rejects.toThrow(TypeError);
  });

  it('distinguishes long keys even if its name would be cut in the middle of a character', async () => {
    const { caches, source, warnings } = setUp({ name: `${'n'.repeat(39)}😀` }, 2);
    source.value = 'one';
    await caches[0]!.get('k'.repeat(1_000));
    expect([await caches[1]!.get('k'.repeat(1_000)), source.loads, warnings()]).toEqual(['one', 1, []]);
  });
});
