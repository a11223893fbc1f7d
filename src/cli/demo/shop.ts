/**
 * Shop: how one worker handles its users' requests, once as most people write it and once with holdfast.
 *
 * Time, randomness, the store and the connection to the bank are passed in, so the same code runs in processes and in virtual time.
 */
import { cache } from '../../coordination/cache/cache.js';
import { idempotency } from '../../coordination/idempotency/idempotency.js';
import type { Clock } from '../../core/clock.js';
import type { HoldfastEvent } from '../../core/events.js';
import { standard } from '../../policies/standard.js';
import type { Store } from '../../stores/store.js';
import { sleepOn } from '../../testing/virtual-clock.js';
import type { BankRequest } from './bank.js';

export const paths = ['naked', 'protected'] as const;
export type Path = (typeof paths)[number];

export type UserRequest =
  | { readonly kind: 'quote' }
  | { readonly kind: 'product' }
  | { readonly kind: 'order'; readonly key: string };

export interface ShopParts {
  readonly clock: Clock;
  readonly random: () => number;
  /** How long users wait. */
  readonly patienceMs: number;
  readonly store: Store;
  readonly bank: (request: BankRequest, signal?: AbortSignal) => Promise<unknown>;
  /** Called when the breaker in front of the bank changes its state. */
  readonly onCircuit?: (state: string) => void;
}

export type Shop = (request: UserRequest) => Promise<unknown>;

/** How long a product may be shown before it is loaded again. */
const productTtlMs = 500;

export function shopOf(path: Path, parts: ShopParts): Shop {
  return path === 'naked' ? naked(parts) : guarded(parts);
}

/** A retry loop, a map with expiry times, and a database look-up before the card is charged. */
function naked({ clock, store, bank }: ShopParts): Shop {
  let product: { readonly value: unknown; readonly endsAtMs: number } | undefined;

  async function tryAgain(request: BankRequest): Promise<unknown> {
    for (let triesLeft = 3; ; triesLeft--) {
      try {
        return await bank(request);
      } catch (error) {
        if (triesLeft === 0) throw error;
        await sleepOn(clock, 100);
      }
    }
  }

  return async (request) => {
    if (request.kind === 'quote') return tryAgain({ kind: 'quote' });
    if (request.kind === 'product') {
      if (product !== undefined && clock.now() < product.endsAtMs) return product.value;
      const value = await tryAgain({ kind: 'product' });
      product = { value, endsAtMs: clock.now() + productTtlMs };
      return value;
    }
    const key = `order ${request.key}`;
    const known = await store.read(key);
    if (known !== undefined) return JSON.parse(new TextDecoder().decode(known.value));
    const receipt = await tryAgain({ kind: 'charge', order: request.key });
    await store.write(key, new TextEncoder().encode(JSON.stringify(receipt)), { ttlMs: 86_400_000 });
    return receipt;
  };
}

/** The same with three primitives. */
function guarded({ clock, random, store, bank, patienceMs, onCircuit }: ShopParts): Shop {
  const on = (event: HoldfastEvent) => {
    if (event.type === 'circuit-changed') onCircuit?.(event.to);
  };
  const calls = standard({ name: 'bank', deadline: patienceMs, timeout: patienceMs / 2, clock, random, on });
  const products = cache({
    name: 'product',
    store,
    ttl: productTtlMs,
    staleWhileRevalidate: 200,
    load: () => calls.execute(({ signal }) => bank({ kind: 'product' }, signal)),
    clock,
    random,
  });
  const orders = idempotency({ name: 'orders', store, ttl: '24h', lease: '1s', onLost: 'rerun', clock, random });

  return (request) => {
    if (request.kind === 'quote') return calls.execute(({ signal }) => bank({ kind: 'quote' }, signal));
    if (request.kind === 'product') return products.get('kelp');
    const charge = ({ downstreamKey }: { downstreamKey(name: string): string }) => {
      const idempotencyKey = downstreamKey('charge');
      const task = ({ signal }: { signal: AbortSignal }) =>
        bank({ kind: 'charge', order: request.key, key: idempotencyKey }, signal);
      return calls.execute(task, { unsafe: true, idempotencyKey });
    };
    return orders.run(request.key, charge, { scope: 'users' });
  };
}
