/**
 * Spans and metrics over random failures: one span for each call, and one in it for each run of the operation. All of them end, with the outcome that there
 * was.
 */
import { AsyncLocalStorage } from 'node:async_hooks';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { afterEach, describe, expect, it } from 'vitest';
import {
  type Call,
  circuitBreaker,
  constant,
  deadline,
  exponential,
  fallback,
  hedge,
  keyed,
  type Outcome,
  type Pipeline,
  pipeline,
  retry,
  singleFlight,
  standard,
  timeout,
} from '../../src/index.js';
import { instrument as instrumentSpans, type OpenTelemetryApi } from '../../src/integrations/opentelemetry.js';
import { instrument as instrumentFigures } from '../../src/integrations/prometheus.js';
import { seededRandom, type VirtualClock, virtualClock } from '../../src/testing/index.js';

interface Span {
  readonly name: string;
  readonly parent: Span | undefined;
  readonly attributes: Record<string, unknown>;
  status: number;
  ends: number;
  saidAfterEnd: number;
  /** A single flight continues for other callers. */
  childrenAtEnd: number;
}

/** An API that keeps every span, with the context of the platform. */
function keeping() {
  const active = new AsyncLocalStorage<Span | undefined>();
  const spans: Span[] = [];
  const api = {
    context: {
      active: () => active.getStore(),
      with: (span: Span | undefined, run: () => never) => active.run(span, run),
    },
    trace: {
      setSpan: (_context: unknown, span: Span) => span,
      getActiveSpan: () => undefined,
      getTracer: () => ({
        startSpan(name: string, { attributes }: { attributes: object }, parent: Span | undefined) {
          const span = {
            ...{
              name,
              parent,
              attributes: { ...attributes } as Record<string, unknown>,
              status: 0,
              ends: 0,
              saidAfterEnd: 0,
              childrenAtEnd: 0,
            },
            setAttribute: (key: string, value: unknown) => {
              if (span.ends > 0) span.saidAfterEnd++;
              span.attributes[key] = value;
            },
            setStatus: ({ code }: { code: number }) => {
              span.status = code;
            },
            end: () => {
              span.ends++;
              span.childrenAtEnd = spans.filter((other) => other.parent === span).length;
            },
          };
          spans.push(span);
          return span;
        },
      }),
    },
    metrics: { getMeter: () => ({}) },
  } as unknown as OpenTelemetryApi<Span | undefined>;
  return { api, spans, active };
}

/** The part of prom-client that counts what is observed. */
function counting() {
  const figures = new Map<string, number>();
  class Metric {
    readonly name: string;
    constructor({ name }: { name: string }) {
      this.name = name;
    }
    inc() {}
    set() {}
    reset() {}
    observe({ outcome }: { outcome: string }, seconds: number) {
      expect(seconds).toBeGreaterThanOrEqual(0);
      const key = `${this.name} ${outcome}`;
      figures.set(key, (figures.get(key) ?? 0) + 1);
    }
  }
  const client = {
    Counter: Metric,
    Histogram: Metric,
    Gauge: Metric,
    register: { getSingleMetric() {}, removeSingleMetric() {} },
  };
  return { client: client as never, figures };
}

const makers: Record<string, (clock: VirtualClock, random: () => number) => Pipeline<unknown>> = {
  retry: (clock, random) =>
    pipeline(
      retry({ attempts: 3, backoff: exponential({ initial: 5 }), clock, random }),
      timeout({ after: 40, clock }),
    ),
  'retry in a deadline': (clock) =>
    pipeline(
      deadline({ after: 60, clock }),
      retry({ attempts: 4, backoff: constant(10), clock }),
      timeout({ after: 25, clock }),
    ),
  hedge: (clock) => pipeline(deadline({ after: 80, clock }), hedge({ delay: 10, max: 2, clock })),
  'hedge around retry': (clock) =>
    pipeline(
      hedge({ delay: 15, max: 1, clock }),
      retry({ attempts: 2, backoff: constant(5), clock }),
      timeout({ after: 30, clock }),
    ),
  keyed: (clock) =>
    pipeline(
      deadline({ after: 90, clock }),
      retry({ attempts: 2, backoff: constant(5), clock }),
      keyed((key) => circuitBreaker({ name: key, window: { calls: 4 }, minimumCalls: 2, openFor: 20, clock }), {
        clock,
      }),
    ),
  'keyed pipelines': (clock) =>
    pipeline(
      deadline({ after: 90, clock }),
      keyed(() => pipeline(hedge({ delay: 5, clock }), circuitBreaker({ window: { consecutive: 3 }, clock })), {
        clock,
      }),
    ),
  fallback: (clock) =>
    pipeline(
      fallback(() => 'else'),
      deadline({ after: 90, clock }),
      retry({ attempts: 2, backoff: constant(3), clock }),
    ),
  'single flight': (clock) =>
    pipeline(
      singleFlight({ key: ({ key }) => key }),
      retry({ attempts: 2, backoff: constant(3), clock }),
      timeout({ after: 30, clock }),
    ),
  standard: (clock, random) => standard({ name: 'standard', clock, random } as never) as Pipeline<unknown>,
};

