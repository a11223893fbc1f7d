/**
 * Search: looks for an order of one object's operations that its model accepts and that agrees with what all clients saw.
 *
 * Promise: it finds an order if there is one, proves that there is none, or reports that it has used up its steps. Memory grows with the operations times
 * those open at once, plus what is remembered; forgetting only costs time.
 * After: Wing and Gong, "Testing and verifying concurrent objects" (1993); Lowe, "Testing for linearizability" (2017): a configuration (operations placed,
 * state) is visited once. Ours: equal operations with unknown outcomes are counted instead of told apart; a configuration that spends more of them than an
 * earlier one is not visited; a model's hints (`isReadOnly`, `isTooLate`) save the orders that cannot lead further.
 */
import { LRUCache } from 'lru-cache';
import type { RecordedOperation } from './history.js';
import type { Model, Observation } from './models.js';
import { readableText, structuralText } from './structural-text.js';

/** The result of a search. */
export type SearchOutcome<State, Operation, Result> = { readonly steps: number } & (
  | { readonly kind: 'order'; readonly order: readonly RecordedOperation<Operation, Result>[] }
  | ({ readonly kind: 'none' } & DeadEnd<State, Operation, Result>)
  | { readonly kind: 'out-of-steps' }
);

/** The furthest that any order gets. */
export interface DeadEnd<State, Operation, Result> {
  readonly prefix: readonly RecordedOperation<Operation, Result>[];
  readonly states: readonly State[];
  readonly stuck: readonly RecordedOperation<Operation, Result>[];
}

/** Searches for an order of the operations of one key. `visited` may be shared by the keys of one check. */
export function search<State, Operation, Result>(
  operations: readonly RecordedOperation<Operation, Result>[],
  model: Model<State, Operation, Result>,
  visited: Visited,
  maxSteps: number,
): SearchOutcome<State, Operation, Result> {
  const searcher = new Searcher(operations, model, maxSteps);
  const start = searcher.start();
  const path = [{ at: start, moves: searcher.moves(start) }];
  const frontier = new Frontier(searcher, start);
  visited.startKey();

  for (;;) {
    const { at, moves } = path[path.length - 1]!;
    if (at.firstOpenIndex === searcher.known.length) {
      return { kind: 'order', order: orderOf(at), steps: searcher.steps };
    }
    const move = moves.next();
    if (searcher.isExhausted) return { kind: 'out-of-steps', steps: searcher.steps };
    if (move.done === true) {
      path.pop();
      if (path.length === 0) return { kind: 'none', ...frontier.deadEnd(), steps: searcher.steps };
    } else if (visited.add(move.value)) {
      path.push({ at: move.value, moves: searcher.moves(move.value) });
      frontier.reach(move.value);
    }
  }
}

/** An operation whose result is known. It has to be placed. */
interface Known<Operation, Result> {
  readonly record: RecordedOperation<Operation, Result>;
  readonly observation: Observation<Result>;
  readonly endedAt: number;
  readonly isReadOnly: boolean;
}

/** Equal operations with unknown outcomes. It makes no difference which of them is placed, so it is always the oldest. */
interface UnknownKind<Operation, Result> {
  readonly records: RecordedOperation<Operation, Result>[];
}

/** The operations placed so far, and the state that their order leaves. Immutable. */
interface Configuration<State, Operation, Result> {
  /** Index of the first known operation that is not placed; known operations are in the order of their ends. */
  readonly firstOpenIndex: number;
  /** The known operations after that one that are placed, ascending. */
  readonly placedAhead: readonly number[];
  /** How many operations of each unknown kind are placed. */
  readonly spent: readonly number[];
  readonly state: InternedState<State>;
  readonly placed: RecordedOperation<Operation, Result> | undefined;
  readonly before: Configuration<State, Operation, Result> | undefined;
}

/** A state of the object; while it is remembered, there is one such object per text. */
interface InternedState<State> {
  readonly value: State;
  readonly text: string;
  /** For each unknown kind, the states it leads to, as far as computed. */
  readonly afterUnknown: (readonly InternedState<State>[])[];
}

class Searcher<State, Operation, Result> {
  /** In the order of their ends. */
  readonly known: readonly Known<Operation, Result>[];
  /** In the order of the oldest operation of each. */
  readonly #unknowns: readonly UnknownKind<Operation, Result>[];
  /** For each known operation, the operations that began before its end and ended no earlier, itself included. */
  readonly #openUntil: readonly (readonly number[])[];
  readonly #model: Model<State, Operation, Result>;
  readonly #maxSteps: number;
  readonly #states = boundedMap<InternedState<State>>(mostStatesRemembered);
  steps = 0;
  isExhausted = false;

