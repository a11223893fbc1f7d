/**
 * Contender: the process of one contender. It measures when the parent asks and is idle otherwise.
 *
 * Arguments: the table and the contender.
 */
import { threadUs } from '../test/support/thread-time.ts';
import { onceMeasures, roundMeasures } from './measures.ts';
import type { Operation } from './table.ts';
import { tables } from './tables/all.ts';

/** Requests of the parent. `calibrate` returns the number of repetitions that fills a sample. */
export type Question =
  | { readonly ask: 'calibrate' }
  | { readonly ask: 'round'; readonly repetitions: number }
  | { readonly ask: 'once'; readonly measure: keyof typeof onceMeasures };

export type Answer = { readonly value: number } | { readonly error: string };

const sampleMs = 30;
/** More than a sample needs, so that a run faster than the calibration still takes long enough. */
const calibratedMs = 1.3 * sampleMs;
const warmUpMs = 300;

const [tableName, contenderName] = process.argv.slice(2);
const table = tables.find(({ name }) => name === tableName)!;
const call = await table.contenders.find(({ name }) => name === contenderName)!.prepare();

process.on('message', async (question: Question) => {
  let answer: Answer;
  try {
    answer = { value: await answerTo(question, call) };
  } catch (error) {
    answer = { error: String(error) };
  }
  process.send?.(answer);
});
process.on('disconnect', () => process.exit());

async function answerTo(question: Question, operation: Operation): Promise<number> {
  if (question.ask === 'calibrate') return calibrate(operation);
  if (question.ask === 'once') return onceMeasures[question.measure](operation);
  // No forced collection before a sample: it also drops compiled code, and everything would look 3 times as expensive.
  return roundMeasures[table.measure](operation, question.repetitions);
}

async function calibrate(operation: Operation): Promise<number> {
  const measure = roundMeasures[table.measure];
  const startedUs = threadUs();
  for (let repetitions = 1; ; ) {
    const beforeUs = threadUs();
    await measure(operation, repetitions);
    const tookMs = (threadUs() - beforeUs) / 1000;
    const isWarm = threadUs() - startedUs >= warmUpMs * 1000;
    if (tookMs < calibratedMs) repetitions = Math.ceil(repetitions * Math.min(8, (1.1 * calibratedMs) / tookMs));
    else if (isWarm) return Math.max(1, Math.ceil((repetitions * calibratedMs) / tookMs));
  }
}
