import { Agent, request, fetch as undiciFetch } from 'undici';
import { describe, expect, it } from 'vitest';
import { breakerHandles, handles, isLostConnection } from '../../src/client/handles.js';
import { httpServer } from './support/servers.ts';

const answer = (status: number, headers: Record<string, string> = {}) => ({
  ok: true as const,
  value: { status, headers },
});
const fault = (code: string, more = {}) => ({
  ok: false as const,
  error: new TypeError('fetch failed', { cause: Object.assign(new Error(code), { code, ...more }) }),
});

describe('handles', () => {
  it.each([408, 425, 429, 500, 502, 503, 504, 520])('counts %d as worth another attempt', (status) => {
    expect(handles(answer(status))).toBe(true);
  });

  it.each([200, 204, 304, 400, 401, 404, 409, 422, 501, 505])('counts %d as a final answer', (status) => {
    expect(handles(answer(status))).toBe(false);
  });

  it.each([403, 409])('counts a %d that names a time as worth another attempt', (status) => {
    expect(handles(answer(status, { 'retry-after': '1' }))).toBe(true);
  });

  it('counts a 403 or 409 whose headers cannot be read as no reason for another attempt', () => {
    const get = () => {
      throw new Error('released');
    };
    for (const status of [403, 409]) expect(handles(answer(status, { get } as never))).toBe(false);
  });

  it('reads the responses of undici, and no other value', () => {
    expect(handles({ ok: true, value: { statusCode: 503, headers: {} } })).toBe(true);
    const [none, text] = [
      { status: 503, headers: null },
      { status: 503, headers: 'text' },
    ];
    for (const value of [undefined, null, 503, '503', {}, { status: '503', headers: {} }, { status: 503 }, none, text])
      expect(handles({ ok: true, value })).toBe(false);
  });
});

describe('breakerHandles', () => {
  it.each([429, 500, 501, 503])('counts %d as a failure', (status) => {
    expect(breakerHandles(answer(status))).toBe(true);
  });

  it.each([200, 404, 408, 409])('counts %d as a success', (status) => {
    expect(breakerHandles(answer(status))).toBe(false);
  });

  it('counts a 403 as a success, with a time and without', () => {
    expect([answer(403), answer(403, { 'retry-after': '60' })].map(breakerHandles)).toEqual([false, false]);
  });

  it.each([[{ 'retry-after': '5' }], [{ ratelimit: '"a";r=0;t=5' }], [{ 'x-ratelimit-reset': '5' }]])(
    'counts a 429 that names its time by %j as a success',
    (headers) => {
      expect(breakerHandles(answer(429, headers))).toBe(false);
    },
  );
});

describe.each([
  ['handles', handles],
  ['breakerHandles', breakerHandles],
])('%s', (_, predicate) => {
  it.each(['ECONNREFUSED', 'ECONNRESET', 'ENOTFOUND', 'UND_ERR_SOCKET', 'UND_ERR_HEADERS_TIMEOUT'])(
    'counts %s as a failure',
    (code) => {
      expect(predicate(fault(code))).toBe(true);
      expect(predicate({ ok: false, error: Object.assign(new Error(code), { code }) })).toBe(true);
    },
  );

  it.each(['ERR_INVALID_URL', 'UND_ERR_INVALID_ARG', 'CERT_HAS_EXPIRED', 'SELF_SIGNED_CERT_IN_CHAIN'])(
    'ignores %s, which says nothing about the service',
    (code) => {
      expect(predicate(fault(code))).toBe(false);
    },
  );

  it('counts anything else that was thrown as a failure', () => {
    for (const error of [undefined, null, 'x', new Error('x'), new TypeError('x')])
      expect(predicate({ ok: false, error })).toBe(true);
  });
});

