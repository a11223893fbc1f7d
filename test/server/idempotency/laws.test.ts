/** The faults of the field, each as a law, on every kind of server and every store that is available. */
import { setTimeout as sleep } from 'node:timers/promises';
import { gzipSync } from 'node:zlib';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { memoryStore, type Store, StoreError } from '../../../src/index.js';
import { redisStore } from '../../../src/stores/redis.js';
import { sqliteStore } from '../../../src/stores/sqlite.js';
import { type RedisConnection, drivers as redisDrivers } from '../../stores/redis-clients.js';
import { drivers as sqliteDrivers, temporaryDatabase } from '../../stores/sqlite-files.js';
import { redisProgram, startRedis } from '../../support/servers/redis.js';
import type { ServerProcess } from '../../support/servers/server-process.js';
import { type Answered, type Asked, frameworks, type Given, type Running } from './frameworks.js';
import { exchange, headerOf, parseAnswer, type RawAnswer, requestBytes, send, sendAndLeave } from './raw-client.js';
import { lasting, lateStore, leaked, marksOf, replayMarks } from './support.js';

// Real servers on a machine that may be busy with others.
vi.setConfig({ testTimeout: 60_000 });

interface Backend {
  readonly name: string;
  readonly isThere: boolean;
  open(): Promise<void>;
  /** One store serves a whole test. Keys of different tests do not meet, because each test has its own prefix. */
  store(prefix: string): Store;
  close(): Promise<void>;
}

const memory: Backend = {
  name: 'memory',
  isThere: true,
  open: async () => {},
  store: () => memoryStore(),
  close: async () => {},
};

function sqlite(): Backend {
  const [driver] = sqliteDrivers;
  const file = temporaryDatabase();
  let db: ReturnType<NonNullable<typeof driver>['open']> | undefined;
  return {
    name: 'sqlite',
    isThere: driver !== undefined,
    async open() {
      db = driver!.open(file.path);
      db.exec('PRAGMA synchronous = OFF');
    },
    store: (prefix) => sqliteStore(db!, { prefix }),
    async close() {
      db?.close();
      file[Symbol.dispose]();
    },
  };
}

const program = await redisProgram();

function redis(): Backend {
  let server: ServerProcess | undefined;
  let connection: RedisConnection | undefined;
  return {
    name: 'redis',
    isThere: program !== undefined,
    async open() {
      server = await startRedis(program!);
      connection = redisDrivers[0]!.connect(server.port);
    },
    store: (prefix) => redisStore(connection!.client, { prefix, timeout: '10s' }),
    async close() {
      connection?.close();
      await server?.dispose();
    },
  };
}

const rejections: unknown[] = [];
const onRejection = (reason: unknown) => rejections.push(reason);
beforeAll(() => void process.on('unhandledRejection', onRejection));
afterAll(() => {
  process.removeListener('unhandledRejection', onRejection);
  expect(rejections).toEqual([]);
});

let count = 0;

