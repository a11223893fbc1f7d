import { describe, expect, it } from 'vitest';
import { OptionsError } from '../../../src/core/errors.js';
import {
  checkLinearizability,
  History,
  type LinearizabilityVerdict,
  type Model,
  type Observation,
  type RecordedOperation,
  registerModel,
} from '../../../src/testing/history/index.js';
import { hasOrder, isOrder, subsetsOf } from './brute-force.js';
import { corrupt, type RegisterHistory } from './corruption.js';
import { applyTo, type Operation, type Result, seeded, simulateRegister } from './simulated-register.js';

const model = registerModel<number>();
const read = { type: 'read' } as const;
const write = (value: number) => ({ type: 'write', value }) as const;
const compareAndSet = (expected: number | undefined, value: number) =>
  ({ type: 'compare-and-set', expected, value }) as const;

/**
 * Draws a history as in the papers: each line a client, `|` its events in columns, such as
 * `'|--w1--|    |-r1-|'` for a write of 1 and then a read that gave 1. A line that breaks off has an unknown outcome.
 */
function drawn(...lines: readonly string[]): History<Operation, Result> {
  const history = new History<Operation, Result>();
  const events = lines.flatMap((line, client) =>
    [...line.matchAll(/\|-*([wr])(\d+)-*(\||\.)/g)].flatMap((match) => {
      const [text, type, digits, end] = match as unknown as [string, string, string, string];
      const value = Number(digits);
      const operation = type === 'w' ? write(value) : read;
      let open: ReturnType<typeof history.invoke>;
      const begin = () => {
        open = history.invoke({ client: `line-${client}`, key: 'x', operation });
      };
      const finish = () => (end === '.' ? open.unknown() : open.ok(type === 'w' ? undefined : value));
      return [
        { column: match.index, event: begin },
        { column: match.index + text.length - 1, event: finish },
      ];
    }),
  );
  for (const { event } of events.sort((one, other) => one.column - other.column)) event();
  return history;
}

const verdictOn = (history: Iterable<RecordedOperation<Operation, Result>>) =>
  checkLinearizability(history, model).verdict;

describe('checkLinearizability on textbook histories', () => {
  it('accepts the empty history', () => {
    expect(verdictOn([])).toBe('linearizable');
  });

  it('accepts a read that overlaps a write, whichever value it gives', () => {
    expect(verdictOn(drawn('|-w1-|  |---w2---|', '          |-r1-|'))).toBe('linearizable');
    expect(verdictOn(drawn('|-w1-|  |---w2---|', '          |-r2-|'))).toBe('linearizable');
  });

  it('refuses a stale read', () => {
    expect(verdictOn(drawn('|-w1-| |-w2-|', '              |-r1-|'))).toBe('not-linearizable');
  });

  it('refuses two readers who see a write and then do not', () => {
    expect(verdictOn(drawn('|-w1-| |------w2------|', '          |-r2-|', '                |-r1-|'))).toBe(
      'not-linearizable',
    );
  });

  it('refuses a value that was never written', () => {
    expect(verdictOn(drawn('|-w1-|', '       |-r3-|'))).toBe('not-linearizable');
  });

  it('refuses a value that is written only later', () => {
    expect(verdictOn(drawn('       |-w1-|', '|-r1-|'))).toBe('not-linearizable');
  });

  it('refuses readers who disagree on the order of two writes', () => {
    const writers = ['|---w1---|', '|---w2---|'];
    expect(verdictOn(drawn(...writers, '           |-r1-| |-r1-|', '           |-r1-| |-r1-|'))).toBe('linearizable');
    expect(verdictOn(drawn(...writers, '           |-r1-| |-r1-|', '           |-r2-| |-r2-|'))).toBe(
      'not-linearizable',
    );
  });

  it('refuses a lost update: two compare-and-sets that both won', () => {
    const history = new History<Operation, Result>();
    history.invoke({ client: 'a', key: 'x', operation: write(1) }).ok(undefined);
    const first = history.invoke({ client: 'a', key: 'x', operation: compareAndSet(1, 2) });
    const second = history.invoke({ client: 'b', key: 'x', operation: compareAndSet(1, 3) });
    first.ok(true);
    const oneWon = [...history];
    second.ok(true);
    expect(verdictOn(oneWon)).toBe('linearizable');
    expect(verdictOn(history)).toBe('not-linearizable');
  });

  it('refuses a dirty read: the value of a write that failed', () => {
    const history = new History<Operation, Result>();
    history.invoke({ client: 'a', key: 'x', operation: write(9) }).failed();
    history.invoke({ client: 'b', key: 'x', operation: read }).ok(9);
    expect(verdictOn(history)).toBe('not-linearizable');
  });

  it('keeps failed operations out of the order', () => {
    const history = new History<Operation, Result>();
    history.invoke({ client: 'a', key: 'x', operation: write(9) }).failed();
    history.invoke({ client: 'b', key: 'x', operation: read }).ok(undefined);
    expect(ordersOf(checkLinearizability(history, model)).get('x')).toHaveLength(1);
  });
});

