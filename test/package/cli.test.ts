/** `npx holdfast simulate` as a user runs it: built, through the link that npm makes, on the user's own files. */
import { mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { fencesOf } from '../../tools/gates/examples.ts';
import { checkout, manifest, run, temporaryFolder } from './consumer.ts';

const folder = temporaryFolder();
const program = join(folder.path, 'node_modules', '.bin', 'holdfast');

beforeAll(() => {
  mkdirSync(join(folder.path, 'node_modules', '.bin'), { recursive: true });
  symlinkSync(checkout, join(folder.path, 'node_modules', 'holdfast'), 'junction');
  symlinkSync(join(checkout, manifest.bin.holdfast), program);
  mkdirSync(join(folder.path, 'new'));
  mkdirSync(join(folder.path, 'taken', 'dead.svg'), { recursive: true });
  for (const [name, text] of Object.entries(files)) writeFileSync(join(folder.path, name), text);
});

afterAll(() => folder[Symbol.dispose]());

const files = {
  'sound.ts': "import { standard } from 'holdfast';\nexport const pipeline = standard();\n",
  'given.ts': `import { standard, type Clock } from 'holdfast';
    export default ({ clock, random }: { clock: Clock; random: () => number }) => standard({ clock, random });`,
  'naive.mjs': `import { exponential, pipeline, retry, timeout } from 'holdfast';
    console.log('a line of the module');
    export const calls = pipeline(retry({ attempts: 4, backoff: exponential({ initial: 100 }) }), timeout('1s'));`,
  // CommonJS loads another copy of the package, whose timers are also those of the platform.
  'common.cjs': `const { pipeline, deadline } = require('holdfast');
    exports.pipeline = pipeline(deadline('1s'));`,
  'hangs.mjs': `import { setTimeout as sleep } from 'node:timers/promises';
    import { pipeline, fallback } from 'holdfast';
    export default pipeline(fallback(() => sleep(60_000)));`,
  'platform.mjs': `import { pipeline } from 'holdfast';
    const waits = { name: 'waits', async handle(call, next) {
      await new Promise((resolve) => setTimeout(resolve, 300));
      return Promise.race([next(call), new Promise((_, reject) =>
        AbortSignal.timeout(1_000).addEventListener('abort', () => reject(new Error('late'))))]);
    } };
    export default pipeline(waits);`,
  'promised.mjs': `import { promisify } from 'node:util';
    import { pipeline } from 'holdfast';
    const sleep = promisify(setTimeout);
    const beat = () => setTimeout(beat, 1_000).unref();
    beat();
    export default pipeline({ name: 'waits', async handle(call, next) {
      await sleep(1_200);
      return next(call);
    } });`,
  'partly.mjs': `import { workerData } from 'node:worker_threads';
    import { standard } from 'holdfast';
    const { name } = workerData.scenario;
    console.log('loaded for', name);
    if (name === 'brown-out') throw new Error('no settings');
    export default standard();`,
  'oops.mjs': `import { pipeline } from 'holdfast';
    export default pipeline({ name: 'mine', admit() { throw new Error('oops'); } });`,
  'odd.mjs': `import { pipeline } from 'holdfast';
    let calls = 0;
    const thrown = () => {
      calls++;
      if (calls % 3 === 0) return Object.create(null);
      return new Error(calls % 5 === 0 ? 'rare' : \`call \${calls} of \${'9'.repeat(300)}\\nand more\`);
    };
    export default pipeline({ name: 'mine', admit() { throw thrown(); } });`,
  'narrow.mjs': `import { bulkhead, pipeline } from 'holdfast';
    export default pipeline(bulkhead({ limit: 1 }));`,
  'nothing.mjs': 'export const other = 1;',
  'wrong.mjs': 'export default { execute: 1 };',
  'broken.mjs': "import './missing.mjs';",
  'policy.mjs': "import { retry } from 'holdfast'; export default retry();",
  'throws.mjs': "export default () => { throw new Error('no settings'); };",
  'stray.mjs': "export { standard as default } from 'holdfast'; Promise.reject(new Error('no database'));",
  'empty.mjs': "export { standard as default } from 'holdfast'; queueMicrotask(() => { throw null; });",
  'list.mjs': "import { retry } from 'holdfast'; export default [retry()];",
  'waits.mjs': 'await new Promise((resolve) => setTimeout(resolve, 1)); export default 1;',
  'new/package.json': '{ "type": "commonjs" }',
  'new/policy.ts': "import { standard } from 'holdfast'; export default standard();",
};

interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

async function holdfast(words: readonly string[], flags: readonly string[] = []): Promise<Outcome> {
  return run(process.execPath, [...flags, program, ...words], folder.path).then(
    ({ stdout, stderr }) => ({ code: 0, stdout, stderr }),
    ({ code, stdout, stderr }: Outcome) => ({ code, stdout, stderr }),
  );
}

const json = async (...words: readonly string[]) => {
  const outcome = await holdfast(['simulate', ...words, '--json']);
  return { code: outcome.code, ...JSON.parse(outcome.stdout) };
};

describe('holdfast simulate', () => {
  it('finds nothing in the preset, whose policies were given no clock', async () => {
    const { code, stdout } = await holdfast(['simulate', 'sound.ts']);
    expect(stdout).toContain('No hazards.');
    expect(code).toBe(0);
  });

  it('plays the same run for the same seed, with the clock of the platform and with the one it gives', async () => {
    for (const file of ['sound.ts', 'given.ts']) {
      const first = await json(file, '--scenario', 'brown-out', '--seed', '7');
      expect(await json(file, '--scenario', 'brown-out', '--seed', '7')).toEqual(first);
      const { scenarios } = await json(file, '--scenario', 'brown-out', '--seed', '8');
      expect(scenarios).not.toEqual(first.scenarios);
      // It runs in virtual time: an answer within the limit would take longer than the whole program does.
      expect(first.scenarios[0].report.goodDuring).toBeGreaterThan(5);
    }
  });

  it('finds nothing in the preset either when users are patient, or few', async () => {
    const patient = await json('sound.ts', '--patience', '20s');
    expect(patient).toMatchObject({ code: 0, hazards: [] });
    for (const { report } of patient.scenarios) expect(report.goodBefore).toBeGreaterThan(99);
    expect((await holdfast(['simulate', 'sound.ts', '--patience', '20s', '--scenario', 'dead'])).stdout).toMatch(
      /\n {51}\|-{18}\|\n {2}calls {4}\S{40}/,
    );
    expect(await json('sound.ts', '--load', '0.04', '--scenario', 'spike')).toMatchObject({ code: 0, hazards: [] });
  });

  it('names what naive retries do, exits 1, and draws a chart of each scenario', async () => {
    const words = ['simulate', 'naive.mjs', '--export', 'calls', '--svg', 'charts'];
    const { code, stdout, stderr } = await holdfast(words);
    expect(code).toBe(1);
    for (const hazard of [
      'retry-storm (spike)',
      'no-recovery (brown-out)',
      'goodput-collapse',
      'retry-without-budget',
    ]) {
      expect(stdout).toContain(`- ${hazard}`);
    }
    expect(stdout).not.toContain('a line of the module');
    expect(stderr).toContain('a line of the module');
    expect(readdirSync(join(folder.path, 'charts')).sort()).toEqual([
      'brown-out.svg',
      'dead.svg',
      'slow.svg',
      'spike.svg',
    ]);
    expect(readFileSync(join(folder.path, 'charts', 'spike.svg'), 'utf8')).toMatch(/^<svg /);
  });

  it('plays CommonJS, and policies that wait for timers of the platform', async () => {
    const common = await json('common.cjs', '--scenario', 'slow');
    expect(common.scenarios[0].report).toMatchObject({ goodBefore: 100 });
    expect(common.scenarios[0].report.goodDuring).toBeLessThan(5);
    const platform = await json('platform.mjs', '--scenario', 'slow', '--load', '0.3');
    expect(platform.scenarios[0].report).toMatchObject({ goodBefore: 100 });
    expect(platform.scenarios[0].report.goodDuring).toBeLessThan(5);
    const promised = await json('promised.mjs', '--scenario', 'slow', '--load', '0.3');
    expect(promised.scenarios[0].report).toMatchObject({ goodBefore: 100 });
    // Those who come in the last 1.2 s call when answers are no longer late.
    expect(promised.scenarios[0].report.goodDuring).toBeLessThan(10);
  });

  it('begins no other scenario once one has failed', async () => {
    const { code, stderr } = await holdfast(['simulate', 'partly.mjs']);
    expect(code).toBe(2);
    expect(stderr).toContain('loaded for brown-out');
    expect(stderr).not.toContain('loaded for dead');
  });

  it.each([
    ['oops.mjs', /most of the others get "Error: oops"; .*: a policy of your own throws/],
    ['odd.mjs', /most of the others get "Error: call 1 of 9{183}"; .*: a policy of your own throws/],
    [
      'narrow.mjs',
      /most of the others get "BulkheadFullError \[ERR_BULKHEAD_FULL\]: .*"; a limit or a timeout is too small/,
    ],
  ])('says what users get who are not served although nothing is wrong: %s', async (file, message) => {
    const { code, hazards } = await json(file, '--scenario', 'dead');
    expect(code).toBe(1);
    expect(hazards).toMatchObject([{ code: 'refuses-when-well', message: expect.stringMatching(message) }]);
  });

  it('says so when a call waits for real time', async () => {
    const { code, hazards } = await json('hangs.mjs', '--scenario', 'dead', '--capacity', '10');
    expect(code).toBe(1);
    expect(hazards.map((hazard: { code: string }) => hazard.code)).toContain('never-ends');
  });

  it.each([
    [['nothing.mjs'], /it exports other, see --export/],
    [['nothing.mjs', '--export', 'another'], /does not export "another"; it exports other/],
    [['wrong.mjs'], /must be a pipeline/],
    [['broken.mjs'], /cannot be loaded: .*missing\.mjs/s],
    [['new/policy.ts'], /takes the file for CommonJS.*ending \.mts or \.mjs/],
    [['absent.ts'], /there is no file "absent\.ts"/],
    [['.'], /there is no file "\."/],
    [['policy.mjs', '--scenario', 'dead'], /must be a pipeline.*got a policy, which pipeline\(\.\.\.\) makes one/],
    [
      ['throws.mjs', '--scenario', 'dead'],
      /the function of \{ clock, random \} failed: Error: no settings\n.*throws\.mjs/,
    ],
    [['waits.mjs', '--scenario', 'dead'], /dead ended early: .* await a timer when it is loaded\?/],
    [['stray.mjs', '--scenario', 'dead'], /nothing in the file handles Error: no database\n.*stray\.mjs/],
    [['empty.mjs', '--scenario', 'dead'], /nothing in the file handles null/],
    [['list.mjs', '--scenario', 'dead'], /got an array; give its policies to pipeline\(\.\.\.\)/],
    [['sound.ts', '--svg', 'sound.ts/charts'], /--svg: ENOTDIR/],
    [['sound.ts', '--scenario', 'dead', '--svg', 'taken'], /--svg: EISDIR/],
    [[], /give one file/],
    [['sound.ts', 'given.ts'], /give one file/],
    [['sound.ts', '--sede', '1'], /--sede/],
    [['sound.ts', '--seed', '1.5'], /--seed must be an integer, got "1\.5"/],
    [['sound.ts', '--load', '2'], /--load must be from 0\.01 to 1/],
    [['sound.ts', '--latency', 'quick'], /--latency must be a time/],
    [['sound.ts', '--scenario', 'storm'], /there is no scenario "storm", there are brown-out, spike, slow, dead/],
  ])('exits 2 and says what is wrong: %j', async (words, complaint) => {
    const { code, stdout, stderr } = await holdfast(['simulate', ...words]);
    expect(stderr).toMatch(complaint);
    expect(stdout).toBe('');
    expect(code).toBe(2);
  });

  it('says which Node loads TypeScript where this one does not', async () => {
    const { code, stderr } = await holdfast(['simulate', 'sound.ts'], ['--no-experimental-strip-types']);
    expect(stderr).toMatch(/cannot load "sound\.ts"; Node 22\.18, 24 and later load TypeScript.*give the \.mjs/);
    expect(code).toBe(2);
  });

  it('prints what docs/simulate.md shows', async () => {
    const page = fencesOf('docs/simulate.md', readFileSync(join(checkout, 'docs', 'simulate.md'), 'utf8'));
    const source = page.find(({ marks }) => marks.includes('policy.ts'));
    const shown = page.find(({ marks }) => marks.includes('simulated'));
    writeFileSync(join(folder.path, 'policy.ts'), source!.code);
    expect((await holdfast(['simulate', 'policy.ts', '--scenario', 'spike'])).stdout).toBe(shown!.code);
  });
});

describe('holdfast demo', () => {
  it.each([
    [['--sim', '--redis', 'redis://127.0.0.1'], 2, /--sim has no servers/],
    [['--quick', '--postgres', ''], 2, /--postgres needs a URL/],
    [['--seed', ''], 2, /--seed must be a whole number, got ""/],
    [['--quick', '--redis', 'redis://127.0.0.1:1'], 1, /^"ioredis" is not installed in .*: npm install ioredis\n$/],
  ])('does not begin in vain: %j', async (words, expectedCode, complaint) => {
    const { code, stdout, stderr } = await holdfast(['demo', ...words]);
    expect(stderr).toMatch(complaint);
    if (expectedCode === 1) expect(stdout).toContain('The demo stopped: naked worker 1 ended before its time');
    expect(code).toBe(expectedCode);
  });
});

describe('holdfast', () => {
  it('tells its commands, and refuses one that is not there', async () => {
    expect(await holdfast(['--help'])).toMatchObject({ code: 0, stdout: expect.stringContaining('simulate') });
    expect(await holdfast(['simulate', '--help'])).toMatchObject({ code: 0, stdout: expect.stringContaining('--svg') });
    expect(await holdfast(['demo', '--help'])).toMatchObject({ code: 0, stdout: expect.stringContaining('--quick') });
    expect(await holdfast(['--version'])).toMatchObject({ code: 0, stdout: `${manifest.version}\n` });
    expect(await holdfast([])).toMatchObject({ code: 2 });
    expect(await holdfast(['simulat'])).toMatchObject({ code: 2, stderr: expect.stringContaining('no command') });
  });
});
