// Run by node-test.test.ts with `node --test`; it uses the built package by its public name.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { checkSeeds, simulate, virtualClock } from 'holdfast/testing';

/** A shop that tries again when no answer comes, and a bank that forgets (or not) what it has charged. */
async function shop(world) {
  const charged = [];
  world.node('bank', {
    start: (process) =>
      process.serve((order) => {
        if (!globalThis.process.env.PLANT_BUG && charged.includes(order)) return 'known';
        charged.push(order);
        return 'charged';
      }),
  });
  world.invariant('charged once', () => charged.length <= 1);
  await world.node('shop').run('sell', async (process) => {
    for (;;) {
      const controller = new AbortController();
      void process.sleep('50ms').then(() => controller.abort());
      const answer = await process.request('bank', 'order 1', { signal: controller.signal }).catch(() => undefined);
      if (answer !== undefined) return;
    }
  });
}

test('a virtual clock moves when told to', async () => {
  const clock = virtualClock();
  const nap = clock.sleep('1h');
  await clock.advance('1h');
  await nap;
});

test('a seed replays bit for bit', async () => {
  const options = { seed: 3, network: { delay: { mean: 4 } } };
  const scenario = (world) => world.node('a').run('nap', (process) => process.sleep(process.random.between(1, 9)));
  assert.deepEqual(await simulate(options, scenario), await simulate(options, scenario));
});

test('no order is charged twice', async () => {
  await checkSeeds({ seeds: 100, network: { replyLoss: 0.1 } }, shop);
});
