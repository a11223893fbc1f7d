/** The names of metrics and attributes are a contract, so docs/telemetry.md and the code must agree. */
import { readFileSync } from 'node:fs';
import * as client from 'prom-client';
import { describe, expect, it } from 'vitest';
import { instrument } from '../../src/integrations/prometheus.js';
import { contractVersion, metrics } from '../../src/integrations/telemetry.js';
import { metricNames } from '../../tools/gates/telemetry.ts';

const page = readFileSync(new URL('../../docs/telemetry.md', import.meta.url), 'utf8');
const spanAttributes = ['pipeline', 'outcome', 'attempts', 'attempt'].concat(
  ['outcome', 'attempt', 'key_hash'].map((word) => `idempotency.${word}`),
);
const documented = metricNames(page);

describe('docs/telemetry.md', () => {
  it('names every metric of OpenTelemetry, with kind, unit and labels', () => {
    const ours = Object.values(metrics).map(({ name, kind, unit, labels }) => ({
      name,
      kind,
      unit,
      labels: [...labels],
    }));
    const theirs = documented.map(({ opentelemetry: name, kind, unit, labels }) => ({ name, kind, unit, labels }));
    expect(theirs).toEqual(ours);
  });

  it('names every metric of Prometheus, with kind and labels', async () => {
    const registry = new client.Registry();
    const { stop } = instrument({ client, registry });
    const registered = registry.getMetricsAsArray().map((metric) => {
      const { name, labelNames } = metric as unknown as { name: string; labelNames: string[] };
      return { name, labels: labelNames };
    });
    stop();
    expect(documented.map(({ prometheus: name, labels }) => ({ name, labels }))).toEqual(registered);
  });

  it('tells the version of the contract', () => {
    expect(page).toContain(`This is version ${contractVersion} of the contract`);
  });

  it('names the attributes of spans', () => {
    for (const name of spanAttributes.map((word) => `holdfast.${word}`)) {
      expect(page).toContain(`| \`${name}\` |`);
    }
    for (const name of ['http.request.resend_count', 'error.type']) expect(page).toContain(`| \`${name}\` |`);
  });
});
