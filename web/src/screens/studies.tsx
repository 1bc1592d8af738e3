// Studies: many jobs that were submitted together to be compared.
import { get } from "../api/client";
import { usePages } from "../ui/loading";
import { Empty, Heading, Loading, More, Problem, Progress, State, Table, Time } from "../ui/parts";
import { filtered, replace, to, type Place } from "../ui/router";
import { Typed } from "./jobs";

export function Studies({ place }: { place: Place }) {
  const name = place.query.get("name") ?? "";
  const active = place.query.get("active");
  const pages = usePages(
    (cursor, signal) => get("/v1/studies", { query: { limit: 50, ...(cursor ? { cursor } : {}), ...(name ? { name } : {}), ...(active ? { active: active === "true" } : {}) }, signal }),
    (study) => study.id,
    [name, active],
    5,
  );
  const { rows } = pages;
  return (
    <>
      <Heading title="Studies" />
      <form class="filters" role="search" aria-label="Filter studies" onSubmit={(event) => event.preventDefault()}>
        <label>
          <span>State</span>
          <select value={active ?? ""} onChange={(event) => replace(filtered(place, { active: event.currentTarget.value }))}>
            <option value="">all</option>
            <option value="true">still going</option>
            <option value="false">ended</option>
          </select>
        </label>
        <Typed label="Name" hint="exact" value={name} onDone={(text) => replace(filtered(place, { name: text }))} />
      </form>
      {pages.error && <Problem error={pages.error} onRetry={pages.reload} />}
      {rows === undefined && !pages.error && <Loading />}
      {rows?.length === 0 && (
        <Empty title={name || active ? "No study fits these filters." : "No studies yet"}>
          <p>A study trains the same student by several methods and seeds, and says which difference is real. Submit one on the command line: <code>retort study submit study.yaml</code></p>
        </Empty>
      )}
      {rows !== undefined && rows.length > 0 && (
        <>
          <Table caption="Studies">
            <thead>
              <tr>
                <th scope="col">Study</th>
                <th scope="col">State</th>
                <th scope="col">Jobs</th>
                <th scope="col" class="num">Created</th>
              </tr>
            </thead>
            <tbody>
              {rows.map((study) => (
                <tr key={study.id}>
                  <td class="name"><a href={to("studies", study.id)}>{study.name}</a></td>
                  <td class="state-cell">
                    <State of={study.state} />
                    {study.finished_at === null && <Progress value={study.progress} label={`Progress of ${study.name}`} />}
                  </td>
                  <td>{Object.entries(study.jobs).map(([state, jobs]) => `${jobs} ${state}`).join(", ")}</td>
                  <td class="num"><Time at={study.created_at} /></td>
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
