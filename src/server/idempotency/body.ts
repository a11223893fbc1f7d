/**
 * Body: the bytes of a request, seen without taking them from whoever parses them.
 *
 * Promise: the request can be read afterwards as if nobody had looked; no more is kept than the limit.
 */
import type { IncomingMessage } from 'node:http';

/** The bytes, or why there are none: longer than the limit, or the client left in the middle. */
export type Body =
  | { readonly kind: 'bytes'; readonly bytes: Uint8Array }
  | { readonly kind: 'too-large' }
  | { readonly kind: 'gone' };

// A property that any copy of this package finds.
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

/** Whether a body comes with this request. */
export function announcesBody(request: IncomingMessage): boolean {
  const { headers, httpVersionMajor } = request;
  // From HTTP/2 on no header need say so; the frame of the headers says whether it is the last.
  const { stream } = request as { readonly stream?: { readonly endAfterHeaders?: boolean } };
  if (httpVersionMajor >= 2) return stream?.endAfterHeaders !== true;
  // Without either there is none.
  const length = headers['content-length'];
  return headers['transfer-encoding'] !== undefined || (length !== undefined && length !== '0');
}

// Shared functions find the tap by it: closures for each request would cost more.
const tapKey = Symbol('holdfast.tap');

type TappedRequest = IncomingMessage & { [tapKey]?: BodyTap };

/**
 * Watches the bytes of a request come in.
 */
export function tapBody(request: IncomingMessage, maxBytes: number): BodyTap {
  return new BodyTap(request as TappedRequest, maxBytes);
}

/** The tap of a request, if there is one. */
export function findTap(request: IncomingMessage): BodyTap | undefined {
  return (request as TappedRequest)[tapKey];
}

export class BodyTap {
  private readonly request: TappedRequest;
  private readonly maxBytes: number;
  private readonly inner: IncomingMessage['push'];
  private chunks: Uint8Array[] = [];
  private bytes = 0;
  private isWhole = false;
  private comesUnread = false;
  private settle: ((body: Body) => void) | undefined = undefined;

  constructor(request: TappedRequest, maxBytes: number) {
    this.request = request;
    this.maxBytes = maxBytes;
    this.inner = request.push;
    request[tapKey] = this;
    // What came before is still there, because nobody has read.
    const early: unknown = request.readableLength > 0 ? request.read() : null;
    if (early !== null) {
      this.take(early, undefined);
      request.unshift(early);
    }
    if (request.complete) this.isWhole = true;
    else request.push = tappedPush;
  }

  /** All of it: now, if it is there; else when it is, and it comes although nobody reads. */
  body(): Body | Promise<Body> {
    if (this.isWhole) return this.whole();
    const { request } = this;
    if (request.destroyed) return { kind: 'gone' };
    this.comesUnread = true;
    return new Promise((resolve) => {
      const onClose = () => this.settle?.({ kind: 'gone' });
      this.settle = (body) => {
        this.settle = undefined;
        request.removeListener('close', onClose);
        resolve(body);
      };
      request.once('close', onClose);
      // If reading has paused, because so much lies there unread; by HTTP/2 it begins only when somebody reads.
      if (request.readableLength >= request.readableHighWaterMark || request.httpVersionMajor >= 2)
        (request as { _read?(size: number): void })._read?.(0);
    });
  }

  push(chunk: unknown, encoding: BufferEncoding | undefined): boolean {
    const { request, inner } = this;
    const wantsMore = Reflect.apply(inner, request, [chunk, encoding]) as boolean;
    if (chunk !== null) this.take(chunk, encoding);
    if (chunk === null || this.bytes > this.maxBytes) {
      this.isWhole = true;
      request.push = inner;
      this.settle?.(this.whole());
    }
    return this.comesUnread || wantsMore;
  }

  private take(chunk: unknown, encoding: BufferEncoding | undefined): void {
    const taken = typeof chunk === 'string' ? Buffer.from(chunk, encoding) : (chunk as Uint8Array);
    this.bytes += taken.byteLength;
    if (this.bytes <= this.maxBytes) this.chunks.push(taken);
    else this.chunks = [];
  }

  private whole(): Body {
    if (this.bytes > this.maxBytes) return { kind: 'too-large' };
    const { chunks } = this;
    return { kind: 'bytes', bytes: chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks) };
  }
}

function tappedPush(this: TappedRequest, chunk: unknown, encoding?: BufferEncoding): boolean {
  return this[tapKey]!.push(chunk, encoding);
}
