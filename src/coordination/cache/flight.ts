/**
 * Flight: one search for the value of one key, and all callers that wait for it.
 *
 * Promise: while the store is up, one process loads. The loaded value is stored only if no process has changed, deleted or loaded the key since the
 * lease was taken. A flight overtaken by an invalidation may still answer its waiters, but puts nothing into memory. The abort of one
 * caller does not affect the others. A flight ends, whatever the loader and the store do.
 * After: Nishtala et al., "Scaling Memcache at Facebook" (NSDI 2013), leases; golang.org/x/sync/singleflight.
 */
import { type Clock, callbackTimer, type Timer } from '../../core/clock.js';
import { LoadBackoffError, messageOf, TimeoutError } from '../../core/errors.js';
import type { QueueNode } from '../../structures/linked-queue.js';
import { instantOf, LeaseKeeper } from '../lease.js';
import type { Answer, Backing, Generations, Seen } from './backing.js';
import type { Batch } from './batch.js';
import type { Engine } from './engine.js';
import type { Held, Placing, Windows } from './held.js';
import { agedTo, type Freshness, freshnessOf, type Known, leftMs, usefulMs } from './known.js';
import { callLoader, type Loader } from './loader.js';
import type { Filled } from './record.js';
import { Waiters } from './waiters.js';
import { Watching } from './watching.js';

/** Where an answer came from. `'wait'`: from a load of another process; `'stale'`: past its `ttl`, within the limits of the options. */
export type CacheSource = 'l1' | 'l2' | 'load' | 'stale' | 'wait';

/** The shortest poll interval for a store that does not report changes, and the longest, which it doubles up to. */
const pollMs = 25;
const longestPollMs = 100;
/** The poll interval if the store does report changes: for a notice that was lost. */
const safetyPollMs = 500;
/** The weight of the newest load in the smoothed load time. */
const newest = 0.3;

/** A load that was overtaken by an invalidation of one of its tags is repeated; this is the limit of loads in all. */
const mostLoads = 3;

/**
 * How many times one flight may be refused the lease because another came first. More mean that something is wrong, and a store that answers at once would
 * block the event loop for ever.
 */
const mostClaims = 200;

const emptyTags: ReadonlyMap<string, number> = /* @__PURE__ */ new Map();

export interface FlightStart<V, K> {
  readonly key: K;
  readonly text: string;
  /** The value that this process holds but cannot serve as it is. */
  readonly held: Held<V> | undefined;
  /** No caller waits: `'verify'` asks the store whether the held value is still the newest, `'refresh'` reloads it if it is. */
  readonly background: 'verify' | 'refresh' | undefined;
  readonly load: Loader<V, K> | undefined;
  readonly batch: Batch<V, K> | undefined;
}

export class Flight<V, K> implements QueueNode<Flight<V, K>> {
  previousInQueue: Flight<V, K> | undefined = undefined;
  nextInQueue: Flight<V, K> | undefined = undefined;
  /** Resolves when the flight has ended. */
  ended!: Promise<void>;
  readonly text: string;
  /** The source of the answer that its waiters got. */
  source: CacheSource = 'load';
  /** The freshness of the value it answered with; undefined for a value that is not kept. */
  freshness: Freshness | undefined = undefined;
  /** Set by an invalidation, or when the flight is over: from then on it puts nothing into memory. */
  isFenced = false;
  /** Whether new callers may join. */
  isLinked = true;
  private readonly engine: Engine<V, K>;
  private readonly start: FlightStart<V, K>;
  private readonly clock: Clock;
  private readonly controller = new AbortController();
  private readonly waiters: Waiters<V>;
  /** When the load began or, before that, the flight. The same instant by the engine's count of invalidated tags is in `mark`. */
  private startedMs: number;
  private mark: number;
  private readonly watching: Watching;
  private toldWhenSettled = 0;
  /** What the memory holds of the key, from this flight or from before it. */
  private held: Held<V> | undefined;
  /** The value that may be served instead of an error, and until when. */
  private fallback: { readonly value: V; readonly untilMs: number; readonly freshness: Freshness } | undefined =
    undefined;
  private softTimer: Timer | undefined = undefined;
  private failures = 0;
  private claims = 0;
  /** The token of its lease, drawn for the first claim. */
  private token = 0;
  private hasTimedOut = false;

