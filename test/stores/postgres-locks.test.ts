/** Advisory locks of a real Postgres: of a transaction, with both libraries and through PgBouncer; of a session, whose owner is cut off. */
import { createHash } from 'node:crypto';
import { EventEmitter, getEventListeners } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { inspect } from 'node:util';
import { type FaultProxy, faultProxy, virtualClock } from 'holdfast/testing';
import pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { sessionLock, transactionLock } from '../../src/stores/postgres.js';
import { deferred } from '../support/deferred.ts';
import { postgresHome, startPgBouncer, startPostgres } from '../support/servers/postgres.ts';
import type { ServerProcess } from '../support/servers/server-process.ts';
import { drivers, type PostgresConnection } from './postgres-clients.ts';

const home = postgresHome();
const patience = { interval: 5 };

describe.skipIf(home === undefined)('advisory locks', () => {
  let server: ServerProcess;
  let bouncer: ServerProcess | undefined;
  let proxy: FaultProxy;
  let closing: (() => Promise<unknown>)[] = [];
  beforeAll(async () => {
    server = await startPostgres(home!);
    bouncer = await startPgBouncer(server);
    proxy = await faultProxy({ port: server.port });
  });
  afterAll(async () => {
    await proxy?.close();
    await bouncer?.dispose();
    await server?.dispose();
  });
  afterEach(async () => {
    await proxy.heal();
    for (const close of closing.reverse()) await close().catch(() => {});
    closing = [];
  });
  const connectTo = (port: number) => async () => {
    const client = new pg.Client({ host: '127.0.0.1', port, user: 'postgres', database: 'postgres' });
    await client.connect();
    return client;
  };

  const places = [
    { place: 'straight', port: () => server.port },
    { place: 'through PgBouncer', port: () => bouncer!.port },
  ];
  describe.each(drivers.flatMap((driver) => places.map((place) => ({ ...driver, ...place }))))(
    'transactionLock by $title, $place',
    ({ connect, port, place }) => {
      const open = (): PostgresConnection => {
        const connection = connect(port(), 4, place === 'through PgBouncer');
        closing.push(connection.close);
        return connection;
      };

      it('lets transactions in one after another, and each sees what the one before has written', async () => {
        const connection = open();
        await connection.query('CREATE TABLE IF NOT EXISTS counted (n int)');
        await connection.query('TRUNCATE counted');
        await connection.query('INSERT INTO counted VALUES (0)');
        const count = () =>
          connection.transaction(async (client) => {
            await transactionLock(client, "it's a key");
            const query = async (text: string) =>
              'unsafe' in client ? await client.unsafe(text) : (await client.query({ text })).rows;
            const [{ n }] = (await query('SELECT n FROM counted')) as [{ n: number }];
            await query(`UPDATE counted SET n = ${n + 1}`);
          });
        await Promise.all(Array.from({ length: 20 }, count));
        expect(await connection.query('SELECT n FROM counted')).toEqual([{ n: 20 }]);
      });

      it("waits no longer than allowed, and leaves the transaction's timeouts alone", async () => {
        const connection = open();
        const { promise: isFree, resolve: free } = deferred();
        let isLocked = false;
        const holding = connection.transaction(async (client) => {
          await transactionLock(client, 'key');
          isLocked = true;
          await isFree;
        });
        await expect.poll(() => isLocked, patience).toBe(true);
        for (const wait of [0, 50]) {
          const startMs = performance.now();
          const attempt = connection.transaction((client) => transactionLock(client, 'key', { wait }));
          await expect(attempt).rejects.toMatchObject({ code: 'ERR_LOCK_UNAVAILABLE', reason: 'waited', key: 'key' });
          expect(performance.now() - startMs).toBeGreaterThan(wait - 5);
        }
        free();
        await holding;
        await connection.transaction(async (client) => {
          await transactionLock(client, 'key', { wait: '1s' });
          const text = "SELECT current_setting('lock_timeout') AS limit";
          const rows = 'unsafe' in client ? await client.unsafe(text) : (await client.query({ text })).rows;
          expect(rows[0]).toEqual({ limit: '0' });
        });
      });
    },
  );

  it('transactionLock refuses anything but a transaction, since the lock would end at once', async () => {
    const client = await connectTo(server.port)();
    closing.push(() => client.end());
    await expect(transactionLock(client, 'key')).rejects.toMatchObject({ code: 'ERR_OPTIONS' });
    await expect(transactionLock(client, 'key', { wait: 0 })).rejects.toMatchObject({ code: 'ERR_OPTIONS' });
    // This is a client of an older version, which does not know the transaction's state.
    const old = { query: client.query.bind(client), connect() {}, on() {}, off() {} };
    await expect(transactionLock(old, 'key')).rejects.toMatchObject({ code: 'ERR_OPTIONS' });
    await client.query('BEGIN');
    await transactionLock(old, 'key');
    await client.query('ROLLBACK');
  });

  it('transactionLock uses the number that others can compute', async () => {
    const client = await connectTo(server.port)();
    closing.push(() => client.end());
    await client.query('BEGIN');
    await transactionLock(client, 'key');
    const number = createHash('sha256').update('key').digest().readBigInt64BE();
    const { rows } = await client.query(
      "SELECT ((classid::bigint << 32) | objid::bigint)::text AS number FROM pg_locks WHERE locktype = 'advisory'",
    );
    expect(rows).toEqual([{ number: `${number}` }]);
    await client.query('ROLLBACK');
  });

  describe('sessionLock', () => {
    const ttl = 1_000;
    const take = (key: string, more: Parameters<typeof sessionLock>[2] = {}, port = server.port) =>
      sessionLock(connectTo(port), key, { ttl, ...more });

    it('is held over many leases, by one owner at a time, and handed on when it is released', async () => {
      const lock = await take('key');
      await sleep(2.5 * ttl);
      expect([lock.held(), lock.remaining() > 0]).toEqual([true, true]);
      await expect(take('key', { wait: 0 })).rejects.toMatchObject({ code: 'ERR_LOCK_UNAVAILABLE' });
      await expect(take('key', { wait: 50 })).rejects.toMatchObject({ code: 'ERR_LOCK_UNAVAILABLE' });
      const waiting = take('key');
      await sleep(100);
      expect(await lock.release()).toBe('released');
      const next = await waiting;
      expect([lock.held(), next.held()]).toEqual([false, true]);
      await next.release();
    });

    it('is lost for an owner that is cut off before the server gives it to the next', async () => {
      const lock = await take('key', {}, proxy.port);
      const { signal } = lock;
      await proxy.inject({ kind: 'blackhole' });
      const startMs = performance.now();
      const next = await take('key');
      expect(performance.now() - startMs).toBeLessThan(ttl + 30_000);
      // If this process has just stood still, the reply is there before its timers run.
      await sleep(0);
      expect(signal.aborted).toBe(true);
      expect([lock.held(), await lock.release()]).toEqual([false, 'lost']);
      await next.release();
    });

    it('is lost at once when its connection breaks or its session is terminated', async () => {
      for (const end of [() => proxy.reset(), () => terminate()]) {
        // The lease has much longer to go, so it is not what ends the lock.
        const lock = await take('key', { ttl: 600_000 }, proxy.port);
        await end();
        await expect.poll(() => lock.signal.aborted).toBe(true);
        expect(await lock.release()).toBe('lost');
      }
    });
    const terminate = async () => {
      const client = await connectTo(server.port)();
      await client.query("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'");
      await client.end();
    };

    it('leaves nothing of a wait that was aborted', async () => {
      const lock = await take('key');
      const controller = new AbortController();
      const waiting = take('key', { signal: controller.signal });
      await sleep(100);
      controller.abort('enough');
      await expect(waiting).rejects.toBe('enough');
      await lock.release();
      const next = await take('key', { wait: '5s' });
      expect(next.held()).toBe(true);
      await next.release();
    });

    it('is refused behind a pooler, where sessions are shared', async () => {
      await expect(take('key', {}, bouncer!.port)).rejects.toMatchObject({ code: 'ERR_STORE', reason: 'invalid' });
    });
  });
});

