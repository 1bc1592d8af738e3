// Calls of /v1, typed by the OpenAPI document, with problems (RFC 9457) as errors.

import type { components, paths } from "./schema";
import { forget, key } from "./session";

export type Schemas = components["schemas"];
export type Problem = Schemas["Problem"];
export type Fault = Schemas["ProblemFault"];
// Free-form JSON: specs as stored, schemas of methods, scores.
export type Json = Record<string, unknown>;

type Verb = "get" | "post" | "put" | "patch" | "delete";
type PathsWith<V extends Verb> = {
  [P in keyof paths]: paths[P][V] extends undefined | never ? never : P;
}[keyof paths];
type JsonOf<R> = R extends { content: { "application/json": infer T } } ? T : never;
type Answers<O> = O extends { responses: infer R }
  ? { [S in keyof R]: S extends 200 | 201 | 202 ? JsonOf<R[S]> : never }[keyof R]
  : never;
type BodyOf<O> = O extends { requestBody: { content: { "application/json": infer T } } } ? T : never;
type QueryOf<O> = O extends { parameters: { query?: infer Q } } ? Q : never;

export interface Options<Query, Body> {
  path?: Record<string, string | number>;
  query?: Query;
  /** Parameters that OpenAPI cannot name, such as `label.team`. */
  more?: Record<string, string>;
  body?: Body;
  headers?: Record<string, string>;
  signal?: AbortSignal | undefined;
}

/** An answer that is a problem: what went wrong, in which field, and what to do. */
export class ProblemError extends Error {
  constructor(readonly problem: Problem) {
    super(problem.detail);
    this.name = "ProblemError";
  }
}

/** No answer: the server could not be reached. */
export class Unreachable extends Error {
  constructor() {
    super("The server does not answer. Is it running, and are you connected?");
    this.name = "Unreachable";
  }
}

/** Return the address of a path of the API, below wherever the page is served. */
export function address(path: string): string {
  return new URL(path.replace(/^\//, ""), document.baseURI).href;
}

let onSignedOut: () => void = () => undefined;

/** Say what happens when the key has ended. */
export function whenSignedOut(react: () => void): void {
  onSignedOut = react;
}

/** Send a request with this tab's key. Raises ProblemError, Unreachable, or AbortError. */
export async function send(path: string, init: RequestInit = {}, as?: string): Promise<Response> {
  const headers = new Headers(init.headers);
  const credential = as ?? key();
  if (credential !== null) headers.set("Authorization", `Bearer ${credential}`);
  let response: Response;
  try {
    response = await fetch(address(path), { ...init, headers, credentials: "omit" });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new Unreachable();
  }
  if (response.ok || response.status === 304) return response;
  const problem = await problemOf(response);
  // The answer to a key of before says nothing of the one that this tab has now.
  if (response.status === 401 && as === undefined && credential === key()) {
    forget();
    onSignedOut();
  }
  throw new ProblemError(problem);
}

async function problemOf(response: Response): Promise<Problem> {
  const kind = response.headers.get("content-type") ?? "";
  if (kind.startsWith("application/problem+json")) return (await response.json()) as Problem;
  // Of a proxy between: the API itself answers with problems alone.
  return {
    type: "about:blank",
    title: response.statusText || "Error",
    status: response.status,
    detail: `The answer is ${response.status} without a reason, so it comes from a proxy.`,
    instance: response.headers.get("x-request-id") ?? "",
    code: "unknown",
    errors: [],
    retryable: response.status >= 500,
    allowed: null,
    uses: null,
    quota: null,
  };
}

function filled(template: string, values: Record<string, string | number> = {}): string {
  return template.replace(/\{(\w+)\}/g, (_, name: string) => {
    const value = String(values[name]);
    // Paths of files keep their slashes.
    return name === "path" ? value.split("/").map(encodeURIComponent).join("/") : encodeURIComponent(value);
  });
}

function queried(path: string, query: unknown, more: Record<string, string> = {}): string {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries({ ...(query as Json | undefined), ...more })) {
    if (value === undefined || value === null || value === "") continue;
    for (const one of Array.isArray(value) ? value : [value]) parameters.append(name, String(one));
  }
  const text = parameters.toString();
  return text === "" ? path : `${path}?${text}`;
}

async function json(
  verb: Verb,
  template: string,
  options: Options<unknown, unknown>,
): Promise<unknown> {
  const path = queried(filled(template, options.path), options.query, options.more);
  const headers: Record<string, string> = { Accept: "application/json", ...options.headers };
  const init: RequestInit = { method: verb.toUpperCase(), headers };
  if (options.signal !== undefined) init.signal = options.signal;
  if (options.body !== undefined) {
    headers["Content-Type"] = "application/json";
    init.body = JSON.stringify(options.body);
  }
  const response = await send(path, init);
  return response.status === 204 ? undefined : response.json();
}

export function get<P extends PathsWith<"get">>(
  path: P,
  options: Options<QueryOf<paths[P]["get"]>, never> = {},
): Promise<Answers<paths[P]["get"]>> {
  return json("get", path as string, options) as Promise<Answers<paths[P]["get"]>>;
}

/** POST what may be sent again without harm: the server knows it by the key. */
export function post<P extends PathsWith<"post">>(
  path: P,
  options: Options<never, BodyOf<paths[P]["post"]>> & { once?: boolean } = {},
): Promise<Answers<paths[P]["post"]>> {
  const { once, ...rest } = options;
  const headers = { ...rest.headers, ...(once ? { "Idempotency-Key": randomKey() } : {}) };
  return json("post", path as string, { ...rest, headers }) as Promise<Answers<paths[P]["post"]>>;
}

export function put<P extends PathsWith<"put">>(
  path: P,
  options: Options<never, BodyOf<paths[P]["put"]>> = {},
): Promise<Answers<paths[P]["put"]>> {
  return json("put", path as string, options) as Promise<Answers<paths[P]["put"]>>;
}

export async function remove<P extends PathsWith<"delete">>(
  path: P,
  options: Options<never, never> = {},
): Promise<void> {
  await json("delete", path as string, options);
}

/** Return random text; `crypto.randomUUID` is missing where the page is not served over TLS. */
export function randomKey(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) =>
    byte.toString(16).padStart(2, "0"),
  ).join("");
}

/** Fetch bytes of the API; null where there are none. */
export async function bytes(path: string, signal?: AbortSignal): Promise<Blob> {
  const response = await send(path, signal === undefined ? {} : { signal });
  return response.blob();
}

/** Save a file of the API under its name. */
export async function download(path: string, filename: string): Promise<void> {
  const url = URL.createObjectURL(await bytes(path));
  const link = document.createElement("a");
  link.href = url;
  link.download = filename;
  document.body.append(link);
  link.click();
  link.remove();
  // The browser has begun to read it by then.
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