  constructor(engine: Engine<V, K>, start: FlightStart<V, K>) {
    this.engine = engine;
    this.start = start;
    this.text = start.text;
    this.held = start.held;
    this.waiters = new Waiters(this, start.background !== undefined);
    const { clock } = engine.settings;
    this.clock = start.background !== undefined ? (clock.background ?? clock) : clock;
    this.mark = engine.mark;
    this.startedMs = clock.now();
    this.watching = new Watching(engine.backing, start.text);
    if (start.held !== undefined && engine.backing !== undefined) this.watching.key();
  }

  /** Whether nothing was held of the key when it began, and it has not been answered yet. */
  get isFirst(): boolean {
    return !this.waiters.isSettled && this.start.held === undefined;
  }

  /** Whether its answer, given or still to come, is valid for a caller that asks now. */
  get isJoinable(): boolean {
    const { watching } = this;
    if (!this.waiters.isSettled || this.engine.backing === undefined) return true;
    return watching.isWhole && this.hasFallback && watching.told === this.toldWhenSettled;
  }

  /** The answer, for one more caller. */
  join(signal: AbortSignal | undefined): Promise<V> {
    // It was answered with a value that has expired since: new callers wait for the load that is still running.
    if (this.waiters.isSettled && !this.hasFallback) this.waiters.open();
    return this.waiters.join(signal);
  }

  /** Ends the flight now: its waiters get the reason, the loader's signal aborts, and the lease is given back. */
  abort(reason: unknown): void {
    this.fail(reason);
    this.controller.abort(reason);
  }

  /** New callers start another flight, and this one puts nothing more into memory. */
  fence(): void {
    this.isFenced = true;
    this.unlink();
  }

  /** New callers start another flight. */
  unlink(): void {
    if (!this.isLinked) return;
    this.isLinked = false;
    this.engine.unlink(this);
  }

  /** Runs to the end. Never rejects. */
  async run(): Promise<void> {
    const { backing } = this.engine;
    try {
      if (backing === undefined) await this.loadHere();
      else await this.search(backing);
    } catch (error) {
      this.fail(error);
    } finally {
      this.fence();
      this.start.batch?.skip(this);
      if (this.softTimer !== undefined) this.clock.cancel(this.softTimer);
      this.watching.end();
      this.engine.ended(this);
    }
  }

  private get isBackground(): boolean {
    return this.waiters.isSettled || this.start.background !== undefined;
  }

  private get isAborted(): boolean {
    return this.controller.signal.aborted;
  }

  private get hasFallback(): boolean {
    return this.fallback !== undefined && this.clock.now() < this.fallback.untilMs;
  }

  private settle(value: V, source: CacheSource, freshness: Freshness | undefined): void {
    if (this.waiters.isSettled) return;
    this.freshness = freshness;
    this.source = source;
    this.toldWhenSettled = this.watching.told;
    this.waiters.settle(value);
  }

  /** Answers and ends: later callers find the value in memory or start another flight. */
  private finish(value: V, freshness: Freshness | undefined, source: CacheSource = 'load'): void {
    this.fence();
    this.settle(value, source, freshness);
  }

  private fail(error: unknown): void {
    this.fence();
    this.waiters.fail(error);
  }

  /** When `softTimeout` has passed, the waiters get the stale value, if there is one. The search goes on. */
  private armSoftTimeout(): void {
    const { softTimeoutMs } = this.engine.settings;
    if (softTimeoutMs === undefined || this.softTimer !== undefined || this.waiters.isSettled) return;
    this.softTimer = callbackTimer(() => this.settleStale());
    this.clock.schedule(this.softTimer, this.clock.now() + softTimeoutMs);
  }

  private settleStale(): boolean {
    if (!this.hasFallback) return false;
    this.settle(this.fallback!.value, 'stale', this.fallback!.freshness);
    return true;
  }

