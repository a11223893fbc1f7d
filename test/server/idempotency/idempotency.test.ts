/** What idempotency over HTTP consists of besides its adapters: time that runs out, doubt, large bodies, parsers. */
import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { connect, createServer as createHttp2Server } from 'node:http2';
import { type AddressInfo, connect as connectTo } from 'node:net';
import { Readable } from 'node:stream';
import { text } from 'node:stream/consumers';
import { pipeline as streamInto } from 'node:stream/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import express, { type RequestHandler } from 'express';
import Fastify from 'fastify';
import { describe, expect, it, vi } from 'vitest';
import { idempotency as engineOf, memoryStore, OptionsError, type Store } from '../../../src/index.js';
import {
  callOf,
  type DeadlineMiddlewareOptions,
  deadline,
  type IdempotencyHandle,
  type IdempotencyMiddlewareOptions,
  idempotency,
  rawBody,
  resolveRequest,
} from '../../../src/server/express.js';
import {
  callOf as fastifyCallOf,
  deadline as fastifyDeadline,
  idempotency as fastifyIdempotency,
} from '../../../src/server/fastify.js';
import { nodeIdempotency } from '../../../src/server/web.js';
import { virtualClock } from '../../../src/testing/index.js';
import { deferred } from '../../support/deferred.ts';
import { type RawAnswer, requestBytes, send, sendAndLeave } from './raw-client.js';
import { cpuMs, keyed, listening, twoCopiesMs, wire } from './support.js';

// Real servers on a machine that may be busy with others.
vi.setConfig({ testTimeout: 60_000 });

const scope = () => 'all';
const request = { path: '/orders', headers: keyed('k') };
const typeOf = (answer: { body: Buffer }) => String(JSON.parse(answer.body.toString()).type).split(':').at(-1);

function appOf(...handlers: readonly RequestHandler[]) {
  const app = express();
  app.set('env', 'test');
  app.post('/orders', ...handlers);
  return createServer(app);
}

describe('a handler', () => {
  it('runs in the turn of its request if the store answers synchronously, and its answer goes out in its own turn', async () => {
    const turns: string[] = [];
    const before: RequestHandler = (_request, response, next) => {
      queueMicrotask(() => turns.push(`microtask: ${response.writableEnded ? 'answered' : 'not answered'}`));
      next();
    };
    const handler: RequestHandler = (_request, response) => void response.end('x');
    const protect = idempotency({ store: memoryStore(), scope });
    await listening(appOf(before, protect, handler), (port) => send(port, request));
    expect(turns).toEqual(['microtask: answered']);
  });
});

describe('a request that waits behind another on its connection', () => {
  it('keeps its key while its handler runs, even if the client has left', async () => {
    const [begun, free] = [deferred<void>(), deferred<void>()];
    let effects = 0;
    const handler = async (incoming: IncomingMessage, response: ServerResponse) => {
      if (incoming.url === '/slow') return;
      effects++;
      begun.resolve();
      await free.promise;
      response.end('done');
    };
    const protect = nodeIdempotency({ store: memoryStore(), scope });
    await listening(createServer(protect(handler)), async (port) => {
      const slow = requestBytes({ path: '/slow' }).toString().replace('Connection: close\r\n', '');
      const socket = connectTo(port, '127.0.0.1').on('error', () => {});
      socket.write(slow + requestBytes(request));
      await begun.promise;
      const left = once(socket, 'close');
      socket.destroy();
      await left;
      await sleep(50);
      expect(typeOf(await send(port, request))).toBe('in-progress');
      free.resolve();
      await expect.poll(async () => (await send(port, request)).body.toString()).toBe('done');
    });
    expect(effects).toBe(1);
  });
});

