/**
 * Engine: the state machine of idempotency keys, on the three verbs of a store. It knows no framework: adapters and wrapped functions
 * both start here.
 *
 * Promise: one round trip tells whether to run, replay, wait or refuse; a begin whose reply was lost recognizes its own record; a key is
 * blocked only while its owner renews the lease, and for at most one lease after that.
 * After: draft-ietf-httpapi-idempotency-key-header-07; Leach, "Implementing Stripe-like Idempotency Keys in Postgres" (2017).
 */

import { addAbortListener, removeAbortListener } from '../../core/abort-listeners.js';
import { showBriefly } from '../../core/brief.js';
import { type Clock, callbackTimer } from '../../core/clock.js';
import { KeyMissingError, StoreError } from '../../core/errors.js';
import type { Events, IdempotencyEvent, IdempotencyOutcome } from '../../core/events.js';
import { isThenable, isWellFormed } from '../../core/kinds.js';
import { knownOf } from '../../core/known.js';
import { checkArgument, type Field, impossibleOption, show } from '../../core/options.js';
import type { Entry, Refused, Store, StoreTransaction, StoreWriteOptions, Written } from '../../stores/store.js';
import { defaultMarginMs, Instant, instantOf, passedMs, safeLeaseMs } from '../lease.js';
import { type AdapterHandle, Attempt, type TransactionHandle } from './attempt.js';
import { downstreamKeyOf, keyHashOf, Owners } from './hashing.js';
import { Operations } from './operations.js';
import type { ResultSerializer } from './outcomes.js';
import { decodeRecord, encodeRecord, type IdempotencyRecord, noFingerprint, sameBytes } from './record.js';
import { checkRefusals } from './refusals.js';
import type { Sealing } from './sealing.js';
import { UnprotectedAttempt } from './unprotected-attempt.js';
import { YoungAttempts } from './young-attempts.js';

export interface EngineSettings {
  readonly name: string;
  readonly store: Store;
  readonly ttlMs: number;
  readonly leaseMs: number;
  /** 0: a caller that finds the operation running is told so at once. */
  readonly waitMs: number;
  readonly storeTimeoutMs: number;
  readonly maxBodyBytes: number;
  readonly onLost: 'rerun' | 'resume' | 'refuse';
  /** How many attempts may fail or be lost. After that the key is in doubt, because repeating the operation does not seem to help. */
  readonly attempts: number;
  readonly onStoreDown: 'refuse' | 'run';
  readonly secret: Uint8Array | undefined;
  readonly sealing: Sealing;
  readonly serializer: ResultSerializer;
  readonly clock: Clock;
  readonly random: () => number;
  readonly events: Events;
}

/** Identifies one operation of one caller. */
export interface OperationKey {
  /** The owner of the key, as the server knows it, never as the caller claims. */
  readonly scope: string;
  /** The operation: for HTTP, the method and the route. */
  readonly operation: string;
  readonly key: string;
}

/** The arguments of a begin. */
export interface BeginRequest extends OperationKey {
  /** From {@link fingerprint}. Without one, all inputs count as the same. */
  readonly fingerprint?: Uint8Array | undefined;
  /** Ends the wait: `begin` rejects with the signal's reason, and nothing has run. */
  readonly signal?: AbortSignal | undefined;
  /** A W3C `traceparent`: a replay links to it. */
  readonly trace?: string | undefined;
}

/** The result of a begin. */
export type Begun =
  /** Run the operation, then call `complete` or `abandon` of the handle. */
  | { readonly kind: 'run'; readonly handle: AdapterHandle }
  /** The same, but an earlier attempt was lost and may have had its effect. */
  | { readonly kind: 'takeover'; readonly handle: AdapterHandle; readonly trace: string | undefined }
  /** The operation has run: answer with the stored result. */
  | {
      readonly kind: 'replay';
      readonly result: Uint8Array;
      readonly ageMs: number;
      readonly attempt: number;
      readonly trace: string | undefined;
    }
  | { readonly kind: 'busy'; readonly retryAfterMs: number }
  | { readonly kind: 'mismatch' }
  /** With a cause: the record cannot be read. */
  | { readonly kind: 'in-doubt'; readonly cause: unknown }
  /** The operation has run, but its result is not available: it was too large or, if there is a cause, cannot be opened. */
  | { readonly kind: 'result-not-stored'; readonly cause: unknown }
  /** With a handle: run it although the store is down, because `onStoreDown` is `'run'`. */
  | { readonly kind: 'store-down'; readonly error: unknown; readonly handle: AdapterHandle | undefined };

