"""Uploads on their way to `ready` or `rejected`, and the jobs that wait for them."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import errors, ids
from models_registry.artifacts import datasets, inspections, models, postponements
from models_registry.artifacts.inspections import Inspection
from models_registry.jobs import actions, transitions
from models_registry.jobs.lifecycle import State
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from tests import factories, racing

REJECTION: dict[str, Any] = {
    "code": "keys_mismatch",
    "message": "three keys are missing",
    "missing_keys": ["fc.weight"],
    "unexpected_keys": [],
    "shape_mismatches": [],
}


def upload(
    session: Session, storage: Storage, project: tables.ProjectRow, purpose: str
) -> tables.UploadRow:
    """Add an upload that is complete."""
    file = factories.stored(session, storage, f"bytes of a {purpose}".encode())
    now = database.now(session)
    row = tables.UploadRow(
        id=ids.new("upl"),
        project_id=project.id,
        filename="file.bin",
        purpose=purpose,
        size_bytes=file.size_bytes,
        sha256=file.sha256,
        part_size_bytes=2**23,
        state="completed",
        blob_sha256=file.sha256,
        created_at=now,
        expires_at=now,
        completed_at=now,
    )
    session.add(row)
    session.flush()
    return row


@pytest.fixture
def teacher(
    sessions: database.Sessions, storage: Storage, project: tables.ProjectRow
) -> tables.ModelVersionRow:
    """A teacher that nobody has inspected yet."""
    with sessions.begin() as session:
        sent = upload(session, storage, project, "model")
        new = factories.new_version(upload_id=sent.id)
        return models.register(session, project_id=project.id, new=new)


@pytest.fixture
def shapes(
    sessions: database.Sessions, storage: Storage, project: tables.ProjectRow
) -> tables.DatasetVersionRow:
    """A data set that nobody has inspected yet."""
    with sessions.begin() as session:
        sent = upload(session, storage, project, "dataset")
        new = datasets.NewDatasetVersion(
            name="shapes", upload_id=sent.id, format="npz", task="classification"
        )
        return datasets.register(session, project_id=project.id, new=new)


def claim_model(session: Session, version: tables.ModelVersionRow) -> Inspection:
    found = inspections.claim(session, kind="models", version_id=version.id)
    assert found is not None
    return found


def accept_model(session: Session, storage: Storage, version: tables.ModelVersionRow) -> Inspection:
    inspection = claim_model(session, version)
    file = factories.stored(session, storage, b"converted")
    inspections.accept(
        session, inspection, files=[file], sha256=file.sha256, facts={"parameters": 4711}
    )
    return inspection


def accept_dataset(
    session: Session, storage: Storage, version: tables.DatasetVersionRow, classes: int = 10
) -> None:
    inspection = inspections.claim(session, kind="datasets", version_id=version.id)
    assert inspection is not None
    file = factories.stored(session, storage, b"images")
    facts = {
        "classes": [str(number) for number in range(classes)],
        "splits": {"train": 100, "validation": 20, "test": 20},
        "input": factories.DIGITS_INPUT,
    }
    inspections.accept(session, inspection, files=[file], sha256="ab" * 32, facts=facts)


def again(session: Session, row: Any) -> Any:
    """Return a row as this session sees it."""
    return session.get_one(type(row), row.id, populate_existing=True)


class TestClaim:
    def test_hands_out_what_is_to_be_looked_at(
        self, sessions: database.Sessions, storage: Storage, teacher: tables.ModelVersionRow
    ) -> None:
        with sessions.begin() as session:
            found = claim_model(session, teacher)
        assert (found.fence, found.filename) == (1, "file.bin")
        assert found.blob is not None
        assert storage.exists(found.blob.storage_key)
        assert found.version.id == teacher.id

    def test_by_two_at_once_has_one_winner(
        self, sessions: database.Sessions, teacher: tables.ModelVersionRow
    ) -> None:
        loser = racing.overtaken(
            sessions,
            lambda session: claim_model(session, teacher),
            lambda session: inspections.claim(session, kind="models", version_id=teacher.id),
        )
        assert loser is None

    def test_finds_nothing_that_has_been_answered_or_is_not_there(
        self, sessions: database.Sessions, storage: Storage, teacher: tables.ModelVersionRow
    ) -> None:
        with sessions.begin() as session:
            assert inspections.claim(session, kind="models", version_id="mdl_x") is None
            assert inspections.claim(session, kind="datasets", version_id=teacher.id) is None
            accept_model(session, storage, teacher)
            assert inspections.claim(session, kind="models", version_id=teacher.id) is None

    def test_takes_over_from_an_inspector_that_fell_silent(
        self, sessions: database.Sessions, storage: Storage, teacher: tables.ModelVersionRow
    ) -> None:
        with sessions.begin() as session:
            silent = claim_model(session, teacher)
            row = again(session, teacher)
            row.inspection_expires_at = database.now(session) - timedelta(seconds=1)
            session.flush()
            assert claim_model(session, teacher).fence == 2
        with pytest.raises(errors.StaleFence), sessions.begin() as session:
            inspections.accept(session, silent, files=[], sha256="0" * 64, facts={})
        with pytest.raises(errors.StaleFence), sessions.begin() as session:
            inspections.reject(session, silent, rejection=REJECTION)
        with pytest.raises(errors.StaleFence), sessions.begin() as session:
            inspections.give_back(session, silent, counted=True)
        with sessions.begin() as session:
            assert again(session, teacher).state == "pending"

    def test_is_kept_by_renewing_it(
        self, sessions: database.Sessions, teacher: tables.ModelVersionRow
    ) -> None:
        with sessions.begin() as session:
            inspection = inspections.claim(
                session, kind="models", version_id=teacher.id, lease_seconds=0.001
            )
            assert inspection is not None
            inspections.renew(session, inspection, lease_seconds=60)
            again = inspections.claim(session, kind="models", version_id=teacher.id)
            assert again is None

    def test_does_not_blame_the_file_for_what_others_broke(
        self, sessions: database.Sessions, teacher: tables.ModelVersionRow
    ) -> None:
        with sessions.begin() as session:
            for _ in range(inspections.MAX_ATTEMPTS * 2):
                inspections.give_back(session, claim_model(session, teacher), counted=False)
            assert claim_model(session, teacher).version.state == "pending"

    def test_rests_longer_each_time_that_a_worker_lacks_something(
        self, sessions: database.Sessions, teacher: tables.ModelVersionRow
    ) -> None:
        delays = []
        for _ in range(postponements.MOST + 1):
            with sessions.begin() as session:
                inspection = claim_model(session, teacher)
                inspections.postpone(session, inspection, reason="no store", may_be_the_file=False)
                assert inspections.claim(session, kind="models", version_id=teacher.id) is None
                row = again(session, teacher)
                delays.append((row.inspection_expires_at - database.now(session)).total_seconds())
                row.inspection_expires_at = database.now(session) - timedelta(seconds=1)
        assert delays[:4] == pytest.approx([1, 2, 4, 8], abs=0.5)
        assert max(delays) <= 300

    def test_rejects_what_no_worker_has_room_for(
        self, sessions: database.Sessions, teacher: tables.ModelVersionRow
    ) -> None:
        for _ in range(postponements.MOST):
            with sessions.begin() as session:
                inspection = claim_model(session, teacher)
                inspections.postpone(session, inspection, reason="disk full", may_be_the_file=True)
                again(session, teacher).inspection_expires_at = None
        with sessions.begin() as session:
            row = again(session, teacher)
            assert (row.state, row.rejection["code"]) == ("rejected", "too_large")
            assert "disk full" in row.rejection["message"]

    def test_rejects_what_has_killed_every_inspector(
        self, sessions: database.Sessions, teacher: tables.ModelVersionRow
    ) -> None:
        with sessions.begin() as session:
            for _ in range(inspections.MAX_ATTEMPTS):
                inspections.give_back(session, claim_model(session, teacher), counted=True)
            assert inspections.claim(session, kind="models", version_id=teacher.id) is None
            row = again(session, teacher)
            assert row.state == "rejected"
            assert row.rejection["code"] == "inspection_failed"
            assert "Upload a smaller file" in row.rejection["message"]


class TestAccept:
    def test_makes_a_model_ready_with_files_and_facts(
        self, sessions: database.Sessions, storage: Storage, teacher: tables.ModelVersionRow
    ) -> None:
        with sessions.begin() as session:
            accept_model(session, storage, teacher)
        with sessions.begin() as session:
            row = again(session, teacher)
            assert (row.state, row.parameters, row.rejection) == ("ready", 4711, None)
            file = models.file(session, row, path=models.WEIGHTS)
            assert (file.sha256, row.inspection_expires_at) == (row.sha256, None)

    def test_makes_a_data_set_ready(
        self, sessions: database.Sessions, storage: Storage, shapes: tables.DatasetVersionRow
    ) -> None:
        with sessions.begin() as session:
            accept_dataset(session, storage, shapes)
        with sessions.begin() as session:
            row = again(session, shapes)
            assert (row.state, len(row.classes), row.splits["train"]) == ("ready", 10, 100)

    def test_twice_is_refused(
        self, sessions: database.Sessions, storage: Storage, teacher: tables.ModelVersionRow
    ) -> None:
        with sessions.begin() as session:
            inspection = accept_model(session, storage, teacher)
        with pytest.raises(errors.StaleFence), sessions.begin() as session:
            inspections.reject(session, inspection, rejection=REJECTION)


class TestReject:
    def test_keeps_the_reason(
        self, sessions: database.Sessions, teacher: tables.ModelVersionRow
    ) -> None:
        with sessions.begin() as session:
            inspections.reject(session, claim_model(session, teacher), rejection=REJECTION)
        with sessions.begin() as session:
            row = again(session, teacher)
            assert (row.state, row.rejection) == ("rejected", REJECTION)


class TestRepublish:
    def count(self, session: Session, version: Any) -> int:
        payloads = session.scalars(sa.select(tables.OutboxRow.payload)).all()
        return payloads.count({"version_id": version.id})

    def test_announces_again_what_nobody_has_inspected(
        self,
        sessions: database.Sessions,
        teacher: tables.ModelVersionRow,
        shapes: tables.DatasetVersionRow,
    ) -> None:
        with sessions.begin() as session:
            assert inspections.republish(session, after_seconds=30) == 0
            for version in (teacher, shapes):
                row = again(session, version)
                row.announced_at = database.now(session) - timedelta(seconds=31)
            session.flush()
            assert inspections.republish(session, after_seconds=30) == 2
            assert self.count(session, teacher) == self.count(session, shapes) == 2
            tasks = session.scalars(sa.select(tables.OutboxRow.task)).all()
            assert sorted(tasks) == ["datasets.inspect"] * 2 + ["models.inspect"] * 2
            assert inspections.republish(session, after_seconds=30) == 0

    def test_announces_at_once_what_was_given_back(
        self, sessions: database.Sessions, teacher: tables.ModelVersionRow
    ) -> None:
        with sessions.begin() as session:
            inspections.give_back(session, claim_model(session, teacher), counted=True)
            assert inspections.republish(session, after_seconds=30) == 1

    def test_says_nothing_of_what_is_being_inspected_or_answered(
        self, sessions: database.Sessions, storage: Storage, teacher: tables.ModelVersionRow
    ) -> None:
        with sessions.begin() as session:
            inspection = claim_model(session, teacher)
            assert inspections.republish(session, after_seconds=0) == 0
            inspections.reject(session, inspection, rejection=REJECTION)
            assert inspections.republish(session, after_seconds=0) == 0

    def test_by_several_at_once_announces_once(
        self, sessions: database.Sessions, teacher: tables.ModelVersionRow
    ) -> None:
        with sessions.begin() as session:
            again(session, teacher).announced_at = None

        def work() -> int:
            with sessions.begin() as session:
                return inspections.republish(session, after_seconds=30)

        assert sum(racing.together([work] * 4)) == 1


def submitted(
    session: Session, teacher: tables.ModelVersionRow, /, **changes: Any
) -> tables.JobRow:
    """Submit a job in the teacher's project, which must wait for its inputs."""
    job = factories.job(session, project_id=teacher.project_id, **changes)
    assert (job.state, job.state_reason) == (State.VALIDATING, "waiting_for_input")
    return job


