/**
 * Backing: the cache's access to its store: timeouts, a circuit breaker, leases, watches.
 *
 * Promise: no operation takes longer than its timeout. While the store is down only a few probes reach it, so an
 * outage costs the first calls a timeout each, and the others nothing. It does not retry by itself.
 */
import { type Clock, callbackTimer } from '../../core/clock.js';
import { StoreError } from '../../core/errors.js';
import type { HoldfastEvent } from '../../core/events.js';
import { isRefusal } from '../../core/policy.js';
import { type CircuitBreaker, circuitBreaker } from '../../policies/circuit-breaker/circuit-breaker.js';
import type { Entry, Store, StoreWatch, StoreWriteOptions } from '../../stores/store.js';
import { Debts, type Payment } from './debts.js';
import { type CacheRecord, decodeRecord, encodeRecord } from './record.js';

/** An entry of the store, as of when the store was asked. */
export interface Seen {
  readonly version: number;
  /** Empty if the entry was written by another release: it may be overwritten, but not used. */
  readonly record: CacheRecord;
  /** The age of this version when the request was sent, so it is never underestimated later. */
  readonly ageMs: number;
  readonly sentMs: number;
}

/** With `version` if the write was done, else with the entry that was in the way. */
export type Answer =
  | { readonly version: number; readonly sentMs: number; readonly seen?: undefined }
  | { readonly version?: undefined; readonly sentMs: number; readonly seen: Seen | undefined };

/** A tag's generation. Each invalidation of the tag begins a new one, which tells the values loaded before it from those loaded since. */
export interface Generation {
  /** 0: the tag has no entry, and no value is known to be of its generation. */
  readonly number: number;
  /** The time since the invalidation that began it; infinite if that was long ago, or if none is known. */
  readonly ageMs: number;
}

/** The generation of each tag, and what the store has of a key, if one was named. */
export interface Generations {
  readonly tags: ReadonlyMap<string, Generation>;
  readonly key: { readonly version: number; readonly ageMs: number } | undefined;
}

export interface Timeouts {
  readonly readMs: number;
  readonly writeMs: number;
}

interface BackingSettings {
  readonly name: string;
  readonly store: Store;
  readonly clock: Clock;
  readonly random: () => number;
  readonly timeouts: Timeouts;
  readonly serializer: number;
  /** What happens to an invalidation that the store did not take. */
  readonly onStoreDown: 'reject' | 'replay';
  /** Called when an invalidation is kept to be written later. */
  readonly onOwed: (key: string, error: unknown) => void;
  readonly on: ((event: HoldfastEvent) => void) | undefined;
}

/** Tags and keys are kept as entries of different kinds, so that no key can be mistaken for a tag. */
type Kind = 'key' | 'tag';

/** How long an invalidation of a tag is kept. A record lives for days less: durations are at most 24.8 days, and the longest life is the sum of two. */
const tagTtlMs = 5_184_000_000;
/** How much longer a tag's entry lives than the value it is written for. So a tag that is in use is written once in this time. */
const tagSpareMs = 3_600_000;

/** Every store accepts keys of 512 bytes, not counting its own prefix. */
const longestStoreKey = 512;
const nothing = /* @__PURE__ */ new Uint8Array(0);
const text = /* @__PURE__ */ new TextEncoder();

export class Backing {
  readonly breaker: CircuitBreaker;
  private readonly settings: BackingSettings;
  private readonly watches = new Map<string, KeyWatch>();
  private readonly debts: Debts;

  constructor(settings: BackingSettings) {
    const { name, clock, random, on } = settings;
    this.settings = settings;
    this.debts = new Debts(clock);
    this.breaker = circuitBreaker({
      ...{ name: `${name} store`, clock, random },
      ...{ window: { consecutive: 3 }, openFor: 1_000, maxOpenFor: 10_000, halfOpen: { permits: 1 } },
      ...(on === undefined ? {} : { on }),
    });
  }

