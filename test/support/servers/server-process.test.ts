import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, rmSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { redisProgram, startRedis } from './redis.ts';
import { ServerProcess } from './server-process.ts';

const program = await redisProgram();

describe.skipIf(program === undefined)('ServerProcess', () => {
  it('starts, answers, and leaves nothing behind', async () => {
    const server = await startRedis(program!);
    expect(await server.ask('PING')).toBe('+PONG\r\n');
    await server.dispose();
    expect(server.isRunning).toBe(false);
    expect(existsSync(server.folder)).toBe(false);
    await server.dispose();
  });

  it('answers nothing while it is frozen, and goes on when it wakes', async () => {
    const server = await startRedis(program!);
    server.freeze();
    const answer = server.ask('PING');
    const silent = await Promise.race([answer, new Promise((resolve) => setTimeout(resolve, 100, 'silent'))]);
    expect(silent).toBe('silent');
    server.wake();
    expect(await answer).toBe('+PONG\r\n');
    server.freeze();
    await server.dispose();
  });

  it('says that a question was not answered when the server closes the connection', async () => {
    const server = await startRedis(program!);
    const answer = server.ask('BLPOP nothing 0').catch((error: unknown) => `${error}`);
    await expect.poll(() => server.ask('INFO clients')).toContain('blocked_clients:1');
    await server.ask('CLIENT KILL TYPE normal');
    expect(await answer).toContain('closed before an answer');
    await server.dispose();
  });

  it('comes back on its port after it was killed, or stopped', async () => {
    const server = await startRedis(program!);
    for (const end of [() => server.kill(), () => server.stop()]) {
      await end();
      await expect(server.ask('PING')).rejects.toThrow('ECONNREFUSED');
      await server.start();
      expect(await server.ask('PING')).toBe('+PONG\r\n');
    }
    await server.dispose();
  });

  it('has two ports, which neither the system nor a fault proxy gives to others while it is away', async () => {
    const server = await startRedis(program!);
    expect(server.port % 2).toBe(0);
    expect(server.port).toBeGreaterThanOrEqual(10_000);
    expect(server.port).toBeLessThan(20_000);
    await server.dispose();
  });

  it('says what went wrong when it cannot be started, with the log', async () => {
    await expect(startRedis(program!, ['--no-such-setting', '1'])).rejects.toThrow(
      /it ended with 1[\s\S]*no-such-setting/i,
    );
    const ping = { request: 'PING', answer: '+PONG' };
    const missing = { name: 'none', program: { file: '/no/such/program', env: {} }, args: () => [], ping };
    await expect(ServerProcess.start(missing)).rejects.toThrow(/it ended with|it could not be started/);
  });

  it.runIf(process.platform === 'linux')('dies with the process that has started it, however that ends', async () => {
    const script = `
      import { redisProgram, startRedis } from ${JSON.stringify(new URL('redis.ts', import.meta.url).href)};
      const server = await startRedis(await redisProgram());
      console.log(server.child.pid, server.folder);
      setInterval(() => {}, 1000);`;
    const parent = spawn(process.execPath, ['--no-warnings', '--input-type=module', '-e', script], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const [output] = await once(parent.stdout!, 'data');
    const [word, folder] = `${output}`.trim().split(' ');
    const pid = Number(word);
    expect(isAlive(pid)).toBe(true);
    parent.kill('SIGKILL');
    await expect.poll(() => isAlive(pid), { interval: 5 }).toBe(false);
    rmSync(folder!, { recursive: true });
  });
});

/** A dead process stays a zombie if its parent does not reap it. */
function isAlive(pid: number): boolean {
  try {
    return !/^State:\s*[ZX]/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
}
