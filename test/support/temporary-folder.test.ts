import { execFileSync } from 'node:child_process';
import { chmodSync, chownSync, existsSync, mkdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { isOurs, nobody, sweepTemporaryFolders, temporaryFolder } from './temporary-folder.ts';

const made: string[] = [];
afterEach(() => {
  for (const path of made.splice(0)) rmSync(path, { recursive: true, force: true });
});

const deadPid = () => Number(execFileSync(process.execPath, ['-p', 'process.pid'], { encoding: 'utf8' }));

/** The name that a process with that pid would choose. */
function folderOf(pid: number): string {
  const path = join(
    tmpdir(),
    `holdfast-left-behind-pid${pid}-${Math.random().toString(36).slice(2, 8).padEnd(6, 'x')}`,
  );
  mkdirSync(path, { mode: 0o700 });
  writeFileSync(join(path, 'log'), '');
  made.push(path);
  return path;
}

describe('temporary folders', () => {
  it('of a process that is gone are removed, and of one that lives are not', () => {
    const [left, parents] = [folderOf(deadPid()), folderOf(process.ppid)];
    const own = temporaryFolder('own');
    made.push(own);
    sweepTemporaryFolders();
    expect([left, parents, own].map(existsSync)).toEqual([false, true, true]);
  });

  it('that somebody else may have put there are left alone', () => {
    const pid = deadPid();
    const open = folderOf(pid);
    chmodSync(open, 0o777);
    const linked = `${folderOf(process.pid).slice(0, -6)}linked`.replace(`pid${process.pid}`, `pid${pid}`);
    symlinkSync(open, linked);
    made.push(linked);
    sweepTemporaryFolders();
    expect([open, linked].map(existsSync)).toEqual([true, true]);
    expect([open, linked].map((path) => isOurs(path))).toEqual([false, false]);
  });

  it.skipIf(process.getuid?.() !== 0)('of another user are left alone, and those given to nobody are removed', () => {
    const [theirs, given] = [folderOf(deadPid()), folderOf(deadPid())];
    chownSync(theirs, 12_345, 12_345);
    chownSync(given, nobody, nobody);
    sweepTemporaryFolders();
    expect([theirs, given].map(existsSync)).toEqual([true, false]);
    expect(isOurs(theirs)).toBe(false);
  });
});
