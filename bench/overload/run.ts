/**
 * Overload: what each strategy keeps of a service's capacity when too much comes, in virtual time.
 *
 * `node bench/overload/run.ts [--seeds=N] [--first=N] [--scenarios] [--grid]`, after a build or not: it runs the sources.
 * Medians of the seeds; the same seeds play the same runs. All of it takes some minutes.
 */
import { registerHooks } from 'node:module';
import { parseArgs } from 'node:util';

// The sources name each other `.js`, as what is built of them will be called.
registerHooks({
  resolve(specifier, context, next) {
    const isSource =
      specifier.startsWith('.') && specifier.endsWith('.js') && !context.parentURL?.includes('node_modules');
    return next(isSource ? `${specifier.slice(0, -3)}.ts` : specifier, context);
  },
});
const { grid, median, play } = await import('../../test/simulation/support/overload.ts');
const { adaptive, onlyTimeout, oracle, published, unprotected } = await import(
  '../../test/simulation/support/strategies.ts'
);
type Strategy = import('../../test/simulation/support/overload.ts').Strategy;
type Scenario = import('../../test/simulation/support/overload.ts').Scenario;
type Shape = import('../../test/simulation/support/services.ts').Shape;

const { values } = parseArgs({
  options: {
    seeds: { type: 'string', default: '3' },
    first: { type: 'string', default: '1' },
    scenarios: { type: 'boolean' },
    grid: { type: 'boolean' },
    only: { type: 'string' },
  },
});
const seeds = Array.from({ length: Number(values.seeds) }, (_, index) => Number(values.first) + index);
const both = values.scenarios === values.grid;

const all: readonly [string, (shape: Shape) => Strategy][] = [
  ['no protection', () => unprotected],
  ['timeout only', () => onlyTimeout],
  ['AIMD', () => published('aimd')],
  ['Vegas', () => published('vegas')],
  ['Gradient2', () => published('gradient2')],
  ['adaptiveLimit()', () => adaptive()],
  ['oracle', oracle],
];
const strategies = all.filter(([name]) => values.only === undefined || name === values.only);

console.log(`seeds ${seeds.join(', ')}; node bench/overload/run.ts --seeds=${seeds.length} --first=${seeds[0]}`);

async function runs(strategy: Strategy, shape: Shape, scenario: Scenario) {
  const reports = [];
  for (const seed of seeds) reports.push(await play({ strategy, shape, scenario, seed }));
  return reports;
}

function row(name: string, cells: readonly (string | number)[]): string {
  return `| ${name.padEnd(16)} | ${cells.map((cell) => String(cell).padStart(9)).join(' | ')} |`;
}

function head(columns: readonly string[]): void {
  console.log(`\n${row('', columns)}`);
  console.log(`|${'-'.repeat(18)}|${columns.map(() => `${'-'.repeat(10)}:`).join('|')}|`);
}

if (both || values.scenarios) {
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

if (both || values.grid) {
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
