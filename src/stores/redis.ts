/**
 * Redis store: one string per key, and one script per verb, for all machines that reach the server.
 *
 * Promise: a verb is a single script, so it is applied completely or not at all. Nothing is queued while there is no connection, and nothing is sent twice. A
 * version is the server's time in microseconds, but always greater than the last version of its bucket: it grows across remove, expiry, data loss in a
 * restart, and failover, unless the server's clock goes back by more than the time that passed.
 */

import { showBriefly } from '../core/brief.js';
import { type Clock, systemClock } from '../core/clock.js';
import type { Duration } from '../core/duration.js';
import { messageOf, type StoreError } from '../core/errors.js';
import { listOf } from '../core/list-of.js';
import { checkArgument, checkOptions, duration, having, integer, optional, withDefault } from '../core/options.js';
import { Copies } from './copies.js';
import { type Driver, type IoredisClient, type NodeRedisClient, recognise, subscriberOf } from './redis-drivers.js';
import { failure, failureOf, lost } from './redis-failures.js';
import { guardedWrite, type QueueHome, RedisQueue } from './redis-queue.js';
import {
  consumeScript,
  type RedisScript,
  readManyScript,
  readScript,
  recordOf,
  removeScript,
  tryChannelScript,
  ttlDigits,
  versionDigits,
  writeScript,
} from './redis-scripts.js';
import { RedisWatches, type Subscriber } from './redis-watches.js';
import type {
  ClosableStore,
  Consumed,
  ConsumeOptions,
  Entry,
  NativeCapabilities,
  Refused,
  StoreCallOptions,
  StoreChange,
  StoreRemoveOptions,
  StoreWatch,
  StoreWriteOptions,
  Written,
} from './store.js';
import { prefixField, VerbChecks } from './verb-checks.js';
import { TimedVerb, VerbTimeouts } from './verb-timeouts.js';

export type { IoredisClient, NodeRedisClient } from './redis-drivers.js';
export { fencedSetScript } from './redis-fence.js';

/** Options of {@link redisStore}. */
export interface RedisStoreOptions {
  /** Prepended to each key: stores with different prefixes share a server without conflicts. Default `'holdfast'`. */
  readonly prefix?: string | undefined;
  /** How long a verb waits for the connection and the reply together: milliseconds, or a literal, from 1 ms to 24.8 days. Default `'500ms'`. */
  readonly timeout?: Duration | undefined;
  /** Most bytes of one value, from 1 to 256 MiB. Default 1 MiB. */
  readonly maxValueBytes?: number | undefined;
  /**
   * A second connection, of the same library and to the same servers, for `native.watch` and `native.queue`: a subscribed connection can do little else. For a
   * cluster it is a cluster client too (ioredis: created with `shardedSubscribers: true`). The store does not close it, and stores may share it.
   * Without it the store has neither capability, and waiters for a key poll, in no order.
   */
  readonly subscriber?: IoredisClient | NodeRedisClient | undefined;
  /** Measures `timeout`; the time of entries is the server's. Default `systemClock`. */
  readonly clock?: Clock | undefined;
}

/** What {@link redisStore} returns. */
export interface RedisStore extends ClosableStore {
  readonly native: Required<Pick<NativeCapabilities, 'readMany' | 'consume' | 'guardedWrite'>> &
    Pick<NativeCapabilities, 'watch' | 'queue'>;
}

/**
 * A store in Redis or Valkey, for all processes that reach the server.
 *
 * Takes a client of ioredis or node-redis, which you may also use for other things, and does not close it.
 * A verb waits for a client that is connecting, and fails with `applied: 'no'` if that takes longer than `timeout`. Give
 * ioredis `autoResendUnfulfilledCommands: false`: by default it resends unanswered commands after a broken connection,
 * so that a verb that failed with `applied: 'unknown'` may be applied twice.
 * As safe as the server's clock and its replication: see the table in `docs/stores.md`.
 *
 * @throws {@link OptionsError} `ERR_OPTIONS` at once, for an invalid option or client.
 * @example
 * ```ts no-run
 * import { Redis } from 'ioredis';
 * import { redisStore } from 'holdfast/redis';
 *
 * const client = new Redis({ autoResendUnfulfilledCommands: false });
 * const store = redisStore(client, { prefix: 'shop' });
 * const mine = new TextEncoder().encode('worker 1');
 * const first = await store.write('job', mine, { ttlMs: 10_000, ifVersion: 0 });
 * const second = await store.write('job', mine, { ttlMs: 10_000, ifVersion: 0 });
 * console.log(first.ok, second.ok); // true false
 * ```
 */
