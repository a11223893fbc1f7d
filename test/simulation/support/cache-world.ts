/**
 * A world of processes that share a store over a bad network, a source whose loads read at their very beginning, and
 * writers that change the source and then tell the cache: the order in which caches show what is no longer true.
 */
import { type Cache, type CacheOptions, cache, memoryStore, type Store, StoreError } from '../../../src/index.js';
import type { StoreChange } from '../../../src/stores/store.js';
import type { SimulatedNode, SimulatedProcess, World } from '../../../src/testing/index.js';

type Asked =
  | { readonly verb: 'read'; readonly key: string }
  | { readonly verb: 'write'; readonly key: string; readonly value: Uint8Array; readonly options: WriteOptions }
  | { readonly verb: 'remove'; readonly key: string; readonly ifVersion?: number }
  | { readonly verb: 'watch'; readonly key: string };

type WriteOptions = { readonly ttlMs: number; readonly ifVersion?: number; readonly evictable?: boolean };

/** The server: what it holds outlives its crashes, as its clock does. */
function startStore(world: World): SimulatedNode {
  const store = memoryStore({ clock: world.clock });
  const watchers = new Map<string, Set<string>>();
  return world.node('store', {
    start(process) {
      const announce = (key: string) => {
        for (const node of watchers.get(key) ?? []) void tell(process, node, key);
      };
      process.serve<Asked>(async (asked, { from }) => {
        if (asked.verb === 'read') return store.read(asked.key);
        if (asked.verb === 'watch') {
          watchers.set(asked.key, (watchers.get(asked.key) ?? new Set()).add(from));
          return true;
        }
        const answer =
          asked.verb === 'write'
            ? await store.write(asked.key, asked.value, asked.options)
            : await store.remove(asked.key, asked.ifVersion === undefined ? {} : { ifVersion: asked.ifVersion });
        if (typeof answer === 'boolean' ? answer : answer.ok) announce(asked.key);
        return answer;
      });
    },
  });
}

/** Words of change are repeated until they are heard, as on a connection; a process that is down has nobody to hear them. */
async function tell(process: SimulatedProcess, node: string, key: string): Promise<void> {
  for (let tries = 0; tries < 200; tries++) {
    const controller = new AbortController();
    const answer = process.request(node, { key }, { signal: controller.signal }).catch(() => 'again');
    const heard = await Promise.race([answer, process.sleep(200).then(() => 'again')]);
    controller.abort();
    if (heard !== 'again') return;
  }
}

function remoteStore(process: SimulatedProcess, server: SimulatedNode, canWatch: boolean): Store {
  const ask = async <T>(asked: Asked, signal: AbortSignal | undefined): Promise<T> => {
    try {
      return await process.request<T>(server, asked, signal === undefined ? {} : { signal });
    } catch (error) {
      if (signal?.aborted) throw signal.reason;
      const detail = String(error);
      throw new StoreError({ store: 'simulated', operation: asked.verb, reason: 'failed', applied: 'unknown', detail });
    }
  };
  const listeners = new Map<string, Set<(change: StoreChange) => void>>();
  process.serve<{ key: string }>(({ key }) => {
    for (const listener of [...(listeners.get(key) ?? [])]) listener({ kind: 'changed' });
    return 'heard';
  });
  const watch = (key: string, listener: (change: StoreChange) => void) => {
    const all = listeners.get(key) ?? new Set();
    listeners.set(key, all.add(listener));
    const ready = ask({ verb: 'watch', key }, undefined).then(() => {});
    ready.catch(() => {});
    return { ready, close: () => void all.delete(listener) };
  };
  return {
    read: (key, { signal } = {}) => ask({ verb: 'read', key }, signal),
    write: (key, value, { signal, ...options }) =>
      ask({ verb: 'write', key, value, options: options as WriteOptions }, signal),
    remove: (key, { signal, ifVersion } = {}) =>
      ask({ verb: 'remove', key, ...(ifVersion === undefined ? {} : { ifVersion }) }, signal),
    ...(canWatch ? { native: { watch } } : {}),
  };
}

export interface Load {
  readonly key: string;
  readonly node: string;
  readonly value: number;
  readonly fromMs: number;
  /** Undefined while it runs, and for ever when its process died. */
  toMs: number | undefined;
}

export interface Read {
  readonly key: string;
  readonly node: string;
  readonly fromMs: number;
  readonly toMs: number;
  readonly value: number;
}

