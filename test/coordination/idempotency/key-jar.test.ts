import { DatabaseSync } from 'node:sqlite';
import { describe, expect, it } from 'vitest';
import { keyFrom, keyJar } from '../../../src/client/fetch.js';
import { InDoubtError, memoryStore, OptionsError, type Store } from '../../../src/index.js';
import { sqliteStore } from '../../../src/stores/sqlite.js';
import { virtualClock } from '../../../src/testing/index.js';
import { temporaryDatabase } from '../../stores/sqlite-files.ts';

describe('keyFrom', () => {
  it('returns one key per operation, different for each', () => {
    const pairs: readonly (readonly [string, string])[] = [
      ['a', 'bc'],
      ['ab', 'c'],
      ['c', 'ab'],
      ['bc', 'a'],
      ['1a', 'b'],
      ['a', '1b'],
    ];
    expect(new Set(pairs.map(([id, operation]) => keyFrom(id, operation))).size).toBe(pairs.length);
    expect(keyFrom('a', 'bc')).toBe(keyFrom('a', 'bc'));
    expect(keyFrom('a', 'b')).toMatch(/^[\w-]{43}$/);
    expect(() => keyFrom('', 'pay')).toThrow(OptionsError);
    expect(() => keyFrom('invoice 7', '')).toThrow(/"operation"/);
  });
});

describe('keyJar', () => {
  it('keeps one key per operation until it is forgotten, whoever asks', async () => {
    const jar = keyJar({ store: memoryStore() });
    const keys = await Promise.all(Array.from({ length: 20 }, () => jar.key('invoice 7')));
    expect([new Set(keys).size, keys[0] === (await jar.key('invoice 8'))]).toEqual([1, false]);
    expect([await jar.forget('invoice 7'), await jar.forget('invoice 7')]).toEqual([true, false]);
    expect(await jar.key('invoice 7')).not.toBe(keys[0]);
  });

  it('has the same key after a restart', async () => {
    using file = temporaryDatabase();
    const keys: string[] = [];
    for (let start = 0; start < 2; start++) {
      const db = new DatabaseSync(file.path);
      keys.push(await keyJar({ store: sqliteStore(db) }).key('invoice 7'));
      db.close();
    }
    expect(keys[0]).toBe(keys[1]);
  });

  it('returns no key that the receiver may have forgotten, nor a new one in its place', async () => {
    const clock = virtualClock();
    const jar = keyJar({ store: memoryStore({ clock }) });
    const key = await jar.key('invoice 7');
    await clock.advance('23h');
    expect(await jar.key('invoice 7')).toBe(key);
    await clock.advance(1);
    await expect(jar.key('invoice 7')).rejects.toThrow(InDoubtError);
    await clock.advance('20d');
    await expect(jar.key('invoice 7')).rejects.toMatchObject({ reason: 'too-old' });
  });

  it('costs one round trip, and another if the key was removed in between', async () => {
    const inner = memoryStore();
    let writes = 0;
    let isGone = false;
    const write: Store['write'] = async (...given) => {
      writes++;
      if (!isGone) return inner.write(...given);
      isGone = false;
      return { ok: false, entry: undefined };
    };
    const jar = keyJar({ store: { read: inner.read.bind(inner), write, remove: inner.remove.bind(inner) } });
    const key = await jar.key('invoice 7');
    expect([await jar.key('invoice 7'), writes]).toEqual([key, 2]);
    isGone = true;
    expect([await jar.key('invoice 7'), writes]).toEqual([key, 4]);
  });

  it('gives up on a store that refuses every write', async () => {
    let writes = 0;
    const write: Store['write'] = async () => {
      // Otherwise a jar that keeps asking would never end.
      if (++writes > 1_000) throw new Error('asked without end');
      return { ok: false, entry: undefined };
    };
    const jar = keyJar({ store: { read: async () => undefined, write, remove: async () => false } });
    await expect(jar.key('invoice 7')).rejects.toMatchObject({ code: 'ERR_STORE', reason: 'busy', applied: 'no' });
    expect(writes).toBeLessThanOrEqual(300);
  });

  it('refuses options that do not fit', async () => {
    expect(() => keyJar({} as never)).toThrow(/"store" is required/);
    expect(() => keyJar({ store: memoryStore(), ttl: '1h' })).toThrow(/longer than "maxKeyAge"/);
    expect(() => keyJar({ store: memoryStore(), ttl: '2h', maxKeyAge: '2h' })).toThrow(
      /longer than "maxKeyAge", 7200000/,
    );
    expect(() => keyJar({ store: memoryStore(), ttl: '3651d' })).toThrow(OptionsError);
    expect(keyJar({ store: memoryStore(), ttl: '3650d' })).toBeDefined();
    await expect(keyJar({ store: memoryStore() }).key('')).rejects.toThrow(OptionsError);
  });
});
