import { describe, expect, it } from 'vitest';
import { acts, isBetter, stageOf } from '../../../src/cli/demo/acts.js';
import type { Path } from '../../../src/cli/demo/shop.js';
import { tableOf } from '../../../src/cli/demo/table.js';
import type { World } from '../../../src/cli/demo/world.js';
import { seededRandom, virtualClock } from '../../../src/testing/index.js';

/** An act in which nothing happens, and a path that can or cannot serve its users. */
function worldOf(isServed: (path: Path) => boolean, more: Partial<World> = {}) {
  const clock = virtualClock();
  const counts = { calls: 0, loads: 0, charged: 0, doubled: 0, overlaps: 0, refused: 0, owner: undefined };
  const world: World = {
    ...{ clock, random: seededRandom(7), patienceMs: 2_000, sleep: (ms) => clock.sleep(ms) },
    ask: async (path) => isServed(path) || Promise.reject(new Error('refused')),
    ...{ setWeather: async () => {}, restartBanks: async () => {}, counts: async () => counts },
    ...{ killWorker: async () => {}, freezeOwner: async () => {}, startJobs: async () => {}, stopJobs: async () => {} },
    ...more,
  };
  const play = (name: string, ms = 1_500) => acts.find((act) => act.name === name)!.play(stageOf(world, ms));
  return { clock, world, play };
}

describe('an act of the demo', () => {
  it.each([
    ['hot key', 'loads per expiry'],
    ['spike', 'slowest of 99 % of those served'],
  ])('%s has no merit in "%s" where nobody was served', async (act, what) => {
    const figuresOf = async (isServed: (path: Path) => boolean) => {
      const { clock, play } = worldOf(isServed);
      const played = play(act);
      await clock.advance('10s');
      const row = (await played).find((one) => one.what === what)!;
      return { isBetter: isBetter(row), line: tableOf([{ act, row }])[1] };
    };
    const none = await figuresOf(() => false);
    expect(none).toEqual({ isBetter: false, line: expect.stringMatching(/none served +none served$/) });
    expect(await figuresOf((path) => path === 'naked')).toMatchObject({ isBetter: false });
    expect(await figuresOf((path) => path === 'protected')).toMatchObject({ isBetter: true });
    expect(await figuresOf(() => true)).toMatchObject({ isBetter: true });
  });

  it('is not rejected by a user who is interrupted while he waits for his next try', async () => {
    const { clock, play } = worldOf(() => false, {
      sleep: (ms) => (ms === 250 ? Promise.reject(new Error('SIGINT received')) : clock.sleep(ms)),
    });
    const played = play('kill -9');
    await clock.advance('20s');
    expect(await played).toHaveLength(2);
  });

  it('ends with what interrupts it, also while a worker is to be killed', async () => {
    const stop = new Error('SIGINT received');
    const { play } = worldOf(() => true, { sleep: () => Promise.reject(stop) });
    await expect(play('kill -9', 8_000)).rejects.toBe(stop);
  });
});
