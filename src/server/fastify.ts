/** Fastify: adapts Fastify requests and replies to the engines of this folder. Fastify 5. */
import type {
  FastifyContextConfig,
  FastifyInstance,
  FastifyPluginAsync,
  FastifyPluginOptions,
  FastifyReply,
  FastifyRequest,
  onRequestHookHandler,
  preHandlerHookHandler,
  RouteHandlerMethod,
  RouteOptions,
} from 'fastify';
/*!
 * This bundle contains fastify-plugin.
 *
 * MIT License
 *
 * Copyright (c) 2017-present The Fastify team <https://github.com/fastify/fastify#team>
 *
 * Permission is hereby granted, free of charge, to any person obtaining a copy
 * of this software and associated documentation files (the "Software"), to deal
 * in the Software without restriction, including without limitation the rights
 * to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
 * copies of the Software, and to permit persons to whom the Software is
 * furnished to do so, subject to the following conditions:
 *
 * The above copyright notice and this permission notice shall be included in all
 * copies or substantial portions of the Software.
 *
 * THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
 * IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
 * FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
 * AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
 * LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
 * OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
 * SOFTWARE.
 */
import fastifyPlugin from 'fastify-plugin';
import type { Idempotency, IdempotencyHandle } from '../coordination/idempotency/idempotency.js';
import type { Call } from '../core/call.js';
import { impossibleOption } from '../core/options.js';
import { type StoredAnswer, whenAlone } from './capture.js';
import {
  DeadlineEngine,
  type DeadlineMiddlewareOptions,
  type RouteDeadline,
  requireCall,
  routeLimitMs,
  runUnderCall,
  timedOutStatus,
} from './deadline.js';
import { FenceEngine, type FenceMiddlewareOptions } from './fence.js';
import { type HealthAnswer, HealthEngine, type HealthOptions, healthType } from './health.js';
import { replay } from './idempotency/answer.js';
import { announcesBody, findTap, tapBody } from './idempotency/body.js';
import {
  type AnswerKeeper,
  HttpIdempotency,
  type IdempotencyExchange,
  type IdempotencyMiddlewareOptions,
  type IdempotencyRequestOptions,
  isJsonType,
} from './idempotency/idempotency.js';
import { bodyOf, contentOf, contentTypeOf, keyLinesOf, traceparentOf } from './idempotency/node.js';
import { lateEndOf } from './late-end.js';
import { type Problem, problemBody, problemType, unsentAnswerHeaders } from './problem.js';
import {
  type CheckedRules,
  checkRules,
  type ResponseCacheOptions,
  type ResponseCacheRules,
} from './response-cache/options.js';
import { HttpResponseCache, type ResponseCacheControl } from './response-cache/response-cache.js';
import { setWords } from './response-head.js';

export type { IdempotencyHandle } from '../coordination/idempotency/idempotency.js';
export type { DeadlineMiddlewareOptions, RouteDeadline } from './deadline.js';
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

/** Options of the plugin: those of the middleware, or an engine and the request options. */
export type IdempotencyPluginOptions =
  | IdempotencyMiddlewareOptions<FastifyRequest>
  | (IdempotencyRequestOptions<FastifyRequest> & {
      /** Created by `idempotency(...)` of `holdfast`; it may serve several plugins and wrapped functions. */
      readonly engine: Idempotency;
    });

/** A route's own options, overriding the plugin's, or `false` to turn the plugin off there. */
export type RouteIdempotency = Partial<IdempotencyRequestOptions<FastifyRequest>> | false;

/** A route's own rules, overriding the plugin's, or `false` to turn the plugin off there. */
export type RouteResponseCache = ResponseCacheRules<FastifyRequest> | false;

