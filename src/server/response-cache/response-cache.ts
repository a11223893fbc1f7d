/**
 * Response cache: what a request asks of the cache, and what the handler's answer becomes. No framework is known here.
 *
 * Promise: a response is given only to requests that it is right for; one handler runs for all who want the same at a time, in all
 * processes; it answers its own client as it writes, and the client's leaving ends nothing; what may not be kept, and every
 * failure of the cache itself, leaves each request to its handler.
 * After: RFC 9111 (HTTP caching), RFC 5861 (stale responses), RFC 9211 (`Cache-Status`).
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { type CacheLifetime, type CacheOptions, StoredCache } from '../../coordination/cache/cache.js';
import type { Found } from '../../coordination/cache/engine.js';
import type { LoadContext } from '../../coordination/cache/loader.js';
import { type Clock, systemClock } from '../../core/clock.js';
import type { Duration } from '../../core/duration.js';
import {
  checkOptions,
  duration,
  type Field,
  func,
  integer,
  oneOf,
  optional,
  text,
  withDefault,
} from '../../core/options.js';
import { type Answer, type AnswerHead, captureAnswer, type ResponseCapture, type StoredAnswer } from '../capture.js';
import {
  answerFor,
  type Entry,
  entrySerializer,
  give,
  type HeadersBefore,
  handlersShare,
  type KeptResponse,
  notModified,
  pass,
} from './entry.js';
import { addressTag, isCacheable, isCredentialed, isUnsafe, rootKey, variantOf } from './key.js';
import { detachedExchange } from './refresh.js';
import { isFailure, type ResponseLifetime, type Storable, storableOf } from './storability.js';

/** What a route, or all of them, asks of responses. */
export interface ResponseCacheRules<Request> {
  /** How long a response is fresh that does not say so itself. Default 0: it is not kept. */
  readonly ttl?: Duration;
  /** How long after that it is still given while it is made anew, where it does not say so itself. Default 0. */
  readonly staleWhileRevalidate?: Duration;
  /** How long after that it is given in place of a 5xx or 429, where it does not say so itself. Default 0; an hour is a good choice. */
  readonly staleIfError?: Duration;
  /** The longest body that is kept. A longer one goes out as it is written. Default 960 KiB, which fits into every store. */
  readonly maxBodyBytes?: number;
  /**
   * What stands for path and query, for requests that differ in what does not matter. Protocol, host, credentials and `Vary` always count besides.
   * Default: path and query as they were sent.
   */
  readonly key?: (request: Request) => string;
  /** The tags of a response, by which `invalidateTag` finds it. Asked when the handler has answered. At most 99, each of 1 to 200 characters. */
  readonly tags?: (request: Request) => readonly string[];
}

/** Options of `responseCache`: those of the cache, and what is asked of responses. */
export type ResponseCacheOptions<Request> = Pick<CacheOptions<unknown>, (typeof passedOn)[number]> &
  ResponseCacheRules<Request> & {
    /** In events, in `Cache-Status`, and in front of the keys: each response cache of a store needs its own. Default `'responses'`. */
    readonly name?: string;
    /**
     * What becomes of the responses of a URL when a POST, PUT, DELETE or the like on it is answered 2xx or 3xx. `'invalidate'`, the default: they are
     * void. `'ignore'`: they stay until their time is over, or a tag is invalidated.
     */
    readonly onUnsafe?: 'invalidate' | 'ignore';
  };

/** The options of `cache` that mean the same here. */
const passedOn = [
  ...(['store', 'jitter', 'early', 'max', 'maxBytes', 'maxL1Ttl', 'lease', 'hardTimeout', 'waitTimeout'] as const),
  ...(['maxConcurrentLoads', 'failBackoff', 'l2Timeouts', 'onStoreDown', 'random', 'on', 'clock'] as const),
] as const;

/** What can be done to a response cache besides asking it. */
export interface ResponseCacheControl {
  /**
   * Makes every response void that has the tag, in all processes.
   *
   * @throws {@link StoreError} `ERR_STORE` when the store could not, {@link CircuitOpenError} `ERR_CIRCUIT_OPEN` while it is left alone after failures.
   */
  invalidateTag(tag: string): Promise<void>;
  /** Leaves every request to its handler from now on. The store stays open. Safe to repeat. */
  close(): Promise<void>;
}

