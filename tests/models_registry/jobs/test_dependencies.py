"""Jobs that wait for the student of another job: when they go on, fail, and are refused."""

from typing import Any

import pydantic
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.access import keys
from models_registry.artifacts import datasets, models
from models_registry.jobs import actions, dependencies, leases, submission, transitions
from models_registry.jobs.lifecycle import State
from models_registry.jobs.spec import JobSpec
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from tests import factories, racing
from tests.databases import SQLITE_ONLY


@pytest.fixture
def maker(sessions: database.Sessions, project: tables.ProjectRow) -> tables.JobRow:
    """A queued job that trains a teacher."""
    with sessions.begin() as session:
        return factories.job(
            session,
            project_id=project.id,
            teacher=None,
            method={"name": "ce"},
            student={"network": "retort/resnet8x4", "register_as": "made"},
        )


def waiting(session: Session, on: tables.JobRow, **changes: Any) -> tables.JobRow:
    """Submit a job that waits for another, as its teacher unless said otherwise."""
    return factories.job(
        session, project_id=on.project_id, **{"teacher": {"job": on.id}, **changes}
    )


def again(session: Session, job: tables.JobRow) -> tables.JobRow:
    return session.get_one(tables.JobRow, job.id, populate_existing=True)


def finish(session: Session, storage: Storage, job: tables.JobRow) -> State:
    """Let a job succeed."""
    lease = factories.running(session, again(session, job))
    file = factories.stored(session, storage, f"student of {job.id}".encode())
    student = factories.new_version("made", job_id=job.id)
    return leases.complete(session, lease, result={}, student=student, files=[file])


def messages(session: Session, job: tables.JobRow) -> int:
    """Return how many messages there are that tell workers of a job."""
    rows = session.scalars(sa.select(tables.OutboxRow)).all()
    return sum(row.payload.get("job_id") == job.id for row in rows)


