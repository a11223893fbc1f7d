/** Starts three processes that all try to run one job at each tick, kills the process that is running it, and reports what became of the job. */
import { type ChildProcess, fork } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

const everyMs = 1_000;
const ticksBefore = 3;
const ticksAfter = 3;

const folder = mkdtempSync(join(tmpdir(), 'cron-once-'));
const file = join(folder, 'jobs.db');
const db = new DatabaseSync(file);
db.exec('PRAGMA journal_mode = WAL');
db.exec('PRAGMA busy_timeout = 5000');
db.exec('CREATE TABLE digests (tick INTEGER, pid INTEGER)');
db.exec('CREATE TABLE holdfast_fences (resource TEXT PRIMARY KEY, fence BIGINT NOT NULL)');

const worker = fileURLToPath(new URL('worker.ts', import.meta.url));
const workers = new Set<ChildProcess>();
let killed: number | undefined;
for (let count = 0; count < 3; count++) {
  const child = fork(worker, [file, `${everyMs}`], { execArgv: ['--no-warnings'] });
  workers.add(child);
  child.on('message', ({ tick, begins }: { tick: number; begins: number }) => {
    console.log(`tick ${tick}: ${begins} begins`);
    if (killed !== undefined || done().length < ticksBefore) return;
    killed = begins;
    console.log(`tick ${tick}: ${begins} is killed at work`);
    child.kill('SIGKILL');
    workers.delete(child);
  });
}

/** One entry for each time that a tick's job was done. */
function done(): { readonly tick: number; readonly pid: number }[] {
  return db.prepare('SELECT tick, pid FROM digests ORDER BY tick').all() as { tick: number; pid: number }[];
}

const endsAtMs = Date.now() + 60_000;
const isComplete = () => killed !== undefined && done().length >= ticksBefore + ticksAfter;
while (!isComplete() && Date.now() < endsAtMs) await sleep(50);
for (const child of workers) child.kill('SIGKILL');

const rows = done();
const twice = rows.length - new Set(rows.map(({ tick }) => tick)).size;
console.log(
  `${rows.length} jobs done by ${new Set(rows.map(({ pid }) => pid)).size} processes, ${twice} of them twice`,
);
process.exitCode = isComplete() && twice === 0 ? 0 : 1;
db.close();
await sleep(100);
rmSync(folder, { recursive: true, force: true });
