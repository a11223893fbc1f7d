/**
 * `npm run docs`: builds the README, `docs/` and the API reference as a site in `.cache/site/html`. The site needs no server of its own and fetches
 * nothing from elsewhere. Dead links, dead anchors and foreign resources fail the build.
 */
import { cpSync, globSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Application } from 'typedoc';
import { build } from 'vitepress';
import packaging from '../../tsup.config.ts';
import { faultsOf } from './checks.ts';

const here = fileURLToPath(new URL('.', import.meta.url));
const checkout = join(here, '..', '..');
const pages = join(checkout, '.cache', 'site', 'pages');
const html = join(checkout, '.cache', 'site', 'html');

process.chdir(checkout);
rmSync(join(checkout, '.cache', 'site'), { recursive: true, force: true });
copyPages();
await writeReference();
await build(here);
const faults = faultsOf(readSite());
if (faults.length > 0) {
  console.error(faults.join('\n'));
  process.exitCode = 1;
} else
  console.log(
    `${globSync(join(html, '**', '*.html')).length} pages in .cache/site/html, no dead link, nothing from elsewhere`,
  );

/** Copies the pages to the same places as in the repository, so that links between them stay valid. */
function copyPages(): void {
  for (const file of ['README.md', 'CHANGELOG.md', 'CONTRIBUTING.md', ...globSync('docs/**/*.md')]) {
    const target = join(pages, file);
    mkdirSync(dirname(target), { recursive: true });
    cpSync(file, target);
  }
  cpSync('docs/images', join(pages, 'docs', 'images'), { recursive: true });
  // Not a page, so it is served as it is.
  cpSync('docs/dashboards', join(pages, 'public', 'docs', 'dashboards'), { recursive: true });
  writeFileSync(join(pages, 'LICENSE.md'), `# License\n\n${readFileSync('LICENSE', 'utf8')}`);
}

/** One page per entry of the package, named as it is imported. */
async function writeReference(): Promise<void> {
  const { entry } = packaging as { readonly entry: Readonly<Record<string, string>> };
  const app = await Application.bootstrapWithPlugins({
    plugin: ['typedoc-plugin-markdown'],
    entryPoints: Object.values(entry),
    tsconfig: join(checkout, 'tsconfig.json'),
    outputs: [{ name: 'markdown', path: join(pages, 'api') }],
    readme: 'none',
    name: 'API',
    // The compiler has checked the source; to check it again takes as long as to write the reference.
    skipErrorChecking: true,
    excludeInternal: true,
    excludePrivate: true,
    disableSources: true,
    disableGit: true,
    ...{ outputFileStrategy: 'modules', entryFileName: 'index', hideBreadcrumbs: true, hidePageHeader: true },
    ...{ useCodeBlocks: true, sanitizeComments: true, parametersFormat: 'table', interfacePropertiesFormat: 'list' },
  });
  const project = await app.convert();
  if (project === undefined) throw new Error('typedoc could not read the source');
  for (const [subpath, source] of Object.entries(entry)) {
    const path = source.replace(/^src\//, '').replace(/\.ts$/, '');
    const module = project.children?.find(({ name }) => name === path || name === path.replace(/\/index$/, ''));
    if (module === undefined) throw new Error(`typedoc does not know ${source}`);
    module.name = subpath === 'index' ? 'holdfast' : `holdfast/${subpath}`;
  }
  await app.generateOutputs(project);
  if (app.logger.hasErrors()) throw new Error('typedoc could not write the reference');
  for (const file of globSync(join(pages, 'api', '**', '*.md'))) {
    const text = readFileSync(file, 'utf8');
    // The generator numbers a name that it assumes to occur twice; VitePress numbers it only if it does.
    const headings = [...text.matchAll(/^#+ (\w+)$/gm)].map(([, name]) => name!.toLowerCase());
    const isTwice = (name: string) => headings.filter((heading) => heading === name).length > 1;
    writeFileSync(
      file,
      text.replace(/\(#(\w+)-1\)/g, (link, name: string) => (isTwice(name) ? link : `(#${name})`)),
    );
  }
}

function readSite(): Map<string, string> {
  const files = globSync('**/*', { cwd: html }).filter((path) => statSync(join(html, path)).isFile());
  const isText = (path: string) => /\.(?:html|css|js)$/.test(path);
  return new Map(
    files.map((path) => [path.replaceAll('\\', '/'), isText(path) ? readFileSync(join(html, path), 'utf8') : '']),
  );
}
