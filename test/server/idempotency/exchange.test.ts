/** Idempotency over HTTP without any HTTP: what a request asks of the engine, and what it gets. */
import { IncomingMessage, ServerResponse } from 'node:http';
import { Socket } from 'node:net';
import { describe, expect, it } from 'vitest';
import type { AdapterHandle } from '../../../src/coordination/idempotency/idempotency.js';
import { idempotency as engineOf, memoryStore, OptionsError } from '../../../src/index.js';
import { decodeAnswer, encodeAnswer } from '../../../src/server/idempotency/answer.js';
import {
  AnswerKeeper,
  HttpIdempotency,
  type IdempotencyExchange,
  type IdempotencyMiddlewareOptions,
} from '../../../src/server/idempotency/idempotency.js';
import { resolveRequest } from '../../../src/server/idempotency/resolve.js';
import type { Problem } from '../../../src/server/problem.js';
import { virtualClock } from '../../../src/testing/index.js';
import { deferred } from '../../support/deferred.ts';
import { awaitedStore } from './support.js';

type Options = Partial<IdempotencyMiddlewareOptions<string>>;
const bytesOf = (text: string) => new TextEncoder().encode(text);
const answerOf = (body: string, status = 201) => ({ status, statusMessage: '', headers: [], body: bytesOf(body) });

function setUp(options: Options = {}) {
  const clock = virtualClock();
  const store = memoryStore({ clock });
  const http = new HttpIdempotency<string>({ store, clock, lease: '3s', scope: () => 'all', ...options }, undefined);
  const told: string[] = [];
  const problems: Problem[] = [];
  /** What becomes of a request. Its handler answers with its number or, without one, never. */
  async function ask(
    request: Partial<IdempotencyExchange<string>> & { key?: string; text?: string; runs?: string } = {},
  ) {
    const { key = 'k', text, runs, ...more } = request;
    const { promise: ended, resolve: end } = deferred<string>();
    const exchange: IdempotencyExchange<string> = {
      ...{ request: 'the request', method: 'POST', url: '/orders', contentType: undefined, traceparent: undefined },
      operation: () => 'POST /orders',
      keyLines: () => [key],
      body: () => ({ content: text, isJson: false }),
      refuse(problem) {
        problems.push(problem);
        end(String(problem.type).split(':').at(-1)!);
      },
      replay: ({ body }) => end(`again ${new TextDecoder().decode(body)}`),
      run(handle, keeper) {
        told.push(`ran ${handle.attempt}`);
        if (runs !== undefined) keeper.onAnswer(answerOf(runs));
        end(`ran ${handle.attempt}`);
      },
      isAnswered: () => false,
      isTimedOut: () => false,
      ...more,
    };
    http.handle(exchange, (error) => end(String(error)));
    return ended;
  }
  return { http, store, clock, ask, told, problems };
}

