/**
 * A world in which processes share idempotency keys over a bad network: they crash, freeze and come back, replies are lost, clocks
 * run apart. The store looks at each record that is written, and holds it against the table of states.
 */
import { memoryStore, type Store, StoreError } from 'holdfast';
import type { SimulatedNode, SimulatedProcess, World } from 'holdfast/testing';
import { decodeRecord, type IdempotencyRecord } from '../../../src/coordination/idempotency/record.js';

export const leaseMs = 2_000;

interface Asked {
  readonly verb: 'read' | 'write';
  readonly key: string;
  readonly value: readonly number[];
  readonly ttlMs: number;
  readonly ifVersion?: number | undefined;
}

/** The server of the records. */
export function storeNode(world: World, onLost: 'rerun' | 'resume' | 'refuse'): SimulatedNode {
  const clock = world.clock;
  const kept = memoryStore({ clock });
  return world.node('store', {
    start: (process) =>
      process.serve(async ({ verb, key, value, ttlMs, ifVersion }: Asked) => {
        await process.sleep(process.random.between(0, 3));
        const before = await kept.read(key);
        if (verb === 'read') return before && { ...before, value: [...before.value] };
        const answer = await kept.write(key, Uint8Array.from(value), { ttlMs, ifVersion });
        if (answer.ok) {
          const to = decodeRecord(Uint8Array.from(value));
          const from = before && decodeRecord(before.value);
          const fault = faultOf(from, before?.version ?? 0, before?.ageMs ?? 0, to, onLost);
          if (fault !== undefined) throw new Error(`the table does not know ${from?.state} -> ${to.state}: ${fault}`);
          return answer;
        }
        return { ok: false, entry: answer.entry && { ...answer.entry, value: [...answer.entry.value] } };
      }),
  });
}

/** The table of states, row by row, as what a write may do to what is there. */
function faultOf(
  from: IdempotencyRecord | undefined,
  version: number,
  ageMs: number,
  to: IdempotencyRecord,
  onLost: 'rerun' | 'resume' | 'refuse',
): string | undefined {
  if (from === undefined) {
    const isFirst = to.state === 'running' && to.attempt === 1 && to.fence === 0;
    return isFirst ? undefined : 'absent begins with a first attempt';
  }
  if (!same(from.fingerprint, to.fingerprint)) return 'the fingerprint changed';
  const isOwner = same(from.owner, to.owner);
  switch (from.state) {
    case 'completed':
      return 'completed is for good';
    case 'in-doubt':
      return to.state === 'completed' || to.state === 'idle' ? undefined : 'only resolve ends a doubt';
    case 'idle':
      return to.state === 'running' && !isOwner && to.attempt === from.attempt + 1 && to.fence === 0
        ? undefined
        : 'idle goes on with a new attempt';
    case 'running': {
      if (isOwner) {
        const fence = from.fence === 0 ? version : from.fence;
        if (to.state !== 'idle' && to.fence !== fence) return `the fence moved from ${fence} to ${to.fence}`;
        if (to.state === 'idle') return undefined;
        return to.attempt === from.attempt ? undefined : 'an owner changed the attempt';
      }
      if (ageMs < from.leaseMs) return `somebody else wrote ${from.leaseMs - ageMs} ms before the end of the lease`;
      if (from.isSealed || onLost === 'refuse') return to.state === 'in-doubt' ? undefined : 'it must be in doubt';
      return to.state === 'running' && to.attempt === from.attempt + 1 ? undefined : 'a takeover is the next attempt';
    }
  }
}

function same(one: Uint8Array, other: Uint8Array): boolean {
  return Buffer.compare(one, other) === 0;
}

/** The store as a process sees it: over the network, with a timeout of its own. */
export function remoteStore(process: SimulatedProcess, server: SimulatedNode): Store {
  async function ask<Answer>(asked: Asked): Promise<Answer> {
    const controller = new AbortController();
    const patience = process.sleep(200, { signal: controller.signal }).then(
      () => controller.abort(),
      () => {},
    );
    try {
      return await process.request<Answer>(server, asked, { signal: controller.signal });
    } catch (cause) {
      const applied = (cause as { code?: string }).code === 'ECONNREFUSED' ? 'no' : 'unknown';
      // What the server says of the table must end the simulation.
      if ((cause as { code?: string }).code === 'ERR_REMOTE') broken.push(cause);
      throw new StoreError({
        store: 'remote',
        operation: asked.verb,
        reason: 'timeout',
        applied,
        detail: 'lost',
        cause,
      });
    } finally {
      controller.abort();
      await patience;
    }
  }
  type Shown = { value: readonly number[]; version: number; ageMs: number; ttlMs: number } | undefined;
  const entry = (shown: Shown) => shown && { ...shown, value: Uint8Array.from(shown.value) };
  return {
    read: async (key) => entry(await ask<Shown>({ verb: 'read', key, value: [], ttlMs: 1 })),
    async write(key, value, { ttlMs, ifVersion }) {
      type Answer = { ok: true; version: number } | { ok: false; entry: Shown };
      const answer = await ask<Answer>({ verb: 'write', key, value: [...value], ttlMs, ifVersion });
      return answer.ok ? answer : { ok: false, entry: entry(answer.entry) };
    },
    remove: () => Promise.reject(new Error('the engine removes nothing')),
  };
}

/** What the table did not know. */
export const broken: unknown[] = [];
