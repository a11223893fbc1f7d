/**
 * Capture: records what a handler answers through Node's own response, while it is written.
 *
 * Promise: every way to answer ends in `writeHead`, `write` or `end` of this object, so none is missed. The first bytes of a stream go out at once;
 * only the final `end`, or the cut of an aborted answer, waits until the answer has been processed. If the client disconnects, nothing changes for
 * the handler, which continues to write, to nobody. Whatever a handler does after its answer has no effect.
 *
 * Middleware mounted before this one has already patched the response. Its changes, such as compression, are not in the record and are made again for
 * a replay. Middleware mounted later is part of the answer.
 */
import type { ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { asMicrotask, queueTask } from '../core/event-loop.js';
import { isBytes } from '../core/kinds.js';
import { listOf } from '../core/list-of.js';
import { type AnswerHead, type Header, headOf, isOfHttp2, putHead, setWords, wordsOf } from './response-head.js';

/** An answer as it is stored. */
export interface Answer extends AnswerHead {
  /** Undefined if it was longer than may be stored. */
  readonly body: Uint8Array | undefined;
  /** Whether the body was given as one text. Node writes the head in one piece with it, and so as UTF-8; otherwise it writes a head as latin1. */
  readonly isText?: boolean;
}

/** An answer whose body is complete. */
export type StoredAnswer = Answer & { readonly body: Uint8Array };

/** The body as it has to be given to Node, so that the bytes of the head are those of the first answer. */
export function bodyOf({ body, isText }: StoredAnswer): string | Uint8Array {
  return isText === true ? Buffer.from(body.buffer, body.byteOffset, body.byteLength).toString() : body;
}

/** What the user of a capture decides and hears about. */
export interface CaptureTerms {
  readonly maxBodyBytes: number;
  /** The handler does not wait for a slow client while all that it has written is kept anyway. */
  readonly isAhead?: boolean;
  /** Selects the headers to store, as a flat list of alternating names and values. */
  keepHeaders(headers: readonly Header[]): string[];
  /**
   * The head is known but has not been sent. Returns a head to send in its place, or `'wait'` to send nothing before `resume`. Without this hook the
   * head goes out unchanged.
   */
  onHead?(head: AnswerHead): AnswerHead | 'wait' | undefined;
  /** The body is longer than may be stored. */
  onTooLarge?(): void;
  /** The handler has answered. The end goes out when the promise is settled; without a promise, at once. */
  onAnswer(answer: Answer): Promise<unknown> | undefined;
  /**
   * The handler has aborted its answer, for example after an error in the middle of a stream. The connection is cut when the promise is settled;
   * without a promise, at once.
   */
  onBroken(): Promise<unknown> | undefined;
  /** The client disconnected before the handler had answered. */
  onClientGone(): void;
}

/** The original methods. A class, because it lives as long as the response: see `listOf`. */
class Inner {
  writeHead: ServerResponse['writeHead'];
  readonly write: ServerResponse['write'];
  readonly end: ServerResponse['end'];
  readonly destroy: ServerResponse['destroy'];
  readonly emit: ServerResponse['emit'];

  constructor(response: ServerResponse) {
    const { writeHead, write, end, destroy, emit } = response;
    this.writeHead = writeHead;
    this.write = write;
    this.end = end;
    this.destroy = destroy;
    this.emit = emit;
  }
}

const isTrue: PropertyDescriptor = { value: true, configurable: true };

/** The size of a few socket buffers. */
const mostInTurn = 65_536;

// A property of the response lets all responses share the functions below; a closure for each would cost more.
const captureKey = Symbol('holdfast.capture');

/** Node's internal state, which decides whether more can be written. */
type CapturedResponse = ServerResponse & {
  [captureKey]?: ResponseCapture;
  _closed?: boolean;
};

type Callback = (error?: Error | null) => void;
type Listener = (...given: never[]) => void;
/** As Node accepts them: `(chunk, encoding, callback)`, each optional. */
type ChunkArguments = readonly unknown[];

/** Records the answer from here on. */
export function captureAnswer(response: ServerResponse, terms: CaptureTerms): ResponseCapture {
  return new ResponseCapture(response as CapturedResponse, terms);
}

/** Calls a task once, as soon as the client has disconnected while the answer is still being recorded. */
export function whenAlone(response: ServerResponse, task: () => void): void {
  (response as CapturedResponse)[captureKey]?.whenAlone(task);
}

type Postponed = readonly [name: 'writeHead' | 'write' | 'end', given: readonly unknown[]];

// Shared empty lists, because most answers add nothing. The first addition creates a list of the answer's own.
const noChunks: Uint8Array[] = [];
const nothingDone: Postponed[] = [];
const noListeners: Listener[] = [];
/** Replaces a head that has been passed on in the answer, so that a held response keeps little memory. */
const toldHead: AnswerHead = { status: 0, statusMessage: '', headers: [] };

export class ResponseCapture {
  private readonly response: CapturedResponse;
  private readonly terms: CaptureTerms;
  private readonly inner: Inner;
  private state: 'open' | 'waiting' | 'held' | 'breaking' | 'replaced' | 'done' = 'open';
  private head: AnswerHead | undefined = undefined;
  /** The handler's calls while its head waits. */
  private postponed: Postponed[] = nothingDone;
  /** Lets the head change again, once it has waited. */
  private thaw: (() => void) | undefined = undefined;
  private chunks: Uint8Array[] = noChunks;
  private bytes = 0;
  private clientGone = false;
  private closeWaits = false;
  /** Bytes or characters accepted in this event loop turn from a handler whose client has disconnected. */
  private takenInTurn = 0;
  private aloneTask: (() => void) | undefined = undefined;
  private drainListeners: Listener[] = noListeners;
  /** The request's socket, and the proxy that its handler sees instead. */
  private socket: Socket | undefined = undefined;
  private watched: Socket | undefined = undefined;

  constructor(response: CapturedResponse, terms: CaptureTerms) {
    this.response = response;
    this.terms = terms;
    this.inner = new Inner(response);
    if (response[captureKey] === undefined) {
      response[captureKey] = this;
      response.writeHead = capturedWriteHead as ServerResponse['writeHead'];
      response.write = capturedWrite as ServerResponse['write'];
      response.end = capturedEnd as ServerResponse['end'];
      response.destroy = capturedDestroy;
      response.emit = capturedEmit as ServerResponse['emit'];
    } else {
      // The shared functions serve the first capture; its methods are the `inner` ones of this capture.
      response.writeHead = (...given: unknown[]) => this.writeHead(given) as never;
      response.write = (...given: unknown[]) => this.write(given);
      response.end = (...given: unknown[]) => this.end(given) as never;
      response.destroy = (...given: unknown[]) => this.destroy(given) as never;
      response.emit = (...given: unknown[]) => this.emit(given);
    }
    if (Object.hasOwn(response, 'on')) this.recordDrainListeners();
    if (response.destroyed) this.hideClose();
    // It waits behind another answer on its connection.
    else if (response.socket === null) closeWithConnection(response);
  }

  /** Whether bytes of the answer have been sent, or would have been if the client were still connected. */
  get hasBegun(): boolean {
    return this.head !== undefined;
  }

  /** The bytes of the body that are recorded so far. */
  get bytesKept(): number {
    return this.bytes;
  }

  whenAlone(task: () => void): void {
    if (this.clientGone) task();
    else this.aloneTask = task;
  }

  /** Stops recording, and delivers a close event that was held back. */
  stop(): void {
    if (this.state !== 'open') return;
    this.state = 'done';
    this.chunks = noChunks;
    this.giveSocketBack();
    this.tellClose();
  }

  writeHead(given: readonly unknown[]): unknown {
    const { response, inner, state } = this;
    if (state === 'done') return Reflect.apply(inner.writeHead, response, given);
    if (state !== 'open') return response;
    // Read before earlier middleware that patched the response adds its headers.
    const head = this.headOf(given);
    const instead = this.head === undefined ? this.terms.onHead?.(head) : undefined;
    if (instead === 'wait') this.postpone('writeHead', given);
    else if (instead !== undefined) {
      putHead(response, instead);
      Reflect.apply(inner.writeHead, response, [instead.status]);
    } else Reflect.apply(inner.writeHead, response, given);
    this.head = head;
    this.watchSocket();
    return response;
  }

  write(given: ChunkArguments): boolean {
    const { response, inner, state, terms } = this;
    if (state === 'held' || state === 'breaking' || this.endWaits) return this.ignore(given);
    if (state === 'replaced') return !this.ignore(given);
    if (state === 'done') return Reflect.apply(inner.write, response, given as []);
    if (terms.onHead !== undefined && this.head === undefined && isChunk(given[0])) {
      response.writeHead(response.statusCode);
      if (this.isDone) return Reflect.apply(inner.write, response, given as []);
    }
    if (this.isWaiting) {
      this.postpone('write', given);
      this.keep(given[0], given[1]);
      return false;
    }
    let goesOn: boolean;
    if (this.clientGone && isChunk(given[0])) {
      if (!response.headersSent) response.writeHead(response.statusCode);
      const callback = callbackOf(given);
      if (callback !== undefined) asMicrotask(callback);
      goesOn = this.takesMore(given[0].length);
    } else {
      goesOn = Reflect.apply(inner.write, response, given as []) || terms.isAhead === true;
    }
    this.head ??= this.headOf([response.statusCode]);
    this.watchSocket();
    this.keep(given[0], given[1]);
    return goesOn;
  }

  end(given: ChunkArguments): unknown {
    const { response, inner, state } = this;
    if (state === 'held' || state === 'breaking' || state === 'replaced' || this.endWaits) {
      this.ignore(given);
      return response;
    }
    const [chunk, encoding] = given;
    // An end that Node refuses by throwing must be refused now, while the handler can catch the error.
    if (state === 'done' || !canEnd(response, chunk)) return Reflect.apply(inner.end, response, given as []);
    if (!response.headersSent && !this.isWaiting) this.completeHead();
    const isText = this.bytes === 0 && isUtf8(chunk, encoding) && response.chunkedEncoding === false;
    this.keep(chunk, encoding);
    const { status, statusMessage, headers } = this.head ?? this.headOf([response.statusCode]);
    const body = this.bytes <= this.terms.maxBodyBytes ? joined(this.chunks, this.bytes) : undefined;
    const answer = { status, statusMessage, headers, body, isText };
    this.chunks = noChunks;
    this.head = toldHead;
    if (this.isWaiting) {
      this.postpone('end', given);
      // As while an end is held: what an error handler writes is ignored, and it does not cut the connection.
      Object.defineProperty(response, 'writableEnded', isTrue);
      Reflect.deleteProperty(response, 'headersSent');
      this.terms.onAnswer(answer);
      return response;
    }
    if (this.isDone) return Reflect.apply(inner.end, response, given as []);
    this.state = 'held';
    const wait = this.terms.onAnswer(answer);
    if (wait === undefined) this.letGo(given);
    else this.hold(given, wait);
    return response;
  }

  destroy(given: readonly unknown[]): unknown {
    const { response, inner, state, terms } = this;
    if (state === 'done') return Reflect.apply(inner.destroy, response, given as []);
    if (state !== 'open' && state !== 'waiting') return response;
    // Since version 24 Node destroys an answer that waits for its turn when its connection is lost. The handler goes on, so its key must not become free.
    if (!this.clientGone && response.socket === null && response.req.socket?.closed) {
      close(response);
      return response;
    }
    this.state = 'breaking';
    const wait = terms.onBroken();
    if (wait === undefined) return this.break(given);
    // What the handler sees is a response that is destroyed, as it would be without us.
    setIfOwn(response, 'destroyed', true);
    wait.then(() => {
      setIfOwn(response, 'destroyed', false);
      this.break(given);
    });
    return response;
  }

  private break(given: readonly unknown[]): unknown {
    const { response, inner } = this;
    this.state = 'done';
    this.giveSocketBack();
    this.tellClose();
    return Reflect.apply(inner.destroy, response, given as []);
  }

  emit(given: readonly unknown[]): boolean {
    const { response, state } = this;
    if (given[0] === 'close' && state !== 'done' && state !== 'breaking' && state !== 'replaced') {
      this.closeWaits = true;
      this.hideClose();
      return true;
    }
    // With HTTP/2 this precedes a close even though nobody has ended the response.
    if (given[0] === 'finish' && (state === 'open' || state === 'waiting') && isOfHttp2(response)) return true;
    return Reflect.apply(this.inner.emit, response, given as [string]);
  }

  /**
   * Replaces the request's socket by a proxy. To abort an answer that has begun, the final handler of Express calls `request.socket.destroy()`. Code
   * that reaches the socket through the request means this answer. A disconnecting client, a server timeout or a server shutdown destroys the socket
   * directly.
   */
  private watchSocket(): void {
    const { req: request } = this.response;
    if (this.watched !== undefined || this.state !== 'open' || !Object.hasOwn(request, 'socket')) return;
    const socket = request.socket as Socket | null;
    // undici takes the socket from a request whose body it has passed on.
    if (socket === null) return;
    this.socket = socket;
    this.watched = new Proxy(socket, new SocketWatch(this));
    Reflect.set(request, 'socket', this.watched);
  }

  /** Aborts an incomplete answer, or, if the answer is complete, destroys the connection. */
  breakOff(given: readonly unknown[]): Socket {
    if (this.state === 'done') Reflect.apply(this.socket!.destroy, this.socket, given as []);
    else this.destroy(given);
    return this.watched!;
  }

  /** Restores the original socket: other code identifies the connection by it, and looks when the answer has been sent. */
  private giveSocketBack(): void {
    const { req: request } = this.response;
    if (this.watched !== undefined && request.socket === this.watched) request.socket = this.socket!;
  }

  /** A pipe ends at a close, and the answer with it. So the handler sees a client that is still connected and reads fast. */
  private hideClose(): void {
    const { response } = this;
    const isFirst = !this.clientGone;
    this.clientGone = true;
    setIfOwn(response, 'destroyed', false);
    setIfOwn(response, '_closed', false);
    if (!isFirst || this.state !== 'open') return;
    // Node's own value would stay as it was, because nothing is written to the client any more.
    Object.defineProperty(response, 'writableNeedDrain', {
      get: () => this.takenInTurn >= mostInTurn,
      configurable: true,
    });
    this.terms.onClientGone();
    this.aloneTask?.();
    asMicrotask(() => this.drain());
  }

  /**
   * Records the drain listeners that middleware before us keeps for itself. A compressor does so, and has nothing to report once the client is gone. Other
   * middleware, such as instrumentation, only wraps the listeners.
   */
  private recordDrainListeners(): void {
    const { response } = this;
    const { on } = response;
    const listeners: Listener[] = [];
    this.drainListeners = listeners;
    response.on = (name: string, listener: Listener) => {
      const before = response.listenerCount(name);
      const given = Reflect.apply(on, response, [name, listener]);
      if (name === 'drain' && response.listenerCount(name) === before) listeners.push(listener);
      return given;
    };
  }

  private drain(): void {
    const { response, inner, drainListeners } = this;
    // A compressor that finds nothing to compress gives its listeners back. A copy, because a listener that is called may be added again for the next time.
    const own = response.rawListeners('drain');
    const elsewhere = drainListeners.filter((listener) => !own.includes(listener));
    Reflect.apply(inner.emit, response, ['drain']);
    for (const listener of elsewhere) Reflect.apply(listener, response, []);
  }

  private tellClose(): void {
    const { response, inner } = this;
    if (!this.clientGone) return;
    setIfOwn(response, 'destroyed', true);
    setIfOwn(response, '_closed', true);
    if (!this.closeWaits) return;
    this.closeWaits = false;
    Reflect.apply(inner.emit, response, ['close']);
  }

  /** Back-pressure like that of a client that reads fast. It yields to the event loop in between; otherwise an endless source would block it. */
  private takesMore(length: number): boolean {
    const isPausing = this.takenInTurn >= mostInTurn;
    this.takenInTurn += length;
    if (this.takenInTurn < mostInTurn) return true;
    if (!isPausing) {
      queueTask(() => {
        this.takenInTurn = 0;
        if (this.state === 'open') this.drain();
      });
    }
    return false;
  }

  /** Runs a `writeHead` that was patched after ours: it may add headers when it is called. */
  private completeHead(): void {
    const { response } = this;
    if (response.writeHead === (capturedWriteHead as ServerResponse['writeHead'])) {
      const head = this.headOf([response.statusCode]);
      const instead = this.head === undefined ? this.terms.onHead?.(head) : undefined;
      if (instead === 'wait') this.startWaiting();
      else if (instead !== undefined) putHead(response, instead);
      this.head = head;
      return;
    }
    const { writeHead } = this.inner;
    this.inner.writeHead = ignored as never;
    try {
      response.writeHead(response.statusCode);
    } finally {
      this.inner.writeHead = writeHead;
      // The head is written together with the end.
      this.postponed = nothingDone;
    }
  }

  /** Ends the wait that `onHead` began: sends the handler's answer as far as it exists, or another answer in its place. */
  resume(instead?: StoredAnswer): void {
    if (!this.isWaiting) return;
    const { response, inner, postponed, endWaits: hasEnded } = this;
    this.postponed = nothingDone;
    this.thaw?.();
    if (this.clientGone) {
      this.state = hasEnded ? 'done' : 'open';
      if (hasEnded) setIfOwn(response, 'finished', true);
      if (hasEnded || instead !== undefined) this.tellClose();
      return;
    }
    if (instead !== undefined) {
      this.state = 'done';
      putHead(response, instead);
      Reflect.apply(inner.end, response, [bodyOf(instead)]);
      this.state = 'replaced';
      return;
    }
    // The bytes of the answer are already recorded.
    this.state = 'done';
    for (const [name, given] of postponed) Reflect.apply(inner[name], response, given as []);
    if (!hasEnded) this.drain();
  }

  // A getter reads the state again, because functions called in between may have changed it.
  private get isWaiting(): boolean {
    return this.state === 'waiting';
  }

  /** Whether the handler has ended the answer whose head waits. */
  private get endWaits(): boolean {
    return this.state === 'waiting' && this.postponed.at(-1)?.[0] === 'end';
  }

  private get isDone(): boolean {
    return this.state === 'done';
  }

  /** For code that would answer in place of the handler, the head has been sent. */
  private startWaiting(): void {
    const { response } = this;
    this.state = 'waiting';
    const release = this.ignoreHead();
    Object.defineProperty(response, 'headersSent', isTrue);
    this.thaw = () => {
      Reflect.deleteProperty(response, 'headersSent');
      release();
    };
  }

  private postpone(name: 'writeHead' | 'write' | 'end', given: readonly unknown[]): void {
    if (!this.isWaiting) this.startWaiting();
    // A copy, because the writer may reuse the buffer.
    const own = given.map((one) => (one instanceof Uint8Array ? new Uint8Array(one) : one));
    if (this.postponed.length === 0) this.postponed = [[name, own]];
    else this.postponed.push([name, own]);
  }

  private headOf(given: readonly unknown[]): AnswerHead {
    return headOf(this.response, given, this.terms);
  }

  private keep(chunk: unknown, encoding: unknown): void {
    if (!isChunk(chunk) || chunk.length === 0) return;
    const { maxBodyBytes } = this.terms;
    if (this.bytes > maxBodyBytes) return;
    const isText = typeof chunk === 'string';
    const bytes = isText
      ? Buffer.from(chunk, typeof encoding === 'string' ? (encoding as BufferEncoding) : 'utf8')
      : chunk;
    this.bytes += bytes.byteLength;
    if (this.bytes > maxBodyBytes) {
      this.chunks = noChunks;
      this.terms.onTooLarge?.();
    } else {
      // A copy, because the writer may reuse the buffer.
      this.add(isText ? bytes : new Uint8Array(bytes));
    }
  }

  private add(bytes: Uint8Array): void {
    // Pushing to an empty list allocates room for many, and most answers are written in one piece.
    if (this.chunks.length === 0) this.chunks = listOf(bytes);
    else this.chunks.push(bytes);
  }

  private hold(given: ChunkArguments, wait: Promise<unknown>): void {
    const { response } = this;
    const { addTrailers } = response;
    response.addTrailers = ignored as never;
    const release = this.ignoreHead();
    // Tells frameworks that the answer is given. Not by `finished`: a server that closes would take the connection for an idle one and destroy it, and
    // a compressor before us could not write any more.
    Object.defineProperty(response, 'writableEnded', isTrue);
    wait.then(() => {
      response.addTrailers = addTrailers;
      release();
      this.letGo(given);
    });
  }

  /** Ignores changes of the head until the returned function is called. */
  private ignoreHead(): () => void {
    const { response } = this;
    const { statusCode } = response;
    const words = wordsOf(response);
    // A head that has been written refuses changes itself, as it would without us.
    const release = response.headersSent ? undefined : this.ignoreHeaders();
    return () => {
      release?.();
      response.statusCode = statusCode;
      setWords(response, words);
    };
  }

  /** Ignores header changes until the returned function is called. */
  private ignoreHeaders(): () => void {
    const { response } = this;
    // Each by its name: that costs a third of a loop over names.
    const { setHeader, setHeaders, appendHeader, removeHeader, flushHeaders } = response;
    response.setHeader = ignored as never;
    response.setHeaders = ignored as never;
    response.appendHeader = ignored as never;
    response.removeHeader = ignored as never;
    response.flushHeaders = ignored as never;
    return () => {
      response.setHeader = setHeader;
      response.setHeaders = setHeaders;
      response.appendHeader = appendHeader;
      response.removeHeader = removeHeader;
      response.flushHeaders = flushHeaders;
    };
  }

  private letGo(given: ChunkArguments): void {
    const { response, inner } = this;
    this.state = 'done';
    this.giveSocketBack();
    if (this.clientGone) {
      setIfOwn(response, 'finished', true);
      this.tellClose();
      return;
    }
    try {
      Reflect.apply(inner.end, response, given as []);
    } catch (error) {
      // The handler returned long ago. A body that does not match its length header is detected only here.
      response.destroy(error as Error);
    }
  }

  private ignore(given: ChunkArguments): false {
    const callback = callbackOf(given);
    if (callback !== undefined) this.response.once(this.state === 'breaking' ? 'close' : 'finish', callback);
    return false;
  }
}

/**
 * A class without closures that are called for each request: such closures kept a third of all young garbage alive until the next full collection
 * (Node 24, by --trace-gc).
 */
class SocketWatch implements ProxyHandler<Socket> {
  private readonly capture: ResponseCapture;

  constructor(capture: ResponseCapture) {
    this.capture = capture;
  }

  get(socket: Socket, name: string | symbol): unknown {
    if (name !== 'destroy') return Reflect.get(socket, name);
    return (...given: unknown[]) => this.capture.breakOff(given);
  }
}

const queuedKey = Symbol('holdfast.queued');

type QueueingSocket = Socket & { [queuedKey]?: Set<CapturedResponse> };

/**
 * Closes a response whose turn has not come when its connection is lost: Node 20 closes only the one whose turn it is. One listener per connection, because a
 * client may send any number of requests in advance.
 */
function closeWithConnection(response: CapturedResponse): void {
  const socket = response.req.socket as QueueingSocket | null;
  // undici takes the socket from a request whose body it has passed on.
  if (socket === null) return;
  if (socket.closed) return close(response);
  const queued = socket[queuedKey] ?? new Set();
  if (socket[queuedKey] === undefined) {
    socket[queuedKey] = queued;
    socket.once('close', () => {
      for (const one of queued) close(one);
    });
  }
  queued.add(response);
  response.once('socket', () => queued.delete(response));
}

/** As Node does it. */
function close(response: CapturedResponse): void {
  setIfOwn(response, 'destroyed', true);
  setIfOwn(response, '_closed', true);
  response.emit('close');
}

function capturedWriteHead(this: CapturedResponse, ...given: unknown[]): unknown {
  return this[captureKey]!.writeHead(given);
}

function capturedWrite(this: CapturedResponse, ...given: unknown[]): boolean {
  return this[captureKey]!.write(given);
}

function capturedEnd(this: CapturedResponse, ...given: unknown[]): unknown {
  return this[captureKey]!.end(given);
}

function capturedDestroy(this: CapturedResponse, ...given: unknown[]): never {
  return this[captureKey]!.destroy(given) as never;
}

function capturedEmit(this: CapturedResponse, ...given: unknown[]): boolean {
  return this[captureKey]!.emit(given);
}

function ignored(this: CapturedResponse): CapturedResponse {
  return this;
}

function isChunk(chunk: unknown): chunk is string | Uint8Array {
  return typeof chunk === 'string' || isBytes(chunk);
}

function isUtf8(chunk: unknown, encoding: unknown): boolean {
  return typeof chunk === 'string' && (!encoding || typeof encoding === 'function' || encoding === 'utf8');
}

/** Whether Node will accept this end. Node itself reports what it refuses. */
function canEnd(response: ServerResponse, chunk: unknown): boolean {
  const isBody = !chunk || typeof chunk === 'function' || isChunk(chunk);
  if (!isBody || response.headersSent) return isBody;
  const { statusCode } = response;
  const words = wordsOf(response);
  const isStatus = Number.isInteger(statusCode) && statusCode >= 100 && statusCode <= 999;
  return isStatus && /^[\t\x20-\x7e\x80-\xff]*$/.test(words ?? '');
}

function callbackOf(given: ChunkArguments): Callback | undefined {
  for (const one of given) if (typeof one === 'function') return one as Callback;
  return undefined;
}

/** Joins the chunks; a single chunk is returned as it is. */
export function joined(chunks: readonly Uint8Array[], bytes: number): Uint8Array {
  if (chunks.length === 1) return chunks[0]!;
  const all = new Uint8Array(bytes);
  let offset = 0;
  for (const chunk of chunks) {
    all.set(chunk, offset);
    offset += chunk.byteLength;
  }
  return all;
}

/** Sets an own property. Where it is a getter, as in HTTP/2, the getter knows better. */
function setIfOwn<Name extends 'finished' | 'destroyed' | '_closed'>(
  response: CapturedResponse,
  name: Name,
  value: boolean,
): void {
  if (Object.hasOwn(response, name)) response[name] = value;
}
