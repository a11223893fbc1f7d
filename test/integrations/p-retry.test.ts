import { AbortError } from 'p-retry';
import { describe, expect, it } from 'vitest';
import { HandlesError, OptionsError, pipeline, retry } from '../../src/index.js';
import { abortErrors, fromPRetry, type PRetryContext, type PRetryOptions } from '../../src/integrations/p-retry.js';
import { seededRandom, virtualClock } from '../../src/testing/index.js';

/** Runs an operation through the policies in virtual time, and returns when it was called. */
async function run(options: PRetryOptions, task: (attempt: number) => unknown, execute: object = {}) {
  const clock = virtualClock();
  const calls: number[] = [];
  const steady = pipeline(abortErrors(), retry({ ...fromPRetry(options), clock }));
  const running = steady.attempt(({ attempt }) => {
    calls.push(clock.now());
    return task(attempt);
  }, execute);
  await clock.runAll();
  return { outcome: await running, calls };
}

const down = () => Promise.reject(new Error('down'));

describe('fromPRetry', () => {
  it('makes eleven attempts by default, waiting 1 s first and twice as long each time', async () => {
    const { calls } = await run({}, down);
    expect(calls).toEqual([0, 1, 3, 7, 15, 31, 63, 127, 255, 511, 1_023].map((seconds) => seconds * 1_000));
  });

  it('waits no longer than maxTimeout', async () => {
    const { calls } = await run({ retries: 4, minTimeout: 100, factor: 3, maxTimeout: 500 }, down);
    expect(calls).toEqual([0, 100, 400, 900, 1_400]);
  });

  it('takes a factor of 0 for 1', async () => {
    expect((await run({ retries: 2, minTimeout: 10, factor: 0 }, down)).calls).toEqual([0, 10, 20]);
  });

  it('waits not at all with a minTimeout of 0, however large the factor', async () => {
    expect((await run({ retries: 999, minTimeout: 0, factor: 100 }, down)).calls).toEqual(Array(1_000).fill(0));
  });

  it('spreads randomized waits up to twice as long, and also at maxTimeout', () => {
    const random = seededRandom(7);
    const { backoff } = fromPRetry({ minTimeout: 1_000, maxTimeout: 10_000, randomize: true });
    const draw = (attempt: number) => Array.from({ length: 200 }, () => backoff({ attempt, random }));
    for (const delayMs of draw(2)) expect(delayMs).toBeGreaterThanOrEqual(2_000);
    for (const delayMs of draw(2)) expect(delayMs).toBeLessThanOrEqual(4_000);
    const capped = draw(9);
    expect(Math.max(...capped)).toBeLessThanOrEqual(10_000);
    expect(new Set(capped).size).toBeGreaterThan(150);
  });

  it('tells explain the longest wait', () => {
    expect([1, 2, 3].map(fromPRetry({ retries: 3 }).backoff.ceilingMs)).toEqual([1_000, 2_000, 4_000]);
    expect([1, 2, 3].map(fromPRetry({ maxTimeout: 2_000 }).backoff.ceilingMs)).toEqual([1_000, 2_000, 2_000]);
    expect(fromPRetry({ minTimeout: 0, factor: 100, retries: 999 }).backoff.ceilingMs(999)).toBe(0);
    expect([1, 2, 3].map(fromPRetry({ factor: 0.5 }).backoff.ceilingMs)).toEqual([1_000, 500, 250]);
    expect(
      pipeline(retry(fromPRetry({ retries: 3 })))
        .explain()
        .toString(),
    ).toContain('waiting up to 4000 ms');
  });

  it('asks shouldRetry about the error', async () => {
    const fatal = new Error('fatal');
    const { outcome, calls } = await run({ shouldRetry: ({ error }) => error !== fatal }, (attempt) =>
      Promise.reject(attempt === 1 ? new Error('busy') : fatal),
    );
    expect(calls).toEqual([0, 1_000]);
    expect(!outcome.ok && outcome.error).toBe(fatal);
  });

  it.each([
    [
      'throws',
      () => {
        throw new Error('broken');
      },
    ],
    ['answers a promise', () => Promise.resolve(true) as never],
  ])('rejects with a HandlesError when shouldRetry %s', async (_, shouldRetry) => {
    const { outcome } = await run({ shouldRetry }, down);
    expect(!outcome.ok && outcome.error).toBeInstanceOf(HandlesError);
  });

  it('does not repeat a TypeError, unless it is how fetch says that the network failed', async () => {
    expect((await run({ retries: 1 }, () => Promise.reject(new TypeError('x is undefined')))).calls).toHaveLength(1);
    for (const message of [
      'fetch failed',
      'terminated',
      'Network connection lost',
      'error sending request for url (http://a/)',
    ])
      expect((await run({ retries: 1 }, () => Promise.reject(new TypeError(message)))).calls).toHaveLength(2);
  });

  it('does not repeat what is no error, and passes it on as it is', async () => {
    const { outcome, calls } = await run({}, () => Promise.reject('text'));
    expect(calls).toHaveLength(1);
    expect(outcome).toEqual({ ok: false, error: 'text' });
  });

  it('tells onFailedAttempt of each failed attempt, the last one included', async () => {
    const told: PRetryContext[] = [];
    const error = new Error('down');
    await run({ retries: 1, onFailedAttempt: (context) => told.push(context) }, () => Promise.reject(error));
    expect(told).toEqual([
      { error, attemptNumber: 1, retriesLeft: 1, retriesConsumed: 0, retryDelay: 1_000 },
      { error, attemptNumber: 2, retriesLeft: 0, retriesConsumed: 1, retryDelay: 0 },
    ]);
  });

  it('tells onFailedAttempt of neither an AbortError nor an abort', async () => {
    const told: PRetryContext[] = [];
    const onFailedAttempt = (context: PRetryContext) => told.push(context);
    await run({ onFailedAttempt }, () => Promise.reject(new AbortError('no')));
    expect(told).toEqual([]);
    const controller = new AbortController();
    const clock = virtualClock();
    const running = pipeline(retry({ ...fromPRetry({ onFailedAttempt }), clock })).attempt(down, {
      signal: controller.signal,
    });
    await clock.advance(500);
    controller.abort(new Error('gone'));
    await running;
    expect(told.map(({ attemptNumber }) => attemptNumber)).toEqual([1]);
  });

  it.each<[string, unknown, string]>([
    ['retries', Number.POSITIVE_INFINITY, 'from 0 to 999'],
    ['signal', AbortSignal.abort(), 'execute(task, { signal })'],
    ['maxRetryTime', 5_000, 'a deadline around the retry'],
    ['shouldConsumeRetry', () => true, 'have no limit'],
    ['unref', true, 'keeps the process alive'],
  ])('refuses %s and says what takes its place', (option, value, advice) => {
    const options = { [option]: value } as never;
    expect(() => fromPRetry(options)).toThrow(OptionsError);
    expect(() => fromPRetry(options)).toThrow(advice);
  });
});

