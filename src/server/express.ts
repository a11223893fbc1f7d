/** Express: adapts Express requests and responses to the engines of this folder. Express 4 and 5. */
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import type { Application, NextFunction, Request, RequestHandler, Response } from 'express';
import type { Idempotency, IdempotencyHandle } from '../coordination/idempotency/idempotency.js';
import type { Call } from '../core/call.js';
import { asMicrotask } from '../core/event-loop.js';
import { impossibleOption } from '../core/options.js';
import type { StoredAnswer } from './capture.js';
import { DeadlineEngine, type DeadlineMiddlewareOptions, requireCall } from './deadline.js';
import { FenceEngine, type FenceMiddlewareOptions } from './fence.js';
import { HealthEngine, type HealthOptions, healthType } from './health.js';
import { replay } from './idempotency/answer.js';
import { putRawBody } from './idempotency/body.js';
import {
  type AnswerKeeper,
  HttpIdempotency,
  type IdempotencyExchange,
  type IdempotencyMiddlewareOptions,
  type IdempotencyRequestOptions,
} from './idempotency/idempotency.js';
import { bodyOf, contentTypeOf, keyLinesOf, sendProblem, traceparentOf } from './idempotency/node.js';
import { type LateEnd, lateEndOf } from './late-end.js';
import { type Problem, problemBody, problemType, unsentAnswerHeaders } from './problem.js';
import { checkRules, type ResponseCacheOptions } from './response-cache/options.js';
import { HttpResponseCache, type ResponseCacheControl } from './response-cache/response-cache.js';
import { setWords } from './response-head.js';

export type { IdempotencyHandle } from '../coordination/idempotency/idempotency.js';
export type { DeadlineMiddlewareOptions } from './deadline.js';
export type { FenceMiddlewareOptions } from './fence.js';
export type { HealthCheck, HealthOptions, HealthPolicy, HealthProbe, HealthStore, HealthSubject } from './health.js';
export type {
  IdempotencyMiddlewareOptions,
  IdempotencyRequestOptions,
  RequestFingerprint,
} from './idempotency/idempotency.js';
export { type RequestResolution, resolveRequest } from './idempotency/resolve.js';
export type { ResponseCacheOptions, ResponseCacheRules } from './response-cache/options.js';
export type { ResponseCacheControl } from './response-cache/response-cache.js';

declare global {
  namespace Express {
    interface Request {
      /** The record of a request that came with an idempotency key; undefined without one. */
      idempotency?: IdempotencyHandle;
    }
  }
}

/** Middleware for any route: unlike a `RequestHandler`, it leaves the types of the route's parameters and body to the handlers after it. */
export type Middleware = <Params, Answer, Body, Query, Locals extends Record<string, unknown>>(
  request: Request<Params, Answer, Body, Query, Locals>,
  response: Response<Answer, Locals>,
  next: NextFunction,
) => void;

/** Detects use as a Fastify plugin: Fastify passes itself to what is registered. */
function checkRequest(name: string, request: { readonly headers?: unknown }): void {
  if (request?.headers !== undefined) return;
  const allowed = `a request of Express; in Fastify register ${name} of holdfast/fastify`;
  throw impossibleOption(name, 'request', request, allowed);
}

/**
 * Middleware that gives each request the time that its caller grants.
 *
 * Reads `request-deadline-ms`, `grpc-timeout` and `x-envoy-expected-rq-timeout-ms`. Mount it before everything else, or in
 * a route, where the nearer deadline applies. A request without time left is answered 504 and not handled; when the time
 * passes while it is handled, it is answered 504, its call is aborted, and later writes of the handler are discarded.
 * With `enableContext()` of `holdfast/context` every pipeline inside ends in time by itself; without it, pass on
 * `callOf(request)`.
 *
 * @param options - `default`, `maxAccept`, `headers`, and `name`, `on`, `clock` as for every policy.
 * @throws {@link OptionsError} `ERR_OPTIONS` at once, for an invalid option.
 * @example
 * ```ts
 * import { once } from 'node:events';
 * import type { AddressInfo } from 'node:net';
 * import express from 'express';
 * import { callOf, deadline } from 'holdfast/express';
 *
 * const app = express();
 * app.use(deadline({ default: '10s', maxAccept: '30s' }));
 * app.get('/', (request, response) => {
 *   response.json({ hasTime: callOf(request).remainingMs > 0 });
 * });
 * const server = app.listen(0, '127.0.0.1');
 * await once(server, 'listening');
 * const { port } = server.address() as AddressInfo;
 * const answer = await fetch(`http://127.0.0.1:${port}/`, { headers: { 'request-deadline-ms': '500' } });
 * console.log(await answer.json());
 * server.close();
 * ```
 */
