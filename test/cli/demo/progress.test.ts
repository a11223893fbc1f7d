import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { acts } from '../../../src/cli/demo/acts.js';
import { Gauge } from '../../../src/cli/demo/figures.js';
import { showProgress } from '../../../src/cli/demo/progress.js';
import { screenOn } from '../../../src/cli/demo/screen.js';
import { quietWorld } from './quiet-world.js';

function output(columns?: number) {
  const written: string[] = [];
  const write = (text: string) => written.push(text) > 0;
  const screen = screenOn({ isTTY: columns !== undefined, columns, rows: 24, write } as unknown as NodeJS.WriteStream);
  return { screen, written };
}

/** What was redrawn last: a text of lines, without the codes that clear the lines before. */
const lastDrawn = (written: readonly string[]) => written.at(-1)!.slice(written.at(-1)!.indexOf('J') + 1);

const figures = [
  { what: 'users served', unit: 'percent', naked: 0.9, protected: 75.9 },
  { what: 'lines written by two owners at once', unit: 'count', naked: 889, protected: 0 },
] as const;

describe('showProgress', () => {
  beforeEach(() => {
    vi.stubEnv('TERM', 'xterm');
    vi.useFakeTimers();
  });
  afterEach(() => {
    vi.useRealTimers();
    vi.unstubAllEnvs();
  });

  it.each(acts)('redraws in a terminal what $name measures, naked against protected', async (act) => {
    const { screen, written } = output(80);
    const gauge = await Gauge.begin(quietWorld());
    const stop = showProgress(screen, () => gauge.read([...act.measures, ...act.besides]));
    await vi.advanceTimersByTimeAsync(250);
    const lines = lastDrawn(written).split('\n');
    expect(lines[0]).toMatch(/ naked +protected$/);
    for (const { what } of act.measures)
      expect(lines).toContainEqual(expect.stringMatching(`^  ${what} .*(0|served)$`));
    stop();
  });

  it('says the same in plain lines where there is no terminal, once a second', async () => {
    const { screen, written } = output();
    const stop = showProgress(screen, async () => figures);
    await vi.advanceTimersByTimeAsync(3_900);
    stop();
    await vi.advanceTimersByTimeAsync(3_000);
    const said = 'naked and protected: users served 0.9 % and 75.9 %, lines written by two owners at once 889 and 0';
    expect(written).toEqual([1, 2, 3].map((second) => `  ${second} s, ${said}\n`));
  });

  it('keeps figures and names readable in a narrow terminal', async () => {
    const { screen, written } = output(40);
    const stop = showProgress(screen, async () => figures);
    await vi.advanceTimersByTimeAsync(250);
    expect(lastDrawn(written)).toBe(
      [
        ...['  users served', '    naked 0.9 %, protected 75.9 %'],
        ...['  lines written by two owners at once', '    naked 889, protected 0', ''],
      ].join('\n'),
    );
    stop();
  });

  it('clears what it has drawn when it ends, and draws nothing that was read before', async () => {
    const { screen, written } = output(80);
    let answer = (_: typeof figures) => {};
    const late = new Promise((resolve) => {
      answer = resolve;
    });
    const stop = showProgress(screen, vi.fn().mockResolvedValueOnce(figures).mockReturnValue(late));
    await vi.advanceTimersByTimeAsync(500);
    stop();
    expect(written.at(-1)).toBe('\x1b[3A\x1b[J');
    answer(figures);
    await vi.advanceTimersByTimeAsync(500);
    expect(written).toHaveLength(2);
  });

  it('asks once at a time, and goes on when it gets no answer', async () => {
    const { screen, written } = output(80);
    let fail = (_: Error) => {};
    const failing = new Promise((_, reject) => {
      fail = reject;
    });
    const read = vi.fn().mockReturnValueOnce(failing).mockResolvedValue(figures);
    const stop = showProgress(screen, read);
    await vi.advanceTimersByTimeAsync(1_000);
    expect(read).toHaveBeenCalledTimes(1);
    fail(new Error('the bank is gone'));
    await vi.advanceTimersByTimeAsync(250);
    expect(written).toHaveLength(1);
    stop();
  });
});