  /** Asks the store until it has an answer, a lease, or no time left to wait. */
  private async search(backing: Backing): Promise<void> {
    const { settings } = this.engine;
    let hasWaited = false;
    let waitEndsMs = Number.POSITIVE_INFINITY;
    let pauseMs = pollMs;
    let answer = await this.firstLook(backing);
    for (;;) {
      if (answer?.version !== undefined) return this.loadWithLease(backing, answer, undefined);
      if (this.isAborted) return;
      if (answer === undefined) return this.loadInOutage();
      const { seen } = answer;
      if (seen === undefined) {
        // Somebody deleted what was there a moment ago.
        this.fallback = undefined;
        answer = await this.claim(backing, undefined, undefined);
        continue;
      }

      const known = await this.judge(backing, seen);
      if (this.isAborted) return;
      const nowMs = this.clock.now();
      const versionAgeMs = seen.ageMs + nowMs - seen.sentMs;
      const { claim, failure } = seen.record;
      this.fallback = undefined;
      if (known !== undefined) {
        const { filled, filledAtMs, value } = known;
        const freshness = freshnessOf(known);
        const isFresh = nowMs < freshness.freshMs;
        this.mayFallBackTo(value, filledAtMs, filled, freshness);
        if (isFresh || nowMs < filledAtMs + filled.staleMs) {
          this.place(known);
          this.settle(value, isFresh ? (hasWaited ? 'wait' : 'l2') : 'stale', freshness);
          if (isFresh && !this.isDue(freshness.freshMs)) return;
        }
      }
      if (claim !== undefined && versionAgeMs < claim.forMs) {
        const leftMs = claim.forMs - versionAgeMs;
        if (this.waiters.isSettled) return this.engine.quiet(this.text, nowMs + Math.min(leftMs, safetyPollMs));
        if (!hasWaited) {
          hasWaited = true;
          this.start.batch?.skip(this);
          waitEndsMs = nowMs + settings.waitTimeoutMs;
          if (this.fallback !== undefined) this.armSoftTimeout();
        }
        if (nowMs >= waitEndsMs) return this.endWait(backing, claim.token);
        await this.wait(Math.min(leftMs, this.pollMs(pauseMs), waitEndsMs - nowMs));
        pauseMs = Math.min(2 * pauseMs, longestPollMs);
        answer = await this.look(backing);
        continue;
      }
      this.failures = failure?.count ?? 0;
      if (failure !== undefined && versionAgeMs < failure.retryInMs) {
        const leftMs = failure.retryInMs - versionAgeMs;
        if (known !== undefined && this.settleStale()) {
          this.place(known);
          return this.engine.backOff(this.text, nowMs + leftMs, failure.count);
        }
        const { name } = settings;
        throw new LoadBackoffError({ policy: name, key: this.text, retryAfterMs: leftMs, detail: failure.message });
      }
      if (this.fallback !== undefined) this.armSoftTimeout();
      const claimed = await this.claim(backing, seen, known);
      if (claimed?.version !== undefined) return this.loadWithLease(backing, claimed, known);
      answer = claimed;
    }
  }

  /** Whether a value that is fresh until `freshMs` is to be reloaded anyway. */
  private isDue(freshMs: number): boolean {
    const { background, held } = this.start;
    return background === 'refresh' && held!.isSameFill(freshMs);
  }

  /** One round trip: if this process knows nothing of a key, it tries to lease it as an absent one; if the key exists, the refusal returns the entry. */
  private async firstLook(backing: Backing): Promise<Answer | undefined> {
    const down = () => undefined;
    const settling = backing.settle('key', [this.text]);
    // The entry may be one whose deletion this process still owes, and a batch's look-up may predate the payment of that debt.
    if (settling !== undefined) return settling.then(() => this.look(backing), down);
    const { batch, held } = this.start;
    if (batch === undefined && held === undefined) return this.claim(backing, undefined, undefined);
    const known = batch?.lookOf(this);
    if (known === undefined) return this.look(backing);
    return known.then((seen) => ({ seen, sentMs: this.startedMs }), down);
  }

  private async look(backing: Backing): Promise<Answer | undefined> {
    this.watching.note();
    const sentMs = this.clock.now();
    try {
      return { seen: await backing.read(this.text), sentMs };
    } catch {
      return undefined;
    }
  }

