/** The client libraries that the Redis store takes, each connected in its own way. */
import { Cluster, Redis } from 'ioredis';
import { createClient, createCluster, createSentinel } from 'redis';
import type { IoredisClient, NodeRedisClient } from '../../src/stores/redis.js';

export interface RedisConnection {
  readonly client: IoredisClient | NodeRedisClient;
  /** Sends any command. */
  command(...words: readonly string[]): Promise<unknown>;
  close(): void;
}

export interface RedisDriver {
  readonly title: string;
  /** Answers at once; the connection may still be on its way, and is made again whenever it breaks. */
  connect(port: number): RedisConnection;
  connectSentinels(ports: readonly number[]): Promise<Pick<RedisConnection, 'client' | 'close'>>;
  connectCluster(ports: readonly number[], keyPrefix?: string): Promise<Pick<RedisConnection, 'client' | 'close'>>;
}

const reconnectMs = 20;

const ioredis: RedisDriver = {
  title: 'ioredis',
  connect(port) {
    const client = new Redis(port, '127.0.0.1', {
      autoResendUnfulfilledCommands: false,
      maxRetriesPerRequest: null,
      retryStrategy: () => reconnectMs,
      // A server that loads says how many seconds it will take, and may be done sooner.
      maxLoadingRetryTime: reconnectMs,
    });
    client.on('error', () => {});
    return {
      client,
      command: (name, ...words) => client.call(name!, ...words),
      close: () => client.disconnect(),
    };
  },
  async connectSentinels(ports) {
    const client = new Redis({
      ...{ sentinels: ports.map((port) => ({ host: '127.0.0.1', port })), name: 'main' },
      ...{ autoResendUnfulfilledCommands: false, maxRetriesPerRequest: null },
      ...{ sentinelRetryStrategy: () => reconnectMs, retryStrategy: () => reconnectMs },
    });
    client.on('error', () => {});
    await client.ping();
    return { client, close: () => client.disconnect() };
  },
  async connectCluster(ports, keyPrefix = '') {
    const client = new Cluster(
      ports.map((port) => ({ host: '127.0.0.1', port })),
      { shardedSubscribers: true, keyPrefix },
    );
    return { client, close: () => client.disconnect() };
  },
};

/** It makes a class of a thousand commands for each new set of options, which takes as long as 50 round trips; duplicates share one. */
const nodeRedisClient = createClient({
  // Its own patience of 5 s with what it has not sent yet is not what is tested, and a busy machine may need more.
  commandOptions: { timeout: 60_000 },
});

const nodeRedis: RedisDriver = {
  title: 'node-redis',
  connect(port) {
    const client = nodeRedisClient.duplicate({
      socket: { host: '127.0.0.1', port, reconnectStrategy: () => reconnectMs },
    });
    client.on('error', () => {});
    client.connect().catch(() => {});
    return { client, command: (...words) => client.sendCommand([...words]), close: () => client.destroy() };
  },
  async connectSentinels(ports) {
    const client = createSentinel({
      name: 'main',
      sentinelRootNodes: ports.map((port) => ({ host: '127.0.0.1', port })),
    });
    client.on('error', () => {});
    await client.connect();
    return { client, close: () => client.destroy() };
  },
  async connectCluster(ports, keyPrefix = '') {
    const client = createCluster({ rootNodes: ports.map((port) => ({ url: `redis://127.0.0.1:${port}` })), keyPrefix });
    await client.connect();
    return { client, close: () => client.destroy() };
  },
};

export const drivers: readonly RedisDriver[] = [ioredis, nodeRedis];
