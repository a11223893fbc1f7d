/**
 * Engine: the memory of one process, the flights under way, and the public operations.
 *
 * Promise: a hit costs one look-up in the memory and one read of the clock. Flights are kept outside of the memory, so
 * eviction does not affect them. A read that an invalidation overtakes puts nothing into memory.
 */
import type { Clock } from '../../core/clock.js';
import { StoreError } from '../../core/errors.js';
import type { CacheWarning, Events } from '../../core/events.js';
import { show } from '../../core/options.js';
import { type Outcome, rejectLater } from '../../core/outcome.js';
import { turnClockOf } from '../../core/turn-clock.js';
import type { Backoff } from '../../policies/retry/backoff.js';
import { ChurnMap } from '../../structures/churn-map.js';
import { LinkedQueue } from '../../structures/linked-queue.js';
import type { Backing, Generations } from './backing.js';
import { Batch } from './batch.js';
import { type CacheSource, Flight, type FlightStart } from './flight.js';
import type { Gate } from './gate.js';
import { type Early, Held, type Placing, type Windows } from './held.js';
import { type Freshness, usefulMs } from './known.js';
import type { Loader, ManyLoader } from './loader.js';
import { Memory } from './memory.js';
import type { MarkedSerializer } from './serializer.js';

export interface EngineSettings<V, K> {
  readonly name: string;
  readonly events: Events;
  readonly clock: Clock;
  readonly random: () => number;
  readonly load: Loader<V, K> | undefined;
  readonly loadMany: ManyLoader<V, K> | undefined;
  readonly keyText: ((key: K) => string) | undefined;
  readonly lifetimes: (value: V, key: K) => Windows | undefined;
  readonly tags: ((value: V, key: K) => readonly string[]) | undefined;
  readonly serializer: MarkedSerializer;
  readonly max: number;
  /** Undefined: values are not measured. */
  readonly maxBytes: number | undefined;
  readonly maxL1Ms: { readonly told: number; readonly untold: number };
  readonly early: Early;
  readonly jitter: number;
  readonly leaseMs: number;
  readonly softTimeoutMs: number | undefined;
  readonly hardTimeoutMs: number;
  readonly waitTimeoutMs: number;
  readonly onWaitTimeout: 'load' | 'reject';
  readonly failBackoff: Backoff;
  readonly onStoreDown: 'reject' | 'replay';
}

/** Options of one `get` of a cache. */
export interface CacheGetOptions<V, K> {
  /** Ends the wait of this caller alone: `get` rejects with its reason, and others still get the value. */
  readonly signal?: AbortSignal | undefined;
  /** Loads the value, in place of the cache's own `load`. */
  readonly load?: Loader<V, K> | undefined;
}

/** Names a `get` option that would be ignored. A number is the index that `keys.map(users.get)` passes. */
function strangerIn(options: object): string | undefined {
  if (typeof options === 'function') return 'a function';
  for (const name in options) if (name !== 'signal' && name !== 'load') return `"${name}"`;
  return undefined;
}

/** For modules of this package that build on the engine. */
export interface AskOptions<V, K> {
  readonly load: Loader<V, K>;
  /** Whether a value is worth a refresh while it is still served. */
  readonly isRefreshed: (value: V) => boolean;
}

/** A value, its source and its freshness; the freshness is undefined for a value that is not kept. */
export interface Found<V> {
  readonly value: V;
  readonly source: CacheSource;
  readonly freshness: Freshness | undefined;
}

const longestKey = 1_024;
const noTags: readonly string[] = [];
const noGenerations: Generations = { tags: /* @__PURE__ */ new Map(), key: undefined };
const anyKey = () => true;

