import { inspect } from 'node:util';
import { describe, expect, it } from 'vitest';
import {
  AbandonedError,
  BulkheadFullError,
  CircuitOpenError,
  DeadlineExceededError,
  DeadlineTooShortError,
  HandlesError,
  HoldfastError,
  InDoubtError,
  InFlightError,
  isAbandoned,
  isHoldfastError,
  isRejected,
  KeyMissingError,
  KeyReusedError,
  LoadBackoffError,
  LockLostError,
  LockUnavailableError,
  OptionsError,
  RateLimitedError,
  RejectedError,
  ShedError,
  StaleFenceError,
  StoreError,
  TimeoutError,
} from '../../src/index.js';

const timeoutError = new TimeoutError({ policy: 'payments', afterMs: 1_000 });
const tooShort = new DeadlineTooShortError({ policy: 'deadline', remainingMs: -12.34 });

describe('errors', () => {
  it.each<[HoldfastError, string, string, string, object?]>([
    [new HoldfastError('ERR_MINE', 'went wrong'), 'HoldfastError', 'ERR_MINE', 'went wrong'],
    [
      new AbandonedError('ERR_MINE', 'gave up', { policy: 'mine' }),
      'AbandonedError',
      'ERR_MINE',
      'gave up',
      { policy: 'mine' },
    ],
    [
      timeoutError,
      'TimeoutError',
      'ERR_TIMEOUT',
      '"payments" gave up after 1000 ms; the operation may still be running',
      { policy: 'payments', afterMs: 1_000 },
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
      { policy: 'deadline', afterMs: 0.25 },
    ],
    [
      tooShort,
      'DeadlineTooShortError',
      'ERR_DEADLINE_TOO_SHORT',
      '"deadline" did not start the operation: its deadline passed 12.3 ms ago',
      { policy: 'deadline', remainingMs: -12.34, retryAfterMs: undefined },
    ],
    [
      new CircuitOpenError({ policy: 'pay', state: 'open', retryAfterMs: 3200, detail: '18 of 20 calls failed' }),
      'CircuitOpenError',
      'ERR_CIRCUIT_OPEN',
      '"pay" is open for another 3200 ms (18 of 20 calls failed)',
      { state: 'open', retryAfterMs: 3200 },
    ],
    [
      new CircuitOpenError({ policy: 'pay', state: 'isolated' }),
      'CircuitOpenError',
      'ERR_CIRCUIT_OPEN',
      '"pay" is isolated',
      { state: 'isolated', retryAfterMs: undefined },
    ],
    [
      new BulkheadFullError({ policy: 'bulkhead', limit: 5, queue: 2 }),
      'BulkheadFullError',
      'ERR_BULKHEAD_FULL',
      '"bulkhead" is full: 5 operations run and 2 may wait',
      { limit: 5, queue: 2, reason: 'full' },
    ],
    [
      new BulkheadFullError({ policy: 'bulkhead', limit: 5, queue: 2, reason: 'waited' }),
      'BulkheadFullError',
      'ERR_BULKHEAD_FULL',
      '"bulkhead" let the call wait for one of 5 slots and gave it up (waited)',
      { reason: 'waited' },
    ],
    [
      new RateLimitedError({ policy: 'quota', retryAfterMs: 99.96 }),
      'RateLimitedError',
      'ERR_RATE_LIMITED',
      '"quota" has no room for the call, the next one may start in 100 ms',
      { limit: undefined, retryAfterMs: 99.96 },
    ],
    [
      new RateLimitedError({ policy: 'quota', limit: 10 }),
      'RateLimitedError',
      'ERR_RATE_LIMITED',
      '"quota" has no room for the call',
      { limit: 10, retryAfterMs: undefined },
    ],
    [
      new ShedError({ policy: 'loadShed', reason: 'event loop 130 ms late' }),
      'ShedError',
      'ERR_SHED',
      '"loadShed" turned the call away: event loop 130 ms late',
      { reason: 'event loop 130 ms late' },
    ],
    [
      new LockUnavailableError({ policy: 'mutex', key: 'cron', reason: 'waited', detail: 'waited 50 ms' }),
      'LockUnavailableError',
      'ERR_LOCK_UNAVAILABLE',
      '"mutex" did not get "cron": waited 50 ms',
      { key: 'cron', reason: 'waited' },
    ],
    [
      new LockLostError({ policy: 'mutex', key: 'cron', fence: 7, reason: 'taken', outcome: { ok: true, value: 1 } }),
      'LockLostError',
      'ERR_LOCK_LOST',
      '"mutex" does not hold "cron" any more (fence 7, taken)',
      { key: 'cron', fence: 7, reason: 'taken', outcome: { ok: true, value: 1 } },
    ],
    [
      new StaleFenceError({ resource: 'ledger', fence: 7, newestFence: 8 }),
      'StaleFenceError',
      'ERR_STALE_FENCE',
      '"ledger" was not written: it has seen 8, this is fence 7',
      { resource: 'ledger', fence: 7, newestFence: 8 },
    ],
    [
      new StaleFenceError({ resource: 'ledger', fence: 7 }),
      'StaleFenceError',
      'ERR_STALE_FENCE',
      '"ledger" was not written: it has seen a newer one, this is fence 7',
    ],
    [
      new LoadBackoffError({ policy: 'users', key: '42', retryAfterMs: 250, detail: 'its last load failed' }),
      'LoadBackoffError',
      'ERR_LOAD_BACKOFF',
      '"users" does not load "42" for another 250 ms: its last load failed',
      { key: '42', retryAfterMs: 250 },
    ],
    [
      new StoreError({
        store: 'redis',
        operation: 'write',
        reason: 'timeout',
        applied: 'unknown',
        detail: 'no answer',
      }),
      'StoreError',
      'ERR_STORE',
      'redis store, write: no answer (it may have been applied)',
      { store: 'redis', operation: 'write', reason: 'timeout', applied: 'unknown' },
    ],
    [
      new StoreError({ store: 'memory', operation: 'write', reason: 'full', applied: 'no', detail: 'no room' }),
      'StoreError',
      'ERR_STORE',
      'memory store, write: no room (nothing was changed)',
    ],
    [
      new KeyMissingError({ policy: 'orders', detail: 'the request has no key' }),
      'KeyMissingError',
      'ERR_KEY_MISSING',
      '"orders": the request has no key; nothing was started',
      { policy: 'orders' },
    ],
    [
      new KeyReusedError({ policy: 'orders' }),
      'KeyReusedError',
      'ERR_KEY_REUSED',
      '"orders": the key came with another input before; nothing was started',
      { policy: 'orders' },
    ],
    [
      new InFlightError({ policy: 'orders', retryAfterMs: 99.96 }),
      'InFlightError',
      'ERR_IN_FLIGHT',
      '"orders": the operation with this key is running; ask again with the same key in 100 ms',
      { policy: 'orders', retryAfterMs: 99.96 },
    ],
    [
      new InDoubtError({ policy: 'orders', reason: 'lost', detail: 'its lease was lost' }),
      'InDoubtError',
      'ERR_IN_DOUBT',
      '"orders": its lease was lost',
      { policy: 'orders', reason: 'lost' },
    ],
    [
      new HandlesError({ policy: 'retry', option: 'handles', thrown: new Error('boom') }),
      'HandlesError',
      'ERR_HANDLES_FAILED',
      '"retry": its "handles" function failed: boom',
      { policy: 'retry', thrown: new Error('boom'), cause: new Error('boom') },
    ],
  ])('%s tells name, code and numbers', (error, name, code, message, numbers = {}) => {
    expect(error).toMatchObject({ name, code, message, ...numbers });
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
    const down = new Error('down');
    expect(new HandlesError({ policy: 'retry', option: 'handles', thrown: 'boom', cause: down })).toMatchObject({
      cause: down,
      thrown: 'boom',
    });
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

  it('takes what throws at every look for none of ours', () => {
    const { proxy, revoke } = Proxy.revocable({}, {});
    revoke();
    expect([isAbandoned(proxy), isRejected(proxy), isHoldfastError(proxy)]).toEqual([false, false, false]);
  });

  it('keeps its stack where the limit of stacks is frozen, and where there is none', () => {
    const limit = Object.getOwnPropertyDescriptor(Error, 'stackTraceLimit')!;
    try {
      Object.defineProperty(Error, 'stackTraceLimit', { ...limit, writable: false });
      expect(new TimeoutError({ policy: 'x' }).stack).toContain('errors.test.ts');
      expect(Error.stackTraceLimit).toBe(limit.value);
      Object.defineProperty(Error, 'stackTraceLimit', { ...limit, value: undefined });
      expect(new TimeoutError({ policy: 'x' })).toMatchObject({ code: 'ERR_TIMEOUT' });
      expect(Error.stackTraceLimit).toBeUndefined();
    } finally {
      Object.defineProperty(Error, 'stackTraceLimit', limit);
    }
  });

  it('recognises an error of another copy of the package by its brand', () => {
    class Elsewhere extends Error {}
    Object.defineProperty(Elsewhere.prototype, Symbol.for('holdfast.error'), { value: 'rejected' });
    expect(isRejected(new Elsewhere())).toBe(true);
  });
});
