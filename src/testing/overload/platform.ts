/**
 * The platform in virtual time: while a run is played, it replaces the global timers, `Date.now`, `performance.now`, `AbortSignal.timeout` and `Math.random`
 * with those of the run. So libraries that support no other clock take part, and the same seed gives the same run.
 */
import { callbackTimer, longestWaitMs, Timer } from '../../core/clock.js';
import { type SeededRandom, seededRandom } from '../random.js';
import { sleepOn, type VirtualClock, virtualClock } from '../virtual-clock.js';
import { type PlayOptions, type Report, type Run, reportOf, runIn } from './overload.js';
import { serviceOf } from './services.js';

/** Like `play`, for strategies whose libraries take time and randomness from the platform. */
export async function playOnPlatform(options: PlayOptions): Promise<Report> {
  return reportOf(await runOnPlatform(options.seed, () => options));
}

/** The timers that are replaced. */
export type PlatformTimers = Pick<typeof globalThis, 'setTimeout' | 'clearTimeout' | 'setInterval' | 'clearInterval'>;

/**
 * Plays one run while the platform's time is virtual.
 *
 * @param prepare - Called once time is virtual, so that modules it loads find virtual time.
 * @param timers - The object whose timers are replaced. Default: the global object.
 */
export async function runOnPlatform(
  seed: number,
  prepare: () => PlayOptions | Promise<PlayOptions>,
  timers: PlatformTimers = globalThis,
): Promise<Run> {
  const clock = virtualClock();
  const random = seededRandom(seed);
  const platform = new Platform(clock, random.fork('platform'), timers);
  try {
    const options = await prepare();
    return await runIn(
      {
        clock,
        random,
        service: serviceOf(options.shape, clock, random.fork('service')),
        until: (atMs) => clock.advanceTo(atMs),
        end: () => {
          // Intervals would run for ever, and no more users come who could see them.
          platform.endIntervals();
          return clock.advance(restMs);
        },
      },
      options,
    );
  } finally {
    platform.putBack();
  }
}

/** What is left after the last user takes minutes. Without an end, a timer that renews itself, such as a heartbeat, would go on for ever. */
const restMs = 24 * 3_600_000;

/** What `util.promisify` looks for. */
const promisified = Symbol.for('nodejs.util.promisify.custom');

type Task = (...values: unknown[]) => void;

class Platform {
  private readonly clock: VirtualClock;
  private readonly timers: PlatformTimers;
  private readonly intervals = new Set<PlatformTimer>();
  private readonly real: PlatformTimers;
  private readonly realNow = Date.now;
  private readonly realRandom = Math.random;
  private readonly realSignal = AbortSignal.timeout;

  constructor(clock: VirtualClock, random: SeededRandom, timers: PlatformTimers) {
    this.clock = clock;
    this.timers = timers;
    const { setTimeout, clearTimeout, setInterval, clearInterval } = timers;
    this.real = { setTimeout, clearTimeout, setInterval, clearInterval };
    const clear = (timer: unknown) => this.clear(timer);
    const begin = (task: Task, ms?: unknown, ...values: unknown[]) => this.begin(() => task(...values), ms, false);
    const wait = async (ms?: unknown, value?: unknown, options?: { readonly signal?: AbortSignal }) => {
      await sleepOn(clock, waitOf(ms), options?.signal);
      return value;
    };
    Object.assign(timers, {
      setTimeout: Object.assign(begin, { [promisified]: wait }),
      setInterval: (task: Task, ms?: unknown, ...values: unknown[]) => this.begin(() => task(...values), ms, true),
      clearTimeout: clear,
      clearInterval: clear,
    });
    Date.now = () => Math.floor(clock.wallNow());
    performance.now = () => clock.now();
    Math.random = random;
    AbortSignal.timeout = (ms) => {
      const controller = new AbortController();
      const abort = () =>
        controller.abort(new DOMException('The operation was aborted due to timeout', 'TimeoutError'));
      clock.schedule(callbackTimer(abort), clock.now() + ms);
      return controller.signal;
    };
  }

  endIntervals(): void {
    for (const timer of this.intervals) this.clear(timer);
  }

  putBack(): void {
    Object.assign(this.timers, this.real);
    Date.now = this.realNow;
    Math.random = this.realRandom;
    AbortSignal.timeout = this.realSignal;
    // The real `now` is on the prototype.
    Reflect.deleteProperty(performance, 'now');
  }

  private begin(task: () => void, ms: unknown, repeats: boolean): PlatformTimer {
    const timer = new PlatformTimer(this.clock, task, waitOf(ms), repeats);
    if (repeats) this.intervals.add(timer);
    return timer;
  }

  private clear(timer: unknown): void {
    if (!(timer instanceof PlatformTimer)) return;
    this.intervals.delete(timer);
    this.clock.cancel(timer);
  }
}

/** As in Node, a timer takes a millisecond if it is given less, more than it can wait, or no number. */
function waitOf(given: unknown): number {
  const ms = Number(given);
  return ms >= 1 && ms <= longestWaitMs ? Math.trunc(ms) : 1;
}

class PlatformTimer extends Timer {
  private readonly clock: VirtualClock;
  private readonly task: () => void;
  private readonly ms: number;
  private readonly repeats: boolean;

  constructor(clock: VirtualClock, task: () => void, ms: number, repeats: boolean) {
    super();
    this.clock = clock;
    this.task = task;
    this.ms = ms;
    this.repeats = repeats;
    this.refresh();
  }

  override expire(): void {
    if (this.repeats) this.refresh();
    this.task();
  }

  refresh(): this {
    this.clock.schedule(this, this.clock.now() + this.ms);
    return this;
  }

  /** Virtual time does not keep the process alive. */
  ref(): this {
    return this;
  }

  unref(): this {
    return this;
  }

  hasRef(): boolean {
    return false;
  }
}
