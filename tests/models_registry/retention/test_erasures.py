"""An erased data set leaves no bytes, and says what it leaves."""

import io
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from models_registry import errors
from models_registry.artifacts import datasets
from models_registry.jobs.lifecycle import State
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from models_registry.retention import blobs, erasures
from tests import factories
from tests.databases import SQLITE_ONLY

REPORT = {"examples.png": b"a face", "examples.svg": b"a face too", "examples.json": b"{}"}


@dataclass(frozen=True)
class Faces:
    """A data set, a student that learned from it, and where their bytes are."""

    version: tables.DatasetVersionRow
    student: tables.ModelVersionRow
    own: dict[str, str]
    """Storage keys of what must go."""
    shared: str
    """Storage key of what another version has too."""


@pytest.fixture
def faces(
    sessions: database.Sessions,
    storage: Storage,
    project: tables.ProjectRow,
    job: tables.JobRow,
) -> Faces:
    """A data set with two versions, of which one file is in both."""
    own, rows = {}, []
    with sessions.begin() as session:
        for number in (1, 2):
            archive = factories.stored(session, storage, f"archive {number}".encode())
            upload = tables.UploadRow(
                id=f"upl_{number}",
                project_id=project.id,
                filename="faces.zip",
                purpose="dataset",
                size_bytes=9,
                sha256=archive.sha256,
                part_size_bytes=9,
                state="completed",
                blob_sha256=archive.sha256,
                created_at=database.now(session),
                expires_at=database.now(session),
            )
            session.add(upload)
            session.flush()
            row = factories.dataset_version(
                session,
                project_id=project.id,
                upload_id=upload.id,
                archive_sha256=archive.sha256,
                card="Photographs of Ada",
                notes=[{"code": "left_out", "message": "ada.txt is no image"}],
            )
            for path, content in (("train", f"images {number}".encode()), ("test", b"of both")):
                file = factories.stored(session, storage, content)
                session.add(
                    tables.DatasetFileRow(
                        version_id=row.id, path=path, sha256=file.sha256, size_bytes=9
                    )
                )
                if number == 1:
                    own[path] = file.storage_key
            if number == 1:
                own["archive"] = archive.storage_key
            rows.append(row)
        trained = session.get_one(tables.JobRow, job.id)
        trained.dataset_version_id = rows[0].id
        factories.succeeded(session, storage, trained, report=REPORT)
        student = session.get_one(tables.ModelVersionRow, trained.student_version_id)
        for path in ("report/examples.png", "report/examples.svg"):
            picture = session.get_one(tables.ModelFileRow, (student.id, path))
            own[path] = session.get_one(tables.BlobRow, picture.sha256).storage_key
    shared = own.pop("test")
    return Faces(rows[0], student, own, shared)


def erase(
    sessions: database.Sessions, project: tables.ProjectRow, version: int | None = 1, **how: bool
) -> erasures.Erasure:
    with sessions.begin() as session:
        return erasures.erase(session, project_id=project.id, name="faces", version=version, **how)


