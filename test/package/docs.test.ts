/** What we show is true: examples compile, run and print what the page says; links lead somewhere; commands exist. */
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { stripTypeScriptTypes } from 'node:module';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  allFences,
  brokenLinks,
  commentFencesOf,
  examplesOf,
  fencesOf,
  npmScriptsOf,
  pages,
} from '../../tools/gates/examples.ts';
import { checkout, longestRunMs, run, temporaryFolder } from './consumer.ts';

/** Few programs cannot be run here, such as those that need a service of the reader's. */
const mostUnrun = 11;

const fences = allFences();
const examples = examplesOf(fences);
const unrun = examples.filter(({ runs }) => !runs);
const folder = temporaryFolder();

const sourceByPath = new Map(examples.map(({ path, file }) => [path, file]));

/** Has Node load what is beside a program: the same without types. To strip them itself takes Node longer than to run most of the programs. */
const hook = `
import { readFileSync } from 'node:fs';
import { registerHooks } from 'node:module';

const stripped = (url) => ({ format: 'module', source: readFileSync(new URL(url + '.stripped')), shortCircuit: true });
registerHooks({ load: (url, context, next) => (url.endsWith('.ts') ? stripped(url) : next(url, context)) });
`;

beforeAll(() => {
  // Everything that is installed here can be imported, and `holdfast` leads to the build.
  symlinkSync(join(checkout, 'node_modules'), join(folder.path, 'node_modules'), 'junction');
  writeFileSync(join(folder.path, 'package.json'), JSON.stringify({ type: 'module', private: true }));
  writeFileSync(join(folder.path, 'hook.js'), hook);
  for (const { path, line, code, runs, language } of examples) {
    mkdirSync(join(folder.path, dirname(path)), { recursive: true });
    // The code keeps the lines on which the reader sees it, so that positions in errors agree.
    const text = '\n'.repeat(line - 1) + code;
    writeFileSync(join(folder.path, path), text);
    if (runs && language === 'ts') writeFileSync(join(folder.path, `${path}.stripped`), stripTypeScriptTypes(text));
  }
  const compilerOptions = {
    ...{ strict: true, noEmit: true, skipLibCheck: true, types: ['node'] },
    ...{ target: 'esnext', lib: ['esnext'], module: 'nodenext', moduleDetection: 'force' },
    // Node can run this by stripping types.
    ...{ verbatimModuleSyntax: true, erasableSyntaxOnly: true, allowImportingTsExtensions: true },
  };
  writeFileSync(join(folder.path, 'tsconfig.json'), JSON.stringify({ compilerOptions, include: ['*/*.ts'] }));
});

afterAll(() => folder[Symbol.dispose]());

