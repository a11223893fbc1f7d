/** What surrounds every call and attempt while somebody observes. */
import { afterEach, describe, expect, it } from 'vitest';
import { type CallObserver, callObserver, observeCalls } from '../../src/core/ambient.js';
import { circuitBreaker, constant, keyed, pipeline, retry, singleFlight, timeout } from '../../src/index.js';
import { virtualClock } from '../../src/testing/index.js';

const stops: (() => void)[] = [];
afterEach(() => {
  for (const stop of stops.splice(0)) stop();
});

function observe(name: string, seen: string[]): void {
  const around =
    (what: string): CallObserver['attempt'] =>
    async (call, run) => {
      seen.push(`${name} ${what} ${call.attempt} begins`);
      try {
        return await run();
      } finally {
        seen.push(`${name} ${what} ${call.attempt} ends`);
      }
    };
  const call = around('call');
  stops.push(
    observeCalls({
      call: (one, _policies, run) => call(one, run),
      attempt: around('attempt'),
      adopt: (work, by) => seen.push(`${name} adopts ${work.key} of ${by.key}`),
    }),
  );
}

const failing = (times: number) => () => {
  if (times-- > 0) throw new Error('reset');
  return 'served';
};

describe('an observer', () => {
  it('wraps the call and each attempt', async () => {
    const seen: string[] = [];
    observe('a', seen);
    const calls = pipeline(retry({ attempts: 3, backoff: constant(0) }));
    expect(await calls.execute(failing(1))).toBe('served');
    expect(seen).toEqual([
      'a call 1 begins',
      'a attempt 1 begins',
      'a attempt 1 ends',
      'a attempt 2 begins',
      'a attempt 2 ends',
      'a call 1 ends',
    ]);
  });

  it('is told which call a shared execution belongs to, with others who observe', async () => {
    const seen: string[] = [];
    observe('a', seen);
    observe('b', seen);
    const calls = pipeline(singleFlight({ key: () => 'all' }));
    expect(await Promise.all([1, 2].map((key) => calls.execute(() => 'served', { key: `${key}` })))).toHaveLength(2);
    expect(seen.filter((what) => what.includes('adopts'))).toEqual(['a adopts 1 of 1', 'b adopts 1 of 1']);
  });

  it('sees no attempt where a policy refuses', async () => {
    const seen: string[] = [];
    const breaker = circuitBreaker();
    breaker.isolate();
    observe('a', seen);
    const outcome = await pipeline(breaker).attempt(() => 'never');
    expect(outcome).toMatchObject({ ok: false, error: { code: 'ERR_CIRCUIT_OPEN' } });
    expect(seen).toEqual(['a call 1 begins', 'a call 1 ends']);
  });

  it('changes no result of attempt(), execute() or wrap(), in a pipeline with and without layers', async () => {
    observe('a', []);
    observe('b', []);
    for (const calls of [
      pipeline(),
      pipeline(timeout('1s')),
      pipeline(keyed(() => timeout('1s'), { key: () => 'k' })),
    ]) {
      const error = new Error('down');
      const down = () => Promise.reject(error);
      expect(await calls.attempt(() => 1)).toEqual({ ok: true, value: 1 });
      expect(await calls.attempt(down)).toEqual({ ok: false, error });
      expect(await calls.execute(() => 2)).toBe(2);
      await expect(calls.execute(down)).rejects.toBe(error);
      expect(await calls.wrap((value: number) => value + 1)(2)).toBe(3);
      expect((await calls.attempt(undefined as never)).ok).toBe(false);
    }
  });

  it('is one of several, the first outermost, until it is removed', async () => {
    const seen: string[] = [];
    observe('a', seen);
    observe('b', seen);
    await pipeline().execute(() => 1);
    const order = ['a call', 'b call', 'a attempt', 'b attempt'];
    expect(seen.filter((line) => line.endsWith('begins'))).toEqual(order.map((line) => `${line} 1 begins`));
    stops.shift()?.();
    seen.length = 0;
    await pipeline().execute(() => 1);
    expect(seen).toEqual(['b call 1 begins', 'b attempt 1 begins', 'b attempt 1 ends', 'b call 1 ends']);
    stops.shift()?.();
    seen.length = 0;
    await pipeline().execute(() => 1);
    expect([seen, callObserver()]).toEqual([[], undefined]);
  });

  it('sees an aborted call end with the reason, on time', async () => {
    const clock = virtualClock();
    const seen: string[] = [];
    observe('a', seen);
    const outcome = pipeline(timeout({ after: '1s', clock })).attempt(() => new Promise(() => {}));
    await clock.advance('1s');
    expect(await outcome).toMatchObject({ error: { code: 'ERR_TIMEOUT' } });
    expect(seen.at(-1)).toBe('a call 1 ends');
  });
});