  async read(key: string): Promise<Seen | undefined> {
    const sentMs = this.settings.clock.now();
    const { readMs } = this.settings.timeouts;
    const entry = await this.run('read', readMs, (store, signal) => store.read(this.keyOf('key', key), { signal }));
    return seen(entry, sentMs);
  }

  /** The entries of several keys, in as few round trips as the store allows. */
  async readMany(keys: readonly string[]): Promise<readonly (Seen | undefined)[]> {
    const sentMs = this.settings.clock.now();
    const entries = await this.entries(keys.map((key) => this.keyOf('key', key)));
    return entries.map((entry) => seen(entry, sentMs));
  }

  async write(
    key: string,
    record: Omit<CacheRecord, 'serializer'>,
    options: Pick<StoreWriteOptions, 'ttlMs' | 'ifVersion'>,
  ): Promise<Answer> {
    const { clock, timeouts, serializer } = this.settings;
    const id = this.keyOf('key', key);
    const owed = this.debts.of(id);
    const sentMs = clock.now();
    const bytes = encodeRecord({ ...record, serializer });
    const answer = await this.run('write', timeouts.writeMs, (store, signal) =>
      store.write(id, bytes, { ...options, evictable: true, signal }),
    );
    if (!answer.ok) return { sentMs, seen: seen(answer.entry, sentMs) };
    // An unconditional write replaces the invalid entry, so the owed invalidation is no longer needed.
    if (options.ifVersion === undefined) this.debts.cancel(id, owed);
    return { version: answer.version, sentMs };
  }

  remove(key: string, ifVersion?: number): Promise<boolean> {
    const condition = ifVersion === undefined ? {} : { ifVersion };
    return this.run('remove', this.settings.timeouts.writeMs, (store, signal) =>
      store.remove(this.keyOf('key', key), { ...condition, signal }),
    );
  }

  /** The generation of each tag, by one request. */
  async generations(tags: readonly string[]): Promise<ReadonlyMap<string, Generation>> {
    const entries = await this.entries(tags.map((tag) => this.keyOf('tag', tag)));
    return new Map(tags.map((tag, index) => [tag, generationOf(entries[index])]));
  }

  /**
   * The generation of each tag of a value that is to be stored and will be of use for `usefulMs`. Each tag then has an entry that outlives the value: if the
   * entry is missing later, it was evicted, perhaps after an invalidation, and the value is void. The same request also tells what the store has of `key`.
   */
  async generationsFor(tags: readonly string[], usefulMs: number, key?: string): Promise<Generations> {
    const ids = tags.map((tag) => this.keyOf('tag', tag));
    const entries = await this.entries(key === undefined ? ids : [...ids, this.keyOf('key', key)]);
    const kept = await Promise.all(ids.map((id, index) => this.keepTag(id, entries[index], usefulMs)));
    return { tags: new Map(tags.map((tag, index) => [tag, kept[index]!])), key: entries[tags.length] };
  }

  /** Removes a key, or makes sure that it will be removed before this process trusts it again. */
  invalidate(key: string): Promise<void> {
    return this.payOrOwe('key', key, () => this.removeAloud(key));
  }

  /** Gives a tag its next generation, or makes sure of it as for a key. */
  invalidateTag(tag: string): Promise<void> {
    return this.payOrOwe('tag', tag, () => this.bump(tag));
  }

  /** Writes what is owed for these keys or tags. Rejects while the store cannot take it; then nothing it returns for them can be trusted. */
  settle(kind: Kind, keys: Iterable<string>): Promise<void> | undefined {
    if (this.debts.isEmpty) return undefined;
    return this.debts.settle(Array.from(keys, (key) => this.keyOf(kind, key)));
  }

  /**
   * Removes a key so that its watchers hear of it. A store reports no change of a key that it does not have, but it may have dropped a value that other
   * processes still hold. So a key that is absent is written, for a millisecond.
   */
  private async removeAloud(key: string): Promise<void> {
    if ((await this.remove(key)) || this.settings.store.native?.watch === undefined) return;
    await this.write(key, {}, { ttlMs: 1, ifVersion: 0 });
  }

