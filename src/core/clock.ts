/**
 * Clock: where time comes from. Durations are measured on monotonic time; wall time serves only dates in headers.
 *
 * Promise: a timer never fires early; a pending timer keeps the process alive, unless it is one of the background's; one turn
 * of the event loop after the last timer has gone the clock holds no timer of the platform, so idle policies own none.
 */
import { TimerWheel, type WheelNode } from '../structures/timer-wheel.js';
import { type AsyncContext, emptyAsyncContext } from './async-context.js';
import { asMicrotask, atTurnEnd, isFake } from './event-loop.js';

/**
 * Something that waits for an instant. Give it to {@link Clock.schedule}; it is its own list node, so that waiting
 * allocates nothing. Extend it, or use {@link callbackTimer}.
 */
export abstract class Timer implements WheelNode {
  slotIndex = -1;
  tick = 0;
  previousInSlot: WheelNode | undefined = undefined;
  nextInSlot: WheelNode | undefined = undefined;
  /** Called once, when the instant has come. Must not throw. */
  abstract expire(): void;
}

/**
 * A source of time. {@link systemClock} is the real one; `virtualClock()` of `holdfast/testing` is scripted.
 */
export interface Clock {
  /** Monotonic milliseconds with fractions. Only differences mean anything. */
  now(): number;
  /** Milliseconds since 1970, for dates that come from outside. May jump. */
  wallNow(): number;
  /** Lets the timer expire as soon as `now()` has reached `atMs`. A timer that is already scheduled is moved. */
  schedule(timer: Timer, atMs: number): void;
  /** Takes the timer back; one that is not scheduled is left as it is. */
  cancel(timer: Timer): void;
  /** The same time, for housekeeping: its timers do not keep the process alive. Where it is missing, the clock itself serves. */
  readonly background?: Clock | undefined;
}

/** The longest wait a platform timer can do; also the longest duration any option takes. */
export const longestWaitMs = 0x7fff_ffff;

/** What lies further ahead is brought nearer first. It is half of what the wheel can hold, whose tick lies behind while late timers are handed out. */
const reachMs = 0x4000_0000;

/** Fakes that a test has put there before the import are not kept: it may take them away, and put others there. */
const areFake = /* @__PURE__ */ isFake(globalThis.setTimeout);
const setTimer: (then: () => void, ms: number) => ReturnType<typeof setTimeout> = areFake
  ? (then, ms) => globalThis.setTimeout(then, ms)
  : globalThis.setTimeout;
const clearTimer: typeof clearTimeout = areFake ? (timer) => globalThis.clearTimeout(timer) : globalThis.clearTimeout;

/**
 * Looked up when it is first needed: on Node 24 that costs 1.5 ms, a quarter of importing this package. Should fake timers of a
 * test stand there by then, it is taken from where they are not, or the clock would show their time for ever.
 */
function platformPerformance(): { now(): number } {
  if (areFake) return { now: () => globalThis.performance.now() };
  const hasFakes = globalThis.setTimeout !== setTimer;
  const ofNode = hasFakes ? globalThis.process?.getBuiltinModule?.('node:perf_hooks')?.performance : undefined;
  return ofNode ?? globalThis.performance;
}

class SystemClock implements Clock {
  private performance: { now(): number } | undefined = undefined;
  private readonly wheel = new TimerWheel<Timer>(0);
  private platformTimer: ReturnType<typeof setTimeout> | undefined;
  private armedTick = 0;
  /** An instant that the wheel's own tick stands for; ticks are counted modulo 2^32, instants are not. */
  private knownMs = 0;
  /** Timers beyond the reach of the wheel, each with one that brings it nearer. */
  private readonly far = new Map<Timer, Timer>();
  private sweepIsDue = false;
  protected readonly keepsAlive: boolean;
  /**
   * An empty one. One platform timer serves all calls, and while any of them waits it is set anew from itself: it would keep the context
   * of the request that set it first, and show it to whatever expires later; so would that of the import, which a request may have asked for.
   */
  private readonly context: AsyncContext;
  private backgroundClock: SystemClock | undefined = undefined;
  private readonly onPlatformTimer = () => this.wake();
  private readonly sweep = () => {
    this.sweepIsDue = false;
    if (this.wheel.size === 0) this.disarm();
  };

  constructor(keepsAlive: boolean, context = emptyAsyncContext()) {
    this.keepsAlive = keepsAlive;
    this.context = context;
  }

  get background(): Clock {
    if (!this.keepsAlive) return this;
    const Own = this.constructor as typeof SystemClock;
    this.backgroundClock ??= new Own(false, this.context);
    return this.backgroundClock;
  }

  now(): number {
    this.performance ??= platformPerformance();
    return this.performance.now();
  }

  wallNow(): number {
    return Date.now();
  }

