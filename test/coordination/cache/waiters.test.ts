import { describe, expect, it } from 'vitest';
import { Waiters } from '../../../src/coordination/cache/waiters.js';

/** The waiters of a flight, and the reasons for which it was aborted. */
function setUp(isPinned = false) {
  const aborts: unknown[] = [];
  const waiters = new Waiters<number>({ abort: (reason) => void aborts.push(reason) }, isPinned);
  const caller = () => {
    const controller = new AbortController();
    const answer = waiters.join(controller.signal).catch((error: unknown) => error);
    return { answer, leave: (reason: unknown) => controller.abort(reason) };
  };
  return { aborts, waiters, caller };
}

describe('waiters of a flight', () => {
  it('abort the flight when the last of them has gone, with its reason, and not before', async () => {
    const { aborts, caller } = setUp();
    const [one, other] = [caller(), caller()];
    one.leave('first');
    expect(aborts).toEqual([]);
    other.leave('last');
    expect(aborts).toEqual(['last']);
    expect([await one.answer, await other.answer]).toEqual(['first', 'last']);
  });

  it('let one leave without affecting the others', async () => {
    const { waiters, caller } = setUp();
    const [one, other] = [caller(), caller()];
    one.leave('gone');
    waiters.settle(7);
    expect([await one.answer, await other.answer]).toEqual(['gone', 7]);
  });

  it('never abort it while one waits without a signal, or when it goes on by itself', async () => {
    const { aborts, waiters, caller } = setUp();
    const patient = waiters.join(undefined);
    caller().leave('gone');
    const background = setUp(true);
    background.caller().leave('gone');
    expect([aborts, background.aborts]).toEqual([[], []]);
    waiters.settle(7);
    expect(await patient).toBe(7);
  });

  it('never abort a load that goes on after an answer, even when later callers leave', async () => {
    const { aborts, waiters, caller } = setUp();
    const early = caller();
    waiters.settle(1);
    waiters.open();
    const late = caller();
    late.leave('gone');
    expect([await early.answer, await late.answer, aborts]).toEqual([1, 'gone', []]);
  });

  it('do not count a caller whose signal has already aborted', async () => {
    const { aborts, waiters, caller } = setUp();
    const one = caller();
    await expect(waiters.join(AbortSignal.abort('late'))).rejects.toBe('late');
    expect(aborts).toEqual([]);
    one.leave('gone');
    expect(aborts).toEqual(['gone']);
  });

  it('all get the error of a failure', async () => {
    const { waiters, caller } = setUp();
    const one = caller();
    expect(waiters.isSettled).toBe(false);
    waiters.fail('down');
    expect([waiters.isSettled, await one.answer]).toEqual([true, 'down']);
  });
});
