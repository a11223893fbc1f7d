import { describe, expect, it } from 'vitest';
import { FirstTrips } from '../../../src/policies/adaptive-limit/first-trips.js';

/** When the first operation starts: the process has been running for an hour. */
const firstMs = 3_600_000;

/** Operations that start a millisecond apart, and take these times in milliseconds; negative: lost after that time. */
function firstTrips(times: readonly number[], size = times.length, wasHeld = false): FirstTrips {
  const trips = new FirstTrips(100, size);
  for (const [index, time] of times.entries()) {
    const roundTripMs = Math.abs(time);
    const endedMs = firstMs + index + roundTripMs;
    const trip = { roundTripMs, order: 100 + index, runningAtStart: index + 1, running: 1, wasLost: time < 0, endedMs };
    trips.add(trip, roundTripMs, wasHeld);
  }
  return trips;
}

const alternating = (size: number, low: number, high: number): number[] =>
  Array.from({ length: size }, (_, index) => (index % 2 === 0 ? low : high));

describe('first trips', () => {
  it('tell the mean of all, and no limit, if later ones take about as long as earlier ones', () => {
    expect(firstTrips([10, 10, 14, 15]).learnt()).toEqual({ plainMs: 12.25, samples: 4 });
  });

  it('tell the mean of the earlier half if the later half takes half as long again', () => {
    expect(firstTrips([10, 10, 15, 15]).learnt()).toMatchObject({ plainMs: 10, samples: 2 });
  });

  it('tell the mean of all if the later half takes longer only by chance', () => {
    // Twice as long, 2.47 standard errors apart, and 2.69 with two more of each.
    const scattered = (size: number) => [...alternating(size, 4, 16), ...alternating(size, 8, 32)];
    expect(firstTrips(scattered(12)).learnt()).toEqual({ plainMs: 15, samples: 24 });
    expect(firstTrips(scattered(14)).learnt()).toMatchObject({ plainMs: 10, samples: 14 });
  });

  it('tell then by the rate of answers how many may run', () => {
    // Ten answers in 109 ms are 0.092 per millisecond; at 40 ms each, 3.7 were running.
    const times = [...Array(5).fill(40), ...Array(5).fill(100)];
    expect(firstTrips(times).learnt().limit).toBe(4);
    expect(firstTrips([1, 1, 500, 500]).learnt().limit).toBe(2);
  });

  it('count a half by the order of starts, whichever ended first', () => {
    const trips = new FirstTrips(0, 4);
    for (const [order, roundTripMs] of [
      [3, 100],
      [2, 100],
      [0, 20],
      [1, 20],
    ] as const) {
      trips.add(
        { roundTripMs, order, runningAtStart: 1, running: 1, wasLost: false, endedMs: 100 },
        roundTripMs,
        false,
      );
    }
    expect(trips.learnt()).toMatchObject({ plainMs: 20, samples: 2 });
  });

  it('tell what they can if none of the earlier half taught anything', () => {
    const trips = new FirstTrips(0, 4);
    trips.add({ roundTripMs: 30, order: 9, runningAtStart: 1, running: 1, wasLost: false, endedMs: 30 }, 30, false);
    expect(trips.learnt()).toEqual({ plainMs: 30, samples: 1 });
  });

  it('know how many are missing', () => {
    expect(firstTrips([10, 10], 5).missing).toBe(3);
    expect(firstTrips([10, 10]).missing).toBe(0);
  });

  it.each([
    ['five of nine', [9, 9, 9, 9, -9, -9, -9, -9, -9], true],
    ['five of ten', [9, 9, 9, 9, 9, -9, -9, -9, -9, -9], false],
    ['four of five', [9, -9, -9, -9, -9], false],
    ['all, because the service may simply be away', [-9, -9, -9, -9, -9, -9], false],
  ])('say whether most were lost: %s', (_, times, expected) => {
    expect(firstTrips(times).mostWereLost).toBe(expected);
  });

  it('say whether they fall by a fifth', () => {
    expect(firstTrips([12, 12, 10, 10]).wereFalling).toBe(true);
    expect(firstTrips([11.9, 11.9, 10, 10]).wereFalling).toBe(false);
    expect(firstTrips([12, 12], 4).wereFalling).toBe(false);
  });

  it('say whether most of them were answered while the limit held calls back', () => {
    expect(firstTrips([9, 9, 9], 3, true).mostWereHeld).toBe(true);
    expect(firstTrips([9, 9, 9], 3, false).mostWereHeld).toBe(false);
    expect(firstTrips([-9, -9, -9], 3, true).mostWereHeld).toBe(false);
    const trips = firstTrips([9], 3, true);
    trips.add({ roundTripMs: 9, order: 101, runningAtStart: 1, running: 1, wasLost: false, endedMs: 20 }, 9, false);
    expect(trips.mostWereHeld).toBe(false);
  });
});
