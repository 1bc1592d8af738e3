"""Make an export in a child process without credentials, and record the outcome."""

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.artifacts import exports, models
from models_registry.artifacts.exports import ExportClaim
from models_registry.jobs.leases import OutputFile
from workers import child_files, inspector, source_files, staging
from workers.child_requests import LIMIT_SECONDS, ChildDied, ChildTimedOut, ClaimHold, ask
from workers.context import Context
from workers.engine_process import Report
from workers.source_reading import SourceRefused

log = structlog.get_logger()

MODULE = "workers.distill.export.program"
# If the database is unreachable for longer, the outcome is lost; the claim expires, and the
# export is made again.
_PATIENCE_SECONDS = 600.0
_LONGEST_MESSAGE = 4000


@dataclass(frozen=True)
class _Outcome:
    """How an export ended, and how that is written to the database; None: it is made again."""

    state: str | None
    write: Callable[[Session], None]


def make(context: Context, export_id: str) -> str | None:
    """Make a waiting export; return `ready`, `refused` or `failed`, None where undecided."""
    lease_seconds = context.settings.lease_seconds
    with context.sessions.begin() as session:
        claimed = exports.claim(session, export_id, lease_seconds=lease_seconds)
        request = None if claimed is None else _request(claimed)
    if claimed is None or request is None:
        return None
    with ClaimHold(
        context, lambda s: exports.renew(s, claimed, lease_seconds=lease_seconds)
    ) as hold:
        outcome = _outcome(context, claimed, request, hold)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        try:
            context.persist(
                outcome.write,
                hopeless=lambda: hold.must_stop() or time.monotonic() > deadline,
            )
        except (errors.StaleFence, errors.Unavailable) as error:
            log.warning("export_stale", export_id=export_id, because=str(error))
            return None
    return outcome.state


def _request(claimed: ExportClaim) -> dict[str, Any]:
    version = claimed.version
    return {
        "name": models.reference_of(version),
        "network": version.network,
        "arguments": version.arguments,
        "classes": version.classes,
        "task": version.task,
        "input": version.input,
        "choice": claimed.choice.model_dump(mode="json"),
        "why_no_dataset": claimed.why_no_dataset,
        "may_train": claimed.may_train,
        "card": version.card,
    }


def _outcome(
    context: Context, claimed: ExportClaim, request: dict[str, Any], hold: ClaimHold
) -> _Outcome:
    """Make the export; return another attempt where the failure is not its own fault."""
    try:
        with staging.scratch(context.settings.scratch_dir, claimed.export_id) as workdir:
            return _make(context, claimed, request, workdir, hold)
    except ChildTimedOut:
        # It would take as long again: it is told at once, and not after two more attempts.
        message = (
            f"It took longer than the {LIMIT_SECONDS:g} s that an export may take: export a "
            "smaller network, ask for torch_state_dict, which is the quickest to make, or have it "
            "made where the worker has a faster processor."
        )
        return _failed(claimed, "took_too_long", message)
    except (ChildDied, child_files.OddFile) as error:
        log.warning("export_died", export_id=claimed.export_id, because=str(error))
        return _Outcome(None, lambda s: exports.give_back(s, claimed, counted=True))
    except (errors.RegistryError, OSError) as error:
        is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "its disk is full" if is_full else str(error)
        return _Outcome(None, lambda s: exports.postpone(s, claimed, reason=reason))


def _make(
    context: Context,
    claimed: ExportClaim,
    request: dict[str, Any],
    workdir: Path,
    hold: ClaimHold,
) -> _Outcome:
    context.launcher.warm_up()
    for path, blob in claimed.inputs.items():
        staging.place(context.storage, blob, workdir / path, cache=context.settings.cache_dir)
    if claimed.builtin is not None:
        (workdir / "dataset").mkdir()
        reason = inspector.builtin_dataset(
            claimed.builtin,
            workdir / "dataset",
            cache=context.settings.cache_dir,
            launcher=context.launcher,
            without=claimed.withheld,
            must_stop=hold.must_stop,
        )
        if reason is not None:
            return _failed(claimed, "bad_dataset", f"data set {claimed.builtin}: {reason}")
    if claimed.source is not None:
        try:
            source_files.provide(
                context,
                claimed.source,
                workdir,
                must_stop=hold.must_stop,
                without=claimed.withheld,
            )
        except SourceRefused as error:
            # As without a data set that was deleted.
            request = {**request, "why_no_dataset": error.message}
    if claimed.config is not None:
        staging.fetch(context.storage, claimed.config, workdir / "config.json")
        described = child_files.json_below(workdir, "config.json")
        request = {**request, "preprocessing": described.get("preprocessing")}
    report = ask(
        MODULE,
        request,
        workdir,
        launcher=context.launcher,
        must_stop=hold.must_stop,
        limit_seconds=LIMIT_SECONDS,
        memory_bytes=context.settings.inspection_memory_bytes,
    )
    if report is None:
        return _Outcome(None, lambda s: exports.give_back(s, claimed, counted=False))
    if report.get("retryable"):
        raise OSError(errno.ENOSPC, report["message"])
    if report["type"] == "failure":
        return _failed(claimed, report["code"], report["message"])
    return _made(context, claimed, report, workdir)


def _failed(claimed: ExportClaim, code: str, message: str) -> _Outcome:
    failure = {"code": code, "message": message[:_LONGEST_MESSAGE]}
    return _Outcome(exports.FAILED, lambda s: exports.fail(s, claimed, failure=failure))


def _made(context: Context, claimed: ExportClaim, report: Report, workdir: Path) -> _Outcome:
    measured, notes = report["measured"], report["notes"]
    refusal = report["refusal"]
    if refusal is not None:
        return _Outcome(
            exports.REFUSED,
            lambda s: exports.refuse(s, claimed, failure=refusal, measured=measured, notes=notes),
        )
    files = []
    for name in report["files"]:
        with child_files.open_below(workdir, f"export/{name}") as file:
            stored = context.storage.put(file)
        files.append(OutputFile(name, stored.sha256, stored.size_bytes, stored.key))
    return _Outcome(
        exports.READY,
        lambda s: exports.finish(s, claimed, files=files, measured=measured, notes=notes),
    )
