import { describe, expect, it } from 'vitest';
import {
  type AnyPolicy,
  adaptiveLimit,
  type Backoff,
  bulkhead,
  circuitBreaker,
  constant,
  deadline,
  exponential,
  fallback,
  type Guard,
  hedge,
  keyed,
  OptionsError,
  type PolicyTraits,
  pipeline,
  rateLimit,
  retry,
  retryBudget,
  singleFlight,
  timeout,
} from '../../src/index.js';

const budgeted = () => retry({ budget: retryBudget() });

/** A user's own policy that reports only some of what ours report. */
function own(kind: string, traits: Partial<PolicyTraits> = {}): Guard {
  return {
    name: `own ${kind}`,
    traits: { kind, summary: '', ...traits },
    admit: () => ({ settle() {}, release() {} }),
  };
}

/** The codes of the warnings of `explain()`. */
function doubts(...policies: readonly AnyPolicy[]): readonly string[] {
  return pipeline(...policies)
    .explain()
    .warnings.map(({ code }) => code);
}

describe('explain', () => {
  it('accepts the recommended order without a warning', () => {
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
    ['retry-without-deadline', [budgeted(), timeout('2s')]],
    ['retry-without-deadline', [own('deadline'), budgeted()]],
    ['retry-without-budget', [deadline('30s'), retry(), timeout('2s')]],
    ['deadline-inside-retry', [deadline('30s'), budgeted(), deadline('2s')]],
    ['fallback-inside-retry', [deadline('30s'), budgeted(), fallback(() => 1)]],
    ['breaker-outside-retry', [deadline('30s'), circuitBreaker(), budgeted(), timeout('2s')]],
    ['slot-held-while-waiting', [deadline('30s'), adaptiveLimit(), budgeted(), timeout('2s')]],
    ['timeout-never-reached', [timeout('1s'), timeout('2s')]],
    ['timeout-never-reached', [timeout('1s'), timeout('1s')]],
    ['timeout-never-reached', [deadline('30s'), budgeted(), timeout('1s'), timeout('2s')]],
    ['timeout-never-reached', [deadline('30s'), timeout('20s'), timeout('25s'), budgeted(), timeout('1s')]],
    ['slot-held-while-waiting', [deadline('30s'), bulkhead({ limit: 10 }), budgeted(), timeout('2s')]],
    ['rate-limit-per-attempt', [deadline('30s'), budgeted(), rateLimit({ limit: 1, period: '1s' }), timeout('2s')]],
    ['retry-and-hedge', [deadline('30s'), budgeted(), hedge({ delay: '1s' }), timeout('2s')]],
    ['window-too-short', [deadline('30s'), circuitBreaker({ window: '3s' }), timeout('2s')]],
    ['hedges-exceed-deadline', [deadline('2s'), hedge({ delay: '1s', max: 2 }), timeout('1s')]],
    [
      'hedges-exceed-deadline',
      [rateLimit({ limit: 1, period: '1s' }), deadline('2s'), hedge({ delay: '1s', max: 2 }), timeout('1s')],
    ],
    ['window-too-short', [deadline('30s'), circuitBreaker({ window: '3s' }), bulkhead({ limit: 10 }), timeout('2s')]],
    ['flight-without-end', [deadline('30s'), singleFlight({ key: () => 'one' })]],
    ['flight-without-end', [timeout('2s'), singleFlight({ key: () => 'one' }), circuitBreaker()]],
  ])('warns: %s', (code, policies) => {
    expect(doubts(...policies)).toEqual([code]);
  });

  it.each<[string, readonly AnyPolicy[]]>([
    ['fallback-inside-breaker', [keyed(() => circuitBreaker()), fallback(() => 1)]],
    ['fallback-inside-breaker', [circuitBreaker(), keyed(() => fallback(() => 1))]],
    ['timeout-never-reached', [deadline('1s'), keyed(() => timeout('1s'))]],
    ['retry-inside-retry', [deadline('30s'), budgeted(), keyed(() => pipeline(budgeted(), timeout('2s')))]],
    ['breaker-outside-retry', [deadline('30s'), keyed(() => circuitBreaker()), budgeted(), timeout('2s')]],
    ['slot-held-while-waiting', [deadline('30s'), keyed(() => bulkhead({ limit: 10 })), budgeted(), timeout('2s')]],
    ['attempts-exceed-deadline', [deadline('5s'), budgeted(), keyed(() => pipeline(circuitBreaker(), timeout('2s')))]],
    ['window-too-short', [deadline('30s'), keyed(() => circuitBreaker({ window: '3s' })), timeout('2s')]],
  ])('looks at the policies inside a policy, and warns: %s', (code, policies) => {
    expect(doubts(...policies)).toEqual([code]);
  });

  it('asks a policy once for what is inside it', () => {
    let made = 0;
    const registry = keyed(() => {
      made++;
      return timeout('1s');
    });
    expect(String(pipeline(registry).explain())).toContain('1.1. timeout');
    expect(made).toBe(1);
  });

  it.each([timeout('1s'), deadline('1s'), keyed(() => timeout('1s'))])(
    'accepts an execution shared by callers if something inside ends it (%#)',
    (inside) => {
      expect(doubts(singleFlight({ key: () => 'one' }), bulkhead({ limit: 10 }), inside)).toEqual([]);
    },
  );

  it('accepts a retry with one attempt without a warning', () => {
    expect(doubts(circuitBreaker(), retry({ attempts: 1 }), deadline('1s'))).toEqual([]);
  });

  it('uses the nearest end around a retry, and the nearest inside it', () => {
    const thrice = retry({ attempts: 3, backoff: constant(0), budget: retryBudget() });
    const told = (...policies: readonly AnyPolicy[]) =>
      pipeline(...policies)
        .explain()
        .warnings.map(({ message }) => message);
    expect(told(deadline('30s'), timeout('5s'), thrice, timeout('3s'), timeout('2s'))).toEqual([
      '3 attempts of 2000 ms with waits of 0 ms in all take up to 6000 ms; the call ends after 5000 ms, so the last ones may never be made',
    ]);
  });

  it('says when the last copy of a hedge starts', () => {
    const hedged = pipeline(deadline('2s'), hedge({ delay: '1s', max: 3 }), timeout('1s'));
    expect(hedged.explain().warnings.map(({ message }) => message)).toEqual([
      '3 copies 1000 ms apart of "hedge" begin after 3000 ms; the call ends after 2000 ms',
    ]);
  });

  it('multiplies the attempts of a retry by the copies of a hedge', () => {
    const doubled = pipeline(deadline('30s'), budgeted(), hedge({ delay: '1s', max: 2 }), timeout('2s'));
    expect(doubled.explain().warnings.map(({ message }) => message)).toEqual([
      '"retry" and "hedge" multiply: up to 9 operations for one call; use one of them',
    ]);
    // A policy that describes nothing of itself changes nothing.
    const silent: Guard = { name: 'silent', admit: () => ({ settle() {}, release() {} }) };
    const beside = pipeline(silent, deadline('30s'), budgeted(), hedge({ delay: '1s', max: 2 }), timeout('2s'));
    expect(beside.explain().warnings).toEqual(doubled.explain().warnings);
  });

  it('accepts the reverse: a timeout around a breaker, a hedge around its deadline', () => {
    expect(doubts(timeout('2s'), circuitBreaker({ window: '3s' }))).toEqual([]);
    expect(doubts(hedge({ delay: '1s', max: 2 }), deadline('2s'))).toEqual([]);
    expect(doubts(timeout('2s'), hedge({ delay: '1s', max: 2 }))).toEqual([]);
    expect(
      doubts(
        fallback(() => 1),
        deadline('30s'),
        budgeted(),
        timeout('2s'),
      ),
    ).toEqual([]);
  });

  it('uses the traits of a custom policy, and does not judge missing ones', () => {
    expect(doubts(own('deadline'), own('timeout'))).toEqual([]);
    expect(doubts(own('deadline'), timeout('1s'))).toEqual([]);
    expect(doubts(deadline('1s'), own('timeout'))).toEqual([]);
    expect(doubts(timeout('1s'), own('timeout'))).toEqual([]);
    expect(doubts(circuitBreaker({ window: '3s' }), own('timeout'))).toEqual([]);
    expect(doubts(own('deadline'), hedge({ delay: '1s', max: 2 }))).toEqual([]);
    expect(doubts(deadline('2s'), hedge({ delay: { quantile: 0.9 }, max: 2 }))).toEqual([]);
    expect(doubts(deadline('1s'), own('hedge', { delayMs: 1_000 }))).toEqual(['hedges-exceed-deadline']);
    expect(doubts(deadline('30s'), own('retry'), own('hedge'))).toEqual(['retry-and-hedge']);
    expect(doubts(deadline('2s'), own('retry', { attempts: 3 }), timeout('1s'))).toEqual(['attempts-exceed-deadline']);
    expect(doubts(deadline('2s'), own('retry'), timeout('1s'))).toEqual([]);
  });

  it('counts each wait between attempts at its own maximum, not at the longest of all', () => {
    const grows = retry({ attempts: 4, backoff: exponential({ initial: 100, max: '2s' }), budget: retryBudget() });
    expect(doubts(deadline('4700ms'), grows, timeout('1s'))).toEqual([]);
    expect(doubts(deadline('4699ms'), grows, timeout('1s'))).toEqual(['attempts-exceed-deadline']);
  });

  it('prints whole milliseconds, and no unknown waits', () => {
    const told = (backoff: Backoff) =>
      pipeline(deadline('1s'), retry({ attempts: 4, backoff, budget: retryBudget() }), timeout(300.3))
        .explain()
        .warnings.map(({ message }) => message.split(';')[0]);
    expect(told(exponential({ factor: 1.1 }))).toEqual([
      '4 attempts of 300.3 ms with waits of 331 ms in all take up to 1532 ms',
    ]);
    expect(told(() => 5)).toEqual(['4 attempts of 300.3 ms, their waits aside, take up to 1201 ms']);
  });

  it('accepts what only just fits', () => {
    expect(doubts(deadline('30s'), circuitBreaker({ window: '4s' }), timeout('2s'))).toEqual([]);
    expect(doubts(deadline('2001ms'), hedge({ delay: '1s', max: 2 }), timeout('1s'))).toEqual([]);
    expect(doubts(circuitBreaker({ window: { calls: 10 } }), timeout('2s'))).toEqual([]);
    expect(doubts(timeout('2s'), timeout('1s'))).toEqual([]);
    // There are two attempts of 2 s, and a wait of 1 s between them.
    const twice = retry({ attempts: 2, backoff: constant('1s'), budget: retryBudget() });
    expect(doubts(deadline('5s'), twice, timeout('2s'))).toEqual([]);
    expect(doubts(deadline('4999ms'), twice, timeout('2s'))).toEqual(['attempts-exceed-deadline']);
  });
});

describe('pipeline', () => {
  it('refuses a timeout that is not below every deadline around it, and accepts one just below', () => {
    expect(() => pipeline(deadline('5s'), timeout('1s'), timeout('5s'))).toThrow(OptionsError);
    expect(() => pipeline(deadline('9s'), deadline('5s'), timeout('5s'))).toThrow(OptionsError);
    expect(() => pipeline(deadline('5s'), timeout('4999ms'))).not.toThrow();
    expect(() => pipeline(timeout('5s'), deadline('5s'))).not.toThrow();
    expect(() => pipeline(deadline('5s'), deadline('5s'))).not.toThrow();
  });

  it('refuses a fallback only inside a breaker, and names the policies given', () => {
    expect(() =>
      pipeline(
        fallback(() => 1),
        circuitBreaker(),
      ),
    ).not.toThrow();
    let error: unknown;
    try {
      pipeline(
        circuitBreaker(),
        timeout('1s'),
        fallback(() => 1),
      );
    } catch (thrown) {
      error = thrown;
    }
    expect(error).toMatchObject({
      policy: 'pipeline',
      value: ['circuitBreaker', 'timeout', 'fallback'],
      allowed: 'a sensible order of policies',
    });
  });
});
