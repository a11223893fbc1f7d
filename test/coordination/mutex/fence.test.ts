import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import { DatabaseSync } from 'node:sqlite';
import express from 'express';
import Fastify from 'fastify';
import { fencedGuard, fencedUpdate, fenceGate, StaleFenceError } from 'holdfast';
import { describe, expect, it } from 'vitest';
import { fence as expressFence } from '../../../src/server/express.js';
import { fence as fastifyFence } from '../../../src/server/fastify.js';

describe('fenceGate', () => {
  it('accepts a fence that is not less than the greatest one so far, for each resource by itself', () => {
    const gate = fenceGate();
    for (const fence of [1, 1, 5, 5]) gate.check('a', fence);
    gate.check('b', 1);
    expect(() => gate.check('a', 4)).toThrow(StaleFenceError);
    expect(() => gate.check('a', 4)).toThrow(expect.objectContaining({ fence: 4, newestFence: 5, resource: 'a' }));
  });

  it('forgets the resource that has not been checked for the longest time', () => {
    const gate = fenceGate({ max: 2 });
    for (const name of ['a', 'b', 'a', 'c']) gate.check(name, 5);
    expect(gate.size).toBe(2);
    expect(() => gate.check('a', 4)).toThrow(StaleFenceError);
    gate.check('b', 1);
  });

  it('gives the error a stack that shows where the stale write was', () => {
    const gate = fenceGate();
    gate.check('a', 2);
    const refusal = () => gate.check('a', 1);
    expect(refusal).toThrow(expect.objectContaining({ stack: expect.stringContaining('fence.test.ts') }));
  });

  it('refuses a capacity of zero, and a resource without a name', () => {
    expect(() => fenceGate({ max: 0 })).toThrow('"max" must be');
    for (const resource of ['', 5, undefined])
      expect(() => fenceGate().check(resource as never, 1)).toThrow('"resource"');
  });

  it('refuses a fence that is not an integer', () => {
    for (const fence of [-1, 1.5, Number.NaN, '7' as never])
      expect(() => fenceGate().check('a', fence)).toThrow('fence');
  });
});

describe('fencedUpdate and fencedGuard', () => {
  const db = new DatabaseSync(':memory:');
  db.exec('CREATE TABLE jobs (id INTEGER PRIMARY KEY, body TEXT, fence BIGINT NOT NULL DEFAULT 0)');
  db.exec("INSERT INTO jobs (id, body) VALUES (1, 'new'), (2, 'other')");
  db.exec('CREATE TABLE holdfast_fences (resource TEXT PRIMARY KEY, fence BIGINT NOT NULL)');
  const run = ({ text, values }: ReturnType<typeof fencedUpdate>) =>
    Number(db.prepare(text).run(...(values as (string | number)[])).changes);

  it('writes the row unless a greater fence has written it', () => {
    const update = (fence: number, body: string) =>
      run(fencedUpdate({ table: 'jobs', set: { body }, where: { id: 1 }, fence, placeholders: '?' }));
    expect([update(7, 'seven'), update(7, 'again'), update(6, 'stale'), update(8, 'eight')]).toEqual([1, 1, 0, 1]);
    expect(db.prepare('SELECT body, fence FROM jobs ORDER BY id').all()).toEqual([
      { body: 'eight', fence: 8 },
      { body: 'other', fence: 0 },
    ]);
  });

  it('numbers its values for Postgres', () => {
    const { text, values } = fencedUpdate({
      table: 'app.jobs',
      set: { body: 'x' },
      where: { id: 1, tenant: 2 },
      fence: 9,
    });
    expect(text).toBe('UPDATE app.jobs SET body = $1, fence = $2 WHERE id = $3 AND tenant = $4 AND fence <= $5');
    expect(values).toEqual(['x', 9, 1, 2, 9]);
    expect(fencedGuard({ resource: 'invoices', fence: 9, table: 'app.fences' })).toEqual({
      text: 'INSERT INTO app.fences (resource, fence) VALUES ($1, $2) ON CONFLICT (resource) DO UPDATE SET fence = excluded.fence WHERE fences.fence <= excluded.fence',
      values: ['invoices', 9],
    });
  });

  it('guards a transaction by one row', () => {
    const guard = (fence: number) => run(fencedGuard({ resource: 'invoices', fence, placeholders: '?' }));
    expect([guard(7), guard(7), guard(6), guard(8)]).toEqual([1, 1, 0, 1]);
  });

  it('refuses invalid names', () => {
    const bad = { table: 'jobs; DROP TABLE jobs', set: { body: 1 }, where: { id: 1 }, fence: 1 };
    expect(() => fencedUpdate(bad)).toThrow('"table" must be a name');
    expect(() => fencedUpdate({ ...bad, table: 'jobs', set: { 'body = 1 --': 1 } })).toThrow('"set"');
    expect(() => fencedUpdate({ ...bad, table: 'jobs', where: {} })).toThrow('"where"');
    expect(() => fencedGuard({ resource: 'a', fence: -1 })).toThrow('"fence"');
    const long = 'x'.repeat(63);
    for (const table of ['jobs', '_j0', 'app.jobs', long, `${long}.${long}`]) {
      expect(fencedUpdate({ ...bad, table }).text).toContain(`UPDATE ${table} SET`);
    }
    for (const table of [
      '',
      '1a',
      'a b',
      ' a',
      'a;',
      "a'",
      'a.',
      '.a',
      'a..b',
      'a.1',
      'a.b.c',
      'a.b;',
      'ä',
      `${long}x`,
      `a.${long}x`,
    ]) {
      expect(() => fencedUpdate({ ...bad, table })).toThrow('"table" must be a name');
    }
  });
});

