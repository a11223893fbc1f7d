/**
 * Client events: what the stores on one client want to hear of it, behind one listener of the client's for each event.
 *
 * Promise: any number of stores on a client have one listener there, since Node warns of more than ten; when none of them wants to hear any more
 * the client has none of theirs.
 */

// biome-ignore lint/suspicious/noExplicitAny: what an event brings differs from one to the next.
export type Listener = (...values: any[]) => void;

/** What has events, as Node's emitters do. */
export interface EventSource {
  on(event: string, listener: Listener): unknown;
  off(event: string, listener: Listener): unknown;
}

class Hearing {
  private readonly listeners = new Set<Listener>();
  private readonly source: EventSource;
  private readonly event: string;
  private readonly hear: Listener = (...values) => {
    // What the one does may bring it here again.
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

/** Calls back at each such event. One listener of a store's for each event. */
export function addClientListener(source: EventSource, event: string, listener: Listener): void {
  hearingOf(source, event).add(listener);
}

/** Takes a listener back; one that is not there is left as it is. */
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
