/**
 * Overload: how much of a service's capacity each strategy preserves under too much load, in virtual time.
 *
 * `node bench/overload/run.ts [--seeds=N] [--first=N] [--scenarios] [--grid] [--start] [--rivals] [--only=NAME]`; it runs the sources, no build is needed.
 * `--rivals` adds other libraries, which run only on request. Medians over the seeds; the same seeds play the same runs. A complete run takes some
 * minutes.
 */
import '../sources.ts';
import { parseArgs } from 'node:util';

const { grid } = await import('../../src/testing/overload/overload.ts');
const { median } = await import('../../test/support/median.ts');
const { adaptive, byStandard, onlyTimeout, oracle, published, unprotected } = await import(
  '../../test/simulation/support/strategies.ts'
);
const { playOnPlatform } = await import('../../src/testing/overload/platform.ts');
const { rivals } = await import('./rivals.ts');
type Strategy = import('../../src/testing/overload/overload.ts').Strategy;
type PlayOptions = import('../../src/testing/overload/overload.ts').PlayOptions;
type Report = import('../../src/testing/overload/overload.ts').Report;
type Scenario = import('../../src/testing/overload/overload.ts').Scenario;
type Shape = import('../../src/testing/overload/services.ts').Shape;

const { values } = parseArgs({
  options: {
    seeds: { type: 'string', default: '3' },
    first: { type: 'string', default: '1' },
    scenarios: { type: 'boolean' },
    grid: { type: 'boolean' },
    start: { type: 'boolean' },
    rivals: { type: 'boolean' },
    only: { type: 'string' },
  },
});
const seeds = Array.from({ length: Number(values.seeds) }, (_, index) => Number(values.first) + index);
const all = !(values.scenarios || values.grid || values.start || values.rivals);

const own: readonly [string, (shape: Shape) => Strategy][] = [
  ['no protection', () => unprotected],
  ['timeout only', () => onlyTimeout],
  ['AIMD', () => published('aimd')],
  ['Vegas', () => published('vegas')],
  ['Gradient2', () => published('gradient2')],
  ['adaptiveLimit()', () => adaptive()],
  ['oracle', oracle],
];
const beside: readonly [string, (shape: Shape) => Strategy][] = [
  ['no protection', () => unprotected],
  ...Object.entries(rivals).map(([name, strategy]) => [name, () => strategy] as [string, () => Strategy]),
  ['standard()', () => byStandard],
  ['adaptiveLimit() + timeout', () => adaptive()],
  ['oracle: bulkhead(20) + timeout', oracle],
];
const isWanted = ([name]: readonly [string, unknown]) => values.only === undefined || name === values.only;
const strategies = own.filter(isWanted);

console.log(`seeds ${seeds.join(', ')}; node bench/overload/run.ts --seeds=${seeds.length} --first=${seeds[0]}`);

const nameWidth = values.rivals ? 50 : 16;

async function runs(strategy: Strategy, shape: Shape, scenario: Scenario, more: Partial<PlayOptions> = {}) {
  const reports = [];
  for (const seed of seeds) reports.push(await playOnPlatform({ strategy, shape, scenario, seed, ...more }));
  return reports;
}

function row(name: string, cells: readonly (string | number)[]): string {
  return `| ${name.padEnd(nameWidth)} | ${cells.map((cell) => String(cell).padStart(9)).join(' | ')} |`;
}

function head(columns: readonly string[], title = ''): void {
  console.log(`\n${row(title, columns)}`);
  console.log(`|${'-'.repeat(nameWidth + 2)}|${columns.map(() => `${'-'.repeat(10)}:`).join('|')}|`);
}

