/** Verdict: which rows of a run are judged, why the paths differ, and whether the protected one was better. */
import { isBetter, type Row } from './figures.js';

export interface Result {
  readonly act: string;
  readonly row: Row;
  /** Someone pressed a button of the page in this act. */
  readonly wasDisturbed: boolean;
  readonly isJudged: boolean;
}

/** @param isShort - The run is too short to judge traffic. */
export function resultOf(act: string, row: Row, wasDisturbed: boolean, isShort: boolean): Result {
  // What must never happen must not happen in a short or disturbed act either.
  return { act, row, wasDisturbed, isJudged: row.aim === 'none' || !(wasDisturbed || isShort) };
}

/** Why the protected path was better, where this run shows it. */
export function causeOf({ row, wasDisturbed }: Result): string {
  if (wasDisturbed) return 'a button was pressed in this act, so this run does not show why';
  if (Object.is(row.naked, row.protected)) return 'no difference in this run';
  return isBetter(row) ? row.cause : 'not better in this run';
}

/** One sentence for each reason for which rows are not judged. */
export function notesOf(results: readonly Result[]): string[] {
  const disturbed = new Set(results.filter((one) => one.wasDisturbed).map(({ act }) => act));
  const isShort = results.some((one) => !one.isJudged && !one.wasDisturbed);
  return [
    ...(disturbed.size === 0
      ? []
      : [
          `A button of the page was pressed in ${[...disturbed].join(', ')}: no longer the act that was designed, so only what must never happen is judged there.`,
        ]),
    ...(isShort ? ['A quick run is too short to judge traffic, so it judges only what must never happen.'] : []),
  ];
}

export interface Verdict {
  readonly isGood: boolean;
  readonly line: string;
}

export function verdictOf(results: readonly Result[], seed: number): Verdict {
  const judged = results.filter(({ isJudged }) => isJudged);
  const worse = judged.filter(({ row }) => !isBetter(row));
  if (worse.length === 0)
    return { isGood: true, line: `The protected path kept its word in all ${judged.length} rows that were judged.` };
  const rows = worse.map(({ act, row }) => `${act}, ${row.what}`).join('; ');
  return { isGood: false, line: `The protected path was NOT better: ${rows}. Seed ${seed}.` };
}
