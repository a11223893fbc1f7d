/**
 * Postgres store: a row per key, for all processes that reach the database.
 *
 * Promise: a verb is one call of a function, done whole or not at all; nothing is sent a second time, and nothing after its verb has
 * failed without being sent. A version grows per key across remove, expiry, restart and failover, as far as the server keeps what it has committed.
 */

import { addAbortListener, removeAbortListener } from '../core/abort-listeners.js';
import { showBriefly } from '../core/brief.js';
import { type Clock, systemClock } from '../core/clock.js';
import type { Duration } from '../core/duration.js';
import { messageOf, StoreError, type StoreFailure } from '../core/errors.js';
import { checkArgument, checkOptions, duration, flag, having, optional, withDefault } from '../core/options.js';
import { addClientListener, removeClientListener } from './client-events.js';
import { isTransaction } from './postgres-locks.js';
import { functionsOf, postgresMigrations } from './postgres-schema.js';
import { type Listen, PostgresWatches } from './postgres-watches.js';
import {
  type ClosableStore,
  type Consumed,
  type ConsumeOptions,
  type Entry,
  maxValueBytesField,
  type NativeCapabilities,
  prefixField,
  type Refused,
  type Store,
  type StoreCallOptions,
  type StoreChange,
  type StoreRemoveOptions,
  type StoreView,
  type StoreWatch,
  type StoreWriteOptions,
  VerbChecks,
  type Written,
} from './store.js';
import { TimedVerb, VerbTimeouts } from './verb-timeouts.js';

export {
  type SessionLock,
  type SessionLockOptions,
  sessionLock,
  type TransactionLockOptions,
  transactionLock,
} from './postgres-locks.js';
export { type PostgresMigration, postgresMigrations } from './postgres-schema.js';

/** What {@link postgresStore} needs of a client of `pg`: one connection. */
export interface PgClient {
  query(query: {
    readonly text: string;
    readonly name?: string;
    readonly values?: unknown[];
    readonly rowMode?: 'array';
    readonly types?: { getTypeParser(): (value: string) => string };
  }): Promise<{ readonly rows: unknown[] }>;
  // biome-ignore lint/suspicious/noExplicitAny: each event has a listener of its own type.
  on(event: any, listener: (...values: any[]) => void): unknown;
  // biome-ignore lint/suspicious/noExplicitAny: see above.
  off(event: any, listener: (...values: any[]) => void): unknown;
}

/** A client of `pg` that only listens; the store ends it. */
export interface PgListener extends PgClient {
  end(): Promise<void>;
}

/** A client that a pool of `pg` has lent. */
export interface PgPoolClient extends PgClient {
  release(destroy?: Error | boolean): void;
}

/** What {@link postgresStore} needs of `pg`: a `Pool` has it. */
export interface PgPool {
  connect(): Promise<PgPoolClient>;
  // biome-ignore lint/suspicious/noExplicitAny: each event has a listener of its own type.
  on(event: any, listener: (...values: any[]) => void): unknown;
  // biome-ignore lint/suspicious/noExplicitAny: see above.
  off(event: any, listener: (...values: any[]) => void): unknown;
}

/** What {@link postgresStore} needs of postgres.js, version 3: what its factory answers has it. */
export interface PostgresJs {
  // biome-ignore lint/suspicious/noExplicitAny: its own types are generic over the types that a user adds.
  unsafe(query: string, values?: any[], options?: { readonly prepare: boolean }): any;
  // biome-ignore lint/suspicious/noExplicitAny: see above.
  begin(work: (transaction: any) => Promise<void>): Promise<unknown>;
  listen(
    channel: string,
    onNotify: (payload: string) => void,
    onListen?: () => void,
  ): Promise<{ unlisten(): Promise<void> }>;
}

/** What a transaction of the user's runs on: a client of `pg`, or the `sql` that postgres.js gives to `sql.begin`. */
export type PostgresTransaction = PgClient | Pick<PostgresJs, 'unsafe'>;

