import { AsyncLocalStorage } from 'node:async_hooks';
import { execFileSync } from 'node:child_process';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { type Clock, callbackTimer, pipeline, systemClock, timeout } from '../../src/index.js';

const nextTurn = () => new Promise(setImmediate);
const platformTimers = () => process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length;

describe('systemClock', () => {
  it('fires timers in order and never early', async () => {
    const startedMs = systemClock.now();
    const fired: [number, number][] = [];
    await Promise.all(
      [12, 3, 7, 3, 1].map(
        (afterMs) =>
          new Promise<void>((resolve) => {
            const timer = callbackTimer(() => {
              fired.push([afterMs, systemClock.now() - startedMs]);
              resolve();
            });
            systemClock.schedule(timer, startedMs + afterMs);
          }),
      ),
    );
    expect(fired.map(([afterMs]) => afterMs)).toEqual([1, 3, 3, 7, 12]);
    for (const [afterMs, elapsedMs] of fired) expect(elapsedMs).toBeGreaterThanOrEqual(afterMs);
  });

  it('fires no cancelled timer, and moves one that is scheduled again', async () => {
    const fired: string[] = [];
    const startedMs = systemClock.now();
    const taken = callbackTimer(() => fired.push('taken back'));
    systemClock.schedule(taken, startedMs + 1);
    systemClock.cancel(taken);
    systemClock.cancel(taken);
    await new Promise<void>((resolve) => {
      const moved = callbackTimer(() => {
        fired.push('moved');
        resolve();
      });
      systemClock.schedule(moved, startedMs + 60_000);
      systemClock.schedule(moved, startedMs + 4);
    });
    expect(fired).toEqual(['moved']);
  });

  it('holds one platform timer for ten thousand calls, and none one turn after the last has ended', async () => {
    const before = platformTimers();
    const quick = pipeline(timeout('1m'));
    const finish: (() => void)[] = [];
    const running = Array.from({ length: 10_000 }, () =>
      quick.execute(() => new Promise<void>((resolve) => finish.push(resolve))),
    );
    // The test runner may have a timer of its own, which ends when it likes.
    expect(platformTimers()).toBeLessThanOrEqual(before + 1);
    for (const end of finish) end();
    await Promise.all(running);
    await nextTurn();
    expect(platformTimers()).toBeLessThanOrEqual(before);
  });

  it('lets no timer expire in the asynchronous context of the call that happened to arm the platform timer', async () => {
    const requests = new AsyncLocalStorage<string>();
    const seen: unknown[] = [];
    const expiry = (afterMs: number) =>
      new Promise<void>((resolve) => {
        const timer = callbackTimer(() => {
          seen.push(requests.getStore());
          resolve();
        });
        systemClock.schedule(timer, systemClock.now() + afterMs);
      });
    await Promise.all([
      requests.run('first', () => expiry(1)),
      requests.run('second', () => expiry(4)),
      requests.run('third', () => expiry(2)),
    ]);
    expect(seen).toEqual([undefined, undefined, undefined]);
  });

  it('lets no timer expire in the asynchronous context of the request that happened to import it', async () => {
    const [requests, numbers] = [new AsyncLocalStorage<string>(), new AsyncLocalStorage<number>()];
    vi.resetModules();
    const fresh = await requests.run('first', () => numbers.run(1, () => import('../../src/core/clock.js')));
    expect(fresh.systemClock).not.toBe(systemClock);
    const expiry = (clock: Clock) =>
      new Promise<unknown[]>((resolve) => {
        const timer = fresh.callbackTimer(() => resolve([requests.getStore(), numbers.getStore()]));
        clock.schedule(timer, clock.now() + 1);
      });
    const none = [undefined, undefined];
    expect(await expiry(fresh.systemClock)).toEqual(none);
    // It has a timer of its own, so that the background's timer need not keep this process alive.
    expect(await Promise.all([expiry(fresh.systemClock.background!), expiry(fresh.systemClock)])).toEqual([none, none]);
  });

  it('uses the platform even if its first use falls under fake timers, and after them', async () => {
    vi.resetModules();
    const fresh = await import('../../src/core/clock.js');
    const comes = (ms: number) =>
      new Promise<void>((then) => fresh.systemClock.schedule(fresh.callbackTimer(then), fresh.systemClock.now() + ms));
    const begin = performance.now();
    vi.useFakeTimers();
    try {
      vi.advanceTimersByTime(3_600_000);
      expect(fresh.systemClock.now() - begin).toBeLessThan(3_600_000);
      await comes(2);
    } finally {
      vi.useRealTimers();
    }
    await comes(2);
  });

  it('shows the wall time of the platform', () => {
    expect(Math.abs(systemClock.wallNow() - Date.now())).toBeLessThan(1_000);
  });
});

