import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { Readable } from 'node:stream';
import { setImmediate } from 'node:timers/promises';
import { FormData as UndiciForm, fetch as undiciFetch } from 'undici';
import { describe, expect, it, vi } from 'vitest';
import { breakerHandles, createFetch, discardBody, type Fetch, handles } from '../../src/client/fetch.js';
import {
  CircuitOpenError,
  circuitBreaker,
  constant,
  deadline,
  fallback,
  type Guard,
  type HoldfastEvent,
  isAbandoned,
  OptionsError,
  pipeline,
  RateLimitedError,
  retry,
  type Strategy,
  timeout,
} from '../../src/index.js';
import { virtualClock } from '../../src/testing/index.js';
import { answerText, httpServer, rawServer } from './support/servers.ts';

const repeating = (attempts = 3) => retry({ attempts, backoff: constant(1), handles, onDiscard: discardBody });
const policy = pipeline(repeating());

/** Options as a class may have them: none is an own member, or can be enumerated, except one that only this `fetch` knows. */
class Patch implements RequestInit {
  readonly tls = 'own';
  readonly #body = 'whole';

  get method() {
    return 'PATCH';
  }

  get body() {
    return this.#body;
  }

  get headers() {
    return { 'x-team': 'kelp' };
  }

  get keepalive() {
    return true;
  }
}