/** Options of {@link postgresStore}. */
export interface PostgresStoreOptions {
  /** Goes before each key: stores with different prefixes share a table and never meet. Default `'holdfast'`. */
  readonly prefix?: string;
  /** How long a verb waits for a connection and the answer together: milliseconds, or a literal, from 1 ms to 24.8 days. Default `'500ms'`. */
  readonly timeout?: Duration;
  /** Most bytes of one value, from 1 to 1 GiB. Default 1 MiB. */
  readonly maxValueBytes?: number;
  /** The table, with its schema if it is not on the search path: letters, digits and `_`, at most 40 each. Default `'holdfast'`. */
  readonly table?: string;
  /**
   * postgres.js only: prepares each statement once per connection, which saves about half of a verb's time. Never set it behind a pooler in
   * transaction mode: statements of postgres.js would be taken for one another there. `pg` prepares in any case, safely. Default false.
   */
  readonly prepare?: boolean;
  /**
   * Makes `watch` possible. For `pg` a function that answers a connected client of its own, called again whenever that one was lost, and ended by the store; for postgres.js its `sql`. It
   * needs a connection of its own to the server, not one through a pooler. Changes are told by stores that have a listener.
   */
  readonly listener?: (() => Promise<PgListener>) | PostgresJs;
  /** Measures `timeout`; the time of entries is the server's. Default `systemClock`. */
  readonly clock?: Clock;
}

/** What a {@link PostgresStore} can do besides; `watch` only with a `listener`. */
export interface PostgresNative
  extends Required<Pick<NativeCapabilities, 'readMany' | 'consume'>>,
    Pick<NativeCapabilities, 'watch'> {
  /**
   * A view of this store inside a transaction of yours: what it writes is done with the transaction, or not at all. Roll it back when a verb fails. Each
   * verb is sent on that connection; it has no `timeout` but waits for a row that somebody else keeps no longer than the store does.
   *
   * @throws {@link OptionsError} `ERR_OPTIONS` for what is no transaction, as a pool: it would write at once.
   */
  within(transaction: PostgresTransaction): StoreView;
}

/** What {@link postgresStore} makes. */
export interface PostgresStore extends ClosableStore {
  readonly native: PostgresNative;
  /** Makes the table and functions, or brings them up to date. Several processes may do so at once. Takes its time: no `timeout`. */
  migrate(): Promise<void>;
  /** Deletes rows whose time is over, at most `limit` of them (default 1000), and answers how many. Run it now and then. */
  sweep(limit?: number): Promise<number>;
}

/**
 * A store in Postgres, 13 or later, for all processes that reach it.
 *
 * Takes a `Pool` of `pg` or the `sql` of postgres.js and leaves it open when it is closed. Make the table once with `migrate()`, or run the SQL of
 * {@link postgresMigrations} yourself. It works behind PgBouncer in transaction mode. A verb whose `timeout` passes gives its connection
 * back broken, so that a pool of `pg` makes a new one; postgres.js cannot be told, and may send a verb after it has failed with `applied: 'unknown'`.
 *
 * @throws {@link OptionsError} `ERR_OPTIONS` at once, for an option, or a pool, that is wrong.
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
    maxValueBytes: maxValueBytesField,
    table: withDefault(tableField, 'holdfast'),
    prepare: withDefault(flag(), false),
    listener: optional<Listener>(listenerField),
    clock: withDefault(having<Clock>('a clock such as systemClock', 'now', 'schedule', 'cancel'), systemClock),
  });
  showBriefly(Verbs.prototype, ({ settings: { table, prefix } }) => ({ store: 'postgres', table, prefix }));
  return new PooledStore(driver, checked);
}

/** It stands in the SQL as it is. */
const tableField = {
  allowed: 'a name of 1 to 40 lower-case letters, digits and "_", with that of a schema before a dot if need be',
  parse: (value: unknown) =>
    typeof value === 'string' && /^(?:[a-z_][a-z0-9_]{0,39}\.)?[a-z_][a-z0-9_]{0,39}$/.test(value) ? value : undefined,
};