describe('systemClock on a simulated platform', () => {
  interface PlatformTimer {
    readonly then: () => void;
    readonly atMs: number;
    keepsAlive: boolean;
  }

  afterEach(() => {
    vi.unstubAllGlobals();
    vi.resetModules();
  });

  /** A separate clock whose platform fires timers when the test tells it to. */
  async function play(startMs = 0, hasTurns = true) {
    let nowMs = startMs;
    const looks = { atTheTime: 0, timersSet: 0 };
    const armed = new Set<PlatformTimer>();
    let atTurnEnd: (() => void)[] = [];
    let hasStack = true;
    vi.stubGlobal('setTimeout', (then: () => void, ms: number) => {
      if (!hasStack) throw new RangeError('Maximum call stack size exceeded');
      looks.timersSet++;
      const timer = { then, atMs: nowMs + ms, keepsAlive: true, unref: () => (timer.keepsAlive = false) };
      armed.add(timer);
      return timer;
    });
    let mayClear = true;
    vi.stubGlobal('clearTimeout', (timer: PlatformTimer) => {
      if (!mayClear) throw new Error('cannot clear a timeout created in a different request context');
      armed.delete(timer);
    });
    vi.stubGlobal('setImmediate', hasTurns ? (task: () => void) => atTurnEnd.push(task) : undefined);
    const now = () => {
      looks.atTheTime++;
      return nowMs;
    };
    vi.stubGlobal('performance', { now });
    vi.resetModules();
    const { systemClock: clock, callbackTimer: timerOf } = await import('../../src/core/clock.js');
    const fired: string[] = [];
    return {
      clock,
      fired,
      looks,
      timerOf,
      /** A timer that records when it fired. */
      timer: (name: string) => timerOf(() => fired.push(`${name} at ${nowMs}`)),
      armed: () => [...armed].map(({ atMs }) => atMs),
      /** Ends the request that set the timers, and its timers with it. */
      endRequest(...ats: number[]) {
        for (const timer of armed) if (ats.includes(timer.atMs)) armed.delete(timer);
      },
      /** Begins to serve another request, which may not clear the existing timers. */
      enterRequest() {
        mayClear = false;
      },
      /** Runs a task at the end of the stack, where the platform can set no timer. */
      atStackEnd(task: () => void) {
        hasStack = false;
        try {
          task();
        } finally {
          hasStack = true;
        }
      },
      keepsAlive: () => [...armed].some((timer) => timer.keepsAlive),
      endsOfTurns: () => atTurnEnd.length,
      endTurn() {
        const tasks = atTurnEnd;
        atTurnEnd = [];
        for (const task of tasks) task();
      },
      /** Lets time pass and fires the armed timers when they are due or, as platforms do, a little early or, below 0, late. */
      goTo(untilMs: number, earlyMs = 0) {
        for (;;) {
          const [next] = [...armed].sort((one, other) => one.atMs - other.atMs);
          if (next === undefined || next.atMs > untilMs) break;
          armed.delete(next);
          nowMs = Math.max(nowMs, next.atMs - earlyMs);
          next.then();
        }
        nowMs = untilMs;
      },
    };
  }

  const month = 2 ** 31 - 1;

  it('arms one timer, for the nearest of all instants', async () => {
    const { clock, timer, armed, goTo, fired, looks } = await play();
    clock.schedule(timer('a'), 60);
    expect(armed()).toEqual([60]);
    clock.schedule(timer('b'), 20);
    expect(armed()).toEqual([20]);
    const before = { ...looks };
    clock.schedule(timer('c'), 30);
    const again = timer('again');
    clock.schedule(again, 20);
    expect([armed(), looks]).toEqual([[20], before]);
    clock.cancel(again);
    goTo(25);
    expect(armed()).toEqual([30]);
    goTo(1_000);
    expect([fired, armed()]).toEqual([['b at 20', 'c at 30', 'a at 60'], []]);
  });

  it('goes on after a timer that it could not set, at the end of the stack', async () => {
    const { clock, timer, armed, goTo, fired, atStackEnd } = await play();
    clock.schedule(timer('a'), 60);
    expect(() => atStackEnd(() => clock.schedule(timer('b'), 20))).toThrow(RangeError);
    clock.schedule(timer('c'), 30);
    expect(armed()).toEqual([20]);
    goTo(1_000);
    expect([fired, armed()]).toEqual([['b at 20', 'c at 30', 'a at 60'], []]);
  });

  it('never fires early, even if the platform does and times have fractions', async () => {
    const { clock, timer, goTo, fired, armed } = await play(0.25);
    clock.schedule(timer('a'), 10.5);
    expect(armed()).toEqual([11]);
    goTo(11, 0.5);
    expect(fired).toEqual([]);
    goTo(20, 0.5);
    expect(fired).toEqual(['a at 11']);
  });

  it('fires what is already due at the next opportunity', async () => {
    const { clock, timer, goTo, fired, armed } = await play(500);
    clock.schedule(timer('a'), 200);
    expect(armed()).toEqual([501]);
    goTo(600);
    expect(fired).toEqual(['a at 501']);
  });

  it('lets what arrived while the event loop was blocked be read before late timers expire', async () => {
    const { clock, timer, goTo, fired, armed, endTurn } = await play();
    const answered = timer('answered');
    clock.schedule(answered, 10);
    clock.schedule(timer('hanging'), 20);
    goTo(100, -90);
    clock.schedule(timer('past'), 5);
    clock.schedule(timer('later'), 120);
    clock.cancel(answered);
    expect(fired).toEqual([]);
    endTurn();
    expect([fired, armed()]).toEqual([['past at 100', 'hanging at 100'], [120]]);
  });

  it('expires a timer that is hardly late at once, and any at once if turns have no end', async () => {
    const punctual = await play();
    punctual.clock.schedule(punctual.timer('a'), 10);
    punctual.goTo(20, -5);
    expect(punctual.fired).toEqual(['a at 15']);
    const endless = await play(0, false);
    endless.clock.schedule(endless.timer('b'), 10);
    endless.goTo(100, -80);
    expect(endless.fired).toEqual(['b at 90']);
  });

  it('has no timer after a late turn in which all were cancelled', async () => {
    const { clock, timer, goTo, fired, armed, endTurn } = await play();
    const [a, b] = [timer('a'), timer('b')];
    clock.schedule(a, 10);
    goTo(100, -90);
    clock.cancel(a);
    endTurn();
    expect([fired, armed()]).toEqual([[], []]);
    clock.schedule(b, 130);
    expect(armed()).toEqual([130]);
  });

  it('waits longer than any platform timer can, and such a wait can be cancelled and moved', async () => {
    const { clock, timer, goTo, fired, armed, endTurn } = await play(1_000);
    const [year, taken, moved, near] = [timer('year'), timer('taken'), timer('moved'), timer('near')];
    clock.schedule(year, 12 * month);
    clock.schedule(taken, 2 * month);
    clock.cancel(taken);
    clock.schedule(moved, 2 * month);
    clock.schedule(moved, 2_000);
    clock.schedule(near, 3_000);
    clock.schedule(near, 3 * month);
    expect(armed()).toHaveLength(1);
    goTo(13 * month);
    expect(fired).toEqual(['moved at 2000', `near at ${3 * month}`, `year at ${12 * month}`]);
    clock.schedule(taken, 20 * month);
    clock.cancel(taken);
    endTurn();
    expect(armed()).toEqual([]);
  });

  it('keeps nothing of a wait longer than the platform supports, once it is cancelled, moved or over', async () => {
    const { clock, timer, goTo, fired } = await play();
    const [taken, moved, over] = [timer('taken'), timer('moved'), timer('over')];
    for (const one of [taken, moved, over]) clock.schedule(one, 2 * month);
    expect(clock).toMatchObject({ far: { size: 3 } });
    clock.cancel(taken);
    clock.schedule(moved, 100);
    expect(clock).toMatchObject({ far: { size: 1 } });
    goTo(2 * month);
    expect(clock).toMatchObject({ far: { size: 0 } });
    expect(fired).toEqual(['moved at 100', `over at ${2 * month}`]);
  });

  it('holds no longer wait than the platform supports, whenever it begins', async () => {
    const { clock, timer, goTo, fired } = await play();
    clock.schedule(timer('last'), month - 1);
    clock.schedule(timer('beyond'), month);
    goTo(month + 1);
    expect(fired).toEqual([`last at ${month - 1}`, `beyond at ${month}`]);
  });

  it('does not mistake the longest wait for an expired one, started within a millisecond or by a late timer', async () => {
    const { clock, timer, timerOf, goTo, endTurn, fired } = await play(100.4);
    const longest = clock.now() + month;
    goTo(100.6);
    clock.schedule(timer('longest'), longest);
    goTo(1_000);
    let next = 0;
    const late = timerOf(() => {
      next = clock.now() + month - 2;
      clock.schedule(timer('next'), next);
    });
    clock.schedule(late, 2_000);
    goTo(9_000, -5_000);
    endTurn();
    expect([fired, next > month + 6_000]).toEqual([[], true]);
    goTo(month + 10_000);
    expect(fired).toEqual([`longest at ${month + 101}`, `next at ${next}`]);
  });

  it('is right after months without a timer', async () => {
    const { clock, timer, goTo, fired, armed, endTurn } = await play();
    const first = timer('first');
    clock.schedule(first, 5);
    clock.cancel(first);
    endTurn();
    goTo(1.5 * month);
    clock.schedule(timer('a'), 1.5 * month + 10);
    expect(armed()).toEqual([Math.ceil(1.5 * month + 10)]);
    goTo(2 * month);
    expect(fired).toHaveLength(1);
  });

  it('drops its platform timer once, at the end of the turn in which the last timer was cancelled', async () => {
    const { clock, timer, armed, endsOfTurns, endTurn } = await play();
    const [a, b] = [timer('a'), timer('b')];
    for (let round = 0; round < 3; round++) {
      clock.schedule(a, 10);
      clock.schedule(b, 20);
      clock.cancel(a);
      expect(endsOfTurns()).toBe(Math.min(round, 1));
      clock.cancel(b);
      clock.cancel(b);
    }
    expect([endsOfTurns(), armed().length]).toEqual([1, 1]);
    endTurn();
    expect(armed()).toEqual([]);
    clock.schedule(a, 10);
    clock.cancel(a);
    clock.schedule(b, 20);
    endTurn();
    expect(armed()).toHaveLength(1);
  });

  it('drops its platform timer at once if turns have no end', async () => {
    const { clock, timer, armed } = await play(0, false);
    const a = timer('a');
    clock.schedule(a, 10);
    clock.cancel(a);
    expect(armed()).toEqual([]);
  });

  describe('whose timers end with the request that set them, as in workerd', () => {
    beforeEach(() => vi.stubGlobal('WebSocketPair', class {}));

    it('gives each wait its own timer, which the end of another does not take along', async () => {
      const { clock, timer, armed, endRequest, goTo, fired } = await play();
      clock.schedule(timer('a'), 10);
      clock.schedule(timer('b'), 20);
      clock.background?.schedule(timer('c'), 30);
      expect(armed()).toEqual([10, 20, 30]);
      endRequest(10);
      goTo(25);
      clock.schedule(timer('past'), 5);
      goTo(100);
      expect(fired).toEqual(['b at 20', 'past at 26', 'c at 30']);
    });

    it.each([true, false])(
      'allows a wait to be moved and cancelled, whoever may clear its timer: %s',
      async (mayClear) => {
        const { clock, timer, armed, enterRequest, goTo, fired } = await play();
        const [moved, taken, again] = [timer('moved'), timer('taken'), timer('again')];
        clock.schedule(moved, 10);
        clock.schedule(taken, 10);
        clock.schedule(again, 10);
        if (!mayClear) enterRequest();
        clock.schedule(moved, 20);
        clock.cancel(taken);
        clock.cancel(taken);
        clock.cancel(again);
        clock.schedule(again, 30);
        expect(armed()).toHaveLength(mayClear ? 2 : 5);
        goTo(100);
        expect([fired, armed()]).toEqual([['moved at 20', 'again at 30'], []]);
      },
    );

    it('never fires early, and waits longer than any platform timer can', async () => {
      const { clock, timer, goTo, fired } = await play();
      clock.schedule(timer('a'), 10);
      clock.schedule(timer('year'), 12 * month);
      goTo(20, 0.5);
      goTo(13 * month);
      expect(fired).toEqual(['a at 10', `year at ${12 * month}`]);
    });
  });

  it.each([
    ['one timer for all', () => {}],
    ['a timer for each wait', () => vi.stubGlobal('WebSocketPair', class {})],
  ])('with %s keeps a process alive, and its background does not', async (_, put) => {
    put();
    const { clock, timer, armed, keepsAlive, goTo, fired } = await play();
    const background = clock.background!;
    expect([background.background, clock.background]).toEqual([background, background]);
    background.schedule(timer('behind'), 10);
    expect([armed(), keepsAlive()]).toEqual([[10], false]);
    clock.schedule(timer('before'), 20);
    expect([armed(), keepsAlive()]).toEqual([[10, 20], true]);
    goTo(30);
    expect(fired).toEqual(['behind at 10', 'before at 20']);
  });

  it('needs nothing of a platform but timers, which may be numbers, and a time', async () => {
    for (const platform of [undefined, {}, { getBuiltinModule: () => undefined }]) {
      vi.stubGlobal('process', platform);
      vi.stubGlobal('performance', { now: () => 7 });
      vi.stubGlobal('setTimeout', () => 1);
      vi.resetModules();
      const { systemClock: clock } = await import('../../src/core/clock.js');
      vi.stubGlobal('setTimeout', () => 'of fake timers');
      expect(clock.now()).toBe(7);
      clock.background!.schedule(
        callbackTimer(() => {}),
        10,
      );
    }
  });

  it('reports an exception of a timer as the platform does, and continues with the others', async () => {
    const tasks: (() => void)[] = [];
    vi.stubGlobal('queueMicrotask', (task: () => void) => tasks.push(task));
    const { clock, timer, goTo, fired } = await play();
    clock.schedule(
      callbackTimer(() => {
        throw new Error('bad timer');
      }),
      5,
    );
    clock.schedule(timer('b'), 5);
    goTo(10);
    expect(fired).toEqual(['b at 5']);
    expect(tasks).toHaveLength(1);
    expect(tasks[0]).toThrow('bad timer');
  });

  it('schedules what an expiring timer requests', async () => {
    const { clock, timer, goTo, fired } = await play();
    clock.schedule(
      callbackTimer(() => clock.schedule(timer('then'), 30)),
      10,
    );
    goTo(100);
    expect(fired).toEqual(['then at 30']);
  });
});

