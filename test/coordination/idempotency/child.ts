/** Another process that does an order under an idempotency key; it may be told to die at one of its awaits. */
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
  /** The file, or the port. */
  readonly where: string;
  /** One line for each effect. */
  readonly effects: string;
  readonly key: string;
  readonly onLost: 'rerun' | 'resume' | 'refuse';
  readonly leaseMs: number;
  /** So many calls at once. */
  readonly calls: number;
  /** How long the order takes. */
  readonly takesMs: number;
  /** Kills itself when so many promises have gone on; 0: not at all. */
  readonly diesAt: number;
  /** Stops itself as soon as it has told that it runs. */
  readonly freezes: boolean;
}

const order = JSON.parse(process.argv[2]!) as Order;
const { kind, where, effects, key, onLost, leaseMs, calls, takesMs, diesAt, freezes } = order;
// Its parent may be gone before it.
process.on('disconnect', () => process.exit());
// Only where it is needed: it takes as long as all the rest.
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
