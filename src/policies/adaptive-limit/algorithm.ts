/**
 * What a rule that finds a limit is told, and what it answers. A rule reads no clock and keeps no call.
 */

/** Where a rule may go, in operations at once. */
export interface LimitRange {
  readonly initial: number;
  readonly min: number;
  readonly max: number;
}

/** How an operation ended that the rule may learn from. One object is reused for all: a rule must not keep it. */
export interface RoundTrip {
  roundTripMs: number;
  /** What `started` answered. */
  order: number;
  /** Operations that ran when it started, and when it ended, itself included. */
  runningAtStart: number;
  running: number;
  /** It was given up by a timeout: then `roundTripMs` is the time waited, and the truth is more. */
  wasLost: boolean;
  endedMs: number;
}

export interface LimitAlgorithm {
  /** Operations that may run at once; the whole part counts. */
  readonly limit: number;
  /** How long a call may wait for a slot, in milliseconds. */
  readonly waitMs: number;
  /** A call with less time left than this is not started from the queue, in milliseconds. */
  readonly usefulMs: number;
  /** An operation starts as one of `running`. Answers a number that `ended` or `ignored` is given. */
  started(running: number): number;
  ended(trip: RoundTrip): void;
  /** The operation of this number ended in a way that says nothing of the load. */
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
