/** What a refusal by an open circuit breaker costs, 20 frames deep, in the three ways to ask (P6). */
import { idealErrorOfRefusal, idealRefusal } from '../ideals.ts';
import { atLeast, atMost, type Contender, type Operation, type Round, type Table } from '../table.ts';

const rejection = 'Promise.reject';
const hourMs = 3_600_000;
const down = async (): Promise<unknown> => {
  throw new Error('down');
};

/** As deep as a handler in a web framework: the cost of a stack trace depends on its frames. */
function deep(call: Operation): Operation {
  const descend = (framesLeft: number): unknown => (framesLeft === 0 ? call() : descend(framesLeft - 1));
  return () => descend(20);
}

/** An open circuit of holdfast, and three ways to ask it. */
async function open() {
  const { circuitBreaker, pipeline } = await import('holdfast');
  const breaker = circuitBreaker({ window: { consecutive: 1 }, openFor: hourMs });
  const guarded = pipeline(breaker);
  await guarded.attempt(down);
  return { breaker, guarded };
}

const contenders: readonly Contender[] = [
  {
    name: rejection,
    prepare: () => {
      const error = new Error('down');
      return deep(() => Promise.reject(error));
    },
  },
  { name: 'ideal', prepare: () => deep(idealRefusal) },
  { name: 'ideal with an error', prepare: () => deep(() => idealErrorOfRefusal(hourMs)) },
  {
    name: 'holdfast, execute',
    prepare: async () => {
      const { guarded } = await open();
      return deep(() => guarded.execute(down));
    },
  },
  {
    name: 'holdfast, attempt',
    prepare: async () => {
      const { guarded } = await open();
      return deep(() => guarded.attempt(down));
    },
  },
  {
    name: 'holdfast, admit',
    prepare: async () => {
      const { breaker } = await open();
      return deep(() => breaker.admit());
    },
  },
  {
    name: 'cockatiel',
    prepare: async () => {
      const { ConsecutiveBreaker, circuitBreaker, handleAll } = await import('cockatiel');
      const guarded = circuitBreaker(handleAll, { halfOpenAfter: hourMs, breaker: new ConsecutiveBreaker(1) });
      await guarded.execute(down).catch(() => {});
      return deep(() => guarded.execute(down));
    },
  },
  {
    name: 'opossum',
    prepare: async () => {
      const { default: CircuitBreaker } = await import('opossum');
      const guarded = new CircuitBreaker(down, { resetTimeout: hourMs });
      guarded.open();
      return deep(() => guarded.fire());
    },
  },
];

export const refusal: Table = {
  name: 'refusal',
  title: 'Circuit breaker: open, a rejected call 20 stack frames deep',
  note: '`execute` rejects, `attempt` resolves with an outcome, `admit` answers at once.',
  measure: 'ns per failing call',
  baseline: rejection,
  contenders,
  targets: [
    atMost(1.3, 'P6: execute ≤ 1.3 × Promise.reject', (round) => round['holdfast, execute']! / round[rejection]!),
    ...['opossum', 'cockatiel'].flatMap((rival) => [
      atLeast(15, `P6: execute ≥ 15 × faster than ${rival}`, (round) => timesFaster(round, 'execute', rival)),
      atLeast(50, `P6: attempt ≥ 50 × faster than ${rival}`, (round) => timesFaster(round, 'attempt', rival)),
      atLeast(50, `P6: admit ≥ 50 × faster than ${rival}`, (round) => timesFaster(round, 'admit', rival)),
    ]),
  ],
};

function timesFaster(round: Round, way: string, rival: string): number {
  return round[rival]! / round[`holdfast, ${way}`]!;
}
