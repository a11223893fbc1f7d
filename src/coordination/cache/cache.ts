/**
 * Cache: a value per key, in process memory and in a store, with one load per key for all processes.
 *
 * Promise: while the store is up, one process loads a key that is missing or expired, however many callers ask. A load that began before
 * a change never overwrites it. A stale value is used only for as long as the options allow, counted from its fill. A store that is down costs
 * the first calls a timeout, and the others nothing. Memory is bounded by default.
 * After: Nishtala et al., "Scaling Memcache at Facebook" (NSDI 2013), leases; RFC 5861; Vattani et al., "Optimal
 * probabilistic cache stampede prevention" (VLDB 2015); FusionCache and bentocache for names.
 */
import { showBriefly } from '../../core/brief.js';
import { longestWaitMs, systemClock } from '../../core/clock.js';
import { type Duration, parseDuration } from '../../core/duration.js';
import { Events } from '../../core/events.js';
import {
  type CommonOptions,
  checkOptions,
  commonFields,
  duration,
  type Field,
  func,
  having,
  impossibleOption,
  integer,
  number,
  oneOf,
  optional,
  withDefault,
} from '../../core/options.js';
import type { Outcome } from '../../core/outcome.js';
import { type Backoff, backoffField, exponential } from '../../policies/retry/backoff.js';
import type { Store } from '../../stores/store.js';
import { Backing } from './backing.js';
import { type AskOptions, type CacheGetOptions, Engine, type EngineSettings, type Found } from './engine.js';
import { Gate } from './gate.js';
import type { Early, Windows } from './held.js';
import type { Loader, ManyLoader } from './loader.js';
import { type MarkedSerializer, type Serializer, type SerializerName, serializerField } from './serializer.js';

/** The lifetime of one value. Omitted members default to the cache's options. */
export interface CacheLifetime {
  /** How long it is fresh. 0: it is not cached. */
  readonly ttl: Duration;
  /** Overrides the option of the cache. */
  readonly staleWhileRevalidate?: Duration | undefined;
  /** Overrides the option of the cache. */
  readonly staleIfError?: Duration | undefined;
}

