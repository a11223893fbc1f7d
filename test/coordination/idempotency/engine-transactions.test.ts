/** The state machine with transactions: the caller's, and those of a store that has them. */
import { describe, expect, it } from 'vitest';
import {
  type HoldfastEvent,
  type IdempotencyEvent,
  InDoubtError,
  idempotency,
  memoryStore,
  OptionsError,
  type Store,
  type StoreTransaction,
} from '../../../src/index.js';
import { virtualClock } from '../../../src/testing/index.js';
import { lostIn, plain, raw, scope, setUp, storeError } from './support.js';

describe('a transaction of the caller', () => {
  /** What the tests need of a database: a lock that reports itself, and a commit or rollback of everything that was written. */
  function database() {
    const { once: _, clock, store } = setUp();
    const given = { isLocked: false, fails: false, refuses: 0 };
    const writes: (readonly [string, Uint8Array, object])[] = [];
    const inside: Pick<Store, 'read' | 'write' | 'remove'> = {
      ...plain(store),
      write: async (key, value, options) => {
        if (given.isLocked) throw storeError('no', 'busy');
        if (given.fails) throw storeError('no');
        if (given.refuses > 0) {
          given.refuses--;
          return { ok: false, entry: undefined };
        }
        writes.push([key, value, options]);
        return store.write(key, value, options);
      },
    };
    const client = {};
    const withNative: Store = {
      ...plain(store),
      native: { within: (asked: unknown) => (asked === client ? inside : undefined) } as never,
    };
    const outcomes: unknown[] = [];
    const engine = (options = {}) =>
      idempotency({
        store: withNative,
        clock,
        lease: '3s',
        on: (event) => void outcomes.push((event as { outcome?: string }).outcome),
        ...options,
      });
    return { clock, store, client, given, writes, engine, outcomes };
  }

  it('runs the function once, whatever it returns, and reports it', async () => {
    const { client, engine, outcomes, writes } = database();
    const once = engine({ maxBodyBytes: 8 });
    for (const value of [undefined, null, 0, 'text', 'x'.repeat(6)]) {
      const key = `k ${String(value)}`;
      expect(await once.transaction(client, key, async () => value, scope)).toBe(value);
      if (value !== 'xxxxxx')
        expect(await once.transaction(client, key, () => expect.unreachable(), scope)).toBe(value);
    }
    expect(outcomes.slice(0, 2)).toEqual(['executed', 'replayed']);
    expect(outcomes.at(-1)).toBe('too-large');
    // Its row is locked from the first statement on.
    const [began, ended] = writes.map(([, , options]) => options);
    expect([began, ended]).toMatchObject([{ ifVersion: 0 }, { ifVersion: expect.any(Number) }]);
    expect(ended).not.toMatchObject({ ifVersion: 0 });
    await expect(once.transaction(client, 'k xxxxxx', () => 1, scope)).rejects.toMatchObject({ reason: 'not-stored' });
  });

  it('reports a locked key as in flight, and passes on any other error of the store', async () => {
    const { client, engine, given, outcomes } = database();
    const once = engine({ wait: '5s' });
    given.isLocked = true;
    await expect(once.transaction(client, 'k', () => expect.unreachable(), scope)).rejects.toMatchObject({
      code: 'ERR_IN_FLIGHT',
      retryAfterMs: 1_000,
    });
    expect(outcomes).toEqual(['busy']);
    given.isLocked = false;
    given.fails = true;
    await expect(once.transaction(client, 'k', () => 1, scope)).rejects.toMatchObject({ code: 'ERR_STORE' });
    given.fails = false;
    await expect(
      once.transaction(client, 'k', () => 1, { ...scope, signal: AbortSignal.abort(new Error('gone')) }),
    ).rejects.toThrow('gone');
  });

  it('tries again when the record in the way is gone', async () => {
    const { client, engine, given } = database();
    given.refuses = 2;
    expect(await engine().transaction(client, 'k', ({ attempt }) => attempt, scope)).toBe(1);
  });

  it('frees the key when the function throws, even if the caller commits', async () => {
    const { client, engine, writes } = database();
    const once = engine();
    const failing = once.transaction(
      client,
      'k',
      () => {
        throw new RangeError('no stock');
      },
      scope,
    );
    await expect(failing).rejects.toThrow(RangeError);
    expect(writes).toHaveLength(2);
    expect(await once.transaction(client, 'k', ({ attempt }) => attempt, scope)).toBe(2);
  });

  it('takes over a lost attempt, or leaves the key in doubt', async () => {
    for (const onLost of ['rerun', 'refuse'] as const) {
      const { client, clock, store, engine, outcomes } = database();
      await lostIn(store, { name: 'idempotency' }).begin({ ...raw, operation: 'idempotency' });
      const run = () => engine({ onLost }).transaction(client, 'k', ({ attempt }) => attempt, scope);
      await expect(run()).rejects.toMatchObject({ code: 'ERR_IN_FLIGHT' });
      await clock.advance('3s');
      for (let call = 0; call < 2; call++) {
        if (onLost === 'rerun') expect(await run()).toBe(2);
        else await expect(run()).rejects.toMatchObject({ code: 'ERR_IN_DOUBT', reason: 'unknown' });
      }
      expect(outcomes).toEqual(
        onLost === 'rerun' ? ['busy', 'executed', 'replayed'] : ['busy', 'in-doubt', 'in-doubt'],
      );
    }
  });

  it('is refused if it is not a transaction, and takes no lock', async () => {
    const { client, store, writes, engine } = database();
    const stolen = engine().transaction(
      client,
      'k',
      async () => {
        // It looks as if the first statement had been rolled back, and somebody else had begun.
        for (const [key] of writes) await store.remove(key);
        return 1;
      },
      scope,
    );
    await expect(stolen).rejects.toThrow('does not hold the lock of its key');
  });

  it('is refused on a store that has none', async () => {
    for (const native of [undefined, {}]) {
      const once = idempotency({ store: { ...plain(memoryStore()), native } });
      await expect(once.transaction({}, 'k', () => 1, scope)).rejects.toThrow(OptionsError);
    }
  });
});

