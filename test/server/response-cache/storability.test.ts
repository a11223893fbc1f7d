import { describe, expect, it } from 'vitest';
import { storableOf } from '../../../src/server/response-cache/storability.ts';

const options = { ttl: 60_000, staleWhileRevalidate: 5_000, staleIfError: 7_000 };
const nowMs = Date.parse('Mon, 30 Nov 2026 03:00:00.900 GMT');
const of = (headers: Readonly<Record<string, string>>, { status = 200, isCredentialed = false } = {}) =>
  storableOf({ status, statusMessage: '', headers: Object.entries(headers).flat() }, isCredentialed, options, nowMs);
/** Fresh, then shown while it is made anew, then in place of a failure, in seconds. */
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
  ])('keeps %s', (_, headers, seconds) => {
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
  ])('does not keep %s', (_, status, headers) => {
    expect(of({ ...control('max-age=60'), ...headers } as Record<string, string>, { status })).toBeUndefined();
  });
});
