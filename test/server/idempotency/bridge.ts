/** A fetch handler on `node:http`. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { Readable } from 'node:stream';

/** Does what runtimes of the fetch standard do: a request of Node becomes a `Request`, and a `Response` is sent. */
export function bridged(handler: (request: Request) => Promise<Response>) {
  return async (incoming: IncomingMessage, outgoing: ServerResponse) => {
    try {
      const headers = new Headers();
      for (const [name, values] of Object.entries(incoming.headersDistinct)) {
        for (const value of values ?? []) headers.append(name, value);
      }
      const hasBody = incoming.headers['content-length'] !== undefined;
      const body = hasBody ? { body: Readable.toWeb(incoming), duplex: 'half' } : {};
      const init = { method: incoming.method, headers, ...body } as RequestInit;
      const response = await handler(new Request(`http://test${incoming.url}`, init));
      outgoing.writeHead(response.status, response.statusText, [...response.headers].flat());
      if (response.body === null) outgoing.end();
      else
        Readable.fromWeb(response.body as never)
          .on('error', () => outgoing.destroy())
          .pipe(outgoing);
    } catch {
      outgoing.writeHead(500).end();
    }
  };
}