describe.each(Object.keys(makers))('what is told of %s', (which) => {
  const stops: (() => void)[] = [];
  afterEach(() => {
    for (const stop of stops.splice(0)) stop();
  });

  it.each([1, 2, 3, 4, 5, 6, 7, 8])('is what there was, whatever fails, seed %i', async (seed) => {
    const random = seededRandom(seed);
    const clock = virtualClock();
    const { api, spans, active } = keeping();
    const { client, figures } = counting();
    stops.push(instrumentSpans({ api, signals: ['traces'] }).stop, instrumentFigures({ client }).stop);
    const policy = makers[which]!(clock, random);
    const runs: { readonly span: Span | undefined; readonly root: Span | undefined }[] = [];
    const outcomes: { readonly outcome: Outcome; readonly root: Span | undefined }[] = [];
    const operation = (call: Call): unknown => {
      const span = active.getStore();
      runs.push({ span, root: span?.parent });
      const draw = random();
      if (draw < 0.1) throw new Error('at once');
      if (draw < 0.2) return 'at once';
      const lastsMs = random.between(1, 60);
      return new Promise((resolve, reject) => {
        const heeds = random() < 0.5;
        if (heeds) call.signal.addEventListener('abort', () => reject(call.signal.reason));
        if (draw < 0.25) return;
        void clock.sleep(lastsMs).then(() => (draw < 0.6 ? reject(new Error('later')) : resolve('later')));
      });
    };
    const callers: Promise<unknown>[] = [];
    for (let index = 0; index < 30; index++) {
      const caller = new AbortController();
      const before = spans.length;
      const key = `key ${random.between(0, 3) | 0}`;
      const given = { key, ...(random() < 0.3 && { signal: caller.signal }) };
      if (random() < 0.1) caller.abort(new Error('early'));
      const attempt = policy.attempt(operation, given);
      const root = spans.slice(before).find(({ parent }) => parent === undefined);
      callers.push(attempt.then((outcome) => outcomes.push({ outcome, root })));
      void clock.sleep(random.between(1, 50)).then(() => caller.abort(new Error('left')));
      await clock.advance(random.between(0, 20) | 0);
    }
    await clock.runAll();
    await Promise.race([Promise.all(callers), nextTurn().then(nextTurn)]);
    expect(outcomes.length, 'all calls have ended').toBe(30);

    const roots = spans.filter(({ parent }) => parent === undefined);
    const attempts = spans.filter(({ parent }) => parent !== undefined);
    expect(roots.length).toBe(30);
    expect(attempts.length).toBe(runs.length);
    expect(new Set(runs.map(({ span }) => span)).size).toBe(runs.length);
    for (const { span, root } of runs) {
      expect(attempts).toContain(span);
      expect(roots).toContain(root);
    }
    for (const span of spans) expect([span.name, span.ends, span.saidAfterEnd]).toEqual([span.name, 1, 0]);
    for (const { outcome, root } of outcomes) {
      expect(root?.attributes['holdfast.outcome'] === 'ok').toBe(outcome.ok);
      expect(root?.status).toBe(outcome.ok ? 0 : 2);
      expect(root?.attributes['holdfast.attempts']).toBe(root?.childrenAtEnd);
    }
    for (const span of attempts) expect(span.status).toBe(span.attributes['holdfast.outcome'] === 'ok' ? 0 : 2);
    const told = (some: readonly Span[], name: string) => {
      const sums = new Map<string, number>();
      for (const { attributes } of some) {
        const key = `${name} ${attributes['holdfast.outcome']}`;
        sums.set(key, (sums.get(key) ?? 0) + 1);
      }
      return [...sums];
    };
    const expected = new Map([
      ...told(roots, 'holdfast_call_duration_seconds'),
      ...told(attempts, 'holdfast_attempt_duration_seconds'),
    ]);
    expect(Object.fromEntries(figures)).toEqual(Object.fromEntries(expected));
  });
});
