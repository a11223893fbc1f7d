/** Timeout: stop waiting for an attempt, and end its work. */
import { setTimeout as sleep } from 'node:timers/promises';
import { isAbandoned, pipeline, timeout } from 'holdfast';

const quick = pipeline(timeout('50ms'));

/** Passes the signal on, so that the work ends when the wait does. */
async function slowReport(signal: AbortSignal): Promise<string> {
  signal.addEventListener('abort', () => console.log('the work was told to end'));
  await sleep(5_000, undefined, { signal });
  return 'report';
}

// `attempt` returns the outcome and never throws; `execute` would throw the error.
const outcome = await quick.attempt(({ signal }) => slowReport(signal));
if (!outcome.ok) {
  console.log(String(outcome.error));
  console.log('started, outcome unknown:', isAbandoned(outcome.error));
}

console.log(await quick.execute(() => 'in time'));
