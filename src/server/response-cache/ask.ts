/**
 * Ask: how one request uses the cache, and the internal requests that refresh responses.
 *
 * Promise: the handler answers its own client as it writes. The capture that observes it always reports how the answer ended.
 */
import type { IncomingMessage } from 'node:http';
import type { Found } from '../../coordination/cache/engine.js';
import type { LoadContext } from '../../coordination/cache/loader.js';
import { ambient } from '../../core/ambient.js';
import type { Call } from '../../core/call.js';
import { callbackTimer } from '../../core/clock.js';
import { type Answer, captureAnswer, type ResponseCapture, type StoredAnswer } from '../capture.js';
import type { AnswerHead } from '../response-head.js';
import {
  answerFor,
  type Entry,
  give,
  type HeadersBefore,
  handlersShare,
  type KeptResponse,
  notModified,
  pass,
} from './entry.js';
import { addressTag, isCredentialed, variantOf } from './key.js';
import type { CheckedRules } from './options.js';
import { detachedExchange } from './refresh.js';
import type { CacheExchange, HttpResponseCache } from './response-cache.js';
import { isFailure, type Storable, storableOf } from './storability.js';

/** The handler answered with a failure. Requests that waited for it run their own handlers. */
class HandlerFailedError extends Error {
  constructor(status: number) {
    super(`the handler answered ${status}`);
    this.name = 'HandlerFailedError';
  }
}

/** How long a handler whose client has disconnected may pause in the middle of its answer: some stop then, as `sendFile` of Express does. */
const longestPauseMs = 1_000;

/** An internal request on its way through this server. */
interface Errand {
  readonly owner: object;
  readonly address: string;
  take: ((exchange: CacheExchange<never>) => void) | undefined;
}

// A property key that every copy of this package finds: another cache on the way must not answer from its contents.
const errandKey = Symbol.for('holdfast.responseCache.errand');
type WithErrand = IncomingMessage & { [errandKey]?: Errand };

/** The errand of an internal request; undefined for any other. */
export function errandOf(incoming: IncomingMessage): Errand | undefined {
  return (incoming as WithErrand)[errandKey];
}

/** One request's use of the cache. */
export class Ask<Request> {
  readonly exchange: CacheExchange<Request>;
  readonly root: string;
  /** The headers as received: the code that handles the request may change them. */
  readonly headers: IncomingMessage['headers'];
  /** The cache key that is looked up now. */
  address: string;
  private readonly owner: HttpResponseCache<Request>;
  private readonly rules: CheckedRules<Request>;
  private readonly before: HeadersBefore;
  /** The call around the request, where `holdfast/context` keeps it. */
  private readonly call: Call | undefined = ambient()?.current();
  /** The capture of this request's handler, once it runs. */
  private capture: ResponseCapture | undefined = undefined;

  constructor(
    owner: HttpResponseCache<Request>,
    exchange: CacheExchange<Request>,
    rules: CheckedRules<Request>,
    root: string,
  ) {
    this.owner = owner;
    this.exchange = exchange;
    this.rules = rules;
    this.root = root;
    this.address = root;
    this.headers = { ...exchange.incoming.headers };
    this.before = { ...exchange.response.getHeaders(), ...exchange.headersBefore };
  }

  /** Whether this request's own handler answers it. */
  get isRun(): boolean {
    return this.capture !== undefined;
  }

  /** Produces the response: with this request's handler while its client waits, otherwise with an internal request. */
  load(context: LoadContext): Promise<Entry> {
    // Unlike a loader's, a handler's work belongs to its own request, also where its response is not shared.
    return ambient()?.run(this.call, () => this.produce(context)) ?? this.produce(context);
  }

  private produce({ isBackground, signal }: LoadContext): Promise<Entry> {
    if (isBackground || this.isRun || this.exchange.incoming.method === 'HEAD') return this.refresh(signal);
    const { incoming, response, next } = this.exchange;
    this.owner.markRunning(incoming);
    const status = `${this.owner.title}; fwd=${this.address === this.root ? 'uri' : 'vary'}-miss`;
    response.setHeader('Cache-Status', status);
    return this.watch(this.exchange, signal, true, next);
  }

  /** The handler's own answer was waiting for an entry of the cache, and there is none. */
  release(): void {
    this.capture?.resume();
  }

  /** Sends a response to this client, unless its own handler does. */
  show(entry: KeptResponse, { source, freshness }: Found<Entry>): void {
    const { owner, exchange, before, headers } = this;
    const leftMs = freshness === undefined ? 0 : freshness.freshMs - owner.nowMs;
    const ageMs = freshness === undefined ? 0 : Math.max(0, freshness.ttlMs - leftMs);
    const isForwarded = source === 'load' || source === 'wait';
    const how = isForwarded ? 'fwd=uri-miss; collapsed' : `hit; ttl=${Math.floor(leftMs / 1_000)}`;
    const status = `${owner.title}; ${how}`;
    const answer: StoredAnswer = answerFor(entry, { before, headers, ageMs, status });
    if (this.capture !== undefined) return this.capture.resume(answer);
    exchange.takeOver();
    give(exchange.response, answer);
  }

