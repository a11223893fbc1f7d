import { describe, expect, it } from 'vitest';
import {
  checkArgument,
  checkOptions,
  duration,
  type Field,
  flag,
  func,
  having,
  integer,
  number,
  oneOf,
  show,
  text,
} from '../../src/core/options.js';
import {
  cache,
  circuitBreaker,
  constant,
  deadline,
  decorrelated,
  exponential,
  fallback,
  hedge,
  idempotency,
  mutex,
  OptionsError,
  pipeline,
  rateLimit,
  retry,
  retryBudget,
  timeout,
} from '../../src/index.js';
import { redisStore } from '../../src/stores/redis.js';

function refusal(build: () => unknown): OptionsError {
  try {
    build();
  } catch (error) {
    if (error instanceof OptionsError) return error;
    throw error;
  }
  throw new Error('nothing was refused');
}

/** A function of this form has a prototype, as a class does. */
function classOf(element: { readonly class?: string }): string | undefined {
  return element.class;
}

class Store {
  readonly entries = 0;
}

// biome-ignore lint/suspicious/noExplicitAny: what plain JavaScript may pass.
const wrong = (value: unknown) => value as any;

describe('OptionsError', () => {
  it.each<[string, () => unknown]>([
    ['retry: unknown option "maxAttempt", did you mean "attempts"?', () => retry(wrong({ maxAttempt: 3 }))],
    [
      'retry: unknown option "colour", the options are "attempts", "backoff", "budget", "handles", "maxRetryAfter", "minAttemptTime", "onDiscard", "random", "name", "on", "clock"',
      () => retry(wrong({ colour: 1 })),
    ],
    ['retry: option "attempts" must be an integer from 1 to 1000, got 0', () => retry({ attempts: 0 })],
    ['retry: option "attempts" must be an integer from 1 to 1000, got NaN', () => retry({ attempts: Number.NaN })],
    ['retry: option "attempts" must be an integer from 1 to 1000, got 2.5', () => retry({ attempts: 2.5 })],
    ['retry: option "attempts" must be an integer from 1 to 1000, got \'3\'', () => retry(wrong({ attempts: '3' }))],
    [
      'retry: option "attempts" must be an integer from 1 to 1000, got Infinity',
      () => retry({ attempts: Number.POSITIVE_INFINITY }),
    ],
    ['retry: option "attempts" must be an integer from 1 to 1000, got null', () => retry(wrong({ attempts: null }))],
    [
      `retry: option "backoff" must be exponential(), constant('1s') or another function, got an object`,
      () => retry(wrong({ backoff: {} })),
    ],
    ['retry: option "budget" must be a budget such as retryBudget(), got 5', () => retry(wrong({ budget: 5 }))],
    ['retry: options must be an object, got 3', () => retry(wrong(3))],
    ['retry: options must be an object, got null', () => retry(wrong(null))],
    ['mutex: options must be an object, got null', () => mutex(wrong(null))],
    ['retry: options must be an object, got an array', () => retry(wrong([]))],
    ["timeout: option \"after\" must be a duration such as 5000 or '5s', got '5 sec'", () => timeout(wrong('5 sec'))],
    ['timeout: option "after" must be a duration such as 5000 or \'5s\', got -1', () => timeout(-1)],
    [
      'timeout: option "after" must be a duration such as 5000 or \'5s\', from 1 to 2147483647 ms, got 0',
      () => timeout(0),
    ],
    [
      "timeout: option \"after\" must be a duration such as 5000 or '5s', from 1 to 2147483647 ms, got '25d'",
      () => timeout('25d'),
    ],
    ['timeout: option "after" is required: a duration such as 5000 or \'5s\'', () => timeout(wrong({}))],
    ['timeout: option "after" is required: a duration such as 5000 or \'5s\'', () => timeout(wrong(undefined))],
    ['timeout: option "name" must be a string of 1 to 200 characters, got \'\'', () => timeout({ after: 1, name: '' })],
    ['timeout: option "on" must be a function, got true', () => timeout(wrong({ after: 1, on: true }))],
    [
      'timeout: option "clock" must be a clock such as systemClock, got an object',
      () => timeout(wrong({ after: 1, clock: { now: () => 0 } })),
    ],
    ['deadline: unknown option "afte", did you mean "after"?', () => deadline(wrong({ afte: 1 }))],
    [
      "exponential: option \"jitter\" must be 'full' or 'equal' or 'none', got true",
      () => exponential(wrong({ jitter: true })),
    ],
    [
      'exponential: option "initial" must be at most "max" (100 ms), got 200',
      () => exponential({ initial: 200, max: 100 }),
    ],
    ['exponential: option "factor" must be a number from 1 to 100, got 0.5', () => exponential({ factor: 0.5 })],
    ['decorrelated: option "initial" must be at most "max" (5000 ms), got 6000', () => decorrelated({ initial: '6s' })],
    [
      'constant: option "delay" must be a duration such as 5000 or \'5s\', from 0 to 2147483647 ms, got -5',
      () => constant(-5),
    ],
    [
      'retryBudget: option "initial" must be at most "capacity" (5), got 6',
      () => retryBudget({ capacity: 5, initial: 6 }),
    ],
    ['fallback: option "answer" must be a function, got 5', () => fallback(wrong(5))],
    ['retry: option "handles" must be a function, got the class TypeError', () => retry(wrong({ handles: TypeError }))],
    [
      `retry: option "backoff" must be exponential(), constant('1s') or another function, got the class Store`,
      () => retry(wrong({ backoff: Store })),
    ],
    [
      'rateLimit: option "cost" must be a number of at least 0 or a function of the call, got the class Store',
      () => rateLimit(wrong({ limit: 1, cost: Store })),
    ],
    ['hedge: option "handles" must be a function, got the class Error', () => hedge(wrong({ handles: Error }))],
    ['timeout: option "on" must be a function, got the class Store', () => timeout(wrong({ after: 1, on: Store }))],
    [
      'timeout: takes one argument, got an object as a second one',
      () => Reflect.apply(timeout, undefined, ['5s', { stack: true }]),
    ],
    [
      "timeout: takes one argument, got 'cooperative' as a second one",
      () => Reflect.apply(timeout, undefined, [2_000, 'cooperative']),
    ],
    [
      'deadline: takes one argument, got an object as a second one',
      () => Reflect.apply(deadline, undefined, [{ after: '5s' }, { stack: true }]),
    ],
    [
      'constant: takes one argument, got an object as a second one',
      () => Reflect.apply(constant, undefined, ['1s', { jitter: 'full' }]),
    ],
    [
      "pipeline: argument 2 must be a policy such as timeout('1s'), got a function; call the factory, and give an operation to execute()",
      () => pipeline(timeout(1), wrong(timeout)),
    ],
    [
      "pipeline: argument 1 must be a policy such as timeout('1s'), got an array; spread it, pipeline(...policies)",
      () => pipeline(wrong([timeout(1)])),
    ],
    ['retry: options must be an object, got an object of class Promise', () => retry(wrong(Promise.resolve({})))],
    [
      'idempotency: option "store" must be a store such as memoryStore() or redisStore(client), got an object of class Map',
      () => idempotency(wrong({ store: new Map() })),
    ],
    ["pipeline: argument 1 must be a policy such as timeout('1s'), got undefined", () => pipeline(wrong(undefined))],
    ...[exponential, decorrelated, constant].map((backoff): [string, () => unknown] => [
      'retry: option "backoff" must be exponential(), constant(\'1s\') or another function, got the factory itself; call it',
      () => retry(wrong({ backoff })),
    ]),
    [
      'cache: option "failBackoff" must be exponential(), constant(\'1s\') or another function, got the factory itself; call it',
      () => cache(wrong({ ttl: 1, failBackoff: exponential })),
    ],
    ['retry: unknown option "maxRetries", did you mean "attempts"?', () => retry(wrong({ maxRetries: 3 }))],
    ['retry: unknown option "retries", did you mean "attempts"?', () => retry(wrong({ retries: 3 }))],
    [
      'circuitBreaker: unknown option "halfOpenAfter", did you mean "openFor"?',
      () => circuitBreaker(wrong({ halfOpenAfter: 3 })),
    ],
    [
      'redisStore: option "client" must be a client of ioredis, or of node-redis 5 or later, got the class Store',
      () => redisStore(wrong(Store)),
    ],
    [
      'mutex: unknown option "entries", options are a plain object, got an object of class Store',
      () => mutex(wrong(new Store())),
    ],
  ])('says: %s', (message, build) => {
    expect(refusal(build).message).toBe(message);
  });

  it('names policy, option, value and what is allowed', () => {
    const error = refusal(() => retry({ attempts: 0 }));
    expect(error).toBeInstanceOf(TypeError);
    expect(error).toMatchObject({
      name: 'OptionsError',
      code: 'ERR_OPTIONS',
      policy: 'retry',
      option: 'attempts',
      value: 0,
      allowed: 'an integer from 1 to 1000',
    });
  });

  it('shortens a long value, and takes no time over a long key', () => {
    expect(refusal(() => timeout(wrong('x'.repeat(10_000_000)))).message.length).toBeLessThan(200);
    expect(refusal(() => retry(wrong({ ['a'.repeat(1_000_000)]: 1 }))).message).toContain('the options are');
  });

  it('neither changes nor keeps the given options', async () => {
    const options = Object.freeze({ attempts: 2, backoff: constant(0) });
    const twice = retry(options);
    expect(twice.traits?.attempts).toBe(2);
    const changing = { attempts: 2, backoff: constant(0) };
    const steady = pipeline(retry(changing));
    changing.attempts = 50;
    let calls = 0;
    await steady.attempt(() => {
      calls++;
      throw new Error('down');
    });
    expect(calls).toBe(2);
  });

  it('accepts an instance of a class as options, as long as it knows each key', () => {
    class Settings {
      readonly attempts = 2;
    }
    expect(retry(new Settings()).traits?.attempts).toBe(2);
  });

  it('treats undefined as absent', () => {
    expect(retry(wrong({ attempts: undefined })).traits?.attempts).toBe(3);
  });
});

