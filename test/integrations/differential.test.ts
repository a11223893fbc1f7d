/** Where the semantics agree, other libraries are the oracle: p-retry, cockatiel and opossum run the same script in faked time. */
import {
  ConsecutiveBreaker,
  ConstantBackoff,
  circuitBreaker as cockatielBreaker,
  retry as cockatielRetry,
  ExponentialBackoff,
  handleAll,
  noJitterGenerator,
} from 'cockatiel';
import fc from 'fast-check';
import Opossum from 'opossum';
import pRetry, { AbortError } from 'p-retry';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { constant, exponential, isRejected, pipeline, retry, type Strategy } from '../../src/index.js';
import { fromOpossum, fromOpossumOptions, type OpossumBreaker } from '../../src/integrations/opossum.js';
import { abortErrors, fromPRetry } from '../../src/integrations/p-retry.js';
import { circuitBreaker } from '../../src/policies/circuit-breaker/circuit-breaker.js';
import { virtualClock } from '../../src/testing/index.js';

type Ending = 'value' | 'error' | 'type-error' | 'network' | 'abort';

/** One attempt of a script. The script is one object, whoever runs it. */
function attemptOf(ending: Ending, attempt: number): unknown {
  if (ending === 'value') return `value ${attempt}`;
  if (ending === 'type-error') throw new TypeError(`mistake ${attempt}`);
  if (ending === 'network') throw new TypeError('fetch failed');
  if (ending === 'abort') throw new AbortError(new Error(`final ${attempt}`));
  throw new Error(`down ${attempt}`);
}

interface Told {
  readonly calls: readonly number[];
  readonly ended: string;
}

/** When the other library called its operation, and how the run ended, in faked time. */
async function inFakedTime(
  run: (task: (attempt: number) => unknown) => Promise<unknown>,
  script: readonly Ending[],
): Promise<Told> {
  const startedMs = Date.now();
  const calls: number[] = [];
  const running = run((attempt) => {
    calls.push(Date.now() - startedMs);
    return attemptOf(script[Math.min(attempt, script.length) - 1]!, attempt);
  }).then(String, String);
  await vi.runAllTimersAsync();
  return { calls, ended: await running };
}

/** The same for ours, in virtual time. */
async function inVirtualTime(
  policies: (clock: ReturnType<typeof virtualClock>) => Strategy[],
  script: readonly Ending[],
): Promise<Told> {
  const clock = virtualClock();
  const calls: number[] = [];
  const running = pipeline(...policies(clock))
    .execute(({ attempt }) => {
      calls.push(clock.now());
      return attemptOf(script[Math.min(attempt, script.length) - 1]!, attempt);
    })
    .then(String, String);
  await clock.runAll();
  return { calls, ended: await running };
}

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

describe('fromPRetry beside p-retry', () => {
  it('makes the same attempts after the same waits and ends with the same, whatever the options', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.record({
          retries: fc.integer({ min: 0, max: 8 }),
          factor: fc.constantFrom(0, 0.5, 1, 1.7, 2, 3),
          minTimeout: fc.constantFrom(0, 0.3, 1, 33, 1_000),
          maxTimeout: fc.constantFrom(0.5, 100, 2_000, Number.POSITIVE_INFINITY),
        }),
        fc.array(fc.constantFrom<Ending[]>('error', 'error', 'error', 'value', 'type-error', 'network', 'abort'), {
          minLength: 1,
          maxLength: 10,
        }),
        async (options, script) => {
          const theirs = await inFakedTime((task) => pRetry(task, options), script);
          const ours = await inVirtualTime(
            (clock) => [abortErrors(), retry({ ...fromPRetry(options), clock })],
            script,
          );
          expect(ours).toEqual(theirs);
        },
      ),
      { numRuns: 150 },
    );
  });

  it('tells onFailedAttempt the same', async () => {
    const script: Ending[] = ['error', 'network', 'error', 'error'];
    const tell = (told: unknown[]) => (context: object) =>
      void told.push({ ...context, error: String((context as { error: unknown }).error) });
    const theirs: unknown[] = [];
    const ours: unknown[] = [];
    await inFakedTime((task) => pRetry(task, { retries: 3, onFailedAttempt: tell(theirs) }), script);
    await inVirtualTime(
      (clock) => [retry({ ...fromPRetry({ retries: 3, onFailedAttempt: tell(ours) }), clock })],
      script,
    );
    expect(ours).toEqual(theirs);
    expect(ours).toHaveLength(4);
  });
});

describe('retry beside cockatiel', () => {
  const script: Ending[] = ['error'];
  const others = (backoff: ConstantBackoff | ExponentialBackoff<unknown>) =>
    inFakedTime(
      (task) => cockatielRetry(handleAll, { maxAttempts: 6, backoff }).execute(({ attempt }) => task(attempt + 1)),
      script,
    );

  it('waits the same with a constant backoff', async () => {
    const theirs = await others(new ConstantBackoff(250));
    expect(await inVirtualTime((clock) => [retry({ attempts: 7, backoff: constant(250), clock })], script)).toEqual(
      theirs,
    );
  });

  it('waits the same with an exponential backoff without jitter', async () => {
    const theirs = await others(
      new ExponentialBackoff({ initialDelay: 100, maxDelay: 1_000, exponent: 2, generator: noJitterGenerator }),
    );
    const backoff = exponential({ initial: 100, max: 1_000, factor: 2, jitter: 'none' });
    expect(await inVirtualTime((clock) => [retry({ attempts: 7, backoff, clock })], script)).toEqual(theirs);
    expect(theirs.calls).toHaveLength(7);
  });
});

