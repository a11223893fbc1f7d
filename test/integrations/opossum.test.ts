import Opossum from 'opossum';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import {
  BulkheadFullError,
  CircuitOpenError,
  OptionsError,
  pipeline,
  RejectedError,
  TimeoutError,
  timeout,
} from '../../src/index.js';
import { fromOpossum, fromOpossumOptions, type OpossumBreaker } from '../../src/integrations/opossum.js';
import { virtualClock } from '../../src/testing/index.js';

type Breaker = OpossumBreaker & {
  readonly closed: boolean;
  readonly stats: Readonly<Record<string, number>>;
  fire(...args: unknown[]): Promise<unknown>;
  fallback(answer: (...args: unknown[]) => unknown): void;
  on(event: string, listener: () => void): void;
  open(): void;
  disable(): void;
  shutdown(): void;
};
// The package has no types of its own.
const CircuitBreaker = Opossum as unknown as new (action: (...args: never[]) => unknown, options: object) => Breaker;

const made: Breaker[] = [];
function breakerOf(options: object = {}, action: (...args: never[]) => unknown = () => 'the own action'): Breaker {
  const breaker = new CircuitBreaker(action, {
    timeout: false,
    errorThresholdPercentage: 50,
    resetTimeout: 1_000,
    name: 'users',
    ...options,
  });
  made.push(breaker);
  return breaker;
}

const fail = () => Promise.reject(new Error('down'));
const hangs = () => new Promise<never>(() => {});

beforeEach(() => void vi.useFakeTimers());
afterEach(() => {
  for (const breaker of made.splice(0)) breaker.shutdown();
  vi.useRealTimers();
});

describe('fromOpossum', () => {
  it("guards what is inside of it instead of the breaker's own action, and shares its circuit with fire", async () => {
    const breaker = breakerOf();
    const users = pipeline(fromOpossum(breaker));
    expect(await users.execute(({ attempt }) => `inside ${attempt}`)).toBe('inside 1');
    expect(await breaker.fire()).toBe('the own action');
    expect(breaker.stats.successes).toBe(2);
    const error = new Error('down');
    const outcome = await users.attempt(() => Promise.reject(error));
    expect(!outcome.ok && outcome.error).toBe(error);
    expect(breaker.stats.failures).toBe(1);
  });

  it('refuses with a CircuitOpenError while the circuit is open, and closes it by a probe', async () => {
    const breaker = breakerOf();
    const users = pipeline(fromOpossum(breaker));
    await users.attempt(fail);
    expect(breaker.opened).toBe(true);
    const refused = await users.attempt(() => 'never');
    expect(refused).toMatchObject({ ok: false, error: { policy: 'users', state: 'open' } });
    expect(!refused.ok && refused.error).toBeInstanceOf(CircuitOpenError);
    await expect(breaker.fire()).rejects.toMatchObject({ code: 'EOPENBREAKER' });
    await vi.advanceTimersByTimeAsync(1_000);
    let finish: (value: string) => void = () => {};
    const probe = users.execute(() => new Promise<string>((resolve) => (finish = resolve)));
    expect(await users.attempt(() => 'second')).toMatchObject({ ok: false, error: { state: 'half-open' } });
    finish('probe');
    expect(await probe).toBe('probe');
    expect(breaker.closed).toBe(true);
  });

  it('passes an error of the operation on as it is, also one with a code like those of opossum', async () => {
    const error = Object.assign(new Error('connect'), { code: 'ETIMEDOUT' });
    const outcome = await pipeline(fromOpossum(breakerOf())).attempt(() => Promise.reject(error));
    expect(!outcome.ok && outcome.error).toBe(error);
  });

  it("turns opossum's timeout into a TimeoutError and aborts the call inside with it", async () => {
    const breaker = breakerOf({ timeout: 50 });
    let signal: AbortSignal | undefined;
    const running = pipeline(fromOpossum(breaker)).attempt((call) => {
      signal = call.signal;
      return hangs();
    });
    await vi.advanceTimersByTimeAsync(50);
    const outcome = await running;
    expect(outcome).toMatchObject({ ok: false, error: { policy: 'users', afterMs: 50 } });
    expect(!outcome.ok && outcome.error).toBeInstanceOf(TimeoutError);
    expect(signal?.reason).toBe(!outcome.ok && outcome.error);
    expect(breaker.stats.timeouts).toBe(1);
  });

  it('turns a full capacity into a BulkheadFullError, and a shutdown into an isolated circuit', async () => {
    const breaker = breakerOf({ capacity: 1, volumeThreshold: 100 });
    const users = pipeline(fromOpossum(breaker));
    const first = users.attempt(() => Promise.resolve(1));
    const second = await users.attempt(() => 2);
    expect(!second.ok && second.error).toBeInstanceOf(BulkheadFullError);
    expect(await first).toEqual({ ok: true, value: 1 });
    breaker.shutdown();
    expect(await users.attempt(() => 3)).toMatchObject({ ok: false, error: { state: 'isolated' } });
  });

  it('takes a refusal of a policy inside for no failure', async () => {
    const breaker = breakerOf();
    const refusal = new RejectedError('ERR_NO', 'not now', { policy: 'no' });
    const outcome = await pipeline(fromOpossum(breaker)).attempt(() => Promise.reject(refusal));
    expect(!outcome.ok && outcome.error).toBe(refusal);
    expect(breaker.closed).toBe(true);
    expect(breaker.stats.failures).toBe(0);
  });

  it('counts a timeout inside as a failure', async () => {
    const breaker = breakerOf();
    const clock = virtualClock();
    const running = pipeline(fromOpossum(breaker), timeout({ after: 20, clock })).attempt(hangs);
    await clock.advance(20);
    const outcome = await running;
    expect(!outcome.ok && outcome.error).toBeInstanceOf(TimeoutError);
    expect(breaker.stats.failures).toBe(1);
    expect(breaker.opened).toBe(true);
  });

  it("takes the caller's abort for no failure, frees its place at once, and consumes what comes late", async () => {
    const breaker = breakerOf({ capacity: 1 });
    const controller = new AbortController();
    const users = pipeline(fromOpossum(breaker));
    let failLate: (error: Error) => void = () => {};
    const running = users.attempt(() => new Promise((_, reject) => (failLate = reject)), { signal: controller.signal });
    controller.abort('gone');
    expect(await running).toEqual({ ok: false, error: 'gone' });
    await vi.advanceTimersByTimeAsync(0);
    expect(breaker.closed).toBe(true);
    expect(breaker.stats.failures).toBe(0);
    expect(await users.execute(() => 'next')).toBe('next');
    failLate(new Error('late'));
    await vi.advanceTimersByTimeAsync(0);
    expect(breaker.stats.failures).toBe(0);
  });

  it('does not let an aborted probe close the circuit', async () => {
    const breaker = breakerOf();
    const users = pipeline(fromOpossum(breaker));
    await users.attempt(fail);
    await vi.advanceTimersByTimeAsync(1_000);
    expect(breaker.halfOpen).toBe(true);
    const controller = new AbortController();
    const probe = users.attempt(hangs, { signal: controller.signal });
    controller.abort('gone');
    expect(await probe).toEqual({ ok: false, error: 'gone' });
    await vi.advanceTimersByTimeAsync(0);
    expect(breaker.opened).toBe(true);
    await vi.advanceTimersByTimeAsync(1_000);
    expect(await users.execute(() => 'probe')).toBe('probe');
  });

  it("answers with the breaker's fallback in place of a failure, and of a refusal by its circuit", async () => {
    const breaker = breakerOf();
    breaker.fallback(() => 'cached');
    const users = pipeline(fromOpossum<string>(breaker));
    expect(await users.execute<string>(fail)).toBe('cached');
    expect(await users.execute(() => 'never')).toBe('cached');
  });

  it('answers with the value although a listener of the breaker throws', async () => {
    const breaker = breakerOf();
    breaker.on('success', () => {
      throw new Error('listener');
    });
    breaker.fallback(() => 'cached');
    expect(await pipeline(fromOpossum(breaker)).execute(() => 'value')).toBe('value');
  });

  it('starts nothing when a listener of the breaker ends the call', async () => {
    const breaker = breakerOf();
    const controller = new AbortController();
    breaker.on('fire', () => controller.abort('gone'));
    let started = 0;
    const outcome = await pipeline(fromOpossum(breaker)).attempt(() => ++started, { signal: controller.signal });
    expect(outcome).toEqual({ ok: false, error: 'gone' });
    expect(started).toBe(0);
  });

  it('lets everything through while the breaker is disabled', async () => {
    const breaker = breakerOf();
    breaker.disable();
    const users = pipeline(fromOpossum(breaker));
    await users.attempt(fail);
    await users.attempt(fail);
    expect(await users.execute(() => 'through')).toBe('through');
  });

  it.each([
    ['no breaker', {}],
    ['nothing', undefined],
  ])('refuses %s', (_, breaker) => {
    expect(() => fromOpossum(breaker as never)).toThrow(OptionsError);
  });

  it.each(['cache', 'coalesce'])(
    'refuses a breaker with %s, whose callers would get the answers of others',
    (option) => {
      expect(() => fromOpossum(breakerOf({ [option]: true }))).toThrow('use cache or singleFlight');
    },
  );
});

