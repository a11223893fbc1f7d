/** A disk of a few megabytes, in memory, for a server to fill. */
import { execFileSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';

/** Only root may mount; where the tests are run by somebody else, those of a full disk are skipped and say so. */
export const canMount = process.platform === 'linux' && process.getuid?.() === 0;
if (!canMount) console.log('Skipped: a full disk needs root, which may mount a small one.');

export interface SmallDisk {
  readonly folder: string;
  resize(megabytes: number): void;
  dispose(): void;
}

/** Mounts one on a folder that is made for it; it belongs to `owner`. */
export function smallDisk(folder: string, owner: number, megabytes: number): SmallDisk {
  mkdirSync(folder);
  const size = (count: number) => `size=${count}m`;
  const options = `${size(megabytes)},uid=${owner},gid=${owner},mode=700`;
  execFileSync('mount', ['-t', 'tmpfs', '-o', options, 'holdfast-small-disk', folder]);
  return {
    folder,
    resize: (count) => void execFileSync('mount', ['-o', `remount,${size(count)}`, folder]),
    // A server may still be at it.
    dispose: () => void execFileSync('umount', ['-l', folder]),
  };
}
