/** What an uncontended lock in Redis costs its client (P11). Each contender has its own server. */
import { Redis } from 'ioredis';
import { redisProgram, startRedis } from '../../test/support/servers/redis.ts';
import { atMost, type Operation, type Table } from '../table.ts';

const ttlMs = 10_000;

/** A server and a client, closed when the contender is told to end. */
async function connect(): Promise<Redis> {
  const program = await redisProgram();
  if (program === undefined) throw new Error('this table needs a Redis');
  const server = await startRedis(program);
  const client = new Redis(server.port, '127.0.0.1', { autoResendUnfulfilledCommands: false });
  process.once('disconnect', () => {
    client.disconnect();
    void server.dispose();
  });
  return client;
}

const releaseScript = `if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0`;

async function raw(): Promise<Operation> {
  const client = await connect();
  const hash = String(await client.script('LOAD', releaseScript));
  let last = 0;
  return async () => {
    const owner = `owner ${++last}`;
    await client.set('key', owner, 'PX', ttlMs, 'NX');
    await client.evalsha(hash, 1, 'key', owner);
  };
}

export const redisLock: Table = {
  name: 'redis-lock',
  title: 'Lock in Redis without contention: acquire and release, time of the client’s thread',
  note: '`raw commands`: `SET NX PX` and a compare-and-delete script, without fence, renewal or waiting.',
  measure: 'ns per call',
  baseline: 'raw commands',
  contenders: [
    { name: 'raw commands', prepare: raw },
    {
      name: 'holdfast',
      async prepare() {
        const [{ mutex }, { redisStore }] = await Promise.all([import('holdfast'), import('holdfast/redis')]);
        const locks = mutex({ store: redisStore(await connect()), ttl: ttlMs });
        return async () => (await locks.acquire('key')).release();
      },
    },
    {
      name: 'redlock',
      async prepare() {
        const { default: Redlock } = await import('redlock');
        const redlock = new Redlock([await connect()]);
        return async () => (await redlock.lock('key', ttlMs)).unlock();
      },
    },
    {
      name: 'redis-semaphore',
      async prepare() {
        const { Mutex } = await import('redis-semaphore');
        const client = await connect();
        return async () => {
          const lock = new Mutex(client, 'key', { lockTimeout: ttlMs });
          await lock.acquire();
          await lock.release();
        };
      },
    },
  ],
  targets: [
    atMost(1.05, 'P11: client time ≤ 1.05 × raw commands', (round) => round.holdfast! / round['raw commands']!),
  ],
};
