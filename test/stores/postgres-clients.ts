/** The client libraries that the Postgres store takes, each connected in its own way. */
import pg from 'pg';
import postgres from 'postgres';
import type { PgListener, PgPool, PostgresJs, PostgresTransaction } from '../../src/stores/postgres.js';

export interface PostgresConnection {
  readonly pool: PgPool | PostgresJs;
  /** Makes `watch` possible. */
  readonly listener: (() => Promise<PgListener>) | PostgresJs;
  /** Runs any SQL. */
  query(sql: string): Promise<readonly Record<string, unknown>[]>;
  /** Runs something in a transaction of its own, which is rolled back when it throws. */
  transaction(work: (client: PostgresTransaction) => Promise<void>): Promise<void>;
  close(): Promise<void>;
}

export interface PostgresDriver {
  readonly title: string;
  /** @param isPooled - Whether a pooler in transaction mode is in between. */
  connect(port: number, size?: number, isPooled?: boolean): PostgresConnection;
}

const place = { host: '127.0.0.1', user: 'postgres', database: 'postgres' };

export const drivers: readonly PostgresDriver[] = [
  {
    title: 'pg',
    connect(port, size = 10) {
      const pool = new pg.Pool({ ...place, port, max: size });
      // The servers behind it are terminated while it is connected.
      pool.on('error', () => {});
      return {
        pool,
        async listener() {
          const client = new pg.Client({ ...place, port });
          // Servers are also terminated while it connects.
          client.on('error', () => {});
          await client.connect();
          return client;
        },
        query: async (sql) => (await pool.query(sql)).rows,
        async transaction(work) {
          const client = await pool.connect();
          try {
            await client.query('BEGIN');
            await work(client);
            await client.query('COMMIT');
          } catch (error) {
            await client.query('ROLLBACK');
            throw error;
          } finally {
            client.release();
          }
        },
        close: () => pool.end(),
      };
    },
  },
  {
    title: 'postgres.js',
    connect(port, size = 10, isPooled = false) {
      const sql = postgres({
        ...{ ...place, port, max: size, onnotice: () => {}, backoff: () => 0.02, fetch_types: false },
        // Behind a pooler its COMMIT would be a prepared statement that another server may not know, and on the second try it sends a rollback.
        prepare: !isPooled,
      });
      return {
        pool: sql,
        listener: sql,
        // Its queries are only sent when somebody awaits them.
        query: async (text) => (await sql.unsafe(text)) as Record<string, unknown>[],
        async transaction(work) {
          await sql.begin((transaction) => work(transaction));
        },
        close: () => sql.end({ timeout: 1 }),
      };
    },
  },
];
