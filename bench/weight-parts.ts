/**
 * What contributes to the size of bundles, after minifying and compressing: texts of messages, names of members, which a minifier keeps, and the
 * rest, which is code.
 *
 * `node bench/weight-parts.ts`, after a build. Each figure is measured on a bundle without that part, which would not run.
 */
import { gzipSync } from 'node:zlib';
import ts from 'typescript';
import { budgets, bundleOf } from '../tools/gates/size.ts';
import { asText } from './report.ts';

interface Cut {
  readonly from: number;
  readonly to: number;
  readonly by: string;
}

const kilobytes = (code: string) => `${(gzipSync(code, { level: 9 }).length / 1024).toFixed(1)} KB`;

/** Every string with a space in it, and the fixed parts of templates. */
function messagesIn(node: ts.Node): readonly Cut[] {
  const cut = (by: string): readonly Cut[] => [{ from: node.getStart(), to: node.end, by }];
  if (ts.isStringLiteral(node)) return node.text.includes(' ') ? cut('""') : [];
  if (ts.isNoSubstitutionTemplateLiteral(node)) return cut('``');
  if (ts.isTemplateHead(node)) return cut('`${');
  if (ts.isTemplateMiddle(node)) return cut('}${');
  return ts.isTemplateTail(node) ? cut('}`') : [];
}

/** Replaces the name of each member, where it is defined and where it is used, by one of one or two letters. */
function membersBy(names: Map<string, string>): (node: ts.Node) => readonly Cut[] {
  return (node) => {
    if (!ts.isIdentifier(node)) return [];
    const { parent } = node;
    const isMember =
      ts.isPropertyAccessExpression(parent) || ts.isPropertyAssignment(parent) || ts.isClassElement(parent)
        ? parent.name === node
        : ts.isBindingElement(parent) && parent.propertyName === node;
    if (!isMember) return [];
    if (!names.has(node.text)) names.set(node.text, shortName(names.size));
    return [{ from: node.getStart(), to: node.end, by: names.get(node.text)! }];
  };
}

/** a to z, then aa to zz. */
function shortName(index: number): string {
  const letter = String.fromCharCode(97 + (index % 26));
  return index < 26 ? letter : shortName(Math.floor(index / 26) - 1) + letter;
}

function without(code: string, ...kinds: ((node: ts.Node) => readonly Cut[])[]): string {
  const cuts: Cut[] = [];
  const visit = (node: ts.Node): void => {
    for (const kind of kinds) cuts.push(...kind(node));
    ts.forEachChild(node, visit);
  };
  visit(ts.createSourceFile('bundle.js', code, ts.ScriptTarget.ESNext, true, ts.ScriptKind.JS));
  let rest = '';
  let end = 0;
  for (const { from, to, by } of cuts.sort((one, other) => one.from - other.from)) {
    rest += code.slice(end, from) + by;
    end = to;
  }
  return rest + code.slice(end);
}

const rows: string[][] = [];
for (const { title, names } of budgets) {
  const { code } = await bundleOf(names);
  const members = membersBy(new Map());
  const cut = [without(code, messagesIn), without(code, members), without(code, messagesIn, members)];
  rows.push([title, `${(code.length / 1024).toFixed(1)} KB`, kilobytes(code), ...cut.map(kilobytes)]);
}
const head = ['what', 'minified', 'compressed', 'without messages', 'with short names', 'without both'];
console.log(asText({ title: 'What weighs', tables: [[head, ...rows]] }));
