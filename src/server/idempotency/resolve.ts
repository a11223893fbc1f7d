/**
 * Resolve: settles a request in doubt with the response that an operator or a reconciliation job has established.
 */

import { longestPart } from '../../coordination/idempotency/engine.js';
import type { Idempotency } from '../../coordination/idempotency/idempotency.js';
import { OptionsError } from '../../core/errors.js';
import { checkOptions, type Field, flag, having, impossibleOption, optional, withDefault } from '../../core/options.js';
import { shortened } from '../shortened.js';
import { encodeAnswer } from './answer.js';
import { keptHeaders } from './protocol.js';

/** A response that has been established. */
interface ResolvedAnswer {
  readonly status: number;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string | Uint8Array;
}

/** Identifies the request, and how its doubt is settled. */
export type RequestResolution = {
  /** What `scope(request)` returned for it. */
  readonly scope: string;
  /**
   * Method and route, as the router knows it: `POST /orders/:id`. Without a router, method and path. Constraints of a Fastify route
   * follow it: `POST /orders/:id version=2.0.0`.
   */
  readonly operation: string;
} & (
  | {
      /** The response from now on. */
      readonly answer: ResolvedAnswer;
    }
  /** Nothing had happened: the next request with the key runs. */
  | { readonly release: true }
);

/**
 * Settles the doubt that `onLost: 'refuse'` leaves about a request whose process was lost.
 *
 * @param engine - Created by `idempotency(...)` of `holdfast` on the same store, with the same `secret` and `encryption`.
 * @param key - The idempotency key that the client has sent, without quotes.
 * @returns False when it is not in doubt: it runs, has a response, or is unknown.
 * @throws {@link OptionsError} `ERR_OPTIONS` for a resolution that is invalid, such as a status that no response can have.
 */
export function resolveRequest(engine: Idempotency, key: string, resolution: RequestResolution): Promise<boolean> {
  const { scope, operation, answer, release } = checkOptions('resolveRequest', resolution, {
    scope: nameOfRequest,
    operation: nameOfRequest,
    answer: optional(having<ResolvedAnswer>('{ status, headers, body }')),
    release: withDefault(flag(), false),
  });
  // A misspelt "answer" must not release the key: the request would run again.
  if ((answer === undefined) !== release) {
    throw impossibleOption('resolveRequest', 'answer', answer, 'given, or else "release: true"');
  }
  if (answer === undefined) return engine.resolveBytes({ scope, operation, key }, undefined);
  const { status, headers = {}, body = '' } = answer;
  if (!Number.isInteger(status) || status < 200 || status > 599) {
    const allowed = 'an integer from 200 to 599';
    const about = { policy: 'resolveRequest', option: 'status', value: status, allowed };
    throw new OptionsError(`resolveRequest: option "status" must be ${allowed}, got ${String(status)}`, about);
  }
  const bytes = encodeAnswer({
    status,
    statusMessage: '',
    headers: keptHeaders(Object.entries(headers)),
    body: typeof body === 'string' ? new TextEncoder().encode(body) : body,
  });
  return engine.resolveBytes({ scope, operation, key }, bytes);
}

/** As for a request. The engine refuses what no request can have. */
const nameOfRequest: Field<string> = {
  allowed: 'a string that is not empty',
  parse: (value) => (typeof value === 'string' && value !== '' ? shortened(value, longestPart) : undefined),
};
