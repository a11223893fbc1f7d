/**
 * Attempt: one run of an operation, from the write that acquired its record to the one that ends it.
 *
 * Promise: each write is conditional on the version held, and a refusal that brings back a record of the same owner was a write of ours
 * whose reply was lost, or one that overtook it: so nothing needs to wait for anything, and no other owner's record is ever touched.
 */
import { InDoubtError } from '../../core/errors.js';
import type { Entry } from '../../stores/store.js';
import { defaultMarginMs, type Instant, LeaseKeeper } from '../lease.js';
import type { Engine } from './engine.js';
import { downstreamKeyOf } from './hashing.js';
import { decodeRecord, encodeRecord, type IdempotencyRecord, type Memo } from './record.js';

/** What a handler is given: as `request.idempotency`, or as the argument of a function. */
export interface IdempotencyHandle {
  /** The caller's key. */
  readonly key: string;
  /** From 1. More than 1: an earlier attempt failed, was released, or was lost with its process. */
  readonly attempt: number;
  /** Greater than that of every earlier attempt: give it to what can refuse an older one. 0 where the store is down and the operation runs unprotected. */
  readonly fence: number;
  /** Aborts when the record can become somebody else's: stop then, for another attempt may begin. */
  readonly signal: AbortSignal;
  /**
   * The effect is done: whatever happens from here on, the operation is not run again. What it answers is stored, also a failure; when
   * its process dies, the key is in doubt. Waiting for it is needed only where that must be certain before the next step.
   */
  seal(): Promise<void>;
  /** Nothing has happened: what is answered is not stored, and the next request with this key runs anew. */
  release(): void;
  /**
   * Runs a step and keeps what it answers, so that a later attempt does not run it again. Steps run one after the other and in the same
   * order in each attempt.
   */
  phase<T>(name: string, step: (downstreamKey: string) => T | PromiseLike<T>): Promise<T>;
  /** An idempotency key for a call of this operation: the same in each attempt, another for each name. */
  downstreamKey(name: string): string;
}

/** How an attempt was recorded. `'unrecorded'`: not yet, the store does not answer; it is tried on while the lease is held. */
export type Completion = 'stored' | 'too-large' | 'lost' | 'unrecorded';

/** @internal What an adapter holds besides. */
export interface AdapterHandle extends IdempotencyHandle {
  /** What the handler wants, whatever the answer is: `seal()` or `release()` was called. */
  readonly decision: 'keep' | 'release' | undefined;
  /** Ends it with a result; undefined when that cannot be stored. Answers after `storeTimeout` at the latest, and never rejects. */
  complete(result: Uint8Array | undefined): Promise<Completion>;
  /** Ends it without one: the next request with this key runs anew. Answers after `storeTimeout` at the latest, and never rejects. */
  abandon(): Promise<Completion>;
}

/** Attempts that may be released; then the key is in doubt, because something is wrong with it. */
const mostAttempts = 10;

export class Attempt implements AdapterHandle {
  readonly key: string;
  /** @internal */ readonly operation: string;
  /** @internal */ readonly keyHash: string;
  private readonly engine: Engine;
  private record: IdempotencyRecord;
  private version: number;
  private readonly lease: LeaseKeeper;
  private readonly acquiredMs: number;
  private nextPhase = 0;
  private isInPhase = false;
  private isOver = false;
  private wanted: AdapterHandle['decision'] = undefined;
  private controller: AbortController | undefined = undefined;
  private lostError: InDoubtError | undefined = undefined;

  constructor(
    engine: Engine,
    key: string,
    operation: string,
    keyHash: string,
    record: IdempotencyRecord,
    version: number,
    sent: Instant,
  ) {
    this.engine = engine;
    this.key = key;
    this.operation = operation;
    this.keyHash = keyHash;
    this.record = { ...record, fence: record.fence === 0 ? version : record.fence };
    this.version = version;
    this.acquiredMs = sent.monotonicMs;
    const { clock, random, leaseMs } = engine.settings;
    const terms = { clock, random, leaseMs, marginMs: defaultMarginMs(leaseMs) };
    this.lease = new LeaseKeeper(
      { ...terms, renew: () => this.write(() => this.running()), onLost: (reason) => this.lose(reason) },
      sent,
    );
  }

  get attempt(): number {
    return this.record.attempt;
  }

  get fence(): number {
    return this.record.fence;
  }

  get decision(): AdapterHandle['decision'] {
    return this.wanted;
  }

  get signal(): AbortSignal {
    this.controller ??= new AbortController();
    if (this.lostError !== undefined) this.controller.abort(this.lostError);
    return this.controller.signal;
  }

  seal(): Promise<void> {
    this.wanted = 'keep';
    if (this.record.isSealed) return settled;
    this.record = { ...this.record, isSealed: true };
    this.engine.tell(this, 'sealed');
    const written = this.checkpoint();
    // Who does not wait for it has said what he wanted all the same.
    written.catch(() => {});
    return written;
  }

  release(): void {
    if (this.record.isSealed) throw new Error(`idempotency key: it is sealed, so it cannot be released any more`);
    this.wanted = 'release';
  }