describe('fence of express and fastify', () => {
  const statuses = [
    ['7', 200],
    ['7', 200],
    ['6', 412],
    ['x', 400],
    ['-1', 400],
    ['9'.repeat(16), 400],
    [undefined, 428],
    ['8', 200],
  ] as const;

  it('lets through requests with a fence that is not stale: express', async () => {
    const app = express();
    app.put('/:id', expressFence({ resource: ({ path }) => path }), (_request, response) => void response.send('ok'));
    const server = app.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as AddressInfo;
    for (const [fence, status] of statuses) {
      const headers: Record<string, string> = fence === undefined ? {} : { fence };
      const answer = await fetch(`http://127.0.0.1:${port}/4`, { method: 'PUT', headers });
      expect([fence, answer.status]).toEqual([fence, status]);
      if (status !== 200) expect(await answer.json()).toMatchObject({ status, code: 'ERR_STALE_FENCE' });
    }
    server.closeAllConnections();
    server.close();
  });

  it('lets through requests with a fence that is not stale: fastify', async () => {
    const app = Fastify();
    await app.register(fastifyFence, { resource: ({ url }) => url });
    app.put('/:id', () => 'ok');
    for (const [fence, status] of statuses) {
      const headers: Record<string, string> = fence === undefined ? {} : { fence };
      const answer = await app.inject({ method: 'PUT', url: '/4', headers });
      expect([fence, answer.statusCode]).toEqual([fence, status]);
    }
    await app.close();
  });

  it('tells resources apart however long their names are, which must be texts', async () => {
    const app = Fastify({ maxParamLength: 1_000 });
    await app.register(fastifyFence, { resource: ({ url }) => (url === '/none' ? undefined : url) as string });
    app.put('/:id', () => 'ok');
    const put = async (id: string, fence: string) => {
      const answer = await app.inject({ method: 'PUT', url: `/${id}`, headers: { fence } });
      return answer.statusCode;
    };
    const long = 'x'.repeat(300);
    expect([await put(long, '7'), await put(long, '6'), await put(`${long}y`, '6'), await put('none', '7')]).toEqual([
      ...[200, 412, 200, 500],
    ]);
    await app.close();
  });

  it('handles requests without a fence, if it is told to', async () => {
    const app = Fastify();
    await app.register(fastifyFence, { resource: ({ url }) => url, missing: 'allow' });
    app.put('/:id', () => 'ok');
    expect((await app.inject({ method: 'PUT', url: '/4' })).statusCode).toBe(200);
    await app.close();
    await expect(Fastify().register(fastifyFence, {} as never)).rejects.toThrow('"resource" is required');
  });
});