/** A client that answers as the test says. */
class FakeClient extends EventEmitter {
  processID: number | undefined = 7;
  pid = '7';
  version = '160000';
  /** What an answer waits for. */
  delay = (_sql: string): Promise<unknown> | undefined => undefined;
  asked = 0;
  last = '';
  /** What it answers when a lock is asked for or given back. */
  isLocked = 'true';
  hasEnded = false;

  async query({ text }: { readonly text: string }) {
    this.asked++;
    this.last = text;
    await this.delay(text);
    if (text.includes('pg_backend_pid')) return { rows: [[this.pid, this.version]] };
    return { rows: [[this.isLocked]] };
  }

  async end(): Promise<void> {
    this.hasEnded = true;
    // It ends later, as a socket does that is closing.
    setImmediate(() => this.emit('end'));
  }
}

describe('transactionLock on a scripted connection', () => {
  type Row = { readonly a?: string; readonly b?: string };
  /** A client of pg in a transaction. */
  const clientOf = (answer: (sql: string) => Row | undefined, more: object = {}) => {
    const asked: string[] = [];
    const query = async ({ text }: { readonly text: string }) => {
      asked.push(text);
      const row = answer(text);
      return { rows: row === undefined ? [] : [Object.values(row)] };
    };
    return { asked, query, connect() {}, on() {}, off() {}, ...more };
  };
  const inside = { a: 'true', b: 'yes' };
  const notOne = { code: 'ERR_OPTIONS', message: expect.stringContaining('a client of pg after its BEGIN, or') };

  it('sends one statement, and waits as long as allowed, in whole milliseconds, or not at all', async () => {
    for (const [wait, limit] of [
      [undefined, "'30000ms'"],
      ['2s', "'2000ms'"],
      [0.2, "'1ms'"],
    ] as const) {
      // The statement that takes the lock returns nothing.
      const client = clientOf(() => ({ a: '', b: 'yes' }));
      await transactionLock(client, 'key', { wait });
      expect(client.asked).toEqual([expect.stringContaining(`set_config('lock_timeout', ${limit}, true)`)]);
      expect(client.asked[0]).toMatch(/ pg_advisory_xact_lock\('-?\d+'::bigint\)/);
    }
    const client = clientOf(() => inside);
    await transactionLock(client, 'key', { wait: 0 });
    expect(client.asked).toEqual([expect.stringMatching(/^SELECT pg_try_advisory_xact_lock\('-?\d+'::bigint\)/)]);
  });

  it('queries postgres.js in the form that takes one round trip', async () => {
    const asked: string[] = [];
    const unsafe = (sql: string) => {
      asked.push(sql);
      const row = ['false', 'yes'].map((value) => Buffer.from(value));
      return { raw: async () => Object.assign([row], { columns: row }) };
    };
    const transaction = Object.assign(() => {}, { unsafe, savepoint() {} });
    await transactionLock(transaction, 'key');
    expect(asked.length).toBe(1);
    await expect(transactionLock(transaction, 'key', { wait: 0 })).rejects.toMatchObject({
      ...{ code: 'ERR_LOCK_UNAVAILABLE', reason: 'waited', key: 'key' },
      message: expect.stringMatching(/transactionLock.*it is not free, and the call may not wait/),
    });
  });

  it("tells why the lock was not acquired: another owner held it for this long, or the server's error", async () => {
    const failing = (error: unknown) =>
      clientOf(() => {
        throw error;
      });
    const late = Object.assign(new Error('canceling statement due to lock timeout'), { code: '55P03' });
    await expect(transactionLock(failing(late), 'key', { wait: 50 })).rejects.toMatchObject({
      ...{ code: 'ERR_LOCK_UNAVAILABLE', reason: 'waited', key: 'key', cause: late },
      message: expect.stringMatching(/transactionLock.*it was not free for 50 ms/),
    });
    for (const error of [Object.assign(new Error('deadlock detected'), { code: '40P01' }), undefined]) {
      for (const wait of [0, 50]) {
        const thrown = await transactionLock(failing(error), 'key', { wait }).catch((caught: unknown) => ({ caught }));
        expect(thrown).toEqual({ caught: error });
      }
    }
  });

  it('is refused if the server says, or cannot say, that no transaction has begun, even though it gave the lock', async () => {
    for (const row of [{ a: 'true', b: 'no' }, { a: 'true' }, undefined]) {
      for (const wait of [0, 50]) {
        await expect(
          transactionLock(
            clientOf(() => row),
            'key',
            { wait },
          ),
        ).rejects.toMatchObject(notOne);
      }
    }
  });

  it('sends nothing on a connection that is evidently not a transaction, nor for an invalid key or wait', async () => {
    const asked: string[] = [];
    const client = (more: object) => ({ ...clientOf(() => inside, more), asked });
    const query = async () => {
      asked.push('query');
      return { rows: [['true', 'yes']] };
    };
    const unsafe = async () => {
      asked.push('unsafe');
      return [inside];
    };
    const wrong = [
      ...[undefined, null, {}, 'client', { query }, { connect() {} }, { query: 'text', connect() {} }],
      ...[client({ totalCount: 0 }), client({ getTransactionStatus: () => 'I' }), client({ connect: undefined })],
      ...[() => {}, Object.assign(() => {}, { unsafe }), Object.assign(() => {}, { savepoint() {} })],
    ];
    for (const one of wrong) await expect(transactionLock(one as never, 'key')).rejects.toMatchObject(notOne);
    for (const key of ['', 5, undefined]) {
      await expect(transactionLock(client({}), key as never)).rejects.toMatchObject({ code: 'ERR_OPTIONS' });
    }
    for (const options of [{ wait: -1 }, { waits: 5 }]) {
      await expect(transactionLock(client({}), 'key', options)).rejects.toMatchObject({ code: 'ERR_OPTIONS' });
    }
    expect(asked).toEqual([]);
    const status = function (this: unknown) {
      expect(this).toBe(open);
      return 'T';
    };
    const open: object = clientOf(() => inside, { getTransactionStatus: status });
    await transactionLock(open as never, 'key');
  });
});

