/**
 * One lowering of TypeScript for build and tests: `ts.transpileModule` with `importHelpers`.
 *
 * esbuild would inline its own helpers and leave tslib an unused dependency; Node 22 cannot parse `using`. tsup and vitest both use this lowering, so
 * that what is tested is what is published.
 */
import { readFile } from 'node:fs/promises';
import { sep } from 'node:path';
import type { Plugin as EsbuildPlugin } from 'esbuild';
import ts from 'typescript';
import type { Plugin as VitePlugin } from 'vite';

interface Lowered {
  readonly code: string;
  readonly map: string;
}

/** The build lowers each file for two formats, and vitest for each of its projects. */
const known = new Map<string, Lowered & { readonly source: string }>();

function lower(source: string, fileName: string): Lowered {
  const before = known.get(fileName);
  if (before?.source === source) return before;
  const lowered = lowerAnew(source, fileName);
  known.set(fileName, { ...lowered, source });
  return lowered;
}

function lowerAnew(source: string, fileName: string): Lowered {
  const output = ts.transpileModule(source, {
    fileName,
    compilerOptions: {
      target: ts.ScriptTarget.ES2023,
      module: ts.ModuleKind.ESNext,
      importHelpers: true,
      verbatimModuleSyntax: true,
      // Defining a field costs more than assigning it: 20 of the 230 ns of a call through a timeout.
      useDefineForClassFields: false,
      sourceMap: true,
      inlineSources: true,
    },
  });
  return { code: output.outputText.replace(/\n?\/\/# sourceMappingURL=.*\s*$/, '\n'), map: output.sourceMapText ?? '' };
}

/** For tsup. */
export const esbuildLowering: EsbuildPlugin = {
  name: 'holdfast-lowering',
  setup(build) {
    build.onLoad({ filter: /\.ts$/ }, async ({ path }) => {
      const { code, map } = lower(await readFile(path, 'utf8'), path);
      const inlineMap = `//# sourceMappingURL=data:application/json;base64,${Buffer.from(map).toString('base64')}`;
      return { contents: `${code}${inlineMap}\n`, loader: 'js' };
    });
  },
};

/** For vitest. Applies only to the package's own source; tests may use whatever the running Node parses. */
export function viteLowering(sourceFolder: string): VitePlugin {
  return {
    name: 'holdfast-lowering',
    enforce: 'pre',
    transform(code, id) {
      if (!id.startsWith(sourceFolder + sep) || !id.endsWith('.ts')) return;
      const { code: lowered, map } = lower(code, id);
      return { code: lowered, map };
    },
  };
}
