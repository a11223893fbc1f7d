/** `npm run screenshot`: runs the demo for a minute and takes a picture of its page for the docs. */
import { chromiumProgram, startBrowser } from '../../test/support/browser.ts';
import { visitDemo } from '../../test/support/demo-page.ts';

const program = await chromiumProgram();
if (program === undefined) process.exit(1);
const browser = await startBrowser(program);
try {
  const { page, ended } = await visitDemo(browser, process.execPath, []);
  const code = await ended;
  await page.screenshot({ path: 'docs/images/demo.png', fullPage: true });
  process.exitCode = code ?? 1;
} finally {
  await browser.close();
}
