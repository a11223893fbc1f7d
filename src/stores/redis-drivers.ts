/**
 * Redis drivers: one interface for sending to, and listening on, clients of the two Redis libraries.
 *
 * Promise: only this file knows what a library does by itself: the prefix it puts before keys, how it flattens its arguments, whether its first command makes
 * it connect, and how it reports its connections.
 */
import { addClientListener, type EventSource, type Listener, removeClientListener } from './client-events.js';
import type { Subscriber } from './redis-watches.js';
import { TurnWrites } from './turn-writes.js';

/** What `redisStore` needs of ioredis: `Redis` and `Cluster` have it. */
export interface IoredisClient {
  readonly status: string;
  callBuffer(...command: [name: string, ...words: (string | Uint8Array | number)[]]): Promise<unknown>;
  on(event: 'ready' | 'close', listener: () => void): unknown;
  off(event: 'ready' | 'close', listener: () => void): unknown;
}

/** What `redisStore` needs of node-redis, 5 or later: clients, clusters and sentinels have it. */
export interface NodeRedisClient {
  readonly isOpen: boolean;
  readonly isReady?: boolean;
  // biome-ignore lint/suspicious/noExplicitAny: its own types are generic over all that a client can be made with.
  withTypeMapping(mapping: any): any;
  // biome-ignore lint/suspicious/noExplicitAny: see above.
  on(event: any, listener: () => void): unknown;
  // biome-ignore lint/suspicious/noExplicitAny: see above.
  off(event: any, listener: () => void): unknown;
}

/** The common interface of the two libraries. */
export interface Driver {
  readonly isCluster: boolean;
  /** The prefix that the client itself puts before keys, but not before other arguments. */
  readonly keyPrefix: string;
  /** The command that tells the watchers. In a cluster, only the node that serves the key delivers it, to its own subscribers. */
  readonly publish: 'PUBLISH' | 'SPUBLISH';
  /** `'waiting'`: not connected yet or any more, and the client is going to connect by itself. */
  state(): 'ready' | 'waiting' | 'closed';
  onReady(listener: () => void): void;
  offReady(listener: () => void): void;
  /** Called when a connection broke and the client does not itself fail the commands in flight. */
  onBreak(listener: () => void): void;
  offBreak(listener: () => void): void;
  /**
   * Runs a script by its hash. If the server does not know it, the reply is NOSCRIPT.
   *
   * @param isAlone - No other verb of the store is in progress.
   */
  runKnown(
    hash: string,
    keys: readonly string[],
    given: readonly (string | Buffer)[],
    isAlone: boolean,
  ): Promise<unknown>;
  /** Runs a script by its text, from which the server also learns its hash. */
  run(text: string, keys: readonly string[], given: readonly (string | Buffer)[]): Promise<unknown>;
}

export function recognise(client: unknown): Driver | undefined {
  if (hasMethods(client, 'evalBuffer', 'evalshaBuffer', 'on', 'off')) return ioredis(client as IoredisClient);
  if (hasMethods(client, 'evalSha', 'eval', 'withTypeMapping', 'on', 'off'))
    return nodeRedis(client as NodeRedisClient);
  return undefined;
}

function hasMethods(client: unknown, ...methods: readonly string[]): boolean {
  if (typeof client !== 'object' || client === null) return false;
  return methods.every((method) => typeof (client as Record<string, unknown>)[method] === 'function');
}

function stateOfIoredis({ status }: IoredisClient): ReturnType<Driver['state']> {
  // With 'wait', the first command makes it connect.
  if (status === 'ready' || status === 'wait') return 'ready';
  return status === 'end' ? 'closed' : 'waiting';
}

function stateOfNodeRedis({ isReady, isOpen }: NodeRedisClient): ReturnType<Driver['state']> {
  return (isReady ?? isOpen) ? 'ready' : isOpen ? 'waiting' : 'closed';
}

/** Missing in ioredis's types. `callBuffer`, which they do have, loses the name of the command under `enableAutoPipelining`. */
type IoredisScripts = Readonly<
  Record<
    'evalBuffer' | 'evalshaBuffer',
    (script: string, keys: number, ...words: (readonly (string | Buffer)[])[]) => Promise<unknown>
  >
>;

function keyPrefixOfIoredis(client: object): string {
  const { options } = client as { readonly options?: { readonly keyPrefix?: unknown } };
  return String(options?.keyPrefix ?? '');
}

