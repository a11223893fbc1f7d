import { describe, expect, it } from 'vitest';
import {
  constant,
  deadline,
  decorrelated,
  exponential,
  fallback,
  OptionsError,
  pipeline,
  retry,
  retryBudget,
  timeout,
} from '../../src/index.js';

function refusal(build: () => unknown): OptionsError {
  try {
    build();
  } catch (error) {
    if (error instanceof OptionsError) return error;
    throw error;
  }
  throw new Error('nothing was refused');
}

// biome-ignore lint/suspicious/noExplicitAny: what plain JavaScript may pass.
const wrong = (value: unknown) => value as any;

describe('OptionsError', () => {
  it.each<[string, () => unknown]>([
    ['retry: unknown option "maxAttempt", did you mean "attempts"?', () => retry(wrong({ maxAttempt: 3 }))],
    [
      'retry: unknown option "colour", the options are "attempts", "backoff", "budget", "handles", "maxRetryAfter", "minAttemptTime", "onDiscard", "random", "name", "on", "clock"',
      () => retry(wrong({ colour: 1 })),
    ],
    ['retry: option "attempts" must be an integer from 1 to 1000, got 0', () => retry({ attempts: 0 })],
    ['retry: option "attempts" must be an integer from 1 to 1000, got NaN', () => retry({ attempts: Number.NaN })],
    ['retry: option "attempts" must be an integer from 1 to 1000, got 2.5', () => retry({ attempts: 2.5 })],
    ['retry: option "attempts" must be an integer from 1 to 1000, got \'3\'', () => retry(wrong({ attempts: '3' }))],
    [
      'retry: option "attempts" must be an integer from 1 to 1000, got Infinity',
      () => retry({ attempts: Number.POSITIVE_INFINITY }),
    ],
    ['retry: option "attempts" must be an integer from 1 to 1000, got null', () => retry(wrong({ attempts: null }))],
    [
      `retry: option "backoff" must be exponential(), constant('1s') or another function, got an object`,
      () => retry(wrong({ backoff: {} })),
    ],
    ['retry: option "budget" must be a budget such as retryBudget(), got 5', () => retry(wrong({ budget: 5 }))],
    ['retry: options must be an object, got 3', () => retry(wrong(3))],
    ['retry: options must be an object, got an array', () => retry(wrong([]))],
    ["timeout: option \"after\" must be a duration such as 5000 or '5s', got '5 sec'", () => timeout(wrong('5 sec'))],
    ['timeout: option "after" must be a duration such as 5000 or \'5s\', got -1', () => timeout(-1)],
    [
      'timeout: option "after" must be a duration such as 5000 or \'5s\', from 1 to 2147483647 ms, got 0',
      () => timeout(0),
    ],
    [
      "timeout: option \"after\" must be a duration such as 5000 or '5s', from 1 to 2147483647 ms, got '25d'",
      () => timeout('25d'),
    ],
    ['timeout: option "after" is required: a duration such as 5000 or \'5s\'', () => timeout(wrong({}))],
    ['timeout: option "after" is required: a duration such as 5000 or \'5s\'', () => timeout(wrong(undefined))],
    ['timeout: option "name" must be a string of 1 to 200 characters, got \'\'', () => timeout({ after: 1, name: '' })],
    ['timeout: option "on" must be a function, got true', () => timeout(wrong({ after: 1, on: true }))],
    [
      'timeout: option "clock" must be a clock such as systemClock, got an object',
      () => timeout(wrong({ after: 1, clock: { now: () => 0 } })),
    ],
    ['deadline: unknown option "afte", did you mean "after"?', () => deadline(wrong({ afte: 1 }))],
    [
      "exponential: option \"jitter\" must be 'full' or 'equal' or 'none', got true",
      () => exponential(wrong({ jitter: true })),
    ],
    [
      'exponential: option "initial" must be at most "max" (100 ms), got 200',
      () => exponential({ initial: 200, max: 100 }),
    ],
    ['exponential: option "factor" must be a number from 1 to 100, got 0.5', () => exponential({ factor: 0.5 })],
    ['decorrelated: option "initial" must be at most "max" (5000 ms), got 6000', () => decorrelated({ initial: '6s' })],
    [
      'constant: option "delay" must be a duration such as 5000 or \'5s\', from 0 to 2147483647 ms, got -5',
      () => constant(-5),
    ],
    [
      'retryBudget: option "initial" must be at most "capacity" (5), got 6',
      () => retryBudget({ capacity: 5, initial: 6 }),
    ],
    ['fallback: option "answer" must be a function, got 5', () => fallback(wrong(5))],
    [
      "pipeline: argument 2 must be a policy such as timeout('1s'), got a function",
      () => pipeline(timeout(1), wrong(timeout)),
    ],
    ["pipeline: argument 1 must be a policy such as timeout('1s'), got undefined", () => pipeline(wrong(undefined))],
  ])('says: %s', (message, build) => {
    expect(refusal(build).message).toBe(message);
  });

  it('names policy, option, value and what is allowed', () => {
    const error = refusal(() => retry({ attempts: 0 }));
    expect(error).toBeInstanceOf(TypeError);
    expect(error).toMatchObject({
      name: 'OptionsError',
      code: 'ERR_OPTIONS',
      policy: 'retry',
      option: 'attempts',
      value: 0,
      allowed: 'an integer from 1 to 1000',
    });
  });

  it('cuts a long value and takes no time over a long key', () => {
    expect(refusal(() => timeout(wrong('x'.repeat(10_000_000)))).message.length).toBeLessThan(200);
    expect(refusal(() => retry(wrong({ ['a'.repeat(1_000_000)]: 1 }))).message).toContain('the options are');
  });

  it('neither changes nor keeps the options given', async () => {
    const options = Object.freeze({ attempts: 2, backoff: constant(0) });
    const twice = retry(options);
    expect(twice.traits?.attempts).toBe(2);
    const changing = { attempts: 2, backoff: constant(0) };
    const steady = pipeline(retry(changing));
    changing.attempts = 50;
    let calls = 0;
    await steady.attempt(() => {
      calls++;
      throw new Error('down');
    });
    expect(calls).toBe(2);
  });

  it('takes undefined for absent', () => {
    expect(retry(wrong({ attempts: undefined })).traits?.attempts).toBe(3);
  });
});
