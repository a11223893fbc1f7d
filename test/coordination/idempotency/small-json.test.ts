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

/** Undefined means that the text is left alone. */
function small(text: string): string | undefined {
  const bytes = new TextEncoder().encode(text);
  const out = new Uint8Array(bytes.length + 2).fill(0x78);
  const end = smallCanonicalJson(bytes, () => true, out, 2);
  expect(new TextDecoder().decode(out.subarray(0, 2))).toBe('xx');
  return end < 0 ? undefined : new TextDecoder().decode(out.subarray(2, end));
}

/** Texts that are almost JSON are included: short ones made of its characters. */
const anyText = fc.oneof(
  fc.json({ maxDepth: 4, stringUnit: 'grapheme' }),
  fc.jsonValue({ maxDepth: 3 }).map((value) => JSON.stringify(value, null, '\t ')),
  fc.string({ unit: fc.constantFrom(...'{}[]":,-+.eE019atruefalsn \t\n\\'), maxLength: 12 }),
  fc
    .array(
      fc.constantFrom('"b":1', '"b":{"z":1,"y":[{"d":1,"c":2}]}', '"a":2', '"a":03', '"a ":{}', '"a!":[ ]', '"":null'),
      { maxLength: 6 },
    )
    .map((all) => `{${all}}`),
);

describe('smallCanonicalJson', () => {
  it('writes what canonicalJson writes, or leaves it to that', () => {
    let written = 0;
    fc.assert(
      fc.property(anyText, (text) => {
        const taken = small(text);
        if (taken !== undefined) expect(taken).toBe(canonical(text));
        if (taken !== undefined) written++;
      }),
      { numRuns: 5_000 },
    );
    expect(written).toBeGreaterThan(1_000);
  });

  it('asks once whether bytes beyond ASCII are UTF-8, and leaves a document that is not', () => {
    const answers: boolean[] = [];
    const out = new Uint8Array(64);
    const end = (text: string, isUtf8: boolean) =>
      smallCanonicalJson(new TextEncoder().encode(text), () => answers.push(isUtf8) > 0 && isUtf8, out, 0);
    expect([end('{"in":"Bonn"}', false), end('{"in":"Köln","by":"Thaïs"}', true), answers]).toEqual([13, 28, [true]]);
    expect([end('{"in":"Köln","by":"Thaïs"}', false), answers]).toEqual([-1, [true, false]]);
  });

  it('accepts ordinary requests', () => {
    expect(small(' {"to":"kelp", "amount":2.50,"to":[true,null,{ }], "a b":1,"a":-1e3,"in":"Köln"}')).toBe(
      '{"a":-1e3,"a b":1,"amount":2.50,"in":"Köln","to":"kelp","to":[true,null,{}]}',
    );
  });

  it.each([
    ...[
      '[]',
      '[ ]',
      '{ }',
      '""',
      'true',
      'false',
      'null',
      '0',
      '-0',
      '9',
      '10.09',
      '1e9',
      '-1E+90',
      '0.9e-19',
      '[0,-9.5]',
    ],
    ...[' \n\r\t1 \n\r\t', '[ true ,\r\n"a" , [ ] ]', '{"a":1,"a":0}', '{"b":1,"a":{"d":1,"c":2},"a!":3,"a ":4,"":5}'],
    ...['"Köln €"', `${'['.repeat(32)}${']'.repeat(32)}`, `${'{"a":'.repeat(32)}1${'}'.repeat(32)}`],
  ])('takes %j', (text) => expect([small(text), canonical(text)]).toEqual([expect.any(String), small(text)]));

  it.each([
    ...[
      '[1,]',
      '[,]',
      '[1',
      '[1}',
      '{"a":1]',
      '{"a"}',
      '{"a":}',
      '{"a" 1}',
      '{"a":1 "b":2}',
      '{,}',
      '{"a":1,,}',
      '{1:1}',
    ],
    ...['[{"a":1]', '[{"a"]', '[{"a":]', '[{]', '[{"a":1,]', '[[1]', '["a]', '[tru]', '[truee]', '[1e]', '[1.]', '[-]'],
    ...[
      '1e+',
      '1E-',
      '-',
      '-a',
      '.1',
      '1.e1',
      '00',
      '-01',
      '+1',
      '"\u0001"',
      '{"\u0001":1}',
      '{"a\x80":1}',
      'tru',
      'falsy',
    ],
    ...[`${'['.repeat(33)}${']'.repeat(33)}`, `${'{"a":'.repeat(33)}1${'}'.repeat(33)}`],
    `${'['.repeat(20_000)}${']'.repeat(20_000)}`,
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
    '{"\u20ac":1}',
    '['.repeat(40),
  ])('leaves %j alone', (text) => expect(small(text)).toBeUndefined());
});
