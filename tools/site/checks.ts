/**
 * Finds faults of a built site: broken links, missing anchors, and resources that a browser would fetch from elsewhere. Links that a reader may
 * follow to other sites are allowed.
 */
import { posix } from 'node:path';

/** The files of a site by their path from its root, separated by `/`. Only text files need their content. */
export type Files = ReadonlyMap<string, string>;

export function faultsOf(files: Files): string[] {
  const pages = [...files].filter(([path]) => path.endsWith('.html'));
  if (pages.length === 0) return ['there is no page'];
  const links = pages.flatMap(([path, html]) => deadLinksOf(path, html, files));
  return [...links, ...[...files].flatMap(([path, text]) => foreignLoadsOf(path, text))];
}

function deadLinksOf(path: string, html: string, files: Files): string[] {
  return [...html.matchAll(/<a\b[^>]*?\shref="([^"]*)"/g)].flatMap(([, found]) => {
    const href = found!.replaceAll('&amp;', '&');
    if (/^[a-z][a-z+.-]*:|^\/\//i.test(href)) return [];
    const { pathname, hash } = new URL(href, `file:///${path}`);
    const target = pageAt(decodeURIComponent(pathname).slice(1), files);
    if (target === undefined) return [`${path}: ${href} leads nowhere`];
    const anchor = decodeURIComponent(hash.slice(1));
    const text = files.get(target)!;
    if (anchor === '' || text.includes(` id="${anchor}"`)) return [];
    return [`${path}: ${href}: ${target} has no #${anchor}`];
  });
}

function pageAt(path: string, files: Files): string | undefined {
  return [path, `${path}.html`, posix.join(path, 'index.html')].find((candidate) => files.has(candidate));
}

const loads = [
  /<(?:script|img|iframe|source|video|audio|embed|object|track)\b[^>]*?\s(?:src|srcset|data)="(?:https?:)?\/\/[^"]+"/gi,
  /<link\b[^>]*?\shref="(?:https?:)?\/\/[^"]+"/gi,
  /<form\b[^>]*?\saction="(?:https?:)?\/\/[^"]+"/gi,
];
const styleLoads = [/url\(\s*["']?(?:https?:)?\/\/[^)]+\)/gi, /@import\s+["'](?:https?:)?\/\/[^"']+/gi];
const scriptLoads = [/\b(?:import|fetch|importScripts|new Worker)\(\s*["'`](?:https?:)?\/\/[^"'`]+/gi];

function foreignLoadsOf(path: string, text: string): string[] {
  const patterns = path.endsWith('.html')
    ? [...loads, ...styleLoads.slice(0, 1)]
    : path.endsWith('.css')
      ? styleLoads
      : path.endsWith('.js')
        ? scriptLoads
        : [];
  return patterns.flatMap((pattern) =>
    (text.match(pattern) ?? []).map((found) => `${path} loads ${found.slice(0, 200)}`),
  );
}
