/** What a call for a lock does, whatever holds the lock: several keys, names, signals, events. */
import { LockLostError, memoryStore, mutex, semaphore } from 'holdfast';
import { virtualClock } from 'holdfast/testing';
import { describe, expect, it, vi } from 'vitest';
import type { HoldfastEvent } from '../../../src/core/events.js';
import { deferred } from '../../support/deferred.ts';
import { bench, type Fate, until } from './support.ts';

describe('locks of several keys', () => {
  it('are all acquired by tryAcquire, or none stays held', async () => {
    const { state, process } = bench();
    const held = await process().acquire('b');
    expect(await process().tryAcquire(['a', 'b', 'c'])).toBe(null);
    // Keys after the one that cannot be had are not asked for.
    expect(state.verbs).toEqual(['write', 'write', 'write', 'remove']);
    expect((await process().inspect('a')).owner).toBe(undefined);
    await held.release();
    const all = await process().tryAcquire(['b', 'a', 'b']);
    expect([all!.key, all!.held(), all!.leases!.length]).toEqual(['a, b', true, 2]);
  });

  it('are released when the store fails for one of them', async () => {
    const { state, inner, process } = bench();
    const fates: Fate[] = ['ok', 'refused'];
    state.fate = () => fates.shift() ?? 'ok';
    await expect(process().tryAcquire(['a', 'b'])).rejects.toMatchObject({ code: 'ERR_STORE' });
    expect(await inner.read('mutex:a')).toBe(undefined);
  });

  it.each(['tryAcquire', 'acquire'] as const)('are released by %s when one is lost meanwhile', async (how) => {
    const { clock, state, inner, process } = bench();
    const { promise: slow, resolve: answer } = deferred();
    state.fate = (verb, key) => (key === 'mutex:b' ? slow : verb === 'write' && clock.now() > 0 ? 'hung' : 'ok');
    const pending = process({ ttl: '3s' })[how](['a', 'b']);
    const outcome = pending.catch((error: unknown) => error);
    // The lease of the second key is new enough, because its request is sent late.
    await clock.advance(2_667);
    await clock.advance(1);
    state.fate = () => 'ok';
    answer();
    await clock.advance(100);
    const result = await outcome;
    if (how === 'tryAcquire') expect(result).toBe(null);
    else
      expect(result).toMatchObject({ reason: 'lost', key: 'a, b', message: expect.stringContaining('"a" was lost') });
    await clock.advance(100);
    expect([await inner.read('mutex:a'), await inner.read('mutex:b')]).toEqual([undefined, undefined]);
  });

  it('share one wait', async () => {
    const { clock, process } = bench();
    const [a, b] = [await process().acquire('a'), await process().acquire('b')];
    let error: unknown;
    process()
      .acquire(['a', 'b'], { wait: 500 })
      .catch((reason: unknown) => {
        error = reason;
      });
    await clock.advance(300);
    await a.release();
    await clock.advance(199);
    expect(error).toBe(undefined);
    await clock.advance(1);
    expect(error).toMatchObject({ reason: 'waited', key: 'b' });
    await b.release();
  });

  it('are at most a hundred non-empty strings', async () => {
    const locks = mutex();
    const names = Array.from({ length: 101 }, (_, index) => `key ${index}`);
    await expect(locks.acquire(names)).rejects.toThrow('a list of 1 to 100');
    await expect(locks.acquire(['a', 5 as never])).rejects.toThrow('a list of 1 to 100');
    await expect(locks.acquire(['a', ''])).rejects.toThrow('a list of 1 to 100');
    await expect(locks.acquire(['a', ['b'] as never])).rejects.toThrow('a list of 1 to 100');
    await expect(locks.tryAcquire({} as never)).rejects.toThrow('a list of 1 to 100');
    await expect(locks.acquire('')).rejects.toThrow('a list of 1 to 100');
    await expect(locks.run('', () => 1)).rejects.toThrow('a list of 1 to 100');
    expect((await locks.acquire(['one'])).leases!.length).toBe(1);
    for (const key of [5, '', ['a']] as never[]) {
      await expect(locks.inspect(key)).rejects.toThrow('a string that is not empty');
      await expect(locks.forceRelease(key)).rejects.toThrow('a string that is not empty');
    }
    const lease = await locks.acquire(names.slice(1));
    expect(lease.leases!.length).toBe(100);
    await expect(locks.acquire(names.slice(1), { wait: 0 })).rejects.toMatchObject({ key: 'key 1' });
  });

  it('are taken and released in sorted order, whatever order they are given in', async () => {
    const locks = mutex();
    const lease = await locks.acquire(['c', 'a', 'b']);
    expect([lease.leases!.map(({ key }) => key), lease.owner]).toEqual([
      ['a', 'b', 'c'],
      lease.leases!.map(({ owner }) => owner).join(', '),
    ]);
  });
});

