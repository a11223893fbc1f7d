import { describe, expect, it } from 'vitest';
import { handlesThrows, judge, rejectLater } from '../../src/core/outcome.js';
import { HandlesError, type Outcome } from '../../src/index.js';
import { unhandledRejectionsOf } from '../support/unhandled-rejections.ts';

const value: Outcome = { ok: true, value: 1 };
const down = new Error('down');
const failure: Outcome = { ok: false, error: down };

function thrownBy(task: () => unknown): unknown {
  try {
    task();
  } catch (error) {
    return error;
  }
  throw new Error('nothing was thrown');
}

describe('handlesThrows', () => {
  it('counts a throw as a failure and any value as a success', () => {
    expect([handlesThrows(failure), handlesThrows(value), handlesThrows({ ok: true, value: down })]).toEqual([
      ...[true, false, false],
    ]);
  });
});

describe('judge', () => {
  it('returns the result of the predicate, which receives the outcome', () => {
    const shown: Outcome[] = [];
    const handles = (answer: boolean) => (outcome: Outcome) => {
      shown.push(outcome);
      return answer;
    };
    expect([judge(handles(true), value, 'retry'), judge(handles(false), failure, 'retry')]).toEqual([true, false]);
    expect(shown).toEqual([value, failure]);
  });

  it('reports what a predicate threw, and keeps the error of the call, if there is one, as the cause', () => {
    const broken = new Error('broken');
    const throws = () => {
      throw broken;
    };
    expect(thrownBy(() => judge(throws, failure, 'retry'))).toMatchObject({
      ...{ code: 'ERR_HANDLES_FAILED', policy: 'retry', thrown: broken, cause: down },
    });
    const error = thrownBy(() => judge(throws, value, 'retry'));
    expect(error).toBeInstanceOf(HandlesError);
    expect(error).toMatchObject({ thrown: broken, cause: broken });
  });

  it.each<[unknown, string]>([
    [undefined, 'undefined'],
    [1, 'number'],
    [Promise.resolve(true), 'a promise'],
  ])('refuses %s, which is neither true nor false', (answer, named) => {
    expect(thrownBy(() => judge(() => answer as boolean, value, 'retry'))).toMatchObject({
      message: `"retry": its "handles" function failed: it must answer true or false at once, not ${named}`,
    });
  });

  it('leaves no unhandled rejection of a promise that it refuses', async () => {
    const answers = () => Promise.reject(down) as unknown as boolean;
    expect(await unhandledRejectionsOf(() => thrownBy(() => judge(answers, value, 'retry')))).toEqual([]);
  });
});

describe('rejectLater', () => {
  it('rejects with the given error, and is reported if nobody handles it', async () => {
    await expect(rejectLater(down)).rejects.toBe(down);
    expect(await unhandledRejectionsOf(() => void rejectLater(down))).toEqual([down]);
  });
});
