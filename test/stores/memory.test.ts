import fc from 'fast-check';
import { memoryStore, OptionsError } from 'holdfast';
import { virtualClock } from 'holdfast/testing';
import { describe, expect, it } from 'vitest';
import { bytes, failure } from './support.ts';

const ttlMs = 1000;

describe('memoryStore', () => {
  it('refuses a write when it is full of entries that may not go, and keeps them all', async () => {
    const store = memoryStore({ max: 2, clock: virtualClock() });
    await store.write('a', bytes('1'), { ttlMs });
    await store.write('b', bytes('1'), { ttlMs });
    const error = await failure(store.write('c', bytes('1'), { ttlMs }));
    expect(error).toMatchObject({
      code: 'ERR_STORE',
      reason: 'full',
      applied: 'no',
      store: 'memory',
      operation: 'write',
    });
    expect(error.message).toContain('2 of 2 entries');
    expect(error.message).toContain('nothing was changed');
    await failure(store.write('c', bytes('1'), { ttlMs, evictable: true }));
    expect(await store.read('a')).toBeDefined();
    expect(await store.read('b')).toBeDefined();
    expect(await store.read('c')).toBeUndefined();
  });

  it('rewrites an entry, and returns refusals, even when it is full', async () => {
    const store = memoryStore({ max: 1, clock: virtualClock() });
    await store.write('a', bytes('1'), { ttlMs });
    expect(await store.write('a', bytes('2'), { ttlMs })).toMatchObject({ ok: true });
    expect(await store.write('a', bytes('3'), { ttlMs, ifVersion: 0 })).toMatchObject({ ok: false });
    expect(await store.write('b', bytes('3'), { ttlMs, ifVersion: 7 })).toEqual({ ok: false, entry: undefined });
    expect(await store.remove('a')).toBe(true);
    expect(await store.write('b', bytes('3'), { ttlMs })).toMatchObject({ ok: true });
  });

  it('keeps the old entry when the new one does not fit', async () => {
    const store = memoryStore({ maxBytes: 1024, clock: virtualClock() });
    await store.write('a', bytes('kept'), { ttlMs });
    const error = await failure(store.write('a', new Uint8Array(1023), { ttlMs }));
    expect(error.message).toContain('of 1024 bytes');
    expect((await store.read('a'))?.value).toEqual(bytes('kept'));
  });

  it('makes room with what has expired, then with evictable entries, the least recently used first', async () => {
    const clock = virtualClock();
    const store = memoryStore({ max: 3, clock });
    await store.write('short', bytes('1'), { ttlMs: 10 });
    await store.write('old', bytes('1'), { ttlMs, evictable: true });
    await store.write('used', bytes('1'), { ttlMs, evictable: true });
    await store.read('old');
    await clock.advance(10);
    await store.write('lock 1', bytes('1'), { ttlMs });
    expect([await store.read('old'), await store.read('used')].map(Boolean)).toEqual([true, true]);
    await store.read('old');
    await store.write('lock 2', bytes('1'), { ttlMs });
    expect([await store.read('old'), await store.read('used')].map(Boolean)).toEqual([true, false]);
    await store.write('lock 3', bytes('1'), { ttlMs });
    expect(await store.read('old')).toBeUndefined();
    await failure(store.write('lock 4', bytes('1'), { ttlMs }));
    expect(store.size).toBe(3);
  });

  it('bounds the bytes of all entries together', async () => {
    const store = memoryStore({ maxBytes: 1024, clock: virtualClock() });
    for (let index = 0; index < 100; index++) {
      await store.write(`key ${index}`, new Uint8Array(100), { ttlMs, evictable: true });
    }
    expect(store.size).toBe(9);
    await store.write('record', new Uint8Array(901), { ttlMs });
    expect(store.size).toBe(1);
    await store.remove('record');
    expect(await store.write('record', new Uint8Array(1012), { ttlMs })).toMatchObject({ ok: true });
  });

  it('never evicts an entry that was rewritten without evictable', async () => {
    const store = memoryStore({ max: 2, clock: virtualClock() });
    await store.write('a', bytes('1'), { ttlMs, evictable: true });
    await store.write('a', bytes('2'), { ttlMs });
    await store.write('b', bytes('1'), { ttlMs, evictable: true });
    await store.write('c', bytes('1'), { ttlMs, evictable: true });
    expect((await store.read('a'))?.value).toEqual(bytes('2'));
    await store.write('a', bytes('3'), { ttlMs, evictable: true });
    await store.write('d', bytes('1'), { ttlMs });
    await store.write('e', bytes('1'), { ttlMs });
    expect(await store.read('a')).toBeUndefined();
  });

  it('gives a key that was evicted a greater version', async () => {
    const store = memoryStore({ max: 1, clock: virtualClock() });
    const first = await store.write('a', bytes('1'), { ttlMs, evictable: true });
    await store.write('b', bytes('1'), { ttlMs, evictable: true });
    const again = await store.write('a', bytes('1'), { ttlMs, ifVersion: 0 });
    expect(first.ok && again.ok && again.version > first.version).toBe(true);
  });

  it('drops expired entries during writes, without a timer', async () => {
    const clock = virtualClock();
    const store = memoryStore({ clock });
    for (let index = 0; index < 100; index++) await store.write(`short ${index}`, bytes('1'), { ttlMs: 10 });
    await clock.advance(10);
    expect(clock.pendingTimers).toBe(0);
    expect(store.size).toBe(100);
    for (let index = 0; index < 100; index++) await store.write(`long ${index}`, bytes('1'), { ttlMs });
    expect(store.size).toBe(100);
  });

  it('forgets everything when it is closed', async () => {
    const store = memoryStore();
    await store.write('a', bytes('1'), { ttlMs });
    await store.write('b', bytes('1'), { ttlMs, evictable: true });
    await store.close();
    expect(store.size).toBe(0);
    await expect(store.read('a')).rejects.toMatchObject({ reason: 'closed', applied: 'no' });
  });

  it('accepts a Buffer and returns plain bytes', async () => {
    const store = memoryStore();
    const buffer = Buffer.from('value');
    await store.write('a', buffer, { ttlMs });
    buffer.fill(0);
    const entry = await store.read('a');
    expect(entry?.value.constructor).toBe(Uint8Array);
    expect(entry?.value).toEqual(bytes('value'));
  });

  it('returns copies that share no bytes, small or large', async () => {
    const store = memoryStore();
    for (const length of [0, 1, 1024, 1025, 5000])
      await store.write(`${length}`, new Uint8Array(length).fill(7), { ttlMs });
    const lengths = Array.from({ length: 40 }, (_, index) => [0, 1, 1024, 1025, 5000][index % 5]!);
    const values = await Promise.all(lengths.map(async (length) => (await store.read(`${length}`))!.value));
    for (const [index, value] of values.entries()) value.fill(index);
    for (const [index, value] of values.entries()) expect(value).toEqual(new Uint8Array(lengths[index]!).fill(index));
  });

  it('agrees with a simple model, for any sequence of verbs', async () => {
    const key = fc.constantFrom('a', 'b', 'c', 'd');
    const step = fc.oneof(
      fc.record({
        type: fc.constant('write'),
        key,
        ttl: fc.integer({ min: 1, max: 50 }),
        guess: fc.integer({ min: 0, max: 3 }),
      }),
      fc.record({ type: fc.constant('remove'), key, guess: fc.integer({ min: 0, max: 3 }) }),
      fc.record({ type: fc.constant('read'), key }),
      fc.record({ type: fc.constant('pass'), ms: fc.integer({ min: 1, max: 30 }) }),
    );
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 60 }), async (steps) => {
        const clock = virtualClock();
        const store = memoryStore({ max: 3, clock });
        const model = new Map<string, { version: number; value: number; untilMs: number }>();
        const live = (name: string) => {
          const held = model.get(name);
          return held !== undefined && held.untilMs > clock.now() ? held : undefined;
        };
        /** The four kinds of condition: none, that the key is absent, the right version, a wrong one. */
        const condition = (name: string, guess: number) =>
          [undefined, 0, live(name)?.version ?? 0, (live(name)?.version ?? 0) + 1][guess];
        let last = 0;
        for (const [index, one] of steps.entries()) {
          if (one.type === 'pass') {
            await clock.advance((one as { ms: number }).ms);
            continue;
          }
          const { key: name, guess = 0, ttl = 1 } = one as { key: string; guess?: number; ttl?: number };
          const held = live(name);
          const ifVersion = condition(name, guess);
          const mayChange = ifVersion === undefined || ifVersion === (held?.version ?? 0);
          if (one.type === 'read') {
            const entry = await store.read(name);
            expect(entry && { version: entry.version, value: entry.value[0] }).toEqual(
              held && { version: held.version, value: held.value },
            );
          } else if (one.type === 'remove') {
            expect(await store.remove(name, { ifVersion })).toBe(held !== undefined && mayChange);
            if (mayChange) model.delete(name);
          } else {
            const others = [...model.keys()].filter((other) => other !== name && live(other) !== undefined).length;
            const answer = await store
              .write(name, Uint8Array.of(index), { ttlMs: ttl, ifVersion })
              .catch((error) => error);
            if (!mayChange) expect(answer).toMatchObject({ ok: false });
            else if (others === 3) expect(answer).toMatchObject({ reason: 'full' });
            else {
              expect(answer.version).toBeGreaterThan(last);
              last = answer.version;
              model.set(name, { version: last, value: index, untilMs: clock.now() + ttl });
            }
            if (answer.ok === false) expect(answer.entry?.version).toBe(held?.version);
          }
          expect(store.size).toBeLessThanOrEqual(3);
        }
      }),
      { numRuns: 500 },
    );
  });

  it('refuses bad options at once', () => {
    expect(() => memoryStore({ max: 0 })).toThrow(OptionsError);
    expect(() => memoryStore({ maxBytes: 1 })).toThrow('"maxBytes"');
    expect(() => memoryStore({ maxValueByte: 1 } as object)).toThrow('did you mean "maxValueBytes"?');
    expect(() => memoryStore({ clock: Date as never })).toThrow('"clock"');
  });
});

