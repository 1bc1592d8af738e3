// How a federation goes: accuracy by rounds and by bytes, entropy of targets, who has what.
import { useMemo } from "preact/hooks";
import { bytes as fetchBytes, get, type Schemas } from "../api/client";
import { bytes, count, percent } from "../ui/format";
import { useLoaded } from "../ui/loading";
import { Empty, Loading, Problem, Section, Table } from "../ui/parts";
import { Lines, type Axis, type LineLook } from "./lines";
import type { Series } from "./series";

/** What `report/federation.json` of a job has, of which this shows a part. */
interface Evidence {
  classes: string[];
  images_by_client_and_class: Record<string, number[]>;
  test_accuracy_by_client: Record<string, number>;
}

const EVIDENCE = /(^|\/)federation\.json$/;
const UP = "federation/bytes_up";
const DOWN = "federation/bytes_down";
const ROUNDS: Axis = { name: "round", text: (value) => (Number.isInteger(value) ? count(value) : "") };
const BYTES: Axis = { name: "byte", text: bytes };
// Of more, those with the most images; the report has all of them.
const MOST_CLIENTS = 60;

const ACCURACIES: Record<string, LineLook> = {
  "validation/accuracy": { label: "delivered model", colour: 0 },
  "federation/client_accuracy_mean": { label: "mean of the clients", colour: 1 },
  "federation/client_accuracy_max": { label: "best client", colour: 1, isDashed: true },
  "federation/client_accuracy_min": { label: "worst client", colour: 1, isDashed: true },
  "federation/client_accuracy_before": { label: "mean before they adapt", colour: 3, isDashed: true },
  "federation/ensemble_accuracy": { label: "all clients together", colour: 2 },
};
const ENTROPIES: Record<string, LineLook> = {
  "federation/mean_entropy": { label: "mean of the clients", colour: 1, isDashed: true },
  "federation/target_entropy": { label: "targets", colour: 0 },
};

function look(of: Record<string, LineLook>): (key: string) => LineLook {
  return (key) => of[key] ?? { label: key, colour: 4 };
}

/** Return the series of these names, in this order. */
function chosen(series: Series[], of: Record<string, LineLook>): Series[] {
  return Object.keys(of).flatMap((key) => series.filter((one) => one.key === key));
}

/** Return series over the bytes that all clients had sent and received by then. */
export function byBytes(series: Series[]): Series[] {
  const total = new Map<number, number>();
  for (const one of series) {
    if (one.key !== UP && one.key !== DOWN) continue;
    for (const point of one.points) total.set(point.step, (total.get(point.step) ?? 0) + (point.value ?? 0));
  }
  return series.map((one) => ({
    key: one.key,
    points: one.points.flatMap((point) => {
      const travelled = total.get(point.step);
      return travelled === undefined ? [] : [{ ...point, step: travelled }];
    }),
  }));
}

/** The keys of a job's metrics that are drawn. */
export const FEDERATION_KEYS = [...Object.keys(ACCURACIES), ...Object.keys(ENTROPIES), UP, DOWN];

interface FederationChartsProps {
  job: Schemas["JobRead"];
  /** Of the job; one step is one round. */
  series: Series[] | undefined;
  /** How good clients say that they are, which is shown where no report tells it. */
  told?: Record<string, number>;
}

/** What the report on a federated job shows, from its numbers, and while it runs. */
export function FederationCharts({ job, series, told = {} }: FederationChartsProps) {
  const evidence = useLoaded(async (signal) => (job.links.report ? await evidenceOf(job.id, signal) : null), [job.id, job.links.report]);
  const rounds = useMemo(() => chosen(series ?? [], ACCURACIES), [series]);
  const travelled = useMemo(() => chosen(byBytes(series ?? []), ACCURACIES).filter((one) => one.points.length > 0), [series]);
  const entropies = useMemo(() => chosen(series ?? [], ENTROPIES), [series]);
  const scores = evidence.data ? evidence.data.test_accuracy_by_client : told;
  return (
    <>
      <Section title="Accuracy and what it costs">
        {series === undefined ? (
          <Loading rows={4} />
        ) : rounds.length === 0 ? (
          <Empty title={job.finished_at ? "No round was made." : "Curves begin with the first round."} />
        ) : (
          <div class="charts">
            <Lines title="Accuracy on the validation split, by rounds" series={rounds} look={look(ACCURACIES)} isShare over={ROUNDS} />
            {travelled.length > 0 && <Lines title="By what all clients sent and received" series={travelled} look={look(ACCURACIES)} isShare over={BYTES} />}
            {entropies.length > 0 && <Lines title="Entropy of what the server sends back, in nats" series={entropies} look={look(ENTROPIES)} over={ROUNDS} />}
          </div>
        )}
        {entropies.length > 0 && <p class="hint">0 nats is one class for certain. Where the targets lie above the clients’ mean, the aggregation has flattened them.</p>}
      </Section>
      {evidence.error && <Problem error={evidence.error} onRetry={evidence.reload} />}
      {Object.keys(scores).length > 0 && <Bars scores={scores} counts={evidence.data?.images_by_client_and_class ?? {}} isTold={!evidence.data} />}
      {evidence.data && Object.keys(evidence.data.images_by_client_and_class).length > 0 && <Partition evidence={evidence.data} />}
    </>
  );
}