for (const backend of [memory, sqlite(), redis()]) {
  describe.skipIf(!backend.isThere)(`on ${backend.name}`, () => {
    beforeAll(() => backend.open());
    afterAll(() => backend.close());

    describe.each(frameworks)('with $name', (framework) => {
      const asks: Asked[] = [];

      /** Serves while a test sends requests. Each call of the handler is recorded. */
      async function serving(
        service: (asked: Asked) => Answered | Promise<Answered>,
        task: (ask: (more?: Ask) => Promise<RawAnswer>, running: Running) => Promise<void>,
        given: Partial<Given> = {},
      ): Promise<void> {
        asks.length = 0;
        const store = given.store ?? backend.store(`t${++count}`);
        const running = await framework.serve({ storeTimeout: '10s', ...given, store }, (asked) => {
          asks.push(asked);
          return service(asked);
        });
        try {
          await task((more) => send(running.port, requestOf(more)), running);
        } finally {
          await running.close();
        }
      }

      const numbered = (): Answered => ({ body: `answer ${asks.length}` });
      const bodies = (answers: readonly RawAnswer[]) => answers.map(({ body }) => body.toString());

      it('two callers with the same key and body do not affect each other', async () => {
        await serving(numbered, async (ask) => {
          const answers = [await ask({ user: 'alice' }), await ask({ user: 'bob' }), await ask({ user: 'alice' })];
          expect(bodies(answers)).toEqual(['answer 1', 'answer 2', 'answer 1']);
        });
      });

      it('a key on one route is not the same key on another', async () => {
        await serving(numbered, async (ask) => {
          expect(bodies([await ask({ path: '/a/1' }), await ask({ path: '/b/1' })])).toEqual(['answer 1', 'answer 2']);
        });
      });

      it('a query counts, in any order', async () => {
        await serving(numbered, async (ask) => {
          const first = await ask({ path: '/a/1?x=1&y=2' });
          const same = await ask({ path: '/a/1?y=2&x=1' });
          const other = await ask({ path: '/a/1?x=1&y=3' });
          expect([first.status, same.status, other.status]).toEqual([201, 201, 422]);
          expect([same.body.toString(), asks.length]).toEqual(['answer 1', 1]);
        });
      });

      it('another body is refused, the same data in another notation is not', async () => {
        const body = '{"amount":9007199254740993,"to":{"b":1,"a":"é"}}';
        const json: Ask = { type: 'application/json', body };
        await serving(numbered, async (ask) => {
          await ask(json);
          const same = await ask({ ...json, body: '{ "to": {"a":"é", "b":1},\n "amount": 9007199254740993 }' });
          const charset = await ask({ ...json, type: 'application/json; charset=utf-8' });
          const digit = await ask({ ...json, body: body.replace('993', '992') });
          const fewer = await ask({ ...json, body: '{}' });
          const none = await ask({});
          const kind = await ask({ ...json, type: 'text/plain' });
          expect([same.status, charset.status]).toEqual([201, 201]);
          expect([digit.status, fewer.status, none.status, kind.status]).toEqual([422, 422, 422, 422]);
          expect(asks).toHaveLength(1);
          expect(problem(digit)).toMatchObject({
            type: expect.stringMatching(/key-reused$/),
            status: 422,
            retryable: false,
          });
        });
      });

      it('a malformed body counts byte by byte, and so does a compressed one', async () => {
        await serving(numbered, async (ask) => {
          const malformed = { type: 'application/json', body: '{"a":' };
          const answers = [await ask(malformed), await ask(malformed), await ask({ ...malformed, body: '{"b":' })];
          expect(answers.map(({ status }) => status)).toEqual([201, 201, 422]);
          const zipped = {
            key: 'z',
            type: 'text/plain',
            body: gzipSync('x'.repeat(1_000)),
            more: [['Content-Encoding', 'gzip']] as const,
          };
          const compressed = [await ask(zipped), await ask(zipped)];
          expect(compressed.map(({ status }) => status)).toEqual([201, 201]);
          expect(asks).toHaveLength(2);
        });
      });

      it('a form counts without its boundary, which is new each time a form is serialized', async () => {
        const form = (boundary: string, value: string, quote = ''): Ask => ({
          type: `multipart/form-data; charset=utf-8; boundary=${quote}${boundary}${quote}`,
          body: `--${boundary}\r\nContent-Disposition: form-data; name="a"\r\n\r\n${value}\r\n--${boundary}--\r\n`,
        });
        await serving(numbered, async (ask) => {
          const first = await ask(form('formdata-012', '1'));
          const again = await ask(form('formdata-987', '1'));
          const quoted = await ask(form("a'longer (one)", '1', '"'));
          const other = await ask(form('formdata-012', '2'));
          const parts = await ask(form('formdata-012', '1\r\n--formdata-012'));
          expect([again.body, quoted.body]).toEqual([first.body, first.body]);
          expect([first.status, other.status, parts.status, asks.length]).toEqual([201, 422, 422, 1]);
        });
      });

      it.each(['', '0', 'false', 'null'])('an answer that says %j runs once', async (body) => {
        await serving(
          () => ({ status: 200, body }),
          async (ask) => {
            const [first, second] = [await ask(), await ask()];
            expect(lasting(second)).toEqual(lasting(first));
            expect([second.body.toString(), asks.length]).toEqual([body, 1]);
          },
        );
      });

      it('a replay is marked as one, and carries nothing meant for another caller', async () => {
        const headers = { 'set-cookie': 'session=secret', 'x-request-id': '7', vary: 'accept', location: '/orders/1' };
        await serving(
          () => ({ status: 303, headers }),
          async (ask) => {
            const first = await ask();
            const second = await ask({ key: '"k-1"' });
            expect(headerOf(first, 'set-cookie')).toBe('session=secret');
            expect(leaked(second)).toEqual([]);
            expect([second.status, headerOf(second, 'location')]).toEqual([303, '/orders/1']);
            expect([marksOf(first), marksOf(second)]).toEqual([{}, replayMarks]);
          },
        );
      });

      it.each([500, 503, 401, 403, 408, 421, 425, 429])('an answer %i is not final', async (status) => {
        await serving(
          () => (asks.length === 1 ? { status } : numbered()),
          async (ask) => {
            const answers = [await ask(), await ask(), await ask()];
            expect(answers.map((answer) => answer.status)).toEqual([status, 201, 201]);
            expect(asks.map(({ record }) => record!.attempt)).toEqual([1, 2]);
          },
        );
      });

      it.each([400, 404, 409, 410, 422])('an answer %i of the handler is final', async (status) => {
        await serving(
          () => ({ status, body: 'no' }),
          async (ask) => {
            const [first, second] = [await ask(), await ask()];
            expect([first.status, second.status, second.body.toString(), asks.length]).toEqual([
              status,
              status,
              'no',
              1,
            ]);
          },
        );
      });

      it('a handler that throws runs again for the next request, with the same key and body only', async () => {
        await serving(
          () => {
            if (asks.length === 1) throw new Error('broken');
            return numbered();
          },
          async (ask) => {
            expect((await ask()).status).toBe(500);
            expect((await ask({ body: 'other', type: 'text/plain' })).status).toBe(422);
            expect(bodies([await ask(), await ask()])).toEqual(['answer 2', 'answer 2']);
          },
        );
      });

      it('a handler that throws is answered when its key is free again, so that the very next request runs', async () => {
        await serving(
          () => {
            if (asks.length === 1) throw new Error('broken');
            return numbered();
          },
          async (ask) => {
            expect([(await ask()).status, (await ask()).status, asks.length]).toEqual([500, 201, 2]);
          },
          { store: lateStore(backend.store(`t${++count}`)) },
        );
      });

      it('a handler that seals does not run again, whatever it answers', async () => {
        await serving(
          async ({ record }) => {
            await record!.seal();
            return { status: 500, body: 'charged, and then it broke' };
          },
          async (ask) => {
            const [first, second] = [await ask(), await ask()];
            expect([first.status, second.status, asks.length]).toEqual([500, 500, 1]);
            expect(second.body.toString()).toBe('charged, and then it broke');
          },
        );
      });

      it('a handler that releases runs again, whatever it answers', async () => {
        await serving(
          ({ record }) => {
            record!.release();
            return numbered();
          },
          async (ask) => {
            const answers: Awaited<ReturnType<typeof ask>>[] = [];
            // This happens more often than "attempts" allows failures, because nothing has happened in any of them.
            for (let count = 0; count < 12; count++) answers.push(await ask());
            expect(bodies(answers)).toEqual(answers.map((_, index) => `answer ${index + 1}`));
          },
        );
      });

      it('keep decides which statuses are final', async () => {
        await serving(
          () => ({ status: asks.length === 1 ? 404 : 200 }),
          async (ask) => {
            expect([(await ask()).status, (await ask()).status, (await ask()).status]).toEqual([404, 200, 200]);
            expect(asks).toHaveLength(2);
          },
          { keep: (status: number) => status < 400 },
        );
      });

      it('an answer is stored before its end is sent, so that the very next request gets it', async () => {
        await serving(numbered, async (ask) => {
          for (let index = 0; index < 25; index++) {
            const key = `key-${index}`;
            const [first, second] = [await ask({ key }), await ask({ key })];
            expect([second.status, second.body.equals(first.body)]).toEqual([201, true]);
          }
        });
      });

      it('one of a hundred equal requests runs, and the others are told to wait', async () => {
        await serving(
          async () => {
            await sleep(100);
            return numbered();
          },
          async (ask) => {
            const answers = await Promise.all(Array.from({ length: 100 }, () => ask()));
            expect(asks).toHaveLength(1);
            const others = answers.filter(({ status }) => status !== 201);
            for (const answer of others) {
              expect(problem(answer)).toMatchObject({
                type: expect.stringMatching(/in-progress$/),
                status: 409,
                retryable: true,
              });
              expect(Number(headerOf(answer, 'retry-after'))).toBeGreaterThanOrEqual(1);
            }
            expect((await ask()).body.toString()).toBe('answer 1');
          },
        );
      });

      const badKeys: readonly [title: string, lines: readonly string[]][] = [
        ['empty', ['']],
        ['of blanks', ['   ']],
        ['empty in quotes', ['""']],
        ['of 256 characters', ['k'.repeat(256)]],
        ['of 10 KB', ['k'.repeat(10_000)]],
        ['of 10 KB in quotes', [`"${'k'.repeat(10_000)}"`]],
        ['in half of the quotes', ['"abc']],
        ['with something behind the quotes', ['"abc" def']],
        ['beyond ASCII', ['schlüssel']],
        ['with a tab', ['a\tb']],
        ['that comes twice', ['one', 'two']],
        ['that comes twice, and is the same', ['one', 'one']],
        ['that comes twice in quotes', ['"one"', '"two"']],
        ['that comes twice, once empty', ['', 'two']],
      ];

      it.each(badKeys)('a key %s is refused, and nothing starts', async (_title, lines) => {
        await serving(numbered, async (_ask, { port }) => {
          const headers = [['X-User', 'alice'] as const, ...lines.map((line) => ['Idempotency-Key', line] as const)];
          const answer = await send(port, { path: '/a/1', headers });
          expect(answer.status).toBe(400);
          expect(problem(answer)).toMatchObject({ type: expect.stringMatching(/invalid-key$/), retryable: false });
          expect(asks).toHaveLength(0);
        });
      });

      it('a key with a control byte is refused, by Node or by us', async () => {
        await serving(numbered, async (_ask, { port }) => {
          const bytes = await exchange(port, requestBytes({ path: '/a/1', headers: [['Idempotency-Key', 'a\0b']] }));
          expect([parseAnswer(bytes).status, asks.length]).toEqual([400, 0]);
        });
      });

      it('a key is the same bare and in quotes, and with parameters', async () => {
        await serving(numbered, async (ask) => {
          const answers = [
            await ask({ key: 'a b,c' }),
            await ask({ key: '"a b,c"' }),
            await ask({ key: '"a b,c";v=1' }),
          ];
          expect(bodies(answers)).toEqual(['answer 1', 'answer 1', 'answer 1']);
          const longest = 'k'.repeat(255);
          expect(bodies([await ask({ key: longest }), await ask({ key: `"${longest}"` })])).toEqual([
            'answer 2',
            'answer 2',
          ]);
        });
      });

      it('a request without a key is not protected, unless a key is required', async () => {
        await serving(numbered, async (ask) => {
          expect(bodies([await ask({ key: undefined }), await ask({ key: undefined })])).toEqual([
            'answer 1',
            'answer 2',
          ]);
        });
        await serving(
          numbered,
          async (ask) => {
            const answer = await ask({ key: undefined });
            const address = 'https://api.example/idempotency';
            expect(problem(answer)).toMatchObject({
              type: `${address}#missing-key`,
              status: 400,
              code: 'ERR_KEY_MISSING',
            });
            expect([headerOf(answer, 'link'), asks.length]).toEqual([`<${address}>; rel="describedby"`, 0]);
          },
          { required: true, documentation: 'https://api.example/idempotency' },
        );
      });

      it('a caller without a name gets nothing of any key', async () => {
        await serving(numbered, async (ask) => {
          await ask({ user: 'alice' });
          const answer = await ask({ user: undefined });
          expect([answer.status, asks.length]).toEqual([500, 1]);
          expect(answer.body.toString()).not.toContain('answer');
        });
      });

      it('an answer that is too long to store is sent, but not available for a retry', async () => {
        await serving(
          () => ({ body: 'x'.repeat(1_001) }),
          async (ask) => {
            const first = await ask();
            const second = await ask();
            expect([first.body.byteLength, second.status, asks.length]).toEqual([1_001, 409, 1]);
            expect(problem(second)).toMatchObject({
              type: expect.stringMatching(/result-not-stored$/),
              retryable: false,
            });
          },
          { maxBodyBytes: 1_000 },
        );
      });

      it('every byte of an answer is replayed', async () => {
        const body = Array.from({ length: 3_000 }, (_, index) => String.fromCodePoint(index + 1)).join('');
        await serving(
          () => ({ body }),
          async (ask) => {
            const [first, second] = [await ask(), await ask()];
            expect(first.body.toString()).toBe(body);
            expect(second.body.equals(first.body)).toBe(true);
          },
        );
      });

      it('a client that disconnects changes nothing, at whichever byte', async () => {
        let effects = 0;
        await serving(
          async () => {
            effects++;
            await sleep(2);
            return { body: 'x'.repeat(100) };
          },
          async (ask, { port }) => {
            const sample = requestBytes(requestOf({ key: 'sample', type: 'text/plain', body: 'body' })).byteLength;
            const received = (await send(port, requestOf({ key: 'other', type: 'text/plain', body: 'body' }))).bytes
              .byteLength;
            const step = backend.name === 'memory' ? 7 : 41;
            const cuts: ({ afterSent: number } | { afterReceived: number })[] = [];
            for (let at = 1; at <= sample; at += step) cuts.push({ afterSent: at });
            cuts.push({ afterSent: sample });
            for (let at = 1; at < received; at += step) cuts.push({ afterReceived: at });
            for (const [index, cut] of cuts.entries()) {
              const one: Ask = { key: `cut-${index}`, type: 'text/plain', body: 'body' };
              const before = effects;
              await sendAndLeave(port, requestBytes(requestOf(one)), cut);
              const answer = await untilAnswered(() => ask(one));
              expect([answer.status, answer.body.byteLength, effects - before]).toEqual([201, 100, 1]);
            }
          },
        );
      });

      it('does not start without its store, and says so', async () => {
        const down = failing(() => Promise.reject(storeError()));
        await serving(
          numbered,
          async (ask) => {
            const answer = await ask();
            expect(problem(answer)).toMatchObject({
              type: expect.stringMatching(/store-unavailable$/),
              status: 503,
              retryable: true,
            });
            expect([headerOf(answer, 'retry-after'), asks.length]).toEqual(['1', 0]);
          },
          { store: down },
        );
      });

      it('does not wait for a hanging store', async () => {
        await serving(
          numbered,
          async (ask) => {
            expect([(await ask()).status, asks.length]).toEqual([503, 0]);
          },
          // Until the store answers, a begin that may have been applied is taken back for as long as its lease would block the key: Fastify's close waits for that.
          { store: failing(() => new Promise(() => {})), storeTimeout: 50, lease: 400 },
        );
      });

      it('runs without its store if that is configured', async () => {
        await serving(
          numbered,
          async (ask) => {
            expect(bodies([await ask(), await ask()])).toEqual(['answer 1', 'answer 2']);
          },
          { store: failing(() => Promise.reject(storeError())), onStoreDown: 'run' },
        );
      });

      it('sends the answer even if the store is lost while the handler works', async () => {
        let isDown = false;
        const inner = backend.store(`t${++count}`);
        const store: Store = {
          read: (...given) => inner.read(...given),
          write: (...given) => (isDown ? Promise.reject(storeError()) : inner.write(...given)),
          remove: (...given) => inner.remove(...given),
        };
        await serving(
          () => {
            isDown = true;
            return numbered();
          },
          async (ask) => {
            expect((await ask()).body.toString()).toBe('answer 1');
            expect([(await ask()).status, asks.length]).toEqual([503, 1]);
            isDown = false;
            // It is recorded in the background, as soon as the store accepts it.
            const answer = await untilAnswered(() => ask());
            expect([answer.body.toString(), asks.length]).toEqual(['answer 1', 1]);
          },
          { store, storeTimeout: 2_000 },
        );
      });
    });
  });
}