describe('fromOpossumOptions', () => {
  it("says opossum's defaults in our words", () => {
    expect(fromOpossumOptions()).toEqual({
      circuitBreaker: {
        name: 'circuitBreaker',
        failureRate: 0.5,
        minimumCalls: 1,
        window: 10_000,
        openFor: 30_000,
        maxOpenFor: 30_000,
        halfOpen: { permits: 1, successes: 1 },
        handles: expect.any(Function),
      },
      bulkhead: undefined,
      timeout: { after: 10_000 },
    });
  });

  it('translates each option, and leaves out what concerns statistics only', () => {
    const ignorable = new Error('404');
    const { circuitBreaker, bulkhead, timeout } = fromOpossumOptions({
      name: 'users',
      timeout: false,
      capacity: 7,
      errorThresholdPercentage: 25,
      volumeThreshold: 20,
      rollingCountTimeout: 30_000,
      resetTimeout: 5_000,
      errorFilter: (error) => error === ignorable,
      group: 'g',
      rollingCountBuckets: 5,
      rollingPercentilesEnabled: false,
      enableSnapshots: false,
    });
    expect(circuitBreaker).toMatchObject({
      name: 'users',
      failureRate: 0.25,
      minimumCalls: 20,
      window: 30_000,
      openFor: 5_000,
    });
    expect(bulkhead).toEqual({ limit: 7, queue: 0 });
    expect(timeout).toBeUndefined();
    expect(circuitBreaker.handles({ ok: true, value: 1 })).toBe(false);
    expect(circuitBreaker.handles({ ok: false, error: ignorable })).toBe(false);
    expect(circuitBreaker.handles({ ok: false, error: new Error('500') })).toBe(true);
  });

  it.each(['cache', 'coalesce', 'abortController', 'state', 'enabled'])(
    'refuses %s, which has no counterpart',
    (option) => {
      expect(() => fromOpossumOptions({ [option]: true })).toThrow(`unknown option "${option}"`);
    },
  );
});
