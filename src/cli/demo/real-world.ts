/** The demo on this machine: one process for both banks, two workers and two jobs per path, and the users in this process. */
import { randomUUID } from 'node:crypto';
import { setMaxListeners } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { Agent } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { systemClock } from '../../core/clock.js';
import { seededRandom } from '../../testing/random.js';
import { sleepOn } from '../../testing/virtual-clock.js';
import type { Counts } from './bank.js';
import { post } from './http.js';
import type { Part } from './parts.js';
import { Child, type ChildOptions } from './processes.js';
import { type Path, paths, type UserRequest } from './shop.js';
import type { StorePlace } from './store-place.js';
import type { World } from './world.js';

export interface RealOptions {
  readonly seed: number;
  readonly patienceMs: number;
  /** Undefined: an SQLite file in a folder that is removed afterwards, or, on a Node without SQLite, the memory of one process. */
  readonly store: { readonly kind: 'redis' | 'postgres'; readonly url: string } | undefined;
  /** Scripts that serve users in place of the demo's own shop. The workers of each path use them in turn. */
  readonly shops: readonly string[];
  readonly signal: AbortSignal;
  readonly onLost: (error: Error) => void;
}

/** A child that listens. */
type Server = Child<{ readonly port: number }>;

export class RealWorld implements World, AsyncDisposable {
  readonly clock = systemClock;
  readonly random;
  readonly patienceMs: number;
  private readonly agent = new Agent({ keepAlive: true });
  private readonly options: RealOptions;
  private readonly over = new AbortController();
  /** Aborts when the demo is interrupted and when it is over. */
  private readonly signal: AbortSignal;
  /** All that were ever started, also those that are not ready yet. */
  private readonly children: Child<unknown>[] = [];
  private readonly folder = mkdtempSync(join(tmpdir(), 'holdfast-demo-'));
  private place!: StorePlace;
  private readonly workers: Record<Path, (Server | undefined)[]> = { naked: [], protected: [] };
  private readonly jobs: Record<Path, Map<string, Child<object>>> = { naked: new Map(), protected: new Map() };
  /** The workers that are down at present. */
  private readonly revivals: Record<Path, Promise<void> | undefined> = { naked: undefined, protected: undefined };
  private bank!: Server;
  private readonly circuits = new Map<number, string>();
  private turn = 0;

  private constructor(options: RealOptions) {
    this.options = options;
    this.patienceMs = options.patienceMs;
    this.random = seededRandom(options.seed).fork('users');
    this.signal = AbortSignal.any([options.signal, this.over.signal]);
    // Every waiting user listens to this signal; Node 20 warns of more than ten.
    setMaxListeners(0, this.signal);
  }

  static async start(options: RealOptions): Promise<RealWorld> {
    const world = new RealWorld(options);
    try {
      await world.build();
      return world;
    } catch (error) {
      await world[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** The breaker state of each protected worker. */
  get breakers(): readonly string[] {
    return [0, 1].map((index) => this.circuits.get(index) ?? 'closed');
  }

  sleep(ms: number): Promise<void> {
    return sleepOn(systemClock, ms, this.signal);
  }

  async ask(path: Path, request: UserRequest, signal: AbortSignal): Promise<unknown> {
    const worker = this.workers[path][(this.turn++ >> 1) & 1];
    if (worker === undefined) throw new Error('the worker is down');
    const headers = request.kind === 'order' ? { 'idempotency-key': request.key } : {};
    return post(this.agent, worker.ready.port, `/${request.kind}`, request, signal, headers);
  }

  async setWeather(weather: object): Promise<void> {
    await this.bank.ask({ weather });
  }

  async restartBanks(): Promise<void> {
    await this.bank.ask({ restart: true });
  }

  async counts(path: Path): Promise<Counts> {
    return this.bank.ask({ counts: path });
  }

  killWorker(path: Path, downMs: number): Promise<void> {
    // One that is down already must not be replaced twice: nobody would know the other successor.
    this.revivals[path] ??= this.replaceWorker(path, downMs).finally(() => {
      this.revivals[path] = undefined;
    });
    return this.revivals[path];
  }

  async freezeOwner(path: Path, frozenMs: number): Promise<void> {
    const { owner } = await this.counts(path);
    const job = owner === undefined ? undefined : this.jobs[path].get(owner);
    await Promise.all([job?.ask({ freezeMs: frozenMs }), this.sleep(frozenMs)]);
  }

  async startJobs(): Promise<void> {
    await Promise.all(this.allJobs().map((job) => job.ask('begin')));
  }

  async stopJobs(): Promise<void> {
    await Promise.all(this.allJobs().map((job) => job.ask('end')));
    await this.sleep(500);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.over.abort(new Error('the demo is over'));
    this.agent.destroy();
    // They may still write into the folder until they are gone.
    await Promise.all(this.children.map((child) => child.kill()));
    rmSync(this.folder, { recursive: true, force: true });
  }

  private async build(): Promise<void> {
    const { seed } = this.options;
    this.bank = await this.start({ part: 'bank', seed }, 'bank');
    this.place = await this.openPlace();
    // Sequential, because the first worker creates the tables.
    for (const path of paths) this.workers[path].push(await this.worker(path, 0));
    await Promise.all(
      paths.flatMap((path) => [
        this.worker(path, 1).then((worker) => this.workers[path].push(worker)),
        ...[1, 2].map((number) => this.startJob(path, `${path} job ${number}`)),
      ]),
    );
  }

  private async openPlace(): Promise<StorePlace> {
    const { store } = this.options;
    if (store !== undefined) return { ...store, run: randomUUID().slice(0, 8) };
    if (process.getBuiltinModule('node:sqlite') !== undefined) {
      return { kind: 'sqlite', file: join(this.folder, 'demo.db') };
    }
    const memory: Server = await this.start({ part: 'memory' }, 'memory');
    return { kind: 'memory', port: memory.ready.port };
  }

  private allJobs(): readonly Child<object>[] {
    return paths.flatMap((path) => [...this.jobs[path].values()]);
  }

  private async startJob(path: Path, name: string): Promise<void> {
    const { patienceMs, place: store } = this;
    const settings = { part: 'job', name, path, bankPort: this.bank.ready.port, patienceMs, store } as const;
    this.jobs[path].set(name, await this.start(settings, name));
  }

  private async replaceWorker(path: Path, downMs: number): Promise<void> {
    const [worker] = this.workers[path];
    this.workers[path][0] = undefined;
    await worker?.kill();
    await this.sleep(downMs);
    this.workers[path][0] = await this.worker(path, 0);
  }

  private worker(path: Path, index: number): Promise<Server> {
    const { shops } = this.options;
    const file = shops.length === 0 ? undefined : shops[index % shops.length];
    const settings = {
      part: 'shop',
      path,
      bankPort: this.bank.ready.port,
      patienceMs: this.patienceMs,
      store: this.place,
    } as const;
    if (path === 'protected') this.circuits.delete(index);
    const onNews = ({ circuit }: { circuit: string }) => void this.circuits.set(index, circuit);
    return this.start(settings, `${path} worker ${index + 1}`, { file, onNews });
  }

  private async start<Ready>(
    settings: Part,
    name: string,
    more: Pick<ChildOptions, 'file' | 'onNews'> = {},
  ): Promise<Child<Ready>> {
    this.signal.throwIfAborted();
    const child = new Child<Ready>({ name, settings, onLost: this.options.onLost, ...more });
    this.children.push(child);
    return child.opened(this.signal);
  }
}
