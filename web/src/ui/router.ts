// Addresses behind the `#`: the server needs to know none of them, whatever it is served under.
import { useEffect, useState } from "preact/hooks";

export interface Place {
  parts: string[];
  query: URLSearchParams;
}

/** Return the place that the address names. */
export function current(): Place {
  const [path = "", query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  return {
    parts: path.split("/").filter(Boolean).map(decodeURIComponent),
    query: new URLSearchParams(query),
  };
}

/** Return the address of a place. */
export function to(...parts: (string | number)[]): string {
  return `#/${parts.map((part) => encodeURIComponent(part)).join("/")}`;
}

/** Return the address of a model version or data set version by its reference `name@version`. */
export function toReference(kind: "models" | "datasets", reference: string): string {
  const [name = reference, version] = reference.split("@");
  return version !== undefined && /^\d+$/.test(version) ? to(kind, name, version) : to(kind, name);
}

/** Return the same place with other filters; empty ones are left out. */
export function filtered(place: Place, changes: Record<string, string | null>): string {
  const query = new URLSearchParams(place.query);
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === "") query.delete(name);
    else query.set(name, value);
  }
  const text = query.toString();
  return `${to(...place.parts)}${text === "" ? "" : `?${text}`}`;
}

export function usePlace(): Place {
  const [place, set] = useState(current);
  useEffect(() => {
    const moved = () => set(current());
    window.addEventListener("hashchange", moved);
    return () => window.removeEventListener("hashchange", moved);
  }, []);
  return place;
}

export function go(address: string): void {
  location.hash = address;
}

/** Change the address without a new entry in the history, as filters do. */
export function replace(address: string): void {
  history.replaceState(null, "", address);
  window.dispatchEvent(new HashChangeEvent("hashchange"));
}
