import { once } from 'node:events';
import type { IncomingMessage } from 'node:http';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { describe, expect, it } from 'vitest';
import { detachedExchange } from '../../../src/server/response-cache/refresh.js';

const addresses = {
  ...{ remoteAddress: '10.0.0.1', remotePort: 5, remoteFamily: 'IPv4', localAddress: '10.0.0.2', localPort: 80 },
  encrypted: true,
};

const like = (headers: Record<string, string | string[] | undefined>) =>
  ({ headers, socket: addresses }) as unknown as IncomingMessage;

describe('a request that no client sent', () => {
  it('copies the request that it is like, without what was meant for one client and one connection', () => {
    const { request } = detachedExchange(
      like({
        ...{ host: 'a.test', cookie: 'a=1', 'x-list': ['1', '2'], 'x-unset': undefined, 'x-a:': '3' },
        ...{ 'if-none-match': '"e"', range: 'bytes=0-1', 'idempotency-key': 'k', connection: 'close', te: 'trailers' },
        ...{ ':authority': 'b.test', ':path': '/' },
      }),
      '/page?x=1',
    );
    expect([request.method, request.url]).toEqual(['GET', '/page?x=1']);
    expect([request.httpVersion, request.httpVersionMajor, request.httpVersionMinor]).toEqual(['1.1', 1, 1]);
    expect(request.headers).toEqual({ host: 'a.test', cookie: 'a=1', 'x-list': ['1', '2'], 'x-a:': '3' });
    expect(request.rawHeaders).toEqual([
      ...['host', 'a.test', 'cookie', 'a=1', 'x-list', '1', 'x-list', '2', 'x-a:', '3'],
    ]);
  });

  it('takes the host from the authority of HTTP/2, and has none without it', () => {
    expect(detachedExchange(like({ ':authority': 'b.test' }), '/').request.headers).toEqual({ host: 'b.test' });
    expect(detachedExchange(like({}), '/').request.headers).toEqual({});
  });

  it('has no body, and ends at once', async () => {
    const { request } = detachedExchange(like({}), '/');
    expect(request.complete).toBe(true);
    expect(await request.toArray()).toEqual([]);
  });

  it('comes from the same addresses, through a socket that supports what frameworks call', () => {
    const { socket } = detachedExchange(like({}), '/').request;
    expect({ ...socket }).toMatchObject(addresses);
    for (const name of ['setTimeout', 'setNoDelay', 'setKeepAlive', 'ref', 'unref'] as const) {
      expect((socket[name] as () => unknown)()).toBe(socket);
    }
    expect(socket.address()).toEqual({});
  });
});

describe('its response', () => {
  it('accepts everything that is piped to it, and is closed when it has ended', async () => {
    const { request, response } = detachedExchange(like({}), '/');
    const closed = once(response, 'close');
    const parts = Array.from({ length: 30 }, () => Buffer.alloc(100_000));
    await pipeline(Readable.from(parts), response);
    await closed;
    expect([request.socket.destroyed, response.socket]).toEqual([true, null]);
  });

  it('reports back-pressure as its socket does', () => {
    const { request, response } = detachedExchange(like({}), '/');
    for (const needs of [true, false]) {
      Object.defineProperty(request.socket, 'writableNeedDrain', { value: needs, configurable: true });
      expect(response.writableNeedDrain).toBe(needs);
    }
    let drains = 0;
    response.on('drain', () => drains++);
    request.socket.emit('drain');
    expect(drains).toBe(1);
  });
});
