"""Answer a request to try a version, in a child process without credentials."""

from pathlib import Path

from models_registry.artifacts import exports, predictions
from models_registry.persistence import tables
from workers import staging, waiting_requests
from workers.context import Context
from workers.distill.config.exports import DESCRIPTION_FILE, ONNX_FILE
from workers.waiting_requests import Answer, Unanswered

MODULE = "workers.distill.export.predict"
_LIMIT_SECONDS = 60.0
_AGAIN = "send the pictures again"


def answer(context: Context, prediction_id: str) -> str | None:
    """Answer a waiting request; return `ready` or `failed`, None where there is nothing to do."""
    with context.sessions.begin() as session:
        row = predictions.claim(session, prediction_id)
        if row is None:
            return None
        pictures = predictions.decoded(row.pictures or [])
        blobs = _blobs(context, row.version_id, row.export_id)
    is_ready = waiting_requests.answer(
        context,
        prediction_id,
        lambda workdir: _ask(context, workdir, blobs, pictures),
        died="prediction_failed",
        finish=lambda session, given, failure: predictions.finish(
            session, prediction_id, answer=given, failure=failure
        ),
    )
    if is_ready is None:
        return None
    return predictions.READY if is_ready else predictions.FAILED


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
    context: Context,
    workdir: Path,
    blobs: dict[str, tables.BlobRow] | None,
    pictures: list[bytes],
) -> Answer:
    if blobs is None:
        raise Unanswered("export_deleted", "its ONNX export was deleted: make another one")
    for name, blob in blobs.items():
        staging.place(context.storage, blob, workdir / name, cache=context.settings.cache_dir)
    folder = workdir / "pictures"
    folder.mkdir()
    for place, content in enumerate(pictures):
        (folder / str(place)).write_bytes(content)
    report = waiting_requests.ask_child(
        context, MODULE, workdir, limit_seconds=_LIMIT_SECONDS, again=_AGAIN
    )
    return {name: report[name] for name in ("answers", "milliseconds")}