export function redisStore(client: IoredisClient | NodeRedisClient, options: RedisStoreOptions = {}): RedisStore {
  const driver = checkArgument('redisStore', 'client', client, {
    allowed: 'a client of ioredis, or of node-redis 5 or later',
    parse: recognise,
  });
  const { prefix, subscriber, timeout, maxValueBytes, clock } = checkOptions('redisStore', options, {
    prefix: prefixField,
    subscriber: optional({
      allowed: driver.isCluster
        ? 'a second cluster client, with ioredis one made with "shardedSubscribers: true" and the same "keyPrefix" or none'
        : 'a second client of the same server, which is not the first one and no cluster client',
      parse: (value) => (value === client ? undefined : subscriberOf(value, driver)),
    }),
    timeout: withDefault(duration({}), 500),
    // Redis closes the connection if one argument is larger than 512 MiB.
    maxValueBytes: withDefault(integer({ min: 1, max: 2 ** 28 }), 2 ** 20),
    clock: withDefault(having<Clock>('a clock such as systemClock', 'now', 'schedule', 'cancel'), systemClock),
  });
  showBriefly(ScriptStore.prototype, ({ prefix }) => ({ store: 'redis', prefix }));
  return new ScriptStore(driver, subscriber, prefix, timeout, clock, new VerbChecks('redis', maxValueBytes));
}

/**
 * Keys are spread over this many buckets. Each bucket keeps its own last version, in the same cluster slot as its keys, so there are few of these to keep.
 */
const bucketCount = 1024;

class ScriptStore implements RedisStore {
  readonly native: RedisStore['native'];
  private readonly watches: RedisWatches | undefined;
  private isClosed = false;
  /** Verbs that wait for a connection, each for at most its timeout. */
  private readonly waiting = new Set<Verb>();
  /** These verbs, and those that wait for a reply. */
  private readonly underWay: VerbTimeouts;
  private readonly driver: Driver;
  /** @internal */ readonly prefix: string;
  private readonly timeoutMs: number;
  private readonly checks: VerbChecks;
  private readonly copies = new Copies();
  private readonly asEntry = (reply: unknown) => entryOf('read', reply, this.copies);
  private readonly asWritten = (reply: unknown): Written | Refused =>
    Array.isArray(reply)
      ? { ok: false, entry: entryOf('write', reply, this.copies) }
      : { ok: true, version: Number(reply) };
  private readonly sendWaiting = () => {
    const verbs = [...this.waiting];
    for (const verb of verbs) this.leave(verb);
    for (const verb of verbs) this.begin(verb);
  };
  /** A broken connection delivers no more replies. If the client resends on a new one, those replies are ignored. */
  private readonly failSent = () => {
    this.underWay.each((verb) => (verb as Verb).connectionBroke());
  };

  constructor(
    driver: Driver,
    subscriber: Subscriber | undefined,
    prefix: string,
    timeoutMs: number,
    clock: Clock,
    checks: VerbChecks,
  ) {
    this.driver = driver;
    this.prefix = prefix;
    this.timeoutMs = timeoutMs;
    this.checks = checks;
    this.underWay = new VerbTimeouts(
      clock,
      timeoutMs,
      () => driver.onBreak(this.failSent),
      () => driver.offBreak(this.failSent),
    );
    const home = this.queueHome();
    const always: Pick<RedisStore['native'], 'readMany' | 'consume' | 'guardedWrite'> = {
      guardedWrite: (key, value, options) => guardedWrite(home, key, value, options),
      readMany: (keys, options) => this.readMany(keys, options),
      consume: (key, options) => this.consume(key, options),
    };
    if (subscriber === undefined) this.native = always;
    else {
      const tryOut = (channel: string) => this.tryOut(channel);
      const watches = new RedisWatches(subscriber, tryOut, timeoutMs, clock, (error) => failureOf('watch', error));
      this.watches = watches;
      const queue = new RedisQueue(home, watches);
      this.native = { ...always, queue, watch: (key, onChange) => this.watch(watches, key, onChange) };
    }
  }

