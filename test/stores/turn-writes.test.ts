/** Everything that is written to one socket in one turn is sent together. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { describe, expect, it, vi } from 'vitest';
import { TurnWrites } from '../../src/stores/turn-writes.js';

function socket() {
  const calls: string[] = [];
  return { calls, cork: () => void calls.push('cork'), uncork: () => void calls.push('uncork') };
}

describe('TurnWrites', () => {
  it('holds a socket once in a turn, and releases it at its end', async () => {
    const turn = new TurnWrites();
    const one = socket();
    for (let write = 0; write < 3; write++) turn.hold(one);
    expect(one.calls).toEqual(['cork']);
    await nextTurn();
    expect(one.calls).toEqual(['cork', 'uncork']);
    turn.hold(one);
    await nextTurn();
    expect(one.calls).toEqual(['cork', 'uncork', 'cork', 'uncork']);
  });

  it('releases the socket that it holds, even if the client has another by then', async () => {
    const turn = new TurnWrites();
    const [old, fresh] = [socket(), socket()];
    turn.hold(old);
    turn.hold(fresh);
    await nextTurn();
    expect([old.calls, fresh.calls]).toEqual([['cork', 'uncork'], []]);
  });

  it('releases it in a test with fake timers', async () => {
    vi.useFakeTimers();
    const turn = new TurnWrites();
    const one = socket();
    try {
      turn.hold(one);
    } finally {
      vi.useRealTimers();
    }
    await nextTurn();
    expect(one.calls).toEqual(['cork', 'uncork']);
  });

  it('holds nothing on a platform that does not report the end of a turn', async () => {
    vi.stubGlobal('setImmediate', undefined);
    vi.resetModules();
    try {
      const fresh = await import('../../src/stores/turn-writes.js');
      const one = socket();
      new fresh.TurnWrites().hold(one);
      expect(one.calls).toEqual([]);
    } finally {
      vi.unstubAllGlobals();
      vi.resetModules();
    }
  });

  it('leaves anything but a socket alone', () => {
    const turn = new TurnWrites();
    for (const none of [undefined, null, {}, { cork() {} }]) expect(() => turn.hold(none)).not.toThrow();
  });
});
