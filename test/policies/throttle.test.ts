import { describe, expect, it } from 'vitest';
import {
  HandlesError,
  type HoldfastEvent,
  isRefusal,
  isRejected,
  type Permit,
  pipeline,
  type Refusal,
  refuse,
  retry,
  ShedError,
  type ThrottleOptions,
  TimeoutError,
  throttle,
  timeout,
} from '../../src/index.js';
import { shedProbability } from '../../src/policies/throttle.js';
import { seededRandom, virtualClock } from '../../src/testing/index.js';

const down = { ok: false, error: new Error('503') } as const;
const fine = { ok: true, value: 1 } as const;
const letsAllIn = () => 1;
const fail = (message: string): never => {
  throw new Error(message);
};

describe('shedProbability', () => {
  it.each([
    [100, 50, 0],
    [100, 40, 0.198],
    [100, 25, 0.495],
    [100, 0, 0.99],
    [1, 0, 0.5],
    [0, 0, 0],
  ])('of %i requests and %i accepts is %f, as in the golden vector', (requests, accepts, probability) => {
    expect(shedProbability(requests, accepts, 2)).toBeCloseTo(probability, 3);
  });
});

describe('throttle', () => {
  function throttled(options: ThrottleOptions = {}) {
    const clock = virtualClock();
    const guard = throttle({ clock, random: letsAllIn, ...options });
    const send = (...outcomes: (typeof down | typeof fine)[]) => {
      for (const outcome of outcomes) {
        const answer = guard.admit();
        if (!isRefusal(answer)) answer.settle(outcome);
      }
    };
    const repeat = (count: number, outcome: typeof down | typeof fine) => send(...new Array(count).fill(outcome));
    return { clock, guard, send, repeat };
  }

  it.each([
    [50, 0],
    [40, 0.198],
    [25, 0.495],
    [0, 0.9],
  ])('of 100 calls with %i accepted turns the share %f away, never more than 0.9', (accepted, share) => {
    const { guard, repeat } = throttled();
    repeat(accepted, fine);
    repeat(100 - accepted, down);
    guard.admit();
    expect(guard.probability).toBeCloseTo(share, 3);
  });

  it('turns calls away at random, with an error that counts as never started, and reports it', async () => {
    const events: HoldfastEvent[] = [];
    let drawn = 1;
    const { guard, repeat } = throttled({ name: 'search', random: () => drawn, on: (event) => events.push(event) });
    repeat(20, down);
    drawn = 0.89;
    const outcome = await pipeline(guard).attempt(() => 1);
    expect(outcome).toMatchObject({ ok: false, error: { name: 'ShedError', policy: 'search' } });
    expect(!outcome.ok && isRejected(outcome.error)).toBe(true);
    expect(!outcome.ok && String(outcome.error)).toContain('90 %');
    expect(events).toEqual([{ type: 'throttled', name: 'search', probability: 0.9 }]);
    drawn = 0.9;
    expect(await pipeline(guard).attempt(() => 1)).toEqual({ ok: true, value: 1 });
  });

  it('forgets what is older than its window, even with a clock below zero', async () => {
    const clock = virtualClock({ now: -3_600_000 });
    const { guard, repeat } = throttled({ clock, window: '10s' });
    repeat(20, down);
    guard.admit();
    expect(guard.probability).toBe(0.9);
    await clock.advance(20_000);
    guard.admit();
    expect(guard.probability).toBe(0);
  });

  it.each<[string, () => number]>([
    ['throws', () => fail('no chance')],
    ['answers no number', () => Number.NaN],
  ])('admits every call if the source of randomness %s', (_, random) => {
    const { guard, repeat } = throttled({ random });
    repeat(40, down);
    expect(guard.probability).toBe(0.9);
    expect(isRefusal(guard.admit())).toBe(false);
  });

  it('turns nothing away before `minimumCalls` have ended', () => {
    const { guard, repeat } = throttled({ random: () => 0 });
    repeat(19, down);
    expect(isRefusal(guard.admit())).toBe(false);
    expect(guard.probability).toBe(0);
    repeat(1, down);
    expect(isRefusal(guard.admit())).toBe(true);
  });

  it('counts what it turns away as requests, so that it backs off further', () => {
    const { guard, repeat } = throttled({ random: () => 0, maxShedRate: 1 });
    repeat(20, fine);
    repeat(30, down);
    guard.admit();
    const before = guard.probability;
    for (let call = 0; call < 20; call++) guard.admit();
    expect(before).toBeCloseTo(10 / 51, 3);
    expect(guard.probability).toBeCloseTo(30 / 71, 3);
  });

  it('counts running calls neither way, so that a burst of first calls is not turned away', () => {
    const { guard } = throttled({ random: () => 0 });
    const permits = Array.from({ length: 200 }, () => guard.admit());
    expect(permits.some(isRefusal)).toBe(false);
    for (const permit of permits.slice(0, 20) as Permit[]) permit.settle(fine);
    guard.admit();
    expect(guard.probability).toBe(0);
  });

  it('counts neither an abort by the caller nor a refusal further inside', async () => {
    const { clock, guard } = throttled({ minimumCalls: 1, random: () => 0 });
    const controller = new AbortController();
    const aborted = pipeline(guard).attempt(() => clock.sleep(10), { signal: controller.signal });
    controller.abort();
    await aborted;
    await pipeline(guard, { name: 'no', admit: () => refuse(new ShedError({ policy: 'no', reason: 'x' })) }).attempt(
      () => 1,
    );
    await clock.runAll();
    expect(isRefusal(guard.admit())).toBe(false);
  });

  it('counts our own timeout as not accepted', async () => {
    const { clock, guard } = throttled({ minimumCalls: 1 });
    const late = pipeline(guard, timeout(5)).attempt(() => clock.sleep(50));
    await clock.runAll();
    expect(await late).toEqual({ ok: false, error: expect.any(TimeoutError) });
    guard.admit();
    expect(guard.probability).toBe(0.5);
  });

  it('uses `handles` to decide what means overload', () => {
    const { guard, repeat } = throttled({ handles: (outcome) => outcome.ok });
    repeat(20, down);
    guard.admit();
    expect(guard.probability).toBe(0);
    repeat(60, fine);
    guard.admit();
    expect(guard.probability).toBeCloseTo(40 / 81, 3);
  });

  it('counts a call whose `handles` throws as not accepted, and reports what was thrown', async () => {
    const { guard } = throttled({
      minimumCalls: 1,
      handles() {
        throw new Error('bug');
      },
    });
    expect(await pipeline(guard).attempt(() => 1)).toEqual({ ok: false, error: expect.any(HandlesError) });
    guard.admit();
    expect(guard.probability).toBe(0.5);
  });

  it('counts a permit once, however often it is settled', () => {
    const { guard } = throttled({ minimumCalls: 1 });
    const permit = guard.admit() as Permit;
    permit.settle(down);
    permit.settle(down);
    permit.release();
    guard.admit();
    expect(guard.probability).toBe(0.5);
    const released = guard.admit() as Permit;
    released.release();
    released.settle(down);
    guard.admit();
    expect(guard.probability).toBe(0.5);
  });

  it('forgets after its window, bucket by bucket, even after a long pause', async () => {
    const { clock, guard, repeat } = throttled({ window: '10s' });
    repeat(30, down);
    await clock.advance('5s');
    repeat(10, down);
    await clock.advance('4s');
    guard.admit();
    expect(guard.probability).toBe(0.9);
    await clock.advance('1s');
    guard.admit();
    // Ten calls are left, which are too few to say anything.
    expect(guard.probability).toBe(0);
    repeat(30, down);
    await clock.advance('7d');
    guard.admit();
    expect(guard.probability).toBe(0);
    expect(clock.pendingTimers).toBe(0);
  });

  it('admits every call again when the service has recovered, and meanwhile about twice what it accepts', async () => {
    const random = seededRandom(24);
    const { clock, guard } = throttled({ window: '10s', random });
    let capacity = 5;
    let sent = 0;
    const second = async () => {
      sent = 0;
      for (let call = 0; call < 100; call++) {
        const permit = guard.admit();
        if (!isRefusal(permit)) permit.settle(sent++ < capacity ? fine : down);
        await clock.advance(10);
      }
      return sent;
    };
    for (let at = 0; at < 20; at++) await second();
    const during = await second();
    expect(during).toBeGreaterThanOrEqual(5);
    expect(during).toBeLessThan(25);
    capacity = 1_000;
    for (let at = 0; at < 20; at++) await second();
    expect(await second()).toBe(100);
  });

  it('works in a pipeline without options, and with direct calls', async () => {
    const guard = throttle();
    expect(await pipeline(guard).attempt(() => 1)).toEqual({ ok: true, value: 1 });
    expect(isRefusal(guard.admit())).toBe(false);
  });

  it('looks back on two minutes by default', async () => {
    const { clock, guard, repeat } = throttled();
    repeat(20, down);
    await clock.advance('119s');
    guard.admit();
    expect(guard.probability).toBeGreaterThan(0);
    await clock.advance('1s');
    guard.admit();
    expect(guard.probability).toBe(0);
  });

  it('uses the clock of a call if it has none of its own', async () => {
    const clock = virtualClock();
    const guard = throttle({ window: '10s', minimumCalls: 1, random: letsAllIn });
    const calls = pipeline(timeout({ after: 5, clock }), retry({ attempts: 1 }), guard);
    for (let call = 0; call < 2; call++) await calls.attempt(() => Promise.reject(new Error('503')));
    expect(guard.probability).toBe(0.5);
    await clock.advance('10s');
    await calls.attempt(() => 1);
    expect(guard.probability).toBe(0);
  });

  it('draws nothing while it turns nothing away', () => {
    let draws = 0;
    const { repeat } = throttled({ random: () => ++draws });
    repeat(20, fine);
    repeat(1, down);
    expect(draws).toBe(0);
  });

  it('captures a stack for a refusal only if asked', () => {
    for (const stack of [undefined, false, true]) {
      const { guard, repeat } = throttled({ random: () => 0, ...(stack === undefined ? {} : { stack }) });
      repeat(20, down);
      const { error } = guard.admit() as Refusal;
      expect((error as Error).stack?.includes('\n    at ')).toBe(stack ?? false);
    }
  });

  it('describes what it does', () => {
    expect(throttle().traits).toMatchObject({
      kind: 'throttle',
      summary: 'turns calls away when fewer than one in 2 is accepted over 120000 ms',
    });
  });

  it.each([
    { factor: 1 },
    { factor: 100 },
    { window: 10 },
    { minimumCalls: 1 },
    { maxShedRate: 0 },
    { maxShedRate: 1 },
  ])('accepts the options %j', (options) => {
    expect(throttle(options).probability).toBe(0);
  });

  it.each([
    [{ factor: 0.5 }, 'factor'],
    [{ factor: 101 }, 'factor'],
    [{ window: 9 }, 'window'],
    [{ minimumCalls: 0 }, 'minimumCalls'],
    [{ maxShedRate: -0.1 }, 'maxShedRate'],
    [{ maxShedRate: 1.1 }, 'maxShedRate'],
    [{ random: 0.5 }, 'random'],
    [{ handles: true }, 'handles'],
    [{ ratio: 2 }, 'ratio'],
  ])('refuses the options %j', (options, option) => {
    expect(() => throttle(options as never)).toThrow(expect.objectContaining({ name: 'OptionsError', option }));
  });
});
