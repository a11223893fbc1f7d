/**
 * Simulation: runs a scenario in a simulated world, for one seed or for many.
 *
 * Promise: the same seed and scenario give the same events in the same order on every machine, and so the same digest;
 * a failure names its seed, and that seed fails again.
 */
import type { Duration } from '../core/duration.js';
import { OptionsError } from '../core/errors.js';
import {
  checkArgument,
  checkOptions,
  duration,
  type Field,
  func,
  integer,
  optional,
  show,
  withDefault,
} from '../core/options.js';
import type { LinkOptions } from './network.js';
import { SimulationError } from './simulation-error.js';
import { defaultWallMs } from './virtual-clock.js';
import { type Scenario, Simulation, type WorldSettings } from './world.js';

/** Options of {@link simulate}. */
export interface SimulateOptions {
  /** Decides everything that is left to chance. An integer from 0; default HOLDFAST_SEED from the environment, else 1. */
  readonly seed?: number | undefined;
  /** The behaviour of every link that `world.network.link` does not change. */
  readonly network?: LinkOptions | undefined;
  /** Events after which a scenario counts as endless. Default 1 000 000, a few seconds of work. */
  readonly maxSteps?: number | undefined;
  /** Virtual time after which a scenario counts as endless. Up to 24 days, default `'24h'`. */
  readonly maxTime?: Duration | undefined;
  /** How many of the last events an error shows. Default 30. */
  readonly traceLines?: number | undefined;
  /** Receives the text of every event, to inspect one seed. It costs most of the speed. */
  readonly onEvent?: ((line: string) => void) | undefined;
  /** The initial time of wall clocks. Milliseconds since 1970, default 2026-01-01T00:00:00Z. */
  readonly wallStart?: number | undefined;
}

/** The result of a simulation. */
export interface SimulationReport<T> {
  readonly seed: number;
  /** Events that ran. */
  readonly steps: number;
  /** How much time passed in the world, in milliseconds. */
  readonly virtualMs: number;
  /** A hash over every event: two runs with the same one were the same. Sixteen hexadecimal digits. */
  readonly digest: string;
  /** The last events in words, oldest first. */
  readonly trace: readonly string[];
  /** What the scenario returned. */
  readonly result: T;
}

/** Options of {@link checkSeeds}. */
export interface CheckSeedsOptions extends Omit<SimulateOptions, 'seed'> {
  /** How many seeds to run. */
  readonly seeds: number;
  /** The first seed. Default 1, so that every run checks the same; raise it for a longer search. */
  readonly from?: number | undefined;
}

/** The result of a run of many seeds. */
export interface SeedsReport {
  /** How many seeds were run: 1 under HOLDFAST_SEED. */
  readonly seeds: number;
  readonly steps: number;
  readonly virtualMs: number;
}

const seedVariable = 'HOLDFAST_SEED';

const worldFields = {
  network: withDefault<LinkOptions>(
    { allowed: 'an object', parse: (value) => (typeof value === 'object' && value !== null ? value : undefined) },
    {},
  ),
  maxSteps: withDefault(integer({ min: 1 }), 1_000_000),
  maxTime: withDefault(duration({}), 86_400_000),
  traceLines: withDefault(integer({ min: 1, max: 10_000 }), 30),
  onEvent: optional(func<(line: string) => void>()),
  wallStart: withDefault(integer({}), defaultWallMs),
};

const seedField: Field<number> = integer({});

/**
 * Runs a scenario in a simulated world: nodes, a network, crashes and clocks, all decided by one seed.
 *
 * Use it for failures between processes: lost replies, retries, leases, partitions. Use {@link virtualClock} for
 * one policy by itself. Code in the scenario must take its time and chance from the node it runs on; a real timer or
 * socket is not part of the world. Work that never awaits cannot be interrupted, as in any JavaScript.
 *
 * @throws {@link SimulationError} `ERR_SIMULATION`, when a check does not hold, something throws, nothing is left to
 * run, or a bound is passed.
 * @throws {@link OptionsError} `ERR_OPTIONS`, when an option is wrong.
 * @example
 * ```ts
 * import assert from 'node:assert';
 * import { simulate } from 'holdfast/testing';
 *
 * const report = await simulate({ seed: 42, network: { replyLoss: 0.3 } }, async (world) => {
 *   let charges = 0;
 *   const bank = world.node('bank', {
 *     start: (process) => process.serve(() => ++charges),
 *   });
 *   const shop = world.node('shop');
 *   world.invariant('charged at most once', () => charges <= 1);
 *   void shop.run('buy', (process) => process.request(bank, { amount: 5 }));
 *   await world.eventually('charged', () => charges === 1, { within: '1s' });
 * });
 * assert.equal(report.seed, 42);
 * ```
 */
