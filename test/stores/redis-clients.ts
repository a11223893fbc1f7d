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
  /** Returns at once. The connection may not be made yet, and is made again whenever it breaks. */
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
      // A server that is loading says how many seconds it will take, but may be ready sooner.
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

/** It makes a class with a thousand commands for each new set of options, which takes as long as 50 round trips. Duplicates share one class. */
const nodeRedisClient = createClient({
  // By default it fails a command that it could not send within 5 s. That is not what is tested, and a busy machine may need longer.
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
