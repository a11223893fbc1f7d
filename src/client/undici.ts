/**
 * Undici: runs the requests of a dispatcher through policies kept per origin, as an interceptor.
 *
 * Promise: the handler sees one response, that of the last attempt, byte for byte and with its own back-pressure. An abort reaches the attempt, a
 * wait between attempts, and the body. Nothing is resent once the response has been passed on. Upgrades and CONNECT pass through unchanged.
 * After: the handlers of undici 7 and 8.
 */
import type { Call } from '../core/call.js';
import { callbackTimer, systemClock } from '../core/clock.js';
import { checkOptions } from '../core/options.js';
import type { Send } from './attempts.js';
import { mostDroppedBytes, mostDroppedMs } from './discard-body.js';
import { type ClientOptions, canExist, clientFields, type Engine, engineOf } from './engine.js';
import { isForm } from './form.js';
import { hasBrokenOff, noteMistake } from './handles.js';

export type { ClientOptions, KeylessRequest, PacingOptions } from './engine.js';
export { breakerHandles, handles } from './handles.js';

// The parts of undici's interfaces that are used here. Its own types change between versions, and nothing of it is imported.

interface Controller {
  readonly aborted: boolean;
  readonly paused: boolean;
  readonly reason: unknown;
  rawHeaders?: unknown;
  rawTrailers?: unknown;
  abort(reason: unknown): void;
  pause(): void;
  resume(): void;
}

interface Handler {
  onRequestStart?(controller: Controller, context: unknown): void;
  onResponseStart?(controller: Controller, statusCode: number, headers: object, statusMessage?: string): void;
  onResponseData?(controller: Controller, chunk: Uint8Array): void;
  onResponseEnd?(controller: Controller, trailers: unknown): void;
  onResponseError?(controller: Controller, error: unknown): void;
  onResponseStarted?(): void;
  onBodySent?(chunk: unknown): void;
  onRequestSent?(): void;
}

interface RequestFacts {
  readonly origin?: string | URL;
  readonly method: string;
  readonly body?: unknown;
  readonly headers?: unknown;
  readonly upgrade?: unknown;
}

type Dispatch = (options: RequestFacts, handler: Handler) => boolean;

// biome-ignore lint/suspicious/noExplicitAny: undici's own types of options and handlers differ between versions.
type AnyDispatch = (options: any, handler: any) => boolean;

/** What `dispatcher.compose()` accepts. */
export type Interceptor = <Own extends AnyDispatch>(dispatch: Own) => Own;

/**
 * Creates an interceptor for `dispatcher.compose()` that repeats failed requests where that is safe, stays away from an origin that is
 * down, and starts requests no faster than the origin says it accepts them.
 *
 * It repeats GET, HEAD, OPTIONS, TRACE, PUT, DELETE and QUERY, and any request with an idempotency key, but not a body that can
 * be read only once, such as a stream. `fetch` passes its bodies to a dispatcher as streams, so prefer `createFetch` for it.
 * The policies judge a response as `{ statusCode, headers }`, with `handles` and `breakerHandles` of this module.
 *
 * @param options - `policy`, `idempotencyKey`, `idempotencyHeader`, `maxKeyAge`, `propagate`, `pacing`, `maxOrigins`, `name`, `on`, `clock`.
 * @throws {@link OptionsError} `ERR_OPTIONS` from the factory, for an invalid option.
 * @example
 * ```ts
 * import { createServer } from 'node:http';
 * import type { AddressInfo } from 'node:net';
 * import { constant, pipeline, retry } from 'holdfast';
 * import { handles, resilience } from 'holdfast/undici';
 * import { Agent, request } from 'undici';
 *
 * let asked = 0;
 * const server = createServer((_, response) => response.writeHead(++asked < 3 ? 503 : 200).end('here'));
 * await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening));
 * const policy = pipeline(retry({ attempts: 3, backoff: constant(1), handles }));
 * const agent = new Agent();
 * const { statusCode, body } = await request(`http://127.0.0.1:${(server.address() as AddressInfo).port}`, {
 *   dispatcher: agent.compose(resilience({ policy })),
 * });
 * console.log(statusCode, await body.text()); // 200 here
 * await agent.close();
 * server.close();
 * ```
 */
export function resilience(options?: ClientOptions): Interceptor {
  const checked = checkOptions('resilience', options, clientFields('undici'));
  const engine = engineOf('resilience', checked);
  let dispatchers = 0;
  return <Own extends AnyDispatch>(dispatch: Own) => {
    dispatchers++;
    // A Client or Pool has one origin, which undici 7 does not report.
    const unnamed = `${checked.name} ${dispatchers}`;
    return ((request: RequestFacts, handler: Handler) => intercept(engine, dispatch, unnamed, request, handler)) as Own;
  };
}