describe('checkLinearizability on unknown outcomes', () => {
  it('lets the operation have taken effect', () => {
    expect(verdictOn(drawn('|-w1-.', '         |-r1-|'))).toBe('linearizable');
  });

  it('lets it never take effect', () => {
    expect(verdictOn(drawn('|-w1-| |-w2-.', '              |-r1-| |-r1-|'))).toBe('linearizable');
  });

  it('lets it take effect long after the client gave up', () => {
    expect(verdictOn(drawn('|-w1-| |-w2-.', '              |-r1-| |-r2-|'))).toBe('linearizable');
  });

  it('does not let it take effect twice', () => {
    const lines = ['|-w1-| |-w2-.', '              |-r2-| |-w3-| |-r2-|'];
    expect(verdictOn(drawn(...lines))).toBe('not-linearizable');
    expect(verdictOn(drawn(...lines, '       |-w2-.'))).toBe('linearizable');
  });

  it('does not let it be undone', () => {
    expect(verdictOn(drawn('|-w1-| |-w2-.', '              |-r2-| |-r1-|'))).toBe('not-linearizable');
  });

  it('does not let it take effect before it began', () => {
    expect(verdictOn(drawn('         |-w2-.', '|-r2-|'))).toBe('not-linearizable');
  });

  it('counts an operation that is still open as unknown', () => {
    const history = new History<Operation, Result>();
    history.invoke({ client: 'a', key: 'x', operation: write(1) });
    history.invoke({ client: 'b', key: 'x', operation: read }).ok(1);
    expect(verdictOn(history)).toBe('linearizable');
  });

  it('chains several of them where only that explains a read', () => {
    const history = new History<Operation, Result>();
    for (const operation of [
      compareAndSet(2, 3),
      compareAndSet(undefined, 1),
      compareAndSet(1, 2),
      compareAndSet(3, 1),
    ]) {
      history.invoke({ client: 'a', key: 'x', operation }).unknown();
    }
    history.invoke({ client: 'b', key: 'x', operation: read }).ok(3);
    const verdict = checkLinearizability(history, model);
    expect(
      ordersOf(verdict)
        .get('x')!
        .map(({ operation }) => operation),
    ).toEqual([compareAndSet(undefined, 1), compareAndSet(1, 2), compareAndSet(2, 3), read]);
  });

  it('spends them sparingly: one that a later read needs is not used up before', () => {
    const history = new History<Operation, Result>();
    history.invoke({ client: 'a', key: 'x', operation: write(1) }).unknown();
    const known = history.invoke({ client: 'b', key: 'x', operation: write(1) });
    history.invoke({ client: 'c', key: 'x', operation: read }).ok(1);
    known.ok(undefined);
    history.invoke({ client: 'c', key: 'x', operation: write(2) }).ok(undefined);
    history.invoke({ client: 'c', key: 'x', operation: read }).ok(1);
    expect(verdictOn(history)).toBe('linearizable');
  });

  it('judges operations without a structure one by one', () => {
    const odd: Model<number, { add: (state: number) => number }, number> = {
      name: 'odd counter',
      initial: 0,
      step: (state, { add }, observation) => {
        const next = add(state);
        return observation.kind === 'ok' && observation.result !== next ? [] : [next];
      },
    };
    const history = new History<{ add: (state: number) => number }, number>();
    history.invoke({ client: 'a', key: 'x', operation: { add: (state) => state + 1 } }).unknown();
    history.invoke({ client: 'a', key: 'x', operation: { add: (state) => state + 10 } }).unknown();
    history.invoke({ client: 'a', key: 'x', operation: { add: (state) => state } }).ok(11);
    expect(checkLinearizability(history, odd).verdict).toBe('linearizable');
  });
});

