// The processes that run jobs, inspect uploads, and sweep.
import { get } from "../api/client";
import { bytes } from "../ui/format";
import { usePages } from "../ui/loading";
import { Empty, Heading, PagedTable, State, Time } from "../ui/parts";
import { to } from "../ui/router";

export function Workers() {
  const pages = usePages(
    (cursor, signal) => get("/v1/workers", { query: { limit: 50, ...(cursor ? { cursor } : {}) }, signal }),
    (worker) => worker.id,
    [],
    5,
  );
  return (
    <>
      <Heading title="Workers">Seen within a day</Heading>
      <PagedTable
        pages={pages}
        caption="Workers"
        empty={
          <Empty title="No worker was seen within a day">
            <p>Jobs wait until one runs: start one with <code>python -m workers --queues any,cpu</code>, or the whole service with <code>retort up</code>.</p>
          </Empty>
        }
        head={
          <>
            <th scope="col">Worker</th>
            <th scope="col">State</th>
            <th scope="col">Queues</th>
            <th scope="col">Device</th>
            <th scope="col" class="num wide">Memory</th>
            <th scope="col">Jobs</th>
            <th scope="col" class="num wide">Started</th>
            <th scope="col" class="num">Last seen</th>
          </>
        }
        row={(worker) => (
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
            <td>
              {worker.device ?? "–"}
              {worker.offered_devices > 1 && <p class="small faint">{worker.offered_devices} for one job</p>}
              {worker.slots > 1 && (
                <p class="small faint">
                  {worker.slots} jobs side by side, on {worker.total_devices} devices
                </p>
              )}
            </td>
            <td class="num wide">{bytes(worker.memory_bytes)}</td>
            <td>
              {worker.job_ids.length === 0 && <span class="faint">none of yours</span>}
              {worker.job_ids.map((id, place) => (
                <span key={id}>
                  {place > 0 && ", "}
                  <a href={to("jobs", id)}>{worker.job_ids.length === 1 ? "its job" : `job ${place + 1}`}</a>
                </span>
              ))}
            </td>
            <td class="num wide"><Time at={worker.started_at} /></td>
            <td class="num"><Time at={worker.last_seen_at} /></td>
          </tr>
        )}
      />
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
