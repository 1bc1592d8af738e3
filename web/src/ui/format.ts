// Numbers, sizes and times as a person reads them, in the reader's own language and zone.

const whole = new Intl.NumberFormat();
const compact = new Intl.NumberFormat(undefined, { notation: "compact", maximumFractionDigits: 1 });
const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const today = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const thisYear = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
const older = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", year: "numeric" });

export const NOTHING = "–";

/** Return a time in full, with its zone. */
export function fullTime(text: string): string {
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  return `${moment.format(new Date(text))} (${zone})`;
}

/** Return a time as short as it is clear. */
export function shortTime(text: string, now = new Date()): string {
  const date = new Date(text);
  if (date.toDateString() === now.toDateString()) return today.format(date);
  return date.getFullYear() === now.getFullYear() ? thisYear.format(date) : older.format(date);
}

/** Return seconds as `1 h 02 min`, `3 min 20 s` or `4.2 s`. */
export function duration(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return NOTHING;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const total = Math.round(seconds);
  if (total < 60) return `${total} s`;
  const minutes = Math.floor(total / 60);
  const two = (value: number) => String(value).padStart(2, "0");
  if (minutes < 60) return `${minutes} min ${two(total % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${two(minutes % 60)} min`;
}

/** Return the seconds between two times, the second of which may be now. */
export function between(start: string | null, end: string | null): number | null {
  if (start === null) return null;
  return (new Date(end ?? Date.now()).getTime() - new Date(start).getTime()) / 1000;
}

/** Return bytes as `1.3 MB`. */
export function bytes(size: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let value = size;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 ? value : value.toFixed(value < 10 ? 2 : 1)} ${units[unit]}`;
}

export function count(value: number | null | undefined): string {
  return value === null || value === undefined ? NOTHING : whole.format(value);
}

export function short(value: number | null | undefined): string {
  return value === null || value === undefined ? NOTHING : compact.format(value);
}

/** Return a share 0..1 in percent. */
export function percent(value: number | null | undefined, digits = 1): string {
  if (value === null || value === undefined) return NOTHING;
  return `${(100 * value).toFixed(digits)} %`;
}

/** Return a difference of shares in points, with its sign. */
export function points(value: number | null | undefined, digits = 1): string {
  if (value === null || value === undefined) return NOTHING;
  const text = (100 * value).toFixed(digits);
  return `${value > 0 ? "+" : ""}${text.replace("-", "−")}`;
}

/** Return a number with four significant digits, or what the server sent for one that is none. */
export function number(value: unknown): string {
  if (typeof value !== "number") return value === null || value === undefined ? NOTHING : String(value);
  const size = Math.abs(value);
  if (size >= 1e15) return value.toExponential(2);
  if (Number.isInteger(value)) return size < 1e7 ? whole.format(value) : compact.format(value);
  return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(2) : value.toPrecision(4);
}

/** Return the names of metrics that are shares 0..1. */
export function isShare(name: string): boolean {
  return /(^|\/)(accuracy|miou|ap|ap50|ap75|knn|linear_probe|shared_neighbours|agreement|ece|floor_share)(_|$)/.test(name);
}

export function metric(name: string, value: unknown): string {
  return typeof value === "number" && isShare(name) ? percent(value) : number(value);
}

const SPOKEN: Record<string, string> = { knn: "nearest neighbours", ece: "calibration error", miou: "mean IoU", ap: "average precision" };

/** Return the name of a score as it is spoken. */
export function spoken(name: string): string {
  return SPOKEN[name] ?? name.replaceAll("_", " ");
}
