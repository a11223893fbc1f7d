/** A real Chromium without a window, which can reach no machine other than this one. */
import { type Browser, chromium } from 'playwright-core';
import { type Program, provide } from './servers/provide.ts';

/** Undefined if Chromium is missing and CI does not require it. */
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
    // Some users run it as root. It only visits pages of this machine, and reports to nobody.
    args: [
      ...['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync'],
      ...['--disable-background-networking', '--disable-component-update'],
    ],
  });
}
