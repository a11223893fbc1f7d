/** What only Express has: routes with a deadline of their own, streams, writes after the answer. */
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import express from 'express';
import Fastify from 'fastify';
import undici from 'undici';
import { describe, expect, it } from 'vitest';
import { memoryStore, OptionsError } from '../../src/index.js';
import { callOf, deadline, fence, health, idempotency, responseCache } from '../../src/server/express.js';
import { virtualClock } from '../../src/testing/index.js';
import { deferred } from '../support/deferred.ts';
import { problemOf, running, untilAborted } from './support.js';

async function withServer(app: express.Express, task: (url: string) => Promise<void>): Promise<void> {
  app.set('env', 'test');
  const server = app.listen(0, '127.0.0.1');
  await once(server, 'listening');
  try {
    await task(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
  } finally {
    server.closeAllConnections();
    server.close();
  }
}

describe('the middleware of express', () => {
  it.each(
    Object.entries({
      deadline: deadline(),
      fence: fence({ resource: () => 'x' }),
      health: health(),
      idempotency: idempotency({ store: memoryStore(), scope: () => 'x' }),
      responseCache: responseCache(),
    }),
  )('%s names the plugin for Fastify when it is registered there', (name, middleware) => {
    const register = () => (middleware as (...given: unknown[]) => void)(Fastify(), {}, () => {});
    expect(register).toThrow(`in Fastify register ${name} of holdfast/fastify`);
  });
});

describe('deadline of express on its own', () => {
  it('refuses invalid options when it is mounted', () => {
    expect(() => deadline({ default: 'soon' as '1s' })).toThrow(OptionsError);
  });

  it('explains what to do if it is not mounted', () => {
    expect(() => callOf({} as express.Request)).toThrow('mount the deadline middleware');
  });

  it('sets a nearer deadline for a route', async () => {
    const app = express();
    app.use(deadline({ default: '10s' }));
    const left: express.RequestHandler = (request, response) => void response.json(callOf(request).remainingMs);
    app.get('/near', deadline({ default: '1s' }), left);
    app.get('/far', deadline({ default: '1m' }), left);
    await withServer(app, async (url) => {
      expect(await (await fetch(`${url}/near`)).json()).toBeLessThanOrEqual(1_000);
      expect(await (await fetch(`${url}/far`)).json()).toBeLessThanOrEqual(10_000);
    });
  });

  it('answers through a response of Node, as Koa, Connect and the Fastify adapter of NestJS pass one on', async () => {
    const middleware = deadline({ default: '20ms' }) as unknown as (...given: unknown[]) => void;
    const server = createServer((request, response) => middleware(request, response, () => {}));
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    try {
      const signal = AbortSignal.timeout(10_000);
      const answer = await fetch(`http://127.0.0.1:${(server.address() as AddressInfo).port}`, { signal });
      const { status, type, body } = await problemOf(answer);
      expect([status, type, body.code]).toEqual([504, 'application/problem+json', 'ERR_DEADLINE_EXCEEDED']);
    } finally {
      server.closeAllConnections();
      server.close();
    }
  });

  it('answers a request from which undici has taken the socket, as it does when it has passed on its body', async () => {
    const clock = virtualClock();
    const upstream = createServer((request) => {
      // Its answer would come too late.
      request.resume().once('end', () => void clock.advance('10s'));
    });
    const { port, close } = await running(upstream);
    const app = express();
    app.use(deadline({ default: '10s', clock }));
    let failure: unknown;
    app.post('/', async (request, response) => {
      const { signal } = callOf(request);
      const passedOn = undici.request(`http://127.0.0.1:${port}`, { method: 'POST', body: request, signal });
      failure = await passedOn.catch((error: unknown) => error);
      expect(request.socket).toBeNull();
      response.status(502).end('the handler');
    });
    await withServer(app, async (url) => {
      expect((await problemOf(await fetch(url, { method: 'POST', body: 'hello' }))).status).toBe(504);
      await expect.poll(() => failure).toMatchObject({ code: 'ERR_DEADLINE_EXCEEDED' });
    });
    await close();
  });

  it('lets an answer that has begun continue, and aborts the call', async () => {
    const app = express();
    const clock = virtualClock();
    app.use(deadline({ default: 50, clock }));
    app.get('/', async (request, response) => {
      response.write('first,');
      void clock.advance(50);
      await untilAborted(callOf(request).signal).catch(() => {});
      response.end('last');
    });
    await withServer(app, async (url) => {
      const answer = await fetch(url);
      expect([answer.status, await answer.text()]).toEqual([200, 'first,last']);
    });
  });

  it('keeps the status it sent, whatever the handler does afterwards, without throwing', async () => {
    const app = express();
    const done = deferred<unknown>();
    const clock = virtualClock();
    app.use(deadline({ default: 30, clock }));
    app.get('/', async (request, response) => {
      void clock.advance(30);
      await untilAborted(callOf(request).signal).catch(() => {});
      await sleep(5);
      try {
        response.status(500).set('x-late', '1').setHeaders(new Map()).write('late');
        response.removeHeader('content-type');
        response.json({ late: true });
        response.end();
        done.resolve([response.statusCode, response.headersSent, request.socket.remoteAddress]);
      } catch (error) {
        done.resolve(error);
      }
    });
    await withServer(app, async (url) => {
      const answer = await fetch(url);
      expect(await problemOf(answer)).toMatchObject({ status: 504, body: { code: 'ERR_DEADLINE_EXCEEDED' } });
      expect(await done.promise).toEqual([504, true, '127.0.0.1']);
    });
  });

  it('answers in time whatever the handler had said about its own answer, and says nothing of it', async () => {
    const app = express();
    const clock = virtualClock();
    app.use(deadline({ default: 30, clock }));
    app.get('/', (_request, response) => {
      response.statusMessage = 'not\nvalid';
      response.status(201).set({
        ...{ Trailer: 'X-Checksum', 'Content-Length': '5000', 'Content-Encoding': 'gzip', 'X-Kept': '1' },
        ...{ ETag: '"1"', 'Cache-Control': 'public, max-age=3600', 'Content-Disposition': 'attachment' },
      });
      void clock.advance(30);
    });
    await withServer(app, async (url) => {
      const answer = await fetch(url);
      expect([answer.statusText, answer.headers.get('x-kept')]).toEqual(['Gateway Timeout', '1']);
      const others = ['trailer', 'content-encoding', 'etag', 'cache-control', 'content-disposition'];
      expect(others.filter((name) => answer.headers.has(name))).toEqual([]);
      expect(await problemOf(answer)).toMatchObject({ status: 504, body: { code: 'ERR_DEADLINE_EXCEEDED' } });
    });
  });

  it('calls back code that writes after the answer, so that no handler waits for ever', async () => {
    const app = express();
    const done = deferred<string>();
    app.use(deadline({ default: 30 }));
    app.get('/', async (request, response) => {
      // It listens from the start, because the answer may be sent before this continues.
      const answered = once(response, 'finish');
      await untilAborted(callOf(request).signal).catch(() => {});
      await answered;
      await new Promise<void>((written) => response.write('late', () => written()));
      await new Promise<void>((ended) => response.end('later', () => ended()));
      done.resolve('went on');
    });
    await withServer(app, async (url) => {
      expect((await fetch(url)).status).toBe(504);
      expect(await done.promise).toBe('went on');
    });
  });

  it.each<readonly [string, (signal: AbortSignal, response: express.Response) => unknown]>([
    ['fails after the answer, even without an error handler', (signal) => untilAborted(signal)],
    [
      'breaks its own off',
      (signal, response) => void signal.addEventListener('abort', () => response.destroy(new Error('cut'))),
    ],
  ])('keeps the connection if the handler %s', async (_, late) => {
    const app = express();
    const ports = new Set<number | undefined>();
    const ended = deferred<void>();
    const clock = virtualClock();
    app.use(deadline({ clock }));
    app.get('/', async (request, response) => {
      ports.add(request.socket.remotePort);
      if (callOf(request).remainingMs === Number.POSITIVE_INFINITY) return void response.json({});
      void clock.advance(40);
      try {
        await late(callOf(request).signal, response);
      } finally {
        ended.resolve();
      }
    });
    await withServer(app, async (url) => {
      const late = await fetch(url, { headers: { 'request-deadline-ms': '40' } });
      expect(late.status).toBe(504);
      await late.text();
      await ended.promise;
      await sleep(20);
      expect((await fetch(url)).status).toBe(200);
      expect(ports.size).toBe(1);
    });
  });
});
