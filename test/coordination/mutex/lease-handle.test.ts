/** What the owner of a lock gets: for one key, for several, with a store and without. */
import { getEventListeners } from 'node:events';
import { inspect } from 'node:util';
import { LockLostError, memoryStore, mutex } from 'holdfast';
import { virtualClock } from 'holdfast/testing';
import { describe, expect, it } from 'vitest';
import { deferred } from '../../support/deferred.ts';
import { bench, type Fate, until } from './support.ts';

describe('a lease', () => {
  it('is held for this many milliseconds or not, to the millisecond', async () => {
    const { process } = bench();
    const lease = await process().acquire('key');
    expect(lease.remaining()).toBe(2_668);
    lease.assertHeld();
    lease.assertHeld(2_668);
    expect(() => lease.assertHeld(2_669)).toThrow(expect.objectContaining({ code: 'ERR_LOCK_LOST', reason: 'short' }));
    expect(() => lease.assertHeld(-1)).toThrow('option "minMs" must be');
    expect(() => lease.assertHeld('1s' as never)).toThrow('option "minMs" must be');
    await lease.release();
    expect(() => lease.assertHeld()).toThrow(expect.objectContaining({ reason: 'released', key: 'key' }));
  });

  it('has an aborted signal if it is read after the loss, always the same and with the same reason', async () => {
    const { process } = bench();
    const locks = process({ name: 'jobs' });
    const lease = await locks.acquire('key');
    await locks.forceRelease('key');
    const { signal } = lease;
    const { reason } = signal;
    expect(reason).toMatchObject({ code: 'ERR_LOCK_LOST', reason: 'taken', policy: 'jobs', fence: lease.fence });
    expect([lease.signal, lease.signal.reason]).toEqual([signal, reason]);
    expect(lease.signal.reason).toBe(reason);
  });

  it('shows its key, its fence and its state in a log, and no more', async () => {
    const locks = mutex();
    const lease = await locks.acquire('key');
    expect(inspect(lease)).toBe(`{ key: 'key', fence: ${lease.fence}, state: 'held' }`);
  });

  it('hides no error of its scope when it cannot be released', async () => {
    const { state, process } = bench();
    const scope = async () => {
      await using lease = await process().acquire('key');
      state.fate = () => 'dropped';
      throw new Error(`of ${lease.key}`);
    };
    await expect(scope()).rejects.toThrow(/^of key$/);
  });

  it('stays released although extensions are in flight or waiting; these fail', async () => {
    const { inner, state, process } = bench();
    const lease = await process().acquire('key');
    const { promise: reply, resolve: answer } = deferred();
    const fates: Fate[] = [{ reply }];
    state.fate = () => fates.shift() ?? 'ok';
    const extensions = Promise.allSettled([lease.extend('20s'), lease.extend('30s')]);
    const releasing = lease.release();
    answer();
    expect(await releasing).toBe('released');
    const refused = { status: 'rejected', reason: { code: 'ERR_LOCK_LOST', reason: 'released' } };
    expect(await extensions).toMatchObject([refused, refused]);
    expect([await inner.read('mutex:key'), state.verbs]).toEqual([undefined, ['write', 'write', 'remove']]);
  });

  it("tells in the error's stack where the loss was noticed", async () => {
    const locks = mutex();
    const lease = await locks.acquire('key');
    await locks.forceRelease('key');
    try {
      lease.assertHeld();
    } catch (error) {
      expect((error as Error).stack).toContain('lease-handle.test.ts');
    }
    expect.assertions(1);
  });

  it('sends nothing to its store when it is released after it was taken away', async () => {
    const { clock, state, process } = bench();
    const locks = process();
    const lease = await locks.acquire('key');
    await locks.forceRelease('key');
    state.verbs.length = 0;
    expect(await lease.release()).toBe('lost');
    await clock.advance(3_000);
    expect(state.verbs).toEqual([]);
  });

  it('notices at its signal that the process was frozen', async () => {
    const { clock, process } = bench();
    const lease = await process().acquire('key');
    clock.jumpWallClock(3_000);
    expect([lease.signal.aborted, lease.signal.reason.reason]).toEqual([true, 'expired']);
  });

  it('does not abort its signal when it is released', async () => {
    const locks = mutex();
    const lease = await locks.acquire('key');
    const { signal } = lease;
    await lease.release();
    expect([signal.aborted, lease.signal.aborted]).toEqual([false, false]);
  });

  it('can be extended without a store, to no effect, but not once it is lost', async () => {
    const locks = mutex();
    const lease = await locks.acquire('key');
    await expect(lease.extend(0)).rejects.toMatchObject({ code: 'ERR_OPTIONS' });
    expect(await lease.extend(1)).toBe(Infinity);
    await locks.forceRelease('key');
    await expect(lease.extend()).rejects.toMatchObject({ code: 'ERR_LOCK_LOST', reason: 'taken' });
    expect([lease.remaining(), await lease.release(), lease.state]).toEqual([0, 'lost', 'lost']);
  });
});

