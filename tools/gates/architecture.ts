/**
 * Architecture: which file of src may import which, as rules that can be broken one by one.
 *
 * Promise: every form of import is found (import, export from, dynamic import, import type, require), and a message names the rule, the file and the
 * import. Type-only imports must obey the directions too. They do not count for cycles, because they are gone at run time and two types may well
 * refer to each other.
 */
import { posix } from 'node:path';
import ts from 'typescript';

/** Where a file of `src` lives, and what it may import. A name is a folder, or one file without its extension. */
export const mayImport: Readonly<Record<string, readonly string[]>> = {
  core: ['core', 'structures'],
  structures: ['structures'],
  policies: ['policies', 'core', 'structures'],
  stores: ['stores', 'core'],
  coordination: ['coordination', 'core', 'structures', 'policies', 'stores/store', 'stores/memory'],
  server: ['server', 'core', 'policies', 'coordination'],
  client: ['client', 'core', 'policies', 'coordination'],
  // The conformance kit of a primitive runs the primitive itself.
  testing: ['testing', 'core', 'stores/store', 'coordination'],
  integrations: ['integrations', 'core'],
  // The main entry stays small: whatever needs a framework, a peer or a test has its own entry.
  index: ['core', 'policies', 'coordination', 'stores/store', 'stores/memory'],
};

/** Imported only by entry files and by themselves. */
const forbiddenTargets = ['cli', 'testing', 'integrations'];

/** The dependencies in package.json. Everything else comes in as an object that the user created. */
const packages = ['tslib', 'lru-cache'];

/** The only file that knows a framework: it names the framework's types, and imports what is bundled into its entry. */
const adapters: Readonly<Record<string, { readonly types: string; readonly bundled?: string }>> = {
  'server/express': { types: 'express' },
  'server/fastify': { types: 'fastify', bundled: 'fastify-plugin' },
};

/** Packages that are bundled by the build, each imported only by the files listed. */
const bundled: Readonly<Record<string, readonly string[]>> = {
  'uplot/dist/uPlot.iife.min.js?raw': ['src/cli/demo/page.ts'],
  'uplot/LICENSE?raw': ['src/cli/demo/page.ts'],
  'uplot/dist/uPlot.min.css?raw': ['src/cli/demo/page.ts'],
  'structured-headers': ['src/client/rate-limit-headers.ts', 'src/server/idempotency/protocol.ts'],
};

/** Every user loads these folders, so they import no package at all. */
const foldersWithoutPackages = ['core', 'structures', 'policies'];

export type Rule =
  | 'direction'
  | 'nobody-imports'
  | 'no-cycles'
  | 'no-node-imports'
  | 'only-known-packages'
  | 'known-folders'
  | 'resolvable'
  | 'index-only-names';

export interface Violation {
  readonly rule: Rule;
  readonly file: string;
  readonly import: string;
  readonly message: string;
}

interface Import {
  readonly specifier: string;
  readonly typeOnly: boolean;
}

/**
 * Finds what breaks the rules.
 *
 * @param sources - Text by path relative to the checkout, such as `src/core/call.ts`.
 */
export function violations(sources: ReadonlyMap<string, string>): Violation[] {
  const found: Violation[] = [];
  const graph = new Map<string, string[]>();
  for (const [file, text] of sources) {
    const report = (rule: Rule, specifier: string, reason: string) =>
      found.push({ rule, file, import: specifier, message: `${rule}: ${file} imports '${specifier}': ${reason}` });
    const source = ts.createSourceFile(file, text, ts.ScriptTarget.Latest, true);
    const place = placeOf(file);
    if (place !== 'cli' && !isEntry(file) && mayImport[place] === undefined) {
      const message = `known-folders: ${file} lies in no folder of the house (${Object.keys(mayImport).join(', ')}, cli)`;
      found.push({ rule: 'known-folders', file, import: '', message });
    }
    for (const line of isEntry(file) ? logicOf(source) : []) {
      const message = `index-only-names: ${file} has '${line}': an entry file holds named re-exports and no logic`;
      found.push({ rule: 'index-only-names', file, import: line, message });
    }
    const edges: string[] = [];
    for (const { specifier, typeOnly } of importsOf(source)) {
      if (!specifier.startsWith('.')) {
        if (bundled[specifier]?.includes(file) !== true) checkPackage(file, specifier, typeOnly, report);
        continue;
      }
      // The text of a file that is not source code.
      if (specifier.endsWith('?raw')) continue;
      const target = resolve(file, specifier, sources);
      if (target === undefined) {
        report('resolvable', specifier, 'there is no such file');
        continue;
      }
      if (!typeOnly) edges.push(target);
      checkDirection(file, target, specifier, report);
    }
    graph.set(file, edges);
  }
  for (const cycle of cyclesOf(graph)) {
    const [file, next] = cycle as [string, string];
    const message = `no-cycles: ${[...cycle, file].join(' -> ')}`;
    found.push({ rule: 'no-cycles', file, import: next, message });
  }
  return found;
}

