/**
 * What the adaptive limit promises in an overload, without options. `node bench/overload/run.ts` plays more seeds and rivals.
 */
import { describe, expect, it } from 'vitest';
import { seededRandom, virtualClock } from '../../src/testing/index.js';
import { grid, type Played, play, type Scenario, type Strategy } from '../../src/testing/overload/overload.js';
import { type Shape, serviceOf } from '../../src/testing/overload/services.js';
import { median } from '../support/median.ts';
import { adaptive, onlyTimeout, oracle, published, unprotected } from './support/strategies.ts';

const seeds = [1, 2, 3];
const pool = grid['s20/100/4']!;
const thrash = grid['t20/100/4']!;

async function playAll(strategy: Strategy, shape: Shape, scenario: Scenario): Promise<Played[]> {
  const reports: Played[] = [];
  for (const seed of seeds) reports.push(await play({ strategy, shape, scenario, seed, afterSeconds: 12 }));
  return reports;
}

const middle = (reports: readonly Played[], field: Exclude<keyof Played, 'seed'>) =>
  median(reports.map((report) => report[field]));

describe('the thrashing service', () => {
  it.each([
    [20, 200],
    [100, 111],
    [1_000, 18],
  ])('with %i in flight does %i per second', async (inFlight, perSecond) => {
    const clock = virtualClock();
    const service = serviceOf(thrash, clock, seededRandom(1));
    let isOver = false;
    const keepBusy = async (): Promise<void> => {
      while (!isOver) await service.serve();
    };
    const all = Promise.all(Array.from({ length: inFlight }, keepBusy));
    await clock.advance('20s');
    const before = service.completed;
    await clock.advance('100s');
    const measured = (service.completed - before) / 100;
    expect(Math.abs(measured - perSecond)).toBeLessThan(1 + 0.02 * perSecond);
    isOver = true;
    await clock.runAll();
    await all;
  });
});

describe('the scenarios', () => {
  it('show what is known of other strategies: only admission keeps goodput', async () => {
    const goodput = async (strategy: Strategy) =>
      (await play({ strategy, shape: pool, scenario: 'spike', seed: 1 })).goodput;
    // Measured elsewhere with the same scenario: 12.2, 5.8, 54.5, 31.5, 101, 101.
    expect(await goodput(unprotected)).toBeCloseTo(12.4, 0);
    expect(await goodput(onlyTimeout)).toBeCloseTo(5.6, 0);
    expect(Math.abs((await goodput(published('aimd'))) - 54)).toBeLessThan(3);
    expect(Math.abs((await goodput(published('vegas'))) - 31.5)).toBeLessThan(2);
    expect(Math.abs((await goodput(published('gradient2'))) - 100)).toBeLessThan(2);
    expect(Math.abs((await goodput(oracle(pool))) - 100)).toBeLessThan(2);
  });

  it('play the same run for the same seed', async () => {
    const options = {
      strategy: adaptive(),
      shape: pool,
      scenario: 'spike',
      beforeSeconds: 5,
      afterSeconds: 5,
    } as const;
    const report = await play({ ...options, seed: 9 });
    expect(await play({ ...options, seed: 9 })).toEqual(report);
    expect(await play({ ...options, seed: 10 })).not.toEqual(report);
  });
});

describe('adaptiveLimit without options', () => {
  it('keeps 97 % of the capacity in a tenfold spike, nearly as quick as with the right size, and sheds nothing before', async () => {
    const reports = await playAll(adaptive(), pool, 'spike');
    const ideal = await playAll(oracle(pool), pool, 'spike');
    expect(middle(reports, 'goodput')).toBeGreaterThanOrEqual(97);
    expect(middle(reports, 'p99Ms')).toBeLessThanOrEqual(1.3 * middle(ideal, 'p99Ms'));
    expect(middle(reports, 'recoverySeconds')).toBeLessThanOrEqual(1);
    for (const { shedBefore, timersLeft } of reports) {
      expect(shedBefore).toBeLessThanOrEqual(0.1);
      expect(timersLeft).toBe(0);
    }
  });

  it('keeps 90 % of it where every call too many slows all others', async () => {
    const reports = await playAll(adaptive(), thrash, 'spike');
    const ideal = await playAll(oracle(thrash), thrash, 'spike');
    expect(middle(reports, 'goodput')).toBeGreaterThanOrEqual(90);
    expect(middle(reports, 'p99Ms')).toBeLessThanOrEqual(1.3 * middle(ideal, 'p99Ms'));
    expect(middle(reports, 'recoverySeconds')).toBeLessThanOrEqual(1);
  });

  it('is back at once when a service was slow for a while', async () => {
    const reports: Played[] = [];
    for (const seed of seeds) reports.push(await play({ strategy: adaptive(), shape: pool, scenario: 'slow', seed }));
    expect(middle(reports, 'goodAfter')).toBeGreaterThanOrEqual(97);
  });

  it('takes a longer way for a longer way: answers a second later, and no more load, and the limit follows within seconds', async () => {
    const patient: Strategy = adaptive({}, '2s');
    for (const seed of seeds) {
      const options = { strategy: patient, shape: pool, scenario: 'late', seed, patienceMs: 3_000 } as const;
      const report = await play({ ...options, disturbanceSeconds: 60, afterSeconds: 12 });
      expect(report.goodDuring).toBeGreaterThanOrEqual(70);
      expect(report.recoverySeconds).toBeLessThanOrEqual(1);
    }
  });

  it('learns nothing from an outage in which all fails at once, and makes no call twice', async () => {
    for (const report of await playAll(adaptive(), pool, 'down')) {
      expect(report.goodAfter).toBeGreaterThanOrEqual(99.5);
      expect(report.callsPerRequest).toBeLessThanOrEqual(1);
    }
  });
});
