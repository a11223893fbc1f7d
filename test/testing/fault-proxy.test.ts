import { once } from 'node:events';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { OptionsError } from 'holdfast';
import { type FaultProxy, faultProxy, type ProxyFault } from 'holdfast/testing';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';

/** Answers every line with the same line in capitals, and remembers what it was sent. */
let server: Server;
let heard: string;
let atServer: Socket[];
let proxy: FaultProxy;

beforeEach(async () => {
  heard = '';
  atServer = [];
  server = createServer({ allowHalfOpen: true }, (socket) => {
    atServer.push(socket);
    socket.on('error', () => {});
    socket.on('data', (data) => {
      heard += data;
      socket.write(`${data}`.toUpperCase());
    });
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  proxy = await faultProxy({ port: (server.address() as { port: number }).port });
});

afterEach(async () => {
  await proxy.close();
  for (const socket of atServer) socket.destroy();
  server.close();
});

interface Client {
  readonly socket: Socket;
  /** The text that has arrived. */
  text: string;
  /** `'open'`, `'end'`, or the code of an error. */
  state: string;
}

async function client(): Promise<Client> {
  const socket = connect(proxy.port, '127.0.0.1');
  const self: Client = { socket, text: '', state: 'open' };
  socket.on('data', (data) => {
    self.text += data;
  });
  socket.on('end', () => {
    self.state = 'end';
  });
  socket.on('error', (error) => {
    self.state = (error as { code?: string }).code ?? 'error';
  });
  await new Promise<unknown>((resolve) => socket.once('connect', resolve).once('close', resolve));
  return self;
}

function soon(claim: () => void): Promise<unknown> {
  return vi.waitFor(claim, { interval: 2, timeout: 60_000 });
}

describe('faultProxy', () => {
  it('passes everything on when nothing is wrong, the end included', async () => {
    const one = await client();
    const large = 'x'.repeat(3_000_000);
    one.socket.end(large);
    await soon(() => expect(one.text.length).toBe(large.length));
    expect(one.text).toBe(large.toUpperCase());
    expect(proxy.connections).toBe(1);
    atServer[0]!.end();
    await soon(() => expect(one.state).toBe('end'));
    await soon(() => expect(proxy.connections).toBe(0));
  });

  it('delays both ways, in order, also after it was healed', async () => {
    const one = await client();
    await proxy.inject({ kind: 'latency', delay: 40 });
    const beganMs = performance.now();
    one.socket.write('a');
    await sleep(10);
    one.socket.write('b');
    await proxy.heal();
    one.socket.write('c');
    await soon(() => expect(one.text).toBe('ABC'));
    expect(performance.now() - beganMs).toBeGreaterThanOrEqual(39);
  });

  it('delays one direction only, where one is named', async () => {
    const one = await client();
    await proxy.inject({ kind: 'latency', delay: '60ms', direction: 'replies' });
    const beganMs = performance.now();
    one.socket.write('a');
    await soon(() => expect(heard).toBe('a'));
    expect(one.text).toBe('');
    await soon(() => expect(one.text).toBe('A'));
    expect(performance.now() - beganMs).toBeGreaterThanOrEqual(59);
  });

  it('lets replies through a few bytes at a time', async () => {
    const one = await client();
    await proxy.inject({ kind: 'drip', bytes: 3, every: 60, direction: 'replies' });
    const sizes: number[] = [];
    one.socket.on('data', (data: Buffer) => sizes.push(data.length));
    const beganMs = performance.now();
    one.socket.write('abcdefghi');
    await soon(() => expect(one.text).toBe('ABCDEFGHI'));
    expect(performance.now() - beganMs).toBeGreaterThanOrEqual(179);
    expect(sizes.length).toBeGreaterThan(1);
  });

  it('cuts after so many bytes of replies, with a reset', async () => {
    const one = await client();
    await proxy.inject({ kind: 'cut', afterBytes: 5, direction: 'replies' });
    one.socket.write('abc');
    await soon(() => expect(one.text).toBe('ABC'));
    one.socket.write('def');
    await soon(() => expect(one.state).toBe('ECONNRESET'));
    expect('ABCDE').toContain(one.text);
    expect(heard).toBe('abcdef');
  });

  it('cuts when the last of these bytes has come, and does not wait for another one', async () => {
    await proxy.inject({ kind: 'cut', afterBytes: 3, direction: 'replies' });
    const one = await client();
    one.socket.write('abc');
    await soon(() => expect(one.state).toBe('ECONNRESET'));
    expect('ABC').toContain(one.text);
  });

  it('loses the reply to a request that was heard, or the request itself', async () => {
    await proxy.inject({ kind: 'cut', afterBytes: 0, direction: 'replies' });
    const one = await client();
    one.socket.write('a');
    await soon(() => expect(one.state).toBe('ECONNRESET'));
    expect([heard, one.text]).toEqual(['a', '']);
    await proxy.inject({ kind: 'cut', afterBytes: 0, direction: 'requests' });
    const other = await client();
    other.socket.write('b');
    await soon(() => expect(other.state).toBe('ECONNRESET'));
    expect(heard).toBe('a');
  });

  it('holds everything back in a blackhole, and lets it through afterwards', async () => {
    const one = await client();
    await proxy.inject({ kind: 'blackhole' });
    const other = await client();
    one.socket.write('a');
    other.socket.write('b');
    await sleep(30);
    expect([heard, one.state, other.state]).toEqual(['', 'open', 'open']);
    await proxy.heal();
    await soon(() => expect([one.text, other.text]).toEqual(['A', 'B']));
  });

  it('leaves connections half open: the server is told, the client is not, until it is healed', async () => {
    const one = await client();
    one.socket.write('a');
    await soon(() => expect(one.text).toBe('A'));
    await proxy.inject({ kind: 'half-open' });
    await soon(() => expect(atServer[0]!.readableEnded || atServer[0]!.destroyed).toBe(true));
    one.socket.write('b');
    await sleep(20);
    expect([heard, one.state]).toEqual(['a', 'open']);
    await proxy.heal();
    await soon(() => expect(one.state).toBe('ECONNRESET'));
    const next = await client();
    next.socket.write('c');
    await soon(() => expect(next.text).toBe('C'));
  });

  it('refuses connections, and takes them again on the same port', async () => {
    const { port } = proxy;
    const one = await client();
    await proxy.inject({ kind: 'refuse' });
    await soon(() => expect(one.state).toBe('ECONNRESET'));
    expect((await client()).state).toBe('ECONNREFUSED');
    await proxy.heal();
    expect(proxy.port).toBe(port);
    const next = await client();
    next.socket.write('a');
    await soon(() => expect(next.text).toBe('A'));
  });

  it('has a port that the system gives to nobody while connections are refused', () => {
    expect(proxy.port).toBeGreaterThanOrEqual(20_000);
    expect(proxy.port).toBeLessThan(32_000);
  });

  it('takes another port where one is taken', async () => {
    // In the middle of the share that belongs to the port: at its lower end, rounding would give the port before it for one port in eighteen.
    using tried = vi.spyOn(Math, 'random').mockReturnValueOnce((proxy.port - 20_000 + 0.5) / 12_000);
    const other = await faultProxy({ port: proxy.port });
    expect(tried).toHaveBeenCalledTimes(2);
    expect(other.port).not.toBe(proxy.port);
    await other.close();
  });

  it('fails to come back where its port is taken, and comes back when it is free', async () => {
    await proxy.inject({ kind: 'refuse' });
    const thief = createServer();
    // A process that another test file has just spawned may hold the port for a moment.
    await vi.waitFor(() => once(thief.listen(proxy.port, '127.0.0.1'), 'listening'), { timeout: 60_000 });
    await expect(proxy.heal()).rejects.toThrow('EADDRINUSE');
    thief.close();
    await once(thief, 'close');
    await proxy.heal();
    expect((await client()).state).toBe('open');
  });

  it('resets what is open, once', async () => {
    const one = await client();
    proxy.reset();
    await soon(() => expect(one.state).toBe('ECONNRESET'));
    const next = await client();
    next.socket.write('a');
    await soon(() => expect(next.text).toBe('A'));
  });

  it('resets its clients when the server is not there, and when it is closed', async () => {
    const one = await client();
    await soon(() => expect(atServer.length).toBe(1));
    for (const socket of atServer) socket.resetAndDestroy();
    await soon(() => expect(one.state).toBe('ECONNRESET'));
    const open = await client();
    await soon(() => expect(atServer.length).toBe(2));
    server.close();
    const late = await client();
    await soon(() => expect(late.state).toBe('ECONNRESET'));
    expect(open.state).toBe('open');
    await proxy.close();
    await proxy.close();
    // The port may belong to somebody else by now, so nobody may connect to it.
    await soon(() => expect(open.state).toBe('ECONNRESET'));
    await expect(proxy.inject({ kind: 'refuse' })).rejects.toThrow('the proxy is closed');
  });

  it('refuses bad options and bad faults', async () => {
    await expect(faultProxy({ port: 0 })).rejects.toThrow(OptionsError);
    await expect(faultProxy({ port: 1, host: '' })).rejects.toThrow('"host"');
    const bad: readonly [unknown, string][] = [
      [undefined, '"kind"'],
      [{ kind: 'flood' }, '"kind"'],
      [{ kind: 'latency' }, '"delay"'],
      [{ kind: 'drip', bytes: 0, every: 5 }, '"bytes"'],
      [{ kind: 'cut', afterBytes: -1 }, '"afterBytes"'],
      [{ kind: 'blackhole', direction: 'up' }, '"direction"'],
      [{ kind: 'refuse', direction: 'both' }, 'unknown option "direction"'],
    ];
    for (const [fault, text] of bad) await expect(proxy.inject(fault as ProxyFault)).rejects.toThrow(text);
  });
});
