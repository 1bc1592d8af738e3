"""What a project may use is counted where it is used, also by two at the same time."""

from concurrent import futures
from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.access import quotas
from models_registry.access.quotas import QuotaLimits
from models_registry.artifacts import uploads
from models_registry.jobs import actions, submission
from models_registry.jobs.spec import JobSpec
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from models_registry.settings import Settings
from models_registry.studies import studies
from models_registry.studies.spec import StudySpec
from tests import factories, racing, waiting
from tests.databases import POSTGRES_ONLY, SQLITE_ONLY

SPEC = JobSpec.model_validate(factories.spec())


def submit(session: Session, project_id: str, limits: QuotaLimits) -> tables.JobRow:
    return submission.submit(session, project_id=project_id, spec=SPEC, limits=limits)


def open_upload(
    session: Session, project_id: str, settings: Settings, size_bytes: int = 100
) -> tables.UploadRow:
    return uploads.create(
        session,
        project_id=project_id,
        filename="a.safetensors",
        size_bytes=size_bytes,
        sha256="a" * 64,
        purpose="model",
        settings=settings,
    )


def own(session: Session, project_id: str, **limits: int) -> None:
    quotas.change(
        session, project_id=project_id, limits=limits, share_weight=None, service=QuotaLimits()
    )


def used(session: Session, project_id: str) -> dict[str, Any]:
    found = quotas.usage(session, project_id=project_id, service=QuotaLimits())
    return {one.name: one.used for one in found}