describe('createFetch', () => {
  it('leaves a host whose name is too long to exist to fetch, and any other to its policies', async () => {
    const fetch = () => Promise.reject(new TypeError('fetch failed'));
    const origins: string[] = [];
    const policy = (origin: string) => {
      origins.push(origin);
      return pipeline();
    };
    const http = createFetch({ fetch, policy });
    const longest = `${'a.'.repeat(125)}test`;
    for (const host of [`${'a.'.repeat(600)}test`, `a${longest}`, longest]) {
      await expect(http(`http://${host}/`)).rejects.toThrow('fetch failed');
      await expect(createFetch({ fetch })(`http://${host}/`)).rejects.toThrow('fetch failed');
    }
    expect(origins).toEqual([`http://${longest}`]);
  });

  it('returns the response of the last attempt, readable, whatever its status', async () => {
    await using server = await httpServer((_, response, number) => response.writeHead(503).end(`busy ${number}`));
    const response = await createFetch({ policy })(`${server.origin}/a?b=1`);
    expect([response.status, await response.text(), response.url]).toEqual([503, 'busy 3', `${server.origin}/a?b=1`]);
    expect(server.received).toHaveLength(3);
  });

  it('reads the short bodies of discarded answers, so that their connection serves the next attempt', async () => {
    await using server = await httpServer((_, response, number) =>
      response.writeHead(number < 3 ? 503 : 200).end('x'.repeat(2_000)),
    );
    const slow = pipeline(retry({ attempts: 3, backoff: constant(20), handles, onDiscard: discardBody }));
    await (await createFetch({ policy: slow })(server.origin)).text();
    expect(new Set(server.received.map(({ port }) => port)).size).toBeLessThanOrEqual(2);
  });

  it('cancels a long discarded body', async () => {
    let closed: Promise<unknown> | undefined;
    await using server = await httpServer((_, response, number) => {
      if (number === 2) return void response.end('here');
      closed = once(response, 'close');
      response.writeHead(503);
      const pour = () => {
        while (!response.destroyed && response.write('x'.repeat(16_384)));
      };
      response.on('drain', pour);
      pour();
    });
    const response = await createFetch({ policy })(server.origin);
    expect(await response.text()).toBe('here');
    await closed;
  });

  it('reads the short bodies of Node that another fetch returns, as node-fetch does, ends long ones, and follows keyed redirects', async () => {
    const ends: unknown[] = [];
    const bodies = [
      [307, 10],
      [503, 100_000],
      [503, 10],
      [200, 0],
    ] as const;
    let sent = 0;
    const send = async () => {
      const [status, length] = bodies[sent++]!;
      const body = Readable.from([Buffer.alloc(length), Buffer.from('end')]);
      body.on('close', () => ends.push([status, length, body.readableEnded]));
      return { status, headers: new Headers(status === 307 ? { location: '/two' } : {}), body } as unknown as Response;
    };
    const headers = { 'idempotency-key': 'k' };
    const answer = await createFetch({ policy, fetch: send })('http://a.test/', { method: 'POST', headers });
    await expect.poll(() => ends).toHaveLength(3);
    expect(ends).toEqual(
      expect.arrayContaining([
        [307, 10, true],
        [503, 100_000, false],
        [503, 10, true],
      ]),
    );
    const mine = answer.body as unknown as Readable;
    expect(mine.readableFlowing).toBe(null);
    mine.on('data', () => {});
    discardBody(answer);
    await once(mine, 'end');
  });

  it('releases answers that the caller does not get, even if its policy does not', async () => {
    let cancelled = 0;
    const answer = () =>
      new Response(new ReadableStream({ cancel: () => void cancelled++ }, { highWaterMark: 0 }), { status: 503 });
    const replaced = pipeline(
      fallback(() => new Response('instead')),
      retry({ attempts: 2, backoff: constant(0), handles: (outcome) => outcome.ok && outcome.value.status === 503 }),
    );
    const http = createFetch({ policy: pipeline(replaced), fetch: async () => answer() });
    const response = await http('http://a.test/');
    expect(response.status).toBe(503);
    await expect.poll(() => cancelled).toBe(1);
    await response.body?.cancel();
  });

  it.each([['GET'], ['HEAD'], ['OPTIONS'], ['PUT'], ['DELETE'], ['put']])('repeats %s', async (method) => {
    await using server = await httpServer((_, response, number) => response.writeHead(number < 2 ? 500 : 204).end());
    expect((await createFetch({ policy })(server.origin, { method })).status).toBe(204);
  });

  it.each([['POST'], ['PATCH'], ['LOCK']])('sends %s once', async (method) => {
    await using server = await httpServer((_, response) => response.writeHead(500).end());
    expect((await createFetch({ policy })(server.origin, { method })).status).toBe(500);
    expect(server.received).toHaveLength(1);
  });

  it('repeats a POST with a key, and sends the key with each attempt', async () => {
    await using server = await httpServer((_, response, number) => response.writeHead(number < 3 ? 503 : 201).end());
    const headers = { 'Idempotency-Key': 'order-1' };
    const response = await createFetch({ policy })(server.origin, { method: 'POST', headers, body: 'x' });
    expect(response.status).toBe(201);
    expect(server.received.map((one) => one.headers['idempotency-key'])).toEqual(['order-1', 'order-1', 'order-1']);
  });

  it('generates one key per request if allowed, and none for a method that may run twice anyway', async () => {
    await using server = await httpServer((_, response) => response.writeHead(503).end());
    const http = createFetch({ policy: pipeline(repeating(2)), idempotencyKey: 'generate' });
    for (const method of ['POST', 'POST', 'PUT']) await http(server.origin, { method });
    const keys = server.received.map((one) => one.headers['idempotency-key']);
    expect(keys[0]).toMatch(/^[0-9a-f-]{36}$/);
    expect(keys).toEqual([keys[0], keys[0], keys[2], keys[2], undefined, undefined]);
    expect(keys[2]).not.toBe(keys[0]);
  });

  it('takes the key from a function, under a custom header', async () => {
    await using server = await httpServer((_, response, number) => response.writeHead(number < 2 ? 503 : 200).end());
    const http = createFetch({
      policy,
      idempotencyKey: ({ method, origin }) => (origin === server.origin ? `my-${method}` : undefined),
      idempotencyHeader: 'X-Request-Key',
    });
    await http(server.origin, { method: 'PATCH' });
    expect(server.received.map((one) => one.headers['x-request-key'])).toEqual(['my-PATCH', 'my-PATCH']);
  });

  it.each([['patch'], ['query'], ['PROPFIND'], ['Post'], ['delete']])(
    'sends the method %s as fetch does, with a key and without one',
    async (method) => {
      const sent: unknown[] = [];
      const http = createFetch({
        policy,
        async fetch(input, init) {
          sent.push(new Request(input, init).method);
          return new Response();
        },
      });
      await http('http://a.test/', { method });
      await http('http://a.test/', { method, headers: { 'idempotency-key': 'order-1' } });
      const own = new Request('http://a.test/', { method }).method;
      expect(sent).toEqual([own, own]);
    },
  );

  const form = () => {
    const data = new FormData();
    data.set('a', '1');
    data.set('file', new Blob(['text']), 'f.txt');
    return data;
  };

  it.each<[string, () => RequestInit['body']]>([
    ['a string', () => 'a=1'],
    ['bytes', () => new TextEncoder().encode('a=1')],
    ['an ArrayBuffer', () => new TextEncoder().encode('a=1').buffer],
    ['a Blob', () => new Blob(['a=1'])],
    ['URLSearchParams', () => new URLSearchParams({ a: '1' })],
    ['a form, with the same boundary', form],
  ])('sends %s again', async (_, body) => {
    await using server = await httpServer((_, response, number) => response.writeHead(number < 2 ? 503 : 200).end());
    const headers = { 'idempotency-key': 'k' };
    await createFetch({ policy })(server.origin, { method: 'POST', headers, body: body() ?? null });
    const [first, second] = server.received;
    expect(first?.body).toContain('1');
    expect(second?.body).toBe(first?.body);
    expect(second?.headers['content-type']).toBe(first?.headers['content-type']);
  });

  it('states the boundary of a form in its content type', async () => {
    await using server = await httpServer((_, response) => response.end());
    await createFetch({ policy })(server.origin, { method: 'POST', headers: { 'idempotency-key': 'k' }, body: form() });
    const { headers, body } = server.received[0]!;
    const boundary = /^multipart\/form-data; boundary=(.+)$/.exec(headers['content-type'] ?? '')?.[1];
    expect(boundary).toBeDefined();
    expect(body.startsWith(`--${boundary}\r\n`)).toBe(true);
  });

  it('sends a form of undici again through the fetch of undici, with a key and without', async () => {
    await using server = await httpServer((_, response) => response.writeHead(503).end());
    const data = new UndiciForm();
    data.append('price', '3 €');
    data.append('file', new Blob(['\0bytes']), 'a.bin');
    const http = createFetch({ policy, fetch: undiciFetch as unknown as Fetch });
    const body = data as unknown as FormData;
    await http(server.origin, { method: 'POST', headers: { 'idempotency-key': 'k' }, body });
    await http(server.origin, { method: 'PUT', body });
    expect(server.received.map(({ method }) => method)).toEqual(['POST', 'POST', 'POST', 'PUT', 'PUT', 'PUT']);
    expect(new Set(server.received.slice(0, 3).map((one) => one.body)).size).toBe(1);
    for (const one of server.received) {
      expect(one.body).toContain('filename="a.bin"');
      expect(one.headers['content-type']).toMatch(/^multipart\/form-data; boundary=/);
    }
  });

  it('passes a form without a key to fetch, which need not buffer it', async () => {
    const body = form();
    const send = vi.fn<Fetch>(async () => new Response());
    await createFetch({ policy, fetch: send })('http://a.test/', { method: 'POST', body });
    expect(send.mock.calls[0]?.[1]?.body).toBe(body);
  });

  it('sends a stream once', async () => {
    await using server = await httpServer((_, response) => response.writeHead(503).end());
    const body = new Blob(['streamed']).stream();
    const init = { method: 'PUT', body, duplex: 'half' } as RequestInit;
    expect((await createFetch({ policy })(server.origin, init)).status).toBe(503);
    expect(server.received.map((one) => one.body)).toEqual(['streamed']);
  });

  it('sends a Request with a body once, and one without as often as needed', async () => {
    await using server = await httpServer((_, response) => response.writeHead(503).end());
    const http = createFetch({ policy });
    await http(new Request(server.origin, { method: 'PUT', body: 'x' }));
    expect(server.received.map((one) => one.body)).toEqual(['x']);
    const request = new Request(server.origin, { headers: { a: 'b' } });
    await http(request);
    expect(server.received.slice(1).map((one) => one.headers.a)).toEqual(['b', 'b', 'b']);
    await http(new Request(server.origin, { method: 'PUT' }), { body: 'y' });
    expect(server.received.slice(4).map((one) => one.body)).toEqual(['y', 'y', 'y']);
  });

  it('takes its options from a Request, and from any object that inherits them', async () => {
    await using server = await httpServer((_, response) => response.end('here'));
    const http = createFetch({ policy });
    const old = new Request(`${server.origin}/old`, { method: 'POST', body: 'whole', headers: { 'x-team': 'kelp' } });
    await http(`${server.origin}/new`, old);
    await http(server.origin, Object.create({ method: 'PUT', body: 'whole', headers: { 'x-team': 'kelp' } }));
    await http(server.origin, new Patch());
    const hidden = { method: { value: 'PUT' }, body: { value: 'whole' }, headers: { value: { 'x-team': 'kelp' } } };
    await http(server.origin, Object.defineProperties({}, hidden));
    const seen = server.received.map(({ method, body, headers }) => [method, body, headers['x-team']]);
    expect(seen).toEqual([
      ['POST', 'whole', 'kelp'],
      ['PUT', 'whole', 'kelp'],
      ['PATCH', 'whole', 'kelp'],
      ['PUT', 'whole', 'kelp'],
    ]);
  });

  it('reads each option once, and knows those of fetch although they are no own members', async () => {
    const names: (string | symbol)[] = [];
    const init = new Proxy(new Patch(), {
      get(patch, name) {
        names.push(name);
        return Reflect.get(patch, name, patch);
      },
    });
    const seen: unknown[] = [];
    const http = createFetch({
      policy,
      async fetch(_, options) {
        seen.push(options?.keepalive, (options as { readonly tls?: unknown }).tls);
        return new Response();
      },
    });
    await http('http://a.test/', init);
    expect(names.filter((name) => name === 'body')).toEqual(['body']);
    expect(seen).toEqual([true, 'own']);
  });

  it('follows the signal of a Request', async () => {
    const controller = new AbortController();
    const http = createFetch({ policy, fetch: (_, init) => hanging(init) });
    const running = http(new Request('http://a.test/', { signal: controller.signal }));
    controller.abort(new Error('left'));
    await expect(running).rejects.toThrow('left');
  });

  it.each<[string, RequestInit]>([
    ['a GET with a body', { body: 'x' }],
    ['a HEAD with a body', { method: 'HEAD', body: 'x' }],
    ['a stream without duplex', { method: 'PUT', body: new Blob(['x']).stream() }],
    ['no method', { method: 'A B', headers: { 'idempotency-key': 'k' } }],
    ['a method that is not allowed', { method: 'TRACE' }],
    ['no mode', { mode: 'navigate' }],
    ['a length that is not that of the body', { method: 'PUT', body: 'x', headers: { 'content-length': '5' } }],
  ])('does not count a request that cannot be made against its origin: %s', async (_, init) => {
    await using server = await httpServer((_, response) => response.end());
    const breaker = circuitBreaker({ window: { consecutive: 1 }, handles: breakerHandles });
    const stops: string[] = [];
    const on = (event: HoldfastEvent) => event.type === 'retry-stopped' && stops.push(event.stoppedBy);
    const http = createFetch({ policy: pipeline(retry({ attempts: 3, backoff: constant(1), handles, on }), breaker) });
    await expect(http(server.origin, init)).rejects.toThrow(TypeError);
    expect([breaker.state, stops, server.received]).toEqual(['closed', ['classifier'], []]);
  });

  it.each<[string, string, RequestInit, number]>([
    ['a redirect that leads to itself', '/around', {}, 21],
    ['a redirect that leads to itself, with a key', '/around', { headers: { 'idempotency-key': 'k' } }, 21],
    ['a redirect that it was told not to follow', '/around', { redirect: 'error' }, 1],
    ['a redirect to where it does not go', '/elsewhere', {}, 1],
  ])('follows %s once, and does not count it in a breaker', async (_, path, init, requests) => {
    const breaker = circuitBreaker({ window: { consecutive: 1 }, handles: breakerHandles });
    await using server = await httpServer(({ url }, response) =>
      response.writeHead(302, { location: url === '/around' ? url : 'ftp://elsewhere.test/' }).end(),
    );
    await expect(createFetch({ policy: pipeline(repeating(), breaker) })(server.origin + path, init)).rejects.toThrow(
      'fetch failed',
    );
    expect([server.received.length, breaker.state]).toEqual([requests, 'closed']);
  });

  it('fetches a body that fails its integrity check once, and does not count it in a breaker', async () => {
    const breaker = circuitBreaker({ window: { consecutive: 1 }, handles: breakerHandles });
    await using server = await httpServer((_, response) => response.end('another version'));
    const integrity = `sha256-${createHash('sha256').update('this version').digest('base64')}`;
    const http = createFetch({ policy: pipeline(repeating(), breaker) });
    await expect(http(server.origin, { integrity })).rejects.toThrow('fetch failed');
    expect([server.received.length, breaker.state]).toEqual([1, 'closed']);
  });

  it('does not count a Request whose body was already read against its origin', async () => {
    const breaker = circuitBreaker({ window: { consecutive: 1 }, handles: breakerHandles });
    const request = new Request('http://127.0.0.1:9/', { method: 'PUT', body: 'x' });
    await request.text();
    await expect(createFetch({ policy: breaker })(request)).rejects.toThrow(/already been used/);
    expect(breaker.state).toBe('closed');
  });

  /** What becomes of requests that end with this error. */
  async function endedBy(error: unknown, input: string | Request, init?: RequestInit) {
    const breaker = circuitBreaker({ window: { consecutive: 1 }, handles: breakerHandles });
    const send = vi.fn<Fetch>().mockRejectedValue(error);
    await expect(createFetch({ policy: breaker, fetch: send })(input, init)).rejects.toBe(error);
    return breaker.state;
  }

  it.each<[string, RequestInit | undefined]>([
    ['without options', undefined],
    ['a HEAD', { method: 'HEAD' }],
    ['with a body', { method: 'PUT', body: 'x' }],
    ['with a stream', { method: 'PUT', body: new Blob(['x']).stream(), duplex: 'half' } as RequestInit],
  ])(
    'takes a TypeError without a cause for a fault of the origin where the request is in order: %s',
    async (_, init) => {
      expect(await endedBy(new TypeError('network connection lost'), 'http://a.test/', init)).toBe('open');
    },
  );

  it('counts a lost connection of a Request whose body was read against its origin, if another body is sent', async () => {
    const request = new Request('http://a.test/', { method: 'PUT', body: 'x' });
    await request.text();
    expect(await endedBy(new TypeError('network connection lost'), request, { body: 'y' })).toBe('open');
    expect(await endedBy(new TypeError('network connection lost'), request, {})).toBe('closed');
  });

  it.each<[string, unknown]>([
    ['another error', new Error('lost')],
    ['a TypeError with a cause', new TypeError('fetch failed', { cause: new Error('lost') })],
    ['a TypeError with a code', Object.assign(new TypeError('lost'), { code: 'ECONNRESET' })],
    ['what is no error', 'lost'],
  ])('counts %s as a fault even if only another fetch accepts the request', async (_, error) => {
    expect(await endedBy(error, 'http://a.test/', { method: 'GET', body: 'x' })).toBe('open');
  });

  it('passes on non-HTTP requests and invalid URLs unchanged', async () => {
    const send = vi.fn<Fetch>(async () => new Response());
    const spy = vi.fn(() => policy);
    const http = createFetch({ policy: spy, fetch: send });
    const init = { headers: { a: 'b' } };
    for (const input of ['data:text/plain,hello', 'not a url', new URL('blob:x')]) {
      await http(input, init);
      expect(send.mock.lastCall).toEqual([input, init]);
      expect(send.mock.lastCall?.[1]).toBe(init);
    }
    expect(spy).not.toHaveBeenCalled();
    expect(await (await createFetch({ policy })('data:text/plain,hello')).text()).toBe('hello');
  });

  it('lets fetch refuse what cannot be options', async () => {
    await using server = await httpServer((_, response) => response.end('here'));
    const http = createFetch({ policy });
    for (const init of ['POST', 5, true, Symbol('init')]) {
      await expect(http(server.origin, init as unknown as RequestInit)).rejects.toThrow(TypeError);
    }
    expect(server.received).toEqual([]);
  });

  it('returns responses without a body under a signal', async () => {
    const { signal } = new AbortController();
    const http = createFetch({ policy, fetch: async () => new Response(null, { status: 204 }) });
    expect((await http('http://a.test/', { signal })).status).toBe(204);
  });

  it.each([[{ ok: true, status: 200 }], [undefined]])(
    'returns %j of a mocked fetch, also under a signal',
    async (answer) => {
      const { signal } = new AbortController();
      const http = createFetch({ policy, fetch: async () => answer as Response });
      expect([await http('http://a.test/'), await http('http://a.test/', { signal })]).toEqual([answer, answer]);
    },
  );

  it('rejects with an error that cannot be looked at, after all attempts', async () => {
    const secret = Object.defineProperty({}, 'cause', {
      get: () => {
        throw new Error('secret');
      },
    });
    const send = vi.fn<Fetch>(async () => {
      throw secret;
    });
    const judged = pipeline(repeating(), circuitBreaker({ handles: breakerHandles }));
    const thrown = await createFetch({ policy: judged, fetch: send })('http://a.test/').catch((error) => error);
    expect([thrown === secret, send.mock.calls.length]).toEqual([true, 3]);
  });

  it('sends nothing if the caller aborts while a policy admits the request', async () => {
    let controller = new AbortController();
    const leave = () => controller.abort(new Error('left'));
    const admit = () => {
      leave();
      return { settle() {}, release() {} };
    };
    const strategy: Strategy = {
      name: 'strategy',
      handle(call, next) {
        leave();
        return next(call);
      },
    };
    const guard: Guard = { name: 'guard', admit };
    const slowGuard: Guard = { name: 'slow guard', admit: async () => admit() };
    for (const policy of [strategy, guard, slowGuard]) {
      controller = new AbortController();
      const send = vi.fn<Fetch>(async () => new Response());
      const http = createFetch({ policy, fetch: send });
      await expect(http('http://a.test/', { signal: controller.signal })).rejects.toThrow('left');
      expect(send).not.toHaveBeenCalled();
    }
  });

  it('distinguishes origins by the requested URL', async () => {
    const asked: string[] = [];
    await using target = await httpServer((_, response) => response.end('moved here'));
    await using server = await httpServer((_, response) =>
      response.writeHead(302, { location: `${target.origin}/` }).end(),
    );
    const http = createFetch({
      policy: (origin) => {
        asked.push(origin);
        return policy;
      },
    });
    for (const path of ['/a', '/b']) expect(await (await http(server.origin + path)).text()).toBe('moved here');
    expect(asked).toEqual([server.origin]);
  });

  it('remembers at most maxOrigins origins, and evicts the least recently used', async () => {
    const asked: string[] = [];
    const http = createFetch({
      policy: (origin) => {
        asked.push(origin.slice(-1));
        return policy;
      },
      fetch: async () => new Response(),
      maxOrigins: 2,
    });
    for (const host of ['a', 'b', 'a', 'c', 'a', 'b']) await http(`http://${host}/`);
    expect(asked).toEqual(['a', 'b', 'c', 'b']);
  });

  it('passes the origin to the policies as the key', async () => {
    const keys: unknown[] = [];
    const spy = {
      name: 'spy',
      admit(call: { key?: string | undefined }) {
        keys.push(call.key);
        return { settle() {}, release() {} };
      },
    };
    await createFetch({ policy: spy, fetch: async () => new Response() })('https://user@a.test:8443/x');
    expect(keys).toEqual(['https://a.test:8443']);
  });

  it.each([
    ['an unknown option', { retries: 3 }],
    ['a policy that is none', { policy: 5 }],
    ['a pacing that is none', { pacing: 'on' }],
    ['an unknown option of pacing', { pacing: { pause: 1 } }],
    ['a form that is none', { propagate: 'b3' }],
    ['no room for an origin', { maxOrigins: 0 }],
    ['a header whose name is none', { idempotencyHeader: 'idempotency key' }],
  ])('refuses %s at once', (_, options) => {
    expect(() => createFetch(options as never)).toThrow(OptionsError);
  });
});

