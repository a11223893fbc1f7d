/** Shared memory: on a Node without SQLite, one process of the demo keeps the records of all others, which access it over HTTP. */
import { StoreError } from '../../core/errors.js';
import type { Refused, Store, StoreRemoveOptions, StoreWriteOptions, Written } from '../../stores/store.js';

/** A serialized call of a store verb; bytes are base64. */
export type StoreQuestion =
  | { readonly verb: 'read'; readonly key: string }
  | ({ readonly verb: 'write'; readonly key: string; readonly value: string } & Omit<StoreWriteOptions, 'signal'>)
  | ({ readonly verb: 'remove'; readonly key: string } & Omit<StoreRemoveOptions, 'signal'>);

interface SentEntry {
  readonly value: string;
  readonly version: number;
  readonly ageMs: number;
  readonly ttlMs: number;
}

type SentWrite = Written | { readonly ok: false; readonly entry?: SentEntry };

/** Runs a serialized verb in the process that has the store. */
export async function answerFrom(store: Store, question: StoreQuestion): Promise<unknown> {
  if (question.verb === 'read') return packed(await store.read(question.key)) ?? null;
  if (question.verb === 'remove') return store.remove(question.key, { ifVersion: question.ifVersion });
  const { key, value, ttlMs, ifVersion, evictable } = question;
  const answer = await store.write(key, Buffer.from(value, 'base64'), { ttlMs, ifVersion, evictable });
  return answer.ok ? answer : { ok: false, entry: packed(answer.entry) };
}

/** The same store as seen by the other processes. */
export function storeBehind(ask: (question: StoreQuestion, signal?: AbortSignal) => Promise<unknown>): Store {
  async function asked<Answer>(question: StoreQuestion, signal?: AbortSignal): Promise<Answer> {
    try {
      return (await ask(question, signal)) as Answer;
    } catch (cause) {
      signal?.throwIfAborted();
      const detail = 'the process that keeps the records did not answer';
      const { verb: operation } = question;
      throw new StoreError({ store: 'demo', operation, reason: 'failed', applied: 'unknown', detail, cause });
    }
  }
  return {
    async read(key, { signal } = {}) {
      return unpacked((await asked<SentEntry | null>({ verb: 'read', key }, signal)) ?? undefined);
    },
    async write(key, value, { signal, ...options }): Promise<Written | Refused> {
      const bytes = Buffer.from(value).toString('base64');
      const answer = await asked<SentWrite>({ verb: 'write', key, value: bytes, ...options }, signal);
      return answer.ok ? answer : { ok: false, entry: unpacked(answer.entry) };
    },
    remove: (key, { signal, ...options } = {}) => asked<boolean>({ verb: 'remove', key, ...options }, signal),
  };
}

function packed(entry: Awaited<ReturnType<Store['read']>>): SentEntry | undefined {
  return entry && { ...entry, value: Buffer.from(entry.value).toString('base64') };
}

function unpacked(entry: SentEntry | undefined): Awaited<ReturnType<Store['read']>> {
  return entry && { ...entry, value: new Uint8Array(Buffer.from(entry.value, 'base64')) };
}
