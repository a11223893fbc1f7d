import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { canonicalJson } from '../../../src/coordination/idempotency/canonical-json.js';
import { smallCanonicalJson } from '../../../src/coordination/idempotency/small-json.js';

function canonical(text: string): string | false {
  let written = '';
  const work = canonicalJson(text, (piece, start, end) => (written += piece.slice(start, end)));
  for (;;) {
    const step = work.next();
    if (step.done) return step.value && written;
  }
}

/** Texts that are almost JSON, too: short ones of its own characters. */
const anyText = fc.oneof(
  fc.json({ maxDepth: 4, stringUnit: 'grapheme' }),
  fc.jsonValue({ maxDepth: 3 }).map((value) => JSON.stringify(value, null, '\t ')),
  fc.string({ unit: fc.constantFrom(...'{}[]":,-+.eE019atruefalsn \t\n\\'), maxLength: 12 }),
  fc
    .array(fc.constantFrom('"b":1', '"a":2', '"a":03', '"a ":{}', '"a!":[ ]', '"":null'), { maxLength: 6 })
    .map((all) => `{${all}}`),
);

describe('smallCanonicalJson', () => {
  it('writes what canonicalJson writes, or leaves it to that', () => {
    let written = 0;
    fc.assert(
      fc.property(anyText, (text) => {
        const small = smallCanonicalJson(text);
        if (small !== undefined) expect(small).toBe(canonical(text));
        if (small !== undefined) written++;
      }),
      { numRuns: 5_000 },
    );
    expect(written).toBeGreaterThan(1_000);
  });

  it('takes what requests are made of', () => {
    expect(smallCanonicalJson(' {"to":"kelp", "amount":2.50,"to":[true,null,{ }], "a b":1,"a":-1e3}')).toBe(
      '{"a":-1e3,"a b":1,"amount":2.50,"to":"kelp","to":[true,null,{}]}',
    );
  });

  it.each([
    '',
    '{"a":1,}',
    '[1 2]',
    '01',
    '"a',
    '{"a":1}x',
    '1.',
    'nul',
    '{a:1}',
    '\ufeff{}',
    '"\\u0061"',
    '['.repeat(40),
  ])('leaves %j alone', (text) => expect(smallCanonicalJson(text)).toBeUndefined());
});
