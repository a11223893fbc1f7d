/**
 * Key: identifies the requests that may share a response.
 *
 * Promise: nothing that commonly affects an answer is left out: protocol and host as the framework sees them, path and query as they were sent, the
 * headers in which proxies pass another address, credentials, and everything that `Vary` lists.
 * After: RFC 9111 sections 4 and 4.1; Kettle, "Practical Web Cache Poisoning" (2018), for what caches forgot.
 */
import type { IncomingHttpHeaders, IncomingMessage } from 'node:http';
import { announcesBody } from '../idempotency/body.js';

/** Headers that frameworks and handlers use as the address of a request, though few of them list these in `Vary`. */
const addressHeaders = [
  ...['host', 'x-forwarded-host', 'x-forwarded-proto', 'x-forwarded-port', 'x-forwarded-prefix', 'x-forwarded-scheme'],
  ...['x-forwarded-server', 'x-forwarded-ssl', 'x-original-host', 'x-original-url', 'x-rewrite-url', 'x-host'],
] as const;
/** A request with one of these headers differs from what its method says, or wants only a part. */
const passingHeaders = [
  ...['range', 'if-range', 'if-match', 'if-unmodified-since', 'upgrade'],
  ...['x-http-method-override', 'x-http-method', 'x-method-override'],
] as const;
/** The engine accepts 1,024 characters, and the variant is appended. */
const longestPlainKey = 900;

/** Whether a cache may answer the request. */
export function isCacheable(request: IncomingMessage): boolean {
  const { method, headers } = request;
  if (method !== 'GET' && method !== 'HEAD') return false;
  for (const name of passingHeaders) if (headers[name] !== undefined) return false;
  // The body of a GET has no meaning, but some handlers read it.
  if (announcesBody(request)) return false;
  // A client that forbids storing gets its request handled.
  return headers['cache-control'] === undefined || !/(?:^|[\s,])no-store(?:$|[\s,])/i.test(headers['cache-control']);
}

/** Whether the request identifies its sender. */
export function isCredentialed(headers: IncomingHttpHeaders): boolean {
  return headers.authorization !== undefined || headers.cookie !== undefined;
}

/** Whether a request may change what other clients get. RFC 9110, section 9.2.1. */
export function isUnsafe({ method }: IncomingMessage): boolean {
  return method !== 'GET' && method !== 'HEAD' && method !== 'OPTIONS' && method !== 'TRACE';
}

/** The tag of entries under keys other than the first, derived from the first key that requests without credentials get. */
export function addressTag(root: string): string {
  // Enough tags that one change invalidates few other entries, and few enough that a store can hold each of them.
  return `uri ${digest(root).slice(0, 2)}`;
}

/** The key of a request, without the part that `Vary` adds. */
export function rootKey(
  headers: IncomingHttpHeaders,
  protocol: string,
  own: string | undefined,
  url: string,
  isCredentialed: boolean,
): string {
  const parts: (string | number)[] = [protocol, own ?? url, isCredentialed ? 1 : 0, own === undefined ? 0 : 1];
  for (const [index, name] of addressHeaders.entries()) {
    // HTTP/2 has another name for the host; a refresh uses the usual name.
    const value = headers[name] ?? (name === 'host' ? headers[':authority'] : undefined);
    if (value !== undefined) parts.push(index, String(value));
  }
  // JSON also separates what a store could not: half a surrogate pair has no UTF-8 encoding.
  const text = JSON.stringify(parts);
  return text.length <= longestPlainKey ? text : `#${digest(text)}`;
}

/** Identifies the values of the request headers that a response depends on. Requests that may share it get the same. */
export function variantOf(vary: readonly string[], headers: IncomingHttpHeaders): string {
  if (vary.length === 0) return '';
  // `Object.hasOwn`, because a name such as "constructor" is not a header.
  return digest(JSON.stringify(vary.map((name) => [name, Object.hasOwn(headers, name) ? headers[name] : null])));
}

function digest(text: string): string {
  return process.getBuiltinModule('node:crypto').createHash('sha256').update(text).digest('base64url');
}
