/**
 * ListOf: creates a list that lives as long as a call.
 *
 * If literals of one code location are alive during several collections, as with calls that wait for a server, V8 allocates all later ones there in
 * old space. Everything such a literal references is then kept until the next full collection. A rest-parameter list or a class instance is never
 * allocated there. Node 24, by `--trace-gc`: of 53 MB that two writes to Redis had left each time, 5 MB were kept, and a collection took 10 to 40 ms
 * in place of one.
 */
export function listOf<T>(...items: T[]): T[] {
  return items;
}
