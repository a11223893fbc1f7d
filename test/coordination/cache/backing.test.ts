import { describe, expect, it, vi } from 'vitest';
import { Backing } from '../../../src/coordination/cache/backing.js';
import { type HoldfastEvent, memoryStore, type Store, StoreError } from '../../../src/index.js';
import type { StoreChange } from '../../../src/stores/store.js';
import { virtualClock } from '../../../src/testing/index.js';
import { deferred } from '../../support/deferred.ts';

const record = { failure: { message: 'down', count: 1, retryInMs: 5 } };

interface Told {
  readonly key: string;
  tell(change: StoreChange): void;
  isClosed: boolean;
}

function setUp(settings: { readonly name?: string; readonly onStoreDown?: 'reject' | 'replay' } = {}) {
  const clock = virtualClock();
  const inner = memoryStore({ clock });
  const calls: { verb: string; keys: readonly string[]; signal: AbortSignal | undefined; rest: object }[] = [];
  const events: HoldfastEvent[] = [];
  const owed: unknown[][] = [];
  const watches: Told[] = [];
  const state = {
    /** What is thrown in place of an answer. */
    answer: undefined as (() => Promise<never>) | undefined,
    isReady: Promise.resolve(),
    watch: (key: string, onChange: (change: StoreChange) => void) => {
      const watch = { key, tell: onChange, isClosed: false };
      watches.push(watch);
      const close = () => {
        watch.isClosed = true;
      };
      return { ready: state.isReady, close };
    },
  };
  const asked = <T>(
    verb: string,
    keys: readonly string[],
    { signal, ...rest }: { readonly signal?: AbortSignal | undefined } = {},
    ask: () => Promise<T>,
  ) => {
    calls.push({ verb, keys, signal, rest });
    return state.answer?.() ?? ask();
  };
  const store: Store = {
    read: (key, options) => asked('read', [key], options, () => inner.read(key, options)),
    write: (key, value, options) => asked('write', [key], options, () => inner.write(key, value, options)),
    remove: (key, options) => asked('remove', [key], options, () => inner.remove(key, options)),
    native: {
      watch: (key, onChange) => state.watch(key, onChange),
      readMany: (keys, options) => asked('readMany', keys, options, () => inner.native.readMany(keys, options)),
    },
  };
  const backing = new Backing({
    ...{ name: 'users', store, clock, random: () => 0.5, timeouts: { readMs: 100, writeMs: 500 }, serializer: 1 },
    ...{ onStoreDown: 'reject', onOwed: (...debt) => owed.push(debt), on: (event) => events.push(event), ...settings },
  });
  const failure = (reason: 'failed' | 'invalid' | 'full') =>
    new StoreError({ store: 'test', operation: 'any', reason, applied: 'no', detail: reason });
  const fail = (reason: 'failed' | 'invalid' | 'full') => {
    state.answer = () => Promise.reject(failure(reason));
  };
  return { clock, inner, backing, calls, events, owed, watches, state, fail };
}

/** What it rejects with when the store does not answer, and when. */
async function unanswered(ask: (backing: Backing) => Promise<unknown>) {
  const { backing, clock, calls, state } = setUp();
  state.answer = () => new Promise(() => {});
  let error: unknown;
  void ask(backing).catch((reason) => {
    error = reason;
  });
  while (error === undefined) await clock.advance(1);
  return { error, afterMs: clock.now(), signals: calls.map(({ signal }) => signal) };
}

