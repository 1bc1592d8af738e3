// Sends a file in parts, and goes on where an earlier try has stopped: the server knows it by digest.
import { sha256 } from "@noble/hashes/sha2.js";
import { get, post, ProblemError, send, type Schemas } from "./client";

export type Purpose = "model" | "dataset";
type Upload = Schemas["UploadRead"];

export interface Sent {
  stage: "hashing" | "sending" | "joining";
  bytes: number;
  total: number;
  /** Bytes that an earlier try had sent. */
  resumed: number;
}

const SLICE = 4 * 1024 * 1024;
const SIDE_BY_SIDE = 3;
const TRIES = 5;

/** Return the SHA-256 of a file, read in slices; `crypto.subtle` would need all of it at once. */
export async function digest(file: Blob, onBytes: (bytes: number) => void, signal: AbortSignal): Promise<string> {
  const hash = sha256.create();
  for (let at = 0; at < file.size; at += SLICE) {
    signal.throwIfAborted();
    hash.update(new Uint8Array(await file.slice(at, at + SLICE).arrayBuffer()));
    onBytes(Math.min(at + SLICE, file.size));
  }
  return Array.from(hash.digest(), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Send a file and return its completed upload. Parts that the server has are not sent again. */
export async function upload(file: File, purpose: Purpose, onSent: (sent: Sent) => void, signal: AbortSignal): Promise<Upload> {
  const total = file.size;
  const checksum = await digest(file, (bytes) => onSent({ stage: "hashing", bytes, total, resumed: 0 }), signal);
  const { data: known } = await get("/v1/uploads", { query: { limit: 100 }, signal });
  const alike = known.filter((one) => one.purpose === purpose && one.sha256 === checksum && one.size_bytes === total);
  const same = alike.find((one) => one.state === "completed") ?? alike[0];
  const made = same
    ? await get("/v1/uploads/{upload_id}", { path: { upload_id: same.id }, signal })
    : await post("/v1/uploads", { body: { filename: file.name, size_bytes: total, sha256: checksum, purpose }, once: true, signal });
  if (made.state === "completed") {
    onSent({ stage: "joining", bytes: total, total, resumed: total });
    return made;
  }
  const received = made.parts.filter((part) => part.received);
  const resumed = received.reduce((sum, part) => sum + part.size_bytes, 0);
  let bytes = resumed;
  onSent({ stage: "sending", bytes, total, resumed });
  const waiting = made.parts.filter((part) => !part.received);
  // What one sender can not send, the others need not go on with.
  const stop = new AbortController();
  const either = AbortSignal.any([signal, stop.signal]);
  const line = async () => {
    for (let part = waiting.shift(); part !== undefined; part = waiting.shift()) {
      const start = (part.number - 1) * made.part_size_bytes;
      // Not to the store itself: a bucket answers no other origin unless somebody has told it to.
      await sendPart(`/v1/uploads/${made.id}/parts/${part.number}`, file.slice(start, start + part.size_bytes), either);
      bytes += part.size_bytes;
      onSent({ stage: "sending", bytes, total, resumed });
    }
  };
  try {
    await Promise.all(Array.from({ length: SIDE_BY_SIDE }, line));
  } catch (error) {
    stop.abort();
    throw error;
  }
  onSent({ stage: "joining", bytes: total, total, resumed });
  return post("/v1/uploads/{upload_id}/complete", { path: { upload_id: made.id }, signal });
}

/** Send one part, again after a pause where the connection is lost: it is the same part. */
async function sendPart(url: string, body: Blob, signal: AbortSignal): Promise<void> {
  for (let tried = 1; ; tried += 1) {
    try {
      await send(url, { method: "PUT", body, headers: { "Content-Type": "application/octet-stream" }, signal });
      return;
    } catch (error) {
      const isFinal = error instanceof ProblemError && !error.problem.retryable;
      if (signal.aborted || isFinal || tried === TRIES) throw error;
      await new Promise((resolve) => setTimeout(resolve, 500 * 2 ** tried));
    }
  }
}

/** Return the newest uploads that were begun and not completed. */
export async function unfinished(purpose: Purpose, signal: AbortSignal): Promise<Schemas["UploadSummary"][]> {
  const page = await get("/v1/uploads", { query: { state: "open", limit: 100 }, signal });
  return page.data.filter((one) => one.purpose === purpose);
}
