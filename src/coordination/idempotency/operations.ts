/**
 * Operations: counts the outcomes of each operation's calls and estimates how long it usually takes.
 *
 * Promise: at most 1,000 operations are told apart; the calls of all others are counted together.
 */
import type { IdempotencyOutcome } from '../../core/events.js';
import { QuantileEstimator } from '../../structures/quantile.js';

/** How often each outcome occurred since the engine was created. */
export type IdempotencyCounts = Readonly<Partial<Record<IdempotencyOutcome, number>>>;

const mostOperations = 1_000;
/** The name under which all other operations are counted. */
const others = '(others)';

class Operation {
  readonly counts: Partial<Record<IdempotencyOutcome, number>> = {};
  readonly elapsedMs = new QuantileEstimator(0.5, 3);
}

export class Operations {
  private readonly known = new Map<string, Operation>();

  count(operation: string, outcome: IdempotencyOutcome): void {
    const { counts } = this.of(operation);
    counts[outcome] = (counts[outcome] ?? 0) + 1;
  }

  took(operation: string, elapsedMs: number): void {
    this.of(operation).elapsedMs.add(elapsedMs);
  }

  medianMs(operation: string): number | undefined {
    return this.known.get(operation)?.elapsedMs.value;
  }

  counts(): Readonly<Record<string, IdempotencyCounts>> {
    return Object.fromEntries([...this.known].map(([operation, { counts }]) => [operation, { ...counts }]));
  }

  private of(operation: string): Operation {
    const known = this.known.get(operation);
    if (known !== undefined) return known;
    if (this.known.size >= mostOperations && operation !== others) return this.of(others);
    const added = new Operation();
    this.known.set(operation, added);
    return added;
  }
}
