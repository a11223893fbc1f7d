/**
 * Three processes on one store that delays, loses and refuses, with a queue and without. Meanwhile callers come, give up, extend and take locks away by force,
 * and wall clocks jump.
 */
import { HoldfastError } from 'holdfast';
import { seededRandom } from 'holdfast/testing';
import { describe, expect, it } from 'vitest';
import type { Lease, LeaseBase } from '../../../src/coordination/mutex/lease-handle.js';
import type { LockMode } from '../../../src/coordination/mutex/line.js';
import { Locks } from '../../../src/coordination/mutex/locks.js';
import type { Clock } from '../../../src/core/clock.js';
import { type Abilities, bench, distant, type Fate } from './support.ts';

const seeds = Number(process.env.HOLDFAST_SEEDS ?? 8);
const keys = ['a', 'b'] as const;
const ttlMs = 1_000;
/** The longest time to which a lease is extended. */
const longestMs = 2_500;
const gaveUp = new Error('gave up');

interface Shop extends Omit<Abilities, 'inner'> {
  /** How far away the store is. By default it is not. */
  readonly tripMs?: number;
  readonly kind: 'mutex' | 'semaphore';
  readonly fair: boolean;
}

async function play(
  seed: number,
  { kind, fair, tripMs, ...abilities }: Shop,
  counts: { sections: number; lost: number },
) {
  const random = seededRandom(seed);
  const { clock, state, store: near, inner } = bench(abilities);
  const store = tripMs === undefined ? near : distant(near, clock, tripMs);
  let trouble = 0.12;
  state.fate = (): Fate => {
    if (random() > trouble) return 'ok';
    const late = clock.sleep(random.pick([1, 10, 40, 1_500]) * random());
    return random.pick<Fate>(['lost', 'dropped', 'refused', late, { reply: late }]);
  };
  const permits = kind === 'semaphore' ? 2 : Number.POSITIVE_INFINITY;
  const processes = [0, 1, 2].map(() => {
    let offsetMs = 0;
    const own: Clock = {
      now: () => clock.now(),
      wallNow: () => clock.wallNow() + offsetMs,
      schedule: (timer, atMs) => clock.schedule(timer, atMs),
      cancel: (timer) => clock.cancel(timer),
    };
    const locks = new Locks({
      ...{ kind, fair, permits, store, name: kind, on: undefined, clock: own, random: () => random(), stack: false },
      ...{ ttl: ttlMs, margin: 50, renewEvery: undefined, wait: 4_000, queue: 1_000 },
    });
    const jump = () => {
      offsetMs += random.pick([-3_600_000, 3_600_000, 50, -50]);
    };
    let together = new AbortController();
    const giveUp = () => {
      together.abort(gaveUp);
      together = new AbortController();
    };
    return { locks, jump, giveUp, signal: () => together.signal };
  });

  const places = new Map(keys.map((key) => [key, { live: new Map<Lease, LockMode>(), fence: 0, forced: 0 }]));
  /** When a key is taken away by force, an owner in another process continues until its next renewal. Nothing is promised about that time. */
  const force = async (locks: Locks, key: (typeof keys)[number]) => {
    const place = places.get(key)!;
    place.forced++;
    await locks.forceRelease(key).catch(() => {});
    void clock.sleep(2 * longestMs).then(() => place.forced--);
  };
  const check = () => {
    for (const [key, { live, forced }] of places) {
      const held = [...live].filter(([lease]) => lease.held());
      const writers = held.filter(([, mode]) => mode === 'exclusive').length;
      const isBroken = held.length > permits || (writers > 0 && held.length > 1);
      if (isBroken && forced === 0) throw new Error(`${held.length} hold "${key}" at ${clock.now()} ms`);
    }
  };
  const section = async (lease: LeaseBase, mode: LockMode, of: readonly (typeof keys)[number][]) => {
    const leases = (lease as Lease).leases ?? [lease];
    for (const [index, one] of leases.entries()) {
      const place = places.get(of[index]!)!;
      place.live.set(one, mode);
      if (mode === 'exclusive' && one.held()) {
        if (place.forced === 0 && one.fence <= place.fence) throw new Error(`the fence went back to ${one.fence}`);
        place.fence = Math.max(place.fence, one.fence);
      }
    }
    check();
    counts.sections++;
    for (let steps = random.integer(0, 3); steps > 0; steps--) {
      await clock.sleep(random.pick([0, 1, 5, 30, 300, 1_400]));
      check();
      if (random() < 0.2) await lease.extend(random.pick([undefined, 300, ttlMs, longestMs])).catch(() => {});
      check();
    }
    if (random() < 0.1) lease.extend().catch(() => {});
    if (!lease.held()) counts.lost++;
    await lease.release();
    for (const { live } of places.values()) for (const one of leases) live.delete(one);
    check();
  };
  const call = async ({ locks, signal }: (typeof processes)[number]) => {
    const key = random.pick(keys);
    const mode = kind === 'mutex' && random() < 0.6 ? 'exclusive' : 'shared';
    switch (random.pick(['try', 'both', 'force', 'abort', 'together', 'together', 'hurry', 'hurry', 'wait', 'wait'])) {
      case 'try': {
        const lease = await locks.tryAcquire(key, mode);
        return lease === null ? undefined : section(lease, mode, [key]);
      }
      case 'both':
        return section(await locks.acquire(['b', 'a'], mode), mode, keys);
      case 'force':
        return random() < 0.2 ? force(locks, key) : undefined;
      case 'abort': {
        const controller = new AbortController();
        void clock.sleep(random.pick([0, 1, 10, 200])).then(() => controller.abort(gaveUp));
        return section(await locks.acquire(key, mode, { signal: controller.signal }), mode, [key]);
      }
      case 'together':
        return section(await locks.acquire(key, mode, { signal: signal() }), mode, [key]);
      case 'hurry':
        return section(await locks.acquire(key, mode, { wait: random.pick([0, 5, 20, 100]) }), mode, [key]);
      default:
        return section(await locks.acquire(key, mode), mode, [key]);
    }
  };

  let isEnding = false;
  let failure: unknown;
  const work = async (process: (typeof processes)[number]) => {
    while (!isEnding) {
      await clock.sleep(random.pick([0, 0, 1, 3, 20, 100]));
      await call(process).catch((error) => {
        if (error !== gaveUp && !(error instanceof HoldfastError)) failure ??= error;
      });
    }
  };
  let working = 0;
  for (const process of processes) {
    for (let index = 0; index < 6; index++) {
      working++;
      void work(process).then(() => working--);
    }
  }
  while (clock.now() < 8_000 && failure === undefined) {
    await clock.advance(10);
    if (random() < 0.01) random.pick(processes).jump();
    if (random() < 0.05) random.pick(processes).giveUp();
    if (random() < 0.02) trouble = random.pick([0, 0.02, 0.2, 1]);
  }
  isEnding = true;
  trouble = 0;
  await clock.advance(60_000);
  if (failure !== undefined) throw failure;
  // All have ended and nothing is left: no place in a queue, no record, no remembered key, no timer.
  const lines = [...state.lines.values()].flat();
  const records = await Promise.all(keys.map((key) => inner.read(`${kind}:${key}`)));
  const known = processes.map(({ locks }) => (locks as unknown as { lines: ReadonlyMap<string, unknown> }).lines.size);
  expect([working, lines, records, known, clock.pendingTimers]).toEqual([0, [], [undefined, undefined], [0, 0, 0], 0]);
}

