/** Histories of clients of one server, on a network that breaks, as the history checker wants them. */
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

/** As many are played at the same time, with keys of their own: the network that breaks is one, and strikes them all. */
const atOnce = 10;
/** Verbs of each client that are answered, or of which nobody knows. */
const verbsPerClient = 8;

/** What happens around the clients, again and again, until the histories are over. */
export type Trouble = (random: SeededRandom, progress: Progress) => Promise<void>;

/**
 * Plays histories of so many seeds from the first one, each of four clients at two keys while there is trouble, and claims
 * that they are linearizable. Answers of how many operations nobody knows what became of them.
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
    // A long run that is cut off has shown this much; the next one may begin there.
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

/** Waits for a few more answers, however fast they come: by the clock a busy machine would see nothing but faults. */
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

/** A server that stops in the middle of all for longer than a verb waits, and does then what it was asked meanwhile. */
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