type Listener = (() => Promise<PgListener>) | PostgresJs;

const listenerField = {
  allowed: 'a function that answers a connected client of pg, or the sql of postgres.js',
  parse: (value: unknown) => (typeof value === 'function' ? (value as Listener) : undefined),
};

interface Settings {
  readonly prefix: string;
  readonly timeout: number;
  readonly maxValueBytes: number;
  readonly table: string;
  readonly prepare: boolean;
  readonly listener: Listener | undefined;
  readonly clock: Clock;
}

/** One row of an answer, as the server has sent it: users have their own ways to read types, and to spell the names of columns. */
type Row = readonly [string, ...string[]];

/** A statement, and what a server is to know it by: two of one name are one, whoever made them, as behind a pooler. */
interface Sql {
  readonly text: string;
  readonly name: string;
}

function sqlOf(text: string): Sql {
  const { createHash } = process.getBuiltinModule('node:crypto');
  return { text, name: `holdfast_${createHash('sha256').update(text).digest('hex').slice(0, 32)}` };
}

/**
 * The statements of the verbs. A read answers a row in any case: a reply without one is that of a connection that broke. An entry is one text, since
 * each column costs the server and the client a part of a round trip.
 *
 * @param goesOn - Whether they are parts of a transaction that goes on afterwards.
 */
function statementsOf(table: string, goesOn: boolean) {
  const { read, readMany, write, remove, consume, sweep } = functionsOf(table);
  const one = '(VALUES (1)) AS one LEFT JOIN';
  const entry = "concat_ws(',', held_version, age_ms, left_ms, encode(held_value, 'base64'))";
  return {
    read: sqlOf(`SELECT ${entry} FROM ${one} ${read}($1) AS held ON true`),
    // The drivers differ in how they send arrays; an array in words means the same to both.
    readMany: sqlOf(`SELECT ${entry}, encode(held_key, 'base64') FROM ${one} ${readMany}($1::text[]) AS held ON true`),
    write: sqlOf(`SELECT ${write}($1, $2, $3, $4, $5, $6, ${goesOn})`),
    remove: sqlOf(`SELECT ${remove}($1, $2, $3, $4, ${goesOn})::text`),
    consume: sqlOf(`SELECT granted::text, debt_ms::text FROM ${consume}($1, $2, $3, $4, $5)`),
    sweep: sqlOf(`SELECT ${sweep}($1)::text`),
  };
}

/** Runs one statement and answers its rows. */
type Run = (operation: string, sql: Sql, values: readonly Value[], signal?: AbortSignal) => Promise<readonly Row[]>;

/** The verbs, on whatever runs their statements. */
class Verbs implements Store {
  /** @internal */ readonly settings: Settings;
  protected readonly statements: ReturnType<typeof statementsOf>;
  protected readonly checks: VerbChecks;
  private readonly runStatement: Run;

  constructor(settings: Settings, run: Run, goesOn: boolean) {
    this.settings = settings;
    this.statements = statementsOf(settings.table, goesOn);
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
    // A copy: the driver may write it to its socket later.
    const values = [
      this.keyOf(key),
      Buffer.from(value),
      Math.ceil(ttlMs),
      ifVersion ?? null,
      this.channel,
      this.lockMs,
    ];
    const [answer] = answerOf('write', await this.runStatement('write', this.statements.write, values, signal));
    if (answer === '') return { ok: false, entry: undefined };
    const version = Number(answer);
    return Number.isNaN(version) ? { ok: false, entry: entryOf(answer) } : { ok: true, version };
  }

  async remove(key: string, options?: StoreRemoveOptions): Promise<boolean> {
    this.checks.remove(key, options);
    const values = [this.keyOf(key), options?.ifVersion ?? null, this.channel, this.lockMs];
    const { remove } = this.statements;
    const row = answerOf('remove', await this.runStatement('remove', remove, values, options?.signal));
    return row[0] === 'true';
  }