function intercept(
  engine: Engine,
  dispatch: Dispatch,
  unnamed: string,
  request: RequestFacts,
  handler: Handler,
): boolean {
  const origin = originOf(request.origin, unnamed);
  if (origin === undefined || request.upgrade || request.method === 'CONNECT') return dispatch(request, handler);
  // Such a handler would hear nothing of its response and wait for ever.
  if (typeof handler.onRequestStart !== 'function') throw foreignHandler();
  const method = request.method.toUpperCase();
  const headers = replayableHeaders(request.headers);
  const givenKey = headerIn(headers, engine.idempotencyHeader);
  const key = givenKey ?? engine.keyFor({ origin, method });
  const keyHeader = key === undefined || givenKey !== undefined ? {} : { [engine.idempotencyHeader]: key };
  const exchange = new Exchange(handler);
  exchange.begin();
  // The dispatcher's back-pressure is returned if the first attempt is made synchronously.
  let hasRoom = true;
  const send: Send<Attempt> = (call, added) =>
    new Promise((resolve, reject) => {
      const attempt = new Attempt(exchange, call, resolve, (error) => {
        if (hasBrokenOff(request.body)) noteMistake(error);
        reject(error);
      });
      hasRoom = dispatch({ ...request, headers: withHeaders(headers, { ...keyHeader, ...added }) }, attempt);
    });
  const isReplayable = canBeSentAgain(request.body, key !== undefined);
  const facts = { origin, method, key, isReplayable, signal: exchange.ending.signal };
  engine.run(facts, send, drop).then(
    (answer) => exchange.answer(answer),
    (error) => exchange.fail(error),
  );
  return hasRoom;
}

function drop(attempt: Attempt): void {
  attempt.drop();
}

/** One logical request as its handler sees it: a controller that stays the same across attempts. */
class Exchange implements Controller {
  readonly handler: Handler;
  /** Ends the call as long as no response has been passed on. */
  readonly ending = new AbortController();
  /** Whether the handler has asked for a pause. */
  isPaused = false;
  private target: Controller | undefined = undefined;

  constructor(handler: Handler) {
    this.handler = handler;
  }

  /** Gives the handler its controller before the first attempt, so that it can abort a wait, too. */
  begin(): void {
    try {
      this.handler.onRequestStart!(this, null);
    } catch (error) {
      this.abort(error);
    }
  }

  answer(answer: unknown): void {
    if (!(answer instanceof Attempt)) {
      this.fail(new TypeError('a policy around a request of undici must answer with one of its responses'));
    } else if (this.ending.signal.aborted) {
      answer.drop();
      this.fail(this.ending.signal.reason);
    } else {
      this.target = answer.controller;
      answer.pass();
    }
  }

  fail(error: unknown): void {
    this.handler.onResponseError?.(this, error);
  }

  abort(reason: unknown): void {
    if (this.target === undefined) this.ending.abort(reason);
    else this.target.abort(reason);
  }

  pause(): void {
    this.isPaused = true;
    this.target?.pause();
  }

  resume(): void {
    this.isPaused = false;
    this.target?.resume();
  }

  get aborted(): boolean {
    return this.target?.aborted ?? this.ending.signal.aborted;
  }

  get paused(): boolean {
    return this.isPaused;
  }

  get reason(): unknown {
    return this.target === undefined ? (this.ending.signal.reason ?? null) : this.target.reason;
  }

  get rawHeaders(): unknown {
    return this.target?.rawHeaders ?? null;
  }

  get rawTrailers(): unknown {
    return this.target?.rawTrailers ?? null;
  }
}

/** How a body has ended before it was known who gets it. */
type Tail =
  | { readonly kind: 'open' }
  | { readonly kind: 'ended'; readonly trailers: unknown }
  | { readonly kind: 'failed'; readonly error: unknown };

/** One attempt: the handler that undici sees, and the answer that the policies judge. */
class Attempt implements Handler {
  statusCode = 0;
  headers: object = {};
  controller: Controller | undefined = undefined;
  private statusMessage: string | undefined = undefined;
  private state: 'sent' | 'held' | 'passed' | 'dropped' = 'sent';
  private chunks: Uint8Array[] = [];
  private tail: Tail = { kind: 'open' };
  /** Buffered body bytes, until the body is passed on. */
  private bytes = 0;
  private readonly exchange: Exchange;
  private readonly call: Call;
  private readonly resolve: (attempt: Attempt) => void;
  private readonly reject: (error: unknown) => void;
  private readonly onCallEnd = () => this.controller?.abort(this.call.reason);
  private readonly patience = callbackTimer(() => this.controller?.abort(notWanted()));

  constructor(exchange: Exchange, call: Call, resolve: (attempt: Attempt) => void, reject: (error: unknown) => void) {
    this.exchange = exchange;
    this.call = call;
    this.resolve = resolve;
    this.reject = reject;
    call.signal.addEventListener('abort', this.onCallEnd);
  }

  onRequestStart(controller: Controller): void {
    this.controller = controller;
    // It may have waited for a connection until nobody waited for it any more.
    if (this.call.aborted) this.onCallEnd();
  }

  onResponseStart(_: Controller, statusCode: number, headers: object, statusMessage?: string): void {
    const { exchange } = this;
    if (statusCode < 200) return exchange.handler.onResponseStart?.(exchange, statusCode, headers, statusMessage);
    this.call.signal.removeEventListener('abort', this.onCallEnd);
    this.statusCode = statusCode;
    this.headers = headers;
    this.statusMessage = statusMessage;
    this.state = 'held';
    this.resolve(this);
  }

