/** Pipelines of any policies whose operations run through another pipeline, which knows the call around it. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { enableContext } from '../../src/integrations/context.js';
import { forbidUnhandledRejections } from '../support/unhandled-rejections.ts';
import { isAccepted, play, scripts } from './support/any-pipeline.js';

const seed = 46;

enableContext();

forbidUnhandledRejections();

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