/** Reads an answer to its end, and lets the connection become idle. */
async function readAndFree(http: Fetch, url: string): Promise<void> {
  await (await http(url)).text();
  await setImmediate();
}

/** A request that only its signal can end. */
function hanging(init?: RequestInit): Promise<Response> {
  return new Promise((_, reject) => {
    init?.signal?.addEventListener('abort', () => reject(init.signal?.reason));
  });
}

describe('a server that does not answer', () => {
  it('is given up by the attempt timeout and asked again, and its connection is closed', async () => {
    let closed: Promise<unknown> | undefined;
    await using server = await rawServer(({ socket, number }) => {
      if (number === 1) closed = once(socket, 'close');
      else socket.write(answerText(200, 'here'));
    });
    const http = createFetch({ policy: pipeline(repeating(), timeout('60ms')) });
    expect(await (await http(server.origin)).text()).toBe('here');
    await closed;
  });

  it('ends at the deadline with the error of the policy', async () => {
    await using server = await rawServer(() => {});
    const http = createFetch({ policy: pipeline(deadline('40ms'), repeating()) });
    const error = await http(server.origin).catch((thrown: unknown) => thrown);
    expect(isAbandoned(error)).toBe(true);
  });

  it('is abandoned when the caller aborts', async () => {
    const controller = new AbortController();
    let closed: Promise<unknown> | undefined;
    await using server = await rawServer(({ socket }) => {
      closed = once(socket, 'close');
      controller.abort(new Error('left'));
    });
    await expect(createFetch({ policy })(server.origin, { signal: controller.signal })).rejects.toThrow('left');
    await closed;
    expect(server.requests).toBe(1);
  });

  it('is never asked if the signal has already aborted', async () => {
    const send = vi.fn(async () => new Response());
    const signal = AbortSignal.abort(new Error('never'));
    await expect(createFetch({ policy, fetch: send })('http://a.test/', { signal })).rejects.toThrow('never');
    expect(send).not.toHaveBeenCalled();
  });

  it('cannot answer after the timeout', async () => {
    let cancelled = 0;
    let answer: ((response: Response) => void) | undefined;
    const http = createFetch({
      policy: timeout('10ms'),
      // This operation ignores its signal.
      fetch: () => new Promise((resolve) => (answer = resolve)),
    });
    await expect(http('http://a.test/')).rejects.toThrow();
    answer?.(new Response(new ReadableStream({ cancel: () => void cancelled++ }, { highWaterMark: 0 })));
    await expect.poll(() => cancelled).toBe(1);
  });
});

