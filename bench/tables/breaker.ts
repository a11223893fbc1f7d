/** What a closed circuit breaker adds to a call (P1), and what its two steps cost when called directly (P2). */
import { IdealBreaker, IdealPermit } from '../ideals.ts';
import { atMost, bare, emptyWrapper, type Table, userTask } from '../table.ts';

export const breaker: Table = {
  name: 'breaker',
  title: 'Circuit breaker: closed, the operation succeeds',
  note: 'Default options and a time window: 30 s for holdfast, the ideal and cockatiel, 10 s for opossum, which also has a timeout.',
  measure: 'ns per call',
  once: ['B per call'],
  baseline: emptyWrapper.name,
  floor: bare.name,
  contenders: [
    bare,
    emptyWrapper,
    {
      name: 'ideal',
      prepare: () => {
        const ideal = new IdealBreaker();
        return () => ideal.run(userTask);
      },
    },
    {
      name: 'holdfast',
      prepare: async () => {
        const { circuitBreaker, pipeline } = await import('holdfast');
        const guarded = pipeline(circuitBreaker());
        return () => guarded.execute(userTask);
      },
    },
    {
      name: 'cockatiel',
      prepare: async () => {
        const { circuitBreaker, handleAll, SamplingBreaker } = await import('cockatiel');
        const breaker = new SamplingBreaker({ threshold: 0.5, duration: 30_000 });
        const guarded = circuitBreaker(handleAll, { halfOpenAfter: 5000, breaker });
        return () => guarded.execute(userTask);
      },
    },
    {
      name: 'opossum',
      prepare: async () => {
        const { default: CircuitBreaker } = await import('opossum');
        const guarded = new CircuitBreaker(userTask);
        return () => guarded.fire();
      },
    },
  ],
  targets: [
    atMost(1.2, 'P1: breaker ≤ 1.2 × the empty wrapper', (round) => round.holdfast! / round['empty async wrapper']!),
    atMost(450, 'P1: ≤ 450 B over bare', (round) => round['holdfast: B per call']! - round['bare: B per call']!),
  ],
};

const clockRead = 'a clock read';

export const permit: Table = {
  name: 'permit',
  title: 'Circuit breaker called by hand: admit and settle',
  note: 'The pair reads the clock once, for the time window.',
  measure: 'ns per check',
  once: ['B per check'],
  baseline: clockRead,
  contenders: [
    { name: clockRead, prepare: () => () => performance.now() },
    {
      name: 'ideal',
      prepare: () => {
        const ideal = new IdealBreaker();
        return () => {
          if (!ideal.isOpen()) ideal.count(false, performance.now());
        };
      },
    },
    {
      name: 'ideal with permits',
      prepare: () => {
        const ideal = new IdealBreaker();
        return () => {
          if (ideal.isOpen()) return undefined;
          const permit = new IdealPermit(ideal, 0);
          permit.settle(false, performance.now());
          // The permit escapes, as one does whose operation takes a while; otherwise V8 would not allocate it.
          return permit;
        };
      },
    },
    {
      name: 'holdfast',
      prepare: async () => {
        const { circuitBreaker, isRefusal } = await import('holdfast');
        const guard = circuitBreaker();
        const success = { ok: true, value: undefined } as const;
        return () => {
          const permit = guard.admit();
          if (!isRefusal(permit)) permit.settle(success);
        };
      },
    },
  ],
  targets: [
    atMost(1.1, 'P2: the pair ≤ 1.1 × a clock read', (round) => round.holdfast! / round[clockRead]!),
    atMost(16, 'P2: ≤ 16 B per pair', (round) => round['holdfast: B per check']!),
  ],
};
