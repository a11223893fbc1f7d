/**
 * SQLite store: one table in a file that the processes of one machine share.
 *
 * Promise: a verb is one statement, so it is applied completely or not at all, whatever dies in between. Another process's lock never blocks the event loop,
 * because the store waits for the lock itself. A version is the row's own AUTOINCREMENT number: SQLite never assigns one twice in the life of the table, so a
 * key that was removed or swept leaves nothing behind.
 */

import { addAbortListener, removeAbortListener } from '../core/abort-listeners.js';
import { showBriefly } from '../core/brief.js';
import { type Clock, callbackTimer, systemClock } from '../core/clock.js';
import type { Duration } from '../core/duration.js';
import { messageOf, type StoreError } from '../core/errors.js';
import { isBytes, isThenable } from '../core/kinds.js';
import { checkArgument, checkOptions, duration, having, withDefault } from '../core/options.js';
import { ForeignValue, failure, failureOf, isLocked, isTableGone } from './sqlite-failures.js';
import {
  type Moves,
  type Row,
  type Scanned,
  type SqliteDatabase,
  type Statements,
  setUp,
  versionOf,
} from './sqlite-statements.js';
import type {
  ClosableStore,
  Entry,
  NativeCapabilities,
  Refused,
  StoreCallOptions,
  StoreChange,
  StoreRemoveOptions,
  StoreTransaction,
  StoreWatch,
  StoreWriteOptions,
  Written,
} from './store.js';
import { maxValueBytesField, prefixField, VerbChecks } from './verb-checks.js';
import { Watchers } from './watchers.js';

export type { SqliteDatabase, SqliteStatement } from './sqlite-statements.js';

/** Options of {@link sqliteStore}. */
export interface SqliteStoreOptions {
  /** Prepended to each key: stores with different prefixes share a file without conflicts. Default `'holdfast'`. */
  readonly prefix?: string | undefined;
  /** How long a verb waits while another process writes: milliseconds, or a literal, from 1 ms to 24.8 days. Default `'500ms'`. */
  readonly timeout?: Duration | undefined;
  /** Most bytes of one value, from 1 to 1 GiB. Default 1 MiB. */
  readonly maxValueBytes?: number | undefined;
  /** Measures `timeout`; the time of entries is SQLite's. Default `systemClock`. */
  readonly clock?: Clock | undefined;
}

/** What {@link sqliteStore} returns. */
export interface SqliteStore extends ClosableStore {
  readonly native: Required<Pick<NativeCapabilities, 'watch' | 'readMany' | 'transaction'>>;
}

/**
 * A store in a SQLite file, for all processes of one machine.
 *
 * Takes an open database of node:sqlite or better-sqlite3. The first verb creates the table `holdfast_entries`, turns
 * write-ahead logging on and sets `busy_timeout` of this connection to 0: the store waits for locks itself, up to `timeout`, without
 * blocking the event loop. While there is a watch, the store polls the file every 10 ms for changes; this also wakes processes that wait for
 * each other's locks. Prefer a dedicated connection; on a shared one, keep no transaction open across an `await`.
 * Not for a file on a network drive: SQLite's locks do not hold there.
 *
 * @throws {@link OptionsError} `ERR_OPTIONS` at once, for an invalid option or database.
 * @example
 * ```ts
 * import { DatabaseSync } from 'node:sqlite';
 * import { sqliteStore } from 'holdfast/sqlite';
 *
 * const db = new DatabaseSync(':memory:'); // or the path of a file
 * const store = sqliteStore(db);
 * const mine = new TextEncoder().encode('worker 1');
 * const first = await store.write('job', mine, { ttlMs: 10_000, ifVersion: 0 });
 * const second = await store.write('job', mine, { ttlMs: 10_000, ifVersion: 0 });
 * console.log(first.ok, second.ok); // true false
 * ```
 */
export function sqliteStore(db: SqliteDatabase, options: SqliteStoreOptions = {}): SqliteStore {
  const field = having<SqliteDatabase>('an open database of node:sqlite or better-sqlite3', 'prepare', 'exec');
  const database = checkArgument('sqliteStore', 'db', db, field);
  const { prefix, timeout, maxValueBytes, clock } = checkOptions('sqliteStore', options, {
    prefix: prefixField,
    timeout: withDefault(duration({}), 500),
    maxValueBytes: maxValueBytesField,
    clock: withDefault(having<Clock>('a clock such as systemClock', 'now', 'schedule', 'cancel'), systemClock),
  });
  showBriefly(TableStore.prototype, ({ prefix }) => ({ store: 'sqlite', prefix: prefix.slice(0, -1) }));
  return new TableStore(database, prefix, timeout, clock, new VerbChecks('sqlite', maxValueBytes));
}

