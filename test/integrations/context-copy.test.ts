/** This test is separate from `context.test.ts` because it loads the package a second time. */
import { describe, expect, it, vi } from 'vitest';
import { currentCall, enableContext } from '../../src/integrations/context.js';

const place = Symbol.for('holdfast.context');
const cell = (globalThis as unknown as { [place]: { ambient: object | undefined } })[place];

describe('the context', () => {
  it('is the same one for a second enableContext, and for another copy of the package', async () => {
    enableContext();
    const first = cell.ambient;
    enableContext();
    vi.resetModules();
    const copy = await import('../../src/integrations/context.js');
    const { pipeline: pipelineOfCopy } = await import('../../src/index.js');
    expect(copy.enableContext).not.toBe(enableContext);
    copy.enableContext();
    expect(cell.ambient).toBe(first);
    const seen = await pipelineOfCopy().execute((call) => [currentCall() === call, copy.currentCall() === call]);
    expect(seen).toEqual([true, true]);
  });
});
