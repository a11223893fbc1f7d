/** A disk of a few megabytes in memory, for a server to fill. */
import { execFileSync } from 'node:child_process';
import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { temporaryFolder } from '../temporary-folder.ts';

/** Few users may mount, and not even root everywhere. Without permission, the tests of a full disk are skipped and say so. */
export const canMount = tryMount();
if (!canMount) console.log('Skipped: a full disk needs somebody who may mount a small one.');

function tryMount(): boolean {
  if (process.platform !== 'linux' || process.getuid?.() !== 0) return false;
  const parent = temporaryFolder('mount');
  try {
    smallDisk(join(parent, 'disk'), 0, 1).dispose();
    return true;
  } catch {
    return false;
  } finally {
    rmSync(parent, { recursive: true, force: true });
  }
}

export interface SmallDisk {
  readonly folder: string;
  resize(megabytes: number): void;
  dispose(): void;
}

/** Mounts a disk on a new folder that belongs to `owner`. */
export function smallDisk(folder: string, owner: number, megabytes: number): SmallDisk {
  mkdirSync(folder);
  const size = (count: number) => `size=${count}m`;
  const options = `${size(megabytes)},uid=${owner},gid=${owner},mode=700`;
  execFileSync('mount', ['-t', 'tmpfs', '-o', options, 'holdfast-small-disk', folder], { stdio: 'pipe' });
  return {
    folder,
    resize: (count) => void execFileSync('mount', ['-o', `remount,${size(count)}`, folder]),
    // A server may still be using it.
    dispose: () => void execFileSync('umount', ['-l', folder]),
  };
}
