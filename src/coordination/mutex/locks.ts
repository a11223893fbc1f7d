/**
 * Locks: the engine of mutex, semaphore and leader: keys and their lines, several keys at once, and code that runs under a lock.
 *
 * Promise: of several keys, either all are acquired or none stays held. All callers take them in the same order, so two callers never wait for
 * each other. A result or error of the code under a lock is never lost, even if the lock is.
 */

import { ambient } from '../../core/ambient.js';
import { showBriefly } from '../../core/brief.js';
import { Call } from '../../core/call.js';
import type { Duration } from '../../core/duration.js';
import { LockUnavailableError, OptionsError } from '../../core/errors.js';
import { isWellFormed } from '../../core/kinds.js';
import { checkArgument, checkOptions, duration, having, optional } from '../../core/options.js';
import type { Outcome } from '../../core/outcome.js';
import { type Lease, LeaseBase } from './lease-handle.js';
import type { Line, LockHolder, LockMode } from './line.js';
import { LocalLine } from './local-line.js';
import { LockTable } from './lock-table.js';
import { MultiLease } from './multi-lease.js';
import { type CheckedLockOptions, LockSettings } from './settings.js';
import { Owners, StoredLine } from './stored-line.js';

/** Options of a call that waits for a lock. */
export interface AcquireOptions {
  /** Ends the wait: the call rejects with the signal's reason. In `run` it also aborts the signal of the function. */
  readonly signal?: AbortSignal | undefined;
  /**
   * How long the call may wait; 0: not at all. Default: the option of the lock. Better than a signal with a timeout: a store with a queue then offers it no turn that comes too
   * late to be used.
   */
  readonly wait?: Duration | undefined;
}

/** What code under a lock receives. */
export interface LockContext {
  /** Aborts when the lock is lost, or the caller's own signal aborts. Created when it is first read. */
  readonly signal: AbortSignal;
  /** The same as `lease.fence`. */
  readonly fence: number;
  readonly lease: Lease;
}

/** What `inspect` returns for a key. */
export interface LockInspection {
  /** The holder, the first of several; undefined when the key is free. */
  readonly owner: string | undefined;
  readonly fence: number | undefined;
  /** Milliseconds until the lease expires unless it is renewed; `Infinity` without a store, 0 when the key is free. */
  readonly remainingMs: number;
  /**
   * Callers waiting for it, as far as this process can tell: its own, and those in the store's queue. One of its own counts twice for as long as the store has
   * queued it but has not answered.
   */
  readonly queueLength: number;
  /** All holders. */
  readonly holders: readonly LockHolder[];
}

/** A key, or several keys to be held together. */
export type LockKeys = string | readonly string[];

const mostKeys = 100;
const oneKey = 'a string that is not empty';
const oneKeyOrMore = 'a string that is not empty, or a list of 1 to 100 of them';
/** The longest key of a store, less the room for the prefix. */
const longestKeyBytes = 480;

/** The attribute of a call that tells which locks it runs under. */
const heldPlace = 'holdfast.lock';

/** A lock that the current call runs under. */
interface Held {
  /** Tells lock objects apart: the store, if there is one. */
  readonly place: object;
  readonly kind: CheckedLockOptions['kind'];
  readonly keys: readonly string[];
  readonly lease: Lease;
}

export class Locks {
  readonly settings: LockSettings;
  private readonly lines = new Map<string, Line>();
  private readonly owners = new Owners();

  constructor(options: CheckedLockOptions) {
    showBriefly(LeaseBase.prototype, ({ key, fence, state }) => ({ key, fence, state }));
    this.settings = new LockSettings(options, this.lines);
  }

  /** Not an async function: its frame would be a quarter of the memory that a waiting caller takes. */
  acquire(keys: LockKeys, mode: LockMode, options?: AcquireOptions): Promise<LeaseBase> {
    const { settings } = this;
    const startMs = settings.clock.now();
    const fail = (error: unknown): Promise<never> => {
      // An invalid argument is not a failed wait, so it emits no event.
      if (!(error instanceof OptionsError)) {
        settings.noteUnavailable(String(keys), settings.clock.now() - startMs, error);
      }
      return Promise.reject(error);
    };
    try {
      const { signal, wait = settings.waitMs } = this.checkCall(options);
      if (typeof keys !== 'string') return this.acquireAll(this.sorted(keys), mode, startMs + wait, signal).catch(fail);
      const lease = this.acquireOne(keys, mode, wait, signal);
      return lease instanceof Promise ? lease.catch(fail) : Promise.resolve(lease);
    } catch (error) {
      return fail(error);
    }
  }

