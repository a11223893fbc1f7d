/**
 * Fetch: a `fetch` whose requests run through policies kept per origin.
 *
 * Promise: it returns the response of the last attempt itself, with its body unread. The caller's signal ends the attempts, the waits and, once the
 * response is there, the reading of its body; nothing else aborts a body. A request whose body cannot be sent again, or that must not run twice, is
 * sent once.
 */
import { addAbortListener, removeAbortListener } from '../core/abort-listeners.js';
import type { Call } from '../core/call.js';
import { checkOptions, func, withDefault } from '../core/options.js';
import { discardBody } from './discard-body.js';
import { type ClientOptions, canExist, clientFields, type Engine, engineOf } from './engine.js';
import { isForm, ofPlatform } from './form.js';
import { hasBrokenOff, noteMistake } from './handles.js';
import { canBeSentAgain, type Fetch, sendKeyed } from './keyed-redirects.js';

export { type KeyJar, type KeyJarOptions, keyFrom, keyJar } from '../coordination/idempotency/key-jar.js';
export { discardBody } from './discard-body.js';
export type { ClientOptions, KeylessRequest, PacingOptions } from './engine.js';
export { breakerHandles, handles } from './handles.js';
export type { Fetch } from './keyed-redirects.js';

/** Options of {@link createFetch}. */
export interface CreateFetchOptions extends ClientOptions {
  /** The function that sends the requests. Default: the `fetch` that is global when this one is created. */
  readonly fetch?: Fetch | undefined;
}

/**
 * Creates a `fetch` that repeats failed requests where that is safe, stays away from an origin that is down, and starts requests
 * no faster than the origin says it accepts them.
 *
 * It repeats GET, HEAD, OPTIONS, TRACE, PUT, DELETE and QUERY, and any request with an idempotency key, which is sent with
 * each attempt. It does not repeat a body that can be read only once: a stream, or that of a `Request`. It returns the response of the last
 * attempt, whatever its status. The origin is that of the requested URL, even if it redirects. An idempotency
 * key is kept over redirects within its origin, and never sent to another one.
 * The policies' time limits end with the headers: the body is read under the caller's `signal` alone.
 *
 * @param options - `policy`, `fetch`, `idempotencyKey`, `idempotencyHeader`, `maxKeyAge`, `propagate`, `pacing`, `maxOrigins`, `name`,
 * `on`, `clock`.
 * @throws What `fetch` threw in the last attempt, or the error of the policy that ended the call, from the call.
 * @throws {@link RateLimitedError} `ERR_RATE_LIMITED` from the call, when the origin has said that it accepts no requests
 * for longer than this one may wait; `retryAfterMs` says how long.
 * @throws {@link InDoubtError} `ERR_IN_DOUBT` from the call, when its idempotency key has become older than `maxKeyAge`, or when a redirect
 * led to another origin, which does not get the key, and no response came in time.
 * @throws {@link OptionsError} `ERR_OPTIONS` from the factory, for an invalid option.
 * @example
 * ```ts
 * import { constant, pipeline, retry } from 'holdfast';
 * import { createFetch, discardBody, handles } from 'holdfast/fetch';
 *
 * let answered = 0;
 * const http = createFetch({
 *   policy: pipeline(retry({ attempts: 3, backoff: constant(1), handles, onDiscard: discardBody })),
 *   fetch: async () => (++answered < 3 ? new Response('busy', { status: 503 }) : new Response('here')),
 * });
 * const response = await http('https://api.example.com/orders');
 * console.log(response.status, await response.text()); // 200 here
 * ```
 */
export function createFetch(options?: CreateFetchOptions): Fetch {
  const checked = checkOptions('createFetch', options, {
    fetch: withDefault<Fetch>(func<Fetch>(), globalThis.fetch),
    ...clientFields('fetch'),
  });
  const engine = engineOf('createFetch', checked);
  const send = checked.fetch;
  return (input, init) => run(engine, send, input, init);
}

async function run(engine: Engine, send: Fetch, input: string | URL | Request, given?: RequestInit): Promise<Response> {
  // A string or a URL has none of the members of a Request.
  const request = input as Partial<Request> | undefined;
  const url = urlOf(request?.url ?? input);
  // A request that is not HTTP, or has no valid URL, has no origin to keep state for. What cannot be options is refused by `fetch`.
  if (url === undefined || !mayBeOptions(given)) return send(input, given);
  const init = withOwnMembers(given);
  const headers = new Headers(init?.headers ?? request?.headers);
  const signal = (init?.signal === undefined ? request?.signal : init.signal) ?? undefined;
  const { origin } = url;
  const method = normalized(init?.method ?? request?.method ?? 'GET');
  const key = headers.get(engine.idempotencyHeader) || engine.keyFor({ origin, method });
  if (key !== undefined) headers.set(engine.idempotencyHeader, key);
  const isReplayable = canBeSentAgain(init?.body ?? request?.body);
  const wasUsed = request?.bodyUsed === true && (init?.body ?? null) === null;
  // A form gets a new boundary each time it is serialized, and the service would take it for a different request.
  const body = key !== undefined && isForm(init?.body) ? await written(init.body, headers) : {};
  const attempt = async (call: Call, added: Readonly<Record<string, string>>, leave: () => void) => {
    const ownHeaders = new Headers(headers);
    for (const name in added) ownHeaders.set(name, added[name]!);
    const ending = signal === undefined ? undefined : new Ending(call.signal, signal);
    const options = { ...init, ...body, headers: ownHeaders, signal: ending?.controller.signal ?? call.signal };
    const follows = key !== undefined && (init?.redirect ?? request?.redirect ?? 'follow') === 'follow';
    try {
      const response = follows
        ? await sendKeyed(send, input, url, { ...options, method }, engine.idempotencyHeader, leave)
        : await send(input, options);
      ending?.leave(response);
      return response;
    } catch (error) {
      const isRefused = isUnexplained(error) && (wasUsed || !canBeMade(url, method, init));
      if (isRefused || hasBrokenOff(init?.body ?? request?.body)) noteMistake(error);
      throw error;
    }
  };
  return (await engine.run({ origin, method, key, isReplayable, signal }, attempt, discardBody)) as Response;
}