describe('a process', () => {
  const run = (script: string) => {
    const startedMs = Date.now();
    const source = `import { pipeline, timeout } from ${JSON.stringify(new URL('../../dist/index.js', import.meta.url).href)};${script}`;
    const output = execFileSync(process.execPath, ['--input-type=module', '--eval', source], {
      encoding: 'utf8',
      timeout: 60_000,
    });
    return { output, elapsedMs: Date.now() - startedMs };
  };

  it('stays alive for a timeout that a call waits for', () => {
    expect(
      run('pipeline(timeout(40)).attempt(() => new Promise(() => {})).then(({ error }) => console.log(error.code));')
        .output,
    ).toBe('ERR_TIMEOUT\n');
  });

  it('ends when no call waits, whatever its timeouts were', () => {
    const { output, elapsedMs } = run("await pipeline(timeout('1m')).execute(() => 1); console.log('done');");
    expect(output).toBe('done\n');
    expect(elapsedMs).toBeLessThan(50_000);
  });

  it('ends even if a background timer is pending', () => {
    const { output, elapsedMs } = run(`
      import { callbackTimer, systemClock } from ${JSON.stringify(new URL('../../dist/index.js', import.meta.url).href)};
      const { background } = systemClock;
      background.schedule(callbackTimer(() => console.log('late')), background.now() + 60_000);
      await new Promise((resolve) => systemClock.schedule(callbackTimer(resolve), systemClock.now() + 20));
      console.log('done');`);
    expect(output).toBe('done\n');
    expect(elapsedMs).toBeLessThan(50_000);
  });
});
