/** The contract of a rule that finds a limit. A rule reads no clock and keeps no call. */

/** The range of the limit, in concurrent operations. */
export interface LimitRange {
  readonly initial: number;
  readonly min: number;
  readonly max: number;
}

/** The end of an operation that a rule may learn from. One object is reused for all operations, so a rule must not keep it. */
export interface RoundTrip {
  roundTripMs: number;
  /** The number that `started` returned. */
  order: number;
  /** Operations running when it started, and when it ended, including itself. */
  runningAtStart: number;
  running: number;
  /** Whether a timeout gave it up. Then `roundTripMs` is the time waited, and the real time is longer. */
  wasLost: boolean;
  endedMs: number;
}

export interface LimitAlgorithm {
  /** Operations that may run at once, rounded down. */
  readonly limit: number;
  /** How long a call may wait for a slot, in milliseconds. */
  readonly waitMs: number;
  /** A call with less time left than this, in milliseconds, is not started from the queue. */
  readonly usefulMs: number;
  /** An operation starts as one of `running`. Returns a number to pass to `ended` or `ignored`. */
  started(running: number): number;
  ended(trip: RoundTrip): void;
  /** The operation with this number ended in a way that says nothing about the load. */
  ignored(order: number): void;
}

/** What the published rules share: they neither number operations nor know how long one takes. */
export abstract class PublishedRule implements LimitAlgorithm {
  limit: number;
  readonly waitMs = 200;
  readonly usefulMs = 0;
  protected readonly range: LimitRange;

  constructor(range: LimitRange) {
    this.range = range;
    this.limit = range.initial;
  }

  abstract ended(trip: RoundTrip): void;

  started(): number {
    return 0;
  }

  ignored(): void {}

  protected moveTo(limit: number): void {
    this.limit = Math.min(this.range.max, Math.max(this.range.min, limit));
  }
}
