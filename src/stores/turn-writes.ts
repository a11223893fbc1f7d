/**
 * Turn writes: sends everything that is written to one socket in one turn of the event loop together.
 *
 * Promise: a write is held only until everything already received has been processed, and then goes out. A system call for each command took a sixth of the
 * processor time of a request with an idempotency key on Redis.
 */

import { atTurnEnd } from '../core/event-loop.js';

interface Corkable {
  cork(): void;
  uncork(): void;
}

export class TurnWrites {
  private held: Corkable | undefined = undefined;
  private readonly letGo = () => {
    const { held } = this;
    this.held = undefined;
    held?.uncork();
  };

  /** Call it before a write. Anything but a socket, as of another kind of client, is left alone. */
  hold(socket: Partial<Corkable> | null | undefined): void {
    if (this.held !== undefined || atTurnEnd === undefined || !isCorkable(socket)) return;
    this.held = socket;
    socket.cork();
    atTurnEnd(this.letGo);
  }
}

function isCorkable(socket: Partial<Corkable> | null | undefined): socket is Corkable {
  return typeof socket?.cork === 'function' && typeof socket.uncork === 'function';
}
