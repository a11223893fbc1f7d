/** What a hit in memory costs, awaited and synchronous, and what a caller costs that waits for a load in progress (P10). */
import { waitersPerBatch } from '../measures.ts';
import { atLeast, atMost, type Contender, type Operation, type Table } from '../table.ts';

const key = 'hot';
const value = { id: 42 };
const load = async () => value;

type Get = (key: string) => unknown;

/** The first call fills the cache, and does whatever a library does on first use. */
async function warm(get: Get): Promise<Operation> {
  for (let call = 0; call < 3; call++) await get(key);
  return () => get(key);
}

const map: Contender = {
  name: 'await map.get',
  prepare: () => {
    const entries = new Map([[key, value]]);
    return () => entries.get(key);
  },
};

const contenders: readonly { readonly name: string; readonly make: (load: () => Promise<unknown>) => Promise<Get> }[] =
  [
    {
      name: 'holdfast',
      make: async (loader) => {
        const { cache } = await import('holdfast');
        const values = cache({ ttl: '10m', load: loader });
        return (one) => values.get(one);
      },
    },
    {
      name: 'lru-cache fetch',
      make: async (loader) => {
        const { LRUCache } = await import('lru-cache');
        const values = new LRUCache<string, object>({
          max: 1_000,
          ttl: 600_000,
          fetchMethod: loader as () => Promise<object>,
        });
        return (one) => values.fetch(one);
      },
    },
    {
      name: 'async-cache-dedupe',
      make: async (loader) => {
        const { createCache } = await import('async-cache-dedupe');
        const values = createCache({ ttl: 600, storage: { type: 'memory' } }).define('value', (_: string) => loader());
        return (one) => values.value(one);
      },
    },
    {
      name: 'bentocache',
      make: async (loader) => {
        const { BentoCache, bentostore } = await import('bentocache');
        const { memoryDriver } = await import('bentocache/drivers/memory');
        const store = bentostore().useL1Layer(memoryDriver({ maxItems: 1_000, serialize: false }));
        const values = new BentoCache({ default: 'memory', stores: { memory: store } });
        return (one) => values.getOrSet({ key: one, factory: loader, ttl: '10m' });
      },
    },
    {
      name: 'cacheable',
      make: async (loader) => {
        const { Cacheable } = await import('cacheable');
        const values = new Cacheable({ ttl: '10m' });
        return (one) => values.getOrSet(one, loader);
      },
    },
    {
      name: 'cache-manager',
      make: async (loader) => {
        const { createCache } = await import('cache-manager');
        const values = createCache({ ttl: 600_000 });
        return (one) => values.wrap(one, loader);
      },
    },
  ];

export const cacheHit: Table = {
  name: 'cache-hit',
  title: 'Cache: a hit in memory, awaited',
  measure: 'ns per call',
  baseline: map.name,
  contenders: [map, ...contenders.map(({ name, make }) => ({ name, prepare: async () => warm(await make(load)) }))],
  targets: [
    atMost(2.2, 'a hit ≤ 2.2 × await map.get', (round) => round.holdfast! / round[map.name]!),
    atMost(1.3, 'P10: a hit ≤ 1.3 × lru-cache fetch', (round) => round.holdfast! / round['lru-cache fetch']!),
    atLeast(10, 'P10: ≥ 10 × bentocache', (round) => round.bentocache! / round.holdfast!),
    atLeast(30, 'P10: ≥ 30 × cacheable', (round) => round.cacheable! / round.holdfast!),
  ],
};

/** Synchronous hits: of one key, or of many in turn. */
function peekTable(name: string, title: string, keyCount: number): Table {
  const keys = Array.from({ length: keyCount }, (_, index) => `${key}:${index}`);
  const inTurn = (look: (key: string) => unknown): Operation => {
    let next = 0;
    return () => {
      next = next + 1 === keys.length ? 0 : next + 1;
      return look(keys[next]!);
    };
  };
  return {
    name,
    title,
    measure: 'ns per check',
    baseline: 'lru-cache get',
    contenders: [
      {
        name: 'lru-cache get',
        prepare: async () => {
          const { LRUCache } = await import('lru-cache');
          const values = new LRUCache<string, object>({ max: 10_000, ttl: 600_000 });
          for (const each of keys) values.set(each, value);
          return inTurn((each) => values.get(each));
        },
      },
      {
        name: 'holdfast peek',
        prepare: async () => {
          const { cache } = await import('holdfast');
          const values = cache({ ttl: '10m', load });
          for (const each of keys) await values.get(each);
          return inTurn((each) => values.peek(each));
        },
      },
    ],
    targets: [
      atMost(
        1,
        'P10: a hit at once ≤ 1.0 × lru-cache get',
        (round) => round['holdfast peek']! / round['lru-cache get']!,
      ),
    ],
  };
}

export const cachePeek = peekTable('cache-peek', 'Cache: a hit in memory, at once', 1);
export const cachePeekMany = peekTable(
  'cache-peek-many',
  'Cache: hits in memory, at once, of 1,000 keys in turn',
  1_000,
);

/** One key after another, each loaded while all callers wait for it. */
async function waiting(make: (load: () => Promise<unknown>) => Promise<Get>): Promise<Operation> {
  let end = (_: unknown) => {};
  let keys = 0;
  const get = await make(
    () =>
      new Promise((resolve) => {
        end = resolve;
      }),
  );
  return async () => {
    const one = `key ${keys++}`;
    const answers = Array.from({ length: waitersPerBatch }, () => get(one));
    // Some contenders call the loader a few event loop turns later.
    await new Promise((resolve) => setImmediate(resolve));
    end(value);
    await Promise.all(answers);
  };
}

const ideal: Contender = {
  name: 'a shared promise',
  prepare: () =>
    waiting(async (loader) => {
      const flights = new Map<string, Promise<unknown>>();
      return (one) => {
        const flight = flights.get(one);
        if (flight !== undefined) return flight;
        const begun = loader().finally(() => flights.delete(one));
        flights.set(one, begun);
        return begun;
      };
    }),
};

export const cacheWaiter: Table = {
  name: 'cache-waiter',
  title: 'Cache: a caller that waits for a load in progress',
  measure: 'ns per waiter',
  baseline: ideal.name,
  contenders: [ideal, ...contenders.map(({ name, make }) => ({ name, prepare: () => waiting(make) }))],
  targets: [
    atMost(2.5, 'a waiter ≤ 2.5 × a shared promise', (round) => round.holdfast! / round[ideal.name]!),
    atMost(1.3, 'P10: a waiter ≤ 1.3 × a shared promise', (round) => round.holdfast! / round[ideal.name]!),
  ],
};