describe('the examples', () => {
  it('are found, in doc comments at least', () => {
    expect(examples.filter(({ file }) => file.startsWith('src/')).length).toBeGreaterThan(0);
  });

  it('compile', async () => {
    const tsc = join(checkout, 'node_modules', 'ts7', 'bin', 'tsc');
    const complaints = await run(process.execPath, [tsc, '-p', '.', '--pretty', 'false'], folder.path).then(
      () => '',
      (error: { stdout: string; stderr: string }) => error.stdout + error.stderr,
    );
    const readable = complaints.replace(/^[\w./-]+(?=\()/gm, (path) => sourceByPath.get(path) ?? path);
    expect(readable).toBe('');
  });

  it(`are run, but for ${unrun.length} of at most ${mostUnrun}`, () => {
    expect(unrun.length).toBeLessThanOrEqual(mostUnrun);
  });

  it('follow a fence that says its language', () => {
    const silent = fences.filter(({ language }) => language === '');
    expect(silent.map(({ file, line }) => `${file}:${line - 1}`)).toEqual([]);
  });
});

describe.concurrent('the example at', () => {
  for (const example of examples.filter(({ runs }) => runs)) {
    it(`${example.file}:${example.line} ends well`, async ({ expect }) => {
      // Node ends with a code other than 0 after an error or an unhandled rejection, and when it takes too long.
      const outcome = await run(process.execPath, ['--import', './hook.js', example.path], folder.path).then(
        ({ stdout }) => ({ stdout, problem: '' }),
        (error: { stdout: string; stderr: string; killed: boolean }) => ({
          stdout: error.stdout,
          problem: error.killed ? `did not end within ${longestRunMs} ms` : error.stderr,
        }),
      );
      expect(outcome.problem).toBe('');
      if (example.expectedOutput !== undefined) expect(outcome.stdout).toBe(example.expectedOutput);
    });
  }
});

describe('the pages', () => {
  /** The text of a page, some text for any other file, and undefined for a file that does not exist. */
  const read = (path: string) => {
    const full = join(checkout, path);
    if (!existsSync(full)) return undefined;
    return path.endsWith('.md') && statSync(full).isFile() ? readFileSync(full, 'utf8') : '';
  };

  it('link to what is there', () => {
    expect(pages().flatMap((page) => brokenLinks(page, read))).toEqual([]);
  });

  it('name scripts that exist', () => {
    const folders = ['.', ...['examples', 'tools'].flatMap((parent) => workspacesIn(parent)), 'bench'];
    const manifests = folders.map((path) => JSON.parse(readFileSync(join(checkout, path, 'package.json'), 'utf8')));
    const shells = fences.filter(({ language }) => ['sh', 'bash', 'shell'].includes(language));
    const missing = shells.flatMap(({ file, line, code }) =>
      npmScriptsOf(code).flatMap(({ script, workspace }) => {
        const index =
          workspace === undefined ? 0 : manifests.findIndex(({ name }, at) => [name, folders[at]].includes(workspace));
        return manifests[index]?.scripts?.[script] === undefined ? [`${file}:${line}: npm run ${script}`] : [];
      }),
    );
    expect(missing).toEqual([]);
  });
});

function workspacesIn(parent: string): string[] {
  const children = readdirSync(join(checkout, parent)).map((child) => `${parent}/${child}`);
  return children.filter((child) => existsSync(join(checkout, child, 'package.json')));
}

describe('the difference that the README shows', () => {
  const { code } = fences.find(({ file, language }) => file === 'README.md' && language === 'diff')!;
  const lines = code.split('\n').filter((line) => line.trim() !== '');
  const linesOf = (version: string) =>
    readFileSync(join(checkout, 'examples', 'queue', `${version}.ts`), 'utf8')
      .split('\n')
      .map((line) => line.trim());

  it.each([
    ['before', '-'],
    ['after', '+'],
  ])('is of the example as it is %s', (version, mark) => {
    const shown = lines.filter((line) => [' ', mark].includes(line[0]!)).map((line) => line.slice(1).trim());
    const there = linesOf(version);
    expect(shown.filter((line) => !there.includes(line))).toEqual([]);
  });
});

describe('the reading of pages', () => {
  it('takes a program with its output, its line and its marks', () => {
    const page = [
      '# Page',
      '',
      '```ts',
      'console.log(1);',
      '```',
      '',
      '```text output',
      '1',
      '```',
      '',
      '  ~~~js no-run',
      '  f();',
      '  ~~~',
    ];
    const found = examplesOf(fencesOf('page.md', page.join('\n')));
    expect(found).toMatchObject([
      { line: 4, language: 'ts', runs: true, code: 'console.log(1);\n', expectedOutput: '1\n' },
      { line: 12, language: 'js', runs: false, code: 'f();\n', expectedOutput: undefined },
    ]);
    const named = examplesOf(fencesOf('docs/page.md', '```ts transfer.ts\n```\n```ts\n```'));
    expect(named.map(({ path }) => path)).toEqual(['docs-page-md/transfer.ts', 'docs-page-md/4.ts']);
  });

  it('takes a program out of a doc comment, with its line', () => {
    const source =
      'const one = 1;\n\n/**\n * Says it.\n * @example\n * ```ts\n * if (true) {\n *   say();\n * }\n * ```\n */\nlet x;';
    expect(commentFencesOf('src/say.ts', source)).toMatchObject([{ line: 7, code: 'if (true) {\n  say();\n}\n' }]);
  });

  it('sees links that lead nowhere, outside of code', () => {
    const texts: Record<string, string> = {
      'docs/a.md':
        '[x](b.md#a-heading) [x](b.md#none) [x](gone.md) [x](../README.md) `[x](no)` [x](https://example.com/none)\n[y]: none.md',
      'docs/b.md': '## A `heading`!\n',
      'README.md': '',
    };
    expect(brokenLinks('docs/a.md', (path) => texts[path])).toEqual([
      'docs/a.md: b.md#none: docs/b.md has no heading for #none',
      'docs/a.md: gone.md: there is no docs/gone.md',
      'docs/a.md: none.md: there is no docs/none.md',
    ]);
  });

  it('finds the scripts in shell text', () => {
    const shell =
      'npm ci && npm test # npm run not-this\nnpm run --silent demo -- --quick\nnpm run bench -w bench\nnpm install x';
    expect(npmScriptsOf(shell)).toEqual([
      { script: 'test', workspace: undefined },
      { script: 'demo', workspace: undefined },
      { script: 'bench', workspace: 'bench' },
    ]);
  });
});
