/**
 * Postgres store: a row per key, for all processes that reach the database.
 *
 * Promise: a verb is a single function call, applied completely or not at all. Nothing is sent twice, and a verb that has failed before it was sent is never
 * sent. A key's version grows across remove, expiry, restart and failover, as far as the server keeps what it has committed.
 */

import { showBriefly } from '../core/brief.js';
import { type Clock, systemClock } from '../core/clock.js';
import type { Duration } from '../core/duration.js';
import type { StoreFailure } from '../core/errors.js';
import {
  checkArgument,
  checkOptions,
  duration,
  flag,
  having,
  integer,
  optional,
  withDefault,
} from '../core/options.js';
import {
  connectionOf,
  type Driver,
  inOneLine,
  listenBy,
  type PgListener,
  type PgPool,
  type PostgresJs,
  type PostgresListener,
  type PostgresTransaction,
  type Row,
  recognise,
  type Sql,
  type Statement,
  type Value,
} from './postgres-drivers.js';
import { failure, failureOf, lost } from './postgres-failures.js';
import { functionsOf, postgresMigrations, tableField } from './postgres-schema.js';
import { transactionField } from './postgres-transactions.js';
import { PostgresWatches } from './postgres-watches.js';
import type {
  ClosableStore,
  Consumed,
  ConsumeOptions,
  Entry,
  NativeCapabilities,
  Refused,
  Store,
  StoreCallOptions,
  StoreChange,
  StoreRemoveOptions,
  StoreView,
  StoreWatch,
  StoreWriteOptions,
  Written,
} from './store.js';
import { prefixField, VerbChecks } from './verb-checks.js';
import { TimedVerb, VerbTimeouts } from './verb-timeouts.js';

export type {
  PgClient,
  PgListener,
  PgPool,
  PgPoolClient,
  PostgresJs,
  PostgresTransaction,
} from './postgres-drivers.js';
export {
  type SessionLock,
  type SessionLockOptions,
  sessionLock,
  type TransactionLockOptions,
  transactionLock,
} from './postgres-locks.js';
export { type PostgresMigration, postgresMigrations } from './postgres-schema.js';

/** Options of {@link postgresStore}. */
export interface PostgresStoreOptions {
  /** Prepended to each key: stores with different prefixes share a table without conflicts. Default `'holdfast'`. */
  readonly prefix?: string | undefined;
  /** How long a verb waits for a connection and the reply together: milliseconds, or a literal, from 1 ms to 24.8 days. Default `'500ms'`. */
  readonly timeout?: Duration | undefined;
  /** Most bytes of one value, from 1 to 255 MiB. Default 1 MiB. */
  readonly maxValueBytes?: number | undefined;
  /** The table, with its schema if it is not on the search path: letters, digits and `_`, at most 40 each. Default `'holdfast'`. */
  readonly table?: string | undefined;
  /**
   * postgres.js only: prepares each statement once per connection, which saves about half of a verb's time. Never set it behind a pooler in
   * transaction mode: there one statement of postgres.js may run in place of another. `pg` always prepares, safely. Default false.
   */
  readonly prepare?: boolean | undefined;
  /**
   * Enables `watch`. For `pg` a function that returns a connected, dedicated client; it is called again whenever that client was lost, and the store ends the client. Give the client a listener for
   * its `'error'` before it connects, since a server may end the connection before the store listens. For postgres.js its `sql`. It
   * needs a direct connection to the server: through a pooler a watch fails with reason `'invalid'`. Only stores with a listener report their changes.
   */
  readonly listener?: (() => Promise<PgListener>) | PostgresJs | undefined;
  /** Measures `timeout`; the time of entries is the server's. Default `systemClock`. */
  readonly clock?: Clock | undefined;
}

/** Capabilities of a {@link PostgresStore}; `watch` only with a `listener`. */
export interface PostgresNative
  extends Required<Pick<NativeCapabilities, 'readMany' | 'consume'>>,
    Pick<NativeCapabilities, 'watch'> {
  /**
   * A view of this store inside your transaction: its writes are committed with the transaction, or not at all. Roll back when a verb fails. Each
   * verb is sent on that connection; it has no `timeout`, but waits for a locked row no longer than the store does.
   *
   * @throws {@link OptionsError} `ERR_OPTIONS` for anything but a transaction, such as a pool, which would write at once.
   */
  within(transaction: PostgresTransaction): StoreView;
}

