import { describe, expectTypeOf, it } from 'vitest';
import {
  type Duration,
  deadline,
  fallback,
  type Outcome,
  type Policy,
  pipeline,
  retry,
  type Strategy,
  timeout,
} from '../../src/index.js';

describe('pipeline', () => {
  it('answers what the operation answers when no policy adds anything', () => {
    const plain = pipeline(deadline('5s'), retry(), timeout('1s'));
    expectTypeOf(plain.execute(() => 1)).toEqualTypeOf<Promise<number>>();
    expectTypeOf(plain.execute(async () => 'a')).toEqualTypeOf<Promise<string>>();
    expectTypeOf(plain.execute(() => {})).toEqualTypeOf<Promise<void>>();
    expectTypeOf(plain.attempt(() => 1)).toEqualTypeOf<Promise<Outcome<number>>>();
    expectTypeOf(pipeline().execute(() => 1)).toEqualTypeOf<Promise<number>>();
  });

  it('adds what any number of policies add', () => {
    const one = pipeline(
      fallback(() => 'instead' as const),
      retry(),
    );
    expectTypeOf(one.execute(() => 1)).toEqualTypeOf<Promise<number | 'instead'>>();
    const two = pipeline(
      fallback(() => null),
      timeout(1),
      fallback(async () => true),
      retry(),
      timeout(1),
      timeout(1),
      timeout(1),
      timeout(1),
    );
    expectTypeOf(two.execute(() => 1)).toEqualTypeOf<Promise<number | null | boolean>>();
    expectTypeOf(two.attempt(() => 1)).toEqualTypeOf<Promise<Outcome<number | null | boolean>>>();
  });

  it("adds what an inner pipeline adds, and what a strategy of one's own adds", () => {
    const inner = pipeline(fallback(() => null));
    const mine: Strategy<Date> = { name: 'mine', handle: (call, next) => next(call) };
    expectTypeOf(pipeline(timeout(1), inner, mine).execute(() => 1)).toEqualTypeOf<Promise<number | null | Date>>();
  });

  it('keeps parameters and this of a wrapped function', () => {
    const wrapped = pipeline(fallback(() => null)).wrap(async (id: string, count?: number) => ({ id, count }));
    expectTypeOf(wrapped).parameters.toEqualTypeOf<[id: string, count?: number | undefined]>();
    expectTypeOf(wrapped('a')).toEqualTypeOf<Promise<{ id: string; count: number | undefined } | null>>();
    const withThis = pipeline().wrap(function (this: { readonly factor: number }, by: number) {
      return this.factor * by;
    });
    expectTypeOf(withThis).thisParameter.toEqualTypeOf<{ readonly factor: number }>();
  });

  it('accepts an unsafe operation only with an idempotency key', () => {
    const plain = pipeline();
    plain.execute(() => 1, { unsafe: true, idempotencyKey: 'k' });
    plain.execute(() => 1, { idempotencyKey: 'k' });
    // @ts-expect-error the key is missing
    plain.execute(() => 1, { unsafe: true });
    // @ts-expect-error no such option
    plain.execute(() => 1, { retries: 3 });
  });

  it('takes policies only', () => {
    // @ts-expect-error a factory is no policy
    pipeline(timeout);
    // @ts-expect-error a number is no policy
    pipeline(5);
    expectTypeOf(timeout(1)).toExtend<Policy>();
  });
});

describe('Duration', () => {
  it('is a number or a literal with a unit', () => {
    expectTypeOf<'250ms'>().toExtend<Duration>();
    expectTypeOf<'1.5s'>().toExtend<Duration>();
    expectTypeOf<'7d'>().toExtend<Duration>();
    expectTypeOf<5>().toExtend<Duration>();
    expectTypeOf<'5 sec'>().not.toExtend<Duration>();
    expectTypeOf<'5'>().not.toExtend<Duration>();
  });
});