function ioredis(client: IoredisClient): Driver {
  const isCluster = (client as { readonly isCluster?: unknown }).isCluster === true;
  const scripts = client as unknown as IoredisScripts;
  const turn = new TurnWrites();
  return {
    isCluster,
    keyPrefix: keyPrefixOfIoredis(client),
    publish: isCluster ? 'SPUBLISH' : 'PUBLISH',
    state() {
      // A lazy client connects on its first command, and would queue that until then, whatever becomes of the verb. So it is told to connect.
      if (client.status === 'wait') (client as unknown as { connect(): Promise<void> }).connect().catch(() => {});
      return stateOfIoredis(client);
    },
    onReady: (listener) => addClientListener(client, 'ready', listener),
    offReady: (listener) => removeClientListener(client, 'ready', listener),
    onBreak: (listener) => addClientListener(client, 'close', listener),
    offBreak: (listener) => removeClientListener(client, 'close', listener),
    runKnown(hash, keys, given, isAlone) {
      // ioredis writes each command by itself. On a cluster, which has a socket for each node, it keeps doing so: holding one of them costs more than it
      // saves.
      if (!isAlone) turn.hold((client as { readonly stream?: object }).stream);
      // ioredis flattens its arguments.
      return scripts.evalshaBuffer(hash, keys.length, keys, given);
    },
    run: (text, keys, given) => scripts.evalBuffer(text, keys.length, keys, given),
  };
}

/** The RESP type code of strings: replies of this type come as bytes. */
const blobString = 36;

interface NodeRedisScripts {
  evalSha(hash: string, options: NodeRedisScriptOptions): Promise<unknown>;
  eval(text: string, options: NodeRedisScriptOptions): Promise<unknown>;
}

interface NodeRedisScriptOptions {
  readonly keys: readonly string[];
  readonly arguments: readonly (string | Buffer)[];
}

function nodeRedis(client: NodeRedisClient): Driver {
  const isCluster = hasMethods(client, 'getRandomNode');
  const scripts = client.withTypeMapping({ [blobString]: Buffer }) as NodeRedisScripts;
  return {
    isCluster,
    keyPrefix: String((client as { readonly _keyPrefix?: unknown })._keyPrefix ?? ''),
    publish: isCluster ? 'SPUBLISH' : 'PUBLISH',
    state: () => stateOfNodeRedis(client),
    onReady: (listener) => addClientListener(client, 'ready', listener),
    offReady: (listener) => removeClientListener(client, 'ready', listener),
    onBreak() {},
    offBreak() {},
    runKnown: (hash, keys, given) => scripts.evalSha(hash, { keys, arguments: given }),
    run: (text, keys, given) => scripts.eval(text, { keys, arguments: given }),
  };
}

export function subscriberOf(client: unknown, { isCluster, keyPrefix }: Driver): Subscriber | undefined {
  const own = recognise(client);
  if (own === undefined || own.isCluster !== isCluster) return undefined;
  if (!hasMethods(client, 'evalBuffer')) return nodeRedisSubscriber(client as NodeRedisSubscriber, isCluster);
  if (!isCluster) return ioredisSubscriber(client as IoredisSubscriber, 'alone');
  const { options } = client as { readonly options?: { readonly shardedSubscribers?: unknown } };
  if (options?.shardedSubscribers !== true || !['', keyPrefix].includes(own.keyPrefix)) return undefined;
  return ioredisSubscriber(client as IoredisSubscriber, { keyPrefix: own.keyPrefix });
}

function listenTo(source: EventSource, events: readonly string[], listener: Listener): () => void {
  for (const event of events) addClientListener(source, event, listener);
  return () => {
    for (const event of events) removeClientListener(source, event, listener);
  };
}

interface IoredisSubscriber extends EventSource {
  readonly status: string;
  subscribe(channel: string): Promise<unknown>;
  unsubscribe(channel: string): Promise<unknown>;
  ssubscribe(channel: string): Promise<unknown>;
  sunsubscribe(channel: string): Promise<unknown>;
}

/**
 * For each channel, the stores on an ioredis client that want it. ioredis does not count subscriptions, so the first store to leave would end them for all.
 * Kept in a property of the client, where any copy of this package finds it.
 */
const wantedKey = /* @__PURE__ */ Symbol.for('holdfast.wantedChannels');

