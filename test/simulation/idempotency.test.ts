/** The state machine of idempotency keys against its table, over seeded histories of crashes, freezes, lost replies and clock skew. */
import { InDoubtError, idempotency, isHoldfastError } from 'holdfast';
import { checkSeeds, type Scenario, type SimulatedProcess, seededRandom, type World } from 'holdfast/testing';
import { afterEach, beforeEach, describe, it, vi } from 'vitest';
import { broken, leaseMs, remoteStore, storeNode } from './support/idempotency.ts';

const keys = ['order 1', 'order 2', 'order 3'];
const scope = { scope: 'shop' };

interface Answered {
  readonly key: string;
  readonly value: string;
}

/** Owners are normally random bits of the platform. Here they come from the seed. */
let bits = seededRandom(1);
beforeEach(() => {
  vi.spyOn(globalThis.crypto, 'getRandomValues').mockImplementation((array) => {
    const bytes = array as unknown as Uint8Array;
    for (let index = 0; index < bytes.length; index++) bytes[index] = bits.integer(0, 255);
    return array;
  });
});
afterEach(() => {
  vi.restoreAllMocks();
});

/** Three machines repeat the same orders until each of them has its answer. */
function shops(onLost: 'rerun' | 'resume' | 'refuse'): Scenario {
  return async (world: World) => {
    bits = seededRandom(world.seed);
    broken.length = 0;
    // What is declared out here survives every crash.
    const effects = new Map<string, number>();
    const charges = new Map<string, Set<string>>();
    const phases = new Map<string, number>();
    const answers: Answered[] = [];
    const settled = new Set<string>();
    const server = storeNode(world, onLost);
    let isCalm = false;

    async function order(
      process: SimulatedProcess,
      once: ReturnType<typeof idempotency>,
      key: string,
      unrecorded: Set<string>,
    ): Promise<void> {
      unrecorded.delete(key);
      const value = await once.run(
        key,
        async (handle) => {
          await process.sleep(process.random.between(0, 300));
          if (process.random.chance(0.15)) throw new Error('nothing has happened yet');
          const fails = process.random.chance(0.1);
          if (onLost === 'resume') {
            await handle.phase('reserve', () => {
              phases.set(key, (phases.get(key) ?? 0) + 1);
              return 'seat';
            });
            if (fails) throw new Error('after a phase');
          }
          if (handle.signal.aborted) throw handle.signal.reason;
          effects.set(key, (effects.get(key) ?? 0) + 1);
          const charged = charges.get(key) ?? new Set();
          charges.set(key, charged.add(handle.downstreamKey('charge')));
          await process.sleep(process.random.between(0, process.random.chance(0.1) ? 5_000 : 300));
          return `${key}, attempt ${handle.attempt}`;
        },
        { ...scope, operation: key, input: { key } },
      );
      // An event has said that the store did not take this answer, so another attempt may give a different one.
      if (!unrecorded.has(key)) answers.push({ key, value });
      settled.add(key);
    }

    const start = async (process: SimulatedProcess) => {
      const unrecorded = new Set<string>();
      const once = idempotency({
        store: remoteStore(process, server),
        ...{ clock: process.clock, random: process.random, onLost, lease: leaseMs, storeTimeout: 400, name: 'order' },
        on(event) {
          if (event.type === 'idempotency' && event.outcome === 'unrecorded') unrecorded.add(event.operation);
        },
      });
      for (const key of keys) {
        void process.run(key, async () => {
          while (!settled.has(key)) {
            try {
              await order(process, once, key, unrecorded);
            } catch (error) {
              if (!isHoldfastError(error) && !(error instanceof Error)) throw error;
              if (error instanceof InDoubtError && error.reason === 'unknown' && isCalm) {
                // An operator reads the books and reports what has happened.
                const charged = effects.get(key) ?? 0;
                const resolution = charged > 0 ? { result: `${key}, by hand` } : { release: true as const };
                await once.resolve(key, { ...scope, operation: key, ...resolution }).catch(() => {});
              }
            }
            await process.sleep(process.random.between(50, 400));
          }
        });
      }
    };
    const machines = ['left', 'middle', 'right'].map((name) =>
      world.node(name, {
        start,
        drift: world.random.between(-0.004, 0.004),
        wallOffset: world.random.between(-5_000, 5_000),
      }),
    );

    world.invariant('the table knows every write', () => broken.length === 0);
    world.invariant('one effect where one is promised', () => {
      return onLost !== 'refuse' || [...effects.values()].every((count) => count <= 1);
    });
    world.invariant('every call of one order answers the same', () =>
      answers.every(({ key, value }) => value === answers.find((other) => other.key === key)!.value),
    );
    world.invariant('a charge has one key over all attempts', () =>
      [...charges.values()].every(({ size }) => size === 1),
    );

    for (let strike = 0; strike < 12; strike++) {
      await world.sleep(world.random.between(0, 1_500));
      const machine = world.random.pick(machines);
      const kind = world.random.pick(['crash', 'freeze', 'freeze store', 'partition', 'jump'] as const);
      if (kind === 'crash') {
        machine.crash();
        await world.sleep(world.random.between(0, 1_000));
        machine.restart();
      } else if (kind === 'freeze') {
        machine.freeze();
        await world.sleep(world.random.between(0, 2 * leaseMs));
        machine.thaw();
      } else if (kind === 'freeze store') {
        server.freeze();
        await world.sleep(world.random.between(0, leaseMs));
        server.thaw();
      } else if (kind === 'partition') {
        world.network.partition([machine], [server]);
        await world.sleep(world.random.between(0, 2 * leaseMs));
        world.network.heal();
      } else machine.jumpWallClock(world.random.between(-10_000, 10_000));
    }
    isCalm = true;
    // No key is blocked for longer than a lease: by then everything that was begun is over, and then each order gets its answer.
    await world.eventually('every order has an answer', () => settled.size === keys.length, { within: '1m' });
  };
}

const network = { delay: { min: 1, max: 20 }, loss: 0.02, replyLoss: 0.05, duplicate: 0.02 };

describe('idempotency, while processes crash and freeze and the network loses replies,', () => {
  it.each(['rerun', 'resume', 'refuse'] as const)(
    'keeps to its table with %s',
    async (onLost) => {
      await checkSeeds({ seeds: 300, network }, shops(onLost));
    },
    240_000,
  );
});
