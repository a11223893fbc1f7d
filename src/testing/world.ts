/**
 * World: the scheduler of a simulation. It holds time, picks what happens next, and watches the promises.
 *
 * Promise: one event happens at a time, in order of time; events of the same time come in an order drawn from the seed. After each event, all microtasks have
 * run and every invariant has held. Nothing in here reads a real clock or a random source.
 * After: FoundationDB's deterministic simulation (Zhou et al., SIGMOD 2021); Will Wilson, "Testing distributed systems
 * with deterministic simulation" (Strange Loop 2014); TigerBeetle's VOPR.
 */
import { type Clock, callbackTimer, type Timer } from '../core/clock.js';
import { type Duration, toMs } from '../core/duration.js';
import { checkArgument, text } from '../core/options.js';
import { upToTick } from './distribution.js';
import { EventHeap } from './event-heap.js';
import { type LinkOptions, Network, type NodeReference, type SimulatedNetwork } from './network.js';
import { Node, type NodeOptions, type Process, type SimulatedNode } from './node.js';
import { type SeededRandom, seededRandom } from './random.js';
import { type FailurePoint, type FailureReason, SimulationError } from './simulation-error.js';
import { Task } from './task.js';
import { Trace, type TraceKind } from './trace.js';
import { inTurns } from './turns.js';
import { sleepOn } from './virtual-clock.js';

/** Tells whether a promise holds: it does not if the check returns false or throws, as an assertion does. */
export type Check = () => unknown;

/** A simulated world, as its scenario sees it. */
export interface World {
  readonly seed: number;
  /** A stream of random values for the scenario: inputs, and when faults strike. */
  readonly random: SeededRandom;
  /** The world's own, true time. Nodes have clocks of their own. */
  readonly clock: Clock;
  readonly network: SimulatedNetwork;
  /** Milliseconds since the world began. */
  now(): number;
  /**
   * Adds a machine and starts it.
   * @param name - Unique in this world.
   * @throws {@link OptionsError} `ERR_OPTIONS`, when an option is wrong.
   */
  node(name: string, options?: NodeOptions): SimulatedNode;
  /** Runs a function that belongs to no node, such as one that injects faults. */
  run<T>(name: string, task: () => T | PromiseLike<T>): Promise<T>;
  sleep(duration: Duration): Promise<void>;
  /** Must hold after every single event. */
  invariant(name: string, check: Check): void;
  /** Must come true within this time; resolves when it does. The simulation does not end before. */
  eventually(name: string, check: Check, options: { readonly within: Duration }): Promise<void>;
  /** Must hold when the scenario has ended. */
  atEnd(name: string, check: Check): void;
  /** Adds a line to the trace, and so to the digest. */
  log(text: string): void;
}

/** A scenario: builds a world, starts it and resolves when it has seen enough. */
export type Scenario<T = unknown> = (world: World) => T | PromiseLike<T>;

/** Bounds and habits of a world, checked. */
export interface WorldSettings {
  readonly seed: number;
  readonly network: LinkOptions;
  readonly maxSteps: number;
  readonly maxTimeMs: number;
  readonly traceLines: number;
  readonly onEvent: ((line: string) => void) | undefined;
  readonly wallStartMs: number;
}

interface NamedCheck {
  readonly name: string;
  readonly check: Check;
}

interface Watch extends NamedCheck {
  readonly timer: Timer;
  readonly withinMs: number;
  isOverdue: boolean;
  resolve(): void;
}

type ScenarioState<T> =
  | { readonly kind: 'unborn' }
  | { readonly kind: 'running' }
  | { readonly kind: 'returned'; readonly value: T }
  | { readonly kind: 'threw'; readonly error: unknown };

export class Simulation implements World, Disposable {
  readonly random: SeededRandom;
  readonly clock: Clock;
  readonly network: Network;
  readonly trace: Trace;
  readonly #settings: WorldSettings;
  readonly #heap = new EventHeap<Process | undefined>();
  readonly #ranks: SeededRandom;
  readonly #nodes = new Map<string, Node>();
  readonly #invariants: NamedCheck[] = [];
  readonly #endChecks: NamedCheck[] = [];
  readonly #watches = new Set<Watch>();
  readonly #tasks = new Set<Task>();
  #failures: { readonly task: Task; readonly error: unknown }[] = [];
  /** What the scenario's own functions threw outside of its tasks. */
  #mistake: { readonly what: string; readonly error: unknown } | undefined = undefined;
  #nowMs = 0;
  #steps = 0;
  /** How often code that waited for a condition has gone on. It is no event, but it may be endless, too. */
  #resumptions = 0;
  #hasEnded = false;

