/** Capture without an engine: each way to answer, on the wire, beside the same server without it. */
import { once } from 'node:events';
import { createServer, type ServerResponse } from 'node:http';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it, vi } from 'vitest';
import { type Answer, captureAnswer, type ResponseCapture } from '../../src/server/capture.js';
import { decodeAnswer, encodeAnswer, replay } from '../../src/server/idempotency/answer.js';
import { keptHeaders } from '../../src/server/idempotency/protocol.js';
import { type Listener, nodePaths } from './idempotency/node-paths.js';
import { exchange, headerOf, parseAnswer, requestBytes, send, sendAndLeave } from './idempotency/raw-client.js';
import { lasting, leaked, listening, marksOf, wire } from './idempotency/support.js';

// Real servers on a machine that may be busy with others.
vi.setConfig({ testTimeout: 60_000 });

function withServer<T>(listener: Listener, task: (port: number) => Promise<T>): Promise<T> {
  return listening(
    createServer((request, response) => void listener(request, response)),
    task,
  );
}

interface Observed {
  answer?: Answer;
  capture?: ResponseCapture;
  broken: number;
  gone: number;
}

/** The listener with its answers taken down; the end waits for `wait`. */
function captured(
  listener: Listener,
  seen: Observed,
  { maxBodyBytes = 10_000_000, wait = () => sleep(1) } = {},
): Listener {
  return (request, response) => {
    seen.capture = captureAnswer(response, {
      maxBodyBytes,
      keepHeaders: keptHeaders,
      onAnswer(answer) {
        seen.answer = answer;
        return wait();
      },
      onBroken: () => void seen.broken++,
      onClientGone: () => void seen.gone++,
    });
    return listener(request, response);
  };
}

const observed = (): Observed => ({ broken: 0, gone: 0 });

describe.concurrent('an answer by', () => {
  for (const [name, listener] of Object.entries(nodePaths)) {
    it(`${name} goes out as if nobody had looked, and is the same when it is given again`, async ({ expect }) => {
      const bare = await withServer(listener, (port) => send(port, {}));
      const seen = observed();
      const first = await withServer(captured(listener, seen), (port) => send(port, {}));
      expect(wire(first)).toEqual(wire(bare));
      expect(bare.status).toBeGreaterThanOrEqual(200);
      const stored = encodeAnswer(seen.answer as Answer & { body: Uint8Array });
      const again = (_: unknown, response: ServerResponse) => replay(response, decodeAnswer(stored)!, 'k-1');
      const replayed = await withServer(again, (port) => send(port, {}));
      expect(lasting(replayed)).toEqual(lasting(bare));
      expect(marksOf(replayed)).toEqual({
        'idempotent-replayed': 'true',
        'idempotency-key': '"k-1"',
        'cache-control': 'no-store',
      });
      expect(leaked(replayed)).toEqual([]);
    });
  }
});

