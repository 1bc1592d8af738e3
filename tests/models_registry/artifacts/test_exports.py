"""Exports: asked for once, claimed by one worker at a time, ended by whoever holds the claim."""

import time
from concurrent import futures
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.access import quotas
from models_registry.artifacts import exports, models, postponements
from models_registry.artifacts.exports import ExportClaim
from models_registry.jobs import validation
from models_registry.jobs.spec import JobSpec
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from tests import factories, waiting
from tests.databases import POSTGRES_ONLY, SQLITE_ONLY
from workers.distill.config.exports import ExportChoice

MEASURED = {"opset": 20, "checks": {}, "latency": {}}


@pytest.fixture
def version(
    sessions: database.Sessions, storage: Storage, project: tables.ProjectRow
) -> tables.ModelVersionRow:
    with sessions.begin() as session:
        return factories.teacher(session, storage, project_id=project.id)


def ask(session: Session, version: tables.ModelVersionRow, **changes: Any) -> tables.ModelExportRow:
    return exports.request(
        session,
        version=session.get_one(tables.ModelVersionRow, version.id),
        choice=ExportChoice(**{"format": "onnx", **changes}),
        service=quotas.UNLIMITED,
    )


def claimed(session: Session, version: tables.ModelVersionRow) -> ExportClaim:
    claim = exports.claim(session, ask(session, version).id)
    assert claim is not None
    return claim


def let_expire(session: Session, export_id: str) -> None:
    row = session.get_one(tables.ModelExportRow, export_id)
    row.claim_expires_at = database.now(session) - timedelta(seconds=1)
    session.flush()


