import { seededRandom } from 'holdfast/testing';
import { describe, expect, it } from 'vitest';
import { exactExp, exactLn } from '../../src/testing/exact-math.ts';

const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
const draw = (count: number, next: () => number) => Array.from({ length: count }, next);

describe('seededRandom', () => {
  it('gives the values that are written here, on every machine', () => {
    const random = seededRandom(42);
    expect(draw(4, random.uint32)).toEqual([715784809, 3723984738, 3665702171, 623259240]);
    expect(draw(3, () => random.gamma(10, 2.5))).toEqual([9.532698926062112, 8.64532157088835, 9.467089793098095]);
    expect(seededRandom(2 ** 40).uint32()).toBe(1400330763);
  });

  it('gives other values for another seed, also where only high bits differ', () => {
    const firsts = [0, 1, 2, 2 ** 32, 2 ** 33, 2 ** 52].map((seed) => seededRandom(seed).uint32());
    expect(new Set(firsts).size).toBe(firsts.length);
  });

  it('spreads evenly over [0, 1) and over its bits', () => {
    const random = seededRandom(1);
    const values = draw(100_000, random);
    expect(Math.min(...values.slice(0, 1000))).toBeGreaterThanOrEqual(0);
    expect(Math.max(...values.slice(0, 1000))).toBeLessThan(1);
    expect(mean(values)).toBeCloseTo(0.5, 2);
    for (let bit = 0; bit < 32; bit++) {
      const ones = values.filter((value) => ((value * 2 ** 32) / 2 ** bit) & 1).length;
      expect(Math.abs(ones - 50_000)).toBeLessThan(800);
    }
  });

  it('gives a fork that does not depend on what was drawn before', () => {
    const random = seededRandom(5);
    const before = draw(10, random.fork('network'));
    draw(1000, random);
    expect(draw(10, random.fork('network'))).toEqual(before);
    expect(draw(10, random.fork('clock'))).not.toEqual(before);
    expect(draw(10, random.fork('a').fork('b'))).not.toEqual(draw(10, random.fork('b').fork('a')));
  });

  it('draws integers from both ends', () => {
    const random = seededRandom(3);
    const counts = new Map<number, number>();
    for (const value of draw(30_000, () => random.integer(-1, 1))) counts.set(value, (counts.get(value) ?? 0) + 1);
    expect([...counts.keys()].sort((left, right) => left - right)).toEqual([-1, 0, 1]);
    for (const count of counts.values()) expect(Math.abs(count - 10_000)).toBeLessThan(500);
  });

  it('draws exponential and gamma values of the right mean and spread', () => {
    const random = seededRandom(9);
    for (const shape of [0.5, 1, 4, 30]) {
      const values = draw(50_000, () => random.gamma(20, shape));
      const average = mean(values);
      const variance = mean(values.map((value) => (value - average) ** 2));
      expect(Math.abs(average / 20 - 1)).toBeLessThan(0.03);
      expect(Math.abs(variance / (400 / shape) - 1)).toBeLessThan(0.06);
    }
    expect(Math.abs(mean(draw(50_000, () => random.exponential(20))) / 20 - 1)).toBeLessThan(0.03);
  });

  it('says yes never for 0 and always for 1', () => {
    const random = seededRandom(4);
    expect(draw(1000, () => Number(random.chance(0))).includes(1)).toBe(false);
    expect(draw(1000, () => Number(random.chance(1))).includes(0)).toBe(false);
  });

  it('shuffles a copy, and keeps every item', () => {
    const items = Array.from({ length: 50 }, (_, index) => index);
    const shuffled = seededRandom(6).shuffle(items);
    expect(shuffled).not.toEqual(items);
    expect([...shuffled].sort((left, right) => left - right)).toEqual(items);
  });

  it('draws from a gamma distribution of any shape in finite time', () => {
    const random = seededRandom(3);
    for (const shape of [1e-300, 1e-12, 1e-5]) expect(random.gamma(10, shape)).toBeLessThan(10);
    expect(random.gamma(10, Number.MAX_VALUE)).toBeCloseTo(10);
  });

  it('refuses what is no seed, an empty choice and a range upside down', () => {
    expect(() => seededRandom(-1)).toThrow('the seed must be an integer from 0');
    expect(() => seededRandom(1.5)).toThrow(TypeError);
    expect(() => seededRandom(1).pick([])).toThrow(RangeError);
    expect(() => seededRandom(1).integer(2, 1)).toThrow(RangeError);
    for (const shape of [0, -1, Number.NaN, Number.POSITIVE_INFINITY, undefined as never])
      expect(() => seededRandom(1).gamma(1, shape)).toThrow('gamma needs a finite shape above 0');
  });

  it('refuses what is no number, and no label', () => {
    const random = seededRandom(1);
    for (const wrong of [undefined, null, 'a', Number.NaN, Number.POSITIVE_INFINITY, Symbol('a')] as never[]) {
      expect(() => random.between(wrong, 1)).toThrow('between needs finite numbers');
      expect(() => random.between(0, wrong)).toThrow('between needs finite numbers');
      expect(() => random.chance(wrong)).toThrow('chance needs finite numbers');
      expect(() => random.exponential(wrong)).toThrow('exponential needs finite numbers');
      expect(() => random.gamma(wrong, 2)).toThrow('gamma needs finite numbers');
    }
    for (const wrong of [undefined, null, 1, ['a']] as never[]) expect(() => random.fork(wrong)).toThrow('a text');
  });
});

describe('exactLn and exactExp', () => {
  it('agree with the engine to thirteen digits', () => {
    const random = seededRandom(8);
    for (let round = 0; round < 2000; round++) {
      const value = random() * 10 ** random.integer(-9, 9) + Number.MIN_VALUE;
      expect(Math.abs(exactLn(value) - Math.log(value))).toBeLessThanOrEqual(
        1e-13 * Math.max(1, Math.abs(Math.log(value))),
      );
      const power = random.between(-50, 50);
      expect(Math.abs(exactExp(power) / Math.exp(power) - 1)).toBeLessThan(1e-13);
    }
  });
});
