/**
 * Attempt: one run of an operation, from the write that acquired its record to the write that ends it.
 *
 * Promise: each write is conditional on the version held. A refusal that returns a record of the same owner reveals an earlier write of
 * this attempt, whose reply was lost or which overtook this one. So writes need not wait for each other, and the record of another owner is never changed.
 */

import { InDoubtError, messageOf, StoreError } from '../../core/errors.js';
import { knownOf } from '../../core/known.js';
import type { Refused, Written } from '../../stores/store.js';
import type { QueueNode } from '../../structures/linked-queue.js';
import { defaultMarginMs, type Instant, LeaseKeeper } from '../lease.js';
import type { Engine } from './engine.js';
import { downstreamKeyOf } from './hashing.js';
import { decodeValue, encodeValue } from './outcomes.js';
import { decodeRecord, encodeRecord, type IdempotencyRecord, sameBytes } from './record.js';
import { checkRefusals } from './refusals.js';
import { largeBytes, nextTurn } from './turns.js';

/** What a handler receives: as `request.idempotency`, or as the argument of a function. */
export interface IdempotencyHandle {
  /** The caller's key. */
  readonly key: string;
  /** From 1. More than 1: an earlier attempt failed, was released, or was lost with its process. */
  readonly attempt: number;
  /**
   * Greater than that of every earlier attempt: send it to resources that can reject stale writers. 0 if the operation runs unprotected, because
   * the store is down.
   */
  readonly fence: number;
  /** Aborts with {@link InDoubtError} before another attempt can begin: stop then. */
  readonly signal: AbortSignal;
  /**
   * The effect is done: from here on the operation is never run again. Its outcome is stored whatever it is, even a failure; if its process
   * dies, the key is in doubt. Await it if that must be certain before the next step.
   *
   * @throws {@link StoreError} when the store does not accept it; {@link InDoubtError} when the record is no longer this attempt's.
   */
  seal(): Promise<void>;
  /** Nothing has happened: the outcome is not stored, and the next call with this key runs again, however often that happens. */
  release(): void;
  /**
   * Runs a step and records its result, so that a later attempt does not run it again. Steps run one after the other, in the same order
   * in each attempt; their results must be serializable, by default as JSON.
   *
   * @throws {@link InDoubtError} when an earlier attempt ran other steps (with `onLost: 'rerun'` the steps run again from here on instead), when its
   * recorded result cannot be read, or when the record is no longer this attempt's; {@link StoreError} when the result could not be recorded: the next
   * write that the store accepts records it, and without one a later attempt runs the step again; a `TypeError` when it cannot be
   * serialized. A result that can never be recorded puts the key in doubt when its attempt fails, unless `onLost` is `'rerun'`.
   */
  phase<T>(name: string, step: (downstreamKey: string) => T | PromiseLike<T>): Promise<T>;
  /** An idempotency key for a call to another system: the same in each attempt, a different one for each name. */
  downstreamKey(name: string): string;
}

/** What a function in a transaction receives. */
export type TransactionHandle = Pick<IdempotencyHandle, 'key' | 'attempt' | 'downstreamKey'>;

/**
 * How the end was recorded. `'too-large'`: as completed, but without the result. `'lost'`: not at all, because the record belongs to another attempt.
 * `'unrecorded'`: the store does not answer; the write is retried for as long as the lease is held.
 */
export type Completion = 'stored' | 'too-large' | 'lost' | 'unrecorded';

/**
 * The handle of an adapter. The adapter calls `complete` or `abandon` when the handler has ended. The first call counts; later calls give the same
 * answer. Neither rejects or takes longer than `storeTimeout`. Both are synchronous if the store answers at once.
 */
export interface AdapterHandle extends IdempotencyHandle {
  /** Set when the handler has called `seal()` (`'keep'`) or `release()`. */
  readonly decision: 'keep' | 'release' | undefined;
  /**
   * Ends the attempt with a result; undefined for a result that cannot be stored.
   *
   * @param error - Why it cannot be stored, if something failed.
   */
  complete(result: Uint8Array | undefined, error?: unknown): Completion | Promise<Completion>;
  /** Ends the attempt without a result: the next call with this key runs again. */
  abandon(): Completion | Promise<Completion>;
  /**
   * Called when the handler has returned.
   *
   * @throws InDoubtError when it has left out a phase that an earlier attempt did, and may not be rerun.
   */
  assertPhasesKept(): void;
}

