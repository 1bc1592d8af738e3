"""Show results in the terminal: tables and short cards of plain text."""

import json
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime

import rich.console
import rich.table
import rich.text

from retort import errors, types, watching

Cell = str | int | float | None
_GAP = "  "  # between two columns
_REASON_WIDTH = 160  # of a rejection in a list; the version itself shows all of it
STYLES = {
    "succeeded": "green",
    "ready": "green",
    "running": "cyan",
    "failed": "red",
    "rejected": "red",
    "cancelled": "yellow",
    "incomplete": "yellow",
    "beats": "green",
    "misses": "red",
}
SCORES = {
    "accuracy": ("accuracy", "agreement", "ece"),
    "miou": ("miou", "accuracy", "agreement"),
    "ap": ("ap", "ap50", "ap75", "agreement"),
    "knn": ("knn", "linear_probe", "cka", "shared_neighbours"),
}
"""Scores of a result that are shown, by the metric that decides."""
METRIC_NOTES = {
    "miou": "miou is the mean over classes of intersection over union, of all pixels.",
    "ap": "ap is COCO's average precision: the mean over classes and IoU thresholds of 0.5 to "
    "0.95.",
    "knn": "knn is the accuracy by the 20 nearest labelled training images; without labels, the "
    "share of nearest images that are the teacher's too.",
}


def table(
    console: rich.console.Console,
    heads: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    folds: Collection[str] = (),
    whole: Collection[str] = (),
    drops: Sequence[str] = (),
) -> None:
    """Print rows in aligned columns under upper-case heads.

    Columns in `folds` take several lines; those in `whole` are never cut. Where the console is too
    narrow, the columns in `drops` are left out, the first one first, and a line says so.
    """
    cells = [[_styled(cell) for cell in row] for row in rows]
    widths = {
        head: max([len(head), *(row[place].cell_len for row in cells)])
        for place, head in enumerate(heads)
    }
    left_out = []
    for head in drops:
        folded = sum(widths[name] for name in folds if name in widths)
        if _total(widths) - folded <= console.width:
            break
        left_out.append(head)
        del widths[head]
    if not folds:  # else the long columns take what is left
        _cut(widths, console.width, whole)
        # Rather no column than half an id; the first two that must be whole stay in any case.
        needed = list(whole)[:2]
        for head in [h for h in reversed(list(widths)) if needed and h not in needed]:
            if _total(widths) <= console.width:
                break
            left_out.append(head)
            del widths[head]
    grid = rich.table.Table(box=None, pad_edge=False, header_style="bold")
    for head, width in widths.items():
        is_long = head in folds
        grid.add_column(
            head.upper(),
            no_wrap=not is_long,
            overflow="fold" if is_long else "ellipsis",
            width=None if folds else width,
        )
    for row in cells:
        grid.add_row(*(cell for head, cell in zip(heads, row, strict=True) if head in widths))
    console.print(grid)
    if left_out and cells:
        told = ", ".join(left_out)
        console.print(f"Too narrow for: {told} (a wider terminal, or --json, shows all)")


def _total(widths: dict[str, int]) -> int:
    return sum(widths.values()) + len(_GAP) * (len(widths) - 1)


def _cut(widths: dict[str, int], room: int, whole: Collection[str]) -> None:
    """Cut the widest columns until a table fits, but none of `whole`, and none below its head."""
    while _total(widths) > room:
        cut = [head for head in widths if head not in whole and widths[head] > len(head)]
        if not cut:
            return
        widths[max(cut, key=widths.__getitem__)] -= 1


def card(console: rich.console.Console, pairs: Iterable[tuple[str, Cell]]) -> None:
    """Print names and values, one pair on a line; pairs without a value are left out."""
    grid = rich.table.Table(box=None, pad_edge=False, show_header=False)
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        if value not in (None, ""):
            grid.add_row(name, _styled(value))
    console.print(grid)


def reference(of: object) -> str | None:
    """Return what a spec says of a model: a reference, or that a job is to make it."""
    if isinstance(of, dict):
        return f"from {of.get('job')}"
    return str(of) if of else None


