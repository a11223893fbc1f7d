/** The deadline of a request, with real servers of each framework, and its engine in virtual time. */
import { AsyncLocalStorage } from 'node:async_hooks';
import { EventEmitter, once } from 'node:events';
import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises';
import { Agent, request as undiciRequest } from 'undici';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { ambient } from '../../src/core/ambient.js';
import {
  attemptsOf,
  type Call,
  constant,
  DeadlineExceededError,
  type HoldfastEvent,
  OptionsError,
  pipeline,
  retry,
  timeout,
} from '../../src/index.js';
import { currentCall, enableContext } from '../../src/integrations/context.js';
import { attemptHeader, deadlineHeaders } from '../../src/policies/deadline-headers.js';
import { DeadlineEngine, type DeadlineMiddlewareOptions, findCall, requireCall } from '../../src/server/deadline.js';
import { type Problem, problemBody } from '../../src/server/problem.js';
import { virtualClock } from '../../src/testing/index.js';
import { deferred } from '../support/deferred.ts';
import {
  type Framework,
  frameworks,
  type Handler,
  openSocket,
  problemOf,
  type Running,
  untilAborted,
} from './support.js';

const place = Symbol.for('holdfast.context');
const cell = (globalThis as unknown as { [place]: { ambient: object | undefined } })[place];
const running: Running[] = [];

afterEach(async () => {
  cell.ambient = undefined;
  await Promise.all(running.splice(0).map((server) => server.close()));
});

