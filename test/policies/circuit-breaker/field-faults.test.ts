/**
 * What circuit breakers got wrong in the field, with one promise per fault. The ids are those of the fault table in the specification. The last tests run with
 * the real clock.
 */
import { describe, expect, it } from 'vitest';
import {
  type CircuitBreakerOptions,
  CircuitOpenError,
  circuitBreaker,
  type Guard,
  isRefusal,
  keyed,
  pipeline,
  refuse,
  ShedError,
  type Strategy,
  TimeoutError,
} from '../../../src/index.js';
import { type VirtualClock, virtualClock } from '../../../src/testing/index.js';

const hangs = () => new Promise<never>(() => {});
const fails = () => Promise.reject(new Error('down'));

function setUp(options: CircuitBreakerOptions = {}) {
  const clock = virtualClock();
  const breaker = circuitBreaker({ clock, window: { consecutive: 2 }, openFor: 1_000, random: () => 0.5, ...options });
  return { clock, breaker, run: pipeline(breaker) };
}

async function failTwice(run: ReturnType<typeof pipeline>): Promise<void> {
  await run.attempt(fails);
  await run.attempt(fails);
}

async function passOpening(clock: VirtualClock): Promise<void> {
  await clock.advance(750);
}

describe('circuitBreaker', () => {
  it('B01: does not close on the late success of a call that began before it opened', async () => {
    const { clock, breaker, run } = setUp();
    const slow = run.attempt(() => clock.sleep(800).then(() => 'late'));
    await failTwice(run);
    await passOpening(clock);
    const probe = run.attempt(hangs);
    const before = breaker.snapshot();
    await clock.advance(50);
    expect(await slow).toEqual({ ok: true, value: 'late' });
    expect(breaker.snapshot()).toEqual({ ...before, elapsedMs: 50, staleResults: 1 });
    await clock.runAll();
    await probe;
  });

  it('B04: ends a probe that hangs, counts it as a failure, and opens again', async () => {
    const { clock, breaker, run } = setUp({ halfOpen: { permits: 1 } });
    await failTwice(run);
    await passOpening(clock);
    const probe = run.attempt(() => clock.sleep(900).then(() => 'late'));
    expect(await run.attempt(fails)).toMatchObject({ error: { state: 'half-open' } });
    await clock.advance(750);
    const outcome = await probe;
    expect(outcome).toMatchObject({ ok: false, error: expect.any(TimeoutError) });
    expect(outcome).toMatchObject({ error: { policy: 'circuitBreaker', afterMs: 750 } });
    expect(breaker.state).toBe('open');
    await clock.advance(200);
    expect(breaker.snapshot()).toMatchObject({ state: 'open', openings: 2 });
  });

  it('B04: notices at the next admission that a directly taken probe was never settled, and drops its late result', async () => {
    const { clock, breaker, run } = setUp({ halfOpen: { permits: 1, timeout: 300 } });
    await failTwice(run);
    await passOpening(clock);
    const probe = breaker.admit();
    await clock.advance(300);
    expect(breaker.admit()).toMatchObject({ error: { state: 'open' } });
    if (!isRefusal(probe)) probe.settle({ ok: true, value: 1 });
    expect(breaker.snapshot()).toMatchObject({ state: 'open', staleResults: 1 });
    // It opened when the probe ended, however late anyone looks.
    await clock.advance(1_500);
    expect(isRefusal(breaker.admit())).toBe(false);
    await clock.advance('1h');
    expect(isRefusal(breaker.admit())).toBe(false);
    expect(clock.pendingTimers).toBe(0);
  });

  it('B04: drops the late success of a probe that was given up while the others continue', async () => {
    const { clock, breaker, run } = setUp({ halfOpen: { permits: 3, successes: 1, timeout: 300 } });
    await failTwice(run);
    await passOpening(clock);
    const lost = breaker.admit();
    await clock.advance(300);
    const next = breaker.admit();
    if (isRefusal(lost) || isRefusal(next)) throw new Error('refused');
    lost.settle({ ok: true, value: 1 });
    expect(breaker.snapshot()).toMatchObject({ state: 'half-open', staleResults: 1 });
    next.settle({ ok: true, value: 1 });
    expect(breaker.state).toBe('closed');
  });

  it('B05: stays half-open and gets the permit back when the caller aborts the probe', async () => {
    const { clock, breaker, run } = setUp({ halfOpen: { permits: 1 } });
    await failTwice(run);
    await passOpening(clock);
    const controller = new AbortController();
    const probe = run.attempt(hangs, { signal: controller.signal });
    controller.abort('gone');
    expect(await probe).toEqual({ ok: false, error: 'gone' });
    expect(breaker.state).toBe('half-open');
    await run.attempt(() => 'well');
    expect(breaker.state).toBe('closed');
  });

  it('B07: does not count refusals of an inner policy, in the same layer or a deeper one', async () => {
    const { breaker } = setUp();
    const full: Guard = { name: 'full', admit: () => refuse(new ShedError({ policy: 'full', reason: 'full' })) };
    const through: Strategy = { name: 'through', handle: (call, next) => next(call) };
    const inner = pipeline(breaker, full);
    const deeper = pipeline(breaker, through, full);
    for (let call = 0; call < 5; call++) {
      await inner.attempt(() => 1);
      await deeper.attempt(() => 1);
    }
    expect(breaker.snapshot()).toMatchObject({ state: 'closed', window: { failuresInARow: 0 } });
  });

  it('B15: measures its opening in monotonic time', async () => {
    const { clock, breaker, run } = setUp();
    await failTwice(run);
    clock.jumpWallClock(-3_600_000);
    await passOpening(clock);
    expect(await run.attempt(() => 'well')).toEqual({ ok: true, value: 'well' });
    expect(breaker.state).toBe('half-open');
  });

  it('B17: closes with an empty window', async () => {
    const { clock, breaker, run } = setUp({ window: '10s', minimumCalls: 2, openFor: 50, halfOpen: { permits: 1 } });
    await failTwice(run);
    await clock.advance(50);
    await run.attempt(() => 'well');
    await run.attempt(fails);
    expect(breaker.snapshot()).toMatchObject({ state: 'closed', window: { calls: 1, failures: 1 } });
  });

  it('B18: keeps a state set by an operator until reset', async () => {
    const { clock, breaker, run } = setUp();
    breaker.isolate();
    await clock.advance('1h');
    expect(await run.attempt(() => 1)).toMatchObject({ error: expect.any(CircuitOpenError) });
    expect(breaker.state).toBe('isolated');
    breaker.forceClosed();
    for (let call = 0; call < 300; call++) await run.attempt(fails);
    expect(breaker.state).toBe('forced-closed');
    breaker.reset();
    await failTwice(run);
    expect(breaker.state).toBe('open');
  });

  it('B22: keeps the same memory and does the same work per call whatever the window holds', () => {
    const { breaker } = setUp({ window: '30s', failureRate: 1 });
    let reads = 0;
    const counting = circuitBreaker({
      clock: { now: () => ++reads, wallNow: () => 0, schedule() {}, cancel() {} },
      window: '24h',
    });
    for (let call = 0; call < 100_000; call++) {
      for (const each of [breaker, counting]) {
        const permit = each.admit();
        if (!isRefusal(permit)) permit.settle({ ok: call % 3 > 0, value: 1, error: 1 } as never);
      }
    }
    expect(reads).toBe(100_000);
    expect(breaker.snapshot().window).toMatchObject({ calls: 100_000, failures: 33_334 });
    const size = (value: unknown): number =>
      typeof value === 'object' && value !== null && !('now' in value)
        ? Object.values(value).reduce<number>((sum, part) => sum + size(part), 1)
        : 1;
    expect(size(breaker)).toBeLessThan(100);
  });

  it('B25: keeps at most maxKeys keys, and evicts open circuits last', async () => {
    const clock = virtualClock();
    const breakers = keyed(() => circuitBreaker({ clock, window: { consecutive: 1 } }), { maxKeys: 100, clock });
    const run = pipeline(breakers);
    for (let key = 0; key < 50; key++) await run.attempt(fails, { key: `down ${key}` });
    for (let key = 0; key < 10_000; key++) await run.attempt(() => 1, { key: `well ${key}` });
    expect(breakers.size).toBe(100);
    for (let key = 0; key < 50; key++) expect(breakers.for(`down ${key}`).state).toBe('open');
  });

  it('B29: owns no timer in any state', async () => {
    const { clock, run } = setUp({ rampUp: '1m' });
    await failTwice(run);
    expect(clock.pendingTimers).toBe(0);
    await passOpening(clock);
    await run.attempt(() => 1);
    expect(clock.pendingTimers).toBe(0);
  });

  it('B29, in real time: sets no timer of the platform, so a process can end while it is open', async () => {
    const timers = () => process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length;
    const before = timers();
    const breaker = circuitBreaker({ window: { consecutive: 1 }, openFor: '1h' });
    await pipeline(breaker).attempt(fails);
    expect([breaker.state, timers()]).toEqual(['open', before]);
  });

  it('B01, in real time: does not count what began before it opened', async () => {
    const breaker = circuitBreaker({ window: { consecutive: 1 }, openFor: '1h' });
    const run = pipeline(breaker);
    const slow = run.attempt(() => new Promise((resolve) => setTimeout(resolve, 5, 'late')));
    await run.attempt(fails);
    await slow;
    expect(breaker.snapshot()).toMatchObject({ state: 'open', staleResults: 1 });
  });

  it('B04, in real time: ends a probe that hangs and opens again', async () => {
    const breaker = circuitBreaker({ window: { consecutive: 1 }, openFor: 20, halfOpen: { permits: 1 } });
    const run = pipeline(breaker);
    await run.attempt(fails);
    await new Promise((resolve) => setTimeout(resolve, 30));
    expect(await run.attempt(hangs)).toMatchObject({ error: expect.any(TimeoutError) });
    expect(breaker.state).toBe('open');
  });
});
