"""Jobs with networks of other libraries wait until an inspector has tried them, once for all."""

from typing import Any

import pytest

from models_registry import errors
from models_registry.jobs import network_trials, submission
from models_registry.jobs.lifecycle import State
from models_registry.jobs.spec import JobSpec
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from tests import factories
from tests.databases import SQLITE_ONLY

STUDENT = {"network": "timm/test_resnet"}
TRAITS = {"shows": ["stages", "classifier"], "has_batch_norm": True}


@pytest.fixture(autouse=True)
def teacher(sessions: database.Sessions, storage: Storage, project: tables.ProjectRow) -> None:
    with sessions.begin() as session:
        factories.teacher(session, storage, project_id=project.id)


def pending(sessions: database.Sessions) -> list[tables.NetworkTrialRow]:
    with sessions() as session:
        return session.query(tables.NetworkTrialRow).filter_by(state="pending").all()


def ends(sessions: database.Sessions, **outcome: Any) -> None:
    (trial,) = pending(sessions)
    with sessions.begin() as session:
        ended = network_trials.finish(session, trial.digest, **outcome)
        submission.settle_tried(session, ended)


def submitted(
    sessions: database.Sessions, project: tables.ProjectRow, **changes: Any
) -> tables.JobRow:
    with sessions.begin() as session:
        return factories.job(session, project_id=project.id, **{"student": STUDENT, **changes})


def now(sessions: database.Sessions, job: tables.JobRow) -> tables.JobRow:
    with sessions() as session:
        return session.get_one(tables.JobRow, job.id)


class TestTrial:
    def test_lets_the_jobs_go_on_that_wait_for_it(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        jobs = [submitted(sessions, project) for _ in range(2)]
        assert {job.state for job in jobs} == {State.VALIDATING}
        assert "timm/test_resnet is tried out" in str(jobs[0].state_message)
        ends(sessions, traits=TRAITS)
        assert {now(sessions, job).state for job in jobs} == {State.QUEUED}
        assert submitted(sessions, project).state == State.QUEUED


@SQLITE_ONLY
class TestOutcome:
    def test_of_a_network_that_cannot_be_built_fails_the_job_and_refuses_the_next(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        job = submitted(sessions, project)
        ends(sessions, rejection={"code": "bad_network", "message": "too small"})
        failed = now(sessions, job)
        assert (failed.state, failed.state_message) == (State.FAILED, "too small")
        with pytest.raises(errors.Refused, match="oo small") as caught:
            submitted(sessions, project)
        assert caught.value.faults[0].pointer == "/student/network"

    @pytest.mark.parametrize(
        ("method", "field"),
        [
            ({"name": "rcka"}, "/student"),
            ({"name": "reviewkd", "student_maps": "pre"}, "/student"),
        ],
    )
    def test_tells_pairs_that_cannot_work(
        self,
        sessions: database.Sessions,
        project: tables.ProjectRow,
        method: dict[str, Any],
        field: str,
    ) -> None:
        submitted(sessions, project)
        ends(sessions, traits=TRAITS)
        with pytest.raises(errors.Refused) as caught:
            submitted(sessions, project, method=method)
        found = [(fault.pointer, fault.code) for fault in caught.value.faults]
        assert any(code == "not_shown" and place.startswith(field) for place, code in found)

    def test_of_a_builder_that_dies_leaves_the_network_to_the_engine(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        job = submitted(sessions, project)
        ends(sessions)
        assert now(sessions, job).state == State.VALIDATING
        ends(sessions)
        assert now(sessions, job).state == State.QUEUED

    def test_is_asked_again_where_nobody_answers(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        submitted(sessions, project)
        with sessions.begin() as session:
            assert network_trials.republish(session, after_seconds=60) == 0
            assert network_trials.republish(session, after_seconds=0) == 1

    def test_is_told_as_missing_by_a_check(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        spec = JobSpec.model_validate(factories.spec(student=STUDENT))
        with sessions.begin() as session:
            checked = submission.check(session, project_id=project.id, spec=spec)
            assert [told.code for told in checked.warnings] == ["network_not_tried"]
            assert not checked.is_being_tried  # no inspector is online
        assert len(pending(sessions)) == 1


@SQLITE_ONLY
class TestKnownAtOnce:
    @pytest.mark.parametrize(
        ("student", "pointer", "code"),
        [
            ({"arguments": {"pretrained": True}}, "/student/arguments/pretrained", "pretrained_"),
            ({"arguments": {"depht": 3}}, "/student/arguments/depht", "unknown_field"),
        ],
    )
    def test_arguments_of_foreign_networks(
        self,
        sessions: database.Sessions,
        project: tables.ProjectRow,
        student: dict[str, Any],
        pointer: str,
        code: str,
    ) -> None:
        with pytest.raises(errors.Refused) as caught:
            submitted(sessions, project, student={**STUDENT, **student})
        (fault,) = caught.value.faults
        assert fault.pointer == pointer
        assert fault.code.startswith(code)

    def test_weights_that_a_name_asks_for(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        job = submitted(sessions, project, student={"network": "timm/test_resnet.r160_in1k"})
        assert [told["code"] for told in job.warnings or []] == ["weights_tag_ignored"]


@SQLITE_ONLY
class TestClassNames:
    @pytest.mark.parametrize(
        ("names", "code"),
        [
            ([str(9 - number) for number in range(10)], "classes_reordered"),
            # The data set's are named by the numbers alone.
            ([f"class {number}" for number in range(10)], "class_names_unknown"),
            ([str(number) for number in range(10)], None),
        ],
    )
    def test_are_compared_with_the_data_sets(
        self,
        sessions: database.Sessions,
        storage: Storage,
        project: tables.ProjectRow,
        names: list[str],
        code: str | None,
    ) -> None:
        with sessions.begin() as session:
            factories.teacher(session, storage, project_id=project.id, name="named", classes=names)
            job = factories.job(session, project_id=project.id, teacher="named")
            told = [warning["code"] for warning in job.warnings or []]
            assert told == ([code] if code else [])
            events = session.query(tables.EventRow).filter_by(job_id=job.id, type="job.warning")
            assert events.count() == len(told)
