// Federations whose clients are elsewhere: the list, and one with its clients and rounds, live.
import { useState } from "preact/hooks";
import { get, post, remove, type Schemas } from "../api/client";
import { FEDERATION_KEYS, FederationCharts } from "../charts/federation";
import { seriesOfJob } from "../charts/series";
import { between, bytes, count, duration, NOTHING, percent } from "../ui/format";
import { useLoaded, usePages } from "../ui/loading";
import { Copy, Do, Empty, Facts, Field, Heading, Loading, More, PagedTable, Problem, Progress, Section, State, Table, Time } from "../ui/parts";
import { to, type Place } from "../ui/router";

type FederationRead = Schemas["FederationRead"];
type Client = Schemas["FederationClientRead"];
type Round = Schemas["RoundRead"];

const MAX_POINTS = 1000;
const FINAL = ["succeeded", "failed", "cancelled"];

export function Federations() {
  const pages = usePages(
    (cursor, signal) => get("/v1/federations", { query: { limit: 50, ...(cursor ? { cursor } : {}) }, signal }),
    (federation) => federation.id,
    [],
    5,
  );
  return (
    <>
      <Heading title="Federations" />
      <PagedTable
        pages={pages}
        caption="Federations"
        empty={
          <Empty title="No federations yet">
            <p>
              A job with <code>method.federation.clients: remote</code> opens one: parties join with data of their own, and send no images. Clients that are simulated in one process are shown with their job.
            </p>
          </Empty>
        }
        head={
          <>
            <th scope="col">Federation</th>
            <th scope="col">State</th>
            <th scope="col">Method</th>
            <th scope="col" class="num">Round</th>
            <th scope="col" class="num">Joined</th>
            <th scope="col" class="num wide">Created</th>
          </>
        }
        row={(one) => (
          <tr key={one.id}>
            <td class="name">
              <a href={to("federations", one.id)}>{one.name}</a>
            </td>
            <td class="state-cell">
              <State of={one.state} />
            </td>
            <td>{one.method}</td>
            <td class="num">{one.round} of {one.rounds}</td>
            <td class="num">{one.joined} of {one.invited}</td>
            <td class="num wide"><Time at={one.created_at} /></td>
          </tr>
        )}
      />
    </>
  );
}

export function Federation({ place }: { place: Place }) {
  const id = place.parts[1] ?? "";
  const path = { federation_id: id };
  const [isGoing, setGoing] = useState(true);
  const [error, setError] = useState<Error | undefined>(undefined);
  const loaded = useLoaded(
    async (signal) => {
      const [federation, rounds] = await Promise.all([get("/v1/federations/{federation_id}", { path, signal }), get("/v1/federations/{federation_id}/rounds", { path, signal })]);
      const [job, curves] = await Promise.all([
        get("/v1/jobs/{job_id}", { path: { job_id: federation.job }, signal }),
        seriesOfJob(federation.job, { keys: FEDERATION_KEYS.join(","), max_points: MAX_POINTS }, signal),
      ]);
      setGoing(!FINAL.includes(federation.state));
      return { federation, rounds: rounds.data, job, curves };
    },
    [id],
    isGoing ? 2 : null,
  );
  const clients = usePages(
    (cursor, signal) => get("/v1/federations/{federation_id}/clients", { path, query: { limit: 100, ...(cursor ? { cursor } : {}) }, signal }),
    (client) => client.id,
    [id],
    isGoing ? 2 : null,
  );
  if (loaded.data === undefined) {
    if (!loaded.error) return <Loading rows={9} />;
    return (
      <>
        <Heading title="Federation" />
        <Problem error={loaded.error} onRetry={loaded.reload} />
      </>
    );
  }
  const { federation, rounds, job, curves } = loaded.data;
  const told = Object.fromEntries((clients.rows ?? []).flatMap((one) => (typeof one.metrics["accuracy"] === "number" ? [[one.name, one.metrics["accuracy"]]] : [])));
  const published = rounds.filter((one) => one.state === "published").length;
  return (
    <>
      <Heading title={federation.name}>
        <State of={federation.state} /> <span>{federation.method}</span> <Copy text={federation.id} label="the federation's id" />
      </Heading>
      {error && <Problem error={error} />}
      {loaded.error && <Problem error={loaded.error} onRetry={loaded.reload} />}
      {isGoing && <Progress value={federation.rounds > 0 ? published / federation.rounds : 0} label="Rounds that were published" />}
      <Facts
        facts={[
          ["Job", <a href={to("jobs", federation.job)}>{federation.job}</a>],
          ["Round", `${federation.round} of ${federation.rounds}`],
          ["Clients", `${federation.joined} of ${federation.invited} joined; a round needs ${federation.min_clients}`],
          ["A round waits", duration(federation.deadline_seconds)],
          ["The first waits", `${duration(federation.join_seconds)} for clients to join`],
          ["Reason", federation.state_message],
          ["Created", <Time at={federation.created_at} />],
        ]}
      />
      <Clients federation={federation} pages={clients} isGoing={isGoing} onError={setError} />
      {curves.gone ? <p class="notice">{curves.gone}</p> : <FederationCharts job={job} series={curves.series} told={told} />}
      <Rounds rounds={rounds} />
    </>
  );
}

interface ClientsProps {
  federation: FederationRead;
  pages: ReturnType<typeof usePages<Client>>;
  isGoing: boolean;
  onError: (error: Error | undefined) => void;
}