declare module 'fastify' {
  interface FastifyContextConfig {
    /**
     * The route's own time: the default for requests that name none, and the limit for all. `false`: no limit, for
     * routes that stream.
     */
    deadline?: RouteDeadline;
    /** The route's own options of the `idempotency` plugin; `false`: keys have no effect there. */
    idempotency?: RouteIdempotency;
    /** The route's own rules of the `responseCache` plugin; `false`: its responses are not kept. */
    responseCache?: RouteResponseCache;
  }
  interface FastifyInstance {
    /** The cache of the `responseCache` plugin registered here. */
    responseCache: ResponseCacheControl;
  }
  interface FastifyRequest {
    /** The record of a request that came with an idempotency key; undefined without one. */
    idempotency: IdempotencyHandle | undefined;
  }
}

/** Wraps a plugin for Fastify. If it is called as Express middleware, it says so. */
function pluginOf<Options extends FastifyPluginOptions>(
  name: string,
  register: FastifyPluginAsync<Options>,
): FastifyPluginAsync<Options> {
  const plugin: FastifyPluginAsync<Options> = async (app, options) => {
    if (typeof app?.addHook !== 'function') {
      const allowed = `a Fastify instance: write app.register(${name}, options), without a call of ${name}`;
      throw impossibleOption(name, 'app', app, allowed);
    }
    await register(app, options);
  };
  const words = name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
  return fastifyPlugin(plugin, { fastify: '5.x', name: `holdfast-${words}` });
}

// Asynchronous, because Fastify does not catch what a callback-style plugin throws.
const plugin: FastifyPluginAsync<DeadlineMiddlewareOptions> = async (app, options) => {
  const engine = new DeadlineEngine(options);
  const begun = new WeakSet<FastifyReply>();
  // A mistake in a route's options shows when the server starts.
  app.addHook('onRoute', ({ config }) => void routeLimitMs((config as { deadline?: unknown } | undefined)?.deadline));
  app.addHook('onRequest', (request, reply, next) => {
    const exchange = {
      request: request.raw,
      response: reply.raw,
      header: (name: string) => request.headers[name],
      answer(problem: Problem) {
        if (!begun.has(reply)) answer(reply, problem);
      },
    };
    engine.begin(exchange, next, routeLimitMs(request.routeOptions.config.deadline));
  });
  // A body is read in socket events, so its parser may have lost the request's async context.
  app.addHook('preValidation', (request, _reply, next) => runUnderCall(request.raw, next));
  // Between here and the first byte, `reply.sent` is still false.
  app.addHook('onSend', (_request, reply, _payload, next) => {
    begun.add(reply);
    next();
  });
};

/**
 * Plugin that gives each request the time that its caller grants.
 *
 * Reads `request-deadline-ms`, `grpc-timeout` and `x-envoy-expected-rq-timeout-ms`. Register it before other plugins; a route
 * sets its own time by `config: { deadline: '2s' }`. A request without time left is answered 504 and not handled; when
 * the time passes while it is handled, it is answered 504, its call is aborted, and the handler's later response is
 * discarded. With `enableContext()` of `holdfast/context` every pipeline inside ends in time by itself; without it, pass on
 * `callOf(request)`.
 *
 * Options: `default`, `maxAccept`, `headers`, and `name`, `on`, `clock` as for every policy; an invalid one makes `register` fail.
 * @example
 * ```ts
 * import Fastify from 'fastify';
 * import { callOf, deadline } from 'holdfast/fastify';
 *
 * const app = Fastify();
 * await app.register(deadline, { default: '10s', maxAccept: '30s' });
 * app.get('/', { config: { deadline: '2s' } }, (request) => ({ hasTime: callOf(request).remainingMs > 0 }));
 * const address = await app.listen({ port: 0, host: '127.0.0.1' });
 * const answer = await fetch(address, { headers: { 'request-deadline-ms': '500' } });
 * console.log(await answer.json());
 * await app.close();
 * ```
 */
export const deadline: FastifyPluginAsync<DeadlineMiddlewareOptions> = /* @__PURE__ */ pluginOf('deadline', plugin);

