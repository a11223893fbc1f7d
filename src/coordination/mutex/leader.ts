/**
 * Leader: one of all candidates at a time, for as long as it can show that it is alive.
 *
 * Promise: the signal ends a term before the next leader's term begins. Fences grow from term to term. A candidate that lost its term runs for election again
 * once its work has stopped. A store that is unreachable for a while does not end a candidacy.
 */
import { showBriefly } from '../../core/brief.js';
import { callbackTimer, longestWaitMs } from '../../core/clock.js';
import { LockLostError, LockUnavailableError, StoreError } from '../../core/errors.js';
import { checkArgument, checkOptions, func, having, optional } from '../../core/options.js';
import { safeLeaseMs } from '../lease.js';
import type { Lease } from './lease-handle.js';
import { type LockContext, type LockInspection, Locks } from './locks.js';
import { type LeaseOptions, leaseFields, leaseTerms } from './options.js';

/** Options of {@link leader}. */
export interface LeaderOptions extends LeaseOptions {
  /** What is being led: all candidates with this name and this store elect one leader. */
  readonly name: string;
}

/** Options of a candidacy, or of observing one. */
export interface LeaderRunOptions {
  /** Ends the candidacy: the signal of the term aborts, and the leadership is released when the function has ended. */
  readonly signal?: AbortSignal | undefined;
}

/** What {@link leader} returns: one candidate. */
export interface Leader {
  readonly name: string;
  /** Whether a function of this candidate is running in a term that is not lost. */
  readonly isLeader: boolean;
  /**
   * Waits to be elected for as long as it takes, runs the function as the leader, and gives the leadership up when the function has ended.
   *
   * When the term is lost, the signal aborts; once the function has ended, the candidate waits to be elected again and then calls it again. The same happens when
   * `assertHeld(minMs)` finds too short a lease that was not renewed in time. So `run` settles only as the function does in a term that was not lost.
   *
   * @throws the signal's reason, when it aborts before the first term; a {@link StoreError} when the store is closed or unusable.
   */
  run<T>(fn: (term: LockContext) => T | PromiseLike<T>, options?: LeaderRunOptions): Promise<Awaited<T>>;
  /**
   * Yields the leader, now and after each change, until the signal aborts or the loop is left. It polls once per second, and continues after the store was
   * unreachable for a while; meanwhile it yields nothing.
   *
   * @throws a {@link StoreError} when the store is closed or unusable.
   */
  observe(options?: LeaderRunOptions): AsyncGenerator<LockInspection, void, void>;
  /**
   * Gives up the term, whose signal aborts, or the candidacy, whose `run` rejects with an `AbortError`. Resolves when no leadership is left.
   */
  resign(): Promise<void>;
}

/** How often an observer polls, and how soon a candidate tries again after the store has failed. */
const lookMs = 1_000;

/**
 * Elects one leader among all processes that run the same work: a scheduler, an exclusive consumer, a cleaner.
 *
 * It is a lock named `name` whose waiters wait without limit. As with every lock, the leader can be the last to notice that
 * it no longer leads, so let the resources that it writes to check `fence`.
 *
 * @param options - `name`, `store`, `ttl`, `margin`, `renewEvery`, `afterRestart`, `on`, `clock`, `random`.
 * @throws {@link OptionsError} `ERR_OPTIONS` at once, for an invalid option.
 * @example
 * ```ts
 * import { leader, memoryStore } from 'holdfast';
 *
 * const candidate = leader({ store: memoryStore(), name: 'scheduler' });
 * const term = await candidate.run(async ({ signal, fence }) => !signal.aborted && fence > 0);
 * console.log(term, candidate.isLeader); // true false
 * ```
 */
export function leader(options: LeaderOptions): Leader {
  const { name: unnamed, ...fields } = leaseFields('leader');
  const checked = checkOptions('leader', options, {
    ...fields,
    name: { allowed: unnamed.allowed, parse: unnamed.parse },
  });
  showBriefly(Candidate.prototype, ({ name, isLeader }) => ({ name, isLeader }));
  return new Candidate(
    new Locks({
      ...{ ...checked, ...leaseTerms('leader', checked) },
      ...{ permits: 1, wait: longestWaitMs, queue: Number.MAX_SAFE_INTEGER, stack: false },
    }),
  );
}

class Candidate implements Leader {
  readonly name: string;
  private readonly locks: Locks;
  private readonly terms = new Set<LockContext>();
  private readonly candidacies = new Map<AbortController, Promise<unknown>>();

