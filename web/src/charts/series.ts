// Series of points over steps, as curves are drawn from them.
import { get, ProblemError, type Schemas } from "../api/client";

export interface Point {
  step: number;
  value: number | null;
}

export interface Series {
  key: string;
  points: Point[];
}

/** Return what the API sends as text, such as "NaN", as a gap in the curve. */
export function seriesOf(metrics: Schemas["MetricsRead"]): Series[] {
  return metrics.data.map((one) => ({
    key: one.key,
    points: one.points.map((point) => ({
      step: point.step,
      value: typeof point.value === "number" ? point.value : null,
    })),
  }));
}

/** Return the series of one job of several; where they are gone, none, and why. */
export async function seriesOfJob(id: string, query: { keys?: string; max_points: number }, signal: AbortSignal): Promise<{ series: Series[]; gone: string | null }> {
  try {
    return { series: seriesOf(await get("/v1/jobs/{job_id}/metrics", { path: { job_id: id }, query, signal })), gone: null };
  } catch (error) {
    if (error instanceof ProblemError && [404, 410].includes(error.problem.status)) return { series: [], gone: error.message };
    throw error;
  }
}

/** Return known series with newer points added; a step that is known already is replaced. */
export function extended(known: Series[], newer: Series[]): Series[] {
  const byKey = new Map(known.map((one) => [one.key, one]));
  for (const one of newer) {
    const last = byKey.get(one.key);
    const first = one.points[0]?.step ?? Infinity;
    const kept = last?.points.filter((point) => point.step < first) ?? [];
    byKey.set(one.key, { key: one.key, points: [...kept, ...one.points] });
  }
  return [...byKey.values()].sort((a, b) => a.key.localeCompare(b.key));
}

/** Return columns over the union of all steps: steps, then the values of each series. */
export function aligned(series: Series[]): (number | null | undefined)[][] {
  const steps = [...new Set(series.flatMap((one) => one.points.map((point) => point.step)))].sort((a, b) => a - b);
  const places = new Map(steps.map((step, index) => [step, index]));
  const columns = series.map((one) => {
    // undefined: this series has no point here, and its line goes on; null: a gap.
    const column = new Array<number | null | undefined>(steps.length).fill(undefined);
    for (const point of one.points) column[places.get(point.step) ?? 0] = point.value;
    return column;
  });
  return [steps, ...columns];
}
