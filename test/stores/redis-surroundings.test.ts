/** What the store on Redis promises whatever the options of its client and the settings of its server are. */
import { readFileSync } from 'node:fs';
import { inspect } from 'node:util';
import { mutex, StoreError } from 'holdfast';
import { Redis } from 'ioredis';
import { createClient, createClientPool } from 'redis';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { type IoredisClient, type NodeRedisClient, redisStore } from '../../src/stores/redis.js';
import { deferred } from '../support/deferred.ts';
import { redisProgram, startRedis } from '../support/servers/redis.ts';
import type { ServerProcess } from '../support/servers/server-process.ts';
import { until } from './faults.ts';
import { bytes, failure } from './support.ts';

const ttlMs = 60_000;
/** Everything that a logger could show. */
const shown = (error: unknown) => inspect(error, { depth: 20, showHidden: true }) + JSON.stringify(error);
const program = await redisProgram();

describe.skipIf(program === undefined)('redisStore', () => {
  let server: ServerProcess;
  const ends: (() => unknown)[] = [];

  const ioredis = (options: object, { port } = server) => {
    const client = new Redis(port, '127.0.0.1', options);
    client.on('error', () => {});
    ends.push(() => client.disconnect());
    return client;
  };
  const nodeRedis = async (options: object) => {
    const client = createClient({ socket: { host: '127.0.0.1', port: server.port }, ...options } as object);
    client.on('error', () => {});
    await client.connect();
    ends.push(() => client.destroy());
    return client as NodeRedisClient;
  };
  const nodeRedisPool = async (options: object) => {
    const pool = createClientPool({ socket: { host: '127.0.0.1', port: server.port } }, options);
    pool.on('error', () => {});
    await pool.connect();
    ends.push(() => pool.destroy());
    return pool as unknown as NodeRedisClient;
  };

  beforeAll(async () => {
    server = await startRedis(program!);
  });
  afterEach(async () => {
    for (const end of ends.splice(0)) await end();
    await server.ask('CONFIG SET maxmemory 0');
    await server.ask('CONFIG SET maxmemory-policy noeviction');
  });
  afterAll(() => server?.dispose());

  const odd: [title: string, connect: () => Promise<IoredisClient | NodeRedisClient>][] = [
    ['ioredis by RESP2', async () => ioredis({ protocol: 2 })],
    ['ioredis by RESP3 as it is', async () => ioredis({ protocol: 3, replyMapping: 'resp3' })],
    ['ioredis with stringNumbers', async () => ioredis({ stringNumbers: true })],
    ['ioredis with keyPrefix', async () => ioredis({ keyPrefix: 'a:' })],
    ['ioredis with commandTimeout', async () => ioredis({ commandTimeout: 10_000 })],
    ['ioredis without an offline queue', async () => ioredis({ enableOfflineQueue: false })],
    ['ioredis in a database of its own', async () => ioredis({ db: 3 })],
    ['node-redis by RESP2', () => nodeRedis({ RESP: 2 })],
    ['node-redis by RESP3', () => nodeRedis({ RESP: 3 })],
    ['node-redis with numbers as texts', () => nodeRedis({ RESP: 3, commandOptions: { typeMapping: { 58: String } } })],
    ['node-redis with texts as bytes', () => nodeRedis({ RESP: 2, commandOptions: { typeMapping: { 36: Buffer } } })],
    ['node-redis without an offline queue', () => nodeRedis({ disableOfflineQueue: true })],
    ['node-redis with options for commands', () => nodeRedis({ commandOptions: { asap: true, timeout: 10_000 } })],
    ['a pool of node-redis', () => nodeRedisPool({ minimum: 1, maximum: 2 })],
  ];
  it.each(odd)('keeps its laws on %s', async (title, connect) => {
    const store = redisStore(await connect(), { prefix: title.replaceAll(/[^a-zA-Z0-9]/g, '-'), timeout: '5s' });
    const value = Uint8Array.from({ length: 512 }, (_, index) => index % 256);
    const key = 'a key of {many} parts: \0 \r\n "\' ünïcödé \u{1F600}';
    const { version } = (await store.write(key, value, { ttlMs, ifVersion: 0 })) as { version: number };
    expect(version).toBeGreaterThan(1e15);
    const entry = await store.read(key);
    expect(entry).toMatchObject({ value, version });
    expect(entry!.ttlMs).toBeGreaterThan(ttlMs - 20_000);
    expect(entry!.ttlMs).toBeLessThanOrEqual(ttlMs);
    expect(await store.write(key, value, { ttlMs, ifVersion: 0 })).toMatchObject({ ok: false, entry: { version } });
    expect(await store.native.readMany(['other', key])).toMatchObject([undefined, { value, version }]);
    expect(await store.native.consume(key, { limit: 2, periodMs: 60_000 })).toMatchObject({ ok: true, remaining: 1 });
    expect(await store.native.guardedWrite(key, value, { ttlMs, ifVersion: version, quietMs: 0 })).toMatchObject({
      ok: true,
    });
    expect(await store.remove(key, { ifVersion: version })).toBe(false);
    expect(await store.remove(key)).toBe(true);
    expect(await store.read(key)).toBeUndefined();
  });

  it.each([
    ['ioredis', async () => ioredis({ enableOfflineQueue: false, retryStrategy: () => 10 })],
    [
      'node-redis',
      () => nodeRedis({ disableOfflineQueue: true, socket: { port: server.port, reconnectStrategy: 10 } }),
    ],
  ] as [string, () => Promise<IoredisClient | NodeRedisClient>][])(
    'waits for the next connection of %s without an offline queue, and knows that nothing was done until then',
    async (_, connect) => {
      const client = await connect();
      const patient = redisStore(client, { timeout: '10s' });
      await patient.write('key', bytes('old'), { ttlMs });
      await server.kill();
      const hasty = redisStore(client, { timeout: 100 });
      const failure = () => hasty.write('key', bytes('new'), { ttlMs }).catch((error: unknown) => error);
      // By then the client knows that there is no connection.
      await until(
        failure,
        (error) => error instanceof StoreError && error.reason === 'timeout' && error.applied === 'no',
      );
      const waiting = patient.write('key', bytes('new'), { ttlMs });
      await server.start();
      expect(await waiting).toMatchObject({ ok: true });
    },
  );

  it.each([
    ['ioredis', async () => ioredis({ commandTimeout: 1000 })],
    ['node-redis', () => nodeRedis({ commandOptions: { timeout: 1000 } })],
  ] as [string, () => Promise<IoredisClient | NodeRedisClient>][])(
    'does not know what became of a verb when %s is less patient than the store, and it may be done',
    async (_, connect) => {
      const client = await connect();
      const store = redisStore(client, { timeout: '10s' });
      const { version } = (await store.write('key', bytes('old'), { ttlMs })) as { version: number };
      server.freeze();
      const late = store.write('key', bytes('new'), { ttlMs, ifVersion: version }).catch((error: unknown) => error);
      const timer = setTimeout(() => server.wake(), 3000);
      const outcome = await late;
      clearTimeout(timer);
      server.wake();
      // The timeout of node-redis only applies until a command is sent.
      if (outcome instanceof StoreError) expect(outcome).toMatchObject({ applied: 'unknown' });
      await until(
        () => store.read('key').catch(() => undefined),
        (entry) => entry !== undefined && new TextDecoder().decode(entry.value) === 'new',
      );
    },
  );

  it('says that nothing was done when a pool of node-redis has no connection left', async () => {
    const pool = await nodeRedisPool({ minimum: 1, maximum: 1, acquireTimeout: 50 });
    const store = redisStore(pool, { timeout: '5s' });
    await store.write('key', bytes('old'), { ttlMs });
    server.freeze();
    const first = store.read('key').catch((error: unknown) => error);
    const second = await store.write('key', bytes('new'), { ttlMs }).catch((error: unknown) => error);
    server.wake();
    await first;
    expect(second).toMatchObject({ reason: 'busy', applied: 'no' });
    expect(new TextDecoder().decode((await store.read('key'))?.value)).toBe('old');
  });

  it('says that a client of node-redis was never connected, and works when it is', async () => {
    const client = createClient({ socket: { host: '127.0.0.1', port: server.port } });
    client.on('error', () => {});
    const store = redisStore(client as NodeRedisClient, { timeout: '10s' });
    const error = await store.write('never', bytes('lost'), { ttlMs }).catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(StoreError);
    expect(error).toMatchObject({ reason: 'closed', applied: 'no', message: expect.stringContaining('connect it') });
    await client.connect();
    ends.push(() => client.destroy());
    expect(await store.read('never')).toBeUndefined();
  });

  it.each([
    ['ioredis', async (user: object) => ioredis({ ...user, autoResendUnfulfilledCommands: false })],
    ['node-redis', (user: object) => nodeRedis(user)],
  ] as [string, (user: object) => Promise<IoredisClient | NodeRedisClient>][])(
    'lets a user of %s with the permissions that the documentation lists do everything',
    async (library, connect) => {
      const docs = readFileSync(new URL('../../docs/stores.md', import.meta.url), 'utf8');
      const rule = /ACL SETUSER shop [^`]+/.exec(docs)![0];
      expect(await server.ask(rule)).toMatch(/^\+OK/);
      const user = { username: 'shop', password: 'secret' };
      const subscriber = await connect(user);
      const store = redisStore(await connect(user), { prefix: 'shop', timeout: '10s', subscriber });
      const key = `key of ${library}`;
      const { promise: told, resolve: tell } = deferred<unknown>();
      const watch = store.native.watch!(key, tell);
      await watch.ready;
      const options = { ttlMs, ifVersion: 0 };
      expect(await store.write(key, bytes('a'), options)).toMatchObject({ ok: true });
      expect(await store.write(key, bytes('b'), options)).toMatchObject({ ok: false });
      expect(await told).toEqual({ kind: 'changed' });
      watch.close();
      expect(await store.native.readMany([key, 'other'])).toMatchObject([{ value: bytes('a') }, undefined]);
      expect(await store.native.consume(key, { limit: 2, periodMs: 60_000 })).toMatchObject({ ok: true });
      expect(await store.remove(key)).toBe(true);
      await store.native.guardedWrite(key, bytes('a'), { ttlMs, quietMs: 1 });
      const locks = mutex({ store, ttl: '60s' });
      const rounds = Array.from({ length: 5 }, (_, index) => locks.run(key, async () => index, { wait: '50s' }));
      expect(await Promise.all(rounds)).toEqual([0, 1, 2, 3, 4]);
      await store.close();
    },
  );

  it('says that a command is missing on the server, without telling what was to be written', async () => {
    const old = await startRedis(program!, ['--rename-command', 'EVALSHA', '']);
    ends.push(() => old.dispose());
    const connect = [async () => ioredis({}, old), () => nodeRedis({ socket: { host: '127.0.0.1', port: old.port } })];
    for (const client of connect) {
      const error = await failure(
        redisStore(await client(), { timeout: '10s' }).write('key', bytes('card 4711'), { ttlMs }),
      );
      expect(error).toMatchObject({ reason: 'failed', applied: 'no' });
      expect(error.message).toContain('lacks a command');
      expect(shown(error)).not.toContain('card');
    }
  });

  it.each([
    ['ioredis', async () => ioredis({})],
    ['node-redis', () => nodeRedis({})],
  ] as [string, () => Promise<IoredisClient | NodeRedisClient>][])(
    'shows by %s no value and no argument in an error, however deep a logger looks',
    async (library, connect) => {
      const store = redisStore(await connect(), { timeout: '10s', prefix: `secret-${library}` });
      await store.write('key', bytes('first'), { ttlMs });
      await server.ask('CONFIG SET maxmemory 1');
      const error = await failure(store.write('key', bytes('card 4711'), { ttlMs }));
      expect(error).toMatchObject({ reason: 'full', cause: { message: expect.stringContaining('OOM') } });
      expect(shown(error)).not.toMatch(/card|secret|63 ?61 ?72 ?64/);
    },
  );

  it('asks for a cluster client when the server is a node of a cluster', async () => {
    const node = await startRedis(program!, ['--cluster-enabled', 'yes', '--cluster-require-full-coverage', 'no']);
    ends.push(() => node.dispose());
    await node.ask('CLUSTER ADDSLOTSRANGE 0 16383');
    await until(
      () => node.ask('CLUSTER INFO'),
      (info) => info.includes('cluster_state:ok'),
    );
    const connect = [
      async () => ioredis({}, node),
      () => nodeRedis({ socket: { host: '127.0.0.1', port: node.port } }),
    ];
    for (const client of connect) {
      const store = redisStore(await client(), { timeout: '10s' });
      const error = await failure(store.native.guardedWrite('key', bytes('a'), { ttlMs, quietMs: 0 }));
      expect(error).toMatchObject({ reason: 'failed', applied: 'no' });
      expect(error.message).toContain('give the store a cluster client');
    }
  });

  it.each(['allkeys-lru', 'allkeys-random', 'volatile-lru', 'volatile-ttl'])(
    'gives no version twice or backwards when the server evicts keys (%s), although records are lost',
    async (policy) => {
      const client = ioredis({});
      const store = redisStore(client, { prefix: policy, timeout: '10s' });
      await client.config('SET', 'maxmemory-policy', policy);
      const used = Number(/used_memory:(\d+)/.exec(await client.info('memory'))![1]);
      await client.config('SET', 'maxmemory', `${used + 2_000_000}`);
      const last = new Map<string, number>();
      let dropped = 0;
      for (let round = 0; round < 3; round++) {
        for (let index = 0; index < 200; index++) {
          const key = `key ${index}`;
          const answer = await store.write(key, new Uint8Array(50_000), { ttlMs });
          const { version } = answer as { version: number };
          expect(version).toBeGreaterThan(last.get(key) ?? 0);
          last.set(key, version);
        }
        const entries = await store.native.readMany([...last.keys()]);
        dropped += entries.filter((entry) => entry === undefined).length;
      }
      expect(dropped).toBeGreaterThan(0);
      await client.flushall();
    },
  );
});
