/** The state machine on the three verbs: what is in the way, who comes second, and what a store may do to it. */
import { createHash } from 'node:crypto';
import { inspect } from 'node:util';
import { describe, expect, it } from 'vitest';
import {
  type Entry,
  type Idempotency,
  idempotency,
  memoryStore,
  type Store,
  type StoreChange,
  StoreError,
} from '../../../src/index.js';
import { virtualClock } from '../../../src/testing/index.js';
import { handleOf, lostIn, plain, raw, scope, setUp, setUpUnreliable, storeError } from './support.js';

const bytes = (...all: number[]) => Uint8Array.from(all);

describe('begin', () => {
  it('returns a handle that shows neither key nor record in a log', async () => {
    const { once } = setUp();
    const handle = handleOf(await once.begin({ ...raw, key: 'of a customer' }));
    expect(inspect(handle)).toBe(inspect({ attempt: 1, fence: handle.fence }));
    expect(JSON.stringify(handle)).toBe(JSON.stringify({ attempt: 1, fence: handle.fence }));
  });

  it('runs at once although it may wait, and reports no wait', async () => {
    const { once, outcomes } = setUp({ wait: '5s' });
    const begun = once.begin({ ...raw });
    expect(begun).not.toBeInstanceOf(Promise);
    handleOf(await begun).complete(bytes(1));
    const later = setUp({ wait: '5s' }, plain);
    for (let call = 0; call < 2; call++) await later.once.run('k', () => 1, scope);
    expect([outcomes(), later.outcomes()]).toEqual([['executed'], ['executed', 'replayed']]);
  });

  it('does not wait if it may not, and reports no wait', async () => {
    const { once, clock, outcomes } = setUp({}, plain);
    await once.begin({ ...raw });
    expect(await once.begin({ ...raw })).toMatchObject({ kind: 'busy' });
    expect([outcomes(), clock.now()]).toEqual([['busy'], 0]);
  });

  it('says what is wrong with a key, and refuses an operation name that could be taken for another', async () => {
    const { once } = setUp({ name: 'pay' });
    const run = (key: string, more = {}) => once.run(key, () => 'ran', { ...scope, ...more });
    await expect(run('')).rejects.toThrow('"pay": a key is 1 to 255 characters, got \'\'');
    for (const wrong of ['', 'a\0b', 'o'.repeat(1_001), '\ud800', 7]) {
      await expect(run('k', { operation: wrong })).rejects.toMatchObject({ code: 'ERR_OPTIONS', option: 'operation' });
    }
    expect([await run('k'.repeat(255)), await run('k', { operation: 'o'.repeat(1_000) })]).toEqual(['ran', 'ran']);
  });

  it('lets one of two callers take over at the same time, and tells the other that it is running', async () => {
    const { once, clock, store } = setUp({}, plain);
    const other = idempotency({ store: plain(store), clock, lease: '3s' });
    await lostIn(store).begin({ ...raw });
    await clock.advance('3s');
    const begun = await Promise.all([once, other].map((one) => one.begin({ ...raw })));
    expect(begun.map(({ kind }) => kind).sort()).toEqual(['busy', 'takeover']);
  });

  it('takes over operations lost with their process as often as `attempts` allows, then leaves the key in doubt', async () => {
    const { clock, store } = setUp({}, plain);
    const kinds: string[] = [];
    for (let count = 0; count < 4; count++) {
      kinds.push((await lostIn(store, { attempts: 3 }).begin({ ...raw })).kind);
      await clock.advance('3s');
    }
    expect(kinds).toEqual(['run', 'takeover', 'takeover', 'in-doubt']);
  });

  it('leaves a key in doubt that it has put in doubt, even if the reply to that write was lost', async () => {
    const { once, clock, store, faulty } = setUpUnreliable({ onLost: 'refuse' });
    await lostIn(store).begin({ ...raw });
    await clock.advance('3s');
    faulty.faults.push('works', 'lost');
    const begun = once.begin({ ...raw });
    await clock.advance(100);
    expect(await begun).toEqual({ kind: 'in-doubt', cause: undefined });
  });

  it('tries again when the record in the way is gone', async () => {
    const gone = (store: Store): Store => {
      let isFirst = true;
      const write: Store['write'] = async (key, value, options) => {
        if (!isFirst) return store.write(key, value, options);
        isFirst = false;
        return { ok: false, entry: undefined };
      };
      return { ...plain(store), write };
    };
    const { once } = setUp({}, gone);
    expect(await once.begin({ ...raw })).toMatchObject({ kind: 'run', handle: { attempt: 1 } });
  });

  it('does not compare fingerprints of different rules', async () => {
    const { once, store, clock } = setUp();
    await once.run('k', () => 'first', { ...scope, input: { cents: 1 } });
    const other = idempotency({ store, clock, fingerprint: () => 'by another rule' });
    expect(await other.run('k', () => expect.unreachable(), { ...scope, input: { cents: 2 } })).toBe('first');
  });

  it('keeps no trace longer than any version defines, since callers control it', async () => {
    const { once } = setUp();
    for (const [key, length] of [
      ['short', 255],
      ['long', 256],
    ] as const) {
      handleOf(await once.begin({ ...raw, key, trace: 't'.repeat(length) })).complete(bytes(1));
    }
    expect(await once.begin({ ...raw, key: 'short' })).toMatchObject({ kind: 'replay', trace: 't'.repeat(255) });
    expect(await once.begin({ ...raw, key: 'long' })).toMatchObject({ kind: 'replay', trace: undefined });
  });

  it('leaves no timer behind when a slow store has replied or failed', async () => {
    const clock = virtualClock();
    const faults: string[] = [];
    const slow = (store: Store): Store => ({
      ...plain(store),
      write: async (...given) => {
        await clock.sleep(100);
        if (faults.shift() !== undefined) throw storeError('no');
        return store.write(...given);
      },
    });
    const once = idempotency({ store: slow(memoryStore({ clock })), clock, lease: '3s', storeTimeout: '1h' });
    const first = once.begin({ ...raw });
    await clock.advance(100);
    handleOf(await first).release();
    const ended = handleOf(await first).abandon();
    await clock.advance(100);
    expect(await ended).toBe('stored');
    faults.push('fails');
    const failed = once.begin({ ...raw });
    await clock.advance('2s');
    expect([(await failed).kind, clock.pendingTimers]).toEqual(['store-down', 0]);
  });
});

