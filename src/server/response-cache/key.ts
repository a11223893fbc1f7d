/**
 * Key: what requests that may share a response have in common.
 *
 * Promise: nothing that commonly changes an answer is left out: protocol and host as the framework sees them, the path and query as they
 * were sent, the headers by which proxies name another address, credentials, and all that `Vary` lists.
 * After: RFC 9111 sections 4 and 4.1; Kettle, "Practical Web Cache Poisoning" (2018), for what caches forgot.
 */
import type { IncomingHttpHeaders, IncomingMessage } from 'node:http';
import { announcesBody } from '../idempotency/body.js';

/** Frameworks and handlers take these for the address of a request, though few say so in `Vary`. */
const addressHeaders = [
  ...['host', 'x-forwarded-host', 'x-forwarded-proto', 'x-forwarded-port', 'x-forwarded-prefix', 'x-forwarded-scheme'],
  ...['x-forwarded-server', 'x-forwarded-ssl', 'x-original-host', 'x-original-url', 'x-rewrite-url', 'x-host'],
] as const;
/** A request with one of these is not what its method says, or wants a part. */
const passingHeaders = [
  ...['range', 'if-range', 'if-match', 'if-unmodified-since', 'upgrade'],
  ...['x-http-method-override', 'x-http-method', 'x-method-override'],
] as const;
/** The engine takes 1,024 characters; the variant comes behind. */
const longestPlainKey = 900;

/** Whether a request is one that a cache may answer. */
export function isCacheable(request: IncomingMessage): boolean {
  const { method, headers } = request;
  if (method !== 'GET' && method !== 'HEAD') return false;
  for (const name of passingHeaders) if (headers[name] !== undefined) return false;
  // The body of a GET has no meaning, and some handlers read it.
  if (announcesBody(request)) return false;
  // Who does not want his request in a store gets it handled.
  return headers['cache-control'] === undefined || !/(?:^|[\s,])no-store(?:$|[\s,])/i.test(headers['cache-control']);
}

/** Whether the request says who sends it. */
export function isCredentialed(headers: IncomingHttpHeaders): boolean {
  return headers.authorization !== undefined || headers.cookie !== undefined;
}

/** Whether a request may change what others are given. RFC 9110, section 9.2.1. */
export function isUnsafe({ method }: IncomingMessage): boolean {
  return method !== 'GET' && method !== 'HEAD' && method !== 'OPTIONS' && method !== 'TRACE';
}

/** The tag of what lies under other keys than the first, by the first key of requests without credentials. */
export function addressTag(root: string): string {
  // So many that one change makes few others void, and so few that a store can hold one of each.
  return `uri ${digest(root).slice(0, 2)}`;
}

/** The key of a request, without what `Vary` adds. */
export function rootKey(
  headers: IncomingHttpHeaders,
  protocol: string,
  own: string | undefined,
  url: string,
  isCredentialed: boolean,
): string {
  const parts: (string | number)[] = [protocol, own ?? url, isCredentialed ? 1 : 0, own === undefined ? 0 : 1];
  for (const [index, name] of addressHeaders.entries()) {
    // With HTTP/2 the host has another name, and a refresh has the usual one.
    const value = headers[name] ?? (name === 'host' ? headers[':authority'] : undefined);
    if (value !== undefined) parts.push(index, String(value));
  }
  // Also keeps apart what a store could not: half a surrogate pair has no UTF-8.
  const text = JSON.stringify(parts);
  return text.length <= longestPlainKey ? text : `#${digest(text)}`;
}

/** What the headers say that a response depends on. The same for requests that may share it. */
export function variantOf(vary: readonly string[], headers: IncomingHttpHeaders): string {
  if (vary.length === 0) return '';
  // A name such as "constructor" is no header.
  return digest(JSON.stringify(vary.map((name) => [name, Object.hasOwn(headers, name) ? headers[name] : null])));
}

function digest(text: string): string {
  return process.getBuiltinModule('node:crypto').createHash('sha256').update(text).digest('base64url');
}