def jobs(console: rich.console.Console, shown: Iterable[types.Job]) -> None:
    """Print a list of jobs."""
    table(
        console,
        ("id", "name", "state", "done", "method", "teacher", "score", "age"),
        (
            (
                job.id,
                job.name,
                job.state,
                f"{100 * job.progress:.0f} %",
                method_name(job),
                teachers(job) or None,
                newest_score(job),
                age(job.created_at),
            )
            for job in shown
        ),
        whole=("id", "state", "score"),
        drops=("teacher", "age", "done", "method"),
    )


def teachers(shown: types.Job) -> str:
    """Return the references of a job's teacher or teachers."""
    one = shown.spec.get("teacher")
    return reference(one) or ", ".join(shown.spec.get("teachers") or [])


def job(console: rich.console.Console, shown: types.Job) -> None:
    """Print everything about a job."""
    student = shown.spec.get("student") or {}
    training = shown.spec.get("training") or {}
    result = shown.result
    card(
        console,
        [
            ("job", shown.id),
            ("name", shown.name),
            ("state", shown.state),
            ("reason", shown.state_reason),
            ("message", shown.state_message),
            ("progress", f"{100 * shown.progress:.0f} %"),
            ("attempt", shown.attempt),
            ("retry of", shown.retry_of),
            ("study", shown.study),
            ("teacher", teachers(shown)),
            ("kind of teacher", ", ".join(shown.spec.get("teacher_kinds") or [])),
            ("student", student.get("network")),
            ("data set", shown.spec.get("dataset")),
            ("method", method_name(shown)),
            ("epochs", training.get("epochs")),
            ("class weights", class_weights(training.get("class_weights"), result)),
            ("labels", ", ".join(f"{k}={v}" for k, v in shown.labels.items())),
            ("created", moment(shown.created_at)),
            ("started", moment(shown.started_at)),
            ("finished", moment(shown.finished_at)),
            *(("warning", f"{w.code}: {w.message}") for w in shown.warnings or ()),
            *((name, number(value)) for name, value in sorted(shown.metrics.items())),
            *synthesis_rows(result),
            *federation_rows(result),
            *label_rows(result),
            ("made", result.student if result else None),
            ("digest", result.digest if result else None),
            (
                "failure",
                f"{shown.failure.code}: {shown.failure.message}" if shown.failure else None,
            ),
        ],
    )
    if result:
        console.print()
        scores(console, shown)


def class_weights(asked: str | list[float] | None, result: types.JobResult | None) -> str | None:
    """Return what pixels of the classes count: as asked for, and what that has come to."""
    if asked in (None, "none"):
        return None
    chosen = asked if isinstance(asked, str) else ", ".join(f"{weight:g}" for weight in asked)
    if result is None or not result.class_weights:
        return chosen
    found = result.class_weights
    least, most = min(found, key=found.__getitem__), max(found, key=found.__getitem__)
    return f"{chosen}: {found[least]:g} ({least}) to {found[most]:g} ({most})"


def synthesis_rows(result: types.JobResult | None) -> list[tuple[str, Cell]]:
    """Return how many images a data-free job has read and made."""
    if result is None or result.synthesis is None:
        return []
    made = result.synthesis
    seconds = ", ".join(
        f"{made[name]:,.1f} s {what}"
        for name, what in (
            ("synthesis_seconds", "synthesis"),
            ("distillation_seconds", "distillation"),
        )
        if name in made
    )
    return [
        ("images read", f"{result.training_images_read} for training"),
        ("synthetic", f"{made.get('images', 0):,} images ({seconds})"),
    ]


def federation_rows(result: types.JobResult | None) -> list[tuple[str, Cell]]:
    """Return whose model a federated job has delivered, and what was told of its clients."""
    if result is None or result.federation is None:
        return []
    made = result.federation
    spread = made.get("client_accuracy") or {}
    missing = ", ".join(made.get("labels_without_holder", ()))
    ways = ", ".join(f"{count} {name}" for name, count in made.get("engines", {}).items())
    skipped = made.get("skipped_rounds", 0)
    rounds = f"{made.get('rounds', 0)}" + (f", {skipped} without effect" if skipped else "")
    return [
        ("clients", f"{made.get('clients', 0)} ({ways})"),
        ("not at once", "; ".join(made.get("not_vectorised", ())) or None),
        ("rounds", rounds),
        ("model of", made.get("delivered")),
        (
            "client acc.",
            "{mean:.2%} ({min:.2%} to {max:.2%})".format(**spread) if spread else None,
        ),
        ("sent", f"{made.get('bytes_up', 0):,} B, received {made.get('bytes_down', 0):,} B"),
        ("nobody has", missing or None),
        ("epsilon", number(made["epsilon"]) if made.get("epsilon") is not None else None),
    ]


