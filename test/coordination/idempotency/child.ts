/** Another process that carries out an order under an idempotency key. It may be told to die at one of its awaits. */
import { appendFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { promiseHooks } from 'node:v8';
import { idempotency } from '../../../src/coordination/idempotency/idempotency.js';
import { redisStore } from '../../../src/stores/redis.js';
import { sqliteStore } from '../../../src/stores/sqlite.js';
import type { Store } from '../../../src/stores/store.js';
import { unsynced } from '../../support/unsynced.ts';

export interface Order {
  readonly kind: 'sqlite' | 'redis';
  /** The path of the file, or the port. */
  readonly where: string;
  /** The file that gets one line for each effect. */
  readonly effects: string;
  readonly key: string;
  readonly onLost: 'rerun' | 'resume' | 'refuse';
  readonly leaseMs: number;
  /** How many calls are made at once. */
  readonly calls: number;
  /** How long the order takes. */
  readonly takesMs: number;
  /** It kills itself when this many promises have continued. With 0 it does not. */
  readonly diesAt: number;
  /** It stops itself as soon as it has reported that it runs. */
  readonly freezes: boolean;
}

const order = JSON.parse(process.argv[2]!) as Order;
const { kind, where, effects, key, onLost, leaseMs, calls, takesMs, diesAt, freezes } = order;
// The parent may end first.
process.on('disconnect', () => process.exit());
// It is loaded only where it is needed, because that takes as long as everything else.
const client = kind === 'redis' ? new (await import('ioredis')).Redis(Number(where), '127.0.0.1') : undefined;
const store: Store =
  client === undefined ? sqliteStore(unsynced(where), { timeout: '10s' }) : redisStore(client, { timeout: '10s' });
const once = idempotency({ store, onLost, lease: leaseMs, wait: '30s', storeTimeout: '10s', name: 'order' });
await store.read('warm');

async function run(): Promise<unknown> {
  return once.run(
    key,
    async (handle) => {
      await sleep(1);
      const seat = await handle.phase('reserve', () => 7);
      await new Promise((resolve) => process.send?.('runs', resolve));
      if (freezes) process.kill(process.pid, 'SIGSTOP');
      await sleep(takesMs);
      appendFileSync(effects, `${key} ${handle.attempt} ${handle.downstreamKey('charge')}\n`);
      await sleep(1);
      await handle.seal();
      return { seat, attempt: handle.attempt };
    },
    { scope: 'shop', input: { key } },
  );
}

if (diesAt > 0) {
  let passed = 0;
  promiseHooks.onBefore(() => {
    if (++passed === diesAt) process.kill(process.pid, 'SIGKILL');
  });
}
const answers = await Promise.allSettled(Array.from({ length: calls }, run));
const shown = answers.map((one) => (one.status === 'fulfilled' ? one.value : String(one.reason)));
await new Promise<void>((resolve) => {
  if (process.send) process.send({ answers: shown }, () => resolve());
  else resolve();
});
client?.disconnect();
process.disconnect?.();
