import { once } from 'node:events';
import { Readable } from 'node:stream';
import { setImmediate } from 'node:timers/promises';
import { Agent, BalancedPool, FormData, fetch as undiciFetch } from 'undici';
import { describe, expect, it, vi } from 'vitest';
import { breakerHandles, type ClientOptions, handles, resilience } from '../../src/client/undici.js';
import {
  CircuitOpenError,
  circuitBreaker,
  constant,
  deadline,
  fallback,
  isAbandoned,
  OptionsError,
  pipeline,
  RateLimitedError,
  retry,
  systemClock,
  timeout,
} from '../../src/index.js';
import { virtualClock } from '../../src/testing/index.js';
import { answerText, httpServer, rawServer } from './support/servers.ts';

const repeating = (attempts = 3) => retry({ attempts, backoff: constant(1), handles });
const policy = pipeline(repeating());

/** An agent with the interceptor, which is closed at the end of the scope. */
function client(options: ClientOptions = { policy }, agentOptions: Agent.Options = {}) {
  const agent = new Agent(agentOptions);
  const dispatcher = agent.compose(resilience(options));
  return {
    dispatcher,
    request: (origin: string, more: object = {}) =>
      dispatcher.request({ origin, path: '/', method: 'GET', ...more } as Parameters<Agent['request']>[0]),
    [Symbol.asyncDispose]: () => agent.destroy(),
  };
}

