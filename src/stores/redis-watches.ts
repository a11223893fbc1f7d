/**
 * Redis watches: which channels a store listens to, on a second connection of the user's, and when something may have been missed.
 *
 * Promise: once `ready`, every change is told or a gap is: after each new connection, after a channel has moved to another server, and while nothing
 * proves that a change would be heard. Only what is published and heard proves it: a client that answers for a cluster knows of other connections.
 * There is one channel for each bucket of keys, so a process has at most 1,024 subscriptions, whatever it watches.
 * After: redis.io/docs, "Redis Pub/Sub", with its at-most-once delivery; ioredis and node-redis, "auto-resubscribe".
 */
import { type Clock, callbackTimer } from '../core/clock.js';
import type { StoreError } from '../core/errors.js';
import { type Watcher, Watchers } from './watchers.js';

/** A connection on which messages come, as both libraries have it, each in its own words. */
export interface Subscriber {
  /** `'waiting'`: not connected yet, or not any more, and the client is about to connect by itself. */
  state(): 'ready' | 'waiting' | 'closed';
  /** Resolves once the server has said so. Safe to repeat. */
  subscribe(channel: string): Promise<unknown>;
  unsubscribe(channel: string): Promise<unknown>;
  /** Calls back for each message, and whenever a connection was lost or made, or this channel has moved to another. Answers how to end that. */
  listen(
    onMessage: (channel: string, message: string) => void,
    onConnection: (movedChannel?: string) => void,
  ): () => void;
}

/** How often a silent subscription is tried, and an idle one given up: rare enough to cost nothing, often beside a ttl. */
const roundMs = 5000;

class Channel {
  readonly name: string;
  readonly watchers = new Watchers();
  state: 'none' | 'asked' | 'subscribed' = 'none';
  /** Counts subscriptions: an answer to an old one says nothing of the new. */
  turn = 0;
  /** Something was heard in this round, of whomever: each who hears it need not try. */
  isHeard = false;
  /** `'tried'`: a message is on its way to us; `'deaf'`: it was published and has not been heard. */
  doubt: 'none' | 'tried' | 'deaf' = 'none';
  /** Nobody has watched it since the last round. */
  isIdle = false;

  constructor(name: string) {
    this.name = name;
  }
}

export class RedisWatches {
  /** All watchers; those of a channel are in the channel as well. */
  readonly watchers = new Watchers();
  private readonly channels = new Map<string, Channel>();
  private stopListening: (() => void) | undefined = undefined;
  private readonly subscriber: Subscriber;
  private readonly tryOut: (channel: string) => Promise<unknown>;
  private readonly timeoutMs: number;
  private readonly clock: Clock;
  private readonly failureOf: (error: unknown) => StoreError;
  private readonly round = callbackTimer(() => this.tryAll());

  /** @param tryOut - Publishes in a channel what concerns nobody; resolves when that is done. */
  constructor(
    subscriber: Subscriber,
    tryOut: (channel: string) => Promise<unknown>,
    timeoutMs: number,
    clock: Clock,
    failureOf: (error: unknown) => StoreError,
  ) {
    this.subscriber = subscriber;
    this.tryOut = tryOut;
    this.timeoutMs = timeoutMs;
    this.clock = clock;
    this.failureOf = failureOf;
  }

  add(watcher: Watcher, message: string, channelName: string): void {
    const channel = this.channelOf(channelName);
    channel.isIdle = false;
    channel.watchers.add(watcher, message);
    this.watchers.add(watcher);
    watcher.whenOver(() => {
      this.clock.cancel(watcher);
      this.watchers.delete(watcher);
      channel.watchers.delete(watcher, message);
    });
    if (channel.state === 'subscribed') return watcher.begin();
    this.clock.schedule(watcher, this.clock.now() + this.timeoutMs);
    this.subscribe(channel);
  }

  /** Whether a watch of this channel would be ready at once. */
  hears(channelName: string): boolean {
    return this.channels.get(channelName)?.state === 'subscribed';
  }

  close(): void {
    this.watchers.closeAll();
    for (const channel of this.channels.values()) this.giveUp(channel);
  }

