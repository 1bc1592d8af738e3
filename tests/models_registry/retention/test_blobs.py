"""Bytes that nothing needs go after a grace; what is needed again meanwhile stays."""

import io
from datetime import timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry.artifacts import uploads
from models_registry.jobs import leases
from models_registry.persistence import database, tables
from models_registry.persistence.storage import PartPlace, S3Options, Storage, from_url
from models_registry.retention import blobs
from tests import factories, racing, services
from tests.databases import SQLITE_ONLY

HOUR = timedelta(hours=1)


def age(session: Session, sha256: str) -> None:
    """Let a blob have been marked for two hours."""
    blob = session.get_one(tables.BlobRow, sha256, populate_existing=True)
    assert blob.marked_at is not None
    blob.marked_at -= 2 * HOUR


class TestSweep:
    NO_GRACE = timedelta(seconds=-1)

    def test_deletes_what_nothing_refers_to(
        self, sessions: database.Sessions, storage: Storage, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            orphan = factories.stored(session, storage, b"orphan")
            lease = factories.running(session, session.get_one(tables.JobRow, job.id))
            needed = factories.stored(session, storage, b"checkpoint")
            leases.checkpoint(session, lease, needed, step=1, epoch=1, phase="student")
        assert blobs.sweep(sessions, storage, grace=self.NO_GRACE) == 1
        assert not storage.exists(orphan.storage_key)
        assert storage.exists(needed.storage_key)
        with sessions.begin() as session:
            kept = set(session.scalars(sa.select(tables.BlobRow.sha256)))
            weights = set(session.scalars(sa.select(tables.ModelFileRow.sha256)))
            assert kept == {needed.sha256, *weights}

    @SQLITE_ONLY
    def test_deletes_bytes_that_have_no_row(
        self, sessions: database.Sessions, storage: Storage, job: tables.JobRow
    ) -> None:
        lost = storage.put(io.BytesIO(b"a crash came between bytes and row"))
        assert blobs.sweep(sessions, storage, grace=self.NO_GRACE) == 1
        assert not storage.exists(lost.key)

    @SQLITE_ONLY
    def test_leaves_the_young_alone(
        self, sessions: database.Sessions, storage: Storage, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            file = factories.stored(session, storage, b"its row is about to come")
        bare = storage.put(io.BytesIO(b"and this one's too"))
        assert blobs.sweep(sessions, storage, grace=HOUR) == 0
        assert storage.exists(file.storage_key)
        assert storage.exists(bare.key)

    # SQLite's one writer at a time leaves no room for this race.
    @pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
    def test_does_not_take_what_is_just_being_referred_to(
        self, sessions: database.Sessions, storage: Storage, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            lease = factories.running(session, session.get_one(tables.JobRow, job.id))
            file = factories.stored(session, storage, b"checkpoint")
            old = database.now(session) - HOUR
            session.get_one(tables.BlobRow, file.sha256).marked_at = old
        swept = racing.overtaken(
            sessions,
            lambda session: leases.checkpoint(
                session, lease, file, step=1, epoch=1, phase="student"
            ),
            lambda _: blobs.sweep(sessions, storage, grace=timedelta(minutes=1)),
        )
        assert swept == 0
        assert storage.exists(file.storage_key)

    def test_waits_for_the_grace_after_the_mark_whatever_the_age(
        self, sessions: database.Sessions, storage: Storage, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            file = factories.stored(session, storage, b"needed for a year until now")
            blob = session.get_one(tables.BlobRow, file.sha256)
            blob.adopted_at = database.now(session) - 8760 * HOUR
        assert blobs.sweep(sessions, storage, grace=HOUR) == 0
        with sessions.begin() as session:
            age(session, file.sha256)
        found = blobs.preview(sessions, storage, grace=HOUR)
        assert (found.blobs, found.ready_blobs, found.ready_bytes) == (1, 1, file.size_bytes)
        assert blobs.sweep(sessions, storage, grace=HOUR) == 1
        assert blobs.preview(sessions, storage, grace=HOUR).blobs == 0

    def test_keeps_what_a_row_names_between_mark_and_sweep(
        self, sessions: database.Sessions, storage: Storage, teacher: tables.ModelVersionRow
    ) -> None:
        with sessions.begin() as session:
            file = factories.stored(session, storage, b"a report")
        blobs.sweep(sessions, storage, grace=HOUR)
        with sessions.begin() as session:
            age(session, file.sha256)
            assert blobs._take_some(session, HOUR, "") == ([file.sha256], [file.storage_key])
            session.rollback()
        with sessions.begin() as session:
            age(session, file.sha256)
            # Without `adopt`, which would take the mark away by itself.
            named = tables.ModelFileRow(
                version_id=teacher.id, path="r.json", sha256=file.sha256, size_bytes=8
            )
            session.add(named)
        with sessions.begin() as session:
            # After the last mark of this sweep, and before its deletion.
            assert blobs._take_some(session, HOUR, "") == ([file.sha256], [])
        assert blobs.sweep(sessions, storage, grace=HOUR) == 0
        assert storage.exists(file.storage_key)
        with sessions.begin() as session:
            assert session.get_one(tables.BlobRow, file.sha256).marked_at is None

    @pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
    def test_keeps_what_a_row_is_just_about_to_name(
        self, sessions: database.Sessions, storage: Storage, teacher: tables.ModelVersionRow
    ) -> None:
        with sessions.begin() as session:
            file = factories.stored(session, storage, b"a report")
        blobs.sweep(sessions, storage, grace=HOUR)
        with sessions.begin() as session:
            age(session, file.sha256)

        def name_it(session: Session) -> None:
            session.add(
                tables.ModelFileRow(
                    version_id=teacher.id, path="r.json", sha256=file.sha256, size_bytes=8
                )
            )
            session.flush()

        swept = racing.overtaken(
            sessions, name_it, lambda _: blobs.sweep(sessions, storage, grace=HOUR)
        )
        assert swept == 0
        assert storage.exists(file.storage_key)

    @SQLITE_ONLY
    def test_lists_bytes_without_a_row_before_it_deletes_them(
        self, sessions: database.Sessions, storage: Storage, project: tables.ProjectRow
    ) -> None:
        storage.put(io.BytesIO(b"lost"))
        found = blobs.preview(sessions, storage, grace=self.NO_GRACE)
        assert (found.orphans, found.orphan_bytes, found.blobs) == (1, 4, 0)

    @SQLITE_ONLY
    def test_leaves_the_parts_that_clients_put_themselves_while_their_upload_is_open(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            upload = tables.UploadRow(
                id="upl_open",
                project_id=project.id,
                filename="teacher.safetensors",
                purpose="model",
                size_bytes=4,
                sha256="0" * 64,
                part_size_bytes=4,
                state=uploads.OPEN,
                created_at=database.now(session),
                expires_at=database.now(session) + HOUR,
            )
            session.add(upload)
            upload_id = upload.id
        with services.s3_server() as found:
            options: dict[str, Any] = {key.removeprefix("s3_"): text for key, text in found.items()}
            url = options.pop("storage_url")
            options["public_endpoint"] = options["endpoint"]
            bucket = from_url(url, S3Options(**options))
            address = bucket.direct_url(PartPlace(upload_id, 0), lifetime=HOUR)
            assert address is not None
            assert httpx.put(address, content=b"part").status_code == 200
            assert blobs.preview(sessions, bucket, grace=self.NO_GRACE).orphans == 0
            with sessions.begin() as session:
                session.get_one(tables.UploadRow, upload_id).state = uploads.EXPIRED
            assert blobs.preview(sessions, bucket, grace=self.NO_GRACE).orphans == 1
