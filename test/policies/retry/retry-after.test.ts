import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { parseHttpDate, parseRetryAfter, retryHintOf } from '../../../src/policies/retry/retry-after.js';

const seed = Number(process.env.FUZZ_SEED ?? 8);
const fuzzRuns = Number(process.env.HOLDFAST_FUZZ_RUNS ?? 10_000);
const now = Date.UTC(2026, 10, 24, 12, 0, 0);
/** An HTTP date so many seconds from now. */
const at = (seconds: number) => new Date(now + seconds * 1_000).toUTCString();
const withHeaders = (headers: unknown) => retryHintOf({ ok: true, value: { headers } }, now);

describe('parseHttpDate', () => {
  const instant = Date.UTC(1994, 10, 6, 8, 49, 37);
  it.each([
    ['IMF-fixdate', 'Sun, 06 Nov 1994 08:49:37 GMT', instant],
    ['RFC 850', 'Sunday, 06-Nov-94 08:49:37 GMT', instant],
    ['asctime', 'Sun Nov  6 08:49:37 1994', instant],
    ['asctime with two digits', 'Wed Nov 16 08:49:37 1994', Date.UTC(1994, 10, 16, 8, 49, 37)],
    ['the first day of a year', 'Thu, 01 Jan 2026 00:00:00 GMT', Date.UTC(2026, 0, 1)],
    ['the last second of a month', 'Mon, 31 Aug 2026 23:59:59 GMT', Date.UTC(2026, 7, 31, 23, 59, 59)],
    ['RFC 850 on the shortest day', 'Monday, 07-Nov-94 08:49:37 GMT', Date.UTC(1994, 10, 7, 8, 49, 37)],
    ['RFC 850 on the longest day', 'Wednesday, 09-Nov-94 08:49:37 GMT', Date.UTC(1994, 10, 9, 8, 49, 37)],
    ['a leap second', 'Sat, 31 Dec 2016 23:59:60 GMT', Date.UTC(2017, 0, 1)],
    ['RFC 850 within 50 years ahead', 'Sunday, 06-Nov-76 08:49:37 GMT', Date.UTC(2076, 10, 6, 8, 49, 37)],
    ['RFC 850 more than 50 years ahead', 'Sunday, 06-Nov-77 08:49:37 GMT', Date.UTC(1977, 10, 6, 8, 49, 37)],
    ['a year below 100', 'Sun, 06 Nov 0050 08:49:37 GMT', Date.parse('0050-11-06T08:49:37Z')],
  ])('reads %s', (_, text, expected) => {
    expect(parseHttpDate(text, now)).toBe(expected);
  });

  it.each([
    ['Sun, 31 Feb 2026 08:49:37 GMT'],
    ['Sun, 00 Nov 1994 08:49:37 GMT'],
    ['Sat, 32 Dec 1994 08:49:37 GMT'],
    ['Sun, 06 Nov 1994 24:00:00 GMT'],
    ['Sun, 06 Nov 1994 08:60:37 GMT'],
    ['Sun, 06 Nov 1994 08:49:61 GMT'],
    ...['Sun, 06 Nov 1994 08:49:37 GMT', 'Sunday, 06-Nov-94 08:49:37 GMT', 'Sun Nov  6 08:49:37 1994'].flatMap(
      (date) => [[`x${date}`], [`${date}x`]],
    ),
    ['Sun, 06 Foo 1994 08:49:37 GMT'],
    ['2026-11-24T12:00:00Z'],
    ['Sun, 06 Nov 1994 08:49:37'],
    ['tomorrow'],
    [''],
  ])('rejects %j as a date', (text) => {
    expect(parseHttpDate(text, now)).toBeUndefined();
  });
});

describe('parseRetryAfter', () => {
  it.each([
    ['120', 120_000],
    ['0', 0],
    ['1.5', 1_500],
    ['1, 30, 2', 30_000],
    [' 1 ,2 ', 2_000],
    ['1.500000000', 1_500],
    ['Tue, 24 Nov 2026 12:00:30 GMT', 30_000],
    ['Tue, 24 Nov 2026 11:00:00 GMT', 0],
    ['9'.repeat(20), 1e23],
  ])('reads %j as %d ms', (text, ms) => {
    expect(parseRetryAfter(text, now)).toBe(ms);
  });

  it.each([
    ['-5'],
    ['soon'],
    ['1e9'],
    ['0x10'],
    ['Infinity'],
    [' '],
    ['5, soon'],
    ['5,'],
    ['1.'],
    ['.5'],
    ['1.0000000001'],
    ['x1'],
    ['1x'],
    ['9'.repeat(50)],
  ])('ignores %j', (text) => {
    expect(parseRetryAfter(text, now)).toBeUndefined();
  });
});

