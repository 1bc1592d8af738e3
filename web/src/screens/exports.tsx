// A version in other forms: what there is, how it compares with the original, and a new one.
import { useState } from "preact/hooks";
import { download, ProblemError, randomKey, send, type Fault } from "../api/client";
import { bytes, count, number, percent, points } from "../ui/format";
import { useLoaded } from "../ui/loading";
import { Do, Field, Loading, Problem, Section, State, Table } from "../ui/parts";
import { faultsAt } from "../ui/schemaform";

// Written out here: the box is left out where the API of this tree has no such routes.
interface Export {
  id: string;
  format: string;
  precision: string;
  include_preprocessing: boolean;
  state: string;
  failure: { code: string; message: string } | null;
  files: { path: string; size_bytes: number; url: string }[];
  opset: number | null;
  checks: { largest_logit_difference: number; decisions_equal: number; decisions: number; decisions_of: string; metric: string; accuracy: number | null; original_accuracy: number | null; drop: number | null } | null;
  latency: { ms: number; original_ms: number; batch: number } | null;
  notes: string[];
}

const FORMATS: [string, string][] = [
  ["onnx", "ONNX graph"],
  ["torch_export", "PyTorch program (.pt2)"],
  ["torch_state_dict", "PyTorch state dictionary"],
  ["hub", "Hugging Face folder"],
];

export function Exports({ name, version, onError }: { name: string; version: number; onError: (error: Error | undefined) => void }) {
  const path = `/v1/models/${encodeURIComponent(name)}/versions/${version}/exports`;
  const [isGoing, setGoing] = useState(false);
  const [format, setFormat] = useState("onnx");
  const [precision, setPrecision] = useState("float32");
  const [withPixels, setWithPixels] = useState(false);
  const [error, setError] = useState<Error | undefined>(undefined);
  const loaded = useLoaded(
    async (signal) => {
      const page = (await (await send(`${path}?limit=50`, { signal })).json()) as { data: Export[]; has_more: boolean };
      setGoing(page.data.some((one) => ["queued", "running"].includes(one.state)));
      return page;
    },
    [name, version],
    isGoing ? 2 : null,
  );
  const make = async () => {
    const headers = { "Content-Type": "application/json", "Idempotency-Key": randomKey() };
    const body = JSON.stringify({ format, precision, include_preprocessing: withPixels });
    await send(path, { method: "POST", headers, body });
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
            <select {...attributes} value={format} onChange={(event) => setFormat(event.currentTarget.value)}>
              {FORMATS.map(([value, title]) => (
                <option key={value} value={value}>{title}</option>
              ))}
            </select>
          )}
        </Field>
        <Field label="Precision" hint="int8 is calibrated on training images." faults={faultsAt(faults, ["precision"])}>
          {(attributes) => (
            <select {...attributes} value={precision} onChange={(event) => setPrecision(event.currentTarget.value)}>
              {["float32", "float16", "int8"].map((one) => (
                <option key={one}>{one}</option>
              ))}
            </select>
          )}
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
    </Section>
  );
}
