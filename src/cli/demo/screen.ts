/**
 * Screen: progress that is redrawn in place in a terminal, and plain lines everywhere else.
 */

export interface Screen {
  /** Shows lines in place of those that were shown before. Says nothing where nothing can be redrawn. */
  live(lines: readonly string[]): void;
  /** Prints lines that stay. */
  print(...lines: readonly string[]): void;
  /** Prints lines only where `live` says nothing. */
  plain(...lines: readonly string[]): void;
}

export function screenOn(stream: NodeJS.WriteStream): Screen {
  const redraws = stream.isTTY === true && process.env.TERM !== 'dumb';
  let shown = 0;
  /** Up to the first live line, then everything below is cleared. */
  const clear = () => {
    const codes = shown === 0 ? '' : `\x1b[${shown}A\x1b[J`;
    shown = 0;
    return codes;
  };
  const print = (...lines: readonly string[]) => void stream.write(`${clear()}${lines.join('\n')}\n`);
  return {
    print,
    plain: (...lines) => (redraws ? undefined : print(...lines)),
    live(lines) {
      if (!redraws) return;
      // A line that wraps would take two rows, of which only one would be cleared. Some terminals do not know how wide they are.
      const cut = lines.map((line) => line.slice(0, Math.max(10, (stream.columns || 80) - 1)));
      stream.write(`${clear()}${cut.join('\n')}\n`);
      shown = cut.length;
    },
  };
}
