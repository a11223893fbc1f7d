import { describe, expect, it } from 'vitest';
import { createFetch, discardBody, type Fetch, handles } from '../../src/client/fetch.js';
import { sendKeyed } from '../../src/client/keyed-redirects.js';
import { type AnyPolicy, constant, deadline, hedge, pipeline, retry, timeout } from '../../src/index.js';
import { virtualClock } from '../../src/testing/index.js';
import { httpServer } from './support/servers.ts';

const policy = pipeline(retry({ attempts: 3, backoff: constant(1), handles, onDiscard: discardBody }));
const post = (body: NonNullable<RequestInit['body']> = 'x') => ({
  ...{ method: 'POST', body, headers: { 'Idempotency-Key': 'k', Authorization: 'secret', 'X-Mine': '1' } },
});

describe('createFetch with an idempotency key', () => {
  it.each([307, 308])('keeps the key over a %i within its origin, in each attempt', async (status) => {
    await using server = await httpServer((request, response, number) => {
      if (request.url === '/old') response.writeHead(status, { location: '/new' }).end('moved');
      else response.writeHead(number < 4 ? 503 : 201).end('made');
    });
    const response = await createFetch({ policy })(`${server.origin}/old`, post());
    expect([response.status, await response.text(), response.url]).toEqual([201, 'made', `${server.origin}/new`]);
    expect(server.received.map(({ method, body, headers }) => [method, body, headers['idempotency-key']])).toEqual(
      Array(4).fill(['POST', 'x', 'k']),
    );
  });

  it.each([301, 302, 303, 307, 308])('does not send the key to another origin over a %i', async (status) => {
    await using other = await httpServer((_, response) => response.end('there'));
    await using server = await httpServer((_, response) =>
      response.writeHead(status, { location: other.origin }).end(),
    );
    const response = await createFetch({ policy })(server.origin, post());
    expect(await response.text()).toBe('there');
    const [{ method, body, headers }] = other.received as [(typeof other.received)[0]];
    expect([headers['idempotency-key'], headers.authorization, headers['x-mine']]).toEqual([undefined, undefined, '1']);
    expect([method, body]).toEqual(status < 304 ? ['GET', ''] : ['POST', 'x']);
  });

  it('follows a 303 as a GET, which has no key', async () => {
    await using server = await httpServer((request, response) => {
      if (request.method === 'POST') response.writeHead(303, { location: '/receipt' }).end();
      else response.end('receipt');
    });
    expect(await (await createFetch({ policy })(server.origin, post())).text()).toBe('receipt');
    const last = server.received.at(-1)!;
    expect([last.method, last.headers['idempotency-key'], last.headers['content-type']]).toEqual([
      'GET',
      undefined,
      undefined,
    ]);
  });

  it('keeps the headers of a GET over a 303, as fetch does', async () => {
    await using server = await httpServer(({ url }, response) => {
      if (url === '/') response.writeHead(303, { location: '/there' }).end();
      else response.end('there');
    });
    const headers = { 'idempotency-key': 'k', 'content-type': 'text/x' };
    await createFetch({ policy })(server.origin, { headers });
    expect(server.received.at(-1)).toMatchObject({ method: 'GET', url: '/there', headers });
  });

  it('follows neither forbidden redirects nor more than twenty', async () => {
    await using server = await httpServer((_, response) => response.writeHead(307, { location: '/again' }).end());
    const http = createFetch({ policy: pipeline(retry({ attempts: 1, handles })) });
    expect((await http(server.origin, { ...post(), redirect: 'manual' })).status).toBe(307);
    await expect(http(server.origin, { ...post(), redirect: 'error' })).rejects.toThrow(TypeError);
    server.received.length = 0;
    await expect(http(server.origin, post())).rejects.toMatchObject({ cause: { message: 'more than 20 redirects' } });
    expect(server.received).toHaveLength(21);
  });

  it('fails at a location with a password, which fetch does not follow, and does not retry it', async () => {
    await using server = await httpServer(({ headers: { host } }, response) =>
      response.writeHead(303, { location: `http://name:password@${host}/` }).end(),
    );
    await expect(createFetch({ policy })(server.origin, post())).rejects.toMatchObject({
      message: 'fetch failed',
      cause: { message: /credentials/ },
    });
    expect(server.received).toHaveLength(1);
  });

  it.each([
    ['a key', { 'idempotency-key': 'order-1' }],
    ['no key', undefined],
  ])('leaves its origin only if the mode allows it, and does not retry where it does not: %s', async (_, headers) => {
    await using other = await httpServer((_request, response) => response.end());
    await using server = await httpServer((_request, response) =>
      response.writeHead(307, { location: other.origin }).end(),
    );
    const http = createFetch({ policy });
    const options = { method: 'PUT', mode: 'same-origin', ...(headers && { headers }) } as const;
    for (const ask of [() => http(server.origin, options), () => http(new Request(server.origin, options))]) {
      await expect(ask()).rejects.toMatchObject({ cause: { message: /same-origin/ } });
    }
    expect([server.received.length, other.received.length]).toEqual([2, 0]);
  });

  it('fails if a stream would have to be sent again', async () => {
    await using server = await httpServer((_, response) => response.writeHead(307, { location: '/again' }).end());
    const streamed = { ...post(new Blob(['x']).stream()), duplex: 'half' } as RequestInit;
    await expect(createFetch({ policy })(server.origin, streamed)).rejects.toMatchObject({
      cause: { message: /stream/ },
    });
    const request = new Request(server.origin, post());
    await expect(createFetch({ policy })(request)).rejects.toMatchObject({ cause: { message: /stream/ } });
  });

  it.each([302, 307])('sends no empty body over a %i in place of an iterable that it has read', async (status) => {
    await using server = await httpServer((_, response) => response.writeHead(status, { location: '/again' }).end());
    async function* parts() {
      yield 'all of it';
    }
    for (const method of status === 307 ? ['POST', 'PUT'] : ['PUT', 'PATCH']) {
      server.received.length = 0;
      const streamed = { ...post(parts() as unknown as ReadableStream), method, duplex: 'half' } as RequestInit;
      await expect(createFetch({ policy })(server.origin, streamed)).rejects.toMatchObject({
        cause: { message: /iterable/ },
      });
      expect(server.received.map(({ body }) => body)).toEqual(['all of it']);
    }
  });

  describe('redirected to another origin, which does not get the key', () => {
    const leads = async (target: string) =>
      httpServer((_, response) => response.writeHead(307, { location: target }).end());

    it('sends a POST there once and returns its answer, a PUT as often as any', async () => {
      await using other = await httpServer((_, response) => response.writeHead(503).end('busy'));
      await using server = await leads(other.origin);
      const response = await createFetch({ policy })(server.origin, post());
      expect([response.status, await response.text(), other.received.length]).toEqual([503, 'busy', 1]);
      expect((await createFetch({ policy })(server.origin, { ...post(), method: 'PUT' })).status).toBe(503);
      expect(other.received).toHaveLength(4);
    });

    const repeated = pipeline(retry({ attempts: 3, backoff: constant(1), handles }), timeout('50ms'));
    it.each<[string, AnyPolicy, string]>([
      ['after a timeout', repeated, 'ERR_IN_DOUBT'],
      ['as a copy', hedge({ delay: 20, handles }), 'ERR_IN_DOUBT'],
      ['as a copy whatever is repeated', hedge({ delay: 20, handles: () => true }), 'ERR_DEADLINE_EXCEEDED'],
    ])('does not send a POST there a second time: %s', async (_, own, code) => {
      await using other = await httpServer(() => {});
      await using server = await leads(other.origin);
      const clock = virtualClock();
      const http = createFetch({ policy: pipeline(deadline({ after: '200ms', clock }), own) });
      const failing = expect(http(server.origin, post())).rejects.toMatchObject({ code });
      await expect.poll(() => other.received).toHaveLength(1);
      await clock.advance('60ms');
      // Anything that was sent meanwhile arrives before these requests are answered.
      for (let trip = 1; trip <= 3; trip++) await fetch(server.origin, { redirect: 'manual' });
      await clock.advance('200ms');
      await failing;
      expect(other.received).toHaveLength(1);
    });

    it('does not resend a POST there after a lost connection, although it may have been idle', async () => {
      await using other = await httpServer((_, response, number) => {
        if (number > 1) response.destroy();
        else response.end();
      });
      await using server = await leads(other.origin);
      const http = createFetch({ policy });
      expect((await http(server.origin, post())).status).toBe(200);
      await expect(http(server.origin, post())).rejects.toThrow('fetch failed');
      expect(other.received).toHaveLength(2);
    });
  });

  it('retries with the same key after a 409 that names a time, but not after a 400 or 422', async () => {
    await using server = await httpServer((_, response, number) =>
      response.writeHead(number < 3 ? 409 : 201, number < 3 ? { 'retry-after': '0' } : {}).end(),
    );
    expect((await createFetch({ policy })(server.origin, post())).status).toBe(201);
    expect(server.received.map(({ headers }) => headers['idempotency-key'])).toEqual(['k', 'k', 'k']);
    for (const status of [400, 409, 422]) {
      await using refusing = await httpServer((_, response) => response.writeHead(status).end());
      expect((await createFetch({ policy })(refusing.origin, post())).status).toBe(status);
      expect(refusing.received).toHaveLength(1);
    }
  });

  it('sends no key that is older than maxKeyAge', async () => {
    const clock = virtualClock();
    let sent = 0;
    const http = createFetch({
      policy: pipeline(retry({ attempts: 9, backoff: constant('10h'), handles, clock })),
      fetch: async () => {
        sent++;
        return new Response(null, { status: 503 });
      },
    });
    const late = http('http://a.test/', post()).catch((error) => error);
    await clock.advance('30h');
    expect(await late).toMatchObject({ code: 'ERR_IN_DOUBT', reason: 'too-old', message: /maxKeyAge/ });
    expect(sent).toBe(3);
    const keyless = http('http://a.test/', { method: 'PUT' });
    await clock.advance('90h');
    expect([(await keyless).status, sent]).toEqual([503, 12]);
  });
});

