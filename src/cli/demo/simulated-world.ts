/** The demo's simulated world: the same shops, jobs and banks on machines in virtual time, where a seed decides everything. */

import { memoryStore } from '../../stores/memory.js';
import type { Store } from '../../stores/store.js';
import type { SimulatedNode, SimulatedProcess } from '../../testing/node.js';
import { type SeededRandom, seededRandom } from '../../testing/random.js';
import { simulate } from '../../testing/simulation.js';
import type { World as SimulatedWorld } from '../../testing/world.js';
import { Bank, type BankRequest } from './bank.js';
import { runJobs } from './job.js';
import { type Path, type ShopParts, shopOf, type UserRequest } from './shop.js';
import type { World } from './world.js';

/** Runs a task in a new simulated world, in which only the code is real. */
export async function inSimulation<T>(
  seed: number,
  patienceMs: number,
  play: (world: World) => Promise<T>,
): Promise<T> {
  const bounds = { maxSteps: Number.MAX_SAFE_INTEGER, maxTime: '24h' } as const;
  const { result } = await simulate({ seed, ...bounds, network: { delay: { min: 0.2, max: 1 } } }, async (world) => {
    const random = seededRandom(seed);
    const users = world.node('users');
    let turn = 0;
    let jobsEnd = new AbortController();
    const paths = {
      naked: pathIn(world, 'naked', random, patienceMs, () => jobsEnd.signal),
      protected: pathIn(world, 'protected', random, patienceMs, () => jobsEnd.signal),
    };
    const all = Object.values(paths);
    const user = await users.run('users', (process) => process);
    return play({
      clock: user.clock,
      random: random.fork('users'),
      patienceMs,
      sleep: (ms) => user.sleep(ms),
      ask: (path, request, signal) => user.request(paths[path].workers[(turn++ >> 1) & 1]!, request, { signal }),
      async setWeather(weather) {
        for (const { bank } of all) bank().weather = weather;
      },
      async restartBanks() {
        for (const { bank } of all) bank().restart();
      },
      counts: async (path) => paths[path].bank().counts(),
      async killWorker(path, downMs) {
        const [worker] = paths[path].workers;
        worker!.crash();
        await user.sleep(downMs);
        worker!.restart();
      },
      async freezeOwner(path, frozenMs) {
        const { bank, jobs } = paths[path];
        const name = bank().counts().owner;
        const owner = jobs.find((node) => node.name === name);
        owner?.freeze();
        await user.sleep(frozenMs);
        owner?.thaw();
      },
      async startJobs() {
        jobsEnd = new AbortController();
        await Promise.all(all.flatMap(({ jobs }) => jobs).map((node) => user.request(node, 'begin')));
      },
      async stopJobs() {
        jobsEnd.abort();
        await user.sleep(2_000);
      },
    });
  });
  return result;
}

/** The machines of one path. */
interface Machines {
  /** What the bank's machine runs now. */
  readonly bank: () => Bank;
  readonly workers: readonly SimulatedNode[];
  readonly jobs: readonly SimulatedNode[];
}

/** Creates a path: a bank, a database, two workers of the shop and two of the job. */
function pathIn(
  world: SimulatedWorld,
  path: Path,
  random: SeededRandom,
  patienceMs: number,
  jobsEnd: () => AbortSignal,
): Machines {
  let served: Bank;
  const bank = world.node(`${path} bank`, {
    start(process) {
      served = new Bank(process.clock, random.fork(path));
      process.serve((request: BankRequest) => served.serve(request));
    },
  });
  const database = world.node(`${path} database`, {
    start(process) {
      const store = memoryStore({ clock: process.clock, max: 10_000_000 });
      process.serve(({ verb, given }: Verb) => verbOf(store, verb, given));
    },
  });
  const partsOf = (process: SimulatedProcess): ShopParts => ({
    clock: process.clock,
    random: process.random,
    patienceMs,
    store: remoteStore(process, database),
    bank: (request, signal) => process.request(bank, request, signal && { signal }),
  });
  const workers = [1, 2].map((number) =>
    world.node(`${path} worker ${number}`, {
      start(process) {
        const shop = shopOf(path, partsOf(process));
        process.serve((request: UserRequest) => shop(request));
      },
    }),
  );
  const jobs = [1, 2].map((number) =>
    world.node(`${path} job ${number}`, {
      start(process) {
        const run = () => runJobs(path, process.node.name, partsOf(process), jobsEnd());
        process.serve(() => void process.run('jobs', run));
      },
    }),
  );
  return { bank: () => served, workers, jobs };
}

interface Verb {
  readonly verb: 'read' | 'write' | 'remove';
  readonly given: readonly unknown[];
}

function verbOf(store: Store, verb: Verb['verb'], given: readonly unknown[]): Promise<unknown> {
  return (store[verb] as (...given: readonly unknown[]) => Promise<unknown>)(...given);
}

/** A store on another machine. A signal ends the wait on this side; it is not sent. */
function remoteStore(process: SimulatedProcess, database: SimulatedNode): Store {
  const ask = <Answer>(
    verb: Verb['verb'],
    { signal, ...options }: { signal?: AbortSignal | undefined },
    ...given: unknown[]
  ) => process.request<Answer>(database, { verb, given: [...given, options] } satisfies Verb, signal && { signal });
  return {
    read: (key, options = {}) => ask('read', options, key),
    write: (key, value, options) => ask('write', options, key, value),
    remove: (key, options = {}) => ask('remove', options, key),
  };
}
