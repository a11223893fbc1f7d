/** Responses that are stored and replayed, on both versions of Express and on Fastify. */
import type { ServerResponse } from 'node:http';
import http2 from 'node:http2';
import { connect, type Socket } from 'node:net';
import { Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import Fastify from 'fastify';
import { describe, expect, it } from 'vitest';
import { memoryStore, OptionsError } from '../../../src/index.js';
import { responseCache } from '../../../src/server/express.js';
import { responseCache as fastifyCache } from '../../../src/server/fastify.js';
import { virtualClock } from '../../../src/testing/index.js';
import { viewOf } from '../../coordination/cache/support.ts';
import { deferred } from '../../support/deferred.ts';
import { exchange, headerOf, requestBytes, send, sendAndLeave } from '../idempotency/raw-client.js';
import { comparable, frameworks, type Given, statusOf, World } from './support.ts';

const allBytes = Uint8Array.from({ length: 256 }, (_, index) => index);

describe.each(frameworks)('responseCache of $name', (framework) => {
  const open = (given: Parameters<typeof World.open>[1], service: Parameters<typeof World.open>[2]) =>
    World.open(framework, given, service);

  it('returns what the handler answered once, byte for byte as the bare server does', async () => {
    const answer = {
      status: 203,
      headers: { 'Content-Type': 'application/x-all', 'X-One': '1', Link: ['<a>; rel=a', '<b>; rel=b'], ETag: '"e"' },
      body: allBytes,
    };
    const bare = await framework.bare(() => answer);
    await using world = await open({ ttl: '1m' }, () => answer);
    const expected = comparable(await send(bare.port, { method: 'GET' }));
    await bare.close();
    const first = await world.get();
    const second = await world.get();
    expect(comparable(first)).toEqual(expected);
    expect(comparable(second)).toEqual(expected);
    expect(headerOf(second, 'content-length')).toBe('256');
    expect([world.runs, statusOf(first), headerOf(second, 'age')]).toEqual([1, 'responses; fwd=uri-miss', '0']);
    expect(statusOf(second)).toMatch(/^responses; hit; ttl=(59|60)$/);
    expect(headerOf(second, 'date')).toBeDefined();
  });

  it.each([
    ['text', 'für'],
    ['bytes', Buffer.from('für')],
  ])('returns a header beyond ASCII as the bare server does, before %s', async (_, body) => {
    const answer = { headers: { 'X-Name': 'José' }, body };
    const bare = await framework.bare(() => answer);
    await using world = await open({ ttl: '1m', store: memoryStore() }, () => answer);
    const expected = comparable(await send(bare.port, { method: 'GET' }));
    await bare.close();
    for (let request = 0; request < 2; request++) expect(comparable(await world.get())).toEqual(expected);
    await using other = await open({ ttl: '1m', staleIfError: '1m' }, () => answer);
    expect(comparable(await other.get())).toEqual(expected);
  });

  it('runs one handler for all concurrent requests', async () => {
    await using world = await open({ ttl: '1m', store: memoryStore() }, () => ({ body: 'shared' }));
    // Another request must arrive while it runs, on a busy machine as well.
    world.delayMs = 300;
    const answers = await Promise.all(Array.from({ length: 50 }, () => world.get()));
    expect(new Set(answers.map(({ body }) => body.toString()))).toEqual(new Set(['shared']));
    expect(world.runs).toBe(1);
    expect(answers.map(statusOf)).toContain('responses; fwd=uri-miss; collapsed');
  });

  it.each([
    ['private', { 'cache-control': 'private, max-age=60' }],
    ['private in part', { 'cache-control': 'max-age=60, private="x-user"' }],
    ['no-store', { 'cache-control': 'No-Store' }],
    ['no-cache', { 'cache-control': 'no-cache, max-age=60' }],
    ['max-age=0', { 'cache-control': 'max-age=0' }],
    ['a freshness that cannot be read', { 'cache-control': 'max-age=soon' }],
    ['over by Expires', { expires: '0' }],
    ['older than it may be', { 'cache-control': 'max-age=60', age: '61' }],
    ['with a cookie', { 'cache-control': 'public, max-age=60', 'set-cookie': 'a=1' }],
    ['depending on what nobody knows', { 'cache-control': 'max-age=60', vary: 'accept, *' }],
    ['a stream of events', { 'cache-control': 'max-age=60', 'content-type': 'text/event-stream' }],
  ])('passes each request to the handler if its answer is %s', async (_, headers) => {
    await using world = await open({ ttl: '1m' }, () => ({ headers, body: 'x' }));
    for (let request = 0; request < 3; request++) expect(await world.text()).toBe('x');
    expect(world.runs).toBe(3);
  });

  it('blocks nobody behind an answer that cannot be stored', async () => {
    await using world = await open({ ttl: '1m' }, () => ({ headers: { 'cache-control': 'private' }, body: 'mine' }));
    world.delayMs = 100;
    await Promise.all(Array.from({ length: 20 }, () => world.get()));
    // One request waited for its head, and then all of them were sent at once.
    expect(world.runs).toBe(20);
    expect(statusOf(await world.get())).toBe('responses; fwd=bypass');
  });

  it.each([
    ['text', (response: ServerResponse) => void response.write('x')],
    ['nothing', () => {}],
  ])('passes each request to a handler that adds trailers after %s, announced or not', async (_, begin) => {
    await using world = await open({ ttl: '1m' }, ({ response }) => {
      response.setHeader('Transfer-Encoding', 'chunked');
      begin(response);
      response.addTrailers({ 'X-Checksum': '1f' });
      response.end('y');
      return undefined;
    });
    for (let request = 0; request < 2; request++) {
      expect((await world.get()).trailers).toEqual([['X-Checksum', '1f']]);
    }
    expect(world.runs).toBe(2);
  });

  it('stores statuses without a stated lifetime only if that is usual, and never a failure', async () => {
    await using world = await open({ ttl: '1m' }, ({ url }) => ({ status: Number(url.slice(1)), body: 'x' }));
    for (const status of [200, 404, 410, 301, 400, 403, 201, 500, 503, 429]) {
      world.runs = 0;
      for (let request = 0; request < 3; request++) expect((await world.get(`/${status}`)).status).toBe(status);
      expect(world.runs, `${status}`).toBe([200, 404, 410, 301].includes(status) ? 1 : 3);
    }
  });

  it('uses the freshness that the answer states: s-maxage, then max-age, then Expires', async () => {
    const clock = virtualClock();
    const soon = new Date(clock.wallNow() + 30_000).toUTCString();
    const stated: Readonly<Record<string, Record<string, string>>> = {
      '/shared': { 'cache-control': 'max-age=5, s-maxage=30' },
      '/aged': { 'cache-control': 'max-age=60', age: '30' },
      '/expires': { expires: soon, date: new Date(clock.wallNow()).toUTCString() },
      '/said': { 'cache-control': 'max-age=30' },
    };
    await using world = await open({ ttl: '1h', clock }, ({ url }) => ({ headers: stated[url]!, body: 'x' }));
    for (const path of Object.keys(stated)) await world.get(path);
    await clock.advance(29_000);
    for (const path of Object.keys(stated)) await world.get(path);
    expect(world.runs).toBe(4);
    expect(headerOf(await world.get('/aged'), 'age')).toBe('59');
    expect(headerOf(await world.get('/said'), 'date')).toBe(new Date(clock.wallNow() - 29_000).toUTCString());
    await clock.advance(1_100);
    for (const path of Object.keys(stated)) await world.get(path);
    expect(world.runs).toBe(8);
  });

  it('separates the variants that Vary names, and loads each once', async () => {
    await using world = await open({ ttl: '1m', store: memoryStore() }, ({ headers }) => ({
      headers: { vary: 'Accept-Language, constructor' },
      body: String(headers['accept-language']),
    }));
    world.delayMs = 20;
    const languages = ['de', 'en', 'fr'];
    for (let round = 0; round < 3; round++) {
      const answers = await Promise.all(
        [...languages, ...languages].map((language) => world.text('/', { 'accept-language': language })),
      );
      expect(answers).toEqual([...languages, ...languages]);
    }
    expect(await world.text('/', { constructor: 'x', 'accept-language': 'de' })).toBe('de');
    expect(world.runs).toBe(4);
  });

  it('follows an answer that depends on more than before', async () => {
    let vary = 'x-a';
    await using world = await open({ ttl: '1m' }, ({ headers }) => ({
      headers: { vary },
      body: `${headers['x-a']} ${headers['x-b']}`,
    }));
    expect(await world.text('/', { 'x-a': '1', 'x-b': '1' })).toBe('1 1');
    vary = 'x-a, x-b';
    expect(await world.text('/', { 'x-a': '2', 'x-b': '1' })).toBe('2 1');
    expect(await world.text('/', { 'x-a': '2', 'x-b': '2' })).toBe('2 2');
    expect(await world.text('/', { 'x-a': '2', 'x-b': '1' })).toBe('2 1');
    expect(await world.text('/', { 'x-a': '1', 'x-b': '1' })).toBe('1 1');
  });

  it('succeeds if another process knows more of what an answer depends on, and gives up after four steps', async () => {
    const names = ['x-a', 'x-b', 'x-c', 'x-d'];
    const store = memoryStore();
    let depends = 1;
    const service: Parameters<typeof World.open>[2] = ({ headers }) => ({
      headers: { vary: names.slice(0, depends).join(', ') },
      body: names.map((name) => headers[name] ?? '-').join(''),
    });
    const another = () => open({ ttl: '1m', store: viewOf(store) }, service);
    await using knowing = await another();
    await using second = await another();
    await using third = await another();
    const ask = (one: World, values: string) =>
      one.get('/', Object.fromEntries([...values].map((value, index) => [names[index]!, value])));
    for (const values of ['1', '21', '221']) {
      depends = values.length;
      expect((await ask(knowing, values)).body.toString()).toBe(values.padEnd(4, '-'));
    }
    depends = 4;
    const loading = await ask(second, '2221');
    expect([loading.body.toString(), statusOf(loading)]).toEqual(['2221', 'responses; fwd=vary-miss']);
    const lost = await ask(third, '2222');
    expect([lost.body.toString(), statusOf(lost)]).toEqual(['2222', 'responses; fwd=bypass']);
  });

  it('gives no answer without credentials to a request with them, nor the reverse, and shares what allows it', async () => {
    await using world = await open({ ttl: '1m' }, ({ url, headers }) => ({
      headers: { 'cache-control': `max-age=60, ${url.slice(1)}` },
      body: String(headers.authorization ?? headers.cookie ?? 'nobody'),
    }));
    expect(await world.text('/mine', { authorization: 'alice' })).toBe('alice');
    expect(await world.text('/mine')).toBe('nobody');
    expect(await world.text('/mine', { authorization: 'bob' })).toBe('bob');
    expect(await world.text('/mine', { cookie: 'session=1' })).toBe('session=1');
    expect(await world.text('/mine')).toBe('nobody');
    expect(world.runs).toBe(4);
    for (const word of ['public', 's-maxage=60']) {
      expect(await world.text(`/${word}`, { authorization: 'alice' })).toBe('alice');
      expect(await world.text(`/${word}`, { cookie: 'session=1' })).toBe('alice');
    }
    expect(world.runs).toBe(6);
    // A directive about stale answers does not say that they may be shared.
    for (const name of ['authorization', 'cookie']) {
      expect(await world.text('/must-revalidate', { [name]: `alice's ${name}` })).toBe(`alice's ${name}`);
      expect(await world.text('/must-revalidate', { [name]: `bob's ${name}` })).toBe(`bob's ${name}`);
    }
  });

  it('answers 304 to a client that has the current version, from the handler and from the cache', async () => {
    await using world = await open({ ttl: '1m' }, () => ({
      headers: { etag: 'W/"7"', 'last-modified': 'Tue, 01 Sep 2026 00:00:00 GMT', 'x-more': '1' },
      body: 'whole',
    }));
    for (const request of [1, 2, 3]) {
      const answer = await world.get('/', { 'if-none-match': '"6", "7"' });
      expect([request, answer.status, answer.body.length, headerOf(answer, 'etag')]).toEqual([
        request,
        304,
        0,
        'W/"7"',
      ]);
      expect(headerOf(answer, 'content-type')).toBeUndefined();
    }
    expect(world.runs).toBe(1);
    expect(await world.text()).toBe('whole');
    expect(await world.text('/', { 'if-none-match': '"8"' })).toBe('whole');
    expect((await world.get('/', { 'if-modified-since': 'Tue, 01 Sep 2026 00:00:00 GMT' })).status).toBe(304);
    expect(await world.text('/', { 'if-modified-since': 'Mon, 31 Aug 2026 00:00:00 GMT' })).toBe('whole');
    expect(world.runs).toBe(1);
  });

  it('answers HEAD from the GET, which it loads if there is none', async () => {
    await using world = await open({ ttl: '1m' }, () => ({ headers: { 'x-one': '1' }, body: 'four' }));
    const head = await world.get('/', {}, { method: 'HEAD' });
    expect([head.status, head.body.length, headerOf(head, 'content-length'), headerOf(head, 'x-one')]).toEqual([
      ...[200, 0, '4', '1'],
    ]);
    expect(statusOf(head)).toBe('responses; fwd=uri-miss; collapsed');
    expect(await world.text()).toBe('four');
    expect(world.runs).toBe(1);
  });

  it.each([200, 500])(
    'ends a request of its own whose answer, a stream with status %i, is not stored',
    async (status) => {
      let streams = 0;
      await using world = await open({ ttl: '1m' }, ({ response }) => {
        streams++;
        response.on('close', () => streams--);
        response.writeHead(status, { 'Content-Type': 'text/event-stream' });
        response.write('data: 1\n\n');
        return undefined;
      });
      const leaving = sendAndLeave(world.port, requestBytes({ method: 'HEAD' }), { afterReceived: 1 });
      await expect.poll(() => world.seen.map(({ response }) => response.req.method)).toEqual(['GET', 'HEAD']);
      await expect.poll(() => streams).toBe(1);
      world.seen[1]!.response.end();
      await leaving;
      await expect.poll(() => streams).toBe(0);
    },
  );

  it('serves the old answer while one internal request refreshes it, without a client', async () => {
    const clock = virtualClock();
    let version = 1;
    await using world = await open(
      { ttl: '10s', staleWhileRevalidate: '1m', clock, store: memoryStore({ clock }) },
      () => ({
        body: `v${version}`,
      }),
    );
    expect(await world.text('/x?a=1', { 'x-tenant': 't', 'if-none-match': '"0"' })).toBe('v1');
    version = 2;
    await clock.advance(11_000);
    const ofOneClient = { 'cache-control': 'max-age=0', 'idempotency-key': 'k', te: 'trailers' };
    const stale = await world.get('/x?a=1', { 'x-tenant': 't', ...ofOneClient });
    await expect.poll(() => world.runs).toBe(2);
    expect([stale.body.toString(), statusOf(stale)]).toEqual(['v1', 'responses; hit; ttl=-1']);
    const { url, headers } = world.seen[1]!;
    expect([url, headers['x-tenant'], headers['if-none-match'], headers.host]).toEqual([
      '/x?a=1',
      't',
      undefined,
      'test',
    ]);
    for (const name of Object.keys(ofOneClient)) expect(headers[name]).toBeUndefined();
    await expect.poll(() => world.text('/x?a=1')).toBe('v2');
    expect(world.runs).toBe(2);
  });

  it('refreshes what is piped, however long, and what ends within one tick', async () => {
    const clock = virtualClock();
    let version = 1;
    await using world = await open({ ttl: '10s', staleWhileRevalidate: '1m', clock }, ({ url, response }) => {
      response.setHeader('Content-Type', 'text/plain');
      const chunks = Array.from({ length: url === '/long' ? 40 : 1 }, () => `v${version}`.padEnd(16_384, '.'));
      if (url === '/later') response.write(chunks[0]!.repeat(20));
      if (url === '/tick') process.nextTick(() => response.end(chunks[0]));
      else setImmediate(() => Readable.from(chunks).pipe(response));
      return undefined;
    });
    const lengths = { '/piped': 16_384, '/tick': 16_384, '/long': 40 * 16_384, '/later': 21 * 16_384 };
    for (const [url, length] of Object.entries(lengths)) {
      const shown = async () => {
        const text = await world.text(url);
        return [text.slice(0, 3), text.length];
      };
      version = 1;
      expect(await shown()).toEqual(['v1.', length]);
      version = 2;
      await clock.advance(11_000);
      expect(await shown()).toEqual(['v1.', length]);
      await expect.poll(shown).toEqual(['v2.', length]);
    }
    expect(world.runs).toBe(8);
  });

  it('serves the old answer in place of a failure as long as the options say, and not if it must not', async () => {
    const clock = virtualClock();
    let status = 200;
    await using world = await open({ ttl: '10s', staleIfError: '1m', clock }, ({ url }) => ({
      status,
      headers: {
        'x-how': `${status}`,
        ...(url === '/strict' ? { 'cache-control': 'max-age=10, must-revalidate' } : {}),
      },
      body: `body ${status}`,
    }));
    for (const path of ['/', '/strict']) await world.get(path);
    status = 503;
    await clock.advance(11_000);
    const stale = await world.get('/');
    expect([stale.status, headerOf(stale, 'x-how'), stale.body.toString()]).toEqual([200, '200', 'body 200']);
    expect(await world.text('/strict')).toBe('body 503');
    const { runs } = world;
    // A handler that has just failed is not called again.
    expect(await world.text('/')).toBe('body 200');
    expect(world.runs).toBe(runs);
    await clock.advance(60_000);
    const failed = await world.get('/');
    expect([failed.status, headerOf(failed, 'x-how'), failed.body.toString()]).toEqual([503, '503', 'body 503']);
    status = 200;
    await clock.advance(60_000);
    expect(await world.text('/')).toBe('body 200');
  });

  it('lets requests that waited for a failure run the handler themselves', async () => {
    await using world = await open({ ttl: '1m' }, ({ headers }) => ({
      status: headers['x-bad'] === '1' ? 500 : 200,
      body: String(headers['x-bad']),
    }));
    world.delayMs = 300;
    const bad = world.get('/', { 'x-bad': '1' });
    await expect.poll(() => world.runs, { interval: 5 }).toBe(1);
    const others = await Promise.all([2, 3].map((one) => world.get('/', { 'x-bad': `${one}` })));
    expect((await bad).status).toBe(500);
    expect(others.map(({ status, body }) => [status, body.toString()])).toEqual([
      [200, '2'],
      [200, '3'],
    ]);
  });

  it('passes a stream on as it is written, and stores what is not too long', async () => {
    const { resolve, promise } = deferred<void>();
    await using world = await open({ ttl: '1m', maxBodyBytes: 20 }, async ({ url, response }) => {
      response.writeHead(200, { 'Content-Type': 'text/plain' });
      response.write('first,');
      if (url === '/slow') await promise;
      response.end(url === '/long' ? 'x'.repeat(1_000) : 'last');
      return undefined;
    });
    let got = '';
    const socket = connect(world.port, '127.0.0.1');
    socket.on('data', (chunk) => (got += chunk));
    socket.write(requestBytes({ method: 'GET', path: '/slow' }));
    await expect.poll(() => got).toContain('first,');
    expect(got).not.toContain('last');
    resolve();
    await expect.poll(() => got).toContain('last');
    expect(await world.text('/slow')).toBe('first,last');
    expect(world.runs).toBe(1);
    for (let request = 0; request < 2; request++) expect((await world.get('/long')).body.length).toBe(1_006);
    expect(world.runs).toBe(3);
  });

  it('continues for the others when the client whose handler runs has disconnected', async () => {
    await using world = await open({ ttl: '1m' }, () => ({ body: 'for all' }));
    world.delayMs = 100;
    const leaving = sendAndLeave(world.port, requestBytes({ method: 'GET' }), { afterSent: 1_000 });
    await expect.poll(() => world.runs).toBe(1);
    const other = world.text();
    await leaving;
    expect([await other, await world.text(), world.runs]).toEqual(['for all', 'for all', 1]);
  });

  it('continues for the others in the middle of an answer, too, as long as its handler does', async () => {
    const clock = virtualClock();
    let response: ServerResponse | undefined;
    await using world = await open({ ttl: '1m', clock }, (asked) => {
      ({ response } = asked);
      response.write('a');
      return undefined;
    });
    await sendAndLeave(world.port, requestBytes({ method: 'GET' }), { afterReceived: 1 });
    const other = world.text();
    await expect.poll(() => response!.socket?.destroyed).toBe(true);
    for (const part of ['b', 'c', 'd']) {
      await clock.advance(900);
      response!.write(part);
    }
    response!.end();
    expect([await other, await world.text(), world.runs]).toEqual(['abcd', 'abcd', 1]);
  });

  it('does not let the others wait for a slow client whose handler pipes a stream', async () => {
    const parts = Array.from({ length: 500 }, (_, index) => `${index}`.padStart(1_000));
    const socket = deferred<Socket>();
    await using world = await open({ ttl: '1m' }, ({ response }) => {
      // Nothing goes out to the client, as if it did not read.
      response.socket!.cork();
      socket.resolve(response.socket!);
      Readable.from(parts).pipe(response);
      return undefined;
    });
    const slow = world.text();
    const reading = await socket.promise;
    expect(await world.text()).toBe(parts.join(''));
    reading.uncork();
    expect([await slow, world.runs]).toEqual([parts.join(''), 1]);
  });

  it('leaves the others to their own handlers if a handler stops when its client disconnects', async () => {
    const clock = virtualClock();
    await using world = await open({ ttl: '1m', hardTimeout: '1d', clock }, ({ response }) => {
      if (world.runs > 1) return { body: 'whole' };
      response.write('part');
      return undefined;
    });
    await sendAndLeave(world.port, requestBytes({ method: 'GET' }), { afterReceived: 1 });
    const other = world.text();
    await expect.poll(() => clock.advance(1_000).then(() => world.runs)).toBe(2);
    expect([await other, await world.text()]).toEqual(['whole', 'whole']);
  });

  it('drops what is invalidated by a tag, even while it is being loaded', async () => {
    let version = 1;
    await using world = await open({ ttl: '1m', store: memoryStore(), tags: () => ['news'] }, async () => {
      const seen = version;
      await sleep(30);
      return { body: `v${seen}` };
    });
    expect(await world.text()).toBe('v1');
    version = 2;
    await world.control.invalidateTag('news');
    const during = world.text();
    await expect.poll(() => world.runs).toBe(2);
    version = 3;
    await world.control.invalidateTag('news');
    await during;
    expect(await world.text()).toBe('v3');
  });

  describe('when a POST was answered', () => {
    const post = (world: World, path: string) => world.get(path, {}, { method: 'POST' });

    /** Names the run that made it. A POST is answered as its URL says. */
    const numbered = (given: Parameters<typeof open>[0] = {}) => {
      let version = 1;
      return open({ ttl: '1m', ...given }, ({ url, headers, response }) => {
        const isPost = response.req.method === 'POST';
        if (isPost) version++;
        return {
          status: isPost && url === '/refused' ? 400 : 200,
          headers: { 'cache-control': 'public, max-age=60', vary: 'accept' },
          body: `${headers.accept ?? 'plain'} ${version}`,
        };
      });
    };

    it.each([
      ['in memory alone', () => ({})],
      ['before a store', () => ({ store: memoryStore() })],
    ])('invalidates the responses of its URL, in all variants, %s', async (_, given) => {
      await using world = await numbered(given());
      const ask = async (path = '/') => [
        await world.text(path),
        await world.text(path, { accept: 'a' }),
        await world.text(path, { accept: 'b', cookie: 'c' }),
        await world.text(path, { accept: 'c', cookie: 'c' }),
      ];
      expect(await ask()).toEqual(['plain 1', 'a 1', 'b 1', 'c 1']);
      expect(await world.text('/other')).toBe('plain 1');
      await post(world, '/');
      expect(await ask()).toEqual(['plain 2', 'a 2', 'b 2', 'c 2']);
      expect([await ask(), await world.text('/other')]).toEqual([['plain 2', 'a 2', 'b 2', 'c 2'], 'plain 1']);
    });

    it('knows a variant that was refreshed afterwards', async () => {
      const clock = virtualClock();
      await using world = await numbered({ clock, staleWhileRevalidate: '1h' });
      const read = () => world.text('/', { accept: 'a' });
      expect([await world.text(), await read()]).toEqual(['plain 1', 'a 1']);
      await clock.advance(60_000);
      expect(await read()).toBe('a 1');
      await expect.poll(() => world.runs).toBe(3);
      await expect.poll(async () => statusOf(await world.get('/', { accept: 'a' }))).toContain('ttl=60');
      await post(world, '/');
      expect(await read()).toBe('a 2');
    });

    it('keeps the responses if it was refused, or if the options say so', async () => {
      await using world = await numbered();
      expect(await world.text('/refused')).toBe('plain 1');
      await post(world, '/refused');
      expect(await world.text('/refused')).toBe('plain 1');
      await using ignoring = await numbered({ onUnsafe: 'ignore' });
      expect(await ignoring.text()).toBe('plain 1');
      await post(ignoring, '/');
      expect(await ignoring.text()).toBe('plain 1');
    });

    it('invalidates even if its client has not waited for the answer', async () => {
      await using world = await numbered();
      expect(await world.text()).toBe('plain 1');
      world.delayMs = 50;
      await sendAndLeave(world.port, requestBytes({ method: 'POST' }), { afterSent: 1_000 });
      await expect.poll(() => world.text()).toBe('plain 2');
    });

    it('does not store what was being loaded meanwhile', async () => {
      let version = 1;
      const slow = deferred();
      await using world = await open({ ttl: '1m', store: memoryStore() }, async ({ response }) => {
        if (response.req.method === 'POST') return { body: `${++version}` };
        const seen = version;
        if (seen === 1) await slow.promise;
        return { body: `${seen}` };
      });
      const before = [world.text(), world.text()];
      await expect.poll(() => world.runs).toBe(1);
      await post(world, '/');
      slow.resolve(undefined);
      expect([...(await Promise.all(before)), await world.text()]).toEqual(['1', '1', '2']);
    });

    it('lets no request join a running load of a variant, but lets them join loads of another URL', async () => {
      let version = 1;
      const slow = deferred();
      await using world = await open({ ttl: '1m' }, async ({ url, headers, response }) => {
        if (response.req.method === 'POST') return { body: `${++version}` };
        const seen = version;
        if (seen === 1 && (headers.accept === 'slow' || url === '/other')) await slow.promise;
        return { headers: { vary: 'accept', 'cache-control': 'public, max-age=60' }, body: `${seen}` };
      });
      const cookie = 'c=1';
      expect([await world.text(), await world.text('/', { cookie })]).toEqual(['1', '1']);
      const before = [
        world.text('/', { accept: 'slow' }),
        world.text('/', { accept: 'slow', cookie }),
        world.text('/other'),
      ];
      const runs = world.runs + 3;
      await expect.poll(() => world.runs).toBe(runs);
      await post(world, '/');
      expect(await world.text('/', { accept: 'slow' })).toBe('2');
      expect(await world.text('/', { accept: 'slow', cookie })).toBe('2');
      const joining = world.text('/other');
      // This gives the request before it time to arrive.
      for (const path of ['/third', '/fourth']) expect(await world.text(path)).toBe('2');
      const runsBefore = world.runs;
      slow.resolve(undefined);
      expect([...(await Promise.all(before)), await joining, world.runs]).toEqual(['1', '1', '1', '1', runsBefore]);
      expect(world.seen.filter(({ url }) => url === '/other')).toHaveLength(1);
    });

    it('invalidates as soon as the head of the answer is known', async () => {
      let version = 1;
      const slow = deferred();
      await using world = await open({ ttl: '1m' }, async ({ response }) => {
        if (response.req.method !== 'POST') return { body: `${version}` };
        version++;
        response.writeHead(200);
        response.write('begun');
        await slow.promise;
        response.end();
        return undefined;
      });
      expect(await world.text()).toBe('1');
      const posting = post(world, '/');
      await expect.poll(() => world.text()).toBe('2');
      slow.resolve(undefined);
      expect((await posting).body.toString()).toBe('begun');
    });

    it('reports that the store did not accept it, and breaks nothing', async () => {
      const broken = () => Promise.reject(new Error('down'));
      await using world = await numbered({ store: { read: broken, write: broken, remove: broken } });
      expect((await post(world, '/')).body.toString()).toBe('plain 2');
      await expect
        .poll(() => world.events)
        .toContainEqual(expect.objectContaining({ type: 'cache-warning', reason: 'not-invalidated', key: '/' }));
    });
  });

  it('answers and stores nothing if the tags of an answer cannot be determined', async () => {
    const tags = () => {
      throw new Error('no tags');
    };
    await using world = await open({ ttl: '1m', tags }, () => ({ body: 'here' }));
    world.delayMs = 50;
    expect(await Promise.all([world.text(), world.text()])).toEqual(['here', 'here']);
    expect([await world.text(), world.runs]).toEqual(['here', 3]);
  });

  it('fails a request with an invalid key, and tells the framework why', async () => {
    const key = ({ url }: { url: string }) => {
      if (url === '/throws') throw new Error('no key');
      return 5 as never;
    };
    await using world = await open({ ttl: '1m', key }, () => ({ body: 'here' }));
    for (const path of ['/throws', '/number']) {
      const answer = await world.get(path);
      expect([answer.status, world.runs]).toEqual([500, 0]);
      expect(answer.body.toString()).toContain(path === '/throws' ? 'no key' : 'key(request) must give a string');
    }
  });

  it('answers a request even if its key can no longer be determined later', async () => {
    let keys = 0;
    const given = {
      ttl: '1m',
      key: () => {
        // The second request asks for its key again, for the variant that it wants.
        if (++keys > 2) throw new Error('no key');
        return 'key';
      },
    } as const;
    await using world = await open(given, ({ headers }) => ({ headers: { vary: 'x' }, body: `${headers.x}` }));
    expect(await world.text('/', { x: 'a' })).toBe('a');
    const answer = await world.get('/', { x: 'b' });
    expect([answer.body.toString(), statusOf(answer)]).toEqual(['b', 'responses; fwd=bypass']);
  });

  it('takes its own request for failed when its key cannot be told once more', async () => {
    const clock = virtualClock();
    // The sixth key belongs to its own request, which is asked for the key of its URL after its own.
    let keysLeft = 5;
    const given: Given = {
      ...{ ttl: '10s', staleWhileRevalidate: '1h', jitter: 0, clock },
      key: () => {
        if (--keysLeft < 0) throw new Error('no key');
        return 'key';
      },
    };
    await using world = await open(given, ({ headers }) => ({ headers: { vary: 'x' }, body: `${headers.x}` }));
    for (const x of ['a', 'b']) expect(await world.text('/', { x })).toBe(x);
    await clock.advance(11_000);
    expect(await world.text('/', { x: 'b' })).toBe('b');
    const failures = () =>
      world.events.map((event) => event.type === 'cache-load' && !event.outcome.ok && event.outcome.error);
    await expect.poll(failures).toContainEqual(new Error('no key'));
  });

  it('says how long a body is that a HEAD does not bring, though its handler did not', async () => {
    await using world = await open({ ttl: '1m' }, ({ response }) => {
      response.write('in ');
      response.end('parts');
      return undefined;
    });
    expect(headerOf(await world.get(), 'content-length')).toBeUndefined();
    const head = await world.get('/', {}, { method: 'HEAD' });
    expect([headerOf(head, 'content-length'), world.runs]).toEqual(['8', 1]);
  });

  it('closes its own request if the handler takes too long', async () => {
    const clock = virtualClock();
    let closes = 0;
    const given = { ttl: '10s', staleWhileRevalidate: '1h', hardTimeout: '5s', clock } as const;
    await using world: World = await open(given, ({ response }) => {
      if (world.runs === 1) return { body: 'old' };
      response.once('close', () => closes++);
      return new Promise(() => {});
    });
    expect(await world.text()).toBe('old');
    await clock.advance(11_000);
    expect(await world.text()).toBe('old');
    await expect.poll(() => world.runs).toBe(2);
    expect(closes).toBe(0);
    await clock.advance(5_000);
    await expect.poll(() => closes).toBe(1);
    expect(await world.text()).toBe('old');
  });

  it('lets at most maxConcurrentLoads handlers run at once', async () => {
    let running = 0;
    let most = 0;
    await using world = await open({ ttl: '1m', maxConcurrentLoads: 2 }, async ({ url }) => {
      most = Math.max(most, ++running);
      await sleep(5);
      running--;
      return { body: url };
    });
    const paths = Array.from({ length: 6 }, (_, index) => `/${index}`);
    expect(await Promise.all(paths.map((path) => world.text(path)))).toEqual(paths);
    expect([most, world.runs]).toEqual([2, 6]);
  });

  it.each(['breaks off', 'ends too soon'])('breaks nothing when an answer %s, and keeps nothing of it', async (how) => {
    await using world = await open({ ttl: '1m' }, ({ response }) => {
      response.writeHead(200, { 'content-length': '100' });
      if (how === 'breaks off') {
        response.write('half');
        setTimeout(() => response.destroy(), 5);
      } else response.end('half');
      return undefined;
    });
    for (let request = 0; request < 2; request++) {
      expect(String(await exchange(world.port, requestBytes({ method: 'GET' })))).toMatch(/half$/);
    }
    expect(world.runs).toBe(2);
  });

  it('passes everything to the handlers when it is closed, and when its store fails', async () => {
    const broken = () => Promise.reject(new Error('down'));
    await using world = await open({ ttl: '1m', store: { read: broken, write: broken, remove: broken } }, () => ({
      body: 'here',
    }));
    expect([await world.text('/1'), await world.text('/2')]).toEqual(['here', 'here']);
    await world.control.close();
    expect([await world.text('/1'), await world.text('/1')]).toEqual(['here', 'here']);
    expect(world.runs).toBe(4);
  });

  describe('is not poisoned by', () => {
    const echo = { ttl: '1m' as const };

    it.each(['x-forwarded-host', 'x-forwarded-proto', 'x-original-url', 'x-rewrite-url'])(
      '%s, which many handlers read',
      async (name) => {
        await using world = await open(echo, ({ headers }) => ({ body: String(headers[name]) }));
        expect(await world.text('/', { [name]: 'evil' })).toBe('evil');
        expect(await world.text('/')).toBe('undefined');
      },
    );

    it('another host', async () => {
      await using world = await open(echo, ({ headers }) => ({ body: String(headers.host) }));
      const bytes = (host: string) => Buffer.from(`GET / HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n\r\n`);
      for (const host of ['evil.test', 'good.test', 'good.test:81']) {
        expect(String(await exchange(world.port, bytes(host)))).toMatch(new RegExp(`${host}$`));
      }
    });

    it('an allowed origin or an encoding that Vary does not name', async () => {
      await using world = await open(echo, ({ headers, url }) => ({
        headers:
          url === '/cors'
            ? { 'access-control-allow-origin': String(headers.origin) }
            : { 'content-encoding': String(headers['accept-encoding']) },
        body: String(headers.origin ?? headers['accept-encoding']),
      }));
      expect(await world.text('/cors', { origin: 'https://evil.test' })).toContain('evil');
      expect(await world.text('/cors', { origin: 'https://good.test' })).toContain('good');
      expect(await world.text('/coded', { 'accept-encoding': 'br' })).toBe('br');
      expect(await world.text('/coded', { 'accept-encoding': 'gzip' })).toBe('gzip');
    });

    it('an encoding, if only encoded answers say what they depend on, in any order of clients', async () => {
      const accepted = ['gzip', 'br', 'identity'];
      const orders = accepted.flatMap((a) => accepted.flatMap((b) => accepted.map((c) => [a, b, c])));
      await using world = await open({ ...echo, store: memoryStore() }, ({ headers }) => {
        const encoding = String(headers['accept-encoding']);
        if (encoding === 'identity') return { body: 'plain' };
        return { headers: { 'content-encoding': encoding, vary: 'accept-encoding' }, body: encoding };
      });
      for (const [index, order] of orders.entries()) {
        for (const encoding of [...order, ...order]) {
          const answer = await world.get(`/${index}`, { 'accept-encoding': encoding });
          expect([undefined, encoding]).toContain(headerOf(answer, 'content-encoding'));
          expect(answer.body.toString()).toBe(headerOf(answer, 'content-encoding') ?? 'plain');
        }
      }
    });

    it('paths and queries that look alike', async () => {
      await using world = await open(echo, ({ url }) => ({ body: url }));
      const paths = ['/a/b', '/a%2Fb', '/a%2fb', '/a/./b', '/a//b', '/A/b', '/a/b?', '/a/b?x=1&y=2', '/a/b?y=2&x=1'];
      const odd = ['/__proto__', '/constructor', '/a/b?__proto__=1', '/a/b?x=1%26y=2', `/${'l'.repeat(2_000)}`];
      for (const path of [...paths, ...odd, ...paths, ...odd]) expect(await world.text(path)).toBe(path);
      expect(world.runs).toBe(paths.length + odd.length);
    });

    it('another method, a part, or a GET with a body', async () => {
      await using world = await open(echo, ({ headers }) => ({
        body: String(headers['x-http-method-override'] ?? headers.range ?? headers['content-length'] ?? 'plain'),
      }));
      expect(
        (
          await world.get('/', {}, { method: 'POST', body: 'x', headers: [['Content-Type', 'text/plain']] })
        ).body.toString(),
      ).toBe('1');
      expect(await world.text('/', { 'x-http-method-override': 'DELETE' })).toBe('DELETE');
      expect(await world.text('/', { range: 'bytes=0-1' })).toBe('bytes=0-1');
      expect((await world.get('/', {}, { body: 'xx' })).body.toString()).toMatch(/2|plain/);
      expect(await world.text()).toBe('plain');
      expect(await world.text('/', { range: 'bytes=0-1' })).toBe('bytes=0-1');
    });

    it('requests that forbid storing', async () => {
      await using world = await open(echo, () => ({ body: 'x' }));
      for (let request = 0; request < 2; request++) await world.get('/', { 'cache-control': 'no-store' });
      expect(world.runs).toBe(2);
      // A reload by one client does not make the others load.
      for (let request = 0; request < 2; request++) await world.get('/', { 'cache-control': 'no-cache, max-age=0' });
      expect(world.runs).toBe(3);
    });
  });
});

describe('responseCache', () => {
  it.each([
    [{ tl: 1 }, 'did you mean "ttl"'],
    [{ ttl: '5 sec' }, 'a duration'],
    [{ store: {} }, 'a store such as memoryStore()'],
    [{ maxBodyBytes: -1 }, 'an integer'],
    [{ tags: ['a'] }, 'a function'],
    [{ softTimeout: 5 }, 'unknown option "softTimeout"'],
    [{ max: 0 }, 'from 1 to'],
    [{ onUnsafe: 'drop' }, 'invalidate'],
    [{ name: '' }, '1 to 200 characters'],
  ])('refuses the options %j at once', async (options, message) => {
    expect(() => responseCache(options as never)).toThrow(OptionsError);
    expect(() => responseCache(options as never)).toThrow(message);
    await expect(Fastify().register(fastifyCache, options as never)).rejects.toThrow(message);
  });

  it('stores no more bytes in memory than allowed', async () => {
    const body = 'x'.repeat(2_000);
    for (const [maxBytes, runs] of [
      [1_024, 2],
      [10_000, 1],
    ] as const) {
      await using world = await World.open(frameworks[0]!, { ttl: '1m', maxBytes }, () => ({ body }));
      for (let time = 0; time < 2; time++) expect(await world.text()).toBe(body);
      expect(world.runs).toBe(runs);
    }
  });

  it('answers the waiters for a variant while what its URL depends on is forgotten', async () => {
    const held = deferred<void>();
    const given = { ttl: '1m', max: 1, store: memoryStore() } as const;
    await using world = await World.open(frameworks[0]!, given, async ({ url, headers }) => {
      if (url === '/1' && headers.x === 'b') await held.promise;
      return { headers: { vary: 'x' }, body: `${url} ${headers.x}` };
    });
    await world.text('/1', { x: 'a' });
    const waiting = [1, 2, 3].map(() => world.get('/1', { x: 'b' }));
    await expect.poll(() => world.runs).toBe(2);
    await world.text('/2', { x: 'a' });
    held.resolve();
    for (const { status, body } of await Promise.all(waiting)) expect([status, body.toString()]).toEqual([200, '/1 b']);
  });

  it('invalidates each response of a URL once for a POST to it, and none once it is closed', async () => {
    const store = memoryStore();
    const removed: string[] = [];
    const view = {
      ...viewOf(store),
      remove: (key: string, options?: Parameters<typeof store.remove>[1]) => {
        removed.push(key);
        return store.remove(key, options);
      },
    };
    await using world = await World.open(frameworks[0]!, { ttl: '1m', store: view }, () => ({ body: 'here' }));
    await world.text();
    await world.get('/', {}, { method: 'POST' });
    await expect.poll(() => removed.length).toBeGreaterThan(1);
    expect(removed.length).toBe(new Set(removed).size);
    removed.length = world.events.length = 0;
    await world.control.close();
    expect((await world.get('/', {}, { method: 'POST' })).status).toBe(200);
    await new Promise(setImmediate);
    expect([removed, world.events]).toEqual([[], []]);
  });

  it('remembers the dependencies of so many URLs, the most recent, and looks these up directly', async () => {
    const given = { ttl: '1m', max: 2, store: memoryStore() } as const;
    await using world = await World.open(frameworks[0]!, given, ({ url, headers }) => ({
      headers: url.startsWith('/plain') ? {} : { vary: 'x' },
      body: `${url} ${headers.x}`,
    }));
    /** How often the cache is searched for the second variant: twice, unless it remembers what the response depends on. */
    const looks = async (url: string) => {
      world.events.length = 0;
      expect(await world.text(url, { x: 'b' })).toBe(`${url} b`);
      return world.events.filter(({ type }) => type === 'cache-get').length;
    };
    for (const url of ['/1', '/2', '/3']) for (const x of ['a', 'b']) await world.text(url, { x });
    expect(await looks('/1')).toBe(2);
    expect([await looks('/1'), await looks('/3')]).toEqual([1, 1]);
    // A response that depends on nothing takes no extra place.
    for (const url of ['/plain1', '/plain2', '/plain3']) await world.text(url, { x: 'b' });
    expect([await looks('/1'), await looks('/3')]).toEqual([1, 1]);
    expect([await looks('/2'), await looks('/3'), await looks('/1')]).toEqual([2, 1, 2]);
  });

  it('notices the writes of separate Fastify routes', async () => {
    await using app = Fastify();
    await app.register(fastifyCache, { ttl: '1m' });
    let version = 1;
    app.get('/one', async () => `${version}`);
    app.delete('/one', async () => `${++version}`);
    app.put('/one', { config: { responseCache: false } }, async () => `${++version}`);
    const read = async () => (await app.inject('/one')).body;
    expect(await read()).toBe('1');
    await app.inject({ method: 'DELETE', url: '/one' });
    expect(await read()).toBe('2');
    await app.inject({ method: 'PUT', url: '/one' });
    expect(await read()).toBe('2');
  });

  it('stores over HTTP/2, where no header need announce the body of a GET, a response to a request without one', async () => {
    await using app = Fastify({ http2: true });
    await app.register(fastifyCache, { ttl: '1m' });
    let runs = 0;
    app.get('/', async () => `${++runs}`);
    const session = http2.connect(await app.listen({ port: 0, host: '127.0.0.1' }));
    const get = async (body?: string) => {
      const stream = session.request({ ':path': '/' }, { endStream: body === undefined });
      if (body !== undefined) stream.end(body);
      let text = '';
      for await (const chunk of stream) text += String(chunk);
      return text;
    };
    expect([await get('of his own'), await get(), await get(), await get('of his own')]).toEqual(['1', '2', '2', '3']);
    session.close();
  });

  it('refreshes over HTTP/2 what is stale', async () => {
    const clock = virtualClock();
    await using app = Fastify({ http2: true });
    await app.register(fastifyCache, { ttl: '10s', staleWhileRevalidate: '1m', jitter: 0, early: 'off', clock });
    let runs = 0;
    app.get('/', async () => `${++runs}`);
    const session = http2.connect(await app.listen({ port: 0, host: '127.0.0.1' }));
    const get = async () => {
      let text = '';
      for await (const chunk of session.request({ ':path': '/' })) text += String(chunk);
      return text;
    };
    expect(await get()).toBe('1');
    await clock.advance(11_000);
    expect(await get()).toBe('1');
    await expect.poll(get).toBe('2');
    session.close();
  });

  it('refuses a mistake in a route when the server starts', async () => {
    const app = Fastify();
    await app.register(fastifyCache, { ttl: '1m' });
    const config = { responseCache: { ttl: 'soon' as '1s' } };
    expect(() => app.get('/', { config }, async () => 'x')).toThrow('a duration');
  });
});
