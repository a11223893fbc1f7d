/** Which figures are a hazard, and which are not. */
import { describe, expect, it } from 'vitest';
import { hazardsOf } from '../../src/cli/simulate/hazards.js';
import type { NamedScenario, PlayedScenario, Settings } from '../../src/cli/simulate/scenarios.js';
import type { Report } from '../../src/testing/overload/overload.js';

const settings: Settings = { seed: 1, capacity: 200, latencyMs: 100, load: 0.7, patienceMs: 2_000 };

const sound: Report = {
  ...{ seed: 1, goodput: 95, p99Ms: 300, callsPerRequest: 1.1, recoverySeconds: 2, wasted: 1, shedBefore: 0 },
  ...{ goodBefore: 100, goodDuring: 50, goodAfter: 99 },
};

function played(changes: Partial<Report>, name: NamedScenario['name'] = 'spike', more: Partial<PlayedScenario> = {}) {
  const report = { ...sound, ...changes };
  return { name, report, seconds: [], unended: 0, complaint: undefined, warnings: [], ...more };
}

const codesOf = (...all: readonly PlayedScenario[]) =>
  hazardsOf(all, settings).map(({ code, scenario }) => `${code} ${scenario ?? 'everywhere'}`);

describe('hazardsOf', () => {
  it('finds none in a pipeline that sheds, keeps to its budget and is back soon', () => {
    expect(codesOf(played({}), played({}, 'dead'))).toEqual([]);
  });

  it.each([
    ['retry-storm', { callsPerRequest: 1.51 }, { callsPerRequest: 1.5 }],
    ['goodput-collapse', { goodput: 49.9 }, { goodput: 50 }],
    ['no-recovery', { recoverySeconds: Number.POSITIVE_INFINITY }, { recoverySeconds: 30 }],
    ['no-recovery', { recoverySeconds: 30.5 }, { recoverySeconds: 30 }],
  ])('names %s from its limit on', (code, beyond, within) => {
    expect(codesOf(played(beyond))).toEqual([`${code} spike`]);
    expect(codesOf(played(within))).toEqual([]);
  });

  it('takes little goodput for no hazard where the dependency itself does little', () => {
    expect(codesOf(played({ goodput: 3 }, 'brown-out'), played({ goodput: 0 }, 'dead'))).toEqual([]);
  });

  it('takes little goodput for no hazard where users ask for little', () => {
    const codes = (goodput: number) =>
      hazardsOf([played({ goodput })], { ...settings, load: 0.04 }).map(({ code }) => code);
    expect(codes(20)).toEqual([]);
    expect(codes(19.9)).toEqual(['goodput-collapse']);
  });

  it('names once what is wrong before any fault', () => {
    const poor = { goodBefore: 80 };
    expect(codesOf(played(poor), played(poor, 'dead'))).toEqual(['refuses-when-well everywhere']);
    expect(codesOf(played({ goodBefore: Number.NaN }))).toEqual(['refuses-when-well everywhere']);
  });

  it('tells what most users get who are not served although nothing is wrong, and whose doing it is', () => {
    const told = (complaint: PlayedScenario['complaint']) =>
      hazardsOf([played({ goodBefore: 0 }, 'dead', { complaint })], settings)[0]?.message;
    const full = 'BulkheadFullError [ERR_BULKHEAD_FULL]: "bulkhead" is full';
    expect(told({ text: full, isPolicys: true })).toMatch(
      /get "BulkheadFullError \[.*; a limit or a timeout is too small/,
    );
    expect(told({ text: 'Error: oops', isPolicys: false })).toMatch(
      /get "Error: oops"; .*: a policy of your own throws$/,
    );
    expect(told(undefined)).toMatch(/nothing is wrong; a limit or a timeout is too small/);
  });

  it('says that virtual time does not reach what never ends', () => {
    const [hazard] = hazardsOf([played({}, 'slow', { unended: 3 })], settings);
    expect(hazard).toMatchObject({ code: 'never-ends', scenario: 'slow' });
    expect(hazard?.message).toContain('node:timers');
  });

  it('blames calls that never end for users who are not served, unless most of them get an error', () => {
    const hung = { unended: 3, complaint: undefined };
    expect(codesOf(played({ goodBefore: 0 }, 'dead', hung))).toEqual(['never-ends dead']);
    const complaint = { text: 'Error: oops', isPolicys: false };
    expect(codesOf(played({ goodBefore: 0 }, 'dead', { ...hung, complaint }))).toEqual([
      'refuses-when-well everywhere',
      'never-ends dead',
    ]);
  });

  it('passes on what explain() doubts, once', () => {
    const warnings = [{ code: 'retry-without-budget', message: 'no budget' }];
    expect(codesOf(played({}, 'spike', { warnings }), played({}, 'dead', { warnings }))).toEqual([
      'retry-without-budget everywhere',
    ]);
  });
});
