/**
 * Memory store: the store of one process, bounded, without a timer of its own.
 *
 * Promise: an entry that is not `evictable` is never dropped before it expires. If such entries fill the store, `write` fails and says so. Expired entries
 * are dropped by later writes, at most a few per write, the earliest first.
 */

import { LRUCache } from 'lru-cache';
import { showBriefly } from '../core/brief.js';
import { type Clock, systemClock } from '../core/clock.js';
import { StoreError } from '../core/errors.js';
import { known } from '../core/known.js';
import { checkOptions, having, integer, withDefault } from '../core/options.js';
import { Cells, type Page } from './cells.js';
import { Copies } from './copies.js';
import type {
  ClosableStore,
  Consumed,
  ConsumeOptions,
  Entry,
  NativeCapabilities,
  Refused,
  StoreCallOptions,
  StoreChange,
  StoreRemoveOptions,
  StoreWatch,
  StoreWriteOptions,
  Written,
} from './store.js';
import { maxValueBytesField, VerbChecks } from './verb-checks.js';
import { Watchers } from './watchers.js';

/** Options of {@link memoryStore}. */
export interface MemoryStoreOptions {
  /** Most entries, from 1 to 10 000 000. Default 100 000: a day of idempotency keys at one per second. */
  readonly max?: number | undefined;
  /** Most bytes of all keys and values together, from 1,024. Default 128 MiB: it fits beside an ordinary heap. */
  readonly maxBytes?: number | undefined;
  /** Most bytes of one value, from 1 to 1 GiB. Default 1 MiB. */
  readonly maxValueBytes?: number | undefined;
  /** The source of time. Default `systemClock`. */
  readonly clock?: Clock | undefined;
}

/** What {@link memoryStore} returns. */
export interface MemoryStore extends ClosableStore {
  readonly native: Required<Pick<NativeCapabilities, 'watch' | 'readMany' | 'consume'>>;
  /** Entries kept, including expired ones that no write has dropped yet. */
  readonly size: number;
}

/**
 * A store in the memory of this process.
 *
 * For tests, for single-process services, and as the default until there is a second process. Processes do not see each
 * other's entries, and a restart loses everything, versions included.
 * Entries written `evictable` make room for others, the least recently used first; all others stay until they expire.
 * When those fill the store, a write fails with {@link StoreError}, reason `'full'`.
 *
 * @throws {@link OptionsError} `ERR_OPTIONS` at once, for an invalid option.
 * @example
 * ```ts
 * import { memoryStore } from 'holdfast';
 *
 * const store = memoryStore({ max: 10_000 });
 * const mine = new TextEncoder().encode('worker 1');
 * const first = await store.write('job', mine, { ttlMs: 10_000, ifVersion: 0 });
 * const second = await store.write('job', mine, { ttlMs: 10_000, ifVersion: 0 });
 * console.log(first.ok, second.ok); // true false
 * ```
 */
export function memoryStore(options: MemoryStoreOptions = {}): MemoryStore {
  const { max, maxBytes, maxValueBytes, clock } = checkOptions('memoryStore', options, {
    max: withDefault(integer({ min: 1, max: 10_000_000 }), 100_000),
    maxBytes: withDefault(integer({ min: 1024 }), 2 ** 27),
    maxValueBytes: maxValueBytesField,
    clock: withDefault(having<Clock>('a clock such as systemClock', 'now', 'schedule'), systemClock),
  });
  showBriefly(BoundedStore.prototype, ({ size }) => ({ store: 'memory', size }));
  return new BoundedStore(max, maxBytes, clock, new VerbChecks('memory', maxValueBytes));
}

class Kept {
  readonly key: string;
  version = 0;
  writtenMs = 0;
  ttlMs = 0;
  length = 0;
  /** Position in the heap; -1 for an evictable entry. */
  heapIndex = -1;
  /** The page whose cell holds the value; undefined: the value is all of `bytes`. */
  private page: Page | undefined = undefined;
  private bytes = noBytes;
  private offset = 0;