def label_rows(result: types.JobResult | None) -> list[tuple[str, Cell]]:
    """Return which images had labels, where some had none."""
    if result is None or result.labels is None:
        return []
    told = result.labels
    pseudo = f", {told['pseudo']:,} by the teacher" if told.get("pseudo") else ""
    left_out = {name: count for name, count in told.get("left_out", {}).items() if count}
    return [
        (
            "labelled",
            f"{told.get('labelled', 0):,} training images{pseudo}, {told.get('unlabelled', 0):,} "
            "without",
        ),
        ("not scored", compact(left_out) if left_out else None),
        ("scored by", compact(told.get("scored_by", {}))),
    ]


def scores(console: rich.console.Console, shown: types.Job) -> None:
    """Print how teacher, student and baseline did on the test split."""
    if shown.result is None:
        return
    if not any(shown.result.scores.values()):
        console.print("Nothing was scored: the job had no data set to evaluate on.")
        return
    measured = SCORES.get(shown.primary_metric or "", ("agreement",))
    table(
        console,
        ("network", *measured, "parameters"),
        (
            (
                who,
                *(number(score(shown, who, what)) for what in measured),
                count(shown.result.parameters.get("student" if who == "baseline" else who)),
            )
            for who in ("teacher", "student", "baseline")
            if shown.result.scores.get(who)
        ),
    )


def studies(console: rich.console.Console, shown: Iterable[types.Study]) -> None:
    """Print a list of studies."""
    table(
        console,
        ("id", "name", "state", "done", "jobs", "teacher", "age"),
        (
            (
                study.id,
                study.name,
                study.state,
                f"{100 * study.progress:.0f} %",
                study.job_count,
                reference(study.spec.get("teacher")),
                age(study.created_at),
            )
            for study in shown
        ),
        whole=("id", "state"),
        drops=("teacher", "age", "jobs"),
    )


def study(console: rich.console.Console, shown: types.Study) -> None:
    """Print everything about a study but its results."""
    student = shown.spec.get("student") or {}
    card(
        console,
        [
            ("study", shown.id),
            ("name", shown.name),
            ("state", shown.state),
            ("progress", f"{100 * shown.progress:.0f} %"),
            ("jobs", f"{shown.job_count}: {job_counts(shown)}"),
            ("teacher", reference(shown.spec.get("teacher"))),
            ("student", student.get("network")),
            ("data set", shown.spec.get("dataset")),
            ("methods", ", ".join(str(m.get("name")) for m in shown.spec.get("methods") or ())),
            ("seeds", ", ".join(map(str, shown.spec.get("seeds") or ()))),
            *(_search_entries(shown.search) if shown.search else ()),
            ("labels", ", ".join(f"{k}={v}" for k, v in shown.labels.items())),
            ("created", moment(shown.created_at)),
            ("started", moment(shown.started_at)),
            ("finished", moment(shown.finished_at)),
        ],
    )


def job_counts(shown: types.Study) -> str:
    """Return how many jobs are in which state, in words."""
    counts = ", ".join(f"{count} {state}" for state, count in shown.jobs.items())
    return f"{counts} ({shown.pruned} of them pruned)" if shown.pruned else counts


def _search_entries(search: types.Search) -> list[tuple[str, Cell]]:
    best = search.best
    return [
        ("search", search.phase),
        ("trials", watching.search_words(search)),
        (
            "best trial",
            None if best is None else f"{best.trial}: {settings_words(best.method, best.settings)}",
        ),
        ("says", search.message),
    ]


def settings_words(method: str, settings: types.Json) -> str:
    """Return the values of a trial in words: `kd temperature=4`."""
    return " ".join([method, *(f"{name}={_short(value)}" for name, value in settings.items())])


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def trials(console: rich.console.Console, shown: Iterable[types.Trial], *, objective: str) -> None:
    """Print the trials of a search, best first; those that were not measured at the end."""
    table(
        console,
        ("trial", "state", f"validation {objective}", "epoch", "settings", "jobs", "why"),
        (
            (
                one.number,
                one.state,
                None if one.value is None else f"{one.value:.4g}",
                one.rungs[-1].epoch if one.state == "pruned" and one.rungs else None,
                settings_words(one.method, one.settings),
                " ".join(one.jobs),
                one.message,
            )
            for one in shown
        ),
        whole=("trial", "state"),
        drops=("why", "jobs", "epoch"),
    )