describe('a store that fails as an operation begins', () => {
  it('is not asked again when it says that nothing was done', async () => {
    const { once, clock, faulty } = setUpUnreliable();
    faulty.faults.push('fails');
    expect(await once.begin({ ...raw })).toMatchObject({ kind: 'store-down' });
    await clock.advance('1h');
    expect(faulty.verbs).toBe(1);
  });

  it('is named in the event, with the error, and in the error if it has not replied in time', async () => {
    const { once, clock, events, faulty } = setUpUnreliable();
    faulty.faults.push('fails', ...Array(9).fill('hangs'));
    const error = (await once.begin({ ...raw })) as { error: unknown };
    expect(events).toMatchObject([{ outcome: 'store-error', error: error.error, keyHash: expect.any(String) }]);
    const hung = once.begin({ ...raw });
    await clock.advance(500);
    expect(await hung).toMatchObject({
      kind: 'store-down',
      error: { code: 'ERR_STORE', reason: 'timeout', applied: 'unknown', operation: 'begin' },
    });
    expect(String(((await hung) as { error: unknown }).error)).toContain('no answer within 500 ms ("storeTimeout")');
  });

  it('lets the operation run if `onStoreDown` allows it; the event says that it is unprotected, and why', async () => {
    const { once, events, outcomes, faulty } = setUpUnreliable({ onStoreDown: 'run' });
    faulty.faults.push('fails');
    expect(await once.run('k', () => 'ran', scope)).toBe('ran');
    expect(outcomes()).toEqual(['store-error', 'unprotected']);
    expect(events[1]).toMatchObject({ durationMs: 0, error: events[0]!.error });
    const refusing = setUpUnreliable();
    refusing.faulty.faults.push('fails');
    await expect(refusing.once.run('k', () => expect.unreachable(), scope)).rejects.toThrow(StoreError);
    expect(refusing.outcomes()).toEqual(['store-error']);
  });

  it('has a begin that was applied late taken back, so that the key is free before the lease ends', async () => {
    const clock = virtualClock();
    const store = memoryStore({ clock });
    let isLate = true;
    const late: Store = {
      ...plain(store),
      write: async (...given) => {
        if (!isLate) return store.write(...given);
        isLate = false;
        void clock.sleep(900).then(() => store.write(...given));
        return new Promise(() => {});
      },
    };
    const once = idempotency({ store: late, clock, lease: '30s', random: () => 0.5 });
    const failed = once.begin({ ...raw });
    await clock.advance(500);
    // Nobody refuses the next attempts yet, and they hang as well.
    expect((await failed).kind).toBe('store-down');
    await clock.advance('3s');
    expect(await once.begin({ ...raw })).toMatchObject({ kind: 'run', handle: { attempt: 1 } });
  });

  it('has a begin that never arrived taken back as well: nothing waits for it, and it cannot arrive any more', async () => {
    const clock = virtualClock();
    const store = memoryStore({ clock });
    let arrive: (() => Promise<unknown>) | undefined;
    const losing: Store = {
      ...plain(store),
      write: (...given) => {
        if (arrive !== undefined) return store.write(...given);
        arrive = () => store.write(...given);
        return new Promise(() => {});
      },
    };
    const once = idempotency({ store: losing, clock, storeTimeout: 4, lease: '30s' });
    const failed = once.begin({ ...raw });
    await clock.advance(4);
    expect((await failed).kind).toBe('store-down');
    let isIdle = false;
    const idle = once.idle().then(() => {
      isIdle = true;
    });
    await clock.advance('1s');
    expect(isIdle).toBe(true);
    await idle;
    expect(await arrive!()).toMatchObject({ ok: false });
    expect(await once.begin({ ...raw })).toMatchObject({ kind: 'run', handle: { attempt: 1 } });
  });

  it('begins nothing if it replies only when the lease is over, since another attempt may run by then', async () => {
    const clock = virtualClock();
    const store = memoryStore({ clock });
    const slow: Store = {
      ...plain(store),
      write: async (...given) => {
        const written = await store.write(...given);
        await clock.sleep(700);
        return written;
      },
    };
    const settings = { clock, lease: 500, storeTimeout: '1s', random: () => 0.5 } as const;
    const late = idempotency({ store: slow, ...settings });
    const other = idempotency({ store, ...settings });
    for (const isOvertaken of [true, false]) {
      const key = isOvertaken ? 'overtaken' : 'alone';
      const failed = late.begin({ ...raw, key });
      await clock.advance(600);
      if (isOvertaken) expect(await other.begin({ ...raw, key })).toMatchObject({ kind: 'takeover' });
      await clock.advance(100);
      expect(await failed).toMatchObject({ kind: 'store-down', error: { reason: 'timeout', applied: 'unknown' } });
      await clock.advance('1s');
      expect(await other.begin({ ...raw, key })).toMatchObject(
        isOvertaken ? { kind: 'busy' } : { kind: 'run', handle: { attempt: 1 } },
      );
    }
  });

  it('keeps a record that belongs to another owner by then', async () => {
    const { once, clock, faulty } = setUpUnreliable({ storeTimeout: 100 });
    faulty.faults.push('hangs');
    const failed = once.begin({ ...raw });
    await clock.advance(100);
    expect((await failed).kind).toBe('store-down');
    const begun = await once.begin({ ...raw });
    await clock.advance('2s');
    expect(await once.begin({ ...raw })).toMatchObject({ kind: 'busy' });
    expect(await handleOf(begun).complete(bytes(7))).toBe('stored');
    await clock.advance('2s');
    expect(await once.begin({ ...raw })).toMatchObject({ kind: 'replay', result: bytes(7) });
  });

  it('gets no more requests once the begin is taken back', async () => {
    const { once, clock, faulty } = setUpUnreliable({ storeTimeout: 4 });
    faulty.faults.push('lost');
    const failed = once.begin({ ...raw });
    await clock.advance('1s');
    expect([(await failed).kind, faulty.verbs]).toEqual(['store-down', 3]);
    await clock.advance('1h');
    expect([faulty.verbs, clock.pendingTimers]).toEqual([3, 0]);
  });

  it('has its begin taken back once, even if the reply to that is lost', async () => {
    const { once, clock, faulty } = setUpUnreliable({ storeTimeout: 4, lease: '30s' });
    faulty.faults.push('lost', 'works', 'lost');
    once.begin({ ...raw });
    await clock.advance('1s');
    expect(faulty.verbs).toBe(4);
    expect(await once.begin({ ...raw })).toMatchObject({ kind: 'run', handle: { attempt: 1 } });
  });

  it('has its begin taken back even if it is slow or refuses at first', async () => {
    const clock = virtualClock();
    const inner = memoryStore({ clock });
    let writes = 0;
    let reads = 0;
    const slow: Store = {
      ...plain(inner),
      read: async (...given) => {
        reads++;
        await clock.sleep(200);
        return inner.read(...given);
      },
      write: async (...given) => {
        writes++;
        if (writes === 1) {
          await inner.write(...given);
          return new Promise(() => {});
        }
        await clock.sleep(200);
        return writes === 2 ? { ok: false, entry: undefined } : inner.write(...given);
      },
    };
    const once = idempotency({ store: slow, clock, lease: '30s', random: () => 0.5 });
    const failed = once.begin({ ...raw });
    await clock.advance('3s');
    expect([(await failed).kind, reads, writes]).toEqual(['store-down', 2, 3]);
    const begun = once.begin({ ...raw });
    await clock.advance('1s');
    expect(await begun).toMatchObject({ kind: 'run', handle: { attempt: 1 } });
  });

  it('has its begin taken back at the next try if the first one is refused or slow', async () => {
    const { once, clock, faulty } = setUpUnreliable({ storeTimeout: 4, lease: '30s' });
    faulty.faults.push('lost', 'fails', 'hangs');
    const failed = once.begin({ ...raw });
    await clock.advance('1s');
    expect((await failed).kind).toBe('store-down');
    expect(await once.begin({ ...raw })).toMatchObject({ kind: 'run', handle: { attempt: 1 } });
  });

  it('asks a store that is down less and less often to take its begin back, until the lease is over', async () => {
    const { once, clock, faulty } = setUpUnreliable({ storeTimeout: 4, lease: '30s' });
    faulty.faults.push('lost', ...Array(10_000).fill('fails'));
    once.begin({ ...raw });
    await clock.advance('1s');
    expect(faulty.verbs).toBeLessThan(12);
    await clock.advance('1h');
    expect(faulty.verbs).toBeLessThan(45);
    expect(clock.pendingTimers).toBe(0);
  });
});

