import { DatabaseSync } from 'node:sqlite';
import { describe, expect, it } from 'vitest';
import { type IdempotencyHandle, idempotency, memoryStore, OptionsError } from '../../../src/index.js';
import { sqliteStore } from '../../../src/stores/sqlite.js';
import { temporaryDatabase } from '../../stores/sqlite-files.ts';

const scope = { scope: 'shop' };

function setUp(path = ':memory:', options = {}) {
  const db = new DatabaseSync(path);
  db.exec('CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, cents INTEGER)');
  const once = idempotency({ store: sqliteStore(db), ...options });
  const order = (key: string, cents: number, fail = false) =>
    once.transaction(
      db,
      key,
      ({ attempt }) => {
        const { lastInsertRowid } = db.prepare('INSERT INTO orders (cents) VALUES (?)').run(cents);
        if (fail) throw new RangeError('no stock');
        return { id: Number(lastInsertRowid), attempt };
      },
      { ...scope, input: { cents } },
    );
  const orders = () =>
    db
      .prepare('SELECT cents FROM orders')
      .all()
      .map((row) => row.cents);
  return { db, once, order, orders };
}

describe('transaction on SQLite', () => {
  it('commits key, effect and result together, and replays the result', async () => {
    const { order, orders } = setUp();
    expect([await order('k', 5), await order('k', 5), await order('l', 6)]).toEqual([
      { id: 1, attempt: 1 },
      { id: 1, attempt: 1 },
      { id: 2, attempt: 1 },
    ]);
    expect(orders()).toEqual([5, 6]);
    await expect(order('k', 7)).rejects.toMatchObject({ code: 'ERR_KEY_REUSED' });
  });

  it('leaves nothing behind when the function throws', async () => {
    const { order, orders } = setUp();
    await expect(order('k', 5, true)).rejects.toThrow(RangeError);
    expect(orders()).toEqual([]);
    expect(await order('k', 5)).toEqual({ id: 1, attempt: 1 });
  });

  it('runs once for many concurrent calls, from two connections', async () => {
    using file = temporaryDatabase();
    const [one, other] = [setUp(file.path), setUp(file.path)];
    const calls = Array.from({ length: 40 }, (_, index) => (index % 2 ? one : other).order('k', 5));
    expect(await Promise.all(calls)).toEqual(Array(40).fill({ id: 1, attempt: 1 }));
    expect(one.orders()).toEqual([5]);
    for (const { db } of [one, other]) db.close();
  });

  it('reports the same key running outside of a transaction as in flight', async () => {
    const { once, order, orders } = setUp();
    const running = once.run('k', () => new Promise((resolve) => setTimeout(resolve, 50, 'outside')), {
      ...scope,
      input: { cents: 5 },
    });
    await new Promise((resolve) => setImmediate(resolve));
    await expect(order('k', 5)).rejects.toMatchObject({ code: 'ERR_IN_FLIGHT' });
    expect(await running).toBe('outside');
    expect([await order('k', 5), orders()]).toEqual(['outside', []]);
  });

  it('refuses an asynchronous function, and a store without transactions', async () => {
    const { db, once, orders } = setUp();
    const late = async () => void db.exec('INSERT INTO orders (cents) VALUES (1)');
    await expect(once.transaction(db, 'k', late, scope)).rejects.toThrow(/must be synchronous/);
    expect(orders()).toEqual([]);
    const memory = idempotency({ store: memoryStore() });
    await expect(memory.transaction({}, 'k', () => 1, scope)).rejects.toThrow(OptionsError);
  });

  it('has no phases, and says so when one is used', async () => {
    const { db, once, orders } = setUp();
    const inPhases = (handle: object) => {
      db.exec('INSERT INTO orders (cents) VALUES (1)');
      return (handle as IdempotencyHandle).phase('charge', () => 1);
    };
    await expect(once.transaction(db, 'k', inPhases, scope)).rejects.toThrow(/has no phases; call run\(\)/);
    expect(orders()).toEqual([]);
  });

  it('completes an operation begun with phases outside, under the same downstream keys', async () => {
    const { db, once, orders } = setUp();
    const keys: string[] = [];
    const begun = once.run(
      'k',
      async (handle) => {
        await handle.phase('charge', (downstreamKey) => keys.push(downstreamKey));
        throw new RangeError('the shop is closed');
      },
      scope,
    );
    await expect(begun).rejects.toThrow(RangeError);
    const ended = await once.transaction(
      db,
      'k',
      (handle) => {
        db.exec('INSERT INTO orders (cents) VALUES (1)');
        keys.push(handle.downstreamKey('charge'));
        return handle.attempt;
      },
      scope,
    );
    expect([ended, orders(), keys[0] === keys[1]]).toEqual([2, [1], true]);
  });

  it('commits an effect whose result is too large, and does not run it again', async () => {
    const { db, once, orders } = setUp(':memory:', { maxBodyBytes: 10 });
    const run = () =>
      once.transaction(
        db,
        'k',
        () => {
          db.exec('INSERT INTO orders (cents) VALUES (1)');
          return 'x'.repeat(20);
        },
        scope,
      );
    expect(await run()).toHaveLength(20);
    await expect(run()).rejects.toMatchObject({ reason: 'not-stored' });
    expect(orders()).toEqual([1]);
  });
});
