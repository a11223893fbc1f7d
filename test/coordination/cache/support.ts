/** Several processes in one: caches that share a store, each with its own memory. */
import {
  type Cache,
  type CacheOptions,
  cache,
  type HoldfastEvent,
  memoryStore,
  type Store,
  type StoreChange,
} from '../../../src/index.js';
import { seededRandom, virtualClock } from '../../../src/testing/index.js';

/** The same store as a different object, as another process would have it. */
export function viewOf(store: Store): Store {
  return {
    read: (key, options) => store.read(key, options),
    write: (key, value, options) => store.write(key, value, options),
    remove: (key, options) => store.remove(key, options),
    ...(store.native === undefined ? {} : { native: store.native }),
  };
}

/** A source of values that counts its loads and can be made slow, old or broken. */
class Source {
  loads = 0;
  value: unknown = 1;
  delayMs = 0;
  error: unknown = undefined;
  readonly keys: string[] = [];
  private readonly clock: { sleep(ms: number): Promise<void> };

  constructor(clock: { sleep(ms: number): Promise<void> }) {
    this.clock = clock;
  }

  /** The value is read when the load begins, as by a query whose reply is slow. */
  readonly load = async (key: string): Promise<unknown> => {
    this.loads++;
    this.keys.push(key);
    const { value, error } = this;
    if (this.delayMs > 0) await this.clock.sleep(this.delayMs);
    if (error !== undefined) throw error;
    return value;
  };
}

/** Undefined takes back an option of the set-up. */
export type Changes = { readonly [Name in keyof CacheOptions<unknown>]?: CacheOptions<unknown>[Name] | undefined };

export function setUp(options: Changes = {}, processes = 1, store?: Store) {
  const clock = virtualClock();
  const shared = store ?? memoryStore({ clock });
  const source = new Source(clock);
  const events: HoldfastEvent[] = [];
  const common = { ttl: '10s', jitter: 0, load: source.load, clock, on: (event: HoldfastEvent) => events.push(event) };
  const caches: Cache<unknown>[] = [];
  for (let index = 0; index < processes; index++) {
    const own = { store: viewOf(shared), random: seededRandom(index + 1) };
    caches.push(cache<unknown>({ ...common, ...own, ...options } as CacheOptions<unknown>));
  }
  const sources = () => events.flatMap((event) => (event.type === 'cache-get' ? [event.source] : []));
  const warnings = () => events.flatMap((event) => (event.type === 'cache-warning' ? [event.reason] : []));
  return { clock, store: shared, source, events, caches, users: caches[0]!, sources, warnings };
}

type Verb = 'read' | 'write' | 'remove' | 'readMany';

/** Caches on a store whose calls are all seen and can be held up. The store can be kept from reporting changes, or told to report them. */
export function setUpSeen(options: Changes & { readonly isTelling?: boolean } = {}, processes = 1) {
  const { isTelling = true, ...cacheOptions } = options;
  const late: { inner?: ReturnType<typeof memoryStore> } = {};
  const inner = () => late.inner!;
  const watches = new Set<{ readonly key: string; tell(change: StoreChange): void }>();
  const control = {
    calls: [] as string[],
    /** Called before the store carries the verb out, and before it answers. */
    before: (_verb: Verb, _key: string): unknown => undefined,
    after: (_verb: Verb, _key: string): unknown => undefined,
    watches,
    tell: (kind: StoreChange['kind']) => {
      for (const watch of watches) watch.tell({ kind });
    },
  };
  const seen = async <T>(verb: Verb, key: string, ask: () => Promise<T>): Promise<T> => {
    control.calls.push(`${verb} ${key}`);
    await control.before(verb, key);
    const answer = await ask();
    await control.after(verb, key);
    return answer;
  };
  const store: Store = {
    read: (key, own) => seen('read', key, () => inner().read(key, own)),
    write: (key, value, own) => seen('write', key, () => inner().write(key, value, own)),
    remove: (key, own) => seen('remove', key, () => inner().remove(key, own)),
    native: {
      readMany: (keys, own) => seen('readMany', keys.join(' '), () => inner().native.readMany(keys, own)),
      ...(isTelling && {
        watch: (key: string, tell: (change: StoreChange) => void) => {
          const watch = { key, tell };
          watches.add(watch);
          const real = inner().native.watch(key, tell);
          const close = () => {
            watches.delete(watch);
            real.close();
          };
          return { ready: real.ready, close };
        },
      }),
    },
  };
  const world = setUp(cacheOptions, processes, store);
  late.inner = memoryStore({ clock: world.clock });
  return { ...world, control, inner: late.inner };
}
