/**
 * Locks of several processes over one store, with a queue and without: crashes, frozen processes, partitions, lost and duplicated messages, clocks that differ.
 */
import { LockLostError, LockUnavailableError, memoryStore, mutex, type Store, StoreError, semaphore } from 'holdfast';
import { checkSeeds, type Scenario, type SimulatedNode, type SimulatedProcess } from 'holdfast/testing';
import { afterEach, describe, expect, it, vi } from 'vitest';
import type { QueueTurn, StoreQueue } from '../../src/stores/store.js';
import { unsteady } from '../coordination/mutex/support.ts';

afterEach(() => vi.restoreAllMocks());

const ttlMs = 1_000;
const seeds = Number(process.env.HOLDFAST_SEEDS ?? 30);

type Verb = keyof Pick<Store, 'read' | 'write' | 'remove'>;
type Asked = { readonly verb: Verb | keyof StoreQueue; readonly args: readonly unknown[]; readonly from: string };
type Told = { readonly ticket: string; readonly turn: QueueTurn };

/** A store behind a network that may lose anything. */
function remote(process: SimulatedProcess, queues: boolean): Store {
  const listeners = new Map<string, ((turn: QueueTurn) => void) | undefined>();
  if (queues) process.serve(({ ticket, turn }: Told) => listeners.get(ticket)?.(turn));
  const ask = async <T>(verb: Asked['verb'], ...args: readonly unknown[]): Promise<T> => {
    const controller = new AbortController();
    const wait = new AbortController();
    void process.sleep(100, { signal: wait.signal }).then(
      () => controller.abort(new Error('no answer')),
      () => {},
    );
    try {
      const asked: Asked = { verb, args, from: process.node.name };
      return await process.request<T>('store', asked, { signal: controller.signal });
    } catch (cause) {
      const applied = verb === 'read' || verb === 'size' ? 'no' : 'unknown';
      throw new StoreError({
        store: 'remote',
        operation: verb,
        reason: 'timeout',
        applied,
        detail: 'no answer',
        cause,
      });
    } finally {
      wait.abort();
    }
  };
  const plain = (options: { readonly signal?: unknown } = {}) => {
    const { signal: _, ...rest } = options;
    return rest;
  };
  return {
    read: (key) => ask('read', key),
    write: (key, value, options) => ask('write', key, value, plain(options)),
    remove: (key, options) => ask('remove', key, plain(options)),
    ...(queues && {
      native: {
        queue: {
          enter(key, ticket, value, { onTurn, ...options }) {
            if (options.placeMs > 0) listeners.set(ticket, onTurn);
            return ask('enter', key, ticket, value, plain(options));
          },
          pass: (key, options) => ask('pass', key, plain(options)),
          leave(key, tickets) {
            for (const ticket of tickets) listeners.delete(ticket);
            return ask('leave', key, tickets);
          },
          size: (key) => ask('size', key),
        } satisfies StoreQueue,
      },
    }),
  };
}

interface Seen {
  readonly owner: string;
  readonly fence: number;
}

interface Shop {
  readonly kind: 'mutex' | 'semaphore';
  readonly workers: number;
  /** The store has a queue, in which each caller, or each process, has a place. */
  readonly line?: 'fair' | 'by process';
  /** How long callers wait. */
  readonly patience: readonly [min: number, max: number];
}

