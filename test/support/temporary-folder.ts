/**
 * Temporary folder: a private place for the files of a test, with the number of this process in its name.
 *
 * Promise: what a run leaves behind that was killed is removed by the next one; never what a living process or another user has made.
 */
import { lstatSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** Whom servers run as that refuse to run as root. Nobody of Debian has this number. */
export const nobody = 65_534;

let hasSwept = false;

/** Makes one. Who makes it removes it; a run that is killed cannot. */
export function temporaryFolder(name: string): string {
  if (!hasSwept) sweepTemporaryFolders();
  hasSwept = true;
  return mkdtempSync(join(tmpdir(), `holdfast-${name}-pid${process.pid}-`));
}

/** Removes those of processes that are gone. */
export function sweepTemporaryFolders(): void {
  for (const name of readdirSync(tmpdir())) {
    const pid = /^holdfast-.+-pid(\d+)-\w{6}$/.exec(name)?.[1];
    if (pid === undefined || isAlive(Number(pid))) continue;
    const path = join(tmpdir(), name);
    try {
      if (isOurs(path, true)) rmSync(path, { recursive: true, force: true });
    } catch {
      // Another run was quicker, or something is still mounted there.
    }
  }
}

/** Whether a folder was made by this user, or given by it to the one its servers run as, and nobody else can change it. */
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
    // Who may not be asked lives.
    return (error as NodeJS.ErrnoException).code !== 'ESRCH';
  }
}