describe('a request', () => {
  it('runs once and is answered again, and reports what prevents that', async () => {
    const { ask, problems, clock } = setUp();
    expect([await ask(), await ask()]).toEqual(['ran 1', 'in-progress']);
    // The engine looks after the running attempt by the clock that it was given.
    expect(clock.nextTimerAt).toBe(1_000);
    expect(problems[0]?.headers?.['Retry-After']).toBe('1');
    expect([await ask({ key: 'done', runs: 'one' }), await ask({ key: 'done' })]).toEqual(['ran 1', 'again one']);
    expect(await ask({ key: 'done', text: 'another' })).toBe('key-reused');
    expect([await ask({ keyLines: () => [] }), await ask({ key: '' })]).toEqual(['missing-key', 'invalid-key']);
    expect(await ask({ body: () => 'too-large' })).toBe('body-too-large');
    expect(problems.at(-1)?.detail).toContain('at most 33554432 bytes');
  });

  it('whose client disconnected before its body was complete starts nothing', async () => {
    const { ask, told, store } = setUp();
    void ask({ body: () => undefined });
    void ask({ body: async () => undefined });
    await new Promise((resolve) => setImmediate(resolve));
    expect([told, store.size]).toEqual([[], 0]);
  });

  it('that was answered while its body was awaited starts nothing', async () => {
    const { ask, told, store, problems } = setUp();
    void ask({ isAnswered: () => true, body: async () => ({ content: 'x', isJson: false }) });
    void ask({ isAnswered: () => true, body: async () => 'too-large' as const });
    await new Promise((resolve) => setImmediate(resolve));
    expect([told, problems, store.size]).toEqual([[], [], 0]);
  });

  it('that was answered while the store was awaited is not handled, and does not count as an attempt', async () => {
    const { ask, told, problems } = setUp({ store: awaitedStore(), attempts: 1 });
    const answeredMeanwhile = () => {
      let isAwaited = false;
      return () => {
        const isAnswered = isAwaited;
        isAwaited = true;
        return isAnswered;
      };
    };
    const turn = () => new Promise((resolve) => setImmediate(resolve));
    for (let count = 0; count < 2; count++) {
      void ask({ isAnswered: answeredMeanwhile() });
      await turn();
    }
    expect(await ask({ runs: 'one' })).toBe('ran 3');
    void ask({ isAnswered: answeredMeanwhile() });
    await turn();
    expect(await ask()).toBe('again one');
    expect([told, problems]).toEqual([['ran 3'], []]);
  });

  it.each([
    ['rerun', 'ran 2'],
    ['refuse', 'outcome-unknown'],
  ] as const)('takes over what was lost, or finds it in doubt: %s', async (onLost, word) => {
    const { ask, clock, store } = setUp({ onLost });
    const lost = new HttpIdempotency<string>(
      { store, clock: virtualClock(), lease: '3s', scope: () => 'all' },
      undefined,
    );
    expect(await ask({ key: 'other' })).toBe('ran 1');
    lost.handle(
      {
        ...{ request: '', method: 'POST', url: '/orders', contentType: undefined, traceparent: undefined },
        ...{
          operation: () => 'POST /orders',
          keyLines: () => ['k'],
          body: () => ({ content: undefined, isJson: false }),
        },
        ...{ refuse() {}, replay() {}, run() {}, isAnswered: () => false, isTimedOut: () => false },
      },
      () => {},
    );
    await clock.advance('3s');
    expect(await ask()).toBe(word);
  });

  it('is refused while the store is down, or runs unprotected', async () => {
    const down = { read: fail, write: fail, remove: fail };
    async function fail(): Promise<never> {
      throw new Error('down');
    }
    for (const [onStoreDown, word] of [
      ['refuse', 'store-unavailable'],
      ['run', 'ran 1'],
    ] as const) {
      const { ask, clock } = setUp({ store: down, onStoreDown });
      const asked = ask();
      await clock.advance('1s');
      expect(await asked).toBe(word);
    }
  });

  it('differs by its method, path, query or content type, but not by the order of its query', async () => {
    const { ask } = setUp();
    const first = { url: '/orders?b=2&a=1', contentType: 'Text/Plain; charset=utf-8', text: 'x' };
    const same = { url: '/orders?a=1&b=2', contentType: 'text/plain', text: 'x' };
    expect([await ask({ ...first, runs: 'one' }), await ask(same)]).toEqual(['ran 1', 'again one']);
    for (const other of [
      { method: 'PATCH' },
      ...['/order?a=1&b=2', '/orders?a=1', '/orders?a=1&b=2&', '/orders', '/ordersa=1&b=2', '?/orders'].map((url) => ({
        url,
      })),
      { contentType: 'text/html' },
      { text: 'y' },
      { text: undefined as never },
    ]) {
      expect([other, await ask({ ...same, ...other })]).toEqual([other, 'key-reused']);
    }
    // Without a body, its content type means nothing.
    expect(await ask({ key: 'none', contentType: 'text/html', runs: 'two' })).toBe('ran 1');
    expect(await ask({ key: 'none', contentType: 'application/json' })).toBe('again two');
    expect(await ask({ key: 'json', contentType: 'application/json', text: '1', runs: 'three' })).toBe('ran 1');
    expect(await ask({ key: 'json', contentType: 'application/vnd.shop+JSON;v=1', text: '1' })).toBe('again three');
  });

  it.each<[string, unknown]>([
    ['nothing', undefined],
    ['an empty text', ''],
    ['a number', 7],
  ])('starts nothing if its scope is %s, synchronously or later', async (_, scope) => {
    for (const given of [scope, Promise.resolve(scope)]) {
      const { ask, store } = setUp({ scope: () => given as string });
      expect(await ask()).toMatch(/scope\(request\) must give the caller as a string that is not empty/);
      expect(store.size).toBe(0);
    }
  });

  it('belongs to the caller that its scope names, synchronously or later', async () => {
    const { ask } = setUp({ scope: async (request) => request });
    expect([await ask({ request: 'a', runs: 'of a' }), await ask({ request: 'b' })]).toEqual(['ran 1', 'ran 1']);
    expect(await ask({ request: 'a' })).toBe('again of a');
  });

  it('may have a scope as long as a bearer token, and a path as long as one that contains it', async () => {
    const token = 't'.repeat(4_000);
    const path = () => `POST /confirm/${token}`;
    const { ask, store, clock } = setUp({ scope: (request) => request, attempts: 1 });
    void ask({ request: token, operation: path, run: (_, keeper) => void keeper.onBroken() });
    expect(await ask({ request: token, operation: path })).toBe('outcome-unknown');
    expect(await ask({ request: `${token}u`, operation: path })).toBe('ran 1');
    expect(await ask({ request: token, operation: () => `${path()}u` })).toBe('ran 1');
    // Neither half of a surrogate pair has UTF-8.
    const halves = [`${token}\ud800`, `${token}\ud801`].map((request) => ask({ request }));
    expect(await Promise.all(halves)).toEqual(['ran 1', 'ran 1']);
    const about = { scope: token, operation: path(), answer: { status: 201, body: 'resolved' } };
    expect(await resolveRequest(engineOf({ store, clock }), 'k', about)).toBe(true);
    expect(await ask({ request: token, operation: path })).toBe('again resolved');
  });

  it('is compared by the result of a user’s function, which must be text or bytes', async () => {
    for (const print of ['same', bytesOf('same'), Promise.resolve('same')]) {
      const { ask } = setUp({ fingerprint: () => print });
      expect([await ask({ text: 'a', runs: 'one' }), await ask({ text: 'b' })]).toEqual(['ran 1', 'again one']);
    }
    for (const print of [undefined, 7, {}]) {
      const { ask, store } = setUp({ fingerprint: () => print as never });
      expect(await ask()).toMatch(/fingerprint\(request\) must give a string or bytes/);
      expect(store.size).toBe(0);
    }
  });

  it('passes unprotected because of its method, or without a key if none is required', () => {
    const { http } = setUp();
    const passes = (method: string, key?: string | null) => http.passes(method, key);
    expect([passes('POST', 'k'), passes('PATCH', ''), passes('GET', 'k'), passes('PUT', 'k')]).toEqual([
      ...[false, false, true, true],
    ]);
    expect([passes('POST'), passes('POST', null)]).toEqual([true, true]);
    const strict = setUp({ required: true, methods: ['PUT'] }).http;
    expect([strict.passes('PUT', undefined), strict.passes('POST', 'k')]).toEqual([false, true]);
  });
});