class TestRequest:
    @SQLITE_ONLY
    def test_publishes_one_message_and_returns_the_same_again_until_it_fails(
        self, sessions: database.Sessions, version: tables.ModelVersionRow
    ) -> None:
        with sessions.begin() as session:
            first = ask(session, version)
            assert ask(session, version).id == first.id
            assert ask(session, version, precision="float16").id != first.id
            messages = session.scalars(sa.select(tables.OutboxRow)).all()
            assert [message.task for message in messages] == ["models.export"] * 2
            claim = exports.claim(session, first.id)
            assert claim is not None
            exports.fail(session, claim, failure={"code": "x", "message": "y"})
            assert ask(session, version).id != first.id

    @SQLITE_ONLY
    @pytest.mark.parametrize(
        ("changes", "asked", "code"),
        [
            ({"network": "retort/fasterrcnn"}, {}, "not_exportable"),
            ({"task": "embedding", "classes": []}, {}, "not_exportable"),
            ({}, {"format": "hub", "precision": "int8"}, "unsupported_precision"),
            ({}, {"format": "hub", "include_preprocessing": True}, "no_graph"),
            ({}, {"precision": "int8"}, "no_calibration_images"),
        ],
    )
    def test_refuses_what_cannot_be_made_with_field_and_way_out(
        self,
        sessions: database.Sessions,
        version: tables.ModelVersionRow,
        changes: dict[str, Any],
        asked: dict[str, Any],
        code: str,
    ) -> None:
        with sessions.begin() as session:
            row = session.get_one(tables.ModelVersionRow, version.id)
            for name, value in changes.items():
                setattr(row, name, value)
            with pytest.raises(errors.Refused) as refused:
                ask(session, version, **asked)
        faults = refused.value.faults
        assert code in {fault.code for fault in faults}
        assert all("choose" in fault.detail for fault in faults)

    @SQLITE_ONLY
    def test_counts_to_the_projects_storage(
        self, sessions: database.Sessions, version: tables.ModelVersionRow
    ) -> None:
        with sessions.begin() as session, pytest.raises(errors.QuotaExceeded):
            exports.request(
                session,
                version=session.get_one(tables.ModelVersionRow, version.id),
                choice=ExportChoice(format="onnx"),
                service=quotas.QuotaLimits(storage_bytes=8),
            )

    @SQLITE_ONLY
    def test_counts_what_waits_to_the_storage_and_bounds_it(
        self,
        sessions: database.Sessions,
        version: tables.ModelVersionRow,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        with sessions.begin() as session:
            used = quotas.stored_bytes(session, project_id=version.project_id)
            weights = session.get_one(tables.BlobRow, version.sha256).size_bytes
            row = session.get_one(tables.ModelVersionRow, version.id)
            room = quotas.QuotaLimits(storage_bytes=used + weights)
            exports.request(session, version=row, choice=ExportChoice(format="onnx"), service=room)
            other = ExportChoice(format="torch_export")
            with pytest.raises(errors.QuotaExceeded):
                exports.request(session, version=row, choice=other, service=room)
            monkeypatch.setattr(exports, "MOST_WAITING", 1)
            with pytest.raises(errors.RateLimited, match="1 exports"):
                ask(session, version, format="torch_export")
            assert ask(session, version).state == "queued"  # the one that there is

    @SQLITE_ONLY
    def test_refuses_a_version_that_is_not_ready_and_too_many(
        self,
        sessions: database.Sessions,
        version: tables.ModelVersionRow,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        with sessions.begin() as session:
            monkeypatch.setattr(exports, "MOST_OF_A_VERSION", 1)
            ask(session, version)
            with pytest.raises(errors.Conflict, match="delete some"):
                ask(session, version, precision="float16")
            session.get_one(tables.ModelVersionRow, version.id).state = "pending"
            session.flush()
            with pytest.raises(errors.Conflict, match="only ready"):
                ask(session, version, precision="float16")


class TestClaim:
    def test_is_given_once_and_again_after_it_expires(
        self, sessions: database.Sessions, version: tables.ModelVersionRow
    ) -> None:
        with sessions.begin() as session:
            first = claimed(session, version)
        with sessions.begin() as session:
            assert exports.claim(session, first.export_id) is None
            let_expire(session, first.export_id)
            assert exports.republish(session, after_seconds=0) == 1
            second = exports.claim(session, first.export_id)
            assert second is not None
            with pytest.raises(errors.StaleFence):
                exports.renew(session, first)
            with pytest.raises(errors.StaleFence):
                exports.finish(session, first, files=[], measured=MEASURED, notes=[])
            exports.renew(session, second)

    @SQLITE_ONLY
    def test_fails_an_export_whose_workers_die_too_often(
        self, sessions: database.Sessions, version: tables.ModelVersionRow
    ) -> None:
        with sessions.begin() as session:
            export_id = ask(session, version).id
            for _ in range(exports.MOST_ATTEMPTS):
                assert exports.claim(session, export_id) is not None
                let_expire(session, export_id)
            assert exports.claim(session, export_id) is None
            row = session.get_one(tables.ModelExportRow, export_id)
            assert row.state == "failed"
            assert row.failure is not None
            assert "RETORT_INSPECTION_MEMORY_BYTES" in row.failure["message"]

    @SQLITE_ONLY
    def test_rests_where_a_worker_lacks_something_and_then_fails(
        self, sessions: database.Sessions, version: tables.ModelVersionRow
    ) -> None:
        with sessions.begin() as session:
            export_id = ask(session, version).id
            for _ in range(postponements.MOST):
                claim = exports.claim(session, export_id)
                assert claim is not None
                exports.postpone(session, claim, reason="its disk is full")
                let_expire(session, export_id)
            row = session.get_one(tables.ModelExportRow, export_id)
            assert row.state == "failed"
            assert "its disk is full" in str(row.failure)

    @SQLITE_ONLY
    def test_stages_the_splits_that_are_read(
        self, sessions: database.Sessions, storage: Storage, version: tables.ModelVersionRow
    ) -> None:
        with sessions.begin() as session:
            job = factories.job(session, project_id=version.project_id)
            factories.succeeded(session, storage, job)
            student = session.get_one(tables.ModelVersionRow, job.student_version_id)
            withheld = {}
            for precision in ("float32", "int8"):
                claim = exports.claim(session, ask(session, student, precision=precision).id)
                assert claim is not None
                assert claim.may_train
                withheld[precision] = claim.withheld
        validation_split = "validation.safetensors"
        assert withheld == {
            "float32": {"train.safetensors", validation_split},
            "int8": {validation_split},
        }


class TestFiles:
    @SQLITE_ONLY
    def test_are_files_of_the_version_and_go_with_the_export_or_the_version(
        self, sessions: database.Sessions, storage: Storage, version: tables.ModelVersionRow
    ) -> None:
        with sessions.begin() as session:
            claim = claimed(session, version)
            before = quotas.stored_bytes(session, project_id=version.project_id)
            made = factories.stored(session, storage, b"a graph", path="model.onnx")
            exports.finish(session, claim, files=[made], measured=MEASURED, notes=["told"])
            row = session.get_one(tables.ModelExportRow, claim.export_id)
            assert (row.state, row.notes) == ("ready", ["told"])
            (file,) = exports.files(session, [row])[row.id]
            assert file.path == f"exports/{row.id}/model.onnx"
            found = session.get_one(tables.ModelVersionRow, version.id)
            assert models.file(session, found, path=file.path).sha256 == made.sha256
            assert quotas.stored_bytes(session, project_id=version.project_id) == before + 7
            exports.delete(session, version=found, export_id=row.id)
            assert quotas.stored_bytes(session, project_id=version.project_id) == before
            assert session.get(tables.ModelExportRow, claim.export_id) is None
            ask(session, version)
            name = models.name_of(found)
            models.delete_version(session, project_id=version.project_id, name=name, version=1)
            assert session.scalars(sa.select(tables.ModelExportRow)).all() == []

    @POSTGRES_ONLY
    def test_go_with_a_version_that_is_deleted_while_the_export_ends(
        self, sessions: database.Sessions, storage: Storage, version: tables.ModelVersionRow
    ) -> None:
        """In one order of locks: in two, the database ends one of them with a deadlock."""
        with sessions.begin() as session:
            claim = claimed(session, version)
            made = factories.stored(session, storage, b"a graph", path="model.onnx")
            name = models.name_of(session.get_one(tables.ModelVersionRow, version.id))

        def end() -> None:
            with sessions.begin() as session:
                exports.finish(session, claim, files=[made], measured=MEASURED, notes=[])

        with futures.ThreadPoolExecutor(1) as pool:
            with sessions.begin() as session:
                session.get(tables.ModelVersionRow, version.id, with_for_update=True)
                ending = pool.submit(end)
                time.sleep(0.2)  # until it waits for the version
                models.delete_version(session, project_id=version.project_id, name=name, version=1)
            with pytest.raises(errors.StaleFence):
                ending.result(waiting.PATIENCE_SECONDS)
        with sessions.begin() as session:
            for row in (tables.ModelExportRow, tables.ModelFileRow):
                assert session.scalars(sa.select(row)).all() == []


class TestOfAJob:
    def test_are_checked_with_its_spec(self) -> None:
        asked = [{"format": "onnx"}, {"format": "hub", "precision": "int8"}]
        spec = JobSpec.model_validate(factories.spec(exports=asked))
        (fault,) = validation.read(spec.parts).faults
        assert fault.pointer == "/exports/1/precision"
        free = JobSpec.model_validate(
            factories.data_free_spec(exports=[{"format": "onnx", "precision": "int8"}])
        )
        (fault,) = validation.read(free.parts).faults
        assert fault.code == "no_calibration_images"
        backbone = JobSpec.model_validate(
            factories.spec(task="embedding", exports=[{"format": "hub"}])
        )
        faults = validation.read(backbone.parts).faults
        assert "not_exportable" in {f.code for f in faults if f.pointer == "/exports/0/format"}

    @SQLITE_ONLY
    def test_are_asked_for_once_it_has_ended_or_a_warning_says_why_not(
        self, sessions: database.Sessions, storage: Storage, version: tables.ModelVersionRow
    ) -> None:
        wanted = [{"format": "onnx"}, {"format": "onnx", "precision": "int8"}]
        with sessions.begin() as session:
            job = factories.job(session, project_id=version.project_id, exports=wanted)
            factories.succeeded(session, storage, job)
            exports.request_of_job(session, job.id, service=quotas.UNLIMITED)
            rows = session.scalars(sa.select(tables.ModelExportRow)).all()
            assert {row.precision for row in rows} == {"float32", "int8"}
            assert {row.version_id for row in rows} == {job.student_version_id}
            assert not job.warnings
            full = quotas.QuotaLimits(storage_bytes=1)
            session.execute(sa.delete(tables.ModelExportRow))
            exports.request_of_job(session, job.id, service=full)
            assert [told["code"] for told in job.warnings or ()] == ["export_not_made"] * 2
            event = tables.EventRow
            query = sa.select(event.data).where(event.job_id == job.id, event.type == "job.warning")
            assert session.scalars(query.order_by(event.sequence)).all() == job.warnings
