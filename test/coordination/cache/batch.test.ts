import { describe, expect, it } from 'vitest';
import { type Cache, type LoadContext, memoryStore, type Store, StoreError } from '../../../src/index.js';
import { forbidUnhandledRejections } from '../../support/unhandled-rejections.ts';
import { setUp } from './support.ts';

type LoadMany = (keys: readonly string[], context: LoadContext) => unknown;

/** A cache whose store counts its trips. */
function setUpMany(loadMany: LoadMany | undefined, options: Parameters<typeof setUp>[0] = {}) {
  const trips: string[] = [];
  const state = { isDown: false };
  const held: { store?: ReturnType<typeof memoryStore> } = {};
  const trip = <T>(name: string, ask: () => Promise<T>): Promise<T> => {
    trips.push(name);
    if (!state.isDown) return ask();
    const detail = 'down';
    return Promise.reject(
      new StoreError({ store: 'test', operation: name, reason: 'failed', applied: 'unknown', detail }),
    );
  };
  const store: Store = {
    read: (key, own) => trip('read', () => held.store!.read(key, own)),
    write: (key, value, own) => trip('write', () => held.store!.write(key, value, own)),
    remove: (key, own) => trip('remove', () => held.store!.remove(key, own)),
    native: { readMany: (keys, own) => trip(`read ${keys.length}`, () => held.store!.native.readMany(keys, own)) },
  };
  const world = setUp({ store, loadMany: loadMany as never, ...options });
  held.store = memoryStore({ clock: world.clock });
  /** Another process before the same store. */
  const other = setUp({ clock: world.clock }, 1, held.store);
  return { ...world, trips, state, other, shared: held.store };
}

const upper = (keys: readonly string[]) => keys.map((key) => key.toUpperCase());

const valuesOf = async (answers: ReturnType<Cache<unknown>['getMany']>) =>
  (await answers).map((one) => (one.ok ? one.value : one.error));

forbidUnhandledRejections();