describe('resilience', () => {
  it('passes on the response of the last attempt, whatever its status', async () => {
    await using server = await httpServer((_, response, number) =>
      response.writeHead(503, { n: number }).end(`busy ${number}`),
    );
    await using http = client();
    const { statusCode, headers, body } = await http.request(server.origin);
    expect([statusCode, headers.n, await body.text()]).toEqual([503, '3', 'busy 3']);
    expect(server.received).toHaveLength(3);
  });

  it('leaves a host whose name is too long to exist to the dispatcher', async () => {
    await using http = client({});
    await expect(http.request(`http://${'a.'.repeat(600)}test`)).rejects.not.toBeInstanceOf(OptionsError);
  });

  it('passes on a long body completely, with the back-pressure of its reader', async () => {
    const long = 'x'.repeat(3_000_000);
    await using server = await httpServer((_, response, number) =>
      response.writeHead(number < 2 ? 503 : 200).end(long),
    );
    await using http = client();
    const { body } = await http.request(server.origin, { highWaterMark: 1_000 });
    let length = 0;
    for await (const chunk of body) {
      length += (chunk as Buffer).length;
      await setImmediate();
    }
    expect(length).toBe(long.length);
  });

  it('reads the short bodies of discarded responses, so that their connection can be reused', async () => {
    await using server = await httpServer((_, response, number) =>
      response.writeHead(number < 3 ? 503 : 200).end('busy'),
    );
    await using http = client({ policy: pipeline(repeating()) }, { connections: 1 });
    await (await http.request(server.origin)).body.text();
    await (await http.request(server.origin)).body.text();
    expect(server.received).toHaveLength(4);
    expect(new Set(server.received.map(({ port }) => port)).size).toBe(1);
  });

  it('sends a POST once, and with a key as often as needed, with the same key', async () => {
    await using server = await httpServer((_, response) => response.writeHead(503).end());
    await using http = client();
    await http.request(server.origin, { method: 'POST', body: 'x' });
    expect(server.received).toHaveLength(1);
    for (const headers of [{ 'Idempotency-Key': 'k' }, ['idempotency-key', 'k'], new Map([['idempotency-key', 'k']])]) {
      server.received.length = 0;
      await http.request(server.origin, { method: 'POST', body: 'x', headers });
      expect(server.received.map((one) => [one.headers['idempotency-key'], one.body])).toEqual(
        Array(3).fill(['k', 'x']),
      );
    }
  });

  it.each<[string, unknown]>([
    ['an object', { a: '1' }],
    ['a list', ['a', '1']],
    ['an iterable', new Map([['a', '1']])],
    ['nothing', undefined],
  ])('adds a key to headers that are %s', async (_, headers) => {
    await using server = await httpServer((_, response) => response.writeHead(503).end());
    await using http = client({ policy: pipeline(repeating(2)), idempotencyKey: 'generate', propagate: 'holdfast' });
    await http.request(server.origin, { method: 'PATCH', headers });
    const [first, second] = server.received.map((one) => one.headers);
    expect(first?.['idempotency-key']).toMatch(/^[0-9a-f-]{36}$/);
    expect(second?.['idempotency-key']).toBe(first?.['idempotency-key']);
    expect([first?.['request-attempt'], second?.['request-attempt']]).toEqual(['1', '2']);
    expect(first?.a).toBe(headers === undefined ? undefined : '1');
  });

  it('sends a stream once', async () => {
    await using server = await httpServer((_, response) => response.writeHead(503).end());
    await using http = client();
    const { statusCode } = await http.request(server.origin, { method: 'PUT', body: Readable.from(['streamed']) });
    expect([statusCode, server.received.map((one) => one.body)]).toEqual([503, ['streamed']]);
  });

  it('sends a form again, except one with a key, which would get another boundary', async () => {
    await using server = await httpServer((_, response) => response.writeHead(503).end());
    await using http = client();
    const body = new FormData();
    body.append('a', '1');
    await http.request(server.origin, { method: 'PUT', body });
    expect(server.received).toHaveLength(3);
    await http.request(server.origin, { method: 'PUT', body, headers: { 'idempotency-key': 'k' } });
    expect(server.received).toHaveLength(4);
  });

  it('sends a stream once that calls itself a form, as that of the form-data package', async () => {
    await using server = await httpServer((_, response) => response.writeHead(503).end());
    await using http = client();
    const body = Object.assign(Readable.from(['whole']), { [Symbol.toStringTag]: 'FormData' });
    const { statusCode } = await http.request(server.origin, { method: 'PUT', body });
    expect([statusCode, server.received.map((one) => one.body)]).toEqual([503, ['whole']]);
  });

  it('protects dispatchers that do not report their origin, each separately', async () => {
    await using server = await httpServer((_, response) => response.writeHead(503).end());
    const keys: (string | undefined)[] = [];
    const interceptor = resilience({
      policy: (origin) => {
        keys.push(origin);
        return policy;
      },
    });
    for (const pool of [new BalancedPool(server.origin), new BalancedPool(server.origin)]) {
      const { statusCode } = await pool.compose(interceptor).request({ path: '/', method: 'GET' });
      expect(statusCode).toBe(503);
      await pool.destroy();
    }
    expect([server.received.length, keys]).toEqual([6, ['undici 1', 'undici 2']]);
  });

  it('refuses a handler of another undici version, which would wait for ever', () => {
    const dispatch = resilience({ policy })((_request: unknown, _handler: unknown) => true);
    const handler = { onConnect() {}, onHeaders() {}, onData() {}, onComplete() {}, onError() {} };
    const send = () => dispatch({ origin: 'http://a.test', path: '/', method: 'GET' }, handler);
    expect(send).toThrow(TypeError);
    expect(send).toThrow(/another major version of undici/);
  });

  it('gives up a hanging attempt, closes its connection, and retries', async () => {
    let closed: Promise<unknown> | undefined;
    await using server = await rawServer(({ socket, number }) => {
      if (number === 1) closed = once(socket, 'close');
      else socket.write(answerText(200, 'here'));
    });
    await using http = client({ policy: pipeline(repeating(), timeout('60ms')) });
    expect(await (await http.request(server.origin)).body.text()).toBe('here');
    await closed;
  });

  it('ends at the deadline', async () => {
    await using server = await rawServer(() => {});
    await using http = client({ policy: deadline('40ms') });
    expect(isAbandoned(await http.request(server.origin).catch((error: unknown) => error))).toBe(true);
  });

  it('ends when the caller aborts an attempt, a wait, or the call before its start', async () => {
    await using server = await httpServer((_, response) => response.writeHead(429, { 'retry-after': '5' }).end());
    await using http = client();
    const controller = new AbortController();
    const waiting = http.request(server.origin, { signal: controller.signal });
    while (server.received.length === 0) await setImmediate();
    controller.abort(new Error('left'));
    await expect(waiting).rejects.toThrow('left');
    await expect(http.request(server.origin, { signal: AbortSignal.abort(new Error('never')) })).rejects.toThrow(
      'never',
    );
    expect(server.received).toHaveLength(1);
  });

  it('lets the caller abort a body', async () => {
    let closed: Promise<unknown> | undefined;
    await using server = await rawServer(({ socket }) => {
      closed = once(socket, 'close');
      socket.write('HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n12');
    });
    await using http = client();
    const controller = new AbortController();
    const { body } = await http.request(server.origin, { signal: controller.signal });
    const reading = body.text();
    controller.abort(new Error('enough'));
    await expect(reading).rejects.toThrow('enough');
    await closed;
  });

  it.each<[string, (body: Readable) => unknown]>([
    ['of Node', (body) => body],
    ['of the web', (body) => Readable.toWeb(body)],
  ])('does not count an upload that breaks off against its origin, a stream %s', async (_, made) => {
    /** A stream that fails after its first chunk, or that has no end. */
    const poured = (fails: boolean) =>
      Readable.from(
        (async function* () {
          yield 'x';
          if (fails) throw Object.assign(new Error('aborted'), { code: 'ECONNRESET' });
          await new Promise(() => {});
        })(),
      );
    await using healthy = await httpServer((_, response) => response.end('here'));
    await using closing = await rawServer(({ socket }) => socket.resetAndDestroy());
    await using http = client({
      policy: circuitBreaker({ window: { consecutive: 1 }, handles: breakerHandles }),
    });
    const failed = (origin: string, fails: boolean) =>
      http.request(origin, { method: 'POST', body: made(poured(fails)) }).catch((error) => error);
    expect(await failed(healthy.origin, true)).toMatchObject({ message: 'aborted' });
    expect(await (await http.request(healthy.origin)).body.text()).toBe('here');
    expect(await failed(closing.origin, false)).toBeInstanceOf(Error);
    await expect(http.request(closing.origin)).rejects.toBeInstanceOf(CircuitOpenError);
  });

  it('passes on a body that breaks off as an error of its reader, and requests it once', async () => {
    await using server = await rawServer(({ socket }) => {
      socket.write('HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n12', () => socket.resetAndDestroy());
    });
    await using http = client();
    const { body } = await http.request(server.origin);
    await expect(body.text()).rejects.toThrow();
    expect(server.requests).toBe(1);
  });

  it('resends at once after an idle connection was closed', async () => {
    await using server = await rawServer(({ socket, request }) => {
      if (request === 1) socket.write(answerText(200, 'here'));
      else socket.destroy();
    });
    await using http = client({ policy: pipeline() });
    await (await http.request(server.origin)).body.text();
    await setImmediate();
    expect(await (await http.request(server.origin)).body.text()).toBe('here');
    expect([server.connections, server.requests]).toEqual([2, 3]);
  });

  it('refuses without connecting while the origin asks for a wait longer than the deadline', async () => {
    await using server = await httpServer((_, response) => response.writeHead(503, { 'retry-after': '60' }).end());
    await using http = client({ policy: deadline('1s') });
    for (let refusal = 0; refusal < 5; refusal++) expect((await http.request(server.origin)).statusCode).toBe(503);
    await expect(http.request(server.origin)).rejects.toBeInstanceOf(RateLimitedError);
    expect(server.received).toHaveLength(5);
  });

  it('serves fetch, redirects included', async () => {
    await using server = await httpServer((request, response, number) => {
      if (request.url === '/old') response.writeHead(302, { location: '/new' }).end();
      else response.writeHead(number < 3 ? 503 : 200).end('here');
    });
    await using http = client();
    const response = await undiciFetch(`${server.origin}/old`, { dispatcher: http.dispatcher });
    expect([response.status, await response.text(), response.redirected]).toEqual([200, 'here', true]);
    expect(server.received.map((one) => one.url)).toEqual(['/old', '/new', '/new']);
  });

  it('passes an upgrade untouched', async () => {
    await using server = await rawServer(({ socket }) => {
      socket.write('HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n');
    });
    await using http = client();
    const asked = { path: '/', protocol: 'echo', origin: server.origin };
    const { headers, socket } = await http.dispatcher.upgrade(asked as never);
    expect(headers.upgrade).toBe('echo');
    socket.destroy();
  });

  it('rejects what a policy returns in place of a response', async () => {
    await using server = await httpServer((_, response) => response.end());
    await using refused = client({
      policy: pipeline(
        fallback(() => 'instead'),
        timeout('200ms'),
      ),
    });
    await using silent = await rawServer(() => {});
    await expect(refused.request(silent.origin)).rejects.toThrow(/one of its responses/);
    expect((await refused.request(server.origin)).statusCode).toBe(200);
  });

  it('refuses invalid options at once', () => {
    expect(() => resilience({ policies: [] } as never)).toThrow(OptionsError);
    expect(() => resilience({ policy: [timeout('1s')] } as never)).toThrow(
      /^resilience: option "policy" must be a policy/,
    );
  });
});

