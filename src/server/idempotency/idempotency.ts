/**
 * Idempotency over HTTP: maps requests to the engine, and its results to answers. Independent of any framework.
 *
 * Promise: a request with a key runs once, and a client that repeats it gets the bytes of the first answer. A key is worthless in another scope, on
 * another route, or with another body. If that cannot be guaranteed, nothing runs.
 */
import type { ServerResponse } from 'node:http';
import { longestPart } from '../../coordination/idempotency/engine.js';
import {
  type AdapterHandle,
  type Begun,
  fingerprint,
  type Idempotency,
  type IdempotencyHandle,
  type IdempotencyOptions,
  idempotency,
  isPointer,
  largeBytes,
  nextTurn,
  ownFingerprint,
} from '../../coordination/idempotency/idempotency.js';
import { type Clock, callbackTimer, systemClock, type Timer } from '../../core/clock.js';
import {
  checkOptions,
  type Field,
  flag,
  func,
  having,
  impossibleOption,
  integer,
  optional,
  withDefault,
} from '../../core/options.js';
import { type Answer, type CaptureTerms, captureAnswer, type ResponseCapture, type StoredAnswer } from '../capture.js';
import { findLateEnd, type LateEnd } from '../late-end.js';
import type { Problem } from '../problem.js';
import type { Header } from '../response-head.js';
import { shortened } from '../shortened.js';
import { decodeAnswer, encodeAnswer } from './answer.js';
import { defaultMethods, isKeptStatus, keptHeaders, parseKey, problemOf, type Refusal } from './protocol.js';

/** What counts as the same request. */
export type RequestFingerprint<Request> =
  /** Returns text or bytes that are equal for requests that count as the same, in place of method, path, query and body. */
  | ((request: Request) => string | Uint8Array | PromiseLike<string | Uint8Array>)
  /** JSON pointers to members of the body that are ignored, such as `/sentAt`. */
  | { readonly exclude: readonly string[] };

/** Options for requests with a key, of a route or of all routes. */
export interface IdempotencyRequestOptions<Request> {
  /**
   * The owner of the key: the user or tenant as the server knows it after authentication, never what the request claims.
   * Keys of different scopes are independent. Must return a non-empty string.
   */
  readonly scope: (request: Request) => string | PromiseLike<string>;
  /** Whether a request without a key is refused with 400. Default `false`: it is handled, unprotected. */
  readonly required?: boolean | undefined;
  /** The methods to which a key applies. Default `['POST', 'PATCH']`. */
  readonly methods?: readonly string[] | undefined;
  /** Which statuses are stored for replay. Default: 2xx, 3xx and 4xx but 401, 403, 408, 421, 425 and 429. */
  readonly keep?: ((status: number) => boolean) | undefined;
  /** What counts as the same request. Default: method, path, query, content type, and body; JSON is compared as data. */
  readonly fingerprint?: RequestFingerprint<Request> | undefined;
  /** The longest response body that is stored. A longer one is sent, and a retry then gets 409. Default 1 MiB. */
  readonly maxBodyBytes?: number | undefined;
  /** The longest request body that the middleware reads, if no parser has read it. A longer one is refused with 413. Default 32 MiB. */
  readonly maxInputBytes?: number | undefined;
  /** Address of your API's page on idempotency: sent in error bodies as their `type`, and as `Link`. */
  readonly documentation?: string | undefined;
  /** Source of time. Default `systemClock`. */
  readonly clock?: Clock | undefined;
}

/** Options of the `idempotency` middleware: those of the engine, and those for requests. */
export type IdempotencyMiddlewareOptions<Request> = Omit<
  IdempotencyOptions,
  keyof IdempotencyRequestOptions<Request> | 'serializer'
> &
  IdempotencyRequestOptions<Request>;

/** The body of a request, as far as it is known. */
export interface RequestBody {
  readonly content: Uint8Array | string | undefined;
  readonly isJson: boolean;
}

