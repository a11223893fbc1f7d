/** Bodies in every form: at once, in parts, too long, cut off, before anybody reads them, and when nobody reads them. */
import { once } from 'node:events';
import { createServer, IncomingMessage } from 'node:http';
import { connect, Socket } from 'node:net';
import { describe, expect, it, vi } from 'vitest';
import {
  announcesBody,
  type Body,
  findRawBody,
  findTap,
  putRawBody,
  tapBody,
} from '../../../src/server/idempotency/body.js';
import { deferred } from '../../support/deferred.ts';
import { listening } from './support.js';

// Real servers on a machine that may be busy with others.
vi.setConfig({ testTimeout: 60_000 });

/** A request whose client has sent its head, and sends the rest when it is told to. */
async function withRequest(
  length: number,
  task: (request: IncomingMessage, client: Socket) => Promise<void>,
): Promise<void> {
  const { promise, resolve } = deferred<IncomingMessage>();
  await listening(
    createServer((request) => resolve(request)),
    async (port) => {
      const client = connect(port, '127.0.0.1');
      client.on('error', () => {});
      client.write(`POST / HTTP/1.1\r\nHost: a\r\nContent-Length: ${length}\r\n\r\n`);
      await task(await promise, client);
      client.destroy();
    },
  );
}

async function textOf(request: IncomingMessage): Promise<string> {
  let text = '';
  for await (const chunk of request) text += String(chunk);
  return text;
}

const bytesOf = (text: string) => ({ kind: 'bytes', bytes: Buffer.from(text) });