/**
 * The call of a request: its `signal`, `deadline`, `remainingMs`, and `attempt`, if its caller sends the number.
 *
 * @throws TypeError, when the deadline plugin is not registered.
 */
export function callOf(request: FastifyRequest): Call {
  return requireCall(request.raw);
}

// Asynchronous, because Fastify does not catch what a callback-style plugin throws.
const fencePlugin: FastifyPluginAsync<FenceMiddlewareOptions<FastifyRequest>> = async (app, options) => {
  const engine = new FenceEngine(options);
  app.addHook('preHandler', (request, reply, next) => {
    const problem = engine.check(request, request.headers.fence);
    if (problem === undefined) next();
    else reply.code(problem.status).type(problemType).send(problemBody(problem));
  });
};

/**
 * Plugin that rejects writes of owners that have lost their lock: the header `Fence` must not be less than the greatest that the
 * resource has seen.
 *
 * Answers 412 for a stale fence, 428 for a missing one, 400 for one that is not a number. Register it in the scope of the routes
 * that write, after authentication: a caller that may send any number can lock all others out.
 *
 * Options: `resource`, `gate`, `missing`; an invalid one makes `register` fail.
 * @example
 * ```ts
 * import Fastify from 'fastify';
 * import { fence } from 'holdfast/fastify';
 *
 * const app = Fastify();
 * await app.register(async (writes) => {
 *   await writes.register(fence, { resource: (request) => request.url });
 *   writes.put('/reports/:id', () => 'ok');
 * });
 * const put = async (value: string) =>
 *   (await app.inject({ method: 'PUT', url: '/reports/4', headers: { fence: value } })).statusCode;
 * console.log(await put('7'), await put('6'), await put('8')); // 200 412 200
 * await app.close();
 * ```
 */
export const fence: FastifyPluginAsync<FenceMiddlewareOptions<FastifyRequest>> = /* @__PURE__ */ pluginOf(
  'fence',
  fencePlugin,
);

const healthPlugin: FastifyPluginAsync<HealthOptions> = async (app, options) => {
  const engine = new HealthEngine(options);
  const send = async (reply: FastifyReply, probe: Promise<HealthAnswer>) => {
    const { status, body } = await probe;
    return reply.code(status).header('cache-control', 'no-store').type(healthType).send(body);
  };
  for (const path of engine.readyPaths) app.get(path, (_request, reply) => send(reply, engine.ready()));
  app.get(engine.livePath, (_request, reply) => send(reply, engine.live()));
};

/**
 * Plugin that answers probes: `/health/live` whether the process answers at all, `/health/ready` and `/health` whether it
 * should get requests, with breaker, limit and store states as details, as `application/health+json`.
 *
 * Register it before authentication and limits. It answers 503 when a `critical` check is down, and shows
 * names, states and codes only.
 *
 * Options: `checks`, `path`, `timeout`, `maxAge`, `clock`; an invalid one makes `register` fail.
 * @example
 * ```ts
 * import Fastify from 'fastify';
 * import { circuitBreaker, memoryStore } from 'holdfast';
 * import { health } from 'holdfast/fastify';
 *
 * const app = Fastify();
 * await app.register(health, { checks: { payments: circuitBreaker(), store: { check: memoryStore(), critical: true } } });
 * const address = await app.listen({ port: 0, host: '127.0.0.1' });
 * const answer = await fetch(`${address}/health/ready`);
 * console.log(answer.status, await answer.json());
 * await app.close();
 * ```
 */
export const health: FastifyPluginAsync<HealthOptions> = /* @__PURE__ */ pluginOf('health', healthPlugin);

function answer(reply: FastifyReply, problem: Problem): void {
  if (reply.sent || reply.raw.headersSent) return;
  for (const name of unsentAnswerHeaders) {
    reply.removeHeader(name);
    reply.raw.removeHeader(name);
  }
  setWords(reply.raw, undefined);
  lateEndOf(reply.raw).isReplaced = true;
  // The handler's serializer is for another body.
  reply.code(problem.status).type(problemType).serializer(String).send(problemBody(problem));
  // Fastify must neither send what the handler answers later nor warn about it.
  reply.hijack();
}

