/**
 * Fence of a request: checks the header `Fence` of a lock owner's writes against the greatest fence that the resource has seen. Independent of any
 * framework.
 *
 * Promise: a request with an older fence than one let through before is answered 412 and not handled.
 */
import { type FenceGate, fenceGate } from '../coordination/mutex/fence.js';
import { StaleFenceError } from '../core/errors.js';
import { checkOptions, func, having, oneOf, withDefault } from '../core/options.js';
import type { Problem } from './problem.js';
import { shortened } from './shortened.js';

/** Options of the `fence` middleware. */
export interface FenceMiddlewareOptions<Request> {
  /** The resource that a request writes to. All writers of one resource must hold the same lock. */
  readonly resource: (request: Request) => string;
  /** Remembers the greatest fences. Default: its own `fenceGate()`. Your own gate may keep them where they survive a restart. */
  readonly gate?: Pick<FenceGate, 'check'> | undefined;
  /** Whether a request without the header is refused, or handled unchecked. Default `'refuse'`. */
  readonly missing?: 'refuse' | 'allow' | undefined;
}

/** The longest name that a gate takes. */
const longestResource = 200;

export class FenceEngine<Request> {
  private readonly resource: (request: Request) => string;
  private readonly gate: Pick<FenceGate, 'check'>;
  private readonly missing: 'refuse' | 'allow';

  constructor(options: FenceMiddlewareOptions<Request>) {
    const { resource, gate, missing } = checkOptions('fence', options, {
      resource: func<(request: Request) => string>(),
      gate: withDefault(having<Pick<FenceGate, 'check'>>('a gate such as fenceGate()', 'check'), fenceGate()),
      missing: withDefault(oneOf(['refuse', 'allow']), 'refuse'),
    });
    this.resource = resource;
    this.gate = gate;
    this.missing = missing;
  }

  /** What is wrong with a request; undefined if nothing is. */
  check(request: Request, header: string | readonly string[] | undefined): Problem | undefined {
    const code = 'ERR_STALE_FENCE';
    if (header === undefined) {
      if (this.missing === 'allow') return undefined;
      const detail = 'the header "fence" is missing: send the fence of the lock that this is written under';
      return { status: 428, title: 'Precondition Required', detail, code };
    }
    const fence = typeof header === 'string' && /^\d{1,16}$/.test(header) ? Number(header) : Number.NaN;
    if (!Number.isSafeInteger(fence)) {
      return { status: 400, title: 'Bad Request', detail: 'the header "fence" must be one number', code };
    }
    try {
      this.gate.check(shortened(this.resource(request), longestResource), fence);
      return undefined;
    } catch (error) {
      if (!(error instanceof StaleFenceError)) throw error;
      return { status: 412, title: 'Precondition Failed', detail: error.message, code };
    }
  }
}
