/**
 * The part of Express that the demo uses, because `@types/express` is not among our dependencies. Delete this file when
 * it is: an ambient module hides the types of an installed one.
 */
declare module 'express' {
  import type { Server } from 'node:http';

  export interface Request {
    readonly method: string;
    readonly path: string;
    readonly params: Readonly<Record<string, string>>;
    get(header: string): string | undefined;
  }

  export interface Response {
    status(code: number): this;
    set(header: string, value: string): this;
    type(type: string): this;
    send(body: string): this;
    json(body: unknown): this;
  }

  type Handler = (request: Request, response: Response) => void | Promise<void>;
  type ErrorHandler = (error: unknown, request: Request, response: Response, next: unknown) => void;

  interface Application {
    get(path: string, handler: Handler): this;
    post(path: string, handler: Handler): this;
    use(handler: ErrorHandler): this;
    listen(port: number, host: string, then: () => void): Server;
  }

  export default function express(): Application;
}
