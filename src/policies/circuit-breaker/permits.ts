/**
 * Permits: the permits and refusals of a circuit breaker.
 *
 * Promise: a permit counts once, in the generation in which it was given.
 */
import { CircuitOpenError, TimeoutError } from '../../core/errors.js';
import type { Outcome } from '../../core/outcome.js';
import type { Permit, Refusal } from '../../core/policy.js';
import type { Breaker } from './breaker.js';

/** The permit of every call that a layer admits while the circuit stays closed. A layer uses each permit exactly once. */
export class SharedPermit implements Permit {
  readonly generation: number;
  private readonly breaker: Breaker;

  constructor(breaker: Breaker, generation: number) {
    this.breaker = breaker;
    this.generation = generation;
  }

  settle(outcome: Outcome): void {
    this.breaker.settle(this, outcome);
  }

  release(): void {
    this.breaker.release(this);
  }
}

/** A permit that counts once: when it is settled or released, it drops its breaker. */
export class CallPermit implements Permit {
  /** Undefined once the permit was used. */
  private breaker: Breaker | undefined;
  generation: number;

  constructor(breaker: Breaker, generation: number) {
    this.breaker = breaker;
    this.generation = generation;
  }

  settle(outcome: Outcome): void {
    const { breaker } = this;
    this.breaker = undefined;
    breaker?.settle(this, outcome);
  }

  release(): void {
    const { breaker } = this;
    this.breaker = undefined;
    breaker?.release(this);
  }
}

export class TimedPermit extends CallPermit {
  readonly startedMs: number;

  constructor(breaker: Breaker, generation: number, startedMs: number) {
    super(breaker, generation);
    this.startedMs = startedMs;
  }
}

/** The permit of a call that probes whether the service has recovered. In shadow mode it ends no call. */
export class Probe extends TimedPermit {
  readonly endsAtMs: number;
  declare readonly endsAt?: number;
  private readonly policy: string;

  constructor(breaker: Breaker, generation: number, startedMs: number, endsAtMs: number, isShadow: boolean) {
    super(breaker, generation, startedMs);
    this.policy = breaker.name;
    this.endsAtMs = endsAtMs;
    if (!isShadow) this.endsAt = endsAtMs;
  }

  endReason(): unknown {
    return new TimeoutError({ policy: this.policy, afterMs: this.endsAtMs - this.startedMs });
  }

  /** The probe's time is over; a later result is stale. */
  giveUp(): void {
    this.generation = -1;
  }
}

/** A refusal that creates its error only when it is read: callers of `admit()` mostly only count refusals. */
export class LazyRefusal implements Refusal {
  private made: CircuitOpenError | undefined = undefined;
  private readonly numbers: ConstructorParameters<typeof CircuitOpenError>[0];

  constructor(numbers: ConstructorParameters<typeof CircuitOpenError>[0]) {
    this.numbers = numbers;
  }

  get error(): CircuitOpenError {
    this.made ??= new CircuitOpenError(this.numbers);
    return this.made;
  }
}