type Report = (rule: Rule, specifier: string, reason: string) => void;

function checkDirection(file: string, target: string, specifier: string, report: Report): void {
  const place = placeOf(file);
  const targetPlace = placeOf(target);
  const isOtherEntry = isEntry(file) && place !== 'index';
  if (place === 'cli' || isOtherEntry) return;
  const allowed = mayImport[place];
  if (allowed === undefined || allowed.includes(targetPlace) || allowed.includes(pathInSrc(target))) return;
  if (forbiddenTargets.includes(targetPlace)) {
    report('nobody-imports', specifier, `nobody imports ${targetPlace}`);
  } else {
    report('direction', specifier, `${place} may import only ${allowed.join(', ')}`);
  }
}

function checkPackage(file: string, specifier: string, typeOnly: boolean, report: Report): void {
  if (specifier.startsWith('node:')) {
    // The command line runs on Node only, and nobody imports it.
    if (!typeOnly && placeOf(file) !== 'cli')
      report('no-node-imports', specifier, 'take it by process.getBuiltinModule, with a fallback');
    return;
  }
  const adapter = adapters[pathInSrc(file)];
  if (specifier === adapter?.bundled || (typeOnly && specifier === adapter?.types)) return;
  const place = placeOf(file);
  const name = packages.find((known) => specifier === known || specifier.startsWith(`${known}/`));
  if (name === undefined) report('only-known-packages', specifier, `only ${packages.join(' and ')} may be imported`);
  else if (foldersWithoutPackages.includes(place)) {
    report('only-known-packages', specifier, `${place} imports no package`);
  }
}

/** Everything except `export { names } from`. A star, even one of types, publishes names that nobody decided to publish. */
function logicOf(source: ts.SourceFile): string[] {
  const isNamed = (statement: ts.Statement) =>
    ts.isExportDeclaration(statement) &&
    statement.moduleSpecifier !== undefined &&
    statement.exportClause !== undefined &&
    ts.isNamedExports(statement.exportClause);
  const others = source.statements.filter((statement) => !isNamed(statement));
  return others.map((statement) => statement.getText(source).split('\n')[0]!);
}

/** Every import of a file, in whatever form. */
function importsOf(source: ts.SourceFile): Import[] {
  const found: Import[] = [];
  const add = (specifier: ts.Node | undefined, typeOnly: boolean) => {
    if (specifier !== undefined && ts.isStringLiteralLike(specifier))
      found.push({ specifier: specifier.text, typeOnly });
  };
  const visit = (node: ts.Node): void => {
    if (ts.isImportDeclaration(node))
      add(node.moduleSpecifier, node.importClause?.phaseModifier === ts.SyntaxKind.TypeKeyword);
    else if (ts.isExportDeclaration(node)) add(node.moduleSpecifier, node.isTypeOnly);
    else if (ts.isImportTypeNode(node) && ts.isLiteralTypeNode(node.argument)) add(node.argument.literal, true);
    else if (ts.isImportEqualsDeclaration(node) && ts.isExternalModuleReference(node.moduleReference)) {
      add(node.moduleReference.expression, node.isTypeOnly);
    } else if (ts.isCallExpression(node)) {
      const { expression } = node;
      const imports = expression.kind === ts.SyntaxKind.ImportKeyword;
      const requires = ts.isIdentifier(expression) && expression.text === 'require';
      if (imports || requires) add(node.arguments[0], false);
    }
    ts.forEachChild(node, visit);
  };
  visit(source);
  return found;
}

function resolve(file: string, specifier: string, sources: ReadonlyMap<string, string>): string | undefined {
  const path = posix.join(posix.dirname(file), specifier);
  const candidates = [path, path.replace(/\.js$/, '.ts'), `${path}.ts`, `${path}/index.ts`];
  return candidates.find((candidate) => sources.has(candidate));
}

function pathInSrc(file: string): string {
  return file.replace(/^src\//, '').replace(/\.ts$/, '');
}

function placeOf(file: string): string {
  return pathInSrc(file).split('/')[0]!;
}

function isEntry(file: string): boolean {
  return !pathInSrc(file).includes('/');
}

/** One cycle per group of files that reach each other, found by depth-first search. */
function cyclesOf(graph: ReadonlyMap<string, readonly string[]>): string[][] {
  const cycles: string[][] = [];
  const finished = new Set<string>();
  const path: string[] = [];
  const walk = (file: string): void => {
    const index = path.indexOf(file);
    if (index >= 0) {
      cycles.push(path.slice(index));
      return;
    }
    if (finished.has(file)) return;
    path.push(file);
    for (const target of graph.get(file) ?? []) walk(target);
    path.pop();
    finished.add(file);
  };
  for (const file of graph.keys()) walk(file);
  return cycles;
}
