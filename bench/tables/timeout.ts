/** What a timeout adds to a call that ends in time, what an expiry costs, and what remains afterwards (P4). */
import { IdealTimeout } from '../ideals.ts';
import { burstCalls } from '../measures.ts';
import { atLeast, atMost, bare, type Contender, emptyWrapper, type Round, type Table, userTask } from '../table.ts';

type Task = () => Promise<unknown>;

const never: Task = () => new Promise(() => {});

/** The same five contenders for calls that end in time and for calls that do not. */
function contenders(task: Task, afterMs: number): Contender[] {
  return [
    {
      name: 'ideal',
      prepare: () => {
        const ideal = new IdealTimeout(afterMs);
        return () => ideal.run(task);
      },
    },
    {
      name: 'holdfast',
      prepare: async () => {
        const { pipeline, timeout } = await import('holdfast');
        const limited = pipeline(timeout(afterMs));
        return (signal) => (signal === undefined ? limited.execute(task) : limited.execute(task, { signal }));
      },
    },
    {
      name: 'p-timeout',
      prepare: async () => {
        const { default: pTimeout } = await import('p-timeout');
        return (signal) =>
          pTimeout(task(), signal === undefined ? { milliseconds: afterMs } : { milliseconds: afterMs, signal });
      },
    },
    {
      name: 'cockatiel',
      prepare: async () => {
        const { TimeoutStrategy, timeout } = await import('cockatiel');
        const limited = timeout(afterMs, TimeoutStrategy.Aggressive);
        return (signal) => limited.execute(task, signal);
      },
    },
    {
      name: 'opossum',
      prepare: async () => {
        const { default: CircuitBreaker } = await import('opossum');
        // The circuit opens above this share of failures, so never: an open one would reject instead of timing out.
        const options = { timeout: afterMs, errorThresholdPercentage: 100 };
        let breaker = new CircuitBreaker(task, options);
        if (task !== never) return () => breaker.fire();
        // Each expiry makes all later ones in its 10 s window more expensive; a new breaker per burst keeps bursts comparable.
        let calls = 0;
        return () => {
          if (calls++ % burstCalls === 0) {
            breaker.shutdown();
            breaker = new CircuitBreaker(task, options);
          }
          return breaker.fire();
        };
      },
    },
  ];
}

export const timeout: Table = {
  name: 'timeout',
  title: 'Timeout: the operation finishes in time',
  note: 'opossum accepts no signal from the caller. `timers left` counts only timers that keep the process alive.',
  measure: 'ns per call',
  once: ['B per call', 'B left', 'timers left', 'listeners left'],
  baseline: emptyWrapper.name,
  floor: bare.name,
  contenders: [bare, emptyWrapper, ...contenders(userTask, 1000)],
  targets: [
    atMost(1.6, 'P4: timeout ≤ 1.6 × the empty wrapper', (round) => round.holdfast! / round['empty async wrapper']!),
    atMost(80, 'P4: timeout ≤ 80 ns over bare', (round) => round.holdfast! - round.bare!),
    atLeast(60, 'P4: ≥ 60 × less added than p-timeout', (round) => addedRatio(round, 'p-timeout')),
    atLeast(60, 'P4: ≥ 60 × less added than cockatiel', (round) => addedRatio(round, 'cockatiel')),
    atLeast(5, 'P4: ≥ 5 × less added than opossum', (round) => addedRatio(round, 'opossum')),
    atMost(1, 'P4: nothing left: under 1 B per call', (round) => round['holdfast: B left']!),
    atMost(0, 'P4: no timer left', (round) => round['holdfast: timers left']!),
    atMost(0, 'P4: no listener left', (round) => round['holdfast: listeners left']!),
  ],
};

export const expiry: Table = {
  name: 'expiry',
  title: 'Timeout: 10,000 calls expire at once',
  note: 'Includes the time to start the calls, because p-timeout creates its error then. There is no floor, because nothing else can expire.',
  measure: 'µs per expiry',
  baseline: 'ideal',
  contenders: contenders(never, 50),
  targets: [
    atMost(1.5, 'P4: ≤ 1.5 µs each', (round) => round.holdfast!),
    atLeast(8, 'P4: ≥ 8 × cheaper than p-timeout', (round) => round['p-timeout']! / round.holdfast!),
    atLeast(35, 'P4: ≥ 35 × cheaper than opossum', (round) => round.opossum! / round.holdfast!),
  ],
};

export const expiryAlone: Table = {
  name: 'expiry-alone',
  title: 'Timeout: 10,000 calls expire at once, without the time to start them',
  measure: 'µs per expiry alone',
  baseline: 'ideal',
  contenders: contenders(never, 50),
  targets: [atMost(1.5, 'P4: ≤ 1.5 µs each', (round) => round.holdfast!)],
};

function addedRatio(round: Round, rival: string): number {
  return (round[rival]! - round.bare!) / (round.holdfast! - round.bare!);
}
