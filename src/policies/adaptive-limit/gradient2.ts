/**
 * Gradient2: compares recent round trips with a long-term average, and shrinks the limit by their ratio.
 *
 * A lasting overload distorts the long-term average, and windows of fixed length hold few round trips of slow services.
 * After: Netflix concurrency-limits (78a74b9), `Gradient2Limit` and `WindowedLimit`; windows of 250 ms.
 */
import { PublishedRule, type RoundTrip } from './algorithm.js';

const windowMs = 250;
const windowSamples = 10;
const warmUp = 10;
const longSamples = 600;
const smoothing = 0.2;
const tolerance = 1.5;
const queue = 4;

export class Gradient2 extends PublishedRule {
  private longMs = 0;
  private longCount = 0;
  private sumMs = 0;
  private samples = 0;
  private mostRunning = 0;
  private windowEndsMs = 0;

  ended({ roundTripMs, running, endedMs }: RoundTrip): void {
    if (this.windowEndsMs === 0) this.windowEndsMs = endedMs + windowMs;
    this.sumMs += roundTripMs;
    this.samples++;
    this.mostRunning = Math.max(this.mostRunning, running);
    if (endedMs < this.windowEndsMs || this.samples < windowSamples) return;
    const meanMs = this.sumMs / this.samples;
    const { mostRunning } = this;
    this.sumMs = 0;
    this.samples = 0;
    this.mostRunning = 0;
    this.windowEndsMs = endedMs + windowMs;
    this.windowEnded(meanMs, mostRunning);
  }

  /** @internal */
  windowEnded(shortMs: number, mostRunning: number): void {
    if (this.longCount < warmUp) this.longMs += (shortMs - this.longMs) / ++this.longCount;
    else this.longMs += (shortMs - this.longMs) * (2 / (longSamples + 1));
    // After an overload the long-term average is forgotten faster.
    if (this.longMs / shortMs > 2) this.longMs *= 0.95;
    if (mostRunning < this.limit / 2) return;
    const gradient = Math.min(1, Math.max(0.5, (tolerance * this.longMs) / shortMs));
    this.moveTo(this.limit * (1 - smoothing) + (this.limit * gradient + queue) * smoothing);
  }
}