describe('a call for a lock', () => {
  it('tells why it got nothing, and after how long', async () => {
    const { clock, state, process } = bench();
    await clock.advance(50);
    const events: HoldfastEvent[] = [];
    const locks = process({ name: 'jobs', queue: 1, on: (event) => events.push(event) });
    await process().acquire('key');
    const controller = new AbortController();
    const first = expect(locks.acquire('key', { wait: 300 })).rejects.toThrow('it was not free for 300 ms');
    await clock.flush();
    await expect(locks.acquire(['key', 'other'])).rejects.toMatchObject({ reason: 'full' });
    await clock.advance(300);
    await first;
    const second = expect(locks.acquire('key', { signal: controller.signal })).rejects.toBe('gone');
    await clock.advance(200);
    controller.abort('gone');
    await second;
    await clock.flush();
    state.fate = () => 'refused';
    await expect(locks.acquire('key')).rejects.toMatchObject({ code: 'ERR_STORE' });
    const common = { type: 'lock-unavailable', name: 'jobs' };
    expect(events.slice(-4)).toMatchObject([
      { ...common, key: 'key,other', reason: 'full', waitedMs: 0 },
      { ...common, key: 'key', reason: 'waited', waitedMs: 300 },
      { ...common, key: 'key', reason: 'aborted', waitedMs: 200, error: 'gone' },
      { ...common, key: 'key', reason: 'store', waitedMs: 0 },
    ]);
  });

  it('emits an event for each lease that was acquired, released, lost or taken, even without a wait', async () => {
    for (const store of [undefined, bench().store]) {
      const clock = virtualClock();
      await clock.advance(50);
      const events: HoldfastEvent[] = [];
      const locks = mutex({
        clock,
        on: (event) => events.push(event),
        ...(store && { store: memoryStore({ clock }) }),
      });
      await locks.run('key', () => clock.advance(5));
      const tried = await locks.tryAcquire('key');
      await locks.forceRelease('key');
      expect(events).toMatchObject([
        { type: 'lock-acquired', key: 'key', waitedMs: 0 },
        { type: 'lock-released', key: 'key', heldMs: 5, result: 'released' },
        { type: 'lock-acquired', key: 'key', waitedMs: 0, fence: tried!.fence },
        { type: 'lock-lost', key: 'key', reason: 'taken', fence: tried!.fence },
        { type: 'lock-force-released', key: 'key', name: 'mutex' },
      ]);
    }
  });

  it('tells how long each caller that got the lock has waited', async () => {
    for (const where of ['without a store', 'with a store']) {
      const clock = virtualClock();
      await clock.advance(50);
      const events: HoldfastEvent[] = [];
      const store = where === 'with a store' ? { store: memoryStore({ clock }) } : {};
      const locks = mutex({ clock, on: (event) => events.push(event), ...store });
      const lease = await locks.acquire('key');
      const waiting = locks.acquire('key');
      await clock.advance(10);
      await lease.release();
      await (await until(clock, waiting, 10)).release();
      const waited = events.map((event) => (event.type === 'lock-acquired' ? event.waitedMs : undefined));
      expect(waited.filter((ms) => ms !== undefined)).toEqual([0, 10]);
    }
  });

  it('names the invalid option and the lock that it belongs to', async () => {
    const locks = mutex({ name: 'jobs' });
    await expect(locks.acquire('key', { wait: -1 })).rejects.toThrow('jobs.acquire: option "wait"');
    await expect(locks.acquire('key', { signal: {} as never })).rejects.toThrow(
      'option "signal" must be an AbortSignal',
    );
    await expect(locks.run('key', 'text' as never)).rejects.toThrow('jobs: option "fn" must be a function');
    await expect(locks.acquire(5 as never)).rejects.toThrow('jobs: option "key" must be');
  });

  it('refuses any invalid key, and reports no wait', async () => {
    const events: HoldfastEvent[] = [];
    const locks = mutex({ on: (event) => events.push(event) });
    for (const keys of ['', 5, null, undefined, [], [''], [Symbol('key')], Symbol('key'), Object.create(null)]) {
      await expect(locks.acquire(keys as never)).rejects.toMatchObject({ code: 'ERR_OPTIONS', option: 'key' });
    }
    expect(events).toEqual([]);
  });

  it('checks its options and its signal even if the lock is free', async () => {
    const locks = mutex();
    let runs = 0;
    const count = () => ++runs;
    await expect(locks.run('key', count, { wait: -1 })).rejects.toMatchObject({ code: 'ERR_OPTIONS' });
    await expect(locks.run('key', count, { signal: AbortSignal.abort('over') })).rejects.toBe('over');
    expect(runs).toBe(0);
    expect(await locks.run('key', count, {})).toBe(1);
  });

  it('fails, with the result, when the lock turns out to be lost at its release', async () => {
    const { process } = bench();
    const work = process().run('key', async () => {
      await process().forceRelease('key');
      return 'done';
    });
    await expect(work).rejects.toMatchObject({
      ...{ code: 'ERR_LOCK_LOST', reason: 'taken', outcome: { ok: true, value: 'done' } },
    });
  });

  it('fails as expired, not as taken, when the lease runs out before the release reaches the store', async () => {
    const { clock, state, process } = bench();
    const { promise: slow, resolve: arrive } = deferred();
    const work = process({ ttl: '3s' }).run('key', () => {
      state.fate = () => slow;
      return 'done';
    });
    const failed = work.catch((error: unknown) => error);
    await clock.advance(3_001);
    arrive();
    expect(await until(clock, failed)).toMatchObject({
      ...{ code: 'ERR_LOCK_LOST', reason: 'expired', outcome: { ok: true, value: 'done' } },
    });
  });

  it('fails as taken when the lock was taken away while the function ran', async () => {
    const locks = bench().process();
    const work = locks.run('key', async () => {
      await locks.forceRelease('key');
      return 'done';
    });
    await expect(work).rejects.toMatchObject({
      ...{ code: 'ERR_LOCK_LOST', reason: 'taken', outcome: { ok: true, value: 'done' } },
    });
  });

  it('rejects with the reason of a signal that aborts during the request, whatever the reply', async () => {
    const { clock, state, process } = bench();
    await process().acquire('held');
    state.fate = () => clock.sleep(10);
    for (const key of ['free', 'held']) {
      const controller = new AbortController();
      const aborted = expect(process().acquire(key, { wait: 0, signal: controller.signal })).rejects.toBe('enough');
      controller.abort('enough');
      await clock.advance(100);
      await aborted;
    }
  });

  it('refuses a lock that is not free if the call may not wait, and acquires a free one', async () => {
    const { process } = bench();
    await process().acquire('key');
    await expect(process().acquire('key', { wait: 0 })).rejects.toThrow('it is not free, and the call may not wait');
    expect((await process().acquire('free', { wait: 0 })).held()).toBe(true);
  });

  it('keeps keys of up to 480 bytes as they are, and hashes longer ones', async () => {
    const { inner, process } = bench();
    for (const key of ['x'.repeat(480), '\u20ac'.repeat(160)]) {
      await process().acquire(key);
      expect(await inner.read(`mutex:${key}`)).not.toBe(undefined);
    }
    for (const key of ['x'.repeat(481), `x${'\u20ac'.repeat(160)}`]) {
      const lease = await process().acquire(key);
      expect([lease.key, await inner.read(`mutex:${key}`)]).toEqual([key, undefined]);
      expect(await process().tryAcquire(key)).toBe(null);
    }
  });

  it.each([[undefined], [{}], [{ getBuiltinModule: () => undefined }]])(
    'leaves it to the store to refuse longer keys on a platform without hashes (%o)',
    async (platform) => {
      const locks = bench().process();
      vi.stubGlobal('process', platform);
      const call = locks.acquire('x'.repeat(600));
      vi.unstubAllGlobals();
      await expect(call).rejects.toMatchObject({ code: 'ERR_STORE', reason: 'invalid' });
    },
  );

  it('keeps keys apart that are not well-formed Unicode', async () => {
    const { process } = bench();
    for (const key of ['\ud800', '\udc00', 'a\ud800', `${'x'.repeat(200)}\udfff`]) {
      const lease = await process().acquire(key);
      expect([lease.key, await process().tryAcquire(key)]).toEqual([key, null]);
    }
  });

  it.each(['without a store', 'with a store'])(
    'acquires a free lock, and no other, if it may not wait: %s',
    async (where) => {
      const { clock, store } = bench();
      const locks = where === 'with a store' ? mutex({ store, clock, queue: 0 }) : mutex({ queue: 0 });
      const lease = await locks.acquire('key');
      await expect(locks.acquire('key')).rejects.toMatchObject({ code: 'ERR_LOCK_UNAVAILABLE', reason: 'full' });
      await expect(locks.acquire('key', { wait: 0 })).rejects.toMatchObject({ reason: 'waited' });
      await lease.release();
      expect(await locks.run('key', ({ lease: next }) => next.held())).toBe(true);
    },
  );
});

