/**
 * The cache of eight processes over a bad network: one load per key and expiry, and never a value that a change has made old. Every run plays some worlds; `npm
 * run worlds` plays five times as many.
 */
import { describe, expect, it } from 'vitest';
import { checkSeeds, type World } from '../../src/testing/index.js';
import { CacheWorld, type CacheWorldOptions } from './support/cache-world.ts';

const worlds = (inEveryRun: number) => inEveryRun * Number(process.env.HOLDFAST_WORLDS ?? 1);
const keys = ['a', 'b', 'c'];
const between = (min: number, max: number) => (random: () => number) => min + (max - min) * random();

const healthy: CacheWorldOptions = { processes: 8, canWatch: false, loadMs: between(5, 400) };

/** Callers ask at random times for a while. */
async function ask(world: World, caches: CacheWorld, forMs: number, meanGapMs = 8): Promise<void> {
  const endMs = world.now() + forMs;
  while (world.now() < endMs) {
    caches.get(world.random.pick(caches.nodes), world.random.pick(keys));
    await world.sleep(world.random.exponential(meanGapMs));
  }
}

/** Each key has one writer, which makes one change after the other. */
async function change(world: World, caches: CacheWorld, forMs: number): Promise<void> {
  const endMs = world.now() + forMs;
  const writer = async (key: string) => {
    while (world.now() < endMs) {
      await world.sleep(world.random.exponential(500));
      const verb = world.random.pick(['delete', 'set', 'tag'] as const);
      await caches.change(world.random.pick(caches.nodes), key, verb);
    }
  };
  await Promise.all(keys.map(writer));
}

