// The processes that run jobs, inspect uploads, and sweep.
import { get } from "../api/client";
import { bytes } from "../ui/format";
import { usePages } from "../ui/loading";
import { Empty, Heading, Loading, More, Problem, State, Table, Time } from "../ui/parts";
import { to } from "../ui/router";

export function Workers() {
  const pages = usePages(
    (cursor, signal) => get("/v1/workers", { query: { limit: 50, ...(cursor ? { cursor } : {}) }, signal }),
    (worker) => worker.id,
    [],
    5,
  );
  const { rows } = pages;
  return (
    <>
      <Heading title="Workers">Seen within a day</Heading>
      {pages.error && <Problem error={pages.error} onRetry={pages.reload} />}
      {rows === undefined && !pages.error && <Loading />}
      {rows?.length === 0 && (
        <Empty title="No worker was seen within a day">
          <p>Jobs wait until one runs: start one with <code>python -m workers --queues any,cpu</code>, or the whole service with <code>retort up</code>.</p>
        </Empty>
      )}
      {rows !== undefined && rows.length > 0 && (
        <>
          <Table caption="Workers">
            <thead>
              <tr>
                <th scope="col">Worker</th>
                <th scope="col">State</th>
                <th scope="col">Queues</th>
                <th scope="col">Device</th>
                <th scope="col" class="num wide">Memory</th>
                <th scope="col">Job</th>
                <th scope="col" class="num wide">Started</th>
                <th scope="col" class="num">Last seen</th>
              </tr>
            </thead>
            <tbody>
              {rows.map((worker) => (
                <tr key={worker.id}>
                  <td>
                    <b>{worker.name}</b>
                    <Isolation of={worker.isolation ?? null} />
                  </td>
                  <td>
                    <State of={worker.state} />
                    {worker.fault && (
                      <p class="fault">
                        {worker.fault.message} Tried again <Time at={worker.fault.retry_at} />.
                      </p>
                    )}
                  </td>
                  <td>{worker.queues.join(", ")}</td>
                  <td>{worker.device ?? "–"}</td>
                  <td class="num wide">{bytes(worker.memory_bytes)}</td>
                  <td>{worker.job_id ? <a href={to("jobs", worker.job_id)}>its job</a> : <span class="faint">none of yours</span>}</td>
                  <td class="num wide"><Time at={worker.started_at} /></td>
                  <td class="num"><Time at={worker.last_seen_at} /></td>
                </tr>
              ))}
            </tbody>
          </Table>
          <More pages={pages} />
        </>
      )}
    </>
  );
}

function Isolation({ of }: { of: Record<string, { is_active: boolean; detail: string }> | null }) {
  if (of === null) return <p class="small faint">isolation is not known</p>;
  const measures = Object.entries(of);
  const active = measures.filter(([, one]) => one.is_active).length;
  return (
    <details>
      <summary class="small">
        isolation: {active} of {measures.length}
      </summary>
      <ul class="small">
        {measures.map(([name, one]) => (
          <li key={name}>
            <b>{name}</b> {one.is_active ? "" : "(not active) "}
            <span class="muted">{one.detail}</span>
          </li>
        ))}
      </ul>
    </details>
  );
}
