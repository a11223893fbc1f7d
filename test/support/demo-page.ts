/** Runs the demo with a browser on its page. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import type { Browser, Page } from 'playwright-core';

export interface DemoVisit {
  readonly page: Page;
  readonly address: string;
  /** The requests of the page, and the errors that the browser reported. */
  readonly requests: readonly string[];
  readonly complaints: readonly string[];
  /** Resolves with the exit code of the demo. */
  readonly ended: Promise<number | null>;
}

/** @param node - Which Node it runs on. */
export async function visitDemo(browser: Browser, node: string, args: readonly string[]): Promise<DemoVisit> {
  const page = await browser.newPage({ viewport: { width: 1_240, height: 820 } });
  const requests: string[] = [];
  const complaints: string[] = [];
  page.on('request', (request) => requests.push(request.url()));
  page.on('console', (message) => message.type() === 'error' && complaints.push(message.text()));
  page.on('pageerror', (error) => complaints.push(String(error)));
  const demo = spawn(node, ['dist/cli.js', 'demo', ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
  const ended = once(demo, 'exit').then(([code]) => code as number | null);
  const address = await new Promise<string>((resolve, reject) => {
    let said = '';
    demo.stdout.on('data', (data) => {
      said += data;
      const [found] = /http:\/\/127\.0\.0\.1:\d+\//.exec(said) ?? [];
      if (found !== undefined) resolve(found);
    });
    void ended.then((code) => reject(new Error(`the demo ended with code ${code}: ${said}`)));
  });
  await page.goto(address);
  return { page, address, requests, complaints, ended };
}
