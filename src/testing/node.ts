/**
 * Node: a simulated machine with its own clock, and the processes that run on it one after the other.
 *
 * Promise: nothing of a crashed process ever runs again. Nothing of a frozen process runs before it is thawed, and then in the order in which it fell due.
 * Each node has its own clocks, and no timer fires before its clock has reached it.
 */
import { type Clock, callbackTimer, Timer } from '../core/clock.js';
import { type Duration, toMs } from '../core/duration.js';
import { checkArgument, checkOptions, func, number, optional, withDefault } from '../core/options.js';
import { tickMs, upToTick } from './distribution.js';
import type { Exchange, NodeReference, RequestArrival, RequestHandler, ServedRequest } from './network.js';
import type { SeededRandom } from './random.js';
import { NodeCrashedError } from './simulation-error.js';
import { Task } from './task.js';
import { sleepOn } from './virtual-clock.js';
import type { Simulation } from './world.js';

/** Options of {@link World.node}. */
export interface NodeOptions {
  /**
   * What a process does when it starts, at first and after every restart: recover, `serve`, start its loops. Its
   * local variables are lost in a crash; what must last lives outside of it.
   */
  readonly start?: ((process: SimulatedProcess) => unknown) | undefined;
  /** How far the wall clock is ahead of the world's (behind, if negative). Milliseconds, default 0. */
  readonly wallOffset?: number | undefined;
  /** How much faster than the world its clocks run: 0.001 gains a millisecond per second. Above -1, default 0. */
  readonly drift?: number | undefined;
}

/** A machine of the simulated world, as the scenario sees it. */
export interface SimulatedNode {
  readonly name: string;
  /** The clock of the running process: give it to policies. Each process counts from its own origin. */
  readonly clock: Clock;
  /** The node's own stream of random values. */
  readonly random: SeededRandom;
  readonly state: 'running' | 'frozen' | 'down';
  /** Timers that the running process waits for: 0 when nothing leaks. */
  readonly pendingTimers: number;
  /**
   * Runs a function on this node, as soon as its turn comes. If the node crashes first, the promise rejects with a
   * {@link NodeCrashedError}; an error that nothing awaits ends the simulation.
   */
  run<T>(name: string, task: (process: SimulatedProcess) => T | PromiseLike<T>): Promise<T>;
  /**
   * Ends the process at once, like `kill -9`: its timers and tasks never run again, requests to it break.
   * Code that crashes its own node runs on until its next await. Does nothing when the node is down.
   */
  crash(): void;
  /** Starts a new process, after crashing the old one if it runs. */
  restart(): void;
  /** Stops the process without ending it, as SIGSTOP, a long garbage collection or a suspended machine do. */
  freeze(): void;
  /** Resumes a frozen process: what fell due meanwhile runs now, in order. */
  thaw(): void;
  /** Moves the wall clock, forwards or backwards, as a time server does. */
  jumpWallClock(ms: number): void;
  /** Changes the speed of the node's clocks from now on. Timers keep their instants on the node's clock. */
  setDrift(drift: number): void;
}

/** Options of {@link SimulatedProcess.request} and {@link SimulatedProcess.sleep}. */
export interface WaitOptions {
  /** Ends the wait: the promise rejects with the signal's reason. */
  readonly signal?: AbortSignal | undefined;
}

/** A process, as code on a node sees it. It dies with a crash; a restart creates a new one. */
export interface SimulatedProcess {
  /** The machine it runs on. */
  readonly node: SimulatedNode;
  /** 1 for the first process of its node, 2 after a restart. */
  readonly incarnation: number;
  readonly clock: Clock;
  readonly random: SeededRandom;
  sleep(duration: Duration, options?: WaitOptions): Promise<void>;
  /**
   * Sends a message to a node and waits for its reply. Both are copied, so that nodes share no memory.
   *
   * A lost request or reply is never answered: pass a signal, or wrap it in a timeout.
   * @throws {@link ConnectionRefusedError} `ECONNREFUSED`, when nothing listens there.
   * @throws {@link ConnectionResetError} `ECONNRESET`, when the other side went down meanwhile.
   * @throws {@link RemoteError} `ERR_REMOTE`, when the handler threw.
   */
  request<Answer = unknown>(to: NodeReference, message: unknown, options?: WaitOptions): Promise<Answer>;
  /** Handles requests from now on. Once per process. */
  serve<Message>(handler: (message: Message, request: ServedRequest) => unknown): void;
  /**
   * Runs a function beside the others of this process; an error that nothing awaits ends the simulation. Like all that
   * a process waits for, it never settles once the process has crashed.
   */
  run<T>(name: string, task: (process: SimulatedProcess) => T | PromiseLike<T>): Promise<T>;
  /** Adds a line to the trace, and so to the digest. */
  log(text: string): void;
}

