import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

/** How many bytes some work leaves on the heap for full collections, because they survive the collections of the young generation. */
export async function bytesLeftBy(work: () => unknown): Promise<number> {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as (options: { type: 'minor' }) => void;
  const heapBytes = () => {
    // What has survived two minor collections is in the old generation.
    collect({ type: 'minor' });
    collect({ type: 'minor' });
    return process.memoryUsage().heapUsed;
  };
  const before = heapBytes();
  await work();
  return heapBytes() - before;
}
