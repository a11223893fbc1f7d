/** What holdfast/opentelemetry promises, with either generation of the SDK. */
import { channel } from 'node:diagnostics_channel';
import { setImmediate } from 'node:timers/promises';
import { afterAll, afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { callObserver } from '../../../src/core/ambient.js';
import {
  circuitBreaker,
  constant,
  deadline,
  hedge,
  memoryStore,
  pipeline,
  retry,
  timeout,
} from '../../../src/index.js';
import { instrument, type OpenTelemetryApi } from '../../../src/integrations/opentelemetry.js';
import { metrics } from '../../../src/integrations/telemetry.js';
import { idempotency } from '../../../src/server/web.js';
import { virtualClock } from '../../../src/testing/index.js';

/** A span that has ended, as both generations show it. */
export interface EndedSpan {
  readonly name: string;
  readonly attributes: Readonly<Record<string, unknown>>;
  readonly status: { readonly code: number };
  readonly links: readonly { readonly context: { readonly traceId: string; readonly spanId: string } }[];
  readonly parentSpanContext?: { readonly spanId: string } | undefined;
  readonly instrumentationScope: { readonly name: string; readonly version?: string | undefined };
  spanContext(): { readonly spanId: string; readonly traceId: string };
}

/** A metric that was read. */
export interface ReadMetric {
  readonly descriptor: { readonly name: string; readonly unit: string; readonly description: string };
  readonly dataPoints: readonly { readonly attributes: Readonly<Record<string, unknown>>; readonly value: unknown }[];
}

/** An SDK that has been started together with its context manager. */
export interface Sdk<Context> {
  readonly api: OpenTelemetryApi<Context>;
  /** The spans that have ended since this was last asked. */
  spans(): readonly EndedSpan[];
  metrics(): Promise<readonly ReadMetric[]>;
  /** Traces something as an instrumentation of HTTP would, in the context that is active. */
  trace(name: string): void;
  stop(): Promise<void>;
}

const down = () => Promise.reject(new TypeError('refused by secret-host'));

export function promises<Context>(name: string, start: () => Sdk<Context>): void {
  describe(`instrument of holdfast/opentelemetry, ${name}`, () => {
    const sdk = start();
    let telemetry: ReturnType<typeof instrument>;
    beforeEach(() => {
      telemetry = instrument({ api: sdk.api });
      sdk.spans();
    });
    afterEach(() => telemetry.stop());
    afterAll(() => sdk.stop());

    const flat = (spans: readonly EndedSpan[]) => spans.map(({ name, attributes }) => ({ name, ...attributes }));

    it('begins nothing when the meter fails', async () => {
      telemetry.stop();
      let gauges = 0;
      const callbacks = new Set<unknown>();
      const meter = {
        createCounter: () => ({ add() {} }),
        createHistogram: () => ({ record() {} }),
        createObservableGauge() {
          if (++gauges > 2) throw new Error('too many gauges');
          return {
            addCallback: (read: unknown) => void callbacks.add(read),
            removeCallback: (read: unknown) => void callbacks.delete(read),
          };
        },
      };
      expect(() => instrument({ api: sdk.api, meter })).toThrow('too many gauges');
      expect(() => instrument({ api: sdk.api, meter: { ...meter, createHistogram: undefined } as never })).toThrow(
        'option "meter" must be a meter of OpenTelemetry',
      );
      await pipeline(timeout('1m')).execute(() => 1);
      expect(sdk.spans()).toEqual([]);
      expect(callbacks).toEqual(new Set());
    });

    it('makes a span for the call and one in it for each attempt, across waits', async () => {
      const clock = virtualClock();
      const payments = pipeline(
        deadline({ after: '10s', clock }),
        retry({ name: 'payments', attempts: 3, backoff: constant('1s'), clock }),
      );
      const others = pipeline(timeout({ name: 'others', after: '500ms', clock }));
      let attempt = 0;
      // The timer of the wait is armed in the context of another call.
      const other = others.attempt(() => new Promise(() => {}));
      const served = payments.execute(async () => {
        sdk.trace('request');
        if (++attempt < 3) await down();
        return 'paid';
      });
      await clock.runAll();
      expect(await served).toBe('paid');
      await other;
      const all = sdk.spans();
      const spans = all.filter((span) => !span.name.startsWith('others'));
      const call = spans.find((span) => span.name === 'payments')!;
      const attempts = spans.filter((span) => span.name === 'payments attempt');
      const requests = spans.filter((span) => span.name === 'request');
      expect(call.attributes).toEqual({
        'holdfast.pipeline': 'payments',
        'holdfast.attempts': 3,
        'holdfast.outcome': 'ok',
      });
      expect(call.status.code).toBe(0);
      expect(flat(attempts)).toEqual(
        [
          { 'holdfast.attempt': 1, 'holdfast.outcome': 'failed', 'error.type': 'TypeError' },
          {
            ...{ 'holdfast.attempt': 2, 'http.request.resend_count': 1 },
            ...{ 'holdfast.outcome': 'failed', 'error.type': 'TypeError' },
          },
          { 'holdfast.attempt': 3, 'http.request.resend_count': 2, 'holdfast.outcome': 'ok' },
        ].map((attributes) => ({ name: 'payments attempt', 'holdfast.pipeline': 'payments', ...attributes })),
      );
      expect(attempts.map((span) => span.status.code)).toEqual([2, 2, 0]);
      const idOf = (span: EndedSpan) => span.spanContext().spanId;
      expect(attempts.map((span) => span.parentSpanContext?.spanId)).toEqual(attempts.map(() => idOf(call)));
      expect(requests.map((span) => span.parentSpanContext?.spanId)).toEqual(attempts.map(idOf));
      expect(new Set(spans.map((span) => span.spanContext().traceId)).size).toBe(1);
      expect(call.instrumentationScope).toMatchObject({ name: 'holdfast', version: '1' });
      expect(flat(all.filter((span) => span.name === 'others attempt'))).toMatchObject([
        { 'holdfast.outcome': 'abandoned', 'error.type': 'ERR_TIMEOUT' },
      ]);
    });

    it('makes no span of an attempt that a policy refuses, and says who did', async () => {
      const breaker = circuitBreaker({ name: 'ledger' });
      breaker.isolate();
      await pipeline(breaker).attempt(() => 'never');
      expect(flat(sdk.spans())).toEqual([
        {
          ...{ name: 'ledger', 'holdfast.pipeline': 'ledger', 'holdfast.attempts': 0 },
          ...{ 'holdfast.outcome': 'rejected', 'error.type': 'ERR_CIRCUIT_OPEN' },
        },
      ]);
    });

    it('counts the copies of a hedge as attempts, and ends the span of the one that lost', async () => {
      const clock = virtualClock();
      const calls = pipeline(hedge({ name: 'hedged', delay: 100, max: 1, clock }));
      let copies = 0;
      const won = calls.execute(() => (++copies === 1 ? new Promise<string>(() => {}) : 'copy'));
      await clock.advance('1s');
      expect(await won).toBe('copy');
      const ended = sdk.spans();
      const call = ended.find((span) => span.name === 'hedged');
      const parents = ended.filter((span) => span !== call).map((span) => span.parentSpanContext?.spanId);
      expect(parents).toEqual([call?.spanContext().spanId, call?.spanContext().spanId]);
      const spans = flat(ended);
      expect(spans.find((span) => span.name === 'hedged')).toMatchObject({ 'holdfast.attempts': 2 });
      const attempts = spans.filter((span) => span.name === 'hedged attempt');
      expect(attempts).toHaveLength(2);
      expect(attempts).toContainEqual(
        expect.objectContaining({ 'holdfast.attempt': 2, 'http.request.resend_count': 1 }),
      );
    });

    it('says on the active span what became of an idempotency key, and links a replay to the trace that ran', async () => {
      const once = idempotency({ store: memoryStore(), scope: () => 'all' });
      const handler = once(async () => new Response('paid'));
      const calls = pipeline(timeout({ name: 'request', after: '1m', clock: virtualClock() }));
      const ask = (traceparent: string) => {
        const headers = { 'idempotency-key': 'secret-key', traceparent };
        return calls.execute(() => handler(new Request('http://shop.example/', { method: 'POST', headers })));
      };
      const first = { traceId: '0af7651916cd43dd8448eb211c80319c', spanId: 'b7ad6b7169203331' };
      await ask(`00-${first.traceId}-${first.spanId}-01`);
      await ask('00-11111111111111111111111111111111-2222222222222222-01');
      const [ran, replayed] = sdk.spans().filter(({ name }) => name === 'request attempt');
      expect(ran?.attributes).toMatchObject({
        'holdfast.idempotency.outcome': 'executed',
        'holdfast.idempotency.attempt': 1,
      });
      expect(ran?.links).toEqual([]);
      expect(replayed?.attributes).toMatchObject({ 'holdfast.idempotency.outcome': 'replayed' });
      expect(replayed?.links).toMatchObject([{ context: { ...first, traceFlags: 1, isRemote: true } }]);
      const hash = ran?.attributes['holdfast.idempotency.key_hash'];
      expect(hash).toMatch(/^[\w-]{16,}$/);
      expect(replayed?.attributes['holdfast.idempotency.key_hash']).toBe(hash);
      expect(JSON.stringify([ran?.attributes, replayed?.attributes])).not.toContain('secret');
    });

    it('leaves the active span alone when a lease is lost by a timer', () => {
      const event = { type: 'idempotency', name: 'orders', operation: 'POST /orders', keyHash: 'hash', attempt: 1 };
      const calls = pipeline(timeout({ name: 'other', after: '1m', clock: virtualClock() }));
      return calls
        .execute(() => channel('holdfast').publish({ ...event, outcome: 'lost' }))
        .then(() => expect(flat(sdk.spans())[0]).not.toHaveProperty(['holdfast.idempotency.outcome']));
    });

    it('measures with the same names and labels, in seconds', async () => {
      const clock = virtualClock();
      telemetry.watch(circuitBreaker({ name: 'watched' }));
      const calls = pipeline(retry({ name: 'measured', attempts: 2, backoff: constant('2s'), clock }));
      const ended = calls.attempt(down, { key: 'tenant-a' });
      await clock.runAll();
      await ended;
      const read = await sdk.metrics();
      const pointsOf = (name: string) => read.find(({ descriptor }) => descriptor.name === name)?.dataPoints ?? [];
      const duration = pointsOf('holdfast.call.duration').find(
        ({ attributes }) => attributes['holdfast.pipeline'] === 'measured',
      );
      expect(duration).toMatchObject({
        attributes: { 'holdfast.pipeline': 'measured', 'holdfast.outcome': 'failed' },
        value: { count: 1, sum: 2 },
      });
      expect(pointsOf('holdfast.retries')).toContainEqual(
        expect.objectContaining({ attributes: { 'holdfast.policy': 'measured' }, value: 1 }),
      );
      expect(pointsOf('holdfast.circuits')).toContainEqual(
        expect.objectContaining({ attributes: { 'holdfast.policy': 'watched', 'holdfast.state': 'closed' }, value: 1 }),
      );
      for (const { descriptor } of read) {
        const known = Object.values(metrics).find((metric) => metric.name === descriptor.name);
        expect(descriptor).toMatchObject({ unit: known?.unit, description: known?.help });
      }
      expect(JSON.stringify(read)).not.toMatch(/tenant|secret/);
    });

    it('traces only, or measures only, when told so', async () => {
      telemetry.stop();
      const only = instrument({ api: sdk.api, signals: ['metrics'] });
      await pipeline().execute(() => 1);
      expect(sdk.spans()).toEqual([]);
      only.stop();
      expect(callObserver()).toBeUndefined();
      const traced = instrument({ api: sdk.api, signals: ['traces'] });
      await pipeline().execute(() => 1);
      expect(sdk.spans()).toHaveLength(2);
      traced.stop();
      await pipeline().execute(() => 1);
      expect(sdk.spans()).toEqual([]);
    });

    it.each(['startSpan', 'setAttribute', 'setStatus', 'end'])(
      'contains and reports an exception of %s, and ends every span',
      async (where) => {
        telemetry.stop();
        const calls: Record<string, number> = { end: 0 };
        const failing = (method: string) => () => {
          calls[method] = (calls[method] ?? 0) + 1;
          if (method === where) throw new Error(`${where} of a processor`);
          return span;
        };
        const span = { setAttribute: failing('setAttribute'), setStatus: failing('setStatus'), end: failing('end') };
        const tracer = { startSpan: failing('startSpan') };
        const warn = vi.spyOn(process, 'emitWarning').mockImplementation(() => {});
        const traced = instrument({ api: sdk.api, tracer, signals: ['traces'] });
        const steady = pipeline(retry({ attempts: 2, backoff: constant(1) }), timeout('1m'));
        const outcomes = [await steady.attempt(() => 1), await steady.attempt(down)];
        await setImmediate();
        traced.stop();
        expect(outcomes).toMatchObject([{ ok: true, value: 1 }, { ok: false }]);
        // Two calls, with one attempt and with two. A span that has not begun has no end.
        expect(calls.end).toBe(where === 'startSpan' ? 0 : 5);
        expect(String(outcomes[1]?.ok === false && outcomes[1].error)).toContain('secret-host');
        expect(warn.mock.calls.map(([text]) => text)).toEqual([expect.stringContaining(`${where} of a processor`)]);
        warn.mockRestore();
      },
    );

    it.each([
      [{}, /option "api" is required/],
      [{ api: {} }, /option "api" must be the API of OpenTelemetry/],
      [{ api: sdk.api, signals: ['logs'] }, /option "signals" must be an array of 'traces' and 'metrics'/],
      [{ api: sdk.api, tracer: {} }, /option "tracer" must be a tracer/],
    ])('refuses options that are wrong: %#', (options, message) => {
      expect(() => instrument(options as never)).toThrow(message);
    });
  });
}