interface Ask {
  readonly user?: string | undefined;
  readonly key?: string | undefined;
  readonly path?: string;
  readonly type?: string;
  readonly body?: string | Uint8Array;
  readonly more?: readonly (readonly [string, string])[];
}

function requestOf(ask: Ask = {}) {
  const { user, key, path = '/a/1', type, body, more = [] } = { user: 'alice', key: 'k-1', ...ask };
  const headers = [
    ...(user === undefined ? [] : [['X-User', user] as const]),
    ...(key === undefined ? [] : [['Idempotency-Key', key] as const]),
    ...(type === undefined ? [] : [['Content-Type', type] as const]),
    ...more,
  ];
  return { path, headers, ...(body === undefined ? {} : { body }) };
}

function problem(answer: RawAnswer): Record<string, unknown> {
  expect(headerOf(answer, 'content-type')).toMatch(/^application\/problem\+json/);
  return JSON.parse(answer.body.toString());
}

/** Asks again while the first request is still being handled. */
async function untilAnswered(ask: () => Promise<RawAnswer>): Promise<RawAnswer> {
  for (let tries = 0; ; tries++) {
    const answer = await ask();
    if ((answer.status !== 409 && answer.status !== 503) || tries > 500) return answer;
    await sleep(10);
  }
}

function failing(verb: () => Promise<never>): Store {
  return { read: verb, write: verb, remove: verb };
}

function storeError(): StoreError {
  const detail = 'it is down';
  return new StoreError({ store: 'test', operation: 'write', reason: 'failed', applied: 'no', detail });
}
