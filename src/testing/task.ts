/**
 * Task: an asynchronous function that belongs to a node, or to the world itself.
 *
 * Promise: a task that fails while nobody waits for it ends the simulation; one that somebody waits for tells him.
 */

/** The promise of a task. It notes whether anybody waits for it. */
export class Task<T = unknown> implements Promise<T> {
  readonly name: string;
  isWaitedFor = false;
  readonly [Symbol.toStringTag] = 'Task';
  #resolve!: (value: T) => void;
  #reject!: (error: unknown) => void;
  readonly #promise = new Promise<T>((resolve, reject) => {
    this.#resolve = resolve;
    this.#reject = reject;
  });

  constructor(name: string) {
    this.name = name;
    // The world reports a failure that nobody waits for, with its seed; the platform must not end the process before.
    this.#promise.catch(() => {});
  }

  /** Runs the function and settles with it. */
  async follow(run: () => T | PromiseLike<T>, settled: (failure?: { readonly error: unknown }) => void): Promise<void> {
    try {
      this.#resolve(await run());
      settled();
    } catch (error) {
      this.#reject(error);
      settled({ error });
    }
  }

  fail(error: unknown): void {
    this.#reject(error);
  }

  then<Value = T, Failure = never>(
    onValue?: ((value: T) => Value | PromiseLike<Value>) | null,
    onError?: ((error: unknown) => Failure | PromiseLike<Failure>) | null,
  ): Promise<Value | Failure> {
    this.isWaitedFor = true;
    return this.#promise.then(onValue, onError);
  }

  catch<Failure = never>(onError?: ((error: unknown) => Failure | PromiseLike<Failure>) | null): Promise<T | Failure> {
    return this.then(undefined, onError);
  }

  finally(onEnd?: (() => void) | null): Promise<T> {
    this.isWaitedFor = true;
    return this.#promise.finally(onEnd);
  }
}
