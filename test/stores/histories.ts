/** Histories of the clients of one server, on a network that breaks, in the form that the history checker needs. */
import { setTimeout as sleep } from 'node:timers/promises';
import { StoreError } from 'holdfast';
import {
  checkLinearizability,
  type FaultProxy,
  History,
  type SeededRandom,
  type StoreOperation,
  type StoreResult,
  seededRandom,
  storeModel,
} from 'holdfast/testing';
import type { ClosableStore } from '../../src/stores/store.js';
import { draw, perform, versionIn } from '../../src/testing/store-histories.js';
import type { ServerProcess } from '../support/servers/server-process.ts';

/** How many histories are played at the same time, each with keys of its own. They share one network, so its faults strike all of them. */
const atOnce = 10;
/** How many verbs of each client are answered, or end with an unknown outcome. */
const verbsPerClient = 8;

/** What happens around the clients, again and again, until the histories are over. */
export type Trouble = (random: SeededRandom, progress: Progress) => Promise<void>;

/**
 * Plays the histories of this many seeds from the first one, each of four clients at two keys while faults occur, and claims that they are linearizable.
 * Returns how many operations had an unknown outcome.
 */
export async function checkHistories(
  stores: readonly ClosableStore[],
  trouble: Trouble,
  firstSeed: number,
  count: number,
): Promise<number> {
  let lost = 0;
  for (let begun = 0; begun < count; begun += atOnce) {
    const seeds = Array.from({ length: Math.min(atOnce, count - begun) }, (_, index) => firstSeed + begun + index);
    const progress = { answers: 0, isOver: false };
    const troubled = makeTrouble(trouble, seededRandom(seeds[0]!).fork('trouble'), progress);
    const played = await Promise.all(seeds.map((seed) => playHistory(stores, seed, progress)));
    progress.isOver = true;
    await troubled;
    for (const { seed, history, lost: unknown } of played) {
      lost += unknown;
      const verdict = checkLinearizability(history, storeModel());
      if (verdict.verdict !== 'linearizable') throw new Error(`seed ${seed}\n${verdict}`);
    }
    // If a long run is interrupted, this line shows how far it came; the next run may begin there.
    const done = begun + seeds.length;
    if (done % 500 === 0)
      console.log(`histories: ${done} from seed ${firstSeed} are linearizable, ${lost} replies lost`);
  }
  return lost;
}

export interface Progress {
  answers: number;
  isOver: boolean;
}

async function makeTrouble(trouble: Trouble, random: SeededRandom, progress: Progress): Promise<void> {
  while (!progress.isOver) {
    await answersMore(progress, random.integer(10, 50));
    if (!progress.isOver) await trouble(random, progress);
  }
}

/** Waits for a few more answers, however fast they come. If it waited for a fixed time, a busy machine would see nothing but faults. */
export async function answersMore(
  progress: Progress,
  count: number,
  withinMs = Number.POSITIVE_INFINITY,
): Promise<void> {
  const next = progress.answers + count;
  const endsAtMs = performance.now() + withinMs;
  while (progress.answers < next && !progress.isOver && performance.now() < endsAtMs) await sleep(1);
}

/** A network that cuts connections, in the middle of requests and of replies. */
export function brokenNetwork(proxy: FaultProxy): Trouble {
  return async (random) => {
    if (random() < 0.5) return proxy.reset();
    await proxy.inject({
      kind: 'cut',
      direction: random.pick(['requests', 'replies']),
      afterBytes: random.integer(0, 200),
    });
    await sleep(2);
    await proxy.heal();
  };
}

/** A server that stops in the middle of everything for longer than a verb waits, and then does what it was asked meanwhile. */
export function frozenServer(server: ServerProcess, forMs: number): Trouble {
  return async () => {
    server.freeze();
    await sleep(forMs);
    server.wake();
  };
}

async function playHistory(stores: readonly ClosableStore[], seed: number, progress: Progress) {
  const history = new History<StoreOperation, StoreResult>();
  const random = seededRandom(seed);
  let lost = 0;
  const clients = stores.map(async (store, index) => {
    const own = random.fork(`client ${index}`);
    const seen = new Map<string, number>();
    for (let count = 0, left = verbsPerClient; left > 0; count++) {
      const key = `${seed}/${own.pick(['x', 'y'])}`;
      const operation = draw(own, `${index}.${count}`, seen.get(key) ?? 0);
      const open = history.invoke({ client: `client ${index}`, key, operation });
      try {
        const result = await perform(store, key, operation);
        open.ok(result);
        progress.answers++;
        left--;
        const version = versionIn(result);
        if (version !== undefined) seen.set(key, version);
      } catch (error) {
        if (!(error instanceof StoreError)) throw error;
        if (error.applied === 'no') open.failed();
        else {
          open.unknown();
          lost++;
          left--;
        }
        // It is connected again soon; until then its verbs would only fail.
        await sleep(10);
      }
    }
  });
  await Promise.all(clients);
  return { seed, history, lost };
}
