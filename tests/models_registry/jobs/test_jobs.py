"""Jobs: what is refused at submission, what is stored, and every move by its one door."""

import contextlib
import itertools
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import sqlalchemy as sa
from hypothesis import stateful
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from models_registry import errors, ids
from models_registry.access import keys
from models_registry.artifacts import models
from models_registry.jobs import (
    actions,
    leases,
    lifecycle,
    submission,
    sweeps,
    transitions,
    workers,
)
from models_registry.jobs.lifecycle import Answer, Event, Reason, State
from models_registry.jobs.spec import JobSpec
from models_registry.persistence import database, schema, tables
from models_registry.persistence.storage import LocalStorage, Storage
from models_registry.retention.policies import RetentionPolicy
from tests import factories, racing
from tests.databases import SQLITE_ONLY

LONG = timedelta(days=1)


def again(session: Session, job: tables.JobRow) -> tables.JobRow:
    """Return the job as this session sees it."""
    return session.get_one(tables.JobRow, job.id, populate_existing=True)


def events(session: Session, job: tables.JobRow) -> list[tables.EventRow]:
    row = tables.EventRow
    return list(session.scalars(sa.select(row).where(row.job_id == job.id).order_by(row.sequence)))


def messages(session: Session, job: tables.JobRow) -> list[tables.OutboxRow]:
    found = session.scalars(sa.select(tables.OutboxRow).order_by(tables.OutboxRow.id))
    return [row for row in found if row.payload.get("job_id") == job.id]


def checked(session: Session, project: tables.ProjectRow, **changes: Any) -> JobSpec:
    wanted = JobSpec.model_validate(factories.spec(**changes))
    return submission.check(session, project_id=project.id, spec=wanted).spec


def refusal(
    sessions: database.Sessions, project: tables.ProjectRow, **changes: Any
) -> errors.Refused:
    """Return why a spec is refused; nothing may be stored then."""
    with pytest.raises(errors.Refused) as refused, sessions.begin() as session:
        factories.job(session, project_id=project.id, **changes)
    with sessions.begin() as session:
        assert session.scalars(sa.select(tables.JobRow)).all() == []
        assert session.scalars(sa.select(tables.OutboxRow)).all() == []
    return refused.value


class TestSummary:
    @pytest.mark.parametrize(
        ("detail", "sentence"),
        [
            ("method kd needs a teacher", "Method kd needs a teacher"),
            ("student_steps 5 is too much", "student_steps 5 is too much"),
            ("retort/fcn is for segmentation", "retort/fcn is for segmentation"),
        ],
    )
    def test_begins_as_a_sentence_but_for_names(self, detail: str, sentence: str) -> None:
        fault = errors.Fault("/x", "wrong", detail)
        assert submission.summary([fault]) == sentence
        assert submission.summary([fault, fault]) == f"{sentence} (and 1 more)"


def faults(refused: errors.Refused) -> dict[str, str]:
    return {fault.pointer: fault.code for fault in refused.faults}


