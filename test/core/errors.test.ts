import { inspect } from 'node:util';
import { describe, expect, it } from 'vitest';
import { messageOf } from '../../src/core/errors.js';
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

/** Each test makes its own errors, because an error that was made before the test cannot show what breaks in it. */
const timedOut = () => new TimeoutError({ policy: 'payments', afterMs: 1_000 });
const tooLate = () => new DeadlineTooShortError({ policy: 'deadline', remainingMs: -12.34 });

describe('errors', () => {
  it.each<[string, () => HoldfastError, string, string, object?]>([
    ['HoldfastError', () => new HoldfastError('ERR_MINE', 'went wrong'), 'ERR_MINE', 'went wrong'],
    [
      'AbandonedError',
      () => new AbandonedError('ERR_MINE', 'gave up', { policy: 'mine' }),
      'ERR_MINE',
      'gave up',
      { policy: 'mine' },
    ],
    [
      'TimeoutError',
      timedOut,
      'ERR_TIMEOUT',
      '"payments" gave up after 1000 ms; the operation may still be running',
      { policy: 'payments', afterMs: 1_000 },
    ],
    [
      'TimeoutError',
      () => new TimeoutError({ policy: 'mine' }),
      'ERR_TIMEOUT',
      '"mine" gave up at its deadline; the operation may still be running',
    ],
    [
      'DeadlineExceededError',
      () => new DeadlineExceededError({ policy: 'deadline', afterMs: 0.25 }),
      'ERR_DEADLINE_EXCEEDED',
      '"deadline" ended the call after 0.3 ms; its outcome is unknown',
      { policy: 'deadline', afterMs: 0.25 },
    ],
    [
      'DeadlineTooShortError',
      tooLate,
      'ERR_DEADLINE_TOO_SHORT',
      '"deadline" did not start the operation: its deadline passed 12.3 ms ago',
      { policy: 'deadline', remainingMs: -12.34, retryAfterMs: undefined },
    ],
    [
      'CircuitOpenError',
      () =>
        new CircuitOpenError({ policy: 'pay', state: 'open', retryAfterMs: 3199.6, detail: '18 of 20 calls failed' }),
      'ERR_CIRCUIT_OPEN',
      '"pay" is open for another 3200 ms (18 of 20 calls failed)',
      { state: 'open', retryAfterMs: 3199.6 },
    ],
    [
      'CircuitOpenError',
      () => new CircuitOpenError({ policy: 'pay', state: 'isolated' }),
      'ERR_CIRCUIT_OPEN',
      '"pay" is isolated',
      { state: 'isolated', retryAfterMs: undefined },
    ],
    [
      'BulkheadFullError',
      () => new BulkheadFullError({ policy: 'bulkhead', limit: 5, queue: 2 }),
      'ERR_BULKHEAD_FULL',
      '"bulkhead" is full: 5 operations run and 2 may wait',
      { limit: 5, queue: 2, reason: 'full' },
    ],
    [
      'BulkheadFullError',
      () => new BulkheadFullError({ policy: 'bulkhead', limit: 5, queue: 2, reason: 'waited' }),
      'ERR_BULKHEAD_FULL',
      '"bulkhead" let the call wait for one of 5 slots and gave it up (waited)',
      { reason: 'waited' },
    ],
    [
      'RateLimitedError',
      () => new RateLimitedError({ policy: 'quota', retryAfterMs: 99.96 }),
      'ERR_RATE_LIMITED',
      '"quota" has no room for the call, the next one may start in 100 ms',
      { limit: undefined, retryAfterMs: 99.96 },
    ],
    [
      'RateLimitedError',
      () => new RateLimitedError({ policy: 'quota', limit: 10 }),
      'ERR_RATE_LIMITED',
      '"quota" has no room for the call',
      { limit: 10, retryAfterMs: undefined },
    ],
    [
      'ShedError',
      () => new ShedError({ policy: 'loadShed', reason: 'event loop 130 ms late' }),
      'ERR_SHED',
      '"loadShed" turned the call away: event loop 130 ms late',
      { reason: 'event loop 130 ms late' },
    ],
    [
      'LockUnavailableError',
      () => new LockUnavailableError({ policy: 'mutex', key: 'cron', reason: 'waited', detail: 'waited 50 ms' }),
      'ERR_LOCK_UNAVAILABLE',
      '"mutex" did not get "cron": waited 50 ms',
      { key: 'cron', reason: 'waited' },
    ],
    [
      'LockLostError',
      () =>
        new LockLostError({ policy: 'mutex', key: 'cron', fence: 7, reason: 'taken', outcome: { ok: true, value: 1 } }),
      'ERR_LOCK_LOST',
      '"mutex" does not hold "cron" any more (fence 7, taken)',
      { key: 'cron', fence: 7, reason: 'taken', outcome: { ok: true, value: 1 } },
    ],
    [
      'StaleFenceError',
      () => new StaleFenceError({ resource: 'ledger', fence: 7, newestFence: 8 }),
      'ERR_STALE_FENCE',
      '"ledger" was not written: it has seen 8, this is fence 7',
      { resource: 'ledger', fence: 7, newestFence: 8 },
    ],
    [
      'StaleFenceError',
      () => new StaleFenceError({ resource: 'ledger', fence: 7 }),
      'ERR_STALE_FENCE',
      '"ledger" was not written: it has seen a newer one, this is fence 7',
    ],
    [
      'LoadBackoffError',
      () => new LoadBackoffError({ policy: 'users', key: '42', retryAfterMs: 250, detail: 'its last load failed' }),
      'ERR_LOAD_BACKOFF',
      '"users" does not load "42" for another 250 ms: its last load failed',
      { key: '42', retryAfterMs: 250 },
    ],
    [
      'StoreError',
      () =>
        new StoreError({
          store: 'redis',
          operation: 'write',
          reason: 'timeout',
          applied: 'unknown',
          detail: 'no answer',
        }),
      'ERR_STORE',
      'redis store, write: no answer (it may have been applied)',
      { store: 'redis', operation: 'write', reason: 'timeout', applied: 'unknown' },
    ],
    [
      'StoreError',
      () => new StoreError({ store: 'memory', operation: 'write', reason: 'full', applied: 'no', detail: 'no room' }),
      'ERR_STORE',
      'memory store, write: no room (nothing was changed)',
    ],
    [
      'KeyMissingError',
      () => new KeyMissingError({ policy: 'orders', detail: 'the request has no key' }),
      'ERR_KEY_MISSING',
      '"orders": the request has no key; nothing was started',
      { policy: 'orders' },
    ],
    [
      'KeyReusedError',
      () => new KeyReusedError({ policy: 'orders' }),
      'ERR_KEY_REUSED',
      '"orders": the key was used before with a different input; nothing was started',
      { policy: 'orders' },
    ],
    [
      'InFlightError',
      () => new InFlightError({ policy: 'orders', retryAfterMs: 99.96 }),
      'ERR_IN_FLIGHT',
      '"orders": the operation with this key is running; ask again with the same key in 100 ms',
      { policy: 'orders', retryAfterMs: 99.96 },
    ],
    [
      'InDoubtError',
      () => new InDoubtError({ policy: 'orders', reason: 'lost', detail: 'its lease was lost' }),
      'ERR_IN_DOUBT',
      '"orders": its lease was lost',
      { policy: 'orders', reason: 'lost' },
    ],
    [
      'HandlesError',
      () => new HandlesError({ policy: 'retry', option: 'handles', thrown: new Error('boom') }),
      'ERR_HANDLES_FAILED',
      '"retry": its "handles" function failed: boom',
      { policy: 'retry', thrown: new Error('boom'), cause: new Error('boom') },
    ],
  ])('%s has name, code and numbers', (name, build, code, message, numbers = {}) => {
    const error = build();
    expect(error).toMatchObject({ name, code, message, ...numbers });
    expect(String(error)).toBe(`${name} [${code}]: ${message}`);
    expect(error).toBeInstanceOf(HoldfastError);
    expect(Object.prototype.toString.call(error)).toBe('[object Error]');
  });

  it('lets a derived class set its name as subclasses of Error do', () => {
    class TooManyError extends RejectedError {
      constructor() {
        super('ERR_TOO_MANY', 'no', { policy: 'mine' });
        this.name = 'TooManyError';
      }
    }
    const error = new TooManyError();
    expect([String(error), isRejected(error)]).toEqual(['TooManyError [ERR_TOO_MANY]: no', true]);
    error.name = 'Renamed';
    expect([error.name, Reflect.deleteProperty(error, 'name'), error.name]).toEqual(['Renamed', true, 'RejectedError']);
    expect(new RejectedError('ERR_MINE', 'no', { policy: 'mine' }).name).toBe('RejectedError');
  });

  it('accepts another name, also on an error about an option', () => {
    const error = new OptionsError('no', { policy: 'mine', value: 1, allowed: 'nothing' });
    error.name = 'Renamed';
    expect([error.name, Object.keys(error).includes('name')]).toEqual(['Renamed', false]);
  });

  it('show code and numbers when Node prints them', () => {
    expect(inspect(timedOut())).toContain("code: 'ERR_TIMEOUT'");
    expect(inspect(timedOut())).toContain('afterMs: 1000');
  });

  it('captures no stack unless asked, and leaves the limit as it was', () => {
    const limit = Error.stackTraceLimit;
    expect(timedOut().stack).not.toContain('\n    at ');
    expect(new TimeoutError({ policy: 'x', stack: true }).stack).toContain('errors.test.ts');
    expect(Error.stackTraceLimit).toBe(limit);
    expect(new Error('plain').stack).toContain('\n    at ');
  });

  it('keep their cause, and have none if none was given', () => {
    const cause = new Error('why');
    expect(new RejectedError('ERR_MINE', 'no', { policy: 'mine', cause, retryAfterMs: 5 })).toMatchObject({
      cause,
      retryAfterMs: 5,
      policy: 'mine',
    });
    expect('cause' in timedOut()).toBe(false);
    const down = new Error('down');
    expect(new HandlesError({ policy: 'retry', option: 'handles', thrown: 'boom', cause: down })).toMatchObject({
      cause: down,
      thrown: 'boom',
    });
  });

  it('distinguishes the families', () => {
    expect([isAbandoned(timedOut()), isRejected(timedOut()), isHoldfastError(timedOut())]).toEqual([true, false, true]);
    expect([isAbandoned(tooLate()), isRejected(tooLate()), isHoldfastError(tooLate())]).toEqual([false, true, true]);
    const options = new OptionsError('m', { policy: 'p', value: 1, allowed: 'a' });
    for (const other of [options, new HoldfastError('ERR_MINE', 'went wrong')]) {
      expect([isAbandoned(other), isRejected(other), isHoldfastError(other)]).toEqual([false, false, true]);
    }
  });

  it.each([[new Error('x')], [undefined], [null], ['ERR_TIMEOUT'], [{ code: 'ERR_TIMEOUT' }]])(
    'takes %s for none of ours',
    (foreign) => {
      expect([isAbandoned(foreign), isRejected(foreign), isHoldfastError(foreign)]).toEqual([false, false, false]);
    },
  );

  it('does not recognise a value that throws when it is inspected', () => {
    const { proxy, revoke } = Proxy.revocable({}, {});
    revoke();
    expect([isAbandoned(proxy), isRejected(proxy), isHoldfastError(proxy)]).toEqual([false, false, false]);
  });

  it('keeps its stack if the stack limit is frozen or missing', () => {
    const limit = Object.getOwnPropertyDescriptor(Error, 'stackTraceLimit')!;
    try {
      Object.defineProperty(Error, 'stackTraceLimit', { ...limit, writable: false });
      expect(new TimeoutError({ policy: 'x' }).stack).toContain('errors.test.ts');
      expect(Error.stackTraceLimit).toBe(limit.value);
      Object.defineProperty(Error, 'stackTraceLimit', limit);
      Reflect.deleteProperty(Error, 'stackTraceLimit');
      expect(new TimeoutError({ policy: 'x' })).toMatchObject({ code: 'ERR_TIMEOUT' });
      expect('stackTraceLimit' in Error).toBe(false);
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

describe('messageOf', () => {
  it('describes any thrown value', () => {
    expect([new Error('why'), 'why', 5, undefined, Object.create(null)].map(messageOf)).toEqual([
      ...['why', 'why', '5', 'undefined', 'something that cannot be shown'],
    ]);
  });
});
