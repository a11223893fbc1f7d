/** Pipelines of any policies whose operations run through another pipeline, which knows the call around it. */
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { enableContext } from '../../src/integrations/context.js';
import { isAccepted, play, scripts } from './support/any-pipeline.js';

const seed = 46;

enableContext();

let unhandled: unknown[] = [];
const noteUnhandled = (error: unknown) => void unhandled.push(error);

beforeEach(() => {
  unhandled = [];
  process.on('unhandledRejection', noteUnhandled);
});

afterEach(async () => {
  await new Promise(setImmediate);
  process.off('unhandledRejection', noteUnhandled);
  expect(unhandled).toEqual([]);
});

describe('pipeline, inside an operation of another one', () => {
  it('settles each call once and in time, keeps every limit, and leaves nothing', async () => {
    await fc.assert(
      fc.asyncProperty(scripts(1, 4, 0), scripts(1, 1, 0), async (script, inner) => {
        fc.pre(isAccepted(script) && isAccepted(inner));
        expect((await play(script, { nested: inner.policies })).faults).toEqual([]);
      }),
      { seed, numRuns: 1_500 },
    );
  });
});
