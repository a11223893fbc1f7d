/**
 * Demo: the same users on a naked and on a protected path to the same flaky upstream, and what became of them.
 *
 * Promise: it ends by itself, leaves no process behind, and its exit code is 0 only when the protected path was better.
 * Run it with `npm run demo`, or `npm run demo -- --quick --seed 7`.
 */
import { parseArgs } from 'node:util';
import { actBoundaries, actIndexAt, acts } from './acts.ts';
import { type Child, startChild } from './child.ts';
import { emptyLogs, paths, patienceMs, runLoad, warmUp } from './load.ts';
import { describe, type Findings, liveLine, shortcomings } from './report.ts';
import { type Screen, screenOn } from './screen.ts';
import type { ServerReady, ServerReport, ServerSettings } from './server.ts';
import type { UpstreamReport, UpstreamSettings } from './upstream.ts';

interface Plan {
  readonly seed: number;
  readonly ratePerSecond: number;
  readonly durationMs: number;
}

/** Everything that the demo may be stopped by says so here. */
const stop = new AbortController();
const children: Child[] = [];

async function main(): Promise<number> {
  const plan = planOf(process.argv.slice(2));
  if (plan === undefined) return 2;
  const screen = screenOn(process.stdout);
  stopOnSignals(plan);
  try {
    const findings = await play(plan, screen);
    const found = shortcomings(findings);
    const verdict =
      found.length === 0
        ? 'The protected path was better: more users served, and the slowest of them sooner.'
        : `The protected path was NOT better: ${found.join('; ')}. Seed ${plan.seed}.`;
    screen.print('', ...describe(findings), '', verdict);
    return found.length === 0 ? 0 : 1;
  } catch (error) {
    screen.print(`The demo stopped: ${messageOf(stop.signal.aborted ? stop.signal.reason : error)}`);
    return stop.signal.reason instanceof Interruption ? 130 : 1;
  } finally {
    killChildren();
  }
}

function planOf(args: readonly string[]): Plan | undefined {
  try {
    const { values } = parseArgs({
      args: [...args],
      options: { seed: { type: 'string', default: '7' }, quick: { type: 'boolean', default: false } },
    });
    const seed = Number(values.seed);
    if (!Number.isSafeInteger(seed) || seed < 0) throw new Error(`--seed must be a whole number, got ${values.seed}`);
    return { seed, ratePerSecond: 40, durationMs: values.quick ? 8_000 : 20_000 };
  } catch (error) {
    console.error(`${messageOf(error)}\nUsage: npm run demo -- [--quick] [--seed 7]`);
    return undefined;
  }
}

async function play(plan: Plan, screen: Screen): Promise<Findings> {
  const { seed, durationMs, ratePerSecond } = plan;
  const [nakedUpstream, protectedUpstream] = await Promise.all(paths.map(() => startUpstream({ seed, durationMs })));
  const server = await start<ServerReady, ServerSettings>('server.ts', {
    nakedUpstream: nakedUpstream!.origin,
    protectedUpstream: protectedUpstream!.origin,
  });
  screen.print(...headerOf(plan, server.ready));

  const origin = `http://127.0.0.1:${server.ready.port}`;
  await warmUp(origin, stop.signal);
  const logs = emptyLogs();
  await Promise.all(children.map((child) => child.ask('begin')));
  const stopShowing = showProgress(plan, screen, logs);
  try {
    await runLoad({ origin, seed, ratePerSecond, durationMs, logs, signal: stop.signal });
  } finally {
    stopShowing();
  }
  return {
    logs,
    server: await server.child.ask<ServerReport>('report'),
    upstreams: {
      naked: await nakedUpstream!.child.ask<UpstreamReport>('report'),
      protected: await protectedUpstream!.child.ask<UpstreamReport>('report'),
    },
  };
}

async function startUpstream(settings: UpstreamSettings) {
  const { child, ready } = await start<number, UpstreamSettings>('upstream.ts', settings);
  return { child, origin: `http://127.0.0.1:${ready}` };
}

async function start<Ready, Settings>(file: string, settings: Settings) {
  const started = startChild<Ready>({ file, settings, signal: stop.signal, onLost: (error) => stop.abort(error) });
  const { child, ready } = await started;
  children.push(child);
  return { child, ready };
}

function headerOf({ seed, ratePerSecond, durationMs }: Plan, { quotes, charges }: ServerReady): readonly string[] {
  const requests = Math.floor((ratePerSecond * durationMs) / 1_000);
  return [
    `holdfast demo, seed ${seed}: ${requests} users on each path, ${ratePerSecond} per second for ${durationMs / 1_000} s.`,
    'Users -> one Express server -> a flaky upstream, one copy for each path with the same seed and script.',
    `A quarter of the users charge a card, the others ask for a price. They leave after ${patienceMs / 1_000} s.`,
    'A success is a fresh answer: an old price from the fallback is counted as stale, not as a success.',
    '',
    '/naked: fetch, as it comes; it has no time limit of its own.',
    '/protected: the same fetch in a pipeline. For prices:',
    ...quotes.split('\n').map((line) => `  ${line}`),
    'For charges the same without the fallback, unsafe and with an idempotency key:',
    ...charges.split('\n').map((line) => `  ${line}`),
    '',
    'The upstream:',
    ...actLines(durationMs),
    '',
  ];
}

function actLines(durationMs: number): readonly string[] {
  const boundaries = actBoundaries(durationMs);
  return acts.map(
    ({ name, story }, index) => `  ${seconds(boundaries[index]!).padStart(6)}  ${name.padEnd(9)} ${story}`,
  );
}

/** Redraws in a terminal; elsewhere says a line about each path when an act ends. */
function showProgress({ durationMs }: Plan, screen: Screen, logs: ReturnType<typeof emptyLogs>): () => void {
  const beganMs = performance.now();
  let shownActIndex = -1;
  const show = () => {
    const elapsedMs = performance.now() - beganMs;
    const actIndex = actIndexAt(elapsedMs, durationMs);
    const act = `${seconds(elapsedMs).padStart(6)}  ${acts[actIndex]!.name}: ${acts[actIndex]!.story}`;
    const lines = paths.map((path) => `        ${liveLine(path, logs[path])}`);
    screen.live([act, ...lines]);
    if (actIndex !== shownActIndex) screen.plain(...(shownActIndex === -1 ? [] : lines), act);
    shownActIndex = actIndex;
  };
  show();
  const timer = setInterval(show, 200);
  return () => clearInterval(timer);
}

function killChildren(): void {
  for (const child of children) child.kill();
}

class Interruption extends Error {}

function stopOnSignals({ durationMs }: Plan): void {
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(name, () => stop.abort(new Interruption(`${name} received`)));
  }
  // A reader such as `head` may close its end of the pipe.
  process.stdout.on('error', () => stop.abort(new Interruption('nobody reads the output')));
  const limitMs = durationMs + patienceMs + 10_000;
  stop.signal.addEventListener('abort', killChildren);
  setTimeout(() => stop.abort(new Error(`it did not end within ${seconds(limitMs)}`)), limitMs).unref();
}

function seconds(milliseconds: number): string {
  return `${(milliseconds / 1_000).toFixed(1)} s`;
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

process.exitCode = await main();
