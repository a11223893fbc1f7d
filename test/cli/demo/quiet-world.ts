/** A world for tests of the demo, in virtual time, in which nothing happens. */
import type { World } from '../../../src/cli/demo/world.js';
import { seededRandom, type VirtualClock, virtualClock } from '../../../src/testing/index.js';

export interface QuietWorld extends World {
  readonly clock: VirtualClock;
}

export function quietWorld({
  doubled = () => 0,
  ...more
}: Partial<World> & { doubled?: () => number } = {}): QuietWorld {
  const clock = virtualClock();
  const counts = async () => ({
    ...{ calls: 0, loads: 0, charged: 0, doubled: doubled(), overlaps: 0, refused: 0, owner: undefined },
  });
  return {
    ...{ random: seededRandom(7), patienceMs: 2_000, sleep: (ms) => clock.sleep(ms) },
    ...{ ask: async () => true, setWeather: async () => {}, restartBanks: async () => {}, counts },
    ...{ killWorker: async () => {}, freezeOwner: async () => {}, startJobs: async () => {}, stopJobs: async () => {} },
    ...more,
    clock,
  };
}
