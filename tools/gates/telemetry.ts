/** Telemetry: the metric names documented in docs/telemetry.md, read from its table. */

export interface DocumentedMetric {
  readonly opentelemetry: string;
  readonly prometheus: string;
  readonly kind: string;
  readonly unit: string;
  readonly labels: readonly string[];
}

/** The rows of the metrics table: OpenTelemetry name, Prometheus name, kind, unit, labels. */
export function metricNames(markdown: string): DocumentedMetric[] {
  const rows = markdown.matchAll(/^\| `(holdfast\.[\w.]+)` \| `(holdfast_\w+)` \| (\w+) \| `([^`]+)` \| ([^|]*) \|/gm);
  return [...rows].map(([, opentelemetry, prometheus, kind, unit, labels]) => ({
    opentelemetry: opentelemetry!,
    prometheus: prometheus!,
    kind: kind!,
    unit: unit!,
    labels: [...labels!.matchAll(/`(\w+)`/g)].map(([, label]) => label!),
  }));
}
