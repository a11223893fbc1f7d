/** What only handlers of the fetch standard have. */
import { runInNewContext } from 'node:vm';
import { describe, expect, it, vi } from 'vitest';
import { idempotency as engineOf, memoryStore, type Store } from '../../../src/index.js';
import { type IdempotentHandler, idempotency, nodeIdempotency } from '../../../src/server/web.js';
import { virtualClock } from '../../../src/testing/index.js';
import { deferred } from '../../support/deferred.ts';
import { lateStore } from './support.js';

// Real servers on a machine that may be busy with others.
vi.setConfig({ testTimeout: 60_000 });

const protect = (given: object = {}) =>
  idempotency({ store: memoryStore(), scope: (request) => request.headers.get('x-user') ?? 'all', ...given });

function post(
  key: string | readonly string[] | null = 'k',
  { body, headers = {}, path = '/' }: { body?: string; headers?: Record<string, string>; path?: string } = {},
): Request {
  const all = new Headers(headers);
  for (const one of key === null ? [] : [key].flat()) all.append('idempotency-key', one);
  return new Request(`http://shop.test${path}`, {
    method: 'POST',
    headers: all,
    ...(body === undefined ? {} : { body }),
  });
}

function counted<More extends readonly unknown[]>(handler: IdempotentHandler<More>) {
  const counting = (...given: Parameters<IdempotentHandler<More>>) => {
    counting.runs++;
    return handler(...given);
  };
  counting.runs = 0;
  return counting;
}

async function typeOf(problem: Response): Promise<string> {
  return ((await problem.json()) as { type: string }).type;
}

/** The parts of a response that can be compared. */
async function shown(response: Response) {
  const { status, statusText, headers } = response;
  const lasting = [...headers].filter(
    ([name]) => !/^(idempotent-replayed|idempotency-key|cache-control|set-cookie|vary)$/.test(name),
  );
  return {
    status,
    statusText,
    headers: lasting,
    body: Buffer.from(await response.arrayBuffer()).toString('latin1'),
    hasBody: response.body !== null,
  };
}

function streamOf(...parts: readonly (string | Error)[]): ReadableStream<Uint8Array> {
  let index = 0;
  return new ReadableStream({
    async pull(controller) {
      await new Promise((resolve) => setImmediate(resolve));
      const part = parts[index++];
      if (part === undefined) controller.close();
      else if (part instanceof Error) controller.error(part);
      else controller.enqueue(new TextEncoder().encode(part));
    },
  });
}

const ways: Readonly<Record<string, () => Response>> = {
  json: () => Response.json({ id: 1 }, { status: 201 }),
  text: () => new Response('für 5 €'),
  bytes: () => new Response(Uint8Array.from({ length: 256 }, (_, index) => index)),
  'an empty text': () => new Response(''),
  nothing: () => new Response(),
  '204': () => new Response(null, { status: 204 }),
  '304': () => new Response(null, { status: 304, headers: { etag: '"1"' } }),
  'a redirect': () => Response.redirect('http://shop.test/orders/1', 303),
  'words of its own': () => new Response('x', { status: 202, statusText: 'Taken Down' }),
  'headers of all kinds': () => {
    const headers = new Headers({ 'x-a': '1', 'set-cookie': 'a=1', vary: 'accept' });
    headers.append('x-a', '2');
    headers.append('set-cookie', 'b=2');
    return new Response('x', { headers });
  },
  'a stream': () => new Response(streamOf('one,', 'two,', 'three')),
  'a form': () => new Response(new URLSearchParams({ a: '1' })),
  'a blob': () => new Response(new Blob(['blob'], { type: 'text/csv' })),
};

