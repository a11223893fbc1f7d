import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it, vi } from 'vitest';
import { Child } from '../../../src/cli/demo/processes.js';

const folder = mkdtempSync(join(tmpdir(), 'holdfast-processes-'));
afterAll(() => rmSync(folder, { recursive: true }));

let scripts = 0;
/** A child that runs these statements. */
function childOf(statements: string) {
  const file = join(folder, `${scripts++}.mjs`);
  writeFileSync(file, statements);
  const onLost = vi.fn<(error: Error) => void>();
  return { child: new Child<number>({ name: 'worker', file, settings: {}, onLost }), onLost };
}

const { signal } = new AbortController();
const ready = "process.send({ kind: 'ready', value: 1 });";
const stays = `${ready} process.on('message', () => {});`;

describe('Child', () => {
  it('answers what it is asked', async () => {
    const { child } = childOf(
      `${ready} process.on('message', ({ id, message }) => process.send({ kind: 'reply', id, value: message + 1 }));`,
    );
    expect((await child.opened(signal)).ready).toBe(1);
    expect(await child.ask(4)).toBe(5);
    await child.kill();
  });

  it('rejects what it was asked and is asked when it ends, and reports why', async () => {
    const { child, onLost } = childOf(`${ready} process.on('message', () => process.exit(3));`);
    await child.opened(signal);
    const message = 'worker ended before its time (exit code 3)';
    await expect(child.ask('one')).rejects.toThrow(message);
    await expect(child.ask('two')).rejects.toThrow(message);
    expect(onLost.mock.calls).toEqual([[expect.objectContaining({ message })]]);
  });

  it('rejects what it was asked when it is killed, reports nothing, and is gone then', async () => {
    const { child, onLost } = childOf(stays);
    await child.opened(signal);
    const asked = expect(child.ask('one')).rejects.toThrow('SIGKILL');
    await child.kill();
    await asked;
    await child.kill();
    expect(onLost).not.toHaveBeenCalled();
  });

  it('can be killed before it is ready', async () => {
    const { child, onLost } = childOf('setInterval(() => {}, 1_000);');
    await child.kill();
    expect(onLost).not.toHaveBeenCalled();
  });

  it('reports that it could not be started', async () => {
    const execPath = process.execPath;
    process.execPath = join(folder, 'absent');
    const { child, onLost } = childOf(stays);
    process.execPath = execPath;
    await expect(child.opened(signal)).rejects.toThrow('ENOENT');
    expect(onLost).toHaveBeenCalledOnce();
    await child.kill();
  });
});