def plan(console: rich.console.Console, shown: types.StudyPlan) -> None:
    """Print what a study would consist of, and what its submitter should know."""
    for told in shown.warnings:
        console.print(errors.one_line(f"warning: {told.message}"), soft_wrap=True)
    if shown.spaces:
        table(
            console,
            ("searched", "method", "space", "default"),
            (
                (one.name, one.method, json.dumps(one.space), _short(one.default))
                for one in shown.spaces
            ),
        )
        return
    rows = ((one.variant, one.name, "yes" if one.is_baseline else None) for one in shown.variants)
    table(console, ("variant", "method", "baseline"), rows)


def leaderboard(console: rich.console.Console, shown: types.Leaderboard) -> None:
    """Print variants best first, each with its difference to the baseline in points."""
    table(
        console,
        (
            *("rank", "variant", "seeds", shown.metric, "± sd", "vs baseline", "95 % interval"),
            *("p", "above", "verdict", "best student", "its job"),
            *("agreement", "seconds", "images/s", "parameters"),
        ),
        (_leaderboard_row(row, shown) for row in shown.rows),
        whole=("rank", shown.metric, "verdict"),
        drops=(
            *("seconds", "images/s", "parameters", "agreement", "p", "above", "± sd"),
            *("its job", "95 % interval", "seeds", "best student"),
        ),
    )
    for sentence in reading_aids(shown):
        console.print(errors.one_line(sentence), soft_wrap=True)


def _leaderboard_row(row: types.LeaderboardRow, shown: types.Leaderboard) -> Sequence[Cell]:
    measured = shown.score_of(row)
    difference = row.difference
    interval = difference.interval if difference else None
    return (
        row.rank,
        row.name,
        f"{row.finished}/{len(shown.seeds)}" + (f", {row.failed} failed" if row.failed else ""),
        percent(measured.mean) if measured else None,
        points(measured.standard_deviation, sign="") if measured else None,
        "(baseline)" if row.is_baseline else points(difference.mean) if difference else None,
        f"{points(interval[0])} to {points(interval[1])}" if interval else None,
        number(difference.p_value) if difference else None,
        f"{difference.seeds_above} of {difference.pairs}" if difference else None,
        difference.verdict if difference else None,
        *_best_run(row, shown.metric),
        percent(row.agreement),
        None if row.wall_seconds is None else f"{row.wall_seconds:,.1f}",
        None if row.images_per_second is None else f"{row.images_per_second:,.0f}",
        count(row.parameters),
    )


def _best_run(row: types.LeaderboardRow, metric: str) -> tuple[Cell, Cell]:
    """Return the best student of a variant and its job."""
    scored = [run for run in row.runs if getattr(run, metric, None) is not None]
    if not scored:
        return None, None
    best = max(scored, key=lambda run: float(getattr(run, metric)))
    return best.student, best.job


def reading_aids(shown: types.Leaderboard) -> list[str]:
    """Return the notes to print below a leaderboard."""
    notes = []
    if shown.conclusion:
        notes.append(shown.conclusion)
    if shown.search is not None:
        notes.append(
            f"Search: {watching.search_words(shown.search)}. Its trials are no rows here: retort "
            f"study trials {shown.study}"
        )
    if shown.teacher_score is not None:
        notes.append(f"The teacher {shown.teacher} has {percent(shown.teacher_score)}.")
    if shown.metric in METRIC_NOTES:
        notes.append(METRIC_NOTES[shown.metric])
    unfinished = sum(row.unfinished for row in shown.rows)
    if unfinished:
        notes.append(f"{unfinished} jobs have not ended: the ranks may change.")
    is_scored = any(shown.score_of(row) for row in shown.rows)
    if not is_scored and any(row.finished for row in shown.rows):
        notes.append("No student was scored: the study has no data set to evaluate on.")
    if any(row.side_by_side for row in shown.rows):
        notes.append("Students were trained side by side: their times are longer than alone.")
    pairs = [row.difference.pairs for row in shown.rows if row.difference]
    if pairs:
        notes.append(
            "Differences are paired by seed, in points; `beats` and `misses` mean that the 95 % "
            "interval leaves out 0, `matches` that it does not."
        )
        if min(pairs) < 3:
            notes.append("Fewer than three seeds give no verdict.")
        # Two-sided, all signs: nothing can be below 2 of 2^n.
        elif 2 / 2 ** max(pairs) > 0.05:
            notes.append(
                f"With {max(pairs)} seeds, p cannot be below {2 / 2 ** max(pairs):.4g}: six are "
                "needed to get below 0.05."
            )
    if len(pairs) > 1:
        notes.append("The best of several variants looks better than it is: p is not corrected.")
    return notes