describe('options over HTTP', () => {
  const made = (options: object) =>
    new HttpIdempotency({ store: memoryStore(), scope: () => 'a', ...options }, undefined);

  it.each<[object]>([
    [{ methods: ['POST', 'M-SEARCH'] }],
    [{ documentation: 'https://shop.test/keys?a=1#b' }],
    [{ documentation: 'x'.repeat(500) }],
    [{ fingerprint: { exclude: ['/a'] } }],
    [{ maxBodyBytes: 0, maxInputBytes: 1 }],
  ])('accept %j', (options) => expect(made(options)).toBeDefined());

  it.each<[string, object]>([
    ...[[], 'POST', ['post'], ['POST', 'get'], ['POST', 7], ['A B'], ['POST '], ['']].map(
      (methods): [string, object] => ['methods', { methods }],
    ),
    ...['', 'a b', '<a>', 'a>b', 'x'.repeat(501), 7, 'ä', 'a\n'].map((documentation): [string, object] => [
      'documentation',
      { documentation },
    ]),
    ...[null, 7, {}, { exclude: '/a' }, { exclude: ['a'] }, { exclude: ['/a', 'b'] }, { exclude: [], other: 1 }].map(
      (fingerprint): [string, object] => ['fingerprint', { fingerprint }],
    ),
    ['maxInputBytes', { maxInputBytes: 0 }],
    ['maxBodyBytes', { maxBodyBytes: -1 }],
    ['scope', { scope: 'all' }],
  ])('refuse for %s: %j', (option, options) => {
    expect(() => made(options)).toThrow(expect.objectContaining({ code: 'ERR_OPTIONS', option }));
  });

  it('say what the scope is for where it is missing', () => {
    expect(() => made({ scope: undefined })).toThrow(/"scope" is required: .* whose key it is, such as \(request\) =>/);
  });

  it('are an object, and those of the engine belong to the engine', () => {
    for (const wrong of [7, null, 'scope']) {
      expect(() => new HttpIdempotency(engineOf({ store: memoryStore() }), wrong as never)).toThrow(OptionsError);
    }
    const engine = engineOf({ store: memoryStore() });
    expect(() => new HttpIdempotency(engine, { scope: () => 'a', ttl: '1h' } as never)).toThrow(/"ttl"/);
    expect(new HttpIdempotency(engine, { scope: () => 'a' }).methods).toEqual(['POST', 'PATCH']);
    const methods = ['PUT'];
    const own = new HttpIdempotency(engine, { scope: () => 'a', methods });
    methods.push('GET');
    expect(own.methods).toEqual(['PUT']);
  });
});

