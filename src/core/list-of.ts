/**
 * ListOf: a list that lives as long as a call does.
 *
 * Where literals of one place in the code were alive during collections, as those of calls that wait for a server are, V8 makes all later ones
 * in old space, and with each all that it holds is kept until the next full collection. Neither the list of a function's rest nor an instance
 * of a class is ever made there. Node 24, by `--trace-gc`: of 53 MB that two writes to Redis had left each time, 5 MB were kept, and a
 * collection took 10 to 40 ms in place of one.
 */
export function listOf<T>(...items: T[]): T[] {
  return items;
}
