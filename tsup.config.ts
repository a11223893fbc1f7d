import { readFile, writeFile } from 'node:fs/promises';
import { basename, isAbsolute } from 'node:path';
import type { Plugin as EsbuildPlugin } from 'esbuild';
import { defineConfig } from 'tsup';
import { esbuildLowering } from './tools/lowering.ts';

/** tsup's last step for CommonJS names the chunk itself as a source, by its path on the machine that built it. */
const portableMaps = {
  name: 'holdfast-portable-maps',
  async buildEnd({ writtenFiles }: { writtenFiles: readonly { readonly name: string }[] }) {
    for (const { name } of writtenFiles.filter((file) => file.name.endsWith('.map'))) {
      const map = JSON.parse(await readFile(name, 'utf8')) as { sources: string[]; sourcesContent?: (string | null)[] };
      const sources = map.sources.map((source) => (isAbsolute(source) ? basename(source) : source));
      // The text of a file stands in the code as it is.
      const sourcesContent = map.sourcesContent?.map((content, index) =>
        sources[index]?.startsWith('raw:') ? 'The text of this file.' : content,
      );
      await writeFile(name, JSON.stringify({ ...map, sources, ...(sourcesContent && { sourcesContent }) }));
    }
  },
};

/** What is bundled may be CommonJS that requires a module of Node, which an ES module has to import. */
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

/** `import text from './page.html?raw'` gives the text of a file, as it does in vitest. */
const rawFiles: EsbuildPlugin = {
  name: 'holdfast-raw-files',
  setup(build) {
    build.onResolve({ filter: /\?raw$/ }, async ({ path, importer, resolveDir }) => {
      const found = await build.resolve(path.slice(0, -'?raw'.length), {
        importer,
        resolveDir,
        kind: 'import-statement',
      });
      // The name of the module is in the source map, so it must not be one of this machine; nor may it look like CSS.
      return { path: path.replace(/^\.\//, ''), namespace: 'raw', pluginData: found.path };
    });
    build.onLoad({ filter: /.*/, namespace: 'raw' }, async ({ pluginData }) => ({
      contents: await readFile(pluginData as string, 'utf8'),
      loader: 'text',
    }));
  },
};

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
  external: ['tslib', 'lru-cache'],
  esbuildPlugins: [rawFiles, importOfNode, esbuildLowering],
  plugins: [portableMaps],
  // Without splitting each CommonJS entry would copy the error classes, and instanceof would fail between entries.
  splitting: true,
  dts: {
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
