// What a screen has asked the server for: the answer, the error, and asking again.
import { useCallback, useEffect, useRef, useState } from "preact/hooks";

export interface Loaded<T> {
  data: T | undefined;
  error: Error | undefined;
  /** Whether the first answer is still awaited. */
  isLoading: boolean;
  reload: () => void;
}

/**
 * Return the answer of `ask`, which is asked again when `about` changes, and every `everySeconds`
 * while the tab is seen. An error leaves the last answer in place.
 */
export function useLoaded<T>(
  ask: (signal: AbortSignal) => Promise<T>,
  about: unknown[],
  everySeconds: number | null = null,
): Loaded<T> {
  const [state, set] = useState<{ data: T | undefined; error: Error | undefined; for: string }>({
    data: undefined,
    error: undefined,
    for: "",
  });
  const [round, again] = useState(0);
  const asking = useRef(ask);
  asking.current = ask;
  const subject = JSON.stringify(about);
  const isAsking = useRef(false);
  useEffect(() => {
    const stop = new AbortController();
    isAsking.current = true;
    asking.current(stop.signal).then(
      (data) => {
        if (stop.signal.aborted) return;
        isAsking.current = false;
        set({ data, error: undefined, for: subject });
      },
      (error: Error) => {
        if (stop.signal.aborted) return;
        isAsking.current = false;
        set((last) => ({ data: last.for === subject ? last.data : undefined, error, for: subject }));
      },
    );
    return () => stop.abort();
  }, [subject, round]);
  const reload = useCallback(() => again((last) => last + 1), []);
  useEffect(() => {
    if (everySeconds === null) return;
    const timer = setInterval(() => {
      // A slow answer is awaited: to ask again would end the question that is under way.
      if (document.visibilityState === "visible" && !isAsking.current) again((last) => last + 1);
    }, everySeconds * 1000);
    return () => clearInterval(timer);
  }, [everySeconds]);
  const isCurrent = state.for === subject;
  return {
    data: isCurrent ? state.data : undefined,
    error: isCurrent ? state.error : undefined,
    isLoading: !isCurrent,
    reload,
  };
}

export interface Pages<T> {
  rows: T[] | undefined;
  error: Error | undefined;
  hasMore: boolean;
  isLoadingMore: boolean;
  more: () => void;
  reload: () => void;
}

interface Page<T> {
  data: T[];
  next_cursor?: string | null;
  has_more?: boolean;
}

/**
 * Return the pages of a list that have been asked for. Every `everySeconds` the first page is asked
 * for again: its rows replace the same rows here, and new ones come first.
 */
export function usePages<T>(
  ask: (cursor: string | undefined, signal: AbortSignal) => Promise<Page<T>>,
  idOf: (row: T) => string,
  about: unknown[],
  everySeconds: number | null = null,
): Pages<T> {
  const first = useLoaded((signal) => ask(undefined, signal), about, everySeconds);
  const subject = JSON.stringify(about);
  const [rest, setRest] = useState<{ for: string; head: T[]; rows: T[]; cursor: string | null } | null>(null);
  const [isLoadingMore, setLoading] = useState(false);
  const [moreError, setMoreError] = useState<Error | undefined>(undefined);
  const loading = useRef<AbortController | null>(null);
  useEffect(() => {
    setRest(null);
    setMoreError(undefined);
    return () => loading.current?.abort();
  }, [subject]);
  const own = rest?.for === subject ? rest : null;
  const cursor = own === null ? (first.data?.next_cursor ?? null) : own.cursor;
  const more = () => {
    if (isLoadingMore || cursor === null) return;
    const stop = new AbortController();
    loading.current = stop;
    setLoading(true);
    setMoreError(undefined);
    ask(cursor, stop.signal)
      .then((page) => {
        if (stop.signal.aborted) return;
        setRest((last) => {
          const known = last?.for === subject ? last : null;
          return {
            for: subject,
            head: known?.head ?? first.data?.data ?? [],
            rows: [...(known?.rows ?? []), ...page.data],
            cursor: page.next_cursor ?? null,
          };
        });
      })
      .catch((error: Error) => {
        if (!stop.signal.aborted) setMoreError(error);
      })
      .finally(() => setLoading(false));
  };
  const rows = first.data === undefined ? undefined : merged(first.data.data, own, idOf);
  return {
    rows,
    error: first.error ?? moreError,
    hasMore: cursor !== null,
    isLoadingMore,
    more,
    reload: first.reload,
  };
}

/** Return the newest page, then the rows that were there when further pages were asked for. */
function merged<T>(newest: T[], rest: { head: T[]; rows: T[] } | null, idOf: (row: T) => string): T[] {
  if (rest === null) return newest;
  const seen = new Set(newest.map(idOf));
  return [...newest, ...[...rest.head, ...rest.rows].filter((row) => !seen.has(idOf(row)))];
}
