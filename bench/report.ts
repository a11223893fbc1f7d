/**
 * Report: results as rows, printed as plain text or written as Markdown.
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import type { TableResult, Verdict } from './harness.ts';
import { type Quartiles, quartilesOf } from './statistics.ts';

/** A title, a sentence, and tables whose first row is the header. */
export interface Section {
  readonly title: string;
  readonly note?: string | undefined;
  readonly tables: readonly Rows[];
}

export type Rows = readonly (readonly string[])[];

export function sectionOf({ table, rounds, verdicts }: TableResult): Section {
  const { baseline, floor, measure, once = [] } = table;
  const head = [
    'contender',
    `${measure}, median`,
    'p25 … p75',
    `÷ ${baseline}`,
    ...(floor === undefined ? [] : [`+ over ${floor}`]),
    ...once,
  ];
  const rows = table.contenders.map(({ name }) => {
    const own = quartilesOf(rounds.map((round) => round[name]!));
    const ratio = quartilesOf(rounds.map((round) => round[name]! / round[baseline]!));
    const added = floor === undefined ? [] : [quartilesOf(rounds.map((round) => round[name]! - round[floor]!))];
    return [
      name,
      figure(own.median),
      `${figure(own.p25)} … ${figure(own.p75)}`,
      withQuartiles(ratio),
      ...added.map(withQuartiles),
      ...once.map((kind) => figure(rounds[0]![`${name}: ${kind}`]!)),
    ];
  });
  return { title: table.title, note: table.note, tables: [[head, ...rows], verdictRows(verdicts)] };
}

function verdictRows(verdicts: readonly Verdict[]): Rows {
  if (verdicts.length === 0) return [];
  const rows = verdicts.map(({ target, measured, verdict }) => [target.text, withQuartiles(measured), verdict]);
  return [['target', 'measured (p25 … p75)', 'verdict'], ...rows];
}

function withQuartiles({ median, p25, p75 }: Quartiles): string {
  return `${figure(median)} (${figure(p25)} … ${figure(p75)})`;
}

/** The machine is not precise enough for more than three digits. */
export function figure(value: number): string {
  // A ratio to a baseline without cost.
  if (!Number.isFinite(value)) return '–';
  const size = Math.abs(value);
  if (size >= 100) return Math.round(value).toLocaleString('en');
  const digits = size >= 10 ? 1 : 2;
  return size < 0.005 ? '0' : value.toFixed(digits);
}

export function asText({ title, note, tables }: Section): string {
  const blocks = tables.filter((rows) => rows.length > 0).map(textRows);
  return [`# ${title}`, ...(note === undefined ? [] : [note]), ...blocks].join('\n\n');
}

function textRows(rows: Rows): string {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  const line = (row: readonly string[]) =>
    row
      .map((cell, column) => (column === 0 ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!)))
      .join('  ');
  return rows.map(line).join('\n');
}

export function asMarkdown({ title, note, tables }: Section): string {
  const blocks = tables.filter((rows) => rows.length > 0).map(markdownRows);
  return [`### ${title}`, ...(note === undefined ? [] : [note]), ...blocks].join('\n\n');
}

function markdownRows([head, ...rows]: Rows): string {
  const line = (cells: readonly string[]) => `| ${cells.join(' | ')} |`;
  const rule = head!.map((_, column) => (column === 0 ? '---' : '---:'));
  return [head!, rule, ...rows].map(line).join('\n');
}

const begin = '<!-- bench:begin -->';
const end = '<!-- bench:end -->';

/** Puts a text between the markers of a file. A file without markers gets them at its end. */
export function writeBetweenMarkers(path: string, text: string): void {
  const before = existsSync(path) ? readFileSync(path, 'utf8') : '# Performance\n';
  const block = `${begin}\n\n${text}\n\n${end}`;
  const from = before.indexOf(begin);
  const to = before.indexOf(end);
  const after =
    from < 0 || to < from
      ? `${before.trimEnd()}\n\n${block}\n`
      : `${before.slice(0, from)}${block}${before.slice(to + end.length)}`;
  writeFileSync(path, after);
}