describe('cache, asked for many keys,', () => {
  it('looks them all up in one round trip, and loads nothing if all are there', async () => {
    const batches: (readonly string[])[] = [];
    const { users, other, trips } = setUpMany((keys) => batches.push(keys));
    for (const key of ['a', 'b', 'c']) {
      other.source.value = `${key} of another`;
      await other.users.get(key);
    }
    expect(await valuesOf(users.getMany(['a', 'b', 'c']))).toEqual(['a of another', 'b of another', 'c of another']);
    expect([trips, batches]).toEqual([['read 3'], []]);
    expect(await valuesOf(users.getMany(['a', 'b']))).toEqual(['a of another', 'b of another']);
    expect(trips.length).toBe(1);
  });

  it('looks two up in one round trip, and one with a plain read', async () => {
    const { users, trips } = setUpMany(upper);
    expect(await valuesOf(users.getMany(['a', 'b']))).toEqual(['A', 'B']);
    expect(trips.filter((name) => name.startsWith('read'))).toEqual(['read 2']);
    trips.length = 0;
    expect(await valuesOf(users.getMany(['c']))).toEqual(['C']);
    expect(trips).toEqual(['read', 'write', 'write']);
  });

  it('trusts what it has looked up for 5 s at most if no changes are reported', async () => {
    const { users, other, trips, clock } = setUpMany(upper, { ttl: '1h', early: 'off' });
    for (const key of ['a', 'b']) await other.users.get(key);
    await users.getMany(['a', 'b']);
    trips.length = 0;
    await clock.advance(5_000);
    await users.get('a');
    expect(trips).toEqual(['read']);
  });

  it('refuses what is no array of keys', async () => {
    const { users } = setUpMany(upper);
    for (const [wrong, shown] of [
      ['ab', "'ab'"],
      [new Set(['a']), 'an object of class Set'],
      [undefined, 'undefined'],
    ]) {
      await expect(users.getMany(wrong as never)).rejects.toThrow(`getMany takes an array of keys, got ${shown}`);
    }
  });

  it('asks the store nothing for no keys, and does not count that for its health', async () => {
    const { users, clock, trips, state } = setUpMany(upper);
    state.isDown = true;
    for (const key of ['a', 'b', 'c']) await users.get(key);
    await clock.advance(1_000);
    trips.length = 0;
    expect(await users.getMany([])).toEqual([]);
    for (const key of ['d', 'e', 'f']) await users.get(key);
    expect(trips).toEqual(['write']);
  });

  it('loads them all at once while the store is down', async () => {
    const { users, state } = setUpMany(upper);
    state.isDown = true;
    expect(await valuesOf(users.getMany(['a', 'b']))).toEqual(['A', 'B']);
  });

  it('loads them all at once without a store', async () => {
    const batches: (readonly string[])[] = [];
    const load = (keys: readonly string[]) => {
      batches.push(keys);
      return upper(keys);
    };
    const { users } = setUpMany(load, { store: undefined });
    expect(await valuesOf(users.getMany(['a', 'b', 'a']))).toEqual(['A', 'B', 'A']);
    expect(batches).toEqual([['a', 'b']]);
  });

  it('loads a key whose invalidation is owed without reading it from the store, which is down', async () => {
    const { users, state } = setUpMany(upper, { onStoreDown: 'replay' });
    state.isDown = true;
    for (const key of ['a', 'b']) await users.delete(key);
    expect(await valuesOf(users.getMany(['a', 'b']))).toEqual(['A', 'B']);
  });

  it('loads each by itself without a loader for many', async () => {
    const { users, source, trips } = setUpMany(undefined);
    expect(await valuesOf(users.getMany(['a', 'b']))).toEqual([1, 1]);
    expect([source.keys, trips[0]]).toEqual([['a', 'b'], 'read 2']);
  });

  it('loads a single key with the loader for many if there is no other', async () => {
    const failure = new Error('no b');
    const { users } = setUpMany((keys) => keys.map((key) => (key === 'b' ? failure : key.toUpperCase())), {
      load: undefined,
    });
    expect(await users.get('a')).toBe('A');
    await expect(users.get('b')).rejects.toBe(failure);
  });

  it('delays no key for one that another process loads, and loads that one alone if the other process does not', async () => {
    const batches: (readonly string[])[] = [];
    const load = (keys: readonly string[]) => {
      batches.push(keys);
      return upper(keys);
    };
    const { users, clock, other, source } = setUpMany(load, { waitTimeout: '1s' });
    other.source.delayMs = 20_000;
    void other.users.get('b').catch(() => {});
    await clock.advance(10);
    const answer = users.getMany(['a', 'b']);
    await clock.advance(100);
    expect(users.peek('a')).toBe('A');
    await clock.advance(1_000);
    expect(await valuesOf(answer)).toEqual(['A', 1]);
    expect([batches, source.keys]).toEqual([[['a']], ['b']]);
    await Promise.all([users.close(), other.users.close()]);
  });

  it('tells the loader how long it may take, and that a caller waits', async () => {
    let given: LoadContext | undefined;
    const load: LoadMany = (keys, context) => {
      given = context;
      return upper(keys);
    };
    const { users } = setUpMany(load, { hardTimeout: '7s' });
    await users.getMany(['a', 'b']);
    expect([given!.remainingMs, given!.isBackground, given!.signal.aborted]).toEqual([7_000, false, false]);
  });

  it('tells the loader how much time is left after it has waited for its turn', async () => {
    const told: number[] = [];
    const load: LoadMany = (keys, { remainingMs }) => {
      told.push(remainingMs);
      return upper(keys);
    };
    const { users, clock, source } = setUpMany(load, { hardTimeout: '7s', maxConcurrentLoads: 1 });
    source.delayMs = 3_000;
    const first = users.get('x');
    const answers = users.getMany(['a', 'b']);
    await clock.advance(3_000);
    await Promise.all([first, answers]);
    expect(told).toEqual([4_000]);
  });

  it('gives each key the error that the loader throws', async () => {
    const failure = new Error('down');
    const { users } = setUpMany(() => {
      throw failure;
    });
    const answers = await valuesOf(users.getMany(['a', 'b']));
    expect(answers[0]).toBe(failure);
    expect(answers[1]).toBe(failure);
  });

  it('gives a key the error that the loader returns for it, and the others their values', async () => {
    const failure = new Error('no b');
    const { users, source } = setUpMany((keys) => keys.map((key) => (key === 'b' ? failure : key.toUpperCase())));
    const answers = await users.getMany(['a', 'b']);
    expect(answers[0]).toEqual({ ok: true, value: 'A' });
    expect(answers[1]).toEqual({ ok: false, error: failure });
    expect([users.peek('a'), users.peek('b'), source.loads]).toEqual(['A', undefined, 0]);
  });

  it.each([
    ['too few values', () => ['A'], '2 keys, got 1 values'],
    ['no array', () => 'AB', '2 keys, got string'],
  ])('refuses an answer of %s', async (_, load, what) => {
    const { users } = setUpMany(load);
    for (const answer of await valuesOf(users.getMany(['a', 'b']))) {
      expect(answer).toBeInstanceOf(TypeError);
      expect((answer as Error).message).toContain(what);
    }
  });

  it('gives an invalid key its own error, and the others their values', async () => {
    const { users } = setUpMany(upper);
    const [good, bad] = await users.getMany(['a', {} as string]);
    expect(good).toEqual({ ok: true, value: 'A' });
    expect(bad).toEqual({ ok: false, error: expect.any(TypeError) });
  });
});

