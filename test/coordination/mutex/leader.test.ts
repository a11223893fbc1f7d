import { getEventListeners } from 'node:events';
import { inspect } from 'node:util';
import {
  deadline,
  type LockContext,
  leader,
  memoryStore,
  mutex,
  pipeline,
  retry,
  type Store,
  StoreError,
  semaphore,
  timeout,
} from 'holdfast';
import { virtualClock } from 'holdfast/testing';
import { describe, expect, it } from 'vitest';
import { longestWaitMs } from '../../../src/core/clock.js';
import { currentCall, currentDeadline, enableContext, runDetached } from '../../../src/integrations/context.js';

const untilAborted = (signal: AbortSignal) =>
  new Promise<void>((resolve) => {
    if (signal.aborted) resolve();
    signal.addEventListener('abort', () => resolve());
  });

function bench() {
  const clock = virtualClock();
  const inner = memoryStore({ clock });
  let isDown = false;
  const guard = <T>(operation: string, work: () => Promise<T>) =>
    isDown
      ? Promise.reject(
          new StoreError({ store: 'test', operation, reason: 'timeout', applied: 'unknown', detail: 'no answer' }),
        )
      : work();
  const cut: Store = {
    read: (key, options) => guard('read', () => inner.read(key, options)),
    write: (key, value, options) => guard('write', () => inner.write(key, value, options)),
    remove: (key, options) => guard('remove', () => inner.remove(key, options)),
  };
  const candidate = (store: Store = inner) => leader({ store, name: 'scheduler', ttl: '3s', clock, random: () => 0.5 });
  return {
    ...{ clock, candidate, inner, cut },
    setDown(down: boolean) {
      isDown = down;
    },
  };
}