/** The operation has run, and its result is written in the same transaction. */
interface Done<T> {
  readonly kind: 'done';
  readonly value: Awaited<T>;
  readonly bytes: Uint8Array;
  readonly fits: boolean;
  readonly record: IdempotencyRecord;
}

/** A class, because it waits for the store together with the attempt: see `listOf`. */
class Named implements OperationKey {
  readonly scope: string;
  readonly operation: string;
  readonly key: string;
  readonly keyHash: string;
  /** One string object for all verbs, because a string caches the hash that maps look it up by. */
  readonly storeKey: string;

  constructor({ scope, operation, key }: OperationKey, keyHash: string) {
    this.scope = scope;
    this.operation = operation;
    this.key = key;
    this.keyHash = keyHash;
    this.storeKey = `idempotency:${keyHash}`;
  }
}

type Standing = Extract<Begun, { readonly kind: 'replay' | 'busy' | 'mismatch' | 'in-doubt' | 'result-not-stored' }>;

/** What an existing entry means for a new begin. */
type Decision = Standing | { readonly kind: 'take' | 'doubt'; readonly seen: IdempotencyRecord };

const shortestPauseMs = 5;
const longestPauseMs = 100;
/** A waiter polls soon after it starts, then backs off to every quarter of a second; if the store reports changes, to every second. */
const firstAskMs = 25;
const slowestAskMs = 250;
const slowestWatchedAskMs = 1_000;
/** A caller that is told to come back is told to wait a second at least: Retry-After counts in whole seconds. */
const soonestRetryMs = 1_000;

export class Engine {
  readonly settings: EngineSettings;
  readonly operations = new Operations();
  readonly young: YoungAttempts;
  private readonly owners = new Owners();
  /** Calls without an answer, and attempts whose end is neither recorded nor given up. */
  private openWork = 0;
  private readonly idleListeners: (() => void)[] = [];

  constructor(settings: EngineSettings) {
    // Logging a handle shows only its attempt and its fence: not its key, and not what is recorded.
    for (const handle of [Attempt.prototype, UnprotectedAttempt.prototype])
      showBriefly(handle, ({ attempt, fence }) => ({ attempt, fence }));
    this.settings = settings;
    this.young = new YoungAttempts(settings.clock, settings.leaseMs);
  }

  /**
   * Begins an operation within `storeTimeout`, plus `wait` if it is running elsewhere. Synchronous if the store answers at once.
   *
   * Throws if the request itself is invalid, and throws the reason of `signal`.
   */
  begin(request: BeginRequest): Begun | Promise<Begun> {
    const { clock, waitMs } = this.settings;
    const named = this.named(request);
    const beganMs = clock.now();
    const begun = this.claim(named, request, beganMs);
    const isPatient = waitMs > 0 && (begun instanceof Promise || begun.kind === 'busy');
    const later = isPatient ? this.patiently(named, request, begun, beganMs) : begun;
    if (!(later instanceof Promise)) return this.told(named, later, beganMs);
    return this.work(async () => this.told(named, await later, beganMs));
  }

  private async patiently(
    named: Named,
    request: BeginRequest,
    first: Begun | Promise<Begun>,
    beganMs: number,
  ): Promise<Begun> {
    const { clock } = this.settings;
    const begun = await first;
    if (begun.kind !== 'busy') return begun;
    return this.wait(named, request.signal, begun, beganMs, () => this.claim(named, request, clock.now()));
  }

  private told(named: Named, begun: Begun, beganMs: number): Begun {
    if (begun.kind !== 'run') this.tellBegun(named, begun, beganMs);
    return begun;
  }

