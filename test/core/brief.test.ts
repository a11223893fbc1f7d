/** What `console.log` and `JSON.stringify` show of our objects: little, and no key, value or secret. */
import { inspect } from 'node:util';
import { describe, expect, it } from 'vitest';
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
for (let call = 0; call < 2; call++) {
  void full.attempt(hold, { idempotencyKey: secret, key: secret, attributes: { secret }, deadline: '1h' });
}
const nothing = () => {};
const ioredis = { evalBuffer: nothing, evalshaBuffer: nothing, on: nothing, off: nothing, status: 'ready' };

const things: Readonly<Record<string, unknown>> = {
  pipeline: pipeline(deadline('5s'), retry(), circuitBreaker(), timeout('1s')),
  ...{ retry: retry(), timeout: timeout('1s'), deadline: deadline('1s'), circuitBreaker: circuitBreaker() },
  ...{ waiting, adaptiveLimit: adaptiveLimit(), rateLimit: rateLimit({ limit: 1, period: '1s' }) },
  ...{ throttle: throttle(), loadShed: loadShed(), hedge: hedge({ delay: '1s' }), fallback: fallback(() => 1) },
  ...{ singleFlight: singleFlight({ key: () => secret }), standard: standard(), perTenant, retryBudget: retryBudget() },
  ...{ exponential: exponential(), store, users, once, mutex: mutex({ store }), lease },
  ...{ semaphore: semaphore({ store, permits: 2 }), leader: leader({ store, name: 'cron' }) },
  ...{
    redis: redisStore({ ...ioredis, options: { password: secret } } as never),
    'permit of a breaker': circuitBreaker().admit(),
  },
  ...{ call: calls[0], 'child of a call': calls[0]!.child() },
};

describe('what a log shows', () => {
  it.each(Object.entries(things))('of %s is short and holds no secret', (_name, thing) => {
    const shown = inspect(thing, { depth: 20 });
    expect(shown.split('\n').length).toBeLessThan(20);
    expect(shown + JSON.stringify(thing)).not.toContain(secret);
  });

  it('of a call is its own figures', () => {
    expect(JSON.parse(JSON.stringify(calls[0]))).toEqual({
      ...{ attempt: 1, unsafe: false, aborted: false, remainingMs: expect.any(Number) },
    });
    expect(inspect(calls[0], { breakLength: Infinity })).toMatch(
      /^\{ attempt: 1, unsafe: false, aborted: false, remainingMs: \d/,
    );
    expect(inspect(pipeline(timeout('1s')))).toBe("{ name: 'pipeline', policies: [ 'timeout' ] }");
    expect(JSON.stringify(waiting)).toBe('{"name":"bulkhead","running":1,"waiting":1,"abandoned":0}');
  });

  it('of an operation that runs under a key is its attempt', async () => {
    const [shown, json] = await once.run(secret, (handle) => [inspect(handle), JSON.stringify(handle)], {
      scope: 'logs',
    });
    expect(shown).toMatch(/^\{ attempt: 1, fence: \d+ \}$/);
    expect(Object.keys(JSON.parse(json!))).toEqual(['attempt', 'fence']);
  });

  it('of an invalid option leaves out the value, if it may be secret', () => {
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
