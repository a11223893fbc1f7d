/** What a store says when there is no connection left for it, wherever that shows: in time, with what to do, and it works again afterwards. */
import type { Store, StoreError } from 'holdfast';
import { virtualClock } from 'holdfast/testing';
import { Redis } from 'ioredis';
import pg from 'pg';
import postgres from 'postgres';
import { createClient } from 'redis';
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest';
import { postgresStore } from '../../src/stores/postgres.js';
import { redisStore } from '../../src/stores/redis.js';
import { deferred } from '../support/deferred.ts';
import { postgresHome, startPgBouncer, startPostgres } from '../support/servers/postgres.ts';
import { redisProgram, startRedis } from '../support/servers/redis.ts';
import type { ServerProcess } from '../support/servers/server-process.ts';
import { answered } from './faults.ts';
import { bytes, failure, text } from './support.ts';

const ttlMs = 600_000;

interface Told {
  readonly reason: readonly StoreError['reason'][];
  readonly applied: readonly StoreError['applied'][];
  /** What to do, in the message of a write. */
  readonly advice: RegExp;
}

/**
 * Asks for more than there are connections, several verbs at a time.
 *
 * @param patient - The same store, with a timeout for a busy machine.
 * @param free - Gives back the connections that others hold.
 */
async function exhaust(store: Store, patient: Store, told: Told, free: () => unknown): Promise<void> {
  const keys = ['first', 'second', 'third'];
  const failures = await Promise.all([
    ...keys.map((key) => failure(store.write(key, bytes(`mine of ${key}`), { ttlMs, ifVersion: 0 }))),
    failure(store.remove('there')),
    failure(store.read('there')),
  ]);
  for (const error of failures) {
    const { operation, reason, applied, message } = error;
    expect(told.reason).toContain(reason);
    expect(operation === 'read' ? ['no'] : told.applied).toContain(applied);
    if (reason !== 'closed') expect(message).toMatch(told.advice);
  }
  await free();
  const there = await answered(() => patient.read('there'));
  const mayBeGone = failures[keys.length]!.applied === 'unknown';
  expect(mayBeGone ? ['old', undefined] : ['old']).toContain(text(there?.value));
  for (const [index, key] of keys.entries()) {
    const mayBeDone = failures[index]!.applied === 'unknown';
    const held = text((await answered(() => patient.read(key)))?.value);
    expect(mayBeDone ? [`mine of ${key}`, undefined] : [undefined]).toContain(held);
    // Its owner asks again, and is told by his own bytes if it was done.
    const again = await answered(() => patient.write(key, bytes(`mine of ${key}`), { ttlMs, ifVersion: 0 }));
    if (!again.ok) expect([`mine of ${key}`, undefined]).toContain(text(again.entry?.value));
    expect(text((await answered(() => patient.read(key)))?.value)).toBe(`mine of ${key}`);
  }
}

const home = postgresHome();

