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

const groups = [
  {
    text: 'Calls',
    items: entries('docs/{pipeline,standard,timeout,deadline,retry,fallback,hedge,single-flight,context}.md'),
  },
  {
    text: 'Limits and breakers',
    items: entries('docs/{circuit-breaker,keyed,bulkhead,adaptive-limit,rate-limit,throttle,load-shed}.md'),
  },
  {
    text: 'Stores, locks, keys, caches',
    items: entries('docs/{stores,mutex,semaphore,leader,idempotency,cache}.md'),
  },
  {
    text: 'Servers and clients',
    items: entries('docs/{fetch,undici,recipes,deadline-middleware,idempotency-http,response-cache,health}.md'),
  },
  { text: 'Errors and telemetry', items: entries('docs/{errors,events,telemetry}.md') },
  { text: 'Migrating', items: entries('docs/migrating-*.md') },
];
const grouped = new Set(groups.flatMap(({ items }) => items.map(({ link }) => link)));

/** The blocks of code by their text. VitePress renders each page for the site and again for the search, and to highlight is what takes it longest. */
const highlighted = new Map<string, string>();

export default defineConfig({
  title: 'holdfast',
  description: 'Composable resilience primitives for Node back ends whose calls fail, retry and run twice.',
  lang: 'en',
  srcDir: pages,
  outDir: `${folder}html`,
  cacheDir: `${folder}cache`,
  rewrites: { 'README.md': 'index.md' },
  markdown: {
    config({ options }) {
      const { highlight } = options;
      if (!highlight) throw new Error('VitePress does not highlight');
      options.highlight = (...block) => {
        const key = JSON.stringify(block);
        const html = highlighted.get(key) ?? highlight(...block);
        highlighted.set(key, html);
        return html;
      };
    },
  },
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
      ...groups,
      { text: 'Testing, tools, proof', items: entries('docs/*.md').filter(({ link }) => !grouped.has(link)) },
      { text: 'Decisions', collapsed: true, items: entries('docs/decisions/*.md') },
      { text: 'API', collapsed: true, items: entries('api/**/*.md') },
    ],
  },
});