describe('an answer whose length is not the one that its head declares', () => {
  const declared: readonly (readonly [name: string, declare: (response: ServerResponse) => void])[] = [
    ['set as a header', (response) => void response.setHeader('Content-Length', 6)],
    ['in a head as an object', (response) => void response.writeHead(201, { 'content-length': '6' })],
    ['in a head as a list', (response) => void response.writeHead(201, ['CONTENT-LENGTH', '6'] as never)],
  ];
  const bodies: readonly (readonly [name: string, answer: (response: ServerResponse) => void])[] = [
    ['too short', (response) => void response.end('short')],
    ['empty', (response) => void response.end()],
    ['too long', (response) => void response.end('too long')],
    [
      'too short in pieces',
      (response) => {
        response.write('sho');
        response.end('rt');
      },
    ],
  ];
  const cases = declared.flatMap(([where, declare]) =>
    bodies.map(([name, answer]) => ({ name, where, declare, answer })),
  );

  describe.each([true, false])('with strictContentLength: %s', (strictContentLength) => {
    it.each(cases)('counts as given, and is not stored: $name, $where', async ({ declare, answer }) => {
      let effects = 0;
      const handler = (_request: IncomingMessage, response: ServerResponse) => {
        effects++;
        response.strictContentLength = strictContentLength;
        declare(response);
        answer(response);
      };
      const protect = nodeIdempotency({ store: memoryStore(), scope });
      await listening(createServer(protect(handler)), async (port) => {
        const { body } = await send(port, request);
        expect(body.toString()).toSatisfy((text: string) => text.length !== 6);
        expect(typeOf(await send(port, request))).toBe('result-not-stored');
      });
      expect(effects).toBe(1);
    });

    it.each([
      ['of the same length', 'POST', 201, 'whole!'],
      ['to a HEAD', 'HEAD', 200, ''],
      ['with status 204, which has none', 'POST', 204, ''],
      ['with status 304, which has none', 'POST', 304, ''],
    ])('but is if it was read whole: %s', async (_, method, status, text) => {
      let effects = 0;
      const handler = (_request: IncomingMessage, response: ServerResponse) => {
        effects++;
        response.strictContentLength = strictContentLength;
        response.writeHead(status, { 'content-length': 6 });
        response.end(text);
      };
      const protect = nodeIdempotency({ store: memoryStore(), scope, methods: ['POST', 'HEAD'] });
      await listening(createServer(protect(handler)), async (port) => {
        const answers = [await send(port, { ...request, method }), await send(port, { ...request, method })];
        expect(answers.map((one) => [one.status, one.body.toString()])).toEqual([
          [status, text],
          [status, text],
        ]);
      });
      expect(effects).toBe(1);
    });
  });
});

