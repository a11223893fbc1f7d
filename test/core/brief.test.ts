/** What `console.log` and `JSON.stringify` show of our objects: little, and no key, value or secret. */
import { inspect } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  adaptiveLimit,
  bulkhead,
  type Call,
  cache,
  circuitBreaker,
  deadline,
  exponential,
  fallback,
  hedge,
  idempotency,
  keyed,
  leader,
  loadShed,
  memoryStore,
  mutex,
  pipeline,
  rateLimit,
  retry,
  retryBudget,
  semaphore,
  singleFlight,
  standard,
  throttle,
  timeout,
} from '../../src/index.js';
import { redisStore } from '../../src/stores/redis.js';

const secret = 'hunter2-hunter2-hunter2';
/** Called when the tests run: what an object shows is settled when the first of its kind is made, and a mutation run breaks the source only then. */
async function makeThings() {
  const store = memoryStore();
  await store.write(secret, new TextEncoder().encode(secret), { ttlMs: 60_000 });
  const perTenant = keyed(() => circuitBreaker());
  perTenant.for(secret);
  const users = cache({ store, ttl: '1m', load: (key: string) => ({ [key]: secret }) });
  await users.get(secret);
  const once = idempotency({ store, secret });
  const lease = await mutex({ store }).acquire('cron');
  const waiting = bulkhead({ limit: 1, queue: 1 });
  const full = pipeline(waiting);
  const never = new Promise(() => {});
  const calls: Call[] = [];
  const hold = (call: Call) => {
    calls.push(call);
    return never;
  };
  const over = new AbortController();
  const { signal } = over;
  for (let call = 0; call < 2; call++) {
    void full.attempt(hold, { idempotencyKey: secret, key: secret, attributes: { secret }, deadline: '1h', signal });
  }
  const nothing = () => {};
  const ioredis = { evalBuffer: nothing, evalshaBuffer: nothing, on: nothing, off: nothing, status: 'ready' };

  const things: Readonly<Record<string, unknown>> = {
    pipeline: pipeline(deadline('5s'), retry(), circuitBreaker(), timeout('1s')),
    ...{ retry: retry(), timeout: timeout('1s'), deadline: deadline('1s'), circuitBreaker: circuitBreaker() },
    ...{ waiting, adaptiveLimit: adaptiveLimit(), rateLimit: rateLimit({ limit: 1, period: '1s' }) },
    ...{ throttle: throttle(), loadShed: loadShed(), hedge: hedge({ delay: '1s' }), fallback: fallback(() => 1) },
    ...{
      singleFlight: singleFlight({ key: () => secret }),
      standard: standard(),
      perTenant,
      retryBudget: retryBudget(),
    },
    ...{ exponential: exponential(), store, users, once, mutex: mutex({ store }), lease },
    ...{ semaphore: semaphore({ store, permits: 2 }), leader: leader({ store, name: 'cron' }) },
    ...{
      redis: redisStore({ ...ioredis, options: { password: secret } } as never),
      'permit of a breaker': circuitBreaker().admit(),
    },
    ...{ call: calls[0], 'child of a call': calls[0]!.child() },
  };
  return { things, calls, waiting, once, store, lease, over };
}

describe('what a log shows', () => {
  let made: Awaited<ReturnType<typeof makeThings>>;
  beforeAll(async () => {
    made = await makeThings();
  });
  afterAll(async () => {
    made.over.abort();
    await made.lease.release();
  });

  it('is short and holds no secret', () => {
    for (const [name, thing] of Object.entries(made.things)) {
      const shown = inspect(thing, { depth: 20 });
      expect(shown.split('\n').length, name).toBeLessThan(20);
      expect(shown + JSON.stringify(thing), name).not.toContain(secret);
    }
  });

  it.each<[string, object]>([
    ['throttle', { name: 'throttle', probability: 0 }],
    ['adaptiveLimit', { name: 'adaptiveLimit', limit: 100, running: 0, waiting: 0 }],
    ['rateLimit', { name: 'rateLimit', remaining: 1, waiting: 0 }],
    ['circuitBreaker', { name: 'circuitBreaker', state: 'closed' }],
    ['waiting', { name: 'bulkhead', running: 1, waiting: 1, abandoned: 0 }],
    ['perTenant', { name: 'keyed', size: 1 }],
    ['users', { name: 'cache', size: 1 }],
    ['leader', { name: 'cron', isLeader: false }],
    ['lease', { key: 'cron', fence: expect.any(Number), state: 'held' }],
    ['store', { store: 'memory', size: expect.any(Number) }],
    ['redis', { store: 'redis', prefix: expect.any(String) }],
    ['once', { name: 'idempotency' }],
  ])('of `%s` is its figures', (name, figures) => {
    expect(JSON.parse(JSON.stringify(made.things[name]))).toEqual(figures);
  });

  it('of a call is its own figures', () => {
    expect(JSON.parse(JSON.stringify(made.calls[0]))).toEqual({
      ...{ attempt: 1, unsafe: false, aborted: false, remainingMs: expect.any(Number) },
    });
    expect(inspect(made.calls[0], { breakLength: Infinity })).toMatch(
      /^\{ attempt: 1, unsafe: false, aborted: false, remainingMs: \d/,
    );
    expect(inspect(pipeline(timeout('1s')))).toBe("{ name: 'pipeline', policies: [ 'timeout' ] }");
    expect(JSON.stringify(made.waiting)).toBe('{"name":"bulkhead","running":1,"waiting":1,"abandoned":0}');
  });

  it('of an operation that runs under a key is its attempt', async () => {
    const [shown, json] = await made.once.run(secret, (handle) => [inspect(handle), JSON.stringify(handle)], {
      scope: 'logs',
    });
    expect(shown).toMatch(/^\{ attempt: 1, fence: \d+ \}$/);
    expect(Object.keys(JSON.parse(json!))).toEqual(['attempt', 'fence']);
  });

  it('of an invalid option leaves out the value, if it may be secret', () => {
    const { store } = made;
    const mistakes = [
      () => idempotency({ store, secret: 'hunter2' }),
      () => idempotency({ store, secrets: secret } as never),
      () => idempotency({ store, encryption: { current: 'a', keys: { a: 'hunter2' as never } } }),
      () => redisStore('redis://:hunter2@localhost:6379' as never),
      () => redisStore({ options: { password: secret } } as never),
    ];
    for (const mistake of mistakes) {
      let thrown: unknown;
      try {
        mistake();
      } catch (error) {
        thrown = error;
      }
      expect(thrown).toMatchObject({ code: 'ERR_OPTIONS' });
      expect(thrown).toHaveProperty('value');
      expect(inspect(thrown, { depth: 20 }).replace(/^ +at .*$/gm, '') + JSON.stringify(thrown)).not.toContain(
        'hunter2',
      );
    }
  });
});
