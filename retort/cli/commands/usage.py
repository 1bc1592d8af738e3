"""Commands for quotas: what a project may use, what it uses, and how that is changed."""

from typing import TYPE_CHECKING, Annotated

import typer

from retort import errors
from retort.cli import shell

if TYPE_CHECKING:
    from retort import types

_NONE = "none"


@shell.connected
def usage(retort: shell.Shell) -> None:
    """Show the project's quotas, and what is used of each."""
    _show(retort, retort.client.quotas.usage())


@shell.connected
def quota(
    retort: shell.Shell,
    changes: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=LIMIT...",
            help="Such as jobs_running=4 or share_weight=2; `none` leaves a quota to the "
            "service's limit.",
        ),
    ],
) -> None:
    """Set limits of the project's own; for administrators."""
    _show(retort, retort.client.quotas.change(dict(_parsed(change) for change in changes)))


def _parsed(change: str) -> tuple[str, float | None]:
    name, separator, value = change.partition("=")
    try:
        if separator and value == _NONE:
            return name, None
        return name, float(value) if "." in value else int(value)
    except ValueError:
        raise errors.BadOption(
            f"{change}: expected NAME=LIMIT with a number or `{_NONE}`, as in jobs_running=4"
        ) from None


def _show(retort: shell.Shell, shown: "types.Usage") -> None:
    from retort.cli import display

    if retort.json:
        retort.emit(shown)
        return
    retort.out.print(f"project {shown.name} ({shown.project}), weight {shown.share_weight:g}")
    display.table(
        retort.out,
        ("quota", "used", "limit", "set by"),
        (
            (one.name, _amount(one, one.used), _amount(one, one.limit) or "none", _source(one))
            for one in shown.quotas
        ),
    )


def _amount(quota: "types.Quota", value: int | None) -> str | None:
    from retort.cli import display

    if value is None:
        return None
    return display.size(value) if quota.name.endswith("_bytes") else display.count(value)


def _source(quota: "types.Quota") -> str:
    if quota.limit is None:
        return ""
    return "the project" if quota.limit == quota.own_limit else "the service"
