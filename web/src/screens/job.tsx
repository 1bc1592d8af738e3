// One job: what it does now, its curves, what it has made, and what went wrong.
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { bytes as fetchBytes, download, get, post, ProblemError, remove, type Json, type Schemas } from "../api/client";
import { follow, type Connection } from "../api/events";
import { Lines, type LineLook } from "../charts/lines";
import { extended, seriesOf, type Series } from "../charts/series";
import { between, bytes, count, duration, isShare, metric, NOTHING, number, percent, short, spoken } from "../ui/format";
import { useLoaded } from "../ui/loading";
import { Copy, Do, Empty, Facts, Heading, Loading, Notes, Problem, Progress, Section, State, Table, Time, Told } from "../ui/parts";
import { go, to, toReference, type Place } from "../ui/router";
import { asObject } from "../ui/schemaform";
import { isFinal, methodOf } from "./jobs";

type JobRead = Schemas["JobRead"];
type Event = Schemas["EventRead"];
// What streams carry is not in the OpenAPI document: 3.1 cannot describe it.
type ProgressRead = Pick<JobRead, "state" | "attempt" | "progress" | "estimated_end_at" | "metrics">;
interface LogSlice {
  attempt: number;
  lines: string[];
}

const MAX_POINTS = 1000;
const NETWORKS = ["teacher", "student", "baseline"] as const;

export function Job({ place }: { place: Place }) {
  const id = place.parts[1] ?? "";
  const live = useLive(id);
  const [error, setError] = useState<Error | undefined>(undefined);
  const { job } = live;
  if (live.problem && job === undefined) {
    return (
      <>
        <Heading title="Job" />
        <Problem error={live.problem} onRetry={live.reload} />
      </>
    );
  }
  if (job === undefined) return <Loading rows={10} />;
  const student = job.spec["student"] as { network?: string } | undefined;
  return (
    <>
      <Heading title={job.name} aside={<Actions job={job} onError={setError} onChange={live.reload} />}>
        <State of={job.state} /> <span>{methodOf(job)}</span> <Copy text={job.id} label="the job's id" />
        {!isFinal(job.state) && <Connected state={live.connection} />}
      </Heading>
      {error && <Problem error={error} />}
      {live.problem && <Problem error={live.problem} onRetry={live.reload} />}
      <Status job={job} />
      {job.failure && <Failure job={job} />}
      <Notes
        title={job.warnings.length === 1 ? "You should know" : `You should know ${job.warnings.length} things`}
        lines={job.warnings.map((warning) => warning.message)}
      />
      {job.result && <Result job={job} />}
      <Curves series={isFederated(job) ? live.series?.filter((one) => !FEDERATED.test(one.key)) : live.series} isFinal={isFinal(job.state)} error={live.metricsProblem} />
      {isFederated(job) && <Federated job={job} series={live.series} />}
      {job.result && job.links.report && <Report job={job} onError={setError} />}
      <div class="columns">
        <Section title="What it does">
          <Facts
            facts={[
              ["Teacher", <Reference kind="models" of={job.spec["teacher"]} />],
              ["Teachers", (job.spec["teachers"] as string[] | undefined)?.length ? (job.spec["teachers"] as string[]).map((one) => <Reference key={one} kind="models" of={one} />) : null],
              ["Student", student?.network ?? NOTHING],
              ["Data set", <Reference kind="datasets" of={job.spec["dataset"]} />],
              ["Task", String(job.spec["task"] ?? "")],
              ["Study", job.study ? <a href={to("studies", job.study)}>{job.study}</a> : null],
              ["Again of", job.retry_of ? <a href={to("jobs", job.retry_of)}>{job.retry_of}</a> : null],
              ["Waits for", Object.keys(job.depends_on).length > 0 ? Object.values(job.depends_on).map((one) => <a key={one} href={to("jobs", one)}>{one}</a>) : null],
              ["Attempt", `${job.attempt} of at most ${job.max_attempts}`],
              ["Priority", job.priority || null],
              ["Labels", Object.keys(job.labels).length > 0 ? Object.entries(job.labels).map(([name, value]) => <a key={name} class="tag" href={`#/jobs?label=${encodeURIComponent(`${name}=${value}`)}`}>{name}={value}</a>) : null],
            ]}
          />
          <details>
            <summary>The whole spec, as it is stored</summary>
            <pre class="code" tabIndex={0}>{JSON.stringify(job.spec, null, 2)}</pre>
          </details>
          <p>
            <a href={`#/submit?from=${job.id}`}>A new job like this one</a>, or <a href={`#/studies/new?from=${job.id}`}>a study of it</a>
          </p>
        </Section>
        <Events events={live.events} />
      </div>
      <Log job={job} />
      <Attempts job={job} />
    </>
  );
}

