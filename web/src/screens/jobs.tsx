// All jobs of the project, newest first, as they are now.
import { useState } from "preact/hooks";
import { get, type Schemas } from "../api/client";
import { between, duration, metric } from "../ui/format";
import { usePages } from "../ui/loading";
import { Empty, Heading, PagedTable, Progress, SearchField, State, Time } from "../ui/parts";
import { filtered, replace, to, type Place } from "../ui/router";

type Job = Schemas["JobRead"];

export const STATES: Schemas["State"][] = [
  "validating", "queued", "starting", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled",
];
const PAGE = 50;
const MOST_COMPARED = 6;

export function methodOf(job: Job): string {
  return String((job.spec["method"] as { name?: string } | undefined)?.name ?? "");
}

export function isFinal(state: string): boolean {
  return ["succeeded", "failed", "cancelled"].includes(state);
}

/** Return the metric that decides, by its name and value on the test split or the latest one. */
export function headline(job: Job): [string, number] | null {
  for (const name of ["accuracy", "miou", "ap", "knn"]) {
    const score = job.result?.scores?.["student"]?.[name];
    if (typeof score === "number" && (name !== "accuracy" || job.spec["task"] !== "segmentation")) return [name, score];
    const latest = job.metrics[`validation/${name}`];
    if (job.result === null && typeof latest === "number") return [`validation ${name}`, latest];
  }
  return null;
}

export function Jobs({ place }: { place: Place }) {
  const states = place.query.getAll("state") as Schemas["State"][];
  const method = place.query.get("method") ?? "";
  const name = place.query.get("name") ?? "";
  const study = place.query.get("study") ?? "";
  const label = place.query.get("label") ?? "";
  const [key = "", value = ""] = label.split("=");
  const pages = usePages(
    (cursor, signal) =>
      get("/v1/jobs", {
        query: { limit: PAGE, ...(cursor ? { cursor } : {}), state: states, method: method || null, name: name || null, study: study || null },
        more: key && value ? { [`label.${key}`]: value } : {},
        signal,
      }),
    (job) => job.id,
    [states, method, name, study, label],
    3,
  );
  const [chosen, setChosen] = useState<string[]>([]);
  const choose = (id: string, isOn: boolean) =>
    setChosen((last) => (isOn ? [...last, id].slice(-MOST_COMPARED) : last.filter((one) => one !== id)));
  const hasFilter = states.length > 0 || method !== "" || name !== "" || study !== "" || label !== "";
  return (
    <>
      <Heading
        title="Jobs"
        aside={
          <>
            {chosen.length > 1 && (
              <a class="button" href={`#/compare?jobs=${chosen.join(",")}`}>
                Compare {chosen.length}
              </a>
            )}
            <a class="button primary" href="#/submit">
              New job
            </a>
          </>
        }
      />
      <Filters place={place} states={states} />
      {study !== "" && (
        <p class="small">
          Of the study <a href={to("studies", study)}>{study}</a>. <a href={filtered(place, { study: null })}>Show all</a>
        </p>
      )}
      <PagedTable
        pages={pages}
        caption="Jobs"
        many
        empty={
          hasFilter ? (
          <Empty title="No job fits these filters.">
            <a class="button" href={to("jobs")}>
              Clear the filters
            </a>
          </Empty>
        ) : (
          <Empty title="No jobs yet">
            <p>A job trains a small network, the student, under the eyes of a large one, its teacher.</p>
            <a class="button primary" href="#/submit">
              Submit the first
            </a>{" "}
            <a class="button" href="#/upload">
              Upload a teacher
            </a>
          </Empty>
          )
        }
        head={
          <>
            <th scope="col" class="tick">
              <span class="hidden">Compare</span>
            </th>
            <th scope="col">Job</th>
            <th scope="col">State</th>
            <th scope="col" class="mid">Method</th>
            <th scope="col" class="wide">Student</th>
            <th scope="col" class="num">Score</th>
            <th scope="col" class="num wide">Time</th>
            <th scope="col" class="num">Created</th>
          </>
        }
        row={(job) => (
          <Row key={job.id} job={job} isChosen={chosen.includes(job.id)} onChoose={(isOn) => choose(job.id, isOn)} />
        )}
      />
    </>
  );
}

function Row({ job, isChosen, onChoose }: { job: Job; isChosen: boolean; onChoose: (isOn: boolean) => void }) {
  const score = headline(job);
  const student = job.spec["student"] as { network?: string } | undefined;
  return (
    <tr>
      <td class="tick">
        <input
          type="checkbox"
          checked={isChosen}
          aria-label={`Compare ${job.name}`}
          onChange={(event) => onChoose(event.currentTarget.checked)}
        />
      </td>
      <td class="name">
        <a href={to("jobs", job.id)}>{job.name}</a>
      </td>
      <td class="state-cell">
        <State of={job.state} />
        {!isFinal(job.state) && job.progress > 0 && <Progress value={job.progress} label={`Progress of ${job.name}`} />}
        {job.state === "failed" && job.failure && <span class="small faint">{job.failure.code}</span>}
      </td>
      <td class="mid">{methodOf(job)}</td>
      <td class="wide faint">{student?.network ?? ""}</td>
      <td class="num" title={score?.[0]}>
        {score ? metric(score[0].replace("validation ", ""), score[1]) : "–"}
      </td>
      <td class="num wide">{duration(between(job.started_at, job.finished_at))}</td>
      <td class="num">
        <Time at={job.created_at} />
      </td>
    </tr>
  );
}

function Filters({ place, states }: { place: Place; states: string[] }) {
  const set = (changes: Record<string, string | null>) => replace(filtered(place, changes));
  return (
    <form class="filters" role="search" aria-label="Filter jobs" onSubmit={(event) => event.preventDefault()}>
      <label>
        <span>State</span>
        <select value={states[0] ?? ""} onChange={(event) => set({ state: event.currentTarget.value })}>
          <option value="">all</option>
          {STATES.map((state) => (
            <option key={state} value={state}>
              {state}
            </option>
          ))}
        </select>
      </label>
      <SearchField label="Name" hint="exact" value={place.query.get("name") ?? ""} onDone={(name) => set({ name })} />
      <SearchField label="Method" hint="such as dkd" value={place.query.get("method") ?? ""} onDone={(method) => set({ method })} />
      <SearchField label="Label" hint="key=value" value={place.query.get("label") ?? ""} onDone={(label) => set({ label })} />
    </form>
  );
}
