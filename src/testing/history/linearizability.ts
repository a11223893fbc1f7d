/**
 * Linearizability: whether a history of concurrent clients could have come from an object that does one operation at a time.
 *
 * Promise: `linearizable` comes with an order that proves it, `not-linearizable` is certain, and a history that cannot be decided within the limit is
 * `undecided`.
 * After: Herlihy and Wing (1990) for the condition; Horn and Kroening, "Faster linearizability checking via
 * P-compositionality" (2015) for judging each key by itself; the search is in `search.ts`.
 */
import { checkArgument, checkOptions, type Field, integer, withDefault } from '../../core/options.js';
import { checkInvocation, type RecordedOperation } from './history.js';
import type { Model } from './models.js';
import { search, Visited } from './search.js';
import { readableText } from './structural-text.js';

/** Options of {@link checkLinearizability}. */
export interface LinearizabilityOptions {
  /**
   * Most calls of `model.step` for one key, from 1. Default 2 000 000: some ten seconds. A key that needs
   * more is undecided.
   */
  readonly maxSteps?: number | undefined;
  /**
   * Most configurations remembered, from 1 to 10 000 000. Default 200 000: some tens of megabytes. Fewer cost time, never the right
   * answer.
   */
  readonly maxRemembered?: number | undefined;
}

/** The answer of {@link checkLinearizability}. `String(verdict)` says it in words. */
export type LinearizabilityVerdict<State, Operation, Result> =
  | Linearizable<Operation, Result>
  | NotLinearizable<State, Operation, Result>
  | Undecided;

/** Every key has an order of its operations that explains what all clients saw. */
export interface Linearizable<Operation, Result> {
  readonly verdict: 'linearizable';
  /** Per key such an order. It holds every `ok` operation, no `failed` one, and those `unknown` ones that took effect. */
  readonly orders: ReadonlyMap<string, readonly RecordedOperation<Operation, Result>[]>;
  /** Calls of `model.step`, over all keys. */
  readonly steps: number;
  toString(): string;
}

/** One key has no such order, whatever the unknown operations did. */
export interface NotLinearizable<State, Operation, Result> {
  readonly verdict: 'not-linearizable';
  readonly key: string;
  /** The longest order that explains something: no other one gets past the end of a later operation. */
  readonly prefix: readonly RecordedOperation<Operation, Result>[];
  /** The states that `prefix` and other orders that get as far leave: that of `prefix` first, at most 20. */
  readonly states: readonly State[];
  /** The operations that were open then and fit nowhere after `prefix`. The first one is the one to look at. */
  readonly stuck: readonly RecordedOperation<Operation, Result>[];
  readonly steps: number;
  toString(): string;
}

/** No key was found at fault, and some need more steps than `maxSteps` allows. This is no promise of anything. */
export interface Undecided {
  readonly verdict: 'undecided';
  readonly keys: readonly string[];
  readonly maxSteps: number;
  readonly steps: number;
  toString(): string;
}

/**
 * Decides whether what concurrent clients saw could have come from an object that does one operation at a time.
 *
 * Use it on a {@link History}, or on any iterable of recorded operations, such as a log read back from a file. Every
 * key is judged by itself. The question is NP-complete: what costs is many operations open at once and many different
 * operations with unknown outcomes, not the length of the history.
 *
 * Sources: Wing and Gong (1993); Horn and Kroening, "Faster linearizability checking via P-compositionality" (2015);
 * Lowe, "Testing for linearizability" (2017).
 *
 * @param history - The operations. Order is by `invokedAt` and `endedAt`, places in one sequence, no two of them equal.
 * @param model - What the object may do, such as {@link registerModel} or {@link lockModel}.
 * @throws `OptionsError` for a malformed model or option, `TypeError` for a malformed record and for states that cannot
 * be compared.
 * @example
 * ```ts
 * import { History, checkLinearizability, registerModel } from 'holdfast/testing';
 * import type { RegisterOperation, RegisterResult } from 'holdfast/testing';
 *
 * const history = new History<RegisterOperation<number>, RegisterResult<number>>();
 * const write = history.invoke({ client: 'a', key: 'x', operation: { type: 'write', value: 1 } });
 * write.ok(undefined);
 * const read = history.invoke({ client: 'b', key: 'x', operation: { type: 'read' } });
 * read.ok(0); // stale: the write had been acknowledged
 *
 * const verdict = checkLinearizability(history, registerModel({ initial: 0 }));
 * if (verdict.verdict === 'not-linearizable') console.log(String(verdict));
 * ```
 */
export function checkLinearizability<State, Operation, Result>(
  history: Iterable<RecordedOperation<Operation, Result>>,
  model: Model<State, Operation, Result>,
  options: LinearizabilityOptions = {},
): LinearizabilityVerdict<State, Operation, Result> {
  checkArgument('checkLinearizability', 'model', model, modelField);
  const { maxSteps, maxRemembered } = checkOptions('checkLinearizability', options, {
    maxSteps: withDefault(integer({ min: 1 }), 2_000_000),
    maxRemembered: withDefault(integer({ min: 1, max: 10_000_000 }), 200_000),
  });
  const visited = new Visited(maxRemembered);
  const orders = new Map<string, readonly RecordedOperation<Operation, Result>[]>();
  const undecidedKeys: string[] = [];
  let steps = 0;
  for (const [key, operations] of byKey(history)) {
    const outcome = search(operations, model, visited, maxSteps);
    steps += outcome.steps;
    if (outcome.kind === 'none') {
      const { prefix, states, stuck } = outcome;
      const found = { verdict: 'not-linearizable', key, prefix, states, stuck, steps } as const;
      return { ...found, toString: () => notLinearizableText(found, operations, model) };
    }
    if (outcome.kind === 'order') orders.set(key, outcome.order);
    else undecidedKeys.push(key);
  }
  if (undecidedKeys.length > 0) {
    const found = { verdict: 'undecided', keys: undecidedKeys, maxSteps, steps } as const;
    return { ...found, toString: () => undecidedText(found) };
  }
  return {
    verdict: 'linearizable',
    orders,
    steps,
    toString: () => `Linearizable: ${orders.size === 1 ? 'one key' : `${orders.size} keys`}, ${steps} steps.`,
  };
}