/** How many rows a sweep looks at, and after how many writes the next one comes: four rows per write, oldest version first, round and round. */
const rowsPerSweep = 256;
const writesPerSweep = 64;

/** How often a watched file is polled: less often the more keys there are to look up, and while it cannot be read. */
const shortestPollMs = 10;
const keysPerPollMs = 10;
const blindPollMs = 250;

/** The pauses between tries for a lock: those of SQLite's own busy handler, without the longest ones. */
const pausesMs = [1, 2, 5, 10, 15, 20, 25];

/** How a transaction ended. An error of the caller's function is passed on unchanged. */
type Ended<T> = { readonly value: T } | { readonly thrown: unknown };

class TableStore implements SqliteStore {
  readonly native: SqliteStore['native'];
  private statements: Statements | undefined = undefined;
  private isClosed = false;
  private writesUntilSweep = 0;
  private sweptVersion = 0;
  private readonly watchers = new Watchers();
  /** The version of each watched key as last seen; 0 for none. */
  private readonly seenVersions = new Map<string, number>();
  private seenLast = 0;
  private seenMoves = '';
  private readonly poll = callbackTimer(() => this.look());
  private readonly db: SqliteDatabase;
  /** @internal Includes the separator, which no prefix contains. */
  readonly prefix: string;
  private readonly timeoutMs: number;
  private readonly clock: Clock;
  private readonly checks: VerbChecks;

  constructor(db: SqliteDatabase, prefix: string, timeoutMs: number, clock: Clock, checks: VerbChecks) {
    this.db = db;
    this.prefix = `${prefix}|`;
    this.timeoutMs = timeoutMs;
    this.clock = clock;
    this.checks = checks;
    this.native = {
      watch: (key, onChange) => this.watch(key, onChange),
      readMany: (keys, options) => this.readMany(keys, options),
      transaction: (work, options) => this.transaction(work, options),
    };
  }

  async read(key: string, options?: StoreCallOptions): Promise<Entry | undefined> {
    this.checks.read(key, options);
    return this.whenFree('read', options?.signal, (statements) => this.readNow(statements, key));
  }

  async write(key: string, value: Uint8Array, options: StoreWriteOptions): Promise<Written | Refused> {
    this.checks.write(key, value, options);
    const { ttlMs, ifVersion } = options;
    return this.whenFree('write', options.signal, (statements) => {
      const answer = this.writeNow(statements, key, value, ttlMs, ifVersion);
      this.sweepNowAndThen(statements);
      if (answer.ok) this.tellOwn(key, answer.version);
      return answer;
    });
  }

  async remove(key: string, options?: StoreRemoveOptions): Promise<boolean> {
    this.checks.remove(key, options);
    const ifVersion = options?.ifVersion;
    return this.whenFree('remove', options?.signal, (statements) => {
      const isRemoved = this.removeNow(statements, key, ifVersion);
      if (isRemoved) this.tellOwn(key, 0);
      return isRemoved;
    });
  }

  async close(): Promise<void> {
    this.isClosed = true;
    this.statements = undefined;
    this.watchers.closeAll();
  }

  private async readMany(
    keys: readonly string[],
    options: StoreCallOptions | undefined,
  ): Promise<readonly (Entry | undefined)[]> {
    this.checks.readMany(keys, options);
    const known = [...keys];
    return this.whenFree('readMany', options?.signal, (statements) =>
      known.map((key) => this.readNow(statements, key)),
    );
  }

  private watch(key: string, onChange: (change: StoreChange) => void): StoreWatch {
    const watcher = this.checks.watch(key, onChange, this.watchers, this.isClosed);
    if (!watcher.isStarting) return watcher;
    watcher.whenOver(() => {
      this.watchers.delete(watcher);
      if (!this.watchers.has(key)) this.seenVersions.delete(key);
      if (this.watchers.size === 0) this.background.cancel(this.poll);
    });
    this.whenFree('watch', undefined, (statements) => {
      if (!watcher.isStarting) return;
      // Only this key gets its present version; those of the other keys stay, so that the next poll reports their changes.
      if (this.watchers.size === 0) this.seenLast = versionOf(statements.last.all());
      if (!this.seenVersions.has(key)) this.seenVersions.set(key, this.versionNow(statements, key));
      this.watchers.add(watcher);
      if (this.watchers.size === 1) this.lookIn(shortestPollMs);
    }).then(
      () => watcher.begin(),
      (error) => watcher.fail(error),
    );
    return watcher;
  }

  private get background(): Clock {
    return this.clock.background ?? this.clock;
  }

