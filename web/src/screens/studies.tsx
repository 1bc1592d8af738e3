// Studies: many jobs that were submitted together to be compared.
import { get } from "../api/client";
import { usePages } from "../ui/loading";
import { Empty, Heading, PagedTable, Progress, SearchField, State, Time } from "../ui/parts";
import { filtered, replace, to, type Place } from "../ui/router";

export function Studies({ place }: { place: Place }) {
  const name = place.query.get("name") ?? "";
  const active = place.query.get("active");
  const pages = usePages(
    (cursor, signal) => get("/v1/studies", { query: { limit: 50, ...(cursor ? { cursor } : {}), ...(name ? { name } : {}), ...(active ? { active: active === "true" } : {}) }, signal }),
    (study) => study.id,
    [name, active],
    5,
  );
  return (
    <>
      <Heading title="Studies" aside={<a class="button primary" href="#/studies/new">New study</a>} />
      <form class="filters" role="search" aria-label="Filter studies" onSubmit={(event) => event.preventDefault()}>
        <label>
          <span>State</span>
          <select value={active ?? ""} onChange={(event) => replace(filtered(place, { active: event.currentTarget.value }))}>
            <option value="">all</option>
            <option value="true">still going</option>
            <option value="false">ended</option>
          </select>
        </label>
        <SearchField label="Name" hint="exact" value={name} onDone={(text) => replace(filtered(place, { name: text }))} />
      </form>
      <PagedTable
        pages={pages}
        caption="Studies"
        empty={
          <Empty title={name || active ? "No study fits these filters." : "No studies yet"}>
            <p>A study trains the same student by several methods and seeds, and says which difference is real. Make one here, or on the command line: <code>retort study submit study.yaml</code></p>
          </Empty>
        }
        head={
          <>
            <th scope="col">Study</th>
            <th scope="col">State</th>
            <th scope="col">Jobs</th>
            <th scope="col" class="num">Created</th>
          </>
        }
        row={(study) => (
          <tr key={study.id}>
            <td class="name"><a href={to("studies", study.id)}>{study.name}</a></td>
            <td class="state-cell">
              <State of={study.state} />
              {study.finished_at === null && <Progress value={study.progress} label={`Progress of ${study.name}`} />}
            </td>
            <td>{Object.entries(study.jobs).map(([state, jobs]) => `${jobs} ${state}`).join(", ")}</td>
            <td class="num"><Time at={study.created_at} /></td>
          </tr>
        )}
      />
    </>
  );
}
