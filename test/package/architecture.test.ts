/** The directions of imports in src, and a proof that each rule can be broken. */
import { globSync, readFileSync } from 'node:fs';
import { sep } from 'node:path';
import { describe, expect, it } from 'vitest';
import { mayImport, type Rule, violations } from '../../tools/gates/architecture.ts';

const files = globSync('src/**/*.ts').map((file) => file.split(sep).join('/'));
const sources = new Map(files.map((file) => [file, readFileSync(file, 'utf8')]));

describe('the imports of src', () => {
  it('are all seen', () => {
    expect(files.length).toBeGreaterThan(10);
  });

  it('run one way', () => {
    expect(violations(sources).map(({ message }) => message)).toEqual([]);
  });
});

describe('CONTRIBUTING.md', () => {
  it('says of each folder what it may import, as the rules do', () => {
    const rows = readFileSync('CONTRIBUTING.md', 'utf8').matchAll(/^\| `src\/(\w+)` \|.*\| (.*) \|$/gm);
    const told = Array.from(rows, ([, folder, imports]) => [folder, imports!.replaceAll('`', '').split(', ').sort()]);
    const { index: _, ...folders } = mayImport;
    const rules = Object.entries(folders).map(([folder, imports]) => [folder, imports.toSorted()]);
    expect(Object.fromEntries(told)).toEqual({ ...Object.fromEntries(rules), cli: ['anything'] });
  });
});

/** A tree of sound files, to which others are added or which others replace. */
function tree(changes: Record<string, string>): Map<string, string> {
  const sound = {
    'src/index.ts': "export { pipeline } from './core/pipeline.js';\nexport type { Event } from './core/events.js';",
    'src/core/pipeline.ts': "import { Ring } from '../structures/ring.js'; export const pipeline = Ring;",
    'src/core/events.ts': 'export interface Event {}',
    'src/structures/ring.ts': 'export const Ring = 1;',
    'src/policies/retry/retry.ts': "import { pipeline } from '../../core/pipeline.js'; export const retry = pipeline;",
    'src/stores/store.ts': "import type { Event } from '../core/events.js'; export type Store = Event;",
    'src/stores/memory.ts': "import { LRUCache } from 'lru-cache'; export const memory = LRUCache;",
    'src/stores/redis.ts': "import type { Store } from './store.js'; export type Redis = Store;",
    'src/coordination/mutex.ts': "import { memory } from '../stores/memory.js'; export const mutex = memory;",
    'src/server/express.ts': "import type { Request } from 'express'; export type Ours = Request;",
    'src/server/fastify.ts': "import type { FastifyReply } from 'fastify'; import plugin from 'fastify-plugin';",
    'src/client/rate-limit-headers.ts':
      "import { parseList } from 'structured-headers'; export const parse = parseList;",
    'src/testing/clock.ts': "import type { Store } from '../stores/store.js'; export type Clock = Store;",
    'src/integrations/otel.ts': "import type { Event } from '../core/events.js'; export type Otel = Event;",
    'src/cli/main.ts': "import { parseArgs } from 'node:util'; void import('./demo.js').then(() => parseArgs);",
    'src/cli/demo.ts': "import { clock } from '../testing/clock.js'; import { mutex } from '../coordination/mutex.js';",
  };
  return new Map(Object.entries({ ...sound, ...changes }));
}