  constructor(
    operations: readonly RecordedOperation<Operation, Result>[],
    model: Model<State, Operation, Result>,
    maxSteps: number,
  ) {
    this.known = knownByEnd(operations, model);
    this.#unknowns = unknownKinds(operations);
    this.#openUntil = openUntilEnd(this.known);
    this.#model = model;
    this.#maxSteps = maxSteps;
  }

  start(): Configuration<State, Operation, Result> {
    const state = this.#stateOf(this.#model.initial);
    const spent = this.#unknowns.map(() => 0);
    return { firstOpenIndex: 0, placedAhead: [], spent, state, placed: undefined, before: undefined };
  }

  /** Every configuration worth trying that has one operation more. */
  *moves(at: Configuration<State, Operation, Result>): Generator<Configuration<State, Operation, Result>, void> {
    if (this.tooLate(at).length > 0) return;
    const open = this.open(at);
    // A read that fits now may come now: it changes nothing, so no other order can achieve more.
    const read = open.find((index) => this.#isFittingRead(at, index));
    if (read !== undefined) {
      yield { ...at, ...this.#placeKnown(at, read) };
      return;
    }
    for (const index of open) {
      const { record, observation, isReadOnly } = this.known[index]!;
      if (this.isExhausted) return;
      if (isReadOnly) continue;
      for (const state of this.#step(at.state, record.operation, observation)) {
        yield { ...at, ...this.#placeKnown(at, index), state };
      }
    }
    // The youngest kind first: the effect of a lost reply usually shows soon.
    const endsAt = this.known[at.firstOpenIndex]!.endedAt;
    for (let kind = this.#unknowns.length - 1; kind >= 0; kind--) {
      const record = this.#unknowns[kind]!.records[at.spent[kind]!];
      if (record === undefined || record.invokedAt > endsAt) continue;
      if (this.isExhausted) return;
      for (const state of this.#afterUnknown(at.state, kind)) {
        if (state === at.state || this.#isReachedAlone(at, kind, state)) continue;
        yield { ...at, state, spent: oneMore(at.spent, kind), placed: record, before: at };
      }
    }
  }

  /** Known operations that may come next: not placed yet, and begun before the first open one ended. */
  open(at: Configuration<State, Operation, Result>): readonly number[] {
    const open = this.#openUntil[at.firstOpenIndex]!;
    return at.placedAhead.length === 0 ? open : open.filter((index) => !at.placedAhead.includes(index));
  }

  /** The open operations that can no longer be placed, so this configuration cannot lead to an order. */
  tooLate(at: Configuration<State, Operation, Result>): readonly number[] {
    if (this.#model.isTooLate === undefined || at.firstOpenIndex === this.known.length) return [];
    return this.open(at).filter((index) => {
      const { operation, outcome } = this.known[index]!.record;
      return outcome.kind === 'ok' && this.#model.isTooLate?.(at.state.value, operation, outcome.result);
    });
  }

  #isFittingRead({ state }: Configuration<State, Operation, Result>, index: number): boolean {
    const { record, observation, isReadOnly } = this.known[index]!;
    if (!isReadOnly) return false;
    const [next] = this.#step(state, record.operation, observation);
    if (next === undefined || next.text === state.text) return next !== undefined;
    throw new TypeError(
      `checkLinearizability: model "${this.#model.name}" calls operation ${readableText(record.operation)} read-only, ` +
        `but step() turns state ${state.text} into ${next.text}`,
    );
  }

  #placeKnown(at: Configuration<State, Operation, Result>, index: number) {
    return { ...placedWith(at, index), placed: this.known[index]!.record, before: at };
  }

  /**
   * For two unknown operations in a row of which the second alone leads to the same state: the order without the first can do everything that this one can,
   * and is tried too.
   */
  #isReachedAlone(at: Configuration<State, Operation, Result>, kind: number, state: InternedState<State>): boolean {
    if (at.before === undefined || at.placed?.outcome.kind !== 'unknown') return false;
    return this.#afterUnknown(at.before.state, kind).includes(state);
  }

  #afterUnknown(state: InternedState<State>, kind: number): readonly InternedState<State>[] {
    state.afterUnknown[kind] ??= this.#step(state, this.#unknowns[kind]!.records[0]!.operation, {
      kind: 'unknown',
    });
    return state.afterUnknown[kind];
  }

  #step(
    state: InternedState<State>,
    operation: Operation,
    observation: Observation<Result>,
  ): readonly InternedState<State>[] {
    if (this.steps >= this.#maxSteps) {
      this.isExhausted = true;
      return [];
    }
    this.steps++;
    const next: unknown = this.#model.step(state.value, operation, observation);
    if (!Array.isArray(next)) {
      throw new TypeError(
        `checkLinearizability: model "${this.#model.name}" must answer step() with an array of states, ` +
          `got ${readableText(next)} for operation ${readableText(operation)}`,
      );
    }
    return next.map((value: State) => this.#stateOf(value));
  }

  #stateOf(value: State): InternedState<State> {
    const text = this.#textOf(value);
    let state = this.#states.get(text);
    if (state === undefined) {
      state = { value, text, afterUnknown: [] };
      this.#states.set(text, state);
    }
    return state;
  }

  #textOf(state: State): string {
    const text: unknown = this.#model.keyOf === undefined ? structuralText(state) : this.#model.keyOf(state);
    if (typeof text === 'string') return text;
    throw new TypeError(
      this.#model.keyOf === undefined
        ? `checkLinearizability: a state of model "${this.#model.name}" is not made of plain objects, arrays and ` +
            'primitives only; give the model a keyOf(state) that answers one string per state'
        : `checkLinearizability: keyOf() of model "${this.#model.name}" must answer a string, got ${readableText(text)}`,
    );
  }
}

