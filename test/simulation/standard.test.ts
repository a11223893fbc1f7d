/**
 * A brown-out at high load: a service of 100 workers and 100 ms, at 70 and 85 % of what it can do, takes ten times as
 * long for ten seconds, and goes on working for clients that have given up.
 */
import { describe, expect, it } from 'vitest';
import { exponential, pipeline, retry, standard, timeout } from '../../src/index.js';
import { play, type Strategy } from '../../src/testing/overload/overload.js';
import type { Shape } from '../../src/testing/overload/services.js';

const service: Shape = { workers: 100, meanMs: 100, gamma: 4, kind: 'pool' };
const seeds = [1, 2, 3];

const preset: Strategy = ({ clock, random }) => {
  const calls = standard({ clock, random, timeout: '500ms' });
  return (task) => calls.execute(task);
};

const naive: Strategy = ({ clock, random }) => {
  const calls = pipeline(
    retry({ attempts: 4, backoff: exponential({ initial: 100, max: '2s' }), random }),
    timeout({ after: '500ms', clock }),
  );
  return (task) => calls.execute(task);
};

const brownOut = { shape: service, scenario: 'slow', disturbanceSeconds: 10, beforeSeconds: 10 } as const;

describe('after a brown-out of ten seconds', () => {
  it.each(seeds)('standard recovers within 5 s and sends at most 1.1 times the load, seed %i', async (seed) => {
    const report = await play({ ...brownOut, strategy: preset, load: 0.85, seed });
    expect(report.recoverySeconds).toBeLessThanOrEqual(5);
    expect(report.callsPerRequest).toBeLessThanOrEqual(1.1);
    expect(report.timersLeft).toBe(0);
  });

  it.each(seeds)('standard recovers within 5 s at 0.7 of the capacity, too, seed %i', async (seed) => {
    const report = await play({ ...brownOut, strategy: preset, load: 0.7, seed });
    expect(report.recoverySeconds).toBeLessThanOrEqual(5);
  });

  it('naive retries do not recover while we look, and send more than three times the load', {
    timeout: 60_000,
  }, async () => {
    const report = await play({ ...brownOut, strategy: naive, load: 0.85, seed: 1 });
    expect(report.recoverySeconds).toBe(Number.POSITIVE_INFINITY);
    expect(report.callsPerRequest).toBeGreaterThan(3);
  });

  it('nothing comes back where nobody was served before', async () => {
    const refusing: Strategy = () => () => Promise.reject(new Error('refused'));
    const report = await play({ ...brownOut, strategy: refusing, load: 0.7, seed: 1 });
    expect(report.recoverySeconds).toBeNaN();
  });
});

describe('while a quarter of the calls fails at random and the service has room', () => {
  it.each(seeds)('standard spends a retry for ten successes and loses the rest, seed %i', async (seed) => {
    const report = await play({ shape: service, scenario: 'calm', failing: 0.25, strategy: preset, load: 0.5, seed });
    expect(report.goodDuring).toBeGreaterThan(80);
    expect(report.goodDuring).toBeLessThan(83);
    expect(report.callsPerRequest).toBeLessThanOrEqual(1.1);
  });

  it('three attempts without a budget serve nearly all, for a third more calls', async () => {
    const unbounded: Strategy = ({ clock, random }) => {
      const calls = pipeline(retry({ attempts: 3, random }), timeout({ after: '500ms', clock }));
      return (task) => calls.execute(task);
    };
    const report = await play({
      shape: service,
      scenario: 'calm',
      failing: 0.25,
      strategy: unbounded,
      load: 0.5,
      seed: 1,
    });
    expect(report.goodDuring).toBeGreaterThan(98);
    expect(report.callsPerRequest).toBeGreaterThan(1.3);
  });
});