export function deadline(options?: DeadlineMiddlewareOptions): Middleware {
  const engine = new DeadlineEngine(options);
  return (request, response, next) => {
    checkRequest('deadline', request);
    const exchange = {
      request,
      response,
      header: (name: string) => request.headers[name],
      answer: (problem: Problem, isHandled: boolean) => answer(response, problem, isHandled),
    };
    engine.begin(exchange, () => next());
  };
}

/**
 * The call of a request: its `signal`, `deadline`, `remainingMs`, and `attempt`, if its caller sends the number.
 *
 * @throws TypeError, when the deadline middleware has not run before.
 * @example
 * ```ts
 * import express from 'express';
 * import { callOf, deadline } from 'holdfast/express';
 *
 * const app = express();
 * app.use(deadline({ default: '10s' }));
 * app.get('/report', (request, response) => {
 *   response.json({ remainingMs: callOf(request).remainingMs });
 * });
 * ```
 */
export function callOf(request: Request): Call {
  return requireCall(request);
}

/**
 * Middleware that rejects writes of owners that have lost their lock: the header `Fence` must not be less than the greatest that the
 * resource has seen.
 *
 * Answers 412 for a stale fence, 428 for a missing one, 400 for one that is not a number. Mount it on the routes that write, after
 * authentication: a caller that may send any number can lock all others out.
 *
 * @param options - `resource`, `gate`, `missing`.
 * @throws {@link OptionsError} `ERR_OPTIONS` at once, for an invalid option.
 * @example
 * ```ts
 * import { once } from 'node:events';
 * import type { AddressInfo } from 'node:net';
 * import express from 'express';
 * import { fence } from 'holdfast/express';
 *
 * const app = express();
 * app.put('/reports/:id', fence({ resource: (request) => request.path }), (_request, response) => void response.send('ok'));
 * const server = app.listen(0, '127.0.0.1');
 * await once(server, 'listening');
 * const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/reports/4`;
 * const put = async (fence: string) => (await fetch(url, { method: 'PUT', headers: { fence } })).status;
 * console.log(await put('7'), await put('6'), await put('8')); // 200 412 200
 * server.close();
 * ```
 */
export function fence(options: FenceMiddlewareOptions<Request>): Middleware {
  const engine = new FenceEngine(options);
  const middleware: RequestHandler = (request, response, next) => {
    checkRequest('fence', request);
    const problem = engine.check(request, request.headers.fence);
    if (problem === undefined) next();
    else response.status(problem.status).type(problemType).end(problemBody(problem));
  };
  return middleware as Middleware;
}

/**
 * Middleware that answers probes: `/health/live` whether the process answers at all, `/health/ready` and `/health` whether
 * it should get requests, with breaker, limit and store states as details, as `application/health+json`.
 *
 * Mount it before authentication and limits. It answers 503 when a `critical` check is down, and shows
 * names, states and codes only.
 *
 * @param options - `checks`, `path`, `timeout`, `maxAge`, `clock`.
 * @throws {@link OptionsError} `ERR_OPTIONS` at once, for an invalid option.
 * @example
 * ```ts
 * import { once } from 'node:events';
 * import type { AddressInfo } from 'node:net';
 * import express from 'express';
 * import { circuitBreaker, memoryStore } from 'holdfast';
 * import { health } from 'holdfast/express';
 *
 * const app = express();
 * app.use(health({ checks: { payments: circuitBreaker(), store: { check: memoryStore(), critical: true } } }));
 * const server = app.listen(0, '127.0.0.1');
 * await once(server, 'listening');
 * const { port } = server.address() as AddressInfo;
 * const answer = await fetch(`http://127.0.0.1:${port}/health/ready`);
 * console.log(answer.status, await answer.json());
 * server.close();
 * ```
 */