describe('a request that is answered in place of its handler', () => {
  it('by the deadline does not run again in parallel', async () => {
    let effects = 0;
    const clock = virtualClock();
    const handler: RequestHandler = async (_request, response) => {
      void clock.advance(50);
      await sleep(300);
      effects++;
      response.status(201).end();
    };
    const protect = idempotency({ store: memoryStore(), scope, lease: 5_000, onLost: 'refuse' });
    await listening(appOf(deadline({ default: 50, clock }), protect, handler), async (port) => {
      expect((await send(port, request)).status).toBe(504);
      expect(typeOf(await send(port, request))).toBe('in-progress');
      await expect.poll(() => effects).toBe(1);
      await expect.poll(async () => typeOf(await send(port, request))).toBe('result-not-stored');
      expect(effects).toBe(1);
    });
  });

  it.each<readonly [string, Pick<IdempotencyMiddlewareOptions<express.Request>, 'keep'>, boolean]>([
    ['a handler that has sealed it', {}, true],
    ['every status being final', { keep: () => true }, false],
  ])(
    'by the deadline is not stored as that answer, in spite of %s, and its handler goes on',
    async (_, options, seals) => {
      const clock = virtualClock();
      const ended = deferred<string>();
      const handler: RequestHandler = async ({ idempotency: record }, response) => {
        if (seals) await record!.seal();
        await clock.advance(50);
        await ended.promise;
        response.status(201).send(await record!.phase('mail', () => 'sent'));
      };
      const protect = idempotency({ store: memoryStore(), scope, onLost: 'refuse', ...options });
      await listening(appOf(deadline({ default: 50, clock }), protect, handler), async (port) => {
        expect((await send(port, request)).status).toBe(504);
        expect(typeOf(await send(port, request))).toBe('in-progress');
        ended.resolve('now');
        await expect.poll(async () => typeOf(await send(port, request))).toBe('result-not-stored');
      });
    },
  );

  it('by a deadline behind us that had passed when it arrived is free at once', async () => {
    let runs = 0;
    const handler: RequestHandler = (_request, response) => void response.status(201).send(`run ${++runs}`);
    const protect = idempotency({ store: memoryStore(), scope });
    await listening(appOf(protect, deadline(), handler), async (port) => {
      const late = { ...request, headers: [...request.headers, ['Request-Deadline-Ms', '0']] } as const;
      expect([(await send(port, late)).status, (await send(port, late)).status]).toEqual([504, 504]);
      expect((await send(port, request)).body.toString()).toBe('run 1');
    });
  });

  it('by nobody but its handler, although its time is over, is stored', async () => {
    const handler: RequestHandler = (one, response) => {
      // As connect-timeout does with `respond: false`.
      Object.assign(one, { timedout: true });
      response.status(201).send('made');
    };
    await listening(appOf(idempotency({ store: memoryStore(), scope }), handler), async (port) => {
      const answers = [await send(port, request), await send(port, request)];
      expect(answers.map(({ body }) => body.toString())).toEqual(['made', 'made']);
    });
  });

  it('by a timeout of Fastify does not, either', async () => {
    let effects = 0;
    const app = Fastify({ forceCloseConnections: true });
    await app.register(fastifyIdempotency, { store: memoryStore(), scope, lease: 5_000, onLost: 'refuse' });
    app.post('/orders', { handlerTimeout: 500 }, async () => {
      await sleep(1_000);
      effects++;
      return { done: true };
    });
    await app.listen({ port: 0, host: '127.0.0.1' });
    const { port } = app.server.address() as { port: number };
    expect((await send(port, request)).status).toBe(503);
    expect(typeOf(await send(port, request))).toBe('in-progress');
    await expect.poll(() => effects).toBe(1);
    await expect.poll(async () => typeOf(await send(port, request))).toBe('result-not-stored');
    await app.close();
  });

  it.each<readonly [string, (response: express.Response) => unknown]>([
    ['a file', (response) => response.sendFile(fileURLToPath(import.meta.url))],
    ['a download', (response) => response.download(fileURLToPath(import.meta.url), () => {})],
    ['a stream', (response) => Readable.from(['late']).pipe(response)],
    ['a pipeline', (response) => streamInto(Readable.from(['late']), response)],
  ])('by the deadline does not run again if its handler then answers with %s', async (_, answer) => {
    const clock = virtualClock();
    let runs = 0;
    const handler: RequestHandler = async (_request, response) => {
      runs++;
      const isClosed = once(response, 'close');
      await clock.advance(50);
      await isClosed;
      await answer(response);
    };
    const protect = idempotency({ store: memoryStore(), scope });
    await listening(appOf(deadline({ default: 50, clock }), protect, handler), async (port) => {
      expect((await send(port, request)).status).toBe(504);
      await expect.poll(async () => typeOf(await send(port, request))).toBe('result-not-stored');
      expect(runs).toBe(1);
    });
  });

  describe('and whose handler then fails', () => {
    /** A step that is done once, and one that fails when the call is aborted. The first attempt takes too long. */
    function saga() {
      const clock = virtualClock();
      let reserved = 0;
      const run = async (record: IdempotencyHandle, signal: AbortSignal) => {
        await record.phase('reserve', () => void reserved++);
        await record.phase('charge', async () => {
          if (record.attempt > 1) return;
          void clock.advance(50);
          await new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
        });
        return `attempt ${record.attempt}, reserved ${reserved} times`;
      };
      return {
        run,
        limit: { default: 50, clock },
        options: { store: memoryStore(), scope, onLost: 'resume' } as const,
      };
    }

    async function goesOn(port: number) {
      expect((await send(port, request)).status).toBe(504);
      await expect.poll(async () => (await send(port, request)).status).toBe(201);
      expect((await send(port, request)).body.toString()).toBe('attempt 2, reserved 1 times');
    }

    it.each([
      ['an error handler', true],
      ['none', false],
    ])('goes on with the next request, in Express with %s', async (_, hasErrorHandler) => {
      const { run, limit, options } = saga();
      const app = express();
      app.set('env', 'test');
      app.post('/orders', deadline(limit), idempotency(options), async (one, response) => {
        response.status(201).send(await run(one.idempotency!, callOf(one).signal));
      });
      const onError: express.ErrorRequestHandler = (_error, _one, response, _next) => void response.status(500).end();
      if (hasErrorHandler) app.use(onError);
      await listening(createServer(app), goesOn);
    });

    it.each<readonly [string, (late: Promise<void>, response: express.Response, one: express.Request) => unknown]>([
      ['writeHead', async (late, response) => late.then(() => response.writeHead(503).end())],
      [
        'the status that it set before',
        async (late, response) => {
          response.status(502);
          await late;
          response.end();
        },
      ],
      ['breaking its answer off', async (late, response) => late.then(() => response.destroy())],
      [
        'a stream that ends with the call',
        (_, response, one) => {
          const { signal } = callOf(one);
          streamInto(new Readable({ read() {} }), response, { signal }).catch(() => {});
        },
      ],
    ])('goes on with the next request, in Express that says so by %s', async (_, fail) => {
      const clock = virtualClock();
      let runs = 0;
      const handler: RequestHandler = (one, response) => {
        if (++runs > 1) return void response.status(201).end();
        const late = new Promise<void>((resolve) => callOf(one).signal.addEventListener('abort', () => resolve()));
        void fail(late, response, one);
        void clock.advance(50);
      };
      const protect = idempotency({ store: memoryStore(), scope });
      await listening(appOf(deadline({ default: 50, clock }), protect, handler), async (port) => {
        expect((await send(port, request)).status).toBe(504);
        await expect.poll(async () => (await send(port, request)).status).toBe(201);
      });
    });

    it.each([
      [503, 'run 2'],
      [201, 'result-not-stored'],
    ])(
      'goes on with the next request, in Fastify that says so by its status, and not with %i',
      async (status, then) => {
        const clock = virtualClock();
        const app = Fastify({ forceCloseConnections: true });
        await app.register(fastifyDeadline, { default: 50, clock });
        await app.register(fastifyIdempotency, { store: memoryStore(), scope });
        let runs = 0;
        app.post('/orders', async (_one, reply) => {
          if (++runs > 1) return reply.code(201).send(`run ${runs}`);
          await clock.advance(50);
          return reply.code(status).send('late');
        });
        await app.listen({ port: 0, host: '127.0.0.1' });
        const { port } = app.server.address() as AddressInfo;
        expect((await send(port, request)).status).toBe(504);
        await expect.poll(async () => (await send(port, request)).body.toString()).toContain(then);
        await app.close();
      },
    );

    it.each<
      readonly [
        string,
        (
          limit: DeadlineMiddlewareOptions,
          late: (signal: AbortSignal) => Promise<string>,
        ) => Promise<{ port: number; close(): unknown }>,
      ]
    >([
      [
        'Express',
        async (limit, late) => {
          const server = appOf(deadline(limit), idempotency({ store: memoryStore(), scope }), async (one, response) => {
            response.status(201).send(await late(callOf(one).signal));
          });
          await once(server.listen(0, '127.0.0.1'), 'listening');
          return { port: (server.address() as AddressInfo).port, close: () => server.close() };
        },
      ],
      [
        'Fastify',
        async (limit, late) => {
          const app = Fastify({ forceCloseConnections: true });
          await app.register(fastifyDeadline, limit);
          await app.register(fastifyIdempotency, { store: memoryStore(), scope });
          app.post('/orders', async (one, reply) => reply.code(201).send(await late(fastifyCallOf(one).signal)));
          await app.listen({ port: 0, host: '127.0.0.1' });
          return { port: (app.server.address() as AddressInfo).port, close: () => app.close() };
        },
      ],
    ])('goes on with the next request if its client had left before the deadline, in %s', async (_, serve) => {
      const clock = virtualClock();
      let runs = 0;
      const { port, close } = await serve({ default: 50, clock }, async (signal) => {
        if (++runs > 1) return `run ${runs}`;
        await new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)));
        return '';
      });
      const leaving = sendAndLeave(port, requestBytes(request), { afterSent: 1_000 });
      await expect.poll(() => runs).toBe(1);
      await leaving;
      // The server has heard of it by the time it answers another request.
      expect(typeOf(await send(port, request))).toBe('in-progress');
      await clock.advance(50);
      await expect.poll(async () => (await send(port, request)).body.toString()).toBe('run 2');
      await close();
    });

    it('goes on with the next request, in Fastify', async () => {
      const { run, limit, options } = saga();
      const app = Fastify({ forceCloseConnections: true });
      await app.register(fastifyDeadline, limit);
      await app.register(fastifyIdempotency, options);
      app.post('/orders', async (one, reply) => {
        return reply.code(201).send(await run(one.idempotency!, fastifyCallOf(one).signal));
      });
      await app.listen({ port: 0, host: '127.0.0.1' });
      await goesOn((app.server.address() as { port: number }).port);
      await app.close();
    });
  });

  it('by the deadline with a stream that has begun is free for another attempt when it breaks off', async () => {
    const clock = virtualClock();
    let runs = 0;
    const handler: RequestHandler = async (one, response) => {
      if (++runs > 1) return void response.status(201).end('whole');
      response.write('part');
      callOf(one).signal.addEventListener('abort', () => response.destroy());
      await clock.advance(50);
    };
    const protect = idempotency({ store: memoryStore(), scope });
    await listening(appOf(deadline({ default: 50, clock }), protect, handler), async (port) => {
      await send(port, request).catch(() => {});
      await expect.poll(async () => (await send(port, request)).body.toString()).toBe('whole');
    });
  });
});

