/**
 * Client events: what the stores on one client want to hear of it, behind one listener of the client's for each event.
 *
 * Promise: any number of stores on a client have one listener there, since Node warns of more than ten; when none of them wants to hear any more
 * the client has none of theirs.
 */

/** What has events, as Node's emitters do. */
interface Source {
  on(event: string, listener: () => void): unknown;
  off(event: string, listener: () => void): unknown;
}

class Hearing {
  private readonly listeners = new Set<() => void>();
  private readonly source: Source;
  private readonly event: string;
  private readonly hear = () => {
    // What the one does may bring it here again.
    for (const listener of [...this.listeners]) listener();
  };

  constructor(source: Source, event: string) {
    this.source = source;
    this.event = event;
  }

  add(listener: () => void): void {
    if (this.listeners.size === 0) this.source.on(this.event, this.hear);
    this.listeners.add(listener);
  }

  remove(listener: () => void): void {
    if (this.listeners.delete(listener) && this.listeners.size === 0) this.source.off(this.event, this.hear);
  }
}

const hearings = /* @__PURE__ */ new WeakMap<object, Map<string, Hearing>>();

/** Calls back at each such event. One listener of a store's for each event. */
export function addClientListener(source: Source, event: string, listener: () => void): void {
  hearingOf(source, event).add(listener);
}

/** Takes a listener back; one that is not there is left as it is. */
export function removeClientListener(source: Source, event: string, listener: () => void): void {
  hearingOf(source, event).remove(listener);
}

function hearingOf(source: Source, event: string): Hearing {
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
