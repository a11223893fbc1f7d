/**
 * Web: idempotency for fetch-standard handlers, `(Request) => Response`, as in Hono, Next.js, Bun and Deno, and
 * for plain listeners of `node:http`.
 */

import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Idempotency, IdempotencyHandle } from '../coordination/idempotency/idempotency.js';
import { isBytes } from '../core/kinds.js';
import { checkArgument, func } from '../core/options.js';
import { type Answer, joined, type StoredAnswer } from './capture.js';
import { replay } from './idempotency/answer.js';
import type { Body } from './idempotency/body.js';
import {
  type Answering,
  type AnswerKeeper,
  HttpIdempotency,
  type IdempotencyMiddlewareOptions,
  type IdempotencyRequestOptions,
  isJsonType,
} from './idempotency/idempotency.js';
import { bodyOf, contentOf, contentTypeOf, keyLinesOf, sendProblem, traceparentOf } from './idempotency/node.js';
import { joinedLines, keptHeaders, replayMarks } from './idempotency/protocol.js';
import { type Problem, problemBody, problemType } from './problem.js';
import { headersOf, setWords } from './response-head.js';

export type { IdempotencyHandle } from '../coordination/idempotency/idempotency.js';
export type {
  IdempotencyMiddlewareOptions,
  IdempotencyRequestOptions,
  RequestFingerprint,
} from './idempotency/idempotency.js';
export { type RequestResolution, resolveRequest } from './idempotency/resolve.js';

/**
 * A handler that receives the record of its request as second argument, undefined when the request has no key. `Incoming` is the framework's own
 * kind of request, such as `NextRequest`.
 */
export type IdempotentHandler<More extends readonly unknown[], Incoming extends Request = Request> = (
  request: Incoming,
  record: IdempotencyHandle | undefined,
  ...more: More
) => Response | Promise<Response>;

/** A fetch-standard handler; further arguments of the framework are passed on to the handler inside. */
export type FetchHandler<More extends readonly unknown[], Incoming extends Request = Request> = (
  request: Incoming,
  ...more: More
) => Promise<Response>;

/**
 * Wraps fetch-standard handlers: each request with an `Idempotency-Key` runs once, and every repetition gets the same response.
 *
 * Keys are valid within one `scope`, method and path. The response is stored before the client receives the end of its body; its first bytes
 * are sent at once. A `Request` does not tell whether a header was sent twice, so a bare key with `, ` in it is refused. To wait for handlers whose
 * clients have left, on shutdown or through the platform's `waitUntil`, give it an engine, and await `engine.idle()`.
 *
 * @param options - `store` and `scope` are required; see {@link IdempotencyMiddlewareOptions}.
 * @throws {@link OptionsError} `ERR_OPTIONS` at once, for an invalid option.
 * @example
 * ```ts
 * import { memoryStore } from 'holdfast';
 * import { idempotency } from 'holdfast/web';
 *
 * const once = idempotency({ store: memoryStore(), scope: (request) => request.headers.get('authorization') ?? 'nobody' });
 * let orders = 0;
 * const POST = once(async (request, record) => {
 *   const { item } = (await request.json()) as { item: string };
 *   return Response.json({ order: ++orders, item, attempt: record?.attempt }, { status: 201 });
 * });
 * for (const attempt of [1, 2]) {
 *   const headers = { 'idempotency-key': '"8e03978e-40d5"', 'content-type': 'application/json' };
 *   const answer = await POST(new Request('http://shop.test/orders', { method: 'POST', headers, body: '{"item":"kelp"}' }));
 *   console.log(attempt, answer.status, await answer.text(), answer.headers.get('idempotent-replayed'));
 * }
 * ```
 */