  /** Told of what changes; null where nobody can listen. */
  protected get channel(): string | null {
    const { listener, table } = this.settings;
    return listener === undefined ? null : channelOf(table);
  }

  /**
   * The server gives up the row of somebody else a little sooner than the store gives up the server, so that the store hears that nothing was done. Who
   * is not first in the queue for the row may wait twice as long, and is told too late.
   */
  protected get lockMs(): number {
    return Math.ceil(this.settings.timeout * 0.8);
  }

  protected keyOf(key: string): Buffer {
    // No prefix has this character.
    return Buffer.from(`${this.settings.prefix}\0${key}`);
  }
}

/** As many verbs may be under way at once, those that wait for a connection among them. */
const mostRunning = 10_000;

class PooledStore extends Verbs implements PostgresStore {
  readonly native: PostgresStore['native'];
  private readonly driver: Driver;
  private readonly watches: PostgresWatches | undefined;
  /** Statements that keep a connection, or a place in the queue for one, those included that nobody waits for any more. */
  private running = 0;
  private readonly underWay: VerbTimeouts;
  private isClosed = false;

  constructor(driver: Driver, settings: Settings) {
    super(settings, (operation, sql, values, signal) => this.run(operation, sql, values, signal), false);
    this.driver = driver;
    const { listener, table, clock, timeout } = settings;
    this.underWay = new VerbTimeouts(clock, timeout);
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
    const { table } = this.settings;
    const steps = postgresMigrations(table).map(({ sql }) => sql);
    // Two that make one table at once would trip over each other.
    const lock = `SELECT pg_advisory_xact_lock(hashtextextended('holdfast ${table}', 0))`;
    try {
      await this.driver.script([lock, ...steps]);
    } catch (error) {
      throw failureOf('migrate', error, true);
    }
  }

  async sweep(limit = 1_000): Promise<number> {
    const [row] = await this.run('sweep', this.statements.sweep, [limit], undefined);
    return Number(row?.[0]);
  }

  async close(): Promise<void> {
    if (this.isClosed) return;
    this.isClosed = true;
    this.underWay.each((verb) => (verb as Verb).storeClosed());
    this.underWay.close();
    this.driver.close();
    this.watches?.close();
  }

  private watch(watches: PostgresWatches, key: string, onChange: (change: StoreChange) => void): StoreWatch {
    const watcher = this.checks.watch(key, onChange, watches.watchers, this.isClosed);
    if (watcher.isStarting) watches.add(watcher, this.keyOf(key).toString('base64'));
    return watcher;
  }

