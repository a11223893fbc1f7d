/**
 * Programs of real servers: from PATH, or else from a cache that an ordinary user fills once from this machine's own package sources. Nothing is
 * installed or started by this. Without apt, no program is provided.
 */
import { execFile } from 'node:child_process';
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { homedir } from 'node:os';
import { delimiter, join } from 'node:path';
import { promisify } from 'node:util';

/** How to start a program. */
export interface Program {
  readonly file: string;
  /** Added to the environment. */
  readonly env: Readonly<Record<string, string>>;
}

const run = promisify(execFile);

/** A program of one of Debian's packages. Rejects with a list of what was tried. */
export async function provide(name: string, packageName: string): Promise<Program> {
  const installed = findIn((process.env.PATH ?? '').split(delimiter), name);
  if (installed !== undefined) return { file: installed, env: {} };
  const cache = join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'holdfast', 'servers');
  const root = join(cache, packageName);
  const kept = findUnder(root, name, packageName);
  if (kept !== undefined) return kept;
  const failure = await unpack(cache, packageName, root).catch((error: unknown) => error);
  const provided = findUnder(root, name, packageName);
  if (provided !== undefined) return provided;
  throw new Error(`${name} is neither on PATH nor to be had from a package source`, { cause: failure });
}

function findUnder(root: string, name: string, packageName: string): Program | undefined {
  // The package's own folder comes first: the command of the same name may be a script that expects the package in its usual place.
  const places = [`usr/lib/${packageName}`, 'usr/bin', 'usr/sbin'].map((folder) => join(root, folder));
  const file = findIn(places, name);
  if (file === undefined) return undefined;
  const libraries = join(root, 'usr/lib');
  // Some packages keep their libraries in a subfolder of the common one.
  const folders = foldersIn(libraries).flatMap((folder) => [folder, ...foldersIn(folder)]);
  return { file, env: { LD_LIBRARY_PATH: folders.join(delimiter) } };
}

/** The subfolders; none if the folder does not exist, as for a program without libraries of its own. */
function foldersIn(parent: string): string[] {
  if (!existsSync(parent)) return [];
  const entries = readdirSync(parent, { withFileTypes: true });
  return entries.filter((entry) => entry.isDirectory()).map(({ name }) => join(parent, name));
}

function findIn(folders: readonly string[], name: string): string | undefined {
  return folders.map((folder) => join(folder, name)).find(isExecutable);
}

function isExecutable(file: string): boolean {
  try {
    accessSync(file, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/** Unpacks a package. Concurrent callers each use a folder of their own; the first to finish is kept. */
async function unpack(cache: string, packageName: string, root: string): Promise<void> {
  mkdirSync(cache, { recursive: true });
  const folder = mkdtempSync(join(cache, 'unpacking-'));
  try {
    // Packages newer than the release are among its backports.
    await download(join(folder, 'release'), packageName, []).catch(() =>
      download(join(folder, 'backports'), packageName, backports(folder)),
    );
    for (const source of ['release', 'backports']) {
      const archives = filesIn(join(folder, source, 'archives')).filter((file) => file.endsWith('.deb'));
      for (const archive of archives) {
        await run('dpkg', ['-x', join(folder, source, 'archives', archive), join(folder, 'root')]);
      }
    }
    renameSync(join(folder, 'root'), root);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Downloads a package with its missing dependencies. The machine's own lists and caches stay untouched. */
async function download(folder: string, packageName: string, sources: readonly string[]): Promise<void> {
  for (const part of ['lists/partial', 'archives/partial']) mkdirSync(join(folder, part), { recursive: true });
  const options = [
    ...['-o', 'Debug::NoLocking=1', '-o', 'APT::Sandbox::User=root', '-qq', '-o', 'Acquire::Retries=3', ...sources],
    ...['-o', `Dir::State::lists=${join(folder, 'lists')}`, '-o', `Dir::Cache::archives=${join(folder, 'archives')}`],
    ...['-o', 'Dir::Cache::pkgcache=', '-o', 'Dir::Cache::srcpkgcache='],
  ];
  const limits = { timeout: 120_000 };
  await run('apt-get', [...options, 'update'], limits);
  const install = ['install', '-y', '--no-install-recommends', '--download-only'];
  await run('apt-get', [...options, ...install, packageName], limits);
}

/** Options that add backports to the machine's first package source. */
function backports(folder: string): string[] {
  const [, release] = /^VERSION_CODENAME=(.+)$/m.exec(readFileSync('/etc/os-release', 'utf8')) ?? [];
  const lists = '/etc/apt/sources.list.d';
  const [stanza] = filesIn(lists)
    .filter((file) => file.endsWith('.sources'))
    .flatMap((file) => readFileSync(join(lists, file), 'utf8').split(/\n\s*\n/));
  const parts = join(folder, 'parts');
  mkdirSync(parts);
  writeFileSync(join(parts, 'all.sources'), `${stanza}\n`.replace(/^Suites:.*/m, `$& ${release}-backports`));
  return ['-o', 'Dir::Etc::sourcelist=/dev/null', '-o', `Dir::Etc::sourceparts=${parts}`];
}

function filesIn(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}
