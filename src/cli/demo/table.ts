/** The final table of the demo, and how it formats numbers. */
import type { Row } from './acts.js';

export interface Result {
  readonly act: string;
  readonly row: Row;
}

/** The cells of one row, including the reason. */
export function cellsOf({ act, row }: Result): string[] {
  return [act, row.what, show(row.naked, row), show(row.protected, row), row.cause];
}

/** First column left-aligned, numbers right-aligned. It leaves out the reasons, which were printed after each act, so that it fits any terminal. */
export function tableOf(results: readonly Result[]): string[] {
  const head = ['act', '', 'naked', 'protected'];
  const rows = results.map(cellsOf);
  const widths = head.map((title, column) =>
    Math.max(...[head, ...rows].map((cells) => (cells[column] ?? title).length)),
  );
  const line = (cells: readonly string[]) =>
    widths
      .map((width, column) => (column < 2 ? cells[column]!.padEnd(width) : cells[column]!.padStart(width)))
      .join('  ');
  return [line(head), ...rows.map(line)];
}

function show(value: number, { unit }: Row): string {
  if (Number.isNaN(value)) return 'none served';
  if (unit === 'percent') return `${value.toFixed(1)} %`;
  if (unit === 'ms') return `${Math.round(value)} ms`;
  return unit === 'times' ? value.toFixed(2) : String(value);
}