describe('checkLinearizability on several keys', () => {
  it('judges each key by itself', () => {
    const history = new History<Operation, Result>();
    history.invoke({ client: 'a', key: 'x', operation: write(1) }).ok(undefined);
    history.invoke({ client: 'a', key: 'y', operation: read }).ok(undefined);
    history.invoke({ client: 'a', key: 'y', operation: write(2) }).ok(undefined);
    history.invoke({ client: 'a', key: 'x', operation: read }).ok(1);
    const verdict = checkLinearizability(history, model);
    expect([...ordersOf(verdict).keys()]).toEqual(['x', 'y']);
    expect(verdict.steps).toBe(4);
  });

  it('names the key at fault', () => {
    const history = new History<Operation, Result>();
    history.invoke({ client: 'a', key: 'x', operation: write(1) }).ok(undefined);
    history.invoke({ client: 'a', key: 'y', operation: read }).ok(1);
    expect(checkLinearizability(history, model)).toMatchObject({ verdict: 'not-linearizable', key: 'y' });
  });

  it('takes keys that are names of built-in properties', () => {
    const history = new History<Operation, Result>();
    for (const key of ['__proto__', 'constructor', '']) {
      history.invoke({ client: 'a', key, operation: read }).ok(undefined);
    }
    expect(ordersOf(checkLinearizability(history, model)).size).toBe(3);
  });
});

describe('checkLinearizability against brute force', () => {
  it('accepts 2000 simulated histories, with an order that holds', () => {
    for (let seed = 1; seed <= 2000; seed++) {
      const random = seeded(seed);
      const history = [
        ...simulateRegister({
          random,
          clients: 2 + Math.floor(random() * 5),
          operations: 1 + Math.floor(random() * 40),
          keys: ['x', 'y'].slice(0, 1 + (seed % 2)),
          values: 1 + Math.floor(random() * 6),
          unknown: 0.15,
          failed: 0.1,
        }),
      ];
      const verdict = checkLinearizability(history, model);
      expect(verdict.verdict, `seed ${seed}\n${verdict}`).toBe('linearizable');
      for (const [key, order] of ordersOf(verdict)) {
        expectOrderOf(
          order,
          history.filter((record) => record.key === key),
          `seed ${seed}, key ${key}`,
        );
      }
    }
  });

  it.each([
    { maxRemembered: 200_000, seeds: 4000 },
    { maxRemembered: 1, seeds: 1000 },
  ])(
    'agrees on $seeds corrupted histories with $maxRemembered configurations remembered',
    ({ maxRemembered, seeds }) => {
      let refused = 0;
      for (let seed = 1; seed <= seeds; seed++) {
        const random = seeded(seed);
        const history = corrupt(smallHistory(random), random);
        const expected = hasOrder(history, undefined, registerSemantics) ? 'linearizable' : 'not-linearizable';
        const verdict = checkLinearizability(history, model, { maxRemembered });
        expect(verdict.verdict, `seed ${seed}\n${JSON.stringify(history)}\n${verdict}`).toBe(expected);
        if (verdict.verdict === 'linearizable') {
          for (const order of verdict.orders.values()) expectOrderOf(order, history, `seed ${seed}`);
        }
        if (verdict.verdict === 'not-linearizable') {
          refused++;
          expect(isOrder(verdict.prefix, undefined, registerSemantics), `seed ${seed}`).toBe(true);
          expect(verdict.stuck.length, `seed ${seed}`).toBeGreaterThan(0);
        }
      }
      expect(refused).toBeGreaterThan(seeds * 0.2);
      expect(refused).toBeLessThan(seeds * 0.8);
    },
  );

  it('agrees for a model without hints, whose operations may leave several states', () => {
    let refused = 0;
    for (let seed = 1; seed <= 2000; seed++) {
      const random = seeded(seed);
      const history = corrupt(smallHistory(random), random);
      const isFine = hasOrder(history, undefined, hesitantSemantics);
      const verdict = checkLinearizability(history, hesitantModel);
      expect(verdict.verdict, `seed ${seed}\n${JSON.stringify(history)}`).toBe(
        isFine ? 'linearizable' : 'not-linearizable',
      );
      if (!isFine) refused++;
    }
    expect(refused).toBeGreaterThan(300);
  });

  it('blames an operation past whose end no order gets, though some order gets that far', () => {
    let blamed = 0;
    for (let seed = 1; seed <= 2000; seed++) {
      const random = seeded(seed);
      const history = corrupt(smallHistory(random), random);
      const verdict = checkLinearizability(history, model);
      if (verdict.verdict !== 'not-linearizable') continue;
      blamed++;
      const endedAt = endOf(verdict.stuck[0]!);
      expect(isFineUntil(endedAt - 1, history), `seed ${seed}\n${verdict}`).toBe(true);
      expect(isFineUntil(endedAt, history), `seed ${seed}\n${verdict}`).toBe(false);
    }
    expect(blamed).toBeGreaterThan(500);
  });
});

