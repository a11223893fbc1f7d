import { describe, expect, it } from 'vitest';
import {
  isDeniedHeader,
  isKeptStatus,
  joinedLines,
  keptHeaders,
  parseKey,
  problemOf,
  type Refusal,
  replayMarks,
} from '../../../src/server/idempotency/protocol.js';

const quoted = (key: string) => `"${key.replace(/["\\]/g, '\\$&')}"`;

describe('the header of a key', () => {
  it.each([
    ['k', 'k'],
    ['  k\t', 'k'],
    ['"k"', 'k'],
    [' "k" ', 'k'],
    ['"k";a=1;b', 'k'],
    ['a b, c', 'a b, c'],
    ['k"', 'k"'],
    ['"a\\"b\\\\c"', 'a"b\\c'],
    ['!~', '!~'],
    ['k'.repeat(255), 'k'.repeat(255)],
    [quoted('k'.repeat(255)), 'k'.repeat(255)],
    [quoted('"'.repeat(255)), '"'.repeat(255)],
    [`"k";a="${'x'.repeat(702)}"`, 'k'],
  ])('%j is the key %j', (value, key) => expect(parseKey([value])).toEqual({ kind: 'key', key }));

  it.each([
    ['', 'it is empty'],
    ['  ', 'it is empty'],
    ['""', 'it is empty'],
    ['"k', 'it begins like a structured string, which it is not'],
    ['"k" "l"', 'it begins like a structured string, which it is not'],
    ['"ä"', 'it begins like a structured string, which it is not'],
    ['k'.repeat(256), 'it is longer than 255 characters'],
    [quoted('k'.repeat(256)), 'it is longer than 255 characters'],
    [`"k";a="${'x'.repeat(704)}"`, 'it is longer than 255 characters'],
    ['ä', 'it has characters besides printable ASCII, or blanks around it'],
    ['aä', 'it has characters besides printable ASCII, or blanks around it'],
    ['äa', 'it has characters besides printable ASCII, or blanks around it'],
    ['a\x7fb', 'it has characters besides printable ASCII, or blanks around it'],
    ['" k"', 'it has characters besides printable ASCII, or blanks around it'],
    ['"k "', 'it has characters besides printable ASCII, or blanks around it'],
    ['" "', 'it has characters besides printable ASCII, or blanks around it'],
  ])('%j is invalid: %s', (value, reason) => expect(parseKey([value])).toEqual({ kind: 'invalid', reason }));

  it('that is missing, or sent twice, names no key', () => {
    expect(parseKey([])).toEqual({ kind: 'absent' });
    expect(parseKey(['k', 'k'])).toEqual({ kind: 'invalid', reason: 'the header is there more than once' });
  });

  it('whose lines a platform has joined is split, except within quotes', () => {
    expect([null, undefined, 'k', 'k, l', 'k,l', 'k,', '"k, l"', 'k"'].map((one) => joinedLines(one))).toEqual([
      ...[[], [], ['k'], ['k', 'l'], ['k,l'], ['k', ''], ['"k, l"'], ['k"']],
    ]);
    expect(joinedLines(['k, l', 'm'])).toEqual(['k, l', 'm']);
  });
});

