/**
 * `holdfast demo`: sends the same users through an unprotected and a protected path in six acts of trouble, and compares the results.
 *
 * Promise: it ends by itself and leaves no process and no file behind. Its exit code is 0 only if the protected path was better in every row that
 * is judged: what must never happen always is, traffic only in acts that are long enough and that nobody disturbed. With `--sim` everything happens in virtual time, where a seed decides every figure.
 */
import { existsSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { messageOf } from '../../core/errors.js';
import { UsageError } from '../usage-error.js';
import { type Act, acts } from './acts.js';
import { Buttons } from './faults.js';
import { Gauge } from './figures.js';
import { Page } from './page.js';
import { type Part, play as playPart } from './parts.js';
import { endWithParent, partOf } from './processes.js';
import { showProgress } from './progress.js';
import { RealWorld } from './real-world.js';
import { type Screen, screenOn } from './screen.js';
import { paths } from './shop.js';
import { inSimulation } from './simulated-world.js';
import { causesOf, figuresOf, tableOf } from './table.js';
import { notesOf, type Result, resultOf, verdictOf } from './verdict.js';
import { Watcher } from './watcher.js';
import type { World } from './world.js';

const help = `holdfast demo [--quick] [--seed 7] [--redis URL | --postgres URL]
holdfast demo --sim [--seed 7]

  --quick         15 seconds instead of a minute: only the acts that need no long queues
  --sim           an hour in virtual time, where a seed decides every figure
  --seed N        another run; default 7
  --redis URL     in place of SQLite; needs ioredis where you start it
  --postgres URL  in place of SQLite; needs pg where you start it
  --shop FILE     a script that serves the users in place of the built-in shop; may be repeated
  --help

Exit code: 0 when the protected path was better in all rows that are judged, 1 when not or when the demo cannot run,
2 when an option is wrong, 130 when interrupted.`;

interface Plan {
  readonly seed: number;
  readonly isQuick: boolean;
  readonly patienceMs: number;
  readonly isSimulated: boolean;
  readonly store: { readonly kind: 'redis' | 'postgres'; readonly url: string } | undefined;
  readonly shops: readonly string[];
}

/** Runs the command and resolves with its exit code. */
export async function demo(args: readonly string[]): Promise<number> {
  const part = partOf();
  if (part !== undefined) {
    endWithParent();
    try {
      await playPart(part as Part);
    } catch (error) {
      // For example a missing driver or an unreachable server: a stack trace would not help the user.
      console.error(messageOf(error));
      process.exit(1);
    }
    // A child process runs until its parent is gone.
    return new Promise(() => {});
  }
  const plan = planOf(args);
  if (plan === 'help') {
    console.log(help);
    return 0;
  }
  const screen = screenOn(process.stdout);
  const stop = new AbortController();
  const release = stopEarly(stop, plan);
  try {
    const results = await (plan.isSimulated
      ? inSimulation(plan.seed, plan.patienceMs, (world) => playAll(world, plan, screen, new Buttons(world)))
      : playReal(plan, screen, stop));
    const { isGood, line } = verdictOf(results, plan.seed);
    screen.print('', ...tableOf(results, screen.width), '', ...causesOf(results), '', ...notesOf(results), line);
    return isGood ? 0 : 1;
  } catch (error) {
    const reason = stop.signal.aborted ? stop.signal.reason : error;
    screen.print(`The demo stopped: ${reason instanceof Error ? reason.message : String(reason)}`);
    return reason instanceof Interruption ? 130 : 1;
  } finally {
    release();
  }
}

function planOf(args: readonly string[]): Plan | 'help' {
  try {
    const text = { type: 'string' } as const;
    const { values } = parseArgs({
      args: [...args],
      options: {
        seed: { type: 'string', default: '7' },
        quick: { type: 'boolean', default: false },
        sim: { type: 'boolean', default: false },
        redis: text,
        postgres: text,
        shop: { type: 'string', multiple: true, default: [] },
        help: { type: 'boolean', short: 'h', default: false },
      },
    });
    if (values.help) return 'help';
    const { quick, sim, redis, postgres, shop } = values;
    const seed = Number(values.seed);
    if (!Number.isSafeInteger(seed) || seed < 0 || values.seed.trim() === '')
      throw new Error(`--seed must be a whole number, got "${values.seed}"`);
    if (sim && (redis ?? postgres ?? shop[0]) !== undefined)
      throw new Error('--sim has no servers: leave out --redis, --postgres and --shop');
    // A variable that is not set would mean whatever runs on this machine.
    for (const [name, url] of Object.entries({ redis, postgres }))
      if (url === '') throw new Error(`--${name} needs a URL`);
    if (redis !== undefined && postgres !== undefined) throw new Error('--redis and --postgres: one of them is enough');
    const missing = shop.find((file) => !existsSync(file));
    if (missing !== undefined) throw new Error(`--shop: there is no file "${missing}"`);
    const store =
      redis !== undefined
        ? ({ kind: 'redis', url: redis } as const)
        : postgres !== undefined
          ? ({ kind: 'postgres', url: postgres } as const)
          : undefined;
    return {
      seed,
      isQuick: quick,
      patienceMs: 2_000,
      isSimulated: sim,
      store,
      shops: shop,
    };
  } catch (error) {
    throw new UsageError(`demo: ${(error as Error).message}`, help);
  }
}

async function playReal(plan: Plan, screen: Screen, stop: AbortController): Promise<Result[]> {
  const { seed, patienceMs, store, shops } = plan;
  const { signal } = stop;
  await using world = await RealWorld.start({
    seed,
    patienceMs,
    store,
    shops,
    signal,
    onLost: (error) => stop.abort(error),
  });
  const interrupted = new Promise<never>((_, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason));
  });
  const buttons = new Buttons(world);
  const page = await Page.open((fault) => buttons.press(fault));
  try {
    screen.print(`In your browser while it lasts: ${page.address}`, '');
    // An act waits for its last users, for seconds; what they wait for ends with the world.
    return await Promise.race([playAll(world, plan, screen, buttons, new Watcher(world, page)), interrupted]);
  } finally {
    await page.close();
  }
}

