import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Pacer } from '../../src/client/pacer.js';
import { quotaOf } from '../../src/client/rate-limit-headers.js';
import { Call } from '../../src/core/call.js';
import { Events } from '../../src/core/events.js';
import {
  bulkhead,
  type Clock,
  deadline,
  type HoldfastEvent,
  isRejected,
  type Permit,
  pipeline,
  RateLimitedError,
  type Timer,
} from '../../src/index.js';
import { retryHintOf } from '../../src/policies/retry/retry-after.js';
import { virtualClock } from '../../src/testing/index.js';
import { threadUs } from '../support/thread-time.js';

interface Answer {
  readonly status: number;
  readonly headers: Record<string, string>;
}

function paced({ maxPauseMs = 60_000, maxWaitMs = 10_000, maxQueue = 1_000, withDeadline = false } = {}) {
  const clock = virtualClock();
  const events: HoldfastEvent[] = [];
  const plan = {
    name: 'http',
    events: new Events('http', (event) => events.push(event)),
    maxPauseMs,
    maxWaitMs,
    maxQueue,
  };
  const pacer = new Pacer(plan, 'http://a.test', clock);
  const around = withDeadline ? pipeline(deadline('2s'), pacer) : pipeline(pacer);
  const startsMs: number[] = [];
  const send = (answer: Answer = { status: 200, headers: {} }, signal?: AbortSignal) =>
    around.attempt(
      () => {
        startsMs.push(clock.now());
        return answer;
      },
      signal === undefined ? undefined : { signal },
    );
  /** As many refusals in a row as stop all requests. Their starts are forgotten. */
  const stop = async (headers: Record<string, string>, status = 429) => {
    for (let refusal = 0; refusal < 5; refusal++) await send({ status, headers });
    startsMs.splice(0);
  };
  /** A request whose answer takes a while. */
  const sendSlowly = (answer: Answer, ms: number) => around.attempt(() => clock.sleep(ms).then(() => answer));
  /** The same, for one whose start counts. */
  const startSlowly = (ms: number, signal?: AbortSignal) =>
    around.attempt(
      () => {
        startsMs.push(clock.now());
        return clock.sleep(ms).then((): Answer => ({ status: 200, headers: {} }));
      },
      signal === undefined ? undefined : { signal },
    );
  /** A permission to start that is not used yet. */
  const admit = () => pacer.admit(new Call(clock, () => {}, undefined)) as Permit;
  return { clock, events, pacer, around, send, stop, sendSlowly, startSlowly, admit, startsMs };
}

const quota = (remaining: number, resetSeconds: number, limit?: number): Answer => ({
  status: 200,
  headers: {
    ratelimit: `"default";r=${remaining};t=${resetSeconds}`,
    ...(limit === undefined ? {} : { 'ratelimit-policy': `"default";q=${limit};w=60` }),
  },
});

