import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { canonicalJson, isPointer } from '../../../src/coordination/idempotency/canonical-json.js';

function canonical(text: string, exclude?: readonly string[]): string | false {
  let written = '';
  const work = canonicalJson(text, (piece, start, end) => (written += piece.slice(start, end)), exclude);
  for (;;) {
    const step = work.next();
    if (step.done) return step.value && written;
  }
}

/** The same data as a text that looks different: other orders of members, spaces, escapes. */
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

/** What it should be, for data whose numbers JSON.stringify writes as they are. */
function sorted(value: unknown): string {
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map(sorted).join(',')}]`;
  const names = Object.keys(value).sort((one, other) => (one < other ? -1 : 1));
  return `{${names.map((name) => `${JSON.stringify(name)}:${sorted((value as Record<string, unknown>)[name])}`).join(',')}}`;
}

const anyData = fc.jsonValue({ maxDepth: 5, stringUnit: 'binary', noUnicodeString: false } as object).map((value) =>
  // What is no well-formed text does not come out of UTF-8, and two names may become one.
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

  it('takes for JSON what JSON.parse takes, and nothing else', () => {
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

  it('tells other data apart', () => {
    fc.assert(
      fc.property(anyData, anyData, (one, other) => {
        expect(canonical(JSON.stringify(one)) === canonical(JSON.stringify(other))).toBe(sorted(one) === sorted(other));
      }),
      { numRuns: 300 },
    );
  });

  it('keeps the digits of a number, and members of one name in their order', () => {
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

  it('is safe from depth', () => {
    const depth = 50_000;
    const text = `${'{"b":0,"a":'.repeat(depth)}[]${'}'.repeat(depth)}`;
    expect(canonical(text)).toBe(`${'{"a":'.repeat(depth)}[]${',"b":0}'.repeat(depth)}`);
    expect(canonical(`${'['.repeat(depth)}${']'.repeat(depth)}`)).toHaveLength(2 * depth);
    expect(canonical('['.repeat(depth))).toBe(false);
  });

  it('cuts long strings between characters', () => {
    const long = `${'x'.repeat(65_533)}\u{1f600}${'\\ud83d\\ude00'.repeat(20_000)}`;
    expect(canonical(` "${long}"`)).toBe(JSON.stringify(JSON.parse(`"${long}"`)));
    const quotes = `${'x'.repeat(65_535)}\\"${'\\"'.repeat(40_000)}`;
    expect(canonical(` "${quotes}"`)).toBe(`"${quotes}"`);
  });

  describe('puts its work down', () => {
    const length = 1_000_000;
    const repeated = (piece: string) =>
      Array(Math.ceil(length / (piece.length + 1)))
        .fill(piece)
        .join(',');
    const names = [...Array(60_000).keys()].map((index) => `"${(index * 7_919) % 60_013}":0`);
    const alike = [...Array(400).keys()].map((index) => `"${'a'.repeat(2_500)}${(index * 7_919) % 401}":0`);
    it.each([
      ['numbers', `[${repeated('1')}]`, 30],
      ['white space', `[${' '.repeat(length)}{"b":1,"a":2}]`, 30],
      ['objects', `[${repeated('{"b":1,"a":2}')}]`, 20],
      ['many members', `{${names.join(',')}}`, 50],
      ['a string', ` "${'x'.repeat(length)}"`, 2],
      ['a string that is canonical', `"${'x'.repeat(length)}"`, 2],
      ['a string of escapes', ` "${'\\u00e4'.repeat(length / 6)}"`, 2],
      ['white space before a colon', `{"a"${' '.repeat(length)}:1}`, 2],
      ['long names that begin alike', `{${alike.join(',')}}`, 20],
      ['a long name', `{"b":1,"${'a'.repeat(length)}":1}`, 2],
      ['strings', ` [${repeated('"abcdefghijklmnop"')}]`, 3],
    ])('after some 300 000 characters, and not after each: %s', (_, text, least) => {
      let written = 0;
      let slices = 0;
      let readingSlices = 0;
      let inSlice = 0;
      let mostInSlice = 0;
      const isCanonical = canonical(text) === text;
      const work = canonicalJson(text, (_piece, start, end) => {
        written += end - start;
        inSlice += end - start;
        mostInSlice = Math.max(mostInSlice, inSlice);
      });
      for (; !work.next().done; slices++) {
        if (written === 0) readingSlices++;
        inSlice = 0;
      }
      expect(readingSlices).toBeGreaterThanOrEqual(least);
      expect(slices).toBeLessThan(5_000);
      // What is canonical as it stands is passed on in large pieces.
      if (!isCanonical) expect(mostInSlice).toBeLessThan(400_000);
    });

    it('never within what is small', () => {
      expect(canonicalJson('{"b":[1,2],"a":{"d":"x","c":null}}', () => {}).next()).toEqual({ done: true, value: true });
    });
  });
});

describe('isPointer', () => {
  it.each(['/a', '/a/0', '/', '/a//b', '/~0', '/~1', '/a~1b~0/c', '/ä b'])('takes %s', (pointer) => {
    expect(isPointer(pointer)).toBe(true);
  });

  it.each(['', 'a', 'a/b', '/~', '/~2', '/a~', '/a/~x', undefined, 7, { toString: () => '/a' }])(
    'refuses %j',
    (value) => {
      expect(isPointer(value)).toBe(false);
    },
  );
});

describe('canonicalJson, of what is written in odd ways,', () => {
  it('refuses what is almost JSON', () => {
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
    // Within an array or an object they are none either, but that an array may have nothing in it.
    expect(wrong.filter((text) => canonical(`[${text}]`) !== false)).toEqual(['', ' ']);
    expect(wrong.filter((text) => canonical(`{"a":${text}}`) !== false)).toEqual([]);
  });

  it('takes every way to write a value, and keeps how a number is written', () => {
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

  it('orders the members of objects of any size, and keeps those of one name in their order', () => {
    // Around what is put in order at one go, and around powers of two, where a merge has a rest.
    for (const size of [1, 2, 3, 7, 64, 499, 500, 501, 502, 512, 513, 767, 1_000, 1_024, 1_025]) {
      for (const nameOf of [
        (index: number) => index,
        (index: number) => size - index,
        (index: number) => (index * 7_919) % 1_009,
        (index: number) => (index * 7_919) % 11,
        // All but the last in order.
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

  it('tells names apart that begin alike, or are written with escapes', () => {
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

  it('reads strings that are longer than what it looks at in one go, as names and as values', () => {
    for (const length of [65_533, 65_534, 65_535, 65_536, 65_537, 140_000]) {
      for (const end of ['', 'b', '\\n', '\\u00e4', '\\"', '\\\\', '\u{1f600}']) {
        const long = `"${'a'.repeat(length)}${end}"`;
        const plain = JSON.stringify(JSON.parse(long));
        expect(canonical(`{"b":1,${long} :{"d":${long},"c": [${long}]}}`)).toBe(
          `{${plain}:{"c":[${plain}],"d":${plain}},"b":1}`,
        );
      }
      for (const wrong of ['\\', '\\x', '\\u12', '\\u12x4', '\n']) {
        expect(canonical(`["${'a'.repeat(length)}${wrong}"]`)).toBe(false);
        expect(canonical(`{"${'a'.repeat(length)}${wrong}":1}`)).toBe(false);
      }
      expect(canonical(`["${'a'.repeat(length)}`)).toBe(false);
      expect(canonical(`{"${'a'.repeat(length)}" 1}`)).toBe(false);
    }
  });

  it('takes a number of more digits than it looks at in one go for no JSON, wherever they are', () => {
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
