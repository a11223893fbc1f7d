import { readFile, writeFile } from 'node:fs/promises';
import { basename, dirname, isAbsolute, relative, resolve } from 'node:path';
import { build as bundle, type Plugin as EsbuildPlugin } from 'esbuild';
import { defineConfig } from 'tsup';
import { esbuildLowering } from './tools/lowering.ts';

/** tsup's last step for CommonJS names the chunk itself as a source, by its path on the machine that built it. */
const portableMaps = {
  name: 'holdfast-portable-maps',
  async buildEnd({ writtenFiles }: { writtenFiles: readonly { readonly name: string }[] }) {
    for (const { name } of writtenFiles.filter((file) => file.name.endsWith('.map'))) {
      const map = JSON.parse(await readFile(name, 'utf8')) as { sources: string[]; sourcesContent?: (string | null)[] };
      const sources = map.sources.map((source) => (isAbsolute(source) ? basename(source) : source));
      // The text of a file is inserted into the code unchanged.
      const sourcesContent = map.sourcesContent?.map((content, index) =>
        sources[index]?.startsWith('raw:') ? 'The text of this file.' : content,
      );
      await writeFile(name, JSON.stringify({ ...map, sources, ...(sourcesContent && { sourcesContent }) }));
    }
  },
};

/** Bundled packages may be CommonJS and require a Node module, which an ES module has to import. */
const importOfNode: EsbuildPlugin = {
  name: 'holdfast-import-of-node',
  setup(build) {
    build.onResolve({ filter: /^node:/ }, ({ path, kind }) =>
      kind === 'require-call' ? { path, namespace: 'import-of-node' } : { path, external: true },
    );
    build.onLoad({ filter: /.*/, namespace: 'import-of-node' }, ({ path }) => ({
      contents: `export * from '${path}';`,
    }));
  },
};

/** A CommonJS package as an ES module. Otherwise esbuild puts its CommonJS helpers into a file that every entry imports. */
const moduleOfCommonJs: EsbuildPlugin = {
  name: 'holdfast-module-of-common-js',
  setup(build) {
    build.onLoad({ filter: /[\\/]fastify-plugin[\\/]index\.js$/ }, async ({ path }) => {
      const { outputFiles } = await bundle({
        ...{ entryPoints: [path], bundle: true, write: false, format: 'esm', legalComments: 'inline' },
        ...{ sourcemap: 'inline', outdir: dirname(path), plugins: [importOfNode], logLevel: 'error' },
      });
      return { contents: outputFiles[0]!.text };
    });
  },
};