  constructor(key: string) {
    this.key = key;
  }

  get expiresMs(): number {
    return this.writtenMs + this.ttlMs;
  }

  /** Copies the value into a cell or, without cells, into an array of its own. */
  put(value: Uint8Array, cells: Cells | undefined): void {
    this.free();
    this.length = value.byteLength;
    this.page = cells?.pageFor(value.byteLength);
    if (this.page === undefined) {
      // Not `slice`: on a Buffer, that is a view of the same bytes.
      this.bytes = new Uint8Array(value);
      this.offset = 0;
    } else {
      this.bytes = this.page.bytes;
      this.offset = this.page.take();
      this.bytes.set(value, this.offset);
    }
  }

  free(): void {
    this.page?.free(this.offset);
    this.page = undefined;
  }

  copy(copies: Copies): Uint8Array {
    return copies.of(this.bytes, this.offset, this.offset + this.length);
  }

  entry(nowMs: number, copies: Copies): Entry {
    return {
      value: this.copy(copies),
      version: this.version,
      ageMs: nowMs - this.writtenMs,
      ttlMs: this.expiresMs - nowMs,
    };
  }
}

const noBytes = /* @__PURE__ */ new Uint8Array(0);

/** A lone surrogate: no key of a verb starts with it. */
const limitPrefix = '\ud800';

/** How many expired entries one write drops: more than it adds, so that their number falls. */
const droppedPerWrite = 2;

class BoundedStore implements MemoryStore {
  readonly native: MemoryStore['native'];
  private readonly watchers = new Watchers();
  private readonly records = new Map<string, Kept>();
  private readonly expiry = new ExpiryHeap();
  private recordBytes = 0;
  /** Created for the first evictable entry. */
  private evictables: LRUCache<string, Kept> | undefined = undefined;
  /** One counter for all keys, so that nothing need be remembered about removed keys. */
  private lastVersion = 0;
  private readonly copies = new Copies();
  private cells = new Cells();
  private isClosed = false;
  private readonly max: number;
  private readonly maxBytes: number;
  private readonly clock: Clock;
  private readonly checks: VerbChecks;

  constructor(max: number, maxBytes: number, clock: Clock, checks: VerbChecks) {
    this.max = max;
    this.maxBytes = maxBytes;
    this.clock = clock;
    this.checks = checks;
    this.native = {
      watch: (key, onChange) => this.watch(key, onChange),
      readMany: (keys, options) => this.readMany(keys, options),
      consume: (key, options) => this.consume(key, options),
    };
  }

  get size(): number {
    return this.records.size + (this.evictables?.size ?? 0);
  }

  async read(key: string, options?: StoreCallOptions): Promise<Entry | undefined> {
    this.checks.read(key, options);
    if (this.isClosed) throw closed('read');
    const nowMs = this.clock.now();
    return this.live(key, nowMs)?.entry(nowMs, this.copies);
  }

  write(key: string, value: Uint8Array, options: StoreWriteOptions): Promise<Written | Refused> {
    try {
      return known(this.writeNow(key, value, options));
    } catch (error) {
      return Promise.reject(error);
    }
  }

  async remove(key: string, options?: StoreRemoveOptions): Promise<boolean> {
    this.checks.remove(key, options);
    if (this.isClosed) throw closed('remove');
    const current = this.live(key, this.clock.now());
    if (current === undefined) return false;
    const ifVersion = options?.ifVersion;
    if (ifVersion !== undefined && ifVersion !== current.version) return false;
    this.drop(key);
    if (this.watchers.size > 0) this.watchers.tell(key);
    return true;
  }

  async close(): Promise<void> {
    this.isClosed = true;
    this.watchers.closeAll();
    this.records.clear();
    this.expiry.clear();
    this.cells = new Cells();
    this.evictables = undefined;
  }

