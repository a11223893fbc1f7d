/**
 * Server: an Express application that sells what the upstream has, on two paths.
 *
 * `/naked/...` calls the upstream with plain `fetch`. `/protected/...` puts a pipeline around the same call. Nothing else
 * differs between them: the same function fetches, the same function answers.
 */
import type { AddressInfo } from 'node:net';
import express, { type Request, type Response } from 'express';
import {
  deadline,
  exponential,
  fallback,
  type Handles,
  type HoldfastEvent,
  pipeline,
  retry,
  retryBudget,
  timeout,
} from 'holdfast';
import { serveParent, settings } from './child.ts';

export interface ServerSettings {
  readonly nakedUpstream: string;
  readonly protectedUpstream: string;
}

export interface ServerReady {
  readonly port: number;
  /** The protected pipelines in words. */
  readonly quotes: string;
  readonly charges: string;
}

/** What the policies of the protected path told. */
export interface ServerReport {
  retries: number;
  timeouts: number;
  /** Calls that succeeded after at least one retry. */
  repaired: number;
  staleAnswers: number;
  /** Calls whose retry gave up, by reason. */
  gaveUp: Record<string, number>;
  /** Calls of the upstream that each path made, refused connections among them. */
  upstreamCalls: { naked: number; protected: number };
}

/** The upstream's answer, read to its end. */
interface Answer {
  readonly status: number;
  readonly headers: Headers;
  readonly body: string;
}

const { nakedUpstream, protectedUpstream } = settings<ServerSettings>();
let seen = emptyReport();

function emptyReport(): ServerReport {
  const upstreamCalls = { naked: 0, protected: 0 };
  return { retries: 0, timeouts: 0, repaired: 0, staleAnswers: 0, gaveUp: {}, upstreamCalls };
}

/** To fetch, a response is a success whatever its status; here 5xx and 429 count as failures, as a throw does. */
const handles: Handles = (outcome) => !outcome.ok || outcome.value.status >= 500 || outcome.value.status === 429;

const charges = pipeline(
  deadline({ after: '3s', on: count }),
  retry({
    attempts: 4,
    backoff: exponential({ initial: 100, max: 300, jitter: 'full' }),
    budget: retryBudget({ ratio: 0.2 }),
    handles,
    on: count,
  }),
  timeout({ after: 500, on: count }),
);

/** A price may be old, so quotes have a second source: the last price that was seen. */
const lastQuotes = new Map<string, string>();
const quotes = pipeline(
  fallback((_error, call) => lastQuote(String(call.attributes.symbol)), { handles, on: count }),
  charges,
);

function lastQuote(symbol: string): Answer {
  const body = lastQuotes.get(symbol);
  if (body === undefined) return { status: 503, headers: new Headers(), body: '{"error":"no price known"}' };
  return { status: 200, headers: new Headers({ 'x-stale': 'yes' }), body };
}

/**
 * One call of the upstream. The body is read here, inside the attempt: so the timeout covers it, and the connection of
 * an answer that a retry throws away is free again.
 */
async function callUpstream(origin: string, request: Request, signal?: AbortSignal): Promise<Answer> {
  seen.upstreamCalls[origin === nakedUpstream ? 'naked' : 'protected']++;
  const headers: Record<string, string> = {};
  for (const name of ['x-request-number', 'idempotency-key']) {
    const value = request.get(name);
    if (value !== undefined) headers[name] = value;
  }
  const path = request.path.replace(/^\/\w+/, '');
  const response = await fetch(`${origin}${path}`, { method: request.method, headers, signal: signal ?? null });
  return { status: response.status, headers: response.headers, body: await response.text() };
}

const app = express();

app.get('/naked/quotes/:symbol', async (request, response) => {
  send(response, await callUpstream(nakedUpstream, request));
});

app.post('/naked/charges', async (request, response) => {
  send(response, await callUpstream(nakedUpstream, request));
});

app.get('/protected/quotes/:symbol', async (request, response) => {
  const { symbol = '' } = request.params;
  const answer = await quotes.execute(({ signal }) => callUpstream(protectedUpstream, request, signal), {
    attributes: { symbol },
  });
  // The symbols are a fixed few, so the map stays small.
  if (answer.status === 200) lastQuotes.set(symbol, answer.body);
  send(response, answer);
});

app.post('/protected/charges', async (request, response) => {
  const idempotencyKey = request.get('idempotency-key');
  if (idempotencyKey === undefined) return void response.status(400).json({ error: 'Idempotency-Key is missing' });
  // Charging twice would be worse than failing: only the key, which the upstream recognises, makes a retry safe.
  const options = { unsafe: true, idempotencyKey } as const;
  send(response, await charges.execute(({ signal }) => callUpstream(protectedUpstream, request, signal), options));
});

// Express knows an error handler by its four parameters.
app.use((error: unknown, _request: Request, response: Response, _next: unknown) => {
  response.status(502).json({ error: codeOf(error) });
});

function send(response: Response, { status, headers, body }: Answer): void {
  if (headers.has('x-stale')) response.set('x-stale', 'yes');
  response.status(status).type('json').send(body);
}

/** What went wrong, in a word. `fetch` hides the socket's error in `cause`. */
function codeOf(error: unknown): string {
  const { code, cause } = error as { code?: string; cause?: { code?: string } };
  return code ?? cause?.code ?? String(error);
}

function count(event: HoldfastEvent): void {
  if (event.type === 'retry') seen.retries++;
  else if (event.type === 'retry-succeeded') seen.repaired++;
  else if (event.type === 'timeout') seen.timeouts++;
  else if (event.type === 'fallback') seen.staleAnswers++;
  else if (event.type === 'retry-stopped') seen.gaveUp[event.stoppedBy] = (seen.gaveUp[event.stoppedBy] ?? 0) + 1;
}

const server = app.listen(0, '127.0.0.1', () => {
  const { port } = server.address() as AddressInfo;
  const ready: ServerReady = { port, quotes: String(quotes.explain()), charges: String(charges.explain()) };
  serveParent(ready, (message) => {
    if (message === 'begin') seen = emptyReport();
    return seen;
  });
});
