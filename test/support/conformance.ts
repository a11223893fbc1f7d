/** Registers the cases of conformance suites that wait for real servers and real time. Cases that allow it run concurrently. */
import type { ConformanceCase } from 'holdfast/testing';
import { it } from 'vitest';
import { historiesTimeoutMs } from './histories.ts';

export function runCases(cases: readonly ConformanceCase[]): void {
  it.concurrent.each(cases.filter(({ alone }) => !alone))('$name', ({ run }) => run(), historiesTimeoutMs);
  it.each(cases.filter(({ alone }) => alone))('$name', ({ run }) => run(), historiesTimeoutMs);
}