describe('the answer of a handler', () => {
  function keeperOf(keep: (status: number) => boolean, decision?: AdapterHandle['decision']) {
    const ends: (string | undefined)[] = [];
    const handle = {
      decision,
      complete: (result: Uint8Array | undefined) => {
        ends.push(result === undefined ? 'done without' : 'kept');
        return 'stored';
      },
      abandon: () => {
        ends.push('freed');
        return 'stored';
      },
    } as unknown as AdapterHandle;
    return { keeper: new AnswerKeeper(handle, keep, 10, virtualClock()), ends };
  }
  const ofStatus = (
    keep: (status: number) => boolean,
    decision?: AdapterHandle['decision'],
    body: Uint8Array | undefined = bytesOf('x'),
  ) => {
    const { keeper, ends } = keeperOf(keep, decision);
    expect(keeper.onAnswer({ ...answerOf(''), body })).toBeUndefined();
    return ends;
  };

  it('is stored as its handler decides, otherwise by its status, and also if that cannot be judged', () => {
    expect([ofStatus(() => true), ofStatus(() => false)]).toEqual([['kept'], ['freed']]);
    expect([ofStatus(() => true, 'release'), ofStatus(() => false, 'keep')]).toEqual([['freed'], ['kept']]);
    const throws = () => {
      throw new Error('no');
    };
    expect(ofStatus(throws)).toEqual(['kept']);
  });

  it('counts as handled without a result if it is too long to store', () => {
    const { keeper, ends } = keeperOf(() => true);
    keeper.onAnswer({ ...answerOf(''), body: undefined });
    expect(ends).toEqual(['done without']);
  });

  it('frees the key if it was aborted, unless that was sealed', () => {
    for (const [decision, end] of [
      [undefined, 'freed'],
      ['release', 'freed'],
      ['keep', 'done without'],
    ] as const) {
      const { keeper, ends } = keeperOf(() => true, decision);
      keeper.onBroken();
      expect(ends).toEqual([end]);
    }
  });

  it('is encoded in a turn of its own if it is large', async () => {
    const { keeper, ends } = keeperOf(() => true);
    const body = new Uint8Array(1_048_577);
    const waits = keeper.onAnswer({ ...answerOf(''), body });
    expect([waits instanceof Promise, ends]).toEqual([true, []]);
    await waits;
    expect([ends, encodeAnswer({ ...answerOf(''), body }).length > body.length]).toEqual([['kept'], true]);
  });
});

