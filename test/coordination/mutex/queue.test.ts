/** Locks over a store that has a queue and a guard, in virtual time. The queue of a real server has its own tests. */
import { LockUnavailableError, mutex, StoreError, semaphore } from 'holdfast';
import { seededRandom } from 'holdfast/testing';
import { describe, expect, it } from 'vitest';
import type { StoreQueue } from '../../../src/stores/store.js';
import { deferred } from '../../support/deferred.ts';
import { bench, distant, engine, unsteady, until } from './support.ts';

/** A mutation run shortens it. */
const crowdMs = Number(process.env.HOLDFAST_CROWD_MS ?? 3_000);

interface Crowd {
  readonly fair: boolean;
  readonly processes?: number;
  /** The number of callers in each process. */
  readonly callers: number;
  readonly patienceMs: number;
  /** Callers say how long they wait; otherwise they give up by a signal. */
  readonly knows?: boolean;
  /** The longest pause until they come again. */
  readonly restMs?: number;
}

/** Callers who come and go for a while, 1 ms from the store. Nothing may be left of them. */
async function crowd({ fair, processes = 4, callers, patienceMs, knows = false, restMs = 5 }: Crowd) {
  const { clock, state, store } = bench({ queues: true });
  const random = seededRandom(11);
  let isOver = false;
  let sections = 0;
  let calls = 0;
  const section = async () => {
    sections++;
    await clock.sleep(2);
  };
  const patience = () => {
    if (knows) return { wait: patienceMs };
    const controller = new AbortController();
    void clock.sleep(patienceMs).then(() => controller.abort());
    return { signal: controller.signal };
  };
  const comeAndGo = async (locks: ReturnType<typeof mutex>) => {
    await clock.sleep(50 * random());
    while (!isOver) {
      calls++;
      await locks.run('key', section, patience()).catch(() => {});
      await clock.sleep(restMs * random());
    }
  };
  const ends: Promise<void>[] = [];
  for (let process = 0; process < processes; process++) {
    const locks = mutex({ store: distant(store, clock, 1), clock, ttl: '3s', fair, random: () => random() });
    for (let caller = 0; caller < callers; caller++) ends.push(comeAndGo(locks));
  }
  await clock.advance(crowdMs);
  const counted = { sections, calls, requests: state.calls };
  isOver = true;
  await until(clock, Promise.all(ends));
  await clock.advance(patienceMs);
  expect([state.lines.get('mutex:key'), clock.pendingTimers]).toEqual([[], 0]);
  return counted;
}