describe('checkLinearizability on long histories', () => {
  it.each([1, 2, 3])(
    'decides 2000 operations of 5 clients with unknown outcomes in a few steps each (seed %i)',
    (seed) => {
      const history = longHistory(seed);
      const verdict = checkLinearizability(history, model);
      expect(verdict.verdict, `seed ${seed}\n${verdict}`).toBe('linearizable');
      expect(verdict.steps).toBeLessThan(20 * 2000);
      expectOrderOf(ordersOf(verdict).get('x')!, history, `seed ${seed}`);
    },
  );

  it.each([1, 2, 3])('finds one stale read among them (seed %i)', (seed) => {
    const history = longHistory(seed);
    const reads = history.filter(({ operation, outcome }) => operation.type === 'read' && outcome.kind === 'ok');
    const [older, stale] = [reads[Math.floor(reads.length * 0.6)]!, reads[Math.floor(reads.length * 0.8)]!];
    const outcome = { kind: 'ok', result: resultOf(older), endedAt: endOf(stale) } as const;
    const verdict = checkLinearizability(history.with(history.indexOf(stale), { ...stale, outcome }), model);
    expect(verdict, `seed ${seed}`).toMatchObject({
      verdict: 'not-linearizable',
      stuck: expect.arrayContaining([{ ...stale, outcome }]),
    });
    expect(verdict.steps).toBeLessThan(100 * 2000);
  });

  it('needs no deep stack and one step each for 50 000 operations in a row', () => {
    const history = new History<Operation, Result>();
    for (let value = 1; value <= 25_000; value++) {
      history.invoke({ client: 'a', key: 'x', operation: write(value) }).ok(undefined);
      history.invoke({ client: 'a', key: 'x', operation: read }).ok(value);
    }
    expect(checkLinearizability(history, model)).toMatchObject({ verdict: 'linearizable', steps: 50_000 });
  });

  it('tells equal operations of unknown outcome apart by number only', () => {
    const history = new History<Operation, Result>();
    for (let round = 0; round < 200; round++)
      history.invoke({ client: 'a', key: 'x', operation: write(round % 4) }).unknown();
    history.invoke({ client: 'b', key: 'x', operation: read }).ok(9);
    const verdict = checkLinearizability(history, model);
    expect(verdict.verdict).toBe('not-linearizable');
    expect(verdict.steps).toBeLessThan(100);
  });
});