describe('cache, simulated', () => {
  it('loads each key once per expiry, for eight processes', async () => {
    await checkSeeds({ seeds: worlds(12) }, async (world) => {
      const caches = new CacheWorld(world, { ...healthy, cache: { early: 'off', jitter: 0 } });
      await ask(world, caches, 10_000);
      await world.sleep(2_000);
      expect(caches.failures).toEqual([]);
      expect(caches.mostLoadsAtOnce()).toBe(1);
      // The ttl is 2 s, and nothing is loaded a second time within it.
      for (const key of keys) {
        const begun = caches.loads.filter((load) => load.key === key);
        for (const [index, { toMs }] of begun.entries()) {
          const next = begun[index + 1];
          if (next !== undefined) expect(next.fromMs - toMs!).toBeGreaterThanOrEqual(2_000);
        }
        expect(begun.length).toBeGreaterThanOrEqual(4);
      }
    });
  });

  it.each([true, false])('shows nothing old after a change, watching: %s', async (canWatch) => {
    await checkSeeds({ seeds: worlds(12) }, async (world) => {
      const caches = new CacheWorld(world, { ...healthy, canWatch, cache: { staleWhileRevalidate: '2s' } });
      await Promise.all([ask(world, caches, 8_000), change(world, caches, 8_000)]);
      await world.sleep(2_000);
      expect(caches.failures).toEqual([]);
      expect(caches.changes.length).toBeGreaterThan(20);
      // News of a change takes a moment. Without it, a copy in memory lives for 5 s at most, and a load that is under way may still answer.
      expect(caches.staleRead(canWatch ? 100 : 5_500)).toBeUndefined();
    });
  });

  it('loads once more, within lease and load, when the process that loads is killed', {
    timeout: 120_000,
  }, async () => {
    await checkSeeds({ seeds: worlds(20) }, async (world) => {
      const caches = new CacheWorld(world, { ...healthy, loadMs: () => 500 });
      for (const node of caches.nodes) for (let caller = 0; caller < 5; caller++) caches.get(node, 'a');
      await world.sleep(world.random.between(50, 450));
      const [first] = caches.loads;
      caches.nodes.find(({ name }) => name === first!.node)!.crash();
      const crashedMs = world.now();
      await world.eventually('all others have it', () => caches.reads.length === 35, { within: '10s' });
      expect(caches.loads.length).toBe(2);
      expect(world.now() - crashedMs).toBeLessThanOrEqual(3_000 + 500 + 300);
    });
  });

  it('stores nothing over newer data when the process that loads was frozen', async () => {
    await checkSeeds({ seeds: worlds(20) }, async (world) => {
      const caches = new CacheWorld(world, { ...healthy, loadMs: () => 300, cache: { ttl: '1m' } });
      const [frozen, writer] = caches.nodes as [CacheWorld['store'], CacheWorld['store']];
      caches.get(frozen, 'a');
      await world.eventually('it loads', () => caches.loads.length === 1, { within: '1s' });
      frozen.freeze();
      await world.sleep(world.random.between(1, 6_000));
      await caches.change(writer, 'a', world.random.pick(['delete', 'tag'] as const));
      for (const node of caches.nodes.slice(1)) caches.get(node, 'a');
      await world.sleep(world.random.between(1, 6_000));
      frozen.thaw();
      await world.sleep(1_000);
      for (const node of caches.nodes) for (let round = 0; round < 3; round++) caches.get(node, 'a');
      await world.sleep(5_000);
      for (const node of caches.nodes) caches.get(node, 'a');
      await world.sleep(1_000);
      expect(caches.staleRead(1)).toBeUndefined();
    });
  });

  it('keeps these promises under crashes, frozen processes, partitions, lost replies and outages', {
    timeout: 240_000,
  }, async () => {
    const network = { replyLoss: 0.01, loss: 0.01 };
    await checkSeeds({ seeds: worlds(6), network }, async (world) => {
      const ttlMs = 2_000;
      const windows = { staleWhileRevalidate: 1_000, staleIfError: 3_000, hardTimeout: 2_000, lease: 1_000 } as const;
      const caches = new CacheWorld(world, {
        ...healthy,
        canWatch: world.random.chance(0.5),
        cache: { ttl: ttlMs, ...windows },
      });
      const disturb = async () => {
        for (let fault = 0; fault < 12; fault++) {
          await world.sleep(world.random.between(200, 1_500));
          const victim = world.random.pick([...caches.nodes, ...caches.nodes, caches.store, caches.store]);
          const others = caches.nodes.filter((node) => node !== victim);
          const forMs = world.random.between(50, 3_000);
          const kind = world.random.pick(['crash', 'freeze', 'partition'] as const);
          if (kind === 'crash') victim.crash();
          else if (kind === 'freeze') victim.freeze();
          else world.network.partition([victim], victim === caches.store ? others.slice(0, 4) : [caches.store]);
          await world.sleep(forMs);
          if (kind === 'crash') victim.restart();
          else if (kind === 'freeze') victim.thaw();
          else world.network.heal();
        }
      };
      await Promise.all([ask(world, caches, 25_000, 20), change(world, caches, 20_000), disturb()]);
      // However bad the faults are, no answer is older than its windows allow, counted from its load.
      for (const { key, fromMs, value, node } of caches.reads) {
        const loads = caches.loads.filter((load) => load.key === key && load.value === value);
        const sets = caches.sets.filter((one) => one.key === key && one.value === value);
        const newestMs = Math.max(
          ...loads.map(({ toMs, fromMs: begunMs }) => toMs ?? begunMs),
          ...sets.map((one) => one.atMs),
        );
        const oldestMs = fromMs - (ttlMs + 3_000 + 600);
        expect(newestMs, `${node} at ${fromMs}: ${key} = ${value}`).toBeGreaterThan(oldestMs);
      }
      // Everything is well again once the faults are over.
      world.network.heal();
      for (const node of [caches.store, ...caches.nodes]) {
        node.thaw();
        if (node.state === 'down') node.restart();
      }
      await world.sleep(12_000);
      for (const key of keys) await caches.change(caches.nodes[0]!, key, 'delete');
      await world.sleep(6_000);
      caches.reads.length = 0;
      for (const node of caches.nodes) for (const key of keys) caches.get(node, key);
      await world.sleep(6_000);
      expect(caches.reads.length).toBeGreaterThanOrEqual(20);
      expect(caches.staleRead(5_500)).toBeUndefined();
    });
  });
});
