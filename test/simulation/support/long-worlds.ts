/**
 * Worlds that live for ten simulated minutes, each made from one seed: `playStandard` is two services behind the preset
 * and a disturbance about once a minute, `playAnyPipeline` is a pipeline drawn at random and bursts of calls to it.
 */
import { getEventListeners } from 'node:events';
import fc from 'fast-check';
import { type Call, type Outcome, standard } from '../../../src/index.js';
import { type SeededRandom, seededRandom, type VirtualClock, virtualClock } from '../../../src/testing/index.js';
import { type Service, serviceOf } from '../../../src/testing/overload/services.js';
import { isAccepted, play, type Script, scripts } from '../../composition/support/any-pipeline.ts';

export interface Lived {
  readonly virtualMs: number;
  readonly calls: number;
  /** What is wrong, in words with the instant. */
  readonly faults: readonly string[];
}

const lifeMs = 600_000;
const burstEveryMs = 4_000;

/** Bursts of calls, 4 s apart, to one pipeline, which between them must come to rest. */
export async function playAnyPipeline(seed: number): Promise<Lived> {
  const [first, ...more] = fc
    .sample(scripts(1, 4, 0), { seed, numRuns: lifeMs / burstEveryMs + 40 })
    .filter((script) => isAccepted(script));
  const bursts = [first!, ...more].slice(0, lifeMs / burstEveryMs);
  const script: Script = {
    // A policy that aborts all callers ends all that comes after it, so only every second world has them.
    policies: seed % 2 === 0 ? first!.policies : withoutAborts(first!.policies),
    calls: bursts.flatMap(({ calls }, index) =>
      calls.map((call) => ({ ...call, startMs: call.startMs + index * burstEveryMs })),
    ),
    mischiefs: bursts.slice(0, 5).flatMap(({ mischiefs }, index) =>
      mischiefs.map((mischief) => ({
        ...mischief,
        atEvent: mischief.atEvent + index * 40,
        callIndex: mischief.callIndex + index * 12,
      })),
    ),
  };
  const { faults } = await play(script, { maxTimers: 1_000_000 });
  return { virtualMs: bursts.length * burstEveryMs, calls: script.calls.length, faults: [...new Set(faults)] };
}

function withoutAborts<T>(value: T): T {
  if (Array.isArray(value)) return value.map(withoutAborts) as T;
  if (typeof value !== 'object' || value === null) return value;
  const entries = Object.entries(value).map(([name, inner]) => [name, withoutAborts(inner)]);
  return { ...Object.fromEntries(entries), ...('abortsWhen' in value ? { abortsWhen: undefined } : {}) };
}

/** Two services, each called through its own key of one `standard()`, by users who come whatever became of others. */
export async function playStandard(seed: number): Promise<Lived> {
  const world = new World(seed);
  return world.live();
}

const disturbances = ['slow', 'down', 'silent', 'flaky', 'spike'] as const;
type Disturbance = (typeof disturbances)[number];

/** After this time a service must be back: nine of ten requests are answered. The limit climbs from 1 in steps, one per answer time or so. */
const recoveryMs = 10_000;
/** What a disturbance without any answers leaves behind: users wait up to 10 s, and a third of it is the time of an attempt. */
const longestDisturbanceMs = 20_000;
const calmMs = 30_000;

class World {
  readonly faults = new Set<string>();
  readonly clock: VirtualClock = virtualClock();
  private readonly random: SeededRandom;
  private readonly calls: ReturnType<typeof standard>;
  private readonly hosts: readonly Host[];
  private readonly beganMs: number;
  private requests = 0;
  private inFlight = 0;
  private running = 0;
  /** What the retry budget must hold by its documentation, with a retry more: a success is seen here before it is paid in. */
  private budgetTenths = 110;
  private lastRetryMs = Number.NEGATIVE_INFINITY;
  /** Timers of the world itself. */
  private ownTimers = 0;

  constructor(seed: number) {
    this.random = seededRandom(seed);
    this.beganMs = this.clock.now();
    this.calls = standard({
      clock: this.clock,
      random: this.random.fork('standard'),
      on: ({ type }) => {
        if (type === 'retry') this.payForRetry();
      },
    });
    this.hosts = ['a', 'b'].map((key) => new Host(key, this.clock, this.random.fork(key)));
  }

