/**
 * Deadline of a request: turns the time that the headers grant into a call for the handler. Independent of any framework.
 *
 * Promise: a request whose time is over on arrival is not handled. A request whose time passes while it is handled is answered 504 once, unless an
 * answer has begun, and its call is aborted. A client that disconnects aborts the call, too. When the answer has been sent, no timer and no listener
 * is left.
 */
import { ambient } from '../core/ambient.js';
import { keepAsyncContext } from '../core/async-context.js';
import { Call, showCallsBriefly } from '../core/call.js';
import { type Clock, systemClock, Timer } from '../core/clock.js';
import type { Duration } from '../core/duration.js';
import { DeadlineExceededError } from '../core/errors.js';
import { Events } from '../core/events.js';
import {
  type CommonOptions,
  checkArgument,
  checkOptions,
  commonFields,
  duration,
  flag,
  impossibleOption,
  optional,
  withDefault,
} from '../core/options.js';
import { type HeaderReader, parseAttemptHeader, parseDeadlineHeaders } from '../policies/deadline-headers.js';
import type { Problem } from './problem.js';

/** Options of the `deadline` middleware. */
export interface DeadlineMiddlewareOptions extends CommonOptions {
  /** Time for a request that names none. Default: none, so that only a deadline header sets one. From 1 ms to 24.8 days. */
  readonly default?: Duration | undefined;
  /**
   * The longest time accepted from a deadline header; a longer one is cut to this, because headers come from outside.
   * Default: 60 s, or `default` if that is longer; from 1 ms to
   * 24.8 days, and not below `default`.
   */
  readonly maxAccept?: Duration | undefined;
  /**
   * Whether the deadline and attempt headers are read. `false`: only `default` applies, for public servers.
   * Default `true`.
   */
  readonly headers?: boolean | undefined;
}

/** One request and its answer, as a framework's adapter presents them. */
export interface Exchange {
  /** Carries the call, so that {@link callOf} finds it: Node's own request. */
  readonly request: object;
  readonly header: HeaderReader;
  /** Node's own response. */
  readonly response: ResponseEnd;
  /**
   * Answers, unless an answer has begun. Whatever the handler writes afterwards must do no harm.
   *
   * @param isHandled - Whether the handler may have begun.
   */
  answer(problem: Problem, isHandled: boolean): void;
}

/** The events that end a request: `finish` when the answer has been sent, `close` without it when the client has disconnected. */
export interface ResponseEnd {
  on(event: 'finish' | 'close', listener: () => void): unknown;
  removeListener(event: 'finish' | 'close', listener: () => void): unknown;
}

/** A route's own time, or that it has no limit. */
export type RouteDeadline = Duration | false;

const defaultMaxAcceptMs = 60_000;

// A property instead of a WeakMap, so that the call is found whichever copy of the package created it.
const callKey = Symbol.for('holdfast.call');

/** A request that carries its call. */
interface Carrier {
  [callKey]?: Call;
}

/** The call of a request that went through the middleware, or undefined. */
export function findCall(request: object): Call | undefined {
  return (request as Carrier)[callKey];
}

/** The call of a request, for the adapters' public functions. */
export function requireCall(request: object): Call {
  const call = findCall(request);
  if (call === undefined) {
    throw new TypeError('callOf: the request has no call; mount the deadline middleware before the handler');
  }
  return call;
}

/** Runs a function with the request's call as the current one, where `holdfast/context` keeps it. */
export function runUnderCall(request: object, task: () => void): void {
  const around = ambient();
  const call = findCall(request);
  if (around === undefined || call === undefined) task();
  else around.run(call, task);
}

/** The time that a route allows, in milliseconds: `Infinity` for `false`, undefined if it sets none. */
export function routeLimitMs(route: unknown): number | undefined {
  if (route === undefined) return undefined;
  if (route === false) return Number.POSITIVE_INFINITY;
  const allowed = "a duration such as 5000 or '5s', or false";
  return checkArgument('deadline', 'config.deadline', route, { ...duration({}), allowed });
}

/** Creates a call for each request. */
export class DeadlineEngine {
  readonly name: string;
  readonly clock: Clock;
  readonly events: Events;
  readonly #defaultMs: number | undefined;
  readonly #maxAcceptMs: number;
  readonly #readsHeaders: boolean;