describe('checkOptions', () => {
  const read = (field: Field<unknown>, value: unknown) => checkOptions('mine', { it: value }, { it: field }).it;
  const fromTwoToFive = { min: 2, max: 5 };
  const sized = () => having<{ size(): number; clear(): void }>('a thing with a size', 'size', 'clear');

  it.each<[string, () => Field<unknown>, readonly unknown[]]>([
    ['integer', () => integer(fromTwoToFive), [2, 5]],
    ['integer without bounds', () => integer({}), [0, Number.MAX_SAFE_INTEGER]],
    ['number', () => number(fromTwoToFive), [2, 2.5, 5]],
    ['number without bounds', () => number({}), [0, Number.MAX_VALUE]],
    ['text', () => text(), ['a', 'a'.repeat(200)]],
    ['flag', () => flag(), [true, false]],
    ['word', () => oneOf(['full', 'none']), ['full', 'none']],
    ['function', () => func(), [Math.max]],
    ['object with methods', sized, [{ size: () => 1, clear() {} }]],
  ])('accepts %s unchanged, up to its bounds', (_, field, values) => {
    for (const value of values) expect(read(field(), value)).toBe(value);
  });

  it('accepts a factory of one duration as the callback of a `map`', () => {
    expect((['1s', '2s'] as const).map(timeout)).toHaveLength(2);
  });

  it('reads a duration as milliseconds, up to its bounds', () => {
    expect(['2ms', 5, '0.005s'].map((value) => read(duration(fromTwoToFive), value))).toEqual([2, 5, 5]);
    expect([1, 2_147_483_647].map((value) => read(duration({}), value))).toEqual([1, 2_147_483_647]);
  });

  it.each<[string, () => Field<unknown>, readonly unknown[]]>([
    ['an integer from 2 to 5', () => integer(fromTwoToFive), [1, 6, 2.5, '3', 3n, null]],
    ['an integer of at least 0', () => integer({}), [-1, 2 ** 53]],
    ['a number from 2 to 5', () => number(fromTwoToFive), [1.9, 5.1, '3', Number.NaN]],
    ['a number of at least 0', () => number({}), [-0.1, Number.POSITIVE_INFINITY]],
    ["a duration such as 5000 or '5s', from 2 to 5 ms", () => duration(fromTwoToFive), [1, 6, '1ms', '6ms', 'soon']],
    ["a duration such as 5000 or '5s', from 1 to 5 ms", () => duration({ max: 5 }), [0, 6, null]],
    ["a duration such as 5000 or '5s', from 2 to 2147483647 ms", () => duration({ min: 2 }), [1, '25d', 'soon']],
    ['a string of 1 to 200 characters', () => text(), ['', 'a'.repeat(201), 5, ['a']]],
    ['true or false', () => flag(), [0, 'true', null]],
    ["'full' or 'none'", () => oneOf(['full', 'none']), ['Full', '', 5]],
    ['a function', () => func(), [{}, null]],
    ['a thing with a size', sized, [null, 5, {}, { size: () => 1 }, { clear() {} }, { size: 1, clear() {} }]],
    ['a thing with a size', sized, [Object.assign(() => {}, { size: () => 1, clear() {} })]],
  ])('requires %s', (allowed, field, values) => {
    for (const value of values) {
      expect(refusal(() => read(field(), value))).toMatchObject({
        message: `mine: option "it" must be ${allowed}, got ${show(value)}`,
        policy: 'mine',
        option: 'it',
        value,
        allowed,
      });
    }
  });

  it('describes wrong options as a whole, with a name, and with what is missing', () => {
    const fields = { attempts: integer({}), handles: func() };
    expect(refusal(() => checkOptions('mine', 'x', fields))).toMatchObject({
      ...{ policy: 'mine', option: undefined, value: 'x', allowed: 'an object' },
    });
    expect(refusal(() => checkOptions('mine', { attempt: 3 }, fields))).toMatchObject({
      ...{ policy: 'mine', option: 'attempt', value: 3, allowed: '"attempts", "handles"' },
    });
    expect(refusal(() => checkOptions('mine', undefined, fields))).toMatchObject({
      ...{ policy: 'mine', option: 'attempts', value: undefined, allowed: 'an integer of at least 0' },
    });
    expect(refusal(() => checkArgument('mine', 'after', undefined, duration({})))).toMatchObject({
      ...{ message: 'mine: option "after" is required: a duration such as 5000 or \'5s\'', option: 'after' },
    });
  });
});

describe('show', () => {
  it.each<[unknown, string]>([
    [5, '5'],
    ['5', "'5'"],
    [5n, '5n'],
    ['a'.repeat(60), `'${'a'.repeat(60)}'`],
    ['a'.repeat(61), `'${'a'.repeat(57)}...'`],
    [Math.max, 'a function'],
    [Store, 'the class Store'],
    [RangeError, 'the class RangeError'],
    [class extends Store {}, 'the class '],
    [{ class() {} }.class, 'a function'],
    [{ class$() {} }.class$, 'a function'],
    [classOf, 'a function'],
    [[1], 'an array'],
    [{}, 'an object'],
    [null, 'null'],
    [undefined, 'undefined'],
    [Symbol('x'), 'Symbol(x)'],
  ])('shows %s short and recognisable', (value, shown) => {
    expect(show(value)).toBe(shown);
  });

  it('shows a function whose toString throws', () => {
    const broken = {
      toString(): string {
        throw new Error('broken');
      },
    };
    expect(show(Object.assign(() => {}, broken))).toBe('a function');
    expect(show(Object.assign(class Broken {}, broken))).toBe('the class Broken');
  });
});
