import { Server } from 'node:net';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { Page } from '../../../src/cli/demo/page.js';

describe('Page', () => {
  afterEach(() => vi.restoreAllMocks());

  it('that finds no port rejects, so that the demo ends what it has started', async () => {
    const noPort = new Error('no port');
    vi.spyOn(Server.prototype, 'listen').mockImplementation(function (this: Server) {
      queueMicrotask(() => this.emit('error', noPort));
      return this;
    } as never);
    await expect(Page.open(() => {})).rejects.toBe(noPort);
  });
});
