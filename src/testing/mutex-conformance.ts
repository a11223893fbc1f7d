/**
 * Mutex conformance: the promises of locks, as cases for any test runner, over any store.
 *
 * Promise: each case opens its own stores under its own prefix, and its error says which promise is broken and how. A store that gives one key to two owners,
 * loses a claim early, or forgets a version fails a case.
 */
import type { Lease } from '../coordination/mutex/lease-handle.js';
import type { Mutex } from '../coordination/mutex/mutex.js';
import { type Clock, systemClock } from '../core/clock.js';
import { LockLostError, LockUnavailableError, StoreError } from '../core/errors.js';
import { checkOptions, func, having, integer, number, optional, withDefault } from '../core/options.js';
import type { Store } from '../stores/store.js';
import { checkLinearizability, History, type LockOperation, type LockResult, lockModel } from './history/index.js';
import { Bench, longTtlMs, patienceMs, ttlMs } from './mutex-bench.js';
import { type ConformanceSettings, runAndClose } from './store-bench.js';
import type { ConformanceCase } from './store-conformance.js';

/** Options of {@link mutexConformance}. */
export interface MutexConformanceOptions {
  /**
   * Opens a store. All stores of one case have one prefix and are clients of the same entries; for a store without a second client, return
   * the same store for the same prefix. Stores that have `close` are closed when the case ends.
   */
  readonly make: (settings: ConformanceSettings) => Store | Promise<Store>;
  /** The clock of the locks, if the store's is virtual. Default `systemClock`. */
  readonly clock?: Clock | undefined;
  /** Lets this much time pass by the store's clock, for stores on a virtual clock. By default the cases wait in real time. */
  readonly pass?: ((ms: number) => Promise<void>) | undefined;
  /** Stops the server and starts it again. Adds a case about restarts. */
  readonly restart?: (() => Promise<void>) | undefined;
  /** How late a lease may expire, in milliseconds, from 0 to 10 000. Default 250, for busy machines. */
  readonly toleranceMs?: number | undefined;
  /** Contenders in the largest case, from 2 to 1000. Default 10. */
  readonly contenders?: number | undefined;
  /** Sections that each of them runs, from 1 to 10 000. Default 10. */
  readonly sections?: number | undefined;
}

/**
 * The promises of locks as a list of cases, to run over your own store. `law` is the number of the case in `docs/mutex.md`.
 *
 * @throws `OptionsError` for an unknown option or a bad value.
 * @example
 * ```ts
 * import { memoryStore, type Store } from 'holdfast';
 * import { mutexConformance, virtualClock } from 'holdfast/testing';
 *
 * const clock = virtualClock();
 * const stores = new Map<string, Store>();
 * const cases = mutexConformance({
 *   make({ prefix }) {
 *     const store = stores.get(prefix) ?? memoryStore({ clock });
 *     stores.set(prefix, store);
 *     return store;
 *   },
 *   clock,
 *   pass: (ms) => clock.advance(ms),
 * });
 * for (const { run } of cases) await run(); // or, with a test runner: it(name, run)
 * ```
 */
export function mutexConformance(options: MutexConformanceOptions): ConformanceCase[] {
  const checked = checkOptions('mutexConformance', options, {
    make: func<MutexConformanceOptions['make']>(),
    clock: withDefault(having<Clock>('a clock such as systemClock', 'now', 'schedule'), systemClock),
    pass: optional(func<(ms: number) => Promise<void>>()),
    restart: optional(func<() => Promise<void>>()),
    toleranceMs: withDefault(number({ min: 0, max: 10_000 }), 250),
    contenders: withDefault(integer({ min: 2, max: 1000 }), 10),
    sections: withDefault(integer({ min: 1, max: 10_000 }), 10),
  });
  const { restart } = checked;
  const all = restart === undefined ? cases : [...cases, restartCase(restart)];
  return all.map(([law, name, body]) => ({
    law,
    name: `case ${law}: ${name}`,
    // Leases expire in real time: other cases could keep the event loop from renewing them.
    alone: true,
    async run() {
      const bench = new Bench(law, checked);
      await runAndClose(bench, () => body(bench));
    },
  }));
}

type Case = readonly [law: number, name: string, body: (bench: Bench) => Promise<void>];

