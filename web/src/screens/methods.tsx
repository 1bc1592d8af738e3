// The methods: what each needs, its paper, its hyper-parameters.
import { useState } from "preact/hooks";
import { allMethods, domain, TASKS, type MethodRead, type Schema } from "../api/catalog";
import { type Json } from "../api/client";
import { useLoaded } from "../ui/loading";
import { Empty, Facts, Heading, Loading, Problem, Section, Table, Told } from "../ui/parts";
import { to, type Place } from "../ui/router";

const FAMILIES: Record<string, string> = {
  logit: "Logits", feature: "Features", relation: "Relations", dense: "Detection and segmentation",
  datafree: "Without data", federated: "Across parties", combination: "Combinations",
};

export function Methods() {
  const methods = useLoaded(() => allMethods(), []);
  const [text, setText] = useState("");
  const [task, setTask] = useState("");
  const needle = text.trim().toLowerCase();
  const shown = methods.data?.filter(
    (one) =>
      (task === "" || one.tasks.includes(task)) &&
      (needle === "" || `${one.name} ${one.title} ${one.description} ${sourceOf(one)}`.toLowerCase().includes(needle)),
  );
  const families = [...new Set(shown?.map((one) => one.family))];
  return (
    <>
      <Heading title="Methods">{methods.data && `${methods.data.length} ways for a student to learn`}</Heading>
      <form class="filters" role="search" aria-label="Filter methods" onSubmit={(event) => event.preventDefault()}>
        <label>
          <span>Search</span>
          <input type="search" value={text} placeholder="name, idea or paper" onInput={(event) => setText(event.currentTarget.value)} />
        </label>
        <label>
          <span>Task</span>
          <select value={task} onChange={(event) => setTask(event.currentTarget.value)}>
            <option value="">all</option>
            {TASKS.map((one) => (
              <option key={one}>{one}</option>
            ))}
          </select>
        </label>
      </form>
      {methods.error && <Problem error={methods.error} onRetry={methods.reload} />}
      {methods.isLoading && <Loading rows={9} />}
      {shown?.length === 0 && <Empty title="No method fits." />}
      {families.map((family) => (
        <section key={family} aria-label={FAMILIES[family] ?? family}>
          <h2>{FAMILIES[family] ?? family}</h2>
          <div class="methods" style={{ marginTop: "10px" }}>
            {shown
              ?.filter((one) => one.family === family)
              .map((one) => (
                <a key={one.name} href={to("methods", one.name)}>
                  <code>{one.name}</code>
                  <span>{one.title}</span>
                  <span class="small muted">{sourceOf(one)}</span>
                </a>
              ))}
          </div>
        </section>
      ))}
    </>
  );
}

function sourceOf(method: MethodRead): string {
  const source = method.source as { venue?: string | null };
  return source.venue ?? "";
}

export function Method({ place }: { place: Place }) {
  const name = place.parts[1] ?? "";
  const methods = useLoaded(() => allMethods(), []);
  if (methods.error) return <Problem error={methods.error} onRetry={methods.reload} />;
  if (methods.isLoading) return <Loading rows={8} />;
  const method = methods.data?.find((one) => one.name === name);
  if (method === undefined) {
    return (
      <>
        <Heading title="No such method" />
        <Empty title={`The catalog has no method “${name}”.`}>
          <a href="#/methods">All methods</a>
        </Empty>
      </>
    );
  }
  const source = method.source as { title?: string; venue?: string; arxiv?: string | null; equations?: string | null };
  return (
    <>
      <Heading title={method.title} aside={<a class="button primary" href={`#/submit?method=${method.name}`}>Use it</a>}>
        <code>{method.name}</code> {FAMILIES[method.family] ?? method.family}
      </Heading>
      <p class="prose"><Told text={method.description} /></p>
      <div class="columns">
        <Section title="What it needs">
          <Facts
            facts={[
              ["A job must have", method.needs.join(", ") || "nothing more"],
              ["Tasks", method.tasks.join(", ")],
              ["Of the teacher", method.teacher_shows.join(", ").replaceAll("_", " ") || "logits"],
              ["Of the student", method.student_shows.join(", ").replaceAll("_", " ") || "logits"],
              ["Batch size", method.smallest_batch > 1 ? `${method.smallest_batch} or more` : "any"],
              ["Several devices", method.across_devices === "one" ? "no" : "yes"],
              ["Mixed images", method.accepts_mixed ? "accepted" : "refused"],
              ["In combinations", method.combines ? "yes" : "no"],
            ]}
          />
        </Section>
        <Section title="Source">
          <Facts
            facts={[
              ["Paper", source.title ?? "none"],
              ["Where", source.venue ?? ""],
              ["arXiv", source.arxiv ? <a href={`https://arxiv.org/abs/${source.arxiv}`} rel="noreferrer noopener" target="_blank">{source.arxiv}</a> : null],
              ["Equations", source.equations ?? ""],
            ]}
          />
          {method.differs && (
            <>
              <h3>How it differs from the paper</h3>
              <p class="prose muted small"><Told text={method.differs} /></p>
            </>
          )}
        </Section>
      </div>
      <Parameters schema={method.params_schema as Schema} />
    </>
  );
}

function Parameters({ schema }: { schema: Schema }) {
  const rows = Object.entries(schema.properties ?? {});
  if (rows.length === 0) return null;
  return (
    <Section title="Hyper-parameters">
      <Table caption="Hyper-parameters">
        <thead>
          <tr>
            <th scope="col">Name</th>
            <th scope="col">Default</th>
            <th scope="col">Values</th>
            <th scope="col">What it does</th>
          </tr>
        </thead>
        <tbody>
          {rows.map(([name, one]) => (
            <tr key={name}>
              <th scope="row"><code>{name}</code></th>
              <td><code>{shown(one.default)}</code></td>
              <td class="muted small">{one.$ref ? "its own fields" : domain(one, schema)}</td>
              <td class="muted small"><Told text={one.description ?? described(one)} /></td>
            </tr>
          ))}
        </tbody>
      </Table>
    </Section>
  );
}

function described(schema: Schema): string {
  return (schema.anyOf ?? []).map((one) => one.description ?? "").join(" ").trim();
}

function shown(value: unknown): string {
  if (value === undefined) return "required";
  if (value !== null && typeof value === "object") return Array.isArray(value) ? JSON.stringify(value) : `${Object.keys(value as Json).length} fields`;
  return String(value);
}
