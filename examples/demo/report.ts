/**
 * Report: what each path did, in figures and in words, and whether the protected one was better.
 */
import { styleText } from 'node:util';
import { acts, hangMs } from './acts.ts';
import { type Logs, type Path, type PathLog, paths, type Result } from './load.ts';
import type { ServerReport } from './server.ts';
import type { UpstreamReport } from './upstream.ts';

export interface Findings {
  readonly logs: Logs;
  readonly server: ServerReport;
  readonly upstreams: Readonly<Record<Path, UpstreamReport>>;
}

interface Figures {
  readonly requests: number;
  readonly fresh: number;
  readonly stale: number;
  readonly failed: number;
  readonly freshShare: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
}

/** The tables and the causes, as lines. */
export function describe({ logs, server, upstreams }: Findings): readonly string[] {
  const overall = paths.map((path) => {
    const { requests, fresh, stale, failed, freshShare, p50Ms, p99Ms } = figuresOf(logs[path].results);
    const callsPerUser = server.upstreamCalls[path] / requests;
    const counts = [requests, fresh, stale, failed].map(String);
    return [
      path,
      ...counts,
      percent(freshShare),
      ms(p50Ms),
      ms(p99Ms),
      callsPerUser.toFixed(2),
      String(logs[path].waitingMax),
    ];
  });
  const byAct = acts.map(({ name }, actIndex) => {
    const [naked, guarded] = paths.map((path) => figuresOf(logs[path].results.filter((r) => r.actIndex === actIndex)));
    const cells = (figures = figuresOf([])) => [percent(figures.freshShare), ms(figures.p99Ms)];
    return [name, ...cells(naked), ...cells(guarded)];
  });
  return [
    ...table(
      ['path', 'requests', 'fresh', 'stale', 'failed', 'success', 'p50', 'p99', 'calls/user', 'most waiting'],
      overall,
    ),
    '',
    ...table(['users who came in', 'naked', 'p99', 'protected', 'p99'], byAct),
    '',
    `naked: ${nakedCause(logs.naked.results)}`,
    `protected: ${protectedCause(server)}`,
    ...paths.map((path) => `errors of ${path}: ${errorsOf(logs[path])}`),
    ...paths.map((path) => `charges of ${path}: ${chargesOf(logs[path], upstreams[path])}`),
  ];
}

/** What speaks against the protected path; empty when it kept its word. */
export function shortcomings({ logs, upstreams }: Findings): readonly string[] {
  const naked = figuresOf(logs.naked.results);
  const guarded = figuresOf(logs.protected.results);
  const found: string[] = [];
  if (guarded.requests !== naked.requests) found.push('the paths did not get the same requests');
  if (!(guarded.freshShare > naked.freshShare)) found.push('its success share is not higher');
  // A tenth at least: two paths without protection differ by less.
  if (!(guarded.p99Ms < 0.9 * naked.p99Ms)) found.push('its p99 is not clearly lower');
  if (doubleCharges(upstreams.protected) > 0) found.push('it charged a card twice');
  return found;
}

/** One line about a path while it runs. */
export function liveLine(path: Path, log: PathLog): string {
  const { requests, freshShare, p99Ms } = figuresOf(log.results);
  const waiting = String(log.waiting).padStart(4);
  return `${path.padEnd(10)} ${String(requests).padStart(5)} answered, ${waiting} waiting, ${percent(freshShare)} success, p99 ${ms(p99Ms)}`;
}

function nakedCause(results: readonly Result[]): string {
  const hung = results.filter(({ latencyMs }) => latencyMs >= hangMs).length;
  const failed = results.filter(({ ending }) => ending.kind === 'failed').length;
  return `${hung} users waited ${hangMs / 1_000} s or more for hung calls, ${failed} got the upstream's fault as it came.`;
}

function protectedCause({ retries, timeouts, repaired, staleAnswers, gaveUp }: ServerReport): string {
  const reasons = listOf(Object.entries(gaveUp).map(([reason, times]) => `${reason} ${times}`));
  return (
    `${retries} retries repaired ${repaired} calls; ${timeouts} hung attempts were cut off; retries given up by reason: ` +
    `${reasons}; ${staleAnswers} users got the last known price instead.`
  );
}

function errorsOf({ results }: PathLog): string {
  const counts = new Map<string, number>();
  for (const { ending } of results) {
    if (ending.kind === 'failed') counts.set(ending.error, (counts.get(ending.error) ?? 0) + 1);
  }
  return listOf([...counts].sort(([, a], [, b]) => b - a).map(([error, times]) => `${error} ${times}`));
}

function chargesOf({ results }: PathLog, upstream: UpstreamReport): string {
  const charged = new Set(upstream.charged);
  const misled = results.filter(
    ({ isCharge, ending, requestNumber }) => isCharge && ending.kind === 'failed' && charged.has(requestNumber),
  ).length;
  return (
    `${charged.size} cards charged, ${doubleCharges(upstream)} of them twice; ${upstream.repeatsRecognised} repeats ` +
    `recognised by their key; ${misled} users were charged and told that it failed.`
  );
}

function doubleCharges({ charged }: UpstreamReport): number {
  return charged.length - new Set(charged).size;
}

function figuresOf(results: readonly Result[]): Figures {
  const countOf = (kind: Result['ending']['kind']) => results.filter(({ ending }) => ending.kind === kind).length;
  const latencies = results.map(({ latencyMs }) => latencyMs).sort((a, b) => a - b);
  const fresh = countOf('fresh');
  return {
    requests: results.length,
    fresh,
    stale: countOf('stale'),
    failed: countOf('failed'),
    freshShare: fresh / results.length,
    p50Ms: quantile(latencies, 0.5),
    p99Ms: quantile(latencies, 0.99),
  };
}

function quantile(sorted: readonly number[], share: number): number {
  return sorted[Math.ceil(sorted.length * share) - 1] ?? Number.NaN;
}

/** First column to the left, numbers to the right. */
function table(head: readonly string[], rows: readonly (readonly string[])[]): readonly string[] {
  const widths = head.map((title, column) => Math.max(...[head, ...rows].map((row) => (row[column] ?? title).length)));
  const line = (row: readonly string[]) =>
    row.map((cell, column) => (column === 0 ? cell.padEnd(widths[0]!) : cell.padStart(widths[column]!))).join('  ');
  return [styleText('bold', line(head)), ...rows.map(line)];
}

function listOf(parts: readonly string[]): string {
  return parts.length === 0 ? 'none' : parts.join(', ');
}

function percent(share: number): string {
  return Number.isNaN(share) ? '-' : `${(share * 100).toFixed(1)} %`;
}

function ms(value: number): string {
  return Number.isNaN(value) ? '-' : `${Math.round(value)} ms`;
}
