/** Ten simulated minutes for each seed. Every run plays a few seeds; `npm run simulation` plays 500, and can replay one. */
import { describe, expect, it } from 'vitest';
import { forbidUnhandledRejections } from '../support/unhandled-rejections.ts';
import { type Lived, playAnyPipeline, playStandard } from './support/long-worlds.ts';

const only = process.env.HOLDFAST_SEED;
const count = only === undefined ? Number(process.env.HOLDFAST_SIMULATION_SEEDS ?? 3) : 1;
const first = Number(only ?? 1);
const isLong = process.env.HOLDFAST_SIMULATION_SEEDS !== undefined;

forbidUnhandledRejections();

async function playAll(what: string, play: (seed: number) => Promise<Lived>): Promise<void> {
  let hours = 0;
  let calls = 0;
  for (let seed = first; seed < first + count; seed++) {
    const lived = await play(seed);
    hours += lived.virtualMs / 3_600_000;
    calls += lived.calls;
    const replay = `npm run simulation -- --seed ${seed}`;
    expect(lived.faults, `${what}, seed ${seed}; again: ${replay}`).toEqual([]);
    if (isLong && (seed - first + 1) % 25 === 0)
      console.log(`${what}: ${seed - first + 1} seeds, ${hours.toFixed(1)} hours`);
  }
  // A world in which nobody calls would keep every bound.
  expect(calls, what).toBeGreaterThan(10 * count);
  if (isLong)
    console.log(`${what}: seeds ${first} to ${first + count - 1}, ${hours.toFixed(1)} simulated hours, ${calls} calls`);
}

describe('in ten minutes of any world', { timeout: isLong ? 7_200_000 : 60_000 }, () => {
  it('standard keeps its bounds at every step, and each service is back within 10 s of a disturbance', async () => {
    await playAll('standard', playStandard);
  });

  it('a pipeline of any policies keeps its bounds at every step, and comes to rest after every burst', async () => {
    await playAll('any pipeline', playAnyPipeline);
  });
});