const idempotencyPlugin: FastifyPluginAsync<IdempotencyPluginOptions> = async (app, options) => {
  // A mistake shows when the plugin is registered, even if no route follows.
  const common = protectionOf(options, {});
  const protections = new Set([common]);
  if (Object.hasOwn(app, registered)) {
    const advice =
      'give a route options of its own by config: { idempotency: ... }, or register it in a child of this instance';
    throw new TypeError(`idempotency: it is registered in this instance already; ${advice}`);
  }
  if (!(registered in app)) app.decorateRequest('idempotency', undefined);
  Object.defineProperty(app, registered, { value: true });
  const isSeen = Symbol('holdfast.idempotency');
  const early = new WeakMap<object, HttpIdempotency<FastifyRequest>>();
  // A plugin is loaded later than it is registered, unless the caller awaits it. Without this hook, a route added meanwhile would run twice,
  // unnoticed.
  app.addHook('onRequest', (request, _reply, next) => {
    if (request.is404) return next();
    const { config, method, url } = request.routeOptions;
    const { idempotency: own } = config;
    if (own === false || isSeen in config) return next();
    // The route's own options may name other methods, or require a key.
    let protection = own === undefined ? common : early.get(config);
    if (protection === undefined) {
      protection = protectionOf(options, own!);
      early.set(config, protection);
    }
    if (protection.passes(request.method, request.headers['idempotency-key'])) return next();
    const advice =
      'write "await app.register(idempotency, options)" before the routes, or give this one config: { idempotency: false }';
    next(
      new TypeError(
        `idempotency: the route ${method} ${url} is not protected, since it was made before the plugin was loaded; ${advice}`,
      ),
    );
  });
  // The server has closed then, but the handler of a client that has left may still work.
  app.addHook('onClose', () => Promise.all([...protections].map((protection) => protection.ended())));
  app.addHook('onRoute', (route) => {
    const { idempotency: own, [added]: ofParent } = (route.config ?? {}) as RouteConfig;
    // The plugin of an outer instance comes first; the nearest one applies.
    const onRequests = [route.onRequest ?? []].flat().filter((hook) => hook !== ofParent?.onRequest);
    const preHandlers = [route.preHandler ?? []].flat().filter((hook) => hook !== ofParent?.preHandler);
    const protection = own === undefined ? common : own === false ? undefined : protectionOf(options, own);
    if (protection !== undefined) protections.add(protection);
    const isProtected = [route.method].flat().some((method) => protection?.methods.includes(method));
    const hooks = protection !== undefined && isProtected ? hooksOf(app, route, protection) : undefined;
    route.config = { ...route.config, [isSeen]: true, [added]: hooks } as FastifyContextConfig;
    // Before any parsing hook, because a hook that checks a signature reads the whole body.
    route.onRequest = hooks === undefined ? onRequests : [...onRequests, hooks.onRequest];
    // Last, so that the caller has been authenticated, in this route or before it.
    route.preHandler = hooks === undefined ? preHandlers : [...preHandlers, hooks.preHandler];
    if (hooks !== undefined) route.handler = answeringThoughAlone(route.handler);
  });
};

/** Marks an instance. Inner instances inherit the mark but do not own it. Shared by all copies of this package. */
const registered = /* @__PURE__ */ Symbol.for('holdfast.idempotency.registered');
/** In a route's config: the hooks that were added to it. */
const added = /* @__PURE__ */ Symbol.for('holdfast.idempotency.hooks');

type RouteConfig = { readonly idempotency?: RouteIdempotency; readonly [added]?: RouteHooks | undefined };

interface RouteHooks {
  readonly onRequest: onRequestHookHandler;
  readonly preHandler: preHandlerHookHandler;
}

