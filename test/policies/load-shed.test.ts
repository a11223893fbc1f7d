import { setImmediate as turn } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import {
  HandlesError,
  type HoldfastEvent,
  isRefusal,
  isRejected,
  type LoadShedOptions,
  loadShed,
  type Priority,
  pipeline,
  type Refusal,
  systemClock,
} from '../../src/index.js';
import { loadShedWith } from '../../src/policies/load-shed.js';
import { virtualClock } from '../../src/testing/index.js';

/** A guard on an event loop whose state the test sets. */
function onLoop(loop: { delayMs?: number; utilization?: number }, options?: LoadShedOptions) {
  return loadShedWith({ delayMs: () => loop.delayMs ?? 0, utilization: () => loop.utilization ?? 0 }, options);
}

const priorities: readonly Priority[] = ['low', 'normal', 'high', 'critical'];

/** Which priorities it admits. */
async function admitted(loop: { delayMs?: number; utilization?: number }, options: LoadShedOptions) {
  const calls = pipeline(onLoop(loop, { ...options, priority: ({ key }) => key as Priority }));
  const outcomes = await Promise.all(priorities.map((key) => calls.attempt(() => key, { key })));
  return outcomes.flatMap((outcome) => (outcome.ok ? [outcome.value] : []));
}

describe('loadShed', () => {
  it('admits everything while the event loop is on time', async () => {
    expect(await admitted({ delayMs: 50, utilization: 0.81 }, { maxUtilization: 0.9 })).toEqual(priorities);
  });

  it.each([
    [{ delayMs: 51 }, ['normal', 'high', 'critical']],
    [{ delayMs: 100 }, ['normal', 'high', 'critical']],
    [{ delayMs: 101 }, ['high', 'critical']],
    [{ delayMs: 200 }, ['high', 'critical']],
    [{ delayMs: 201 }, ['critical']],
    [{ delayMs: 60_000 }, ['critical']],
    [{ utilization: 0.82 }, ['normal', 'high', 'critical']],
    [{ utilization: 0.9 }, ['normal', 'high', 'critical']],
    [{ utilization: 0.91 }, ['high', 'critical']],
    [{ utilization: 1 }, ['high', 'critical']],
  ])('at %j admits %j: the less important calls are shed first as load grows', async (loop, expected) => {
    expect(await admitted(loop, { maxUtilization: 0.9 })).toEqual(expected);
  });

  it('ignores a busy loop unless asked', () => {
    expect(isRefusal(onLoop({ utilization: 1 }).admit())).toBe(false);
  });

  it('refuses with an error that gives the measurement, and reports it', () => {
    const events: HoldfastEvent[] = [];
    // The guard did not ask how busy the loop is.
    const guard = onLoop({ delayMs: 130.4, utilization: 0.5 }, { name: 'server', on: (event) => events.push(event) });
    const { error } = guard.admit() as Refusal;
    expect(error).toMatchObject({
      name: 'ShedError',
      policy: 'server',
      reason: 'event loop 130 ms late, priority normal',
    });
    expect(isRejected(error)).toBe(true);
    expect(events).toEqual([
      { type: 'shed', name: 'server', priority: 'normal', eventLoopDelayMs: 130.4, utilization: 0 },
    ]);
    const busy = onLoop({ utilization: 0.95 }, { maxUtilization: 0.9 }).admit() as Refusal;
    expect(busy.error).toMatchObject({ reason: 'event loop busy for 95 % of the time, priority normal' });
  });

  it.each([
    [
      'throws',
      () => {
        throw new Error('bug');
      },
    ],
    ['answers no priority', () => 'urgent'],
    ['answers a name of Object', () => 'constructor'],
    ['answers a list', () => ['low']],
  ])('distinguishes a `priority` that %s from a refusal', async (_, priority) => {
    const outcome = await pipeline(onLoop({}, { priority: priority as () => Priority })).attempt(() => 1);
    expect(outcome).toEqual({ ok: false, error: expect.any(HandlesError) });
    expect(outcome).toMatchObject({
      error: { policy: 'loadShed', message: expect.stringContaining('"priority" function failed') },
    });
  });

  it('measures nothing on another clock, so that simulations stay repeatable', async () => {
    const clock = virtualClock();
    const guard = onLoop({ delayMs: 500 }, { clock });
    expect(isRefusal(guard.admit())).toBe(false);
    expect(await pipeline(guard).attempt(() => 1)).toEqual({ ok: true, value: 1 });
    expect(clock.pendingTimers).toBe(0);
  });

  it('captures a stack for a refusal only if asked', () => {
    for (const stack of [undefined, false, true]) {
      const { error } = onLoop({ delayMs: 500 }, stack === undefined ? {} : { stack }).admit() as Refusal;
      expect(String((error as Error).stack).includes('load-shed.test')).toBe(stack ?? false);
    }
  });

  it('tolerates 100 ms by default', () => {
    expect(isRefusal(onLoop({ delayMs: 100 }).admit())).toBe(false);
    expect(isRefusal(onLoop({ delayMs: 100.1 }).admit())).toBe(true);
  });

  it('measures on the system clock, even if that is given explicitly', async () => {
    const guard = onLoop({ delayMs: 500 }, { clock: systemClock });
    expect(isRefusal(guard.admit())).toBe(true);
    expect(await pipeline(guard).attempt(() => 1)).toMatchObject({ ok: false, error: { code: 'ERR_SHED' } });
    expect(await pipeline(onLoop({})).attempt(() => 1)).toEqual({ ok: true, value: 1 });
  });

  it('does not call priority without a call', () => {
    const guard = onLoop({ delayMs: 150 }, { priority: () => 'critical' });
    expect(isRefusal(guard.admit())).toBe(true);
  });

  it('describes what it does', () => {
    expect(onLoop({}).traits).toMatchObject({
      kind: 'load-shed',
      summary: 'turns calls away while the event loop is more than 100 ms late',
    });
    expect(onLoop({}, { maxUtilization: 0.9 }).traits?.summary).toBe(
      'turns calls away while the event loop is more than 100 ms late or busy for more than 0.9 of the time',
    );
  });

  it('sheds after the real event loop was blocked for 300 ms, admits again afterwards, and keeps no process alive', async () => {
    const guard = loadShed({ maxEventLoopDelay: 150 });
    const timers = () => process.getActiveResourcesInfo().filter((kind) => kind === 'Timeout').length;
    const before = timers();
    expect(isRefusal(guard.admit())).toBe(false);
    // A timer that is unref-ed does not count among what keeps the process alive.
    expect(timers()).toBe(before);
    const untilMs = performance.now() + 300;
    while (performance.now() < untilMs);
    // Both within the turn that blocks, and after it.
    expect(isRefusal(guard.admit())).toBe(true);
    await turn();
    expect(isRefusal(guard.admit())).toBe(true);
    // The sample that was due is taken before any timer set now fires, and its delay counts for a while.
    await new Promise((resolve) => setTimeout(resolve, 1));
    expect(isRefusal(guard.admit())).toBe(true);
    let admissions = 0;
    const giveUpMs = performance.now() + 60_000;
    while (admissions === 0 && performance.now() < giveUpMs) {
      await turn();
      if (!isRefusal(guard.admit())) admissions++;
    }
    expect(admissions).toBe(1);
  });

  it.each([
    [{ maxEventLoopDelay: 0 }, 'maxEventLoopDelay'],
    [{ maxUtilization: 0.009 }, 'maxUtilization'],
    [{ maxUtilization: 1.01 }, 'maxUtilization'],
    [{ priority: 'low' }, 'priority'],
    [{ maxDelay: 5 }, 'maxDelay'],
  ])('refuses the options %j', (options, option) => {
    expect(() => loadShed(options as never)).toThrow(expect.objectContaining({ name: 'OptionsError', option }));
  });
});
