// Upload a model or a data set: sent in parts, then read by a worker, which takes it or says why not.
import { useEffect, useRef, useState } from "preact/hooks";
import { DATASET_TASKS, TASKS } from "../api/catalog";
import { get, post, remove, type Json, type Schemas } from "../api/client";
import { unfinished, upload, type Purpose, type Sent } from "../api/upload";
import { bytes, duration, percent } from "../ui/format";
import { useLoaded } from "../ui/loading";
import { Do, Field, Heading, Notes, Problem, Progress, Section, State, Table, Time } from "../ui/parts";
import { filtered, replace, to, type Place } from "../ui/router";
import { faultsAt } from "../ui/schemaform";
import { ProblemError } from "../api/client";
import { Rejected } from "./version";

type Made = Schemas["ModelVersionRead"] | Schemas["DatasetVersionRead"];

export function Upload({ place }: { place: Place }) {
  const purpose: Purpose = place.query.get("purpose") === "dataset" ? "dataset" : "model";
  return (
    <>
      <Heading title={purpose === "model" ? "Upload a model" : "Upload a data set"} />
      <div class="choice" role="radiogroup" aria-label="What to upload">
        {(["model", "dataset"] as const).map((one) => (
          <label key={one}>
            <input type="radio" name="purpose" checked={purpose === one} onChange={() => replace(filtered(place, { purpose: one }))} />
            {one === "model" ? "a model" : "a data set"}
          </label>
        ))}
      </div>
      <Form key={purpose} purpose={purpose} name={place.query.get("name") ?? ""} />
    </>
  );
}

/** Texts of the form; what is empty is left out of the request, and the server says what it needs. */
type Values = Record<string, string>;

function numbers(text: string | undefined): number[] {
  return (text ?? "").split(/[\s,]+/).filter(Boolean).map(Number);
}

/** Raises Error for what is no JSON object. */
function argumentsOf(text: string): Json {
  try {
    const value: unknown = JSON.parse(text);
    if (value !== null && typeof value === "object" && !Array.isArray(value)) return value as Json;
  } catch {
    // Told below, with the field.
  }
  throw new Error(`Arguments: ${text} is no JSON object. Write it as {"widths": [16, 16, 32, 64]}, or leave it empty.`);
}

function modelBody(values: Values, id: string): Json {
  const classes = (values["classes"] ?? "").trim();
  return {
    upload: id,
    network: values["network"],
    task: values["task"] || "classification",
    ...(classes ? { classes: /^\d+$/.test(classes) ? Number(classes) : classes.split(",").map((one) => one.trim()).filter(Boolean) } : {}),
    input: { channels: Number(values["channels"]), height: Number(values["height"]), width: Number(values["width"]), mean: numbers(values["mean"]), std: numbers(values["std"]) },
    ...(values["entry"] ? { entry: values["entry"] } : {}),
    ...(values["arguments"] ? { arguments: argumentsOf(values["arguments"]) } : {}),
  };
}

function datasetBody(values: Values, id: string): Json {
  const input: Json = {};
  for (const side of ["height", "width"]) if (values[side]) input[side] = Number(values[side]);
  return {
    upload: id,
    ...(values["format"] ? { format: values["format"] } : {}),
    task: values["task"] || "classification",
    ...(Object.keys(input).length > 0 ? { input } : {}),
  };
}

interface Going {
  sent: Sent | null;
  since: number;
  made: Made | null;
  error: Error | null;
}

