"""Make the sample sheet of a data set, in a child process without credentials."""

import json
import time
from pathlib import Path

import structlog

from models_registry import errors
from models_registry.artifacts import dataset_samples, datasets
from models_registry.persistence import tables
from workers import child_files, inputs, inspector, machine_health, staging
from workers.child_requests import ChildDied, ask
from workers.context import Context
from workers.distill.config import samples

log = structlog.get_logger()

MODULE = "workers.distill.sampling"
_LIMIT_SECONDS = 120.0
# A request that nobody reads any more need not be recorded at all costs.
_PATIENCE_SECONDS = 10.0
_OTHER_SPLITS = frozenset({"validation.safetensors", "test.safetensors"})

Outcome = tuple[dict[str, object] | None, dict[str, object] | None]
"""Sheet and failure, of which one is None."""


def make(context: Context, version_id: str) -> str | None:
    """Make a sheet that is waited for; return `ready` or `failed`, None where there is none."""
    with context.sessions.begin() as session:
        version = dataset_samples.claim(session, version_id)
        if version is None:
            return None
        blobs = inputs.dataset_files(session, version, withheld=_OTHER_SPLITS)
        builtin = datasets.name_of(version) if version.format == datasets.BUILTIN else None
    try:
        with staging.scratch(context.settings.scratch_dir, f"{version_id}.samples") as workdir:
            sheet, failure = _make(context, workdir, blobs, builtin)
    except ChildDied as error:
        sheet, failure = None, _failure("samples_failed", f"the process failed: {error}")
    except (errors.RegistryError, OSError) as error:
        sheet, failure = None, _failure("worker_failed", f"the worker could not do it: {error}")
    deadline = time.monotonic() + _PATIENCE_SECONDS
    try:
        context.persist(
            lambda s: dataset_samples.finish(s, version_id, sheet=sheet, failure=failure),
            hopeless=lambda: time.monotonic() > deadline,
        )
    except errors.Unavailable as error:
        log.warning("samples_lost", version_id=version_id, because=str(error))
        return None
    return dataset_samples.READY if failure is None else dataset_samples.FAILED


def _make(
    context: Context, workdir: Path, blobs: dict[str, tables.BlobRow], builtin: str | None
) -> Outcome:
    needed = sum(blob.size_bytes for blob in blobs.values())
    free = machine_health.free_bytes(workdir)
    if free < needed + context.settings.worker_min_free_bytes:
        return None, _failure(
            "no_room",
            f"the worker has {machine_health.gibibytes(free)} of disk free, and the pictures have "
            f"{machine_health.gibibytes(needed)}: free some of it, or ask again",
        )
    for path, blob in blobs.items():
        staging.place(context.storage, blob, workdir / path, cache=context.settings.cache_dir)
    must_stop = context.shutting_down.is_set
    if builtin is not None:
        (workdir / "dataset").mkdir()
        reason = inspector.builtin_dataset(
            builtin,
            workdir / "dataset",
            cache=context.settings.cache_dir,
            launcher=context.launcher,
            without=_OTHER_SPLITS,
            must_stop=must_stop,
        )
        if reason is not None:
            return None, _failure("bad_dataset", f"data set {builtin}: {reason}")
    report = ask(
        MODULE,
        {},
        workdir,
        launcher=context.launcher,
        must_stop=must_stop,
        limit_seconds=_LIMIT_SECONDS,
        memory_bytes=context.settings.inspection_memory_bytes,
    )
    if report is None:
        return None, _failure("worker_stopped", "the worker was stopped: ask again")
    if report["type"] == "failure":
        return None, _failure(report["code"], report["message"])
    return json.loads(child_files.read_below(workdir, samples.SHEET_FILE)), None


def _failure(code: str, message: str) -> dict[str, object]:
    return {"code": code, "message": message[:4000]}