describe('a request that is answered before its handler has begun', () => {
  /** A deadline of 50 ms passes while the first key is being written. */
  function setUp() {
    const clock = virtualClock();
    const inner = memoryStore();
    let isFirst = true;
    const store: Store = {
      read: (...given) => inner.read(...given),
      remove: (...given) => inner.remove(...given),
      async write(...given) {
        const answer = await inner.write(...given);
        if (isFirst) {
          isFirst = false;
          await clock.advance(50);
        }
        return answer;
      },
    };
    return { clock, engine: engineOf({ store }), limit: { default: 50, clock } };
  }

  async function isHandledLater(port: number, engine: ReturnType<typeof engineOf>) {
    expect((await send(port, request)).status).toBe(504);
    await engine.idle();
    const answers = [await send(port, request), await send(port, request)];
    expect(answers.map(({ status, body }) => [status, body.toString()])).toEqual(Array(2).fill([201, 'run 1']));
  }

  it('frees its key, in Express', async () => {
    const { engine, limit } = setUp();
    let runs = 0;
    const handler: RequestHandler = (_request, response) => void response.status(201).send(`run ${++runs}`);
    await listening(appOf(deadline(limit), idempotency(engine, { scope }), handler), (port) =>
      isHandledLater(port, engine),
    );
  });

  it('frees its key, in Fastify', async () => {
    const { engine, limit } = setUp();
    let runs = 0;
    const app = Fastify({ forceCloseConnections: true });
    await app.register(fastifyDeadline, limit);
    await app.register(fastifyIdempotency, { engine, scope });
    app.post('/orders', async (_request, reply) => reply.code(201).send(`run ${++runs}`));
    await app.listen({ port: 0, host: '127.0.0.1' });
    await isHandledLater((app.server.address() as { port: number }).port, engine);
    await app.close();
  });
});