describe('a transaction of the store', () => {
  /** A store that carries out a function and its own writes together, or not at all. */
  function setUpTransactions(options = {}) {
    const clock = virtualClock();
    const kept = new Map<string, { value: Uint8Array; version: number; atMs: number }>();
    let versions = 0;
    const asked: unknown[] = [];
    const entryOf = (key: string) => {
      const one = kept.get(key);
      return one && { value: one.value, version: one.version, ageMs: clock.now() - one.atMs, ttlMs: 1e9 };
    };
    const view: StoreTransaction = {
      read: entryOf,
      write(key, value, { ifVersion }) {
        const entry = entryOf(key);
        if (ifVersion !== undefined && ifVersion !== (entry?.version ?? 0)) return { ok: false, entry };
        kept.set(key, { value, version: ++versions, atMs: clock.now() });
        return { ok: true, version: versions };
      },
      remove: (key) => kept.delete(key),
    };
    const store: Store = {
      read: async (key) => view.read(key),
      write: async (key, value, given) => view.write(key, value, given),
      remove: async (key) => view.remove(key),
      native: {
        transaction: async (work, given) => {
          asked.push(given);
          return work(view);
        },
      },
    };
    const events: IdempotencyEvent[] = [];
    const on = (event: HoldfastEvent) => void events.push(event as IdempotencyEvent);
    const once = idempotency({ store, clock, lease: '3s', on, ...options });
    const run = (value: unknown = 'done') => once.transaction({}, 'k', ({ attempt }) => value ?? attempt, scope);
    return { clock, store, once, run, events, asked, outcomes: () => events.map(({ outcome }) => outcome) };
  }

  it('returns and reports whatever the function returns', async () => {
    const { once, events } = setUpTransactions();
    for (const value of [undefined, null, 0, { then: 'no promise' }]) {
      const call = () => once.transaction({}, `k ${String(value)}`, () => value, scope);
      expect([await call(), await call()]).toEqual([value, value]);
    }
    expect(events.slice(0, 2)).toMatchObject([
      { outcome: 'executed', attempt: 1, durationMs: 0 },
      { outcome: 'replayed', attempt: 1, durationMs: 0 },
    ]);
  });

  it('passes its signal to the store', async () => {
    const { once, asked } = setUpTransactions();
    const { signal } = new AbortController();
    await once.transaction({}, 'k', () => 1, { ...scope, signal });
    expect(asked).toEqual([{ signal }]);
  });

  it('stores a result of exactly the largest size, and none that is larger', async () => {
    const { once, outcomes } = setUpTransactions({ maxBodyBytes: 6 });
    for (const value of ['abc', 'abcd']) await once.transaction({}, value, () => value, scope);
    expect(outcomes()).toEqual(['executed', 'too-large']);
  });

  it('waits for an attempt outside, if it may, and reports it', async () => {
    for (const wait of ['off', '5s'] as const) {
      const { store, clock, run, outcomes, events } = setUpTransactions({ wait });
      const outside = idempotency({ store, clock, lease: '3s' });
      const running = outside.run('k', () => clock.sleep('1s').then(() => 'outside'), scope);
      await clock.flush();
      const call = run().catch((error) => error);
      await clock.advance('2s');
      await running;
      if (wait === 'off') expect(await call).toMatchObject({ code: 'ERR_IN_FLIGHT' });
      else expect(await call).toBe('outside');
      expect(outcomes()).toEqual(wait === 'off' ? ['busy'] : ['waited', 'replayed']);
      if (wait !== 'off') expect(events[1]!.durationMs).toBeGreaterThanOrEqual(1_000);
    }
    const { run, outcomes } = setUpTransactions({ wait: '5s' });
    expect([await run(), outcomes()]).toEqual(['done', ['executed']]);
  });

  it('takes over a failed or lost attempt, and does not run a completed one again', async () => {
    const { store, clock, once, run } = setUpTransactions();
    const failing = once.run('k', () => Promise.reject(new Error('no')), scope);
    await expect(failing).rejects.toThrow('no');
    expect([await run(null), await run(null)]).toEqual([2, 2]);
    await lostIn(store).begin({ ...raw, operation: 'idempotency', key: 'lost' });
    await clock.advance('3s');
    const other = () => once.transaction({}, 'lost', ({ attempt }) => attempt, scope);
    expect([await other(), await other()]).toEqual([2, 2]);
  });

  it("leaves a lost attempt in doubt, with onLost 'refuse'", async () => {
    const { store, clock, run, outcomes } = setUpTransactions({ onLost: 'refuse' });
    await lostIn(store).begin({ ...raw, operation: 'idempotency' });
    await clock.advance('3s');
    for (let call = 0; call < 2; call++) await expect(run()).rejects.toMatchObject({ reason: 'unknown' });
    expect(outcomes()).toEqual(['in-doubt', 'in-doubt']);
    // The record says so, and no other engine considers it lost any more.
    await expect(idempotency({ store, clock, lease: '3s' }).run('k', () => 1, scope)).rejects.toThrow(InDoubtError);
  });
});