  private async payOrOwe(kind: Kind, key: string, payment: Payment): Promise<void> {
    const id = this.keyOf(kind, key);
    const owed = this.debts.of(id);
    try {
      await payment();
      this.debts.cancel(id, owed);
    } catch (error) {
      const { onStoreDown, onOwed } = this.settings;
      // Retrying does not help if the store can never take it. Reason `'closed'` is retried, because it may also be a broken connection.
      const isForGood = error instanceof StoreError && error.reason === 'invalid';
      if (onStoreDown === 'reject' || isForGood || !this.debts.owe(id, payment)) throw error;
      onOwed(key, error);
    }
  }

  private async bump(tag: string): Promise<void> {
    await this.run('write', this.settings.timeouts.writeMs, (store, signal) =>
      store.write(this.keyOf('tag', tag), nothing, { ttlMs: tagTtlMs, signal }),
    );
  }

  /** Makes sure that the entry of a tag outlives a value. The generation stays the same: only an invalidation begins another. */
  private async keepTag(id: string, entry: Entry | undefined, usefulMs: number): Promise<Generation> {
    const generation = generationOf(entry);
    if (entry !== undefined && entry.ttlMs >= usefulMs) return generation;
    const options = { ttlMs: usefulMs + tagSpareMs, ifVersion: entry?.version ?? 0, evictable: true };
    const answer = await this.run('write', this.settings.timeouts.writeMs, (store, signal) =>
      store.write(id, text.encode(`${generation.number}`), { ...options, signal }),
    );
    if (answer.ok) return entry === undefined ? { ...generation, number: answer.version } : generation;
    // Another fill came first, or an invalidation. An invalidation is younger than anything that has been loaded by now.
    const { number, ageMs } = generationOf(answer.entry);
    return { number, ageMs: Number.isFinite(ageMs) ? 0 : ageMs };
  }

  /** The watch shared by all users of a key. If the store cannot watch, it never reports anything. Give it back by `release`. */
  watch(kind: Kind, key: string): KeyWatch {
    const id = this.keyOf(kind, key);
    let watch = this.watches.get(id);
    if (watch === undefined) {
      watch = new KeyWatch(id, this.settings.store);
      this.watches.set(id, watch);
    }
    watch.users++;
    return watch;
  }

  release(watch: KeyWatch): void {
    if (--watch.users > 0) return;
    this.watches.delete(watch.id);
    watch.close();
  }

  async close(): Promise<void> {
    for (const watch of this.watches.values()) watch.close();
    this.watches.clear();
    await this.debts.close();
  }

  private entries(keys: readonly string[]): Promise<readonly (Entry | undefined)[]> {
    return this.run('read', this.settings.timeouts.readMs, (store, signal) => {
      const readMany = store.native?.readMany;
      if (readMany === undefined || keys.length === 1) {
        return Promise.all(keys.map((key) => store.read(key, { signal })));
      }
      const parts: Promise<readonly (Entry | undefined)[]>[] = [];
      for (let at = 0; at < keys.length; at += keysPerRead) {
        parts.push(readMany(keys.slice(at, at + keysPerRead), { signal }));
      }
      return Promise.all(parts).then((all) => all.flat());
    });
  }

  private keyOf(kind: Kind, key: string): string {
    const whole = `cache|${this.settings.name}|${kind}|${key}`;
    if (whole.length * 3 <= longestStoreKey || text.encode(whole).length <= longestStoreKey) return whole;
    // Half a surrogate pair has no UTF-8: two such keys would have one hash.
    return `cache|${Array.from(this.settings.name).slice(0, 40).join('')}|hash|${sha256(JSON.stringify(whole))}`;
  }

