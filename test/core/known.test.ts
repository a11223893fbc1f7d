import { describe, expect, it } from 'vitest';
import { known, knownOf } from '../../src/core/known.js';

describe('known', () => {
  it('is a promise like any other, and exposes its value before it is awaited', async () => {
    const value = { ok: true };
    const promise = known(value);
    expect(knownOf(promise)).toBe(value);
    expect(await promise).toBe(value);
  });

  it('is not inherited by derived promises', async () => {
    const promise = known({ ok: true });
    const through = async () => promise;
    for (const other of [promise.then((value) => value), through(), Promise.resolve({ ok: true })]) {
      expect(knownOf(other)).toBeUndefined();
      expect(await other).toEqual({ ok: true });
    }
  });
});