describe('resolveRequest', () => {
  const lost = async (task: (port: number, engine: ReturnType<typeof engineOf>) => Promise<void>) => {
    const store = memoryStore();
    let isGone = false;
    const cut: Store = {
      read: (...given) => store.read(...given),
      remove: (...given) => store.remove(...given),
      write: (...given) => (isGone ? new Promise(() => {}) : store.write(...given)),
    };
    // Nobody renews the lease, as if the process were gone.
    const lostEngine = engineOf({ store: cut, lease: 100 });
    await lostEngine.begin({ scope: 'all', operation: 'POST /orders', key: 'k' });
    isGone = true;
    const engine = engineOf({ store, onLost: 'refuse' });
    const protect = idempotency(engine, { scope, fingerprint: () => 'any' });
    await listening(
      appOf(protect, (_request, response) => void response.status(201).send('ran')),
      async (port) => {
        await expect.poll(async () => typeOf(await send(port, request))).toBe('outcome-unknown');
        await task(port, engine);
      },
    );
  };

  it('replays the answer that was established', async () => {
    await lost(async (port, engine) => {
      const answer = { status: 201, headers: { 'x-id': '7', 'set-cookie': 'a=1' }, body: 'found out' };
      expect(await resolveRequest(engine, 'k', { scope: 'all', operation: 'POST /orders', answer })).toBe(true);
      expect(await resolveRequest(engine, 'k', { scope: 'all', operation: 'POST /orders', answer })).toBe(false);
      const replayed = await send(port, request);
      expect([replayed.statusLine, replayed.body.toString()]).toEqual(['HTTP/1.1 201 Created', 'found out']);
      expect(replayed.headers.map(([name]) => name)).toContain('x-id');
      expect(replayed.headers.map(([name]) => name)).not.toContain('set-cookie');
    });
  });

  it('lets it run if nothing had happened', async () => {
    await lost(async (port, engine) => {
      expect(await resolveRequest(engine, 'k', { scope: 'all', operation: 'POST /orders', release: true })).toBe(true);
      expect((await send(port, request)).body.toString()).toBe('ran');
    });
  });

  it.each<[string, unknown]>([
    ['no resolution', undefined],
    ['a misspelt answer, which would let the request run again', { anwser: { status: 200 } }],
    ['neither an answer nor a release', {}],
    ['a release that is none', { release: false }],
    ['both', { answer: { status: 200 }, release: true }],
    ['an answer that is a text', { answer: 'done' }],
  ])('refuses %s', (_, resolution) => {
    const given =
      resolution === undefined ? undefined : { scope: 'all', operation: 'POST /orders', ...Object(resolution) };
    expect(() => resolveRequest(engineOf({ store: memoryStore() }), 'k', given as never)).toThrow(OptionsError);
  });

  it('refuses a status that no answer can have', () => {
    const resolution = { scope: 'all', operation: 'POST /orders', answer: { status: 99 } };
    expect(() => resolveRequest(engineOf({ store: memoryStore() }), 'k', resolution)).toThrow('"status"');
  });
});

