/** Locks of four processes over one store: crashes, frozen processes, partitions, lost and doubled messages, clocks that differ. */
import { LockLostError, LockUnavailableError, memoryStore, mutex, type Store, StoreError, semaphore } from 'holdfast';
import { checkSeeds, type Scenario, type SimulatedNode, type SimulatedProcess } from 'holdfast/testing';
import { afterEach, describe, expect, it, vi } from 'vitest';

afterEach(() => vi.restoreAllMocks());

const ttlMs = 1_000;
const seeds = Number(process.env.HOLDFAST_SEEDS ?? 30);

type Asked = { readonly verb: 'read' | 'write' | 'remove'; readonly args: readonly unknown[] };

/** A store at the other end of a network that may lose anything. */
function remote(process: SimulatedProcess): Store {
  const ask = async <T>(verb: Asked['verb'], ...args: readonly unknown[]): Promise<T> => {
    const controller = new AbortController();
    const wait = new AbortController();
    void process.sleep(100, { signal: wait.signal }).then(
      () => controller.abort(new Error('no answer')),
      () => {},
    );
    try {
      return await process.request<T>('store', { verb, args } satisfies Asked, { signal: controller.signal });
    } catch (cause) {
      const applied = verb === 'read' ? 'no' : 'unknown';
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
  };
}

interface Seen {
  readonly owner: string;
  readonly fence: number;
}

/** Four workers that take turns, and a world that does its worst. */
function turns(kind: 'mutex' | 'semaphore', counts: { sections: number; lost: number }): Scenario {
  return async (world) => {
    // Owners are told apart by it, and a run must be repeatable.
    let ids = 0;
    vi.spyOn(globalThis.crypto, 'randomUUID').mockImplementation(() => `0-0-0-0-${++ids}`);
    const inner = memoryStore({ clock: world.clock });
    /** Who was let in, in the order in which the store did it. */
    const grants: Seen[] = [];
    const known = new Set<string>();
    let holders: readonly string[] = [];
    world.node('store', {
      start: (process) =>
        process.serve(async ({ verb, args }: Asked) => {
          const [key, value] = args as [string, Uint8Array];
          const answer = await (inner[verb] as (...given: readonly unknown[]) => Promise<unknown>)(...args);
          const written = answer as { readonly ok?: boolean; readonly version?: number };
          if (verb === 'write' && key.startsWith(kind) && written.ok === true) {
            const record = JSON.parse(new TextDecoder().decode(value)) as { readonly holders: readonly Seen[] };
            holders = record.holders.map(({ owner }) => owner);
            for (const owner of holders.filter((one) => !known.has(one))) {
              known.add(owner);
              grants.push({ owner, fence: written.version! });
            }
          }
          return answer;
        }),
    });
    world.invariant('fences strictly grow', () =>
      grants.every(({ fence }, index) => index === 0 || fence > grants[index - 1]!.fence),
    );

    let isEnding = false;
    const accepted: number[] = [];
    const work = async (process: SimulatedProcess) => {
      const { clock, random } = process;
      const options = { store: remote(process), clock, ttl: ttlMs, random: () => random(), wait: 2_000 } as const;
      const locks = kind === 'mutex' ? mutex(options) : semaphore({ ...options, permits: 2 });
      while (!isEnding) {
        await process.sleep(random.between(1, 50));
        try {
          await locks.run('key', async ({ lease, fence }) => {
            counts.sections++;
            for (let write = random.integer(1, 10); write > 0; write--) {
              await process.sleep(random.between(1, 200));
              if (!lease.held()) break;
              // What `held()` allows goes out in the same turn: at that instant nobody else may have been let in.
              const later = grants.slice(grants.findIndex(({ owner }) => owner === lease.owner) + 1);
              if (kind === 'mutex') expect(later).toEqual([]);
              else expect(holders.includes(lease.owner) && holders.length <= 2).toBe(true);
              if (fence >= (accepted.at(-1) ?? 0)) accepted.push(fence);
            }
          });
        } catch (error) {
          if (error instanceof LockLostError) counts.lost++;
          else if (!(error instanceof LockUnavailableError) && !(error instanceof StoreError)) throw error;
        }
      }
    };
    const workers: SimulatedNode[] = ['a', 'b', 'c', 'd'].map((name) =>
      world.node(name, {
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
    const after = await inner.read(`${kind}:key`);
    expect(after).toBe(undefined);
  };
}

describe.each(['mutex', 'semaphore'] as const)('%s, whatever happens to processes and network', (kind) => {
  it(`lets no owner write by held() when another was let in, over ${seeds} seeds`, { timeout: 240_000 }, async () => {
    const counts = { sections: 0, lost: 0 };
    const network = {
      delay: { min: 1, max: 20 },
      loss: 0.01,
      replyLoss: 0.02,
      duplicate: 0.01,
    } as const;
    await checkSeeds({ seeds, network }, turns(kind, counts));
    expect(counts.sections).toBeGreaterThan(seeds * 5);
    expect(counts.lost).toBeGreaterThan(seeds / 10);
  });
});
