/**
 * Postgres watches: one connection that listens for all who wait, and when something may have been missed.
 *
 * Promise: from `ready` on each change that is committed by a store with a listener is told, or a gap is. A lost connection is made anew for as long
 * as somebody waits. One that is cut off without a word is found out by a question every ten seconds; that of postgres.js, which nobody
 * else can ask, by what the system does for its sockets.
 */
import { type Clock, callbackTimer } from '../core/clock.js';
import type { StoreError } from '../core/errors.js';
import { type Watcher, Watchers } from './watchers.js';

/** A connection that listens; who has asked for it ends it. */
export interface ListeningConnection {
  /** Rejects, or never answers, when nothing can be told by it any more. Left out where it cannot be asked. */
  confirm?(): Promise<unknown>;
  end(): void;
}

/** What happens to a listening connection. */
export interface ListeningEvents {
  onPayload(payload: string): void;
  /** It listens, for the first time or again: what came between is lost. */
  onListening(): void;
  /** It is over, and does not come back by itself. */
  onLost(): void;
}

/** Makes a connection that listens; rejects when there is none. */
export type Listen = (events: ListeningEvents) => Promise<ListeningConnection>;

const retryAfterMs = 500;
const roundMs = 10_000;

export class PostgresWatches {
  readonly watchers = new Watchers();
  private connection: ListeningConnection | undefined = undefined;
  private state: 'none' | 'asked' | 'listening' = 'none';
  /** Counts connections: what an old one says is not heard. */
  private generation = 0;
  private isClosed = false;
  private isUnconfirmed = false;
  /** Why nothing would be told: a server that says so is not asked again for a round, since each try costs a connection. */
  private refusal: StoreError | undefined = undefined;
  private readonly listen: Listen;
  private readonly timeoutMs: number;
  private readonly clock: Clock;
  private readonly failureOf: (error: unknown) => StoreError;
  private readonly retry = callbackTimer(() => {
    this.refusal = undefined;
    this.begin();
  });
  private readonly round = callbackTimer(() => this.confirm());

  constructor(listen: Listen, timeoutMs: number, clock: Clock, failureOf: (error: unknown) => StoreError) {
    this.listen = listen;
    this.timeoutMs = timeoutMs;
    this.clock = clock;
    this.failureOf = failureOf;
  }

  /** @param payload - What a change of its key is told by. */
  add(watcher: Watcher, payload: string): void {
    this.watchers.add(watcher, payload);
    watcher.whenOver(() => {
      this.clock.cancel(watcher);
      this.watchers.delete(watcher, payload);
    });
    if (this.refusal !== undefined) return watcher.fail(this.refusal);
    if (this.state === 'listening') return watcher.begin();
    this.clock.schedule(watcher, this.clock.now() + this.timeoutMs);
    this.begin();
  }

  close(): void {
    this.isClosed = true;
    this.watchers.closeAll();
    this.end();
  }

  private begin(): void {
    if (this.state !== 'none' || this.isClosed || this.watchers.size === 0) return;
    this.state = 'asked';
    const generation = ++this.generation;
    const isOld = () => generation !== this.generation;
    this.listen({
      onPayload: (payload) => isOld() || this.watchers.tell(payload),
      onListening: () => isOld() || this.listening(),
      onLost: () => isOld() || this.lost(),
    }).then(
      (connection) => {
        if (isOld()) return connection.end();
        this.connection = connection;
        this.listening();
        this.nextRound();
      },
      (error) => {
        if (isOld()) return;
        const failure = this.failureOf(error);
        for (const watcher of this.watchers.all()) if (watcher.isStarting) watcher.fail(failure);
        if (failure.reason === 'invalid') this.refusal = failure;
        this.lost();
      },
    );
  }

  private listening(): void {
    this.state = 'listening';
    for (const watcher of this.watchers.all()) {
      this.clock.cancel(watcher);
      // Who was told that it is ready may have missed something; for the others it begins now.
      if (watcher.isStarting) watcher.begin();
      else watcher.gap();
    }
  }

  private lost(): void {
    this.end();
    const background = this.clock.background ?? this.clock;
    background.schedule(this.retry, background.now() + (this.refusal === undefined ? retryAfterMs : roundMs));
  }

  private end(): void {
    this.generation++;
    this.state = 'none';
    this.isUnconfirmed = false;
    const background = this.clock.background ?? this.clock;
    background.cancel(this.round);
    background.cancel(this.retry);
    this.connection?.end();
    this.connection = undefined;
  }

  private nextRound(): void {
    if (this.connection?.confirm === undefined) return;
    const background = this.clock.background ?? this.clock;
    background.schedule(this.round, background.now() + roundMs);
  }

  private confirm(): void {
    // Nobody waits: its socket is left to itself until somebody does.
    if (this.watchers.size === 0) return this.end();
    if (this.isUnconfirmed) return this.lost();
    this.isUnconfirmed = true;
    const { generation } = this;
    const isOld = () => generation !== this.generation;
    this.connection?.confirm?.().then(
      () => {
        if (!isOld()) this.isUnconfirmed = false;
      },
      () => isOld() || this.lost(),
    );
    this.nextRound();
  }
}