describe('an error that carries the response', () => {
  const carriers: readonly [string, (status: number, headers: Record<string, string>) => object][] = [
    ['as axios does', (status, headers) => ({ code: 'ERR_BAD_REQUEST', status, response: { status, headers } })],
    ['as got does', (statusCode, headers) => ({ response: { statusCode, headers } })],
    ['as ky does', (status, headers) => ({ response: new Response(null, { status, headers }) })],
    ['as the AWS SDK does', (statusCode, headers) => ({ $response: { statusCode, headers } })],
    ['in itself, as undici does', (statusCode, headers) => ({ statusCode, headers })],
    ['in itself, as many SDKs do', (status, headers) => ({ status, headers: new Headers(headers) })],
  ];

  describe.each(carriers)('%s', (_, carrier) => {
    const judged = (status: number, headers: Record<string, string> = {}) => {
      const outcome = {
        ok: false,
        error: Object.assign(new Error(`status ${status}`), carrier(status, headers)),
      } as const;
      return { isWorthAnother: handles(outcome), isUnhealthy: breakerHandles(outcome) };
    };

    it.each([300, 304, 400, 401, 404, 409, 422])('is a final answer of a healthy service for a %d', (status) => {
      expect(judged(status)).toEqual({ isWorthAnother: false, isUnhealthy: false });
    });

    it.each([500, 503, 429])('is worth another attempt and means an unhealthy service for a %d', (status) => {
      expect(judged(status)).toEqual({ isWorthAnother: true, isUnhealthy: true });
    });

    it.each([429, 409, 403])('is worth another attempt at a healthy service for a %d that names a time', (status) => {
      expect(judged(status, { 'retry-after': '1' })).toEqual({ isWorthAnother: true, isUnhealthy: false });
    });
  });

  it('counts as a failure where the response was good, such as one whose body broke off', () => {
    const outcome = { ok: false, error: { response: { statusCode: 200, headers: {} } } } as const;
    expect([handles(outcome), breakerHandles(outcome)]).toEqual([true, true]);
  });

  it('needs no headers', () => {
    for (const error of [
      { status: 404 },
      { statusCode: 404 },
      { response: { status: 404 } },
      { response: 'Not Found', status: 404 },
      { status: 409, headers: null },
    ])
      expect(handles({ ok: false, error })).toBe(false);
  });

  it.each([
    ['an exit code', { status: 1 }],
    ['a text', { status: '404' }],
    ['a response that is none', { response: null }],
    [
      'an error that cannot be looked at',
      {
        get response() {
          throw new Error('revoked');
        },
      },
    ],
  ])('counts %s as a failure like any other', (_, error) => {
    expect([handles({ ok: false, error }), breakerHandles({ ok: false, error })]).toEqual([true, true]);
  });
});

describe('an agent that its owner has closed', () => {
  it.each([
    ['destroyed during the request', false],
    ['closed before it', true],
  ])('is worth another attempt, and no fault of the service: %s', async (_, isClosed) => {
    const dispatcher = new Agent();
    await using server = await httpServer(() => void dispatcher.destroy());
    if (isClosed) await dispatcher.close();
    const running = [undiciFetch(server.origin, { dispatcher }), request(server.origin, { dispatcher })];
    for (const end of await Promise.allSettled(running)) {
      const outcome = { ok: false, error: end.status === 'rejected' && end.reason } as const;
      expect([handles(outcome), breakerHandles(outcome)]).toEqual([true, false]);
    }
  });
});

describe('isLostConnection', () => {
  it('distinguishes a connection that has answered before from one that never did', () => {
    expect(isLostConnection(fault('UND_ERR_SOCKET', { socket: { bytesRead: 80 } }).error)).toBe(true);
    expect(isLostConnection(fault('UND_ERR_SOCKET', { socket: { bytesRead: 0 } }).error)).toBe(false);
    expect(isLostConnection(fault('ECONNRESET').error)).toBe(true);
    expect(isLostConnection(fault('ECONNREFUSED').error)).toBe(false);
    expect(isLostConnection(undefined)).toBe(false);
  });
});
