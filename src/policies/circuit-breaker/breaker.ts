/**
 * Breaker: the state machine behind `circuitBreaker`.
 *
 * Promise: each change of state begins a new generation, and a result from an older generation changes nothing. A permit counts once. There are no
 * timers: an expired state ends when the next call arrives. While the circuit is closed, a call costs at most one object.
 * After: Nygard, "Release It!" 2nd ed., ch. 5 (the states); sony/gobreaker (generations); resilience4j (windows).
 */
import type { Call } from '../../core/call.js';
import { type Clock, systemClock } from '../../core/clock.js';
import { CircuitOpenError, isAbandoned, isRejected } from '../../core/errors.js';
import { Events } from '../../core/events.js';
import { handlesThrows, judge, type Outcome } from '../../core/outcome.js';
import { type FusedAdmission, type Permit, type PolicyTraits, type Refusal, refuse } from '../../core/policy.js';
import { epochOfTurn } from '../../core/turn-clock.js';
import { CallWindow } from '../../structures/call-window.js';
import type { Rank } from '../../structures/ranked-cache.js';
import { bucketsPerWindow, TimeWindow } from '../../structures/time-window.js';
import { retryHintOf } from '../retry/retry-after.js';
import type { CircuitBreaker } from './circuit-breaker.js';
import type { Group, GroupMember } from './group.js';
import { noteKept } from './made-per-call.js';
import { CallPermit, LazyRefusal, Probe, SharedPermit, TimedPermit } from './permits.js';
import { type GroupSettings, type Settings, sameSettings } from './settings.js';
import { type CircuitSnapshot, type CircuitState, isSnapshot } from './snapshot.js';

type State =
  | Closed
  | Ramping
  | { readonly kind: 'open'; readonly untilMs: number; readonly detail: string }
  | HalfOpen
  | { readonly kind: 'isolated' }
  | { readonly kind: 'forced-closed' };

/** The counts of results. Without a window (nothing recorded yet, or only consecutive failures matter) it is 24 bytes smaller. */
interface Counts {
  window: TimeWindow | CallWindow | undefined;
  failuresInARow: number;
}

interface Closed extends Counts {
  readonly kind: 'closed';
  /** The permit shared by all calls that a layer admits while this state lasts; undefined if slow calls count. */
  permit: SharedPermit | undefined;
}

interface Ramping extends Counts {
  readonly kind: 'ramping';
  /** Grows by the admitted share with each call; a call is admitted whenever it reaches one. */
  credit: number;
}

interface HalfOpen {
  readonly kind: 'half-open';
  /** Probes that may still start in this cycle. */
  left: number;
  successes: number;
  failures: number;
  /** Running probes, oldest first. All get the same time, so the first one ends first. */
  readonly probes: Set<Probe>;
  /** Probes that taught nothing because their callers' deadlines left hardly any time. */
  cutShort: number;
}

/** State that only a circuit needs that has left its first state at least once. */
class History {
  /** When the current state began. */
  sinceMs: number;
  /** Openings in the current series: each one lasts longer than the one before. */
  openings = 0;
  openForMs = 0;
  staleResults = 0;
  readonly events: Events;

  constructor(sinceMs: number, events: Events) {
    this.sinceMs = sinceMs;
    this.events = events;
  }
}

/** Closed, with nothing recorded. All new circuits share it; with its first record a circuit gets its own. */
const untouched: Closed = /* @__PURE__ */ Object.freeze({
  kind: 'closed',
  permit: undefined,
  window: undefined,
  failuresInARow: 0,
});

/** Stands for the window where only consecutive failures matter. */
const nothingRecorded = { calls: 0, failures: 0, slow: 0, isFilling: false } as const;
/** A probe was cut short if its caller's deadline ended it before this share of the probe's time. */
const shortShare = 0.1;
/** Up to this multiple of a cycle's permits, probes that are cut short do not count. */
const mostCutShort = 10;
const longestDefaultProbeMs = 10_000;
/** Until the window has been full once, calls under way count as well if they are more than this share of those that have ended. */
const unheardShare = 1 / 3;
/** Whatever is still under way, this many failures in a row without any success open the circuit. */
const surelyDown = 250;

type AnyPermit = CallPermit | SharedPermit;

/** The permit of a call whose result does not count. */
const unjudged: Permit = { settle() {}, release() {} };