describe('memoryStore, when it is watched,', () => {
  it('reports inside the verb, and reports no refusals', async () => {
    const store = memoryStore({ clock: virtualClock() });
    const told: string[] = [];
    store.native.watch('key', ({ kind }) => told.push(kind));
    const write = store.write('key', bytes('value'), { ttlMs: 1000 });
    expect(told).toEqual(['changed']);
    await write;
    await store.write('key', bytes('value'), { ttlMs: 1000, ifVersion: 0 });
    await store.remove('key', { ifVersion: 99 });
    await store.remove('other');
    expect(told).toEqual(['changed']);
  });

  it('completes a write whose listener throws, which is reported as an uncaught exception', async () => {
    const store = memoryStore({ clock: virtualClock() });
    const thrown = new Error('a bug of the listener');
    const told: string[] = [];
    const reported = new Promise((resolve) => {
      const others = process.rawListeners('uncaughtException') as NodeJS.UncaughtExceptionListener[];
      process.removeAllListeners('uncaughtException');
      process.once('uncaughtException', (error) => {
        for (const other of others) process.on('uncaughtException', other);
        resolve(error);
      });
    });
    store.native.watch('key', () => {
      throw thrown;
    });
    store.native.watch('key', ({ kind }) => told.push(kind));
    expect(await store.write('key', bytes('value'), { ttlMs: 1000 })).toMatchObject({ ok: true });
    expect(told).toEqual(['changed']);
    expect(await reported).toBe(thrown);
  });

  it('limits the number of watches, until some are closed', async () => {
    const store = memoryStore({ clock: virtualClock() });
    const all = Array.from({ length: 100_000 }, (_, index) => store.native.watch(`key ${index % 7}`, () => {}));
    const oneMore = () => store.native.watch('key', () => {}).ready;
    await expect(oneMore()).rejects.toMatchObject({ code: 'ERR_STORE', reason: 'full', applied: 'no' });
    all[3]!.close();
    await oneMore();
  });
});
