import fc from 'fast-check';
import { describe, expect, it, vi } from 'vitest';
import { canonicalJson, isPointer, type Portions } from '../../../src/coordination/idempotency/canonical-json.js';
import { IntegerTable } from '../../../src/coordination/idempotency/integer-table.js';

function canonical(text: string, exclude?: readonly string[], portions?: Portions): string | false {
  let written = '';
  const sink = (piece: string, start: number, end: number) => {
    const range = piece.slice(start, end);
    if (/\p{Surrogate}/u.test(range)) throw new Error(`a range ends within a character: ${JSON.stringify(range)}`);
    written += range;
  };
  const work = canonicalJson(text, sink, exclude, portions);
  for (;;) {
    const step = work.next();
    if (step.done) return step.value && written;
  }
}

/** The rule in its simplest form: whole tokens, recursion, and no regard for time. */
function reference(text: string, exclude: readonly string[] = []): string | false {
  try {
    JSON.parse(text);
  } catch {
    return false;
  }
  const tokens = text.match(/"(?:[^"\\]|\\.)*"|[^\s"{}[\],:]+|[{}[\],:]/g)!;
  let at = 0;
  const valueAt = (pointer: string): string => {
    const token = tokens[at++]!;
    if (token !== '{' && token !== '[') return token.startsWith('"') ? JSON.stringify(JSON.parse(token)) : token;
    const parts: { name: string; text: string }[] = [];
    for (let index = 0; tokens[at] !== '}' && tokens[at] !== ']'; index++) {
      if (tokens[at] === ',') at++;
      const name: string = token === '{' ? JSON.parse(tokens[at++]!) : '';
      if (token === '{') at++;
      const here = `${pointer}/${token === '{' ? name.replaceAll('~', '~0').replaceAll('/', '~1') : index}`;
      const value = valueAt(here);
      if (token === '[') parts.push({ name, text: value });
      else if (!exclude.includes(here)) parts.push({ name, text: `${JSON.stringify(name)}:${value}` });
    }
    at++;
    parts.sort((one, other) => (one.name < other.name ? -1 : one.name > other.name ? 1 : 0));
    const all = parts.map((part) => part.text).join(',');
    return token === '{' ? `{${all}}` : `[${all}]`;
  };
  return valueAt('');
}

/** The same data as a text that looks different: another order of members, other spaces and escapes. */
function disguised(value: unknown, random: () => number): string {
  const gap = () => [' ', '', '\n', '\t \r', ''][Math.floor(random() * 5)]!;
  const text = (one: string) =>
    `"${[...one]
      .map((character) =>
        random() < 0.3
          ? [...Array(character.length).keys()]
              .map((index) => `\\u${character.charCodeAt(index).toString(16).padStart(4, '0')}`)
              .join('')
          : JSON.stringify(character).slice(1, -1),
      )
      .join('')}"`;
  if (typeof value === 'string') return text(value);
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  if (Array.isArray(value)) return `[${gap()}${value.map((one) => disguised(one, random)).join(`${gap()},${gap()}`)}]`;
  const members = Object.entries(value).map(([name, one]) => `${text(name)}${gap()}:${gap()}${disguised(one, random)}`);
  members.sort(() => random() - 0.5);
  return `{${gap()}${members.join(`${gap()},${gap()}`)}${gap()}}`;
}