  /** Like {@link begin}, but also runs the function and stores its result, in a transaction of the store or in that of `client`. */
  async transaction<T>(
    client: object,
    request: BeginRequest,
    fn: (handle: TransactionHandle) => T,
    encode: (value: unknown) => Uint8Array,
  ): Promise<Begun | Done<T>> {
    const { store, name } = this.settings;
    const named = this.named(request);
    const view = store.native?.within?.(client);
    if (view !== undefined) {
      // A transaction that met a lock has already failed, so waiting inside it is not possible.
      const beganMs = this.settings.clock.now();
      const begun = await this.runWithin(view, named, request, fn, encode);
      this.tellBegun(named, begun, beganMs);
      return begun;
    }
    const transaction = store.native?.transaction;
    if (transaction === undefined) {
      const allowed = 'one with transactions, such as that of holdfast/sqlite or holdfast/postgres, for transaction()';
      throw impossibleOption(name, 'store', store, allowed);
    }
    const { clock, waitMs } = this.settings;
    const ask = () =>
      transaction((inside) => this.runInside(inside, named, request, fn, encode), { signal: request.signal });
    const beganMs = clock.now();
    let begun = await ask();
    if (begun.kind === 'busy' && waitMs > 0) begun = await this.wait(named, request.signal, begun, beganMs, ask);
    this.tellBegun(named, begun, beganMs);
    return begun;
  }

  /** Settles a doubt: with the result, or without one, in which case the next call runs again. False if the key was not in doubt. */
  async resolve(key: OperationKey, result: Uint8Array | undefined): Promise<boolean> {
    const { store, ttlMs, sealing } = this.settings;
    const named = this.named(key);
    const { storeKey } = named;
    const owner = this.owners.next();
    const kept = result === undefined ? undefined : sealing.seal(named.keyHash, result);
    let entry = await store.read(storeKey);
    let refusals = 0;
    while (entry !== undefined) {
      // A record that cannot be read says nothing about the operation; whoever calls resolve does know.
      const seen = readable(entry) ?? { ...beginning, state: 'in-doubt' };
      if (sameBytes(seen.owner, owner)) return true;
      const isLost = seen.state === 'running' && entry.ageMs >= seen.leaseMs;
      if (seen.state !== 'in-doubt' && !isLost) return false;
      const state = kept === undefined ? 'idle' : 'completed';
      // Whoever resolves a doubt knows what happened. So the seal is no longer needed, and failures are counted from 0 again.
      const record = { ...seen, owner, state, failures: 0, result: kept, isSealed: false } as const;
      const answer = await store.write(storeKey, encodeRecord(record), { ttlMs, ifVersion: entry.version });
      if (answer.ok) return true;
      checkRefusals(++refusals);
      entry = answer.entry;
    }
    return false;
  }

  tell(
    { operation, keyHash }: { readonly operation: string; readonly keyHash: string },
    outcome: IdempotencyOutcome,
    more: Partial<Pick<IdempotencyEvent, 'attempt' | 'ageMs' | 'trace' | 'error'>> & {
      readonly sinceMs?: number;
    } = nothingMore,
  ): void {
    const { events, name, clock } = this.settings;
    this.operations.count(operation, outcome);
    if (!events.heard) return;
    const { attempt, sinceMs, ageMs, trace, error } = more;
    const durationMs = sinceMs === undefined ? undefined : clock.now() - sinceMs;
    events.emit({ type: 'idempotency', name, outcome, operation, keyHash, attempt, durationMs, ageMs, trace, error });
  }

  /** Records how long an operation took. Callers that find it running get their `retryAfterMs` from this. */
  took(operation: string, elapsedMs: number): void {
    this.operations.took(operation, elapsedMs);
  }

  /** A store that throws synchronously has failed like one that rejects. */
  write(storeKey: string, bytes: Uint8Array, options: StoreWriteOptions): Promise<Written | Refused> {
    try {
      return this.settings.store.write(storeKey, bytes, options);
    } catch (error) {
      return Promise.reject(error);
    }
  }