/** A change that the cache was told of, and has confirmed. */
export interface Change {
  readonly key: string;
  readonly node: string;
  readonly value: number;
  readonly confirmedMs: number;
}

export interface CacheWorldOptions {
  readonly processes: number;
  readonly canWatch: boolean;
  readonly loadMs: (random: () => number) => number;
  readonly cache?: Partial<CacheOptions<number>>;
}

export class CacheWorld {
  readonly loads: Load[] = [];
  readonly reads: Read[] = [];
  readonly changes: Change[] = [];
  /** Sets that were begun, whether they were confirmed or not. */
  readonly sets: { readonly key: string; readonly value: number; readonly atMs: number }[] = [];
  readonly failures: unknown[] = [];
  readonly store: SimulatedNode;
  readonly nodes: SimulatedNode[] = [];
  /** What is true now. */
  private readonly truth = new Map<string, number>();
  private readonly caches = new Map<string, Cache<number>>();
  private readonly world: World;

  constructor(world: World, { processes, canWatch, loadMs, cache: options }: CacheWorldOptions) {
    this.world = world;
    this.store = startStore(world);
    for (let index = 0; index < processes; index++) {
      const node = world.node(`process ${index}`, {
        start: (process) => {
          const own = cache<number>({
            ttl: '2s',
            store: remoteStore(process, this.store, canWatch),
            tags: (_value, key) => [`tag of ${key}`],
            ...{ clock: process.clock, random: process.random },
            load: (key) => this.load(process, key, loadMs(process.random)),
            ...options,
          });
          this.caches.set(process.node.name, own);
        },
      });
      this.nodes.push(node);
    }
  }

  get(node: SimulatedNode, key: string): void {
    const own = this.caches.get(node.name)!;
    if (node.state === 'down') return;
    node
      .run('get', async () => {
        const fromMs = this.world.now();
        try {
          const value = await own.get(key);
          this.reads.push({ key, node: node.name, fromMs, toMs: this.world.now(), value });
        } catch (error) {
          this.failures.push(error);
        }
      })
      .catch(() => {});
  }

  /** Changes the source and tells the cache. True when the cache has confirmed it. */
  async change(node: SimulatedNode, key: string, verb: 'delete' | 'set' | 'tag'): Promise<boolean> {
    if (node.state === 'down') return false;
    const own = this.caches.get(node.name)!;
    const value = (this.truth.get(key) ?? 0) + 1;
    const done = await node
      .run(verb, async () => {
        this.truth.set(key, value);
        if (verb === 'set') this.sets.push({ key, value, atMs: this.world.now() });
        try {
          if (verb === 'delete') await own.delete(key);
          else if (verb === 'set') await own.set(key, value);
          else await own.invalidateTag(`tag of ${key}`);
          return true;
        } catch {
          return false;
        }
      })
      .catch(() => false);
    if (done) this.changes.push({ key, node: node.name, value, confirmedMs: this.world.now() });
    return done;
  }

  /** A read of what was no longer true when it began, though the cache had been told longer ago than this process may take to hear of it. */
  staleRead(othersMs: number): string | undefined {
    for (const { key, node, fromMs, toMs, value } of this.reads) {
      const known = this.changes.filter((change) => {
        const graceMs = change.node === node ? 0 : othersMs;
        return change.key === key && change.confirmedMs + graceMs < fromMs;
      });
      const newest = Math.max(0, ...known.map((change) => change.value));
      if (value < newest) {
        return `${node} read ${key} from ${fromMs} to ${toMs} and got ${value}, though ${newest} was confirmed before`;
      }
    }
    return undefined;
  }

  /** The greatest number of loads of one key at a time. */
  mostLoadsAtOnce(): number {
    let most = 0;
    for (const load of this.loads) {
      const others = this.loads.filter(
        ({ key, fromMs, toMs = Number.POSITIVE_INFINITY }) =>
          key === load.key && fromMs <= load.fromMs && load.fromMs < toMs,
      );
      most = Math.max(most, others.length);
    }
    return most;
  }

  /** The oldest answer there can be: it is read when the load begins, and arrives when it ends. */
  private async load(process: SimulatedProcess, key: string, ms: number): Promise<number> {
    const value = this.truth.get(key) ?? 0;
    const load: Load = { key, node: process.node.name, value, fromMs: this.world.now(), toMs: undefined };
    this.loads.push(load);
    await process.sleep(ms);
    load.toMs = this.world.now();
    return value;
  }
}