/** Several times this is still less than the shortest time after which remains expire by themselves. */
const soonMs = 250;
/** On a machine that stands still, a sound store may come too late. Cases that depend on time get this many tries. */
const tries = 3;
/** The lease of the first, second and third try: a renewed lease outlives a longer standstill each time. */
const leaseOf = (count: number) => ttlMs * 3 ** count;
/** The shortest poll interval of a waiter that gets no hints. */
const askAgainMs = 25;
const handOvers = 11;

const cases: readonly Case[] = [
  [1, 'one holds it, others are told, and it is free afterwards', basics],
  [2, 'contenders of several processes never overlap and lose no update', exclusive],
  [3, 'fences grow across release, expiry and force-release', fencesGrow],
  [4, 'a grant whose reply was lost is known again, or taken back', lostGrant],
  [5, 'a stale owner neither frees nor renews what is somebody else’s', staleOwner],
  [6, 'the lock of an owner that is gone is free when its lease is over, not before', expiry],
  [7, 'what remains is never more than the store will keep', remaining],
  [8, 'it is renewed for more than five leases', renewal],
  [9, 'a lock that is lost stays lost', lostStaysLost],
  [10, 'who is aborted while waiting leaves nothing behind', (bench) => leavesNothing(bench, 'abort')],
  [11, 'who has waited too long leaves nothing behind', (bench) => leavesNothing(bench, 'timeout')],
  [12, 'those of one process are served in the order in which they came', order],
  [12, 'those of several processes are served in the order in which they came, where the store has a line', fairOrder],
  [13, 'a lock is handed over in less time than it takes to ask again, where the store tells', handOver],
  [14, 'a waiter that is never told of changes gets it all the same', missedNotices],
  [17, 'an owner that is cut off is told before anybody else gets in', cutOff],
  [20, 'a release whose reply was lost is made sure of', lostRelease],
  [23, 'an owner whose record is gone is told at its next renewal', dataLoss],
  [24, 'clocks of clients that differ by an hour change nothing', skewedClocks],
  [25, 'a renewal that races a release brings nothing back', releaseRace],
  [26, 'a semaphore holds its bound', semaphoreBound],
  [27, 'readers share, a writer is alone, and does not starve', readersAndWriters],
  [28, 'of several keys all are held or none', severalKeys],
  [29, 'any name is a name of its own', oddNames],
  [31, 'the history of concurrent clients is that of a fenced lock', history],
];

async function basics(bench: Bench): Promise<void> {
  const [one, other] = [await bench.locks(), await bench.locks()];
  const lease = await bench.settled(one.acquire('key'));
  bench.claim(lease.held() && lease.state === 'held', () => `a lease that was just given is ${lease.state}`);
  bench.claim((await bench.settled(other.tryAcquire('key'))) === null, () => 'a lock that is held was given again');
  const seen = await bench.settled(other.inspect('key'));
  bench.claim(
    seen.owner === lease.owner && seen.fence === lease.fence,
    () => `inspect tells ${seen.owner} with fence ${seen.fence}, it is ${lease.owner} with ${lease.fence}`,
  );
  const error = await bench.errorOf(other.acquire('key', { wait: 20 }));
  bench.claim(error instanceof LockUnavailableError, () => `a wait that is over ends with ${error}`);
  const released = await bench.settled(lease.release());
  bench.claim(released === 'released', () => `giving it back answers '${released}'`);
  const next = await soon(bench, other);
  bench.claim(next !== undefined, () => 'a lock that was given back is not free');
  await bench.settled(next.release());
}

/** Takes a lock that is free now or will be in an instant: a waiter that has just given up may have to pass it on first. */
async function soon(bench: Bench, locks: Mutex): Promise<Lease | undefined> {
  for (let count = 0; count < tries; count++) {
    const lease = await bench.settled(locks.acquire('key', { wait: soonMs }).catch(() => undefined));
    if (lease !== undefined) return lease;
  }
  return undefined;
}

async function exclusive(bench: Bench): Promise<void> {
  let inside = 0;
  let counter = 0;
  const work = async () => {
    const locks = await bench.locks();
    for (let section = 0; section < bench.sections; section++) {
      await locks.run('key', async () => {
        bench.claim(++inside === 1, () => `${inside} are inside at once`);
        const seen = counter;
        await Promise.resolve();
        counter = seen + 1;
        inside--;
      });
    }
  };
  await bench.settled(Promise.all(Array.from({ length: bench.contenders }, work)));
  const expected = bench.contenders * bench.sections;
  bench.claim(counter === expected, () => `${expected - counter} of ${expected} updates are lost`);
}

