/**
 * A long random run of a breaker beside a naive model that keeps every call and every time, and derives each answer from them. It takes 30,000 steps per
 * setting, or HOLDFAST_MODEL_STEPS; a failure names its seed and step.
 */
import { describe, expect, it } from 'vitest';
import { type CircuitBreakerOptions, circuitBreaker, isRefusal, type Permit } from '../../../src/index.js';
import { seededRandom, virtualClock } from '../../../src/testing/index.js';

interface ModelPermit {
  readonly era: number;
  readonly startedMs: number;
  readonly endsMs: number;
  isUsed: boolean;
}

interface ModelSettings {
  readonly windowMs?: number;
  readonly windowCalls?: number;
  readonly consecutive?: number;
  readonly minimumCalls: number;
  readonly permits: number;
  readonly successes: number;
  readonly probeMs: number | undefined;
  readonly rampUpMs: number;
}

const openForMs = 1_000;
const maxOpenForMs = 8_000;

class Model {
  state = 'closed';
  era = 0;
  sinceMs = 0;
  openings = 0;
  lengthMs = 0;
  stale = 0;
  private results: { readonly atMs: number; readonly failed: boolean }[] = [];
  private probes: ModelPermit[] = [];
  private underWay = 0;
  private firstMs = 0;
  private started = 0;
  private good = 0;
  private bad = 0;
  private credit = 0;
  private readonly settings: ModelSettings;

  constructor(settings: ModelSettings) {
    this.settings = settings;
  }

  get counted(): number {
    return this.results.length;
  }

  get probesOut(): number {
    return this.probes.filter(({ isUsed }) => !isUsed).length;
  }

  private go(state: string, atMs: number): void {
    this.state = state;
    this.era++;
    this.sinceMs = atMs;
    this.results = [];
    this.probes = [];
    this.underWay = 0;
    this.started = 0;
    this.good = 0;
    this.bad = 0;
    this.credit = 1;
  }

  private open(atMs: number): void {
    if (this.state === 'closed' && atMs - this.sinceMs >= this.lengthMs) this.openings = 0;
    this.lengthMs = Math.min(maxOpenForMs, openForMs * 2 ** this.openings);
    this.openings++;
    this.go('open', atMs);
  }

  operate(state: string, nowMs: number): void {
    if (state === 'closed') this.openings = 0;
    this.go(state, nowMs);
  }

  private probeResult(failed: boolean, nowMs: number): void {
    if (failed) this.bad++;
    else this.good++;
    const { successes, permits, rampUpMs } = this.settings;
    if (this.good >= successes) this.go(rampUpMs > 0 ? 'ramping' : 'closed', nowMs);
    else if (permits - this.bad < successes) this.open(nowMs);
  }

  admit(nowMs: number): ModelPermit | 'unjudged' | undefined {
    for (let hasMoved = true; hasMoved; ) {
      const { state, sinceMs } = this;
      hasMoved = true;
      const lost = this.probes.find(({ isUsed, endsMs }) => !isUsed && endsMs <= nowMs);
      if (state === 'open' && nowMs >= sinceMs + this.lengthMs) this.go('half-open', nowMs);
      else if (state === 'half-open' && lost !== undefined) {
        lost.isUsed = true;
        this.probeResult(true, lost.endsMs);
      } else if (state === 'ramping' && nowMs >= sinceMs + this.settings.rampUpMs) {
        this.go('closed', sinceMs + this.settings.rampUpMs);
      } else hasMoved = false;
    }
    const { state, era, settings } = this;
    if (state === 'open' || state === 'isolated') return undefined;
    if (state === 'forced-closed') return 'unjudged';
    const permit = { era, startedMs: nowMs, endsMs: Number.POSITIVE_INFINITY, isUsed: false };
    if (state === 'ramping') {
      this.credit += Math.min(1, 0.1 + (0.9 * (nowMs - this.sinceMs)) / settings.rampUpMs);
      if (this.credit < 1) return undefined;
      this.credit -= 1;
    }
    if (state !== 'half-open') {
      this.underWay++;
      return permit;
    }
    if (this.started >= settings.permits) return undefined;
    this.started++;
    const probe = { ...permit, endsMs: nowMs + (settings.probeMs ?? Math.min(this.lengthMs, 10_000)) };
    this.probes.push(probe);
    return probe;
  }

  /** `late`: a probe that the breaker has given up counts as stale, although the model has marked it as used. */
  settle(permit: ModelPermit, failed: boolean, nowMs: number): void {
    if (permit.era !== this.era || permit.isUsed) {
      this.stale++;
      return;
    }
    permit.isUsed = true;
    if (this.state === 'half-open') return this.probeResult(failed, nowMs);
    this.underWay--;
    if (this.results.length === 0) this.firstMs = nowMs;
    this.results.push({ atMs: nowMs, failed });
    this.judge(nowMs);
  }

  release(permit: ModelPermit): void {
    if (permit.era !== this.era || permit.isUsed) return;
    permit.isUsed = true;
    if (this.state === 'half-open') this.started--;
    else this.underWay--;
  }

