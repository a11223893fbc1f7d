/** Locks over a store, in virtual time. The test decides what the store answers, and when. */
import { LockLostError, memoryStore, mutex, type Timer } from 'holdfast';
import { virtualClock } from 'holdfast/testing';
import { describe, expect, it } from 'vitest';
import { deferred } from '../../support/deferred.ts';
import { bench, engine, type Fate, until } from './support.ts';

describe('mutex with a store', () => {
  it('acquires and releases with one verb each', async () => {
    const { state, process } = bench();
    const lease = await process().acquire('key');
    expect(await lease.release()).toBe('released');
    expect(state.calls).toBe(2);
  });

  it('keeps the process alive for a caller that waits, not for a lock that is held', async () => {
    const [foreground, background] = [virtualClock(), virtualClock()];
    const clock = {
      now: () => foreground.now(),
      wallNow: () => foreground.wallNow(),
      schedule: (timer: Timer, atMs: number) => foreground.schedule(timer, atMs),
      cancel: (timer: Timer) => foreground.cancel(timer),
      background,
    };
    const locks = mutex({ store: memoryStore({ clock: foreground }), clock });
    const lease = await locks.acquire('key');
    expect([foreground.pendingTimers, background.pendingTimers]).toEqual([0, 2]);
    const waiting = locks.acquire('key');
    await foreground.flush();
    expect(foreground.pendingTimers).toBeGreaterThan(0);
    await lease.release();
    await (await until(foreground, waiting)).release();
    expect([foreground.pendingTimers, background.pendingTimers]).toEqual([0, 0]);
  });

  it('keeps other processes out, and lets them in soon after', async () => {
    const { clock, process } = bench();
    const [one, other] = [process(), process()];
    const lease = await one.acquire('key');
    expect(await other.tryAcquire('key')).toBe(null);
    const waiting = other.acquire('key');
    await clock.advance(100);
    await lease.release();
    const atMs = clock.now();
    const next = await until(clock, waiting);
    expect(clock.now() - atMs).toBeLessThan(250);
    expect(next.fence).toBeGreaterThan(lease.fence);
  });

  it('refuses a caller when the queue is full, and forgets the key', async () => {
    const { store, clock, process } = bench();
    await process().acquire('key');
    const { locks, lines } = engine(store, clock, { queue: 0 });
    await expect(locks.acquire('key', 'exclusive')).rejects.toMatchObject({ reason: 'full', retryAfterMs: undefined });
    expect(lines.size).toBe(0);
  });

  it('renews for as long as it is held', async () => {
    const { clock, process } = bench();
    const lease = await process().acquire('key');
    await clock.advance(30_000);
    expect([lease.held(), lease.state, lease.signal.aborted]).toEqual([true, 'held', false]);
    expect(await process().tryAcquire('key')).toBe(null);
    await lease.release();
    expect(clock.pendingTimers).toBe(0);
  });

  it('tells an owner that is cut off before another gets in', async () => {
    const { clock, state, process } = bench();
    const lease = await process().acquire('key');
    const other = process();
    state.fate = () => 'hung';
    let lostAtMs = 0;
    lease.signal.addEventListener('abort', () => {
      lostAtMs = clock.now();
    });
    await clock.advance(1_800);
    expect(lease.state).toBe('suspect');
    await clock.advance(900);
    state.fate = () => 'ok';
    const next = await until(clock, other.acquire('key'));
    expect(lostAtMs).toBe(2_668);
    expect(clock.now()).toBeGreaterThanOrEqual(3_000);
    expect(clock.now()).toBeLessThan(3_300);
    expect(next.fence).toBeGreaterThan(lease.fence);
    expect(lease.signal.reason).toBeInstanceOf(LockLostError);
    expect(await lease.release()).toBe('lost');
    expect(next.held()).toBe(true);
  });

  it('notices in held() that the process was frozen past its lease', async () => {
    const { clock, process } = bench();
    const lease = await process().acquire('key');
    clock.jumpWallClock(3_600_000);
    expect([lease.held(), lease.signal.aborted, lease.remaining()]).toEqual([false, true, 0]);
    await until(clock, process().acquire('other'));
    expect(() => lease.assertHeld()).toThrow(LockLostError);
    await lease.release();
    // The lease was not over in the store, so the store is also told that it is given up.
    await clock.flush();
    expect(await process().tryAcquire('key')).not.toBe(null);
  });

  it('is not affected when the wall clock is put back', async () => {
    const { clock, process } = bench();
    const lease = await process().acquire('key');
    clock.jumpWallClock(-3_600_000);
    await clock.advance(10_000);
    expect(lease.held()).toBe(true);
  });

  it('forgets a key once it has no holder and no waiter, and no clean-up is left', async () => {
    const { clock, state, store, process } = bench();
    const { locks, lines } = engine(store, clock);
    await locks.run('key', 'exclusive', () => expect(lines.size).toBe(1));
    await locks.inspect('free');
    expect(lines.size).toBe(0);
    await locks.forceRelease('free');
    expect(lines.size).toBe(0);
    const lease = await process().acquire('theirs');
    await locks.tryAcquire('theirs', 'exclusive');
    expect(lines.size).toBe(0);
    const waiting = locks.acquire('theirs', 'exclusive', { wait: 500 });
    const ended = expect(waiting).rejects.toMatchObject({ reason: 'waited' });
    await clock.advance(100);
    await locks.inspect('theirs');
    expect(lines.size).toBe(1);
    await clock.advance(400);
    await ended;
    expect(lines.size).toBe(0);
    await lease.release();
    const fates: Fate[] = ['lost', 'dropped'];
    state.fate = () => fates.shift() ?? 'ok';
    await expect(locks.tryAcquire('lost', 'exclusive')).rejects.toMatchObject({ code: 'ERR_STORE' });
    await clock.flush();
    expect(lines.size).toBe(1);
    await clock.advance(100);
    expect([lines.size, clock.pendingTimers]).toEqual([0, 0]);
    const cutOff = await locks.acquire('lost', 'exclusive');
    state.fate = () => 'hung';
    await clock.advance(3_000);
    expect([cutOff.held(), lines.size]).toEqual([false, 0]);
  });

  it('does not forget a key in use because of an earlier inspection', async () => {
    const { clock, state, store } = bench();
    const { locks, lines } = engine(store, clock);
    const { promise: reply, resolve: answer } = deferred();
    const fates: Fate[] = [{ reply }];
    state.fate = () => fates.shift() ?? 'ok';
    const looking = locks.inspect('key');
    await locks.inspect('key');
    const lease = await locks.acquire('key', 'exclusive');
    answer();
    await looking;
    expect(lines.size).toBe(1);
    await locks.forceRelease('key');
    expect(lease.held()).toBe(false);
  });

  it('does not ask for a lock that its own process holds, or waits for already', async () => {
    const { clock, state, process } = bench();
    const [one, other] = [process(), process()];
    const lease = await one.acquire('key');
    const waiting = other.acquire('key');
    await clock.flush();
    const { calls } = state;
    expect([await one.tryAcquire('key'), await other.tryAcquire('key')]).toEqual([null, null]);
    expect(state.calls).toBe(calls);
    await lease.release();
    // Callers before it come first, even when the key is free.
    expect(await other.tryAcquire('key')).toBe(null);
    await (await until(clock, waiting)).release();
  });

  it('refuses `fair`, and `afterRestart`, on a store that lacks the capability', () => {
    const { process } = bench();
    expect(() => process({ fair: true })).toThrow('option "fair" must be false for a store without "native.queue"');
    expect(() => process({ afterRestart: 'wait' })).toThrow('option "afterRestart" must be \'grant\' for a store');
  });

  it('is held longer or shorter when it is extended', async () => {
    const { clock, process } = bench();
    const lease = await process().acquire('key');
    expect(await lease.extend('30s')).toBeCloseTo(30_000 * 0.99 - 2 - 300);
    expect((await process().inspect('key')).remainingMs).toBe(30_000);
    await expect(lease.extend(200)).rejects.toMatchObject({ code: 'ERR_OPTIONS' });
    await lease.extend('1s');
    expect(lease.remaining()).toBe(688);
    expect(() => lease.assertHeld(700)).toThrow(expect.objectContaining({ reason: 'short' }));
    await clock.advance(5_000);
    expect(lease.held()).toBe(true);
  });

  it('cannot be extended by less than its margin, nor after it was taken away', async () => {
    const { process } = bench();
    const lease = await process().acquire('key');
    await expect(lease.extend(306)).rejects.toThrow('from 307 to');
    expect(await lease.extend(307)).toBeCloseTo(307 * 0.99 - 302);
    await process().forceRelease('key');
    await expect(lease.extend('3s')).rejects.toMatchObject({ code: 'ERR_LOCK_LOST', reason: 'taken' });
  });

  it('fails to extend with the error of the store, and is held as before', async () => {
    const { state, process } = bench();
    const lease = await process().acquire('key');
    state.fate = () => 'dropped';
    await expect(lease.extend()).rejects.toMatchObject({ code: 'ERR_STORE' });
    expect(lease.held()).toBe(true);
  });

  it('fails to extend when the store does not reply, and says so even after another failure', async () => {
    const { clock, state, process } = bench();
    const lease = await process().acquire('key');
    state.fate = () => 'dropped';
    await expect(lease.extend()).rejects.toMatchObject({ message: expect.stringContaining('no answer') });
    state.fate = () => 'hung';
    const extended = expect(lease.extend()).rejects.toMatchObject({
      code: 'ERR_STORE',
      message: expect.stringContaining('did not answer in time'),
    });
    await clock.advance(800);
    await extended;
  });

  it('lets a function that has lost its lock run to its end, and passes its result or error on', async () => {
    const { clock, state, process } = bench();
    const failure = new Error('of the body');
    const work = (body: () => unknown) =>
      process()
        .run(`key ${Math.random()}`, async ({ signal }) => {
          state.fate = () => 'hung';
          await new Promise((resolve) => signal.addEventListener('abort', resolve));
          return body();
        })
        .catch((error: unknown) => error);
    const outcomes = Promise.all([
      work(() => 'result'),
      work(() => {
        throw failure;
      }),
    ]);
    const [first, second] = (await until(clock, outcomes)) as [LockLostError, LockLostError];
    expect(first).toMatchObject({ code: 'ERR_LOCK_LOST', reason: 'expired', outcome: { ok: true, value: 'result' } });
    expect(second).toMatchObject({ code: 'ERR_LOCK_LOST', outcome: { ok: false, error: failure }, cause: failure });
  });

  it('aborts the function when its caller gives up, and passes its error on', async () => {
    const { process } = bench();
    const controller = new AbortController();
    const work = process().run(
      'key',
      ({ signal }) => new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason))),
      { signal: controller.signal },
    );
    for (let turn = 0; turn < 50; turn++) await Promise.resolve();
    controller.abort('enough');
    await expect(work).rejects.toBe('enough');
  });

  it('accepts keys that are too long for a store, and refuses records of another kind', async () => {
    const { inner, process } = bench();
    const long = [
      'x'.repeat(1024),
      `${'x'.repeat(1023)}y`,
      '\u{1f512}'.repeat(300),
      `${'x'.repeat(1023)}\ud800`,
      `${'x'.repeat(1023)}\ud801`,
    ];
    const leases = await Promise.all(long.map((key) => process().acquire(key)));
    expect(leases.map(({ key }) => key)).toEqual(long);
    await inner.write('mutex:foreign', new TextEncoder().encode('hello'), { ttlMs: 1_000 });
    await expect(process().acquire('foreign')).rejects.toMatchObject({ code: 'ERR_STORE', reason: 'schema' });
  });

  it('gives up all keys when one cannot be acquired', async () => {
    const { clock, process } = bench();
    const lease = await process().acquire('b');
    const several = process().acquire(['c', 'b', 'a'], { wait: 500 });
    const failed = expect(several).rejects.toMatchObject({ reason: 'waited' });
    await clock.advance(600);
    await failed;
    for (const key of ['a', 'c']) expect(await process().tryAcquire(key)).not.toBe(null);
    await lease.release();
    const all = await until(clock, process().acquire(['b', 'd']));
    expect(all.fence).toBe(Math.max(...all.leases!.map(({ fence }) => fence)));
    expect(await all.release()).toBe('released');
  });
});