export class Engine<V, K> {
  readonly settings: EngineSettings<V, K>;
  readonly backing: Backing | undefined;
  readonly gate: Gate | undefined;
  readonly loader: Loader<V, K>;
  private readonly events: Events;
  private readonly clock: Clock;
  private readonly keyText: ((key: K) => string) | undefined;
  private readonly memory: Memory<V>;
  /** Flights that new callers may join. */
  private readonly flights = new ChurnMap<string, Flight<V, K>>();
  private readonly running = new LinkedQueue<Flight<V, K>>();
  /** Flights under way that new callers may not join any more, by key. */
  private readonly parted = new Map<string, Set<Flight<V, K>>>();
  private readonly heldByTag = new Map<string, Set<Held<V>>>();
  private readonly listeners = new WeakMap<Held<V>, (kind: 'changed' | 'gap') => void>();
  /** How many tags have been invalidated here so far. */
  mark = 0;
  /** For each tag that was invalidated here during a flight, the mark. The tags of a flight's value are not known until it ends. */
  private readonly recentTags = new Map<string, number>();
  /** Counts invalidations of keys, so that a write can tell whether its own was the last. */
  private fences = 0;
  private gapToldMs = Number.NEGATIVE_INFINITY;
  private isClosed = false;

  constructor(settings: EngineSettings<V, K>, backing: Backing | undefined, gate: Gate | undefined) {
    this.settings = settings;
    this.events = settings.events;
    this.clock = settings.clock;
    this.keyText = settings.keyText;
    this.backing = backing;
    this.gate = gate;
    const { max, maxBytes, clock, load, loadMany } = settings;
    this.memory = new Memory({ max, maxBytes, clock: turnClockOf(clock), onDropped: (held) => this.dispose(held) });
    this.loader =
      load ??
      (loadMany === undefined
        ? () => {
            throw new TypeError(
              `cache "${settings.name}" has no "load"; give the factory one, or this call: get(key, { load })`,
            );
          }
        : async (key, context) => {
            const [value] = await loadMany([key], context);
            if (value instanceof Error) throw value;
            return value as V;
          });
  }

  get size(): number {
    return this.memory.size;
  }

  get(key: K, options?: CacheGetOptions<V, K>): Promise<V> {
    let text: string;
    try {
      text = this.textOf(key);
    } catch (error) {
      return rejectLater(error);
    }
    if (this.flights.size > 0 && options === undefined && !this.events.heard) {
      const flight = this.flights.get(text);
      // While its first load is under way, nothing of the key is in memory, and a caller that joins it needs no clock.
      if (flight?.isFirst === true) return flight.join(undefined);
    }
    if (options === undefined) {
      const held = this.memory.peek(text);
      if (held !== undefined && this.memory.isFine(held)) {
        if (this.events.heard) this.tell(text, 'l1', 0);
        return held.promise;
      }
    }
    return this.search(key, text, this.memory.get(text), options, undefined);
  }

  peek(key: K): V | undefined {
    const text = this.textOf(key);
    const held = this.memory.peek(text);
    if (held === undefined || !this.memory.isFine(held)) return undefined;
    if (this.events.heard) this.tell(text, 'l1', 0);
    return held.value;
  }

  /** Like `get`, but also tells how old the value is. */
  async ask(key: K, { load, isRefreshed }: AskOptions<V, K>): Promise<Found<V>> {
    this.checkOpen('get');
    const text = this.textOf(key);
    const held = this.memory.get(text);
    const nowMs = this.clock.now();
    if (held?.isTrusted(nowMs)) {
      const source = isRefreshed(held.value)
        ? this.usable(key, text, held, load, nowMs)
        : nowMs < held.freshMs
          ? 'l1'
          : undefined;
      if (source !== undefined) {
        if (this.events.heard) this.tell(text, source, 0);
        return { value: held.value, source, freshness: held };
      }
    }
    const { flight, isOpener } = this.board(key, text, held, load, undefined);
    const value = await flight.join(undefined);
    const source = sourceOf(flight, isOpener);
    if (this.events.heard) this.tell(text, source, this.clock.now() - nowMs);
    return { value, source, freshness: flight.freshness };
  }

  async getMany(keys: readonly K[], options?: { readonly signal?: AbortSignal | undefined }): Promise<Outcome<V>[]> {
    const { signal } = options ?? {};
    signal?.throwIfAborted();
    const { name, clock, hardTimeoutMs, loadMany: loader } = this.settings;
    if (!Array.isArray(keys)) throw new TypeError(`cache "${name}": getMany takes an array of keys, got ${show(keys)}`);
    const batch = new Batch<V, K>({ loader, gate: this.gate, clock, hardTimeoutMs });
    const opened: Flight<V, K>[] = [];
    const start = { batch, opened };
    const answers = keys.map((key) => {
      try {
        const text = this.textOf(key);
        return this.search(key, text, this.memory.get(text), options, start);
      } catch (error) {
        return rejectLater(error);
      }
    });
    batch.seal(this.backing);
    for (const flight of opened) this.launch(flight);
    const outcomes = await Promise.all(
      answers.map((answer) =>
        answer.then(
          (value): Outcome<V> => ({ ok: true, value }),
          (error): Outcome<V> => ({ ok: false, error }),
        ),
      ),
    );
    signal?.throwIfAborted();
    return outcomes;
  }