  constructor(settings: WorldSettings) {
    const root = seededRandom(settings.seed);
    this.#settings = settings;
    this.random = root.fork('world');
    this.#ranks = root.fork('order');
    const { onEvent } = settings;
    const tell = (line: string) =>
      this.contain(
        () => 'onEvent threw',
        () => onEvent?.(line),
      );
    this.trace = new Trace(settings.traceLines, onEvent && tell);
    // Two seeds must give different digests even if nothing has been drawn from them yet.
    this.trace.hash.number(settings.seed);
    this.clock = new WorldClock(this, settings.wallStartMs);
    this.network = new Network(this, settings.network);
  }

  get seed(): number {
    return this.#settings.seed;
  }

  now(): number {
    return this.#nowMs;
  }

  node(name: string, options: NodeOptions = {}): SimulatedNode {
    checkArgument('node', 'name', name, text());
    if (this.#nodes.has(name)) throw new Error(`simulate: there is already a node "${name}"`);
    this.#assertRunning();
    const node = new Node(this, name, options);
    this.#nodes.set(name, node);
    node.boot();
    return node;
  }

  run<T>(name: string, task: () => T | PromiseLike<T>): Promise<T> {
    this.#assertRunning();
    const promise = new Task<T>(name, 'scenario');
    this.#tasks.add(promise as Task);
    const begin = callbackTimer(() => {
      this.note('task', 'world', '', name);
      this.follow(promise, undefined, task);
    });
    this.scheduleAfter(begin, 0);
    return promise;
  }

  async sleep(duration: Duration): Promise<void> {
    this.#assertRunning();
    await sleepOn(this.clock, toMs(duration));
  }

  invariant(name: string, check: Check): void {
    this.#invariants.push({ name, check });
  }

  async eventually(name: string, check: Check, { within }: { readonly within: Duration }): Promise<void> {
    const withinMs = toMs(within);
    this.#assertRunning();
    await new Promise<void>((resolve) => {
      const timer = callbackTimer(() => {
        watch.isOverdue = true;
      });
      const watch: Watch = { name, check, withinMs, timer, resolve, isOverdue: false };
      this.#watches.add(watch);
      this.scheduleAfter(timer, withinMs);
    });
  }

  atEnd(name: string, check: Check): void {
    this.#endChecks.push({ name, check });
  }

  log(line: string): void {
    this.logAs('world', line);
  }

  logAs(who: string, line: string): void {
    this.trace.hash.text(line);
    this.note('log', who, '', line);
  }

  /** Plays the scenario to its end. */
  async play<T>(scenario: Scenario<T>): Promise<T> {
    let state: ScenarioState<T> = { kind: 'unborn' };
    const begin = async () => {
      try {
        state = { kind: 'returned', value: await scenario(this) };
      } catch (error) {
        state = { kind: 'threw', error };
      }
    };
    return new Promise((resolve, reject) => {
      const step = () => {
        if (state.kind !== 'unborn') return this.#step(state);
        state = { kind: 'running' };
        void begin();
        return true;
      };
      const end = () => {
        if (state.kind === 'returned') resolve(state.value);
      };
      inTurns(step).then(end, reject);
    });
  }

  report(): {
    readonly seed: number;
    readonly steps: number;
    readonly virtualMs: number;
    readonly digest: string;
    readonly trace: readonly string[];
  } {
    const { seed, step: steps, virtualMs, digest, trace } = this.#whereItStands();
    return { seed, steps, virtualMs, digest, trace };
  }

  /** Ends every process, so that nothing of the world runs or receives events any more. */
  [Symbol.dispose](): void {
    this.#hasEnded = true;
    for (const { process } of this.#nodes.values()) {
      if (process === undefined) continue;
      process.isDead = true;
      process.serving.clear();
      for (const exchange of process.exchanges) exchange.drop();
    }
  }

  nodeOf(reference: NodeReference): Node {
    const name = typeof reference === 'string' ? reference : reference.name;
    const node = this.#nodes.get(name);
    if (node !== undefined) return node;
    const names = [...this.#nodes.keys()].slice(0, 20).map((one) => `"${one}"`);
    throw new Error(`simulate: there is no node "${name}"; there are ${names.join(', ') || 'none yet'}`);
  }

  /** Runs a task and is told how it ends. */
  follow<T>(task: Task<T>, process: Process | undefined, run: () => T | PromiseLike<T>): void {
    const tasks = process?.tasks ?? this.#tasks;
    tasks.add(task as Task);
    void task.follow(run, (failure) => {
      tasks.delete(task as Task);
      if (failure !== undefined && process?.isDead !== true)
        this.#failures.push({ task: task as Task, error: failure.error });
    });
  }

  /** Calls a function of the scenario, wherever this is. What it throws does not surface there, but ends the simulation. */
  contain(what: () => string, act: () => void): void {
    try {
      act();
    } catch (error) {
      this.#mistake ??= { what: what(), error };
    }
  }

  note(kind: TraceKind, from: string, to = '', detail?: unknown): void {
    this.trace.add(this.#steps, this.#nowMs, kind, from, to, detail);
  }

  schedule(timer: Timer, atMs: number, owner: Process | undefined): void {
    this.#heap.add(timer, atMs, this.#ranks.uint32(), owner);
  }

  scheduleAfter(timer: Timer, delayMs: number): void {
    this.schedule(timer, upToTick(this.#nowMs + delayMs), undefined);
  }

  /** Schedules a timer for now, ordered by rank among the events of now; drawn ranks are positive. */
  scheduleRanked(timer: Timer, rank: number, owner: Process | undefined): void {
    this.#heap.add(timer, this.#nowMs, rank, owner);
  }

  cancel(timer: Timer): void {
    this.#heap.remove(timer);
  }

  takeTimersOf(process: Process): { timer: Timer; atMs: number }[] {
    return this.#heap.takeAllOf(process);
  }

  countTimersOf(process: Process): number {
    return this.#heap.countOf(process);
  }

  #step<T>(scenario: ScenarioState<T>): boolean {
    this.#checkPromises(scenario);
    // Code that waits for a condition continues before anything else happens.
    if (this.#wakeWatches()) {
      this.#checkCount(++this.#resumptions);
      return true;
    }
    if (scenario.kind === 'returned' && this.#watches.size === 0) {
      this.#require('end-check', 'end check', this.#endChecks);
      return false;
    }
    this.#checkBounds();

    const owner = this.#heap.nextOwner;
    this.#nowMs = this.#heap.nextAtMs;
    const timer = this.#heap.takeFirst();
    if (owner?.isFrozen) {
      owner.hold(timer, owner);
      return true;
    }
    this.#steps++;
    this.trace.hash.number(this.#nowMs);
    if (owner !== undefined) this.note('timer', owner.node.name);
    try {
      timer.expire();
    } catch (error) {
      throw this.#failure(
        'error',
        `simulate: a timer${owner === undefined ? '' : ` of node "${owner.node.name}"`} threw`,
        error,
      );
    }
    return true;
  }

  #checkPromises<T>(scenario: ScenarioState<T>): void {
    if (this.#mistake !== undefined)
      throw this.#failure('error', `simulate: ${this.#mistake.what}`, this.#mistake.error);
    if (scenario.kind === 'threw') {
      throw this.#failure('error', 'simulate: the scenario threw', scenario.error);
    }
    if (this.#failures.length > 0) {
      const uncaught = this.#failures.find(({ task }) => !task.isWaitedFor);
      if (uncaught !== undefined)
        throw this.#failure(
          'error',
          `simulate: task "${uncaught.task.name}" threw and nobody waits for it`,
          uncaught.error,
        );
      this.#failures = [];
    }
    this.#require('invariant', 'invariant', this.#invariants);
  }

  #require(reason: FailureReason, what: string, checks: readonly NamedCheck[]): void {
    for (const { name, check } of checks) {
      const verdict = judge(check);
      if (!verdict.holds) throw this.#failure(reason, `simulate: ${what} "${name}" does not hold`, verdict.why);
    }
  }

  #wakeWatches(): boolean {
    let hasWoken = false;
    for (const watch of this.#watches) {
      const verdict = judge(watch.check);
      if (verdict.holds) {
        this.#watches.delete(watch);
        this.cancel(watch.timer);
        watch.resolve();
        hasWoken = true;
      } else if (watch.isOverdue) {
        throw this.#failure(
          'eventually',
          `simulate: "${watch.name}" has not come true within ${watch.withinMs} ms`,
          verdict.why,
        );
      }
    }
    return hasWoken;
  }