/** One request and its response, as the adapter of a framework shows them. */
export interface CacheExchange<Request> {
  readonly request: Request;
  readonly incoming: IncomingMessage;
  readonly response: ServerResponse;
  /** `http` or `https`, and the host, as the framework understands the request. */
  readonly protocol: string;
  /** Path and query as the client sent them. */
  readonly url: string;
  /** The headers that were set before, as far as the response itself does not know them. */
  readonly headersBefore: HeadersBefore;
  /** Lets the handler run. */
  readonly next: (error?: unknown) => void;
  /** Takes the response from the framework, which sends nothing from here on. */
  readonly takeOver: () => void;
  /** Lets the server handle another request. */
  readonly dispatch: (request: IncomingMessage, response: ServerResponse) => void;
}

/** The rules with their defaults. */
export interface CheckedRules<Request> {
  readonly lifetime: ResponseLifetime;
  readonly maxBodyBytes: number;
  readonly key: ((request: Request) => string) | undefined;
  readonly tags: ((request: Request) => readonly string[]) | undefined;
}

const policy = 'responseCache';
/** So long requests go to their handlers at once after one whose response could not be kept. */
const passForMs = 5_000;
/** A response says in each of its variants what it depends on; more changes of mind are not followed. */
const mostAddresses = 4;
const span = /* @__PURE__ */ duration({ min: 0 });
const lookedUp: Field<unknown> = { allowed: 'as for cache()', parse: (value) => value };

function ruleFields<Request>() {
  return {
    ttl: withDefault(span, 0),
    staleWhileRevalidate: withDefault(span, 0),
    staleIfError: withDefault(span, 0),
    maxBodyBytes: withDefault(integer({ min: 0 }), 983_040),
    key: optional(func<(request: Request) => string>()),
    tags: optional(func<(request: Request) => readonly string[]>()),
  };
}

/** The handler answered that it failed. Those who waited ask it themselves. */
class HandlerFailedError extends Error {
  constructor(status: number) {
    super(`the handler answered ${status}`);
    this.name = 'HandlerFailedError';
  }
}

/** A request of our own that is on its way to us. */
interface Errand {
  readonly owner: object;
  readonly address: string;
  take: ((exchange: CacheExchange<never>) => void) | undefined;
}

// A property that any copy of this package finds: another cache on the way must not answer from what it has.
const errandKey = Symbol.for('holdfast.responseCache.errand');
type WithErrand = IncomingMessage & { [errandKey]?: Errand; [running: symbol]: unknown };

export class HttpResponseCache<Request> implements ResponseCacheControl {
  private readonly cache: StoredCache<Entry, string>;
  readonly onUnsafe: 'invalidate' | 'ignore';
  /** A property of requests whose handler runs for this cache. */
  readonly running = Symbol('holdfast.responseCache.running');
  private readonly clock: Clock;
  private readonly name: string;
  private readonly maxKnown: number;
  /** By key what responses depend on, and which variant has the key's own entry: saves the look there. */
  private readonly known = new Map<string, { readonly vary: readonly string[]; readonly home: string | undefined }>();
  private isClosed = false;

  constructor(options: ResponseCacheOptions<Request>) {
    const fields = Object.fromEntries(passedOn.map((name) => [name, optional(lookedUp)]));
    const checked = checkOptions(policy, options, {
      ...fields,
      ...ruleFields<Request>(),
      name: withDefault(text(), 'responses'),
      onUnsafe: withDefault<'invalidate' | 'ignore'>(oneOf(['invalidate', 'ignore']), 'invalidate'),
    }) as Readonly<Record<string, unknown>> & Required<Pick<ResponseCacheOptions<Request>, 'name' | 'onUnsafe'>>;
    const given = Object.fromEntries(passedOn.map((name) => [name, checked[name]]));
    this.name = checked.name;
    this.onUnsafe = checked.onUnsafe;
    this.cache = new StoredCache<Entry, string>(policy, {
      ...(given as Partial<CacheOptions<Entry>>),
      name: checked.name,
      // Responses are large.
      maxBytes: (given.maxBytes as number | undefined) ?? 2 ** 26,
      ttl: lifetimeOf,
      tags: (entry) => (entry.kind === 'pass' ? [] : entry.tags),
      serializer: entrySerializer,
    });
    this.clock = options.clock ?? systemClock;
    this.maxKnown = options.max ?? 1_000;
  }

