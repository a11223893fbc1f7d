/** What prom-client is told, in a separate registry for each test. */
import { channel } from 'node:diagnostics_channel';
import { setImmediate } from 'node:timers/promises';
import * as client from 'prom-client';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { callObserver } from '../../src/core/ambient.js';
import {
  adaptiveLimit,
  bulkhead,
  circuitBreaker,
  constant,
  deadline,
  fallback,
  type HoldfastEvent,
  keyed,
  memoryStore,
  mutex,
  pipeline,
  rateLimit,
  retry,
  retryBudget,
  singleFlight,
  standard,
  timeout,
} from '../../src/index.js';
import { type Instrumentation, instrument } from '../../src/integrations/prometheus.js';
import { virtualClock } from '../../src/testing/index.js';

let registry = new client.Registry();
let telemetry: Instrumentation | undefined;

function begin(options: Partial<Parameters<typeof instrument<client.Registry>>[0]> = {}): Instrumentation {
  registry = new client.Registry();
  telemetry = instrument({ client, registry, ...options });
  return telemetry;
}

afterEach(() => telemetry?.stop());

/** The samples of a metric: the labels in their order, and the value. */
async function samples(name: string): Promise<Record<string, number>> {
  const lines = (await registry.metrics()).split('\n');
  const found = lines.flatMap((line) => {
    const match = /^(\w+)(?:\{(.*)\})? (\S+)$/.exec(line);
    return match !== null && match[1] === name ? [[match[2] ?? '', Number(match[3])] as const] : [];
  });
  return Object.fromEntries(found);
}

const by = <const Type>(type: Type) => ({ type, name: 'payments' });
const lock = <const Type extends string>(what: Type) => ({ ...by(`lock-${what}` as const), key: 'stock' });
const key = {
  ...by('idempotency'),
  ...{ operation: 'POST /orders', keyHash: 'hash', attempt: 1, trace: undefined, error: undefined },
  ...{ durationMs: undefined, ageMs: undefined },
};
const failed = { error: new Error('down') };
const down = () => Promise.reject(new Error('connection refused: secret-host'));