describe('a begin whose signal aborts', () => {
  it('waits no longer for another attempt, even if the store has ignored the signal', async () => {
    const controller = new AbortController();
    let writes = 0;
    const { once, clock } = setUp({ wait: '5s' }, (store) => ({
      ...plain(store),
      write: (key, value, options) => {
        if (++writes === 3) controller.abort('gone');
        return store.write(key, value, { ...options, signal: undefined });
      },
    }));
    await once.begin({ ...raw });
    const waiting = (async () => once.begin({ ...raw, signal: controller.signal }))().catch((reason) => reason);
    for (let ms = 0; ms < 1_000 && writes < 3; ms++) await clock.advance(1);
    expect(await Promise.race([waiting, clock.flush().then(() => 'still waiting')])).toBe('gone');
  });

  it('rejects with its reason, reports no error of the store, and frees the key', async () => {
    const hangs = (store: Store): Store => ({
      ...plain(store),
      write: (key, value, options) => {
        if (options.signal === undefined) return store.write(key, value, options);
        const { signal } = options;
        void store.write(key, value, { ...options, signal: undefined });
        return new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
      },
    });
    const { once, clock, outcomes } = setUp({ lease: '30s' }, hangs);
    const controller = new AbortController();
    const begun = Promise.resolve(once.begin({ ...raw, signal: controller.signal })).catch((error) => error);
    await clock.advance(10);
    controller.abort(new Error('gone'));
    await clock.advance(100);
    expect(await begun).toMatchObject({ message: 'gone' });
    expect(outcomes()).toEqual([]);
    expect(await once.begin({ ...raw })).toMatchObject({ kind: 'run' });
  });
});

