"""Sample sheets as a worker makes them, by the real child process."""

import pytest

from models_registry.artifacts import dataset_samples, datasets
from models_registry.persistence import tables
from tests.databases import SQLITE_ONLY
from tests.workers import scenes
from workers import sampler
from workers.context import Context

pytestmark = [SQLITE_ONLY, pytest.mark.slow]


def test_a_sheet_is_made_once_of_a_built_in_data_set(context: Context) -> None:
    project = scenes.project(context)
    with context.sessions.begin() as session:
        version = datasets.get_version(session, project_id=project, name="digits", version=1)
        asked = dataset_samples.request(session, project_id=project, version=version)
        assert asked.state == dataset_samples.QUEUED
        version_id = version.id
    assert sampler.make(context, version_id) == dataset_samples.READY
    assert sampler.make(context, version_id) is None
    with context.sessions.begin() as session:
        version = session.get_one(tables.DatasetVersionRow, version_id)
        kept = dataset_samples.request(session, project_id=project, version=version)
        assert kept.sheet is not None
        assert [group["class"] for group in kept.sheet["classes"]] == version.classes
        assert {len(group["pictures"]) for group in kept.sheet["classes"]} == {8}
