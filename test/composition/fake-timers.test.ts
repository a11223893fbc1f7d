/**
 * What users' tests do: they replace timers by fakes, before this package is imported or after. Nothing of ours may wait for a fake timer that no test knows
 * of.
 */
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';

const faked = ['setTimeout', 'clearTimeout', 'setImmediate', 'queueMicrotask', 'performance'] as const;

beforeEach(() => vi.resetModules());
afterEach(() => {
  vi.useRealTimers();
  vi.resetModules();
});

const load = () =>
  Promise.all([
    import('../../src/index.js'),
    import('../../src/testing/index.js'),
    import('../../src/stores/turn-writes.js'),
    import('../../src/stores/postgres.js'),
    import('../../src/core/clock.js'),
  ]).then(([main, testing, { TurnWrites }, { postgresStore }, { callbackTimer }]) => ({
    ...{ ...main, ...testing, TurnWrites, postgresStore, callbackTimer },
  }));

const fakes = () => void vi.useFakeTimers({ toFake: [...faked] });

describe.each(['before', 'after'])('with fake timers put there %s the import', (when) => {
  async function loaded() {
    if (when === 'before') fakes();
    const all = await load();
    fakes();
    return all;
  }

  /** Lets microtasks run, which are all that runs by itself. */
  async function settle() {
    for (let turns = 0; turns < 20; turns++) await undefined;
  }

  it.each(['bulkhead', 'adaptiveLimit'] as const)(
    '%s gives back the slot of a permit that was settled by hand',
    async (which) => {
      const { bulkhead, adaptiveLimit, pipeline, TimeoutError } = await loaded();
      const guard = which === 'bulkhead' ? bulkhead({ limit: 1 }) : adaptiveLimit({ min: 1, initial: 1, max: 1 });
      await pipeline().execute(async (call) => {
        const permit = await guard.admit(call);
        if (!('settle' in permit)) throw new Error('refused');
        permit.settle({ ok: false, error: new TimeoutError({ policy: 'timeout', afterMs: 1 }) });
      });
      await settle();
      expect(guard.running).toBe(0);
    },
  );

  it('a call that has ended leaves no timer for the test to find', async () => {
    const { pipeline, timeout } = await loaded();
    expect(await pipeline(timeout('1m')).execute(() => 1)).toBe(1);
    expect(vi.getTimerCount()).toBe(0);
  });

  it('virtualClock moves on', async () => {
    const { virtualClock, pipeline, timeout } = await loaded();
    const clock = virtualClock();
    const late = pipeline(timeout({ after: '1s', clock })).attempt(() => new Promise(() => {}));
    await clock.advance('1s');
    expect(await late).toMatchObject({ ok: false, error: { code: 'ERR_TIMEOUT' } });
  });

  it('idempotency stores and hands out a large result', async () => {
    const { idempotency, memoryStore } = await loaded();
    const engine = idempotency({
      store: memoryStore({ maxValueBytes: 8_000_000 }),
      ttl: '1h',
      maxBodyBytes: 4_000_000,
    });
    const large = 'x'.repeat(3_000_000);
    const run = () => engine.run('key', () => large, { scope: 'scope', input: large });
    expect(await run()).toBe(large);
    expect(await run()).toBe(large);
  });

  it('postgresStore gives back a connection that comes too late, and tells of a driver that throws', async () => {
    const { postgresStore, virtualClock } = await loaded();
    const clock = virtualClock();
    let lent = 0;
    const client = {
      release: () => lent--,
      query() {
        throw new Error('patched');
      },
      ...{ on() {}, off() {} },
    };
    let lend = () => {};
    const connect = (give: (error: undefined, given: typeof client) => void) => {
      lend = () => {
        lent++;
        give(undefined, client);
      };
    };
    const store = postgresStore({ connect, totalCount: 1, on() {}, off() {} } as never, { clock, timeout: 50 });
    const outcomes: unknown[] = [];
    const read = () => void store.read('key').catch((error) => outcomes.push(error));
    read();
    await clock.advance(50);
    lend();
    read();
    lend();
    await settle();
    expect([outcomes, lent]).toMatchObject([[{ reason: 'timeout' }, { cause: { message: 'patched' } }], 0]);
  });

  it('a timeout ends calls after the fakes were taken away', async () => {
    const { pipeline, timeout } = await loaded();
    // Its wait is lost with the fakes, or continues without them.
    void pipeline(timeout('1h')).attempt(() => new Promise(() => {}));
    vi.useRealTimers();
    expect(await pipeline(timeout(1)).attempt(() => new Promise(() => {}))).toMatchObject({
      error: { code: 'ERR_TIMEOUT' },
    });
  });

  it('a timeout waits for the fakes where it found them, and else for real ones', async () => {
    const { pipeline, timeout } = await loaded();
    const waited = pipeline(timeout(50)).attempt(() => new Promise(() => {}));
    if (when === 'before') vi.advanceTimersByTime(50);
    expect(await waited).toMatchObject({ error: { code: 'ERR_TIMEOUT' } });
  });

  it('housekeeping does not keep the process alive when the fakes are gone', async () => {
    const { systemClock, callbackTimer } = await loaded();
    vi.useRealTimers();
    const { background } = systemClock;
    const nothing = callbackTimer(() => {});
    const keeping = () => process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length;
    const before = keeping();
    background!.schedule(nothing, background!.now() + 3_600_000);
    expect(keeping()).toBe(before);
    background!.cancel(nothing);
  });

  it('what is written to a socket goes out', async () => {
    const { TurnWrites } = await loaded();
    let corked = 0;
    new TurnWrites().hold({ cork: () => corked++, uncork: () => corked-- });
    vi.useRealTimers();
    await new Promise((resolve) => setImmediate(resolve));
    expect(corked).toBe(0);
  });
});