function hooksOf(app: FastifyInstance, route: RouteOptions, protection: HttpIdempotency<FastifyRequest>): RouteHooks {
  const operations = operationsOf(route, protection.methods);
  const hasTimeout = (route.handlerTimeout ?? (app.initialConfig as TimeoutConfig).handlerTimeout ?? 0) > 0;
  return {
    onRequest({ method, raw, headers }, _reply, next) {
      const isKeyed = !protection.passes(method, headers['idempotency-key']);
      if (isKeyed && announcesBody(raw) && !raw.readableDidRead) tapBody(raw, protection.maxInputBytes);
      next();
    },
    preHandler(request, reply, next) {
      if (protection.passes(request.method, request.headers['idempotency-key'])) return next();
      const exchange = new Exchange(request, reply, operations, hasTimeout, next);
      protection.handle(exchange, next as (error: unknown) => void);
    },
  };
}

/** The operation names by method. Routes with the same path differ by their constraints, such as a version or a host. */
function operationsOf({ url, constraints = {} }: RouteOptions, methods: readonly string[]): Operations {
  const name = [url, ...Object.entries(constraints).map(([name, value]) => `${name}=${String(value)}`)].join(' ');
  return Object.fromEntries(methods.map((method) => [method, `${method} ${name}`]));
}

type Operations = Readonly<Record<string, string>>;

/** Fastify's types do not have it yet. */
type TimeoutConfig = { readonly handlerTimeout?: number };

class Exchange implements IdempotencyExchange<FastifyRequest> {
  readonly request: FastifyRequest;
  private readonly reply: FastifyReply;
  private readonly operations: Operations;
  private readonly hasTimeout: boolean;
  private readonly next: () => void;

  constructor(
    request: FastifyRequest,
    reply: FastifyReply,
    operations: Operations,
    hasTimeout: boolean,
    next: () => void,
  ) {
    this.request = request;
    this.reply = reply;
    this.operations = operations;
    this.hasTimeout = hasTimeout;
    this.next = next;
  }

  get method(): string {
    return this.request.method;
  }

  get url(): string {
    return this.request.originalUrl;
  }

  get contentType(): string | undefined {
    return contentTypeOf(this.request.raw);
  }

  get traceparent(): string | undefined {
    return traceparentOf(this.request.raw);
  }

  operation(): string {
    return this.operations[this.request.method]!;
  }

  keyLines(): readonly string[] {
    return keyLinesOf(this.request.raw);
  }

  /** The body's bytes as received, complete if a parser has read them. Bytes consumed by an earlier hook are gone: the parsed body takes their place. */
  body(maxBytes: number): ReturnType<IdempotencyExchange<FastifyRequest>['body']> {
    const { raw, body: parsed } = this.request;
    const body = findTap(raw)?.body();
    if (body === undefined) return bodyOf(raw, parsed, maxBytes);
    const isJson = isJsonType(this.contentType);
    return body instanceof Promise ? body.then((all) => contentOf(all, isJson)) : contentOf(body, isJson);
  }

  refuse(problem: Problem): void {
    this.reply
      .code(problem.status)
      .headers(problem.headers ?? {})
      .type(problemType)
      .send(problemBody(problem));
  }

  /** Bypasses Fastify: the stored bytes have already passed its hooks. */
  replay(answer: StoredAnswer, key: string): void {
    const { reply } = this;
    reply.hijack();
    for (const [name, value] of Object.entries(reply.getHeaders())) {
      if (value !== undefined) reply.raw.setHeader(name, value);
    }
    replay(reply.raw, answer, key);
  }

  run(handle: IdempotencyHandle, keeper: AnswerKeeper): void {
    this.request.idempotency = handle;
    keeper.watch(this.reply.raw, this);
    this.next();
  }

  isAnswered(): boolean {
    return this.reply.sent || this.isTimedOut();
  }

