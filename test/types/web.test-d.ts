import { describe, expectTypeOf, it } from 'vitest';
import { type IdempotencyHandle, memoryStore } from '../../src/index.js';
import { idempotency } from '../../src/server/web.js';

/** As the `NextRequest` of Next.js and the `BunRequest` of Bun. */
interface RequestOfFramework extends Request {
  readonly params: { readonly id: string };
}

describe('idempotency of holdfast/web', () => {
  const once = idempotency({ store: memoryStore(), scope: (request) => request.headers.get('authorization') ?? '' });

  it('passes on the kind of request of the framework, and its further arguments', () => {
    const POST = once(async (request: RequestOfFramework, record, context: { readonly waitUntil: () => void }) => {
      expectTypeOf(record).toEqualTypeOf<IdempotencyHandle | undefined>();
      context.waitUntil();
      return new Response(request.params.id);
    });
    expectTypeOf(POST).toEqualTypeOf<
      (request: RequestOfFramework, context: { readonly waitUntil: () => void }) => Promise<Response>
    >();
  });

  it('takes a handler that names no types as one of plain requests', () => {
    const POST = once((request) => new Response(request.url));
    expectTypeOf(POST).toEqualTypeOf<(request: Request) => Promise<Response>>();
  });
});