export function idempotency(
  options: IdempotencyMiddlewareOptions<Request>,
): <More extends readonly unknown[], Incoming extends Request>(
  handler: IdempotentHandler<More, Incoming>,
) => FetchHandler<More, Incoming>;
/** With an engine created by `idempotency(...)` of `holdfast`; it may serve several handlers and wrapped functions. */
export function idempotency(
  engine: Idempotency,
  options: IdempotencyRequestOptions<Request>,
): <More extends readonly unknown[], Incoming extends Request>(
  handler: IdempotentHandler<More, Incoming>,
) => FetchHandler<More, Incoming>;
export function idempotency(
  first: Idempotency | IdempotencyMiddlewareOptions<Request>,
  second?: IdempotencyRequestOptions<Request>,
) {
  const protection = new HttpIdempotency(first, second);
  return <More extends readonly unknown[], Incoming extends Request>(
    handler: IdempotentHandler<More, Incoming>,
  ): FetchHandler<More, Incoming> => {
    checkArgument('idempotency', 'handler', handler, func());
    return async (request, ...more) => {
      const key = request.headers.get('idempotency-key');
      if (protection.passes(request.method, key)) return handler(request, undefined, ...more);
      return new Promise<Response>((resolve, reject) => {
        const { pathname, search } = new URL(request.url);
        const contentType = request.headers.get('content-type') ?? undefined;
        const exchange = {
          request,
          method: request.method,
          url: pathname + search,
          contentType,
          traceparent: request.headers.get('traceparent') ?? undefined,
          operation: () => `${request.method} ${pathname}`,
          keyLines: () => joinedLines(key),
          body: async (maxBytes: number) => {
            if (request.body === null) return { content: undefined, isJson: false };
            return contentOf(await readBody(request, maxBytes), isJsonType(contentType));
          },
          refuse: (problem: Problem) => resolve(problemResponse(problem)),
          replay: (answer: StoredAnswer, key: string) => resolve(replayed(answer, key)),
          run(handle: IdempotencyHandle, keeper: AnswerKeeper) {
            const answering = new Promise<Response>((answer) => answer(handler(request, handle, ...more)));
            answering
              .then((response) => kept(response, keeper))
              .then(resolve, async (error) => {
                await keeper.onBroken();
                reject(error);
              });
          },
          isAnswered: () => false,
          isTimedOut: () => false,
        };
        protection.handle(exchange, reject);
      });
    };
  };
}

/** A listener of `node:http` that receives the record of its request as third argument, undefined when the request has no key. */
export type IdempotentListener = (
  request: IncomingMessage,
  response: ServerResponse,
  record: IdempotencyHandle | undefined,
) => unknown;

/**
 * Wraps listeners of `node:http`: each request with an `Idempotency-Key` runs once, and every repetition gets the same response.
 *
 * Keys are valid within one `scope`, method and path. The body is read here, and the listener can read it again. A listener that throws or rejects
 * is answered 500, unless it has begun to answer. To wait on shutdown for listeners whose clients have left, give it an engine, and await
 * `engine.idle()`.
 *
 * @param options - `store` and `scope` are required; see {@link IdempotencyMiddlewareOptions}.
 * @throws {@link OptionsError} `ERR_OPTIONS` at once, for an invalid option.
 * @example
 * ```ts
 * import { once as event } from 'node:events';
 * import { createServer } from 'node:http';
 * import type { AddressInfo } from 'node:net';
 * import { memoryStore } from 'holdfast';
 * import { nodeIdempotency } from 'holdfast/web';
 *
 * const once = nodeIdempotency({ store: memoryStore(), scope: () => 'everybody' });
 * let orders = 0;
 * const server = createServer(once((_request, response) => response.end(`order ${++orders}`)));
 * server.listen(0, '127.0.0.1');
 * await event(server, 'listening');
 * const { port } = server.address() as AddressInfo;
 * for (const attempt of [1, 2]) {
 *   const answer = await fetch(`http://127.0.0.1:${port}/`, { method: 'POST', headers: { 'idempotency-key': '"8e03978e"' } });
 *   console.log(attempt, await answer.text());
 * }
 * server.closeAllConnections();
 * server.close();
 * ```
 */