/** What {@link postgresStore} returns. */
export interface PostgresStore extends ClosableStore {
  readonly native: PostgresNative;
  /** Creates the table and functions, or brings them up to date. Several processes may do so at once. Gives up after a minute, whatever `timeout` is. */
  migrate(): Promise<void>;
  /** Deletes expired rows, at most `limit` of them (default 1000), and returns how many. Run it now and then. */
  sweep(limit?: number): Promise<number>;
}

/**
 * A store in Postgres, 13 or later, for all processes that reach it.
 *
 * Takes a `Pool` of `pg` or the `sql` of postgres.js and does not close it. Create the table once with `migrate()`, or run the SQL of
 * {@link postgresMigrations} yourself. It works behind PgBouncer in transaction mode. When `timeout` passes, a pool of `pg` gets the connection
 * back as broken and makes a new one; postgres.js has no way to do that, and may send a verb after it has failed with `applied: 'unknown'`.
 *
 * @throws {@link OptionsError} `ERR_OPTIONS` at once, for an invalid option or pool.
 * @example
 * ```ts no-run
 * import { postgresStore } from 'holdfast/postgres';
 * import pg from 'pg';
 *
 * const store = postgresStore(new pg.Pool({ connectionString: process.env.DATABASE_URL }), { prefix: 'shop' });
 * await store.migrate();
 * const mine = new TextEncoder().encode('worker 1');
 * const first = await store.write('job', mine, { ttlMs: 10_000, ifVersion: 0 });
 * const second = await store.write('job', mine, { ttlMs: 10_000, ifVersion: 0 });
 * console.log(first.ok, second.ok); // true false
 * ```
 */
export function postgresStore(pool: PgPool | PostgresJs, options: PostgresStoreOptions = {}): PostgresStore {
  const driver = checkArgument('postgresStore', 'pool', pool, {
    allowed: 'a Pool of pg, or the sql of postgres.js',
    parse: recognise,
  });
  const checked = checkOptions('postgresStore', options, {
    prefix: prefixField,
    timeout: withDefault(duration({}), 500),
    // The reply is text, a third longer than the value, and `pg` ends the process if it exceeds the longest string of JavaScript, which is almost 2 ** 29
    // characters. postgres.js sends the value of a prepared statement as a text of twice its length.
    maxValueBytes: withDefault(integer({ min: 1, max: 255 * 2 ** 20 }), 2 ** 20),
    table: withDefault(tableField, 'holdfast'),
    prepare: withDefault(flag(), false),
    listener: optional<PostgresListener>(listenerField),
    clock: withDefault(having<Clock>('a clock such as systemClock', 'now', 'schedule', 'cancel'), systemClock),
  });
  showBriefly(Verbs.prototype, ({ settings: { table, prefix } }) => ({ store: 'postgres', table, prefix }));
  return new PooledStore(driver, checked);
}

const listenerField = {
  allowed: 'a function that answers a connected client of pg, or the sql of postgres.js',
  parse: (value: unknown) => (typeof value === 'function' ? (value as PostgresListener) : undefined),
};

interface Settings {
  readonly prefix: string;
  readonly timeout: number;
  readonly maxValueBytes: number;
  readonly table: string;
  readonly prepare: boolean;
  readonly listener: PostgresListener | undefined;
  readonly clock: Clock;
}

function sqlOf(text: string): Sql {
  const { createHash } = process.getBuiltinModule('node:crypto');
  return { text, name: `holdfast_${createHash('sha256').update(text).digest('hex').slice(0, 32)}` };
}

/**
 * The statements of the verbs. A read always returns a row: a reply without one means that the connection broke. An entry is a single text, because each
 * column costs the server and the client a part of a round trip. So does each parameter, which is why whatever is the same for all verbs of a store is part
 * of the statement.
 *
 * @param goesOn - Whether the statements are part of a transaction that continues afterwards.
 */
