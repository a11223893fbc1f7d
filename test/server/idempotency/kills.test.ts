/**
 * Servers that are killed at every await of the handler and the engine. The points are counted, not chosen by hand. A normal run draws a few of them anew each
 * time; `npm run kills` takes all of them, which lasts some minutes.
 */
import { once } from 'node:events';
import { seededRandom } from 'holdfast/testing';
import { describe, expect, it } from 'vitest';
import { mostBlockedMs, order, type Shop, Town, untilDecided, withShops } from './town.js';

const isThorough = process.env.HOLDFAST_KILLS === 'all';
const seed = Number(process.env.HOLDFAST_SEED ?? Date.now() % 1_000_000);
const batch = 6;

withShops();

describe.each(['express', 'fastify'])('with %s, a server that is killed at any await', (framework) => {
  it.each(isThorough ? ['refuse', 'resume', 'rerun'] : [framework === 'express' ? 'refuse' : 'resume'])(
    'in mode %s blocks no key for longer than its lease, and has no more effects than the mode allows',
    async (onLost) => {
      await using town = new Town();
      const points = await pointsOf(await town.open(framework, onLost));
      const survivor = await town.open(framework, onLost);
      const seen = new Set<number>();
      for (let begin = 0; begin < points.length; begin += batch) {
        await Promise.all(
          points.slice(begin, begin + batch).map(async (diesAt) => {
            const key = `killed at ${diesAt}`;
            const shop = await town.open(framework, onLost);
            const first = await order(shop, key, { diesAt });
            // Some points are only reached now and then. A shop that has passed them is killed with the others.
            if (shop.child.exitCode === null && shop.child.signalCode === null) {
              const gone = once(shop.child, 'exit');
              shop.child.kill('SIGKILL');
              await gone;
            }
            const { answer, tookMs } = await untilDecided(survivor, key);
            const effects = town.effects(key).length;
            const what = `seed ${seed}, ${key} of ${points.at(-1)}: ${answer.status}, ${effects} effects`;
            seen.add(answer.status);
            expect(tookMs, what).toBeLessThan(mostBlockedMs);
            expect(effects, what).toBeLessThanOrEqual(onLost === 'refuse' ? 1 : 2);
            if (answer.status === 201) {
              expect(effects, what).toBeGreaterThanOrEqual(1);
              expect(JSON.parse(answer.body.toString()), what).toMatchObject({ of: key });
            } else {
              expect([onLost, answer.status], what).toEqual(['refuse', 409]);
              expect(JSON.parse(answer.body.toString()).type, what).toMatch(/outcome-unknown$/);
            }
            // A client that has received an answer receives it again, and there was no second effect.
            if (first.status === 201 && first.body.length > 0) {
              expect([first.body.toString(), effects], what).toEqual([answer.body.toString(), 1]);
            }
            const again = await order(survivor, key);
            expect([again.status, again.body.toString()], what).toEqual([answer.status, answer.body.toString()]);
            expect(town.effects(key), what).toHaveLength(effects);
          }),
        );
      }
      if (isThorough) expect(seen).toEqual(new Set(onLost === 'refuse' ? [201, 409] : [201]));
    },
    isThorough ? 900_000 : 300_000,
  );
});

/** All points, or one from each of several stretches of equal length. */
async function pointsOf(shop: Shop): Promise<number[]> {
  const told = once(shop.child, 'message');
  const working = told.then(() => once(shop.child, 'message'));
  await order(shop, 'counted', { diesAt: 0 });
  const [{ passed }] = (await working) as [{ passed: number }];
  expect(passed).toBeGreaterThan(10);
  if (isThorough) return Array.from({ length: passed }, (_, index) => index + 1);
  const random = seededRandom(seed);
  return Array.from({ length: batch }, (_, index) => 1 + Math.floor(((index + random()) * passed) / batch));
}