describe('backing of a cache', () => {
  it.each([
    ['read', 100, (backing: Backing) => backing.read('42')],
    ['read', 100, (backing: Backing) => backing.readMany(['42'])],
    ['read', 100, (backing: Backing) => backing.readMany(['42', '43'])],
    ['read', 100, (backing: Backing) => backing.generations(['a', 'b'])],
    ['write', 500, (backing: Backing) => backing.write('42', record, { ttlMs: 1 })],
    ['write', 500, (backing: Backing) => backing.invalidateTag('a')],
    ['remove', 500, (backing: Backing) => backing.remove('42')],
  ])('gives up a %s after %i ms, and tells the store so', async (operation, timeoutMs, ask) => {
    const { error, afterMs, signals } = await unanswered(ask);
    expect(error).toBeInstanceOf(StoreError);
    expect(error).toMatchObject({ store: 'cache', operation, reason: 'timeout', applied: 'unknown' });
    expect((error as Error).message).toContain(`cache "users" had no answer within ${timeoutMs} ms`);
    // It waits one more turn, for an answer that has already arrived.
    expect(afterMs).toBe(timeoutMs + 1);
    expect(signals.length).toBe(1);
    for (const signal of signals) expect(signal!.reason).toBe(error);
  });

  it('takes a reply that has arrived by the time of its timeout', async () => {
    const { backing, clock, state } = setUp();
    let answer = (_: never) => {};
    state.answer = () =>
      new Promise<never>((resolve) => {
        answer = resolve;
      });
    const read = backing.read('42');
    await clock.advance(100);
    answer(undefined as never);
    await clock.advance(1);
    expect(await read).toBeUndefined();
  });

  it('leaves the store alone for a second after three failures in a row, and then probes it with one request', async () => {
    const { backing, clock, calls, events, fail } = setUp();
    fail('failed');
    for (let failures = 0; failures < 3; failures++) {
      expect(backing.breaker.state).toBe('closed');
      await expect(backing.read('42')).rejects.toBeInstanceOf(StoreError);
    }
    expect(backing.breaker.state).toBe('open');
    await expect(backing.read('42')).rejects.toMatchObject({ code: 'ERR_CIRCUIT_OPEN' });
    expect([calls.length, clock.pendingTimers]).toEqual([3, 0]);
    await clock.advance(1_000);
    const tries = await Promise.allSettled([backing.read('42'), backing.read('42')]);
    expect(calls.length).toBe(4);
    expect(tries.map((one) => (one.status === 'rejected' ? one.reason.code : ''))).toEqual([
      'ERR_STORE',
      'ERR_CIRCUIT_OPEN',
    ]);
    expect(new Set(events.map(({ name }) => name))).toEqual(new Set(['users store']));
  });

  it.each(['invalid', 'full'] as const)('does not count "%s" of a store as a failure of its health', async (reason) => {
    const { backing, clock, state, fail } = setUp();
    fail(reason);
    for (let tries = 0; tries < 5; tries++) await expect(backing.read('42')).rejects.toMatchObject({ reason });
    expect(backing.breaker.state).toBe('closed');
    // It does not end a probe either.
    fail('failed');
    for (let tries = 0; tries < 3; tries++) await backing.read('42').catch(() => {});
    await clock.advance(1_000);
    fail(reason);
    for (let tries = 0; tries < 2; tries++) await expect(backing.read('42')).rejects.toMatchObject({ reason });
    state.answer = undefined;
    expect(await backing.read('42')).toBeUndefined();
    expect(backing.breaker.state).toBe('closed');
  });

  it('writes records as evictable, but not tags', async () => {
    const { backing, calls } = setUp();
    await backing.write('42', record, { ttlMs: 60_000, ifVersion: 0 });
    await backing.invalidateTag('a');
    expect(calls.map(({ rest }) => rest)).toEqual([
      { ttlMs: 60_000, ifVersion: 0, evictable: true },
      { ttlMs: 60 * 86_400_000 },
    ]);
  });

  it('removes any version of a record, or only the one that was named', async () => {
    const { backing, calls } = setUp();
    await backing.write('42', record, { ttlMs: 60_000 });
    expect(await backing.remove('42', 999)).toBe(false);
    expect(await backing.remove('42')).toBe(true);
    expect(calls.slice(1).map(({ rest }) => rest)).toEqual([{ ifVersion: 999 }, {}]);
  });

  it('has others told of a deletion also where the store has nothing to remove', async () => {
    const { backing, calls, inner } = setUp();
    const heard: string[] = [];
    await inner.native.watch('cache|users|key|42', ({ kind }) => heard.push(kind)).ready;
    await backing.invalidate('42');
    expect(calls.map(({ verb, rest }) => [verb, rest])).toEqual([
      ['remove', {}],
      ['write', { ttlMs: 1, ifVersion: 0, evictable: true }],
    ]);
    await backing.write('42', record, { ttlMs: 60_000 });
    calls.length = 0;
    await backing.invalidate('42');
    expect(calls.map(({ verb }) => verb)).toEqual(['remove']);
    await new Promise(setImmediate);
    expect(heard).toEqual(['changed', 'changed', 'changed']);
  });

  it('reads many keys by one trip, by one per thousand, and one key as one', async () => {
    const { backing, calls } = setUp();
    for (const key of ['0', '1200']) await backing.write(key, record, { ttlMs: 60_000 });
    calls.length = 0;
    const keys = Array.from({ length: 2_000 }, (_, index) => `${index}`);
    const seen = await backing.readMany(keys);
    expect(calls.map(({ verb, keys }) => [verb, keys.length])).toEqual([
      ['readMany', 1_000],
      ['readMany', 1_000],
    ]);
    expect(seen.flatMap((one, index) => (one === undefined ? [] : [index]))).toEqual([0, 1_200]);
    expect(seen[1_200]!.record.failure).toEqual(record.failure);
    calls.length = 0;
    await backing.readMany(['0']);
    expect(calls.map(({ verb }) => verb)).toEqual(['read']);
  });

  it('tells the generation of each tag by one trip', async () => {
    const { backing, clock, calls } = setUp();
    await backing.invalidateTag('a');
    await clock.advance(7);
    calls.length = 0;
    const tags = await backing.generations(['a', 'b']);
    expect(tags.get('a')!.number).toBeGreaterThan(0);
    expect(tags.get('a')!.ageMs).toBe(7);
    expect(tags.get('b')).toEqual({ number: 0, ageMs: Number.POSITIVE_INFINITY });
    expect(calls.length).toBe(1);
    await backing.generations(['a']);
    expect(calls.at(-1)!.keys).toEqual(['cache|users|tag|a']);
  });

  it('begins a generation of a tag for a value that is stored, and tells the version of its key by the same trip', async () => {
    const { backing, clock, calls } = setUp();
    await backing.invalidateTag('a');
    const written = await backing.write('42', record, { ttlMs: 60_000 });
    await clock.advance(7);
    calls.length = 0;
    const { tags, key } = await backing.generationsFor(['a', 'b'], 60_000, '42');
    expect(key).toMatchObject({ version: written.version, ageMs: 7 });
    expect(tags.get('a')!.ageMs).toBe(7);
    expect(tags.get('b')).toEqual({ number: expect.any(Number), ageMs: Number.POSITIVE_INFINITY });
    expect(tags.get('b')!.number).toBeGreaterThan(0);
    expect(calls.map(({ verb }) => verb)).toEqual(['readMany', 'write']);
    expect(calls[1]).toMatchObject({
      keys: ['cache|users|tag|b'],
      rest: { ttlMs: 60_000 + 3_600_000, ifVersion: 0, evictable: true },
    });
    expect(await backing.generations(['a', 'b'])).toEqual(tags);
    expect((await backing.generationsFor(['a'], 60_000)).key).toBeUndefined();
  });

  it('writes a tag once for as long as its entry outlives the values, which keep its generation', async () => {
    const { backing, clock, calls } = setUp();
    const numberOf = async () => (await backing.generationsFor(['a'], 60_000)).tags.get('a')!.number;
    const first = await numberOf();
    for (let hours = 0; hours < 10; hours++) {
      calls.length = 0;
      for (let fills = 0; fills < 120; fills++) {
        await clock.advance(30_000);
        expect(await numberOf()).toBe(first);
      }
      expect(calls.filter(({ verb }) => verb === 'write').length).toBeLessThanOrEqual(1);
    }
    // As long as an invalidation is kept, nothing is written either, and a later write keeps its generation.
    await backing.invalidateTag('a');
    const second = await numberOf();
    expect(second).toBeGreaterThan(first);
    calls.length = 0;
    await clock.advance(60 * 86_400_000 - 60_000);
    expect(await numberOf()).toBe(second);
    expect(calls.map(({ verb }) => verb)).toEqual(['read']);
    await clock.advance(1);
    expect([await numberOf(), calls.at(-1)!.verb]).toEqual([second, 'write']);
    await clock.advance(60_001);
    expect((await backing.generations(['a'])).get('a')!.number).toBe(second);
  });

  it('treats an entry of another release as empty, and keeps its version', async () => {
    const { backing, inner } = setUp();
    const { version } = (await inner.write('cache|users|key|42', Uint8Array.of(99), { ttlMs: 60_000 })) as never;
    expect(await backing.read('42')).toMatchObject({ version, record: { serializer: 0 } });
  });

  it('keeps a key as it is while any store accepts it, and its hash beyond that', async () => {
    const { backing, calls } = setUp({ name: '😀'.repeat(41) });
    const written = async (key: string) => {
      await backing.read(key);
      return calls.at(-1)!.keys[0]!;
    };
    const bytes = (text: string) => new TextEncoder().encode(text).length;
    const head = bytes(await written(''));
    const fits = 'k'.repeat(512 - head);
    expect(await written(fits)).toBe(`cache|${'😀'.repeat(41)}|key|${fits}`);
    const hashed = await written(`${fits}k`);
    expect(hashed).toMatch(new RegExp(`^cache\\|${'😀'.repeat(40)}\\|hash\\|[0-9a-f]{64}$`));
    // This text is as short, but its characters are longer.
    expect(await written('😀'.repeat(100))).toContain('|hash|');
  });

  it('fails with a clear error if it cannot shorten a key that is too long', async () => {
    const { backing } = setUp();
    for (const process of [undefined, {}, { getBuiltinModule: () => undefined }]) {
      vi.stubGlobal('process', process);
      try {
        const failure = { reason: 'invalid', applied: 'no', operation: 'hash' };
        await expect(backing.read('k'.repeat(600))).rejects.toMatchObject(failure);
      } finally {
        vi.unstubAllGlobals();
      }
    }
  });

  it('owes nothing for a key that was invalidated after all, or holds a new value', async () => {
    const { backing, calls, owed, state, fail } = setUp({ onStoreDown: 'replay' });
    for (const pay of [() => backing.invalidate('42'), () => backing.write('42', record, { ttlMs: 1_000 })]) {
      fail('failed');
      await backing.invalidate('42');
      state.answer = undefined;
      await pay();
      const { length } = calls;
      await backing.settle('key', ['42']);
      expect(calls.length).toBe(length);
    }
    expect(owed.map(([key]) => key)).toEqual(['42', '42']);
  });

  it.each([
    ['an invalidation', (backing: Backing) => backing.invalidate('42')],
    ['a write', (backing: Backing) => backing.write('42', record, { ttlMs: 1_000 })],
  ])('owes what was asked for while %s before it was on its way', async (_, begin) => {
    const { backing, calls, clock, state, fail } = setUp({ onStoreDown: 'replay' });
    state.answer = () => clock.sleep(100).then(() => ({ ok: true, version: 1 }) as never);
    const before = begin(backing);
    fail('failed');
    await backing.invalidate('42');
    await clock.advance(100);
    await before;
    state.answer = undefined;
    const { length } = calls;
    await backing.settle('key', ['42']);
    expect(calls.slice(length).map(({ verb }) => verb)).toEqual(['remove', 'write']);
  });

  it('still owes an invalidation for a key after a conditional write', async () => {
    const { backing, calls, state, fail } = setUp({ onStoreDown: 'replay' });
    fail('failed');
    await backing.invalidate('42');
    state.answer = undefined;
    await backing.write('42', record, { ttlMs: 1_000, ifVersion: 0 });
    const { length } = calls;
    await backing.settle('key', ['42']);
    expect(calls.length).toBe(length + 1);
  });

  it('owes nothing that the store can never accept', async () => {
    const { backing, fail, owed } = setUp({ onStoreDown: 'replay' });
    fail('invalid');
    await expect(backing.invalidate('42')).rejects.toMatchObject({ reason: 'invalid' });
    expect(owed).toEqual([]);
    fail('full');
    await backing.invalidateTag('a');
    expect(owed).toEqual([['a', expect.any(StoreError)]]);
  });
});