describe('wait', () => {
  /** Counts how often calls that did not get the key have asked for it, which they do by a write. */
  function counted(native: Store['native']) {
    const asksMs: number[] = [];
    const { once, clock, events } = setUp({ wait: '5s' }, (store) => ({
      ...plain(store),
      native,
      write: async (...given) => {
        const answer = await store.write(...given);
        if (!answer.ok) asksMs.push(clock.now());
        return answer;
      },
    }));
    return { once, clock, events, asksMs };
  }

  it.each([
    ['that has nothing besides the verbs', undefined],
    ['that has no watch', {}],
  ])('asks a store %s soon, then more seldom, and at the end once more', async (_, native) => {
    const { once, clock, asksMs } = counted(native);
    await once.begin({ ...raw });
    const begun = once.begin({ ...raw });
    await clock.advance('5s');
    expect(await begun).toMatchObject({ kind: 'busy' });
    expect(asksMs.slice(0, 7)).toEqual([0, 25, 75, 175, 375, 625, 875]);
    expect(asksMs.at(-1)).toBe(5_000);
  });

  it('polls a store that reports changes once a second, and at each change', async () => {
    const rings: (() => void)[] = [];
    let closed = 0;
    const watch = (_key: string, onChange: (change: StoreChange) => void) => {
      rings.push(() => onChange({ kind: 'changed' }));
      return { ready: Promise.reject(new Error('cannot begin')), close: () => void closed++ };
    };
    const { once, clock, events, asksMs } = counted({ watch });
    const handle = handleOf(await once.begin({ ...raw }));
    const begun = once.begin({ ...raw });
    await clock.advance('3s');
    expect(asksMs).toEqual([0, 25, 75, 175, 375, 775, 1_575, 2_575]);
    handle.complete(bytes(1));
    await clock.flush();
    rings[0]!();
    await clock.flush();
    expect(await begun).toMatchObject({ kind: 'replay' });
    expect(asksMs.at(-1)).toBe(3_000);
    expect(closed).toBe(1);
    expect(events.find(({ outcome }) => outcome === 'waited')).toMatchObject({ durationMs: 3_000 });
    // Nobody hears the reply any more.
    rings[0]!();
    await clock.advance('5s');
    expect([asksMs.at(-1), clock.pendingTimers]).toEqual([3_000, 0]);
  });

  it('notices a change that is reported during its request', async () => {
    const rings: (() => void)[] = [];
    const watch = (_key: string, onChange: (change: StoreChange) => void) => {
      rings.push(() => onChange({ kind: 'changed' }));
      return { ready: Promise.resolve(), close() {} };
    };
    let asks = 0;
    let clockNow = () => 0;
    const seen: number[] = [];
    const { once, clock } = setUp({ wait: '5s' }, (store) => ({
      ...plain(store),
      native: { watch },
      write: async (...given) => {
        const answer = await store.write(...given);
        if (!answer.ok) {
          seen.push(clockNow());
          if (++asks === 2) rings[0]!();
        }
        return answer;
      },
    }));
    clockNow = () => clock.now();
    await once.begin({ ...raw });
    const begun = once.begin({ ...raw });
    await clock.advance('5s');
    await begun;
    expect(seen.slice(0, 4)).toEqual([0, 25, 25, 125]);
  });

  it('does not start with an aborted signal, and leaves no listener on another one', async () => {
    const { once, clock } = setUp({ wait: '5s' });
    const handle = handleOf(await once.begin({ ...raw }));
    const aborted = once.begin({ ...raw, signal: AbortSignal.abort(new Error('gone')) });
    await expect(aborted).rejects.toThrow('gone');
    const controller = new AbortController();
    const listeners: string[] = [];
    const { signal } = controller;
    for (const name of ['addEventListener', 'removeEventListener'] as const) {
      const own = signal[name].bind(signal) as (...given: unknown[]) => void;
      signal[name] = (...given: unknown[]) => {
        listeners.push(name);
        own(...given);
      };
    }
    const begun = once.begin({ ...raw, signal });
    await clock.advance('5s');
    await begun;
    const count = (name: string) => listeners.filter((one) => one === name).length;
    expect(count('removeEventListener')).toBe(count('addEventListener'));
    handle.complete(bytes(1));
    expect(clock.pendingTimers).toBe(0);
  });
});

