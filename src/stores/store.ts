/**
 * Store: the contract that locks, idempotency records and caches are built on, whatever keeps the bytes.
 *
 * Promise: a key's versions only grow, also across remove, expiry and restart; a conditional write is atomic and
 * its refusal returns the entry in the way; time is the store's own, so no client's clock is trusted.
 *
 * To write your own store: implement the three verbs, fail with {@link StoreError} and nothing else, and
 * run `storeConformance` of `holdfast/testing` against it. Each sentence of this file is a case there.
 */
import type { StoreError } from '../core/errors.js';

/** What a key holds. */
export interface Entry {
  /** A copy: changing it changes nothing in the store. */
  readonly value: Uint8Array;
  /** A positive safe integer, greater than every earlier version of this key. */
  readonly version: number;
  /** Milliseconds since this version was written, by the store's clock. */
  readonly ageMs: number;
  /** Milliseconds until the entry expires, by the store's clock. */
  readonly ttlMs: number;
}

/** The write was applied. */
export interface Written {
  readonly ok: true;
  readonly version: number;
}

/** The write was not applied, because the key's version was not `ifVersion`. */
export interface Refused {
  readonly ok: false;
  /** What the key held instead; undefined when it held nothing. */
  readonly entry?: Entry | undefined;
}

/** Options of every verb. */
export interface StoreCallOptions {
  /** Ends the wait: the verb rejects with the signal's reason. A verb already sent to a server may still be applied. */
  readonly signal?: AbortSignal | undefined;
}

