"""An erased data set leaves no bytes, and says what it leaves."""

import io
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.artifacts import dataset_samples, datasets, uploads
from models_registry.jobs import actions
from models_registry.jobs.lifecycle import State
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from models_registry.retention import blobs, erasures
from tests import factories
from tests.databases import SQLITE_ONLY

DAY = timedelta(days=1)
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


def grow_old(session: Session, folder: Path, age: timedelta = timedelta(hours=2)) -> None:
    """Let all blobs have been stored, and adopted, so long before."""
    for blob in session.scalars(sa.select(tables.BlobRow)):
        blob.adopted_at -= age
        path = folder / blob.storage_key
        if path.exists():
            make_older(path, age)


def make_older(path: Path, age: timedelta) -> None:
    then = path.stat().st_mtime - age.total_seconds()
    os.utime(path, (then, then))


def erased_long_ago(sessions: database.Sessions, age: timedelta) -> None:
    with sessions.begin() as session:
        for row in session.scalars(sa.select(tables.ErasedBlobRow)):
            row.erased_at -= age
            row.adopted_at -= age


@pytest.fixture
def faces(
    sessions: database.Sessions,
    storage: Storage,
    project: tables.ProjectRow,
    job: tables.JobRow,
    tmp_path: Path,
) -> Faces:
    """A data set with two versions, of which one file is in both; stored two hours ago."""
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
                lineage={"upload": upload.id, "upload_digest": f"sha256:{archive.sha256}"},
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
        grow_old(session, tmp_path / "storage")
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
        with sessions.begin() as session:
            version = session.get_one(tables.DatasetVersionRow, faces.version.id)
            dataset_samples.request(session, project_id=project.id, version=version)
            dataset_samples.finish(session, version.id, sheet={"classes": ["a small face"]})
        erased = erase(sessions, project)
        assert erasures.finish(sessions, storage, grace=DAY) == erased.blobs == len(faces.own)
        assert [name for name, key in faces.own.items() if storage.exists(key)] == []
        assert storage.exists(faces.shared)
        assert erased.pictures == [
            "digits-student@1/report/examples.png",
            "digits-student@1/report/examples.svg",
        ]
        with sessions.begin() as session:
            files = session.query(tables.ModelFileRow).filter_by(version_id=faces.student.id)
            assert {file.path for file in files} == {"model.safetensors", "report/examples.json"}
            assert session.get(tables.DatasetSamplesRow, faces.version.id) is None
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
        again = erase(sessions, project)
        assert (again.versions, again.blobs, again.pictures) == (["faces@1"], 0, [])
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
        assert erasures.finish(sessions, storage, grace=DAY) == erased.blobs == len(faces.own) - 1
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
        erasures.finish(sessions, storage, grace=DAY)
        assert not storage.exists(faces.shared)
        with sessions.begin() as session, pytest.raises(errors.Gone):
            datasets.get(session, project_id=project.id, name="faces")

    @SQLITE_ONLY
    @pytest.mark.parametrize("version", [1, None])
    def test_finds_pictures_and_archive_of_one_that_was_deleted_before(
        self,
        sessions: database.Sessions,
        storage: Storage,
        project: tables.ProjectRow,
        faces: Faces,
        version: int | None,
    ) -> None:
        with sessions.begin() as session:
            made_by = faces.student.job_id or ""
            actions.delete(session, project_id=project.id, job_id=made_by)
            if version is None:
                datasets.delete(session, project_id=project.id, name="faces")
            else:
                datasets.delete_version(session, project_id=project.id, name="faces", version=1)
        with sessions() as session:
            deleted_at = session.get_one(tables.DatasetVersionRow, faces.version.id).deleted_at
        erased = erase(sessions, project, version)
        assert [picture.rpartition("/")[2] for picture in erased.pictures] == [
            "examples.png",
            "examples.svg",
        ]
        erasures.finish(sessions, storage, grace=DAY)
        gone = {name for name, key in faces.own.items() if not storage.exists(key)}
        assert gone == {"archive", "report/examples.png", "report/examples.svg"}
        # Their rows went with the deletion, so the sweep has them.
        assert ("prepared files", "faces@1") in {(one.kind, one.name) for one in erased.remains}
        with sessions() as session:
            row = session.get_one(tables.DatasetVersionRow, faces.version.id)
            assert (row.card, row.deleted_at) == ("", deleted_at)

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
        for name, version, refusal in (
            ("digits", None, errors.Conflict),
            ("nothing", None, errors.NotFound),
            ("digits", 7, errors.NotFound),
        ):
            with sessions.begin() as session, pytest.raises(refusal):
                erasures.erase(session, project_id=project.id, name=name, version=version)


