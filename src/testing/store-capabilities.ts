/**
 * Conformance of capabilities: the laws of a store's optional capabilities, for stores that have them.
 *
 * Promise: a store without a capability passes its cases. A store that has it and breaks its law fails one of them.
 */
import type { NativeCapabilities, Store, StoreChange, StoreWatch } from '../stores/store.js';
import { type Bench, bytes, type Case, minute, show, text } from './store-bench.js';

/** How long a store may take to report a change, and how long a case waits for a report that must not come. */
const toldWithinMs = 10_000;
const quietMs = 100;

type Watch = NonNullable<NativeCapabilities['watch']>;
type Consume = NonNullable<NativeCapabilities['consume']>;
type ReadMany = NonNullable<NativeCapabilities['readMany']>;

/** A watch and its reports so far. */
class Watched {
  readonly told: StoreChange['kind'][] = [];
  readonly watch: StoreWatch;

  constructor(watch: Watch, key: string) {
    this.watch = watch(key, ({ kind }) => this.told.push(kind));
  }

  /** Waits until there are more reports than before, and returns their number. */
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
      // A new watch starts from its own present.
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
      const watched = new Watched(watch, 'key');
      await watched.watch.ready;
      if (!(await bench.closes(store))) return;
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
      await store.write('key', bytes('value'), { ttlMs: minute });
      if (!(await bench.closes(store))) return;
      await bench.refuses(() => readMany(['key']), 'closed', 'readMany after close');
    }),
  ],
];

function withConsume(body: (bench: Bench, store: Store, consume: Consume) => Promise<void>): Case[1] {
  return async (bench) => {
    const store = await bench.open();
    if (store.native?.consume !== undefined) await body(bench, store, store.native.consume);
  };
}

export const consumeCases: readonly Case[] = [
  [
    'consume grants the burst at once, then by the rate, and says when',
    withConsume(async (bench: Bench, _store, consume) => {
      const limit = { limit: 10, periodMs: 4000, burst: 3 };
      const beganMs = bench.now();
      for (const remaining of [2, 1, 0]) {
        const { ok, ...given } = await consume('key', limit);
        bench.claim(
          ok && given.remaining >= remaining && given.remaining <= 3,
          () => `a unit of the burst: ${show(given)}`,
        );
      }
      const refused = await consume('key', { ...limit, cost: 3 });
      const { ok, retryAfterMs, resetMs } = refused;
      // If the replies took that long, the whole burst is available again.
      const isLate = bench.now() - beganMs >= 1200;
      bench.claim(
        (ok && isLate) || (!ok && retryAfterMs > 0 && retryAfterMs <= 1200),
        () => `above the burst: ${show(refused)}`,
      );
      bench.claim(
        resetMs >= retryAfterMs && resetMs <= 1200,
        () => `the time until all is there again: ${show(refused)}`,
      );
      await bench.pass((ok ? resetMs : retryAfterMs) + 25);
      // The refused call has consumed nothing.
      const later = await consume('key', { ...limit, cost: 3 });
      bench.claim(later.ok, () => `after ${ok ? resetMs : retryAfterMs} ms: ${show(later)}`);
      const other = await consume('other', limit);
      bench.same(other.ok, true, 'whether another key is granted');
    }),
  ],
  [
    'of many who consume at once exactly the burst is granted',
    withConsume(async (bench: Bench, store, consume) => {
      const other = (await bench.other(store)).native!.consume!;
      const limit = { limit: 20, periodMs: 20 * minute };
      const answers = await Promise.all(
        Array.from({ length: 60 }, (_, index) => (index % 2 === 0 ? consume : other)('key', limit)),
      );
      bench.same(answers.filter(({ ok }) => ok).length, 20, 'grants of a burst of 20');
      const refused = answers.filter(({ ok, retryAfterMs }) => !ok && retryAfterMs > 0 && retryAfterMs <= minute);
      bench.same(refused.length, 40, 'refusals with the time until the next');
    }),
  ],
  [
    'consume counts by cost, looks with 0, and takes a new limit at its word',
    withConsume(async (bench: Bench, store, consume) => {
      const limit = { limit: 10, periodMs: 10 * minute };
      bench.same((await consume('key', { ...limit, cost: 0 })).remaining, 10, 'units left of a new key');
      bench.same((await consume('key', { ...limit, cost: 7.5 })).remaining, 2, 'whole units left after 7.5 of 10');
      bench.same((await consume('key', { ...limit, cost: 3 })).ok, false, 'whether 3 are granted');
      bench.same((await consume('key', { ...limit, cost: 2.5 })).ok, true, 'whether 2.5 are granted');
      const narrow = await consume('key', { limit: 10, periodMs: 1000 });
      bench.claim(
        !narrow.ok && narrow.retryAfterMs <= 100,
        () => `a shorter period waits no longer than its own: ${show(narrow)}`,
      );
      // The keys of limits are separate from those of the verbs.
      bench.same(await store.read('key'), undefined, 'what a read sees of a limit');
      await bench.put(store, 'key', 'value', { ifVersion: 0 });
      bench.same((await consume('key', { ...limit, cost: 0 })).remaining < 10, true, 'whether the limit is still used');
    }),
  ],
  [
    'consume refuses bad limits before anything is taken',
    withConsume(async (bench: Bench, store, consume) => {
      const limit = { limit: 10, periodMs: 1000 };
      const bads: readonly object[] = [
        ...[
          { limit: 0 },
          { limit: '10' },
          { periodMs: 0 },
          { periodMs: '1s' },
          { burst: 0 },
          { cost: -1 },
          { cost: 11 },
        ],
        ...[{ cost: Number.NaN }, { burst: 2, cost: 3 }, { periodMs: 1e15 }, { period: 5 }],
      ];
      for (const bad of bads) {
        await bench.refuses(() => consume('key', { ...limit, ...bad }), 'invalid', `consume with ${show(bad)}`);
      }
      await bench.refuses(() => consume('', limit), 'invalid', 'consume of an empty key');
      bench.same((await consume('key', { ...limit, cost: 0 })).remaining, 10, 'units left');
      if (!(await bench.closes(store))) return;
      await bench.refuses(() => consume('key', limit), 'closed', 'consume after close');
    }),
  ],
];