  invalidateTag(tag: string): Promise<void> {
    return this.cache.invalidateTag(tag);
  }

  close(): Promise<void> {
    this.isClosed = true;
    return this.cache.close();
  }

  /** Answers the request, or lets its handler do so. */
  handle(exchange: CacheExchange<Request>, rules: CheckedRules<Request>): void {
    const { incoming, response, next } = exchange;
    const errand = (incoming as WithErrand)[errandKey];
    if (errand !== undefined) {
      if (errand.owner !== this || errand.take === undefined) return next();
      return errand.take(exchange as CacheExchange<never>);
    }
    // Mounted twice it would wait for itself.
    if ((incoming as WithErrand)[this.running] === true) return next();
    if (this.isClosed || response.headersSent || !isCacheable(incoming)) {
      if (this.onUnsafe === 'invalidate' && isUnsafe(incoming)) this.invalidateAfter(exchange, rules);
      return this.bypass(exchange);
    }
    let root: string;
    try {
      root = this.rootOf(exchange, rules);
    } catch (error) {
      return next(error);
    }
    this.answer(new Ask(this, exchange, rules, root)).catch(next);
  }

  rootOf(
    { incoming, protocol, request, url }: CacheExchange<Request>,
    { key }: CheckedRules<Request>,
    hasCredentials = isCredentialed(incoming.headers),
  ): string {
    const own = key?.(request);
    if (key !== undefined && typeof own !== 'string') throw new TypeError(`${policy}: key(request) must give a string`);
    return rootKey(incoming.headers, protocol, own, url, hasCredentials);
  }

  /** Makes the responses of the URL void as soon as it is known that the request has done something. RFC 9111, section 4.4. */
  private invalidateAfter(exchange: CacheExchange<Request>, rules: CheckedRules<Request>): void {
    onHead(exchange.response, (status) => {
      if (status < 200 || status >= 400 || this.isClosed) return;
      this.invalidate(exchange, rules).catch((error) => this.cache.warn('not-invalidated', exchange.url, error));
    });
  }

  private async invalidate(exchange: CacheExchange<Request>, rules: CheckedRules<Request>): Promise<void> {
    const open = this.rootOf(exchange, rules, false);
    const credentialed = this.rootOf(exchange, rules, true);
    const mayHave = (key: string) => key.startsWith(open) || key.startsWith(credentialed);
    await Promise.all([
      ...[this.cache.delete(open), this.cache.delete(credentialed)],
      this.cache.invalidateTag(addressTag(open), mayHave),
    ]);
  }

  private async answer(ask: Ask<Request>): Promise<void> {
    const { root, headers } = ask;
    const known = this.known.get(root);
    let vary = known?.vary ?? [];
    let address =
      known === undefined || known.home === variantOf(vary, headers) ? root : addressOf(root, vary, headers);
    for (let tries = 0; tries < mostAddresses; tries++) {
      let found: Found<Entry>;
      ask.address = address;
      try {
        found = await this.cache.ask(address, {
          load: (_, context) => ask.load(context),
          isRefreshed: ({ kind }) => kind === 'response',
        });
      } catch {
        // The handler failed, or the cache did: neither is this request's affair.
        return ask.isRun ? ask.release() : this.bypass(ask.exchange);
      }
      const { value } = found;
      if (value.kind === 'pass') return ask.isRun ? ask.release() : this.bypass(ask.exchange);
      const isHome = address === root;
      if (value.vary.length > 0) this.know(root, value.vary, isHome ? value.variant : this.known.get(root)?.home);
      const isRight = value.variant === variantOf(value.vary, headers);
      if (ask.isRun && !isRight) return ask.release();
      if (isRight) return ask.show(value, found);
      vary = isHome ? value.vary : [...new Set([...vary, ...value.vary])].sort();
      address = addressOf(root, vary, headers);
    }
    this.bypass(ask.exchange);
  }

