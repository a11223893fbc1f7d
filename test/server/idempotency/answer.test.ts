import { createServer } from 'node:http';
import express from 'express';
import { describe, expect, it } from 'vitest';
import { idempotency as engineOf, memoryStore } from '../../../src/index.js';
import { idempotency } from '../../../src/server/express.js';
import { decodeAnswer, encodeAnswer } from '../../../src/server/idempotency/answer.js';
import { send } from './raw-client.js';
import { keyed, listening } from './support.js';

const bytesOf = (text: string) => new TextEncoder().encode(text);

describe('an answer', () => {
  it.each([
    ['ASCII', 'Created', 'body'],
    ['no body', '', ''],
    ['words beyond ASCII', 'cr\u00e9\u00e9', 'body'],
    ['a long head and body', 'x'.repeat(70_000), 'y'.repeat(70_000)],
  ])('of %s comes back from its bytes', (_what, statusMessage, body) => {
    const answer = { status: 201, statusMessage, headers: ['x-id', '7', 'x-id', '\u00fc'], body: bytesOf(body) };
    const bytes = encodeAnswer(answer);
    // In the middle of a buffer, as stores give them.
    const within = new Uint8Array(bytes.length + 9);
    within.set(bytes, 5);
    const { body: again, ...head } = decodeAnswer(within.subarray(5, 5 + bytes.length))!;
    expect({ ...head, body: new Uint8Array(again) }).toEqual(answer);
  });

  it('is not made of other bytes, cut ones, or the result of a function', () => {
    const bytes = encodeAnswer({ status: 201, statusMessage: '', headers: ['x-id', '7'], body: bytesOf('') });
    for (const length of [0, 1, 4, 5, bytes.length - 1]) expect(decodeAnswer(bytes.slice(0, length))).toBeUndefined();
    expect(decodeAnswer(bytes.with(0, 2))).toBeUndefined();
    expect(decodeAnswer(Uint8Array.of(1, ...bytesOf('{"paid":1}')))).toBeUndefined();
    expect(decodeAnswer(Uint8Array.of(1, ...bytesOf('250')))).toBeUndefined();
  });

  it('is not there where the same operation has run as a function, and the request is refused', async () => {
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