  private channelOf(name: string): Channel {
    let channel = this.channels.get(name);
    if (channel === undefined) {
      channel = new Channel(name);
      if (this.channels.size === 0) {
        this.stopListening = this.subscriber.listen(
          (from, message) => this.hear(from, message),
          (moved) => this.begin(moved),
        );
        this.nextRound();
      }
      this.channels.set(name, channel);
    }
    return channel;
  }

  private hear(channelName: string, message: string): void {
    const channel = this.channels.get(channelName);
    if (channel === undefined) return;
    channel.isHeard = true;
    channel.doubt = 'none';
    channel.watchers.tell(message);
  }

  /** A connection was lost, or made, or a channel has moved: what was subscribed is to be asked for again. */
  private begin(movedChannel: string | undefined): void {
    for (const channel of this.channels.values()) {
      if (movedChannel === undefined || movedChannel === channel.name) this.subscribeAnew(channel);
    }
  }

  private subscribeAnew(channel: Channel): void {
    channel.turn++;
    channel.state = 'none';
    channel.isHeard = false;
    channel.doubt = 'none';
    this.subscribe(channel);
  }

  private subscribe(channel: Channel): void {
    const state = this.subscriber.state();
    if (state === 'closed')
      return this.fail(channel, new Error('the client given as "subscriber" is closed; connect it'));
    if (channel.state !== 'none' || state !== 'ready') return;
    channel.state = 'asked';
    const { turn } = channel;
    const isOld = () => turn !== channel.turn || this.channels.get(channel.name) !== channel;
    attempt(() => this.subscriber.subscribe(channel.name)).then(
      () => {
        if (isOld()) return;
        channel.state = 'subscribed';
        for (const watcher of channel.watchers.all()) {
          this.clock.cancel(watcher);
          // Who was told that it is ready may have missed something; for the others it begins now.
          if (watcher.isStarting) watcher.begin();
          else watcher.gap();
        }
      },
      (error) => {
        if (isOld()) return;
        channel.state = 'none';
        // When the connection broke, the next one asks again.
        if (this.subscriber.state() === 'ready') this.fail(channel, error);
      },
    );
  }

  private fail(channel: Channel, error: unknown): void {
    for (const watcher of channel.watchers.all()) if (watcher.isStarting) watcher.fail(this.failureOf(error));
  }

  private tryAll(): void {
    for (const channel of [...this.channels.values()]) {
      if (channel.watchers.size === 0) {
        if (channel.isIdle) this.giveUp(channel);
        channel.isIdle = true;
      } else if (channel.isHeard) channel.isHeard = false;
      else this.try(channel);
    }
    if (this.channels.size > 0) this.nextRound();
  }

  private try(channel: Channel): void {
    if (channel.state !== 'subscribed' || channel.doubt !== 'none') {
      for (const watcher of channel.watchers.all()) watcher.gap();
    }
    // Perhaps another server has the channel now, and nobody has said so. One who is asked already need not be asked again.
    if (channel.doubt === 'deaf' && channel.state === 'subscribed') this.subscribeAnew(channel);
    else this.subscribe(channel);
    channel.doubt = 'tried';
    const { turn } = channel;
    attempt(() => this.tryOut(channel.name)).then(
      () => {
        if (turn === channel.turn && channel.doubt === 'tried') channel.doubt = 'deaf';
      },
      () => {},
    );
  }

  private giveUp(channel: Channel): void {
    this.channels.delete(channel.name);
    if (channel.state !== 'none') attempt(() => this.subscriber.unsubscribe(channel.name)).catch(() => {});
    if (this.channels.size > 0) return;
    this.background.cancel(this.round);
    this.stopListening?.();
    this.stopListening = undefined;
  }

  private nextRound(): void {
    this.background.schedule(this.round, this.clock.now() + roundMs);
  }

  private get background(): Clock {
    return this.clock.background ?? this.clock;
  }
}

/** Clients throw some errors and reject with others. */
async function attempt(task: () => Promise<unknown>): Promise<void> {
  await task();
}
