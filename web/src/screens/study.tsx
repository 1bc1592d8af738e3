// One study: who is best, how sure that is, and the curves over seeds.
import { useMemo, useState } from "preact/hooks";
import { download, get, post, remove, type Schemas } from "../api/client";
import { Lines } from "../charts/lines";
import { seriesOfJob, type Series } from "../charts/series";
import { count, duration, NOTHING, number, percent, points } from "../ui/format";
import { useLoaded } from "../ui/loading";
import { Copy, Do, Empty, Facts, Heading, Loading, Notes, Problem, Progress, Section, State, Table, Time } from "../ui/parts";
import { go, to, toReference, type Place } from "../ui/router";

type Board = Schemas["LeaderboardRead"];
type Row = Schemas["LeaderboardRow"];
type Spread = Schemas["SpreadRead"];

export function Study({ place }: { place: Place }) {
  const id = place.parts[1] ?? "";
  const [isGoing, setGoing] = useState(false);
  const [error, setError] = useState<Error | undefined>(undefined);
  const path = { study_id: id };
  const loaded = useLoaded(
    async (signal) => {
      const [study, board] = await Promise.all([get("/v1/studies/{study_id}", { path, signal }), get("/v1/studies/{study_id}/leaderboard", { path, signal })]);
      setGoing(study.finished_at === null);
      return { study, board };
    },
    [id],
    isGoing ? 4 : null,
  );
  if (loaded.error && loaded.data === undefined) {
    return (
      <>
        <Heading title="Study" />
        <Problem error={loaded.error} onRetry={loaded.reload} />
      </>
    );
  }
  if (loaded.data === undefined) return <Loading rows={9} />;
  const { study, board } = loaded.data;
  return (
    <>
      <Heading
        title={study.name}
        aside={
          <>
            <Do onError={setError} work={() => download(`/v1/studies/${id}/leaderboard?format=csv`, `${study.name}.csv`)}>
              Download CSV
            </Do>
            {isGoing ? (
              <Do onError={setError} confirm={`Cancel all jobs of “${study.name}” that have not ended?`} work={() => post("/v1/studies/{study_id}/cancel", { path }).then(loaded.reload)}>
                Cancel
              </Do>
            ) : (
              <Do kind="danger" onError={setError} confirm={`Delete “${study.name}” with its jobs? Registered students stay.`} work={() => remove("/v1/studies/{study_id}", { path }).then(() => go(to("studies")))}>
                Delete
              </Do>
            )}
          </>
        }
      >
        <State of={study.state} /> <Copy text={study.id} label="the study's id" />
      </Heading>
      {error && <Problem error={error} />}
      {loaded.error && <Problem error={loaded.error} onRetry={loaded.reload} />}
      {isGoing && <Progress value={study.progress} label="Progress" />}
      <Facts
        facts={[
          ["Teacher", board.teacher ? <><a href={toReference("models", board.teacher)}>{board.teacher}</a> {percent(board[`teacher_${board.metric}`])}</> : null],
          ["Jobs", <a href={`#/jobs?study=${id}`}>{Object.entries(study.jobs).map(([state, jobs]) => `${jobs} ${state}`).join(", ")}</a>],
          ["Seeds", board.seeds.join(", ")],
          ["Created", <Time at={study.created_at} />],
        ]}
      />
      {study.search && <Search of={study.search} conclusion={board.conclusion ?? null} />}
      <Leaderboard board={board} />
      <Curves board={board} />
    </>
  );
}

function Search({ of, conclusion }: { of: Schemas["SearchRead"]; conclusion: string | null }) {
  return (
    <Section title="Search" aside={<State of={of.phase} />}>
      {conclusion && <p class="conclusion">{conclusion}</p>}
      {of.message && <p>{of.message}</p>}
      <Facts
        facts={[
          ["Compared by", `${of.objective}, ${of.lower_is_better ? "lower" : "higher"} is better`],
          ["Trials", `${Object.entries(of.trials).map(([state, trials]) => `${trials} ${state}`).join(", ") || "none yet"}, of ${of.planned_trials}`],
          ["Best so far", of.best ? <>{number(of.best.value)} by {of.best.method} <code>{JSON.stringify(of.best.settings)}</code></> : null],
        ]}
      />
      <Notes title="You should know" lines={of.warnings.map((warning) => warning.message)} />
    </Section>
  );
}

