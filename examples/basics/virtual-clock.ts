/** Testing: minutes of waiting pass instantly, and the jitter is the same in every run. */
import assert from 'node:assert';
import { deadline, exponential, pipeline, retry, timeout } from 'holdfast';
import { seededRandom, virtualClock } from 'holdfast/testing';

const clock = virtualClock();
const delaysMs: number[] = [];
const patient = pipeline(
  deadline({ after: '5m', clock }),
  retry({
    attempts: 4,
    backoff: exponential({ initial: '10s', max: '1m' }),
    clock,
    random: seededRandom(7),
    on: (event) => {
      if (event.type === 'retry') delaysMs.push(Math.round(event.delayMs));
    },
  }),
  timeout({ after: '30s', clock }),
);

const outcome = patient.attempt(() => new Promise(() => {}));
await clock.advance('29s');
assert.deepEqual(delaysMs, [], 'the first attempt still has a second');
await clock.advance('1s');
assert.equal(delaysMs.length, 1, 'it was given up, and the retry waits');

await clock.runAll();
const ended = await outcome;
console.log(ended.ok ? '' : String(ended.error));
console.log('waited', delaysMs, 'ms between attempts;', Math.round(clock.now() / 1_000), 's passed on the clock');
assert.equal(clock.pendingTimers, 0, 'nothing is left behind');
