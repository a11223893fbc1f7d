/** The store fails at each of its verbs, which a loop finds: what fails, what becomes of the key, what the next call gets. */
import { describe, expect, it } from 'vitest';
import { idempotency, memoryStore, type Store, StoreError } from '../../../src/index.js';
import { virtualClock } from '../../../src/testing/index.js';

type Fault = 'refused' | 'reply lost' | 'request lost' | 'hangs, then done';
const faults: readonly Fault[] = ['refused', 'reply lost', 'request lost', 'hangs, then done'];
const lasts = [
  ['one verb', 1],
  ['five verbs', 5],
  ['100 verbs', 100],
] as const;

const scope = { scope: 'shop' };

function world(onLost: 'rerun' | 'refuse', fault: Fault, from: number, length: number) {
  const clock = virtualClock();
  const inner = memoryStore({ clock });
  let verb = 0;
  const error = (applied: 'no' | 'unknown') =>
    new StoreError({ store: 'test', operation: 'verb', reason: 'failed', applied, detail: fault });
  async function around<T>(does: () => Promise<T>): Promise<T> {
    verb++;
    if (verb < from || verb >= from + length) return does();
    if (fault === 'refused') throw error('no');
    if (fault === 'reply lost') await does();
    if (fault === 'hangs, then done') {
      void clock.sleep('700ms').then(does);
      return new Promise(() => {});
    }
    throw error('unknown');
  }
  const store: Store = {
    read: (key, options) => around(() => inner.read(key, options)),
    write: (key, value, options) => around(() => inner.write(key, value, options)),
    remove: (key, options) => around(() => inner.remove(key, options)),
  };
  const settings = { clock, onLost, lease: 3_000, random: () => 0.5 };
  return {
    clock,
    once: idempotency({ store, ...settings }),
    healthy: idempotency({ store: inner, ...settings }),
    verbs: () => verb,
  };
}

describe.each(['rerun', 'refuse'] as const)('idempotency with %s, while the store', (onLost) => {
  it.each(faults.flatMap((fault) => lasts.map(([words, length]) => [fault, words, length] as const)))(
    'fails (%s) for %s, wherever it begins,',
    async (fault, _, length) => {
      for (let from = 1; ; from++) {
        const { clock, once, healthy, verbs } = world(onLost, fault, from, length);
        const where = `${fault} at verb ${from}`;
        let effects = 0;
        const attempts: number[] = [];
        const order = async (handle: Parameters<Parameters<typeof once.run>[1]>[0]) => {
          attempts.push(handle.attempt);
          await handle.phase('reserve', () => 'seat');
          await clock.sleep('2500ms');
          if (handle.signal.aborted) throw handle.signal.reason;
          effects++;
          return 'done';
        };
        let answer: unknown = 'nothing yet';
        const first = once.run('k', order, scope).then(
          (value) => (answer = value),
          (error) => (answer = error),
        );
        await clock.advance('10s');
        await first;
        expect(effects, where).toBeLessThanOrEqual(1);
        if (answer === 'done') expect(effects, where).toBe(1);

        // Whatever happened, one lease later the key is free, done or in doubt, and what must not run twice does not.
        const before = effects;
        await clock.advance('4s');
        let second: unknown;
        const next = healthy.run('k', order, scope).then(
          (value) => (second = value),
          (error) => (second = error),
        );
        await clock.advance('4s');
        await next;
        const code = (second as { code?: string }).code;
        expect(code, where).not.toBe('ERR_IN_FLIGHT');
        if (onLost === 'refuse') expect(effects, where).toBeLessThanOrEqual(1);
        if (second === 'done') expect(effects, where).toBeGreaterThanOrEqual(1);
        else expect(code, where).toBe('ERR_IN_DOUBT');
        // An answer that was given and stored is not made again.
        if (answer === 'done' && length === 1) expect([where, effects]).toEqual([where, before]);
        expect(clock.pendingTimers, where).toBe(0);
        if (from > verbs()) break;
      }
    },
  );
});
