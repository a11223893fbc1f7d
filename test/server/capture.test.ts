/** The capture without an engine: each way to answer, on the wire, compared with the same server without it. */
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer, type ServerResponse } from 'node:http';
import { type AddressInfo, connect } from 'node:net';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { gunzipSync } from 'node:zlib';
import compression from 'compression';
import { describe, expect, it, vi } from 'vitest';
import { type Answer, captureAnswer, joined, type ResponseCapture, whenAlone } from '../../src/server/capture.js';
import { decodeAnswer, encodeAnswer, replay } from '../../src/server/idempotency/answer.js';
import { keptHeaders } from '../../src/server/idempotency/protocol.js';
import { deferred } from '../support/deferred.ts';
import { type Listener, nodePaths } from './idempotency/node-paths.js';
import { exchange, headerOf, parseAnswer, requestBytes, send, sendAndLeave } from './idempotency/raw-client.js';
import { expectReplay, listening, wire } from './idempotency/support.js';

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

/** The listener with its answers recorded. The end waits for `wait`. */
function captured(
  listener: Listener,
  seen: Observed,
  { maxBodyBytes = 10_000_000, wait = () => sleep(1), waitBroken = (): Promise<unknown> | undefined => undefined } = {},
): Listener {
  return (request, response) => {
    seen.capture = captureAnswer(response, {
      maxBodyBytes,
      keepHeaders: keptHeaders,
      onAnswer(answer) {
        seen.answer = answer;
        return wait();
      },
      onBroken() {
        seen.broken++;
        return waitBroken();
      },
      onClientGone: () => void seen.gone++,
    });
    return listener(request, response);
  };
}

const observed = (): Observed => ({ broken: 0, gone: 0 });

describe.concurrent('an answer by', () => {
  for (const [name, listener] of Object.entries(nodePaths)) {
    it(`${name} goes out as if nobody had looked, and is the same when it is replayed`, async ({ expect }) => {
      const bare = await withServer(listener, (port) => send(port, {}));
      const seen = observed();
      const first = await withServer(captured(listener, seen), (port) => send(port, {}));
      expect(wire(first)).toEqual(wire(bare));
      expect(bare.status).toBeGreaterThanOrEqual(200);
      const stored = encodeAnswer(seen.answer as Answer & { body: Uint8Array });
      const again = (_: unknown, response: ServerResponse) => replay(response, decodeAnswer(stored)!, 'k-1');
      const replayed = await withServer(again, (port) => send(port, {}));
      expectReplay(replayed, bare);
    });
  }
});

type Way = [string, (response: ServerResponse) => unknown];
/** Ways to answer with a stream. */
const streaming: readonly Way[] = [
  ['pipe', (response: ServerResponse) => void Readable.from(parts()).pipe(response)],
  ['pipeline', (response: ServerResponse) => void pipeline(Readable.from(parts()), response).catch(() => {})],
  [
    'writes that wait for drain',
    async (response: ServerResponse) => {
      for await (const part of parts()) if (!response.write(part)) await once(response, 'drain');
      response.end();
    },
  ],
];