  private know(root: string, vary: readonly string[], home: string | undefined): void {
    this.known.delete(root);
    this.known.set(root, { vary, home });
    if (this.known.size > this.maxKnown) this.known.delete(this.known.keys().next().value as string);
  }

  private bypass({ response, next }: CacheExchange<Request>): void {
    if (!response.headersSent) response.setHeader('Cache-Status', `${this.title}; fwd=bypass`);
    next();
  }

  get title(): string {
    return /^[A-Za-z*][\w!#$%&'*+.^`|~:/-]*$/.test(this.name)
      ? this.name
      : `"${this.name.replace(/[^ -~]|["\\]/g, '?')}"`;
  }

  get nowMs(): number {
    return this.clock.now();
  }

  get wallMs(): number {
    return this.clock.wallNow();
  }
}

/** The rules of the options, and of a route that has some of its own. */
export function checkRules<Request>(
  options: ResponseCacheRules<Request>,
  own: ResponseCacheRules<Request> = {},
): CheckedRules<Request> {
  const fields = ruleFields<Request>();
  checkOptions(`${policy} of a route`, own, fields);
  const merged = Object.fromEntries(
    Object.keys(fields).map((name) => [
      name,
      (own as Record<string, unknown>)[name] ?? (options as Record<string, unknown>)[name],
    ]),
  );
  const { ttl, staleWhileRevalidate, staleIfError, maxBodyBytes, key, tags } = checkOptions(policy, merged, fields);
  return { lifetime: { ttl, staleWhileRevalidate, staleIfError }, maxBodyBytes, key, tags };
}

function addressOf(root: string, vary: readonly string[], headers: IncomingMessage['headers']): string {
  return vary.length === 0 ? root : `${root}${variantOf(vary, headers)}`;
}

function lifetimeOf(entry: Entry): CacheLifetime {
  if (entry.kind === 'pass') return { ttl: passForMs, staleWhileRevalidate: 0, staleIfError: 0 };
  return entry.lifetime ?? { ttl: 0 };
}

/** One request's dealings with the cache. */
class Ask<Request> {
  readonly exchange: CacheExchange<Request>;
  readonly root: string;
  /** As they came: whoever handles the request may change them. */
  readonly headers: IncomingMessage['headers'];
  /** Where the cache is asked now. */
  address: string;
  /** The handler of this request answers it. */
  isRun = false;
  private readonly owner: HttpResponseCache<Request>;
  private readonly rules: CheckedRules<Request>;
  private readonly before: HeadersBefore;
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

  /** Makes the response: for this client while it waits, else by a request of our own. */
  load({ isBackground, signal }: LoadContext): Promise<Entry> {
    if (isBackground || this.isRun || this.exchange.incoming.method === 'HEAD') return this.refresh(signal);
    this.isRun = true;
    const { incoming, response, next } = this.exchange;
    (incoming as WithErrand)[this.owner.running] = true;
    const status = `${this.owner.title}; fwd=${this.address === this.root ? 'uri' : 'vary'}-miss`;
    response.setHeader('Cache-Status', status);
    return this.watch(this.exchange, signal, true, next);
  }

  /** The handler's own answer was waiting for what the cache has: there is nothing. */
  release(): void {
    this.capture?.resume();
  }

  /** Gives a response to this client, unless his own handler does. */
  show(entry: KeptResponse, { source, freshness }: Found<Entry>): void {
    const { owner, exchange, before, headers } = this;
    const leftMs = freshness === undefined ? 0 : freshness.freshMs - owner.nowMs;
    const ageMs = freshness === undefined ? 0 : Math.max(0, freshness.ttlMs - leftMs);
    const isForwarded = source === 'load' || source === 'wait';
    const how = isForwarded ? 'fwd=uri-miss; collapsed' : `hit; ttl=${Math.floor(leftMs / 1_000)}`;
    const status = `${owner.title}; ${how}`;
    const isHead = exchange.incoming.method === 'HEAD';
    const answer: StoredAnswer = answerFor(entry, { before, headers, isHead, ageMs, status });
    if (this.isRun) return this.capture?.resume(source === 'stale' ? answer : undefined);
    exchange.takeOver();
    give(exchange.response, answer);
  }