function Clients({ federation, pages, isGoing, onError }: ClientsProps) {
  const rows = [...(pages.rows ?? [])].sort((a, b) => a.name.localeCompare(b.name));
  const revoke = (one: Client) => remove("/v1/federations/{federation_id}/clients/{client_id}", { path: { federation_id: federation.id, client_id: one.id } }).then(pages.reload);
  return (
    <Section title="Clients">
      {pages.error && <Problem error={pages.error} onRetry={pages.reload} />}
      {pages.rows === undefined && !pages.error && <Loading rows={3} />}
      {pages.rows?.length === 0 && <Empty title="Nobody is invited yet." />}
      {rows.length > 0 && (
        <>
          <Table caption="Clients">
            <thead>
              <tr>
                <th scope="col">Client</th>
                <th scope="col">State</th>
                <th scope="col" class="num">Samples</th>
                <th scope="col" class="num">Round</th>
                <th scope="col" class="num">Sent</th>
                <th scope="col" class="num">Received</th>
                <th scope="col" class="num">Accuracy</th>
                <th scope="col" class="num">Late, refused</th>
                <th scope="col" class="num">Last seen</th>
                {isGoing && <th scope="col"><span class="hidden">Revoke</span></th>}
              </tr>
            </thead>
            <tbody>
              {rows.map((one) => (
                <tr key={one.id}>
                  <th scope="row">{one.name}</th>
                  <td><State of={one.state} /></td>
                  <td class="num">{count(one.samples)}</td>
                  <td class="num">{one.last_round ?? NOTHING}</td>
                  <td class="num">{bytes(one.bytes_up)}</td>
                  <td class="num">{bytes(one.bytes_down)}</td>
                  <td class="num">{percent(one.metrics["accuracy"])}</td>
                  <td class="num">{one.late}, {one.refused}</td>
                  <td class="num"><Time at={one.last_seen_at} /></td>
                  {isGoing && (
                    <td>
                      {one.revoked_at === null && (
                        <Do kind="link" onError={onError} confirm={`Revoke the key of “${one.name}”? Rounds no longer wait for it.`} work={() => revoke(one)}>
                          Revoke
                        </Do>
                      )}
                    </td>
                  )}
                </tr>
              ))}
            </tbody>
          </Table>
          <More pages={pages} />
        </>
      )}
      {isGoing && <Invite federation={federation} onError={onError} onDone={pages.reload} />}
    </Section>
  );
}

/** Add a client; its key is shown here and never again. */
function Invite({ federation, onError, onDone }: { federation: FederationRead; onError: (error: Error | undefined) => void; onDone: () => void }) {
  const [name, setName] = useState("");
  const [made, setMade] = useState<Schemas["ClientInvited"][]>([]);
  const invite = async () => {
    const one = await post("/v1/federations/{federation_id}/clients", { path: { federation_id: federation.id }, body: { name: name.trim() } });
    setMade((last) => [...last, one]);
    setName("");
    onDone();
  };
  const here = document.baseURI.replace(/[#?].*$/, "").replace(/\/$/, "");
  return (
    <>
      <div class="grid">
        <Field label="Invite a party" hint="Its key is shown once, and opens this federation alone.">
          {(attributes) => <input {...attributes} value={name} maxLength={96} placeholder="hospital-north" onInput={(event) => setName(event.currentTarget.value)} />}
        </Field>
        <div class="field" style={{ alignContent: "end" }}>
          <Do onError={onError} disabled={name.trim() === ""} work={invite}>
            Invite
          </Do>
        </div>
      </div>
      {made.map((one) => (
        <div key={one.id} class="notice good" role="status">
          <p class="notice-title">The key of “{one.name}” is shown only now</p>
          <p><Copy text={one.client_key} label={`the key of ${one.name}`} /></p>
          <p>It joins with:</p>
          <pre class="code" tabIndex={0}>{`RETORT_CLIENT_KEY=${one.client_key} retort client join ${federation.id} --url ${here} --data DIR`}</pre>
        </div>
      ))}
    </>
  );
}

function Rounds({ rounds }: { rounds: Round[] }) {
  return (
    <Section title="Rounds">
      {rounds.length === 0 ? (
        <p class="muted">The first is opened once enough clients have joined.</p>
      ) : (
        <Table caption="Rounds">
          <thead>
            <tr>
              <th scope="col" class="num">Round</th>
              <th scope="col">State</th>
              <th scope="col" class="num">Replies</th>
              <th scope="col" class="num">Sent</th>
              <th scope="col" class="num">Received by each</th>
              <th scope="col" class="num">Time</th>
              <th scope="col" class="num">Opened</th>
            </tr>
          </thead>
          <tbody>
            {[...rounds].reverse().map((one) => (
              <tr key={one.number}>
                <td class="num">{one.number}</td>
                <td><State of={one.state} /></td>
                <td class="num">{count(one.replies)}</td>
                <td class="num">{bytes(one.bytes_up)}</td>
                <td class="num">{one.bytes_down === null ? NOTHING : bytes(one.bytes_down)}</td>
                <td class="num">{duration(one.published_at ? between(one.opened_at, one.published_at) : null)}</td>
                <td class="num"><Time at={one.opened_at} /></td>
              </tr>
            ))}
          </tbody>
        </Table>
      )}
    </Section>
  );
}
