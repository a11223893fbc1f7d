import { inspect } from 'node:util';
import { describe, expect, it } from 'vitest';
import {
  BulkheadFullError,
  CircuitOpenError,
  DeadlineExceededError,
  DeadlineTooShortError,
  HandlesError,
  HoldfastError,
  isAbandoned,
  isHoldfastError,
  isRejected,
  OptionsError,
  RateLimitedError,
  RejectedError,
  ShedError,
  TimeoutError,
} from '../../src/index.js';

const timeoutError = new TimeoutError({ policy: 'payments', afterMs: 1_000 });
const tooShort = new DeadlineTooShortError({ policy: 'deadline', remainingMs: -12.34 });

describe('errors', () => {
  it.each<[HoldfastError, string, string, string]>([
    [
      timeoutError,
      'TimeoutError',
      'ERR_TIMEOUT',
      '"payments" gave up after 1000 ms; the operation may still be running',
    ],
    [
      new TimeoutError({ policy: 'mine' }),
      'TimeoutError',
      'ERR_TIMEOUT',
      '"mine" gave up at its deadline; the operation may still be running',
    ],
    [
      new DeadlineExceededError({ policy: 'deadline', afterMs: 0.25 }),
      'DeadlineExceededError',
      'ERR_DEADLINE_EXCEEDED',
      '"deadline" ended the call after 0.3 ms; its outcome is unknown',
    ],
    [
      tooShort,
      'DeadlineTooShortError',
      'ERR_DEADLINE_TOO_SHORT',
      '"deadline" did not start the operation: its deadline passed 12.3 ms ago',
    ],
    [
      new CircuitOpenError({ policy: 'pay', state: 'open', retryAfterMs: 3200, detail: '18 of 20 calls failed' }),
      'CircuitOpenError',
      'ERR_CIRCUIT_OPEN',
      '"pay" is open for another 3200 ms (18 of 20 calls failed)',
    ],
    [
      new BulkheadFullError({ policy: 'bulkhead', limit: 5, queue: 2 }),
      'BulkheadFullError',
      'ERR_BULKHEAD_FULL',
      '"bulkhead" is full: 5 operations run and 2 may wait',
    ],
    [
      new RateLimitedError({ policy: 'quota', retryAfterMs: 99.96 }),
      'RateLimitedError',
      'ERR_RATE_LIMITED',
      '"quota" has no room for the call, the next one may start in 100 ms',
    ],
    [
      new ShedError({ policy: 'loadShed', reason: 'event loop 130 ms late' }),
      'ShedError',
      'ERR_SHED',
      '"loadShed" turned the call away: event loop 130 ms late',
    ],
    [
      new HandlesError({ policy: 'retry', option: 'handles', thrown: new Error('boom') }),
      'HandlesError',
      'ERR_HANDLES_FAILED',
      '"retry": its "handles" function failed: boom',
    ],
  ])('%s tells name, code and numbers', (error, name, code, message) => {
    expect(error).toMatchObject({ name, code, message });
    expect(String(error)).toBe(`${name} [${code}]: ${message}`);
    expect(error).toBeInstanceOf(HoldfastError);
    expect(Object.prototype.toString.call(error)).toBe('[object Error]');
  });

  it('lets a class derived from one of them give itself a name as one does', () => {
    class TooManyError extends RejectedError {
      constructor() {
        super('ERR_TOO_MANY', 'no', { policy: 'mine' });
        this.name = 'TooManyError';
      }
    }
    const error = new TooManyError();
    expect([String(error), isRejected(error)]).toEqual(['TooManyError [ERR_TOO_MANY]: no', true]);
    expect(new RejectedError('ERR_MINE', 'no', { policy: 'mine' }).name).toBe('RejectedError');
  });

  it('shows code and numbers where Node prints it', () => {
    expect(inspect(timeoutError)).toContain("code: 'ERR_TIMEOUT'");
    expect(inspect(timeoutError)).toContain('afterMs: 1000');
  });

  it('captures no stack unless asked, and leaves the limit as it was', () => {
    const limit = Error.stackTraceLimit;
    expect(timeoutError.stack).not.toContain('\n    at ');
    expect(new TimeoutError({ policy: 'x', stack: true }).stack).toContain('errors.test.ts');
    expect(Error.stackTraceLimit).toBe(limit);
    expect(new Error('plain').stack).toContain('\n    at ');
  });

  it('keeps its cause, and has none where none was given', () => {
    const cause = new Error('why');
    expect(new RejectedError('ERR_MINE', 'no', { policy: 'mine', cause, retryAfterMs: 5 })).toMatchObject({
      cause,
      retryAfterMs: 5,
      policy: 'mine',
    });
    expect('cause' in timeoutError).toBe(false);
  });

  it('tells the families apart', () => {
    expect([isAbandoned(timeoutError), isRejected(timeoutError), isHoldfastError(timeoutError)]).toEqual([
      true,
      false,
      true,
    ]);
    expect([isAbandoned(tooShort), isRejected(tooShort), isHoldfastError(tooShort)]).toEqual([false, true, true]);
    const options = new OptionsError('m', { policy: 'p', value: 1, allowed: 'a' });
    expect([isAbandoned(options), isRejected(options), isHoldfastError(options)]).toEqual([false, false, true]);
  });

  it.each([[new Error('x')], [undefined], [null], ['ERR_TIMEOUT'], [{ code: 'ERR_TIMEOUT' }]])(
    'takes %s for none of ours',
    (foreign) => {
      expect([isAbandoned(foreign), isRejected(foreign), isHoldfastError(foreign)]).toEqual([false, false, false]);
    },
  );

  it('recognises an error of another copy of the package by its brand', () => {
    class Elsewhere extends Error {}
    Object.defineProperty(Elsewhere.prototype, Symbol.for('holdfast.error'), { value: 'rejected' });
    expect(isRejected(new Elsewhere())).toBe(true);
  });
});
