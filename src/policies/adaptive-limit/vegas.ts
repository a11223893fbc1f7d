/**
 * Vegas: attributes whatever a round trip takes beyond the shortest one to a queue, and keeps that queue short.
 *
 * If round trips vary by themselves, the shortest one is misleading, and the limit stays too low.
 * After: Brakmo and Peterson, "TCP Vegas" (1995); Netflix concurrency-limits (78a74b9), `VegasLimit`.
 */
import { type LimitRange, PublishedRule, type RoundTrip } from './algorithm.js';

const probeEvery = 30;

export class Vegas extends PublishedRule {
  private readonly random: () => number;
  private shortestMs = 0;
  private samples = 0;
  private jitter: number;

  constructor(range: LimitRange, random: () => number) {
    super(range);
    this.random = random;
    this.jitter = this.drawJitter();
  }

  ended({ roundTripMs, running, wasLost }: RoundTrip): void {
    this.samples++;
    if (this.samples > this.jitter * probeEvery * this.limit) {
      // The service may have become slower for good, so the next round trip becomes the shortest.
      this.samples = 0;
      this.jitter = this.drawJitter();
      this.shortestMs = roundTripMs;
      return;
    }
    if (this.shortestMs === 0 || roundTripMs < this.shortestMs) {
      this.shortestMs = roundTripMs;
      return;
    }
    const step = Math.max(1, Math.floor(Math.log10(this.limit)));
    if (wasLost) return this.moveTo(this.limit - step);
    if (running * 2 < this.limit) return;
    const queued = Math.ceil(this.limit * (1 - this.shortestMs / roundTripMs));
    if (queued <= step) this.moveTo(this.limit + 6 * step);
    else if (queued < 3 * step) this.moveTo(this.limit + step);
    else if (queued > 6 * step) this.moveTo(this.limit - step);
  }

  private drawJitter(): number {
    return 0.5 + this.random() / 2;
  }
}
