"""A backup of a service that works, restored elsewhere: every listed student downloads."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from models_registry import backup
from models_registry.jobs import actions, recovery
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from models_registry.settings import Settings
from tests import factories, services
from tests.conftest import MakeApp
from tests.databases import SQLITE_ONLY


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL's client programs on the path, as an operator has them."""
    found = services.postgres_programs()
    monkeypatch.setenv("PATH", f"{found}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def elsewhere(
    settings: Settings, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Settings]:
    """Settings of an empty service of the same kind."""
    changes = {"storage_url": (tmp_path / "elsewhere").as_uri()}
    if settings.database_url.startswith("sqlite"):
        changes["database_url"] = f"sqlite:///{tmp_path}/elsewhere.sqlite3"
        yield settings.model_copy(update=changes)
        return
    with services.database(request.getfixturevalue("postgres_server")) as url:
        yield settings.model_copy(update={**changes, "database_url": url})


@pytest.fixture
def students(
    sessions: database.Sessions, storage: Storage, teacher: tables.ModelVersionRow
) -> list[str]:
    """Two jobs that succeeded, by their ids."""
    done = []
    for content in (b"first", b"second"):
        with sessions.begin() as session:
            row = factories.job(session, project_id=teacher.project_id)
            factories.succeeded(
                session, storage, row, content=content, report={"a.json": content * 2}
            )
            done.append(row.id)
    return done


def restored_jobs(config: Settings) -> dict[str, tables.JobRow]:
    engine = database.connect(config.database_url, pool_size=1)
    with database.sessions(engine)() as session:
        rows = {row.id: row for row in session.scalars(sa.select(tables.JobRow))}
    engine.dispose()
    return rows


def test_every_listed_student_downloads_with_its_digest(
    settings: Settings,
    elsewhere: Settings,
    students: list[str],
    api_key: str,
    tmp_path: Path,
    make_app: MakeApp,
) -> None:
    made = backup.create(settings, tmp_path / "backup")
    assert made["copied"] == made["blobs"] >= 4
    assert backup.create(settings, tmp_path / "backup")["copied"] == 0
    shutil.rmtree(tmp_path / "storage")  # the old service is gone
    assert backup.restore(elsewhere, tmp_path / "backup")["copied"] == made["blobs"]
    headers = {"authorization": f"Bearer {api_key}"}
    with TestClient(make_app(elsewhere), headers=headers) as client:
        assert client.get("/readyz").status_code == 200
        listed = client.get("/v1/models/digits-student/versions").json()["data"]
        assert len(listed) == len(students)
        for version in listed:
            for file in version["files"]:
                url = f"/v1/models/digits-student/versions/{version['version']}/files"
                got = client.get(f"{url}/{file['path']}").content
                assert hashlib.sha256(got).hexdigest() == file["sha256"]
        for job_id in students:
            assert client.get(f"/v1/jobs/{job_id}/student").status_code == 200


@SQLITE_ONLY
class TestWhatWasUnderWay:
    def test_jobs_go_on_without_a_lost_attempt(
        self,
        settings: Settings,
        elsewhere: Settings,
        sessions: database.Sessions,
        teacher: tables.ModelVersionRow,
        tmp_path: Path,
    ) -> None:
        with sessions.begin() as session:
            jobs = [
                factories.job(session, project_id=teacher.project_id, max_attempts=1)
                for _ in range(4)
            ]
            running, pausing, cancelling, queued = jobs
            held = [factories.running(session, row) for row in jobs[:3]]
            actions.pause(session, project_id=teacher.project_id, job_id=pausing.id)
            actions.cancel(session, project_id=teacher.project_id, job_id=cancelling.id)
        backup.create(settings, tmp_path / "backup")
        done = backup.restore(elsewhere, tmp_path / "backup")
        assert done["jobs_handed_back"] == 3
        found = restored_jobs(elsewhere)
        states = {row.id: (row.state, row.state_reason) for row in found.values()}
        assert states == {
            running.id: ("queued", "restored"),
            pausing.id: ("paused", "restored"),
            cancelling.id: ("cancelled", "cancelled_by_caller"),
            queued.id: ("queued", None),
        }
        again = found[running.id]
        assert again.attempt - again.releases == 0
        assert "restored from a backup" in (again.state_message or "")
        # A worker of the service that was lost may still live, and have a newer fence.
        assert again.fence > held[0].fence + recovery.FENCE_LEAP - 1

    def test_what_waits_is_announced_anew_and_open_uploads_begin_again(
        self,
        elsewhere: Settings,
        settings: Settings,
        sessions: database.Sessions,
        teacher: tables.ModelVersionRow,
        tmp_path: Path,
    ) -> None:
        with sessions.begin() as session:
            job = factories.job(session, project_id=teacher.project_id)
            assert job.announced_at is not None
            changed = sa.update(tables.ModelVersionRow).values(state="pending", inspection_fence=1)
            session.execute(changed)
        backup.create(settings, tmp_path / "backup")
        backup.restore(elsewhere, tmp_path / "backup")
        assert restored_jobs(elsewhere)[job.id].announced_at is None
        engine = database.connect(elsewhere.database_url)
        with database.sessions(engine)() as session:
            version = session.scalars(sa.select(tables.ModelVersionRow)).one()
        engine.dispose()
        assert (version.inspection_fence, version.announced_at) == (1 + recovery.FENCE_LEAP, None)


@SQLITE_ONLY
class TestRefusals:
    def test_a_blob_that_the_store_has_lost_fails_the_backup(
        self,
        settings: Settings,
        students: list[str],
        storage: Storage,
        sessions: database.Sessions,
        tmp_path: Path,
    ) -> None:
        with sessions() as session:
            key = session.scalars(sa.select(tables.BlobRow.storage_key)).first()
        storage.delete(key or "")
        with pytest.raises(backup.BackupFailed, match=f"not in the store, the first is {key}"):
            backup.create(settings, tmp_path / "backup")

    def test_a_damaged_copy_fails_the_restore(
        self, settings: Settings, elsewhere: Settings, students: list[str], tmp_path: Path
    ) -> None:
        backup.create(settings, tmp_path / "backup")
        kept = next(
            path for path in (tmp_path / "backup/bytes/sha256").rglob("*") if path.is_file()
        )
        kept.write_bytes(b"rotten")
        with pytest.raises(backup.BackupFailed, match="damaged where they are copied from"):
            backup.restore(elsewhere, tmp_path / "backup")

    def test_a_database_in_use_is_not_written_over(
        self, settings: Settings, students: list[str], tmp_path: Path
    ) -> None:
        backup.create(settings, tmp_path / "backup")
        with pytest.raises(backup.BackupFailed, match=r"has \d+ tables already"):
            backup.restore(settings, tmp_path / "backup")

    @pytest.mark.parametrize("verb", ["create", "restore"])
    def test_the_command_says_what_is_wrong(
        self,
        verb: str,
        settings: Settings,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        told: dict[str, Any] = {"DATABASE_URL": settings.database_url, "DATA_DIR": tmp_path}
        for name, value in told.items():
            monkeypatch.setenv(f"RETORT_{name}", str(value))
        monkeypatch.setenv("RETORT_STORAGE_URL", settings.storage_url)
        code = backup.main([verb, str(tmp_path / "backup")])
        output = capsys.readouterr()
        if verb == "create":
            assert (code, output.out) == (0, "create: blobs: 0, copied: 0\n")
        else:
            assert code == 1
            assert "is no backup" in output.err
