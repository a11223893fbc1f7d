/** Every way to answer with Express 4 and 5, compared with the same server without protection, on bare sockets. */
import { createServer } from 'node:http';
import { pipeline } from 'node:stream/promises';
import { gunzipSync } from 'node:zlib';
import compression from 'compression';
import express, { type Request, type RequestHandler } from 'express';
import express4 from 'express4';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { type IdempotencyHandle, memoryStore, OptionsError, type Store } from '../../../src/index.js';
import { idempotency, rawBody } from '../../../src/server/express.js';
import { deferred } from '../../support/deferred.ts';
import { errorHandler, expressPaths, failingExpressPaths } from './express-paths.js';
import { exchange, headerOf, requestBytes, send } from './raw-client.js';
import { expectReplay, keyed, lasting, lateStore, listening, storesToTry, wire } from './support.js';

// Real servers on a machine that may be busy with others.
vi.setConfig({ testTimeout: 60_000 });

const versions = [
  ['express 5', express],
  ['express 4', express4],
] as const;

const scope = (request: Request) => request.get('authorization') ?? 'nobody';

interface Setup {
  readonly framework?: typeof express;
  readonly before?: readonly RequestHandler[];
  readonly protect: readonly RequestHandler[];
  readonly after?: readonly RequestHandler[];
  readonly handler: RequestHandler;
}

function serverOf({ framework = express, before = [], protect, after = [], handler }: Setup) {
  const app = framework();
  app.set('env', 'test');
  app.post('/:id', ...before, framework.json({ verify: rawBody }), ...protect, ...after, handler);
  app.use(errorHandler);
  return createServer(app);
}

function counted(handler: RequestHandler) {
  const counting = Object.assign(
    ((request, response, next) => {
      counting.runs++;
      return handler(request, response, next);
    }) as RequestHandler,
    { runs: 0 },
  );
  return counting;
}

const once = (store = memoryStore as () => Store) => idempotency({ store: store(), scope });

const versionsAndStores = versions.flatMap(([version, framework]) =>
  storesToTry.map(([how, store]) => [version, how, framework, store] as const),
);

afterEach(() => vi.restoreAllMocks());

describe.each(versionsAndStores)('with %s and a store that %s, an answer by', (_version, _how, framework, store) => {
  for (const [name, handler] of Object.entries(expressPaths)) {
    it(`${name} is the same as without protection, and the same when it is replayed`, async () => {
      const request = { path: '/1', headers: keyed('k-1') };
      const bare = await listening(serverOf({ framework, protect: [], handler }), (port) => send(port, request));
      const counting = counted(handler);
      await listening(serverOf({ framework, protect: [once(store)], handler: counting }), async (port) => {
        const first = await send(port, request);
        const second = await send(port, request);
        expect(wire(first)).toEqual(wire(bare));
        expectReplay(second, bare);
        expect(counting.runs).toBe(1);
      });
    });
  }

  for (const [name, handler] of Object.entries(failingExpressPaths)) {
    it(`a handler that ${name} is the same as without protection, and runs again`, async () => {
      const request = { path: '/1', headers: keyed('k-1') };
      const bare = await listening(serverOf({ framework, protect: [], handler }), (port) => send(port, request));
      const counting = counted(handler);
      await listening(serverOf({ framework, protect: [once(store)], handler: counting }), async (port) => {
        expect(wire(await send(port, request))).toEqual(wire(bare));
        expect(wire(await send(port, request))).toEqual(wire(bare));
        expect(counting.runs).toBe(2);
      });
    });
  }
});