describe('a lease of several keys', () => {
  it('has the worst state of them, the shortest remaining time and the greatest fence', async () => {
    const { clock, state, process } = bench();
    const locks = process();
    const both = await locks.acquire(['a', 'b']);
    const [a, b] = both.leases!;
    expect([both.state, both.held(), both.fence]).toEqual(['held', true, Math.max(a!.fence, b!.fence)]);
    expect(await a!.extend('60s')).toBeGreaterThan(50_000);
    expect(both.remaining()).toBe(2_668);
    state.fate = (_, key) => (key === 'mutex:b' ? 'refused' : 'ok');
    await clock.advance(1_100);
    expect([both.state, both.held()]).toEqual(['suspect', true]);
    let reason: unknown;
    both.signal.addEventListener('abort', () => {
      reason = both.signal.reason;
    });
    await clock.advance(2_000);
    expect([both.state, both.held(), both.remaining(), a!.held()]).toEqual(['lost', false, 0, true]);
    expect(reason).toMatchObject({ code: 'ERR_LOCK_LOST', reason: 'expired', key: 'a, b', policy: 'mutex' });
    state.fate = () => 'ok';
    expect(await both.release()).toBe('lost');
    expect(a!.state).toBe('released');
  });

  it('is extended as a whole', async () => {
    const { clock, state, process } = bench();
    const both = await process().acquire(['a', 'b']);
    expect(await both.extend('5s')).toBeCloseTo(5_000 * 0.99 - 302);
    expect(both.leases!.map((lease) => lease.remaining())).toEqual([both.remaining(), both.remaining()]);
    state.fate = (_, key) => (key === 'mutex:b' ? { reply: clock.sleep(100) } : 'ok');
    const extending = both.extend('5s');
    await clock.advance(100);
    expect(await extending).toBeCloseTo(4_900 * 0.99 - 302, -2);
    expect(await extending).toBe(both.remaining());
    state.fate = (_, key) => (key === 'mutex:b' ? 'refused' : 'ok');
    await expect(both.extend()).rejects.toMatchObject({ code: 'ERR_STORE' });
  });

  it('is released once, and tells when the release of one of them is not known', async () => {
    const { state, process } = bench();
    const both = await process().acquire(['a', 'b']);
    const fates: Fate[] = ['dropped'];
    state.fate = (verb) => (verb === 'remove' ? (fates.shift() ?? 'ok') : 'ok');
    const releases = [both.release(), both.release()];
    expect(await Promise.all(releases)).toEqual(['unknown', 'unknown']);
    // There is one call for each key, and one for the lookup.
    expect([both.state, state.verbs.filter((verb) => verb === 'remove').length]).toEqual(['released', 3]);
  });

  it('is lost with the first one that is taken away', async () => {
    const locks = mutex();
    const both = await locks.acquire(['a', 'b']);
    const { signal } = both;
    await locks.forceRelease('b');
    expect([signal.aborted, both.held(), both.state]).toEqual([true, false, 'lost']);
    expect(() => both.assertHeld()).toThrow(LockLostError);
    expect(await both.release()).toBe('lost');
    expect(await locks.tryAcquire(['a', 'b'])).not.toBe(null);
  });
});

describe('a wait', () => {
  it.each(['without a store', 'with a store'])('leaves no listener on a signal, however it ends: %s', async (where) => {
    const clock = virtualClock();
    const locks = mutex({ clock, ...(where === 'with a store' && { store: memoryStore({ clock }) }) });
    const [kept, aborted] = [new AbortController(), new AbortController()];
    const lease = await locks.acquire('key');
    const got = locks.acquire('key', { signal: kept.signal });
    const late = expect(locks.acquire('key', { signal: kept.signal, wait: 10 })).rejects.toThrow('not free for 10 ms');
    const gone = expect(locks.acquire('key', { signal: aborted.signal })).rejects.toBe('gone');
    await clock.flush();
    expect(getEventListeners(kept.signal, 'abort').length).toBeGreaterThan(0);
    aborted.abort('gone');
    await gone;
    await clock.advance(10);
    await late;
    await lease.release();
    await (await until(clock, got, 10)).release();
    expect(getEventListeners(kept.signal, 'abort').length).toBe(0);
    expect(clock.pendingTimers).toBe(0);
  });
});