describe('mutex with a store that has a line', () => {
  it('acquires with one verb and releases with one, and serves readers as it does without a queue', async () => {
    const { state, process } = bench({ queues: true });
    const locks = process();
    await (await locks.acquire('key')).release();
    await (await locks.read('key')).release();
    expect(state.verbs).toEqual(['enter', 'pass', 'write', 'pass']);
  });

  it('hands over from process to process in order of arrival, with growing fences', async () => {
    const { clock, process } = bench({ queues: true });
    const first = await process().acquire('key');
    const waiting = [];
    for (let who = 0; who < 3; who++) {
      waiting.push(process().acquire('key'));
      await clock.flush();
    }
    await clock.advance(100);
    const fences = [first.fence];
    let lease = first;
    for (const next of waiting) {
      await lease.release();
      await clock.flush();
      lease = await next;
      fences.push(lease.fence);
      expect(lease.held()).toBe(true);
    }
    expect(fences).toEqual([...fences].sort((a, b) => a - b));
    expect([clock.now(), new Set(fences).size]).toEqual([100, 4]);
    await lease.release();
    expect(clock.pendingTimers).toBe(0);
  });

  it.each([
    [0, 16],
    [0.5, 12],
    [0.999, 9],
  ])('asks about every five seconds while it is told of its turn, with a draw of %s', async (drawn, looks) => {
    const { clock, state, process } = bench({ queues: true });
    await process({ ttl: '60s' }).acquire('key');
    const controller = new AbortController();
    const waiting = process({ wait: '10m', random: () => drawn }).acquire('key', { signal: controller.signal });
    waiting.catch(() => {});
    await clock.advance(1);
    state.verbs.length = 0;
    await clock.advance(60_000);
    expect(state.verbs.filter((verb) => verb === 'enter').length).toBe(looks);
    controller.abort();
    await clock.flush();
  });

  it('polls often if it is not told of its turn', async () => {
    const { clock, state, process } = bench({ queues: true });
    state.isTold = false;
    const lease = await process({ ttl: '60s' }).acquire('key');
    const waiting = process().acquire('key');
    await clock.advance(10_000);
    state.verbs.length = 0;
    await clock.advance(2_000);
    expect(state.verbs).toEqual(Array.from({ length: 8 }, () => 'enter'));
    await lease.release();
    expect((await until(clock, waiting, 250)).held()).toBe(true);
  });

  it('asks at once when something may have been missed', async () => {
    const { clock, state, process } = bench({ queues: true });
    await process({ ttl: '60s' }).acquire('key');
    const waiting = process().acquire('key', { wait: '1s' });
    waiting.catch(() => {});
    await clock.advance(100);
    const { calls } = state;
    state.lines.get('mutex:key')![0]!.options.onTurn!('gap');
    await clock.flush();
    expect(state.calls).toBe(calls + 1);
  });

  it('asks when the waiter in front has had time to take its turn, and no sooner', async () => {
    for (const [ttl, atMs] of [
      ['60s', 1_003],
      [500, 503],
    ] as const) {
      const { clock, state, process } = bench({ queues: true });
      const lease = await process({ ttl: '60s' }).acquire('key');
      const frozen = process({ ttl: '60s' }).acquire('key');
      await clock.flush();
      const waiting = process({ ttl }).acquire('key');
      await clock.advance(0);
      // It does not hear that the key was handed to it.
      const line = state.lines.get('mutex:key')!;
      line[0] = { ...line[0]!, options: { ...line[0]!.options, onTurn: () => {} } };
      await lease.release();
      await clock.flush();
      state.verbs.length = 0;
      await clock.advance(atMs - 1);
      expect(state.verbs.filter((verb) => verb === 'enter')).toEqual([]);
      await clock.advance(1);
      expect(state.verbs.filter((verb) => verb === 'enter').length).toBeGreaterThan(0);
      if (ttl === '60s') expect((await waiting).held()).toBe(true);
      void frozen;
    }
  });

  it('lets the callers of one process share a place, and passes the lock on among them', async () => {
    const { clock, state, process } = bench({ queues: true });
    const [one, other] = [process(), process()];
    const lease = await one.acquire('key');
    const served: string[] = [];
    const run = (locks: ReturnType<typeof mutex>, who: string) => locks.run('key', () => void served.push(who));
    const all: Promise<unknown>[] = [];
    for (const [locks, who] of [
      [other, 'other 1'],
      [one, 'one 1'],
      [other, 'other 2'],
    ] as const) {
      all.push(run(locks, who));
      await clock.flush();
    }
    expect(state.lines.get('mutex:key')!.length).toBe(1);
    expect(await one.inspect('key')).toMatchObject({ queueLength: 2 });
    expect(await other.inspect('key')).toMatchObject({ queueLength: 2 });
    await clock.advance(30);
    await lease.release();
    await until(clock, Promise.all(all));
    expect(served).toEqual(['other 1', 'other 2', 'one 1']);
  });

  it('joins the queue at once when its slice of time is over', async () => {
    const { clock, process } = bench({ queues: true });
    const locks = process();
    const lease = await locks.acquire('key');
    const waiting = locks.acquire('key');
    await clock.advance(25);
    await lease.release();
    await clock.flush();
    expect([(await waiting).held(), clock.now()]).toEqual([true, 25]);
  });

  it('gives each caller a place of its own, if it is fair, and serves them in order of arrival', async () => {
    const { clock, state, process } = bench({ queues: true });
    const [one, other] = [process({ fair: true }), process({ fair: true })];
    const lease = await one.acquire('key');
    const served: number[] = [];
    const all: Promise<unknown>[] = [];
    for (let who = 0; who < 6; who++) {
      all.push((who % 2 === 0 ? one : other).run('key', () => void served.push(who)));
      await clock.flush();
    }
    expect(state.lines.get('mutex:key')!.length).toBe(6);
    expect(await one.inspect('key')).toMatchObject({ queueLength: 6 });
    await lease.release();
    await until(clock, Promise.all(all), 10);
    expect(served).toEqual([0, 1, 2, 3, 4, 5]);
    expect(clock.pendingTimers).toBe(0);
  });

  it('leaves the queue with each caller that gives up, if it is fair, and with the last of a process, if not', async () => {
    for (const fair of [true, false]) {
      const { clock, state, process } = bench({ queues: true });
      const lease = await process().acquire('key');
      const locks = process({ fair });
      const controllers = [1, 2, 3].map(() => new AbortController());
      const waits = controllers.map(({ signal }) => locks.acquire('key', { signal }));
      const ended = Promise.allSettled(waits);
      await clock.flush();
      const places = [];
      for (const controller of controllers) {
        places.push(state.lines.get('mutex:key')!.length);
        controller.abort();
        await clock.flush();
      }
      expect([...places, state.lines.get('mutex:key')!.length]).toEqual(fair ? [3, 2, 1, 0] : [1, 1, 1, 0]);
      await ended;
      await lease.release();
      expect(clock.pendingTimers).toBe(0);
    }
  });

  it('fails a caller that arrives while the store fails, if it is fair, and none of those that wait already', async () => {
    const { clock, state, process } = bench({ queues: true });
    const lease = await process().acquire('key');
    const locks = process({ fair: true });
    const waiting = locks.acquire('key');
    await clock.advance(100);
    state.fate = () => 'refused';
    await expect(locks.acquire('key')).rejects.toMatchObject({ code: 'ERR_STORE' });
    state.fate = () => 'ok';
    await lease.release();
    expect((await until(clock, waiting, 10)).held()).toBe(true);
  });

  it('forgets the key once the place is given up', async () => {
    const { clock, store, process } = bench({ queues: true });
    await process().acquire('key');
    const { locks, lines } = engine(store, clock);
    const ended = expect(locks.acquire('key', 'exclusive', { wait: 100 })).rejects.toMatchObject({ reason: 'waited' });
    await clock.advance(99);
    expect(lines.size).toBe(1);
    await clock.advance(1);
    await ended;
    await clock.flush();
    expect(lines.size).toBe(0);
  });

  it('takes a thousand callers that leave at once out of the queue with one verb', async () => {
    const { clock, state, process } = bench({ queues: true });
    await process().acquire('key');
    const controller = new AbortController();
    const locks = process({ fair: true });
    const ended = Promise.allSettled(
      Array.from({ length: 2_000 }, () => locks.acquire('key', { signal: controller.signal })),
    );
    await clock.flush();
    expect(state.lines.get('mutex:key')!.length).toBe(2_000);
    state.verbs.length = 0;
    controller.abort();
    await ended;
    await clock.flush();
    expect([state.lines.get('mutex:key')!.length, state.verbs]).toEqual([0, ['leave', 'leave']]);
  });

  it('takes callers that leave over many turns out of the queue with at most four verbs at a time', async () => {
    const { clock, state, process } = bench({ queues: true });
    await process().acquire('key');
    const locks = process({ fair: true });
    const controllers = Array.from({ length: 500 }, () => new AbortController());
    const ended = Promise.allSettled(controllers.map(({ signal }) => locks.acquire('key', { signal })));
    await clock.flush();
    const { promise: answered, resolve: answer } = deferred();
    state.fate = (verb) => (verb === 'leave' ? answered : 'ok');
    state.verbs.length = 0;
    for (const controller of controllers) {
      controller.abort();
      await clock.flush();
    }
    expect(state.verbs).toEqual(['leave', 'leave', 'leave', 'leave']);
    answer();
    await ended;
    await clock.flush();
    expect([state.lines.get('mutex:key'), state.verbs.length]).toEqual([[], 5]);
  });

  it('serves the rest, and leaves nothing behind, while thousands of callers come and go in each turn', async () => {
    for (const fair of [true, false]) {
      const { clock, state, process } = bench({ queues: true });
      const random = seededRandom(7);
      const processes = [process({ fair }), process({ fair })];
      let running = 0;
      let lastFence = 0;
      const served: number[] = [];
      const waiting = new Set<{ readonly abort: () => void }>();
      const ends: Promise<unknown>[] = [];
      const come = (who: number) => {
        const controller = new AbortController();
        const one = { abort: () => controller.abort() };
        waiting.add(one);
        const section = async ({ fence }: { readonly fence: number }) => {
          waiting.delete(one);
          expect([running++, fence > lastFence]).toEqual([0, true]);
          lastFence = fence;
          served.push(who);
          await clock.sleep(1);
          running--;
        };
        const locks = processes[who % 2]!;
        ends.push(locks.run('key', section, { signal: controller.signal }).catch((error) => error));
      };
      for (let who = 0; who < 4_000; who++) {
        come(who);
        if (who % 200 !== 199) continue;
        await clock.advance(1);
        for (const one of waiting) if (random() < 0.5) one.abort();
      }
      const errors = (await until(clock, Promise.all(ends), 20_000)).filter((error) => error !== undefined);
      expect(errors.filter((error) => (error as Error).name !== 'AbortError')).toEqual([]);
      expect(served.length).toBeGreaterThan(100);
      if (fair) expect(served).toEqual([...served].sort((one, other) => one - other));
      expect([state.lines.get('mutex:key'), clock.pendingTimers]).toEqual([[], 0]);
    }
  });

  it('keeps four fifths of its throughput when callers wait hardly longer than a hand-over takes', async () => {
    for (const fair of [true, false]) {
      const { sections: most } = await crowd({ fair, callers: 10, patienceMs: 3_000 });
      for (const [callers, patienceMs] of [
        [10, 5],
        [10, 10],
        [10, 30],
        [30, 30],
      ] as const) {
        for (const knows of [false, true]) {
          const { sections } = await crowd({ fair, callers, patienceMs, knows });
          const which = `${fair ? 'fair, ' : ''}${callers} callers, ${patienceMs} ms${knows ? ', known' : ''}`;
          expect(sections, `${which}: ${sections} of ${most}`).toBeGreaterThan(0.8 * most);
        }
      }
    }
  });

  it('keeps it, without more requests, for callers that are alone in their process and tell how long they wait', async () => {
    for (const fair of [true, false]) {
      const { sections: most } = await crowd({ fair: true, callers: 10, patienceMs: 3_000 });
      for (const [processes, patienceMs] of [
        [40, 30],
        [100, 30],
        [100, 100],
        // A trip takes two milliseconds: the first patience allows more trips than a turn takes, the second fewer.
        [100, 5],
        [100, 3],
      ] as const) {
        const alone = { fair, processes, callers: 1, patienceMs, knows: true, restMs: 100 };
        const { sections, calls, requests } = await crowd(alone);
        const which = `${fair ? 'fair, ' : ''}${processes} processes, ${patienceMs} ms`;
        expect(sections, `${which}: ${sections} of ${most}`).toBeGreaterThan(0.8 * most);
        // A call that gives up enters and leaves. A section enters, takes its turn, and passes the key on.
        const needed = 2 * calls + sections;
        expect(requests, `${which}: ${requests} of ${needed}`).toBeLessThan(1.1 * needed);
      }
    }
  });

  it('has a place for as long as its caller could use a turn, with time to spare if he has it, and none if he could use none', async () => {
    const { clock, state, store, process } = bench({ queues: true });
    const placesOf = () => state.lines.get('mutex:key')!.map(({ options }) => options.placeMs);
    await process({ ttl: '60s' }).acquire('key');
    const locks = mutex({ store: distant(store, clock, 4), clock, ttl: '3s', fair: true });
    const ask = async (wait: number) => {
      locks.acquire('key', { wait }).catch(() => {});
      await clock.advance(8);
    };
    for (let times = 0; times < 20; times++) await ask(1);
    await ask(60_000);
    await ask(1_000);
    await ask(40);
    await ask(20);
    await ask(15);
    const [patient, known, half, hasty] = placesOf();
    expect(placesOf()).toHaveLength(4);
    // Before it leaves, it makes about four trips of eight milliseconds, which are never quite alike.
    expect([patient, half]).toEqual([15_000, 20]);
    expect(hasty).toBeGreaterThan(0);
    expect(hasty).toBeLessThanOrEqual(20 - 2 * 8);
    expect(known).toBeGreaterThan(1_000 - 5 * 8);
    expect(known).toBeLessThan(1_000 - 2 * 8);
    // One answer that took a minute counts as one that took a little longer than usual.
    state.fate = () => clock.sleep(60_000);
    void locks.tryAcquire('key');
    await clock.advance(70_000);
    state.fate = () => 'ok';
    await process({ ttl: '60s' }).acquire('key');
    await ask(1_000);
    expect(placesOf().at(-1)).toBeGreaterThan(1_000 - 6 * 8);
  });

  it('learns how far away its store is, also after more than a thousand answers that took no time', async () => {
    const { clock, state, process } = bench({ queues: true });
    await process({ ttl: '60s' }).acquire('key');
    const locks = process({ fair: true });
    for (let times = 0; times < 1_200; times++) await locks.tryAcquire('key');
    state.fate = () => clock.sleep(8);
    for (let times = 0; times < 30; times++) await until(clock, locks.tryAcquire('key'));
    locks.acquire('key', { wait: 1_000 }).catch(() => {});
    await clock.advance(8);
    expect(state.lines.get('mutex:key')![0]!.options.placeMs).toBeLessThan(1_000 - 2 * 8);
  });

  it('keeps its place for those who come to a process after the one for whom it was asked', async () => {
    const { clock, process } = bench({ queues: true });
    const lease = await process({ ttl: '60s' }).acquire('key');
    const locks = process();
    const first = expect(locks.acquire('key', { wait: 100 })).rejects.toMatchObject({ reason: 'waited' });
    await clock.advance(10);
    const behind = process().acquire('key');
    await clock.advance(10);
    const second = locks.acquire('key');
    await clock.advance(100);
    await first;
    await lease.release();
    const next = await second;
    expect(next.held()).toBe(true);
    await next.release();
    await (await behind).release();
  });

  it.each([
    ['who waits longer than it takes to ask again', true, 30_000],
    ['who stands in no line', false, 2_000],
  ])('asks no more often for %s because of others of his process', async (_, queues, wait) => {
    const { clock, state, process } = bench({ queues, watches: true });
    await process({ ttl: '60s' }).acquire('key');
    const locks = process({ wait });
    locks.acquire('key').catch(() => {});
    await clock.advance(500);
    const { calls } = state;
    locks.acquire('key').catch(() => {});
    await clock.advance(500);
    expect(state.calls).toBe(calls);
  });

  it.each([
    ['before he hears of it', 100.5],
    ['while he asks for all of it', 101.5],
  ])('gives the turn of one who leaves %s to the next of his process', async (_, leavesMs) => {
    for (const fair of [true, false]) {
      const { clock, state, store } = bench({ queues: true });
      const processes = [0, 1].map(() =>
        mutex({ store: distant(store, clock, 1), clock, ttl: '3s', fair, random: () => 0.5 }),
      );
      const [one, other] = processes as [(typeof processes)[0], (typeof processes)[0]];
      const lease = await until(clock, one.acquire('key'));
      const served: string[] = [];
      const controller = new AbortController();
      const leaving = other.acquire('key', { signal: controller.signal });
      const left = expect(leaving).rejects.toMatchObject({ name: 'AbortError' });
      await clock.advance(3);
      const all = [one.run('key', () => void served.push('one'))];
      await clock.advance(3);
      all.push(other.run('key', () => void served.push('other')));
      await clock.advance(100 - clock.now() - 1);
      // The key is handed over at 100 ms, and the caller hears of it at 101 ms.
      const released = lease.release();
      await clock.advance(leavesMs - clock.now());
      controller.abort();
      await left;
      await clock.advance(4);
      expect([served, await released]).toEqual([['other'], 'released']);
      await until(clock, Promise.all(all));
      expect([served, state.lines.get('mutex:key'), clock.pendingTimers]).toEqual([['other', 'one'], [], 0]);
    }
  });

  it('lets no caller wait for more turns than were ahead of it when it came, although turns of others are inherited', async () => {
    const { clock, state, store } = bench({ queues: true });
    const random = seededRandom(5);
    const locksOf = () =>
      mutex({ store: distant(store, clock, 1), clock, ttl: '3s', fair: true, random: () => random() });
    let isOver = false;
    let sections = 0;
    const section = async () => {
      sections++;
      await clock.sleep(2);
    };
    const comeAndGo = async (locks: ReturnType<typeof mutex>) => {
      while (!isOver) {
        const controller = new AbortController();
        void clock.sleep(20 * random()).then(() => controller.abort());
        await locks.run('key', section, { signal: controller.signal }).catch(() => {});
        await clock.sleep(5 * random());
      }
    };
    const crowd = locksOf();
    const ends: Promise<void>[] = Array.from({ length: 20 }, () => comeAndGo(crowd));
    const patient = locksOf();
    const tooMany: number[] = [];
    const ask = async () => {
      for (let ask = 0; ask < 100; ask++) {
        await clock.sleep(20 * random());
        const before = sections;
        const waiting = patient.acquire('key');
        await clock.sleep(1);
        // Besides those in the queue, there are the holder, and the turn that is on its way.
        const most = state.lines.get('mutex:key')!.length + 2;
        const lease = await waiting;
        if (sections - before > most) tooMany.push(sections - before);
        await lease.release();
      }
      isOver = true;
    };
    await until(clock, Promise.all([ask(), ...ends]));
    expect(tooMany).toEqual([]);
    expect(sections).toBeGreaterThan(200);
  });

  it('soon frees a turn that was passed on within the process but whose reply was lost', async () => {
    const { clock, state, store, process } = bench({ queues: true });
    const lease = await process().acquire('key');
    const locks = mutex({ store: distant(store, clock, 1), clock, ttl: '3s', fair: true, random: () => 0.5 });
    const controller = new AbortController();
    const left = expect(locks.acquire('key', { signal: controller.signal })).rejects.toThrow();
    await clock.advance(3);
    const waiting = locks.acquire('key');
    await clock.advance(10);
    state.fate = (verb) => (verb === 'write' ? 'lost' : 'ok');
    await lease.release();
    controller.abort();
    await left;
    const next = await until(clock, waiting, 500);
    expect(state.verbs.filter((verb) => verb === 'write').length).toBe(1);
    await until(clock, next.release());
    await clock.advance(10);
    expect([await process().tryAcquire('key'), state.lines.get('mutex:key')]).not.toContain(null);
  });

  it('takes back a place whose reply was lost, and a turn that was handed to it', async () => {
    const { clock, state, process } = bench({ queues: true });
    const lease = await process().acquire('key');
    state.fate = (verb) => (verb === 'enter' ? 'lost' : 'ok');
    await expect(process().acquire('key')).rejects.toMatchObject({ code: 'ERR_STORE', applied: 'unknown' });
    state.fate = () => 'ok';
    await clock.flush();
    expect(state.lines.get('mutex:key')).toEqual([]);
    await lease.release();
    state.fate = (verb) => (verb === 'enter' ? 'lost' : 'ok');
    await expect(process().tryAcquire('key')).rejects.toBeInstanceOf(StoreError);
    state.fate = () => 'ok';
    await clock.flush();
    expect(await process().tryAcquire('key')).not.toBe(null);
  });

  it('watches for readers, which do not queue, but not for waiters that are told of their turn', async () => {
    const { clock, state, process } = bench({ queues: true, watches: true });
    await process().write('key');
    const writing = process().write('key');
    await clock.advance(10);
    expect(state.watching).toBe(0);
    const reading = process().read('key');
    await clock.advance(10);
    expect(state.watching).toBe(1);
    void [writing, reading];
  });

  it('asks at most two hundred times about an expired record, names the expired version, and makes no claim on it', async () => {
    const { clock, store } = bench({ queues: true });
    const log: unknown[] = [];
    const entry = { value: new TextEncoder().encode('{"holders":[]}'), version: 7, ageMs: 0, ttlMs: 1_000 };
    const answers: unknown[] = [undefined];
    const queue: StoreQueue = {
      ...store.native!.queue!,
      async enter() {
        log.push('enter');
        return {
          ok: false,
          entry: answers.length > 0 ? (answers.shift() as undefined) : entry,
          quietForMs: 0,
          isTold: true,
        };
      },
      async pass(_, options) {
        log.push(options);
        return true;
      },
    };
    const write = async () => {
      throw new Error('nothing is to be written');
    };
    const locks = mutex({ store: { ...store, write, native: { queue } }, clock, ttl: '3s', random: () => 0 });
    const failing = expect(locks.acquire('key')).rejects.toMatchObject({ code: 'ERR_LOCK_UNAVAILABLE' });
    await clock.advance(2_000);
    // Nothing was in the way, and yet it was not granted: somebody else comes first.
    expect(log).toEqual(['enter']);
    await clock.advance(1_002);
    expect(log.slice(0, 3)).toEqual(['enter', 'enter', { ifVersion: 7, quietMs: undefined }]);
    expect(log.filter((one) => one === 'enter').length).toBe(201);
    await clock.advance(30_000);
    await failing;
  });

  it('makes no claim for a caller that does not wait', async () => {
    const { inner, process } = bench({ queues: true });
    await process().read('key');
    expect(await process().tryAcquire('key')).toBe(null);
    expect(new TextDecoder().decode((await inner.read('mutex:key'))!.value)).not.toContain('"claim"');
  });

  it('does not use the queue for a semaphore', async () => {
    const { clock, state, store } = bench({ queues: true });
    const permits = semaphore({ store, clock, permits: 1 });
    await (await permits.acquire('key')).release();
    expect(state.verbs).toEqual(['write', 'remove']);
  });

  it('does not queue for tryAcquire', async () => {
    const { state, process } = bench({ queues: true });
    await process().acquire('key');
    expect([await process().tryAcquire('key'), state.lines.get('mutex:key')]).toEqual([null, []]);
    await expect(process().acquire('key', { wait: 0 })).rejects.toBeInstanceOf(LockUnavailableError);
    expect(state.lines.get('mutex:key')).toEqual([]);
  });

  it('lets a writer from the queue in although readers keep coming', async () => {
    const { clock, process } = bench({ queues: true });
    const reader = await process().read('key');
    const writing = process().write('key');
    await clock.advance(10);
    await expect(process().read('key', { wait: 0 })).rejects.toMatchObject({ reason: 'waited' });
    const late = process().read('key');
    await clock.advance(20_000);
    expect(reader.held()).toBe(true);
    await reader.release();
    await clock.flush();
    const writer = await writing;
    expect(writer.held()).toBe(true);
    await writer.release();
    expect((await until(clock, late, 300)).held()).toBe(true);
  });

  it('lets a writer from the queue in when the reader before it has died', async () => {
    const { clock, inner, process } = bench({ queues: true });
    const dead = unsteady(clock, { inner });
    await mutex({ store: dead.store, clock, ttl: '3s' }).read('key');
    dead.state.fate = () => 'hung';
    const writing = process({ ttl: '60s' }).write('key');
    await clock.advance(2_990);
    expect(await process().tryAcquire('key')).toBe(null);
    expect((await until(clock, writing, 100)).held()).toBe(true);
  });

  it('takes a writer that has given up out of the queue before it asks for readers of its process', async () => {
    const { clock, state, process } = bench({ queues: true });
    const lease = await process().write('key');
    const locks = process();
    const controller = new AbortController();
    const writing = locks.write('key', { signal: controller.signal });
    const ended = Promise.allSettled([writing]);
    await clock.flush();
    const reading = locks.read('key');
    await clock.flush();
    controller.abort();
    await ended;
    await clock.advance(5_000);
    expect(state.lines.get('mutex:key')).toEqual([]);
    expect(state.verbs.filter((verb) => verb === 'leave').length).toBe(1);
    await lease.release();
    const reader = await until(clock, reading, 1_000);
    expect(reader.held()).toBe(true);
    await reader.release();
    expect(clock.pendingTimers).toBe(0);
  });
});

