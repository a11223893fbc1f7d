/**
 * Keyed redirects: a request with an idempotency key, followed to where it is redirected.
 *
 * Promise: the key goes along over 307 and 308 within its origin and never to another one, to which `fetch` by itself would take it.
 * After: WHATWG Fetch, 4.4, HTTP-redirect fetch.
 */
import { noteMistake } from './handles.js';

/** The signature of `fetch`. */
export type Fetch = (input: string | URL | Request, init?: RequestInit) => Promise<Response>;

/** As many as `fetch` follows. */
const mostRedirects = 20;
/** What `fetch` keeps from another origin, too. */
const credentials = ['authorization', 'cookie', 'host', 'proxy-authorization'];
/** What describes a body that is gone. */
const bodyHeaders = ['content-encoding', 'content-language', 'content-location', 'content-type', 'content-length'];

/**
 * Sends and follows. `init` has the method and the headers; its body is sent again where the method stays. `leave` is called before the
 * key is left behind.
 */
export async function sendKeyed(
  send: Fetch,
  input: string | URL | Request,
  url: URL,
  init: RequestInit & { readonly method: string; readonly headers: Headers },
  keyHeader: string,
  leave: () => void,
): Promise<Response> {
  let response = await send(input, { ...init, redirect: 'manual' });
  let at = url;
  let { method, headers, body } = init;
  body ??= bodyOf(input);
  for (let count = 0; ; count++) {
    const next = targetOf(response, at);
    if (next === undefined) return response;
    if (count === mostRedirects) throw failed(`more than ${mostRedirects} redirects`, response);
    if (next.username !== '' || next.password !== '') throw failed('the location has credentials', response);
    const isKept = response.status === 307 || response.status === 308;
    headers = new Headers(headers);
    if (!isKept && (response.status === 303 ? method !== 'GET' && method !== 'HEAD' : method === 'POST')) {
      method = 'GET';
      body = null;
      for (const name of [...bodyHeaders, keyHeader]) headers.delete(name);
      // One that was read already would be sent as an empty one, which the other side would take for the request with this key.
    } else if (!canBeSentAgain(body)) throw failed('a stream or an iterable cannot be sent again as a body', response);
    leaveBody(response);
    if (next.origin !== at.origin) {
      if (headers.has(keyHeader)) leave();
      for (const name of [...credentials, keyHeader]) headers.delete(name);
    }
    at = next;
    response = await send(at.href, { ...init, method, headers, body: body ?? null, redirect: 'manual' });
  }
}

/** Whether a body can be sent again: not a stream, which is gone once it is read, and keeping a copy has no limit. */
export function canBeSentAgain(body: unknown): boolean {
  if (typeof body !== 'object' || body === null) return true;
  return (
    ArrayBuffer.isView(body) || [ArrayBuffer, Blob, FormData, URLSearchParams].some((kind) => body instanceof kind)
  );
}

function bodyOf(input: string | URL | Request): RequestInit['body'] {
  return typeof input === 'object' && 'body' in input ? (input.body as ReadableStream | null) : null;
}

function targetOf(response: Response, from: URL): URL | undefined {
  if (![301, 302, 303, 307, 308].includes(response.status)) return undefined;
  const location = response.headers.get('location');
  if (location === null || !URL.canParse(location, from.href)) return undefined;
  const next = new URL(location, from.href);
  return next.protocol === 'http:' || next.protocol === 'https:' ? next : undefined;
}

/** Not waited for, and whatever becomes of it: it may have broken off already. */
function leaveBody({ body }: Response): void {
  body?.cancel().catch(() => {});
}

function failed(why: string, response: Response): TypeError {
  leaveBody(response);
  const error = new TypeError('fetch failed', { cause: new Error(why) });
  noteMistake(error);
  return error;
}
