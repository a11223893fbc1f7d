/**
 * Trace: the events of a simulated world, as a hash over all of them and as text for the last ones.
 *
 * Promise: every event goes into the hash, with its instant, its nodes and its message. Text is produced only when it is read.
 */
import { hashText, TraceHash } from './hash.js';
import { preview } from './message.js';

/** The kinds of events. */
export type TraceKind =
  | 'task'
  | 'timer'
  | 'request'
  | 'receive'
  | 'reply'
  | 'answer'
  | 'refused'
  | 'reset'
  | 'lost'
  | 'duplicate'
  | 'abort'
  | 'start'
  | 'crash'
  | 'freeze'
  | 'thaw'
  | 'cut'
  | 'heal'
  | 'clock'
  | 'log';

interface Line {
  step: number;
  atMs: number;
  kind: TraceKind;
  from: string;
  to: string;
  detail: unknown;
}

export class Trace {
  readonly hash = new TraceHash();
  readonly #textHashes = new Map<string, number>();
  readonly #ring: Line[];
  readonly #onLine: ((line: string) => void) | undefined;
  #count = 0;

  constructor(lines: number, onLine: ((line: string) => void) | undefined) {
    this.#ring = Array.from({ length: lines }, () => ({
      step: 0,
      atMs: 0,
      kind: 'log',
      from: '',
      to: '',
      detail: undefined,
    }));
    this.#onLine = onLine;
  }

  /** Adds an event. The detail is only for display; a caller that wants it in the hash adds it there. */
  add(step: number, atMs: number, kind: TraceKind, from: string, to: string, detail: unknown): void {
    this.hash.word(this.#hashOf(kind));
    this.hash.word(this.#hashOf(from));
    this.hash.word(this.#hashOf(to));
    const line = this.#ring[this.#count % this.#ring.length]!;
    line.step = step;
    line.atMs = atMs;
    line.kind = kind;
    line.from = from;
    line.to = to;
    line.detail = detail;
    this.#count++;
    if (this.#onLine !== undefined) this.#onLine(wordsOf(line));
  }

  /** The last lines, oldest first. */
  lastLines(): string[] {
    const kept = Math.min(this.#count, this.#ring.length);
    return Array.from({ length: kept }, (_, index) =>
      wordsOf(this.#ring[(this.#count - kept + index) % this.#ring.length]!),
    );
  }

  #hashOf(text: string): number {
    let hash = this.#textHashes.get(text);
    if (hash === undefined) {
      hash = hashText(text);
      this.#textHashes.set(text, hash);
    }
    return hash;
  }
}

function wordsOf({ step, atMs, kind, from, to, detail }: Line): string {
  const who = to === '' ? from : `${from} -> ${to}`;
  return `#${step} ${atMs.toFixed(3)} ms ${kind} ${who} ${typeof detail === 'string' ? detail : preview(detail)}`.trimEnd();
}