if (all || values.scenarios) {
  const pool = grid['s20/100/4']!;
  const thrash = grid['t20/100/4']!;
  head([
    'spike %',
    'p99 ms',
    'calls',
    'back s',
    'wasted %',
    'shed %',
    'thrash %',
    'p99 ms',
    'back s',
    'slow %',
    'down %',
  ]);
  for (const [name, strategyFor] of strategies) {
    const spike = await runs(strategyFor(pool), pool, 'spike');
    const thrashing = await runs(strategyFor(thrash), thrash, 'spike');
    const slow = await runs(strategyFor(pool), pool, 'slow');
    const down = await runs(strategyFor(pool), pool, 'down');
    console.log(
      row(name, [
        median(spike.map(({ goodput }) => goodput)).toFixed(1),
        median(spike.map(({ p99Ms }) => p99Ms)).toFixed(0),
        median(spike.map(({ callsPerRequest }) => callsPerRequest)).toFixed(2),
        median(spike.map(({ recoverySeconds }) => recoverySeconds)).toFixed(1),
        median(spike.map(({ wasted }) => wasted)).toFixed(0),
        median(spike.map(({ shedBefore }) => shedBefore)).toFixed(2),
        median(thrashing.map(({ goodput }) => goodput)).toFixed(1),
        median(thrashing.map(({ p99Ms }) => p99Ms)).toFixed(0),
        median(thrashing.map(({ recoverySeconds }) => recoverySeconds)).toFixed(1),
        median(slow.map(({ goodAfter }) => goodAfter)).toFixed(1),
        median(down.map(({ goodAfter }) => goodAfter)).toFixed(1),
      ]),
    );
  }
}

if (all || values.grid) {
  head([...Object.keys(grid), 'worst', 'of all', '>= 85']);
  for (const [name, strategyFor] of strategies) {
    const medians: number[] = [];
    let least = Number.POSITIVE_INFINITY;
    for (const shape of Object.values(grid)) {
      const goodputs = (await runs(strategyFor(shape), shape, 'spike')).map(({ goodput }) => goodput);
      medians.push(median(goodputs));
      least = Math.min(least, ...goodputs);
    }
    const enough = medians.filter((goodput) => goodput >= 85).length;
    console.log(
      row(name, [...medians, Math.min(...medians), least].map((one) => one.toFixed(0)).concat(`${enough}/12`)),
    );
  }
}

// Overloaded from the first moment on: what is answered in the seconds 20 to 40.
if (all || values.start) {
  for (const load of [1.2, 3]) {
    head([...Object.keys(grid), 'worst'], `start, ${load}x`);
    for (const [name, strategyFor] of strategies) {
      const medians: number[] = [];
      for (const shape of Object.values(grid)) {
        const reports = await runs(strategyFor(shape), shape, 'calm', { load, afterSeconds: 1 });
        medians.push(median(reports.map(({ goodput }) => goodput)));
      }
      console.log(
        row(
          name,
          [...medians, Math.min(...medians)].map((one) => one.toFixed(0)),
        ),
      );
    }
  }
}

if (values.rivals) {
  const show: readonly [string, Exclude<keyof Report, 'seed'>, number][] = [
    ['goodput %', 'goodput', 1],
    ['p99 ms', 'p99Ms', 0],
    ['calls', 'callsPerRequest', 2],
    ['back s', 'recoverySeconds', 1],
    ['wasted %', 'wasted', 0],
    ['after %', 'goodAfter', 1],
  ];
  const scenarios: readonly [string, string, Scenario][] = [
    ['spike', 's20/100/4', 'spike'],
    ['thrash', 't20/100/4', 'spike'],
    ['slow', 's20/100/4', 'slow'],
    ['down', 's20/100/4', 'down'],
  ];
  for (const [title, shapeName, scenario] of scenarios) {
    const shape = grid[shapeName]!;
    head(
      show.map(([column]) => column),
      title,
    );
    for (const [name, strategyFor] of beside.filter(isWanted)) {
      const reports = await runs(strategyFor(shape), shape, scenario);
      console.log(
        row(
          name,
          show.map(([, field, digits]) => median(reports.map((one) => one[field])).toFixed(digits)),
        ),
      );
    }
  }
}