describe('resolve', () => {
  it('ends the doubt about a record that cannot be read', async () => {
    const { once, store } = setUp();
    const written: string[] = [];
    const write = store.write.bind(store);
    store.write = (key, ...given) => {
      written.push(key);
      return write(key, ...given);
    };
    await once.run('k', () => 1, scope);
    for (const [resolution, answer] of [
      [{ ...scope, result: 'found out' }, 'found out'],
      [{ ...scope, release: true }, 'ran anew'],
    ] as const) {
      await write(written[0]!, bytes(1, 2, 3), { ttlMs: 60_000 });
      await expect(once.run('k', () => expect.unreachable(), scope)).rejects.toMatchObject({ reason: 'unreadable' });
      expect(await once.resolve('k', resolution)).toBe(true);
      expect(await once.run('k', () => 'ran anew', scope)).toBe(answer);
    }
  });

  it('ends the doubt about a lost attempt, to the millisecond, even if nobody has asked before', async () => {
    const { once, clock, store } = setUp({ onLost: 'refuse' });
    await lostIn(store).begin({ ...raw });
    await clock.advance(2_999);
    expect(await once.resolveBytes({ ...raw }, bytes(7))).toBe(false);
    await clock.advance(1);
    expect(await once.resolveBytes({ ...raw }, bytes(7))).toBe(true);
    expect(await once.begin({ ...raw })).toMatchObject({ kind: 'replay', result: bytes(7) });
  });

  it('changes nothing that is completed or free, however old it is', async () => {
    const { once, clock } = setUp();
    await once.run('done', () => 'done', scope);
    await expect(
      once.run(
        'free',
        () => {
          throw new Error('no');
        },
        scope,
      ),
    ).rejects.toThrow('no');
    await clock.advance('1h');
    for (const key of ['done', 'free']) expect(await once.resolve(key, { ...scope, result: 'other' })).toBe(false);
    expect(await once.run('free', () => 'ran', scope)).toBe('ran');
  });

  it('reports success when the store returns its own record, and not when another caller was first', async () => {
    const { store, clock } = setUp();
    await lostIn(store).begin({ ...raw });
    await clock.advance('3s');
    const engine = (write: Store['write']) => idempotency({ store: { ...plain(store), write }, clock });
    const repeating = engine(async (key, ...given) => {
      await store.write(key, ...given);
      return { ok: false, entry: await store.read(key) };
    });
    expect(await repeating.resolveBytes({ ...raw }, bytes(1))).toBe(true);
    await lostIn(store).begin({ ...raw, key: 'second' });
    await clock.advance('3s');
    const other = idempotency({ store, clock });
    let isFirst = true;
    const late = engine(async (...given) => {
      if (isFirst) expect(await other.resolveBytes({ ...raw, key: 'second' }, bytes(2))).toBe(true);
      isFirst = false;
      return store.write(...given);
    });
    expect(await late.resolveBytes({ ...raw, key: 'second' }, bytes(3))).toBe(false);
    expect(await other.begin({ ...raw, key: 'second' })).toMatchObject({ kind: 'replay', result: bytes(2) });
  });
});

