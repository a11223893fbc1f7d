/**
 * Page: the demo in a browser, as one HTML file that includes its charts and refers to no other address. Figures arrive as server-sent events.
 *
 * Promise: it listens on 127.0.0.1 only and accepts commands only from its own page. No browser, however slow, delays the demo.
 */
import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import uplotScript from 'uplot/dist/uPlot.iife.min.js?raw';
import uplotStyle from 'uplot/dist/uPlot.min.css?raw';
import uplotLicence from 'uplot/LICENSE?raw';
import { type Fault, faults } from './faults.js';
import html from './page.html?raw';

export interface PathFigures {
  readonly served: number;
  readonly waiting: number;
  readonly calls: number;
}

export type PageEvent =
  | { readonly event: 'act'; readonly data: string }
  | { readonly event: 'row'; readonly data: readonly string[] }
  | {
      readonly event: 'figures';
      readonly data: {
        readonly atSeconds: number;
        readonly naked: PathFigures;
        readonly protected: PathFigures;
        readonly breakers: readonly string[];
      };
    }
  | { readonly event: 'end'; readonly data: '' };

/** The most events that a browser opened later receives first. */
const mostKept = 2_000;
/** A browser that is this far behind is disconnected. */
const mostBehindBytes = 1_000_000;
/** How long a browser has at the end to take what was sent. */
const graceMs = 1_000;

export class Page {
  private readonly server: Server;
  private readonly kept: string[] = [];
  private readonly browsers = new Set<ServerResponse>();

  private constructor(onFault: (fault: Fault) => void) {
    const page = pageOf();
    this.server = createServer((request, response) => {
      const path = request.url ?? '/';
      const fault = faults.find((name) => path === `/faults/${name}`);
      if (fault !== undefined && request.method === 'POST' && this.isOwn(request)) {
        onFault(fault);
        response.writeHead(204).end();
      } else if (request.method !== 'GET') response.writeHead(405).end();
      else if (path === '/') {
        response.writeHead(200, {
          'content-type': 'text/html; charset=utf-8',
          'content-security-policy':
            "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:",
        });
        response.end(page);
      } else if (path === '/events') this.join(response);
      else response.writeHead(404).end();
    });
  }

  static async open(onFault: (fault: Fault) => void): Promise<Page> {
    const page = new Page(onFault);
    page.server.listen(0, '127.0.0.1');
    await once(page.server, 'listening');
    return page;
  }

  get address(): string {
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}/`;
  }

  send({ event, data }: PageEvent): void {
    const text = `event: ${event}\ndata: ${JSON.stringify(data)}\n\n`;
    this.kept.push(text);
    if (this.kept.length > mostKept) this.kept.shift();
    for (const browser of this.browsers) {
      if (browser.writableLength > mostBehindBytes) browser.destroy();
      else browser.write(text);
    }
  }

  /** Resolves when no connection is left. */
  async close(): Promise<void> {
    this.send({ event: 'end', data: '' });
    for (const browser of this.browsers) browser.end();
    const closed = once(this.server, 'close');
    // This also closes connections without a request.
    this.server.close();
    // A browser that does not read, or half a request, would keep the demo from ending.
    const impatience = setTimeout(() => this.server.closeAllConnections(), graceMs);
    await closed;
    clearTimeout(impatience);
  }

  /** Whether a request comes from our own page: another site must not trigger commands, not even under a name that leads to this machine. */
  private isOwn({ headers: { origin, host } }: IncomingMessage): boolean {
    const { port } = this.server.address() as AddressInfo;
    const own = [`127.0.0.1:${port}`, `localhost:${port}`];
    return own.some((name) => host === name && (origin === undefined || origin === `http://${name}`));
  }

  private join(response: ServerResponse): void {
    response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' });
    response.write(this.kept.join(''));
    this.browsers.add(response);
    response.once('close', () => this.browsers.delete(response));
  }
}

function pageOf(): string {
  // Replacement functions, because a dollar sign has a meaning in a replacement string.
  return html
    .replace('/*uplot.css*/', () => uplotStyle)
    .replace('/*uplot.js*/', () => `/*!\n${uplotLicence}*/\n${uplotScript}`);
}