/** The controller of one attempt, as undici provides it. */
class Control {
  readonly calls: string[] = [];
  reason: unknown = null;
  rawHeaders: unknown = ['a', '1'];
  rawTrailers: unknown = ['t', '2'];
  paused = false;
  get aborted(): boolean {
    return this.reason !== null;
  }
  abort(reason: unknown): void {
    this.reason ??= reason;
  }
  pause(): void {
    this.calls.push('pause');
  }
  resume(): void {
    this.calls.push('resume');
  }
}

type Heard = Record<string, (...given: never[]) => unknown>;

interface Sent {
  readonly request: Record<string, unknown>;
  readonly handler: Record<string, (...given: unknown[]) => void>;
}

const left = new Error('left');
const throwing = () => {
  throw left;
};
const leaving = (control: Control) => control.abort(left);

/** An interceptor over a dispatcher that answers as the test says. */
function scripted(options: ClientOptions = { policy: pipeline() }) {
  const sent: Sent[] = [];
  const heard: unknown[][] = [];
  const world = { hasRoom: true, control: undefined as unknown as Control };
  const dispatch = resilience(options)((request: object, handler: object) => {
    sent.push({ request, handler } as Sent);
    return world.hasRoom;
  });
  const note =
    (name: string) =>
    (_: unknown, ...given: unknown[]) =>
      void heard.push([name, ...given]);
  const handler = (own: Heard = {}) => ({
    onRequestStart(control: Control) {
      world.control = control;
    },
    onResponseStart: note('start'),
    onResponseData: note('data'),
    onResponseEnd: note('end'),
    onResponseError: note('error'),
    ...own,
  });
  const send = (more: object = {}, own: Heard = {}) =>
    dispatch({ origin: 'http://a.test', path: '/', method: 'GET', ...more }, handler(own));
  /** The head of the answer to an attempt, counted from 0. */
  const answer = (index: number, status: number) => {
    const control = new Control();
    sent[index]!.handler.onRequestStart!(control, null);
    sent[index]!.handler.onResponseStart!(control, status, { h: '1' }, 'Words');
    const { onResponseData, onResponseEnd, onResponseError } = sent[index]!.handler;
    return {
      control,
      data: (chunk: Uint8Array) => onResponseData!.call(sent[index]!.handler, control, chunk),
      end: () => onResponseEnd!.call(sent[index]!.handler, control, { t: '2' }),
      fail: (error: Error) => onResponseError!.call(sent[index]!.handler, control, error),
    };
  };
  return { dispatch, send, answer, sent, heard, world, handler };
}

