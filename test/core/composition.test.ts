import { describe, expect, it } from 'vitest';
import {
  type AnyPolicy,
  bulkhead,
  circuitBreaker,
  deadline,
  hedge,
  pipeline,
  rateLimit,
  retry,
  retryBudget,
  timeout,
} from '../../src/index.js';

const budgeted = () => retry({ budget: retryBudget() });

/** The codes of what `explain()` doubts. */
function doubts(...policies: readonly AnyPolicy[]): readonly string[] {
  return pipeline(...policies)
    .explain()
    .warnings.map(({ code }) => code);
}

describe('explain', () => {
  it('has nothing against the recommended order', () => {
    const policies = [
      deadline('30s'),
      rateLimit({ limit: 100, period: '1s' }),
      budgeted(),
      circuitBreaker(),
      bulkhead({ limit: 10 }),
      timeout('2s'),
    ];
    expect(doubts(...policies)).toEqual([]);
  });

  it.each<[string, readonly AnyPolicy[]]>([
    ['breaker-outside-retry', [deadline('30s'), circuitBreaker(), budgeted(), timeout('2s')]],
    ['slot-held-while-waiting', [deadline('30s'), bulkhead({ limit: 10 }), budgeted(), timeout('2s')]],
    ['rate-limit-per-attempt', [deadline('30s'), budgeted(), rateLimit({ limit: 1, period: '1s' }), timeout('2s')]],
    ['retry-and-hedge', [deadline('30s'), budgeted(), hedge({ delay: '1s' }), timeout('2s')]],
    ['window-too-short', [deadline('30s'), circuitBreaker({ window: '3s' }), timeout('2s')]],
    ['hedges-exceed-deadline', [deadline('2s'), hedge({ delay: '1s', max: 2 }), timeout('1s')]],
  ])('doubts %s', (code, policies) => {
    expect(doubts(...policies)).toEqual([code]);
  });

  it('does not doubt what only just fits', () => {
    expect(doubts(deadline('30s'), circuitBreaker({ window: '4s' }), timeout('2s'))).toEqual([]);
    expect(doubts(deadline('2001ms'), hedge({ delay: '1s', max: 2 }), timeout('1s'))).toEqual([]);
    expect(doubts(circuitBreaker({ window: { calls: 10 } }), timeout('2s'))).toEqual([]);
  });
});