describe('leader', () => {
  it('lets one candidate lead at a time, and the next when that one gives up', async () => {
    const { clock, candidate } = bench();
    const [one, other] = [candidate(), candidate()];
    const log: string[] = [];
    const lead = (who: string, candidate: typeof one) =>
      candidate.run(async ({ signal }) => {
        log.push(`${who} begins`);
        await untilAborted(signal);
        log.push(`${who} ends`);
        return who;
      });
    const first = lead('one', one);
    await clock.flush();
    const second = lead('other', other);
    await clock.advance(20_000);
    expect([one.isLeader, other.isLeader, log]).toEqual([true, false, ['one begins']]);
    expect(inspect(one)).toContain("{ name: 'scheduler', isLeader: true }");
    await one.resign();
    expect([await first, one.isLeader]).toEqual(['one', false]);
    // If the store reports changes, it happens at once.
    await clock.advance(20);
    expect([other.isLeader, log]).toEqual([true, ['one begins', 'one ends', 'other begins']]);
    await other.resign();
    expect([await second, clock.pendingTimers]).toEqual(['other', 0]);
  });

  it('runs for election again after it has lost its term, and then leads with a greater fence', async () => {
    const { clock, candidate, cut, setDown } = bench();
    const fences: number[] = [];
    const one = candidate(cut);
    const running = one.run(async ({ signal, fence }) => {
      fences.push(fence);
      await untilAborted(signal);
    });
    await clock.advance(100);
    setDown(true);
    await clock.advance(10_000);
    expect(one.isLeader).toBe(false);
    setDown(false);
    await clock.advance(10_000);
    expect([one.isLeader, fences.length, fences[1]! > fences[0]!]).toEqual([true, 2, true]);
    await one.resign();
    await running;
  });

  it('leads no more once its term is lost, even while its function still runs, and has resigned only when that has ended', async () => {
    const { clock, candidate, inner, cut, setDown } = bench();
    const one = candidate(cut);
    let end = () => {};
    const running = one.run(() => new Promise<void>((resolve) => (end = resolve)));
    running.catch(() => {});
    await clock.advance(100);
    setDown(true);
    await clock.advance(4_000);
    setDown(false);
    expect(one.isLeader).toBe(false);
    // Others lead in the meantime.
    expect(await candidate(inner).run(() => 'next')).toBe('next');
    let hasResigned = false;
    const resigning = one.resign().then(() => {
      hasResigned = true;
    });
    await clock.advance(100);
    expect(hasResigned).toBe(false);
    end();
    await resigning;
    await expect(running).rejects.toMatchObject({ code: 'ERR_LOCK_LOST' });
  });

  it('learns at once that its store is closed while it waits, and after its function has ended while it leads', async () => {
    const { clock, candidate, inner } = bench();
    const [one, other] = [candidate(), candidate()];
    const leading = expect(one.run(({ signal }) => untilAborted(signal))).rejects.toMatchObject({ reason: 'closed' });
    await clock.advance(100);
    const standing = expect(other.run(() => 1)).rejects.toMatchObject({ code: 'ERR_STORE', reason: 'closed' });
    await clock.advance(100);
    await inner.close();
    await clock.advance(10);
    await standing;
    expect(one.isLeader).toBe(true);
    await clock.advance(6_000);
    await leading;
    expect([one.isLeader, clock.pendingTimers]).toEqual([false, 0]);
  });

  it.each([
    ['timeout', 'no', true],
    ['busy', 'no', true],
    ['failed', 'no', true],
    ['closed', 'unknown', true],
    ['closed', 'no', false],
    ['invalid', 'no', false],
    ['schema', 'no', false],
  ] as const)(
    'stands on through what time may mend: a store that fails with %s (%s)',
    async (reason, applied, isPassing) => {
      const { clock, candidate, inner } = bench();
      const error = new StoreError({ store: 'test', operation: 'write', reason, applied, detail: 'down' });
      let isDown = true;
      let writes = 0;
      const store: Store = {
        read: (key) => inner.read(key),
        remove: (key, options) => inner.remove(key, options),
        write(key, value, options) {
          if (isDown) writes++;
          return isDown ? Promise.reject(error) : inner.write(key, value, options);
        },
      };
      const running = candidate(store).run(() => 'led');
      if (!isPassing) return expect(running).rejects.toBe(error);
      await clock.advance(2_999);
      // Candidates ask about once per second, and not all at the same instant.
      expect(writes).toBe(3);
      isDown = false;
      await clock.advance(1);
      expect([await running, clock.now()]).toEqual(['led', 3_000]);
    },
  );

  it('tries an unreachable store again after 0.75 to 1.25 s, and not at all once it is told to stop', async () => {
    for (const [drawn, times] of [
      [0, [0, 750, 1_500, 2_250]],
      [0.999, [0, 1_249.5, 2_499]],
    ] as const) {
      const clock = virtualClock();
      const seen: number[] = [];
      const error = new StoreError({ store: 'x', operation: 'write', reason: 'failed', applied: 'no', detail: 'away' });
      const store: Store = {
        read: async () => undefined,
        remove: async () => false,
        async write() {
          seen.push(clock.now());
          throw error;
        },
      };
      const controller = new AbortController();
      const one = leader({ store, name: 'x', clock, random: () => drawn });
      const ended = expect(one.run(() => 1, { signal: controller.signal })).rejects.toBe('stop');
      await clock.advance(2_600);
      controller.abort('stop');
      await ended;
      expect([seen, clock.pendingTimers]).toEqual([times, 0]);
    }
  });

  it('goes on waiting when the longest possible wait has ended', async () => {
    const clock = virtualClock();
    let writes = 0;
    const hung = () => new Promise<never>(() => {});
    const store: Store = {
      read: hung,
      remove: hung,
      write() {
        writes++;
        return hung();
      },
    };
    const controller = new AbortController();
    const running = leader({ store, name: 'x', clock }).run(() => 1, { signal: controller.signal });
    const ended = expect(running).rejects.toBe('stop');
    await clock.advance(longestWaitMs + 2_000);
    expect(writes).toBeLessThanOrEqual(2);
    controller.abort('stop');
    await ended;
  });

  it('rejects with an error that is not a failure of the store', async () => {
    const broken = new Error('broken');
    const fail = () => Promise.reject(broken);
    const store: Store = { read: fail, write: fail, remove: fail };
    await expect(leader({ store, name: 'x' }).run(() => 1)).rejects.toBe(broken);
  });

  it('runs for election again at once when its term was taken away', async () => {
    const { clock, inner, candidate } = bench();
    const began: number[] = [];
    const running = candidate().run(async ({ lease, fence }) => {
      began.push(clock.now());
      if (began.length > 1) return fence;
      await inner.remove('leader:scheduler');
      await lease.extend().catch(() => {});
      return 0;
    });
    await clock.advance(10);
    expect([(await running) > 0, began.length]).toEqual([true, 2]);
  });

  it('forgets terms and candidacies that have ended', async () => {
    const { clock, candidate } = bench();
    const one = candidate();
    const { terms, candidacies } = one as unknown as Readonly<Record<'terms' | 'candidacies', ReadonlySet<unknown>>>;
    await one.run(() => expect([terms.size, candidacies.size]).toEqual([1, 1]));
    await expect(one.run(() => Promise.reject(new Error('mine')))).rejects.toThrow('mine');
    await clock.flush();
    expect([terms.size, candidacies.size]).toEqual([0, 0]);
  });

  it('settles as its function does', async () => {
    const { candidate } = bench();
    expect(await candidate().run(() => 5)).toBe(5);
    await expect(candidate().run(() => Promise.reject(new Error('mine')))).rejects.toThrow('mine');
    for (const reason of ['no', null]) {
      await expect(candidate().run(() => 5, { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
    }
  });

  it('rejects with the loss of another lock, or of too short a lease, that its function throws, and does not run it again', async () => {
    const { inner, candidate } = bench();
    const locks = mutex({ store: inner });
    const stopped = new AbortController();
    let terms = 0;
    const once = (work: (context: LockContext) => unknown) =>
      candidate().run(
        (context) => {
          if (++terms > 1) stopped.abort();
          return work(context);
        },
        { signal: stopped.signal },
      );
    await expect(once(() => locks.run('job', () => locks.forceRelease('job')))).rejects.toMatchObject({ key: 'job' });
    expect(terms).toBe(1);
    terms = 0;
    await expect(once(({ lease }) => lease.assertHeld(60_000))).rejects.toMatchObject({ reason: 'short' });
    expect(terms).toBe(1);
  });

  it('runs for election again when its function finds the lease, which could not be renewed, too short for the next step', async () => {
    const { clock, candidate, cut, setDown } = bench();
    const fences: number[] = [];
    const running = candidate(cut).run(async ({ lease, fence }) => {
      fences.push(fence);
      if (fences.length > 1) return 'led again';
      setDown(true);
      for (;;) {
        await clock.sleep(50);
        lease.assertHeld(100);
      }
    });
    await clock.advance(5_000);
    expect(fences).toHaveLength(1);
    setDown(false);
    await clock.advance(5_000);
    expect(await running).toBe('led again');
    expect(fences[1]).toBeGreaterThan(fences[0]!);
  });

  it('gives up a candidacy that has not been elected', async () => {
    const { clock, candidate } = bench();
    const one = candidate();
    const term = one.run(({ signal }) => untilAborted(signal));
    await clock.flush();
    const other = candidate();
    const waiting = expect(other.run(() => 1)).rejects.toMatchObject({ name: 'AbortError' });
    await clock.advance(100);
    await other.resign();
    await waiting;
    await one.resign();
    await term;
  });

  it('yields the leader, and each change', async () => {
    const { clock, candidate } = bench();
    const one = candidate();
    const seen: (string | undefined)[] = [];
    const controller = new AbortController();
    const watching = (async () => {
      for await (const { owner } of candidate().observe({ signal: controller.signal })) seen.push(owner);
    })();
    await clock.advance(2_000);
    const term = one.run(({ signal }) => untilAborted(signal));
    await clock.advance(2_000);
    await one.resign();
    await term;
    await clock.advance(2_000);
    controller.abort();
    await watching;
    expect([seen.length, seen[0], seen[2], clock.pendingTimers]).toEqual([3, undefined, undefined, 0]);
  });

  it('observes until the loop is left, or the signal aborts inside it', async () => {
    const { clock, candidate } = bench();
    let seen = 0;
    const looking = (async () => {
      for await (const { queueLength } of candidate().observe()) {
        expect(queueLength).toBe(0);
        if (++seen === 2) break;
      }
    })();
    await clock.advance(1_500);
    const term = candidate();
    const leading = term.run(({ signal }) => untilAborted(signal));
    await clock.advance(1_000);
    await looking;
    await term.resign();
    await leading;
    const controller = new AbortController();
    for await (const _ of candidate().observe({ signal: controller.signal })) controller.abort();
    expect([seen, clock.pendingTimers]).toEqual([2, 0]);
  });

  it('observes through a time in which the store is unreachable, and until it is closed', async () => {
    const { clock, candidate, inner, cut, setDown } = bench();
    const seen: (string | undefined)[] = [];
    const watching = (async () => {
      for await (const { owner } of candidate(cut).observe()) seen.push(owner);
    })();
    const ended = expect(watching).rejects.toMatchObject({ code: 'ERR_STORE', reason: 'closed' });
    await clock.flush();
    setDown(true);
    const one = candidate();
    const term = one.run(({ signal }) => untilAborted(signal));
    await clock.advance(5_000);
    expect(seen).toEqual([undefined]);
    setDown(false);
    await clock.advance(2_000);
    expect(seen).toEqual([undefined, expect.any(String)]);
    await one.resign();
    await term;
    await inner.close();
    await clock.advance(2_000);
    await ended;
    expect(clock.pendingTimers).toBe(0);
  });

  it('refuses a candidacy without a function', async () => {
    const { candidate } = bench();
    await expect(candidate().run(undefined as never)).rejects.toMatchObject({ code: 'ERR_OPTIONS', option: 'fn' });
  });

  it('refuses invalid options', () => {
    expect(() => leader({} as never)).toThrow('option "name" is required');
    expect(() => leader({ name: 'x', wait: 5 } as never)).toThrow('unknown option "wait"');
  });
});

describe('mutex with the context in use', () => {
  it('refuses to wait for a lock of its own call, and lets others wait', async () => {
    enableContext();
    for (const options of [{}, { store: memoryStore() }]) {
      const locks = mutex(options);
      const other = mutex(options);
      await locks.run('key', async () => {
        await expect(locks.run('key', () => 1)).rejects.toMatchObject({ reason: 'reentrant' });
        await expect(locks.acquire(['a', 'key'])).rejects.toMatchObject({ reason: 'reentrant', key: 'key' });
        if ('store' in options) await expect(other.acquire('key')).rejects.toMatchObject({ reason: 'reentrant' });
        expect(await locks.run('another', () => 2)).toBe(2);
        const candidate = leader({ ...options, name: 'key' });
        await expect(candidate.run(() => candidate.run(() => 3))).rejects.toMatchObject({
          ...{ reason: 'reentrant', stack: expect.not.stringContaining('\n    at ') },
        });
        const waits = runDetached(() => locks.run('key', () => 3, { wait: 20 }));
        await expect(waits).rejects.toMatchObject({ reason: 'waited' });
      });
      expect(await locks.run('key', () => 4)).toBe(4);
    }
  });

  it('refuses a second permit of a semaphore with one, but not of one with several, nor a lock of another kind or one that is lost', async () => {
    enableContext();
    const store = memoryStore();
    const one = semaphore({ store, permits: 1, wait: 20 });
    await one.run('key', async () => {
      await expect(one.acquire('key')).rejects.toMatchObject({ reason: 'reentrant', key: 'key' });
      await expect(one.tryAcquire('key')).rejects.toMatchObject({ reason: 'reentrant' });
      expect(await mutex({ store }).run('key', () => 1)).toBe(1);
      expect(await semaphore({ store: memoryStore(), permits: 1 }).run('key', () => 2)).toBe(2);
    });
    const several = semaphore({ permits: 2 });
    expect(await several.run('key', () => several.run('key', () => 3))).toBe(3);
    const locks = mutex();
    const outer = locks.run(['key', 'other'], async () => {
      await expect(locks.acquire('other')).rejects.toMatchObject({ reason: 'reentrant', key: 'other' });
      await locks.forceRelease('key');
      await locks.forceRelease('other');
      expect(await locks.run('key', () => 4)).toBe(4);
    });
    await expect(outer).rejects.toMatchObject({ code: 'ERR_LOCK_LOST', outcome: { ok: true } });
  });

  it('finds its own lock also behind other locks and calls', async () => {
    enableContext();
    const [locks, others] = [mutex(), mutex()];
    const inside = pipeline(retry({ attempts: 1 }));
    const result = locks.run('key', () =>
      others.run('key', () => inside.execute(() => locks.tryAcquire('key').catch((error: unknown) => error))),
    );
    expect(await result).toMatchObject({ reason: 'reentrant' });
  });

  it('leaves no listener on the signal of the lease', async () => {
    enableContext();
    const listeners: number[] = [];
    const listenersOf = (signal: AbortSignal) => listeners.push(getEventListeners(signal, 'abort').length);
    const { signal } = await mutex().run('key', ({ lease }) => {
      listenersOf(lease.signal);
      return lease;
    });
    listenersOf(signal);
    expect(listeners).toEqual([1, 0]);
  });

  it('ends the calls under the lock when it is lost, and passes them what the surrounding call has', async () => {
    enableContext();
    const locks = mutex();
    const outside = pipeline(deadline('1h'));
    const work = outside.execute(
      (call) =>
        locks.run('key', async ({ lease }) => {
          expect(currentCall()!.attributes.tenant).toBe('blue');
          expect(currentDeadline()).toBe(call.deadline);
          const inner = pipeline(timeout('1h')).execute(({ signal }) => untilAborted(signal).then(() => signal.reason));
          await locks.forceRelease('key');
          expect([lease.held(), await inner.catch((error: unknown) => error)]).toMatchObject([
            false,
            { code: 'ERR_LOCK_LOST' },
          ]);
        }),
      { attributes: { tenant: 'blue' } },
    );
    await expect(work).rejects.toMatchObject({ code: 'ERR_LOCK_LOST', outcome: { ok: true } });
    await locks.run('key', () => expect(currentCall()!.attributes.tenant).toBe(undefined));
  });
});