describe('Pacer', () => {
  it('delays nothing until a response asks for it', async () => {
    const { clock, send, startsMs } = paced();
    await Promise.all(Array.from({ length: 100 }, () => send()));
    expect(startsMs).toHaveLength(100);
    expect([clock.now(), clock.pendingTimers]).toEqual([startsMs[0], 0]);
  });

  it('starts nothing before a pause is over, then a few at a time, in order', async () => {
    const { clock, startSlowly, stop, startsMs } = paced();
    await stop({ 'retry-after': '1' });
    const beginMs = clock.now();
    const order: number[] = [];
    for (let index = 0; index < 12; index++) void startSlowly(500).then(() => order.push(index));
    await clock.advance(999);
    expect(startsMs).toHaveLength(0);
    await clock.runAll();
    const after = startsMs.map((ms) => ms - beginMs);
    expect(after).toEqual(Array.from({ length: 12 }, (_, index) => 1_000 + 10 * index));
    expect(order).toEqual(Array.from({ length: 12 }, (_, index) => index));
    expect(clock.pendingTimers).toBe(0);
  });

  it('starts another for each that has ended, after a pause', async () => {
    const { clock, startSlowly, stop, startsMs } = paced();
    await stop({ 'retry-after': '1' });
    const controller = new AbortController();
    void startSlowly(500, controller.signal);
    for (let index = 0; index < 4; index++) void startSlowly(13);
    await clock.advance(1_001);
    controller.abort();
    await clock.runAll();
    // The one that its caller left makes room as well as one that is answered.
    expect(startsMs).toEqual([1_000, 1_001, 1_010, 1_014, 1_020]);
  });

  it('does not let a limit inside turn away those that have waited for the end of a pause', async () => {
    const { clock, pacer, stop } = paced();
    const limited = pipeline(pacer, bulkhead({ limit: 2 }));
    await stop({ 'retry-after': '5' });
    const all = Array.from({ length: 40 }, () => limited.attempt(() => clock.sleep(20)));
    await clock.runAll();
    const refused = (await Promise.all(all)).filter(({ ok }) => !ok);
    expect(refused.length).toBeLessThan(10);
  });

  it('spaces what starts right after a pause, though nobody has waited, until one has ended or a tenth of its time has passed', async () => {
    for (const [endsAfterMs, askedMs, startedMs] of [
      [14, [1_001, 1_002, 1_016, 1_016, 1_016], [1_001, 1_010, 1_016, 1_016, 1_016]],
      [5_000, [1_001, 1_002, 1_003, 1_101, 1_101, 1_101], [1_001, 1_010, 1_020, 1_101, 1_101, 1_101]],
    ] as const) {
      const { clock, startSlowly, sendSlowly, stop, startsMs } = paced();
      // How an earlier request ends tells nothing.
      void sendSlowly({ status: 500, headers: {} }, 100);
      await stop({ 'retry-after': '1' });
      for (const atMs of askedMs) {
        await clock.advanceTo(atMs);
        void startSlowly(endsAfterMs);
      }
      await clock.runAll();
      expect(startsMs).toEqual(startedMs);
    }
  });

  it('grants half of a quota without delay, and spreads the rest over the time until the reset', async () => {
    const { clock, send, startsMs } = paced();
    await send(quota(9, 10, 10));
    const beginMs = clock.now();
    for (let index = 0; index < 9; index++) void send();
    await clock.runAll();
    const after = startsMs.slice(1).map((ms) => Math.round(ms - beginMs));
    expect(after.slice(0, 4)).toEqual([0, 0, 0, 0]);
    const gaps = after.slice(4).map((ms, index) => ms - (after[index + 3] ?? 0));
    for (const gap of gaps) expect(gap).toBeGreaterThan(1_000);
    expect(after.at(-1)).toBeLessThan(10_000);
  });

  it('follows the latest statement: a fresh quota frees waiters', async () => {
    const { clock, send, startsMs } = paced();
    await send(quota(1, 8, 100));
    void send(quota(90, 60, 100));
    void send();
    await clock.advance(4_000);
    expect(startsMs).toHaveLength(3);
  });

  it.each([
    ['an hour', { 'retry-after': '3600' }, 5],
    ['24 million years', { 'retry-after': '99999999999999' }, 5],
    ['the year 9999', { 'retry-after': 'Fri, 31 Dec 9999 23:59:59 GMT' }, 5],
    ['a quota used up for ever', { ratelimit: '"x";r=0;t=999999999999999' }, 1],
  ])('is not stopped for longer than maxPause by responses that ask for %s', async (_, headers, answers) => {
    const { clock, send } = paced({ maxPauseMs: 5_000 });
    for (let answer = 0; answer < answers; answer++) await send({ status: 429, headers });
    const running = send();
    await clock.advance(5_000);
    expect(await running).toMatchObject({ ok: true });
    await clock.advance(60_000);
    expect(await send()).toMatchObject({ ok: true });
  });

  it.each([
    ['a date in the past', { 'retry-after': 'Sun, 06 Nov 1994 08:49:37 GMT' }],
    ['a negative number', { 'retry-after': '-5' }],
    ['nonsense', { 'retry-after': 'soon', ratelimit: 'r=;;;"' }],
    ['two dates', { 'retry-after': 'Fri, 31 Dec 9999 23:59:59 GMT, Fri, 31 Dec 9999 23:59:59 GMT' }],
    ['10 MB of digits', { 'retry-after': '9'.repeat(10_000_000), ratelimit: `"a";r=${'9'.repeat(10_000_000)}` }],
  ])('continues after %s', async (_, headers) => {
    const { send, stop } = paced();
    await stop(headers);
    expect(await send()).toMatchObject({ ok: true });
  });

  it('refuses a request at once that would wait longer than maxWait, and says how long', async () => {
    const { send, stop, events } = paced({ maxWaitMs: 500 });
    await stop({ 'retry-after': '2' }, 503);
    const outcome = await send();
    expect(outcome).toMatchObject({ ok: false, error: { retryAfterMs: 2_000, policy: 'http' } });
    expect(!outcome.ok && outcome.error).toBeInstanceOf(RateLimitedError);
    expect(events).toEqual([{ type: 'paced', name: 'http', origin: 'http://a.test', delayMs: 2_000, refused: true }]);
  });

  it('refuses a request at once that would wait past its deadline', async () => {
    const { send, stop } = paced({ withDeadline: true });
    await stop({ 'retry-after': '3' });
    const outcome = await send();
    expect(!outcome.ok && isRejected(outcome.error)).toBe(true);
  });

  it('serves on in a lasting overload: no request waits until its deadline is too near for it to be served', async () => {
    const { clock, around } = paced({ withDeadline: true });
    let served = 0;
    // A minute of twice as many requests as a quota of 20 in 2 s allows; each takes 100 ms.
    let used = 0;
    const answer = async () => {
      const windowEndsMs = Math.ceil((clock.now() + 1) / 2_000) * 2_000;
      const remaining = 20 - ++used;
      const resetSeconds = (windowEndsMs - clock.now()) / 1_000;
      await clock.sleep(remaining < 0 ? 1 : 100);
      return remaining < 0
        ? { status: 429, headers: { 'retry-after-ms': String(windowEndsMs - clock.now()) } }
        : quota(remaining, resetSeconds, 20);
    };
    for (let request = 0; request < 1_200; request++) {
      if (clock.now() % 2_000 === 0) used = 0;
      void around.attempt(answer).then((outcome) => {
        if (outcome.ok && (outcome.value as Answer).status === 200) served++;
      });
      await clock.advance(50);
    }
    await clock.runAll();
    expect(served).toBeGreaterThan(0.9 * 600);
  });

  it('knows how long requests take from ten that were served, not from those that the service refused', async () => {
    const { clock, around, send, sendSlowly } = paced({ withDeadline: true });
    const slowly = async (answer: Answer, ms: number) => {
      const sent = sendSlowly(answer, ms);
      await clock.advance(ms);
      await sent;
    };
    /** Whether a request may wait for a second if its deadline is so much later. */
    const mayLeave = async (leftMs: number) => {
      await send({ ...quota(0, 1), status: 429 });
      const outcome = around.attempt(() => ({ status: 204, headers: {} }), { deadline: clock.now() + 1_000 + leftMs });
      await clock.advance('5s');
      return (await outcome).ok;
    };
    for (let request = 0; request < 9; request++) await slowly({ status: 200, headers: {} }, 500);
    expect(await mayLeave(1)).toBe(true);
    for (let request = 0; request < 20; request++) await slowly({ status: 404, headers: {} }, 1);
    expect(await mayLeave(499)).toBe(false);
    expect(await mayLeave(501)).toBe(true);
  });

  it('refuses a waiter when a later response leaves it too little time', async () => {
    const { clock, around, stop, sendSlowly, startsMs } = paced();
    for (let request = 0; request < 10; request++) {
      const sent = sendSlowly({ status: 200, headers: {} }, 500);
      await clock.advance(500);
      await sent;
    }
    const slow = sendSlowly({ status: 429, headers: { 'retry-after': '2' } }, 100);
    await clock.advance(1);
    await stop({ 'retry-after': '1' });
    const waiting = around.attempt(() => void startsMs.push(clock.now()), { deadline: clock.now() + 2_000 });
    await clock.advance(98);
    expect(startsMs).toEqual([]);
    await clock.advance(1);
    expect(await waiting).toMatchObject({ ok: false, error: { code: 'ERR_RATE_LIMITED', retryAfterMs: 2_000 } });
    await slow;
    expect(clock.pendingTimers).toBe(0);
  });

  it('refuses a request that finds no place to wait', async () => {
    const { clock, send, stop } = paced({ maxQueue: 1 });
    await stop({ 'retry-after': '1' });
    const waiting = send();
    expect(await send()).toMatchObject({ ok: false, error: { code: 'ERR_RATE_LIMITED' } });
    await clock.runAll();
    expect(await waiting).toMatchObject({ ok: true });
  });

  it('refuses a waiter when a later response postpones the start too far', async () => {
    const { clock, send, stop, pacer } = paced({ maxWaitMs: 1_000 });
    const slow = pacer.admit(new Call(clock, () => {}, undefined)) as Permit;
    await stop({ 'retry-after-ms': '900' });
    const waiting = send();
    await clock.advance(100);
    slow.settle({ ok: true, value: { status: 503, headers: { 'retry-after': '5' } } });
    expect(await waiting).toMatchObject({ ok: false, error: { code: 'ERR_RATE_LIMITED', retryAfterMs: 5_000 } });
    expect(clock.pendingTimers).toBe(0);
  });

  it('tells a refused request how long it would wait behind the others', async () => {
    const { clock, send, stop, events } = paced();
    await clock.advance(500);
    await stop({ 'retry-after': '1' });
    for (let count = 0; count < 4; count++) void send();
    expect(events).toMatchObject(
      [1_000, 1_010, 1_020, 1_030].map((delayMs) => ({ type: 'paced', delayMs, refused: false })),
    );
    await clock.runAll();
    const limited = paced({ maxWaitMs: 20_000 });
    await limited.send(quota(1, 10, 100));
    for (let count = 0; count < 2; count++) void limited.send();
    expect(limited.events).toMatchObject([{ delayMs: 5_000 }, { delayMs: 10_000 }]);
    await limited.clock.runAll();
    const both = paced({ maxWaitMs: 20_000 });
    await both.send({
      ...quota(1, 10, 100),
      status: 429,
      headers: { ...quota(1, 10, 100).headers, 'retry-after': '1' },
    });
    for (let count = 0; count < 2; count++) void both.send();
    expect(both.events).toMatchObject([{ delayMs: 5_000 }, { delayMs: 10_000 }]);
    await both.clock.runAll();
  });

  it('delays requests for exactly the allowed time, and none until its very deadline', async () => {
    const { clock, send, stop } = paced({ maxWaitMs: 1_000 });
    await stop({ 'retry-after': '1' });
    const waiting = send();
    await clock.advance(1_000);
    expect(await waiting).toMatchObject({ ok: true });
    const bounded = paced({ withDeadline: true });
    await bounded.stop({ 'retry-after': '2' });
    expect(await bounded.send()).toMatchObject({ ok: false, error: { code: 'ERR_RATE_LIMITED' } });
  });

  it('keeps a waiter when a later response postpones the start within its allowed wait, counted from its arrival', async () => {
    const { clock, send, stop, admit } = paced({ maxWaitMs: 1_000 });
    await clock.advance('1m');
    const slow = admit();
    await stop({ 'retry-after-ms': '900' });
    const waiting = send();
    await clock.advance(100);
    slow.settle({ ok: true, value: { status: 503, headers: { 'retry-after-ms': '900' } } });
    await clock.advance(900);
    expect(await waiting).toMatchObject({ ok: true });
  });

  it('is not stopped by a 403 that only says when the quota is full again', async () => {
    const { send, stop, startsMs } = paced();
    await stop({ 'x-ratelimit-reset': '5' }, 403);
    await send();
    expect(startsMs).toHaveLength(1);
  });

  it('passes on a response whose headers cannot be read, and stays open', async () => {
    const get = () => {
      throw new Error('released');
    };
    for (const status of [200, 403, 429]) {
      const { send, startsMs } = paced();
      const response = { status, headers: { get } };
      expect(await send(response as never)).toEqual({ ok: true, value: response });
      await send();
      expect([status, startsMs.length]).toEqual([status, 2]);
    }
  });

  it('is stopped by a 403, 429 and 503, not by hints of other responses or by anything else', async () => {
    for (const [status, stops] of [
      [200, false],
      [413, false],
      [500, false],
      [403, true],
      [429, true],
      [503, true],
    ] as const) {
      const { clock, send, stop, startsMs } = paced();
      await stop({ 'retry-after': '5' }, status);
      void send();
      expect([status, startsMs.length]).toEqual([status, stops ? 0 : 1]);
      await clock.runAll();
    }
    const { send, startsMs } = paced();
    for (const value of [undefined, null, 'text', 7]) await send(value as never);
    expect(startsMs).toHaveLength(4);
  });

  it('is stopped by five refusals in a row, not by fewer among requests that are served', async () => {
    const { clock, send, startsMs } = paced();
    const refuse = () => send({ status: 503, headers: { 'retry-after': '60' } });
    for (let request = 0; request < 1_000; request++) await (request % 5 === 4 ? send() : refuse());
    expect(startsMs.at(-1)).toBe(0);
    const { clock: other, send: sendOther, startsMs: starts } = paced();
    for (let refusal = 0; refusal < 4; refusal++) await sendOther({ status: 429, headers: { 'retry-after': '60' } });
    // Neither a refusal without a time nor a failure says that requests are served.
    for (const status of [429, 500, 502, 503]) await sendOther({ status, headers: {} });
    await sendOther({ status: 429, headers: { 'retry-after': '5' } });
    void sendOther();
    await other.runAll();
    expect(starts.at(-1)).toBe(5_000);
    expect([clock.pendingTimers, other.pendingTimers]).toEqual([0, 0]);
  });

  it('is stopped by more refusals in a row where the service usually refuses that many between two that it serves', async () => {
    const { clock, send, startsMs } = paced();
    const refuse = async (times: number) => {
      for (let refusal = 0; refusal < times; refusal++) await send({ status: 503, headers: { 'retry-after': '1' } });
    };
    await refuse(4);
    await send();
    await refuse(7);
    await send();
    await refuse(13);
    expect(startsMs.at(-1)).toBe(0);
    await refuse(1);
    const waiting = send();
    await clock.advance('1s');
    await waiting;
    expect(startsMs.at(-1)).toBe(1_000);
    await clock.advance('1s');
    // Long forgotten.
    for (let request = 0; request < 500; request++) await send();
    await refuse(5);
    void send();
    await clock.runAll();
    expect(startsMs.at(-1)).toBe(3_000);
  });

  it('goes on at once when a request is served after all', async () => {
    const { clock, startSlowly, stop, sendSlowly, startsMs } = paced();
    void sendSlowly({ status: 200, headers: {} }, 100);
    await stop({ 'retry-after': '5' });
    void startSlowly(1_000);
    void startSlowly(1_000);
    await clock.advance(151);
    // A few at a time as long as some wait.
    expect(startsMs).toEqual([100, 150]);
    for (let index = 0; index < 3; index++) void startSlowly(1_000);
    expect(startsMs).toEqual([100, 150, 151, 151, 151]);
    await clock.runAll();
  });

  it('waits for a used-up quota even if an earlier request is served after all', async () => {
    const { clock, send, sendSlowly, startsMs } = paced();
    void sendSlowly({ status: 200, headers: {} }, 100);
    await send({ status: 429, headers: { 'retry-after': '5', ...quota(0, 5).headers } });
    void send();
    await clock.runAll();
    expect(startsMs.slice(1)).toEqual([5_000]);
  });

  it.each([
    ['goes on when a later response states that some of the quota is left', 200, 90, [100]],
    ['waits for a used-up quota when no more is left than the requests on their way may use', 200, 1, [5_000]],
    ['is stopped by refusals, whatever quota a later one states', 429, 90, [5_000]],
  ])('%s', async (_, status, remaining, starts) => {
    const { clock, send, stop, sendSlowly, startsMs } = paced();
    void sendSlowly({ status, headers: quota(remaining, 5, 100).headers }, 100);
    void sendSlowly({ status: 500, headers: {} }, 6_000);
    if (status === 429) await stop({ 'retry-after': '5' });
    else await send(quota(0, 5, 100));
    startsMs.splice(0);
    void send();
    await clock.runAll();
    expect(startsMs).toEqual(starts);
  });

  it('is not stopped for less time by a later response that asks for less', async () => {
    const { clock, send, stop, sendSlowly, startsMs } = paced();
    const second = sendSlowly({ status: 429, headers: { 'retry-after': '1' } }, 200);
    await clock.advance(100);
    await stop({ 'retry-after': '5' });
    await clock.advance(100);
    await second;
    void send();
    await clock.runAll();
    expect(startsMs).toEqual([5_100]);
  });

  it('treats a used-up quota as a pause, after which not all requests start at once', async () => {
    const { clock, send, startSlowly, startsMs } = paced();
    await send(quota(0, 5, 10));
    for (let count = 0; count < 3; count++) void startSlowly(500);
    await clock.runAll();
    expect(startsMs.slice(1)).toEqual([5_000, 5_050, 5_100]);
  });

  it.each([
    ['refuses no request that a quota allows, however far off its reset is', 10_000],
    ['delays no request that a quota allows where none may wait', 0],
  ])('%s', async (_, maxWaitMs) => {
    const { clock, send, startsMs } = paced({ maxWaitMs });
    await send(quota(40, 43_200, 1_000));
    const all = Array.from({ length: 41 }, () => send());
    await clock.runAll();
    expect((await Promise.all(all)).map(({ ok }) => ok)).toEqual([...Array(40).fill(true), false]);
    // The first of the requests has stated the quota.
    expect(startsMs[10]).toBeGreaterThanOrEqual(maxWaitMs / 5);
    expect(startsMs[20]).toBeLessThanOrEqual(maxWaitMs);
    expect(startsMs.at(-1)).toBe(maxWaitMs);
  });

  it('refuses no request that would start at the reset of a quota, however many wait for it', async () => {
    const { clock, send, startSlowly, startsMs } = paced();
    await send(quota(0, 5, 10));
    const all = Array.from({ length: 1_000 }, () => startSlowly(100));
    await clock.runAll();
    expect((await Promise.all(all)).every(({ ok }) => ok)).toBe(true);
    expect(startsMs[1]).toBe(5_000);
    expect(startsMs.at(-1)).toBeLessThan(15_000);
  });

  it('refuses no request that would start when a quota expires, however many wait for it', async () => {
    const { clock, send, sendSlowly, startsMs } = paced();
    void sendSlowly(quota(1, 5, 10), 1);
    // The one request that may be left counts as this one, which is on its way.
    void sendSlowly({ status: 200, headers: {} }, 20_000);
    await clock.advance(1);
    const all = Array.from({ length: 100 }, () => send());
    await clock.runAll();
    expect((await Promise.all(all)).every(({ ok }) => ok)).toBe(true);
    expect([startsMs[0], startsMs.at(-1)]).toEqual([5_000, 5_001]);
  });

  it.each<[string, readonly Answer[], number]>([
    ['what was left when it last grew, where no limit is named', [quota(10, 10)], 5],
    ['the same, while less and less is left', [quota(10, 10), quota(8, 10)], 3],
    ['the same, when it has grown again', [quota(10, 10), quota(8, 10), quota(20, 10)], 10],
    ['the same, when as much is left as before', [quota(10, 10), quota(10, 10)], 5],
    ['the limit, where one is named', [quota(10, 10, 16)], 2],
  ])('grants the remainder above half of %s at once', async (_, answers, atOnce) => {
    const { clock, send, startsMs } = paced();
    for (const answer of answers) await send(answer);
    for (let count = 0; count <= atOnce; count++) void send();
    expect(startsMs).toHaveLength(answers.length + atOnce);
    await clock.runAll();
  });

  it('assumes that requests that began later are not yet counted, and returns the share of one that was not made', async () => {
    for (const laterMs of [1_000, 50]) {
      const { clock, send, sendSlowly, admit, startsMs } = paced();
      void sendSlowly({ status: 200, headers: {} }, 1_000);
      void sendSlowly(quota(4, 10, 4), 100);
      void sendSlowly({ status: 200, headers: {} }, laterMs);
      admit().release();
      await clock.advance(100);
      void send();
      void send();
      expect(startsMs).toHaveLength(1);
      await clock.runAll();
    }
    const other = paced();
    // Without a quota there is nothing to give back.
    other.admit().release();
    await other.send(quota(4, 10, 4));
    for (let count = 0; count < 5; count++) {
      for (const permit of [other.admit(), other.admit()]) permit.release();
    }
    for (let count = 0; count < 3; count++) void other.send();
    expect(other.startsMs).toHaveLength(3);
    await other.clock.runAll();
  });

  it.each([
    ['the start of the request that it answers, if the answer took long', 3_000, 5_500],
    ['the answer, if that took less than a tenth of it', 400, 5_400],
  ])('counts the time until a reset from %s', async (_, tookMs, startMs) => {
    const { clock, send, sendSlowly, startsMs } = paced();
    void sendSlowly(quota(0, 5, 10), tookMs);
    await clock.advance(tookMs);
    void send();
    await clock.runAll();
    expect(startsMs).toEqual([startMs]);
  });

  it('ignores what was said about a quota that has been renewed since', async () => {
    const { clock, send, sendSlowly, startsMs } = paced();
    void sendSlowly(quota(0, 1, 10), 1_000);
    await clock.advance(1_000);
    void send();
    expect(startsMs).toEqual([1_000]);
  });

  it('takes a reset that is an instant as it is, however long the answer took', async () => {
    const { clock, send, sendSlowly, startsMs } = paced();
    const reset = Math.ceil(clock.wallNow() / 1_000) + 5;
    const resetMs = reset * 1_000 - clock.wallNow();
    const headers = { 'x-ratelimit-remaining': '0', 'x-ratelimit-reset': String(reset) };
    void sendSlowly({ status: 200, headers }, 3_000);
    await clock.advance(3_000);
    void send();
    await clock.runAll();
    expect(startsMs).toEqual([resetMs]);
  });

  it.each([
    ['prefers what the answer to a later request has said', quota(90, 60, 100), 100, []],
    // One starts, the next is spread.
    ['until that expires', quota(3, 60, 100), 5_000, [5_000]],
  ])('%s', async (_, older, answeredMs, starts) => {
    const { clock, send, sendSlowly, startsMs } = paced();
    void sendSlowly(older, answeredMs);
    await send(quota(1, 5, 100));
    startsMs.splice(0);
    await clock.advance(answeredMs);
    void send();
    void send();
    expect(startsMs).toEqual(starts);
    await clock.runAll();
  });

  it('prefers it also after a stop that is over, and to what would stop requests for longer', async () => {
    const after = paced();
    void after.sendSlowly(quota(90, 60, 100), 5_100);
    await after.send(quota(0, 5, 100));
    await after.clock.advance(5_000);
    await after.send(quota(1, 60, 100));
    await after.clock.advance(100);
    void after.send();
    expect(after.startsMs).toEqual([0, 5_000]);
    await after.clock.runAll();
    const { clock, send, sendSlowly, startsMs } = paced();
    void sendSlowly(quota(0, 60, 100), 100);
    await send(quota(0, 5, 100));
    await clock.advance(100);
    void send();
    await clock.runAll();
    expect(startsMs).toEqual([0, 5_000]);
  });

  it('forgets a quota after maxPause, however far off its reset is', async () => {
    const { clock, send, startsMs } = paced({ maxPauseMs: 5_000 });
    await send(quota(1, 100, 100));
    await clock.advance(4_999);
    void send();
    expect(startsMs).toHaveLength(1);
    await clock.advance(1);
    for (let count = 0; count < 3; count++) void send();
    expect(startsMs).toHaveLength(5);
  });

  it('is idle when nothing runs and nothing waits', async () => {
    const { clock, send, admit, pacer } = paced();
    expect(pacer.isIdle).toBe(true);
    const permit = admit();
    expect(pacer.isIdle).toBe(false);
    permit.settle({ ok: true, value: { status: 429, headers: { 'retry-after': '1' } } });
    expect(pacer.isIdle).toBe(true);
    const waiting = send();
    expect(pacer.isIdle).toBe(false);
    await clock.advance('1s');
    await waiting;
    expect(pacer.isIdle).toBe(true);
    await clock.advance('1s');
    admit().release();
    expect(pacer.isIdle).toBe(true);
  });

  it('drops a waiter that aborts, and its timer', async () => {
    const { clock, send, stop, startsMs, pacer } = paced();
    await stop({ 'retry-after': '1' });
    const controller = new AbortController();
    const first = send(undefined, controller.signal);
    controller.abort('left');
    expect(await first).toEqual({ ok: false, error: 'left' });
    expect([clock.pendingTimers, pacer.isIdle]).toEqual([0, true]);
    await clock.runAll();
    expect(startsMs).toHaveLength(0);
  });
});

