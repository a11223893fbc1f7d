/**
 * What the default client serves where a service refuses requests and says when to come back. Literally heeded, each refusal would stop the whole
 * origin for a second at least, since `Retry-After` counts in seconds.
 */
import { afterEach, describe, expect, it, vi } from 'vitest';
import { type CreateFetchOptions, createFetch } from '../../src/client/fetch.js';
import { type SeededRandom, seededRandom, type VirtualClock, virtualClock } from '../../src/testing/index.js';

type Serve = () => Promise<Response>;
type Service = (clock: VirtualClock, random: SeededRandom) => Serve;

const refusal = (status: number, seconds: number) =>
  new Response(null, { status, headers: { 'retry-after': String(Math.max(1, Math.ceil(seconds))) } });

/** Refuses what is beyond ten at once; each takes 100 ms. */
const hardLimit =
  (status: number, seconds: number): Service =>
  (clock, random) => {
    let running = 0;
    return async () => {
      if (running >= 10) return refusal(status, seconds);
      running++;
      await clock.sleep(random.exponential(100));
      running--;
      return new Response();
    };
  };

/** A token bucket: 100 a second, 20 at once. */
const bucket: Service = (clock) => {
  let tokens = 20;
  let atMs = clock.now();
  return async () => {
    const nowMs = clock.now();
    tokens = Math.min(20, tokens + (nowMs - atMs) / 10);
    atMs = nowMs;
    if (tokens < 1) return refusal(429, (1 - tokens) / 100);
    tokens--;
    await clock.sleep(20);
    return new Response();
  };
};

/** Refuses a share of all requests: one of several instances, or the requests of some users. */
const share =
  (refused: number, status: number, seconds: number): Service =>
  (clock, random) =>
  async () => {
    if (random.chance(refused)) return refusal(status, seconds);
    await clock.sleep(20);
    return new Response();
  };

/** Refuses all requests from second 5 to second 15, and says until when. */
const maintenance: Service = (clock) => async () => {
  const nowMs = clock.now();
  if (nowMs >= 5_000 && nowMs < 15_000) return refusal(503, (15_000 - nowMs) / 1_000);
  await clock.sleep(20);
  return new Response();
};

/** States a quota of ten a second with each answer, counted on arrival; an answer takes 3 s. */
const slowQuota: Service = (clock) => {
  let windowIndex = 0;
  let used = 0;
  return async () => {
    const nowMs = clock.now();
    if (Math.floor(nowMs / 1_000) !== windowIndex) used = 0;
    windowIndex = Math.floor(nowMs / 1_000);
    const headers = { ratelimit: `"default";r=${Math.max(0, 9 - used)};t=1`, 'ratelimit-policy': '"default";q=10;w=1' };
    if (used === 10) return new Response(null, { status: 429, headers: { ...headers, 'retry-after': '1' } });
    used++;
    await clock.sleep(3_000);
    return new Response(null, { headers });
  };
};

const seed = 20261201;
const seconds = 20;

afterEach(() => vi.restoreAllMocks());

/** Users come at this rate, whatever becomes of the earlier ones. */
async function play(service: Service, perSecond: number, options: CreateFetchOptions = {}) {
  const clock = virtualClock();
  const random = seededRandom(seed);
  vi.spyOn(Math, 'random').mockImplementation(random.fork('client'));
  const serve = service(clock, random.fork('service'));
  let sent = 0;
  let refused = 0;
  const http = createFetch({
    ...options,
    clock,
    fetch: async () => {
      sent++;
      await clock.sleep(1);
      const response = await serve();
      if (response.status !== 200) refused++;
      return response;
    },
  });
  let served = 0;
  const arrivals = random.fork('arrivals');
  const all: Promise<void>[] = [];
  for (let atMs = arrivals.exponential(1_000 / perSecond); atMs < seconds * 1_000; ) {
    await clock.advanceTo(atMs);
    const beganMs = atMs;
    all.push(
      http('http://service.test/').then(
        ({ status }) => {
          if (status === 200 && clock.now() - beganMs <= 10_000) served++;
        },
        () => {},
      ),
    );
    atMs += arrivals.exponential(1_000 / perSecond);
  }
  await clock.runAll();
  await Promise.all(all);
  return { asked: all.length, served, sent, refused };
}

describe(`a service that refuses and says when to come back (seed ${seed})`, () => {
  it.each<[string, Service, number, number, number]>([
    ['beyond a hard limit, with 503, at 1.5 times what it can serve', hardLimit(503, 1), 150, 100, 80],
    ['beyond a hard limit, with 503, at three times what it can serve', hardLimit(503, 1), 300, 100, 85],
    ['beyond a hard limit, with 503 and ten seconds', hardLimit(503, 10), 150, 100, 70],
    ['beyond a hard limit, with 429', hardLimit(429, 1), 150, 100, 80],
    ['by a token bucket, at three times its rate', bucket, 300, 100, 95],
    ['one in twenty, for half a minute', share(0.05, 503, 30), 20, 20, 90],
    ['one in five, the requests of some users, for half a minute', share(0.2, 429, 30), 50, 50, 75],
    ['three in five', share(0.6, 503, 1), 100, 100, 30],
    ['beyond a quota that it states late, below it', slowQuota, 8, 10, 90],
    ['beyond a quota that it states late, at 1.5 times it', slowQuota, 15, 10, 80],
  ])('still serves most of what it can: %s', async (_, service, perSecond, capacity, leastPercent) => {
    const { asked, served } = await play(service, perSecond);
    const possible = Math.min(asked, capacity * seconds);
    expect((100 * served) / possible).toBeGreaterThan(leastPercent);
  });

  it('is left alone until then when it refuses all, and then serves those that have waited', async () => {
    const { asked, served, refused } = await play(maintenance, 200);
    expect(refused).toBeLessThan(20);
    expect(served).toBeGreaterThan(0.7 * asked);
  });

  it.each<[string, CreateFetchOptions]>([
    ['the pacing', {}],
    ['no pacing', { pacing: 'off' }],
  ])('is served again soon, with %s, where its failures asked for an hour', async (_, options) => {
    const failing: Service = (clock) => async () =>
      new Response(null, { status: clock.now() < 10_000 ? 500 : 200, headers: { 'retry-after': '3600' } });
    const { asked, served } = await play(failing, 50, options);
    expect(served).toBeGreaterThan(0.25 * asked);
  });

  it('meets the circuit breaker where pacing is off', async () => {
    const { refused } = await play(maintenance, 200, { pacing: 'off' });
    expect(refused).toBeGreaterThan(20);
    expect(refused).toBeLessThan(200);
  });
});
