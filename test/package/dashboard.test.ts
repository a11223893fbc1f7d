/** The Grafana dashboard against a real Prometheus that scrapes a real process: every query is answered with data. */
import { execFileSync } from 'node:child_process';
import { cpSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { metricNames } from '../../tools/gates/telemetry.ts';
import { type Program, provide } from '../support/servers/provide.ts';
import { ServerProcess } from '../support/servers/server-process.ts';
import { checkout, temporaryFolder } from './consumer.ts';

interface Dashboard {
  readonly panels: readonly { readonly title: string; readonly targets: readonly { readonly expr: string }[] }[];
  readonly templating: { readonly list: readonly { readonly type: string; readonly definition?: string }[] };
}

const dashboard: Dashboard = JSON.parse(readFileSync(join(checkout, 'docs', 'dashboards', 'holdfast.json'), 'utf8'));
const queries = dashboard.panels.flatMap(({ title, targets }) => targets.map(({ expr }) => ({ title, expr })));

/** In CI the program must be there, because no test is skipped. */
async function programOf(name: string): Promise<Program | undefined> {
  try {
    return await provide(name, 'prometheus');
  } catch (error) {
    if (process.env.CI) throw error;
    console.log(`Skipped: ${(error as Error).message}.`);
    return undefined;
  }
}

const program = await programOf('prometheus');
const promtool = await programOf('promtool');
const ping = (path: string) => ({ request: `GET ${path} HTTP/1.0\r\n`, answer: 'HTTP/1.' });

describe('the dashboard', () => {
  it('asks for metrics that docs/telemetry.md names, and for no others', () => {
    const known = metricNames(readFileSync(join(checkout, 'docs', 'telemetry.md'), 'utf8')).map(
      ({ prometheus }) => prometheus,
    );
    const asked = queries.flatMap(({ expr }) => expr.match(/holdfast_\w+/g) ?? []);
    const unknown = asked.filter((name) => !known.includes(name.replace(/_(count|sum|bucket)$/, '')));
    expect(asked.length).toBeGreaterThan(20);
    expect(unknown).toEqual([]);
  });
});

describe.skipIf(program === undefined)('a real Prometheus', () => {
  const folder = temporaryFolder();
  let scraped: ServerProcess;
  let prometheus: ServerProcess;

  beforeAll(async () => {
    symlinkSync(join(checkout, 'node_modules'), join(folder.path, 'node_modules'), 'junction');
    cpSync(join(checkout, 'test', 'package', 'fixtures', 'scraped.mjs'), join(folder.path, 'scraped.mjs'));
    scraped = await ServerProcess.start({
      name: 'scraped',
      program: { file: process.execPath, env: {} },
      args: ({ port }) => [join(folder.path, 'scraped.mjs'), String(port)],
      ping: ping('/metrics'),
    });
    const job = { job_name: 'scraped', static_configs: [{ targets: [`127.0.0.1:${scraped.port}`] }] };
    // JSON is also YAML.
    const settings = { global: { scrape_interval: '200ms', scrape_timeout: '200ms' }, scrape_configs: [job] };
    const file = join(folder.path, 'prometheus.yml');
    writeFileSync(file, JSON.stringify(settings));
    prometheus = await ServerProcess.start({
      name: 'prometheus',
      program: program!,
      args: ({ port, folder: data }) => [
        ...[`--config.file=${file}`, `--storage.tsdb.path=${join(data, 'data')}`],
        `--web.listen-address=127.0.0.1:${port}`,
      ],
      ping: ping('/-/ready'),
    });
  });

  afterAll(async () => {
    await prometheus?.dispose();
    await scraped?.dispose();
    folder[Symbol.dispose]();
  });

  async function ask(
    expr: string,
  ): Promise<{ status: string; error?: string; data?: { result: { value: [number, string] }[] } }> {
    const filled = expr.replaceAll('$__rate_interval', '30s').replaceAll(/\$(pipeline|policy)/g, '.+');
    const url = new URL('/api/v1/query', `http://127.0.0.1:${prometheus.port}`);
    url.searchParams.set('query', filled);
    return (await (await fetch(url)).json()) as Awaited<ReturnType<typeof ask>>;
  }

  it.each(queries)('answers $title: $expr', async ({ expr }) => {
    // Prometheus scrapes it for the first time some seconds after the start.
    for (const untilMs = performance.now() + 60_000; ; await sleep(200)) {
      const { status, error, data } = await ask(expr);
      expect(error).toBeUndefined();
      expect(status).toBe('success');
      const values = (data?.result ?? []).map(({ value }) => Number(value[1]));
      if (values.length > 0 && values.some((value) => Number.isFinite(value))) break;
      if (performance.now() > untilMs) expect(values, expr).not.toEqual([]);
    }
  });

  it('finds the values that the variables of the dashboard can take', async () => {
    const definitions = dashboard.templating.list.flatMap(({ definition }) => definition ?? []);
    expect(definitions).toHaveLength(2);
    for (const definition of definitions) {
      const [, selector, label] = /^label_values\((.+), (\w+)\)$/.exec(definition)!;
      const url = new URL(`/api/v1/label/${label}/values`, `http://127.0.0.1:${prometheus.port}`);
      url.searchParams.set('match[]', selector!);
      const { data } = (await (await fetch(url)).json()) as { data: string[] };
      expect(data).toContain(label === 'pipeline' ? 'preset' : 'ledger');
    }
  });

  it('likes what it reads: promtool has nothing to say', async () => {
    const text = await (await fetch(`http://127.0.0.1:${scraped.port}/metrics`)).text();
    const ours = `${text
      .split('\n')
      .filter((line) => line.includes('holdfast_'))
      .join('\n')}\n`;
    const env = { ...process.env, ...promtool!.env };
    expect(execFileSync(promtool!.file, ['check', 'metrics'], { input: ours, env, encoding: 'utf8' })).toBe('');
  });
});
