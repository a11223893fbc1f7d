/**
 * `npm run soak`: ten million calls through one `standard()`. Some fail, some hang, some are aborted, and none leaves anything behind.
 *
 * Nearly all run in virtual time; 20,000 run on the system clock in real time. The exit code is 1 if the heap grows after the warm-up by more than
 * 0.1 byte per call, or if a listener, a timer or a handle is left. `-- --calls 200000` is shorter.
 */
import { getEventListeners } from 'node:events';
import { setTimeout as pause } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { type Call, standard } from 'holdfast';
import { seededRandom, virtualClock } from 'holdfast/testing';

const { values } = parseArgs({
  options: { calls: { type: 'string', default: '10000000' }, seed: { type: 'string', default: '1' } },
});
const calls = Number(values.calls);
const seed = Number(values.seed);
if (!Number.isSafeInteger(calls) || calls < 1_000)
  throw new Error(`--calls must be at least 1000, got ${values.calls}`);
const collect = globalThis.gc ?? fail('run node with --expose-gc');

const samples = 50;
const warmUpShare = 0.2;
const mostBytesPerCall = 0.1;
/** Calls in progress at once. Limited, because adding a listener to a Node signal takes longer the more it already has. */
const batch = 100;
/** More hosts than the preset is told to remember, so that it evicts some all the time. */
const hosts = 120;
const maxKeys = 100;

interface Sample {
  readonly calls: number;
  readonly heapBytes: number;
}

const random = seededRandom(seed);
const tally = { success: 0, failure: 0, timeout: 0, abort: 0, refused: 0 };
/** A signal that lives as long as a service, such as that of its shutdown. */
const shutdown = new AbortController();
const faults: string[] = [];
const handlesBefore = handles();
const startedMs = performance.now();

const realCalls = Math.min(20_000, Math.floor(calls * 0.02));
const heap = await soakInVirtualTime(calls - realCalls);
await soakInRealTime(realCalls);

const listeners = getEventListeners(shutdown.signal, 'abort').length;
if (listeners > 0) faults.push(`${listeners} listeners left on a signal of the caller`);
const left = handles().filter((name) => !handlesBefore.includes(name));
if (left.length > 0) faults.push(`handles left: ${left.join(', ')}`);
const warm = heap.slice(Math.floor(samples * warmUpShare));
const slope = slopeOf(warm);
const [first, last] = [warm[0]!, warm.at(-1)!];
// A short run has too few samples after its warm-up for a smaller bound to be meaningful.
const mostGrowthBytes = Math.max(mostBytesPerCall * (last.calls - first.calls), 200_000);
if (slope * (last.calls - first.calls) > mostGrowthBytes)
  faults.push(`the heap grows by ${slope.toFixed(3)} bytes per call`);

const total = Object.values(tally).reduce((sum, count) => sum + count, 0);
if (total !== calls) faults.push(`${total} of ${calls} calls ended`);
console.log(`seed ${seed}: ${calls} calls in ${((performance.now() - startedMs) / 1_000).toFixed(0)} s`);
console.log(
  Object.entries(tally)
    .map(([name, count]) => `${name} ${count}`)
    .join(', '),
);
console.log(
  `heap ${megabytes(first)} MB after ${first.calls} calls, ${megabytes(last)} MB after ${last.calls}: ${slope.toFixed(4)} bytes per call`,
);
console.log(`${listeners} listeners, ${left.length} timers or handles left`);
if (faults.length > 0) {
  console.error(faults.join('\n'));
  process.exitCode = 1;
}

async function soakInVirtualTime(count: number): Promise<Sample[]> {
  const clock = virtualClock();
  const service = standard({ clock, random, maxKeys });
  const heapSamples: Sample[] = [];
  for (let begun = 0; begun < count; ) {
    const size = Math.min(batch, count - begun);
    const running = Array.from({ length: size }, () => one(service, (ms) => clock.sleep(ms), 4_000));
    begun += size;
    await clock.runAll({ maxTimers: 1_000_000 });
    await Promise.all(running);
    if (clock.pendingTimers > 0) faults.push(`${clock.pendingTimers} timers left after ${begun} calls`);
    // Longer than the breakers stay open, so that calls are admitted again.
    await clock.advance('5s');
    if (begun >= ((heapSamples.length + 1) * count) / samples) {
      collect();
      heapSamples.push({ calls: begun, heapBytes: process.memoryUsage().heapUsed });
    }
  }
  return heapSamples;
}

async function soakInRealTime(count: number): Promise<void> {
  const service = standard({ random, timeout: '20ms', maxKeys });
  for (let begun = 0; begun < count; begun += 10 * batch) {
    const size = Math.min(10 * batch, count - begun);
    await Promise.all(Array.from({ length: size }, () => one(service, pause, 40)));
  }
  // The timer wheel stops with its last timer, one event loop turn later.
  await pause(100);
}

/** One call: it answers, fails, hangs until it is aborted, or is abandoned by its caller. */
async function one(
  service: ReturnType<typeof standard>,
  sleep: (ms: number) => Promise<void>,
  leavesWithinMs: number,
): Promise<void> {
  const drawn = random();
  const takesMs = random.integer(0, 20);
  const leaves = drawn > 0.99 ? new AbortController() : undefined;
  const task = async ({ signal }: Call): Promise<string> => {
    if (drawn < 0.9) return 'at once';
    if (drawn < 0.94) return sleep(takesMs).then(() => 'later');
    if (drawn < 0.98) return fail('the service fails');
    return new Promise((_, reject) => {
      signal.addEventListener('abort', () => reject(signal.reason), { once: true });
    });
  };
  const given = { key: `host ${random.integer(1, hosts)}`, signal: leaves?.signal ?? shutdown.signal };
  const calling = service.attempt(task, given);
  if (leaves !== undefined) void sleep(random.integer(0, leavesWithinMs)).then(() => leaves.abort('left'));
  const outcome = await calling;
  if (leaves !== undefined && getEventListeners(leaves.signal, 'abort').length > 0) faults.push('a listener left');
  tally[outcome.ok ? 'success' : kindOf(outcome.error)]++;
}

function kindOf(error: unknown): 'failure' | 'timeout' | 'abort' | 'refused' {
  if (error === 'left') return 'abort';
  const code = (error as { readonly code?: string }).code ?? '';
  if (code === 'ERR_TIMEOUT' || code === 'ERR_DEADLINE_EXCEEDED') return 'timeout';
  return code === '' ? 'failure' : 'refused';
}

/** The slope in bytes per call, by least squares. */
function slopeOf(points: readonly Sample[]): number {
  const mean = (of: (point: Sample) => number) => points.reduce((sum, point) => sum + of(point), 0) / points.length;
  const meanCalls = mean((point) => point.calls);
  const meanBytes = mean((point) => point.heapBytes);
  const shared = mean((point) => (point.calls - meanCalls) * (point.heapBytes - meanBytes));
  return shared / mean((point) => (point.calls - meanCalls) ** 2);
}

function megabytes({ heapBytes }: Sample): string {
  return (heapBytes / 1e6).toFixed(2);
}

function handles(): string[] {
  return process.getActiveResourcesInfo().filter((name) => name !== 'TTYWrap' && name !== 'PipeWrap');
}

function fail(message: string): never {
  throw new Error(message);
}
