"""How the audit log, retention and erasures look on a terminal."""

from collections.abc import Iterable

import rich.console

from retort import types
from retort.cli import display


def audit(console: rich.console.Console, shown: Iterable[types.AuditEntry]) -> None:
    """Print entries of the audit log."""
    display.table(
        console,
        ("at", "action", "subject", "by", "key", "facts"),
        (
            (
                display.moment(one.at),
                one.action,
                one.subject,
                one.actor,
                one.key_id,
                display.compact(one.facts),
            )
            for one in shown
        ),
        whole=("at", "action", "subject"),
        folds=("facts",),
        drops=("key",),
    )


def retention(console: rich.console.Console, shown: types.RetentionPreview) -> None:
    """Print a policy, and what a sweep could delete."""
    policy = shown.policy
    kept = {
        "checkpoints": f"newest {policy.checkpoints_last}",
        "failed_attempts": _days(policy.failed_attempts_days),
        "logs": _days(policy.logs_days),
        "metrics": _days(policy.metrics_days),
        "events": _days(policy.events_days),
    }
    display.table(
        console,
        ("kind", "kept", "due: jobs", "entries", "bytes", "next sweep"),
        (
            (
                one.kind,
                kept.get(one.kind, ""),
                one.jobs,
                one.entries,
                display.size(one.size_bytes),
                display.size(one.ready_bytes),
            )
            for one in shown.kinds
        ),
        whole=("kind", "kept"),
    )
    hours = policy.grace_seconds / 3600
    console.print(f"What is due is deleted {hours:g} hours after it was found.", soft_wrap=True)
    for note in shown.notes:
        console.print(note, soft_wrap=True)


def erasure(console: rich.console.Console, shown: types.Erasure) -> None:
    """Print what was erased, and what remains."""
    console.print(
        f"{shown.reference} is erased: {len(shown.versions)} versions, {shown.blobs} files of "
        f"{display.size(shown.size_bytes)}",
        soft_wrap=True,
    )
    for title, names in (
        ("pictures taken out of reports", shown.pictures),
        ("jobs cancelled", shown.cancelled_jobs),
    ):
        if names:
            console.print(f"{title}: {', '.join(names)}", soft_wrap=True)
    if shown.remains:
        console.print("What remains:")
        display.table(
            console,
            ("kind", "name", "why"),
            ((one.kind, one.name, one.reason) for one in shown.remains),
            folds=("why",),
            whole=("kind",),
        )
    if shown.waiting_blobs:
        console.print(f"{shown.waiting_blobs} files are still in the byte store")
    for note in shown.notes:
        console.print(note, soft_wrap=True)


def _days(value: int | None) -> str:
    return "forever" if value is None else f"{value} d"