  read(key: string, options?: StoreCallOptions): Promise<Entry | undefined> {
    return this.run('read', options?.signal, this.asEntry, () => {
      this.checks.read(key, options);
      return [readScript, listOf(`${this.bucketKey(hashOf(key))}:${key}`), noWords];
    });
  }

  write(key: string, value: Uint8Array, options: StoreWriteOptions): Promise<Written | Refused> {
    return this.run('write', options?.signal, this.asWritten, () => {
      this.checks.write(key, value, options);
      const { ttlMs, ifVersion } = options;
      const ttl = `${Math.ceil(ttlMs)}`;
      const hash = hashOf(key);
      const bucket = this.bucketKey(hash);
      const given = listOf(recordOf(value, ttl), this.driver.publish, messageFor(hash));
      if (ifVersion !== undefined) given.push(`${ifVersion}`);
      return [writeScript, listOf(`${bucket}:${key}`, bucket), given];
    });
  }

  remove(key: string, options?: StoreRemoveOptions): Promise<boolean> {
    return this.run('remove', options?.signal, isAboveZero, () => {
      this.checks.remove(key, options);
      const hash = hashOf(key);
      const bucket = this.bucketKey(hash);
      const given = listOf(this.driver.publish, this.channelOf(bucket), messageFor(hash));
      if (options?.ifVersion !== undefined) given.push(`${options.ifVersion}`);
      return [removeScript, listOf(`${bucket}:${key}`), given];
    });
  }

  async close(): Promise<void> {
    this.isClosed = true;
    this.sendWaiting();
    this.underWay.close();
    this.watches?.close();
  }

  private async readMany(
    keys: readonly string[],
    options: StoreCallOptions | undefined,
  ): Promise<readonly (Entry | undefined)[]> {
    this.checks.readMany(keys, options);
    // In a cluster one script can access one slot only.
    const groups = new Map<string, number[]>();
    const names = keys.map((key, index) => {
      const bucket = this.bucketKey(hashOf(key));
      const group = this.driver.isCluster ? bucket : '';
      const others = groups.get(group);
      if (others === undefined) groups.set(group, [index]);
      else others.push(index);
      return `${bucket}:${key}`;
    });
    const entries = new Array<Entry | undefined>(keys.length);
    const reads = [...groups.values()].map(async (indexes) => {
      const recordKeys = indexes.map((index) => names[index]!);
      const parse = (replies: unknown) => (replies as unknown[]).map((one) => entryOf('readMany', one, this.copies));
      const read = await this.run('readMany', options?.signal, parse, () => [readManyScript, recordKeys, []]);
      for (const [at, entry] of read.entries()) entries[indexes[at]!] = entry;
    });
    await Promise.all(reads);
    return entries;
  }

  private async consume(key: string, options: ConsumeOptions): Promise<Consumed> {
    const rate = this.checks.consume(key, options);
    // No record has this name: a record has a colon in place of the bar.
    const keys = [`${this.bucketKey(hashOf(key))}|${key}`];
    const given = [rate.intervalMs * 1000, rate.burst, rate.cost].map(String);
    const parse = (reply: unknown) => {
      const [granted, debtUs] = reply as readonly [unknown, unknown];
      return rate.answer(Number(`${debtUs}`) / 1000, Number(granted) === 1);
    };
    return this.run('consume', options.signal, parse, () => [consumeScript, keys, given]);
  }

  private watch(watches: RedisWatches, key: string, onChange: (change: StoreChange) => void): StoreWatch {
    const hash = typeof key === 'string' ? hashOf(key) : 0;
    const watcher = this.checks.watch(key, onChange, watches.watchers, this.isClosed);
    if (watcher.isStarting) watches.add(watcher, messageFor(hash), this.channelOf(this.bucketKey(hash)));
    return watcher;
  }

