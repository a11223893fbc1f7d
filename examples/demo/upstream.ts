/**
 * Upstream: the flaky service behind the demo. It quotes prices, charges cards, and fails as `acts.ts` says.
 *
 * What a call meets depends on the seed, the number of the user's request and how often that request was seen, never on
 * the order of arrival: so the first attempt of a request meets the same on both copies while they play the same act.
 */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { seededRandom } from 'holdfast/testing';
import { actBoundaries, actIndexAt, acts, type Faults, hangMs } from './acts.ts';
import { serveParent, settings } from './child.ts';

export interface UpstreamSettings {
  readonly seed: number;
  readonly durationMs: number;
}

/** What became of the charges. */
export interface UpstreamReport {
  /** The number of each request whose card was charged, once for each time. */
  readonly charged: readonly number[];
  /** Charges that were asked for again and recognised by their idempotency key. */
  readonly repeatsRecognised: number;
}

const { seed, durationMs } = settings<UpstreamSettings>();
const random = seededRandom(seed).fork('upstream');
const timesSeen = new Map<number, number>();
const receiptsByKey = new Map<string, string>();
const charged: number[] = [];
let repeatsRecognised = 0;
let beganMs = performance.now();

const server = createServer((request, response) => void serve(request, response));

async function serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
  request.resume();
  const requestNumber = Number(request.headers['x-request-number']);
  const seen = (timesSeen.get(requestNumber) ?? 0) + 1;
  timesSeen.set(requestNumber, seen);

  const draw = random.fork(`${requestNumber}/${seen}`);
  const fault = faultOf(draw());
  await sleep(5 + draw.exponential(10));
  if (fault === 'unavailable') {
    if (draw.chance(0.5)) response.setHeader('retry-after', '1');
    return answer(response, 503, { error: 'HTTP 503' });
  }
  const result = request.method === 'POST' ? charge(request, requestNumber) : { price: 100 + draw.integer(0, 99) };
  if (fault === 'reset') return void request.socket.resetAndDestroy();
  if (fault === 'hang') await sleep(hangMs);
  answer(response, 200, result);
}

function faultOf(draw: number): keyof Faults | undefined {
  const weather = acts[actIndexAt(performance.now() - beganMs, durationMs)]?.weather;
  if (weather === undefined || weather === 'down') return undefined;
  if (draw < weather.reset) return 'reset';
  if (draw < weather.reset + weather.unavailable) return 'unavailable';
  if (draw < weather.reset + weather.unavailable + weather.hang) return 'hang';
  return undefined;
}

/** Charges a card once per idempotency key; without a key, once per call. */
function charge(request: IncomingMessage, requestNumber: number): { receipt: string } {
  const key = String(request.headers['idempotency-key'] ?? `no key, charge ${charged.length}`);
  const known = receiptsByKey.get(key);
  if (known !== undefined) {
    repeatsRecognised++;
    return { receipt: known };
  }
  charged.push(requestNumber);
  const receipt = `receipt ${charged.length}`;
  receiptsByKey.set(key, receipt);
  return { receipt };
}

function answer(response: ServerResponse, status: number, body: object): void {
  if (response.destroyed) return;
  response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
}

/** Plays the outage: the port is closed, and so is every connection that stands. */
function begin(): void {
  beganMs = performance.now();
  const { port } = server.address() as AddressInfo;
  const boundaries = actBoundaries(durationMs);
  for (const [index, { weather }] of acts.entries()) {
    if (weather !== 'down') continue;
    setTimeout(() => {
      server.close();
      server.closeAllConnections();
    }, boundaries[index]);
    setTimeout(() => server.listen(port, '127.0.0.1'), boundaries[index + 1]);
  }
}

/**
 * Listens on a port below those from which systems draw the ports of outgoing connections: else, while nobody listens,
 * a caller could be given this very port and hold it when the outage ends.
 */
function listenAnywhere(triesLeft = 50): void {
  const port = 20_000 + Math.floor(Math.random() * 12_000);
  server.once('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EADDRINUSE' || triesLeft === 0) throw error;
    listenAnywhere(triesLeft - 1);
  });
  server.listen(port, '127.0.0.1');
}

server.once('listening', () => {
  server.removeAllListeners('error');
  const report = (): UpstreamReport => ({ charged, repeatsRecognised });
  serveParent((server.address() as AddressInfo).port, (message) => {
    if (message === 'begin') begin();
    return message === 'begin' ? 'begun' : report();
  });
});
listenAnywhere();