function spreadOf(row: Row, board: Board): Spread | null {
  return row[board.metric];
}

function Leaderboard({ board }: { board: Board }) {
  const finished = board.rows.filter((row) => row.finished > 0);
  const range = useMemo(() => {
    const values = finished.flatMap((row) => {
      const spread = spreadOf(row, board);
      return spread ? [spread.smallest, spread.largest, ...(spread.interval ?? [])] : [];
    });
    const low = Math.max(0, Math.min(...values));
    const high = Math.min(1, Math.max(...values));
    return { low, high: high > low ? high : low + 0.01 };
  }, [board]);
  if (board.rows.length === 0) return <Empty title="Nothing to compare yet" />;
  return (
    <Section title="Leaderboard" aside={<span class="small muted">{board.metric} on the test split, mean over seeds with its 95 % interval</span>}>
      <Table caption="Leaderboard">
        <thead>
          <tr>
            <th scope="col" class="num">Rank</th>
            <th scope="col">Variant</th>
            <th scope="col" class="num">{board.metric}</th>
            <th scope="col" class="wide">Interval and runs</th>
            <th scope="col" class="num">Against its baseline</th>
            <th scope="col" class="num wide">p</th>
            <th scope="col" class="num">Jobs</th>
            <th scope="col" class="num wide">Time</th>
          </tr>
        </thead>
        <tbody>
          {board.rows.map((row) => {
            const spread = spreadOf(row, board);
            const difference = row.difference;
            return (
              <tr key={row.variant}>
                <td class="num">{row.rank ?? NOTHING}</td>
                <td>
                  <b>{row.name}</b>
                  {row.is_baseline && <span class="small faint"> baseline</span>}
                  {row.role && <span class="small faint"> {row.role}</span>}
                </td>
                <td class="num">
                  {percent(spread?.mean)}
                  {spread?.interval && <div class="small faint">{percent(spread.interval[0])} to {percent(spread.interval[1])}</div>}
                </td>
                <td class="wide">{spread && <Interval spread={spread} row={row} board={board} range={range} />}</td>
                <td class="num">
                  {difference ? (
                    <>
                      {points(difference.mean)} {difference.verdict && <span class={`verdict ${difference.verdict}`}>{difference.verdict}</span>}
                      <div class="small faint">
                        {difference.interval ? `${points(difference.interval[0])} to ${points(difference.interval[1])}, ` : ""}
                        {difference.seeds_above} of {difference.pairs} seeds above
                      </div>
                    </>
                  ) : (
                    NOTHING
                  )}
                </td>
                <td class="num wide">{difference?.p_value === null || difference === null ? NOTHING : difference.p_value.toFixed(3)}</td>
                <td class="num">
                  {row.finished}
                  {row.failed > 0 && <span class="fault"> {row.failed} failed</span>}
                  {row.unfinished > 0 && <span class="faint"> of {row.finished + row.failed + row.unfinished}</span>}
                </td>
                <td class="num wide">{duration(row.wall_seconds)}</td>
              </tr>
            );
          })}
        </tbody>
      </Table>
      <p class="hint">
        Differences are in points, between runs with the same seed. p is of a sign-flip test, not corrected for {board.rows.length} variants.
        {board.rows.some((row) => row.side_by_side > 0) && " Some jobs shared a process, so their times are longer than alone."}
      </p>
      <details>
        <summary>All runs</summary>
        <Table caption="All runs">
          <thead>
            <tr>
              <th scope="col">Variant</th>
              {board.seeds.map((seed) => (
                <th key={seed} scope="col" class="num">seed {seed}</th>
              ))}
              <th scope="col" class="num">Agreement</th>
              <th scope="col" class="num">Calibration error</th>
              <th scope="col" class="num">Parameters</th>
            </tr>
          </thead>
          <tbody>
            {board.rows.map((row) => (
              <tr key={row.variant}>
                <th scope="row">{row.name}</th>
                {board.seeds.map((seed) => {
                  const run = row.runs.find((one) => one.seed === seed);
                  const score = run?.[board.metric];
                  return (
                    <td key={seed} class="num">
                      {run ? <a href={to("jobs", run.job)}>{score === null || score === undefined ? run.state : percent(score)}</a> : NOTHING}
                    </td>
                  );
                })}
                <td class="num">{percent(row.agreement)}</td>
                <td class="num">{percent(row.ece)}</td>
                <td class="num">{count(row.parameters)}</td>
              </tr>
            ))}
          </tbody>
        </Table>
      </details>
    </Section>
  );
}

