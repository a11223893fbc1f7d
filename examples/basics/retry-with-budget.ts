/** Retry with a budget: repeat failed calls, but never send a failing service a multiple of its load. */
import { attemptsOf, exponential, pipeline, retry, retryBudget } from 'holdfast';

// One budget for all calls to one dependency: ten successes pay for one retry, and the balance starts at five.
const budget = retryBudget({ ratio: 0.1, initial: 5, minPerSecond: 0 });
const prices = pipeline(
  retry({
    attempts: 3,
    backoff: exponential({ initial: 5, max: 50 }),
    budget,
    on: (event) => {
      if (event.type === 'retry' && event.attempt === 1) console.log('retrying after:', String(event.error));
    },
  }),
);

const price = await prices.execute(({ attempt }) => {
  if (attempt === 1) throw new Error('connection reset');
  return 42;
});
console.log('one bad moment is repaired, price:', price);

let calls = 0;
const down = () => {
  calls++;
  throw new Error('down');
};
const quiet = pipeline(retry({ attempts: 3, backoff: exponential({ initial: 5, max: 50 }), budget }));
for (let user = 0; user < 100; user++) {
  const outcome = await quiet.attempt(down);
  if (user === 99 && !outcome.ok)
    console.log('the last user was given up because of:', attemptsOf(outcome.error)?.stoppedBy);
}
console.log(`100 users of a service that is down made ${calls} calls, not 300`);

// A wrapped function is called like the original. A purchase must not run twice.
const lookUp = prices.wrap(async (symbol: string) => `${symbol}: 42`);
console.log(await lookUp('KELP'));
await prices.execute(({ idempotencyKey }) => console.log('sent with Idempotency-Key:', idempotencyKey), {
  unsafe: true,
  idempotencyKey: 'order-1001',
});
