/** What circuit breakers cost that merely exist, one per key (P9). */
import { circuitsPerBatch } from '../measures.ts';
import { atLeast, atMost, type Operation, type Round, type Table } from '../table.ts';

/** Creates a batch, each circuit under its own key as an application would have it, and returns a function that drops it. */
function batches<Kept>(
  begin: () => Kept,
  add: (kept: Kept, key: string) => void,
  end?: (kept: Kept) => void,
): Operation {
  return () => {
    let kept: Kept | undefined = begin();
    for (let index = 0; index < circuitsPerBatch; index++) add(kept, flat(`host-${index}.example`));
    return () => {
      if (kept !== undefined) end?.(kept);
      kept = undefined;
    };
  };
}

/** A flat string, as a parser creates it; a template string would also keep its parts. */
function flat(key: string): string {
  return Buffer.from(key).toString('latin1');
}

async function holdfastBatches(isUsed: boolean): Promise<Operation> {
  const { circuitBreaker, isRefusal, keyed } = await import('holdfast');
  const success = { ok: true, value: undefined } as const;
  return batches(
    () => keyed(() => circuitBreaker({ name: 'hosts' }), { maxKeys: circuitsPerBatch }),
    (breakers, key) => {
      const permit = breakers.for(key).admit();
      if (isUsed && !isRefusal(permit)) permit.settle(success);
    },
  );
}

/** The minimum state of a circuit. */
class Circuit {
  state = 0;
  calls = 0;
  failures = 0;
  epoch = 0;
  openUntil = 0;
}

export const idle: Table = {
  name: 'idle',
  title: '10,000 idle circuit breakers, one per key',
  note: 'Includes the key and the entry in the registry. `used`: one call was made through each, which starts its time window.',
  measure: 'ns per circuit',
  once: ['B per circuit', 'timers per circuit', 'µs idle per s'],
  baseline: 'ideal',
  contenders: [
    {
      name: 'ideal',
      prepare: () =>
        batches(
          () => new Map<string, Circuit>(),
          (circuits, key) => circuits.set(key, new Circuit()),
        ),
    },
    { name: 'holdfast', prepare: () => holdfastBatches(false) },
    { name: 'holdfast, used', prepare: () => holdfastBatches(true) },
    {
      name: 'cockatiel',
      prepare: async () => {
        const { circuitBreaker, handleAll, SamplingBreaker } = await import('cockatiel');
        const make = () => {
          const breaker = new SamplingBreaker({ threshold: 0.5, duration: 30_000 });
          return circuitBreaker(handleAll, { halfOpenAfter: 5000, breaker });
        };
        return batches(
          () => new Map<string, ReturnType<typeof make>>(),
          (circuits, key) => circuits.set(key, make()),
        );
      },
    },
    {
      name: 'opossum',
      prepare: async () => {
        const { default: CircuitBreaker } = await import('opossum');
        const task = async () => 1;
        return batches(
          () => new Map<string, InstanceType<typeof CircuitBreaker>>(),
          (circuits, key) => circuits.set(key, new CircuitBreaker(task)),
          (circuits) => {
            for (const circuit of circuits.values()) circuit.shutdown();
          },
        );
      },
    },
  ],
  targets: [
    atMost(200, 'P9: ≤ 200 B per idle circuit', (round) => bytes(round, 'holdfast')),
    atLeast(35, 'P9: ≥ 35 × less than opossum', (round) => bytes(round, 'opossum') / bytes(round, 'holdfast')),
    atLeast(10, 'P9: ≥ 10 × less than cockatiel', (round) => bytes(round, 'cockatiel') / bytes(round, 'holdfast')),
    atMost(0, 'P9: no timer', (round) => round['holdfast: timers per circuit']!),
    atMost(
      2000,
      'P9: idle processor time within 2 ms per s of the ideal',
      (round) => round['holdfast: µs idle per s']! - round['ideal: µs idle per s']!,
    ),
  ],
};

function bytes(round: Round, name: string): number {
  return round[`${name}: B per circuit`]!;
}
