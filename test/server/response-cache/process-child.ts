/** A server in its own process, with a response cache before Redis. It reports how often its handler ran. */
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import express from 'express';
import Fastify from 'fastify';
import { Redis } from 'ioredis';
import { responseCache as expressCache } from '../../../src/server/express.js';
import { responseCache as fastifyCache } from '../../../src/server/fastify.js';
import { redisStore } from '../../../src/stores/redis.js';

const [framework, redisPort] = process.argv.slice(2) as ['express' | 'fastify', string];
const connect = () => {
  const client = new Redis(Number(redisPort), '127.0.0.1', { autoResendUnfulfilledCommands: false });
  client.on('error', () => {});
  return client;
};
const store = redisStore(connect(), { timeout: '10s', subscriber: connect() });
const patience = { read: '10s', write: '10s' } as const;
const options = { store, ttl: '10m', staleIfError: '10m', tags: () => ['all'], l2Timeouts: patience } as const;
let runs = 0;

async function answer(): Promise<string> {
  runs++;
  await sleep(100);
  return `by ${process.pid}, run ${runs}`;
}

let invalidate: () => Promise<void>;
let server: Server;
if (framework === 'express') {
  const app = express();
  const cached = expressCache(options);
  invalidate = () => cached.invalidateTag('all');
  app.get('/page', cached, async (_request, response) => void response.send(await answer()));
  server = createServer(app).listen(0, '127.0.0.1', ready);
} else {
  const app = Fastify();
  await app.register(fastifyCache, options);
  invalidate = () => app.responseCache.invalidateTag('all');
  app.get('/page', () => answer());
  await app.listen({ port: 0, host: '127.0.0.1' });
  server = app.server;
  ready();
}

function ready(): void {
  process.send?.((server.address() as AddressInfo).port);
}

process.on('message', async (order: 'runs' | 'invalidate') => {
  if (order === 'invalidate') await invalidate();
  process.send?.(runs);
});
process.on('disconnect', () => process.exit());
