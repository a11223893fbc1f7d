/** One small service behind a response cache, on every framework that has one, and clients that count. */
import { createServer, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import express from 'express';
import express4 from 'express4';
import Fastify from 'fastify';
import type { HoldfastEvent } from '../../../src/index.js';
import { responseCache as expressCache } from '../../../src/server/express.js';
import { responseCache as fastifyCache } from '../../../src/server/fastify.js';
import type { ResponseCacheOptions } from '../../../src/server/response-cache/options.js';
import type { ResponseCacheControl } from '../../../src/server/response-cache/response-cache.js';
import { headerOf, type RawAnswer, type RawRequest, send } from '../idempotency/raw-client.js';
import { running } from '../support.js';

export interface Asked {
  readonly url: string;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly response: ServerResponse;
}

export interface Answered {
  readonly status?: number;
  readonly headers?: Readonly<Record<string, string | string[]>>;
  readonly body?: string | Uint8Array;
}

/** A handler that knows no framework. Undefined means that it has answered by itself. */
export type Service = (asked: Asked) => Answered | undefined | Promise<Answered | undefined>;

// biome-ignore lint/suspicious/noExplicitAny: options of both frameworks, whose requests are of different types.
export type Given = ResponseCacheOptions<any>;

export interface Running {
  readonly port: number;
  readonly control: ResponseCacheControl;
  close(): Promise<void>;
}

export interface Framework {
  readonly name: string;
  serve(given: Given, service: Service): Promise<Running>;
  /** The same service without a cache. */
  bare(service: Service): Promise<Omit<Running, 'control'>>;
}

function expressOn(framework: typeof express): Pick<Framework, 'serve' | 'bare'> {
  const open = async (cached: express.RequestHandler[], service: Service) => {
    const app = framework();
    app.set('env', 'test');
    app.use(...(cached.length > 0 ? cached : ([(_request, _response, next) => next()] as express.RequestHandler[])));
    app.use((request, response, next) => {
      Promise.resolve({ url: request.originalUrl, headers: request.headers, response })
        .then(service)
        .then((answer) => {
          if (answer === undefined) return;
          const { status = 200, headers = {}, body = '' } = answer;
          response.status(status).set(headers);
          response.send(typeof body === 'string' ? body : Buffer.from(body));
        })
        .catch(next);
    });
    return running(createServer(app));
  };
  return {
    async serve(given, service) {
      const control = expressCache(given);
      const server = await open([control], service);
      const close = async () => {
        await server.close();
        await control.close();
      };
      return { ...server, control, close };
    },
    bare: (service) => open([], service),
  };
}

async function fastifyOn(given: Given | undefined, service: Service) {
  const app = Fastify({ forceCloseConnections: true });
  if (given !== undefined) await app.register(fastifyCache, given);
  app.route({
    method: ['GET', 'POST'],
    url: '*',
    async handler({ originalUrl: url, headers }, reply) {
      const answer = await service({ url, headers, response: reply.raw });
      if (answer === undefined) return reply.hijack();
      const { status = 200, headers: own = {}, body = '' } = answer;
      return reply
        .code(status)
        .headers(own)
        .send(typeof body === 'string' ? body : Buffer.from(body));
    },
  });
  await app.listen({ port: 0, host: '127.0.0.1' });
  return {
    port: (app.server.address() as AddressInfo).port,
    control: app.responseCache,
    close: () => app.close(),
  };
}

export const frameworks: readonly Framework[] = [
  { name: 'express 5', ...expressOn(express) },
  { name: 'express 4', ...expressOn(express4) },
  {
    name: 'fastify 5',
    serve: (given, service) => fastifyOn(given, service),
    bare: (service) => fastifyOn(undefined, service),
  },
];

/** A server whose handler counts, and the client that asks it. */
export class World implements AsyncDisposable {
  runs = 0;
  readonly seen: Asked[] = [];
  readonly events: HoldfastEvent[] = [];
  /** How many milliseconds the handler takes. */
  delayMs = 0;
  private running!: Running;
  private readonly service: Service;

  private constructor(service: Service) {
    this.service = service;
  }

  static async open(framework: Framework, given: Given, service: Service): Promise<World> {
    const world = new World(service);
    const on = (event: HoldfastEvent) => void world.events.push(event);
    world.running = await framework.serve({ jitter: 0, early: 'off', on, ...given }, (asked) => world.answer(asked));
    return world;
  }

  get control(): ResponseCacheControl {
    return this.running.control;
  }

  get port(): number {
    return this.running.port;
  }

  async get(path = '/', headers: Readonly<Record<string, string>> = {}, more: RawRequest = {}): Promise<RawAnswer> {
    return send(this.running.port, { method: 'GET', path, headers: Object.entries(headers), ...more });
  }

  async text(path?: string, headers?: Readonly<Record<string, string>>): Promise<string> {
    return (await this.get(path, headers)).body.toString();
  }

  private async answer(asked: Asked): Promise<Answered | undefined> {
    this.runs++;
    this.seen.push({ ...asked, headers: { ...asked.headers } });
    if (this.delayMs > 0) await sleep(this.delayMs);
    return this.service(asked);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.running.close();
  }
}

export const statusOf = (answer: RawAnswer) => headerOf(answer, 'cache-status');

/** The response without what a cache says about itself. */
export function comparable({ statusLine, headers, body }: RawAnswer) {
  const own = /^(date|age|cache-status|transfer-encoding|content-length)$/i;
  return { statusLine, headers: headers.filter(([name]) => !own.test(name)), body: body.toString('latin1') };
}