export class Breaker implements CircuitBreaker, GroupMember {
  readonly name: string;
  private settings: Settings;
  private generation = 0;
  private current: State = untouched;
  private history: History | undefined = undefined;
  private clock: Clock | undefined;
  /** Calls of this generation that have not ended; not counting probes. */
  private underWay = 0;

  constructor(name: string, settings: Settings) {
    this.name = name;
    this.settings = settings;
    this.clock = settings.clock;
  }

  get traits(): PolicyTraits {
    const {
      clock,
      failureRate,
      failuresInARow,
      openForMs,
      maxOpenForMs,
      minimumCalls,
      windowKind,
      windowSize,
      shadow,
    } = this.settings;
    const opens =
      windowKind === 'consecutive'
        ? `after ${failuresInARow} failures in a row`
        : `when ${failureRate * 100} % of at least ${minimumCalls} calls failed`;
    const how = shadow ? 'only tells when it would open' : 'opens';
    return {
      kind: 'circuit-breaker',
      summary: `${how} ${opens}, for up to ${openForMs} ms at first and ${maxOpenForMs} ms later`,
      clock,
      windowMs: windowKind === 'time' ? windowSize * bucketsPerWindow : undefined,
    };
  }

  get state(): CircuitState {
    return this.current.kind;
  }

  admit(call?: Call): Permit | Refusal {
    // Times of different clocks do not compare, so the first clock seen is kept.
    this.clock ??= call?.clock ?? systemClock;
    if (this.current.kind !== 'closed') return this.admitUnlessRefused(call);
    this.underWay++;
    return this.permit(call);
  }

  /** @internal A getter on the prototype, because each byte of a circuit counts in a large registry. */
  get fused(): FusedAdmission {
    return {
      of: Breaker.prototype.admit,
      admit: (call) => this.admitFused(call),
      lastFailed: () => this.current.kind === 'closed' && this.current.failuresInARow > 0,
    };
  }

  private admitFused(call: Call): Permit | Refusal {
    const { current } = this;
    if (current.kind !== 'closed' || current.permit === undefined) return this.admit(call);
    this.underWay++;
    return current.permit;
  }

  isolate(): void {
    this.become({ kind: 'isolated' }, this.now());
  }

  forceClosed(): void {
    this.become({ kind: 'forced-closed' }, this.now());
  }

  reset(): void {
    const nowMs = this.now();
    this.pastOf(nowMs).openings = 0;
    this.become(untouched, nowMs);
  }

