/** One run of an operation, between the write that acquired its record and the one that ends it. */
import { describe, expect, it } from 'vitest';
import { decodeRecord } from '../../../src/coordination/idempotency/record.js';
import { idempotency, memoryStore, type Store, StoreError } from '../../../src/index.js';
import { virtualClock } from '../../../src/testing/index.js';
import { handleOf, plain, raw, scope, setUp, setUpUnreliable, storeError } from './support.js';

const mebibyte = 1_048_576;

/** An engine whose writes the test makes itself, from the second one on. */
function setUpWrites(
  write: (inner: Store, count: number, ...given: Parameters<Store['write']>) => ReturnType<Store['write']>,
) {
  let writes = 0;
  const world = setUp({}, (store) => ({
    ...plain(store),
    write: (...given) => {
      writes++;
      return writes === 1 ? store.write(...given) : write(store, writes, ...given);
    },
  }));
  return { ...world, writes: () => writes };
}

describe('an attempt', () => {
  it('renews nothing and leaves no timer when it ends before its first renewal', async () => {
    const { once, clock, faulty } = setUpUnreliable();
    await once.run('k', () => 1, scope);
    await clock.advance('1s');
    expect(clock.pendingTimers).toBe(0);
    await clock.advance('1h');
    expect(faulty.verbs).toBe(2);
  });

  it('shares one timer with attempts that began earlier or later, until its first renewal is due', async () => {
    const { once, clock } = setUp();
    const runs = [];
    for (const key of ['a', 'b', 'c', 'd']) {
      runs.push(once.run(key, ({ signal }) => clock.sleep('1m').then(() => signal.aborted), scope));
      await clock.flush();
      expect([clock.pendingTimers - runs.length, clock.nextTimerAt]).toEqual([1, 1_000]);
      await clock.advance(200);
    }
    await clock.advance('30s');
    for (const key of ['a', 'b', 'c', 'd']) {
      await expect(once.run(key, () => 'again', scope)).rejects.toMatchObject({ code: 'ERR_IN_FLIGHT' });
    }
    await clock.advance('1m');
    expect([await Promise.all(runs), clock.pendingTimers]).toEqual([[false, false, false, false], 0]);
  });

  it('keeps its engine from being idle until its end is recorded, or cannot be any more', async () => {
    const { once, clock, faulty } = setUpUnreliable({ storeTimeout: 100 });
    const seen: string[] = [];
    const see = (what: string) => once.idle().then(() => seen.push(what));
    await see('before');
    const beginning = once.begin({ ...raw });
    see('begun');
    await clock.flush();
    expect(seen).toEqual(['before']);
    await handleOf(await beginning).complete(undefined);
    await clock.flush();
    expect(seen.splice(1)).toEqual(['begun']);
    const failing = expect(
      once.run('b', () => clock.sleep(200).then(() => Promise.reject(new Error('no'))), scope),
    ).rejects.toThrow('no');
    const working = once.run('a', () => clock.sleep(500), scope);
    await clock.flush();
    see('recorded');
    await clock.advance(300);
    await failing;
    expect(seen).toEqual(['before']);
    faulty.faults.push('fails', 'fails', 'works');
    await clock.advance('1s');
    await working;
    expect(seen).toEqual(['before', 'recorded']);
    const lost = once.run('c', () => void faulty.faults.push(...Array(1_000).fill('fails')), scope);
    await clock.flush();
    see('given up');
    await clock.advance('1s');
    await lost;
    expect(seen).toEqual(['before', 'recorded']);
    await clock.advance('1m');
    expect(seen).toEqual(['before', 'recorded', 'given up']);
  });

  it('gets its own keeper when a third of its lease has passed', async () => {
    const { once, clock } = setUp();
    await clock.advance(70);
    once.begin({ ...raw });
    expect([clock.pendingTimers, clock.nextTimerAt]).toEqual([1, 1_070]);
  });

  it('gets it, too, if the timer of earlier attempts found nothing to do', async () => {
    const { once, clock } = setUp();
    await once.run('k', () => 1, scope);
    await clock.advance('5s');
    expect(clock.pendingTimers).toBe(0);
    once.begin({ ...raw });
    expect([clock.pendingTimers, clock.nextTimerAt]).toEqual([1, 6_000]);
  });

  it('gets it before its first renewal is due, which is sooner if its lease is short', async () => {
    const { once, clock } = setUp({ lease: 100 });
    once.begin({ ...raw });
    // The lease can be relied on for 47 ms, and is renewed after half of them.
    expect([clock.pendingTimers, clock.nextTimerAt]).toEqual([1, 23.5]);
  });

  it('gets it in time however many begin after it, and those behind it get theirs later', async () => {
    const { once, clock } = setUp();
    const handles = [];
    for (let call = 0; call < 20; call++) {
      handles.push(handleOf(await once.begin({ ...raw, key: `${call}` })));
      // Those that began within the last second share a timer.
      expect(clock.pendingTimers).toBe(Math.max(0, call - 3) + 1);
      await clock.advance(250);
    }
    await clock.advance('10s');
    expect(handles.map(({ signal }) => signal.aborted)).toEqual(Array(20).fill(false));
    for (const handle of handles) await handle.complete(undefined);
  });

  it('that is over is renewed no more, whenever its signal is asked for', async () => {
    const { once, clock, faulty } = setUpUnreliable();
    const handle = handleOf(await once.begin({ ...raw }));
    await handle.complete(undefined);
    await clock.advance('2s');
    expect([handle.signal.aborted, clock.pendingTimers]).toEqual([false, 0]);
    await clock.advance('1m');
    expect(faulty.verbs).toBe(2);
  });

  it('keeps its key with the shortest lease', async () => {
    const { once, clock } = setUp({ lease: 100 });
    const run = once.run('k', ({ signal }) => clock.sleep('10s').then(() => signal.aborted), scope);
    await clock.advance('10s');
    expect(await run).toBe(false);
  });

  it.each([
    ['at once', (store: Store) => store],
    ['later', (store: Store) => ({ ...plain(store), write: async (...given) => await store.write(...given) }) as Store],
  ])(
    'that is over stays as it ended, whatever it is told afterwards, on a store that answers %s',
    async (_, storeOf) => {
      const { once, events } = setUp({}, storeOf);
      const handle = handleOf(await once.begin({ ...raw }));
      expect(await handle.complete(Uint8Array.of(7))).toBe('stored');
      expect([await handle.abandon(), await handle.complete(undefined)]).toEqual(['stored', 'stored']);
      expect(await once.begin({ ...raw })).toMatchObject({ kind: 'replay', result: Uint8Array.of(7) });
      expect(events.map(({ outcome }) => outcome)).toEqual(['executed', 'replayed']);
    },
  );

  it('that was lost and then ended leaves the renewal of other attempts alone', async () => {
    const { once, clock, store, events } = setUp();
    const lost = handleOf(await once.begin({ ...raw, key: 'lost' }));
    const other = once.run('other', ({ signal }) => clock.sleep('1m').then(() => signal.aborted), scope);
    const another = once.run('another', ({ signal }) => clock.sleep('1m').then(() => signal.aborted), scope);
    const write = store.write.bind(store);
    const frozen = idempotency({ store, clock: virtualClock(), lease: '3s' });
    // Another attempt owns it now: the record was removed and begun anew.
    const keys: string[] = [];
    store.write = (key, ...given) => {
      keys.push(key);
      return write(key, ...given);
    };
    await frozen.begin({ ...raw, key: 'lost' });
    await store.remove(keys[0]!);
    await frozen.begin({ ...raw, key: 'lost' });
    for (let call = 0; call < 3; call++) expect(await lost.complete(new Uint8Array(1))).toBe('lost');
    expect(events.map(({ outcome, attempt }) => [outcome, attempt])).toEqual([['lost', 1]]);
    await clock.advance('30s');
    for (const key of ['other', 'another']) {
      expect(await frozen.begin({ ...raw, operation: 'idempotency', key })).toMatchObject({ kind: 'busy' });
    }
    await clock.advance('30s');
    expect(await Promise.all([other, another])).toEqual([false, false]);
  });

  it.each(['0ms', '2s'] as const)(
    'tells by its signal that it is lost as soon as a machine that slept after %s goes on, before any timer',
    async (before) => {
      const { once, clock, outcomes } = setUp();
      const handle = handleOf(await once.begin({ ...raw }));
      await clock.advance(before);
      expect(handle.signal.aborted).toBe(false);
      clock.jumpWallClock(3_000);
      expect(handle.signal.reason).toMatchObject({ code: 'ERR_IN_DOUBT', reason: 'lost' });
      expect(outcomes()).toEqual(['lost']);
    },
  );

  it('creates no timer when its signal is read, neither at first nor after its end', async () => {
    const { once, clock } = setUp();
    const handle = handleOf(await once.begin({ ...raw }));
    expect([handle.signal.aborted, clock.pendingTimers]).toEqual([false, 1]);
    await handle.abandon();
    await clock.advance('10s');
    expect([handle.signal.aborted, clock.pendingTimers]).toEqual([false, 0]);
  });

  it('reports once that it was lost, and how', async () => {
    const { once, clock, store, events } = setUp();
    const begun = handleOf(await idempotency({ store, clock: virtualClock(), lease: '3s' }).begin({ ...raw }));
    await clock.advance('3s');
    const { signal } = begun;
    handleOf(await once.begin({ ...raw }));
    for (let call = 0; call < 2; call++) {
      await expect(begun.seal()).rejects.toThrow('this attempt has lost its key: another attempt has taken it over');
    }
    expect(signal.reason).toMatchObject({ code: 'ERR_IN_DOUBT', reason: 'lost' });
    const cut = setUpUnreliable();
    const handle = handleOf(await cut.once.begin({ ...raw }));
    cut.faulty.faults.push(...Array(99).fill('hangs'));
    await cut.clock.advance('3s');
    expect(String(handle.signal.reason)).toContain('this attempt has lost its key: it could not be renewed in time');
    const told = cut.events.filter(({ outcome }) => outcome === 'lost');
    expect(told).toEqual([expect.objectContaining({ attempt: 1, error: handle.signal.reason })]);
    await cut.clock.advance('1m');
    expect([cut.clock.pendingTimers, events.map(({ outcome }) => outcome)]).toEqual([0, ['takeover']]);
  });
});