describe('checkLinearizability with a limit', () => {
  const hard = [...simulateRegister({ random: seeded(7), clients: 12, operations: 300, values: 1e6 })];

  it('says undecided when its steps are used up, and spends no more', () => {
    const needed = checkLinearizability(hard, model).steps;
    const verdict = checkLinearizability(hard, model, { maxSteps: needed - 1 });
    expect(verdict).toMatchObject({ verdict: 'undecided', keys: ['x'], maxSteps: needed - 1, steps: needed - 1 });
    expect(checkLinearizability(hard, model, { maxSteps: needed }).verdict).toBe('linearizable');
    expect(String(verdict)).toBe(
      `Undecided: ${needed - 1} steps per key (option "maxSteps") were not enough for key "x". ` +
        'Fewer operations open at once, fewer unknown outcomes or a shorter history on one key make it cheaper.',
    );
  });

  it('never takes running out of steps for a verdict', () => {
    for (let seed = 1; seed <= 100; seed++) {
      const random = seeded(seed);
      const history = corrupt(smallHistory(random), random);
      const { verdict, steps } = checkLinearizability(history, model);
      for (let maxSteps = 1; maxSteps < steps; maxSteps++) {
        expect(checkLinearizability(history, model, { maxSteps }).verdict, `seed ${seed}`).toBe('undecided');
      }
      expect(checkLinearizability(history, model, { maxSteps: Math.max(1, steps) }).verdict, `seed ${seed}`).toBe(
        verdict,
      );
    }
  });

  it('still finds a fault on another key', () => {
    const fault = new History<Operation, Result>();
    fault.invoke({ client: 'a', key: 'y', operation: read }).ok(1);
    const [{ invokedAt: _, ...record }] = [...fault] as [RecordedOperation<Operation, Result>];
    const last = { ...record, invokedAt: 1e6, outcome: { kind: 'ok', result: 1, endedAt: 1e6 + 1 } } as const;
    const verdict = checkLinearizability([...hard, last], model, { maxSteps: 10 });
    expect(verdict).toMatchObject({ verdict: 'not-linearizable', key: 'y' });
  });
});

describe('checkLinearizability explains', () => {
  it('what fits nowhere, after what, in which state', () => {
    const history = drawn('|-w1-| |-w2-|', '              |-r1-|', '                |-w5-.');
    const verdict = checkLinearizability(history, model);
    expect(verdict).toMatchObject({
      verdict: 'not-linearizable',
      key: 'x',
      prefix: [{ operation: write(1) }, { operation: write(2) }],
      states: [2, 5],
      stuck: [{ operation: read, outcome: { kind: 'ok', result: 1 } }],
    });
    expect(String(verdict)).toBe(
      [
        `Not linearizable: key "x" is no register (4 operations, ${verdict.steps} steps).`,
        'No order of the operations gets past this one:',
        '  [5 .. 7] client "line-1": read -> 1',
        'The longest order without it:',
        '  [1 .. 2] client "line-0": write 1 -> undefined',
        '  [3 .. 4] client "line-0": write 2 -> undefined',
        'This order leaves the state: 2',
        'Other orders that get as far leave:',
        '  5',
        'Of unknown outcome, and of no help:',
        '  [6 .. ] client "line-2": write 5 -> unknown',
        '(Numbers are places in the sequence of the recorder: [invoked .. ended].)',
      ].join('\n'),
    );
  });

  it('in a text of bounded length', () => {
    const history = new History<Operation, Result>();
    for (let value = 1; value <= 100; value++) {
      history.invoke({ client: 'a', key: 'x', operation: write(value) }).ok(undefined);
      history.invoke({ client: 'b', key: 'x', operation: write(1000 + value) }).unknown();
    }
    history.invoke({ client: 'a', key: 'x', operation: read }).ok(5);
    const verdict = checkLinearizability(history, model);
    expect(verdict).toMatchObject({ states: { length: 20 } });
    const text = String(verdict);
    expect(text).toContain('  ... 80 earlier ones\n');
    expect(text).toContain('  ... 80 more\n');
    expect(text.split('\n').length).toBeLessThan(60);
  });

  it('which unknown operations took effect, and which were of no help', () => {
    const verdict = checkLinearizability(drawn('|-w1-. |-w2-.', '              |-r2-| |-r7-|'), model);
    expect(String(verdict).split('\n').slice(3)).toEqual([
      'The longest order without it:',
      '  [3 .. ] client "line-0": write 2 -> unknown',
      '  [5 .. 6] client "line-1": read -> 2',
      'This order leaves the state: 2',
      'Other orders that get as far leave:',
      '  1',
      'Of unknown outcome, and of no help:',
      '  [1 .. ] client "line-0": write 1 -> unknown',
      '(Numbers are places in the sequence of the recorder: [invoked .. ended].)',
    ]);
  });

  it('a fine history in one line', () => {
    expect(String(checkLinearizability(drawn('|-w1-|'), model))).toBe('Linearizable: one key, 1 steps.');
  });
});

