/**
 * Drivers: one interface for running, giving up and listening, for the two Postgres libraries.
 *
 * Promise: a statement reports its outcome once. Nothing is sent twice, except a statement whose prepared name a pooler has lost; the server reports that
 * before it does anything.
 */

import { asMicrotask, queueTask } from '../core/event-loop.js';
import { addClientListener, removeClientListener } from './client-events.js';
import { failure, isBroken, UnreadableReply } from './postgres-failures.js';
import type { Listen } from './postgres-watches.js';

/** What `postgresStore` needs of a client of `pg`: one connection. */
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

/** What `postgresStore` needs of `pg`: a `Pool` has it. */
export interface PgPool {
  /** Wrapped pools may return a promise of the client instead. */
  connect(callback: (error: Error | undefined, client: PgPoolClient | undefined) => void): unknown;
  // biome-ignore lint/suspicious/noExplicitAny: each event has a listener of its own type.
  on(event: any, listener: (...values: any[]) => void): unknown;
  // biome-ignore lint/suspicious/noExplicitAny: see above.
  off(event: any, listener: (...values: any[]) => void): unknown;
}

/** What `postgresStore` needs of postgres.js, version 3: the result of its factory has it. */
export interface PostgresJs {
  // biome-ignore lint/suspicious/noExplicitAny: its own types are generic over the types that a user adds.
  unsafe(query: string, values?: any[], options?: { readonly prepare: boolean }): any;
  // biome-ignore lint/suspicious/noExplicitAny: see above.
  begin(work: (transaction: any) => Promise<void>): Promise<unknown>;
  listen(
    channel: string,
    onNotify: (payload: string) => void,
    onListen?: () => void,
  ): Promise<{ unlisten(): Promise<void>; readonly state?: { readonly pid: number } }>;
}

/** What a store listens with. */
export type PostgresListener = (() => Promise<PgListener>) | PostgresJs;

/** The connection of a user's transaction: a client of `pg`, or the `sql` that postgres.js passes to `sql.begin`. */
export type PostgresTransaction = PgClient | Pick<PostgresJs, 'unsafe'>;

/** One row of a reply, as text as the server sent it: users configure how types are parsed and columns are named. */
export type Row = readonly [string, ...string[]];

/** A statement and its prepared name. Two of the same name must be the same statement, whoever made them, because a pooler may share them. */
export interface Sql {
  readonly text: string;
  readonly name: string;
}

/** The value of a parameter: bytes, a number, a name of ours, or null. */
export type Value = Buffer | number | string | null;

/** The callbacks for the outcome of a statement. */
interface Asker {
  readonly answered: (rows: readonly Row[]) => void;
  readonly failed: (error: unknown) => void;
}

/** A statement in progress. */
export interface Statement {
  /** Reports its outcome once, even after it has been given up; from then on it holds no resources. Never throws. */
  begin(asker: Asker): void;
  /** Whether the server may have received it. */
  hasLeft(): boolean;
  /** Tells that nobody waits for the outcome any more. */
  giveUp(): void;
}

/** The common interface of the two libraries. */
export interface Driver {
  /** Ends the message that says that the server did not answer in time: what else the cause may be with this library. */
  readonly lateAdvice: string;
  /** @param prepare - Whether statements may be prepared under names that the library chooses. */
  open(prepare: boolean): void;
  close(): void;
  statement(sql: Sql, values: readonly Value[]): Statement;
}

export function recognise(pool: unknown): Driver | undefined {
  if (isPostgresJs(pool)) return postgresJs(pool);
  if (typeof pool !== 'object' || pool === null) return undefined;
  const { connect, on, off, release } = pool as Partial<PgPool & PgPoolClient>;
  const isPool = [connect, on, off].every((method) => typeof method === 'function') && release === undefined;
  // A single client has one connection only, which nothing else could use during a verb.
  return isPool && 'totalCount' in pool ? pg(pool as unknown as PgPool) : undefined;
}

function isPostgresJs(value: unknown): value is PostgresJs {
  return typeof value === 'function' && 'unsafe' in value && 'begin' in value && 'listen' in value;
}

function pg(pool: PgPool): Driver {
  // Without a listener, an error of an idle connection would end the process.
  const ignoreIdle = () => {};
  // The prepared names are ours, so on any connection that a pooler assigns, a name means the same statement.
  const asking = new Asking('often');
  return {
    lateAdvice: '',
    open: () => addClientListener(pool, 'error', ignoreIdle),
    close: () => removeClientListener(pool, 'error', ignoreIdle),
    statement: (sql, values) => new PgStatement(pool, asking, sql, values),
  };
}

