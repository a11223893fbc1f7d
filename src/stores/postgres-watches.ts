/**
 * Postgres watches: one connection that listens for all watchers, and notices when changes may have been missed.
 *
 * Promise: from `ready` on, each change committed by a store with a listener is reported, or a gap is. A lost connection is replaced for as long as there are
 * watchers. A connection that was cut off silently is detected by a query every ten seconds; that of postgres.js, to which nothing can be sent from here, by
 * the socket settings of the system.
 */
import { type Clock, callbackTimer } from '../core/clock.js';
import type { StoreError } from '../core/errors.js';
import { type Watcher, Watchers } from './watchers.js';

/** A connection that listens. Its owner ends it. */
export interface ListeningConnection {
  /** Rejects, or never resolves, when the connection can no longer report anything. Absent if nothing can be sent on it. */
  confirm?(): Promise<unknown>;
  end(): void;
}

/** The events of a listening connection. */
export interface ListeningEvents {
  onPayload(payload: string): void;
  /** It listens, for the first time or again: notices from the time in between are lost. */
  onListening(): void;
  /** The connection is lost and is not replaced by itself. */
  onLost(): void;
}

/** Opens a connection that listens; rejects if it cannot. */
export type Listen = (events: ListeningEvents) => Promise<ListeningConnection>;

const retryAfterMs = 500;
const roundMs = 10_000;

export class PostgresWatches {
  readonly watchers = new Watchers();
  private connection: ListeningConnection | undefined = undefined;
  private state: 'none' | 'asked' | 'listening' = 'none';
  /** Counts connections, so that events of an old one are ignored. */
  private generation = 0;
  private isClosed = false;
  private isUnconfirmed = false;
  /** Why nothing would be reported. A server that refuses in this way is tried again only after a round, since each try costs a connection. */
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

  /** @param payload - The notification that reports a change of its key. */
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
      // A watcher that was ready may have missed changes; the others start now.
      if (watcher.isStarting) watcher.begin();
      else watcher.gap();
    }
  }

  private lost(): void {
    this.end();
    const { background } = this;
    background.schedule(this.retry, background.now() + (this.refusal === undefined ? retryAfterMs : roundMs));
  }

  private end(): void {
    this.generation++;
    this.state = 'none';
    this.isUnconfirmed = false;
    this.background.cancel(this.round);
    this.background.cancel(this.retry);
    this.connection?.end();
    this.connection = undefined;
  }

  private nextRound(): void {
    if (this.connection?.confirm === undefined) return;
    this.background.schedule(this.round, this.background.now() + roundMs);
  }

  private confirm(): void {
    // There are no watchers, so the connection is closed until there are some.
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

  private get background(): Clock {
    return this.clock.background ?? this.clock;
  }
}
