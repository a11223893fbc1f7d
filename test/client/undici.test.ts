import { once } from 'node:events';
import { Readable } from 'node:stream';
import { setImmediate } from 'node:timers/promises';
import { Agent, BalancedPool, FormData, fetch as undiciFetch } from 'undici';
import { describe, expect, it } from 'vitest';
import { type ClientOptions, handles, resilience } from '../../src/client/undici.js';
import {
  constant,
  deadline,
  fallback,
  isAbandoned,
  OptionsError,
  pipeline,
  RateLimitedError,
  retry,
  timeout,
} from '../../src/index.js';
import { answerText, httpServer, rawServer } from './support/servers.ts';

const repeating = (attempts = 3) => retry({ attempts, backoff: constant(1), handles });
const policy = pipeline(repeating());

/** An agent with the interceptor, gone with the scope. */
function client(options: ClientOptions = { policy }, agentOptions: Agent.Options = {}) {
  const agent = new Agent(agentOptions);
  const dispatcher = agent.compose(resilience(options));
  return {
    dispatcher,
    request: (origin: string, more: object = {}) =>
      dispatcher.request({ origin, path: '/', method: 'GET', ...more } as Parameters<Agent['request']>[0]),
    [Symbol.asyncDispose]: () => agent.destroy(),
  };
}