/** Ends one attempt: first on the abort of its call, later, while its body may be read, on the caller's signal. */
class Ending {
  readonly controller = new AbortController();
  private readonly callSignal: AbortSignal;
  private readonly signal: AbortSignal;
  private readonly onCallEnd = () => this.controller.abort(this.callSignal.reason);

  constructor(callSignal: AbortSignal, signal: AbortSignal) {
    this.callSignal = callSignal;
    this.signal = signal;
    callSignal.addEventListener('abort', this.onCallEnd);
  }

  /** After its end, a call no longer passes on aborts; the caller's signal takes over for the body. */
  leave(response: Response): void {
    const { controller, signal } = this;
    this.callSignal.removeEventListener('abort', this.onCallEnd);
    // The `fetch` of a test may answer with less than a response.
    const body = response?.body;
    if (typeof body !== 'object' || body === null) return;
    const listener = () => controller.abort(signal.reason);
    addAbortListener(signal, listener);
    forgetWith(body, signal, listener);
  }
}

interface Listening {
  readonly signal: AbortSignal;
  readonly listener: () => void;
}

let forgotten: FinalizationRegistry<Listening> | undefined;

/**
 * Removes the listener when the body is collected. Whether a body is still being read cannot be observed, and a long-lived signal, such as that of a
 * process, must not keep the body's listener.
 */
function forgetWith(body: object, signal: AbortSignal, listener: () => void): void {
  forgotten ??= new FinalizationRegistry(({ signal, listener }) => removeAbortListener(signal, listener));
  forgotten.register(body, { signal, listener });
}

/** The members of the standard's `RequestInit`, and the one that undici adds. */
const members: readonly string[] = [
  ...['method', 'headers', 'body', 'referrer', 'referrerPolicy', 'mode', 'credentials', 'cache'],
  ...['redirect', 'integrity', 'keepalive', 'signal', 'duplex', 'priority', 'window', 'dispatcher'],
];

/**
 * Options that can be copied. `fetch` reads each by its name, so that they may be inherited, or getters of a class, as those of a `Request` are; a copy
 * would lose its method and body.
 */
function withOwnMembers(init: RequestInit | undefined): RequestInit | undefined {
  if (init === undefined || init === null) return undefined;
  const own: Record<string, unknown> = {};
  for (const name of members) {
    const value: unknown = init![name as keyof RequestInit];
    if (value !== undefined) own[name] = value;
  }
  // Those that only some platforms know, such as `cf` and `next`.
  for (const name in init) if (!members.includes(name)) own[name] = init[name as keyof RequestInit];
  return own;
}

/** A method as `fetch` sends it: in capitals if it is one of these, and else, such as `patch`, as it is. */
function normalized(method: string): string {
  return /^(?:delete|get|head|options|post|put)$/i.test(method) ? method.toUpperCase() : method;
}

function mayBeOptions(init: unknown): boolean {
  return init === undefined || init === null || typeof init === 'object' || typeof init === 'function';
}

function urlOf(input: unknown): URL | undefined {
  const url = URL.canParse(String(input)) ? new URL(String(input)) : undefined;
  if (url === undefined || !canExist(url)) return undefined;
  return url.protocol === 'http:' || url.protocol === 'https:' ? url : undefined;
}

/** Whether an error has no explaining cause. Requests that `fetch` refuses to make fail like this everywhere, network errors only on some platforms. */
function isUnexplained(error: unknown): error is TypeError {
  return error instanceof TypeError && error.cause === undefined && !('code' in error);
}

/** Whether `fetch` accepts such a request at all. */
function canBeMade(url: URL, method: string, init: RequestInit | undefined): boolean {
  const body = init?.body ?? null;
  if (body !== null && (method === 'GET' || method === 'HEAD')) return false;
  if (!canBeSentAgain(body) && (init as { readonly duplex?: unknown }).duplex === undefined) return false;
  try {
    new Request(url, { ...init, body: null, headers: {}, signal: null });
    return true;
  } catch {
    return false;
  }
}

async function written(form: FormData, headers: Headers): Promise<RequestInit> {
  const whole = new Response(ofPlatform(form));
  // Carries the boundary used in the body.
  headers.set('content-type', whole.headers.get('content-type')!);
  return { body: await whole.arrayBuffer() };
}
