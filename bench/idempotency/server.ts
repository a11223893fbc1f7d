/** A server of the idempotency table, in a process of its own. It is told which server to be, and reports what a number of requests cost it. */
import { createHash } from 'node:crypto';
import { createServer, type RequestListener } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Idempotency } from '@node-idempotency/core';
import { MemoryStorageAdapter } from '@node-idempotency/storage-adapter-memory';
import express, { type RequestHandler } from 'express';
import { idempotency as expressIdempotency, getSharedIdempotencyService } from 'express-idempotency';
import Fastify, { type FastifyInstance } from 'fastify';
import { memoryStore, type Store } from 'holdfast';
import { idempotency as onExpress, rawBody } from 'holdfast/express';
import { idempotency as onFastify } from 'holdfast/fastify';
import { redisStore } from 'holdfast/redis';
import { Redis } from 'ioredis';
import { threadUs } from '../../test/support/thread-time.ts';
import { type Contender, contenders } from './contenders.ts';

const connectRedis = () => new Redis(Number(process.argv[3]), '127.0.0.1');
const store = (kind: Contender['kind']): Store =>
  kind === 'holdfast on Redis' ? redisStore(connectRedis()) : memoryStore({ max: 1_000_000, maxBytes: 1_000_000_000 });
const isOurs = (kind: Contender['kind']) => kind.startsWith('holdfast');
const slowMs = 0.15;

/** Simulates a handler that does some work. */
function work(): void {
  const until = performance.now() + slowMs;
  while (performance.now() < until);
}

interface Kept {
  readonly print: string;
  readonly status: number;
  readonly body: string;
}

const printOf = (body: Uint8Array) => createHash('sha256').update(body).digest('base64');

/** The minimum: hash the body, look into a map, and store the answer before it goes out. */
class Ideal {
  private readonly kept = new Map<string, Kept>();

  begin(key: string, body: Uint8Array): Kept | string {
    const print = printOf(body);
    return this.kept.get(key) ?? print;
  }

  end(key: string, print: string, status: number, body: string): void {
    this.kept.set(key, { print, status, body });
  }
}

/** The same in Redis, with two commands. It knows nothing about owners, leases, or lost replies. */
class IdealOnRedis {
  private readonly client = connectRedis();
  private readonly ttlMs = 86_400_000;

  async begin(key: string, body: Uint8Array): Promise<Kept | string> {
    const print = printOf(body);
    const found = await this.client.set(key, print, 'PX', this.ttlMs, 'NX', 'GET');
    return found === null ? print : JSON.parse(found);
  }

  end(key: string, print: string, status: number, body: string): Promise<unknown> {
    return this.client.set(key, JSON.stringify({ print, status, body }), 'PX', this.ttlMs, 'XX');
  }
}

function expressApp(kind: Contender['kind']): RequestListener {
  const app = express();
  app.disable('x-powered-by');
  const handler: RequestHandler = (request, response) => {
    if (request.path === '/slow') work();
    response.json({ hello: 'world' });
  };
  let bytes = new Uint8Array(0);
  const keepBytes = (_request: unknown, _response: unknown, body: Buffer) => {
    bytes = new Uint8Array(body);
  };
  const verify = isOurs(kind) ? rawBody : keepBytes;
  app.use(express.json({ verify }));
  const ideal = new Ideal();
  const idealOnRedis = kind === 'ideal on Redis' ? new IdealOnRedis() : undefined;
  const core = new Idempotency(new MemoryStorageAdapter());
  const ours = isOurs(kind) ? [onExpress({ store: store(kind), scope: () => 'all' }), handler] : [];
  const protections: Record<Contender['kind'], RequestHandler[]> = {
    bare: [handler],
    ideal: [
      (request, response, next) => {
        const key = request.get('idempotency-key');
        if (key === undefined) return next();
        const begun = ideal.begin(key, bytes);
        if (typeof begun !== 'string') return void response.status(begun.status).type('json').send(begun.body);
        const { send } = response;
        response.send = (body: unknown) => {
          if (typeof body === 'string') ideal.end(key, begun, response.statusCode, body);
          return Reflect.apply(send, response, [body]);
        };
        next();
      },
      handler,
    ],
    'ideal on Redis': [
      (request, response, next) => {
        const key = request.get('idempotency-key');
        if (key === undefined || idealOnRedis === undefined) return next();
        idealOnRedis.begin(key, bytes).then((begun) => {
          if (typeof begun !== 'string') return void response.status(begun.status).type('json').send(begun.body);
          const { send } = response;
          response.send = (body: unknown) => {
            if (typeof body !== 'string') return Reflect.apply(send, response, [body]);
            const kept = idealOnRedis.end(key, begun, response.statusCode, body);
            void kept.then(() => Reflect.apply(send, response, [body]));
            return response;
          };
          next();
        }, next);
      },
      handler,
    ],
    holdfast: ours,
    'holdfast on Redis': ours,
    'node-idempotency': [
      (request, response, next) => {
        const { headers, path, method, body } = request;
        const asked = { headers, path, method, body };
        core.onRequest<string, unknown>(asked).then((stored) => {
          if (stored !== undefined) return void response.status(200).type('json').send(stored.body);
          const { send } = response;
          response.send = (sent: unknown) => {
            if (typeof sent !== 'string') return Reflect.apply(send, response, [sent]);
            void core.onResponse(asked, { body: sent }).then(() => Reflect.apply(send, response, [sent]));
            return response;
          };
          next();
        }, next);
      },
      handler,
    ],
    'express-idempotency': [
      expressIdempotency() as unknown as RequestHandler,
      (request, response, next) => {
        if (!getSharedIdempotencyService().isHit(request as never)) void handler(request, response, next);
      },
    ],
  };
  app.post(['/', '/slow'], ...protections[kind]);
  return app;
}