describe('captureAnswer', () => {
  it('sends the first bytes of a stream at once, and holds the end until the answer has been processed', async () => {
    const { promise: stored, resolve: store } = deferred();
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

  it('is sent, and kept from no client, by a server that closes while the end waits', async () => {
    const { promise: stored, resolve: store } = deferred();
    const listener: Listener = (_request, response) => response.end('whole');
    const server = createServer(captured(listener, observed(), { wait: () => stored }));
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const ended = once(server, 'request');
    const answering = send((server.address() as AddressInfo).port, {});
    await ended;
    // Both close connections that have no request in flight.
    server.close();
    server.closeIdleConnections();
    store();
    expect((await answering).body.toString()).toBe('whole');
  });

  it('records no more than maxBodyBytes, and reports that the body is incomplete', async () => {
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

  it('throws what Node throws for an invalid end', async () => {
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
      for (const [status, words] of [
        [7, ''],
        [1_000, ''],
        [200, '\nwords'],
        [200, 'words\n'],
      ] as const) {
        response.statusCode = status;
        response.statusMessage = words;
        try {
          response.end('x');
        } catch (error) {
          complaints.push((error as NodeJS.ErrnoException).code);
        }
      }
      response.statusCode = 200;
      response.statusMessage = 'Words';
      response.end('well');
    };
    const bare = await withServer(listener, (port) => send(port, {}));
    const expected = complaints.splice(0);
    expect(expected).toHaveLength(8);
    const seen = observed();
    const first = await withServer(captured(listener, seen), (port) => send(port, {}));
    expect([wire(first), complaints]).toEqual([wire(bare), expected]);
    expect(Buffer.from(seen.answer!.body!).toString()).toBe('well');
  });

  it('lets nothing that follows the answer change it', async () => {
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

  it.each<Way>([
    ...streaming,
    [
      'an end in the background',
      async (response: ServerResponse) => {
        await sleep(20);
        response.writeHead(201, { 'X-A': '1' });
        response.end('x'.repeat(parts.bytes));
      },
    ],
  ])('has the complete answer of %s if the client disconnects halfway', async (_name, answer) => {
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
      await expect.poll(() => seen.answer?.body?.byteLength).toBe(parts.bytes);
      await expect.poll(() => closes).toEqual(['close, destroyed true']);
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
  ])('yields to the event loop while %s continues for nobody', async (_name, answer) => {
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
      await expect.poll(() => seen.answer?.body?.byteLength).toBe(parts.bytes);
    });
    expect(turns).toBeGreaterThan(20);
  });

  describe('of a request that waits behind another on its connection', () => {
    const first = requestBytes({}).toString().replace('Connection: close\r\n', '');
    /** The handlers: `/` is the request in front, `/behind` the ones that wait. */
    function inLine(seen: Observed, front: Listener, behind: Listener): Listener {
      return (request, response) => {
        if (request.url !== '/behind') return front(request, response);
        return captured(behind, seen)(request, response);
      };
    }

    it.each<Way>([
      ...streaming,
      [
        'an end in the background',
        async (response: ServerResponse) => {
          await new Promise((resolve) => response.req.socket.once('close', resolve));
          response.end('x'.repeat(parts.bytes));
        },
      ],
    ])('has the complete answer of %s if the client disconnects meanwhile', async (_name, answer) => {
      const seen = observed();
      const begun = deferred<void>();
      const closes: string[] = [];
      const listener = inLine(
        seen,
        () => {},
        (_request, response) => {
          response.on('close', () => closes.push(`close, destroyed ${response.destroyed}`));
          void answer(response);
          begun.resolve();
        },
      );
      await withServer(listener, async (port) => {
        const socket = connect(port, '127.0.0.1').on('error', () => {});
        socket.write(first + requestBytes({ path: '/behind' }));
        await begun.promise;
        socket.destroy();
        await expect.poll(() => seen.answer?.body?.byteLength).toBe(parts.bytes);
        await expect.poll(() => closes).toEqual(['close, destroyed true']);
      });
      expect([seen.gone, seen.broken]).toEqual([1, 0]);
    });

    it('has it even if the client had left before it was recorded', async () => {
      const seen = observed();
      const listener: Listener = (request, response) => {
        if (request.url !== '/behind') return;
        const answer = captured((_request, response) => void Readable.from(parts()).pipe(response), seen);
        request.socket.once('close', () => setImmediate(() => answer(request, response)));
      };
      await withServer(listener, async (port) => {
        const bytes = Buffer.from(first + requestBytes({ path: '/behind' }));
        await sendAndLeave(port, bytes, { afterSent: bytes.byteLength });
        await expect.poll(() => seen.answer?.body?.byteLength).toBe(parts.bytes);
      });
    });

    it('sends it in its turn, and leaves nothing behind on the connection', async () => {
      const warnings: Error[] = [];
      const warn = (warning: Error) => void warnings.push(warning);
      process.on('warning', warn);
      const seen = observed();
      const free = deferred<void>();
      let behind = 0;
      let listeners: number | undefined;
      const listener = inLine(
        seen,
        async (_request, response) => {
          await free.promise;
          response.end('first');
        },
        (request, response) => {
          if (++behind === 20) free.resolve();
          response.once('finish', () => {
            listeners = request.socket.listenerCount('close');
          });
          Readable.from(['behind']).pipe(response);
        },
      );
      const waiting = requestBytes({ path: '/behind' }).toString();
      const bytes = await withServer(listener, (port) =>
        exchange(port, Buffer.from(first + waiting.replace('Connection: close\r\n', '').repeat(19) + waiting)),
      );
      process.off('warning', warn);
      expect(bytes.toString().match(/first|behind/g)).toHaveLength(21);
      expect([seen.gone, seen.broken, warnings]).toEqual([0, 0, []]);
      expect(listeners).toBeLessThan(5);
    });
  });

  it('has the complete answer of a pipe that starts after the client disconnected with bytes unread', async () => {
    const seen = observed();
    const unread = 16 * 2 ** 20;
    const listener: Listener = async (_request, response) => {
      response.write(Buffer.alloc(unread));
      await expect.poll(() => seen.gone).toBe(1);
      Readable.from(['last']).pipe(response);
    };
    await withServer(captured(listener, seen, { maxBodyBytes: 2 * unread }), async (port) => {
      await sendAndLeave(port, requestBytes({}), { afterReceived: 1 });
      await expect.poll(() => seen.answer?.body?.byteLength).toBe(unread + 4);
    });
  });

  it('has the complete answer of a pipe behind a compressor, which reports nothing more of a disconnected client', async () => {
    const seen = observed();
    const parts = Array.from({ length: 40 }, () => randomBytes(32_768));
    const listener = compressed(captured((_request, response) => void Readable.from(parts).pipe(response), seen));
    const headers = [['Accept-Encoding', 'gzip']] as const;
    await withServer(listener, async (port) => {
      await sendAndLeave(port, requestBytes({ headers }), { afterReceived: 1 });
      await expect.poll(() => seen.answer?.body?.byteLength).toBe(40 * 32_768);
    });
  });

  it('yields to the event loop while a handler behind a compressor continues for nobody', async () => {
    const seen = observed();
    const part = randomBytes(32_768);
    let turns = 0;
    const count = () => {
      turns++;
      if (seen.answer === undefined) setImmediate(count);
    };
    const listener: Listener = (request, response) => {
      request.socket.once('close', count);
      let left = 100;
      const push = (): unknown => {
        while (left-- > 0) if (!response.write(part)) return response.once('drain', push);
        return response.end();
      };
      push();
    };
    const headers = [['Accept-Encoding', 'gzip']] as const;
    await withServer(compressed(captured(listener, seen)), async (port) => {
      await sendAndLeave(port, requestBytes({ headers }), { afterReceived: 1 });
      await expect.poll(() => seen.answer?.body?.byteLength).toBe(100 * 32_768);
    });
    expect(turns).toBeGreaterThan(20);
  });

  it('delivers a held-back close when it is stopped', async () => {
    const seen = observed();
    let closes = 0;
    const listener: Listener = (_request, response) => {
      response.on('close', () => closes++);
      response.write('first');
    };
    await withServer(captured(listener, seen), async (port) => {
      await sendAndLeave(port, requestBytes({}), { afterReceived: 1 });
      await expect.poll(() => seen.gone).toBe(1);
      expect([closes, seen.capture!.hasBegun]).toEqual([0, true]);
      seen.capture!.stop();
      expect(closes).toBe(1);
    });
  });

  it.each(['response', 'socket of the request'] as const)(
    'reports that the handler aborts its own answer by the %s',
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

  it.each(['response', 'socket of the request'] as const)(
    'breaks an answer that the handler aborts by the %s only when that has been processed, and whatever follows has no effect',
    async (by) => {
      const seen = observed();
      const processed = deferred<void>();
      let told: unknown[] = [];
      let called = 0;
      const listener: Listener = (request, response) => {
        const broken = new Error('source broke');
        response.on('close', () => told.push('close', response.errored));
        response.write('first', () => {
          if (by === 'response') response.destroy(broken);
          else request.socket.destroy(broken);
          told = [response.destroyed, response.closed, response.write('more', () => called++)];
          response.end('last');
          response.destroy();
          request.socket.destroy();
        });
      };
      await withServer(captured(listener, seen, { waitBroken: () => processed.promise }), async (port) => {
        let isOver = false;
        const bytes = exchange(port, requestBytes({})).finally(() => {
          isOver = true;
        });
        await expect.poll(() => seen.broken).toBe(1);
        await sleep(30);
        expect([isOver, called]).toEqual([false, 0]);
        processed.resolve();
        expect((await bytes).toString()).toMatch(/\r\n\r\n5\r\nfirst\r\n$/);
        await expect.poll(() => called).toBe(1);
      });
      expect(told).toEqual([true, false, false, 'close', expect.objectContaining({ message: 'source broke' })]);
      expect([seen.broken, seen.gone, seen.answer]).toEqual([1, 0, undefined]);
    },
  );

  it('sends nothing of an answer that the handler aborts before its head, whatever follows', async () => {
    const seen = observed();
    const processed = deferred<void>();
    const listener: Listener = (_request, response) => {
      response.destroy();
      response.setHeader('X-Late', '1');
      response.flushHeaders();
      response.writeHead(200);
      response.end('late');
      setImmediate(processed.resolve);
    };
    const server = captured(listener, seen, { waitBroken: () => processed.promise });
    expect(await withServer(server, (port) => exchange(port, requestBytes({})))).toHaveLength(0);
    expect([seen.broken, seen.gone, seen.answer]).toEqual([1, 0, undefined]);
  });

  it('tells the handler at once that a client disconnects while its abort is processed', async () => {
    const seen = observed();
    const processed = deferred<void>();
    let closes = 0;
    const listener: Listener = (_request, response) => {
      response.on('close', () => closes++);
      response.write('first', () => response.destroy());
    };
    await withServer(captured(listener, seen, { waitBroken: () => processed.promise }), async (port) => {
      await sendAndLeave(port, requestBytes({}), { afterReceived: 1 });
      await expect.poll(() => closes).toBe(1);
      processed.resolve();
      await sleep(0);
    });
    expect([closes, seen.broken, seen.gone]).toEqual([1, 1, 0]);
  });

  it.each([
    ['at once', () => undefined],
    ['later', () => sleep(1)],
  ])(
    'notices that the handler aborts its answer even after the client disconnected, and closes it %s',
    async (_, waitBroken) => {
      const seen = observed();
      const closes: boolean[] = [];
      const listener: Listener = (request, response) => {
        response.on('close', () => closes.push(response.destroyed));
        response.write('first');
        response.once('drain', () => request.socket.destroy());
      };
      await withServer(captured(listener, seen, { waitBroken }), async (port) => {
        await sendAndLeave(port, requestBytes({}), { afterReceived: 1 });
        await expect.poll(() => closes).toEqual([true]);
      });
      expect([seen.broken, seen.gone]).toEqual([1, 1]);
    },
  );

  it('does not mistake a server that closes its connections for a handler that aborts', async () => {
    const seen = observed();
    const server = createServer((request, response) => {
      const listener: Listener = (_request, response) => void response.write('first');
      captured(listener, seen)(request, response);
      setImmediate(() => server.closeAllConnections());
    });
    await listening(server, (port) => exchange(port, requestBytes({})));
    await expect.poll(() => seen.gone).toBe(1);
    expect(seen.broken).toBe(0);
  });

  it('restores the socket of the request when the answer has been sent', async () => {
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

  it('records a head that is given as a list of pairs', async () => {
    const seen = observed();
    const listener: Listener = (_request, response) => {
      response.writeHead(200, [
        ['X-A', '1'],
        ['X-A', '2'],
      ] as never);
      response.end('x');
    };
    const first = await withServer(captured(listener, seen), (port) => send(port, {}));
    expect(seen.answer!.headers).toEqual(['X-A', '1', 'X-A', '2']);
    expect(first.headers.filter(([name]) => name === 'X-A').map(([, value]) => value)).toEqual(['1', '2']);
  });

  it('destroys the connection of an answer whose length turns out wrong only when it is sent', async () => {
    const seen = observed();
    const listener: Listener = (_request, response) => {
      response.strictContentLength = true;
      response.setHeader('Content-Length', 5);
      response.end('abc');
    };
    const bytes = await withServer(captured(listener, seen), (port) => exchange(port, requestBytes({})));
    expect(bytes.toString()).not.toContain('abc');
  });

  it('does what Node does for a write after the end that was sent', async () => {
    let code: unknown;
    const listener: Listener = (_request, response) => {
      response.on('error', () => {});
      response.once('finish', () => {
        response.write('late', (error) => {
          code = (error as NodeJS.ErrnoException).code;
        });
        response.destroy();
      });
      response.end('x');
    };
    const seen = observed();
    await withServer(captured(listener, seen), (port) => send(port, {}));
    await expect.poll(() => code).toBe('ERR_STREAM_WRITE_AFTER_END');
    expect(seen.broken).toBe(0);
  });

  it('reports a client that disconnects while its answer is processed only afterwards', async () => {
    const seen = observed();
    let closes = 0;
    let isLost = false;
    const { promise: stored, resolve: store } = deferred();
    const listener: Listener = (request, response) => {
      response.on('close', () => closes++);
      request.socket.once('close', () => {
        isLost = true;
      });
      response.end('x');
    };
    await withServer(captured(listener, seen, { wait: () => stored }), async (port) => {
      await sendAndLeave(port, requestBytes({}), { afterSent: 1_000 });
      await expect.poll(() => isLost).toBe(true);
      expect([seen.gone, closes]).toEqual([0, 0]);
      store();
      await expect.poll(() => closes).toBe(1);
    });
    expect([seen.gone, seen.broken]).toEqual([0, 0]);
  });

  it('destroys the connection for code that kept the socket when the answer has been sent', async () => {
    const seen = observed();
    let isOut = false;
    const listener: Listener = (request, response) => {
      response.write('first,');
      const { socket } = request;
      response.once('finish', () => {
        isOut = true;
        socket.destroy();
      });
      response.end('last');
    };
    const request = requestBytes({}).toString().replace('Connection: close\r\n', '');
    await withServer(captured(listener, seen), (port) => exchange(port, Buffer.from(request)));
    expect([isOut, seen.broken, seen.answer === undefined]).toEqual([true, 0, false]);
  });

  it('does nothing when stopped after the answer, and restores the socket when stopped before', async () => {
    const seen = observed();
    const sockets = new Set<unknown>();
    const listener: Listener = (request, response) => {
      sockets.add(request.socket);
      response.write('first,');
      if (request.url === '/stop') {
        seen.capture!.stop();
        sockets.add(request.socket);
      }
      response.end('last');
      seen.capture!.stop();
    };
    const ended = await withServer(captured(listener, seen), (port) => send(port, {}));
    expect([ended.body.toString(), Buffer.from(seen.answer!.body!).toString()]).toEqual(['first,last', 'first,last']);
    sockets.clear();
    delete seen.answer;
    const stopped = await withServer(captured(listener, seen), (port) => send(port, { path: '/stop' }));
    expect([stopped.body.toString(), seen.answer, sockets.size]).toEqual(['first,last', undefined, 1]);
  });

  it('records what is written for a client that had disconnected before the capture', async () => {
    const seen = observed();
    let called = 0;
    let told: unknown[] = [];
    await withServer(
      async (request, response) => {
        response.on('error', () => {});
        await once(response, 'close');
        captured(() => {}, seen)(request, response);
        let alone = 0;
        whenAlone(response, () => alone++);
        response.setHeader('X-A', '1');
        response.write('first,', () => called++);
        told = [response.destroyed, response.headersSent, alone];
        response.end('last');
      },
      async (port) => {
        await sendAndLeave(port, requestBytes({}), { afterSent: 1_000 });
        await expect.poll(() => seen.answer?.body?.byteLength).toBe(10);
      },
    );
    await expect.poll(() => called).toBe(1);
    expect([seen.gone, told, seen.answer!.headers]).toEqual([1, [false, true, 1], ['X-A', '1']]);
  });

  it('reports a disconnected client once', async () => {
    const seen = observed();
    let alone = 0;
    const listener: Listener = (_request, response) => {
      whenAlone(response, () => alone++);
      response.write('first');
    };
    await withServer(captured(listener, seen), async (port) => {
      await sendAndLeave(port, requestBytes({}), { afterReceived: 1 });
      await expect.poll(() => alone).toBe(1);
      seen.capture!.stop();
      seen.capture!.stop();
    });
    expect([alone, seen.gone]).toEqual([1, 1]);
  });

  it('can be applied twice to one answer, by one engine inside another', async () => {
    const [outer, inner] = [observed(), observed()];
    const whole: Listener = (_request, response) => {
      response.write('first,');
      response.end('last');
    };
    const both = (listener: Listener) =>
      captured((request, response) => captured(listener, inner)(request, response), outer);
    const first = await withServer(both(whole), (port) => send(port, {}));
    expect(first.body.toString()).toBe('first,last');
    for (const { answer } of [outer, inner]) expect(Buffer.from(answer!.body!).toString()).toBe('first,last');
    const broken: Listener = (_request, response) => {
      response.write('half');
      setTimeout(() => response.destroy(), 5);
    };
    await withServer(both(broken), (port) => exchange(port, requestBytes({})));
    expect([outer.broken, inner.broken]).toEqual([1, 1]);
  });
});

/** Behind the middleware that an app usually mounts first. */
function compressed(listener: Listener): Listener {
  const compress = compression({ threshold: 0, filter: () => true }) as unknown as (
    ...given: [...Parameters<Listener>, () => void]
  ) => void;
  return (request, response) => compress(request, response, () => void listener(request, response));
}

describe('an answer whose head waits', () => {
  /** What a handler is told, and what its client gets, when `resume` is called as soon as the handler has answered. */
  async function waiting(
    listener: Listener,
    resume: (capture: ResponseCapture) => void,
    isWaiting: (seen: Observed) => boolean = ({ answer }) => answer !== undefined,
    around: (listener: Listener) => Listener = (inner) => inner,
  ) {
    const seen = observed();
    const bytes = await withServer(
      around((request, response) => {
        seen.capture = captureAnswer(response, {
          maxBodyBytes: 1_000,
          keepHeaders: keptHeaders,
          onHead: () => 'wait',
          onAnswer(answer) {
            seen.answer = answer;
            return undefined;
          },
          onBroken: () => void seen.broken++,
          onClientGone: () => void seen.gone++,
        });
        return listener(request, response);
      }),
      async (port) => {
        const answer = send(port, { headers: [['Accept-Encoding', 'gzip']] });
        await expect.poll(() => isWaiting(seen)).toBe(true);
        resume(seen.capture!);
        resume(seen.capture!);
        return answer;
      },
    );
    return { seen, answer: bytes };
  }

  it('goes out as it was written when the wait is over, and is recorded before', async () => {
    const told: unknown[] = [];
    let drains = 0;
    const part = Buffer.from('first,');
    const { seen, answer } = await waiting(
      (_request, response) => {
        response.on('drain', () => drains++);
        response.statusCode = 503;
        told.push(response.write(part), response.end('last') === response);
        part.fill(0);
      },
      (capture) => {
        told.push(capture.hasBegun);
        // That callback is for a handler that is still writing.
        capture.stop();
        capture.resume();
      },
    );
    expect([answer.status, answer.body.toString(), told.slice(0, 3)]).toEqual([503, 'first,last', [false, true, true]]);
    expect(drains).toBe(0);
    expect([seen.answer!.status, Buffer.from(seen.answer!.body!).toString()]).toEqual([503, 'first,last']);
  });

  it.each([
    ['begun', false],
    ['ended', true],
  ])('that has %s shows it, and keeps its head and what was written', async (_, ends) => {
    let hasAnswered = false;
    let change = () => {};
    const { answer } = await waiting(
      (_request, response) => {
        response.statusCode = 503;
        response.setHeader('X-A', '1');
        if (!ends) response.write('first,');
        const { end } = response;
        if (ends) response.end('first,');
        change = () => {
          expect([response.headersSent, response.writableEnded]).toEqual([!ends, ends]);
          response.statusCode = 504;
          response.statusMessage = 'Too Late';
          response.setHeader('X-A', '2').setHeader('Content-Length', 4);
          if (ends) expect(response.write('late')).toBe(false);
          Reflect.apply(end, response, ['last']);
        };
        hasAnswered = true;
      },
      (capture) => {
        change();
        change = () => {};
        capture.resume();
      },
      () => hasAnswered,
    );
    expect([answer.statusLine, headerOf(answer, 'x-a')]).toEqual(['HTTP/1.1 503 Service Unavailable', '1']);
    expect(answer.body.toString()).toBe(ends ? 'first,' : 'first,last');
  });

  it('continues after the wait, when a drain event tells its handler', async () => {
    let drains = 0;
    let hasWritten = false;
    const { answer } = await waiting(
      (_request, response) => {
        response.once('drain', () => {
          drains++;
          response.end('last');
        });
        response.write('first,');
        hasWritten = true;
      },
      (capture) => capture.resume(),
      () => hasWritten,
    );
    expect([answer.body.toString(), drains]).toEqual(['first,last', 1]);
  });

  it('continues to be piped after the wait behind a compressor, which holds the drain listeners', async () => {
    let hasWritten = false;
    const parts = async function* () {
      yield 'first,';
      setImmediate(() => {
        hasWritten = true;
      });
      yield 'last';
    };
    const { answer } = await waiting(
      (_request, response) => void Readable.from(parts(), { highWaterMark: 1 }).pipe(response),
      (capture) => capture.resume(),
      () => hasWritten,
      compressed,
    );
    expect(gunzipSync(answer.body).toString()).toBe('first,last');
  });

  it('is replaced by another answer, after which its handler has no effect', async () => {
    const told: unknown[] = [];
    let write = () => {};
    let closes = 0;
    const { seen, answer } = await waiting(
      (_request, response) => {
        response.once('close', () => closes++);
        response.writeHead(503, { 'X-A': '1' });
        response.write('first,');
        write = () => {
          const note = (name: string) => () => void told.push(name);
          told.push(response.write('more', note('more')), response.end('last', note('last')) === response);
          told.push(response.destroy() === response);
        };
        told.push('begun');
      },
      (capture) => {
        const body = Buffer.from('instead');
        capture.resume({ status: 200, statusMessage: '', headers: ['X-B', '2'], body });
        write();
        write = () => {};
      },
      () => told.length > 0,
    );
    expect([answer.status, answer.body.toString()]).toEqual([200, 'instead']);
    expect(seen.answer).toBeUndefined();
    expect([headerOf(answer, 'x-a'), headerOf(answer, 'x-b')]).toEqual([undefined, '2']);
    expect(told).toEqual(['begun', true, true, true, 'more', 'last']);
    await expect.poll(() => closes).toBe(1);
    expect(seen.broken).toBe(0);
  });

  it.each([
    ['has ended', true, undefined, 1],
    ['has not ended', false, undefined, 0],
    ['is replaced', false, { status: 200, statusMessage: '', headers: [], body: Buffer.from('instead') }, 1],
  ])('of a disconnected client delivers the close when the answer %s', async (_, ends, instead, expected) => {
    const seen = observed();
    let closes = 0;
    let hasEnded = () => false;
    let end = () => {};
    const listener: Listener = (_request, response) => {
      hasEnded = () => response.writableEnded;
      end = () => void response.end('last');
      response.on('close', () => closes++);
      response.write('first');
      if (ends) response.end('last');
    };
    await withServer(
      (request, response) => {
        seen.capture = captureAnswer(response, {
          maxBodyBytes: 1_000,
          keepHeaders: keptHeaders,
          onHead: () => 'wait',
          onAnswer: () => undefined,
          onBroken: () => undefined,
          onClientGone() {},
        });
        request.socket.once('close', () => seen.gone++);
        return listener(request, response);
      },
      async (port) => {
        await sendAndLeave(port, requestBytes({}), { afterSent: 1_000 });
        await expect.poll(() => seen.gone).toBe(1);
        await sleep(0);
        expect(closes).toBe(0);
        seen.capture!.resume(instead);
        expect([closes, hasEnded()]).toEqual([expected, ends]);
        // One call is enough, whatever the handler does afterwards.
        end();
        await sleep(0);
        expect([closes, hasEnded()]).toEqual([1, true]);
      },
    );
  });
});

describe('joined', () => {
  it('joins all chunks, and returns a single one unchanged', () => {
    const [one, other] = [Uint8Array.of(1), Uint8Array.of(2, 3)];
    expect(joined([one], 1)).toBe(one);
    expect(joined([one, other], 3)).toEqual(Uint8Array.of(1, 2, 3));
    expect(joined([], 0)).toHaveLength(0);
  });
});

/** More than the buffers of a socket hold, in parts. */
function* parts() {
  for (let index = 0; index < 80; index++) yield Buffer.alloc(100_000, 'p');
}
parts.bytes = 8_000_000;
