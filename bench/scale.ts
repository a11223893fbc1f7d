/**
 * Scale: how the cost of a call changes with ten times as many calls in progress. `node bench/scale.ts [name ...]` after a build.
 *
 * No cost here may grow with the number of other calls. A list that is searched per call shows in no other bench, and takes a process down when
 * traffic is ten times normal. Costs are processor time of the thread; both counts run in one process.
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import {
  adaptiveLimit,
  bulkhead,
  cache,
  circuitBreaker,
  constant,
  hedge,
  idempotency,
  keyed,
  memoryStore,
  mutex,
  type Pipeline,
  pipeline,
  rateLimit,
  retry,
  semaphore,
  singleFlight,
  standard,
  timeout,
} from 'holdfast';
import { createFetch } from 'holdfast/fetch';
import { threadUs } from '../test/support/thread-time.ts';

const few = 2_000;
const many = 20_000;
/** Above this ratio, something is searched or copied. Below it, the difference is the collector's work on a larger heap. */
const mostTimes = 3;
const noLimit = 2 * many;

const hangs = () => new Promise<never>(() => {});
const fails = () => Promise.reject(new Error('down'));
const all = <T>(count: number, start: (index: number) => T) =>
  Promise.all(Array.from({ length: count }, (_, index) => start(index)));

/** Calls that all start, and then all end. */
async function together(calls: Pipeline, count: number, keyOf?: (index: number) => string): Promise<void> {
  const gate = gateOf();
  const running = all(count, (index) => calls.attempt(() => gate.opened, keyOf && { key: keyOf(index) }));
  await nextTurn();
  gate.open();
  await running;
}

/** Calls that are aborted one after another, each by its own signal, the last one first. */
async function abortedEach(calls: Pipeline, count: number, operation: () => Promise<unknown> = hangs): Promise<void> {
  const controllers = Array.from({ length: count }, () => new AbortController());
  const running = all(count, (index) => calls.attempt(operation, { key: 'one', signal: controllers[index]!.signal }));
  await nextTurn();
  for (const controller of controllers.reverse()) controller.abort();
  await running;
}

const queued = { limit: 10, queue: noLimit } as const;
const ofRate = { limit: 1_000_000, period: '1s', burst: 10, whenFull: 'wait', queue: noLimit } as const;
const ownKeys = (index: number) => `key ${index}`;