describe('a body', () => {
  it('that takes its time is not cut off by the timeout or deadline of the policies', async () => {
    let rest = () => {};
    await using server = await rawServer(({ socket }) => {
      socket.write('HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n12');
      rest = () => void socket.write('345');
    });
    const clock = virtualClock();
    const http = createFetch({ policy: pipeline(deadline({ after: '50ms', clock }), repeating(), timeout('40ms')) });
    const response = await http(server.origin, { signal: new AbortController().signal });
    await clock.advance('1h');
    rest();
    expect(await response.text()).toBe('12345');
  });

  it('ends when the caller aborts while it is being read', async () => {
    const controller = new AbortController();
    let closed: Promise<unknown> | undefined;
    await using server = await rawServer(({ socket }) => {
      closed = once(socket, 'close');
      socket.write('HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n12');
    });
    const response = await createFetch({ policy })(server.origin, { signal: controller.signal });
    const reading = response.text();
    controller.abort(new Error('enough'));
    await expect(reading).rejects.toThrow('enough');
    await closed;
  });

  it('that breaks off is an error for its reader, and is not requested again', async () => {
    await using server = await rawServer(({ socket }) => {
      socket.write('HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n12', () => socket.resetAndDestroy());
    });
    const response = await createFetch({ policy })(server.origin);
    await expect(response.text()).rejects.toThrow();
    expect(server.requests).toBe(1);
  });
});

