import { describe, expect, it } from 'vitest';
import { idempotency, memoryStore } from '../../../src/index.js';

describe('idempotency', () => {
  it('runs an operation once per key and answers what it answered', async () => {
    const once = idempotency({ store: memoryStore() });
    let runs = 0;
    const pay = () => once.run('order 1', async () => ({ paid: ++runs }), { scope: 'shop' });
    expect([await pay(), await pay()]).toEqual([{ paid: 1 }, { paid: 1 }]);
  });

  it('gives adapters a handle, and the bytes they stored', async () => {
    const once = idempotency({ store: memoryStore() });
    const request = { scope: 'a', operation: 'POST /orders', key: 'k' };
    const begun = await once.begin(request);
    if (begun.kind !== 'run') throw new Error(begun.kind);
    expect(await once.begin(request)).toMatchObject({ kind: 'busy' });
    expect(await begun.handle.complete(new Uint8Array([1, 2, 3]))).toBe('stored');
    expect(await once.begin(request)).toMatchObject({ kind: 'replay', result: new Uint8Array([1, 2, 3]) });
  });
});
