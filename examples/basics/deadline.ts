/** Deadline: bound a whole call with all its attempts and waits, and pass the remaining time on. */
import { constant, deadline, pipeline, retry, timeout } from 'holdfast';

const bounded = pipeline(deadline('100ms'), retry({ attempts: 50, backoff: constant(20) }), timeout('30ms'));

const startedMs = performance.now();
const outcome = await bounded.attempt(({ attempt }) => {
  throw new Error(`attempt ${attempt} failed`);
});
console.log(`gave up after ${Math.round(performance.now() - startedMs)} ms:`, outcome.ok ? '' : String(outcome.error));

// A call inside a call gets the time that is left, whatever its own deadline allows.
const outer = pipeline(deadline('80ms'));
const inner = pipeline(timeout('10s'));
const nested = await outer.attempt((call) => {
  console.log(`left for everything below: at most ${Math.ceil(call.remainingMs)} ms`);
  return inner.execute(() => new Promise(() => {}), { deadline: call.deadline });
});
console.log(nested.ok ? '' : String(nested.error));

console.log(String(bounded.explain()));
