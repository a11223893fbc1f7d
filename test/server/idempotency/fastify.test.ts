/** Every way to answer with Fastify 5, compared with the same server without protection, on bare sockets. */

import type { AddressInfo } from 'node:net';
import { Readable } from 'node:stream';
import { buffer } from 'node:stream/consumers';
import { gzipSync } from 'node:zlib';
import Fastify, { type FastifyInstance } from 'fastify';
import { describe, expect, it, vi } from 'vitest';
import { idempotency as engineOf, memoryStore, OptionsError, type Store } from '../../../src/index.js';
import { type IdempotencyPluginOptions, idempotency, type RouteIdempotency } from '../../../src/server/fastify.js';
import { virtualClock } from '../../../src/testing/index.js';
import { deferred } from '../../support/deferred.ts';
import { type FastifyHandler, failingFastifyPaths, fastifyPaths } from './fastify-paths.js';
import { exchange, headerOf, requestBytes, send, sendAndLeave } from './raw-client.js';
import { expectReplay, keyed, lasting, lateStore, storesToTry, wire } from './support.js';

// Real servers on a machine that may be busy with others.
vi.setConfig({ testTimeout: 60_000 });

const options = (store: Store = memoryStore()): IdempotencyPluginOptions => ({
  store,
  scope: (request) => request.headers.authorization ?? 'nobody',
});

async function serving<T>(
  { isProtected = true, given = options(), prepare = (_app: FastifyInstance): Promise<unknown> => Promise.resolve() },
  task: (port: number) => Promise<T>,
): Promise<T> {
  const app = Fastify({ forceCloseConnections: true });
  if (isProtected) await app.register(idempotency, given);
  await prepare(app);
  await app.listen({ port: 0, host: '127.0.0.1' });
  try {
    return await task((app.server.address() as AddressInfo).port);
  } finally {
    await app.close();
  }
}

const routed = (handler: FastifyHandler, own?: RouteIdempotency) => async (app: FastifyInstance) =>
  app.post('/:id', own === undefined ? {} : { config: { idempotency: own } }, handler);

function counted(handler: FastifyHandler) {
  const counting = Object.assign(
    function (this: unknown, request: Parameters<FastifyHandler>[0], reply: Parameters<FastifyHandler>[1]) {
      counting.runs++;
      return handler(request, reply);
    },
    { runs: 0 },
  );
  return counting;
}

const request = { path: '/1', headers: keyed('k-1') };

describe.each(storesToTry)('with fastify and a store that %s, an answer by', (_how, store) => {
  for (const [name, handler] of Object.entries(fastifyPaths)) {
    it(`${name} is the same as without protection, and the same when it is replayed`, async () => {
      const bare = await serving({ isProtected: false, prepare: routed(handler) }, (port) => send(port, request));
      const counting = counted(handler);
      await serving({ given: options(store()), prepare: routed(counting) }, async (port) => {
        const first = await send(port, request);
        const second = await send(port, request);
        expect(wire(first)).toEqual(wire(bare));
        expectReplay(second, bare);
        expect(counting.runs).toBe(1);
      });
    });
  }

  for (const [name, handler] of Object.entries(failingFastifyPaths)) {
    it(`a handler that ${name} is the same as without protection, and runs again`, async () => {
      const bare = await serving({ isProtected: false, prepare: routed(handler) }, (port) => send(port, request));
      const counting = counted(handler);
      await serving({ given: options(store()), prepare: routed(counting) }, async (port) => {
        expect(wire(await send(port, request))).toEqual(wire(bare));
        expect(wire(await send(port, request))).toEqual(wire(bare));
        expect(counting.runs).toBe(2);
      });
    });
  }
});

