// A version in other forms: what there is, how it compares with the original, and a new one.
import { useEffect, useState } from "preact/hooks";
import { download, get, post, ProblemError, type Fault, type Schemas } from "../api/client";
import { ClassToggles, Overlay, type DrawnBox } from "../charts/overlay";
import { bytes, count, number, percent, points } from "../ui/format";
import { useLoaded } from "../ui/loading";
import { Copy, Do, Field, Loading, Problem, Section, State, Table } from "../ui/parts";
import { faultsAt } from "../ui/schemaform";

type Export = Schemas["ExportRead"];
type Answer = Schemas["PictureAnswer"];

const FORMATS: [Schemas["ExportNew"]["format"], string][] = [
  ["onnx", "ONNX graph"],
  ["torch_export", "PyTorch program (.pt2)"],
  ["openvino", "OpenVINO model"],
  ["torch_state_dict", "PyTorch state dictionary"],
  ["hub", "Hugging Face folder"],
];
const PRECISIONS: Schemas["ExportNew"]["precision"][] = ["float32", "float16", "int8"];
const MAX_DROP = 0.01;

export function Exports({ name, version, classes, onError }: { name: string; version: number; classes: string[]; onError: (error: Error | undefined) => void }) {
  const path = { name, version };
  const [isGoing, setGoing] = useState(false);
  const [format, setFormat] = useState<Schemas["ExportNew"]["format"]>("onnx");
  const [precision, setPrecision] = useState<Schemas["ExportNew"]["precision"]>("float32");
  const [withPixels, setWithPixels] = useState(false);
  const [mostLost, setMostLost] = useState("");
  const [error, setError] = useState<Error | undefined>(undefined);
  const loaded = useLoaded(
    async (signal) => {
      const page = await get("/v1/models/{name}/versions/{version}/exports", { path, query: { limit: 50 }, signal });
      setGoing(page.data.some((one) => ["queued", "running"].includes(one.state)));
      return page;
    },
    [name, version],
    isGoing ? 2 : null,
  );
  const make = async () => {
    const max_drop = mostLost.trim() === "" ? MAX_DROP : Number(mostLost) / 100;
    await post("/v1/models/{name}/versions/{version}/exports", { path, body: { format, precision, include_preprocessing: withPixels, max_drop }, once: true });
    loaded.reload();
  };
  const faults: Fault[] = error instanceof ProblemError ? (error.problem.errors ?? []) : [];
  return (
    <Section title="Exports">
      {loaded.error && <Problem error={loaded.error} onRetry={loaded.reload} />}
      {loaded.isLoading && <Loading rows={2} />}
      {loaded.data?.data.length === 0 && <p class="muted">None yet. An export is compared with the original before it is offered.</p>}
      {loaded.data !== undefined && loaded.data.data.length > 0 && (
        <Table caption="Exports">
          <thead>
            <tr>
              <th scope="col">Format</th>
              <th scope="col">State</th>
              <th scope="col" class="num">Same decisions</th>
              <th scope="col" class="num">Score</th>
              <th scope="col" class="num">Time</th>
              <th scope="col">Files</th>
            </tr>
          </thead>
          <tbody>
            {loaded.data.data.map((one) => (
              <tr key={one.id}>
                <th scope="row">
                  {one.format} {one.precision}
                  {one.opset !== null && <div class="small faint">opset {one.opset}</div>}
                  {one.include_preprocessing && <div class="small faint">takes pixels of 0..255</div>}
                </th>
                <td>
                  <State of={one.state} />
                  {one.failure && <p class="fault">{one.failure.message}</p>}
                  {one.notes.map((note) => (
                    <p key={note} class="small muted">{note}</p>
                  ))}
                </td>
                <td class="num">
                  {one.checks && (
                    <>
                      {count(one.checks.decisions_equal)} of {count(one.checks.decisions)} {one.checks.decisions_of}
                      <div class="small faint">largest difference {number(one.checks.largest_logit_difference)}</div>
                    </>
                  )}
                </td>
                <td class="num">
                  {one.checks && (
                    <>
                      {percent(one.checks.accuracy)}
                      {one.checks.drop !== null && <div class="small faint">{points(-one.checks.drop)} against the original</div>}
                      <div class="small faint">at most {points(one.max_drop)} may be lost</div>
                    </>
                  )}
                </td>
                <td class="num">
                  {one.latency && (
                    <>
                      {number(one.latency.ms)} ms
                      <div class="small faint">original {number(one.latency.original_ms)} ms</div>
                    </>
                  )}
                </td>
                <td>
                  {one.state === "ready" &&
                    one.files.map((file) => (
                      <div key={file.path}>
                        <Do kind="link" onError={onError} work={() => download(file.url, file.path.split("/").at(-1) ?? file.path)}>
                          {file.path.split("/").at(-1)}
                        </Do>{" "}
                        <span class="small faint">{bytes(file.size_bytes)}</span>
                        <details>
                          <summary>SHA-256</summary>
                          <Copy text={file.sha256} label={`the SHA-256 of ${file.path}`} />
                        </details>
                      </div>
                    ))}
                </td>
              </tr>
            ))}
          </tbody>
        </Table>
      )}
      {loaded.data?.has_more && <p class="small muted">The newest 50 are shown.</p>}
      {error && <Problem error={error} />}
      <div class="grid">
        <Field label="Format" faults={faultsAt(faults, ["format"])}>
          {(attributes) => (
            <select {...attributes} value={format} onChange={(event) => setFormat(event.currentTarget.value as typeof format)}>
              {FORMATS.map(([value, title]) => (
                <option key={value} value={value}>{title}</option>
              ))}
            </select>
          )}
        </Field>
        <Field label="Precision" hint="int8 is calibrated on training images." faults={faultsAt(faults, ["precision"])}>
          {(attributes) => (
            <select {...attributes} value={precision} onChange={(event) => setPrecision(event.currentTarget.value as typeof precision)}>
              {PRECISIONS.map((one) => (
                <option key={one}>{one}</option>
              ))}
            </select>
          )}
        </Field>
        <Field label="Most points that may be lost" hint="Of the score on the test split; an export that loses more is refused, with the numbers." faults={faultsAt(faults, ["max_drop"])}>
          {(attributes) => <input {...attributes} inputMode="decimal" value={mostLost} placeholder={String(100 * MAX_DROP)} onInput={(event) => setMostLost(event.currentTarget.value)} />}
        </Field>
        <label class="check">
          <input type="checkbox" checked={withPixels} onChange={(event) => setWithPixels(event.currentTarget.checked)} />
          normalise pixels within the graph
        </label>
        <div class="field" style={{ alignContent: "end" }}>
          <Do onError={setError} work={make}>
            Export
          </Do>
        </div>
      </div>
      {loaded.data?.data.some((one: Export) => one.format === "onnx" && one.state === "ready") && <Try name={name} version={version} classes={classes} />}
    </Section>
  );
}

