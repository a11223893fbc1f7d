import { describe, expect, it } from 'vitest';
import { OptionsError } from '../../../src/core/errors.js';
import { History } from '../../../src/testing/history/index.js';

const read = { client: 'a', key: 'x', operation: 'read' };

describe('History', () => {
  it('numbers invocations and ends in the order in which it hears of them', () => {
    const history = new History<string, number>();
    const first = history.invoke(read);
    const second = history.invoke({ client: 'b', key: 'y', operation: 'increment' });
    second.ok(7);
    first.ok(6);
    expect([...history]).toEqual([
      { client: 'a', key: 'x', operation: 'read', invokedAt: 1, outcome: { kind: 'ok', result: 6, endedAt: 4 } },
      { client: 'b', key: 'y', operation: 'increment', invokedAt: 2, outcome: { kind: 'ok', result: 7, endedAt: 3 } },
    ]);
    expect(history.size).toBe(2);
  });

  it('tells failed from unknown, and calls what is still open unknown', () => {
    const history = new History<string, number>();
    history.invoke(read).failed();
    history.invoke(read).unknown();
    history.invoke(read);
    expect([...history].map(({ outcome }) => outcome.kind)).toEqual(['failed', 'unknown', 'unknown']);
  });

  it('lets one client have two operations open at once', () => {
    const history = new History<string, number>();
    const [first, second] = [history.invoke(read), history.invoke(read)];
    first.ok(1);
    second.ok(1);
    expect(history.size).toBe(2);
  });

  it('gives an iterator that no later event changes', () => {
    const history = new History<string, number>();
    const open = history.invoke(read);
    const before = [...history];
    open.ok(1);
    expect(before[0]!.outcome.kind).toBe('unknown');
  });

  it.each(['ok', 'failed', 'unknown'] as const)('refuses to end an operation again after %s', (kind) => {
    const open = new History<string, number>().invoke(read);
    open[kind](1);
    expect(() => open.ok(2)).toThrow(
      `History: operation 1 of client "a" on key "x" cannot end as "ok", it has ended as "${kind}" already`,
    );
    expect(() => open.unknown()).toThrow('cannot end as "unknown"');
  });

  it('keeps the first end when a second one is refused', () => {
    const history = new History<string, number>();
    const open = history.invoke(read);
    open.ok(1);
    expect(() => open.failed()).toThrow();
    expect([...history][0]!.outcome).toEqual({ kind: 'ok', result: 1, endedAt: 2 });
  });

  it('refuses an invocation without client, key or operation', () => {
    const history = new History<unknown, number>();
    expect(() => history.invoke(null as never)).toThrow(
      'History.invoke: expected { client, key, operation }, got null',
    );
    expect(() => history.invoke({ ...read, client: 1 as never })).toThrow('"client" must be a string, got number');
    expect(() => history.invoke({ ...read, key: undefined as never })).toThrow('"key" must be a string, got undefined');
    expect(() => history.invoke({ ...read, operation: undefined })).toThrow('"operation" is missing');
    expect(history.size).toBe(0);
  });

  it('refuses more operations than maxOperations', () => {
    const history = new History<string, number>({ maxOperations: 2 });
    history.invoke(read);
    history.invoke(read);
    expect(() => history.invoke(read)).toThrow('History.invoke: 2 operations are recorded already');
    expect(history.size).toBe(2);
  });

  it('refuses wrong options', () => {
    expect(() => new History({ maxOperations: 0 })).toThrow(OptionsError);
    expect(() => new History({ maxOperation: 5 } as never)).toThrow('did you mean "maxOperations"?');
  });
});

describe('History.run', () => {
  it('records a value as ok and gives it back', async () => {
    const history = new History<string, number>();
    expect(await history.run(read, async () => 5)).toBe(5);
    expect([...history][0]!.outcome).toEqual({ kind: 'ok', result: 5, endedAt: 2 });
  });

  it('begins before the operation is called', async () => {
    const history = new History<string, number>();
    await history.run(read, () => history.size);
    expect([...history][0]!.outcome).toMatchObject({ result: 1 });
  });

  it('records an error as unknown and throws it on', async () => {
    const history = new History<string, number>();
    const error = new Error('reply lost');
    await expect(history.run(read, () => Promise.reject(error))).rejects.toBe(error);
    expect([...history][0]!.outcome).toEqual({ kind: 'unknown' });
  });

  it('records an error as failed where notApplied says that it proves so', async () => {
    const history = new History<string, number>();
    const refused = new Error('refused');
    const notApplied = (error: unknown) => error === refused;
    await expect(history.run(read, () => Promise.reject(refused), { notApplied })).rejects.toBe(refused);
    const throwing = () => {
      throw new Error('who knows');
    };
    await expect(history.run(read, throwing, { notApplied })).rejects.toThrow('who knows');
    expect([...history].map(({ outcome }) => outcome.kind)).toEqual(['failed', 'unknown']);
  });

  it('refuses wrong options before it begins', async () => {
    const history = new History<string, number>();
    await expect(history.run(read, () => 1, { notApplied: true as never })).rejects.toThrow(OptionsError);
    expect(history.size).toBe(0);
  });
});