const cases: Readonly<Record<string, (count: number) => Promise<unknown>>> = {
  'calls with a timeout': (count) => together(pipeline(timeout('1m')), count),
  'calls that time out': (count) => all(count, () => pipeline(timeout(5)).attempt(hangs)),
  'calls aborted by a signal each': (count) => abortedEach(pipeline(timeout('1m')), count),
  'calls that share a signal': async (count) => {
    const { signal } = new AbortController();
    const gate = gateOf();
    const running = all(count, () => pipeline(timeout('1m')).execute(() => gate.opened, { signal }));
    await nextTurn();
    gate.open();
    await running;
  },
  'calls aborted by a signal they share': async (count) => {
    const controller = new AbortController();
    const calls = pipeline(timeout('1m'));
    const running = all(count, () => calls.attempt(hangs, { signal: controller.signal }));
    await nextTurn();
    controller.abort();
    await running;
  },
  'standard()': (count) => {
    const calls = standard();
    return all(count, () => calls.attempt(() => nextTurn()));
  },
  'retries that wait': (count) => {
    const calls = pipeline(retry({ attempts: 2, backoff: constant(5) }));
    return all(count, () => calls.attempt(fails));
  },
  'retries aborted as they wait': (count) =>
    abortedEach(pipeline(retry({ attempts: 2, backoff: constant('1m') })), count, fails),
  hedge: (count) => together(pipeline(hedge({ delay: '1m' })), count),
  'queue of a bulkhead': (count) => together(pipeline(bulkhead(queued)), count),
  'queue of a bulkhead, aborted': (count) => abortedEach(pipeline(bulkhead(queued)), count),
  'queue of a bulkhead, by CoDel': (count) => together(pipeline(bulkhead({ ...queued, order: 'codel' })), count),
  'queue of a limit that adapts': (count) => {
    const calls = pipeline(adaptiveLimit({ queue: noLimit }));
    return all(count, () => calls.attempt(() => nextTurn()));
  },
  'queue of a rate limit': (count) => together(pipeline(rateLimit(ofRate)), count),
  'queue of a rate limit, aborted': (count) =>
    abortedEach(pipeline(rateLimit({ ...ofRate, limit: 1, burst: 1 })), count),
  'singleFlight, one key': (count) => together(pipeline(singleFlight({ key: () => 'one' })), count),
  'singleFlight, aborted': (count) => abortedEach(pipeline(singleFlight({ key: () => 'one' })), count),
  'keyed, a key each': (count) =>
    together(pipeline(keyed(() => circuitBreaker({ name: 'keys' }), { maxKeys: noLimit })), count, ownKeys),
  'keyed, more keys than are kept': (count) =>
    together(pipeline(keyed(() => circuitBreaker({ name: 'keys' }), { maxKeys: 100 })), count, ownKeys),
  'fetch, an origin each': (count) => {
    const client = createFetch({ fetch: async () => new Response('fine') });
    return all(count, (index) => client(`http://host-${index}.example/`));
  },
  'mutex of a process, one key': (count) => {
    const locks = mutex({ queue: noLimit });
    return all(count, () => locks.run('one', () => {}));
  },
  'mutex of a process, waiting aborted': async (count) => {
    const locks = mutex({ queue: noLimit });
    const lease = await locks.acquire('one');
    const { signal, ...controller } = shared();
    const waiting = all(count, () => locks.acquire('one', { signal }).catch(() => {}));
    await nextTurn();
    controller.abort();
    await waiting;
    await lease.release();
  },
  'mutex of a process, two keys each': (count) => {
    const locks = mutex({ queue: noLimit });
    return all(count, (index) => locks.run([`a ${index % 7}`, `b ${index % 5}`], () => {}));
  },
  'semaphore of a process': (count) => {
    const permits = semaphore({ permits: 10, queue: noLimit });
    return all(count, () => permits.run('one', () => nextTurn()));
  },
  'mutex before a store, one key': (count) => {
    const locks = mutex({ store: memoryStore(), queue: noLimit, wait: '10m' });
    return all(count, () => locks.run('one', () => {}));
  },
  'mutex before a store, a key each': (count) => {
    const locks = mutex({ store: memoryStore({ max: noLimit }) });
    return all(count, (index) => locks.run(ownKeys(index), () => nextTurn()));
  },
  'cache, one load for all': async (count) => {
    const gate = gateOf();
    const values = cache({ ttl: '1m', load: () => gate.opened });
    const { signal } = shared();
    const running = all(count, () => values.get('one', { signal }));
    await nextTurn();
    gate.open();
    await running;
  },
  'cache, a key each': (count) => {
    const values = cache({ ttl: '1m', max: noLimit, load: () => nextTurn() });
    return all(count, (index) => values.get(ownKeys(index)));
  },
  'cache before a store, a key each': async (count) => {
    const values = cache({ store: memoryStore({ max: noLimit }), ttl: '1m', max: noLimit, load: () => nextTurn() });
    await all(count, (index) => values.get(ownKeys(index)));
    await values.close();
  },
  'cache, one tag for all': async (count) => {
    const values = cache({ ttl: '1m', max: noLimit, tags: () => ['all'], load: async (key: string) => key });
    await all(count, (index) => values.get(ownKeys(index)));
    await values.invalidateTag('all');
  },
  'cache, a key deleted as it is loaded': async (count) => {
    const gate = gateOf();
    const values = cache({ ttl: '1m', load: () => gate.opened });
    const running = all(count, () => Promise.all([values.get('one'), values.delete('one')]));
    await nextTurn();
    gate.open();
    await running;
  },
  'idempotency, a key each': (count) => {
    const once = idempotency({ store: memoryStore({ max: noLimit }), ttl: '1h', onLost: 'rerun' });
    return all(count, (index) => once.run(ownKeys(index), () => nextTurn(), { scope: 'user', input: index }));
  },
  'idempotency, all wait for one': async (count) => {
    const once = idempotency({ store: memoryStore(), ttl: '1h', onLost: 'rerun', wait: '1m' });
    const gate = gateOf();
    const running = all(count, () => once.run('one', () => gate.opened, { scope: 'user', input: 1 }));
    await nextTurn();
    gate.open();
    await running;
  },
};

function gateOf() {
  let open = () => {};
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { opened, open };
}

function shared() {
  const controller = new AbortController();
  return { signal: controller.signal, abort: () => controller.abort() };
}

const named = process.argv.slice(2);
console.log('| under way at once | µs each of 2,000 | of 20,000 | times |');
console.log('|---|---|---|---|');
const grown: string[] = [];
for (const [name, run] of Object.entries(cases)) {
  if (named.length > 0 && !named.includes(name)) continue;
  // The first runs also pay for the compiler.
  for (let warmUps = 0; warmUps < 3; warmUps++) await run(few);
  const ofFew = await costUs(run, few, 5);
  const ofMany = await costUs(run, many, 1);
  const times = ofMany / ofFew;
  if (times > mostTimes) grown.push(name);
  console.log(`| ${name} | ${ofFew.toFixed(1)} | ${ofMany.toFixed(1)} | ${times.toFixed(1)} |`);
}
if (grown.length > 0) console.log(`\nGrows with the number of others: ${grown.join(', ')}`);
process.exit(grown.length > 0 ? 1 : 0);

async function costUs(run: (count: number) => Promise<unknown>, count: number, runs: number): Promise<number> {
  const startedUs = threadUs();
  for (let left = runs; left > 0; left--) await run(count);
  return (threadUs() - startedUs) / (runs * count);
}
