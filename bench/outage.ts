/**
 * Outage (P8): after how many failing calls a circuit opens when a busy service goes down, and whether it opens without a reason. In virtual time:
 * 5,000 calls per second, one after the other.
 */
import { EventEmitter } from 'node:events';
import { type Clock, circuitBreaker, isRefusal } from 'holdfast';
import { figure, type Section } from './report.ts';

const callsPerSecond = 5_000;
const stepMs = 1000 / callsPerSecond;
const healthySeconds = 40;
const mostFailingCalls = 60 * callsPerSecond;
const steadyHours = 1;

const success = { ok: true, value: undefined } as const;
const failure = { ok: false, error: new Error('down') } as const;

/** Advanced by hand. A breaker has no timers. */
class HandClock implements Clock {
  nowMs = 0;

  now(): number {
    return this.nowMs;
  }

  wallNow(): number {
    return this.nowMs;
  }

  schedule(): void {
    throw new Error('nothing waits here');
  }

  cancel(): void {}
}

export async function outageSection(random: () => number): Promise<Section> {
  const opened = { holdfast: holdfastOutage(), cockatiel: await cockatielOutage(), opossum: await opossumOutage() };
  const rows = Object.entries(opened).map(([name, calls]) => [name, figure(calls), `${figure(calls * stepMs)} ms`]);
  const atPercent = [1, 10].map((percent) => ({ percent, openings: openingsInSteadyTraffic(percent / 100, random) }));
  const verdict = (isMet: boolean) => (isMet ? 'met' : 'missed');
  return {
    title: 'Outage of a service that gets 5,000 calls per second',
    note:
      'In virtual time, with default options. cockatiel has no default breaker and gets opossum’s: half of the calls in 10 s. opossum runs ' +
      'without percentiles, because with them it cannot keep up with failing calls at this rate.',
    tables: [
      [['breaker', 'failing calls until open', 'time until open'], ...rows],
      [
        ['target', 'measured', 'verdict'],
        ['P8: open after ≤ 250 failing calls', figure(opened.holdfast), verdict(opened.holdfast <= 250)],
        ...atPercent.map(({ percent, openings }) => [
          `P8: no opening in ${steadyHours} h in which ${percent} % fail`,
          figure(openings),
          verdict(openings === 0),
        ]),
      ],
    ],
  };
}

function holdfastOutage(): number {
  const clock = new HandClock();
  const breaker = circuitBreaker({ clock });
  for (let left = healthySeconds * callsPerSecond; left > 0; left--) {
    clock.nowMs += stepMs;
    const permit = breaker.admit();
    if (!isRefusal(permit)) permit.settle(success);
  }
  for (let calls = 0; calls < mostFailingCalls; calls++) {
    clock.nowMs += stepMs;
    const permit = breaker.admit();
    if (isRefusal(permit)) return calls;
    permit.settle(failure);
  }
  return Number.POSITIVE_INFINITY;
}

function openingsInSteadyTraffic(failureRate: number, random: () => number): number {
  const clock = new HandClock();
  const breaker = circuitBreaker({ clock });
  let openings = 0;
  for (let left = steadyHours * 3600 * callsPerSecond; left > 0; left--) {
    clock.nowMs += stepMs;
    const permit = breaker.admit();
    if (isRefusal(permit)) {
      openings++;
      breaker.reset();
    } else permit.settle(random() < failureRate ? failure : success);
  }
  return openings;
}

async function cockatielOutage(): Promise<number> {
  const { CircuitState, circuitBreaker, handleAll, SamplingBreaker } = await import('cockatiel');
  const breaker = new SamplingBreaker({ threshold: 0.5, duration: 10_000 });
  const guarded = circuitBreaker(handleAll, { halfOpenAfter: 5000, breaker });
  return callsUntilOpen(
    (task) => guarded.execute(task),
    () => guarded.state !== CircuitState.Closed,
  );
}

async function opossumOutage(): Promise<number> {
  const { default: CircuitBreaker } = await import('opossum');
  const rotateBucketController = new EventEmitter();
  let task: Task = succeed;
  const guarded = new CircuitBreaker(() => task(), {
    ...{ rollingPercentilesEnabled: false, enableSnapshots: false, rotateBucketController },
  });
  try {
    return await callsUntilOpen(
      (next) => {
        task = next;
        return guarded.fire();
      },
      () => guarded.opened,
      () => rotateBucketController.emit('rotate'),
    );
  } finally {
    guarded.shutdown();
  }
}

type Task = () => Promise<unknown>;

const succeed: Task = async () => 1;
const fail: Task = async () => {
  throw failure.error;
};

/** For breakers that use `Date.now`, which is replaced by the virtual clock meanwhile. */
async function callsUntilOpen(
  call: (task: Task) => Promise<unknown>,
  isOpen: () => boolean,
  onSecond: () => void = () => {},
): Promise<number> {
  const realNow = Date.now;
  const startedMs = realNow();
  let calls = 0;
  Date.now = () => Math.floor(startedMs + calls * stepMs);
  const next = async (task: Task) => {
    if (++calls % callsPerSecond === 0) onSecond();
    await call(task).catch(() => {});
  };
  try {
    const healthyCalls = healthySeconds * callsPerSecond;
    while (calls < healthyCalls) await next(succeed);
    while (!isOpen() && calls < healthyCalls + mostFailingCalls) await next(fail);
    return isOpen() ? calls - healthyCalls : Number.POSITIVE_INFINITY;
  } finally {
    Date.now = realNow;
  }
}
