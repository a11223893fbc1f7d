/**
 * Models: what an object may do, one operation at a time; ready-made for a register and for a fenced lock.
 *
 * Promise: a ready-made model refuses a result only if no correct object could have given it in that state.
 */
import { checkOptions, optional } from '../../core/options.js';
import { readableText, structuralText } from './structural-text.js';

/** How an operation ended, as far as known: its result, or nothing. */
export type Observation<Result> = { readonly kind: 'ok'; readonly result: Result } | { readonly kind: 'unknown' };

/**
 * What an object may do, one operation at a time.
 *
 * States are never changed, always replaced. They are compared by `keyOf`, or structurally where the model has none.
 */
export interface Model<State, Operation, Result> {
  /** Name of the object's kind, for reports. */
  readonly name: string;
  /** The state of each key before the first operation. */
  readonly initial: State;
  /**
   * Every state in which the operation may leave the object: one, or several where the model leaves a choice, or none
   * when the operation cannot have had this result in this state. If the result is unknown, any result may be assumed.
   */
  step(state: State, operation: Operation, observation: Observation<Result>): readonly State[];
  /**
   * Whether an operation with this result leaves every state as it is. Optional: it makes a search much shorter, and
   * a wrong yes makes it wrong.
   */
  isReadOnly?(operation: Operation, result: Result): boolean;
  /**
   * Whether an operation can have this result neither in this state nor in any that may follow. Optional, as above: for
   * objects on which something only grows.
   */
  isTooLate?(state: State, operation: Operation, result: Result): boolean;
  /** One string per state, where a state holds more than plain objects, arrays and primitives. */
  keyOf?(state: State): string;
  /** The operation in a few words, for reports. */
  describe?(operation: Operation): string;
}

/** The operations of {@link registerModel}. */
export type RegisterOperation<Value> =
  | { readonly type: 'read' }
  | { readonly type: 'write'; readonly value: Value }
  | { readonly type: 'compare-and-set'; readonly expected: Value | undefined; readonly value: Value };

/** A read results in the value, a compare-and-set in whether it was applied; the result of a write is ignored. */
export type RegisterResult<Value> = Value | boolean | undefined;

/** Options of {@link registerModel}. */
export interface RegisterOptions<Value> {
  /** The value before the first write. Default `undefined`: nothing was ever written. */
  readonly initial?: Value | undefined;
}

/**
 * Models one value that is read, written and compared-and-set: a row, a cache entry, a key of a store.
 *
 * Values are compared structurally; they may be primitives, dates, bytes, and plain objects and arrays of those.
 *
 * @throws `OptionsError` for an unknown option; `TypeError`, while checking, for an operation of another type or values
 * without a structure.
 * @example
 * ```ts
 * import { History, checkLinearizability, registerModel } from 'holdfast/testing';
 * import type { RegisterOperation, RegisterResult } from 'holdfast/testing';
 *
 * const history = new History<RegisterOperation<string>, RegisterResult<string>>();
 * const operation = { type: 'compare-and-set', expected: undefined, value: 'mine' } as const;
 * history.invoke({ client: 'a', key: 'owner', operation }).ok(true);
 * history.invoke({ client: 'b', key: 'owner', operation }).ok(true); // both won
 * console.log(checkLinearizability(history, registerModel<string>()).verdict); // not-linearizable
 * ```
 */
export function registerModel<Value>(
  options: RegisterOptions<Value> = {},
): Model<Value | undefined, RegisterOperation<Value>, RegisterResult<Value>> {
  const { initial } = checkOptions('registerModel', options, {
    initial: optional({ allowed: 'any value', parse: (value) => value as Value }),
  });
  return {
    name: 'register',
    initial,
    step(current, operation, observation) {
      switch (operation.type) {
        case 'read':
          return observation.kind === 'unknown' || isSame(current, observation.result) ? [current] : [];
        case 'write':
          return [operation.value];
        case 'compare-and-set': {
          const isDone = isSame(current, operation.expected);
          if (observation.kind === 'ok' && observation.result !== isDone) return [];
          return [isDone ? operation.value : current];
        }
        default:
          throw unknownOperation('registerModel', operation, '"read", "write" or "compare-and-set"');
      }
    },
    isReadOnly: ({ type }, result) => type === 'read' || (type === 'compare-and-set' && result === false),
    describe(operation) {
      switch (operation.type) {
        case 'write':
          return `write ${readableText(operation.value)}`;
        case 'compare-and-set':
          return `compare ${readableText(operation.expected)} and set ${readableText(operation.value)}`;
        default:
          return operation.type;
      }
    },
  };
}

