/** Redis killed, frozen, restarted and behind a bad network: what the store says then, and what holds afterwards. */

import { StoreError } from 'holdfast';
import { checkLinearizability, type FaultProxy, faultProxy, storeModel } from 'holdfast/testing';
import { Redis } from 'ioredis';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { redisStore } from '../../src/stores/redis.js';
import type { ClosableStore } from '../../src/stores/store.js';
import { firstSeed, historiesTimeoutMs, historyCount } from '../support/histories.ts';
import { type ClockShim, clockShim } from '../support/servers/clock-shim.ts';
import { redisProgram, startCluster, startRedis, startReplica, startSentinels } from '../support/servers/redis.ts';
import type { ServerProcess } from '../support/servers/server-process.ts';
import { playHistory } from './histories.ts';
import { drivers, type RedisConnection } from './redis-clients.ts';

const bytes = (text: string) => new TextEncoder().encode(text);
const text = (value: Uint8Array | undefined) => value && new TextDecoder().decode(value);
const ttlMs = 60_000;
const timeout = 150;

const program = await redisProgram();

async function failure(promise: Promise<unknown>): Promise<StoreError> {
  const error = await promise.catch((thrown: unknown) => thrown);
  expect(error).toBeInstanceOf(StoreError);
  return error as StoreError;
}

