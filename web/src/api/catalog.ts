// The methods of the catalog, asked for once; they change only with the server's version.
import { get, type Json, type Schemas } from "./client";

// Of the schemas of hyper-parameters, what forms are made from (JSON Schema).
export interface Schema {
  type?: string;
  title?: string;
  description?: string;
  default?: unknown;
  enum?: unknown[];
  const?: unknown;
  anyOf?: Schema[];
  oneOf?: Schema[];
  $ref?: string;
  $defs?: Record<string, Schema>;
  properties?: Record<string, Schema>;
  items?: Schema;
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  exclusiveMaximum?: number;
  required?: string[];
  discriminator?: { propertyName: string };
}

export const TASKS: Schemas["ModelVersionNew"]["task"][] = ["classification", "segmentation", "detection", "embedding"];
// An embedding learns from a data set for classification.
export const DATASET_TASKS: Schemas["DatasetVersionNew"]["task"][] = ["classification", "segmentation", "detection"];

export type MethodRead = Schemas["MethodRead"] & { params_schema: Json };

let methods: Promise<MethodRead[]> | null = null;

/** Return all methods, in the catalog's order. */
export function allMethods(): Promise<MethodRead[]> {
  methods ??= readMethods().catch((error: unknown) => {
    methods = null;
    throw error;
  });
  return methods;
}

async function readMethods(): Promise<MethodRead[]> {
  const found: MethodRead[] = [];
  let cursor: string | null | undefined;
  do {
    const page = await get("/v1/methods", { query: { limit: 100, ...(cursor ? { cursor } : {}) } });
    found.push(...page.data);
    cursor = page.next_cursor;
  } while (cursor);
  return found;
}

/** Return a schema with its reference followed; definitions stand in the root schema. */
export function resolved(schema: Schema, root: Schema): Schema {
  if (schema.$ref === undefined) return schema;
  const name = schema.$ref.split("/").at(-1) ?? "";
  const found = root.$defs?.[name] ?? {};
  return { ...found, ...(schema.description ? { description: schema.description } : {}), ...("default" in schema ? { default: schema.default } : {}) };
}

/** Return what a value may be, in a few words. */
export function domain(schema: Schema, root: Schema): string {
  const it = resolved(schema, root);
  const alternatives = it.anyOf ?? it.oneOf;
  if (alternatives) return alternatives.map((one) => domain(one, root)).join(" or ");
  if (it.const !== undefined) return String(it.const);
  if (it.enum) return it.enum.map(String).join(", ");
  const low = it.minimum ?? it.exclusiveMinimum;
  const high = it.maximum ?? it.exclusiveMaximum;
  const type = it.type === "integer" ? "whole number" : it.type === "null" ? "null" : (it.type ?? "any");
  const bounds = [
    low === undefined ? "" : `${it.minimum === undefined ? "above" : "from"} ${low}`,
    high === undefined || high >= 1e5 ? "" : `${it.maximum === undefined ? "below" : "to"} ${high}`,
  ].filter(Boolean);
  return [type, ...bounds].join(" ");
}