  /** Waits for `work` until an instant at most, even if the store hangs. */
  bounded<T>(verb: string, endsAtMs: number, work: Promise<T>): Promise<T> {
    const { clock } = this.settings;
    return new Promise((resolve, reject) => {
      const timer = callbackTimer(() => reject(this.tooSlow(verb)));
      clock.schedule(timer, endsAtMs);
      work.then(
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

  /** Does what {@link idle} waits for. */
  async work<T>(work: () => Promise<T>): Promise<T> {
    this.workBegins();
    try {
      return await work();
    } finally {
      this.workEnds();
    }
  }

  workBegins(): void {
    this.openWork++;
  }

  workEnds(): void {
    if (--this.openWork > 0 || this.idleListeners.length === 0) return;
    for (const listener of this.idleListeners.splice(0)) listener();
  }

  async idle(): Promise<void> {
    if (this.openWork > 0) await new Promise<void>((resolve) => this.idleListeners.push(resolve));
  }

  /** Does not keep the process alive. */
  pause(ms: number): Promise<void> {
    return pause(this.settings.clock.background ?? this.settings.clock, ms);
  }

  private named(request: OperationKey): Named {
    const { name, secret } = this.settings;
    const { scope, operation, key } = request;
    checkArgument(name, 'scope', scope, part);
    checkArgument(name, 'operation', operation, part);
    if (!isText(key, longestKey)) {
      throw new KeyMissingError({ policy: name, detail: `a key is 1 to ${longestKey} characters, got ${show(key)}` });
    }
    return new Named(request, keyHashOf(secret, scope, operation, key));
  }

  /** Acquires the record, or tells what is in the way. Synchronous if the store answers at once. */
  private claim(named: Named, request: BeginRequest, beganMs: number): Begun | Promise<Begun> {
    const { clock, ttlMs } = this.settings;
    const { signal } = request;
    const record = this.firstRecord(request);
    // If a reply is lost and the write is repeated, the lease counts from the first write: the store may have applied that one.
    const sent = new Instant(beganMs, clock.wallNow());
    const write = this.write(named.storeKey, encodeRecord(record), { ttlMs, ifVersion: 0, signal });
    const answer = knownOf(write);
    // It answered at once, so the lease has only just begun.
    if (answer?.ok) return { kind: 'run', handle: new Attempt(this, named, record, answer.version, sent) };
    if (answer?.entry !== undefined) {
      const decision = this.decide(named, answer.entry, readable(answer.entry), record.fingerprint);
      if (!('seen' in decision)) return decision;
    }
    return this.claimLater(named, signal, record, sent, write);
  }

  /** The asynchronous part of {@link claim}: the answer is not there yet, or is not final. */
  private async claimLater(
    named: Named,
    signal: AbortSignal | undefined,
    first: IdempotencyRecord,
    firstSent: Instant,
    firstWrite: Promise<Written | Refused>,
  ): Promise<Begun> {
    const { clock, ttlMs, storeTimeoutMs } = this.settings;
    const { storeKey } = named;
    const endsAtMs = firstSent.monotonicMs + storeTimeoutMs;
    const { owner, fingerprint } = first;
    let record = first;
    let ifVersion = 0;
    /** The record of the lost attempt, if this one takes over. */
    let lost: IdempotencyRecord | undefined;
    let sent: Instant | undefined = firstSent;
    let write: Promise<Written | Refused> | undefined = firstWrite;
    let isUncertain = false;
    let pauseMs = shortestPauseMs;
    let refusals = 0;
    for (;;) {
      sent ??= instantOf(clock);
      write ??= this.write(storeKey, encodeRecord(record), { ttlMs, ifVersion, signal });
      let answer: Written | Refused;
      try {
        answer = await this.bounded('begin', endsAtMs, write);
        if (!answer.ok) checkRefusals(++refusals);
      } catch (error) {
        const mayBeApplied = !(error instanceof StoreError) || error.applied === 'unknown';
        isUncertain ||= mayBeApplied;
        const isAborted = signal?.aborted === true;
        if (!isAborted) this.tell(named, 'store-error', { error });
        if (mayBeApplied && !isAborted && clock.now() + pauseMs < endsAtMs) {
          // If that write was applied, the refusal of the repeated one returns our own record.
          await pause(clock, pauseMs);
          pauseMs = Math.min(pauseMs * 2, longestPauseMs);
          write = undefined;
          continue;
        }
        if (isUncertain) this.withdrawLater(named, record);
        if (isAborted) throw error;
        return this.storeDown(named, error);
      }
      write = undefined;
      if (answer.ok) {
        if (record.state === 'in-doubt') return { kind: 'in-doubt', cause: undefined };
        return this.start(named, record, answer.version, sent, lost);
      }
      const { entry } = answer;
      if (entry === undefined) {
        [record, ifVersion, lost, sent] = [first, 0, undefined, undefined];
        continue;
      }
      const seen = readable(entry);
      if (seen !== undefined && seen.state === 'running' && sameBytes(seen.owner, owner)) {
        return this.start(named, seen, entry.version, sent, lost);
      }
      const decision = this.decide(named, entry, seen, fingerprint);
      if (!('seen' in decision)) return decision;
      record = successorOf(decision.seen, first, decision.kind);
      lost = decision.seen.state === 'running' ? decision.seen : undefined;
      [ifVersion, sent] = [entry.version, undefined];
    }
  }

  /** Begins the attempt, unless the store replied so late that another attempt may have taken over. */
  private start(
    named: Named,
    record: IdempotencyRecord,
    version: number,
    sent: Instant,
    lost: IdempotencyRecord | undefined,
  ): Begun {
    const { clock, leaseMs } = this.settings;
    if (passedMs(clock, sent) < safeLeaseMs(leaseMs, defaultMarginMs(leaseMs))) {
      const handle = new Attempt(this, named, record, version, sent);
      return lost === undefined ? { kind: 'run', handle } : { kind: 'takeover', handle, trace: lost.trace };
    }
    const detail = `the reply came when the lease of ${leaseMs} ms was over`;
    const error = storeTimeout('begin', detail);
    this.tell(named, 'store-error', { error });
    this.withdrawLater(named, record);
    return this.storeDown(named, error);
  }

  /** Runs the whole operation inside a transaction: if the function throws, nothing is committed. */
  private runInside<T>(
    view: StoreTransaction,
    named: Named,
    request: BeginRequest,
    fn: (handle: TransactionHandle) => T,
    encode: (value: unknown) => Uint8Array,
  ): Begun | Done<T> {
    const { ttlMs } = this.settings;
    const { storeKey } = named;
    const entry = view.read(storeKey);
    let record = this.firstRecord(request);
    if (entry !== undefined) {
      const decision = this.decide(named, entry, readable(entry), record.fingerprint);
      if (!('seen' in decision)) return decision;
      record = successorOf(decision.seen, record, decision.kind);
    }
    const options = { ttlMs, ifVersion: entry?.version ?? 0 };
    if (record.state === 'in-doubt') {
      view.write(storeKey, encodeRecord(record), options);
      return { kind: 'in-doubt', cause: undefined };
    }
    const value = fn(this.transactionHandle(named, record));
    // The store rejects an asynchronous function, with an error that explains why.
    if (isThenable(value)) return value as never;
    const done = this.done(named, record, value as Awaited<T>, encode);
    view.write(storeKey, encodeRecord(done.record), options);
    return done;
  }

  /** The same in a transaction that the caller has begun and will commit: until then the row of the key is locked. */
  private async runWithin<T>(
    view: Pick<Store, 'write'>,
    named: Named,
    request: BeginRequest,
    fn: (handle: TransactionHandle) => T,
    encode: (value: unknown) => Uint8Array,
  ): Promise<Begun | Done<T>> {
    const { ttlMs } = this.settings;
    const { storeKey } = named;
    const first = this.firstRecord(request);
    let record = first;
    let ifVersion = 0;
    let refusals = 0;
    for (;;) {
      let answer: Written | Refused;
      try {
        answer = await view.write(storeKey, encodeRecord(record), { ttlMs, ifVersion, signal: request.signal });
      } catch (error) {
        const isLocked = error instanceof StoreError && error.reason === 'busy';
        if (isLocked) return { kind: 'busy', retryAfterMs: soonestRetryMs };
        throw error;
      }
      if (answer.ok) {
        ifVersion = answer.version;
        break;
      }
      checkRefusals(++refusals);
      const { entry } = answer;
      if (entry === undefined) {
        [record, ifVersion] = [first, 0];
        continue;
      }
      const decision = this.decide(named, entry, readable(entry), first.fingerprint);
      if (!('seen' in decision)) return decision;
      record = successorOf(decision.seen, first, decision.kind);
      ifVersion = entry.version;
    }
    if (record.state === 'in-doubt') return { kind: 'in-doubt', cause: undefined };
    let value: Awaited<T>;
    try {
      value = await fn(this.transactionHandle(named, record));
    } catch (error) {
      // A rollback removes this write as well. If the caller commits in spite of the error, the key is free.
      const failed = { ...record, state: 'idle', failures: record.failures + 1 } as const;
      await view.write(storeKey, encodeRecord(failed), { ttlMs, ifVersion }).catch(() => {});
      throw error;
    }
    const done = this.done<T>(named, record, value, encode);
    const answer = await view.write(storeKey, encodeRecord(done.record), { ttlMs, ifVersion });
    if (!answer.ok) throw new Error('the transaction does not hold the lock of its key: is it one?');
    return done;
  }

  private transactionHandle({ key, keyHash }: Named, { attempt }: IdempotencyRecord): TransactionHandle {
    const { secret } = this.settings;
    const handle: TransactionHandle = { key, attempt, downstreamKey: (name) => downstreamKeyOf(secret, keyHash, name) };
    // `phase` is not in the type. Code that calls it anyway gets an error that explains why it is missing.
    return Object.assign(handle, { phase: noPhase });
  }

  private done<T>(
    { keyHash }: Named,
    running: IdempotencyRecord,
    value: Awaited<T>,
    encode: (value: unknown) => Uint8Array,
  ): Done<T> {
    const { maxBodyBytes, sealing } = this.settings;
    const bytes = encode(value);
    const fits = bytes.byteLength <= maxBodyBytes;
    const result = fits ? sealing.seal(keyHash, bytes) : undefined;
    const record = { ...running, state: 'completed', memo: [], result } as const;
    return { kind: 'done', value, bytes, fits, record };
  }

  private firstRecord({ fingerprint = noFingerprint, trace }: BeginRequest): IdempotencyRecord {
    const { leaseMs } = this.settings;
    const kept = trace !== undefined && trace.length <= longestTrace ? trace : undefined;
    // A copy, which V8 never allocates in old space: see `listOf`.
    return { ...beginning, owner: this.owners.next(), leaseMs, fingerprint, trace: kept };
  }

  /** In the order of the table: first whether the input differs, then the state of the record, then its lease. */
  private decide(
    { keyHash, operation }: Named,
    entry: Entry,
    seen: IdempotencyRecord | undefined,
    fingerprint: Uint8Array,
  ): Decision {
    if (seen === undefined) return { kind: 'in-doubt', cause: damageOf(entry) };
    // Fingerprints made by different rules cannot be compared.
    if (seen.fingerprint[0] === fingerprint[0] && !sameBytes(seen.fingerprint, fingerprint))
      return { kind: 'mismatch' };
    switch (seen.state) {
      case 'completed': {
        if (seen.result === undefined) return { kind: 'result-not-stored', cause: undefined };
        const { attempt, trace, result } = seen;
        try {
          const opened = this.settings.sealing.open(keyHash, result);
          return { kind: 'replay', result: opened, ageMs: entry.ageMs, attempt, trace };
        } catch (cause) {
          return { kind: 'result-not-stored', cause };
        }
      }
      case 'in-doubt':
        return { kind: 'in-doubt', cause: undefined };
      case 'idle':
        return { kind: 'take', seen };
      case 'running': {
        const leftMs = seen.leaseMs - entry.ageMs;
        if (leftMs > 0)
          return { kind: 'busy', retryAfterMs: this.retryAfterMs(operation, seen.elapsedMs + entry.ageMs, leftMs) };
        const { onLost, attempts } = this.settings;
        const isDoubtful = seen.isSealed || onLost === 'refuse' || seen.failures + 1 >= attempts;
        return { kind: isDoubtful ? 'doubt' : 'take', seen };
      }
    }
  }

  private retryAfterMs(operation: string, elapsedMs: number, leftMs: number): number {
    const expectedMs = (this.operations.medianMs(operation) ?? 0) - elapsedMs;
    return Math.min(Math.max(Math.ceil(expectedMs), soonestRetryMs), Math.ceil(leftMs));
  }

  /** Begins again and again while the operation runs elsewhere and there is time left to wait. */
  private async wait<T extends Begun | Done<unknown>>(
    named: Named,
    signal: AbortSignal | undefined,
    busy: T,
    beganMs: number,
    ask: () => T | Promise<T>,
  ): Promise<T> {
    const { clock, store, waitMs } = this.settings;
    const endsAtMs = beganMs + waitMs;
    const bell = new Bell(clock);
    const watch = store.native?.watch?.(named.storeKey, () => bell.ring());
    // If the watch does not start, or misses a change, polling makes up for it.
    watch?.ready.catch(() => {});
    const slowestMs = watch === undefined ? slowestAskMs : slowestWatchedAskMs;
    let begun = busy;
    try {
      for (
        let askMs = firstAskMs;
        begun.kind === 'busy' && clock.now() < endsAtMs;
        askMs = Math.min(askMs * 2, slowestMs)
      ) {
        await bell.heard(Math.min(clock.now() + askMs, endsAtMs), signal);
        begun = await ask();
      }
      this.tell(named, 'waited', { sinceMs: beganMs });
      return begun;
    } finally {
      watch?.close();
    }
  }

  private storeDown({ key, keyHash }: Named, error: unknown): Begun {
    const handle = this.settings.onStoreDown === 'run' ? new UnprotectedAttempt(this, key, keyHash) : undefined;
    return { kind: 'store-down', error, handle };
  }

  private withdrawLater(named: Named, record: IdempotencyRecord): void {
    const { clock, leaseMs } = this.settings;
    void this.work(() => this.withdraw(named, record, clock.now() + leaseMs));
  }

  /**
   * Takes back a begin that may have been applied, or may yet be, but that nobody waits for any more, so that it does not block the key for a whole lease.
   * A record that is absent may still arrive, since the write may be in flight: a free one takes its place, which the store then refuses to overwrite.
   * Waiting for it instead would keep {@link idle}, and so a shutdown, waiting for a whole lease after each outage.
   */
  private async withdraw(named: Named, record: IdempotencyRecord, endsAtMs: number): Promise<void> {
    const { store, clock, ttlMs, leaseMs, storeTimeoutMs } = this.settings;
    const { storeKey } = named;
    for (let pauseMs = shortestPauseMs; clock.now() < endsAtMs; pauseMs = Math.min(pauseMs * 2, 1_000)) {
      await this.pause(pauseMs);
      try {
        const entry = await this.bounded('withdraw', clock.now() + storeTimeoutMs, store.read(storeKey));
        const seen = entry === undefined ? record : readable(entry);
        if (seen?.state !== 'running' || !sameBytes(seen.owner, record.owner)) return;
        const idle = { ...seen, state: 'idle', attempt: seen.attempt - 1 } as const;
        const options = entry === undefined ? { ttlMs: leaseMs, ifVersion: 0 } : { ttlMs, ifVersion: entry.version };
        const write = store.write(storeKey, encodeRecord(idle), options);
        if ((await this.bounded('withdraw', clock.now() + storeTimeoutMs, write)).ok) return;
      } catch {
        // Tried again. In the end the lease expires.
      }
    }
  }

  private tellBegun(named: Named, begun: Begun | Done<unknown>, sinceMs: number): void {
    switch (begun.kind) {
      case 'done':
        return this.tell(named, begun.fits ? 'executed' : 'too-large', { attempt: begun.record.attempt, sinceMs });
      case 'replay': {
        const { attempt, ageMs, trace } = begun;
        return this.tell(named, 'replayed', { attempt, sinceMs, ageMs, trace });
      }
      case 'takeover':
        return this.tell(named, 'takeover', { attempt: begun.handle.attempt, sinceMs, trace: begun.trace });
      case 'result-not-stored':
        return this.tell(named, 'not-stored', { sinceMs, error: begun.cause });
      case 'in-doubt':
        return this.tell(named, 'in-doubt', { sinceMs, error: begun.cause });
      case 'busy':
      case 'mismatch':
        return this.tell(named, begun.kind, { sinceMs });
      case 'store-down':
        if (begun.handle !== undefined) this.tell(named, 'unprotected', { sinceMs, error: begun.error });
        return;
      case 'run':
        return;
    }
  }

  private tooSlow(operation: string): StoreError {
    return storeTimeout(operation, `no answer within ${this.settings.storeTimeoutMs} ms ("storeTimeout")`);
  }
}

function storeTimeout(operation: string, detail: string): StoreError {
  return new StoreError({ store: 'idempotency', operation, reason: 'timeout', applied: 'unknown', detail });
}

function noPhase(): never {
  const detail = 'all of a transaction is kept or none of it, so it has no phases';
  throw new TypeError(`${detail}; call run() for work in phases, and a transaction in its last one`);
}

/** The record that replaces one whose attempt is over: that of the next attempt, or the doubt. */
function successorOf(seen: IdempotencyRecord, first: IdempotencyRecord, kind: 'take' | 'doubt'): IdempotencyRecord {
  const kept = { fingerprint: seen.fingerprint, isSealed: seen.isSealed, memo: seen.memo };
  if (kind === 'doubt') return { ...first, ...kept, state: 'in-doubt', attempt: seen.attempt, trace: seen.trace };
  const failures = seen.state === 'running' ? seen.failures + 1 : seen.failures;
  return { ...first, ...kept, attempt: seen.attempt + 1, failures };
}

function pause(clock: Clock, ms: number): Promise<void> {
  return new Promise((resolve) => clock.schedule(callbackTimer(resolve), clock.now() + ms));
}

function readable(entry: Entry): IdempotencyRecord | undefined {
  try {
    return decodeRecord(entry.value);
  } catch {
    return undefined;
  }
}

function damageOf(entry: Entry): unknown {
  try {
    decodeRecord(entry.value);
    return undefined;
  } catch (error) {
    return error;
  }
}

/** Wakes a waiter at an instant, or earlier when it rings. A ring that comes before the wait is kept. */
class Bell {
  private readonly clock: Clock;
  private hasRung = false;
  private wake: (() => void) | undefined = undefined;

  constructor(clock: Clock) {
    this.clock = clock;
  }

  ring(): void {
    this.hasRung = true;
    this.wake?.();
  }

  heard(atMs: number, signal: AbortSignal | undefined): Promise<void> {
    return new Promise((resolve, reject) => {
      const end = () => {
        this.clock.cancel(timer);
        this.wake = undefined;
        this.hasRung = false;
        if (signal !== undefined) removeAbortListener(signal, end);
        if (signal?.aborted) reject(signal.reason);
        else resolve();
      };
      const timer = callbackTimer(end);
      if (this.hasRung || signal?.aborted) return end();
      this.wake = end;
      if (signal !== undefined) addAbortListener(signal, end);
      this.clock.schedule(timer, atMs);
    });
  }
}

const nothingMore = {};
const beginning: IdempotencyRecord = {
  state: 'running',
  owner: /* @__PURE__ */ new Uint8Array(16),
  fence: 0,
  leaseMs: 0,
  elapsedMs: 0,
  attempt: 1,
  failures: 0,
  fingerprint: noFingerprint,
  isSealed: false,
  trace: undefined,
  memo: [],
  result: undefined,
};

const longestKey = 255;
/** A `traceparent` has 55 characters; later versions may be a little longer. The caller controls it, so it is bounded. */
const longestTrace = 255;
export const longestPart = 1_000;

/** U+0000 separates scope and operation in the text that is hashed, so neither may contain it. */
export const part: Field<string> = {
  allowed: 'a string of 1 to 1000 characters without U+0000',
  parse: (value) => (isText(value, longestPart) && !value.includes('\0') ? value : undefined),
};

/** A text that is hashed must be well-formed, or two different ones could get the same hash. */
function isText(value: unknown, longest: number): value is string {
  return typeof value === 'string' && value.length > 0 && value.length <= longest && isWellFormed(value);
}