const bytes = (length: number) => new Uint8Array(length);

describe('resilience over a dispatcher', () => {
  it('returns the back-pressure of the dispatcher, and reports room while nothing is sent', async () => {
    const { send, world, sent } = scripted();
    expect(send()).toBe(true);
    world.hasRoom = false;
    expect(send()).toBe(false);
    expect(send({}, { onRequestStart: (control: Control) => control.abort(new Error('left')) } as never)).toBe(true);
    expect(sent).toHaveLength(2);
  });

  it.each([
    ['no URL', { origin: 'nowhere' }],
    ['a tunnel', { method: 'CONNECT' }],
    ['an upgrade', { upgrade: 'echo' }],
  ])('passes %s through unchanged', (_, request) => {
    const { dispatch, sent, handler } = scripted();
    const own = handler();
    const whole = { origin: 'http://a.test', path: '/', method: 'GET', ...request };
    dispatch(whole, own);
    expect(sent).toEqual([{ request: whole, handler: own }]);
    expect(sent[0]!.handler).toBe(own);
  });

  it('holds an answer until it is known who gets it, then passes on everything that arrived', async () => {
    const { send, answer, heard } = scripted();
    send();
    const { control, data, end } = answer(0, 200);
    const [first, second] = [bytes(1), bytes(2)];
    data(first);
    expect(heard).toEqual([]);
    await setImmediate();
    expect(control.calls).toEqual(['resume']);
    data(second);
    end();
    const start = ['start', 200, { h: '1' }, 'Words'];
    expect(heard).toEqual([start, ['data', first], ['data', second], ['end', { t: '2' }]]);
  });

  it('passes on the end or error of an answer that came while it was held', async () => {
    const ended = scripted();
    ended.send();
    ended.answer(0, 204).end();
    await setImmediate();
    expect(ended.heard.map(([name]) => name)).toEqual(['start', 'end']);
    const failed = scripted();
    failed.send();
    const error = new Error('broken');
    failed.answer(0, 200).fail(error);
    await setImmediate();
    expect(failed.heard).toEqual([
      ['start', 200, { h: '1' }, 'Words'],
      ['error', error],
    ]);
  });

  it('lets a handler pause before and during its answer, and resume later', async () => {
    for (const early of [true, false]) {
      const { send, answer, world } = scripted();
      send({}, early ? {} : ({ onResponseStart: (control: Control) => control.pause() } as never));
      expect(world.control.paused).toBe(false);
      if (early) world.control.pause();
      const { control } = answer(0, 200);
      await setImmediate();
      expect(control.calls).not.toContain('resume');
      expect([control.calls.at(-1), world.control.paused]).toEqual(['pause', true]);
      world.control.resume();
      expect([control.calls.at(-1), world.control.paused]).toEqual(['resume', false]);
      world.control.pause();
      expect(control.calls.at(-1)).toBe('pause');
    }
    const { send, world, answer } = scripted();
    send();
    world.control.pause();
    world.control.resume();
    const { control } = answer(0, 200);
    await setImmediate();
    expect(control.calls).toEqual(['resume']);
  });

  it('pauses a held answer at 64 KiB and not earlier, because undici 7 may crash at the end of a paused one', async () => {
    const { send, answer, heard } = scripted({ policy: pipeline(timeout(1_000)) });
    send();
    const { control, data, end } = answer(0, 200);
    data(bytes(65_536));
    expect(control.calls).toEqual([]);
    data(bytes(1));
    expect(control.calls).toEqual(['pause']);
    await setImmediate();
    expect(control.calls).toEqual(['pause', 'resume']);
    end();
    expect(heard.map(([name]) => name)).toEqual(['start', 'data', 'data', 'end']);
  });

  it('has one controller for all attempts, which reports its own end and then that of the answer', async () => {
    const { send, answer, world } = scripted();
    send();
    const { control: own } = world;
    expect([own.aborted, own.reason, own.rawHeaders, own.rawTrailers]).toEqual([false, null, null, null]);
    const { control } = answer(0, 200);
    await setImmediate();
    expect([own.aborted, own.reason, own.rawHeaders, own.rawTrailers]).toEqual([false, null, ['a', '1'], ['t', '2']]);
    own.abort('enough');
    expect([control.reason, own.aborted, own.reason]).toEqual(['enough', true, 'enough']);
    const waiting = scripted();
    waiting.send();
    waiting.world.control.abort('left');
    expect([waiting.world.control.aborted, waiting.world.control.reason]).toEqual([true, 'left']);
    await setImmediate();
    expect(waiting.heard).toEqual([['error', 'left']]);
  });

  it('fails a request whose handler throws at its start, and sends nothing', async () => {
    const { send, sent, heard } = scripted();
    const error = new Error('no');
    send({}, {
      onRequestStart() {
        throw error;
      },
    } as never);
    await setImmediate();
    expect([sent, heard]).toEqual([[], [['error', error]]]);
  });

  it('aborts the answer if its handler throws on arrival', async () => {
    const { send, answer } = scripted();
    const error = new Error('no');
    send({}, {
      onResponseStart() {
        throw error;
      },
    } as never);
    const { control } = answer(0, 200);
    await setImmediate();
    expect(control.reason).toBe(error);
  });

  it.each([
    ['throws at the head of', { onResponseStart: throwing }, ['error']],
    ['throws at the body of', { onResponseData: throwing }, ['start', 'error']],
    ['throws at the end of', { onResponseEnd: throwing }, ['start', 'data', 'data', 'error']],
    ['leaves at the head of', { onResponseStart: leaving }, ['error']],
    ['leaves at the body of', { onResponseData: leaving }, ['start', 'error']],
  ])('reports to a handler the error that %s an answer which had ended when it was passed on', async (_, own, told) => {
    const { send, answer, heard } = scripted();
    send({}, own as never);
    const { data, end } = answer(0, 200);
    data(bytes(1));
    data(bytes(1));
    end();
    await setImmediate();
    expect(heard.map(([name]) => name)).toEqual(told);
    expect(heard.at(-1)).toEqual(['error', left]);
  });

  it('passes nothing on if the handler aborts at the moment the answer arrives', async () => {
    const { send, answer, world, heard } = scripted();
    send();
    const { control } = answer(0, 200);
    world.control.abort('left');
    await setImmediate();
    expect(heard).toEqual([['error', 'left']]);
    expect(control.calls).toEqual(['resume']);
  });

  it('ends when the handler aborts while its answer is judged, at whichever step', async () => {
    for (let step = 0; step < 40; step++) {
      const { send, answer, world, heard } = scripted();
      send();
      const { control } = answer(0, 200);
      for (let done = 0; done < step; done++) await Promise.resolve();
      world.control.abort('left');
      await setImmediate();
      const hasPassed = heard[0]?.[0] === 'start';
      expect([step, heard.length, hasPassed ? control.reason : heard[0]?.[1]]).toEqual([step, 1, 'left']);
      // An answer that nobody reads or ends keeps its connection for ever.
      expect([step, control.aborted || control.calls.includes('resume')]).toEqual([step, true]);
    }
  });

  it('passes on what precedes an answer, and the notices about the request', async () => {
    const { send, answer, sent, heard } = scripted();
    const told: unknown[] = [];
    send({}, {
      onResponseStarted: () => told.push('started'),
      onBodySent: (chunk: unknown) => told.push(chunk),
      onRequestSent: () => told.push('sent'),
    } as never);
    const [{ handler }] = sent as [(typeof sent)[0]];
    handler.onBodySent!('chunk');
    handler.onRequestSent!();
    handler.onResponseStarted!();
    expect(told).toEqual(['chunk', 'sent', 'started']);
    answer(0, 103);
    await setImmediate();
    expect(heard.map(([name, status]) => [name, status])).toEqual([['start', 103]]);
    answer(0, 200);
    await setImmediate();
    expect(heard.at(-1)![1]).toBe(200);
  });

  it('requires only onRequestStart of a handler', async () => {
    for (const how of ['end', 'fail'] as const) {
      const { dispatch, answer, sent } = scripted();
      dispatch({ origin: 'http://a.test', path: '/', method: 'GET' }, { onRequestStart() {} });
      for (const name of ['onBodySent', 'onRequestSent', 'onResponseStarted']) sent[0]!.handler[name]!();
      answer(0, 103);
      const { data, end, fail, control } = answer(0, 200);
      data(bytes(1));
      await setImmediate();
      data(bytes(1));
      if (how === 'end') end();
      else fail(new Error('broken'));
      expect(control.aborted).toBe(false);
    }
  });

  it('reads a discarded answer further, up to 64 KiB', async () => {
    const { send, answer, heard } = scripted({ policy: pipeline(repeating(2)) });
    send();
    const { control, data } = answer(0, 503);
    data(bytes(5_536));
    await expect.poll(() => control.calls).toEqual(['resume']);
    data(bytes(59_999));
    data(bytes(1));
    expect([control.aborted, heard]).toEqual([false, []]);
    data(bytes(1));
    expect(String(control.reason)).toContain('not wanted');
  });

  it('closes the connection of a discarded answer after a second, unless it has ended by then', async () => {
    const schedule = vi.spyOn(systemClock, 'schedule');
    const cancel = vi.spyOn(systemClock, 'cancel');
    const { send, answer, sent } = scripted({ policy: pipeline(repeating(3)) });
    const discarded = async (index: number) => {
      const { control, ...rest } = answer(index, 503);
      schedule.mockClear();
      const nowMs = systemClock.now();
      await expect.poll(() => control.calls).toEqual(['resume']);
      await expect.poll(() => sent.length).toBe(index + 2);
      // The other one is that of the retry's wait.
      const [patience] = schedule.mock.calls.find(([, atMs]) => atMs - nowMs >= 1_000)!;
      return { control, patience, ...rest };
    };
    send();
    const endless = await discarded(0);
    expect(endless.control.aborted).toBe(false);
    endless.patience.expire();
    expect(String(endless.control.reason)).toContain('not wanted');
    const short = await discarded(1);
    short.end();
    expect(cancel).toHaveBeenCalledWith(short.patience);
    systemClock.cancel(endless.patience);
    vi.restoreAllMocks();
  });

  it('does not touch an answer that had ended when it was discarded', async () => {
    const { send, answer, sent } = scripted({ policy: pipeline(repeating(2)) });
    send();
    const { control, end } = answer(0, 503);
    end();
    await expect.poll(() => sent.length).toBe(2);
    expect(control.calls).toEqual([]);
  });

  it('ends an attempt that got its connection after everybody stopped waiting', async () => {
    const clock = virtualClock();
    const { send, sent, heard } = scripted({ policy: timeout({ after: '1s', clock }) });
    send();
    await clock.advance(1_000);
    await setImmediate();
    expect(heard.map(([name]) => name)).toEqual(['error']);
    const control = new Control();
    sent[0]!.handler.onRequestStart!(control, null);
    expect(control.aborted).toBe(true);
  });

  it.each<[string, unknown, string | undefined]>([
    ['in a list', ['x', 'y', 'Idempotency-Key', 'k'], 'k'],
    ['in a list of pairs', [['Idempotency-Key', 'k']], 'k'],
    ['in an object', { 'Idempotency-Key': 'k' }, 'k'],
    ['as a value only', ['x', 'idempotency-key', 'k', 'y'], undefined],
    ['empty', { 'idempotency-key': '' }, undefined],
    ['null', { 'idempotency-key': null }, undefined],
    ['in no headers', null, undefined],
  ])('finds an idempotency key %s', (_, headers, found) => {
    const asked: unknown[] = [];
    const idempotencyKey = (request: unknown) => {
      asked.push(request);
      return undefined;
    };
    const { send } = scripted({ policy: pipeline(), idempotencyKey });
    send({ method: 'post', headers });
    expect(asked).toEqual(found === undefined ? [{ origin: 'http://a.test', method: 'POST' }] : []);
  });

  it('leaves the headers unchanged if there is nothing to add', () => {
    const { send, sent } = scripted();
    for (const headers of [{ a: '1' }, ['a', '1']]) {
      send({ headers });
      expect(sent.at(-1)!.request.headers).toBe(headers);
    }
  });

  it.each<[string, unknown, number]>([
    ['bytes', Uint8Array.of(1), 2],
    ['a view', new DataView(new ArrayBuffer(1)), 2],
    ['an ArrayBuffer', new ArrayBuffer(1), 2],
    ['a Blob', new Blob(['x']), 2],
    ['a text', 'x', 2],
    ['nothing', null, 2],
    ['an iterable', new Set(['x']), 1],
  ])('sends %s as often as it can be sent', async (_, body, times) => {
    const { send, answer, sent, heard } = scripted({ policy: pipeline(repeating(2)) });
    send({ method: 'PUT', body });
    answer(0, 503).end();
    await expect.poll(() => sent.length + heard.length).toBeGreaterThanOrEqual(2);
    expect(sent).toHaveLength(times);
  });
});
