/**
 * Call window: how many of the last `capacity` calls failed, and how many were slow.
 *
 * Promise: one byte per call, allocated once; a record costs the same whatever the capacity.
 */
export class CallWindow {
  calls = 0;
  failures = 0;
  slow = 0;
  /** Bit 0: failed, bit 1: slow. */
  private readonly results: Uint8Array;
  private nextIndex = 0;

  constructor(capacity: number) {
    this.results = new Uint8Array(capacity);
  }

  /** Whether there is room for more calls. */
  get isFilling(): boolean {
    return this.calls < this.results.length;
  }

  record(failed: boolean, slow: boolean): void {
    const { results, nextIndex } = this;
    // Unused places hold a zero, so dropping one changes no sum.
    const dropped = results[nextIndex]!;
    results[nextIndex] = (failed ? 1 : 0) | (slow ? 2 : 0);
    this.nextIndex = nextIndex + 1 === results.length ? 0 : nextIndex + 1;
    if (this.calls < results.length) this.calls++;
    this.failures += (failed ? 1 : 0) - (dropped & 1);
    this.slow += (slow ? 1 : 0) - (dropped >> 1);
  }
}