@pytest.mark.usefixtures("teacher")
class TestSubmit:
    def test_queues_the_job_with_two_events_and_one_message(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            assert again(session, job).state == State.QUEUED
            assert [(e.sequence, e.type) for e in events(session, job)] == [
                (1, "job.validating"),
                (2, "job.queued"),
            ]
            (message,) = messages(session, job)
            assert (message.task, message.queue) == ("jobs.run", "any")
            assert message.payload == {"job_id": job.id, "dispatch_seq": 2}
            assert job.queued_at is not None
            assert job.queued_at == job.announced_at == events(session, job)[1].at

    def test_completes_a_spec_that_it_has_seen_before_as_it_did_then(
        self, sessions: database.Sessions, project: tables.ProjectRow, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            second = factories.job(session, project_id=project.id)
        with sessions.begin() as session:
            stored = again(session, second)
            assert stored.id != job.id
            assert (stored.spec, stored.warnings) == (job.spec, job.warnings)
            assert len(events(session, second)) == 2

    def test_refuses_a_spec_that_it_has_seen_before_once_its_teacher_is_gone(
        self, sessions: database.Sessions, project: tables.ProjectRow, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            actions.cancel(session, project_id=project.id, job_id=job.id)
            version = session.get_one(tables.ModelVersionRow, job.teacher_version_id)
            version.deleted_at = database.now(session)
        with pytest.raises(errors.Refused) as refused, sessions.begin() as session:
            factories.job(session, project_id=project.id)
        assert faults(refused.value) == {"/teacher": "gone"}

    def test_asks_the_database_seldom(
        self,
        engine: sa.Engine,
        sessions: database.Sessions,
        project: tables.ProjectRow,
        job: tables.JobRow,
    ) -> None:
        """Each statement is a wait of the caller, and a large part of what a submission costs."""
        statements: list[str] = []
        sa.event.listen(
            engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2])
        )
        with sessions.begin() as session:
            factories.job(session, project_id=project.id, name=f"like {job.id}")
            statements_of_submission = list(statements)
        # Teacher, data set, the queue's workers, the project, endpoints of webhooks; PostgreSQL
        # stores all rows in one, SQLite those of each table.
        assert len(statements_of_submission) <= 9, statements_of_submission

    def test_stores_the_spec_with_defaults_filled_in(self, job: tables.JobRow) -> None:
        assert job.spec["version"] == 1
        assert job.spec["method"]["temperature"] > 0
        assert job.spec["training"]["epochs"] == 2
        assert job.spec["training"]["schedule"]["milestones"] == [1]
        assert job.spec["training"]["optimizer"]["name"] == "sgd"
        assert submission.spec_of(job).model_dump(mode="json").items() <= job.spec.items()

    def test_sends_to_the_queue_of_the_accelerator_with_the_priority(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            job = factories.job(
                session, project_id=project.id, resources={"accelerator": "cuda"}, priority=7
            )
            (message,) = messages(session, job)
            assert (message.queue, message.priority) == ("cuda", 7)

    def test_says_when_no_worker_takes_such_jobs(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            workers.announce(
                session,
                worker_id=ids.new("wrk"),
                name="w",
                queues=["any", "cpu"],
                devices=[],
                memory_bytes=1,
                versions={},
            )
            resources = {"accelerator": "cuda"}
            waits = factories.job(session, project_id=project.id, resources=resources)
            assert "No worker that takes 'cuda' jobs" in str(waits.state_message)
            assert factories.job(session, project_id=project.id).state_message is None

    def test_says_when_no_worker_offers_so_many_devices(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            for offered in (1, 2):
                workers.announce(
                    session,
                    worker_id=ids.new("wrk"),
                    name="w",
                    queues=["any"],
                    devices=[],
                    memory_bytes=1,
                    versions={},
                    offered_devices=offered,
                )
            two = factories.job(session, project_id=project.id, resources={"devices": 2})
            four = factories.job(session, project_id=project.id, resources={"devices": 4})
            assert (two.devices, two.state, two.state_message) == (2, State.QUEUED, None)
            assert (four.devices, four.state) == (4, State.QUEUED)
            assert "needs 4 devices" in str(four.state_message)
            assert "no worker that is online offers more than 2" in str(four.state_message)

    @pytest.mark.parametrize(
        ("name", "registered"),
        [
            ("Digits, DKD (2)", "digits-dkd-2"),
            ("ÄÖÜ", "student"),
            ("...", "student"),
            ("_x_", "x"),
            ("n" * 150, "n" * 96),
        ],
    )
    def test_makes_the_students_name_from_the_jobs(
        self, sessions: database.Sessions, project: tables.ProjectRow, name: str, registered: str
    ) -> None:
        with sessions.begin() as session:
            found = checked(session, project, name=name)
        assert found.student.register_as == registered
        assert JobSpec.model_validate(found.model_dump()) == found

    def test_keeps_a_students_name_that_was_asked_for(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        student = {"network": "retort/resnet8", "register_as": "pupil"}
        with sessions.begin() as session:
            assert checked(session, project, student=student).student.register_as == "pupil"


@SQLITE_ONLY
@pytest.mark.usefixtures("teacher")
class TestReferences:
    @pytest.mark.parametrize("form", ["name", "name@1", "name@latest", "name@champion", "digest"])
    def test_are_pinned_to_version_and_digest(
        self,
        sessions: database.Sessions,
        project: tables.ProjectRow,
        teacher: tables.ModelVersionRow,
        form: str,
    ) -> None:
        reference = form.replace("name", "digits-teacher")
        if form == "digest":
            reference = f"digits-teacher@sha256:{teacher.sha256}"
        with sessions.begin() as session:
            factories.alias(session, project_id=project.id, name="digits-teacher", alias="champion")
            job = factories.job(session, project_id=project.id, teacher=reference, dataset="digits")
            dataset = session.get_one(tables.DatasetVersionRow, job.dataset_version_id)
        assert job.teacher_version_id == teacher.id
        assert job.spec["teacher"] == "digits-teacher@1"
        assert job.spec["teacher_digest"] == f"sha256:{teacher.sha256}"
        assert job.spec["dataset"] == "digits@1"
        assert job.spec["dataset_digest"] == f"sha256:{dataset.sha256}"
        assert job.spec["initial_digest"] is None

    def test_of_start_weights_are_pinned_too(
        self, sessions: database.Sessions, storage: Storage, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            start = factories.teacher(
                session, storage, project_id=project.id, name="start", network="retort/resnet8"
            )
            student = {"network": "retort/resnet8", "initial": "start"}
            job = factories.job(session, project_id=project.id, student=student)
        assert job.initial_version_id == start.id
        assert job.spec["student"]["initial"] == "start@1"
        assert job.spec["initial_digest"] == f"sha256:{start.sha256}"

    def test_stay_what_they_were_when_names_move_on(
        self,
        sessions: database.Sessions,
        storage: Storage,
        project: tables.ProjectRow,
        teacher: tables.ModelVersionRow,
    ) -> None:
        with sessions.begin() as session:
            job = factories.job(session, project_id=project.id, teacher="digits-teacher@latest")
            factories.teacher(session, storage, project_id=project.id, content=b"newer")
            actions.cancel(session, project_id=project.id, job_id=job.id)
            retried = actions.retry(session, project_id=project.id, job_id=job.id)
        assert retried.teacher_version_id == teacher.id

    @pytest.mark.parametrize(
        ("changes", "pointer", "code", "hint"),
        [
            ({"teacher": "digits-teachr@1"}, "/teacher", "not_found", "'digits-teacher'"),
            ({"teacher": "digits-teacher@9"}, "/teacher", "not_found", "digits-teacher@1"),
            ({"teacher": "digits-teacher@best"}, "/teacher", "not_found", "'best'"),
            ({"teacher": "Not A Reference"}, "/teacher", "malformed_reference", "name@3"),
            ({"dataset": "digit@1"}, "/dataset", "not_found", "'digits'"),
            ({"dataset": "digits@2"}, "/dataset", "not_found", "digits@1"),
            (
                {"student": {"network": "retort/resnet8", "initial": "nothing"}},
                "/student/initial",
                "not_found",
                "nothing",
            ),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_that_lead_nowhere_are_refused_with_a_way_out(
        self,
        sessions: database.Sessions,
        project: tables.ProjectRow,
        changes: dict[str, Any],
        pointer: str,
        code: str,
        hint: str,
    ) -> None:
        refused = refusal(sessions, project, **changes)
        assert faults(refused) == {pointer: code}
        assert hint in refused.faults[0].detail

    def test_of_another_project_lead_nowhere(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            other = keys.create_project(session, name="other")
        assert faults(refusal(sessions, other)) == {"/teacher": "not_found"}

    def test_to_a_deleted_teacher_are_refused_as_gone(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            models.delete_version(session, project_id=project.id, name="digits-teacher", version=1)
        assert faults(refusal(sessions, project)) == {"/teacher": "gone"}


@SQLITE_ONLY
@pytest.mark.usefixtures("teacher")
class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "pointer", "code", "hint"),
        [
            ({"method": {"name": "kdd"}}, "/method/name", "unknown_method", "'kd'"),
            (
                {"method": {"name": "kd", "temprature": 4}},
                "/method/temprature",
                "unknown_field",
                "'temperature'",
            ),
            (
                {"method": {"name": "kd", "temperature": 0}},
                "/method/temperature",
                "invalid_exclusiveMinimum",
                "got 0",
            ),
            ({"training": {"recipe": "smal"}}, "/training/recipe", "unknown_recipe", "'small'"),
            ({"training": {"epochs": 0}}, "/training/epochs", "invalid_minimum", "got 0"),
            (
                {"student": {"network": "retort/resnet9"}},
                "/student/network",
                "unknown_network",
                "'retort/resnet8'",
            ),
            (
                {"student": {"network": "retort/resnet8", "arguments": {"width": 1}}},
                "/student/arguments/width",
                "unknown_field",
                "'widths'",
            ),
            ({"teacher": None}, "/teacher", "required", "kd needs a teacher"),
            ({"dataset": None}, "/dataset", "required", "kd needs a labelled data set"),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_name_the_field_and_the_way_out(
        self,
        sessions: database.Sessions,
        project: tables.ProjectRow,
        changes: dict[str, Any],
        pointer: str,
        code: str,
        hint: str,
    ) -> None:
        refused = refusal(sessions, project, **changes)
        assert refused.code == "invalid_spec"
        assert faults(refused) == {pointer: code}
        assert hint in refused.faults[0].detail

    def test_name_every_fault_at_once(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        refused = refusal(
            sessions,
            project,
            teacher="nobody",
            dataset="nothing",
            student={"network": "no/net"},
            method={"name": "magic"},
            training={"epochs": -1},
        )
        assert set(faults(refused)) == {
            "/teacher",
            "/dataset",
            "/student/network",
            "/method/name",
            "/training/epochs",
        }
        assert "(and 4 more)" in str(refused)

    def test_of_networks_that_do_not_fit_the_data_set(
        self, sessions: database.Sessions, storage: Storage, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            wide = {"channels": 4, "height": 8, "width": 8, "mean": [0.0] * 4, "std": [1.0] * 4}
            factories.teacher(session, storage, project_id=project.id, name="many", classes=100)
            factories.teacher(session, storage, project_id=project.id, name="wide", input=wide)
        refused = refusal(sessions, project, teacher="many")
        assert faults(refused) == {"/teacher": "class_count"}
        assert "100 classes and the data set has 10" in refused.faults[0].detail
        refused = refusal(sessions, project, teacher="wide")
        assert faults(refused) == {"/teacher": "channels"}
        refused = refusal(
            sessions,
            project,
            teacher=None,
            method={"name": "ce"},
            student={"network": "retort/resnet8", "initial": "many"},
        )
        assert [(f.pointer, f.code) for f in refused.faults] == [
            ("/student/initial", "class_count"),
            ("/student/initial", "wrong_network"),
        ]

    def test_take_colour_networks_for_grey_images(
        self, sessions: database.Sessions, storage: Storage, project: tables.ProjectRow
    ) -> None:
        colour = {"channels": 3, "height": 32, "width": 32, "mean": [0.5] * 3, "std": [0.2] * 3}
        with sessions.begin() as session:
            factories.teacher(session, storage, project_id=project.id, name="colour", input=colour)
            assert checked(session, project, teacher="colour").teacher == "colour@1"

    def test_let_a_method_without_a_teacher_do_without(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            job = factories.job(session, project_id=project.id, teacher=None, method={"name": "ce"})
            assert job.state == State.QUEUED


@SQLITE_ONLY
@pytest.mark.usefixtures("teacher")
class TestDataFree:
    def test_needs_no_data_set_and_has_its_defaults_filled_in(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        body = factories.data_free_spec(
            method={"name": "dafl", "synthesis": {"steps": 3}}, baseline=True
        )
        with sessions.begin() as session:
            job = submission.submit(
                session, project_id=project.id, spec=JobSpec.model_validate(body)
            )
            assert (job.state, job.dataset_version_id) == (State.QUEUED, None)
            assert job.spec["method"]["synthesis"]["steps"] == 3
            assert job.spec["method"]["synthesis"]["keep_images"] is True
            assert job.spec["dataset"] is None

    def test_may_have_one_to_be_evaluated_on(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            job = factories.job(session, project_id=project.id, method={"name": "dafl"})
            assert job.spec["dataset"] == "digits@1"

    @pytest.mark.parametrize("method", ["kd", "simkd", "ce"])
    def test_is_the_only_kind_that_needs_none(
        self, sessions: database.Sessions, project: tables.ProjectRow, method: str
    ) -> None:
        refused = refusal(sessions, project, dataset=None, method={"name": method})
        assert faults(refused) == {"/dataset": "required"}

    @pytest.mark.parametrize(
        ("changes", "pointer", "code"),
        [
            ({"teacher": None}, "/teacher", "required"),
            ({"training": {"patience_epochs": 2}}, "/training/patience_epochs", "never_chosen"),
            (
                {"method": {"name": "dafl", "synthesis": {"student_steps": None}}},
                "/method/synthesis/student_steps",
                "budget_open",
            ),
            ({"method": {"name": "ssdkd"}}, "/method/synthesis/original_images", "size_unknown"),
            (
                {"task": "segmentation", "dataset": "digits@1", "method": {"name": "crd"}},
                "/method/name",
                "wrong_task",
            ),
        ],
    )
    def test_is_refused_with_the_field(
        self,
        sessions: database.Sessions,
        project: tables.ProjectRow,
        changes: dict[str, Any],
        pointer: str,
        code: str,
    ) -> None:
        refused = refusal(sessions, project, **factories.data_free_spec(**changes))
        assert faults(refused)[pointer] == code

    def test_is_refused_networks_that_are_for_another_task(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        body = factories.data_free_spec(
            task="segmentation", student={"network": "torchvision/fcn_resnet50"}
        )
        assert faults(refusal(sessions, project, **body)) == {"/teacher": "wrong_task"}
        body = factories.data_free_spec(student={"network": "retort/fcn"})
        assert faults(refusal(sessions, project, **body)) == {"/student/network": "wrong_task"}

    def test_takes_the_teachers_size_from_a_data_set(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            job = factories.job(session, project_id=project.id, method={"name": "ssdkd"})
            assert job.spec["method"]["synthesis"]["student_steps"] is None

    def test_starts_only_from_weights_for_what_the_teacher_sees(
        self, sessions: database.Sessions, storage: Storage, project: tables.ProjectRow
    ) -> None:
        network: dict[str, Any] = {"network": "retort/resnet8", "arguments": {}}
        with sessions.begin() as session:
            for name, classes in (("ten", 10), ("two", 2)):
                version = {"name": name, "classes": classes, **network}
                factories.teacher(session, storage, project_id=project.id, **version)
        asked = {"dataset": None, "method": {"name": "dafl"}}
        refused = refusal(sessions, project, student={**network, "initial": "two@1"}, **asked)
        assert faults(refused) == {"/student/initial": "not_as_teacher"}
        with sessions.begin() as session:
            student = {**network, "initial": "ten@1"}
            factories.job(session, project_id=project.id, student=student, **asked)


@pytest.mark.usefixtures("teacher")
class TestCheck:
    def test_says_what_submit_would_and_stores_nothing(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            dry = checked(session, project)
        with sessions.begin() as session:
            assert session.scalars(sa.select(tables.JobRow)).all() == []
            job = factories.job(session, project_id=project.id)
        assert submission.spec_of(job) == dry

    def test_of_its_own_answer_changes_nothing(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            once = checked(session, project)
            assert submission.check(session, project_id=project.id, spec=once).spec == once


# How to bring a queued job to each state, in a session.
def _queued(session: Session, job: tables.JobRow) -> None:
    assert again(session, job).state == State.QUEUED


def _cancelling(session: Session, job: tables.JobRow) -> None:
    factories.running(session, job)
    actions.cancel(session, project_id=job.project_id, job_id=job.id)


def _paused(session: Session, job: tables.JobRow) -> None:
    actions.pause(session, project_id=job.project_id, job_id=job.id)


def _pausing(session: Session, job: tables.JobRow) -> None:
    factories.running(session, job)
    _paused(session, job)


def _failed(session: Session, job: tables.JobRow) -> None:
    lease = factories.running(session, job)
    leases.fail(session, lease, code="diverged", message="m", retryable=False, log_tail=[])


def _cancelled(session: Session, job: tables.JobRow) -> None:
    actions.cancel(session, project_id=job.project_id, job_id=job.id)


WAYS: dict[State, Callable[[Session, tables.JobRow], object]] = {
    State.QUEUED: _queued,
    State.STARTING: factories.claimed,
    State.RUNNING: factories.running,
    State.PAUSING: _pausing,
    State.PAUSED: _paused,
    State.CANCELLING: _cancelling,
    State.FAILED: _failed,
    State.CANCELLED: _cancelled,
}


def answer_to(session: Session, job: tables.JobRow, event: Event) -> State | Answer:
    """Return the answer that `move` gives, whether it returns or raises it."""
    state = job.state
    try:
        return transitions.move(session, job, event, because=Reason.ATTEMPT_LOST).answer
    except errors.StaleFence:
        return Answer.STALE
    except errors.IllegalMove as error:
        told = (error.state, error.allowed)
        return Answer.CONFLICT if told == (state, lifecycle.allowed(State(state))) else Answer.DROP
    except errors.Conflict:
        return Answer.NEVER


class TestMove:
    @SQLITE_ONLY
    @pytest.mark.parametrize("state", WAYS)
    def test_does_what_the_table_says(
        self, sessions: database.Sessions, job: tables.JobRow, state: State
    ) -> None:
        for event in Event:
            with sessions() as session:  # never committed
                WAYS[state](session, again(session, job))
                before = again(session, job).last_sequence
                expected = lifecycle.answer(state, event, lifecycle.Situation())
                assert answer_to(session, again(session, job), event) == expected
                row = again(session, job)
                moved = isinstance(expected, State)
                assert row.state == (expected if moved else state)
                assert row.last_sequence == before + moved

    def test_writes_from_where_to_where_and_why(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            lease = factories.running(session, again(session, job))
            leases.fail(
                session, lease, code="diverged", message="too hot", retryable=True, log_tail=[]
            )
            last = events(session, job)[-1]
        assert last.type == "job.queued"
        assert last.data == {
            "from": "running",
            "to": "queued",
            "attempt": 1,
            "reason": "attempt_failed",
            "message": "too hot",
        }

    def test_refuses_a_fence_that_is_out_of_date(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            lease = factories.running(session, again(session, job))
            with pytest.raises(errors.StaleFence):
                transitions.move(session, again(session, job), Event.FAIL, fence=lease.fence - 1)
            assert again(session, job).state == State.RUNNING

    def test_of_two_users_at_once_happens_once(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        def cancel() -> State:
            with sessions.begin() as session:
                return State(
                    actions.cancel(session, project_id=job.project_id, job_id=job.id).state
                )

        assert racing.together([cancel] * 4) == [State.CANCELLED] * 4
        with sessions.begin() as session:
            assert [e.type for e in events(session, job)].count("job.cancelled") == 1

    def test_looks_again_when_it_lost_a_race(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        state = racing.overtaken(
            sessions,
            lambda session: factories.claimed(session, again(session, job)),
            lambda session: actions.cancel(session, project_id=job.project_id, job_id=job.id).state,
        )
        assert state == State.CANCELLING  # it held, and not `cancelled` as it would have before


class TestUserVerbs:
    def test_cancel_ends_a_queued_job_at_once(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            row = actions.cancel(session, project_id=job.project_id, job_id=job.id)
            assert (row.state, row.state_reason) == (State.CANCELLED, "cancelled_by_caller")
            assert row.finished_at is not None

    def test_cancel_of_a_final_job_changes_nothing(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            _failed(session, again(session, job))
        with sessions.begin() as session:
            before = again(session, job).last_sequence
            row = actions.cancel(session, project_id=job.project_id, job_id=job.id)
            assert (row.state, row.cancel_target) == (State.FAILED, None)
            assert row.last_sequence == before

    def test_pause_and_resume_go_round(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        project_id = job.project_id
        with sessions.begin() as session:
            lease = factories.running(session, again(session, job))
            row = actions.pause(session, project_id=project_id, job_id=job.id)
            assert row.state == State.PAUSING
            assert leases.poll(session, lease) is State.PAUSING
            assert leases.stopped(session, lease, log_tail=["bye"]) is State.PAUSED
            session.refresh(row)
            assert (row.state_reason, row.lease_owner) == ("paused_by_caller", None)
            row = actions.resume(session, project_id=project_id, job_id=job.id)
            assert (row.state, row.state_reason) == (State.QUEUED, "resumed_by_caller")
            assert len(messages(session, job)) == 2
            again_lease = factories.running(session, row)
        assert (again_lease.attempt, again_lease.fence) == (2, 2)

    def test_pauses_use_up_no_attempt(
        self, sessions: database.Sessions, project: tables.ProjectRow, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            once = factories.job(session, project_id=project.id, max_attempts=1)
            for _ in range(3):
                lease = factories.running(session, once)
                actions.pause(session, project_id=project.id, job_id=once.id)
                leases.stopped(session, lease, log_tail=[])
                actions.resume(session, project_id=project.id, job_id=once.id)
            lease = factories.running(session, once)
            state = leases.fail(
                session, lease, code="crash", message="m", retryable=True, log_tail=[]
            )
            session.refresh(once)
            assert (state, once.attempt, once.releases) == (State.FAILED, 4, 3)

    @pytest.mark.parametrize("verb", [actions.pause, actions.resume])
    def test_that_do_not_fit_name_those_that_do(
        self, sessions: database.Sessions, job: tables.JobRow, verb: Callable[..., object]
    ) -> None:
        with sessions.begin() as session:
            _cancelled(session, again(session, job))
        with (
            pytest.raises(errors.IllegalMove, match="nothing changes it any more") as refused,
            sessions.begin() as session,
        ):
            verb(session, project_id=job.project_id, job_id=job.id)
        assert refused.value.allowed == ()

    def test_resume_of_a_running_job_is_refused(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            factories.running(session, again(session, job))
            with pytest.raises(errors.IllegalMove, match="allowed now: pause, cancel"):
                actions.resume(session, project_id=job.project_id, job_id=job.id)

    @pytest.mark.parametrize(
        "verb", [actions.get, actions.cancel, actions.pause, actions.retry, actions.delete]
    )
    def test_do_not_see_jobs_of_another_project(
        self, sessions: database.Sessions, job: tables.JobRow, verb: Callable[..., object]
    ) -> None:
        with sessions.begin() as session:
            other = keys.create_project(session, name="other")
            with pytest.raises(errors.NotFound):
                verb(session, project_id=other.id, job_id=job.id)
            with pytest.raises(errors.NotFound):
                verb(session, project_id=job.project_id, job_id="job_nowhere")
        with sessions.begin() as session:
            assert again(session, job).state == State.QUEUED


@SQLITE_ONLY
class TestRetry:
    @pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED])
    def test_makes_a_new_job_of_the_same_spec(
        self, sessions: database.Sessions, job: tables.JobRow, state: State
    ) -> None:
        with sessions.begin() as session:
            WAYS[state](session, again(session, job))
        with sessions.begin() as session:
            new = actions.retry(session, project_id=job.project_id, job_id=job.id)
            assert new.id != job.id
            assert (new.state, new.retry_of, new.attempt) == (State.QUEUED, job.id, 0)
            assert new.spec == job.spec
            assert again(session, job).state == state

    @pytest.mark.parametrize("state", sorted(set(WAYS) - {State.FAILED, State.CANCELLED}))
    def test_of_a_job_that_did_not_fail_is_refused(
        self, sessions: database.Sessions, job: tables.JobRow, state: State
    ) -> None:
        with sessions.begin() as session:
            WAYS[state](session, again(session, job))
            with pytest.raises(errors.IllegalMove, match="Only failed or cancelled"):
                actions.retry(session, project_id=job.project_id, job_id=job.id)


@SQLITE_ONLY
class TestDelete:
    @pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED])
    def test_leaves_a_tombstone(
        self, sessions: database.Sessions, job: tables.JobRow, state: State
    ) -> None:
        with sessions.begin() as session:
            WAYS[state](session, again(session, job))
            actions.delete(session, project_id=job.project_id, job_id=job.id)
        with sessions.begin() as session, pytest.raises(errors.Gone):
            actions.get(session, project_id=job.project_id, job_id=job.id)

    @pytest.mark.parametrize("state", sorted(set(WAYS) - lifecycle.FINAL))
    def test_of_a_job_that_goes_on_is_refused(
        self, sessions: database.Sessions, job: tables.JobRow, state: State
    ) -> None:
        with sessions.begin() as session:
            WAYS[state](session, again(session, job))
            with pytest.raises(errors.IllegalMove, match="cannot be deleted; ") as refused:
                actions.delete(session, project_id=job.project_id, job_id=job.id)
            assert refused.value.allowed == lifecycle.allowed(state)

    def test_keeps_the_student(
        self, sessions: database.Sessions, storage: Storage, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            factories.succeeded(session, storage, again(session, job))
            actions.delete(session, project_id=job.project_id, job_id=job.id)
            student = models.resolve(
                session, project_id=job.project_id, reference="digits-student@1"
            )
            assert student.job_id == job.id


class TestBackoff:
    def test_doubles_up_to_a_limit(self) -> None:
        for attempt in range(1, 40):
            most = min(
                transitions.BACKOFF_SECONDS * 2 ** (attempt - 1), transitions.BACKOFF_LIMIT_SECONDS
            )
            for _ in range(20):
                seconds = transitions.backoff(attempt).total_seconds()
                assert most / 2 <= seconds <= most

    def test_differs_from_job_to_job(self) -> None:
        # Else all the jobs of a worker that died would come back in the same instant.
        assert len({transitions.backoff(5) for _ in range(50)}) > 40

    @SQLITE_ONLY
    def test_of_an_attempt_that_did_not_count_is_not_longer(
        self, sessions: database.Sessions, job: tables.JobRow
    ) -> None:
        with sessions.begin() as session:
            row = again(session, job)
            for _ in range(6):
                leases.release(session, factories.running(session, row), log_tail=[])
            lease = factories.running(session, row)
            leases.fail(session, lease, code="c", message="m", retryable=True, log_tail=[])
            session.refresh(row)
            assert row.not_before - database.now(session) < timedelta(seconds=2)


# -- any history -----------------------------------------------------------------------------


class JobHistory(stateful.RuleBasedStateMachine):
    """Two workers, a user, the reaper and the clock have their way with one job.

    A worker keeps every lease it ever had and may use any of them, as one that was cut off does.
    """

    def __init__(self, engine: sa.Engine, storage: Storage, project_id: str) -> None:
        super().__init__()
        self.sessions = database.sessions(engine)
        self.storage = storage
        self.project_id = project_id
        self.final: dict[str, Any] | None = None
        self.fence = 0
        self.steps = itertools.count(1)

    held = stateful.Bundle("held")

    @stateful.initialize(max_attempts=st.integers(1, 3))
    def submit(self, max_attempts: int) -> None:
        with self.sessions.begin() as session:
            job = factories.job(
                session,
                project_id=self.project_id,
                max_attempts=max_attempts,
                resources={"max_runtime_seconds": 1000, "queue_deadline_seconds": 1000},
            )
            self.job_id = job.id

    # Workers

    @stateful.rule(target=held, worker=st.sampled_from(["wrk_1", "wrk_2"]))
    def claim(self, worker: str) -> Any:
        with self.sessions.begin() as session:
            before = self.job(session).state
            lease = leases.claim(session, job_id=self.job_id, worker_id=worker, lease_seconds=60)
            if lease is None:
                return stateful.multiple()
            assert before == State.QUEUED
            return lease

    @stateful.rule(lease=held)
    def start(self, lease: leases.Lease) -> None:
        self.write(lease, lambda s: leases.started(s, lease, device="cpu", resumed_from_step=None))

    @stateful.rule(lease=held)
    def renew(self, lease: leases.Lease) -> None:
        self.write(lease, lambda s: leases.renew(s, lease, lease_seconds=60))

    @stateful.rule(lease=held)
    def report(self, lease: leases.Lease) -> None:
        points = [leases.MetricSample("loss/total", 1, 1, 0.5)]
        self.write(
            lease,
            lambda s: leases.report(s, lease, progress=0.5, estimated_end_at=None, samples=points),
        )

    @stateful.rule(lease=held)
    def checkpoint(self, lease: leases.Lease) -> None:
        step = next(self.steps)

        def write(session: Session) -> None:
            file = factories.stored(session, self.storage, b"checkpoint")
            leases.checkpoint(session, lease, file, step=step, epoch=1, phase="student")

        self.write(lease, write)

    @stateful.rule(lease=held)
    def complete(self, lease: leases.Lease) -> None:
        def write(session: Session) -> None:
            file = factories.stored(session, self.storage, b"student")
            student = factories.new_version("digits-student", job_id=self.job_id)
            leases.complete(session, lease, result={}, student=student, files=[file])

        self.write(lease, write)

    @stateful.rule(lease=held, retryable=st.booleans())
    def fail(self, lease: leases.Lease, retryable: bool) -> None:
        self.write(
            lease,
            lambda s: leases.fail(
                s, lease, code="c", message="m", retryable=retryable, log_tail=["l"]
            ),
        )

    @stateful.rule(lease=held)
    def stop(self, lease: leases.Lease) -> None:
        self.write(lease, lambda s: leases.stopped(s, lease, log_tail=[]))

    @stateful.rule(lease=held)
    def release(self, lease: leases.Lease) -> None:
        self.write(lease, lambda s: leases.release(s, lease, log_tail=[]))

    def write(self, lease: leases.Lease, write: Callable[[Session], object]) -> None:
        """Let a worker write; without the lease it must be refused, and leave no trace."""
        with self.sessions.begin() as session:
            job = self.job(session)
            holds = job.fence == lease.fence and job.state in lifecycle.HELD
            before = self.everything(session)
        refused: errors.RegistryError | None = None
        try:
            with self.sessions.begin() as session:
                write(session)
        except (errors.StaleFence, errors.Conflict) as error:
            refused = error
        assert holds or isinstance(refused, errors.StaleFence)
        if refused:
            with self.sessions.begin() as session:
                assert self.everything(session) == before

    # The user

    @stateful.rule(verb=st.sampled_from([actions.pause, actions.resume, actions.cancel]))
    def ask(self, verb: Callable[..., object]) -> None:
        try:
            with self.sessions.begin() as session:
                verb(session, project_id=self.project_id, job_id=self.job_id)
        except errors.IllegalMove:
            pass

    # Time

    @stateful.rule()
    def time_passes_for_the_lease(self) -> None:
        with self.sessions.begin() as session:
            job = self.job(session)
            if job.lease_expires_at is not None:
                job.lease_expires_at = database.now(session) - LONG

    @stateful.rule()
    def time_passes_for_the_queue(self) -> None:
        with self.sessions.begin() as session:
            job = self.job(session)
            if job.state == State.QUEUED:
                job.not_before = database.now(session) - LONG

    @stateful.rule()
    def reap(self) -> None:
        with self.sessions.begin() as session:
            since = database.now(session) - LONG
            sweeps.reap(session, polling_since=since, lease_seconds=60, kill_grace_seconds=10)

    @stateful.rule()
    def publish_again(self) -> None:
        with self.sessions.begin() as session:
            sweeps.republish(session, after_seconds=0)

    @stateful.precondition(lambda self: self.final is None)
    @stateful.rule(rarely=st.integers(0, 5))
    def time_is_up(self, rarely: int) -> None:
        with self.sessions.begin() as session:
            job = self.job(session)
            if rarely == 0 and job.state not in lifecycle.FINAL:
                job.active_seconds = 2000
            sweeps.enforce_deadlines(session)

    # What always holds

    def job(self, session: Session) -> tables.JobRow:
        return session.get_one(tables.JobRow, self.job_id)

    def everything(self, session: Session) -> list[Any]:
        return [
            session.execute(sa.select(table)).all()
            for name, table in tables.Row.metadata.tables.items()
            if name.startswith(("job", "model", "outbox"))
        ]

    @stateful.invariant()
    def events_have_no_gap_and_tell_a_path(self) -> None:
        with self.sessions.begin() as session:
            job = self.job(session)
            found = events(session, job)
        assert [event.sequence for event in found] == list(range(1, job.last_sequence + 1))
        moves = [event.data for event in found if "to" in event.data]
        for earlier, later in itertools.pairwise(moves):
            assert later["from"] == earlier["to"]
        assert moves[-1]["to"] == job.state
        finals = [move["to"] for move in moves if move["to"] in lifecycle.FINAL]
        assert len(finals) == (job.state in lifecycle.FINAL)

    @stateful.invariant()
    def at_most_one_worker_holds_the_job(self) -> None:
        row = tables.AttemptRow
        with self.sessions.begin() as session:
            job = self.job(session)
            attempts = session.scalars(sa.select(row).order_by(row.number)).all()
        is_held = job.state in lifecycle.HELD
        assert (job.lease_owner is not None) == is_held == (job.lease_expires_at is not None)
        assert [a.number for a in attempts] == list(range(1, job.attempt + 1))
        assert [a for a in attempts if a.ended_at is None] == (attempts[-1:] if is_held else [])
        assert all(a.outcome for a in attempts if a.ended_at is not None)
        fences = [attempt.fence for attempt in attempts]
        assert fences == sorted(set(fences))
        assert job.fence >= self.fence
        self.fence = job.fence

    @stateful.invariant()
    def attempts_stay_within_their_number(self) -> None:
        with self.sessions.begin() as session:
            job = self.job(session)
        assert job.attempt - job.releases <= job.max_attempts
        if job.state == State.FAILED and job.state_reason == "attempts_exhausted":
            assert job.attempt - job.releases == job.max_attempts

    @stateful.invariant()
    def a_student_is_registered_once_and_only_by_success(self) -> None:
        version = tables.ModelVersionRow
        with self.sessions.begin() as session:
            job = self.job(session)
            students = session.scalars(sa.select(version).where(version.job_id == job.id)).all()
            kept = leases.checkpoints(session, job_id=job.id)
        assert len(students) == (job.state == State.SUCCEEDED)
        assert (job.result is not None) == (job.state == State.SUCCEEDED)
        assert len(kept) <= RetentionPolicy().checkpoints_last
        if job.state in lifecycle.FINAL:
            assert (job.failure is not None) == (job.state == State.FAILED)

    @stateful.invariant()
    def a_final_job_never_changes(self) -> None:
        with self.sessions.begin() as session:
            columns = session.execute(sa.select(tables.JobRow.__table__)).mappings().one()
            now = dict(columns)
        if self.final is not None:
            assert now == self.final
        elif now["state"] in lifecycle.FINAL:
            self.final = now
            assert now["finished_at"] is not None


class TestAnyHistory:
    @pytest.mark.slow
    def test_keeps_what_must_always_hold(self, tmp_path: Path) -> None:
        """All in one database, which each history finds as it was at the start."""
        path = tmp_path / "retort.sqlite3"
        engine = database.connect(f"sqlite:///{path}")
        schema.upgrade(engine)
        storage = LocalStorage(tmp_path / "storage")
        with database.sessions(engine).begin() as session:
            project_id = keys.create_project(session, name="laboratory").id
            factories.teacher(session, storage, project_id=project_id)
        start = sqlite3.connect(":memory:")
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.backup(start)

        class JobHistoryHere(JobHistory):
            def __init__(self) -> None:
                with contextlib.closing(sqlite3.connect(path)) as connection:
                    start.backup(connection)
                super().__init__(engine, storage, project_id)

        stateful.run_state_machine_as_test(
            JobHistoryHere,
            settings=hypothesis.settings(
                max_examples=25,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(hypothesis.HealthCheck),
            ),
        )
        start.close()
        engine.dispose()