  onResponseData(controller: Controller, chunk: Uint8Array): void {
    const { exchange } = this;
    if (this.state === 'passed') return exchange.handler.onResponseData?.(exchange, chunk);
    this.bytes += chunk.byteLength;
    const isLong = this.bytes > mostDroppedBytes;
    if (this.state === 'held') {
      this.chunks.push(chunk);
      // Not earlier: if a connection is closed while paused, undici 7 throws where nobody can catch it.
      if (isLong) controller.pause();
    } else if (isLong) controller.abort(notWanted());
  }

  onResponseEnd(_: Controller, trailers: unknown): void {
    this.close({ kind: 'ended', trailers });
  }

  onResponseError(_: Controller, error: unknown): void {
    if (this.state === 'sent') this.reject(error);
    else this.close({ kind: 'failed', error });
  }

  onResponseStarted(): void {
    this.exchange.handler.onResponseStarted?.();
  }

  onBodySent(chunk: unknown): void {
    this.exchange.handler.onBodySent?.(chunk);
  }

  onRequestSent(): void {
    this.exchange.handler.onRequestSent?.();
  }

  /** The handler gets this response: from now on it receives all of it. */
  pass(): void {
    const { exchange, controller } = this;
    const { handler } = exchange;
    try {
      handler.onResponseStart?.(exchange, this.statusCode, this.headers, this.statusMessage);
      // Still buffering: if the handler resumes at once, what arrives then is appended.
      for (const chunk of this.chunks) {
        if (controller?.aborted) break;
        handler.onResponseData?.(exchange, chunk);
      }
    } catch (error) {
      controller?.abort(error);
    }
    this.state = 'passed';
    this.chunks = [];
    // Undici does not report an abort that comes after the end.
    if (controller?.aborted && this.tail.kind === 'ended') this.tail = { kind: 'failed', error: controller.reason };
    if (exchange.isPaused) controller?.pause();
    else controller?.resume();
    this.passTail();
  }

  /** Nobody gets this response. A short rest is read, so that its connection can serve the next request. */
  drop(): void {
    this.state = 'dropped';
    this.chunks = [];
    if (this.tail.kind !== 'open') return;
    systemClock.schedule(this.patience, systemClock.now() + mostDroppedMs);
    this.controller?.resume();
  }

  private close(tail: Tail): void {
    this.tail = tail;
    if (this.state === 'passed') this.passTail();
    else systemClock.cancel(this.patience);
  }

  private passTail(): void {
    const { exchange, tail } = this;
    this.tail = { kind: 'open' };
    if (tail.kind === 'failed') exchange.fail(tail.error);
    if (tail.kind !== 'ended') return;
    try {
      exchange.handler.onResponseEnd?.(exchange, tail.trailers);
    } catch (error) {
      exchange.fail(error);
    }
  }
}

function notWanted(): Error {
  return new Error('the rest of a response that was thrown away is not wanted');
}

function foreignHandler(): TypeError {
  return new TypeError(
    'resilience: the request was made by another major version of undici than its dispatcher, as the built-in fetch does ' +
      'with an Agent of undici 8; use the fetch of that undici, or createFetch of holdfast/fetch',
  );
}

function originOf(origin: string | URL | undefined, unnamed: string): string | undefined {
  if (origin === undefined) return unnamed;
  const url = URL.canParse(String(origin)) ? new URL(String(origin)) : undefined;
  return url !== undefined && canExist(url) ? url.origin : undefined;
}

/** Headers that can be read repeatedly: an iterable becomes a flat list of alternating names and values. */
function replayableHeaders(given: unknown): object | undefined {
  if (typeof given !== 'object' || given === null) return undefined;
  if (Array.isArray(given)) return Array.isArray(given[0]) ? given.flat(1) : given;
  return Symbol.iterator in given ? [...(given as Iterable<unknown[]>)].flat(1) : given;
}

function headerIn(headers: object | undefined, name: string): string | undefined {
  const pairs = Array.isArray(headers)
    ? headers.flatMap((value, index) => (index % 2 === 0 ? [[value, headers[index + 1]]] : []))
    : Object.entries(headers ?? {});
  const value = pairs.find(([key]) => String(key).toLowerCase() === name)?.[1];
  return value === undefined || value === null || String(value) === '' ? undefined : String(value);
}

function withHeaders(headers: object | undefined, added: Readonly<Record<string, string>>): object | undefined {
  if (Object.keys(added).length === 0) return headers;
  return Array.isArray(headers) ? [...headers, ...Object.entries(added).flat()] : { ...headers, ...added };
}

/**
 * Whether a body can be sent again. A stream or an iterable cannot: it is gone once it is read. Nor can a form with a key, because it gets a new
 * boundary each time, and the service would take it for a different request.
 */
function canBeSentAgain(body: unknown, hasKey: boolean): boolean {
  if (typeof body !== 'object' || body === null) return true;
  if (isForm(body)) return !hasKey;
  return ArrayBuffer.isView(body) || body instanceof ArrayBuffer || body instanceof Blob;
}