/** Return the numbers of the report on a federation, or null where a job's report has none. */
async function evidenceOf(job: string, signal: AbortSignal): Promise<Evidence | null> {
  const report = await get("/v1/jobs/{job_id}/report", { path: { job_id: job }, signal });
  const file = report.data.find((one) => EVIDENCE.test(one.path));
  if (file === undefined) return null;
  return JSON.parse(await (await fetchBytes(file.url, signal)).text()) as Evidence;
}

/** Return the names with the largest values first, at most so many. */
function largest(values: Record<string, number>): string[] {
  return Object.keys(values)
    .sort((a, b) => (values[b] ?? 0) - (values[a] ?? 0) || a.localeCompare(b))
    .slice(0, MOST_CLIENTS);
}

function total(counts: number[] | undefined): number | null {
  return counts === undefined ? null : counts.reduce((sum, one) => sum + one, 0);
}

function Bars({ scores, counts, isTold }: { scores: Record<string, number>; counts: Record<string, number[]>; isTold: boolean }) {
  const names = largest(scores);
  const all = Object.values(scores);
  const mean = all.reduce((sum, one) => sum + one, 0) / all.length;
  return (
    <Section title="Each client’s own model" aside={<span class="small muted">{percent(mean)} on average</span>}>
      <div class="splits bars">
        {names.map((name) => (
          <div key={name}>
            <span>{name}</span>
            <progress class="progress" max={1} value={scores[name] ?? 0} aria-label={`Accuracy of ${name}`} />
            <span class="num">
              {percent(scores[name])}
              {counts[name] && <span class="small faint"> of {count(total(counts[name]))} images</span>}
            </span>
          </div>
        ))}
      </div>
      <p class="hint">
        {isTold ? "As each client says, on validation images of its own." : "On the same test split, after the last round."}
        {names.length < all.length && ` The best ${names.length} of ${all.length} are shown.`}
      </p>
    </Section>
  );
}

function Partition({ evidence }: { evidence: Evidence }) {
  const counts = evidence.images_by_client_and_class;
  const sizes = Object.fromEntries(Object.entries(counts).map(([name, some]) => [name, total(some) ?? 0]));
  const names = largest(sizes).sort((a, b) => a.localeCompare(b));
  const most = Math.max(1, ...names.flatMap((name) => counts[name] ?? []));
  const all = Object.keys(counts).length;
  return (
    <Section title="Images by client and class">
      <Table caption="Images by client and class">
        <thead>
          <tr>
            <th scope="col">Client</th>
            {evidence.classes.map((name) => (
              <th key={name} scope="col" class="num">{name}</th>
            ))}
            <th scope="col" class="num">All</th>
          </tr>
        </thead>
        <tbody class="heat">
          {names.map((name) => (
            <tr key={name}>
              <th scope="row">{name}</th>
              {(counts[name] ?? []).map((images, index) => (
                <td key={index} class={`num h${Math.ceil((8 * images) / most)}`}>{images === 0 ? "" : count(images)}</td>
              ))}
              <td class="num">{count(sizes[name])}</td>
            </tr>
          ))}
        </tbody>
      </Table>
      <p class="hint">
        A row with few dark cells is a client that has few classes; a column without any is a class that nobody can learn.
        {names.length < all && ` The ${names.length} clients with the most images are shown, of ${all}.`}
      </p>
    </Section>
  );
}