export function nodeIdempotency(
  options: IdempotencyMiddlewareOptions<IncomingMessage>,
): (listener: IdempotentListener) => (request: IncomingMessage, response: ServerResponse) => void;
/** With an engine created by `idempotency(...)` of `holdfast`; it may serve several listeners and wrapped functions. */
export function nodeIdempotency(
  engine: Idempotency,
  options: IdempotencyRequestOptions<IncomingMessage>,
): (listener: IdempotentListener) => (request: IncomingMessage, response: ServerResponse) => void;
export function nodeIdempotency(
  first: Idempotency | IdempotencyMiddlewareOptions<IncomingMessage>,
  second?: IdempotencyRequestOptions<IncomingMessage>,
) {
  const protection = new HttpIdempotency(first, second);
  return (listener: IdempotentListener) => {
    checkArgument('nodeIdempotency', 'listener', listener, func());
    return (request: IncomingMessage, response: ServerResponse) => {
      const { method = 'GET', url = '/' } = request;
      const fail = () => failed(response);
      const run = (record: IdempotencyHandle | undefined) =>
        void new Promise((settle) => settle(listener(request, response, record))).catch(fail);
      if (protection.passes(method, request.headers['idempotency-key'])) return run(undefined);
      const exchange = {
        request,
        method,
        url,
        contentType: contentTypeOf(request),
        traceparent: traceparentOf(request),
        operation: () => `${method} ${url.replace(/\?.*$/s, '')}`,
        keyLines: () => keyLinesOf(request),
        body: (maxBytes: number) => bodyOf(request, undefined, maxBytes),
        refuse: (problem: Problem) => sendProblem(response, problem),
        replay: (answer: StoredAnswer, key: string) => replay(response, answer, key),
        run(handle: IdempotencyHandle, keeper: AnswerKeeper) {
          keeper.watch(response, exchange);
          run(handle);
        },
        isAnswered: () => response.writableEnded,
        isTimedOut: () => false,
      };
      protection.handle(exchange, fail);
    };
  };
}

/** Answers as Node would if the error had been thrown where it is caught: the client is told nothing about it. */
function failed(response: ServerResponse): void {
  if (response.writableEnded) return;
  if (response.headersSent) {
    response.destroy();
    return;
  }
  for (const name of response.getHeaderNames()) response.removeHeader(name);
  setWords(response, undefined);
  response.statusCode = 500;
  response.end();
}

async function readBody(request: Request, maxBytes: number): Promise<Body> {
  if (request.bodyUsed || request.body!.locked) {
    const advice = 'give the wrapped handler the request before anything reads it, or a clone of it';
    throw new TypeError(`idempotency: the body was read before and cannot be compared; ${advice}`);
  }
  const reader = (request.clone().body as ReadableStream<Uint8Array>).getReader();
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return { kind: 'bytes', bytes: joined(chunks, bytes) };
    bytes += value.byteLength;
    if (bytes > maxBytes) break;
    chunks.push(value);
  }
  // Neither promise settles before both streams are cancelled, so cancelling one waits for the other.
  for (const stream of [reader, request.body!]) stream.cancel().catch(() => {});
  return { kind: 'too-large' };
}

function problemResponse(problem: Problem): Response {
  const headers = { 'content-type': problemType, ...problem.headers };
  return new Response(problemBody(problem), { status: problem.status, statusText: problem.title, headers });
}

function replayed(answer: StoredAnswer, key: string): Response {
  const { status, statusMessage } = answer;
  const headers = new Headers();
  for (const [name, values] of headersOf(answer.headers)) for (const value of values) headers.append(name, value);
  for (const [name, value] of replayMarks(key)) headers.set(name, value);
  return new Response(contentFor(answer, headers), { status, statusText: statusMessage, headers });
}

/** Responses with these statuses may have no body. */
const bodiless: readonly number[] = [101, 103, 204, 205, 304];

/** The body of a replay. If it has no content type, it is a stream, as in the first response: for bytes Bun would set a content type. */
function contentFor({ status, body }: StoredAnswer, headers: Headers) {
  // Some servers set a content type even if there are no bytes.
  if (body.byteLength === 0 || bodiless.includes(status)) return null;
  const bytes = body as Uint8Array<ArrayBuffer>;
  if (headers.has('content-type')) return bytes;
  return new ReadableStream<Uint8Array<ArrayBuffer>>({
    start(controller) {
      controller.enqueue(bytes);
      controller.close();
    },
  });
}

