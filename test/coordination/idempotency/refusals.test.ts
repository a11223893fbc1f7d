import { describe, expect, it } from 'vitest';
import { checkRefusals } from '../../../src/coordination/idempotency/refusals.js';

describe('checkRefusals', () => {
  it('allows two hundred refused writes in a row, and reports the store as busy at the next', () => {
    for (const refusals of [1, 200]) expect(() => checkRefusals(refusals)).not.toThrow();
    let thrown: unknown;
    try {
      checkRefusals(201);
    } catch (error) {
      thrown = error;
    }
    expect(thrown).toMatchObject({ code: 'ERR_STORE', operation: 'write', reason: 'busy', applied: 'no' });
    expect((thrown as Error).message).toContain('others came first 201 times in a row');
  });
});