  /** Whether the route's `handlerTimeout` has fired. */
  isTimedOut(): boolean {
    // Reading its signal would create one.
    return (
      this.hasTimeout &&
      (this.request.signal.reason as { code?: unknown } | undefined)?.code === 'FST_ERR_HANDLER_TIMEOUT'
    );
  }
}

/**
 * Sends a handler's undefined result itself when the client has disconnected. Fastify sends nothing then, so the answer would never exist, and its
 * record would be held for ever.
 */
function answeringThoughAlone(handler: RouteHandlerMethod): RouteHandlerMethod {
  return function (this: FastifyInstance, request, reply) {
    const result: unknown = handler.call(this, request, reply);
    if (result instanceof Promise) {
      const lateEnd = lateEndOf(reply.raw);
      lateEnd.isReported = true;
      result.then(
        () => lateEnd.report(lateEnd.isReplaced && answersFailure(reply)),
        () => lateEnd.report(true),
      );
      whenAlone(reply.raw, () => {
        const answer = (payload: unknown) => {
          if (payload === undefined && !reply.sent && !reply.raw.headersSent) reply.send();
        };
        // Fastify answers for a handler that fails.
        result.then(answer, () => {});
      });
    }
    return result;
  };
}

/** Whether the status is that of a failure, and was set since the deadline has answered. */
function answersFailure({ statusCode }: FastifyReply): boolean {
  return statusCode >= 500 && statusCode !== timedOutStatus;
}

/**
 * Plugin that runs each request with an `Idempotency-Key` once and answers every repetition with the same response.
 *
 * Register it before the routes, with `await`; it runs after validation and every other `preHandler`, so that the caller is
 * known. A route defined before the plugin was loaded answers 500 to requests with a key, without running its handler. A route sets its own
 * options by `config: { idempotency: { required: true } }`, or turns the plugin off by `false`. The key is valid within one `scope`, method and route; the
 * same key with another request is refused (422), and so is a repetition while the first is in flight (409). The response
 * is stored before the client receives its end. Responses 5xx, 401, 403, 408, 421, 425, 429 are not stored: the next request runs.
 * The handler finds its record as `request.idempotency`. `app.close()` waits until handlers whose clients have left are recorded, but at most ten
 * seconds; with an `engine` of your own, await its `idle()` after `app.close()`.
 *
 * `store` and `scope` are required; an invalid option makes `register` fail.
 * @example
 * ```ts
 * import Fastify from 'fastify';
 * import { memoryStore } from 'holdfast';
 * import { idempotency } from 'holdfast/fastify';
 *
 * const app = Fastify();
 * let orders = 0;
 * await app.register(idempotency, {
 *   store: memoryStore(),
 *   scope: (request) => request.headers.authorization ?? 'nobody',
 *   onLost: 'refuse',
 * });
 * app.post('/orders', { config: { idempotency: { required: true } } }, async (_request, reply) => {
 *   reply.code(201);
 *   return { order: ++orders };
 * });
 * const address = await app.listen({ port: 0, host: '127.0.0.1' });
 * const order = { method: 'POST', headers: { 'idempotency-key': '"8e03978e-40d5"', authorization: 'alice' } };
 * for (const attempt of [1, 2]) {
 *   const answer = await fetch(`${address}/orders`, order);
 *   console.log(attempt, answer.status, await answer.text(), answer.headers.get('idempotent-replayed'));
 * }
 * await app.close();
 * ```
 */
export const idempotency: FastifyPluginAsync<IdempotencyPluginOptions> = /* @__PURE__ */ pluginOf(
  'idempotency',
  idempotencyPlugin,
);

function protectionOf(
  options: IdempotencyPluginOptions,
  own: Partial<IdempotencyRequestOptions<FastifyRequest>>,
): HttpIdempotency<FastifyRequest> {
  // An undefined option was left out, and must not override the plugin's.
  const said = Object.fromEntries(Object.entries(own).filter(([, value]) => value !== undefined));
  const merged = { ...options, ...said };
  if (!('engine' in merged)) return new HttpIdempotency(merged, undefined);
  const { engine, ...requestOptions } = merged;
  return new HttpIdempotency(engine, requestOptions);
}

