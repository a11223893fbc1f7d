/**
 * Store: the one contract that locks, idempotency records and caches stand on, whatever keeps the bytes.
 *
 * Promise: a key's versions only grow, also across remove, expiry and a new beginning; a conditional write is atomic and
 * its refusal brings the entry in the way; time is the store's own, so no client's clock is trusted.
 *
 * For those who write a store of their own: implement the three verbs, fail with {@link StoreError} and nothing else, and
 * run `storeConformance` of `holdfast/testing` against it. Each sentence of this file is a case there.
 */
import { StoreError, type StoreFailure } from '../core/errors.js';
import { integer, withDefault } from '../core/options.js';
import { ConsumeRate } from './consume.js';
import { Watcher, type Watchers } from './watchers.js';

/** What a key holds. */
export interface Entry {
  /** A copy: changing it changes nothing in the store. */
  readonly value: Uint8Array;
  /** A positive safe integer, greater than every earlier version of this key. */
  readonly version: number;
  /** Milliseconds since this version was written, by the store's clock. */
  readonly ageMs: number;
  /** Milliseconds until the entry is gone, by the store's clock. */
  readonly ttlMs: number;
}

/** The write was done. */
export interface Written {
  readonly ok: true;
  readonly version: number;
}

/** The write was not done, because the key's version was not `ifVersion`. */
export interface Refused {
  readonly ok: false;
  /** What the key held instead; undefined when it held nothing. */
  readonly entry?: Entry | undefined;
}

/** Options of every verb. */
export interface StoreCallOptions {
  /** Ends the wait: the verb rejects with the signal's reason. One that has left for a server may still be applied. */
  readonly signal?: AbortSignal | undefined;
}

/** Options of {@link Store.write}. */
export interface StoreWriteOptions extends StoreCallOptions {
  /** How long the entry lives, in milliseconds, from 1 to 10 years. Rounded up to what the store can measure. */
  readonly ttlMs: number;
  /** Write only if this is the key's version; 0: only if the key holds nothing. Without it the write is unconditional. */
  readonly ifVersion?: number | undefined;
  /** The store may drop the entry at any time, to make room. For what can be made again, never for a lock. Default false. */
  readonly evictable?: boolean | undefined;
}

/** Options of {@link Store.remove}. */
export interface StoreRemoveOptions extends StoreCallOptions {
  /** Remove only if this is the key's version. */
  readonly ifVersion?: number | undefined;
}

/**
 * Keeps bytes under keys, each for a limited time and with a version that only grows.
 *
 * A key is 1 to 512 bytes of UTF-8 and means nothing to the store. A value is bytes, and copied both ways. A verb answers by a
 * promise and never throws by itself; it fails with {@link StoreError}, whose `applied` says whether it may have been
 * done, or with the reason of its signal. A store repeats nothing by itself: repeating a conditional write is safe,
 * because the refusal brings back the entry, in which its owner knows its own bytes.
 */
export interface Store {
  /**
   * What the key holds, or undefined. An entry whose time is over is nothing.
   *
   * @throws {@link StoreError} `ERR_STORE` when the store fails, or for a key that is none; the reason of the signal.
   */
  read(key: string, options?: StoreCallOptions): Promise<Entry | undefined>;
  /**
   * Writes, or answers with the entry in the way. Of any number of writers with one `ifVersion` exactly one succeeds.
   *
   * @throws {@link StoreError} `ERR_STORE` when the store fails, whose `applied` tells whether it may have written all the same, or for what it
   * does not take; the reason of the signal.
   */
  write(key: string, value: Uint8Array, options: StoreWriteOptions): Promise<Written | Refused>;
  /**
   * Removes, and answers whether there was something.
   *
   * @throws {@link StoreError} `ERR_STORE` when the store fails, whose `applied` tells whether it may have removed all the same; the reason of the
   * signal.
   */
  remove(key: string, options?: StoreRemoveOptions): Promise<boolean>;
  /** What this store can do besides; each is there only where it is worth it. */
  readonly native?: NativeCapabilities | undefined;
}

