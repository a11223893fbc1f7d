/** One timer serves all verbs of a store, with a grace period if the event loop was busy. */
import { describe, expect, it } from 'vitest';
import type { Clock } from '../../src/core/clock.js';
import { TimedVerb, VerbTimeouts } from '../../src/stores/verb-timeouts.js';

class Verb extends TimedVerb {
  isTimedOut = false;
  override timedOut(): void {
    this.isTimedOut = true;
  }
  override aborted(): void {}
}

describe('VerbTimeouts', () => {
  it('gives verbs of a long turn the time of a round trip', () => {
    let nowMs = 0;
    let timerMs: number | undefined;
    const clock: Clock = {
      now: () => nowMs,
      wallNow: () => nowMs,
      schedule(_timer, atMs) {
        timerMs = atMs;
      },
      cancel() {
        timerMs = undefined;
      },
    };
    const timeouts = new VerbTimeouts(clock, 500);
    const [answered, unanswered] = [new Verb(), new Verb()];
    timeouts.begin(answered, undefined);
    timeouts.begin(unanswered, undefined);
    // The loop returns to its timers after 600 ms, and what was sent leaves only now.
    nowMs = 600;
    timeouts.expire();
    expect([answered.isTimedOut, unanswered.isTimedOut, timerMs]).toEqual([false, false, 620]);
    timeouts.end(answered);
    nowMs = 620;
    timeouts.expire();
    expect([answered.isTimedOut, unanswered.isTimedOut, timerMs]).toEqual([false, true, undefined]);
  });
});
