import { describe, expect, it } from 'vitest';
import { Gate } from '../../../src/coordination/cache/gate.js';

const idle = new AbortController().signal;

describe('gate of a cache', () => {
  it('lets in up to its limit, and the others one by one in order of arrival', async () => {
    const gate = new Gate(2);
    expect([gate.enter(idle), gate.enter(idle)]).toEqual([undefined, undefined]);
    const inside: string[] = [];
    for (const name of ['one', 'two']) void gate.enter(idle)!.then(() => inside.push(name));
    gate.leave();
    await Promise.resolve();
    expect(inside).toEqual(['one']);
    gate.leave();
    await Promise.resolve();
    expect(inside).toEqual(['one', 'two']);
    for (let leaving = 0; leaving < 2; leaving++) gate.leave();
    expect([gate.enter(idle), gate.enter(idle)]).toEqual([undefined, undefined]);
    expect(gate.enter(idle)).toBeInstanceOf(Promise);
  });

  it('lets a waiter that aborts leave at once, with its reason, and does not count it any more', async () => {
    const gate = new Gate(1);
    void gate.enter(idle);
    const controller = new AbortController();
    const given = gate.enter(controller.signal)!;
    const patient = gate.enter(idle)!;
    controller.abort('enough');
    await expect(given).rejects.toBe('enough');
    gate.leave();
    await patient;
    gate.leave();
    expect(gate.enter(idle)).toBeUndefined();
  });

  it('turns away a signal that has already aborted', async () => {
    const gate = new Gate(1);
    void gate.enter(idle);
    await expect(gate.enter(AbortSignal.abort('enough'))).rejects.toBe('enough');
  });

  it('ignores the signal of a load that is inside', async () => {
    const gate = new Gate(1);
    void gate.enter(idle);
    const controller = new AbortController();
    const inside = gate.enter(controller.signal)!;
    gate.leave();
    await inside;
    const [second, third] = [gate.enter(idle)!, gate.enter(idle)!];
    controller.abort();
    gate.leave();
    await second;
    gate.leave();
    await third;
  });
});
