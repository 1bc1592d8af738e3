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
  /** Why the next page could not be had; it is asked for again by `more` alone. */
  moreFailed: Error | undefined;
  /** Whether so many pages are shown that they are not asked for again. */
  isStill: boolean;
  more: () => void;
  reload: () => void;
}

interface Page<T> {
  data: T[];
  next_cursor?: string | null;
  has_more?: boolean;
}

interface Shown<T> {
  rows: T[];
  cursor: string | null;
  pages: number;
}

// More pages would be a burden for the server at each round.
const MOST_WALKED = 4;

/**
 * Return the pages of a list that have been asked for. Every `everySeconds` all that are shown are
 * asked for again, as long as they are few.
 */
export function usePages<T>(
  ask: (cursor: string | undefined, signal: AbortSignal) => Promise<Page<T>>,
  idOf: (row: T) => string,
  about: unknown[],
  everySeconds: number | null = null,
): Pages<T> {
  const subject = JSON.stringify(about);
  const depth = useRef(1);
  // What was asked for since the last round.
  const [later, setLater] = useState<(Shown<T> & { for: string }) | null>(null);
  const [isLoadingMore, setLoading] = useState(false);
  const [moreFailed, setMoreFailed] = useState<Error | undefined>(undefined);
  const loading = useRef<AbortController | null>(null);
  // Before the list is asked for: of another subject its first page.
  useEffect(() => {
    depth.current = 1;
    setLater(null);
    setMoreFailed(undefined);
    return () => loading.current?.abort();
  }, [subject]);
  const walk = async (signal: AbortSignal): Promise<Shown<T>> => {
    const rows: T[] = [];
    let cursor: string | undefined;
    let pages = 0;
    do {
      const page = await ask(cursor, signal);
      rows.push(...page.data);
      cursor = page.next_cursor ?? undefined;
      pages += 1;
    } while (cursor !== undefined && pages < depth.current);
    return { rows, cursor: cursor ?? null, pages };
  };
  const isStill = everySeconds !== null && later?.for === subject && later.pages > MOST_WALKED;
  const walked = useLoaded(walk, about, isStill ? null : everySeconds);
  const newest = walked.data;
  const isCovered = newest === undefined || newest.cursor === null || later === null || newest.pages >= later.pages;
  const own = later?.for === subject && !isCovered ? later : null;
  const cursor = (own ?? newest)?.cursor ?? null;
  const more = () => {
    if (isLoadingMore || cursor === null || newest === undefined) return;
    const stop = new AbortController();
    loading.current = stop;
    setLoading(true);
    setMoreFailed(undefined);
    ask(cursor, stop.signal)
      .then((page) => {
        if (stop.signal.aborted) return;
        const pages = (own ?? newest).pages + 1;
        depth.current = pages;
        setLater({ for: subject, rows: [...(own?.rows ?? newest.rows), ...page.data], cursor: page.next_cursor ?? null, pages });
      })
      .catch((error: Error) => {
        if (!stop.signal.aborted) setMoreFailed(error);
      })
      .finally(() => setLoading(false));
  };
  const reload = () => {
    if (depth.current > MOST_WALKED) {
      depth.current = 1;
      setLater(null);
      window.scrollTo(0, 0);
    }
    setMoreFailed(undefined);
    walked.reload();
  };
  return {
    rows: newest && merged(newest.rows, own?.rows ?? [], idOf),
    error: walked.error,
    hasMore: cursor !== null,
    isLoadingMore,
    moreFailed,
    isStill,
    more,
    reload,
  };
}

/** Return the newest rows, then the others that were there when further pages were asked for. */
function merged<T>(newest: T[], later: T[], idOf: (row: T) => string): T[] {
  const seen = new Set<string>();
  return [...newest, ...later].filter((row) => !seen.has(idOf(row)) && seen.add(idOf(row)));
}