async function fencesGrow(bench: Bench): Promise<void> {
  const [one, other] = [await bench.locks(), await bench.locks()];
  const dead = await bench.unsteady();
  const fences: number[] = [];
  const take = async (locks: Mutex) => {
    const lease = await bench.settled(locks.acquire('key'));
    fences.push(lease.fence);
    return lease;
  };
  await bench.settled((await take(one)).release());
  await bench.settled((await take(other)).release());
  await take(await bench.briefLocks(dead));
  dead.fate = 'hung';
  await take(one);
  await bench.settled(other.forceRelease('key'));
  await bench.settled((await take(other)).release());
  const grow = fences.every((fence, index) => Number.isSafeInteger(fence) && fence > (fences[index - 1] ?? 0));
  bench.claim(grow, () => `the fences are ${fences.join(', ')}`);
}

async function lostGrant(bench: Bench): Promise<void> {
  const store = await bench.unsteady();
  const [one, other] = [await bench.locks(store), await bench.locks()];
  store.fate = 'lost-reply';
  const error = await bench.errorOf(one.acquire('key'));
  bench.claim(error instanceof StoreError, () => `a store that does not answer ends the call with ${error}`);
  store.fate = 'ok';
  const startMs = bench.now();
  const lease = await bench.settled(other.acquire('key'));
  const passedMs = bench.now() - startMs;
  bench.claim(passedMs < longTtlMs / 2, () => `others waited ${passedMs} ms for a grant nobody has`);
  await bench.settled(lease.release());
}

async function staleOwner(bench: Bench): Promise<void> {
  const [one, other] = [await bench.locks(), await bench.locks()];
  const stale = await bench.settled(one.acquire('key'));
  await bench.settled(other.forceRelease('key'));
  const next = await bench.settled(other.acquire('key'));
  const error = await bench.errorOf(stale.extend());
  bench.claim(error instanceof LockLostError, () => `extending what is somebody else’s ends with ${error}`);
  const released = await bench.settled(stale.release());
  bench.claim(released === 'lost', () => `a stale release answers '${released}'`);
  const seen = await bench.settled(one.inspect('key'));
  bench.claim(seen.owner === next.owner, () => `after a stale release the owner is ${seen.owner}`);
  await bench.settled(next.release());
}

async function expiry(bench: Bench): Promise<void> {
  let lateMs = Number.POSITIVE_INFINITY;
  for (let count = 0; count < tries && lateMs > 250 + bench.toleranceMs; count++) {
    const store = await bench.unsteady();
    const beforeMs = bench.now();
    await bench.settled((await bench.briefLocks(store)).acquire('key'));
    const afterMs = bench.now();
    store.fate = 'hung';
    const next = await bench.settled((await bench.locks()).acquire('key'));
    const passedMs = bench.now() - beforeMs;
    // A store may count in whole milliseconds.
    bench.claim(passedMs >= ttlMs - 1, () => `a lease of ${ttlMs} ms was over after ${passedMs} ms`);
    lateMs = bench.now() - afterMs - ttlMs;
    await bench.settled(next.release());
  }
  const late = `a lease was given to the next ${lateMs} ms after its end`;
  bench.claim(lateMs <= 250 + bench.toleranceMs, () => `${tries} times in a row ${late}`);
}

async function remaining(bench: Bench): Promise<void> {
  const [one, other] = [await bench.locks(), await bench.locks()];
  const lease = await bench.settled(one.acquire('key'));
  for (let look = 0; look < 5; look++) {
    const own = lease.remaining();
    const { remainingMs } = await bench.settled(other.inspect('key'));
    // The store was asked later, so it may show less, by that time. If there is more left than before, the lease was renewed in between, and nothing can be
    // concluded.
    const left = lease.remaining();
    bench.claim(
      left <= remainingMs || left > own,
      () => `the owner counts on ${left} ms, the store keeps it for ${remainingMs} ms`,
    );
    bench.claim(own > 0, () => 'nothing remains of a lease that is held');
    await bench.pass(100);
  }
  await bench.settled(lease.release());
}