describe('sessionLock on a scripted client', () => {
  const bench = () => {
    const clock = virtualClock();
    const client = new FakeClient();
    const take = (more: Parameters<typeof sessionLock>[2] = {}) =>
      sessionLock(async () => client, 'key', { ttl: '3s', margin: 0, clock, ...more });
    return { clock, client, take };
  };
  const isConfirmation = (sql: string) => sql.includes('pg_backend_pid') && !sql.includes('server_version_num');
  const invalid = { code: 'ERR_STORE', reason: 'invalid' };

  it('counts its lease from before its request to the server, once it has the lock', async () => {
    const { clock, client, take } = bench();
    client.delay = (sql) => clock.sleep(isConfirmation(sql) ? 400 : 2_000);
    const taking = take();
    await clock.advance(6_400);
    const lock = await taking;
    expect(lock.remaining()).toBe(3_000 * 0.99 - 2 - 400);
    clock.jumpWallClock(3_000);
    expect(lock.held()).toBe(false);
  });

  it('contacts the server three times per lease, and is held for as long as it replies', async () => {
    const { clock, client, take } = bench();
    const lock = await take();
    const { asked } = client;
    await clock.advance(30_000);
    expect([client.asked - asked, lock.held(), lock.key]).toEqual([30, true, 'key']);
  });

  it('is lost a tenth of its ttl before its end when no reply comes, and its connection is ended', async () => {
    const { clock, client } = bench();
    const lock = await sessionLock(async () => client, 'key', { ttl: '3s', clock });
    const { signal } = lock;
    const safeMs = 3_000 * 0.99 - 2 - 300;
    expect(lock.remaining()).toBe(safeMs);
    client.delay = () => new Promise(() => {});
    await clock.advance(safeMs - 1);
    expect([signal.aborted, client.hasEnded]).toEqual([false, false]);
    await clock.advance(1);
    expect([signal.aborted, client.hasEnded, lock.remaining(), clock.pendingTimers]).toEqual([true, true, 0, 0]);
    expect(signal.reason).toMatchObject({ code: 'ERR_STORE', message: expect.stringContaining('3000 ms') });
    const { asked } = client;
    expect([await lock.release(), client.asked]).toEqual(['lost', asked]);
  });

  it('shows the loss by its signal to a process that was frozen', async () => {
    const { clock, take } = bench();
    const lock = await take();
    expect(inspect(lock)).toBe("{ key: 'key', held: true }");
    clock.jumpWallClock(3_000);
    expect(lock.signal.aborted).toBe(true);
  });

  it.each([
    ['error', new Error('reset'), 'the connection broke: reset'],
    ['end', undefined, 'the connection broke: it ended'],
  ] as const)('is lost at once, or not got, when its connection breaks (%s)', async (event, error, message) => {
    const { clock, client, take } = bench();
    const lock = await take();
    const { signal } = lock;
    client.emit(event, error);
    expect([signal.aborted, client.hasEnded, await lock.release()]).toEqual([true, true, 'lost']);
    const other = bench();
    other.client.delay = (sql) => (sql.includes('pg_advisory_lock') ? new Promise(() => {}) : undefined);
    const refused = expect(other.take()).rejects.toThrow(message);
    await new Promise(setImmediate);
    other.client.emit(event, error);
    await refused;
    expect([other.client.hasEnded, clock.pendingTimers + other.clock.pendingTimers]).toEqual([true, 0]);
  });

  it('is not acquired while another owner has it, at once or after the wait, and its connection is ended', async () => {
    const { client, take } = bench();
    client.isLocked = 'false';
    await expect(take({ wait: 0 })).rejects.toMatchObject({
      ...{ code: 'ERR_LOCK_UNAVAILABLE', reason: 'waited', key: 'key' },
      message: expect.stringContaining('it is not free, and the call may not wait'),
      stack: expect.stringContaining('postgres-locks'),
    });
    const other = bench();
    other.client.delay = async (sql) => {
      if (sql.includes('pg_advisory_lock')) throw Object.assign(new Error('timeout'), { code: '55P03' });
    };
    await expect(other.take({ wait: 50 })).rejects.toMatchObject({
      ...{ code: 'ERR_LOCK_UNAVAILABLE', reason: 'waited', cause: { code: '55P03' } },
      message: expect.stringContaining('it was not free for 50 ms'),
    });
    await other.clock.flush();
    expect([client.hasEnded, other.client.hasEnded]).toEqual([true, true]);
    client.isLocked = 'true';
    expect((await take({ wait: 0 })).held()).toBe(true);
  });

  it('rejects with a StoreError for what the server or the connection reports', async () => {
    for (const [error, reason] of [
      [Object.assign(new Error('terminating connection'), { code: '57P01' }), 'closed'],
      [new Error('Connection terminated unexpectedly'), 'closed'],
      [Object.assign(new Error('too many locks'), { code: '53200' }), 'full'],
    ] as const) {
      const { client, take } = bench();
      client.delay = (sql) => (sql.includes('pg_advisory_lock') ? Promise.reject(error) : undefined);
      await expect(take()).rejects.toMatchObject({
        ...{ code: 'ERR_STORE', operation: 'lock', applied: 'no', reason, cause: error },
      });
    }
  });

  it('is released by the number it was taken with, and its connection is then ended', async () => {
    const { clock, client, take } = bench();
    const number = createHash('sha256').update('key').digest().readBigInt64BE();
    {
      await using lock = await take();
      client.delay = (sql) => (sql.includes('pg_advisory_unlock') ? clock.sleep(500) : undefined);
      expect(lock.held()).toBe(true);
      void clock.advance(500);
    }
    expect(client.last).toContain(`pg_advisory_unlock('${number}'::bigint)`);
    expect([client.hasEnded, clock.pendingTimers]).toEqual([true, 0]);
    const lost = bench();
    const lock = await lost.take();
    lost.client.isLocked = 'false';
    expect([await lock.release(), await lock.release(), lock.held()]).toEqual(['lost', 'lost', false]);
    // Its connection also reports that it has ended, which is no news.
    await new Promise(setImmediate);
    expect(lock.signal.aborted).toBe(false);
    const slow = bench();
    const late = await slow.take();
    slow.client.delay = () => slow.clock.sleep(500);
    const released = late.release();
    await slow.clock.advance(500);
    expect([await released, slow.client.hasEnded, slow.clock.pendingTimers]).toEqual(['released', true, 0]);
  });

  it('accepts the oldest supported server, and a client that does not report its backend', async () => {
    const { client, take } = bench();
    client.version = '140000';
    client.processID = undefined;
    expect((await take({ margin: 1_500 })).held()).toBe(true);
  });

  it.each([
    [undefined, 'key', {}, 'connect'],
    [new FakeClient(), 'key', {}, 'connect'],
    [async () => new FakeClient(), '', {}, 'key'],
    [async () => new FakeClient(), 5, {}, 'key'],
    [async () => new FakeClient(), ['a'], {}, 'key'],
    [async () => new FakeClient(), 'key', { ttl: 999 }, 'ttl'],
    [async () => new FakeClient(), 'key', { ttl: '3s', margin: 1_501 }, 'margin'],
    [async () => new FakeClient(), 'key', { wait: -1 }, 'wait'],
    [async () => new FakeClient(), 'key', { signal: {} }, 'signal'],
  ])('refuses what is wrong (%#)', async (connect, key, options, option) => {
    await expect(sessionLock(connect as never, key as never, options as never)).rejects.toMatchObject({
      ...{ code: 'ERR_OPTIONS', option },
      message: expect.stringContaining(option === 'margin' ? 'at most half of "ttl", 1500 ms' : option),
    });
  });

  it('is not granted when that reply comes after its end', async () => {
    const { clock, client, take } = bench();
    client.delay = (sql) => (isConfirmation(sql) ? clock.sleep(3_000) : undefined);
    const refused = expect(take()).rejects.toMatchObject({ code: 'ERR_STORE', reason: 'timeout' });
    await clock.advance(3_000);
    await refused;
    expect([client.hasEnded, clock.pendingTimers]).toEqual([true, 0]);
  });

  it('is refused if the backend is not the one that was connected to or asked before, and by an old server', async () => {
    const { client, take } = bench();
    client.pid = '8';
    await expect(take()).rejects.toMatchObject(invalid);
    const other = bench();
    other.client.delay = async (sql) => {
      if (sql.includes('pg_advisory_lock')) other.client.pid = '8';
    };
    await expect(other.take()).rejects.toMatchObject(invalid);
    const old = bench();
    old.client.version = '130011';
    await expect(old.take()).rejects.toMatchObject(invalid);
  });

  it('is lost when another backend replies later', async () => {
    const { clock, client, take } = bench();
    const lock = await take();
    client.pid = '8';
    await clock.advance(1_000);
    expect([lock.held(), lock.signal.aborted]).toEqual([false, true]);
  });

  it('ends its wait when the connection ends, even if the client never settles', async () => {
    const { client, take } = bench();
    client.delay = (sql) => (sql.includes('pg_advisory_lock') ? new Promise(() => {}) : undefined);
    const refused = expect(take()).rejects.toMatchObject({ code: 'ERR_STORE', reason: 'closed' });
    await new Promise(setImmediate);
    client.emit('end');
    await refused;
  });

  it('ends its wait when it is aborted while the client connects, and ends the connection once there is one', async () => {
    for (const isSlow of [false, true]) {
      const { clock, client } = bench();
      const controller = new AbortController();
      let connected = () => {};
      const connecting = new Promise<FakeClient>((resolve) => {
        connected = () => resolve(client);
      });
      const taking = sessionLock(() => connecting, 'key', { clock, signal: controller.signal });
      const ended = expect(taking).rejects.toBe('enough');
      if (isSlow) {
        controller.abort('enough');
        await ended;
        connected();
      } else {
        connected();
        controller.abort('enough');
        await ended;
      }
      await clock.flush();
      const listeners = getEventListeners(controller.signal, 'abort');
      expect([client.hasEnded, clock.pendingTimers, listeners]).toEqual([true, 0, []]);
    }
  });

  it('ends its wait when connecting itself aborts it', async () => {
    const { clock, client } = bench();
    const controller = new AbortController();
    const connect = async () => {
      controller.abort('enough');
      return client;
    };
    await expect(sessionLock(connect, 'key', { clock, signal: controller.signal })).rejects.toBe('enough');
    await clock.flush();
    expect([client.hasEnded, clock.pendingTimers]).toEqual([true, 0]);
  });

  it('sends nothing more while it is being released', async () => {
    const { clock, client, take } = bench();
    const lock = await take();
    client.delay = (sql) => (sql.includes('pg_advisory_unlock') ? new Promise(() => {}) : undefined);
    const { asked } = client;
    const released = lock.release();
    await clock.advance(3_000);
    expect([await released, client.asked - asked]).toEqual(['unknown', 1]);
  });

  it('leaves no timer and sends nothing more when it is released during a request', async () => {
    const { clock, client, take } = bench();
    const lock = await take();
    let answer = () => {};
    client.delay = (sql) => (isConfirmation(sql) ? new Promise<void>((resolve) => (answer = resolve)) : undefined);
    await clock.advance(1_000);
    expect(await lock.release()).toBe('released');
    const { asked } = client;
    answer();
    await clock.advance(10_000);
    expect([client.asked - asked, clock.pendingTimers]).toEqual([0, 0]);
  });
});
