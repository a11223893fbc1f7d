/** The store is cut off at each operation of a request, in every possible way: before it, after it, and without an answer. */
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { memoryStore, type Store, StoreError } from '../../../src/index.js';
import { frameworks, type Service } from './frameworks.js';
import { type RawAnswer, send } from './raw-client.js';

const leaseMs = 400;
const storeTimeoutMs = 100;
const faults = ['refuses', 'loses the reply', 'hangs', 'hangs after it has written'] as const;
type Fault = (typeof faults)[number];

/** Fails at the operation with that number, and reports how many operations there were. */
function cutAt(cut: number, fault: Fault): { readonly store: Store; readonly count: () => number } {
  const inner = memoryStore();
  let operations = 0;
  const through = async <T>(run: () => Promise<T>): Promise<T> => {
    if (++operations !== cut) return run();
    if (fault === 'loses the reply' || fault === 'hangs after it has written') await run();
    if (fault.startsWith('hangs')) return new Promise(() => {});
    const applied = fault === 'refuses' ? 'no' : 'unknown';
    throw new StoreError({ store: 'cut', operation: 'write', reason: 'failed', applied, detail: 'it is cut' });
  };
  const store: Store = {
    read: (...given) => through(() => inner.read(...given)),
    write: (...given) => through(() => inner.write(...given)),
    remove: (...given) => through(() => inner.remove(...given)),
  };
  return { store, count: () => operations };
}

const typeOf = ({ status, body }: RawAnswer) => (status === 409 ? String(JSON.parse(body.toString()).type) : '');

describe.each(frameworks)('with $name, a store that', (framework) => {
  it.each(faults)(
    '%s, at whichever operation, blocks no key for longer than its lease and lets nothing happen twice',
    async (fault) => {
      /** Whether the request has come as far as the operation that fails. */
      const reaches = async (cut: number): Promise<boolean> => {
        let effects = 0;
        const { store, count } = cutAt(cut, fault);
        const service: Service = async ({ record }) => {
          const seat = await record!.phase('reserve', () => 7);
          effects++;
          await record!.seal();
          return { body: `seat ${seat} of ${record!.key}` };
        };
        const given = { store, onLost: 'refuse', lease: leaseMs, storeTimeout: storeTimeoutMs };
        const server = await framework.serve(given, service);
        try {
          const key = `cut at ${cut}`;
          const headers = [['Idempotency-Key', key] as const, ['X-User', 'ann'] as const];
          const ask = () => send(server.port, { path: '/a/1', headers });
          await ask();
          const isReached = count() >= cut;
          const beganMs = performance.now();
          let answer = await ask();
          while (answer.status === 503 || typeOf(answer).endsWith('in-progress')) {
            await sleep(20);
            answer = await ask();
          }
          const what = `${key}: ${answer.status} ${typeOf(answer)}, ${effects} effects`;
          // This includes an allowance for a loaded machine.
          expect(performance.now() - beganMs, what).toBeLessThan(leaseMs + 30_000);
          expect(effects, what).toBeLessThanOrEqual(1);
          if (answer.status === 201) expect([answer.body.toString(), effects], what).toEqual([`seat 7 of ${key}`, 1]);
          else expect(`${answer.status} ${typeOf(answer)}`, what).toMatch(/^500 |(outcome-unknown|result-not-stored)$/);
          const again = await ask();
          expect([again.status, again.body.toString(), effects], what).toEqual([
            answer.status,
            answer.body.toString(),
            effects,
          ]);
          return isReached;
        } finally {
          await server.close();
        }
      };
      const reached = await Promise.all([1, 2, 3, 4, 5].map(reaches));
      // Begin, phase, seal and end have all been cut off.
      expect(reached.slice(0, 4)).toEqual([true, true, true, true]);
    },
    180_000,
  );
});