/** One request and its answer, as a framework's adapter presents them. */
export interface IdempotencyExchange<Request> {
  readonly request: Request;
  readonly method: string;
  /** The operation: method and route, with parameters unnamed, as in `POST /orders/:id`. */
  readonly operation: () => string;
  /** Path and query as the client sent them. */
  readonly url: string;
  readonly contentType: string | undefined;
  readonly traceparent: string | undefined;
  /** Every line of the key header. */
  readonly keyLines: () => readonly string[];
  /** Undefined if the client disconnected before the whole body had arrived. */
  readonly body: (
    maxBytes: number,
  ) => RequestBody | 'too-large' | undefined | Promise<RequestBody | 'too-large' | undefined>;
  readonly refuse: (problem: Problem) => void;
  readonly replay: (answer: StoredAnswer, key: string) => void;
  /** Runs the handler with the record; its answer goes to the keeper. */
  readonly run: (handle: IdempotencyHandle, keeper: AnswerKeeper) => void;
  /** Whether the request has been answered before its handler began: a deadline may pass while its body or the store is awaited. */
  readonly isAnswered: () => boolean;
  /** Whether the framework has answered in place of a handler that may still be running. */
  readonly isTimedOut: () => boolean;
}

/** How long a handler that has begun to answer may continue after its client has disconnected. */
const lonelyStreamMs = 15_000;
/** How long a server that closes waits for handlers: they may never end. */
const longestEndMs = 10_000;
/** Space for the status line and the headers, in addition to the body. */
const headBytes = 65_536;

export class HttpIdempotency<Request> {
  readonly methods: readonly string[];
  private readonly engine: Pick<Idempotency, 'begin'>;
  /** The same, if it was made here, so that nobody else can wait for it. */
  private readonly ownEngine: Idempotency | undefined;
  private readonly clock: Clock;
  private readonly scope: (request: Request) => string | PromiseLike<string>;
  private readonly isRequired: boolean;
  private readonly keep: (status: number) => boolean;
  private readonly fingerprint: RequestFingerprint<Request> | undefined;
  private readonly maxBodyBytes: number;
  readonly maxInputBytes: number;
  private readonly documentation: string | undefined;

  constructor(
    first: Idempotency | IdempotencyMiddlewareOptions<Request>,
    second: IdempotencyRequestOptions<Request> | undefined,
  ) {
    const given = isEngine(first) ? second : first;
    const { own, rest } = divided(given);
    const options = checkOptions('idempotency', own, requestFields<Request>());
    if (isEngine(first)) {
      // A given engine has its own options, so any option that is not ours is a mistake.
      checkOptions('idempotency', rest, {});
      this.engine = first;
      this.ownEngine = undefined;
    } else {
      const { maxBodyBytes, clock } = options;
      this.ownEngine = idempotency({
        ...(rest as unknown as IdempotencyOptions),
        ...(clock === undefined ? {} : { clock }),
        maxBodyBytes: maxBodyBytes + headBytes,
      });
      this.engine = this.ownEngine;
    }
    this.clock = options.clock ?? systemClock;
    this.scope = options.scope;
    this.isRequired = options.required;
    this.methods = options.methods;
    this.keep = options.keep ?? isKeptStatus;
    this.fingerprint = options.fingerprint;
    this.maxBodyBytes = options.maxBodyBytes;
    this.maxInputBytes = options.maxInputBytes;
    this.documentation = options.documentation;
  }

  /** Resolves when an engine that was made here is idle, or after ten seconds. A given one may serve others, and is its owner's to wait for. */
  async ended(): Promise<void> {
    const { ownEngine, clock } = this;
    if (ownEngine === undefined) return;
    await new Promise<void>((resolve) => {
      const patience = callbackTimer(resolve);
      clock.schedule(patience, clock.now() + longestEndMs);
      ownEngine.idle().then(() => {
        clock.cancel(patience);
        resolve();
      });
    });
  }

