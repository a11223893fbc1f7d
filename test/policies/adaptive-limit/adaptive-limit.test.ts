import { describe, expect, it } from 'vitest';
import { Call } from '../../../src/core/call.js';
import {
  type AdaptiveLimitGuard,
  type AdaptiveLimitOptions,
  adaptiveLimit,
  BulkheadFullError,
  type Clock,
  type HoldfastEvent,
  isRefusal,
  OptionsError,
  type Permit,
  pipeline,
  retry,
  TimeoutError,
  timeout,
} from '../../../src/index.js';
import { seededRandom, type VirtualClock, virtualClock } from '../../../src/testing/index.js';

function make(options: AdaptiveLimitOptions = {}) {
  const clock = virtualClock();
  return { clock, guard: adaptiveLimit({ clock, ...options }) };
}

/** Takes a slot that is free. */
function take(guard: AdaptiveLimitGuard): Permit {
  const answer = guard.admit();
  if (answer instanceof Promise || isRefusal(answer)) throw new Error('no slot was free');
  return answer;
}

const success = { ok: true, value: 1 } as const;
const failure = { ok: false, error: new Error('down') } as const;
const lost = { ok: false, error: new TimeoutError({ policy: 'timeout' }) } as const;

/** Makes thirty calls of 100 ms, one after the other. */
async function learnPlain(guard: AdaptiveLimitGuard, clock: VirtualClock): Promise<void> {
  for (let count = 0; count < 30; count++) {
    const permit = take(guard);
    await clock.advance(100);
    permit.settle(success);
  }
}

