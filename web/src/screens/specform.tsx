// What the forms of new jobs and of new studies share: a form and its YAML, and their common fields.
import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef, useState } from "preact/hooks";
import { isAlias, isMap, isSeq, parseDocument, type Document } from "yaml";
import { TASKS, type MethodRead, type Schema } from "../api/catalog";
import { get, post, ProblemError, randomKey, type Fault, type Json, type Schemas } from "../api/client";
import { useLoaded } from "../ui/loading";
import { Faults, Field, Heading, Loading, Notes, Problem, Section } from "../ui/parts";
import { go } from "../ui/router";
import { asObject, Choice, faultsAt, read, SchemaForm, TextInput, type Editing, type Path } from "../ui/schemaform";

const PAUSE_MS = 400;

/** Return those of the fields that a stored spec has a value of; it has more than a submitted one, such as digests. */
export function fieldsOf(spec: Json, fields: string[]): Json {
  return Object.fromEntries(fields.flatMap((name) => (spec[name] === undefined || spec[name] === null ? [] : [[name, spec[name]]])));
}

/** Return the reference of the model that was made last, a teacher to begin with; null without one. */
export async function newestModel(signal: AbortSignal): Promise<string | null> {
  const newest = (await get("/v1/models", { query: { limit: 1 }, signal })).data[0];
  return newest?.latest_version ? `${newest.name}@${newest.latest_version}` : null;
}

/** Return the methods in the order in which they fit what stands in the form, asked for as typing pauses. */
export function useRanked(asked: Json) {
  const [about, setAbout] = useState(asked);
  const subject = JSON.stringify(asked);
  useEffect(() => {
    const timer = setTimeout(() => setAbout(asked), PAUSE_MS);
    return () => clearTimeout(timer);
  }, [subject]);
  return useLoaded((signal) => post("/v1/methods/rank", { body: { name: "ranking", ...about } as Schemas["MethodsRequest"], signal }), [about]);
}

const NUMBER: Schema[] = [{ type: "number" }];
const OFTEN = ["recipe", "epochs", "batch_size", "seed"];

interface Draft {
  text: string;
  spec: Json;
  /** Why the text is no YAML of a spec. */
  fault: string | null;
}

function drafted(text: string): Draft {
  const document = parseDocument(text);
  const error = document.errors[0];
  if (error !== undefined) return { text, spec: {}, fault: error.message };
  let value: unknown;
  try {
    value = document.toJS();
  } catch (unread) {
    // Such as an alias of nothing, which is found only now.
    return { text, spec: {}, fault: (unread as Error).message };
  }
  if (value === null || typeof value !== "object" || Array.isArray(value)) return { text, spec: {}, fault: "A spec is a mapping, such as `name: digits-dkd`." };
  return { text, spec: value as Json, fault: null };
}

/** Return the text with one value changed; comments and order stay. */
function changed(text: string, path: Path, value: unknown): string {
  const document: Document = parseDocument(text);
  if (document.contents === null) document.contents = document.createNode({}) as Document["contents"];
  if (value !== undefined) {
    for (let depth = 1; depth < path.length; depth += 1) {
      const parent = path.slice(0, depth);
      const node = document.getIn(parent, true);
      const takesIt = isMap(node) || (isSeq(node) && typeof path[depth] === "number");
      // An alias is written out, since a change here is none there; what is no mapping takes no field.
      if (node !== undefined && !takesIt) document.setIn(parent, document.createNode(isAlias(node) ? asObject(node.toJS(document)) : {}));
    }
    document.setIn(path, document.createNode(value));
  } else if (document.hasIn(path)) {
    document.deleteIn(path);
    // A group whose last field was taken out goes too, but for those that a spec must have.
    for (let parent = path.slice(0, -1); parent.length > 0 && !["student", "method", "methods"].includes(String(parent.at(-1))); parent = parent.slice(0, -1)) {
      if (Object.keys(asObject(asJson(document.getIn(parent)))).length > 0) break;
      document.deleteIn(parent);
    }
  }
  return document.toString({ lineWidth: 0 });
}

