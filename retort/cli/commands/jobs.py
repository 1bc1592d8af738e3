"""Commands for jobs: submit, show, follow, control."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retort import errors
from retort.cli import completion, shell

if TYPE_CHECKING:
    from retort import types

app = typer.Typer()

JobArgument = Annotated[
    str,
    typer.Argument(metavar="JOB", help="Id of the job: job_...", autocompletion=completion.jobs),
]


@app.command()
@shell.connected
def submit(
    retort: shell.Shell,
    spec_file: Annotated[
        Path, typer.Argument(metavar="SPEC.yaml", help="The job: YAML or JSON, `-` for stdin.")
    ],
    changes: shell.ChangesOption = None,
    follow: Annotated[bool, typer.Option("--watch", help="Follow the job to its end.")] = False,
    validate: Annotated[bool, typer.Option("--validate", help="Only validate the spec.")] = False,
) -> None:
    """Submit a job and print its id."""
    from retort import specs

    spec = specs.load(spec_file, changes or ())
    if validate:
        checked = retort.client.jobs.validate(spec)
        for told in checked.get("warnings") or ():
            retort.note(f"warning: {told.get('message')} ({told.get('code')})")
        _emit_or_say(retort, checked, "the spec is valid")
        return
    job = retort.client.jobs.submit(spec)
    if not follow:  # else they are among the events that are shown
        _warn(retort, job)
    if follow:
        retort.note(f"submitted {job.id}")
        _watch(retort, job.id)
    elif retort.json:
        retort.emit(job)
    else:
        retort.out.print(job.id)
        retort.note(f"{job.state}; follow it with: retort watch {job.id}")


@app.command("jobs")
@shell.connected
def list_jobs(
    retort: shell.Shell,
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    study: Annotated[str | None, typer.Option(help="Only jobs of this study.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="Only jobs with this label.")
    ] = None,
    limit: shell.LimitOption = 20,
) -> None:
    """List jobs."""
    labels = dict(_pair("--label", text) for text in label or ())
    pages = retort.client.jobs.list(
        state=state, study=study, labels=labels, page_size=min(limit, 100)
    )
    jobs = list(itertools.islice(pages, limit))
    from retort.cli import display

    retort.show(jobs, display.jobs)


@app.command("job")
@shell.connected
def show_job(retort: shell.Shell, job_id: JobArgument) -> None:
    """Show a job."""
    _show_job(retort, retort.client.jobs.get(job_id))


@app.command()
@shell.connected
def watch(retort: shell.Shell, job_id: JobArgument) -> None:
    """Follow a job to its end; exit with 1 if it failed or was cancelled."""
    _watch(retort, job_id)


@app.command()
@shell.connected
def cancel(retort: shell.Shell, job_id: JobArgument) -> None:
    """Cancel a job."""
    _show_state(retort, retort.client.jobs.cancel(job_id))


@app.command()
@shell.connected
def pause(retort: shell.Shell, job_id: JobArgument) -> None:
    """Pause a job, so that it can be resumed."""
    _show_state(retort, retort.client.jobs.pause(job_id))


@app.command()
@shell.connected
def resume(retort: shell.Shell, job_id: JobArgument) -> None:
    """Resume a paused job."""
    _show_state(retort, retort.client.jobs.resume(job_id))


@app.command()
@shell.connected
def retry(retort: shell.Shell, job_id: JobArgument) -> None:
    """Submit a failed or cancelled job again, as a new one, and print its id."""
    job = retort.client.jobs.retry(job_id)
    if retort.json:
        retort.emit(job)
    else:
        retort.out.print(job.id)
        retort.note(f"{job.state}; follow it with: retort watch {job.id}")


@app.command()
@shell.connected
def report(
    retort: shell.Shell,
    job_id: Annotated[
        str,
        typer.Argument(
            metavar="JOB|STUDY",
            help="Id of a job, or of a study: its best job.",
            autocompletion=completion.jobs_and_studies,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FOLDER|FILE.zip", help="Where to; JOB-report by default."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
) -> None:
    """Download the report of a finished job: numbers, pictures, a model card."""
    from retort import fetching

    saved = fetching.report(retort, job_id, output, force=force)
    if retort.json:
        retort.emit({"files": [str(path) for path in saved]})
        return
    for path in saved:
        retort.out.print(str(path), soft_wrap=True)
    if not saved:
        retort.note(f"{job_id} made no report: its spec has `report: false`")


@app.command()
@shell.connected
def logs(
    retort: shell.Shell,
    job_id: JobArgument,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new lines until the job ends.")
    ] = False,
    attempt: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only this attempt.")
    ] = None,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=1, max=10_000, help="Of each attempt, the last.")
    ] = 200,
) -> None:
    """Show the last lines of each attempt's engine, also while it runs.

    With --follow and --json, each object is on a line of its own.
    """
    from retort.cli import display

    if follow and attempt is not None:
        raise errors.BadOption("--attempt: --follow shows the attempts that come, not one of them")
    shown = retort.client.jobs.logs(job_id, attempt=attempt, lines=lines)
    if not follow:
        retort.show(shown, display.logs)
        return
    if not retort.json:
        display.logs(retort.out, shown)
    try:
        _follow_logs(retort, job_id, shown)
    except KeyboardInterrupt:
        retort.note(f"stopped following; {job_id} continues: retort logs --follow {job_id}")
        raise typer.Exit(shell.Code.INTERRUPTED) from None
    job = retort.client.jobs.get(job_id)
    retort.note(f"{job_id} {job.state}")


def _follow_logs(retort: shell.Shell, job_id: str, shown: "Sequence[types.AttemptLog]") -> None:
    """Print lines as they come, after those that are shown."""
    from retort.cli import display

    if retort.json:
        for one in shown:
            typer.echo(one.model_dump_json())
    position = shown[-1].position if shown else None
    attempt = shown[-1].attempt if shown else 0
    for came in retort.client.jobs.follow_logs(job_id, position=position):
        if retort.json:
            typer.echo(came.model_dump_json())
            continue
        if came.attempt != attempt:
            attempt = came.attempt
            retort.out.print(f"attempt {attempt}", style="bold")
        display.log_lines(retort.out, came.lines)


@app.command()
@shell.connected
def metrics(
    retort: shell.Shell,
    job_id: JobArgument,
    key: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Only this metric; may be repeated.")
    ] = None,
) -> None:
    """Show the measured values of a job: newest, lowest, highest; with --json all of them."""
    from retort.cli import display

    series = retort.client.jobs.metrics(job_id, keys=tuple(key or ()))
    retort.show(series, display.metrics)


@app.command()
@shell.connected
def events(retort: shell.Shell, job_id: JobArgument) -> None:
    """Show what has happened to a job."""
    from retort.cli import display

    retort.show(list(retort.client.jobs.events_after(job_id)), display.events)


@app.command()
@shell.connected
def attempts(retort: shell.Shell, job_id: JobArgument) -> None:
    """List the attempts at a job."""
    from retort.cli import display

    retort.show(retort.client.jobs.attempts(job_id), display.attempts)


@app.command()
@shell.connected
def checkpoints(retort: shell.Shell, job_id: JobArgument) -> None:
    """List the checkpoints from which a job can resume."""
    from retort.cli import display

    retort.show(list(retort.client.jobs.checkpoints(job_id)), display.checkpoints)


def _watch(retort: shell.Shell, job_id: str) -> None:
    from retort import watching
    from retort.cli import display

    with retort.following(job_id, "retort watch") as view:
        job = watching.follow(retort.client, job_id, view)
    if retort.json:
        retort.emit(job)
    elif job.result:
        display.scores(retort.out, job)
    if job.state == "succeeded":
        _conclude(retort, job)
        student = f" as {job.result.student}" if job.result and job.result.student else ""
        retort.note(f"succeeded{student}; get it with: retort download {job_id}")
        return
    _explain_end(retort, job)
    raise typer.Exit(shell.Code.JOB_FAILED)


def _warn(retort: shell.Shell, job: "types.Job") -> None:
    for told in job.warnings or ():
        retort.note(f"warning: {told.message} ({told.code})")


def _conclude(retort: shell.Shell, job: "types.Job") -> None:
    said = (job.result.model_extra or {}).get("conclusion") if job.result else None
    if said:
        retort.note(str(said))
    sized = (job.result.model_extra or {}).get("scores_by_size") or [] if job.result else []
    for one in sized:
        size = f"{one['height']} x {one['width']}"
        retort.note(f"on images of {size} its accuracy is {one['scores']['accuracy']:.2%}")
    kept = (job.result.model_extra or {}).get("kept_epochs") or [] if job.result else []
    if len(kept) > 1:
        shown = ", ".join(f"{one['epoch']} ({one['score']:.2%})" for one in kept[1:])
        retort.note(f"other epochs are kept: {shown}; retort download {job.id} --all saves them")


def _explain_end(retort: shell.Shell, job: "types.Job") -> None:
    failure = job.failure
    if failure is None:
        why = job.state_message or job.state_reason or "no reason given"
        retort.note(f"error: {job.id} {job.state}: {why}")
        return
    attempt = f" (attempt {failure.attempt})" if failure.attempt else ""
    retort.note(f"error: {job.id} {job.state}: {failure.code}: {failure.message}{attempt}")
    for line in failure.log_tail:
        retort.note(f"| {line}")


def _show_job(retort: shell.Shell, job: "types.Job") -> None:
    from retort.cli import display

    retort.show(job, display.job)


def _show_state(retort: shell.Shell, job: "types.Job") -> None:
    _emit_or_say(retort, job, f"{job.id} is {job.state}")


def _emit_or_say(retort: shell.Shell, answer: Any, sentence: str) -> None:  # Any: see Shell.emit
    if retort.json:
        retort.emit(answer)
    else:
        retort.out.print(sentence, soft_wrap=True)


def _pair(option: str, text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise errors.BadOption(f"{option} {text}: expected KEY=VALUE")
    return key, value