/** The furthest configurations: those whose first open operation ended last. */
class Frontier<State, Operation, Result> {
  readonly #searcher: Searcher<State, Operation, Result>;
  #longest: Configuration<State, Operation, Result>;
  #tooLate: readonly number[] = [];
  #statesByText: Map<string, State>;

  constructor(searcher: Searcher<State, Operation, Result>, start: Configuration<State, Operation, Result>) {
    this.#searcher = searcher;
    this.#longest = start;
    this.#statesByText = new Map([[start.state.text, start.state.value]]);
  }

  reach(at: Configuration<State, Operation, Result>): void {
    if (at.firstOpenIndex < this.#longest.firstOpenIndex) return;
    if (at.firstOpenIndex > this.#longest.firstOpenIndex) this.#advance(at);
    else if (this.#isLonger(at)) [this.#longest, this.#tooLate] = [at, []];
    if (this.#statesByText.size < mostStatesReported) this.#statesByText.set(at.state.text, at.state.value);
  }

  deadEnd(): DeadEnd<State, Operation, Result> {
    const at = this.#longest;
    const others = [...this.#statesByText].filter(([text]) => text !== at.state.text).map(([, state]) => state);
    const stuck = [...new Set([...this.#tooLate, ...this.#searcher.open(at)])];
    return {
      prefix: orderOf(at),
      states: [at.state.value, ...others],
      stuck: stuck.map((index) => this.#searcher.known[index]!.record),
    };
  }

  #advance(at: Configuration<State, Operation, Result>): void {
    this.#longest = at;
    this.#tooLate = this.#searcher.tooLate(at);
    this.#statesByText = new Map();
  }

  /** An order that makes an open operation impossible explains nothing, however long it is. */
  #isLonger(at: Configuration<State, Operation, Result>): boolean {
    if (this.#tooLate.length === 0 && at.placedAhead.length <= this.#longest.placedAhead.length) return false;
    return this.#searcher.tooLate(at).length === 0;
  }
}

/** How many states are kept with their successors. */
const mostStatesRemembered = 10_000;

/** More states than this do not help a reader of the report. */
const mostStatesReported = 20;

/** The configurations visited, as far as they are remembered. */
export class Visited {
  readonly #spentByConfiguration: LRUCache<string, readonly (readonly number[])[]>;
  #keyIndex = 0;

  constructor(maxRemembered: number) {
    this.#spentByConfiguration = boundedMap(maxRemembered);
  }

  startKey(): void {
    this.#keyIndex++;
  }

  /** Remembers a configuration. False if one that can do everything that this one can has been visited before. */
  add({
    firstOpenIndex,
    placedAhead,
    state,
    spent,
  }: Pick<Configuration<unknown, unknown, unknown>, 'firstOpenIndex' | 'placedAhead' | 'state' | 'spent'>): boolean {
    const name = `${this.#keyIndex} ${firstOpenIndex} ${placedAhead.join()} ${state.text}`;
    const earlier = this.#spentByConfiguration.get(name) ?? [];
    if (earlier.some((other) => isCovered(other, spent))) return false;
    const notCovered = earlier.filter((other) => !isCovered(spent, other));
    this.#spentByConfiguration.set(name, [...notCovered.slice(1 - mostSpentRemembered), spent]);
    return true;
  }
}

/** Bounded by `maxSize` instead of `max`, for which lru-cache would allocate everything in advance: 25 ms a check. */
function boundedMap<Value extends object>(maxEntries: number): LRUCache<string, Value> {
  return new LRUCache({ maxSize: maxEntries, sizeCalculation: () => 1 });
}

/** How many ways to spend unknown operations are remembered per configuration. */
const mostSpentRemembered = 32;

/** Whether the other has spent every unknown operation that the one has spent. */
function isCovered(one: readonly number[], other: readonly number[]): boolean {
  return one.every((count, kind) => count <= other[kind]!);
}

/** What is placed after one more known operation. */
function placedWith(
  { firstOpenIndex, placedAhead }: Configuration<unknown, unknown, unknown>,
  index: number,
): { readonly firstOpenIndex: number; readonly placedAhead: readonly number[] } {
  if (index !== firstOpenIndex) {
    return { firstOpenIndex, placedAhead: [...placedAhead, index].sort((one, other) => one - other) };
  }
  let passed = 0;
  while (placedAhead[passed] === firstOpenIndex + 1 + passed) passed++;
  return { firstOpenIndex: firstOpenIndex + 1 + passed, placedAhead: placedAhead.slice(passed) };
}

function oneMore(counts: readonly number[], index: number): readonly number[] {
  return counts.with(index, counts[index]! + 1);
}

function orderOf<State, Operation, Result>(
  last: Configuration<State, Operation, Result>,
): readonly RecordedOperation<Operation, Result>[] {
  const order: RecordedOperation<Operation, Result>[] = [];
  for (let at: typeof last | undefined = last; at?.placed !== undefined; at = at.before) order.push(at.placed);
  return order.reverse();
}

function knownByEnd<Operation, Result>(
  operations: readonly RecordedOperation<Operation, Result>[],
  model: Pick<Model<unknown, Operation, Result>, 'isReadOnly'>,
): readonly Known<Operation, Result>[] {
  const known: Known<Operation, Result>[] = [];
  for (const record of operations) {
    if (record.outcome.kind !== 'ok') continue;
    const { result, endedAt } = record.outcome;
    const isReadOnly = model.isReadOnly?.(record.operation, result) ?? false;
    known.push({ record, observation: { kind: 'ok', result }, endedAt, isReadOnly });
  }
  return known.sort((one, other) => one.endedAt - other.endedAt);
}

function unknownKinds<Operation, Result>(
  operations: readonly RecordedOperation<Operation, Result>[],
): readonly UnknownKind<Operation, Result>[] {
  const kinds = new Map<string | symbol, UnknownKind<Operation, Result>>();
  const oldestFirst = operations.toSorted((one, other) => one.invokedAt - other.invokedAt);
  for (const record of oldestFirst) {
    if (record.outcome.kind !== 'unknown') continue;
    // An operation without a text is a kind of its own, which costs time but is never wrong.
    const name = structuralText(record.operation) ?? Symbol('operation without a text');
    const kind = kinds.get(name);
    if (kind === undefined) kinds.set(name, { records: [record] });
    else kind.records.push(record);
  }
  return [...kinds.values()];
}

function openUntilEnd(known: readonly Known<unknown, unknown>[]): readonly (readonly number[])[] {
  const byInvocation = known.map((_, index) => index).sort((one, other) => invokedAt(one) - invokedAt(other));
  const open = new Set<number>();
  let begun = 0;
  return known.map(({ endedAt }, index) => {
    while (begun < byInvocation.length && invokedAt(byInvocation[begun]!) < endedAt) open.add(byInvocation[begun++]!);
    const openNow = [...open].sort((one, other) => one - other);
    open.delete(index);
    return openNow;
  });

  function invokedAt(index: number): number {
    return known[index]!.record.invokedAt;
  }
}