class TestFinish:
    @SQLITE_ONLY
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
            erasures.finish(sessions, storage, grace=DAY)
        with sessions() as session:
            assert erasures.waiting(session, erased) == erased.blobs
        store.unlink()
        away.rename(store)
        assert erasures.finish(sessions, storage, grace=DAY) == erased.blobs
        assert [name for name, key in faces.own.items() if storage.exists(key)] == []

    @pytest.mark.parametrize("is_finished_first", [True, False])
    def test_spares_bytes_that_another_has_put_and_not_yet_committed(
        self,
        sessions: database.Sessions,
        storage: Storage,
        project: tables.ProjectRow,
        faces: Faces,
        is_finished_first: bool,
    ) -> None:
        put = storage.put(io.BytesIO(b"archive 1"))
        assert put.key == faces.own["archive"]
        erased = erase(sessions, project)
        if is_finished_first:
            assert erasures.finish(sessions, storage, grace=DAY) == erased.blobs - 1
        with sessions.begin() as session:
            assert erasures.waiting(session, erased) == (1 if is_finished_first else erased.blobs)
            uploads.adopt(
                session, sha256=put.sha256, size_bytes=put.size_bytes, storage_key=put.key
            )
        erased_long_ago(sessions, 2 * DAY)
        erasures.finish(sessions, storage, grace=DAY)
        assert storage.exists(put.key)
        with sessions() as session:
            assert erasures.waiting(session) == 0

    @SQLITE_ONLY
    def test_deletes_what_was_put_again_and_never_named(
        self,
        sessions: database.Sessions,
        storage: Storage,
        project: tables.ProjectRow,
        faces: Faces,
    ) -> None:
        key = storage.put(io.BytesIO(b"archive 1")).key
        erased = erase(sessions, project)
        erasures.finish(sessions, storage, grace=DAY)
        assert storage.exists(key)
        # As if a day had passed: the put is older than the erasure, and the grace is over.
        assert erasures.finish(sessions, storage, grace=timedelta(0)) == 1
        assert not storage.exists(key)
        with sessions() as session:
            assert erasures.waiting(session, erased) == 0

    @SQLITE_ONLY
    def test_waits_an_hour_where_the_same_bytes_were_just_adopted(
        self,
        sessions: database.Sessions,
        storage: Storage,
        project: tables.ProjectRow,
        faces: Faces,
        tmp_path: Path,
    ) -> None:
        with sessions.begin() as session:
            grow_old(session, tmp_path / "storage", -timedelta(hours=2))
        erased = erase(sessions, project)
        assert erasures.finish(sessions, storage, grace=DAY) == 0
        hour = timedelta(hours=1)
        erased_long_ago(sessions, hour)
        for key in faces.own.values():
            make_older(tmp_path / "storage" / key, hour)
        assert erasures.finish(sessions, storage, grace=DAY) == erased.blobs

    @SQLITE_ONLY
    def test_leaves_bytes_that_were_stored_after_the_erasure(
        self,
        sessions: database.Sessions,
        storage: Storage,
        project: tables.ProjectRow,
        faces: Faces,
    ) -> None:
        erased = erase(sessions, project)
        again = storage.put(io.BytesIO(b"archive 1"))
        assert erasures.finish(sessions, storage, grace=timedelta(0)) == erased.blobs - 1
        assert storage.exists(again.key)
        with sessions() as session:
            assert erasures.waiting(session) == 0