describe('idempotency of fastify', () => {
  it('does not run a route that it could not protect because it was added before the plugin was loaded', async () => {
    const app = Fastify();
    // Without `await` it is loaded when the server starts, after the routes of this function.
    app.register(idempotency, options());
    let runs = 0;
    const run = () => ({ runs: ++runs });
    app.post('/early', run);
    app.post('/open', { config: { idempotency: false } }, run);
    app.put('/own', { config: { idempotency: { methods: ['PUT'] } } }, run);
    app.put('/other', run);
    app.put('/wanted', { config: { idempotency: { methods: ['PUT'], required: true } } }, run);
    app.get('/wanted', { config: { idempotency: { methods: ['GET'], required: true } } }, run);
    app.register(async (child) => child.post('/child', run));
    const keyed = { 'idempotency-key': 'k-1' };
    const ask = async (method: 'GET' | 'POST' | 'PUT', url: string, headers: Record<string, string> = keyed) => {
      const { statusCode, body } = await app.inject({ method, url, headers });
      return [statusCode, body] as const;
    };
    const post = (url: string, headers?: Record<string, string>) => ask('POST', url, headers);
    const refused = [500, expect.stringContaining('await app.register(idempotency, options)')];
    expect([await post('/early'), await ask('PUT', '/own')]).toEqual([refused, refused]);
    // The route requires a key, and no plugin is there that would ask for it.
    expect([await ask('PUT', '/wanted', {}), await ask('GET', '/wanted', {})]).toEqual([refused, refused]);
    expect(runs).toBe(0);
    // Either nobody asked for protection, or nobody can have it.
    const open = [await post('/early', {}), await post('/open'), await ask('PUT', '/other')];
    expect(open.map(([status]) => status)).toEqual([200, 200, 200]);
    expect((await post('/nowhere'))[0]).toBe(404);
    expect(await post('/child')).toEqual([200, '{"runs":4}']);
    expect(await post('/child')).toEqual([200, '{"runs":4}']);
    await app.close();
  });

  it('treats an undefined option of a route as left out', async () => {
    const app = Fastify();
    await app.register(idempotency, { ...options(), required: true });
    app.post('/', { config: { idempotency: { required: undefined, methods: ['POST'] } } }, () => 'ran');
    expect((await app.inject({ method: 'POST', url: '/' })).statusCode).toBe(400);
    await app.close();
  });

  it('applies in an inner instance as registered there, and not twice', async () => {
    const app = Fastify();
    await app.register(idempotency, options());
    let runs = 0;
    const run = () => ({ runs: ++runs });
    app.post('/outer', run);
    await app.register(async (child) => {
      await child.register(idempotency, { ...options(), methods: ['PUT'], required: true });
      child.put('/inner', run);
      child.post('/unprotected', run);
      child.put('/open', { config: { idempotency: false } }, run);
    });
    const ask = async (
      method: 'POST' | 'PUT',
      url: string,
      headers: Record<string, string> = { 'idempotency-key': 'k' },
    ) => {
      const { statusCode, body } = await app.inject({ method, url, headers });
      return statusCode === 200 ? body : statusCode;
    };
    expect([await ask('POST', '/outer'), await ask('POST', '/outer')]).toEqual(['{"runs":1}', '{"runs":1}']);
    expect([await ask('PUT', '/inner'), await ask('PUT', '/inner')]).toEqual(['{"runs":2}', '{"runs":2}']);
    expect([await ask('POST', '/outer', {}), await ask('PUT', '/inner', {})]).toEqual(['{"runs":3}', 400]);
    expect([await ask('POST', '/unprotected'), await ask('POST', '/unprotected')]).toEqual([
      '{"runs":4}',
      '{"runs":5}',
    ]);
    expect([await ask('PUT', '/open'), await ask('PUT', '/open')]).toEqual(['{"runs":6}', '{"runs":7}']);
    await app.close();
  });

  it('is refused if it is registered twice in one instance', async () => {
    const app = Fastify();
    await app.register(idempotency, options());
    await expect(app.register(idempotency, options())).rejects.toThrow('registered in this instance already');
  });

  const created: FastifyHandler = async (_request, reply) => reply.code(201).send({ ok: true });

  it('makes register fail for invalid options, also those of a route', async () => {
    const app = Fastify();
    await expect(app.register(idempotency, { store: memoryStore() } as never)).rejects.toThrow(OptionsError);
    const other = Fastify();
    await other.register(idempotency, options());
    expect(() => other.post('/', { config: { idempotency: { required: 'yes' as never } } }, created)).toThrow(
      OptionsError,
    );
  });

  it('stores an answer as the hooks have changed it, and passes it through them once', async () => {
    const prepare = async (app: FastifyInstance) => {
      app.addHook('onSend', async (_request, reply, payload) => {
        reply.header('content-encoding', 'gzip');
        return gzipSync(payload as string);
      });
      await routed(created)(app);
    };
    await serving({ prepare }, async (port) => {
      const first = await send(port, request);
      const second = await send(port, request);
      expect(headerOf(first, 'content-encoding')).toBe('gzip');
      expect(lasting(second)).toEqual(lasting(first));
    });
  });

  it('keeps headers that a hook has set for this caller, as with CORS', async () => {
    const prepare = async (app: FastifyInstance) => {
      app.addHook(
        'onRequest',
        async ({ headers }, reply) => void reply.header('access-control-allow-origin', headers.origin),
      );
      await routed(created)(app);
    };
    await serving({ prepare }, async (port) => {
      for (const origin of ['https://a.example', 'https://b.example']) {
        const answer = await send(port, { path: '/1', headers: keyed('k-1', ['Origin', origin]) });
        expect([answer.status, headerOf(answer, 'access-control-allow-origin')]).toEqual([201, origin]);
      }
    });
  });

  it('runs after every check of the route, wherever that is registered', async () => {
    const counting = counted(created);
    const prepare = async (app: FastifyInstance) => {
      const preHandler = async (
        { headers }: { headers: { authorization?: string } },
        reply: { code(status: number): { send(): unknown } },
      ) => {
        return headers.authorization === undefined ? reply.code(401).send() : undefined;
      };
      app.post('/:id', { preHandler: preHandler as never }, counting);
    };
    const known = { path: '/1', headers: keyed('k-1', ['Authorization', 'alice']) };
    await serving({ prepare }, async (port) => {
      expect((await send(port, known)).status).toBe(201);
      expect((await send(port, request)).status).toBe(401);
      expect((await send(port, known)).status).toBe(201);
      expect(counting.runs).toBe(1);
    });
  });

  const readers: Readonly<Record<string, (app: FastifyInstance) => void>> = {
    preParsing(app) {
      app.addHook('preParsing', async (_request, _reply, payload) => Readable.from([await buffer(payload)]));
    },
    onRequest(app) {
      const read = new WeakMap<object, Buffer>();
      app.addHook('onRequest', async (request) => void read.set(request, await buffer(request.raw)));
      app.addHook('preParsing', async (request) => Readable.from([read.get(request)!]));
    },
  };

  it.each(Object.keys(readers))(
    'compares a body that a hook of %s has read before, as one that checks a signature does',
    async (hook) => {
      const prepare = async (app: FastifyInstance) => {
        readers[hook]!(app);
        await routed(async ({ body }) => ({ body }))(app);
      };
      await serving({ prepare }, async (port) => {
        const statuses: number[] = [];
        const headers = keyed('k-1', ['Content-Type', 'application/json']);
        for (const item of ['kelp', 'kelp', 'sand']) {
          statuses.push((await send(port, { path: '/1', headers, body: JSON.stringify({ item }) })).status);
        }
        expect(statuses).toEqual([200, 200, 422]);
      });
    },
  );

  it('accepts options of a route, and false to turn it off', async () => {
    const counting = counted(created);
    const prepare = async (app: FastifyInstance) => {
      app.post('/must', { config: { idempotency: { required: true } } }, counting);
      app.post('/free', { config: { idempotency: false } }, counting);
      app.put('/put', { config: { idempotency: { methods: ['PUT'] } } }, counting);
    };
    await serving({ prepare }, async (port) => {
      expect((await send(port, { path: '/must' })).status).toBe(400);
      for (let count = 0; count < 2; count++) await send(port, { path: '/free', headers: keyed('k') });
      expect(counting.runs).toBe(2);
      for (let count = 0; count < 2; count++) await send(port, { method: 'PUT', path: '/put', headers: keyed('k') });
      expect(counting.runs).toBe(3);
    });
  });

  it.each(['only in the reply', "also in Node's own response"])(
    'gives a replay the headers that hooks have set for its own request, %s',
    async (where) => {
      let asked = 0;
      const prepare = async (app: FastifyInstance) => {
        app.addHook('onRequest', async (_request, reply) => {
          asked++;
          reply.headers({ vary: 'origin', 'set-cookie': [`a=${asked}`, 'b=1'], 'x-hook': '1', 'content-length': 3 });
          if (where !== 'only in the reply') reply.raw.setHeader('X-Request-Id', asked);
        });
        app.post('/:id', async (_request, reply) => {
          reply.removeHeader('x-hook').removeHeader('content-length').header('cache-control', 'max-age=5');
          return { ok: true };
        });
      };
      await serving({ prepare }, async (port) => {
        const first = await send(port, request);
        const second = await send(port, request);
        const values = (name: string) =>
          second.headers.filter(([one]) => one.toLowerCase() === name).map(([, it]) => it);
        expect(lasting(second)).toEqual(lasting(first));
        expect([values('vary'), values('set-cookie'), values('x-hook')]).toEqual([['origin'], ['a=2', 'b=1'], []]);
        expect([values('content-length'), values('cache-control')]).toEqual([['11'], ['no-store']]);
      });
    },
  );

  it('distinguishes routes with the same path by their constraints', async () => {
    const prepare = async (app: FastifyInstance) => {
      for (const version of ['1.0.0', '2.0.0'])
        app.post('/:id', { constraints: { version } }, async () => `of version ${version}`);
    };
    await serving({ prepare }, async (port) => {
      const bodyOf = async (version: string) =>
        (await send(port, { path: '/1', headers: keyed('k-1', ['Accept-Version', version]) })).body.toString();
      expect([await bodyOf('1.x'), await bodyOf('2.x')]).toEqual(['of version 1.0.0', 'of version 2.0.0']);
    });
  });

  it('accepts an engine, and applies inside encapsulated plugins', async () => {
    const counting = counted(created);
    const given = { engine: engineOf({ store: memoryStore() }), scope: () => 'all' };
    const prepare = async (app: FastifyInstance) =>
      app.register(async (child) => void child.post('/:id', counting), { prefix: '/child' });
    await serving({ given, prepare }, async (port) => {
      for (let count = 0; count < 2; count++) await send(port, { path: '/child/1', headers: keyed('k') });
      expect(counting.runs).toBe(1);
    });
  });

  describe('close of its instance', () => {
    /** A client sends a request and leaves, then the instance is closed. Returns what has settled in the meantime. */
    async function closing(given: IdempotencyPluginOptions, own?: RouteIdempotency) {
      const [begun, finish] = [deferred<void>(), deferred<void>()];
      const app = Fastify();
      const order: string[] = [];
      // Those of what was registered earlier come later, such as that of the plugin that closes the store's client.
      app.addHook('onClose', async () => void order.push('the store is closed'));
      await app.register(idempotency, given);
      await routed(async () => {
        begun.resolve();
        await finish.promise;
        order.push('the handler has ended');
        return 'done';
      }, own)(app);
      await app.listen({ port: 0, host: '127.0.0.1' });
      const bytes = requestBytes(request);
      const leaving = sendAndLeave((app.server.address() as AddressInfo).port, bytes, { afterSent: bytes.byteLength });
      await Promise.all([begun.promise, leaving]);
      const closed = app.close();
      await expect.poll(() => app.server.listening).toBe(false);
      await new Promise((resolve) => setTimeout(resolve, 20));
      return { order, finish, closed };
    }

    it.each([
      ['the plugin', undefined],
      ['a route', { maxBodyBytes: 100 }],
    ])('waits until the handler of a client that has left is recorded, with options of %s', async (_, own) => {
      const store = memoryStore();
      const { order, finish, closed } = await closing(options(lateStore(store)), own);
      finish.resolve();
      await closed;
      expect(order).toEqual(['the handler has ended', 'the store is closed']);
      await serving({ given: options(store), prepare: routed(() => 'again') }, async (port) => {
        expect((await send(port, request)).body.toString()).toBe('done');
      });
    });

    it('waits ten seconds for a handler that does not end', async () => {
      const clock = virtualClock();
      const { order, closed } = await closing({ ...options(memoryStore({ clock })), clock });
      await clock.advance(9_999);
      expect(order).toEqual([]);
      await clock.advance(1);
      await closed;
      expect(order).toEqual(['the store is closed']);
    });

    it('does not wait for an engine that it was given, which may serve others', async () => {
      const { order, closed } = await closing({ engine: engineOf({ store: memoryStore() }), scope: () => 'all' });
      await closed;
      expect(order).toEqual(['the store is closed']);
    });
  });

  it('cuts a stream that breaks off when its key is free again', async () => {
    async function* source() {
      yield 'half';
      await new Promise((resolve) => setImmediate(resolve));
      throw new Error('source broke');
    }
    const counting = counted(
      (_request, reply) => void reply.send(counting.runs === 1 ? Readable.from(source()) : 'whole'),
    );
    const given = { ...options(lateStore()), storeTimeout: '10s' } as const;
    await serving({ given, prepare: routed(counting) }, async (port) => {
      expect((await exchange(port, requestBytes(request))).toString()).toMatch(/half\r\n$/);
      expect((await send(port, request)).body.toString()).toBe('whole');
    });
  });

  it('completes the record of a handler that returns nothing to a disconnected client', async () => {
    const { promise: started, resolve: go } = deferred();
    const { promise: finished, resolve: finish } = deferred();
    const counting = counted(async ({ socket }) => {
      go();
      await finished;
      if (!socket.destroyed) await new Promise((resolve) => socket.once('close', resolve));
    });
    await serving({ prepare: routed(counting) }, async (port) => {
      const bytes = requestBytes(request);
      const leaving = sendAndLeave(port, bytes, { afterSent: bytes.byteLength });
      await Promise.all([started, leaving]);
      finish();
      await expect.poll(async () => (await send(port, request)).status).toBe(200);
      expect(counting.runs).toBe(1);
    });
  });
});
