/**
 * Engine: the state machine of idempotency keys on the three verbs of a store. It knows no framework; adapters and wrapped functions
 * begin here.
 *
 * Promise: one round trip says run, replay, busy or mismatch; a begin whose reply was lost knows its own record again; a key is blocked
 * for as long as its owner renews, and one lease more at most.
 * After: draft-ietf-httpapi-idempotency-key-header-07; Leach, "Implementing Stripe-like idempotency keys in Postgres" (2017).
 */
import { type Clock, callbackTimer } from '../../core/clock.js';
import { StoreError } from '../../core/errors.js';
import type { Events, IdempotencyOutcome } from '../../core/events.js';
import type { Entry, Store } from '../../stores/store.js';
import { type Instant, instantOf } from '../lease.js';
import { type AdapterHandle, Attempt, sameBytes } from './attempt.js';
import { keyHashOf, newOwner } from './hashing.js';
import { decodeRecord, encodeRecord, type IdempotencyRecord, noFingerprint } from './record.js';

/** Turns what a function answers into bytes and back. */
export interface ResultSerializer {
  encode(value: unknown): Uint8Array;
  decode(bytes: Uint8Array): unknown;
}

export interface EngineSettings {
  readonly name: string;
  readonly store: Store;
  readonly ttlMs: number;
  readonly leaseMs: number;
  /** 0: who finds an operation running is told so at once. */
  readonly waitMs: number;
  readonly storeTimeoutMs: number;
  readonly maxBodyBytes: number;
  readonly onLost: 'rerun' | 'resume' | 'refuse';
  readonly onStoreDown: 'refuse' | 'run';
  readonly secret: Uint8Array | undefined;
  readonly serializer: ResultSerializer;
  readonly clock: Clock;
  readonly random: () => number;
  readonly events: Events;
}

/** @internal What an adapter asks for. */
export interface BeginRequest {
  /** Whose key it is: known only to the server. */
  readonly scope: string;
  /** What is done: for HTTP the method and the route. */
  readonly operation: string;
  readonly key: string;
  /** By {@link fingerprint}; without one any input is taken for the same. */
  readonly fingerprint?: Uint8Array | undefined;
  /** Ends the waiting. */
  readonly signal?: AbortSignal | undefined;
  /** A W3C `traceparent`, for a link from a replay. */
  readonly trace?: string | undefined;
}

/** @internal How an operation begins. */
export type Begun =
  /** Run it, then call `complete` or `abandon` of the handle. */
  | { readonly kind: 'run' | 'takeover'; readonly handle: AdapterHandle }
  /** It has run: answer what is stored. */
  | {
      readonly kind: 'replay';
      readonly result: Uint8Array;
      readonly ageMs: number;
      readonly attempt: number;
      readonly trace: string | undefined;
    }
  | { readonly kind: 'busy'; readonly retryAfterMs: number }
  | { readonly kind: 'mismatch' }
  | { readonly kind: 'in-doubt'; readonly cause: unknown }
  /** It has run, and its result is not there: too large, or not readable with the keys at hand. */
  | { readonly kind: 'result-not-stored'; readonly cause: unknown }
  /** With a handle: run it all the same, because `onStoreDown` says so; the handle records nothing. */
  | { readonly kind: 'store-down'; readonly error: unknown; readonly handle: AdapterHandle | undefined };

export class Engine {
  readonly settings: EngineSettings;

  constructor(settings: EngineSettings) {
    this.settings = settings;
  }

  /** Throws only the reason of `signal`, or what says that the request itself is wrong. */
  async begin(request: BeginRequest): Promise<Begun> {
    const { secret } = this.settings;
    const keyHash = keyHashOf(secret, request.scope, request.operation, request.key);
    return await this.claim(request, keyHash);
  }

  storeKey(keyHash: string): string {
    return `idempotency:${keyHash}`;
  }

  tell(
    _about: { readonly operation: string; readonly keyHash: string },
    _outcome: IdempotencyOutcome,
    _more: object = {},
  ): void {}

  seal(_keyHash: string, bytes: Uint8Array): Uint8Array {
    return bytes;
  }

  open(_keyHash: string, bytes: Uint8Array): Uint8Array {
    return bytes;
  }

