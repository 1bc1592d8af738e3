// A form made from a JSON Schema, as the catalog has one for each method and for training.
import { useId, useState } from "preact/hooks";
import { domain, resolved, type Schema } from "../api/catalog";
import type { Fault, Json } from "../api/client";
import { Field, Hint } from "./parts";

export type Path = (string | number)[];

export interface Editing {
  /** Set a value of the spec; undefined takes it out, so that its default holds. */
  set: (path: Path, value: unknown) => void;
  faults: Fault[];
  /** Whether several values, with commas between, stand for a variant of each, as in a study. */
  takesGrids?: boolean;
}

interface SchemaFormProps extends Editing {
  schema: Schema;
  root?: Schema;
  value: Json;
  path: Path;
  /** What holds where a field is left empty, if it is not the schema's own default. */
  presets?: Json;
  without?: string[];
}

/** Return the faults of a place in the spec, and of what is below it. */
export function faultsAt(faults: Fault[], path: Path, isLeaf = true): string[] {
  const pointer = pointerOf(path);
  return faults.filter((fault) => fault.pointer === pointer || (isLeaf && fault.pointer.startsWith(`${pointer}/`))).map((fault) => fault.detail);
}

export function pointerOf(path: Path): string {
  return path.map((part) => `/${String(part).replaceAll("~", "~0").replaceAll("/", "~1")}`).join("");
}

export function SchemaForm({ schema, root = schema, value, path, presets = {}, without = [], ...editing }: SchemaFormProps) {
  const fields = Object.entries(schema.properties ?? {}).filter(([name]) => !without.includes(name));
  return (
    <div class="grid">
      {fields.map(([name, one]) => (
        <SchemaField key={name} name={name} schema={one} root={root} value={value[name]} preset={name in presets ? presets[name] : one.default} path={[...path, name]} {...editing} />
      ))}
    </div>
  );
}

interface SchemaFieldProps extends Editing {
  name: string;
  schema: Schema;
  root: Schema;
  value: unknown;
  preset: unknown;
  path: Path;
}

function SchemaField({ name, schema, root, value, preset, path, set, faults, takesGrids = false }: SchemaFieldProps) {
  const it = resolved(schema, root);
  const kinds = (it.anyOf ?? it.oneOf ?? [it]).map((one) => resolved(one, root));
  const label = name.replaceAll("_", " ");
  const hint = it.description ?? kinds.map((one) => one.description ?? "").join(" ").trim();
  const objects = kinds.filter((one) => one.properties !== undefined);
  if (objects.length > 0 && isGrid(value)) {
    return (
      <Field label={label} hint="As the YAML has it; change it there." faults={faultsAt(faults, path)}>
        {(attributes) => <input {...attributes} readOnly value={JSON.stringify(value)} />}
      </Field>
    );
  }
  if (objects.length > 0) {
    const chosen = objects.find((one) => one.properties?.["name"]?.const === nameOf(value ?? preset)) ?? objects[0];
    if (chosen !== undefined) {
      const given = asObject(value);
      return (
        <fieldset class="group">
          <legend>{label}</legend>
          {hint && <Hint text={hint} />}
          {faultsAt(faults, path, false).map((fault) => (
            <p key={fault} class="fault">{fault}</p>
          ))}
          {objects.length > 1 && (
            <Choice label="name" options={objects.map((one) => String(one.properties?.["name"]?.const ?? ""))} value={nameOf(value)} preset={nameOf(preset)} onChange={(text) => set(path, text === undefined ? undefined : { name: text })} />
          )}
          <SchemaForm schema={chosen} root={root} value={given} path={path} presets={nameOf(given) === undefined || nameOf(given) === nameOf(preset) ? asObject(preset) : {}} without={objects.length > 1 || chosen.properties?.["name"]?.const !== undefined ? ["name"] : []} set={set} faults={faults} takesGrids={takesGrids} />
        </fieldset>
      );
    }
  }
  const wrong = faultsAt(faults, path);
  const values = kinds.flatMap((one) => one.enum ?? (one.const === undefined ? [] : [one.const]));
  const isClosed = kinds.every((one) => one.enum !== undefined || one.const !== undefined || one.type === "null");
  const isFlag = kinds.every((one) => one.type === "boolean" || one.type === "null");
  if (takesGrids) {
    const words = isFlag ? ["true", "false"] : values.map(String);
    return <Free label={label} hint={hint} faults={wrong} kinds={kinds} words={words} example={placeholder(preset, schema, root)} value={value} onChange={(text) => set(path, text)} takesGrids />;
  }
  if (isFlag || isClosed) {
    const options = isFlag ? [true, false] : values;
    return (
      <Choice label={label} hint={hint} faults={wrong} options={options.map(String)} value={value === undefined ? undefined : String(value)} preset={preset === undefined ? undefined : String(preset)} onChange={(text) => set(path, text === undefined ? undefined : (options.find((one) => String(one) === text) ?? text))} />
    );
  }
  return <Free label={label} hint={hint} faults={wrong} kinds={kinds} words={values.map(String)} example={placeholder(preset, schema, root)} value={value} onChange={(text) => set(path, text)} />;
}