/** `import text from './page.html?raw'` returns the text of a file, as in vitest. */
const rawFiles: EsbuildPlugin = {
  name: 'holdfast-raw-files',
  setup(build) {
    build.onResolve({ filter: /\?raw$/ }, async ({ path, importer, resolveDir }) => {
      const found = await build.resolve(path.slice(0, -'?raw'.length), {
        importer,
        resolveDir,
        kind: 'import-statement',
      });
      // The name of the module is in the source map, so it must not contain a path of this machine; nor may it look like CSS.
      return { path: path.replace(/^\.\//, ''), namespace: 'raw', pluginData: found.path };
    });
    build.onLoad({ filter: /.*/, namespace: 'raw' }, async ({ pluginData }) => ({
      contents: await readFile(pluginData as string, 'utf8'),
      loader: 'text',
    }));
  },
};

/**
 * esbuild creates a chunk for each set of entries that share a module: 19 files for the main entry, each of which costs an import as much as 15 KB of
 * code. So the modules of the main entry are merged into three chunks: what the smallest entries need, what the clients need in addition, and the
 * rest. Importing a module of a chunk imports all of it, including what a command would load later.
 */
const fewChunks: EsbuildPlugin = {
  name: 'holdfast-few-chunks',
  async setup(build) {
    const entry = build.initialOptions.entryPoints as Record<string, string>;
    const modulesOf = await reaching(Object.values(entry));
    const modulesOfAll = (...names: readonly string[]) => names.flatMap((name) => modulesOf(entry[name]!));
    const [smallest, clients] = [modulesOfAll('context', 'opossum', 'p-retry'), modulesOfAll('fetch', 'undici')];
    const ofMain = modulesOf(entry.index!);
    const chunks = [
      ofMain.filter((module) => smallest.includes(module)),
      ofMain.filter((module) => !smallest.includes(module) && clients.includes(module)),
      ofMain.filter((module) => !smallest.includes(module) && !clients.includes(module)),
    ];
    build.onResolve({ filter: /.*/ }, async ({ path, kind, resolveDir, pluginData }) => {
      if (kind === 'entry-point') return { path: resolve(path), namespace: 'entry' };
      if (kind !== 'dynamic-import' || pluginData === 'resolved') return undefined;
      const found = await build.resolve(path, { kind, resolveDir, pluginData: 'resolved' });
      return { path: found.path, namespace: 'entry' };
    });
    build.onLoad({ filter: /.*/, namespace: 'entry' }, async ({ path }) => {
      const [hashbang = ''] = /^#!.*\n/.exec(await readFile(path, 'utf8')) ?? [];
      const modules = modulesOf(relative('', path));
      const wanted = chunks.filter((chunk) => chunk.some((module) => modules.includes(module))).flat();
      const imports = wanted.map((module) => `import 'whole:${resolve(module)}';`);
      const contents = `${hashbang}${[`export * from 'whole:${path}';`, ...imports].join('\n')}`;
      return { contents, resolveDir: dirname(path) };
    });
    // Otherwise an import that is only for its effects would be dropped.
    build.onResolve({ filter: /^whole:/ }, ({ path }) => ({ path: path.slice('whole:'.length), sideEffects: true }));
  },
};

/** The modules that a module needs before it can run, without itself and those that it imports later. */
async function reaching(entryPoints: string[]): Promise<(path: string) => readonly string[]> {
  const { metafile } = await bundle({
    ...{ entryPoints, outdir: 'dist', bundle: true, write: false, metafile: true },
    ...{ format: 'esm', packages: 'external', external: ['*?raw'], logLevel: 'error' },
  });
  return (path) => {
    const reached = new Set<string>();
    const visit = (module: string) => {
      for (const { path: next, kind, external } of metafile.inputs[module]?.imports ?? []) {
        if (kind === 'dynamic-import' || external || reached.has(next)) continue;
        reached.add(next);
        visit(next);
      }
    };
    visit(path);
    reached.delete(path);
    return [...reached];
  };
}

export default defineConfig({
  entry: {
    cli: 'src/cli/main.ts',
    fetch: 'src/client/fetch.ts',
    index: 'src/index.ts',
    context: 'src/integrations/context.ts',
    express: 'src/server/express.ts',
    fastify: 'src/server/fastify.ts',
    opentelemetry: 'src/integrations/opentelemetry.ts',
    opossum: 'src/integrations/opossum.ts',
    'p-retry': 'src/integrations/p-retry.ts',
    postgres: 'src/stores/postgres.ts',
    prometheus: 'src/integrations/prometheus.ts',
    redis: 'src/stores/redis.ts',
    sqlite: 'src/stores/sqlite.ts',
    testing: 'src/testing/index.ts',
    undici: 'src/client/undici.ts',
    web: 'src/server/web.ts',
  },
  format: ['esm', 'cjs'],
  target: 'es2023',
  platform: 'neutral',
  removeNodeProtocol: false,
  external: ['tslib', 'lru-cache', /^node:/],
  esbuildPlugins: [fewChunks, rawFiles, moduleOfCommonJs, esbuildLowering],
  plugins: [portableMaps],
  // Without splitting each CommonJS entry would copy the error classes, and instanceof would fail between entries.
  splitting: true,
  dts: {
    // For `using`: a project need not have it in its own `lib`. Every TypeScript from 5.2 on knows it.
    banner: '/// <reference lib="esnext.disposable" />',
    compilerOptions: {
      allowImportingTsExtensions: true,
      importHelpers: false,
      stripInternal: true,
      paths: {},
      ignoreDeprecations: '6.0',
    },
  },
  sourcemap: true,
  clean: true,
});