  private async run<T>(
    operation: string,
    timeoutMs: number,
    work: (store: Store, signal: AbortSignal) => Promise<T>,
  ): Promise<T> {
    const permit = this.breaker.admit();
    if (isRefusal(permit)) throw permit.error;
    const { clock, store, name } = this.settings;
    const controller = new AbortController();
    const timedOut = () => {
      const detail = `cache "${name}" had no answer within ${timeoutMs} ms`;
      const error = new StoreError({ store: 'cache', operation, reason: 'timeout', applied: 'unknown', detail });
      controller.abort(error);
      return error;
    };
    try {
      const value = await within(clock, timeoutMs, work(store, controller.signal), timedOut);
      permit.settle({ ok: true, value });
      return value;
    } catch (error) {
      // A request that the store can never take, or has no room for, says nothing about its health.
      const isOurs = error instanceof StoreError && (error.reason === 'invalid' || error.reason === 'full');
      if (isOurs) permit.release();
      else permit.settle({ ok: false, error });
      throw error;
    }
  }
}

const keysPerRead = 1_000;

/** Watches the changes of one key for as long as it has users. */
export class KeyWatch {
  users = 0;
  /** Whether every change from now on, or the gap that hides it, will be reported. Until then the key must be polled. */
  isReady = false;
  /** Changes reported so far. Comparing two readings shows whether something happened in between. */
  changes = 0;
  readonly id: string;
  readonly listeners = new Set<(kind: 'changed' | 'gap') => void>();
  private readonly watch: StoreWatch | undefined = undefined;

  constructor(id: string, store: Store) {
    this.id = id;
    try {
      this.watch = store.native?.watch?.(id, ({ kind }) => this.tell(kind));
    } catch {
      // A store that cannot watch at present is polled instead.
    }
    this.watch?.ready.then(
      () => {
        this.isReady = true;
        // Changes up to now were not reported.
        this.tell('changed');
      },
      () => {},
    );
  }

  close(): void {
    this.isReady = false;
    this.listeners.clear();
    this.watch?.close();
  }

  private tell(kind: 'changed' | 'gap'): void {
    this.changes++;
    for (const listener of [...this.listeners]) listener(kind);
  }
}

/** An invalidation writes nothing, and its version is the generation. A fill writes the generation that it found, or 0 where it began one. */
function generationOf(entry: Entry | undefined): Generation {
  if (entry === undefined) return { number: 0, ageMs: Number.POSITIVE_INFINITY };
  const { value, version, ageMs } = entry;
  if (value.length === 0) return { number: version, ageMs };
  return { number: Number(new TextDecoder().decode(value)) || version, ageMs: Number.POSITIVE_INFINITY };
}

function seen(entry: Entry | undefined, sentMs: number): Seen | undefined {
  if (entry === undefined) return undefined;
  const record = decodeRecord(entry.value) ?? { serializer: 0 };
  return { version: entry.version, record, ageMs: entry.ageMs, sentMs };
}

/**
 * The outcome of the promise, or a rejection with `timedOut` after a time. When the timer fires, one more turn of the event loop is allowed:
 * if the loop was blocked, the answer may already be queued behind the timer.
 */
function within<T>(clock: Clock, ms: number, promise: Promise<T>, timedOut: () => Error): Promise<T> {
  return new Promise((resolve, reject) => {
    let hasFired = false;
    const timer = callbackTimer(() => {
      if (hasFired) return reject(timedOut());
      hasFired = true;
      clock.schedule(timer, clock.now() + 1);
    });
    clock.schedule(timer, clock.now() + ms);
    promise.then(
      (value) => {
        clock.cancel(timer);
        resolve(value);
      },
      (error) => {
        clock.cancel(timer);
        reject(error);
      },
    );
  });
}

function sha256(text: string): string {
  const crypto = globalThis.process?.getBuiltinModule?.('node:crypto');
  if (crypto === undefined) {
    const detail = 'the key is too long for the store, and this runtime has no hash function to shorten it';
    throw new StoreError({ store: 'cache', operation: 'hash', reason: 'invalid', applied: 'no', detail });
  }
  return crypto.createHash('sha256').update(text).digest('hex');
}
