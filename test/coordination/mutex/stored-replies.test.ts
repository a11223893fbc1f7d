/** Locks over a store whose replies are late or lost: what may have been granted is taken back. */
import { StoreError } from 'holdfast';
import { describe, expect, it } from 'vitest';
import { deferred } from '../../support/deferred.ts';
import { bench, type Fate, until } from './support.ts';

const failed = { store: 'unsteady', operation: 'write', detail: 'no' } as const;

describe('mutex with a store, when replies are late or lost', () => {
  it('is free at once when it is given back after a renewal of which only the reply was lost', async () => {
    const { clock, state, process } = bench();
    const lease = await process().acquire('key');
    const fates: Fate[] = ['lost'];
    state.fate = () => fates.shift() ?? 'ok';
    await clock.advance(1_000);
    expect(fates).toEqual([]);
    expect(await lease.release()).toBe('released');
    expect((await process().tryAcquire('key'))?.held()).toBe(true);
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
      const { promise: reply, resolve: answer } = deferred();
      const fates: Fate[] = [{ reply }];
      state.fate = () => fates.shift() ?? 'ok';
      const controller = new AbortController();
      const taking = process(options).acquire('key', { signal: controller.signal });
      const ended = expect(taking).rejects.toBe('no more');
      await clock.flush();
      controller.abort('no more');
      answer();
      await ended;
      expect(await process().tryAcquire('key')).not.toBe(null);
    }
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
      const { promise: late, resolve: answer } = deferred();
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
    const { promise: slow, resolve: answer } = deferred();
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

  it('does not bring back a lock that was released while a renewal was in flight', async () => {
    const { clock, state, inner, process } = bench();
    const lease = await process().acquire('key');
    const { promise: late, resolve: answer } = deferred();
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
});