describe.skipIf(program === undefined).each(drivers)('redisStore on $title', ({ connect }) => {
  let server: ServerProcess;
  let proxy: FaultProxy;
  let connections: RedisConnection[];
  let store: ClosableStore;
  /** The same, for what must work even where the machine is busy. */
  let patient: ClosableStore;
  let version: number;

  const open = (port: number) => {
    const connection = connect(port);
    connections.push(connection);
    return connection;
  };
  /** What the server holds, asked without any fault in between. */
  const held = async (key = 'key') =>
    text((await redisStore(open(server.port).client, { timeout: '5s' }).read(key))?.value);
  /** The verb that works again as soon as there is a connection again. */
  const readAgain = () =>
    expect.poll(
      () =>
        store.read('key').then(
          (entry) => text(entry?.value) ?? 'nothing',
          () => 'a failure',
        ),
      {
        timeout: 5000,
        interval: 5,
      },
    );

  beforeEach(async () => {
    connections = [];
    server = await startRedis(program!);
    proxy = await faultProxy({ port: server.port });
    const { client } = open(proxy.port);
    store = redisStore(client, { timeout });
    patient = redisStore(client, { timeout: '10s' });
    // All scripts are known: what is lost below is the answer of a verb, not of a server without the script.
    await patient.read('key');
    await patient.remove('key');
    version = ((await patient.write('key', bytes('old'), { ttlMs })) as { version: number }).version;
  });
  afterEach(async () => {
    for (const connection of connections) connection.close();
    await proxy?.close();
    await server?.dispose();
  });

  it('fails in time when the server is killed, sends nothing later, and goes on above all versions', async () => {
    await server.kill();
    const beganMs = performance.now();
    const verbs = Array.from({ length: 50 }, (_, index) =>
      failure(store.write(`key ${index}`, bytes('lost'), { ttlMs })),
    );
    for (const error of await Promise.all(verbs)) expect(['timeout', 'closed', 'failed']).toContain(error.reason);
    expect(performance.now() - beganMs).toBeLessThan(timeout + 300);
    // By now the client knows that there is no server.
    expect(await failure(store.write('key', bytes('lost'), { ttlMs }))).toMatchObject({
      reason: 'timeout',
      applied: 'no',
    });
    await server.start();
    await readAgain().toBe('nothing');
    const next = await patient.write('key', bytes('new'), { ttlMs, ifVersion: 0 });
    expect(next.ok && next.version > version).toBe(true);
    const admin = open(server.port);
    // The bucket and the record: nothing that was told as failed has come after all.
    expect(await admin.command('DBSIZE')).toBe(2);
  });

  it('fails in time when the server is frozen; what it has received it does when it wakes', async () => {
    server.freeze();
    const beganMs = performance.now();
    const error = await failure(store.write('key', bytes('late'), { ttlMs, ifVersion: version }));
    expect(error).toMatchObject({ reason: 'timeout', applied: 'unknown' });
    expect(performance.now() - beganMs).toBeLessThan(timeout + 300);
    expect(await failure(store.read('key'))).toMatchObject({ reason: 'timeout', applied: 'no' });
    server.wake();
    await readAgain().toBe('late');
    // Its owner repeats it, and knows itself in what is in the way.
    const again = await patient.write('key', bytes('late'), { ttlMs, ifVersion: version });
    expect(again.ok ? 'written twice' : text(again.entry?.value)).toBe('late');
  });

  it('keeps what a restart keeps, versions as well', async () => {
    const kept = await startRedis(program!, ['--appendonly', 'yes', '--appendfsync', 'always']);
    try {
      const keeping = redisStore(open(kept.port).client, { timeout: '5s' });
      const first = (await keeping.write('key', bytes('kept'), { ttlMs })) as { version: number };
      await kept.kill();
      await kept.start();
      const entry = await expect
        .poll(() => keeping.read('key').catch(() => undefined), { timeout: 5000, interval: 5 })
        .toMatchObject({ version: first.version })
        .then(() => keeping.read('key'));
      expect(text(entry?.value)).toBe('kept');
      expect(await keeping.write('key', bytes('new'), { ttlMs, ifVersion: 0 })).toMatchObject({ ok: false });
    } finally {
      await kept.dispose();
    }
  });

  it('changes nothing while the server is loading its data, and works when it is done', async () => {
    const slow = await startRedis(program!, [
      ...['--key-load-delay', '2000', '--loading-process-events-interval-bytes', '1024'],
    ]);
    try {
      const admin = open(slow.port);
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
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
      await started;
      // The first may have been sent before the client knew that the server was gone.
      const told = failures.slice(failures.findIndex(({ applied }) => applied === 'no'));
      expect(told.length).toBeGreaterThan(0);
      for (const { applied, reason } of told) {
        expect(applied).toBe('no');
        // ioredis waits until it is done, node-redis asks and is told.
        expect(['busy', 'timeout']).toContain(reason);
      }
      expect(text((await patiently.read('key 1'))?.value)).toBe('kept');
    } finally {
      await slow.dispose();
    }
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
    for (const afterBytes of [1, 4, 6, 40_000]) {
      await proxy.inject({ kind: 'cut', direction: 'replies', afterBytes });
      expect(await failure(store.read('key'))).toMatchObject({ applied: 'no' });
      const refusal = failure(store.write('key', bytes('new'), { ttlMs, ifVersion: 0 }));
      expect(['no', 'unknown']).toContain((await refusal).applied);
      await proxy.heal();
      await readAgain().toBe('x'.repeat(100_000));
    }
  });

  it('fails in time in a blackhole, and what arrives late is done late', async () => {
    await proxy.inject({ kind: 'blackhole' });
    expect(await failure(store.write('key', bytes('late'), { ttlMs }))).toMatchObject({
      reason: 'timeout',
      applied: 'unknown',
    });
    expect(await held()).toBe('old');
    await proxy.heal();
    await readAgain().toBe('late');
  });

  it('fails in time on a half-open connection', async () => {
    await proxy.inject({ kind: 'half-open' });
    expect(await failure(store.write('key', bytes('lost'), { ttlMs }))).toMatchObject({
      reason: 'timeout',
      applied: 'unknown',
    });
    await proxy.heal();
    await readAgain().toBe('old');
  });

  it('fails with "no" while connections are refused', async () => {
    await proxy.inject({ kind: 'refuse' });
    await failure(store.read('key'));
    expect(await failure(store.write('key', bytes('lost'), { ttlMs }))).toMatchObject({
      reason: 'timeout',
      applied: 'no',
    });
    expect(await held()).toBe('old');
    await proxy.heal();
    await readAgain().toBe('old');
    expect(await patient.write('key', bytes('new'), { ttlMs, ifVersion: version })).toMatchObject({ ok: true });
  });

  it('works on a slow network, byte by byte', async () => {
    await proxy.inject({ kind: 'latency', delay: 20 });
    expect(await patient.write('key', bytes('slow'), { ttlMs })).toMatchObject({ ok: true });
    await proxy.inject({ kind: 'drip', bytes: 1, every: 1, direction: 'replies' });
    expect(text((await patient.read('key'))?.value)).toBe('slow');
  });

  it('is told scripts again by a verb whose server was restarted in between', async () => {
    await server.stop();
    await server.start();
    await readAgain().toBe('nothing');
    expect(await patient.write('key', bytes('new'), { ttlMs })).toMatchObject({ ok: true });
  });

  it(
    'keeps histories linearizable while connections break and replies are lost',
    async () => {
      const count = historyCount(40);
      const stores = Array.from({ length: 4 }, () => redisStore(open(proxy.port).client, { timeout: 30 }));
      let unknown = 0;
      for (let seed = firstSeed; seed < firstSeed + count; seed++) {
        const { history, lost } = await playHistory(stores, proxy, seed);
        unknown += lost;
        const verdict = checkLinearizability(history, storeModel());
        expect(verdict.verdict, `seed ${seed}\n${verdict}`).toBe('linearizable');
      }
      // The faults have struck.
      expect(unknown).toBeGreaterThan(10);
    },
    historiesTimeoutMs,
  );
});