describe('the end of an attempt', () => {
  it('is written at the next try if the store fails once, and only that failure is reported', async () => {
    const { once, clock, faulty, events } = setUpUnreliable();
    const run = once.run(
      'k',
      () => {
        faulty.faults.push('fails');
        return 'done';
      },
      scope,
    );
    await clock.advance('1s');
    expect(await run).toBe('done');
    expect(events).toMatchObject([
      { outcome: 'store-error', attempt: 1, error: { code: 'ERR_STORE' } },
      { outcome: 'executed', attempt: 1 },
    ]);
    expect(faulty.verbs).toBe(3);
    await clock.advance('1h');
    expect([faulty.verbs, clock.pendingTimers]).toEqual([3, 0]);
  });

  it('is reported as unrecorded, with its attempt, when the store accepts it in no form', async () => {
    const { once, clock, events } = setUpWrites(() => Promise.reject(storeError('no', 'invalid')));
    const run = once.run('k', () => 'done', scope);
    await clock.advance('10s');
    expect(await run).toBe('done');
    expect(events.find(({ outcome }) => outcome === 'unrecorded')).toMatchObject({ attempt: 1 });
  });

  it.each([
    ['is applied late', '700ms', 0],
    ['has no reply', '400ms', '1h'],
  ] as const)(
    'stays the end when it %s: no renewal opens the record again, and nothing is lost',
    async (_, after, reply) => {
      const states: string[] = [];
      let ends = 0;
      const { once, clock, outcomes } = setUpWrites(async (store, _count, key, value, options) => {
        const { state } = decodeRecord(value);
        // Of the end only the first write succeeds, and all renewals do.
        if (state === 'completed' && ++ends > 1) await clock.sleep('1h');
        if (state === 'completed') await clock.sleep(after);
        const answer = await store.write(key, value, options);
        if (answer.ok) states.push(state);
        if (state === 'completed') await clock.sleep(reply);
        return answer;
      });
      const handle = handleOf(await once.begin({ ...raw }));
      const { signal } = handle;
      const ended = handle.complete(new Uint8Array(1));
      await clock.advance('10s');
      expect([await ended, states, signal.aborted]).toEqual(['unrecorded', ['completed'], false]);
      expect(outcomes()).not.toContain('lost');
      expect(await once.begin({ ...raw })).toMatchObject({ kind: 'replay' });
    },
  );

  it('is reported as stored once its reply has come, however late, and is retried until then', async () => {
    let ends = 0;
    const { once, clock, outcomes } = setUp({ lease: '30s' }, (store) => ({
      ...plain(store),
      write: async (key, value, options) => {
        const isEnd = decodeRecord(value).state === 'completed';
        const end = isEnd ? ++ends : 0;
        if (end === 1) await clock.sleep('700ms');
        if (end === 2) await clock.sleep('1h');
        return store.write(key, value, options);
      },
    }));
    const ended = handleOf(await once.begin({ ...raw })).complete(new Uint8Array(1));
    await clock.advance('5s');
    expect([await ended, outcomes().at(-1), ends]).toEqual(['unrecorded', 'executed', 3]);
    expect(outcomes()).not.toContain('lost');
  });

  it('is not a loss if a renewal overtakes it, or was in flight when it was written', async () => {
    const { once, clock, outcomes, store } = setUpWrites(async (inner, count, key, value, options) => {
      // The first renewal and then the end take a while. The second renewal waits until the end is written.
      if (count === 2) await clock.sleep(100);
      if (count === 3) await clock.sleep(200);
      return inner.write(key, value, options);
    });
    const handle = handleOf(await once.begin({ ...raw }));
    const { signal } = handle;
    await clock.advance('1050ms');
    const ended = handle.complete(new Uint8Array(1));
    await clock.advance('5s');
    expect([await ended, signal.aborted, outcomes(), store.size]).toEqual(['stored', false, ['executed'], 1]);
    expect(await once.begin({ ...raw })).toMatchObject({ kind: 'replay' });
  });

  it('stores a result of exactly the largest size, and not one that is a byte larger', async () => {
    const { once } = setUp({ maxBodyBytes: 10 });
    const end = async (key: string, length: number) =>
      handleOf(await once.begin({ ...raw, key })).complete(new Uint8Array(length));
    expect([await end('a', 10), await end('b', 11)]).toEqual(['stored', 'too-large']);
  });

  it('of a large result is written in several turns, with other work between them', async () => {
    for (const [length, fewest] of [
      [mebibyte / 2, 0],
      [2 * mebibyte, 3],
    ] as const) {
      let turns = 0;
      let isDone = false;
      const looking = (async () => {
        for (; !isDone; turns++) await new Promise((resolve) => setImmediate(resolve));
      })();
      const { once } = setUp({ maxBodyBytes: 4 * mebibyte, store: memoryStore({ maxValueBytes: 4 * mebibyte }) });
      const handle = handleOf(await once.begin({ ...raw }));
      const from = turns;
      expect(await handle.complete(new Uint8Array(length).fill(7))).toBe('stored');
      isDone = true;
      await looking;
      expect(turns - from).toBeGreaterThanOrEqual(fewest);
      const begun = await once.begin({ ...raw });
      expect(begun.kind === 'replay' && begun.result.length).toBe(length);
    }
  });

  it('without a result does not count for how long the operation takes', async () => {
    const { once, clock } = setUp({ lease: '30s' });
    for (const key of ['a', 'b', 'c']) {
      const failing = once.run(key, () => clock.sleep('8s').then(() => Promise.reject(new Error('no'))), scope);
      failing.catch(() => {});
      await clock.advance('8s');
    }
    void once.begin({ ...raw, operation: 'idempotency' });
    await expect(once.run('k', () => 1, scope)).rejects.toMatchObject({ retryAfterMs: 1_000 });
  });
});

