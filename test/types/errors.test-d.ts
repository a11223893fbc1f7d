import type { FastifyError } from 'fastify';
import { describe, expectTypeOf, it } from 'vitest';
import type * as holdfast from '../../src/index.js';
import {
  type CircuitOpenError,
  type HoldfastErrorCode,
  isHoldfastError,
  isRejected,
  RejectedError,
  TimeoutError,
} from '../../src/index.js';

/** The codes of all classes that have a code of their own. */
type CodeOf<T> = T extends abstract new (...given: never[]) => { readonly code: infer Code } ? Code : never;
type Classes = Omit<typeof holdfast, 'HoldfastError' | 'RejectedError' | 'AbandonedError'>;
type CodeOfClasses = { [Name in keyof Classes]: CodeOf<Classes[Name]> }[keyof Classes];
type CodeWithoutClass = 'ERR_ATTEMPTS_DISCARDED' | 'ERR_CONTEXT_UNAVAILABLE' | 'ERR_CRYPTO_UNAVAILABLE';

describe('the code of an error', () => {
  it('is a literal in its class, and the union has them all', () => {
    expectTypeOf<TimeoutError['code']>().toEqualTypeOf<'ERR_TIMEOUT'>();
    expectTypeOf<CodeOfClasses | CodeWithoutClass>().toEqualTypeOf<HoldfastErrorCode>();
  });

  it('tells one class from another', () => {
    const afterOf = (error: TimeoutError | CircuitOpenError) => {
      if (error.code === 'ERR_TIMEOUT') return error.afterMs;
      expectTypeOf(error).toEqualTypeOf<CircuitOpenError>();
      // @ts-expect-error - nothing is left that has this code.
      return error.code === 'ERR_TIMEOUT' ? 1 : error.state;
    };
    expectTypeOf(afterOf).returns.toEqualTypeOf<number | CircuitOpenError['state'] | undefined>();
  });

  it('may be one of a class of your own', () => {
    class QuotaError extends RejectedError {
      constructor() {
        super('ERR_QUOTA', 'no more today', { policy: 'quota' });
      }
    }
    class OwnTimeoutError extends TimeoutError {}
    expectTypeOf<OwnTimeoutError['code']>().toEqualTypeOf<'ERR_TIMEOUT'>();
    const error: unknown = new QuotaError();
    if (isRejected(error)) expectTypeOf(error.code === 'ERR_QUOTA').toEqualTypeOf<boolean>();
  });
});

describe('isHoldfastError', () => {
  it('leaves what another package threw, where the answer is no', () => {
    const see = (error: FastifyError, other: NodeJS.ErrnoException) => {
      if (!isHoldfastError(error)) expectTypeOf(error).toEqualTypeOf<FastifyError>();
      if (!isHoldfastError(other)) expectTypeOf(other).toEqualTypeOf<NodeJS.ErrnoException>();
    };
    expectTypeOf(see).toBeFunction();
  });
});
