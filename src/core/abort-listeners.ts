/**
 * Abort listeners: whoever wants to hear of a caller's abort, behind one listener of the signal where many share it.
 *
 * Promise: with a signal that calls share, such as that of a shutdown, to come and to go costs the same for the ten-thousandth as for the
 * first, while the signal itself searches its listeners one by one, and Node 20 warns of more than ten; when all have gone it holds
 * no listener. What is seen once, such as the signal of a request, has a listener of its own.
 */

/** Who listens to a signal that calls share. */
class AbortListeners {
  private readonly listeners = new Set<() => void>();
  private readonly signal: AbortSignal;
  private readonly hear = () => {
    this.signal.removeEventListener('abort', this.hear);
    for (const listener of this.listeners) {
      // What the one does may let others go, who then hear nothing.
      this.listeners.delete(listener);
      listener();
    }
  };

  constructor(signal: AbortSignal) {
    this.signal = signal;
  }

  add(listener: () => void): void {
    this.listeners.add(listener);
    if (this.listeners.size === 1) this.signal.addEventListener('abort', this.hear);
  }

  /** Whether it was here. */
  remove(listener: () => void): boolean {
    const wasHere = this.listeners.delete(listener);
    if (wasHere && this.listeners.size === 0) this.signal.removeEventListener('abort', this.hear);
    return wasHere;
  }
}

/** Of signals that were seen again soon. An entry costs four times what a listener does, so what is seen once has none. */
const shared = /* @__PURE__ */ new WeakMap<AbortSignal, AbortListeners>();
/** The signals seen last, in turn. So many are not collected before others have come. */
const recent: (AbortSignal | undefined)[] = [undefined, undefined, undefined, undefined];
let nextRecent = 0;

/** Calls back when the signal aborts, once. The listener must not throw. One that comes after the abort hears nothing. */
export function addAbortListener(signal: AbortSignal, listener: () => void): void {
  const listeners = shared.get(signal) ?? sharedSoon(signal);
  if (listeners !== undefined) return listeners.add(listener);
  recent[nextRecent] = signal;
  nextRecent = (nextRecent + 1) % recent.length;
  signal.addEventListener('abort', listener);
}

/** Takes a listener back; one that is not there is left as it is. */
export function removeAbortListener(signal: AbortSignal, listener: () => void): void {
  // The first of all who share it came before that was known.
  if (shared.get(signal)?.remove(listener) !== true) signal.removeEventListener('abort', listener);
}

function sharedSoon(signal: AbortSignal): AbortListeners | undefined {
  if (!recent.includes(signal)) return undefined;
  const listeners = new AbortListeners(signal);
  shared.set(signal, listeners);
  return listeners;
}