  async live(): Promise<Lived> {
    const { clock, hosts, beganMs } = this;
    for (const host of hosts) {
      void this.disturb(host);
      void this.arrive(host);
    }
    await clock.runAll({ maxTimers: 100_000_000 });
    if (this.inFlight + this.running > 0) this.fault(`${this.inFlight} requests and ${this.running} operations left`);
    if (clock.pendingTimers > 0) this.fault(`${clock.pendingTimers} timers left`);
    for (const host of hosts) {
      for (const { begin, end, good, all } of host.calm) {
        // A few users say little.
        if (all > 50 && good / all < 0.9) {
          this.fault(`${host.key}: ${good} of ${all} good from ${begin - beganMs} to ${end - beganMs} ms, in the calm`);
        }
      }
    }
    return { virtualMs: clock.now() - beganMs, calls: this.requests, faults: [...this.faults] };
  }

  private fault(text: string): void {
    // The first few say it all.
    if (this.faults.size < 10) this.faults.add(`at ${this.clock.now() - this.beganMs} ms: ${text}`);
  }

  private get isOver(): boolean {
    return this.clock.now() >= this.beganMs + lifeMs;
  }

  private async sleep(ms: number): Promise<void> {
    this.ownTimers++;
    await this.clock.sleep(ms);
    this.ownTimers--;
  }

  private async disturb(host: Host): Promise<void> {
    const random = host.random.fork('disturbances');
    for (;;) {
      const calmForMs = recoveryMs + calmMs + random.between(0, 20_000);
      const calm = { begin: this.clock.now() + recoveryMs, end: this.clock.now() + calmForMs, good: 0, all: 0 };
      host.calm.push(calm);
      await this.sleep(calmForMs);
      if (this.isOver) return;
      const kind = random.pick(disturbances);
      host.begin(kind);
      await this.sleep(random.between(1_000, longestDisturbanceMs));
      host.end();
    }
  }

  private async arrive(host: Host): Promise<void> {
    const random = host.random.fork('arrivals');
    while (!this.isOver) {
      await this.sleep(random.exponential(1 / host.arrivalsPerMs));
      this.ask(host, random);
    }
  }

  private ask(host: Host, random: SeededRandom): void {
    const { clock } = this;
    const begunMs = clock.now();
    const number = ++this.requests;
    const leavesAfterMs = random.chance(0.05) ? random.between(0, 3_000) : Number.POSITIVE_INFINITY;
    const allowedMs = random.chance(0.2) ? random.between(500, 20_000) : 10_000;
    const controller = new AbortController();
    const latestMs = begunMs + Math.min(leavesAfterMs, allowedMs, 10_000);
    const calm = host.calm.findLast(({ begin }) => begin <= begunMs);
    let attempt = 0;
    let settled = 0;
    let current: Call | undefined;
    this.inFlight++;
    const settle = (outcome: Outcome): void => {
      if (++settled > 1) this.fault(`request ${number} settled again`);
      this.inFlight--;
      if (clock.now() > latestMs + 1e-6) this.fault(`request ${number} settled ${clock.now() - latestMs} ms too late`);
      if (getEventListeners(controller.signal, 'abort').length > 0) this.fault(`request ${number} left a listener`);
      // Who leaves, or has less time than an answer takes, is no measure of the service.
      if (calm !== undefined && begunMs < calm.end - 10_000 && leavesAfterMs > 10_000 && allowedMs >= 10_000) {
        calm.all++;
        if (outcome.ok) calm.good++;
      }
      this.check();
    };
    const task = async (call: Call): Promise<number> => {
      if (call.aborted) this.fault(`request ${number} begins an attempt although it is over`);
      if (settled > 0) this.fault(`request ${number} begins an attempt although it has settled`);
      if (current !== undefined && !current.aborted) this.fault(`request ${number} has two attempts at once`);
      // An attempt that was refused or timed out in the queue never came here.
      if (call.attempt <= attempt || call.attempt > 3) {
        this.fault(`request ${number}: attempt ${call.attempt} after ${attempt}`);
      }
      attempt = call.attempt;
      if (call.deadline > begunMs + Math.min(allowedMs, 10_000) + 1e-6)
        this.fault(`request ${number} is given too long`);
      current = call;
      this.running++;
      this.check();
      try {
        await host.serve(call.signal);
        this.budgetTenths = Math.min(1_010, this.budgetTenths + 1);
        return number;
      } finally {
        this.running--;
        current = undefined;
        this.check();
      }
    };
    const options = { key: host.key, signal: controller.signal, deadline: begunMs + allowedMs };
    void this.calls.attempt(task, options).then(settle);
    if (leavesAfterMs < Number.POSITIVE_INFINITY) void this.sleep(leavesAfterMs).then(() => controller.abort('left'));
  }