  /** Sends the server a request of our own. */
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
        // Who watches it tells how it ends. The close may come first: what ends in a tick of its own is closed before any promise is heard.
        response.removeListener('close', lost);
        const inner = new Ask(owner, arrived, rules, root);
        inner.address = address;
        // Nobody reads on what is not kept: for its handler that is a client that left.
        inner
          .watch(arrived, signal, false, arrived.next)
          .then(resolve, reject)
          .finally(() => response.destroy());
      };
      (request as WithErrand)[errandKey] = errand;
      response.once('close', lost);
      signal.addEventListener('abort', () => response.destroy(), { once: true });
      exchange.dispatch(request, response);
    });
  }

  /** Lets the handler run, and takes down what it answers. Settles as soon as it is known what becomes of it. */
  private watch(
    { incoming, response, request }: CacheExchange<Request>,
    signal: AbortSignal,
    hasClient: boolean,
    next: () => void,
  ): Promise<Entry> {
    const { owner, rules, headers, before } = this;
    const ownTags = this.address === this.root ? [] : [addressTag(owner.rootOf(this.exchange, rules, false))];
    return new Promise<Entry>((resolve, reject) => {
      let storable: Storable | undefined;
      let share: ReturnType<typeof handlersShare> | undefined;
      const give = (entry: Entry) => {
        capture.stop();
        resolve(entry);
      };
      const capture = captureAnswer(response, {
        maxBodyBytes: rules.maxBodyBytes,
        keepHeaders: everyHeader,
        onHead(head: AnswerHead) {
          if (isFailure(head.status)) {
            reject(new HandlerFailedError(head.status));
            return hasClient ? 'wait' : undefined;
          }
          storable = storableOf(head, isCredentialed(headers), rules.lifetime, owner.wallMs);
          if (storable === undefined) give(pass);
          else share = handlersShare(head, before, owner.wallMs);
          // He asked whether it has changed, which the handler was not told.
          return hasClient ? notModified(head, headers) : undefined;
        },
        onTooLarge: () => give(pass),
        onAnswer({ body }: Answer) {
          if (storable === undefined || share === undefined || body === undefined) return undefined;
          if (!isWholeBody(share.head, body)) return void resolve(pass);
          const { vary, lifetime, initialAgeMs } = storable;
          const variant = variantOf(vary, headers);
          const kept = { kind: 'response', answer: { ...share.head, body }, removed: share.removed } as const;
          try {
            const tags = [...(rules.tags?.(request) ?? []), ...ownTags];
            resolve({ ...kept, ...{ vary, variant, initialAgeMs, lifetime, tags } });
          } catch (error) {
            reject(error);
          }
          return undefined;
        },
        onBroken: () => reject(new Error('the handler broke its answer off')),
        onClientGone() {},
      });
      this.capture = capture;
      signal.addEventListener('abort', () => capture.stop(), { once: true });
      // The handler shall answer with all of it, since others want it.
      delete incoming.headers['if-none-match'];
      delete incoming.headers['if-modified-since'];
      next();
    });
  }
}

/** Tells the status of an answer before any of it goes out, also when the client is gone; changes nothing else. */
function onHead(response: ServerResponse, hear: (status: number) => void): void {
  const { writeHead, end } = response;
  let isKnown = false;
  const tell = (status: number) => {
    if (isKnown) return;
    isKnown = true;
    hear(status);
  };
  response.writeHead = (...given: unknown[]) => {
    tell(Number(given[0]));
    return Reflect.apply(writeHead, response, given);
  };
  // Answers of HTTP/2 do not pass writeHead.
  response.end = ((...given: unknown[]) => {
    tell(response.statusCode);
    return Reflect.apply(end, response, given);
  }) as ServerResponse['end'];
}

/** As they are; what is not to be kept is known only with all of them. */
function everyHeader(headers: readonly (readonly [name: string, value: unknown])[]): string[] {
  return headers.flatMap(([name, value]) =>
    value === undefined ? [] : [value].flat().flatMap((one) => [name, String(one)]),
  );
}

/** A length that does not fit says that something is missing. */
function isWholeBody({ headers }: AnswerHead, body: Uint8Array): boolean {
  for (let index = 0; index < headers.length; index += 2) {
    if (headers[index]!.toLowerCase() === 'content-length') return Number(headers[index + 1]) === body.byteLength;
  }
  return true;
}
