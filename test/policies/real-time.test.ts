/**
 * The faults of `field-faults.test.ts` once more, with a real clock, a real HTTP server and real sockets. Every test waits for events, and times have wide
 * limits.
 */
import { execFileSync } from 'node:child_process';
import { EventEmitter, once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { Worker } from 'node:worker_threads';
import { afterEach, describe, expect, it } from 'vitest';
import {
  attemptsOf,
  constant,
  deadline,
  type HoldfastEvent,
  pipeline,
  retry,
  systemClock,
  TimeoutError,
  timeout,
} from '../../src/index.js';

/** Far longer than any test may take: whoever waits for it has failed. */
const aMinute = '1m';
const soonMs = 50_000;

type Handler = (request: IncomingMessage, response: ServerResponse) => void;

let closeServer: (() => Promise<void>) | undefined;

afterEach(async () => {
  await closeServer?.();
  closeServer = undefined;
});

/** A server on a free port of the loopback interface. It reports how many connections are open. */
async function serve(handler: Handler) {
  const connections = new Set<Socket>();
  const server = createServer(handler);
  server.on('connection', (socket) => {
    connections.add(socket);
    socket.once('close', () => {
      connections.delete(socket);
      server.emit('connection closed');
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  closeServer = async () => {
    server.closeAllConnections();
    server.close();
    await once(server, 'close');
  };
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`,
    connections,
    async untilNoConnection() {
      while (connections.size > 0) await once(server, 'connection closed', { signal: AbortSignal.timeout(soonMs) });
    },
  };
}

async function timed<T>(task: () => Promise<T>) {
  const startedMs = systemClock.now();
  const value = await task();
  return { value, tookMs: systemClock.now() - startedMs };
}

describe('timeout', () => {
  it('ends a fetch from a server that never answers on time, and frees its connection', async () => {
    const server = await serve(() => {});
    const quick = pipeline(timeout('100ms'));
    const { value, tookMs } = await timed(() => quick.attempt(({ signal }) => fetch(server.url, { signal })));
    expect(value).toMatchObject({ ok: false, error: { code: 'ERR_TIMEOUT' } });
    expect(tookMs).toBeGreaterThanOrEqual(100);
    expect(tookMs).toBeLessThan(soonMs);
    await server.untilNoConnection();
    expect(server.connections.size).toBe(0);
  });

  it('B10: leaves a running call alone when another one is late', async () => {
    const arrivals = new EventEmitter();
    const server = await serve((request, response) => {
      if (request.url === '/slow') arrivals.emit('slow', response);
    });
    const slowArrives = once(arrivals, 'slow');
    const slow = pipeline(timeout(aMinute)).attempt(({ signal }) =>
      fetch(`${server.url}slow`, { signal }).then((response) => response.text()),
    );
    const [response] = await slowArrives;
    const late = await pipeline(timeout('50ms')).attempt(({ signal }) => fetch(`${server.url}hangs`, { signal }));
    response.end('slow');
    expect(late).toMatchObject({ ok: false, error: { code: 'ERR_TIMEOUT' } });
    expect(await slow).toEqual({ ok: true, value: 'slow' });
  });

  it('takes no answer for late that came while the event loop was blocked', async () => {
    const answered = new Int32Array(new SharedArrayBuffer(4));
    const elsewhere = new Worker(
      `const { parentPort, workerData } = require('node:worker_threads');
       const server = require('node:http').createServer((_, response) => {
         parentPort.postMessage('asked');
         setTimeout(() => response.end('in time', () => {
           Atomics.store(workerData, 0, 1);
           Atomics.notify(workerData, 0);
         }), 50);
       });
       server.listen(0, '127.0.0.1', () => parentPort.postMessage(server.address().port));`,
      { eval: true, workerData: answered },
    );
    const [port] = await once(elsewhere, 'message');
    const asked = once(elsewhere, 'message');
    const untilMs = systemClock.now() + 1_000;
    const answer = pipeline(timeout(1_000)).attempt(({ signal }) =>
      fetch(`http://127.0.0.1:${port}/`, { signal }).then((response) => response.text()),
    );
    await asked;
    Atomics.wait(answered, 0, 0, soonMs);
    Atomics.wait(answered, 0, 1, untilMs + 50 - systemClock.now());
    expect(await answer).toEqual({ ok: true, value: 'in time' });
    await elsewhere.terminate();
  });

  it("R12: rejects at once with the caller's reason when it aborts a hanging fetch, and reports no timeout", async () => {
    const controller = new AbortController();
    const events: HoldfastEvent[] = [];
    const server = await serve(() => controller.abort('gone'));
    const patient = pipeline(timeout({ after: aMinute, on: (event) => events.push(event) }));
    const { value, tookMs } = await timed(() =>
      patient.attempt(({ signal }) => fetch(server.url, { signal }), { signal: controller.signal }),
    );
    expect(value).toEqual({ ok: false, error: 'gone' });
    expect(tookMs).toBeLessThan(soonMs);
    expect(events).toEqual([]);
    await server.untilNoConnection();
  });

  it('R14: lets the body of a response be read after the call has succeeded and its time has passed', async () => {
    let endBody: (() => void) | undefined;
    const server = await serve((_, response) => {
      response.write('first, ');
      endBody = () => response.end('last');
    });
    const response = await pipeline(timeout('800ms')).execute(({ signal }) => fetch(server.url, { signal }));
    // The body is ended by a second timeout of the same clock, later than the first one could have ended it.
    await pipeline(timeout('850ms')).attempt(() => new Promise(() => {}));
    endBody?.();
    expect(await response.text()).toBe('first, last');
  });

  it('ends an operation that reads an endlessly dripping body, and the body with it', async () => {
    const server = await serve((_, response) => {
      const drip = () => {
        if (response.destroyed) return;
        response.write('drop', () => setImmediate(drip));
      };
      drip();
    });
    const quick = pipeline(timeout('150ms'));
    const { value, tookMs } = await timed(() =>
      quick.attempt(async ({ signal }) => {
        const response = await fetch(server.url, { signal });
        for await (const _ of response.body ?? []) if (signal.aborted) break;
        return 'the end';
      }),
    );
    expect(value).toMatchObject({ ok: false, error: expect.any(TimeoutError) });
    expect(tookMs).toBeLessThan(soonMs);
    await server.untilNoConnection();
  });
});

describe('retry', () => {
  it('R01: ends a wait at once when the caller aborts, without another request', async () => {
    let requests = 0;
    const server = await serve((_, response) => {
      requests++;
      response.writeHead(500).end();
    });
    const controller = new AbortController();
    const steady = pipeline(
      retry({
        backoff: constant(aMinute),
        handles: (outcome) => !outcome.ok || outcome.value.status === 500,
        on: (event) => event.type === 'retry' && setImmediate(() => controller.abort('gone')),
      }),
    );
    const { value, tookMs } = await timed(() =>
      steady.attempt(({ signal }) => fetch(server.url, { signal }), { signal: controller.signal }),
    );
    expect(value).toEqual({ ok: false, error: 'gone' });
    expect(tookMs).toBeLessThan(soonMs);
    expect(requests).toBe(1);
  });

  it('R06: comes back no earlier than a real 503 asks for', async () => {
    const requestsAt: number[] = [];
    const server = await serve((_, response) => {
      requestsAt.push(systemClock.now());
      if (requestsAt.length === 1) response.writeHead(503, { 'Retry-After': '1' }).end('busy');
      else response.end('ready');
    });
    const steady = pipeline(
      retry({
        backoff: constant(1),
        handles: (outcome) => !outcome.ok || outcome.value.status === 503,
        onDiscard: (response: unknown) => (response as Response).body?.cancel(),
      }),
    );
    const response = await steady.execute(({ signal }) => fetch(server.url, { signal }));
    expect(await response.text()).toBe('ready');
    expect(requestsAt).toHaveLength(2);
    const [first = 0, second = 0] = requestsAt;
    // The server records a request somewhat later than the client made it.
    expect(second - first).toBeGreaterThanOrEqual(900);
    expect(second - first).toBeLessThan(soonMs);
  });

  it('R06: gives up at once if a real 503 asks for longer than allowed, and returns it readable', async () => {
    let requests = 0;
    const server = await serve((_, response) => {
      requests++;
      response.writeHead(503, { 'Retry-After': '60' }).end('busy');
    });
    const steady = pipeline(
      retry({ maxRetryAfter: '1s', handles: (outcome) => !outcome.ok || outcome.value.status === 503 }),
    );
    const { value: response, tookMs } = await timed(() =>
      steady.execute(({ signal }) => fetch(server.url, { signal })),
    );
    expect(attemptsOf(response)).toMatchObject({ attempts: 1, stoppedBy: 'pushback', retryAfterMs: 60_000 });
    expect(await response.text()).toBe('busy');
    expect(tookMs).toBeLessThan(soonMs);
    expect(requests).toBe(1);
  });

  it('repeats a request whose connection was reset', async () => {
    let requests = 0;
    const server = await serve((request, response) => {
      if (++requests < 3) request.socket.resetAndDestroy();
      else response.end('third time');
    });
    const steady = pipeline(deadline(aMinute), retry({ attempts: 3, backoff: constant(5) }), timeout('30s'));
    expect(await steady.execute(({ signal }) => fetch(server.url, { signal }).then((answer) => answer.text()))).toBe(
      'third time',
    );
    expect(requests).toBe(3);
  });

  it('R20: sends no request after the outer deadline, and leaves no connection', async () => {
    let requests = 0;
    const server = await serve(() => void requests++);
    const bounded = pipeline(
      deadline('250ms'),
      retry({ attempts: 50, backoff: constant(5) }),
      timeout({ after: '50ms', name: 'each' }),
    );
    const { value, tookMs } = await timed(() => bounded.attempt(({ signal }) => fetch(server.url, { signal })));
    expect(value.ok).toBe(false);
    expect(tookMs).toBeLessThan(soonMs);
    await server.untilNoConnection();
    const requestsAtEnd = requests;
    // This is ten times as long as a wait and an attempt would take.
    await pipeline(timeout('550ms')).attempt(() => new Promise(() => {}));
    expect(requests).toBe(requestsAtEnd);
    expect(server.connections.size).toBe(0);
  });
});

describe('a process', () => {
  it('B29: ends when its last call has ended, whatever its policies could still wait for', () => {
    const script = `
      import { constant, deadline, fallback, pipeline, retry, retryBudget, timeout } from ${JSON.stringify(new URL('../../dist/index.js', import.meta.url).href)};
      const all = pipeline(
        fallback(() => 'instead'), deadline('5m'), retry({ backoff: constant('1m'), budget: retryBudget() }), timeout('2m'),
      );
      const controller = new AbortController();
      const waits = all.attempt(() => Promise.reject(new Error('down')), { signal: controller.signal });
      const hangs = all.attempt(() => new Promise(() => {}), { signal: controller.signal });
      console.log(await all.execute(() => 'done'));
      setImmediate(() => controller.abort('gone'));
      console.log((await waits).error, (await hangs).error);
    `;
    const output = execFileSync(process.execPath, ['--input-type=module', '--eval', script], {
      encoding: 'utf8',
      timeout: 60_000,
    });
    expect(output).toBe('done\ngone gone\n');
  });
});
