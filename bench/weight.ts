/** What the package weighs (P15): the same figures that the size gate checks, compared with the targets. */
import { budgets, importMs, sizeOf, targetImportMs } from '../tools/gates/size.ts';
import { figure, type Section } from './report.ts';

export async function weightSection(): Promise<Section> {
  const rows: string[][] = [];
  for (const { title, names, targetBytes } of budgets) {
    const { bytes } = await sizeOf(names);
    rows.push([
      title,
      `${figure(bytes / 1024)} KB`,
      `${targetBytes / 1024} KB`,
      bytes <= targetBytes ? 'met' : 'missed',
    ]);
  }
  const tookMs = importMs();
  rows.push(['import', `${figure(tookMs)} ms`, `${targetImportMs} ms`, tookMs <= targetImportMs ? 'met' : 'missed']);
  return {
    title: 'Size and import time',
    note: 'Tree-shaken, minified and compressed with gzip. `import`: processor time of the thread that imports the package.',
    tables: [[['what', 'measured', 'target', 'verdict'], ...rows]],
  };
}
