/** The parts that the processes of the demo play: the bank, a shop's worker, a job's worker. Plain `node:http` between them. */
import {
  Agent,
  createServer,
  type IncomingMessage,
  type Server,
  type ServerResponse,
  request as send,
} from 'node:http';
import type { AddressInfo } from 'node:net';
import { systemClock } from '../../core/clock.js';
import { seededRandom } from '../../testing/random.js';
import { Bank, type BankRequest, type Weather } from './bank.js';
import { runJobs } from './job.js';
import { serveParent, tellParent } from './processes.js';
import { type Path, paths, type ShopParts, shopOf, type UserRequest } from './shop.js';
import { openStore, type StorePlace } from './store-place.js';

export type Part =
  | { readonly part: 'bank'; readonly seed: number }
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

async function playShop(settings: WorkerSettings): Promise<void> {
  const onCircuit = (state: string) => tellParent({ circuit: state });
  const shop = shopOf(settings.path, { ...(await partsOf(settings)), onCircuit });
  const server = createServer((request, response) => answer(request, response, (body) => shop(body as UserRequest)));
  serveParent({ port: await listen(server) }, () => undefined);
}

async function playJob(settings: Extract<Part, { part: 'job' }>): Promise<void> {
  const parts = await partsOf(settings);
  let end = new AbortController();
  serveParent({}, (message: 'begin' | 'end') => {
    if (message === 'end') return void end.abort();
    end = new AbortController();
    void runJobs(settings.path, settings.name, parts, end.signal);
    return undefined;
  });
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

/** Sends JSON, and resolves with the JSON of the answer; rejects for any status but 200. */
export function post(
  agent: Agent,
  port: number,
  path: string,
  body: unknown,
  signal?: AbortSignal,
  more: Readonly<Record<string, string>> = {},
): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const headers = { 'content-type': 'application/json', ...more };
    const options = { agent, host: '127.0.0.1', port, path, method: 'POST', headers, ...(signal && { signal }) };
    const request = send(options, (response) => {
      textOf(response).then((text) => {
        if (response.statusCode === 200) resolve(JSON.parse(text));
        else reject(new Error(`status ${response.statusCode}: ${text}`));
      }, reject);
    });
    request.once('error', reject);
    request.end(JSON.stringify(body));
  });
}

function answer(request: IncomingMessage, response: ServerResponse, handle: (body: unknown) => Promise<unknown>): void {
  textOf(request)
    .then((text) => handle(JSON.parse(text)))
    .then(
      (value) => response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(value)),
      (error: unknown) => response.writeHead(503, { 'content-type': 'text/plain' }).end(String(error)),
    );
}

async function textOf(message: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of message) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks).toString();
}

function listen(server: Server): Promise<number> {
  // Longer than the demo: no idle connection is closed while a request is on its way to it.
  server.keepAliveTimeout = 120_000;
  return new Promise((resolve) => {
    server.listen({ port: 0, host: '127.0.0.1', backlog: 4_096 }, () =>
      resolve((server.address() as AddressInfo).port),
    );
  });
}
