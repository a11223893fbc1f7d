/**
 * Harness: one live process per contender, shuffled interleaved rounds, ratios within a round.
 *
 * Promise: contenders never share a heap or compiled code, and only one of them runs at a time. Whatever slows the machine down for a while slows
 * down the whole round, so the ratios stay the same.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import type { Answer, Question } from './contender.ts';
import { type Quartiles, quartilesOf, shuffled } from './statistics.ts';
import type { Round, Table, Target } from './table.ts';

export interface RunOptions {
  readonly rounds: number;
  readonly random: () => number;
}

export interface Verdict {
  readonly target: Target;
  readonly measured: Quartiles;
  readonly verdict: 'met' | 'missed';
}

export interface TableResult {
  readonly table: Table;
  readonly rounds: readonly Round[];
  readonly verdicts: readonly Verdict[];
}

export async function runTable(table: Table, options: RunOptions): Promise<TableResult> {
  const taken = await measureOnce(table);
  const rounds = (await measureRounds(table, options)).map((round) => ({ ...round, ...taken }));
  return { table, rounds, verdicts: table.targets.map((target) => judge(target, rounds)) };
}

/** Met means: the median meets the limit, and the quartile on the worse side is within 10 % of it. */
function judge(target: Target, rounds: readonly Round[]): Verdict {
  const measured = quartilesOf(rounds.map(target.value));
  const { limit, bound } = target;
  const isMet =
    bound === 'at most'
      ? measured.median <= limit && measured.p75 <= limit * 1.1
      : measured.median >= limit && measured.p25 >= limit * 0.9;
  return { target, measured, verdict: isMet ? 'met' : 'missed' };
}

async function measureRounds(table: Table, { rounds, random }: RunOptions): Promise<Round[]> {
  const processes = table.contenders.map(({ name }) => new ContenderProcess(table.name, name, []));
  try {
    const repetitions = new Map<ContenderProcess, number>();
    for (const contender of processes) repetitions.set(contender, await contender.ask({ ask: 'calibrate' }));
    const results: Round[] = [];
    while (results.length < rounds) {
      const round: Record<string, number> = {};
      for (const contender of shuffled(processes, random)) {
        round[contender.name] = await contender.ask({ ask: 'round', repetitions: repetitions.get(contender)! });
      }
      results.push(round);
    }
    return results;
  } finally {
    for (const contender of processes) contender.end();
  }
}

async function measureOnce(table: Table): Promise<Round> {
  const taken: Record<string, number> = {};
  if (table.once === undefined) return taken;
  for (const { name } of table.contenders) {
    const contender = new ContenderProcess(table.name, name, largeYoungGeneration);
    try {
      await contender.ask({ ask: 'calibrate' });
      for (const measure of table.once) taken[`${name}: ${measure}`] = await contender.ask({ ask: 'once', measure });
    } finally {
      contender.end();
    }
  }
  return taken;
}

const largeYoungGeneration = ['--expose-gc', '--min-semi-space-size=128', '--max-semi-space-size=128'];

class ContenderProcess {
  readonly name: string;
  private readonly child: ChildProcess;

  constructor(table: string, name: string, flags: readonly string[]) {
    this.name = name;
    this.child = fork(fileURLToPath(new URL('contender.ts', import.meta.url)), [table, name], {
      execArgv: [...flags],
    });
  }

  async ask(question: Question): Promise<number> {
    const { child, name } = this;
    const ended = new AbortController();
    const death = once(child, 'exit', { signal: ended.signal }).then(([code]) => {
      throw new Error(`the process of "${name}" ended with code ${code}`);
    });
    death.catch(() => {});
    child.send(question);
    try {
      const [answer] = (await Promise.race([once(child, 'message', { signal: ended.signal }), death])) as [Answer];
      if ('error' in answer) throw new Error(`"${name}" failed: ${answer.error}`);
      return answer.value;
    } finally {
      ended.abort();
    }
  }

  end(): void {
    if (this.child.connected) this.child.disconnect();
  }
}