export function health(options?: HealthOptions): Middleware {
  const engine = new HealthEngine(options);
  return (request, response, next) => {
    checkRequest('health', request);
    const probe = engine.probe(request.method, request.path);
    if (probe === undefined) return next();
    // Not `send`, which would add an ETag and answer 304.
    probe.then(({ status, body }) => {
      if (!response.headersSent) response.status(status).set('cache-control', 'no-store').type(healthType).end(body);
    }, next);
  };
}

function answer(response: Response, problem: Problem, isHandled: boolean): void {
  if (response.headersSent) return;
  for (const name of unsentAnswerHeaders) response.removeHeader(name);
  setWords(response, undefined);
  const lateEnd = lateEndOf(response);
  lateEnd.isReplaced = isHandled;
  lateEnd.isReported = isHandled;
  // The handler may have set its status already.
  const { statusCode } = response;
  const body = problemBody(problem);
  // By Node's own methods: Koa and Connect have no others, and an exception here, in a timer, would end the process.
  response.statusCode = problem.status;
  response.setHeader('content-type', problemType);
  // Node does not compute a length again that was removed, and would close the connection.
  response.setHeader('content-length', Buffer.byteLength(body));
  response.end(body);
  // The body may be in a compressor, which then still needs the methods. To a client that has left, nothing is sent.
  if (response.headersSent || response.destroyed) return detach(response, lateEnd, statusCode);
  // Nobody sees what the handler does until then.
  lateEnd.report(false);
  response.once('finish', () => detach(response, lateEnd, statusCode));
}

const writers = [
  ...(['setHeader', 'setHeaders', 'appendHeader', 'removeHeader', 'flushHeaders'] as const),
  ...(['writeHead', 'write', 'end', 'destroy', 'sendFile', 'download'] as const),
] as const;

/**
 * Makes whatever a handler does after the answer have no effect. Otherwise `response.json()` would throw, and Express, which can no longer answer the
 * error, would destroy the connection, on which the client may already have sent its next request.
 */
function detach(response: Response, lateEnd: LateEnd, handlersStatus: number): void {
  const { req: request, statusCode } = response;
  let lateStatus = handlersStatus;
  /** Whether a stream was refused because the response is closed. The handler fails then, but has done its work. */
  let hasRefused = false;
  const fail = () => lateEnd.report(!hasRefused);
  const ignore = (...given: unknown[]) => {
    // Calls back, so that code waiting for the write continues.
    for (const one of given) if (typeof one === 'function') asMicrotask(one as () => void);
    return response;
  };
  const end = (...given: unknown[]) => {
    if (lateStatus >= 500) fail();
    else lateEnd.report(false);
    return ignore(...given);
  };
  const instead: Partial<Record<(typeof writers)[number], (...given: unknown[]) => Response>> = {
    end,
    // They would fail, because the head has been sent.
    sendFile: end,
    download: end,
    writeHead(status) {
      lateStatus = Number(status);
      return response;
    },
    // So a stream that breaks off ends a response into which it is piped.
    destroy() {
      fail();
      return response;
    },
  };
  for (const name of writers) {
    Object.defineProperty(response, name, { value: instead[name] ?? ignore, configurable: true });
  }
  // The status stays as it was sent: logs and metrics read it when the response has finished.
  const setStatus = (status: number) => {
    lateStatus = status;
  };
  Object.defineProperty(response, 'statusCode', { get: () => statusCode, set: setStatus, configurable: true });
  // So `pipeline` of Node asks whether it can write to the response.
  const isClosed = () => {
    hasRefused ||= response.destroyed;
    return response.destroyed;
  };
  Object.defineProperty(response, 'closed', { get: isClosed, configurable: true });
  // undici takes the socket from a request whose body it has passed on.
  if ((request.socket as Socket | null) === null) return;
  // So Express ends a response whose head was sent, for an error that nobody has handled.
  const failed = () => {
    fail();
    return socket;
  };
  const socket = new Proxy(request.socket, {
    get: (target, name) => (name === 'destroy' ? failed : Reflect.get(target, name)),
  });
  Object.defineProperty(request, 'socket', { value: socket, configurable: true });
}

