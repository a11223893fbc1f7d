import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Call } from '../../src/core/call.js';
import {
  BulkheadFullError,
  type BulkheadOptions,
  bulkhead,
  constant,
  deadline,
  type Guard,
  type HoldfastEvent,
  isRefusal,
  isRejected,
  OptionsError,
  type Outcome,
  type Permit,
  pipeline,
  type Refusal,
  refuse,
  retry,
  TimeoutError,
  timeout,
} from '../../src/index.js';
import { virtualClock } from '../../src/testing/index.js';

const hangs = () => new Promise<never>(() => {});
const done: Outcome = { ok: true, value: 1 };
const gaveUp: Outcome = { ok: false, error: new TimeoutError({ policy: 'timeout', afterMs: 1 }) };

/** A permit that is taken by hand. The test fails if the guard refuses or makes it wait. */
function permitOf(answer: Permit | Refusal | Promise<Permit | Refusal>): Permit {
  if (answer instanceof Promise || isRefusal(answer)) throw new Error('no permit at once');
  return answer;
}

const hasDependents = (call: Call | undefined) =>
  (call as unknown as { firstDependent: unknown } | undefined)?.firstDependent !== undefined;

const reasonOf = (outcome: Outcome | Refusal) =>
  'error' in outcome && outcome.error instanceof BulkheadFullError ? outcome.error.reason : undefined;

/** A guard around another that does not pass `ended` on. */
function withoutEnded(inner: Guard): Guard {
  return {
    name: 'wrapper',
    admit(call) {
      const permit = permitOf(inner.admit(call));
      return { settle: (outcome) => permit.settle(outcome), release: () => permit.release() };
    },
  };
}

