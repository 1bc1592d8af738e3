"""Answer a request to try a version, in a child process without credentials."""

import time
from pathlib import Path

import structlog

from models_registry import errors
from models_registry.artifacts import exports, predictions
from models_registry.persistence import tables
from workers import staging
from workers.child_requests import ChildDied, ask
from workers.context import Context
from workers.distill.config.exports import DESCRIPTION_FILE, ONNX_FILE

log = structlog.get_logger()

MODULE = "workers.distill.export.predict"
_LIMIT_SECONDS = 60.0
# A request that nobody reads any more need not be recorded at all costs.
_PATIENCE_SECONDS = 10.0


def answer(context: Context, prediction_id: str) -> str | None:
    """Answer a waiting request; return `ready` or `failed`, None where there is nothing to do."""
    with context.sessions.begin() as session:
        row = predictions.claim(session, prediction_id)
        if row is None:
            return None
        pictures = predictions.decoded(row.pictures or [])
        blobs = _blobs(context, row.version_id, row.export_id)
    given: dict[str, object] | None = None
    failure: dict[str, object] | None = None
    if blobs is None:
        failure = _failure("export_deleted", "its ONNX export was deleted: make another one")
    else:
        try:
            with staging.scratch(context.settings.scratch_dir, prediction_id) as workdir:
                given, failure = _ask(context, workdir, blobs, pictures)
        except ChildDied as error:
            failure = _failure("prediction_failed", f"the answering process failed: {error}")
        except (errors.RegistryError, OSError) as error:
            failure = _failure("worker_failed", f"the worker could not answer: {error}")
    deadline = time.monotonic() + _PATIENCE_SECONDS
    try:
        context.persist(
            lambda s: predictions.finish(s, prediction_id, answer=given, failure=failure),
            hopeless=lambda: time.monotonic() > deadline,
        )
    except errors.Unavailable as error:
        log.warning("prediction_lost", prediction_id=prediction_id, because=str(error))
        return None
    return predictions.READY if failure is None else predictions.FAILED


def _blobs(context: Context, version_id: str, export_id: str) -> dict[str, tables.BlobRow] | None:
    """Return the graph and its description, or None where they are gone."""
    found = {}
    with context.readers() as session:
        for name in (ONNX_FILE, DESCRIPTION_FILE):
            path = f"{exports.FOLDER}{export_id}/{name}"
            file = session.get(tables.ModelFileRow, (version_id, path))
            if file is None:
                return None
            found[name] = session.get_one(tables.BlobRow, file.sha256)
    return found


def _ask(
    context: Context, workdir: Path, blobs: dict[str, tables.BlobRow], pictures: list[bytes]
) -> tuple[dict[str, object] | None, dict[str, object] | None]:
    """Return answer and failure, of which one is None."""
    for name, blob in blobs.items():
        staging.place(context.storage, blob, workdir / name, cache=context.settings.cache_dir)
    folder = workdir / "pictures"
    folder.mkdir()
    for place, content in enumerate(pictures):
        (folder / str(place)).write_bytes(content)
    report = ask(
        MODULE,
        {},
        workdir,
        launcher=context.launcher,
        must_stop=context.shutting_down.is_set,
        limit_seconds=_LIMIT_SECONDS,
        memory_bytes=context.settings.inspection_memory_bytes,
    )
    if report is None:
        return None, _failure("worker_stopped", "the worker was stopped: send the pictures again")
    if report["type"] == "failure":
        return None, _failure(report["code"], report["message"])
    return {name: report[name] for name in ("answers", "milliseconds")}, None


def _failure(code: str, message: str) -> dict[str, object]:
    return {"code": code, "message": message[:4000]}