interface Tried {
  file: File;
  url: string;
  /** Of the picture, in pixels. */
  width: number;
  height: number;
  answer: Answer;
}

/** Pictures of the reader's own, and what the version says of them. */
function Try({ name, version, classes }: { name: string; version: number; classes: string[] }) {
  const [files, setFiles] = useState<File[]>([]);
  const [tried, setTried] = useState<Tried[]>([]);
  const [milliseconds, setMilliseconds] = useState<number | null>(null);
  const [error, setError] = useState<Error | undefined>(undefined);
  const [hidden, setHidden] = useState<string[]>([]);
  const [least, setLeast] = useState(LEAST_SCORE);
  const found = tried.flatMap((one) => one.answer.boxes ?? []);
  const drawn = [...new Set(tried.flatMap((one) => [...(one.answer.boxes ?? []), ...(one.answer.shares ?? [])].map((each) => each.class)))];
  useEffect(() => () => tried.forEach((one) => URL.revokeObjectURL(one.url)), [tried]);
  const ask = async () => {
    const pictures = await Promise.all(files.map(base64));
    const path = { name, version };
    let found = await post("/v1/models/{name}/versions/{version}/predict", { path, body: { pictures } });
    // The answer comes within a second where a worker is free; each question waits for some time.
    while (found.state === "queued" || found.state === "running") {
      found = await get("/v1/models/{name}/versions/{version}/predictions/{prediction_id}", { path: { ...path, prediction_id: found.id }, query: { wait_seconds: 20 } });
    }
    if (found.failure) throw new Error(found.failure.message);
    const answers = found.answers ?? [];
    setMilliseconds(found.milliseconds);
    setTried(
      await Promise.all(
        files.flatMap((file, index) => {
          const answer = answers[index];
          return answer === undefined ? [] : [shownOf(file, answer)];
        }),
      ),
    );
  };
  return (
    <details>
      <summary>Try it with pictures</summary>
      <div class="grid">
        <Field label="Pictures" hint="PNG, JPEG and others; at most 32 and 8 MB. A worker answers by the ONNX export.">
          {(attributes) => <input {...attributes} type="file" accept="image/*" multiple onChange={(event) => setFiles([...(event.currentTarget.files ?? [])])} />}
        </Field>
        <div class="field" style={{ alignContent: "end" }}>
          <Do onError={setError} disabled={files.length === 0} work={ask}>
            Ask
          </Do>
        </div>
      </div>
      {error && <Problem error={error} />}
      {tried.length > 0 && (
        <>
          {found.length > 0 && (
            <label class="check">
              <input type="range" min={0} max={100} value={100 * least} onInput={(event) => setLeast(Number(event.currentTarget.value) / 100)} />
              boxes with a score from {percent(least, 0)}: {count(found.filter((one) => one.score >= least).length)} of {count(found.length)}
            </label>
          )}
          <ClassToggles classes={classes} shown={drawn} hidden={hidden} onChange={setHidden} />
          <div class="pictures">
            {tried.map((one) => (
              <figure key={one.url} class="picture">
                <Overlay src={one.url} alt={one.file.name} classes={classes} boxes={boxesOf(one, least)} mask={one.answer.mask_png ?? null} hidden={hidden} />
                <figcaption>
                  {one.file.name}
                  <Said answer={one.answer} />
                </figcaption>
              </figure>
            ))}
          </div>
          {milliseconds !== null && <p class="hint">Answered in {number(milliseconds)} ms.</p>}
        </>
      )}
    </details>
  );
}

