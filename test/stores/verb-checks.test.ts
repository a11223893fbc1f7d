import { type ConsumeOptions, type MemoryStore, memoryStore, type StoreWriteOptions } from 'holdfast';
import { virtualClock } from 'holdfast/testing';
import { Redis } from 'ioredis';
import { Pool } from 'pg';
import { describe, expect, it } from 'vitest';
import { postgresStore } from '../../src/stores/postgres.js';
import { redisStore } from '../../src/stores/redis.js';
import { bytes, failure } from './support.ts';

const ttlMs = 1000;
const tenYearsMs = 315_360_000_000;
const limit = { limit: 10, periodMs: 1000 };

const openStore = () => memoryStore({ clock: virtualClock() });

describe('the arguments of a verb', () => {
  it.each([
    ['read', (store: MemoryStore) => store.read('key', { ifVersion: 1 } as object)],
    ['write', (store: MemoryStore) => store.write('key', bytes(''), { ttlMs, ifversion: 0 } as StoreWriteOptions)],
    ['remove', (store: MemoryStore) => store.remove('key', { ifversion: 1 } as object)],
    ['readMany', (store: MemoryStore) => store.native.readMany(['key'], { ttlMs } as object)],
    ['consume', (store: MemoryStore) => store.native.consume('key', { ...limit, perMs: 1 } as ConsumeOptions)],
  ])('of %s know no option but their own', async (operation, run) => {
    const error = await failure(run(openStore()));
    expect(error).toMatchObject({ operation, reason: 'invalid', applied: 'no' });
    expect(error.message).toContain('unknown option');
  });

  it('may be null where options may be left out', async () => {
    const store = openStore();
    expect(await store.read('key', null as never)).toBeUndefined();
    expect(await store.remove('key', null as never)).toBe(false);
    expect(await store.native.readMany(['key'], null as never)).toEqual([undefined]);
  });

  it('may be a signal, and nothing happens if that is aborted', async () => {
    const store = openStore();
    const { signal } = new AbortController();
    expect(await store.native.consume('key', { ...limit, signal })).toMatchObject({ ok: true, remaining: 9 });
    const gone = AbortSignal.abort('gone');
    await expect(store.native.consume('key', { ...limit, signal: gone })).rejects.toBe('gone');
    expect(await store.native.consume('key', { ...limit, cost: 0 })).toMatchObject({ remaining: 9 });
  });

  it.each([
    ['the key must be a string, got null', { key: null }],
    ['the key must be a string, got number', { key: 7 }],
    ['the value must be a Uint8Array, got string', { value: 'text' }],
    ['"ttlMs" must be from 1 to 315360000000 milliseconds, got 1000', { ttlMs: '1000' }],
    ['"ttlMs" must be from 1 to 315360000000 milliseconds, got 315360000001', { ttlMs: tenYearsMs + 1 }],
    ['"evictable" must be true or false, got number', { evictable: 1 }],
    ['"evictable" must be true or false, got null', { evictable: null }],
  ])('are refused by a sentence that names the mistake: %s', async (detail, given: Record<string, unknown>) => {
    const { key = 'key', value = bytes(''), ...options } = given;
    const error = await failure(openStore().write(key as string, value as Uint8Array, { ttlMs, ...options }));
    expect(error.message).toContain(detail);
  });

  it('may be as large as the limits say', async () => {
    const store = openStore();
    expect(await store.write('key', bytes(''), { ttlMs: tenYearsMs })).toMatchObject({ ok: true });
    expect(await store.native.consume('key', { limit: 1, periodMs: tenYearsMs })).toMatchObject({ ok: true });
  });

  it.each([
    ['two', '\u0080', 256],
    ['two', '\u07ff', 256],
    ['three', '\u0800', 170],
    ['three', '\uffff', 170],
    ['four', '\u{10000}', 128],
  ])('count a key in bytes of UTF-8: %s for %j', async (_, character, most) => {
    const store = openStore();
    expect(await store.read(character.repeat(most))).toBeUndefined();
    expect((await failure(store.read(character.repeat(most + 1)))).message).toMatch(/the key has 51[3-6] bytes/);
  });

  it('count a key of ASCII, too', async () => {
    const store = openStore();
    expect(await store.read('\u007f'.repeat(512))).toBeUndefined();
    expect((await failure(store.read('\u007f'.repeat(513)))).message).toContain('the key has 513 bytes, at most 512');
  });

  it.each([
    ['"limit" must be a number', { limit: 0, burst: 1 }],
    ['"limit" must be a number', { limit: Number.NaN, burst: 1 }],
    ['"burst" must be a number', { burst: 0.5, cost: 0 }],
    ['"burst" must be a number', { burst: '5', cost: 0 }],
    ['take more than 10 years to come back', { limit: 1, burst: 2, periodMs: tenYearsMs }],
  ])('of consume are refused before anything is taken: %s, %j', async (detail, given) => {
    const store = openStore();
    const error = await failure(store.native.consume('key', { ...limit, ...given } as ConsumeOptions));
    expect(error).toMatchObject({ operation: 'consume', reason: 'invalid' });
    expect(error.message).toContain(detail);
    expect(await store.native.consume('key', { ...limit, cost: 0 })).toMatchObject({ remaining: 10 });
  });
});

describe('the prefix of a store', () => {
  // Neither client connects before the first command.
  const stores: readonly [string, (prefix: string) => unknown][] = [
    ['redisStore', (prefix) => redisStore(new Redis({ lazyConnect: true }), { prefix })],
    ['postgresStore', (prefix) => postgresStore(new Pool(), { prefix })],
  ];

  it.each(stores)('of %s holds no character that separates it from the key', (_, open) => {
    for (const prefix of ['', 'a{b', '{a', 'a}', 'a b', 'a*', 'ä', 'x'.repeat(65), 5 as never]) {
      expect(() => open(prefix)).toThrow(expect.objectContaining({ name: 'OptionsError', option: 'prefix' }));
    }
    for (const prefix of ['a', 'shop-2/Orders:v1_a.b', 'x'.repeat(64)]) expect(() => open(prefix)).not.toThrow();
  });
});