  /** Waits no longer than `endsAtMs`, whatever the store does. */
  bounded<T>(operation: string, endsAtMs: number, _signal: AbortSignal | undefined, work: Promise<T>): Promise<T> {
    const { clock } = this.settings;
    return new Promise((resolve, reject) => {
      const timer = callbackTimer(() => reject(this.tooSlow(operation)));
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

  pause(ms: number): Promise<void> {
    const { clock } = this.settings;
    const background = clock.background ?? clock;
    return new Promise((resolve) => background.schedule(callbackTimer(resolve), clock.now() + ms));
  }

  private async claim(request: BeginRequest, keyHash: string): Promise<Begun> {
    const { store, clock, ttlMs, leaseMs, storeTimeoutMs, onStoreDown } = this.settings;
    const { key, operation, fingerprint = noFingerprint, signal, trace } = request;
    const endsAtMs = clock.now() + storeTimeoutMs;
    const owner = newOwner();
    const first: IdempotencyRecord = {
      ...{ state: 'running', owner, fence: 0, leaseMs, elapsedMs: 0, attempt: 1, fingerprint, isSealed: false },
      ...{ trace, memo: [], result: undefined },
    };
    let record = first;
    let ifVersion = 0;
    let sent: Instant | undefined;
    for (;;) {
      sent ??= instantOf(clock);
      const write = store.write(this.storeKey(keyHash), encodeRecord(record), { ttlMs, ifVersion, signal });
      let answer: Awaited<typeof write>;
      try {
        answer = await this.bounded('begin', endsAtMs, signal, write);
      } catch (error) {
        if (signal?.aborted) throw error;
        if (error instanceof StoreError && error.applied === 'unknown' && clock.now() + 5 < endsAtMs) {
          // Perhaps it was applied: then the refusal brings our own record back.
          await this.pause(5);
          continue;
        }
        return { kind: 'store-down', error, handle: onStoreDown === 'run' ? undefined : undefined };
      }
      const kind = ifVersion === 0 || record.attempt === 1 ? 'run' : 'takeover';
      if (answer.ok) {
        return { kind, handle: new Attempt(this, key, operation, keyHash, record, answer.version, sent) };
      }
      const { entry } = answer;
      if (entry === undefined) {
        record = first;
        ifVersion = 0;
        sent = undefined;
        continue;
      }
      let seen: IdempotencyRecord;
      try {
        seen = decodeRecord(entry.value);
      } catch (cause) {
        return { kind: 'in-doubt', cause };
      }
      if (seen.state === 'running' && sameBytes(seen.owner, owner)) {
        return { kind, handle: new Attempt(this, key, operation, keyHash, seen, entry.version, sent) };
      }
      const decided = this.decide(seen, entry, fingerprint, keyHash);
      if (decided !== 'takeover') return decided;
      const isRefused = seen.state === 'running' && (seen.isSealed || this.settings.onLost === 'refuse');
      record = {
        ...first,
        attempt: isRefused ? seen.attempt : seen.attempt + 1,
        state: isRefused ? 'in-doubt' : 'running',
        isSealed: seen.isSealed,
        memo: seen.memo,
      };
      ifVersion = entry.version;
      sent = undefined;
      if (isRefused) {
        await store.write(this.storeKey(keyHash), encodeRecord(record), { ttlMs, ifVersion, signal });
        return { kind: 'in-doubt', cause: undefined };
      }
    }
  }

  private decide(seen: IdempotencyRecord, entry: Entry, fingerprint: Uint8Array, keyHash: string): Begun | 'takeover' {
    if (seen.fingerprint[0] === fingerprint[0] && !sameBytes(seen.fingerprint, fingerprint))
      return { kind: 'mismatch' };
    switch (seen.state) {
      case 'completed': {
        if (seen.result === undefined) return { kind: 'result-not-stored', cause: undefined };
        const { attempt, trace } = seen;
        try {
          return { kind: 'replay', result: this.open(keyHash, seen.result), ageMs: entry.ageMs, attempt, trace };
        } catch (cause) {
          return { kind: 'result-not-stored', cause };
        }
      }
      case 'in-doubt':
        return { kind: 'in-doubt', cause: undefined };
      case 'idle':
        return 'takeover';
      case 'running': {
        const leftMs = seen.leaseMs - entry.ageMs;
        return leftMs > 0 ? { kind: 'busy', retryAfterMs: leftMs } : 'takeover';
      }
    }
  }

  private tooSlow(operation: string): StoreError {
    const detail = `no answer within ${this.settings.storeTimeoutMs} ms`;
    return new StoreError({ store: 'idempotency', operation, reason: 'timeout', applied: 'unknown', detail });
  }
}
