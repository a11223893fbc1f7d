/** Another process that takes locks in Redis. As its arguments say, it holds one and writes under it, or counts in sections. */
import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import { mutex } from '../../../src/coordination/mutex/mutex.js';
import { fencedSetScript, redisStore } from '../../../src/stores/redis.js';

export type Told =
  | { readonly type: 'held'; readonly fence: number }
  | { readonly type: 'wrote' | 'refused'; readonly fence: number; readonly atMs: number }
  | { readonly type: 'lost'; readonly heldInTheSameTurn: boolean }
  | { readonly type: 'stale'; readonly accepted: boolean }
  | { readonly type: 'done'; readonly longestWaitMs: number };

const [port, mode, first, second] = process.argv.slice(2) as [string, 'hold' | 'block' | 'count', string, string];
const connect = () => new Redis(Number(port), '127.0.0.1', { autoResendUnfulfilledCommands: false });
const [client, subscriber] = [connect(), connect()];
for (const connection of [client, subscriber]) connection.on('error', () => {});
const store = redisStore(client, { subscriber, timeout: '5s' });
const locks = mutex({ store, ttl: mode === 'count' ? '10s' : Number(first), wait: '120s' });
const tell = (told: Told) => process.send?.(told);
// The parent may end first.
process.on('disconnect', () => process.exit());

/** Whether the resource accepted the write. */
const write = async (fence: number, value: string) =>
  (await client.eval(fencedSetScript, 2, '{resource}', '{resource}:fence', fence, value)) === 0;

if (mode === 'count') await count(Number(first), Number(second));
else await hold();
client.disconnect();
subscriber.disconnect();

async function hold(): Promise<void> {
  const lease = await locks.acquire('key');
  const { fence } = lease;
  tell({ type: 'held', fence });
  while (lease.held()) {
    // The check and the write are in one turn: what held() allows is sent before anything else can happen here.
    const isTaken = await write(fence, 'owner');
    tell({ type: isTaken ? 'wrote' : 'refused', fence, atMs: Date.now() });
    if (mode === 'block') {
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, Number(first) * 1.5);
      break;
    }
    await sleep(5);
  }
  tell({ type: 'lost', heldInTheSameTurn: lease.held() });
  tell({ type: 'stale', accepted: await write(fence, 'late') });
  await lease.release();
  await sleep(100);
}

async function count(contenders: number, sections: number): Promise<void> {
  let longestWaitMs = 0;
  const contend = async () => {
    for (let section = 0; section < sections; section++) {
      const startMs = performance.now();
      await locks.run('counter', async ({ fence }) => {
        longestWaitMs = Math.max(longestWaitMs, performance.now() - startMs);
        // This is not atomic, so only the lock keeps two of these apart.
        const seen = Number(await client.get('{counter}'));
        if ((await client.eval(fencedSetScript, 2, '{counter}', '{counter}:fence', fence, seen + 1)) !== 0) {
          throw new Error(`fence ${fence} is stale`);
        }
      });
    }
  };
  await Promise.all(Array.from({ length: contenders }, contend));
  tell({ type: 'done', longestWaitMs });
  await sleep(100);
}
