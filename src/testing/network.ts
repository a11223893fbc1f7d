/**
 * Network: requests and replies between simulated nodes, and what can go wrong with them.
 *
 * Promise: whether a message is delayed, lost, duplicated or cut off depends on the seed and the options alone. Each link draws from a stream of its own, so
 * traffic on one link does not change what happens on another. A lost request is never answered, as on a real network: the caller needs a timeout.
 * After: FoundationDB's simulated network (Zhou et al., "FoundationDB", SIGMOD 2021, section 4).
 */
import { Timer } from '../core/clock.js';
import { checkOptions, number, withDefault } from '../core/options.js';
import { type Distribution, distribution, type Sampler } from './distribution.js';
import { copyMessage } from './message.js';
import type { Node, Process } from './node.js';
import type { SeededRandom } from './random.js';
import { ConnectionRefusedError, ConnectionResetError, RemoteError } from './simulation-error.js';
import type { TraceKind } from './trace.js';
import type { Simulation } from './world.js';

/** The delays and faults of requests from one node to another, and of the replies to them. */
export interface LinkOptions {
  /** How long a message takes, each way. Default `{ min: 1, max: 5 }` ms. */
  readonly delay?: Distribution | undefined;
  /** Probability that a request is lost: it is not carried out, and not answered. From 0 to 1, default 0. */
  readonly loss?: number | undefined;
  /** Probability that a reply is lost: the request was carried out, and is not answered. From 0 to 1, default 0. */
  readonly replyLoss?: number | undefined;
  /** Probability that a request arrives twice. From 0 to 1, default 0. */
  readonly duplicate?: number | undefined;
}

/** A node, or its name. */
export type NodeReference = string | { readonly name: string };

/** The network of a simulated world. */
export interface SimulatedNetwork {
  /**
   * Changes the link from one node to another from now on. Omitted options keep their values.
   * @throws {@link OptionsError} `ERR_OPTIONS`, when an option is wrong.
   */
  link(from: NodeReference, to: NodeReference, options: LinkOptions): void;
  /** Drops all messages from one node to another, including those in flight; the other direction stays open. */
  cut(from: NodeReference, to: NodeReference): void;
  /** Drops all messages between the nodes of one side and those of the other, both ways. */
  partition(left: readonly NodeReference[], right: readonly NodeReference[]): void;
  /** Opens what was cut: both directions between two nodes, or everything. */
  heal(left?: NodeReference, right?: NodeReference): void;
}

/** What a handler receives about a request. */
export interface ServedRequest {
  /** The name of the node that sent it. */
  readonly from: string;
  /** Aborts when the caller has given up or crashed, as soon as the network delivers the news. */
  readonly signal: AbortSignal;
}

/** Answers requests; what it throws reaches the caller as a {@link RemoteError}. */
export type RequestHandler = (message: never, request: ServedRequest) => unknown;

interface LinkState {
  readonly delay: Sampler;
  readonly loss: number;
  readonly replyLoss: number;
  readonly duplicate: number;
}

/** One direction between two nodes. */
class Link {
  options: LinkState;
  isCut = false;
  readonly random: SeededRandom;
  readonly #world: Simulation;
  readonly #name: string;

  constructor(world: Simulation, from: Node, to: Node, options: LinkState) {
    this.#world = world;
    this.#name = `the link from "${from.name}" to "${to.name}"`;
    this.options = options;
    this.random = world.random.fork(`link/${from.name}/${to.name}`);
  }

  /** A delay that cannot be drawn is a mistake of the scenario, no fault of the network that code under test may handle. */
  delayMs(): number {
    let delayMs = 0;
    this.#world.contain(
      () => `the delay of ${this.#name} cannot be drawn`,
      () => {
        delayMs = this.options.delay(this.random);
      },
    );
    return delayMs;
  }
}

export class Network implements SimulatedNetwork {
  readonly #world: Simulation;
  readonly #defaults: LinkState;
  readonly #links = new Map<Node, Map<Node, Link>>();
  #exchanges = 0;

