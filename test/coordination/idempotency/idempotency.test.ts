import { describe, expect, it } from 'vitest';
import type { IdempotencyHandle, IdempotencyOptions } from '../../../src/coordination/idempotency/idempotency.js';
import {
  decodeRecord,
  encodeRecord,
  type IdempotencyRecord,
  type Memo,
} from '../../../src/coordination/idempotency/record.js';
import {
  InDoubtError,
  InFlightError,
  idempotency,
  KeyMissingError,
  KeyReusedError,
  memoryStore,
  OptionsError,
  type Store,
  StoreError,
} from '../../../src/index.js';
import { virtualClock } from '../../../src/testing/index.js';
import { raw, scope, setUp, unreliable } from './support.js';

describe('idempotency', () => {
  it('runs an operation once per key and returns its result to every call', async () => {
    const { once, outcomes } = setUp();
    let runs = 0;
    const pay = () => once.run('order 1', async () => ({ paid: ++runs }), scope);
    expect([await pay(), await pay(), await once.run('order 2', () => ++runs, scope)]).toEqual([
      { paid: 1 },
      { paid: 1 },
      2,
    ]);
    expect(outcomes()).toEqual(['executed', 'replayed', 'executed']);
  });

  it.each([0, false, '', null, undefined, [], {}, 'text', -1.5])('returns %j again unchanged', async (value) => {
    const { once } = setUp();
    let runs = 0;
    const run = () =>
      once.run(
        'k',
        () => {
          runs++;
          return value;
        },
        scope,
      );
    expect([await run(), await run(), runs]).toEqual([value, value, 1]);
  });

  it('gives the first caller too the result decoded from its stored bytes', async () => {
    const { once } = setUp();
    const run = () => once.run('k', () => ({ at: new Date(0), left: undefined }), scope);
    expect([await run(), await run()]).toEqual([
      { at: '1970-01-01T00:00:00.000Z' },
      { at: '1970-01-01T00:00:00.000Z' },
    ]);
  });

  it('costs two round trips, and a replay costs one', async () => {
    const counted = unreliable(memoryStore());
    const { once } = setUp({ store: counted.store });
    await once.run('k', () => 1, scope);
    expect(counted.verbs).toBe(2);
    await once.run('k', () => 1, scope);
    expect(counted.verbs).toBe(3);
  });

  it('keeps callers apart, and operations', async () => {
    const { once } = setUp();
    let runs = 0;
    const run = (who: string, operation: string) => once.run('k', () => ++runs, { scope: who, operation });
    expect([await run('a', 'x'), await run('b', 'x'), await run('a', 'y'), await run('a', 'x')]).toEqual([1, 2, 3, 1]);
  });

  it('refuses an input that JSON represents without its contents, since any two of them would be the same', async () => {
    const { once } = setUp();
    const run = (input: unknown) => once.run('k', () => expect.unreachable(), { ...scope, input });
    const unseen = [
      new Map([[1, 2]]),
      new Set([1]),
      /x/,
      new URLSearchParams('a=1'),
      new ArrayBuffer(1),
      () => 1,
      Symbol('a'),
    ];
    for (const one of unseen) await expect(run(one)).rejects.toMatchObject({ code: 'ERR_OPTIONS', option: 'input' });
    const cycle: { self?: unknown } = {};
    cycle.self = cycle;
    for (const one of [1n, { cents: 1n }, cycle])
      await expect(run(one)).rejects.toMatchObject({ code: 'ERR_OPTIONS', option: 'input' });
    await expect(run({ cents: 1n })).rejects.toThrow('got one that fails: Do not know how to serialize a BigInt');
    const nested = run({ lines: [{ by: new Map() }] });
    await expect(nested).rejects.toThrow('"input.lines.0.by" must be what JSON can say, or bytes');
    class Order {
      cents = 5;
    }
    const said = [
      new Date(0),
      new URL('http://shop.test'),
      { a: {}, b: [], c: null, d: new Order(), e: undefined, f() {} },
    ];
    const bare = [Object.assign(Object.create(null), { a: Object.create(null) }), {}, [], { data: Buffer.from('x') }];
    for (const input of [...said, ...bare]) {
      expect(await once.run(`k ${JSON.stringify(input)}`, () => 'ran', { ...scope, input })).toBe('ran');
    }
  });

  it('refuses a number in its input that JSON represents as null', async () => {
    const { once } = setUp();
    const run = (input: unknown) => once.run('k', () => 'ran', { ...scope, input });
    for (const one of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
      await expect(run(one)).rejects.toMatchObject({ code: 'ERR_OPTIONS', option: 'input' });
      await expect(run({ cents: one })).rejects.toMatchObject({ code: 'ERR_OPTIONS', option: 'input.cents' });
      await expect(run([[1, one]])).rejects.toMatchObject({ code: 'ERR_OPTIONS', option: 'input.0.1' });
    }
    expect(await run({ cents: null, most: Number.MAX_VALUE })).toBe('ran');
  });

  it('refuses an invalid date in its input', async () => {
    const { once } = setUp();
    const run = (input: unknown) => once.run('k', () => 'ran', { ...scope, input });
    const none = new Date(Number.NaN);
    await expect(run(none)).rejects.toMatchObject({ code: 'ERR_OPTIONS', option: 'input' });
    await expect(run({ due: none })).rejects.toMatchObject({ code: 'ERR_OPTIONS', option: 'input.due' });
    expect(await run({ due: new Date(0) })).toBe('ran');
  });

  it('refuses a key that comes with another input', async () => {
    const { once } = setUp();
    const run = (input: unknown) => once.run('k', () => 1, { ...scope, input });
    await run({ cents: 1, to: 'a' });
    expect(await run({ to: 'a', cents: 1 })).toBe(1);
    await expect(run({ to: 'b', cents: 1 })).rejects.toThrow(KeyReusedError);
    await expect(run(undefined)).rejects.toThrow(KeyReusedError);
  });

  it('compares what the option fingerprint selects', async () => {
    const { once } = setUp({ fingerprint: { exclude: ['/sentAt'] } });
    const run = (input: unknown) => once.run('k', () => 1, { ...scope, input });
    await run({ cents: 1, sentAt: 5 });
    expect(await run({ cents: 1, sentAt: 6 })).toBe(1);
    await expect(run({ cents: 2, sentAt: 6 })).rejects.toThrow(KeyReusedError);
    const own = setUp({ fingerprint: (input) => String((input as { cents: number }).cents) }).once;
    await own.run('k', () => 1, { ...scope, input: { cents: 1, a: 1 } });
    expect(await own.run('k', () => 2, { ...scope, input: { cents: 1, b: 1 } })).toBe(1);
  });

  it('tells a caller that comes while it runs when to ask again', async () => {
    const { once, clock } = setUp();
    const first = once.run('k', () => clock.sleep('10s').then(() => 'done'), scope);
    await clock.advance('1s');
    await expect(once.run('k', () => 'again', scope)).rejects.toMatchObject({
      code: 'ERR_IN_FLIGHT',
      retryAfterMs: 1_000,
    });
    await clock.advance('9s');
    expect(await first).toBe('done');
  });

  it('estimates from earlier calls how much longer it will run', async () => {
    const { once, clock } = setUp({ lease: '30s' });
    for (const key of ['a', 'b', 'c']) {
      const run = once.run(key, () => clock.sleep('8s'), scope);
      await clock.advance('8s');
      await run;
    }
    void once.run('k', () => clock.sleep('8s'), scope);
    await clock.advance('3s');
    await expect(once.run('k', () => 1, scope)).rejects.toMatchObject({ retryAfterMs: 5_000 });
    await clock.advance('5s');
  });

  it('runs again after an error, and gives up after ten attempts', async () => {
    const { once, outcomes } = setUp();
    const attempts: number[] = [];
    const run = () =>
      once.run(
        'k',
        ({ attempt }) => {
          attempts.push(attempt);
          throw new RangeError('no');
        },
        scope,
      );
    for (let count = 0; count < 10; count++) await expect(run()).rejects.toThrow(RangeError);
    await expect(run()).rejects.toMatchObject({ code: 'ERR_IN_DOUBT', reason: 'unknown' });
    expect(attempts).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    expect(outcomes().slice(-3)).toEqual(['released', 'in-doubt', 'in-doubt']);
  });

  it.each([1, 25])('gives up after the configured number of attempts: %i', async (attempts) => {
    const { once } = setUp({ attempts });
    let begun = 0;
    const fail = () => {
      begun++;
      throw new RangeError('no');
    };
    for (let count = 0; count < attempts; count++) await expect(once.run('k', fail, scope)).rejects.toThrow(RangeError);
    await expect(once.run('k', fail, scope)).rejects.toMatchObject({ code: 'ERR_IN_DOUBT' });
    expect(begun).toBe(attempts);
  });

  it('gives up after as many lost attempts, which may have killed their process', async () => {
    const { once, clock, store, outcomes } = setUp({ attempts: 3 });
    const lostIn = idempotency({ store, clock: virtualClock(), lease: '3s', attempts: 3 });
    for (const kind of ['run', 'takeover', 'takeover']) {
      expect(await lostIn.begin({ ...raw })).toMatchObject({ kind });
      await clock.advance('3s');
    }
    expect(await once.begin({ ...raw })).toMatchObject({ kind: 'in-doubt' });
    expect(await lostIn.begin({ ...raw })).toMatchObject({ kind: 'in-doubt' });
    expect(outcomes()).toEqual(['in-doubt']);
  });

  it('runs again after a release, however often, even if a phase could not be recorded', async () => {
    const { once } = setUp({ attempts: 2, onLost: 'refuse' });
    const seen: number[] = [];
    const run = () =>
      once.run(
        'k',
        async ({ attempt, phase, release }) => {
          seen.push(attempt);
          release();
          if (attempt > 2) await phase('charge', () => 1n).catch(() => {});
        },
        scope,
      );
    for (let count = 0; count < 4; count++) await run();
    expect(seen).toEqual([1, 2, 3, 4]);
  });

  it('does not count a released attempt, however many there are', async () => {
    const { once, outcomes } = setUp({ attempts: 2 });
    const run = (isReleased: boolean) =>
      once.run(
        'k',
        ({ attempt, release }) => {
          if (isReleased) release();
          throw new RangeError(`attempt ${attempt}`);
        },
        scope,
      );
    for (let attempt = 1; attempt <= 30; attempt++) await expect(run(true)).rejects.toThrow(`attempt ${attempt}`);
    await expect(run(false)).rejects.toThrow('attempt 31');
    await expect(run(true)).rejects.toThrow('attempt 32');
    await expect(run(false)).rejects.toThrow('attempt 33');
    expect(outcomes().slice(-2)).toEqual(['released', 'in-doubt']);
    await expect(run(false)).rejects.toMatchObject({ code: 'ERR_IN_DOUBT' });
  });

  it('counts from zero after a doubt was resolved', async () => {
    const { once } = setUp({ attempts: 2 });
    const run = () => once.run('k', ({ attempt }) => Promise.reject(new RangeError(`attempt ${attempt}`)), scope);
    for (const attempt of [1, 2]) await expect(run()).rejects.toThrow(`attempt ${attempt}`);
    expect(await once.resolve('k', { ...scope, release: true })).toBe(true);
    for (const attempt of [3, 4]) await expect(run()).rejects.toThrow(`attempt ${attempt}`);
    await expect(run()).rejects.toMatchObject({ code: 'ERR_IN_DOUBT' });
  });

  it('keeps an error that comes after a seal', async () => {
    const { once, outcomes } = setUp();
    let runs = 0;
    const sealing = () =>
      once.run(
        'k',
        async (handle) => {
          runs++;
          await handle.seal();
          throw Object.assign(new RangeError('card declined'), { code: 'E_CARD' });
        },
        scope,
      );
    await expect(sealing()).rejects.toThrow(RangeError);
    await expect(sealing()).rejects.toMatchObject({ name: 'RangeError', message: 'card declined', code: 'E_CARD' });
    expect([runs, outcomes()]).toEqual([1, ['sealed', 'executed', 'replayed']]);
  });

  it('does not store a released outcome, and refuses to release a sealed one', async () => {
    const { once } = setUp();
    let runs = 0;
    const run = () =>
      once.run(
        'k',
        (handle) => {
          handle.release();
          return ++runs;
        },
        scope,
      );
    expect([await run(), await run()]).toEqual([1, 2]);
    await once.run(
      'k',
      async (handle) => {
        await handle.seal();
        expect(() => handle.release()).toThrow(/sealed/);
        expect(handle.attempt).toBe(3);
      },
      scope,
    );
  });

  it('renews its lease for as long as it runs', async () => {
    const { once, clock } = setUp();
    const first = once.run('k', ({ signal }) => clock.sleep('1h').then(() => signal.aborted), scope);
    for (let minute = 0; minute < 60; minute++) {
      await expect(once.run('k', () => 'again', scope)).rejects.toThrow(InFlightError);
      await clock.advance('1m');
    }
    expect([await first, clock.pendingTimers]).toEqual([false, 0]);
  });

  it('waits for the running attempt, if it may', async () => {
    const { once, clock, outcomes } = setUp({ wait: '5s' });
    const first = once.run('k', () => clock.sleep('2s').then(() => 'done'), scope);
    const second = once.run('k', () => 'again', scope);
    await clock.advance('2s');
    expect(await first).toBe('done');
    await clock.advance('250ms');
    expect([await second, outcomes(), clock.pendingTimers]).toEqual(['done', ['executed', 'waited', 'replayed'], 0]);
    const slow = once.run('slow', () => clock.sleep('9s'), scope);
    const late = once.run('slow', () => 'again', scope).catch((error) => error);
    await clock.advance('5s');
    expect(await late).toBeInstanceOf(InFlightError);
    await clock.advance('4s');
    await slow;
  });

  it('stops waiting when its signal aborts', async () => {
    const { once, clock } = setUp({ wait: '5s' });
    const first = once.run('k', () => clock.sleep('2s'), scope);
    const controller = new AbortController();
    const second = once.run('k', () => 'again', { ...scope, signal: controller.signal }).catch((error) => error);
    await clock.advance('1s');
    controller.abort(new Error('gone'));
    expect(await second).toMatchObject({ message: 'gone' });
    await clock.advance('1s');
    await first;
    expect(clock.pendingTimers).toBe(0);
  });

  it.each(['rerun', 'resume'] as const)(
    'with %s, lets the next call take over when the lease of a lost attempt has ended',
    async (onLost) => {
      const { once, clock, store, outcomes } = setUp({ onLost });
      const lost = await idempotency({ store, clock: virtualClock(), lease: '3s' }).begin({ ...raw });
      if (lost.kind !== 'run') throw new Error(lost.kind);
      await clock.advance(2_999);
      expect(await once.begin({ ...raw })).toMatchObject({ kind: 'busy' });
      await clock.advance(1);
      const begun = await once.begin({ ...raw });
      if (begun.kind !== 'takeover') throw new Error(begun.kind);
      expect([begun.handle.attempt, begun.handle.fence > lost.handle.fence]).toEqual([2, true]);
      // The slow first owner can neither end nor free what belongs to the second.
      expect(await lost.handle.complete(new Uint8Array(1))).toBe('lost');
      expect(lost.handle.signal.aborted).toBe(true);
      expect(await begun.handle.complete(new Uint8Array(2))).toBe('stored');
      expect(await lost.handle.abandon()).toBe('lost');
      expect(await once.begin({ ...raw })).toMatchObject({ kind: 'replay', result: new Uint8Array(2) });
      expect(outcomes()).toEqual(['busy', 'takeover', 'executed', 'replayed']);
    },
  );

  it('with refuse, keeps a lost attempt in doubt until it is resolved', async () => {
    const { once, clock, store } = setUp({ onLost: 'refuse' });
    const lost = await idempotency({ store, clock: virtualClock(), lease: '3s', name: 'pay' }).begin({
      ...raw,
      operation: 'pay',
    });
    const key = { scope: 'shop', operation: 'pay' };
    expect(await once.resolve('k', { ...key, release: true })).toBe(false);
    await clock.advance('3s');
    expect(await once.begin({ ...raw, operation: 'pay' })).toEqual({ kind: 'in-doubt', cause: undefined });
    await clock.advance('1h');
    expect(await once.begin({ ...raw, operation: 'pay' })).toEqual({ kind: 'in-doubt', cause: undefined });
    if (lost.kind !== 'run') throw new Error(lost.kind);
    expect(await lost.handle.complete(new Uint8Array(1))).toBe('lost');
    expect(await once.resolve('k', { ...key, result: { paid: 1 } })).toBe(true);
    expect(await once.begin({ ...raw, operation: 'pay' })).toMatchObject({ kind: 'replay' });
    expect(await once.resolve('k', { ...key, result: { paid: 2 } })).toBe(false);
    expect(await once.resolve('other', { ...key, result: { paid: 2 } })).toBe(false);
  });

  it('runs again when a doubt is resolved as not having happened', async () => {
    const { once, clock, store } = setUp({ onLost: 'refuse' });
    const dead = idempotency({ store, clock: virtualClock(), lease: '3s' });
    void dead.run('k', () => new Promise(() => {}), scope);
    await clock.advance('3s');
    const run = () => once.run('k', ({ attempt }) => attempt, scope);
    await expect(run()).rejects.toThrow(InDoubtError);
    expect(await once.resolve('k', { ...scope, release: true })).toBe(true);
    expect([await run(), await run()]).toEqual([2, 2]);
  });

  it('never takes over a sealed attempt', async () => {
    const { once, clock, store } = setUp({ onLost: 'rerun' });
    const dead = idempotency({ store, clock: virtualClock(), lease: '3s' });
    void dead.run(
      'k',
      async (handle) => {
        await handle.seal();
        await new Promise(() => {});
      },
      scope,
    );
    await clock.advance('3s');
    await expect(once.run('k', () => 1, scope)).rejects.toMatchObject({ reason: 'unknown' });
  });

  it('tells the handler that its lease is lost before another attempt can begin', async () => {
    const faulty = unreliable(memoryStore());
    const { once, clock } = setUp({ store: faulty.store });
    let lostAtMs = 0;
    const run = once.run(
      'k',
      ({ signal }) =>
        new Promise((_, reject) => {
          signal.addEventListener('abort', () => {
            lostAtMs = clock.now();
            reject(signal.reason);
          });
        }),
      scope,
    );
    run.catch(() => {});
    await clock.flush();
    faulty.faults.push(...Array(20).fill('hangs'));
    await clock.advance('10s');
    await expect(run).rejects.toMatchObject({ code: 'ERR_IN_DOUBT', reason: 'lost' });
    expect(lostAtMs).toBeLessThan(3_000);
  });

  it('recognizes its own record when the reply to begin, complete or release was lost', async () => {
    const faulty = unreliable(memoryStore());
    const { once, clock } = setUp({ store: faulty.store });
    let runs = 0;
    faulty.faults.push('lost');
    const first = once.run('k', () => ++runs, scope);
    await clock.advance(100);
    expect(await first).toBe(1);
    faulty.faults.push('lost', 'lost', 'lost');
    expect(await Promise.all([once.run('k', () => ++runs, scope), clock.advance(200)])).toEqual([1, undefined]);
    const failing = once.run(
      'f',
      () => {
        faulty.faults.push('lost');
        throw new Error('no');
      },
      scope,
    );
    failing.catch(() => {});
    await clock.advance(100);
    await expect(failing).rejects.toThrow('no');
    faulty.faults.push();
    const completing = once.run(
      'f',
      ({ attempt }) => {
        faulty.faults.push('lost', 'fails', 'lost');
        return attempt;
      },
      scope,
    );
    await clock.advance(100);
    expect([await completing, await once.run('f', () => 'again', scope), runs]).toEqual([2, 2, 1]);
  });

  it('returns its result when the store does not accept it, and keeps trying for as long as the lease is held', async () => {
    const faulty = unreliable(memoryStore());
    const { once, clock, outcomes } = setUp({ store: faulty.store });
    const run = once.run(
      'k',
      () => {
        faulty.faults.push(...Array(12).fill('fails'));
        return 'done';
      },
      scope,
    );
    await clock.advance(500);
    expect([await run, outcomes().at(-1)]).toEqual(['done', 'unrecorded']);
    await clock.advance('5s');
    expect(outcomes().at(-1)).toBe('executed');
    expect([await once.run('k', () => 'again', scope), clock.pendingTimers]).toEqual(['done', 0]);
  });

  it('runs nothing while the store is down, and says so within storeTimeout', async () => {
    const faulty = unreliable(memoryStore());
    const { once, clock } = setUp({ store: faulty.store });
    let runs = 0;
    faulty.faults.push('hangs');
    const run = once.run('k', () => ++runs, scope).catch((error) => error);
    await clock.advance(500);
    expect([await run, runs]).toEqual([expect.any(StoreError), 0]);
    faulty.faults.push('fails');
    await expect(once.run('k', () => ++runs, scope)).rejects.toThrow(StoreError);
    await clock.advance('1m');
    expect(await once.run('k', () => ++runs, scope)).toBe(1);
    // One timer looks after all young attempts. It is cancelled with the first attempt that would have needed it.
    await clock.advance('10s');
    expect(clock.pendingTimers).toBe(0);
  });

  it('takes back a begin whose reply never came', async () => {
    const inner = memoryStore();
    const faulty = unreliable(inner);
    const { once, clock } = setUp({ store: faulty.store, lease: '1h', onLost: 'refuse' });
    faulty.faults.push(...Array(20).fill('lost'));
    const run = once.run('k', () => 1, scope).catch((error) => error);
    await clock.advance(500);
    expect(await run).toBeInstanceOf(StoreError);
    faulty.faults.length = 0;
    await clock.advance('2s');
    expect(await once.run('k', ({ attempt }) => attempt, scope)).toBe(1);
  });

  it('runs unprotected while the store is down, if configured', async () => {
    const faulty = unreliable(memoryStore());
    const { once, outcomes } = setUp({ store: faulty.store, onStoreDown: 'run' });
    faulty.faults.push('fails');
    const seen = await once.run(
      'k',
      async (handle) => {
        await handle.seal();
        return [handle.fence, handle.signal.aborted, await handle.phase('p', (key) => key.length)];
      },
      scope,
    );
    expect([seen, outcomes()]).toEqual([
      [0, false, 43],
      ['store-error', 'unprotected'],
    ]);
  });

  it('does not run again an operation whose result is too large', async () => {
    const { once, outcomes } = setUp({ maxBodyBytes: 10 });
    const run = () => once.run('k', () => 'x'.repeat(20), scope);
    expect(await run()).toHaveLength(20);
    await expect(run()).rejects.toMatchObject({ code: 'ERR_IN_DOUBT', reason: 'not-stored' });
    expect(outcomes()).toEqual(['too-large', 'not-stored']);
    const tight = setUp({ store: memoryStore({ maxValueBytes: 1_000 }) });
    expect(await tight.once.run('k', () => 'x'.repeat(2_000), scope)).toHaveLength(2_000);
    await expect(tight.once.run('k', () => 1, scope)).rejects.toMatchObject({ reason: 'not-stored' });
    const odd = setUp();
    expect(await odd.once.run('k', () => 1n, scope)).toBe(1n);
    expect(odd.events.at(-1)).toMatchObject({ outcome: 'too-large', error: expect.any(TypeError) });
    await expect(odd.once.run('k', () => 1n, scope)).rejects.toMatchObject({ reason: 'not-stored' });
  });

  it('keeps its key when the server has lost it', async () => {
    const { once, clock, store } = setUp();
    const begun = await once.begin({ ...raw });
    if (begun.kind !== 'run') throw new Error(begun.kind);
    const lost = memoryStore({ clock });
    Object.assign(store, { read: lost.read.bind(lost), write: lost.write.bind(lost) });
    await clock.advance('1s');
    expect(await once.begin({ ...raw })).toMatchObject({ kind: 'busy' });
    expect(await begun.handle.complete(new Uint8Array(1))).toBe('stored');
    expect(await once.begin({ ...raw })).toMatchObject({ kind: 'replay' });
  });

  it('refuses invalid arguments before anything is done', async () => {
    const { once, store } = setUp();
    const never = () => expect.unreachable();
    await expect(once.run('', never, scope)).rejects.toThrow(KeyMissingError);
    await expect(once.run('k'.repeat(256), never, scope)).rejects.toThrow(KeyMissingError);
    await expect(once.run('\ud800', never, scope)).rejects.toThrow(KeyMissingError);
    await expect(once.run(7 as never, never, scope)).rejects.toThrow(KeyMissingError);
    await expect(once.run('k', never, {} as never)).rejects.toThrow(/"scope"/);
    await expect(once.run('k', never, {} as never)).rejects.toThrow(
      /"scope" is required: a string of 1 to 1000 char.*, in the options of the call$/,
    );
    await expect(once.run('k', never, { scope: '' })).rejects.toThrow(OptionsError);
    await expect(once.run('k', never, { scope: 'a\0b' })).rejects.toThrow(OptionsError);
    await expect(once.run('k', never, { scope: 'a', scop: 1 } as never)).rejects.toThrow(/did you mean "scope"/);
    await expect(once.run('k', never, { scope: 'a', input: 1n })).rejects.toThrow(TypeError);
    await expect(once.resolve('k', { scope: 'a' } as never)).rejects.toThrow(OptionsError);
    expect(store.size).toBe(0);
    expect(() => idempotency({} as never)).toThrow(/"store" is required/);
    expect(() => idempotency({ store, ttl: '10s', lease: '10s' })).toThrow(/longer than "lease"/);
    expect(() => idempotency({ store, secret: 'short' })).toThrow(/at least 16 bytes/);
    expect(() => idempotency({ store, fingerprint: { exclude: ['sentAt'] } })).toThrow(/JSON pointers/);
    const keys = { a: new Uint8Array(31) };
    expect(() => idempotency({ store, encryption: { current: 'a', keys } })).toThrow(/32 bytes/);
    expect(() => idempotency({ store, encryption: { current: 'b', keys: { a: new Uint8Array(32) } } })).toThrow(
      /current/,
    );
  });

  it('counts the outcomes of the calls of each operation', async () => {
    const { once } = setUp();
    await once.run('k', () => 1, { scope: 'a', operation: 'pay' });
    await once.run('k', () => 1, { scope: 'a', operation: 'pay' });
    await once.run('k', () => 1, { scope: 'a', operation: 'ship' });
    expect(once.counts()).toEqual({ pay: { executed: 1, replayed: 1 }, ship: { executed: 1 } });
    for (let count = 0; count < 1_500; count++) await once.run('k', () => 1, { scope: 'a', operation: `o ${count}` });
    expect(Object.keys(once.counts())).toHaveLength(1_001);
  });
});

