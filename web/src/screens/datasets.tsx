// Data sets: what is in them, in numbers.
import { useState } from "preact/hooks";
import { download, get, type Json } from "../api/client";
import { bytes, count, NOTHING } from "../ui/format";
import { useLoaded, usePages } from "../ui/loading";
import { Copy, Do, Empty, Facts, Heading, Loading, More, Notes, PagedTable, Problem, SearchField, Section, State, Table, Time } from "../ui/parts";
import { filtered, replace, to, type Place } from "../ui/router";
import { Samples } from "./samples";
import { Classes, inputOf, Rejected } from "./version";

export function Datasets({ place }: { place: Place }) {
  const prefix = place.query.get("prefix") ?? "";
  const pages = usePages(
    (cursor, signal) => get("/v1/datasets", { query: { limit: 50, ...(cursor ? { cursor } : {}), ...(prefix ? { prefix } : {}) }, signal }),
    (dataset) => dataset.name,
    [prefix],
    10,
  );
  return (
    <>
      <Heading title="Data sets" aside={<a class="button primary" href="#/upload?purpose=dataset">Upload a data set</a>} />
      <form class="filters" role="search" aria-label="Filter data sets" onSubmit={(event) => event.preventDefault()}>
        <SearchField label="Name" hint="begins with" value={prefix} onDone={(text) => replace(filtered(place, { prefix: text }))} />
      </form>
      <PagedTable
        pages={pages}
        caption="Data sets"
        empty={
          <Empty title={prefix ? "No data set's name begins like that." : "No data sets"}>
            {!prefix && <p>Upload images as an archive: one folder for each class, or COCO, VOC, masks, arrays.</p>}
          </Empty>
        }
        head={
          <>
            <th scope="col">Data set</th>
            <th scope="col">Newest version</th>
            <th scope="col" class="num">Size</th>
            <th scope="col" class="num">Created</th>
          </>
        }
        row={(dataset) => (
          <tr key={dataset.name}>
            <td class="name">
              <a href={to("datasets", dataset.name)}>{dataset.name}</a>
              {dataset.card && <span class="small faint"> {dataset.card.split("\n")[0]?.slice(0, 80)}</span>}
            </td>
            <td>{dataset.latest_version === null ? <span class="faint">none that is ready</span> : <a href={to("datasets", dataset.name, dataset.latest_version)}>@{dataset.latest_version}</a>}</td>
            <td class="num">{dataset.size_bytes > 0 ? bytes(dataset.size_bytes) : "built in"}</td>
            <td class="num"><Time at={dataset.created_at} /></td>
          </tr>
        )}
      />
    </>
  );
}

/** A data set: the version of the address, or the newest, beside a list of all. */
export function Dataset({ place }: { place: Place }) {
  const name = place.parts[1] ?? "";
  const pages = usePages(
    (cursor, signal) => get("/v1/datasets/{name}/versions", { path: { name }, query: { limit: 50, ...(cursor ? { cursor } : {}) }, signal }),
    (version) => String(version.version),
    [name],
    5,
  );
  const wanted = place.parts[2] === undefined ? pages.rows?.[0]?.version : Number(place.parts[2]);
  return (
    <>
      <Heading title={wanted === undefined ? name : `${name}@${wanted}`} aside={<a class="button" href={`#/upload?purpose=dataset&name=${encodeURIComponent(name)}`}>Upload a version</a>}>
        <a href="#/datasets">Data sets</a>
      </Heading>
      {pages.error && <Problem error={pages.error} onRetry={pages.reload} />}
      {pages.rows === undefined && !pages.error && <Loading />}
      {pages.rows?.length === 0 && <Empty title="No versions yet" />}
      {wanted !== undefined && <Version key={wanted} name={name} version={wanted} />}
      {pages.rows !== undefined && pages.rows.length > 1 && (
        <Section title="Versions">
          <Table caption="Versions">
            <thead>
              <tr>
                <th scope="col">Version</th>
                <th scope="col">State</th>
                <th scope="col">Format</th>
                <th scope="col" class="num">Images</th>
                <th scope="col" class="num">Created</th>
              </tr>
            </thead>
            <tbody>
              {pages.rows.map((one) => (
                <tr key={one.version}>
                  <td class="name"><a href={to("datasets", name, one.version)}>@{one.version}</a></td>
                  <td><State of={one.state} /></td>
                  <td>{one.format}</td>
                  <td class="num">{count(Object.values(one.splits).reduce((sum, images) => sum + images, 0))}</td>
                  <td class="num"><Time at={one.created_at} /></td>
                </tr>
              ))}
            </tbody>
          </Table>
          <More pages={pages} />
        </Section>
      )}
    </>
  );
}

