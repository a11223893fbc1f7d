/** What is special about the store on Postgres: its schema, transactions, watches, and clients that cannot serve. */
import { once } from 'node:events';
import { type AddressInfo, createServer } from 'node:net';
import { OptionsError } from 'holdfast';
import { virtualClock } from 'holdfast/testing';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type PgPool, postgresMigrations, postgresStore } from '../../src/stores/postgres.js';
import { postgresHome, startPostgres } from '../support/servers/postgres.ts';
import type { ServerProcess } from '../support/servers/server-process.ts';
import { drivers, type PostgresConnection } from './postgres-clients.ts';
import { bytes, failure, text } from './support.ts';

const ttlMs = 60_000;

const home = postgresHome();

describe('postgresStore', () => {
  it('takes EPIPE, which looks like a SQLSTATE, for a broken connection, and does not use it again', async () => {
    const released: unknown[] = [];
    const client = {
      query: () => Promise.reject(Object.assign(new Error('write EPIPE'), { code: 'EPIPE', syscall: 'write' })),
      release: (destroy?: Error | boolean) => released.push(destroy),
      ...{ on() {}, off() {} },
    };
    const connect: PgPool['connect'] = (lend) => lend(undefined, client);
    const pool = { connect, totalCount: 1, on() {}, off() {} };
    const error = await postgresStore(pool)
      .write('key', bytes('a'), { ttlMs })
      .catch((thrown: unknown) => thrown);
    expect(error).toMatchObject({ reason: 'closed', applied: 'unknown' });
    expect(released).toEqual([true]);
  });

  it('fails at once, and gives the connection back, when a driver throws synchronously', async () => {
    const released: unknown[] = [];
    const fail = () => {
      throw new Error('patched');
    };
    const client = { query: fail, release: (broken?: Error | boolean) => released.push(broken), on() {}, off() {} };
    const lend: PgPool['connect'] = (lent) => lent(undefined, client);
    const pools = [fail, lend].map((connect) => ({ connect, totalCount: 1, on() {}, off() {} }));
    for (const pool of pools) {
      const store = postgresStore(pool as never, { clock: virtualClock() });
      expect(await failure(store.read('key'))).toMatchObject({ operation: 'read', cause: { message: 'patched' } });
    }
    expect(released).toHaveLength(1);
  });

  it.each([
    ['promises a client', (client: object) => async () => client],
    [
      'calls back and answers a promise',
      (client: object) => async (lend: (error: undefined, client: object) => void) => lend(undefined, client),
    ],
    [
      'calls back and promises a client',
      (client: object) => async (lend: (error: undefined, client: object) => void) => {
        lend(undefined, client);
        return client;
      },
    ],
  ])('takes a wrapped pool that %s, and gives each client back as it was', async (_, connectOf) => {
    let lent = 0;
    const listeners = new Set<unknown>();
    const client = {
      async query() {
        return { rows: [] };
      },
      release: () => lent--,
      on: (_event: string, listener: unknown) => void listeners.add([listener]),
      off: () => listeners.delete([...listeners].at(-1)),
    };
    const inner = connectOf(client) as PgPool['connect'];
    const connect: PgPool['connect'] = (lend) => {
      lent++;
      return inner(lend);
    };
    const store = postgresStore({ connect, totalCount: 1, on() {}, off() {} } as never, { clock: virtualClock() });
    await store.migrate();
    await store.read('key').catch(() => {});
    expect([lent, listeners.size]).toEqual([0, 0]);
  });

  it('passes on the error of a wrapped pool that rejects', async () => {
    const connect = async (lend: (error: Error, client: undefined) => void) => {
      lend(new Error('first'), undefined);
      throw new Error('second');
    };
    for (const [given, says] of [
      [connect, 'first'],
      [() => Promise.reject(new Error('alone')), 'alone'],
    ] as const) {
      const pool = { connect: given, totalCount: 1, on() {}, off() {} };
      const store = postgresStore(pool as never, { clock: virtualClock() });
      expect(await failure(store.read('key'))).toMatchObject({ operation: 'read', cause: { message: says } });
    }
  });

  it('survives a server that ends a connection with the first thing it sends', async () => {
    const message = (type: string, body: string) => {
      const length = Buffer.alloc(4);
      length.writeInt32BE(4 + body.length);
      return Buffer.concat([Buffer.from(type), length, Buffer.from(body)]);
    };
    const error = message('E', 'SFATAL\0C57P01\0Mterminating connection due to administrator command\0\0');
    const welcome = [message('R', '\0\0\0\0'), message('Z', 'I')];
    // They arrive in one piece, as a busy client reads them.
    const server = createServer((socket) => socket.once('data', () => socket.end(Buffer.concat([...welcome, error]))));
    await once(server.listen(0, '127.0.0.1'), 'listening');
    const { port } = server.address() as AddressInfo;
    const pool = new pg.Pool({ host: '127.0.0.1', port, user: 'postgres' });
    const uncaught: unknown[] = [];
    const others = process.rawListeners('uncaughtException') as NodeJS.UncaughtExceptionListener[];
    process.removeAllListeners('uncaughtException');
    process.on('uncaughtException', (thrown) => uncaught.push(thrown));
    try {
      const store = postgresStore(pool);
      expect(await failure(store.read('key'))).toMatchObject({ operation: 'read', reason: 'closed' });
      await expect(store.migrate()).rejects.toThrow();
    } finally {
      process.removeAllListeners('uncaughtException');
      for (const other of others) process.on('uncaughtException', other);
      await pool.end();
      server.close();
    }
    expect(uncaught).toEqual([]);
  });

  it('refuses anything but a pool, and an invalid table name', () => {
    for (const wrong of [undefined, {}, 'postgres://', new pg.Client(), () => 1]) {
      expect(() => postgresStore(wrong as never)).toThrow(OptionsError);
    }
    const pool = new pg.Pool();
    for (const table of ['', 'a b', 'x; DROP TABLE y', 'A', 'a.b.c', 'x'.repeat(41), '1a']) {
      expect(() => postgresStore(pool, { table })).toThrow(/option "table" must be a name/);
      expect(() => postgresMigrations(table)).toThrow(/option "table" must be a name/);
    }
    expect(() => postgresStore(pool, { listener: {} as never })).toThrow(/option "listener"/);
  });
});