function statementsOf({ table, listener, timeout }: Settings, goesOn: boolean) {
  const { read, readMany, write, remove, consume, sweep } = functionsOf(table);
  // The channel that reports changes; NULL if no store can listen.
  const channel = listener === undefined ? 'NULL' : `'${channelOf(table)}'`;
  // The server gives up waiting for a locked row a little before the store gives up the server, so that the store learns that nothing was done. A verb that
  // is not first in the queue for the row may wait twice as long, and is told too late.
  const lockMs = Math.ceil(timeout * 0.8);
  const one = '(VALUES (1)) AS one LEFT JOIN';
  const entry = "concat_ws(',', held_version, age_ms, left_ms, encode(held_value, 'base64'))";
  return {
    read: sqlOf(`SELECT ${entry} FROM ${one} ${read}($1) AS held ON true`),
    // The drivers send arrays in different ways; an array as text means the same to both.
    readMany: sqlOf(`SELECT ${entry}, encode(held_key, 'base64') FROM ${one} ${readMany}($1::text[]) AS held ON true`),
    write: sqlOf(`SELECT ${write}($1, $2, $3, $4, ${channel}, ${lockMs}, ${goesOn})`),
    remove: sqlOf(`SELECT ${remove}($1, $2, ${channel}, ${lockMs}, ${goesOn})::text`),
    consume: sqlOf(`SELECT granted::text, debt_ms::text FROM ${consume}($1, $2, $3, $4, ${lockMs})`),
    sweep: sqlOf(`SELECT ${sweep}($1)::text`),
  };
}

/** Long enough for a server that first has to wake up, and for hundreds of processes that migrate one after another. */
const mostMigratingMs = 60_000;

/**
 * All steps as a single statement, so that they are done together or not at all, without a transaction that would have to be ended. Two processes that create
 * the same table at once would fail on each other's work, so one waits for the other, and the server gives up before the store does.
 */
function migrationOf(table: string): Sql {
  const steps = postgresMigrations(table).map(({ sql }) => sql);
  const text = `DO $migration$ BEGIN
PERFORM set_config('lock_timeout', '${mostMigratingMs * 0.8}', true);
PERFORM pg_advisory_xact_lock(hashtextextended('holdfast ${table}', 0));
${steps.join('\n')}
END $migration$`;
  return { text, name: '' };
}

/** Runs one statement and returns its rows. */
type Run = (operation: string, sql: Sql, values: readonly Value[], signal?: AbortSignal) => Promise<readonly Row[]>;

/** The verbs, independent of what runs their statements. */
class Verbs implements Store {
  /** @internal */ readonly settings: Settings;
  protected readonly statements: ReturnType<typeof statementsOf>;
  protected readonly checks: VerbChecks;
  private readonly runStatement: Run;

  constructor(settings: Settings, run: Run, goesOn: boolean) {
    this.settings = settings;
    this.statements = statementsOf(settings, goesOn);
    this.checks = new VerbChecks('postgres', settings.maxValueBytes);
    this.runStatement = run;
  }

  async read(key: string, options?: StoreCallOptions): Promise<Entry | undefined> {
    this.checks.read(key, options);
    const { read } = this.statements;
    const [held] = answerOf('read', await this.runStatement('read', read, [this.keyOf(key)], options?.signal));
    return held === '' ? undefined : entryOf(held);
  }

  async write(key: string, value: Uint8Array, options: StoreWriteOptions): Promise<Written | Refused> {
    this.checks.write(key, value, options);
    const { ttlMs, ifVersion, signal } = options;
    // A copy, because the driver may write it to its socket later.
    const values = [this.keyOf(key), Buffer.from(value), Math.ceil(ttlMs), ifVersion ?? null];
    const [answer] = answerOf('write', await this.runStatement('write', this.statements.write, values, signal));
    if (answer === '') return { ok: false, entry: undefined };
    const version = Number(answer);
    return Number.isNaN(version) ? { ok: false, entry: entryOf(answer) } : { ok: true, version };
  }

  async remove(key: string, options?: StoreRemoveOptions): Promise<boolean> {
    this.checks.remove(key, options);
    const values = [this.keyOf(key), options?.ifVersion ?? null];
    const { remove } = this.statements;
    const row = answerOf('remove', await this.runStatement('remove', remove, values, options?.signal));
    return row[0] === 'true';
  }