  constructor(locks: Locks) {
    this.locks = locks;
    this.name = locks.settings.name;
  }

  get isLeader(): boolean {
    for (const { lease } of this.terms) if (lease.held()) return true;
    return false;
  }

  run<T>(fn: (term: LockContext) => T | PromiseLike<T>, options?: LeaderRunOptions): Promise<Awaited<T>> {
    const resigned = new AbortController();
    const running = this.stand(fn, resigned, options);
    const ended = running.then(
      () => this.candidacies.delete(resigned),
      () => this.candidacies.delete(resigned),
    );
    this.candidacies.set(resigned, ended);
    return running;
  }

  async *observe(options?: LeaderRunOptions): AsyncGenerator<LockInspection, void, void> {
    const signal = this.signalOf('observe', options);
    let last: string | undefined;
    while (!signal?.aborted) {
      const seen = await this.locks.inspect(this.name).catch((error) => {
        if (!isPassing(error)) throw error;
      });
      if (seen !== undefined) {
        const now = `${seen.owner} ${seen.fence}`;
        if (now !== last) yield seen;
        last = now;
      }
      await this.pause(signal);
    }
  }

  async resign(): Promise<void> {
    const ended = [...this.candidacies.values()];
    for (const resigned of this.candidacies.keys()) {
      resigned.abort(new DOMException(`"${this.name}" was told to resign`, 'AbortError'));
    }
    await Promise.all(ended);
  }

  private async stand<T>(
    fn: (term: LockContext) => T | PromiseLike<T>,
    resigned: AbortController,
    options: LeaderRunOptions | undefined,
  ): Promise<Awaited<T>> {
    checkArgument(`${this.name}.run`, 'fn', fn, func());
    const given = this.signalOf('run', options);
    const signal = given === undefined ? resigned.signal : AbortSignal.any([given, resigned.signal]);
    for (;;) {
      let hasBegun = false;
      let failure: unknown;
      const term = async (context: LockContext) => {
        hasBegun = true;
        this.terms.add(context);
        try {
          return await fn(context);
        } catch (error) {
          if (!this.isRunningOut(error, context.lease)) failure = error;
          throw error;
        } finally {
          this.terms.delete(context);
        }
      };
      try {
        return await this.locks.run(this.name, 'exclusive', term, { signal });
      } catch (error) {
        // The function may throw one itself: from another lock, or because it wants its own lease for longer than a lease lasts.
        const isTermLost = error instanceof LockLostError && error !== failure;
        const isOver = hasBegun ? !isTermLost : !isPassing(error);
        if (isOver || signal.aborted) throw error;
        if (!hasBegun) await this.pause(signal);
      }
    }
  }

  /**
   * Whether this is the error of a lease that was not renewed in time and is therefore too short for the function's next step. The term then ends like one
   * that was lost. A lease that is renewed always has more than half of its time left.
   */
  private isRunningOut(error: unknown, lease: Lease): boolean {
    const { ttlMs, marginMs } = this.locks.settings;
    return (
      error instanceof LockLostError &&
      error.reason === 'short' &&
      error.key === lease.key &&
      error.fence === lease.fence &&
      lease.remaining() < safeLeaseMs(ttlMs, marginMs) / 2
    );
  }

  private signalOf(operation: string, options: LeaderRunOptions | undefined): AbortSignal | undefined {
    return checkOptions(`${this.name}.${operation}`, options, {
      signal: optional(having<AbortSignal>('an AbortSignal', 'addEventListener', 'removeEventListener')),
    }).signal;
  }

  /** Resolves after about a second, or when the signal aborts. */
  private pause(signal: AbortSignal | undefined): Promise<void> {
    const { clock, random } = this.locks.settings;
    if (signal?.aborted) return Promise.resolve();
    return new Promise((resolve) => {
      const end = () => {
        clock.cancel(timer);
        signal?.removeEventListener('abort', end);
        resolve();
      };
      const timer = callbackTimer(end);
      signal?.addEventListener('abort', end);
      clock.schedule(timer, clock.now() + lookMs * (0.75 + random() / 2));
    });
  }
}

/** Failures that may pass with time: a wait of weeks that has ended, or a store that cannot be reached. */
function isPassing(error: unknown): boolean {
  if (error instanceof LockUnavailableError) return error.reason === 'waited';
  if (!(error instanceof StoreError)) return false;
  return (
    error.reason === 'timeout' || error.reason === 'busy' || error.reason === 'failed' || error.applied === 'unknown'
  );
}
