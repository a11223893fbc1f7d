/** JSON over plain `node:http`, between the processes of the demo. */
import { type Agent, type IncomingMessage, type Server, type ServerResponse, request as send } from 'node:http';
import type { AddressInfo } from 'node:net';

/** Sends JSON and resolves with the JSON of the answer; rejects for any status other than 200. */
export function post(
  agent: Agent,
  port: number,
  path: string,
  body: unknown,
  signal?: AbortSignal,
  more: Readonly<Record<string, string>> = {},
): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const headers = { 'content-type': 'application/json', ...more };
    const options = { agent, host: '127.0.0.1', port, path, method: 'POST', headers, ...(signal && { signal }) };
    const request = send(options, (response) => {
      textOf(response).then((text) => {
        if (response.statusCode === 200) resolve(JSON.parse(text));
        else reject(new Error(`status ${response.statusCode}: ${text}`));
      }, reject);
    });
    request.once('error', reject);
    request.end(JSON.stringify(body));
  });
}

export function answer(
  request: IncomingMessage,
  response: ServerResponse,
  handle: (body: unknown) => Promise<unknown>,
): void {
  textOf(request)
    .then((text) => handle(JSON.parse(text)))
    .then(
      (value) => response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(value)),
      (error: unknown) => response.writeHead(503, { 'content-type': 'text/plain' }).end(String(error)),
    );
}

async function textOf(message: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of message) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks).toString();
}

export function listen(server: Server): Promise<number> {
  // Longer than the demo, so that no idle connection is closed while a request is on its way to it.
  server.keepAliveTimeout = 120_000;
  return new Promise((resolve) => {
    server.listen({ port: 0, host: '127.0.0.1', backlog: 4_096 }, () =>
      resolve((server.address() as AddressInfo).port),
    );
  });
}