/** The pause between tries to record the end in the background. */
const shortestPauseMs = 5;
const longestPauseMs = 1_000;

/** The methods for handlers are bound, so that a handler can destructure them: `({ phase, downstreamKey }) => ...`. */
export class Attempt implements AdapterHandle, QueueNode<Attempt> {
  readonly key: string;
  readonly operation: string;
  readonly keyHash: string;
  private readonly storeKey: string;
  private readonly engine: Engine;
  readonly fence: number;
  /** The record as acquired, plus the progress since. The fence is kept in its own field. */
  private record: IdempotencyRecord;
  private version: number;
  private readonly sent: Instant;
  private keeper: LeaseKeeper | undefined = undefined;
  /** Whether it is in the queue of `YoungAttempts`. */
  isYoung = false;
  previousInQueue: Attempt | undefined = undefined;
  nextInQueue: Attempt | undefined = undefined;
  private nextPhase = 0;
  private isInPhase = false;
  /** A step has run, but its answer is not recorded. */
  private hasLostAnswer = false;
  private isOver = false;
  private completion: Completion | Promise<Completion> | undefined = undefined;
  private resultError: unknown = undefined;
  private wanted: AdapterHandle['decision'] = undefined;
  private controller: AbortController | undefined = undefined;
  private lostError: InDoubtError | undefined = undefined;

  /** For a record that was written with `version` by a write sent at `sent`. */
  constructor(
    engine: Engine,
    named: { readonly key: string; readonly operation: string; readonly keyHash: string; readonly storeKey: string },
    record: IdempotencyRecord,
    version: number,
    sent: Instant,
  ) {
    this.engine = engine;
    this.key = named.key;
    this.operation = named.operation;
    this.keyHash = named.keyHash;
    this.storeKey = named.storeKey;
    this.record = record;
    this.fence = version;
    this.version = version;
    this.sent = sent;
    engine.young.add(this);
    engine.workBegins();
  }

  /** When the acquiring write was sent. */
  get acquiredMs(): number {
    return this.sent.monotonicMs;
  }

  /** Created at the first renewal, or when something asks for it: most attempts end before that. */
  get lease(): LeaseKeeper {
    if (this.keeper !== undefined) return this.keeper;
    const { clock, random, leaseMs } = this.engine.settings;
    this.engine.young.delete(this);
    const renew = () => this.write(() => this.running());
    const onLost = (reason: 'taken' | 'expired') => this.lose(reason);
    const terms = { clock, random, leaseMs, marginMs: defaultMarginMs(leaseMs), renew, onLost };
    this.keeper = new LeaseKeeper(terms, this.sent);
    return this.keeper;
  }

  get attempt(): number {
    return this.record.attempt;
  }

  get decision(): AdapterHandle['decision'] {
    return this.wanted;
  }

  get signal(): AbortSignal {
    this.findOut();
    this.controller ??= new AbortController();
    if (this.lostError !== undefined) this.controller.abort(this.lostError);
    return this.controller.signal;
  }

  /** A process that was frozen, or whose machine slept, notices here before it goes on, whichever timer fires first. */
  private findOut(): void {
    const { clock, leaseMs } = this.engine.settings;
    const { monotonicMs, wallMs } = this.sent;
    const ageMs = Math.max(clock.now() - monotonicMs, clock.wallNow() - wallMs);
    if (this.keeper !== undefined || (this.isYoung && ageMs > leaseMs / 3)) this.lease.isHeld();
  }

  get seal(): () => Promise<void> {
    return () => this.doSeal();
  }

  get release(): () => void {
    return () => this.doRelease();
  }

  get phase(): IdempotencyHandle['phase'] {
    return (name, step) => this.doPhase(name, step);
  }

  get downstreamKey(): (name: string) => string {
    return (name) => downstreamKeyOf(this.engine.settings.secret, this.keyHash, name);
  }

  private doSeal(): Promise<void> {
    this.wanted = 'keep';
    if (!this.record.isSealed) this.engine.tell(this, 'sealed', { attempt: this.attempt });
    this.record = { ...this.record, isSealed: true };
    const written = this.checkpoint();
    // The handler need not await it: the decision stands, and a failure must not become an unhandled rejection.
    written.catch(() => {});
    return written;
  }

