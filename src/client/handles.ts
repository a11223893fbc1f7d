/**
 * Handles: what counts as a failure in HTTP, for the policies around a request. Statuses count nowhere else.
 *
 * Two questions have two answers. Another attempt makes sense after a busy or broken server. But the service is not unhealthy because of a 429 that
 * names a time: such a service works as intended.
 */
import type { Outcome } from '../core/outcome.js';
import { headerOf, retryHintOf } from '../policies/retry/retry-after.js';
import { quotaOf } from './rate-limit-headers.js';

interface ResponseLike {
  readonly status?: unknown;
  readonly statusCode?: unknown;
  readonly headers?: unknown;
}

/** An error that a client throws in place of a response: the response is in it, or it has the status itself. */
interface ResponseErrorLike extends ResponseLike {
  readonly response?: ResponseLike | null;
  /** Of the AWS SDK. */
  readonly $response?: ResponseLike | null;
}

interface Head {
  readonly status: number;
  readonly headers: object;
}

/** The status and headers of a `fetch` or undici response, or of the one that an error tells of; undefined for anything else. */
export function headOf(outcome: Outcome): Head | undefined {
  if (!outcome.ok) return headOfError(outcome.error);
  if (typeof outcome.value !== 'object' || outcome.value === null) return undefined;
  const { status, statusCode = status, headers } = outcome.value as ResponseLike;
  if (typeof statusCode !== 'number' || typeof headers !== 'object' || headers === null) return undefined;
  return { status: statusCode, headers };
}

/** Undefined also for a good status: then something else has failed, such as the reading of the body. */
function headOfError(error: unknown): Head | undefined {
  try {
    const { response, $response } = error as ResponseErrorLike;
    for (const { status, statusCode = status, headers } of [response ?? {}, $response ?? {}, error as ResponseLike]) {
      // A smaller number may also be something else, such as the exit code of a program.
      if (typeof statusCode === 'number' && statusCode >= 300) return { status: statusCode, headers: headers ?? {} };
    }
  } catch {
    // Nothing was thrown that has properties, or one of its getters threw.
  }
  return undefined;
}

/** Whether a response says by `Retry-After` when to come back. */
export function hasRetryAfter(headers: object): boolean {
  try {
    return headerOf(headers, 'retry-after') !== undefined;
  } catch {
    // A getter of a foreign object threw.
    return false;
  }
}

/**
 * Whether an outcome of a request is worth another attempt: a network fault, 408, 425, 429, a 5xx other than 501 and
 * 505, or one that says when to come back: a 409 (the first request with this idempotency key is still in progress) or a 403
 * (GitHub limits requests with it).
 *
 * For `retry({ handles })`, `hedge` and `standard` around a plain `fetch`, or around a client that throws an error which holds the response or its
 * status, such as axios, ky and got. `createFetch` uses it by default.
 *
 * @example
 * ```ts
 * import { constant, pipeline, retry } from 'holdfast';
 * import { discardBody, handles } from 'holdfast/fetch';
 *
 * const steady = pipeline(retry({ attempts: 2, backoff: constant(1), handles, onDiscard: discardBody }));
 * const response = await steady.execute(({ attempt }) => new Response(null, { status: attempt === 1 ? 503 : 204 }));
 * console.log(response.status); // 204
 * ```
 */
export function handles(outcome: Outcome): boolean {
  if (isFinal(outcome.ok ? outcome.value : outcome.error)) return false;
  const head = headOf(outcome);
  if (head === undefined) return !outcome.ok && !isMistake(outcome.error);
  const { status, headers } = head;
  if (status === 409 || status === 403) return hasRetryAfter(headers);
  if (status === 408 || status === 425 || status === 429) return true;
  return status >= 500 && status !== 501 && status !== 505;
}

/**
 * Whether an outcome of a request means that the service is unhealthy: a network fault, a 5xx, or a 429 that does not say
 * when to come back.
 *
 * For `circuitBreaker({ handles: breakerHandles })` and `standard({ handles, breakerHandles })`, around the same clients as {@link handles}. A 429
 * with a time is not a failure: a request that waits as told will be served, and an open circuit would turn away callers that have quota left.
 */
