import { describe, expect, it } from 'vitest';
import {
  checkLinearizability,
  History,
  type LockOperation,
  type LockResult,
  lockModel,
  type RecordedOperation,
  type RegisterOperation,
  registerModel,
} from '../../../src/testing/history/index.js';
import { hasOrder } from './brute-force.js';
import { oneOf, seeded } from './simulated-register.js';

const unknown = { kind: 'unknown' } as const;
const ok = <Result>(result: Result) => ({ kind: 'ok', result }) as const;

describe('registerModel', () => {
  const model = registerModel<number>({ initial: 1 });

  it('reads what is there and nothing else', () => {
    expect(model.initial).toBe(1);
    expect(registerModel().initial).toBeUndefined();
    expect(model.step(1, { type: 'read' }, ok(1))).toEqual([1]);
    expect(model.step(1, { type: 'read' }, ok(2))).toEqual([]);
    expect(model.step(1, { type: 'read' }, unknown)).toEqual([1]);
  });

  it('writes whatever the result is', () => {
    expect(model.step(1, { type: 'write', value: 2 }, ok(undefined))).toEqual([2]);
    expect(model.step(1, { type: 'write', value: 2 }, unknown)).toEqual([2]);
  });

  it('compares and sets, and its result must agree', () => {
    const hit = { type: 'compare-and-set', expected: 1, value: 2 } as const;
    const miss = { type: 'compare-and-set', expected: 5, value: 2 } as const;
    expect(model.step(1, hit, ok(true))).toEqual([2]);
    expect(model.step(1, hit, ok(false))).toEqual([]);
    expect(model.step(1, hit, unknown)).toEqual([2]);
    expect(model.step(1, miss, ok(true))).toEqual([]);
    expect(model.step(1, miss, ok(false))).toEqual([1]);
    expect(model.step(1, miss, unknown)).toEqual([1]);
  });

  it('compares values by structure', () => {
    const rows = registerModel<{ id: number; tags: string[] }>();
    const row = { id: 1, tags: ['a'] };
    expect(rows.step(row, { type: 'read' }, ok({ tags: ['a'], id: 1 }))).toEqual([row]);
    expect(rows.step(row, { type: 'read' }, ok({ tags: [], id: 1 }))).toEqual([]);
  });

  it('calls read-only what never changes the value', () => {
    const set = { type: 'compare-and-set', expected: 1, value: 2 } as const;
    expect(model.isReadOnly?.({ type: 'read' }, 1)).toBe(true);
    expect(model.isReadOnly?.(set, false)).toBe(true);
    expect(model.isReadOnly?.(set, true)).toBe(false);
    expect(model.isReadOnly?.({ type: 'write', value: 1 }, undefined)).toBe(false);
  });

  it('says its operations in words', () => {
    expect(model.describe?.({ type: 'read' })).toBe('read');
    expect(model.describe?.({ type: 'write', value: 2 })).toBe('write 2');
    expect(model.describe?.({ type: 'compare-and-set', expected: 1, value: 2 })).toBe('compare 1 and set 2');
  });

  it('refuses values without a structure, unknown operations and unknown options', () => {
    const maps = registerModel<Map<string, string>>();
    expect(() => maps.step(new Map(), { type: 'read' }, ok(new Map()))).toThrow(
      'registerModel: values must be primitives, dates, bytes, or plain objects and arrays of those, got [object Map]',
    );
    expect(() => model.step(1, { type: 'cas' } as unknown as RegisterOperation<number>, unknown)).toThrow(
      'registerModel: unknown operation {"type":"cas"}, its type must be "read", "write" or "compare-and-set"',
    );
    expect(() => registerModel({ initital: 1 } as never)).toThrow('did you mean "initial"?');
  });
});

