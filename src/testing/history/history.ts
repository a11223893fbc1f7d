/**
 * History: what concurrent clients requested of an object and which results they received, in the order in which they saw it.
 *
 * Promise: the order comes from the recorder's own sequence, never from a clock, so no two events are simultaneous. An operation ends at most once, and one
 * that has not ended may still take effect.
 * After: Herlihy and Wing, "Linearizability: a correctness condition for concurrent objects" (1990).
 */
import { checkOptions, func, integer, withDefault } from '../../core/options.js';

/** What a client requests: the client, the object, and the operation. */
export interface Invocation<Operation> {
  /** Name of the client, for reports. One client may have several operations open at once. */
  readonly client: string;
  /** The object it is about. Objects are independent of one another: each key is judged by itself. */
  readonly key: string;
  /** The operation, in the words of the {@link Model} that will judge it. Kept as it is, so leave it unchanged. */
  readonly operation: Operation;
}

/**
 * How an operation ended: `ok` with its result; `failed`, which means that it certainly had no effect; or `unknown`
 * (a timeout, a lost reply, still pending): it took effect at any time after its invocation, takes effect later, or never.
 */
export type RecordedOutcome<Result> =
  | { readonly kind: 'ok'; readonly result: Result; readonly endedAt: number }
  | { readonly kind: 'failed' }
  | { readonly kind: 'unknown' };

/** One operation of a history. `invokedAt` and `endedAt` are places in one sequence, not times. */
export interface RecordedOperation<Operation, Result> extends Invocation<Operation> {
  readonly invokedAt: number;
  readonly outcome: RecordedOutcome<Result>;
}

/** An operation that has begun. Call exactly one of its methods, once; call none and its outcome stays unknown. */
export interface OpenOperation<Result> {
  /** It took effect, and the client received this result. */
  ok(result: Result): void;
  /** It certainly had no effect, and never will: it was refused before it was sent, or the reply says so. */
  failed(): void;
  /** The outcome is unknown: a timeout, a broken connection, a lost reply. When in doubt, use this. */
  unknown(): void;
}

/** Options of {@link History}. */
export interface HistoryOptions {
  /** Most operations kept; one more is refused. From 1, default 100 000: more take a checker minutes, not seconds. */
  readonly maxOperations?: number | undefined;
}

/** Options of {@link History.run}. */
export interface RunOptions {
  /** Says whether an error proves that the operation had no effect. By default none does, so every throw is unknown. */
  readonly notApplied?: ((error: unknown) => boolean) | undefined;
}

/**
 * Records what concurrent clients requested and received, for {@link checkLinearizability} to judge.
 *
 * Use {@link History.run} around an asynchronous call, or {@link History.invoke} if begin and end are in different places. Record
 * the invocation before the request is sent, the end after the reply has arrived: too wide an interval hides faults,
 * too narrow a one invents them. Iterating gives the operations so far; those still open come out as unknown.
 *
 * @throws `OptionsError` for an unknown option or a bad value.
 * @example
 * ```ts
 * import { History, checkLinearizability, registerModel } from 'holdfast/testing';
 * import type { RegisterOperation, RegisterResult } from 'holdfast/testing';
 *
 * const history = new History<RegisterOperation<number>, RegisterResult<number>>();
 * const write = history.invoke({ client: 'a', key: 'x', operation: { type: 'write', value: 1 } });
 * const read = history.invoke({ client: 'b', key: 'x', operation: { type: 'read' } });
 * read.ok(1); // seen before the write was acknowledged: they overlap, so that is fine
 * write.unknown(); // the acknowledgement was lost
 * console.log(String(checkLinearizability(history, registerModel<number>())));
 * ```
 */
export class History<Operation, Result> implements Iterable<RecordedOperation<Operation, Result>> {
  readonly #maxOperations: number;
  readonly #entries: Entry<Operation, Result>[] = [];
  #sequence = 0;

  constructor(options: HistoryOptions = {}) {
    const { maxOperations } = checkOptions('History', options, {
      maxOperations: withDefault(integer({ min: 1 }), 100_000),
    });
    this.#maxOperations = maxOperations;
  }

  /** Number of operations begun. */
  get size(): number {
    return this.#entries.length;
  }

  /**
   * Begins an operation; the answer ends it.
   *
   * @throws `TypeError` when client or key is not a string, or the operation is missing.
   * @throws `RangeError` when `maxOperations` are recorded already.
   */
  invoke(invocation: Invocation<Operation>): OpenOperation<Result> {
    const { client, key, operation } = checkInvocation('History.invoke', invocation);
    if (this.#entries.length >= this.#maxOperations) {
      throw new RangeError(
        `History.invoke: ${this.#maxOperations} operations are recorded already (option "maxOperations"); ` +
          'check shorter histories, one after the other',
      );
    }
    const entry: Entry<Operation, Result> = { client, key, operation, invokedAt: ++this.#sequence, outcome: undefined };
    this.#entries.push(entry);
    return {
      ok: (result) => this.#end(entry, { kind: 'ok', result, endedAt: this.#sequence + 1 }),
      failed: () => this.#end(entry, { kind: 'failed' }),
      unknown: () => this.#end(entry, { kind: 'unknown' }),
    };
  }

  /**
   * Runs an operation and records how it ends: a value is `ok`, an error is `unknown`, or `failed` if `notApplied` says so.
   * Gives back the value, or throws the error, as they are.
   */
  async run<Value extends Result>(
    invocation: Invocation<Operation>,
    fn: () => Value | PromiseLike<Value>,
    options: RunOptions = {},
  ): Promise<Value> {
    const { notApplied } = checkOptions('History.run', options, {
      notApplied: withDefault(func<(error: unknown) => boolean>(), () => false),
    });
    const open = this.invoke(invocation);
    let value: Value;
    try {
      value = await fn();
    } catch (error) {
      if (notApplied(error)) open.failed();
      else open.unknown();
      throw error;
    }
    open.ok(value);
    return value;
  }

  *[Symbol.iterator](): Iterator<RecordedOperation<Operation, Result>> {
    for (const entry of this.#entries) yield { ...entry, outcome: entry.outcome ?? { kind: 'unknown' } };
  }

  #end(entry: Entry<Operation, Result>, outcome: RecordedOutcome<Result>): void {
    if (entry.outcome !== undefined) {
      throw new Error(
        `History: operation ${entry.invokedAt} of client "${entry.client}" on key "${entry.key}" cannot end as ` +
          `"${outcome.kind}", it has ended as "${entry.outcome.kind}" already; drop an answer that comes after a timeout`,
      );
    }
    this.#sequence++;
    entry.outcome = outcome;
  }
}

interface Entry<Operation, Result> extends Invocation<Operation> {
  readonly invokedAt: number;
  outcome: RecordedOutcome<Result> | undefined;
}

/** Returns the invocation if it is valid, or throws with the caller's name in front. */
export function checkInvocation<Operation>(caller: string, invocation: Invocation<Operation>): Invocation<Operation> {
  if (typeof invocation !== 'object' || invocation === null) {
    throw new TypeError(`${caller}: expected { client, key, operation }, got ${describeKind(invocation)}`);
  }
  for (const field of ['client', 'key'] as const) {
    if (typeof invocation[field] === 'string') continue;
    throw new TypeError(`${caller}: "${field}" must be a string, got ${describeKind(invocation[field])}`);
  }
  if (invocation.operation === undefined) throw new TypeError(`${caller}: "operation" is missing`);
  return invocation;
}

/** The kind of a wrong argument, in a word. */
function describeKind(value: unknown): string {
  return value === null ? 'null' : typeof value;
}