describe.skipIf(home === undefined).each(drivers)('postgresStore on $title', ({ title, connect }) => {
  let server: ServerProcess;
  const connections: PostgresConnection[] = [];
  const open = (size?: number) => {
    const connection = connect(server.port, size);
    connections.push(connection);
    return connection;
  };
  /** Something else holds the only connection of the pool until it is told to give it back. */
  const keptBusy = async (busy: PostgresConnection) => {
    const other = open(1);
    await other.query('SELECT pg_advisory_lock(7)');
    const waiting = busy.query('SELECT pg_advisory_xact_lock(7)');
    const blocked = "SELECT count(*)::int AS n FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
    await expect.poll(() => other.query(blocked)).toEqual([{ n: 1 }]);
    return async () => {
      await other.query('SELECT pg_advisory_unlock(7)');
      await waiting;
    };
  };
  beforeAll(async () => {
    server = await startPostgres(home!);
    await postgresStore(open().pool).migrate();
  });
  afterAll(async () => {
    for (const connection of connections) await connection.close().catch(() => {});
    await server?.dispose();
  });

  it('says what to do when its table is not there, and makes it when it is asked to, also twice and at once', async () => {
    const { pool } = open();
    const store = postgresStore(pool, { table: 'not_there', timeout: '5s' });
    expect(await failure(store.read('key'))).toMatchObject({ reason: 'schema', applied: 'no' });
    expect((await failure(store.write('key', bytes('a'), { ttlMs }))).message).toContain('run store.migrate()');
    await Promise.all([store.migrate(), store.migrate(), postgresStore(open().pool, { table: 'not_there' }).migrate()]);
    expect(await store.write('key', bytes('a'), { ttlMs })).toMatchObject({ ok: true });
    await store.migrate();
    expect(text((await store.read('key'))?.value)).toBe('a');
  });

  it('uses a table in a schema, created by SQL that was run by hand', async () => {
    const connection = open(1);
    await connection.query('CREATE SCHEMA shop');
    for (const { sql } of postgresMigrations('shop.records')) await connection.query(sql);
    const store = postgresStore(connection.pool, { table: 'shop.records', timeout: '5s' });
    expect(await store.write('key', bytes('a'), { ttlMs })).toMatchObject({ ok: true });
    expect(text((await store.read('key'))?.value)).toBe('a');
  });

  it('takes one round trip for each verb', async () => {
    const connection = open(1);
    const store = postgresStore(connection.pool, { prefix: 'trips', timeout: '5s' });
    await store.write('key', bytes('a'), { ttlMs });
    await connection.query("SET log_statement = 'all'");
    await store.read('key');
    await store.write('key', bytes('b'), { ttlMs, ifVersion: 0 });
    await store.remove('other');
    await store.native.consume('key', { limit: 10, periodMs: 1000 });
    await connection.query("SET log_statement = 'none'");
    const verbs = () =>
      server
        .log()
        .split('\n')
        .filter((line) => line.includes('LOG:') && /execute|statement/.test(line));
    await expect.poll(() => verbs().length).toBe(5);
    const names = verbs().map((line) => /holdfast_(\w+)_v1|SET log_statement/.exec(line)?.[1]);
    expect(names).toEqual(['read', 'write', 'remove', 'consume', undefined]);
    await connection.close();
  });

  it("writes in a transaction of the user together with the user's writes, or not at all", async () => {
    const connection = open();
    const store = postgresStore(connection.pool, { prefix: 'within', timeout: '5s' });
    await connection.query('CREATE TABLE IF NOT EXISTS orders (id text)');
    const insert = "INSERT INTO orders VALUES ('42')";
    await expect(
      connection.transaction(async (client) => {
        await ('unsafe' in client ? client.unsafe(insert) : client.query({ text: insert }));
        expect(await store.native.within(client).write('order', bytes('done'), { ttlMs, ifVersion: 0 })).toMatchObject({
          ok: true,
        });
        expect(text((await store.native.within(client).read('order'))?.value)).toBe('done');
        // Nobody else can see it yet.
        expect(await store.read('order')).toBeUndefined();
        throw new Error('no');
      }),
    ).rejects.toThrow('no');
    expect(await store.read('order')).toBeUndefined();
    await connection.transaction(async (client) => {
      await store.native.within(client).write('order', bytes('done'), { ttlMs, ifVersion: 0 });
    });
    expect(text((await store.read('order'))?.value)).toBe('done');
  });

  it('reads many keys at once, in their order', async () => {
    const store = postgresStore(open().pool, { prefix: 'many', timeout: '5s' });
    await store.write('a', bytes('1'), { ttlMs });
    await store.write('c', bytes(''), { ttlMs });
    const entries = await store.native.readMany(['c', 'b', 'a', 'a']);
    expect(entries.map((entry) => text(entry?.value))).toEqual(['', undefined, '1', '1']);
    expect(await store.native.readMany([])).toEqual([]);
    const tooMany = Array.from({ length: 1_001 }, (_, index) => `${index}`);
    expect(await failure(store.native.readMany(tooMany) as Promise<unknown>)).toMatchObject({ reason: 'invalid' });
  });

  it('tells who watches of changes by others, and of a gap when the connection was lost', async () => {
    const connection = open();
    const watching = postgresStore(connection.pool, { prefix: 'watch', timeout: '5s', listener: connection.listener });
    const other = open();
    const writing = postgresStore(other.pool, { prefix: 'watch', timeout: '5s', listener: other.listener });
    const told: string[] = [];
    const long = 'a long key '.repeat(20);
    const watches = ['key', long].map((key) =>
      watching.native.watch!(key, ({ kind }) => told.push(`${key.slice(0, 6)} ${kind}`)),
    );
    await Promise.all(watches.map(({ ready }) => ready));
    await writing.write('other', bytes('a'), { ttlMs });
    await writing.write('key', bytes('a'), { ttlMs });
    await expect.poll(() => told).toEqual(['key changed']);
    await writing.write(long, bytes('a'), { ttlMs });
    await writing.remove('key');
    await expect.poll(() => told).toEqual(['key changed', 'a long changed', 'key changed']);
    told.length = 0;
    watches[1]!.close();
    await other.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ILIKE 'LISTEN%'");
    await expect.poll(() => told).toContain('key gap');
    told.length = 0;
    await writing.write('key', bytes('b'), { ttlMs });
    await expect.poll(() => told).toContain('key changed');
    watches[0]!.close();
    told.length = 0;
    await writing.write('key', bytes('c'), { ttlMs });
    await watching.close();
    await expect(watching.native.watch!('key', () => {}).ready).rejects.toMatchObject({ reason: 'closed' });
    expect(told).toEqual([]);
  });

  it('sweeps expired rows, a batch at a time, and keeps versions growing', async () => {
    const connection = open();
    const store = postgresStore(connection.pool, { prefix: 'sweep', table: 'not_there', timeout: '5s' });
    await store.migrate();
    let last = 0;
    for (let index = 0; index < 5; index++) {
      const written = await store.write(`key ${index}`, bytes('a'), { ttlMs: 1 });
      last = written.ok ? written.version : 0;
    }
    await expect.poll(async () => (await store.read('key 4')) === undefined).toBe(true);
    expect([await store.sweep(2), await store.sweep(), await store.sweep()]).toEqual([2, 3, 0]);
    const next = await store.write('key 4', bytes('b'), { ttlMs, ifVersion: 0 });
    expect(next.ok && next.version > last).toBe(true);
  });

  it('keeps the row of a removed key until its time is over, so that its versions grow', async () => {
    const store = postgresStore(open().pool, { prefix: 'tombstone', timeout: '5s' });
    const first = await store.write('key', bytes('a'), { ttlMs });
    expect(await store.remove('key')).toBe(true);
    expect([await store.read('key'), await store.remove('key')]).toEqual([undefined, false]);
    expect(await store.write('key', bytes('b'), { ttlMs, ifVersion: first.ok ? first.version : 0 })).toEqual({
      ok: false,
      entry: undefined,
    });
    const second = await store.write('key', bytes('b'), { ttlMs, ifVersion: 0 });
    expect(first.ok && second.ok && second.version > first.version + 1).toBe(true);
  });

  it('fails in time while the pool has no connection to give', async () => {
    const connection = open(1);
    const store = postgresStore(connection.pool, { prefix: 'exhausted', timeout: 100 });
    const wake = await keptBusy(connection);
    // The outcome of what waits in a queue of postgres.js is unknown.
    const applied = title === 'pg' ? 'no' : 'unknown';
    expect(await failure(store.write('key', bytes('lost'), { ttlMs }))).toMatchObject({ reason: 'timeout', applied });
    await wake();
    if (title === 'pg') await expect.poll(() => store.read('key').catch(String)).toBeUndefined();
  });

  it('says that the pool was ended', async () => {
    const connection = connect(server.port, 1);
    const store = postgresStore(connection.pool, { prefix: 'ended', timeout: '20s' });
    await store.write('key', bytes('old'), { ttlMs });
    await connection.close();
    for (const verb of [
      () => store.read('key'),
      () => store.write('key', bytes('new'), { ttlMs }),
      () => store.remove('key'),
    ]) {
      expect(await failure(verb())).toMatchObject({ reason: 'closed', applied: 'no' });
    }
    expect(text((await postgresStore(open(1).pool, { prefix: 'ended', timeout: '20s' }).read('key'))?.value)).toBe(
      'old',
    );
  });

  it('ends a wait by its signal, and every wait on close', async () => {
    const connection = open(1);
    const store = postgresStore(connection.pool, { prefix: 'ends', timeout: '10s' });
    const wake = await keptBusy(connection);
    const controller = new AbortController();
    const aborted = store.read('key', { signal: controller.signal });
    controller.abort(new Error('enough'));
    await expect(aborted).rejects.toThrow('enough');
    const closed = failure(store.read('key'));
    await store.close();
    await store.close();
    expect(await closed).toMatchObject({ reason: 'closed' });
    expect(await failure(store.read('key'))).toMatchObject({ reason: 'closed', applied: 'no' });
    await wake();
  });
});