  async set(key: K, value: V): Promise<void> {
    const text = this.checkedText('set', key);
    const lifetimes = this.lifetimesOf(value, key);
    if (lifetimes === undefined) return this.delete(key);
    const { backing } = this;
    const names = this.tagsOf(value, key);
    if (backing === undefined) {
      const bytes = this.sizeOf(value);
      const filled = { ...lifetimes, loadMs: 0, tags: new Map(names.map((tag) => [tag, 0])) };
      this.fence(text);
      this.place(text, { value, version: 0, filled, filledAtMs: this.clock.now() }, bytes, false, this.mark);
      return;
    }
    // Encoded before anything is changed: an invalid value leaves everything as it was.
    const bytes = this.encode(value);
    this.fence(text);
    const { mark } = this;
    const ttlMs = Math.max(1, usefulMs(lifetimes));
    let current = noGenerations;
    try {
      await backing.settle('tag', names);
      if (names.length > 0) current = await backing.generationsFor(names, ttlMs);
    } catch (error) {
      return this.setLater(backing, text, error);
    }
    const tags = new Map([...current.tags].map(([tag, { number }]) => [tag, number]));
    const filled = { bytes, isUndefined: value === undefined, ...lifetimes, ageMs: 0, loadMs: 0, tags };
    const fences = this.fences;
    let answer: Awaited<ReturnType<Backing['write']>>;
    try {
      answer = await backing.write(text, { filled }, { ttlMs });
    } catch (error) {
      this.fence(text);
      return this.setLater(backing, text, error);
    }
    this.fence(text);
    // A concurrent invalidation may have been applied after this write although it was answered before.
    if (this.fences !== fences + 1 || this.mark !== mark || answer.version === undefined) return;
    const placing = { value, version: answer.version, filled, filledAtMs: answer.sentMs };
    this.place(text, placing, bytes.length, false, mark);
  }

  /** The store did not take the value: at least invalidate the one it has. */
  private async setLater(backing: Backing, text: string, error: unknown): Promise<void> {
    if (this.settings.onStoreDown === 'reject') throw error;
    await backing.invalidate(text);
    this.fence(text);
  }

  async delete(key: K): Promise<void> {
    const text = this.checkedText('delete', key);
    this.fence(text);
    try {
      await this.backing?.invalidate(text);
    } finally {
      this.fence(text);
    }
  }

  /** @param mayHave - The keys whose values can have the tag. */
  async invalidateTag(tag: string, mayHave: (key: string) => boolean = anyKey): Promise<void> {
    this.checkOpen('invalidateTag');
    this.checkTags([tag]);
    this.fenceTag(tag, mayHave);
    try {
      await this.backing?.invalidateTag(tag);
    } finally {
      this.fenceTag(tag, mayHave);
    }
  }

  async close(): Promise<void> {
    this.isClosed = true;
    const ends: Promise<void>[] = [];
    for (let flight = this.running.first; flight !== undefined; flight = flight.nextInQueue) {
      flight.abort(this.closedError('get'));
      ends.push(flight.ended);
    }
    await Promise.all(ends);
    this.memory.clear();
    await this.backing?.close();
  }

