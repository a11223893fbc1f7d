/** The promises of idempotency keys, in real time, on every store. */
import { setTimeout as sleep } from 'node:timers/promises';
import { type IdempotencyOptions, idempotency, memoryStore, type Store } from 'holdfast';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { postgresStore } from '../../src/stores/postgres.js';
import { redisStore } from '../../src/stores/redis.js';
import { sqliteStore } from '../../src/stores/sqlite.js';
import { drivers as postgresDrivers } from '../stores/postgres-clients.ts';
import { drivers, type RedisConnection } from '../stores/redis-clients.ts';
import { temporaryDatabase } from '../stores/sqlite-files.ts';
import { postgresHome, startPostgres } from '../support/servers/postgres.ts';
import { redisProgram, startRedis } from '../support/servers/redis.ts';
import type { ServerProcess } from '../support/servers/server-process.ts';
import { unsynced } from '../support/unsynced.ts';

interface BackEnd {
  readonly title: string;
  readonly isThere: boolean;
  /** Opens two clients of the same entries, and closes them at the end. */
  open(): Promise<{ readonly stores: readonly [Store, Store]; close(): Promise<void> }>;
}

function redis(
  title: string,
  program: Awaited<ReturnType<typeof redisProgram>>,
  driver: (typeof drivers)[number],
): BackEnd {
  return {
    title: `${title} by ${driver.title}`,
    isThere: program !== undefined,
    async open() {
      const server: ServerProcess = await startRedis(program!);
      const connections: RedisConnection[] = [];
      const store = () => {
        const [connection, subscriber] = [driver.connect(server.port), driver.connect(server.port)];
        connections.push(connection, subscriber);
        return redisStore(connection.client, { timeout: '10s', subscriber: subscriber.client } as object);
      };
      const stores = [store(), store()] as const;
      return {
        stores,
        async close() {
          for (const one of stores) await one.close();
          for (const connection of connections) connection.close();
          await server.dispose();
        },
      };
    },
  };
}

const redisServer = await redisProgram('redis-server');
const valkeyServer = await redisProgram('valkey-server');
const backEnds: BackEnd[] = [
  {
    title: 'memory',
    isThere: true,
    async open() {
      const store = memoryStore();
      return { stores: [store, store], close: () => store.close() };
    },
  },
  {
    title: 'SQLite',
    isThere: true,
    async open() {
      const file = temporaryDatabase();
      const databases = [unsynced(file.path), unsynced(file.path)] as const;
      const [one, other] = databases;
      return {
        stores: [sqliteStore(one, { timeout: '10s' }), sqliteStore(other, { timeout: '10s' })],
        async close() {
          for (const db of databases) db.close();
          file[Symbol.dispose]();
        },
      };
    },
  },
  ...drivers.map((driver) => redis('Redis', redisServer, driver)),
  redis('Valkey', valkeyServer, drivers[0]!),
];

const home = postgresHome();
for (const driver of postgresDrivers) {
  backEnds.push({
    title: `Postgres by ${driver.title}`,
    isThere: home !== undefined,
    async open() {
      const server = await startPostgres(home!);
      const connections = [driver.connect(server.port), driver.connect(server.port)] as const;
      const [one, other] = connections.map(({ pool, listener }) => postgresStore(pool, { timeout: '10s', listener }));
      await one!.migrate();
      return {
        stores: [one!, other!],
        async close() {
          for (const store of [one!, other!]) await store.close();
          for (const connection of connections) await connection.close();
          await server.dispose();
        },
      };
    },
  });
}

