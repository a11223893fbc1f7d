/**
 * All 24 orders of retry, breaker, bulkhead and timeout in a tenfold spike: no order may cost goodput, because a refusal is
 * no failure, retries are paid by successes, and the deadline is shared.
 */
import { describe, expect, it } from 'vitest';
import {
  type AnyPolicy,
  bulkhead,
  type Clock,
  circuitBreaker,
  deadline,
  pipeline,
  retry,
  retryBudget,
  standard,
  timeout,
} from '../../src/index.js';
import { grid, play, type Scenario, type Strategy } from '../../src/testing/overload/overload.js';
import { median } from '../support/median.ts';

const kinds = ['retry', 'breaker', 'bulkhead', 'timeout'] as const;
type Kind = (typeof kinds)[number];

const shape = grid['s20/100/4']!;
const seed = 1;

function ordersOf(rest: readonly Kind[]): Kind[][] {
  if (rest.length === 0) return [[]];
  return rest.flatMap((kind) => ordersOf(rest.filter((other) => other !== kind)).map((order) => [kind, ...order]));
}

function inOrder(order: readonly Kind[]): Strategy {
  return ({ clock, random }) => {
    const policies = order.map((kind) => policyOf(kind, clock, random));
    const calls = pipeline(deadline({ after: '2s', clock }), ...policies);
    return (task) => calls.execute(task);
  };
}

function policyOf(kind: Kind, clock: Clock, random: () => number): AnyPolicy {
  if (kind === 'retry') return retry({ attempts: 3, budget: retryBudget({ clock }), random, clock });
  if (kind === 'breaker') return circuitBreaker({ clock, random });
  if (kind === 'bulkhead') return bulkhead({ limit: shape.workers, clock });
  return timeout({ after: '1s', clock });
}

async function reportOf(order: readonly Kind[], scenario: Scenario, failing = 0) {
  return play({ strategy: inOrder(order), shape, scenario, seed, beforeSeconds: 5, afterSeconds: 1, failing });
}

describe('every order of retry, breaker, bulkhead and timeout', () => {
  // With failures of its own the service is nearer to what opens a breaker, and retries ask for more.
  it.each([0, 0.2])(
    'keeps nine tenths of the goodput of the best in a tenfold spike, %f of calls failing',
    {
      timeout: 120_000,
    },
    async (failing) => {
      const goodputs = new Map<string, number>();
      for (const order of ordersOf(kinds)) {
        goodputs.set(order.join(' > '), (await reportOf(order, 'spike', failing)).goodput);
      }
      expect(goodputs.size).toBe(24);
      const best = Math.max(...goodputs.values());
      expect(best).toBeGreaterThan(90);
      for (const [order, goodput] of goodputs)
        expect(goodput, `${order}, seed ${seed}`).toBeGreaterThanOrEqual(0.9 * best);
    },
  );
});

describe('protected calls', () => {
  it('makes at most 1.1 calls per request while the service is down', async () => {
    const calls: number[] = [];
    for (const order of ordersOf(kinds)) calls.push((await reportOf(order, 'down')).callsPerRequest);
    expect(Math.max(...calls)).toBeLessThanOrEqual(1.1);
    expect(median(calls)).toBeGreaterThan(0);
  });

  it('by standard are answered as before once the service is no longer slow', async () => {
    const strategy: Strategy = ({ clock, random }) => {
      const calls = standard({ clock, random, deadline: '2s', timeout: '1s' });
      return (task) => calls.execute(task);
    };
    const shares: number[] = [];
    for (const one of [1, 2, 3, 4, 5]) {
      const { goodAfter } = await play({ strategy, shape, scenario: 'slow', seed: one });
      expect(goodAfter, `seed ${one}`).toBeGreaterThanOrEqual(95);
      shares.push(goodAfter);
    }
    expect(median(shares)).toBeGreaterThanOrEqual(97);
  });
});
