/** Corruption: what a faulty register or a faulty client would have recorded instead. Some of these histories are still valid. */
import type { RecordedOperation } from '../../../src/testing/history/index.js';
import { type Operation, oneOf, type Result } from './simulated-register.js';

export type RegisterHistory = readonly RecordedOperation<Operation, Result>[];

/** Changes one or two things about a history. */
export function corrupt(history: RegisterHistory, random: () => number): RegisterHistory {
  const corrupted = oneOf(corruptions, random)(history, random);
  return random() < 0.2 ? corrupted : oneOf(corruptions, random)(corrupted, random);
}

const corruptions: readonly ((history: RegisterHistory, random: () => number) => RegisterHistory)[] = [
  changeResult,
  changeResult,
  swapResults,
  narrowIntervals,
  narrowIntervals,
  changeOutcome,
];

function changeResult(history: RegisterHistory, random: () => number): RegisterHistory {
  const index = Math.floor(random() * history.length);
  return history.map((record, at) => {
    if (at !== index || record.outcome.kind !== 'ok') return record;
    if (record.operation.type === 'read') return withResult(record, oneOf([undefined, 1, 2, 3, 4], random));
    if (record.operation.type === 'compare-and-set') return withResult(record, record.outcome.result !== true);
    return record;
  });
}

function swapResults(history: RegisterHistory, random: () => number): RegisterHistory {
  const reads = history.filter(({ operation, outcome }) => operation.type === 'read' && outcome.kind === 'ok');
  if (reads.length < 2) return history;
  const [one, other] = [oneOf(reads, random), oneOf(reads, random)];
  return history.map((record) => {
    if (record === one) return withResult(record, resultOf(other));
    if (record === other) return withResult(record, resultOf(one));
    return record;
  });
}

/** Lets an operation end before another one begins that it overlapped. */
function narrowIntervals(history: RegisterHistory, random: () => number): RegisterHistory {
  const [early, late] = [oneOf(history, random), oneOf(history, random)];
  if (early === late || early.outcome.kind !== 'ok') return history;
  const { endedAt } = early.outcome;
  if (late.invokedAt > endedAt || late.invokedAt < early.invokedAt) return history;
  if (late.outcome.kind === 'ok' && late.outcome.endedAt < endedAt) return history;
  const earlier = { ...early, outcome: { ...early.outcome, endedAt: late.invokedAt } };
  return history.map((record) => {
    if (record === early) return earlier;
    return record === late ? { ...late, invokedAt: endedAt } : record;
  });
}

function changeOutcome(history: RegisterHistory, random: () => number): RegisterHistory {
  const chosen = oneOf(history, random);
  const kind = oneOf(['failed', 'unknown'] as const, random);
  return history.map((record) => (record === chosen ? { ...record, outcome: { kind } } : record));
}

function withResult(record: RecordedOperation<Operation, Result>, result: Result): RegisterHistory[number] {
  return record.outcome.kind === 'ok' ? { ...record, outcome: { ...record.outcome, result } } : record;
}

function resultOf({ outcome }: RecordedOperation<Operation, Result>): Result {
  return outcome.kind === 'ok' ? outcome.result : undefined;
}