def messages(session: Session) -> int:
    query = sa.select(sa.func.count()).where(tables.OutboxRow.task == transitions.RUN_TASK)
    return session.scalars(query).one()


class TestJobsThatWait:
    def test_are_queued_when_their_teacher_is_accepted(
        self, sessions: database.Sessions, storage: Storage, teacher: tables.ModelVersionRow
    ) -> None:
        with sessions.begin() as session:
            job = submitted(session, teacher)
            assert job.spec["teacher_digest"] is None
            assert "/teacher" in str(job.state_message)
            assert messages(session) == 0
        with sessions.begin() as session:
            accept_model(session, storage, teacher)
        with sessions.begin() as session:
            row = again(session, job)
            assert (row.state, row.state_reason) == (State.QUEUED, None)
            assert row.spec["teacher_digest"] == f"sha256:{again(session, teacher).sha256}"
            assert messages(session) == 1

    def test_fail_when_their_teacher_is_rejected(
        self, sessions: database.Sessions, teacher: tables.ModelVersionRow
    ) -> None:
        with sessions.begin() as session:
            job = submitted(session, teacher)
            inspections.reject(session, claim_model(session, teacher), rejection=REJECTION)
        with sessions.begin() as session:
            row = again(session, job)
            assert (row.state, row.state_reason) == (State.FAILED, "input_rejected")
            assert row.failure["code"] == "input_rejected"
            assert row.failure["message"] == "teacher was rejected: three keys are missing"
            assert messages(session) == 0

    def test_that_were_cancelled_stay_cancelled(
        self, sessions: database.Sessions, storage: Storage, teacher: tables.ModelVersionRow
    ) -> None:
        with sessions.begin() as session:
            job = submitted(session, teacher)
            actions.cancel(session, project_id=job.project_id, job_id=job.id)
            accept_model(session, storage, teacher)
            assert again(session, job).state == State.CANCELLED

    def test_of_a_rejected_teacher_are_refused_at_once(
        self, sessions: database.Sessions, teacher: tables.ModelVersionRow
    ) -> None:
        with sessions.begin() as session:
            inspections.reject(session, claim_model(session, teacher), rejection=REJECTION)
        with (
            pytest.raises(errors.Refused, match="three keys are missing") as refused,
            sessions.begin() as session,
        ):
            factories.job(session, project_id=teacher.project_id)
        assert refused.value.faults[0].code == "rejected"