/** The expected text, for data whose numbers JSON.stringify writes unchanged. */
function sorted(value: unknown): string {
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map(sorted).join(',')}]`;
  const names = Object.keys(value).sort((one, other) => (one < other ? -1 : 1));
  return `{${names.map((name) => `${JSON.stringify(name)}:${sorted((value as Record<string, unknown>)[name])}`).join(',')}}`;
}

const anyData = fc.jsonValue({ maxDepth: 5, stringUnit: 'binary', noUnicodeString: false } as object).map((value) =>
  // Ill-formed text does not survive UTF-8, and two names may become the same.
  JSON.parse(
    JSON.stringify(value)
      .replaceAll(/\\ud[89a-f][0-9a-f]{2}/g, 'x')
      .replaceAll('__proto__', 'proto'),
  ),
);

describe('canonicalJson', () => {
  it('gives all texts of the same data one form, which is itself canonical', () => {
    fc.assert(
      fc.property(anyData, fc.infiniteStream(fc.double({ min: 0, max: 0.999, noNaN: true })), (data, numbers) => {
        const expected = sorted(data);
        const text = disguised(data, () => numbers.next().value);
        expect(canonical(text)).toBe(expected);
        expect(canonical(expected)).toBe(expected);
      }),
      { numRuns: 500 },
    );
  });

  it('accepts exactly the texts that JSON.parse accepts', () => {
    const piece = fc.constantFrom(
      ...[
        '{',
        '}',
        '[',
        ']',
        ',',
        ':',
        '"',
        '"a"',
        '"b"',
        '1',
        '-',
        '0',
        '01',
        '1.',
        '.5',
        '1e',
        'e+2',
        'true',
        'nul',
        'null',
      ],
      ...[' ', '\n', '\\', '\\u12', '\\n', '\u0001', '\u00a0', '\ufeff', '{"a":', '[1', '""'],
    );
    fc.assert(
      fc.property(
        fc.array(piece, { maxLength: 12 }).map((pieces) => pieces.join('')),
        (text) => {
          let isJson = true;
          try {
            JSON.parse(text);
          } catch {
            isJson = false;
          }
          expect([text, canonical(text) !== false]).toEqual([text, isJson]);
        },
      ),
      { numRuns: 20_000 },
    );
  });

  it('distinguishes different data', () => {
    fc.assert(
      fc.property(anyData, anyData, (one, other) => {
        expect(canonical(JSON.stringify(one)) === canonical(JSON.stringify(other))).toBe(sorted(one) === sorted(other));
      }),
      { numRuns: 300 },
    );
  });

  it('keeps the digits of numbers, and the order of members of equal name', () => {
    expect(canonical('{"n": 9007199254740993, "m": 1.0, "e": 1E5}')).toBe('{"e":1E5,"m":1.0,"n":9007199254740993}');
    expect(canonical('{"b":1,"a":2,"b":0,"a":1}')).toBe('{"a":2,"a":1,"b":1,"b":0}');
    expect(canonical('{"a":1,"a":2}')).not.toBe(canonical('{"a":2,"a":1}'));
  });

  it('orders names by code unit, escaped or not', () => {
    expect(canonical('{"\\ud83d\\ude00":1,"\uffee":2,"\\u0041":3,"B":4}')).toBe(
      '{"A":3,"B":4,"\u{1f600}":1,"\uffee":2}',
    );
  });

  it('leaves out the members that pointers name, and nothing else', () => {
    const text =
      '{"sentAt":1,"order":{"id":7,"trace":{"a":{"b":2}}},"lines":[{"id":1,"at":5},{"id":2,"at":6}],"a/b":1,"~":2}';
    expect(canonical(text, ['/sentAt', '/order/trace', '/lines/1/at', '/a~1b', '/~0'])).toBe(
      '{"lines":[{"at":5,"id":1},{"id":2}],"order":{"id":7}}',
    );
    expect(canonical('{"a":1}', ['/a'])).toBe('{}');
    expect(canonical('{"b":{"a":1}}', ['/a'])).toBe('{"b":{"a":1}}');
  });

  it('handles deep documents', () => {
    const depth = 50_000;
    const text = `${'{"b":0,"a":'.repeat(depth)}[]${'}'.repeat(depth)}`;
    expect(canonical(text)).toBe(`${'{"a":'.repeat(depth)}[]${',"b":0}'.repeat(depth)}`);
    expect(canonical(`${'['.repeat(depth)}${']'.repeat(depth)}`)).toHaveLength(2 * depth);
    expect(canonical('['.repeat(depth))).toBe(false);
  });

  it('cuts long strings only between characters', () => {
    const long = `${'x'.repeat(65_533)}\u{1f600}${'\\ud83d\\ude00'.repeat(20_000)}`;
    expect(canonical(` "${long}"`)).toBe(JSON.stringify(JSON.parse(`"${long}"`)));
    const quotes = `${'x'.repeat(65_535)}\\"${'\\"'.repeat(40_000)}`;
    expect(canonical(` "${quotes}"`)).toBe(`"${quotes}"`);
  });
});