  schedule(timer: Timer, atMs: number): void {
    const { wheel } = this;
    // Armed means that the wheel's own tick is recent enough; else it may lie a month back.
    if (this.platformTimer === undefined) {
      this.knownMs = this.now();
      wheel.rebase(Math.floor(this.knownMs));
    }
    if (this.far.size > 0) this.cancelFar(timer);
    if (atMs - this.knownMs >= reachMs) return this.scheduleFar(timer, atMs);
    wheel.add(timer, Math.ceil(atMs));
    if (this.platformTimer === undefined || ((timer.tick - this.armedTick) | 0) < 0) this.arm();
  }

  cancel(timer: Timer): void {
    const { wheel } = this;
    if (this.far.size > 0) this.cancelFar(timer);
    if (!wheel.remove(timer) || wheel.size > 0) return;
    // Arming and disarming the platform's timer costs more than a call, so it is done once per turn of the event loop.
    if (atTurnEnd === undefined) this.disarm();
    else if (!this.sweepIsDue) {
      this.sweepIsDue = true;
      atTurnEnd(this.sweep);
    }
  }

  private scheduleFar(timer: Timer, atMs: number): void {
    this.wheel.remove(timer);
    const nearer = callbackTimer(() => this.schedule(timer, atMs));
    this.far.set(timer, nearer);
    this.schedule(nearer, this.knownMs + reachMs - 1);
  }

  private cancelFar(timer: Timer): void {
    const nearer = this.far.get(timer);
    if (nearer === undefined) return;
    this.far.delete(timer);
    this.cancel(nearer);
  }

  private arm(): void {
    const tick = this.wheel.nextTick();
    if (tick === undefined) return this.disarm();
    clearTimer(this.platformTimer);
    this.armedTick = tick;
    const nowMs = this.now();
    // The tick is known modulo 2^32; the difference is small, so it is exact.
    const waitMs = ((tick - Math.floor(nowMs)) | 0) - (nowMs % 1);
    const ms = Math.min(Math.max(waitMs, 1), longestWaitMs);
    this.platformTimer = this.context.runInAsyncScope(setTimer, undefined, this.onPlatformTimer, ms);
    if (!this.keepsAlive) unref(this.platformTimer);
  }

  private disarm(): void {
    clearTimer(this.platformTimer);
    this.platformTimer = undefined;
  }

  private wake(): void {
    this.platformTimer = undefined;
    this.knownMs = this.now();
    this.wheel.advance(Math.floor(this.knownMs), expireTimer);
    if (this.platformTimer === undefined) this.arm();
  }
}

function unref(timer: { unref?(): void }): void {
  // Where a timer is a number there is no process to keep.
  timer.unref?.();
}

function expireTimer(timer: Timer): void {
  try {
    timer.expire();
  } catch (error) {
    // It is reported as any exception of a callback is, and the other timers go on.
    asMicrotask(() => {
      throw error;
    });
  }
}

/**
 * The clock of workerd, whose timers belong to the request that sets them: they end with it, and no other can clear them. One for
 * all would leave the others waiting for ever, so each wait has its own. The same holds for fakes of a test, which end when it takes them away.
 */
class RequestClock extends SystemClock {
  private readonly waits = new WeakMap<Timer, ReturnType<typeof setTimeout>>();

  override schedule(timer: Timer, atMs: number): void {
    this.cancel(timer);
    const waitMs = Math.min(Math.max(atMs - this.now(), 1), longestWaitMs);
    const wait = setTimer(() => {
      if (this.waits.get(timer) !== wait) return;
      this.waits.delete(timer);
      if (this.now() < atMs) this.schedule(timer, atMs);
      else expireTimer(timer);
    }, waitMs);
    if (!this.keepsAlive) unref(wait);
    this.waits.set(timer, wait);
  }

  override cancel(timer: Timer): void {
    const wait = this.waits.get(timer);
    if (wait === undefined) return;
    this.waits.delete(timer);
    try {
      clearTimer(wait);
    } catch {
      // Of another request. It finds that it was taken back.
    }
  }
}

function clockOfPlatform(): Clock {
  // Only workerd has this class. To ask `navigator` takes Node a hundredth of the import.
  const Own = areFake || 'WebSocketPair' in globalThis ? RequestClock : SystemClock;
  return new Own(true);
}

/**
 * The real clock: `performance.now()`, and one platform timer for everything that waits; in workerd one for each.
 *
 * @example
 * ```ts
 * import { systemClock } from 'holdfast';
 *
 * const startedMs = systemClock.now();
 * console.log(systemClock.now() - startedMs >= 0);
 * ```
 */
export const systemClock: Clock = /* @__PURE__ */ clockOfPlatform();

class WakeUp extends Timer {
  private readonly then: () => void;

  constructor(then: () => void) {
    super();
    this.then = then;
  }

  override expire(): void {
    this.then();
  }
}

/** A timer that calls a function. */
export function callbackTimer(then: () => void): Timer {
  return new WakeUp(then);
}