describe('the signal of code under a lock', () => {
  it('aborts with the lock, also when the caller has a signal too', async () => {
    for (const options of [undefined, { signal: new AbortController().signal }]) {
      const { clock, state, process } = bench();
      const work = process().run(
        'key',
        ({ signal, lease }) => {
          state.fate = () => 'hung';
          expect(signal === lease.signal).toBe(options === undefined);
          return new Promise((resolve) => signal.addEventListener('abort', () => resolve(signal.reason)));
        },
        options,
      );
      const error = await until(
        clock,
        work.catch((reason: unknown) => reason),
      );
      expect(error).toBeInstanceOf(LockLostError);
      expect((error as LockLostError).outcome).toMatchObject({ ok: true, value: { code: 'ERR_LOCK_LOST' } });
    }
  });

  it('is the same signal each time it is read', async () => {
    const options = { signal: new AbortController().signal };
    await mutex().run(
      'key',
      (context) => {
        expect(context.signal).toBe(context.signal);
        expect([context.fence, context.lease.held()]).toEqual([context.lease.fence, true]);
      },
      options,
    );
  });
});

describe('semaphore', () => {
  it('has its own keys in a store, apart from those of a mutex', async () => {
    const { store, clock } = bench();
    const lease = await mutex({ store, clock }).acquire('key');
    expect(await semaphore({ store, clock, permits: 1 }).tryAcquire('key')).not.toBe(null);
    expect(lease.held()).toBe(true);
  });
});
