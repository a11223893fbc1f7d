/**
 * Runtimes: the Node versions and other engines that the package is tested on. They come from the registry like any package, outside the lockfile,
 * into a cache folder (HOLDFAST_CACHE, else node_modules/.cache/holdfast).
 *
 * Promise: an engine is present completely or not at all, however many processes ask at once. Without a network it is missing, which is not an error
 * here: tests skip a missing engine, and fail for it when CI=true.
 */
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

export interface Runtime {
  readonly name: 'node' | 'bun' | 'deno';
  readonly version: string;
  /** The package that holds the engine for this platform. */
  readonly package: string;
  /** The engine's program inside that package. */
  readonly program: string;
  /** Arguments between the program and the script. */
  readonly runArguments: readonly string[];
}

const isWindows = process.platform === 'win32';
const isArm = process.arch === 'arm64';
const programSuffix = isWindows ? '.exe' : '';

function node(version: string): Runtime {
  const os = isWindows ? 'win' : process.platform;
  const prefix = process.platform === 'darwin' ? 'node-bin' : 'node';
  const program = `bin/node${programSuffix}`;
  return { name: 'node', version, package: `${prefix}-${os}-${process.arch}`, program, runArguments: [] };
}

function bun(version: string): Runtime {
  const os = isWindows ? 'windows' : process.platform;
  const cpu = isArm ? 'aarch64' : process.arch;
  return {
    name: 'bun',
    version,
    package: `@oven/bun-${os}-${cpu}`,
    program: `bin/bun${programSuffix}`,
    runArguments: [],
  };
}

function deno(version: string): Runtime {
  const suffix = process.platform === 'linux' ? '-glibc' : '';
  const runArguments = ['run', '--quiet', '--allow-all'];
  const name = `@deno/${process.platform}-${process.arch}${suffix}`;
  return { name: 'deno', version, package: name, program: `deno${programSuffix}`, runArguments };
}

/** The first is the oldest supported version; the third is the one used for development. */
export const runtimes: readonly Runtime[] = [
  node('20.20.2'),
  node('22.23.3'),
  node('24.21.0'),
  node('26.10.0'),
  bun('1.4.5'),
  deno('2.9.6'),
];

const checkout = fileURLToPath(new URL('../../', import.meta.url));
const cacheFolder = process.env.HOLDFAST_CACHE || join(checkout, 'node_modules', '.cache', 'holdfast');

/** The path of a runtime's program; undefined if it is neither cached nor available. */
export async function provide(runtime: Runtime): Promise<string | undefined> {
  if (runtime.name === 'node' && process.version === `v${runtime.version}`) return process.execPath;
  const folder = join(cacheFolder, `${runtime.name}-${runtime.version}-${process.arch}`);
  const program = join(folder, 'node_modules', runtime.package, runtime.program);
  if (existsSync(program)) return program;
  await mkdir(cacheFolder, { recursive: true });
  for (let tries = 0; tries < 2 && !existsSync(program); tries++) {
    // Only the rename makes it visible, so nobody ever sees an incomplete engine.
    const staging = await mkdtemp(join(cacheFolder, 'staging-'));
    try {
      await install(`${runtime.package}@${runtime.version}`, staging);
      await rename(staging, folder);
    } catch {
      await rm(staging, { recursive: true, force: true });
    }
  }
  return existsSync(program) ? program : undefined;
}

async function install(specifier: string, folder: string): Promise<void> {
  const quick = ['--fetch-retries=1', '--fetch-retry-mintimeout=500', '--prefer-offline'];
  const aside = ['--silent', '--no-save', '--no-package-lock', '--ignore-scripts', '--prefix', folder];
  await promisify(execFile)('npm', ['install', ...aside, ...quick, specifier], {
    cwd: folder,
    shell: isWindows,
    // An npm that waits for an unresponsive registry ignores gentler signals.
    ...{ timeout: 90_000, killSignal: 'SIGKILL' },
  });
}

/** Provides all runtimes and returns the names of the missing ones. */
export async function provideAll(): Promise<string[]> {
  const programs = await Promise.all(runtimes.map(provide));
  return runtimes.filter((_, index) => programs[index] === undefined).map(({ name, version }) => `${name} ${version}`);
}

if (import.meta.main) {
  const missing = await provideAll();
  console.log(missing.length === 0 ? `All runtimes are in ${cacheFolder}` : `Missing: ${missing.join(', ')}`);
  process.exitCode = missing.length === 0 ? 0 : 1;
}
