/** Acts: what is done to both paths, and what is measured. Each act begins and ends with everything in working order. */
import { fair, type Weather } from './bank.js';
import type { Figure, Measure, Seen } from './figures.js';
import { lockTtlMs } from './job.js';
import { paths } from './shop.js';
import { send, type Visitors } from './users.js';
import type { World } from './world.js';

export interface Stage {
  readonly world: World;
  readonly visitors: Visitors;
  readonly ms: number;
}

export interface Act {
  readonly name: string;
  readonly story: string;
  readonly seconds: number;
  /** The shortest duration that shows the effect. Left out: too long for a quick run. */
  readonly quickSeconds?: number;
  /** What is compared at the end. */
  readonly measures: readonly Measure[];
  /** What is shown besides while the act plays. */
  readonly besides: readonly Figure[];
  play(stage: Stage): Promise<void>;
}

const usualPerSecond = 30;
const spikeMs = 6_000;
const killEveryMs = 3_000;
const downMs = 1_000;
const expiryMs = 500;
const brownOut: Weather = { failing: 0.25, meanMs: 170 };

const success: Figure = { what: 'users served', unit: 'percent', of: ({ visits }) => visits.share * 100 };
const slowest: Figure = { what: 'slowest of 99 % of those served', unit: 'ms', of: ({ visits }) => visits.p99Ms };
const callsPerUser: Figure = {
  what: 'calls to the bank per user',
  unit: 'times',
  of: ({ visits, grown }) => grown('calls') / visits.came,
};
const waiting: Figure = { what: 'users waiting', unit: 'count', of: ({ visits }) => visits.waiting };
const charged: Figure = { what: 'orders charged', unit: 'count', of: ({ grown }) => grown('charged') };
const doubled: Figure = { what: 'cards charged twice', unit: 'count', of: ({ grown }) => grown('doubled') };

export const acts: readonly Act[] = [
  {
    name: 'brown-out',
    story: 'the bank fails a quarter of its calls and is two thirds slower',
    seconds: 10,
    measures: [
      {
        ...success,
        aim: 'more',
        cause: 'three quick retries keep the bank full; a breaker, a limit and a retry budget let it work',
      },
      { ...callsPerUser, aim: 'less', cause: 'successes pay for retries; they are not free' },
    ],
    besides: [slowest, waiting],
    async play({ world, visitors, ms }) {
      await world.setWeather(brownOut);
      await send(world, visitors, { perSecond: usualPerSecond, forMs: ms, request: () => ({ kind: 'quote' }) });
      await world.setWeather(fair);
    },
  },
  {
    name: 'spike',
    story: 'ten times as many users as usual',
    seconds: 12,
    measures: [
      {
        ...success,
        aim: 'more',
        cause: 'users who wait too long have left before their turn; a limit turns away at once those it cannot serve',
      },
      { ...slowest, aim: 'less', cause: 'the queue forms at the limit, not at the bank' },
    ],
    besides: [callsPerUser, waiting],
    async play({ world, visitors, ms }) {
      const quotes = (perSecond: number, forMs: number) =>
        send(world, visitors, { perSecond, forMs, request: () => ({ kind: 'quote' }) });
      await Promise.all([
        quotes(usualPerSecond, ms),
        world.sleep(ms * 0.2).then(() => quotes(9 * usualPerSecond, Math.min(spikeMs, ms * 0.4))),
      ]);
    },
  },
  {
    name: 'hot key',
    story: 'every user looks at one product, which is cached for half a second',
    seconds: 6,
    quickSeconds: 1.5,
    measures: [
      {
        what: 'loads per expiry',
        unit: 'times',
        aim: 'less',
        of: loadsPerExpiry,
        cause: 'one load per key for all processes, by a lease in the entry',
      },
    ],
    besides: [success, waiting],
    play: ({ world, visitors, ms }) =>
      send(world, visitors, { perSecond: 75, forMs: ms, request: () => ({ kind: 'product' }) }),
  },
  {
    name: 'double click',
    story: 'every user clicks three times on "pay"',
    seconds: 5,
    quickSeconds: 1,
    measures: [{ ...doubled, aim: 'none', cause: 'checking before charging is a race; a key is claimed first' }],
    besides: [charged, waiting],
    play: ({ world, visitors, ms }) =>
      send(world, visitors, { perSecond: 6, forMs: ms, clicks: 3, request: order('click') }),
  },
  {
    name: 'kill -9',
    story: 'a worker is killed while it charges cards; users try again',
    seconds: 8,
    quickSeconds: 2,
    measures: [
      { ...doubled, aim: 'none', cause: 'the worker that takes over charges with the key of the dead one' },
      {
        what: 'orders without an answer',
        unit: 'count',
        aim: 'none',
        of: ({ visits }) => visits.left,
        cause: 'users came back until they had one',
      },
    ],
    besides: [charged, waiting],
    async play({ world, visitors, ms }) {
      const orders = send(world, visitors, { perSecond: 15, forMs: ms, request: order('kill') });
      for (let atMs = 1_000; atMs < ms; atMs += killEveryMs) {
        const kills = world.sleep(atMs).then(() => Promise.all(paths.map((path) => world.killWorker(path, downMs))));
        // If the demo is ended meanwhile, the orders end with it.
        kills.catch(() => {});
      }
      await orders;
    },
  },
  {
    name: 'frozen',
    story: 'the owner of a lock freezes for twice the lease, then goes on',
    seconds: 6,
    quickSeconds: 2.5,
    measures: [
      {
        what: 'lines written by two owners at once',
        unit: 'count',
        aim: 'none',
        of: ({ grown }) => grown('overlaps'),
        cause: 'the owner learns that the lease is lost; the ledger would refuse its stale fence',
      },
    ],
    besides: [{ what: 'lines refused for their fence', unit: 'count', of: ({ grown }) => grown('refused') }],
    async play({ world, ms }) {
      await world.startJobs();
      const endsAtMs = world.clock.now() + ms;
      await world.sleep(lockTtlMs * 0.4);
      while (world.clock.now() < endsAtMs) {
        await Promise.all(paths.map((path) => world.freezeOwner(path, 2 * lockTtlMs)));
        await world.sleep(lockTtlMs * 0.5);
      }
      await world.stopJobs();
    },
  },
];

function order(series: string) {
  return (number: number) => ({ kind: 'order', key: `${series} ${number}` }) as const;
}

/** If nobody was served, nothing was shown: zero load is no merit then. */
function loadsPerExpiry({ visits, elapsedMs, grown }: Seen): number {
  return visits.served === 0 ? Number.NaN : grown('loads') / Math.max(1, elapsedMs / expiryMs);
}