describe('an event of the engine', () => {
  it('tells how long a wait, a run and its end took, and how old a replayed result is', async () => {
    const { once, clock, events, store } = setUp({}, (inner) => ({
      ...plain(inner),
      write: async (...given) => {
        await clock.sleep(40);
        return inner.write(...given);
      },
    }));
    const call = () => once.run('k', () => clock.sleep('500ms'), scope);
    const first = call();
    await clock.advance('2s');
    await first;
    const again = call();
    await clock.advance('1s');
    await again;
    const broken = once.run('k', () => 1, { ...scope, input: 'other' }).catch(() => {});
    await clock.advance('1s');
    await broken;
    const told = events.map(({ outcome, durationMs, ageMs, attempt }) => [outcome, durationMs, ageMs, attempt]);
    expect(told).toEqual([
      ['executed', 40, undefined, 1],
      ['replayed', 40, 1_460, 1],
      ['mismatch', 40, undefined, undefined],
    ]);
    expect(store.size).toBe(1);
  });

  it('tells why a result is not available, or a record cannot be read', async () => {
    const keys = { a: new Uint8Array(32) };
    const { once, store, clock } = setUp({ encryption: { current: 'a', keys } });
    const names: string[] = [];
    const write = store.write.bind(store);
    store.write = (key, ...given) => {
      names.push(key);
      return write(key, ...given);
    };
    await once.run('k', () => 1, scope);
    const events: object[] = [];
    const other = idempotency({ store, clock, on: (event) => void events.push(event) });
    const run = () => other.run('k', () => expect.unreachable(), scope);
    await expect(run()).rejects.toThrow('cannot be opened');
    await write(names[0]!, bytes(9), { ttlMs: 60_000 });
    await expect(run()).rejects.toThrow('cannot be read');
    expect(events).toMatchObject([
      { outcome: 'not-stored', durationMs: 0, error: { message: expect.stringContaining('key "a"') } },
      { outcome: 'in-doubt', durationMs: 0, error: { name: 'DamagedRecordError' } },
    ]);
  });
});

