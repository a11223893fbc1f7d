import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { longestWaitMs } from '../../src/core/clock.js';
import {
  attemptHeader,
  type DeadlineForm,
  deadlineHeaders,
  type HeaderReader,
  parseAttemptHeader,
  parseDeadlineHeaders,
  relayedMs,
} from '../../src/policies/deadline-headers.js';
import { threadUs } from '../support/thread-time.js';

const forms: readonly DeadlineForm[] = ['holdfast', 'grpc', 'envoy'];
const seed = Number(process.env.FUZZ_SEED ?? 20_261);
const fuzzRuns = Number(process.env.HOLDFAST_FUZZ_RUNS ?? 100_000);

/** Headers as a server of Node presents them. */
function reader(headers: Readonly<Record<string, unknown>>): HeaderReader {
  return (name) => headers[name] as string | undefined;
}

const parse = (headers: Readonly<Record<string, unknown>>) => parseDeadlineHeaders(reader(headers));

describe('parseDeadlineHeaders', () => {
  it.each([
    ['1H', 3_600_000],
    ['2M', 120_000],
    ['3S', 3_000],
    ['4m', 4],
    ['5000u', 5],
    ['6000000n', 6],
    ['1n', 1e-6],
    ['00000001S', 1_000],
    ['0m', 0],
  ])('reads grpc-timeout %s as %d ms', (value, ms) => {
    expect(parse({ 'grpc-timeout': value })).toBe(ms);
  });

  it.each(['request-deadline-ms', 'x-envoy-expected-rq-timeout-ms'])('reads whole milliseconds of %s', (name) => {
    expect(parse({ [name]: '1500' })).toBe(1_500);
    expect(parse({ [name]: '0' })).toBe(0);
    expect(parse({ [name]: ['250'] })).toBe(250);
  });

  it('uses the nearest of several deadlines', () => {
    expect(parse({ 'request-deadline-ms': '900', 'grpc-timeout': '1S', 'x-envoy-expected-rq-timeout-ms': '800' })).toBe(
      800,
    );
    expect(parse({ 'request-deadline-ms': 'soon', 'grpc-timeout': '1S' })).toBe(1_000);
  });

  it('accepts no more than maxAcceptMs, and never more than 24.8 days', () => {
    expect(parseDeadlineHeaders(reader({ 'request-deadline-ms': '90000' }), { maxAcceptMs: 60_000 })).toBe(60_000);
    expect(parse({ 'grpc-timeout': '99999999H' })).toBe(longestWaitMs);
    expect(parse({ 'request-deadline-ms': '9'.repeat(16) })).toBe(longestWaitMs);
    expect(parseDeadlineHeaders(reader({ 'request-deadline-ms': '9'.repeat(16) }), { maxAcceptMs: 2 ** 40 })).toBe(
      longestWaitMs,
    );
  });

  const nonsense: readonly unknown[] = [
    ...[undefined, null, '', ' ', ' 5', '5 ', '-1', '+1', '1.5', '1e3', '0x10', 'NaN', 'Infinity', '５', '1,2', '1, 2'],
    ...['5s', '9'.repeat(17), '9'.repeat(400), '1\n', '1\0', [], ['1', '2'], [['1']], [1], 5, {}, true, Symbol('1')],
  ];
  it.each(nonsense.map((value) => [value]))('ignores %o', (value) => {
    for (const name of ['request-deadline-ms', 'x-envoy-expected-rq-timeout-ms']) {
      expect(parse({ [name]: value })).toBe(undefined);
    }
  });

  it.each([
    '',
    '5',
    'm',
    'x1m',
    '-1m',
    '1.5S',
    '123456789m',
    '1 m',
    '1s',
    '1h',
    '1mm',
    'm1',
    '1S, 1S',
    '1S\n',
    ['1S', '1S'],
  ])('ignores grpc-timeout %o', (value) => {
    expect(parse({ 'grpc-timeout': value })).toBe(undefined);
  });

  it('reads only a few characters of a header of 10 MB', () => {
    const huge = '9'.repeat(10_000_000);
    const startedUs = threadUs();
    for (let round = 0; round < 1_000; round++) {
      expect(parse({ 'request-deadline-ms': huge, 'grpc-timeout': `${huge}m` })).toBe(undefined);
      expect(parseAttemptHeader(() => huge)).toBe(undefined);
    }
    // Reading the whole of it a thousand times would take many seconds.
    expect((threadUs() - startedUs) / 1_000).toBeLessThan(2_000);
  });

  it(`returns a number in range or nothing, and never throws (${fuzzRuns} hostile values)`, () => {
    const digits = fc.array(fc.constantFrom(...'0123456789HMSmun-+., \t\0e'), { maxLength: 20 }).map((c) => c.join(''));
    const texts = fc.oneof(digits, fc.string(), fc.string({ unit: 'binary' }), fc.array(digits, { maxLength: 3 }));
    const value = fc.oneof({ weight: 19, arbitrary: texts }, { weight: 1, arbitrary: fc.anything({ maxDepth: 1 }) });
    const hostile = fc.property(
      value,
      value,
      value,
      fc.integer({ min: 1, max: 1e9 }),
      (own, grpc, envoy, maxAcceptMs) => {
        const header = reader({
          'request-deadline-ms': own,
          'grpc-timeout': grpc,
          'x-envoy-expected-rq-timeout-ms': envoy,
          [attemptHeader]: own,
        });
        const ms = parseDeadlineHeaders(header, { maxAcceptMs });
        if (ms !== undefined && !(ms >= 0 && ms <= maxAcceptMs)) return false;
        const attempt = parseAttemptHeader(header);
        return attempt === undefined || (Number.isInteger(attempt) && attempt >= 1 && attempt <= 9_999);
      },
    );
    fc.assert(hostile, { seed, numRuns: fuzzRuns });
  }, 900_000);
});

