import { describe, expect, expectTypeOf, it } from 'vitest';
import {
  bulkhead,
  type CircuitBreaker,
  type Clock,
  circuitBreaker,
  HandlesError,
  type HoldfastEvent,
  keyed,
  OptionsError,
  pipeline,
  retry,
  type Strategy,
  TimeoutError,
  timeout,
} from '../../src/index.js';
import type { CompletableRegistry } from '../../src/policies/keyed.js';
import { virtualClock } from '../../src/testing/index.js';

const fails = () => Promise.reject(new Error('down'));
const one = { window: { consecutive: 1 } } as const;

describe('keyed', () => {
  it('runs the calls of a key through its own policy and leaves other keys alone', async () => {
    const breakers = keyed(() => circuitBreaker(one));
    const client = pipeline(breakers);
    await client.attempt(fails, { key: 'a' });
    expect(await client.attempt(() => 1, { key: 'a' })).toMatchObject({ ok: false, error: { state: 'open' } });
    expect(await client.attempt(() => 1, { key: 'b' })).toEqual({ ok: true, value: 1 });
    expectTypeOf(breakers.for('a')).toEqualTypeOf<CircuitBreaker>();
    expect([breakers.for('a').state, breakers.for('b').state]).toEqual(['open', 'closed']);
    expect(breakers.for('a')).toBe(breakers.for('a'));
  });

  it('accepts guards, strategies and pipelines, with the following policies inside', async () => {
    const clock = virtualClock();
    const order: string[] = [];
    const through: Strategy = {
      name: 'through',
      handle(call, next) {
        order.push('strategy');
        return next(call);
      },
    };
    const kinds = keyed(
      (key) =>
        key === 'guard'
          ? timeout(50)
          : key === 'strategy'
            ? through
            : pipeline(retry({ attempts: 2, backoff: () => 1 }), timeout(50)),
      { clock },
    );
    const client = pipeline(kinds, bulkhead({ limit: 5 }));
    const hangs = client.attempt(() => new Promise(() => {}), { key: 'guard' });
    await clock.advance(50);
    expect(await hangs).toMatchObject({ error: expect.any(TimeoutError) });
    expect(await client.attempt(() => 1, { key: 'strategy' })).toEqual({ ok: true, value: 1 });
    const twice = client.attempt(({ attempt }) => (attempt === 1 ? fails() : attempt), { key: 'pipeline' });
    await clock.runAll();
    expect([await twice, order]).toEqual([{ ok: true, value: 2 }, ['strategy']]);
    expect(clock.pendingTimers).toBe(0);
  });

  it.each([
    ['guard', (clock: Clock) => timeout({ after: 50, clock })],
    ['strategy', (clock: Clock) => retry({ attempts: 1, clock })],
    ['pipeline', (clock: Clock) => pipeline(retry({ attempts: 1, clock }), timeout({ after: 50, clock }))],
  ] as const)('has the %s of a key completed by whoever makes its calls', async (kind, make) => {
    const clock = virtualClock();
    const order: string[] = [];
    const through: Strategy = {
      name: 'through',
      handle(call, next) {
        order.push('through');
        return next(call);
      },
    };
    const kept = keyed(() => make(clock), { clock }) as unknown as CompletableRegistry;
    const client = pipeline(
      retry({ attempts: 2, backoff: () => 1 }),
      kept.completed((policies) => [...policies, through]),
    );
    const hangs = () => new Promise<never>(() => {});
    const outcome = client.attempt(({ attempt }) => (attempt > 1 ? attempt : kind === 'strategy' ? fails() : hangs()), {
      key: 'a',
    });
    await clock.runAll();
    expect([await outcome, order]).toEqual([{ ok: true, value: 2 }, ['through', 'through']]);
  });

  it('calls its factory once for each key that it keeps', async () => {
    const asked: string[] = [];
    const breakers = keyed((key) => {
      asked.push(key);
      return circuitBreaker();
    });
    const client = pipeline(breakers);
    for (const key of ['a', 'b', 'a', 'b']) await client.attempt(() => 1, { key });
    breakers.for('a');
    expect(asked).toEqual(['a', 'b']);
  });

  it('evicts policies unused for as long as `idle`, and reads no clock if it evicts nothing', async () => {
    const clock = virtualClock();
    const idle = keyed(() => circuitBreaker(), { idle: '1m', clock });
    const client = pipeline(idle);
    await client.attempt(() => 1, { key: 'a' });
    await clock.advance('61s');
    await client.attempt(() => 1, { key: 'b' });
    expect(idle.size).toBe(1);
    let reads = 0;
    const counting = { now: () => ++reads, wallNow: () => 0, schedule() {}, cancel() {} };
    const timeless = keyed(() => circuitBreaker({ window: { calls: 5 } }), { clock: counting });
    await pipeline(timeless).attempt(() => 1, { key: 'a' });
    expect([timeless.size, reads]).toEqual([1, 0]);
  });

  it.each([
    ['pipeline', 'policies', () => pipeline(circuitBreaker())],
    ['guard', 'fused', () => ({ name: 'open', admit: () => ({ settle() {}, release() {} }) })],
  ] as const)('links the %s of a key once for as long as the same comes after it', async (_kind, part, make) => {
    const inner: object = make();
    let looks = 0;
    const looking = Object.create(inner, {
      [part]: {
        get() {
          looks++;
          return Reflect.get(inner, part);
        },
      },
    }) as ReturnType<typeof make>;
    const client = pipeline(keyed(() => looking));
    await client.attempt(() => 1, { key: 'a' });
    const before = looks;
    for (let call = 0; call < 10; call++) await client.attempt(() => 1, { key: 'a' });
    expect([before > 0, looks - before]).toEqual([true, 0]);
  });

  it('uses its own key option', async () => {
    const hosts = keyed(() => circuitBreaker(), { key: (call) => String(call.attributes.host) });
    await pipeline(hosts).execute(() => 1, { attributes: { host: 'a.example' } });
    expect(hosts.size).toBe(1);
  });

  it('refuses a call without a key or with one that is too long, and shows an error of the key function', async () => {
    const client = pipeline(keyed(() => circuitBreaker()));
    for (const key of [undefined, '', 'x'.repeat(1_001)]) {
      expect(await client.attempt(() => 1, { key })).toMatchObject({ ok: false, error: expect.any(OptionsError) });
    }
    const broken = keyed(() => circuitBreaker(), {
      key() {
        throw new Error('mistake');
      },
    });
    const outcome = await pipeline(broken).attempt(() => 1);
    expect(outcome).toMatchObject({ error: expect.any(HandlesError) });
    expect(outcome).toMatchObject({
      error: { policy: 'keyed', message: '"keyed": its "key" function failed: mistake' },
    });
  });

  it('keeps no more than maxKeys and evicts the least recently used', () => {
    const breakers = keyed(() => circuitBreaker(), { maxKeys: 3 });
    const [a, b] = [breakers.for('a'), breakers.for('b')];
    breakers.for('c');
    breakers.for('a');
    breakers.for('d');
    expect(breakers.size).toBe(3);
    expect(breakers.for('a')).toBe(a);
    expect(breakers.for('b')).not.toBe(b);
  });

  it('evicts circuits without counts first, and open and isolated ones last', async () => {
    const breakers = keyed(() => circuitBreaker({ minimumCalls: 1 }), { maxKeys: 4 });
    const client = pipeline(breakers);
    await client.attempt(fails, { key: 'open' });
    breakers.for('isolated').isolate();
    await client.attempt(() => 1, { key: 'counting' });
    const kept = ['open', 'isolated', 'counting'].map((key) => breakers.for(key));
    for (let key = 0; key < 20; key++) breakers.for(`new ${key}`);
    expect(['open', 'isolated', 'counting'].map((key) => breakers.for(key))).toEqual(kept);
    for (let key = 0; key < 20; key++) await client.attempt(() => 1, { key: `used ${key}` });
    expect([breakers.for('open').state, breakers.for('isolated').state]).toEqual(['open', 'isolated']);
  });

  it('evicts a key that is idle for long enough, without a timer, but not an isolated one', async () => {
    const clock = virtualClock();
    const breakers = keyed(() => circuitBreaker({ clock }), { idle: '1m', clock });
    breakers.for('isolated').isolate();
    breakers.for('idle');
    await clock.advance('50s');
    breakers.for('used');
    expect(clock.pendingTimers).toBe(0);
    await clock.advance('30s');
    breakers.for('used');
    expect(breakers.size).toBe(2);
    expect(breakers.for('isolated').state).toBe('isolated');
  });

  it('keeps no more than the given share of a group open, and always lets one open', async () => {
    const events: HoldfastEvent[] = [];
    const on = (event: HoldfastEvent) => void events.push(event);
    const breakers = keyed(() => circuitBreaker({ ...one, on }), { maxEjected: 0.2 });
    const client = pipeline(breakers);
    const states = () => Array.from({ length: 10 }, (_, key) => breakers.for(`${key}`).state);
    expect(states()).toHaveLength(10);
    for (let key = 0; key < 10; key++) await client.attempt(fails, { key: `${key}` });
    expect(states().filter((state) => state === 'open')).toHaveLength(2);
    expect(events.filter(({ type }) => type === 'circuit-kept-closed')).toHaveLength(8);
    breakers.for('0').reset();
    await client.attempt(fails, { key: '9' });
    expect(states()).toMatchObject({ 0: 'closed', 1: 'open', 9: 'open' });
    const few = keyed(() => circuitBreaker(one), { maxEjected: 0 });
    await pipeline(few).attempt(fails, { key: 'only' });
    expect(few.for('only').state).toBe('open');
  });

  it.each([
    ['an open circuit', 'open'],
    ['a half-open circuit', 'half-open'],
  ])('gives the place of %s to another when its time is over, though its key is no longer used', async (_, state) => {
    const clock = virtualClock();
    const settings = {
      window: { consecutive: 1 },
      openFor: '2s',
      random: () => 0.999,
      halfOpen: { permits: 2 },
      clock,
    } as const;
    const breakers = keyed(() => circuitBreaker(settings), { maxEjected: 0, clock });
    const client = pipeline(breakers);
    await client.attempt(fails, { key: 'gone' });
    if (state === 'half-open') {
      await clock.advance('2s');
      await client.attempt(() => 1, { key: 'gone' });
    }
    expect(breakers.for('gone').state).toBe(state);
    await clock.advance('1s');
    await client.attempt(fails, { key: 'other' });
    expect(breakers.for('other').state).toBe('closed');
    await clock.advance('1s');
    await client.attempt(fails, { key: 'other' });
    expect(breakers.for('other').state).toBe('open');
    await client.attempt(fails, { key: 'third' });
    expect(breakers.for('third').state).toBe('closed');
  });

  it('counts the open circuits at most ten times a second, however many keys fail', async () => {
    const clock = virtualClock();
    let asked = 0;
    const counted = () => {
      const breaker = circuitBreaker({ ...one, clock });
      const snapshot = breaker.snapshot.bind(breaker);
      breaker.snapshot = () => {
        asked++;
        return snapshot();
      };
      return breaker;
    };
    const breakers = keyed(counted, { maxEjected: 0.5, clock });
    const client = pipeline(breakers);
    const failAll = async () => {
      for (let key = 0; key < 100; key++) await client.attempt(fails, { key: `${key}` });
    };
    await failAll();
    asked = 0;
    for (let millisecond = 0; millisecond < 200; millisecond++) {
      await failAll();
      await clock.advance(1);
    }
    expect(asked).toBeGreaterThan(0);
    expect(asked).toBeLessThanOrEqual(3 * 100);
  });

  it('gives the place of an evicted open circuit to another', async () => {
    const breakers = keyed(() => circuitBreaker(one), { maxKeys: 1, maxEjected: 0 });
    const client = pipeline(breakers);
    const forgotten = breakers.for('a');
    await client.attempt(fails, { key: 'a' });
    await client.attempt(fails, { key: 'b' });
    expect(breakers.for('b').state).toBe('open');
    forgotten.reset();
    await client.attempt(fails, { key: 'c' });
    expect([forgotten.state, breakers.for('c').state]).toEqual(['closed', 'open']);
  });

  it('lets an evicted circuit decide alone', async () => {
    const breakers = keyed(() => circuitBreaker(one), { maxKeys: 1, maxEjected: 0 });
    const evicted = breakers.for('a');
    await pipeline(breakers).attempt(fails, { key: 'b' });
    await pipeline(evicted).attempt(fails);
    expect([breakers.for('b').state, evicted.state]).toEqual(['open', 'open']);
  });

  it('counts a key as open if any of its circuits is', async () => {
    const breakers = keyed(() => pipeline(circuitBreaker(one), circuitBreaker()), { maxEjected: 0 });
    const client = pipeline(breakers);
    await client.attempt(fails, { key: 'a' });
    await client.attempt(fails, { key: 'b' });
    expect(await client.attempt(() => 1, { key: 'a' })).toMatchObject({ error: { state: 'open' } });
    expect(await client.attempt(() => 1, { key: 'b' })).toEqual({ ok: true, value: 1 });
  });

  it('counts no circuit that has recovered, however recently', async () => {
    const clock = virtualClock();
    const breakers = keyed((key) => circuitBreaker({ ...one, openFor: key === 'recovered' ? '1m' : '2s', clock }), {
      maxEjected: 0,
      clock,
    });
    const client = pipeline(breakers);
    await client.attempt(fails, { key: 'recovered' });
    await clock.advance('1m');
    for (let probe = 0; probe < 10; probe++) await client.attempt(() => 1, { key: 'recovered' });
    await client.attempt(fails, { key: 'gone' });
    await clock.advance('2s');
    await client.attempt(fails, { key: 'next' });
    expect(['recovered', 'gone', 'next'].map((key) => breakers.for(key).state)).toEqual(['closed', 'open', 'open']);
  });

  it('shows what is inside: the policy of the last used key, or before the first one an example', () => {
    const keys: string[] = [];
    const policies = keyed((key) => {
      keys.push(key);
      return pipeline(circuitBreaker({ name: key }), timeout(`${keys.length}s`));
    });
    const text = () => String(pipeline(retry(), policies).explain());
    expect(text()).toMatch(
      /^2\. keyed: keeps a policy per key.*\n2\.1\. example: .*\n2\.2\. timeout: .*1000 ms.*\n3\. the operation$/m,
    );
    expect(policies.size).toBe(0);
    policies.for('a');
    policies.for('b');
    expect(text()).toMatch(/^2\.1\. b: .*\n2\.2\. timeout: .*3000 ms/m);
    expect(keys).toEqual(['example', 'a', 'b']);
  });

  it('shows nothing inside if the factory knows only its own keys', () => {
    const policies = keyed<CircuitBreaker>((key) => {
      throw new Error(`there is no ${key}`);
    });
    expect(String(pipeline(policies).explain())).toMatch(/^1\. keyed: .*\n2\. the operation$/m);
  });

  it('refuses a policy on a different clock than the call’s, which would be read by one and counted by the other', async () => {
    const clock = virtualClock();
    const other = virtualClock();
    const kept = () => pipeline(timeout('1s'), circuitBreaker({ name: 'hosts', clock }));
    const outcome = await pipeline(keyed(kept)).attempt(() => 1, { key: 'a' });
    expect(String(!outcome.ok && outcome.error)).toMatch(/"hosts" of "a" runs on another clock .* option "clock"/);
    expect(outcome).toMatchObject({ error: { policy: 'keyed', option: 'factory' } });
    expect(() => keyed(kept, { clock: other }).for('a')).toThrow(OptionsError);
    // Without a clock of its own the registry learns the pipeline's from a call, and until then nothing differs.
    expect(keyed(kept).for('a').policies).toHaveLength(2);
    expect(await pipeline(keyed(kept, { clock })).attempt(() => 1, { key: 'a' })).toEqual({ ok: true, value: 1 });
  });

  it('reports a factory that is not a function or returns no policy', () => {
    expect(() => keyed('a' as never)).toThrow(OptionsError);
    expect(() => keyed(class Breaker {} as never)).toThrow('got the class Breaker');
    expect(() => keyed(() => 5 as never).for('a')).toThrow(/must answer a policy for "a", got 5/);
    expect(() => keyed('a' as never)).toThrow(
      expect.objectContaining({ policy: 'keyed', option: 'factory', value: 'a' }),
    );
    expect(() => keyed(() => 5 as never, { name: 'hosts' }).for('a')).toThrow(
      expect.objectContaining({ policy: 'hosts', option: 'factory', value: 5 }),
    );
  });

  it.each([
    ['maxKeys', { maxKeys: 0 }],
    ['maxKeys', { maxKeys: 1_000_001 }],
    ['idle', { idle: 0 }],
    ['maxEjected', { maxEjected: -0.1 }],
    ['maxEjected', { maxEjected: 1.1 }],
    ['key', { key: 'host' }],
    ['on', { on: () => {} }],
  ])('refuses a wrong "%s" at once: %j', (option, options) => {
    expect(() => keyed(() => circuitBreaker(), options as never)).toThrow(
      expect.objectContaining({ name: 'OptionsError', option }),
    );
  });

  it('describes what it does', () => {
    expect(keyed(() => circuitBreaker()).traits).toMatchObject({
      kind: 'keyed',
      summary: 'keeps a policy per key, for at most 10000 keys',
    });
  });

  it('keeps the policy that its factory created by asking for the same key', () => {
    const made: unknown[] = [];
    const breakers: { for(key: string): CircuitBreaker; readonly size: number } = keyed((key) => {
      if (made.length === 0) {
        made.push('asked');
        made.push(breakers.for(key));
      }
      return circuitBreaker();
    });
    expect(breakers.for('a')).toBe(made[1]);
    expect(breakers.size).toBe(1);
  });

  it('accepts keys of one to a thousand characters, and names a key that it refuses', () => {
    const breakers = keyed(() => circuitBreaker(), { name: 'hosts' });
    for (const key of ['x', 'x'.repeat(1_000)]) expect(breakers.for(key).state).toBe('closed');
    for (const key of ['', 'x'.repeat(1_001), 5 as never]) {
      expect(() => breakers.for(key)).toThrow(expect.objectContaining({ policy: 'hosts', option: 'key', value: key }));
    }
  });

  it('evicts policies that hold calls or tokens after those that hold nothing', () => {
    const policies = keyed(
      (key) =>
        key === 'limit'
          ? bulkhead({ limit: 1 })
          : key === 'both'
            ? pipeline(circuitBreaker(), bulkhead({ limit: 1 }))
            : key === 'circuits'
              ? pipeline(circuitBreaker())
              : circuitBreaker(),
      { maxKeys: 3 },
    );
    const [limit, both] = [policies.for('limit'), policies.for('both')];
    const circuits = policies.for('circuits');
    for (let key = 0; key < 10; key++) policies.for(`new ${key}`);
    expect(policies.for('limit')).toBe(limit);
    expect(policies.for('both')).toBe(both);
    expect(policies.for('circuits')).not.toBe(circuits);
  });

  it('looks for idle keys ten times in that period, and uses its own clock for policies taken directly', async () => {
    const clock = virtualClock();
    const breakers = keyed(() => circuitBreaker({ clock }), { idle: '10s', clock });
    breakers.for('first');
    await clock.advance(500);
    breakers.for('second');
    await clock.advance(9_501);
    breakers.for('used');
    // The first has been idle for more than ten seconds, the second for less.
    expect(breakers.size).toBe(2);
    await clock.advance(500);
    breakers.for('used');
    expect(breakers.size).toBe(2);
    await clock.advance(500);
    breakers.for('used');
    expect(breakers.size).toBe(1);
  });
});
