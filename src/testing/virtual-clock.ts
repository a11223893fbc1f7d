/**
 * Virtual clock: time that stands still until a test moves it.
 *
 * Promise: timers fire in order of their instants; those of the same instant in the order of their scheduling. Between two of them every microtask runs, so a
 * timer sees all effects of the one before it.
 */
import { type Clock, callbackTimer, type Timer } from '../core/clock.js';
import { type Duration, toMs } from '../core/duration.js';
import { checkOptions, type Field, integer, withDefault } from '../core/options.js';
import { EventHeap } from './event-heap.js';
import { inTurns } from './turns.js';

/** Options of {@link virtualClock}. */
export interface VirtualClockOptions {
  /** The initial value of `now()`. Milliseconds, default 0. */
  readonly now?: number | undefined;
  /** The initial value of `wallNow()`. Milliseconds since 1970, default 2026-01-01T00:00:00Z. */
  readonly wallNow?: number | undefined;
}

/** Options of {@link VirtualClock.runAll}. */
export interface RunAllOptions {
  /** Timers that may fire before the clock gives up. Default 10 000: more look like a timer that renews itself. */
  readonly maxTimers?: number | undefined;
}

/** A {@link Clock} that a test moves by hand. */
export interface VirtualClock extends Clock {
  /** Timers that have not fired and were not cancelled: 0 when nothing leaks. */
  readonly pendingTimers: number;
  /** When the next timer is due on `now()`'s scale, or undefined. */
  readonly nextTimerAt: number | undefined;
  /**
   * Moves time forward, fires the timers that fall due on the way, and resolves when all of them have run.
   *
   * A timer scheduled meanwhile that falls due in the same stretch fires too.
   * @param duration - Milliseconds, or a literal such as `'5s'`.
   * @throws Error, when another `advance`, `advanceTo` or `runAll` is still under way.
   */
  advance(duration: Duration): Promise<void>;
  /**
   * Moves time forward to an instant of `now()`'s scale.
   * @throws RangeError, when the instant is past.
   */
  advanceTo(atMs: number): Promise<void>;
  /**
   * Fires timers, one after the other, until none is left; resolves with how many fired.
   * @throws Error, when `maxTimers` have fired and there is still one.
   */
  runAll(options?: RunAllOptions): Promise<number>;
  /** Lets all microtasks run and fires what is due, without moving time. */
  flush(): Promise<void>;
  /** Resolves when the clock has been moved by this much; rejects with the signal's reason when it aborts. */
  sleep(duration: Duration, options?: { readonly signal?: AbortSignal | undefined }): Promise<void>;
  /** Moves the wall clock, forwards or backwards, and leaves monotonic time alone, as a time server does. */
  jumpWallClock(ms: number): void;
}

/** The initial wall time in tests: a fixed day, so that a test gives the same result tomorrow. */
export const defaultWallMs = Date.UTC(2026, 0, 1);

/**
 * A clock for tests: time moves only when you say so, and moving it runs everything that falls due.
 *
 * Give it to a policy's `clock` option. Use {@link simulate} if more than one process, a network or crashes matter.
 * It controls only what waits on it: a real timer, a socket or a file in the code under test still takes real time.
 *
 * @throws {@link OptionsError} `ERR_OPTIONS`, when an option is unknown or not a finite number.
 * @example
 * ```ts
 * import assert from 'node:assert';
 * import { virtualClock } from 'holdfast/testing';
 *
 * const clock = virtualClock();
 * let isAwake = false;
 * const nap = clock.sleep('5s').then(() => {
 *   isAwake = true;
 * });
 * await clock.advance(4999);
 * assert.equal(isAwake, false);
 * await clock.advance(1);
 * assert.equal(isAwake, true);
 * assert.equal(clock.pendingTimers, 0);
 * await nap;
 * ```
 */
export function virtualClock(options: VirtualClockOptions = {}): VirtualClock {
  const { now, wallNow } = checkOptions('virtualClock', options, {
    now: withDefault(instant(), 0),
    wallNow: withDefault(instant(), defaultWallMs),
  });
  return new ScriptedClock(now, wallNow);
}

