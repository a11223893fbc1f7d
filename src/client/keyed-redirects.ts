/**
 * Keyed redirects: follows the redirects of a request with an idempotency key.
 *
 * Promise: the key is sent along for 307 and 308 within its origin, and never to another origin. Plain `fetch` would send it there.
 * After: WHATWG Fetch, 4.4, HTTP-redirect fetch.
 */
import { discardBody } from './discard-body.js';
import { isForm } from './form.js';
import { noteMistake } from './handles.js';

/** The signature of `fetch`. */
export type Fetch = (input: string | URL | Request, init?: RequestInit) => Promise<Response>;

/** The same limit as that of `fetch`. */
const mostRedirects = 20;
/** The headers that `fetch`, too, removes before it goes to another origin. */
const credentials = ['authorization', 'cookie', 'host', 'proxy-authorization'];
/** Headers that describe a body, for requests that have dropped theirs. */
const bodyHeaders = ['content-encoding', 'content-language', 'content-location', 'content-type', 'content-length'];

/**
 * Sends a request and follows its redirects. `init` holds the method and the headers; its body is sent again if the method stays the same. `leave` is
 * called before the key is left behind.
 */
export async function sendKeyed(
  send: Fetch,
  input: string | URL | Request,
  url: URL,
  init: RequestInit & { readonly method: string; readonly headers: Headers },
  keyHeader: string,
  leave: () => void,
): Promise<Response> {
  const mode = init.mode ?? (input as Partial<Request>).mode;
  let response = await send(input, { ...init, redirect: 'manual' });
  let at = url;
  let { method, headers, body } = init;
  body ??= bodyOf(input);
  for (let count = 0; ; count++) {
    const next = targetOf(response, at);
    if (next === undefined) return response;
    if (count === mostRedirects) throw failed(`more than ${mostRedirects} redirects`, response);
    if (next.username !== '' || next.password !== '') throw failed('the location has credentials', response);
    // As `fetch`, which does not know where a request that it gets anew came from.
    if (mode === 'same-origin' && next.origin !== at.origin) throw failed('the mode is "same-origin"', response);
    const isKept = response.status === 307 || response.status === 308;
    headers = new Headers(headers);
    if (!isKept && (response.status === 303 ? method !== 'GET' && method !== 'HEAD' : method === 'POST')) {
      method = 'GET';
      body = null;
      for (const name of [...bodyHeaders, keyHeader]) headers.delete(name);
      // A body that has been read would be sent empty, and the service would take that for the request with this key.
    } else if (!canBeSentAgain(body)) throw failed('a stream or an iterable cannot be sent again as a body', response);
    discardBody(response);
    if (next.origin !== at.origin) {
      if (headers.has(keyHeader)) leave();
      for (const name of [...credentials, keyHeader]) headers.delete(name);
    }
    at = next;
    response = await send(at.href, { ...init, method, headers, body: body ?? null, redirect: 'manual' });
  }
}

/** Whether a body can be sent again. A stream cannot: it is gone once it is read, and a copy of it would have no size limit. */
export function canBeSentAgain(body: unknown): boolean {
  if (typeof body !== 'object' || body === null) return true;
  return (
    ArrayBuffer.isView(body) ||
    isForm(body) ||
    [ArrayBuffer, Blob, URLSearchParams].some((kind) => body instanceof kind)
  );
}

function bodyOf(input: string | URL | Request): RequestInit['body'] {
  return typeof input === 'object' && 'body' in input ? (input.body as ReadableStream | null) : null;
}

function targetOf(response: Response, from: URL): URL | undefined {
  if (![301, 302, 303, 307, 308].includes(response.status)) return undefined;
  const given = response.headers.get('location');
  const location = given === null ? null : ofBytes(given);
  if (location === null || !URL.canParse(location, from.href)) return undefined;
  const next = new URL(location, from.href);
  return next.protocol === 'http:' || next.protocol === 'https:' ? next : undefined;
}

/** A header has one character per byte. An address whose bytes are not ASCII is read as UTF-8, as `fetch` does. */
function ofBytes(text: string): string {
  return new TextDecoder().decode(Uint8Array.from(text, (character) => character.charCodeAt(0)));
}

function failed(why: string, response: Response): TypeError {
  discardBody(response);
  const error = new TypeError('fetch failed', { cause: new Error(why) });
  noteMistake(error);
  return error;
}
