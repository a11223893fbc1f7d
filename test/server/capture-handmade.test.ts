/** The capture of a response that has no socket: what it tells its owner, and what the code around it sees. */
import { IncomingMessage, ServerResponse } from 'node:http';
import { Socket } from 'node:net';
import compression from 'compression';
import { describe, expect, it } from 'vitest';
import { type Answer, type CaptureTerms, captureAnswer, type ResponseCapture } from '../../src/server/capture.js';
import { keptHeaders } from '../../src/server/idempotency/protocol.js';

describe('captureAnswer, of a handmade response,', () => {
  function made(terms: Partial<CaptureTerms> = {}, before: (response: ServerResponse) => void = () => {}) {
    const told: string[] = [];
    const answers: Answer[] = [];
    const request = new IncomingMessage(new Socket());
    const response = new ServerResponse(request);
    for (const event of ['drain', 'close', 'finish']) response.on(event, () => told.push(event));
    before(response);
    const all: CaptureTerms = {
      maxBodyBytes: 3,
      keepHeaders: keptHeaders,
      onAnswer: (answer) => void answers.push(answer),
      onBroken: () => void told.push('broken'),
      onClientGone: () => void told.push('gone'),
      onTooLarge: () => void told.push('too large'),
      ...terms,
    };
    const capture = captureAnswer(response, all);
    return { told, answers, request, response, capture, all };
  }
  const nextTurn = () => new Promise(setImmediate);
  type Listening = (...given: never[]) => void;

  it('has not begun before its head is known', () => {
    const { response, capture } = made();
    expect(capture.hasBegun).toBe(false);
    response.write('a');
    expect(capture.hasBegun).toBe(true);
  });

  it('accepts 64 KiB per turn for a disconnected client, and emits one drain in the next turn', async () => {
    const { told, response } = made();
    expect([response.emit('close'), response.closed, response.destroyed]).toEqual([true, false, false]);
    await nextTurn();
    expect(told.splice(0)).toEqual(['gone', 'drain']);
    for (let turn = 0; turn < 2; turn++) {
      expect([response.write(Buffer.alloc(65_535)), response.writableNeedDrain]).toEqual([true, false]);
      expect([response.write('x'), response.writableNeedDrain]).toEqual([false, true]);
      expect(response.write('x')).toBe(false);
      await nextTurn();
      expect([told.filter((one) => one === 'drain').length, response.writableNeedDrain]).toEqual([turn + 1, false]);
    }
  });

  it('tells a drain once to each who listens where `on` is wrapped, as by instrumentation, and to nobody who has left', async () => {
    const wrapped = new Map<Listening, Listening>();
    const { response } = made({}, (response) => {
      const { on, removeListener } = response;
      response.on = (name: string, listener: Listening) => {
        wrapped.set(listener, (...given) => listener(...given));
        return Reflect.apply(on, response, [name, wrapped.get(listener)!]);
      };
      response.removeListener = (name: string, listener: Listening) =>
        Reflect.apply(removeListener, response, [name, wrapped.get(listener) ?? listener]);
    });
    const drains: string[] = [];
    const left = () => void drains.push('left');
    response.on('drain', () => void drains.push('stays'));
    response.on('drain', left);
    response.once('drain', () => void drains.push('once'));
    response.removeListener('drain', left);
    response.emit('close');
    await nextTurn();
    expect(drains).toEqual(['stays', 'once']);
  });

  it('tells a drain once behind a compressor that has nothing to compress', async () => {
    const { request, response } = made({}, (response) => {
      compression()(response.req as never, response as never, () => {});
    });
    request.headers['accept-encoding'] = 'gzip';
    response.setHeader('Content-Type', 'image/png');
    let drains = 0;
    response.on('drain', () => drains++);
    response.write('a');
    response.emit('close');
    await nextTurn();
    expect(drains).toBe(1);
  });

  it('tells no drain to a handler that has ended, and then that the client is gone', async () => {
    const { told, response } = made({ maxBodyBytes: 100_000 });
    response.emit('close');
    await nextTurn();
    response.write(Buffer.alloc(70_000));
    response.end();
    expect([response.closed, response.destroyed]).toEqual([true, true]);
    await nextTurn();
    expect(told).toEqual(['gone', 'drain', 'close']);
  });

  it('delivers no close that it has not held back', () => {
    const { told, response, capture } = made({}, (response) => {
      response.destroyed = true;
    });
    expect(response.destroyed).toBe(false);
    capture.stop();
    expect([told, response.destroyed]).toEqual([['gone'], true]);
  });

  it('notices a disconnected client even with an engine inside another', () => {
    const { told, response, all } = made();
    captureAnswer(response, all);
    response.emit('close');
    expect(told).toEqual(['gone']);
  });

  it('asks for its head once, even if that cannot be sent, as with HTTP/2 without a client', () => {
    let asked = 0;
    const onHead = () => void asked++;
    const { told, response } = made({ onHead }, (response) => {
      response.writeHead = () => response;
      Object.defineProperty(response, 'headersSent', { value: false });
    });
    response.emit('close');
    response.write('a');
    response.write('b');
    response.end('c');
    expect([asked, told.includes('gone')]).toEqual([1, true]);
  });

  it('records nothing when it has been stopped, by its head or otherwise', () => {
    for (const isByHead of [true, false]) {
      const seen: { capture?: ResponseCapture } = {};
      const one = made(isByHead ? { onHead: () => void seen.capture!.stop() } : {});
      seen.capture = one.capture;
      if (!isByHead) one.capture.stop();
      const { socket } = one.request;
      one.response.write('1234');
      one.response.write('5');
      expect(one.request.socket).toBe(socket);
      one.response.end('6');
      expect([one.told, one.answers]).toEqual([[], []]);
    }
    const seen: { capture?: ResponseCapture } = {};
    const { answers, response, capture } = made({ onHead: () => void seen.capture!.stop() });
    seen.capture = capture;
    response.end('1');
    expect([answers, response.writableEnded]).toEqual([[], true]);
  });

  it('records what follows a head that was sent before', () => {
    for (const isWritten of [true, false]) {
      const { told, answers, request, response } = made({}, (response) => response.writeHead(201, { 'X-A': '1' }));
      if (isWritten) {
        response.write('a');
        expect(request.socket).not.toBe(response.socket ?? null);
      }
      response.end('b');
      expect(answers).toMatchObject([{ status: 201 }]);
      expect([Buffer.from(answers[0]!.body!).toString(), told.includes('broken')]).toEqual([
        isWritten ? 'ab' : 'b',
        false,
      ]);
    }
  });

  it('notices that a handler aborts through the socket after a head that was sent before', () => {
    const { told, request, response } = made({}, (response) => response.writeHead(201));
    response.write('a');
    request.socket.destroy();
    expect(told).toContain('broken');
  });

  it('notices that a handler aborts through the socket as soon as its head has been sent', () => {
    const { told, request, response } = made();
    response.writeHead(200);
    request.socket.destroy();
    expect(told).toContain('broken');
  });

  it('records whatever status Node accepts', () => {
    for (const status of [100, 999]) {
      const { answers, response } = made();
      response.statusCode = status;
      response.end();
      expect(answers).toMatchObject([{ status }]);
    }
  });

  it('records again after it has been stopped', () => {
    const { told, response, capture, all } = made();
    response.emit('close');
    capture.stop();
    captureAnswer(response, all);
    expect(told).toEqual(['gone', 'close', 'gone']);
  });

  it('leaves getters alone, as with HTTP/2', () => {
    const { told, response } = made({}, (response) => {
      Reflect.deleteProperty(response, '_closed');
      Object.setPrototypeOf(response, Object.create(ServerResponse.prototype, { _closed: { get: () => true } }));
    });
    response.emit('close');
    expect([told, response.closed]).toEqual([['gone'], true]);
  });

  it('leaves the socket to the request if the answer comes in one piece, or if other code has replaced it', () => {
    const { request, response } = made({ onAnswer: () => new Promise(() => {}) });
    const { socket } = request;
    response.end('a');
    expect(request.socket).toBe(socket);
    const other = made();
    other.response.write('a');
    other.request.socket = socket;
    other.response.end('b');
    expect(other.request.socket).toBe(socket);
  });

  it('holds back a finish before the end, as with HTTP/2 without a client, and nothing else', () => {
    const asHttp2 = (response: ServerResponse) => void Object.assign(response, { getRawHeaderNames: undefined });
    const open = made({}, asHttp2);
    expect([open.response.emit('finish'), open.response.emit('drain'), open.told]).toEqual([true, true, ['drain']]);
    open.response.end();
    open.response.emit('finish');
    expect(open.told).toEqual(['drain', 'finish']);
    const waiting = made({ onHead: () => 'wait' }, asHttp2);
    waiting.response.write('a');
    waiting.response.emit('finish');
    expect(waiting.told).toEqual([]);
    const ofNode = made();
    ofNode.response.emit('finish');
    expect(ofNode.told).toEqual(['finish']);
  });
});
