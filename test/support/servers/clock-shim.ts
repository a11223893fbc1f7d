/** A wall clock that can jump, for a single server: a preloaded library adds the offset in a file to every clock read. */
import { execFileSync } from 'node:child_process';
import { closeSync, openSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { temporaryFolder } from '../temporary-folder.ts';
import type { Program } from './provide.ts';

// Makes the system call directly: looking up the function that is overridden needs memory, and its allocator reads the time.
const source = `
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long long jump_us(void) {
  static volatile long long *jump;
  if (jump == 0) {
    int file = open(getenv("HOLDFAST_CLOCK_JUMP"), O_RDONLY);
    if (file < 0) return 0;
    jump = mmap(0, sizeof *jump, PROT_READ, MAP_SHARED, file, 0);
    close(file);
  }
  return *jump;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  int result = syscall(SYS_clock_gettime, clock, now);
  if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
    long long ns = now->tv_sec * 1000000000LL + now->tv_nsec + jump_us() * 1000;
    now->tv_sec = ns / 1000000000;
    now->tv_nsec = ns % 1000000000;
  }
  return result;
}

int gettimeofday(struct timeval *now, void *zone) {
  struct timespec exact;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &exact);
  now->tv_sec = exact.tv_sec;
  now->tv_usec = exact.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *now) {
  struct timespec exact;
  clock_gettime(CLOCK_REALTIME, &exact);
  if (now != 0) *now = exact.tv_sec;
  return exact.tv_sec;
}
`;

const compiler = 'cc';

export interface ClockShim {
  /** The program that runs with this clock. */
  readonly program: Program;
  /** Sets how far this clock is ahead of the machine's, from now on. */
  set(aheadMs: number): void;
  dispose(): void;
}

/** Undefined without a C compiler; in CI that is an error. */
export function clockShim(program: Program): ClockShim | undefined {
  const folder = temporaryFolder('clock');
  const [text, library, jump] = ['shim.c', 'shim.so', 'jump'].map((name) => join(folder, name)) as [
    ...[string, string, string],
  ];
  writeFileSync(text, source);
  writeFileSync(jump, new Uint8Array(8));
  try {
    execFileSync(compiler, ['-O2', '-shared', '-fPIC', '-o', library, text], { stdio: 'pipe' });
  } catch (error) {
    rmSync(folder, { recursive: true, force: true });
    if (process.env.CI) throw error;
    console.log('Skipped: a server clock that jumps needs a C compiler.');
    return undefined;
  }
  const file = openSync(jump, 'r+');
  return {
    program: { ...program, env: { ...program.env, LD_PRELOAD: library, HOLDFAST_CLOCK_JUMP: jump } },
    set(aheadMs) {
      writeSync(file, new BigInt64Array([BigInt(aheadMs) * 1000n]), 0, 8, 0);
    },
    dispose() {
      closeSync(file);
      rmSync(folder, { recursive: true, force: true });
    },
  };
}