describe.skipIf(home === undefined)('postgresStore', () => {
  let server: ServerProcess;
  let prefixes = 0;
  const ends: (() => unknown)[] = [];
  const placeOf = ({ host, port }: ServerProcess) => ({ host, port, user: 'postgres', database: 'postgres' });

  const pgPool = (at: ServerProcess, settings: pg.PoolConfig = {}) => {
    const pool = new pg.Pool({ ...placeOf(at), ...settings });
    pool.on('error', () => {});
    ends.push(() => pool.end());
    return pool;
  };
  const postgresJs = (at: ServerProcess, settings: object = {}) => {
    const sql = postgres({
      ...placeOf(at),
      ...{ onnotice: () => {}, fetch_types: false, prepare: false, backoff: () => 0.02, ...settings },
    });
    ends.push(() => sql.end({ timeout: 1 }));
    return sql;
  };
  const clients = [
    { title: 'pg', pool: pgPool },
    { title: 'postgres.js', pool: postgresJs },
  ] as const;
  /** Two stores at one place, one of them with little patience, and an entry that is there. */
  const stores = async (pool: Parameters<typeof postgresStore>[0], timeout: number) => {
    const prefix = `exhausted-${++prefixes}`;
    const patient = postgresStore(pool, { timeout: '20s', prefix });
    await answered(() => patient.write('there', bytes('old'), { ttlMs }));
    return [postgresStore(pool, { timeout, prefix }), patient] as const;
  };
  const bouncerOf = async (settings: readonly string[]) => {
    const bouncer = await startPgBouncer(server, settings);
    if (bouncer !== undefined) ends.push(() => bouncer.dispose());
    return bouncer!;
  };
  /** Keeps the one connection of a pooler in a transaction until it is called. */
  const keep = async (at: ServerProcess) => {
    const client = new pg.Client(placeOf(at));
    client.on('error', () => {});
    await client.connect();
    ends.push(() => client.end());
    await client.query('BEGIN');
    return () => client.query('COMMIT');
  };

  beforeAll(async () => {
    server = await startPostgres(home!, ['max_connections=40']);
    const pool = pgPool(server);
    await postgresStore(pool).migrate();
    await ends.pop()!();
  });
  afterEach(async () => {
    for (const end of ends.splice(0).reverse()) await end();
  });
  afterAll(() => server?.dispose());

  it.each([
    ['without a limit of its own', {}, ['timeout']],
    ['that waits less long than the store', { connectionTimeoutMillis: 100 }, ['busy']],
  ] as const)('fails in time when all clients of a pool of pg are taken, %s', async (_, settings, reason) => {
    const pool = pgPool(server, { max: 2, ...settings });
    const [store, patient] = await stores(pool, 2_000);
    const taken = [await pool.connect(), await pool.connect()];
    await exhaust(store, patient, { reason, applied: ['no'], advice: /raise its size/ }, () => {
      for (const client of taken) client.release();
    });
    expect(pool.waitingCount).toBe(0);
  });

  it.each(clients)('gives up by $title to migrate when nothing has come of it for a minute', async ({ pool }) => {
    const clock = virtualClock();
    const table = `migrated_${++prefixes}`;
    const store = postgresStore(pool(server, { max: 1 }), { clock, timeout: '1s', table });
    const keeper = new pg.Client(placeOf(server));
    await keeper.connect();
    ends.push(() => keeper.end());
    await keeper.query(`SELECT pg_advisory_lock(hashtextextended('holdfast ${table}', 0))`);
    const migrations = [failure(store.migrate()), failure(store.migrate())];
    // Nor does the server wait for ever.
    const waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'advisory' AND query ~ 'lock_timeout.*48000'";
    await vi.waitFor(async () => expect((await keeper.query(waiting)).rowCount).toBe(1), { timeout: 60_000 });
    await clock.advance('59s');
    const ended = Promise.all(migrations);
    await clock.advance('1s');
    const [first, second] = await ended;
    expect(first).toMatchObject({ operation: 'migrate', reason: 'timeout' });
    expect(second!.message).toMatch(/60000 ms.*(raise its size|raise "max")/);
    const third = failure(store.migrate());
    await store.close();
    expect(await third).toMatchObject({ operation: 'migrate', reason: 'closed' });
    await keeper.query('SELECT pg_advisory_unlock_all()');
  });

  it('fails in time when the one connection of postgres.js is busy in a transaction', async () => {
    const sql = postgresJs(server, { max: 1 });
    const [store, patient] = await stores(sql, 300);
    const { promise: begun, resolve: begin } = deferred();
    const { promise: mayCommit, resolve: commit } = deferred();
    const told: Told = { reason: ['timeout'], applied: ['unknown'], advice: /raise "max", or look for a long trans/ };
    const transaction = sql.begin(async (own) => {
      await own`SELECT 1`;
      begin();
      await mayCommit;
    });
    await begun;
    await exhaust(store, patient, told, async () => {
      commit();
      await transaction;
    });
  });

  it.each(clients)('fails in time by $title when the pooler has no connection to give', async ({ pool }) => {
    const bouncer = await bouncerOf(['default_pool_size = 1']);
    const [store, patient] = await stores(pool(bouncer, { max: 5 }), 300);
    const free = await keep(bouncer);
    // On a busy machine pg may still be connecting by then.
    const told: Told = {
      reason: ['timeout'],
      applied: ['no', 'unknown'],
      advice: /(not answer within|to give for) 300 ms/,
    };
    await exhaust(store, patient, told, free);
  });

  it.each(clients)('tells by $title what to do when the pooler has waited long enough', async ({ title, pool }) => {
    const bouncer = await bouncerOf(['default_pool_size = 1', 'query_wait_timeout = 1']);
    const [store, patient] = await stores(pool(bouncer, { max: 5 }), 20_000);
    const free = await keep(bouncer);
    // postgres.js sends several statements on one connection, and tells those after the first only that it was closed.
    const told: Told =
      title === 'pg'
        ? { reason: ['busy'], applied: ['no'], advice: /default_pool_size/ }
        : { reason: ['busy', 'closed'], applied: ['no', 'unknown'], advice: /default_pool_size/ };
    await exhaust(store, patient, told, free);
  });

  it.each(clients)('tells by $title what to do when the pooler lets nobody in', async ({ title, pool }) => {
    const bouncer = await bouncerOf(['max_client_conn = 2']);
    const [, straight] = await stores(pgPool(server), 20_000);
    const prefix = `exhausted-${prefixes}`;
    const store = postgresStore(pool(bouncer, { max: 5 }), { timeout: 20_000, prefix });
    const kept = [await keep(bouncer), await keep(bouncer)];
    const told: Told = { reason: ['busy', 'closed'], applied: ['no'], advice: /max_client_conn/ };
    await exhaust(store, straight, title === 'pg' ? { ...told, reason: ['busy'] } : told, async () => {
      for (const free of kept) await free();
      for (const end of ends.splice(-2)) await end();
    });
    expect(text((await answered(() => store.read('there')))?.value)).toBe('old');
  });

  it.each(clients)('tells by $title that the server has no connection left', async ({ pool }) => {
    const few = [
      'max_connections=4',
      'superuser_reserved_connections=0',
      'reserved_connections=0',
      'max_wal_senders=0',
    ];
    const full = await startPostgres(home!, few);
    ends.push(() => full.dispose());
    const all = pgPool(full, { max: 4 });
    const straight = postgresStore(all, { timeout: '20s', prefix: 'full' });
    await straight.migrate();
    await straight.write('there', bytes('old'), { ttlMs });
    const taken = await Promise.all([1, 2, 3, 4].map(() => all.connect()));
    const store = postgresStore(pool(full, { max: 5 }), { timeout: '20s', prefix: 'full' });
    await exhaust(store, straight, { reason: ['busy'], applied: ['no'], advice: /make pools smaller/ }, () => {
      for (const client of taken) client.release(true);
    });
    expect(text((await answered(() => store.read('there')))?.value)).toBe('old');
  });
});

