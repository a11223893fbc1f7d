import { promisify } from 'node:util';
import { describe, expect, it } from 'vitest';
import type { Task } from '../../../src/testing/overload/overload.js';
import { runOnPlatform } from '../../../src/testing/overload/platform.js';

const shape = { workers: 2, meanMs: 10, gamma: 4, kind: 'pool' } as const;

/** Plays a few seconds in which each call first waits, and returns how many calls of users did not end well. */
async function failedCalls(wait: () => unknown): Promise<number> {
  const { requests } = await runOnPlatform(1, () => ({
    shape,
    seed: 1,
    scenario: 'calm',
    ...{ beforeSeconds: 1, disturbanceSeconds: 1, afterSeconds: 1 },
    strategy: () => async (task: Task) => {
      await wait();
      return task({});
    },
  }));
  expect(requests.length).toBeGreaterThan(100);
  return requests.filter(({ isGood }) => !isGood).length;
}

describe('runOnPlatform', () => {
  it.each([Number.NaN, Number.POSITIVE_INFINITY, 2 ** 31, -1, 0, undefined, '1', 'soon'])(
    'gives a timer of %s the millisecond that it has in Node',
    async (ms) => {
      expect(await failedCalls(() => new Promise((resolve) => setTimeout(resolve, ms as number)))).toBe(0);
    },
  );

  it('lets code wait for a promisified setTimeout', async () => {
    expect(await failedCalls(() => promisify(setTimeout)(50))).toBe(0);
    expect(
      await failedCalls(async () => {
        const waited = promisify(setTimeout)(60_000, 'value', { signal: AbortSignal.timeout(5) });
        await expect(waited).rejects.toMatchObject({ name: 'TimeoutError' });
        expect(await promisify(setTimeout)(1, 'value')).toBe('value');
      }),
    ).toBe(0);
  });

  it('ends although a timer renews itself for ever', async () => {
    let beats = 0;
    const beat = () => {
      beats++;
      setTimeout(beat, 1_000);
    };
    let isBeating = false;
    const failed = await failedCalls(() => {
      if (!isBeating) beat();
      isBeating = true;
    });
    expect(failed).toBe(0);
    expect(beats).toBeGreaterThan(2);
  });
});