/** A store that holds something of the process until it is closed. */
export interface ClosableStore extends Store {
  /** Ends the store; every later verb fails with reason `'closed'`. What the user passed in stays open. Safe to repeat. */
  close(): Promise<void>;
}

/** What a watcher is told. */
export type StoreChange =
  /**
   * The key was written or removed, by anybody, the watcher itself included. Several changes may be told as one, and one may be told twice,
   * or where there was none. Not promised for an entry whose time is over, or that was evicted.
   */
  | { readonly kind: 'changed' }
  /** Changes may have been missed, because the connection was lost for a while, or will be, because the store is closed: what is known of the key has to be asked for again. */
  | { readonly kind: 'gap' };

/** A watch that goes on until it is closed, or until its store is. */
export interface StoreWatch {
  /**
   * Resolves once changes are told; from then on each is told, or a gap is. What happened before was perhaps not: read after it. Rejects
   * with {@link StoreError} when the watch cannot begin, or is closed before; then it is over. It need not be listened to.
   */
  readonly ready: Promise<void>;
  /** Ends it, and never throws. No listener is called afterwards. Safe to repeat. */
  close(): void;
}

/** Options of {@link NativeCapabilities.consume}. */
export interface ConsumeOptions extends StoreCallOptions {
  /** Units that are granted per period in the long run. From 1. */
  readonly limit: number;
  /** In milliseconds, from 1 to 10 years. */
  readonly periodMs: number;
  /** Units that may be granted at once, after a quiet time. From 1. Default `limit`. */
  readonly burst?: number | undefined;
  /** Units that are asked for, from 0, which only looks, to `burst`. Fractions are fine. Default 1. */
  readonly cost?: number | undefined;
}

/** What {@link NativeCapabilities.consume} answers. */
export interface Consumed {
  /** Whether the cost was granted. When it was not, nothing was taken. */
  readonly ok: boolean;
  /** Whole units that could be granted now. */
  readonly remaining: number;
  /** Milliseconds until the same cost would be granted, if nobody else takes it; 0 when it was granted. */
  readonly retryAfterMs: number;
  /** Milliseconds until the whole burst is there again. */
  readonly resetMs: number;
}

/** Options of {@link StoreQueue.enter}. */
export interface QueueEnterOptions extends GuardOptions {
  /** How long the entry lives, as for a write. */
  readonly ttlMs: number;
  /**
   * Takes a place in the line where the key cannot be had now, and keeps it for so long unless `enter` is repeated; 0: does not wait. Not more than a minute.
   */
  readonly placeMs: number;
  /** Called while the place is kept, at once and outside any verb: see {@link QueueTurn}. Only a hint; what it throws is reported. */
  readonly onTurn?: ((turn: QueueTurn) => void) | undefined;
}

/**
 * `'granted'`: the key was handed to this ticket, for a second at most: `enter` again makes it a whole `ttlMs`. `'next'`: it was handed to the one before, who has a
 * second at most to take it. `'gap'`: something may have been missed, so `enter` again.
 */
export type QueueTurn = 'granted' | 'next' | 'gap';

/** Options of what must not happen for a while after a store has begun anew. */
export interface GuardOptions extends StoreCallOptions {
  /**
   * Grants nothing until the server has run for so long, counted from when somebody first asked this after a start, a failover, or the loss of its data: as
   * long as the longest lease that the server may have forgotten. From 0, the default, to 24 days.
   */
  readonly quietMs?: number | undefined;
}

/** Not done. */
export interface GuardRefused extends Refused {
  /** Milliseconds until something can be granted again; 0: the server has run for long enough. */
  readonly quietForMs: number;
}

/** The key is not to be had now. */
export interface QueueRefused extends GuardRefused {
  /** Whether `onTurn` is told from before this answer on: else ask often. */
  readonly isTold: boolean;
}