async function playAll(
  world: World,
  plan: Plan,
  screen: Screen,
  buttons: Buttons,
  watcher?: Watcher,
): Promise<Result[]> {
  const { seed, isSimulated, isQuick } = plan;
  const where = isSimulated ? 'an hour of virtual time' : `${totalSeconds(plan)} s of real traffic`;
  screen.print(
    `holdfast demo, seed ${seed}: ${where}. Users -> two workers -> a bank that can do 50 calls per second.`,
    'naked: three retries, a map as a cache, a look before charging, SET NX as a lock.',
    'protected: standard(), cache(), idempotency() and mutex() around the same calls.',
    '',
  );
  const results: Result[] = [];
  // The first calls of a process are slow, whatever is called.
  await warmUp(world);
  for (const act of actsOf(plan)) {
    const { name, story, measures, besides } = act;
    // Effects of one act must not reach the next.
    if (results.length > 0) await world.sleep(isSimulated ? 30_000 : 250);
    await buttons.reset();
    const gauge = await Gauge.begin(world);
    const { visitors } = gauge;
    screen.print(`${name}: ${story}`);
    watcher?.begin(`${name}: ${story}`, visitors);
    const stopShowing = isSimulated ? () => {} : showProgress(screen, () => gauge.read([...measures, ...besides]));
    try {
      await act.play({ world, visitors, ms: secondsOf(act, plan) * 1_000 });
    } finally {
      stopShowing();
      watcher?.end();
    }
    const isShort = isQuick && !isSimulated;
    const rows = (await gauge.read(measures)).map((row) => resultOf(name, row, buttons.wasPressed, isShort));
    const figures = rows.map(({ row }) => row);
    screen.print(...figuresOf(figures, screen.width - 2).map((line) => `  ${line}`));
    for (const row of rows) watcher?.row(row);
    results.push(...rows);
  }
  return results;
}

function actsOf({ isQuick, isSimulated }: Plan): readonly Act[] {
  return isQuick && !isSimulated ? acts.filter(({ quickSeconds }) => quickSeconds !== undefined) : acts;
}

/** Together, all acts take an hour of virtual time. */
function secondsOf({ seconds, quickSeconds }: Act, { isQuick, isSimulated }: Plan): number {
  if (isSimulated) return (seconds * 3_600) / acts.reduce((sum, act) => sum + act.seconds, 0);
  return (isQuick ? quickSeconds : undefined) ?? seconds;
}

function totalSeconds(plan: Plan): number {
  return Math.round(actsOf(plan).reduce((sum, act) => sum + secondsOf(act, plan), 0));
}

async function warmUp(world: World): Promise<void> {
  const { signal } = new AbortController();
  for (let round = 0; round < 10; round++) {
    await Promise.allSettled(paths.map((path) => world.ask(path, { kind: 'quote' }, signal)));
  }
}

class Interruption extends Error {}

/** Aborts on a signal, when nobody reads the output, and when the demo takes far too long, until the returned function is called. */
function stopEarly(stop: AbortController, plan: Plan): () => void {
  const interrupt = (what: string) => {
    stop.abort(new Interruption(what));
    // In virtual time nothing listens to it.
    if (plan.isSimulated) process.exit(130);
  };
  const names = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
  const onSignal = (name: string) => interrupt(`${name} received`);
  for (const name of names) process.on(name, onSignal);
  // A reader such as `head` may close its end of the pipe.
  process.stdout.on('error', () => interrupt('nobody reads the output'));
  const limitMs = totalSeconds(plan) * 1_000 + 60_000;
  const timer = setTimeout(() => stop.abort(new Error(`it did not end within ${limitMs / 1_000} s`)), limitMs);
  return () => {
    clearTimeout(timer);
    for (const name of names) process.off(name, onSignal);
  };
}
