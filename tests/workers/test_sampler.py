"""Sample sheets as a worker makes them, by the real child process."""

import dataclasses

import pytest

from models_registry.artifacts import dataset_samples, datasets
from models_registry.persistence import tables
from tests.databases import SQLITE_ONLY
from tests.workers import scenes
from workers import sampler
from workers.context import Context

pytestmark = [SQLITE_ONLY, pytest.mark.slow]


def asked(context: Context) -> tuple[str, str]:
    """Ask for a sheet of the digits; return the project and the version."""
    project = scenes.project(context)
    with context.sessions.begin() as session:
        version = datasets.get_version(session, project_id=project, name="digits", version=1)
        row = dataset_samples.request(session, project_id=project, version=version)
        assert row.state == dataset_samples.QUEUED
        return project, version.id


def test_a_sheet_is_made_once_of_a_built_in_data_set(context: Context) -> None:
    project, version_id = asked(context)
    assert sampler.make(context, version_id) == dataset_samples.READY
    assert sampler.make(context, version_id) is None
    with context.sessions.begin() as session:
        version = session.get_one(tables.DatasetVersionRow, version_id)
        kept = dataset_samples.request(session, project_id=project, version=version)
        assert kept.sheet is not None
        assert [group["class"] for group in kept.sheet["classes"]] == version.classes
        assert {len(group["pictures"]) for group in kept.sheet["classes"]} == {8}


def test_a_worker_without_room_says_so_and_fetches_nothing(context: Context) -> None:
    _, version_id = asked(context)
    wanted = {"worker_min_free_bytes": 1 << 60}
    full = dataclasses.replace(context, settings=context.settings.model_copy(update=wanted))
    assert sampler.make(full, version_id) == dataset_samples.FAILED
    with context.sessions.begin() as session:
        failure = session.get_one(tables.DatasetSamplesRow, version_id).failure
    assert failure is not None
    assert failure["code"] == "no_room"
    assert "1073741824.00 GiB must stay free (RETORT_WORKER_MIN_FREE_BYTES)" in failure["message"]
    assert failure["message"].endswith("free some of it, or ask again")
    assert not list(context.settings.scratch_dir.glob("*.samples*"))


def test_a_worker_that_ends_says_so(context: Context) -> None:
    _, version_id = asked(context)
    context.shutting_down.set()
    assert sampler.make(context, version_id) == dataset_samples.FAILED
    with context.sessions.begin() as session:
        failure = session.get_one(tables.DatasetSamplesRow, version_id).failure
    assert failure == {"code": "worker_stopped", "message": "the worker was stopped: ask again"}