describe('checkLinearizability refuses', () => {
  const fine = { client: 'a', key: 'x', operation: read, invokedAt: 1, outcome: { kind: 'unknown' } } as const;

  it.each([
    ['no history', undefined, 'the history must be iterable'],
    ['a record that is none', [7], 'expected { client, key, operation }, got number'],
    ['a key that is no string', [{ ...fine, key: 7 }], '"key" must be a string, got number'],
    ['a place that is no integer', [{ ...fine, invokedAt: 1.5 }], '"invokedAt" must be an integer'],
    ['a place taken twice', [fine, fine], 'place 1 in the sequence is taken ("invokedAt")'],
    [
      'an outcome that is none',
      [{ ...fine, outcome: { kind: 'info' } }],
      'has no outcome of kind "ok", "failed" or "unknown"',
    ],
    ['a missing outcome', [{ ...fine, outcome: undefined }], 'has no outcome'],
    [
      'an end before the beginning',
      [{ ...fine, outcome: { kind: 'ok', result: 1, endedAt: 0 } }],
      'ends at 0, before it begins',
    ],
    ['an end that is no place', [{ ...fine, outcome: { kind: 'ok', result: 1 } }], '"endedAt" must be an integer'],
  ])('%s', (_, history, message) => {
    expect(() => checkLinearizability(history as never, model)).toThrow(message);
  });

  it('a malformed record even of a failed operation', () => {
    expect(() =>
      checkLinearizability([{ ...fine, invokedAt: Number.NaN, outcome: { kind: 'failed' } }], model),
    ).toThrow(TypeError);
  });

  it.each([undefined, {}, { name: 'x', step: () => [] }, { name: 'x', initial: 1 }, { initial: 1, step: () => [] }])(
    'a model that is none: %j',
    (notModel) => {
      expect(() => checkLinearizability([], notModel as never)).toThrow(OptionsError);
    },
  );

  it('wrong options', () => {
    expect(() => checkLinearizability([], model, { maxSteps: 0 })).toThrow(OptionsError);
    expect(() => checkLinearizability([], model, { maxRemembered: 0 })).toThrow(OptionsError);
    expect(() => checkLinearizability([], model, { maxStep: 5 } as never)).toThrow('did you mean "maxSteps"?');
  });

  it('a model whose step answers no array', () => {
    const wrong = { ...model, isReadOnly: () => false, step: () => true as never };
    expect(() => checkLinearizability(drawn('|-r1-|'), wrong)).toThrow(
      'model "register" must answer step() with an array of states, got true for operation {"type":"read"}',
    );
  });

  it('a model that calls a write read-only', () => {
    expect(() => checkLinearizability(drawn('|-w1-|'), { ...model, isReadOnly: () => true })).toThrow(
      'model "register" calls operation {"type":"write","value":1} read-only, but step() turns state undefined into 1',
    );
  });

  it('states that cannot be compared, unless the model has a keyOf', () => {
    const members: Model<ReadonlySet<number>, number, boolean> = {
      name: 'set',
      initial: new Set(),
      step: (state, member) => [new Set([...state, member])],
    };
    const history = new History<number, boolean>();
    history.invoke({ client: 'a', key: 'x', operation: 1 }).ok(true);
    expect(() => checkLinearizability(history, members)).toThrow('give the model a keyOf(state)');
    const keyOf = (state: ReadonlySet<number>) => [...state].sort().join();
    expect(checkLinearizability(history, { ...members, keyOf }).verdict).toBe('linearizable');
    expect(() => checkLinearizability(history, { ...members, keyOf: () => 1 as never })).toThrow(
      'keyOf() of model "set" must answer a string, got 1',
    );
  });
});

