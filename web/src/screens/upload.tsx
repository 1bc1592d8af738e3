// Upload a model or a data set: sent in parts, then read by a worker, which takes it or says why not.
import { useEffect, useRef, useState } from "preact/hooks";
import type { ComponentChildren } from "preact";
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
type DatasetVersion = Schemas["DatasetVersionRead"];

/** What the form is for. Predictions are a version of a model: a teacher without a network. */
type Kind = "model" | "predictions" | "dataset";
const KINDS: Record<Kind, string> = { model: "a model", predictions: "predictions", dataset: "a data set" };
const FILES: Record<Kind, string> = {
  model: "safetensors, a PyTorch state dictionary or checkpoint, or ONNX.",
  predictions: "npz, Parquet or safetensors: logits or probabilities for the images of a data set.",
  dataset: "An archive (zip, tar): a folder for each class, COCO, VOC, masks, CIFAR; or npz or Parquet.",
};

export function Upload({ place }: { place: Place }) {
  const asked = place.query.get("purpose");
  const kind: Kind = asked === "dataset" || asked === "predictions" ? asked : "model";
  return (
    <>
      <Heading title={`Upload ${KINDS[kind]}`} />
      <div class="choice" role="radiogroup" aria-label="What to upload">
        {(Object.keys(KINDS) as Kind[]).map((one) => (
          <label key={one}>
            <input type="radio" name="purpose" checked={kind === one} onChange={() => replace(filtered(place, { purpose: one }))} />
            {KINDS[one]}
          </label>
        ))}
      </div>
      <Form key={kind} kind={kind} name={place.query.get("name") ?? ""} />
    </>
  );
}

/** Texts of the form; what is empty is left out of the request, and the server says what it needs. */
type Values = Record<string, string>;

/** What is no number stays text: the server then says which field it is. */
function numberOf(text: string): number | string {
  const value = Number(text);
  return Number.isNaN(value) ? text : value;
}

function numbers(text: string | undefined): (number | string)[] {
  return (text ?? "").split(/[\s,]+/).filter(Boolean).map(numberOf);
}