class TestErase:
    def test_leaves_no_bytes_that_nothing_else_needs(
        self,
        sessions: database.Sessions,
        storage: Storage,
        project: tables.ProjectRow,
        faces: Faces,
    ) -> None:
        assert all(storage.exists(key) for key in faces.own.values())
        erased = erase(sessions, project)
        assert erasures.finish(sessions, storage) == erased.blobs == len(faces.own)
        assert [name for name, key in faces.own.items() if storage.exists(key)] == []
        assert storage.exists(faces.shared)
        assert erased.pictures == [
            "digits-student@1/report/examples.png",
            "digits-student@1/report/examples.svg",
        ]
        with sessions.begin() as session:
            files = session.query(tables.ModelFileRow).filter_by(version_id=faces.student.id)
            assert {file.path for file in files} == {"model.safetensors", "report/examples.json"}
            row = session.get_one(tables.DatasetVersionRow, faces.version.id)
            assert (row.card, row.notes, row.archive_sha256) == ("", None, None)
            assert row.deleted_at is not None
            assert session.get_one(tables.UploadRow, "upl_1").blob_sha256 is None
            made_by = session.scalars(
                sa.select(tables.JobRow).where(tables.JobRow.student_version_id.is_not(None))
            ).one()
            assert {one["code"] for one in made_by.warnings or []} == {"picture_erased"}
            with pytest.raises(errors.Gone):
                datasets.get_version(session, project_id=project.id, name="faces", version=1)
            datasets.get_version(session, project_id=project.id, name="faces", version=2)
        # The store and the rows agree: nothing is left to be swept, and nothing is missing.
        assert blobs.preview(sessions, storage, grace=erasures.SETTLED_AFTER).blobs == 0

    @SQLITE_ONLY
    def test_keeps_an_upload_from_which_another_version_is_still_made(
        self,
        sessions: database.Sessions,
        storage: Storage,
        project: tables.ProjectRow,
        faces: Faces,
    ) -> None:
        with sessions.begin() as session:
            factories.dataset_version(
                session, project_id=project.id, name="others", state="pending", upload_id="upl_1"
            )
        erased = erase(sessions, project)
        assert erasures.finish(sessions, storage) == erased.blobs == len(faces.own) - 1
        assert storage.exists(faces.own["archive"])
        assert erased.remains != []

    @SQLITE_ONLY
    def test_lists_what_remains(
        self, sessions: database.Sessions, project: tables.ProjectRow, faces: Faces
    ) -> None:
        remains = erase(sessions, project).remains
        assert {(one.kind, one.name) for one in remains} >= {
            ("blob", f"sha256:{faces.shared.rpartition('/')[2]}"),
            ("lineage", "faces@1"),
            ("model", "digits-student@1"),
        }
        assert remains[-1].kind == "copies elsewhere"

    @SQLITE_ONLY
    def test_takes_all_versions_of_a_data_set(
        self,
        sessions: database.Sessions,
        storage: Storage,
        project: tables.ProjectRow,
        faces: Faces,
    ) -> None:
        erased = erase(sessions, project, version=None)
        assert erased.versions == ["faces@1", "faces@2"]
        erasures.finish(sessions, storage)
        assert not storage.exists(faces.shared)
        with sessions.begin() as session, pytest.raises(errors.Gone):
            datasets.get(session, project_id=project.id, name="faces")

    @SQLITE_ONLY
    def test_refuses_what_jobs_need_unless_they_are_to_end(
        self, sessions: database.Sessions, project: tables.ProjectRow, faces: Faces
    ) -> None:
        with sessions.begin() as session:
            waiting = factories.job(session, project_id=project.id)
            working = factories.job(session, project_id=project.id)
            for job in (waiting, working):
                job.dataset_version_id = faces.version.id
            session.flush()
            factories.running(session, working)
        with pytest.raises(errors.InUse, match="cancel_jobs true") as refused:
            erase(sessions, project)
        assert [use.count for use in refused.value.uses] == [2]
        erased = erase(sessions, project, cancel_jobs=True)
        assert set(erased.cancelled_jobs) == {waiting.id, working.id}
        # Its engine still has a copy.
        assert ("working folder", working.id) in {(one.kind, one.name) for one in erased.remains}
        with sessions() as session:
            states = [session.get_one(tables.JobRow, one.id).state for one in (waiting, working)]
        assert states == [State.CANCELLED, State.CANCELLING]

    @SQLITE_ONLY
    def test_refuses_what_is_built_in_and_what_is_not_there(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        for name, refusal in (("digits", errors.Conflict), ("nothing", errors.NotFound)):
            with sessions.begin() as session, pytest.raises(refusal):
                erasures.erase(session, project_id=project.id, name=name)


@SQLITE_ONLY
class TestFinish:
    def test_goes_on_after_an_outage_of_the_store(
        self,
        sessions: database.Sessions,
        storage: Storage,
        project: tables.ProjectRow,
        faces: Faces,
        tmp_path: Path,
    ) -> None:
        erased = erase(sessions, project)
        store, away = tmp_path / "storage", tmp_path / "away"
        store.rename(away)
        store.write_text("no folder")
        with pytest.raises(errors.StorageDown):
            erasures.finish(sessions, storage)
        with sessions() as session:
            assert erasures.waiting(session) == erased.blobs
        store.unlink()
        away.rename(store)
        assert erasures.finish(sessions, storage) == erased.blobs
        assert [name for name, key in faces.own.items() if storage.exists(key)] == []

    def test_leaves_bytes_that_were_stored_again_since(
        self,
        sessions: database.Sessions,
        storage: Storage,
        project: tables.ProjectRow,
        faces: Faces,
    ) -> None:
        erase(sessions, project)
        again = storage.put(io.BytesIO(b"archive 1"))
        assert again.key == faces.own["archive"]
        erasures.finish(sessions, storage)
        assert storage.exists(again.key)
        with sessions() as session:
            assert erasures.waiting(session) == 0