describe('an event', () => {
  it('of a replay or a takeover names the trace of the attempt that has run or was lost', async () => {
    const { store, clock, once, events } = setUp();
    await idempotency({ store, clock: virtualClock(), lease: '3s' }).begin({ ...raw, trace: 'of the lost one' });
    await clock.advance(3_001);
    const begun = await once.begin({ ...raw, trace: 'of the second' });
    if (!('handle' in begun) || begun.handle === undefined) throw new Error(begun.kind);
    await begun.handle.complete(new Uint8Array(1));
    await once.begin({ ...raw, trace: 'of the third' });
    expect(events.map(({ outcome, trace }) => [outcome, trace])).toEqual([
      ['takeover', 'of the lost one'],
      ['executed', undefined],
      ['replayed', 'of the second'],
    ]);
  });
});

describe('begin, on a store', () => {
  it('that answers at once, begins, replays and ends synchronously', () => {
    const { once } = setUp();
    const begun = once.begin({ ...raw });
    expect(begun).toMatchObject({ kind: 'run' });
    expect(once.begin({ ...raw })).toMatchObject({ kind: 'busy' });
    expect('handle' in begun && begun.handle?.complete(new Uint8Array(1))).toBe('stored');
    expect(once.begin({ ...raw })).toMatchObject({ kind: 'replay', result: new Uint8Array(1) });
  });

  it('that wraps a synchronous one, waits for the wrapper', async () => {
    const { store, faults } = unreliable(memoryStore());
    const { once } = setUp({ store });
    faults.push('fails');
    expect(await once.begin({ ...raw })).toMatchObject({ kind: 'store-down' });
  });

  it('that throws, counts that as a failure', async () => {
    const store: Store = {
      read: async () => undefined,
      write() {
        throw new StoreError({ store: 'test', operation: 'write', reason: 'failed', applied: 'no', detail: 'thrown' });
      },
      remove: async () => false,
    };
    const { once } = setUp({ store });
    expect(await once.begin({ ...raw })).toMatchObject({ kind: 'store-down' });
  });
});

