/** The site's configuration. `build.ts` copies the pages into `srcDir`, in the same places as in the repository. */
import { globSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vitepress';

const folder = fileURLToPath(new URL('../../../.cache/site/', import.meta.url));
const pages = `${folder}pages/`;

/** The pages of a folder, titled by their headings. */
function entries(pattern: string) {
  return globSync(pattern, { cwd: pages })
    .map((path) => path.replaceAll('\\', '/'))
    .sort()
    .map((path) => ({
      text: /^#\s+(.+)$/m.exec(readFileSync(pages + path, 'utf8'))?.[1] ?? path,
      link: `/${path.replace(/\.md$/, '')}`,
    }));
}

export default defineConfig({
  title: 'holdfast',
  description: 'Composable resilience primitives for Node back ends whose calls fail, retry and run twice.',
  lang: 'en',
  srcDir: pages,
  outDir: `${folder}html`,
  cacheDir: `${folder}cache`,
  rewrites: { 'README.md': 'index.md' },
  themeConfig: {
    search: { provider: 'local' },
    outline: [2, 3],
    nav: [
      { text: 'Guide', link: '/' },
      { text: 'API', link: '/api/' },
      { text: 'Proof', link: '/docs/proof' },
    ],
    sidebar: [
      {
        text: 'Start',
        items: [{ text: 'holdfast', link: '/' }, ...entries('*.md').filter((one) => one.link !== '/README')],
      },
      { text: 'Pages', items: entries('docs/*.md') },
      { text: 'Decisions', collapsed: true, items: entries('docs/decisions/*.md') },
      { text: 'API', collapsed: true, items: entries('api/**/*.md') },
    ],
  },
});