/** What a breaker does with a script of calls and pauses: `ok`, `failed`, or `refused` for each call. */
type Step = 'success' | 'failure' | 'pause';
const steps = fc.array(fc.constantFrom<Step[]>('success', 'success', 'failure', 'failure', 'failure', 'pause'), {
  maxLength: 60,
});

async function play(
  script: readonly Step[],
  call: (fails: boolean) => Promise<string>,
  pause: () => Promise<unknown>,
): Promise<string[]> {
  const told: string[] = [];
  for (const step of script) {
    if (step === 'pause') await pause();
    else told.push(await call(step === 'failure'));
  }
  return told;
}

const openForMs = 1_000;
const operation = (fails: boolean) => async () => {
  if (fails) throw new Error('down');
};

/** The same script through a breaker of ours. */
function playOurs(script: readonly Step[], options: Parameters<typeof circuitBreaker>[0]): Promise<string[]> {
  const clock = virtualClock();
  const guarded = pipeline(circuitBreaker({ random: () => 0.999_999, ...options, clock }));
  const call = async (fails: boolean) => {
    const outcome = await guarded.attempt(operation(fails));
    if (outcome.ok) return 'ok';
    return isRejected(outcome.error) ? 'refused' : 'failed';
  };
  return play(script, call, () => clock.advance(openForMs));
}

describe('circuitBreaker beside cockatiel', () => {
  it('opens, probes and closes at the same calls when consecutive failures count', async () => {
    await fc.assert(
      fc.asyncProperty(steps, async (script) => {
        const theirs = cockatielBreaker(handleAll, { halfOpenAfter: openForMs, breaker: new ConsecutiveBreaker(3) });
        const call = (fails: boolean) =>
          theirs.execute(operation(fails)).then(
            () => 'ok',
            (error: { isBrokenCircuitError?: boolean }) => (error.isBrokenCircuitError ? 'refused' : 'failed'),
          );
        const expected = await play(script, call, () => vi.advanceTimersByTimeAsync(openForMs));
        const options = {
          window: { consecutive: 3 },
          openFor: openForMs,
          maxOpenFor: openForMs,
          halfOpen: { permits: 1, successes: 1 },
        };
        expect(await playOurs(script, options)).toEqual(expected);
      }),
      { numRuns: 100 },
    );
  });
});

describe('circuitBreaker beside opossum', () => {
  type Breaker = OpossumBreaker & { fire(fails: boolean): Promise<unknown>; shutdown(): void };
  const CircuitBreaker = Opossum as unknown as new (action: (fails: boolean) => unknown, options: object) => Breaker;
  // One failure opens the circuit in any state unless there are too few calls, and nothing is forgotten when it closes again.
  const options = () => ({
    timeout: false as const,
    errorThresholdPercentage: 50,
    volumeThreshold: 5,
    resetTimeout: openForMs,
    rollingCountTimeout: 3_600_000,
  });
  const untilOpen = fc.array(fc.boolean(), { minLength: 1, maxLength: 40 }).filter((fails) => {
    // At exactly the threshold opossum waits for one more call, and it checks only when a call fails.
    const share = (count: number) => fails.slice(0, count).filter(Boolean).length / count;
    return fails.every(
      (failed, index) => index < 4 || (share(index + 1) !== 0.5 && (failed || share(index + 1) < 0.5)),
    );
  });

  it('opens at the same call when a share of failures counts', async () => {
    await fc.assert(
      fc.asyncProperty(untilOpen, async (script) => {
        const breaker = new CircuitBreaker((fails) => operation(fails)(), options());
        const call = (fails: boolean) =>
          breaker.fire(fails).then(
            () => 'ok',
            (error: { code?: string }) => (error.code === 'EOPENBREAKER' ? 'refused' : 'failed'),
          );
        const asSteps = script.map((fails): Step => (fails ? 'failure' : 'success'));
        const expected = await play(asSteps, call, async () => {});
        breaker.shutdown();
        expect(await playOurs(asSteps, fromOpossumOptions(options()).circuitBreaker)).toEqual(expected);
      }),
      { numRuns: 200 },
    );
  });

  it('is the very same through fromOpossum', async () => {
    await fc.assert(
      fc.asyncProperty(steps, async (script) => {
        const fired = new CircuitBreaker((fails) => operation(fails)(), options());
        const guarding = new CircuitBreaker((fails) => operation(fails)(), options());
        const guarded = pipeline(fromOpossum(guarding));
        const pause = () => vi.advanceTimersByTimeAsync(openForMs);
        const viaFire = await play(
          script,
          (fails) =>
            fired.fire(fails).then(
              () => 'ok',
              (error: { code?: string }) => (error.code === 'EOPENBREAKER' ? 'refused' : 'failed'),
            ),
          pause,
        );
        const viaPipeline = await play(
          script,
          async (fails) => {
            const outcome = await guarded.attempt(operation(fails));
            if (outcome.ok) return 'ok';
            return isRejected(outcome.error) ? 'refused' : 'failed';
          },
          pause,
        );
        fired.shutdown();
        guarding.shutdown();
        expect(viaPipeline).toEqual(viaFire);
      }),
      { numRuns: 100 },
    );
  });
});