describe.skipIf(program === undefined)('redisStore', () => {
  it('cannot keep two servers from giving one key away, but their versions tell who came later', async () => {
    const primary = await startRedis(program!);
    const replica = await startReplica(program!, primary);
    const connections = [primary, replica].map(({ port }) => drivers[0]!.connect(port));
    const [old, promoted] = connections.map(({ client }) => redisStore(client, { timeout: '5s' }));
    try {
      await old!.write('other', bytes('copied'), { ttlMs });
      const copied = async () => Number(await connections[0]!.command('WAIT', '1', '100'));
      await expect.poll(copied, { timeout: 10_000 }).toBe(1);
      await connections[1]!.command('REPLICAOF', 'NO', 'ONE');
      expect(text((await promoted!.read('other'))?.value)).toBe('copied');
      const first = await old!.write('key', bytes('a'), { ttlMs, ifVersion: 0 });
      const second = await promoted!.write('key', bytes('b'), { ttlMs, ifVersion: 0 });
      expect([first.ok, second.ok]).toEqual([true, true]);
      expect(first.ok && second.ok && second.version > first.version).toBe(true);
    } finally {
      for (const connection of connections) connection.close();
      await replica.dispose();
      await primary.dispose();
    }
  });
});

describe.skipIf(program === undefined)('redisStore behind sentinels', () => {
  it('goes on at the promoted replica with what it had copied, above all versions', async () => {
    const servers = [await startRedis(program!)];
    const [primary] = servers as [ServerProcess];
    const closing: { close(): void }[] = [];
    try {
      servers.push(await startReplica(program!, primary));
      const sentinels = await startSentinels(program!, primary);
      servers.push(...sentinels);
      const admin = drivers[0]!.connect(primary.port);
      closing.push(admin);
      const stores: ClosableStore[] = [];
      const versions: number[] = [];
      for (const [index, { connectSentinels }] of drivers.entries()) {
        const connection = await connectSentinels(sentinels.map(({ port }) => port));
        closing.push(connection);
        const store = redisStore(connection.client, { timeout: 1000 });
        stores.push(store);
        const answer = await store.write(`key ${index}`, bytes('copied'), { ttlMs });
        versions.push(answer.ok ? answer.version : 0);
      }
      await expect.poll(async () => Number(await admin.command('WAIT', '1', '100'))).toBe(1);
      await primary.kill();
      for (const [index, store] of stores.entries()) {
        const key = `key ${index}`;
        const writeAgain = async () => {
          try {
            // Refused where a try that was told as failed has been done after all: then the entry is its own.
            await store.write(key, bytes('new'), { ttlMs, ifVersion: versions[index] });
            return text((await store.read(key))?.value);
          } catch (error) {
            return error instanceof StoreError ? 'a failure' : error;
          }
        };
        await expect.poll(writeAgain, { timeout: 15_000, interval: 50 }).toBe('new');
        expect((await store.read(key))!.version).toBeGreaterThan(versions[index]!);
      }
    } finally {
      for (const { close } of closing) close();
      for (const server of servers.reverse()) await server.dispose();
    }
  }, 40_000);
});