  /** Writes a lease into the entry. Undefined if the store is down, or keeps refusing. */
  private async claim(
    backing: Backing,
    seen: Seen | undefined,
    known: Known<V> | undefined,
  ): Promise<Answer | undefined> {
    if (seen === undefined) this.engine.forget(this.text, this.held);
    if (++this.claims > mostClaims) return undefined;
    const { leaseMs } = this.engine.settings;
    this.watching.note();
    const nowMs = this.clock.now();
    try {
      return await backing.write(
        this.text,
        { filled: agedTo(known, nowMs), failure: seen?.record.failure, claim: this.newClaim(leaseMs) },
        { ttlMs: ttlWith(leaseMs, known, nowMs), ifVersion: seen?.version ?? 0 },
      );
    } catch {
      return undefined;
    }
  }

  private newClaim(forMs: number) {
    if (this.token === 0) this.token = 1 + Math.floor(this.engine.settings.random() * (2 ** 48 - 1));
    return { token: this.token, forMs };
  }

  /** The decoded value of an entry, if it may be used at all: its serializer is ours, its tags are current, and it decodes. */
  private async judge(backing: Backing, { record, ageMs, sentMs, version }: Seen): Promise<Known<V> | undefined> {
    const { filled } = record;
    const { settings } = this.engine;
    if (filled === undefined || record.serializer !== settings.serializer.mark) return undefined;
    if (filled.tags.size > 0 && !(await this.areTagsCurrent(backing, filled.tags))) return undefined;
    const { held } = this.start;
    const filledAtMs = sentMs - ageMs - filled.ageMs;
    if (held !== undefined && held.version === version) return { filled, filledAtMs, version, value: held.value };
    try {
      const value = (filled.isUndefined ? undefined : settings.serializer.decode(filled.bytes)) as V;
      return { filled, filledAtMs, version, value };
    } catch (error) {
      this.engine.warn('undecodable', this.text, error);
      return undefined;
    }
  }

  /**
   * Whether each tag still has the generation in which the value was loaded. If the store cannot tell, or has no entry of a tag any more, the answer is no: a
   * value that may have been invalidated is not served.
   */
  private async areTagsCurrent(backing: Backing, tags: ReadonlyMap<string, number>): Promise<boolean> {
    this.watching.tags(tags.keys());
    try {
      await backing.settle('tag', tags.keys());
      const current = await backing.generations([...tags.keys()]);
      return [...tags].every(([tag, generation]) => generation > 0 && current.get(tag)!.number === generation);
    } catch {
      return false;
    }
  }

  private place(known: Known<V>): void {
    this.hold(known, known.filled.bytes.length);
  }

  private hold(placing: Placing<V>, bytes: number): void {
    if (this.isFenced) return;
    const { watching } = this;
    // The store reports no changes of a key it does not have.
    const isThere = placing.version > 0;
    const held = this.engine.place(this.text, placing, bytes, isThere && watching.isWhole, this.mark);
    if (held === undefined) return;
    this.held = held;
    if (isThere && watching.hasHeard) held.suspect();
  }

  private mayFallBackTo(value: V, filledAtMs: number, { staleMs, errorMs }: Windows, freshness: Freshness): void {
    this.fallback = { value, untilMs: filledAtMs + Math.max(staleMs, errorMs), freshness };
  }

  private pollMs(pauseMs: number): number {
    if (this.watching.isReady) return safetyPollMs;
    return pauseMs * (0.75 + 0.5 * this.engine.settings.random());
  }

  /** Waits for a notice of a change, but no longer than `ms`. */
  private wait(ms: number): Promise<void> {
    const watch = this.watching.key();
    const { signal } = this.controller;
    return new Promise((resolve) => {
      const end = () => {
        this.clock.cancel(timer);
        watch.listeners.delete(end);
        signal.removeEventListener('abort', end);
        resolve();
      };
      const timer = callbackTimer(end);
      watch.listeners.add(end);
      signal.addEventListener('abort', end);
      this.clock.schedule(timer, this.clock.now() + Math.max(1, ms));
    });
  }