/**
 * The operations of {@link lockModel}. `acquire` takes the lock, `release` releases it by its fence, `expire` takes it
 * from its holder.
 */
export type LockOperation =
  | { readonly type: 'acquire' }
  | { readonly type: 'release'; readonly fence: number }
  | { readonly type: 'expire' };

/**
 * An acquire results in the fence, or in `undefined` when it was told that the lock is held; a release in whether the
 * lock was held with this fence; what an expire results in is ignored.
 */
export type LockResult = number | boolean | undefined;

/** State of {@link lockModel}. */
export interface LockState {
  readonly holder: 'nobody' | 'known' | 'unknown';
  /** The last fence given. If the holder is unknown, the least that it can be. */
  readonly fence: number;
}

/**
 * Models a mutual exclusion lock with fencing tokens: one owner at most, and integer fences that strictly grow, from 1.
 *
 * Record a lease that may expire as a `release` of its fence with an unknown outcome, invoked when it may have
 * expired; if the fence is not known either, as an `expire`. An acquire that gave up waiting has `failed`. An acquire
 * repeated after a lost reply is one operation, from the first request to the last reply.
 *
 * Source: Kleppmann, "How to do distributed locking" (2016), for the fences.
 *
 * @throws `TypeError`, while checking, for an operation of another type.
 * @example
 * ```ts
 * import { History, checkLinearizability, lockModel } from 'holdfast/testing';
 * import type { LockOperation, LockResult } from 'holdfast/testing';
 *
 * const history = new History<LockOperation, LockResult>();
 * history.invoke({ client: 'a', key: 'job', operation: { type: 'acquire' } }).ok(1);
 * history.invoke({ client: 'b', key: 'job', operation: { type: 'acquire' } }).ok(2); // and nobody released it
 * console.log(checkLinearizability(history, lockModel()).verdict); // not-linearizable
 * ```
 */
export function lockModel(): Model<LockState, LockOperation, LockResult> {
  return {
    name: 'fenced lock',
    initial: { holder: 'nobody', fence: 0 },
    step(state, operation, observation) {
      const { holder, fence } = state;
      switch (operation.type) {
        case 'acquire':
          if (observation.kind === 'unknown')
            return holder === 'nobody' ? [{ holder: 'unknown', fence: fence + 1 }] : [state];
          if (observation.result === undefined) return holder === 'nobody' ? [] : [state];
          return holder === 'nobody' && isFenceAfter(fence, observation.result)
            ? [{ holder: 'known', fence: observation.result }]
            : [];
        case 'release': {
          const released: LockState[] = mayHold(state, operation.fence)
            ? [{ holder: 'nobody', fence: operation.fence }]
            : [];
          // If the holder is unknown, its fence may be this one or another.
          const refused: LockState[] = holder === 'known' && fence === operation.fence ? [] : [state];
          if (observation.kind === 'unknown') return [...released, ...refused];
          return observation.result === true ? released : refused;
        }
        case 'expire':
          return [{ holder: 'nobody', fence }];
        default:
          throw unknownOperation('lockModel', operation, '"acquire", "release" or "expire"');
      }
    },
    isReadOnly: ({ type }, result) =>
      (type === 'acquire' && result === undefined) || (type === 'release' && result === false),
    // Fences only grow: one that has been passed cannot occur again.
    isTooLate({ holder, fence }, operation, result) {
      if (operation.type === 'acquire') return typeof result === 'number' && result <= fence;
      if (operation.type !== 'release' || result !== true) return false;
      return operation.fence < fence || (operation.fence === fence && holder === 'nobody');
    },
    describe(operation) {
      return operation.type === 'release' ? `release ${operation.fence}` : operation.type;
    },
  };
}

function isFenceAfter(last: number, fence: LockResult): fence is number {
  return Number.isSafeInteger(fence) && (fence as number) > last;
}

function mayHold({ holder, fence }: LockState, claimed: number): boolean {
  if (holder === 'known') return claimed === fence;
  return holder === 'unknown' && Number.isSafeInteger(claimed) && claimed >= fence;
}

function isSame(one: unknown, other: unknown): boolean {
  if (Object.is(one, other)) return true;
  const [oneText, otherText] = [structuralText(one), structuralText(other)];
  if (oneText !== undefined && otherText !== undefined) return oneText === otherText;
  throw new TypeError(
    'registerModel: values must be primitives, dates, bytes, or plain objects and arrays of those, ' +
      `got ${String(oneText === undefined ? one : other)}`,
  );
}

function unknownOperation(model: string, operation: never, known: string): TypeError {
  return new TypeError(`${model}: unknown operation ${readableText(operation)}, its type must be ${known}`);
}