describe('the body of a request of express', () => {
  const echo: RequestHandler = (asked, response) => void response.json(asked.body ?? null);
  const json = (body: string) => ({ ...request, headers: keyed('k', ['Content-Type', 'application/json']), body });

  it('is compared by its digits if the bytes are kept, and refused if they are lost', async () => {
    const exact = [express.json({ verify: rawBody }), idempotency({ store: memoryStore(), scope }), echo];
    await listening(appOf(...exact), async (port) => {
      expect((await send(port, json('{"n":9007199254740993}'))).status).toBe(200);
      expect((await send(port, json('{"n":9007199254740992}'))).status).toBe(422);
    });
    const lossy = [express.json(), idempotency({ store: memoryStore(), scope }), echo];
    await listening(appOf(...lossy), async (port) => {
      expect((await send(port, json('{"n":9007199254740993}'))).status).toBe(500);
      expect((await send(port, json('{"card":"4111111111111111","n":1}'))).status).toBe(200);
      expect((await send(port, json('{"n":1, "card":"4111111111111111"}'))).status).toBe(200);
      expect((await send(port, json('{"n":2, "card":"4111111111111111"}'))).status).toBe(422);
    });
  });

  it('can be parsed after us as well as before us', async () => {
    const late = [idempotency({ store: memoryStore(), scope }), express.json(), echo];
    await listening(appOf(...late), async (port) => {
      const long = JSON.stringify({ text: 'x'.repeat(90_000) });
      const first = await send(port, json(long));
      expect([first.status, first.body.toString()]).toEqual([200, long]);
      expect((await send(port, json(` ${long}`))).body.toString()).toBe(long);
      expect((await send(port, json('{"text":"y"}'))).status).toBe(422);
    });
  });

  it('that does not parse is refused by the parser, and nothing is stored', async () => {
    await listening(appOf(express.json(), idempotency({ store: memoryStore(), scope }), echo), async (port) => {
      expect((await send(port, json('{"n":'))).status).toBe(400);
      expect((await send(port, json('{"n":1}'))).status).toBe(200);
    });
  });

  it('that was consumed without a trace is an error that says so', async () => {
    const reader: RequestHandler = (asked, _response, next) => void asked.resume().on('end', next);
    await listening(appOf(reader, idempotency({ store: memoryStore(), scope }), echo), async (port) => {
      const answer = await send(port, json('{"n":1}'));
      expect([answer.status, answer.body.toString()]).toEqual([
        500,
        expect.stringContaining('keep the bytes with rawBody'),
      ]);
    });
  });

  it('may be no longer than maxInputBytes', async () => {
    const protect = idempotency({ store: memoryStore(), scope, maxInputBytes: 1_000 });
    await listening(appOf(protect, express.json({ limit: '1mb' }), echo), async (port) => {
      const answer = await send(port, json(JSON.stringify('x'.repeat(1_000))));
      expect([answer.status, typeOf(answer)]).toEqual([413, 'body-too-large']);
    });
  });
});

