/**
 * Resolve: ends the doubt about a request, by the answer that an operator or a reconciler has found out.
 */
import type { Idempotency } from '../../coordination/idempotency/idempotency.js';
import { OptionsError } from '../../core/errors.js';
import { encodeAnswer } from './answer.js';
import { keptHeaders } from './protocol.js';

/** Which request is meant, and how the doubt about it ends. */
export type RequestResolution = {
  /** What `scope(request)` gave for it. */
  readonly scope: string;
  /**
   * Method and route, as the router knows it: `POST /orders/:id`. Where there is no router, method and path. Constraints of a Fastify route
   * come behind it: `POST /orders/:id version=2.0.0`.
   */
  readonly operation: string;
} & (
  | {
      /** What it is answered from now on. */
      readonly answer: {
        readonly status: number;
        readonly headers?: Readonly<Record<string, string>>;
        readonly body?: string | Uint8Array;
      };
    }
  /** Nothing had happened: the next request with the key runs. */
  | { readonly release: true }
);

/**
 * Ends the doubt that `onLost: 'refuse'` leaves about a request whose process was lost.
 *
 * @param engine - Made by `idempotency(...)` of `holdfast` on the same store, with the same `secret` and `encryption`.
 * @param key - The idempotency key that the client has sent, without quotes.
 * @returns False when there is no doubt: it runs, has an answer, or was never heard of.
 * @throws {@link OptionsError} `ERR_OPTIONS` for a status that no answer can have.
 */
export function resolveRequest(engine: Idempotency, key: string, resolution: RequestResolution): Promise<boolean> {
  const { scope, operation } = resolution;
  if (!('answer' in resolution)) return engine.resolveBytes({ scope, operation, key }, undefined);
  const { status, headers = {}, body = '' } = resolution.answer;
  if (!Number.isInteger(status) || status < 200 || status > 599) {
    const allowed = 'an integer from 200 to 599';
    const about = { policy: 'resolveRequest', option: 'status', value: status, allowed };
    throw new OptionsError(`resolveRequest: option "status" must be ${allowed}, got ${String(status)}`, about);
  }
  const bytes = encodeAnswer({
    ...{ status, statusMessage: '', headers: keptHeaders(Object.entries(headers)) },
    body: typeof body === 'string' ? new TextEncoder().encode(body) : body,
  });
  return engine.resolveBytes({ scope, operation, key }, bytes);
}