def models(console: rich.console.Console, shown: Sequence[types.Model]) -> None:
    """Print a list of models; what of the newest version is not ready, with the reason."""
    rows = []
    for model in shown:
        newest = model.newest_version
        state, why = None, None
        if newest is not None and newest.state != "ready":
            state = newest.state
            why = newest.rejection.message if newest.rejection else "being inspected"
        rows.append(
            (
                model.name,
                model.latest_version,
                f"{newest.version}" if newest else None,
                state or ("ready" if newest else "no version"),
                ", ".join(f"{alias}={number}" for alias, number in model.aliases.items()),
                age(model.created_at),
                why,
            )
        )
    _with_reasons(
        console,
        ("name", "ready", "newest", "state", "aliases", "age", "why"),
        rows,
        whole=("name", "state"),
        drops=("age", "aliases", "newest"),
    )


def model_versions(console: rich.console.Console, shown: Sequence[types.ModelVersion]) -> None:
    """Print the versions of a model; rejected ones with the reason."""
    _with_reasons(
        console,
        ("version", "state", "network", "parameters", "score", "age", "why rejected"),
        [
            (
                v.reference,
                v.state,
                v.network,
                count(v.parameters),
                named(v.primary_metric, v.scores.get(v.primary_metric or "")),
                age(v.created_at),
                v.rejection.message if v.rejection else None,
            )
            for v in shown
        ],
        whole=("version", "state", "score"),
        drops=("age", "parameters", "network"),
    )


def dataset_versions(console: rich.console.Console, shown: Sequence[types.DatasetVersion]) -> None:
    """Print versions of data sets with their sizes; rejected ones with the reason."""
    _with_reasons(
        console,
        (
            *("data set", "state", "classes", "train", "validation", "test", "size"),
            "why rejected",
        ),
        [
            (
                v.reference,
                v.state,
                v.classes_count or len(v.classes) or None,
                v.splits.get("train"),
                v.splits.get("validation"),
                v.splits.get("test"),
                size(v.size_bytes) if v.size_bytes else None,
                v.rejection.message if v.rejection else None,
            )
            for v in shown
        ],
        whole=("data set", "state", "size"),
        drops=("validation", "test", "train", "classes"),
    )


def _with_reasons(
    console: rich.console.Console,
    heads: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    whole: Collection[str],
    drops: Sequence[str],
) -> None:
    """Print a table; its last column, a sentence where there is one, goes below its row."""
    *columns, _ = heads
    table(console, columns, [row[:-1] for row in rows], whole=whole, drops=drops)
    for first, *_, why in rows:
        if why:
            sentence = "; ".join(str(why).splitlines())
            cut = f"{sentence[:_REASON_WIDTH]}..." if len(sentence) > _REASON_WIDTH else sentence
            console.print(errors.one_line(f"{first}: {cut}"), soft_wrap=True)


def version(console: rich.console.Console, shown: types.ModelVersion) -> None:
    """Print everything about a model version."""
    rejection = shown.rejection
    card(
        console,
        [
            ("model", shown.reference),
            ("state", shown.state),
            ("rejected", f"{rejection.message} ({rejection.code})" if rejection else None),
            *rejected_keys(rejection),
            *(("note", note) for note in shown.notes or ()),
            ("network", shown.network),
            ("teaches as", shown.kind),
            ("gives besides logits", ", ".join(shown.gives or [])),
            ("arguments", compact(shown.arguments)),
            ("task", shown.task),
            ("classes", class_count(shown.classes)),
            ("input", compact(shown.input)),
            ("parameters", count(shown.parameters)),
            ("digest", shown.digest),
            ("scores", compact(shown.scores)),
            ("lineage", compact(shown.lineage)),
            ("tags", compact(shown.tags)),
            ("created", moment(shown.created_at)),
            *(("file", f"{f.path}  {size(f.size_bytes)}") for f in shown.files),
        ],
    )