/** Options of {@link cache}. */
export interface CacheOptions<V, K = string> extends CommonOptions {
  /** Where processes share values and loads. Default: none, each process on its own. */
  readonly store?: Store | undefined;
  /**
   * How long a value is fresh, counted from its load: up to 24.8 days, and 0 for values that must not be cached. Or a function of the
   * value.
   */
  readonly ttl: Duration | ((value: V, key: K) => Duration | CacheLifetime);
  /** Loads the value of a key. Without it each `get` must pass one. */
  readonly load?: Loader<V, K> | undefined;
  /** Loads the values of many keys at once, for `getMany`. Default: `load` for each. */
  readonly loadMany?: ManyLoader<V, K> | undefined;
  /** Turns a key into the text that identifies it. Default: strings, numbers, bigints and booleans as they are written. */
  readonly key?: ((key: K) => string) | undefined;
  /** How long after `ttl` a stale value is still served at once, while one process reloads it. From 0, the default, to 24.8 days. */
  readonly staleWhileRevalidate?: Duration | undefined;
  /** How long after `ttl` a stale value is served when a load fails or takes longer than `softTimeout`. From 0, the default, to 24.8 days; an hour is a good choice. */
  readonly staleIfError?: Duration | undefined;
  /** How long `null` and `undefined` are fresh, from 0 to 24.8 days. Default: `null` like any value, and `undefined` is not cached. */
  readonly negativeTtl?: Duration | undefined;
  /** The largest share by which each time to live is shortened at random, so that values loaded together do not expire together. From 0 to 0.5, default 0.1. */
  readonly jitter?: number | undefined;
  /**
   * When a requested value is reloaded before it expires. `'adaptive'`, the default: 1.5 to 2.25 of its measured load times before,
   * at most 0.3 of its time to live. `'xfetch'`: by chance, likelier the nearer the expiry. `'off'`: never.
   */
  readonly early?: Early | undefined;
  /** Entries in memory. Default 1,000; from 1 to 10,000,000. */
  readonly max?: number | undefined;
  /** Bytes in memory, measured as serialized; from 1,024. Default 64 MiB with a store; without one values are not measured unless this is given. */
  readonly maxBytes?: number | undefined;
  /** After how long a value in memory is checked against the store. Default 30 s; from 1 ms to 24.8 days, but at most 5 s if the store reports no changes. */
  readonly maxL1Ttl?: Duration | undefined;
  /** How long a dead process keeps others from loading. Default 3 s; from 300 ms to an hour. It is renewed at each third. */
  readonly lease?: Duration | undefined;
  /** How long a caller waits for a load while there is a stale value within `staleIfError`. Default: until the load ends. */
  readonly softTimeout?: Duration | undefined;
  /** How long a load may take; then its signal aborts and it has failed. Default 30 s; from 1 ms to 24.8 days. */
  readonly hardTimeout?: Duration | undefined;
  /** How long a caller waits for the load of another process. Default: `hardTimeout`. */
  readonly waitTimeout?: Duration | undefined;
  /** What happens after that without a stale value: `'load'`, the default, the caller loads it itself; `'reject'`, it gets a `TimeoutError`. */
  readonly onWaitTimeout?: 'load' | 'reject' | undefined;
  /** Concurrent loads in this process, from 1; others queue. Default: no bound. A loader that asks its own cache for another key needs more than one. */
  readonly maxConcurrentLoads?: number | undefined;
  /** How long no process loads a key again after a failed load. Default `exponential({ initial: '1s', max: '30s' })`. */
  readonly failBackoff?: Backoff | undefined;
  /** How long the store may take to reply: by default 100 ms for a read, 500 ms for a write; from 1 ms to 24.8 days. After three failures in a row a breaker keeps calls away from it for a while. */
  readonly l2Timeouts?: { readonly read?: Duration | undefined; readonly write?: Duration | undefined } | undefined;
  /**
   * What `set`, `delete` and `invalidateTag` do when the store fails. `'reject'`, the default: they reject. `'replay'`: they
   * resolve, and the invalidation of the old value is written when the store is back, before this process trusts that value again; at most
   * 10,000 are kept, the next is rejected, and they die with the process.
   */
  readonly onStoreDown?: 'reject' | 'replay' | undefined;
  /**
   * How values become bytes: `'json'`, the default, `'structured-clone'` (`Map`, `Date`, bigint, bytes; by node:v8), `'bytes'` for a plain
   * `Uint8Array`, or your own. A built-in one refuses values that it would not restore identically.
   */
  readonly serializer?: SerializerName | Serializer<V> | undefined;
  /** The tags of a value, by which `invalidateTag` finds it. At most 100, each of 1 to 200 characters. */
  readonly tags?: ((value: V, key: K) => readonly string[]) | undefined;
  /** Chance, in [0, 1). Default `Math.random`. */
  readonly random?: (() => number) | undefined;
}