  private queueHome(): QueueHome {
    return {
      prefix: this.prefix,
      isCluster: this.driver.isCluster,
      publish: this.driver.publish,
      checks: this.checks,
      entryOf: (operation, reply) => entryOf(operation, reply, this.copies),
      run: (operation, script, keys, given, signal) =>
        this.run(
          operation,
          signal,
          (reply) => reply,
          () => [script, keys, given],
        ),
      placeOf: (key) => {
        const hash = hashOf(key);
        const bucket = this.bucketKey(hash);
        return { bucket, channel: this.channelOf(bucket), message: messageFor(hash) };
      },
      watcher: (key, onChange) => this.checks.watch(key, onChange, this.watches!.watchers, this.isClosed),
    };
  }

  private tryOut(channel: string): Promise<void> {
    const bucket = channel.slice(this.driver.keyPrefix.length);
    const parse = () => {};
    return this.run('watch', undefined, parse, () => [tryChannelScript, [bucket], [this.driver.publish, channel]]);
  }

  /** The channel name that the server can match to the bucket's slot: a cluster node delivers only for the slots it serves. */
  private channelOf(bucket: string): string {
    return this.driver.keyPrefix + bucket;
  }

  /** In a cluster, only the part in braces decides the slot. No prefix contains a brace. */
  private bucketKey(hash: number): string {
    return `${this.prefix}{${(hash ^ (hash >>> 16)) & (bucketCount - 1)}}`;
  }

  /** @param parse - Turns the server's reply into the answer. @param prepare - Returns what to send; if it throws, the verb rejects with that. */
  private run<Answer>(
    operation: string,
    signal: AbortSignal | undefined,
    parse: (reply: unknown) => Answer,
    prepare: () => Command,
  ): Promise<Answer> {
    return new Promise((resolve, reject) => {
      const verb = new Verb(this, operation, prepare(), parse, resolve as (answer: unknown) => void, reject);
      this.underWay.begin(verb, signal);
      this.begin(verb);
    });
  }

  private begin(verb: Verb): void {
    const state = this.isClosed ? 'closed' : this.driver.state();
    if (state === 'ready') {
      verb.hasLeft = true;
      const { script, keys, given } = verb;
      try {
        this.driver.runKnown(script.hash, keys, given, this.underWay.hasOne).then(verb.done, verb.sendAgainOrFail);
      } catch (error) {
        verb.sendAgainOrFail(error);
      }
    } else if (state === 'closed') {
      const detail = this.isClosed ? 'the store is closed' : 'the client is closed, or was never connected; connect it';
      verb.fail(failure(verb.operation, 'closed', detail));
    } else {
      if (this.waiting.size === 0) this.driver.onReady(this.sendWaiting);
      this.waiting.add(verb);
    }
  }

  /** @internal */
  failedToSend(verb: Verb, error: unknown): void {
    // The server was restarted, or its scripts were flushed. Nothing has been done yet, so the script is sent again with its text.
    if (!messageOf(error).startsWith('NOSCRIPT')) return verb.fail(failureOf(verb.operation, error));
    const failed = (again: unknown) => verb.fail(failureOf(verb.operation, again));
    const { script, keys, given } = verb;
    try {
      this.driver.run(script.text, keys, given).then(verb.done, failed);
    } catch (again) {
      failed(again);
    }
  }

  /** @internal */
  timeoutOf({ operation, hasLeft }: Verb): StoreError {
    if (hasLeft) return lost(operation, `the server did not answer within ${this.timeoutMs} ms`, undefined, 'timeout');
    const detail = `the client has had no connection to a server for ${this.timeoutMs} ms`;
    return failure(operation, 'timeout', detail);
  }

  /** @internal */
  ended(verb: Verb): void {
    this.underWay.end(verb);
    if (!verb.hasLeft) this.leave(verb);
  }

  private leave(verb: Verb): void {
    if (this.waiting.delete(verb) && this.waiting.size === 0) this.driver.offReady(this.sendWaiting);
  }
}

/** What a verb sends: the script, its keys, and its other arguments. */
type Command = readonly [script: RedisScript, keys: readonly string[], given: readonly (string | Buffer)[]];

