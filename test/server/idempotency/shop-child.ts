/** A shop in a process of its own, on a file that others share: it dies where a request tells it to. */
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { DatabaseSync } from 'node:sqlite';
import { setTimeout as sleep } from 'node:timers/promises';
import express from 'express';
import Fastify from 'fastify';
import type { IdempotencyHandle, Store } from '../../../src/index.js';
import { idempotency as expressIdempotency } from '../../../src/server/express.js';
import { idempotency as fastifyIdempotency } from '../../../src/server/fastify.js';
import { sqliteStore } from '../../../src/stores/sqlite.js';

/** Where it dies: each is a moment at which it waits for something, or has just done something. */
export const deaths = ['before-effect', 'after-effect', 'storing', 'stored', 'answered'] as const;
export type Death = (typeof deaths)[number];

const [path, framework, onLost, lease] = process.argv.slice(2) as [string, string, 'rerun' | 'resume' | 'refuse', '1s'];
// Two connections: the store never lets its own wait.
const db = new DatabaseSync(path);
db.exec('PRAGMA busy_timeout = 30000; CREATE TABLE IF NOT EXISTS effects (key TEXT, attempt INTEGER)');
const inner = sqliteStore(new DatabaseSync(path), { timeout: '10s' });
let death: Death | undefined;
let isEffectDone = false;

function dieAt(moment: Death): void {
  if (death === moment) process.kill(process.pid, 'SIGKILL');
}

const store: Store = {
  read: (...given) => inner.read(...given),
  remove: (...given) => inner.remove(...given),
  async write(...given) {
    // The first write after the effect is a memo or the result.
    if (isEffectDone) dieAt('storing');
    const written = await inner.write(...given);
    if (isEffectDone) dieAt('stored');
    return written;
  },
};

async function sell(record: IdempotencyHandle, moment: Death | undefined, pauseMs: number): Promise<{ order: number }> {
  process.send?.('working');
  death = moment;
  dieAt('before-effect');
  const charge = async () => {
    await sleep(pauseMs);
    db.prepare('INSERT INTO effects VALUES (?, ?)').run(record.key, record.attempt);
    isEffectDone = true;
    dieAt('after-effect');
    return record.attempt;
  };
  const order = onLost === 'resume' ? await record.phase('charge', charge) : await charge();
  return { order };
}

const asked = (header: (name: string) => unknown) =>
  [header('x-die') as Death | undefined, Number(header('x-pause') ?? 1)] as const;
const options = { store, onLost, lease, storeTimeout: '10s' } as const;

if (framework === 'express') {
  const app = express();
  app.post('/orders', expressIdempotency({ ...options, scope: () => 'all' }), async (request, response) => {
    response.on('finish', () => dieAt('answered'));
    response.status(201).json(await sell(request.idempotency!, ...asked((name) => request.get(name))));
  });
  const server = createServer(app).listen(0, '127.0.0.1', () => process.send?.((server.address() as AddressInfo).port));
} else {
  const app = Fastify();
  app.register(fastifyIdempotency, { ...options, scope: () => 'all' });
  app.register(async (child) => {
    child.post('/orders', async (request, reply) => {
      reply.raw.on('finish', () => dieAt('answered'));
      const order = await sell(request.idempotency!, ...asked((name) => request.headers[name]));
      return reply.code(201).send(order);
    });
  });
  app.listen({ port: 0, host: '127.0.0.1' }).then(() => process.send?.((app.server.address() as AddressInfo).port));
}
// Its parent may be gone before it.
process.on('disconnect', () => process.exit());