async function renewal(bench: Bench): Promise<void> {
  const other = await bench.locks();
  let lostAfterMs: number | undefined;
  // If the machine stands still, a lease rightly expires. But a lease that is not renewed expires in every try.
  for (let count = 0; count < tries; count++) {
    const leaseMs = leaseOf(count);
    const lease = await bench.settled((await bench.locks(undefined, { ttl: leaseMs })).acquire('key'));
    lostAfterMs = await lossOf(bench, lease, leaseMs, other);
    await bench.settled(lease.release());
    if (lostAfterMs === undefined) return;
  }
  bench.claim(false, () => `a healthy lease expires ${tries} times, at last after ${lostAfterMs} ms`);
}

/** After how long a lease that should be renewed for five times its length has expired; undefined: it is held. */
async function lossOf(bench: Bench, lease: Lease, leaseMs: number, other: Mutex): Promise<number | undefined> {
  let reason: unknown;
  lease.signal.addEventListener('abort', () => {
    reason = (lease.signal.reason as LockLostError).reason;
  });
  for (let passedMs = 0; passedMs < 5.5 * leaseMs; passedMs += leaseMs / 2) {
    await bench.pass(leaseMs / 2);
    const second = await bench.settled(other.tryAcquire('key'));
    if (second !== null) await bench.settled(second.release());
    const isHeld = lease.held();
    bench.claim(reason !== 'taken', () => `a healthy lease is taken after ${passedMs} ms`);
    bench.claim(!isHeld || second === null, () => 'a lock that is renewed was given again');
    if (!isHeld) return passedMs;
  }
  return undefined;
}

async function lostStaysLost(bench: Bench): Promise<void> {
  const store = await bench.unsteady();
  const lease = await bench.settled((await bench.briefLocks(store)).acquire('key'));
  store.fate = 'hung';
  await bench.pass(ttlMs);
  bench.claim(!lease.held() && lease.signal.aborted, () => `a lease that is over is ${lease.state}`);
  store.fate = 'ok';
  await bench.pass(ttlMs);
  const error = await bench.errorOf(lease.extend());
  bench.claim(error instanceof LockLostError && !lease.held(), () => 'a lease that was lost is held again');
}

async function leavesNothing(bench: Bench, how: 'abort' | 'timeout'): Promise<void> {
  const store = await bench.unsteady();
  const [one, other] = [await bench.locks(), await bench.locks(store)];
  const lease = await bench.settled(one.acquire('key'));
  const controller = new AbortController();
  const waiting = other.acquire('key', how === 'abort' ? { signal: controller.signal } : { wait: 50 });
  waiting.catch(() => {});
  await bench.pass(50);
  controller.abort('enough');
  const error = await bench.errorOf(waiting);
  const isExpected = how === 'abort' ? error === 'enough' : error instanceof LockUnavailableError;
  bench.claim(isExpected, () => `the wait ended with ${error}`);
  await bench.settled(lease.release());
  const after = await soon(bench, one);
  bench.claim(after !== undefined, () => 'who gave up waiting holds the lock');
  const { calls } = store;
  await bench.pass(ttlMs / 2);
  bench.claim(store.calls === calls, () => 'who gave up waiting still asks the store');
  await bench.settled(after.release());
}

async function order(bench: Bench): Promise<void> {
  const locks = await bench.locks();
  const lease = await bench.settled(locks.acquire('key'));
  const served: number[] = [];
  const waiting = Array.from({ length: 10 }, (_, index) => locks.run('key', () => void served.push(index)));
  await bench.settled(lease.release());
  await bench.settled(Promise.all(waiting));
  bench.claim(
    served.every((who, index) => who === index),
    () => `they were served in the order ${served.join(', ')}`,
  );
}

/** Waits until this many callers wait, according to the store. */
async function waitersOf(bench: Bench, locks: Mutex, waiters: number): Promise<void> {
  const endsAtMs = bench.now() + patienceMs;
  while ((await bench.settled(locks.inspect('key'))).queueLength < waiters) {
    bench.claim(bench.now() < endsAtMs, () => `there are no ${waiters} waiters in the line`);
    await bench.pass(2);
  }
}

