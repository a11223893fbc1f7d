/**
 * Redis killed, loading, replaced by a replica, with a clock that jumps: what the store answers then, and what holds afterwards. Faults that every store meets
 * are in `faults.ts`. These tests wait for servers, so they run concurrently.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { StoreError } from 'holdfast';
import { faultProxy } from 'holdfast/testing';
import { Redis } from 'ioredis';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { redisStore } from '../../src/stores/redis.js';
import type { ClosableStore } from '../../src/stores/store.js';
import { firstSeed, historiesTimeoutMs, historyCount } from '../support/histories.ts';
import { type ClockShim, clockShim } from '../support/servers/clock-shim.ts';
import { redisProgram, startCluster, startRedis, startReplica, startSentinels } from '../support/servers/redis.ts';
import type { ServerProcess } from '../support/servers/server-process.ts';
import { checkFailovers, freeze, kill } from './failovers.ts';
import { answered, until } from './faults.ts';
import { brokenNetwork, checkHistories, frozenServer } from './histories.ts';
import { drivers, type RedisConnection } from './redis-clients.ts';
import { bytes, failure, text } from './support.ts';

const ttlMs = 60_000;
const timeout = 150;

const program = await redisProgram();

/** What is closed when a test is over, in reverse order. */
type Closing = (close: () => void | Promise<void>) => void;

/** A server, and a connection through a proxy. */
async function place(connect: (port: number) => RedisConnection, closing: Closing) {
  const server = await startRedis(program!);
  closing(() => server.dispose());
  const proxy = await faultProxy({ port: server.port });
  closing(() => proxy.close());
  const open = (port: number) => {
    const connection = connect(port);
    closing(() => connection.close());
    return connection;
  };
  return { server, proxy, open };
}

async function primaryWithReplica(closing: Closing) {
  const primary = await startRedis(program!);
  closing(() => primary.dispose());
  const replica = await startReplica(program!, primary);
  closing(() => replica.dispose());
  return { primary, replica };
}

async function put(store: ClosableStore, key: string, value: string): Promise<number> {
  const answer = await store.write(key, bytes(value), { ttlMs });
  return answer.ok ? answer.version : 0;
}

