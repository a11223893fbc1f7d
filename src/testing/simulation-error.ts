/**
 * Errors of simulated worlds: what the simulated network throws, and how a simulation ends when a promise is broken.
 *
 * The network's errors bear the codes that Node's sockets use, so that code under test can treat both alike.
 */
import { messageOf } from '../core/errors.js';

/** `ECONNREFUSED`: nothing listens there. The request was not started. */
export class ConnectionRefusedError extends Error {
  override readonly name = 'ConnectionRefusedError';
  readonly code = 'ECONNREFUSED';

  constructor({ from, to }: { readonly from: string; readonly to: string }) {
    super(`"${to}" refused the connection of "${from}": nothing listens there`);
  }
}

/** `ECONNRESET`: the other side went down while it had the request. Whether the request was carried out is unknown. */
export class ConnectionResetError extends Error {
  override readonly name = 'ConnectionResetError';
  readonly code = 'ECONNRESET';

  constructor({ from, to }: { readonly from: string; readonly to: string }) {
    super(`"${to}" went down before it answered "${from}"; whether it carried the request out is unknown`);
  }
}

/** `ERR_REMOTE`: the handler on the other side threw. Only name, message and code travel. */
export class RemoteError extends Error {
  override readonly name = 'RemoteError';
  readonly code = 'ERR_REMOTE';
  /** The error as the handler threw it. */
  readonly remote: { readonly name: string; readonly message: string; readonly code: string | undefined };

  constructor(thrown: unknown) {
    const error: Error & { readonly code?: unknown } = thrown instanceof Error ? thrown : new Error(messageOf(thrown));
    const { name, message, code } = error;
    super(`${name}: ${message}`);
    this.remote = { name, message, code: typeof code === 'string' ? code : undefined };
  }
}

/** `ERR_NODE_CRASHED`: the node went down, and the task that was asked of it with it. */
export class NodeCrashedError extends Error {
  override readonly name = 'NodeCrashedError';
  readonly code = 'ERR_NODE_CRASHED';

  constructor(node: string, task: string) {
    super(`node "${node}" is down, "${task}" was not finished`);
  }
}

/** Why a simulation failed. */
export type FailureReason =
  | 'invariant'
  | 'eventually'
  | 'end-check'
  | 'error'
  | 'deadlock'
  | 'limit'
  | 'not-deterministic';

/** Where a simulation stood when it failed. */
export interface FailurePoint {
  readonly seed: number;
  readonly step: number;
  readonly virtualMs: number;
  readonly digest: string;
  readonly trace: readonly string[];
}

/**
 * `ERR_SIMULATION`: a simulated world broke a promise. The message holds the seed and how to replay it.
 *
 * @example
 * ```ts
 * import assert from 'node:assert';
 * import { SimulationError, simulate } from 'holdfast/testing';
 *
 * const failure = await simulate({ seed: 3 }, (world) => world.atEnd('never', () => false)).catch((error) => error);
 * assert.ok(failure instanceof SimulationError);
 * assert.equal(failure.seed, 3);
 * assert.match(failure.message, /simulate\(\{ seed: 3/);
 * ```
 */
export class SimulationError extends Error {
  override readonly name = 'SimulationError';
  readonly code = 'ERR_SIMULATION';
  readonly reason: FailureReason;
  readonly seed: number;
  /** Events that had run. */
  readonly step: number;
  readonly virtualMs: number;
  /** Hash over every event until then. */
  readonly digest: string;
  /** The last events in words, oldest first. */
  readonly trace: readonly string[];

  constructor(
    reason: FailureReason,
    what: string,
    { seed, step, virtualMs, digest, trace }: FailurePoint,
    cause?: unknown,
  ) {
    const lines = [
      what,
      `  seed ${seed}, step ${step}, virtual time ${virtualMs.toFixed(3)} ms, digest ${digest}`,
      ...(cause === undefined ? [] : [`  because: ${indented(describe(cause))}`]),
      `  last ${trace.length} events:`,
      ...trace.map((line) => `    ${line}`),
      `  replay: simulate({ seed: ${seed}, ... }, scenario), or set HOLDFAST_SEED=${seed} where checkSeeds or simulate choose the seed`,
    ];
    super(lines.join('\n'), cause === undefined ? undefined : { cause });
    this.reason = reason;
    this.seed = seed;
    this.step = step;
    this.virtualMs = virtualMs;
    this.digest = digest;
    this.trace = trace;
  }
}

function describe(cause: unknown): string {
  return cause instanceof Error ? `${cause.name}: ${cause.message}` : messageOf(cause);
}

function indented(text: string): string {
  return text.replaceAll('\n', '\n    ');
}
