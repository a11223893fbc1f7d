/**
 * Conformance of capabilities: the laws of what a store can do besides its three verbs, for stores that have it.
 *
 * Promise: a store without a capability passes its cases; one that has it and breaks its law fails one of them.
 */
import type { NativeCapabilities, Store, StoreChange, StoreWatch } from '../stores/store.js';
import { type Bench, bytes, type Case, type Closable, minute, show, text } from './conformance-bench.js';

/** How long a change may take to be told, and how long a case waits for what must not come. */
const toldWithinMs = 10_000;
const quietMs = 100;

type Watch = NonNullable<NativeCapabilities['watch']>;
type ReadMany = NonNullable<NativeCapabilities['readMany']>;

/** A watch and what it has told. */
class Watched {
  readonly told: StoreChange['kind'][] = [];
  readonly watch: StoreWatch;

  constructor(watch: Watch, key: string) {
    this.watch = watch(key, ({ kind }) => this.told.push(kind));
  }

  /** The number of things told, once there are more than before. */
  async more(bench: Bench, before: number, what: string): Promise<number> {
    const endsAtMs = bench.now() + toldWithinMs;
    while (this.told.length <= before) {
      bench.claim(bench.now() < endsAtMs, () => `${what} was not told within ${toldWithinMs} ms`);
      await bench.pass(5);
    }
    return this.told.length;
  }
}

function withWatch(body: (bench: Bench, store: Store, watch: Watch) => Promise<void>): Case[1] {
  return async (bench) => {
    const store = await bench.open();
    if (store.native?.watch !== undefined) await body(bench, store, store.native.watch);
  };
}

export const watchCases: readonly Case[] = [
  [
    'a watch tells of writes and removals by others and by itself',
    withWatch(async (bench: Bench, store, watch) => {
      const other = await bench.other(store);
      const watched = new Watched(watch, 'key');
      await watched.watch.ready;
      let told = watched.told.length;
      for (const writer of [other, store]) {
        await bench.put(writer, 'key', 'first', { ifVersion: 0 });
        told = await watched.more(bench, told, 'a first write');
        const version = await bench.put(writer, 'key', 'second');
        told = await watched.more(bench, told, 'an overwrite');
        await writer.remove('key', { ifVersion: version });
        told = await watched.more(bench, told, 'a removal');
      }
      await bench.put(other, 'key', 'there and gone');
      await other.remove('key');
      await watched.more(bench, told, 'a write that was removed at once');
      bench.claim(
        !watched.told.includes('gap'),
        () => `a gap was told, though no connection broke: ${show(watched.told)}`,
      );
    }),
  ],
  [
    'every watch of a key is told, one of another key or prefix need not be',
    withWatch(async (bench: Bench, store, watch) => {
      const keys = Array.from({ length: 50 }, (_, index) => `key ${index}`);
      const all = keys.flatMap((key) => [new Watched(watch, key), new Watched(watch, key)]);
      await Promise.all(all.map((watched) => watched.watch.ready));
      const before = all.map((watched) => watched.told.length);
      await Promise.all(keys.map((key) => bench.put(store, key, 'value')));
      for (const [index, watched] of all.entries())
        await watched.more(bench, before[index]!, `a write of ${keys[index >> 1]}`);
    }),
  ],
  [
    'a closed watch tells nothing more, and the others of its key go on',
    withWatch(async (bench: Bench, store, watch) => {
      const closed = new Watched(watch, 'key');
      const open = new Watched(watch, 'key');
      await Promise.all([closed.watch.ready, open.watch.ready]);
      closed.watch.close();
      const before = closed.told.length;
      closed.watch.close();
      const told = open.told.length;
      await bench.put(store, 'key', 'value');
      await open.more(bench, told, 'a write');
      bench.same(closed.told.length, before, 'what a closed watch told');
      open.watch.close();
      // A new one begins anew.
      const again = new Watched(watch, 'key');
      await again.watch.ready;
      const first = again.told.length;
      await bench.put(store, 'key', 'value 2');
      await again.more(bench, first, 'a write after a new beginning');
    }),
  ],
  [
    'thousands of watches that come and go leave nothing behind',
    withWatch(async (bench: Bench, store, watch) => {
      for (let round = 0; round < 20; round++) {
        const some = Array.from({ length: 100 }, (_, index) => watch(`key ${index % 50}`, () => {}));
        if (round % 2 === 0) await Promise.all(some.map(({ ready }) => ready));
        for (const one of some) one.close();
      }
      const last = new Watched(watch, 'key 1');
      await last.watch.ready;
      const before = last.told.length;
      await bench.put(store, 'key 1', 'value');
      await last.more(bench, before, 'a write after all of them');
    }),
  ],
  [
    'a listener that closes its watch and begins another disturbs nobody',
    withWatch(async (bench: Bench, store, watch) => {
      const second = new Watched(watch, 'key');
      const first = watch('key', () => {
        first.close();
        watch('key', () => {}).close();
      });
      await Promise.all([first.ready, second.watch.ready]);
      const told = second.told.length;
      await bench.put(store, 'key', 'value');
      await second.more(bench, told, 'a write');
    }),
  ],
  [
    'a watch that cannot begin says so by "ready", and never throws',
    withWatch(async (bench: Bench, store, watch) => {
      for (const bad of ['', '\ud800', 'k'.repeat(513), 7, undefined]) {
        const one = watch(bad as string, () => {});
        await bench.refuses(() => one.ready, 'invalid', `a watch of key ${show(bad)}`);
        one.close();
      }
      const deaf = watch('key', undefined as unknown as () => void);
      await bench.refuses(() => deaf.ready, 'invalid', 'a watch without a listener');
      const hasty = watch('key', () => {});
      hasty.close();
      await hasty.ready.catch(() => {});
      const { close } = store as Store & Partial<Closable>;
      if (close === undefined) return;
      const watched = new Watched(watch, 'key');
      await watched.watch.ready;
      await close.call(store);
      const late = watch('key', () => {});
      await bench.refuses(() => late.ready, 'closed', 'a watch after close');
      const told = watched.told.length;
      const other = await bench.open();
      await bench.put(other, 'key', 'value');
      await bench.pass(quietMs);
      bench.same(watched.told.length, told, 'what the watch of a closed store told');
    }),
  ],
];

