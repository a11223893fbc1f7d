/** The chart of a scenario is one file that needs nothing else. */
import { describe, expect, it } from 'vitest';
import type { PlayedScenario, Settings } from '../../src/cli/simulate/scenarios.js';
import { svgOf } from '../../src/cli/simulate/svg.js';

const settings: Settings = { seed: 1, capacity: 200, latencyMs: 100, load: 0.7, patienceMs: 2_000 };

function played(recoverySeconds: number, calls = 140): PlayedScenario {
  return {
    name: 'spike',
    report: {
      ...{ seed: 1, goodput: 95, p99Ms: 300, callsPerRequest: 1.1, recoverySeconds, wasted: 1, shedBefore: 0 },
      ...{ goodBefore: 100, goodDuring: 50, goodAfter: 99 },
    },
    seconds: Array.from({ length: 80 }, (_, index) => ({ second: index - 20, requests: index % 7, calls, good: 0 })),
    unended: 0,
    complaint: undefined,
    warnings: [],
  };
}

describe('svgOf', () => {
  const svg = svgOf(played(2), settings);

  it('is well-formed: every element that begins ends', () => {
    const open: string[] = [];
    for (const [, closes, name, ends] of svg.matchAll(/<(\/?)([a-z]+)\b[^>]*?(\/?)>/g)) {
      if (closes === '/') expect(open.pop()).toBe(name);
      else if (ends !== '/') open.push(name!);
    }
    expect(open).toEqual([]);
    expect(svg).not.toMatch(/NaN|undefined|Infinity/);
  });

  it('names no other file, has no script, and says in words what it shows', () => {
    expect(svg.replace('xmlns="http://www.w3.org/2000/svg"', '')).not.toMatch(/https?:|href|<script|@import|url\(/);
    expect(svg).toMatch(
      /<title id="title">spike<\/title><desc id="summary">ten times as many users come.*back 2.0 s later/,
    );
  });

  it('marks the recovery where there is one', () => {
    expect(svg).toContain('class="back"');
    expect(svgOf(played(Number.POSITIVE_INFINITY), settings)).not.toContain('class="back"');
  });

  it('leaves the number of the capacity out where it would touch another', () => {
    expect(svg).toContain('>200</text>');
    expect(svgOf(played(2, 5_000), settings)).not.toContain('>200</text>');
  });
});