  /** @param token - Of the lease that was waited for. */
  private async endWait(backing: Backing, token: number): Promise<void> {
    if (this.settleStale()) return;
    const { name, waitTimeoutMs, onWaitTimeout } = this.engine.settings;
    if (onWaitTimeout === 'reject') throw new TimeoutError({ policy: name, afterMs: waitTimeoutMs });
    // Without a lease nothing is stored, neither there nor here.
    const watch = this.watching.key();
    const guard = this.guardLease(backing, token);
    watch.listeners.add(guard);
    try {
      this.finish(await this.load(), undefined);
    } finally {
      watch.listeners.delete(guard);
    }
  }

  private async loadWithLease(
    backing: Backing,
    lease: { version: number; sentMs: number },
    known: Known<V> | undefined,
  ) {
    const { leaseMs, random, clock } = this.engine.settings;
    if (this.isAborted) return this.giveBack(backing, lease.version, known);
    const watch = this.watching.key();
    const guard = this.guardLease(backing, this.token);
    let { version } = lease;
    const keeper = new LeaseKeeper(
      {
        ...{ clock, random, leaseMs, marginMs: leaseMs / 10 },
        renew: async () => {
          const nowMs = this.clock.now();
          const record = { filled: agedTo(known, nowMs), claim: this.newClaim(leaseMs) };
          const ttlMs = ttlWith(leaseMs, known, nowMs);
          const answer = await backing.write(this.text, record, { ttlMs, ifVersion: version });
          const renewed = this.mine(answer);
          if (renewed === undefined) return false;
          version = renewed;
          return true;
        },
        // Another process deleted or set the key: the value being loaded may be older than that.
        onLost: (reason) => {
          if (reason === 'taken') this.fence();
        },
      },
      { ...instantOf(clock), monotonicMs: lease.sentMs },
    );
    watch.listeners.add(guard);
    try {
      for (let loads = 1; ; loads++) {
        const versionBefore = version;
        let value: V;
        try {
          value = await this.load();
        } catch (error) {
          await keeper.stop();
          return await this.failed(backing, version, known, error);
        }
        const filled = await this.filledWith(backing, value, known, versionBefore);
        if (filled === 'overtaken' && loads < mostLoads) {
          await keeper.extend();
          continue;
        }
        await keeper.stop();
        if (typeof filled === 'object') return await this.fill(backing, version, value, filled);
        this.finish(value, undefined);
        return await this.giveBack(backing, version, undefined);
      }
    } catch (error) {
      // The error is from one of the user's functions that are applied to the value.
      await keeper.stop();
      await this.giveBack(backing, version, undefined);
      throw error;
    } finally {
      watch.listeners.delete(guard);
    }
  }

  /** Returns a listener that looks, after a change, whether that lease is still in the entry: most changes are the writes of its holder. */
  private guardLease(backing: Backing, token: number): () => void {
    let isLooking = false;
    let isDue = false;
    const look = async () => {
      if (isLooking) {
        isDue = true;
        return;
      }
      isLooking = true;
      do {
        isDue = false;
        try {
          const seen = await backing.read(this.text);
          if (seen?.record.claim?.token !== token) this.unlink();
        } catch {
          // The next notice, or the next renewal, will show it.
        }
      } while (isDue && this.isLinked);
      isLooking = false;
    };
    return () => void look();
  }

  /** The version of our own write, also if a try whose reply was lost has made it. */
  private mine(answer: Answer): number | undefined {
    if (answer.version !== undefined) return answer.version;
    return answer.seen?.record.claim?.token === this.token ? answer.seen.version : undefined;
  }

  private async fill(backing: Backing, version: number, value: V, filled: Filled): Promise<void> {
    const { engine } = this;
    let ifVersion = version;
    for (let tries = 0; tries < 2; tries++) {
      let answer: Answer;
      try {
        answer = await backing.write(this.text, { filled }, { ttlMs: Math.max(1, usefulMs(filled)), ifVersion });
      } catch (error) {
        // It is unknown whether the value is stored, or whether the write was refused because the key was deleted.
        engine.warn('not-stored', this.text, error);
        this.finish(value, undefined);
        return this.giveBack(backing, ifVersion, undefined);
      }
      if (answer.version !== undefined) {
        const stored = { filled, filledAtMs: answer.sentMs, version: answer.version, value };
        this.place(stored);
        return this.finish(value, freshnessOf(stored));
      }
      const renewed = this.mine(answer);
      if (renewed === undefined) {
        const newer = answer.seen && (await this.judge(backing, answer.seen));
        engine.warn('fill-refused', this.text, undefined);
        if (newer === undefined || this.clock.now() >= freshnessOf(newer).freshMs) break;
        return this.finish(newer.value, freshnessOf(newer), 'wait');
      }
      ifVersion = renewed;
    }
    this.finish(value, undefined);
  }

