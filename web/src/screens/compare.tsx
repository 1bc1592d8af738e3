// Some jobs side by side: their scores, and their curves in one picture.
import { useMemo, useState } from "preact/hooks";
import { get, type Json, type Schemas } from "../api/client";
import { Lines } from "../charts/lines";
import { seriesOfJob, type Series } from "../charts/series";
import { between, count, duration, isShare, metric, number, spoken } from "../ui/format";
import { useLoaded } from "../ui/loading";
import { Empty, Heading, Loading, Notes, Problem, Section, State, Table } from "../ui/parts";
import { to, type Place } from "../ui/router";
import { isFinal, methodOf } from "./jobs";
import { scoreNames } from "./job";

interface Compared {
  job: Schemas["JobRead"];
  series: Series[];
  /** Why there are no curves of it. */
  gone: string | null;
}

export function Compare({ place }: { place: Place }) {
  const ids = (place.query.get("jobs") ?? "").split(",").filter(Boolean);
  const [isGoing, setGoing] = useState(true);
  const jobs = useLoaded(
    async (signal) => {
      const compared = await Promise.all(
        ids.map(async (id): Promise<Compared> => {
          const [job, curves] = await Promise.all([get("/v1/jobs/{job_id}", { path: { job_id: id }, signal }), seriesOfJob(id, { max_points: 500 }, signal)]);
          return { job, ...curves };
        }),
      );
      setGoing(compared.some(({ job }) => !isFinal(job.state)));
      return compared;
    },
    [ids],
    isGoing ? 5 : null,
  );
  if (ids.length < 2) {
    return (
      <>
        <Heading title="Compare" />
        <Empty title="Choose two jobs or more">
          <p>
            Tick them in the <a href="#/jobs">list of jobs</a>, then press Compare.
          </p>
        </Empty>
      </>
    );
  }
  return (
    <>
      <Heading title={`${ids.length} jobs compared`} />
      {jobs.error && <Problem error={jobs.error} onRetry={jobs.reload} />}
      {jobs.isLoading && <Loading rows={8} />}
      {jobs.data && <Side compared={jobs.data} />}
    </>
  );
}

function Side({ compared }: { compared: Compared[] }) {
  const keys = useMemo(
    () => [...new Set(compared.flatMap((one) => one.series.map((series) => series.key)))].filter((key) => !key.startsWith("baseline/")).sort(),
    [compared],
  );
  const first = keys.find((key) => /^validation\/(accuracy|miou|ap|knn)$/.test(key)) ?? keys[0] ?? "";
  const [chosen, setChosen] = useState<string | null>(null);
  const key = chosen !== null && keys.includes(chosen) ? chosen : first;
  const curves = useMemo(
    () =>
      compared.flatMap(({ job, series }) => {
        const found = series.find((one) => one.key === key);
        return found ? [{ key: job.id, points: found.points }] : [];
      }),
    [compared, key],
  );
  const names = new Map(compared.map(({ job }) => [job.id, job.name]));
  const places = new Map(compared.map(({ job }, index) => [job.id, index]));
  const scores = compared.map(({ job }) => ((job.result?.scores ?? {}) as Record<string, Json | null>)["student"] ?? {});
  const rows: [string, (one: Compared, index: number) => string][] = [
    ["method", ({ job }) => methodOf(job)],
    ["teacher", ({ job }) => String(job.spec["teacher"] ?? "–")],
    ["student", ({ job }) => String((job.spec["student"] as Json | undefined)?.["network"] ?? "")],
    ["seed", ({ job }) => number((job.spec["training"] as Json | undefined)?.["seed"])],
    ...scoreNames(scores).map(
      (name): [string, (one: Compared, index: number) => string] => [spoken(name), (_, index) => metric(name, scores[index]?.[name])],
    ),
    ["parameters", ({ job }) => count(job.result?.parameters?.["student"])],
    ["latency", ({ job }) => (job.result?.latency_ms?.["student"] ? `${number(job.result.latency_ms["student"])} ms` : "–")],
    ["time", ({ job }) => duration(between(job.started_at, job.finished_at))],
  ];
  return (
    <>
      <Section title="Scores on the test split">
        <Table caption="Scores of the students on the test split">
          <thead>
            <tr>
              <th scope="col">Student</th>
              {compared.map(({ job }, index) => (
                <th key={job.id} scope="col" class="num">
                  <i class={`swatch c${(index % 8) + 1}`} />
                  <a href={to("jobs", job.id)}>{job.name}</a>
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            <tr>
              <th scope="row">state</th>
              {compared.map(({ job }) => (
                <td key={job.id} class="num"><State of={job.state} /></td>
              ))}
            </tr>
            {rows.map(([name, value]) => (
              <tr key={name}>
                <th scope="row">{name}</th>
                {compared.map((one, index) => (
                  <td key={one.job.id} class="num">{value(one, index)}</td>
                ))}
              </tr>
            ))}
          </tbody>
        </Table>
      </Section>
      <Section
        title="Curves"
        aside={
          keys.length > 0 && (
            <label class="check">
              of
              <select value={key} onChange={(event) => setChosen(event.currentTarget.value)}>
                {keys.map((one) => (
                  <option key={one}>{one}</option>
                ))}
              </select>
            </label>
          )
        }
      >
        <Notes title="Without curves" lines={compared.flatMap(({ job, gone }) => (gone === null ? [] : [`${job.name}: ${gone}`]))} />
        {curves.length === 0 ? (
          <Empty title="Nothing has been measured yet." />
        ) : (
          <Lines title={key} series={curves} isShare={isShare(key)} look={(id) => ({ label: names.get(id) ?? id, colour: places.get(id) ?? 0 })} />
        )}
      </Section>
    </>
  );
}