const broken: readonly { rule: Rule; when: string; file: string; text: string }[] = [
  {
    rule: 'direction',
    when: 'core imports a policy',
    file: 'src/core/bad.ts',
    text: "import '../policies/retry/retry.js';",
  },
  {
    rule: 'direction',
    when: 'a structure imports core',
    file: 'src/structures/bad.ts',
    text: "export * from '../core/events.js';",
  },
  {
    rule: 'direction',
    when: 'a policy imports a store',
    file: 'src/policies/bad.ts',
    text: "void import('../stores/memory.js');",
  },
  {
    rule: 'direction',
    when: 'a store imports coordination',
    file: 'src/stores/bad.ts',
    text: "import '../coordination/mutex.js';",
  },
  {
    rule: 'direction',
    when: 'coordination imports a concrete store, even a type of it',
    file: 'src/coordination/bad.ts',
    text: "type Bad = import('../stores/redis.js').Redis;",
  },
  {
    rule: 'direction',
    when: 'a server adapter imports a store',
    file: 'src/server/bad.ts',
    text: "import '../stores/memory.js';",
  },
  {
    rule: 'direction',
    when: 'a client imports a store',
    file: 'src/client/bad.ts',
    text: "import '../stores/redis.js';",
  },
  {
    rule: 'direction',
    when: 'testing imports a policy',
    file: 'src/testing/bad.ts',
    text: "import '../policies/retry/retry.js';",
  },
  {
    rule: 'direction',
    when: 'an integration imports coordination',
    file: 'src/integrations/bad.ts',
    text: "import '../coordination/mutex.js';",
  },
  {
    rule: 'nobody-imports',
    when: 'coordination imports testing',
    file: 'src/coordination/bad.ts',
    text: "import type { Clock } from '../testing/clock.js';",
  },
  {
    rule: 'nobody-imports',
    when: 'core imports an integration',
    file: 'src/core/bad.ts',
    text: "import '../integrations/otel.js';",
  },
  {
    rule: 'nobody-imports',
    when: 'a client imports the cli',
    file: 'src/client/bad.ts',
    text: "import '../cli/demo.js';",
  },
  {
    rule: 'nobody-imports',
    when: 'the main entry names testing',
    file: 'src/index.ts',
    text: "export { clock } from './testing/clock.js';",
  },
  { rule: 'no-cycles', when: 'a file imports itself', file: 'src/structures/ring.ts', text: "import './ring.js';" },
  {
    rule: 'no-node-imports',
    when: 'a module of Node is imported',
    file: 'src/core/bad.ts',
    text: "import { readFile } from 'node:fs';",
  },
  {
    rule: 'no-node-imports',
    when: 'a module of Node is required',
    file: 'src/core/bad.ts',
    text: "const fs = require('node:fs');",
  },
  {
    rule: 'only-known-packages',
    when: 'a peer is imported, even its types',
    file: 'src/server/bad.ts',
    text: "import type { Request } from 'express';",
  },
  {
    rule: 'only-known-packages',
    when: 'an adapter imports its framework, and not only its types',
    file: 'src/server/express.ts',
    text: "import express from 'express';",
  },
  {
    rule: 'only-known-packages',
    when: 'an adapter imports what is bundled into another one',
    file: 'src/server/express.ts',
    text: "import plugin from 'fastify-plugin';",
  },
  {
    rule: 'only-known-packages',
    when: 'a package that is bundled for one file is imported by another',
    file: 'src/client/bad.ts',
    text: "import { parseList } from 'structured-headers';",
  },
  { rule: 'only-known-packages', when: 'core imports a package', file: 'src/core/bad.ts', text: "import 'lru-cache';" },
  { rule: 'known-folders', when: 'a folder is new', file: 'src/utilities/bad.ts', text: 'export {};' },
  { rule: 'resolvable', when: 'the file is missing', file: 'src/core/bad.ts', text: "import './nowhere.js';" },
  {
    rule: 'index-only-names',
    when: 'the main entry computes',
    file: 'src/index.ts',
    text: 'export const answer = 42;',
  },
  {
    rule: 'index-only-names',
    when: 'the main entry exports whatever types there are',
    file: 'src/index.ts',
    text: "export type * from './core/events.js';",
  },
  {
    rule: 'index-only-names',
    when: 'the main entry exports whatever there is',
    file: 'src/index.ts',
    text: "export * from './core/pipeline.js';",
  },
];

describe('the rules of architecture', () => {
  it('accept a sound tree', () => {
    expect(violations(tree({}))).toEqual([]);
  });

  it.each(broken)('$rule is broken when $when', ({ rule, file, text }) => {
    const found = violations(tree({ [file]: text }));
    expect(found.map((violation) => violation.rule)).toContain(rule);
    const { message } = found.find((violation) => violation.rule === rule)!;
    expect(message).toContain(rule);
    expect(message).toContain(file);
  });

  it('find a cycle through several files, and let types know each other', () => {
    const viaThree = tree({
      'src/core/a.ts': "import './b.js';",
      'src/core/b.ts': "import './c.js';",
      'src/core/c.ts': "export { a } from './a.js';",
    });
    expect(violations(viaThree).map(({ message }) => message)).toEqual([
      'no-cycles: src/core/a.ts -> src/core/b.ts -> src/core/c.ts -> src/core/a.ts',
    ]);
    const byTypes = tree({ 'src/core/a.ts': "import type { B } from './b.js';", 'src/core/b.ts': "import './a.js';" });
    expect(violations(byTypes)).toEqual([]);
  });
});
