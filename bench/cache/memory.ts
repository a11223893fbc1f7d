/**
 * Memory: what a million distinct keys leave behind with default options, and what a hit allocates (P10). `node --expose-gc bench/cache/memory.ts`
 * after a build; one process per contender.
 */
import { execFileSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';

type Get = (key: string) => unknown;

const contenders: Readonly<Record<string, () => Promise<Get>>> = {
  async holdfast() {
    const { cache } = await import('holdfast');
    const values = cache({ ttl: '10m', load: async (key: string) => ({ key }) });
    return (key) => values.get(key);
  },
  async 'lru-cache fetch'() {
    const { LRUCache } = await import('lru-cache');
    const values = new LRUCache<string, object>({ max: 1_000, ttl: 600_000, fetchMethod: async (key) => ({ key }) });
    return (key) => values.fetch(key);
  },
  async 'async-cache-dedupe'() {
    const { createCache } = await import('async-cache-dedupe');
    const values = createCache({ ttl: 600, storage: { type: 'memory' } }).define('value', async (key: string) => ({
      key,
    }));
    return (key) => values.value(key);
  },
  async bentocache() {
    const { BentoCache, bentostore } = await import('bentocache');
    const { memoryDriver } = await import('bentocache/drivers/memory');
    const values = new BentoCache({ default: 'memory', stores: { memory: bentostore().useL1Layer(memoryDriver({})) } });
    return (key) => values.getOrSet({ key, factory: async () => ({ key }), ttl: '10m' });
  },
  async cacheable() {
    const { Cacheable } = await import('cacheable');
    const values = new Cacheable({ ttl: '10m' });
    return (key) => values.getOrSet(key, async () => ({ key }));
  },
};

const collect = () => (globalThis as { gc?: () => void }).gc?.();

async function measure(name: string): Promise<void> {
  const get = await contenders[name]!();
  const hits = 20_000;
  for (let call = 0; call < 20_000; call++) await get('hot');
  collect();
  // No collection happens in between: the young generation is larger than what is allocated.
  const beforeHits = process.memoryUsage().heapUsed;
  for (let call = 0; call < hits; call++) get('hot');
  const perHit = (process.memoryUsage().heapUsed - beforeHits) / hits;
  await new Promise((resolve) => setImmediate(resolve));
  collect();
  const before = process.memoryUsage().heapUsed;
  for (let key = 0; key < 1_000_000; key += 100) {
    await Promise.all(Array.from({ length: 100 }, (_, index) => get(`key ${key + index}`)));
  }
  collect();
  const retained = (process.memoryUsage().heapUsed - before) / 1e6;
  console.log(`| ${name} | ${retained.toFixed(1)} | ${Math.round(perHit)} |`);
  process.exit();
}

const [one] = process.argv.slice(2);
if (one !== undefined) await measure(one);
console.log('| contender | MB left after a million keys | bytes per hit, not awaited |\n|---|---|---|');
for (const name of Object.keys(contenders)) {
  const flags = [
    '--expose-gc',
    '--no-warnings',
    '--min-semi-space-size=256',
    '--max-semi-space-size=256',
    '--max-old-space-size=6000',
  ];
  try {
    const [program, timeout] = [fileURLToPath(import.meta.url), 600_000];
    process.stdout.write(execFileSync(process.execPath, [...flags, program, name], { timeout, stdio: 'pipe' }));
  } catch (error) {
    const { code, signal } = error as { code?: string; signal?: string };
    // V8 ends a process that runs out of memory with SIGABRT.
    if (code !== 'ETIMEDOUT' && signal !== 'SIGABRT') throw error;
    const reason = code === 'ETIMEDOUT' ? 'not within 10 minutes' : 'out of memory at 6 GB';
    console.log(`| ${name} | ${reason} | |`);
  }
}