// What a section of its own draws, of federated jobs.
const FEDERATED = /^federation\/(client_accuracy|ensemble_accuracy|mean_entropy|target_entropy|bytes)/;
type FederationPart = typeof import("../charts/federation");

function isFederated(job: JobRead): boolean {
  return asObject(job.spec["method"])["federation"] !== undefined;
}

/** What federated jobs show beside others; its code is fetched for them alone. */
function Federated({ job, series }: { job: JobRead; series: Series[] | undefined }) {
  const [part, setPart] = useState<FederationPart | null>(null);
  const [error, setError] = useState<Error | undefined>(undefined);
  useEffect(() => {
    import("../charts/federation").then(setPart, () => setError(new Error("This part of the page could not be loaded. Load the page again.")));
  }, []);
  const remote = useLoaded((signal) => get("/v1/federations", { query: { job: job.id, limit: 1 }, signal }), [job.id]);
  const found = remote.data?.data[0];
  return (
    <>
      {found && (
        <p class="notice">
          Its clients are elsewhere: <a href={to("federations", found.id)}>{found.joined} of {found.invited} have joined the federation</a>.
        </p>
      )}
      {(error ?? remote.error) && <Problem error={error ?? (remote.error as Error)} />}
      {part && <part.FederationCharts job={job} series={series} />}
    </>
  );
}

function Reference({ kind, of }: { kind: "models" | "datasets"; of: unknown }) {
  if (of === null || of === undefined) return <>{NOTHING}</>;
  if (typeof of === "object") {
    const job = String((of as { job?: string }).job ?? "");
    return <a href={to("jobs", job)}>the student of {job}</a>;
  }
  return <a href={toReference(kind, String(of))}>{String(of)}</a>;
}

function Connected({ state }: { state: Connection }) {
  const text = { connecting: "connecting", live: "live", lost: "connection lost, trying again", ended: "" }[state];
  return (
    <span class={`connection ${state}`} role="status">
      {text}
    </span>
  );
}

interface Live {
  job: JobRead | undefined;
  events: Event[];
  series: Series[] | undefined;
  connection: Connection;
  problem: Error | undefined;
  metricsProblem: Error | undefined;
  reload: () => void;
}