/** Return a picture with its answer; where the browser cannot read it, boxes are told as text alone. */
async function shownOf(file: File, answer: Answer): Promise<Tried> {
  const { width, height } = await createImageBitmap(file).then(
    (picture) => picture,
    () => ({ width: 0, height: 0 }),
  );
  return { file, url: URL.createObjectURL(file), width, height, answer };
}

function boxesOf({ answer, width, height }: Tried, least: number): DrawnBox[] {
  if (width === 0) return [];
  return (answer.boxes ?? []).filter((one) => one.score >= least).map((one) => {
    const [x1 = 0, y1 = 0, x2 = 0, y2 = 0] = one.box;
    return { name: one.class, note: percent(one.score, 0), box: [x1 / width, y1 / height, x2 / width, y2 / height] };
  });
}

// Of a box that is drawn; the reader can change it.
const LEAST_SCORE = 0.3;
const MOST_SAID = 10;

function Said({ answer }: { answer: Answer }) {
  const lines: [string, string][] = [
    ...(answer.classes ?? []).map((one): [string, string] => [one.class, percent(one.probability)]),
    ...(answer.shares ?? []).map((one): [string, string] => [one.class, `${percent(one.share)} of the pixels`]),
    ...(answer.boxes ?? []).map((one): [string, string] => [one.class, `${percent(one.score)} at ${one.box.map(Math.round).join(", ")}`]),
  ];
  if (lines.length === 0) return <p>Nothing was found.</p>;
  return (
    <>
      <ul>
        {lines.slice(0, MOST_SAID).map(([name, value], index) => (
          <li key={index}>
            <b>{name}</b> {value}
          </li>
        ))}
      </ul>
      {lines.length > MOST_SAID && <p>and {lines.length - MOST_SAID} more</p>}
    </>
  );
}

/** Return the bytes of a file as the API takes them. */
async function base64(file: File): Promise<string> {
  const bytes = new Uint8Array(await file.arrayBuffer());
  let text = "";
  // All at once would be more arguments than a call may have.
  for (let at = 0; at < bytes.length; at += 0x8000) text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  return btoa(text);
}