describe('a body', () => {
  it('in parts is complete with the last part, and can be read as if nobody had looked', async () => {
    await withRequest(9, async (request, client) => {
      const tap = tapBody(request, 9);
      expect(findTap(request)).toBe(tap);
      const body = tap.body();
      let isThere = false;
      void Promise.resolve(body).then(() => (isThere = true));
      for (const part of ['abc', 'def']) {
        client.write(part);
        await expect.poll(() => request.readableLength).toBe(part === 'abc' ? 3 : 6);
      }
      expect(isThere).toBe(false);
      client.write('ghi');
      expect(await body).toEqual(bytesOf('abcdefghi'));
      expect(tap.body()).toEqual(bytesOf('abcdefghi'));
      expect(await textOf(request)).toBe('abcdefghi');
    });
  });

  it.each([
    ['all of it', 'abcdef'],
    ['a part', 'abc'],
    ['nothing', ''],
  ])('of which %s had arrived before the tap is complete', async (_, early) => {
    await withRequest(6, async (request, client) => {
      client.write(early);
      await expect.poll(() => request.readableLength).toBe(early.length);
      if (early.length === 6) await expect.poll(() => request.complete).toBe(true);
      const tap = tapBody(request, 100);
      const body = tap.body();
      expect(body instanceof Promise).toBe(early.length < 6);
      client.write('abcdef'.slice(early.length));
      expect(await body).toEqual(bytesOf('abcdef'));
      expect(await textOf(request)).toBe('abcdef');
    });
  });

  it('longer than the limit is reported as too large as soon as that is known, and can still be read', async () => {
    await withRequest(8, async (request, client) => {
      const body = tapBody(request, 5).body();
      client.write('abcdef');
      expect(await body).toEqual({ kind: 'too-large' });
      client.write('gh');
      expect(await textOf(request)).toBe('abcdefgh');
    });
    await withRequest(8, async (request, client) => {
      const body = tapBody(request, 6).body();
      client.write('abcdef');
      await expect.poll(() => request.readableLength).toBe(6);
      client.write('gh');
      expect(await body).toEqual({ kind: 'too-large' });
    });
    await withRequest(5, async (request, client) => {
      const body = tapBody(request, 5).body();
      client.write('abcde');
      expect(await body).toEqual(bytesOf('abcde'));
    });
  });

  it('of a client that disconnects halfway is gone, for earlier and for later callers', async () => {
    await withRequest(6, async (request, client) => {
      request.on('error', () => {});
      const tap = tapBody(request, 100);
      const body = tap.body();
      client.write('abc');
      await expect.poll(() => request.readableLength).toBe(3);
      client.destroy();
      expect(await body).toEqual({ kind: 'gone' });
      expect(tap.body()).toEqual({ kind: 'gone' });
    });
  });

  it('that is complete no longer needs its client, and leaves no listener', async () => {
    await withRequest(3, async (request, client) => {
      const before = request.listenerCount('close');
      const tap = tapBody(request, 100);
      const body = tap.body();
      expect(request.listenerCount('close')).toBe(before + 1);
      client.write('abc');
      expect(await body).toEqual(bytesOf('abc'));
      expect(request.listenerCount('close')).toBe(before);
      request.on('error', () => {});
      client.destroy();
      request.resume();
      await once(request, 'close');
      expect(tap.body()).toEqual(bytesOf('abc'));
    });
  });

  it.each(['asked for at once', 'asked for when its reading has paused'])(
    'of a megabyte arrives even if nobody reads it: %s',
    async (when) => {
      const length = 1_000_000;
      await withRequest(length, async (request, client) => {
        const tap = tapBody(request, length);
        const early = when.endsWith('once') ? tap.body() : undefined;
        client.write('x'.repeat(length));
        if (early === undefined) {
          const isFull = () => request.readableLength >= request.readableHighWaterMark;
          await expect.poll(isFull).toBe(true);
        }
        const body = await (early ?? tap.body());
        expect(body.kind === 'bytes' && body.bytes.byteLength).toBe(length);
        expect((await textOf(request)).length).toBe(length);
      });
    },
  );

  it('without bytes is complete', async () => {
    await withRequest(0, async (request) => {
      await expect.poll(() => request.complete).toBe(true);
      expect(await tapBody(request, 100).body()).toEqual(bytesOf(''));
    });
  });

  /** A request as functions in a cloud and tests make it: nothing arrives before it is asked for. */
  function madeRequest(...chunks: readonly (readonly [chunk: string, encoding: BufferEncoding])[]) {
    const request = new IncomingMessage(new Socket());
    let asked = 0;
    request._read = () => {
      const next = chunks[asked++];
      if (next === undefined) request.push(null);
      else request.push(...next);
    };
    return request;
  }

  it('of a handmade request arrives when it is requested, in any encoding', async () => {
    const request = madeRequest(['ab', 'latin1'], ['6364', 'hex'], ['ä', 'utf8']);
    expect(await tapBody(request, 100).body()).toEqual(bytesOf('abcdä'));
    expect(await textOf(request)).toBe('abcdä');
  });

  it('of such a request arrives even beyond its buffer size', async () => {
    const part = 'x'.repeat(50_000);
    const request = madeRequest([part, 'utf8'], [part, 'utf8'], [part, 'utf8']);
    const body = await tapBody(request, 1_000_000).body();
    expect(body.kind === 'bytes' && body.bytes.byteLength).toBe(150_000);
    expect((await textOf(request)).length).toBe(150_000);
  });

  it('of such a request that delivers it at once is requested once', async () => {
    const request = new IncomingMessage(new Socket());
    const faults: unknown[] = [];
    request.on('error', (error) => faults.push(error));
    request._read = () => {
      request.push('x'.repeat(200_000));
      request.push(null);
    };
    const body = await tapBody(request, 1_000_000).body();
    expect(body.kind === 'bytes' && body.bytes.byteLength).toBe(200_000);
    expect((await textOf(request)).length).toBe(200_000);
    expect(faults).toEqual([]);
  });

  it('of such a request that delivers many parts at a time is requested once more, not once per part', async () => {
    const request = new IncomingMessage(new Socket());
    let asked = 0;
    // A request of light-my-request that is given a stream. Each read too many would wait for the stream once more.
    request._read = () => {
      asked++;
      if (asked === 1) for (let part = 0; part < 20; part++) request.push('x'.repeat(10_000));
    };
    const body = tapBody(request, 1_000_000).body();
    await new Promise(setImmediate);
    expect(asked).toBe(2);
    request.push(null);
    expect(await body).toMatchObject({ kind: 'bytes', bytes: { byteLength: 200_000 } });
  });

  it('of such a request is complete at once if the request has ended', async () => {
    const request = new IncomingMessage(new Socket());
    request._read = () => {};
    request.push('abc');
    request.push(null);
    expect(tapBody(request, 100).body()).toEqual(bytesOf('abc'));
    expect(await textOf(request)).toBe('abc');
  });

  it('of such a request that others read meanwhile is not requested twice', async () => {
    const request = new IncomingMessage(new Socket());
    let asked = 0;
    request._read = () => asked++;
    const body = tapBody(request, 100).body();
    const text = textOf(request);
    await new Promise(setImmediate);
    expect(asked).toBe(1);
    request.push('abc');
    request.push(null);
    expect([await body, await text]).toEqual([bytesOf('abc'), 'abc']);
  });

  it('that nobody needs gets back-pressure at its source, as without a tap', () => {
    const request = new IncomingMessage(new Socket());
    const tap = tapBody(request, 1_000_000);
    expect(request.push('x')).toBe(true);
    expect(request.push('x'.repeat(200_000))).toBe(false);
    void tap.body();
    expect(request.push('x')).toBe(true);
  });

  it('in one piece is not copied', () => {
    const request = new IncomingMessage(new Socket());
    const tap = tapBody(request, 100);
    const bytes = Buffer.from('abc');
    request.push(bytes);
    request.push(null);
    const body = tap.body() as Body & { kind: 'bytes' };
    expect(body.bytes).toBe(bytes);
  });

  it.each(['asked for', 'not asked for'])(
    'that is %s, and that no handler reads, is released with the answer',
    async (how) => {
      const { promise: seen, resolve } = deferred<IncomingMessage>();
      const server = createServer(async (request, response) => {
        const tap = tapBody(request, 100);
        if (how === 'asked for') await tap.body();
        response.end();
        resolve(request);
      });
      await listening(server, async (port) => {
        const client = connect(port, '127.0.0.1');
        client.write('POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n');
        if (how === 'asked for') client.write('abc');
        const request = await seen;
        client.write('abc'.slice(how === 'asked for' ? 3 : 0));
        await expect.poll(() => request.closed, { timeout: 30_000 }).toBe(true);
        client.destroy();
      });
    },
  );
});