describe('lockModel', () => {
  const model = lockModel();
  const free = { holder: 'nobody', fence: 4 } as const;
  const held = { holder: 'known', fence: 5 } as const;
  const lost = { holder: 'unknown', fence: 5 } as const;

  it('gives the lock to one owner, with a fence that grows', () => {
    expect(model.initial).toEqual({ holder: 'nobody', fence: 0 });
    expect(model.step(free, { type: 'acquire' }, ok(5))).toEqual([held]);
    expect(model.step(free, { type: 'acquire' }, ok(4))).toEqual([]);
    expect(model.step(free, { type: 'acquire' }, ok(4.5))).toEqual([]);
    expect(model.step(held, { type: 'acquire' }, ok(6))).toEqual([]);
    expect(model.step(lost, { type: 'acquire' }, ok(9))).toEqual([]);
  });

  it('says that the lock is held only while it is', () => {
    expect(model.step(free, { type: 'acquire' }, ok(undefined))).toEqual([]);
    expect(model.step(held, { type: 'acquire' }, ok(undefined))).toEqual([held]);
  });

  it('takes the lock with some later fence when the reply was lost', () => {
    expect(model.step(free, { type: 'acquire' }, unknown)).toEqual([lost]);
    expect(model.step(held, { type: 'acquire' }, unknown)).toEqual([held]);
  });

  it('releases by the fence of the holder', () => {
    const after = { holder: 'nobody', fence: 5 } as const;
    expect(model.step(held, { type: 'release', fence: 5 }, ok(true))).toEqual([after]);
    expect(model.step(held, { type: 'release', fence: 5 }, ok(false))).toEqual([]);
    expect(model.step(held, { type: 'release', fence: 5 }, unknown)).toEqual([after]);
    expect(model.step(held, { type: 'release', fence: 4 }, ok(true))).toEqual([]);
    expect(model.step(held, { type: 'release', fence: 4 }, ok(false))).toEqual([held]);
    expect(model.step(free, { type: 'release', fence: 4 }, ok(true))).toEqual([]);
    expect(model.step(free, { type: 'release', fence: 4 }, unknown)).toEqual([free]);
  });

  it('lets a lost holder have any fence from the least on', () => {
    expect(model.step(lost, { type: 'release', fence: 7 }, ok(true))).toEqual([{ holder: 'nobody', fence: 7 }]);
    expect(model.step(lost, { type: 'release', fence: 4 }, ok(true))).toEqual([]);
    expect(model.step(lost, { type: 'release', fence: 7 }, ok(false))).toEqual([lost]);
    expect(model.step(lost, { type: 'release', fence: 7 }, unknown)).toEqual([{ holder: 'nobody', fence: 7 }, lost]);
  });

  it('expires whoever holds it', () => {
    expect(model.step(lost, { type: 'expire' }, unknown)).toEqual([{ holder: 'nobody', fence: 5 }]);
    expect(model.step(held, { type: 'expire' }, ok(undefined))).toEqual([{ holder: 'nobody', fence: 5 }]);
    expect(model.step(free, { type: 'expire' }, unknown)).toEqual([free]);
  });

  it('says its operations in words, and refuses unknown ones', () => {
    expect(model.describe?.({ type: 'acquire' })).toBe('acquire');
    expect(model.describe?.({ type: 'release', fence: 3 })).toBe('release 3');
    expect(() => model.step(free, { type: 'lock' } as unknown as LockOperation, unknown)).toThrow(
      'lockModel: unknown operation {"type":"lock"}, its type must be "acquire", "release" or "expire"',
    );
  });

  it('explains two owners only by a lease that ran out', () => {
    const history = new History<LockOperation, LockResult>();
    const operation = { type: 'acquire' } as const;
    history.invoke({ client: 'a', key: 'job', operation }).ok(1);
    const second = history.invoke({ client: 'b', key: 'job', operation });
    const withoutExpiry = [...history];
    history.invoke({ client: 'ttl', key: 'job', operation: { type: 'release', fence: 1 } }).unknown();
    second.ok(2);
    const expired = [...history];
    const both = [expired[0]!, expired[1]!];
    expect(checkLinearizability(withoutExpiry, model).verdict).toBe('linearizable');
    expect(checkLinearizability(expired, model).verdict).toBe('linearizable');
    expect(checkLinearizability(both, model).verdict).toBe('not-linearizable');
  });

  it('is explained by orders that leave no fence behind, and else by the fence left behind', () => {
    const history = new History<LockOperation, LockResult>();
    const begin = (operation: LockOperation) => history.invoke({ client: 'a', key: 'x', operation });
    const [second, wrong, first] = [
      begin({ type: 'acquire' }),
      begin({ type: 'release', fence: 9 }),
      begin({ type: 'acquire' }),
    ];
    const [release1, release2] = [begin({ type: 'release', fence: 1 }), begin({ type: 'release', fence: 2 })];
    const [fifth, fourth] = [begin({ type: 'acquire' }), begin({ type: 'acquire' })];
    second.ok(2);
    wrong.ok(true);
    release1.ok(true);
    first.ok(1);
    release2.ok(true);
    fifth.ok(5);
    fourth.ok(4);
    const verdict = checkLinearizability(history, model);
    if (verdict.verdict !== 'not-linearizable') throw new Error(String(verdict));
    // A path that continues from fence 2 with 5 instead of 4 is as long, is tried first, and leaves 4 behind.
    expect(verdict.prefix.map(({ outcome }) => outcome.kind === 'ok' && outcome.result)).toEqual([1, true, 2, true, 4]);
    expect(verdict.stuck[0]!.operation).toEqual({ type: 'release', fence: 9 });

    const late = new History<LockOperation, LockResult>();
    const [other, slow] = ['b', 'c'].map((client) => late.invoke({ client, key: 'x', operation: { type: 'acquire' } }));
    late.invoke({ client: 'a', key: 'x', operation: { type: 'acquire' } }).ok(2);
    late.invoke({ client: 'a', key: 'x', operation: { type: 'release', fence: 2 } }).ok(true);
    other!.ok(3);
    slow!.ok(2);
    expect(checkLinearizability(late, model)).toMatchObject({
      stuck: [{ client: 'c' }, { client: 'a' }, { client: 'b' }],
    });
  });

  it('agrees with brute force on 6000 random histories', () => {
    let linearizable = 0;
    for (let seed = 1; seed <= 6000; seed++) {
      const history = randomLockHistory(seeded(seed));
      const expected = hasOrder(history, { owner: 'nobody', fence: 0 }, lockSemantics);
      const verdict = checkLinearizability(history, model);
      expect(verdict.verdict, `seed ${seed}\n${JSON.stringify(history)}\n${verdict}`).toBe(
        expected ? 'linearizable' : 'not-linearizable',
      );
      if (expected) linearizable++;
    }
    expect(linearizable).toBeGreaterThan(1500);
    expect(linearizable).toBeLessThan(4500);
  });

  it('decides 1000 sections of 20 contending clients, and finds one fence that was given twice', () => {
    const history = contendedLock({ sections: 1000, clients: 20, random: seeded(20) });
    const fine = checkLinearizability(history, model);
    expect(fine.verdict, String(fine)).toBe('linearizable');
    expect(fine.steps).toBeLessThan(10_000);

    const index = history.findIndex(({ outcome }) => outcome.kind === 'ok' && outcome.result === 900);
    const record = history[index]!;
    const outcome = { kind: 'ok', result: 899, endedAt: (record.outcome as { endedAt: number }).endedAt } as const;
    const faulty = checkLinearizability(history.with(index, { ...record, outcome }), model);
    if (faulty.verdict !== 'not-linearizable') throw new Error(String(faulty));
    expect(faulty.stuck[0], String(faulty)).toEqual({ ...record, outcome });
    expect(faulty.prefix).toHaveLength(2 * 899 - 1);
    expect(faulty.steps).toBeLessThan(200_000);
  });
});

