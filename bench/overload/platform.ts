/**
 * The platform in virtual time: while a run is played, the global timers, `Date.now`, `performance.now` and `Math.random`
 * are those of the run. So libraries that know nothing else take part, and the same seed plays the same run.
 */
import { Timer } from '../../src/index.js';
import { type SeededRandom, seededRandom, type VirtualClock, virtualClock } from '../../src/testing/index.js';
import { type PlayOptions, playIn, type Report } from '../../test/simulation/support/overload.ts';
import { serviceOf } from '../../test/simulation/support/services.ts';

/** As `play`, for strategies whose libraries take time and chance from the platform. */
export async function playOnPlatform(options: PlayOptions): Promise<Report> {
  const clock = virtualClock();
  const random = seededRandom(options.seed);
  const platform = new Platform(clock, random.fork('platform'));
  try {
    return await playIn(
      {
        clock,
        random,
        service: serviceOf(options.shape, clock, random.fork('service')),
        until: (atMs) => clock.advanceTo(atMs),
        end: () => {
          // Intervals would go on for ever; nobody comes any more who could see it.
          platform.endIntervals();
          return clock.runAll({ maxTimers: 10_000_000 });
        },
      },
      options,
    );
  } finally {
    platform.putBack();
  }
}

type Task = (...values: unknown[]) => void;

class Platform {
  private readonly clock: VirtualClock;
  private readonly intervals = new Set<PlatformTimer>();
  private readonly real = { setTimeout, clearTimeout, setInterval, clearInterval };
  private readonly realNow = Date.now;
  private readonly realRandom = Math.random;

  constructor(clock: VirtualClock, random: SeededRandom) {
    this.clock = clock;
    const clear = (timer: unknown) => this.clear(timer);
    Object.assign(globalThis, {
      setTimeout: (task: Task, ms?: number, ...values: unknown[]) => this.begin(() => task(...values), ms, false),
      setInterval: (task: Task, ms?: number, ...values: unknown[]) => this.begin(() => task(...values), ms, true),
      clearTimeout: clear,
      clearInterval: clear,
    });
    Date.now = () => Math.floor(clock.wallNow());
    performance.now = () => clock.now();
    Math.random = random;
  }

  endIntervals(): void {
    for (const timer of this.intervals) this.clear(timer);
  }

  putBack(): void {
    Object.assign(globalThis, this.real);
    Date.now = this.realNow;
    Math.random = this.realRandom;
    // The real one is the prototype's.
    Reflect.deleteProperty(performance, 'now');
  }

  private begin(task: () => void, ms: number | undefined, repeats: boolean): PlatformTimer {
    // As in Node: no wait is shorter than a millisecond.
    const timer = new PlatformTimer(this.clock, task, Math.max(1, Math.trunc(ms ?? 1)), repeats);
    if (repeats) this.intervals.add(timer);
    return timer;
  }

  private clear(timer: unknown): void {
    if (!(timer instanceof PlatformTimer)) return;
    this.intervals.delete(timer);
    this.clock.cancel(timer);
  }
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
    this.begin();
  }

  override expire(): void {
    if (this.repeats) this.begin();
    this.task();
  }

  /** Virtual time keeps no process alive. */
  unref(): this {
    return this;
  }

  private begin(): void {
    this.clock.schedule(this, this.clock.now() + this.ms);
  }
}
