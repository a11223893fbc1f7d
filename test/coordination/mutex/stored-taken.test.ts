/** Locks over a store whose record others remove or change while they are held: who notices, and when. */
import { describe, expect, it } from 'vitest';
import type { HoldfastEvent } from '../../../src/core/events.js';
import { deferred } from '../../support/deferred.ts';
import { bench, type Fate, until } from './support.ts';

describe('mutex with a store, when its record is changed by others', () => {
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
    const { promise: reply, resolve: answer } = deferred();
    const fates: Fate[] = [{ reply }];
    state.fate = () => fates.shift() ?? 'ok';
    const taking = locks.tryAcquire('key');
    await clock.flush();
    expect(await locks.forceRelease('key')).toBe(true);
    answer();
    const lease = (await taking)!;
    await clock.flush();
    expect([lease.held(), lease.signal.aborted]).toEqual([false, true]);
  });

  it('takes nothing from an owner that came in after the key was taken away, when that reply is late', async () => {
    const { clock, state, process } = bench();
    const locks = process();
    const lease = await locks.acquire('key');
    const { promise: reply, resolve: answer } = deferred();
    const fates: Fate[] = [{ reply }];
    state.fate = () => fates.shift() ?? 'ok';
    const forced = locks.forceRelease('key');
    const waiting = locks.acquire('key');
    await clock.flush();
    expect(await lease.release()).toBe('lost');
    const next = await until(clock, waiting, 10);
    answer();
    expect(await forced).toBe(true);
    await clock.flush();
    expect([next.held(), next.fence > lease.fence, await next.release()]).toEqual([true, true, 'released']);
  });

  it('tells its own lease of a key taken away by force, even if the key was inspected in between', async () => {
    const { clock, state, process } = bench();
    const locks = process();
    const { promise: reply, resolve: answer } = deferred();
    const fates: Fate[] = [reply];
    state.fate = () => fates.shift() ?? 'ok';
    const forced = locks.forceRelease('key');
    await locks.inspect('key');
    const lease = await locks.acquire('key');
    answer();
    expect(await forced).toBe(true);
    await clock.flush();
    expect([lease.held(), (await process().tryAcquire('key'))?.held()]).toEqual([false, true]);
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

  it('takes nothing from an owner that has it since, when it is given back before the loss is noticed', async () => {
    const { process } = bench();
    const lease = await process().acquire('key');
    const other = process();
    await other.forceRelease('key');
    const next = (await other.tryAcquire('key'))!;
    expect([lease.held(), await lease.release()]).toEqual([true, 'lost']);
    expect(await process().tryAcquire('key')).toBe(null);
    expect(await next.release()).toBe('released');
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
      const { promise: late, resolve: answer } = deferred();
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
});
