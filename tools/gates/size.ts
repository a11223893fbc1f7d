/**
 * Size: how much a user's bundle grows, tree-shaken, minified and compressed, and what importing costs.
 *
 * Each figure has a budget. `node tools/gates/size.ts` prints the table, and the largest parts of what exceeds its budget.
 */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { gzipSync } from 'node:zlib';
import { build } from 'esbuild';
import { esbuildLowering } from '../lowering.ts';

export interface Budget {
  readonly title: string;
  /** The imported names; empty for the whole entry. */
  readonly names: readonly string[];
  /** The target. */
  readonly targetBytes: number;
  /** The limit of the gate: slightly above the current size, so that growth is noticed. Lower it with every saving. */
  readonly maxBytes: number;
}

const kilobyte = 1024;
/**
 * These figures show what a bundler keeps of a module of which little is used. It keeps what is computed when the module loads, even from numbers or
 * a template literal, because that might have an effect. Write such values out, or compute them where they are used.
 */
const maxKilobytesAlone = {
  ...{ pipeline: 11.2, retry: 6.15, timeout: 5, deadline: 4.95, fallback: 2.6, retryBudget: 3.6 },
  ...{ exponential: 2.05, decorrelated: 1.85, constant: 1.3 },
  ...{ circuitBreaker: 10.5, keyed: 9.5, bulkhead: 6.3, adaptiveLimit: 8.5, rateLimit: 6.4, throttle: 5.65 },
  ...{ loadShed: 5.25, hedge: 6.7, singleFlight: 4.4 },
};
const primitives = Object.keys(maxKilobytesAlone);

export const budgets: readonly Budget[] = [
  ...Object.entries(maxKilobytesAlone).map(([name, max]) => budget(name, [name], 2, max)),
  budget('memoryStore', ['memoryStore'], 2, 7.75),
  budget('cache', ['cache'], 12, 27.1),
  // A lock is a lock of this process, one over a store and in its line, and the keeper of its lease.
  ...['mutex', 'semaphore', 'leader'].map((name) => budget(name, [name], 2, 17)),
  ...['fenceGate', 'fencedUpdate', 'fencedGuard'].map((name) => budget(name, [name], 2, 2)),
  budget('all local primitives', primitives, 8, 32.9),
  budget('the whole main entry', [], 25, 79.1),
];

function budget(title: string, names: readonly string[], target: number, max: number): Budget {
  return { title, names, targetBytes: target * kilobyte, maxBytes: Math.round(max * kilobyte) };
}

/**
 * Processor time that `import 'holdfast'` should take, in milliseconds, and what the gate accepts on a busy machine. Nearly all of it is parsing: 410
 * KB of code. lru-cache, which `memoryStore` needs, is a tenth, and each file costs as much as 15 KB of code.
 */
export const targetImportMs = 4;
export const maxImportMs = 20;

const checkout = fileURLToPath(new URL('../../', import.meta.url));
const builtEntry = join(checkout, 'dist', 'index.js');
const sourceEntry = join(checkout, 'src', 'index.ts');

export interface Size {
  /** Minified and compressed. */
  readonly bytes: number;
  /** The modules in the bundle, largest first, with their minified sizes. */
  readonly parts: readonly { readonly path: string; readonly bytes: number }[];
}

/** Bundles these names as a user's bundler would, and measures the result. */
export async function sizeOf(names: readonly string[], entry = builtEntry): Promise<Size> {
  const { code, parts } = await bundleOf(names, entry);
  return { bytes: gzipSync(code, { level: 9 }).length, parts };
}

/** Packages stay external; each is counted where it belongs. */
export async function bundleOf(
  names: readonly string[],
  entry = builtEntry,
): Promise<{ readonly code: string; readonly parts: Size['parts'] }> {
  const { outputFiles, metafile } = await build({
    stdin: {
      contents: `export ${names.length === 0 ? '*' : `{ ${names.join(', ')} }`} from ${JSON.stringify(entry)}`,
      resolveDir: checkout,
    },
    ...{ bundle: true, minify: true, treeShaking: true, write: false, metafile: true, logLevel: 'error' },
    ...{ format: 'esm', platform: 'neutral', target: 'es2023' },
    external: ['node:*', 'tslib', 'lru-cache'],
    plugins: [esbuildLowering],
  });
  const [output] = Object.values(metafile.outputs);
  const parts = Object.entries(output!.inputs).map(([path, { bytesInOutput }]) => ({ path, bytes: bytesInOutput }));
  return { code: outputFiles[0]!.text, parts: parts.sort((one, other) => other.bytes - one.bytes) };
}

/** What these imports cost on the machine of the budget when it is otherwise idle. */
const atRestMs = { yardstick: 11.9, emptyModule: 1 };
/** Plain functions: whatever makes parsing them dearer makes parsing ours dearer. */
const yardstickCode = Array.from(
  { length: 4_000 },
  (_, index) =>
    `export function made${index}(one, other) { if (one > other) return [one, { other }]; return one.map((each) => each + other); }`,
).join('\n');

/**
 * What importing the main entry costs a thread, in milliseconds, beyond the cost of any import.
 *
 * A slow or busy machine makes every import dearer, by a factor of three at times. So each round, in fresh processes,
 * also imports a module whose cost at rest is known; the ratio of the sums is the result.
 */
export function importMs(rounds = 21): number {
  const folder = mkdtempSync(join(tmpdir(), 'holdfast-yardstick-'));
  try {
    const yardstick = join(folder, 'yardstick.mjs');
    writeFileSync(yardstick, yardstickCode);
    const sums = { entry: 0, yardstick: 0 };
    for (let round = 0; round < rounds; round++) {
      sums.entry += measure(builtEntry);
      sums.yardstick += measure(yardstick);
    }
    return (sums.entry / sums.yardstick) * atRestMs.yardstick - atRestMs.emptyModule;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function measure(path: string): number {
  // As `threadUs` of test/support, which would have to be loaded first and make the loader of modules warm.
  const script = `process.cpuUsage(); const before = process.threadCpuUsage(); await import(${JSON.stringify(pathToFileURL(path).href)});
    process.cpuUsage(); const { user, system } = process.threadCpuUsage(before); console.log((user + system) / 1000);`;
  return Number(execFileSync(process.execPath, ['--input-type=module', '--eval', script], { encoding: 'utf8' }));
}

if (import.meta.main) {
  for (const { title, names, targetBytes } of budgets) {
    const { bytes } = await sizeOf(names);
    console.log(`${title.padEnd(22)} ${(bytes / kilobyte).toFixed(2).padStart(6)} of ${targetBytes / kilobyte} KB`);
    if (bytes <= targetBytes) continue;
    // The build has few chunks; only the source shows where the bytes come from.
    const { parts } = await sizeOf(names, sourceEntry);
    console.log(
      `  minified: ${parts
        .slice(0, 6)
        .map((part) => `${part.path.replace('src/', '')} ${part.bytes}`)
        .join(', ')}`,
    );
  }
  console.log(`${'import'.padEnd(22)} ${importMs().toFixed(2).padStart(6)} of ${targetImportMs} ms`);
}