describe('isPointer', () => {
  it.each(['/a', '/a/0', '/', '/a//b', '/~0', '/~1', '/a~1b~0/c', '/ä b'])('accepts %s', (pointer) => {
    expect(isPointer(pointer)).toBe(true);
  });

  it.each(['', 'a', 'a/b', '/~', '/~2', '/a~', '/a/~x', undefined, 7, { toString: () => '/a' }])(
    'refuses %j',
    (value) => {
      expect(isPointer(value)).toBe(false);
    },
  );
});

describe('canonicalJson, of unusual notations,', () => {
  it('refuses almost-JSON', () => {
    const wrong = [
      ...['', ' ', '[1[2]]', '[1 2]', '[1{}]', '["a""b"]', '[1"a"]', '[true false]', '[,]', '[1,]', '[,1]', '[1,,2]'],
      ...['[1}', '{"a":1]', '[', ']', '{', '}', '[1', '[1,', '{"a"', '{"a":', '{"a":1', '{"a":1,', '[]]', '{}}', '1 1'],
      ...[
        '{,}',
        '{"a":1,}',
        '{,"a":1}',
        '{"a":1,,"b":2}',
        '{"a" 1}',
        '{"a"::1}',
        '{"a":1"b":2}',
        '{"a":1 {}}',
        '{1:2}',
      ],
      ...[
        '{"a":}',
        '{:1}',
        '{"a"}',
        '{a:1}',
        '{a":1}',
        '{1":1}',
        '{"b":0,a":1}',
        '{"a":1 "b"}',
        '{[]:1}',
        '{"a",1}',
        '[1:2]',
        '{"a":1:2}',
        '{"a":[}',
        '[{]',
      ],
      ...[
        '-',
        '+1',
        '01',
        '-01',
        '00',
        '1.',
        '.5',
        '-.5',
        '1.e1',
        '1e',
        '1e+',
        '1E-',
        '1e1.5',
        '1ee1',
        '0x1',
        '1_0',
        '--1',
      ],
      ...['{1}', '{1,2}', '{"a":1,2}', '{[]}', '{{}}', '{"a":1,[]}', '{"a":1,{}}', '{true}', '{"a":1,"b"}'],
      ...['tru', 'truee', 'True', 'nul', 'nulll', 'falsee', 'NaN', 'Infinity', '-Infinity', 'undefined', "'a'", '[1]x'],
      ...['"', '"a', 'a"', '"\\"', '"\\x"', '"\\u12"', '"\\u123"', '"\\u123g"', '"\\u 123"', '"\\', '"\\u', '"\n"'],
      ...[
        '"\t"',
        '"\u0000"',
        '"\u001f"',
        '\u00a0 1',
        '\ufeff1',
        '1\u00a0',
        '\v1',
        '\f1',
        '/**/1',
        '1//',
        '{"a\n":1}',
        '"a" "b"',
      ],
    ];
    expect(wrong.filter((text) => canonical(text) !== false)).toEqual([]);
    // They are invalid within an array or an object as well, except that an array may be empty.
    expect(wrong.filter((text) => canonical(`[${text}]`) !== false)).toEqual(['', ' ']);
    expect(wrong.filter((text) => canonical(`{"a":${text}}`) !== false)).toEqual([]);
  });

  it('accepts every notation of a value, and keeps how a number is written', () => {
    const right = [
      ...[
        '0',
        '-0',
        '10',
        '-1',
        '1.0',
        '0.10',
        '-0.5',
        '1e1',
        '1E1',
        '1e+1',
        '1e-1',
        '0e0',
        '1.5E+10',
        '123456789012345678901',
      ],
      ...[
        'true',
        'false',
        'null',
        '""',
        '"a"',
        '"ä"',
        '"\u{1f600}"',
        '[]',
        '{}',
        '[[]]',
        '[{}]',
        '{"":""}',
        '[1,true,"a",null]',
      ],
    ];
    for (const text of right) {
      for (const space of ['', ' ', '\n', '\r', '\t']) {
        expect(canonical(space + text + space)).toBe(text);
        expect(canonical(`[${space}${text}${space},${space}${text}${space}]`)).toBe(`[${text},${text}]`);
        expect(canonical(`{${space}"b"${space}:${space}${text}${space},${space}"a"${space}:${space}1${space}}`)).toBe(
          `{"a":1,"b":${text}}`,
        );
      }
    }
  });

  it('sorts the members of objects of any size, and keeps the order of equal names', () => {
    // These sizes are around powers of two, where a merge has a remainder.
    for (const size of [1, 2, 3, 4, 5, 7, 8, 9, 63, 64, 65, 96, 100, 1_000, 1_024, 1_025]) {
      for (const nameOf of [
        (index: number) => index,
        (index: number) => size - index,
        (index: number) => (index * 7_919) % 1_009,
        (index: number) => (index * 7_919) % 11,
        // All members except the last are in order.
        (index: number) => (index === size - 1 ? 0 : index + 1),
      ]) {
        const members = [...Array(size).keys()].map((index) => ({
          text: `"${String(nameOf(index)).padStart(4, '0')}":${index}`,
          name: nameOf(index),
          index,
        }));
        const ordered = members.toSorted((one, other) => one.name - other.name || one.index - other.index);
        const expected = `{${ordered.map(({ text }) => text).join(',')}}`;
        expect(canonical(`{${members.map(({ text }) => text).join(',')}}`)).toBe(expected);
      }
    }
  });

  it('distinguishes names that start alike or are written with escapes', () => {
    const names = ['', 'a', 'a"', 'a\\', 'aa', 'ab', 'a\n', 'b', 'ä', '\u{1f600}', '\uffee'].sort();
    const plain = names.map((name, index) => `${JSON.stringify(name)}:${index}`);
    const escaped = names.map((name, index) => {
      const units = [...Array(name.length).keys()].map((at) => name.charCodeAt(at).toString(16).padStart(4, '0'));
      return `"${units.map((unit) => `\\u${unit}`).join('')}":${index}`;
    });
    const expected = `{${plain.join(',')}}`;
    for (let turn = 0; turn < names.length; turn++) {
      for (const [one, other] of [
        [plain, plain],
        [escaped, plain],
        [plain, escaped],
        [escaped, escaped],
      ] as const) {
        const mixed = names.map((_, index) => (index % 2 === 0 ? one : other)[index]!);
        const turned = [...mixed.slice(turn), ...mixed.slice(0, turn)];
        expect(canonical(`{${turned.join(',')}}`)).toBe(expected);
        expect(canonical(`{${turned.toReversed().join(',')}}`)).toBe(expected);
      }
    }
  });

  it('reads strings that are longer than its stride, as names and as values', () => {
    const portions = { slice: 300_000, stride: 100 };
    for (const length of [97, 98, 99, 100, 101, 250]) {
      for (const end of ['', 'b', '\\n', '\\u00e4', '\\"', '\\\\', '\u{1f600}', '\\ud83d\\ude00', '\\ud83d\u{1f600}']) {
        const long = `"${'a'.repeat(length)}${end}"`;
        const plain = JSON.stringify(JSON.parse(long));
        expect(canonical(`{"b":1,${long} :{"d":${long},"c": [${long}]}}`, [], portions)).toBe(
          `{${plain}:{"c":[${plain}],"d":${plain}},"b":1}`,
        );
      }
      for (const wrong of ['\\', '\\x', '\\u12', '\\u12x4', '\n']) {
        expect(canonical(`["${'a'.repeat(length)}${wrong}"]`, [], portions)).toBe(false);
        expect(canonical(`{"${'a'.repeat(length)}${wrong}":1}`, [], portions)).toBe(false);
      }
      expect(canonical(`["${'a'.repeat(length)}`, [], portions)).toBe(false);
      expect(canonical(`{"${'a'.repeat(length)}" 1}`, [], portions)).toBe(false);
    }
  });

  it('refuses numbers with more digits than its stride, wherever they are', () => {
    for (const digits of [65_536, 65_537, 1_000_000]) {
      const many = '1'.repeat(digits);
      for (const number of [many, `-${many}`, `0.${many}`, `1e${many}`, `1e-${many}`]) {
        for (const text of [number, `[${number}]`, `{"b":1,"a":${number}}`]) {
          expect(canonical(text) !== false).toBe(digits === 65_536);
        }
      }
    }
  });
});