describe.each(versions)('a handler of %s', (_version, framework) => {
  it('that fails in the middle of its answer runs again, although Express then destroys the socket', async () => {
    const counting = counted((_request, response, next) => {
      response.write('half');
      if (counting.runs === 1) setImmediate(() => next(new Error('source broke')));
      else response.end(' and half');
    });
    await listening(serverOf({ framework, protect: [once()], handler: counting }), async (port) => {
      const request = { path: '/1', headers: keyed('k-1') };
      expect((await exchange(port, requestBytes(request))).toString()).toMatch(/half\r\n$/);
      expect((await send(port, request)).body.toString()).toBe('half and half');
    });
  });

  it.each<readonly [string, RequestHandler]>([
    ['passes an error on', (_request, response, next) => void response.write('half', () => next(new Error('broke')))],
    ['destroys its response', (_request, response) => void response.write('half', () => response.destroy())],
    [
      'breaks a pipeline, and passes the error on',
      (_request, response, next) => {
        async function* source() {
          yield 'half';
          await new Promise((resolve) => setImmediate(resolve));
          throw new Error('source broke');
        }
        pipeline(source, response).catch(next);
      },
    ],
  ])('that %s in the middle of its answer is cut off when its key is free again', async (_, fails) => {
    const counting = counted((request, response, next) => {
      if (counting.runs === 1) fails(request, response, next);
      else response.end('whole');
    });
    const protect = [idempotency({ store: lateStore(), scope, storeTimeout: '10s' })];
    await listening(serverOf({ framework, protect, handler: counting }), async (port) => {
      const request = { path: '/1', headers: keyed('k-1') };
      expect((await exchange(port, requestBytes(request))).toString()).toMatch(/half\r\n$/);
      expect((await send(port, request)).body.toString()).toBe('whole');
    });
  });
});

describe.each(versions)('middleware of %s', (_version, framework) => {
  const long = 'kelp '.repeat(1_000);
  const handler: RequestHandler = (_request, response) => void response.type('text/plain').send(long);
  const headers = keyed('k-1', ['Accept-Encoding', 'gzip']);

  it('that compresses before us compresses a replay for the client that receives it', async () => {
    await listening(serverOf({ framework, before: [compression()], protect: [once()], handler }), async (port) => {
      const first = await send(port, { path: '/1', headers });
      const second = await send(port, { path: '/1', headers });
      const plain = await send(port, { path: '/1', headers: keyed('k-1') });
      expect([headerOf(first, 'content-encoding'), headerOf(second, 'content-encoding')]).toEqual(['gzip', 'gzip']);
      expect(second.body.equals(first.body)).toBe(true);
      expect([headerOf(plain, 'content-encoding'), plain.body.toString()]).toEqual([undefined, long]);
    });
  });

  it('that compresses before us continues while the end of an answer waits for the store', async () => {
    const { promise: hasCompressed, resolve: compressed } = deferred();
    const seen: RequestHandler = (_request, response, next) => {
      const { write } = response;
      response.write = function (this: typeof response, ...given: unknown[]) {
        setImmediate(compressed);
        return Reflect.apply(write, this, given as [string]);
      } as typeof write;
      next();
    };
    const inner = memoryStore();
    const store = (): Store => ({
      ...{ read: (...given) => inner.read(...given), remove: (...given) => inner.remove(...given) },
      async write(key, value, options) {
        if (options.ifVersion !== 0) await hasCompressed;
        return inner.write(key, value, options);
      },
    });
    const ended: unknown[] = [];
    const streaming: RequestHandler = (_request, response) => {
      response.type('text/plain').write(long);
      response.end('the end');
      ended.push(response.writableEnded);
    };
    const before = [seen, compression()];
    await listening(serverOf({ framework, before, protect: [once(store)], handler: streaming }), async (port) => {
      const first = await send(port, { path: '/1', headers });
      const second = await send(port, { path: '/1', headers });
      expect(gunzipSync(first.body).toString()).toBe(`${long}the end`);
      expect(gunzipSync(second.body).toString()).toBe(`${long}the end`);
      expect(headerOf(second, 'idempotent-replayed')).toBe('true');
      expect(ended).toEqual([true]);
    });
  });

  it('that compresses behind us is part of the answer', async () => {
    await listening(serverOf({ framework, protect: [once()], after: [compression()], handler }), async (port) => {
      const first = await send(port, { path: '/1', headers });
      const second = await send(port, { path: '/1', headers });
      expect(headerOf(first, 'content-encoding')).toBe('gzip');
      expect(lasting(second)).toEqual(lasting(first));
    });
  });

  it.each(['before', 'after'] as const)('that adds headers at the last moment works %s us', async (place) => {
    let calls = 0;
    const late: RequestHandler = (_request, response, next) => {
      const { writeHead } = response;
      response.writeHead = function (this: typeof response, ...given: unknown[]) {
        response.setHeader('X-Late', String(++calls));
        return Reflect.apply(writeHead, this, given as [number]);
      } as typeof writeHead;
      next();
    };
    const setup = {
      framework,
      protect: [once()],
      [place]: [late],
      handler: ((_, response) => void response.end('x')) as RequestHandler,
    };
    await listening(serverOf(setup), async (port) => {
      const first = await send(port, { path: '/1', headers });
      const second = await send(port, { path: '/1', headers });
      expect([headerOf(first, 'x-late'), second.body.toString()]).toEqual([expect.any(String), 'x']);
      expect(headerOf(second, 'x-late')).toBeDefined();
    });
  });
});