  /** The part of `get` that the memory cannot answer at once. */
  private search(
    key: K,
    text: string,
    held: Held<V> | undefined,
    options: CacheGetOptions<V, K> | undefined,
    many: { readonly batch: Batch<V, K>; readonly opened: Flight<V, K>[] } | undefined,
  ): Promise<V> {
    const { signal, load } = options ?? {};
    const stranger = options === undefined ? undefined : strangerIn(options);
    if (stranger !== undefined) {
      return rejectLater(new TypeError(`cache "${this.settings.name}": get takes { signal, load }, got ${stranger}`));
    }
    if (signal?.aborted) return rejectLater(signal.reason);
    if (this.isClosed) return rejectLater(this.closedError('get'));
    const nowMs = this.clock.now();
    if (held?.isTrusted(nowMs)) {
      const source = this.usable(key, text, held, load, nowMs);
      if (source !== undefined) {
        if (this.events.heard) this.tell(text, source, 0);
        return held.promise;
      }
    }
    try {
      const { flight, isOpener } = this.board(key, text, held, load, many);
      const answer = flight.join(signal);
      return this.events.heard ? this.told(answer, text, flight, isOpener, nowMs) : answer;
    } catch (error) {
      return rejectLater(error);
    }
  }

  /** The flight that new callers may join; starts one if there is none. */
  private board(
    key: K,
    text: string,
    held: Held<V> | undefined,
    load: Loader<V, K> | undefined,
    many: { readonly batch: Batch<V, K>; readonly opened: Flight<V, K>[] } | undefined,
  ): { readonly flight: Flight<V, K>; readonly isOpener: boolean } {
    const there = this.flights.get(text);
    if (there?.isJoinable === true) return { flight: there, isOpener: false };
    there?.unlink();
    if (text.length > longestKey || text.length === 0) throw badKey(this.settings.name, text);
    const flight = this.open({ key, text, held, background: undefined, load, batch: many?.batch });
    if (many === undefined) this.launch(flight);
    else {
      many.batch.add(flight, key);
      many.opened.push(flight);
    }
    return { flight, isOpener: true };
  }

  /** Whether the held value can be served. Starts a refresh if one is due. */
  private usable(
    key: K,
    text: string,
    held: Held<V>,
    load: Loader<V, K> | undefined,
    nowMs: number,
  ): CacheSource | undefined {
    const { early, random } = this.settings;
    if (nowMs < held.checkMs) return 'l1';
    const isFresh = nowMs < held.freshMs;
    if (isFresh || nowMs < held.staleMs) {
      const mayRefresh = nowMs >= held.quietUntilMs && nowMs >= held.retryAtMs && this.flights.get(text) === undefined;
      const isEarly = nowMs >= held.earlyMs && (early !== 'xfetch' || held.drawsRefresh(nowMs, random));
      const isDue = !isFresh || isEarly;
      if (mayRefresh && (isDue || nowMs >= held.verifyMs)) {
        const background = isDue ? 'refresh' : 'verify';
        this.launch(this.open({ key, text, held, background, load, batch: undefined }));
      }
      return isFresh ? 'l1' : 'stale';
    }
    return nowMs < held.errorMs && nowMs < held.retryAtMs ? 'stale' : undefined;
  }

  private open(start: FlightStart<V, K>): Flight<V, K> {
    const flight = new Flight(this, start);
    this.flights.add(start.text, flight);
    return flight;
  }

  private launch(flight: Flight<V, K>): void {
    this.running.add(flight);
    flight.ended = flight.run();
  }

  private async told(
    answer: Promise<V>,
    text: string,
    flight: Flight<V, K>,
    isOpener: boolean,
    fromMs: number,
  ): Promise<V> {
    const value = await answer;
    this.tell(text, sourceOf(flight, isOpener), this.clock.now() - fromMs);
    return value;
  }

  private tell(key: string, source: CacheSource, durationMs: number): void {
    this.events.emit({ type: 'cache-get', name: this.settings.name, key, source, durationMs });
  }

  // For flights.

  unlink(flight: Flight<V, K>): void {
    this.flights.delete(flight.text);
    if (flight.isFenced) return;
    const parted = this.parted.get(flight.text);
    if (parted === undefined) this.parted.set(flight.text, new Set([flight]));
    else parted.add(flight);
  }

  ended(flight: Flight<V, K>): void {
    this.running.remove(flight);
    const parted = this.parted.get(flight.text);
    if (parted?.delete(flight) && parted.size === 0) this.parted.delete(flight.text);
    if (this.running.size === 0) this.recentTags.clear();
  }