  private lookIn(ms: number): void {
    this.background.schedule(this.poll, this.clock.now() + ms);
  }

  /** Reports what has changed since the last poll. What cannot be seen now is seen later: the poll compares states, not events. */
  private look(): void {
    let pollMs = Math.max(shortestPollMs, this.seenVersions.size / keysPerPollMs);
    try {
      if (!this.isInForeignTransaction) this.tellChanges(this.statements ?? this.setUp());
    } catch (error) {
      if (!isLocked(error)) {
        this.statements = undefined;
        pollMs = blindPollMs;
      }
    }
    if (this.watchers.size > 0) this.lookIn(pollMs);
  }

  private tellChanges(statements: Statements): void {
    const [{ others, own } = { others: 0, own: 0 }] = statements.moved.all() as Moves[];
    const moves = `${others} ${own}`;
    if (moves === this.seenMoves) return;
    const last = versionOf(statements.last.all());
    const wasWritten = last !== this.seenLast;
    const changed: [key: string, version: number][] = [];
    for (const [key, seen] of this.seenVersions) {
      const version = this.versionNow(statements, key);
      // A key that is absent again may have been written and removed in between.
      if (version !== seen || (version === 0 && wasWritten)) changed.push([key, version]);
    }
    // Only now: if a statement above had failed, the next poll would have to start over.
    this.seenMoves = moves;
    this.seenLast = last;
    for (const [key, version] of changed) this.seenVersions.set(key, version);
    for (const [key] of changed) this.watchers.tell(key);
  }

  private versionNow({ version }: Statements, key: string): number {
    return versionOf(version.all(this.prefix + key));
  }

  private tellOwn(key: string, version: number): void {
    if (!this.seenVersions.has(key)) return;
    this.seenVersions.set(key, version);
    this.watchers.tell(key);
  }

  private async transaction<T>(work: (view: StoreTransaction) => T, options: StoreCallOptions = {}): Promise<T> {
    checkArgument('transaction', 'work', work, { allowed: 'a function', parse: callable<T> });
    if (options.signal?.aborted) throw options.signal.reason;
    const ended = await this.whenFree('transaction', options.signal, (statements): Ended<T> => {
      this.db.exec('BEGIN IMMEDIATE');
      const view = new View(this, statements, this.checks);
      let value: T;
      // From here on errors are returned, not thrown, so that the work is never run a second time.
      try {
        value = work(view);
        if (isThenable(value)) throw this.mustBeSynchronous(value);
      } catch (thrown) {
        this.rollBack();
        return { thrown };
      } finally {
        view.end();
      }
      try {
        this.db.exec('COMMIT');
        return { value };
      } catch (error) {
        this.rollBack();
        return { thrown: this.failure('transaction', error) };
      }
    });
    if ('thrown' in ended) throw ended.thrown;
    return ended.value;
  }

  /** @internal */
  readNow({ read }: Statements, key: string): Entry | undefined {
    const [row] = read.all(this.prefix + key) as Row[];
    if (row === undefined) return undefined;
    if (!isBytes(row.value)) throw new ForeignValue();
    const { buffer, byteOffset, byteLength } = row.value;
    return {
      // better-sqlite3 returns a Buffer, whose methods differ from those of a Uint8Array.
      value: new Uint8Array(buffer, byteOffset, byteLength),
      version: Number(row.version),
      // The machine's clock may have been put back since the write.
      ageMs: Math.max(0, Number(row.age)),
      ttlMs: Number(row.ttl),
    };
  }

  /** @internal */
  writeNow(
    statements: Statements,
    key: string,
    value: Uint8Array,
    ttlMs: number,
    ifVersion: number | undefined,
  ): Written | Refused {
    for (;;) {
      // `all` runs the statement to its end: only then is it committed, or does its commit fail.
      const [written] = statements.write.all(this.prefix + key, value, Math.ceil(ttlMs), ifVersion ?? null) as Row[];
      if (written !== undefined) return { ok: true, version: Number(written.version) };
      const entry = this.readNow(statements, key);
      // If another process has removed the entry in the way in the meantime, try again.
      if (entry !== undefined || ifVersion !== 0) return { ok: false, entry };
    }
  }

  /** @internal */
  removeNow({ remove }: Statements, key: string, ifVersion: number | undefined): boolean {
    return Number(remove.run(this.prefix + key, ifVersion ?? null).changes) > 0;
  }