/** Follow a job: its events and progress by a stream, its curves by the keys that have changed. */
function useLive(id: string): Live {
  const [round, again] = useState(0);
  const [job, setJob] = useState<JobRead | undefined>(undefined);
  const [events, setEvents] = useState<Event[]>([]);
  const [series, setSeries] = useState<Series[] | undefined>(undefined);
  const [connection, setConnection] = useState<Connection>("connecting");
  const [problem, setProblem] = useState<Error | undefined>(undefined);
  const [metricsProblem, setMetricsProblem] = useState<Error | undefined>(undefined);
  const shown = useRef<Series[]>([]);
  useEffect(() => {
    const stop = new AbortController();
    const { signal } = stop;
    const latest: Json = {};
    let timer: number | undefined;
    let isAsking = false;
    let isRefreshing = false;
    let isStale = false;
    // Points that were asked for before all were asked for are older than those.
    let timesAll = 0;
    const changed = new Set<string>();
    let known: JobRead | undefined;
    const all = async () => {
      timesAll += 1;
      try {
        const metrics = await get("/v1/jobs/{job_id}/metrics", { path: { job_id: id }, query: { max_points: MAX_POINTS }, signal });
        shown.current = seriesOf(metrics);
        setSeries(shown.current);
        setMetricsProblem(undefined);
      } catch (error) {
        if (!signal.aborted) setMetricsProblem(error as Error);
      }
    };
    /** Ask for the points of the keys that have changed, behind those that are drawn. */
    const newer = async () => {
      if (isAsking || changed.size === 0) return;
      isAsking = true;
      const asked = timesAll;
      const keys = [...changed];
      changed.clear();
      const ends = keys.map((key) => shown.current.find((one) => one.key === key)?.points.at(-1)?.step ?? 0);
      try {
        const metrics = await get("/v1/jobs/{job_id}/metrics", {
          path: { job_id: id },
          query: { keys: keys.join(","), from_step: Math.min(...ends), max_points: MAX_POINTS },
          signal,
        });
        if (asked !== timesAll) return;
        shown.current = extended(shown.current, seriesOf(metrics));
        setSeries(shown.current);
      } catch {
        // The stream shows that the connection is lost; the keys are asked for again with the next.
        for (const key of keys) changed.add(key);
      } finally {
        isAsking = false;
      }
    };
    /** Ask for the job: one answer at a time, and once more where it may have changed meanwhile. */
    const refresh = async () => {
      isStale = true;
      if (isRefreshing) return;
      isRefreshing = true;
      while (isStale && !signal.aborted) {
        isStale = false;
        try {
          const now = await get("/v1/jobs/{job_id}", { path: { job_id: id }, signal });
          if (signal.aborted) return;
          known = now;
          setJob(now);
          setProblem(undefined);
        } catch (error) {
          if (!signal.aborted) setProblem(error as Error);
        }
      }
      isRefreshing = false;
    };
    const onEvent = (kind: string, text: string) => {
      if (kind === "progress") {
        const told = JSON.parse(text) as ProgressRead;
        setJob((last) => last && { ...last, ...told });
        for (const [key, value] of Object.entries(told.metrics)) {
          if (latest[key] !== value) changed.add(key);
          latest[key] = value;
        }
        return;
      }
      const event = JSON.parse(text) as Event;
      setEvents((last) => (last.some((one) => one.sequence === event.sequence) ? last : [...last, event]));
      // A checkpoint changes nothing that progress does not tell, and there may be hundreds; what
      // has ended changes no more, and its events are those of the past.
      if (event.type !== "job.checkpoint" && known !== undefined && !isFinal(known.state)) void refresh();
    };
    void (async () => {
      setEvents([]);
      await Promise.all([refresh(), all()]);
      if (known === undefined || signal.aborted) return;
      let isRefused = false;
      const wasGoing = !isFinal(known.state);
      timer = window.setInterval(() => void newer(), 1000);
      await follow({
        path: `/v1/jobs/${encodeURIComponent(id)}/stream`,
        signal,
        onEvent: (event) => onEvent(event.event, event.data),
        onConnection: setConnection,
        isLast: (event) => /^job\.(succeeded|failed|cancelled)$/.test(event.event),
        // What is kept for a time only (410) is no error of the page: the rest is still shown.
        onProblem: (error) => {
          isRefused = true;
          if (error.problem.status !== 410) setProblem(error);
        },
      });
      clearInterval(timer);
      // The last points were written before the event that ends the job.
      if (wasGoing && !isRefused && !signal.aborted) await Promise.all([refresh(), all()]);
    })();
    return () => {
      stop.abort();
      clearInterval(timer);
    };
  }, [id, round]);
  const reload = useCallback(() => again((last) => last + 1), []);
  return { job, events, series, connection, problem, metricsProblem, reload };
}