describe('sendKeyed', () => {
  /** Answers with these responses in turn, and then with 200. It keeps what was sent. */
  async function followed(
    responses: readonly (readonly [status: number, location?: string])[],
    {
      method = 'POST',
      input = 'http://a.test/one',
      body,
    }: { method?: string; input?: string | Request; body?: string } = {},
  ) {
    const sent: string[] = [];
    let left = 0;
    const send: Fetch = async (to, init) => {
      const key = new Headers(init?.headers).get('idempotency-key');
      sent.push(`${init?.method} ${String(to instanceof Request ? to.url : to)} ${key} ${init?.body ?? '-'}`);
      const [status, location] = responses[sent.length - 1] ?? [200];
      return new Response(null, { status, headers: location === undefined ? {} : { location } });
    };
    const init = { method, headers: new Headers({ 'idempotency-key': 'k' }), ...(body === undefined ? {} : { body }) };
    const response = await sendKeyed(send, input, new URL('http://a.test/one'), init, 'idempotency-key', () => left++);
    return { sent, left, status: response.status };
  }

  it.each([
    [301, 'POST', 'GET'],
    [301, 'PUT', 'PUT'],
    [302, 'POST', 'GET'],
    [302, 'PATCH', 'PATCH'],
    [303, 'POST', 'GET'],
    [303, 'PUT', 'GET'],
    [303, 'HEAD', 'HEAD'],
    [303, 'GET', 'GET'],
    [307, 'POST', 'POST'],
    [308, 'PATCH', 'PATCH'],
  ])(
    'after a %i goes on from %s with %s, and with key and body where it stays the same',
    async (status, method, next) => {
      const { sent, left } = await followed([[status, '/two']], { method, body: 'b' });
      const rest = next === method ? 'k b' : 'null -';
      expect([sent, left]).toEqual([[`${method} http://a.test/one k b`, `${next} http://a.test/two ${rest}`], 0]);
    },
  );

  it.each<[number, string | undefined]>([
    [200, '/two'],
    [201, '/two'],
    [300, '/two'],
    [304, '/two'],
    [307, undefined],
    [307, 'http://['],
    [307, 'ftp://a.test/two'],
    [307, 'data:,x'],
  ])('returns a %i that leads to %s unchanged', async (status, location) => {
    const { sent, status: answered } = await followed([location === undefined ? [status] : [status, location]]);
    expect([sent.length, answered]).toEqual([1, status]);
  });

  it('reads a location as UTF-8, as fetch does', async () => {
    const location = Buffer.from('/für').toString('latin1');
    expect((await followed([[307, location]])).sent[1]).toBe('POST http://a.test/f%C3%BCr k -');
  });

  it('leaves the key behind once, and only if it still has one', async () => {
    const away = await followed([
      [307, 'https://b.test/two'],
      [307, 'https://c.test/three'],
    ]);
    expect([away.sent.slice(1), away.left]).toEqual([
      ['POST https://b.test/two null -', 'POST https://c.test/three null -'],
      1,
    ]);
    expect((await followed([[303, 'http://b.test/two']])).left).toBe(0);
  });

  it('does not send the body of a Request a second time, because it has been read', async () => {
    const input = new Request('http://a.test/one', { method: 'POST', body: 'b' });
    await expect(followed([[307, '/two']], { input })).rejects.toThrow('fetch failed');
    const empty = new Request('http://a.test/one', { method: 'POST' });
    expect((await followed([[307, '/two']], { input: empty })).sent).toHaveLength(2);
  });

  it('gives up after twenty', async () => {
    const responses = (count: number) => Array.from({ length: count }, () => [307, '/one'] as const);
    expect((await followed(responses(20))).sent).toHaveLength(21);
    await expect(followed(responses(21))).rejects.toMatchObject({ cause: { message: 'more than 20 redirects' } });
  });

  it.each([
    ['has broken off', () => new ReadableStream({ start: (stream) => stream.error(new Error('broken off')) })],
    ['cannot be cancelled', () => new ReadableStream({ cancel: () => new Promise(() => {}) })],
  ])('cancels the body of a redirect that %s', async (_, body) => {
    const redirect = () => new Response(body(), { status: 307, headers: { location: '/two' } });
    const answers = (count: number) => {
      const responses = [...Array.from({ length: count }, redirect), new Response('here')];
      return createFetch({ policy: pipeline(), fetch: async () => responses.shift()! })('http://a.test/one', post());
    };
    expect(await (await answers(20)).text()).toBe('here');
    await expect(answers(21)).rejects.toMatchObject({ cause: { message: 'more than 20 redirects' } });
  });
});