describe('abortErrors', () => {
  it('ends the call at the first AbortError with the error inside', async () => {
    const notFound = new Error('not found');
    const { outcome, calls } = await run({}, () => Promise.reject(new AbortError(notFound)));
    expect(calls).toHaveLength(1);
    expect(!outcome.ok && outcome.error).toBe(notFound);
  });

  it('unwraps an AbortError of a text, and one inside another', async () => {
    const text = await run({}, () => Promise.reject(new AbortError('gone for good')));
    expect(!text.outcome.ok && text.outcome.error).toMatchObject({ name: 'Error', message: 'gone for good' });
    const nested = await run({}, () => Promise.reject(new AbortError(new AbortError(new Error('deep')))));
    expect(!nested.outcome.ok && nested.outcome.error).toMatchObject({ name: 'Error', message: 'deep' });
  });

  it('leaves the AbortError of the platform alone, and ends with wrappers that hold each other', async () => {
    const abort = new DOMException('aborted', 'AbortError');
    const { outcome } = await run({ retries: 0 }, () => Promise.reject(abort));
    expect(!outcome.ok && outcome.error).toBe(abort);
    const one = new AbortError('one') as unknown as { originalError: unknown };
    const other = new AbortError('other') as unknown as { originalError: unknown };
    one.originalError = other;
    other.originalError = one;
    expect((await run({}, () => Promise.reject(one))).outcome.ok).toBe(false);
  });

  it("leaves the reason of the caller's abort as it is", async () => {
    const reason = new AbortError(new Error('inner'));
    const controller = new AbortController();
    const running = pipeline(abortErrors()).attempt(() => new Promise(() => {}), { signal: controller.signal });
    controller.abort(reason);
    const outcome = await running;
    expect(!outcome.ok && outcome.error).toBe(reason);
  });
});
