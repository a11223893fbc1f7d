/** Acts: what is done to both paths, and what is measured. Each act begins and ends with everything in working order. */
import { fair, type Weather } from './bank.js';
import { lockTtlMs } from './job.js';
import { type Path, paths } from './shop.js';
import { send, type Visitors, Visits } from './users.js';
import type { World } from './world.js';

/** One figure, measured on both paths. */
export interface Row {
  readonly what: string;
  /** NaN: nobody was served. */
  readonly naked: number;
  readonly protected: number;
  readonly unit: 'percent' | 'ms' | 'times' | 'count';
  readonly better: 'more' | 'less';
  /** Why the two differ. */
  readonly cause: string;
}

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
  play(stage: Stage): Promise<Row[]>;
}

const usualPerSecond = 30;
const spikeMs = 6_000;
const killEveryMs = 3_000;
const downMs = 1_000;
const brownOut: Weather = { failing: 0.25, meanMs: 170 };

export const acts: readonly Act[] = [
  {
    name: 'brown-out',
    story: 'the bank fails a quarter of its calls and is two thirds slower',
    seconds: 10,
    async play({ world, visitors, ms }) {
      const calls = await counted(world, 'calls', async () => {
        await world.setWeather(brownOut);
        await send(world, visitors, { perSecond: usualPerSecond, forMs: ms, request: () => ({ kind: 'quote' }) });
        await world.setWeather(fair);
      });
      const perUser = (path: Path) => calls[path] / visitors[path].came;
      return [
        successOf(
          visitors,
          'three immediate tries keep the bank full; a breaker, a limit and a retry budget let it work',
        ),
        row('calls to the bank per user', 'times', 'less', perUser, 'successes pay for retries; they are not free'),
      ];
    },
  },
  {
    name: 'spike',
    story: 'ten times as many users as usual',
    seconds: 12,
    async play({ world, visitors, ms }) {
      const quotes = (perSecond: number, forMs: number) =>
        send(world, visitors, { perSecond, forMs, request: () => ({ kind: 'quote' }) });
      await Promise.all([
        quotes(usualPerSecond, ms),
        world.sleep(ms * 0.2).then(() => quotes(9 * usualPerSecond, Math.min(spikeMs, ms * 0.4))),
      ]);
      const p99 = (path: Path) => visitors[path].p99Ms;
      return [
        successOf(
          visitors,
          'users who wait too long have left before their turn; a limit turns away at once those it cannot serve',
        ),
        row('slowest of 99 % of those served', 'ms', 'less', p99, 'the queue forms at the limit, not at the bank'),
      ];
    },
  },
  {
    name: 'hot key',
    story: 'every user looks at one product, which is cached for half a second',
    seconds: 6,
    quickSeconds: 1.5,
    async play({ world, visitors, ms }) {
      const beganMs = world.clock.now();
      const loads = await counted(world, 'loads', () =>
        send(world, visitors, { perSecond: 75, forMs: ms, request: () => ({ kind: 'product' }) }),
      );
      const expiries = (world.clock.now() - beganMs) / 500;
      return [
        row(
          'loads per expiry',
          'times',
          'less',
          // If nobody was served, nothing was shown: zero load is no merit then.
          (path) => (visitors[path].served === 0 ? Number.NaN : loads[path] / expiries),
          'one load per key for all processes, by a lease in the entry',
        ),
      ];
    },
  },
  {
    name: 'double click',
    story: 'every user clicks three times on "pay"',
    seconds: 5,
    quickSeconds: 1,
    async play({ world, visitors, ms }) {
      const doubled = await counted(world, 'doubled', () =>
        send(world, visitors, { perSecond: 6, forMs: ms, clicks: 3, request: order('click') }),
      );
      return [
        row(
          'cards charged twice',
          'count',
          'less',
          (path) => doubled[path],
          'checking before charging is a race; a key is claimed first',
        ),
      ];
    },
  },
  {
    name: 'kill -9',
    story: 'a worker is killed while it charges cards; users try again',
    seconds: 8,
    quickSeconds: 2,
    async play({ world, visitors, ms }) {
      const doubled = await counted(world, 'doubled', async () => {
        const orders = send(world, visitors, { perSecond: 15, forMs: ms, request: order('kill') });
        for (let atMs = 1_000; atMs < ms; atMs += killEveryMs) {
          const kills = world.sleep(atMs).then(() => Promise.all(paths.map((path) => world.killWorker(path, downMs))));
          // If the demo is ended meanwhile, the orders end with it.
          kills.catch(() => {});
        }
        await orders;
      });
      const unserved = (path: Path) => visitors[path].came - visitors[path].served;
      return [
        row(
          'cards charged twice',
          'count',
          'less',
          (path) => doubled[path],
          'the worker that takes over charges with the key of the dead one',
        ),
        row('orders without an answer', 'count', 'less', unserved, 'users came back until they had one'),
      ];
    },
  },
  {
    name: 'frozen',
    story: 'the owner of a lock freezes for twice the lease, then goes on',
    seconds: 6,
    quickSeconds: 2.5,
    async play({ world, ms }) {
      const overlaps = await counted(world, 'overlaps', async () => {
        await world.startJobs();
        const endsAtMs = world.clock.now() + ms;
        await world.sleep(lockTtlMs * 0.4);
        while (world.clock.now() < endsAtMs) {
          await Promise.all(paths.map((path) => world.freezeOwner(path, 2 * lockTtlMs)));
          await world.sleep(lockTtlMs * 0.5);
        }
        await world.stopJobs();
      });
      return [
        row(
          'lines written by two owners at once',
          'count',
          'less',
          (path) => overlaps[path],
          'the owner learns that the lease is lost, and the ledger refuses its stale fence',
        ),
      ];
    },
  },
];

/** Runs an act with its own visitors. */
export function stageOf(world: World, ms: number): Stage {
  return { world, ms, visitors: { naked: new Visits(), protected: new Visits() } };
}

/** Whether the protected path was better. If neither path has a result, nothing was shown. */
export function isBetter({ naked, protected: guarded, better }: Row): boolean {
  if (Number.isNaN(naked)) return !Number.isNaN(guarded);
  return better === 'more' ? guarded > naked : guarded < naked || guarded === 0;
}

function order(series: string) {
  return (number: number) => ({ kind: 'order', key: `${series} ${number}` }) as const;
}

function successOf(visitors: Visitors, cause: string): Row {
  return row('users served', 'percent', 'more', (path) => visitors[path].share * 100, cause);
}

function row(what: string, unit: Row['unit'], better: Row['better'], of: (path: Path) => number, cause: string): Row {
  return { what, unit, better, naked: of('naked'), protected: of('protected'), cause };
}

/** How much a counter of both banks grows during a task. */
async function counted(
  world: World,
  name: 'calls' | 'loads' | 'doubled' | 'overlaps',
  during: () => Promise<unknown>,
): Promise<Record<Path, number>> {
  const before = await Promise.all(paths.map((path) => world.counts(path)));
  await during();
  const after = await Promise.all(paths.map((path) => world.counts(path)));
  const grown = (index: number) => after[index]![name] - before[index]![name];
  return { naked: grown(0), protected: grown(1) };
}