const program = await redisProgram();

describe.skipIf(program === undefined)('redisStore', () => {
  const ends: (() => unknown)[] = [];
  afterEach(async () => {
    for (const end of ends.splice(0).reverse()) await end();
  });
  const start = async () => {
    const server = await startRedis(program!);
    ends.push(() => server.dispose());
    return server;
  };
  const ioredis = ({ host, port }: ServerProcess) => {
    const client = new Redis(port, host, { autoResendUnfulfilledCommands: false, retryStrategy: () => 20 });
    client.on('error', () => {});
    ends.push(() => client.disconnect());
    return client;
  };
  const nodeRedis = ({ host, port }: ServerProcess, settings: object = {}) => {
    const client = createClient({ socket: { host, port, reconnectStrategy: () => 20 }, ...settings });
    client.on('error', () => {});
    client.connect().catch(() => {});
    ends.push(() => client.destroy());
    return client;
  };

  it('tells what to do when node-redis has as many commands under way as it may, and sends no more', async () => {
    const server = await start();
    // It needs a few itself to connect.
    const commandsQueueMaxLength = 10;
    const client = nodeRedis(server, { commandsQueueMaxLength });
    const patient = redisStore(client, { timeout: '20s' });
    await patient.write('there', bytes('old'), { ttlMs });
    const store = redisStore(client, { timeout: 300 });
    server.freeze();
    const sent = Array.from({ length: commandsQueueMaxLength }, (_, index) =>
      failure(store.write(`sent ${index}`, bytes('sent'), { ttlMs })),
    );
    const told: Told = { reason: ['busy'], applied: ['no'], advice: /commandsQueueMaxLength/ };
    await exhaust(store, patient, told, async () => {
      for (const error of await Promise.all(sent))
        expect(error).toMatchObject({ reason: 'timeout', applied: 'unknown' });
      server.wake();
    });
    // They had left, and were done when it woke.
    expect(text((await patient.read('sent 9'))?.value)).toBe('sent');
  });

  it.each([
    { title: 'ioredis', connect: ioredis },
    { title: 'node-redis', connect: nodeRedis },
  ])('fails in time by $title when the server takes no more clients (maxclients)', async ({ connect }) => {
    const server = await start();
    const first = ioredis(server);
    const straight = redisStore(first, { timeout: '20s' });
    await straight.write('there', bytes('old'), { ttlMs });
    await first.config('SET', 'maxclients', '1');
    const store = redisStore(connect(server), { timeout: 300 });
    const told: Told = {
      reason: ['timeout', 'failed', 'closed'],
      applied: ['no', 'unknown'],
      advice: /no connection to a server for 300 ms|max number of clients/,
    };
    await exhaust(store, straight, told, () => first.config('SET', 'maxclients', '100'));
    expect(text((await answered(() => store.read('there')))?.value)).toBe('old');
  });
});
