/** Locks over a store that have several holders: those of readers, and semaphores. */
import { type mutex, type Store, semaphore } from 'holdfast';
import { type VirtualClock, virtualClock } from 'holdfast/testing';
import { describe, expect, it } from 'vitest';
import { bench, type Fate, unsteady, until } from './support.ts';

describe('a shared lock with a store', () => {
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