def dataset_version(console: rich.console.Console, shown: types.DatasetVersion) -> None:
    """Print everything about a version of a data set."""
    rejection = shown.rejection
    card(
        console,
        [
            ("data set", shown.reference),
            ("state", shown.state),
            ("rejected", f"{rejection.message} ({rejection.code})" if rejection else None),
            ("format", shown.format),
            ("task", shown.task),
            ("classes", class_count(shown.classes)),
            ("splits", compact(shown.splits)),
            ("labelled", compact(shown.labelled) if shown.labelled else None),
            ("input", compact(shown.input)),
            ("encoded", compact(shown.encoded) if shown.encoded else None),
            *(("note", note) for note in shown.notes or ()),
            ("digest", shown.digest),
            ("size", size(shown.size_bytes) if shown.size_bytes else None),
            (
                "archive",
                f"{shown.archive.filename}  {size(shown.archive.size_bytes)}"
                if shown.archive
                else None,
            ),
            ("source", source(shown.source) if shown.source else None),
            ("lineage", compact(shown.lineage)),
            ("tags", compact(shown.tags)),
            ("created", moment(shown.created_at)),
        ],
    )


def source(shown: types.Source) -> str:
    """Return where the files of a data set are, and what they were when it was registered."""
    if shown.files is None or shown.size_bytes is None:
        return shown.url
    count = "1 file" if shown.files == 1 else f"{shown.files:,} files"
    return f"{shown.url}  {count}, {size(shown.size_bytes)}, not copied; listing {shown.digest}"


def rejected_keys(rejection: types.Rejection | None) -> list[tuple[str, Cell]]:
    """Return the missing, unexpected and mismatched keys of a rejected upload."""
    if rejection is None:
        return []
    return [
        ("missing", some(rejection.missing_keys)),
        ("unexpected", some(rejection.unexpected_keys)),
        ("mismatched", some([compact(m) or "" for m in rejection.shape_mismatches])),
    ]


def method_ranking(console: rich.console.Console, shown: types.MethodRanking) -> None:
    """Print which methods fit a job, best first, and why the others do not."""
    fitting = [one for one in shown.data if not one.refusals]
    table(
        console,
        ("name", "family", "vs student alone", "lowest pair", "seeds x pairs", "title"),
        ((one.name, one.family, *_figures(one.measured), one.title) for one in fitting),
    )
    if any(one.measured for one in fitting):
        told = (
            f"\nPoints of {shown.metric}, measured on {shown.measured_on}: a first guess for other "
            "data. Methods that ended below the student alone are the last that fit."
        )
        console.print(told, soft_wrap=True)
    refused = [one for one in shown.data if one.refusals]
    if refused:
        console.print("\nThese do not fit:")
        table(console, ("name", "why"), ((one.name, one.refusals[0]) for one in refused))


def _figures(measured: types.Measured | None) -> tuple[Cell, Cell, Cell]:
    if measured is None:
        return None, None, None
    counted = f"{measured.seeds} x {measured.pairs}"
    return f"{measured.difference:+.1f}", f"{measured.lowest:+.1f}", counted


ACROSS_DEVICES = {
    "gathers": "yes; outputs of all devices are gathered, the loss is that of the whole batch",
    "slices": "yes; each device computes the loss of its slice of the batch",
    "one": "no",
}
"""What a method does on several devices, in words."""


def method(console: rich.console.Console, shown: types.Method) -> None:
    """Print a method with its hyper-parameters."""
    source = shown.source
    card(
        console,
        [
            ("method", shown.name),
            ("family", shown.family),
            ("title", shown.title),
            ("source", ", ".join(str(source[k]) for k in ("venue", "arxiv") if source.get(k))),
            ("about", shown.description),
            ("differs", shown.differs),
            ("tasks", ", ".join(shown.tasks)),
            ("needs", ", ".join(shown.needs)),
            ("several devices", ACROSS_DEVICES.get(shown.across_devices or "")),
        ],
    )
    fields = hyper_parameters(shown.params_schema)
    if fields:
        console.print()
        table(
            console,
            ("parameter", "type", "default", "range", "meaning"),
            (
                (
                    name,
                    type_name(field),
                    compact(field.get("default")),
                    bounds(field),
                    field.get("description"),
                )
                for name, field in fields.items()
            ),
            folds=("range", "meaning"),
        )