describe.each(frameworks)('deadline of $name', (framework: Framework) => {
  async function serve(options: DeadlineMiddlewareOptions, handler: Handler): Promise<Running> {
    const server = await framework.serve(options, handler);
    running.push(server);
    return server;
  }

  it.each([
    ['request-deadline-ms', '5000', 5_000],
    ['grpc-timeout', '5S', 5_000],
    ['x-envoy-expected-rq-timeout-ms', '4000', 4_000],
    ['grpc-timeout', '900S', 30_000],
    ['request-deadline-ms', 'soon', 10_000],
    ['request-deadline-ms', '-5', 10_000],
    ['accept', '*/*', 10_000],
  ])(
    'gives the request what %s: %s grants, at most maxAccept, otherwise the default',
    async (name, value, grantedMs) => {
      const options = { default: '10s', maxAccept: '30s', clock: virtualClock() } as const;
      const { url } = await serve(options, ({ remainingMs }) => ({ remainingMs }));
      expect(await (await fetch(url, { headers: { [name]: value } })).json()).toEqual({ remainingMs: grantedMs });
    },
  );

  it('ignores a header that is sent twice', async () => {
    const { port } = await serve({ default: '10s', clock: virtualClock() }, (call) => ({
      isDefault: call.remainingMs === 10_000,
    }));
    const line = 'request-deadline-ms: 5';
    const socket = await openSocket(port, 'GET / HTTP/1.1', 'host: a', line, line, 'connection: close');
    let text = '';
    for await (const chunk of socket) text += chunk;
    expect(text).toContain('{"isDefault":true}');
  });

  it('sets no deadline without header and default, and reads none if headers are off', async () => {
    const open = await serve({}, (call) => ({ ends: call.deadline !== Number.POSITIVE_INFINITY }));
    const closed = await serve({ headers: false }, (call) => ({
      ends: call.deadline !== Number.POSITIVE_INFINITY,
      isRetried: call.isRetried(),
    }));
    const headers = { 'request-deadline-ms': '0', [attemptHeader]: '2' };
    expect(await (await fetch(open.url)).json()).toEqual({ ends: false });
    expect(await (await fetch(closed.url, { headers })).json()).toEqual({ ends: false, isRetried: false });
  });

  it('answers a request without time left with 504 and does not handle it', async () => {
    const events: HoldfastEvent[] = [];
    let handled = 0;
    const { url } = await serve({ on: (event) => events.push(event) }, () => ++handled);
    for (const headers of [{ 'request-deadline-ms': '0' }, { 'grpc-timeout': '0n' }]) {
      expect(await problemOf(await fetch(url, { headers }))).toEqual({
        status: 504,
        type: 'application/problem+json',
        body: {
          type: 'about:blank',
          title: 'Gateway Timeout',
          status: 504,
          detail: expect.stringContaining('was not handled'),
          code: 'ERR_DEADLINE_TOO_SHORT',
        },
      });
    }
    expect(handled).toBe(0);
    expect(events).toEqual(Array(2).fill({ type: 'deadline-too-short', name: 'deadline', remainingMs: 0 }));
  });

  const late = new Error('late');
  it.each([
    ['hears of it', (call: Call) => untilAborted(call.signal)],
    ['answers late', (call: Call) => untilAborted(call.signal).catch(() => sleep(5, { late: true }))],
    ['fails late', (call: Call) => untilAborted(call.signal).catch(() => sleep(5).then(() => Promise.reject(late)))],
  ])('answers 504 once when the time passes, even if the handler %s, and keeps the connection', async (_, task) => {
    const events: HoldfastEvent[] = [];
    const calls: Call[] = [];
    let isSlow = true;
    let ended: Promise<unknown> | undefined;
    const clock = virtualClock();
    const options = { name: 'inbound', on: (event: HoldfastEvent) => events.push(event), clock };
    const { url, complaints } = await serve(options, (call) => {
      calls.push(call);
      if (!isSlow) return { isSlow };
      const work = task(call);
      void clock.advance(60);
      ended = work.then(
        () => undefined,
        () => undefined,
      );
      return work;
    });
    const connections = new Set<unknown>();
    const agent = new Agent({ connections: 1, pipelining: 1 });
    agent.on('connect', (origin) => connections.add([origin]));
    const ask = () => undiciRequest(url, { dispatcher: agent, headers: { 'request-deadline-ms': '60' } });
    const first = await ask();
    expect(first.statusCode).toBe(504);
    expect(await first.body.json()).toMatchObject({ status: 504, code: 'ERR_DEADLINE_EXCEEDED' });
    await ended;
    await turn();
    await turn();
    isSlow = false;
    expect(await (await ask()).body.json()).toEqual({ isSlow: false });
    expect(connections.size).toBe(1);
    expect(calls[0]?.reason).toBeInstanceOf(DeadlineExceededError);
    expect(calls[1]?.aborted).toBe(false);
    expect(events).toEqual([{ type: 'deadline-exceeded', name: 'inbound', afterMs: 60 }]);
    expect(complaints.filter((complaint) => String(complaint).includes('HEADERS_SENT'))).toEqual([]);
    await agent.close();
  });

  it('answers on time if the body arrives too slowly, and does not run its pipelines afterwards', async () => {
    let ran = false;
    const { port } = await serve({}, (call) =>
      pipeline().execute(
        () => {
          ran = true;
          return {};
        },
        { signal: call.signal },
      ),
    );
    const head = ['POST / HTTP/1.1', 'host: a', 'content-type: application/json', 'content-length: 2'];
    const socket = await openSocket(port, ...head, 'request-deadline-ms: 50');
    socket.write('{');
    const [chunk] = await once(socket, 'data');
    expect(String(chunk)).toContain('504 Gateway Timeout');
    socket.write('}');
    await sleep(20);
    expect(ran).toBe(false);
    socket.destroy();
  });

  it('aborts the call with an ordinary reason when the client disconnects', async () => {
    const started = deferred<Call>();
    const failed = deferred<unknown>();
    const { port } = await serve({ default: '10s' }, async (call) => {
      started.resolve(call);
      await untilAborted(call.signal).catch(failed.resolve);
      return {};
    });
    const socket = await openSocket(port, 'GET / HTTP/1.1', 'host: a');
    await started.promise;
    socket.destroy();
    expect(await failed.promise).toMatchObject({ name: 'AbortError', message: expect.stringContaining('client') });
  });

  it('leaves no timer and no listener, and aborts nothing, when the answer has been sent', async () => {
    const clock = virtualClock();
    const seen = deferred<Call>();
    const { url } = await serve({ default: '10s', clock }, (call) => {
      seen.resolve(call);
      call.signal.addEventListener('abort', () => {});
      return { pending: clock.pendingTimers };
    });
    expect(await (await fetch(url)).json()).toEqual({ pending: 1 });
    await expect.poll(() => clock.pendingTimers).toBe(0);
    expect((await seen.promise).aborted).toBe(false);
  });

  it('passes its deadline to inner pipelines, and ends them, even after a body was read', async () => {
    enableContext();
    const clock = virtualClock();
    const inner = pipeline(timeout({ after: '1m', clock }));
    const reasons: unknown[] = [];
    const { url } = await serve({ clock }, async (call) => {
      const leftMs = await inner.execute(async ({ deadline }) => call.deadline - deadline);
      expect([currentCall() === call, leftMs]).toEqual([true, 0]);
      const ended = inner.execute(({ signal }) => untilAborted(signal)).catch((error) => reasons.push(error));
      await clock.advance(300);
      await ended;
      return {};
    });
    const headers = { 'request-deadline-ms': '300', 'content-type': 'application/json' };
    expect((await fetch(url, { headers })).status).toBe(504);
    expect((await fetch(url, { headers, method: 'POST', body: '{"a":1}' })).status).toBe(504);
    await turn();
    expect(reasons).toEqual([expect.any(DeadlineExceededError), expect.any(DeadlineExceededError)]);
  });

  it('relays less time than it received to the next server', async () => {
    const received: number[] = [];
    const clock = virtualClock();
    const last = await serve({ clock }, (call, headers) => {
      received.push(Number(headers['request-deadline-ms']));
      return { leftMs: call.remainingMs };
    });
    const first = await serve({ clock }, async (call) => {
      const answer = await fetch(last.url, { headers: deadlineHeaders(call.remainingMs) });
      return answer.json();
    });
    for (const ms of [400, 5_000, 60_000]) {
      const answer = await fetch(first.url, { headers: { 'request-deadline-ms': String(ms) } });
      const { leftMs } = (await answer.json()) as { leftMs: number };
      expect(received.at(-1)).toBeLessThanOrEqual(ms - Math.max(5, ms / 100));
      expect(received.at(-1)).toBeGreaterThan(0);
      expect(leftMs).toBeLessThan(ms);
    }
  });

  it('lets the outermost retry make the attempts of all services behind it', async () => {
    enableContext();
    const steady = pipeline(retry({ attempts: 3, backoff: constant(1) }));
    let innermost = 0;
    const failing = await serve({}, () => {
      innermost++;
      return { ok: false };
    });
    const stops: unknown[] = [];
    const attempts: unknown[] = [];
    /** Passes the request on with a retry of its own, and says that it retries, as our HTTP clients do. */
    const askOn = async (url: string) => {
      const outcome = await steady.attempt(async (call) => {
        const answer = await fetch(url, { headers: { [attemptHeader]: String(call.attempt) } });
        if (!((await answer.json()) as { ok: boolean }).ok) throw new Error('failed');
        return { ok: true };
      });
      if (!outcome.ok) stops.push(attemptsOf(outcome.error)?.stoppedBy);
      return { ok: outcome.ok };
    };
    const middle = await serve({}, (call) => {
      attempts.push(call.attempt);
      return askOn(failing.url);
    });
    expect(await askOn(middle.url)).toEqual({ ok: false });
    expect(innermost).toBe(3);
    expect(attempts).toEqual([1, 2, 3]);
    expect(stops).toEqual(['nested', 'nested', 'nested', 'attempts']);
  });

  it('lets a service behind a caller that does not retry make its own attempts', async () => {
    enableContext();
    let calls = 0;
    const steady = pipeline(retry({ attempts: 3, backoff: constant(1) }));
    const { url } = await serve({}, () =>
      steady.attempt(() => {
        calls++;
        throw new Error('down');
      }),
    );
    await (await fetch(url)).text();
    expect(calls).toBe(3);
  });
});