describe('quotaOf', () => {
  const now = Date.UTC(2026, 10, 24);
  it.each<[string, Record<string, string>, unknown]>([
    ['the standard', { ratelimit: '"default";r=50;t=30' }, { remaining: 50, resetMs: 30_000, limit: undefined }],
    [
      'the standard with its policy',
      { ratelimit: '"default";r=50;t=30', 'ratelimit-policy': '"burst";q=5;w=1, "default";q=100;w=60' },
      { remaining: 50, resetMs: 30_000, limit: 100 },
    ],
    [
      'the tightest of several',
      { ratelimit: '"day";r=900;t=900, "burst";r=2;t=30' },
      { remaining: 2, resetMs: 30_000, limit: undefined },
    ],
    ['a token for a name', { ratelimit: 'default;r=1;t=2' }, { remaining: 1, resetMs: 2_000, limit: undefined }],
    ['a dictionary', { ratelimit: 'limit=100, remaining=7, reset=5' }, { remaining: 7, resetMs: 5_000, limit: 100 }],
    [
      'single headers',
      { 'RateLimit-Remaining': '3', 'RateLimit-Reset': '9', 'RateLimit-Limit': '10, 10;w=60' },
      { remaining: 3, resetMs: 9_000, limit: 10 },
    ],
    [
      'X- headers with an instant',
      { 'x-ratelimit-remaining': '3', 'x-ratelimit-reset': String(now / 1_000 + 9) },
      { remaining: 3, resetMs: 9_000, limit: undefined, isInstant: true },
    ],
    [
      'X- headers in the spelling with another dash',
      { 'x-rate-limit-limit': '15', 'x-rate-limit-remaining': '3', 'x-rate-limit-reset': String(now / 1_000 + 9) },
      { remaining: 3, resetMs: 9_000, limit: 15, isInstant: true },
    ],
    [
      'an instant by the clock of its sender',
      {
        'x-ratelimit-remaining': '3',
        'x-ratelimit-reset': String(now / 1_000 + 309),
        date: new Date(now + 300_000).toUTCString(),
      },
      { remaining: 3, resetMs: 9_000, limit: undefined, isInstant: true },
    ],
    [
      'an instant in the past',
      { 'x-ratelimit-remaining': '3', 'x-ratelimit-reset': '1704067201' },
      { remaining: 3, resetMs: 0, limit: undefined, isInstant: true },
    ],
    [
      'the tightest, whichever comes first, past one that says nothing',
      { ratelimit: '"none", "burst";r=2;t=30, "day";r=900;t=900, "other"' },
      { remaining: 2, resetMs: 30_000, limit: undefined },
    ],
    [
      'single headers with fractions and more behind them',
      { 'ratelimit-remaining': ' 3.25 , 5', 'ratelimit-reset': '9.5;w=60', 'ratelimit-limit': 'many' },
      { remaining: 3, resetMs: 9_000, limit: undefined },
    ],
    [
      'an instant in milliseconds',
      { 'x-ratelimit-remaining': '3', 'x-ratelimit-reset': String(now + 9_000) },
      { remaining: 3, resetMs: 9_000, limit: undefined, isInstant: true },
    ],
    [
      'a dictionary without a limit',
      { ratelimit: 'remaining=7, reset=5' },
      { remaining: 7, resetMs: 5_000, limit: undefined },
    ],
    [
      'the first instant that is one, in seconds',
      { 'x-ratelimit-remaining': '3', 'x-ratelimit-reset': '1704067200' },
      { remaining: 3, resetMs: 0, limit: undefined, isInstant: true },
    ],
    [
      'and in milliseconds',
      { 'x-ratelimit-remaining': '3', 'x-ratelimit-reset': '1704067200000' },
      { remaining: 3, resetMs: 0, limit: undefined, isInstant: true },
    ],
    [
      'the first of two that bind alike',
      { ratelimit: '"second";r=1;t=1, "minute";r=60;t=60' },
      { remaining: 1, resetMs: 1_000, limit: undefined },
    ],
    ['a dictionary without a reset', { ratelimit: 'limit=100, remaining=7' }, undefined],
    ['a reset without a remainder', { 'ratelimit-reset': '3' }, undefined],
    ['no number but something like one', { 'ratelimit-remaining': 'x3', 'ratelimit-reset': '9' }, undefined],
    ['a number with a unit', { 'ratelimit-remaining': '3', 'ratelimit-reset': '9s' }, undefined],
    ['nothing', {}, undefined],
    ['a remainder without a reset', { 'ratelimit-remaining': '3' }, undefined],
    ['a negative remainder', { ratelimit: '"a";r=-1;t=5' }, undefined],
    ['a text for a number', { ratelimit: '"a";r="1";t=5' }, undefined],
    ['a field that ends early', { ratelimit: '"a";r=1;t' }, undefined],
  ])('reads %s', (_, headers, quota) => {
    expect(quotaOf(headers, now)).toEqual(quota);
  });
});

