// Models: lines of versions, and the aliases that point to them.
import { useState } from "preact/hooks";
import { get, put, remove, send, type Schemas } from "../api/client";
import { short } from "../ui/format";
import { useLoaded, usePages } from "../ui/loading";
import { Do, Empty, Field, Heading, Loading, More, PagedTable, Problem, SearchField, Section, State, Table, Time } from "../ui/parts";
import { filtered, replace, to, type Place } from "../ui/router";
import { mainScore } from "./version";

export function Models({ place }: { place: Place }) {
  const prefix = place.query.get("prefix") ?? "";
  const pages = usePages(
    (cursor, signal) => get("/v1/models", { query: { limit: 50, ...(cursor ? { cursor } : {}), ...(prefix ? { prefix } : {}) }, signal }),
    (model) => model.name,
    [prefix],
    10,
  );
  return (
    <>
      <Heading title="Models" aside={<a class="button primary" href="#/upload?purpose=model">Upload a model</a>} />
      <form class="filters" role="search" aria-label="Filter models" onSubmit={(event) => event.preventDefault()}>
        <SearchField label="Name" hint="begins with" value={prefix} onDone={(text) => replace(filtered(place, { prefix: text }))} />
      </form>
      <PagedTable
        pages={pages}
        caption="Models"
        empty={
          <Empty title={prefix ? "No model's name begins like that." : "No models yet"}>
            {!prefix && <p>Upload a teacher that you have trained, or train one with a job: its student becomes a model here.</p>}
          </Empty>
        }
        head={
          <>
            <th scope="col">Model</th>
            <th scope="col">Newest version</th>
            <th scope="col">Aliases</th>
            <th scope="col" class="num">Changed</th>
          </>
        }
        row={(model) => (
          <tr key={model.name}>
            <td class="name"><a href={to("models", model.name)}>{model.name}</a></td>
            <td>
              {model.newest_version ? (
                <>
                  <a href={to("models", model.name, model.newest_version.version)}>@{model.newest_version.version}</a> <State of={model.newest_version.state} />
                  {model.newest_version.rejection && <p class="fault">{model.newest_version.rejection.message}</p>}
                </>
              ) : (
                <span class="faint">none</span>
              )}
            </td>
            <td>
              {Object.entries(model.aliases).map(([alias, version]) => (
                <a key={alias} class="tag" href={to("models", model.name, version)}>{alias} → {version}</a>
              ))}
            </td>
            <td class="num"><Time at={model.updated_at} /></td>
          </tr>
        )}
      />
    </>
  );
}

export function Model({ place }: { place: Place }) {
  const name = place.parts[1] ?? "";
  const model = useLoaded((signal) => get("/v1/models/{name}", { path: { name }, signal }), [name], 10);
  const pages = usePages(
    (cursor, signal) => get("/v1/models/{name}/versions", { path: { name }, query: { limit: 50, ...(cursor ? { cursor } : {}) }, signal }),
    (version) => String(version.version),
    [name],
    10,
  );
  if (model.error && model.data === undefined) {
    return (
      <>
        <Heading title={name} />
        <Problem error={model.error} onRetry={model.reload} />
      </>
    );
  }
  return (
    <>
      <Heading title={name} aside={<a class="button" href={`#/upload?purpose=model&name=${encodeURIComponent(name)}`}>Upload a version</a>}>
        <a href="#/models">Models</a>
      </Heading>
      {model.data?.card && <p class="prose muted" style={{ whiteSpace: "pre-line" }}>{model.data.card}</p>}
      <Section title="Versions">
        {pages.error && <Problem error={pages.error} onRetry={pages.reload} />}
        {pages.rows === undefined && !pages.error && <Loading />}
        {pages.rows?.length === 0 && <Empty title="No versions yet" />}
        {pages.rows !== undefined && pages.rows.length > 0 && (
          <Table caption="Versions">
            <thead>
              <tr>
                <th scope="col">Version</th>
                <th scope="col">State</th>
                <th scope="col">Network</th>
                <th scope="col" class="num">Score</th>
                <th scope="col" class="num">Parameters</th>
                <th scope="col">From</th>
                <th scope="col" class="num">Created</th>
              </tr>
            </thead>
            <tbody>
              {pages.rows.map((version) => (
                <tr key={version.version}>
                  <td class="name"><a href={to("models", name, version.version)}>@{version.version}</a></td>
                  <td>
                    <State of={version.state} />
                    {version.deprecated && <span class="small faint"> deprecated</span>}
                  </td>
                  <td>{version.network}</td>
                  <td class="num">{mainScore(version.scores)}</td>
                  <td class="num">{short(version.parameters)}</td>
                  <td>{version.job ? <a href={to("jobs", version.job)}>a job</a> : "an upload"}</td>
                  <td class="num"><Time at={version.created_at} /></td>
                </tr>
              ))}
            </tbody>
          </Table>
        )}
        <More pages={pages} />
      </Section>
      <Aliases name={name} onChange={model.reload} />
    </>
  );
}

