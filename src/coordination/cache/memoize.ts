/**
 * Memoize: a function that remembers its answers, on the cache's engine.
 *
 * Promise: the function is called as the cache calls a loader: once for all who ask for the same arguments at a time.
 */
import { checkArgument, func, show } from '../../core/options.js';
import { type Cache, type CacheOptions, cache } from './cache.js';

/** Options of {@link memoize}: those of {@link cache}, without what the function itself is. */
export interface MemoizeOptions<Args extends readonly unknown[], Result>
  extends Omit<CacheOptions<Result, Args>, 'load' | 'loadMany' | 'key'> {
  /** The text by which arguments are known. Default: their JSON, for strings, numbers, booleans and null. */
  readonly key?: (args: Args) => string;
}

/** A function that remembers its answers. */
export interface Memoized<Args extends readonly unknown[], Result> {
  (...args: Args): Promise<Result>;
  /** Where the answers are, by the arguments as a list: to delete one, or to close it. */
  readonly cache: Cache<Result, Args>;
}

/**
 * Makes a function remember its answers, by its arguments.
 *
 * For functions whose answer depends on their arguments alone; `this` is not passed on. Arguments that are objects need
 * the option `key`. With a store give each function a `name` of its own.
 *
 * @throws {@link OptionsError} `ERR_OPTIONS` at once, for an option that is wrong.
 * @example
 * ```ts
 * import { memoize } from 'holdfast';
 *
 * let calls = 0;
 * const area = memoize(async (width: number, height: number) => (calls++, width * height), { ttl: '1m' });
 * console.log(await area(3, 4), await area(3, 4), calls); // 12 12 1
 * await area.cache.delete([3, 4]);
 * await area.cache.close();
 * ```
 */
export function memoize<Args extends readonly unknown[], Result>(
  fn: (...args: Args) => Result | PromiseLike<Result>,
  options: MemoizeOptions<Args, Result>,
): Memoized<Args, Result> {
  const call = checkArgument('memoize', 'fn', fn, func<(...args: Args) => Result | PromiseLike<Result>>());
  const { key = keyOf, ...others } = options ?? {};
  const answers = cache<Result, Args>({ name: 'memoize', ...others, key, load: (args) => call(...args) });
  const memoized = (...args: Args) => answers.get(args);
  return Object.assign(memoized, { cache: answers });
}

function keyOf(args: readonly unknown[]): string {
  for (const arg of args) {
    const isPlain = arg === null || typeof arg === 'string' || typeof arg === 'boolean' || Number.isFinite(arg);
    if (!isPlain) throw new TypeError(`memoize: an argument is ${show(arg)}; give the option "key", (args) => string`);
  }
  return JSON.stringify(args);
}
