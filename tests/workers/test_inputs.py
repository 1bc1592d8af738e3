"""What an engine is given of a job: which files, and which recipe."""

from typing import Any

import pytest

from models_registry.artifacts import models, synthetic_datasets
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from tests import factories
from tests.databases import SQLITE_ONLY
from workers import inputs

pytestmark = SQLITE_ONLY
LARGE = {**factories.DIGITS_INPUT, "channels": 3, "height": 16, "width": 16}
LARGE |= {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
NAMES = [f"digit {number}" for number in range(10)]


@pytest.fixture(autouse=True)
def teacher(
    sessions: database.Sessions, storage: Storage, project: tables.ProjectRow
) -> tables.ModelVersionRow:
    """A version that is ready to teach, for larger images than the digits and other names."""
    with sessions.begin() as session:
        file = factories.stored(session, storage)
        return models.add_version(
            session,
            project_id=project.id,
            new=factories.new_version(classes=NAMES, input=LARGE),
            files={file.path: file.sha256},
            state="ready",
        )


def found(
    sessions: database.Sessions, project: tables.ProjectRow, **changes: Any
) -> inputs.AttemptInputs:
    with sessions.begin() as session:
        job = factories.job(session, project_id=project.id, **changes)
        return inputs.of(session, job.id)


class TestSizes:
    def test_are_those_of_the_files_that_the_job_is_given(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            spec = factories.data_free_spec()
            job = factories.job(session, project_id=project.id, **spec)
            (blob,) = inputs.of(session, job.id).shared.values()
            assert inputs.sizes(session, job.id) == {blob.sha256: len(b"weights")}
            assert inputs.sizes(session, "job_none") == {}


class TestRecipe:
    def test_takes_size_and_classes_from_the_data_set(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        recipe = found(sessions, project).recipe
        assert recipe["student"]["input"]["height"] == 8
        assert recipe["class_names"] == [str(number) for number in range(10)]
        assert recipe["teacher"]["input"] == LARGE

    @pytest.mark.parametrize("dataset", ["digits@1", None])
    def test_takes_them_from_the_teacher_where_images_are_invented(
        self, sessions: database.Sessions, project: tables.ProjectRow, dataset: str | None
    ) -> None:
        recipe = found(sessions, project, dataset=dataset, method={"name": "dafl"}).recipe
        assert recipe["student"]["input"] == LARGE
        assert recipe["student"]["classes"] == 10
        assert recipe["class_names"] == NAMES
        assert recipe["method"]["synthesis"]["steps"] >= 1
        assert recipe["provenance"].get("dataset") == dataset


class TestFiles:
    def test_of_a_built_in_data_set_lack_the_training_images_where_none_may_be_read(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        free = found(sessions, project, method={"name": "dafl"})
        assert (free.builtin, free.withheld) == ("digits", frozenset({"train.safetensors"}))
        supervised = found(sessions, project)
        assert (supervised.builtin, supervised.withheld) == ("digits", frozenset())

    def test_of_a_stored_data_set_lack_them_too(
        self, sessions: database.Sessions, storage: Storage, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            job = factories.synthetic_job(session, storage, project_id=project.id)
            new = synthetic_datasets.NewSyntheticDataset(name="dreams", job_id=job.id)
            synthetic_datasets.register(session, storage, project_id=project.id, new=new)
        everything = {f"dataset/{path}" for path in factories.IMAGES}
        weights = {"teacher/model.safetensors"}
        supervised = found(sessions, project, dataset="dreams@1")
        assert set(supervised.shared) == everything | weights
        free = found(sessions, project, dataset="dreams@1", method={"name": "dafl"})
        assert set(free.shared) == (everything | weights) - {"dataset/train.safetensors"}

    def test_of_an_encoded_data_set_lack_the_files_of_training_pictures(
        self, sessions: database.Sessions, storage: Storage, project: tables.ProjectRow
    ) -> None:
        shards = {"train-00000.tar", "train-00001.tar", "test-00000.tar"}
        with sessions.begin() as session:
            job = factories.synthetic_job(session, storage, project_id=project.id)
            new = synthetic_datasets.NewSyntheticDataset(name="dreams", job_id=job.id)
            row = synthetic_datasets.register(session, storage, project_id=project.id, new=new)
            session.flush()
            file = session.query(tables.DatasetFileRow).filter_by(version_id=row.id).first()
            assert file is not None
            for path in shards:
                session.add(
                    tables.DatasetFileRow(
                        version_id=row.id, path=path, sha256=file.sha256, size_bytes=1
                    )
                )
        free = found(sessions, project, dataset="dreams@1", method={"name": "dafl"})
        assert {path for path in free.shared if path.endswith(".tar")} == {"dataset/test-00000.tar"}
        supervised = found(sessions, project, dataset="dreams@1")
        assert {f"dataset/{path}" for path in shards} < set(supervised.shared)

    def test_of_a_job_without_data_are_the_teachers_weights(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        free = found(sessions, project, dataset=None, method={"name": "dafl"})
        assert (set(free.shared), free.builtin) == ({"teacher/model.safetensors"}, None)
