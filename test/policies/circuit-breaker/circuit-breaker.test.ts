import { describe, expect, it } from 'vitest';
import { Call } from '../../../src/core/call.js';
import {
  type CircuitBreaker,
  type CircuitBreakerOptions,
  CircuitOpenError,
  type Clock,
  circuitBreaker,
  deadline,
  HandlesError,
  type HoldfastEvent,
  isRefusal,
  OptionsError,
  type Outcome,
  type Permit,
  pipeline,
  ShedError,
  TimeoutError,
  timeout,
} from '../../../src/index.js';
import { seededRandom, type VirtualClock, virtualClock } from '../../../src/testing/index.js';

const failed = { ok: false, error: new Error('down') } as const;
const succeeded = { ok: true, value: 1 } as const;

/** A breaker without jitter whose openings last as long as they may. */
function setUp(options: CircuitBreakerOptions = {}) {
  const clock = virtualClock();
  const events: HoldfastEvent[] = [];
  const breaker = circuitBreaker({
    clock,
    random: () => 0.999_999_999_999,
    on: (event) => void events.push(event),
    ...options,
  });
  return { clock, breaker, events };
}

/** A clock of which only the time matters. */
function clockOf(now: () => number): Clock {
  return { now, wallNow: () => 0, schedule() {}, cancel() {} };
}

function take(breaker: CircuitBreaker): Permit {
  const answer = breaker.admit();
  if (isRefusal(answer)) throw answer.error;
  return answer;
}

function refusalOf(breaker: CircuitBreaker): CircuitOpenError {
  const answer = breaker.admit();
  if (!isRefusal(answer)) throw new Error('it was let through');
  return answer.error as CircuitOpenError;
}

function fail(breaker: CircuitBreaker, times = 1): void {
  for (let call = 0; call < times; call++) take(breaker).settle(failed);
}

function succeed(breaker: CircuitBreaker, times = 1): void {
  for (let call = 0; call < times; call++) take(breaker).settle(succeeded);
}

/** Opens the breaker, and waits until the opening has passed. */
async function openAndWait(breaker: CircuitBreaker, clock: VirtualClock): Promise<void> {
  for (let call = 0; call < 1_000 && breaker.state === 'closed'; call++) fail(breaker);
  await clock.advance(breaker.snapshot().openForMs + 1);
}

