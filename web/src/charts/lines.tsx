// Curves over steps, by uPlot: thin lines, few grid lines, and the values under the pointer.
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { metric, number, short } from "../ui/format";
import { colour, onColours } from "../ui/theme";
import { COLOURS } from "./palette";
import { aligned, type Series } from "./series";

export interface LineLook {
  label: string;
  colour: number;
  isDashed?: boolean;
}

/** What stands on the horizontal axis, and how its values are written. */
export interface Axis {
  name: string;
  text: (value: number) => string;
}

interface LinesProps {
  title: string;
  series: Series[];
  look: (key: string, index: number) => LineLook;
  isShare?: boolean;
  isLogarithmic?: boolean;
  /** Of what the series are functions; of steps if none is given. */
  over?: Axis;
}

const STEPS: Axis = { name: "step", text: axisText };

const HEIGHT = 220;

/** Draw series over steps, or `over` something else. Below stand names and newest or pointed values. */
export function Lines({ title, series, look, isShare = false, isLogarithmic = false, over = STEPS }: LinesProps) {
  const holder = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const [pointed, setPointed] = useState<number | null>(null);
  const [colours, setColours] = useState(0);
  const columns = useMemo(() => aligned(series), [series]);
  const keys = series.map((one) => one.key).join("|");
  useEffect(() => onColours(() => setColours((last) => last + 1)), []);
  useEffect(() => {
    const element = holder.current;
    if (element === null) return;
    const began = performance.now();
    let isDrawn = false;
    const grid = colour("line");
    const text = colour("muted");
    const axis = { stroke: text, grid: { stroke: grid, width: 1 }, ticks: { show: false }, font: "12px 'Inter Variable', system-ui", gap: 6 };
    const made = new uPlot(
      {
        width: Math.max(element.clientWidth, 200),
        height: HEIGHT,
        legend: { show: false },
        cursor: { y: false, drag: { x: true, y: false } },
        padding: [8, 18, 0, 0],
        scales: { x: { time: false }, y: isLogarithmic ? { distr: 3 } : {} },
        axes: [
          { ...axis, grid: { show: false }, size: 28, values: (_, ticks) => ticks.map((tick) => over.text(tick)) },
          { ...axis, size: 56, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : isShare ? `${+(100 * tick).toFixed(1)} %` : axisText(tick))) },
        ],
        series: [
          {},
          ...series.map((one, index) => {
            const { colour: which, isDashed, label } = look(one.key, index);
            return {
              label,
              stroke: colour(COLOURS[which % COLOURS.length] ?? "c1"),
              width: 1.75,
              spanGaps: false,
              ...(isDashed ? { dash: [4, 4] } : {}),
              // A line needs two points; they are counted as they come.
              points: { show: (it: uPlot, at: number) => values(it.data[at] ?? []) < 3, size: 5, fill: colour(COLOURS[which % COLOURS.length] ?? "c1") },
            };
          }),
        ],
        hooks: {
          setCursor: [(it) => setPointed(it.cursor.idx ?? null)],
          draw: [
            () => {
              // Seen in the browser's profiler, and held by a test.
              if (!isDrawn) performance.measure("curves drawn", { start: began });
              isDrawn = true;
            },
          ],
        },
      },
      columns as uPlot.AlignedData,
      element,
    );
    plot.current = made;
    const sized = new ResizeObserver(() => made.setSize({ width: Math.max(element.clientWidth, 200), height: HEIGHT }));
    sized.observe(element);
    return () => {
      sized.disconnect();
      made.destroy();
      plot.current = null;
    };
    // A curve more or less makes the plot anew; newer points only its data.
  }, [keys, colours, isLogarithmic]);
  useEffect(() => {
    plot.current?.setData(columns as uPlot.AlignedData);
  }, [columns]);
  const step = pointed === null ? null : columns[0]?.[pointed];
  return (
    <figure class="chart">
      <figcaption>
        {title}
        <span class="faint">{step === null || step === undefined ? "" : ` · ${over.name} ${over === STEPS ? number(step) : over.text(step)}`}</span>
      </figcaption>
      <div ref={holder} class="plot" role="img" aria-label={`${title} over ${over.name}s; the newest values stand below`} />
      <ul class="legend">
        {series.map((one, index) => {
          const { label, colour: which, isDashed } = look(one.key, index);
          const value = valueAt(one, step ?? null);
          return (
            <li key={one.key}>
              <i class={`key ${COLOURS[which % COLOURS.length]}${isDashed ? " dashed" : ""}`} />
              <span>{label}</span>
              <b>{isShare ? metric("accuracy", value) : number(value)}</b>
            </li>
          );
        })}
      </ul>
    </figure>
  );
}

function values(column: ArrayLike<number | null | undefined>): number {
  return Array.from(column).filter((value) => typeof value === "number").length;
}

/** Return the value at a step or the last one before it; without a step, the newest. */
function valueAt(series: Series, step: number | null): number | null | undefined {
  if (step === null) return series.points[series.points.length - 1]?.value;
  let low = 0;
  let high = series.points.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((series.points[middle]?.step ?? 0) <= step) low = middle + 1;
    else high = middle;
  }
  return series.points[low - 1]?.value;
}

/** Return a number of an axis without zeros that say nothing. */
function axisText(tick: number): string {
  const size = Math.abs(tick);
  if (size >= 1e15) return tick.toExponential(0);
  if (size >= 1e4) return short(tick);
  return size !== 0 && size < 1e-3 ? tick.toExponential(0) : String(Number(tick.toPrecision(4)));
}