export function breakerHandles(outcome: Outcome): boolean {
  const head = headOf(outcome);
  if (head === undefined) return !outcome.ok && !isMistake(outcome.error) && !closedAgent.test(codeOf(outcome.error));
  if (head.status !== 429) return head.status >= 500;
  // Only whether a time is named matters, so any clock reading will do.
  return retryHintOf(outcome, 0) === undefined && quotaOf(head.headers, 0)?.remaining !== 0;
}

/** What is known of outcomes beyond what they say themselves. */
interface Marks {
  readonly finals: WeakSet<object>;
  /** Errors without a telling code, such as those of `fetch` for requests that it refuses to make. */
  readonly mistakes: WeakSet<object>;
}

const place = Symbol.for('holdfast.marks');
const marks: Marks = /* @__PURE__ */ sharedMarks();

/** On `globalThis`, so that a mark is found whichever copy of the package made it. */
function sharedMarks(): Marks {
  const shared = globalThis as { [place]?: Marks };
  shared[place] ??= { finals: new WeakSet(), mistakes: new WeakSet() };
  return shared[place];
}

/** Marks an outcome as final: however the request ended, it must not be sent again. */
export function noteFinal(end: unknown): void {
  if (typeof end === 'object' && end !== null) marks.finals.add(end);
}

function isFinal(end: unknown): boolean {
  return marks.finals.has(end as object);
}

/** Error codes of requests that were not sent because they make no sense, and of certificate errors, which do not go away by repeating. */
const mistakes =
  /^(?:ERR_INVALID_|ERR_IN_DOUBT|UND_ERR_INVALID_ARG|UND_ERR_NOT_SUPPORTED|UND_ERR_REQ_CONTENT_LENGTH_|CERT_|ERR_TLS_CERT_|DEPTH_ZERO_|SELF_SIGNED_|UNABLE_TO_)/;

/** Codes of requests on an agent of undici that its owner has closed. Another attempt may meet its successor. */
const closedAgent = /^UND_ERR_(?:DESTROYED|CLOSED)$/;

/** Marks an error as caused by the request: it says nothing about the service. */
export function noteMistake(error: unknown): void {
  if (typeof error === 'object' && error !== null) marks.mistakes.add(error);
}

/**
 * Whether a request body is a stream that failed by itself, such as a forwarded upload that its client aborted. Must be asked before an undici
 * handler hears of the error, because the handler may then destroy the stream with that error.
 */
export function hasBrokenOff(body: unknown): boolean {
  return globalThis.process?.getBuiltinModule?.('node:stream')?.isErrored?.(body as NodeJS.ReadableStream) ?? false;
}

/**
 * Redirects that Node's `fetch` does not follow, and bodies that are not those that `integrity` asks for, recognised by its messages because there is no
 * code: another attempt would end the same way.
 */
const noWay =
  /^(?:integrity mismatch|redirect count exceeded|unexpected redirect|bad port|URL scheme must be a HTTP\(S\) scheme|cross origin not allowed for request mode "cors"|request mode cannot be "same-origin")$/;

function isMistake(error: unknown): boolean {
  if (mistakes.test(codeOf(error)) || marks.mistakes.has(error as object)) return true;
  const { message } = causeOf(error);
  return typeof message === 'string' && noWay.test(message);
}

/** Codes of a connection that ended during a request. */
const lostConnection = /^(?:ECONNRESET|EPIPE|UND_ERR_SOCKET)$/;

/** Whether a request may have met an idle connection that the server was just closing. A connection known never to have carried an answer was not idle. */
export function isLostConnection(error: unknown): boolean {
  if (!lostConnection.test(codeOf(error))) return false;
  return causeOf(error).socket?.bytesRead !== 0;
}

function codeOf(error: unknown): string {
  const { code } = causeOf(error);
  return typeof code === 'string' ? code : '';
}

interface Cause {
  readonly cause?: unknown;
  readonly code?: unknown;
  readonly message?: unknown;
  readonly socket?: { readonly bytesRead?: unknown } | null;
}

/** What the actual error says: `fetch` throws a `TypeError` that has it as its cause. An error that cannot be looked at says nothing. */
function causeOf(error: unknown): Cause {
  if (typeof error !== 'object' || error === null) return {};
  try {
    const { cause, code } = error as Cause;
    const actual: Cause = code === undefined && typeof cause === 'object' && cause !== null ? cause : error;
    return { code: actual.code, message: actual.message, socket: actual.socket ?? null };
  } catch {
    return {};
  }
}
