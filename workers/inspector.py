"""Inspect uploads in a child process without credentials, and record the outcome.

Models are converted to safetensors, data sets to the engine's prepared form; what cannot be
converted is rejected with the reason. Built-in data sets are written in the same way.
"""

import errno
import json
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.artifacts import dataset_sources, datasets, inspections
from models_registry.jobs import leases, network_trials, submission
from models_registry.persistence import tables
from workers import child_files, source_files, source_reading, staging
from workers.child_requests import ChildDied, ClaimHold, ask
from workers.context import Context
from workers.distill.config import class_names, teachers
from workers.engine_launcher import EngineLauncher
from workers.engine_process import Report
from workers.source_reading import SourceRefused

log = structlog.get_logger()

_MODULE = "workers.distill.inspection.uploads"
# If the database is unreachable for longer, the outcome is lost; the claim expires, and the
# inspection is repeated.
_PATIENCE_SECONDS = 600.0
# A small upload must not give an answer that fills every list: what is stored of a refusal.
_MOST_KEYS = 100
_LONGEST_KEY = 300
_LONGEST_MESSAGE = 4000


@dataclass(frozen=True)
class _Answer:
    """What to say of a version, and how that is written to the database."""

    state: str | None
    write: Callable[[Session], None]


def inspect(context: Context, kind: inspections.Kind, version_id: str) -> str | None:
    """Inspect a pending version; return `ready` or `rejected`, None where nothing was decided."""
    with context.sessions.begin() as session:
        inspection = inspections.claim(
            session,
            kind=kind,
            version_id=version_id,
            lease_seconds=context.settings.lease_seconds,
        )
    if inspection is None:
        return None
    lease_seconds = context.settings.lease_seconds
    with ClaimHold(
        context, lambda s: inspections.renew(s, inspection, lease_seconds=lease_seconds)
    ) as hold:
        answer = _answer(context, inspection, hold)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        try:
            context.persist(
                answer.write,
                hopeless=lambda: hold.must_stop() or time.monotonic() > deadline,
            )
        except (errors.StaleFence, errors.Unavailable) as error:
            log.warning("inspection_stale", kind=kind, version_id=version_id, because=str(error))
            return None
    return answer.state


def try_network(context: Context, digest: str) -> str | None:
    """Build a network of another library; return `ready` or `rejected`, None if undecided."""
    with context.sessions() as session:
        trial = session.get(tables.NetworkTrialRow, digest)
        if trial is None or trial.state != network_trials.PENDING:
            return None
        request = {
            "kind": "network",
            "network": trial.network,
            "arguments": trial.arguments,
            **trial.input,
        }
    traits: dict[str, Any] | None = None
    rejection: dict[str, Any] | None = None
    try:
        with staging.scratch(context.settings.scratch_dir, digest[:16]) as workdir:
            report = ask(
                _MODULE,
                request,
                workdir,
                launcher=context.launcher,
                must_stop=context.shutting_down.is_set,
                memory_bytes=context.settings.inspection_memory_bytes,
            )
    except ChildDied as error:
        log.warning("network_trial_died", network=request["network"], because=str(error))
    except OSError as error:
        log.warning("network_trial_postponed", network=request["network"], error=str(error))
        return None
    else:
        if report is None or report.get("retryable"):
            return None
        if report["type"] == "failure":
            rejection = {"code": report["code"], "message": report["message"]}
        else:
            traits = report["traits"]

    def write(session: Session) -> str:
        ended = network_trials.finish(session, digest, traits=traits, rejection=rejection)
        if ended.state != network_trials.PENDING:
            submission.settle_tried(session, ended)
        return ended.state

    deadline = time.monotonic() + _PATIENCE_SECONDS
    try:
        return context.persist(write, hopeless=lambda: time.monotonic() > deadline)
    except errors.Unavailable as error:
        log.warning("network_trial_lost", network=request["network"], because=str(error))
        return None


def _answer(context: Context, inspection: inspections.Inspection, hold: ClaimHold) -> _Answer:
    """Inspect; return another attempt where the failure is not the file's fault."""
    try:
        with staging.scratch(context.settings.scratch_dir, inspection.version_id) as workdir:
            return _examine(context, inspection, workdir, hold)
    except (ChildDied, child_files.OddFile) as error:
        log.warning("inspection_died", version_id=inspection.version_id, because=str(error))
        return _given_back(inspection, counted=True)
    except SourceRefused as error:
        return _rejected(inspection, {"code": error.code, "message": error.message})
    except (errors.RegistryError, OSError) as error:
        is_full = isinstance(error, errors.StorageFull) or (
            isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        )
        # A source that never answers is told in the end, and not waited for silently.
        may_be_the_file = is_full or inspection.source is not None
        return _postponed(inspection, str(error), may_be_the_file=may_be_the_file)