class TestJobsThatWaitForSeveralInputs:
    """Of a teacher and a data set."""

    @pytest.fixture(autouse=True)
    def inputs(
        self,
        storage: Storage,
        teacher: tables.ModelVersionRow,
        shapes: tables.DatasetVersionRow,
    ) -> None:
        self.accept: dict[str, Callable[[Session], object]] = {
            "teacher": lambda session: accept_model(session, storage, teacher),
            "dataset": lambda session: accept_dataset(session, storage, shapes),
        }
        # What to change in a job so that it waits for this input alone.
        self.needing: dict[str, dict[str, Any]] = {
            "teacher": {},
            "dataset": {"dataset": "shapes@1", "teacher": None, "method": {"name": "ce"}},
        }

    def test_wait_for_every_input(
        self, sessions: database.Sessions, teacher: tables.ModelVersionRow
    ) -> None:
        with sessions.begin() as session:
            job = submitted(session, teacher, dataset="shapes@1")
            self.accept["dataset"](session)
            assert again(session, job).state == State.VALIDATING
            self.accept["teacher"](session)
            assert again(session, job).state == State.QUEUED

    def test_fail_when_the_inputs_turn_out_not_to_fit(
        self,
        sessions: database.Sessions,
        storage: Storage,
        teacher: tables.ModelVersionRow,
        shapes: tables.DatasetVersionRow,
    ) -> None:
        with sessions.begin() as session:
            job = submitted(session, teacher, dataset="shapes@1")
            accept_dataset(session, storage, shapes, classes=3)
            row = again(session, job)
            assert row.state == State.FAILED
            assert "10 classes and the data set has 3" in row.failure["message"]

    def test_are_queued_though_two_inspections_end_at_the_same_time(
        self, sessions: database.Sessions, teacher: tables.ModelVersionRow
    ) -> None:
        # Neither sees the other's answer when it begins: one of them must wait and look again.
        with sessions.begin() as session:
            job = submitted(session, teacher, dataset="shapes@1")
        racing.overtaken(sessions, self.accept["teacher"], self.accept["dataset"])
        with sessions.begin() as session:
            assert again(session, job).state == State.QUEUED

    @pytest.mark.parametrize("input_", ["teacher", "dataset"])
    def test_are_queued_though_they_come_while_an_inspection_ends(
        self, sessions: database.Sessions, project: tables.ProjectRow, input_: str
    ) -> None:
        late = racing.overtaken(
            sessions,
            self.accept[input_],
            lambda s: factories.job(s, project_id=project.id, **self.needing[input_]),
        )
        with sessions.begin() as session:
            assert again(session, late).state == State.QUEUED

    @pytest.mark.parametrize("input_", ["teacher", "dataset"])
    def test_are_found_by_an_inspection_that_ends_while_they_come(
        self, sessions: database.Sessions, teacher: tables.ModelVersionRow, input_: str
    ) -> None:
        jobs: list[tables.JobRow] = []
        racing.overtaken(
            sessions,
            lambda s: jobs.append(submitted(s, teacher, **self.needing[input_])),
            self.accept[input_],
        )
        with sessions.begin() as session:
            assert again(session, jobs[0]).state == State.QUEUED
