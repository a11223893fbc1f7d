/** Exports: the names and kinds that each entry exports, read from the declarations that users get. */
import ts from 'typescript';

const kinds: readonly (readonly [ts.SymbolFlags, string])[] = [
  [ts.SymbolFlags.Class, 'class'],
  [ts.SymbolFlags.Function, 'function'],
  [ts.SymbolFlags.Variable, 'const'],
  [ts.SymbolFlags.Interface, 'interface'],
  [ts.SymbolFlags.TypeAlias, 'type'],
];

export interface NamedExport {
  readonly name: string;
  readonly kind: string;
  /** Whether it exists at run time. */
  readonly isValue: boolean;
}

/** The exports of declaration files, sorted by name. */
export function exportsOf(files: readonly string[]): Map<string, NamedExport[]> {
  const options = { module: ts.ModuleKind.NodeNext, target: ts.ScriptTarget.ESNext, types: [], noLib: true };
  const program = ts.createProgram(files, options);
  const checker = program.getTypeChecker();
  const describe = (symbol: ts.Symbol): NamedExport => {
    const target = symbol.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(symbol) : symbol;
    const kind = kinds.find(([flag]) => target.flags & flag)?.[1] ?? 'unknown';
    return { name: symbol.name, kind, isValue: (target.flags & ts.SymbolFlags.Value) !== 0 };
  };
  return new Map(
    files.map((file) => {
      const source = checker.getSymbolAtLocation(program.getSourceFile(file)!);
      const found = source === undefined ? [] : checker.getExportsOfModule(source).map(describe);
      return [file, found.sort((one, other) => (one.name < other.name ? -1 : 1))];
    }),
  );
}