describe('an answer that is kept', () => {
  it('has a final status, not one that another attempt may change', () => {
    const kept = [200, 204, 299, 301, 399, 400, 402, 404, 407, 409, 410, 422, 424, 426, 428, 430, 499];
    const passing = [100, 199, 401, 403, 408, 421, 425, 429, 500, 503, 599];
    expect([kept.filter((one) => !isKeptStatus(one)), passing.filter(isKeptStatus)]).toEqual([[], []]);
  });

  it('has the headers of the answer, in their order, and none of the connection, the moment or the caller', () => {
    const denied = ['set-cookie', 'date', 'connection', 'keep-alive', 'te', 'trailer', 'transfer-encoding', 'upgrade'];
    denied.push('content-length', 'vary', 'alt-svc', 'strict-transport-security', 'server-timing', 'traceparent');
    denied.push('x-request-id', 'age', 'idempotency-key', 'idempotent-replayed', 'access-control-allow-origin');
    denied.push('proxy-authenticate', 'ratelimit-policy');
    const kept = ['content-type', 'x-access-control-a', 'a-proxy-b', 'my-ratelimit-', 'location', 'etag', 'x-date'];
    expect([denied.filter((one) => !isDeniedHeader(one)), kept.filter(isDeniedHeader)]).toEqual([[], []]);
    expect(
      keptHeaders([
        ['X-B', 1],
        ['X-None', undefined],
        ['X-A', ['one', 2]],
        ['Date', 'now'],
        ['X-B', 'again'],
      ]),
    ).toEqual(['X-B', '1', 'X-A', 'one', 'X-A', '2', 'X-B', 'again']);
    expect(
      keptHeaders([
        ['X-One', 'X-Two'],
        ['X-Three', 'three'],
        ['Connection', 'Close \t, X-One ,x-three,\nx-four'],
        ['X-Four', '4'],
        ['X-Five', '5'],
      ]),
    ).toEqual(['X-Five', '5']);
  });

  it('is marked in a replay as one, for which key, and as not cacheable', () => {
    expect(replayMarks('a"b\\c')).toEqual([
      ['Idempotent-Replayed', 'true'],
      ['Idempotency-Key', '"a\\"b\\\\c"'],
      ['Cache-Control', 'no-store'],
    ]);
  });
});

describe('a refusal', () => {
  const all: readonly (readonly [Refusal, number, string, boolean, RegExp])[] = [
    [{ kind: 'missing-key' }, 400, 'Bad Request', false, /^This operation needs an Idempotency-Key header\.$/],
    [{ kind: 'invalid-key', reason: 'it is empty' }, 400, 'Bad Request', false, /is invalid: it is empty\.$/],
    [{ kind: 'body-too-large', maxBytes: 7 }, 413, 'Content Too Large', false, /a retry: at most 7 bytes\.$/],
    [{ kind: 'key-reused' }, 422, 'Unprocessable Content', false, /needs a new key\.$/],
    [{ kind: 'in-progress', retryAfterMs: 1 }, 409, 'Conflict', true, /to get its response\.$/],
    [{ kind: 'outcome-unknown' }, 409, 'Conflict', false, /will not be run again\.$/],
    [{ kind: 'result-not-stored' }, 409, 'Conflict', false, /is not available\.$/],
    [{ kind: 'store-unavailable' }, 503, 'Service Unavailable', true, /was not run\.$/],
  ];

  it.each(all)('%j is %i %s', (refusal, status, title, retryable, detail) => {
    const { kind } = refusal;
    const problem = problemOf(refusal, undefined);
    expect(problem).toMatchObject({ type: `urn:holdfast:idempotency:${kind}`, status, title, retryable });
    expect(problem.detail).toMatch(detail);
    const waits = kind === 'in-progress' || kind === 'store-unavailable' ? { 'Retry-After': '1' } : {};
    expect(problem.headers).toEqual({ 'Cache-Control': 'no-store', ...waits });
    const documented = problemOf(refusal, 'https://shop.test/keys');
    expect(documented.type).toBe(`https://shop.test/keys#${kind}`);
    expect(documented.headers).toEqual({
      ...problem.headers,
      Link: '<https://shop.test/keys>; rel="describedby"',
    });
  });

  it('says in whole seconds when to retry, rounded up', () => {
    const after = (retryAfterMs: number) => problemOf({ kind: 'in-progress', retryAfterMs }, undefined).headers;
    expect([0, 1, 1_000, 1_001, 30_000].map((ms) => after(ms)?.['Retry-After'])).toEqual(['1', '1', '1', '2', '30']);
  });
});
