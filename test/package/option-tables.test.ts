/** The tables of options in the pages name exactly what the factories accept. */
import { readFileSync } from 'node:fs';
import { DatabaseSync } from 'node:sqlite';
import * as openTelemetry from '@opentelemetry/api';
import { Redis } from 'ioredis';
import pg from 'pg';
import * as prometheus from 'prom-client';
import { describe, expect, it } from 'vitest';
import { createFetch } from '../../src/client/fetch.js';
import * as holdfast from '../../src/index.js';
import { instrument as withOpenTelemetry } from '../../src/integrations/opentelemetry.js';
import { instrument as withPrometheus } from '../../src/integrations/prometheus.js';
import { deadline, health, responseCache } from '../../src/server/express.js';
import { postgresStore } from '../../src/stores/postgres.js';
import { redisStore } from '../../src/stores/redis.js';
import { sqliteStore } from '../../src/stores/sqlite.js';

type Factory = (options: never) => unknown;

const pages: Readonly<Record<string, readonly Factory[]>> = {
  'adaptive-limit': [holdfast.adaptiveLimit],
  bulkhead: [holdfast.bulkhead],
  cache: [holdfast.cache],
  'circuit-breaker': [holdfast.circuitBreaker],
  deadline: [holdfast.deadline],
  'deadline-middleware': [deadline],
  fallback: [(options) => holdfast.fallback(() => 1, options)],
  fetch: [createFetch],
  health: [health],
  hedge: [holdfast.hedge],
  idempotency: [holdfast.idempotency],
  keyed: [(options) => holdfast.keyed(() => holdfast.timeout(1), options)],
  'load-shed': [holdfast.loadShed],
  mutex: [holdfast.mutex],
  'rate-limit': [holdfast.rateLimit],
  'response-cache': [responseCache],
  retry: [holdfast.retry],
  'single-flight': [holdfast.singleFlight],
  standard: [holdfast.standard],
  stores: [
    holdfast.memoryStore,
    (options) => redisStore(new Redis({ lazyConnect: true }), options),
    (options) => postgresStore(new pg.Pool(), options),
    (options) => sqliteStore(new DatabaseSync(':memory:'), options),
  ],
  telemetry: [
    (options) => withPrometheus({ client: prometheus, ...(options as object) }),
    (options) => withOpenTelemetry({ api: openTelemetry, ...(options as object) }),
  ],
  throttle: [holdfast.throttle],
  timeout: [holdfast.timeout],
};

/** A factory that is given an unknown option names those that it knows. */
function optionsOf(factory: Factory): readonly string[] {
  try {
    factory({ 'known nowhere': 1 } as never);
  } catch (error) {
    if (error instanceof holdfast.OptionsError) return namesIn(error.allowed, /"(\w+)"/g);
    throw error;
  }
  throw new Error('the option was taken');
}

/** The tables that begin with "option": what each row says before the column "meaning", which is the option and, for stores, the store. */
function tablesOf(page: string): readonly (readonly string[])[] {
  const tables = readFileSync(`docs/${page}.md`, 'utf8').match(/^\| option\b[^\n]*\n(?:\|[^\n]*\n)+/gm) ?? [];
  return tables.map((table) => {
    const [header, , ...rows] = table
      .trim()
      .split('\n')
      .map((line) => line.split('|'));
    const meaningIndex = header!.findIndex((cell) => cell.trim() === 'meaning');
    return rows.map((cells) => cells.slice(1, meaningIndex).join('|'));
  });
}

/** A part such as `halfOpen.permits` stands for the whole option. */
function optionsInTables(page: string): readonly string[] {
  const rows = tablesOf(page).flat();
  return rows.flatMap((row) => namesIn(row.split('|')[0]!, /`(\w+)/g));
}

function namesIn(text: string, pattern: RegExp): string[] {
  return [...text.matchAll(pattern)].map(([, name]) => name!);
}

const sorted = (names: readonly string[]) => [...new Set(names)].sort();

describe('the tables of options', () => {
  it.each(Object.entries(pages))('of docs/%s.md name every option and no other', (page, factories) => {
    expect(sorted(optionsInTables(page))).toEqual(sorted(factories.flatMap(optionsOf)));
  });

  it.each(Object.keys(pages))('of docs/%s.md have one row for each', (page) => {
    for (const rows of tablesOf(page)) expect(rows.filter((row, index) => rows.indexOf(row) !== index)).toEqual([]);
  });
});
