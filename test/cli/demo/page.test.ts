import { once } from 'node:events';
import { request } from 'node:http';
import { connect, Server } from 'node:net';
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

  it('closes in spite of half a request, so that the demo ends', async () => {
    const page = await Page.open(() => {});
    const socket = connect(Number(new URL(page.address).port), '127.0.0.1');
    // The page may reset the connection.
    socket.on('error', () => {});
    socket.write('GET / HTTP/1.1\r\n');
    await once(socket, 'connect');
    await Promise.all([page.close(), once(socket, 'close')]);
  });

  it('obeys its own buttons, and no other site, not even under a name that leads to this machine', async () => {
    const pressed: string[] = [];
    const page = await Page.open((fault) => pressed.push(fault));
    const { host, port } = new URL(page.address);
    const press = async (headers: Record<string, string>) => {
      const [response] = await once(
        request(`${page.address}faults/kill`, { method: 'POST', headers: { ...headers, connection: 'close' } }).end(),
        'response',
      );
      return response.resume().statusCode;
    };
    expect(await press({ host, origin: `http://${host}` })).toBe(204);
    expect(await press({ host: `localhost:${port}`, origin: `http://localhost:${port}` })).toBe(204);
    expect(await press({ host })).toBe(204);
    expect(await press({ host, origin: 'http://evil.example' })).toBe(405);
    expect(await press({ host: `evil.example:${port}`, origin: `http://evil.example:${port}` })).toBe(405);
    expect(pressed).toEqual(['kill', 'kill', 'kill']);
    await page.close();
  });
});
