/**
 * Stampede: a hot key expires in eight processes at once, without the cache and with it. Counts how often the source is asked.
 *
 * `npm run start -w @holdfast/example-stampede` shares an SQLite file; with REDIS_PORT=6379 a Redis on this machine.
 */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const processes = 8;
const rounds = 3;
const folder = mkdtempSync(join(tmpdir(), 'holdfast-stampede-'));
const place = process.env.REDIS_PORT ?? join(folder, 'cache.db');
const child = fileURLToPath(new URL('child.ts', import.meta.url));

interface Report {
  readonly loads: number;
  readonly slowestMs: number;
}

async function play(how: 'without' | 'with'): Promise<readonly Report[]> {
  const all = Array.from({ length: processes }, () => fork(child, [how, place], { execArgv: ['--no-warnings'] }));
  for (const one of all) one.on('exit', (code) => code !== 0 && process.exit(1));
  await Promise.all(all.map((one) => once(one, 'message')));
  const reports: Report[] = [];
  for (let round = 0; round < rounds; round++) {
    const answers = all.map((one) => once(one, 'message'));
    for (const one of all) one.send('go');
    for (const [report] of await Promise.all(answers)) reports.push(report as Report);
    // Twice the time to live, so that the next round finds nothing.
    await new Promise((resolve) => setTimeout(resolve, 1_000));
  }
  const gone = all.map((one) => once(one, 'exit'));
  for (const one of all) one.disconnect();
  await Promise.all(gone);
  return reports;
}

try {
  console.log(
    `${processes} processes, 25 callers each, ${rounds} expiries of one key, on ${process.env.REDIS_PORT ? 'Redis' : 'SQLite'}`,
  );
  const loads = { without: 0, with: 0 };
  for (const how of ['without', 'with'] as const) {
    const reports = await play(how);
    loads[how] = reports.reduce((sum, report) => sum + report.loads, 0);
    const slowestMs = Math.max(...reports.map((report) => report.slowestMs));
    console.log(`${how.padEnd(8)} ${String(loads[how]).padStart(5)} loads, slowest caller ${Math.round(slowestMs)} ms`);
  }
  process.exitCode = loads.with === rounds && loads.without > rounds ? 0 : 1;
} finally {
  rmSync(folder, { recursive: true, force: true });
}
