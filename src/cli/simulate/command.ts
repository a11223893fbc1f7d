/**
 * `npx holdfast simulate FILE`: runs the user's own pipeline through four faults in virtual time.
 *
 * Promise: the same file, options and seed give the same figures on every machine. Exit code 0 without hazards, 1 with some, 2 when the file or an
 * option is wrong.
 */
import { mkdirSync, statSync, writeFileSync } from 'node:fs';
import { extname, join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { inspect, parseArgs } from 'node:util';
import { Worker } from 'node:worker_threads';
import { parseDuration } from '../../core/duration.js';
import { UsageError } from '../usage-error.js';
import { hazardsOf } from './hazards.js';
import {
  type Answer,
  type Job,
  type NamedScenario,
  type PlayedScenario,
  type Settings,
  scenarios,
} from './scenarios.js';
import { svgOf } from './svg.js';
import { textOf } from './text.js';

const names = scenarios.map(({ name }) => name);

const help = `holdfast simulate FILE [options]

FILE (.ts, .mjs, .js) exports a pipeline, as "pipeline" or as default, or a function of { clock, random } that returns one.
It is played through ${names.join(', ')}, in virtual time.

  --export NAME     the export to play
  --scenario NAME   play only this one; may be repeated
  --seed N          default 1: the same seed plays the same run
  --capacity N      calls per second that the dependency can do; default 200
  --latency TIME    what a call takes there; default 100ms
  --load SHARE      users, as a share of the capacity; default 0.7
  --patience TIME   how long a user waits; default 2s
  --svg DIR         write a chart of each scenario into this folder
  --json            print JSON
  --help

Exit code: 0 without hazards, 1 with hazards, 2 when FILE or an option is wrong.`;

/** Limit of real time for one scenario. It takes a second or two; much more suggests a loop in the pipeline. */
const longestRealMs = 120_000;

/** Runs the command and returns its exit code. */
export async function simulate(words: readonly string[], program: string): Promise<number> {
  const { values, positionals } = parse(words);
  if (values.help) {
    console.log(help);
    return 0;
  }
  const [file, ...others] = positionals;
  if (file === undefined || others.length > 0) throw new UsageError('simulate: give one file', help);
  const url = urlOf(file);
  const settings: Settings = {
    seed: numberOf('seed', values.seed, Number.isSafeInteger, 'an integer'),
    capacity: numberOf('capacity', values.capacity, (value) => value >= 1 && value <= 5_000, 'from 1 to 5000'),
    latencyMs: msOf('latency', values.latency),
    load: numberOf('load', values.load, (value) => value >= 0.01 && value <= 1, 'from 0.01 to 1'),
    patienceMs: msOf('patience', values.patience),
  };
  if (values.svg !== undefined) makeFolder(values.svg);
  const played = await playAll(chosen(values.scenario), { url, exportName: values.export, settings }, program);
  const hazards = hazardsOf(played, settings);
  if (values.svg !== undefined) writeCharts(values.svg, played, settings);
  if (values.json) console.log(JSON.stringify({ version: 1, file, settings, hazards, scenarios: played }, finite, 2));
  else console.log(textOf(file, settings, played, hazards));
  return hazards.length === 0 ? 0 : 1;
}

function parse(words: readonly string[]) {
  try {
    return parseArgs({
      args: [...words],
      allowPositionals: true,
      options: {
        export: { type: 'string' },
        scenario: { type: 'string', multiple: true, default: [] },
        seed: { type: 'string', default: '1' },
        capacity: { type: 'string', default: '200' },
        latency: { type: 'string', default: '100ms' },
        load: { type: 'string', default: '0.7' },
        patience: { type: 'string', default: '2s' },
        svg: { type: 'string' },
        json: { type: 'boolean', default: false },
        help: { type: 'boolean', short: 'h', default: false },
      },
    });
  } catch (error) {
    throw new UsageError(`simulate: ${(error as Error).message}`, help);
  }
}

function urlOf(file: string): string {
  const path = resolve(file);
  if (!statSync(path, { throwIfNoEntry: false })?.isFile())
    throw new UsageError(`simulate: there is no file "${file}"`);
  // Typed for Node 24; undefined before 22.10.
  const { typescript } = process.features as { readonly typescript?: string | false };
  if (/^\.[cm]?ts$/.test(extname(path)) && !typescript) {
    throw new UsageError(
      `simulate: Node ${process.versions.node} cannot load "${file}"; Node 22.18, 24 and later load TypeScript. ` +
        'Use one of them, or compile the file and give the .mjs',
    );
  }
  return pathToFileURL(path).href;
}

function chosen(given: readonly string[]): readonly NamedScenario[] {
  const unknown = given.find((name) => !names.includes(name as NamedScenario['name']));
  if (unknown !== undefined) {
    throw new UsageError(`simulate: there is no scenario "${unknown}", there are ${names.join(', ')}`);
  }
  return given.length === 0 ? scenarios : scenarios.filter(({ name }) => given.includes(name));
}

function numberOf(option: string, text: string, fits: (value: number) => boolean, allowed: string): number {
  const value = text.trim() === '' ? Number.NaN : Number(text);
  if (fits(value)) return value;
  throw new UsageError(`simulate: --${option} must be ${allowed}, got "${text}"`);
}

function msOf(option: string, text: string): number {
  const ms = parseDuration(text);
  if (ms !== undefined && ms >= 1 && ms <= 60_000) return ms;
  throw new UsageError(`simulate: --${option} must be a time such as 100ms or 2s, up to 60s, got "${text}"`);
}

/** Two at a time: more would not be faster on most CI machines. */
async function playAll(
  wanted: readonly NamedScenario[],
  job: Omit<Job, 'scenario'>,
  program: string,
): Promise<readonly PlayedScenario[]> {
  const played = new Map<NamedScenario, PlayedScenario>();
  const rest = [...wanted];
  const work = async () => {
    for (let next = rest.shift(); next !== undefined; next = rest.shift()) {
      played.set(next, await playInThread({ ...job, scenario: next }, program));
    }
  };
  try {
    await Promise.all([work(), work()]);
  } finally {
    // After a problem nobody wants to know of the others.
    rest.length = 0;
  }
  return wanted.map((scenario) => played.get(scenario)!);
}

async function playInThread(job: Job, program: string): Promise<PlayedScenario> {
  // Output of the user's modules must not mix with our lines.
  const worker = new Worker(program, { workerData: job, stdout: true });
  worker.stdout.pipe(process.stderr, { end: false });
  const { name } = job.scenario;
  const tooLong = `${name} was not played to its end in ${longestRealMs / 1_000} s: does the pipeline, or the file when it is loaded, wait or loop without end?`;
  const endedEarly = `${name} ended early: does the file call process.exit(), or await a timer when it is loaded? Time is virtual, and begins after that`;
  const answer = await new Promise<Answer>((resolve) => {
    const timer = setTimeout(() => resolve({ problem: tooLong }), longestRealMs);
    const end = (answer: Answer) => {
      clearTimeout(timer);
      resolve(answer);
    };
    worker.once('message', end);
    worker.once('error', (error: unknown) => end({ problem: `nothing in the file handles ${inFull(error)}` }));
    worker.once('exit', () => end({ problem: endedEarly }));
  });
  await worker.terminate();
  if ('problem' in answer) throw new UsageError(`simulate: ${answer.problem}`);
  return answer.played;
}

/** Anything can be thrown, including values that cannot be converted to a string. */
function inFull(thrown: unknown): string {
  return thrown instanceof Error ? (thrown.stack ?? thrown.message) : inspect(thrown);
}

function makeFolder(folder: string): void {
  inSvgFolder(() => mkdirSync(folder, { recursive: true }));
}

function writeCharts(folder: string, played: readonly PlayedScenario[], settings: Settings): void {
  inSvgFolder(() => {
    for (const one of played) writeFileSync(join(folder, `${one.name}.svg`), svgOf(one, settings));
  });
}

function inSvgFolder(work: () => void): void {
  try {
    work();
  } catch (error) {
    throw new UsageError(`simulate: --svg: ${(error as Error).message}`);
  }
}

/** JSON has no infinity and no NaN: a value that was not observed becomes null. Figures are rounded to a meaningful precision. */
function finite(_key: string, value: unknown): unknown {
  if (typeof value !== 'number') return value;
  return Number.isFinite(value) ? Math.round(value * 1_000) / 1_000 : null;
}
