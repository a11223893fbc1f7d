/**
 * Task: an asynchronous function that belongs to a node, or to the world itself.
 *
 * Promise: a task that fails ends the simulation if nothing awaits it; otherwise the awaiting code gets the error. When its process crashes, the scenario is
 * told of its own tasks; those that the process itself began never settle, since the code that awaits them is gone, too.
 */

/** Who began a task, and so may await it. */
export type TaskOwner = 'scenario' | 'process';

/** The promise of a task. It records whether anything awaits it. */
export class Task<T = unknown> implements Promise<T> {
  readonly name: string;
  readonly owner: TaskOwner;
  isWaitedFor = false;
  readonly [Symbol.toStringTag] = 'Task';
  #resolve!: (value: T) => void;
  #reject!: (error: unknown) => void;
  readonly #promise = new Promise<T>((resolve, reject) => {
    this.#resolve = resolve;
    this.#reject = reject;
  });

  constructor(name: string, owner: TaskOwner) {
    this.name = name;
    this.owner = owner;
    // The world reports a failure that nothing awaits, with its seed. Until then it must not end the process as an unhandled rejection.
    this.#promise.catch(() => {});
  }

  /** Runs the function and settles with it. */
  async follow(run: () => T | PromiseLike<T>, settled: (failure?: { readonly error: unknown }) => void): Promise<void> {
    try {
      const value = await run();
      // Looked up only now: the process may have crashed meanwhile.
      this.#resolve(value);
      settled();
    } catch (error) {
      this.#reject(error);
      settled({ error });
    }
  }

  fail(error: unknown): void {
    this.#reject(error);
  }

  /** From now on it does not settle any more. */
  silence(): void {
    this.#resolve = () => {};
    this.#reject = () => {};
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