describe('bulkhead', () => {
  it('runs at most `limit` operations, queues at most `queue`, and refuses the rest at once', async () => {
    const clock = virtualClock();
    const events: HoldfastEvent[] = [];
    const guard = bulkhead({ limit: 2, queue: 1, name: 'database', clock, on: (event) => events.push(event) });
    const calls = pipeline(guard);
    const running = [1, 2, 3].map((value) => calls.attempt(() => clock.sleep(10).then(() => value)));
    expect([guard.running, guard.waiting]).toEqual([2, 1]);
    const refused = await calls.attempt(() => 4);
    expect(refused).toMatchObject({
      ok: false,
      error: { name: 'BulkheadFullError', policy: 'database', limit: 2, queue: 1, reason: 'full' },
    });
    expect(!refused.ok && isRejected(refused.error)).toBe(true);
    expect(events).toEqual([{ type: 'bulkhead-full', name: 'database', reason: 'full', running: 2, waiting: 1 }]);
    await clock.runAll();
    expect(await Promise.all(running)).toEqual([1, 2, 3].map((value) => ({ ok: true, value })));
    expect([guard.running, guard.waiting, guard.abandoned]).toEqual([0, 0, 0]);
  });

  it('R15: hands a free slot to the waiter before callers of the same turn can take it', async () => {
    const guard = bulkhead({ limit: 1, queue: 1 });
    const calls = pipeline(guard);
    let finish = (_: unknown) => {};
    const first = calls.execute(() => new Promise((resolve) => (finish = resolve)));
    const order: string[] = [];
    const queued = calls.attempt(() => order.push('queued'));
    finish(undefined);
    await first;
    const newcomers = ['a', 'b'].map((name) => calls.attempt(() => order.push(name)));
    expect(await queued).toEqual({ ok: true, value: 1 });
    const outcomes = await Promise.all(newcomers);
    expect(order[0]).toBe('queued');
    expect(outcomes.filter(({ ok }) => !ok).map(reasonOf)).toEqual(['full']);
  });

  it('R16: lets an aborted call leave the queue at once, and gives its place to another', async () => {
    const clock = virtualClock();
    const guard = bulkhead({ limit: 1, queue: 1, maxWait: '5s', clock });
    const calls = pipeline(guard);
    const first = calls.attempt(() => clock.sleep(400));
    const controller = new AbortController();
    let ran = false;
    const queued = calls.attempt(() => (ran = true), { signal: controller.signal });
    expect(guard.waiting).toBe(1);
    controller.abort('gone');
    expect(guard.waiting).toBe(0);
    expect(await queued).toEqual({ ok: false, error: 'gone' });
    const next = calls.attempt(() => 'next');
    await clock.runAll();
    expect(await next).toEqual({ ok: true, value: 'next' });
    expect((await first).ok).toBe(true);
    expect(ran).toBe(false);
    expect(clock.pendingTimers).toBe(0);
  });

  it('B07: its refusals are not failures of a breaker around it, and give the breaker its permit back', async () => {
    const told: string[] = [];
    const breaker: Guard = {
      name: 'breaker',
      admit: () => ({
        settle: ({ ok }) => told.push(ok ? 'success' : 'failure'),
        release: () => told.push('ignored'),
      }),
    };
    const calls = pipeline(breaker, bulkhead({ limit: 1 }));
    const outcomes = await Promise.all([1, 2, 3, 4].map(() => calls.attempt(async () => {})));
    expect(outcomes.filter(({ ok }) => ok)).toHaveLength(1);
    expect(told.sort()).toEqual(['ignored', 'ignored', 'ignored', 'success']);
    told.length = 0;
    const nested = pipeline(breaker, retry({ attempts: 1 }), bulkhead({ limit: 1 }));
    await Promise.all([1, 2, 3, 4].map(() => nested.attempt(async () => {})));
    expect(told.sort()).toEqual(['ignored', 'ignored', 'ignored', 'success']);
  });

  it('frees the slot when a call is aborted in the very tick in which its turn has come', async () => {
    const guard = bulkhead({ limit: 1, queue: 1 });
    const calls = pipeline(guard);
    const controller = new AbortController();
    const permit = permitOf(guard.admit());
    const queued = calls.attempt(hangs, { signal: controller.signal });
    permit.settle(done);
    controller.abort('gone');
    expect(await queued).toEqual({ ok: false, error: 'gone' });
    expect([guard.running, guard.waiting, guard.abandoned]).toEqual([0, 0, 0]);
  });

  describe('order', () => {
    /** Puts three calls into the queue of a bulkhead with one slot and two places; then the slot becomes free for each in turn. */
    async function served(order: BulkheadOptions['order']) {
      const clock = virtualClock();
      const calls = pipeline(bulkhead({ limit: 1, queue: 2, clock, ...(order && { order }) }));
      const starts: number[] = [];
      const outcomes = [0, 1, 2, 3].map((index) =>
        calls.attempt(() => {
          starts.push(index);
          return clock.sleep(10);
        }),
      );
      await clock.runAll();
      return { starts, reasons: (await Promise.all(outcomes)).map(reasonOf) };
    }

    it('is first come, first served by default', async () => {
      expect(await served(undefined)).toEqual({
        starts: [0, 1, 2],
        reasons: [undefined, undefined, undefined, 'full'],
      });
    });

    it("'newest-first' serves the newest, and evicts the oldest from a full queue", async () => {
      expect(await served('newest-first')).toEqual({
        starts: [0, 3, 2],
        reasons: [undefined, 'overtaken', undefined, undefined],
      });
    });

    it("'newest-first' refuses if nobody may wait", async () => {
      const guard = bulkhead({ limit: 1, order: 'newest-first' });
      permitOf(guard.admit());
      expect(reasonOf((await guard.admit()) as Refusal)).toBe('full');
    });

    it("'codel' serves its calls in time when twice as many come as can be served, where first come, first served serves nobody in time", async () => {
      const inTime = async (order: BulkheadOptions['order']) => {
        const clock = virtualClock();
        // 10 slots of 100 ms serve one call per 10 ms. One call arrives every 5 ms, and each has 500 ms.
        const calls = pipeline(
          deadline({ after: 500, clock }),
          bulkhead({ limit: 10, queue: 1_000, ...(order && { order }) }),
        );
        const outcomes: Promise<Outcome<void>>[] = [];
        for (let call = 0; call < 2_000; call++) {
          outcomes.push(calls.attempt(() => clock.sleep(100)));
          await clock.advance(5);
        }
        await clock.runAll();
        const last = (await Promise.all(outcomes)).slice(1_000);
        return last.filter(({ ok }) => ok).length / 500;
      };
      expect(await inTime('oldest-first')).toBeLessThan(0.3);
      expect(await inTime('codel')).toBeGreaterThan(0.95);
    });

    it("'codel' serves everybody, oldest first, while the queue only smooths bursts", async () => {
      const clock = virtualClock();
      const guard = bulkhead({ limit: 1, queue: 10, order: 'codel', clock });
      const calls = pipeline(guard);
      const starts: number[] = [];
      const outcomes: Promise<Outcome<void>>[] = [];
      for (let burst = 0; burst < 5; burst++) {
        for (let index = 0; index < 6; index++) {
          outcomes.push(
            calls.attempt(() => {
              starts.push(burst * 6 + index);
              return clock.sleep(20);
            }),
          );
        }
        await clock.advance(150);
      }
      expect((await Promise.all(outcomes)).every(({ ok }) => ok)).toBe(true);
      expect(starts).toEqual(Array.from({ length: 30 }, (_, index) => index));
    });

    it("'codel' turns away calls that waited longer than twice the target and serves the newest, once a queue persists", async () => {
      const clock = virtualClock({ now: 5_000 });
      const guard = bulkhead({ limit: 1, queue: 1_000, order: 'codel', clock });
      const calls = pipeline(guard);
      const ends: { readonly reason: string | undefined; readonly waitedMs: number; readonly atMs: number }[] = [];
      for (let index = 0; index < 200; index++) {
        const sinceMs = clock.now();
        let startedMs: number | undefined;
        void calls
          .attempt(() => {
            startedMs = clock.now();
            return clock.sleep(10);
          })
          .then((outcome) => {
            ends.push({ reason: reasonOf(outcome), waitedMs: (startedMs ?? clock.now()) - sinceMs, atMs: clock.now() });
          });
        await clock.advance(5);
      }
      await clock.runAll();
      // The target is 5 ms, and it takes 100 ms or more until it is clear that the queue does not drain.
      const turnedAway = ends.filter(({ reason }) => reason === 'waited');
      expect(turnedAway.length).toBeGreaterThan(80);
      expect(Math.min(...turnedAway.map(({ waitedMs }) => waitedMs))).toBeGreaterThan(10);
      const late = ends.filter((one) => one.reason === undefined && one.waitedMs > 10 && one.atMs > 5_300);
      expect(late).toEqual([]);
      expect(guard.waiting).toBe(0);
    });

    it("'codel' does not start a call with less time left than half of the operations take", async () => {
      const clock = virtualClock({ now: 5_000 });
      const guard = bulkhead({ limit: 1, queue: 5, order: 'codel', clock });
      const calls = pipeline(guard);
      const first = calls.attempt(() => clock.sleep(100));
      const hurried = calls.attempt(() => clock.sleep(100), { deadline: 5_150 });
      const patient = calls.attempt(() => clock.sleep(100), { deadline: 5_300 });
      await clock.runAll();
      expect((await first).ok).toBe(true);
      expect(reasonOf(await hurried)).toBe('waited');
      expect((await patient).ok).toBe(true);
    });
  });

  it('turns a call away that has waited for `maxWait`, and leaves no timer', async () => {
    const clock = virtualClock();
    const guard = bulkhead({ limit: 1, queue: 2, maxWait: 50, clock });
    const calls = pipeline(guard);
    const first = calls.attempt(() => clock.sleep(60));
    const impatient = calls.attempt(() => 1);
    await clock.advance(49);
    expect(guard.waiting).toBe(1);
    const second = calls.attempt(() => 2);
    await clock.advance(1);
    expect(reasonOf(await impatient)).toBe('waited');
    await clock.advance(10);
    expect((await first).ok).toBe(true);
    expect(await second).toEqual({ ok: true, value: 2 });
    expect(clock.pendingTimers).toBe(0);
  });

  it('does not start a call whose deadline has passed, although its timer is late', async () => {
    const clock = virtualClock();
    const guard = bulkhead({ limit: 1, queue: 1, clock });
    const permit = permitOf(guard.admit());
    const late = new Call(clock, hangs, undefined, undefined, 1, 20);
    const answer = guard.admit(late);
    await clock.advance(20);
    permit.settle(done);
    expect(reasonOf((await answer) as Refusal)).toBe('waited');
    expect([guard.running, guard.waiting]).toEqual([0, 0]);
  });

  describe('after a timeout', () => {
    it('keeps the slot until the operation has really ended, and counts it as abandoned', async () => {
      const clock = virtualClock();
      const guard = bulkhead({ limit: 1, queue: 1, clock });
      const calls = pipeline(guard, timeout(10));
      const late = calls.attempt(() => clock.sleep(100));
      await clock.advance(10);
      expect((await late).ok).toBe(false);
      expect([guard.running, guard.abandoned]).toEqual([1, 1]);
      const next = calls.attempt(() => 'next');
      await clock.advance(89);
      expect([guard.running, guard.waiting, guard.abandoned]).toEqual([1, 1, 1]);
      await clock.advance(1);
      expect(await next).toEqual({ ok: true, value: 'next' });
      expect([guard.running, guard.waiting, guard.abandoned]).toEqual([0, 0, 0]);
    });

    it("with releaseOn: 'timeout' frees the slot at once, and still counts what is running", async () => {
      const clock = virtualClock();
      const guard = bulkhead({ limit: 1, releaseOn: 'timeout', clock });
      const calls = pipeline(guard, timeout(10));
      const late = calls.attempt(() => clock.sleep(100));
      await clock.advance(10);
      expect((await late).ok).toBe(false);
      expect([guard.running, guard.abandoned]).toEqual([0, 1]);
      expect(await calls.attempt(() => 'next')).toEqual({ ok: true, value: 'next' });
      await clock.advance(90);
      expect([guard.running, guard.abandoned]).toEqual([0, 0]);
    });

    it('keeps the slot for work that the attempts of an inner retry left running', async () => {
      const clock = virtualClock();
      const guard = bulkhead({ limit: 1, clock });
      const calls = pipeline(guard, retry({ attempts: 2, backoff: constant(1) }), timeout(10));
      const outcome = calls.attempt<unknown>(({ attempt }) => (attempt === 1 ? clock.sleep(100) : 'second'));
      await clock.advance(11);
      expect(await outcome).toEqual({ ok: true, value: 'second' });
      expect([guard.running, guard.abandoned]).toEqual([1, 1]);
      await clock.runAll();
      expect([guard.running, guard.abandoned]).toEqual([0, 0]);
    });

    it("keeps the slot after the caller's abort, too", async () => {
      const clock = virtualClock();
      const guard = bulkhead({ limit: 1, clock });
      const controller = new AbortController();
      const aborted = pipeline(guard).attempt(() => clock.sleep(100), { signal: controller.signal });
      controller.abort('gone');
      expect(await aborted).toEqual({ ok: false, error: 'gone' });
      expect([guard.running, guard.abandoned]).toEqual([1, 1]);
      await clock.runAll();
      expect([guard.running, guard.abandoned]).toEqual([0, 0]);
    });

    it('frees the slot even through a guard that does not pass `ended` on', async () => {
      const clock = virtualClock();
      const inner = bulkhead({ limit: 1, clock });
      const wrapper = withoutEnded(inner);
      const calls = pipeline(wrapper, timeout(10));
      expect(await calls.attempt(() => 'in time')).toEqual({ ok: true, value: 'in time' });
      expect(inner.running).toBe(0);
      const late = calls.attempt(() => clock.sleep(100));
      await clock.advance(10);
      expect((await late).ok).toBe(false);
      expect([inner.running, inner.abandoned]).toEqual([1, 1]);
      await clock.advance(90);
      expect([inner.running, inner.abandoned]).toEqual([0, 0]);
      await pipeline(wrapper, { name: 'no', admit: () => refuse('no') }).attempt(() => 1);
      await clock.flush();
      expect([inner.running, inner.abandoned]).toEqual([0, 0]);
    });

    it('frees the slot only at the real end, even if an inner layer gave the call up', async () => {
      const clock = virtualClock();
      const inner = bulkhead({ limit: 1, clock });
      const wrapper = withoutEnded(inner);
      const late = pipeline(
        { name: 'strategy', handle: (call, next) => next(call) },
        deadline({ after: 10, clock }),
        wrapper,
      ).attempt(() => clock.sleep(100));
      await clock.advance(10);
      expect((await late).ok).toBe(false);
      expect([inner.running, inner.abandoned]).toEqual([1, 1]);
      await clock.advance(90);
      expect([inner.running, inner.abandoned]).toEqual([0, 0]);
    });
  });

  describe('with direct calls of admit', () => {
    it('frees the slot on settle or release, once however often they are called', () => {
      const guard = bulkhead({ limit: 2 });
      const first = permitOf(guard.admit());
      const second = permitOf(guard.admit());
      first.settle(gaveUp);
      first.settle(done);
      first.release();
      first.ended?.();
      expect(guard.running).toBe(1);
      second.release();
      second.settle(done);
      expect(guard.running).toBe(0);
    });

    it('queues without a call', async () => {
      const guard = bulkhead({ limit: 1, queue: 1 });
      const first = permitOf(guard.admit());
      const answer = guard.admit();
      expect(answer).toBeInstanceOf(Promise);
      first.release();
      const second = await answer;
      expect(isRefusal(second)).toBe(false);
      expect(guard.running).toBe(1);
      (second as Permit).settle(done);
      expect(guard.running).toBe(0);
    });

    it('frees the slot on settle with a call, too, as soon as its work has ended', async () => {
      const clock = virtualClock();
      const guard = bulkhead({ limit: 1, clock });
      await pipeline(timeout({ after: '1s', clock })).execute((call) => {
        const permit = permitOf(guard.admit(call));
        permit.settle(done);
        expect(guard.running).toBe(0);
        permitOf(guard.admit(call)).settle({ ok: false, error: new Error('failed') });
        expect(guard.running).toBe(0);
        permitOf(guard.admit(call)).release();
      });
      expect([guard.running, guard.abandoned]).toEqual([0, 0]);
    });

    it('refuses a call that was aborted before it would have had to wait', async () => {
      const guard = bulkhead({ limit: 1, queue: 1 });
      permitOf(guard.admit());
      const call = new Call(virtualClock(), hangs, undefined);
      call.abort('gone');
      expect(await guard.admit(call)).toEqual({ error: 'gone' });
      expect(guard.waiting).toBe(0);
    });
  });

  it('tolerates a hook that throws, aborts the caller or asks for a slot itself', async () => {
    const clock = virtualClock();
    const controller = new AbortController();
    const asked: unknown[] = [];
    const guard = bulkhead({
      limit: 1,
      queue: 2,
      order: 'newest-first',
      maxWait: 50,
      clock,
      on() {
        controller.abort('gone');
        if (asked.length < 3) asked.push(guard.admit());
        throw new Error('hook');
      },
    });
    const calls = pipeline(guard);
    const first = calls.attempt(() => clock.sleep(20));
    const others = [1, 2, 3, 4].map(() => calls.attempt(() => 1, { signal: controller.signal }));
    await clock.advance(100);
    await Promise.all([first, ...others]);
    const permits = (await Promise.all(asked)).filter((answer) => !isRefusal(answer as Permit)) as Permit[];
    expect(guard.running).toBe(permits.length);
    for (const permit of permits) permit.release();
    expect([guard.running, guard.waiting, clock.pendingTimers]).toEqual([0, 0, 0]);
  });

  it('admits no copy of a call if four fifths of its slots are taken, not even into the queue', async () => {
    const clock = virtualClock();
    const guard = bulkhead({ limit: 5, queue: 5 });
    const copy = () => {
      const call = new Call(clock, () => 1, undefined);
      call.isCopy = true;
      return call;
    };
    for (let taken = 0; taken < 3; taken++) permitOf(guard.admit());
    permitOf(guard.admit(copy()));
    expect(reasonOf(guard.admit(copy()) as Refusal)).toBe('full');
    expect([guard.running, guard.waiting]).toEqual([4, 0]);
    permitOf(guard.admit(new Call(clock, () => 1, undefined)));
  });

  it('captures a stack for a refusal only if asked', async () => {
    for (const stack of [undefined, false, true]) {
      const guard = bulkhead({ limit: 1, ...(stack !== undefined && { stack }) });
      permitOf(guard.admit());
      const { error } = (await guard.admit()) as Refusal;
      expect(String((error as Error).stack).includes('bulkhead.test')).toBe(stack === true);
    }
  });

  it.each([
    [{}, 'limit'],
    [{ limit: 0 }, 'limit'],
    [{ limit: 1.5 }, 'limit'],
    [{ limit: 1, queue: -1 }, 'queue'],
    [{ limit: 1, order: 'fifo' }, 'order'],
    [{ limit: 1, maxWait: '5 sec' }, 'maxWait'],
    [{ limit: 1, maxWait: '5s' }, 'maxWait'],
    [{ limit: 1, releaseOn: 'end' }, 'releaseOn'],
    [{ limit: 1, maxQueue: 5 }, 'maxQueue'],
  ])('refuses the options %j', (options, option) => {
    expect(() => bulkhead(options as never)).toThrow(expect.objectContaining({ name: 'OptionsError', option }));
    expect(() => bulkhead(options as never)).toThrow(OptionsError);
  });

  it('describes what it does', () => {
    expect(String(pipeline(bulkhead({ limit: 5, queue: 10 })).explain())).toContain(
      'lets 5 operations run at once and 10 calls wait, oldest-first',
    );
    expect(String(pipeline(bulkhead({ limit: 5 })).explain())).not.toContain('wait');
  });

  it('behaves like a list of the same length, whatever is admitted, settled, given up, aborted and ended late', async () => {
    const step = fc.oneof(
      fc.record({ act: fc.constant('admit' as const), withCall: fc.boolean() }),
      fc.record({
        act: fc.constantFrom('settle', 'release', 'give up', 'work ends', 'abort') as fc.Arbitrary<
          'settle' | 'release' | 'give up' | 'work ends' | 'abort'
        >,
        pick: fc.nat({ max: 50 }),
        tellsEnd: fc.boolean(),
      }),
      fc.record({ act: fc.constant('advance' as const), ms: fc.integer({ min: 1, max: 15 }) }),
    );
    const shape = fc.record({
      limit: fc.integer({ min: 1, max: 3 }),
      queue: fc.integer({ min: 0, max: 4 }),
      order: fc.constantFrom('oldest-first' as const, 'newest-first' as const),
      maxWait: fc.option(fc.integer({ min: 5, max: 30 }), { nil: undefined }),
      releaseOn: fc.constantFrom('settle' as const, 'timeout' as const),
    });
    await fc.assert(
      fc.asyncProperty(shape, fc.array(step, { maxLength: 60 }), async (options, steps) => {
        const clock = virtualClock();
        const { maxWait, ...others } = options;
        const guard = bulkhead({ ...others, ...(maxWait !== undefined && { maxWait }), clock });
        // What a call should become, and what it became.
        type Entry = {
          state: string;
          seen: string;
          call: Call | undefined;
          permit: Permit | undefined;
          sinceMs: number;
        };
        const entries: Entry[] = [];
        let queue: Entry[] = [];
        let taken = 0;
        const serve = () => {
          taken--;
          while (taken < options.limit) {
            const next = options.order === 'oldest-first' ? queue.shift() : queue.pop();
            if (next === undefined) return;
            next.state = 'running';
            taken++;
          }
        };
        const leave = (entry: Entry, state: string) => {
          queue = queue.filter((other) => other !== entry);
          entry.state = state;
        };
        const look = (entry: Entry, answer: Permit | Refusal) => {
          if (isRefusal(answer)) entry.seen = reasonOf(answer) ?? String(answer.error);
          else {
            entry.seen = 'running';
            entry.permit = answer;
          }
        };
        const pickOf = (state: string, pick: number) => {
          const fitting = entries.filter((entry) => entry.state === state);
          return fitting[pick % Math.max(1, fitting.length)];
        };
        for (const current of steps) {
          if (current.act === 'admit') {
            const call = current.withCall ? new Call(clock, hangs, undefined) : undefined;
            const entry: Entry = { state: 'waiting', seen: 'waiting', call, permit: undefined, sinceMs: clock.now() };
            entries.push(entry);
            if (taken < options.limit) {
              taken++;
              entry.state = 'running';
            } else if (queue.length < options.queue) queue.push(entry);
            else if (queue.length > 0 && options.order === 'newest-first') {
              leave(queue[0] as Entry, 'overtaken');
              queue.push(entry);
            } else entry.state = 'full';
            const answer = guard.admit(call);
            if (answer instanceof Promise) void answer.then((later) => look(entry, later));
            else look(entry, answer);
          } else if (current.act === 'advance') {
            await clock.advance(current.ms);
            for (const entry of [...queue]) {
              if (maxWait !== undefined && clock.now() >= entry.sinceMs + maxWait) leave(entry, 'waited');
            }
          } else if (current.act === 'abort') {
            const entry = pickOf('waiting', current.pick);
            if (entry?.call === undefined) continue;
            leave(entry, 'gone');
            entry.call.abort('gone');
          } else if (current.act === 'work ends') {
            const entry = pickOf('given up', current.pick);
            if (entry === undefined) continue;
            entry.state = 'over';
            if (options.releaseOn === 'settle') serve();
            entry.call?.endAbandonedWork();
            if (current.tellsEnd) entry.permit?.ended?.();
          } else {
            const entry = pickOf('running', current.pick);
            const { permit, call } = entry ?? {};
            if (entry === undefined || permit === undefined) continue;
            const isGivenUp = current.act === 'give up' && call !== undefined;
            entry.state = isGivenUp ? 'given up' : 'over';
            if (!isGivenUp || options.releaseOn === 'timeout') serve();
            if (current.act === 'release') permit.release();
            else permit.settle(current.act === 'give up' ? gaveUp : done);
            if (isGivenUp) call.beginAbandonedWork();
            else if (current.tellsEnd) permit.ended?.();
            // Answering a second time changes nothing.
            permit.settle(done);
            permit.release();
          }
          await clock.flush();
          // An entry that is over or abandoned was once seen running.
          expect(entries.map(({ seen }) => seen)).toEqual(
            entries.map(({ state }) => (state === 'over' || state === 'given up' ? 'running' : state)),
          );
          expect([guard.running, guard.waiting]).toEqual([taken, queue.length]);
          expect(guard.abandoned).toBe(entries.filter(({ state }) => state === 'given up').length);
          expect(guard.running).toBeLessThanOrEqual(options.limit);
          expect(clock.pendingTimers).toBe(maxWait === undefined ? 0 : queue.length);
          for (const { call, state } of entries)
            expect(hasDependents(call)).toBe(call !== undefined && state === 'waiting');
        }
      }),
      { seed: 15, numRuns: 400 },
    );
  });

  it('never runs more than `limit`, starts in order and forgets nothing, in pipelines with timeouts, aborts and late ends', async () => {
    const arrival = fc.record({
      afterMs: fc.integer({ min: 0, max: 20 }),
      takesMs: fc.integer({ min: 0, max: 60 }),
      fails: fc.boolean(),
      abortAfterMs: fc.option(fc.integer({ min: 1, max: 60 })),
      deadlineMs: fc.option(fc.integer({ min: 1, max: 80 })),
    });
    const shape = fc.record({
      limit: fc.integer({ min: 1, max: 3 }),
      queue: fc.integer({ min: 0, max: 5 }),
      order: fc.constantFrom('oldest-first' as const, 'newest-first' as const, 'codel' as const),
      attempts: fc.integer({ min: 1, max: 2 }),
      timeoutMs: fc.integer({ min: 5, max: 40 }),
    });
    await fc.assert(
      fc.asyncProperty(shape, fc.array(arrival, { maxLength: 25 }), async (options, arrivals) => {
        const clock = virtualClock();
        const { limit, queue, order, attempts, timeoutMs } = options;
        const guard = bulkhead({ limit, queue, order, maxWait: 50, clock });
        const calls = pipeline(retry({ attempts, backoff: constant(3) }), guard, timeout(timeoutMs));
        let atWork = 0;
        let mostAtWork = 0;
        const starts: number[] = [];
        const outcomes: Promise<Outcome>[] = [];
        for (const [index, { afterMs, takesMs, fails, abortAfterMs, deadlineMs }] of arrivals.entries()) {
          await clock.advance(afterMs);
          const controller = new AbortController();
          if (abortAfterMs !== null) void clock.sleep(abortAfterMs).then(() => controller.abort('gone'));
          outcomes.push(
            calls.attempt(
              async () => {
                starts.push(index);
                mostAtWork = Math.max(mostAtWork, ++atWork);
                await clock.sleep(takesMs);
                atWork--;
                if (fails) throw new Error('failed');
              },
              {
                signal: controller.signal,
                deadline: deadlineMs === null ? undefined : clock.now() + deadlineMs,
              },
            ),
          );
        }
        await clock.runAll();
        expect(await Promise.all(outcomes)).toHaveLength(arrivals.length);
        expect(mostAtWork).toBeLessThanOrEqual(limit);
        if (attempts === 1 && order === 'oldest-first') expect(starts).toEqual(starts.toSorted((a, b) => a - b));
        expect([guard.running, guard.waiting, guard.abandoned, atWork, clock.pendingTimers]).toEqual([0, 0, 0, 0, 0]);
      }),
      { seed: 16, numRuns: 300 },
    );
  });
});
