/**
 * Pipelines of any policies in any accepted order, for calls that meet in them, with operations, aborts, deadlines and hooks of every kind. Each call settles
 * once and on time, every limit holds, and nothing is left.
 */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { forbidUnhandledRejections } from '../support/unhandled-rejections.ts';
import { isAccepted, type Played, play, type Script, scripts } from './support/any-pipeline.js';

const seed = 45;

forbidUnhandledRejections();

async function holds(check: (script: Script) => Promise<void>, numRuns: number, minCalls = 1, maxCalls = 6) {
  await fc.assert(
    fc.asyncProperty(scripts(minCalls, maxCalls, 0), async (script) => {
      fc.pre(isAccepted(script));
      await check(script);
    }),
    { seed, numRuns },
  );
}

describe('pipeline, of any policies in any order that it accepts', () => {
  it('settles each call once and in time, keeps every limit, and leaves nothing', async () => {
    await holds(async (script) => {
      expect((await play(script)).faults).toEqual([]);
    }, 2_500);
  });

  it('does so for a single call, whose every event may end it', async () => {
    await holds(
      async (script) => {
        expect((await play(script)).faults).toEqual([]);
      },
      1_500,
      1,
      1,
    );
  });

  it('tells by execute what it tells by attempt, at the same instant and after the same attempts', async () => {
    const view = ({ outcomes, starts, permits }: Played) => ({
      starts,
      permits,
      outcomes: outcomes.map(({ outcome, ...rest }) => ({
        ...rest,
        ok: outcome?.ok,
        value: outcome?.ok ? outcome.value : String(outcome?.error),
      })),
    });
    await holds(async (script) => {
      expect(view(await play(script, { way: 'execute' }))).toEqual(view(await play(script)));
    }, 400);
  });
});