  private writeNow(key: string, value: Uint8Array, options: StoreWriteOptions): Written | Refused {
    this.checks.write(key, value, options);
    if (this.isClosed) throw closed('write');
    const { ttlMs, ifVersion, evictable } = options;
    const nowMs = this.clock.now();
    const kept = this.kept(key);
    const current = kept !== undefined && nowMs < kept.expiresMs ? kept : undefined;
    if (ifVersion !== undefined && ifVersion !== (current?.version ?? 0)) {
      return { ok: false, entry: current?.entry(nowMs, this.copies) };
    }
    const { version } = this.keep(key, kept, value, nowMs, ttlMs, evictable);
    if (this.watchers.size > 0) this.watchers.tell(key);
    return { ok: true, version };
  }

  private async readMany(
    keys: readonly string[],
    options: StoreCallOptions | undefined,
  ): Promise<readonly (Entry | undefined)[]> {
    this.checks.readMany(keys, options);
    if (this.isClosed) throw closed('readMany');
    const nowMs = this.clock.now();
    return keys.map((key) => this.live(key, nowMs)?.entry(nowMs, this.copies));
  }

  private watch(key: string, onChange: (change: StoreChange) => void): StoreWatch {
    const watcher = this.checks.watch(key, onChange, this.watchers, this.isClosed);
    if (!watcher.isStarting) return watcher;
    watcher.whenOver(() => this.watchers.delete(watcher));
    this.watchers.add(watcher);
    watcher.begin();
    return watcher;
  }

  private async consume(key: string, options: ConsumeOptions): Promise<Consumed> {
    const rate = this.checks.consume(key, options);
    if (this.isClosed) throw closed('consume');
    const nowMs = this.clock.now();
    const own = limitPrefix + key;
    const kept = this.kept(own);
    const isLive = kept !== undefined && nowMs < kept.expiresMs;
    const debtMs = isLive ? Math.min(numberIn(kept.copy(this.copies)) - nowMs, rate.wholeMs) : 0;
    const ok = rate.isGranted(debtMs);
    const nextMs = rate.debtAfter(debtMs);
    if (ok && rate.cost > 0) {
      this.keep(own, kept, bytesWith(nowMs + nextMs), nowMs, nextMs, false);
    }
    return rate.answer(debtMs, ok);
  }

  /** @param known - The present entry of the key, which saves a second look-up: in a large map that costs more than all the rest. */
  private keep(
    key: string,
    known: Kept | undefined,
    value: Uint8Array,
    nowMs: number,
    ttlMs: number,
    evictable: boolean | undefined,
  ): Kept {
    const bytes = bytesOf(key, value.byteLength);
    const old = this.makeRoom(key, bytes, nowMs) ? this.kept(key) : known;
    // A record that is rewritten keeps its place.
    const isKeptInPlace = old !== undefined && old.heapIndex >= 0 && !evictable;
    if (!isKeptInPlace && old !== undefined) this.drop(key);
    const kept = isKeptInPlace ? old : new Kept(key);
    if (isKeptInPlace) this.recordBytes -= bytesOf(key, old.length);
    kept.put(value, evictable ? undefined : this.cells);
    kept.version = ++this.lastVersion;
    kept.writtenMs = nowMs;
    kept.ttlMs = ttlMs;
    if (evictable) {
      const sizeCalculation = (one: Kept) => bytesOf(one.key, one.length);
      this.evictables ??= new LRUCache({ maxSize: this.maxBytes, sizeCalculation });
      this.evictables.set(key, kept);
      return kept;
    }
    this.recordBytes += bytes;
    if (isKeptInPlace) this.expiry.move(kept);
    else {
      this.records.set(key, kept);
      this.expiry.add(kept);
    }
    return kept;
  }

  private kept(key: string): Kept | undefined {
    return this.records.get(key) ?? this.evictables?.get(key);
  }

  private live(key: string, nowMs: number): Kept | undefined {
    const kept = this.kept(key);
    return kept !== undefined && nowMs < kept.expiresMs ? kept : undefined;
  }

  private drop(key: string): void {
    const record = this.records.get(key);
    if (record === undefined) {
      this.evictables?.delete(key);
      return;
    }
    this.records.delete(key);
    this.recordBytes -= bytesOf(key, record.length);
    this.expiry.remove(record);
    record.free();
  }