/**
 * A waiting line for each key: first come, first served, across all processes. A ticket is any text that no other caller has.
 *
 * It is a line for `write` with `ifVersion: 0`: who writes and removes past it, by the verbs, overtakes those who wait in it. A process that is gone is passed over; one
 * that is frozen, or cut off in silence, holds the others up for a second.
 */
export interface StoreQueue {
  /**
   * Writes the value if the key holds nothing and nobody waits before this ticket, else takes a place at the end. Safe to repeat: a ticket keeps its place, and one
   * whose value the key holds already is granted again. Values of different tickets must differ.
   */
  enter(key: string, ticket: string, value: Uint8Array, options: QueueEnterOptions): Promise<Written | QueueRefused>;
  /** Removes what the key holds, as `remove` does, and in the same step writes the value of the first in line. Whether something was removed. */
  pass(key: string, options?: StoreRemoveOptions & GuardOptions): Promise<boolean>;
  /** Gives places up. What the key holds then, which may be the value of one of these tickets. */
  leave(key: string, tickets: readonly string[], options?: StoreCallOptions): Promise<Entry | undefined>;
  /** How many wait. */
  size(key: string, options?: StoreCallOptions): Promise<number>;
}

/** Beyond the three verbs. */
export interface NativeCapabilities {
  /** A fair waiting line with hand-over. */
  readonly queue?: StoreQueue;
  /** As `write`, unless the server has begun anew within `quietMs`. */
  readonly guardedWrite?: (
    key: string,
    value: Uint8Array,
    options: StoreWriteOptions & GuardOptions,
  ) => Promise<Written | GuardRefused>;
  /**
   * Tells when a key has changed, so that who waits for it need not ask again and again. A hint and no more: a server that dies in between
   * may tell late or, until the gap is told, not at all, so whoever waits also asks slowly. The listener is called at once, perhaps inside a
   * verb, and should do little; what it throws is reported as an uncaught exception. Never throws: what is wrong is told by `ready`.
   * At most 100,000 watches at a time, then reason `'full'`.
   */
  readonly watch?: (key: string, onChange: (change: StoreChange) => void) => StoreWatch;
  /**
   * What each of up to 1,000 keys holds, in their order, by one round trip; in a cluster by requests that are sent all at once. It is no
   * snapshot: each key is read by itself. Fails as a whole.
   */
  readonly readMany?: (keys: readonly string[], options?: StoreCallOptions) => Promise<readonly (Entry | undefined)[]>;
  /**
   * Takes from a rate limit that is shared by all who reach the store (GCRA), by one round trip and by the store's clock. Its keys are apart
   * from those of the verbs, and are forgotten once the whole burst is there again. The limit is what each call says: after a change the new
   * one holds at once, and never makes anybody wait longer than for its own whole burst. One whose reply was lost may have been taken.
   */
  readonly consume?: (key: string, options: ConsumeOptions) => Promise<Consumed>;
  /**
   * Runs a function inside one transaction of the store's database, so that what it writes there and what it writes to
   * the store are done together or not at all.
   */
  readonly transaction?: <T>(work: (view: StoreTransaction) => T, options?: StoreCallOptions) => Promise<T>;
  /**
   * The three verbs inside a transaction that the caller has begun on a client of the store's database, and ends himself: what they write is done with it, or
   * not at all. For stores whose transactions take time; those that do not have `transaction`. What a verb answers holds once the
   * transaction is committed. After a verb has failed it has to be rolled back. Others who write a key wait for the end of a transaction that has written it.
   *
   * @throws {@link OptionsError} `ERR_OPTIONS` for what is no transaction of this store's database.
   */
  within?(transaction: unknown): StoreView;
}

/** The verbs of a store, and nothing besides. */
export type StoreView = Pick<Store, 'read' | 'write' | 'remove'>;

/** The three verbs inside a transaction, at once. A version that is rolled back may be given again. */
export interface StoreTransaction {
  read(key: string): Entry | undefined;
  write(key: string, value: Uint8Array, options: Omit<StoreWriteOptions, 'signal'>): Written | Refused;
  remove(key: string, options?: Omit<StoreRemoveOptions, 'signal'>): boolean;
}