/** Options of {@link Store.write}. */
export interface StoreWriteOptions extends StoreCallOptions {
  /** How long the entry lives, in milliseconds, from 1 to 10 years. Rounded up to the store's resolution. */
  readonly ttlMs: number;
  /** Write only if this is the key's version; 0: only if the key holds nothing. Without it the write is unconditional. */
  readonly ifVersion?: number | undefined;
  /** The store may evict the entry at any time, to make room. For data that can be recreated, never for a lock. Default false. */
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
 * A key is 1 to 512 bytes of UTF-8 and opaque to the store. A value is bytes, copied both ways. A verb returns a
 * promise and never throws synchronously; it rejects with {@link StoreError}, whose `applied` says whether it may have been
 * applied, or with the reason of its signal. A store never retries by itself: repeating a conditional write is safe,
 * because the refusal returns the entry, in which its owner recognizes its own bytes.
 */
export interface Store {
  /**
   * Reads what the key holds, or undefined. An expired entry counts as absent.
   *
   * @throws {@link StoreError} `ERR_STORE` when the store fails, or for an invalid key; the reason of the signal.
   */
  read(key: string, options?: StoreCallOptions): Promise<Entry | undefined>;
  /**
   * Writes, or returns the entry in the way. Of any number of writers with one `ifVersion` exactly one succeeds.
   *
   * @throws {@link StoreError} `ERR_STORE` when the store fails (`applied` says whether the write may have been applied), or for invalid
   * input; the reason of the signal.
   */
  write(key: string, value: Uint8Array, options: StoreWriteOptions): Promise<Written | Refused>;
  /**
   * Removes the key, and returns whether there was an entry.
   *
   * @throws {@link StoreError} `ERR_STORE` when the store fails (`applied` says whether the removal may have been applied); the reason of the
   * signal.
   */
  remove(key: string, options?: StoreRemoveOptions): Promise<boolean>;
  /** Optional capabilities of this store; check that one is there before you use it. */
  readonly native?: NativeCapabilities | undefined;
}

/** A store that holds resources of the process until it is closed. */
export interface ClosableStore extends Store {
  /** Closes the store; every later verb fails with reason `'closed'`. The client or database you passed in stays open. Safe to repeat. */
  close(): Promise<void>;
}

/** What a watch reports. */
export type StoreChange =
  /**
   * The key was written or removed, by any client, including this one. Several changes may be reported as one, one change twice,
   * or a change that did not happen. Expiry and eviction need not be reported.
   */
  | { readonly kind: 'changed' }
  /** Changes may have been missed (the connection was lost for a while) or will be (the store is closed): read the key again. */
  | { readonly kind: 'gap' };

/** A watch that runs until it, or its store, is closed. */
export interface StoreWatch {
  /**
   * Resolves once changes are reported; from then on each change is, or a gap. Earlier changes may be missing: read after it. Rejects
   * with {@link StoreError} when the watch cannot begin, or is closed before; the watch is then over. You may leave the rejection unhandled.
   */
  readonly ready: Promise<void>;
  /** Closes the watch, and never throws. No listener is called afterwards. Safe to repeat. */
  close(): void;
}

/** Options of {@link NativeCapabilities.consume}. */
export interface ConsumeOptions extends StoreCallOptions {
  /** Units granted per period in the long run. From 1. */
  readonly limit: number;
  /** The period in milliseconds, from 1 to 10 years. */
  readonly periodMs: number;
  /** Units that may be granted at once after a quiet time. From 1. Default `limit`. */
  readonly burst?: number | undefined;
  /** Units requested, from 0 (only checks) to `burst`. Fractions are allowed. Default 1. */
  readonly cost?: number | undefined;
}

/** What {@link NativeCapabilities.consume} returns. */
export interface Consumed {
  /** Whether the cost was granted. If not, nothing was consumed. */
  readonly ok: boolean;
  /** Whole units that could be granted now. */
  readonly remaining: number;
  /** Milliseconds until the same cost would be granted, if no other caller takes it; 0 when it was granted. */
  readonly retryAfterMs: number;
  /** Milliseconds until the whole burst is available again. */
  readonly resetMs: number;
}

/** Options of {@link StoreQueue.enter}. */
export interface QueueEnterOptions extends GuardOptions {
  /** How long the entry lives, as for a write. */
  readonly ttlMs: number;
  /**
   * If the key is taken, reserves a place in the queue and keeps it for this long unless `enter` is repeated; 0: does not wait. At most a minute.
   */
  readonly placeMs: number;
  /** Called while the place is kept, at once and outside any verb: see {@link QueueTurn}. Only a hint; what it throws is reported. */
  readonly onTurn?: ((turn: QueueTurn) => void) | undefined;
}

/**
 * `'granted'`: the key was handed to this ticket, for one second at most: `enter` again to extend it to the whole `ttlMs`. `'next'`: it was handed to the ticket before this one, which has a
 * second at most to take it. `'gap'`: something may have been missed, so `enter` again.
 */
export type QueueTurn = 'granted' | 'next' | 'gap';

/** Options of operations that must wait for a while after the store has restarted. */
export interface GuardOptions extends StoreCallOptions {
  /**
   * Grants nothing until the server has run for this long, counted from the first request after a start, a failover, or the loss of its data. Use
   * the longest lease that the server may have forgotten. From 0, the default, to 24 days.
   */
  readonly quietMs?: number | undefined;
}

/** Not applied. */
export interface GuardRefused extends Refused {
  /** Milliseconds until something can be granted again; 0: the server has run for long enough. */
  readonly quietForMs: number;
}

/** The key is taken. */
export interface QueueRefused extends GuardRefused {
  /** Whether `onTurn` is called for changes after this reply; if not, poll. */
  readonly isTold: boolean;
}

/**
 * A waiting queue for each key: first come, first served, across all processes. A ticket is any text that no other caller has.
 *
 * It queues `write` with `ifVersion: 0`: a client that writes and removes by the plain verbs overtakes the queue. A process that is gone is skipped; one
 * that is frozen, or cut off silently, delays the others by a second.
 */
export interface StoreQueue {
  /**
   * Writes the value if the key holds nothing and no ticket is ahead of this one, else takes a place at the end. Safe to repeat: a ticket keeps its place, and a ticket
   * whose value the key already holds is granted again. Values of different tickets must differ.
   */
  enter(key: string, ticket: string, value: Uint8Array, options: QueueEnterOptions): Promise<Written | QueueRefused>;
  /** Removes what the key holds, as `remove` does, and in the same step writes the value of the first ticket in the queue. Returns whether something was removed. */
  pass(key: string, options?: StoreRemoveOptions & GuardOptions): Promise<boolean>;
  /** Gives places up. Returns what the key then holds, which may be the value of one of these tickets. */
  leave(key: string, tickets: readonly string[], options?: StoreCallOptions): Promise<Entry | undefined>;
  /** The number of waiting tickets. */
  size(key: string, options?: StoreCallOptions): Promise<number>;
}

/** Capabilities beyond the three verbs. */
export interface NativeCapabilities {
  /** A fair waiting queue with hand-over. */
  readonly queue?: StoreQueue;
  /** As `write`, unless the server has restarted within `quietMs`. */
  readonly guardedWrite?: (
    key: string,
    value: Uint8Array,
    options: StoreWriteOptions & GuardOptions,
  ) => Promise<Written | GuardRefused>;
  /**
   * Reports changes of a key, so that waiters need not poll fast. Only a hint: a server that dies may report a change
   * late or, until the gap is reported, not at all, so waiters should also poll slowly. The listener is called at once, perhaps inside a
   * verb, and should do little; what it throws is reported as an uncaught exception. Never throws: `ready` rejects instead.
   * At most 100,000 watches at a time, then reason `'full'`.
   */
  readonly watch?: (key: string, onChange: (change: StoreChange) => void) => StoreWatch;
  /**
   * Reads up to 1,000 keys, in their order, in one round trip; in a cluster by requests that are sent all at once. It is not a
   * snapshot: each key is read by itself. Fails as a whole.
   */
  readonly readMany?: (keys: readonly string[], options?: StoreCallOptions) => Promise<readonly (Entry | undefined)[]>;
  /**
   * Consumes from a rate limit shared by all clients of the store (GCRA), in one round trip and by the store's clock. Its keys are separate
   * from those of the verbs, and are forgotten once the whole burst is available again. Each call states the limit: a changed
   * limit applies at once, and no caller waits longer than for its own whole burst. A call whose reply was lost may have been applied.
   */
  readonly consume?: (key: string, options: ConsumeOptions) => Promise<Consumed>;
  /**
   * Runs a function inside one transaction of the store's database, so that its writes to the database and to
   * the store are committed together or not at all.
   */
  readonly transaction?: <T>(work: (view: StoreTransaction) => T, options?: StoreCallOptions) => Promise<T>;
  /**
   * The three verbs inside a transaction that the caller begins and ends on a client of the store's database: their writes are committed with it, or
   * not at all. For stores with asynchronous transactions; the others have `transaction`. Results are valid once the
   * transaction is committed. After a failed verb, roll it back. Other writers of a key wait for a transaction that has written it to end.
   *
   * @throws {@link OptionsError} `ERR_OPTIONS` for anything but a transaction of this store's database.
   */
  within?(transaction: unknown): StoreView;
}

/** The verbs of a store, without its capabilities. */
export type StoreView = Pick<Store, 'read' | 'write' | 'remove'>;

/** The three verbs inside a transaction, synchronous. A version that was rolled back may be reused. */
export interface StoreTransaction {
  read(key: string): Entry | undefined;
  write(key: string, value: Uint8Array, options: Omit<StoreWriteOptions, 'signal'>): Written | Refused;
  remove(key: string, options?: Omit<StoreRemoveOptions, 'signal'>): boolean;
}

/** The longest life of an entry: ten years. Every entry expires. */
export const longestTtlMs = 315_360_000_000;