describe('watch of a key', () => {
  it('is shared by all users of the key, and ends with the last of them', async () => {
    const { backing, watches } = setUp();
    const one = backing.watch('key', '42');
    expect(backing.watch('key', '42')).toBe(one);
    expect(backing.watch('tag', '42')).not.toBe(one);
    expect(watches.map(({ key }) => key)).toEqual(['cache|users|key|42', 'cache|users|tag|42']);
    backing.release(one);
    expect(watches[0]!.isClosed).toBe(false);
    backing.release(one);
    expect(watches[0]!.isClosed).toBe(true);
    expect(backing.watch('key', '42')).not.toBe(one);
  });

  it('is ready once changes are reported, and counts earlier ones as a change', async () => {
    const { backing, watches, state } = setUp();
    const { promise, resolve: isReady } = deferred();
    state.isReady = promise;
    const watch = backing.watch('key', '42');
    const heard: string[] = [];
    watch.listeners.add((kind) => heard.push(kind));
    await Promise.resolve();
    expect([watch.isReady, watch.changes]).toEqual([false, 0]);
    isReady();
    await Promise.resolve();
    expect([watch.isReady, watch.changes, heard]).toEqual([true, 1, ['changed']]);
    watches[0]!.tell({ kind: 'gap' });
    expect([watch.changes, heard]).toEqual([2, ['changed', 'gap']]);
  });

  it('tells all listeners, even if one of them leaves during that', async () => {
    const { backing, watches } = setUp();
    const watch = backing.watch('key', '42');
    const heard: string[] = [];
    const first = () => {
      heard.push('first');
      watch.listeners.delete(first);
      watch.listeners.add(() => heard.push('late'));
    };
    watch.listeners.add(first);
    watch.listeners.add(() => heard.push('second'));
    watches[0]!.tell({ kind: 'changed' });
    expect(heard).toEqual(['first', 'second']);
  });

  it('is never ready if the store cannot watch', async () => {
    const { backing, state } = setUp();
    state.isReady = Promise.reject(new Error('no connection'));
    const refused = backing.watch('key', '1');
    state.watch = () => {
      throw new Error('no connection');
    };
    const failed = backing.watch('key', '2');
    await Promise.resolve();
    await Promise.resolve();
    expect([refused.isReady, failed.isReady]).toEqual([false, false]);
    backing.release(failed);
  });

  it('reports nothing more once the cache is closed, and is no longer shared', async () => {
    const { backing, watches } = setUp();
    const watch = backing.watch('key', '42');
    let changes = 0;
    watch.listeners.add(() => changes++);
    await Promise.resolve();
    changes = 0;
    await backing.close();
    expect([watch.isReady, watches[0]!.isClosed]).toEqual([false, true]);
    watches[0]!.tell({ kind: 'changed' });
    expect(changes).toBe(0);
    expect(backing.watch('key', '42')).not.toBe(watch);
  });
});