describe('cache, when a caller of many keys gives up,', () => {
  function setUpSlow(options: Parameters<typeof setUp>[0] = {}) {
    const signals: AbortSignal[] = [];
    const world = setUpMany(async (keys, { signal }) => {
      signals.push(signal);
      await world.clock.sleep(100);
      return upper(keys);
    }, options);
    return { ...world, signals };
  }

  it('aborts the load with the reason when no other caller waits for any of the keys', async () => {
    const { users, clock, signals } = setUpSlow();
    const controller = new AbortController();
    const answer = users.getMany(['a', 'b'], { signal: controller.signal });
    await clock.advance(10);
    expect(signals[0]!.aborted).toBe(false);
    controller.abort('enough');
    await expect(answer).rejects.toBe('enough');
    expect(signals[0]!.reason).toBe('enough');
  });

  it('goes on for a key that another caller waits for', async () => {
    const { users, clock, signals } = setUpSlow();
    const controller = new AbortController();
    const answer = users.getMany(['a', 'b'], { signal: controller.signal });
    const other = users.get('b');
    await clock.advance(10);
    controller.abort('enough');
    await expect(answer).rejects.toBe('enough');
    expect(signals[0]!.aborted).toBe(false);
    await clock.advance(100);
    expect(await other).toBe('B');
  });

  it('loads no key that nobody waits for any more when its turn comes', async () => {
    const { users, clock, source, signals } = setUpSlow({ maxConcurrentLoads: 1 });
    source.delayMs = 1_000;
    const first = users.get('x');
    const controller = new AbortController();
    const answer = users.getMany(['a', 'b'], { signal: controller.signal });
    await clock.advance(10);
    controller.abort('enough');
    await expect(answer).rejects.toBe('enough');
    await clock.advance(1_000);
    expect([await first, signals]).toEqual([1, []]);
    const later = users.getMany(['a', 'b']);
    await clock.advance(100);
    expect(await valuesOf(later)).toEqual(['A', 'B']);
  });

  it('loads no key that nobody waits for any more when the last look-up arrives', async () => {
    const { users, clock, signals, shared, trips } = setUpSlow();
    // The lease on one of them takes a while.
    const { write } = shared;
    shared.write = async (key, ...rest) => {
      if (key.endsWith('|b')) await clock.sleep(200);
      return write.call(shared, key, ...rest);
    };
    const controller = new AbortController();
    const answer = users.getMany(['a', 'b'], { signal: controller.signal });
    await clock.advance(10);
    expect(trips.filter((name) => name === 'write').length).toBe(2);
    controller.abort('enough');
    await expect(answer).rejects.toBe('enough');
    await clock.advance(1_000);
    expect(signals).toEqual([]);
    await users.close();
    expect(clock.pendingTimers).toBe(0);
  });

  it('loads the other keys without one that was given up while the store was down', async () => {
    const batches: (readonly string[])[] = [];
    const { users, clock, state, shared } = setUpMany(
      async (keys) => {
        batches.push(keys);
        throw new Error('no source');
      },
      { onStoreDown: 'replay' },
    );
    state.isDown = true;
    await users.delete('a');
    state.isDown = false;
    // What the first one owes is written slowly, and is not accepted.
    shared.remove = () => clock.sleep(100).then(() => Promise.reject(new Error('down')));
    const controller = new AbortController();
    const answer = users.getMany(['a', 'b'], { signal: controller.signal });
    const other = users.get('b');
    controller.abort('enough');
    await Promise.all([
      expect(answer).rejects.toBe('enough'),
      expect(other).rejects.toThrow('no source'),
      clock.advance(200),
    ]);
    expect(batches).toEqual([['b']]);
  });

  it('sends nothing for a signal that has already aborted', async () => {
    const { users, trips } = setUpSlow();
    await expect(users.getMany(['a', 'b'], { signal: AbortSignal.abort('enough') })).rejects.toBe('enough');
    expect(trips).toEqual([]);
  });
});

describe('cache with a bound on its loads', () => {
  it('counts the load of many keys as one', async () => {
    let running = 0;
    let most = 0;
    const { users, clock } = setUpMany(
      async (keys) => {
        most = Math.max(most, ++running);
        await clock.sleep(10);
        running--;
        return upper(keys);
      },
      { maxConcurrentLoads: 1 },
    );
    const answers = Promise.all([users.getMany(['a', 'b']), users.getMany(['c', 'd'])]);
    await clock.advance(10);
    expect([running, most]).toEqual([1, 1]);
    await clock.advance(10);
    expect((await answers).flat().map((one) => one.ok && one.value)).toEqual(['A', 'B', 'C', 'D']);
  });
});