describe('20 MB', () => {
  const size = 20_000_000;
  /** The longest time that this thread computed between two turns of the loop, in milliseconds. What else runs on the machine does not count. */
  async function longestBlockMs(task: () => Promise<unknown>): Promise<number> {
    let longest = 0;
    let last = cpuMs();
    const timer = setInterval(() => {
      const now = cpuMs();
      longest = Math.max(longest, now - last);
      last = now;
    }, 1);
    try {
      await task();
      return longest;
    } finally {
      clearInterval(timer);
    }
  }

  const member = `{"id":9007199254740993,"name":"${'n'.repeat(60)}","tags":["b","a"]},`;
  const bodies: readonly (readonly [string, string, Uint8Array])[] = [
    ['of bytes', 'application/octet-stream', new Uint8Array(size).fill(7)],
    ['of JSON', 'application/json', Buffer.from(`[${member.repeat(Math.floor(size / member.length))}0]`)],
    ['of one string of JSON', 'application/json', Buffer.from(JSON.stringify('s'.repeat(size)))],
  ];

  it.each(bodies)(
    '%s come in, and the loop goes on',
    async (_name, type, body) => {
      const protect = () => nodeIdempotency({ store: memoryStore(), scope, storeTimeout: '10s' });
      // This is what the same server costs without us, on a machine as busy as this one.
      const listener = (asked: IncomingMessage, response: ServerResponse) =>
        void asked.on('data', () => {}).on('end', () => response.end('got it'));
      const sent = (port: number) => send(port, { ...request, headers: keyed('k', ['Content-Type', type]), body });
      const bareMs = await listening(createServer(listener), (port) => longestBlockMs(() => sent(port)));
      const oursMs = () =>
        listening(createServer(protect()(listener)), async (port) => {
          const longest = await longestBlockMs(async () => expect((await sent(port)).body.toString()).toBe('got it'));
          expect((await sent(port)).body.toString()).toBe('got it');
          return longest;
        });
      // The text of JSON is put together in one piece, which is one copy.
      const bound = bareMs + twoCopiesMs() + 40;
      const first = await oursMs();
      // A collection of the whole heap may fall into any turn. If this code blocks the loop, it blocks it in the second run, too.
      expect(first < bound ? first : await oursMs()).toBeLessThan(bound);
    },
    60_000,
  );

  it('are sent, are not stored, and do not block the event loop', async () => {
    const protect = nodeIdempotency({ store: memoryStore(), scope });
    const body = Buffer.alloc(size, 'x');
    await listening(createServer(protect((_asked, response) => void response.end(body))), async (port) => {
      const longest = await longestBlockMs(async () => expect((await send(port, request)).body.byteLength).toBe(size));
      expect(longest).toBeLessThan(twoCopiesMs() + 60);
      expect(typeOf(await send(port, request))).toBe('result-not-stored');
    });
  });
});

