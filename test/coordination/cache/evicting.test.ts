/** Tags on a Redis that drops keys when its memory is full, as is usual for caches. */
import { Redis } from 'ioredis';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { type Cache, cache } from '../../../src/index.js';
import { redisStore } from '../../../src/stores/redis.js';
import { redisProgram, startRedis } from '../../support/servers/redis.ts';
import type { ServerProcess } from '../../support/servers/server-process.ts';

const program = await redisProgram();
const values = 300;

describe.skipIf(program === undefined)('cache before a Redis that evicts', () => {
  let server: ServerProcess;
  const caches: Cache<number>[] = [];
  const clients: Redis[] = [];

  beforeAll(async () => {
    server = await startRedis(program!);
  });
  afterEach(async () => {
    for (const one of caches.splice(0)) await one.close();
    for (const client of clients.splice(0)) client.disconnect();
  });
  afterAll(() => server?.dispose());

  it('shows no value whose tag was invalidated, whichever of the two is dropped', { timeout: 120_000 }, async () => {
    const client = new Redis(server.port, '127.0.0.1');
    clients.push(client);
    await client.flushall();
    await client.config('SET', 'maxmemory', '0');
    await client.config('SET', 'maxmemory-policy', 'allkeys-random');
    let now = 1;
    // Each has its own memory of the same records.
    const open = () => {
      const one = cache<number>({
        ...{ store: redisStore(client, { timeout: '20s' }), l2Timeouts: { read: '20s', write: '20s' } },
        ...{ ttl: '1h', early: 'off', jitter: 0, tags: (_, key) => [`of ${key}`], load: () => now },
      });
      caches.push(one);
      return one;
    };
    const [writer, reader] = [open(), open()];
    const keys = Array.from({ length: values }, (_, index) => `${index}`);
    for (const key of keys) await writer.get(key);
    now = 2;
    for (const key of keys) await writer.invalidateTag(`of ${key}`);
    const used = Number(/used_memory:(\d+)/.exec(await client.info('memory'))![1]);
    await client.config('SET', 'maxmemory', `${used + 200_000}`);
    const left = async (kind: string) => (await client.keys(`*|${kind}|*`)).length;
    for (let index = 0; (await left('tag')) > (2 * values) / 3; index++) {
      for (let key = 0; key < 50; key++) await client.set(`other ${index} ${key}`, 'x'.repeat(200));
    }
    await client.config('SET', 'maxmemory', '0');
    expect(await left('key')).toBeGreaterThan(0);
    const shown = await Promise.all(keys.map((key) => reader.get(key)));
    expect(shown.filter((value) => value !== 2)).toEqual([]);
  });

  it('tells copies in memory of the deletion of what the server has dropped', { timeout: 60_000 }, async () => {
    const connect = () => {
      const client = new Redis(server.port, '127.0.0.1');
      clients.push(client);
      return client;
    };
    const admin = connect();
    await admin.flushall();
    let now = 1;
    const open = () => {
      const store = redisStore(connect(), { subscriber: connect(), timeout: '20s' });
      const one = cache<number>({ store, ttl: '1h', early: 'off', maxL1Ttl: '1h', load: () => now });
      caches.push(one);
      return one;
    };
    const [writer, holder] = [open(), open()];
    // The first reads find that the watch has become ready, and ask once more.
    await expect.poll(async () => [await holder.get('42'), holder.peek('42')], { timeout: 20_000 }).toEqual([1, 1]);
    expect(await admin.del(...(await admin.keys('*|key|42')))).toBe(1);
    now = 2;
    await writer.delete('42');
    await expect.poll(() => holder.get('42'), { timeout: 20_000 }).toBe(2);
  });
});