  /** The record of a loaded value. `'uncached'`: the value must not be stored; `'overtaken'`: one of its tags was invalidated during the load. */
  private async filledWith(
    backing: Backing,
    value: V,
    known: Known<V> | undefined,
    versionBefore: number,
  ): Promise<Filled | 'uncached' | 'overtaken'> {
    const { engine } = this;
    const loadMs = this.smoothedLoadMs(known?.filled.loadMs);
    const lifetimes = this.lifetimesOf(value);
    if (lifetimes === undefined) return 'uncached';
    const names = engine.tagsOf(value, this.start.key);
    const bytes = engine.encode(value);
    let tags = emptyTags;
    this.watching.note();
    if (names.length > 0) {
      this.watching.tags(names);
      let current: Generations;
      try {
        await backing.settle('tag', names);
        current = await backing.generationsFor(names, Math.max(1, usefulMs(lifetimes)), this.text);
      } catch (error) {
        engine.warn('not-stored', this.text, error);
        return 'uncached';
      }
      // A tag that changed after the load began makes the value old, whichever process changed it. If the lease was not renewed during the load, its age by
      // the store's clock tells. Otherwise the tag's age is compared with the time counted here; the clocks differ by less than 1 %.
      const loadingMs =
        current.key?.version === versionBefore ? current.key.ageMs : (this.clock.now() - this.startedMs) * 1.01 + 5;
      if ([...current.tags.values()].some(({ ageMs }) => ageMs <= loadingMs)) return 'overtaken';
      tags = new Map([...current.tags].map(([tag, { number }]) => [tag, number]));
    }
    this.engine.warnIfSlow(this.text, loadMs, lifetimes.freshMs);
    return { bytes, isUndefined: value === undefined, ...lifetimes, ageMs: 0, loadMs, tags };
  }

  /** Undefined if the value must not be kept; then the value held before is void too. */
  private lifetimesOf(value: V): Windows | undefined {
    const lifetimes = this.engine.lifetimesOf(value, this.start.key);
    if (lifetimes === undefined) this.engine.forget(this.text, this.held);
    return lifetimes;
  }

  private smoothedLoadMs(before: number | undefined): number {
    const tookMs = this.clock.now() - this.startedMs;
    return before === undefined ? tookMs : newest * tookMs + (1 - newest) * before;
  }

  private async failed(backing: Backing, version: number, known: Known<V> | undefined, error: unknown): Promise<void> {
    // Neither an aborted load nor a get without a loader says anything about the source.
    const { load, loadMany } = this.engine.settings;
    const hasLoader = (this.start.load ?? load ?? loadMany) !== undefined;
    if ((this.isAborted && !this.hasTimedOut) || !hasLoader) {
      this.fail(error);
      return this.giveBack(backing, version, known);
    }
    const count = this.failures + 1;
    const retryInMs = this.engine.backoffMs(count, error);
    const nowMs = this.clock.now();
    const record = { filled: agedTo(known, nowMs), failure: { message: messageOf(error), count, retryInMs } };
    // The count outlives the wait, so that the next failure waits longer.
    const ttlMs = ttlWith(2 * retryInMs + 1_000, known, nowMs);
    // The failure must be published before the waiters try again.
    await backing.write(this.text, record, { ttlMs, ifVersion: version }).catch(() => {});
    this.engine.backOff(this.text, nowMs + retryInMs, count);
    if (!this.settleStale()) this.fail(error);
  }

  /** Removes the lease from the entry, so that no process waits for it. The old value stays, if there is one. */
  private async giveBack(backing: Backing, version: number, known: Known<V> | undefined): Promise<void> {
    const nowMs = this.clock.now();
    const filled = agedTo(known, nowMs);
    try {
      if (filled === undefined) await backing.remove(this.text, version);
      else await backing.write(this.text, { filled }, { ttlMs: ttlWith(1, known, nowMs), ifVersion: version });
    } catch {
      // The lease ends when its time is over.
    }
  }

