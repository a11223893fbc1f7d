/** The oracle tries every order of every choice of operations, without any cleverness. It handles up to seven operations. */
import type { RecordedOperation } from '../../../src/testing/history/index.js';

/** The states that an operation may leave, or none if it cannot have ended so. This is a second opinion beside the model under test. */
export type Semantics<State, Operation, Result> = (
  state: State,
  record: RecordedOperation<Operation, Result>,
) => readonly State[];

export function hasOrder<State, Operation, Result>(
  history: readonly RecordedOperation<Operation, Result>[],
  initial: State,
  semantics: Semantics<State, Operation, Result>,
): boolean {
  const known = history.filter(({ outcome }) => outcome.kind === 'ok');
  const unknown = history.filter(({ outcome }) => outcome.kind === 'unknown');
  return subsetsOf(unknown).some((applied) => {
    const operations = [...known, ...applied];
    return permutationsOf(operations.length).some((permutation) => {
      return isOrder(
        permutation.map((index) => operations[index]!),
        initial,
        semantics,
      );
    });
  });
}

/** Whether an order respects every result, and which operations ended before others began. */
export function isOrder<State, Operation, Result>(
  order: readonly RecordedOperation<Operation, Result>[],
  initial: State,
  semantics: Semantics<State, Operation, Result>,
): boolean {
  for (let later = 1; later < order.length; later++) {
    for (let earlier = 0; earlier < later; earlier++) if (precedes(order[later]!, order[earlier]!)) return false;
  }
  let states: readonly State[] = [initial];
  for (const record of order) states = states.flatMap((state) => semantics(state, record));
  return states.length > 0;
}

function precedes(one: RecordedOperation<unknown, unknown>, other: RecordedOperation<unknown, unknown>): boolean {
  return one.outcome.kind === 'ok' && one.outcome.endedAt < other.invokedAt;
}

export function subsetsOf<Item>(items: readonly Item[]): Item[][] {
  return Array.from({ length: 2 ** items.length }, (_, mask) => items.filter((_, index) => (mask >> index) & 1));
}

const permutationsByLength = new Map<number, readonly (readonly number[])[]>([[0, [[]]]]);

function permutationsOf(length: number): readonly (readonly number[])[] {
  let permutations = permutationsByLength.get(length);
  if (permutations === undefined) {
    permutations = permutationsOf(length - 1).flatMap((shorter) =>
      Array.from({ length }, (_, place) => shorter.toSpliced(place, 0, length - 1)),
    );
    permutationsByLength.set(length, permutations);
  }
  return permutations;
}
