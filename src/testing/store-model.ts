/**
 * Store model: what a key of a store may do, one verb at a time, for the history checker.
 *
 * Promise: it rejects a result only if no store that keeps the laws could have given it. It knows no time: record histories in which nothing expires.
 */
import type { Model } from './history/index.js';

/** The operations of {@link storeModel}: the verbs of a store, with the value as text. */
export type StoreOperation =
  | { readonly type: 'read' }
  | { readonly type: 'write'; readonly value: string; readonly ifVersion?: number | undefined }
  | { readonly type: 'remove'; readonly ifVersion?: number | undefined };

/** An entry as {@link storeModel} sees it. */
export interface StoreModelEntry {
  readonly value: string;
  readonly version: number;
}

/** A read results in the entry or undefined, a write in what the verb returns, a removal in whether it removed. */
export type StoreResult =
  | StoreModelEntry
  | { readonly ok: true; readonly version: number }
  | { readonly ok: false; readonly entry?: StoreModelEntry | undefined }
  | boolean
  | undefined;

/** State of {@link storeModel}. */
export interface StoreModelState {
  /** Undefined: the key holds nothing. */
  readonly value: string | undefined;
  /** Undefined while it is only known to be above `floor`: the reply of its write was lost. */
  readonly version: number | undefined;
  /** No earlier version is above it, and every later one is. */
  readonly floor: number;
}

/**
 * Models one key of a store: versions always grow, a conditional write is atomic, its refusal returns the entry in the way.
 *
 * Record a verb that failed with `applied: 'no'` as failed; one with `'unknown'`, or without a reply, as unknown.
 *
 * @throws `TypeError`, while checking, for an operation of another type.
 * @example
 * ```ts
 * import { History, checkLinearizability, storeModel } from 'holdfast/testing';
 * import type { StoreOperation, StoreResult } from 'holdfast/testing';
 *
 * const history = new History<StoreOperation, StoreResult>();
 * const create = { type: 'write', value: 'mine', ifVersion: 0 } as const;
 * history.invoke({ client: 'a', key: 'job', operation: create }).ok({ ok: true, version: 1 });
 * history.invoke({ client: 'b', key: 'job', operation: create }).ok({ ok: true, version: 2 }); // both won
 * console.log(checkLinearizability(history, storeModel()).verdict); // not-linearizable
 * ```
 */
export function storeModel(): Model<StoreModelState, StoreOperation, StoreResult> {
  return {
    name: 'store',
    initial: { value: undefined, version: undefined, floor: 0 },
    step(state, operation, observation) {
      const isKnown = observation.kind === 'ok';
      switch (operation.type) {
        case 'read':
          return isKnown ? seen(state, observation.result as StoreModelEntry | undefined) : [state];
        case 'write': {
          const { value, ifVersion } = operation;
          if (!isKnown) {
            const written = { value, version: undefined, floor: state.floor };
            return mayBe(state, ifVersion) ? [written, state] : [state];
          }
          const result = observation.result as Exclude<StoreResult, boolean | undefined | StoreModelEntry>;
          if (result.ok) {
            const { version } = result;
            return mayBe(state, ifVersion) && version > leastVersion(state, ifVersion)
              ? [{ value, version, floor: version }]
              : [];
          }
          if (ifVersion === undefined) return [];
          const { entry } = result;
          return (entry?.version ?? 0) === ifVersion ? [] : seen(state, entry);
        }
        case 'remove': {
          const { ifVersion } = operation;
          const canRemove = state.value !== undefined && mayBe(state, ifVersion);
          const floor = Math.max(state.floor, ifVersion ?? 0);
          const removed = canRemove ? [{ value: undefined, version: undefined, floor }] : [];
          if (!isKnown) return [...removed, state];
          if (observation.result === true) return removed;
          // Refused: the key held nothing, or another version.
          const isAnother = ifVersion !== undefined && state.version !== ifVersion;
          return state.value === undefined || isAnother ? [state] : [];
        }
        default:
          throw unknownOperation(operation);
      }
    },
    // An entry whose version was unknown gives new information, so only results that found nothing leave each state unchanged.
    isReadOnly: ({ type }, result) =>
      (type === 'read' && result === undefined) || (type === 'remove' && result === false),
    isTooLate({ floor }, { type }, result) {
      if (typeof result !== 'object') return false;
      if (type === 'write' && 'ok' in result && result.ok) return result.version <= floor;
      const entry = 'ok' in result ? (result as { entry?: StoreModelEntry }).entry : result;
      return entry !== undefined && entry.version < floor;
    },
    keyOf: ({ value, version, floor }) => JSON.stringify([value ?? null, version ?? null, floor]),
    describe(operation) {
      const { type } = operation;
      const value = type === 'write' ? ` "${operation.value}"` : '';
      const condition = type !== 'read' && operation.ifVersion !== undefined ? ` if ${operation.ifVersion}` : '';
      return `${type}${value}${condition}`;
    },
  };
}

/** The state, if it agrees with this entry. */
function seen(state: StoreModelState, entry: StoreModelEntry | undefined): readonly StoreModelState[] {
  const { value, version, floor } = state;
  if (entry === undefined) return value === undefined ? [state] : [];
  if (entry.value !== value) return [];
  if (version !== undefined) return entry.version === version ? [state] : [];
  return entry.version > floor ? [{ value, version: entry.version, floor: entry.version }] : [];
}

/** Whether this can be the key's version (0: none). Without a condition it always is. */
function mayBe({ value, version, floor }: StoreModelState, ifVersion: number | undefined): boolean {
  if (ifVersion === undefined) return true;
  if (value === undefined) return ifVersion === 0;
  return version === undefined ? ifVersion > floor : ifVersion === version;
}

/** The next version is greater than this; a condition that held counts too. */
function leastVersion({ floor }: StoreModelState, ifVersion: number | undefined): number {
  return Math.max(floor, ifVersion ?? 0);
}

function unknownOperation(operation: never): TypeError {
  const { type } = operation as { readonly type: unknown };
  return new TypeError(`storeModel: unknown operation "${String(type)}", its type must be "read", "write" or "remove"`);
}
