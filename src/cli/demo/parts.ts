/** The roles of the demo's processes: the bank, a worker of a shop, a worker of a job, and the memory that they share. */
import { Agent, createServer } from 'node:http';
import { systemClock } from '../../core/clock.js';
import { memoryStore } from '../../stores/memory.js';
import { seededRandom } from '../../testing/random.js';
import { Bank, type BankRequest, type Weather } from './bank.js';
import { answer, listen, post } from './http.js';
import { runJobs } from './job.js';
import { serveParent, tellParent } from './processes.js';
import { answerFrom, type StoreQuestion } from './shared-memory.js';
import { type Path, paths, type ShopParts, shopOf, type UserRequest } from './shop.js';
import { openStore, type StorePlace } from './store-place.js';

export type Part =
  | { readonly part: 'bank'; readonly seed: number }
  | { readonly part: 'memory' }
  | ({ readonly part: 'shop' } & WorkerSettings)
  | ({ readonly part: 'job'; readonly name: string } & WorkerSettings);

export interface WorkerSettings {
  readonly path: Path;
  readonly bankPort: number;
  readonly patienceMs: number;
  readonly store: StorePlace;
}

export async function play(part: Part): Promise<void> {
  if (part.part === 'bank') return playBank(part.seed);
  if (part.part === 'memory') return playMemory();
  if (part.part === 'shop') return playShop(part);
  return playJob(part);
}

async function playBank(seed: number): Promise<void> {
  const random = seededRandom(seed);
  const banks = {
    naked: new Bank(systemClock, random.fork('naked')),
    protected: new Bank(systemClock, random.fork('protected')),
  };
  const server = createServer((request, response) => {
    const path = request.url === '/naked' ? 'naked' : 'protected';
    answer(request, response, (body) => banks[path].serve(body as BankRequest));
  });
  const port = await listen(server);
  serveParent({ port }, (message: { counts: Path } | { weather: Weather } | { restart: true }) => {
    if ('counts' in message) return banks[message.counts].counts();
    if ('restart' in message) {
      for (const path of paths) banks[path].restart();
      return true;
    }
    for (const path of paths) banks[path].weather = message.weather;
    return true;
  });
}

async function playMemory(): Promise<void> {
  const stores = { naked: memoryStore(), protected: memoryStore() };
  const server = createServer((request, response) => {
    const store = request.url === '/naked' ? stores.naked : stores.protected;
    answer(request, response, (body) => answerFrom(store, body as StoreQuestion));
  });
  serveParent({ port: await listen(server) }, () => undefined);
}

async function playShop(settings: WorkerSettings): Promise<void> {
  const onCircuit = (state: string) => tellParent({ circuit: state });
  const shop = shopOf(settings.path, { ...(await partsOf(settings)), onCircuit });
  const server = createServer((request, response) => answer(request, response, (body) => shop(body as UserRequest)));
  serveParent({ port: await listen(server) }, () => undefined);
}

async function playJob(settings: Extract<Part, { part: 'job' }>): Promise<void> {
  const parts = await partsOf(settings);
  let end = new AbortController();
  serveParent({}, (message: 'begin' | 'end' | { readonly freezeMs: number }) => {
    if (message === 'end') return void end.abort();
    if (message !== 'begin') return void freeze(message.freezeMs);
    end = new AbortController();
    void runJobs(settings.path, settings.name, parts, end.signal);
    return undefined;
  });
}

/**
 * Stops everything in this process, as a long garbage collection does. SIGSTOP would do it as well, but a process stopped so would outlive a
 * parent that is killed meanwhile.
 */
function freeze(ms: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
}

async function partsOf({ path, bankPort, patienceMs, store }: WorkerSettings): Promise<ShopParts> {
  const agent = new Agent({ keepAlive: true });
  return {
    clock: systemClock,
    random: Math.random,
    patienceMs,
    store: await openStore(store, path),
    bank: (request, signal) => post(agent, bankPort, `/${path}`, request, signal),
  };
}
