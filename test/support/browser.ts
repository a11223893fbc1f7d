/** A real Chromium, without a window and without a way to other machines than this one. */
import { type Browser, chromium } from 'playwright-core';
import { type Program, provide } from './servers/provide.ts';

/** Undefined where there is none and CI does not ask for one. */
export async function chromiumProgram(): Promise<Program | undefined> {
  return provide('chromium', 'chromium').catch((error: unknown) => {
    if (process.env.CI === 'true') throw error;
    console.warn(`skipped: ${error}`);
    return undefined;
  });
}

export function startBrowser({ file, env }: Program): Promise<Browser> {
  return chromium.launch({
    executablePath: file,
    env: { ...process.env, ...env },
    // It is run as root by some, looks at pages of this machine only, and has nobody to report to.
    args: [
      ...['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync'],
      ...['--disable-background-networking', '--disable-component-update'],
    ],
  });
}
