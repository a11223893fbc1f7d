/**
 * Redis watches: which channels a store listens to, on the user's second connection, and when changes may have been missed.
 *
 * Promise: once `ready`, every change is reported, or a gap is: after each new connection, after a channel has moved to another server, and while nothing
 * proves that a change would be heard. The only proof is a message that was published and heard, because a cluster client's state describes its other
 * connections. There is one channel for each bucket of keys, so a process has at most 1,024 subscriptions, whatever it watches.
 * After: redis.io/docs, "Redis Pub/Sub", with its at-most-once delivery; ioredis and node-redis, "auto-resubscribe".
 */
import { type Clock, callbackTimer } from '../core/clock.js';
import type { StoreError } from '../core/errors.js';
import { type Watcher, Watchers } from './watchers.js';

/** A connection that receives messages: the common interface of both libraries. */
export interface Subscriber {
  /** `'waiting'`: not connected yet or any more, and the client is going to connect by itself. */
  state(): 'ready' | 'waiting' | 'closed';
  /** Resolves once the server has confirmed it. Safe to repeat. */
  subscribe(channel: string): Promise<unknown>;
  unsubscribe(channel: string): Promise<unknown>;
  /** Calls back for each message, and when a connection was lost or made, or a channel has moved. Returns a function that ends this. */
  listen(
    onMessage: (channel: string, message: string) => void,
    onConnection: (movedChannel?: string) => void,
  ): () => void;
}

/** How often a silent subscription is tested and an idle one given up: rarely enough to cost nothing, but often compared with a ttl. */
const roundMs = 5000;

class Channel {
  readonly name: string;
  readonly watchers = new Watchers();
  state: 'none' | 'asked' | 'subscribed' = 'none';
  /** Counts subscriptions, so that a late reply to an old one is ignored. */
  turn = 0;
  /** Any message was heard in this round, whoever sent it: then this process need not test the channel. */
  isHeard = false;
  /** `'tried'`: a test message was sent; `'deaf'`: it was published, but has not been heard. */
  doubt: 'none' | 'tried' | 'deaf' = 'none';
  /** Set when nobody has watched it since the last round. */
  isIdle = false;

  constructor(name: string) {
    this.name = name;
  }
}

export class RedisWatches {
  /** All watchers; each is also in the list of its channel. */
  readonly watchers = new Watchers();
  private readonly channels = new Map<string, Channel>();
  private stopListening: (() => void) | undefined = undefined;
  private readonly subscriber: Subscriber;
  private readonly tryOut: (channel: string) => Promise<unknown>;
  private readonly timeoutMs: number;
  private readonly clock: Clock;
  private readonly failureOf: (error: unknown) => StoreError;
  private readonly round = callbackTimer(() => this.tryAll());

  /** @param tryOut - Publishes a test message in a channel; resolves when that is done. */
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

  /** A connection was lost or made, or a channel has moved: subscribe again. */
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
          // A watcher that was ready may have missed changes; the others start now.
          if (watcher.isStarting) watcher.begin();
          else watcher.gap();
        }
      },
      (error) => {
        if (isOld()) return;
        channel.state = 'none';
        // If the connection broke, the next one subscribes again.
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
    // Another server may have the channel now, without notice. A subscription that is already in flight need not be repeated.
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

/** Clients throw some errors synchronously and reject with others. */
async function attempt(task: () => Promise<unknown>): Promise<void> {
  await task();
}
