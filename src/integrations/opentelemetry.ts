/**
 * OpenTelemetry: exports holdfast's metrics, and a span for each call with a child span for each attempt, through the API that the user passes in.
 *
 * Promise: `@opentelemetry/api` is never imported, so any SDK for it works. A span that cannot be started or ended costs no call. No attribute holds
 * a key, a value or the text of an error. An attempt's span is current while its operation runs, so spans created there become its children. It ends
 * when nobody waits for the attempt any more. Names: docs/telemetry.md.
 */
import { type CallObserver, observeCalls } from '../core/ambient.js';
import type { Call } from '../core/call.js';
import { isHoldfastError } from '../core/errors.js';
import { Events, hearEvents, type IdempotencyOutcome } from '../core/events.js';
import { checkOptions, type Field, having, integer, optional, withDefault } from '../core/options.js';
import type { Outcome } from '../core/outcome.js';
import type { Policy } from '../core/policy.js';
import {
  adopt,
  contractVersion,
  defaultBuckets,
  type Instrumentation,
  type Metric,
  type MetricId,
  measure,
  metrics,
  Names,
  nearest,
  outcomeWord,
  pipelineName,
  untilEnd,
  untilLeft,
  Watched,
} from './telemetry.js';

export type { Instrumentation, Watchable } from './telemetry.js';

type Attributes = Record<string, string | number>;

/** The members of a span that are used here. */
export interface OpenTelemetrySpan {
  setAttribute(name: string, value: string | number): unknown;
  setStatus(status: { code: number }): unknown;
  end(): void;
}

/** The members of the active span that are used here. */
export interface OpenTelemetryActiveSpan {
  isRecording(): boolean;
  setAttribute(name: string, value: string | number): unknown;
  addLink(link: { context: { traceId: string; spanId: string; traceFlags: number; isRemote: boolean } }): unknown;
}

/** The members of a tracer that are used here. */
export interface OpenTelemetryTracer<Context> {
  startSpan(name: string, options: { attributes: Attributes }, context: Context): OpenTelemetrySpan;
}

interface Described {
  unit: string;
  description: string;
  advice?: { explicitBucketBoundaries: number[] };
}

interface ObservableResult {
  observe(value: number, attributes: Attributes): void;
}

/** The members of a meter that are used here. */
export interface OpenTelemetryMeter {
  createCounter(name: string, options: Described): { add(value: number, attributes: Attributes): void };
  createHistogram(name: string, options: Described): { record(value: number, attributes: Attributes): void };
  createObservableGauge(
    name: string,
    options: Described,
  ): {
    addCallback(callback: (result: ObservableResult) => void): void;
    removeCallback(callback: (result: ObservableResult) => void): void;
  };
}

/** The members of `@opentelemetry/api` that are used here, from version 1.9 on. */
export interface OpenTelemetryApi<Context> {
  readonly context: { active(): Context; with(context: Context, run: () => Promise<unknown>): Promise<unknown> };
  readonly trace: {
    getTracer(name: string, version: string): OpenTelemetryTracer<Context>;
    // biome-ignore lint/suspicious/noExplicitAny: a span of the API has more members than are used here.
    setSpan(context: Context, span: any): Context;
    getActiveSpan(): OpenTelemetryActiveSpan | undefined;
  };
  readonly metrics: { getMeter(name: string, version: string): OpenTelemetryMeter };
}

/** Options of {@link instrument}. */
export interface OpenTelemetryOptions<Context> {
  /** The API: `import * as api from '@opentelemetry/api'`. */
  readonly api: OpenTelemetryApi<Context>;
  /** Creates the spans. Default: `api.trace.getTracer('holdfast')`. */
  readonly tracer?: OpenTelemetryTracer<Context> | undefined;
  /** Creates the metrics. Default: `api.metrics.getMeter('holdfast')`. */
  readonly meter?: OpenTelemetryMeter | undefined;
  /** Which signals to emit. Default: both, `['traces', 'metrics']`. */
  readonly signals?: readonly ('traces' | 'metrics')[] | undefined;
  /** How many names of policies and pipelines become attributes; all others are `other`. Default 100; from 1 to 10,000. */
  readonly maxNames?: number | undefined;
}

const scope = 'holdfast';
/** Outcomes that a lease renewal may report: the span active at that time may belong to any call. */
const toldByTimers: ReadonlySet<IdempotencyOutcome> = new Set<IdempotencyOutcome>(['lost', 'store-error']);
/** `SpanStatusCode.ERROR`. */
const failedStatus = { code: 2 };