interface LockTruth {
  readonly owner: 'nobody' | 'somebody' | 'lost';
  readonly fence: number;
}

/** A lost acquire got one particular fence, which the oracle guesses. */
function lockSemantics(
  { owner, fence }: LockTruth,
  { operation, outcome }: RecordedOperation<LockOperation, LockResult>,
): LockTruth[] {
  const result = outcome.kind === 'ok' ? outcome.result : 'lost';
  if (operation.type === 'expire') return [{ owner: 'nobody', fence }];
  if (operation.type === 'acquire') {
    if (owner !== 'nobody') return result === undefined || result === 'lost' ? [{ owner, fence }] : [];
    if (result === 'lost') return [1, 2, 3, 4, 5, 6].map((more) => ({ owner: 'lost', fence: fence + more }));
    return typeof result === 'number' && result > fence ? [{ owner: 'somebody', fence: result }] : [];
  }
  const isHeld = owner !== 'nobody' && operation.fence === fence;
  const released: LockTruth[] = isHeld && result !== false ? [{ owner: 'nobody', fence }] : [];
  const refused: LockTruth[] = result !== true && (!isHeld || owner === 'lost') ? [{ owner, fence }] : [];
  return [...released, ...refused];
}

function randomLockHistory(random: () => number): RecordedOperation<LockOperation, LockResult>[] {
  const history = new History<LockOperation, LockResult>();
  const running: (() => void)[] = [];
  let fence = 0;
  let left = 2 + Math.floor(random() * 4);
  while (left > 0 || running.length > 0) {
    if (left > 0 && random() < 0.55) {
      left--;
      begin();
    } else running.splice(Math.floor(random() * running.length), 1)[0]?.();
  }
  return [...history];

  function begin(): void {
    const type = oneOf(['acquire', 'acquire', 'release', 'release', 'expire'] as const, random);
    // The events mostly agree with a real lock, so that about half of the histories are valid.
    const claimed = random() < 0.8 ? fence : 1 + Math.floor(random() * 3);
    const operation: LockOperation = type === 'release' ? { type, fence: claimed } : { type };
    const open = history.invoke({ client: 'c', key: 'k', operation });
    running.push(() => {
      if (random() < (type === 'expire' ? 0.9 : 0.2)) open.unknown();
      else if (type === 'acquire') open.ok(random() < 0.2 ? undefined : random() < 0.8 ? ++fence : fence);
      else open.ok(type === 'release' ? random() < 0.8 : undefined);
    });
  }
}

function contendedLock({
  sections,
  clients,
  random,
}: {
  readonly sections: number;
  readonly clients: number;
  readonly random: () => number;
}): RecordedOperation<LockOperation, LockResult>[] {
  const history = new History<LockOperation, LockResult>();
  const acquire = (client: string) => ({
    client,
    open: history.invoke({ client, key: 'k', operation: { type: 'acquire' } }),
  });
  const waiting = Array.from({ length: clients }, (_, index) => acquire(`client-${index}`));
  for (let fence = 1; fence <= sections; fence++) {
    const [{ client, open }] = waiting.splice(Math.floor(random() * waiting.length), 1) as [ReturnType<typeof acquire>];
    open.ok(fence);
    history.invoke({ client, key: 'k', operation: { type: 'release', fence } }).ok(true);
    waiting.push(acquire(client));
  }
  return [...history];
}