const noWords: readonly string[] = [];

function isAboveZero(reply: unknown): boolean {
  return Number(reply) > 0;
}

/** A verb in progress. */
class Verb extends TimedVerb {
  isOver = false;
  /** Whether it may have reached the server. */
  hasLeft = false;
  readonly operation: string;
  readonly script: RedisScript;
  readonly keys: readonly string[];
  readonly given: readonly (string | Buffer)[];
  private readonly store: ScriptStore;
  private readonly parse: (reply: unknown) => unknown;
  private readonly resolve: (answer: unknown) => void;
  private readonly reject: (error: unknown) => void;
  readonly sendAgainOrFail = (error: unknown) => {
    if (!this.isOver) this.store.failedToSend(this, error);
  };
  readonly done = (reply: unknown) => {
    if (isPutOff(reply)) return this.fail(lost(this.operation, putOff));
    this.end();
    try {
      this.resolve(this.parse(reply));
    } catch (error) {
      this.reject(error);
    }
  };

  constructor(
    store: ScriptStore,
    operation: string,
    [script, keys, given]: Command,
    parse: (reply: unknown) => unknown,
    resolve: (answer: unknown) => void,
    reject: (error: unknown) => void,
  ) {
    super();
    this.store = store;
    this.operation = operation;
    this.script = script;
    this.keys = keys;
    this.given = given;
    this.parse = parse;
    this.resolve = resolve;
    this.reject = reject;
  }

  connectionBroke(): void {
    if (this.hasLeft) this.fail(lost(this.operation, 'the connection to the server broke', undefined, 'closed'));
  }

  override timedOut(): void {
    this.fail(this.store.timeoutOf(this));
  }

  override aborted(reason: unknown): void {
    this.fail(reason);
  }

  fail(error: unknown): void {
    this.end();
    this.reject(error);
  }

  private end(): void {
    if (this.isOver) return;
    this.isOver = true;
    this.store.ended(this);
  }
}

/** The reply while another user of the connection has a MULTI open. No script of ours returns a string. */
function isPutOff(reply: unknown): boolean {
  return (typeof reply === 'string' || reply instanceof Uint8Array) && String(reply) === 'QUEUED';
}

const putOff = 'the client is in the middle of a MULTI, whose EXEC may still do it; give the store a client of its own';

/** FNV-1a. It decides where a record is kept, so it must never change. */
function hashOf(key: string): number {
  let hash = 0x811c9dc5;
  for (let index = 0; index < key.length; index++) hash = Math.imul(hash ^ key.charCodeAt(index), 0x01000193);
  return hash;
}

/** What a bucket's channel says about a key. It is short, so about one in four million other keys of the bucket looks the same. */
function messageFor(hash: number): string {
  return hash.toString(36);
}

const headDigits = versionDigits + ttlDigits;

/** The entry in a script's reply: the record and its remaining milliseconds, or an empty list. */
function entryOf(operation: string, reply: unknown, copies: Copies): Entry | undefined {
  const [record, leftMs] = reply as readonly [Buffer?, unknown?];
  if (record === undefined) return undefined;
  const version = numberIn(record, 0, versionDigits);
  const givenMs = numberIn(record, versionDigits, headDigits);
  if (Number.isNaN(version + givenMs)) {
    throw failure(operation, 'schema', 'the key holds data of another program; use another "prefix"');
  }
  const ttlMs = Math.max(0, Number(leftMs));
  return {
    // The client returns a slice of a larger buffer.
    value: copies.of(record, headDigits),
    version,
    // The server's clock may have been put back since the write.
    ageMs: Math.max(0, givenMs - ttlMs),
    ttlMs,
  };
}

/** Parsed digit by digit: substrings would cost a tenth of the round trip. NaN if there is anything but digits. */
function numberIn(record: Uint8Array, start: number, end: number): number {
  let number = 0;
  for (let index = start; index < end; index++) {
    const digit = record[index]! - 48;
    if (!(digit >= 0 && digit <= 9)) return Number.NaN;
    number = number * 10 + digit;
  }
  return number;
}
