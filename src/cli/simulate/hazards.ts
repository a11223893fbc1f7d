/** Hazards: behaviour in a scenario by which a service harms itself or its dependency, each with its figures and a possible remedy. */
import { spikeFactor } from '../../testing/overload/overload.js';
import { afterSeconds, type NamedScenario, type PlayedScenario, type Settings, scenarios } from './scenarios.js';

/** One hazard. */
export interface Hazard {
  /** Stable, for programs: `'retry-storm'` and so on; a warning of `explain()` keeps its own code. */
  readonly code: string;
  /** Undefined if it concerns all scenarios. */
  readonly scenario: NamedScenario['name'] | undefined;
  readonly message: string;
}

/** Calls per user during the fault. With a budget of a tenth it stays near 1.1; two attempts without a budget make 2. */
const mostCallsPerRequest = 1.5;
/** The least goodput in a spike, in percent of the capacity, or of what users ask for if that is less. */
const leastGoodput = 50;
/** The least share of users served while nothing is wrong, in percent. */
const leastGoodBefore = 95;
/** Seconds after the fault. A fault of ten or twenty seconds should not cost much more time than it lasts. */
const longestRecoverySeconds = 30;

/** The hazards of all scenarios, in their order. */
export function hazardsOf(played: readonly PlayedScenario[], settings: Settings): readonly Hazard[] {
  const [first] = played;
  const doubts = (first?.warnings ?? []).map(({ code, message }) => ({ code, scenario: undefined, message }));
  const seen = played.flatMap((one) => hazardsIn(one, settings));
  // What is wrong before the fault is wrong in every scenario.
  const [harm, ...others] = seen.filter(({ code }) => code === 'refuses-when-well');
  return [
    ...(harm === undefined ? [] : [{ ...harm, scenario: undefined }]),
    ...seen.filter((hazard) => hazard !== harm && !others.includes(hazard)),
    ...doubts,
  ];
}

function hazardsIn({ name, report, unended, complaint }: PlayedScenario, settings: Settings): readonly Hazard[] {
  const found: Hazard[] = [];
  const add = (code: string, message: string) => found.push({ code, scenario: name, message });
  const { callsPerRequest, goodBefore, goodput, recoverySeconds } = report;
  if (unended > 0) {
    add(
      'never-ends',
      `${unended} calls never ended: something in the pipeline waits for a timer of node:timers or for I/O, which virtual time does not reach; give it the clock, or leave it out`,
    );
  }
  // Users who got no error wait for the calls that never end, which have been named.
  const isHung = unended > 0 && complaint === undefined;
  if (!(goodBefore >= leastGoodBefore) && !isHung) {
    const got = complaint === undefined ? '' : `, most of the others get "${complaint.text}"`;
    const advice =
      complaint?.isPolicys === false
        ? 'no policy of holdfast threw it, and the dependency is healthy: a policy of your own throws'
        : 'a limit or a timeout is too small for --capacity, --latency and --load';
    add(
      'refuses-when-well',
      `only ${percent(goodBefore)} of the users are served in ${settings.patienceMs} ms while nothing is wrong${got}; ${advice}`,
    );
  }
  if (callsPerRequest > mostCallsPerRequest) {
    add(
      'retry-storm',
      `the dependency gets ${callsPerRequest.toFixed(2)} calls per user during the fault, more than ${mostCallsPerRequest}; give retries and hedges a budget: retryBudget()`,
    );
  }
  const least = leastGoodput * Math.min(1, spikeFactor * settings.load);
  if (name === 'spike' && goodput < least) {
    add(
      'goodput-collapse',
      `only ${percent(goodput)} of the capacity results in good answers during the spike, less than ${Math.round(least)} %; limit the calls in flight: adaptiveLimit() or bulkhead()`,
    );
  }
  if (recoverySeconds > longestRecoverySeconds) {
    const when = Number.isFinite(recoverySeconds)
      ? `recovers only ${recoverySeconds.toFixed(1)} s after the fault`
      : `does not recover within ${afterSeconds} s after a fault of ${secondsOfFault(name)} s`;
    add('no-recovery', `success ${when}; shorten the openings of breakers, and limit the calls in flight`);
  }
  return found;
}

function secondsOfFault(name: NamedScenario['name']): number {
  return scenarios.find((one) => one.name === name)?.disturbanceSeconds ?? Number.NaN;
}

function percent(value: number): string {
  return `${(Number.isFinite(value) ? value : 0).toFixed(1)} %`;
}