function asJson(node: unknown): unknown {
  return node !== null && typeof node === "object" && "toJSON" in node ? (node as { toJSON: () => unknown }).toJSON() : node;
}

function yamlOf(spec: Json): string {
  const document = parseDocument("");
  document.contents = document.createNode(spec) as typeof document.contents;
  return document.toString({ lineWidth: 0 });
}

type Verdict<T> =
  | { kind: "asking" }
  | { kind: "good"; checked: T }
  | { kind: "bad"; error: Error; faults: Fault[] };

export interface PartProps extends Editing {
  spec: Json;
}

interface SpecFormProps<T extends { warnings: { message: string }[] }> {
  title: string;
  /** What the spec is of, with its article. */
  of: string;
  start: Json;
  command: string;
  validate: (spec: Json, signal: AbortSignal) => Promise<T>;
  /** Send it, and return the address of what was made. */
  submit: (spec: Json, key: string) => Promise<string>;
  accepted: (checked: T) => ComponentChildren;
  children: (part: PartProps) => ComponentChildren;
}

/** A form and the same as YAML, each following the other, checked by the server as one types. */
export function SpecForm<T extends { warnings: { message: string }[] }>({ title, of, start, command, validate, submit, accepted, children }: SpecFormProps<T>) {
  const [draft, setDraft] = useState(() => drafted(yamlOf(start)));
  const [verdict, setVerdict] = useState<Verdict<T>>({ kind: "asking" });
  const [error, setError] = useState<Error | undefined>(undefined);
  const [isBusy, setBusy] = useState(false);
  const [round, setRound] = useState(0);
  // The same spec sent twice is made once: the key changes with the text alone.
  const once = useRef({ text: "", key: "" });
  const { spec, text, fault } = draft;
  useEffect(() => {
    if (fault !== null) return;
    let again: number | undefined;
    const stop = new AbortController();
    const timer = setTimeout(() => {
      validate(spec, stop.signal).then(
        (checked) => setVerdict({ kind: "good", checked }),
        (failed: Error) => {
          if (stop.signal.aborted) return;
          const problem = failed instanceof ProblemError ? failed.problem : null;
          setVerdict({ kind: "bad", error: failed, faults: problem?.errors ?? [] });
          // Not about the spec: it is checked again once the server can.
          if (problem === null || problem.retryable) again = window.setTimeout(() => setRound((last) => last + 1), 3000);
        },
      );
    }, PAUSE_MS);
    return () => {
      clearTimeout(timer);
      clearTimeout(again);
      stop.abort();
    };
  }, [text, round]);
  const set = (path: Path, value: unknown) => setDraft((last) => (last.fault === null ? drafted(changed(last.text, path, value)) : last));
  const send = async (event: Event) => {
    event.preventDefault();
    if (once.current.text !== text) once.current = { text, key: randomKey() };
    setBusy(true);
    setError(undefined);
    try {
      go(await submit(spec, once.current.key));
    } catch (failed) {
      setError(failed as Error);
      setBusy(false);
    }
  };
  const faults = verdict.kind === "bad" ? verdict.faults : [];
  return (
    <form onSubmit={(event) => void send(event)}>
      <Heading
        title={title}
        aside={
          <button type="submit" class="primary" disabled={isBusy || fault !== null || verdict.kind === "bad"}>
            {isBusy ? "Submitting…" : "Submit"}
          </button>
        }
      />
      {error && (
        <div style={{ marginTop: "18px" }}>
          <Problem error={error} />
        </div>
      )}
      <div class="submit" style={{ marginTop: "22px" }}>
        <div inert={fault !== null}>{children({ spec, set, faults })}</div>
        <div class="aside">
          <Judged verdict={verdict} fault={fault} accepted={accepted} />
          <Section title="The same as YAML">
            <Yaml text={text} of={of} command={command} isWrong={fault !== null} onInput={(written) => setDraft(drafted(written))} />
          </Section>
        </div>
      </div>
    </form>
  );
}

