import { isRejected, type Lease, LockLostError, LockUnavailableError, mutex, semaphore } from 'holdfast';
import { virtualClock } from 'holdfast/testing';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { Events, type HoldfastEvent } from '../../../src/core/events.js';
import { engine } from './support.ts';

const settle = async () => {
  for (let turn = 0; turn < 20; turn++) await Promise.resolve();
};

describe('mutex without a store', () => {
  afterEach(() => vi.restoreAllMocks());

  it('lets in one at a time, in order of arrival', async () => {
    const locks = mutex();
    const log: string[] = [];
    const work = (name: string) =>
      locks.run('key', async () => {
        log.push(`${name} in`);
        await settle();
        log.push(`${name} out`);
      });
    await Promise.all([work('a'), work('b'), work('c')]);
    expect(log).toEqual(['a in', 'a out', 'b in', 'b out', 'c in', 'c out']);
  });

  it('keeps keys apart, including names of prototypes and a key of a megabyte', async () => {
    const locks = mutex();
    const names = ['__proto__', 'constructor', 'a:b', ' ', '\u{1f512}', 'x'.repeat(2 ** 20)];
    const leases = await Promise.all(names.map((name) => locks.acquire(name)));
    expect(leases.map(({ key }) => key)).toEqual(names);
    for (const name of names) expect(await locks.tryAcquire(name)).toBe(null);
    for (const lease of leases) expect(await lease.release()).toBe('released');
  });

  it('refuses an invalid key', async () => {
    const locks = mutex();
    for (const key of ['', undefined, 5, [], ['a', '']] as never[]) {
      await expect(locks.acquire(key)).rejects.toMatchObject({ code: 'ERR_OPTIONS' });
      await expect(locks.tryAcquire(key)).rejects.toMatchObject({ code: 'ERR_OPTIONS' });
      await expect(locks.run(key, () => 1)).rejects.toMatchObject({ code: 'ERR_OPTIONS' });
    }
  });

  it('passes on the result and the error of the function', async () => {
    const locks = mutex();
    expect(await locks.run('key', ({ fence }) => fence > 0)).toBe(true);
    const failure = new Error('of the body');
    await expect(locks.run('key', () => Promise.reject(failure))).rejects.toBe(failure);
    expect((await locks.inspect('key')).owner).toBe(undefined);
  });

  it('gives each holder a greater fence', async () => {
    const locks = mutex();
    const fences: number[] = [];
    await Promise.all(Array.from({ length: 50 }, () => locks.run('key', ({ fence }) => void fences.push(fence))));
    await locks.forceRelease('key');
    await locks.run('key', ({ fence }) => void fences.push(fence));
    expect(fences.every((fence, index) => Number.isSafeInteger(fence) && fence > (fences[index - 1] ?? 0))).toBe(true);
  });

  it('ends a wait after its time, and an aborted one with its reason', async () => {
    const clock = virtualClock();
    const locks = mutex({ clock, wait: '2s', name: 'jobs' });
    const lease = await locks.acquire('key');
    const controller = new AbortController();
    const waits = Promise.allSettled([
      locks.acquire('key'),
      locks.acquire('key', { wait: 500 }),
      locks.acquire('key', { signal: controller.signal }),
      locks.acquire('key', { wait: 0 }),
    ]);
    await clock.flush();
    expect((await locks.inspect('key')).queueLength).toBe(3);
    controller.abort('no more');
    await clock.advance(500);
    expect((await locks.inspect('key')).queueLength).toBe(1);
    await clock.advance(1_500);
    const [first, second, third, fourth] = (await waits) as PromiseRejectedResult[];
    expect(first!.reason).toBeInstanceOf(LockUnavailableError);
    expect(isRejected(first!.reason)).toBe(true);
    expect(first!.reason).toMatchObject({ reason: 'waited', key: 'key', policy: 'jobs', code: 'ERR_LOCK_UNAVAILABLE' });
    expect(second!.reason).toMatchObject({ reason: 'waited' });
    expect(third!.reason).toBe('no more');
    expect(fourth!.reason).toMatchObject({ reason: 'waited' });
    expect([clock.pendingTimers, clock.now()]).toEqual([0, 2_000]);
    await lease.release();
    expect(await locks.tryAcquire('key')).not.toBe(null);
  });

  it('does not start for a signal that has already aborted', async () => {
    const locks = mutex();
    await expect(locks.acquire('key', { signal: AbortSignal.abort('over') })).rejects.toBe('over');
    expect((await locks.inspect('key')).owner).toBe(undefined);
  });

  it('refuses a caller when the queue is full', async () => {
    const locks = mutex({ queue: 1 });
    const lease = await locks.acquire('key');
    const waiting = locks.acquire('key');
    await expect(locks.acquire('key')).rejects.toMatchObject({ reason: 'full' });
    await lease.release();
    await (await waiting).release();
  });

  it('serves readers together and writers alone, in order of arrival', async () => {
    const locks = mutex();
    const log: string[] = [];
    const hold = async (name: string, pending: Promise<Awaited<ReturnType<typeof locks.read>>>) => {
      const lease = await pending;
      log.push(`${name} in`);
      await settle();
      log.push(`${name} out`);
      await lease.release();
    };
    await Promise.all([
      hold('r1', locks.read('key')),
      hold('r2', locks.read('key')),
      hold('w1', locks.write('key')),
      hold('r3', locks.read('key')),
      hold('r4', locks.read('key')),
    ]);
    expect(log).toEqual([
      'r1 in',
      'r2 in',
      'r1 out',
      'r2 out',
      'w1 in',
      'w1 out',
      'r3 in',
      'r4 in',
      'r3 out',
      'r4 out',
    ]);
  });

  it('lets readers in when the writer before them has given up', async () => {
    const clock = virtualClock();
    const locks = mutex({ clock });
    await locks.read('key');
    const writer = locks.write('key', { wait: 100 });
    const reader = locks.read('key');
    const outcome = Promise.allSettled([writer, reader]);
    await clock.advance(100);
    expect((await outcome).map(({ status }) => status)).toEqual(['rejected', 'fulfilled']);
  });

  it('holds several keys or none, and never deadlocks', async () => {
    const clock = virtualClock();
    const locks = mutex({ clock });
    const both = await locks.acquire(['b', 'a', 'b']);
    expect([both.key, both.leases?.map(({ key }) => key), both.held()]).toEqual(['a, b', ['a', 'b'], true]);
    expect(await locks.tryAcquire(['c', 'b'])).toBe(null);
    expect(await locks.tryAcquire('c')).not.toBe(null);
    const failed = expect(locks.acquire(['d', 'b'], { wait: 100 })).rejects.toMatchObject({ reason: 'waited' });
    await clock.advance(100);
    await failed;
    expect(await locks.tryAcquire('d')).not.toBe(null);
    expect(await both.release()).toBe('released');
    const rounds = Array.from({ length: 20 }, (_, index) =>
      locks.run(index % 2 === 0 ? ['x', 'y'] : ['y', 'x'], () => settle()),
    );
    await Promise.all(rounds);
    expect(clock.pendingTimers).toBe(0);
  });

  it('tells the owner that its lock was taken away, and lets the next in', async () => {
    const events: HoldfastEvent[] = [];
    const locks = mutex({ on: (event) => events.push(event) });
    const work = locks.run('key', async ({ signal, lease }) => {
      await locks.forceRelease('key');
      expect([signal.aborted, lease.held(), lease.state]).toEqual([true, false, 'lost']);
      expect(() => lease.assertHeld()).toThrow(LockLostError);
      return 'done';
    });
    const error = await work.catch((caught: unknown) => caught);
    expect(error).toMatchObject({ code: 'ERR_LOCK_LOST', reason: 'taken', outcome: { ok: true, value: 'done' } });
    expect(events.map(({ type }) => type)).toEqual(['lock-acquired', 'lock-lost', 'lock-force-released']);
    expect(await locks.forceRelease('key')).toBe(false);
  });

  it('tells who holds the lock and how many wait, without changing anything', async () => {
    const locks = mutex();
    const readers = [await locks.read('key'), await locks.read('key')];
    const waiting = locks.write('key');
    const holders = readers.map(({ owner, fence }) => ({ owner, fence, mode: 'shared', remainingMs: Infinity }));
    const { owner, fence } = readers[0]!;
    expect(await locks.inspect('key')).toEqual({ owner, fence, remainingMs: Infinity, queueLength: 1, holders });
    for (const reader of readers) await reader.release();
    const writer = await waiting;
    expect((await locks.inspect('key')).holders).toMatchObject([{ owner: writer.owner, mode: 'exclusive' }]);
    expect(await locks.tryAcquire('key')).toBe(null);
    await writer.release();
    expect(await locks.inspect('key')).toEqual({ remainingMs: 0, queueLength: 0, holders: [] });
  });

  it('keeps writers out for as long as one reader remains', async () => {
    const locks = mutex();
    const readers = [await locks.read('key'), await locks.read('key')];
    await readers[0]!.release();
    expect(await locks.tryAcquire('key')).toBe(null);
    await readers[1]!.release();
    expect(await locks.tryAcquire('key')).not.toBe(null);
  });

  it('lets waiters in when a key is taken away by force', async () => {
    const locks = mutex();
    const lease = await locks.acquire('key');
    const waiting = locks.acquire('key');
    await locks.forceRelease('key');
    expect([(await waiting).held(), lease.held()]).toEqual([true, false]);
  });

  it('takes nothing away from a listener that acquires again as it is told of the loss', async () => {
    for (const locks of [mutex(), semaphore({ permits: 2 })]) {
      const lease = await locks.acquire('key');
      let again: Promise<Lease> | undefined;
      lease.signal.addEventListener('abort', () => {
        again = locks.acquire('key');
      });
      expect(await locks.forceRelease('key')).toBe(true);
      const next = (await again)!;
      expect([next.held(), next.fence > lease.fence, await next.release()]).toEqual([true, true, 'released']);
    }
  });

  it('keeps later callers out behind those who wait, whoever inspects in between', async () => {
    const looking: Promise<unknown>[] = [];
    const locks = mutex({ on: ({ type }) => void (type === 'lock-released' && looking.push(locks.inspect('key'))) });
    const lost = await locks.acquire('key');
    lost.signal.addEventListener('abort', () => looking.push(locks.inspect('key')));
    const waiting = [locks.acquire('key'), locks.acquire('key')];
    await locks.forceRelease('key');
    const first = await waiting[0]!;
    expect(await locks.tryAcquire('key')).toBe(null);
    await first.release();
    const second = await waiting[1]!;
    expect(await locks.tryAcquire('key')).toBe(null);
    await second.release();
    expect(looking).toHaveLength(3);
  });

  it('releases a lease once, at the end of its scope', async () => {
    const locks = mutex();
    {
      await using lease = await locks.acquire('key');
      expect([lease.held(), lease.remaining(), await lease.extend('5s')]).toEqual([true, Infinity, Infinity]);
      lease.assertHeld(1_000_000);
    }
    const lease = await locks.acquire('key');
    await lease.release();
    const next = await locks.acquire('key');
    expect([await lease.release(), lease.state, lease.remaining()]).toEqual(['released', 'released', 0]);
    expect(() => lease.assertHeld()).toThrow(expect.objectContaining({ reason: 'released' }));
    await expect(lease.extend()).rejects.toMatchObject({ code: 'ERR_LOCK_LOST' });
    expect([lease.signal.aborted, next.held()]).toEqual([false, true]);
  });

  it('emits an event for each step', async () => {
    const clock = virtualClock();
    const events: HoldfastEvent[] = [];
    const locks = mutex({ name: 'jobs', clock, on: (event) => events.push(event) });
    const lease = await locks.acquire('key');
    const second = locks.acquire('key');
    await clock.advance(10);
    await expect(locks.acquire('key', { wait: 0 })).rejects.toThrow('jobs');
    await lease.release();
    await second;
    const { fence } = lease;
    expect(events.map(({ type }) => type)).toEqual([
      'lock-acquired',
      'lock-unavailable',
      'lock-released',
      'lock-acquired',
    ]);
    expect(events[2]).toEqual({
      type: 'lock-released',
      name: 'jobs',
      key: 'key',
      fence,
      heldMs: 10,
      result: 'released',
    });
    expect(events[3]).toMatchObject({ waitedMs: 10 });
  });

  it('creates no event that nobody listens to', async () => {
    const emit = vi.spyOn(Events.prototype, 'emit');
    const locks = mutex();
    const lease = await locks.acquire('key');
    await expect(locks.acquire('key', { wait: 0 })).rejects.toThrow();
    await lease.release();
    await locks.acquire('key');
    await locks.forceRelease('key');
    expect(emit).not.toHaveBeenCalled();
  });

  it('forgets a key that has neither a holder nor a waiter', async () => {
    const { lines, locks } = engine(undefined, virtualClock());
    await locks.run('key', 'exclusive', () => 1);
    await locks.inspect('other');
    await locks.tryAcquire('third', 'exclusive').then((lease) => lease!.release());
    expect(lines.size).toBe(0);
  });

  it('refuses invalid options', async () => {
    expect(() => mutex({ tll: 5 } as never)).toThrow('mutex: unknown option "tll", did you mean "ttl"?');
    expect(() => mutex({ ttl: '1s', margin: '800ms' })).toThrow('"margin" must be at most half of "ttl"');
    expect(() => mutex({ ttl: '1s', renewEvery: '800ms' })).toThrow('"renewEvery" must be at most');
    expect(() => mutex({ store: {} as never })).toThrow('a store such as');
    expect(() => semaphore({} as never)).toThrow('"permits" is required');
    await expect(mutex().acquire('key', { timeout: 5 } as never)).rejects.toMatchObject({ code: 'ERR_OPTIONS' });
    await expect(mutex().run('key', 5 as never)).rejects.toMatchObject({ code: 'ERR_OPTIONS' });
  });
});

describe('semaphore without a store', () => {
  it('lets in as many as there are permits', async () => {
    const permits = semaphore({ permits: 3 });
    let running = 0;
    let most = 0;
    const work = () =>
      permits.run('key', async () => {
        most = Math.max(most, ++running);
        await settle();
        running--;
      });
    await Promise.all(Array.from({ length: 20 }, work));
    expect([running, most]).toEqual([0, 3]);
  });

  it('passes a permit on when a waiter is aborted in the same tick', async () => {
    const permits = semaphore({ permits: 1 });
    const lease = await permits.acquire('key');
    const controller = new AbortController();
    const aborted = permits.acquire('key', { signal: controller.signal });
    const next = permits.acquire('key');
    controller.abort('gone');
    void lease.release();
    await expect(aborted).rejects.toBe('gone');
    expect((await next).held()).toBe(true);
  });
});
