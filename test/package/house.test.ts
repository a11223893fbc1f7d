/** Rules of the house that no other tool checks, and a proof that each can be broken. */
import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { join, relative, sep } from 'node:path';
import ts from 'typescript';
import { describe, expect, it } from 'vitest';
import { checkout, run, temporaryFolder } from './consumer.ts';

/** Every file that is under version control, or is about to be. */
const files = execFileSync('git', ['ls-files', '--cached', '--others', '--exclude-standard'], {
  cwd: checkout,
  encoding: 'utf8',
})
  .split('\n')
  .filter((file) => file !== '' && statSync(join(checkout, file), { throwIfNoEntry: false })?.isFile());

interface HouseRule {
  readonly title: string;
  readonly concerns: (file: string) => boolean;
  readonly forbidden: RegExp;
  /** A text that breaks the rule. It is written in pieces, because this file must keep the rule, too. */
  readonly breaks: readonly string[];
}

const isTest = (file: string) => /\.test(-d)?\.ts$/.test(file);

const rules: readonly HouseRule[] = [
  {
    title: 'no test is left out or alone',
    concerns: isTest,
    forbidden: /\b(?:it|test|describe|suite|bench)(?:\.\w+)*\.(?:only|skip|todo)\b/,
    breaks: ['it.', 'only('],
  },
  {
    title: 'src keeps no notes to self',
    concerns: (file) => file.startsWith('src/'),
    forbidden: /\b(?:TODO|FIXME|XXX|HACK)\b/,
    breaks: ['// TO', 'DO later'],
  },
  {
    title: 'nothing names a path of one machine',
    concerns: () => true,
    forbidden: /(?<![\w.*-])\/(?:work|tmp|root|home\/\w+|Users\/\w+)\//,
    breaks: ["'/tm", "p/x'"],
  },
  {
    title: 'nothing names a registry',
    concerns: () => true,
    forbidden: /\bregistry\.[\w-]+\.\w+|"resolved": "https?:/,
    breaks: ['https://registry.', 'example.org/'],
  },
];

describe.each(rules)('the house: $title', ({ concerns, forbidden, breaks }) => {
  it('holds', () => {
    const concerned = files.filter(concerns);
    expect(concerned.length).toBeGreaterThan(0);
    const found = concerned.flatMap((file) =>
      readFileSync(join(checkout, file), 'utf8')
        .split('\n')
        .flatMap((line, index) => (forbidden.test(line) ? [`${file}:${index + 1}: ${line.trim()}`] : [])),
    );
    expect(found).toEqual([]);
  });

  it('can be broken', () => {
    expect(breaks.join('')).toMatch(forbidden);
  });
});

/** A type test outside of what tsconfig.json includes passes whatever it says. */
describe('the type tests', () => {
  it('are all inside what the compiler checks', () => {
    const config = ts.getParsedCommandLineOfConfigFile(
      join(checkout, 'tsconfig.json'),
      {},
      {
        ...ts.sys,
        onUnRecoverableConfigFileDiagnostic: (problem) => {
          throw new Error(ts.flattenDiagnosticMessageText(problem.messageText, '\n'));
        },
      },
    )!;
    const checked = config.fileNames.map((file) => relative(checkout, file).split(sep).join('/'));
    const typeTests = files.filter((file) => file.endsWith('.test-d.ts'));
    expect(typeTests.filter((file) => !file.startsWith('test/types/'))).toEqual([]);
    expect(checked).toEqual(expect.arrayContaining(typeTests));
  });

  it('fail where a claim is wrong and nowhere else, for the compiler as well as for vitest', async () => {
    using folder = temporaryFolder();
    for (const path of ['tsconfig.json', 'vitest.config.ts', 'package.json', 'tools/lowering.ts', 'src']) {
      cpSync(join(checkout, path), join(folder.path, path), { recursive: true });
    }
    symlinkSync(join(checkout, 'node_modules'), join(folder.path, 'node_modules'), 'junction');
    mkdirSync(join(folder.path, 'test', 'types'), { recursive: true });
    const test = [
      "import { systemClock } from 'holdfast';",
      "import { expectTypeOf, it } from 'vitest';",
      "it('claims what is so', () => { expectTypeOf(systemClock.now()).toEqualTypeOf<number>(); });",
      "it('claims what is not so', () => { expectTypeOf(systemClock.now()).toEqualTypeOf<string>(); });",
      "it('misses an error', () => {",
      '  // @ts-expect-error',
      '  systemClock.now();',
      '});',
    ];
    writeFileSync(join(folder.path, 'test', 'types', 'claim.test-d.ts'), test.join('\n'));
    const outputOfFailing = (...words: readonly string[]) =>
      run(process.execPath, words, folder.path).then(
        ({ stdout }) => expect.fail(`it has passed: ${stdout}`),
        ({ stdout, stderr }: { stdout: string; stderr: string }) => stdout + stderr,
      );

    // As in the stage `types` of .ci/run, which therefore need not run them by vitest as well.
    const compiled = await outputOfFailing(join(checkout, 'node_modules', 'ts7', 'bin', 'tsc'), '-p', '.', '--noEmit');
    expect(
      Array.from(compiled.matchAll(/^(\S+?)\((\d+),\d+\): error/gm), ([, file, line]) => `${file}:${line}`),
    ).toEqual(['test/types/claim.test-d.ts:4', 'test/types/claim.test-d.ts:6']);
    const vitest = join(checkout, 'node_modules', 'vitest', 'vitest.mjs');
    const tested = await outputOfFailing(vitest, 'run', '--project', 'unit', '--no-color');
    expect(tested).toMatch(/Tests\s+2 failed \| 1 passed/);
  });
});