async function fairOrder(bench: Bench): Promise<void> {
  const store = await bench.store();
  if (store.native?.queue === undefined) return;
  const observer = await bench.locks(store);
  for (const fair of [false, true]) {
    const lease = await bench.settled(observer.acquire('key'));
    const processes = await Promise.all([1, 2, 3, 4, 5].map(() => bench.locks(undefined, { fair })));
    const served: number[] = [];
    const waiting: Promise<unknown>[] = [];
    // The callers of one process share a place, unless the lock is fair.
    for (let who = 0; who < (fair ? 10 : 5); who++) {
      waiting.push(processes[who % 5]!.run('key', () => void served.push(who)));
      await waitersOf(bench, observer, who + 1);
    }
    await bench.settled(lease.release());
    await bench.settled(Promise.all(waiting));
    bench.claim(
      served.every((who, index) => who === index),
      () => `${fair ? 'fair: ' : ''}they were served in the order ${served.join(', ')}`,
    );
  }
}

async function handOver(bench: Bench): Promise<void> {
  const store = await bench.store();
  if (store.native?.watch === undefined) return;
  const [one, other, third] = [await bench.locks(store), await bench.locks(), await bench.locks()];
  let sooner = 0;
  for (let round = 0; round < handOvers; round++) {
    const lease = await bench.settled(one.acquire('key'));
    const waiting = other.acquire('key');
    await bench.pass(30);
    await bench.settled(lease.release());
    // On a busy machine, this takes as much longer as the hand-over does.
    const asking = bench.later(askAgainMs).then(() => third.acquire('another key'));
    const isSooner = Promise.race([waiting.then(() => true), asking.then(() => false)]);
    if (await bench.settled(isSooner)) sooner++;
    await bench.settled((await bench.settled(waiting)).release());
    await bench.settled((await bench.settled(asking)).release());
  }
  const told = `of ${handOvers} hand-overs ${sooner} came before who asked after ${askAgainMs} ms would have had it`;
  bench.claim(sooner > handOvers / 2, () => told);
}

async function missedNotices(bench: Bench): Promise<void> {
  const deaf = await bench.unsteady();
  const silent = { ready: Promise.resolve(), close() {} };
  const { queue } = deaf.native ?? {};
  const store: Store = {
    ...{ read: deaf.read, write: deaf.write, remove: deaf.remove },
    native: {
      watch: () => silent,
      ...(queue && {
        queue: { ...queue, enter: (key, ticket, value, { onTurn, ...rest }) => queue.enter(key, ticket, value, rest) },
      }),
    },
  };
  // The waiter asks again when the lease would expire.
  const [one, other] = [await bench.briefLocks(), await bench.locks(store)];
  const lease = await bench.settled(one.acquire('key'));
  const waiting = other.acquire('key');
  await bench.pass(50);
  await bench.settled(lease.release());
  const next = await bench.settled(waiting);
  bench.claim(next.held(), () => 'the waiter did not get it');
  await bench.settled(next.release());
}

async function cutOff(bench: Bench): Promise<void> {
  const store = await bench.unsteady();
  const lease = await bench.settled((await bench.briefLocks(store)).acquire('key'));
  let lostMs: number | undefined;
  lease.signal.addEventListener('abort', () => {
    lostMs = bench.now();
  });
  const waiting = (await bench.locks()).acquire('key').then((next) => ({ next, atMs: bench.now() }));
  store.fate = 'never-arrives';
  const { next, atMs } = await bench.settled(waiting);
  bench.claim(
    lostMs !== undefined && lostMs <= atMs,
    () => `the owner was told at ${lostMs} ms, the next began at ${atMs} ms`,
  );
  await bench.settled(next.release());
}

async function lostRelease(bench: Bench): Promise<void> {
  for (const fate of ['lost-reply', 'never-arrives'] as const) {
    const store = await bench.unsteady();
    const lease = await bench.settled((await bench.locks(store)).acquire(fate));
    store.fate = fate;
    const released = await bench.settled(lease.release());
    bench.claim(released === 'unknown', () => `a release without a reply answers '${released}'`);
    store.fate = 'ok';
    const startMs = bench.now();
    const next = await bench.settled((await bench.locks()).acquire(fate));
    const passedMs = bench.now() - startMs;
    bench.claim(passedMs < longTtlMs / 2, () => `others waited ${passedMs} ms for what nobody holds`);
    await bench.settled(next.release());
  }
}

