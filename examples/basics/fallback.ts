/** Fallback: answer in place of an error, here with the last known price. */
import { fallback, isAbandoned, pipeline, timeout } from 'holdfast';

interface Price {
  readonly amount: number;
  readonly isStale: boolean;
}

const lastPrices = new Map<string, number>([['KELP', 41]]);

// The fallback covers only a slow price service; a mistake such as an unknown symbol still reaches the caller.
const prices = pipeline(
  fallback((_error, call): Price => ({ amount: lastPrices.get(String(call.attributes.symbol)) ?? 0, isStale: true }), {
    handles: (outcome) => !outcome.ok && isAbandoned(outcome.error),
  }),
  timeout('50ms'),
);

function priceOf(symbol: string, service: () => Promise<Price>): Promise<Price> {
  return prices.execute(service, { attributes: { symbol } });
}

console.log('well:', await priceOf('KELP', async () => ({ amount: 42, isStale: false })));
console.log('slow:', await priceOf('KELP', () => new Promise(() => {})));
const unknown = priceOf('KLEP', () => Promise.reject(new Error('unknown symbol KLEP')));
console.log('wrong:', await unknown.catch(String));
