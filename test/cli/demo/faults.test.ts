import { describe, expect, it } from 'vitest';
import { Buttons } from '../../../src/cli/demo/faults.js';
import { quietWorld } from './quiet-world.js';

describe('Buttons', () => {
  it('tell that one was pressed, until the next act', async () => {
    const buttons = new Buttons(quietWorld());
    await buttons.reset();
    expect(buttons.wasPressed).toBe(false);
    buttons.press('slow');
    expect(buttons.wasPressed).toBe(true);
    await buttons.reset();
    expect(buttons.wasPressed).toBe(false);
  });

  it('let the next act wait for the worker that they killed', async () => {
    const world = quietWorld({ killWorker: (_, downMs) => world.sleep(downMs) });
    const buttons = new Buttons(world);
    buttons.press('kill');
    let isReset = false;
    const reset = buttons.reset().then(() => {
      isReset = true;
    });
    await world.clock.advance(999);
    expect(isReset).toBe(false);
    await world.clock.advance(1);
    await reset;
    expect(buttons.wasPressed).toBe(false);
  });

  it('count what is pressed while the next act is prepared as part of it', async () => {
    const buttons: Buttons = new Buttons(quietWorld({ restartBanks: async () => buttons.press('failing') }));
    await buttons.reset();
    expect(buttons.wasPressed).toBe(true);
  });

  it('survive that the demo ends while a worker is down', async () => {
    const buttons = new Buttons(quietWorld({ killWorker: () => Promise.reject(new Error('the demo is over')) }));
    buttons.press('kill');
    await buttons.reset();
    expect(buttons.wasPressed).toBe(false);
  });
});