describe('an answer whose handler may still be running', () => {
  function watched(isTimedOut: boolean) {
    const clock = virtualClock();
    const ends: string[] = [];
    const handle = {
      decision: undefined,
      complete: () => ends.push('done without'),
      abandon: () => ends.push('freed'),
    } as unknown as AdapterHandle;
    const keeper = new AnswerKeeper(handle, () => false, 10, clock);
    const request = new IncomingMessage(new Socket());
    const response = new ServerResponse(request);
    keeper.watch(response, { isTimedOut: () => isTimedOut });
    return { clock, ends, keeper, response };
  }

  it('does not run a second time beside it, if its framework has answered in its place', () => {
    for (const isTimedOut of [true, false]) {
      const { keeper, ends } = watched(isTimedOut);
      keeper.onAnswer(answerOf('timed out', 503));
      expect(ends).toEqual([isTimedOut ? 'done without' : 'freed']);
    }
  });

  it('whose client disconnected has all the time it needs until it begins to answer, and then a quarter of a minute', async () => {
    const { clock, ends, keeper, response } = watched(false);
    keeper.onClientGone();
    await clock.advance('1h');
    expect([ends, clock.pendingTimers]).toEqual([[], 1]);
    response.writeHead(200);
    await clock.advance('15s');
    expect([ends, clock.pendingTimers]).toEqual([['done without'], 0]);
  });

  it('leaves no timer after its end or its abort', () => {
    for (const end of ['onAnswer', 'onBroken'] as const) {
      const { clock, ends, keeper } = watched(false);
      keeper.onClientGone();
      if (end === 'onAnswer') keeper.onAnswer(answerOf('x'));
      else keeper.onBroken();
      expect([clock.pendingTimers, ends]).toEqual([0, ['freed']]);
    }
  });
});

describe('resolveRequest', () => {
  const about = { scope: 'all', operation: 'POST /orders' };

  it('accepts any status that an answer may have, and no other', async () => {
    const engine = engineOf({ store: memoryStore() });
    for (const status of [200, 599]) {
      expect(await resolveRequest(engine, 'k', { ...about, answer: { status } })).toBe(false);
    }
    for (const status of [199, 600, 200.5, '200', undefined]) {
      const resolve = () => resolveRequest(engine, 'k', { ...about, answer: { status: status as number } });
      expect(resolve).toThrow(expect.objectContaining({ code: 'ERR_OPTIONS', option: 'status', value: status }));
    }
  });

  it.each([
    ['text', 'ü', bytesOf('ü')],
    ['bytes', Uint8Array.of(0xff), Uint8Array.of(0xff)],
    ['nothing', undefined, new Uint8Array(0)],
  ])('settles a doubt with a body of %s', async (_, body, expected) => {
    const clock = virtualClock();
    const store = memoryStore({ clock });
    await engineOf({ store, clock: virtualClock(), lease: '3s' }).begin({ ...about, key: 'k' });
    await clock.advance('3s');
    const engine = engineOf({ store, clock });
    const answer = {
      status: 200,
      headers: { 'X-Id': '7', 'Set-Cookie': 'a=1' },
      ...(body === undefined ? {} : { body }),
    };
    expect(await resolveRequest(engine, 'k', { ...about, answer })).toBe(true);
    const begun = await engine.begin({ ...about, key: 'k' });
    const found = begun.kind === 'replay' ? decodeAnswer(begun.result) : undefined;
    expect(found).toMatchObject({ status: 200, statusMessage: '', headers: ['X-Id', '7'] });
    expect([...found!.body]).toEqual([...expected]);
  });
});
