/** The demo's page in a real Chromium. The demo runs on the oldest Node, which has no SQLite. */
import type { Browser } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { provide, runtimes } from '../../tools/gates/runtimes.ts';
import { chromiumProgram, startBrowser } from '../support/browser.ts';
import { visitDemo } from '../support/demo-page.ts';

const program = await chromiumProgram();
const oldest = await provide(runtimes[0]!);
let browser: Browser;

beforeAll(async () => {
  if (program !== undefined) browser = await startBrowser(program);
});
afterAll(() => browser?.close());

describe.skipIf(program === undefined || (oldest === undefined && process.env.CI !== 'true'))(
  'the page of the demo',
  () => {
    it('draws what happens, obeys its buttons, and asks nobody else', async () => {
      const { page, address, requests, complaints, ended } = await visitDemo(browser, oldest!, ['--quick']);
      await page.waitForSelector('#rows tbody tr', { timeout: 60_000 });
      const pressed = page.waitForResponse((response) => response.url() === `${address}faults/slow`);
      await page.click('[data-fault=slow]');
      expect((await pressed).status()).toBe(204);
      // The protected path kept its promise.
      expect(await ended).toBe(0);

      // Chromium has drawn at least the lines of both paths in each chart.
      const coloursByChart = await page.evaluate<number[]>(`
      [...document.querySelectorAll('#charts canvas')].map((canvas) => {
        const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        return new Set(new Uint32Array(data.buffer)).size;
      })`);
      expect(coloursByChart).toHaveLength(3);
      for (const colours of coloursByChart) expect(colours).toBeGreaterThan(10);
      expect(await page.textContent('#act')).toMatch(/^frozen: /);
      expect(await page.locator('#rows tbody tr').count()).toBe(5);
      expect(await page.locator('#breakers span').count()).toBe(2);
      expect(complaints).toEqual([]);
      expect(requests.filter((url) => !url.startsWith(address) && !url.startsWith('data:'))).toEqual([]);
    });
  },
);