describe("mutex with afterRestart: 'wait'", () => {
  it.each(['write', 'read'] as const)(
    'grants nothing for one lease after the store has started afresh, by %s',
    async (how) => {
      const { clock, state, process } = bench({ queues: true });
      const locks = process({ afterRestart: 'wait', ttl: '3s' });
      const waiting = locks[how]('key');
      await clock.advance(2_999);
      expect(await locks.inspect('key')).toMatchObject({ owner: undefined });
      const lease = await until(clock, waiting, 20);
      expect(lease.held()).toBe(true);
      // A caller in the queue asks when the time is over, and not before.
      if (how === 'write') expect(state.verbs.filter((verb) => verb === 'enter').length).toBe(2);
      else expect(state.verbs).not.toContain('leave');
      await lease.release();
      await (await process()[how]('key')).release();
    },
  );

  it('lets in a caller that comes during that time when it is over, and no later', async () => {
    const { clock, state, process } = bench({ queues: true });
    state.beganMs = clock.now();
    await clock.advance(2_000);
    const lease = await until(clock, process({ afterRestart: 'wait', ttl: '3s' }).acquire('key'), 1_010);
    expect(lease.held()).toBe(true);
  });

  it('answers null, or refuses, at once during that time', async () => {
    const { process } = bench({ queues: true });
    const locks = process({ afterRestart: 'wait' });
    expect(await locks.tryAcquire('key')).toBe(null);
    await expect(locks.read('key', { wait: 0 })).rejects.toMatchObject({ reason: 'waited' });
  });

  it('renews and releases leases that are held during that time, and hands nothing over', async () => {
    const { clock, state, process } = bench({ queues: true });
    const [one, other] = [1, 2].map(() => process({ afterRestart: 'wait', ttl: '3s' }));
    const pending = one!.acquire('key');
    const lease = await until(clock, pending);
    const waiting = other!.acquire('key');
    await clock.flush();
    state.beganMs = clock.now();
    await clock.advance(2_000);
    expect([lease.held(), lease.state]).toEqual([true, 'held']);
    expect(await lease.release()).toBe('released');
    await clock.flush();
    expect(await other!.inspect('key')).toMatchObject({ owner: undefined, queueLength: 1 });
    expect((await until(clock, waiting, 1_010)).held()).toBe(true);
  });

  it('refuses an extension beyond the time for which the guard waits', async () => {
    const { clock, process } = bench({ queues: true });
    const lease = await until(clock, process({ afterRestart: 'wait', ttl: '3s' }).acquire('key'));
    await expect(lease.extend(3_001)).rejects.toThrow('"extend" must be a duration');
    expect(await lease.extend(3_000)).toBeGreaterThan(2_500);
  });
});