def _examine(
    context: Context, inspection: inspections.Inspection, workdir: Path, hold: ClaimHold
) -> _Answer:
    context.launcher.warm_up()
    request, pinned = _request(context, inspection), None
    if inspection.source is not None:
        pinned = _fetch_source(context, inspection.source, request, workdir, hold)
        if pinned is None:
            return _given_back(inspection, counted=False)
        request = pinned.request
    elif inspection.blob is not None:
        staging.fetch(context.storage, inspection.blob, workdir / source_files.UPLOAD)
    report = ask(
        _MODULE,
        request,
        workdir,
        launcher=context.launcher,
        must_stop=hold.must_stop,
        memory_bytes=context.settings.inspection_memory_bytes,
    )
    if report is None:
        return _given_back(inspection, counted=False)
    if report.get("retryable"):
        # Only a full disk is reported so.
        return _postponed(inspection, report["message"], may_be_the_file=True)
    if report["type"] == "failure":
        if pinned is not None:
            report = {**report, "message": f"{pinned.url}: {report['message']}"}
        return _rejected(inspection, report)
    version = inspection.version
    if pinned is not None:
        return _accepted_source(context, inspection, pinned, report, workdir)
    if isinstance(version, tables.ModelVersionRow):
        return _accepted_model(context, inspection, version, report, workdir)
    return _accepted_dataset(context, inspection, report, workdir)


def _fetch_source(
    context: Context,
    source: dataset_sources.DatasetSource,
    request: dict[str, Any],
    workdir: Path,
    hold: ClaimHold,
) -> dataset_sources.PinnedSource | None:
    """List a source and fetch it as an upload; return what it was, None where it was stopped."""
    reader = source_reading.open_source(source.url, context.settings, project=source.project)
    listing = reader.listing()
    source_files.check_room(context.settings, listing, workdir)
    upload = workdir / source_files.UPLOAD
    if not source_files.fetch(reader, listing, upload, must_stop=hold.must_stop):
        return None
    name = source_files.file_name(source.name, listing.kind)
    return dataset_sources.PinnedSource(
        url=source.url,
        kind=listing.kind,
        sha256=listing.sha256,
        files=len(listing.files),
        size_bytes=listing.size_bytes,
        request={**request, "filename": name},
    )


def _rejected(inspection: inspections.Inspection, report: Report) -> _Answer:
    rejection = _rejection(report)
    return _Answer("rejected", lambda s: inspections.reject(s, inspection, rejection=rejection))


def _given_back(inspection: inspections.Inspection, *, counted: bool) -> _Answer:
    return _Answer(None, lambda s: inspections.give_back(s, inspection, counted=counted))


def _postponed(
    inspection: inspections.Inspection, reason: str, *, may_be_the_file: bool
) -> _Answer:
    def write(session: Session) -> None:
        inspections.postpone(session, inspection, reason=reason, may_be_the_file=may_be_the_file)

    return _Answer(None, write)


def _request(context: Context, inspection: inspections.Inspection) -> dict[str, Any]:
    version = inspection.version
    if isinstance(version, tables.ModelVersionRow):
        is_table = version.network == teachers.PREDICTIONS
        return {
            "kind": "model",
            "source": "upload",
            "filename": inspection.filename,
            "network": version.network,
            "arguments": version.arguments,
            "task": version.task,
            "classes": len(version.classes),
            "input": version.input,
            "allow_pickle": context.settings.allow_pickle,
            **({"images": version.arguments["rows"]} if is_table else {}),
            **(version.reading or {}),
        }
    return {
        "kind": "dataset",
        "source": "upload",
        "filename": inspection.filename,
        "format": version.format,
        "task": version.task,
        "input": version.input,
        "decoded_bytes": context.settings.decoded_dataset_bytes,
    }


