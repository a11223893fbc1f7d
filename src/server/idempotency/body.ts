/**
 * Body: observes the bytes of a request without taking them from its parser.
 *
 * Promise: the request can be read afterwards as if nobody had looked. No more bytes are kept than the limit.
 */
import type { IncomingMessage } from 'node:http';
import { asMicrotask } from '../../core/event-loop.js';
import { listOf } from '../../core/list-of.js';

/** The bytes, or why there are none: the body exceeds the limit, or the client disconnected halfway. */
export type Body =
  | { readonly kind: 'bytes'; readonly bytes: Uint8Array }
  | { readonly kind: 'too-large' }
  | { readonly kind: 'gone' };

// A property key that every copy of this package finds.
const rawBodyKey = Symbol.for('holdfast.rawBody');

interface WithRawBody {
  [rawBodyKey]?: Uint8Array;
}

/** Remembers the bytes of a body for {@link findRawBody}. */
export function putRawBody(request: object, bytes: Uint8Array): void {
  (request as WithRawBody)[rawBodyKey] = bytes;
}

export function findRawBody(request: object): Uint8Array | undefined {
  return (request as WithRawBody)[rawBodyKey];
}

/** Whether a request head announces a body. Without either header there is none, except in HTTP/2, whose bodies need no header. */
export function announcesBody(request: IncomingMessage): boolean {
  const { headers, httpVersionMajor } = request;
  const length = headers['content-length'];
  if (length !== undefined) return length !== '0';
  if (httpVersionMajor >= 2) return (request as WithStream).stream?.endAfterHeaders !== true;
  return headers['transfer-encoding'] !== undefined;
}

/** An HTTP/2 request. */
type WithStream = IncomingMessage & { readonly stream?: { readonly endAfterHeaders?: boolean } };

// Shared functions find the tap by this key: closures for each request would cost more.
const tapKey = Symbol('holdfast.tap');

type TappedRequest = IncomingMessage & {
  [tapKey]?: BodyTap;
  _read(bytes: number): void;
  readonly _readableState: { readonly ended: boolean };
};

/** Starts to observe the bytes of a request. */
export function tapBody(request: IncomingMessage, maxBytes: number): BodyTap {
  return new BodyTap(request as TappedRequest, maxBytes);
}

/** The tap of a request, if it has one. */
export function findTap(request: IncomingMessage): BodyTap | undefined {
  return (request as TappedRequest)[tapKey];
}

const noChunks: Uint8Array[] = [];

export class BodyTap {
  private readonly request: TappedRequest;
  private readonly maxBytes: number;
  private readonly inner: IncomingMessage['push'];
  private chunks: Uint8Array[] = noChunks;
  private bytes = 0;
  private isWhole = false;
  private comesUnread = false;
  /** Whether more bytes are about to be requested. */
  private isAsking = false;
  private settle: ((body: Body) => void) | undefined = undefined;

  constructor(request: TappedRequest, maxBytes: number) {
    this.request = request;
    this.maxBytes = maxBytes;
    this.inner = request.push;
    request[tapKey] = this;
    // Bytes that arrived earlier are still buffered, because nobody has read them.
    const early: unknown = request.readableLength > 0 ? request.read() : null;
    if (early !== null) {
      this.take(early, undefined);
      request.unshift(early);
    }
    if (comesByItself(request) ? request.complete : request._readableState.ended) this.isWhole = true;
    else request.push = tappedPush;
  }

  /** The whole body: at once if it is complete, otherwise later. It arrives even if nobody reads the request. */
  body(): Body | Promise<Body> {
    if (this.isWhole) return this.whole();
    const { request } = this;
    if (request.destroyed) return { kind: 'gone' };
    this.comesUnread = true;
    return new Promise((resolve) => {
      const onClose = () => resolve({ kind: 'gone' });
      request.once('close', onClose);
      this.settle = (body) => {
        request.removeListener('close', onClose);
        resolve(body);
      };
      this.pull();
    });
  }

  private pull(): void {
    const { request } = this;
    // The rest may have arrived by the time more is requested.
    if (this.isWhole || request.destroyed) return;
    // Reading has paused because the unread buffer is full.
    if (request.readableLength >= request.readableHighWaterMark) request._read(0);
    else if (!comesByItself(request)) request.read(0);
  }

  push(chunk: unknown, encoding: BufferEncoding | undefined): boolean {
    const { request, inner } = this;
    const wantsMore = Reflect.apply(inner, request, [chunk, encoding]) as boolean;
    if (chunk !== null) this.take(chunk, encoding);
    if (chunk === null || this.bytes > this.maxBytes) {
      this.isWhole = true;
      request.push = inner;
      this.settle?.(this.whole());
    } else if (this.comesUnread && !this.isAsking && !comesByItself(request)) {
      this.isAsking = true;
      asMicrotask(() => {
        this.isAsking = false;
        this.pull();
      });
    }
    return this.comesUnread || wantsMore;
  }

  private take(chunk: unknown, encoding: BufferEncoding | undefined): void {
    const taken = typeof chunk === 'string' ? Buffer.from(chunk, encoding) : (chunk as Uint8Array);
    this.bytes += taken.byteLength;
    if (this.bytes > this.maxBytes) this.chunks = noChunks;
    else if (this.chunks.length === 0) this.chunks = listOf(taken);
    else this.chunks.push(taken);
  }

  private whole(): Body {
    if (this.bytes > this.maxBytes) return { kind: 'too-large' };
    const { chunks } = this;
    return { kind: 'bytes', bytes: chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks) };
  }
}

/**
 * Whether the bytes arrive without being requested. Requests that are not Node's own from a socket, such as those of HTTP/2, tests and cloud
 * functions, wait to be asked.
 */
function comesByItself(request: TappedRequest): boolean {
  readOfNode ??= process.getBuiltinModule('node:http').IncomingMessage.prototype._read;
  return request._read === readOfNode;
}

let readOfNode: TappedRequest['_read'] | undefined;

function tappedPush(this: TappedRequest, chunk: unknown, encoding?: BufferEncoding): boolean {
  return this[tapKey]!.push(chunk, encoding);
}