  private judge(nowMs: number): void {
    const { windowMs, windowCalls, consecutive, minimumCalls } = this.settings;
    const inARow = this.results.length - 1 - this.results.findLastIndex(({ failed }) => !failed);
    let seen = this.results;
    let isFilling = false;
    if (windowMs !== undefined) {
      const bucketMs = windowMs / 10;
      const epoch = Math.floor(nowMs / bucketMs);
      isFilling = epoch - Math.floor(this.firstMs / bucketMs) < 10;
      seen = seen.filter(({ atMs }) => epoch - Math.floor(atMs / bucketMs) < 10);
    }
    if (windowCalls !== undefined) {
      isFilling = seen.length < windowCalls;
      seen = seen.slice(-windowCalls);
    }
    const failures = seen.filter(({ failed }) => failed).length;
    const unheard = isFilling && this.underWay > seen.length / 3 ? this.underWay : 0;
    const mostFailed = failures / (seen.length + unheard) >= 0.5;
    const isDown =
      consecutive === undefined
        ? inARow >= 250 || (inARow >= 100 && (failures < seen.length || mostFailed))
        : inARow >= consecutive;
    const tooMany = consecutive === undefined && seen.length >= minimumCalls && mostFailed;
    if (isDown || tooMany) this.open(nowMs);
    // What can never count again need not be kept, because the model must end, too.
    else if (this.results.length > 400) this.results = this.results.slice(-200);
  }
}

const settings: readonly [string, ModelSettings, CircuitBreakerOptions][] = [
  [
    'a time window',
    { windowMs: 1_000, minimumCalls: 8, permits: 3, successes: 2, probeMs: undefined, rampUpMs: 0 },
    { window: 1_000, minimumCalls: 8, halfOpen: { permits: 3, successes: 2 } },
  ],
  [
    'a window of calls, with a ramp',
    { windowCalls: 10, minimumCalls: 5, permits: 2, successes: 2, probeMs: 300, rampUpMs: 2_000 },
    { window: { calls: 10 }, minimumCalls: 5, halfOpen: { permits: 2, timeout: 300 }, rampUp: 2_000 },
  ],
  [
    'failures in a row, with one success of four',
    { consecutive: 3, minimumCalls: 1, permits: 4, successes: 1, probeMs: 500, rampUpMs: 0 },
    { window: { consecutive: 3 }, halfOpen: { permits: 4, successes: 1, timeout: 500 } },
  ],
];

const steps = Number(process.env.HOLDFAST_MODEL_STEPS ?? 30_000);

describe('circuitBreaker', () => {
  it.each(settings)('behaves like a naive model over many random steps, with %s', (_, modelSettings, options) => {
    const seed = Number(process.env.HOLDFAST_SEED ?? 4_711);
    const random = seededRandom(seed);
    const virtual = virtualClock();
    let nowMs = 0;
    const clock = { now: () => nowMs, wallNow: () => 0, schedule: () => expect.fail('a timer'), cancel() {} };
    const breaker = circuitBreaker({
      ...options,
      clock,
      openFor: openForMs,
      maxOpenFor: maxOpenForMs,
      random: () => Number.NaN,
    });
    const model = new Model(modelSettings);
    const out: { readonly permit: Permit; readonly mine: ModelPermit }[] = [];
    const used: Permit[] = [];
    const visited = new Set<string>();
    let badness = 0.1;

    for (let step = 0; step < steps; step++) {
      const at = `seed ${seed}, step ${step}`;
      const drawn = random();
      if (step % 500 === 0) badness = random.pick([0, 0.1, 0.4, 0.9]);
      if (drawn < 0.4) {
        const answer = breaker.admit();
        const mine = model.admit(nowMs);
        expect(isRefusal(answer), at).toBe(mine === undefined);
        if (!isRefusal(answer) && typeof mine === 'object') out.push({ permit: answer, mine });
      } else if (drawn < 0.8 && out.length > 0) {
        const index = random.chance(0.9) ? out.length - 1 : random.integer(0, out.length - 1);
        const [{ permit, mine } = expect.fail('nothing')] = out.splice(index, 1);
        const failed = random.chance(badness);
        if (random.chance(0.1)) {
          permit.release();
          model.release(mine);
        } else {
          permit.settle(failed ? { ok: false, error: 1 } : { ok: true, value: 1 });
          model.settle(mine, failed, nowMs);
        }
        used.push(permit);
      } else if (drawn < 0.83 && used.length > 0) {
        // Settling a second time changes nothing, whatever has become of the circuit.
        const permit = random.pick(used.slice(-20));
        if (random.chance(0.5)) permit.settle({ ok: false, error: 1 });
        else permit.release();
      } else if (drawn < 0.998) nowMs += random.chance(0.02) ? random.integer(0, 12_000) : random.integer(0, 60);
      else {
        const state = random.pick(['isolated', 'forced-closed', 'closed', 'closed']);
        if (state === 'isolated') breaker.isolate();
        else if (state === 'forced-closed') breaker.forceClosed();
        else breaker.reset();
        model.operate(state, nowMs);
      }
      const { state, generation, openings, staleResults } = breaker.snapshot();
      visited.add(state);
      expect({ state, generation, openings, staleResults }, at).toEqual({
        state: model.state,
        generation: model.era,
        openings: model.openings,
        staleResults: model.stale,
      });
      expect(model.probesOut, at).toBeLessThanOrEqual(modelSettings.permits);
    }
    expect(virtual.pendingTimers).toBe(0);
    const all = ['closed', 'open', 'half-open', 'isolated', 'forced-closed'];
    expect([...visited].sort()).toEqual([...all, ...(modelSettings.rampUpMs > 0 ? ['ramping'] : [])].sort());
  });
});