  dispose(): void {
    this.forceClosed();
    this.leaveGroup();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  snapshot(): CircuitSnapshot {
    // Reading the state before the first call must not bind the breaker to a clock that its calls do not use.
    const nowMs = (this.clock ?? systemClock).now();
    const { current, history } = this;
    const counts = 'window' in current ? current : untouched;
    if (counts.window instanceof TimeWindow) counts.window.moveTo(this.epochOf(nowMs));
    const { calls = 0, failures = 0, slow = 0 } = counts.window ?? {};
    return {
      v: 1,
      state: current.kind,
      generation: this.generation,
      openForMs: history?.openForMs ?? 0,
      elapsedMs: history === undefined ? 0 : nowMs - history.sinceMs,
      openings: history?.openings ?? 0,
      window: { calls, failures, slow, failuresInARow: counts.failuresInARow },
      staleResults: history?.staleResults ?? 0,
    };
  }

  restore(snapshot: unknown): boolean {
    const nowMs = this.now();
    if (!isSnapshot(snapshot)) {
      const { events } = this.pastOf(nowMs);
      if (events.heard) events.emit({ type: 'circuit-not-restored', name: this.name, snapshot });
      return false;
    }
    const { state, openForMs, openings } = snapshot;
    // An instant from before this clock began is fine: only differences count.
    const sinceMs = nowMs - snapshot.elapsedMs;
    const past = this.pastOf(nowMs);
    past.openForMs = openForMs;
    past.openings = openings;
    this.generation = Math.max(this.generation, snapshot.generation);
    // Probes of another process are lost, so a half-open circuit starts with new ones.
    if (state === 'half-open') this.become({ kind: 'open', untilMs: nowMs, detail: 'restored' }, nowMs);
    else if (state === 'open') this.become({ kind: 'open', untilMs: sinceMs + openForMs, detail: 'restored' }, sinceMs);
    else if (state === 'ramping') this.become(rampingFromNow(), sinceMs);
    else this.become(state === 'closed' ? untouched : { kind: state }, sinceMs);
    return true;
  }

  // Admission.

  private permit(call: Call | undefined): Permit {
    return this.settings.slowCallRate === Number.POSITIVE_INFINITY
      ? new CallPermit(this, this.generation)
      : new TimedPermit(this, this.generation, this.nowOf(call));
  }

  private admitUnlessRefused(call: Call | undefined): Permit | Refusal {
    const nowMs = this.nowOf(call);
    this.leaveWhatIsOver(nowMs);
    const { current } = this;
    switch (current.kind) {
      case 'closed':
        this.underWay++;
        return this.permit(call);
      case 'forced-closed':
        return unjudged;
      case 'ramping': {
        const { rampUpMs } = this.settings;
        current.credit += Math.min(1, 0.1 + (0.9 * (nowMs - this.pastOf(nowMs).sinceMs)) / rampUpMs);
        if (current.credit < 1) return this.refusal('ramping', undefined, 'it admits a growing share of the calls');
        current.credit -= 1;
        this.underWay++;
        return this.permit(call);
      }
      case 'half-open':
        return current.left > 0
          ? this.probe(current, nowMs)
          : this.refusal('half-open', undefined, 'all probes are out');
      case 'open':
        return this.refusal('open', current.untilMs - nowMs, current.detail);
      case 'isolated':
        return this.refusal('isolated', undefined, undefined);
    }
  }

  private probe(state: HalfOpen, nowMs: number): Permit {
    const { probeTimeoutMs, shadow } = this.settings;
    const timeoutMs = probeTimeoutMs ?? Math.min(this.pastOf(nowMs).openForMs, longestDefaultProbeMs);
    const probe = new Probe(this, this.generation, nowMs, nowMs + timeoutMs, shadow);
    state.left--;
    state.probes.add(probe);
    return probe;
  }

  private refusal(
    state: CircuitOpenError['state'],
    retryAfterMs: number | undefined,
    detail: string | undefined,
  ): Permit | Refusal {
    const { name, history } = this;
    const { shadow, stack } = this.settings;
    if (history?.events.heard) {
      history.events.emit({ type: 'circuit-refused', name, state, retryAfterMs, shadow });
    }
    if (shadow) return unjudged;
    const numbers = { policy: name, state, retryAfterMs, detail, stack };
    return stack ? refuse(new CircuitOpenError(numbers)) : new LazyRefusal(numbers);
  }

  /** Ends expired states. Nobody watches the time, so a state may have expired long before the call that notices; the next state began then. */
  private leaveWhatIsOver(nowMs: number): void {
    for (;;) {
      const { current } = this;
      if (current.kind === 'open') {
        if (nowMs < current.untilMs) return;
        const { permits } = this.settings;
        this.become(
          { kind: 'half-open', left: permits, successes: 0, failures: 0, probes: new Set(), cutShort: 0 },
          nowMs,
        );
      } else if (current.kind === 'half-open') {
        const [oldest] = current.probes;
        if (oldest === undefined || nowMs < oldest.endsAtMs) return;
        const { endsAtMs } = oldest;
        oldest.giveUp();
        current.probes.delete(oldest);
        this.countProbe(current, true, endsAtMs, undefined);
      } else if (current.kind === 'ramping') {
        const endMs = this.pastOf(nowMs).sinceMs + this.settings.rampUpMs;
        if (nowMs < endMs) return;
        this.become(untouched, endMs);
      } else return;
    }
  }

  // Results.

  /** @internal */
  settle(permit: AnyPermit, outcome: Outcome): void {
    if (this.isStale(permit)) return;
    if (!outcome.ok && isRejected(outcome.error)) return this.release(permit);
    const { handles } = this.settings;
    if (handles === handlesThrows) return this.count(permit, !outcome.ok, outcome);
    let failed = true;
    try {
      failed = judge(handles, outcome, this.name);
    } finally {
      // The user's function may have changed the state.
      if (!this.isStale(permit)) this.count(permit, failed, outcome);
    }
  }

  /** @internal */
  release(permit: AnyPermit): void {
    if (permit.generation !== this.generation) return;
    const { current } = this;
    if (current.kind !== 'half-open') this.underWay--;
    else if (current.probes.delete(permit as Probe)) current.left++;
  }

  private isStale({ generation }: AnyPermit): boolean {
    if (generation === this.generation) return false;
    // A generation ends with a change of state, so there is a history.
    this.history!.staleResults++;
    return true;
  }

  private count(permit: AnyPermit, failed: boolean, outcome: Outcome): void {
    const { current } = this;
    const { slowCallRate, slowCallMs } = this.settings;
    const countsSlow = slowCallRate !== Number.POSITIVE_INFINITY;
    const nowMs = countsSlow || current.kind === 'half-open' ? this.now() : 0;
    const slow = countsSlow && nowMs - (permit as TimedPermit).startedMs > slowCallMs;
    if (current.kind === 'half-open') {
      if (failed && this.wasCutShort(current, permit as Probe, outcome, nowMs)) return this.release(permit);
      current.probes.delete(permit as Probe);
      // A slow probe does not show that slowness has passed.
      this.countProbe(current, failed || slow, nowMs, outcome);
    } else if (current.kind === 'closed' || current.kind === 'ramping') {
      this.countCall(current, failed, slow, outcome);
    }
  }

  /**
   * Whether a probe was cut short. A call that waited for the circuit may start with hardly any time left. If its own deadline then ends it, that
   * says nothing about the service. It cannot be told apart from a service that hangs, so only a limited number per cycle is excused.
   */
  private wasCutShort(state: HalfOpen, { startedMs, endsAtMs }: Probe, outcome: Outcome, nowMs: number): boolean {
    if (outcome.ok || !isAbandoned(outcome.error) || outcome.error.code !== 'ERR_DEADLINE_EXCEEDED') return false;
    if (nowMs - startedMs >= (endsAtMs - startedMs) * shortShare) return false;
    return state.cutShort++ < mostCutShort * this.settings.permits;
  }

  private countProbe(state: HalfOpen, failed: boolean, nowMs: number, outcome: Outcome | undefined): void {
    const { permits, successes, rampUpMs } = this.settings;
    if (failed) state.failures++;
    else state.successes++;
    if (state.successes >= successes) this.become(rampUpMs > 0 ? rampingFromNow() : untouched, nowMs);
    else if (permits - state.failures < successes) {
      this.open(nowMs, outcome, `${state.failures} of ${state.failures + state.successes} probes failed`);
    }
  }

  private countCall(shared: Closed | Ramping, failed: boolean, slow: boolean, outcome: Outcome): void {
    const { settings } = this;
    this.underWay--;
    let state = shared;
    if (state === untouched) {
      const countsSlow = settings.slowCallRate !== Number.POSITIVE_INFINITY;
      const permit = countsSlow ? undefined : new SharedPermit(this, this.generation);
      state = { kind: 'closed', permit, window: undefined, failuresInARow: 0 };
      this.current = state;
    }
    const { windowKind, windowSize } = settings;
    state.failuresInARow = failed ? state.failuresInARow + 1 : 0;
    if (windowKind === 'time') {
      this.clock ??= systemClock;
      const epoch = epochOfTurn(this.clock, windowSize);
      state.window ??= new TimeWindow(epoch);
      state.window.record(failed, slow, epoch);
    } else if (windowKind === 'calls') {
      state.window ??= new CallWindow(windowSize);
      state.window.record(failed, slow, 0);
    }
    const reason = this.reasonToOpen(state);
    if (reason === undefined) return;
    const { group } = settings;
    const openedMs = this.now();
    if (group === undefined || group.mayOpen(openedMs)) return this.open(openedMs, outcome, reason);
    state.window = undefined;
    state.failuresInARow = 0;
    const { events } = this.pastOf(openedMs);
    if (events.heard) events.emit({ type: 'circuit-kept-closed', name: this.name, detail: reason });
  }

  private reasonToOpen({ window, failuresInARow }: Counts): string | undefined {
    const { settings } = this;
    const { calls, failures, slow, isFilling } = window ?? nothingRecorded;
    // The first calls to end are the quick ones, and failures may be quick. Those still under way may all succeed.
    const unheard = isFilling && this.underWay > calls * unheardShare ? this.underWay : 0;
    const mostFailed = failures >= settings.failureRate * (calls + unheard);
    if (failuresInARow >= settings.failuresInARow && (failures < calls || mostFailed || failuresInARow >= surelyDown)) {
      return `${failuresInARow} calls in a row failed`;
    }
    if (calls < settings.minimumCalls) return undefined;
    if (mostFailed) return `${failures} of ${calls} calls failed`;
    return slow / calls >= settings.slowCallRate ? `${slow} of ${calls} calls were slow` : undefined;
  }

  private open(nowMs: number, outcome: Outcome | undefined, detail: string): void {
    const past = this.pastOf(nowMs);
    // The service was healthy for as long as the circuit was last open: the next opening starts a new series.
    if (this.current.kind === 'closed' && nowMs - past.sinceMs >= past.openForMs) past.openings = 0;
    const { openForMs, maxOpenForMs, longestHintMs, random } = this.settings;
    const longestMs = Math.min(maxOpenForMs, openForMs * 2 ** past.openings);
    let drawn = 1;
    past.events.contain('random', () => {
      const answer = random();
      if (answer >= 0 && answer < 1) drawn = answer;
    });
    const hint = outcome === undefined ? undefined : retryHintOf(outcome, this.clock!.wallNow());
    const hintMs = typeof hint === 'number' ? Math.min(hint, longestHintMs) : 0;
    past.openings++;
    past.openForMs = Math.max(longestMs / 2 + (drawn * longestMs) / 2, hintMs);
    this.become({ kind: 'open', untilMs: nowMs + past.openForMs, detail }, nowMs, detail);
  }

  // Changes of state.

  private become(next: State, nowMs: number, detail?: string): void {
    const { name, current, settings } = this;
    const past = this.pastOf(nowMs);
    past.sinceMs = nowMs;
    this.current = next;
    this.generation++;
    this.underWay = 0;
    if (isOut(next) !== isOut(current)) {
      if (isOut(next)) settings.group?.opened();
      else settings.group?.closed();
    }
    // Published last, because a listener may change the state again.
    if (!past.events.heard) return;
    past.events.emit({
      type: 'circuit-changed',
      name,
      from: current.kind,
      to: next.kind,
      generation: this.generation,
      openForMs: next.kind === 'open' ? past.openForMs : undefined,
      detail,
    });
  }

  private pastOf(nowMs: number): History {
    this.history ??= new History(nowMs, new Events(this.name, this.settings.on));
    return this.history;
  }

  private now(): number {
    this.clock ??= systemClock;
    return this.clock.now();
  }

  private nowOf(call: Call | undefined): number {
    return call === undefined ? this.now() : call.admissionMs();
  }

  private epochOf(nowMs: number): number {
    return Math.floor(nowMs / this.settings.windowSize);
  }

  // Membership in a registry.

  /** @internal */
  joinGroup(group: Group): void {
    const { settings } = this;
    if (settings.group !== undefined) return;
    noteKept(this.name, settings.clock);
    const shared = group.settings;
    if (shared !== undefined && sameSettings(shared.alone, settings)) this.settings = shared;
    else {
      const own: GroupSettings = { ...settings, group, alone: settings };
      group.settings = own;
      this.settings = own;
    }
    if (isOut(this.current)) group.opened();
  }

  /** @internal */
  leaveGroup(): void {
    const { group, alone } = this.settings as Partial<GroupSettings>;
    if (alone === undefined) return;
    if (isOut(this.current)) group?.closed();
    this.settings = alone;
  }

  /** @internal */
  rank(): Rank {
    const { current } = this;
    if (current.kind === 'open') return this.now() < current.untilMs ? 2 : 1;
    if (current.kind === 'ramping') return 1;
    if (current.kind !== 'closed') return 2;
    const { window, failuresInARow } = current;
    if (window instanceof TimeWindow) window.moveTo(this.epochOf(this.now()));
    return failuresInARow > 0 || (window?.calls ?? 0) > 0 ? 1 : 0;
  }
}

function rampingFromNow(): Ramping {
  // A credit of 1 admits the first call.
  return { kind: 'ramping', window: undefined, failuresInARow: 0, credit: 1 };
}

/** Whether a circuit withholds calls from its service, as its group counts it. States set by an operator do not count. */
function isOut({ kind }: State): boolean {
  return kind === 'open' || kind === 'half-open';
}
