/**
 * Response cache: maps requests to the cache, and handlers' answers to entries. Independent of any framework.
 *
 * Promise: a response is given only to requests that it is valid for. Of all concurrent requests for the same response, in all processes, one runs
 * its handler. That handler answers its own client as it writes, and if the client disconnects, the handler continues. If a response may not be
 * stored, or the cache itself fails, each request goes to its handler.
 * After: RFC 9111 (HTTP caching), RFC 5861 (stale responses), RFC 9211 (`Cache-Status`).
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { type CacheLifetime, type CacheOptions, StoredCache } from '../../coordination/cache/cache.js';
import type { Found } from '../../coordination/cache/engine.js';
import { type Clock, systemClock } from '../../core/clock.js';
import { Ask, errandOf } from './ask.js';
import { type Entry, entrySerializer, type HeadersBefore } from './entry.js';
import { addressTag, isCacheable, isCredentialed, isUnsafe, rootKey, variantOf } from './key.js';
import { type CheckedRules, checkCacheOptions, policy, type ResponseCacheOptions } from './options.js';

/** Controls a response cache. */
export interface ResponseCacheControl {
  /**
   * Invalidates every response that has the tag, in all processes.
   *
   * @throws {@link StoreError} `ERR_STORE` when the store failed, {@link CircuitOpenError} `ERR_CIRCUIT_OPEN` while the breaker in front of it is open.
   */
  invalidateTag(tag: string): Promise<void>;
  /** Leaves every request to its handler from now on. The store stays open. Safe to repeat. */
  close(): Promise<void>;
}

/** One request and its response, as a framework's adapter presents them. */
export interface CacheExchange<Request> {
  readonly request: Request;
  readonly incoming: IncomingMessage;
  readonly response: ServerResponse;
  /** `http` or `https`, and the host, as the framework understands the request. */
  readonly protocol: string;
  /** Path and query as the client sent them. */
  readonly url: string;
  /** Headers set earlier that the response itself does not know. */
  readonly headersBefore: HeadersBefore;
  /** Runs the handler. */
  readonly next: (error?: unknown) => void;
  /** Takes the response over from the framework, which sends nothing afterwards. */
  readonly takeOver: () => void;
  /** Lets the server handle another request. */
  readonly dispatch: (request: IncomingMessage, response: ServerResponse) => void;
}

/** How long requests go straight to their handlers after a response that could not be stored. */
const passForMs = 5_000;
/** Each variant of a response states what it depends on. If that differs more often than this, it is not followed. */
const mostAddresses = 4;

type MarkedRequest = IncomingMessage & { [mark: symbol]: unknown };

export class HttpResponseCache<Request> implements ResponseCacheControl {
  private readonly cache: StoredCache<Entry, string>;
  readonly onUnsafe: 'invalidate' | 'ignore';
  /** Property key that marks requests whose handler runs for this cache. */
  private readonly running = Symbol('holdfast.responseCache.running');
  private readonly clock: Clock;
  private readonly name: string;
  private readonly maxKnown: number;
  /** For each key, what responses depend on and which variant owns the key's own entry. This saves a look-up there. */
  private readonly known = new Map<string, { readonly vary: readonly string[]; readonly home: string | undefined }>();
  private isClosed = false;

  constructor(options: ResponseCacheOptions<Request>) {
    const { name, onUnsafe, passed } = checkCacheOptions(options);
    this.name = name;
    this.onUnsafe = onUnsafe;
    this.cache = new StoredCache<Entry, string>(policy, {
      ...(passed as Partial<CacheOptions<Entry>>),
      name,
      // Responses are large.
      maxBytes: passed.maxBytes ?? 2 ** 26,
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

  /** Marks a request whose handler runs for this cache, so that the cache passes it on when it meets it again. */
  markRunning(incoming: IncomingMessage): void {
    (incoming as MarkedRequest)[this.running] = true;
  }

  /** Answers the request, or passes it to its handler. */
  handle(exchange: CacheExchange<Request>, rules: CheckedRules<Request>): void {
    const { incoming, response, next } = exchange;
    const errand = errandOf(incoming);
    if (errand !== undefined) {
      if (errand.owner !== this || errand.take === undefined) return next();
      return errand.take(exchange as CacheExchange<never>);
    }
    // A cache mounted twice would wait for itself.
    if ((incoming as MarkedRequest)[this.running] === true) return next();
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

  /** Invalidates the responses of the URL once it is known that the request has changed something. RFC 9111, section 4.4. */
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
        // The handler failed, or the cache did: neither concerns this request.
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

  get background(): Clock {
    return this.clock.background ?? this.clock;
  }

  get wallMs(): number {
    return this.clock.wallNow();
  }
}

function addressOf(root: string, vary: readonly string[], headers: IncomingMessage['headers']): string {
  return `${root}${variantOf(vary, headers)}`;
}

function lifetimeOf(entry: Entry): CacheLifetime {
  if (entry.kind === 'pass') return { ttl: passForMs, staleWhileRevalidate: 0, staleIfError: 0 };
  return entry.lifetime ?? { ttl: 0 };
}

/** Reports the status of an answer before any of it is sent, even if the client has disconnected; changes nothing else. */
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
  // HTTP/2 answers do not go through `writeHead`.
  response.end = ((...given: unknown[]) => {
    tell(response.statusCode);
    return Reflect.apply(end, response, given);
  }) as ServerResponse['end'];
}