const responseCachePlugin: FastifyPluginAsync<ResponseCacheOptions<FastifyRequest>> = async (app, options) => {
  const cache = new HttpResponseCache<FastifyRequest>(options);
  const common = checkRules(options);
  app.decorate('responseCache', cache);
  app.addHook('onClose', () => cache.close());
  app.addHook('onRoute', (route) => {
    const own = (route.config as { responseCache?: RouteResponseCache } | undefined)?.responseCache;
    const methods = [route.method].flat();
    const isRead = methods.some((method) => method === 'GET' || method === 'HEAD');
    if (own === false || !(isRead || cache.onUnsafe === 'invalidate')) return;
    const rules = own === undefined ? common : checkRules(options, own);
    // Last, so that the caller has been authenticated, in this route or before it.
    route.preHandler = [
      ...[route.preHandler ?? []].flat(),
      (request: FastifyRequest, reply: FastifyReply, next: (error?: Error) => void) =>
        handleCached(app, cache, rules, request, reply, next),
    ];
    if (isRead) route.handler = answeringThoughAlone(route.handler);
  });
};

function handleCached(
  app: FastifyInstance,
  cache: HttpResponseCache<FastifyRequest>,
  rules: CheckedRules<FastifyRequest>,
  request: FastifyRequest,
  reply: FastifyReply,
  next: (error?: Error) => void,
): void {
  cache.handle(
    {
      ...{ request, incoming: request.raw, response: reply.raw, protocol: `${request.protocol}://${request.host}` },
      ...{ url: request.originalUrl, headersBefore: reply.getHeaders() },
      next: (error) => next(error as Error | undefined),
      takeOver: () => void reply.hijack(),
      dispatch: (incoming, outgoing) => app.routing(incoming, outgoing),
    },
    rules,
  );
}

/**
 * Plugin that caches responses to GET and HEAD as their `Cache-Control` and `Vary` allow, and runs one handler at a time for
 * identical requests, across all processes that share a store.
 *
 * Register it before the routes, with `await`; it runs after validation and every other `preHandler`. A route sets its own
 * rules by `config: { responseCache: { ttl: '1m' } }`, or turns the plugin off by `false`. Responses that are private, `no-store` or set a cookie are not kept;
 * those to requests with cookies or `Authorization` only if they say `public` or `s-maxage`. A response that says nothing is kept for
 * `ttl`. Responses carry `Age` and `Cache-Status`. `app.responseCache.invalidateTag(tag)` invalidates responses.
 *
 * Options: `ttl`, `staleWhileRevalidate`, `staleIfError`, `maxBodyBytes`, `key`, `tags`, and those of `cache`, such as `store`; an invalid one
 * makes `register` fail.
 * @example
 * ```ts
 * import Fastify from 'fastify';
 * import { memoryStore } from 'holdfast';
 * import { responseCache } from 'holdfast/fastify';
 *
 * const app = Fastify();
 * let runs = 0;
 * await app.register(responseCache, { store: memoryStore(), staleIfError: '1h', tags: () => ['news'] });
 * app.get('/news', { config: { responseCache: { ttl: '1m' } } }, async () => ({ run: ++runs }));
 * const address = await app.listen({ port: 0, host: '127.0.0.1' });
 * for (let request = 0; request < 2; request++) {
 *   const answer = await fetch(`${address}/news`);
 *   console.log(await answer.text(), answer.headers.get('cache-status'));
 * }
 * await app.responseCache.invalidateTag('news');
 * console.log(await (await fetch(`${address}/news`)).text()); // {"run":2}
 * await app.close();
 * ```
 */
export const responseCache: FastifyPluginAsync<ResponseCacheOptions<FastifyRequest>> = /* @__PURE__ */ pluginOf(
  'responseCache',
  responseCachePlugin,
);