function Actions({ job, onError, onChange }: { job: JobRead; onError: (error: Error | undefined) => void; onChange: () => void }) {
  const path = { job_id: job.id };
  const change = (work: () => Promise<unknown>) => () => work().then(onChange);
  const ended = isFinal(job.state);
  return (
    <>
      {job.result && (
        <Do kind="primary" onError={onError} work={() => download(`/v1/jobs/${job.id}/student`, `${job.name}.safetensors`)}>
          Download the student
        </Do>
      )}
      {["queued", "starting", "running"].includes(job.state) && (
        <Do onError={onError} work={change(() => post("/v1/jobs/{job_id}/pause", { path }))}>
          Pause
        </Do>
      )}
      {job.state === "paused" && (
        <Do kind="primary" onError={onError} work={change(() => post("/v1/jobs/{job_id}/resume", { path }))}>
          Resume
        </Do>
      )}
      {!ended && job.state !== "cancelling" && (
        <Do onError={onError} confirm={`Cancel “${job.name}”? It cannot be resumed.`} work={change(() => post("/v1/jobs/{job_id}/cancel", { path }))}>
          Cancel
        </Do>
      )}
      {(job.state === "failed" || job.state === "cancelled") && (
        <Do kind="primary" onError={onError} work={() => post("/v1/jobs/{job_id}/retry", { path, once: true }).then((made) => go(to("jobs", made.id)))}>
          Run again
        </Do>
      )}
      {ended && (
        <Do
          kind="danger"
          onError={onError}
          confirm={`Delete “${job.name}” with its log and curves? A registered student stays.`}
          work={() => remove("/v1/jobs/{job_id}", { path }).then(() => go(to("jobs")))}
        >
          Delete
        </Do>
      )}
    </>
  );
}

function Status({ job }: { job: JobRead }) {
  const seconds = between(job.started_at, job.finished_at);
  const left = job.estimated_end_at ? between(new Date().toISOString(), job.estimated_end_at) : null;
  return (
    <div class="status">
      {!isFinal(job.state) && (
        <div class="status-bar">
          <Progress value={job.progress} label="Progress" />
          <span class="num">{percent(job.progress, 0)}</span>
        </div>
      )}
      <Facts
        facts={[
          ["Created", <Time at={job.created_at} />],
          ["Started", job.started_at ? <Time at={job.started_at} /> : null],
          ["Ended", job.finished_at ? <Time at={job.finished_at} /> : null],
          ["Running for", job.started_at && !job.finished_at ? duration(seconds) : null],
          ["Took", job.finished_at ? duration(seconds) : null],
          ["Left", !isFinal(job.state) && left !== null && left > 0 ? `about ${duration(left)}` : null],
        ]}
      />
      {(job.state_message || job.state_reason) && !job.failure && <p class="small muted">{job.state_message ?? job.state_reason}</p>}
    </div>
  );
}

const WAY_OUT: Record<string, string> = {
  out_of_memory: "Try a smaller `training.batch_size`, or a smaller student.",
  host_out_of_memory: "Try a smaller `training.batch_size`, or a machine with more memory.",
  diverged: "Try a lower `training.optimizer.learning_rate`, or a smaller weight of the method.",
  deadline: "Raise `resources.max_runtime_seconds`, or train for fewer epochs.",
};

function Failure({ job }: { job: JobRead }) {
  const failure = job.failure;
  if (failure === null) return null;
  return (
    <div class="notice bad" role="alert">
      <p class="notice-title">
        Failed: <code>{failure.code}</code>, in attempt {failure.attempt}
      </p>
      <p><Told text={failure.message} /></p>
      <p class="muted">
        <Told text={failure.retryable ? "The same job may succeed when it is run again." : (WAY_OUT[failure.code] ?? "Running it again unchanged will fail again: change the spec, then submit it.")} />{" "}
        <a href={`#/submit?from=${job.id}`}>Change the spec and submit it</a>
      </p>
      {failure.log_tail.length > 0 && (
        <details>
          <summary>The last {failure.log_tail.length} lines of the log</summary>
          <pre class="code" tabIndex={0}>{failure.log_tail.join("\n")}</pre>
        </details>
      )}
    </div>
  );
}

/** Return the names of all scores that one of several networks has. */
export function scoreNames(scores: (Json | null | undefined)[]): string[] {
  const names = new Set<string>();
  for (const one of scores) {
    for (const [name, value] of Object.entries(one ?? {})) if (typeof value === "number") names.add(name);
  }
  return [...names].filter((name) => name !== "samples");
}