  constructor(world: Simulation, options: LinkOptions) {
    this.#world = world;
    this.#defaults = checkLink('simulate: network', options, {
      delay: (random) => random.between(1, 5),
      loss: 0,
      replyLoss: 0,
      duplicate: 0,
    });
  }

  link(from: NodeReference, to: NodeReference, options: LinkOptions): void {
    const link = this.linkBetween(this.#world.nodeOf(from), this.#world.nodeOf(to));
    link.options = checkLink('network.link', options, link.options);
  }

  cut(from: NodeReference, to: NodeReference): void {
    this.#setCut(this.#world.nodeOf(from), this.#world.nodeOf(to), true);
  }

  partition(left: readonly NodeReference[], right: readonly NodeReference[]): void {
    for (const one of left.map((reference) => this.#world.nodeOf(reference))) {
      for (const other of right.map((reference) => this.#world.nodeOf(reference))) {
        this.#setCut(one, other, true);
        this.#setCut(other, one, true);
      }
    }
  }

  heal(left?: NodeReference, right?: NodeReference): void {
    const one = left === undefined ? undefined : this.#world.nodeOf(left);
    const other = right === undefined ? undefined : this.#world.nodeOf(right);
    for (const [from, links] of this.#links) {
      for (const [to, link] of links) {
        const isMeant =
          one === undefined || (from === one && isOrAny(to, other)) || (to === one && isOrAny(from, other));
        if (link.isCut && isMeant) this.#setCut(from, to, false);
      }
    }
  }

  /** Sends a request on its way; the promise settles with the reply, or never. */
  request(client: Process, server: Node, message: unknown, signal: AbortSignal | undefined): Promise<unknown> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(signal.reason);
      const world = this.#world;
      const link = this.linkBetween(client.node, server);
      const back = this.linkBetween(server, client.node);
      const copied = copyMessage(message, world.trace.hash);
      const exchange = new Exchange(world, client, server, link, back, ++this.#exchanges, resolve, reject, signal);
      exchange.message = copied;
      exchange.note('request', exchange.message);
      // Both are always drawn, so that the fate of later requests does not depend on this one's.
      const isLost = link.random.chance(link.options.loss);
      const isDoubled = link.random.chance(link.options.duplicate);
      if (isLost || link.isCut) exchange.lose('request');
      else exchange.send();
      if (isDoubled && !link.isCut) {
        exchange.note('duplicate');
        exchange.send();
      }
    });
  }

  linkBetween(from: Node, to: Node): Link {
    let links = this.#links.get(from);
    if (links === undefined) {
      links = new Map();
      this.#links.set(from, links);
    }
    let link = links.get(to);
    if (link === undefined) {
      link = new Link(this.#world, from, to, this.#defaults);
      links.set(to, link);
    }
    return link;
  }

  #setCut(from: Node, to: Node, isCut: boolean): void {
    this.linkBetween(from, to).isCut = isCut;
    this.#world.note(isCut ? 'cut' : 'heal', from.name, to.name);
  }
}

/** What has happened to a request, for the report on a caller that is never answered. */
type Fate = 'on its way' | 'lost' | 'being served' | 'its answer is on the way' | 'its answer was lost';

/** A request, its copies and its reply. */
export class Exchange {
  message: unknown;
  fate: Fate = 'on its way';
  readonly world: Simulation;
  readonly client: Process;
  readonly server: Node;
  readonly link: Link;
  readonly back: Link;
  readonly id: number;
  readonly #resolve: (value: unknown) => void;
  readonly #reject: (error: unknown) => void;
  readonly #signal: AbortSignal | undefined;
  readonly #arrivals: RequestArrival[] = [];
  #isSettled = false;
  readonly #onAbort = () =>
    this.client.whenAwake(() => {
      this.#reject(this.#signal!.reason);
      this.abandon();
    });

