/** What a user gets from npm: the tarball, its types, its names, its dependencies. */
import { execFileSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { publint } from 'publint';
import { formatMessage } from 'publint/utils';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { brokenLinks } from '../../tools/gates/examples.ts';
import { exportsOf } from '../../tools/gates/exports.ts';
import { checkout, emptyProject, entries, manifest, type Packed, pack, run, temporaryFolder } from './consumer.ts';

const folder = temporaryFolder();
let packed: Packed;
let project: string;
let installed: string;

// Every dependency is packed from the checkout as well, so that npm needs no registry.
beforeAll(async () => {
  packed = await pack(checkout, folder.path);
  const names = Object.keys(manifest.dependencies);
  const dependencies = await Promise.all(
    names.map((name) => {
      const own = join(folder.path, name);
      mkdirSync(own);
      return pack(join(checkout, 'node_modules', name), own);
    }),
  );
  project = emptyProject(folder.path);
  installed = join(project, 'node_modules', 'holdfast');
  const tarballs = [packed, ...dependencies].map(({ tarball }) => tarball);
  await run('npm', ['install', '--offline', '--ignore-scripts', '--silent', ...tarballs], project);
});

afterAll(() => folder[Symbol.dispose]());

describe('the tarball', () => {
  it('holds the build and the papers, nothing else', () => {
    const papers = packed.files.filter((file) => !/^(dist|docs)\//.test(file));
    expect(papers.sort()).toEqual(['CHANGELOG.md', 'CONTRIBUTING.md', 'LICENSE', 'README.md', 'package.json']);
    const strangers = packed.files.filter(
      (file) => file.startsWith('dist/') && !/\.(c?js(\.map)?|d\.c?ts)$/.test(file),
    );
    expect(strangers).toEqual([]);
  });

  it('holds whatever its pages link to', () => {
    const read = (path: string) =>
      packed.files.includes(path) ? readFileSync(join(installed, path), 'utf8') : undefined;
    const pages = packed.files.filter((file) => file.endsWith('.md'));
    expect(pages.length).toBeGreaterThan(40);
    expect(pages.flatMap((page) => brokenLinks(page, read))).toEqual([]);
  });

  it('has maps that bring their sources along', () => {
    // Three small packages are bundled into the entry that needs them, together with their licences. One of them is included as text.
    const ours = /^(\.\.\/(src|node_modules\/(fastify-plugin|structured-headers))\/|import-of-node:|raw:)/;
    const maps = packed.files.filter((file) => file.endsWith('.map'));
    expect(maps.length).toBeGreaterThan(0);
    for (const file of maps) {
      const map = JSON.parse(readFileSync(join(installed, file), 'utf8'));
      // A CommonJS chunk also lists itself, and one that only passes names on has no other source.
      const generated = basename(file, '.map');
      const pointing = map.sources.filter(
        (source: string, index: number) => !map.sourcesContent?.[index] && source !== generated,
      );
      expect(pointing, file).toEqual([]);
      const strangers = map.sources.filter((source: string) => !ours.test(source) && source !== generated);
      expect(strangers, file).toEqual([]);
    }
  });

  it('carries the licence of what it bundles', () => {
    for (const entry of ['fastify', 'fetch']) {
      const reached = [`dist/${entry}.js`, ...packed.files.filter((file) => /^dist\/chunk-.*\.js$/.test(file))];
      const texts = reached.map((file) => readFileSync(join(installed, file), 'utf8')).join('\n');
      const name = entry === 'fastify' ? 'fastify-plugin' : 'structured-headers';
      expect(texts).toMatch(new RegExp(`/\\*![^]*${name}[^]*Permission is hereby granted`));
    }
  });

  it('installs with its two dependencies and nothing more', () => {
    const names = readdirSync(join(project, 'node_modules')).filter((name) => !name.startsWith('.'));
    expect(names.sort()).toEqual(['holdfast', 'lru-cache', 'tslib']);
    expect(Object.keys(manifest.dependencies).sort()).toEqual(['lru-cache', 'tslib']);
  });

  it('leaves the errors their names, which logs show', () => {
    const built = packed.files.filter((file) => /\.c?js$/.test(file));
    const texts = built.map((file) => readFileSync(join(installed, file), 'utf8'));
    const renamed = texts.flatMap((text) => text.match(/class _\w*Error\b/g) ?? []);
    expect(renamed).toEqual([]);
  });

  it('imports tslib instead of carrying its helpers', () => {
    const built = packed.files.filter((file) => /\.c?js$/.test(file));
    const texts = built.map((file) => readFileSync(join(installed, file), 'utf8'));
    expect(texts.some((text) => /from ["']tslib["']/.test(text))).toBe(true);
    expect(texts.some((text) => /require\(["']tslib["']\)/.test(text))).toBe(true);
    expect(texts.filter((text) => /__callDispose|__decorateElement/.test(text))).toEqual([]);
  });

  it('passes publint', async () => {
    const { messages, pkg } = await publint({ pkgDir: installed, pack: false, strict: true });
    expect(messages.map((message) => formatMessage(message, pkg))).toEqual([]);
  });

  it('passes attw: types for import, require and bundlers, and for a TypeScript that knows no exports', async () => {
    const attw = join(checkout, 'node_modules', '@arethetypeswrong', 'cli', 'dist', 'index.js');
    const flags = ['--format', 'ascii', '--no-color', '--no-emoji'];
    await run(process.execPath, [attw, packed.tarball, ...flags], folder.path);
  });
});

describe('the names', () => {
  const declarations = (extension: string) =>
    entries.map((entry) => join(installed, 'dist', `${entry.split('/')[1] ?? 'index'}.${extension}`));

  it('of each entry stay as they are', async () => {
    const lines = [...exportsOf(declarations('d.ts')).values()].flatMap((found, index) => [
      `${entries[index]}`,
      ...found.map(({ name, kind }) => `  ${kind.padEnd(9)} ${name}`),
      '',
    ]);
    await expect(lines.join('\n')).toMatchFileSnapshot('exports.txt');
  });

  it('are the same in the types and when the program runs, by import and by require', async () => {
    const esm = [...exportsOf(declarations('d.ts')).values()];
    const commonjs = [...exportsOf(declarations('d.cts')).values()];
    expect(commonjs).toEqual(esm);
    const { stdout } = await run(process.execPath, ['imports.mjs', ...entries], project);
    const { names } = JSON.parse(stdout) as { names: Record<string, string[]> };
    for (const [index, entry] of entries.entries()) {
      const values = esm[index]!.filter(({ isValue }) => isValue).map(({ name }) => name);
      expect(names[entry], entry).toEqual(values);
    }
  });
});

const typedProgram = `
import { exponential, mutex, type Pipeline, pipeline, retry, timeout } from 'holdfast';
import { virtualClock } from 'holdfast/testing';

const policy: Pipeline = pipeline(retry({ backoff: exponential({ initial: 100, max: '2s' }) }), timeout('1s'));
export const answer: Promise<number> = policy.execute(({ signal }) => (signal.aborted ? 1 : 2));
export const now: number = virtualClock().now();
export async function fence() {
  await using lease = await mutex({ ttl: '10s' }).acquire('key');
  return lease.fence;
}
// @ts-expect-error a duration has a unit
timeout('1 second');
`;

describe('the types', () => {
  const compilers = [
    { title: 'TypeScript 6', compiler: 'typescript' },
    { title: 'TypeScript 7', compiler: 'ts7' },
  ];
  const resolutions = [
    { module: 'nodenext', moduleResolution: 'nodenext', files: ['typed.mts', 'typed.cts'] },
    { module: 'esnext', moduleResolution: 'bundler', files: ['typed.mts'] },
  ];
  const cases = compilers.flatMap((compiler) => resolutions.map((resolution) => ({ ...compiler, ...resolution })));

  it.each(cases)('hold for a strict project, $moduleResolution, $title, with nothing of Node', (given) => {
    const { compiler, module, moduleResolution, files } = given;
    const config = join(project, `tsconfig.${compiler}.${moduleResolution}.json`);
    const compilerOptions = {
      ...{ strict: true, exactOptionalPropertyTypes: true, skipLibCheck: false, noEmit: true, types: [] },
      ...{ target: 'es2022', lib: ['es2022', 'dom'], module, moduleResolution },
    };
    for (const file of files) writeFileSync(join(project, file), typedProgram);
    writeFileSync(config, JSON.stringify({ compilerOptions, files }));
    const tsc = join(checkout, 'node_modules', compiler, 'bin', 'tsc');
    const check = () => execFileSync(process.execPath, [tsc, '-p', config], { encoding: 'utf8' });
    expect(complaintsOf(check)).toBe('');
  });
});

/** What a compiler prints. It reports errors on stdout, which the error of a failed process leaves out. */
function complaintsOf(check: () => string): string {
  try {
    return check();
  } catch (error) {
    return (error as { stdout: string }).stdout;
  }
}
