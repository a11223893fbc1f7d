import { createServer, type ServerResponse } from 'node:http';
import express from 'express';
import { describe, expect, it } from 'vitest';
import { idempotency as engineOf, memoryStore } from '../../../src/index.js';
import type { StoredAnswer } from '../../../src/server/capture.js';
import { idempotency } from '../../../src/server/express.js';
import { decodeAnswer, encodeAnswer, replay } from '../../../src/server/idempotency/answer.js';
import { send } from './raw-client.js';
import { keyed, listening } from './support.js';

const bytesOf = (text: string) => new TextEncoder().encode(text);

describe('an answer', () => {
  it.each([
    ['ASCII', 'Created', 'body'],
    ['no body', '', ''],
    ['words beyond ASCII', 'cr\u00e9\u00e9', 'body'],
    ['the first character beyond ASCII', '\u0080', 'body'],
    ['a long head and body', 'x'.repeat(70_000), 'y'.repeat(70_000)],
  ])('of %s is decoded from its bytes', (_what, statusMessage, body) => {
    const answer = { status: 201, statusMessage, headers: ['x-id', '7', 'x-id', statusMessage], body: bytesOf(body) };
    const bytes = encodeAnswer(answer);
    // The bytes are in the middle of a buffer, as stores deliver them.
    const within = new Uint8Array(bytes.length + 9);
    within.set(bytes, 5);
    const { body: again, ...head } = decodeAnswer(within.subarray(5, 5 + bytes.length))!;
    expect({ ...head, body: new Uint8Array(again) }).toEqual({ ...answer, isText: false });
    const isBeyondAscii = /[^\0-\x7f]/.test(statusMessage);
    expect(decodeAnswer(encodeAnswer({ ...answer, isText: true }))?.isText).toBe(isBeyondAscii);
  });

  it('is not decoded from other bytes, truncated ones, or the result of a function', () => {
    const bytes = encodeAnswer({ status: 201, statusMessage: '', headers: ['x-id', '7'], body: bytesOf('') });
    for (const length of [0, 1, 4, 5, bytes.length - 1]) expect(decodeAnswer(bytes.slice(0, length))).toBeUndefined();
    expect(decodeAnswer(bytes.with(0, 2))).toBeUndefined();
    expect(decodeAnswer(Uint8Array.of(1, 0, 0, 0, 0))).toBeUndefined();
    expect(decodeAnswer(Uint8Array.of(1, ...bytesOf('{"paid":1}')))).toBeUndefined();
    expect(decodeAnswer(Uint8Array.of(1, ...bytesOf('250')))).toBeUndefined();
  });

  it('is not returned if the same operation ran as a function; the request is refused', async () => {
    const engine = engineOf({ store: memoryStore() });
    await engine.run('k', () => ({ paid: 1 }), { scope: 'all', operation: 'POST /orders' });
    const app = express();
    app.set('env', 'test');
    app.post('/orders', idempotency(engine, { scope: () => 'all', fingerprint: () => 'any' }), (_request, response) => {
      response.send('ran');
    });
    await listening(createServer(app), async (port) => {
      const answer = await send(port, { path: '/orders', headers: keyed('k') });
      expect([answer.status, JSON.parse(answer.body.toString()).code]).toEqual([409, 'ERR_IN_DOUBT']);
    });
  });
});

describe('a replay', () => {
  type Before = (response: ServerResponse) => void;

  async function replayed(answer: Partial<StoredAnswer>, before: Before = () => {}) {
    const server = createServer((_request, response) => {
      before(response);
      replay(response, { status: 201, statusMessage: '', headers: [], body: bytesOf('body'), ...answer }, 'k');
    });
    const got = await listening(server, (port) => send(port, { path: '/', headers: [] }));
    const own = /^(date|connection|keep-alive|idempotent-replayed|idempotency-key|cache-control)$/i;
    return { ...got, headers: got.headers.filter(([name]) => !own.test(name)) };
  }

  it('has the status, its reason phrase, and each header as often as it was set', async () => {
    const headers = ['X-A', '1', 'x-b', '2', 'X-A', '3'];
    const answer = await replayed({ statusMessage: 'Made', headers });
    expect([answer.statusLine, answer.headers]).toEqual([
      'HTTP/1.1 201 Made',
      [
        ['X-A', '1'],
        ['X-A', '3'],
        ['x-b', '2'],
        ['Content-Length', '4'],
      ],
    ]);
    expect((await replayed({})).statusLine).toBe('HTTP/1.1 201 Created');
    const before: Before = (response) => {
      response.statusMessage = 'Set Before';
    };
    expect((await replayed({}, before)).statusLine).toBe('HTTP/1.1 201 Set Before');
  });

  it('has all values of a header that was written in several ways', async () => {
    const { headers } = await replayed({ headers: ['X-A', '1', 'x-b', '2', 'x-a', '3'] });
    expect(headers.slice(0, -1)).toEqual([
      ['X-A', '1'],
      ['X-A', '3'],
      ['x-b', '2'],
    ]);
  });

  it('sets a single-valued header as text, as code that reads it expects', async () => {
    let type: unknown;
    const before: Before = (response) => response.once('finish', () => (type = response.getHeader('content-type')));
    await replayed({ headers: ['Content-Type', 'text/plain', 'X-A', '1', 'X-A', '2'] }, before);
    expect(type).toBe('text/plain');
  });

  it('removes headers that were set before and not sent with the first answer, except those of the moment', async () => {
    const before: Before = (response) => {
      response.setHeader('X-Gone', '1');
      response.setHeader('X-Kept', '1');
      response.setHeader('Set-Cookie', 'a=1');
      response.setHeader('Vary', 'origin');
      response.setHeader('Content-Length', '999');
    };
    const { headers } = await replayed({ headers: ['X-Kept', '2'] }, before);
    expect(Object.fromEntries(headers)).toEqual({
      'X-Kept': '2',
      'Set-Cookie': 'a=1',
      Vary: 'origin',
      'Content-Length': '4',
    });
    const chunked = await replayed({}, (response) => response.setHeader('Transfer-Encoding', 'chunked'));
    expect(chunked.headers).toEqual([['Content-Length', '4']]);
  });

  it.each([0, 1, 16_384, 16_385])(
    'sends a body of %i bytes byte for byte, even from the middle of a buffer',
    async (length) => {
      const whole = Uint8Array.from({ length: length + 10 }, (_, index) => (index * 7) % 256);
      const answer = await replayed({ body: whole.subarray(5, 5 + length) });
      expect(Buffer.compare(answer.body, whole.subarray(5, 5 + length))).toBe(0);
    },
  );

  it.each([
    [0, 'in one piece with its head'],
    [16_384, 'in one piece with its head'],
    [16_385, 'as it is, without a copy of it'],
  ])('sends a body of %i bytes to the socket %s', async (length, how) => {
    const body = new Uint8Array(length).fill(0x78);
    const pieces: unknown[] = [];
    const server = createServer((_request, response) => {
      const socket = response.socket!;
      const { write } = socket;
      socket.write = (...given: unknown[]) => {
        pieces.push(given[0]);
        return Reflect.apply(write, socket, given);
      };
      replay(response, { status: 201, statusMessage: '', headers: [], body }, 'k');
    });
    await listening(server, (port) => send(port, { path: '/', headers: [] }));
    if (how.startsWith('in one')) expect(pieces).toHaveLength(1);
    else expect(pieces[1]).toBe(body);
  });
});
