/** A shop in its own process, on a file that others share. It dies where a request tells it to. */
import { once } from 'node:events';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { promiseHooks } from 'node:v8';
import { type Idempotency, type IdempotencyHandle, idempotency, type Store } from '../../../src/index.js';
import { postgresStore } from '../../../src/stores/postgres.js';
import { redisStore } from '../../../src/stores/redis.js';
import { sqliteStore } from '../../../src/stores/sqlite.js';
import { unsynced } from '../../support/unsynced.js';

/** Where it dies. At each of these moments it waits for something, or has just done something. */
export const deaths = ['before-effect', 'after-effect', 'storing', 'stored', 'answered'] as const;
export type Death = (typeof deaths)[number];

const [path, framework, onLost, lease, place] = process.argv.slice(2) as [
  string,
  string,
  'rerun' | 'resume' | 'refuse',
  '1s',
  string,
];
// It needs two connections, because the store never makes its own connection wait.
const db = unsynced(path);
db.exec('PRAGMA busy_timeout = 30000; CREATE TABLE IF NOT EXISTS effects (key TEXT, attempt INTEGER)');
let death: Death | undefined;
let isEffectDone = false;

interface Records {
  readonly store: Store;
  /** Ends the store and its connections. */
  readonly close: () => Promise<unknown>;
}

/** Modules that are not needed are not loaded, because loading takes longer than everything else. */
async function openRecords(): Promise<Records> {
  const [kind, port] = place.split(':');
  if (kind === 'redis') {
    const { Redis } = await import('ioredis');
    const client = new Redis(Number(port), '127.0.0.1');
    const store = redisStore(client, { timeout: '10s' });
    return { store, close: () => store.close().then(() => client.quit()) };
  }
  if (kind !== 'postgres') {
    const store = sqliteStore(unsynced(path), { timeout: '10s' });
    return { store, close: () => store.close() };
  }
  const { default: pg } = await import('pg');
  const pool = new pg.Pool({ host: '127.0.0.1', port: Number(port), user: 'postgres', database: 'postgres', max: 4 });
  const store = postgresStore(pool, { timeout: '10s' });
  await store.migrate();
  return { store, close: () => store.close().then(() => pool.end()) };
}

/** Dies when this many promises have continued since the request came in. With 0 it reports how many there are. */
function dieByCount(server: Server): void {
  server.prependListener('request', (request, response) => {
    const at = request.headers['x-dies-at'];
    if (at === undefined) return;
    let passed = 0;
    const stop = promiseHooks.onBefore(() => {
      if (++passed === Number(at)) process.kill(process.pid, 'SIGKILL');
    });
    response.once('close', () =>
      setTimeout(() => {
        stop();
        process.send?.({ passed });
      }, 50),
    );
  });
}

function dieAt(moment: Death): void {
  if (death === moment) process.kill(process.pid, 'SIGKILL');
}

const watched = (inner: Store): Store => ({
  read: (...given) => inner.read(...given),
  remove: (...given) => inner.remove(...given),
  async write(...given) {
    // The first write after the effect stores either a phase or the result.
    if (isEffectDone) dieAt('storing');
    const written = await inner.write(...given);
    if (isEffectDone) dieAt('stored');
    return written;
  },
});

async function sell(
  record: IdempotencyHandle,
  moment: Death | undefined,
  pauseMs: number,
): Promise<{ order: number; of: string }> {
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
  return { order, of: record.key };
}

const asked = (header: (name: string) => unknown) =>
  [header('x-die') as Death | undefined, Number(header('x-pause') ?? 1)] as const;

interface Serving {
  readonly server: Server;
  readonly close: () => Promise<unknown>;
}

/** Ends as docs/health.md says, in this order. Nothing else may keep the process alive. */
async function end({ server, close }: Serving, keys: Idempotency, records: Records): Promise<void> {
  process.channel?.unref();
  const closing = setInterval(() => server.closeIdleConnections(), 20);
  await close();
  clearInterval(closing);
  await keys.idle();
  await records.close();
}

async function open(): Promise<Server> {
  const records = await openRecords();
  const keys = idempotency({ store: watched(records.store), onLost, lease, storeTimeout: '10s' });
  const serving = await serve(keys);
  process.once('SIGTERM', () => void end(serving, keys, records));
  return serving.server;
}

async function serve(keys: Idempotency): Promise<Serving> {
  if (framework === 'express') {
    const { default: express } = await import('express');
    const { idempotency: idempotent } = await import('../../../src/server/express.js');
    const app = express();
    app.post('/orders', idempotent(keys, { scope: () => 'all' }), async (request, response) => {
      response.on('finish', () => dieAt('answered'));
      response.status(201).json(await sell(request.idempotency!, ...asked((name) => request.get(name))));
    });
    const server = createServer(app);
    return { server, close: () => once(server.close(), 'close') };
  }
  if (framework === 'node:http' || framework === 'a fetch handler') {
    const { idempotency: idempotent, nodeIdempotency } = await import('../../../src/server/web.js');
    const { bridged } = await import('./bridge.js');
    const scope = () => 'all';
    const listener =
      framework === 'node:http'
        ? nodeIdempotency(keys, { scope })(async ({ headers }, response, record) => {
            const sold = await sell(record!, ...asked((name) => headers[name]));
            response.writeHead(201).end(JSON.stringify(sold));
          })
        : bridged(
            idempotent(keys, { scope })(async ({ headers }, record) =>
              Response.json(await sell(record!, ...asked((name) => headers.get(name) ?? undefined)), { status: 201 }),
            ),
          );
    const server = createServer(listener);
    return { server, close: () => once(server.close(), 'close') };
  }
  const { default: Fastify } = await import('fastify');
  const { idempotency: idempotent } = await import('../../../src/server/fastify.js');
  const app = Fastify();
  app.register(idempotent, { engine: keys, scope: () => 'all' });
  app.register(async (child) => {
    child.post('/orders', async (request, reply) => {
      reply.raw.on('finish', () => dieAt('answered'));
      const order = await sell(request.idempotency!, ...asked((name) => request.headers[name]));
      return reply.code(201).send(order);
    });
  });
  await app.ready();
  return { server: app.server, close: () => app.close() };
}

void open().then((server) => {
  dieByCount(server);
  server.listen(0, '127.0.0.1', () => process.send?.((server.address() as AddressInfo).port));
});
// The parent may end first.
process.on('disconnect', () => process.exit());