  /** Whether a request is not for us: because of its method, or because it has no key and needs none. This is the cheap check. */
  passes(method: string, key: string | readonly string[] | undefined | null): boolean {
    return !this.methods.includes(method) || ((key === undefined || key === null) && !this.isRequired);
  }

  /**
   * Runs, replays or refuses the request, synchronously if nothing has to be awaited.
   *
   * @param fail - Receives what a function of the options threw; nothing has been started then.
   */
  handle(exchange: IdempotencyExchange<Request>, fail: (error: unknown) => void): void {
    try {
      this.begin(exchange)?.catch(fail);
    } catch (error) {
      fail(error);
    }
  }

  private begin(exchange: IdempotencyExchange<Request>): Promise<void> | undefined {
    const parsed = parseKey(exchange.keyLines());
    if (parsed.kind === 'absent') return this.refuse(exchange, { kind: 'missing-key' });
    if (parsed.kind === 'invalid') return this.refuse(exchange, { kind: 'invalid-key', reason: parsed.reason });
    const { key } = parsed;
    const scope = this.scope(exchange.request);
    if (typeof scope !== 'string') return this.beginLater(exchange, key, scope);
    const print = this.printOf(exchange, scope);
    if (print instanceof Promise) return print.then((known) => this.claim(exchange, key, scope, known));
    return this.claim(exchange, key, scope, print);
  }

  private async beginLater(
    exchange: IdempotencyExchange<Request>,
    key: string,
    given: PromiseLike<string>,
  ): Promise<void> {
    const scope = await given;
    return this.claim(exchange, key, scope, await this.printOf(exchange, scope));
  }

  private printOf(exchange: IdempotencyExchange<Request>, scope: string): Known | Promise<Known> {
    if (typeof scope !== 'string' || scope === '') {
      throw new TypeError('idempotency: scope(request) must give the caller as a string that is not empty');
    }
    return this.fingerprintOf(exchange);
  }

  private claim(
    exchange: IdempotencyExchange<Request>,
    key: string,
    scope: string,
    print: Known,
  ): Promise<void> | undefined {
    if (print === undefined || exchange.isAnswered()) return;
    if (print === 'too-large') return this.refuse(exchange, { kind: 'body-too-large', maxBytes: this.maxInputBytes });
    const begun = this.engine.begin({
      scope: shortened(scope, longestPart),
      key,
      operation: shortened(exchange.operation(), longestPart),
      fingerprint: print,
      trace: exchange.traceparent,
    });
    if (!(begun instanceof Promise)) return this.goOn(exchange, key, begun);
    return begun.then((found) => (exchange.isAnswered() ? giveBack(found) : this.goOn(exchange, key, found)));
  }

  private goOn(exchange: IdempotencyExchange<Request>, key: string, begun: Begun): undefined {
    switch (begun.kind) {
      case 'run':
      case 'takeover':
        return this.run(exchange, begun.handle);
      case 'store-down':
        if (begun.handle !== undefined) return this.run(exchange, begun.handle);
        return this.refuse(exchange, { kind: 'store-unavailable' });
      case 'replay': {
        const answer = decodeAnswer(begun.result);
        if (answer === undefined) return this.refuse(exchange, { kind: 'result-not-stored' });
        exchange.replay(answer, key);
        return;
      }
      case 'busy':
        return this.refuse(exchange, { kind: 'in-progress', retryAfterMs: begun.retryAfterMs });
      case 'mismatch':
        return this.refuse(exchange, { kind: 'key-reused' });
      case 'in-doubt':
        return this.refuse(exchange, { kind: 'outcome-unknown' });
      case 'result-not-stored':
        return this.refuse(exchange, { kind: 'result-not-stored' });
    }
  }

  private refuse(exchange: IdempotencyExchange<Request>, refusal: Refusal): undefined {
    exchange.refuse(problemOf(refusal, this.documentation));
  }