/** Copies a response; the body of the copy ends when the answer has been processed. */
async function kept(response: Response, keeper: AnswerKeeper): Promise<Response> {
  // Before the headers: a response of @hono/node-server knows the type of its body only once that has been read.
  const body = (response as Response | null | undefined)?.body;
  if (!hasHeaders(response)) throw new TypeError('idempotency: the handler must give a Response');
  const { status, statusText } = response;
  const head = { status, statusMessage: statusText, headers: keptHeaders([...response.headers]) };
  if (body === null) {
    await keeper.onAnswer({ ...head, body: new Uint8Array(0) });
    return response;
  }
  const tee = new BodyTee(body!.getReader() as ReadableStreamDefaultReader<Uint8Array>, keeper, head);
  return new Response(new ReadableStream(tee), { status, statusText, headers: response.headers });
}

/** Whether this is a response; also one of a framework's own class. */
function hasHeaders(response: unknown): boolean {
  return typeof (response as Response | null | undefined)?.headers?.[Symbol.iterator] === 'function';
}

/**
 * Records a body while it is sent. It is read to its end even if nobody reads it any more, or not yet, as long as it can be stored. A longer body is
 * read only as fast as it is consumed.
 */
class BodyTee implements Answering {
  readonly hasBegun = true;
  private readonly reader: ReadableStreamDefaultReader<Uint8Array>;
  private readonly keeper: AnswerKeeper;
  private readonly head: Omit<Answer, 'body'>;
  private chunks: Uint8Array[] = [];
  private bytes = 0;
  private isWanted = true;
  /** Whether reading has ended. */
  private isOver = false;
  private wake = () => {};

  constructor(reader: ReadableStreamDefaultReader<Uint8Array>, keeper: AnswerKeeper, head: Omit<Answer, 'body'>) {
    this.reader = reader;
    this.keeper = keeper;
    this.head = head;
    keeper.watchStream(this);
  }

  start(controller: ReadableStreamDefaultController<Uint8Array>): void {
    // Not awaited: a stream is pulled only after its start.
    void this.pump(controller);
  }

  pull(): void {
    this.wake();
  }

  cancel(): void {
    this.isWanted = false;
    if (!this.isOver) this.keeper.onClientGone();
    this.wake();
  }

  /** The source may fail to stop, or never confirm that it has. The answer counts either way. */
  stop(): void {
    this.isOver = true;
    this.reader.cancel().catch(() => {});
  }

  private async pump(controller: ReadableStreamDefaultController<Uint8Array>): Promise<void> {
    const { reader, keeper } = this;
    try {
      for (;;) {
        const isWhole = this.bytes <= keeper.maxBodyBytes;
        if (!isWhole && !this.isWanted) {
          this.stop();
          break;
        }
        if (!isWhole && (controller.desiredSize ?? 0) <= 0) {
          await new Promise<void>((resolve) => {
            this.wake = resolve;
          });
          continue;
        }
        const { done, value } = await reader.read();
        if (this.isOver) return;
        if (done) break;
        const chunk = bytesOf(value);
        this.take(chunk);
        if (this.isWanted) controller.enqueue(chunk);
      }
    } catch (error) {
      this.stop();
      await keeper.onBroken();
      if (this.isWanted) controller.error(error);
      return;
    }
    this.isOver = true;
    const isWhole = this.bytes <= keeper.maxBodyBytes;
    await keeper.onAnswer({ ...this.head, body: isWhole ? joined(this.chunks, this.bytes) : undefined });
    if (this.isWanted) controller.close();
  }

  private take(chunk: Uint8Array): void {
    this.bytes += chunk.byteLength;
    if (this.bytes <= this.keeper.maxBodyBytes) this.chunks.push(chunk.slice());
    else this.chunks = [];
  }
}

/** The standard allows only bytes; servers that pass chunks on themselves also accept text. */
function bytesOf(chunk: unknown): Uint8Array {
  if (typeof chunk === 'string') return new TextEncoder().encode(chunk);
  if (isBytes(chunk)) return chunk;
  throw new TypeError('idempotency: the stream of a response gives bytes, as Uint8Array');
}
