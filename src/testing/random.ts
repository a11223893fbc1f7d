/**
 * Seeded random: the one source of chance in a simulation.
 *
 * Promise: the same seed gives the same values on every machine and engine. The values of a fork depend only on the seed and the label, never on what was
 * drawn elsewhere.
 * After: sfc32 of Chris Doty-Humphrey's PractRand (small, fast, counter-based: period at least 2^32, on average 2^127);
 * Marsaglia and Tsang, "A simple method for generating gamma variables" (2000).
 */
import { OptionsError } from '../core/errors.js';
import { show } from '../core/options.js';
import { exactExp, exactLn } from './exact-math.js';
import { finish, hashText } from './hash.js';

/** Random values from a seed. Calling it gives a number in [0, 1), so that it fits a policy's `random` option. */
export interface SeededRandom {
  /** A number in [0, 1), evenly spread, a multiple of 2^-32. */
  (): number;
  /** 32 random bits, from 0 to 2^32 - 1. */
  uint32(): number;
  /** An integer from `min` to `max`, both included, evenly spread. At most 2^32 of them. */
  integer(min: number, max: number): number;
  /** A number in [min, max), evenly spread. */
  between(min: number, max: number): number;
  /** True with this probability, from 0 (never) to 1 (always). */
  chance(probability: number): boolean;
  /** One of the items. */
  pick<T>(items: readonly T[]): T;
  /** A copy of the items in a random order. */
  shuffle<T>(items: readonly T[]): T[];
  /** A number of the exponential distribution: times between events that know nothing of each other. */
  exponential(mean: number): number;
  /** A number of the gamma distribution: `shape` 1 is exponential, a larger one keeps closer to the mean. */
  gamma(mean: number, shape: number): number;
  /** A stream of its own: the same label always gives the same one, whatever has been drawn here. */
  fork(label: string): SeededRandom;
}

const two32 = 2 ** 32;

/**
 * Random numbers that a seed repeats.
 *
 * Give it to a policy's `random` option, or draw faults and inputs of a test from it. For anything that must not be
 * guessed use `crypto`.
 *
 * @param seed - An integer from 0 to 2^53 - 1.
 * @throws {@link OptionsError} `ERR_OPTIONS`, when the seed is no such integer.
 * @example
 * ```ts
 * import assert from 'node:assert';
 * import { seededRandom } from 'holdfast/testing';
 *
 * const random = seededRandom(7);
 * const again = seededRandom(7);
 * assert.equal(random(), again());
 * assert.ok([1, 2, 3].includes(random.pick([1, 2, 3])));
 * assert.equal(seededRandom(7).fork('network')(), random.fork('network')());
 * ```
 */
export function seededRandom(seed: number): SeededRandom {
  if (!Number.isSafeInteger(seed) || seed < 0) {
    const allowed = 'an integer from 0 to 2^53 - 1';
    throw new OptionsError(`seededRandom: the seed must be ${allowed}, got ${show(seed)}`, {
      policy: 'seededRandom',
      option: 'seed',
      value: seed,
      allowed,
    });
  }
  return stream(finish(seed | 0), finish(Math.floor(seed / two32) ^ 0x9e3779b9));
}

function stream(low: number, high: number): SeededRandom {
  let a = low;
  let b = high;
  let c = finish(low ^ (high << 1) ^ 0x5bd1e995);
  let counter = 1;

  function uint32(): number {
    const sum = (a + b + counter) | 0;
    counter = (counter + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (((c << 21) | (c >>> 11)) + sum) | 0;
    return sum >>> 0;
  }
  // Fifteen rounds mix a seed of three words well, after PractRand.
  for (let round = 0; round < 15; round++) uint32();

  const random = () => uint32() / two32;

  function integer(min: number, max: number): number {
    const count = max - min + 1;
    if (!Number.isSafeInteger(min) || !Number.isSafeInteger(max) || !(count >= 1 && count <= two32)) {
      throw new RangeError(`seededRandom: integer needs integers min <= max at most 2^32 apart, got ${min} and ${max}`);
    }
    return min + Math.floor(random() * count);
  }

  function shuffle<T>(items: readonly T[]): T[] {
    const shuffled = [...items];
    for (let last = shuffled.length - 1; last > 0; last--) {
      const chosen = integer(0, last);
      const item = shuffled[last]!;
      shuffled[last] = shuffled[chosen]!;
      shuffled[chosen] = item;
    }
    return shuffled;
  }

  // One minus a number in [0, 1) is never 0, whose logarithm would be minus infinity.
  const exponential = (mean: number) => -finite('exponential', mean) * exactLn(1 - random());

  return Object.assign(random, {
    uint32,
    integer,
    between: (min: number, max: number) => finite('between', min) + random() * (finite('between', max) - min),
    chance: (probability: number) => random() < finite('chance', probability),
    pick<T>(items: readonly T[]): T {
      if (items.length === 0) throw new RangeError('seededRandom: cannot pick from no items');
      return items[integer(0, items.length - 1)]!;
    },
    shuffle,
    exponential,
    gamma(mean: number, shape: number): number {
      if (!(shape > 0 && Number.isFinite(shape)))
        throw new RangeError(`seededRandom: gamma needs a finite shape above 0, got ${show(shape)}`);
      return (finite('gamma', mean) / shape) * (shape === 1 ? exponential(1) : gammaOf(shape, random));
    },
    fork: (label: string) => {
      // All numbers would be the same label, because they have no length.
      if (typeof label !== 'string') throw new TypeError(`seededRandom: a fork needs a text, got ${show(label)}`);
      const branch = hashText(label);
      return stream(finish(low ^ branch), finish((high + Math.imul(branch, 0x9e3779b1)) ^ label.length));
    },
  });
}

function finite(method: string, value: number): number {
  if (Number.isFinite(value)) return value;
  throw new RangeError(`seededRandom: ${method} needs finite numbers, got ${show(value)}`);
}

/** Gamma with scale 1, by rejection from a cube of a normal. */
function gammaOf(shape: number, random: () => number): number {
  if (shape < 1) return gammaOf(shape + 1, random) * exactExp(exactLn(1 - random()) / shape);
  const d = shape - 1 / 3;
  const c = 1 / Math.sqrt(9 * d);
  for (;;) {
    const normal = normalOf(random);
    const root = 1 + c * normal;
    if (root <= 0) continue;
    const cube = root * root * root;
    if (exactLn(1 - random()) < 0.5 * normal * normal + d - d * cube + d * exactLn(cube)) return d * cube;
  }
}

/** Standard normal, by Marsaglia's polar method: no sine, no cosine. */
function normalOf(random: () => number): number {
  for (;;) {
    const x = 2 * random() - 1;
    const y = 2 * random() - 1;
    const square = x * x + y * y;
    if (square > 0 && square < 1) return x * Math.sqrt((-2 * exactLn(square)) / square);
  }
}
