/** A lock in Postgres whose primary dies, and whose standby takes over, having heard of the lock or not. */
import { mutex } from 'holdfast';
import pg from 'pg';
import { afterEach, describe, expect, it } from 'vitest';
import { postgresStore } from '../../../src/stores/postgres.js';
import { debianPostgresHome, startPostgres, startStandby } from '../../support/servers/postgres.ts';
import type { ServerProcess } from '../../support/servers/server-process.ts';

const home = debianPostgresHome();
const ttl = 1_500;
const patience = { interval: 20 };
const ends: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end().catch(() => {});
});

describe.skipIf(home === undefined)('mutex on a Postgres with a standby', () => {
  it.each([
    { title: 'had heard of the lock: the next waits for the end of its lease', heard: true },
    {
      title: 'had not: two may hold it, until the owner is told within its lease',
      heard: false,
    },
  ])('that $title', async ({ heard }) => {
    const started = async (starting: Promise<ServerProcess>) => {
      const server = await starting;
      ends.push(() => server.dispose());
      return server;
    };
    const open = (server: ServerProcess) => {
      const pool = new pg.Pool({
        host: server.host,
        port: server.port,
        user: 'postgres',
        database: 'postgres',
        max: 4,
      });
      pool.on('error', () => {});
      ends.push(() => pool.end());
      const store = postgresStore(pool, { timeout: '5s' });
      return { pool, store, locks: mutex({ store, ttl, wait: '30s' }) };
    };
    const primary = await started(startPostgres(home!));
    const before = open(primary);
    await before.store.migrate();
    const standby = await started(startStandby(home!, primary));
    const after = open(standby);
    const caughtUp = async () => {
      const { rows } = await before.pool.query('SELECT pg_current_wal_lsn() AS position');
      await expect
        .poll(async () => {
          const sql = `SELECT pg_last_wal_replay_lsn() >= '${rows[0].position}' AS done`;
          return (await after.pool.query(sql)).rows[0].done;
        }, patience)
        .toBe(true);
    };
    const first = await before.locks.acquire('key');
    await first.release();
    await caughtUp();
    if (!heard) {
      // The standby no longer receives anything.
      await after.pool.query("ALTER SYSTEM SET primary_conninfo = ''");
      await after.pool.query('SELECT pg_reload_conf()');
      const following = 'SELECT count(*)::int AS n FROM pg_stat_wal_receiver';
      await expect.poll(async () => (await after.pool.query(following)).rows[0].n, patience).toBe(0);
    }
    const lease = await before.locks.acquire('key');
    if (heard) await caughtUp();
    await primary.kill();
    await after.pool.query('SELECT pg_promote()');
    const next = await after.locks.acquire('key');
    if (heard) expect(lease.held()).toBe(false);
    if (heard) expect(next.fence).toBeGreaterThan(lease.fence);
    await expect.poll(() => lease.held(), { timeout: ttl, interval: 5 }).toBe(false);
    expect(next.held()).toBe(true);
    expect(await next.release()).toBe('released');
  });
});