const driftField = number({ min: -0.999, max: 1000 });
const offsetField = number({ min: -1e12, max: 1e12 });

/** The clock of each process starts at a random instant below this, so that code that compares instants of two processes fails visibly. */
const latestOriginMs = 1_000_000;

/** Instants beyond the next thirty years are a mistake. */
const farthestMs = 1e12;

export class Node implements SimulatedNode {
  readonly name: string;
  readonly clock: Clock;
  readonly random: SeededRandom;
  readonly world: Simulation;
  process: Process | undefined;
  #incarnations = 0;
  readonly #start: ((process: SimulatedProcess) => unknown) | undefined;
  // The machine's own millisecond counter: linear in the world's time since the drift last changed.
  #rate: number;
  #bentAtMs: number;
  #countAtBend = 0;
  #wallOffsetMs: number;

  constructor(world: Simulation, name: string, options: NodeOptions) {
    const { start, wallOffset, drift } = checkOptions('node', options, {
      start: optional(func<(process: SimulatedProcess) => unknown>()),
      wallOffset: withDefault(offsetField, 0),
      drift: withDefault(driftField, 0),
    });
    this.world = world;
    this.name = name;
    this.random = world.random.fork(`node/${name}`);
    this.#start = start;
    this.#rate = 1 + drift;
    this.#bentAtMs = world.now();
    this.#wallOffsetMs = world.clock.wallNow() + wallOffset;
    this.clock = new NodeClock(this);
  }

  get state(): 'running' | 'frozen' | 'down' {
    if (this.process === undefined) return 'down';
    return this.process.isFrozen ? 'frozen' : 'running';
  }

  get pendingTimers(): number {
    return this.process === undefined ? 0 : this.world.countTimersOf(this.process);
  }

  /** Starts the first process. Not in the constructor, so that the world knows the node when its code runs. */
  boot(): void {
    this.#incarnations++;
    const process = new Process(this, this.#incarnations);
    this.process = process;
    this.world.note('start', this.name, '', `process ${this.#incarnations}`);
    const start = this.#start;
    if (start !== undefined)
      this.world.follow(new Task(`start of ${this.name}`, 'process'), process, () => start(process));
  }

  run<T>(name: string, task: (process: SimulatedProcess) => T | PromiseLike<T>): Promise<T> {
    if (this.process !== undefined) return this.process.begin(new Task<T>(name, 'scenario'), task);
    const refused = new Task<T>(name, 'scenario');
    refused.fail(new NodeCrashedError(this.name, name));
    return refused;
  }

  crash(): void {
    const process = this.process;
    if (process === undefined) return;
    this.world.note('crash', this.name);
    this.process = undefined;
    process.die();
  }

  restart(): void {
    this.crash();
    this.boot();
  }

  freeze(): void {
    if (this.process === undefined || this.process.isFrozen) return;
    this.world.note('freeze', this.name);
    this.process.isFrozen = true;
  }

  thaw(): void {
    if (!this.process?.isFrozen) return;
    this.world.note('thaw', this.name);
    this.process.thaw();
  }

  jumpWallClock(ms: number): void {
    this.#wallOffsetMs += checkArgument('jumpWallClock', 'ms', ms, offsetField);
    this.world.note('clock', this.name, '', `wall clock jumps ${ms} ms`);
  }

  setDrift(drift: number): void {
    const rate = 1 + checkArgument('setDrift', 'drift', drift, driftField);
    const timers = this.process?.takeTimers() ?? [];
    this.#countAtBend = this.countAt(this.world.now());
    this.#bentAtMs = this.world.now();
    this.#rate = rate;
    this.world.note('clock', this.name, '', `drift ${drift}`);
    for (const { timer, atMs } of timers) this.process?.clock.schedule(timer, atMs);
  }

  wallNow(): number {
    return this.#wallOffsetMs + this.countAt(this.world.now());
  }

  /** The machine's counter at an instant of the world's time. */
  countAt(worldMs: number): number {
    return this.#countAtBend + (worldMs - this.#bentAtMs) * this.#rate;
  }

  /** About when the counter reaches this value: the inverse of {@link countAt}, up to rounding. */
  instantOf(count: number): number {
    return this.#bentAtMs + (count - this.#countAtBend) / this.#rate;
  }
}

/** The clock of the process that is running at the time. */
class NodeClock implements Clock {
  readonly #node: Node;

