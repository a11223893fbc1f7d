/**
 * Prometheus: exports holdfast's metrics to a prom-client registry that the user passes in.
 *
 * Promise: prom-client is never imported, and no label takes an unbounded number of values. Names: docs/telemetry.md.
 */
import { checkOptions, type Field, having, integer, optional, withDefault } from '../core/options.js';
import {
  defaultBuckets,
  type Instrumentation,
  type Metric,
  type MetricId,
  measure,
  metrics,
  Names,
  type Sink,
  Watched,
} from './telemetry.js';

export type { Instrumentation, Watchable } from './telemetry.js';

/** The settings of a prom-client metric that are used here. */
export interface PrometheusMetricSettings<Registry> {
  readonly name: string;
  readonly help: string;
  readonly labelNames: string[];
  readonly registers: Registry[];
}

/** The members of a prom-client registry that are used here. */
export interface PrometheusRegistry {
  getSingleMetric(name: string): unknown;
  removeSingleMetric(name: string): void;
}

type Labels = Record<string, string>;

/** The members of prom-client that are used here, from version 14 on. */
export interface PrometheusClient<Registry extends PrometheusRegistry> {
  readonly register: Registry;
  readonly Counter: new (settings: PrometheusMetricSettings<Registry>) => { inc(labels: Labels, value?: number): void };
  readonly Histogram: new (
    settings: PrometheusMetricSettings<Registry> & { buckets: number[] },
  ) => { observe(labels: Labels, value: number): void };
  readonly Gauge: new (
    settings: PrometheusMetricSettings<Registry> & { collect(): void },
  ) => { set(labels: Labels, value: number): void; reset(): void };
}

/** Options of {@link instrument}. */
export interface PrometheusOptions<Registry extends PrometheusRegistry> {
  /** prom-client: `import * as client from 'prom-client'`. */
  readonly client: PrometheusClient<Registry>;
  /** Where the metrics are registered. Default: `client.register`. */
  readonly registry?: Registry | undefined;
  /** Upper bounds of the buckets of durations, in seconds, ascending. Default 0.005 to 10. The age of replays has its own, from 0.1 s to a week. */
  readonly buckets?: readonly number[] | undefined;
  /** How many names of policies and pipelines become labels; all others count as `other`. Default 100; from 1 to 10,000. */
  readonly maxNames?: number | undefined;
}

/**
 * Measures every pipeline of this process with prom-client: durations of calls and attempts, and the events of policies.
 *
 * Call it once per process and registry. Calls are measured from then on, whenever their pipeline was created. Only the
 * policies given to `watch` show their states.
 *
 * @param options - `client`, `registry`, `buckets`, `maxNames`.
 * @throws {@link OptionsError} `ERR_OPTIONS` from the factory, for an invalid option.
 * @throws What prom-client throws if the registry already has metrics of these names, because it was instrumented before.
 * @example
 * ```ts
 * import { circuitBreaker, pipeline } from 'holdfast';
 * import { instrument } from 'holdfast/prometheus';
 * import * as client from 'prom-client';
 *
 * const registry = new client.Registry();
 * const telemetry = instrument({ client, registry });
 * const payments = pipeline(circuitBreaker({ name: 'payments' }));
 * telemetry.watch(payments);
 * await payments.execute(async () => 'paid');
 * const text = await registry.metrics();
 * console.log(text.includes('holdfast_call_duration_seconds_count{pipeline="payments",outcome="ok"} 1'));
 * telemetry.stop();
 * ```
 */
export function instrument<Registry extends PrometheusRegistry>(options: PrometheusOptions<Registry>): Instrumentation {
  const checked = checkOptions('instrument', options, {
    client: clientField<Registry>(),
    registry: optional(having<Registry>('a registry of prom-client', 'getSingleMetric', 'removeSingleMetric')),
    buckets: withDefault(ascending(), defaultBuckets),
    maxNames: withDefault(integer({ min: 1, max: 10_000 }), 100),
  });
  const { client, buckets } = checked;
  const names = new Names(checked.maxNames);
  const watched = new Watched(names);
  const { sink, remove } = register(client, checked.registry ?? client.register, buckets, watched);
  const stopMeasuring = measure('prometheus', sink, names);
  return {
    watch: (thing, name) => watched.add(thing, name),
    stop() {
      stopMeasuring();
      watched.end();
      remove();
    },
  };
}

/** Creates all metrics in a registry, or none. */
function register<Registry extends PrometheusRegistry>(
  client: PrometheusClient<Registry>,
  registry: Registry,
  buckets: readonly number[],
  watched: Watched,
): { readonly sink: Sink; readonly remove: () => void } {
  const counters = new Map<MetricId, InstanceType<typeof client.Counter>>();
  const histograms = new Map<MetricId, InstanceType<typeof client.Histogram>>();
  const registered = new Map<string, unknown>();
  const remove = () => {
    // A registry that was cleared may hold the metrics of a later `instrument` under these names.
    for (const [name, metric] of registered) {
      if (registry.getSingleMetric(name) === metric) registry.removeSingleMetric(name);
    }
  };

  try {
    for (const [id, metric] of Object.entries(metrics) as [MetricId, Metric][]) {
      const settings = {
        name: prometheusName(metric),
        help: `${metric.help}.`,
        labelNames: [...metric.labels],
        registers: [registry],
      };
      if (metric.kind === 'counter') counters.set(id, new client.Counter(settings));
      else if (metric.kind === 'histogram')
        histograms.set(id, new client.Histogram({ ...settings, buckets: [...(metric.buckets ?? buckets)] }));
      else {
        const gauge = new client.Gauge({
          ...settings,
          collect() {
            gauge.reset();
            for (const { labels, value } of watched.read(id)) gauge.set(labelsOf(metric, labels), value);
          },
        });
      }
      registered.set(settings.name, registry.getSingleMetric(settings.name));
    }
  } catch (error) {
    remove();
    throw error;
  }
  const sink: Sink = {
    count: (id, labels) => counters.get(id)?.inc(labelsOf(metrics[id], labels)),
    observe: (id, labels, seconds) => histograms.get(id)?.observe(labelsOf(metrics[id], labels), seconds),
  };
  return { sink, remove };
}

/** `holdfast.call.duration` in seconds is `holdfast_call_duration_seconds`. */
function prometheusName({ name, kind, unit }: Metric): string {
  const suffix = kind === 'counter' ? '_total' : unit === 's' ? '_seconds' : '';
  return `${name.replaceAll('.', '_')}${suffix}`;
}

function labelsOf(metric: Metric, values: readonly string[]): Labels {
  const labels: Labels = {};
  for (let index = 0; index < values.length; index++) labels[metric.labels[index]!] = values[index]!;
  return labels;
}

function clientField<Registry extends PrometheusRegistry>(): Field<PrometheusClient<Registry>> {
  return {
    allowed: 'prom-client: import * as client from "prom-client"',
    parse(value) {
      const { Counter, Histogram, Gauge, register } = Object(value) as Record<string, unknown>;
      const areClasses = [Counter, Histogram, Gauge].every((part) => typeof part === 'function');
      return areClasses && typeof register === 'object' ? (value as PrometheusClient<Registry>) : undefined;
    },
  };
}

function ascending(): Field<readonly number[]> {
  return {
    allowed: 'an array of ascending numbers above 0, in seconds',
    parse(value) {
      if (!Array.isArray(value) || value.length === 0) return undefined;
      const fits = value.every(
        (bound, index) => Number.isFinite(bound) && bound > (index === 0 ? 0 : value[index - 1]),
      );
      return fits ? value : undefined;
    },
  };
}