describe.each(versions)('a key on %s', (_version, framework) => {
  const body = JSON.stringify({ id: '7' });
  const headers = keyed('k', ['Content-Type', 'application/json']);
  // What identifies the request does not include the path.
  const protect = () => idempotency({ store: memoryStore(), scope, fingerprint: ({ body: { id } }) => id });
  const appOf = (mount: (app: express.Express) => void) => {
    const app = framework();
    app.set('env', 'test');
    app.use(framework.json());
    mount(app);
    return createServer(app);
  };
  const texts = (app: ReturnType<typeof appOf>, paths: readonly string[]) =>
    listening(app, async (port) => {
      const answers: string[] = [];
      for (const path of paths) answers.push((await send(port, { path, headers, body })).body.toString());
      return answers;
    });

  it('is valid for one path, behind a route that has passed the request on', async () => {
    const app = appOf((one) => {
      one.all(/.*/, (_request, _response, next) => next());
      one.use(protect());
      one.post('/pay', (_request, response) => void response.send('paid'));
      one.post('/refund', (_request, response) => void response.send('refunded'));
    });
    expect(await texts(app, ['/pay', '/refund'])).toEqual(['paid', 'refunded']);
  });

  it('is valid for the one route in which it is mounted, whatever the path', async () => {
    let runs = 0;
    const answer =
      (word: string): RequestHandler =>
      (_request, response) =>
        void response.send(`${word} ${++runs}`);
    const app = appOf((one) => {
      one.post('/pay/:id', [protect()], answer('paid'));
      one.route('/refund/:id').all(protect()).post(answer('refunded'));
    });
    const answers = await texts(app, ['/pay/1', '/pay/2', '/refund/1', '/refund/2']);
    expect(answers).toEqual(['paid 1', 'paid 1', 'refunded 2', 'refunded 2']);
  });
});

describe('idempotency of express', () => {
  const created: RequestHandler = (_request, response) => void response.status(201).json({ ok: true });

  it('refuses invalid options when it is mounted, its own and those of the engine', () => {
    const store = memoryStore();
    expect(() => idempotency({ store } as never)).toThrow(OptionsError);
    expect(() => idempotency({ store, scope, required: 'yes' } as never)).toThrow('"required"');
    expect(() => idempotency({ store, scope, lease: 'soon' } as never)).toThrow('"lease"');
    expect(() => idempotency({ store, scope, ttll: '1h' } as never)).toThrow('did you mean "ttl"');
    expect(() => idempotency({ store, scope, methods: ['post'] })).toThrow('"methods"');
    for (const noPointer of ['sentAt', '/~2', '']) {
      expect(() => idempotency({ store, scope, fingerprint: { exclude: [noPointer] } })).toThrow('"fingerprint"');
    }
    expect(() => idempotency({ store, scope, documentation: 'a>b' })).toThrow('"documentation"');
  });

  it('passes the record to the handler', async () => {
    const seen: (IdempotencyHandle | undefined)[] = [];
    const handler: RequestHandler = (request, response) => {
      seen.push(request.idempotency);
      response.end();
    };
    await listening(serverOf({ protect: [once()], handler }), async (port) => {
      await send(port, { path: '/1', headers: keyed('"k-1"') });
      await send(port, { path: '/1' });
    });
    expect(seen).toEqual([expect.objectContaining({ key: 'k-1', attempt: 1 }), undefined]);
  });

  it('protects once if it is mounted twice', async () => {
    const counting = counted(created);
    const store = memoryStore();
    const protect = [idempotency({ store, scope }), idempotency({ store, scope })];
    await listening(serverOf({ protect, handler: counting }), async (port) => {
      const answers = [
        await send(port, { path: '/1', headers: keyed('k') }),
        await send(port, { path: '/1', headers: keyed('k') }),
      ];
      expect(answers.map(({ status }) => status)).toEqual([201, 201]);
      expect(counting.runs).toBe(1);
    });
  });
});