function Form({ purpose, name }: { purpose: Purpose; name: string }) {
  const [values, setValues] = useState<Values>({ name, task: "classification", ...(purpose === "model" ? { network: "retort/resnet8x4", classes: "10", channels: "3", height: "32", width: "32", mean: "0.5, 0.5, 0.5", std: "0.25, 0.25, 0.25" } : {}) });
  const [file, setFile] = useState<File | null>(null);
  const [going, setGoing] = useState<Going | null>(null);
  const running = useRef<AbortController | null>(null);
  const done = useRef<{ file: File; id: string } | null>(null);
  const open = useLoaded((signal) => unfinished(purpose, signal), [purpose]);
  const [error, setError] = useState<Error | undefined>(undefined);
  const isBusy = going !== null && going.error === null && (going.made === null || going.made.state === "pending");
  useEffect(() => () => running.current?.abort(), []);
  useEffect(() => {
    if (going?.made?.state !== "pending") return;
    const timer = setTimeout(() => {
      const path = { name: going.made?.name ?? "", version: going.made?.version ?? 0 };
      const asked: Promise<Made> = purpose === "model" ? get("/v1/models/{name}/versions/{version}", { path }) : get("/v1/datasets/{name}/versions/{version}", { path });
      asked.then(
        (made) => setGoing((last) => last && { ...last, made }),
        // The version is there whether the server is reached just now or not.
        () => setGoing((last) => last && { ...last }),
      );
    }, 700);
    return () => clearTimeout(timer);
  }, [going]);
  const send = async (event: Event) => {
    event.preventDefault();
    if (file === null) return;
    const stop = new AbortController();
    running.current = stop;
    const since = Date.now();
    setGoing({ sent: null, since, made: null, error: null });
    try {
      // Before the file travels.
      if (values["arguments"]) argumentsOf(values["arguments"]);
      // A file that has arrived is not sent again because a field beside it was wrong.
      const id = done.current?.file === file ? done.current.id : (await upload(file, purpose, (sent) => setGoing((last) => last && { ...last, sent }), stop.signal)).id;
      done.current = { file, id };
      const path = { name: values["name"] ?? "" };
      const made: Made =
        purpose === "model"
          ? await post("/v1/models/{name}/versions", { path, body: modelBody(values, id) as Schemas["ModelVersionNew"], once: true })
          : await post("/v1/datasets/{name}/versions", { path, body: datasetBody(values, id) as Schemas["DatasetVersionNew"], once: true });
      setGoing((last) => last && { ...last, made });
    } catch (failed) {
      setGoing(stop.signal.aborted ? null : (last) => last && { ...last, error: failed as Error });
    }
    open.reload();
  };
  const faults = going?.error instanceof ProblemError ? (going.error.problem.errors ?? []) : [];
  const input = (key: string, label: string, more: { hint?: string; placeholder?: string; at?: string[]; required?: boolean } = {}) => (
    <Field label={label} hint={more.hint} faults={faultsAt(faults, more.at ?? [key])}>
      {(attributes) => <input {...attributes} value={values[key] ?? ""} placeholder={more.placeholder} required={more.required} disabled={isBusy} onInput={(event) => setValues({ ...values, [key]: event.currentTarget.value })} />}
    </Field>
  );
  const isEmbedding = values["task"] === "embedding";
  const task = (
    <Field label="Task" faults={faultsAt(faults, ["task"])}>
      {(attributes) => (
        <select {...attributes} value={values["task"]} disabled={isBusy} onChange={(event) => setValues({ ...values, task: event.currentTarget.value, ...(event.currentTarget.value === "embedding" ? { classes: "" } : {}) })}>
          {(purpose === "model" ? TASKS : DATASET_TASKS).map((one) => (
            <option key={one}>{one}</option>
          ))}
        </select>
      )}
    </Field>
  );
  return (
    <>
      <form class="section" onSubmit={(event) => void send(event)}>
        <div class="grid">
          <Field label="File" hint={purpose === "model" ? "safetensors, a PyTorch state dictionary or checkpoint, ONNX, or a table of predictions." : "An archive (zip, tar): a folder for each class, COCO, VOC, masks, CIFAR; or npz or Parquet."}>
            {(attributes) => <input {...attributes} type="file" required disabled={isBusy} onChange={(event) => setFile(event.currentTarget.files?.[0] ?? null)} />}
          </Field>
          {input("name", "Name", { hint: "A new name, or one that gets another version: a-z, 0-9, '.', '_', '-'.", placeholder: purpose === "model" ? "digits-teacher" : "my-pictures", required: true, at: ["name"] })}
          {task}
          {purpose === "model" ? (
            <>
              {input("network", "Network", { hint: "Such as timm/resnet18; retort/onnx for a graph.", required: true })}
              {input("classes", "Classes", { hint: isEmbedding ? "None: an embedding has no classes." : "How many, or their names with commas, in the order of the logits.", required: !isEmbedding })}
              {input("channels", "Channels", { at: ["input", "channels"] })}
              {input("height", "Height", { at: ["input", "height"], hint: "In pixels." })}
              {input("width", "Width", { at: ["input", "width"], hint: "In pixels." })}
              {input("mean", "Mean", { at: ["input", "mean"], hint: "Of each channel, of pixels in 0..1." })}
              {input("std", "Standard deviation", { at: ["input", "std"], hint: "Of each channel." })}
              {input("entry", "Entry", { hint: "Which network of several in the file, such as model_ema." })}
              {input("arguments", "Arguments", { hint: "Of the network, as JSON.", placeholder: "{}" })}
            </>
          ) : (
            <>
              {input("format", "Format", { hint: "Recognised by its content if empty.", placeholder: "auto" })}
              {input("height", "Height", { at: ["input", "height"], hint: "Pictures are resized to it; measured if empty." })}
              {input("width", "Width", { at: ["input", "width"], hint: "Measured if empty." })}
            </>
          )}
        </div>
        <div class="actions">
          <button type="submit" class="primary" disabled={isBusy || file === null}>
            {isBusy ? "Uploading…" : "Upload"}
          </button>
          {isBusy && going?.made === null && (
            <button type="button" onClick={() => running.current?.abort()}>
              Stop
            </button>
          )}
        </div>
      </form>
      {going && <Steps going={going} purpose={purpose} />}
      {error && <Problem error={error} />}
      {open.error && <Problem error={open.error} onRetry={open.reload} />}
      {!isBusy && open.data !== undefined && open.data.length > 0 && (
        <Section title="Begun and not finished">
          <p class="muted small">Choose the same file above and it goes on where it stopped: the server still has the parts that arrived.</p>
          <Table caption="Unfinished uploads">
            <thead>
              <tr>
                <th scope="col">File</th>
                <th scope="col" class="num">Size</th>
                <th scope="col" class="num">Begun</th>
                <th scope="col" class="num">Kept until</th>
                <th scope="col"><span class="hidden">Actions</span></th>
              </tr>
            </thead>
            <tbody>
              {open.data.map((one) => (
                <tr key={one.id}>
                  <th scope="row">{one.filename}</th>
                  <td class="num">{bytes(one.size_bytes)}</td>
                  <td class="num"><Time at={one.created_at} /></td>
                  <td class="num"><Time at={one.expires_at} /></td>
                  <td class="num">
                    <Do kind="link" onError={setError} work={() => remove("/v1/uploads/{upload_id}", { path: { upload_id: one.id } }).then(open.reload)}>
                      Discard
                    </Do>
                  </td>
                </tr>
              ))}
            </tbody>
          </Table>
        </Section>
      )}
    </>
  );
}