const modelField: Field<object> = {
  allowed: 'a model with a name, an initial state and a function step, such as registerModel()',
  parse(value) {
    if (typeof value !== 'object' || value === null || !('initial' in value)) return undefined;
    const { name, step } = value as Partial<Model<unknown, unknown, unknown>>;
    return typeof name === 'string' && typeof step === 'function' ? value : undefined;
  },
};

/** The checked operations, by key. */
function byKey<Operation, Result>(
  history: Iterable<RecordedOperation<Operation, Result>>,
): ReadonlyMap<string, readonly RecordedOperation<Operation, Result>[]> {
  if (typeof (history as Iterable<unknown> | undefined)?.[Symbol.iterator] !== 'function') {
    throw new TypeError(
      `checkLinearizability: the history must be iterable, such as a History or an array of operations`,
    );
  }
  const operationsByKey = new Map<string, RecordedOperation<Operation, Result>[]>();
  const takenPlaces = new Set<number>();
  for (const record of history) {
    checkRecord(record, takenPlaces);
    const operations = operationsByKey.get(record.key);
    if (operations === undefined) operationsByKey.set(record.key, [record]);
    else operations.push(record);
  }
  return operationsByKey;
}

function checkRecord(record: RecordedOperation<unknown, unknown>, takenPlaces: Set<number>): void {
  const { client, key } = checkInvocation('checkLinearizability', record);
  const { invokedAt, outcome } = record;
  const where = `checkLinearizability: operation ${invokedAt} of client "${client}" on key "${key}"`;
  takePlace('invokedAt', invokedAt);
  switch (outcome?.kind) {
    case 'failed':
    case 'unknown':
      return;
    case 'ok':
      takePlace('endedAt', outcome.endedAt);
      if (outcome.endedAt < invokedAt) throw new TypeError(`${where} ends at ${outcome.endedAt}, before it begins`);
      return;
    default:
      throw new TypeError(`${where} has no outcome of kind "ok", "failed" or "unknown"`);
  }

  function takePlace(field: string, place: number): void {
    if (!Number.isSafeInteger(place)) {
      throw new TypeError(`${where}: "${field}" must be an integer, a place in the sequence, got ${String(place)}`);
    }
    if (takenPlaces.has(place)) throw new TypeError(`${where}: place ${place} in the sequence is taken ("${field}")`);
    takenPlaces.add(place);
  }
}

function notLinearizableText<State, Operation, Result>(
  { key, prefix, states, stuck, steps }: Omit<NotLinearizable<State, Operation, Result>, 'toString'>,
  operations: readonly RecordedOperation<Operation, Result>[],
  model: Model<State, Operation, Result>,
): string {
  const [first, ...others] = stuck.map(line);
  const hidden = Math.max(0, prefix.length - mostLinesShown);
  const notPlaced = operations.filter((one) => one.outcome.kind === 'unknown' && !prefix.includes(one)).map(line);
  return [
    `Not linearizable: key "${key}" is no ${model.name} (${operations.length} operations, ${steps} steps).`,
    'No order of the operations gets past this one:',
    first,
    section('The longest order without it:', [
      ...(hidden > 0 ? [`  ... ${hidden} earlier ones`] : []),
      ...prefix.slice(hidden).map(line),
    ]),
    `This order leaves the state: ${readableText(states[0])}`,
    section(
      'Other orders that get as far leave:',
      states.length > 1 ? [`  ${states.slice(1).map(readableText).join('  ')}`] : [],
    ),
    section('Open at the same time, and not placed either:', others),
    section('Of unknown outcome, and of no help:', short(notPlaced)),
    '(Numbers are places in the sequence of the recorder: [invoked .. ended].)',
  ]
    .filter((part) => part !== '')
    .join('\n');

  function line(record: RecordedOperation<Operation, Result>): string {
    const { client, operation, invokedAt, outcome } = record;
    const what = model.describe?.(operation) ?? readableText(operation);
    const end = outcome.kind === 'ok' ? outcome.endedAt : '';
    const result = outcome.kind === 'ok' ? readableText(outcome.result) : outcome.kind;
    return `  [${invokedAt} .. ${end}] client "${client}": ${what} -> ${result}`;
  }
}

/** Lines of a list that a report shows; the rest are counted. */
const mostLinesShown = 20;

function section(title: string, lines: readonly string[]): string {
  return lines.length === 0 ? '' : [title, ...lines].join('\n');
}

function short(lines: readonly string[]): readonly string[] {
  if (lines.length <= mostLinesShown) return lines;
  return [...lines.slice(0, mostLinesShown), `  ... ${lines.length - mostLinesShown} more`];
}

function undecidedText({ keys, maxSteps }: Omit<Undecided, 'toString'>): string {
  const named = keys.slice(0, mostLinesShown).map((key) => `"${key}"`);
  const more = keys.length > named.length ? ` and ${keys.length - named.length} more` : '';
  return (
    `Undecided: ${maxSteps} steps per key (option "maxSteps") were not enough for key ${named.join(', ')}${more}. ` +
    'Fewer operations open at once, fewer unknown outcomes or a shorter history on one key make it cheaper.'
  );
}