def _accepted_model(
    context: Context,
    inspection: inspections.Inspection,
    version: tables.ModelVersionRow,
    report: Report,
    workdir: Path,
) -> _Answer:
    name = teachers.file_of(version.network)
    weights = _put(context, workdir, name)
    # A graph's and a table's are filled in by their inspection.
    arguments = report.get("arguments", version.arguments)
    counted = class_names.note_of_model(version.classes)
    notes = [*report["warnings"], *([counted] if counted else [])]
    facts = {
        "parameters": report["parameters"],
        "notes": notes,
        "traits": report["traits"],
        "arguments": arguments,
    }
    description = {
        "network": version.network,
        "arguments": arguments,
        "task": version.task,
        "classes": version.classes,
        "input": version.input,
        "parameters": report["parameters"],
        "notes": notes,
        "sha256": weights.sha256,
    }
    child_files.write_below(
        workdir, "config.json", (json.dumps(description, indent=2) + "\n").encode()
    )
    files = [weights, _put(context, workdir, "config.json")]
    return _accepted(inspection, files, weights.sha256, facts)


def _accepted_dataset(
    context: Context, inspection: inspections.Inspection, report: Report, workdir: Path
) -> _Answer:
    folder = workdir / "dataset"
    names = sorted(path.name for path in folder.iterdir())
    files = [_put(context, workdir, f"{folder.name}/{name}") for name in names]
    digest = datasets.digest({file.path: file.sha256 for file in files})
    return _accepted(inspection, files, digest, _facts_of_dataset(report))


def _facts_of_dataset(report: Report) -> dict[str, Any]:
    told = ("classes", "splits", "boxes", "labelled", "input", "encoded", "notes")
    facts = {name: report["dataset"].get(name) for name in told}
    return {**facts, "format": report["format"]}  # asked for by name, or recognised


def _accepted_source(
    context: Context,
    inspection: inspections.Inspection,
    pinned: dataset_sources.PinnedSource,
    report: Report,
    workdir: Path,
) -> _Answer:
    """Accept what was prepared of a source, and keep it on this machine alone."""
    files = source_files.keep(context, workdir)
    digest = datasets.digest({file.path: file.sha256 for file in files})
    facts = _facts_of_dataset(report)

    def write(session: Session) -> None:
        inspections.accept_source(
            session, inspection, pinned=pinned, files=files, sha256=digest, facts=facts
        )

    return _Answer("ready", write)


def _accepted(
    inspection: inspections.Inspection,
    files: list[leases.OutputFile],
    sha256: str,
    facts: dict[str, Any],
) -> _Answer:
    return _Answer(
        "ready",
        lambda s: inspections.accept(s, inspection, files=files, sha256=sha256, facts=facts),
    )


def _put(context: Context, workdir: Path, path: str) -> leases.OutputFile:
    """Store what the child has left at a path below its folder, under the file's name."""
    with child_files.open_below(workdir, path) as file:
        stored = context.storage.put(file)
    return leases.OutputFile(Path(path).name, stored.sha256, stored.size_bytes, stored.key)


def _rejection(report: Report) -> dict[str, Any]:
    """Return what is stored of a refusal; its message counts what the lists are cut to."""
    details = report.get("details") or report
    return {
        "code": report["code"],
        "message": _cut(report["message"], _LONGEST_MESSAGE),
        **{
            name: [
                _cut(one, _LONGEST_KEY) if isinstance(one, str) else one
                for one in (report.get(name) or details.get(name) or [])[:_MOST_KEYS]
            ]
            for name in ("missing_keys", "unexpected_keys", "shape_mismatches")
        },
    }


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def builtin_dataset(
    name: str,
    folder: Path,
    *,
    cache: Path,
    launcher: EngineLauncher,
    without: Collection[str] = (),
    must_stop: Callable[[], bool] = lambda: False,
) -> str | None:
    """Put the built-in data set `name` into `folder`; return why that failed, or None.

    It is written once on a machine, under a lock, and copied from then on. Files named in `without`
    are left out. Where `must_stop` ends the writing, there is neither a data set nor a failure.
    """
    kept = builtin_folder(cache) / name
    kept.parent.mkdir(parents=True, exist_ok=True)
    with staging.locked(kept.parent / f".{name}.lock"):
        if not staging.is_intact(kept):
            with staging.scratch(kept.parent, f".{name}") as workdir:
                try:
                    request = {"kind": "builtin", "name": name}
                    report = ask(_MODULE, request, workdir, launcher=launcher, must_stop=must_stop)
                except ChildDied as error:
                    return f"the process that writes it died: {error}"
                if report is None:
                    return None
                if report["type"] == "failure":
                    return str(report.get("message"))
                (workdir / "dataset").rename(kept)
                staging.seal(kept)
    for path in kept.iterdir():
        if path.name not in without:
            staging.copy(path, folder / path.name)
    return None


def builtin_folder(cache: Path) -> Path:
    """Return the folder of a machine's cache for built-in data sets."""
    return cache / "builtin"
