/**
 * `npm test`: builds once, runs every test, and ends with one line `N passed, N failed, N skipped`.
 *
 * Arguments are passed on to vitest (`npm test -- test/core`, `npm test -- -t 'half-open'`). If they select only source tests, nothing is built. The
 * line is made from vitest's JSON report; a file that cannot be loaded counts as a failure.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { provideAll } from './runtimes.ts';

interface Report {
  readonly numPassedTests: number;
  readonly numFailedTests: number;
  readonly numPendingTests: number;
  readonly numTodoTests: number;
  readonly testResults: readonly {
    readonly status: string;
    readonly assertionResults: readonly { status: string }[];
  }[];
}

const checkout = fileURLToPath(new URL('../../', import.meta.url));
const givenArguments = process.argv.slice(2);
process.exitCode = await test(givenArguments);

async function test(vitestArguments: readonly string[]): Promise<number> {
  if (concernsPackage(vitestArguments)) {
    // The one computes while the other waits for the registry.
    const [built, missing] = await Promise.all([
      run('npm', ['run', '--silent', 'build', '--', '--silent']),
      provideAll(),
    ]);
    if (built !== 0) return close({ passed: 0, failed: 1, skipped: 0 }, built);
    if (missing.length > 0) console.log(`Skipped, for want of the runtime and of a registry: ${missing.join(', ')}`);
  }
  const folder = mkdtempSync(join(tmpdir(), 'holdfast-report-'));
  const file = join(folder, 'report.json');
  const secondTry = `--reporter=${join(checkout, 'tools', 'gates', 'second-try.ts')}`;
  const reporters = ['--reporter=default', secondTry, '--reporter=json', `--outputFile.json=${file}`];
  const vitest = join(checkout, 'node_modules', 'vitest', 'vitest.mjs');
  const code = await run(process.execPath, [vitest, 'run', ...reporters, ...vitestArguments]);
  const counts = count(file, code);
  rmSync(folder, { recursive: true, force: true });
  return close(counts, code);
}

/** Whether the arguments include `test/package`. All other paths are tests of the source, which vitest lowers itself. */
function concernsPackage(vitestArguments: readonly string[]): boolean {
  const paths = vitestArguments.filter((argument) => /^(\.\/)?test\//.test(argument));
  return paths.length === 0 || paths.some((path) => path.includes('test/package'));
}

async function run(command: string, commandArguments: readonly string[]): Promise<number> {
  const child = spawn(command, commandArguments, {
    cwd: checkout,
    stdio: ['ignore', 'inherit', 'inherit'],
    shell: process.platform === 'win32',
  });
  const [code] = await once(child, 'exit');
  return code ?? 1;
}

interface Counts {
  readonly passed: number;
  readonly failed: number;
  readonly skipped: number;
}

function count(file: string, code: number): Counts {
  let report: Report;
  try {
    report = JSON.parse(readFileSync(file, 'utf8')) as Report;
  } catch {
    return { passed: 0, failed: 1, skipped: 0 };
  }
  const brokenFiles = report.testResults.filter(
    ({ status, assertionResults }) =>
      status === 'failed' && !assertionResults.some((result) => result.status === 'failed'),
  ).length;
  const failed = report.numFailedTests + brokenFiles;
  return {
    passed: report.numPassedTests,
    // An error outside any test also fails the run.
    failed: failed === 0 && code !== 0 ? 1 : failed,
    skipped: report.numPendingTests + report.numTodoTests,
  };
}

function close({ passed, failed, skipped }: Counts, code: number): number {
  console.log(`${passed} passed, ${failed} failed, ${skipped} skipped`);
  return failed > 0 ? code || 1 : code;
}
