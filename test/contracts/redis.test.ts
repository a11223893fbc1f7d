/** The laws of a store against real servers, Redis and Valkey, with each client library. */
import { type ConformanceSettings, mutexConformance, storeConformance } from 'holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { redisStore } from '../../src/stores/redis.js';
import { drivers, type RedisConnection } from '../stores/redis-clients.ts';
import { runCases } from '../support/conformance.ts';
import { firstSeed, historyCount } from '../support/histories.ts';
import { redisProgram, startCluster, startRedis } from '../support/servers/redis.ts';
import type { ServerProcess } from '../support/servers/server-process.ts';

const kinds = [
  { name: 'Redis', program: await redisProgram('redis-server'), histories: 150 },
  { name: 'Valkey', program: await redisProgram('valkey-server'), histories: 50 },
];
const combinations = kinds.flatMap((kind) => drivers.map((driver) => ({ ...kind, ...driver })));

type Connection = Pick<RedisConnection, 'client' | 'close'>;

/** Stores of one server over four connections, used in turn. Each store has a subscriber of its own. */
function storesOf(connect: () => Connection | Promise<Connection>) {
  const mains: (Connection | Promise<Connection>)[] = [];
  const connections: Promise<Connection>[] = [];
  let stores = 0;
  return {
    async make({ prefix, maxValueBytes }: ConformanceSettings) {
      const turn = stores++ % 4;
      mains[turn] ??= connect();
      const pair = [mains[turn], connect()].map(async (connection) => connection);
      connections.push(...pair);
      const [main, subscriber] = await Promise.all(pair);
      return redisStore(main!.client, { prefix, maxValueBytes, timeout: '10s', subscriber: subscriber!.client });
    },
    async close() {
      for (const connection of new Set(await Promise.all(connections))) connection.close();
    },
  };
}

for (const { name, title, program, connect, histories } of combinations) {
  describe.skipIf(program === undefined)(`redisStore on ${name} by ${title} keeps`, () => {
    let server: ServerProcess;
    const { make, close } = storesOf(() => connect(server.port));
    // The server keeps nothing on disk, so it forgets everything, but versions still grow.
    const restart = async () => {
      await server.kill();
      await server.start();
    };
    beforeAll(async () => {
      server = await startRedis(program!);
    });
    afterAll(async () => {
      await close();
      await server?.dispose();
    });

    const cases = storeConformance({
      ...{ entries: 'shared', make, restart },
      ...{ histories: historyCount(histories), seed: firstSeed },
    });
    // Both clients and both servers are tested, but not in every combination.
    const hasLocks = (name === 'Redis') === (title === 'ioredis');
    runCases([...(hasLocks ? mutexConformance({ make, restart, contenders: 5 }) : []), ...cases]);
  });
}

describe.skipIf(kinds[0]!.program === undefined)('redisStore on a cluster', () => {
  let servers: readonly ServerProcess[] = [];
  beforeAll(async () => {
    servers = (await startCluster(kinds[0]!.program!)).nodes;
  });
  afterAll(async () => {
    for (const server of servers) await server.dispose();
  });

  // The part of a key in braces decides which node holds it, and which node serves its channel.
  it.for(drivers)(
    'by $title tells who watches behind a keyPrefix, and hands locks over',
    async ({ connectCluster }) => {
      const ports = servers.map(({ port }) => port);
      for (const keyPrefix of ['app:', '{app}:']) {
        const [main, second] = await Promise.all([connectCluster(ports, keyPrefix), connectCluster(ports, keyPrefix)]);
        const store = redisStore(main.client, { prefix: 'prefixed', timeout: '10s', subscriber: second.client });
        const told: string[] = [];
        const watch = store.native.watch!('key', ({ kind }) => told.push(kind));
        await watch.ready;
        const value = new Uint8Array(1);
        await store.write('key', value, { ttlMs: 60_000 });
        await expect.poll(() => told).toEqual(['changed']);
        watch.close();
        const turns: string[] = [];
        const place = { ttlMs: 60_000, placeMs: 20_000, onTurn: (turn: string) => turns.push(turn) };
        const enter = () => store.native.queue!.enter('key', 'ticket', new Uint8Array(2), place);
        // The first ticket of a process is not told of its turn until its channel is heard. A gap says that it is, and that a turn may have been missed.
        expect(await enter()).toMatchObject({ ok: false, isTold: false });
        await expect.poll(() => turns).toEqual(['gap']);
        expect(await enter()).toMatchObject({ ok: false, isTold: true });
        await store.native.queue!.pass('key');
        await expect.poll(() => turns).toContain('granted');
        await store.close();
        main.close();
        second.close();
      }
    },
  );

  it('refuses a subscriber of ioredis that puts something else before channels', async () => {
    const [ioredis] = drivers;
    const ports = servers.map(({ port }) => port);
    const [main, other] = await Promise.all([
      ioredis!.connectCluster(ports, 'a:'),
      ioredis!.connectCluster(ports, 'b:'),
    ]);
    expect(() => redisStore(main.client, { subscriber: other.client })).toThrow('the same "keyPrefix" or none');
    main.close();
    other.close();
  });

  describe.each(drivers)('by $title keeps', ({ connectCluster }) => {
    const { make, close } = storesOf(() => connectCluster(servers.map(({ port }) => port)));
    afterAll(close);
    runCases(storeConformance({ entries: 'shared', make, histories: historyCount(50), seed: firstSeed }));
  });
});
