/**
 * Discard body: reads the short rest of an unwanted response, so that its connection can serve the next request. A long or slow rest is cancelled,
 * which closes the connection.
 */
import type { Readable } from 'node:stream';
import { callbackTimer, systemClock } from '../core/clock.js';

/** About as much as arrives anyway before a cancellation takes effect. */
export const mostDroppedBytes = 64 * 1_024;
export const mostDroppedMs = 1_000;

/**
 * Frees the connection of a `fetch` response that is discarded: for `retry({ onDiscard: discardBody })`. Reads up
 * to 64 KiB for up to a second, else cancels the body. Never throws; does not touch a body that is already being read.
 *
 * @example
 * ```ts
 * import { discardBody } from 'holdfast/fetch';
 *
 * const response = new Response('not wanted');
 * discardBody(response);
 * console.log(response.bodyUsed); // true
 * ```
 */
export function discardBody(response: unknown): void {
  const reader = readerOf((response as Partial<Response> | null | undefined)?.body);
  if (reader !== undefined) drain(reader).catch(() => {});
}

type Reader = Pick<ReadableStreamDefaultReader<Uint8Array>, 'read' | 'cancel'>;

/** Reads a stream of the standard, or one of Node, as node-fetch returns; undefined for one that is being read, and for anything else. */
function readerOf(body: (ReadableStream & Partial<Readable>) | null | undefined): Reader | undefined {
  if (typeof body?.getReader === 'function') return body.locked ? undefined : body.getReader();
  if (typeof body?.destroy !== 'function' || body.readableFlowing !== null) return undefined;
  const chunks = (body as Readable)[Symbol.asyncIterator]();
  return { read: () => chunks.next() as ReturnType<Reader['read']>, cancel: async () => void body.destroy!() };
}

async function drain(reader: Reader): Promise<void> {
  const cancel = () => void reader.cancel().catch(() => {});
  const patience = callbackTimer(cancel);
  systemClock.schedule(patience, systemClock.now() + mostDroppedMs);
  try {
    for (let bytes = 0; bytes <= mostDroppedBytes; ) {
      const { done, value } = await reader.read();
      if (done) return;
      bytes += value.byteLength;
    }
    cancel();
  } finally {
    systemClock.cancel(patience);
  }
}