  private doRelease(): void {
    if (this.record.isSealed) {
      throw new Error(`"${this.engine.settings.name}": what was sealed cannot be released: its effect is done`);
    }
    this.wanted = 'release';
  }

  private async doPhase<T>(name: string, step: (downstreamKey: string) => T | PromiseLike<T>): Promise<T> {
    const { serializer, sealing } = this.engine.settings;
    if (this.isInPhase)
      throw new Error(`phase "${name}" begins while another is running: they run one after the other`);
    const done = this.phaseDone(name);
    // The place names the key and the phase: a sealed answer opens neither as a result nor for another phase.
    const place = `${this.keyHash} ${name}`;
    if (done !== undefined) {
      this.nextPhase++;
      try {
        return decodeValue(serializer, sealing.open(place, done)) as T;
      } catch (cause) {
        throw this.inDoubt('unreadable', `phase "${name}" has run, and its result cannot be read`, cause);
      }
    }
    this.assertHeld();
    this.isInPhase = true;
    try {
      const answer = await step(this.downstreamKey(name));
      const value = this.encoded(name, answer);
      await this.remember({ name, value: sealing.seal(place, value) });
      // The handler may have run the step a second time. If it went on to another step instead, a later attempt reports the drift.
      this.hasLostAnswer = false;
      // Decoded, as a later attempt will see it: what JSON cannot represent shows in the first attempt already.
      return decodeValue(serializer, value) as T;
    } finally {
      this.isInPhase = false;
    }
  }

  private encoded(name: string, answer: unknown): Uint8Array {
    const { serializer, onLost } = this.engine.settings;
    try {
      return encodeValue(serializer, answer);
    } catch (cause) {
      this.hasLostAnswer = true;
      const then = onLost === 'rerun' ? 'a later attempt runs it again' : 'its key is in doubt';
      const detail = `its result cannot be stored, so ${then}: ${messageOf(cause)}`;
      throw new TypeError(`phase "${name}" has run, and ${detail}`, { cause });
    }
  }

  private async remember(done: IdempotencyRecord['memo'][number]): Promise<void> {
    const { memo } = this.record;
    this.record = { ...this.record, memo: [...memo, done] };
    try {
      await this.checkpoint();
    } catch (error) {
      // What the store can never accept must not block the writes that follow: the renewals and the end.
      if (error instanceof StoreError && error.reason === 'invalid') {
        this.record = { ...this.record, memo };
        this.hasLostAnswer = true;
      }
      throw error;
    } finally {
      this.nextPhase = this.record.memo.length;
    }
  }

  complete(result: Uint8Array | undefined, error?: unknown): Completion | Promise<Completion> {
    // Only the first end counts. A second one would be conditional on the version that the first has written, and would overwrite it.
    this.completion ??= this.endWith(result, error);
    return this.completion;
  }

  abandon(): Completion | Promise<Completion> {
    this.completion ??= this.endWithout();
    return this.completion;
  }

  private endWith(result: Uint8Array | undefined, error: unknown): Completion | Promise<Completion> {
    const { maxBodyBytes } = this.engine.settings;
    this.resultError = error;
    if (result === undefined || result.byteLength > maxBodyBytes) return this.completeWith(undefined);
    if (result.byteLength > largeBytes) return nextTurn().then(() => this.completeWith(result));
    return this.completeWith(result);
  }

  private completeWith(result: Uint8Array | undefined): Completion | Promise<Completion> {
    const kept = result === undefined ? undefined : this.engine.settings.sealing.seal(this.keyHash, result);
    const { fence } = this;
    return this.end({ ...this.record, state: 'completed', fence, memo: [], elapsedMs: this.elapsedMs(), result: kept });
  }

  private endWithout(): Completion | Promise<Completion> {
    const { attempts, onLost } = this.engine.settings;
    const wouldRepeat = this.hasLostAnswer && onLost !== 'rerun';
    // A handler that calls release() knows that nothing has happened, so it is not a failure, however often it occurs.
    const isReleased = this.wanted === 'release';
    const failures = this.record.failures + (isReleased ? 0 : 1);
    const state = !isReleased && (wouldRepeat || failures >= attempts) ? 'in-doubt' : 'idle';
    return this.end({ ...this.record, state, failures, fence: this.fence, elapsedMs: this.elapsedMs() });
  }