/** The longest key, in bytes of UTF-8. */
const longestKeyBytes = 512;

/** What one `readMany` takes: its answer may be a thousand times the largest value. */
const mostKeys = 1000;

/** Ten years: nothing lives for ever. */
const longestTtlMs = 315_360_000_000;

/** The option of every store. 1 MiB holds any record of this package; a greater value has a better place than a store. */
export const maxValueBytesField = /* @__PURE__ */ withDefault(
  /* @__PURE__ */ integer({ min: 1, max: 1_073_741_824 }),
  1_048_576,
);

/** An option for stores that share a server. No character of it may be one that separates it from the key. */
export const prefixField = /* @__PURE__ */ withDefault(
  {
    allowed: 'a string of 1 to 64 letters, digits and characters of "_-.:/"',
    parse: (value: unknown) =>
      typeof value === 'string' && /^[A-Za-z0-9_\-.:/]{1,64}$/.test(value) ? value : undefined,
  },
  'holdfast',
);

/** What every store checks before it begins: nothing has been touched when one of these throws. */
export class VerbChecks {
  private readonly store: string;
  private readonly maxValueBytes: number;

  constructor(store: string, maxValueBytes: number) {
    this.store = store;
    this.maxValueBytes = maxValueBytes;
  }

  read(key: unknown, options: StoreCallOptions | undefined): void {
    if (options !== undefined && options !== null) {
      for (const name in options) if (name !== 'signal') throw this.unknownOption('read', name);
      throwIfAborted(options.signal);
    }
    this.key('read', key);
  }

  write(key: unknown, value: unknown, options: StoreWriteOptions): void {
    // Plain JavaScript may leave the options out.
    const given: Partial<StoreWriteOptions> = options ?? {};
    for (const name in given) {
      if (name !== 'ttlMs' && name !== 'ifVersion' && name !== 'evictable' && name !== 'signal') {
        throw this.unknownOption('write', name);
      }
    }
    throwIfAborted(given.signal);
    this.key('write', key);
    if (!isBytes(value)) throw this.invalid('write', `the value must be a Uint8Array, got ${kindOf(value)}`);
    if (value.byteLength > this.maxValueBytes) {
      const advice = 'keep a reference instead, or raise "maxValueBytes"';
      throw this.invalid('write', `the value has ${value.byteLength} bytes, at most ${this.maxValueBytes}; ${advice}`);
    }
    const { ttlMs, evictable } = given;
    if (typeof ttlMs !== 'number' || !(ttlMs >= 1 && ttlMs <= longestTtlMs)) {
      throw this.invalid('write', `"ttlMs" must be from 1 to ${longestTtlMs} milliseconds, got ${String(ttlMs)}`);
    }
    if (evictable !== undefined && typeof evictable !== 'boolean') {
      throw this.invalid('write', `"evictable" must be true or false, got ${kindOf(evictable)}`);
    }
    this.version('write', given.ifVersion);
  }

  remove(key: unknown, options: StoreRemoveOptions | undefined): void {
    if (options !== undefined && options !== null) {
      for (const name in options) {
        if (name !== 'ifVersion' && name !== 'signal') throw this.unknownOption('remove', name);
      }
      throwIfAborted(options.signal);
      this.version('remove', options.ifVersion);
    }
    this.key('remove', key);
  }

  readMany(keys: unknown, options: StoreCallOptions | undefined): void {
    if (options !== undefined && options !== null) {
      for (const name in options) if (name !== 'signal') throw this.unknownOption('readMany', name);
      throwIfAborted(options.signal);
    }
    if (!Array.isArray(keys)) throw this.invalid('readMany', `the keys must be a list, got ${kindOf(keys)}`);
    if (keys.length > mostKeys) throw this.invalid('readMany', `${keys.length} keys were given, at most ${mostKeys}`);
    for (const key of keys) this.key('readMany', key);
  }

