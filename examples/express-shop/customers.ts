/** Customers: they order, repeat requests when the connection breaks, and make mistakes. Their results are printed and checked. */
import assert from 'node:assert/strict';
import type { Provider } from './payment.ts';
import type { OpenStore } from './store.ts';

interface Order {
  readonly customer: string;
  readonly key?: string;
  readonly cents?: number;
  /** Only for reservations, which are not paid. */
  readonly seat?: string;
}

interface Seen {
  readonly status: number;
  readonly body: string;
  readonly replayed: boolean;
}

/** Sends all customers to a shop with the given provider behind it. */
export async function goShopping(
  address: string,
  provider: Provider,
  reservations: OpenStore['reservations'],
): Promise<void> {
  const order = async (what: string, { customer, key, cents, seat }: Order): Promise<Seen> => {
    const answer = await fetch(`${address}/${seat === undefined ? 'orders' : 'reservations'}`, {
      method: 'POST',
      headers: {
        ...{ authorization: customer, 'content-type': 'application/json' },
        ...(key === undefined ? {} : { 'idempotency-key': key }),
      },
      body: JSON.stringify({ cents, seat }),
    });
    const seen = {
      status: answer.status,
      body: await answer.text(),
      replayed: answer.headers.has('idempotent-replayed'),
    };
    console.log(
      `${what.padEnd(46)} ${seen.status} ${seen.replayed ? 'replayed' : '        '} ${seen.body.slice(0, 60)}`,
    );
    return seen;
  };

  const first = await order('alice orders', { customer: 'alice', key: 'a-1', cents: 250 });
  const again = await order('alice presses the button again', { customer: 'alice', key: 'a-1', cents: 250 });
  assert.deepEqual([first.status, again.status, again.replayed, again.body], [201, 201, true, first.body]);

  const other = await order('alice orders something else with that key', { customer: 'alice', key: 'a-1', cents: 999 });
  assert.equal(other.status, 422);

  const bob = await order('bob happens to have the same key', { customer: 'bob', key: 'a-1', cents: 250 });
  assert.deepEqual([bob.status, bob.replayed], [201, false]);

  const none = await order('carol has no key', { customer: 'carol', cents: 250 });
  assert.equal(none.status, 400);

  const ten = await Promise.all(
    Array.from({ length: 10 }, () =>
      order('dave presses ten times at once', { customer: 'dave', key: 'd-1', cents: 100 }),
    ),
  );
  assert.equal(ten.filter(({ status, replayed }) => status === 201 && !replayed).length, 1);

  provider.breakNext();
  const broken = await order('eve pays, and the line to the provider breaks', {
    customer: 'eve',
    key: 'e-1',
    cents: 700,
  });
  const retried = await order('eve tries again', { customer: 'eve', key: 'e-1', cents: 700 });
  assert.deepEqual([broken.status, retried.status], [502, 201]);

  if (reservations !== undefined) {
    const wish = { customer: 'frank', key: 'f-1', seat: '12 B' };
    const all = await Promise.all(Array.from({ length: 5 }, () => order('frank reserves five times at once', wish)));
    const [reserved] = all.filter(({ status }) => status === 201);
    const later = await order('frank reserves once more', wish);
    // A request that meets the first one's open transaction is told to come back.
    assert.ok(all.every(({ status }) => status === 201 || status === 409));
    assert.deepEqual([later.status, later.body], [201, reserved?.body]);
    const changed = await order('frank wants another seat with that key', { ...wish, seat: '1 A' });
    assert.deepEqual([changed.status, await reservations.count()], [422, 1]);
  }

  console.log(`charged: ${provider.charges.join(', ')} cents`);
  // Four orders, four charges: eve's was made before the connection broke, and the provider recognised it.
  assert.deepEqual(provider.charges.toSorted(), [100, 250, 250, 700]);
}