  constructor(node: Node) {
    this.#node = node;
  }

  now(): number {
    return this.#node.process?.clock.now() ?? this.#node.countAt(this.#node.world.now());
  }

  wallNow(): number {
    return this.#node.wallNow();
  }

  schedule(timer: Timer, atMs: number): void {
    this.#node.process?.clock.schedule(timer, atMs);
  }

  cancel(timer: Timer): void {
    this.#node.process?.clock.cancel(timer);
  }
}

export class Process implements SimulatedProcess {
  readonly node: Node;
  readonly incarnation: number;
  readonly clock: ProcessClock;
  readonly random: SeededRandom;
  isDead = false;
  isFrozen = false;
  handler: RequestHandler | undefined;
  /** Requests this process has sent and waits for. */
  readonly exchanges = new Set<Exchange>();
  /** Requests this process is serving. */
  readonly serving = new Set<RequestArrival>();
  readonly tasks = new Set<Task>();
  /** What has arrived while it was frozen, in order. */
  #held: Held[] = [];

  constructor(node: Node, incarnation: number) {
    this.node = node;
    this.incarnation = incarnation;
    this.random = node.random.fork(`process/${incarnation}`);
    this.clock = new ProcessClock(this, node.random.fork(`origin/${incarnation}`).integer(0, latestOriginMs - 1));
  }

  async sleep(duration: Duration, { signal }: WaitOptions = {}): Promise<void> {
    const durationMs = toMs(duration);
    if (this.isDead) return never();
    await sleepOn(this.clock, durationMs, signal, (act) => this.whenAwake(act));
  }

  request<Answer = unknown>(to: NodeReference, message: unknown, { signal }: WaitOptions = {}): Promise<Answer> {
    const { world } = this.node;
    // Code that outlives its process for a moment must not reach the world any more.
    if (this.isDead) return never();
    return world.network.request(this, world.nodeOf(to), message, signal) as Promise<Answer>;
  }

  serve<Message>(handler: (message: Message, request: ServedRequest) => unknown): void {
    if (this.handler !== undefined)
      throw new Error(`simulate: node "${this.node.name}" already serves; one handler per process`);
    this.handler = checkArgument('serve', 'handler', handler, func<RequestHandler>());
  }

  run<T>(name: string, task: (process: SimulatedProcess) => T | PromiseLike<T>): Promise<T> {
    return this.isDead ? never() : this.begin(new Task<T>(name, 'process'), task);
  }

  begin<T>(promise: Task<T>, task: (process: SimulatedProcess) => T | PromiseLike<T>): Task<T> {
    this.tasks.add(promise as Task);
    this.node.world.scheduleAfter(new Begin(this, promise as Task, () => task(this)), 0);
    return promise;
  }

  /** Does something that comes from outside: at once, or after the thaw if the process is frozen, or never if it is dead. */
  whenAwake(act: () => void): void {
    if (this.isFrozen) this.hold(callbackTimer(act), this);
    else if (!this.isDead) act();
  }

