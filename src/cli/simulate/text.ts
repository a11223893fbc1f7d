/** The printed report of `simulate`: the settings, a table, load and success per second, and the hazards. */
import type { Hazard } from './hazards.js';
import { beforeSecondsOf, type PlayedScenario, type Settings, scenarios, workersOf } from './scenarios.js';

const columns: readonly (readonly [string, (one: PlayedScenario) => string])[] = [
  ['scenario', ({ name }) => name],
  ['good before', ({ report }) => percent(report.goodBefore)],
  ['during', ({ report }) => percent(report.goodDuring)],
  ['after', ({ report }) => percent(report.goodAfter)],
  ['calls per user', ({ report }) => report.callsPerRequest.toFixed(2)],
  ['of capacity', ({ report }) => percent(report.goodput)],
  ['p99', ({ report }) => (Number.isNaN(report.p99Ms) ? '-' : `${report.p99Ms.toFixed(0)} ms`)],
  ['back after', ({ report }) => backAfter(report.recoverySeconds)],
];

/** The report for a terminal, a log or a file: no colours, no control characters. */
export function textOf(
  file: string,
  settings: Settings,
  played: readonly PlayedScenario[],
  hazards: readonly Hazard[],
): string {
  const { seed, capacity, latencyMs, load, patienceMs } = settings;
  const lines = [
    `${file} in virtual time, seed ${seed}`,
    `The dependency does ${capacity} calls/s, ${workersOf(settings)} at once in ${latencyMs} ms; ${Math.round(capacity * load)} users/s come and wait ${patienceMs} ms.`,
    '',
    ...tableOf([columns.map(([title]) => title), ...played.map((one) => columns.map(([, cell]) => cell(one)))]),
  ];
  for (const one of played) lines.push('', ...plotOf(one, settings));
  lines.push(
    '',
    hazards.length === 0 ? 'No hazards.' : `${hazards.length} ${hazards.length === 1 ? 'hazard' : 'hazards'}:`,
  );
  for (const { code, scenario, message } of hazards)
    lines.push(`- ${code}${scenario === undefined ? '' : ` (${scenario})`}: ${message}.`);
  return lines.join('\n');
}

function tableOf(rows: readonly (readonly string[])[]): string[] {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  return rows.map((row) =>
    row
      .map((cell, column) => (column === 0 ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!)))
      .join('  ')
      .trimEnd(),
  );
}

const bars = ' ▁▂▃▄▅▆▇█';

/** One character per second; the marks enclose the fault. */
function plotOf({ name, seconds }: PlayedScenario, settings: Settings): string[] {
  const { fault, disturbanceSeconds } = scenarios.find((one) => one.name === name)!;
  const most = Math.max(settings.capacity, ...seconds.map(({ calls }) => calls));
  const line = (of: (second: PlayedScenario['seconds'][number]) => number) =>
    seconds.map((second) => bars[Math.ceil(Math.min(1, of(second)) * (bars.length - 1))]).join('');
  const load = line(({ calls }) => calls / most);
  const success = line(({ good, requests }) => (requests === 0 ? 0 : good / requests));
  return [
    `${name}: ${fault} for ${disturbanceSeconds} s`,
    `  ${' '.repeat(9)}${' '.repeat(beforeSecondsOf(settings))}|${'-'.repeat(disturbanceSeconds - 2)}|`,
    `  calls    ${load}  up to ${most}/s`,
    `  success  ${success}  up to 100 %`,
  ].map((text) => text.trimEnd());
}

function percent(value: number): string {
  return Number.isNaN(value) ? '-' : `${value.toFixed(1)} %`;
}

/** If nobody was served before the fault, there is nothing to recover to. */
function backAfter(seconds: number): string {
  if (Number.isNaN(seconds)) return '-';
  return Number.isFinite(seconds) ? `${seconds.toFixed(1)} s` : 'never';
}