describe('a body over HTTP/2', () => {
  /** Sends bodies one after the other with one key, and returns the statuses. */
  async function statusesOf(port: number, bodies: readonly (string | undefined)[]): Promise<unknown[]> {
    const session = connect(`http://127.0.0.1:${port}`);
    const statuses: unknown[] = [];
    for (const body of bodies) {
      const type = body === undefined ? {} : { 'content-type': 'application/json' };
      const head = { ':method': 'POST', ':path': '/orders', 'idempotency-key': 'k', ...type };
      const stream = session.request(head, { endStream: body === undefined });
      if (body !== undefined) stream.end(body);
      const [answer] = await once(stream, 'response');
      statuses.push(answer[':status']);
      stream.resume();
    }
    session.close();
    return statuses;
  }
  const bodies = ['{"a":1}', '{ "a": 1 }', '{"a":2}', undefined];

  it('is compared even if nothing announces it, on Fastify', async () => {
    const app = Fastify({ http2: true });
    await app.register(fastifyIdempotency, { store: memoryStore(), scope });
    app.post('/orders', async () => ({ done: true }));
    await app.listen({ port: 0, host: '127.0.0.1' });
    const { port } = app.server.address() as { port: number };
    expect(await statusesOf(port, bodies)).toEqual([200, 200, 422, 422]);
    await app.close();
  });

  it("and on Node's own server", async () => {
    const protect = nodeIdempotency({ store: memoryStore(), scope });
    const seen: string[] = [];
    const listener = protect(async (asked, response) => {
      seen.push(await text(asked));
      response.end('done');
    });
    const server = createHttp2Server(listener as never).listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as { port: number };
    expect(await statusesOf(port, bodies)).toEqual([200, 200, 422, 422]);
    expect(seen).toEqual(['{"a":1}']);
    server.close();
  });
});

describe('nodeIdempotency', () => {
  it('is not misled by an invalid traceparent', async () => {
    const protect = nodeIdempotency({ store: memoryStore(), scope });
    const server = createServer(
      { maxHeaderSize: 200_000 },
      protect((_asked, response) => void response.end('x')),
    );
    const traced = { ...request, headers: keyed('k', ['traceparent', 'x'.repeat(70_000)]) };
    await listening(server, async (port) => {
      const answers = [await send(port, traced), await send(port, traced)];
      expect(answers.map(({ status, body }) => [status, body.toString()])).toEqual([
        [200, 'x'],
        [200, 'x'],
      ]);
    });
  });

  it('answers 500 for a listener that throws or rejects, and runs it again', async () => {
    let runs = 0;
    const protect = nodeIdempotency({ store: memoryStore(), scope });
    const listener = protect((_asked, response) => {
      response.setHeader('x-secret', '1');
      response.statusMessage = runs === 0 ? 'Secret' : 'not\nvalid';
      if (++runs === 1) throw new Error('thrown');
      if (runs === 2) return response.end('Node refuses the status message');
      if (runs === 3) return Promise.reject(new Error('rejected'));
      response.statusMessage = 'Well';
      return response.end('well');
    });
    await listening(createServer(listener), async (port) => {
      const answers: RawAnswer[] = [];
      for (let count = 0; count < 4; count++) answers.push(await send(port, request));
      const lines = [...Array(3).fill('HTTP/1.1 500 Internal Server Error'), 'HTTP/1.1 200 Well'];
      expect(answers.map(({ statusLine }) => statusLine)).toEqual(lines);
      expect(JSON.stringify(answers[0]!.headers)).not.toContain('x-secret');
      const replayed = await send(port, request);
      expect(wire(replayed).body).toBe('well');
    });
  });

  it('aborts an answer that a failing listener has begun, and runs the listener again', async () => {
    let runs = 0;
    const protect = nodeIdempotency({ store: memoryStore(), scope });
    const listener = protect((_asked, response) => {
      response.write('begun ');
      if (++runs === 1) throw new Error('thrown');
      response.end('and ended');
    });
    await listening(createServer(listener), async (port) => {
      await send(port, request).catch(() => {});
      expect((await send(port, request)).body.toString()).toBe('begun and ended');
    });
  });

  it('runs a listener without a key as it is', async () => {
    const protect = nodeIdempotency({ store: memoryStore(), scope });
    const listener = protect((asked, response, record) => response.end(`${asked.method} ${String(record)}`));
    await listening(createServer(listener), async (port) => {
      expect((await send(port, { method: 'GET', headers: keyed('k') })).body.toString()).toBe('GET undefined');
      expect((await send(port, {})).body.toString()).toBe('POST undefined');
    });
  });

  it('does not run if the client disconnects before its body is complete', async () => {
    let runs = 0;
    const protect = nodeIdempotency({ store: memoryStore(), scope });
    const listener = protect((_asked, response) => {
      runs++;
      response.end();
    });
    await listening(createServer(listener), async (port) => {
      const bytes = requestBytes({ ...request, body: 'x'.repeat(1_000) });
      await sendAndLeave(port, bytes, { afterSent: bytes.byteLength - 10 });
      await sleep(50);
      expect(runs).toBe(0);
    });
  });
});
