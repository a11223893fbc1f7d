/**
 * Abort listeners: many listeners of a caller's signal share one `abort` listener of the signal.
 *
 * Promise: on a signal that calls share, such as a shutdown signal, adding and removing costs the same for the ten-thousandth listener as for the
 * first. A signal itself searches its listeners one by one, and Node 20 warns of more than ten. When all listeners are gone the signal holds none. A
 * signal seen only once, such as that of a request, gets a listener directly.
 */

/** The listeners of one shared signal. */
class AbortListeners {
  private readonly listeners = new Set<() => void>();
  private readonly signal: AbortSignal;
  private readonly hear = () => {
    this.signal.removeEventListener('abort', this.hear);
    for (const listener of this.listeners) {
      // A listener may remove others, which are then not called.
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

  /** Removes a listener and returns whether it was here. */
  remove(listener: () => void): boolean {
    const wasHere = this.listeners.delete(listener);
    if (wasHere && this.listeners.size === 0) this.signal.removeEventListener('abort', this.hear);
    return wasHere;
  }
}

/** Signals that were seen again soon. An entry costs four times what a listener does, so a signal seen once has none. */
const shared = /* @__PURE__ */ new WeakMap<AbortSignal, AbortListeners>();
/** The signals seen last, in rotation. This few signals are kept from collection until others replace them. */
const recent: (AbortSignal | undefined)[] = [undefined, undefined, undefined, undefined];
let nextRecent = 0;

/** Calls back once when the signal aborts. The listener must not throw. A listener added after the abort is not called. */
export function addAbortListener(signal: AbortSignal, listener: () => void): void {
  const listeners = shared.get(signal) ?? sharedSoon(signal);
  if (listeners !== undefined) return listeners.add(listener);
  recent[nextRecent] = signal;
  nextRecent = (nextRecent + 1) % recent.length;
  signal.addEventListener('abort', listener);
}

/** Removes a listener. One that is not registered is ignored. */
export function removeAbortListener(signal: AbortSignal, listener: () => void): void {
  // The first listener of a shared signal was added to the signal itself, before the sharing was known.
  if (shared.get(signal)?.remove(listener) !== true) signal.removeEventListener('abort', listener);
}

function sharedSoon(signal: AbortSignal): AbortListeners | undefined {
  if (!recent.includes(signal)) return undefined;
  const listeners = new AbortListeners(signal);
  shared.set(signal, listeners);
  return listeners;
}
