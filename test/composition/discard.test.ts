/**
 * Where the values go that operations returned: to the caller, into the error that the caller gets, or to `onDiscard`. So nothing stays open, and nothing is
 * closed twice.
 */
import { describe, expect, it } from 'vitest';
import type { AnyPolicy } from '../../src/core/pipeline.js';
import { bulkhead, circuitBreaker, constant, hedge, pipeline, retry, timeout } from '../../src/index.js';
import { seededRandom, virtualClock } from '../../src/testing/index.js';

interface Parts {
  readonly again: AnyPolicy;
  readonly copies: AnyPolicy;
  readonly guards: readonly AnyPolicy[];
}

const makers: Record<string, (parts: Parts) => AnyPolicy[]> = {
  retry: ({ again, guards }) => [again, ...guards],
  'retry between guards': ({ again, guards }) => [circuitBreaker(), again, ...guards],
  'retry around a pipeline': ({ again, guards }) => [again, pipeline(...guards)],
  hedge: ({ copies, guards }) => [copies, ...guards],
  'retry around hedge': ({ again, copies, guards }) => [again, copies, ...guards],
  'hedge around retry': ({ again, copies, guards }) => [copies, again, ...guards],
};

describe.each(Object.keys(makers))('%s', (which) => {
  it('lets each value come to exactly one place, whichever handles throws', async () => {
    for (let seed = 1; seed <= 150; seed++) {
      const random = seededRandom(seed);
      const clock = virtualClock();
      const made: object[] = [];
      const discarded: unknown[] = [];
      const onDiscard = (value: unknown) => discarded.push(value);
      const judging = (brokenShare: number) => () => {
        const draw = random();
        if (draw < brokenShare) throw new Error('broken');
        return draw < brokenShare + 0.4;
      };
      const brokenShare = random.between(0, 0.6);
      const breaker = () => circuitBreaker({ handles: judging(brokenShare), minimumCalls: 1_000, clock });
      const parts: Parts = {
        again: retry({ attempts: 3, backoff: constant(2), handles: judging(random.pick([0, 0.2])), onDiscard, clock }),
        copies: hedge({ delay: 3, max: 2, handles: judging(random.pick([0, 0.2])), onDiscard, clock }),
        guards: random.pick([[breaker()], [bulkhead({ limit: 10, clock }), breaker(), breaker()]]),
      };
      const running = pipeline(timeout({ after: 1_000, clock }), ...makers[which]!(parts)).attempt(
        async ({ signal }) => {
          await clock.sleep(random.between(1, 10));
          if (random() < 0.3) throw new Error('down');
          signal.throwIfAborted();
          const value = { number: made.length + 1 };
          made.push(value);
          return value;
        },
      );
      await clock.runAll();
      const outcome = await running;
      const kept = outcome.ok ? [outcome.value] : [(outcome.error as { value?: unknown }).value];
      const places = [...discarded, ...kept.filter((value) => value !== undefined)];
      expect(new Set(places), `seed ${seed}`).toEqual(new Set(made));
      expect(places.length, `seed ${seed}`).toBe(made.length);
    }
  });
});
