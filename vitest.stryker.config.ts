/** The unit tests as `npm run mutation` runs them, against one breakage of the source at a time. */
import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vitest/config';
import { viteLowering } from './tools/lowering.ts';

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));

export default defineConfig({
  plugins: [viteLowering(here('./src'))],
  resolve: {
    alias: [
      { find: /^holdfast$/, replacement: here('./src/index.ts') },
      { find: /^holdfast\/testing$/, replacement: here('./src/testing/index.ts') },
    ],
  },
  test: {
    include: ['test/**/*.test.ts'],
    exclude: ['test/package/**'],
    pool: 'threads',
    testTimeout: 20_000,
    setupFiles: ['tools/proof/mutation-setup.ts'],
    env: { HOLDFAST_MODEL_STEPS: '10000' },
  },
});
