/** Registers the cases of conformance suites that wait for real servers and real time: those that may, run at the same time. */
import type { ConformanceCase } from 'holdfast/testing';
import { it } from 'vitest';
import { historiesTimeoutMs } from './histories.ts';

export function runCases(cases: readonly ConformanceCase[]): void {
  it.concurrent.each(cases.filter(({ alone }) => !alone))('$name', ({ run }) => run(), historiesTimeoutMs);
  it.each(cases.filter(({ alone }) => alone))('$name', ({ run }) => run(), historiesTimeoutMs);
}