function Steps({ going, purpose }: { going: Going; purpose: Purpose }) {
  const { sent, made, error } = going;
  const stage = made !== null ? "reading" : (sent?.stage ?? "hashing");
  const order = ["hashing", "sending", "joining", "reading"];
  const at = order.indexOf(stage);
  const share = (name: string) => (order.indexOf(name) < at || made?.state === "ready" || made?.state === "rejected" ? 1 : stage === name && sent && sent.total > 0 && name !== "joining" && name !== "reading" ? sent.bytes / sent.total : 0);
  const rate = sent?.stage === "sending" ? (sent.bytes - sent.resumed) / Math.max(0.5, (Date.now() - going.since) / 1000) : 0;
  const place = made && to(purpose === "model" ? "models" : "datasets", made.name, made.version);
  return (
    <Section title="Upload" aside={made && <State of={made.state} />}>
      <ol class="steps" aria-live="polite">
        <li class={stage === "hashing" ? "now" : ""}>
          <span>Digest {percent(share("hashing"), 0)}</span>
          <Progress value={share("hashing")} label="Digest of the file" />
        </li>
        <li class={stage === "sending" ? "now" : ""}>
          <span>Sent {percent(share("sending"), 0)}</span>
          <div>
            <Progress value={share("sending")} label="Sent" />
            {sent && sent.stage !== "hashing" && (
              <p class="small muted">
                {bytes(sent.bytes)} of {bytes(sent.total)}
                {rate > 0 && sent.bytes < sent.total && `, ${bytes(Math.round(rate))} a second, ${duration((sent.total - sent.bytes) / rate)} left`}
                {sent.resumed > 0 && `; ${bytes(sent.resumed)} had arrived before`}
              </p>
            )}
          </div>
        </li>
        <li class={stage === "reading" ? "now" : ""}>
          <span>{made?.state === "pending" ? "A worker reads it" : made === null ? "Then read by a worker" : "Read by a worker"}</span>
          {made && <a href={place ?? ""}>{made.reference}</a>}
        </li>
      </ol>
      {error && <Problem error={error} />}
      {made?.rejection && <Rejected rejection={made.rejection as Json & { code: string; message: string }} />}
      {made?.state === "ready" && (
        <>
          <div class="notice good" role="status">
            <p class="notice-title">
              <a href={place ?? ""}>{made.reference}</a> is ready
            </p>
            {purpose === "model" && (
              <p>
                <a href={`#/submit?teacher=${encodeURIComponent(made.reference)}`}>Distil it</a>
              </p>
            )}
          </div>
          <Notes title="What was chosen or converted" lines={made.notes ?? []} />
        </>
      )}
    </Section>
  );
}