  protected keyOf(key: string): Buffer {
    // No prefix contains this character.
    return Buffer.from(`${this.settings.prefix}\0${key}`);
  }
}

/** How many verbs may be in progress at once, including those that wait for a connection. */
const mostRunning = 10_000;

class PooledStore extends Verbs implements PostgresStore {
  readonly native: PostgresStore['native'];
  private readonly driver: Driver;
  private readonly watches: PostgresWatches | undefined;
  /** Statements that hold a connection or a place in the queue for one, including those that nobody waits for any more. */
  private running = 0;
  private readonly underWay: VerbTimeouts;
  private readonly migrating: VerbTimeouts;
  private isClosed = false;

  constructor(driver: Driver, settings: Settings) {
    super(settings, (operation, sql, values, signal) => this.run(operation, sql, values, signal), false);
    this.driver = driver;
    const { listener, table, clock, timeout } = settings;
    this.underWay = new VerbTimeouts(clock, timeout);
    this.migrating = new VerbTimeouts(clock, mostMigratingMs);
    const watches =
      listener &&
      new PostgresWatches(listenBy(listener, channelOf(table)), timeout, clock, (error) =>
        failureOf('watch', error, true),
      );
    this.watches = watches;
    this.native = {
      readMany: (keys, options) => this.readMany(keys, options),
      consume: (key, options) => this.consume(key, options),
      within: (transaction) => this.within(transaction),
      ...(watches && {
        watch: (key: string, onChange: (change: StoreChange) => void) => this.watch(watches, key, onChange),
      }),
    };
    driver.open(settings.prepare);
  }

  async migrate(): Promise<void> {
    await this.run('migrate', migrationOf(this.settings.table), [], undefined, this.migrating);
  }

  async sweep(limit = 1_000): Promise<number> {
    const [row] = await this.run('sweep', this.statements.sweep, [limit], undefined);
    return Number(row?.[0]);
  }

  async close(): Promise<void> {
    if (this.isClosed) return;
    this.isClosed = true;
    for (const verbs of [this.underWay, this.migrating]) {
      verbs.each((verb) => (verb as Verb).storeClosed());
      verbs.close();
    }
    this.driver.close();
    this.watches?.close();
  }

  private watch(watches: PostgresWatches, key: string, onChange: (change: StoreChange) => void): StoreWatch {
    const watcher = this.checks.watch(key, onChange, watches.watchers, this.isClosed);
    if (watcher.isStarting) watches.add(watcher, this.keyOf(key).toString('base64'));
    return watcher;
  }

  private within(transaction: unknown): StoreView {
    const connection = connectionOf(checkArgument('within', 'transaction', transaction, transactionField));
    const run: Run = async (operation, sql, values, signal) => {
      signal?.throwIfAborted();
      try {
        return connection.rowsOf(await connection.ask(sql, values, 'once'));
      } catch (error) {
        // Work in a transaction takes effect on commit, and a failed transaction cannot be committed.
        throw failureOf(operation, error, true);
      }
    };
    return new Verbs(this.settings, run, true);
  }

  private async readMany(keys: readonly string[], options?: StoreCallOptions): Promise<(Entry | undefined)[]> {
    this.checks.readMany(keys, options);
    const wanted = keys.map((key) => this.keyOf(key));
    const words = `{${wanted.map((key) => key.toString('base64')).join()}}`;
    const rows = await this.run('readMany', this.statements.readMany, [words], options?.signal);
    answerOf('readMany', rows);
    const there = rows.filter(([held]) => held !== '');
    const entries = new Map(there.map(([held, name]) => [inOneLine(name!), entryOf(held)]));
    return wanted.map((key) => entries.get(key.toString('base64')));
  }

  private async consume(key: string, options: ConsumeOptions): Promise<Consumed> {
    const rate = this.checks.consume(key, options);
    // No record has this name: a record has another character here.
    const name = Buffer.from(`${this.settings.prefix}\x01${key}`);
    const values = [name, rate.intervalMs, rate.burst, rate.cost];
    const row = answerOf('consume', await this.run('consume', this.statements.consume, values, options.signal));
    return rate.answer(Number(row[1]), row[0] === 'true');
  }

