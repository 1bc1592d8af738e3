// One version of a model: scores, files, lineage, and why it was rejected if it was.
import { useState } from "preact/hooks";
import { download, get, type Json, type Schemas } from "../api/client";
import { Exports } from "./exports";
import { LineageGraph } from "../charts/lineage";
import { bytes, count, metric, percent, spoken } from "../ui/format";
import { useLoaded } from "../ui/loading";
import { Copy, Do, Facts, Heading, Loading, Notes, Problem, Section, State, Time, Told } from "../ui/parts";
import { to, type Place } from "../ui/router";

type Version = Schemas["ModelVersionRead"];

const GENERATIONS = 3;

/** Return the score that decides, as text. */
export function mainScore(scores: Json): string {
  for (const name of ["miou", "ap", "knn", "accuracy"]) if (typeof scores[name] === "number") return percent(scores[name] as number);
  return "–";
}

export function ModelVersion({ place }: { place: Place }) {
  const name = place.parts[1] ?? "";
  const version = Number(place.parts[2]);
  const path = { name, version };
  const [error, setError] = useState<Error | undefined>(undefined);
  const [isPending, setPending] = useState(false);
  const loaded = useLoaded(
    async (signal) => {
      const it = await get("/v1/models/{name}/versions/{version}", { path, signal });
      setPending(it.state === "pending");
      return it;
    },
    [name, version],
    isPending ? 1 : null,
  );
  const it = loaded.data;
  if (loaded.error && it === undefined) {
    return (
      <>
        <Heading title={`${name}@${version}`} />
        <Problem error={loaded.error} onRetry={loaded.reload} />
      </>
    );
  }
  if (it === undefined) return <Loading rows={9} />;
  const file = (one: string) => `/v1/models/${encodeURIComponent(name)}/versions/${version}/files/${one.split("/").map(encodeURIComponent).join("/")}`;
  const weights = it.files.find((one) => one.path === "model.safetensors");
  return (
    <>
      <Heading
        title={it.reference}
        aside={
          it.state === "ready" && (
            <>
              {weights && (
                <Do kind="primary" onError={setError} work={() => download(file(weights.path), `${name}-${version}.safetensors`)}>
                  Download {bytes(weights.size_bytes)}
                </Do>
              )}
              <a class="button" href={`#/submit?teacher=${encodeURIComponent(it.reference)}`}>Use as a teacher</a>
            </>
          )
        }
      >
        <State of={it.state} /> <a href={to("models", name)}>{name}</a> {it.deprecated && <span>deprecated</span>}
      </Heading>
      {error && <Problem error={error} />}
      {it.rejection && <Rejected rejection={it.rejection as Json & { code: string; message: string }} />}
      {it.state === "pending" && <p class="notice" role="status">A worker is reading the file; this takes seconds.</p>}
      <Notes title="What was chosen or converted when the file was read" lines={it.notes ?? []} />
      <div class="columns">
        <Section title="What it is">
          <Facts
            facts={[
              ["Network", it.network],
              ["Arguments", Object.keys(it.arguments).length > 0 ? <code>{JSON.stringify(it.arguments)}</code> : null],
              ["Task", it.task],
              ["Kind", it.kind],
              ["Parameters", count(it.parameters)],
              ["Input", inputOf(it.input)],
              ["Digest", it.digest ? <Copy text={it.digest} label="the digest" /> : null],
              ["From", it.job ? <a href={to("jobs", it.job)}>{it.job}</a> : (it.upload ?? "")],
              ["Created", <Time at={it.created_at} />],
              ["Tags", Object.entries(it.tags).map(([key, value]) => <span key={key} class="tag">{key}={value}</span>)],
            ]}
          />
          <Classes names={it.classes} total={it.classes_count} />
        </Section>
        <Section title="Scores">
          <Scores of={it} />
        </Section>
      </div>
      {it.state === "ready" && <Lineage name={name} version={version} />}
      {it.state === "ready" && <Exports name={name} version={version} classes={it.classes} onError={setError} />}
      {it.files.length > 0 && (
        <Section title="Files">
          <Files files={it.files.filter((one) => !one.path.includes("/"))} urlOf={file} onError={setError} />
          {[...new Set(it.files.filter((one) => one.path.includes("/")).map((one) => one.path.split("/")[0] ?? ""))].map((folder) => {
            const inside = it.files.filter((one) => one.path.startsWith(`${folder}/`));
            return (
              <details key={folder}>
                <summary>
                  {folder}/ ({inside.length} files)
                </summary>
                <Files files={inside} urlOf={file} onError={setError} />
              </details>
            );
          })}
        </Section>
      )}
      {it.card && (
        <Section title="Card">
          <pre class="code" tabIndex={0} style={{ whiteSpace: "pre-wrap" }}>{it.card}</pre>
        </Section>
      )}
    </>
  );
}