/**
 * Traces and measures every pipeline of this process with OpenTelemetry.
 *
 * Call it once per process, after the SDK has been started. Calls are traced from then on, whenever their pipeline was created. Only the
 * policies given to `watch` show their states. The span that is active when a request with an idempotency key is
 * answered gets the outcome of the key, and a replay gets a link to the trace of the original request.
 *
 * @param options - `api`, `tracer`, `meter`, `signals`, `maxNames`.
 * @throws {@link OptionsError} `ERR_OPTIONS` from the factory, for an invalid option.
 * @example
 * ```ts
 * import * as api from '@opentelemetry/api';
 * import { pipeline, retry } from 'holdfast';
 * import { instrument } from 'holdfast/opentelemetry';
 *
 * const telemetry = instrument({ api });
 * const payments = pipeline(retry({ name: 'payments' }));
 * console.log(await payments.execute(async () => 'paid'));
 * telemetry.stop();
 * ```
 */
export function instrument<Context>(options: OpenTelemetryOptions<Context>): Instrumentation {
  const checked = checkOptions('instrument', options, {
    api: apiField<Context>(),
    tracer: optional(having<OpenTelemetryTracer<Context>>('a tracer of OpenTelemetry', 'startSpan')),
    meter: optional(
      having<OpenTelemetryMeter>(
        'a meter of OpenTelemetry',
        'createCounter',
        'createHistogram',
        'createObservableGauge',
      ),
    ),
    signals: withDefault(signalsField(), ['traces', 'metrics']),
    maxNames: withDefault(integer({ min: 1, max: 10_000 }), 100),
  });
  const { api, signals } = checked;
  const names = new Names(checked.maxNames);
  const watched = new Watched(names);
  const stops: (() => void)[] = [];
  const stop = () => {
    for (const one of stops.splice(0)) one();
    watched.end();
  };
  try {
    if (signals.includes('traces')) {
      const tracer = checked.tracer ?? api.trace.getTracer(scope, contractVersion);
      stops.push(observeCalls(new SpanObserver(api, tracer, names)), traceIdempotency(api));
    }
    if (signals.includes('metrics')) {
      measureWith(checked.meter ?? api.metrics.getMeter(scope, contractVersion), names, watched, stops);
    }
  } catch (error) {
    // Nobody could end what has begun.
    stop();
    throw error;
  }
  return { watch: (thing, name) => watched.add(thing, name), stop };
}

interface Started<Context> {
  readonly span: OpenTelemetrySpan;
  /** The context in which the span is the active one. */
  readonly context: Context;
}

interface Traced<Context> {
  readonly context: Context;
  readonly pipeline: string;
  attempts: number;
}

class SpanObserver<Context> implements CallObserver {
  readonly #api: OpenTelemetryApi<Context>;
  readonly #tracer: OpenTelemetryTracer<Context>;
  readonly #names: Names;
  readonly #calls = new WeakMap<Call, Traced<Context>>();
  readonly #reports = new Events('opentelemetry', undefined);

  constructor(api: OpenTelemetryApi<Context>, tracer: OpenTelemetryTracer<Context>, names: Names) {
    this.#api = api;
    this.#tracer = tracer;
    this.#names = names;
  }

  call(call: Call, policies: readonly Policy<unknown>[], run: () => Promise<unknown>): Promise<unknown> {
    const pipeline = this.#names.of(pipelineName(policies));
    const started = this.#start(pipeline, { 'holdfast.pipeline': pipeline }, this.#api.context.active());
    if (started === undefined) return run();
    const { span, context } = started;
    const traced = { context, pipeline, attempts: 0 };
    this.#calls.set(call, traced);
    return untilEnd(this.#reports, this.#api.context.with(context, run), (outcome) =>
      endSpan(span, { 'holdfast.attempts': traced.attempts }, outcome, call),
    );
  }

  attempt(call: Call, run: () => Promise<unknown>): Promise<unknown> {
    const traced = nearest(this.#calls, call);
    // The call began before tracing did.
    if (traced === undefined) return run();
    const { pipeline } = traced;
    const resends = traced.attempts++;
    const attributes = {
      'holdfast.pipeline': pipeline,
      'holdfast.attempt': traced.attempts,
      ...(resends > 0 && { 'http.request.resend_count': resends }),
    };
    // Not the active context: after a wait, that is the context of the code that armed the timer.
    const started = this.#start(`${pipeline} attempt`, attributes, traced.context);
    if (started === undefined) return run();
    const { span, context } = started;
    return untilLeft(this.#reports, call, this.#api.context.with(context, run), (outcome) =>
      endSpan(span, {}, outcome, call),
    );
  }

  /** Undefined if a processor or sampler throws: the call goes on without a span. */
  #start(name: string, attributes: Attributes, around: Context): Started<Context> | undefined {
    let started: Started<Context> | undefined;
    this.#reports.contain('listener', () => {
      const span = this.#tracer.startSpan(name, { attributes }, around);
      started = { span, context: this.#api.trace.setSpan(around, span) };
    });
    return started;
  }

  adopt(call: Call, by: Call): void {
    adopt(this.#calls, call, by);
  }
}