class ScriptedClock implements VirtualClock {
  readonly #heap = new EventHeap<undefined>();
  #nowMs: number;
  /** Wall time minus monotonic time. */
  #wallOffsetMs: number;
  #scheduledCount = 0;
  #isMoving = false;

  constructor(nowMs: number, wallMs: number) {
    this.#nowMs = nowMs;
    this.#wallOffsetMs = wallMs - nowMs;
  }

  get pendingTimers(): number {
    return this.#heap.size;
  }

  get nextTimerAt(): number | undefined {
    return this.#heap.size === 0 ? undefined : this.#heap.nextAtMs;
  }

  now(): number {
    return this.#nowMs;
  }

  wallNow(): number {
    return this.#nowMs + this.#wallOffsetMs;
  }

  schedule(timer: Timer, atMs: number): void {
    // A comparison with NaN would silently break the order of the heap.
    this.#heap.add(timer, finite('atMs', atMs), this.#scheduledCount++, undefined);
  }

  cancel(timer: Timer): void {
    this.#heap.remove(timer);
  }

  async advance(duration: Duration): Promise<void> {
    await this.#moveTo(this.#nowMs + toMs(duration));
  }

  async advanceTo(atMs: number): Promise<void> {
    if (!(atMs >= this.#nowMs)) {
      throw new RangeError(`virtualClock: cannot advance to ${atMs} ms, the clock already shows ${this.#nowMs} ms`);
    }
    await this.#moveTo(finite('atMs', atMs));
  }

  async runAll(options: RunAllOptions = {}): Promise<number> {
    const { maxTimers } = checkOptions('runAll', options, { maxTimers: withDefault(integer({ min: 1 }), 10_000) });
    let fired = 0;
    await this.#move(() => {
      if (this.#heap.size === 0) return false;
      if (fired === maxTimers) {
        throw new Error(
          `virtualClock: ${fired} timers have fired and ${this.#heap.size} are still pending at ${this.#nowMs} ms; ` +
            'a timer seems to renew itself, use advance() or raise maxTimers',
        );
      }
      fired++;
      this.#fireNext();
      return true;
    });
    return fired;
  }

  async flush(): Promise<void> {
    await this.#moveTo(this.#nowMs);
  }

  sleep(duration: Duration, { signal }: { readonly signal?: AbortSignal } = {}): Promise<void> {
    return sleepOn(this, toMs(duration), signal);
  }

  jumpWallClock(ms: number): void {
    this.#wallOffsetMs += finite('ms', ms);
  }

  #moveTo(targetMs: number): Promise<void> {
    return this.#move(() => {
      const isDue = this.#heap.nextAtMs <= targetMs;
      if (isDue) this.#fireNext();
      else this.#nowMs = targetMs;
      return isDue;
    });
  }

  async #move(step: () => boolean): Promise<void> {
    if (this.#isMoving) throw new Error('virtualClock: the clock is already being moved, await that call first');
    this.#isMoving = true;
    try {
      // The first step comes a turn later, so that what the caller has just started can schedule its timers.
      await inTurns(step);
    } finally {
      this.#isMoving = false;
    }
  }

  #fireNext(): void {
    this.#nowMs = Math.max(this.#nowMs, this.#heap.nextAtMs);
    this.#heap.takeFirst().expire();
  }
}

/**
 * Resolves at an instant of any clock.
 *
 * @param whenAwake - When the code that sleeps can be told of an abort. Default: at once.
 */
export function sleepOn(
  clock: Clock,
  durationMs: number,
  signal?: AbortSignal,
  whenAwake = (act: () => void) => act(),
): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason);
    const timer = callbackTimer(() => {
      signal?.removeEventListener('abort', abort);
      resolve();
    });
    const abort = () =>
      whenAwake(() => {
        clock.cancel(timer);
        reject(signal?.reason);
      });
    signal?.addEventListener('abort', abort, { once: true });
    clock.schedule(timer, clock.now() + durationMs);
  });
}

function instant(): Field<number> {
  return {
    allowed: 'a finite number of milliseconds',
    parse: (value) => (Number.isFinite(value) ? (value as number) : undefined),
  };
}

function finite(name: string, value: number): number {
  if (Number.isFinite(value)) return value;
  throw new RangeError(`virtualClock: ${name} must be a finite number of milliseconds, got ${String(value)}`);
}
