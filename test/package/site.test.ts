/** The checks of the docs site, on sites that are small enough to understand. `npm run docs` applies them to the real site. */
import { describe, expect, it } from 'vitest';
import { faultsOf } from '../../tools/site/checks.ts';

const site = (files: Readonly<Record<string, string>>) => faultsOf(new Map(Object.entries(files)));

describe('the checks of the site', () => {
  it('find nothing wrong with a site whose links and resources are its own', () => {
    const faults = site({
      'index.html': '<link href="/a.css"><a class="x" href="/docs/retry">1</a> <a href="#here">2</a><h1 id="here">',
      'docs/retry.html': '<a href="../#here">1</a> <a href="./retry.html#a&amp;b">2</a> <h2 id="a&b"></h2>',
      'a.css': '@font-face { src: url(/inter.woff2) }',
    });
    expect(faults).toEqual([]);
  });

  it('leave it to the reader to follow a link to the outside', () => {
    expect(site({ 'index.html': '<a href="https://example.org/x">1</a><a href="mailto:a@example.org">2</a>' })).toEqual(
      [],
    );
  });

  it.each([
    ['a page that is not there', '<a href="/docs/none">1</a>', 'index.html: /docs/none leads nowhere'],
    ['a heading that is not there', '<a href="#none">1</a>', 'index.html: #none: index.html has no #none'],
    [
      'a script from elsewhere',
      '<script src="https://cdn.example.org/x.js">',
      'index.html loads <script src="https://cdn',
    ],
    [
      'an image from elsewhere',
      '<img alt="" src="//img.example.org/x.png">',
      'index.html loads <img alt="" src="//img',
    ],
    ['a style from elsewhere', '<link rel="x" href="https://a.example.org/x">', 'index.html loads <link rel="x" href='],
  ])('find %s', (_, html, fault) => {
    expect(site({ 'index.html': html })).toEqual([expect.stringContaining(fault)]);
  });

  it('find what styles and scripts load from elsewhere', () => {
    const faults = site({
      'index.html': '',
      'a.css': '@font-face { src: url("https://fonts.example.org/x.woff2") }',
      'a.js': "import('https://cdn.example.org/x.js')",
    });
    expect(faults).toHaveLength(2);
  });

  it('do not take a site without pages for a good one', () => {
    expect(site({})).toEqual(['there is no page']);
  });
});