describe('the listeners of a caller’s signal', () => {
  it('are removed with the bodies that they could end', async () => {
    const { setFlagsFromString } = await import('node:v8');
    const { runInNewContext } = await import('node:vm');
    setFlagsFromString('--expose-gc');
    const collect = runInNewContext('gc') as () => void;
    const { signal } = new AbortController();
    // Each listener holds what it could abort.
    const held: WeakRef<AbortSignal>[] = [];
    const http = createFetch({
      policy,
      fetch: async (_, init) => {
        held.push(new WeakRef(init!.signal!));
        return new Response('x');
      },
    });
    for (let index = 0; index < 20; index++) await (await http('http://a.test/', { signal })).text();
    await vi.waitFor(
      () => {
        collect();
        expect(held.filter((one) => one.deref() !== undefined).length).toBeLessThan(3);
      },
      { timeout: 60_000, interval: 20 },
    );
    expect(signal.aborted).toBe(false);
  });
});

describe('an idle connection that was closed', () => {
  /** Answers the first request of a connection, and closes the connection when a second one comes in. */
  const closesIdle = (end: 'reset' | 'close') =>
    rawServer(({ socket, request }) => {
      if (request === 1) socket.write(answerText(200, 'here'));
      else if (end === 'reset') socket.resetAndDestroy();
      else socket.destroy();
    });
  const events: HoldfastEvent[] = [];
  const plain = () => createFetch({ policy: pipeline(), on: (event) => events.push(event) });

  it.each(['reset', 'close'] as const)(
    'by a %s leads to an immediate resend, which is not an attempt of the policy',
    async (end) => {
      await using server = await closesIdle(end);
      const http = plain();
      events.length = 0;
      await readAndFree(http, server.origin);
      expect(await (await http(server.origin, { method: 'PUT', body: 'x' })).text()).toBe('here');
      expect([server.connections, server.requests]).toEqual([2, 3]);
      expect(events).toMatchObject([{ type: 'reconnected', origin: server.origin }]);
    },
  );

  it('leads to a resend of a POST with a key, not of one without', async () => {
    await using server = await closesIdle('close');
    const http = plain();
    await readAndFree(http, server.origin);
    await expect(http(server.origin, { method: 'POST', body: 'x' })).rejects.toThrow();
    await readAndFree(http, server.origin);
    const headers = { 'idempotency-key': 'k' };
    expect((await http(server.origin, { method: 'POST', body: 'x', headers })).status).toBe(200);
  });

  it('does not lead to a resend of a body that can be read only once', async () => {
    await using server = await closesIdle('close');
    const http = plain();
    await readAndFree(http, server.origin);
    const init = { method: 'PUT', body: new Blob(['x']).stream(), duplex: 'half' } as RequestInit;
    await expect(http(server.origin, init)).rejects.toThrow();
    expect(server.requests).toBe(2);
  });

  it('is distinguished from a connection that never answered', async () => {
    await using server = await rawServer(({ socket }) => socket.destroy());
    await expect(plain()(server.origin)).rejects.toThrow();
    expect(server.requests).toBe(1);
  });

  it('leads to one resend in an outage, not to one per request', async () => {
    await using server = await rawServer(({ socket, number, request }) => {
      if (number === 1 && request === 1) socket.write(answerText(200, 'here'));
      else socket.resetAndDestroy();
    });
    const http = plain();
    await readAndFree(http, server.origin);
    for (let index = 0; index < 5; index++) await expect(http(server.origin)).rejects.toThrow();
    expect(server.requests).toBe(1 + 5 + 1);
  });
});