function smallHistory(random: () => number): RegisterHistory {
  const operations = 2 + Math.floor(random() * 6);
  return [...simulateRegister({ random, clients: 2 + Math.floor(random() * 3), operations, values: 3, unknown: 0.15 })];
}

function longHistory(seed: number): RegisterHistory {
  return [
    ...simulateRegister({
      random: seeded(seed),
      clients: 5,
      operations: 2000,
      values: 1e6,
      unknown: 0.05,
      failed: 0.03,
    }),
  ];
}

function registerSemantics(
  value: number | undefined,
  { operation, outcome }: RecordedOperation<Operation, Result>,
): (number | undefined)[] {
  const register = new Map(value === undefined ? [] : [['x', value]]);
  const result = applyTo(register, 'x', operation);
  return outcome.kind === 'ok' && outcome.result !== result ? [] : [register.get('x')];
}

/** A register that loses some of its writes. */
function hesitantSemantics(
  value: number | undefined,
  record: RecordedOperation<Operation, Result>,
): (number | undefined)[] {
  const next = registerSemantics(value, record);
  return record.operation.type === 'write' && record.operation.value > 1 ? [...next, value] : next;
}

const hesitantModel: Model<number | undefined, Operation, Result> = {
  name: 'hesitant register',
  initial: undefined,
  step(state, operation, observation: Observation<Result>) {
    const next = model.step(state, operation, observation);
    return operation.type === 'write' && operation.value > 1 ? [...next, state] : next;
  },
};

function ordersOf<State>(verdict: LinearizabilityVerdict<State, Operation, Result>) {
  if (verdict.verdict !== 'linearizable') throw new Error(String(verdict));
  return verdict.orders;
}

/** Checks that every known operation occurs once, no failed one, unknown ones at most once, and that nothing is contradicted. */
function expectOrderOf(order: RegisterHistory, history: RegisterHistory, message: string): void {
  const placed = new Set(order);
  expect(placed.size, message).toBe(order.length);
  expect(
    order.every((record) => history.includes(record) && record.outcome.kind !== 'failed'),
    message,
  ).toBe(true);
  expect(
    history.every((record) => record.outcome.kind !== 'ok' || placed.has(record)),
    message,
  ).toBe(true);
  expect(isOrder(order, undefined, registerSemantics), message).toBe(true);
}

/** Whether some order contains everything that ended before a place in the sequence, and possibly some of what was open there. */
function isFineUntil(place: number, history: RegisterHistory): boolean {
  const begun = history.filter(({ invokedAt }) => invokedAt <= place);
  const isOpen = (record: RegisterHistory[number]) => record.outcome.kind === 'ok' && endOf(record) > place;
  const settled = begun.filter((record) => !isOpen(record));
  return subsetsOf(begun.filter(isOpen)).some((some) => hasOrder([...settled, ...some], undefined, registerSemantics));
}

function endOf({ outcome }: RecordedOperation<Operation, Result>): number {
  return outcome.kind === 'ok' ? outcome.endedAt : Number.POSITIVE_INFINITY;
}

function resultOf({ outcome }: RecordedOperation<Operation, Result>): Result {
  return outcome.kind === 'ok' ? outcome.result : undefined;
}
