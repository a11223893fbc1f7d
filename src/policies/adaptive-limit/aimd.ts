/**
 * AIMD: raises the limit by one while all goes well, and lowers it by a tenth for each lost call.
 *
 * It learns only from timeouts, so it fills the service's queue until calls are lost.
 * After: Netflix concurrency-limits (78a74b9), `AIMDLimit`.
 */
import { PublishedRule, type RoundTrip } from './algorithm.js';

const backoff = 0.9;
const longestMs = 5_000;

export class Aimd extends PublishedRule {
  ended({ roundTripMs, running, wasLost }: RoundTrip): void {
    if (wasLost || roundTripMs > longestMs) this.moveTo(Math.trunc(this.limit * backoff));
    else if (running * 2 >= this.limit) this.moveTo(this.limit + 1);
  }
}