/** Texts of JSON, written in every way: names that begin alike or occur twice, white space, escapes, digits. */
const anyText = (() => {
  const gap = fc.oneof(
    { weight: 5, arbitrary: fc.constant('') },
    fc.string({ unit: fc.constantFrom(' ', '\n', '\r', '\t'), maxLength: 20 }),
  );
  const units = ['a', 'b', '~', '/', ' ', '!', '\x7f', 'ä', '\u2028', '\uffee', '\u{1f600}', '0', '{', '}', '[', ','];
  const escapes = [
    '\\n',
    '\\"',
    '\\\\',
    '\\/',
    '\\u0061',
    '\\u0022',
    '\\u00E4',
    '\\ud83d\\uDE00',
    '\\ud83d',
    '\\ude00',
  ];
  const unit = fc.constantFrom(...units, ...escapes);
  const lexeme = (maxLength: number) => fc.string({ unit, maxLength }).map((inner) => `"${inner}"`);
  const name = fc.oneof(lexeme(2), fc.constantFrom('"a"', '"\\u0061"', '"aa"', '"b"', '"~"', '"a/b"'), lexeme(40));
  const plain = fc.oneof(
    fc.constantFrom('0', '-0', '1', '1.0', '10', '1e5', '1E+5', '1e-5', '-12.50', '9007199254740993'),
    fc.constantFrom('true', 'false', 'null', '""', '[]', '{}', '"1"', '"true"'),
    lexeme(60),
  );
  const gaps = fc.tuple(gap, gap, gap, gap);
  const { value } = fc.letrec<{ value: string; array: string; object: string }>((tie) => ({
    value: fc.oneof({ depthSize: 'small', withCrossShrink: true }, plain, tie('array'), tie('object')),
    array: fc
      .array(fc.tuple(gap, tie('value'), gap), { maxLength: 8 })
      .map((all) => `[${all.map(([before, one, behind]) => before + one + behind).join(',')}]`),
    object: fc
      .array(fc.tuple(gaps, name, tie('value')), { maxLength: 8 })
      .map((all) => `{${all.map(([[a, b, c, d], one, of]) => `${a}${one}${b}:${c}${of}${d}`).join(',')}}`),
  }));
  return fc.tuple(gap, value, gap).map((all) => all.join(''));
})();

