/** For each promise, docs/stores.md names the tests that show it. These tests exist, and no promise is without one. */
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
  const isRow = ([name]: readonly string[]) => !/^(\||-)/.test(name!);
  const promises = rowsOf(sectionOf(page, '## What each promises')).filter(isRow);
  const shown = new Map(
    rowsOf(sectionOf(page, '### Where each row is shown')).map(([name, ...cells]) => [name!, cells]),
  );

  it('says of every cell of its table where it is shown', () => {
    expect(promises.length).toBeGreaterThan(15);
    for (const [name, ...cells] of promises) {
      const tests = shown.get(name!);
      expect(tests, name).toHaveLength(cells.length);
      expect(tests!.map(Boolean), name).toEqual(cells.map(Boolean));
    }
  });

  it('names tests that are there', () => {
    let names = 0;
    for (const cell of [...shown.values()].flat()) {
      for (const [, path, titles] of cell.matchAll(/`(test\/[^`]+)`: ((?:"[^"]+"(?:, )?)+)/g)) {
        // The page writes a title that contains an apostrophe in double quotes.
        for (const [, title] of titles!.matchAll(/"([^"]+)"/g)) {
          expect(read(path!), path).toContain(title);
          names++;
        }
      }
    }
    expect(names).toBeGreaterThan(60);
  });
});