describe.skipIf(program === undefined).concurrent('redisStore', () => {
  it.for(drivers)(
    'by $title fails in time when the server is killed, sends nothing later, and goes on above all versions',
    async ({ connect }, { onTestFinished }) => {
      const { server, proxy, open } = await place(connect, onTestFinished);
      const { client } = open(proxy.port);
      const store = redisStore(client, { timeout });
      const patient = redisStore(client, { timeout: '10s' });
      const version = await put(patient, 'key', 'old');
      await server.kill();
      const beganMs = performance.now();
      const verbs = Array.from({ length: 50 }, (_, index) =>
        failure(store.write(`key ${index}`, bytes('lost'), { ttlMs })),
      );
      for (const error of await Promise.all(verbs)) expect(['timeout', 'closed', 'failed']).toContain(error.reason);
      expect(performance.now() - beganMs).toBeLessThan(timeout + 30_000);
      // By now the client knows that there is no server.
      const { reason, applied } = await failure(store.write('key', bytes('lost'), { ttlMs }));
      expect([reason, applied]).toEqual(['timeout', 'no']);
      await server.start();
      expect(await answered(() => patient.read('key'))).toBeUndefined();
      const next = await patient.write('key', bytes('new'), { ttlMs, ifVersion: 0 });
      expect(next.ok && next.version > version).toBe(true);
      // Only the bucket and the record are there: nothing that was reported as failed has been applied later.
      expect(await open(server.port).command('DBSIZE')).toBe(2);
    },
  );

  it.for(drivers)(
    'by $title changes nothing while the server is loading its data, and works when it is done',
    async ({ connect }, { onTestFinished }) => {
      const slow = await startRedis(program!, [
        ...['--key-load-delay', '2000', '--loading-process-events-interval-bytes', '1024'],
      ]);
      onTestFinished(() => slow.dispose());
      const admin = connect(slow.port);
      onTestFinished(() => admin.close());
      const loading = redisStore(admin.client, { timeout });
      const patiently = redisStore(admin.client, { timeout: '10s' });
      const keys = Array.from({ length: 300 }, (_, index) => `key ${index}`);
      await Promise.all(keys.map((key) => patiently.write(key, bytes('kept'), { ttlMs })));
      await admin.command('SAVE');
      await slow.kill();
      const started = slow.start();
      const failures: StoreError[] = [];
      let isLoaded = false;
      void started.then(() => {
        isLoaded = true;
      });
      while (!isLoaded) {
        const error = await loading.write('key 1', bytes('new'), { ttlMs, ifVersion: 1 }).catch((thrown) => thrown);
        if (error instanceof StoreError) failures.push(error);
        await sleep(5);
      }
      await started;
      // The first one may have been sent before the client knew that the server was gone.
      const told = failures.slice(failures.findIndex(({ applied }) => applied === 'no'));
      expect(told.length).toBeGreaterThan(0);
      for (const { applied, reason } of told) {
        // A busy machine may answer too late.
        if (reason !== 'timeout') expect(applied).toBe('no');
        // ioredis waits until the server has loaded; node-redis sends the command and gets the server's error.
        expect(['busy', 'timeout']).toContain(reason);
      }
      expect(text((await answered(() => patiently.read('key 1')))?.value)).toBe('kept');
    },
  );

  it.for(drivers)(
    'by $title keeps histories linearizable while connections break and replies are lost',
    { timeout: historiesTimeoutMs },
    async ({ connect }, { onTestFinished }) => {
      const { proxy, open } = await place(connect, onTestFinished);
      const stores = Array.from({ length: 4 }, () => redisStore(open(proxy.port).client, { timeout: 500 }));
      const lost = await checkHistories(stores, brokenNetwork(proxy), firstSeed, historyCount(40));
      // This proves that the faults have struck.
      expect(lost).toBeGreaterThan(10);
    },
  );

  it.for(drivers)(
    'by $title keeps histories linearizable while the server stands still, and does then what nobody waits for any more',
    { timeout: historiesTimeoutMs },
    async ({ connect }, { onTestFinished }) => {
      const { server, open } = await place(connect, onTestFinished);
      const stores = Array.from({ length: 4 }, () => redisStore(open(server.port).client, { timeout }));
      const lost = await checkHistories(stores, frozenServer(server, 2 * timeout), firstSeed, historyCount(20));
      expect(lost).toBeGreaterThan(5);
    },
  );

  it('cannot keep two servers from giving one key away, but their versions tell who came later', async ({
    onTestFinished,
  }) => {
    const { primary, replica } = await primaryWithReplica(onTestFinished);
    const connections = [primary, replica].map(({ port }) => drivers[0]!.connect(port));
    for (const { close } of connections) onTestFinished(close);
    const [old, promoted] = connections.map(({ client }) => redisStore(client, { timeout: '5s' }));
    await put(old!, 'other', 'copied');
    await allCopied(connections[0]!);
    await connections[1]!.command('REPLICAOF', 'NO', 'ONE');
    expect(text((await promoted!.read('other'))?.value)).toBe('copied');
    const first = await old!.write('key', bytes('a'), { ttlMs, ifVersion: 0 });
    const second = await promoted!.write('key', bytes('b'), { ttlMs, ifVersion: 0 });
    expect([first.ok, second.ok]).toEqual([true, true]);
    expect(first.ok && second.ok && second.version > first.version).toBe(true);
  });

  it('behind sentinels goes on at the promoted replica with what it had copied, above all versions', async ({
    onTestFinished,
  }) => {
    const { primary } = await primaryWithReplica(onTestFinished);
    const sentinels = await startSentinels(program!, primary);
    for (const sentinel of sentinels) onTestFinished(() => sentinel.dispose());
    const admin = drivers[0]!.connect(primary.port);
    onTestFinished(() => admin.close());
    const stores: ClosableStore[] = [];
    for (const { connectSentinels } of [...drivers, ...drivers]) {
      const connection = await connectSentinels(sentinels.map(({ port }) => port));
      onTestFinished(() => connection.close());
      stores.push(redisStore(connection.client, { timeout: 1000 }));
    }
    const versions = await Promise.all(stores.map((store, index) => put(store, `key ${index}`, 'copied')));
    await allCopied(admin);
    await primary.kill();
    const goesOn = stores.map(async (store, index) => {
      const key = `key ${index}`;
      const ifVersion = versions[index]!;
      // It is refused if an attempt that was reported as failed was applied after all; then the entry is its own.
      await answered(() => store.write(key, bytes('new'), { ttlMs, ifVersion }));
      const entry = await answered(() => store.read(key));
      expect(text(entry?.value)).toBe('new');
      expect(entry!.version).toBeGreaterThan(ifVersion);
    });
    await Promise.all(goesOn);
  });

  const strikes = {
    'loses at a failover only what was written last, gives no version twice, and keeps its laws before and after it':
      kill,
    'keeps its laws at each of two primaries, while one that stood still takes writes beside its successor, and gives no version twice':
      freeze,
  };
  for (const [title, strike] of Object.entries(strikes)) {
    it(`behind sentinels ${title}`, { timeout: historiesTimeoutMs }, async ({ onTestFinished }) => {
      const pair = await primaryWithReplica(onTestFinished);
      const sentinels = await startSentinels(program!, pair.primary);
      for (const sentinel of sentinels) onTestFinished(() => sentinel.dispose());
      const stores: ClosableStore[] = [];
      for (const { connectSentinels } of [...drivers, ...drivers]) {
        const connection = await connectSentinels(sentinels.map(({ port }) => port));
        onTestFinished(() => connection.close());
        stores.push(redisStore(connection.client, { timeout: 1000 }));
      }
      const count = historyCount(40);
      const rounds = { strike, firstSeed, count, atOnce: Math.max(50, count / 20) };
      const { unknown } = await checkFailovers(stores, { ...pair, sentinels }, rounds);
      // This proves that the fault has struck.
      expect(unknown).toBeGreaterThan(0);
    });
  }

  it('on a cluster that loses a primary goes on at the promoted replica, above all versions', async ({
    onTestFinished,
  }) => {
    const { nodes, replicas } = await startCluster(program!, { replicas: 1 });
    const all = [...nodes, ...replicas];
    for (const server of all) onTestFinished(() => server.dispose());
    const keys = Array.from({ length: 12 }, (_, index) => `key ${index}`);
    const columns = await Promise.all(
      drivers.map(async ({ title, connectCluster }) => {
        const connection = await connectCluster(all.map(({ port }) => port));
        onTestFinished(() => connection.close());
        const store = redisStore(connection.client, { prefix: title, timeout: '2s' });
        const versions = await Promise.all(keys.map((key) => answered(() => put(store, key, 'copied'))));
        return { store, versions };
      }),
    );
    const offset = (info: string, field: string) => Number(new RegExp(`${field}:(\\d+)`).exec(info)?.[1]);
    for (const [index, replica] of replicas.entries()) {
      const behind = async () =>
        offset(await nodes[index]!.ask('INFO replication'), 'master_repl_offset') -
        offset(await replica.ask('INFO replication'), 'slave_repl_offset');
      await until(behind, (left) => left <= 0);
    }
    await nodes[0]!.kill();
    const goesOn = columns.flatMap(({ store, versions }) =>
      keys.map(async (key, index) => {
        const ifVersion = versions[index]!;
        await answered(() => store.write(key, bytes('new'), { ttlMs, ifVersion }));
        const entry = await answered(() => store.read(key));
        expect(text(entry?.value)).toBe('new');
        expect(entry!.version).toBeGreaterThan(ifVersion);
      }),
    );
    await Promise.all(goesOn);
  });

  it('on an ioredis that resends unanswered commands fails at once when the connection breaks, and takes no second reply for the first', async ({
    onTestFinished,
  }) => {
    const { proxy } = await place(drivers[0]!.connect, onTestFinished);
    const client = new Redis(proxy.port, '127.0.0.1', { retryStrategy: () => 10 });
    client.on('error', () => {});
    onTestFinished(() => client.disconnect());
    const store = redisStore(client, { timeout: '20s' });
    await store.remove('key');
    await put(store, 'key', 'value');
    await proxy.inject({ kind: 'cut', direction: 'replies', afterBytes: 0 });
    // The second removal finds nothing to remove, although the first one did remove something.
    const { applied, reason } = await failure(store.remove('key'));
    expect([applied, reason]).toEqual(['unknown', 'closed']);
    await proxy.heal();
    expect(await store.read('key')).toBeUndefined();
  });
});