/** What {@link cache} returns. */
export interface Cache<V, K = string> {
  /** The option `name`, as in events and errors. */
  readonly name: string;
  /** Entries in the memory of this process. */
  readonly size: number;
  /**
   * The value of a key: from memory, from the store, or loaded. Concurrent callers for a key share one load, and the value
   * itself: do not mutate it.
   *
   * @param options - `signal`: ends the wait of this caller alone. `load`: overrides the cache's.
   * @throws What the loader throws; {@link LoadBackoffError} `ERR_LOAD_BACKOFF` while the backoff after a failed load lasts;
   * {@link TimeoutError} `ERR_TIMEOUT` after `hardTimeout`; the reason of `signal`.
   */
  get(key: K, options?: CacheGetOptions<V, K>): Promise<V>;
  /**
   * Returns the value of a key synchronously if this process holds it fresh and no refresh is due, else undefined. It never loads and does not ask the store.
   *
   * For code that cannot await, or to save an await: `cache.peek(key) ?? (await cache.get(key))`.
   *
   * @throws `TypeError` for an invalid key.
   */
  peek(key: K): V | undefined;
  /** The values of many keys, in their order. Missing values are loaded by one `loadMany`; each key has its own outcome. */
  getMany(keys: readonly K[], options?: { readonly signal?: AbortSignal | undefined }): Promise<Outcome<V>[]>;
  /** Stores a value. @throws {@link StoreError} `ERR_STORE` when the store failed, {@link CircuitOpenError} `ERR_CIRCUIT_OPEN` while the breaker in front of it is open; a `TypeError` for a value that would not be restored identically. */
  set(key: K, value: V): Promise<void>;
  /** Deletes a value, in all processes. A load under way does not bring it back. @throws {@link StoreError} `ERR_STORE` when the store failed, {@link CircuitOpenError} `ERR_CIRCUIT_OPEN` while the breaker in front of it is open. */
  delete(key: K): Promise<void>;
  /** Invalidates every value that has the tag, by one write. @throws {@link StoreError} `ERR_STORE` when the store failed, {@link CircuitOpenError} `ERR_CIRCUIT_OPEN` while the breaker in front of it is open. */
  invalidateTag(tag: string): Promise<void>;
  /** Aborts loads under way, releases their leases, and ends all watches. The store stays open. Safe to repeat. */
  close(): Promise<void>;
  /** As `close`, for `await using`. */
  [Symbol.asyncDispose](): Promise<void>;
}

export type { CacheSource } from './flight.js';
export type { LoadContext, Loader, ManyLoader } from './loader.js';
export type { CacheGetOptions, Serializer, SerializerName };

/** The names of the caches on each store: two caches of one name would take each other's values for their own. */
const namesByStore = /* @__PURE__ */ new WeakMap<object, Set<string>>();

const span = /* @__PURE__ */ duration({ min: 0 });

const ttlField: Field<Duration | ((value: never, key: never) => Duration | CacheLifetime)> = {
  allowed: "a duration such as 5000 or '5s', or a function that answers one",
  parse: (value) => (typeof value === 'function' ? (value as () => Duration) : span.parse(value)),
};

/**
 * Caches values that are expensive to produce, in process memory and in a store, and loads each once for all callers.
 *
 * For values that are read more often than they change. With a store, processes share values, and one loads while the others wait;
 * give each cache in a store its own `name`. Not for values that must never be stale: another process may serve its in-memory copy until a change notice
 * arrives, or for `maxL1Ttl` when the notice is lost.
 *
 * @throws {@link OptionsError} `ERR_OPTIONS` at once, for an invalid option.
 * @example
 * ```ts
 * import { cache, memoryStore } from 'holdfast';
 *
 * let loads = 0;
 * const users = cache<{ id: string }>({
 *   store: memoryStore(), // redisStore(client) or sqliteStore(db), to share it
 *   ttl: '1m',
 *   staleWhileRevalidate: '30s',
 *   load: async (id) => {
 *     loads++;
 *     return { id };
 *   },
 * });
 * await Promise.all(Array.from({ length: 100 }, () => users.get('42')));
 * console.log(loads); // 1
 * await users.delete('42');
 * await users.close();
 * ```
 */
export function cache<V, K = string>(options: CacheOptions<V, K>): Cache<V, K> {
  showBriefly(StoredCache.prototype, ({ name, size }) => ({ name, size }));
  return new StoredCache<V, K>('cache', options);
}

/** Like {@link cache}, for modules of this package that offer it under another name. */
export class StoredCache<V, K> implements Cache<V, K> {
  readonly name: string;
  private readonly engine: Engine<V, K>;
  private readonly leaveStore: () => void;
  readonly get: Cache<V, K>['get'];
  readonly peek: Cache<V, K>['peek'];