/** Portions so small that their borders fall on every position. */
const anyPortions = fc.record({ slice: fc.constantFrom(1, 50, 300_000), stride: fc.integer({ min: 12, max: 40 }) });

describe('canonicalJson, compared with a reference implementation,', () => {
  it('writes the same, however small its portions are', () => {
    fc.assert(
      fc.property(anyText, anyPortions, (text, portions) => {
        const expected = reference(text);
        expect(expected).not.toBe(false);
        expect(canonical(text, [], portions)).toBe(expected);
        expect(canonical(expected as string, [], portions)).toBe(expected);
      }),
      { seed: 1, numRuns: 500 },
    );
  });

  it('accepts the same damaged texts', () => {
    const damage = fc.record({
      at: fc.nat(),
      cut: fc.nat(3),
      put: fc.constantFrom(
        '',
        '',
        '"',
        '\\',
        ',',
        ':',
        '{',
        '}',
        '[',
        ']',
        '0',
        'e',
        '.',
        '-',
        '\u0000',
        '\u00a0',
        'u',
        ' ',
      ),
    });
    fc.assert(
      fc.property(anyText, damage, anyPortions, (text, { at, cut, put }, portions) => {
        const characters = [...text];
        characters.splice(at % (characters.length + 1), cut, put);
        const damaged = characters.join('');
        expect(canonical(damaged, [], portions)).toBe(reference(damaged));
      }),
      { seed: 2, numRuns: 2_000 },
    );
  });

  it('leaves out the same members', () => {
    const step = fc.constantFrom('a', 'aa', 'b', '~0', 'a~1b', '0', '1', '');
    const pointer = fc.array(step, { minLength: 1, maxLength: 4 }).map((steps) => `/${steps.join('/')}`);
    let different = 0;
    fc.assert(
      fc.property(
        anyText,
        anyText,
        fc.array(pointer, { maxLength: 6 }),
        anyPortions,
        (one, other, exclude, portions) => {
          const text = `{"b":[${one},{"b":${other}}],"a":${one},"":{"a/b":${other}}}`;
          const expected = reference(text, exclude);
          expect(canonical(text, exclude, portions)).toBe(expected);
          if (expected !== reference(text)) different++;
        },
      ),
      { seed: 3, numRuns: 700 },
    );
    expect(different).toBeGreaterThan(100);
  });

  it('gives two texts the same form only if the reference does', () => {
    const spelled = fc.constantFrom(
      '1',
      '1.0',
      '1e0',
      '"1"',
      '"\\u0031"',
      '[1]',
      '{"a":1}',
      '{"\\u0061": 1}',
      '{"a":"1"}',
      'true',
    );
    const listed = fc.array(spelled, { maxLength: 3 }).map((all) => `[${all.join(', ')}]`);
    fc.assert(
      fc.property(listed, listed, (one, other) => {
        expect(canonical(one) === canonical(other)).toBe(reference(one) === reference(other));
      }),
      { seed: 4, numRuns: 2_000 },
    );
  });
});