describe('an origin that asks callers to wait', () => {
  const wallDate = (ms: number) => new Date(Date.now() + ms).toUTCString();

  it.each<[string, () => Record<string, string>]>([
    ['429, seconds', () => ({ 'retry-after': '1' })],
    ['429, milliseconds', () => ({ 'retry-after-ms': '1000' })],
    ['429, a date', () => ({ 'retry-after': wallDate(2_000) })],
    ['429, a reset', () => ({ 'ratelimit-reset': '1', 'ratelimit-remaining': '0' })],
    [
      '429, an instant',
      () => ({ 'x-ratelimit-reset': String(Math.ceil(Date.now() / 1_000) + 1), 'x-ratelimit-remaining': '0' }),
    ],
    ['429, a quota', () => ({ ratelimit: '"default";r=0;t=1' })],
  ])('by %s is not asked earlier', async (_, headers) => {
    let firstMs = 0;
    let secondMs = 0;
    await using server = await httpServer((_, response, number) => {
      if (number === 1) {
        firstMs = performance.now();
        response.writeHead(429, headers()).end();
      } else {
        secondMs = performance.now();
        response.end('here');
      }
    });
    const http = createFetch({ policy: pipeline(deadline('10s'), repeating()) });
    expect(await (await http(server.origin)).text()).toBe('here');
    expect(secondMs - firstMs).toBeGreaterThanOrEqual(990);
  });

  it('by refusing five in a row also delays other requests until then', async () => {
    await using server = await httpServer((_, response, number) =>
      number <= 5 ? response.writeHead(503, { 'retry-after-ms': '80' }).end() : response.end(),
    );
    const events: HoldfastEvent[] = [];
    const http = createFetch({ policy: pipeline(), on: (event) => events.push(event) });
    for (let refusal = 0; refusal < 4; refusal++) await http(server.origin, { method: 'POST' });
    const startedMs = performance.now();
    await http(server.origin, { method: 'POST' });
    expect((await http(server.origin, { method: 'POST' })).status).toBe(200);
    expect(performance.now() - startedMs).toBeGreaterThan(79);
    expect(events).toMatchObject([{ type: 'paced', origin: server.origin, refused: false }]);
  });

  it('for longer than the deadline is not asked, and the caller gets an error with the time at once', async () => {
    await using server = await httpServer((_, response) => response.writeHead(429, { 'retry-after': '60' }).end());
    const http = createFetch({ policy: pipeline(deadline('30s'), repeating()) });
    for (let refusal = 0; refusal < 5; refusal++) expect((await http(server.origin)).status).toBe(429);
    const error = await http(server.origin).catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(RateLimitedError);
    expect((error as RateLimitedError).retryAfterMs).toBeGreaterThan(30_000);
    expect(server.received).toHaveLength(5);
  });

  it('is ignored when pacing is off', async () => {
    await using server = await httpServer((_, response) => response.writeHead(429, { 'retry-after': '5' }).end());
    const http = createFetch({ policy: pipeline(), pacing: 'off' });
    for (let index = 0; index < 6; index++) expect((await http(server.origin)).status).toBe(429);
  });
});