type Alias = Schemas["AliasRead"];

/** Return the ETag of an alias, unless it points elsewhere than the reader has seen. */
async function etagOf(name: string, seen: Alias): Promise<string> {
  const response = await send(`/v1/models/${encodeURIComponent(name)}/aliases/${encodeURIComponent(seen.alias)}`);
  const now = (await response.json()) as Alias;
  if (now.version !== seen.version) {
    throw new Error(`“${seen.alias}” was moved to version ${now.version} meanwhile. Load the page again, then decide.`);
  }
  return response.headers.get("etag") ?? "";
}

function Aliases({ name, onChange }: { name: string; onChange: () => void }) {
  const aliases = useLoaded((signal) => get("/v1/models/{name}/aliases", { path: { name }, signal }), [name]);
  const [error, setError] = useState<Error | undefined>(undefined);
  const [alias, setAlias] = useState("");
  const [version, setVersion] = useState("");
  const changed = () => {
    aliases.reload();
    onChange();
    setAlias("");
    setVersion("");
  };
  const point = async () => {
    const known = aliases.data?.data.find((one) => one.alias === alias);
    const headers: Record<string, string> = known ? { "If-Match": await etagOf(name, known) } : { "If-None-Match": "*" };
    await put("/v1/models/{name}/aliases/{alias}", { path: { name, alias }, body: { version: Number(version) }, headers });
    changed();
  };
  const take = async (one: Alias) => {
    const headers = { "If-Match": await etagOf(name, one) };
    await remove("/v1/models/{name}/aliases/{alias}", { path: { name, alias: one.alias }, headers });
    changed();
  };
  return (
    <Section title="Aliases">
      <p class="muted small">A name that can be moved, such as <code>production</code>: jobs and clients write <code>{name}@production</code>.</p>
      {aliases.error && <Problem error={aliases.error} onRetry={aliases.reload} />}
      {error && <Problem error={error} />}
      {aliases.data && aliases.data.data.length > 0 && (
        <Table caption="Aliases">
          <thead>
            <tr>
              <th scope="col">Alias</th>
              <th scope="col">Version</th>
              <th scope="col">Was before</th>
              <th scope="col" class="num">Moved</th>
              <th scope="col"><span class="hidden">Actions</span></th>
            </tr>
          </thead>
          <tbody>
            {aliases.data.data.map((one) => (
              <tr key={one.alias}>
                <th scope="row">{one.alias}</th>
                <td><a href={to("models", name, one.version)}>@{one.version}</a></td>
                <td class="muted">{one.history.slice(0, -1).map((move) => `@${move.version}`).join(", ") || "–"}</td>
                <td class="num"><Time at={one.updated_at} /></td>
                <td class="num">
                  <Do
                    kind="link"
                    onError={setError}
                    confirm={`Remove the alias “${one.alias}”? The version stays.`}
                    work={() => take(one)}
                  >
                    Remove
                  </Do>
                </td>
              </tr>
            ))}
          </tbody>
        </Table>
      )}
      <form class="grid" onSubmit={(event) => event.preventDefault()}>
        <Field label="Alias">
          {(attributes) => <input {...attributes} value={alias} placeholder="production" onInput={(event) => setAlias(event.currentTarget.value)} />}
        </Field>
        <Field label="Version">
          {(attributes) => <input {...attributes} type="number" min={1} value={version} onInput={(event) => setVersion(event.currentTarget.value)} />}
        </Field>
        <div class="field" style={{ alignContent: "end" }}>
          <Do onError={setError} work={point} disabled={alias === "" || version === ""}>
            {aliases.data?.data.some((one) => one.alias === alias) ? "Move it here" : "Point it here"}
          </Do>
        </div>
      </form>
    </Section>
  );
}