/** The mean with its interval, and each run as a point, on one scale for all rows. */
function Interval({ spread, row, board, range }: { spread: Spread; row: Row; board: Board; range: { low: number; high: number } }) {
  const at = (value: number) => 6 + (156 * (Math.min(Math.max(value, range.low), range.high) - range.low)) / (range.high - range.low);
  const runs = row.runs.flatMap((run) => (typeof run[board.metric] === "number" ? [run[board.metric] as number] : []));
  return (
    <svg class="interval" viewBox="0 0 168 22" role="img" aria-label={`mean ${percent(spread.mean)}${spread.interval ? `, between ${percent(spread.interval[0])} and ${percent(spread.interval[1])}` : ""}`}>
      <line class="axis" x1="6" x2="162" y1="11" y2="11" />
      {spread.interval && <line class="span" x1={at(spread.interval[0] ?? spread.mean)} x2={at(spread.interval[1] ?? spread.mean)} y1="11" y2="11" />}
      {runs.map((value, index) => (
        <circle key={index} class="run" cx={at(value)} cy="11" r="2.5" />
      ))}
      <circle class="mean" cx={at(spread.mean)} cy="11" r="4" />
    </svg>
  );
}

const MOST_DRAWN = 6;
const MOST_RUNS = 40;

function Curves({ board }: { board: Board }) {
  const [hidden, setHidden] = useState<number[]>([]);
  const shown = board.rows.slice(0, MOST_DRAWN).filter((row) => !hidden.includes(row.variant));
  const key = `validation/${board.metric}`;
  const runs = shown.flatMap((row) => row.runs.map((run) => ({ job: run.job, seed: run.seed, variant: row.variant }))).slice(0, MOST_RUNS);
  const states = board.rows.flatMap((row) => row.runs.map((run) => run.state)).join();
  const loaded = useLoaded(
    (signal) =>
      Promise.all(
        runs.map(async (run): Promise<Series & { gone: string | null }> => {
          const { series, gone } = await seriesOfJob(run.job, { keys: key, max_points: 200 }, signal);
          return { key: `${run.variant}/${run.seed}`, points: series[0]?.points ?? [], gone };
        }),
      ),
    [runs.map((run) => run.job), states],
  );
  const series = useMemo(() => (loaded.data ?? []).filter((one) => one.points.length > 0), [loaded.data]);
  const names = new Map(board.rows.map((row) => [row.variant, row.name]));
  const places = new Map(board.rows.map((row, index) => [row.variant, index]));
  return (
    <Section title="Curves over seeds">
      <div class="choice small">
        {board.rows.slice(0, MOST_DRAWN).map((row, index) => (
          <label key={row.variant}>
            <input type="checkbox" checked={!hidden.includes(row.variant)} onChange={(event) => setHidden((last) => (event.currentTarget.checked ? last.filter((one) => one !== row.variant) : [...last, row.variant]))} />
            <i class={`key c${(index % 8) + 1}`} /> {row.name}
          </label>
        ))}
      </div>
      {board.rows.length > MOST_DRAWN && <p class="hint">The first {MOST_DRAWN} of {board.rows.length} variants are drawn.</p>}
      {loaded.error && <Problem error={loaded.error} onRetry={loaded.reload} />}
      <Notes
        title="Without curves"
        lines={(loaded.data ?? []).flatMap((one) => {
          const [variant = "", seed = ""] = one.key.split("/");
          return one.gone === null ? [] : [`${names.get(Number(variant)) ?? variant}, seed ${seed}: ${one.gone}`];
        })}
      />
      {loaded.isLoading ? (
        <Loading rows={4} />
      ) : series.length === 0 ? (
        <Empty title="Nothing has been measured yet." />
      ) : (
        <Lines
          title={`${key}, a line for each seed`}
          series={series}
          isShare
          look={(id) => {
            const [variant = "", seed = ""] = id.split("/");
            return { label: `${names.get(Number(variant)) ?? variant}, seed ${seed}`, colour: places.get(Number(variant)) ?? 0 };
          }}
        />
      )}
    </Section>
  );
}
