/**
 * Payment: a typical provider behind the shop. It charges a card, honours an idempotency key, and sometimes the connection breaks after the card was
 * charged.
 */
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { text } from 'node:stream/consumers';
import { idempotency, memoryStore } from 'holdfast';
import { nodeIdempotency } from 'holdfast/web';

export interface Provider {
  readonly charges: readonly number[];
  /** The next charge is made, but its answer is lost on the way. */
  breakNext(): void;
  /** Charges a card. Throws if the connection breaks; the outcome is then unknown. */
  charge(cents: number, key: string): Promise<{ charge: number }>;
  close(): Promise<void>;
}

export async function openProvider(): Promise<Provider> {
  const charges: number[] = [];
  let breaks = false;
  // The provider has its own store of keys: a charge that is requested again is the same charge.
  const onceForEachKey = nodeIdempotency(idempotency({ store: memoryStore(), name: 'provider' }), {
    scope: () => 'shop',
  });
  const server = createServer(
    onceForEachKey(async (request, response) => {
      const { cents } = JSON.parse(await text(request));
      charges.push(cents);
      if (breaks) {
        breaks = false;
        request.socket.destroy();
      }
      response.writeHead(201, { 'content-type': 'application/json' }).end(JSON.stringify({ charge: charges.length }));
    }),
  );
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;

  return {
    charges,
    breakNext() {
      breaks = true;
    },
    async charge(cents, key) {
      const headers = { 'content-type': 'application/json', 'idempotency-key': `"${key}"` };
      const body = JSON.stringify({ cents });
      const answer = await fetch(`http://127.0.0.1:${port}/charges`, { method: 'POST', headers, body });
      if (!answer.ok) throw new Error(`the provider answered ${answer.status}`);
      return (await answer.json()) as { charge: number };
    },
    async close() {
      server.closeAllConnections();
      server.close();
    },
  };
}