  /** Sends an internal request through the server. */
  private refresh(signal: AbortSignal): Promise<Entry> {
    const { owner, exchange, address, root, rules } = this;
    const { request, response } = detachedExchange(exchange.incoming, exchange.url);
    return new Promise<Entry>((resolve, reject) => {
      const errand: Errand = { owner, address, take: undefined };
      const lost = () => reject(new Error(`the request for a refresh was answered ${response.statusCode} on its way`));
      errand.take = (arrived: CacheExchange<Request>) => {
        errand.take = undefined;
        try {
          if (owner.rootOf(arrived, rules) !== root) throw new Error('the request for a refresh came as another one');
        } catch (error) {
          reject(error);
          return arrived.next();
        }
        // The capture reports the end from here on. The close event may come first: an answer that ends within one tick is closed before any promise
        // callback runs.
        response.removeListener('close', lost);
        const inner = new Ask(owner, arrived, rules, root);
        inner.address = address;
        // A response that is not kept is not read further; its handler sees a disconnected client.
        inner
          .watch(arrived, signal, false, arrived.next)
          .then(resolve, reject)
          .finally(() => response.destroy());
      };
      (request as WithErrand)[errandKey] = errand;
      response.once('close', lost);
      signal.addEventListener('abort', () => response.destroy());
      exchange.dispatch(request, response);
    });
  }

  /** Runs the handler and records its answer. Settles as soon as it is known what becomes of the answer. */
  private watch(
    { incoming, response, request }: CacheExchange<Request>,
    signal: AbortSignal,
    hasClient: boolean,
    next: () => void,
  ): Promise<Entry> {
    const { owner, rules, headers, before } = this;
    return new Promise<Entry>((resolve, reject) => {
      // In here, because a `key` that throws ends the load, and not what brought the request.
      const ownTags = this.address === this.root ? [] : [addressTag(owner.rootOf(this.exchange, rules, false))];
      let kept: (Storable & ReturnType<typeof handlersShare>) | undefined;
      const settle = (entry: Entry) => {
        owner.background.cancel(pause);
        capture.stop();
        resolve(entry);
      };
      let bytesBefore = -1;
      const lookLater = () => owner.background.schedule(pause, owner.nowMs + longestPauseMs);
      const pause = callbackTimer(() => {
        const { hasBegun, bytesKept } = capture;
        if (!hasBegun || bytesKept > bytesBefore) {
          bytesBefore = hasBegun ? bytesKept : -1;
          return lookLater();
        }
        capture.stop();
        reject(new Error('the handler stopped in the middle of its answer when its client disconnected'));
      });
      const capture = captureAnswer(response, {
        maxBodyBytes: rules.maxBodyBytes,
        isAhead: true,
        keepHeaders: everyHeader,
        onHead(head: AnswerHead) {
          if (isFailure(head.status)) {
            reject(new HandlerFailedError(head.status));
            return hasClient ? 'wait' : undefined;
          }
          const storable = storableOf(head, isCredentialed(headers), rules.lifetime, owner.wallMs);
          if (storable === undefined) settle(pass);
          else kept = { ...storable, ...handlersShare(head, before, owner.wallMs) };
          // The client sent a conditional request, which the handler was not told.
          return hasClient ? notModified(head, headers) : undefined;
        },
        onTooLarge: () => settle(pass),
        onAnswer({ body, isText }: Answer) {
          owner.background.cancel(pause);
          if (kept === undefined || body === undefined) return undefined;
          const { head, ...rest } = kept;
          if (!isWholeBody(head, body)) return void resolve(pass);
          try {
            const tags = [...(rules.tags?.(request) ?? []), ...ownTags];
            const variant = variantOf(rest.vary, headers);
            resolve({
              ...rest,
              kind: 'response',
              answer: { ...head, body, isText: isText === true && isBeyondAscii(head) },
              variant,
              tags,
            });
          } catch (error) {
            reject(error);
          }
          return undefined;
        },
        onBroken() {
          owner.background.cancel(pause);
          reject(new Error('the handler broke its answer off'));
          return undefined;
        },
        onClientGone: lookLater,
      });
      this.capture = capture;
      const { addTrailers } = response;
      // Not every handler has announced them by a header.
      response.addTrailers = (...given) => {
        settle(pass);
        Reflect.apply(addTrailers, response, given);
      };
      signal.addEventListener('abort', () => {
        owner.background.cancel(pause);
        capture.stop();
      });
      // The handler must answer with the full response, since others want it.
      delete incoming.headers['if-none-match'];
      delete incoming.headers['if-modified-since'];
      next();
    });
  }
}

/** Keeps all headers: which of them must be dropped is known only with all of them. */
function everyHeader(headers: readonly (readonly [name: string, value: unknown])[]): string[] {
  return headers.flatMap(([name, value]) => [value].flat().flatMap((one) => [name, String(one)]));
}

/** Whether it matters for the head how the body was given. */
function isBeyondAscii({ statusMessage, headers }: AnswerHead): boolean {
  return /[^\0-\x7f]/.test(statusMessage + headers.join(''));
}

/** Whether the body is complete: a mismatch with `Content-Length` means that something is missing. */
function isWholeBody({ headers }: AnswerHead, body: Uint8Array): boolean {
  for (let index = 0; index < headers.length; index += 2) {
    if (headers[index]!.toLowerCase() === 'content-length') return Number(headers[index + 1]) === body.byteLength;
  }
  return true;
}