describe('adaptiveLimit', () => {
  it('runs up to the limit, queues as many, and evicts the longest waiter', async () => {
    const { clock, guard } = make({ initial: 1, queue: 1 });
    const first = take(guard);
    const second = guard.admit();
    const third = guard.admit();
    expect(guard).toMatchObject({ limit: 1, running: 1, waiting: 1 });
    expect(await second).toMatchObject({
      error: { code: 'ERR_BULKHEAD_FULL', reason: 'overtaken', limit: 1, queue: 1 },
    });
    first.settle(success);
    const answer = await third;
    expect(isRefusal(answer)).toBe(false);
    (answer as Permit).release();
    expect(guard).toMatchObject({ running: 0, waiting: 0 });
    expect(clock.pendingTimers).toBe(0);
  });

  it('refuses at once if nobody may wait', () => {
    const events: HoldfastEvent[] = [];
    const { guard } = make({ initial: 1, queue: 0, name: 'search', on: (event) => events.push(event) });
    take(guard);
    const answer = guard.admit();
    expect(answer).toMatchObject({ error: expect.any(BulkheadFullError) });
    expect(answer).toMatchObject({ error: { policy: 'search', reason: 'full' } });
    expect(events).toEqual([{ type: 'bulkhead-full', name: 'search', reason: 'full', running: 1, waiting: 0 }]);
  });

  it('serves the newest first', async () => {
    const { guard } = make({ initial: 1 });
    const first = take(guard);
    const order: string[] = [];
    const older = Promise.resolve(guard.admit()).then((answer) => {
      order.push('older');
      return answer as Permit;
    });
    const newer = Promise.resolve(guard.admit()).then((answer) => {
      order.push('newer');
      return answer as Permit;
    });
    first.release();
    (await newer).release();
    (await older).release();
    expect(order).toEqual(['newer', 'older']);
  });

  it('turns a call away that waited twice as long as an operation takes', async () => {
    const { clock, guard } = make({ min: 1 });
    await learnPlain(guard, clock);
    const permits = Array.from({ length: guard.limit }, () => take(guard));
    let answer: unknown;
    void Promise.resolve(guard.admit()).then((given) => {
      answer = given;
    });
    await clock.advance(199);
    expect(answer).toBeUndefined();
    await clock.advance(1);
    expect(answer).toMatchObject({ error: { reason: 'waited' } });
    for (const permit of permits) permit.release();
    expect(clock.pendingTimers).toBe(0);
  });

  it('removes an aborted call from the queue at once', async () => {
    const { clock, guard } = make({ initial: 1 });
    const calls = pipeline(guard);
    const controller = new AbortController();
    const running = calls.attempt(() => clock.sleep(50));
    const waiting = calls.attempt(() => 'never', { signal: controller.signal });
    expect(guard.waiting).toBe(1);
    controller.abort('gone');
    expect(await waiting).toEqual({ ok: false, error: 'gone' });
    expect(guard.waiting).toBe(0);
    await clock.runAll();
    await running;
    expect(guard.running).toBe(0);
    expect(clock.pendingTimers).toBe(0);
  });

  it('does not start a queued call that has too little time left', async () => {
    const { clock, guard } = make();
    await learnPlain(guard, clock);
    const calls = pipeline(guard);
    const running = Array.from({ length: guard.limit }, () => calls.attempt(() => clock.sleep(50)));
    let wasStarted = false;
    const late = calls.attempt(
      () => {
        wasStarted = true;
      },
      { deadline: clock.now() + 100 },
    );
    await clock.advance(50);
    await Promise.all(running);
    expect(await late).toMatchObject({ ok: false, error: { reason: 'waited' } });
    expect(wasStarted).toBe(false);
  });

  it('serves on when operations that never end hold all slots, one call at a time', async () => {
    const { clock, guard } = make({ initial: 2, max: 2 });
    const calls = pipeline(guard, timeout({ after: 100, clock }));
    const never = () => new Promise<never>(() => {});
    const lost = [calls.attempt(never), calls.attempt(never)];
    // It waits for a slot, and starts as soon as nobody waits for the others.
    const waiting = calls.attempt(() => clock.sleep(10));
    await clock.advance(100);
    for (const outcome of await Promise.all(lost)) expect(outcome).toMatchObject({ error: { code: 'ERR_TIMEOUT' } });
    expect(guard.running).toBe(3);
    const next = calls.attempt(() => 'next');
    await clock.advance(10);
    expect(await waiting).toMatchObject({ ok: true });
    expect(await next).toEqual({ ok: true, value: 'next' });
    expect([guard.running, guard.waiting]).toEqual([2, 0]);
    expect(await calls.attempt(() => 'later')).toEqual({ ok: true, value: 'later' });
    expect(clock.pendingTimers).toBe(0);
  });

  it('finds the limit of a healthy service although one operation in a thousand never ends', async () => {
    const { clock, guard } = make();
    const random = seededRandom(2);
    const calls = pipeline(guard, timeout({ after: '3s', clock }));
    let served = 0;
    for (let call = 0; call < 20_000; call++) {
      const operation = () => (random() < 0.001 ? new Promise<never>(() => {}) : clock.sleep(random.gamma(20, 4)));
      void calls.attempt(operation).then(({ ok }) => {
        if (ok) served++;
      });
      await clock.advance(10);
    }
    expect(served).toBeGreaterThan(0.85 * 20_000);
  });

  it('keeps the slot of an operation that runs on after its timeout', async () => {
    const { clock, guard } = make();
    const calls = pipeline(guard, timeout({ after: 100, clock }));
    const outcome = calls.attempt(() => clock.sleep(500));
    await clock.advance(100);
    expect(await outcome).toMatchObject({ ok: false });
    expect(guard.running).toBe(1);
    await clock.advance(400);
    expect(guard.running).toBe(0);
    expect(clock.pendingTimers).toBe(0);
  });

  it('gives a slot back once, however often the permit is used', () => {
    const { guard } = make();
    const [first, second] = [take(guard), take(guard)];
    first.settle(success);
    first.settle(failure);
    first.release();
    first.ended?.();
    expect(guard.running).toBe(1);
    second.release();
    expect(guard.running).toBe(0);
  });

  it('learns from an operation once, and watches for stalls until the last one is over', () => {
    const { clock, guard } = make({ algorithm: 'aimd', initial: 4 });
    const [first, second] = [take(guard), take(guard)];
    for (let times = 0; times < 3; times++) first.settle(success);
    expect(guard.limit).toBe(5);
    for (let times = 0; times < 3; times++) first.release();
    expect(clock.pendingTimers).toBe(1);
    second.settle(failure);
    expect(clock.pendingTimers).toBe(0);
    take(guard).release();
    expect(clock.pendingTimers).toBe(0);
  });

  it.each([
    ['failed by itself', (permit: Permit) => permit.settle(failure)],
    ['was given back', (permit: Permit) => permit.release()],
  ])('learns nothing from an operation that %s', (_, end) => {
    const { guard } = make({ algorithm: 'aimd', initial: 4 });
    const [first] = [take(guard), take(guard), take(guard)];
    end(first);
    expect(guard.limit).toBe(4);
  });

  it('is not disturbed by an early operation that teaches nothing', async () => {
    const { clock, guard } = make();
    take(guard).settle(failure);
    await learnPlain(guard, clock);
    expect(guard.limit).toBe(1);
  });

  it('serves no waiter while more run than allowed', async () => {
    const { guard } = make({ algorithm: 'aimd', initial: 3 });
    const [first, second] = [take(guard), take(guard), take(guard)];
    let isServed = false;
    const waiting = Promise.resolve(guard.admit()).then(() => {
      isServed = true;
    });
    first!.settle(lost);
    await Promise.resolve();
    expect([guard.limit, guard.running, guard.waiting, isServed]).toEqual([2, 2, 1, false]);
    second!.settle(failure);
    await waiting;
    expect([guard.running, guard.waiting]).toEqual([2, 0]);
  });

  it('starts a queued call that has enough time', async () => {
    const { clock, guard } = make();
    await learnPlain(guard, clock);
    const calls = pipeline(guard);
    const running = Array.from({ length: guard.limit }, () => calls.attempt(() => clock.sleep(50)));
    const late = calls.attempt(() => 'started', { deadline: clock.now() + 121 });
    await clock.advance(50);
    await Promise.all(running);
    expect(await late).toMatchObject({ ok: true, value: 'started' });
  });

  it.each([
    ['aimd', [3, 5, 7], 200],
    ['vegas', [8, 20, 38], 200],
    ['gradient2', [2, 2, 2], 200],
    ['knee', [2, 2, 2], 100],
  ] as const)('moves by %s, and lets wait by it, if it is to', async (algorithm, limits, waitMs) => {
    const { clock, guard } = make({ algorithm, initial: 2, random: () => 0.5 });
    const full = [take(guard), take(guard)];
    const waited = Promise.resolve(guard.admit()).then(() => clock.now());
    await clock.advance(waitMs);
    expect(await waited).toBe(waitMs);
    for (const permit of full) permit.release();
    const moved: number[] = [];
    for (let round = 0; round < 3; round++) {
      const permits = Array.from({ length: guard.limit }, () => take(guard));
      await clock.advance(10);
      for (const permit of permits) permit.settle(success);
      moved.push(guard.limit);
    }
    expect(moved).toEqual(limits);
  });

  it('frees the slot of a call whose end nobody reports', async () => {
    const { clock, guard } = make();
    // This is a user's own guard around it, which does not pass `ended` on.
    const calls = pipeline({
      name: 'own',
      async admit(call) {
        const inner = (await guard.admit(call)) as Permit;
        return { settle: (outcome) => inner.settle(outcome), release: () => inner.release() };
      },
    });
    const controller = new AbortController();
    const outcome = calls.attempt(() => clock.sleep(20), { signal: controller.signal });
    await clock.flush();
    expect(guard.running).toBe(1);
    controller.abort();
    await outcome;
    expect(guard.running).toBe(1);
    await clock.runAll();
    expect(guard.running).toBe(0);
  });

  it('learns nothing from operations that failed, were aborted or refused', async () => {
    const { clock, guard } = make();
    await learnPlain(guard, clock);
    const { limit } = guard;
    for (let count = 0; count < 200; count++) {
      const permits = Array.from({ length: limit }, () => take(guard));
      await clock.advance(2);
      for (const [index, permit] of permits.entries()) {
        if (index % 2 === 0) permit.settle(failure);
        else permit.release();
      }
    }
    expect(guard.limit).toBe(limit);
  });

  it('learns from operations that were given up', async () => {
    const { clock, guard } = make({ algorithm: 'aimd', initial: 100 });
    take(guard).settle(lost);
    expect(guard.limit).toBe(90);
    expect(clock.pendingTimers).toBe(0);
  });

  it('reports a limit that has moved by a tenth', () => {
    const events: HoldfastEvent[] = [];
    const { guard } = make({ algorithm: 'aimd', initial: 100, name: 'search', on: (event) => events.push(event) });
    take(guard).settle(lost);
    take(guard).settle(lost);
    expect(events).toEqual([
      { type: 'limit-changed', name: 'search', limit: 90, previousLimit: 100 },
      { type: 'limit-changed', name: 'search', limit: 81, previousLimit: 90 },
    ]);
  });

  it('continues when a hook throws', () => {
    const { guard } = make({
      algorithm: 'aimd',
      initial: 100,
      on() {
        throw new Error('hook');
      },
    });
    take(guard).settle(lost);
    expect(guard).toMatchObject({ limit: 90, running: 0 });
  });

  it('does not count as a failure in a retry around it, and waits no longer than the call', async () => {
    const { clock, guard } = make({ initial: 1, queue: 0 });
    const calls = pipeline(retry({ attempts: 2, clock }), guard);
    const running = calls.attempt(() => clock.sleep(1_000));
    const refused = calls.attempt(() => 'never');
    await clock.runAll();
    await running;
    expect(await refused).toMatchObject({ ok: false, error: { code: 'ERR_BULKHEAD_FULL' } });
    expect(clock.pendingTimers).toBe(0);
  });

  it.each([
    [{ algorithm: 'bbr' }, 'algorithm'],
    [{ min: 0 }, 'min'],
    [{ min: 1_000_001, max: 1_000_000 }, 'min'],
    [{ max: 0 }, 'max'],
    [{ max: 1_000_001 }, 'max'],
    [{ min: 10, max: 9 }, 'max'],
    [{ initial: 0 }, 'initial'],
    [{ initial: 1_000_001, max: 1_000_000 }, 'initial'],
    [{ initial: 5, min: 10 }, 'initial'],
    [{ initial: 5, max: 4 }, 'initial'],
    [{ queue: -1 }, 'queue'],
    [{ random: 0.5 }, 'random'],
    [{ limit: 5 }, 'limit'],
  ])('refuses the options %o at once', (options, option) => {
    expect(() => adaptiveLimit(options as AdaptiveLimitOptions)).toThrow(expect.any(OptionsError));
    expect(() => adaptiveLimit(options as AdaptiveLimitOptions)).toThrow(expect.objectContaining({ option }));
  });

  it('names the bounds of `initial`', () => {
    expect(() => adaptiveLimit({ initial: 0 })).toThrow('from 1 to 1000000');
  });

  it.each([
    [{ initial: 5, min: 5, max: 5 }, 5],
    [{ initial: 1_000_000, min: 1, max: 1_000_000 }, 1_000_000],
    [{ min: 1_000_000, max: 1_000_000 }, 1_000_000],
  ])('accepts the options %o', (options, limit) => {
    expect(adaptiveLimit(options).limit).toBe(limit);
  });

  it.each([
    [1, 4],
    [6, 6],
  ])('queues as many as may run, at least four: with a limit of %i, %i', (initial, places) => {
    const { guard } = make({ initial });
    for (let running = 0; running < initial; running++) take(guard);
    for (let waiting = 0; waiting < places + 2; waiting++) void guard.admit();
    expect(guard.waiting).toBe(places);
  });

  it('admits no copy of a call if four fifths of its slots are taken, not even into the queue', () => {
    const { clock, guard } = make({ initial: 5 });
    const copy = () => {
      const call = new Call(clock, () => 1, undefined);
      call.isCopy = true;
      return call;
    };
    for (let running = 0; running < 3; running++) take(guard);
    expect(isRefusal(guard.admit(copy()) as Permit)).toBe(false);
    expect(guard.admit(copy())).toMatchObject({ error: { reason: 'full' } });
    expect(guard).toMatchObject({ running: 4, waiting: 0 });
    expect(isRefusal(guard.admit(new Call(clock, () => 1, undefined)) as Permit)).toBe(false);
  });

  it('captures a stack for a refusal only if asked', () => {
    for (const stack of [undefined, false, true]) {
      const { guard } = make({ initial: 1, queue: 0, ...(stack === undefined ? {} : { stack }) });
      take(guard);
      const { error } = guard.admit() as { error: Error };
      expect(error.stack?.includes('\n    at ')).toBe(stack ?? false);
    }
  });

  it('refuses a call that was aborted before it would have had to wait', async () => {
    const { clock, guard } = make({ initial: 1 });
    take(guard);
    const timers = clock.pendingTimers;
    const call = new Call(clock, () => 1, undefined);
    call.abort('gone');
    expect(await guard.admit(call)).toEqual({ error: 'gone' });
    expect([guard.waiting, clock.pendingTimers]).toEqual([0, timers]);
  });

  it('does not report a limit that has moved by less than a tenth', () => {
    const events: HoldfastEvent[] = [];
    const { guard } = make({ algorithm: 'aimd', initial: 95, max: 200, on: (event) => events.push(event) });
    const fill = (count: number) => Array.from({ length: count }, () => take(guard));
    for (let round = 0; round < 9; round++) {
      const permits = fill(60);
      permits[0]!.settle(success);
      for (const permit of permits.slice(1)) permit.release();
    }
    expect([guard.limit, events]).toEqual([104, []]);
    const permits = fill(60);
    permits[0]!.settle(success);
    expect(events).toEqual([{ type: 'limit-changed', name: 'adaptiveLimit', limit: 105, previousLimit: 95 }]);
  });

  it('starts within its range', () => {
    expect(adaptiveLimit().limit).toBe(100);
    expect(adaptiveLimit({ max: 10 }).limit).toBe(10);
    expect(adaptiveLimit({ min: 300 }).limit).toBe(300);
    expect(adaptiveLimit({ algorithm: 'gradient2' }).limit).toBe(20);
  });

  it('describes itself', () => {
    expect(adaptiveLimit({ algorithm: 'vegas' }).traits).toMatchObject({
      kind: 'adaptive-limit',
      summary: 'lets as many operations run at once as the service can serve, by vegas',
    });
    expect(String(pipeline(adaptiveLimit()).explain())).toContain(
      'as many operations run at once as the service can serve',
    );
  });
});