describe('captureAnswer', () => {
  it('lets the first bytes of a stream go at once, and holds the end until the answer is taken care of', async () => {
    let store = () => {};
    const stored = new Promise<void>((resolve) => {
      store = resolve;
    });
    const listener: Listener = (_request, response) => {
      response.write('first');
      setTimeout(() => response.end('last'), 5);
    };
    await withServer(captured(listener, observed(), { wait: () => stored }), async (port) => {
      const answer = await fetch(`http://127.0.0.1:${port}/`);
      const reader = answer.body!.getReader();
      expect(Buffer.from((await reader.read()).value!).toString()).toBe('first');
      const last = reader.read();
      expect(await Promise.race([last, sleep(40, 'held')])).toBe('held');
      store();
      expect(Buffer.from((await last).value!).toString()).toBe('last');
      expect((await reader.read()).done).toBe(true);
    });
  });

  it('takes down no more than it may, and says that the body is not whole', async () => {
    const seen = observed();
    const listener: Listener = (_request, response) => {
      response.write('12345');
      response.write('67890');
      response.end('x');
    };
    const first = await withServer(captured(listener, seen, { maxBodyBytes: 10 }), (port) => send(port, {}));
    expect(first.body.toString()).toBe('1234567890x');
    expect(seen.answer?.body).toBeUndefined();
    await withServer(captured(listener, seen, { maxBodyBytes: 11 }), (port) => send(port, {}));
    expect(Buffer.from(seen.answer!.body!).toString()).toBe('1234567890x');
  });

  it('says what Node says to an end that cannot be', async () => {
    const complaints: unknown[] = [];
    const listener: Listener = (_request, response) => {
      for (const wrong of [
        () => response.end(5),
        () => response.end({}),
        () => response.write(null as never),
        () => response.writeHead(5),
      ]) {
        try {
          wrong();
        } catch (error) {
          complaints.push((error as NodeJS.ErrnoException).code);
        }
      }
      response.statusCode = 7;
      try {
        response.end('x');
      } catch (error) {
        complaints.push((error as NodeJS.ErrnoException).code);
      }
      response.statusCode = 200;
      response.end('well');
    };
    const bare = await withServer(listener, (port) => send(port, {}));
    const expected = complaints.splice(0);
    expect(expected).toHaveLength(5);
    const seen = observed();
    const first = await withServer(captured(listener, seen), (port) => send(port, {}));
    expect([wire(first), complaints]).toEqual([wire(bare), expected]);
    expect(Buffer.from(seen.answer!.body!).toString()).toBe('well');
  });

  it('lets nothing that comes after the answer change it', async () => {
    const seen = observed();
    const called: string[] = [];
    const listener: Listener = (_request, response) => {
      response.setHeader('X-A', '1');
      response.end('first', () => called.push('first'));
      called.push(`ended ${response.writableEnded}`);
      response.statusCode = 500;
      response.setHeader('X-A', '2');
      response.setHeader('X-B', '2');
      response.removeHeader('X-A');
      response.writeHead(500, { 'X-C': '3' });
      response.write('second');
      response.end('third', () => called.push('third'));
      response.destroy();
    };
    const first = await withServer(captured(listener, seen), (port) => send(port, {}));
    expect([first.status, headerOf(first, 'x-a'), headerOf(first, 'x-b'), headerOf(first, 'x-c')]).toEqual([
      200,
      '1',
      undefined,
      undefined,
    ]);
    expect(first.body.toString()).toBe('first');
    expect(called).toEqual(['ended true', 'first', 'third']);
  });

  it('keeps connections alive, one answer after the other', async () => {
    let count = 0;
    const listener: Listener = (_request, response) => void response.end(`answer ${++count}`);
    await withServer(captured(listener, observed()), async (port) => {
      const request = requestBytes({}).toString().replace('Connection: close\r\n', '');
      const bytes = await exchange(port, Buffer.concat([Buffer.from(request.repeat(2)), requestBytes({})]));
      expect(bytes.toString().match(/answer \d/g)).toEqual(['answer 1', 'answer 2', 'answer 3']);
      expect(parseAnswer(bytes).status).toBe(200);
    });
  });

  it.each([
    ['pipe', (response: ServerResponse) => void Readable.from(parts()).pipe(response)],
    ['pipeline', (response: ServerResponse) => void pipeline(Readable.from(parts()), response).catch(() => {})],
    [
      'writes that wait for drain',
      async (response: ServerResponse) => {
        for await (const part of parts()) if (!response.write(part)) await once(response, 'drain');
        response.end();
      },
    ],
    [
      'an end in the background',
      async (response: ServerResponse) => {
        await sleep(20);
        response.writeHead(201, { 'X-A': '1' });
        response.end('x'.repeat(parts.bytes));
      },
    ],
  ])('has the whole answer of %s when the client leaves in the middle', async (_name, answer) => {
    const seen = observed();
    const closes: string[] = [];
    const listener: Listener = (_request, response) => {
      response.on('close', () => closes.push(`close, destroyed ${response.destroyed}`));
      return answer(response);
    };
    await withServer(captured(listener, seen), async (port) => {
      await sendAndLeave(
        port,
        requestBytes({}),
        _name.startsWith('an end') ? { afterSent: 1_000 } : { afterReceived: 1 },
      );
      await expect.poll(() => seen.answer?.body?.byteLength, { timeout: 10_000 }).toBe(parts.bytes);
      await expect.poll(() => closes, { timeout: 10_000 }).toEqual(['close, destroyed true']);
    });
    expect([seen.gone, seen.broken]).toEqual([1, 0]);
  });

  it.each([
    ['a pipeline', (response: ServerResponse) => void pipeline(Readable.from(parts()), response).catch(() => {})],
    [
      'a loop that writes until it is told to wait',
      (response: ServerResponse) => {
        const source = parts();
        const push = (): unknown => {
          let part = source.next();
          while (part.done !== true && response.write(part.value)) part = source.next();
          return part.done === true ? response.end() : response.once('drain', push);
        };
        push();
      },
    ],
  ])('leaves the event loop its turns while %s goes on for nobody', async (_name, answer) => {
    const seen = observed();
    let turns = 0;
    const count = () => {
      turns++;
      if (seen.answer === undefined) setImmediate(count);
    };
    const listener: Listener = (request, response) => {
      request.socket.once('close', count);
      answer(response);
    };
    await withServer(captured(listener, seen), async (port) => {
      await sendAndLeave(port, requestBytes({}), { afterReceived: 1 });
      await expect.poll(() => seen.answer?.body?.byteLength, { timeout: 10_000 }).toBe(parts.bytes);
    });
    expect(turns).toBeGreaterThan(20);
  });

  it('has the whole answer of a pipe that begins when the client has left with what it did not read', async () => {
    const seen = observed();
    const unread = 16 * 2 ** 20;
    const listener: Listener = async (_request, response) => {
      response.write(Buffer.alloc(unread));
      await expect.poll(() => seen.gone, { timeout: 10_000 }).toBe(1);
      Readable.from(['last']).pipe(response);
    };
    await withServer(captured(listener, seen, { maxBodyBytes: 2 * unread }), async (port) => {
      await sendAndLeave(port, requestBytes({}), { afterReceived: 1 });
      await expect.poll(() => seen.answer?.body?.byteLength).toBe(unread + 4);
    });
  });

  it('tells the close that it kept back when it is stopped', async () => {
    const seen = observed();
    let closes = 0;
    const listener: Listener = (_request, response) => {
      response.on('close', () => closes++);
      response.write('first');
    };
    await withServer(captured(listener, seen), async (port) => {
      await sendAndLeave(port, requestBytes({}), { afterReceived: 1 });
      await expect.poll(() => seen.gone, { timeout: 10_000 }).toBe(1);
      expect([closes, seen.capture!.hasBegun]).toEqual([0, true]);
      seen.capture!.stop();
      expect(closes).toBe(1);
    });
  });

  it.each(['response', 'socket of the request'] as const)(
    'says when the handler breaks its own answer off by the %s',
    async (by) => {
      const seen = observed();
      const listener: Listener = (request, response) => {
        response.write('first');
        const broken = new Error('source broke');
        setTimeout(() => (by === 'response' ? response.destroy(broken) : request.socket.destroy()), 5);
      };
      const bytes = await withServer(captured(listener, seen), (port) => exchange(port, requestBytes({})));
      expect(bytes.toString()).toContain('first');
      expect([seen.broken, seen.gone, seen.answer]).toEqual([1, 0, undefined]);
    },
  );

  it('hears that the handler breaks off also when the client has gone', async () => {
    const seen = observed();
    const listener: Listener = (request, response) => {
      response.write('first');
      response.once('drain', () => request.socket.destroy());
    };
    await withServer(captured(listener, seen), async (port) => {
      await sendAndLeave(port, requestBytes({}), { afterReceived: 1 });
      await expect.poll(() => seen.broken, { timeout: 10_000 }).toBe(1);
    });
    expect([seen.broken, seen.gone]).toEqual([1, 1]);
  });

  it('takes a server that closes its connections for no handler that breaks off', async () => {
    const seen = observed();
    const server = createServer((request, response) => {
      const listener: Listener = (_request, response) => void response.write('first');
      captured(listener, seen)(request, response);
      setImmediate(() => server.closeAllConnections());
    });
    await listening(server, (port) => exchange(port, requestBytes({})));
    await expect.poll(() => seen.gone, { timeout: 10_000 }).toBe(1);
    expect(seen.broken).toBe(0);
  });

  it('gives the request its socket back when the answer is out', async () => {
    const sockets = new Set<unknown>();
    const listener: Listener = (request, response) => {
      sockets.add(request.socket);
      response.once('finish', () => sockets.add(request.socket));
      response.write('first,');
      response.end('last');
    };
    await withServer(captured(listener, observed()), (port) => send(port, {}));
    expect(sockets.size).toBe(1);
  });
});

/** More than the buffers of a socket hold, in parts. */
function* parts() {
  for (let index = 0; index < 80; index++) yield Buffer.alloc(100_000, 'p');
}
parts.bytes = 8_000_000;
