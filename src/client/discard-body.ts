/**
 * Discard body: reads the short rest of an unwanted response, so that its connection can serve the next request. A long or slow rest is cancelled,
 * which closes the connection.
 */
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
  const body = (response as Partial<Response> | null | undefined)?.body;
  if (typeof body?.getReader !== 'function' || body.locked) return;
  drain(body.getReader() as ReadableStreamDefaultReader<Uint8Array>).catch(() => {});
}

async function drain(reader: ReadableStreamDefaultReader<Uint8Array>): Promise<void> {
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