/**
 * Records on the active span, such as that of an HTTP instrumentation for a request, what became of its idempotency key. A replay or takeover links
 * to the trace of the earlier attempt.
 */
function traceIdempotency<Context>({ trace }: OpenTelemetryApi<Context>): () => void {
  return hearEvents('opentelemetry', (event) => {
    if (event.type !== 'idempotency' || toldByTimers.has(event.outcome)) return;
    const span = trace.getActiveSpan();
    if (span?.isRecording() !== true) return;
    span.setAttribute('holdfast.idempotency.outcome', event.outcome);
    span.setAttribute('holdfast.idempotency.key_hash', event.keyHash);
    if (event.attempt !== undefined) span.setAttribute('holdfast.idempotency.attempt', event.attempt);
    const [, traceId, spanId, flags] = /^00-([\da-f]{32})-([\da-f]{16})-([\da-f]{2})$/.exec(event.trace ?? '') ?? [];
    if (traceId === undefined || spanId === undefined || flags === undefined) return;
    span.addLink({ context: { traceId, spanId, traceFlags: Number.parseInt(flags, 16), isRemote: true } });
  });
}

/** Ends a span even if what it shall tell cannot be set: a span without an end is never exported. */
function endSpan(span: OpenTelemetrySpan, attributes: Attributes, outcome: Outcome, call: Call): void {
  try {
    for (const name in attributes) span.setAttribute(name, attributes[name]!);
    span.setAttribute('holdfast.outcome', outcomeWord(outcome, call));
    if (!outcome.ok) {
      span.setAttribute('error.type', errorType(outcome.error));
      span.setStatus(failedStatus);
    }
  } finally {
    span.end();
  }
}

/** The error's code or class, never its text, which may contain anything. */
function errorType(error: unknown): string {
  if (isHoldfastError(error)) return error.code;
  return error instanceof Error ? error.name : typeof error;
}

/** Adds to `stops` what ends it. */
function measureWith(meter: OpenTelemetryMeter, names: Names, watched: Watched, stops: (() => void)[]): void {
  const adds = new Map<MetricId, (value: number, attributes: Attributes) => void>();
  for (const [id, metric] of Object.entries(metrics) as [MetricId, Metric][]) {
    const described: Described = { unit: metric.unit, description: metric.help };
    if (metric.kind === 'counter') {
      const counter = meter.createCounter(metric.name, described);
      adds.set(id, (value, attributes) => counter.add(value, attributes));
    } else if (metric.kind === 'histogram') {
      const advice = { explicitBucketBoundaries: [...(metric.buckets ?? defaultBuckets)] };
      const histogram = meter.createHistogram(metric.name, { ...described, advice });
      adds.set(id, (value, attributes) => histogram.record(value, attributes));
    } else {
      const gauge = meter.createObservableGauge(metric.name, described);
      const read = (result: ObservableResult) => {
        for (const { labels, value } of watched.read(id)) result.observe(value, attributesOf(metric, labels));
      };
      gauge.addCallback(read);
      stops.push(() => gauge.removeCallback(read));
    }
  }
  const sink = {
    count: (id: MetricId, labels: readonly string[]) => adds.get(id)?.(1, attributesOf(metrics[id], labels)),
    observe: (id: MetricId, labels: readonly string[], seconds: number) =>
      adds.get(id)?.(seconds, attributesOf(metrics[id], labels)),
  };
  stops.push(measure('opentelemetry', sink, names));
}

function attributesOf(metric: Metric, values: readonly string[]): Attributes {
  const labels: Attributes = {};
  for (let index = 0; index < values.length; index++) labels[`holdfast.${metric.labels[index]}`] = values[index]!;
  return labels;
}

function apiField<Context>(): Field<OpenTelemetryApi<Context>> {
  return {
    allowed: 'the API of OpenTelemetry: import * as api from "@opentelemetry/api"',
    parse(value) {
      const { context, trace, metrics } = Object(value) as Partial<OpenTelemetryApi<Context>>;
      const isWhole =
        typeof context?.with === 'function' &&
        typeof trace?.setSpan === 'function' &&
        typeof metrics?.getMeter === 'function';
      return isWhole ? (value as OpenTelemetryApi<Context>) : undefined;
    },
  };
}

function signalsField(): Field<readonly ('traces' | 'metrics')[]> {
  return {
    allowed: "an array of 'traces' and 'metrics'",
    parse(value) {
      const fits = Array.isArray(value) && value.every((signal) => signal === 'traces' || signal === 'metrics');
      return fits ? value : undefined;
    },
  };
}