function Yaml({ text, of, command, isWrong, onInput }: { text: string; of: string; command: string; isWrong: boolean; onInput: (text: string) => void }) {
  const hint = useId();
  return (
    <>
      <textarea class="yaml" aria-label={`${of} as YAML`} aria-invalid={isWrong} aria-describedby={hint} spellcheck={false} value={text} rows={Math.min(36, text.split("\n").length + 2)} onInput={(event) => onInput(event.currentTarget.value)} />
      <p class="hint" id={hint}>
        The form follows the text, and the text the form. On the command line: <code>{command}</code>
      </p>
    </>
  );
}

function Judged<T extends { warnings: { message: string }[] }>({ verdict, fault, accepted }: { verdict: Verdict<T>; fault: string | null; accepted: (checked: T) => ComponentChildren }) {
  if (fault !== null) {
    return (
      <div class="notice bad" role="status">
        <p class="notice-title">The text is no spec yet</p>
        <pre class="code" tabIndex={0}>{fault}</pre>
        <p>The form waits until the text can be read.</p>
      </div>
    );
  }
  if (verdict.kind === "asking") return <p class="notice" role="status">Checking…</p>;
  if (verdict.kind === "good") {
    return (
      <div role="status" style={{ display: "grid", gap: "12px" }}>
        <div class="notice good">
          {accepted(verdict.checked)}
        </div>
        <Notes title="You should know" lines={verdict.checked.warnings.map((warning) => warning.message)} />
      </div>
    );
  }
  if (verdict.faults.length === 0) return <Problem error={verdict.error} />;
  return (
    <div class="notice bad" role="status">
      <p class="notice-title">{verdict.faults.length === 1 ? "One thing is not right yet" : `${verdict.faults.length} things are not right yet`}</p>
      <Faults faults={verdict.faults} />
    </div>
  );
}

/** A text with suggestions, which may be anything. */
function Suggested({ label, hint, value, faults, options, onInput, onChange }: { label: string; hint?: string; value: string; faults: string[]; options: string[]; onInput?: (text: string) => void; onChange: (text: string) => void }) {
  const list = useId();
  return (
    <Field label={label} hint={hint} faults={faults}>
      {(attributes) => (
        <>
          <input
            {...attributes}
            list={list}
            value={value}
            autoComplete="off"
            spellcheck={false}
            onInput={(event) => {
              onInput?.(event.currentTarget.value);
              onChange(event.currentTarget.value);
            }}
          />
          <datalist id={list}>
            {options.map((one) => (
              <option key={one} value={one} />
            ))}
          </datalist>
        </>
      )}
    </Field>
  );
}

export function text(value: unknown): string {
  return typeof value === "string" ? value : "";
}