  private payForRetry(): void {
    const nowMs = this.clock.now();
    const isFromFloor = nowMs - this.lastRetryMs >= 1_000;
    // Within the retry more that this account has, nobody can tell from here which of the two paid.
    if (this.budgetTenths >= (isFromFloor ? 20 : 10)) this.budgetTenths -= 10;
    else if (!isFromFloor) this.fault('a retry that nothing paid for');
    this.lastRetryMs = nowMs;
  }

  /** What must hold at every step. */
  private check(): void {
    const hostTimers = this.hosts.reduce((sum, host) => sum + host.timers, 0);
    const timers = this.clock.pendingTimers - this.ownTimers - hostTimers;
    // A call has a deadline, an attempt or a wait for the next one, and the wait for a place.
    if (timers > 3 * this.inFlight) this.fault(`${timers} timers for ${this.inFlight} requests`);
  }
}

class Host {
  readonly key: string;
  readonly random: SeededRandom;
  readonly calm: { readonly begin: number; readonly end: number; good: number; all: number }[] = [];
  private readonly clock: VirtualClock;
  private readonly service: Service;
  private readonly chance: SeededRandom;
  private readonly usualPerMs: number;
  private readonly workers: number;
  private disturbance: Disturbance | undefined = undefined;
  private serving = 0;
  private failing = 0;

  constructor(key: string, clock: VirtualClock, random: SeededRandom) {
    this.key = key;
    this.clock = clock;
    this.random = random;
    this.chance = random.fork('failures');
    this.workers = random.integer(4, 10);
    const meanMs = random.between(200, 400);
    this.usualPerMs = (random.between(0.2, 0.8) * this.workers) / meanMs;
    this.service = serviceOf({ workers: this.workers, meanMs, gamma: 4, kind: 'pool' }, clock, random.fork('service'));
  }

  get arrivalsPerMs(): number {
    return this.disturbance === 'spike' ? 10 * this.usualPerMs : this.usualPerMs;
  }

  /** Timers that the service itself may have. */
  get timers(): number {
    return Math.min(this.serving, this.workers) + this.failing;
  }

  begin(disturbance: Disturbance): void {
    this.disturbance = disturbance;
    if (disturbance === 'slow') this.service.slowDown(10);
  }

  end(): void {
    this.disturbance = undefined;
    this.service.slowDown(1);
  }

  /** As a client of HTTP: an abort ends the wait, and the service goes on all the same. */
  async serve(signal: AbortSignal): Promise<void> {
    const { disturbance } = this;
    const failing = disturbance === 'down' ? 1 : disturbance === 'flaky' ? 0.3 : 0.001;
    if (this.chance() < failing) {
      this.failing++;
      await this.clock.sleep(2);
      this.failing--;
      throw new Error('the service fails');
    }
    let leave: (() => void) | undefined;
    const left = new Promise<never>((_, reject) => {
      leave = () => reject(signal.reason);
      signal.addEventListener('abort', leave, { once: true });
    });
    try {
      await (disturbance === 'silent' ? left : Promise.race([this.work(), left]));
    } finally {
      signal.removeEventListener('abort', leave!);
    }
  }

  private async work(): Promise<void> {
    this.serving++;
    await this.service.serve();
    this.serving--;
  }
}
