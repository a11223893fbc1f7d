/**
 * Client events: all stores on one client share a single listener on it for each event.
 *
 * Promise: however many stores a client has, they add one listener per event, since Node warns from the eleventh on. When no store listens any more, that
 * listener is removed.
 */

// biome-ignore lint/suspicious/noExplicitAny: what an event brings differs from one to the next.
export type Listener = (...values: any[]) => void;

/** Anything with events, such as Node's emitters. */
export interface EventSource {
  on(event: string, listener: Listener): unknown;
  off(event: string, listener: Listener): unknown;
}

class Hearing {
  private readonly listeners = new Set<Listener>();
  private readonly source: EventSource;
  private readonly event: string;
  private readonly hear: Listener = (...values) => {
    // A copy, because a listener may add or remove one.
    for (const listener of [...this.listeners]) listener(...values);
  };

  constructor(source: EventSource, event: string) {
    this.source = source;
    this.event = event;
  }

  add(listener: Listener): void {
    if (this.listeners.size === 0) this.source.on(this.event, this.hear);
    this.listeners.add(listener);
  }

  remove(listener: Listener): void {
    if (this.listeners.delete(listener) && this.listeners.size === 0) this.source.off(this.event, this.hear);
  }
}

const hearings = /* @__PURE__ */ new WeakMap<object, Map<string, Hearing>>();

/** Calls back at each such event. A store may add one listener per event. */
export function addClientListener(source: EventSource, event: string, listener: Listener): void {
  hearingOf(source, event).add(listener);
}

/** Removes a listener; does nothing if it is not there. */
export function removeClientListener(source: EventSource, event: string, listener: Listener): void {
  hearingOf(source, event).remove(listener);
}

function hearingOf(source: EventSource, event: string): Hearing {
  let ofSource = hearings.get(source);
  if (ofSource === undefined) {
    ofSource = new Map();
    hearings.set(source, ofSource);
  }
  let hearing = ofSource.get(event);
  if (hearing === undefined) {
    hearing = new Hearing(source, event);
    ofSource.set(event, hearing);
  }
  return hearing;
}