export function What({ spec, set, faults }: PartProps) {
  const models = useLoaded((signal) => get("/v1/models", { query: { limit: 100 }, signal }), []);
  const datasets = useLoaded((signal) => get("/v1/datasets", { query: { limit: 100 }, signal }), []);
  const student = asObject(spec["student"]);
  const [search, setSearch] = useState("");
  const [asked, setAsked] = useState("");
  useEffect(() => {
    const timer = setTimeout(() => setAsked(search), PAUSE_MS);
    return () => clearTimeout(timer);
  }, [search]);
  const networks = useLoaded((signal) => get("/v1/networks", { query: { limit: 50, ...(asked ? { search: asked } : {}) }, signal }), [asked]);
  const ready = (rows: { name: string; latest_version: number | null }[] | undefined) => (rows ?? []).flatMap((one) => (one.latest_version === null ? [] : [`${one.name}@${one.latest_version}`]));
  const several = Array.isArray(spec["teachers"]) ? (spec["teachers"] as unknown[]).join(", ") : "";
  const isWaiting = typeof spec["teacher"] === "object" && spec["teacher"] !== null;
  return (
    <Section title="What is distilled">
      <div class="grid">
        <Field label="Name" faults={faultsAt(faults, ["name"])}>
          {(attributes) => <input {...attributes} value={text(spec["name"])} onInput={(event) => set(["name"], event.currentTarget.value || undefined)} />}
        </Field>
        <Choice label="Task" faults={faultsAt(faults, ["task"])} options={TASKS} preset="classification" value={text(spec["task"]) || undefined} onChange={(value) => set(["task"], value)} />
        <Suggested label="Data set" faults={faultsAt(faults, ["dataset"])} value={text(spec["dataset"])} options={ready(datasets.data?.data)} onChange={(value) => set(["dataset"], value || undefined)} />
        {several !== "" || isWaiting ? (
          <Field label={isWaiting ? "Teacher" : "Teachers"} hint="As the YAML has it; change it there." faults={[...faultsAt(faults, ["teachers"]), ...faultsAt(faults, ["teacher"])]}>
            {(attributes) => <input {...attributes} readOnly value={isWaiting ? JSON.stringify(spec["teacher"]) : several} />}
          </Field>
        ) : (
          <Suggested label="Teacher" hint="Empty for a method that needs none." faults={faultsAt(faults, ["teacher"])} value={text(spec["teacher"])} options={ready(models.data?.data)} onChange={(value) => set(["teacher"], value || undefined)} />
        )}
        <Suggested
          label="Student network"
          hint="Type to search, also in timm and torchvision."
          faults={faultsAt(faults, ["student", "network"])}
          value={text(student["network"])}
          options={(networks.data?.data ?? []).map((one) => one.name)}
          onInput={setSearch}
          onChange={(value) => set(["student", "network"], value || undefined)}
        />
        <Field label="Register as" hint="The model that the student becomes a version of; made from the name if empty." faults={faultsAt(faults, ["student", "register_as"])}>
          {(attributes) => <input {...attributes} value={text(student["register_as"])} onInput={(event) => set(["student", "register_as"], event.currentTarget.value || undefined)} />}
        </Field>
      </div>
      {(models.error ?? datasets.error ?? networks.error) && <p class="hint">Suggestions could not be loaded: {(models.error ?? datasets.error ?? networks.error)?.message}</p>}
      {faultsAt(faults, ["student"], false).concat(faultsAt(faults, ["student", "arguments"])).map((one) => (
        <p key={one} class="fault">{one}</p>
      ))}
    </Section>
  );
}

export function MethodChoice({ name, methods, ranked, faults, onChange }: { name: string; methods: MethodRead[]; ranked: Schemas["MethodsRanked"] | null; faults: string[]; onChange: (name: string) => void }) {
  const fits = ranked?.data.filter((one) => one.refusals.length === 0) ?? [];
  const others = ranked?.data.filter((one) => one.refusals.length > 0) ?? [];
  const refused = others.find((one) => one.name === name);
  const families = [...new Set(methods.map((one) => one.family))];
  const listed = new Set(ranked?.data.map((one) => one.name));
  return (
    <Field label="Method" hint={ranked?.measured_on ? `Best measured first, those below the student alone last. Points of ${ranked.metric}, measured on: ${ranked.measured_on}` : undefined} faults={refused ? [...new Set([...faults, ...refused.refusals])] : faults}>
      {(attributes) => (
        <select {...attributes} value={name} onChange={(event) => onChange(event.currentTarget.value)}>
          {!methods.some((one) => one.name === name) && <option value={name}>{name}</option>}
          {ranked ? (
            <>
              <optgroup label="Fits this job">
                {fits.map((one) => (
                  <option key={one.name} value={one.name}>
                    {one.name} · {one.title}
                    {one.measured ? ` (${one.measured.difference > 0 ? "+" : ""}${one.measured.difference.toFixed(1)} points)` : ""}
                  </option>
                ))}
              </optgroup>
              <optgroup label="Does not fit it as it is">
                {others.map((one) => (
                  <option key={one.name} value={one.name}>
                    {one.name} · {one.title}
                  </option>
                ))}
                {methods.filter((one) => !listed.has(one.name)).map((one) => (
                  <option key={one.name} value={one.name}>{one.name} · {one.title}</option>
                ))}
              </optgroup>
            </>
          ) : (
            families.map((family) => (
              <optgroup key={family} label={family}>
                {methods.filter((one) => one.family === family).map((one) => (
                  <option key={one.name} value={one.name}>{one.name} · {one.title}</option>
                ))}
              </optgroup>
            ))
          )}
        </select>
      )}
    </Field>
  );
}