describe.concurrent.each(backEnds.filter(({ isThere }) => isThere))('idempotency on $title', ({ open }) => {
  let opened: Awaited<ReturnType<BackEnd['open']>>;
  let keys = 0;
  beforeAll(async () => {
    opened = await open();
  });
  afterAll(() => opened?.close());

  /** Two engines, as in two processes, and a key of their own. */
  function setUp(options: Partial<IdempotencyOptions> = {}) {
    const settings = { lease: '30s', storeTimeout: '10s', ...options } as const;
    const [one, other] = opened.stores.map((store) => idempotency({ store, ...settings })) as [
      ReturnType<typeof idempotency>,
      ReturnType<typeof idempotency>,
    ];
    return { one, other, key: `key ${++keys}`, scope: { scope: 'shop' } };
  }

  it('answers one client what another one ran, byte for byte', async () => {
    const { one, other, key } = setUp();
    const request = { scope: 'shop', operation: 'POST /', key };
    const begun = await one.begin(request);
    if (begun.kind !== 'run') throw new Error(begun.kind);
    const bytes = Uint8Array.from({ length: 70_000 }, (_, index) => (index * 7) % 256);
    expect(await begun.handle.complete(bytes)).toBe('stored');
    const replay = await other.begin(request);
    expect(replay).toMatchObject({ kind: 'replay', attempt: 1 });
    expect(replay.kind === 'replay' && Buffer.compare(replay.result, bytes)).toBe(0);
  });

  it('lets one of many begin, and none while that one runs', async () => {
    const { one, other, key } = setUp();
    const request = { scope: 'shop', operation: 'POST /', key };
    const begun = await Promise.all(Array.from({ length: 60 }, (_, index) => (index % 2 ? one : other).begin(request)));
    expect(begun.filter(({ kind }) => kind === 'run')).toHaveLength(1);
    expect(begun.filter(({ kind }) => kind === 'busy')).toHaveLength(59);
    const first = begun.find((answer) => answer.kind === 'run');
    if (first?.kind === 'run') await first.handle.abandon();
  });

  it('wakes up who waits', async () => {
    const { one, other, key, scope } = setUp({ wait: '20s' });
    let second: Promise<string> | undefined;
    const work = async () => {
      second = other.run(key, () => 'again', scope);
      await sleep(300);
      return 'done';
    };
    expect([await one.run(key, work, scope), await second]).toEqual(['done', 'done']);
  });

  it('renews, and gives away what is no longer renewed', async () => {
    const { one, other, key } = setUp({ lease: '6s' });
    const request = { scope: 'shop', operation: 'POST /', key };
    const alive = await one.begin(request);
    if (alive.kind !== 'run') throw new Error(alive.kind);
    await sleep(7_000);
    expect(await other.begin(request)).toMatchObject({ kind: 'busy' });
    expect(await alive.handle.complete(new Uint8Array(1))).toBe('stored');

    const patient = setUp();
    const lost = { ...request, key: patient.key };
    // The clock of this engine stands still, so it never renews, like a process that was killed.
    const [store] = opened.stores;
    const stopped = { now: () => 0, wallNow: () => 0, schedule() {}, cancel() {} };
    const dead = await idempotency({ store, lease: '400ms', clock: stopped }).begin(lost);
    if (dead.kind !== 'run') throw new Error(dead.kind);
    await sleep(450);
    const next = await patient.other.begin(lost);
    if (next.kind !== 'takeover') throw new Error(next.kind);
    expect(next.handle.fence).toBeGreaterThan(dead.handle.fence);
    expect(await dead.handle.complete(new Uint8Array(1))).toBe('lost');
    expect(await next.handle.complete(new Uint8Array(2))).toBe('stored');
    expect(await patient.one.begin(lost)).toMatchObject({ kind: 'replay', result: new Uint8Array(2) });
  });

  it('keeps a doubt until it is resolved', async () => {
    const { one, other, key, scope } = setUp({ onLost: 'refuse', name: 'pay' });
    const [store] = opened.stores;
    const stopped = { now: () => 0, wallNow: () => 0, schedule() {}, cancel() {} };
    const dead = idempotency({ store, lease: '400ms', clock: stopped, name: 'pay' });
    await new Promise<void>((begun) => {
      const hangs = () => {
        begun();
        return new Promise(() => {});
      };
      void dead.run(key, hangs, scope);
    });
    await sleep(500);
    for (const engine of [one, other]) {
      await expect(engine.run(key, () => 'again', scope)).rejects.toMatchObject({ code: 'ERR_IN_DOUBT' });
    }
    expect(await other.resolve(key, { ...scope, result: { paid: 1 } })).toBe(true);
    expect(await one.run(key, () => 'again', scope)).toEqual({ paid: 1 });
  });

  it('goes on after the phases that were done', async () => {
    const { one, other, key, scope } = setUp({ onLost: 'resume' });
    let reserved = 0;
    const order = (engine: typeof one, fails: boolean) =>
      engine.run(
        key,
        async (handle) => {
          const seat = await handle.phase('reserve', () => ++reserved);
          if (fails) throw new Error('later');
          return [seat, handle.attempt];
        },
        scope,
      );
    await expect(order(one, true)).rejects.toThrow('later');
    expect([await order(other, false), await order(one, true), reserved]).toEqual([[1, 2], [1, 2], 1]);
  });

  it('forgets a record when its time is over', async () => {
    const { one, key, scope } = setUp({ ttl: '7s', lease: '6s' });
    let runs = 0;
    const run = () => one.run(key, () => ++runs, scope);
    expect([await run(), await run()]).toEqual([1, 1]);
    await sleep(7_200);
    expect(await run()).toBe(2);
  });
});