  constructor(policy: string, options: CacheOptions<V, K>) {
    const { settings, store, l2Timeouts, maxConcurrentLoads, on } = settingsOf(policy, options);
    const { name, clock, random, serializer } = settings;
    this.name = name;
    this.leaveStore = store === undefined ? () => {} : enterStore(policy, store, name);
    const { onStoreDown, events } = settings;
    const onOwed = (key: string, error: unknown) => {
      if (events.heard) events.emit({ type: 'cache-warning', name, key, reason: 'owed', error });
    };
    const common = { name, store, clock, random, timeouts: l2Timeouts, serializer: serializer.mark };
    const backing = store && new Backing({ ...common, store, onStoreDown, onOwed, on });
    const gate = maxConcurrentLoads === undefined ? undefined : new Gate(maxConcurrentLoads);
    const engine = new Engine<V, K>(settings, backing, gate);
    this.engine = engine;
    // Bound here, which saves one call on the path of a hit.
    this.get = (key, getOptions) => engine.get(key, getOptions);
    this.peek = (key) => engine.peek(key);
  }

  get size(): number {
    return this.engine.size;
  }

  ask(key: K, options: AskOptions<V, K>): Promise<Found<V>> {
    return this.engine.ask(key, options);
  }

  getMany(keys: readonly K[], options?: { readonly signal?: AbortSignal | undefined }): Promise<Outcome<V>[]> {
    return this.engine.getMany(keys, options);
  }

  set(key: K, value: V, ...more: readonly never[]): Promise<void> {
    if (more.length > 0) {
      return Promise.reject(new TypeError(`cache "${this.name}": set takes key and value; "ttl" is of the cache`));
    }
    return this.engine.set(key, value);
  }

  delete(key: K): Promise<void> {
    return this.engine.delete(key);
  }

  /** @param mayHave - The keys whose values can have the tag. Default: all. */
  invalidateTag(tag: string, mayHave?: (key: string) => boolean): Promise<void> {
    return this.engine.invalidateTag(tag, mayHave);
  }

  warn(...warning: Parameters<Engine<V, K>['warn']>): void {
    this.engine.warn(...warning);
  }