const ignore = () => {};

/**
 * Takes a client from the pool and adds a listener for its errors before anything else can happen. A server may end a connection with the first thing it
 * sends, and an error without a listener ends the process.
 */
function lend(pool: PgPool, lent: (client: PgPoolClient) => void, failed: (error: unknown) => void): void {
  let isOver = false;
  const take = (error: unknown, client: PgPoolClient | undefined) => {
    if (isOver) return;
    isOver = true;
    if (!client) return failed(error);
    client.on('error', ignore);
    lent(client);
  };
  try {
    const promised = pool.connect(take) as Promise<PgPoolClient | undefined> | undefined;
    // A wrapped pool may support only promises.
    promised?.then?.(
      (client) => client && take(undefined, client),
      (error: unknown) => take(error, undefined),
    );
  } catch (error) {
    take(error, undefined);
  }
}

function giveBack(client: PgPoolClient, isBroken: boolean): void {
  // A broken client may emit more errors, and is not used again: it keeps its listener.
  if (!isBroken) client.off('error', ignore);
  client.release(isBroken);
}

/** A statement on a connection lent by a pool of `pg`. */
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

  begin(asker: Asker): void {
    const failed = (error: unknown) => {
      if (!this.isOver) this.release(isBroken(error));
      asker.failed(error);
    };
    const answered = (rows: readonly Row[]) => {
      if (!this.isOver) this.release(false);
      asker.answered(rows);
    };
    const lent = (client: PgPoolClient) => {
      if (this.isOver) {
        // Deferred: the pool lends the client to the next request synchronously. Thousands may be over already, and each would run inside the one before it.
        return asMicrotask(() => {
          giveBack(client, false);
          asker.answered([]);
        });
      }
      this.client = client;
      this.asking.ask(pgConnection(client), this.sql, this.values, { answered, failed });
    };
    lend(this.pool, lent, failed);
  }

  hasLeft(): boolean {
    return this.client !== undefined;
  }

  giveUp(): void {
    // The reply may still arrive on this connection, so the pool must not reuse it.
    this.release(true);
  }

  private release(broken: boolean): void {
    this.isOver = true;
    if (this.client !== undefined) giveBack(this.client, broken);
  }
}

function postgresJs(sql: PostgresJs): Driver {
  let asking = new Asking('once');
  const connection = postgresJsConnection(sql);
  const breaks = new Breaks();
  return {
    lateAdvice: ', or its connections were all in use; then raise "max", or look for a long transaction',
    open(prepare) {
      if (prepare) asking = new Asking('often');
    },
    close() {},
    // postgres.js does not tell whether a query has left its queue, and cancelling it before may block its connection for ever. So no query is cancelled.
    statement: (text, values) => ({
      begin({ answered, failed }) {
        const asker = {
          answered,
          failed(error: unknown) {
            if (isBroken(error)) breaks.note();
            failed(error);
          },
        };
        breaks.afterLast(() => asking.ask(connection, text, values, asker));
      },
      hasLeft: () => true,
      giveUp() {},
    }),
  };
}

/**
 * The breaks of connections of postgres.js 3.4. It takes a query that comes between the error of a socket and its end, even a repeated one, for the broken
 * connection. The next connection then waits for the reply to that query, which it has not sent, for ever.
 */
class Breaks {
  private last: Promise<void> | undefined = undefined;

  note(): void {
    // The platform reports the end of a socket after all else in the turn of its error.
    const last = new Promise<void>((resolve) => queueTask(() => queueTask(resolve))).then(() => {
      if (this.last === last) this.last = undefined;
    });
    this.last = last;
  }

  /** Runs a task once the sockets of all breaks have ended: at once, if nothing has just broken. */
  afterLast(task: () => void): void {
    if (this.last === undefined) task();
    else void this.last.then(() => this.afterLast(task));
  }
}

/** Whether a connection should keep the statement prepared, which saves the server the planning. */
type Use = 'often' | 'once';

/** A connection that runs statements. */
interface Connection {
  ask(sql: Sql, values: readonly Value[], use: Use): Promise<unknown>;
  /** The rows of the result. */
  rowsOf(answer: unknown): readonly Row[];
}

/**
 * Prepares statements if that works. Behind a pooler in transaction mode without support for prepared statements, the next statement goes to another
 * connection, which lacks the name or has it already. That server says so before it does anything; the statement is sent again at once, and from then on
 * nothing is prepared.
 */
class Asking {
  private use: Use;