/** A clock that can lose time: the process is blocked, and everything that falls due meanwhile comes late. */
function blockable(clock: VirtualClock): Clock & { block(ms: number): void } {
  let lostMs = 0;
  return {
    now: () => clock.now() + lostMs,
    wallNow: () => clock.wallNow() + lostMs,
    schedule: (timer, atMs) => clock.schedule(timer, Math.max(clock.now(), atMs - lostMs)),
    cancel: (timer) => clock.cancel(timer),
    block(ms) {
      lostMs += ms;
    },
  };
}

describe('adaptiveLimit in a process that is blocked', () => {
  /** The mean limit over 20 s of a healthy service whose calls are held back, while time is lost every second. */
  async function meanLimit(stallMs: number): Promise<{ before: number; mean: number; timers: number }> {
    const virtual = virtualClock();
    const clock = blockable(virtual);
    const random = seededRandom(11);
    const guard = adaptiveLimit({ clock, queue: 0, max: 20 });
    const calls = pipeline(guard);
    const oneCall = () => calls.attempt(() => virtual.sleep(random.gamma(100, 4)));
    let isOver = false;
    const callers = (count: number) =>
      Array.from({ length: count }, async () => {
        while (!isOver) {
          await oneCall();
          await virtual.sleep(5);
        }
      });
    const few = callers(10);
    await virtual.advance('10s');
    const many = callers(20);
    await virtual.advance('10s');
    const before = guard.limit;
    let sum = 0;
    for (let second = 0; second < 20; second++) {
      clock.block(stallMs);
      for (let step = 0; step < 20; step++) {
        await virtual.advance(50);
        sum += guard.limit;
      }
    }
    isOver = true;
    await virtual.runAll();
    await Promise.all([...few, ...many]);
    return { before, mean: sum / 400, timers: virtual.pendingTimers };
  }

  it('does not lower the limit of a healthy service', async () => {
    const { before, mean, timers } = await meanLimit(500);
    expect(before).toBeGreaterThanOrEqual(19);
    // It stays where it was, apart from its deliberate dips of a few tenths of a second.
    expect(mean).toBeGreaterThan(19);
    expect(timers).toBe(0);
  });

  it('nor for stalls on the real clock', async () => {
    const guard = adaptiveLimit({ queue: 0 });
    const calls = pipeline(guard);
    const oneCall = () => calls.attempt(() => new Promise((resolve) => setTimeout(resolve, 3)));
    for (let round = 0; round < 5; round++) await Promise.all(Array.from({ length: 10 }, oneCall));
    const before = guard.limit;
    for (let round = 0; round < 12; round++) {
      const all = Promise.all(Array.from({ length: before }, oneCall));
      const untilMs = performance.now() + 40;
      while (performance.now() < untilMs);
      await all;
    }
    expect(guard.limit).toBeGreaterThanOrEqual(before);
  });

  it('learns from an operation that started after a stall', async () => {
    const virtual = virtualClock();
    const clock = blockable(virtual);
    const guard = adaptiveLimit({ clock, algorithm: 'aimd', initial: 4 });
    take(guard);
    clock.block(500);
    const second = take(guard);
    await virtual.advance(500);
    second.settle(success);
    expect(guard.limit).toBe(5);
  });

  it('turns away a queued call whose deadline has come, before the timer says so', async () => {
    const clock = blockable(virtualClock());
    const guard = adaptiveLimit({ clock, initial: 1 });
    const first = take(guard);
    const late = pipeline(guard).attempt(() => 'started', { deadline: clock.now() + 90 });
    clock.block(90);
    first.release();
    expect(await late).toMatchObject({ error: { code: 'ERR_BULKHEAD_FULL', reason: 'waited' } });
  });
});

describe('adaptiveLimit, for an operation that never ends', () => {
  it('keeps its slot, but no timer', async () => {
    const clock = virtualClock();
    const limit = adaptiveLimit({ clock });
    const calls = pipeline(limit, timeout({ after: 100, clock }));
    const running = calls.attempt(() => new Promise(() => {}));
    await clock.runAll();
    expect((await running).ok).toBe(false);
    expect(limit.running).toBe(1);
    expect(clock.pendingTimers).toBe(0);
  });
});
