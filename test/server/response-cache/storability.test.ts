import { describe, expect, it } from 'vitest';
import { fieldsOf, isFailure, storableOf } from '../../../src/server/response-cache/storability.ts';

const options = { ttl: 60_000, staleWhileRevalidate: 5_000, staleIfError: 7_000 };
const nowMs = Date.parse('Mon, 30 Nov 2026 03:00:00.900 GMT');
const of = (headers: Readonly<Record<string, string>>, { status = 200, isCredentialed = false } = {}) =>
  storableOf({ status, statusMessage: '', headers: Object.entries(headers).flat() }, isCredentialed, options, nowMs);
/** How long it is fresh, then shown while it is refreshed, then used in place of a failure, in seconds. */
const secondsOf = (headers: Readonly<Record<string, string>>) => {
  const lifetime = of(headers)?.lifetime;
  return lifetime && [lifetime.ttl, lifetime.staleWhileRevalidate, lifetime.staleIfError].map((ms) => ms / 1_000);
};
const control = (value: string) => ({ 'Cache-Control': value });

describe('storability', () => {
  it.each([
    ['what says nothing as the options say', {}, [60, 5, 7]],
    ['what it says itself', control('max-age=9, stale-while-revalidate=2, stale-if-error=3'), [9, 2, 3]],
    ['less its age', { ...control('max-age=9'), Age: '4' }, [5, 5, 7]],
    [
      'less its age by its date',
      { ...control('max-age=9'), Age: '1', Date: 'Mon, 30 Nov 2026 02:59:56 GMT' },
      [5, 5, 7],
    ],
    [
      'all of it when its date is now, or ahead',
      { ...control('max-age=9'), Date: 'Mon, 30 Nov 2026 03:00:00 GMT' },
      [9, 5, 7],
    ],
    [
      'what is left until it expires',
      { Date: 'Mon, 30 Nov 2026 02:59:56 GMT', Expires: 'Mon, 30 Nov 2026 03:00:05 GMT' },
      [5, 5, 7],
    ],
    [
      'never old after must-revalidate, whatever else it says',
      control('max-age=9, must-revalidate, stale-if-error=3'),
      [9, 0, 0],
    ],
    ['never old after proxy-revalidate', control('max-age=9, proxy-revalidate'), [9, 0, 0]],
    ['never old after s-maxage', control('s-maxage=9'), [9, 0, 0]],
    ['old after s-maxage if it says so in words', control('s-maxage=9, stale-if-error=3'), [9, 0, 3]],
    [
      'what is old when it comes for what is left',
      { ...control('max-age=9, stale-while-revalidate=8'), Age: '12' },
      [0.001, 5, 4],
    ],
    ['s-maxage before max-age, in either order', control('max-age=1, s-maxage=2'), [2, 0, 0]],
  ])('stores %s', (_, headers, seconds) => {
    expect(secondsOf(headers as Record<string, string>)).toEqual(seconds);
  });

  it.each([
    ['a part by its status', 206, {}],
    ['a part by its range', 200, { 'Content-Range': 'bytes 0-1/2' }],
    ['an answer of nothing new', 304, {}],
    ['an interim answer', 103, {}],
    ['trailers', 200, { Trailer: 'x' }],
    ['what is old when it comes, and may not be shown', 200, { ...control('max-age=9'), Age: '15' }],
    ['what is old by its date', 200, { ...control('max-age=9'), Date: 'Mon, 30 Nov 2026 02:00:00 GMT' }],
  ])('does not store %s', (_, status, headers) => {
    expect(of({ ...control('max-age=60'), ...headers } as Record<string, string>, { status })).toBeUndefined();
  });

  it.each([
    ['the first word of two', control('max-age=9, max-age=1'), [9, 5, 7]],
    ['a time in quotes, or with blanks around its sign', control('MAX-AGE = "9"'), [9, 5, 7]],
    ['what quotes say as one', control('x="no-store, a=\\"private", max-age=9'), [9, 5, 7]],
    ['no longer than a clock can wait', control('max-age=99999999999'), [(2 ** 31 - 1) / 1_000, 5, 7]],
  ])('reads %s', (_, headers, seconds) => expect(secondsOf(headers)).toEqual(seconds));

  it.each(['max-age=9x', 'max-age=x9', 'max-age=-9', 'max-age=', 'max-age', 'max-age="9\\"'])(
    'counts %s as no lifetime',
    (value) => expect(of(control(`${value}, stale-while-revalidate=0`))).toBeUndefined(),
  );

  it('stores a rarely stored status only if the response states a lifetime', () => {
    const heuristic = [200, 203, 204, 300, 301, 308, 404, 405, 410, 414];
    const others = [201, 202, 205, 302, 303, 307, 400, 401, 403, 409, 418, 451];
    const keeps = (headers: Record<string, string>) => (status: number) => of(headers, { status }) !== undefined;
    expect([heuristic.filter(keeps({})), others.filter(keeps({}))]).toEqual([heuristic, []]);
    expect(others.filter(keeps(control('max-age=9')))).toEqual(others);
  });

  it('stores nothing by the options alone that is never fresh', () => {
    const head = { status: 200, statusMessage: '', headers: [] };
    expect(storableOf(head, false, { ...options, ttl: 0 }, nowMs)).toBeUndefined();
    expect(storableOf(head, false, { ...options, ttl: 1 }, nowMs)).toBeDefined();
  });

  it('depends on what Vary lists, on the origin if one is named, and on the encoding if there is one', () => {
    const varyOf = (headers: Record<string, string>) => of(headers)?.vary;
    expect(varyOf({})).toEqual([]);
    expect(varyOf({ Vary: 'B, a,, ' })).toEqual(['a', 'b']);
    expect(varyOf({ Vary: 'a', 'Access-Control-Allow-Origin': 'https://shop.test' })).toEqual(['a', 'origin']);
    expect(varyOf({ 'Access-Control-Allow-Origin': '*' })).toEqual([]);
    expect(varyOf({ 'Content-Encoding': 'gzip' })).toEqual(['accept-encoding']);
    expect(varyOf({ Vary: 'a, *' })).toBeUndefined();
    const names = (count: number) => Array.from({ length: count }, (_, index) => `x-${index}`).join();
    expect([varyOf({ Vary: names(20) })?.length, varyOf({ Vary: names(21) })]).toEqual([20, undefined]);
  });
});

describe('a status', () => {
  it('reports a failure of the handler from 500 on, and for too many requests', () => {
    expect([200, 428, 429, 430, 499, 500, 599].filter(isFailure)).toEqual([429, 500, 599]);
  });
});

describe('fields', () => {
  it('are the lines of each name, joined', () => {
    const fields = fieldsOf(['Vary', 'a', 'X', '1', 'VARY', 'b', 'vary', 'c']);
    expect([...fields]).toEqual([
      ['vary', 'a, b, c'],
      ['x', '1'],
    ]);
  });
});