/**
 * Middleware that runs each request with an `Idempotency-Key` once and answers every repetition with the same response.
 *
 * Mount it after authentication and the body parser, before the handler of a route. The key is valid within one `scope`, method and
 * route; the same key with another request is refused (422), and so is a repetition while the first is in flight (409). The response is
 * stored before the client receives its end. Responses 5xx, 401, 403, 408, 421, 425, 429 are not stored: the next request runs.
 * The handler finds its record as `request.idempotency`. To wait on shutdown for handlers whose clients have left, give it an engine, and await
 * `engine.idle()`.
 *
 * Mount `express.json({ verify: rawBody })`, so that bodies are compared as they arrived.
 *
 * @param options - `store` and `scope` are required; see {@link IdempotencyMiddlewareOptions}.
 * @throws {@link OptionsError} `ERR_OPTIONS` at once, for an invalid option.
 * @example
 * ```ts
 * import { once } from 'node:events';
 * import type { AddressInfo } from 'node:net';
 * import express from 'express';
 * import { memoryStore } from 'holdfast';
 * import { idempotency, rawBody } from 'holdfast/express';
 *
 * const app = express();
 * const user = (request: express.Request) => request.get('authorization') ?? 'nobody';
 * let orders = 0;
 * app.use(express.json({ verify: rawBody }));
 * app.post('/orders', idempotency({ store: memoryStore(), scope: user, onLost: 'refuse' }), (request, response) => {
 *   response.status(201).json({ order: ++orders, item: request.body.item });
 * });
 * const server = app.listen(0, '127.0.0.1');
 * await once(server, 'listening');
 * const { port } = server.address() as AddressInfo;
 * const order = {
 *   method: 'POST',
 *   headers: { 'content-type': 'application/json', 'idempotency-key': '"8e03978e-40d5"', authorization: 'alice' },
 *   body: JSON.stringify({ item: 'kelp' }),
 * };
 * for (const attempt of [1, 2]) {
 *   const answer = await fetch(`http://127.0.0.1:${port}/orders`, order);
 *   console.log(attempt, answer.status, await answer.text(), answer.headers.get('idempotent-replayed'));
 * }
 * server.closeAllConnections();
 * server.close();
 * ```
 */
export function idempotency(options: IdempotencyMiddlewareOptions<Request>): Middleware;
/** With an engine created by `idempotency(...)` of `holdfast`; it may serve several routes and wrapped functions. */
export function idempotency(engine: Idempotency, options: IdempotencyRequestOptions<Request>): Middleware;
export function idempotency(
  first: Idempotency | IdempotencyMiddlewareOptions<Request>,
  second?: IdempotencyRequestOptions<Request>,
): Middleware {
  const protection = new HttpIdempotency(first, second);
  const middleware: RequestHandler = (request, response, next) => {
    checkRequest('idempotency', request);
    const isProtected = request.idempotency !== undefined;
    if (isProtected || protection.passes(request.method, request.headers['idempotency-key'])) return next();
    protection.handle(new Exchange(request, response, next, middleware), next);
  };
  return middleware as Middleware;
}

/** A route's members that are missing in its types. */
interface MatchedRoute {
  readonly path: unknown;
  readonly stack?: readonly { readonly handle: unknown }[];
}

class Exchange implements IdempotencyExchange<Request> {
  readonly request: Request;
  private readonly response: Response;
  private readonly next: () => void;
  private readonly middleware: RequestHandler;

  constructor(request: Request, response: Response, next: () => void, middleware: RequestHandler) {
    this.request = request;
    this.response = response;
    this.next = next;
    this.middleware = middleware;
  }

  get method(): string {
    return this.request.method;
  }

  get url(): string {
    return this.request.originalUrl;
  }

  get contentType(): string | undefined {
    return contentTypeOf(this.request);
  }

  get traceparent(): string | undefined {
    return traceparentOf(this.request);
  }

  /** Names the operation by the route that contains the middleware, with its parameters unnamed, or by the path of the request if there is no such route. */
  operation(): string {
    const { request, middleware } = this;
    const route = request.route as MatchedRoute | undefined;
    // A route that the request has left is still set: middleware mounted behind it is not inside a route.
    const isInRoute = route?.stack?.some(({ handle }) => handle === middleware) === true;
    const name = isInRoute ? request.baseUrl + String(route.path) : request.originalUrl.replace(/\?.*$/s, '');
    return `${request.method} ${name}`;
  }

  keyLines(): readonly string[] {
    return keyLinesOf(this.request);
  }

  body(maxBytes: number): ReturnType<typeof bodyOf> {
    return bodyOf(this.request, this.request.body, maxBytes);
  }