  private run(exchange: IdempotencyExchange<Request>, handle: AdapterHandle): undefined {
    exchange.run(handle, new AnswerKeeper(handle, this.keep, this.maxBodyBytes, this.clock));
  }

  /** What is compared with the first request. Undefined: the client disconnected before the whole body had arrived. */
  private fingerprintOf(exchange: IdempotencyExchange<Request>): Known | Promise<Known> {
    const { fingerprint: rule } = this;
    if (typeof rule === 'function') return this.ownFingerprintOf(exchange.request, rule);
    const exclude = rule?.exclude;
    const body = exchange.body(this.maxInputBytes);
    if (!(body instanceof Promise)) return printed(exchange, body, exclude);
    return body.then((found) => printed(exchange, found, exclude));
  }

  private async ownFingerprintOf(
    request: Request,
    rule: Extract<RequestFingerprint<Request>, (request: Request) => unknown>,
  ): Promise<Known> {
    const what = await rule(request);
    if (typeof what === 'string' || what instanceof Uint8Array) return ownFingerprint(what);
    throw new TypeError('idempotency: fingerprint(request) must give a string or bytes');
  }
}

/** Frees a key that was taken for a request that will not be handled. */
function giveBack(begun: Begun): undefined {
  if (!('handle' in begun) || begun.handle === undefined) return;
  begun.handle.release();
  void begun.handle.abandon();
}

type Known = Uint8Array | 'too-large' | undefined;

/** An answer that is being recorded. */
export type Answering = Pick<ResponseCapture, 'hasBegun' | 'stop'>;

/** Stores the answer of one attempt. */
export class AnswerKeeper implements CaptureTerms {
  readonly maxBodyBytes: number;
  private readonly handle: AdapterHandle;
  private readonly keep: (status: number) => boolean;
  private readonly clock: Clock;
  private response: ServerResponse | undefined = undefined;
  /** The length of the body that the head has declared. */
  private declaredBytes: number | undefined = undefined;
  private answering: Answering | undefined = undefined;
  private exchange: Pick<IdempotencyExchange<unknown>, 'isTimedOut'> | undefined = undefined;
  private patience: Timer | undefined = undefined;

  constructor(handle: AdapterHandle, keep: (status: number) => boolean, maxBodyBytes: number, clock: Clock) {
    this.handle = handle;
    this.keep = keep;
    this.maxBodyBytes = maxBodyBytes;
    this.clock = clock.background ?? clock;
  }

  /** Records the answer from Node's own response. */
  watch(response: ServerResponse, exchange: Pick<IdempotencyExchange<unknown>, 'isTimedOut'>): void {
    this.response = response;
    this.exchange = exchange;
    this.answering = captureAnswer(response, this);
  }

  /** Records the answer from a stream, which reports when its client has disconnected. */
  watchStream(answering: Answering): void {
    this.answering = answering;
  }

  keepHeaders(headers: readonly Header[]): string[] {
    this.declaredBytes = declaredBytesOf(headers);
    return keptHeaders(headers);
  }

  /** The promise resolves when the answer may be sent, and never rejects; without a promise it may be sent at once. */
  onAnswer(answer: Answer): Promise<unknown> | undefined {
    this.endPatience();
    const end = this.endOf(answer);
    return end instanceof Promise ? end : undefined;
  }

  private endOf(answer: Answer): unknown {
    const { handle } = this;
    // After a timeout a handler may also answer by itself: connect-timeout can be told to leave that to it.
    const isInPlace = answer.status >= 500 && this.isReplaced;
    if (isInPlace || !this.isKept(answer.status)) return this.giveUp();
    if (!this.isWhole(answer)) return handle.complete(undefined);
    if (answer.body.byteLength > largeBytes) return nextTurn().then(() => handle.complete(encodeAnswer(answer)));
    return handle.complete(encodeAnswer(answer));
  }

