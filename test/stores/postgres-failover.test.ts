/** A Postgres whose primary dies and whose standby takes over, or whose clock jumps: what is kept, and how versions continue. */
import { chmodSync } from 'node:fs';
import { join } from 'node:path';
import { StoreError } from 'holdfast';
import pg from 'pg';
import { afterAll, afterEach, describe, expect, it, vi } from 'vitest';
import { postgresStore } from '../../src/stores/postgres.js';
import { clockShim } from '../support/servers/clock-shim.ts';
import { debianPostgresHome, postgresHome, startPostgres, startStandby } from '../support/servers/postgres.ts';
import type { ServerProcess } from '../support/servers/server-process.ts';
import { bytes, text } from './support.ts';

const ttlMs = 600_000;

const home = debianPostgresHome();
const ends: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end().catch(() => {});
});

async function started(server: Promise<ServerProcess>): Promise<ServerProcess> {
  const own = await server;
  ends.push(() => own.dispose());
  return own;
}

function poolOf(server: ServerProcess): pg.Pool {
  const pool = new pg.Pool({ host: server.host, port: server.port, user: 'postgres', database: 'postgres', max: 4 });
  pool.on('error', () => {});
  ends.push(() => pool.end());
  return pool;
}

/** A primary with the table, and a standby that has caught up with it. */
async function startPair(settings: readonly string[]) {
  const primary = await started(startPostgres(home!, settings));
  const before = poolOf(primary);
  await postgresStore(before).migrate();
  const standby = await started(startStandby(home!, primary));
  const after = poolOf(standby);
  const caughtUp = async () => {
    const { rows } = await before.query('SELECT pg_current_wal_lsn() AS position');
    await vi.waitFor(
      async () => {
        const sql = `SELECT pg_last_wal_replay_lsn() >= '${rows[0].position}' AS done`;
        expect((await after.query(sql)).rows[0].done).toBe(true);
      },
      { timeout: 60_000 },
    );
  };
  await caughtUp();
  return { primary, before, standby, after, caughtUp };
}

describe.skipIf(home === undefined)('postgresStore with a standby', () => {
  it('finds on the promoted one what that had received, and goes on above all its versions', async () => {
    const { primary, before, after, caughtUp } = await startPair([]);
    const store = postgresStore(before, { timeout: '20s' });
    const first = await store.write('key', bytes('old'), { ttlMs });
    const removed = await store.write('gone', bytes('old'), { ttlMs });
    await store.remove('gone');
    await caughtUp();
    const next = postgresStore(after, { timeout: '20s' });
    // It is not a primary yet.
    const refused = await next.write('key', bytes('new'), { ttlMs }).catch((error: unknown) => error);
    expect(refused).toBeInstanceOf(StoreError);
    expect(refused).toMatchObject({ reason: 'failed', applied: 'no', message: expect.stringContaining('standby') });
    expect(text((await next.read('key'))?.value)).toBe('old');

    await primary.kill();
    await after.query('SELECT pg_promote()');
    expect(text((await next.read('key'))?.value)).toBe('old');
    expect(await next.read('gone')).toBeUndefined();
    for (const [key, version] of [
      ['key', (first as { version: number }).version],
      ['gone', (removed as { version: number }).version],
    ] as const) {
      const written = await next.write(key, bytes('new'), { ttlMs });
      expect(written.ok && written.version > version).toBe(true);
    }
  });

  it('loses nothing that it has answered when the standby is synchronous', async () => {
    const { primary, before, after } = await startPair([]);
    await before.query("ALTER SYSTEM SET synchronous_standby_names = '*'");
    await before.query('SELECT pg_reload_conf()');
    await vi.waitFor(
      async () => {
        const { rows } = await before.query("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'");
        expect(rows.length).toBe(1);
      },
      { timeout: 60_000 },
    );
    const store = postgresStore(before, { timeout: '20s' });
    const answered = new Map<string, number>();
    const unknown = new Set<string>();
    const writers = Array.from({ length: 4 }, async (_, writer) => {
      for (let index = 0; index < 1_000; index++) {
        const key = `${writer}.${index}`;
        try {
          const written = await store.write(key, bytes(key), { ttlMs, ifVersion: 0 });
          answered.set(key, (written as { version: number }).version);
        } catch (error) {
          if ((error as StoreError).applied === 'unknown') unknown.add(key);
          return;
        }
      }
    });
    await vi.waitFor(() => expect(answered.size).toBeGreaterThan(50), { timeout: 60_000 });
    await primary.kill();
    await Promise.all(writers);
    await after.query('SELECT pg_promote()');
    const next = postgresStore(after, { timeout: '20s' });
    const highest = Math.max(...answered.values());
    for (const [key, version] of answered) {
      expect(await next.read(key)).toMatchObject({ version, value: bytes(key) });
    }
    for (const key of unknown) expect([undefined, key]).toContain(text((await next.read(key))?.value));
    const written = await next.write('next', bytes('next'), { ttlMs });
    expect(written.ok && written.version > highest).toBe(true);
  });
});

const newest = postgresHome();
const shim = newest === undefined ? undefined : clockShim({ file: join(newest, 'bin', 'postgres'), env: {} });
// The server runs as another user.
if (shim !== undefined) chmodSync(join(shim.program.env.LD_PRELOAD!, '..'), 0o755);

describe.skipIf(shim === undefined)('postgresStore on a server whose clock jumps', () => {
  afterEach(() => shim?.set(0));
  afterAll(() => shim?.dispose());

  it('ends entries earlier or later by as much, never tells a negative age, and goes on above all versions', async () => {
    const server = await started(startPostgres(newest!, [], shim!.program.env));
    const store = postgresStore(poolOf(server), { timeout: '20s' });
    await store.migrate();
    const first = (await store.write('key', bytes('a'), { ttlMs })) as { version: number };

    shim!.set(-3_600_000);
    const back = await store.read('key');
    expect(back).toMatchObject({ ageMs: 0, version: first.version });
    expect(back!.ttlMs).toBeGreaterThan(ttlMs);
    const second = (await store.write('key', bytes('b'), { ttlMs })) as { version: number };
    expect(second.version).toBeGreaterThan(first.version);

    shim!.set(3_600_000);
    expect(await store.read('key')).toBeUndefined();
    expect(await store.sweep()).toBe(1);
    const third = (await store.write('key', bytes('c'), { ttlMs, ifVersion: 0 })) as { version: number };
    expect(third.version).toBeGreaterThan(second.version);
  });

  it('owes a shared rate limit no more than before when it is put back', async () => {
    const server = await started(startPostgres(newest!, [], shim!.program.env));
    const store = postgresStore(poolOf(server), { timeout: '20s' });
    await store.migrate();
    const { consume } = store.native;
    const rate = { limit: 6, periodMs: 3_600_000, burst: 2 };
    expect([(await consume('key', rate)).ok, (await consume('key', rate)).ok]).toEqual([true, true]);
    shim!.set(-86_400_000);
    expect((await consume('key', rate)).ok).toBe(false);
    shim!.set(-86_400_000 + 700_000);
    expect((await consume('key', rate)).ok).toBe(true);
    expect((await consume('key', rate)).ok).toBe(false);
  });
});
