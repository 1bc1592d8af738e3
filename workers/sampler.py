"""Make the sample sheet of a data set, in a child process without credentials."""

from pathlib import Path

from models_registry.artifacts import dataset_samples, dataset_sources, datasets
from models_registry.artifacts.dataset_sources import SourceInputs
from models_registry.persistence import tables
from workers import (
    child_files,
    inputs,
    inspector,
    machine_health,
    source_files,
    staging,
    waiting_requests,
)
from workers.context import Context
from workers.distill.config import samples
from workers.source_reading import SourceRefused
from workers.waiting_requests import Answer, Unanswered

MODULE = "workers.distill.inspection.samples"
_LIMIT_SECONDS = 120.0
_OTHER_SPLITS = frozenset({"validation.safetensors", "test.safetensors"})
_AGAIN = "ask again"


def make(context: Context, version_id: str) -> str | None:
    """Make a sheet that is waited for; return `ready` or `failed`, None where there is none."""
    with context.sessions.begin() as session:
        version = dataset_samples.claim(session, version_id)
        if version is None:
            return None
        blobs = inputs.dataset_files(session, version, withheld=_OTHER_SPLITS)
        builtin = datasets.name_of(version) if version.format == datasets.BUILTIN else None
        source = dataset_sources.inputs_of(session, version)
    is_ready = waiting_requests.answer(
        context,
        f"{version_id}.samples",
        lambda workdir: _make(context, workdir, blobs, builtin, source),
        died="samples_failed",
        finish=lambda session, sheet, failure: dataset_samples.finish(
            session, version_id, sheet=sheet, failure=failure
        ),
    )
    if is_ready is None:
        return None
    return dataset_samples.READY if is_ready else dataset_samples.FAILED


def _make(
    context: Context,
    workdir: Path,
    blobs: dict[str, tables.BlobRow],
    builtin: str | None,
    source: SourceInputs | None,
) -> Answer:
    needed = sum(blob.size_bytes for blob in blobs.values())
    if source is not None:
        needed += sum(file.size_bytes for file in source.files)
        if not source_files.are_cached(context.settings, source):
            needed += source_files.room_of(source)
    free = machine_health.free_bytes(workdir)
    kept_free = context.settings.worker_min_free_bytes
    if free < needed + kept_free:
        raise Unanswered(
            "no_room",
            f"the worker has {machine_health.gibibytes(free)} of disk free; the pictures have "
            f"{machine_health.gibibytes(needed)}, and {machine_health.gibibytes(kept_free)} must "
            "stay free (RETORT_WORKER_MIN_FREE_BYTES): free some of it, or ask again",
        )
    for path, blob in blobs.items():
        staging.place(context.storage, blob, workdir / path, cache=context.settings.cache_dir)
    if builtin is not None:
        (workdir / "dataset").mkdir()
        reason = inspector.builtin_dataset(
            builtin,
            workdir / "dataset",
            cache=context.settings.cache_dir,
            launcher=context.launcher,
            without=_OTHER_SPLITS,
            must_stop=context.shutting_down.is_set,
        )
        if reason is not None:
            raise Unanswered("bad_dataset", f"data set {builtin}: {reason}")
    if source is not None:
        try:
            source_files.provide(
                context,
                source,
                workdir,
                must_stop=context.shutting_down.is_set,
                without=_OTHER_SPLITS,
            )
        except SourceRefused as error:
            raise Unanswered(error.code, error.message) from error
    waiting_requests.ask_child(context, MODULE, workdir, limit_seconds=_LIMIT_SECONDS, again=_AGAIN)
    sheet: Answer = child_files.json_below(workdir, samples.SHEET_FILE)
    return sheet