/** Waits until the one replica has everything. */
async function allCopied(primary: RedisConnection): Promise<void> {
  // WAIT covers only what its own connection has written.
  await primary.command('SET', 'copied', '');
  await until(
    () => primary.command('WAIT', '1', '100'),
    (replicas) => Number(replicas) === 1,
  );
}

describe.skipIf(program === undefined)('redisStore on a server whose clock jumps', () => {
  const hourMs = 3_600_000;
  let shim: ClockShim | undefined;
  let server: ServerProcess;
  let connection: RedisConnection;
  let store: ClosableStore;
  beforeAll(() => {
    shim = clockShim(program!);
  });
  beforeEach(async ({ skip }) => {
    if (shim === undefined) return skip();
    shim.set(0);
    server = await startRedis(shim.program);
    connection = drivers[0]!.connect(server.port);
    store = redisStore(connection.client, { timeout: '5s' });
  });
  afterEach(async () => {
    connection?.close();
    await server?.dispose();
  });
  afterAll(() => shim?.dispose());

  it('ends entries early when it is put forward', async () => {
    await store.write('key', bytes('short'), { ttlMs: 30_000 });
    await store.write('other', bytes('long'), { ttlMs: 2 * hourMs });
    shim!.set(hourMs);
    expect(await store.read('key')).toBeUndefined();
    const entry = await store.read('other');
    expect(Math.abs(entry!.ageMs - hourMs)).toBeLessThan(60_000);
    expect(Math.abs(entry!.ttlMs - hourMs)).toBeLessThan(60_000);
  });

  it('keeps entries longer when it is put back, and versions grow all the same', async () => {
    const versions: number[] = [];
    for (const aheadMs of [0, hourMs, 0, -hourMs, 2 * hourMs, -2 * hourMs]) {
      shim!.set(aheadMs);
      const answer = await store.write('key', bytes('value'), { ttlMs: 24 * hourMs });
      if (answer.ok) versions.push(answer.version);
      if (versions.length % 2 === 0) await store.remove('key');
    }
    expect(versions).toHaveLength(6);
    expect(versions).toEqual([...versions].sort((one, other) => one - other));
    expect(new Set(versions).size).toBe(6);
    await store.write('short', bytes('value'), { ttlMs: 30_000 });
    shim!.set(-3 * hourMs);
    const entry = await store.read('short');
    expect(entry!.ageMs).toBe(0);
    expect(Math.abs(entry!.ttlMs - hourMs - 30_000)).toBeLessThan(60_000);
  });

  it('owes a shared rate limit no more than before when it is put back', async () => {
    const consume = store.native!.consume!;
    const rate = { limit: 6, periodMs: hourMs, burst: 2 };
    expect([(await consume('key', rate)).ok, (await consume('key', rate)).ok]).toEqual([true, true]);
    shim!.set(-24 * hourMs);
    expect((await consume('key', rate)).ok).toBe(false);
    shim!.set(-24 * hourMs + 700_000);
    expect((await consume('key', rate)).ok).toBe(true);
    expect((await consume('key', rate)).ok).toBe(false);
  });
});