def logs(console: rich.console.Console, shown: Iterable[types.AttemptLog]) -> None:
    """Print the last lines of each attempt's engine."""
    for attempt in shown:
        state = f"ended {moment(attempt.ended_at)}" if attempt.ended_at else "still running"
        console.print(f"attempt {attempt.attempt}, {state}", style="bold")
        if attempt.is_cut:
            console.print("(earlier lines are left out: --lines N shows more of those kept)")
        log_lines(console, attempt.lines)
        if not attempt.lines:
            console.print("(no lines)" if attempt.ended_at else "(no lines so far)")


def log_lines(console: rich.console.Console, lines: Iterable[str]) -> None:
    """Print lines of a log as they are, without characters that steer a terminal."""
    for line in lines:
        console.print("".join(c if c.isprintable() else " " for c in line.rstrip()), soft_wrap=True)


def attempts(console: rich.console.Console, shown: Iterable[types.Attempt]) -> None:
    """Print the attempts at a job."""
    table(
        console,
        ("attempt", "outcome", "device", "from step", "started", "ended", "message"),
        (
            (
                one.number,
                one.outcome or "running",
                one.device,
                one.resumed_from_step,
                moment(one.started_at),
                moment(one.ended_at),
                one.message,
            )
            for one in shown
        ),
        folds=("message",),
        whole=("attempt", "outcome"),
        drops=("ended", "device", "from step"),
    )


def checkpoints(console: rich.console.Console, shown: Iterable[types.Checkpoint]) -> None:
    """Print the checkpoints from which a job can resume."""
    table(
        console,
        ("step", "epoch", "phase", "attempt", "size", "age", "id"),
        (
            (
                one.step,
                one.epoch,
                one.phase,
                one.attempt,
                size(one.size_bytes),
                age(one.created_at),
                one.id,
            )
            for one in shown
        ),
        whole=("id",),
        drops=("age", "attempt"),
    )


def events(console: rich.console.Console, shown: Iterable[types.Event]) -> None:
    """Print what has happened to a job."""
    rows = ((one.sequence, moment(one.at), one.type, compact(one.data)) for one in shown)
    table(console, ("#", "at", "event", "data"), rows, folds=("data",), whole=("#", "event"))


def metrics(console: rich.console.Console, shown: Iterable[types.MetricSeries]) -> None:
    """Print the newest value of each metric, with the lowest and the highest of its course."""
    rows = []
    for series in shown:
        values = [point.value for point in series.points if isinstance(point.value, (int, float))]
        if not series.points:
            continue
        newest = series.points[-1]
        shown_value = newest.value if isinstance(newest.value, str) else number(newest.value)
        lowest, highest = (number(best(values)) if values else None for best in (min, max))
        rows.append((series.key, newest.step, shown_value, lowest, highest, len(series.points)))
    table(console, ("metric", "step", "newest", "lowest", "highest", "points"), rows)


def keys(console: rich.console.Console, shown: Iterable[types.ApiKey]) -> None:
    """Print the API keys of a project; never the keys themselves."""
    table(
        console,
        ("id", "name", "role", "scopes", "state", "last used", "expires"),
        (
            (
                one.id,
                one.name,
                one.role,
                "all" if one.scopes is None else " ".join(one.scopes),
                _key_state(one),
                age(one.last_used_at) or "never",
                moment(one.expires_at),
            )
            for one in shown
        ),
        whole=("id", "role", "state"),
        folds=("scopes",),
        drops=("expires", "last used", "scopes"),
    )


def _key_state(key: types.ApiKey) -> str:
    now = datetime.now(UTC)
    if key.revoked_at:
        return "revoked"
    if key.expires_at and key.expires_at <= now:
        return "expired"
    if key.former_expires_at and key.former_expires_at > now:
        return "valid, rotated"
    return "valid"


def uploads(console: rich.console.Console, shown: Iterable[types.Upload]) -> None:
    """Print uploads that are open or completed."""
    rows = (
        (one.id, one.state, size(one.size_bytes or 0), one.filename, moment(one.expires_at))
        for one in shown
    )
    heads = ("id", "state", "size", "file", "kept until")
    table(console, heads, rows, whole=("id", "state"), drops=("kept until",))


