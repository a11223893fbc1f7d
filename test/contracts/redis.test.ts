/** The laws of a store against real servers, Redis and Valkey, with each client library. */
import { mutexConformance, storeConformance } from 'holdfast/testing';
import { afterAll, beforeAll, describe, it } from 'vitest';
import { redisStore } from '../../src/stores/redis.js';
import { drivers, type RedisConnection } from '../stores/redis-clients.ts';
import { firstSeed, historiesTimeoutMs, historyCount } from '../support/histories.ts';
import { redisProgram, startCluster, startRedis } from '../support/servers/redis.ts';
import type { ServerProcess } from '../support/servers/server-process.ts';

const kinds = [
  { name: 'Redis', program: await redisProgram('redis-server'), histories: 150 },
  { name: 'Valkey', program: await redisProgram('valkey-server'), histories: 50 },
];
const combinations = kinds.flatMap((kind) => drivers.map((driver) => ({ ...kind, ...driver })));

for (const { name, title, program, connect, histories } of combinations) {
  describe.skipIf(program === undefined)(`redisStore on ${name} by ${title} keeps`, () => {
    let server: ServerProcess;
    const connections: RedisConnection[] = [];
    beforeAll(async () => {
      server = await startRedis(program!);
    });
    afterAll(async () => {
      for (const connection of connections) connection.close();
      await server?.dispose();
    });

    const cases = storeConformance({
      entries: 'shared',
      make({ prefix, maxValueBytes }) {
        const connection = connect(server.port);
        const second = connect(server.port);
        connections.push(connection, second);
        return redisStore(connection.client, { prefix, maxValueBytes, timeout: '10s', subscriber: second.client });
      },
      // It keeps nothing on disk: all is forgotten, versions grow all the same.
      async restart() {
        await server.kill();
        await server.start();
      },
      histories: historyCount(histories),
      seed: firstSeed,
    });
    it.each(cases)('$name', ({ run }) => run(), historiesTimeoutMs);

    // Both clients and both servers, yet not each with each: these cases wait for leases to end.
    if ((name === 'Redis') !== (title === 'ioredis')) return;
    const lockCases = mutexConformance({
      make({ prefix }) {
        const connection = connect(server.port);
        const second = connect(server.port);
        connections.push(connection, second);
        return redisStore(connection.client, { prefix, timeout: '10s', subscriber: second.client });
      },
      async restart() {
        await server.kill();
        await server.start();
      },
      contenders: 5,
    });
    describe('locks:', () => {
      it.each(lockCases)('$name', ({ run }) => run(), 60_000);
    });
  });
}

describe.skipIf(kinds[0]!.program === undefined)('redisStore on a cluster', () => {
  let servers: readonly ServerProcess[] = [];
  beforeAll(async () => {
    servers = (await startCluster(kinds[0]!.program!)).nodes;
  }, 20_000);
  afterAll(async () => {
    for (const server of servers) await server.dispose();
  });

  describe.each(drivers)('by $title keeps', ({ connectCluster }) => {
    const clients: { close(): void }[] = [];
    afterAll(() => {
      for (const client of clients) client.close();
    });
    const cases = storeConformance({
      entries: 'shared',
      async make({ prefix, maxValueBytes }) {
        const ports = servers.map(({ port }) => port);
        const [cluster, second] = await Promise.all([connectCluster(ports), connectCluster(ports)]);
        clients.push(cluster, second);
        return redisStore(cluster.client, { prefix, maxValueBytes, timeout: '10s', subscriber: second.client });
      },
      histories: historyCount(50),
      seed: firstSeed,
    });
    it.each(cases)('$name', ({ run }) => run(), historiesTimeoutMs);
  });
});