describe('propagate', () => {
  it('sends no headers unless asked', async () => {
    await using server = await httpServer((_, response) => response.end());
    await createFetch({ policy: pipeline(deadline('5s')) })(server.origin);
    expect(Object.keys(server.received[0]?.headers ?? {})).not.toContain('request-attempt');
  });

  it.each([
    ['holdfast', 'request-deadline-ms', /^4\d{3}$/],
    ['grpc', 'grpc-timeout', /^4\d{3}m$/],
    ['envoy', 'x-envoy-expected-rq-timeout-ms', /^4\d{3}$/],
  ] as const)('sends the time that is left and the number of the attempt (%s)', async (propagate, name, form) => {
    await using server = await httpServer((_, response, number) => response.writeHead(number < 2 ? 503 : 200).end());
    await createFetch({ policy: pipeline(deadline('5s'), repeating()), propagate })(server.origin);
    expect(server.received.map((one) => one.headers['request-attempt'])).toEqual(['1', '2']);
    for (const { headers } of server.received) expect(headers[name]).toMatch(form);
  });
});

describe('the default policy', () => {
  /** Retries take time, and a POST is sent once. */
  const post = (http: Fetch, origin: string) => http(origin, { method: 'POST' });

  it('repeats failed requests', async () => {
    await using server = await httpServer((_, response, number) => response.writeHead(number < 2 ? 503 : 200).end());
    expect((await createFetch()(server.origin)).status).toBe(200);
  });

  it('reports what its policies do to the hook of the client, under the name of the origin', async () => {
    await using server = await httpServer((_, response, number) => response.writeHead(number < 2 ? 503 : 200).end());
    const heard: HoldfastEvent[] = [];
    await createFetch({ on: (event) => heard.push(event) })(server.origin);
    expect(heard.map(({ type, name }) => [type, name])).toEqual([
      ['retry', server.origin],
      ['retry-succeeded', server.origin],
    ]);
  });

  it('runs on the clock of the client, pacing or not, and so does its budget', async () => {
    const clock = virtualClock();
    const hanging = createFetch({ clock, pacing: 'off', fetch: () => new Promise(() => {}) });
    const ended = hanging('http://a.test/').catch((error) => error.code);
    await clock.advance('30s');
    expect(await Promise.race([ended, 'still running'])).toBe('ERR_DEADLINE_EXCEEDED');
    const down = vi.fn<Fetch>(async () => new Response(null, { status: 500 }));
    const http = createFetch({ clock, fetch: down });
    for (let index = 0; index < 20; index++) {
      const answer = http('http://b.test/');
      await clock.advance('10s');
      await answer;
    }
    // The 10 retries of a new budget, and its one per second of virtual time.
    expect(down.mock.calls.length).toBeGreaterThanOrEqual(20 + 10 + 10);
  });

  it('stops calling an origin that is down, and no other', async () => {
    await using down = await httpServer((_, response) => response.writeHead(500).end());
    await using up = await httpServer((_, response) => response.end());
    const http = createFetch();
    for (let index = 0; index < 20; index++) await post(http, down.origin);
    const error = await post(http, down.origin).catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(CircuitOpenError);
    expect((await post(http, up.origin)).status).toBe(200);
  });

  /** A stream that fails after its first chunk, or that has no end. */
  const poured = (fails: boolean) =>
    Readable.from(
      (async function* () {
        yield 'x';
        if (fails) throw Object.assign(new Error('aborted'), { code: 'ECONNRESET' });
        await new Promise(() => {});
      })(),
    );

  it.each<[string, (origin: string, body: Readable) => Parameters<Fetch>]>([
    ['a stream of Node', (origin, body) => [origin, { body: body as never }]],
    ['a stream', (origin, body) => [origin, { body: Readable.toWeb(body) as never }]],
    [
      'that of a Request',
      (origin, body) => [
        new Request(origin, { method: 'POST', duplex: 'half', body: Readable.toWeb(body) as never } as RequestInit),
      ],
    ],
  ])('does not count an upload that breaks off against its origin, %s', async (_, given) => {
    const init = { method: 'POST', duplex: 'half' } as const;
    await using healthy = await httpServer((_, response) => response.end('here'));
    await using closing = await rawServer(({ socket }) => socket.resetAndDestroy());
    const http = createFetch({ policy: circuitBreaker({ window: { consecutive: 1 }, handles: breakerHandles }) });
    const failed = (origin: string, fails: boolean) => {
      const [input, more] = given(origin, poured(fails));
      return http(input, typeof input === 'string' ? { ...init, ...more } : undefined).catch((error) => error);
    };
    expect(await failed(healthy.origin, true)).toMatchObject({ cause: { message: 'aborted' } });
    expect(await (await http(healthy.origin)).text()).toBe('here');
    expect(await failed(closing.origin, false)).toBeInstanceOf(TypeError);
    await expect(http(closing.origin)).rejects.toBeInstanceOf(CircuitOpenError);
  });

  it('does not count a 429 that names a time against its origin', async () => {
    await using server = await httpServer((_, response) => response.writeHead(429, { 'retry-after-ms': '0' }).end());
    const http = createFetch();
    for (let index = 0; index < 30; index++) expect((await post(http, server.origin)).status).toBe(429);
  });
});