def hyper_parameters(schema: types.Json) -> dict[str, types.Json]:
    """Return the fields of a method, those within an object as `object.field`."""
    fields: dict[str, types.Json] = {}
    definitions = schema.get("$defs") or {}
    for name, field in (schema.get("properties") or {}).items():
        within = definitions.get(str(field.get("$ref", "")).rpartition("/")[2])
        if within is None:
            fields[name] = field
            continue
        defaults = field.get("default") or {}
        own = {
            key: {**inner, "default": defaults.get(key, inner.get("default"))}
            for key, inner in (within.get("properties") or {}).items()
        }
        inside = hyper_parameters({"properties": own, "$defs": definitions})
        fields |= {f"{name}.{key}": inner for key, inner in inside.items()}
    return fields


def type_name(field: types.Json) -> str:
    """Return the JSON type of a field; of one with a choice, all of them."""
    choices = [str(choice.get("type")) for choice in field.get("anyOf") or ()]
    return str(field.get("type") or " or ".join(choices) or "any")


def method_name(job: types.Job) -> str:
    """Return the method of a job, or the methods it combines."""
    chosen = job.spec.get("method") or {}
    parts = chosen.get("methods")
    if isinstance(parts, list):
        return "+".join(str(p.get("name")) for p in parts if isinstance(p, dict))
    return str(chosen.get("name") or "")


def newest_score(job: types.Job) -> str | None:
    """Return the student's score on the test split, or its last one on the validation split."""
    metric = job.primary_metric
    if metric is None:
        return None
    final = score(job, "student", metric)
    return named(metric, job.metrics.get(f"validation/{metric}") if final is None else final)


def named(metric: str | None, value: object) -> str | None:
    """Return a score with the name of its metric, as in `ap 0.3712`; None if there is none."""
    if metric is None or not isinstance(value, (int, float)):
        return None
    return f"{metric} {number(value)}"


def score(job: types.Job, who: str, what: str) -> float | None:
    """Return one final score, or None if it was not measured."""
    value = ((job.result.scores.get(who) or {}) if job.result else {}).get(what)
    return float(value) if isinstance(value, (int, float)) else None


def bounds(field: types.Json) -> str:
    """Return the range that a JSON Schema allows, as in `> 0, <= 1`."""
    signs = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    allowed = []
    for kind in (field, *(field.get("anyOf") or ())):
        allowed += [f"{sign} {kind[key]:g}" for key, sign in signs.items() if key in kind]
        if "enum" in kind:
            allowed.append(" | ".join(str(value) for value in kind["enum"]))
    return ", ".join(allowed)


def number(value: float | None) -> str | None:
    """Return a measured value with four digits, or more if they stand before the point."""
    if value is None:
        return None
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def percent(value: float | None) -> str | None:
    """Return a share of one in percent."""
    return None if value is None else f"{value:.2%}"


def points(value: float | None, sign: str = "+") -> str | None:
    """Return a difference of shares in percentage points."""
    return None if value is None else f"{100 * value:{sign}.2f}"


def count(value: int | None) -> str | None:
    """Return a whole number with separators."""
    return None if value is None else f"{value:,}"


def size(value: int) -> str:
    """Return a number of bytes in the unit that suits it."""
    amount = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def age(at: datetime | None) -> str:
    """Return how long ago something was, in its largest unit."""
    if at is None:
        return ""
    seconds = max(0.0, (datetime.now(UTC) - at).total_seconds())
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"


def moment(at: datetime | None) -> str | None:
    """Return a time in the local time zone."""
    return None if at is None else at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def compact(value: object) -> str | None:
    """Return JSON on one line, or None for what is empty."""
    return None if value in (None, {}, []) else json.dumps(value, ensure_ascii=False)


def class_count(classes: int | list[str] | None) -> Cell:
    """Return the number of classes, with their names if they are few."""
    if isinstance(classes, list):
        return f"{len(classes)} ({some(classes)})"
    return classes


def some(names: Sequence[str], most: int = 10) -> str:
    """Return the first names of a list, and how many follow."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _styled(cell: Cell) -> rich.text.Text:
    text = "" if cell is None else errors.one_line(str(cell))
    return rich.text.Text(text, style=STYLES.get(text, ""))
