import { describe, expect, it } from 'vitest';
import { acts } from '../../../src/cli/demo/acts.js';
import { Gauge, isBetter } from '../../../src/cli/demo/figures.js';
import type { Path } from '../../../src/cli/demo/shop.js';
import { figuresOf } from '../../../src/cli/demo/table.js';
import { quietWorld } from './quiet-world.js';

/** An act in which nothing happens, and a path that can or cannot serve its users. */
function worldOf(isServed: (path: Path) => boolean, more: Parameters<typeof quietWorld>[0] = {}) {
  const world = quietWorld({
    ask: async (path) => isServed(path) || Promise.reject(new Error('refused')),
    ...more,
  });
  const play = async (name: string, ms = 1_500) => {
    const act = acts.find((one) => one.name === name)!;
    const gauge = await Gauge.begin(world);
    await act.play({ world, visitors: gauge.visitors, ms });
    return gauge.read(act.measures);
  };
  return { clock: world.clock, play };
}

describe('an act of the demo', () => {
  it.each([
    ['hot key', 'loads per expiry'],
    ['spike', 'slowest of 99 % of those served'],
  ])('%s has no merit in "%s" where nobody was served', async (act, what) => {
    const figuresWhere = async (isServed: (path: Path) => boolean) => {
      const { clock, play } = worldOf(isServed);
      const played = play(act);
      await clock.advance('10s');
      const row = (await played).find((one) => one.what === what)!;
      return { isBetter: isBetter(row), line: figuresOf([row], 80)[1] };
    };
    const none = await figuresWhere(() => false);
    expect(none).toEqual({ isBetter: false, line: expect.stringMatching(/none served +none served$/) });
    expect(await figuresWhere((path) => path === 'naked')).toMatchObject({ isBetter: false });
    expect(await figuresWhere((path) => path === 'protected')).toMatchObject({ isBetter: true });
    expect(await figuresWhere(() => true)).toMatchObject({ isBetter: true });
  });

  it('is not rejected by a user who is interrupted while he waits for his next try', async () => {
    const { clock, play } = worldOf(() => false, {
      sleep: (ms) => (ms === 250 ? Promise.reject(new Error('SIGINT received')) : clock.sleep(ms)),
    });
    const played = play('kill -9');
    await clock.advance('20s');
    expect(await played).toHaveLength(2);
  });

  it('ends with what interrupts it, also while a worker is to be killed', async () => {
    const stop = new Error('SIGINT received');
    const { play } = worldOf(() => true, { sleep: () => Promise.reject(stop) });
    await expect(play('kill -9', 8_000)).rejects.toBe(stop);
  });
});

describe('Gauge', () => {
  it('does not count users who wait as lost while an act plays', async () => {
    const world = quietWorld({ ask: () => new Promise(() => {}) });
    const gauge = await Gauge.begin(world);
    const { play, measures } = acts.find(({ name }) => name === 'kill -9')!;
    const played = play({ world, visitors: gauge.visitors, ms: 1_000 });
    await world.clock.advance('1s');
    expect(gauge.visitors.naked.waiting).toBeGreaterThan(0);
    expect((await gauge.read(measures)).map((row) => row.naked)).toEqual([0, 0]);
    void played;
  });

  it('measures only what happened since the act began', async () => {
    let doubled = 3;
    const world = quietWorld({ doubled: () => doubled });
    const gauge = await Gauge.begin(world);
    doubled = 5;
    const { measures } = acts.find(({ name }) => name === 'double click')!;
    expect(await gauge.read(measures)).toMatchObject([{ what: 'cards charged twice', naked: 2, protected: 2 }]);
  });
});

describe('isBetter', () => {
  it('forgives nothing in what must never happen', () => {
    const row = { what: 'cards charged twice', unit: 'count', aim: 'none', cause: '' } as const;
    expect(isBetter({ ...row, naked: 40, protected: 1 })).toBe(false);
    expect(isBetter({ ...row, naked: 0, protected: 0 })).toBe(true);
  });
});