  async phase<T>(name: string, step: (downstreamKey: string) => T | PromiseLike<T>): Promise<T> {
    const { serializer, onLost } = this.engine.settings;
    if (this.isInPhase) throw new Error(`phase "${name}" begins before the one before it has ended`);
    const known = this.record.memo[this.nextPhase];
    if (known !== undefined) {
      if (known.name === name) {
        this.nextPhase++;
        return serializer.decode(this.engine.open(this.keyHash, known.value)) as T;
      }
      if (onLost !== 'rerun') {
        throw new InDoubtError({
          policy: this.engine.settings.name,
          reason: 'drift',
          detail: `an earlier attempt did "${known.name}" where this one does "${name}"`,
        });
      }
      this.record = { ...this.record, memo: this.record.memo.slice(0, this.nextPhase) };
    }
    this.assertHeld();
    this.isInPhase = true;
    try {
      const value = serializer.encode(await step(this.downstreamKey(name)));
      const memo: Memo = { name, value: this.engine.seal(this.keyHash, value) };
      this.record = { ...this.record, memo: [...this.record.memo, memo] };
      this.nextPhase++;
      await this.checkpoint();
      return serializer.decode(value) as T;
    } finally {
      this.isInPhase = false;
    }
  }

  downstreamKey(name: string): string {
    return downstreamKeyOf(this.engine.settings.secret, this.keyHash, name);
  }

  complete(result: Uint8Array | undefined): Promise<Completion> {
    const { maxBodyBytes } = this.engine.settings;
    const isTooLarge = result === undefined || result.byteLength > maxBodyBytes;
    const kept = isTooLarge ? undefined : this.engine.seal(this.keyHash, result);
    const ended = this.end({ ...this.record, state: 'completed', result: kept, memo: [], elapsedMs: this.elapsedMs() });
    return ended.then((completion) => {
      if (completion !== 'stored') return completion;
      this.engine.tell(this, isTooLarge ? 'too-large' : 'executed');
      return isTooLarge ? 'too-large' : 'stored';
    });
  }

  async abandon(): Promise<Completion> {
    const isEndless = this.record.attempt >= mostAttempts;
    const completion = await this.end({ ...this.record, state: isEndless ? 'in-doubt' : 'idle' });
    if (completion === 'stored') this.engine.tell(this, isEndless ? 'in-doubt' : 'released');
    return completion;
  }

  /** Writes the last record: at once if that can be, else in the background until the lease is lost. */
  private async end(last: IdempotencyRecord): Promise<Completion> {
    const { clock, storeTimeoutMs } = this.engine.settings;
    const beganMs = clock.now();
    const endsAtMs = beganMs + storeTimeoutMs;
    try {
      const isMine = await this.engine.bounded(
        'complete',
        endsAtMs,
        undefined,
        this.write(() => last),
      );
      if (!isMine) this.lose('taken');
      this.finish();
      return isMine ? 'stored' : 'lost';
    } catch (error) {
      this.engine.tell(this, 'unrecorded', { error });
      void this.endLater(last);
      return 'unrecorded';
    }
  }

  private async endLater(last: IdempotencyRecord): Promise<void> {
    for (let pauseMs = 50; this.lease.isHeld(); pauseMs = Math.min(pauseMs * 2, 1_000)) {
      await this.engine.pause(pauseMs);
      const done = await this.write(() => last).catch(() => undefined);
      if (done === undefined) continue;
      if (!done) this.lose('taken');
      break;
    }
    this.finish();
  }

  private finish(): void {
    this.isOver = true;
    void this.lease.stop();
  }

  private assertHeld(): void {
    if (!this.lease.isHeld()) throw this.lostError ?? this.lost('the lease is over');
  }

  private async checkpoint(): Promise<void> {
    const isMine = await this.write(() => this.running());
    if (!isMine) this.lose('taken');
    this.assertHeld();
  }

  private running(): IdempotencyRecord {
    return { ...this.record, state: 'running', elapsedMs: this.elapsedMs() };
  }

  private elapsedMs(): number {
    return this.engine.settings.clock.now() - this.acquiredMs;
  }

  /** Whether the record is still ours. Repeats what was refused only because another write of ours came before it. */
  private async write(next: () => IdempotencyRecord): Promise<boolean> {
    const { store, ttlMs } = this.engine.settings;
    for (;;) {
      const record = next();
      const bytes = encodeRecord(record);
      const answer = await store.write(this.engine.storeKey(this.keyHash), bytes, { ttlMs, ifVersion: this.version });
      if (answer.ok) {
        this.version = Math.max(this.version, answer.version);
        if (record.state !== 'running') this.isOver = true;
        return true;
      }
      const { entry } = answer;
      if (entry === undefined) {
        // The server has forgotten it. Nobody else has begun, and nobody shall.
        this.version = 0;
        continue;
      }
      const seen = this.ours(entry);
      if (seen === undefined) return false;
      if (seen.state === record.state && seen.state !== 'running') return true;
      if (seen.state !== 'running' || this.isOver) return false;
      this.version = entry.version;
    }
  }

  private ours(entry: Entry): IdempotencyRecord | undefined {
    const seen = decodeRecord(entry.value);
    return sameBytes(seen.owner, this.record.owner) ? seen : undefined;
  }

  private lose(reason: 'taken' | 'expired'): void {
    if (this.lostError !== undefined || this.isOver) return;
    const detail = reason === 'taken' ? 'another attempt has taken it over' : 'it could not be renewed in time';
    this.lostError = this.lost(detail);
    this.engine.tell(this, 'lost');
    this.controller?.abort(this.lostError);
  }

  private lost(detail: string): InDoubtError {
    return new InDoubtError({ policy: this.engine.settings.name, reason: 'lost', detail });
  }
}

const settled = /* @__PURE__ */ Promise.resolve();

export function sameBytes(one: Uint8Array, other: Uint8Array): boolean {
  if (one.length !== other.length) return false;
  for (let index = 0; index < one.length; index++) if (one[index] !== other[index]) return false;
  return true;
}
