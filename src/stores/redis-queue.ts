/**
 * Redis queue: which tickets of this process wait in which queue of the server, and the hints that tell them their turn.
 *
 * Promise: a hint is missed only where a gap is reported. A ticket that was granted or has left is no longer listened for. A process listens on one channel;
 * in a cluster, on one for each bucket of keys that it waits for.
 */
import { failure } from './redis-failures.js';
import { enterScript, guardedWriteScript, leaveScript, passScript, sizeScript } from './redis-queue-scripts.js';
import { type RedisScript, recordOf } from './redis-scripts.js';
import type { RedisWatches } from './redis-watches.js';
import type {
  Entry,
  GuardOptions,
  GuardRefused,
  QueueEnterOptions,
  QueueRefused,
  QueueTurn,
  StoreCallOptions,
  StoreChange,
  StoreQueue,
  StoreRemoveOptions,
  StoreWriteOptions,
  Written,
} from './store.js';
import type { VerbChecks } from './verb-checks.js';
import type { Watcher } from './watchers.js';

/** What a queue needs of its store. */
export interface QueueHome {
  readonly prefix: string;
  readonly isCluster: boolean;
  readonly publish: 'PUBLISH' | 'SPUBLISH';
  readonly checks: VerbChecks;
  /** The bucket of a key, the bucket's channel, and the message for the key there. */
  placeOf(key: string): { readonly bucket: string; readonly channel: string; readonly message: string };
  run(
    operation: string,
    script: RedisScript,
    keys: readonly string[],
    given: readonly (string | Buffer)[],
    signal: AbortSignal | undefined,
  ): Promise<unknown>;
  entryOf(operation: string, reply: unknown): Entry | undefined;
  watcher(key: string, onChange: (change: StoreChange) => void): Watcher;
}

/** What a script returns when it does not grant the key. */
type RefusedReply = [record: Buffer | string, leftMs: unknown, quietForMs: unknown];

/** A place that is not asked for again ends soon. */
const longestPlaceMs = 60_000;
/** No lease is longer, because no timer is. */
const longestQuietMs = 2 ** 31;

function checkMs(operation: string, name: string, value: unknown, max: number): void {
  if (typeof value === 'number' && value >= 0 && value <= max) return;
  throw failure(operation, 'invalid', `"${name}" must be a number from 0 to ${max}, got ${String(value)}`);
}

function checkTicket(operation: string, ticket: unknown): void {
  if (typeof ticket === 'string' && /^[\x21-\x7e]{1,128}$/.test(ticket)) return;
  throw failure(operation, 'invalid', 'a ticket is a string of 1 to 128 characters of ASCII without spaces');
}

/** Writes, unless the server has recently restarted. */
export async function guardedWrite(
  home: QueueHome,
  key: string,
  value: Uint8Array,
  options: StoreWriteOptions & GuardOptions,
): Promise<Written | GuardRefused> {
  const { quietMs, ...write } = options;
  home.checks.write(key, value, write);
  checkMs('guardedWrite', 'quietMs', quietMs ?? 0, longestQuietMs);
  const { ttlMs, ifVersion, signal } = write;
  const ttl = `${Math.ceil(ttlMs)}`;
  const given = [recordOf(value, ttl), ttl, `${ifVersion ?? ''}`];
  const reply = await run(home, 'write', guardedWriteScript, key, quietMs, given, signal);
  return isRefused(reply) ? refused(home, reply) : { ok: true, version: Number(reply) };
}

export class RedisQueue implements StoreQueue {
  private readonly home: QueueHome;
  private readonly watches: RedisWatches;
  /** Identifies this process in the names of its channels. */
  private readonly id = globalThis.crypto.randomUUID();
  private readonly listening = new Map<string, Listening>();

  constructor(home: QueueHome, watches: RedisWatches) {
    this.home = home;
    this.watches = watches;
  }

  async enter(
    key: string,
    ticket: string,
    value: Uint8Array,
    options: QueueEnterOptions,
  ): Promise<Written | QueueRefused> {
    const { home } = this;
    const { ttlMs, placeMs, quietMs, onTurn, signal } = options;
    home.checks.write(key, value, { ttlMs, signal });
    checkTicket('enter', ticket);
    checkMs('enter', 'placeMs', placeMs, longestPlaceMs);
    checkMs('enter', 'quietMs', quietMs ?? 0, longestQuietMs);
    const channel = `${home.isCluster ? home.placeOf(key).channel : home.prefix}!${this.id}`;
    const waits = placeMs > 0 && onTurn !== undefined;
    const known = this.listening.get(ticket);
    // If the process already listens on the channel, the ticket is listened for before it joins the queue, so that no hint is missed.
    if (waits && this.watches.hears(channel)) this.listen(ticket, channel, onTurn);
    const isTold = this.listening.get(ticket)?.isTold === true;
    const ttl = `${Math.ceil(ttlMs)}`;
    const given = [ticket, recordOf(value, ttl), ttl, `${Math.ceil(placeMs)}`, channel];
    let reply: unknown;
    try {
      reply = await run(home, 'enter', enterScript, key, quietMs, given, signal);
    } catch (error) {
      // If the ticket did join the queue, the caller enters again, or takes it out.
      if (known === undefined) this.forget(ticket);
      throw error;
    }
    if (!isRefused(reply)) {
      this.forget(ticket);
      return { ok: true, version: Number(reply) };
    }
    if (waits) this.listen(ticket, channel, onTurn).hearNext();
    return { ...refused(home, reply), isTold };
  }