function withReadMany(body: (bench: Bench, store: Store, readMany: ReadMany) => Promise<void>): Case[1] {
  return async (bench) => {
    const store = await bench.open();
    if (store.native?.readMany !== undefined) await body(bench, store, store.native.readMany);
  };
}

export const readManyCases: readonly Case[] = [
  [
    'readMany answers what a read of each key answers, in their order',
    withReadMany(async (bench: Bench, store, readMany) => {
      const keys = Array.from({ length: 1000 }, (_, index) => `key ${index}`);
      const versions = new Map<string, number>();
      const written = keys.filter((_, index) => index % 3 !== 0);
      await Promise.all(written.map(async (key) => versions.set(key, await bench.put(store, key, `of ${key}`))));
      await store.write('empty', new Uint8Array(0), { ttlMs: minute });
      const asked = [...keys.slice(1), 'empty', 'key 1', 'key 1'].slice(-1000);
      const entries = await readMany(asked);
      bench.same(entries.length, asked.length, 'the number of answers');
      for (const [index, key] of asked.entries()) {
        const entry = entries[index];
        const value = key === 'empty' ? '' : versions.has(key) ? `of ${key}` : undefined;
        bench.showsEntry(entry, value, versions.get(key), `readMany of ${key}`);
        if (entry === undefined) continue;
        const { ageMs, ttlMs } = entry;
        bench.claim(ageMs >= 0 && ttlMs > 0 && ttlMs <= minute, () => `age and time left of ${key}: ${show(entry)}`);
      }
      entries[0]?.value.fill(0);
      bench.same(
        text((await readMany(['key 1']))[0]!.value),
        'of key 1',
        'a value after the copy of another was changed',
      );
      bench.same(await readMany([]), [], 'readMany of nothing');
    }),
  ],
  [
    'readMany sees neither what is over nor what another prefix holds',
    withReadMany(async (bench: Bench, store, readMany) => {
      await bench.put(store, 'short', 'value', { ttlMs: 20 });
      await bench.put(store, 'removed', 'value');
      await store.remove('removed');
      const other = await bench.open(`${bench.prefix}-other`);
      await bench.put(other, 'never', 'value');
      await bench.pass(100);
      const found = (await readMany(['short', 'removed', 'never'])).map((entry) => entry === undefined);
      bench.same(found, [true, true, true], 'whether nothing is there');
    }),
  ],
  [
    'readMany refuses bad keys, more than 1,000 of them, and an aborted signal',
    withReadMany(async (bench: Bench, _store, readMany) => {
      const bads: readonly unknown[] = [['key', ''], ['\ud800'], [7], 'key', undefined, Array(1001).fill('key')];
      for (const bad of bads) {
        await bench.refuses(() => readMany(bad as string[]), 'invalid', `readMany of ${show(bad)}`);
      }
      await bench.refuses(() => readMany(['key'], { sginal: 1 } as object), 'invalid', 'an unknown option of readMany');
      const reason = new Error('the caller has gone');
      const error = await bench.failureOf(() => readMany(['key'], { signal: AbortSignal.abort(reason) }), 'readMany');
      bench.claim(error === reason, () => `readMany must reject with the signal's reason, got ${show(error)}`);
    }),
  ],
  [
    'readMany after close fails with reason "closed"',
    withReadMany(async (bench: Bench, store, readMany) => {
      const { close } = store as Store & Partial<Closable>;
      if (close === undefined) return;
      await store.write('key', bytes('value'), { ttlMs: minute });
      await close.call(store);
      await bench.refuses(() => readMany(['key']), 'closed', 'readMany after close');
    }),
  ],
];
