/** Unhandled rejections: forbidden in the tests of a file, or collected from a task that is to cause some. */
import { afterEach, beforeEach, expect } from 'vitest';

/** Fails a test during which a promise was rejected that nobody handled, because that would end the process. */
export function forbidUnhandledRejections(): void {
  const unhandled: unknown[] = [];
  const note = (reason: unknown) => void unhandled.push(reason);
  beforeEach(() => {
    unhandled.length = 0;
    process.on('unhandledRejection', note);
  });
  afterEach(async () => {
    await new Promise(setImmediate);
    process.off('unhandledRejection', note);
    expect(unhandled).toEqual([]);
  });
}

/** The rejections that nobody handles until the next turn. The test runner does not hear of them. */
export async function unhandledRejectionsOf(task: () => void): Promise<unknown[]> {
  const unhandled: unknown[] = [];
  const note = (reason: unknown) => void unhandled.push(reason);
  const others = process.rawListeners('unhandledRejection');
  process.removeAllListeners('unhandledRejection');
  process.on('unhandledRejection', note);
  try {
    task();
    await new Promise(setImmediate);
  } finally {
    process.off('unhandledRejection', note);
    for (const other of others) process.on('unhandledRejection', other as never);
  }
  return unhandled;
}
