/** Tables of the demo: the figures of both paths side by side, or below each other where the terminal is too narrow. */
import type { Figure, Pair } from './figures.js';
import { causeOf, type Result } from './verdict.js';

export type Shown = Pick<Figure, 'what' | 'unit'> & Pair;

/** The rows of all acts. It leaves out the causes, so that it fits most terminals. */
export function tableOf(results: readonly Result[], width = Number.POSITIVE_INFINITY): string[] {
  const rows = results.map(({ act, row, isJudged }) => ({ titles: [act, row.what], shown: row, isJudged }));
  return laidOut(['act', ''], rows, width);
}

/** The figures of the act that plays. */
export function figuresOf(figures: readonly Shown[], width: number): string[] {
  const rows = figures.map((shown) => ({ titles: [shown.what], shown, isJudged: true }));
  return laidOut([''], rows, width);
}

/** The same in one line, for an output that cannot be redrawn. */
export function lineOf(figures: readonly Shown[]): string {
  return figures.map((shown) => `${shown.what} ${show(shown, 'naked')} and ${show(shown, 'protected')}`).join(', ');
}

/** The cells of one row on the page. */
export function cellsOf(result: Result): string[] {
  const { act, row, isJudged } = result;
  const cause = causeOf(result);
  return [act, row.what, show(row, 'naked'), show(row, 'protected'), isJudged ? cause : `not judged: ${cause}`];
}

/** What was measured, and why the paths differ, one line per row. */
export function causesOf(results: readonly Result[]): string[] {
  return results.map((result) => `${result.act}, ${result.row.what}: ${causeOf(result)}`);
}

interface Line {
  readonly titles: readonly string[];
  readonly shown: Shown;
  readonly isJudged: boolean;
}

function laidOut(titles: readonly string[], lines: readonly Line[], width: number): string[] {
  const head = [...titles, 'naked', 'protected', ''];
  const rows = lines.map(({ titles, shown, isJudged }) => [
    ...titles,
    show(shown, 'naked'),
    show(shown, 'protected'),
    isJudged ? '' : 'not judged',
  ]);
  const widths = head.map((_, column) => Math.max(...[head, ...rows].map((cells) => cells[column]!.length)));
  const isNumber = (column: number) => column === titles.length || column === titles.length + 1;
  const wide = [head, ...rows].map((cells) =>
    cells
      .map((cell, column) => (isNumber(column) ? cell.padStart(widths[column]!) : cell.padEnd(widths[column]!)))
      .join('  ')
      .trimEnd(),
  );
  if (wide.every((line) => line.length <= width)) return wide;
  return rows.flatMap((cells) => {
    const [naked, guarded, remark] = cells.slice(titles.length);
    const values = `  naked ${naked}, protected ${guarded}`;
    return [cells.slice(0, titles.length).join(', '), remark === '' ? values : `${values}, ${remark}`];
  });
}

function show({ unit, ...values }: Shown, path: keyof Pair): string {
  const value = values[path];
  if (Number.isNaN(value)) return 'none served';
  if (unit === 'percent') return `${value.toFixed(1)} %`;
  if (unit === 'ms') return `${Math.round(value)} ms`;
  return unit === 'times' ? value.toFixed(2) : String(value);
}
