/**
 * Postgres killed, frozen, restarted and behind a bad network: what the store answers then, and what holds afterwards. Faults that every store meets are in
 * `faults.ts`. All rows share one server, and those that strike the server run alone.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { StoreError } from 'holdfast';
import { type FaultProxy, faultProxy } from 'holdfast/testing';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { type PostgresStore, postgresStore } from '../../src/stores/postgres.js';
import { deferred } from '../support/deferred.ts';
import { firstSeed, historiesTimeoutMs, historyCount } from '../support/histories.ts';
import { postgresHome, startPostgres } from '../support/servers/postgres.ts';
import type { ServerProcess } from '../support/servers/server-process.ts';
import { answered, type Column, commonFaults, endure, type Fault, no, until } from './faults.ts';
import { brokenNetwork, checkHistories, frozenServer } from './histories.ts';
import { drivers, type PostgresConnection } from './postgres-clients.ts';
import { bytes, failure, text } from './support.ts';

const ttlMs = 60_000;
const timeout = 150;

const home = postgresHome();

const isReadOnly = (on: string): Fault<PostgresConnection>['strike'] => {
  return async ({ admin, own }) => {
    await admin.query(`ALTER SYSTEM SET default_transaction_read_only = ${on}`);
    await admin.query('SELECT pg_reload_conf()');
    const shown = () => own.query('SHOW default_transaction_read_only').catch(() => []);
    await until(shown, ([row]) => row?.default_transaction_read_only === on);
  };
};

const rows: readonly Fault<PostgresConnection>[] = [
  ...commonFaults(),
  {
    fault: 'a server that takes no writes',
    strikes: 'server',
    strike: isReadOnly('on'),
    heal: isReadOnly('off'),
    verbs: { reason: ['failed'], applied: no },
    read: 'done',
    afterwards: 'not done',
  },
];

let server: ServerProcess;
beforeAll(async () => {
  if (home === undefined) return;
  server = await startPostgres(home, ['max_connections=60']);
  const connection = drivers[0]!.connect(server.port);
  await postgresStore(connection.pool).migrate();
  await connection.close();
});
afterAll(() => server?.dispose());

describe.skipIf(home === undefined).each(drivers)('postgresStore by $title survives', ({ connect }) => {
  const column: Column<PostgresConnection> = {
    server: async () => server,
    async leave() {
      server.wake();
      if (!server.isRunning) await server.start();
    },
    connect: (port) => connect(port, 2),
    close: (connection) => connection.close().catch(() => {}),
    storeOf: ({ pool }, options) => postgresStore(pool, options),
  };
  const run = (row: Fault<PostgresConnection>) => endure(row, column);
  it.concurrent.each(rows.filter(({ strikes }) => strikes === 'network'))('$fault', run);
  it.each(rows.filter(({ strikes }) => strikes === 'server'))('$fault', run);
});

describe.skipIf(home === undefined).each(drivers)('postgresStore by $title', ({ title, connect }) => {
  const connections: PostgresConnection[] = [];
  let proxy: FaultProxy;
  let store: PostgresStore;
  /** The same store with a long timeout, for what must work even on a busy machine. */
  let patient: PostgresStore;
  let version: number;

  const open = (port: number, size = 4) => {
    const connection = connect(port, size);
    connections.push(connection);
    return connection;
  };
  const readAgain = async () => text((await answered(() => patient.read('key')))?.value);

  beforeEach(async () => {
    proxy = await faultProxy({ port: server.port });
    const { pool } = open(proxy.port);
    store = postgresStore(pool, { timeout });
    patient = postgresStore(pool, { timeout: '10s' });
    version = ((await patient.write('key', bytes('old'), { ttlMs })) as { version: number }).version;
  });
  afterEach(async () => {
    await proxy?.close();
    for (const connection of connections.splice(0)) await connection.close().catch(() => {});
    server.wake();
    if (!server.isRunning) await server.start();
  });

  it('fails in time when the server is killed, keeps what it had answered, and goes on above all versions', async () => {
    await server.kill();
    const beganMs = performance.now();
    const verbs = Array.from({ length: 50 }, (_, index) =>
      failure(store.write(`key ${index}`, bytes('lost'), { ttlMs })),
    );
    const errors = await Promise.all(verbs);
    for (const { reason } of errors) expect(['timeout', 'closed', 'busy']).toContain(reason);
    expect(performance.now() - beganMs).toBeLessThan(timeout + 30_000);
    await server.start();
    expect(await readAgain()).toBe('old');
    const next = await patient.write('key', bytes('new'), { ttlMs, ifVersion: version });
    expect(next.ok && next.version > version).toBe(true);
    // Nothing that was reported as not applied has been applied later.
    const rows = await open(server.port).query("SELECT count(*) AS lost FROM holdfast WHERE value = 'lost'");
    const mayHaveCome = errors.filter(({ applied }) => applied === 'unknown').length;
    expect(Number(rows[0]!.lost)).toBeLessThanOrEqual(mayHaveCome);
    if (title === 'pg') expect(Number(rows[0]!.lost)).toBe(0);
  });

  it('goes on with its only connection when callers repeat at once what a reset has failed', async () => {
    const alone = postgresStore(open(proxy.port, 1).pool, { timeout: '20s' });
    await alone.read('key');
    await proxy.inject({ kind: 'blackhole', direction: 'replies' });
    const verbs = Array.from({ length: 5 }, () => alone.read('key').catch(() => alone.read('key')));
    proxy.reset();
    await proxy.heal();
    for (const entry of await Promise.all(verbs)) expect(text(entry?.value)).toBe('old');
    expect(text((await alone.read('key'))?.value)).toBe('old');
  });

  it('goes on with new connections when an operator ends those it has', async () => {
    const admin = open(server.port);
    await admin.query(
      'SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL',
    );
    expect(await readAgain()).toBe('old');
    expect(await patient.write('key', bytes('new'), { ttlMs, ifVersion: version })).toMatchObject({ ok: true });
  });

  it('fails with reason "busy" while the server starts or stops', async () => {
    const held = open(server.port, 1);
    await held.query('SELECT 1');
    // It accepts no new clients, and ends when all have gone.
    const [pid] = readFileSync(join(server.folder, 'data', 'postmaster.pid'), 'utf8').split('\n');
    process.kill(Number(pid), 'SIGTERM');
    const late = () =>
      postgresStore(open(server.port, 1).pool, { timeout: '5s' }).write('key', bytes('lost'), { ttlMs });
    const error = await until(
      () => late().catch((thrown: unknown) => thrown),
      (outcome) => outcome instanceof StoreError,
    );
    expect(error).toMatchObject({ reason: 'busy', applied: 'no' });
    for (const connection of connections.splice(0)) await connection.close();
    await until(
      async () => server.isRunning,
      (isRunning) => !isRunning,
    );
  });

  it('says that the role may not use the table, and changes nothing', async () => {
    const connection = open(server.port, 1);
    await connection.query('DROP ROLE IF EXISTS guest');
    await connection.query('CREATE ROLE guest');
    await connection.query('SET ROLE guest');
    const guest = postgresStore(connection.pool, { timeout: '5s' });
    for (const verb of [() => guest.write('key', bytes('new'), { ttlMs }), () => guest.remove('key')]) {
      expect(await failure(verb())).toMatchObject({ reason: 'failed', applied: 'no' });
    }
    await connection.query('RESET ROLE');
    expect(await readAgain()).toBe('old');
  });

  it('waits for a row that a transaction of others has locked, and fails in time, knowing that nothing was done', async () => {
    const admin = open(server.port);
    const { promise: unlocked, resolve: unlock } = deferred();
    const { promise: isLocked, resolve: lock } = deferred();
    const blocking = admin.transaction(async (transaction) => {
      const sql = 'SELECT 1 FROM holdfast FOR UPDATE';
      await ('unsafe' in transaction ? transaction.unsafe(sql) : transaction.query({ text: sql }));
      lock();
      await unlocked;
    });
    await isLocked;
    const waiting = postgresStore(open(proxy.port).pool, { timeout: '2s' });
    const answer = failure(waiting.write('key', bytes('late'), { ttlMs, ifVersion: version }));
    // A write that its condition refuses needs no lock.
    expect(await patient.write('key', bytes('new'), { ttlMs, ifVersion: 0 })).toMatchObject({ ok: false });
    const error = await answer.finally(unlock);
    await blocking;
    expect(error).toMatchObject({ reason: 'busy', applied: 'no' });
    expect(await readAgain()).toBe('old');
  });

  it(
    'keeps histories linearizable while connections break and replies are lost',
    async () => {
      const stores = Array.from({ length: 4 }, () =>
        postgresStore(open(proxy.port, 4).pool, { prefix: title, timeout: 500 }),
      );
      const lost = await checkHistories(stores, brokenNetwork(proxy), firstSeed, historyCount(20));
      // This proves that the faults have struck.
      expect(lost).toBeGreaterThan(5);
    },
    historiesTimeoutMs,
  );

  it(
    'keeps histories linearizable while the server stands still, and later applies verbs that nobody waits for any more',
    async () => {
      const stores = Array.from({ length: 4 }, () =>
        postgresStore(open(server.port, 4).pool, { prefix: `frozen-${title}`, timeout }),
      );
      const lost = await checkHistories(stores, frozenServer(server, 2 * timeout), firstSeed, historyCount(20));
      expect(lost).toBeGreaterThan(5);
    },
    historiesTimeoutMs,
  );
});
