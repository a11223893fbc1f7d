/** One process of a fleet: callers ask for one key at a steady rate; the source may fail for a while. */
import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';

export interface Settings {
  readonly contender: string;
  readonly redisPort: number;
  readonly ratePerSecond: number;
  readonly seconds: number;
  readonly loadMs: number;
  /** When the source fails, in milliseconds after the start. */
  readonly fails: readonly [fromMs: number, untilMs: number] | undefined;
}

export interface Report {
  /** When each load began, in milliseconds after the start. */
  readonly loadsMs: readonly number[];
  readonly failed: number;
  /** Of the callers after the first second. */
  readonly slowestMs: number;
  readonly p99Ms: number;
}

const { contender, redisPort, ratePerSecond, seconds, loadMs, fails } = JSON.parse(process.argv[2]!) as Settings;
const ttlMs = 1_000;
const connect = () => new Redis(redisPort, '127.0.0.1', { autoResendUnfulfilledCommands: false });
const loadsMs: number[] = [];
let startMs = 0;

async function load(): Promise<{ page: string }> {
  const atMs = Date.now() - startMs;
  loadsMs.push(atMs);
  await sleep(loadMs);
  if (fails !== undefined && atMs >= fails[0] && atMs < fails[1]) throw new Error('the source is down');
  return { page: 'front' };
}

const contenders: Readonly<Record<string, () => Promise<() => Promise<unknown>>>> = {
  async holdfast() {
    const [{ cache }, { redisStore }] = await Promise.all([import('holdfast'), import('holdfast/redis')]);
    const store = redisStore(connect(), { subscriber: connect() });
    const windows = fails === undefined ? {} : ({ staleIfError: '1m' } as const);
    const pages = cache({ store, ttl: ttlMs, ...windows, load });
    return () => pages.get('front');
  },
  async 'look, load, store'() {
    const client = connect();
    return async () => {
      const held = await client.get('front');
      if (held !== null) return JSON.parse(held);
      const value = await load();
      await client.set('front', JSON.stringify(value), 'PX', ttlMs);
      return value;
    };
  },
  async bentocache() {
    const { BentoCache, bentostore } = await import('bentocache');
    const { memoryDriver } = await import('bentocache/drivers/memory');
    const { redisDriver } = await import('bentocache/drivers/redis');
    const store = bentostore()
      .useL1Layer(memoryDriver({ maxItems: 1_000 }))
      .useL2Layer(redisDriver({ connection: connect() }));
    const values = new BentoCache({ default: 'both', stores: { both: store } });
    const grace = fails === undefined ? {} : { grace: '1m', graceBackoff: '1s' };
    return () => values.getOrSet({ key: 'front', factory: load, ttl: ttlMs, ...grace });
  },
  async 'async-cache-dedupe'() {
    const { createCache } = await import('async-cache-dedupe');
    const values = createCache({ ttl: 1, storage: { type: 'redis', options: { client: connect() } } });
    const pages = values.define('front', load);
    return () => pages.front();
  },
};

const get = await contenders[contender]!();
process.once('message', async (atMs: number) => {
  await sleep(atMs - Date.now());
  startMs = atMs;
  const took: number[] = [];
  const pending: Promise<unknown>[] = [];
  let failed = 0;
  for (let call = 0; call < ratePerSecond * seconds; call++) {
    const dueMs = (call * 1_000) / ratePerSecond;
    while (performance.timeOrigin + performance.now() - startMs < dueMs) await sleep(1);
    const beganMs = performance.now();
    const isWarm = dueMs >= 1_000;
    pending.push(
      get().then(
        () => void (isWarm && took.push(performance.now() - beganMs)),
        () => void failed++,
      ),
    );
  }
  await Promise.all(pending);
  took.sort((one, other) => one - other);
  const report: Report = {
    ...{ loadsMs, failed, slowestMs: took.at(-1) ?? 0, p99Ms: took[Math.floor(took.length * 0.99)] ?? 0 },
  };
  process.send?.(report, () => process.exit());
});
process.send?.('ready');
