/**
 * Screen: progress that is redrawn in place in a terminal, and plain lines everywhere else.
 */

export interface Screen {
  /** Replaces the lines shown before. Prints nothing if the output cannot be redrawn. */
  live(lines: readonly string[]): void;
  /** Prints lines that stay. */
  print(...lines: readonly string[]): void;
  /** Prints lines only where `live` prints nothing. */
  plain(...lines: readonly string[]): void;
}

export function screenOn(stream: NodeJS.WriteStream): Screen {
  const redraws = stream.isTTY === true && process.env.TERM !== 'dumb';
  let shown = 0;
  /** Moves up to the first live line and clears everything below. */
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
      // A wrapped line would take two rows, and only one would be cleared. Some terminals do not know their width.
      const cut = lines.map((line) => line.slice(0, Math.max(10, (stream.columns || 80) - 1)));
      stream.write(`${clear()}${cut.join('\n')}\n`);
      shown = cut.length;
    },
  };
}