  private within(transaction: unknown): StoreView {
    const connection = connectionOf(
      checkArgument('within', 'transaction', transaction, {
        allowed: 'a client of pg on which BEGIN was run, or what sql.begin of postgres.js gives',
        parse: (value: unknown) => (isTransaction(value) ? value : undefined),
      }),
    );
    const run: Run = async (operation, sql, values, signal) => {
      signal?.throwIfAborted();
      try {
        return connection.rowsOf(await connection.ask(sql, values, 'once'));
      } catch (error) {
        // What was done in a transaction is done when it is committed, which a failed one cannot be.
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
    // No record has this name: theirs have another character there.
    const name = Buffer.from(`${this.settings.prefix}\x01${key}`);
    const values = [name, rate.intervalMs, rate.burst, rate.cost, this.lockMs];
    const row = answerOf('consume', await this.run('consume', this.statements.consume, values, options.signal));
    return rate.answer(Number(row[1]), row[0] === 'true');
  }

  /** One statement on a connection of the pool, within the time that a verb has. */
  private run(
    operation: string,
    sql: Sql,
    values: readonly Value[],
    signal: AbortSignal | undefined,
  ): Promise<readonly Row[]> {
    if (this.isClosed) return Promise.reject(failure(operation, 'closed', closedDetail));
    if (this.running >= mostRunning) {
      const detail = `${mostRunning} verbs are under way; raise the size of the pool, or ask for less`;
      return Promise.reject(failure(operation, 'busy', detail));
    }
    this.running++;
    return new Promise((resolve, reject) => {
      const verb = new Verb(this, operation, this.driver.statement(sql, values), signal, resolve, reject);
      this.underWay.begin(verb);
      if (signal !== undefined) verb.listen();
      void verb.statement.begin(verb);
    });
  }

  /** @internal */
  get timeoutMs(): number {
    return this.settings.timeout;
  }

  /** @internal */
  ended(verb: Verb): void {
    this.underWay.end(verb);
  }

  /** @internal */
  statementEnded(): void {
    this.running--;
  }
}

const closedDetail = 'the store is closed';

/** One verb on its way. */
class Verb extends TimedVerb {
  readonly statement: Statement;
  private isOver = false;
  private readonly store: PooledStore;
  private readonly operation: string;
  private readonly signal: AbortSignal | undefined;
  private readonly resolve: (rows: readonly Row[]) => void;
  private readonly reject: (error: unknown) => void;
  private onAbort: (() => void) | undefined = undefined;

  constructor(
    store: PooledStore,
    operation: string,
    statement: Statement,
    signal: AbortSignal | undefined,
    resolve: (rows: readonly Row[]) => void,
    reject: (error: unknown) => void,
  ) {
    super();
    this.store = store;
    this.operation = operation;
    this.statement = statement;
    this.signal = signal;
    this.resolve = resolve;
    this.reject = reject;
  }

  listen(): void {
    const signal = this.signal!;
    this.onAbort = () => this.giveUp(signal.reason);
    addAbortListener(signal, this.onAbort);
  }

  answered(rows: readonly Row[]): void {
    this.store.statementEnded();
    if (this.end()) this.resolve(rows);
  }

  failed(error: unknown): void {
    this.store.statementEnded();
    if (this.end()) this.reject(failureOf(this.operation, error, !this.statement.hasLeft()));
  }

  override timedOut(): void {
    const { timeoutMs } = this.store;
    const unsent = `the pool had no connection to give for ${timeoutMs} ms; raise its size, or look for who keeps them`;
    this.late(unsent, `the server did not answer within ${timeoutMs} ms`, 'timeout');
  }

  storeClosed(): void {
    this.late(closedDetail, 'the store was closed', 'closed');
  }

  /** Whether it was not over before. */
  private end(): boolean {
    if (this.isOver) return false;
    this.isOver = true;
    this.store.ended(this);
    if (this.onAbort !== undefined) removeAbortListener(this.signal!, this.onAbort);
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

/** What a statement is given: bytes, a number, a name of ours, or nothing. */
type Value = Buffer | number | string | null;

/** A statement on its way. */
interface Statement {
  /** Tells the verb once how it ended, also when it has been given up: then it keeps nothing any more. Never rejects. */
  begin(verb: Verb): Promise<void>;
  /** Whether the server may have heard of it. */
  hasLeft(): boolean;
  /** Nobody waits any more. */
  giveUp(): void;
}

/** What the two libraries have in common, each in its own words. */
interface Driver {
  /** @param prepare - Whether statements may be prepared under names that are not ours. */
  open(prepare: boolean): void;
  close(): void;
  statement(sql: Sql, values: readonly Value[]): Statement;
  /** Runs statements without values in a transaction. */
  script(statements: readonly string[]): Promise<void>;
}

function recognise(pool: unknown): Driver | undefined {
  if (isPostgresJs(pool)) return postgresJs(pool);
  if (typeof pool !== 'object' || pool === null) return undefined;
  const { connect, on, off, release } = pool as Partial<PgPool & PgPoolClient>;
  const isPool = [connect, on, off].every((method) => typeof method === 'function') && release === undefined;
  // A single client has a connection of its own, on which nothing else could run meanwhile.
  return isPool && 'totalCount' in pool ? pg(pool as unknown as PgPool) : undefined;
}

function isPostgresJs(value: unknown): value is PostgresJs {
  return typeof value === 'function' && 'unsafe' in value && 'begin' in value && 'listen' in value;
}

function pg(pool: PgPool): Driver {
  // A connection that breaks while nobody uses it would end the process, if nobody else listens.
  const ignoreIdle = () => {};
  // Its names are ours, so one that a pooler gives to another connection means the same there.
  const asking = new Asking('often');
  return {
    open: () => addClientListener(pool, 'error', ignoreIdle),
    close: () => removeClientListener(pool, 'error', ignoreIdle),
    statement: (sql, values) => new PgStatement(pool, asking, sql, values),
    async script(statements) {
      const client = await pool.connect();
      let isDone = false;
      try {
        await client.query({ text: ['BEGIN', ...statements, 'COMMIT'].join(';\n') });
        isDone = true;
      } finally {
        // It may be in the middle of a transaction.
        client.release(!isDone);
      }
    },
  };
}

const ignore = () => {};

/** A statement on a connection that a pool of `pg` lends to it. */
class PgStatement implements Statement {
  private readonly pool: PgPool;
  private readonly asking: Asking;
  private readonly sql: Sql;
  private readonly values: readonly Value[];
  private client: PgPoolClient | undefined = undefined;
  private isOver = false;

  constructor(pool: PgPool, asking: Asking, sql: Sql, values: readonly Value[]) {
    this.pool = pool;
    this.asking = asking;
    this.sql = sql;
    this.values = values;
  }

  async begin(verb: Verb): Promise<void> {
    try {
      const client = await this.pool.connect();
      if (this.isOver) {
        client.release();
        return verb.answered([]);
      }
      this.client = client;
      client.on('error', ignore);
      const rows = await this.asking.ask(pgConnection(client), this.sql, this.values);
      if (!this.isOver) this.release(false);
      verb.answered(rows);
    } catch (error) {
      if (!this.isOver) this.release(isBroken(error));
      verb.failed(error);
    }
  }

  hasLeft(): boolean {
    return this.client !== undefined;
  }

  giveUp(): void {
    // What it was asked may still come back on its connection.
    this.release(true);
  }

  private release(broken: boolean): void {
    this.isOver = true;
    // A broken one may have more to say; it is not used again.
    if (!broken) this.client?.off('error', ignore);
    this.client?.release(broken);
  }
}

function postgresJs(sql: PostgresJs): Driver {
  let asking = new Asking('once');
  const connection = postgresJsConnection(sql);
  return {
    open(prepare) {
      if (prepare) asking = new Asking('often');
    },
    close() {},
    // It does not say whether a query has left its queue; and one that is cancelled before may block its connection for ever. So none is taken back.
    statement: (text, values) => ({
      async begin(verb) {
        try {
          verb.answered(await asking.ask(connection, text, values));
        } catch (error) {
          verb.failed(error);
        }
      },
      hasLeft: () => true,
      giveUp() {},
    }),
    script: async (statements) => {
      await sql.begin((transaction) => transaction.unsafe(statements.join(';\n')));
    },
  };
}

/** Whether a connection is to know the statement from then on, which saves the server the planning of it. */
type Use = 'often' | 'once';

/** Where statements are run. */
interface Connection {
  ask(sql: Sql, values: readonly Value[], use: Use): Promise<unknown>;
  /** Of what it answers. */
  rowsOf(answer: unknown): readonly Row[];
}

/**
 * Prepares statements where that works. Behind a pooler in transaction mode that knows nothing of prepared statements, the next one goes to
 * another connection, which lacks it or has it already; it says so before anything is done, is asked again at once, and nothing is prepared any more.
 */
class Asking {
  private use: Use;

  constructor(use: Use) {
    this.use = use;
  }

  async ask(connection: Connection, sql: Sql, values: readonly Value[]): Promise<readonly Row[]> {
    const { use } = this;
    try {
      return connection.rowsOf(await connection.ask(sql, values, use));
    } catch (error) {
      if (use === 'once' || !['26000', '42P05'].includes((error as { code?: string }).code ?? '')) throw error;
      this.use = 'once';
      return this.ask(connection, sql, values);
    }
  }
}

function connectionOf(transaction: PostgresTransaction): Connection {
  return 'unsafe' in transaction ? postgresJsConnection(transaction) : pgConnection(transaction);
}

function postgresJsConnection(sql: Pick<PostgresJs, 'unsafe'>): Connection {
  return {
    ask({ text }, values, use) {
      const asked =
        use === 'often' ? sql.unsafe(text, values as Value[], { prepare: true }) : sql.unsafe(inWords(text, values));
      return asked.raw();
    },
    // Rows go through what the user has for rows also here.
    rowsOf: (rows) =>
      (rows as readonly object[]).map((row) => Object.values(row).map(String) as readonly string[] as Row),
  };
}

const asSent = { getTypeParser: () => String };

function pgConnection(client: PgClient): Connection {
  return {
    ask({ text, name }, values, use) {
      const query = { text, values: values as Value[], rowMode: 'array', types: asSent } as const;
      return client.query(use === 'often' ? { name, ...query } : query);
    },
    rowsOf: (result) => (result as { rows: Row[] }).rows,
  };
}

/**
 * The statement with its values in it. With values beside one that is not prepared postgres.js first asks for their types, each time: a second round trip.
 * They are bytes, numbers and names of ours, so nothing in them can be taken for SQL.
 */
function inWords(text: string, values: readonly Value[]): string {
  return text.replace(/\$(\d)/g, (_, number: string) => {
    const value = values[Number(number) - 1];
    if (value === null || value === undefined) return 'NULL';
    if (typeof value === 'number') return `${value}`;
    if (typeof value === 'string') return `'${value.replaceAll("'", "''")}'`;
    return `decode('${value.toString('base64')}', 'base64')`;
  });
}

function channelOf(table: string): string {
  // 63 characters are the most. Tables that share one hear of each other's changes, too many rather than too few.
  return `${table.replace('.', '_')}_changes`.slice(-63);
}

function listenBy(listener: Listener, channel: string): Listen {
  return isPostgresJs(listener) ? listenByPostgresJs(listener, channel) : listenByPg(listener, channel);
}

function listenByPostgresJs(sql: PostgresJs, channel: string): Listen {
  return async ({ onPayload, onListening }) => {
    let connections = 0;
    // It connects again by itself, and says so.
    const { unlisten } = await sql.listen(
      channel,
      (payload) => onPayload(inOneLine(payload)),
      () => {
        if (++connections > 1) onListening();
      },
    );
    return { end: () => void unlisten().catch(() => {}) };
  };
}

function listenByPg(connect: () => Promise<PgListener>, channel: string): Listen {
  return async ({ onPayload, onLost }) => {
    const client = await connect();
    const end = () => void client.end().catch(() => {});
    // It stays until the end: an error that nobody listens to would end the process.
    client.on('error', onLost);
    client.on('end', onLost);
    client.on('notification', (told: { channel: string; payload?: string }) => {
      if (told.channel === channel) onPayload(inOneLine(told.payload ?? ''));
    });
    try {
      await client.query({ text: `LISTEN "${channel}"` });
    } catch (error) {
      end();
      throw error;
    }
    return { confirm: () => client.query({ text: 'SELECT 1' }), end };
  };
}

/** postgres.js answers a query with nothing when its connection broke at the wrong moment; then nobody knows what was done. */
function answerOf(operation: string, rows: readonly Row[]): Row {
  const [row] = rows;
  if (row === undefined) throw lost(operation, 'the reply had no row: the connection broke', undefined, 'closed');
  return row;
}

function entryOf(held: string): Entry {
  const [version, ageMs, leftMs, value] = held.split(',');
  return {
    // What is made of a text may be a piece of a greater buffer.
    value: new Uint8Array(Buffer.from(value!, 'base64')),
    version: Number(version),
    // The clock of the server may have been put back since.
    ageMs: Math.max(0, Number(ageMs)),
    ttlMs: Math.max(0, Number(leftMs)),
  };
}

/** The server breaks a line of base64 after 76 characters. */
function inOneLine(base64: string): string {
  return base64.replaceAll('\n', '');
}

/** What a server answers instead of doing anything, by the beginning of its code, and what may help. */
const refusals: readonly (readonly [code: string, reason: StoreFailure, advice: string])[] = [
  ['42P01', 'schema', 'the table is not there; run store.migrate(), or the SQL of postgresMigrations()'],
  [
    '42883',
    'schema',
    'the functions of this version are not there; run store.migrate(), or the SQL of postgresMigrations()',
  ],
  ['3F000', 'schema', 'the schema named in "table" does not exist'],
  ['42703', 'schema', 'the table is not the one that postgresMigrations() makes; use another "table"'],
  ['42804', 'schema', 'the table is not the one that postgresMigrations() makes; use another "table"'],
  ['25006', 'failed', 'this server takes no writes: it is a standby, or read-only'],
  ['53100', 'full', 'the disk of the server is full'],
  ['53200', 'full', 'the server has no memory left'],
  ['53300', 'busy', 'the server has no connection left; make pools smaller, or use a pooler'],
  ['53', 'busy', 'the server is short of something'],
  ['57P03', 'busy', 'the server is starting or stopping'],
  ['57014', 'timeout', 'the server cancelled the statement, by its "statement_timeout" or on request'],
  ['55P03', 'busy', "somebody else's transaction keeps the row locked"],
  ['40', 'busy', 'the transaction had to give way to another one; try again'],
  ['42501', 'failed', 'the role may not use the table or its functions'],
  ['25P02', 'failed', 'a statement of this transaction has failed before'],
  ['28', 'failed', 'the server does not let this user in'],
  ['3D000', 'failed', 'the database does not exist'],
];

/** Of sockets that were never open. */
const unsentCodes = ['CONNECT_TIMEOUT', 'ECONNREFUSED', 'ENOTFOUND', 'EHOSTUNREACH', 'ENETUNREACH', 'EAI_AGAIN'];

function isBroken(cause: unknown): boolean {
  const { code } = cause as { code?: unknown };
  // What the server itself says has five characters, as has a socket's EPIPE, and only with 57P01 to 57P03 does it close the connection.
  if (typeof code !== 'string' || !/^[0-9A-Z]{5}$/.test(code) || code === 'EPIPE') return true;
  return code.startsWith('57P') || code.startsWith('08');
}

/** @param isUnsent - Whether what failed came before the statement, or takes all of its work with it. */
function failureOf(operation: string, cause: unknown, isUnsent: boolean): StoreError {
  const message = messageOf(cause);
  const code = String((cause as { code?: unknown } | undefined)?.code ?? '');
  const refusal = refusals.find(([start]) => code.length === 5 && code.startsWith(start));
  if (refusal !== undefined) return failure(operation, refusal[1], `${refusal[2]}: ${message}`, cause);
  if (unsentCodes.includes(code)) return failure(operation, 'closed', message, cause);
  if (/timeout exceeded when trying to connect/i.test(message)) {
    return failure(operation, 'busy', `the pool had no connection to give; raise its size: ${message}`, cause);
  }
  const reason = isBroken(cause) ? 'closed' : 'failed';
  return isUnsent ? failure(operation, reason, message, cause) : lost(operation, message, cause, reason);
}

function failure(operation: string, reason: StoreFailure, detail: string, cause?: unknown): StoreError {
  return new StoreError({ store: 'postgres', operation, reason, applied: 'no', detail, cause });
}

/** For what may have been done; a read changes nothing in any case. */
function lost(operation: string, detail: string, cause?: unknown, reason: StoreFailure = 'failed'): StoreError {
  const applied = operation.startsWith('read') ? 'no' : 'unknown';
  return new StoreError({ store: 'postgres', operation, reason, applied, detail, cause });
}
