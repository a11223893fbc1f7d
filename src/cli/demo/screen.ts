/**
 * Screen: progress that is redrawn in place in a terminal, and plain lines everywhere else. It uses no colours.
 */

export interface Screen {
  /** Whether lines can be redrawn. If not, `live` prints nothing. */
  readonly redraws: boolean;
  /** How many characters fit into a line. */
  readonly width: number;
  /** Replaces the lines shown before. */
  live(lines: readonly string[]): void;
  /** Prints lines that stay, in a terminal broken between words. */
  print(...lines: readonly string[]): void;
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
  return {
    redraws,
    get width() {
      if (stream.isTTY !== true) return Number.POSITIVE_INFINITY;
      // Some terminals do not know their width. A line that fills the last column is followed by an empty one in some.
      return Math.max(10, (stream.columns || 80) - 1);
    },
    print(...lines) {
      const broken = lines.flatMap((line) => wrapped(line, this.width));
      stream.write(`${clear()}${broken.join('\n')}\n`);
    },
    live(lines) {
      if (!redraws) return;
      // What has left the screen at its top could not be cleared, nor could the second row of a wrapped line.
      const most = Math.max(1, (stream.rows || 24) - 1);
      const cut = lines.slice(0, most).map((line) => line.slice(0, this.width));
      stream.write(`${clear()}${cut.map((line) => `${line}\n`).join('')}`);
      shown = cut.length;
    },
  };
}

/** Breaks a line between words. What follows is indented a little more than the line. */
function wrapped(line: string, width: number): string[] {
  if (line.length <= width) return [line];
  const indent = /^ */.exec(line)![0];
  const lines: string[] = [];
  let current = indent;
  for (const word of line.trim().split(' ')) {
    const isFirst = current.trim() === '';
    if (!isFirst && current.length + 1 + word.length > width) {
      lines.push(current);
      current = `${indent}  ${word}`;
    } else current += isFirst ? word : ` ${word}`;
  }
  return [...lines, current];
}