describe('phase', () => {
  it('can be destructured from the handle', async () => {
    const orders = idempotency({ store: memoryStore(), onLost: 'rerun' });
    const whole = await orders.run('a', (handle) => handle.downstreamKey('charge'), { scope: 'user' });
    const apart = await orders.run(
      'b',
      async ({ phase, downstreamKey, seal }) => {
        await phase('reserve', () => 1);
        await seal();
        return downstreamKey('charge');
      },
      { scope: 'user' },
    );
    expect([typeof whole, typeof apart, whole === apart]).toEqual(['string', 'string', false]);
  });

  it('does not run again in a later attempt, which gets its recorded answer', async () => {
    const { once } = setUp({ onLost: 'resume' });
    const done: string[] = [];
    let fails = true;
    const order = () =>
      once.run(
        'k',
        async (handle) => {
          const reserved = await handle.phase('reserve', (key) => {
            done.push(`reserve ${key === handle.downstreamKey('reserve')}`);
            return { seat: 7, none: undefined };
          });
          const charged = await handle.phase('charge', () => {
            done.push('charge');
            if (fails) throw new Error('no money');
            return undefined;
          });
          return [reserved, charged, handle.attempt];
        },
        scope,
      );
    await expect(order()).rejects.toThrow('no money');
    fails = false;
    expect(await order()).toEqual([{ seat: 7 }, null, 2]);
    expect(done).toEqual(['reserve true', 'charge', 'charge']);
  });

  it('survives the process, and keeps its downstream key', async () => {
    const { once, clock, store } = setUp({ onLost: 'resume' });
    const keys: string[] = [];
    const dead = idempotency({ store, clock: virtualClock(), lease: '3s', onLost: 'resume' });
    void dead.run(
      'k',
      async (handle) => {
        await handle.phase('a', (key) => keys.push(key));
        await handle.phase('b', (key) => {
          keys.push(key);
          return new Promise<never>(() => {});
        });
      },
      scope,
    );
    await clock.advance('3s');
    const answer = await once.run(
      'k',
      async (handle) => {
        const a = await handle.phase('a', () => expect.unreachable());
        return [a, await handle.phase('b', (key) => keys.push(key))];
      },
      scope,
    );
    expect(answer).toEqual([1, 3]);
    expect([keys[0] === keys[1], keys[1] === keys[2]]).toEqual([false, true]);
  });

  it('refuses other steps than an earlier attempt ran, unless it may be rerun', async () => {
    for (const onLost of ['resume', 'refuse', 'rerun'] as const) {
      const { once } = setUp({ onLost });
      const run = (names: string[]) =>
        once.run(
          'k',
          async (handle) => {
            const all = [];
            for (const name of names) all.push(await handle.phase(name, () => `${name} ${handle.attempt}`));
            if (handle.attempt === 1) throw new Error('later');
            return all;
          },
          scope,
        );
      await expect(run(['a', 'b', 'c'])).rejects.toThrow('later');
      if (onLost === 'rerun') expect(await run(['a', 'x', 'c'])).toEqual(['a 1', 'x 2', 'c 2']);
      else await expect(run(['a', 'x'])).rejects.toMatchObject({ code: 'ERR_IN_DOUBT', reason: 'drift' });
    }
  });

  it('goes on, where it may be rerun, from the steps of the latest attempt', async () => {
    const { once } = setUp({ onLost: 'rerun' });
    const run = (names: string[], fails: boolean) =>
      once.run(
        'k',
        async (handle) => {
          const all = [];
          for (const name of names) all.push(await handle.phase(name, () => `${name} ${handle.attempt}`));
          if (fails) throw new Error('later');
          return all;
        },
        scope,
      );
    await expect(run(['a', 'b', 'c'], true)).rejects.toThrow('later');
    await expect(run(['a', 'x'], true)).rejects.toThrow('later');
    expect(await run(['a', 'x', 'c'], false)).toEqual(['a 1', 'x 2', 'c 3']);
  });

  it('gives no result to an attempt that leaves out what an earlier one did, unless it may be rerun or is sealed', async () => {
    for (const onLost of ['resume', 'refuse', 'rerun'] as const) {
      const { once } = setUp({ onLost });
      const run = (key: string, names: string[], isSealed = false) =>
        once.run(
          key,
          async (handle) => {
            for (const name of names) await handle.phase(name, () => name);
            if (isSealed) await handle.seal();
            if (handle.attempt === 1) throw new Error('later');
            return 'done';
          },
          scope,
        );
      await expect(run('k', ['reserve', 'charge'])).rejects.toThrow('later');
      if (onLost === 'rerun') expect(await run('k', ['reserve'])).toBe('done');
      else {
        await expect(run('k', ['reserve'])).rejects.toMatchObject({
          ...{ code: 'ERR_IN_DOUBT', reason: 'drift' },
          message: expect.stringContaining('an earlier attempt did phase "charge", which this one has left out'),
        });
        await expect(run('k', [])).rejects.toMatchObject({ reason: 'drift' });
        // The code that did it may still end it.
        expect(await run('k', ['reserve', 'charge', 'ship'])).toBe('done');
      }
      await expect(run('l', ['reserve', 'charge'])).rejects.toThrow('later');
      expect(await run('l', ['reserve'], true)).toBe('done');
    }
  });

  it('runs one at a time', async () => {
    const { once } = setUp();
    const run = once.run('k', (handle) => Promise.all([handle.phase('a', () => 1), handle.phase('b', () => 2)]), scope);
    await expect(run).rejects.toThrow(/one after the other/);
  });

  it('says so when its answer cannot be recorded, and does not hold up later steps', async () => {
    const { once, clock, outcomes } = setUp();
    const answers = [1n, 'x'.repeat(1_100_000), 'small'];
    const run = () => once.run('k', (handle) => handle.phase('charge', () => answers[handle.attempt - 1]), scope);
    await expect(run()).rejects.toThrow(
      /phase "charge" has run, and its result cannot be stored, so a later attempt runs it again: .*BigInt/,
    );
    await expect(run()).rejects.toMatchObject({ code: 'ERR_STORE', reason: 'invalid' });
    expect([await run(), outcomes()]).toEqual(['small', ['released', 'store-error', 'released', 'executed']]);
    expect(clock.pendingTimers).toBeLessThanOrEqual(1);
  });

  it.each([
    [
      'nothing that the serializer takes',
      1n,
      { name: 'TypeError', message: expect.stringContaining('cannot be stored, so its key is in doubt: ') },
    ],
    ['too large for the store', 'x'.repeat(1_100_000), { code: 'ERR_STORE', reason: 'invalid' }],
  ])('leaves its key in doubt when its answer is %s, unless it may be rerun', async (_, answer, error) => {
    for (const onLost of ['resume', 'refuse'] as const) {
      const { once } = setUp({ onLost });
      let charges = 0;
      const run = () =>
        once.run(
          'k',
          async ({ phase, attempt }) => {
            await phase('reserve', () => {
              expect(attempt).toBe(1);
            });
            return phase('charge', () => (++charges === 1 ? answer : 'paid'));
          },
          scope,
        );
      await expect(run()).rejects.toMatchObject(error);
      await expect(run()).rejects.toMatchObject({ code: 'ERR_IN_DOUBT' });
      expect(charges).toBe(1);
      expect(await once.resolve('k', { ...scope, release: true })).toBe(true);
      expect([await run(), charges]).toEqual(['paid', 2]);
    }
  });

  it('may have an answer that cannot be recorded if the attempt still succeeds', async () => {
    const { once } = setUp({ onLost: 'refuse' });
    const run = () => once.run('k', ({ phase }) => phase('charge', () => 1n).catch(() => 'paid'), scope);
    expect([await run(), await run()]).toEqual(['paid', 'paid']);
  });

  it('is in doubt when its recorded answer cannot be opened any more', async () => {
    const store = memoryStore();
    const sealedBy = (current: string) =>
      idempotency({ store, encryption: { current, keys: { [current]: new Uint8Array(32).fill(1) } } });
    const failing = sealedBy('old').run(
      'k',
      async ({ phase }) => expect.unreachable(await phase('a', () => 'x')),
      scope,
    );
    await expect(failing).rejects.toThrow();
    const again = sealedBy('new').run('k', ({ phase }) => phase('a', () => expect.unreachable()), scope);
    await expect(again).rejects.toMatchObject({ code: 'ERR_IN_DOUBT', reason: 'unreadable', cause: expect.anything() });
  });

  it('does not start when its attempt has ended', async () => {
    const { once } = setUp();
    const handles: IdempotencyHandle[] = [];
    await once.run('k', (handle) => void handles.push(handle), scope);
    await expect(handles[0]!.phase('mail', () => expect.unreachable())).rejects.toMatchObject({ reason: 'lost' });
  });

  it('does not start when the lease is lost', async () => {
    const { clock, store, once } = setUp();
    const frozen = virtualClock();
    const begun = await idempotency({ store, clock: frozen, lease: '3s' }).begin({ ...raw });
    if (begun.kind !== 'run') throw new Error(begun.kind);
    await clock.advance('3s');
    await once.begin({ ...raw });
    await expect(begun.handle.phase('a', () => 1)).rejects.toMatchObject({ reason: 'lost' });
    await expect(begun.handle.phase('b', () => expect.unreachable())).rejects.toMatchObject({ reason: 'lost' });
  });
});