  /**
   * The handler failed without an answer, or in the middle of one. Until the promise has resolved, which never rejects, the client must not learn of
   * it: it would repeat the request at once, and find its key taken.
   */
  onBroken(): Promise<unknown> | undefined {
    this.endPatience();
    const end = this.handle.decision === 'keep' ? this.handle.complete(undefined) : this.giveUp();
    return end instanceof Promise ? end : undefined;
  }

  onClientGone(): void {
    this.patience ??= callbackTimer(() => this.lonely());
    this.clock.schedule(this.patience, this.clock.now() + lonelyStreamMs);
  }

  private lonely(): void {
    // A handler that works in the background gets all the time it needs.
    if (this.answering?.hasBegun !== true) return this.onClientGone();
    this.answering.stop();
    void this.handle.complete(undefined);
  }

  private endPatience(): void {
    if (this.patience !== undefined) this.clock.cancel(this.patience);
  }

  /** Whether there is all that the client gets. It never gets the whole of a body whose head has declared another length, and must not later take it for that. */
  private isWhole(answer: Answer): answer is StoredAnswer {
    const { status, body } = answer;
    const { declaredBytes } = this;
    if (body === undefined || declaredBytes === undefined || body.byteLength === declaredBytes)
      return body !== undefined;
    return status === 204 || status === 304 || this.response?.req.method === 'HEAD';
  }

  private isKept(status: number): boolean {
    const { decision } = this.handle;
    if (decision !== undefined) return decision === 'keep';
    try {
      return this.keep(status);
    } catch {
      // Running twice is worse than one answer too many.
      return true;
    }
  }

  /** Whether somebody else has answered in place of a handler that may still be running. */
  private get isReplaced(): boolean {
    return this.lateEnd?.isReplaced === true || this.exchange?.isTimedOut() === true;
  }

  private get lateEnd(): LateEnd | undefined {
    return this.response && findLateEnd(this.response);
  }

  /**
   * Frees the key for another attempt. But if the handler may still be running, a second effect could follow: then it keeps the key until it has ended. If
   * it does not fail then, or if nobody will see its end, the request counts as handled, and its answer as not stored.
   */
  private giveUp(): unknown {
    if (!this.isReplaced) return this.handle.abandon();
    const { lateEnd } = this;
    if (lateEnd?.isReported !== true) return this.handle.complete(undefined);
    this.awaitEnd(lateEnd);
    return undefined;
  }

  private awaitEnd(lateEnd: LateEnd): void {
    const { handle } = this;
    lateEnd.listen((hasFailed) => {
      const { decision = hasFailed ? 'release' : 'keep' } = handle;
      void (decision === 'release' ? handle.abandon() : handle.complete(undefined));
    });
  }
}

function declaredBytesOf(headers: readonly Header[]): number | undefined {
  for (const [name, value] of headers) {
    // Most names have another length.
    if (name.length === 14 && name.toLowerCase() === 'content-length') return Number(value);
  }
  return undefined;
}

function printed<Request>(
  { method, url, contentType }: IdempotencyExchange<Request>,
  body: RequestBody | 'too-large' | undefined,
  exclude: readonly string[] | undefined,
): Known | Promise<Known> {
  if (body === undefined || body === 'too-large') return body;
  const queryAt = url.indexOf('?');
  const path = queryAt < 0 ? url : url.slice(0, queryAt);
  const query =
    queryAt < 0
      ? ''
      : url
          .slice(queryAt + 1)
          .split('&')
          .sort()
          .join('&');
  const { content, isJson } = body;
  const { family, boundary } = kindOf(contentType);
  const head = [method, path, query, content === undefined ? '' : family];
  return fingerprint({ head, body: content, isJson, exclude, boundary });
}

interface ContentKind {
  readonly contentType: string | undefined;
  /** The content type without parameters, unless they say how to read it; all kinds of JSON are treated as one. */
  readonly family: string;
  readonly isJson: boolean;
  /** What separates the parts of a form. */
  readonly boundary: string | undefined;
}