describe('deadlineHeaders', () => {
  /** The time that must be left for this value to be sent: it adds the margin of 1 %. */
  const leftFor = (ms: number) => ms / 0.99 + 1e-6;

  it.each([
    [119_000, '119000m'],
    [1_900, '1900m'],
    [99_999_999, '99999999m'],
    [100_000_000, '100000S'],
    [100_000_999, '100000S'],
    [longestWaitMs - 1, '2147483S'],
  ])('sends %d ms to gRPC in the finest unit of eight digits, rounded down', (ms, text) => {
    expect(deadlineHeaders(leftFor(ms), 'grpc')).toEqual({ 'grpc-timeout': text });
  });

  it('sends minutes and hours to gRPC if seconds do not fit', () => {
    expect(deadlineHeaders(leftFor(1e11), 'grpc')).toEqual({ 'grpc-timeout': '1666666M' });
    expect(deadlineHeaders(leftFor(6e12), 'grpc')).toEqual({ 'grpc-timeout': '1666666H' });
    expect(deadlineHeaders(Number.MAX_VALUE, 'grpc')).toEqual({ 'grpc-timeout': '99999999H' });
  });

  it('reserves 1 %, at least 5 ms, and rounds down', () => {
    expect(deadlineHeaders(10_000)).toEqual({ 'request-deadline-ms': '9900' });
    expect(deadlineHeaders(100.9)).toEqual({ 'request-deadline-ms': '95' });
    expect(deadlineHeaders(100, 'envoy')).toEqual({ 'x-envoy-expected-rq-timeout-ms': '95' });
    expect(relayedMs(500)).toBe(495);
    expect(relayedMs(501)).toBe(495);
  });

  it('sends 0 if the response would come too late', () => {
    for (const remainingMs of [5.9, 5, 1, 0, -20]) {
      expect(relayedMs(remainingMs)).toBe(0);
      expect(deadlineHeaders(remainingMs)).toEqual({ 'request-deadline-ms': '0' });
    }
  });

  it('sends nothing without a deadline', () => {
    expect(deadlineHeaders(Number.POSITIVE_INFINITY)).toEqual({});
  });

  it('is read by the called service as less than the time left, at most one unit less than was meant', () => {
    const anyRemaining = fc.oneof(
      fc.double({ min: 0, max: 1e5, noNaN: true }),
      fc.double({ min: 0, max: longestWaitMs, noNaN: true }),
    );
    const relayed = fc.property(anyRemaining, fc.constantFrom(...forms), (remainingMs, form) => {
      const ms = parse(deadlineHeaders(remainingMs, form))!;
      const meantMs = Math.max(0, remainingMs - Math.max(5, remainingMs / 100));
      return (ms < remainingMs || remainingMs === 0) && ms <= meantMs && meantMs - ms < (meantMs >= 1e8 ? 1_001 : 1);
    });
    fc.assert(relayed, { seed, numRuns: 5_000 });
  });
});

describe('parseAttemptHeader', () => {
  it('reads the number of an attempt', () => {
    expect(parseAttemptHeader(reader({ 'request-attempt': '1' }))).toBe(1);
    expect(parseAttemptHeader(reader({ 'request-attempt': ['12'] }))).toBe(12);
  });

  it('reads up to four digits', () => {
    expect(parseAttemptHeader(reader({ 'request-attempt': '9999' }))).toBe(9_999);
  });

  it.each(['', '0', '-1', '01', '1.5', '12345', 'x1', '1x', '1, 2', 'two'])('takes %o for not said', (value) => {
    expect(parseAttemptHeader(reader({ 'request-attempt': value }))).toBe(undefined);
  });
});