  /** Writes the last record. Synchronous if the store answers at once. */
  private end(last: IdempotencyRecord): Completion | Promise<Completion> {
    const beganMs = this.sent.monotonicMs + last.elapsedMs;
    if (isLarge(last)) return this.endLater(last, beganMs, undefined);
    const write = this.send(last);
    const answer = knownOf(write);
    if (answer?.ok !== true) return this.endLater(last, beganMs, write);
    return this.ended(last, true, beganMs);
  }

  /** The same, retried until the store accepts it, for as long as the lease is held. */
  private async endLater(
    last: IdempotencyRecord,
    beganMs: number,
    write: Promise<Written | Refused> | undefined,
  ): Promise<Completion> {
    const endsAtMs = beganMs + this.engine.settings.storeTimeoutMs;
    const completion =
      (await this.tryToEnd(last, beganMs, write)) ??
      (await this.engine
        .bounded('complete', endsAtMs, this.keepTrying(last, beganMs))
        .catch(() => 'unrecorded' as const));
    if (completion === 'unrecorded') this.engine.tell(this, 'unrecorded', { attempt: this.attempt });
    return completion;
  }

  private async keepTrying(last: IdempotencyRecord, beganMs: number): Promise<Completion> {
    for (let pauseMs = shortestPauseMs; this.lease.isHeld(); pauseMs = Math.min(pauseMs * 2, longestPauseMs)) {
      await this.engine.pause(pauseMs);
      const completion = await this.tryToEnd(last, beganMs, undefined);
      if (completion !== undefined) return completion;
    }
    this.engine.workEnds();
    return 'unrecorded';
  }

  /** Undefined: the write failed and may be retried. */
  private async tryToEnd(
    last: IdempotencyRecord,
    beganMs: number,
    write: Promise<Written | Refused> | undefined,
  ): Promise<Completion | undefined> {
    const { clock, storeTimeoutMs } = this.engine.settings;
    let isMine: boolean;
    try {
      const work = this.write(() => last, write);
      isMine = await this.engine.bounded('complete', clock.now() + storeTimeoutMs, work);
    } catch (error) {
      this.engine.tell(this, 'store-error', { attempt: this.attempt, error });
      const isTooLarge = error instanceof StoreError && error.reason === 'invalid' && last.result !== undefined;
      return isTooLarge ? this.tryToEnd({ ...last, result: undefined }, beganMs, undefined) : undefined;
    }
    return this.ended(last, isMine, beganMs);
  }

  private ended(last: IdempotencyRecord, isMine: boolean, beganMs: number): Completion {
    this.isOver = true;
    this.stopRenewing();
    this.engine.workEnds();
    if (!isMine) {
      this.tellLost('taken');
      return 'lost';
    }
    const isTooLarge = last.state === 'completed' && last.result === undefined;
    const outcome = isTooLarge
      ? 'too-large'
      : last.state === 'completed'
        ? 'executed'
        : last.state === 'idle'
          ? 'released'
          : 'in-doubt';
    const error = isTooLarge ? this.resultError : undefined;
    this.engine.tell(this, outcome, { attempt: this.attempt, sinceMs: beganMs, error });
    if (last.state === 'completed') this.engine.took(this.operation, last.elapsedMs);
    return isTooLarge ? 'too-large' : 'stored';
  }

  /** The recorded answer of this phase from an earlier attempt. */
  private phaseDone(name: string): Uint8Array | undefined {
    const { memo } = this.record;
    const done = memo[this.nextPhase];
    if (done === undefined || done.name === name) return done?.value;
    if (this.engine.settings.onLost !== 'rerun') {
      const detail = `an earlier attempt did phase "${done.name}" where this one does "${name}"; its code has changed`;
      throw this.inDoubt('drift', detail);
    }
    this.record = { ...this.record, memo: memo.slice(0, this.nextPhase) };
    return undefined;
  }

  assertPhasesKept(): void {
    const leftOut = this.record.memo[this.nextPhase];
    if (leftOut === undefined || this.engine.settings.onLost === 'rerun') return;
    const detail = `an earlier attempt did phase "${leftOut.name}", which this one has left out; its code has changed`;
    throw this.inDoubt('drift', detail);
  }