/** The content type of the last request, cached because most requests have the same. */
let lastKind: ContentKind = { contentType: undefined, family: '', isJson: false, boundary: undefined };

function kindOf(contentType: string | undefined): ContentKind {
  if (contentType !== lastKind.contentType) lastKind = newKind(contentType);
  return lastKind;
}

function newKind(contentType: string | undefined): ContentKind {
  const [before = ''] = contentType?.split(';') ?? [];
  const essence = before.trim().toLowerCase();
  const isJson = /[/+]json$/.test(essence);
  const [, quoted, plain] = (contentType !== undefined && form.exec(contentType)) || [];
  const boundary = quoted ?? plain;
  const isOther = boundary === undefined && essence.startsWith('multipart/');
  return { contentType, family: isJson ? 'json' : isOther ? contentType! : essence, isJson, boundary };
}

/** Parsers may differ about a form whose type has other parameters. Such a form is not matched, so its boundary counts. */
const form = /^multipart\/form-data\s*;(?:\s*charset=[\w-]+\s*;)?\s*boundary=(?:"([^"\\]{1,70})"|([^\s;"\\]{1,70}))$/i;

export function isJsonType(contentType: string | undefined): boolean {
  return kindOf(contentType).isJson;
}

function isEngine(given: unknown): given is Idempotency {
  return typeof given === 'object' && given !== null && typeof (given as Idempotency).begin === 'function';
}

function requestFields<Request>() {
  return {
    scope: {
      ...func<(request: Request) => string | PromiseLike<string>>(),
      allowed: 'a function that answers whose key it is, such as (request) => request.user.id',
    },
    required: withDefault(flag(), false),
    methods: withDefault(methods, defaultMethods),
    keep: optional(func<(status: number) => boolean>()),
    fingerprint: optional(fingerprintField as Field<RequestFingerprint<Request>>),
    maxBodyBytes: withDefault(integer({ min: 0 }), 1_048_576),
    maxInputBytes: withDefault(integer({ min: 1 }), 33_554_432),
    documentation: optional(address),
    clock: optional(having<Clock>('a clock such as systemClock', 'now', 'wallNow', 'schedule', 'cancel')),
  };
}

const methods: Field<readonly string[]> = {
  allowed: "a list of methods such as ['POST', 'PATCH']",
  parse(value) {
    if (!Array.isArray(value) || value.length === 0) return undefined;
    return value.every((one) => typeof one === 'string' && /^[A-Z-]+$/.test(one)) ? [...value] : undefined;
  },
};

const fingerprintField: Field<RequestFingerprint<never>> = {
  allowed: "a function, or { exclude: ['/sentAt'] } with JSON pointers",
  parse(value) {
    if (typeof value === 'function') return value as RequestFingerprint<never>;
    if (typeof value !== 'object' || value === null) return undefined;
    const { exclude, ...others } = value as { readonly exclude?: unknown };
    if (!Array.isArray(exclude) || Object.keys(others).length > 0) return undefined;
    return exclude.every(isPointer) ? { exclude: [...exclude] } : undefined;
  },
};

const address: Field<string> = {
  allowed: "an address such as 'https://example.com/docs/idempotency'",
  // The value is put into a header, between angle brackets.
  parse: (value) => (typeof value === 'string' && /^[!-;=?-~]{1,500}$/.test(value) ? value : undefined),
};

/** Splits the options into ours and those that the engine checks. */
function divided(given: unknown): { own: Record<string, unknown>; rest: Record<string, unknown> } {
  const own: Record<string, unknown> = {};
  const rest: Record<string, unknown> = {};
  if (given !== undefined && (typeof given !== 'object' || given === null)) {
    throw impossibleOption('idempotency', 'options', given, 'an object');
  }
  const names = Object.keys(requestFields());
  for (const [name, value] of Object.entries(given ?? {})) (names.includes(name) ? own : rest)[name] = value;
  return { own, rest };
}
