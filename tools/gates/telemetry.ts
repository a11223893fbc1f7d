/** Telemetry: the names of metrics that docs/telemetry.md promises, read from its table. */

export interface DocumentedMetric {
  readonly opentelemetry: string;
  readonly prometheus: string;
  readonly kind: string;
  readonly unit: string;
  readonly labels: readonly string[];
}

/** The rows of the table of metrics: OpenTelemetry's name, Prometheus's name, kind, unit, labels. */
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