  /** Writes the progress, within `storeTimeout`. A write whose reply was lost is repeated. */
  private async checkpoint(): Promise<void> {
    const { clock, storeTimeoutMs } = this.engine.settings;
    const endsAtMs = clock.now() + storeTimeoutMs;
    for (let pauseMs = shortestPauseMs; ; pauseMs *= 2) {
      try {
        const work = this.write(() => this.running());
        if (!(await this.engine.bounded('checkpoint', endsAtMs, work))) this.lose('taken');
        return this.assertHeld();
      } catch (error) {
        if (!(error instanceof StoreError)) throw error;
        this.engine.tell(this, 'store-error', { attempt: this.attempt, error });
        if (error.applied === 'no' || clock.now() + pauseMs >= endsAtMs) throw error;
        await this.engine.pause(pauseMs);
      }
    }
  }

  private assertHeld(): void {
    if (this.lostError !== undefined || this.isOver || !this.lease.isHeld())
      throw this.lostError ?? this.inDoubt('lost', 'this attempt has ended');
  }

  private running(): IdempotencyRecord {
    return { ...this.record, state: 'running', fence: this.fence, elapsedMs: this.elapsedMs() };
  }

  private elapsedMs(): number {
    return this.engine.settings.clock.now() - this.sent.monotonicMs;
  }

  private send(record: IdempotencyRecord): Promise<Written | Refused> {
    return this.sendBytes(encodeRecord(record));
  }

  private async sendInTurns(record: IdempotencyRecord): Promise<Written | Refused> {
    await nextTurn();
    const bytes = encodeRecord(record);
    await nextTurn();
    return this.sendBytes(bytes);
  }

  private sendBytes(bytes: Uint8Array): Promise<Written | Refused> {
    return this.engine.write(this.storeKey, bytes, { ttlMs: this.engine.settings.ttlMs, ifVersion: this.version });
  }

  private wrote({ version }: Written, { state }: IdempotencyRecord): void {
    this.version = Math.max(this.version, version);
    if (state !== 'running') this.isOver = true;
  }

  /**
   * Writes what `next` returns. True if the record belongs to this attempt and now contains that.
   *
   * @param begun - The first write, if it is already in flight.
   */
  private async write(next: () => IdempotencyRecord, begun?: Promise<Written | Refused>): Promise<boolean> {
    let write = begun;
    let refusals = 0;
    for (;;) {
      const record = next();
      // A renewal that arrives after the end would reopen the record.
      if (this.isOver && record.state === 'running') return false;
      const answer = await (write ?? (isLarge(record) ? this.sendInTurns(record) : this.send(record)));
      write = undefined;
      if (answer.ok) {
        this.wrote(answer, record);
        return true;
      }
      checkRefusals(++refusals);
      const { entry } = answer;
      if (entry === undefined) {
        // The server has lost the record. No other attempt has begun since, and writing it again keeps it so.
        this.version = 0;
        continue;
      }
      const seen = decodeRecord(entry.value);
      if (!sameBytes(seen.owner, this.record.owner)) return false;
      if (seen.state !== 'running') {
        this.isOver = true;
        return seen.state === record.state;
      }
      this.version = entry.version;
    }
  }

  private lose(reason: 'taken' | 'expired'): void {
    if (this.isOver) return;
    this.stopRenewing();
    this.tellLost(reason);
    this.controller?.abort(this.lostError);
  }

  private stopRenewing(): void {
    if (this.keeper === undefined) this.engine.young.delete(this);
    else void this.keeper.stop();
  }

  private tellLost(reason: 'taken' | 'expired'): void {
    if (this.lostError !== undefined) return;
    const detail = reason === 'taken' ? 'another attempt has taken it over' : 'it could not be renewed in time';
    this.lostError = this.inDoubt('lost', `this attempt has lost its key: ${detail}`);
    this.engine.tell(this, 'lost', { attempt: this.attempt, error: this.lostError });
  }

  private inDoubt(reason: InDoubtError['reason'], detail: string, cause?: unknown): InDoubtError {
    return new InDoubtError({ policy: this.engine.settings.name, reason, detail, cause });
  }
}

function isLarge({ result }: IdempotencyRecord): boolean {
  return result !== undefined && result.byteLength > largeBytes;
}