  /** Runs one statement on a connection of the pool, in the time of a verb unless told otherwise. */
  private run(
    operation: string,
    sql: Sql,
    values: readonly Value[],
    signal: AbortSignal | undefined,
    timeouts = this.underWay,
  ): Promise<readonly Row[]> {
    if (this.isClosed) return Promise.reject(failure(operation, 'closed', closedDetail));
    if (this.running >= mostRunning) {
      const detail = `${mostRunning} verbs are under way; raise the size of the pool, or ask for less`;
      return Promise.reject(failure(operation, 'busy', detail));
    }
    this.running++;
    return new Promise((resolve, reject) => {
      const verb = new Verb(this, timeouts, operation, this.driver.statement(sql, values), resolve, reject);
      timeouts.begin(verb, signal);
      verb.statement.begin(verb);
    });
  }

  /** @internal */
  get lateAdvice(): string {
    return this.driver.lateAdvice;
  }

  /** @internal */
  statementEnded(): void {
    this.running--;
  }
}

const closedDetail = 'the store is closed';

/** A verb in progress. */
class Verb extends TimedVerb {
  readonly statement: Statement;
  private isOver = false;
  private readonly store: PooledStore;
  private readonly timeouts: VerbTimeouts;
  private readonly operation: string;
  private readonly resolve: (rows: readonly Row[]) => void;
  private readonly reject: (error: unknown) => void;
  readonly answered = (rows: readonly Row[]) => {
    this.store.statementEnded();
    if (this.end()) this.resolve(rows);
  };
  readonly failed = (error: unknown) => {
    this.store.statementEnded();
    if (this.end()) this.reject(failureOf(this.operation, error, !this.statement.hasLeft()));
  };

  constructor(
    store: PooledStore,
    timeouts: VerbTimeouts,
    operation: string,
    statement: Statement,
    resolve: (rows: readonly Row[]) => void,
    reject: (error: unknown) => void,
  ) {
    super();
    this.store = store;
    this.timeouts = timeouts;
    this.operation = operation;
    this.statement = statement;
    this.resolve = resolve;
    this.reject = reject;
  }

  override timedOut(): void {
    const { timeoutMs } = this.timeouts;
    const unsent = `the pool had no connection to give for ${timeoutMs} ms; raise its size, or look for code that never releases one`;
    this.late(unsent, `the server did not answer within ${timeoutMs} ms${this.store.lateAdvice}`, 'timeout');
  }

  override aborted(reason: unknown): void {
    this.giveUp(reason);
  }

  storeClosed(): void {
    this.late(closedDetail, 'the store was closed', 'closed');
  }

  /** Ends the verb. False if it was over before. */
  private end(): boolean {
    if (this.isOver) return false;
    this.isOver = true;
    this.timeouts.end(this);
    return true;
  }

  private late(unsent: string, sent: string, reason: StoreFailure): void {
    const { operation, statement } = this;
    this.giveUp(statement.hasLeft() ? lost(operation, sent, undefined, reason) : failure(operation, reason, unsent));
  }

  private giveUp(error: unknown): void {
    if (!this.end()) return;
    this.statement.giveUp();
    this.reject(error);
  }
}

function channelOf(table: string): string {
  // Names have at most 63 characters. Tables that share a channel hear of each other's changes, which is harmless.
  return `${table.replace('.', '_')}_changes`.slice(-63);
}

/** postgres.js resolves a query with no rows if its connection broke at the wrong moment; then it is unknown what was done. */
function answerOf(operation: string, rows: readonly Row[]): Row {
  const [row] = rows;
  if (row === undefined) throw lost(operation, 'the reply had no row: the connection broke', undefined, 'closed');
  return row;
}

function entryOf(held: string): Entry {
  const [version, ageMs, leftMs, value] = held.split(',');
  return {
    // Buffer.from(text) may return a slice of a larger buffer.
    value: new Uint8Array(Buffer.from(value!, 'base64')),
    version: Number(version),
    // The server's clock may have been put back since the write.
    ageMs: Math.max(0, Number(ageMs)),
    ttlMs: Math.max(0, Number(leftMs)),
  };
}
