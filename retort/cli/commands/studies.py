"""Commands for studies: `retort study ...`."""

import functools
import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retort.cli import completion, shell

if TYPE_CHECKING:
    from retort import types

app = typer.Typer(help="Compare methods over seeds: many jobs submitted together.")

StudyArgument = Annotated[
    str,
    typer.Argument(
        metavar="STUDY", help="Id of the study: stu_...", autocompletion=completion.studies
    ),
]


@app.command()
@shell.connected
def submit(
    retort: shell.Shell,
    spec_file: Annotated[
        Path, typer.Argument(metavar="STUDY.yaml", help="The study: YAML or JSON, `-` for stdin.")
    ],
    changes: shell.ChangesOption = None,
    follow: Annotated[bool, typer.Option("--watch", help="Follow the study to its end.")] = False,
    validate: Annotated[
        bool, typer.Option("--validate", help="Only validate the study, and show its variants.")
    ] = False,
) -> None:
    """Submit a study and print its id."""
    from retort import specs
    from retort.cli import display

    spec = specs.load(spec_file, changes or ())
    if validate:
        plan = retort.client.studies.validate(spec)
        retort.show(plan, display.plan)
        if not retort.json:
            most = "at most " if plan.spaces else ""
            retort.note(f"the study is valid and has {most}{plan.job_count:,} jobs")
        return
    study = retort.client.studies.submit(spec)
    size = f"{study.job_count:,} jobs"
    if study.search is not None:
        size = f"a search of {study.search.planned_trials} trials"
        for told in study.search.warnings or ():
            retort.note(f"warning: {told.message}")
    if follow:
        retort.note(f"submitted {study.id}: {size}")
        _watch(retort, study.id)
    elif retort.json:
        retort.emit(study)
    else:
        retort.out.print(study.id)
        retort.note(f"{size}; follow them with: retort study watch {study.id}")


@app.command("list")
@shell.connected
def list_studies(
    retort: shell.Shell,
    active: Annotated[
        bool, typer.Option("--active", help="Only studies that have not ended.")
    ] = False,
    limit: shell.LimitOption = 20,
) -> None:
    """List studies."""
    pages = retort.client.studies.list(active=active or None, page_size=min(limit, 100))
    studies = list(itertools.islice(pages, limit))
    from retort.cli import display

    retort.show(studies, display.studies)


@app.command()
@shell.connected
def show(retort: shell.Shell, study_id: StudyArgument) -> None:
    """Show a study."""
    study = retort.client.studies.get(study_id)
    from retort.cli import display

    retort.show(study, display.study)


@app.command()
@shell.connected
def watch(retort: shell.Shell, study_id: StudyArgument) -> None:
    """Follow a study to its end; exit with 1 unless all of its jobs succeeded."""
    _watch(retort, study_id)


@app.command()
@shell.connected
def cancel(retort: shell.Shell, study_id: StudyArgument) -> None:
    """Cancel all jobs of a study that have not ended."""
    study = retort.client.studies.cancel(study_id)
    if retort.json:
        retort.emit(study)
        return
    from retort.cli import display

    retort.out.print(f"{study.id} is {study.state}: {display.job_counts(study)}", soft_wrap=True)


@app.command()
@shell.connected
def trials(retort: shell.Shell, study_id: StudyArgument, limit: shell.LimitOption = 500) -> None:
    """List the trials of a search, best first by the validation split."""
    study = retort.client.studies.get(study_id)
    found = list(itertools.islice(retort.client.studies.trials(study_id), limit))
    from retort import errors
    from retort.cli import display

    search = study.search
    if search is None:
        raise errors.BadOption(
            f"{study_id} has no search; try: retort study leaderboard {study_id}"
        )
    sign = 1 if search.lower_is_better else -1
    complete = [one for one in found if one.state == "complete" and one.value is not None]
    complete.sort(key=lambda one: (sign * (one.value or 0.0), one.number))
    others = sorted((one for one in found if one not in complete), key=lambda one: one.number)
    show = functools.partial(display.trials, objective=search.objective)
    retort.show([*complete, *others], show)


@app.command()
@shell.connected
def leaderboard(
    retort: shell.Shell,
    study_id: StudyArgument,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV for a spreadsheet.")] = False,
) -> None:
    """Compare the variants of a study, best first."""
    if as_csv and not retort.json:
        sys.stdout.write(retort.client.studies.leaderboard_csv(study_id))
        return
    _show_leaderboard(retort, study_id)


def _show_leaderboard(retort: shell.Shell, study_id: str) -> None:
    shown = retort.client.studies.leaderboard(study_id)
    from retort.cli import display

    retort.show(shown, display.leaderboard)


def _watch(retort: shell.Shell, study_id: str) -> None:
    from retort import watching

    with retort.following(study_id, "retort study watch") as view:
        study = watching.follow_study(retort.client, study_id, view)
    _show_leaderboard(retort, study_id)
    _explain_end(retort, study)


def _explain_end(retort: shell.Shell, study: "types.Study") -> None:
    from retort.cli import display

    if study.state == "succeeded":
        beside = f", {study.pruned} of them pruned" if study.pruned else ""
        retort.note(f"succeeded: all {study.job_count:,} jobs{beside}")
        return
    counts = display.job_counts(study)
    retort.note(f"error: {study.id} {study.state}: {counts}; retort jobs --study {study.id}")
    raise typer.Exit(shell.Code.JOB_FAILED)