  async tryAcquire(keys: LockKeys, mode: LockMode): Promise<LeaseBase | null> {
    if (typeof keys === 'string') return (await this.tryOne(keys, mode)) ?? null;
    const leases: LeaseBase[] = [];
    try {
      for (const key of this.sorted(keys)) {
        const lease = await this.tryOne(key, mode);
        if (lease === undefined) break;
        leases.push(lease);
      }
    } catch (error) {
      await releaseAll(leases);
      throw error;
    }
    const lease = new MultiLease(leases, this.settings.name);
    if (leases.length === this.sorted(keys).length && lease.held()) return lease;
    await releaseAll(leases);
    return null;
  }

  async run<T>(
    keys: LockKeys,
    mode: LockMode,
    work: (context: LockContext) => T | PromiseLike<T>,
    options?: AcquireOptions,
  ): Promise<Awaited<T>> {
    const { name, clock, store } = this.settings;
    checkArgument(name, 'fn', work, {
      allowed: 'a function',
      parse: (value) => (typeof value === 'function' ? value : undefined),
    });
    const lease =
      (options === undefined && typeof keys === 'string' ? this.takeNow(keys, mode) : undefined) ??
      (await this.acquire(keys, mode, options));
    const context = new RunContext(lease, options?.signal);
    let outcome: Outcome<Awaited<T>>;
    try {
      outcome = {
        ok: true,
        value: await (ambient() === undefined ? work(context) : this.runInCall(keys, context, work)),
      };
    } catch (error) {
      outcome = { ok: false, error };
    }
    const wasHeld = lease.held();
    const endsAtMs = store === undefined ? Number.POSITIVE_INFINITY : clock.now() + lease.remaining();
    const release = await lease.release();
    if (!wasHeld) throw lease.lossError(undefined, outcome);
    // After the end of the lease, the store can only say that it is gone, not that another owner has taken it.
    if (release === 'lost') throw lease.lossError(clock.now() < endsAtMs ? 'taken' : 'expired', outcome);
    if (outcome.ok) return outcome.value;
    throw outcome.error;
  }

  async inspect(key: string): Promise<LockInspection> {
    const { holders, queueLength } = await this.lineOf(key, oneKey).view();
    const { owner, fence, remainingMs = 0 } = holders[0] ?? {};
    return { owner, fence, remainingMs, queueLength, holders };
  }

  async forceRelease(key: string): Promise<boolean> {
    const wasHeld = await this.lineOf(key, oneKey).forceRelease();
    this.settings.noteForced(key);
    return wasHeld;
  }

  private takeNow(key: string, mode: LockMode): LeaseBase | undefined {
    this.refuseReentry([key]);
    const lease = this.lineOf(key).takeNow(mode);
    if (lease !== undefined) this.settings.noteAcquired(lease);
    return lease;
  }

  private async tryOne(key: string, mode: LockMode): Promise<LeaseBase | undefined> {
    const lease = this.takeNow(key, mode);
    if (lease !== undefined) return lease;
    const tried = await this.lineOf(key).tryTake(mode);
    if (tried !== undefined) this.settings.noteAcquired(tried);
    return tried;
  }

  private acquireOne(
    key: string,
    mode: LockMode,
    waitMs: number,
    signal: AbortSignal | undefined,
  ): LeaseBase | Promise<LeaseBase> {
    if (signal?.aborted) throw signal.reason;
    const lease = this.takeNow(key, mode);
    if (lease !== undefined) return lease;
    if (waitMs > 0 && this.settings.queue > 0) return this.lineOf(key).wait(mode, waitMs, signal);
    return this.takeAtOnce(key, mode, waitMs, signal);
  }

  private async takeAtOnce(
    key: string,
    mode: LockMode,
    waitMs: number,
    signal: AbortSignal | undefined,
  ): Promise<LeaseBase> {
    const lease = await this.tryOne(key, mode);
    if (signal?.aborted) {
      await lease?.release();
      throw signal.reason;
    }
    if (lease !== undefined) return lease;
    throw waitMs > 0
      ? this.unavailable(key, 'full', 'it is not free, and "queue" is 0')
      : this.unavailable(key, 'waited', 'it is not free, and the call may not wait');
  }

  private async acquireAll(
    keys: readonly string[],
    mode: LockMode,
    endsAtMs: number,
    signal: AbortSignal | undefined,
  ): Promise<LeaseBase> {
    const { clock, name } = this.settings;
    const leases: LeaseBase[] = [];
    try {
      for (const key of keys) {
        leases.push(await this.acquireOne(key, mode, Math.max(0, endsAtMs - clock.now()), signal));
      }
      const lost = leases.find((lease) => !lease.held());
      if (lost !== undefined) {
        throw this.unavailable(keys.join(', '), 'lost', `"${lost.key}" was lost while it waited for the others`);
      }
      return new MultiLease(leases, name);
    } catch (error) {
      await releaseAll(leases);
      throw error;
    }
  }

