/**
 * Plays one scenario in a thread of its own, so that the user's modules are loaded afresh and time can be virtual for all of them.
 *
 * Promise: a policy without a clock of its own also runs in virtual time. For that, this thread's global timers are redirected to replaceable ones
 * before any module of ours or of the user takes a reference to them. So this file imports nothing that does.
 */
import { parentPort, workerData } from 'node:worker_threads';
import type { Run, Task } from '../../testing/overload/overload.js';
import type { PlatformTimers } from '../../testing/overload/platform.js';
import {
  type Answer,
  afterSeconds,
  beforeSecondsOf,
  type Complaint,
  type Job,
  type PlayedScenario,
  workersOf,
} from './scenarios.js';

/** Plays what the parent asks for, reports the result, and ends the thread, whatever the user's modules keep open. */
export async function playForParent(): Promise<void> {
  const timers = divertTimers();
  let answer: Answer;
  try {
    answer = { played: await play(workerData as Job, timers) };
  } catch (error) {
    answer = { problem: error instanceof Error ? error.message : String(error) };
  }
  parentPort?.postMessage(answer);
  setImmediate(() => process.exit());
}

/** Redirects the global timers to those of the returned object. */
function divertTimers(): PlatformTimers {
  const { setTimeout, clearTimeout, setInterval, clearInterval } = globalThis;
  const timers = { setTimeout, clearTimeout, setInterval, clearInterval };
  // What `util.promisify(setTimeout)` returns.
  const promisified = Symbol.for('nodejs.util.promisify.custom');
  for (const name of Object.keys(timers) as (keyof PlatformTimers)[]) {
    const lead = (...given: unknown[]) => (timers[name] as (...given: unknown[]) => unknown)(...given);
    const wait = (...given: unknown[]) =>
      (timers.setTimeout as unknown as Record<symbol, typeof lead>)[promisified]!(...given);
    Object.assign(globalThis, { [name]: name === 'setTimeout' ? Object.assign(lead, { [promisified]: wait }) : lead });
  }
  return timers;
}

interface Pipelined {
  execute(task: Task, options: { readonly key: string }): Promise<unknown>;
  explain(): { readonly warnings: PlayedScenario['warnings'] };
}

async function play(job: Job, timers: PlatformTimers): Promise<PlayedScenario> {
  const { scenario: named, settings } = job;
  const { reportOf, secondsOf } = await import('../../testing/overload/overload.js');
  const { runOnPlatform } = await import('../../testing/overload/platform.js');
  const { isHoldfastError } = await import('../../core/errors.js');
  let warnings: PlayedScenario['warnings'] = [];
  const shape = { workers: workersOf(settings), meanMs: settings.latencyMs, gamma: 4, kind: 'pool' } as const;
  const prepare = async () => {
    const given = await load(job);
    return {
      shape,
      seed: settings.seed,
      load: settings.load,
      patienceMs: settings.patienceMs,
      scenario: named.scenario,
      disturbanceSeconds: named.disturbanceSeconds,
      beforeSeconds: beforeSecondsOf(settings),
      afterSeconds,
      strategy: (world: unknown) => {
        const calls = pipelineOf(
          job,
          typeof given === 'function' ? made(given as (world: unknown) => unknown, world) : given,
        );
        warnings = calls.explain().warnings;
        return (task: Task) => calls.execute(task, { key: 'dependency' });
      },
    };
  };
  const run = await runOnPlatform(settings.seed, prepare, timers);
  return {
    name: named.name,
    report: reportOf(run),
    seconds: secondsOf(run),
    unended: run.requests.filter(({ endedMs }) => Number.isNaN(endedMs)).length,
    complaint: complaintOf(run, isHoldfastError),
    warnings: warnings.map(({ code, message }) => ({ code, message })),
  };
}

/** Errors that differ only in numbers count as one kind. */
function complaintOf({ requests, startMs }: Run, isPolicys: (error: unknown) => boolean): Complaint | undefined {
  const kinds = new Map<unknown, { readonly complaint: Complaint; count: number }>();
  for (const { atMs, isGood, error } of requests) {
    if (isGood || atMs >= startMs || error === undefined) continue;
    const text = inWords(error);
    const name = (Object(error) as { readonly code?: unknown }).code ?? text.replace(/\d+/g, '');
    const kind = kinds.get(name) ?? { complaint: { text, isPolicys: isPolicys(error) }, count: 0 };
    kind.count++;
    kinds.set(name, kind);
  }
  return [...kinds.values()].sort((left, right) => right.count - left.count)[0]?.complaint;
}

/** Whether a module was taken for CommonJS, as in a new project: `npm init` writes that type. */
function isTakenForCommonJs(error: unknown): boolean {
  return (
    error instanceof SyntaxError && /import statement outside a module|Unexpected token 'export'/.test(error.message)
  );
}

/** A short description of an error. Anything can be thrown, including values that cannot be converted to a string. */
function inWords(error: unknown): string {
  try {
    return /^.{0,200}/.exec(String(error))![0];
  } catch {
    return 'something that cannot be shown';
  }
}

/** The user module's export with the requested name, or `pipeline`, or the default export. */
async function load({ url, exportName }: Job): Promise<unknown> {
  const exported: Readonly<Record<string, unknown>> = await import(url).catch((error: unknown) => {
    if (isTakenForCommonJs(error)) {
      throw new Error(
        'Node takes the file for CommonJS, because the package.json around it says "type": "commonjs"; give it the ending .mts or .mjs',
      );
    }
    throw new Error(`the file cannot be loaded: ${error instanceof Error ? (error.stack ?? error.message) : error}`);
  });
  // The default export of a CommonJS module is its exports object, which may contain `pipeline`.
  const found = exportName === undefined ? (exported.pipeline ?? exported.default) : exported[exportName];
  if (found !== undefined) return found;
  const names = Object.keys(exported).join(', ') || 'nothing';
  throw new Error(
    exportName === undefined
      ? `the file must export a pipeline as "pipeline" or as default; it exports ${names}, see --export`
      : `the file does not export "${exportName}"; it exports ${names}`,
  );
}

function made(make: (world: unknown) => unknown, world: unknown): unknown {
  try {
    return make(world);
  } catch (error) {
    throw new Error(`the function of { clock, random } failed: ${error instanceof Error ? error.stack : error}`);
  }
}

function pipelineOf({ exportName }: Job, given: unknown): Pipelined {
  const { execute, explain } = Object(given) as Record<string, unknown>;
  if (typeof execute === 'function' && typeof explain === 'function') return given as Pipelined;
  const { admit, handle } = Object(given) as Record<string, unknown>;
  const isPolicy = typeof admit === 'function' || typeof handle === 'function';
  const what = isPolicy
    ? 'a policy, which pipeline(...) makes one'
    : given instanceof Promise
      ? 'a promise'
      : Array.isArray(given)
        ? 'an array; give its policies to pipeline(...)'
        : typeof given;
  throw new Error(
    `${exportName === undefined ? 'the export' : `"${exportName}"`} must be a pipeline, or a function of { clock, random } that returns one, got ${what}`,
  );
}