describe.each([
  { kind: 'mutex', queues: true, watches: true, fair: true },
  { kind: 'mutex', queues: true, watches: false, fair: true, tripMs: 1 },
  { kind: 'mutex', queues: true, watches: false, fair: false, tripMs: 1 },
  { kind: 'mutex', queues: true, watches: true, fair: false },
  { kind: 'mutex', queues: true, watches: false, fair: false },
  { kind: 'mutex', queues: false, watches: true, fair: false },
  { kind: 'mutex', queues: false, watches: false, fair: false },
  { kind: 'semaphore', queues: false, watches: true, fair: false },
] as const)(
  '$kind of a store (line: $queues, watch: $watches, fair: $fair, away: $tripMs), whatever happens',
  (shop) => {
    it(`lets in no more than allowed, with growing fences, and leaves nothing behind, over ${seeds} seeds`, {
      timeout: 240_000,
    }, async () => {
      const counts = { sections: 0, lost: 0 };
      for (let seed = 1; seed <= seeds; seed++) {
        await play(seed, shop, counts).catch((cause) => {
          throw new Error(`seed ${seed}: ${cause instanceof Error ? cause.message : cause}`, { cause });
        });
      }
      expect(counts.sections).toBeGreaterThan(seeds * 10);
      expect(counts.lost).toBeGreaterThan(seeds / 4);
    });
  },
);
