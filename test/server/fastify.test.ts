/** What only Fastify has: a time limit per route, hooks, `inject`, streams. */
import { setTimeout as sleep } from 'node:timers/promises';
import Fastify, { type FastifyReply } from 'fastify';
import { describe, expect, it } from 'vitest';
import { OptionsError } from '../../src/index.js';
import { currentCall, enableContext, runDetached } from '../../src/integrations/context.js';
import { callOf, deadline, fence, health, idempotency, responseCache } from '../../src/server/fastify.js';
import { virtualClock } from '../../src/testing/index.js';
import { problemOf, untilAborted } from './support.js';

const place = Symbol.for('holdfast.context');
const provided = (globalThis as unknown as { [place]: { ambient: object | undefined } })[place];

describe('the plugins of fastify', () => {
  it.each(Object.entries({ deadline, fence, health, idempotency, responseCache }))(
    '%s says how it is registered when it is called like middleware of Express',
    async (name, plugin) => {
      const called = (plugin as unknown as (options: object) => Promise<void>)({ scope: () => 'x' });
      await expect(called).rejects.toThrow(`write app.register(${name}, options)`);
    },
  );
});

describe('deadline of fastify on its own', () => {
  it('refuses invalid options, of the plugin and of a route, before the server listens', async () => {
    const wrongPlugin = Fastify();
    await expect(wrongPlugin.register(deadline, { default: 'soon' as '1s' })).rejects.toThrow(OptionsError);
    const wrongRoute = Fastify();
    await wrongRoute.register(deadline);
    expect(() => wrongRoute.get('/', { config: { deadline: '2 s' as '2s' } }, () => '')).toThrow('config.deadline');
  });

  it('explains what to do if it is not registered', async () => {
    const app = Fastify();
    app.get('/', (request) => callOf(request).remainingMs);
    expect((await app.inject('/')).json().message).toContain('mount the deadline middleware');
  });

  it('gives a route its own time, as a default and as a limit, or none', async () => {
    const app = Fastify();
    await app.register(deadline, { default: '10s', clock: virtualClock() });
    const left = (request: Parameters<typeof callOf>[0]) => ({ ms: String(callOf(request).remainingMs) });
    app.get('/own', { config: { deadline: '2s' } }, left);
    app.get('/none', { config: { deadline: false } }, left);
    app.get('/', left);
    const ask = async (url: string, ms?: string) =>
      (await app.inject({ url, headers: ms === undefined ? {} : { 'request-deadline-ms': ms } })).json().ms;
    expect([await ask('/own'), await ask('/own', '9000'), await ask('/own', '500')]).toEqual(['2000', '2000', '500']);
    expect([await ask('/none'), await ask('/none', '500')]).toEqual(['Infinity', 'Infinity']);
    expect([await ask('/'), await ask('/', '500')]).toEqual(['10000', '500']);
  });

  it('leaves no timer after an injected request', async () => {
    const clock = virtualClock();
    const app = Fastify();
    await app.register(deadline, { default: '10s', clock });
    app.get('/', () => ({ pending: clock.pendingTimers }));
    expect((await app.inject('/')).json()).toEqual({ pending: 1 });
    expect(clock.pendingTimers).toBe(0);
  });

  it('answers once if the time passes while a hook still works on the answer', async () => {
    const lines: string[] = [];
    const app = Fastify({ logger: { level: 'warn', stream: { write: (line: string) => void lines.push(line) } } });
    const clock = virtualClock();
    await app.register(deadline, { default: 20, clock });
    app.addHook('onSend', () => clock.advance(60).then(() => undefined as never));
    let reason: unknown;
    app.get('/', (request) => {
      callOf(request).signal.addEventListener('abort', () => {
        reason = callOf(request).reason;
      });
      return { answered: true };
    });
    const answer = await app.inject('/');
    expect([answer.statusCode, answer.body]).toEqual([200, '{"answered":true}']);
    expect(reason).toMatchObject({ code: 'ERR_DEADLINE_EXCEEDED' });
    expect(lines).toEqual([]);
  });

  it('sends its own answer through slow hooks, too, and drops what the handler returns meanwhile', async () => {
    const lines: string[] = [];
    const app = Fastify({ logger: { level: 'warn', stream: { write: (line: string) => void lines.push(line) } } });
    const clock = virtualClock();
    await app.register(deadline, { default: 20, clock });
    app.addHook('onSend', () => sleep(60).then(() => undefined as never));
    const responses: number[] = [];
    app.addHook('onResponse', async (_request, reply) => void responses.push(reply.statusCode));
    app.get('/', async (request) => {
      void clock.advance(20);
      await untilAborted(callOf(request).signal).catch(() => {});
      return { late: true };
    });
    const answer = await app.inject('/');
    expect([answer.statusCode, answer.json().code]).toEqual([504, 'ERR_DEADLINE_EXCEEDED']);
    await expect.poll(() => responses).toEqual([504]);
    await sleep(5);
    expect(responses).toEqual([504]);
    expect(lines).toEqual([]);
  });

  it('answers in time whatever the handler had said about its own answer, and says nothing of it', async () => {
    const app = Fastify();
    const clock = virtualClock();
    await app.register(deadline, { default: 30, clock });
    const handler = (reply: FastifyReply, set: (headers: Record<string, string>) => void) => {
      reply.raw.statusMessage = 'not\nvalid';
      reply.code(201).serializer(() => 'serialized');
      set({
        ...{ trailer: 'X-Checksum', 'content-length': '5000', 'content-encoding': 'gzip', 'x-kept': '1' },
        ...{ etag: '"1"', 'cache-control': 'public, max-age=3600', 'content-disposition': 'attachment' },
      });
      void clock.advance(30);
    };
    app.get('/reply', (_request, reply) => handler(reply, (headers) => reply.headers(headers)));
    app.get('/raw', (_request, reply) =>
      handler(reply, (headers) => reply.raw.setHeaders(new Map(Object.entries(headers)))),
    );
    const url = await app.listen({ port: 0, host: '127.0.0.1' });
    for (const path of ['/reply', '/raw']) {
      const answer = await fetch(`${url}${path}`);
      expect([answer.statusText, answer.headers.get('x-kept')]).toEqual(['Gateway Timeout', '1']);
      const others = ['trailer', 'content-encoding', 'etag', 'cache-control', 'content-disposition'];
      expect(others.filter((name) => answer.headers.has(name))).toEqual([]);
      expect(await problemOf(answer)).toMatchObject({ status: 504, body: { code: 'ERR_DEADLINE_EXCEEDED' } });
    }
    await app.close();
  });

  it('runs the handler under its call again after a hook has lost the context', async () => {
    enableContext();
    try {
      const app = Fastify();
      await app.register(deadline);
      app.addHook('preParsing', (_request, _reply, payload, next) => runDetached(() => next(null, payload)));
      app.post('/', async (request) => ({ isUnderCall: currentCall() === callOf(request) }));
      const answer = await app.inject({ method: 'POST', url: '/', payload: { some: 'body' } });
      expect(answer.json()).toEqual({ isUnderCall: true });
    } finally {
      provided.ambient = undefined;
    }
  });

  it('lets an answer that has begun continue', async () => {
    const app = Fastify();
    await app.register(deadline, { default: 40 });
    app.get('/', (request, reply) => {
      async function* parts() {
        yield 'first,';
        await untilAborted(callOf(request).signal).catch(() => {});
        yield 'last';
      }
      const { Readable } = process.getBuiltinModule('node:stream');
      return reply.type('text/plain').send(Readable.from(parts()));
    });
    const url = await app.listen({ port: 0, host: '127.0.0.1' });
    const answer = await fetch(url);
    expect([answer.status, await answer.text()]).toEqual([200, 'first,last']);
    await app.close();
  });
});
