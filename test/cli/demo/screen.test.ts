import { afterEach, describe, expect, it, vi } from 'vitest';
import { screenOn } from '../../../src/cli/demo/screen.js';

function terminal(columns: number | undefined, isTTY = true, rows = 24) {
  let written = '';
  const write = (text: string) => {
    written += text;
    return true;
  };
  return { screen: screenOn({ isTTY, columns, rows, write } as NodeJS.WriteStream), written: () => written };
}

afterEach(() => vi.unstubAllEnvs());

describe('screenOn', () => {
  it.each([
    ['a narrow terminal', 40, 39],
    ['a terminal that does not know its width', 0, 79],
    ['a terminal that says nothing of it', undefined, 79],
  ])('cuts what is redrawn to one row: %s', (_, columns, length) => {
    vi.stubEnv('TERM', 'xterm');
    const { screen, written } = terminal(columns);
    screen.live(['x'.repeat(200)]);
    expect(written()).toBe(`${'x'.repeat(length)}\n`);
  });

  it('clears the rows that it has drawn, and no more, before it prints what stays', () => {
    vi.stubEnv('TERM', 'xterm');
    const { screen, written } = terminal(80);
    screen.live(['one', 'two']);
    screen.print('stays');
    screen.print('stays, too');
    expect(written()).toBe('one\ntwo\n\x1b[2A\x1b[Jstays\nstays, too\n');
  });

  it('redraws no more lines than the terminal has, because it could not clear them', () => {
    vi.stubEnv('TERM', 'xterm');
    const { screen, written } = terminal(80, true, 3);
    screen.live(['one', 'two', 'three', 'four']);
    screen.live([]);
    expect(written()).toBe('one\ntwo\n\x1b[2A\x1b[J');
  });

  it('breaks what stays between words, and indents what follows', () => {
    const { screen, written } = terminal(21);
    screen.print('  a lock owner freezes for long', 'http://127.0.0.1:12345/', '');
    expect(written()).toBe('  a lock owner\n    freezes for long\nhttp://127.0.0.1:12345/\n\n');
  });

  it('redraws nothing and breaks nothing where there is no terminal', () => {
    const { screen, written } = terminal(undefined, false);
    screen.live(['one']);
    screen.print('two '.repeat(50));
    expect(written()).toBe(`${'two '.repeat(50)}\n`);
  });
});
