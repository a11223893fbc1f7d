/** What the package weighs (P15): the same figures and budgets that the size gate checks. */
import { budgets, importMs, maxImportMs, sizeOf } from '../tools/gates/size.ts';
import { figure, type Section } from './report.ts';

export async function weightSection(): Promise<Section> {
  const rows: string[][] = [];
  for (const { title, names, maxBytes } of budgets) {
    const { bytes } = await sizeOf(names);
    rows.push([title, `${figure(bytes / 1024)} KB`, `${maxBytes / 1024} KB`, bytes <= maxBytes ? 'met' : 'missed']);
  }
  const tookMs = importMs();
  rows.push(['import', `${figure(tookMs)} ms`, `${maxImportMs} ms`, tookMs <= maxImportMs ? 'met' : 'missed']);
  return {
    title: 'Weight',
    note: 'Tree-shaken, minified and compressed with gzip; the import is processor time of the thread.',
    tables: [[['what', 'measured', 'target', 'verdict'], ...rows]],
  };
}
