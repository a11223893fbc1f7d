/**
 * Late end: how a handler ends in whose place a deadline has answered. The adapters report it, for whoever must know whether it has had its effect.
 */

// A property instead of a WeakMap, so that it is found whichever copy of the package created it.
const lateEndKey = Symbol.for('holdfast.lateEnd');

interface Carrier {
  [lateEndKey]?: LateEnd;
}

export class LateEnd {
  /** Whether the handler has been answered for. */
  isReplaced = false;
  /** Whether its end will be reported: not every handler has one that can be seen. */
  isReported = false;
  private hasFailed: boolean | undefined = undefined;
  private listener: ((hasFailed: boolean) => void) | undefined = undefined;

  /** Calls the listener once, as soon as the end is known. */
  listen(listener: (hasFailed: boolean) => void): void {
    if (this.hasFailed === undefined) this.listener = listener;
    else listener(this.hasFailed);
  }

  /** The first report counts. */
  report(hasFailed: boolean): void {
    if (this.hasFailed !== undefined) return;
    this.hasFailed = hasFailed;
    this.listener?.(hasFailed);
  }
}

export function findLateEnd(response: object): LateEnd | undefined {
  return (response as Carrier)[lateEndKey];
}

/** The one of a response, made when it is first asked for. */
export function lateEndOf(response: object): LateEnd {
  const carrier = response as Carrier;
  carrier[lateEndKey] ??= new LateEnd();
  return carrier[lateEndKey];
}