  refuse(problem: Problem): void {
    sendProblem(this.response, problem);
  }

  replay(answer: StoredAnswer, key: string): void {
    replay(this.response, answer, key);
  }

  run(handle: IdempotencyHandle, keeper: AnswerKeeper): void {
    this.request.idempotency = handle;
    keeper.watch(this.response, this);
    this.next();
  }

  isAnswered(): boolean {
    return this.response.writableEnded || this.isTimedOut();
  }

  /** Whether connect-timeout has fired. */
  isTimedOut(): boolean {
    return (this.request as { timedout?: boolean }).timedout === true;
  }
}

/**
 * For `express.json({ verify: rawBody })` and the other parsers: keeps the raw bytes, so that bodies are compared as they arrived.
 *
 * @example
 * ```ts
 * import express from 'express';
 * import { rawBody } from 'holdfast/express';
 *
 * const app = express();
 * app.use(express.json({ verify: rawBody }));
 * ```
 */
export function rawBody(request: IncomingMessage, _response: unknown, bytes: Uint8Array): void {
  putRawBody(request, bytes);
}

/** What `responseCache` returns: middleware, and the control of its cache. */
export interface ResponseCache extends Middleware, ResponseCacheControl {}

/**
 * Middleware that caches responses to GET and HEAD as their `Cache-Control` and `Vary` allow, and runs one handler at a time for
 * identical requests, across all processes that share a store.
 *
 * Mount it after authentication, on routes or on the whole app. Responses that are private, `no-store` or set a cookie are not kept; those to
 * requests with cookies or `Authorization` only if they say `public` or `s-maxage`. A response that says nothing is kept for `ttl`.
 * Responses carry `Age` and `Cache-Status`. A POST, PUT or DELETE that it sees invalidates the cached responses of its URL.
 *
 * @param options - `ttl`, `staleWhileRevalidate`, `staleIfError`, `maxBodyBytes`, `key`, `tags`, and those of `cache`, such as `store`.
 * @throws {@link OptionsError} `ERR_OPTIONS` at once, for an invalid option.
 * @example
 * ```ts
 * import { once } from 'node:events';
 * import type { AddressInfo } from 'node:net';
 * import express from 'express';
 * import { memoryStore } from 'holdfast';
 * import { responseCache } from 'holdfast/express';
 *
 * const app = express();
 * const cached = responseCache({ store: memoryStore(), ttl: '1m', staleIfError: '1h', tags: () => ['news'] });
 * let runs = 0;
 * app.get('/news', cached, (_request, response) => void response.json({ run: ++runs }));
 * const server = app.listen(0, '127.0.0.1');
 * await once(server, 'listening');
 * const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/news`;
 * for (let request = 0; request < 2; request++) {
 *   const answer = await fetch(url);
 *   console.log(await answer.text(), answer.headers.get('cache-status'));
 * }
 * await cached.invalidateTag('news');
 * console.log(await (await fetch(url)).text()); // {"run":2}
 * server.closeAllConnections();
 * server.close();
 * await cached.close();
 * ```
 */
export function responseCache(options: ResponseCacheOptions<Request> = {}): ResponseCache {
  const cache = new HttpResponseCache<Request>(options);
  const rules = checkRules(options);
  const middleware: RequestHandler = (request, response, next) => {
    checkRequest('responseCache', request);
    cache.handle(
      {
        ...{ request, incoming: request, response, protocol: `${request.protocol}://${request.hostname}` },
        ...{ url: request.originalUrl, headersBefore: {}, next, takeOver() {} },
        dispatch: (incoming, outgoing) => dispatch(request, incoming, outgoing),
      },
      rules,
    );
  };
  return Object.assign(middleware as Middleware, {
    invalidateTag: (tag: string) => cache.invalidateTag(tag),
    close: () => cache.close(),
  });
}

/** Dispatches to the server, so that the request also passes whatever wraps the app; without a server, to the outermost app. */
function dispatch(request: Request, incoming: IncomingMessage, outgoing: ServerResponse): void {
  const { server } = request.socket as { server?: Pick<Server, 'emit'> };
  if (server !== undefined) return void server.emit('request', incoming, outgoing);
  let { app } = request as { app: Application & { parent?: Application } };
  while (app.parent !== undefined) app = app.parent;
  app(incoming as Request, outgoing as Response);
}
