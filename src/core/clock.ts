/**
 * Clock: the source of time. Durations are measured in monotonic time; wall time serves only dates in headers.
 *
 * Promise: a timer never fires early. On Node and Bun, what arrived while the event loop was blocked, or the process frozen, is read before late
 * timers expire. A pending timer keeps the process alive, unless it belongs to the background clock. One event loop turn after its last timer is gone,
 * the clock holds no platform timer, so idle policies own none.
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
  /** The same time for housekeeping: its timers do not keep the process alive. Without it, the clock itself is used. */
  readonly background?: Clock | undefined;
}

/** The longest wait that a platform timer supports; also the longest duration that any option accepts. */
export const longestWaitMs = 0x7fff_ffff;

/**
 * A timer further ahead than this is first scheduled nearer. It is half of the wheel's range, because the wheel's tick lags behind while late timers
 * are delivered.
 */
const reachMs = 0x4000_0000;

/** A platform timer that is later than this was held up by a busy event loop. */
const lateMs = 5;

/** Fake timers that a test installed before the import are not kept: the test may remove or replace them. */
const areFake = /* @__PURE__ */ isFake(globalThis.setTimeout);
const setTimer: (then: () => void, ms: number) => ReturnType<typeof setTimeout> = areFake
  ? (then, ms) => globalThis.setTimeout(then, ms)
  : globalThis.setTimeout;
const clearTimer: typeof clearTimeout = areFake ? (timer) => globalThis.clearTimeout(timer) : globalThis.clearTimeout;

/**
 * Looks `performance` up on first use: on Node 24 that costs 1.5 ms, a quarter of importing this package. If a test's fake timers are installed by
 * then, it comes from a place that they do not replace; otherwise the clock would show fake time for ever.
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
  /** The instant of the wheel's current tick. Ticks are counted modulo 2^32, instants are not. */
  private knownMs = 0;
  /** Timers beyond the wheel's range, each with the timer that brings it into range. */
  private readonly far = new Map<Timer, Timer>();
  private sweepIsDue = false;
  protected readonly keepsAlive: boolean;
  /**
   * An empty async context. One platform timer serves all calls and rearms itself while any of them waits. Without this, it would keep the context of
   * the request that first set it and show it to whatever expires later. The context of the import would leak the same way, since a request may have
   * triggered the import.
   */
  private readonly context: AsyncContext;
  private backgroundClock: SystemClock | undefined = undefined;
  /**
   * Platform timers come before what has arrived in the meantime. After a long turn, an operation that ended in time would count as timed out, and the
   * breaker of a healthy service would open.
   */
  private readonly onPlatformTimer = () => {
    const isLate = ((Math.floor(this.now()) - this.armedTick) | 0) > lateMs;
    if (isLate && atTurnEnd !== undefined) atTurnEnd(this.expireDue);
    else this.expireDue();
  };
  private readonly expireDue = () => {
    // Armed anew if a nearer timer was scheduled in the meantime.
    this.disarm();
    this.knownMs = this.now();
    this.wheel.advance(Math.floor(this.knownMs), expireTimer);
    if (this.platformTimer === undefined) this.arm();
  };
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
    // If the platform timer is armed, the wheel's tick is recent enough; otherwise it may be a month old.
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
    // Arming and disarming the platform timer costs more than a call, so it is done once per event loop turn.
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
    // Forgotten first: at the end of the stack the platform may set no timer, and whoever comes next must not rely on the old one.
    this.disarm();
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
}

function unref(timer: { unref?(): void }): void {
  // Where a timer is a number there is no process to keep.
  timer.unref?.();
}

function expireTimer(timer: Timer): void {
  try {
    timer.expire();
  } catch (error) {
    // The exception is reported like that of any callback, and the other timers still run.
    asMicrotask(() => {
      throw error;
    });
  }
}

/**
 * The clock of workerd. There a timer belongs to the request that sets it: it ends with the request, and no other request can clear it. A shared
 * timer would leave the other requests waiting for ever, so each wait has its own. The same holds for a test's fake timers, which end when the test
 * removes them.
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
      // A timer of another request cannot be cleared. When it fires, it finds that it was cancelled.
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