  #checkBounds(): void {
    const { maxTimeMs } = this.#settings;
    if (this.#heap.size === 0) {
      const hint = 'A lost message is never answered; a real timer, socket or file is not part of this world.';
      throw this.#failure(
        'deadlock',
        `simulate: deadlock, nothing is left to run while the scenario waits. ${hint}\n${this.#whatWaits()}`,
      );
    }
    this.#checkCount(this.#steps);
    if (this.#heap.nextAtMs > maxTimeMs) {
      throw this.#failure(
        'limit',
        `simulate: the scenario has not ended after maxTime, ${maxTimeMs} ms of virtual time\n${this.#whatWaits()}`,
      );
    }
  }

  #checkCount(count: number): void {
    const { maxSteps } = this.#settings;
    if (count < maxSteps) return;
    throw this.#failure(
      'limit',
      `simulate: the scenario has not ended after maxSteps, ${maxSteps} events\n${this.#whatWaits()}`,
    );
  }

  #whatWaits(): string {
    const lines = [...this.#tasks].map((task) => `task "${task.name}" has not ended`);
    for (const { name, process } of this.#nodes.values()) {
      if (process === undefined) continue;
      if (process.isFrozen) lines.push(`node "${name}" is frozen and holds back ${process.heldCount} events`);
      for (const task of process.tasks) lines.push(`task "${task.name}" of node "${name}" has not ended`);
      for (const exchange of process.exchanges) {
        lines.push(
          `request ${exchange.id} of node "${name}" to "${exchange.server.name}" has no answer: ${exchange.fate}`,
        );
      }
    }
    const shown = lines.slice(0, 20);
    if (lines.length > shown.length) shown.push(`and ${lines.length - shown.length} more`);
    return ['  waiting:', ...shown.map((line) => `    ${line}`)].join('\n');
  }

  #failure(reason: FailureReason, what: string, cause?: unknown): SimulationError {
    return new SimulationError(reason, what, this.#whereItStands(), cause);
  }

  #whereItStands(): FailurePoint {
    return {
      seed: this.seed,
      step: this.#steps,
      virtualMs: this.#nowMs,
      digest: this.trace.hash.digest(),
      trace: this.trace.lastLines(),
    };
  }

  #assertRunning(): void {
    if (this.#hasEnded) throw new Error('simulate: this world has ended');
  }
}

class WorldClock implements Clock {
  readonly #world: Simulation;
  readonly #wallStartMs: number;

  constructor(world: Simulation, wallStartMs: number) {
    this.#world = world;
    this.#wallStartMs = wallStartMs;
  }

  now(): number {
    return this.#world.now();
  }

  wallNow(): number {
    return this.#wallStartMs + this.#world.now();
  }

  schedule(timer: Timer, atMs: number): void {
    if (!Number.isFinite(atMs))
      throw new RangeError(`clock: a timer needs an instant in milliseconds, got ${String(atMs)}`);
    this.#world.schedule(timer, upToTick(Math.max(atMs, this.#world.now())), undefined);
  }

  cancel(timer: Timer): void {
    this.#world.cancel(timer);
  }
}

type Verdict = { readonly holds: true } | { readonly holds: false; readonly why: unknown };

const holds: Verdict = { holds: true };
const fails: Verdict = { holds: false, why: undefined };

function judge(check: Check): Verdict {
  try {
    const answer = check();
    if (answer instanceof Promise)
      return { holds: false, why: new TypeError('a check must answer at once, this one gave a promise') };
    return answer === false ? fails : holds;
  } catch (why) {
    return { holds: false, why };
  }
}