/** A clock that is set by hand. */
class HandClock implements Clock {
  nowMs = 0;
  readonly timers = new Set<Timer>();

  now(): number {
    return this.nowMs;
  }

  wallNow(): number {
    return Date.UTC(2026, 10, 24) + this.nowMs;
  }

  schedule(timer: Timer): void {
    this.timers.add(timer);
  }

  cancel(timer: Timer): void {
    this.timers.delete(timer);
  }
}

const fuzzRuns = Number(process.env.HOLDFAST_FUZZ_RUNS ?? 100_000);

/** Pieces of real headers, so that the random headers resemble them. */
const piece = fc.constantFrom(
  ...[
    '0',
    '1',
    '9',
    '-',
    '+',
    '.',
    ',',
    ';',
    '=',
    '"',
    ' ',
    'r',
    't',
    'q',
    'w',
    'e',
    '(',
    ')',
    ':',
    '?',
    '@',
    '%',
    '*',
  ],
  ...[
    ';r=',
    ';t=',
    '"default"',
    'remaining=',
    'reset=',
    'limit=',
    'GMT',
    'Sun, 06 Nov 1994 08:49:37 GMT',
    '1704067200',
  ],
  ...['99999999999999999999', '\u0000', '\t', '\u00e9', 'Sunday, 06-Nov-94 08:49:37 GMT', 'Infinity', 'NaN', '0x1f'],
);
const names = [
  'retry-after',
  'retry-after-ms',
  'ratelimit',
  'ratelimit-policy',
  'ratelimit-remaining',
  'ratelimit-reset',
];
const moreNames = ['ratelimit-limit', 'x-ratelimit-remaining', 'x-ratelimit-reset', 'grpc-retry-pushback-ms'];
const text = fc.oneof(
  fc.array(piece, { maxLength: 12 }).map((pieces) => pieces.join('')),
  fc.string({ maxLength: 40 }),
);
const value = fc.oneof({ weight: 9, arbitrary: text }, { weight: 1, arbitrary: fc.array(text, { maxLength: 3 }) });
const hostile = fc.dictionary(fc.constantFrom(...names, ...moreNames), value, { maxKeys: 4 });