/** Settings of the training; a study has its seeds elsewhere. */
export function Training({ spec, set, faults, takesGrids = false }: PartProps) {
  const recipes = useLoaded((signal) => get("/v1/recipes", { signal }), []);
  const training = asObject(spec["training"]);
  if (recipes.error) return <Problem error={recipes.error} onRetry={recipes.reload} />;
  if (recipes.data === undefined) return <Loading />;
  const schema = recipes.data.training_schema as Schema;
  const recipe = text(training["recipe"]) || "small";
  const presets = recipes.data.data.find((one) => one.name === recipe)?.training ?? {};
  const isAsked = (name: string) => !(takesGrids && name === "seed");
  const some = (names: (name: string) => boolean): Schema => ({ ...schema, properties: Object.fromEntries(Object.entries(schema.properties ?? {}).filter(([name]) => isAsked(name) && names(name))) });
  return (
    <Section title="Training">
      {faultsAt(faults, ["training"], false).map((one) => (
        <p key={one} class="fault">{one}</p>
      ))}
      <SchemaForm schema={some((name) => OFTEN.includes(name))} root={schema} value={training} path={["training"]} presets={presets} set={set} faults={faults} takesGrids={takesGrids} />
      <details open={Object.keys(training).some((name) => !OFTEN.includes(name)) || faults.some((one) => /^\/training\//.test(one.pointer) && !OFTEN.includes(one.pointer.split("/")[2] ?? ""))}>
        <summary>All settings of the training</summary>
        <SchemaForm schema={some((name) => !OFTEN.includes(name))} root={schema} value={training} path={["training"]} presets={presets} set={set} faults={faults} takesGrids={takesGrids} />
      </details>
    </Section>
  );
}

export function Rest({ spec, set, faults, hasBaseline = false }: PartProps & { hasBaseline?: boolean }) {
  const resources = asObject(spec["resources"]);
  const labels = Object.entries(asObject(spec["labels"])).map(([name, value]) => `${name}=${String(value)}`).join(", ");
  const flag = (name: string, preset: boolean, label: string) => (
    <label>
      <input type="checkbox" checked={(spec[name] as boolean | undefined) ?? preset} onChange={(event) => set([name], event.currentTarget.checked === preset ? undefined : event.currentTarget.checked)} />
      {label}
    </label>
  );
  return (
    <Section title="Besides">
      <div class="choice">
        {flag("baseline", hasBaseline, "Also train the student without its teacher, to compare")}
        {flag("report", true, "Write a report with pictures")}
      </div>
      <div class="grid">
        <Choice label="Device" faults={faultsAt(faults, ["resources"])} options={["any", "cpu", "cuda"]} preset="any" value={text(resources["accelerator"]) || undefined} onChange={(value) => set(["resources", "accelerator"], value)} />
        <Field label="Longest time in seconds" hint="Of active work; no limit if empty.">
          {(attributes) => <TextInput {...attributes} inputMode="decimal" value={String(resources["max_runtime_seconds"] ?? "")} onCommit={(text) => set(["resources", "max_runtime_seconds"], read(text, NUMBER))} />}
        </Field>
        <Field label="Priority" hint="0 to 9; higher goes first." faults={faultsAt(faults, ["priority"])}>
          {(attributes) => <TextInput {...attributes} inputMode="numeric" placeholder="0" value={String(spec["priority"] ?? "")} onCommit={(text) => set(["priority"], read(text, NUMBER))} />}
        </Field>
        <Field label="Labels" hint="For filters, such as team=vision." faults={faultsAt(faults, ["labels"])}>
          {(attributes) => <TextInput {...attributes} value={labels} placeholder="key=value, key=value" onCommit={(text) => set(["labels"], labelled(text))} />}
        </Field>
      </div>
    </Section>
  );
}

function labelled(written: string): Json | undefined {
  const pairs = written.split(",").map((one) => one.trim()).filter(Boolean);
  if (pairs.length === 0) return undefined;
  return Object.fromEntries(pairs.map((pair) => [pair.split("=")[0]?.trim() ?? pair, pair.split("=").slice(1).join("=").trim()]));
}
