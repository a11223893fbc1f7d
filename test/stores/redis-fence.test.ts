/** The fence of values that are kept in Redis, on a real server. */
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { fencedSetScript } from '../../src/stores/redis.js';
import { redisProgram, startRedis } from '../support/servers/redis.ts';
import type { ServerProcess } from '../support/servers/server-process.ts';
import { drivers, type RedisConnection } from './redis-clients.ts';

const program = await redisProgram();

describe.skipIf(program === undefined)('fencedSetScript', () => {
  let server: ServerProcess;
  let connection: RedisConnection;
  beforeAll(async () => {
    server = await startRedis(program!);
    connection = drivers[0]!.connect(server.port);
  });
  beforeEach(() => connection.command('FLUSHALL'));
  afterAll(async () => {
    connection?.close();
    await server?.dispose();
  });
  const set = (fence: number, value: string) =>
    connection.command('EVAL', fencedSetScript, '2', 'value', 'fence', `${fence}`, value);
  const kept = () => connection.command('MGET', 'value', 'fence');

  it('sets for the newest fence, as often as it likes, and returns that fence to an older one', async () => {
    expect([await set(9, 'a'), await kept()]).toEqual([0, ['a', '9']]);
    expect([await set(9, 'b'), await kept()]).toEqual([0, ['b', '9']]);
    expect([await set(10, 'c'), await kept()]).toEqual([0, ['c', '10']]);
    for (const fence of [9, 1]) expect([await set(fence, 'late'), await kept()]).toEqual([10, ['c', '10']]);
    expect([await set(1_764_000_000_000_001, 'd'), await set(1_764_000_000_000_000, 'late')]).toEqual([
      ...[0, 1_764_000_000_000_001],
    ]);
    expect(await kept()).toEqual(['d', '1764000000000001']);
  });

  it('writes the fence before the value: a write that a full server refuses leaves no value of an unknown fence', async () => {
    await set(1, 'a');
    await connection.command('CONFIG', 'SET', 'maxmemory', '1');
    try {
      await expect(set(2, 'b')).rejects.toThrow('OOM');
      expect(await kept()).toEqual(['a', '1']);
    } finally {
      await connection.command('CONFIG', 'SET', 'maxmemory', '0');
    }
    // Whichever of its writes fails, a value is never newer than its fence.
    const parts = fencedSetScript.split("redis.call('SET'");
    expect(parts.length).toBe(3);
    const broken = parts.slice(0, 2).join("redis.call('SET'");
    await connection
      .command('EVAL', `${broken}struck('SET'${parts[2]}`, '2', 'value', 'fence', '2', 'b')
      .catch(() => {});
    expect(await kept()).toEqual(['a', '2']);
    expect(await set(1, 'late')).toBe(2);
  });
});
