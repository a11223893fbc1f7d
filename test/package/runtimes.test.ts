/** The packed package on every runtime that we support, by `import` and by `require`. */
import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { build } from 'esbuild';
import { Miniflare } from 'miniflare';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { provide, runtimes } from '../../tools/gates/runtimes.ts';
import { checkout, emptyProject, entries, manifest, pack, run, temporaryFolder } from './consumer.ts';

const folder = temporaryFolder();
let project: string;

// The folders are made by hand instead of by `npm install`, which package.test.ts tests. They are the same, and take a tenth of the time.
beforeAll(async () => {
  project = emptyProject(folder.path);
  const { tarball } = await pack(checkout, folder.path);
  const installed = join(project, 'node_modules', 'holdfast');
  mkdirSync(installed, { recursive: true });
  execFileSync('tar', ['-xzf', tarball, '--strip-components=1', '-C', installed]);
  for (const name of Object.keys(manifest.dependencies)) {
    cpSync(join(checkout, 'node_modules', name), join(project, 'node_modules', name), { recursive: true });
  }
});

afterAll(() => folder[Symbol.dispose]());

const expectedBehaviour = { attempts: 3, value: 'served', code: 'ERR_TIMEOUT', isAbandoned: true, instead: 'instead' };
const mustHaveAll = process.env.CI === 'true';

const programs = await Promise.all(runtimes.map(provide));

for (const [index, { name, version, runArguments }] of runtimes.entries()) {
  const program = programs[index];

  describe.skipIf(program === undefined && !mustHaveAll)(`holdfast on ${name} ${version}`, () => {
    const answerOf = async (script: string) => {
      if (program === undefined) throw new Error(`${name} ${version} is not to be had, and CI=true asks for all`);
      const { stdout } = await run(program, [...runArguments, script, ...entries], project);
      return JSON.parse(stdout);
    };

    it('works by import, and beside the CommonJS build', async () => {
      const seen = await answerOf('imports.mjs');
      expect(seen.behaviour).toEqual(expectedBehaviour);
      expect(seen.commonjsBehaviour).toEqual(expectedBehaviour);
      for (const entry of entries) expect(seen.names[entry]).not.toEqual([]);
      // Bun does not use the condition `module-sync`, so `require` loads a second copy there.
      expect(seen.sameClasses).toBe(name !== 'bun');
      expect(seen.otherCopy).toBe(true);
      expect(seen.recognised).toBe(true);
    });

    it('works by require, with the same names', async () => {
      const [required, imported] = await Promise.all([answerOf('requires.cjs'), answerOf('imports.mjs')]);
      expect(required.behaviour).toEqual(expectedBehaviour);
      expect(required.names).toEqual(imported.names);
      expect(required.sameClasses).toBe(name !== 'bun');
      expect(required.recognised).toBe(true);
    });
  });
}

describe('holdfast on workerd', () => {
  it.each([
    { title: 'with nothing of Node', compatibilityFlags: [] },
    { title: 'with nodejs_compat', compatibilityFlags: ['nodejs_compat'] },
  ])('works $title', async ({ compatibilityFlags }) => {
    const { outputFiles } = await build({
      entryPoints: [join(project, 'worker.mjs')],
      bundle: true,
      format: 'esm',
      write: false,
      conditions: ['workerd', 'worker', 'browser'],
      mainFields: ['module', 'main'],
    });
    const worker = new Miniflare({
      modules: true,
      script: outputFiles[0]!.text,
      compatibilityDate: '2026-07-01',
      compatibilityFlags,
      cf: false,
    });
    try {
      // The timers of a request end with it, and several requests are served at once.
      const answers = [1, 2, 3].map(async () => (await worker.dispatchFetch('http://localhost/')).json());
      const answer = { behaviour: expectedBehaviour, hasProcess: compatibilityFlags.length > 0 };
      expect(await Promise.all(answers)).toEqual([answer, answer, answer]);
    } finally {
      await worker.dispose();
    }
  });
});
