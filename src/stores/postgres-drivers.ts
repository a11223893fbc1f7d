/**
 * Drivers: how each of the two libraries of Postgres is asked, given up and listened to, in words that they have in common.
 *
 * Promise: a statement tells once how it ended; nothing is sent a second time, but for a name that a pooler has lost, which is found out before anything is done.
 */

import { asMicrotask } from '../core/event-loop.js';
import { addClientListener, removeClientListener } from './client-events.js';
import { failure, isBroken } from './postgres-failures.js';
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
  /** It may promise the client instead, as wrapped pools do. */
  connect(callback: (error: Error | undefined, client: PgPoolClient | undefined) => void): unknown;
  // biome-ignore lint/suspicious/noExplicitAny: each event has a listener of its own type.
  on(event: any, listener: (...values: any[]) => void): unknown;
  // biome-ignore lint/suspicious/noExplicitAny: see above.
  off(event: any, listener: (...values: any[]) => void): unknown;
}

/** What `postgresStore` needs of postgres.js, version 3: what its factory answers has it. */
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

/** What a transaction of the user's runs on: a client of `pg`, or the `sql` that postgres.js gives to `sql.begin`. */
export type PostgresTransaction = PgClient | Pick<PostgresJs, 'unsafe'>;

/** One row of an answer, as the server has sent it: users have their own ways to read types, and to spell the names of columns. */
export type Row = readonly [string, ...string[]];

/** A statement, and what a server is to know it by: two of one name are one, whoever made them, as behind a pooler. */
export interface Sql {
  readonly text: string;
  readonly name: string;
}

/** What a statement is given: bytes, a number, a name of ours, or nothing. */
export type Value = Buffer | number | string | null;

/** Who wants to know how a statement ends. */
interface Asker {
  readonly answered: (rows: readonly Row[]) => void;
  readonly failed: (error: unknown) => void;
}

/** A statement on its way. */
export interface Statement {
  /** Tells once how it ended, also when it has been given up: then it keeps nothing any more. Never throws. */
  begin(asker: Asker): void;
  /** Whether the server may have heard of it. */
  hasLeft(): boolean;
  /** Nobody waits any more. */
  giveUp(): void;
}

/** What the two libraries have in common, each in its own words. */
export interface Driver {
  /** @param prepare - Whether statements may be prepared under names that are not ours. */
  open(prepare: boolean): void;
  close(): void;
  statement(sql: Sql, values: readonly Value[]): Statement;
  /** Runs statements without values in a transaction. */
  script(statements: readonly string[]): Promise<void>;
}

export function recognise(pool: unknown): Driver | undefined {
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
      const client = await new Promise<PgPoolClient>((resolve, reject) => lend(pool, resolve, reject));
      let isDone = false;
      try {
        await client.query({ text: ['BEGIN', ...statements, 'COMMIT'].join(';\n') });
        isDone = true;
      } finally {
        // It may be in the middle of a transaction.
        giveBack(client, !isDone);
      }
    },
  };
}

const ignore = () => {};

/**
 * Gives a client of the pool, with a listener for its errors before anything else can happen: a server may end a connection with its first words to it, and an error
 * that nobody listens to ends the process.
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
    // What somebody has wrapped around a pool may only know of promises.
    promised?.then?.(
      (client) => client && take(undefined, client),
      (error: unknown) => take(error, undefined),
    );
  } catch (error) {
    take(error, undefined);
  }
}

function giveBack(client: PgPoolClient, isBroken: boolean): void {
  // A broken one may have more to say; it is not used again.
  if (!isBroken) client.off('error', ignore);
  client.release(isBroken);
}

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
        // Not at once: the pool lends it to the next as it gets it, thousands may be over, and each would run within the one before it.
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
    // What it was asked may still come back on its connection.
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
  return {
    open(prepare) {
      if (prepare) asking = new Asking('often');
    },
    close() {},
    // It does not say whether a query has left its queue; and one that is cancelled before may block its connection for ever. So none is taken back.
    statement: (text, values) => ({
      begin(asker) {
        asking.ask(connection, text, values, asker);
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

export function listenBy(listener: PostgresListener, channel: string): Listen {
  return isPostgresJs(listener) ? listenByPostgresJs(listener, channel) : listenByPg(listener, channel);
}

function listenByPostgresJs(sql: PostgresJs, channel: string): Listen {
  return async ({ onPayload, onListening }) => {
    let connections = 0;
    // It connects again by itself, and says so.
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
    // It stays until the end: an error that nobody listens to would end the process.
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
 * A pooler takes LISTEN and tells nothing. It makes up which backend a connection has: one that the server does not know. A standby knows only its
 * own, and takes no LISTEN.
 */
async function refusePooler(connection: Connection, pid: unknown): Promise<void> {
  if (typeof pid !== 'number') return;
  const text = `SELECT (pg_is_in_recovery() OR EXISTS (SELECT FROM pg_stat_activity WHERE pid = ${pid}))::text`;
  const [row] = connection.rowsOf(await connection.ask({ text, name: '' }, [], 'once'));
  if (row?.[0] !== 'false') return;
  const detail = `the server has no backend ${pid}: "listener" must connect to the server itself, not to a pooler`;
  throw failure('watch', 'invalid', detail);
}

/** The server breaks a line of base64 after 76 characters. */
export function inOneLine(base64: string): string {
  return base64.replaceAll('\n', '');
}