describe('instrument of holdfast/prometheus', () => {
  it('contains and reports an exception of prom-client', async () => {
    class Histogram {
      observe() {
        throw new Error('too many labels');
      }
    }
    const warn = vi.spyOn(process, 'emitWarning').mockImplementation(() => {});
    begin({ client: { ...client, Histogram } });
    const outcome = await pipeline(timeout('1m')).attempt(() => 1);
    const clock = virtualClock();
    const late = pipeline(timeout({ after: '1s', clock })).attempt(() => new Promise(() => {}));
    await clock.advance('1s');
    await setImmediate();
    expect([outcome, await late]).toMatchObject([
      { ok: true, value: 1 },
      { ok: false, error: { code: 'ERR_TIMEOUT' } },
    ]);
    expect(warn.mock.calls.map(([text]) => text)).toEqual([expect.stringContaining('too many labels')]);
    warn.mockRestore();
  });

  it('measures calls and attempts in seconds of the pipeline’s clock, by how they ended', async () => {
    begin({ buckets: [0.5, 2] });
    const clock = virtualClock();
    const payments = pipeline(
      deadline({ after: '10s', clock }),
      retry({ name: 'payments', attempts: 2, backoff: constant('1s'), clock }),
      timeout({ after: '3s', clock }),
    );
    let attempt = 0;
    const served = payments.execute(() => (++attempt === 1 ? down() : clock.sleep('250ms')));
    const late = payments.attempt(() => new Promise(() => {}));
    await clock.runAll();
    await served;
    expect(await late).toMatchObject({ error: { code: 'ERR_TIMEOUT' } });
    expect(await samples('holdfast_call_duration_seconds_sum')).toEqual({
      'pipeline="payments",outcome="ok"': 1.25,
      'pipeline="payments",outcome="abandoned"': 7,
    });
    expect(await samples('holdfast_attempt_duration_seconds_count')).toEqual({
      'pipeline="payments",outcome="ok"': 1,
      'pipeline="payments",outcome="failed"': 1,
      'pipeline="payments",outcome="abandoned"': 2,
    });
    expect(await samples('holdfast_attempt_duration_seconds_bucket')).toMatchObject({
      'le="0.5",pipeline="payments",outcome="ok"': 1,
      'le="2",pipeline="payments",outcome="abandoned"': 0,
    });
  });

  it('keeps nothing that it is told to watch after its end', () => {
    const { watch, stop } = begin();
    stop();
    const one = bulkhead({ limit: 1 });
    for (let count = 0; count <= 1_000; count++) watch(one)();
    for (let count = 0; count <= 1_000; count++) watch(one);
    expect(() => watch({})).toThrow('watch: the argument must be');
  });

  it('counts what the policies tell, refusals by their reason', async () => {
    begin();
    const breaker = circuitBreaker({ name: 'ledger', window: { consecutive: 2 } });
    const calls = pipeline(
      fallback(() => 'instead', { name: 'cached' }),
      retry({ attempts: 3, backoff: constant(0) }),
      breaker,
    );
    await calls.execute(down);
    await pipeline(rateLimit({ name: 'quota', limit: 1, period: '1h' })).attempt(() => 1);
    await pipeline(timeout({ name: 'quick', after: 1 })).attempt(() => new Promise(() => {}));
    expect(await samples('holdfast_retries_total')).toEqual({ 'policy="retry"': 2 });
    expect(await samples('holdfast_fallbacks_total')).toEqual({ 'policy="cached"': 1 });
    expect(await samples('holdfast_circuit_transitions_total')).toEqual({ 'policy="ledger",state="open"': 1 });
    expect(await samples('holdfast_timeouts_total')).toEqual({ 'policy="quick",reason="attempt"': 1 });
    // There is no retry here, because it might wait until the breaker admits a probe.
    await pipeline(
      fallback(() => 'instead', { name: 'cached' }),
      breaker,
    ).execute(down);
    expect(await samples('holdfast_rejections_total')).toMatchObject({
      'policy="ledger",reason="circuit-open"': expect.any(Number),
    });
    expect(await samples('holdfast_call_duration_seconds_count')).toMatchObject({
      'pipeline="cached",outcome="ok"': 2,
      'pipeline="quick",outcome="abandoned"': 1,
    });
  });

  it.each<[HoldfastEvent, string, string]>([
    [{ ...by('retry'), attempt: 1, delayMs: 5, ...failed, outcome: { ok: true, value: 1 } }, 'retries', ''],
    [{ ...by('retry-succeeded'), attempts: 2 }, 'retries_succeeded', ''],
    [{ ...by('retry-stopped'), attempts: 2, stoppedBy: 'budget', ...failed }, 'retries_stopped', ',reason="budget"'],
    [{ ...by('timeout'), afterMs: 5 }, 'timeouts', ',reason="attempt"'],
    [{ ...by('deadline-exceeded'), afterMs: 5 }, 'timeouts', ',reason="call"'],
    [{ ...by('deadline-too-short'), remainingMs: 0 }, 'rejections', ',reason="deadline-too-short"'],
    [{ ...by('fallback'), ...failed }, 'fallbacks', ''],
    [{ ...by('bulkhead-full'), reason: 'waited', running: 1, waiting: 2 }, 'rejections', ',reason="bulkhead-waited"'],
    [{ ...by('rate-limited'), retryAfterMs: 5 }, 'rejections', ',reason="rate-limited"'],
    [{ ...by('throttled'), probability: 0.5 }, 'rejections', ',reason="throttled"'],
    [{ ...by('shed'), priority: 'low', eventLoopDelayMs: 5, utilization: 1 }, 'rejections', ',reason="shed"'],
    [{ ...by('hedge'), copy: 1, because: 'slow', afterMs: 5 }, 'hedges', ',reason="slow"'],
    [{ ...by('hedge-won'), copy: 1, afterMs: 5 }, 'hedges_won', ''],
    [{ ...by('hedge-skipped'), reason: 'budget' }, 'hedges_skipped', ',reason="budget"'],
    [{ ...by('hedge-failed'), copies: 1, errors: [] }, 'hedges_failed', ''],
    [{ ...by('flight-shared'), key: 'tenant', waiting: 1 }, 'flights_shared', ''],
    [{ ...by('paced'), origin: 'o', delayMs: 5, refused: false }, 'paced', ''],
    [{ ...by('paced'), origin: 'o', delayMs: 5, refused: true }, 'rejections', ',reason="paced"'],
    [{ ...by('reconnected'), origin: 'o', ...failed }, 'reconnects', ''],
    [
      { ...by('circuit-changed'), from: 'closed', to: 'open', generation: 1, openForMs: 5, detail: 'x' },
      'circuit_transitions',
      ',state="open"',
    ],
    [
      { ...by('circuit-refused'), state: 'open', retryAfterMs: 5, shadow: false },
      'rejections',
      ',reason="circuit-open"',
    ],
    [{ ...by('circuit-kept-closed'), detail: 'x' }, 'circuit_kept_closed', ''],
    [{ ...by('circuit-not-restored'), snapshot: 1 }, 'circuit_not_restored', ''],
    [{ ...by('hook-failed'), hook: 'on', ...failed }, 'hook_failures', ',reason="on"'],
  ])('counts %o', async (event, metric, labels) => {
    begin();
    channel('holdfast').publish(event);
    expect(await samples(`holdfast_${metric}_total`)).toEqual({ [`policy="payments"${labels}`]: 1 });
  });

  it.each<[HoldfastEvent, string, string, number]>([
    [
      { ...key, outcome: 'replayed', durationMs: 250, ageMs: 90_000 },
      'idempotency_duration',
      ',outcome="replayed"',
      0.25,
    ],
    [{ ...key, outcome: 'replayed', durationMs: 250, ageMs: 90_000 }, 'idempotency_replay_age', '', 90],
    [{ ...lock('acquired'), fence: 1, waitedMs: 500 }, 'locks_wait', ',outcome="acquired"', 0.5],
    [
      { ...lock('unavailable'), reason: 'waited', waitedMs: 500, error: undefined },
      'locks_wait',
      ',outcome="unavailable-waited"',
      0.5,
    ],
    [{ ...lock('released'), fence: 1, heldMs: 750, result: 'released' }, 'locks_held', '', 0.75],
    [
      { ...by('cache-load'), key: 'k', durationMs: 125, isBackground: false, outcome: { ok: true, value: undefined } },
      'cache_load_duration',
      ',outcome="success"',
      0.125,
    ],
  ])('measures %o', async (event, metric, labels, seconds) => {
    begin();
    channel('holdfast').publish(event);
    expect(await samples(`holdfast_${metric}_seconds_sum`)).toEqual({ [`policy="payments"${labels}`]: seconds });
  });

  it('measures no time where an event has none, and ages of replays up to a week', async () => {
    begin();
    channel('holdfast').publish({ ...key, outcome: 'sealed' });
    channel('holdfast').publish({ ...key, outcome: 'replayed', ageMs: 2 * 86_400_000 });
    expect(await samples('holdfast_idempotency_operations_total')).toMatchObject({
      'policy="payments",outcome="sealed"': 1,
    });
    expect(await samples('holdfast_idempotency_duration_seconds_count')).toEqual({});
    expect(await samples('holdfast_idempotency_replay_age_seconds_bucket')).toMatchObject({
      'le="86400",policy="payments"': 0,
      'le="604800",policy="payments"': 1,
    });
  });

  it('counts nothing where a shadow would have refused', async () => {
    begin();
    channel('holdfast').publish({ ...by('circuit-refused'), state: 'open', retryAfterMs: 5, shadow: true });
    expect(await samples('holdfast_rejections_total')).toEqual({});
  });

  it('tells an abort by the caller from a failure', async () => {
    begin();
    const calls = pipeline(timeout({ name: 'aborts', after: '1m' }));
    const controller = new AbortController();
    const ended = calls.attempt(() => new Promise(() => {}), { signal: controller.signal });
    controller.abort();
    await ended;
    const aborted = { 'pipeline="aborts",outcome="aborted"': 1 };
    expect(await samples('holdfast_call_duration_seconds_count')).toEqual(aborted);
    expect(await samples('holdfast_attempt_duration_seconds_count')).toEqual(aborted);
  });

  it('makes no label of a key, of an error or of an origin', async () => {
    begin().watch(keyed(() => circuitBreaker({ name: 'hosts' })));
    const calls = pipeline(
      keyed(() => circuitBreaker({ name: 'hosts', window: { consecutive: 1 } })),
      singleFlight({ key: ({ key }) => `flight of ${key}` }),
    );
    await Promise.all(['tenant-a', 'tenant-a', 'tenant-b'].map((key) => calls.attempt(down, { key })));
    const paced = { type: 'paced', name: 'fetch', origin: 'https://tenant-c.example', delayMs: 5, refused: true };
    channel('holdfast').publish(paced);
    const text = await registry.metrics();
    expect(text).toContain('holdfast_flights_shared_total{policy="singleFlight"} 1');
    expect(text).toContain('holdfast_rejections_total{policy="fetch",reason="paced"} 1');
    expect(text).not.toMatch(/tenant|secret|refused:/);
  });

  it('counts names beyond maxNames as "other"', async () => {
    begin({ maxNames: 2 });
    for (const name of ['a', 'b', 'c', 'd', 'a']) await pipeline(timeout({ name, after: '1s' })).execute(() => 1);
    expect(await samples('holdfast_call_duration_seconds_count')).toEqual({
      'pipeline="a",outcome="ok"': 2,
      'pipeline="b",outcome="ok"': 1,
      'pipeline="other",outcome="ok"': 2,
    });
  });

  it('shows the states that it is given to watch, and sums up those of one name', async () => {
    const { watch } = begin();
    const open = circuitBreaker({ name: 'ledger' });
    open.isolate();
    const slots = bulkhead({ name: 'slots', limit: 1, queue: 5 });
    const stopWatching = watch(pipeline(open, slots));
    watch(circuitBreaker({ name: 'ledger' }));
    watch(adaptiveLimit({ name: 'limit', initial: 40 }));
    watch(retryBudget({ initial: 7 }), 'payments');
    watch(standard({ name: 'preset' }));
    const permit = slots.admit();
    expect(await samples('holdfast_circuits')).toEqual({
      'policy="ledger",state="closed"': 1,
      'policy="ledger",state="open"': 0,
      'policy="ledger",state="half-open"': 0,
      'policy="ledger",state="ramping"': 0,
      'policy="ledger",state="isolated"': 1,
      'policy="ledger",state="forced-closed"': 0,
    });
    expect(await samples('holdfast_running')).toEqual({ 'policy="slots"': 1, 'policy="limit"': 0 });
    expect(await samples('holdfast_limit')).toEqual({ 'policy="limit"': 40 });
    expect(await samples('holdfast_retry_budget_balance')).toEqual({ 'policy="payments"': 7 });
    expect(await samples('holdfast_keys')).toEqual({ 'policy="preset"': 0 });
    (permit as { release(): void }).release();
    stopWatching();
    expect(await samples('holdfast_running')).toEqual({ 'policy="limit"': 0 });
  });

  it('refuses to watch what has no state, and more than 1,000 things', () => {
    const { watch } = begin();
    expect(() => watch(pipeline(timeout('1s')))).toThrow(
      /watch: the argument must be a policy with a state \(a circuit breaker,/,
    );
    // Some objects have a size or a state without being policies.
    for (const thing of [null, memoryStore(), new Map(), { state: 'open' }, mutex({})] as never[]) {
      expect(() => watch(thing)).toThrow(/must be a policy with a state/);
    }
    for (let count = 0; count < 1_000; count++) watch(circuitBreaker());
    expect(() => watch(circuitBreaker())).toThrow(/1000 things are watched already/);
  });

  it('leaves nothing behind when it is stopped, and can begin anew', async () => {
    begin().watch(circuitBreaker());
    expect(channel('holdfast').hasSubscribers).toBe(true);
    telemetry?.stop();
    expect(channel('holdfast').hasSubscribers).toBe(false);
    expect(callObserver()).toBeUndefined();
    expect((await registry.metrics()).trim()).toBe('');
    telemetry = instrument({ client, registry });
    await pipeline().execute(() => 1);
    expect(await samples('holdfast_call_duration_seconds_count')).toEqual({ 'pipeline="pipeline",outcome="ok"': 1 });
  });

  it('leaves the metrics of a later one in a registry that was cleared meanwhile', async () => {
    const first = begin();
    registry.clear();
    const second = instrument({ client, registry });
    const before = (await registry.getMetricsAsArray()).length;
    first.stop();
    expect((await registry.getMetricsAsArray()).length).toBe(before);
    second.stop();
  });

  it('says that a registry is instrumented already, and takes back what it registered of the second time', async () => {
    begin();
    registry.removeSingleMetric('holdfast_call_duration_seconds');
    const before = (await registry.getMetricsAsArray()).length;
    expect(() => instrument({ client, registry })).toThrow(/already been registered/);
    expect((await registry.getMetricsAsArray()).length).toBe(before);
  });

  it.each([
    [{}, /option "client" is required/],
    [{ client: {} }, /option "client" must be prom-client/],
    [{ client, registry: {} }, /option "registry" must be a registry of prom-client/],
    [{ client, buckets: [1, 1] }, /option "buckets" must be an array of ascending numbers/],
    [{ client, maxNames: 0 }, /option "maxNames" must be an integer from 1 to 10000/],
    [{ client, register: registry }, /unknown option "register", did you mean "registry"/],
  ])('refuses options that are wrong: %#', (options, message) => {
    expect(() => instrument(options as never)).toThrow(message);
  });
});