  consume(key: unknown, options: ConsumeOptions): ConsumeRate {
    const given: Partial<ConsumeOptions> = options ?? {};
    for (const name in given) {
      if (name !== 'limit' && name !== 'periodMs' && name !== 'burst' && name !== 'cost' && name !== 'signal') {
        throw this.unknownOption('consume', name);
      }
    }
    throwIfAborted(given.signal);
    this.key('consume', key);
    const { limit, periodMs, burst = limit, cost = 1 } = given;
    this.number('limit', limit, 1, Number.MAX_SAFE_INTEGER);
    this.number('periodMs', periodMs, 1, longestTtlMs);
    this.number('burst', burst, 1, Number.MAX_SAFE_INTEGER);
    // More than the burst could never be granted.
    this.number('cost', cost, 0, burst!);
    const rate = new ConsumeRate(options);
    if (rate.wholeMs > longestTtlMs)
      throw this.invalid('consume', 'the whole burst would take more than 10 years to come back');
    return rate;
  }

  private number(name: string, value: unknown, min: number, max: number): void {
    if (typeof value === 'number' && value >= min && value <= max) return;
    throw this.invalid('consume', `"${name}" must be a number from ${min} to ${max}, got ${String(value)}`);
  }

  /** A watch that may begin, or one that has failed already. */
  watch(key: string, onChange: (change: StoreChange) => void, watchers: Watchers, isClosed: boolean): Watcher {
    const watcher = new Watcher(this.store, key, onChange);
    try {
      this.key('watch', key);
      if (typeof onChange !== 'function')
        throw this.invalid('watch', `the listener must be a function, got ${kindOf(onChange)}`);
      if (isClosed) throw this.failure('watch', 'closed', 'the store is closed');
      if (watchers.isFull) throw this.failure('watch', 'full', `${watchers.size} watches are open; close some`);
    } catch (error) {
      watcher.fail(error);
    }
    return watcher;
  }

  private key(operation: string, key: unknown): void {
    if (typeof key !== 'string') throw this.invalid(operation, `the key must be a string, got ${kindOf(key)}`);
    if (key.length === 0) throw this.invalid(operation, 'the key is empty');
    // Half a surrogate pair has no UTF-8: two such keys would become one.
    if (!(key as WellFormed).isWellFormed()) throw this.invalid(operation, 'the key is no well-formed Unicode');
    // A unit of UTF-16 is at most three bytes of UTF-8.
    if (key.length * 3 > longestKeyBytes && utf8Length(key) > longestKeyBytes) {
      throw this.invalid(operation, `the key has ${utf8Length(key)} bytes, at most ${longestKeyBytes}; hash it`);
    }
  }

  private version(operation: string, version: unknown): void {
    if (version === undefined || (Number.isSafeInteger(version) && (version as number) >= 0)) return;
    throw this.invalid(operation, `"ifVersion" must be a version or 0, got ${String(version)}`);
  }

  private unknownOption(operation: string, name: string): StoreError {
    return this.invalid(operation, `unknown option "${name}"`);
  }

  private invalid(operation: string, detail: string): StoreError {
    return this.failure(operation, 'invalid', detail);
  }

  private failure(operation: string, reason: StoreFailure, detail: string): StoreError {
    return new StoreError({ store: this.store, operation, reason, applied: 'no', detail });
  }
}

/** In every engine that this package runs on, yet not in the library of ES2023. */
type WellFormed = string & { isWellFormed(): boolean };

function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw signal.reason;
}

/** Also for bytes of another realm, where `instanceof` says no: test runners have several. */
function isBytes(value: unknown): value is Uint8Array {
  return ArrayBuffer.isView(value) && (value as Uint8Array)[Symbol.toStringTag] === 'Uint8Array';
}

/** Of well-formed text. */
function utf8Length(text: string): number {
  let bytes = 0;
  for (const character of text) {
    const point = character.codePointAt(0)!;
    bytes += point < 0x80 ? 1 : point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
  }
  return bytes;
}

function kindOf(value: unknown): string {
  return value === null ? 'null' : typeof value;
}
