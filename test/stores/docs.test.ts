/** docs/stores.md says of each promise which tests show it: they are there, and no row is without. */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';

const read = (path: string) => readFileSync(fileURLToPath(new URL(`../../${path}`, import.meta.url)), 'utf8');

function rowsOf(section: string): string[][] {
  const lines = section.split('\n').filter((line) => line.startsWith('| '));
  return lines.map((line) =>
    line
      .slice(2)
      .replace(/ ?\|$/, '')
      .split(' |')
      .map((cell) => cell.trim()),
  );
}

function sectionOf(page: string, heading: string): string {
  const from = page.indexOf(`\n${heading}\n`) + heading.length + 2;
  const to = page.slice(from).search(/\n##/);
  return page.slice(from, from + to);
}

describe('docs/stores.md', () => {
  const page = read('docs/stores.md');
  const promises = rowsOf(sectionOf(page, '## What each promises'))
    .map(([name]) => name!)
    .filter((name) => !/^(\||-)/.test(name));
  const shown = new Map(
    rowsOf(sectionOf(page, '### Where each row is shown')).map(([name, tests]) => [name!, tests!] as const),
  );

  it('says of every row of its table where it is shown', () => {
    expect(promises.length).toBeGreaterThan(15);
    for (const name of promises) expect([...shown.keys()]).toContain(name);
  });

  it('names tests that are there', () => {
    let names = 0;
    for (const tests of shown.values()) {
      for (const [, path, titles] of tests.matchAll(/`(test\/[^`]+)`: ((?:"[^"]+"(?:, )?)+)/g)) {
        // A title with an apostrophe stands in double quotes there.
        for (const [, title] of titles!.matchAll(/"([^"]+)"/g)) {
          expect(read(path!), path).toContain(title);
          names++;
        }
      }
    }
    expect(names).toBeGreaterThan(25);
  });
});