function Result({ job }: { job: JobRead }) {
  const result = job.result;
  if (result === null) return null;
  const scores = (result.scores ?? {}) as Record<string, Json | null>;
  const shown = NETWORKS.filter((network) => scores[network] || result.parameters?.[network]);
  const rows: [string, (network: (typeof NETWORKS)[number]) => string][] = [
    ...scoreNames(NETWORKS.map((network) => scores[network])).map((name): [string, (network: (typeof NETWORKS)[number]) => string] => [
      name,
      (network) => withInterval(name, scores[network]),
    ]),
    ["parameters", (network) => count(result.parameters?.[network])],
    ["operations", (network) => short(result.flops?.[network])],
    ["latency", (network) => (typeof result.latency_ms?.[network] === "number" ? `${number(result.latency_ms[network])} ms` : NOTHING)],
  ];
  return (
    <Section title="Result" aside={<a href={toReference("models", result.student)}>{result.student}</a>}>
      {result.conclusion && <p class="conclusion">{result.conclusion}</p>}
      <Table caption="Scores on the test split">
        <thead>
          <tr>
            <th scope="col">On the test split</th>
            {shown.map((network) => (
              <th key={network} scope="col" class="num">{network}</th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map(([name, value]) => (
            <tr key={name}>
              <th scope="row">{spoken(name)}</th>
              {shown.map((network) => (
                <td key={network} class="num">{value(network)}</td>
              ))}
            </tr>
          ))}
        </tbody>
      </Table>
    </Section>
  );
}

function withInterval(name: string, scores: Json | null | undefined): string {
  const value = scores?.[name];
  const interval = scores?.[`${name}_interval`];
  const text = metric(name, value);
  if (!Array.isArray(interval) || typeof interval[0] !== "number") return text;
  return `${text}  [${percent(interval[0] as number)}, ${percent(interval[1] as number)}]`;
}

/** Return the charts that a job's series make: terms of the loss, scores, rates. */
function charts(series: Series[]): { title: string; series: Series[]; isShare: boolean }[] {
  const losses = series.filter((one) => /^loss\//.test(one.key));
  const scores = series.filter((one) => isShare(one.key));
  const other = series.filter((one) => !losses.includes(one) && !scores.includes(one));
  const byTitle = new Map<string, Series[]>();
  for (const one of other) {
    const title = one.key.replace(/^baseline\//, "").replaceAll("_", " ");
    byTitle.set(title, [...(byTitle.get(title) ?? []), one]);
  }
  return [
    { title: "Scores", series: scores, isShare: true },
    { title: "Terms of the loss", series: losses, isShare: false },
    ...[...byTitle].map(([title, some]) => ({ title, series: some, isShare: false })),
  ].filter((chart) => chart.series.length > 0);
}

export function lineLook(key: string, index: number): LineLook {
  const isBaseline = key.startsWith("baseline/");
  return { label: key.replace(/^loss\//, ""), colour: index, isDashed: isBaseline };
}

function Curves({ series, isFinal, error }: { series: Series[] | undefined; isFinal: boolean; error: Error | undefined }) {
  const [isLogarithmic, setLogarithmic] = useState(false);
  if (error && error instanceof ProblemError && error.problem.status === 410) {
    return (
      <Section title="Curves">
        <p class="muted">{error.message}</p>
      </Section>
    );
  }
  if (error) return <Problem error={error} />;
  if (series === undefined) return <Loading rows={4} />;
  const drawn = charts(series);
  return (
    <Section
      title="Curves"
      aside={
        drawn.length > 0 && (
          <label class="check">
            <input type="checkbox" checked={isLogarithmic} onChange={(event) => setLogarithmic(event.currentTarget.checked)} />
            losses on a logarithmic scale
          </label>
        )
      }
    >
      {drawn.length === 0 ? (
        <Empty title={isFinal ? "This job has measured nothing." : "Curves begin with the first steps of training."} />
      ) : (
        <div class="charts">
          {drawn.map((chart) => (
            <Lines key={chart.title} title={chart.title} series={chart.series} look={lineLook} isShare={chart.isShare} isLogarithmic={isLogarithmic && chart.title === "Terms of the loss"} />
          ))}
        </div>
      )}
    </Section>
  );
}

function Events({ events }: { events: Event[] }) {
  return (
    <Section title="Events">
      <ol class="events" tabIndex={0} aria-label="Events">
        {[...events].reverse().map((event) => (
          <li key={event.sequence}>
            <Time at={event.at} />
            <span>
              <b>{event.type.replace(/^job\./, "")}</b> <span class="muted">{said(event.data)}</span>
            </span>
          </li>
        ))}
      </ol>
    </Section>
  );
}

/** Return what an event tells, in one line. */
function said(data: Json): string {
  if (typeof data["message"] === "string") return data["message"];
  return Object.entries(data)
    .filter(([, value]) => value !== null && typeof value !== "object")
    .map(([name, value]) => `${name.replaceAll("_", " ")} ${number(value)}`)
    .join(", ");
}

const LINES_KEPT = 1000;

function Log({ job }: { job: JobRead }) {
  const [isOpen, setOpen] = useState(false);
  return (
    <Section
      title="Log"
      aside={
        <button type="button" class="plain" aria-expanded={isOpen} onClick={() => setOpen(!isOpen)}>
          {isOpen ? "Hide" : "Show"}
        </button>
      }
    >
      {isOpen && <LogLines id={job.id} isEnded={isFinal(job.state)} />}
    </Section>
  );
}

function LogLines({ id, isEnded }: { id: string; isEnded: boolean }) {
  const [lines, setLines] = useState<string[] | undefined>(undefined);
  const [error, setError] = useState<Error | undefined>(undefined);
  const box = useRef<HTMLPreElement>(null);
  const isAtEnd = useRef(true);
  useEffect(() => {
    const stop = new AbortController();
    const add = (more: string[]) => setLines((last) => [...(last ?? []), ...more].slice(-LINES_KEPT));
    const show = async () => {
      const tails = await get("/v1/jobs/{job_id}/logs", { path: { job_id: id }, query: { lines: 200 }, signal: stop.signal });
      setLines([]);
      for (const tail of tails.data) {
        add([...(tails.data.length > 1 || tail.is_cut ? [`── attempt ${tail.attempt}${tail.is_cut ? ", the last lines" : ""} ──`] : []), ...tail.lines]);
      }
      if (isEnded) return;
      const last = tails.data.at(-1)?.position;
      await follow({
        path: `/v1/jobs/${encodeURIComponent(id)}/logs/stream`,
        ...(last === undefined ? {} : { lastId: last }),
        signal: stop.signal,
        onEvent: (event) => event.event === "log" && add((JSON.parse(event.data) as LogSlice).lines),
        onConnection: () => undefined,
        isLast: () => false,
        onProblem: setError,
      });
    };
    show().catch((failed: Error) => !stop.signal.aborted && setError(failed));
    return () => stop.abort();
  }, [id, isEnded]);
  useEffect(() => {
    if (isAtEnd.current && box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [lines]);
  if (error) return <Problem error={error} />;
  if (lines === undefined) return <Loading rows={4} />;
  if (lines.length === 0) return <p class="muted">Nothing has been written yet.</p>;
  return (
    <pre
      ref={box}
      class="code log"
      tabIndex={0}
      aria-label="Log"
      onScroll={(event) => {
        const it = event.currentTarget;
        isAtEnd.current = it.scrollHeight - it.scrollTop - it.clientHeight < 24;
      }}
    >
      {lines.join("\n")}
    </pre>
  );
}

const PICTURE = /\.(svg|png|jpe?g|webp)$/i;

function Report({ job, onError }: { job: JobRead; onError: (error: Error | undefined) => void }) {
  const report = useLoaded((signal) => get("/v1/jobs/{job_id}/report", { path: { job_id: job.id }, signal }), [job.id]);
  if (report.error) {
    return (
      <Section title="Report">
        <Problem error={report.error} onRetry={report.reload} />
      </Section>
    );
  }
  const files = report.data?.data ?? [];
  // A picture that is there as PNG too is shown once.
  const pictures = files.filter((file) => PICTURE.test(file.path) && !(file.path.endsWith(".svg") && files.some((other) => other.path === file.path.replace(/svg$/, "png"))));
  const archive = report.data?.archive;
  return (
    <Section
      title="Report"
      aside={
        archive && (
          <Do kind="plain" onError={onError} work={() => download(archive, `${job.name}-report.zip`)}>
            Download all
          </Do>
        )
      }
    >
      {report.data === undefined ? (
        <Loading />
      ) : files.length === 0 ? (
        <p class="muted">This job was to write no report.</p>
      ) : (
        <>
          <div class="pictures">
            {pictures.map((file) => (
              <Picture key={file.path} path={file.path} url={file.url} />
            ))}
          </div>
          <details>
            <summary>All {files.length} files</summary>
            <ul class="files">
              {files.map((file) => (
                <li key={file.path}>
                  <Do kind="link" onError={onError} work={() => download(file.url, file.path.split("/").at(-1) ?? file.path)}>
                    {file.path}
                  </Do>
                  <span class="num faint">{bytes(file.size_bytes)}</span>
                </li>
              ))}
            </ul>
          </details>
        </>
      )}
    </Section>
  );
}

/** A picture of the API, fetched with the key once it comes near the view. */
function Picture({ path, url }: { path: string; url: string }) {
  const holder = useRef<HTMLElement>(null);
  const [source, setSource] = useState<string | Error | null>(null);
  useEffect(() => {
    const stop = new AbortController();
    let made: string | null = null;
    const seen = new IntersectionObserver(
      (entries) => {
        if (!entries.some((entry) => entry.isIntersecting)) return;
        seen.disconnect();
        fetchBytes(url, stop.signal).then(
          (blob) => {
            made = URL.createObjectURL(blob);
            setSource(made);
          },
          (error: Error) => !stop.signal.aborted && setSource(error),
        );
      },
      { rootMargin: "400px" },
    );
    if (holder.current) seen.observe(holder.current);
    return () => {
      stop.abort();
      seen.disconnect();
      if (made !== null) URL.revokeObjectURL(made);
    };
  }, [url]);
  const name = path.replace(PICTURE, "").replaceAll(/[_/-]/g, " ");
  return (
    <figure ref={holder} class="picture">
      {source instanceof Error ? <Problem error={source} /> : source === null ? <Loading rows={3} /> : <img src={source} alt={`Picture of the report: ${name}`} />}
      <figcaption>{name}</figcaption>
    </figure>
  );
}

function Attempts({ job }: { job: JobRead }) {
  const attempts = useLoaded((signal) => get("/v1/jobs/{job_id}/attempts", { path: { job_id: job.id }, signal }), [job.id, job.attempt, job.state]);
  if (attempts.error) return <Problem error={attempts.error} onRetry={attempts.reload} />;
  if (!attempts.data || attempts.data.data.length === 0) return null;
  return (
    <Section title="Attempts">
      <Table caption="Attempts">
        <thead>
          <tr>
            <th scope="col" class="num">No.</th>
            <th scope="col">Outcome</th>
            <th scope="col">Device</th>
            <th scope="col" class="num">From step</th>
            <th scope="col" class="num">Started</th>
            <th scope="col" class="num">Time</th>
            <th scope="col">Message</th>
          </tr>
        </thead>
        <tbody>
          {attempts.data.data.map((one) => (
            <tr key={one.number}>
              <td class="num">{one.number}</td>
              <td>{one.outcome ?? "in progress"}</td>
              <td>{one.device ?? NOTHING}</td>
              <td class="num">{count(one.resumed_from_step)}</td>
              <td class="num"><Time at={one.started_at} /></td>
              <td class="num">{duration(between(one.started_at, one.ended_at))}</td>
              <td class="muted">{one.message}</td>
            </tr>
          ))}
        </tbody>
      </Table>
    </Section>
  );
}