export async function simulate<T>(options: SimulateOptions, scenario: Scenario<T>): Promise<SimulationReport<T>> {
  const { seed, ...settings } = checkOptions('simulate', options, { seed: optional(seedField), ...worldFields });
  checkArgument('simulate', 'scenario', scenario, func());
  return play(seed ?? environmentSeed() ?? 1, settings, scenario);
}

/**
 * Runs a scenario with many seeds, one after the other, and stops at the first that fails.
 *
 * The first seed is run twice and must give the same digest, since a scenario that is not deterministic proves
 * nothing. With HOLDFAST_SEED in the environment only that seed is run.
 *
 * @throws {@link SimulationError} `ERR_SIMULATION`, of the first seed that fails.
 * @throws {@link OptionsError} `ERR_OPTIONS`, when an option or HOLDFAST_SEED is wrong.
 * @example
 * ```ts
 * import assert from 'node:assert';
 * import { checkSeeds } from 'holdfast/testing';
 *
 * const report = await checkSeeds({ seeds: 20 }, async (world) => {
 *   const echo = world.node('echo', { start: (process) => process.serve((message) => message) });
 *   const answer = await world.node('client').run('ask', (process) => process.request(echo, 'hello'));
 *   assert.equal(answer, 'hello');
 * });
 * assert.ok(report.seeds === 20 || process.env.HOLDFAST_SEED);
 * ```
 */
export async function checkSeeds(options: CheckSeedsOptions, scenario: Scenario): Promise<SeedsReport> {
  const { seeds, from, ...settings } = checkOptions('checkSeeds', options, {
    seeds: integer({ min: 1, max: 100_000_000 }),
    from: withDefault(seedField, 1),
    ...worldFields,
  });
  checkArgument('checkSeeds', 'scenario', scenario, func());
  const only = environmentSeed();
  const count = only === undefined ? seeds : 1;
  const first = only ?? from;
  let steps = 0;
  let virtualMs = 0;
  for (let seed = first; seed < first + count; seed++) {
    const report = await play(seed, settings, scenario);
    if (seed === first) assertSame(report, await play(seed, settings, scenario));
    steps += report.steps;
    virtualMs += report.virtualMs;
  }
  return { seeds: count, steps, virtualMs };
}

type Settings = Omit<WorldSettings, 'seed' | 'maxTimeMs' | 'wallStartMs'> & {
  readonly maxTime: number;
  readonly wallStart: number;
};

async function play<T>(seed: number, settings: Settings, scenario: Scenario<T>): Promise<SimulationReport<T>> {
  const { maxTime: maxTimeMs, wallStart: wallStartMs, ...rest } = settings;
  using world = new Simulation({ seed, maxTimeMs, wallStartMs, ...rest });
  const result = await world.play(scenario);
  return { ...world.report(), result };
}

function assertSame(report: SimulationReport<unknown>, again: SimulationReport<unknown>): void {
  if (report.digest === again.digest) return;
  const { seed, steps, virtualMs, digest, trace } = again;
  throw new SimulationError(
    'not-deterministic',
    `checkSeeds: the scenario does not repeat itself: ${report.steps} events with digest ${report.digest}, then ${steps} with ${digest}. ` +
      'Something in it comes from outside: Math.random, crypto, Date.now, a real timer, or a variable that outlives the run',
    { seed, step: steps, virtualMs, digest, trace },
  );
}

/** The seed set in the environment. */
function environmentSeed(): number | undefined {
  const value = readEnvironment();
  if (value === undefined || value === '') return undefined;
  const seed = Number(value);
  if (seedField.parse(seed) !== undefined) return seed;
  throw new OptionsError(`simulate: ${seedVariable} must be ${seedField.allowed}, got ${show(value)}`, {
    policy: 'simulate',
    option: seedVariable,
    value,
    allowed: seedField.allowed,
  });
}

function readEnvironment(): string | undefined {
  try {
    return globalThis.process?.env[seedVariable];
  } catch {
    // Deno without the permission to read it.
    return undefined;
  }
}