describe('idempotency on a store that refuses every write', () => {
  const lost = async () => {
    const store = memoryStore({ clock: virtualClock() });
    await lostIn(store).begin({ ...raw });
    const hash = createHash('sha256').update(`${raw.scope}\0${raw.operation}\0${raw.key}`).digest('base64url');
    return { ...(await store.read(`idempotency:${hash}`))!, ageMs: 60_000 };
  };
  /** @param from - The first write that is refused. */
  const setUpRefusing = (entry: Entry | undefined, from = 1) => {
    let writes = 0;
    const refusing = (inner: Store): Store => ({
      ...plain(inner),
      read: async () => entry,
      write: async (...given) => {
        // Otherwise an engine that keeps asking would never end.
        if (++writes > 1_000) throw storeError('no');
        return writes < from ? inner.write(...given) : { ok: false, entry };
      },
      native: { within: () => refusing(inner) },
    });
    return { ...setUp({}, refusing), writes: () => writes };
  };
  const busy = { code: 'ERR_STORE', reason: 'busy', applied: 'no' };
  const shown = ['nothing', 'an attempt that was lost'] as const;
  const entryOf = async (what: (typeof shown)[number]) => (what === 'nothing' ? undefined : await lost());

  it.each(shown)('begins nothing when the store shows %s each time', async (what) => {
    const { once, writes, outcomes } = setUpRefusing(await entryOf(what));
    expect(await once.begin({ ...raw })).toMatchObject({ kind: 'store-down', error: busy });
    expect(outcomes()).toEqual(['store-error']);
    expect(writes()).toBeLessThanOrEqual(300);
  });

  it.each(shown)('begins nothing in a transaction when the store shows %s each time', async (what) => {
    const { once, writes } = setUpRefusing(await entryOf(what));
    const begun = once.transaction({}, raw.key, () => 1, { scope: raw.scope, operation: raw.operation });
    await expect(begun).rejects.toMatchObject(busy);
    expect(writes()).toBeLessThanOrEqual(300);
  });

  it('ends no doubt', async () => {
    const { once, writes } = setUpRefusing(await lost());
    const resolution = { scope: raw.scope, operation: raw.operation, release: true } as const;
    await expect(once.resolve(raw.key, resolution)).rejects.toMatchObject(busy);
    expect(writes()).toBeLessThanOrEqual(300);
  });

  it('keeps no phase, and leaves the end unrecorded in time', async () => {
    const { once, clock, writes } = setUpRefusing(undefined, 2);
    const handle = handleOf(await once.begin({ ...raw }));
    await expect(handle.phase('charge', () => 1)).rejects.toMatchObject(busy);
    expect(writes()).toBeLessThanOrEqual(300);
    const end = handle.complete(bytes(1));
    await clock.advance('10s');
    expect(await end).toBe('unrecorded');
  });
});

