/** Locks over a store, in virtual time. The test decides what the store answers, and when. */
import {
  LockLostError,
  memoryStore,
  mutex,
  type Store,
  StoreError,
  type StoreQueue,
  semaphore,
  type Timer,
} from 'holdfast';
import { type VirtualClock, virtualClock } from 'holdfast/testing';
import { describe, expect, it } from 'vitest';
import type { HoldfastEvent } from '../../../src/core/events.js';
import { bench, engine, type Fate, unsteady, until } from './support.ts';

const failed = { store: 'unsteady', operation: 'write', detail: 'no' } as const;

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
    let answer = () => {};
    const reply = new Promise<void>((resolve) => {
      answer = resolve;
    });
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
    let begin = () => {};
    state.ready = new Promise<void>((resolve) => {
      begin = resolve;
    });
    const waiting = process().acquire('key');
    await clock.advance(1_000);
    await lease.release();
    begin();
    await clock.flush();
    expect([(await waiting).held(), clock.now()]).toEqual([true, 1_000]);
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

  it('fails with the error of the store, and takes back what it may have acquired', async () => {
    const { clock, state, process } = bench();
    const fates: Fate[] = ['lost'];
    state.fate = () => fates.shift() ?? 'ok';
    await expect(process().acquire('key')).rejects.toMatchObject({ code: 'ERR_STORE', applied: 'unknown' });
    const next = await until(clock, process().acquire('key'), 100);
    expect(next.held()).toBe(true);
  });

  it('goes on looking for a grant whose reply was lost while the store is unreachable', async () => {
    const { clock, state, process } = bench();
    const fates: Fate[] = ['lost', 'dropped', 'dropped'];
    state.fate = () => fates.shift() ?? 'ok';
    await expect(process().acquire('key')).rejects.toMatchObject({ code: 'ERR_STORE' });
    await clock.advance(200);
    expect(await process().tryAcquire('key')).not.toBe(null);
    await clock.advance(10_000);
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
    let answer = () => {};
    const fates: Fate[] = [
      {
        reply: new Promise<void>((resolve) => {
          answer = resolve;
        }),
      },
    ];
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

  it('takes back what tryAcquire may have acquired, and looks for nothing if the store says that it did nothing', async () => {
    const { clock, state, process } = bench();
    const fates: Fate[] = ['lost'];
    state.fate = () => fates.shift() ?? 'ok';
    await expect(process().tryAcquire('key')).rejects.toMatchObject({ applied: 'unknown' });
    await clock.flush();
    expect(await process().tryAcquire('key')).not.toBe(null);
    fates.push('refused');
    const { calls } = state;
    await expect(process().tryAcquire('other')).rejects.toMatchObject({ applied: 'no' });
    fates.push('refused');
    await expect(process().acquire('other')).rejects.toMatchObject({ applied: 'no' });
    await clock.advance(500);
    expect(state.calls).toBe(calls + 2);
  });

  it('looks for remains of a grant at once, and ever less often, until they must have expired', async () => {
    for (const [drawn, ttl, times] of [
      [0, 3_000, [0, 0, 25, 75, 175, 375, 775, 1_575]],
      [0.5, 3_000, [0, 0, 50, 150, 350, 750, 1_550]],
      [0.5, 1_550, [0, 0, 50, 150, 350, 750]],
    ] as const) {
      const { clock, state, process } = bench();
      state.fate = () => 'dropped';
      await expect(process({ ttl, random: () => drawn }).tryAcquire('key')).rejects.toMatchObject({
        code: 'ERR_STORE',
      });
      await clock.advance(10_000);
      expect([state.times, clock.pendingTimers]).toEqual([times, 0]);
    }
    // A grant that has not arrived yet may still arrive. One that was found is removed.
    for (const [fate, looks] of [
      ['dropped', 6],
      ['lost', 1],
    ] as const) {
      const { clock, state, process } = bench();
      state.fate = (verb) => (verb === 'write' ? fate : 'ok');
      await expect(process().tryAcquire('key')).rejects.toMatchObject({ code: 'ERR_STORE' });
      await clock.advance(10_000);
      expect(state.verbs.filter((verb) => verb === 'read').length).toBe(looks);
    }
  });

  it('stops looking for remains of a grant once its store is closed', async () => {
    const { clock, state, process } = bench();
    const closed = new StoreError({ ...failed, reason: 'closed', applied: 'no' });
    const fates: Fate[] = ['lost', 'dropped'];
    state.fate = () => fates.shift() ?? closed;
    await expect(process().tryAcquire('key')).rejects.toMatchObject({ code: 'ERR_STORE' });
    await clock.advance(10_000);
    expect(state.verbs).toEqual(['write', 'read', 'read']);
  });

  it('repeats the clean-up for a hundred owners at a time, and looks once for others', async () => {
    const { clock, state, process } = bench();
    const locks = process();
    state.fate = () => 'dropped';
    await Promise.allSettled(Array.from({ length: 150 }, () => locks.tryAcquire('key')));
    await clock.flush();
    const looks = () => state.verbs.filter((verb) => verb === 'read').length;
    expect(looks()).toBe(150);
    await clock.advance(50);
    expect(looks()).toBe(250);
    await clock.advance(10_000);
    expect(clock.pendingTimers).toBe(0);
  });

  it('holds nothing for a call that may not wait and is aborted during the request', async () => {
    for (const options of [{ queue: 0 }, { wait: 0 }]) {
      const { clock, state, process } = bench();
      let resolve = () => {};
      const fates: Fate[] = [{ reply: new Promise<void>((done) => (resolve = done)) }];
      state.fate = () => fates.shift() ?? 'ok';
      const controller = new AbortController();
      const taking = process(options).acquire('key', { signal: controller.signal });
      const ended = expect(taking).rejects.toBe('no more');
      await clock.flush();
      controller.abort('no more');
      resolve();
      await ended;
      expect(await process().tryAcquire('key')).not.toBe(null);
    }
  });

  it('tells its own leases at once that the same process took the key away', async () => {
    const { process } = bench();
    const locks = process();
    const lease = await locks.acquire('key');
    expect(await locks.forceRelease('key')).toBe(true);
    expect([lease.signal.aborted, lease.held(), await lease.release()]).toEqual([true, false, 'lost']);
    expect(await locks.forceRelease('key')).toBe(false);
  });

  it('tells its own lease even if the grant was in flight when the same process took the key away', async () => {
    const { clock, state, process } = bench();
    const locks = process();
    let resolve = () => {};
    const fates: Fate[] = [{ reply: new Promise<void>((done) => (resolve = done)) }];
    state.fate = () => fates.shift() ?? 'ok';
    const taking = locks.tryAcquire('key');
    await clock.flush();
    expect(await locks.forceRelease('key')).toBe(true);
    resolve();
    const lease = (await taking)!;
    await clock.flush();
    expect([lease.held(), lease.signal.aborted]).toEqual([false, true]);
  });

  it('takes nothing from an owner that came in after the key was taken away, when that reply is late', async () => {
    const { clock, state, process } = bench();
    const locks = process();
    const lease = await locks.acquire('key');
    let resolve = () => {};
    const fates: Fate[] = [{ reply: new Promise<void>((done) => (resolve = done)) }];
    state.fate = () => fates.shift() ?? 'ok';
    const forced = locks.forceRelease('key');
    const waiting = locks.acquire('key');
    await clock.flush();
    expect(await lease.release()).toBe('lost');
    const next = await until(clock, waiting, 10);
    resolve();
    expect(await forced).toBe(true);
    await clock.flush();
    expect([next.held(), next.fence > lease.fence, await next.release()]).toEqual([true, true, 'released']);
  });

  it('tells its own lease of a key taken away by force, even if the key was inspected in between', async () => {
    const { clock, state, process } = bench();
    const locks = process();
    let resolve = () => {};
    const fates: Fate[] = [new Promise<void>((done) => (resolve = done))];
    state.fate = () => fates.shift() ?? 'ok';
    const forced = locks.forceRelease('key');
    await locks.inspect('key');
    const lease = await locks.acquire('key');
    resolve();
    expect(await forced).toBe(true);
    await clock.flush();
    expect([lease.held(), (await process().tryAcquire('key'))?.held()]).toEqual([false, true]);
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

  it('looks for both owners when the reply to a hand-over was lost', async () => {
    for (const fate of ['lost', 'dropped'] as const) {
      const { clock, state, process } = bench();
      const locks = process();
      const lease = await locks.acquire('key');
      const waiting = locks.acquire('key');
      const fates: Fate[] = [fate];
      state.fate = () => fates.shift() ?? 'ok';
      expect(await lease.release()).toBe('unknown');
      const next = await until(clock, waiting, 20);
      expect([next.held(), next.fence > lease.fence]).toEqual([true, true]);
    }
  });

  it('takes no lease from a reply that comes after the lease would end here, by either clock', async () => {
    for (const [passMs, jumpMs, isGot] of [
      [2_667, 0, true],
      [2_668, 0, false],
      [0, 2_667, true],
      [0, 2_668, false],
    ] as const) {
      const { clock, state, inner, process } = bench();
      let answer = () => {};
      const late = new Promise<void>((resolve) => {
        answer = resolve;
      });
      state.fate = (verb) => (verb === 'write' ? late : 'ok');
      const pending = process().tryAcquire('key');
      await clock.advance(passMs);
      clock.jumpWallClock(jumpMs);
      state.fate = () => 'ok';
      answer();
      const lease = await pending;
      expect(lease !== null).toBe(isGot);
      await clock.flush();
      expect((await inner.read('mutex:key')) !== undefined).toBe(isGot);
    }
  });

  it('polls again after 7.5 ms, then half as long again each time, up to a quarter of a second, plus or minus a quarter', async () => {
    for (const [drawn, factor] of [
      [0, 0.75],
      [0.5, 1],
    ] as const) {
      const { clock, state, process } = bench();
      await process({ ttl: '60s' }).acquire('key');
      const waiting = process({ random: () => drawn, wait: '10s' }).acquire('key');
      waiting.catch(() => {});
      await clock.advance(0);
      state.times.length = 0;
      await clock.advance(2_000);
      const gaps = state.times.map((atMs, index) => (atMs - (state.times[index - 1] ?? 0)) / factor);
      const expected = Array.from({ length: gaps.length }, (_, index) => Math.min(250, 5 * 1.5 ** (index + 1)));
      expect(gaps.length).toBeGreaterThan(10);
      for (const [index, gap] of gaps.entries()) expect(gap).toBeCloseTo(expected[index]!, 6);
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
      const { clock, state, process } = bench();
      await process({ ttl: '60s' }).acquire('key');
      const waiting = process({ random: () => drawn, wait: '10s' }).acquire('key');
      waiting.catch(() => {});
      await clock.advance(0);
      state.fate = () => 'refused';
      state.times.length = 0;
      await clock.advance(1_500);
      const gaps = state.times.map((atMs, index) => atMs - (state.times[index - 1] ?? 0)).slice(1);
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
    let answer = () => {};
    const slow = new Promise<void>((resolve) => {
      answer = resolve;
    });
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

  it('has no timer for a watch if the store reports no changes', async () => {
    const { clock, process } = bench();
    await process().acquire('key');
    expect(clock.pendingTimers).toBe(1);
  });

  it('watches an exclusive lock only, and only one that is held for a while', async () => {
    const { clock, state, process } = bench({ watches: true });
    const short = await process().acquire('short');
    await clock.advance(249);
    expect(state.watching).toBe(0);
    await short.release();
    await clock.advance(10);
    expect(state.watching).toBe(0);
    const reader = await process().read('shared');
    const writer = await process().write('key');
    await clock.advance(250);
    expect(state.watching).toBe(1);
    await writer.release();
    await reader.release();
    expect([state.watching, clock.pendingTimers]).toEqual([0, 0]);
  });

  it('stays held when a look caused by a change fails', async () => {
    const { clock, state, store, process } = bench({ watches: true });
    const lease = await process().acquire('key');
    await clock.advance(300);
    state.fate = (verb) => (verb === 'read' ? 'dropped' : 'ok');
    await lease.extend();
    await clock.flush();
    expect([lease.held(), lease.state]).toEqual([true, 'held']);
    state.fate = () => 'ok';
    await store.remove('mutex:key');
    await clock.flush();
    expect(lease.held()).toBe(false);
  });

  it('recognizes its own grant when the reply was lost while it waited', async () => {
    const { clock, state, process } = bench();
    const lease = await process().acquire('key');
    const waiting = process().acquire('key');
    await clock.advance(100);
    await lease.release();
    state.fate = (verb) => {
      if (verb !== 'write') return 'ok';
      state.fate = () => 'ok';
      return 'lost';
    };
    const next = await until(clock, waiting, 1_000);
    expect([next.held(), next.fence > lease.fence]).toEqual([true, true]);
  });

  it('tells that the release is not known when its reply was lost, and cleans up', async () => {
    const { clock, state, process } = bench();
    const lease = await process().acquire('key');
    state.fate = (verb) => (verb === 'remove' ? 'dropped' : 'ok');
    expect(await lease.release()).toBe('unknown');
    expect([lease.held(), lease.state]).toEqual([false, 'released']);
    state.fate = () => 'ok';
    await clock.advance(100);
    expect(await process().tryAcquire('key')).not.toBe(null);
  });

  it('returns no lease that has expired when the reply comes', async () => {
    const { clock, state, process } = bench();
    let answer = () => {};
    const slow = new Promise<void>((resolve) => {
      answer = resolve;
    });
    const pending = process().acquire('key', { wait: '20s' });
    await clock.flush();
    (await pending.then((lease) => lease.release())) satisfies string;
    state.fate = (verb) => (verb === 'write' ? slow : 'ok');
    const late = process().acquire('key', { wait: '20s' });
    await clock.advance(4_000);
    state.fate = () => 'ok';
    answer();
    const lease = await until(clock, late);
    expect(lease.remaining()).toBeGreaterThan(2_500);
  });

  it('gives back a grant that comes when nobody waits any more, and emits no event for it', async () => {
    const { clock, state, process } = bench();
    let answer = () => {};
    state.fate = () =>
      new Promise<void>((resolve) => {
        answer = resolve;
      });
    const controller = new AbortController();
    const events: string[] = [];
    const locks = process({ on: ({ type }) => void events.push(type) });
    const pending = locks.acquire('key', { signal: controller.signal });
    await clock.flush();
    controller.abort('gone');
    await expect(pending).rejects.toBe('gone');
    state.fate = () => 'ok';
    answer();
    await clock.flush();
    expect(await process().tryAcquire('key')).not.toBe(null);
    expect(events).toEqual(['lock-unavailable']);
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

  it('lets readers of a process in and renews them with a verb each, and lets them out with a few for all', async () => {
    const { clock, state, process } = bench();
    const locks = process();
    const first = await locks.read('key');
    state.calls = 0;
    const others = await Promise.all(Array.from({ length: 99 }, () => locks.read('key')));
    expect(state.calls).toBe(99);
    expect(new Set([first, ...others].map(({ fence }) => fence)).size).toBe(100);
    state.calls = 0;
    await clock.advance(1_100);
    expect([...others, first].every((lease) => lease.held())).toBe(true);
    expect(state.calls).toBeLessThanOrEqual(110);
    state.calls = 0;
    const results = await Promise.all([...others, first].map((lease) => lease.release()));
    expect(new Set(results)).toEqual(new Set(['released']));
    expect(state.calls).toBeLessThan(20);
    expect(await process().inspect('key')).toMatchObject({ owner: undefined });
  });

  it('gives each reader that comes in at the same time in one process its own fence', async () => {
    const { store, clock } = bench();
    const permits = semaphore({ store, clock, permits: 50 });
    const leases = await Promise.all(Array.from({ length: 50 }, () => permits.tryAcquire('key')));
    expect(new Set(leases.map((lease) => lease!.fence)).size).toBe(50);
    expect(await permits.tryAcquire('key')).toBe(null);
  });

  it("does not refuse a caller because of its own process's last record when another process has made room", async () => {
    const { store, clock } = bench();
    const [one, other] = [1, 2].map(() => semaphore({ store, clock, permits: 2 }));
    const theirs = await other!.acquire('key');
    await one!.acquire('key');
    await theirs.release();
    expect(await one!.tryAcquire('key')).not.toBe(null);
    expect(await one!.tryAcquire('key')).toBe(null);
  });

  it('does not let a write that hangs hold up the others of its process', async () => {
    const { store, clock, state } = bench();
    const permits = semaphore({ store, clock, permits: 3, ttl: '3s', random: () => 0.5 });
    const leases = await Promise.all([1, 2, 3].map(() => permits.acquire('key')));
    const fates: Fate[] = ['hung'];
    state.fate = () => fates.shift() ?? 'ok';
    void leases[0]!.extend('5s').catch(() => {});
    await clock.flush();
    expect(await leases[1]!.release()).toBe('released');
    await clock.advance(1_500);
    expect(leases[2]!.held()).toBe(true);
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

  it('tells its owner at the next renewal that it was taken away, and gives the next a greater fence', async () => {
    const { clock, process } = bench();
    const events: HoldfastEvent[] = [];
    const lease = await process({ on: (event) => events.push(event) }).acquire('key');
    const operator = process();
    expect(await operator.inspect('key')).toMatchObject({ owner: lease.owner, fence: lease.fence, remainingMs: 3_000 });
    expect(await operator.forceRelease('key')).toBe(true);
    expect(await operator.inspect('key')).toMatchObject({ owner: undefined, queueLength: 0, holders: [] });
    const next = (await operator.tryAcquire('key'))!;
    expect(next.fence).toBeGreaterThan(lease.fence);
    await clock.advance(1_000);
    expect([lease.held(), lease.signal.aborted, await lease.release()]).toEqual([false, true, 'lost']);
    expect(next.held()).toBe(true);
    expect(events.map(({ type }) => type)).toEqual(['lock-acquired', 'lock-lost']);
  });

  it('tells the owner at once that the lock was taken away, if the store reports changes', async () => {
    const { clock, state, process } = bench({ watches: true });
    const lease = await process().acquire('key');
    await clock.advance(300);
    expect([lease.held(), state.watching]).toEqual([true, 1]);
    await process().forceRelease('key');
    await clock.flush();
    expect([lease.signal.aborted, lease.held(), state.watching]).toEqual([true, false, 0]);
    expect(await lease.release()).toBe('lost');
  });

  it('tells the owner also if another has the lock by then, or if a look is already in progress', async () => {
    for (const when of ['before', 'while'] as const) {
      const { clock, state, process } = bench({ watches: true });
      const lease = await process().acquire('key');
      await clock.advance(300);
      let answer = () => {};
      const late = new Promise<void>((resolve) => {
        answer = resolve;
      });
      const fates: Fate[] = [when === 'before' ? late : { reply: late }];
      state.fate = (verb) => (verb === 'read' ? (fates.shift() ?? 'ok') : 'ok');
      await lease.extend();
      await clock.flush();
      expect(fates.length).toBe(0);
      const { calls } = state;
      await lease.extend();
      await clock.flush();
      // There is only one look at a time.
      expect(state.calls).toBe(calls + 1);
      await process().forceRelease('key');
      const next = await process().tryAcquire('key');
      answer();
      await clock.flush();
      expect([lease.held(), lease.signal.aborted, next!.held()]).toEqual([false, true, true]);
    }
  });

  it('notices that it was taken away before its watch was ready', async () => {
    const { clock, process } = bench({ watches: true });
    const lease = await process().acquire('key');
    await process().forceRelease('key');
    await clock.advance(250);
    expect(lease.held()).toBe(false);
  });

  it('looks once after each of its own renewals, and stays held', async () => {
    const { clock, state, process } = bench({ watches: true });
    const lease = await process().acquire('key');
    await clock.advance(500);
    const { calls } = state;
    await clock.advance(30_000);
    expect(lease.held()).toBe(true);
    // There is one renewal each second, and one look.
    expect(state.calls - calls).toBeLessThanOrEqual(60);
    await lease.release();
    expect([state.watching, clock.pendingTimers]).toEqual([0, 0]);
  });

  it('refuses `fair`, and `afterRestart`, on a store that lacks the capability', () => {
    const { process } = bench();
    expect(() => process({ fair: true })).toThrow('option "fair" must be false for a store without "native.queue"');
    expect(() => process({ afterRestart: 'wait' })).toThrow('option "afterRestart" must be \'grant\' for a store');
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

  it('does not bring back a lock that was released while a renewal was in flight', async () => {
    const { clock, state, inner, process } = bench();
    const lease = await process().acquire('key');
    let answer = () => {};
    const late = new Promise<void>((resolve) => {
      answer = resolve;
    });
    state.fate = (verb) => (verb === 'write' ? late : 'ok');
    await clock.advance(1_000);
    const released = lease.release();
    await clock.advance(800);
    expect(await released).toBe('released');
    answer();
    await clock.flush();
    expect(await inner.read('mutex:key')).toBe(undefined);
  });

  it('recognizes its record when the reply to a renewal was lost', async () => {
    const { clock, state, process } = bench();
    const lease = await process().acquire('key');
    const fates: Fate[] = ['lost'];
    state.fate = () => fates.shift() ?? 'ok';
    await clock.advance(10_000);
    expect([lease.held(), fates.length, await lease.release()]).toEqual([true, 0, 'released']);
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

  it('lets a writer in although readers keep coming', async () => {
    const { clock, process } = bench();
    let readers = 0;
    let isOver = false;
    const read = async (locks: ReturnType<typeof mutex>) => {
      while (!isOver) {
        const lease = await locks.read('key');
        readers++;
        await clock.sleep(10);
        readers--;
        await lease.release();
      }
    };
    const reading = [0, 3, 6].map(async (ms) => {
      await clock.sleep(ms + 1);
      await read(process({ random: Math.random }));
    });
    await clock.advance(100);
    const writer = await until(clock, process().write('key'), 2_000);
    expect(readers).toBe(0);
    await clock.advance(100);
    expect(readers).toBe(0);
    await writer.release();
    await clock.advance(300);
    expect(readers).toBeGreaterThan(0);
    isOver = true;
    await until(clock, Promise.all(reading));
  });

  it('does not let a writer that gave up keep readers out', async () => {
    const { clock, process } = bench();
    const reader = await process().read('key');
    const writer = process().write('key', { wait: 100 });
    const failed = expect(writer).rejects.toMatchObject({ reason: 'waited' });
    await clock.advance(50);
    expect(await process().tryAcquire('key')).toBe(null);
    await clock.advance(51);
    await failed;
    expect((await until(clock, process().read('key'), 100)).held()).toBe(true);
    expect(reader.held()).toBe(true);
  });
});

describe('semaphore with a store', () => {
  const permitsOf = (clock: VirtualClock, store: Store, permits: number) =>
    semaphore({ store, clock, permits, ttl: '3s', random: Math.random });

  it('keeps its limit for all processes together', async () => {
    const clock = virtualClock();
    const { store } = unsteady(clock, { watches: true });
    let inside = 0;
    let most = 0;
    const work = async () => {
      const permits = permitsOf(clock, store, 3);
      for (let round = 0; round < 10; round++) {
        await permits.run('key', async () => {
          most = Math.max(most, ++inside);
          await clock.sleep(5);
          inside--;
        });
      }
    };
    await until(clock, Promise.all(Array.from({ length: 8 }, work)));
    expect([inside, most]).toEqual([0, 3]);
  });

  it('frees a permit even if only one other process comes and goes, which never has to look', async () => {
    const clock = virtualClock();
    const { store, inner } = unsteady(clock);
    const dead = unsteady(clock, { inner });
    await permitsOf(clock, dead.store, 3).acquire('key');
    dead.state.fate = () => 'hung';
    const others = permitsOf(clock, store, 3);
    const lasting = await others.acquire('key');
    for (let passedMs = 0; passedMs < 10_000; passedMs += 100) {
      await (await others.tryAcquire('key'))!.release();
      await clock.advance(100);
    }
    const [second, third] = [await others.tryAcquire('key'), await others.tryAcquire('key')];
    expect([lasting.held(), second?.held(), third?.held()]).toEqual([true, true, true]);
  });

  it('gives a newcomer at once the permit of an owner that has disappeared, if another one has renewed since', async () => {
    const clock = virtualClock();
    const { store, inner } = unsteady(clock);
    const dead = unsteady(clock, { inner });
    const lost = await permitsOf(clock, dead.store, 2).acquire('key');
    dead.state.fate = () => 'hung';
    const lease = await permitsOf(clock, store, 2).acquire('key');
    await clock.advance(9_000);
    expect([lost.held(), lease.held()]).toEqual([false, true]);
    expect(await permitsOf(clock, inner, 2).tryAcquire('key')).not.toBeNull();
    await lease.release();
  });

  it('frees the permit of an owner that has disappeared, however often others come and go', async () => {
    const clock = virtualClock();
    const { store, inner } = unsteady(clock);
    const dead = unsteady(clock, { inner });
    const lease = await permitsOf(clock, dead.store, 2).acquire('key');
    dead.state.fate = () => 'hung';
    const others = permitsOf(clock, store, 2);
    let isOver = false;
    const work = async () => {
      while (!isOver) await others.run('key', () => clock.sleep(1));
    };
    const all = Promise.all([work(), work()]);
    await clock.advance(2_900);
    expect((await others.inspect('key')).holders.length).toBe(2);
    expect(lease.held()).toBe(false);
    await clock.advance(400);
    const { holders } = await others.inspect('key');
    expect(holders.map(({ owner }) => owner)).not.toContain(lease.owner);
    isOver = true;
    await until(clock, all);
  });
});