  constructor(use: Use) {
    this.use = use;
  }

  ask(connection: Connection, sql: Sql, values: readonly Value[], { answered, failed }: Asker): void {
    const { use } = this;
    const refused = (error: unknown) => {
      if (use === 'once' || !['26000', '42P05'].includes((error as { code?: string }).code ?? '')) return failed(error);
      this.use = 'once';
      this.ask(connection, sql, values, { answered, failed });
    };
    try {
      connection
        .ask(sql, values, use)
        .then((answer) => answered(connection.rowsOf(answer)))
        .catch(refused);
    } catch (error) {
      asMicrotask(() => failed(error));
    }
  }
}

export function connectionOf(transaction: PostgresTransaction): Connection {
  return 'unsafe' in transaction ? postgresJsConnection(transaction) : pgConnection(transaction);
}

function postgresJsConnection(sql: Pick<PostgresJs, 'unsafe'>): Connection {
  return {
    ask({ text }, values, use) {
      const asked =
        use === 'often' ? sql.unsafe(text, values as Value[], { prepare: true }) : sql.unsafe(inWords(text, values));
      return asked.raw();
    },
    rowsOf(answer) {
      // Without rows there may be no columns either.
      const rows = answer as readonly object[] & { readonly columns: readonly unknown[] };
      return rows.map((row) => sentIn(row, rows.columns.length));
    },
  };
}

/** Finds what the server sent in a row that the user's `transform.row.from` may have changed: the raw values are bytes or null, and no others are. */
function sentIn(row: object, columns: number): Row {
  const sent = Object.values(row).filter((value) => value === null || value instanceof Uint8Array);
  if (sent.length === columns) return sent.map(String) as readonly string[] as Row;
  throw new UnreadableReply('rows are changed before they can be read: use a postgres.js without "transform.row.from"');
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
 * The statement with its values as literals. For an unprepared statement with parameters, postgres.js first asks for their types each time, in a second round
 * trip. The values are bytes, numbers and names of ours, so nothing in them can be taken for SQL.
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

export function listenBy(listener: PostgresListener, channel: string): Listen {
  return isPostgresJs(listener) ? listenByPostgresJs(listener, channel) : listenByPg(listener, channel);
}

function listenByPostgresJs(sql: PostgresJs, channel: string): Listen {
  return async ({ onPayload, onListening }) => {
    let connections = 0;
    // postgres.js reconnects by itself, and calls this again.
    const { unlisten, state } = await sql.listen(
      channel,
      (payload) => onPayload(inOneLine(payload)),
      () => {
        if (++connections > 1) onListening();
      },
    );
    const end = () => void unlisten().catch(() => {});
    try {
      await refusePooler(postgresJsConnection(sql), state?.pid);
    } catch (error) {
      end();
      throw error;
    }
    return { end };
  };
}

function listenByPg(connect: () => Promise<PgListener>, channel: string): Listen {
  return async ({ onPayload, onLost }) => {
    const client = await connect();
    const end = () => void client.end().catch(() => {});
    // The listener stays until the end: an error without a listener would end the process.
    client.on('error', onLost);
    client.on('end', onLost);
    client.on('notification', (told: { channel: string; payload?: string }) => {
      if (told.channel === channel) onPayload(inOneLine(told.payload ?? ''));
    });
    try {
      await refusePooler(pgConnection(client), (client as { readonly processID?: unknown }).processID);
      await client.query({ text: `LISTEN "${channel}"` });
    } catch (error) {
      end();
      throw error;
    }
    return { confirm: () => client.query({ text: 'SELECT 1' }), end };
  };
}

/**
 * Rejects a pooler, because it accepts LISTEN and then delivers nothing. A pooler invents the backend pid of a connection, so the server does not know it. A
 * standby knows only its own backends, and does not accept LISTEN.
 */
async function refusePooler(connection: Connection, pid: unknown): Promise<void> {
  if (typeof pid !== 'number') return;
  const text = `SELECT (pg_is_in_recovery() OR EXISTS (SELECT FROM pg_stat_activity WHERE pid = ${pid}))::text`;
  const [row] = connection.rowsOf(await connection.ask({ text, name: '' }, [], 'once'));
  if (row?.[0] !== 'false') return;
  const detail = `the server has no backend ${pid}: "listener" must connect to the server itself, not to a pooler`;
  throw failure('watch', 'invalid', detail);
}

/** The server breaks base64 text after 76 characters. */
export function inOneLine(base64: string): string {
  return base64.replaceAll('\n', '');
}
