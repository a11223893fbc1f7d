/**
 * Temporary folder: a private place for the files of a test, with the pid of this process in its name.
 *
 * Promise: the leftovers of a killed run are removed by the next run. What a living process or another user has created is never removed.
 */
import { lstatSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** The user that servers run as if they refuse to run as root. No Debian account has this number. */
export const nobody = 65_534;

let hasSwept = false;

/** Creates a folder. The caller removes it; a run that is killed cannot. */
export function temporaryFolder(name: string): string {
  if (!hasSwept) sweepTemporaryFolders();
  hasSwept = true;
  return mkdtempSync(join(tmpdir(), `holdfast-${name}-pid${process.pid}-`));
}

/** Removes the folders of processes that have ended. */
export function sweepTemporaryFolders(): void {
  for (const name of readdirSync(tmpdir())) {
    const pid = /^holdfast-.+-pid(\d+)-\w{6}$/.exec(name)?.[1];
    if (pid === undefined || isAlive(Number(pid))) continue;
    const path = join(tmpdir(), name);
    try {
      if (isOurs(path, true)) rmSync(path, { recursive: true, force: true });
    } catch {
      // Another run was faster, or something is still mounted there.
    }
  }
}

/** Whether a folder was created by this user, or given to the user its servers run as, and nobody else can change it. */
export function isOurs(path: string, orNobodys = false): boolean {
  const stat = lstatSync(path);
  const us = process.getuid?.();
  const isTheirs = orNobodys && us === 0 && stat.uid === nobody;
  return stat.isDirectory() && (us === undefined || stat.uid === us || isTheirs) && (stat.mode & 0o022) === 0;
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    // A process that we may not signal is alive.
    return (error as NodeJS.ErrnoException).code !== 'ESRCH';
  }
}