function Files({ files, urlOf, onError }: { files: Version["files"]; urlOf: (path: string) => string; onError: (error: Error | undefined) => void }) {
  return (
    <ul class="files">
      {files.map((one) => (
        <li key={one.path}>
          <Do kind="link" onError={onError} work={() => download(urlOf(one.path), one.path.split("/").at(-1) ?? one.path)}>
            {one.path}
          </Do>
          <span class="num faint">{bytes(one.size_bytes)}</span>
        </li>
      ))}
    </ul>
  );
}

export function inputOf(input: Json | null): string {
  if (input === null || input["height"] === undefined) return "";
  return `${String(input["channels"])} × ${String(input["height"])} × ${String(input["width"])}`;
}

export function Classes({ names, total }: { names: string[]; total: number }) {
  const few = names.slice(0, 200);
  return (
    <details>
      <summary>{total} classes</summary>
      <div class="classes">
        {few.map((one, index) => (
          <span key={index} class="tag">{one}</span>
        ))}
        {total > few.length && <span class="muted small">and {total - few.length} more</span>}
      </div>
    </details>
  );
}

function Scores({ of }: { of: Version }) {
  const rows = Object.entries(of.scores).filter(([, value]) => typeof value === "number");
  if (rows.length === 0) return <p class="muted">It was not evaluated here. A job that uses it as a teacher does that.</p>;
  return (
    <Facts
      facts={rows.map(([name, value]) => {
        const interval = of.scores[`${name}_interval`];
        const bounds = Array.isArray(interval) ? ` (${percent(interval[0] as number)} to ${percent(interval[1] as number)}, 95 %)` : "";
        return [spoken(name), `${metric(name, value)}${bounds}`];
      })}
    />
  );
}

/** Why a file was not taken, and what in it does not fit. */
export function Rejected({ rejection }: { rejection: Json & { code: string; message: string } }) {
  const lists = Object.entries(rejection).filter((entry): entry is [string, unknown[]] => Array.isArray(entry[1]) && entry[1].length > 0);
  return (
    <div class="notice bad" role="alert">
      <p class="notice-title">
        Rejected: <code>{rejection.code}</code>
      </p>
      <p><Told text={rejection.message} /></p>
      {lists.map(([name, entries]) => (
        <details key={name}>
          <summary>
            {name.replaceAll("_", " ")} ({entries.length})
          </summary>
          <pre class="code" tabIndex={0}>{entries.map((one) => (typeof one === "string" ? one : JSON.stringify(one))).join("\n")}</pre>
        </details>
      ))}
    </div>
  );
}

function Lineage({ name, version }: { name: string; version: number }) {
  const lineage = useLoaded(
    async (signal) => {
      const read = (of: string, at: number, limit: number) => get("/v1/models/{name}/versions/{version}/lineage", { path: { name: of, version: at }, query: { limit }, signal });
      const self = await read(name, version, 20);
      const ancestors: Schemas["LineageRead"][] = [];
      let open = self.backward.teachers;
      for (let generation = 1; generation < GENERATIONS && open.length > 0; generation += 1) {
        const found = await Promise.all(
          open
            .filter((one) => !one.deleted && /@\d+$/.test(one.reference) && !ancestors.some((known) => known.reference === one.reference))
            .map((one) => {
              const [of = "", at = ""] = one.reference.split("@");
              return read(of, Number(at), 1);
            }),
        );
        ancestors.push(...found);
        open = found.flatMap((one) => one.backward.teachers);
      }
      return { self, ancestors };
    },
    [name, version],
  );
  return (
    <Section title="Lineage">
      {lineage.error && <Problem error={lineage.error} onRetry={lineage.reload} />}
      {lineage.isLoading && <Loading rows={3} />}
      {lineage.data && <LineageGraph of={lineage.data.self} ancestors={lineage.data.ancestors} />}
      {lineage.data?.self.forward.has_more && <p class="small muted">The newest 20 of those made from it were looked at; there are more.</p>}
    </Section>
  );
}