  async pass(key: string, options: StoreRemoveOptions & GuardOptions = {}): Promise<boolean> {
    const { quietMs, ...remove } = options;
    this.home.checks.remove(key, remove);
    checkMs('pass', 'quietMs', quietMs ?? 0, longestQuietMs);
    const given = [`${remove.ifVersion ?? ''}`];
    return Number(await run(this.home, 'remove', passScript, key, quietMs, given, remove.signal)) > 0;
  }

  async leave(key: string, tickets: readonly string[], options?: StoreCallOptions): Promise<Entry | undefined> {
    const { home } = this;
    home.checks.read(key, options);
    for (const ticket of tickets) {
      checkTicket('leave', ticket);
      this.forget(ticket);
    }
    const [record, , line, places] = keysOf(home, key);
    const reply = await home.run('leave', leaveScript, [record, line, places], tickets, options?.signal);
    return home.entryOf('leave', reply);
  }

  async size(key: string, options?: StoreCallOptions): Promise<number> {
    const { home } = this;
    home.checks.read(key, options);
    const [, , line] = keysOf(home, key);
    return Number(await home.run('read', sizeScript, [line], [], options?.signal));
  }

  private listen(ticket: string, channel: string, onTurn: (turn: QueueTurn) => void): Listening {
    let listening = this.listening.get(ticket);
    // A subscription that was not confirmed in time is asked for again: the server may only have been slow.
    if (listening === undefined || listening.isOver) {
      listening?.close();
      listening = new Listening(this.home, this.watches, ticket, channel, onTurn);
      this.listening.set(ticket, listening);
    }
    return listening;
  }

  private forget(ticket: string): void {
    const listening = this.listening.get(ticket);
    if (listening === undefined) return;
    this.listening.delete(ticket);
    listening.close();
  }
}

/** A ticket in a queue. */
class Listening {
  private readonly turn: Watcher;
  private next: Watcher | undefined = undefined;
  private readonly hear: (message: string, turn: QueueTurn) => Watcher;

  constructor(
    home: QueueHome,
    watches: RedisWatches,
    ticket: string,
    channel: string,
    onTurn: (turn: QueueTurn) => void,
  ) {
    this.hear = (message, turn) => {
      const watcher = home.watcher(ticket, ({ kind }) => onTurn(kind === 'gap' ? 'gap' : turn));
      if (watcher.isStarting) watches.add(watcher, message, channel);
      return watcher;
    };
    this.turn = this.hear(ticket, 'granted');
    // Hints from before it was ready were not heard.
    if (!this.isTold)
      this.turn.ready.then(
        () => onTurn('gap'),
        () => {},
      );
  }

  get isTold(): boolean {
    return this.turn.isReady;
  }

  get isOver(): boolean {
    return !this.turn.isReady && !this.turn.isStarting;
  }

  /** The hint that its turn comes next matters only once it is in the queue. */
  hearNext(): void {
    this.next ??= this.hear(`${this.turn.key}+`, 'next');
  }

  close(): void {
    this.turn.close();
    this.next?.close();
  }
}

function isRefused(reply: unknown): reply is RefusedReply {
  return Array.isArray(reply);
}

function refused(home: QueueHome, [record, leftMs, quietForMs]: RefusedReply): GuardRefused {
  const entry = record.length === 0 ? undefined : home.entryOf('write', [record, leftMs]);
  return { ok: false, entry, quietForMs: Number(quietForMs) };
}

type Keys = readonly [record: string, lastVersion: string, line: string, places: string, guard: string];

/** In a cluster, all of them are in one slot. Otherwise one guard serves all keys. */
function keysOf(home: QueueHome, key: string, bucket = home.placeOf(key).bucket): Keys {
  const guard = `${home.isCluster ? bucket : home.prefix}@guard`;
  return [`${bucket}:${key}`, bucket, `${bucket}<${key}`, `${bucket}>${key}`, guard];
}

function run(
  home: QueueHome,
  operation: string,
  script: RedisScript,
  key: string,
  quietMs: number | undefined,
  given: readonly (string | Buffer)[],
  signal: AbortSignal | undefined,
): Promise<unknown> {
  const { bucket, channel, message } = home.placeOf(key);
  const common = [home.publish, channel, message, `${Math.ceil(quietMs ?? 0)}`];
  return home.run(operation, script, keysOf(home, key, bucket), [...common, ...given], signal);
}
