import { describe, expect, it } from 'vitest';
import type { Row } from '../../../src/cli/demo/figures.js';
import { cellsOf, tableOf } from '../../../src/cli/demo/table.js';
import { notesOf, resultOf, verdictOf } from '../../../src/cli/demo/verdict.js';

const worseTraffic: Row = {
  ...{ what: 'users served', unit: 'percent', aim: 'more', cause: 'a breaker' },
  ...{ naked: 60, protected: 50 },
};
const doubled: Row = {
  ...{ what: 'cards charged twice', unit: 'count', aim: 'none', cause: 'a key' },
  ...{ naked: 4, protected: 0 },
};

const pressed = (row: Row) => resultOf('spike', row, true, false);
const played = (row: Row) => resultOf('spike', row, false, false);
const quick = (row: Row) => resultOf('spike', row, false, true);

describe('the verdict of the demo', () => {
  it('judges all rows of an act that was played as designed', () => {
    const results = [played(worseTraffic), played(doubled)];
    expect(notesOf(results)).toEqual([]);
    expect(verdictOf(results, 7)).toEqual({
      isGood: false,
      line: 'The protected path was NOT better: spike, users served. Seed 7.',
    });
  });

  it('judges only what must never happen in an act in which a button was pressed, and says why', () => {
    const results = [pressed(worseTraffic), pressed(doubled)];
    expect(verdictOf(results, 7)).toMatchObject({ isGood: true, line: expect.stringContaining('all 1 rows') });
    expect(notesOf(results)).toEqual([expect.stringMatching(/^A button of the page was pressed in spike: /)]);
    expect(tableOf(results)).toEqual([
      'act                          naked  protected',
      'spike  users served         60.0 %     50.0 %  not judged',
      'spike  cards charged twice       4          0',
    ]);
    expect(verdictOf([pressed({ ...doubled, protected: 1 })], 7).isGood).toBe(false);
  });

  it('does the same in a quick run, and says that it is too short', () => {
    const results = [quick(worseTraffic), quick(doubled)];
    expect(verdictOf(results, 7).isGood).toBe(true);
    expect(notesOf(results)).toEqual([expect.stringMatching(/^A quick run is too short /)]);
  });

  it('names a cause only where the act shows it', () => {
    expect(cellsOf(played(doubled)).at(-1)).toBe('a key');
    expect(cellsOf(played({ ...doubled, naked: 0 })).at(-1)).toBe('no difference in this run');
    expect(cellsOf(played(worseTraffic)).at(-1)).toBe('not better in this run');
    expect(cellsOf(pressed(doubled)).at(-1)).toMatch(/^a button was pressed in this act/);
    expect(cellsOf(pressed(worseTraffic)).at(-1)).toMatch(/^not judged: a button was pressed in this act/);
  });
});