describe('announcesBody', () => {
  const request = (headers: object, httpVersionMajor: number, stream?: object) =>
    ({ headers, httpVersionMajor, stream }) as unknown as IncomingMessage;

  it.each<[string, IncomingMessage, boolean]>([
    ['without a header', request({}, 1), false],
    ['with a length', request({ 'content-length': '5' }, 1), true],
    ['with a length of none', request({ 'content-length': '0' }, 1), false],
    ['in chunks', request({ 'transfer-encoding': 'chunked' }, 1), true],
    ['over HTTP/2 whose head ends it', request({}, 2, { endAfterHeaders: true }), false],
    ['over HTTP/2 whose head does not end it', request({}, 2, { endAfterHeaders: false }), true],
    ['over HTTP/2 of which nothing is known', request({}, 2), true],
    ['over HTTP/2 with a length of none', request({ 'content-length': '0' }, 2, { endAfterHeaders: false }), false],
  ])('says for a request %s whether a body may come', (_, one, expected) => {
    expect(announcesBody(one)).toBe(expected);
  });
});

describe('a raw body', () => {
  it('is found where it was put, and nowhere else', () => {
    const bytes = Uint8Array.of(1);
    const request = {};
    expect(findRawBody(request)).toBeUndefined();
    putRawBody(request, bytes);
    expect(findRawBody(request)).toBe(bytes);
    expect(Reflect.get(request, Symbol.for('holdfast.rawBody'))).toBe(bytes);
  });
});
