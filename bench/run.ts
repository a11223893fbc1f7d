/**
 * Run: measures the tables, prints them, and with `--write` puts them into docs/performance.md.
 *
 * `npm run bench -w @holdfast/bench -- [table …] [--quick] [--rounds=N] [--write] [--seed=N]`, after a build. A missed target is only reported: speed
 * is never a test.
 */
import { execFileSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { runTable } from './harness.ts';
import { outageSection } from './outage.ts';
import { asMarkdown, asText, type Section, sectionOf, writeBetweenMarkers } from './report.ts';
import { randomFrom } from './statistics.ts';
import { tables } from './tables/all.ts';
import { weightSection } from './weight.ts';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    quick: { type: 'boolean' },
    rounds: { type: 'string' },
    write: { type: 'boolean' },
    seed: { type: 'string' },
  },
});
const names = [...tables.map(({ name }) => name), 'outage', 'weight'];
const unknown = positionals.filter((name) => !names.includes(name));
if (unknown.length > 0) {
  console.error(`unknown table ${unknown.join(', ')}; there are ${names.join(', ')}`);
  process.exit(2);
}
const isWanted = (name: string) => positionals.length === 0 || positionals.includes(name);
const seed = Number(values.seed ?? Date.now() % 1_000_000);
const rounds = Number(values.rounds ?? (values.quick ? 5 : 31));
if (!Number.isSafeInteger(rounds) || rounds < 1 || !Number.isSafeInteger(seed)) {
  console.error('--rounds and --seed are whole numbers, and there is at least one round');
  process.exit(2);
}
const random = randomFrom(seed);

const commit = execFileSync('git', ['rev-parse', '--short', 'HEAD'], { encoding: 'utf8' }).trim();
const flags = [`--rounds=${rounds}`, ...(values.write ? ['--write'] : []), `--seed=${seed}`];
const command = ['npm run bench -w @holdfast/bench --', ...positionals, ...flags].join(' ');
const date = new Date().toISOString().slice(0, 10);
const circumstances = `Node ${process.version}, ${date}, commit ${commit}, seed ${seed}, ${rounds} rounds: \`${command}\``;

console.log(circumstances);
const sections: Section[] = [];
const add = (section: Section) => {
  sections.push(section);
  console.log(`\n${asText(section)}`);
};
for (const table of tables) {
  if (isWanted(table.name)) add(sectionOf(await runTable(table, { rounds, random })));
}
if (isWanted('outage')) add(await outageSection(random));
if (isWanted('weight')) add(await weightSection());
if (values.write) {
  const path = fileURLToPath(new URL('../docs/performance.md', import.meta.url));
  writeBetweenMarkers(path, [circumstances, ...sections.map(asMarkdown)].join('\n\n'));
}