describe('retryHintOf', () => {
  it.each<[string, unknown, number | 'never' | undefined]>([
    ['Headers', new Headers({ 'Retry-After': '2' }), 2_000],
    ['a plain object', { 'retry-after': '2' }, 2_000],
    ['a plain object in capitals', { 'Retry-After': '2' }, 2_000],
    ['a list', { 'retry-after': ['1', '3'] }, 3_000],
    ['a number', { 'retry-after': 4 }, 4_000],
    ['milliseconds before seconds', { 'retry-after-ms': '250', 'retry-after': '9' }, 250],
    ['a reset in seconds', { 'ratelimit-reset': '7', 'ratelimit-remaining': '0' }, 7_000],
    ['a reset with spaces around', { 'ratelimit-reset': ' 7 ', 'ratelimit-remaining': ' 0 ' }, 7_000],
    ['a reset without a word of the quota', { 'x-ratelimit-reset': '7' }, 7_000],
    ['the longest reset as a time', { 'x-ratelimit-reset': '1704067199' }, 1_704_067_199_000],
    ['the first reset as an instant in seconds', { 'x-ratelimit-reset': '1704067200' }, 0],
    ['the last one', { 'x-ratelimit-reset': '1704067199999' }, 1_704_067_199_999_000 - now],
    ['the first reset as an instant in milliseconds', { 'x-ratelimit-reset': '1704067200000' }, 0],
    ['a reset with a quota of 0.0', { 'x-ratelimit-reset': '7', 'x-ratelimit-remaining': '0.0' }, 7_000],
    ['a reset with half a request left', { 'x-ratelimit-reset': '7', 'x-ratelimit-remaining': '0.5' }, undefined],
    ['a reset in the spelling with another dash', { 'x-rate-limit-reset': String(now / 1_000 + 5) }, 5_000],
    ['a reset while quota is left', { 'ratelimit-reset': '7', 'ratelimit-remaining': '3' }, undefined],
    ['a reset as an instant in seconds', { 'x-ratelimit-reset': String(now / 1_000 + 5) }, 5_000],
    ['a reset as an instant in milliseconds', { 'x-ratelimit-reset': String(now + 5_000) }, 5_000],
    ['a reset in the past', { 'x-ratelimit-reset': String(now / 1_000 - 5) }, 0],
    ['a date by the clock of its sender, which is ahead', { 'retry-after': at(305), date: at(300) }, 5_000],
    ['a date by the clock of its sender, which is behind', { 'retry-after': at(-295), date: at(-300) }, 5_000],
    ['a date of a response from a cache', { 'retry-after': at(5), date: at(-300), age: '300' }, 5_000],
    ['a reset by the clock of its sender', { 'x-ratelimit-reset': `${now / 1_000 + 305}`, date: at(300) }, 5_000],
    ['a date by our clock, where the other one is no date', { 'retry-after': at(5), date: 'today' }, 5_000],
    ['a date by our clock, whatever the age', { 'retry-after': at(5), age: '300' }, 5_000],
    ['a date, whatever is no age', { 'retry-after': at(5), date: at(0), age: 'old' }, 5_000],
    ['a time, whatever the date', { 'retry-after': '5', date: at(300) }, 5_000],
    ['a pushback', { 'grpc-retry-pushback-ms': '15' }, 15],
    ['the longest pushback', { 'grpc-retry-pushback-ms': '999999999' }, 999_999_999],
    ['a longer pushback', { 'grpc-retry-pushback-ms': '1000000000' }, 'never'],
    ['a pushback with more behind it', { 'grpc-retry-pushback-ms': '15x' }, 'never'],
    ['a pushback with more before it', { 'grpc-retry-pushback-ms': 'x15' }, 'never'],
    ['the first ten of a list', { 'retry-after': [...new Array(10).fill('1'), '9'] }, 1_000],
    ['the hundredth character', { 'retry-after': `${' '.repeat(99)}2` }, 2_000],
    ['the hundredth character of a list', { 'retry-after': ['1', `${' '.repeat(96)}2`] }, 2_000],
    ['no header with a name of the same length', { 'content-md5': '2' }, undefined],
    ['no more than the first hundred characters', { 'retry-after': `${' '.repeat(101)}2` }, undefined],
    ['no more of a list, either', { 'retry-after': ['1', `${' '.repeat(101)}9`] }, undefined],
    ['what is neither text nor number', { 'retry-after': true }, undefined],
    ['a negative pushback', { 'grpc-retry-pushback-ms': '-1' }, 'never'],
    ['a pushback that cannot be read', { 'grpc-retry-pushback-ms': 'no' }, 'never'],
    ['nothing', {}, undefined],
    ['no headers', undefined, undefined],
  ])('reads %s', (_, headers, hint) => {
    expect(withHeaders(headers)).toBe(hint);
  });

  it('checks the error, its headers and its response', () => {
    for (const retryAfterMs of [5, 0]) {
      expect(retryHintOf({ ok: false, error: { retryAfterMs, headers: { 'retry-after': '9' } } }, now)).toBe(
        retryAfterMs,
      );
    }
    expect(
      retryHintOf(
        {
          ok: false,
          error: Object.assign(new Error('429'), { response: { headers: new Headers({ 'retry-after': '3' }) } }),
        },
        now,
      ),
    ).toBe(3_000);
    const inResponse = { $response: { statusCode: 503, headers: { 'retry-after': '4' } } };
    expect(retryHintOf({ ok: false, error: inResponse }, now)).toBe(4_000);
    for (const error of [
      undefined,
      null,
      'text',
      5,
      new Error('x'),
      { retryAfterMs: '5' },
      { retryAfterMs: -1 },
      { response: null },
      { headers: null },
      { headers: 'retry-after: 5' },
      { retryAfterMs: Number.NaN },
    ]) {
      expect(retryHintOf({ ok: false, error }, now)).toBeUndefined();
    }
  });

  it.each<[readonly string[], number | 'never' | undefined]>([
    [['15'], 15],
    [['-1'], 'never'],
    [['15', '20'], 'never'],
    [[], undefined],
  ])('reads the pushback %j from the metadata of gRPC', (pushback, hint) => {
    // `Metadata` of grpc-js answers an empty list for what is not there.
    const metadata = { get: (name: string) => (name === 'grpc-retry-pushback-ms' ? pushback : []) };
    expect(retryHintOf({ ok: false, error: Object.assign(new Error('14'), { metadata }) }, now)).toBe(hint);
  });

  it('treats a carrier that throws as one without a hint', () => {
    const hostile = new Proxy(
      {},
      {
        get() {
          throw new Error('trap');
        },
      },
    );
    expect(retryHintOf({ ok: false, error: hostile }, now)).toBeUndefined();
    expect(withHeaders(hostile)).toBeUndefined();
  });

  it('takes no time over ten megabytes', () => {
    const huge = '1'.repeat(10_000_000);
    for (const name of ['retry-after', 'retry-after-ms', 'ratelimit-reset', 'x-ratelimit-reset']) {
      expect(withHeaders({ [name]: huge })).toBeUndefined();
    }
    expect(withHeaders({ 'retry-after': `${','.repeat(10_000_000)}` })).toBeUndefined();
  });

  it(`never throws and never returns a negative wait, whatever the headers hold (${fuzzRuns} inputs)`, () => {
    const header = fc.oneof(
      fc.string(),
      fc.string({ unit: 'binary' }),
      fc.stringMatching(/^-?[0-9]{1,30}(\.[0-9]{1,5})?$/),
      fc.stringMatching(/^[0-9]{1,9}( ?, ?[0-9]{1,30}){1,4}$/),
      fc.stringMatching(/^[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT$/),
      fc.stringMatching(/^[A-Z][a-z]{5,8}, [0-9]{2}-(Jan|Feb|Nov)-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT$/),
      fc.stringMatching(/^[A-Z][a-z]{2} (Jan|Feb|Nov) [ 0-9][0-9] [0-9]{2}:[0-9]{2}:[0-9]{2} [0-9]{4}$/),
      fc.array(fc.string(), { maxLength: 3 }),
    );
    const any = fc.oneof({ weight: 19, arbitrary: header }, { weight: 1, arbitrary: fc.anything({ maxDepth: 1 }) });
    const names = [
      'retry-after',
      'Retry-After',
      'retry-after-ms',
      'ratelimit-reset',
      'ratelimit-remaining',
      'x-ratelimit-reset',
      'grpc-retry-pushback-ms',
      'date',
      'age',
    ];
    const hostile = fc.property(fc.dictionary(fc.constantFrom(...names), any, { maxKeys: 4 }), (headers) => {
      const hint = withHeaders(headers);
      return hint === undefined || hint === 'never' || hint >= 0;
    });
    fc.assert(hostile, { seed, numRuns: fuzzRuns });
  }, 900_000);

  it(`reads every date in each of its three forms (${fuzzRuns} dates)`, () => {
    const days = ['Sunday', 'Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday'];
    const read = fc.property(fc.integer({ min: 0, max: Date.UTC(9999, 11, 31) / 1_000 }), (seconds) => {
      const date = new Date(seconds * 1_000);
      const fixdate = date.toUTCString();
      const [, day = '', month = '', year = '', time = ''] = fixdate.split(' ');
      const asctime = `${fixdate.slice(0, 3)} ${month} ${day.replace(/^0/, ' ')} ${time} ${year}`;
      const rfc850 = `${days[date.getUTCDay()]}, ${day}-${month}-${year.slice(2)} ${time} GMT`;
      const isNear = date.getUTCFullYear() > 1976 && date.getUTCFullYear() <= 2076;
      return (
        parseHttpDate(fixdate, now) === date.getTime() &&
        parseHttpDate(asctime, now) === date.getTime() &&
        (!isNear || parseHttpDate(rfc850, now) === date.getTime())
      );
    });
    fc.assert(read, { seed, numRuns: fuzzRuns });
  }, 900_000);
});