describe('resilience', () => {
  it('hands on the response of the last attempt, whatever its status', async () => {
    await using server = await httpServer((_, response, number) =>
      response.writeHead(503, { n: number }).end(`busy ${number}`),
    );
    await using http = client();
    const { statusCode, headers, body } = await http.request(server.origin);
    expect([statusCode, headers.n, await body.text()]).toEqual([503, '3', 'busy 3']);
    expect(server.received).toHaveLength(3);
  });

  it('hands on a long body whole, with the back pressure of who reads it', async () => {
    const long = 'x'.repeat(3_000_000);
    await using server = await httpServer((_, response, number) =>
      response.writeHead(number < 2 ? 503 : 200).end(long),
    );
    await using http = client();
    const { body } = await http.request(server.origin, { highWaterMark: 1_000 });
    let length = 0;
    for await (const chunk of body) {
      length += (chunk as Buffer).length;
      await setImmediate();
    }
    expect(length).toBe(long.length);
  });

  it('reads the short bodies of answers that it throws away, so that their connection serves on', async () => {
    await using server = await httpServer((_, response, number) =>
      response.writeHead(number < 3 ? 503 : 200).end('busy'),
    );
    await using http = client({ policy: pipeline(repeating()) }, { connections: 1 });
    await (await http.request(server.origin)).body.text();
    await (await http.request(server.origin)).body.text();
    expect(server.received).toHaveLength(4);
    expect(new Set(server.received.map(({ port }) => port)).size).toBe(1);
  });

  it('sends a POST once, and with a key as often as needed, with the same key', async () => {
    await using server = await httpServer((_, response) => response.writeHead(503).end());
    await using http = client();
    await http.request(server.origin, { method: 'POST', body: 'x' });
    expect(server.received).toHaveLength(1);
    for (const headers of [{ 'Idempotency-Key': 'k' }, ['idempotency-key', 'k'], new Map([['idempotency-key', 'k']])]) {
      server.received.length = 0;
      await http.request(server.origin, { method: 'POST', body: 'x', headers });
      expect(server.received.map((one) => [one.headers['idempotency-key'], one.body])).toEqual(
        Array(3).fill(['k', 'x']),
      );
    }
  });

  it.each<[string, unknown]>([
    ['an object', { a: '1' }],
    ['a list', ['a', '1']],
    ['an iterable', new Map([['a', '1']])],
    ['nothing', undefined],
  ])('makes a key beside headers that are %s', async (_, headers) => {
    await using server = await httpServer((_, response) => response.writeHead(503).end());
    await using http = client({ policy: pipeline(repeating(2)), idempotencyKey: 'generate', propagate: 'holdfast' });
    await http.request(server.origin, { method: 'PATCH', headers });
    const [first, second] = server.received.map((one) => one.headers);
    expect(first?.['idempotency-key']).toMatch(/^[0-9a-f-]{36}$/);
    expect(second?.['idempotency-key']).toBe(first?.['idempotency-key']);
    expect([first?.['request-attempt'], second?.['request-attempt']]).toEqual(['1', '2']);
    expect(first?.a).toBe(headers === undefined ? undefined : '1');
  });

  it('sends a stream once', async () => {
    await using server = await httpServer((_, response) => response.writeHead(503).end());
    await using http = client();
    const { statusCode } = await http.request(server.origin, { method: 'PUT', body: Readable.from(['streamed']) });
    expect([statusCode, server.received.map((one) => one.body)]).toEqual([503, ['streamed']]);
  });

  it('sends a form again, but for one with a key, which would get another boundary', async () => {
    await using server = await httpServer((_, response) => response.writeHead(503).end());
    await using http = client();
    const body = new FormData();
    body.append('a', '1');
    await http.request(server.origin, { method: 'PUT', body });
    expect(server.received).toHaveLength(3);
    await http.request(server.origin, { method: 'PUT', body, headers: { 'idempotency-key': 'k' } });
    expect(server.received).toHaveLength(4);
  });

  it('protects a dispatcher that does not tell its origin, each by itself', async () => {
    await using server = await httpServer((_, response) => response.writeHead(503).end());
    const keys: (string | undefined)[] = [];
    const interceptor = resilience({
      policy: (origin) => {
        keys.push(origin);
        return policy;
      },
    });
    for (const pool of [new BalancedPool(server.origin), new BalancedPool(server.origin)]) {
      const { statusCode } = await pool.compose(interceptor).request({ path: '/', method: 'GET' });
      expect(statusCode).toBe(503);
      await pool.destroy();
    }
    expect([server.received.length, keys]).toEqual([6, ['undici 1', 'undici 2']]);
  });

  it('refuses a handler of another version of undici, which would wait for ever', () => {
    const dispatch = resilience({ policy })((_request: unknown, _handler: unknown) => true);
    const handler = { onConnect() {}, onHeaders() {}, onData() {}, onComplete() {}, onError() {} };
    expect(() => dispatch({ origin: 'http://a.test', path: '/', method: 'GET' }, handler)).toThrow(
      /another major version of undici/,
    );
  });

  it('gives up a hanging attempt, closes its connection, and asks again', async () => {
    let closed: Promise<unknown> | undefined;
    await using server = await rawServer(({ socket, number }) => {
      if (number === 1) closed = once(socket, 'close');
      else socket.write(answerText(200, 'here'));
    });
    await using http = client({ policy: pipeline(repeating(), timeout('60ms')) });
    expect(await (await http.request(server.origin)).body.text()).toBe('here');
    await closed;
  });

  it('ends at the deadline', async () => {
    await using server = await rawServer(() => {});
    await using http = client({ policy: deadline('40ms') });
    expect(isAbandoned(await http.request(server.origin).catch((error: unknown) => error))).toBe(true);
  });

  it('ends when the caller aborts an attempt, a wait, or before it begins', async () => {
    await using server = await httpServer((_, response) => response.writeHead(429, { 'retry-after': '5' }).end());
    await using http = client();
    const controller = new AbortController();
    const waiting = http.request(server.origin, { signal: controller.signal });
    while (server.received.length === 0) await setImmediate();
    controller.abort(new Error('left'));
    await expect(waiting).rejects.toThrow('left');
    await expect(http.request(server.origin, { signal: AbortSignal.abort(new Error('never')) })).rejects.toThrow(
      'never',
    );
    expect(server.received).toHaveLength(1);
  });

  it('lets the caller abort a body', async () => {
    let closed: Promise<unknown> | undefined;
    await using server = await rawServer(({ socket }) => {
      closed = once(socket, 'close');
      socket.write('HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n12');
    });
    await using http = client();
    const controller = new AbortController();
    const { body } = await http.request(server.origin, { signal: controller.signal });
    const reading = body.text();
    controller.abort(new Error('enough'));
    await expect(reading).rejects.toThrow('enough');
    await closed;
  });

  it('hands on a body that breaks off as the reader’s error, and asks for it once', async () => {
    await using server = await rawServer(({ socket }) => {
      socket.write('HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n12', () => socket.resetAndDestroy());
    });
    await using http = client();
    const { body } = await http.request(server.origin);
    await expect(body.text()).rejects.toThrow();
    expect(server.requests).toBe(1);
  });

  it('asks again at once when an idle connection was closed', async () => {
    await using server = await rawServer(({ socket, request }) => {
      if (request === 1) socket.write(answerText(200, 'here'));
      else socket.destroy();
    });
    await using http = client({ policy: pipeline() });
    await (await http.request(server.origin)).body.text();
    await setImmediate();
    expect(await (await http.request(server.origin)).body.text()).toBe('here');
    expect([server.connections, server.requests]).toEqual([2, 3]);
  });

  it('refuses without a connection while the origin has asked to wait for longer than the deadline', async () => {
    await using server = await httpServer((_, response) => response.writeHead(503, { 'retry-after': '60' }).end());
    await using http = client({ policy: deadline('1s') });
    expect((await http.request(server.origin)).statusCode).toBe(503);
    await expect(http.request(server.origin)).rejects.toBeInstanceOf(RateLimitedError);
  });

  it('serves fetch, redirects included', async () => {
    await using server = await httpServer((request, response, number) => {
      if (request.url === '/old') response.writeHead(302, { location: '/new' }).end();
      else response.writeHead(number < 3 ? 503 : 200).end('here');
    });
    await using http = client();
    const response = await undiciFetch(`${server.origin}/old`, { dispatcher: http.dispatcher });
    expect([response.status, await response.text(), response.redirected]).toEqual([200, 'here', true]);
    expect(server.received.map((one) => one.url)).toEqual(['/old', '/new', '/new']);
  });

  it('passes an upgrade untouched', async () => {
    await using server = await rawServer(({ socket }) => {
      socket.write('HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n');
    });
    await using http = client();
    const asked = { path: '/', protocol: 'echo', origin: server.origin };
    const { headers, socket } = await http.dispatcher.upgrade(asked as never);
    expect(headers.upgrade).toBe('echo');
    socket.destroy();
  });

  it('rejects what a policy puts in the place of a response', async () => {
    await using server = await httpServer((_, response) => response.end());
    await using refused = client({
      policy: pipeline(
        fallback(() => 'instead'),
        timeout('200ms'),
      ),
    });
    await using silent = await rawServer(() => {});
    await expect(refused.request(silent.origin)).rejects.toThrow(/one of its responses/);
    expect((await refused.request(server.origin)).statusCode).toBe(200);
  });

  it('refuses wrong options at once', () => {
    expect(() => resilience({ policies: [] } as never)).toThrow(OptionsError);
    expect(() => resilience({ policy: [timeout('1s')] } as never)).toThrow(
      /^resilience: option "policy" must be a policy/,
    );
  });
});
