/** Every way to answer with Express 4 and 5, beside the same server without protection, on bare sockets. */
import { createServer } from 'node:http';
import compression from 'compression';
import express, { type Request, type RequestHandler, type Response } from 'express';
import express4 from 'express4';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { type IdempotencyHandle, memoryStore, OptionsError, type Store } from '../../../src/index.js';
import { idempotency, rawBody } from '../../../src/server/express.js';
import { errorHandler, expressPaths, failingExpressPaths } from './express-paths.js';
import { headerOf, send } from './raw-client.js';
import { keyed, lasting, leaked, listening, marksOf, storesToTry, wire } from './support.js';

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
    it(`${name} is the same as without protection, and the same when it is repeated`, async () => {
      const request = { path: '/1', headers: keyed('k-1') };
      const bare = await listening(serverOf({ framework, protect: [], handler }), (port) => send(port, request));
      const counting = counted(handler);
      await listening(serverOf({ framework, protect: [once(store)], handler: counting }), async (port) => {
        const first = await send(port, request);
        const second = await send(port, request);
        expect(wire(first)).toEqual(wire(bare));
        expect(lasting(second)).toEqual(lasting(bare));
        expect(marksOf(second)).toEqual({
          'idempotent-replayed': 'true',
          'idempotency-key': '"k-1"',
          'cache-control': 'no-store',
        });
        expect(leaked(second)).toEqual([]);
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

describe.each(versions)('middleware of %s', (_version, framework) => {
  const long = 'kelp '.repeat(1_000);
  const handler: RequestHandler = (_request, response) => void response.type('text/plain').send(long);
  const headers = keyed('k-1', ['Accept-Encoding', 'gzip']);

  it('that compresses before us compresses a replay for the one who asks', async () => {
    await listening(serverOf({ framework, before: [compression()], protect: [once()], handler }), async (port) => {
      const first = await send(port, { path: '/1', headers });
      const second = await send(port, { path: '/1', headers });
      const plain = await send(port, { path: '/1', headers: keyed('k-1') });
      expect([headerOf(first, 'content-encoding'), headerOf(second, 'content-encoding')]).toEqual(['gzip', 'gzip']);
      expect(second.body.equals(first.body)).toBe(true);
      expect([headerOf(plain, 'content-encoding'), plain.body.toString()]).toEqual([undefined, long]);
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

describe.each(versions)('a route of %s', (version, framework) => {
  it('that the request has passed before is not the one that a key counts for', async () => {
    let orders = 0;
    const app = framework();
    app.all(version === 'express 5' ? '/*all' : '*', (_request, _response, next) => next());
    // What is compared leaves the path out, so the route alone keeps them apart.
    app.use(idempotency({ store: memoryStore(), scope, fingerprint: () => 'same' }));
    app.post('/a', (_request, response) => void response.send(`a ${++orders}`));
    app.post('/b', (_request, response) => void response.send(`b ${++orders}`));
    await listening(createServer(app), async (port) => {
      const bodyOf = async (path: string) => (await send(port, { path, headers: keyed('k-1') })).body.toString();
      expect([await bodyOf('/a'), await bodyOf('/b'), await bodyOf('/a')]).toEqual(['a 1', 'b 2', 'a 1']);
    });
  });

  it('is what a key counts for, whatever its parameters are, and wherever it is mounted', async () => {
    const router = framework.Router();
    const protect = idempotency({ store: memoryStore(), scope, fingerprint: () => 'same' });
    let orders = 0;
    router.post('/:id', [protect], (_request: Request, response: Response) => void response.send(String(++orders)));
    const app = framework();
    app.use('/a', router);
    app.use('/b', router);
    await listening(createServer(app), async (port) => {
      const bodyOf = async (path: string) => (await send(port, { path, headers: keyed('k-1') })).body.toString();
      expect([await bodyOf('/a/1'), await bodyOf('/a/2'), await bodyOf('/b/1')]).toEqual(['1', '1', '2']);
    });
  });
});

describe('idempotency of express', () => {
  const created: RequestHandler = (_request, response) => void response.status(201).json({ ok: true });

  it('refuses wrong options when it is mounted, its own and those of the engine', () => {
    const store = memoryStore();
    expect(() => idempotency({ store } as never)).toThrow(OptionsError);
    expect(() => idempotency({ store, scope, required: 'yes' } as never)).toThrow('"required"');
    expect(() => idempotency({ store, scope, lease: 'soon' } as never)).toThrow('"lease"');
    expect(() => idempotency({ store, scope, ttll: '1h' } as never)).toThrow('did you mean "ttl"');
    expect(() => idempotency({ store, scope, methods: ['post'] })).toThrow('"methods"');
    expect(() => idempotency({ store, scope, fingerprint: { exclude: ['sentAt'] } })).toThrow('"fingerprint"');
    expect(() => idempotency({ store, scope, documentation: 'a>b' })).toThrow('"documentation"');
  });

  it('gives the handler its record', async () => {
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

  it('protects once where it is mounted twice', async () => {
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