  /** The store is down: this process is on its own, and writes nothing there. */
  private async loadInOutage(): Promise<void> {
    const { held } = this.start;
    const nowMs = this.clock.now();
    if (held !== undefined && !held.isSuspect && !this.isFenced) {
      if (nowMs < held.staleMs) {
        this.engine.trustInOutage(held, nowMs);
        this.settle(held.value, nowMs < held.freshMs ? 'l1' : 'stale', held);
        if (nowMs < held.freshMs) return;
      }
      if (nowMs < held.retryAtMs && nowMs < held.errorMs) return this.settle(held.value, 'stale', held);
    }
    await this.loadHere();
  }

  /** Loads for this process only. */
  private async loadHere(): Promise<void> {
    const { engine } = this;
    const { held } = this.start;
    if (held !== undefined && !held.isSuspect) {
      this.mayFallBackTo(held.value, 0, held, held);
      if (this.clock.now() < this.fallback!.untilMs) this.armSoftTimeout();
    }
    let value: V;
    try {
      value = await this.load();
    } catch (error) {
      if (this.isAborted && !this.hasTimedOut) throw error;
      const count = (held?.failures ?? 0) + 1;
      const nowMs = this.clock.now();
      engine.backOff(this.text, nowMs + engine.backoffMs(count, error), count);
      if (this.settleStale()) return;
      throw error;
    }
    const lifetimes = this.lifetimesOf(value);
    if (lifetimes === undefined) return this.finish(value, undefined);
    const names = engine.tagsOf(value, this.start.key);
    const tags = names.length === 0 ? emptyTags : new Map(names.map((tag) => [tag, 0]));
    const loadMs = this.smoothedLoadMs(held?.loadMs);
    const placing = { value, version: 0, filled: { ...lifetimes, loadMs, tags }, filledAtMs: this.clock.now() };
    this.hold(placing, engine.sizeOf(value));
    engine.warnIfSlow(this.text, loadMs, lifetimes.freshMs);
    this.finish(value, freshnessOf(placing));
  }

  /** Runs the loader, when its turn at the gate comes, and for at most `hardTimeout`. */
  private async load(): Promise<V> {
    const { engine, clock } = this;
    const { name, hardTimeoutMs } = engine.settings;
    const { signal } = this.controller;
    const { batch, key } = this.start;
    const shared = batch?.load(this, signal);
    // A batch enters the gate itself.
    const gate = shared === undefined ? engine.gate : undefined;
    await gate?.enter(signal);
    const startedMs = clock.now();
    this.startedMs = startedMs;
    this.mark = engine.mark;
    const endsMs = startedMs + hardTimeoutMs;
    const timer = callbackTimer(() => {
      this.hasTimedOut = true;
      this.controller.abort(new TimeoutError({ policy: name, afterMs: hardTimeoutMs }));
    });
    clock.schedule(timer, endsMs);
    let giveUp = () => {};
    try {
      signal.throwIfAborted();
      const loader = this.start.load ?? engine.loader;
      const value = await new Promise<V>((resolve, reject) => {
        giveUp = () => reject(signal.reason);
        signal.addEventListener('abort', giveUp);
        const terms = { signal, clock, endsMs, isBackground: this.isBackground };
        (shared ?? callLoader(loader, key, terms)).then(resolve, reject);
      });
      engine.loaded(this.text, clock.now() - startedMs, this.isBackground, undefined);
      return value;
    } catch (error) {
      engine.loaded(this.text, clock.now() - startedMs, this.isBackground, { error });
      throw error;
    } finally {
      clock.cancel(timer);
      signal.removeEventListener('abort', giveUp);
      gate?.leave();
    }
  }
}

/** The ttl of a record that is needed for `leastMs`, and for as long as the old value in it is useful. */
function ttlWith<V>(leastMs: number, known: Known<V> | undefined, nowMs: number): number {
  return Math.max(leastMs, known === undefined ? 0 : leftMs(known, nowMs), 1);
}
