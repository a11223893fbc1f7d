/** One small service on every kind of server that idempotency has an adapter for. */
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { text } from 'node:stream/consumers';
import express from 'express';
import express4 from 'express4';
import Fastify from 'fastify';
import type { IdempotencyHandle, Store } from '../../../src/index.js';
import { idempotency as expressIdempotency, rawBody } from '../../../src/server/express.js';
import { idempotency as fastifyIdempotency } from '../../../src/server/fastify.js';
import { nodeIdempotency, idempotency as webIdempotency } from '../../../src/server/web.js';
import { running } from '../support.js';
import { bridged } from './bridge.js';

export interface Asked {
  readonly path: string;
  readonly body: string;
  readonly record: IdempotencyHandle | undefined;
}

export interface Answered {
  readonly status?: number;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string;
}

/** A handler that knows no framework. What it throws becomes a 500. */
export type Service = (asked: Asked) => Answered | Promise<Answered>;

/** The options that the laws need. The scope is the header `x-user`. */
export interface Given {
  readonly store: Store;
  readonly [option: string]: unknown;
}

export interface Running {
  readonly port: number;
  close(): Promise<void>;
}

export interface Framework {
  readonly name: string;
  /** `POST /a/...` and `POST /b/...` are two routes that run the service. Each has its own middleware. */
  serve(given: Given, service: Service): Promise<Running>;
}

const answerOf = async (service: Service, asked: Asked): Promise<Required<Answered>> => {
  const { status = 201, headers = {}, body = '' } = await service(asked);
  return { status, headers: { 'content-type': 'text/plain', ...headers }, body };
};

function serveExpress(framework: typeof express): Framework['serve'] {
  return (given, service) => {
    const app = framework();
    app.set('env', 'test');
    app.use(framework.text({ type: ['application/json', 'text/plain'], limit: '64mb', verify: rawBody }));
    for (const name of ['a', 'b']) {
      const router = framework.Router();
      const scope = (request: express.Request) => request.get('x-user') ?? '';
      const handler: express.RequestHandler = (request, response, next) => {
        const { originalUrl: path, body, idempotency: record } = request;
        answerOf(service, { path, body: typeof body === 'string' ? body : '', record }).then((answer) => {
          response.status(answer.status).set(answer.headers).send(answer.body);
        }, next);
      };
      router.post('/:id', expressIdempotency({ ...given, scope }), handler);
      app.use(`/${name}`, router);
    }
    return running(createServer(app));
  };
}

const fastify: Framework['serve'] = async (given, service) => {
  const app = Fastify({ forceCloseConnections: true, bodyLimit: 64_000_000 });
  app.removeAllContentTypeParsers();
  app.addContentTypeParser('*', { parseAs: 'string' }, (_request, body, done) => done(null, body));
  await app.register(fastifyIdempotency, { ...given, scope: (request) => String(request.headers['x-user'] ?? '') });
  for (const name of ['a', 'b']) {
    app.post(`/${name}/:id`, async (request, reply) => {
      const { url: path, body, idempotency: record } = request;
      const answer = await answerOf(service, { path, body: String(body ?? ''), record });
      return reply.code(answer.status).headers(answer.headers).send(answer.body);
    });
  }
  await app.listen({ port: 0, host: '127.0.0.1' });
  return { port: (app.server.address() as AddressInfo).port, close: () => app.close() };
};

const node: Framework['serve'] = (given, service) => {
  const protect = nodeIdempotency({ ...given, scope: ({ headers }) => String(headers['x-user'] ?? '') });
  const listener = protect(async (request, response, record) => {
    const answer = await answerOf(service, { path: request.url!, body: await text(request), record });
    response.writeHead(answer.status, answer.headers).end(answer.body);
  });
  return running(createServer(listener));
};

const web: Framework['serve'] = (given, service) => {
  const protect = webIdempotency({ ...given, scope: (request) => request.headers.get('x-user') ?? '' });
  const handler = protect(async (request, record) => {
    const { pathname, search } = new URL(request.url);
    const answer = await answerOf(service, { path: pathname + search, body: await request.text(), record });
    return new Response(answer.body === '' ? null : answer.body, answer);
  });
  return running(createServer(bridged(handler)));
};

export const frameworks: readonly Framework[] = [
  { name: 'express 5', serve: serveExpress(express) },
  { name: 'express 4', serve: serveExpress(express4) },
  { name: 'fastify 5', serve: fastify },
  { name: 'node:http', serve: node },
  { name: 'a fetch handler', serve: web },
];