  private lineOf(key: string, allowed = oneKeyOrMore): Line {
    const known = this.lines.get(key);
    if (known !== undefined) return known;
    const { settings } = this;
    const { name, store, kind } = settings;
    if (typeof key !== 'string' || key.length === 0) {
      checkArgument(name, 'key', key, { allowed, parse: () => undefined });
    }
    const line =
      store === undefined
        ? new LocalLine(key, settings)
        : new StoredLine(key, settings, new LockTable(settings, store, key, storeKeyOf(kind, key)), this.owners);
    this.lines.set(key, line);
    return line;
  }

  private sorted(keys: unknown): readonly string[] {
    const { name } = this.settings;
    return checkArgument(name, 'key', keys, {
      allowed: oneKeyOrMore,
      parse(value) {
        if (!Array.isArray(value) || value.length < 1 || value.length > mostKeys) return undefined;
        if (!value.every((key) => typeof key === 'string' && key.length > 0)) return undefined;
        return [...new Set<string>(value)].sort();
      },
    });
  }

  private checkCall(options: AcquireOptions | undefined): {
    signal?: AbortSignal | undefined;
    wait?: number | undefined;
  } {
    if (options === undefined) return {};
    return checkOptions(`${this.settings.name}.acquire`, options, {
      signal: optional(having<AbortSignal>('an AbortSignal', 'addEventListener', 'removeEventListener')),
      wait: optional(duration({ min: 0 })),
    });
  }

  private unavailable(key: string, reason: LockUnavailableError['reason'], detail: string): LockUnavailableError {
    const { name: policy, stack } = this.settings;
    return new LockUnavailableError({ policy, key, reason, detail, stack });
  }

  /** A caller that waits for a lock it already runs under would wait for ever. */
  private refuseReentry(keys: readonly string[]): void {
    const around = ambient();
    if (around === undefined || (this.settings.permits > 1 && this.settings.kind === 'semaphore')) return;
    for (let call = around.current(); call !== undefined; call = call.parent) {
      const held = call.attributes[heldPlace] as Held | undefined;
      if (held === undefined || held.place !== this.place || held.kind !== this.settings.kind) continue;
      const key = held.keys.find((one) => keys.includes(one));
      if (key === undefined || !held.lease.held()) continue;
      throw this.unavailable(key, 'reentrant', 'the caller already holds it, and would wait for itself');
    }
  }

  private get place(): object {
    return this.settings.store ?? this.lines;
  }

  /** With `holdfast/context` in use, pipelines under the lock end with it, and re-entry is detected. */
  private async runInCall<T>(
    keys: LockKeys,
    context: LockContext,
    work: (context: LockContext) => T | PromiseLike<T>,
  ): Promise<Awaited<T>> {
    const around = ambient()!;
    const parent = around.current();
    const held: Held = {
      place: this.place,
      kind: this.settings.kind,
      keys: typeof keys === 'string' ? [keys] : keys,
      lease: context.lease,
    };
    const attributes = { ...parent?.attributes, [heldPlace]: held };
    const task = () => work(context);
    const call = parent?.child({ attributes }) ?? new Call(this.settings.clock, task, { attributes });
    call.followSignal(context.signal);
    try {
      return await around.run(call, task);
    } finally {
      call.unfollow();
    }
  }
}

class RunContext implements LockContext {
  readonly lease: Lease;
  private readonly callerSignal: AbortSignal | undefined;
  private joined: AbortSignal | undefined = undefined;

  constructor(lease: Lease, callerSignal: AbortSignal | undefined) {
    this.lease = lease;
    this.callerSignal = callerSignal;
  }

  get fence(): number {
    return this.lease.fence;
  }

  get signal(): AbortSignal {
    if (this.callerSignal === undefined) return this.lease.signal;
    this.joined ??= AbortSignal.any([this.lease.signal, this.callerSignal]);
    return this.joined;
  }
}

async function releaseAll(leases: readonly Lease[]): Promise<void> {
  await Promise.all(leases.map((lease) => lease.release()));
}

function storeKeyOf(kind: CheckedLockOptions['kind'], key: string): string {
  const crypto = globalThis.process?.getBuiltinModule?.('node:crypto');
  // Without node:crypto the store itself reports what is wrong with the key.
  if (isKeyOfStore(key) || crypto === undefined) return `${kind}:${key}`;
  // JSON, because a lone surrogate cannot be encoded as UTF-8: two different keys would get the same hash.
  return `${kind}:sha256:${crypto.createHash('sha256').update(JSON.stringify(key)).digest('hex')}`;
}

function isKeyOfStore(key: string): boolean {
  if (!isWellFormed(key)) return false;
  // A UTF-16 code unit takes at most three bytes in UTF-8.
  return key.length * 3 <= longestKeyBytes || new TextEncoder().encode(key).length <= longestKeyBytes;
}