class TestJobs:
    def test_beyond_the_limit_are_refused_with_limit_use_and_way_out(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session, pytest.raises(errors.QuotaExceeded) as caught:
            submit(session, job.project_id, QuotaLimits(jobs_queued=1))
        assert caught.value.quota == errors.Quota("jobs_queued", limit=1, used=1, requested=1)
        for word in ("jobs_queued is 1", "1 are used", "cancel some", "retort quota"):
            assert word in caught.value.message

    @SQLITE_ONLY
    def test_that_are_paused_count_and_can_be_resumed(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        limits = QuotaLimits(jobs_queued=1)
        with sessions.begin() as session:
            actions.pause(session, project_id=job.project_id, job_id=job.id)
            with pytest.raises(errors.QuotaExceeded):
                submit(session, job.project_id, limits)
            actions.resume(session, project_id=job.project_id, job_id=job.id)
            lease = factories.claimed(session, session.get_one(tables.JobRow, job.id))
            assert submit(session, job.project_id, limits)
            assert lease
            assert used(session, job.project_id)["jobs_queued"] == 1
            assert used(session, job.project_id)["jobs_running"] == 1

    @SQLITE_ONLY
    def test_of_a_study_fit_all_or_none_does(
        self, sessions: database.Sessions, teacher: tables.ModelVersionRow
    ) -> None:
        spec = StudySpec.model_validate(factories.study_spec())
        with sessions() as session, pytest.raises(errors.QuotaExceeded) as caught:
            studies.submit(
                session, project_id=teacher.project_id, spec=spec, limits=QuotaLimits(jobs_queued=3)
            )
        assert caught.value.quota.requested == 6
        with sessions.begin() as session:
            assert session.query(tables.JobRow).count() == 0
            studies.submit(
                session, project_id=teacher.project_id, spec=spec, limits=QuotaLimits(jobs_queued=6)
            )

    @SQLITE_ONLY
    def test_that_are_retried_count(self, sessions: database.Sessions, job: tables.JobRow) -> None:
        with sessions.begin() as session:
            actions.cancel(session, project_id=job.project_id, job_id=job.id)
            with pytest.raises(errors.QuotaExceeded):
                actions.retry(
                    session,
                    project_id=job.project_id,
                    job_id=job.id,
                    limits=QuotaLimits(jobs_queued=0),
                )

    @POSTGRES_ONLY
    def test_at_the_same_moment_do_not_both_get_the_last_place(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        def one() -> bool:
            try:
                with sessions.begin() as session:
                    submit(session, job.project_id, QuotaLimits(jobs_queued=3))
            except errors.QuotaExceeded:
                return False
            return True

        assert sorted(racing.together([one] * 4)) == [False, False, True, True]


class TestBytes:
    def test_are_counted_once_and_as_soon_as_they_are_announced(
        self,
        sessions: database.Sessions,
        storage: Storage,
        settings: Settings,
        project: tables.ProjectRow,
    ) -> None:
        with sessions.begin() as session:
            before = quotas.stored_bytes(session, project_id=project.id)
            factories.teacher(session, storage, project_id=project.id, content=b"1234567")
            factories.teacher(session, storage, project_id=project.id, content=b"1234567")
            assert quotas.stored_bytes(session, project_id=project.id) == before + 7
            open_upload(session, project.id, settings, 100)
            assert quotas.stored_bytes(session, project_id=project.id) == before + 107

    @SQLITE_ONLY
    def test_beyond_the_limit_are_refused_at_upload_and_submission(
        self, sessions: database.Sessions, settings: Settings, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            own(session, job.project_id, storage_bytes=150)
            open_upload(session, job.project_id, settings, 100)
            with pytest.raises(errors.QuotaExceeded) as caught:
                open_upload(session, job.project_id, settings, 100)
            assert caught.value.quota.name == "storage_bytes"
            assert caught.value.faults[0].pointer == "/size_bytes"
            own(session, job.project_id, storage_bytes=100)
            with pytest.raises(errors.QuotaExceeded, match="storage_bytes is 100"):
                submit(session, job.project_id, QuotaLimits())

    @SQLITE_ONLY
    def test_of_one_upload_have_a_limit_of_their_own(
        self, sessions: database.Sessions, settings: Settings, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            own(session, project.id, upload_bytes=99)
            with pytest.raises(errors.QuotaExceeded, match="upload_bytes is 99, this needs 100"):
                open_upload(session, project.id, settings, 100)
            assert open_upload(session, project.id, settings, 99)

    @POSTGRES_ONLY
    def test_at_the_same_moment_do_not_both_get_the_last_place(
        self, sessions: database.Sessions, settings: Settings, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            kept = quotas.stored_bytes(session, project_id=project.id)
            own(session, project.id, storage_bytes=kept + 250)

        def one() -> bool:
            try:
                with sessions.begin() as session:
                    open_upload(session, project.id, settings, 100)
            except errors.QuotaExceeded:
                return False
            return True

        assert sorted(racing.together([one] * 4)) == [False, False, True, True]


@SQLITE_ONLY
class TestChange:
    def test_takes_nothing_above_the_services_limit(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        service = QuotaLimits(jobs_running=4)
        with sessions.begin() as session:
            with pytest.raises(errors.Refused) as caught:
                quotas.change(
                    session,
                    project_id=project.id,
                    limits={"jobs_running": 5, "jobs_queued": 5},
                    share_weight=None,
                    service=service,
                )
            (fault,) = caught.value.faults
            assert (fault.pointer, fault.code) == ("/jobs_running", "above_service_limit")
            assert "RETORT_QUOTA_JOBS_RUNNING" in fault.detail
            own(session, project.id, jobs_running=3)
            found = {
                one.name: one
                for one in quotas.usage(session, project_id=project.id, service=service)
            }
            running = found["jobs_running"]
            assert (running.limit, running.own_limit, running.service_limit) == (3, 3, 4)


def test_every_service_limit_has_the_setting_that_its_refusal_names() -> None:
    for name, variable in quotas._SETTINGS.items():
        assert variable.removeprefix("RETORT_").lower() in Settings.model_fields, name


class TestHold:
    @POSTGRES_ONLY
    def test_that_waits_reads_the_clock_when_it_has_waited(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        def held(session: Session) -> tuple[tables.ProjectRow, datetime]:
            # A reading from before the wait is replaced.
            database.now(session)
            return quotas.hold(session, job.project_id), database.now(session)

        def waits() -> bool:
            with sessions() as session:
                waiting_for = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")
                return bool(session.scalars(waiting_for).one())

        def late() -> tuple[tables.ProjectRow, datetime]:
            with sessions.begin() as session:
                return held(session)

        with futures.ThreadPoolExecutor(1) as pool:
            with sessions.begin() as session:
                quotas.hold(session, job.project_id)
                running = pool.submit(late)
                waiting.until(waits, "the second one waits for the project")
                released_after = database.now(session)
            project, now = running.result(waiting.PATIENCE_SECONDS)
        assert project.id == job.project_id
        assert now >= released_after
