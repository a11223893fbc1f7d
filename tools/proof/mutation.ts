/**
 * `npm run mutation`: breaks the source in every small way that Stryker knows, and reports which mutants no test notices.
 *
 * Modules run one after the other, each judged by its own tests: those of the same stem and a few about all of its kind, or of the whole folder for
 * the core and the structures, without tests that start a server. `-- --mutate src/policies/retry` takes one module; several are separated by commas,
 * and a folder stands for everything in it. A complete run takes hours. What Stryker found is kept in `.cache/mutation/`, one report per module, and an
 * existing report is not made again: `--again` reruns what has changed, and survivors whose tests are new or changed; `--fresh` reruns everything.
 * Strings, most of which are messages, and module-level constants are not mutated.
 *
 * Stryker tries each mutant on the tests that execute its place when all of them run. What happens once per process is executed by the first test
 * that needs it and noticed by others, so survivors are tried a second time, on all tests of the module and from the moment it loads.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, globSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

interface Mutant {
  readonly status: string;
  readonly mutatorName: string;
  readonly replacement?: string;
  readonly location: { readonly start: Position; readonly end: Position };
}

interface Position {
  readonly line: number;
  readonly column: number;
}

interface Report {
  readonly files: Readonly<Record<string, { readonly source: string; readonly mutants: readonly Mutant[] }>>;
}

interface Tally {
  noticed: number;
  missed: number;
}

const checkout = fileURLToPath(new URL('../../', import.meta.url));
process.chdir(checkout);
const { values } = parseArgs({
  options: {
    mutate: { type: 'string', default: '' },
    again: { type: 'boolean', default: false },
    fresh: { type: 'boolean', default: false },
  },
});
const everything = 'src/core,src/structures,src/policies,src/coordination';
const modules = modulesOf((values.mutate || everything).split(','));
if (modules.length === 0) throw new Error(`no source under ${values.mutate}`);

const folders = new Map<string, Tally>();
const survivors: string[] = [];
for (const module of modules) {
  const report = reportOn(module);
  const tally = { noticed: 0, missed: 0 };
  for (const [file, { source, mutants }] of Object.entries(report.files)) {
    for (const mutant of mutants) {
      if (mutant.status === 'Killed' || mutant.status === 'Timeout') tally.noticed++;
      if (isMissed(mutant)) {
        tally.missed++;
        survivors.push(inWords(file, source, mutant));
      }
    }
  }
  console.log(line(module, tally));
  const folder = module.split('/').slice(0, 2).join('/');
  const sum = folders.get(folder) ?? { noticed: 0, missed: 0 };
  folders.set(folder, { noticed: sum.noticed + tally.noticed, missed: sum.missed + tally.missed });
}
console.log(`\nNot noticed:\n${survivors.map((survivor) => `  ${survivor}`).join('\n')}\n`);
for (const [folder, tally] of folders) console.log(line(folder, tally));

function modulesOf(places: readonly string[]): string[] {
  return places.flatMap((place) => (place.endsWith('.ts') ? [place] : globSync(`${place}/**/*.ts`))).sort();
}

/** The tests of a module: those of its stem, or its whole folder if the tests there are fast or none has the stem. */
function testsOf(module: string): string[] {
  const [, area, stem] = /^src\/([\w-]+)\/([\w-]+)/.exec(module)!;
  const ofFolder: Readonly<Record<string, readonly string[]>> = {
    core: [
      'test/core/*.test.ts',
      'test/integrations/context.test.ts',
      'test/composition/{discard,fake-timers,found-by-attack,hostile,fusion}.test.ts',
    ],
    structures: ['test/structures/*.test.ts'],
  };
  if (ofFolder[area!] !== undefined) return filesOf(ofFolder[area!]!);
  const ofStem = filesOf([`test/{${area},composition}/${stem}.test.ts`, `test/${area}/${stem}/*.test.ts`]);
  const ofArea = ofStem.length === 0 ? filesOf([`test/${area}/*.test.ts`, `test/${area}/*/*.test.ts`]) : [];
  const ofAll = filesOf(['test/core/{brief,options}.test.ts']);
  const ofPolicies = filesOf(['test/policies/field-faults.test.ts', 'test/composition/fusion.test.ts']);
  return [...new Set([...ofStem, ...ofArea, ...ofAll, ...(area === 'policies' ? ofPolicies : [])])];
}

function filesOf(patterns: readonly string[]): string[] {
  return globSync(patterns)
    .filter((file) => !startsServers(file))
    .sort();
}

/** Starting servers again for each mutant would take days. */
function startsServers(file: string): boolean {
  return readFileSync(file, 'utf8').includes('support/servers/');
}

function reportOn(module: string): Report {
  const file = join('.cache', 'mutation', module.replaceAll('/', '.').replace(/\.ts$/, '.json'));
  const secondFile = file.replace(/\.json$/, '.second.json');
  if (values.again || values.fresh || !existsSync(file)) {
    mkdirSync(dirname(file), { recursive: true });
    const earlier = file.replace(/\.json$/, '.earlier.json');
    if (existsSync(file)) renameSync(file, earlier);
    rmSync(secondFile, { force: true });
    runStryker(module, file, {
      mutate: [module],
      // Code that runs when a module loads would need every test again for each mutant.
      ignoreStatic: true,
      incremental: true,
      incrementalFile: earlier,
      force: values.fresh,
    });
  }
  const first = JSON.parse(readFileSync(file, 'utf8')) as Report;
  const places = Object.values(first.files).flatMap(({ mutants }) => mutants.filter(isMissed).map(placeOf));
  if (places.length === 0) return first;
  if (!existsSync(secondFile)) {
    runStryker(module, secondFile, { mutate: places.map((place) => `${module}:${place}`), coverageAnalysis: 'off' });
  }
  return withSecond(first, JSON.parse(readFileSync(secondFile, 'utf8')) as Report);
}

function runStryker(module: string, file: string, choice: object): void {
  const config = file.replace(/\.json$/, '.config.json');
  writeFileSync(
    config,
    JSON.stringify({
      testRunner: 'vitest',
      // The tests are chosen here; Stryker would ask vitest for each mutant which tests reach the module.
      vitest: { configFile: 'vitest.stryker.config.ts', related: false },
      mutator: { excludedMutations: ['StringLiteral'] },
      ignorePatterns: ['.cache', 'bench', 'docs', 'examples', 'test/package'],
      tempDirName: '.cache/stryker',
      concurrency: 2,
      // A runner that is killed for being late begins anew without any module transformed, and on a busy machine its next mutant is late, too. vitest
      // ends a test that waits in vain, and Stryker one that runs in circles.
      timeoutMS: 120_000,
      reporters: ['json'],
      jsonReporter: { fileName: file },
      ...choice,
    }),
  );
  const stryker = join('node_modules', '@stryker-mutator', 'core', 'bin', 'stryker.js');
  const options = ['run', config, '--logLevel', 'error'];
  // Where no test waits for sockets or processes, one that waits for seconds hangs; waiting for it takes most of a run.
  const hangsAfterMs = /^src\/(server|client|stores)\//.test(module) ? '20000' : '3000';
  const tests = testsOf(module).join(',');
  const env = { ...process.env, HOLDFAST_HANGS_AFTER_MS: hangsAfterMs, HOLDFAST_TESTS: tests };
  spawnSync(process.execPath, [stryker, ...options], { stdio: 'inherit', env });
  if (!existsSync(file)) throw new Error(`Stryker made no report on ${module}`);
}

/** The first report, with what the second found about its survivors. A place that was asked about may contain others, which are left out. */
function withSecond(first: Report, second: Report): Report {
  const files = Object.entries(first.files).map(([name, { source, mutants }]) => {
    const found = new Map(second.files[name]?.mutants.map((mutant) => [identityOf(mutant), mutant.status]));
    const merged = mutants.map((mutant) =>
      isMissed(mutant) ? { ...mutant, status: found.get(identityOf(mutant)) ?? mutant.status } : mutant,
    );
    return [name, { source, mutants: merged }] as const;
  });
  return { files: Object.fromEntries(files) };
}

function isMissed({ status }: Mutant): boolean {
  return status === 'Survived' || status === 'NoCoverage';
}

function identityOf(mutant: Mutant): string {
  return `${placeOf(mutant)} ${mutant.mutatorName} ${mutant.replacement}`;
}

/** As Stryker reads places in its options, where columns count from 0. */
function placeOf({ location: { start, end } }: Mutant): string {
  return `${start.line}:${start.column - 1}-${end.line}:${end.column - 1}`;
}

function line(name: string, { noticed, missed }: Tally): string {
  const all = noticed + missed;
  const score = all === 0 ? 'nothing to break' : `${((100 * noticed) / all).toFixed(1)} %`;
  return `${name.padEnd(50)} ${score.padStart(8)}  ${noticed} of ${all} noticed`;
}

function inWords(file: string, source: string, { mutatorName, replacement, location, status }: Mutant): string {
  const { start, end } = location;
  const lines = source.split('\n').slice(start.line - 1, end.line);
  lines[lines.length - 1] = lines.at(-1)!.slice(0, end.column - 1);
  const original = lines.join('\n').slice(start.column - 1);
  const short = (text: string) => {
    const one = text.replaceAll(/\s+/g, ' ');
    return one.length > 70 ? `${one.slice(0, 70)}...` : one;
  };
  const untested = status === 'NoCoverage' ? ', no test comes there' : '';
  return `${file}:${start.line}:${start.column} ${mutatorName}: ${short(original)} -> ${short(replacement ?? '')}${untested}`;
}