describe('seal', () => {
  it('is reported once, and repeated if its reply was lost', async () => {
    const { once, clock, faulty, events } = setUpUnreliable();
    const handle = handleOf(await once.begin({ ...raw }));
    faulty.faults.push('lost');
    const sealed = handle.seal();
    await clock.advance(100);
    await sealed;
    await handle.seal();
    expect(events).toMatchObject([
      { outcome: 'sealed', attempt: 1 },
      { outcome: 'store-error', attempt: 1, error: { applied: 'unknown' } },
    ]);
  });

  it('rejects within its time, after a few tries at growing intervals, when the store does not accept it', async () => {
    const { once, clock, writes } = setUpWrites(() => Promise.reject(storeError('unknown')));
    const handle = handleOf(await once.begin({ ...raw }));
    const sealed = handle.seal().catch((error) => error);
    await clock.advance(500);
    expect([await sealed, writes()]).toEqual([expect.any(StoreError), 8]);
  });

  it('that nothing awaits causes no unhandled rejection, and still counts', async () => {
    const { once, faulty } = setUpUnreliable();
    const handle = handleOf(await once.begin({ ...raw }));
    faulty.faults.push('fails');
    void handle.seal();
    await new Promise((resolve) => setImmediate(resolve));
    expect(handle.decision).toBe('keep');
    expect(() => handle.release()).toThrow('what was sealed cannot be released');
  });

  it('waits for a slow store, but no longer than allowed', async () => {
    const { once, clock } = setUpWrites(async (store, _, ...given) => {
      await clock.sleep(400);
      return store.write(...given);
    });
    const handle = handleOf(await once.begin({ ...raw }));
    const sealed = handle.seal();
    await clock.advance(400);
    expect(await sealed).toBeUndefined();
  });
});

