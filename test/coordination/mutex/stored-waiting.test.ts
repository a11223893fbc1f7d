/** Callers that wait for a lock over a store: when they ask, who comes next, and how the wait ends. */
import { memoryStore, mutex, StoreError, type StoreQueue } from 'holdfast';
import { virtualClock } from 'holdfast/testing';
import { describe, expect, it } from 'vitest';
import { deferred } from '../../support/deferred.ts';
import { bench, type Fate, unsteady, until } from './support.ts';

const failed = { store: 'unsteady', operation: 'write', detail: 'no' } as const;

/** The times between the requests of a caller that waits. `fate` is that of all its requests but the first. */
async function pollingGaps(drawn: number, { fate, passMs }: { readonly fate: Fate; readonly passMs: number }) {
  const { clock, state, process } = bench();
  await process({ ttl: '60s' }).acquire('key');
  const waiting = process({ random: () => drawn, wait: '10s' }).acquire('key');
  waiting.catch(() => {});
  await clock.advance(0);
  state.fate = () => fate;
  state.times.length = 0;
  await clock.advance(passMs);
  return state.times.map((atMs, index) => atMs - (state.times[index - 1] ?? 0));
}

describe('mutex with a store, while callers wait', () => {
  it("learns of the release from the store's notice, and polls rarely until then", async () => {
    const { clock, state, process } = bench({ watches: true });
    const lease = await process({ ttl: '30s' }).acquire('key');
    const waiting = process().acquire('key');
    await clock.advance(100);
    state.calls = 0;
    await clock.advance(20_000);
    // The owner has renewed twice, and the waiter has looked each time.
    expect(state.calls).toBeLessThanOrEqual(10);
    await lease.release();
    await clock.flush();
    const next = await waiting;
    expect([next.held(), state.watching]).toEqual([true, 0]);
  });

  it('asks again when something has changed during its request', async () => {
    const { clock, state, process } = bench({ watches: true });
    const lease = await process({ ttl: '60s' }).acquire('key');
    const waiting = process().acquire('key');
    await clock.advance(100);
    const { promise: reply, resolve: answer } = deferred();
    const fates: Fate[] = ['ok', { reply }];
    state.fate = () => fates.shift() ?? 'ok';
    // The waiter is told and looks, but the answer is outdated when it arrives.
    await lease.extend();
    await clock.flush();
    expect(fates.length).toBe(0);
    await lease.release();
    answer();
    await clock.advance(1);
    expect((await waiting).held()).toBe(true);
  });

  it('asks when its watch becomes ready, because of earlier changes', async () => {
    const { clock, state, process } = bench({ watches: true });
    const lease = await process({ ttl: '60s' }).acquire('key');
    const { promise, resolve: begin } = deferred();
    state.ready = promise;
    const waiting = process().acquire('key');
    await clock.advance(1_000);
    await lease.release();
    begin();
    await clock.flush();
    expect([(await waiting).held(), clock.now()]).toEqual([true, 1_000]);
  });

  it('watches again after a watch that was not confirmed in time, and no longer polls', async () => {
    const { clock, state, process } = bench({ watches: true });
    const lease = await process({ ttl: '60s' }).acquire('key');
    state.ready = Promise.reject(new StoreError({ ...failed, reason: 'timeout', applied: 'no' }));
    const waiting = process().acquire('key');
    await clock.advance(1_000);
    // The owner watches, too, as long as that works.
    expect([state.watching, state.calls > 5]).toEqual([0, true]);
    state.ready = Promise.resolve();
    await clock.advance(1_000);
    state.calls = 0;
    await clock.advance(10_000);
    expect(state.calls).toBeLessThanOrEqual(3);
    await lease.release();
    await clock.flush();
    expect([(await waiting).held(), state.watching]).toEqual([true, 0]);
  });

  it('passes from caller to caller for 20 ms, and is then free for others for 1.5 to 3 ms', async () => {
    for (const [drawn, freeMs] of [
      [0, 1.5],
      [0.5, 2.25],
    ] as const) {
      const { clock, state, process } = bench();
      const locks = process({ random: () => drawn });
      const lease = await locks.acquire('key');
      const [second, third] = [locks.acquire('key'), locks.acquire('key')];
      await clock.advance(19.9);
      state.verbs.length = 0;
      await lease.release();
      const next = await second;
      await clock.advance(0.1);
      await next.release();
      expect(state.verbs).toEqual(['write', 'remove']);
      await clock.advance(freeMs - 0.1);
      expect(state.verbs.length).toBe(2);
      await clock.advance(0.1);
      expect([(await third).held(), state.verbs.length]).toEqual([true, 3]);
    }
  });

  it('is not handed over from a writer to a reader', async () => {
    const { clock, state, process } = bench();
    const locks = process();
    const writer = await locks.write('key');
    const reading = locks.read('key');
    await clock.flush();
    await writer.release();
    expect(state.verbs).toEqual(['write', 'remove']);
    expect((await until(clock, reading, 10)).held()).toBe(true);
  });

  it('reports the loss when it finds nothing to hand over, and the next caller asks the store', async () => {
    const { clock, process } = bench();
    const locks = process();
    const lease = await locks.acquire('key');
    const waiting = locks.acquire('key');
    await process().forceRelease('key');
    expect(await lease.release()).toBe('lost');
    expect((await until(clock, waiting, 10)).held()).toBe(true);
  });

  it('polls again after 7.5 ms, then half as long again each time, up to a quarter of a second, plus or minus a quarter', async () => {
    for (const [drawn, factor] of [
      [0, 0.75],
      [0.5, 1],
    ] as const) {
      const gaps = await pollingGaps(drawn, { fate: 'ok', passMs: 2_000 });
      expect(gaps.length).toBeGreaterThan(10);
      for (const [index, gap] of gaps.entries()) {
        expect(gap / factor).toBeCloseTo(Math.min(250, 5 * 1.5 ** (index + 1)), 6);
      }
    }
  });

  it('polls at a random moment after the lease in its way has expired', async () => {
    for (const [drawn, atMs] of [
      [0, 101],
      [0.5, 103],
    ] as const) {
      const { clock, state, inner, process } = bench({ watches: true });
      const dead = unsteady(clock, { inner });
      await mutex({ store: dead.store, clock, ttl: 100 }).acquire('key');
      dead.state.fate = () => 'hung';
      const waiting = process({ random: () => drawn }).acquire('key');
      await clock.advance(2);
      state.times.length = 0;
      const lease = await until(clock, waiting, 200);
      expect(lease.held()).toBe(true);
      // It looks once when its watch is ready, and once at the end.
      expect(state.times.at(-1)).toBe(atMs);
    }
  });

  it('polls a store that has failed ever less often while it waits, plus or minus a half', async () => {
    for (const [drawn, factor] of [
      [0, 0.5],
      [0.5, 1],
    ] as const) {
      const [, ...gaps] = await pollingGaps(drawn, { fate: 'refused', passMs: 1_500 });
      const expected = [15, 30, 60, 120, 240, 250, 250].map((ms) => ms * factor);
      for (const [index, gap] of gaps.slice(0, 7).entries()) expect(gap).toBeCloseTo(expected[index]!, 6);
      expect(gaps.length).toBeGreaterThan(6);
    }
  });

  it.each([
    ['a value that is none of the store', new StoreError({ ...failed, reason: 'invalid', applied: 'no' }), true],
    ['a record of something else', new StoreError({ ...failed, reason: 'schema', applied: 'no' }), true],
    ['a store that is closed', new StoreError({ ...failed, reason: 'closed', applied: 'no' }), true],
    ['an error that is none of a store', new TypeError('a fault'), true],
    ['a connection that was closed', new StoreError({ ...failed, reason: 'closed', applied: 'unknown' }), false],
    ['a store that is busy', new StoreError({ ...failed, reason: 'busy', applied: 'no' }), false],
  ])('while it waits: %s', async (_, error, isFatal) => {
    const { clock, state, process } = bench();
    const lease = await process({ ttl: '60s' }).acquire('key');
    const waiting = process().acquire('key');
    let outcome: unknown;
    waiting.catch((reason: unknown) => {
      outcome = reason;
    });
    await clock.advance(100);
    const fates: Fate[] = [error];
    state.fate = () => fates.shift() ?? 'ok';
    await clock.advance(500);
    expect([fates.length, outcome]).toEqual([0, isFatal ? error : undefined]);
    await lease.release();
    if (!isFatal) expect((await until(clock, waiting)).held()).toBe(true);
  });

  it("tells a caller that has waited in vain how much of the holder's lease was left when last seen", async () => {
    const { clock, process } = bench();
    await process({ ttl: '60s' }).acquire('key');
    const waiting = process().acquire('key', { wait: 20 });
    const ended = expect(waiting).rejects.toMatchObject({ reason: 'waited', retryAfterMs: 60_000 - 7.5 - 11.25 });
    await clock.advance(20);
    await ended;
  });

  it('starts again for callers that come while the last of those before them is given up', async () => {
    const { clock, state, process } = bench();
    const lease = await process().acquire('key');
    const locks = process();
    const controller = new AbortController();
    const first = locks.acquire('key', { signal: controller.signal });
    await clock.advance(50);
    const { promise: slow, resolve: answer } = deferred();
    state.fate = () => slow;
    await clock.advance(250);
    controller.abort('gone');
    await expect(first).rejects.toBe('gone');
    const second = locks.acquire('key');
    state.fate = () => 'ok';
    answer();
    await clock.flush();
    await lease.release();
    expect((await until(clock, second, 300)).held()).toBe(true);
  });

  it('leaves no timer, watch or request of a caller that gives up', async () => {
    const { clock, state, process } = bench({ watches: true });
    const lease = await process().acquire('key');
    const other = process();
    const controller = new AbortController();
    const waits = Promise.allSettled([
      other.acquire('key', { signal: controller.signal }),
      other.acquire('key', { wait: 50 }),
    ]);
    await clock.advance(20);
    expect(state.watching).toBe(1);
    await clock.advance(30);
    controller.abort();
    await waits;
    await clock.flush();
    expect(state.watching).toBe(0);
    await lease.release();
    const { calls } = state;
    expect(clock.pendingTimers).toBe(0);
    await clock.advance(60_000);
    expect(state.calls).toBe(calls);
  });

  it('sends nothing when one of several waiters has left', async () => {
    const { clock, state, process } = bench();
    await process({ ttl: '60s' }).acquire('key');
    const locks = process();
    const controller = new AbortController();
    const gone = expect(locks.acquire('key', { signal: controller.signal })).rejects.toBe('gone');
    const ended = expect(locks.acquire('key', { wait: '2s' })).rejects.toMatchObject({ reason: 'waited' });
    await clock.advance(1_000);
    const { calls } = state;
    controller.abort('gone');
    await gone;
    await clock.flush();
    expect(state.calls).toBe(calls);
    await clock.advance(1_000);
    await ended;
  });

  it('lets 500 waiters of one process ask the store as one, and passes the lock on among them', async () => {
    const { clock, state, process } = bench();
    const locks = process();
    const fences: number[] = [];
    const all = Promise.all(
      Array.from({ length: 500 }, () =>
        locks.run('key', async ({ fence }) => {
          fences.push(fence);
          await clock.sleep(1);
        }),
      ),
    );
    await until(clock, all);
    expect(fences.length).toBe(500);
    expect(fences.every((fence, index) => fence > (fences[index - 1] ?? 0))).toBe(true);
    expect(state.calls / 500).toBeLessThan(1.1);
  });

  it('shares a lock between two processes that both have many waiters', async () => {
    const { clock, process } = bench({ watches: true });
    const sections = [0, 0];
    let inside = 0;
    const end = 3_000;
    const work = async (locks: ReturnType<typeof mutex>, index: number) => {
      while (clock.now() < end) {
        await locks.run('key', async () => {
          expect(++inside).toBe(1);
          sections[index]!++;
          await clock.sleep(2);
          inside--;
        });
      }
    };
    const all = [process({ random: Math.random }), process({ random: Math.random })].flatMap((locks, index) =>
      Array.from({ length: 8 }, () => work(locks, index)),
    );
    await until(clock, Promise.all(all));
    expect(Math.min(...sections) / Math.max(...sections)).toBeGreaterThan(0.6);
  });

  it("leaves the store's queue even if its next request fails", async () => {
    const { clock, store, inner, state, process } = bench();
    const left: string[] = [];
    const entered: string[] = [];
    const queue: StoreQueue = {
      async enter(key, ticket) {
        entered.push(ticket);
        return { ok: false, entry: await inner.read(key), isTold: false, quietForMs: 0 };
      },
      pass: (key, options) => inner.remove(key, options),
      async leave(key, tickets) {
        left.push(...tickets);
        return inner.read(key);
      },
      size: async () => 0,
    };
    const reader = await process().read('key');
    state.fate = (verb) => (verb === 'write' ? 'refused' : 'ok');
    // A writer waits in the queue, and then tells readers that it wants the key.
    const writer = process({ store: { ...store, native: { queue } } }).acquire('key');
    await expect(until(clock, writer)).rejects.toMatchObject({ code: 'ERR_STORE', applied: 'no' });
    await clock.flush();
    expect([entered.length, left]).toEqual([1, entered]);
    state.fate = () => 'ok';
    await reader.release();
  });

  it('fails all waiters at once when the store is down', async () => {
    const { clock, state, process } = bench();
    state.fate = () => 'dropped';
    const locks = process();
    const waits = Promise.allSettled(Array.from({ length: 20 }, () => locks.acquire('key')));
    await clock.flush();
    const reasons = (await waits).map((outcome) => (outcome as PromiseRejectedResult).reason.code);
    expect(new Set(reasons)).toEqual(new Set(['ERR_STORE']));
  });

  it('fails all waiters at once when the store is closed', async () => {
    const clock = virtualClock();
    const store = memoryStore({ clock });
    await mutex({ store, clock, ttl: '60s' }).acquire('key');
    const locks = mutex({ store, clock, ttl: '60s' });
    const waits = Promise.allSettled([locks.acquire('key'), locks.read('key')]);
    await clock.advance(1_000);
    await store.close();
    const refused = { reason: { code: 'ERR_STORE', reason: 'closed' } };
    expect(await until(clock, waits, 10)).toMatchObject([refused, refused]);
  });

  it('goes on waiting when the store fails, and reports the failure when the wait ends', async () => {
    const { clock, state, process } = bench();
    const lease = await process().acquire('key');
    const waiting = process().acquire('key');
    const hopeless = process().acquire('key', { wait: '1s' });
    await clock.advance(100);
    state.fate = () => 'dropped';
    const failed = expect(hopeless).rejects.toMatchObject({
      code: 'ERR_LOCK_UNAVAILABLE',
      cause: { code: 'ERR_STORE' },
    });
    await clock.advance(1_000);
    await failed;
    state.fate = () => 'ok';
    await lease.release();
    expect((await until(clock, waiting)).held()).toBe(true);
  });
});