/** A text that counts how often its characters are read. */
class CountedText extends String {
  looked = 0;

  override charCodeAt(index: number): number {
    this.looked++;
    return super.charCodeAt(index);
  }

  override charAt(index: number): string {
    this.looked++;
    return super.charAt(index);
  }

  override slice(start?: number, end?: number): string {
    const part = super.slice(start, end);
    this.looked += part.length;
    return part;
  }
}

describe('canonicalJson yields', () => {
  const length = 20_000;
  const portions = { slice: 1_000, stride: 100 };
  const repeated = (piece: string) =>
    Array(Math.ceil(length / (piece.length + 1)))
      .fill(piece)
      .join(',');
  const members = (count: number, nameOf: (index: number) => string) =>
    `{${[...Array(count).keys()].map((index) => `"${nameOf((index * 7_919) % 10_007)}":0`).join(',')}}`;

  // The number is the most work that is done for a character. A step counts as 20.
  it.each<[string, string, number, string[]?]>([
    ['numbers', `[${repeated('1')}]`, 25],
    ['long numbers', `[${repeated('1'.repeat(500))}]`, 4],
    ['white space', `[${' '.repeat(length)}{"b":1,"a":2}]`, 42],
    ['white space before a colon', `{"a"${' '.repeat(length)}:1}`, 42],
    ['arrays', `[${repeated('[]')}]`, 25],
    ['objects', `[${repeated('{"b":1,"a":2}')}]`, 50],
    ['many members', members(2_500, String), 200],
    ['members in order', `{${[...Array(2_500).keys()].map((index) => `"${10_000 + index}":0`)}}`, 25],
    ['long names that begin alike', members(80, (index) => 'a'.repeat(250) + index), 25],
    ['long names that begin alike, with escapes', members(80, (index) => `\\u0061${'a'.repeat(250)}${index}`), 25],
    ['two names, alike to their ends', `{"${'a'.repeat(length / 2)}b":1,"${'a'.repeat(length / 2)}a":2}`, 10],
    ['two names of escapes', `{"${'\\u0061'.repeat(length / 12)}b":1,"${'\\u0061'.repeat(length / 12)}a":2}`, 20],
    ['names that a pointer might lead to', members(80, (index) => index + 'a'.repeat(250)), 5, ['/x']],
    ['a string', ` "${'x'.repeat(length)}"`, 3],
    ['a string of escapes', ` "${'\\u00e4'.repeat(length / 6)}"`, 3],
    ['a long name', `{"b":1,"${'a'.repeat(length)}":1}`, 3],
    ['a string that ends early', `["${'x'.repeat(length)}`, 3],
    ['strings', ` [${repeated('"abcdefghijklmnop"')}]`, 10],
  ])('after some 1 000 characters, and not after each: %s', (_, text, mostWork, exclude = []) => {
    const counted = new CountedText(text);
    let written = '';
    let slices = 0;
    let most = 0;
    let before = 0;
    const work = canonicalJson(
      counted as unknown as string,
      (piece, start, end) => {
        written += String(piece).slice(start, end);
      },
      exclude,
      portions,
    );
    for (let isDone = false; !isDone; slices++) {
      isDone = work.next().done === true;
      most = Math.max(most, counted.looked - before);
      before = counted.looked;
    }
    expect(written).toBe(canonical(text) || '');
    // A character that is read twice, to find its end and to write it, counts once. The last names that were compared come on top.
    expect(most).toBeLessThan(2 * portions.slice + 5 * portions.stride);
    expect(slices).toBeLessThan((mostWork * text.length) / portions.slice + 3);
  });

  it('never within a small document, and after a millisecond or two within a large one', () => {
    expect(canonicalJson('{"b":[1,2],"a":{"d":"x","c":null}}', () => {}).next()).toEqual({ done: true, value: true });
    const large = canonicalJson(`"${'x'.repeat(1_000_000)}"`, () => {});
    let slices = 1;
    while (!large.next().done) slices++;
    expect(slices).toBe(7);
  });

  it.each([
    ['to put many members in order', members(9_000, String)],
    ['to close what is deep', `${'{"a":'.repeat(5_000)}0${'}'.repeat(5_000)}`],
  ])('also where it looks at no text: %s', (_, text) => {
    const { get } = IntegerTable.prototype;
    let [inSlice, most] = [0, 0];
    IntegerTable.prototype.get = function (row, column) {
      inSlice++;
      return get.call(this, row, column);
    };
    try {
      const work = canonicalJson(text, () => {}, [], portions);
      for (let isDone = false; !isDone; inSlice = 0) {
        isDone = work.next().done === true;
        most = Math.max(most, inSlice);
      }
    } finally {
      IntegerTable.prototype.get = get;
    }
    expect(most).toBeLessThan(2 * portions.slice);
  });

  it('reads each name only as often as it is written, however many members a pointer may lead to', () => {
    const replaceAll = vi.spyOn(String.prototype, 'replaceAll');
    try {
      const parent = 'a'.repeat(10_000);
      const text = `{"${parent}":{${[...Array(1_000).keys()].map((index) => `"${index}":${index}`)}},"b":{"y":1,"x":2}}`;
      const work = canonicalJson(text, () => {}, ['/b/y', '/c/d/e'], portions);
      while (!work.next().done);
      const read = replaceAll.mock.contexts.reduce((sum: number, name) => sum + String(name).length, 0);
      expect(read).toBeLessThan(5 * text.length);
    } finally {
      replaceAll.mockRestore();
    }
  });

  it('reads no names that no pointer leads to', () => {
    const parse = vi.spyOn(JSON, 'parse');
    try {
      const depth = 100;
      const text = `${'{"a":'.repeat(depth)}{"b":1}${'}'.repeat(depth)}`;
      const work = canonicalJson(text, () => {}, ['/a/a/b']);
      while (!work.next().done);
      expect(parse.mock.calls.length).toBeLessThan(10);
    } finally {
      parse.mockRestore();
    }
  });
});
