/** Requests that do not arrive as HTTP/1.1 from a socket: by HTTP/2, made by tests, and made by adapters for functions in a cloud. */
import { once } from 'node:events';
import http from 'node:http';
import http2 from 'node:http2';
import type { AddressInfo, Socket } from 'node:net';
import { Duplex, Readable } from 'node:stream';
import express from 'express';
import Fastify, { type FastifyInstance } from 'fastify';
import undici from 'undici';
import { describe, expect, it, vi } from 'vitest';
import { memoryStore } from '../../../src/index.js';
import { idempotency } from '../../../src/server/express.js';
import { idempotency as fastifyIdempotency, responseCache } from '../../../src/server/fastify.js';
import { nodeIdempotency } from '../../../src/server/web.js';
import { deferred } from '../../support/deferred.ts';
import { headerOf, send } from './raw-client.js';
import { lateStore, listening } from './support.js';

// Real servers on a machine that may be busy with others.
vi.setConfig({ testTimeout: 60_000 });

const scope = () => 'all';
const key = { 'idempotency-key': 'k' };

describe('idempotency over HTTP/2', () => {
  async function posting<T>(server: http2.Http2Server, task: (post: Post) => Promise<T>): Promise<T> {
    const session = http2.connect(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
    try {
      return await task(async (body, headers = {}) => {
        const stream = session.request({ ':method': 'POST', ':path': '/', ...key, ...headers });
        const response = once(stream, 'response');
        stream.end(body);
        let text = '';
        for await (const chunk of stream) text += String(chunk);
        const [head] = (await response) as [http2.IncomingHttpHeaders];
        return [head[':status'], head['idempotent-replayed'], text];
      });
    } finally {
      session.close();
    }
  }
  type Post = (body?: string, headers?: http2.OutgoingHttpHeaders) => Promise<readonly unknown[]>;

  it('reads no reason phrase, about which Node warns once', async () => {
    const warn = vi.spyOn(process, 'emitWarning').mockImplementation(() => {});
    const app = Fastify({ http2: true });
    await app.register(fastifyIdempotency, { store: memoryStore(), scope });
    await app.register(responseCache, { ttl: '1m' });
    app.post('/', async () => 'x');
    app.get('/', async () => 'x');
    await app.listen({ port: 0, host: '127.0.0.1' });
    await posting(app.server, async (post) => {
      for (let round = 0; round < 2; round++) {
        await post();
        await post(undefined, { ':method': 'GET' });
      }
    });
    await app.close();
    expect(warn).not.toHaveBeenCalled();
    warn.mockRestore();
  });

  // In HTTP/2 no header needs to announce a body.
  it.each([{}, { 'content-length': '5' }])(
    'compares a body that came with %j and that nobody has read',
    async (more) => {
      const protect = nodeIdempotency({ store: memoryStore(), scope });
      let runs = 0;
      const listener = protect(async (request, response) => {
        let text = '';
        for await (const chunk of request) text += String(chunk);
        response.end(`${text} ${++runs}`);
      });
      const server = http2.createServer((request, response) => listener(request as never, response as never));
      server.listen(0, '127.0.0.1');
      await once(server, 'listening');
      await posting(server, async (post) => {
        expect(await post('hello', more)).toEqual([200, undefined, 'hello 1']);
        expect(await post('hello', more)).toEqual([200, 'true', 'hello 1']);
        expect(await post('other', more)).toEqual([422, undefined, expect.stringContaining('key-reused')]);
        expect(await post(undefined, { 'idempotency-key': 'none' })).toEqual([200, undefined, ' 2']);
      });
      server.close();
    },
  );

  it('cuts a stream that breaks off when its key is free again, so that a retry runs at once', async () => {
    const app = Fastify({ http2: true });
    await app.register(fastifyIdempotency, { store: lateStore(), scope, storeTimeout: '10s' });
    async function* source() {
      yield 'half';
      await new Promise((resolve) => setImmediate(resolve));
      throw new Error('source broke');
    }
    let runs = 0;
    app.post('/', (_request, reply) => void reply.send(++runs === 1 ? Readable.from(source()) : 'whole'));
    await app.listen({ port: 0, host: '127.0.0.1' });
    await posting(app.server, async (post) => {
      expect(await post()).toEqual([200, undefined, 'half']);
      expect(await post()).toEqual([200, undefined, 'whole']);
    });
    await app.close();
  });

  it('compares a body that Fastify has parsed', async () => {
    const app = Fastify({ http2: true });
    await app.register(fastifyIdempotency, { store: memoryStore(), scope });
    app.post('/', async (request) => request.body);
    await app.listen({ port: 0, host: '127.0.0.1' });
    const type = { 'content-type': 'application/json' };
    await posting(app.server, async (post) => {
      expect(await post('{"n":1}', type)).toEqual([200, undefined, '{"n":1}']);
      expect(await post('{"n": 1}', type)).toEqual([200, 'true', '{"n":1}']);
      expect((await post('{"n":2}', type))[0]).toBe(422);
    });
    await app.close();
  });
});

describe('a client of HTTP/2', () => {
  it('that disconnects changes nothing: a stream continues to its end, and is available for the next request', async () => {
    const app = Fastify({ http2: true });
    await app.register(fastifyIdempotency, { store: memoryStore(), scope });
    const left = deferred<void>();
    async function* parts() {
      yield 'first,';
      await left.promise;
      for (let part = 0; part < 3; part++) yield `part ${part},`;
    }
    let runs = 0;
    app.post('/', async (_request, reply) => {
      runs++;
      reply.type('text/plain').raw.stream.once('close', () => setImmediate(left.resolve));
      return Readable.from(parts());
    });
    const address = await app.listen({ port: 0, host: '127.0.0.1' });
    const leaving = http2.connect(address);
    const stream = leaving.request({ ':method': 'POST', ...key }, { endStream: true });
    await once(stream, 'data');
    leaving.destroy();
    await left.promise;
    const session = http2.connect(address);
    const post = async () => {
      const again = session.request({ ':method': 'POST', ...key }, { endStream: true });
      let text = '';
      for await (const chunk of again) text += String(chunk);
      return text;
    };
    await expect.poll(post).toBe('first,part 0,part 1,part 2,');
    expect(runs).toBe(1);
    session.close();
    await app.close();
  });
});

describe('idempotency of requests that are injected', () => {
  it('reads a body that a parser leaves to the handler', async () => {
    const app: FastifyInstance = Fastify();
    await app.register(fastifyIdempotency, { store: memoryStore(), scope });
    app.addContentTypeParser('application/x-raw', (_request, payload, done) => done(null, payload));
    app.post('/', async (request) => {
      let text = '';
      for await (const chunk of request.body as AsyncIterable<Buffer>) text += String(chunk);
      return text;
    });
    const post = async (payload: string) => {
      const headers = { ...key, 'content-type': 'application/x-raw' };
      const { statusCode, body } = await app.inject({ method: 'POST', url: '/', headers, payload });
      return [statusCode, body];
    };
    expect(await post('hello')).toEqual([200, 'hello']);
    expect(await post('hello')).toEqual([200, 'hello']);
    expect((await post('other'))[0]).toBe(422);
    await app.close();
  });
});

describe('idempotency of requests that an adapter for functions has made', () => {
  /** Makes requests as such adapters do: complete from the beginning, without raw headers, and with a body that is made when it is read. */
  class MadeRequest extends http.IncomingMessage {
    constructor(headers: http.IncomingHttpHeaders, body: string) {
      super({ readable: true, on() {}, removeListener() {} } as unknown as Socket);
      Object.assign(this, {
        ...{ complete: true, httpVersion: '1.1', httpVersionMajor: 1, httpVersionMinor: 1 },
        ...{ method: 'POST', url: '/', headers: { ...headers, 'content-length': String(body.length) } },
        _read: () => {
          this.push(body);
          this.push(null);
        },
      });
    }
  }

  it('finds the key, and compares a body that nobody has read', async () => {
    const app = express();
    app.set('env', 'test');
    app.post('/', idempotency({ store: memoryStore(), scope }), express.text(), (request, response) => {
      response.send(`got ${request.body}`);
    });
    const post = async (body: string, idempotencyKey = 'k') => {
      const request = new MadeRequest({ 'idempotency-key': idempotencyKey, 'content-type': 'text/plain' }, body);
      const response = new http.ServerResponse(request);
      const written: string[] = [];
      const socket = new Duplex({
        read() {},
        write: (chunk, _encoding, done) => done(void written.push(String(chunk)) as never),
      });
      response.assignSocket(socket as Socket);
      app(request as never, response as never);
      await once(response, 'finish');
      return [
        response.statusCode,
        response.getHeader('idempotent-replayed'),
        written.join('').split('\r\n\r\n').at(-1),
      ];
    };
    expect(await post('hello')).toEqual([200, undefined, 'got hello']);
    expect(await post('hello')).toEqual([200, 'true', 'got hello']);
    expect((await post('other'))[0]).toBe(422);
    expect((await post('hello', 'k, k'))[0]).toBe(400);
  });
});

describe('idempotency of requests whose body the handler passes on by undici, which then takes the socket from them', () => {
  it.each(['express', 'fastify', 'node:http'])('records and replays the answer on %s', async (name) => {
    const store = memoryStore();
    const upstream = http.createServer((request, response) => request.pipe(response));
    await listening(upstream, async (upstreamPort) => {
      const passOn = async (request: http.IncomingMessage) => {
        const { body } = await undici.request(`http://127.0.0.1:${upstreamPort}`, { method: 'POST', body: request });
        return body;
      };
      const answer = async (request: http.IncomingMessage, response: http.ServerResponse) => {
        const body = await passOn(request);
        expect(request.socket).toBeNull();
        body.pipe(response);
      };
      const servers: Record<string, () => Promise<http.Server>> = {
        async express() {
          const app = express();
          app.post('/', idempotency({ store, scope }), answer);
          return http.createServer(app);
        },
        async fastify() {
          const app = Fastify();
          await app.register(fastifyIdempotency, { store, scope });
          app.addContentTypeParser('*', (_request, body, done) => done(null, body));
          app.post('/', (request) => passOn(request.raw));
          await app.ready();
          return app.server;
        },
        'node:http': async () => http.createServer(nodeIdempotency({ store, scope })(answer)),
      };
      await listening(await servers[name]!(), async (port) => {
        for (const replayed of [undefined, 'true']) {
          const given = await send(port, { headers: [...Object.entries(key), ['content-type', 'a/b']], body: 'hello' });
          expect([given.status, given.body.toString()]).toEqual([200, 'hello']);
          expect(headerOf(given, 'idempotent-replayed')).toBe(replayed);
        }
      });
    });
  });
});