  /** Drops a few expired rows. An error here is left to the next sweep, because the write itself is done. */
  private sweepNowAndThen({ scan, sweep }: Statements): void {
    if (this.writesUntilSweep-- > 0) return;
    this.writesUntilSweep = writesPerSweep - 1;
    try {
      const [seen] = scan.all(this.sweptVersion, rowsPerSweep) as Scanned[];
      const { rows, last, expired } = seen!;
      if (Number(expired) > 0) sweep.run(this.sweptVersion, Number(last));
      // New rows come at the end. Following them would leave the old ones behind for ever.
      this.sweptVersion = Number(rows) < rowsPerSweep ? 0 : Number(last);
    } catch {
      this.sweptVersion = 0;
    }
  }

  /** Runs a step, and repeats it while the database is locked, until `timeout`. A step that met a lock has done nothing. */
  private async whenFree<T>(
    operation: string,
    signal: AbortSignal | undefined,
    step: (statements: Statements) => T,
  ): Promise<T> {
    let endsAtMs: number | undefined;
    for (let tries = 0; ; tries++) {
      if (this.isClosed) throw failure(operation, 'closed', 'the store is closed');
      let reason: unknown;
      try {
        if (!this.isInForeignTransaction) return step(this.statements ?? this.setUp());
        reason = new Error('a transaction of yours is open on this connection; give the store a connection of its own');
      } catch (error) {
        if (!isLocked(error)) throw this.failure(operation, error);
        reason = error;
      }
      const nowMs = this.clock.now();
      endsAtMs ??= nowMs + this.timeoutMs;
      if (nowMs >= endsAtMs) {
        const detail = `the database stayed locked for ${this.timeoutMs} ms: ${messageOf(reason)}`;
        throw failure(operation, 'busy', detail, reason);
      }
      const pauseMs = pausesMs[Math.min(tries, pausesMs.length - 1)]!;
      await pause(this.clock, Math.min(nowMs + pauseMs, endsAtMs), signal);
    }
  }

  private get isInForeignTransaction(): boolean {
    return this.db.isTransaction ?? this.db.inTransaction ?? false;
  }

  private setUp(): Statements {
    this.statements = setUp(this.db);
    return this.statements;
  }

  private rollBack(): void {
    try {
      this.db.exec('ROLLBACK');
    } catch {
      // After some failures, such as a full disk, SQLite has already rolled back.
    }
  }

  /** @internal */
  failure(operation: string, cause: unknown): StoreError {
    // The next verb sets everything up again.
    if (isTableGone(cause)) this.statements = undefined;
    return failureOf(operation, cause);
  }

  private mustBeSynchronous(promise: PromiseLike<unknown>): StoreError {
    // The transaction is rolled back. The promise may reject for that very reason, which must not become an unhandled rejection.
    promise.then(undefined, () => {});
    const detail = 'the function must be synchronous: others would run on the connection while it waits';
    return failure('transaction', 'invalid', detail);
  }
}

/** The verbs inside a transaction, until it ends. */
class View implements StoreTransaction {
  private isOver = false;
  private readonly store: TableStore;
  private readonly statements: Statements;
  private readonly checks: VerbChecks;

  constructor(store: TableStore, statements: Statements, checks: VerbChecks) {
    this.store = store;
    this.statements = statements;
    this.checks = checks;
  }

  read(key: string): Entry | undefined {
    this.checks.read(key, undefined);
    return this.run('read', () => this.store.readNow(this.statements, key));
  }

  write(key: string, value: Uint8Array, options: Omit<StoreWriteOptions, 'signal'>): Written | Refused {
    this.checks.write(key, value, options);
    const { ttlMs, ifVersion } = options;
    return this.run('write', () => this.store.writeNow(this.statements, key, value, ttlMs, ifVersion));
  }

  remove(key: string, options?: Omit<StoreRemoveOptions, 'signal'>): boolean {
    this.checks.remove(key, options);
    return this.run('remove', () => this.store.removeNow(this.statements, key, options?.ifVersion));
  }

  end(): void {
    this.isOver = true;
  }

  private run<T>(operation: string, step: () => T): T {
    if (this.isOver) {
      throw failure(operation, 'closed', 'the transaction is over');
    }
    try {
      return step();
    } catch (error) {
      throw this.store.failure(operation, error);
    }
  }
}

function callable<T>(value: unknown): ((view: StoreTransaction) => T) | undefined {
  return typeof value === 'function' ? (value as (view: StoreTransaction) => T) : undefined;
}

/** Resolves at an instant of the clock, or rejects with the signal's reason. */
function pause(clock: Clock, atMs: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const abort = () => {
      clock.cancel(timer);
      reject(signal?.reason);
    };
    const timer = callbackTimer(() => {
      if (signal !== undefined) removeAbortListener(signal, abort);
      resolve();
    });
    if (signal !== undefined) addAbortListener(signal, abort);
    clock.schedule(timer, atMs);
  });
}