describe.skipIf(program === undefined)('redisStore on a cluster that loses a primary', () => {
  it.each(drivers)(
    'goes on by $title at the promoted replica, above all versions',
    async ({ connectCluster }) => {
      const { nodes, replicas } = await startCluster(program!, { replicas: 1 });
      const all = [...nodes, ...replicas];
      let client: Awaited<ReturnType<typeof connectCluster>> | undefined;
      try {
        client = await connectCluster(all.map(({ port }) => port));
        const store = redisStore(client.client, { timeout: '2s' });
        const keys = Array.from({ length: 12 }, (_, index) => `key ${index}`);
        const versions = new Map<string, number>();
        for (const key of keys) {
          const answer = await store.write(key, bytes('copied'), { ttlMs });
          versions.set(key, answer.ok ? answer.version : 0);
        }
        const offset = (info: string, field: string) => Number(new RegExp(`${field}:(\\d+)`).exec(info)?.[1]);
        for (const [index, replica] of replicas.entries()) {
          const behind = async () =>
            offset(await nodes[index]!.ask('INFO replication'), 'master_repl_offset') -
            offset(await replica.ask('INFO replication'), 'slave_repl_offset');
          await expect.poll(behind, { timeout: 10_000, interval: 50 }).toBeLessThanOrEqual(0);
        }
        await nodes[0]!.kill();
        for (const key of keys) {
          const seen = versions.get(key)!;
          const again = async () => {
            try {
              await store.write(key, bytes('new'), { ttlMs, ifVersion: seen });
              return text((await store.read(key))?.value);
            } catch (error) {
              return error instanceof StoreError ? 'a failure' : error;
            }
          };
          await expect.poll(again, { timeout: 30_000, interval: 50 }).toBe('new');
          expect((await store.read(key))!.version).toBeGreaterThan(seen);
        }
      } finally {
        client?.close();
        for (const server of all) await server.dispose();
      }
    },
    90_000,
  );
});

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
    expect(Math.abs(entry!.ageMs - hourMs)).toBeLessThan(5000);
    expect(Math.abs(entry!.ttlMs - hourMs)).toBeLessThan(5000);
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
    expect(Math.abs(entry!.ttlMs - hourMs - 30_000)).toBeLessThan(5000);
  });
});

describe.skipIf(program === undefined)('redisStore on an ioredis that sends again what was not answered', () => {
  it('fails at once when the connection breaks, and takes no second answer for the first', async () => {
    const server = await startRedis(program!);
    const proxy = await faultProxy({ port: server.port });
    const client = new Redis(proxy.port, '127.0.0.1', { retryStrategy: () => 10 });
    client.on('error', () => {});
    try {
      const store = redisStore(client, { timeout: '20s' });
      await store.remove('key');
      await store.write('key', bytes('value'), { ttlMs });
      await proxy.inject({ kind: 'cut', direction: 'replies', afterBytes: 0 });
      // The second removal finds nothing to remove, which is not what has happened.
      expect(await failure(store.remove('key'))).toMatchObject({ applied: 'unknown', reason: 'closed' });
      await proxy.heal();
      expect(await store.read('key')).toBeUndefined();
    } finally {
      client.disconnect();
      await proxy.close();
      await server.dispose();
    }
  });
});
