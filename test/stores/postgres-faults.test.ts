/** Postgres killed, frozen, restarted and behind a bad network: what the store says then, and what holds afterwards. */
import { StoreError } from 'holdfast';
import { checkLinearizability, type FaultProxy, faultProxy, storeModel } from 'holdfast/testing';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { type PostgresStore, postgresStore } from '../../src/stores/postgres.js';
import { firstSeed, historiesTimeoutMs, historyCount } from '../support/histories.ts';
import { postgresHome, startPostgres } from '../support/servers/postgres.ts';
import type { ServerProcess } from '../support/servers/server-process.ts';
import { playHistory } from './histories.ts';
import { drivers, type PostgresConnection } from './postgres-clients.ts';

const bytes = (text: string) => new TextEncoder().encode(text);
const text = (value: Uint8Array | undefined) => value && new TextDecoder().decode(value);
const ttlMs = 60_000;
const timeout = 150;

const home = postgresHome();

async function failure(promise: Promise<unknown>): Promise<StoreError> {
  const error = await promise.catch((thrown: unknown) => thrown);
  expect(error).toBeInstanceOf(StoreError);
  return error as StoreError;
}

describe.skipIf(home === undefined).each(drivers)('postgresStore on $title', ({ title, connect }) => {
  let server: ServerProcess;
  let proxy: FaultProxy;
  let connections: PostgresConnection[] = [];
  let store: PostgresStore;
  /** The same, for what must work even where the machine is busy. */
  let patient: PostgresStore;
  let version: number;

  const open = (port: number, size = 4) => {
    const connection = connect(port, size);
    connections.push(connection);
    return connection;
  };
  /** What the server holds, asked without any fault in between. */
  const held = async (key = 'key') =>
    text((await postgresStore(open(server.port).pool, { timeout: '5s' }).read(key))?.value);
  /** The verb that works again as soon as there is a connection again. */
  const readAgain = () =>
    expect.poll(
      () =>
        store.read('key').then(
          (entry) => text(entry?.value) ?? 'nothing',
          () => 'a failure',
        ),
      { timeout: 10_000, interval: 5 },
    );

  beforeAll(async () => {
    server = await startPostgres(home!, ['max_connections=60']);
    const connection = connect(server.port);
    await postgresStore(connection.pool).migrate();
    await connection.close();
  }, 30_000);
  afterAll(() => server?.dispose());

  beforeEach(async () => {
    connections = [];
    proxy = await faultProxy({ port: server.port });
    const { pool } = open(proxy.port);
    store = postgresStore(pool, { timeout });
    patient = postgresStore(pool, { timeout: '10s' });
    version = ((await patient.write('key', bytes('old'), { ttlMs })) as { version: number }).version;
  });
  afterEach(async () => {
    await proxy?.close();
    for (const connection of connections) await connection.close().catch(() => {});
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
    expect(performance.now() - beganMs).toBeLessThan(timeout + 1_000);
    await server.start();
    await readAgain().toBe('old');
    const next = await patient.write('key', bytes('new'), { ttlMs, ifVersion: version });
    expect(next.ok && next.version > version).toBe(true);
    // Nothing has come after all that was told as not applied.
    const rows = await open(server.port).query("SELECT count(*) AS lost FROM holdfast WHERE value = 'lost'");
    const mayHaveCome = errors.filter(({ applied }) => applied === 'unknown').length;
    expect(Number(rows[0]!.lost)).toBeLessThanOrEqual(mayHaveCome);
    if (title === 'pg') expect(Number(rows[0]!.lost)).toBe(0);
  });

  it('fails in time when the server is frozen; what it has received it does when it wakes', async () => {
    server.freeze();
    const beganMs = performance.now();
    const error = await failure(store.write('key', bytes('late'), { ttlMs, ifVersion: version }));
    expect(error).toMatchObject({ reason: 'timeout', applied: 'unknown' });
    expect(performance.now() - beganMs).toBeLessThan(timeout + 500);
    expect(await failure(store.read('key'))).toMatchObject({ reason: 'timeout', applied: 'no' });
    server.wake();
    await readAgain().toBe('late');
    // Its owner repeats it, and knows itself in what is in the way.
    const again = await patient.write('key', bytes('late'), { ttlMs, ifVersion: version });
    expect(again.ok ? 'written twice' : text(again.entry?.value)).toBe('late');
  });

  it('says "unknown" when the reply is lost, and the repetition brings back the own entry', async () => {
    await proxy.inject({ kind: 'cut', direction: 'replies', afterBytes: 0 });
    expect(await failure(store.write('key', bytes('mine'), { ttlMs, ifVersion: version }))).toMatchObject({
      applied: 'unknown',
    });
    await proxy.heal();
    await readAgain().toBe('mine');
    const again = await patient.write('key', bytes('mine'), { ttlMs, ifVersion: version });
    expect(again.ok ? 'written twice' : text(again.entry?.value)).toBe('mine');
    await proxy.inject({ kind: 'cut', direction: 'replies', afterBytes: 0 });
    expect(await failure(store.remove('key'))).toMatchObject({ applied: 'unknown' });
    await proxy.heal();
    await readAgain().toBe('nothing');
    expect(await patient.remove('key')).toBe(false);
  });

  it('changes nothing when the request is lost, whole or in the middle', async () => {
    for (const [afterBytes, value] of [
      [0, 'short'],
      [40_000, 'x'.repeat(100_000)],
    ] as const) {
      await proxy.inject({ kind: 'cut', direction: 'requests', afterBytes });
      expect(await failure(store.write('key', bytes(value), { ttlMs }))).toMatchObject({ applied: 'unknown' });
      await proxy.heal();
      await readAgain().toBe('old');
    }
  });

  it('takes no half of a reply for a whole one', async () => {
    await patient.write('key', bytes('x'.repeat(100_000)), { ttlMs });
    for (const afterBytes of [1, 5, 40, 40_000]) {
      await proxy.inject({ kind: 'cut', direction: 'replies', afterBytes });
      expect(await failure(store.read('key'))).toMatchObject({ applied: 'no' });
      const refusal = failure(store.write('key', bytes('new'), { ttlMs, ifVersion: 0 }));
      expect(['no', 'unknown']).toContain((await refusal).applied);
      await proxy.heal();
      await readAgain().toBe('x'.repeat(100_000));
    }
  });

  it('fails in time in a blackhole, and on a half-open connection', async () => {
    await proxy.inject({ kind: 'blackhole' });
    expect(await failure(store.write('key', bytes('late'), { ttlMs }))).toMatchObject({
      reason: 'timeout',
      applied: 'unknown',
    });
    expect(await held()).toBe('old');
    await proxy.heal();
    await proxy.inject({ kind: 'half-open' });
    expect(await failure(store.write('key', bytes('lost'), { ttlMs }))).toMatchObject({ reason: 'timeout' });
    await proxy.heal();
    await expect
      .poll(
        () =>
          patient.read('key').then(
            () => true,
            () => false,
          ),
        { timeout: 10_000 },
      )
      .toBe(true);
    expect(await held()).not.toBe('lost');
  });

  it('fails with "no" while connections are refused', async () => {
    await proxy.inject({ kind: 'refuse' });
    await failure(store.read('key'));
    await expect
      .poll(async () => (await failure(store.write('key', bytes('lost'), { ttlMs }))).applied, { timeout: 5_000 })
      .toBe('no');
    await proxy.heal();
    await readAgain().toBe('old');
    expect(await patient.write('key', bytes('new'), { ttlMs, ifVersion: version })).toMatchObject({ ok: true });
  });

  it('works on a slow network, byte by byte', async () => {
    await proxy.inject({ kind: 'latency', delay: 20 });
    expect(await patient.write('key', bytes('slow'), { ttlMs })).toMatchObject({ ok: true });
    await proxy.inject({ kind: 'drip', bytes: 16, every: 1, direction: 'replies' });
    expect(text((await patient.read('key'))?.value)).toBe('slow');
  });

  it('goes on with new connections when an operator ends those it has', async () => {
    const admin = open(server.port);
    await admin.query(
      'SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL',
    );
    await readAgain().toBe('old');
    expect(await patient.write('key', bytes('new'), { ttlMs, ifVersion: version })).toMatchObject({ ok: true });
  });

  it('waits for a row that a transaction of others has locked, and fails in time, knowing that nothing was done', async () => {
    const admin = open(server.port);
    let unlock = () => {};
    const unlocked = new Promise<void>((resolve) => {
      unlock = resolve;
    });
    let lock = () => {};
    const isLocked = new Promise<void>((resolve) => {
      lock = resolve;
    });
    const blocking = admin.transaction(async (transaction) => {
      const sql = 'SELECT 1 FROM holdfast FOR UPDATE';
      await ('unsafe' in transaction ? transaction.unsafe(sql) : transaction.query({ text: sql }));
      lock();
      await unlocked;
    });
    await isLocked;
    const waiting = postgresStore(open(proxy.port).pool, { timeout: '2s' });
    const answer = failure(waiting.write('key', bytes('late'), { ttlMs, ifVersion: version }));
    // What a condition refuses needs no lock.
    expect(await patient.write('key', bytes('new'), { ttlMs, ifVersion: 0 })).toMatchObject({ ok: false });
    const error = await answer.finally(unlock);
    await blocking;
    expect(error).toMatchObject({ reason: 'busy', applied: 'no' });
    await readAgain().toBe('old');
  });

  it('changes nothing on a server that takes no writes', async () => {
    const admin = open(server.port);
    await admin.query('ALTER DATABASE postgres SET default_transaction_read_only = on');
    try {
      const standby = postgresStore(open(server.port).pool, { timeout: '5s' });
      expect(await failure(standby.write('key', bytes('lost'), { ttlMs }))).toMatchObject({
        reason: 'failed',
        applied: 'no',
      });
      expect(text((await standby.read('key'))?.value)).toBe('old');
    } finally {
      const back =
        'SET default_transaction_read_only = off; ALTER DATABASE postgres RESET default_transaction_read_only';
      await admin.query(back);
    }
  });

  it('fails with reason "busy" when the server has no connection left', async () => {
    const full = await startPostgres(home!, [
      'max_connections=4',
      'superuser_reserved_connections=0',
      'reserved_connections=0',
      'max_wal_senders=0',
    ]);
    try {
      const first = open(full.port, 4);
      const keeping = postgresStore(first.pool, { timeout: '10s' });
      await keeping.migrate();
      await Promise.all(Array.from({ length: 4 }, () => first.query('SELECT pg_sleep(0.2)')));
      const late = postgresStore(open(full.port, 1).pool, { timeout: '5s' });
      const error = await failure(late.write('key', bytes('lost'), { ttlMs }));
      expect(error).toMatchObject({ reason: 'busy', applied: 'no' });
    } finally {
      for (const connection of connections.splice(2)) await connection.close().catch(() => {});
      await full.dispose();
    }
  }, 30_000);

  it(
    'keeps histories linearizable while connections break and replies are lost',
    async () => {
      const count = historyCount(20);
      const stores = Array.from({ length: 4 }, () => postgresStore(open(proxy.port, 2).pool, { timeout: 60 }));
      let unknown = 0;
      for (let seed = firstSeed; seed < firstSeed + count; seed++) {
        const { history, lost } = await playHistory(stores, proxy, seed);
        unknown += lost;
        const verdict = checkLinearizability(history, storeModel());
        expect(verdict.verdict, `seed ${seed}\n${verdict}`).toBe('linearizable');
      }
      // The faults have struck.
      expect(unknown).toBeGreaterThan(5);
    },
    historiesTimeoutMs,
  );
});