  private dropExpired(nowMs: number): boolean {
    const first = this.expiry.first;
    if (first === undefined || nowMs < first.expiresMs) return false;
    this.drop(first.key);
    return true;
  }

  /**
   * Drops some expired entries, and evictable ones until the new entry fits in place of the key's old one. If it cannot fit, throws and leaves all records.
   * Returns whether anything was dropped.
   */
  private makeRoom(key: string, bytes: number, nowMs: number): boolean {
    let dropped = 0;
    while (dropped < droppedPerWrite && this.dropExpired(nowMs)) dropped++;
    const used = this.recordBytes + (this.evictables?.calculatedSize ?? 0);
    if (this.size < this.max && used + bytes <= this.maxBytes) return dropped > 0;
    for (;;) {
      const old = this.records.get(key) ?? this.evictables?.peek(key);
      const entries = this.size + (old === undefined ? 1 : 0);
      const oldBytes = old === undefined ? 0 : bytesOf(key, old.length);
      const allBytes = this.recordBytes + (this.evictables?.calculatedSize ?? 0) - oldBytes + bytes;
      if (entries <= this.max && allBytes <= this.maxBytes) return true;
      if (!this.dropExpired(nowMs) && this.evictables?.pop() === undefined) throw this.full();
    }
  }

  private full(): StoreError {
    const used = `${this.records.size} of ${this.max} entries, ${this.recordBytes} of ${this.maxBytes} bytes`;
    const detail = `it is full of entries that may not be evicted (${used}); raise "max" or "maxBytes", or shorten their ttl`;
    return new StoreError({ store: 'memory', operation: 'write', reason: 'full', applied: 'no', detail });
  }
}

function closed(operation: string): StoreError {
  return new StoreError({ store: 'memory', operation, reason: 'closed', applied: 'no', detail: 'the store is closed' });
}

/** A string takes at most two bytes per code unit. */
function bytesOf(key: string, valueBytes: number): number {
  return key.length * 2 + valueBytes;
}

function numberIn(bytes: Uint8Array): number {
  return new DataView(bytes.buffer, bytes.byteOffset).getFloat64(0, true);
}

function bytesWith(number: number): Uint8Array {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setFloat64(0, number, true);
  return bytes;
}

/** A binary heap of records; the first to expire is on top. */
class ExpiryHeap {
  private readonly heap: Kept[] = [];

  get first(): Kept | undefined {
    return this.heap[0];
  }

  add(kept: Kept): void {
    this.heap.push(kept);
    this.rise(kept, this.heap.length - 1);
  }

  remove(kept: Kept): void {
    const last = this.heap.pop()!;
    if (last === kept) return;
    this.put(last, kept.heapIndex);
  }

  /** For a record whose expiry has changed. */
  move(kept: Kept): void {
    this.put(kept, kept.heapIndex);
  }

  clear(): void {
    this.heap.length = 0;
  }

  private put(kept: Kept, index: number): void {
    this.rise(kept, index);
    if (kept.heapIndex === index) this.sink(kept, index);
  }

  private rise(kept: Kept, from: number): void {
    let index = from;
    while (index > 0) {
      const parent = this.heap[(index - 1) >> 1]!;
      if (parent.expiresMs <= kept.expiresMs) break;
      this.place(parent, index);
      index = (index - 1) >> 1;
    }
    this.place(kept, index);
  }

  private sink(kept: Kept, from: number): void {
    const { heap } = this;
    let index = from;
    for (;;) {
      let child = 2 * index + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && heap[child + 1]!.expiresMs < heap[child]!.expiresMs) child++;
      if (kept.expiresMs <= heap[child]!.expiresMs) break;
      this.place(heap[child]!, index);
      index = child;
    }
    this.place(kept, index);
  }

  private place(kept: Kept, index: number): void {
    this.heap[index] = kept;
    kept.heapIndex = index;
  }
}