describe('hostile headers', () => {
  it(`never throw, never stop a request for longer than maxPause, never leave a timer (${fuzzRuns} inputs)`, async () => {
    const inputs = fc.sample(hostile, { numRuns: fuzzRuns, seed: 20_261_124 });
    const clock = new HandClock();
    const plan = {
      name: 'http',
      events: new Events('http', undefined),
      maxPauseMs: 1_000,
      maxWaitMs: 1_100,
      maxQueue: 9,
    };
    const pacer = new Pacer(plan, 'http://a.test', clock);
    for (const [index, headers] of inputs.entries()) {
      const outcome = { ok: true as const, value: { status: index % 2 === 0 ? 429 : 200, headers } };
      const hint = retryHintOf(outcome, clock.wallNow());
      if (hint !== undefined && hint !== 'never' && !(hint >= 0))
        throw new Error(`${JSON.stringify(headers)}: ${hint}`);
      const quota = quotaOf(headers, clock.wallNow());
      if (quota !== undefined && !(quota.remaining >= 0 && quota.resetMs >= 0 && (quota.limit ?? 0) >= 0))
        throw new Error(`${JSON.stringify(headers)}: ${JSON.stringify(quota)}`);
      const answer = pacer.admit(new Call(clock, () => {}, undefined));
      // Whatever the previous answer has said, the longest pause is over.
      if (!('settle' in answer)) throw new Error(`stopped by ${JSON.stringify(inputs[index - 1])}`);
      answer.settle(outcome);
      clock.nowMs += 1_200;
    }
    expect(clock.timers.size).toBe(0);
  }, 600_000);

  it('are read in time that does not grow with their length beyond the part that is read', () => {
    const timeOf = (length: number) => {
      const filler = ['9', ';r=1', '"', '(', ',', ' ', 'a='].map((part) => part.repeat(length / part.length));
      // V8 assembles a repeated text when it is first read.
      for (const long of filler) long.charCodeAt(length - 1);
      const startedUs = threadUs();
      for (let round = 0; round < 20; round++) {
        for (const long of filler) quotaOf({ ratelimit: long, 'ratelimit-policy': long }, 0);
        for (const long of filler) retryHintOf({ ok: true, value: { headers: { 'retry-after': long } } }, 0);
      }
      return (threadUs() - startedUs) / 1_000;
    };
    timeOf(2_000);
    expect(timeOf(10_000_000)).toBeLessThan(20 * timeOf(2_000) + 100);
  });
});
