/**
 * Memoize: a function that remembers its results, on the cache's engine.
 *
 * Promise: the function is called as the cache calls a loader: once for all concurrent callers with the same arguments.
 */
import { checkArgument, func, show } from '../../core/options.js';
import { type Cache, type CacheOptions, cache } from './cache.js';

/** Options of {@link memoize}: those of {@link cache}, without the loader. */
export interface MemoizeOptions<Args extends readonly unknown[], Result>
  extends Omit<CacheOptions<Result, Args>, 'load' | 'loadMany' | 'key'> {
  /** Turns arguments into the text that identifies them. Default: their JSON, for strings, numbers, booleans and null. */
  readonly key?: ((args: Args) => string) | undefined;
}

/** A function that remembers its results. */
export interface Memoized<Args extends readonly unknown[], Result> {
  (...args: Args): Promise<Result>;
  /** The cache of the results, keyed by the list of arguments: to delete one, or to close it. */
  readonly cache: Cache<Result, Args>;
}

/**
 * Makes a function remember its results, by its arguments.
 *
 * For functions whose result depends on their arguments alone; `this` is not passed on. Arguments that are objects need
 * the option `key`. With a store give each function its own `name`.
 *
 * @throws {@link OptionsError} `ERR_OPTIONS` at once, for an invalid option.
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
