/** A user's project: the packed package in an empty folder, without a checkout around it and without any peer. */
import { execFile } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

export const checkout = fileURLToPath(new URL('../../', import.meta.url));
const fixtures = fileURLToPath(new URL('fixtures/', import.meta.url));
export const manifest = JSON.parse(readFileSync(join(checkout, 'package.json'), 'utf8')) as {
  readonly version: string;
  readonly exports: Readonly<Record<string, unknown>>;
  readonly dependencies: Readonly<Record<string, string>>;
  readonly scripts: Readonly<Record<string, string>>;
  readonly bin: { readonly holdfast: string };
};

/** The names that users import: `holdfast`, `holdfast/testing` and so on. */
export const entries = Object.keys(manifest.exports)
  .filter((path) => path !== './package.json')
  .map((path) => `holdfast${path.slice(1)}`);

export interface Packed {
  /** The tarball's path. */
  readonly tarball: string;
  /** The paths inside the tarball. */
  readonly files: readonly string[];
}

/** A folder that is removed at the end of the block. */
export function temporaryFolder(): { readonly path: string } & Disposable {
  const path = mkdtempSync(join(tmpdir(), 'holdfast-'));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}

/** Packs any folder that holds a package.json, as `npm publish` would. */
export async function pack(packageFolder: string, into: string): Promise<Packed> {
  const flags = ['--ignore-scripts', '--json', '--pack-destination', into];
  const { stdout } = await run('npm', ['pack', packageFolder, ...flags], into);
  const [packed] = JSON.parse(stdout) as { filename: string; files: { path: string }[] }[];
  return { tarball: join(into, packed!.filename), files: packed!.files.map(({ path }) => path) };
}

/** An empty project. Scripts and answers of the fixtures are beside its package.json. */
export function emptyProject(folder: string): string {
  const project = join(folder, 'project');
  mkdirSync(project);
  writeFileSync(join(project, 'package.json'), JSON.stringify({ name: 'project', private: true, type: 'module' }));
  cpSync(fixtures, project, { recursive: true });
  return project;
}

/** How long a program may run: a little less than a test, which can then show what the program has written. */
export const longestRunMs = 220_000;

/** Runs a program as a user's shell would, without the variables that npm and vitest added to the environment. */
export async function run(program: string, programArguments: readonly string[], cwd: string) {
  const env = Object.fromEntries(
    Object.entries(process.env).filter(
      ([name]) => !/^(NODE_|VITEST|TEST$|HOLDFAST_SEED|npm_(package|lifecycle))/.test(name),
    ),
  );
  const shell = process.platform === 'win32' && program === 'npm';
  return promisify(execFile)(program, [...programArguments], { cwd, env, shell, timeout: longestRunMs });
}