describe('the engine of deadline', () => {
  /** A request and its answer without a server. */
  function exchangeOf(headers: Readonly<Record<string, string>> = {}, carrier: object = {}) {
    const answers: Problem[] = [];
    const response = new EventEmitter();
    const exchange = {
      request: carrier,
      response,
      header: (name: string) => headers[name],
      answer: (problem: Problem) => void answers.push(problem),
    };
    return { exchange, response, answers, carrier };
  }

  const listenersOf = (response: EventEmitter) => response.listenerCount('finish') + response.listenerCount('close');

  it('ends the request at its deadline, not before, and releases it', async () => {
    const clock = virtualClock();
    const { exchange, response, answers, carrier } = exchangeOf({ 'request-deadline-ms': '100' });
    new DeadlineEngine({ clock }).begin(exchange, () => {});
    const call = requireCall(carrier);
    expect([call.deadline, listenersOf(response), clock.pendingTimers]).toEqual([100, 2, 1]);
    await clock.advance(99);
    expect([call.aborted, answers]).toEqual([false, []]);
    await clock.advance(1);
    expect(call.reason).toBeInstanceOf(DeadlineExceededError);
    expect(answers).toMatchObject([{ status: 504, code: 'ERR_DEADLINE_EXCEEDED' }]);
    expect([listenersOf(response), clock.pendingTimers]).toEqual([0, 0]);
    response.emit('close');
    expect(answers.length).toBe(1);
  });

  it('answers before it aborts, so that the handler cannot answer first', async () => {
    const clock = virtualClock();
    const { exchange, answers, carrier } = exchangeOf({ 'grpc-timeout': '5m' });
    new DeadlineEngine({ clock }).begin(exchange, () => {});
    let answersAtAbort = 0;
    requireCall(carrier).signal.addEventListener('abort', () => {
      answersAtAbort = answers.length;
    });
    await clock.runAll();
    expect(answersAtAbort).toBe(1);
  });

  it('answers and aborts in the asynchronous context of the request, whoever moves the clock', async () => {
    const clock = virtualClock();
    const requests = new AsyncLocalStorage<string>();
    const seen: unknown[] = [];
    const see = () => void seen.push(requests.getStore());
    const { exchange, carrier } = exchangeOf({ 'request-deadline-ms': '100' });
    requests.run('mine', () => new DeadlineEngine({ clock, on: see }).begin({ ...exchange, answer: see }, () => {}));
    requireCall(carrier).signal.addEventListener('abort', see);
    await requests.run('another', () => clock.advance(100));
    expect(seen).toEqual(['mine', 'mine', 'mine']);
  });

  it('creates a call that logs show in brief, even if no pipeline was ever created', async () => {
    vi.resetModules();
    const fresh = await import('../../src/server/deadline.js');
    const { exchange, response, carrier } = exchangeOf();
    new fresh.DeadlineEngine({ default: '1h' }).begin(exchange, () => {});
    expect(JSON.parse(JSON.stringify(fresh.requireCall(carrier)))).toEqual({
      ...{ attempt: 1, unsafe: false, aborted: false, remainingMs: expect.any(Number) },
    });
    response.emit('finish');
  });

  it.each(['finish', 'close'])('lets go of the request at %s', (event) => {
    const clock = virtualClock();
    const { exchange, response, carrier } = exchangeOf();
    new DeadlineEngine({ default: '1s', clock }).begin(exchange, () => {});
    response.emit(event);
    response.emit('close');
    expect([listenersOf(response), clock.pendingTimers]).toEqual([0, 0]);
    expect(requireCall(carrier).aborted).toBe(event === 'close');
  });

  it('applies the nearest of two deadlines of one request, in either order', async () => {
    const clock = virtualClock();
    const near = new DeadlineEngine({ default: 100, clock });
    const far = new DeadlineEngine({ default: 500, clock });
    for (const engines of [
      [near, far],
      [far, near],
    ]) {
      const { exchange, response, answers, carrier } = exchangeOf();
      for (const engine of engines) engine.begin(exchange, () => {});
      expect(requireCall(carrier).remainingMs).toBe(100);
      await clock.advance(100);
      expect(answers.length).toBe(1);
      response.emit('finish');
      expect([listenersOf(response), clock.pendingTimers]).toEqual([0, 0]);
    }
  });

  it('contains an exception of the hook', async () => {
    const clock = virtualClock();
    const { exchange, answers } = exchangeOf({ 'request-deadline-ms': '10' });
    const on = () => {
      throw new Error('hook');
    };
    new DeadlineEngine({ clock, on, name: 'hooked' }).begin(exchange, () => {});
    await clock.runAll();
    expect(answers.length).toBe(1);
  });

  it('runs the handler under the call if the context is enabled, and just runs it otherwise', () => {
    const engine = new DeadlineEngine({ clock: virtualClock() });
    const seen: unknown[] = [];
    engine.begin(exchangeOf().exchange, () => seen.push(ambient()));
    enableContext();
    const { exchange, carrier } = exchangeOf();
    engine.begin(exchange, () => seen.push(currentCall() === findCall(carrier)));
    expect(seen).toEqual([undefined, true]);
  });

  it('accepts 60 s at most by default, and never less than its own default', () => {
    const clock = virtualClock();
    const granted = (options: DeadlineMiddlewareOptions, asked: string) => {
      const { exchange, carrier } = exchangeOf({ 'grpc-timeout': asked });
      new DeadlineEngine({ ...options, clock }).begin(exchange, () => {});
      return requireCall(carrier).remainingMs;
    };
    expect(granted({}, '1H')).toBe(60_000);
    expect(granted({ default: '5s' }, '1H')).toBe(60_000);
    expect(granted({ default: '2m' }, '1H')).toBe(120_000);
    expect(granted({ maxAccept: '2s' }, '1H')).toBe(2_000);
  });

  it.each([
    [{ default: '0s' }, 'default'],
    [{ default: 'soon' }, 'default'],
    [{ maxAccept: -1 }, 'maxAccept'],
    [{ default: '10s', maxAccept: '5s' }, 'maxAccept'],
    [{ headers: 'yes' }, 'headers'],
    [{ defualt: '5s' }, 'default'],
    [{ clock: {} }, 'clock'],
    [5, 'object'],
  ])('refuses the options %o at once and names %s', (options, named) => {
    const build = () => new DeadlineEngine(options as DeadlineMiddlewareOptions);
    expect(build).toThrow(OptionsError);
    expect(build).toThrow(named);
  });

  it('explains what to do if a request has no call', () => {
    expect(() => requireCall({})).toThrow('mount the deadline middleware');
  });

  it('describes problems as RFC 9457 does', () => {
    const problem = { status: 504, title: 'Gateway Timeout', detail: 'd', code: 'ERR_X' };
    expect(JSON.parse(problemBody(problem))).toEqual({ type: 'about:blank', ...problem });
  });
});