describe('a fetch handler', () => {
  it.each(Object.entries(ways))(
    'that answers by %s is answered for once, and the same when it is repeated',
    async (_name, way) => {
      const counting = counted(() => way());
      const handler = protect()(counting);
      const bare = await shown(way());
      const first = await shown(await handler(post()));
      const second = await handler(post());
      expect([second.headers.get('idempotent-replayed'), second.headers.get('cache-control')]).toEqual([
        'true',
        'no-store',
      ]);
      expect([second.headers.get('set-cookie'), second.headers.get('vary')]).toEqual([null, null]);
      expect(first).toEqual(bare);
      expect({ ...(await shown(second)), hasBody: bare.hasBody }).toEqual(bare);
      // A server gives an empty body a length and a type.
      expect(second.body === null).toBe(bare.body === '');
      expect(counting.runs).toBe(1);
    },
  );

  it('gets the request with its body, the record, and further arguments of the framework', async () => {
    const seen: unknown[] = [];
    const handler = protect()(async (request, record, context: { id: number }) => {
      seen.push(await request.json(), record?.key, context);
      return new Response('ok');
    });
    await handler(post('"k"', { body: '{"a":1}' }), { id: 7 });
    await handler(post(null, { body: '{"a":1}' }), { id: 8 });
    expect(seen).toEqual([{ a: 1 }, 'k', { id: 7 }, { a: 1 }, undefined, { id: 8 }]);
  });

  it.each([[['a', 'b']], [['a', 'a']], [['"a"', '"b"']], [['a', '']], [['', 'a']]])(
    'is not called with the keys %j',
    async (keys) => {
      const counting = counted(() => new Response('ok'));
      const answer = await protect()(counting)(post(keys));
      expect([answer.status, await typeOf(answer), counting.runs]).toEqual([
        400,
        expect.stringMatching(/invalid-key$/),
        0,
      ]);
    },
  );

  it('that throws fails, and runs again', async () => {
    const counting = counted(() => {
      if (counting.runs === 1) throw new Error('broken');
      return new Response('ok');
    });
    const handler = protect()(counting);
    await expect(handler(post())).rejects.toThrow('broken');
    expect(await (await handler(post())).text()).toBe('ok');
  });

  it('whose response has no type is repeated without one by servers that give one to bytes, as Bun does', async () => {
    vi.stubGlobal(
      'Response',
      class extends Response {
        constructor(body?: ConstructorParameters<typeof Response>[0], init?: ResponseInit) {
          super(body, init);
          if (body instanceof Uint8Array) this.headers.append('content-type', 'application/octet-stream');
        }
      },
    );
    try {
      const handler = protect()(() => new Response(streamOf('here')));
      for (let time = 0; time < 2; time++) {
        const answer = await handler(post());
        expect([answer.headers.get('content-type'), await answer.text()]).toEqual([null, 'here']);
      }
    } finally {
      vi.unstubAllGlobals();
    }
  });

  it.each([[undefined], [null], [{ status: 201 }], ['text']])(
    'that gives %j fails in words, and is run again',
    async (given) => {
      const counting = counted(() => given as unknown as Response);
      const handler = protect()(counting);
      for (const runs of [1, 2]) {
        await expect(handler(post())).rejects.toThrow('idempotency: the handler must give a Response');
        expect(counting.runs).toBe(runs);
      }
    },
  );

  it('keeps the type of a body that its response knows only later, as one of @hono/node-server', async () => {
    const late = (body: Blob): Response => {
      const inner = new Response(body);
      let headers = new Headers({ 'content-type': 'text/plain' });
      return Object.defineProperties(new Response(), {
        body: {
          get: () => {
            headers = inner.headers;
            return inner.body;
          },
        },
        headers: { get: () => headers },
      });
    };
    const handler = protect()(() => late(new Blob(['a,b'], { type: 'text/csv' })));
    for (const _ of [1, 2]) {
      const answer = await handler(post());
      expect([answer.headers.get('content-type'), await answer.text()]).toEqual(['text/csv', 'a,b']);
    }
  });

  it('whose scope throws fails before anything begins', async () => {
    const counting = counted(() => new Response('ok'));
    const scope = () => {
      throw new Error('who is that');
    };
    await expect(protect({ scope })(counting)(post())).rejects.toThrow('who is that');
    expect(counting.runs).toBe(0);
  });

  it('whose stream breaks runs again', async () => {
    const counting = counted(
      (): Response => new Response(counting.runs === 1 ? streamOf('first', new Error('broken')) : 'whole'),
    );
    const handler = protect()(counting);
    await expect((await handler(post())).text()).rejects.toThrow('broken');
    expect(await (await handler(post())).text()).toBe('whole');
  });

  it.each([
    ['throws', () => Promise.reject(new Error('broken'))],
    ['gives no Response', () => undefined as never],
    ['breaks its stream off', () => new Response(streamOf('first', new Error('broken')))],
  ])('that %s fails when its key is free again, so that a retry runs at once', async (_, fails) => {
    const counting = counted((): Response | Promise<Response> =>
      counting.runs === 1 ? fails() : new Response('whole'),
    );
    const handler = protect({ store: lateStore(), storeTimeout: '10s' })(counting);
    await expect(handler(post()).then((answer) => answer.text())).rejects.toThrow(/broken|must give a Response/);
    const again = await handler(post());
    expect([again.status, await again.text()]).toEqual([200, 'whole']);
  });

  it('that throws fails after `storeTimeout` if the store does not free its key', async () => {
    const clock = virtualClock();
    const inner = memoryStore({ clock });
    const hanging: Store = {
      read: (...given) => inner.read(...given),
      remove: (...given) => inner.remove(...given),
      write: (...given) => (given[2]?.ifVersion === 0 ? inner.write(...given) : new Promise(() => {})),
    };
    const handler = protect({ clock, store: hanging, storeTimeout: '500ms' })(() => {
      throw new Error('broken');
    });
    const failed = vi.fn();
    void handler(post()).catch(failed);
    await clock.advance(499);
    expect(failed).not.toHaveBeenCalled();
    await clock.advance(1);
    expect(failed).toHaveBeenCalledWith(expect.objectContaining({ message: 'broken' }));
  });

  it('whose stream yields text is stored as UTF-8, bytes of any realm as they are, and one that yields neither fails', async () => {
    const given: unknown[] = ['caf\u00e9 ', Buffer.from('no'), runInNewContext('Uint8Array.of(105, 114)')];
    const counting = counted(() => new Response(ReadableStream.from(given) as ReadableStream<Uint8Array>));
    const handler = protect()(counting);
    expect(await (await handler(post())).text()).toBe('caf\u00e9 noir');
    expect(await (await handler(post())).text()).toBe('caf\u00e9 noir');
    expect(counting.runs).toBe(1);
    given[0] = new Uint16Array([1]);
    await expect((await handler(post('other'))).text()).rejects.toThrow('as Uint8Array');
  });

  it('sends the first bytes at once, and the last when the answer is stored', async () => {
    const { promise: stored, resolve: store } = deferred();
    const inner = memoryStore();
    let writes = 0;
    const slow: Store = {
      read: (...given) => inner.read(...given),
      remove: (...given) => inner.remove(...given),
      async write(...given) {
        if (++writes > 1) await stored;
        return inner.write(...given);
      },
    };
    const answer = await protect({ store: slow, storeTimeout: '10s' })(() => new Response(streamOf('first', 'last')))(
      post(),
    );
    const reader = answer.body!.getReader();
    const texts = [];
    for (let count = 0; count < 2; count++) texts.push(Buffer.from((await reader.read()).value!).toString());
    const end = reader.read();
    const waited = new Promise((resolve) => setTimeout(resolve, 30, 'waits'));
    expect([texts, await Promise.race([end, waited])]).toEqual([['first', 'last'], 'waits']);
    store();
    expect((await end).done).toBe(true);
  });

  it.each(['reads nothing', 'leaves in the middle'])(
    'has its complete answer stored if the client %s',
    async (client) => {
      const counting = counted(() => new Response(streamOf('one,', 'two,', 'three')));
      const handler = protect()(counting);
      const answer = await handler(post());
      if (client === 'leaves in the middle') {
        const reader = answer.body!.getReader();
        await reader.read();
        await reader.cancel();
      }
      const again = async () => {
        const response = await handler(post());
        return response.status === 200 ? response.text() : response.status;
      };
      await expect.poll(again).toBe('one,two,three');
      expect(counting.runs).toBe(1);
    },
  );

  it('is not read to its end for nobody if it is longer than may be stored', async () => {
    let produced = 0;
    const endless = () =>
      new ReadableStream<Uint8Array>({
        async pull(controller) {
          produced++;
          await new Promise((resolve) => setImmediate(resolve));
          controller.enqueue(new Uint8Array(1_000));
        },
      });
    const handler = protect({ maxBodyBytes: 10_000 })(() => new Response(endless()));
    const answer = await handler(post());
    await answer.body!.cancel();
    await expect.poll(async () => typeOf(await handler(post()))).toMatch(/result-not-stored$/);
    expect(produced).toBeLessThan(20);
  });

  it.each([
    ['fails to stop', () => Promise.reject(new Error('it goes on'))],
    ['never says that it has stopped', () => new Promise<never>(() => {})],
  ])('does not run again if a stream that is too long %s after its client disconnected', async (_, cancel) => {
    const pull = (controller: ReadableStreamDefaultController<Uint8Array>) => controller.enqueue(new Uint8Array(1_000));
    const counting = counted(() => new Response(new ReadableStream({ pull, cancel })));
    const handler = protect({ maxBodyBytes: 5_000 })(counting);
    await (await handler(post())).body!.cancel();
    const again = async () => {
      const answer = await handler(post());
      return answer.status === 200 ? 'ran again' : typeOf(answer);
    };
    await expect.poll(again).toMatch(/result-not-stored$|ran again/);
    expect(counting.runs).toBe(1);
  });

  it('is cut off if its stream has no end 15 s after its client disconnected, and counts as handled', async () => {
    const clock = virtualClock();
    const cancelled = vi.fn();
    const counting = counted(() => {
      const start = (controller: ReadableStreamDefaultController<Uint8Array>) => controller.enqueue(new Uint8Array(10));
      return new Response(new ReadableStream({ start, cancel: cancelled }));
    });
    const handler = protect({ clock, store: memoryStore({ clock }), lease: '1m' })(counting);
    const answer = await handler(post());
    await answer.body!.cancel();
    await clock.advance(14_900);
    expect(await typeOf(await handler(post()))).toMatch(/in-progress$/);
    expect(cancelled).not.toHaveBeenCalled();
    await clock.advance(200);
    expect(await typeOf(await handler(post()))).toMatch(/result-not-stored$/);
    expect([cancelled.mock.calls.length, counting.runs]).toEqual([1, 1]);
  });

  it('has its stream stopped if that yields anything but bytes', async () => {
    const cancelled = vi.fn();
    const pull = (controller: ReadableStreamDefaultController<unknown>) => controller.enqueue(42);
    const stream = new ReadableStream({ pull, cancel: cancelled }) as ReadableStream<Uint8Array>;
    const answer = await protect()(() => new Response(stream))(post());
    await expect(answer.text()).rejects.toThrow('gives bytes');
    expect(cancelled).toHaveBeenCalledOnce();
  });

  it('is not called with a body that is too long, the rest of which is not requested', async () => {
    const counting = counted(() => new Response('ok'));
    let given = 0;
    const state = { isCancelled: false };
    const endless = new ReadableStream<Uint8Array>({
      pull(controller) {
        given++;
        controller.enqueue(new Uint8Array(100));
      },
      cancel() {
        state.isCancelled = true;
      },
    });
    const headers = { 'idempotency-key': '"k"' };
    const init = { method: 'POST', headers, body: endless, duplex: 'half' } as RequestInit;
    const answer = await protect({ maxInputBytes: 1_000 })(counting)(new Request('http://shop.test/orders', init));
    expect([answer.status, await typeOf(answer), counting.runs]).toEqual([
      413,
      expect.stringMatching(/body-too-large$/),
      0,
    ]);
    expect(state.isCancelled).toBe(true);
    expect(given).toBeLessThan(20);
  });

  it('is not called with a body that was read before, which cannot be compared', async () => {
    const counting = counted(() => new Response('ok'));
    const [read, locked] = [post('"k"', { body: '{}' }), post('"k"', { body: '{}' })];
    await read.text();
    locked.body!.getReader();
    for (const request of [read, locked])
      await expect(protect()(counting)(request)).rejects.toThrow('the body was read before');
    expect(counting.runs).toBe(0);
  });

  it.each([1, 2_000, 40_000])('compares every part of a form with %i of them', async (count) => {
    const counting = counted(() => new Response('ok'));
    const handler = protect()(counting);
    const parts = Array.from({ length: count }, (_, index) => `\r\n\r\nthe value of part ${index}`);
    const body = `--B${parts.join('\r\n--B')}\r\n--B--`;
    const headers = { 'content-type': 'multipart/form-data; boundary=B' };
    const statuses = [];
    for (const sent of [body, body, body.replace(/\d+\r\n--B--$/, 'n\r\n--B--')])
      statuses.push((await handler(post('k', { body: sent, headers }))).status);
    expect([...statuses, counting.runs]).toEqual([200, 200, 422, 1]);
  });

  it.each([
    ['form-data; boundary=', [200, 200]],
    ['form-data;charset=utf-8;boundary=', [200, 200]],
    ['form-data; name=x; boundary=', [200, 422]],
    ['form-data; x="; boundary=B"; boundary=', [200, 422]],
    ['mixed; boundary=', [200, 422]],
  ])(
    'compares multipart/%s without the boundary only where every parser finds the same one',
    async (type, expected) => {
      const counting = counted(() => new Response('ok'));
      const handler = protect()(counting);
      const statuses = [];
      for (const boundary of ['B1', 'B2']) {
        const headers = { 'content-type': `multipart/${type}${boundary}` };
        const body = `--${boundary}\r\n\r\n1\r\n--${boundary}--\r\n`;
        statuses.push((await handler(post('k', { body, headers }))).status);
      }
      expect([statuses, counting.runs]).toEqual([expected, 1]);
    },
  );

  it('accepts an engine', async () => {
    const engine = engineOf({ store: memoryStore() });
    const counting = counted(() => new Response('ok'));
    const handler = idempotency(engine, { scope: () => 'all' })(counting);
    expect([(await handler(post())).status, (await handler(post())).status, counting.runs]).toEqual([200, 200, 1]);
    expect(() => idempotency(engine, { scope: () => 'all', ttl: '1h' } as never)).toThrow('"ttl"');
  });

  it('whose client has disconnected is waited for by the engine, until its stream is recorded', async () => {
    const engine = engineOf({ store: memoryStore() });
    const counting = counted(() => new Response(streamOf('a', 'b', 'c')));
    const handler = idempotency(engine, { scope: () => 'all' })(counting);
    await (await handler(post())).body!.cancel();
    await engine.idle();
    const again = handler(post());
    expect([(await again).headers.get('idempotent-replayed'), await (await again).text()]).toEqual(['true', 'abc']);
    expect(counting.runs).toBe(1);
  });

  it('is refused if there is nothing to run', () => {
    const options = { store: memoryStore(), scope: () => 'all' };
    expect(() => idempotency(options)(new Request('http://shop.test/') as never)).toThrow(
      '"handler" must be a function',
    );
    expect(() => nodeIdempotency(options)(undefined as never)).toThrow('"listener" is required: a function');
  });

  it('compares what its own fingerprint returns', async () => {
    const counting = counted(() => new Response('ok'));
    const fingerprint = async (request: Request) => String(((await request.clone().json()) as { order: number }).order);
    const handler = protect({ fingerprint })(counting);
    const statuses = [];
    for (const body of ['{"order":1,"at":1}', '{"order":1,"at":2}', '{"order":2,"at":1}'])
      statuses.push((await handler(post('k', { body }))).status);
    expect(statuses).toEqual([200, 200, 422]);
  });

  it('leaves the excluded members out of the comparison', async () => {
    const handler = protect({ fingerprint: { exclude: ['/at'] } })(() => new Response('ok'));
    const headers = { 'content-type': 'application/json' };
    const statuses = [];
    for (const body of ['{"order":1,"at":1}', '{"order":1,"at":2}', '{"order":2,"at":1}'])
      statuses.push((await handler(post('k', { body, headers }))).status);
    expect(statuses).toEqual([200, 200, 422]);
  });
});