  constructor(
    world: Simulation,
    client: Process,
    server: Node,
    link: Link,
    back: Link,
    id: number,
    resolve: (value: unknown) => void,
    reject: (error: unknown) => void,
    signal: AbortSignal | undefined,
  ) {
    this.world = world;
    this.client = client;
    this.server = server;
    this.link = link;
    this.back = back;
    this.id = id;
    this.#resolve = resolve;
    this.#reject = reject;
    this.#signal = signal;
    client.exchanges.add(this);
    signal?.addEventListener('abort', this.#onAbort, { once: true });
  }

  send(): void {
    const arrival = new RequestArrival(this);
    this.#arrivals.push(arrival);
    this.world.scheduleAfter(arrival, this.link.delayMs());
  }

  lose(what: 'request' | 'reply'): void {
    this.fate = what === 'request' ? 'lost' : 'its answer was lost';
    this.#note('lost', what, what === 'reply');
  }

  /** The client gives up or is gone. The server is told, if the network delivers the message. */
  abandon(): void {
    if (!this.#settle()) return;
    this.note('abort');
    this.world.scheduleAfter(new AbortArrival(this), this.link.delayMs());
  }

  /** A reply has arrived; only the first one counts. */
  settle(reply: Reply): void {
    if (!this.#settle()) return;
    if ('error' in reply) {
      this.note(reply.kind, reply.error.message);
      this.#reject(reply.error);
    } else {
      this.note(reply.kind, reply.value);
      // A copy, so that the trace does not change with what the receiver does to it.
      this.#resolve(copyMessage(reply.value));
    }
  }

  /** Tells the handlers of this request that nobody waits any more. */
  abortArrivals(): void {
    for (const arrival of this.#arrivals) arrival.abort();
  }

  /** Drops the request silently, when the world ends. */
  drop(): void {
    this.#settle();
  }

  note(kind: TraceKind, detail?: unknown): void {
    const goesBack = kind === 'answer' || kind === 'refused' || kind === 'reset' || kind === 'reply';
    this.#note(kind, detail, goesBack);
  }

  #note(kind: TraceKind, detail: unknown, goesBack: boolean): void {
    const from = goesBack ? this.server.name : this.client.node.name;
    const to = goesBack ? this.client.node.name : this.server.name;
    this.world.trace.hash.word(this.id);
    this.world.note(kind, from, to, detail);
  }

  #settle(): boolean {
    if (this.#isSettled) return false;
    this.#isSettled = true;
    this.client.exchanges.delete(this);
    this.#signal?.removeEventListener('abort', this.#onAbort);
    return true;
  }
}

class RequestArrival extends Timer implements ServedRequest {
  readonly #exchange: Exchange;
  /** The process that was running when the request was sent: the other end of the connection. */
  readonly #sentTo: Process | undefined;
  #served: Process | undefined;
  #controller: AbortController | undefined;
  #isAborted = false;

  constructor(exchange: Exchange) {
    super();
    this.#exchange = exchange;
    this.#sentTo = exchange.server.process;
  }

  get from(): string {
    return this.#exchange.client.node.name;
  }

  // Created on first use: most handlers never read it, and a controller costs more than the rest of a request.
  get signal(): AbortSignal {
    this.#controller ??= new AbortController();
    if (this.#isAborted) this.#controller.abort();
    return this.#controller.signal;
  }

  override expire(): void {
    const exchange = this.#exchange;
    const process = exchange.server.process;
    if (exchange.link.isCut) exchange.lose('request');
    else if (this.#sentTo !== undefined && this.#sentTo !== process) this.breakOff();
    else if (process?.isFrozen) process.hold(this);
    else if (process?.handler === undefined) this.#refuse();
    else this.#beServed(process, process.handler);
  }

  abort(): void {
    if (this.#isAborted || this.#served?.isDead) return;
    this.#isAborted = true;
    this.#controller?.abort();
  }

  /** The process has gone down: its operating system closes the connection. */
  breakOff(): void {
    this.#reply({
      kind: 'reset',
      error: new ConnectionResetError({ from: this.from, to: this.#exchange.server.name }),
    });
  }

  #refuse(): void {
    this.#reply({
      kind: 'refused',
      error: new ConnectionRefusedError({ from: this.from, to: this.#exchange.server.name }),
    });
  }

  #beServed(process: Process, handler: RequestHandler): void {
    this.#exchange.fate = 'being served';
    this.#exchange.note('receive');
    this.#served = process;
    process.serving.add(this);
    void this.#serve(handler);
  }

  async #serve(handler: RequestHandler): Promise<void> {
    let reply: Reply;
    try {
      const value = await handler(copyMessage(this.#exchange.message) as never, this);
      reply = { kind: 'answer', value: copyMessage(value, this.#exchange.world.trace.hash) };
    } catch (error) {
      reply = { kind: 'answer', error: new RemoteError(error) };
    }
    // A handler of a dead process may have run on until its next await; nothing of it gets out.
    if (this.#served?.serving.delete(this) !== true) return;
    const exchange = this.#exchange;
    exchange.note('reply', 'error' in reply ? reply.error.message : reply.value);
    exchange.fate = 'its answer is on the way';
    if (exchange.link.random.chance(exchange.link.options.replyLoss)) exchange.lose('reply');
    else this.#reply(reply);
  }

  #reply(reply: Reply): void {
    const exchange = this.#exchange;
    if (exchange.back.isCut) exchange.lose('reply');
    else exchange.world.scheduleAfter(new ReplyArrival(exchange, reply), exchange.link.delayMs());
  }
}

export type { RequestArrival };

type Reply =
  | { readonly kind: 'answer'; readonly value: unknown }
  | { readonly kind: 'answer' | 'refused' | 'reset'; readonly error: Error };

class ReplyArrival extends Timer {
  readonly #exchange: Exchange;
  readonly #reply: Reply;

  constructor(exchange: Exchange, reply: Reply) {
    super();
    this.#exchange = exchange;
    this.#reply = reply;
  }

  override expire(): void {
    const { client, back } = this.#exchange;
    if (back.isCut) this.#exchange.lose('reply');
    else if (client.isFrozen) client.hold(this);
    else if (!client.isDead) this.#exchange.settle(this.#reply);
  }
}

class AbortArrival extends Timer {
  readonly #exchange: Exchange;

  constructor(exchange: Exchange) {
    super();
    this.#exchange = exchange;
  }

  override expire(): void {
    const { server, link } = this.#exchange;
    if (link.isCut) return;
    if (server.process?.isFrozen) server.process.hold(this);
    else this.#exchange.abortArrivals();
  }
}

function checkLink(factory: string, options: LinkOptions, defaults: LinkState): LinkState {
  return checkOptions(factory, options, {
    delay: withDefault(distribution(), defaults.delay),
    loss: withDefault(number({ max: 1 }), defaults.loss),
    replyLoss: withDefault(number({ max: 1 }), defaults.replyLoss),
    duplicate: withDefault(number({ max: 1 }), defaults.duplicate),
  });
}

function isOrAny(node: Node, wanted: Node | undefined): boolean {
  return wanted === undefined || node === wanted;
}