describe('phases', () => {
  const names = ['a', 'b', 'c', 'd'];

  it('run once in all attempts, whichever attempt completed them', async () => {
    const { once } = setUp({ onLost: 'resume' });
    const done: string[] = [];
    const run = (last: number) =>
      once.run(
        'k',
        async ({ phase, attempt }) => {
          const answers = [];
          for (const [index, name] of names.entries()) {
            if (index >= last) throw new Error('later');
            answers.push(await phase(name, () => done.push(name) && `${name}${attempt}`));
          }
          return answers;
        },
        scope,
      );
    await expect(run(2)).rejects.toThrow('later');
    await expect(run(3)).rejects.toThrow('later');
    expect([await run(9), done]).toEqual([['a1', 'b1', 'c2', 'd3'], names]);
  });

  it('whose answer the store has not accepted yet are recorded with the next write', async () => {
    const { once, faulty } = setUpUnreliable({ onLost: 'resume' });
    let runs = 0;
    const run = () =>
      once.run(
        'k',
        async ({ phase, attempt }) => {
          if (attempt === 1) faulty.faults.push('fails');
          const first = phase('a', () => ++runs);
          if (attempt === 1) await expect(first).rejects.toThrow(StoreError);
          const second = await phase('b', () => `b${attempt}`);
          if (attempt === 1) throw new Error('later');
          return [await first, second];
        },
        scope,
      );
    await expect(run()).rejects.toThrow('later');
    expect([await run(), runs]).toEqual([[1, 'b1'], 1]);
  });

  it('whose answer the store will never accept do not keep it from accepting the next', async () => {
    const { once } = setUp({ onLost: 'resume' });
    const run = () =>
      once.run(
        'k',
        async ({ phase, attempt }) => {
          const large = phase('a', () => 'x'.repeat(attempt === 1 ? 1_100_000 : 1));
          if (attempt > 1) return [await large, await phase('b', () => 'b2'), await phase('c', () => 'c2')];
          await expect(large).rejects.toMatchObject({ reason: 'invalid' });
          await phase('a', () => 'small');
          await phase('b', () => 'b1');
          throw new Error('later');
        },
        scope,
      );
    await expect(run()).rejects.toThrow('later');
    expect(await run()).toEqual(['small', 'b1', 'c2']);
  });

  it('whose answer JSON cannot represent say why, with the cause', async () => {
    const { once } = setUp();
    const run = once.run('k', ({ phase }) => phase('a', () => Symbol('x')), scope);
    await expect(run).rejects.toMatchObject({ name: 'TypeError', cause: { message: 'a symbol has no JSON' } });
  });
});

describe('an attempt while the store is down', () => {
  it("has the key and the downstream keys of a protected one, and keeps the handler's decision", async () => {
    const options = { onStoreDown: 'run', secret: 'sixteen bytes or more' } as const;
    const protectedOne = handleOf(await setUp(options).once.begin({ ...raw }));
    const { once, faulty } = setUpUnreliable(options);
    const unprotected = async () => {
      faulty.faults.push('fails');
      return handleOf(await once.begin({ ...raw }));
    };
    const handle = await unprotected();
    expect([handle.key, handle.downstreamKey('charge')]).toEqual(['k', protectedOne.downstreamKey('charge')]);
    expect(await handle.phase('charge', (key) => key)).toBe(protectedOne.downstreamKey('charge'));
    expect(handle.decision).toBeUndefined();
    await handle.seal();
    expect([handle.decision, await handle.complete(new Uint8Array(1))]).toEqual(['keep', 'unrecorded']);
    const other = await unprotected();
    other.release();
    expect([other.decision, await other.abandon()]).toEqual(['release', 'unrecorded']);
  });
});