function Version({ name, version }: { name: string; version: number }) {
  const [error, setError] = useState<Error | undefined>(undefined);
  const [isPending, setPending] = useState(false);
  const loaded = useLoaded(
    async (signal) => {
      const it = await get("/v1/datasets/{name}/versions/{version}", { path: { name, version }, signal });
      setPending(it.state === "pending");
      return it;
    },
    [name, version],
    isPending ? 1 : null,
  );
  const it = loaded.data;
  if (loaded.error && it === undefined) return <Problem error={loaded.error} onRetry={loaded.reload} />;
  if (it === undefined) return <Loading rows={8} />;
  const most = Math.max(1, ...Object.values(it.splits));
  const archive = it.archive;
  return (
    <>
      {error && <Problem error={error} />}
      {it.rejection && <Rejected rejection={it.rejection as Json & { code: string; message: string }} />}
      {it.state === "pending" && <p class="notice" role="status">A worker is unpacking and checking the pictures.</p>}
      <Notes title="What was converted, left out or chosen when the pictures were stored" lines={it.notes ?? []} />
      <div class="columns">
        <Section title="Images" aside={<State of={it.state} />}>
          {Object.keys(it.splits).length === 0 && <p class="muted">Counted once it was inspected.</p>}
          <div class="splits">
            {Object.entries(it.splits).map(([split, images]) => (
              <div key={split}>
                <span>{split}</span>
                <progress class="progress" max={most} value={images} aria-label={`${images} images in ${split}`} />
                <span class="num">{count(images)}</span>
              </div>
            ))}
          </div>
          {it.labelled && <p class="small muted">With a label: {Object.entries(it.labelled).map(([split, images]) => `${count(images)} in ${split}`).join(", ")}.</p>}
          {it.classes_count > 0 && !it.boxes && <Classes names={it.classes} total={it.classes_count} />}
        </Section>
        <Section title="What it is">
          <Facts
            facts={[
              ["Format", it.format],
              ["Task", it.task],
              ["Images of", it.input ? inputOf(it.input) : NOTHING],
              ["Mean", it.input?.["mean"] ? <code>{JSON.stringify(it.input["mean"])}</code> : null],
              ["Deviation", it.input?.["std"] ? <code>{JSON.stringify(it.input["std"])}</code> : null],
              ["Size", it.size_bytes > 0 ? bytes(it.size_bytes) : it.source ? "not stored" : "built in"],
              [
                "Files at",
                it.source && (
                  <>
                    <code>{it.source.url}</code>
                    {it.source.files !== null && ` ${count(it.source.files)} files, ${bytes(it.source.size_bytes ?? 0)}`}
                  </>
                ),
              ],
              ["Digest", it.digest ? <Copy text={it.digest} label="the digest" /> : null],
              ["Made by", it.job ? <a href={to("jobs", it.job)}>{it.job}</a> : null],
              ["Created", <Time at={it.created_at} />],
              [
                "Archive",
                archive && (
                  <Do kind="link" onError={setError} work={() => download(archive.url, archive.filename)}>
                    {archive.filename} ({bytes(archive.size_bytes)})
                  </Do>
                ),
              ],
            ]}
          />
        </Section>
      </div>
      {it.state === "ready" && <Samples name={name} version={version} classes={it.classes} />}
      {it.boxes && <Boxes classes={it.classes} boxes={it.boxes} />}
      {it.card && (
        <Section title="Card">
          <pre class="code" tabIndex={0} style={{ whiteSpace: "pre-wrap" }}>{it.card}</pre>
        </Section>
      )}
    </>
  );
}

function Boxes({ classes, boxes }: { classes: string[]; boxes: Record<string, number[]> }) {
  const splits = Object.keys(boxes);
  return (
    <Section title="Boxes of each class">
      <Table caption="Boxes of each class">
        <thead>
          <tr>
            <th scope="col">Class</th>
            {splits.map((split) => (
              <th key={split} scope="col" class="num">{split}</th>
            ))}
          </tr>
        </thead>
        <tbody>
          {classes.map((name, index) => (
            <tr key={name}>
              <th scope="row">{name}</th>
              {splits.map((split) => (
                <td key={split} class="num">{count(boxes[split]?.[index])}</td>
              ))}
            </tr>
          ))}
        </tbody>
      </Table>
    </Section>
  );
}
