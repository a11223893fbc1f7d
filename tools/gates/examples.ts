/**
 * Examples: extracts every program in our pages and doc comments, so that it can be checked and run.
 *
 * A fence ```ts or ```js is a complete program. ```ts no-run is only type-checked. ```ts transfer.ts has a name, so that other programs of the page
 * can import it. A fence ```text output right after a program is its exact output.
 */
import { globSync, readFileSync } from 'node:fs';
import { sep } from 'node:path';

export interface Fence {
  /** The file that contains the fence, relative to the checkout. */
  readonly file: string;
  /** The number of the first line of code, from 1. */
  readonly line: number;
  readonly language: string;
  readonly marks: readonly string[];
  readonly code: string;
}

export interface Example extends Fence {
  readonly runs: boolean;
  /** Where the program is written to: a folder per page, a file per program. */
  readonly path: string;
  readonly expectedOutput: string | undefined;
}

const programLanguages = ['ts', 'js', 'mjs', 'cjs'];

/** The pages that we publish. */
export function pages(): string[] {
  return filesOf(['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'docs/**/*.md']);
}

/** Every fence of the pages and of the doc comments in `src`. */
export function allFences(): Fence[] {
  const inPages = pages().flatMap((file) => fencesOf(file, readFileSync(file, 'utf8')));
  const inSource = filesOf(['src/**/*.ts']).flatMap((file) => commentFencesOf(file, readFileSync(file, 'utf8')));
  return [...inPages, ...inSource];
}

/** Finds the programs among neighbouring fences. */
export function examplesOf(fences: readonly Fence[]): Example[] {
  return fences.flatMap((fence, index) => {
    if (!programLanguages.includes(fence.language)) return [];
    const next = fences[index + 1];
    const isOutput = next?.file === fence.file && next.language === 'text' && next.marks.includes('output');
    const expectedOutput = isOutput ? next.code : undefined;
    const name = fence.marks.find((mark) => mark.endsWith(`.${fence.language}`)) ?? `${fence.line}.${fence.language}`;
    const path = `${fence.file.replaceAll(/[^\w]+/g, '-')}/${name}`;
    return [{ ...fence, runs: !fence.marks.includes('no-run'), path, expectedOutput }];
  });
}

/** The fences of a Markdown text whose first line is line `firstLine` of the file. */
export function fencesOf(file: string, markdown: string, firstLine = 1): Fence[] {
  const found: Fence[] = [];
  const lines = markdown.split(/\r?\n/);
  for (let index = 0; index < lines.length; index++) {
    const opening = /^(\s*)(`{3,}|~{3,})\s*(\S*)\s*(.*)$/.exec(lines[index]!);
    if (opening === null) continue;
    const [, indent = '', ticks = '', language = '', marks = ''] = opening;
    const isClosing = (line: string) => line.trim().startsWith(ticks) && line.trim().replaceAll(ticks[0]!, '') === '';
    const start = index + 1;
    for (index = start; index < lines.length && !isClosing(lines[index]!); ) index++;
    const code = lines.slice(start, index).map((line) => (line.startsWith(indent) ? line.slice(indent.length) : line));
    found.push({
      file,
      line: firstLine + start,
      language,
      marks: marks.split(/\s+/).filter(Boolean),
      code: `${code.join('\n')}\n`,
    });
  }
  return found;
}

/** The fences in the doc comments of a TypeScript source. */
export function commentFencesOf(file: string, source: string): Fence[] {
  return [...source.matchAll(/\/\*\*[\s\S]*?\*\//g)].flatMap((comment) => {
    const text = comment[0].replace(/^[ \t]*\* ?/gm, '').replace(/\*\/$/, '');
    const linesBefore = source.slice(0, comment.index).split('\n').length;
    return fencesOf(file, text, linesBefore);
  });
}

/** The broken links of a page: links to a missing file or heading. */
export function brokenLinks(file: string, read: (path: string) => string | undefined): string[] {
  const text = withoutCode(read(file) ?? '');
  const inline = [...text.matchAll(/\]\(\s*<?([^)\s>]+)/g)];
  const references = [...text.matchAll(/^\s*\[[^\]]+\]:\s*<?([^\s>]+)/gm)];
  return [...inline, ...references].flatMap((match) => {
    const target = match[1]!;
    if (/^[a-z][a-z+.-]*:|^\/\//i.test(target)) return [];
    const { pathname, hash } = new URL(target, `file:///${file}`);
    const path = decodeURIComponent(pathname.slice(1));
    const targetText = read(path);
    if (targetText === undefined) return [`${file}: ${target}: there is no ${path}`];
    const anchor = decodeURIComponent(hash.slice(1));
    if (anchor === '' || !path.endsWith('.md') || anchorsOf(targetText).has(anchor)) return [];
    return [`${file}: ${target}: ${path} has no heading for #${anchor}`];
  });
}

/** The anchors that GitHub generates for headings, and those set by hand. */
function anchorsOf(markdown: string): Set<string> {
  const anchors = new Set<string>();
  for (const [, id] of markdown.matchAll(/<a (?:id|name)="([^"]+)"/g)) anchors.add(id!);
  for (const [, heading] of markdown.replace(fence, '').matchAll(/^#{1,6}\s+(.+?)\s*#*$/gm)) {
    const words = heading!.replace(/\[([^\]]*)\]\([^)]*\)/g, '$1').toLowerCase();
    const slug = words.replace(/[^\p{L}\p{N}\p{M}_\- ]/gu, '').replaceAll(' ', '-');
    let unique = slug;
    for (let count = 1; anchors.has(unique); count++) unique = `${slug}-${count}`;
    anchors.add(unique);
  }
  return anchors;
}

const fence = /^[ \t]*(`{3,}|~{3,})[\s\S]*?^[ \t]*\1[ \t]*$/gm;

function withoutCode(markdown: string): string {
  return markdown.replace(fence, '').replace(/`[^`\n]*`/g, '');
}

/** The npm scripts that a shell text runs, each with its workspace. */
export function npmScriptsOf(shell: string): { readonly script: string; readonly workspace: string | undefined }[] {
  return shell.split('\n').flatMap((line) =>
    [...line.replace(/#.*/, '').matchAll(/\bnpm\s+([^&|;]+)/g)].flatMap(([, rest]) => {
      const words = rest!.trim().split(/\s+/);
      const ours = words.includes('--') ? words.slice(0, words.indexOf('--')) : words;
      const flagIndex = ours.findIndex((word) => word === '-w' || word === '--workspace');
      const workspace = flagIndex < 0 ? undefined : ours[flagIndex + 1];
      const plain = ours.filter((word, index) => !word.startsWith('-') && (flagIndex < 0 || index !== flagIndex + 1));
      if (plain[0] === 'test' || plain[0] === 'start') return [{ script: plain[0], workspace }];
      if (plain[0] === 'run' || plain[0] === 'run-script') return [{ script: plain[1] ?? '', workspace }];
      return [];
    }),
  );
}

function filesOf(patterns: readonly string[]): string[] {
  return globSync([...patterns])
    .map((file) => file.split(sep).join('/'))
    .sort();
}