  log(text: string): void {
    if (!this.isDead) this.node.world.logAs(this.node.name, text);
  }

  /** Holds an event back until the thaw. */
  hold(timer: Timer, owner?: Process): void {
    this.#held.push({ timer, owner });
  }

  /** Removes a timer that has fallen due during the freeze. */
  unhold(timer: Timer): void {
    if (this.#held.length > 0) this.#held = this.#held.filter((held) => held.timer !== timer);
  }

  get heldCount(): number {
    return this.#held.length;
  }

  thaw(): void {
    this.isFrozen = false;
    this.#releaseHeld();
  }

  /** The timers of its clock, with their instants on that clock. */
  takeTimers(): { timer: Timer; atMs: number }[] {
    return this.node.world.takeTimersOf(this).map(({ timer, atMs }) => ({ timer, atMs: this.clock.at(atMs) }));
  }

  die(): void {
    const { world } = this.node;
    this.isDead = true;
    this.isFrozen = false;
    world.takeTimersOf(this);
    // Its own timers are gone. Requests that came in while it was frozen find it dead, and break.
    this.#held = this.#held.filter(({ owner }) => owner === undefined);
    this.#releaseHeld();
    for (const task of this.tasks) {
      if (task.owner === 'scenario') task.fail(new NodeCrashedError(this.node.name, task.name));
      else task.silence();
    }
    this.tasks.clear();
    for (const exchange of this.exchanges) exchange.abandon();
    const broken = [...this.serving];
    this.serving.clear();
    for (const arrival of broken) arrival.breakOff();
  }

  /** Makes all held events happen now, before all others of this instant, in the order in which they came. */
  #releaseHeld(): void {
    const held = this.#held;
    this.#held = [];
    held.forEach(({ timer, owner }, index) => {
      this.node.world.scheduleRanked(timer, index - held.length, owner);
    });
  }
}

/** What code of a dead process waits for. */
function never(): Promise<never> {
  return new Promise(() => {});
}

interface Held {
  readonly timer: Timer;
  readonly owner: Process | undefined;
}

class ProcessClock implements Clock {
  readonly #process: Process;
  readonly #node: Node;
  readonly #world: Simulation;
  /** The value of this clock when the machine's counter is 0. */
  readonly #originMs: number;

  constructor(process: Process, originMs: number) {
    this.#process = process;
    this.#node = process.node;
    this.#world = process.node.world;
    this.#originMs = originMs;
  }

  now(): number {
    return this.at(this.#world.now());
  }

  wallNow(): number {
    return this.#node.wallNow();
  }

  schedule(timer: Timer, atMs: number): void {
    if (!(Math.abs(atMs) < farthestMs))
      throw new RangeError(`clock: a timer needs an instant in milliseconds, got ${String(atMs)}`);
    this.#process.unhold(timer);
    // A dead process's timers never fire.
    if (this.#process.isDead) return;
    let instantMs = upToTick(Math.max(this.#node.instantOf(atMs - this.#originMs), this.#world.now()));
    // Rounding may give an instant slightly too early, and a timer must not fire early.
    while (this.at(instantMs) < atMs) instantMs += tickMs;
    this.#world.schedule(timer, instantMs, this.#process);
  }

  cancel(timer: Timer): void {
    this.#process.unhold(timer);
    this.#world.cancel(timer);
  }

  /** The value of this clock at an instant of the world's time. */
  at(worldMs: number): number {
    return this.#originMs + this.#node.countAt(worldMs);
  }
}

/** Starts a task. */
class Begin extends Timer {
  readonly #process: Process;
  readonly #task: Task;
  readonly #run: () => unknown;

  constructor(process: Process, task: Task, run: () => unknown) {
    super();
    this.#process = process;
    this.#task = task;
    this.#run = run;
  }

  override expire(): void {
    const process = this.#process;
    if (process.isDead) return;
    if (process.isFrozen) {
      process.hold(this);
      return;
    }
    process.node.world.note('task', process.node.name, '', this.#task.name);
    process.node.world.follow(this.#task, process, this.#run);
  }
}