describe('encryption and secret', () => {
  const keys = { old: new Uint8Array(32).fill(1), new: new Uint8Array(32).fill(2) };

  it('keep results and keys out of the store in clear text, across a rotation', async () => {
    const { store, once, clock } = setUp({ secret: 'sixteen bytes or more', encryption: { current: 'old', keys } });
    const written: string[] = [];
    const write = store.write.bind(store);
    store.write = (key, value, options) => {
      written.push(key, new TextDecoder('latin1').decode(value));
      return write(key, value, options);
    };
    const run = (engine: typeof once) =>
      engine.run('secret key', (handle) => handle.phase('p', () => 'secret result'), scope);
    await run(once);
    expect(written.join()).not.toMatch(/secret/);
    const rotated = idempotency({
      store,
      clock,
      secret: 'sixteen bytes or more',
      encryption: { current: 'new', keys },
    });
    expect(await run(rotated)).toBe('secret result');
    const without = { current: 'new', keys: { new: keys.new } };
    const forgot = idempotency({ store, clock, secret: 'sixteen bytes or more', encryption: without });
    await expect(run(forgot)).rejects.toMatchObject({ reason: 'unreadable', cause: { message: /key "old"/ } });
  });

  it('open no result planted in the store in clear text', async () => {
    const { store, once, clock } = setUp({ encryption: { current: 'old', keys } });
    await idempotency({ store, clock }).run('k', () => 'planted', scope);
    const run = once.run('k', () => expect.unreachable(), scope);
    await expect(run).rejects.toMatchObject({ code: 'ERR_IN_DOUBT', reason: 'unreadable' });
  });

  it('open no answer of a phase as the result, nor as the answer of another phase', async () => {
    const { store, once } = setUp({ encryption: { current: 'old', keys } });
    let kept: { readonly key: string; readonly record: IdempotencyRecord } | undefined;
    const write = store.write.bind(store);
    store.write = (key, value, options) => {
      const record = decodeRecord(value);
      if (record.memo.length > 0) kept = { key, record };
      return write(key, value, options);
    };
    const run = (name: string) => once.run('k', ({ phase }) => phase(name, () => name), scope);
    expect(await run('first')).toBe('first');
    const { key, record } = kept!;
    const [{ value }] = record.memo as readonly [Memo];
    const plant = (changed: Partial<IdempotencyRecord>) =>
      write(key, encodeRecord({ ...record, ...changed }), { ttlMs: 60_000 });
    await plant({ state: 'completed', result: value, memo: [] });
    await expect(run('first')).rejects.toMatchObject({ reason: 'unreadable' });
    await plant({ state: 'idle', memo: [{ name: 'second', value }] });
    await expect(run('second')).rejects.toMatchObject({ reason: 'unreadable' });
  });

  it('start to encrypt an existing store by a rotation from plain, during which every result can be replayed', async () => {
    const { store, clock } = setUp();
    const engine = (encryption: NonNullable<IdempotencyOptions['encryption']>) =>
      idempotency({ store, clock, encryption });
    const engines = [
      idempotency({ store, clock }),
      engine({ current: 'before', keys: { before: 'plain', new: keys.new } }),
      engine({ current: 'new', keys: { before: 'plain', new: keys.new } }),
    ];
    for (const [step, one] of engines.entries()) {
      // Processes of one step of the rotation run beside processes of the next.
      for (const other of engines.slice(Math.max(0, step - 1), step + 2)) {
        const key = `${step} ${engines.indexOf(other)}`;
        await one.run(key, () => step, scope);
        expect(await other.run(key, () => expect.unreachable(), scope)).toBe(step);
      }
    }
    const last = engine({ current: 'new', keys: { new: keys.new } });
    expect(await last.run('2 2', () => expect.unreachable(), scope)).toBe(2);
    await expect(last.run('1 1', () => expect.unreachable(), scope)).rejects.toThrow(InDoubtError);
  });

  it('open no result under another key than its own, nor an altered one', async () => {
    const { store, once } = setUp({ encryption: { current: 'old', keys } });
    const stored: Record<string, Uint8Array> = {};
    const write = store.write.bind(store);
    store.write = (key, value, options) => {
      stored[key] = value;
      return write(key, value, options);
    };
    await once.run('mine', () => 'mine', scope);
    await once.run('yours', () => 'yours', scope);
    const [mine, yours] = Object.keys(stored) as [string, string];
    await write(mine, stored[yours]!, { ttlMs: 1_000 });
    await expect(once.run('mine', () => 'x', scope)).rejects.toMatchObject({ reason: 'unreadable' });
  });
});

describe('a damaged record', () => {
  it('puts the key in doubt, and nothing runs', async () => {
    const { store, once } = setUp();
    await once.run('k', () => 1, scope);
    const write = store.write.bind(store);
    let bytes: Uint8Array = new Uint8Array();
    store.write = async (key, value, options) => {
      const answer = await write(key, value, options);
      if (!answer.ok && answer.entry) {
        bytes = answer.entry.value.slice();
        bytes[10]! ^= 1;
        return { ok: false, entry: { ...answer.entry, value: bytes } };
      }
      return answer;
    };
    await expect(once.run('k', () => expect.unreachable(), scope)).rejects.toMatchObject({
      code: 'ERR_IN_DOUBT',
      reason: 'unreadable',
      cause: { name: 'DamagedRecordError', message: expect.stringMatching(/checksum/) },
    });
  });
});
