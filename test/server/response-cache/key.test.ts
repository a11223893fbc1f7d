import { createHash } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { describe, expect, it } from 'vitest';
import {
  addressTag,
  isCacheable,
  isCredentialed,
  isUnsafe,
  rootKey,
  variantOf,
} from '../../../src/server/response-cache/key.js';

const sha256 = (text: string) => createHash('sha256').update(text).digest('base64url');
const request = (method: string, headers: Record<string, string> = {}) =>
  ({ method, headers, httpVersionMajor: 1 }) as unknown as IncomingMessage;
const get = (headers: Record<string, string>) => isCacheable(request('GET', headers));

describe('a request that a cache may answer', () => {
  it('is a GET or HEAD for the complete resource', () => {
    const methods = ['GET', 'HEAD', 'POST', 'OPTIONS', 'QUERY', 'get'];
    expect(methods.filter((method) => isCacheable(request(method)))).toEqual(['GET', 'HEAD']);
    const passing = ['range', 'if-range', 'if-match', 'if-unmodified-since', 'upgrade'];
    passing.push('x-http-method-override', 'x-http-method', 'x-method-override');
    expect(passing.filter((name) => get({ [name]: 'x' }))).toEqual([]);
    expect([get({ 'content-length': '1' }), get({ 'transfer-encoding': 'chunked' })]).toEqual([false, false]);
    expect(get({ 'if-none-match': '"a"', accept: '*/*', 'content-length': '0' })).toBe(true);
  });

  it('does not forbid storing', () => {
    for (const value of [
      'no-store',
      'No-Store',
      'max-age=0, no-store',
      'no-store,max-age=0',
      'a,no-store,b',
      'a no-store b',
    ])
      expect([value, get({ 'cache-control': value })]).toEqual([value, false]);
    for (const value of ['no-cache', 'max-age=0', 'x-no-store', 'no-stores', 'no-store=1', ''])
      expect([value, get({ 'cache-control': value })]).toEqual([value, true]);
  });

  it('identifies its sender by either of two headers', () => {
    expect([{}, { cookie: 'a=1' }, { authorization: 'x' }].map(isCredentialed)).toEqual([false, true, true]);
  });
});

describe('a request that may change what others get', () => {
  it('has any method that is not known to be safe', () => {
    const methods = ['GET', 'HEAD', 'OPTIONS', 'TRACE', 'POST', 'PUT', 'PATCH', 'DELETE', 'PROPPATCH'];
    expect(methods.filter((method) => isUnsafe(request(method)))).toEqual(methods.slice(4));
  });
});

describe('the key of a request', () => {
  const key = (headers: Record<string, string>, more: { own?: string; url?: string; credentials?: boolean } = {}) =>
    rootKey(headers, 'https shop.test', more.own, more.url ?? '/a', more.credentials ?? false);

  it('differs for everything that commonly changes an answer', () => {
    const names = ['host', 'x-forwarded-host', 'x-forwarded-proto', 'x-forwarded-port', 'x-forwarded-prefix'];
    names.push('x-forwarded-scheme', 'x-forwarded-server', 'x-forwarded-ssl', 'x-original-host', 'x-original-url');
    names.push('x-rewrite-url', 'x-host');
    const keys = [
      key({}),
      key({}, { url: '/b' }),
      key({}, { credentials: true }),
      key({}, { own: '/a' }),
      key({}, { own: '/b' }),
      ...names.flatMap((name) => [key({ [name]: 'x' }), key({ [name]: 'y' })]),
      rootKey({}, 'http shop.test', undefined, '/a', false),
    ];
    expect(new Set(keys).size).toBe(keys.length);
    expect(key({ 'x-other': 'x' })).toBe(key({}));
    expect(key({}, { own: 'mine', url: '/b' })).toBe(key({}, { own: 'mine' }));
  });

  it('uses the authority of HTTP/2 as the host', () => {
    expect(key({ ':authority': 'x' })).toBe(key({ host: 'x' }));
    expect(key({ ':authority': 'x', host: 'y' })).toBe(key({ host: 'y' }));
  });

  it('is readable up to 900 characters, and a hash beyond', () => {
    const rest = key({}, { url: '' }).length;
    const at = (length: number) => key({}, { url: 'x'.repeat(length - rest) });
    expect(at(900)).toBe(`["https shop.test","${'x'.repeat(900 - rest)}",0,0]`);
    const long = `["https shop.test","${'x'.repeat(901 - rest)}",0,0]`;
    expect(at(901)).toBe(`#${sha256(long)}`);
  });

  it('has a tag that it shares with few others', () => {
    expect(addressTag('a')).toBe(`uri ${sha256('a').slice(0, 2)}`);
  });
});

describe('the variant of a request', () => {
  it('identifies the values of the headers that a response depends on', () => {
    const headers = { accept: 'text/html', 'x-a': '1' };
    expect(variantOf([], headers)).toBe('');
    expect(variantOf(['accept', 'x-b'], headers)).toBe(sha256('[["accept","text/html"],["x-b",null]]'));
    expect(variantOf(['constructor'], headers)).toBe(sha256('[["constructor",null]]'));
    expect(variantOf(['accept'], headers)).not.toBe(variantOf(['accept'], { accept: 'text/plain' }));
  });
});