async function dataLoss(bench: Bench): Promise<void> {
  const other = await bench.locks();
  let reason: unknown;
  // If the machine stands still, the lease expires before the renewal that would report the loss.
  for (let count = 0; count < tries && reason !== 'taken'; count++) {
    const ttl = leaseOf(count);
    const lease = await bench.settled((await bench.locks(undefined, { ttl })).acquire('key'));
    await bench.settled(other.forceRelease('key'));
    await bench.pass(ttl);
    bench.claim(!lease.held() && lease.signal.aborted, () => `the owner of a record that is gone is ${lease.state}`);
    reason = (lease.signal.reason as LockLostError).reason;
  }
  bench.claim(reason === 'taken', () => 'no renewal told the owner of a record that is gone');
}

async function skewedClocks(bench: Bench): Promise<void> {
  const { clock } = bench;
  const hour = 3_600_000;
  const skewed = (ms: number): Clock => ({
    now: () => clock.now(),
    wallNow: () => clock.wallNow() + ms,
    schedule: (timer, atMs) => clock.schedule(timer, atMs),
    cancel: (timer) => clock.cancel(timer),
  });
  let isKept = false;
  for (let count = 0; !isKept && count < tries; count++) {
    const ttl = leaseOf(count);
    const fast = await bench.locks(undefined, { ttl, clock: skewed(hour) });
    const slow = await bench.locks(undefined, { ttl, clock: skewed(-hour) });
    const first = await bench.settled(fast.acquire('key'));
    const second = await bench.settled(slow.tryAcquire('key'));
    bench.claim(second === null || !first.held(), () => 'a slow clock let a second one in');
    await bench.pass(ttl * 1.5);
    isKept = first.held();
    await bench.settled(first.release());
    if (second !== null) await bench.settled(second.release());
  }
  bench.claim(isKept, () => 'an owner with a fast clock lost a lease that it renews');
  const slow = await bench.locks(undefined, { clock: skewed(-hour) });
  const fast = await bench.locks(undefined, { clock: skewed(hour) });
  const first = await bench.settled(slow.acquire('key'));
  bench.claim((await bench.settled(fast.tryAcquire('key'))) === null, () => 'a fast clock let a second one in');
  await bench.settled(first.release());
}

async function releaseRace(bench: Bench): Promise<void> {
  const [one, other] = [await bench.locks(), await bench.locks()];
  for (let round = 0; round < 20; round++) {
    const lease = await bench.settled(one.acquire('key'));
    const extended = lease.extend().catch(() => {});
    await bench.settled(lease.release());
    await bench.settled(extended);
    const { owner } = await bench.settled(other.inspect('key'));
    bench.claim(owner !== lease.owner, () => 'what was given back is there again');
  }
}

async function semaphoreBound(bench: Bench): Promise<void> {
  const permits = 3;
  let inside = 0;
  let most = 0;
  const work = async () => {
    const slots = await bench.permits(permits);
    for (let section = 0; section < bench.sections; section++) {
      await slots.run('key', async () => {
        most = Math.max(most, ++inside);
        await Promise.resolve();
        inside--;
      });
    }
  };
  await bench.settled(Promise.all(Array.from({ length: Math.min(bench.contenders, 20) }, work)));
  bench.claim(most <= permits, () => `${most} of ${permits} permits were held at once`);
  const slots = await bench.permits(permits);
  const leases: (Lease | null)[] = [];
  for (let count = 0; count < permits; count++) leases.push(await bench.settled(slots.tryAcquire('key')));
  bench.claim(!leases.includes(null), () => 'a permit that was given back is not free');
  bench.claim((await bench.settled(slots.tryAcquire('key'))) === null, () => 'a permit too many was given');
  for (const lease of leases) await bench.settled(lease!.release());
}

async function readersAndWriters(bench: Bench): Promise<void> {
  const locks = () => bench.locks();
  const [one, other, third] = [await locks(), await locks(), await locks()];
  const readers = [await bench.settled(one.read('key')), await bench.settled(other.read('key'))];
  bench.claim((await bench.settled(third.tryAcquire('key'))) === null, () => 'a writer came in among readers');
  const writing = third.write('key');
  await bench.pass(50);
  const error = await bench.errorOf(one.read('key', { wait: 0 }));
  bench.claim(error instanceof LockUnavailableError, () => 'a reader overtook a writer that waits');
  for (const reader of readers) await bench.settled(reader.release());
  const writer = await bench.settled(writing);
  const late = await bench.errorOf(one.read('key', { wait: 0 }));
  bench.claim(late instanceof LockUnavailableError, () => 'a reader came in beside a writer');
  bench.claim(
    readers.every(({ fence }) => fence < writer.fence),
    () => 'a writer has no greater fence than readers before',
  );
  await bench.settled(writer.release());
  await bench.settled((await bench.settled(one.read('key'))).release());
}

