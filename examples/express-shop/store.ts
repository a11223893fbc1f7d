/**
 * Where the records are stored: by default in an SQLite file, shared by all processes of one machine. For a server shared by several machines, set
 * SHOP_STORE=redis://host:port or SHOP_STORE=postgres://user@host:port/database (which needs the package `pg`).
 *
 * In a database the shop's own rows are next to the records, so a reservation is one commit: key, row and answer, or none of them.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { idempotency, type Store } from 'holdfast';
import { postgresStore } from 'holdfast/postgres';
import { redisStore } from 'holdfast/redis';
import { sqliteStore } from 'holdfast/sqlite';
import { Redis } from 'ioredis';

export interface Reservation {
  readonly customer: string;
  readonly key: string;
  readonly seat: string;
}

export interface OpenStore {
  readonly name: string;
  readonly store: Store;
  /** Undefined on Redis, which has no rows. */
  readonly reservations: { reserve(wish: Reservation): Promise<object>; count(): Promise<number> } | undefined;
  close(): Promise<void>;
}

export async function openStore(address = process.env.SHOP_STORE ?? ''): Promise<OpenStore> {
  if (address.startsWith('redis://')) return openRedis(address);
  if (address.startsWith('postgres://')) return openPostgres(address);
  if (address === '') return openSqlite();
  throw new Error(`SHOP_STORE must be empty or begin with redis:// or postgres://, it is ${address}`);
}

/** The status that the shop answers when no reservation was made. */
export function statusOf(error: unknown): number {
  const { code } = error as { readonly code?: unknown };
  if (code === 'ERR_KEY_MISSING') return 400;
  if (code === 'ERR_IN_FLIGHT') return 409;
  return code === 'ERR_KEY_REUSED' ? 422 : 500;
}

function openSqlite(): OpenStore {
  const folder = mkdtempSync(join(tmpdir(), 'holdfast-shop-'));
  const db = new DatabaseSync(join(folder, 'shop.db'));
  db.exec('CREATE TABLE reservations (id INTEGER PRIMARY KEY, customer TEXT NOT NULL, seat TEXT NOT NULL)');
  const store = sqliteStore(db);
  const once = idempotency({ store, name: 'reserve' });
  const insert = db.prepare('INSERT INTO reservations (customer, seat) VALUES (?, ?)');
  return {
    name: 'SQLite',
    store,
    reservations: {
      reserve: ({ customer, key, seat }) =>
        once.transaction(db, key, () => ({ reservation: Number(insert.run(customer, seat).lastInsertRowid), seat }), {
          scope: customer,
          input: { seat },
        }),
      count: async () => db.prepare('SELECT * FROM reservations').all().length,
    },
    async close() {
      db.close();
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

async function openPostgres(address: string): Promise<OpenStore> {
  // Only a shop on Postgres needs it.
  const { default: pg } = await import('pg');
  const pool = new pg.Pool({ connectionString: address });
  // A client whose connection breaks, for instance in a server restart, emits `error`; without a listener that ends the process.
  pool.on('connect', (client) => client.on('error', () => {}));
  const store = postgresStore(pool);
  await store.migrate();
  await pool.query(
    'CREATE TABLE IF NOT EXISTS reservations (id SERIAL PRIMARY KEY, customer TEXT NOT NULL, seat TEXT NOT NULL)',
  );
  const once = idempotency({ store, name: 'reserve' });
  const reserve = async ({ customer, key, seat }: Reservation) => {
    const client = await pool.connect();
    let isBroken = false;
    try {
      await client.query('BEGIN');
      const insert = async () => {
        const text = 'INSERT INTO reservations (customer, seat) VALUES ($1, $2) RETURNING id AS reservation, seat';
        return (await client.query<{ reservation: number; seat: string }>(text, [customer, seat])).rows[0]!;
      };
      const answer = await once.transaction(client, key, insert, { scope: customer, input: { seat } });
      await client.query('COMMIT');
      return answer;
    } catch (error) {
      await client.query('ROLLBACK').catch(() => {
        isBroken = true;
      });
      throw error;
    } finally {
      client.release(isBroken);
    }
  };
  const count = async () => (await pool.query('SELECT * FROM reservations')).rows.length;
  const close = async () => {
    await store.close();
    await pool.end();
  };
  return { name: 'Postgres', store, reservations: { reserve, count }, close };
}

function openRedis(address: string): OpenStore {
  const client = new Redis(address, { autoResendUnfulfilledCommands: false });
  const close = async () => void (await client.quit());
  return {
    name: 'Redis',
    store: redisStore(client, { prefix: `shop-${process.pid}` }),
    reservations: undefined,
    close,
  };
}