describe('idle', () => {
  /** What has happened, in order; `idle` when the engine was idle. */
  function seenOf(once: Idempotency): string[] {
    const seen: string[] = [];
    once.idle().then(() => seen.push('idle'));
    return seen;
  }

  it('waits for a call from the moment it is made', async () => {
    const { once, clock } = setUp();
    const running = once.run('k', () => clock.sleep(100), { ...scope, input: { cents: 1 } });
    const seen = seenOf(once);
    running.then(() => seen.push('answered'));
    await clock.advance(100);
    await running;
    await clock.flush();
    expect(seen).toEqual(['answered', 'idle']);
  });

  it('does not wait for a sealed call that has thrown what cannot be read', async () => {
    const { once } = setUp();
    const unreadable = Object.defineProperty({}, 'name', { get: () => expect.unreachable() });
    const failing = once.run('k', ({ seal }) => seal().then(() => Promise.reject(unreadable)), scope);
    expect(await failing.catch((thrown: unknown) => thrown === unreadable)).toBe(true);
    await once.idle();
    await expect(once.run('k', () => 'again', scope)).rejects.toMatchObject({ reason: 'not-stored' });
  });

  it('waits for a transaction', async () => {
    const { once, clock } = setUp({}, (store) => ({
      ...plain(store),
      native: { transaction: () => clock.sleep(100).then(() => Promise.reject(new Error('rolled back'))) },
    }));
    const failing = expect(once.transaction({}, 'k', () => 1, scope)).rejects.toThrow('rolled back');
    const seen = seenOf(once);
    await clock.advance(99);
    expect(seen).toEqual([]);
    await clock.advance(1);
    await failing;
    await clock.flush();
    expect(seen).toEqual(['idle']);
  });

  it('waits until a begin whose outcome is unknown has been undone', async () => {
    const { once, clock, faulty } = setUpUnreliable({ storeTimeout: 4 });
    faulty.faults.push('lost', 'fails', 'fails');
    expect((await once.begin({ ...raw })).kind).toBe('store-down');
    const seen = seenOf(once);
    await clock.flush();
    expect(seen).toEqual([]);
    await clock.advance('1s');
    expect([seen, (await once.begin({ ...raw })).kind]).toEqual([['idle'], 'run']);
  });

  it('waits for a handler that runs unprotected, and takes its second end for none', async () => {
    const { once, clock, faulty } = setUpUnreliable({ onStoreDown: 'run' });
    faulty.faults.push('fails');
    const unprotected = handleOf(await once.begin({ ...raw }));
    const seen = seenOf(once);
    await clock.flush();
    expect(seen).toEqual([]);
    await unprotected.abandon();
    await unprotected.complete(undefined);
    expect(seen).toEqual(['idle']);
    const handle = handleOf(await once.begin({ ...raw }));
    const seenLater = seenOf(once);
    await clock.flush();
    expect(seenLater).toEqual([]);
    await handle.complete(undefined);
    await clock.flush();
    expect(seenLater).toEqual(['idle']);
  });
});