  constructor(given: DeadlineMiddlewareOptions | undefined) {
    showCallsBriefly();
    const options = checkOptions('deadline', given, {
      default: optional(duration({})),
      maxAccept: optional(duration({})),
      headers: withDefault(flag(), true),
      ...commonFields('deadline'),
    });
    const { default: defaultMs, maxAccept } = options;
    if (maxAccept !== undefined && defaultMs !== undefined && maxAccept < defaultMs) {
      const allowed = `at least "default" (${defaultMs} ms), or a request with a deadline gets less time than one without`;
      throw impossibleOption('deadline', 'maxAccept', given?.maxAccept, allowed);
    }
    this.name = options.name;
    this.clock = options.clock ?? systemClock;
    this.events = new Events(options.name, options.on);
    this.#defaultMs = defaultMs;
    this.#maxAcceptMs = maxAccept ?? Math.max(defaultMaxAcceptMs, defaultMs ?? 0);
    this.#readsHeaders = options.headers;
  }

  /**
   * Starts a request: runs `goOn` under its call, or answers the request because its time is over.
   *
   * @param routeMs - The time that the route allows, see {@link routeLimitMs}.
   */
  begin(exchange: Exchange, goOn: () => void, routeMs?: number): void {
    const { header, request } = exchange;
    const nowMs = this.clock.now();
    const grantedMs = this.#grantedMs(header, routeMs);
    const around = findCall(request);
    // Of nested deadlines the nearest applies.
    if (around !== undefined && grantedMs >= around.remainingMs) return goOn();
    if (grantedMs <= 0) return this.#refuse(exchange, grantedMs);
    const attempt = this.#readsHeaders ? parseAttemptHeader(header) : undefined;
    const call = new Call(this.clock, nothing, undefined, around, attempt, nowMs + grantedMs);
    // The caller retries, so nothing inside needs to.
    if (attempt !== undefined) call.retriedBy = this;
    (request as Carrier)[callKey] = call;
    new RequestRun(this, exchange, call, grantedMs).start();
    runUnderCall(request, goOn);
  }

  #grantedMs(header: HeaderReader, routeMs: number | undefined): number {
    if (routeMs === Number.POSITIVE_INFINITY) return routeMs;
    const askedMs = this.#readsHeaders
      ? parseDeadlineHeaders(header, { maxAcceptMs: routeMs ?? this.#maxAcceptMs })
      : undefined;
    return askedMs ?? routeMs ?? this.#defaultMs ?? Number.POSITIVE_INFINITY;
  }

  #refuse(exchange: Exchange, remainingMs: number): void {
    const { name, events } = this;
    if (events.heard) events.emit({ type: 'deadline-too-short', name, remainingMs });
    exchange.answer(
      timedOut('ERR_DEADLINE_TOO_SHORT', 'The deadline of the request had passed when it arrived; it was not handled.'),
      false,
    );
  }
}

/** A running request. It is also the timer of its deadline. */
class RequestRun extends Timer {
  readonly #engine: DeadlineEngine;
  readonly #exchange: Exchange;
  readonly #call: Call;
  readonly #grantedMs: number;
  readonly #onFinish = () => this.#release();
  readonly #onClose = () => this.#clientGone();
  /** The request's async context: the framework's hooks hear of the answer. */
  readonly #context = keepAsyncContext();

  constructor(engine: DeadlineEngine, exchange: Exchange, call: Call, grantedMs: number) {
    super();
    this.#engine = engine;
    this.#exchange = exchange;
    this.#call = call;
    this.#grantedMs = grantedMs;
  }

  start(): void {
    const { response } = this.#exchange;
    response.on('finish', this.#onFinish);
    response.on('close', this.#onClose);
    if (this.#grantedMs === Number.POSITIVE_INFINITY) return;
    this.#engine.clock.schedule(this, this.#call.deadline);
  }

  override expire(): void {
    this.#context.runInAsyncScope(this.#timeIsOver, this);
  }

  /** The time is over while the request is still being handled. */
  #timeIsOver(): void {
    const { name, events } = this.#engine;
    this.#release();
    const afterMs = this.#grantedMs;
    if (events.heard) events.emit({ type: 'deadline-exceeded', name, afterMs });
    const error = new DeadlineExceededError({ policy: name, afterMs });
    // Answered first; otherwise the handler, reacting to the abort, might answer itself, sometimes before and sometimes after.
    this.#exchange.answer(timedOut(error.code, 'The request exceeded its deadline.'), true);
    this.#call.abort(error);
  }

  #clientGone(): void {
    this.#release();
    this.#call.abort(new DOMException('The client closed the connection before it was answered', 'AbortError'));
  }

  #release(): void {
    const { response } = this.#exchange;
    response.removeListener('finish', this.#onFinish);
    response.removeListener('close', this.#onClose);
    this.#call.unfollow();
    this.#engine.clock.cancel(this);
  }
}

/** The status of a request whose time is over. */
export const timedOutStatus = 504;

function timedOut(code: string, detail: string): Problem {
  return { status: timedOutStatus, title: 'Gateway Timeout', detail, code };
}

/** A request's call has no operation of its own. */
function nothing(): void {}
