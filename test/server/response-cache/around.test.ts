/** What may be mounted around a response cache: compression, headers of other middleware, authentication, another cache. */

import { createServer } from 'node:http';
import { gunzipSync } from 'node:zlib';
import compression from 'compression';
import express from 'express';
import express4 from 'express4';
import { describe, expect, it } from 'vitest';
import { type HoldfastEvent, memoryStore, type Store } from '../../../src/index.js';
import { deadline, responseCache } from '../../../src/server/express.js';
import { virtualClock } from '../../../src/testing/index.js';
import { deferred } from '../../support/deferred.ts';
import { exchange, headerOf, requestBytes, send } from '../idempotency/raw-client.js';
import { listening } from '../idempotency/support.js';
import { statusOf } from './support.ts';

const page = 'a page of some length, '.repeat(200);

/** A listener, and how the loads end that it hears of: true, or the message of the error. */
function heardLoads() {
  const loads: unknown[] = [];
  const on = (event: HoldfastEvent) =>
    event.type === 'cache-load' && loads.push(event.outcome.ok || (event.outcome.error as Error).message);
  return { loads, on };
}

describe.each([
  ['express 5', express],
  ['express 4', express4],
])('responseCache on %s', (_, framework) => {
  const served = <T>(app: express.Express, task: (get: ReturnType<typeof getter>) => Promise<T>) => {
    app.set('env', 'test');
    return listening(createServer(app), (port) => task(getter(port)));
  };
  const getter =
    (port: number) =>
    (headers: Record<string, string> = {}, path = '/') =>
      send(port, { method: 'GET', path, headers: Object.entries(headers) });

  it.each(['before', 'after'])('gives what compression mounted %s it makes of the answer', async (where) => {
    const app = framework();
    const cached = responseCache({ ttl: '1m', jitter: 0 });
    let runs = 0;
    for (const one of where === 'before' ? [compression(), cached] : [cached, compression()]) app.use(one);
    app.get('/', (_request, response) => void response.type('text').send(`${page}${++runs > 0 ? 1 : 0}`));
    await served(app, async (get) => {
      for (let round = 0; round < 2; round++) {
        const zipped = await get({ 'accept-encoding': 'gzip' });
        expect([headerOf(zipped, 'content-encoding'), gunzipSync(zipped.body).toString()]).toEqual([
          'gzip',
          `${page}1`,
        ]);
        const plain = await get();
        expect([headerOf(plain, 'content-encoding'), plain.body.toString()]).toEqual([undefined, `${page}1`]);
      }
      expect(runs).toBe(where === 'before' ? 1 : 2);
    });
    await cached.close();
  });

  it('leaves the headers of earlier middleware to each request', async () => {
    const app = framework();
    let requests = 0;
    app.use((_request, response, next) => {
      response.set({ 'X-Request-Id': `${++requests}`, 'X-Taken-Away': '1' });
      next();
    });
    app.use(responseCache({ ttl: '1m', jitter: 0 }));
    app.get('/', (_request, response) => {
      response.set('X-Handler', '1').removeHeader('X-Taken-Away');
      response.send('x');
    });
    await served(app, async (get) => {
      const answers = [await get(), await get()];
      expect(answers.map((answer) => headerOf(answer, 'x-request-id'))).toEqual(['1', '2']);
      expect(answers.map((answer) => headerOf(answer, 'x-taken-away'))).toEqual([undefined, undefined]);
      expect(answers.map((answer) => headerOf(answer, 'x-handler'))).toEqual(['1', '1']);
    });
  });

  it('says in one way how long a body is where earlier middleware would have it in chunks', async () => {
    const app = framework();
    app.use((_request, response, next) => {
      response.set('Transfer-Encoding', 'chunked');
      next();
    });
    app.use(responseCache({ ttl: '1m', jitter: 0 }));
    app.get('/', (_request, response) => void response.end('x'));
    await served(app, async (get) => {
      for (let round = 0; round < 2; round++) {
        const answer = await get();
        const isChunked = headerOf(answer, 'transfer-encoding') !== undefined;
        const hasLength = headerOf(answer, 'content-length') !== undefined;
        expect([answer.body.toString(), isChunked !== hasLength]).toEqual(['x', true]);
      }
    });
  });

  it('keeps the old answer when its own request is turned away before it', async () => {
    const clock = virtualClock();
    const app = framework();
    let isOpen = true;
    let runs = 0;
    const failures: unknown[] = [];
    const on = (event: HoldfastEvent) =>
      event.type === 'cache-load' && !event.outcome.ok && failures.push((event.outcome.error as Error).message);
    app.use((_request, response, next) => (isOpen ? next() : void response.sendStatus(401)));
    app.use('/sub', responseCache({ ttl: '10s', staleWhileRevalidate: '1m', jitter: 0, early: 'off', clock, on }));
    app.get('/sub/page', (request, response) => void response.send(`${request.originalUrl} ${++runs}`));
    await served(app, async (get) => {
      expect((await get({}, '/sub/page')).body.toString()).toBe('/sub/page 1');
      await clock.advance(11_000);
      const stale = get({}, '/sub/page');
      expect((await stale).body.toString()).toBe('/sub/page 1');
      await expect.poll(() => runs).toBe(2);
      await clock.advance(11_000);
      const racing = get({}, '/sub/page');
      await racing;
      await expect.poll(() => runs).toBe(3);
      await expect.poll(async () => (await get({}, '/sub/page')).body.toString()).toBe('/sub/page 3');
      await clock.advance(11_000);
      isOpen = false;
      const answered = get({}, '/sub/page');
      expect((await answered).status).toBe(401);
      expect([runs, failures]).toEqual([3, []]);
    });
  });

  it('considers its own request lost if other code answers it on its way', async () => {
    const clock = virtualClock();
    const app = framework();
    const { loads, on } = heardLoads();
    let seen = 0;
    app.use((_request, response, next) => (++seen === 3 ? void response.sendStatus(401) : next()));
    app.use(responseCache({ ttl: '10s', staleWhileRevalidate: '1m', jitter: 0, early: 'off', clock, on }));
    app.get('/', (_request, response) => void response.send('page'));
    await served(app, async (get) => {
      await get();
      await clock.advance(11_000);
      expect((await get()).body.toString()).toBe('page');
      const lost = 'the request for a refresh was answered 401 on its way';
      await expect.poll(() => loads).toEqual([true, lost]);
    });
  });

  it('stores nothing of its own request that arrived as a different one', async () => {
    const clock = virtualClock();
    const app = framework();
    const { loads, on } = heardLoads();
    let asked = 0;
    const key = () => (++asked === 3 ? 'another' : 'page');
    app.use(responseCache({ ttl: '10s', staleWhileRevalidate: '1m', jitter: 0, early: 'off', clock, key, on }));
    app.get('/', (_request, response) => void response.send('page'));
    await served(app, async (get) => {
      await get();
      await clock.advance(11_000);
      expect((await get()).body.toString()).toBe('page');
      await expect.poll(() => loads).toEqual([true, 'the request for a refresh came as another one']);
    });
  });

  it('passes a request whose answer has already begun to its handler', async () => {
    const app = framework();
    app.use((_request, response, next) => {
      response.writeHead(200, { 'X-Begun': '1' });
      response.write('begun, ');
      next();
    });
    app.use(responseCache({ ttl: '1m', jitter: 0 }));
    app.use((_request, response) => void response.end('ended'));
    app.set('env', 'test');
    await listening(createServer(app), async (port) => {
      for (const method of ['GET', 'GET', 'POST']) {
        const answer = await send(port, { method });
        expect([headerOf(answer, 'x-begun'), answer.body.toString()]).toEqual(['1', 'begun, ended']);
      }
    });
  });

  it('does not wait for itself if it is mounted twice', async () => {
    const clock = virtualClock();
    const app = framework();
    let runs = 0;
    const cached = responseCache({ ttl: '10s', staleWhileRevalidate: '1m', jitter: 0, early: 'off', clock });
    app.use(cached);
    app.get('/', cached, (_request, response) => void response.send(`${++runs}`));
    await served(app, async (get) => {
      expect((await get()).body.toString()).toBe('1');
      expect((await get()).body.toString()).toBe('1');
      await clock.advance(11_000);
      expect((await get()).body.toString()).toBe('1');
      await expect.poll(async () => (await get()).body.toString()).toBe('2');
    });
  });

  it('has a valid name in Cache-Status, whatever it is called', async () => {
    for (const [name, said] of [
      ['my "pages" \\ é', '"my ?pages? ? ?"'],
      ['7pages', '"7pages"'],
      ['pages:7', 'pages:7'],
    ] as const) {
      const app = framework();
      app.use(responseCache({ ttl: '1m', name }));
      app.get('/', (_request, response) => void response.send('page'));
      await served(app, async (get) => expect(statusOf(await get())).toBe(`${said}; fwd=uri-miss`));
    }
  });

  it('considers its own request lost as soon as its key cannot be determined', async () => {
    const clock = virtualClock();
    const app = framework();
    const loads: boolean[] = [];
    let asked = 0;
    const key = () => {
      if (++asked === 3) throw new Error('no key');
      return 'page';
    };
    const on = (event: HoldfastEvent) => event.type === 'cache-load' && loads.push(event.outcome.ok);
    app.use(responseCache({ ttl: '10s', staleWhileRevalidate: '1m', jitter: 0, early: 'off', clock, key, on }));
    app.get('/', (_request, response) => void response.send('page'));
    await served(app, async (get) => {
      await get();
      await clock.advance(11_000);
      expect((await get()).body.toString()).toBe('page');
      await expect.poll(() => loads).toEqual([true, false]);
    });
  });

  it('blocks nobody behind a handler that fails in the middle of its answer, although Express then destroys the socket', async () => {
    const app = framework();
    app.use(responseCache({ ttl: '1m', jitter: 0 }));
    let runs = 0;
    app.get('/', (_request, response, next) => {
      response.write('half');
      if (++runs === 1) setTimeout(() => next(new Error('source broke')), 50);
      else response.end(' and half');
    });
    app.set('env', 'test');
    await listening(createServer(app), async (port) => {
      const failing = exchange(port, requestBytes({ method: 'GET' }));
      await expect.poll(() => runs, { interval: 5 }).toBe(1);
      expect((await send(port, { method: 'GET' })).body.toString()).toBe('half and half');
      expect((await failing).toString()).toMatch(/half\r\n$/);
      expect((await send(port, { method: 'HEAD' })).status).toBe(200);
    });
  });

  it('sends what a handler answered in time, although the deadline passes while the store is asked about it', async () => {
    const app = framework();
    const clock = virtualClock();
    const inner = memoryStore();
    const answered = deferred<void>();
    const store: Store = {
      read: (...given) => inner.read(...given),
      remove: (...given) => answered.promise.then(() => inner.remove(...given)),
      write: (...given) =>
        given[2]?.ifVersion === 0 ? inner.write(...given) : answered.promise.then(() => inner.write(...given)),
    };
    app.use(deadline({ default: 50, clock }));
    const cached = responseCache({ store, ttl: '1m' });
    app.get('/', cached, async (_request, response) => {
      response.status(503).send('busy, says the handler');
      await clock.advance(50);
      answered.resolve();
    });
    await served(app, async (get) => {
      const answer = await get();
      expect([answer.statusLine, answer.body.toString()]).toEqual([
        'HTTP/1.1 503 Service Unavailable',
        'busy, says the handler',
      ]);
      expect(headerOf(answer, 'content-length')).toBe('22');
    });
    await cached.close();
  });

  it('refreshes what it stores, even if another cache is mounted around it', async () => {
    const clock = virtualClock();
    const app = framework();
    let runs = 0;
    const common = { staleWhileRevalidate: '1m', jitter: 0, early: 'off', clock } as const;
    app.use(responseCache({ ...common, ttl: '20s', name: 'outer', staleWhileRevalidate: 0 }));
    app.use(responseCache({ ...common, ttl: '10s', name: 'inner' }));
    app.get('/', (_request, response) => void response.send(`${++runs}`));
    await served(app, async (get) => {
      await get();
      await clock.advance(21_000);
      const stale = await get();
      expect([stale.body.toString(), statusOf(stale)]).toEqual(['1', expect.stringContaining('inner; hit; ttl=-')]);
      await expect.poll(() => runs).toBe(2);
    });
  });
});