async function severalKeys(bench: Bench): Promise<void> {
  const [one, other] = [await bench.locks(), await bench.locks()];
  const lease = await bench.settled(one.acquire('b'));
  const error = await bench.errorOf(other.acquire(['c', 'b', 'a'], { wait: 50 }));
  bench.claim(error instanceof LockUnavailableError, () => `not getting one of several ends with ${error}`);
  for (const key of ['a', 'c']) {
    const { owner } = await bench.settled(one.inspect(key));
    bench.claim(owner === undefined, () => `"${key}" is still held although "b" was not to be had`);
  }
  await bench.settled(lease.release());
  const opposite = (keys: readonly string[], locks: Mutex) => async () => {
    for (let round = 0; round < 5; round++) await locks.run(keys, () => Promise.resolve());
  };
  const rounds = [opposite(['x', 'y'], one), opposite(['y', 'x'], other)].map((run) => run());
  await bench.settled(Promise.all(rounds));
}

async function oddNames(bench: Bench): Promise<void> {
  const locks = await bench.locks();
  const names = [
    ...['__proto__', 'constructor', 'toString', ' ', '*', '{a}', 'a:b', 'a|b', 'a/../b', "'; --", '\0', '\n'],
    ...['\u00e9', 'e\u0301', '\u{1f512}', 'x'.repeat(1024), `${'x'.repeat(1023)}y`],
  ];
  const leases: (Lease | null)[] = [];
  for (const name of names) leases.push(await bench.settled(locks.tryAcquire(name)));
  const missing = names.find((_, index) => leases[index] === null);
  bench.claim(missing === undefined, () => `${JSON.stringify(missing)} is the same as another name`);
  for (const lease of leases) await bench.settled(lease!.release());
  const error = await bench.errorOf(locks.acquire(''));
  bench.claim((error as { code?: unknown } | undefined)?.code === 'ERR_OPTIONS', () => 'an empty name was taken');
}

async function history(bench: Bench): Promise<void> {
  const log = new History<LockOperation, LockResult>();
  const client = async (name: string) => {
    const locks = await bench.locks();
    for (let round = 0; round < 10; round++) {
      const acquire = log.invoke({ client: name, key: 'key', operation: { type: 'acquire' } });
      const lease = await locks.tryAcquire('key');
      acquire.ok(lease?.fence);
      await Promise.resolve();
      if (lease === null) continue;
      const release = log.invoke({ client: name, key: 'key', operation: { type: 'release', fence: lease.fence } });
      release.ok((await lease.release()) === 'released');
    }
  };
  await bench.settled(Promise.all(Array.from({ length: 5 }, (_, index) => client(`client ${index}`))));
  const verdict = checkLinearizability(log, lockModel());
  bench.claim(verdict.verdict === 'linearizable', () => String(verdict));
}

function restartCase(restart: () => Promise<void>): Case {
  return [
    22,
    'after a restart of the store a lock can be had again, with a greater fence',
    async (bench: Bench) => {
      const store = await bench.store();
      const before = await bench.settled((await bench.briefLocks(store)).acquire('key'));
      await restart();
      // If the store has kept the lock, its owner goes on renewing it until this release.
      await bench.settled(before.release());
      const [first, other] = [await bench.locks(), await bench.locks()];
      let lease: Lease | undefined;
      for (let count = 0; lease === undefined && count < 100; count++) {
        lease = await bench.settled(first.acquire('key')).catch(() => undefined);
        if (lease === undefined) await bench.pass(50);
      }
      bench.claim(lease !== undefined, () => 'it cannot be had any more');
      bench.claim(lease.fence > before.fence, () => `the fence was ${before.fence}, and is not greater afterwards`);
      const second = await bench.settled(other.tryAcquire('key'));
      bench.claim(second === null, () => 'two hold it after the restart');
      await bench.settled(lease.release());
    },
  ];
}