  async close(): Promise<void> {
    await this.engine.close();
    this.leaveStore();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

function settingsOf<V, K>(policy: string, options: CacheOptions<V, K>) {
  const checked = checkOptions(policy, options, {
    store: optional(having<Store>('a store such as memoryStore() or redisStore(client)', 'read', 'write', 'remove')),
    ttl: ttlField as Field<CacheOptions<V, K>['ttl']>,
    load: optional(func<Loader<V, K>>()),
    loadMany: optional(func<ManyLoader<V, K>>()),
    key: optional(func<(key: K) => string>()),
    staleWhileRevalidate: withDefault(span, 0),
    staleIfError: withDefault(span, 0),
    negativeTtl: optional(span),
    jitter: withDefault(number({ max: 0.5 }), 0.1),
    early: withDefault<Early>(oneOf(['adaptive', 'xfetch', 'off']), 'adaptive'),
    max: withDefault(integer({ min: 1, max: 10_000_000 }), 1_000),
    maxBytes: optional(integer({ min: 1_024 })),
    maxL1Ttl: optional(duration({})),
    lease: withDefault(duration({ min: 300, max: 3_600_000 }), 3_000),
    softTimeout: optional(span),
    hardTimeout: withDefault(duration({}), 30_000),
    waitTimeout: optional(span),
    onWaitTimeout: withDefault<'load' | 'reject'>(oneOf(['load', 'reject']), 'load'),
    maxConcurrentLoads: optional(integer({ min: 1 })),
    failBackoff: optional(backoffField),
    onStoreDown: withDefault<'reject' | 'replay'>(oneOf(['reject', 'replay']), 'reject'),
    l2Timeouts: optional<unknown>({ allowed: 'an object', parse: (value) => value }),
    serializer: serializerField as Field<MarkedSerializer>,
    tags: optional(func<(value: V, key: K) => readonly string[]>()),
    random: withDefault(func<() => number>(), Math.random),
    ...commonFields(policy),
  });
  const { read, write } = checkOptions(`${policy} "l2Timeouts"`, checked.l2Timeouts, {
    read: withDefault(duration({}), 100),
    write: withDefault(duration({}), 500),
  });
  const { store, maxL1Ttl, hardTimeout, failBackoff, maxBytes, clock = systemClock } = checked;
  const settings: EngineSettings<V, K> = {
    name: checked.name,
    events: new Events(checked.name, checked.on),
    clock,
    random: checked.random,
    load: checked.load,
    loadMany: checked.loadMany,
    keyText: checked.key,
    lifetimes: lifetimesBy(policy, checked),
    tags: checked.tags,
    serializer: checked.serializer,
    max: checked.max,
    maxBytes: maxBytes ?? (store === undefined ? undefined : 2 ** 26),
    maxL1Ms: { told: maxL1Ttl ?? 30_000, untold: Math.min(maxL1Ttl ?? 5_000, 5_000) },
    early: checked.early,
    jitter: checked.jitter,
    leaseMs: checked.lease,
    softTimeoutMs: checked.softTimeout,
    hardTimeoutMs: hardTimeout,
    waitTimeoutMs: checked.waitTimeout ?? hardTimeout,
    onWaitTimeout: checked.onWaitTimeout,
    onStoreDown: checked.onStoreDown,
    failBackoff: failBackoff ?? exponential({ initial: 1_000, max: 30_000 }),
  };
  const l2Timeouts = { readMs: read, writeMs: write };
  return { settings, store, l2Timeouts, maxConcurrentLoads: checked.maxConcurrentLoads, on: checked.on };
}

interface LifetimeSettings<V, K> {
  readonly ttl: CacheOptions<V, K>['ttl'];
  readonly staleWhileRevalidate: number;
  readonly staleIfError: number;
  readonly negativeTtl: number | undefined;
}

/** The windows of a value, without jitter; undefined if it must not be cached. */
function lifetimesBy<V, K>(policy: string, settings: LifetimeSettings<V, K>) {
  const { ttl, staleWhileRevalidate, staleIfError, negativeTtl } = settings;
  const windows = (freshMs: number, staleMs: number, errorMs: number): Windows | undefined =>
    freshMs > 0 ? { freshMs, staleMs: freshMs + staleMs, errorMs: freshMs + errorMs } : undefined;
  return (value: V, key: K): Windows | undefined => {
    // An absent value says nothing about how long a present one stays valid.
    if (negativeTtl !== undefined && (value === undefined || value === null)) return windows(negativeTtl, 0, 0);
    if (value === undefined) return undefined;
    if (typeof ttl !== 'function') return windows(ttl as number, staleWhileRevalidate, staleIfError);
    const answer = ttl(value, key);
    const lifetime = typeof answer === 'object' && answer !== null ? answer : { ttl: answer };
    const ms = (name: keyof CacheLifetime, missing: number) => {
      const given = lifetime[name];
      const parsed = given === undefined ? missing : parseDuration(given);
      if (parsed !== undefined && parsed <= longestWaitMs) return parsed;
      throw impossibleOption(policy, `ttl (its answer's ${name})`, given, span.allowed);
    };
    return windows(
      ms('ttl', Number.NaN),
      ms('staleWhileRevalidate', staleWhileRevalidate),
      ms('staleIfError', staleIfError),
    );
  };
}

function enterStore(policy: string, store: Store, name: string): () => void {
  let names = namesByStore.get(store);
  if (names === undefined) {
    names = new Set();
    namesByStore.set(store, names);
  }
  if (names.has(name)) {
    const allowed = "different for each cache of a store, or they would take each other's values for their own";
    throw impossibleOption(policy, 'name', name, allowed);
  }
  const all = names.add(name);
  return () => void all.delete(name);
}
