import { readFile, writeFile } from 'node:fs/promises';
import { basename, isAbsolute } from 'node:path';
import { defineConfig } from 'tsup';
import { esbuildLowering } from './tools/lowering.ts';

/** tsup's last step for CommonJS names the chunk itself as a source, by its path on the machine that built it. */
const portableMaps = {
  name: 'holdfast-portable-maps',
  async buildEnd({ writtenFiles }: { writtenFiles: readonly { readonly name: string }[] }) {
    for (const { name } of writtenFiles.filter((file) => file.name.endsWith('.map'))) {
      const map = JSON.parse(await readFile(name, 'utf8')) as { sources: string[] };
      const sources = map.sources.map((source) => (isAbsolute(source) ? basename(source) : source));
      await writeFile(name, JSON.stringify({ ...map, sources }));
    }
  },
};

export default defineConfig({
  entry: { index: 'src/index.ts', testing: 'src/testing/index.ts' },
  format: ['esm', 'cjs'],
  target: 'es2023',
  platform: 'neutral',
  external: [/^node:/, 'tslib', 'lru-cache'],
  esbuildPlugins: [esbuildLowering],
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