interface Wanted {
  [wantedKey]?: Map<string, Set<object>>;
}

/** @param place - In a cluster, the client adds its prefix to channels, as it does to keys. */
function ioredisSubscriber(client: IoredisSubscriber, place: 'alone' | { readonly keyPrefix: string }): Subscriber {
  const carrier: IoredisSubscriber & Wanted = client;
  carrier[wantedKey] ??= new Map();
  const channels = carrier[wantedKey];
  const isCluster = place !== 'alone';
  const prefixLength = isCluster ? place.keyPrefix.length : 0;
  /** Whether no other store wants the channel. */
  const letGo = (channel: string) => {
    const stores = channels.get(channel);
    if (stores?.delete(subscriber) && stores.size === 0) channels.delete(channel);
    return !channels.has(channel);
  };
  const connectionEvents = [
    'ready',
    'close',
    'end',
    ...(isCluster ? ['+subscriber', '-subscriber', 'subscribersReady'] : []),
  ];
  const subscriber: Subscriber = {
    state: () => stateOfIoredis(client as unknown as IoredisClient),
    subscribe(channel) {
      channels.set(channel, (channels.get(channel) ?? new Set()).add(subscriber));
      return isCluster ? client.ssubscribe(channel.slice(prefixLength)) : client.subscribe(channel);
    },
    async unsubscribe(channel) {
      if (!letGo(channel)) return;
      await (isCluster ? client.sunsubscribe(channel.slice(prefixLength)) : client.unsubscribe(channel));
    },
    listen(onMessage, onConnection) {
      const ends = [
        listenTo(client, [isCluster ? 'smessage' : 'message'], onMessage),
        listenTo(client, connectionEvents, () => onConnection()),
      ];
      return () => {
        for (const end of ends) end();
        // Those that could not be given up while there was no connection.
        for (const channel of [...channels.keys()]) letGo(channel);
      };
    },
  };
  return subscriber;
}

interface NodeRedisSubscriber extends EventSource {
  readonly isOpen: boolean;
  readonly isReady?: boolean;
  subscribe(channel: string, listener: Listener): Promise<unknown>;
  unsubscribe(channel: string, listener: Listener): Promise<unknown>;
  sSubscribe(channel: string, listener: Listener): Promise<unknown>;
  sUnsubscribe(channel: string, listener: Listener): Promise<unknown>;
  /** The nodes of a cluster; each has a connection for its channels once there are some. */
  readonly nodeByAddress: ReadonlyMap<string, { readonly pubSub?: { readonly client: EventSource } }>;
}

function nodeRedisSubscriber(client: NodeRedisSubscriber, isCluster: boolean): Subscriber {
  let onMessage: (channel: string, message: string) => void = () => {};
  let onMoved: ((channel: string) => void) | undefined;
  const listener = (message: string, channel: string) => onMessage(channel, message);
  const hearOfMove = (channel: string) => onMoved?.(channel);
  const leaveNodes = () => {
    for (const { pubSub } of client.nodeByAddress.values()) {
      if (pubSub !== undefined) removeClientListener(pubSub.client, 'sharded-channel-moved', hearOfMove);
    }
  };
  const subscribeInCluster = async (channel: string) => {
    await client.sSubscribe(channel, listener);
    leaveNodes();
    // When a slot moves, only the connection to its old node reports it; the cluster client resubscribes elsewhere silently.
    if (onMoved === undefined) return;
    for (const { pubSub } of client.nodeByAddress.values()) {
      if (pubSub !== undefined) addClientListener(pubSub.client, 'sharded-channel-moved', hearOfMove);
    }
  };
  const events = [
    'ready',
    'reconnecting',
    'end',
    'topology-change',
    'node-ready',
    'node-disconnect',
    'node-reconnecting',
  ];
  return {
    state: () => stateOfNodeRedis(client as unknown as NodeRedisClient),
    subscribe: (channel) => (isCluster ? subscribeInCluster(channel) : client.subscribe(channel, listener)),
    unsubscribe: (channel) =>
      isCluster ? client.sUnsubscribe(channel, listener) : client.unsubscribe(channel, listener),
    listen(onMessages, onConnection) {
      onMessage = onMessages;
      onMoved = onConnection;
      const end = listenTo(client, events, () => onConnection());
      return () => {
        end();
        onMoved = undefined;
        if (isCluster) leaveNodes();
      };
    },
  };
}
