/** Refusals: bounds how many writes in a row may be refused because another writer came first. */
import { StoreError } from '../../core/errors.js';

/** More in a row mean that something is wrong. Without a bound, a store that refuses at once would block the event loop for ever. */
const mostRefusals = 200;

export function checkRefusals(refusals: number): void {
  if (refusals <= mostRefusals) return;
  const detail = `others came first ${refusals} times in a row`;
  throw new StoreError({ store: 'idempotency', operation: 'write', reason: 'busy', applied: 'no', detail });
}