/** Workers that take turns, and a world that does its worst. */
function turns(
  { kind, workers: mostWorkers, line, patience }: Shop,
  counts: { sections: number; lost: number },
): Scenario {
  return async (world) => {
    // Owners are told apart by it, and a run must be repeatable.
    let ids = 0;
    vi.spyOn(globalThis.crypto, 'randomUUID').mockImplementation(() => `0-0-0-0-${++ids}`);
    const memory = memoryStore({ clock: world.clock });
    /** Who was let in, in the order in which the store did it. */
    const grants: Seen[] = [];
    let holders: readonly string[] = [];
    const inner: Store = {
      read: (key) => memory.read(key),
      remove: (key, options) => memory.remove(key, options),
      async write(key, value, options) {
        const answer = await memory.write(key, value, options);
        if (answer.ok) {
          const record = JSON.parse(new TextDecoder().decode(value)) as { readonly holders: readonly Seen[] };
          const before = holders;
          holders = record.holders.map(({ owner }) => owner);
          // One who did not take his turn may have another later, under the same name.
          for (const owner of holders.filter((one) => !before.includes(one))) {
            grants.push({ owner, fence: answer.version });
          }
        }
        return answer;
      },
    };
    const { store, state } = unsteady(world.clock as never, { queues: line !== undefined, inner });
    world.node('store', {
      start: (process) =>
        process.serve(({ verb, args, from }: Asked) => {
          if (verb === 'enter') {
            const [key, ticket, value, options] = args as Parameters<StoreQueue['enter']>;
            const onTurn = (turn: QueueTurn) =>
              void process.request(from, { ticket, turn } satisfies Told).catch(() => {});
            return store.native!.queue!.enter(key, ticket, value, { ...options, onTurn });
          }
          const verbs = { ...store.native?.queue, ...store } as unknown as Record<
            string,
            (...given: unknown[]) => unknown
          >;
          return verbs[verb]!(...args);
        }),
    });
    world.invariant('fences strictly grow', () =>
      grants.every(({ fence }, index) => index === 0 || fence > grants[index - 1]!.fence),
    );

    /** Not an error of the section: the error that tells of the lost lock would carry it, and such a loss is expected here. */
    const overlaps: string[] = [];
    world.invariant('nobody writes by held() when another was let in', () => overlaps.length === 0);

    let isEnding = false;
    const accepted: number[] = [];
    const work = async (process: SimulatedProcess) => {
      const { clock, random } = process;
      const store = remote(process, line !== undefined);
      const options = { store, clock, ttl: ttlMs, random: () => random() } as const;
      const locks =
        kind === 'mutex' ? mutex({ ...options, fair: line === 'fair' }) : semaphore({ ...options, permits: 2 });
      while (!isEnding) {
        await process.sleep(random.between(1, 50));
        try {
          await locks.run(
            'key',
            async ({ lease, fence }) => {
              counts.sections++;
              for (let write = random.integer(1, 10); write > 0; write--) {
                await process.sleep(random.between(1, 200));
                if (!lease.held()) break;
                // What `held()` allows goes out in the same turn: at that instant nobody else may have been let in.
                const later = grants.slice(grants.findLastIndex(({ owner }) => owner === lease.owner) + 1);
                const isAlone =
                  kind === 'mutex' ? later.length === 0 : holders.includes(lease.owner) && holders.length <= 2;
                if (!isAlone) overlaps.push(`${lease.owner} at ${world.clock.now()} ms`);
                if (fence >= (accepted.at(-1) ?? 0)) accepted.push(fence);
              }
            },
            { wait: random.integer(...patience) },
          );
        } catch (error) {
          if (error instanceof LockLostError) counts.lost++;
          else if (!(error instanceof LockUnavailableError) && !(error instanceof StoreError)) throw error;
        }
      }
    };
    const workers: SimulatedNode[] = Array.from({ length: mostWorkers }, (_, index) =>
      world.node(`worker ${index}`, {
        start: work,
        // Half a percent is more than a clock may be off: a lease is counted 1 % short.
        drift: world.random.between(-5, 5) / 1_000,
        wallOffset: world.random.between(-3_600_000, 3_600_000),
      }),
    );
    for (let round = 0; round < 12; round++) {
      await world.sleep(world.random.between(50, 800));
      const victim = world.random.pick(workers);
      switch (world.random.integer(0, 4)) {
        case 0:
          victim.crash();
          await world.sleep(world.random.between(1, 1_500));
          victim.restart();
          break;
        case 1:
          victim.freeze();
          await world.sleep(world.random.between(1, 2_500));
          victim.thaw();
          break;
        case 2:
          world.network.partition([victim], ['store']);
          await world.sleep(world.random.between(1, 2_500));
          world.network.heal();
          break;
        case 3:
          victim.jumpWallClock(world.random.between(-3_600_000, 3_600_000));
          break;
        default:
          await world.sleep(500);
      }
    }
    isEnding = true;
    await world.sleep(20_000);
    const after = await memory.read(`${kind}:key`);
    const places = [...state.lines.values()].flat().filter(({ endsAtMs }) => endsAtMs > world.clock.now());
    expect([after, places]).toEqual([undefined, []]);
  };
}

describe.each([
  { kind: 'mutex', workers: 4, patience: [2_000, 2_000] },
  { kind: 'mutex', workers: 4, patience: [1, 2_000], line: 'by process' },
  { kind: 'mutex', workers: 6, patience: [1, 300], line: 'fair' },
  { kind: 'semaphore', workers: 4, patience: [2_000, 2_000] },
] as const)(
  '$kind of $workers who wait for $patience ms (line: $line), whatever happens to processes and network',
  (shop) => {
    it(`lets no owner write by held() when another was let in, over ${seeds} seeds`, { timeout: 240_000 }, async () => {
      const counts = { sections: 0, lost: 0 };
      const network = {
        delay: { min: 1, max: 20 },
        loss: 0.01,
        replyLoss: 0.02,
        duplicate: 0.01,
      } as const;
      await checkSeeds({ seeds, network }, turns(shop, counts));
      expect(counts.sections).toBeGreaterThan(seeds * 5);
      expect(counts.lost).toBeGreaterThan(seeds / 10);
    });
  },
);