function classesOf(text: string | undefined): Json {
  const classes = (text ?? "").trim();
  if (classes === "") return {};
  return { classes: /^\d+$/.test(classes) ? Number(classes) : classes.split(",").map((one) => one.trim()).filter(Boolean) };
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

const SIZES = ["channels", "height", "width"];
const MOMENTS = ["mean", "std"];

/** The images' fields that were filled in. */
function imagesOf(values: Values, fields: string[]): Json {
  const given = fields.filter((field) => values[field]?.trim());
  return Object.fromEntries(given.map((field) => [field, MOMENTS.includes(field) ? numbers(values[field]) : numberOf(values[field] ?? "")]));
}

function modelBody(values: Values, id: string): Json {
  return {
    upload: id,
    network: values["network"],
    task: values["task"] || "classification",
    ...classesOf(values["classes"]),
    input: { channels: numberOf(values["channels"] ?? ""), height: numberOf(values["height"] ?? ""), width: numberOf(values["width"] ?? ""), mean: numbers(values["mean"]), std: numbers(values["std"]) },
    ...(values["entry"] ? { entry: values["entry"] } : {}),
    ...(values["arguments"] ? { arguments: argumentsOf(values["arguments"]) } : {}),
    ...(values["strict"] === "no" ? { strict: false } : {}),
    ...(values["resize_positions"] === "yes" ? { resize_positions: true } : {}),
    ...(values["card"] ? { card: values["card"] } : {}),
  };
}

/** Return the version of a data set that a reference names, the newest that is ready without a number. */
async function datasetOf(reference: string): Promise<DatasetVersion> {
  const [name = "", written] = reference.trim().split("@");
  const version = written === undefined ? (await get("/v1/datasets/{name}", { path: { name } })).latest_version : Number(written);
  if (version === null || !Number.isInteger(version)) throw new Error(`Data set: ${reference} is no version that is ready. Write it as digits@1, or wait until it was inspected.`);
  const found = await get("/v1/datasets/{name}/versions/{version}", { path: { name, version } });
  if (!found.input) throw new Error(`Data set: ${found.reference} is ${found.state}. Wait until it was inspected, or choose another.`);
  return found;
}

/** Return what is asked of predictions: images and classes are those of the data set. */
function predictionsBody(values: Values, id: string, of: DatasetVersion): Json {
  const [views, seed] = ["views", "seed"].map((field) => (values[field]?.trim() ? { [field]: numberOf(values[field] ?? "") } : {}));
  return {
    upload: id,
    network: "retort/predictions",
    ...(of.classes.length > 0 ? { classes: of.classes } : classesOf(values["classes"])),
    input: Object.fromEntries([...SIZES, ...MOMENTS].map((field) => [field, of.input?.[field]])),
    arguments: {
      dataset: of.reference,
      ...(values["outputs"] ? { outputs: values["outputs"] } : {}),
      ...views,
      ...seed,
      ...(values["augmentation"] ? { augmentation: values["augmentation"] } : {}),
    },
    ...(values["card"] ? { card: values["card"] } : {}),
  };
}

function datasetBody(values: Values, id: string): Json {
  const input: Json = { ...imagesOf(values, [...SIZES, ...MOMENTS, "max_value", "max_bad_share"]), ...(values["storage"] ? { storage: values["storage"] } : {}) };
  return {
    upload: id,
    ...(values["format"] ? { format: values["format"] } : {}),
    task: values["task"] || "classification",
    ...(Object.keys(input).length > 0 ? { input } : {}),
    ...(values["card"] ? { card: values["card"] } : {}),
  };
}

interface Going {
  sent: Sent | null;
  since: number;
  made: Made | null;
  error: Error | null;
}

function Form({ kind, name }: { kind: Kind; name: string }) {
  const purpose: Purpose = kind === "dataset" ? "dataset" : "model";
  const [values, setValues] = useState<Values>({ name, task: "classification", ...(kind === "model" ? { network: "retort/resnet8x4", classes: "10", channels: "3", height: "32", width: "32", mean: "0.5, 0.5, 0.5", std: "0.25, 0.25, 0.25" } : {}) });
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
      const predicted = kind === "predictions" ? await datasetOf(values["dataset"] ?? "") : null;
      // A file that has arrived is not sent again because a field beside it was wrong.
      const id = done.current?.file === file ? done.current.id : (await upload(file, purpose, (sent) => setGoing((last) => last && { ...last, sent }), stop.signal)).id;
      done.current = { file, id };
      const path = { name: values["name"] ?? "" };
      const body = predicted === null ? modelBody(values, id) : predictionsBody(values, id, predicted);
      const made: Made =
        purpose === "model"
          ? await post("/v1/models/{name}/versions", { path, body: body as Schemas["ModelVersionNew"], once: true })
          : await post("/v1/datasets/{name}/versions", { path, body: datasetBody(values, id) as Schemas["DatasetVersionNew"], once: true });
      setGoing((last) => last && { ...last, made });
    } catch (failed) {
      setGoing(stop.signal.aborted ? null : (last) => last && { ...last, error: failed as Error });
    }
    open.reload();
  };
  const faults = going?.error instanceof ProblemError ? (going.error.problem.errors ?? []) : [];
  const set = (key: string, value: string) => setValues((last) => ({ ...last, [key]: value }));
  const input = (key: string, label: string, more: { hint?: string; placeholder?: string; at?: string[]; required?: boolean } = {}) => (
    <Field label={label} hint={more.hint} faults={faultsAt(faults, more.at ?? [key])}>
      {(attributes) => <input {...attributes} value={values[key] ?? ""} placeholder={more.placeholder} required={more.required} disabled={isBusy} onInput={(event) => set(key, event.currentTarget.value)} />}
    </Field>
  );
  const choice = (key: string, label: string, options: [value: string, title: string][], more: { hint?: string; at?: string[] } = {}) => (
    <Field label={label} hint={more.hint} faults={faultsAt(faults, more.at ?? [key])}>
      {(attributes) => (
        <select {...attributes} value={values[key] ?? ""} disabled={isBusy} onChange={(event) => set(key, event.currentTarget.value)}>
          {options.map(([value, title]) => (
            <option key={value} value={value}>{title}</option>
          ))}
        </select>
      )}
    </Field>
  );
  const card = input("card", "Description", { hint: "Shown with the version; Markdown." });
  const further = (fields: string[], children: ComponentChildren) => (
    <details open={fields.some((field) => faultsAt(faults, [field]).length + faultsAt(faults, ["input", field]).length + faultsAt(faults, ["arguments", field]).length > 0)}>
      <summary>Further fields</summary>
      <div class="grid">{children}</div>
    </details>
  );
  const isEmbedding = values["task"] === "embedding";
  const task = (
    <Field label="Task" faults={faultsAt(faults, ["task"])}>
      {(attributes) => (
        <select {...attributes} value={values["task"]} disabled={isBusy} onChange={(event) => setValues({ ...values, task: event.currentTarget.value, ...(event.currentTarget.value === "embedding" ? { classes: "" } : {}) })}>
          {(kind === "model" ? TASKS : DATASET_TASKS).map((one) => (
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
          <Field label="File" hint={FILES[kind]}>
            {(attributes) => <input {...attributes} type="file" required disabled={isBusy} onChange={(event) => setFile(event.currentTarget.files?.[0] ?? null)} />}
          </Field>
          {input("name", "Name", { hint: "A new name, or one that gets another version: a-z, 0-9, '.', '_', '-'.", placeholder: { model: "digits-teacher", predictions: "my-predictions", dataset: "my-pictures" }[kind], required: true, at: ["name"] })}
          {kind === "model" && (
            <>
              {task}
              <Like disabled={isBusy} onFound={(it) => setValues((last) => ({ ...last, ...valuesOf(it, last["task"] === "embedding") }))} onError={setError} />
              {input("network", "Network", { hint: "Such as timm/resnet18; retort/onnx for a graph.", required: true })}
              {input("classes", "Classes", { hint: isEmbedding ? "None: an embedding has no classes." : "How many, or their names with commas, in the order of the logits.", required: !isEmbedding })}
              {input("channels", "Channels", { at: ["input", "channels"] })}
              {input("height", "Height", { at: ["input", "height"], hint: "In pixels." })}
              {input("width", "Width", { at: ["input", "width"], hint: "In pixels." })}
              {input("mean", "Mean", { at: ["input", "mean"], hint: "Of each channel, of pixels in 0..1; 0 where the network normalises by itself." })}
              {input("std", "Standard deviation", { at: ["input", "std"], hint: "Of each channel; 1 where the network takes pixels of 0..1 as they are." })}
              {input("entry", "Entry", { hint: "Which network of several in the file, such as model_ema." })}
              {input("arguments", "Arguments", { hint: "Of the network, as JSON.", placeholder: "{}" })}
            </>
          )}
          {kind === "predictions" && (
            <>
              {input("dataset", "Data set", { hint: "Whose images were predicted, such as digits@1.", placeholder: "digits@1", required: true, at: ["arguments", "dataset"] })}
              {choice("outputs", "What the values are", [["", "recognised"], ["logits", "logits"], ["probabilities", "probabilities"]], { at: ["arguments", "outputs"] })}
              {input("classes", "Classes", { hint: "Only of a data set without labels: how many, or their names with commas." })}
            </>
          )}
          {kind === "dataset" && (
            <>
              {task}
              {input("format", "Format", { hint: "Recognised by its content if empty.", placeholder: "auto" })}
              {input("height", "Height", { at: ["input", "height"], hint: "Pictures are resized to it; measured if empty." })}
              {input("width", "Width", { at: ["input", "width"], hint: "Measured if empty." })}
              {choice("storage", "Stored", [["", "as their size allows"], ["decoded", "decoded, all in one size"], ["encoded", "as their files, for large sets"]], { at: ["input", "storage"], hint: "Files are decoded while a student is trained, each with its own size." })}
            </>
          )}
        </div>
        {kind === "model" &&
          further(["strict", "resize_positions", "card"], (
            <>
              {choice("strict", "Weights that the network does not have", [["", "refuse the file"], ["no", "leave them aside"]])}
              {choice("resize_positions", "Positions of a transformer", [["", "as they are"], ["yes", "interpolate them for another size"]])}
              {card}
            </>
          ))}
        {kind === "predictions" &&
          further(["views", "seed", "augmentation", "card"], (
            <>
              {input("views", "Views", { at: ["arguments", "views"], hint: "Predictions of each training image; 1, which is of it as stored, if empty." })}
              {input("seed", "Seed", { at: ["arguments", "seed"], hint: "training.seed of several views." })}
              {input("augmentation", "Augmentation", { at: ["arguments", "augmentation"], hint: "training.augmentation of several views." })}
              {card}
            </>
          ))}
        {kind === "dataset" &&
          further([...SIZES, ...MOMENTS, "max_value", "max_bad_share", "card"], (
            <>
              {input("channels", "Channels", { at: ["input", "channels"], hint: "Measured if empty." })}
              {input("mean", "Mean", { at: ["input", "mean"], hint: "Of each channel, of pixels in 0..1; measured if empty." })}
              {input("std", "Standard deviation", { at: ["input", "std"], hint: "Of each channel; measured if empty." })}
              {input("max_value", "White", { at: ["input", "max_value"], hint: "Of pictures of more than 8 bits, such as 4095; by their range if empty." })}
              {input("max_bad_share", "Unreadable pictures", { at: ["input", "max_bad_share"], hint: "The share that may be left out, 0 to 1; 0.01 if empty." })}
              {card}
            </>
          ))}
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

/** The fields of a model that are those of a data set's images and classes. */
function valuesOf(it: DatasetVersion, isEmbedding: boolean): Values {
  const images = Object.fromEntries(SIZES.map((field) => [field, String(it.input?.[field] ?? "")]));
  const moments = Object.fromEntries(MOMENTS.map((field) => [field, ((it.input?.[field] as number[] | undefined) ?? []).join(", ")]));
  // Names with a comma can not be written in one field: their number can.
  const classes = it.classes.some((one) => one.includes(",")) ? String(it.classes.length) : it.classes.join(", ");
  return { ...images, ...moments, ...(isEmbedding || it.classes.length === 0 ? {} : { classes }) };
}

/** Fills in what a teacher of a data set has in common with it. */
function Like({ disabled, onFound, onError }: { disabled: boolean; onFound: (it: DatasetVersion) => void; onError: (error: Error | undefined) => void }) {
  const known = useLoaded((signal) => get("/v1/datasets", { query: { limit: 100 }, signal }), []);
  const choose = (reference: string) => {
    onError(undefined);
    if (reference !== "") datasetOf(reference).then(onFound, onError);
  };
  return (
    <Field label="Images and classes like" hint="Fills in size, mean, deviation and classes of the newest version.">
      {(attributes) => (
        <select {...attributes} disabled={disabled || known.data === undefined} onChange={(event) => choose(event.currentTarget.value)}>
          <option value="">those below</option>
          {known.data?.data
            .filter((one) => one.latest_version !== null)
            .map((one) => (
              <option key={one.name}>{one.name}</option>
            ))}
        </select>
      )}
    </Field>
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