describe('circuitBreaker', () => {
  it('opens when half of at least 20 calls in the last 30 s failed, and tells the next caller', async () => {
    const { breaker, clock, events } = setUp({ name: 'payments' });
    succeed(breaker, 10);
    fail(breaker, 9);
    expect(breaker.state).toBe('closed');
    fail(breaker);
    expect(breaker.state).toBe('open');
    await clock.advance(1_800);
    const error = refusalOf(breaker);
    expect(error).toBeInstanceOf(CircuitOpenError);
    expect(error.message).toBe('"payments" is open for another 3200 ms (10 of 20 calls failed)');
    expect(error.retryAfterMs).toBeCloseTo(3_200);
    expect(events).toMatchObject([
      { type: 'circuit-changed', from: 'closed', to: 'open', generation: 1, detail: '10 of 20 calls failed' },
      { type: 'circuit-refused', state: 'open', shadow: false },
    ]);
  });

  it('checks its rates on successes, too', () => {
    const { breaker } = setUp();
    fail(breaker, 12);
    succeed(breaker, 7);
    expect(breaker.state).toBe('closed');
    succeed(breaker);
    expect(breaker.state).toBe('open');
  });

  it.each([
    [{ window: '10s' }, 10_000],
    [{}, 30_000],
  ] as const)('forgets what is older than its window: with %j, than %i ms', async (options, windowMs) => {
    const { breaker, clock } = setUp(options);
    fail(breaker, 10);
    await clock.advance(windowMs - 1);
    fail(breaker, 9);
    expect(breaker.snapshot()).toMatchObject({ state: 'closed', window: { calls: 19, failures: 19 } });
    await clock.advance(1);
    fail(breaker, 9);
    expect(breaker.snapshot()).toMatchObject({ state: 'closed', window: { calls: 18, failures: 18 } });
    await clock.advance(windowMs);
    expect(breaker.snapshot()).toMatchObject({ state: 'closed', window: { calls: 0, failures: 0 } });
  });

  it('counts the last calls if its window is a number, and reads no clock for it', () => {
    let reads = 0;
    const clock = clockOf(() => ++reads);
    const { breaker } = setUp({ clock, window: { calls: 10 } });
    succeed(breaker, 10);
    fail(breaker, 4);
    expect([breaker.state, reads]).toEqual(['closed', 0]);
    fail(breaker);
    expect(breaker.state).toBe('open');
  });

  it('opens after a number of consecutive failures if only those count', () => {
    const { breaker } = setUp({ window: { consecutive: 3 } });
    fail(breaker, 2);
    succeed(breaker);
    fail(breaker, 2);
    expect(breaker.state).toBe('closed');
    fail(breaker);
    expect(refusalOf(breaker).message).toContain('3 calls in a row failed');
    const patient = setUp({ window: { consecutive: 30 } }).breaker;
    for (let pair = 0; pair < 50; pair++) {
      fail(patient);
      succeed(patient);
    }
    expect(patient.state).toBe('closed');
  });

  it('opens after 100 failures in a row, however many successes the window holds', () => {
    const { breaker } = setUp();
    succeed(breaker, 10_000);
    fail(breaker, 99);
    expect(breaker.state).toBe('closed');
    fail(breaker);
    expect(breaker.state).toBe('open');
  });

  describe('until its window has been full once', () => {
    const takeMany = (breaker: CircuitBreaker, count: number) => Array.from({ length: count }, () => take(breaker));

    it.each([
      ['a time window', {}],
      ['a window of calls', { window: { calls: 100 } }],
    ])('does not open for quick failures while the slower successes are under way, with %s', (_, options) => {
      const { breaker } = setUp(options);
      const calls = takeMany(breaker, 80);
      for (const call of calls.splice(0, 29)) call.settle(failed);
      expect(breaker.state).toBe('closed');
      for (const call of calls) call.settle(succeeded);
      expect(breaker.state).toBe('closed');
    });

    it('opens when half of all calls have failed, those under way among them', () => {
      const { breaker } = setUp();
      const calls = takeMany(breaker, 80);
      for (const call of calls.splice(0, 39)) call.settle(failed);
      calls.pop()!.settle(failed);
      expect(breaker.state).toBe('open');
    });

    it('no longer counts calls that were released, and never those of an earlier state', () => {
      const { breaker } = setUp();
      const old = takeMany(breaker, 500);
      breaker.reset();
      const calls = takeMany(breaker, 80);
      for (const call of calls.splice(0, 20)) call.settle(failed);
      for (const call of old) call.release();
      for (const call of calls.splice(0, 30)) call.release();
      expect(breaker.state).toBe('closed');
      // 21 of 21 ended and 29 under way are less than half; then 22 of 44.
      calls.pop()!.settle(failed);
      expect(breaker.state).toBe('closed');
      for (const call of calls.splice(0, 7)) call.release();
      calls.pop()!.settle(failed);
      expect(breaker.state).toBe('open');
    });

    it('counts calls of a pipeline as under way, and not when they were aborted', async () => {
      const { breaker, clock } = setUp();
      const calls = pipeline(breaker);
      const fails = (times: number) =>
        Promise.all(Array.from({ length: times }, () => calls.attempt(() => Promise.reject(new Error('down')))));
      await fails(1);
      const endings: (() => void)[] = [];
      const waiting = Array.from({ length: 60 }, () =>
        calls.attempt(() => new Promise<void>((resolve) => endings.push(resolve))),
      );
      const controller = new AbortController();
      const aborted = Array.from({ length: 300 }, () =>
        calls.attempt(() => new Promise(() => {}), { signal: controller.signal }),
      );
      await fails(58);
      expect(breaker.state).toBe('closed');
      controller.abort();
      await Promise.all(aborted);
      await fails(1);
      expect(breaker.state).toBe('open');
      for (const end of endings) end();
      await Promise.all(waiting);
      expect(clock.pendingTimers).toBe(0);
    });

    it.each([
      ['while it admits a growing share of the calls', 9_999],
      ['once it admits all of them again', 10_000],
    ])('counts calls as under way %s', async (_, sinceRecovery) => {
      const { breaker, clock } = setUp({ rampUp: '10s', halfOpen: { permits: 1 } });
      await openAndWait(breaker, clock);
      succeed(breaker);
      await clock.advance(sinceRecovery);
      const calls: Permit[] = [];
      for (let call = 0; call < 100 && calls.length < 41; call++) {
        const answer = breaker.admit();
        if (!isRefusal(answer)) calls.push(answer);
      }
      for (const call of calls.splice(0, 20)) call.settle(failed);
      expect(breaker.state).toBe(sinceRecovery === 10_000 ? 'closed' : 'ramping');
      calls.pop()!.settle(failed);
      expect(breaker.state).toBe('open');
    });

    it('judges those that have ended if few are under way', () => {
      const { breaker } = setUp({ failureRate: 1, minimumCalls: 6 });
      takeMany(breaker, 2);
      fail(breaker, 6);
      expect(breaker.state).toBe('open');
    });

    it('opens after 100 failures in a row once there was a success, and after 250 in any case', () => {
      const { breaker } = setUp();
      takeMany(breaker, 10_000);
      succeed(breaker);
      fail(breaker, 99);
      expect(breaker.state).toBe('closed');
      fail(breaker);
      expect(breaker.state).toBe('open');
      breaker.reset();
      takeMany(breaker, 10_000);
      fail(breaker, 249);
      expect(breaker.state).toBe('closed');
      fail(breaker);
      expect(breaker.state).toBe('open');
    });
  });

  it.each([
    ['a time window', {}],
    ['a window of calls', { window: { calls: 40 } }],
  ])('judges only calls that have ended once its window was full, with %s', async (_, options) => {
    const { breaker, clock } = setUp(options);
    for (let call = 0; call < 5_000; call++) take(breaker);
    succeed(breaker, 40);
    await clock.advance(31_000);
    fail(breaker, 19);
    expect(breaker.state).toBe('closed');
    fail(breaker);
    expect(breaker.state).toBe('open');
  });

  it('uses the clock of the first call if it has none, and that of the system for direct calls', async () => {
    const clock = virtualClock();
    const breaker = circuitBreaker({ window: { consecutive: 1 }, openFor: '1m' });
    const calls = pipeline(deadline({ after: '1h', clock }), breaker);
    await calls.attempt(() => Promise.reject(new Error('down')));
    expect(await calls.attempt(() => 1)).toMatchObject({ ok: false, error: { state: 'open' } });
    await clock.advance('1m');
    expect(await calls.attempt(() => 1)).toEqual({ ok: true, value: 1 });
    const alone = circuitBreaker({ window: { consecutive: 1 }, openFor: '1h' });
    fail(alone);
    expect(refusalOf(alone).retryAfterMs).toBeGreaterThan(1_000);
  });

  it('gives a layer one permit for all its calls while it is closed, and reports whether the last one failed', () => {
    const { breaker, clock } = setUp({ window: { consecutive: 2 } });
    const { fused } = breaker;
    const call = new Call(clock, () => 1, undefined);
    const permitOf = () => fused?.admit(call) as Permit;
    permitOf().settle(failed);
    expect(fused?.lastFailed?.()).toBe(true);
    const shared = permitOf();
    expect(permitOf()).toBe(shared);
    shared.settle(succeeded);
    expect(fused?.lastFailed?.()).toBe(false);
    shared.settle(failed);
    shared.settle(failed);
    expect([breaker.state, isRefusal(fused!.admit(call))]).toEqual(['open', true]);
    expect(fused?.lastFailed?.()).toBe(false);
  });

  it('opens when enough calls were slow, and counts a slow probe as failed', async () => {
    const { breaker, clock } = setUp({ slowCallRate: 0.5, slowCallDuration: 100, minimumCalls: 2, openFor: 500 });
    await clock.advance('1m');
    const takeAfter = async (durationMs: number) => {
      const permit = take(breaker);
      await clock.advance(durationMs);
      permit.settle(succeeded);
    };
    await takeAfter(100);
    await takeAfter(100);
    await takeAfter(101);
    expect(breaker.state).toBe('closed');
    await takeAfter(101);
    expect(refusalOf(breaker).message).toContain('2 of 4 calls were slow');
    await clock.advance(500);
    const probe = take(breaker);
    await clock.advance(101);
    probe.settle(succeeded);
    expect(breaker.state).toBe('open');
  });

  it('counts slow calls in a pipeline, too', async () => {
    const { breaker, clock } = setUp({ slowCallRate: 0.6, slowCallDuration: 100, minimumCalls: 3 });
    const calls = pipeline(breaker);
    for (const durationMs of [1, 101, 101]) {
      expect(breaker.state).toBe('closed');
      const running = calls.attempt(() => clock.sleep(durationMs));
      await clock.runAll();
      await running;
    }
    expect(breaker.state).toBe('open');
  });

  it('admits as many probes as it has permits, in total and at once, and closes when all have succeeded', async () => {
    const { breaker, clock } = setUp();
    await openAndWait(breaker, clock);
    const probes = [take(breaker), take(breaker), take(breaker)];
    expect(refusalOf(breaker)).toMatchObject({ state: 'half-open', retryAfterMs: undefined });
    probes[0]?.settle(succeeded);
    expect(refusalOf(breaker).state).toBe('half-open');
    probes[1]?.settle(succeeded);
    probes[2]?.settle(succeeded);
    expect(breaker.snapshot()).toMatchObject({ state: 'closed', window: { calls: 0 } });
  });

  it('opens again at once when too many probes have failed for it to close', async () => {
    const { breaker, clock } = setUp({ halfOpen: { permits: 5, successes: 3 } });
    await openAndWait(breaker, clock);
    fail(breaker, 2);
    expect(breaker.state).toBe('half-open');
    fail(breaker);
    expect(refusalOf(breaker).message).toContain('3 of 3 probes failed');
    await clock.advance(breaker.snapshot().openForMs);
    succeed(breaker);
    fail(breaker, 3);
    expect(refusalOf(breaker).message).toContain('3 of 4 probes failed');
  });

  it.each([
    [2_000, 2_000],
    ['1m', 10_000],
  ] as const)('gives a probe as long as an opening of %s lasted, %i ms at most', async (openFor, probeMs) => {
    const { breaker, clock } = setUp({ openFor });
    await openAndWait(breaker, clock);
    expect(take(breaker).endsAt).toBeCloseTo(clock.now() + probeMs);
  });

  it('stays open for at least half of openFor', () => {
    const { breaker } = setUp({ random: () => 0 });
    fail(breaker, 20);
    expect(breaker.snapshot().openForMs).toBe(2_500);
  });

  it('doubles its openings up to the longest, half of each at random', async () => {
    const { breaker, clock } = setUp({ random: () => 0.5, openFor: 100, maxOpenFor: 1_000 });
    fail(breaker, 20);
    const openings: number[] = [];
    for (let opening = 0; opening < 6; opening++) {
      openings.push(breaker.snapshot().openForMs);
      await clock.advance(breaker.snapshot().openForMs);
      fail(breaker);
    }
    expect(openings).toEqual([75, 150, 300, 600, 750, 750]);
  });

  it('starts a new series after being closed for as long as it was last open, and not before', async () => {
    for (const [closedMs, openForMs] of [
      [99, 150],
      [100, 75],
    ] as const) {
      const { breaker, clock } = setUp({ random: () => 0.5, openFor: 100, halfOpen: { permits: 1 } });
      fail(breaker, 20);
      await clock.advance(75);
      succeed(breaker);
      // The opening lasted 75 ms, and that is the one that counts.
      await clock.advance(closedMs - 25);
      fail(breaker, 20);
      expect(breaker.snapshot()).toMatchObject({ openForMs });
    }
  });

  it('stays open for as long as the failure that opened it asked for, up to an hour', () => {
    const asks = (retryAfterMs: number) =>
      ({ ok: false, error: Object.assign(new Error('429'), { retryAfterMs }) }) as const;
    for (const [askedMs, openForMs] of [
      [30_000, 30_000],
      [7_200_000, 3_600_000],
      [1, 5_000],
    ] as const) {
      const { breaker } = setUp({ window: { consecutive: 1 } });
      take(breaker).settle(asks(askedMs));
      expect(breaker.snapshot().openForMs).toBeCloseTo(openForMs);
    }
    const { breaker, clock } = setUp({ window: { consecutive: 1 } });
    const date = new Date(clock.wallNow() + 30_000).toUTCString();
    const dated = Object.assign(new Error('503'), { headers: { 'retry-after': date } });
    take(breaker).settle({ ok: false, error: dated });
    expect(breaker.snapshot().openForMs).toBe(30_000);
  });

  it('admits a growing share of calls while it ramps up, and continues its series if it trips then', async () => {
    const { breaker, clock } = setUp({ rampUp: '10s', halfOpen: { permits: 1 }, window: { consecutive: 3 } });
    await openAndWait(breaker, clock);
    succeed(breaker);
    expect(breaker.state).toBe('ramping');
    const answers = Array.from({ length: 105 }, () => breaker.admit());
    expect(answers.filter((answer) => !isRefusal(answer))).toHaveLength(11);
    expect(answers.at(-1)).toMatchObject({ error: { state: 'ramping' } });
    await clock.advance('5s');
    const later = Array.from({ length: 100 }, () => breaker.admit()).filter((answer) => !isRefusal(answer));
    expect(Math.abs(later.length - 55)).toBeLessThanOrEqual(1);
    for (let call = 0; call < 100 && breaker.state === 'ramping'; call++) {
      const answer = breaker.admit();
      if (!isRefusal(answer)) answer.settle(failed);
    }
    expect(breaker.snapshot().openForMs).toBeCloseTo(10_000);
    await clock.advance('10s');
    succeed(breaker);
    await clock.advance('10s');
    succeed(breaker, 3);
    expect(breaker.state).toBe('closed');
  });

  it('counts the first call after its ramp-up', async () => {
    const { breaker, clock } = setUp({ rampUp: '10s', halfOpen: { permits: 1 } });
    await openAndWait(breaker, clock);
    succeed(breaker);
    await clock.advance('10s');
    fail(breaker);
    expect(breaker.snapshot()).toMatchObject({ state: 'closed', window: { calls: 1, failures: 1 } });
  });

  it('counts each permit once', async () => {
    const { breaker, clock } = setUp();
    const permit = take(breaker);
    permit.settle(failed);
    permit.settle(failed);
    permit.release();
    expect(breaker.snapshot().window).toMatchObject({ calls: 1, failures: 1 });
    await openAndWait(breaker, clock);
    const probe = take(breaker);
    probe.release();
    probe.release();
    expect([take(breaker), take(breaker), take(breaker)]).toHaveLength(3);
    expect(refusalOf(breaker).state).toBe('half-open');
  });

  it('does not count an inner refusal that is settled directly, and takes a probe back for it', async () => {
    const { breaker, clock } = setUp({ halfOpen: { permits: 1 } });
    const shed = { ok: false, error: new ShedError({ policy: 'inner', reason: 'busy' }) } as const;
    take(breaker).settle(shed);
    expect(breaker.snapshot().window.calls).toBe(0);
    await openAndWait(breaker, clock);
    take(breaker).settle(shed);
    take(breaker).settle(succeeded);
    expect(breaker.state).toBe('closed');
  });

  it('counts a throwing handles as a failure and shows the error', async () => {
    const { breaker } = setUp({
      window: { consecutive: 1 },
      handles() {
        throw new Error('mistake');
      },
    });
    const outcome = await pipeline(breaker).attempt(() => 1);
    expect(outcome).toMatchObject({ ok: false, error: expect.any(HandlesError) });
    expect(breaker.state).toBe('open');
    // The caller can close it, but a log of the error does not show it.
    expect(outcome).toMatchObject({ error: { value: 1 } });
    expect(Object.keys(!outcome.ok && (outcome.error as object))).not.toContain('value');
  });

  it.each([true, false])('does not count a call whose handles changes its state, and returns %s', (isFailure) => {
    const breaker: CircuitBreaker = circuitBreaker({
      window: { calls: 1 },
      handles() {
        breaker.reset();
        return isFailure;
      },
    });
    take(breaker).settle(failed);
    expect(breaker.snapshot()).toMatchObject({ state: 'closed', window: { calls: 0 }, staleResults: 1 });
  });

  it('judges outcomes by handles', () => {
    const { breaker } = setUp({
      window: { consecutive: 1 },
      handles: (outcome) => outcome.ok && outcome.value === 503,
    });
    fail(breaker);
    expect(breaker.state).toBe('closed');
    take(breaker).settle({ ok: true, value: 503 });
    expect(breaker.state).toBe('open');
  });

  it('does not ask handles about calls that an operator lets through', async () => {
    let asked = 0;
    const { breaker } = setUp({ handles: () => ++asked > 0 });
    breaker.forceClosed();
    await pipeline(breaker).attempt(() => 1);
    expect(asked).toBe(0);
  });

  it('refuses nothing in shadow mode, ends no call, and reports what it would have refused', async () => {
    const { breaker, clock, events } = setUp({ shadow: true });
    fail(breaker, 20);
    take(breaker).settle(succeeded);
    expect(events.at(-1)).toMatchObject({ type: 'circuit-refused', state: 'open', shadow: true });
    expect(breaker.snapshot()).toMatchObject({ state: 'open', window: { calls: 0 } });
    await clock.advance('5s');
    for (let probe = 0; probe < 9; probe++) expect(take(breaker).endsAt).toBeUndefined();
    breaker.isolate();
    take(breaker);
  });

  it('reports each change, and is consistent while it reports', async () => {
    const { breaker, clock, events } = setUp({ halfOpen: { permits: 1 } });
    fail(breaker, 20);
    await clock.advance('5s');
    succeed(breaker);
    const changes = events.filter((event) => event.type === 'circuit-changed');
    expect(changes.map(({ from, to, openForMs }) => [from, to, openForMs])).toEqual([
      ['closed', 'open', expect.closeTo(5_000)],
      ['open', 'half-open', undefined],
      ['half-open', 'closed', undefined],
    ]);
    const resetting: CircuitBreaker = circuitBreaker({
      clock,
      window: { consecutive: 1 },
      on: (event) => event.type === 'circuit-changed' && event.to === 'open' && resetting.reset(),
    });
    fail(resetting);
    expect(resetting.state).toBe('closed');
  });

  it('runs on the clock of its first call, even if its snapshot was read before', async () => {
    const clock = virtualClock();
    const breaker = circuitBreaker({ window: { consecutive: 1 }, openFor: '5s' });
    expect(breaker.snapshot()).toMatchObject({ state: 'closed', elapsedMs: 0 });
    const client = pipeline(timeout({ after: '1s', clock }), breaker);
    await client.attempt(() => Promise.reject(new Error('down')));
    expect((await client.attempt(() => 1)).ok).toBe(false);
    await clock.advance('5s');
    expect(await client.attempt(() => 1)).toEqual({ ok: true, value: 1 });
  });

  it('resumes from a snapshot with the rest of its time', async () => {
    const { breaker, clock } = setUp();
    fail(breaker, 20);
    await clock.advance('2s');
    const snapshot = JSON.parse(JSON.stringify(breaker.snapshot()));
    expect(snapshot).toEqual({
      v: 1,
      state: 'open',
      generation: 1,
      openForMs: expect.closeTo(5_000),
      elapsedMs: 2_000,
      openings: 1,
      window: { calls: 0, failures: 0, slow: 0, failuresInARow: 0 },
      staleResults: 0,
    });
    const other = setUp();
    expect(other.breaker.restore(snapshot)).toBe(true);
    expect(refusalOf(other.breaker).retryAfterMs).toBeCloseTo(3_000);
    await other.clock.advance('3s');
    fail(other.breaker);
    expect(other.breaker.snapshot()).toMatchObject({ openForMs: expect.closeTo(10_000), openings: 2 });
  });

  it.each(['closed', 'half-open', 'ramping', 'isolated', 'forced-closed'])(
    'resumes from a snapshot that is %s',
    (state) => {
      const { breaker } = setUp({ rampUp: '1m' });
      expect(breaker.restore({ ...breaker.snapshot(), state })).toBe(true);
      // The probes of a half-open circuit belonged to another breaker, so the next call begins with new ones.
      if (state === 'half-open') take(breaker);
      expect(breaker.state).toBe(state);
    },
  );

  it.each([
    [0, 3],
    [7, 8],
  ])(
    'begins a new generation after a snapshot of generation %i, so that nothing from before counts',
    (generation, next) => {
      const { breaker } = setUp();
      const out = take(breaker);
      breaker.isolate();
      breaker.reset();
      expect(breaker.restore({ ...breaker.snapshot(), generation })).toBe(true);
      expect(breaker.snapshot().generation).toBe(next);
      out.settle(failed);
      expect(breaker.snapshot()).toMatchObject({ window: { calls: 0 }, staleResults: 1 });
    },
  );

  it('opens as usual after a closed snapshot, and admits a share of calls after a ramping one', () => {
    const closed = setUp({ window: { consecutive: 3 } }).breaker;
    closed.restore(closed.snapshot());
    fail(closed, 3);
    expect(closed.state).toBe('open');
    const ramping = setUp({ rampUp: '1m' }).breaker;
    ramping.restore({ ...ramping.snapshot(), state: 'ramping' });
    const admitted = Array.from({ length: 105 }, () => ramping.admit()).filter((answer) => !isRefusal(answer));
    expect(admitted).toHaveLength(11);
  });

  it.each([
    { generation: Number.MAX_SAFE_INTEGER - 1 },
    { openings: Number.MAX_SAFE_INTEGER },
    { openForMs: 2 ** 31 - 1 },
    { elapsedMs: Number.MAX_SAFE_INTEGER },
  ])('resumes from a snapshot with %j', (change) => {
    const { breaker } = setUp();
    expect(breaker.restore({ ...breaker.snapshot(), ...change })).toBe(true);
  });

  it.each([
    undefined,
    null,
    'open',
    {},
    { v: 2 },
    { state: 'ajar' },
    { openForMs: -1 },
    { openForMs: Number.NaN },
    { openForMs: 2 ** 31 },
    { elapsedMs: null },
    { elapsedMs: -1 },
    { elapsedMs: Number.POSITIVE_INFINITY },
    { openings: 0.5 },
    { openings: -1 },
    { generation: '7' },
    { generation: -1 },
  ])('stays unchanged and reports an inconsistent snapshot: %j', (change) => {
    const { breaker, events } = setUp();
    const corrupt =
      typeof change === 'object' && change !== null && Object.keys(change).length > 0
        ? { ...breaker.snapshot(), ...change }
        : change;
    expect(breaker.restore(corrupt)).toBe(false);
    expect(breaker.state).toBe('closed');
    expect(events).toMatchObject([{ type: 'circuit-not-restored' }]);
  });

  it('lets every call through once it is disposed, and ignores outstanding permits', () => {
    const { breaker } = setUp({ window: { consecutive: 1 } });
    const out = take(breaker);
    breaker[Symbol.dispose]();
    out.settle(failed);
    fail(breaker);
    expect(breaker.snapshot()).toMatchObject({ state: 'forced-closed', staleResults: 1 });
  });

  it.each([
    [1, 10],
    [2, 20],
  ])(
    'lets probes off that the deadlines of their callers cut short: with %i permits, %i of them',
    async (permits, letOff) => {
      const clock = virtualClock();
      const breaker = circuitBreaker({
        clock,
        window: { consecutive: 1 },
        openFor: 1_000,
        random: () => 1 - 2 ** -53,
        halfOpen: { permits },
      });
      const calls = pipeline(breaker);
      await calls.attempt(() => Promise.reject(new Error('down')));
      await clock.advance(1_000);
      for (let late = 1; late <= letOff + 1; late++) {
        const running = calls.attempt(() => new Promise(() => {}), { deadline: '50ms' });
        await clock.advance(50);
        expect(await running).toMatchObject({ error: { code: 'ERR_DEADLINE_EXCEEDED' } });
        expect(breaker.state).toBe(late <= letOff ? 'half-open' : 'open');
      }
    },
  );

  it.each<[string, Outcome]>([
    ['a timeout inside ended', { ok: false, error: new TimeoutError({ policy: 'inner', afterMs: 5 }) }],
    ['answered a value taken for a failure', { ok: true, value: 503 }],
    ['failed with no error at all', { ok: false, error: undefined }],
  ])('counts a probe that %s soon after it began', async (_, outcome) => {
    const { breaker, clock } = setUp({ handles: () => true });
    await openAndWait(breaker, clock);
    take(breaker).settle(outcome);
    expect(breaker.state).toBe('open');
  });

  it('no longer waits for a probe that has succeeded', async () => {
    const { breaker, clock } = setUp({ halfOpen: { permits: 2, timeout: 100 } });
    await openAndWait(breaker, clock);
    succeed(breaker);
    await clock.advance(1_000);
    succeed(breaker);
    expect(breaker.state).toBe('closed');
  });

  it('counts a probe that its caller ended after a fair share of its time', async () => {
    const clock = virtualClock();
    const breaker = circuitBreaker({ clock, window: { consecutive: 1 }, openFor: 1_000, random: () => 1 - 2 ** -53 });
    const calls = pipeline(breaker);
    await calls.attempt(() => Promise.reject(new Error('down')));
    await clock.advance(1_000);
    const running = calls.attempt(() => new Promise(() => {}), { deadline: '100ms' });
    await clock.advance(100);
    await running;
    expect(breaker.state).toBe('open');
  });

  it('opens even if its random throws or returns nonsense', () => {
    for (const random of [
      () => Number.NaN,
      () => -1,
      () => 2,
      () => {
        throw new Error('no chance');
      },
    ]) {
      const { breaker } = setUp({ random, name: 'unlucky' });
      fail(breaker, 20);
      expect(breaker.snapshot()).toMatchObject({ state: 'open', openForMs: 5_000 });
    }
  });

  it.each<[CircuitBreakerOptions, string, number | undefined]>([
    [{}, 'opens when 50 % of at least 20 calls failed, for up to 5000 ms at first and 60000 ms later', 30_000],
    [
      { window: { consecutive: 3 }, shadow: true },
      'only tells when it would open after 3 failures in a row, for up to 5000 ms at first and 60000 ms later',
      undefined,
    ],
  ])('describes what it does: %j', (options, summary, windowMs) => {
    expect(circuitBreaker(options).traits).toMatchObject({ kind: 'circuit-breaker', summary, windowMs });
  });

  it('captures a stack for a refusal only if asked', () => {
    for (const stack of [undefined, false, true]) {
      const { breaker } = setUp(stack === undefined ? {} : { stack });
      breaker.isolate();
      expect(refusalOf(breaker).stack?.includes('\n    at ')).toBe(stack ?? false);
    }
  });

  it.each<object>([
    { window: 10 },
    { window: '24h' },
    { window: { calls: 100_000 } },
    { window: { consecutive: 100_000 } },
    { window: '100ms', minimumCalls: 50 },
    { rampUp: 0 },
    { rampUp: '24h' },
    { openFor: '24h' },
    { halfOpen: { permits: 1_000, timeout: '24h' } },
  ])('accepts %j', (options) => {
    expect(circuitBreaker(options).state).toBe('closed');
  });

  it.each<[string, object]>([
    ['window', { window: 5 }],
    ['window', { window: 86_400_001 }],
    ['window', { window: null }],
    ['window', { window: {} }],
    ['window', { window: { seconds: 5 } }],
    ['window', { window: { calls: 0 } }],
    ['window', { window: { calls: 100_001 } }],
    ['window', { window: { calls: 5, consecutive: 5 } }],
    ['minimumCalls', { minimumCalls: 0 }],
    ['minimumCalls', { window: { calls: 5 }, minimumCalls: 6 }],
    ['failureRate', { failureRate: 0 }],
    ['slowCallRate', { slowCallRate: 0.5 }],
    ['slowCallRate', { slowCallDuration: '1s' }],
    ['slowCallDuration', { slowCallRate: 0.5, slowCallDuration: '25h' }],
    ['openFor', { openFor: '5 sec' }],
    ['openFor', { openFor: '25h' }],
    ['maxOpenFor', { openFor: '5s', maxOpenFor: '4s' }],
    ['maxOpenFor', { maxOpenFor: '25h' }],
    ['rampUp', { rampUp: '25h' }],
    ['permits', { halfOpen: { permits: 0 } }],
    ['permits', { halfOpen: { permits: 1_001 } }],
    ['timeout', { halfOpen: { timeout: '25h' } }],
    ['successes', { halfOpen: { successes: 0 } }],
    ['halfOpen.successes', { halfOpen: { permits: 2, successes: 3 } }],
    ['probes', { halfOpen: { probes: 2 } }],
    ['faillureRate', { faillureRate: 0.5 }],
  ])('refuses the wrong option "%s" at once', (option, options) => {
    expect(() => circuitBreaker(options)).toThrow(expect.objectContaining({ option }));
    expect(() => circuitBreaker(options)).toThrow(OptionsError);
  });

  // A run that asks for few steps wants a quick answer, so it covers only the beginning of the hour.
  const mostCalls = Number(process.env.HOLDFAST_MODEL_STEPS ?? Number.POSITIVE_INFINITY);

  it.each([
    [0.01, 5_000],
    [0.1, 5_000],
    [0.1, 10],
  ])(
    'does not open within an hour in which %d of the calls fail at random, at %d calls a second',
    async (share, perSecond) => {
      const seed = 71;
      const random = seededRandom(seed);
      let nowMs = 0;
      const clock = clockOf(() => nowMs);
      const { breaker } = setUp({ clock });
      // At 5,000 calls a second, every seventh call stands for seven. Only the rates matter, and 18 million calls would be too many here.
      const stepMs = (perSecond > 1_000 ? 7_000 : 1_000) / perSecond;
      const endMs = Math.min(3_600_000, mostCalls * stepMs);
      for (; nowMs < endMs && breaker.state === 'closed'; nowMs += stepMs) {
        take(breaker).settle(random() < share ? failed : succeeded);
      }
      expect(breaker.state, `seed ${seed}`).toBe('closed');
    },
  );
});
