/** A fence for values in Redis: the check and the write in one script. */

/**
 * A script that sets a string unless a greater fence has set it.
 *
 * KEYS: the value, its fence (in a cluster both need one hash tag). ARGV: the fence, the value. Returns 0 when it was set, else the greater fence,
 * for a `StaleFenceError`.
 *
 * @example
 * ```ts no-run
 * import { Redis } from 'ioredis';
 * import { StaleFenceError } from 'holdfast';
 * import { fencedSetScript } from 'holdfast/redis';
 *
 * const client = new Redis();
 * const [resource, fence] = ['report:4', 33];
 * const newestFence = await client.eval(fencedSetScript, 2, `{${resource}}`, `{${resource}}:fence`, fence, 'ready');
 * if (newestFence !== 0) throw new StaleFenceError({ resource, fence, newestFence: Number(newestFence) });
 * ```
 */
export const fencedSetScript = `
local newest = tonumber(redis.call('GET', KEYS[2]) or 0)
if tonumber(ARGV[1]) < newest then return newest end
redis.call('SET', KEYS[2], ARGV[1])
redis.call('SET', KEYS[1], ARGV[2])
return 0`;