  /**
   * Puts a value into memory, unless a newer one is there or one of its tags has been invalidated here since.
   *
   * @param isTold - Whether every change since before the store was asked has been reported.
   */
  place(text: string, placing: Placing<V>, bytes: number, isTold: boolean, mark: number): Held<V> | undefined {
    const there = this.memory.peek(text);
    if (there !== undefined && there.version > placing.version && placing.version > 0) return undefined;
    for (const tag of placing.filled.tags.keys()) if ((this.recentTags.get(tag) ?? 0) > mark) return undefined;
    if (this.isClosed) return undefined;
    const { early, random, maxL1Ms, maxBytes } = this.settings;
    const nowMs = this.clock.now();
    const boundMs =
      this.backing === undefined ? Number.POSITIVE_INFINITY : nowMs + (isTold ? maxL1Ms.told : maxL1Ms.untold);
    const held = new Held(text, placing, nowMs, boundMs, early, random);
    this.watch(text, held);
    // A change since the store was asked may not have been reported for this copy.
    if (!isTold && held.version > 0 && held.watches.some(({ isReady }) => isReady)) held.suspect();
    for (const tag of held.tags.keys()) {
      let tagged = this.heldByTag.get(tag);
      if (tagged === undefined) {
        tagged = new Set();
        this.heldByTag.set(tag, tagged);
      }
      tagged.add(held);
    }
    this.memory.set(held, maxBytes === undefined ? undefined : Math.max(1, bytes + 2 * text.length));
    return held;
  }

  /** The store has no entry of the key, so the held value is invalid too. */
  forget(text: string, held: Held<V> | undefined): void {
    if (this.memory.peek(text) === held) this.memory.delete(text);
  }

  /** Another process is refreshing the key. */
  quiet(text: string, untilMs: number): void {
    this.memory.peek(text)?.quiet(untilMs);
  }

  backOff(text: string, retryAtMs: number, failures: number): void {
    const held = this.memory.peek(text);
    if (held === undefined) return;
    held.retryAtMs = retryAtMs;
    held.failures = failures;
    held.quiet(retryAtMs);
  }

  backoffMs(attempt: number, error: unknown): number {
    const { failBackoff, random } = this.settings;
    const ms = failBackoff({ attempt, previousDelayMs: undefined, error, random });
    return Number.isFinite(ms) && ms > 0 ? ms : 0;
  }

  trustInOutage(held: Held<V>, nowMs: number): void {
    held.boundMs = nowMs + this.settings.maxL1Ms.untold;
    held.plan();
    held.quiet(nowMs + 500);
  }

  /** The lifetimes of a value, with random jitter. */
  lifetimesOf(value: V, key: K): Windows | undefined {
    const lifetimes = this.settings.lifetimes(value, key);
    if (lifetimes === undefined) return undefined;
    const { jitter, random } = this.settings;
    const cutMs = lifetimes.freshMs * jitter * random();
    // All three are cut by the same time, so a value stays stale for as long as configured.
    const { freshMs, staleMs, errorMs } = lifetimes;
    return { freshMs: freshMs - cutMs, staleMs: staleMs - cutMs, errorMs: errorMs - cutMs };
  }

  tagsOf(value: V, key: K): readonly string[] {
    const { tags } = this.settings;
    if (tags === undefined) return noTags;
    const names = tags(value, key);
    this.checkTags(names);
    return [...new Set(names)];
  }

  /** Also encodes undefined, which JSON cannot represent. */
  encode(value: V): Uint8Array {
    return value === undefined ? new Uint8Array(0) : this.settings.serializer.encode(value);
  }

  sizeOf(value: V): number {
    return this.settings.maxBytes === undefined ? 0 : this.encode(value).length;
  }

  loaded(
    key: string,
    durationMs: number,
    isBackground: boolean,
    failure: { readonly error: unknown } | undefined,
  ): void {
    if (!this.events.heard) return;
    const { name } = this.settings;
    const outcome: Outcome<undefined> =
      failure === undefined ? { ok: true, value: undefined } : { ok: false, error: failure.error };
    this.events.emit({ type: 'cache-load', name, key, durationMs, isBackground, outcome });
  }

  warn(reason: CacheWarning, key: string, error: unknown): void {
    if (this.events.heard) this.events.emit({ type: 'cache-warning', name: this.settings.name, key, reason, error });
  }