async function fastifyApp(kind: Contender['kind']): Promise<FastifyInstance> {
  const app = Fastify();
  const core = new Idempotency(new MemoryStorageAdapter());
  if (isOurs(kind)) await app.register(onFastify, { store: store(kind), scope: () => 'all' });
  if (kind === 'ideal' || kind === 'ideal on Redis') {
    const ideal = kind === 'ideal' ? new Ideal() : new IdealOnRedis();
    app.addContentTypeParser('application/json', { parseAs: 'buffer' }, (_request, body, done) => done(null, body));
    app.addHook('preHandler', async (request, reply) => {
      const key = request.headers['idempotency-key'];
      if (typeof key !== 'string') return;
      const begun = await ideal.begin(key, request.body as Uint8Array);
      if (typeof begun !== 'string') return reply.code(begun.status).type('application/json').send(begun.body);
      (request as { print?: string }).print = begun;
      return;
    });
    app.addHook('onSend', async (request, reply, payload) => {
      const { print } = request as { print?: string };
      if (print !== undefined)
        await ideal.end(String(request.headers['idempotency-key']), print, reply.statusCode, String(payload));
      return payload;
    });
  }
  if (kind === 'node-idempotency') {
    const asked = (request: { headers: object; url: string; method: string; body: unknown }) =>
      ({ headers: request.headers, path: request.url, method: request.method, body: request.body }) as never;
    app.addHook('preHandler', async (request, reply) => {
      const stored = await core.onRequest<string, unknown>(asked(request));
      if (stored !== undefined) {
        (request as { isReplay?: boolean }).isReplay = true;
        return reply.type('application/json').send(stored.body);
      }
      return;
    });
    app.addHook('onSend', async (request, _reply, payload) => {
      if (!(request as { isReplay?: boolean }).isReplay)
        await core.onResponse(asked(request), { body: String(payload) });
      return payload;
    });
  }
  app.post('/', async () => ({ hello: 'world' }));
  app.post('/slow', async () => {
    work();
    return { hello: 'world' };
  });
  return app;
}

const { framework, kind } = contenders.find(({ name }) => name === process.argv[2])!;
let port: number;
if (framework === 'express') {
  const server = createServer(expressApp(kind)).listen(0, '127.0.0.1');
  await new Promise((resolve) => server.once('listening', resolve));
  port = (server.address() as AddressInfo).port;
} else {
  const app = await fastifyApp(kind);
  await app.listen({ port: 0, host: '127.0.0.1' });
  port = (app.server.address() as AddressInfo).port;
}
let beforeUs = threadUs();
process.on('message', () => {
  // What this thread has spent since it was asked last, in microseconds.
  const nowUs = threadUs();
  process.send?.(nowUs - beforeUs);
  beforeUs = nowUs;
});
process.on('disconnect', () => process.exit());
process.send?.(port);
