/**
 * Renders one scenario as one SVG file: users and calls per second at the top, the share of good answers below.
 *
 * Promise: it needs no other file, script or font, and is readable on light and dark backgrounds.
 */
import { type NamedScenario, type PlayedScenario, type Settings, scenarios } from './scenarios.js';

const width = 760;
const height = 440;
const left = 64;
const right = 24;
const panels = { load: { top: 76, bottom: 236 }, success: { top: 292, bottom: 392 } } as const;
type Panel = (typeof panels)[keyof typeof panels];

const style = [
  'text{font:12px system-ui,sans-serif;fill:#333}.title{font-size:16px;font-weight:600}',
  'line,path{fill:none}.grid{stroke:#8884}.fault{fill:#d9822b;opacity:.14}.capacity{stroke:#888;stroke-dasharray:5 4}',
  '.users{stroke:#888;stroke-width:1.5}.calls{stroke:#c23030;stroke-width:2}.good{stroke:#0f8f5b;stroke-width:2}',
  'text.users{fill:#777}text.calls{fill:#c23030}text.good{fill:#0f8f5b}text.users,text.calls,text.good{stroke:none}',
  '.back{stroke:#0f8f5b;stroke-dasharray:2 3}.ground{fill:#fff}',
  '@media(prefers-color-scheme:dark){.ground{fill:#161a1d}text{fill:#ddd}text.users{fill:#aaa}}',
].join('');

/** The chart of a scenario. */
export function svgOf(played: PlayedScenario, { capacity }: Settings): string {
  const { name, seconds, report } = played;
  const scenario = scenarios.find((one) => one.name === name)!;
  const first = seconds[0]!.second;
  const last = seconds.at(-1)!.second + 1;
  const x = (second: number) => left + ((second - first) / (last - first)) * (width - left - right);
  const most = Math.max(capacity, ...seconds.map(({ calls, requests }) => Math.max(calls, requests))) * 1.05;
  const { load, success } = panels;
  const line = (className: string, panel: Panel, scale: number, of: (second: (typeof seconds)[number]) => number) => {
    const points = seconds.map((second) => `${number(x(second.second + 0.5))} ${number(y(panel, of(second) / scale))}`);
    return `<path class="${className}" d="M${points.join('L')}"/>`;
  };
  const summary = summaryOf(scenario, played);
  const recovered = Number.isFinite(report.recoverySeconds)
    ? scenario.disturbanceSeconds + report.recoverySeconds
    : undefined;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" role="img" aria-labelledby="title summary">`,
    `<title id="title">${name}</title><desc id="summary">${summary}</desc><style>${style}</style>`,
    `<rect class="ground" width="${width}" height="${height}"/>`,
    `<text class="title" x="${left}" y="26">${name}</text><text x="${left}" y="46">${summary}</text>`,
    ...Object.values(panels).map(
      (panel) =>
        `<rect class="fault" x="${number(x(0))}" y="${panel.top}" width="${number(x(scenario.disturbanceSeconds) - x(0))}" height="${panel.bottom - panel.top}"/>`,
    ),
    ...gridOf(load, loadMarks(capacity, most / 1.05), most, (value) => String(Math.round(value))),
    ...gridOf(success, [0, 50, 100], 100, (value) => `${value} %`),
    `<text x="${left}" y="${load.top - 8}">per second:</text>`,
    `<text class="users" x="${left + 76}" y="${load.top - 8}">users</text>`,
    `<text class="calls" x="${left + 130}" y="${load.top - 8}">calls of the dependency</text>`,
    `<text x="${left + 290}" y="${load.top - 8}">- - what it can do</text>`,
    `<text class="good" x="${left}" y="${success.top - 8}">users with a good answer in time</text>`,
    `<path class="capacity" d="M${left} ${number(y(load, capacity / most))}H${width - right}"/>`,
    line('users', load, most, ({ requests }) => requests),
    line('calls', load, most, ({ calls }) => calls),
    line('good', success, 1, ({ good, requests }) => (requests === 0 ? 0 : good / requests)),
    recovered === undefined ? '' : `<path class="back" d="M${number(x(recovered))} ${success.top}V${success.bottom}"/>`,
    ...ticks(first, last).map(
      (second) => `<text x="${number(x(second))}" y="${success.bottom + 18}" text-anchor="middle">${second} s</text>`,
    ),
    '</svg>',
    '',
  ].join('\n');
}

function summaryOf({ fault, disturbanceSeconds }: NamedScenario, { report }: PlayedScenario): string {
  const { recoverySeconds, callsPerRequest } = report;
  const back = Number.isFinite(recoverySeconds) ? `back ${recoverySeconds.toFixed(1)} s later` : 'no recovery seen';
  return `${fault} for ${disturbanceSeconds} s: ${callsPerRequest.toFixed(2)} calls per user, ${back}`;
}

function gridOf(panel: Panel, values: readonly number[], scale: number, label: (value: number) => string): string[] {
  return [...new Set(values)].map((value) => {
    const at = number(y(panel, value / scale));
    return `<path class="grid" d="M${left} ${at}H${width - right}"/><text x="${left - 8}" y="${at}" text-anchor="end" dominant-baseline="middle">${label(value)}</text>`;
  });
}

/** The capacity is not labelled where its number would touch another one. */
function loadMarks(capacity: number, most: number): number[] {
  return [0, ...(capacity > 0.1 * most && capacity < 0.9 * most ? [capacity] : []), most];
}

function ticks(first: number, last: number): number[] {
  const step = 10;
  const found: number[] = [];
  for (let second = Math.ceil(first / step) * step; second <= last; second += step) found.push(second);
  return found;
}

function y({ top, bottom }: Panel, share: number): number {
  return bottom - share * (bottom - top);
}

function number(value: number): string {
  return String(Math.round(value * 10) / 10);
}