  warnIfSlow(text: string, loadMs: number, ttlMs: number): void {
    if (loadMs > 0.3 * ttlMs) this.warn('slow-load', text, undefined);
  }

  // Invalidation.

  private fence(text: string): void {
    this.fences++;
    this.memory.delete(text);
    this.flights.get(text)?.fence();
    for (const flight of this.parted.get(text) ?? []) flight.isFenced = true;
  }

  private fenceTag(tag: string, mayHave: (key: string) => boolean): void {
    this.mark++;
    if (this.running.size > 0) this.recentTags.set(tag, this.mark);
    // The tags of the values being loaded are not known yet, so new callers do not join those flights.
    for (const flight of this.flights.values()) if (mayHave(flight.text)) flight.unlink();
    for (const { text } of [...(this.heldByTag.get(tag) ?? [])]) this.memory.delete(text);
  }

  /** Subscribes to changes of the key and its tags for as long as the value is held. */
  private watch(text: string, held: Held<V>): void {
    const { backing } = this;
    if (backing === undefined) return;
    const hear = (kind: 'changed' | 'gap') => {
      held.suspect();
      if (kind === 'gap') this.tellGap();
    };
    held.watches.push(backing.watch('key', text));
    for (const tag of held.tags.keys()) held.watches.push(backing.watch('tag', tag));
    for (const watch of held.watches) watch.listeners.add(hear);
    this.listeners.set(held, hear);
  }

  private dispose(held: Held<V>): void {
    for (const watch of held.watches) {
      watch.listeners.delete(this.listeners.get(held)!);
      this.backing!.release(watch);
    }
    held.watches.length = 0;
    for (const tag of held.tags.keys()) {
      const tagged = this.heldByTag.get(tag);
      if (tagged?.delete(held) && tagged.size === 0) this.heldByTag.delete(tag);
    }
  }

  /** Every watch reports the same gap, so it is passed on at most once per second. */
  private tellGap(): void {
    const nowMs = this.clock.now();
    if (nowMs - this.gapToldMs < 1_000) return;
    this.gapToldMs = nowMs;
    this.warn('gap', '', undefined);
  }

  // Checks.

  private checkedText(operation: string, key: K): string {
    this.checkOpen(operation);
    const text = this.textOf(key);
    if (text.length === 0 || text.length > longestKey) throw badKey(this.settings.name, text);
    return text;
  }

  private textOf(key: K): string {
    const { keyText } = this;
    const text: unknown = keyText === undefined ? key : keyText(key);
    return typeof text === 'string' ? text : this.numberText(text);
  }

  private numberText(text: unknown): string {
    const { keyText, name } = this.settings;
    if (typeof text === 'number' || typeof text === 'bigint' || typeof text === 'boolean') return String(text);
    const advice =
      keyText === undefined ? 'give the cache the option "key", (key) => string' : '"key" must answer a string';
    throw new TypeError(
      `cache "${name}": a key must be a string, a number, a bigint or a boolean, got ${show(text)}; ${advice}`,
    );
  }

  private checkTags(tags: readonly string[]): void {
    const isRight = (tag: unknown) => typeof tag === 'string' && tag.length > 0 && tag.length <= 200;
    if (Array.isArray(tags) && tags.length <= 100 && tags.every(isRight)) return;
    const allowed = 'at most 100 tags, each a string of 1 to 200 characters';
    throw new TypeError(`cache "${this.settings.name}": there may be ${allowed}, got ${show(tags)}`);
  }

  private checkOpen(operation: string): void {
    if (this.isClosed) throw this.closedError(operation);
  }

  private closedError(operation: string): StoreError {
    const detail = `the cache "${this.settings.name}" is closed`;
    return new StoreError({ store: 'cache', operation, reason: 'closed', applied: 'no', detail });
  }
}

function sourceOf<V, K>({ source }: Flight<V, K>, isOpener: boolean): CacheSource {
  return !isOpener && source === 'load' ? 'wait' : source;
}

function badKey(name: string, text: string): TypeError {
  const advice = 'hash what is longer';
  return new TypeError(`cache "${name}": a key must have 1 to ${longestKey} characters, got ${text.length}; ${advice}`);
}
