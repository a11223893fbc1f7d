/**
 * One process of the example: `node run.ts before|after api|worker`, with REDIS_PORT and BANK_PORT in the environment. It prints its port, or that it
 * is ready, and ends when its standard input does.
 */
import type { AddressInfo } from 'node:net';
import type { Settings } from './settings.ts';

const [version, part] = process.argv.slice(2);
const { startApi, startWorker } = await (version === 'before' ? import('./before.ts') : import('./after.ts'));
const settings: Settings = {
  redis: { host: '127.0.0.1', port: Number(process.env.REDIS_PORT) },
  stalledAfterMs: 1_000,
  async charge(order, key) {
    const headers = { 'content-type': 'application/json', ...(key !== undefined && { 'idempotency-key': key }) };
    const url = `http://127.0.0.1:${process.env.BANK_PORT}/charges`;
    const response = await fetch(url, { method: 'POST', headers, body: JSON.stringify(order) });
    if (!response.ok) throw new Error(`the bank says ${response.status}`);
    return response.json();
  },
};

if (part === 'api') {
  const server = startApi(settings).listen(0, '127.0.0.1', () => console.log((server.address() as AddressInfo).port));
} else {
  await startWorker(settings).waitUntilReady();
  console.log('ready');
}
process.stdin.resume().once('end', () => process.exit());