function placeholder(preset: unknown, schema: Schema, root: Schema): string {
  if (preset === undefined) return domain(schema, root);
  if (preset === null) return "none";
  return typeof preset === "object" ? JSON.stringify(preset) : String(preset);
}

interface ChoiceProps {
  label: string;
  hint?: string;
  faults?: string[];
  options: string[];
  value: string | undefined;
  preset: string | undefined;
  onChange: (text: string | undefined) => void;
}

/** One of some words; the first takes the field out of the spec, so that its default holds. */
export function Choice({ label, hint, faults = [], options, value, preset, onChange }: ChoiceProps) {
  return (
    <Field label={label} hint={hint} faults={faults}>
      {(attributes) => (
        <select {...attributes} value={value ?? ""} onChange={(event) => onChange(event.currentTarget.value === "" ? undefined : event.currentTarget.value)}>
          <option value="">{preset === undefined || preset === "null" ? "default" : `default: ${preset}`}</option>
          {value !== undefined && !options.includes(value) && <option value={value}>{value}</option>}
          {options.map((one) => (
            <option key={one} value={one}>{one}</option>
          ))}
        </select>
      )}
    </Field>
  );
}

interface TextInputProps {
  value: string;
  onCommit: (text: string) => void;
  id: string;
  "aria-describedby": string | undefined;
  "aria-invalid": boolean;
  inputMode?: "decimal" | "numeric" | "text";
  list?: string | undefined;
  placeholder?: string;
}

/** An input that is given on when it is left: what is drawn anew meanwhile keeps the text. */
export function TextInput({ value, onCommit, ...attributes }: TextInputProps) {
  const [typed, setTyped] = useState<string | undefined>(undefined);
  return (
    <input
      type="text"
      {...attributes}
      value={typed ?? value}
      onInput={(event) => setTyped(event.currentTarget.value)}
      onChange={(event) => {
        onCommit(event.currentTarget.value);
        setTyped(undefined);
      }}
    />
  );
}

interface FreeProps {
  label: string;
  hint: string;
  faults: string[];
  kinds: Schema[];
  words: string[];
  example: string;
  value: unknown;
  onChange: (value: unknown) => void;
  takesGrids?: boolean;
}

/** A number, a word, or a list as JSON; empty takes the field out of the spec. */
function Free({ label, hint, faults, kinds, words, example, value, onChange, takesGrids = false }: FreeProps) {
  const list = useId();
  const isNumber = kinds.every((one) => one.type === "number" || one.type === "integer" || one.type === "null");
  const shown = isGrid(value) ? value.grid.map(written).join(", ") : written(value);
  const readAll = takesGrids ? readGrid : read;
  return (
    <Field label={label} hint={hint} faults={faults}>
      {(attributes) => (
        <>
          <TextInput {...attributes} inputMode={isNumber && !takesGrids ? "decimal" : "text"} list={words.length > 0 ? list : undefined} value={shown} placeholder={example} onCommit={(text) => onChange(readAll(text, kinds))} />
          {words.length > 0 && (
            <datalist id={list}>
              {words.map((one) => (
                <option key={one} value={one} />
              ))}
            </datalist>
          )}
        </>
      )}
    </Field>
  );
}

/** Return whether a value of a study stands for several. */
function isGrid(value: unknown): value is { grid: unknown[] } {
  return Array.isArray(asObject(value)["grid"]);
}

function written(value: unknown): string {
  if (value === undefined || value === null) return "";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

/** Return what a person has typed as one value, or as a grid of those between commas. */
export function readGrid(text: string, kinds: Schema[]): unknown {
  const parts = text.split(",").map((part) => part.trim()).filter(Boolean);
  // Commas within a list or an object separate no values of a grid.
  if (parts.length < 2 || /^\s*[[{]/.test(text)) return read(text, kinds);
  return { grid: parts.map((part) => read(part, kinds)) };
}

/** Return what a person has typed as the value that the schema asks for; the server judges it. */
export function read(text: string, kinds: Schema[]): unknown {
  const trimmed = text.trim();
  if (trimmed === "") return undefined;
  if (trimmed === "null" && kinds.some((one) => one.type === "null")) return null;
  if (/^(true|false)$/.test(trimmed) && kinds.some((one) => one.type === "boolean")) return trimmed === "true";
  const takesNumber = kinds.some((one) => one.type === "number" || one.type === "integer");
  if (takesNumber && Number.isFinite(Number(trimmed))) return Number(trimmed);
  if (/^[[{]/.test(trimmed)) {
    try {
      return JSON.parse(trimmed) as unknown;
    } catch {
      return trimmed; // half of a list: the server says what is wrong with it
    }
  }
  return trimmed;
}

function nameOf(value: unknown): string | undefined {
  const name = asObject(value)["name"];
  return typeof name === "string" ? name : undefined;
}

export function asObject(value: unknown): Json {
  return value !== null && typeof value === "object" && !Array.isArray(value) ? (value as Json) : {};
}
