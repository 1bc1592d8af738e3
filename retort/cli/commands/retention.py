"""Commands about what is kept: the policy, a sweep, the erasure of a data set; the audit log."""

from datetime import datetime
from typing import Annotated

import typer

from retort import errors
from retort.cli import completion, shell

app = typer.Typer(help="For how long the project keeps what jobs leave behind.")

FOREVER = "forever"
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Change nothing; say what would go.")]
DaysOption = Annotated[
    str | None, typer.Option(metavar="DAYS", help="After the job's end; `forever` keeps them.")
]


@app.command("show")
@shell.connected
def show_retention(retort: shell.Shell) -> None:
    """Show the policy, and what it lets go next."""
    _show_preview(retort, {})


@app.command("set")
@shell.connected
def set_retention(
    retort: shell.Shell,
    checkpoints_last: Annotated[
        int | None, typer.Option(min=1, help="Checkpoints that a job that goes on keeps.")
    ] = None,
    failed_attempts_days: DaysOption = None,
    logs_days: DaysOption = None,
    metrics_days: DaysOption = None,
    events_days: DaysOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Change the policy; with --dry-run, only show what the change would let go."""
    days = {
        "failed_attempts_days": failed_attempts_days,
        "logs_days": logs_days,
        "metrics_days": metrics_days,
        "events_days": events_days,
    }
    changes = {name: _days(name, given) for name, given in days.items() if given is not None}
    if checkpoints_last is not None:
        changes["checkpoints_last"] = checkpoints_last
    if not changes:
        raise errors.BadOption("retention set: name what to change, such as --logs-days 90")
    if not dry_run:
        retort.client.retention.change(changes)
        changes = {}
    _show_preview(retort, changes)


@app.command("sweep")
@shell.connected
def sweep_retention(retort: shell.Shell, dry_run: DryRunOption = False) -> None:
    """Let maintenance sweep now and not within the hour."""
    if dry_run:
        _show_preview(retort, {})
        return
    from retort.cli import administration_display

    asked = retort.client.retention.sweep()
    if retort.json:
        retort.emit(asked)
        return
    administration_display.retention(retort.out, asked)
    retort.note("maintenance was asked to sweep; `retort audit --action retention` tells the end")


@shell.connected
def erase(
    retort: shell.Shell,
    reference: Annotated[
        str,
        typer.Argument(
            metavar="NAME[@V]", help="A data set, or one version.", autocompletion=completion.things
        ),
    ],
    cancel_jobs: Annotated[
        bool, typer.Option("--cancel-jobs", help="Cancel the jobs that need it.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Erase a data set at once and everywhere, as the law may demand; list what remains."""
    from retort.cli import administration_display

    name, at, version = reference.partition("@")
    if at and not version.isdecimal():
        raise errors.BadOption(f"{reference}: a version is erased by its number, as in {name}@1")
    if not yes and retort.json:
        raise errors.BadOption("--json asks nothing: give --yes as well to erase")
    if not yes:
        what = reference if at else f"{reference} with all its versions"
        typer.confirm(f"Erase data set {what}, also from reports and caches?", abort=True, err=True)
    erased = retort.client.datasets.erase(
        name, int(version) if at else None, cancel_jobs=cancel_jobs
    )
    retort.show(erased, administration_display.erasure)


@shell.connected
def audit(
    retort: shell.Shell,
    action: Annotated[
        str | None, typer.Option(help="Such as key.created, or key for all of that kind.")
    ] = None,
    subject: Annotated[str | None, typer.Option(help="Id or reference of the thing.")] = None,
    key: Annotated[str | None, typer.Option(metavar="KEY", help="Id of the key used.")] = None,
    since: Annotated[datetime | None, typer.Option(help="Local time.")] = None,
    until: Annotated[datetime | None, typer.Option(help="Local time.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most entries to show.")] = 50,
) -> None:
    """Show who did what to keys, aliases, deletions and rules; for administrators."""
    import itertools

    from retort.cli import administration_display

    entries = retort.client.audit.list(
        action=action,
        subject=subject,
        key_id=key,
        since=since.astimezone() if since else None,
        until=until.astimezone() if until else None,
    )
    shown = list(itertools.islice(entries, limit + 1))
    retort.show(shown[:limit], administration_display.audit)
    if len(shown) > limit:
        retort.note(f"there are more: the newest {limit} are shown; see --limit, --until")


def _show_preview(retort: shell.Shell, changes: dict[str, int | None]) -> None:
    from retort.cli import administration_display

    retort.show(retort.client.retention.preview(changes), administration_display.retention)


def _days(name: str, given: str) -> int | None:
    if given == FOREVER:
        return None
    if given.isdecimal() and int(given) > 0:
        return int(given)
    option = name.replace("_", "-")
    raise errors.BadOption(f"--{option} is a number of days from 1 on, or {FOREVER}, not {given!r}")