class TestWaiting:
    def test_goes_on_with_what_was_made(
        self, sessions: database.Sessions, storage: Storage, maker: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            job = waiting(session, maker)
            assert (job.state, job.state_reason) == (State.VALIDATING, "waiting_for_job")
            assert job.state_message == f"Waiting until {maker.id} has made the teacher."
            assert job.spec["teacher"] == {"job": maker.id}
            assert job.spec["depends_on"] == {"teacher": maker.id}
            assert messages(session, job) == 0
        with sessions.begin() as session:
            assert finish(session, storage, maker) == State.SUCCEEDED
        with sessions.begin() as session:
            job = again(session, job)
            made = session.get_one(tables.ModelVersionRow, again(session, maker).student_version_id)
            assert (job.state, job.state_reason) == (State.QUEUED, None)
            assert job.teacher_version_id == made.id
            assert job.spec["teacher"] == models.reference_of(made) == "made@1"
            assert job.spec["teacher_digest"] == f"sha256:{made.sha256}"
            assert job.spec["depends_on"] == {"teacher": maker.id}
            assert messages(session, job) == 1
            assert leases.claim(session, job_id=job.id, worker_id="w", lease_seconds=60)

    @SQLITE_ONLY
    def test_starts_from_the_weights_that_a_job_makes(
        self, sessions: database.Sessions, storage: Storage, maker: tables.JobRow
    ) -> None:
        student = {"network": "retort/resnet8x4", "initial": {"job": maker.id}}
        with sessions.begin() as session:
            job = waiting(session, maker, student=student)
            finish(session, storage, maker)
            job = again(session, job)
            assert job.state == State.QUEUED
            assert job.initial_version_id == job.teacher_version_id
            assert job.spec["student"]["initial"] == "made@1"

    @SQLITE_ONLY
    def test_takes_the_student_of_a_job_that_has_ended(
        self, sessions: database.Sessions, storage: Storage, maker: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            finish(session, storage, maker)
            job = waiting(session, maker)
            assert (job.state, job.spec["teacher"]) == (State.QUEUED, "made@1")

    @SQLITE_ONLY
    def test_of_a_study_all_wait(
        self, sessions: database.Sessions, storage: Storage, maker: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            study = factories.study(session, project_id=maker.project_id, teacher={"job": maker.id})
            members = factories.members(session, study)
            assert {job.state_reason for job in members} == {"waiting_for_job"}
            finish(session, storage, maker)
            session.expire_all()
            assert {job.state for job in members} == {State.QUEUED}
            assert {job.spec["teacher"] for job in members} == {"made@1"}

    @pytest.mark.parametrize("order", ["submission first", "completion first"])
    def test_is_not_forgotten_by_either_in_a_race(
        self,
        sessions: database.Sessions,
        storage: Storage,
        maker: tables.JobRow,
        order: str,
    ) -> None:
        """However submission and completion meet, the job is queued."""

        def submit(session: Session) -> None:
            waiting(session, maker)

        def complete(session: Session) -> None:
            finish(session, storage, maker)

        pair = (submit, complete) if order == "submission first" else (complete, submit)
        racing.overtaken(sessions, *pair)
        with sessions.begin() as session:
            row = tables.JobRow
            states = session.scalars(sa.select(row.state).where(row.id != maker.id)).all()
            assert list(states) == [State.QUEUED]


class TestFailing:
    @pytest.mark.parametrize("ending", ["cancelled", "failed"])
    def test_ends_all_that_wait_and_names_the_job(
        self, sessions: database.Sessions, maker: tables.JobRow, ending: str
    ) -> None:
        with sessions.begin() as session:
            first = waiting(session, maker)
            second = waiting(session, first)
            if ending == "cancelled":
                actions.cancel(session, project_id=maker.project_id, job_id=maker.id)
            else:
                lease = factories.running(session, again(session, maker))
                leases.fail(session, lease, code="c", message="m", retryable=False, log_tail=[])
        with sessions.begin() as session:
            for job, cause in ((first, maker), (second, first)):
                ended = again(session, job)
                assert (ended.state, ended.state_reason) == (State.FAILED, "dependency_failed")
                assert ended.failure is not None
                assert ended.failure["code"] == "dependency_failed"
                assert cause.id in ended.failure["message"]

    @SQLITE_ONLY
    def test_a_student_that_does_not_fit_is_refused_when_it_is_there(
        self, sessions: database.Sessions, storage: Storage, maker: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            job = waiting(session, maker)
            lease = factories.running(session, again(session, maker))
            file = factories.stored(session, storage, b"seven")
            student = factories.new_version("made", job_id=maker.id, classes=7)
            leases.complete(session, lease, result={}, student=student, files=[file])
            ended = again(session, job)
            assert (ended.state, ended.state_reason) == (State.FAILED, "input_rejected")
            assert "7 classes" in (ended.state_message or "")

    @SQLITE_ONLY
    def test_what_one_transaction_leaves_is_swept(
        self,
        sessions: database.Sessions,
        storage: Storage,
        maker: tables.JobRow,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(transitions, "DEPENDENTS_AT_ONCE", 1)
        with sessions.begin() as session:
            other = factories.job(
                session, project_id=maker.project_id, teacher=None, method={"name": "ce"}
            )
            good = [waiting(session, maker) for _ in range(3)]
            bad = [waiting(session, other) for _ in range(3)]
            finish(session, storage, maker)
            actions.cancel(session, project_id=maker.project_id, job_id=other.id)
        rounds = 0
        while True:
            with sessions.begin() as session:
                if not submission.settle_left_waiting(session):
                    break
            rounds += 1
        assert rounds == 4
        with sessions.begin() as session:
            assert [again(session, job).state for job in good] == [State.QUEUED] * 3
            assert [again(session, job).state for job in bad] == [State.FAILED] * 3


@SQLITE_ONLY
class TestRefusal:
    def refused(self, session: Session, on: tables.JobRow, **changes: Any) -> errors.Fault:
        with pytest.raises(errors.Refused) as refusal:
            waiting(session, on, **changes)
        return refusal.value.faults[0]

    def test_what_the_student_will_be_is_judged_at_submission(
        self, sessions: database.Sessions, maker: tables.JobRow
    ) -> None:
        student = {"network": "retort/resnet8", "initial": {"job": maker.id}}
        with sessions.begin() as session:
            fault = self.refused(session, maker, student=student)
            assert (fault.pointer, fault.code) == ("/student/initial", "wrong_network")
            assert f"the student of {maker.id} is a retort/resnet8x4" in fault.detail
            # What the awaited teacher says of its images is enough for a data-free method.
            job = factories.job(
                session,
                project_id=maker.project_id,
                teacher={"job": maker.id},
                dataset=None,
                method={"name": "dafl"},
            )
            assert job.state_reason == "waiting_for_job"
            seen = dependencies.described(session, job)
            assert (len(seen.classes), seen.input["channels"]) == (10, 1)

    @pytest.mark.parametrize("teachers", [["t0@1"], ["t0@1", "t1@1"]], ids=len)
    def test_a_student_has_its_teachers_classes_where_images_have_no_label(
        self,
        sessions: database.Sessions,
        storage: Storage,
        project: tables.ProjectRow,
        teachers: list[str],
    ) -> None:
        is_one = len(teachers) == 1
        named = {"teacher": teachers[0]} if is_one else {"teacher": None, "teachers": teachers}
        with sessions.begin() as session:
            dataset = datasets.add_version(
                session,
                project_id=project.id,
                name="unlabelled",
                state="ready",
                format="imagefolder",
                task="classification",
                classes=[],
                splits={"train": 20, "test": 5},
                labelled={"train": 0, "test": 5},
                input=factories.DIGITS_INPUT,
            )
            for name in ("t0", "t1"):
                content = name.encode()
                factories.teacher(
                    session, storage, project_id=project.id, name=name, content=content, classes=7
                )
            maker = factories.job(session, project_id=project.id, dataset="unlabelled@1", **named)
            seen = dependencies.described(session, maker)
            assert (len(seen.classes), seen.input) == (7, factories.DIGITS_INPUT)
            # So what waits for it is judged now, and not when it has ended.
            fault = self.refused(session, maker)
            assert (fault.pointer, fault.code) == ("/teacher", "class_count")
            dataset.state = "pending"
            session.flush()
            assert dependencies.described(session, maker).classes == []

    def test_unknown_foreign_deleted_and_failed_jobs(
        self, sessions: database.Sessions, maker: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            stranger = keys.create_project(session, name="stranger").id
            with pytest.raises(errors.Refused, match="There is no job"):
                factories.job(session, project_id=stranger, teacher={"job": maker.id})
            fault = self.refused(session, maker, teacher={"job": "job_0"})
            assert (fault.pointer, fault.code) == ("/teacher", "not_found")
            actions.cancel(session, project_id=maker.project_id, job_id=maker.id)
            fault = self.refused(session, maker)
            assert (fault.code, "retry it" in fault.detail) == ("dependency_failed", True)
            actions.delete(session, project_id=maker.project_id, job_id=maker.id)
            assert self.refused(session, maker).code == "not_found"

    def test_a_chain_has_an_end(
        self, sessions: database.Sessions, maker: tables.JobRow, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dependencies, "LONGEST_CHAIN", 2)
        with sessions.begin() as session:
            last = waiting(session, waiting(session, maker))
            assert self.refused(session, last).code == "too_many_waiting"


@pytest.mark.parametrize("value", [5, {"job": "x"}, {"jobs": "job_1"}, "a" * 301, ["a@1"]])
def test_the_form_of_a_reference(value: object) -> None:
    with pytest.raises(ValueError, match="teacher") as refusal:
        JobSpec.model_validate(factories.spec(teacher=value))
    assert isinstance(refusal.value, pydantic.ValidationError)
    assert all("str" not in fault["loc"] for fault in refusal.value.errors())
