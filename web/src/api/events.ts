// Server-sent events over fetch: EventSource cannot send the key. They resume where they broke off.

import { ProblemError, send } from "./client";

export interface ServerEvent {
  event: string;
  data: string;
  id: string | null;
}

export type Connection = "connecting" | "live" | "lost" | "ended";

export interface Following {
  path: string;
  /** Where to begin: the `Last-Event-ID` of what is known already. */
  lastId?: string;
  onEvent: (event: ServerEvent) => void;
  onConnection: (state: Connection) => void;
  /** Return whether an event is the last one; then no more is asked for. */
  isLast: (event: ServerEvent) => boolean;
  onProblem: (error: ProblemError) => void;
  signal: AbortSignal;
}

// The server sends a comment every 15 s.
const SILENCE_MS = 40_000;
const LONGEST_WAIT_MS = 15_000;

/**
 * Follow a stream until its last event or until `signal`, however often the connection is lost. A tab
 * that is not seen gives its connection back, of which a browser has six for a host.
 */
export async function follow(following: Following): Promise<void> {
  const { signal, onConnection } = following;
  let lastId = following.lastId ?? null;
  let failures = 0;
  while (!signal.aborted) {
    await seen(signal);
    if (signal.aborted) return;
    onConnection(failures === 0 ? "connecting" : "lost");
    const inner = new AbortController();
    const stop = () => inner.abort();
    let wasHidden = false;
    const hide = () => {
      if (document.visibilityState === "visible") return;
      wasHidden = true;
      stop();
    };
    document.addEventListener("visibilitychange", hide);
    signal.addEventListener("abort", stop);
    let silence = window.setTimeout(stop, SILENCE_MS);
    try {
      const headers: Record<string, string> = { Accept: "text/event-stream" };
      if (lastId !== null) headers["Last-Event-ID"] = lastId;
      const response = await send(following.path, { headers, signal: inner.signal });
      onConnection("live");
      failures = 0;
      for await (const event of parsed(response.body, () => {
        clearTimeout(silence);
        silence = window.setTimeout(stop, SILENCE_MS);
      })) {
        if (event.id !== null) lastId = event.id;
        following.onEvent(event);
        if (following.isLast(event)) {
          onConnection("ended");
          return;
        }
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof ProblemError && !error.problem.retryable) {
        onConnection("ended");
        following.onProblem(error);
        return;
      }
    } finally {
      clearTimeout(silence);
      signal.removeEventListener("abort", stop);
      document.removeEventListener("visibilitychange", hide);
      inner.abort();
    }
    if (signal.aborted) return;
    if (wasHidden) continue;
    failures += 1;
    if (failures > 1) onConnection("lost");
    await pause(Math.min(500 * 2 ** failures, LONGEST_WAIT_MS), signal);
  }
}

/** Wait until the tab is seen. */
function seen(signal: AbortSignal): Promise<void> {
  if (document.visibilityState === "visible") return Promise.resolve();
  return new Promise((resolve) => {
    const look = () => {
      if (document.visibilityState !== "visible" && !signal.aborted) return;
      document.removeEventListener("visibilitychange", look);
      signal.removeEventListener("abort", look);
      resolve();
    };
    document.addEventListener("visibilitychange", look);
    signal.addEventListener("abort", look);
  });
}

/** Wait, but no longer than until the browser says that it is online again. */
function pause(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      window.removeEventListener("online", done);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, milliseconds);
    window.addEventListener("online", done);
    signal.addEventListener("abort", done);
  });
}

/** Yield the events of a stream, as the HTML standard defines them. */
export async function* parsed(
  body: ReadableStream<Uint8Array> | null,
  onBytes: () => void,
): AsyncGenerator<ServerEvent> {
  if (body === null) return;
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let event = { event: "message", data: [] as string[], id: null as string | null };
  while (true) {
    const { done, value } = await reader.read();
    if (done) return;
    onBytes();
    rest += decoder.decode(value, { stream: true });
    // A CR at the end may be half of a CRLF.
    const held = rest.endsWith("\r") ? 1 : 0;
    const lines = rest.slice(0, rest.length - held).split(/\r\n|\n|\r/);
    rest = (lines.pop() ?? "") + rest.slice(rest.length - held);
    for (const line of lines) {
      if (line === "") {
        if (event.data.length > 0) {
          yield { event: event.event, data: event.data.join("\n"), id: event.id };
        }
        event = { event: "message", data: [], id: null };
        continue;
      }
      const colon = line.indexOf(":");
      const field = colon < 0 ? line : line.slice(0, colon);
      const text = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
      if (field === "event") event.event = text;
      else if (field === "data") event.data.push(text);
      else if (field === "id" && !text.includes("\0")) event.id = text;
    }
  }
}
