"""Searches: trials made one after the other, judged, and the best of them confirmed."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.jobs import actions, leases, lifecycle, queries
from models_registry.jobs.lifecycle import State
from models_registry.persistence import database, paging, tables
from models_registry.persistence.storage import Storage
from models_registry.studies import leaderboard, searches, studies
from models_registry.studies.leaderboard import Run, Variant
from models_registry.studies.search_spec import SearchPhase, TrialState
from models_registry.studies.searches import Proposal, Question, Suggestions
from models_registry.studies.studies import StudyState
from tests import factories, racing
from tests.databases import SQLITE_ONLY

TEMPERATURE = "/methods/0/temperature"
SPACE: dict[str, Any] = {"space": {"type": "float", "low": 1.0, "high": 16.0, "log": True}}
KEY = "validation/accuracy"


def spec(**search: Any) -> dict[str, Any]:
    """Return what differs from a study of grids: up to four trials of KD's temperature."""
    return {
        "methods": [{"name": "kd", "temperature": SPACE}],
        "training": {"recipe": "small", "epochs": 4},
        "seeds": [0],
        "search": {"trials": 4, "pruning": {"min_epochs": 1, "reduction_factor": 2}, **search},
    }


@pytest.fixture
def study(
    sessions: database.Sessions, project: tables.ProjectRow, teacher: tables.ModelVersionRow
) -> str:
    with sessions.begin() as session:
        return factories.study(session, project_id=project.id, **spec()).id


def advance(
    sessions: database.Sessions, study_id: str, answer: Suggestions | None = None
) -> Question | None:
    with sessions.begin() as session:
        return searches.advance(session, study_id, answer)


def answer_to(question: Question | None, *temperatures: float) -> Suggestions:
    assert question is not None
    return Suggestions(question.revision, [Proposal(0, {TEMPERATURE: t}) for t in temperatures])


def try_next(sessions: database.Sessions, study_id: str, *temperatures: float) -> None:
    """Make the next trials, with these temperatures."""
    advance(sessions, study_id, answer_to(advance(sessions, study_id), *temperatures))


def read(session: Session, study_id: str) -> tables.StudyRow:
    return session.get_one(tables.StudyRow, study_id, populate_existing=True)


def jobs(session: Session, study_id: str) -> dict[tuple[int, int], tables.JobRow]:
    """Return the jobs of a study by variant and seed."""
    return {
        (job.study_variant or 0, job.study_seed or 0): job
        for job in factories.members(session, read(session, study_id))
    }


def trials(session: Session, study_id: str) -> list[tables.TrialRow]:
    row = tables.TrialRow
    query = sa.select(row).where(row.study_id == study_id).order_by(row.number)
    return list(session.scalars(query))


def report(session: Session, lease: leases.Lease, scores: Sequence[float], first: int = 1) -> None:
    samples = [
        leases.MetricSample(KEY, 10 * epoch, epoch, score)
        for epoch, score in enumerate(scores, first)
    ]
    leases.report(session, lease, progress=0.5, estimated_end_at=None, samples=samples)


def train(
    sessions: database.Sessions,
    storage: Storage,
    study_id: str,
    variant: int,
    scores: Sequence[float],
    *,
    seed: int = 0,
    accuracy: float = 0.9,
) -> None:
    """Run a job to its end, with these validation scores and this test accuracy."""
    with sessions.begin() as session:
        job = jobs(session, study_id)[variant, seed]
        lease = factories.running(session, job)
        report(session, lease, scores)
        leases.complete(
            session,
            lease,
            result={"scores": {"student": {"accuracy": accuracy}}},
            student=factories.new_version("digits-student", network="retort/resnet8"),
            files=[factories.stored(session, storage, f"{job.id}".encode())],
        )


@pytest.mark.usefixtures("teacher")
class TestAdvance:
    def test_begins_with_a_message_and_no_job(
        self, sessions: database.Sessions, study: str, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            row = read(session, study)
            assert factories.members(session, row) == []
            message = session.scalars(sa.select(tables.OutboxRow)).one()
            assert (message.task, message.payload) == ("studies.advance", {"study_id": study})
            status = studies.statuses(session, [row])[study]
            assert (status.state, status.progress) == (StudyState.QUEUED, 0.0)
            found = studies.page(
                session,
                project_id=project.id,
                filters=studies.StudyFilters(is_active=True),
                wanted=paging.PageRequest(b"secret", "list"),
            )
            assert [one.id for one in found.rows] == [study]

    def test_makes_a_trial_with_its_job_in_one_transaction(
        self, sessions: database.Sessions, study: str
    ) -> None:
        question = advance(sessions, study)
        assert question is not None
        assert (question.count, question.past) == (1, [])
        assert [axis.name for axis in question.axes[0]] == ["temperature"]
        assert advance(sessions, study, answer_to(question, 2.5)) is None
        with sessions.begin() as session:
            (trial,) = trials(session, study)
            assert (trial.number, trial.state) == (1, TrialState.RUNNING)
            assert trial.settings == {"temperature": 2.5}
            ((place, job),) = jobs(session, study).items()
            assert place == (1, 0)
            assert job.spec["method"]["temperature"] == 2.5
            assert job.name == "digits-methods: trial 1, kd temperature=2.5, seed 0"
            tasks = session.scalars(sa.select(tables.OutboxRow.task)).all()
            assert sorted(tasks) == ["jobs.run", "studies.advance"]

    def test_leaves_an_answer_to_an_older_question_aside(
        self, sessions: database.Sessions, study: str, storage: Storage
    ) -> None:
        older = answer_to(advance(sessions, study), 2.5)
        try_next(sessions, study, 3.0)
        train(sessions, storage, study, 1, [0.5, 0.6, 0.7, 0.8])
        question = advance(sessions, study, older)
        assert question is not None
        assert [(t.state, t.value) for t in question.past] == [(TrialState.COMPLETE, 0.8)]
        with sessions.begin() as session:
            assert len(trials(session, study)) == 1

    def test_makes_nothing_twice_in_two_processes(
        self, sessions: database.Sessions, study: str
    ) -> None:
        answer = answer_to(advance(sessions, study), 2.5)
        racing.together([lambda: advance(sessions, study, answer)] * 2)
        with sessions.begin() as session:
            assert len(trials(session, study)) == 1
            assert len(jobs(session, study)) == 1

    def test_loses_nothing_when_its_process_dies_before_the_commit(
        self, engine: sa.Engine, sessions: database.Sessions, study: str
    ) -> None:
        answer = answer_to(advance(sessions, study), 2.5)
        engine.dispose()  # no connection is shared with the child
        child = os.fork()
        if child == 0:
            with sessions.begin() as session:
                searches.advance(session, study, answer)
                os._exit(9)  # as SIGKILL would: no rollback, no clean-up
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        with sessions.begin() as session:
            assert trials(session, study) == []
            assert jobs(session, study) == {}
        assert advance(sessions, study, answer) is None
        with sessions.begin() as session:
            assert len(jobs(session, study)) == 1

    @SQLITE_ONLY
    def test_runs_as_many_trials_as_it_may(
        self, sessions: database.Sessions, project: tables.ProjectRow, storage: Storage
    ) -> None:
        with sessions.begin() as session:
            made = factories.study(session, project_id=project.id, **spec(parallel=3)).id
        try_next(sessions, made, 2.0, 3.0, 4.0, 5.0)
        with sessions.begin() as session:
            assert len(jobs(session, made)) == 3
        train(sessions, storage, made, 2, [0.5, 0.6, 0.7, 0.8])
        question = advance(sessions, made)
        assert question is not None
        assert question.count == 1
        assert [t.state for t in question.past] == ["running", "complete", "running"]

    @SQLITE_ONLY
    def test_ends_where_no_more_jobs_can_be_made(
        self, sessions: database.Sessions, study: str, teacher: tables.ModelVersionRow
    ) -> None:
        answer = answer_to(advance(sessions, study), 2.5)
        with sessions.begin() as session:
            session.get_one(tables.ModelVersionRow, teacher.id).state = "rejected"
        advance(sessions, study, answer)
        with sessions.begin() as session:
            row = read(session, study)
            assert row.search_phase == SearchPhase.FAILED
            assert "was rejected" in (row.search or {})["message"]
            assert studies.statuses(session, [row])[study].state == StudyState.FAILED


@pytest.mark.usefixtures("teacher")
class TestPruning:
    def test_ends_a_trial_that_falls_behind_and_says_against_what(
        self, sessions: database.Sessions, study: str, storage: Storage
    ) -> None:
        try_next(sessions, study, 2.0)
        train(sessions, storage, study, 1, [0.5, 0.6, 0.7, 0.8])
        try_next(sessions, study, 8.0)
        with sessions.begin() as session:
            job = jobs(session, study)[2, 0]
            lease = factories.running(session, job)
            report(session, lease, [0.4])
        question = advance(sessions, study)
        assert question is not None  # the next trial need not wait
        with sessions.begin() as session:
            trial = trials(session, study)[1]
            assert (trial.state, trial.value) == (TrialState.PRUNED, 0.4)
            assert trial.message == (
                "Pruned after epoch 1: accuracy 0.4 on the validation split is not the best of 2 "
                "trials that have come as far, which takes at least 0.5."
            )
            job = jobs(session, study)[2, 0]
            assert (job.state, job.state_reason) == (State.CANCELLING, "pruned")
            assert leases.stopped(session, lease, log_tail=[]) == State.CANCELLED
            session.refresh(job)
            assert (job.state_reason, job.state_message) == ("pruned", trial.message)
            assert list(queries.series(session, job_id=job.id)) == [KEY]
            status = studies.statuses(session, [read(session, study)])[study]
            assert (status.state, status.pruned) == (StudyState.RUNNING, 1)

    @SQLITE_ONLY
    def test_judges_a_trial_by_its_values_also_once_it_has_ended(
        self, sessions: database.Sessions, study: str, storage: Storage
    ) -> None:
        """When the sweep looks must not decide what is tried next."""
        try_next(sessions, study, 2.0)
        train(sessions, storage, study, 1, [0.5, 0.6, 0.7, 0.8])
        try_next(sessions, study, 8.0)
        train(sessions, storage, study, 2, [0.4, 0.9, 0.9, 0.9])
        question = advance(sessions, study)
        assert question is not None
        assert question.past[1].state is TrialState.PRUNED
        assert question.past[1].at_rungs == {1: 0.4}
        with sessions.begin() as session:
            assert "had ended before it could be stopped" in str(trials(session, study)[1].message)
            assert jobs(session, study)[2, 0].state == State.SUCCEEDED

    @SQLITE_ONLY
    def test_takes_the_best_epoch_so_far_and_the_newest_attempt(
        self, sessions: database.Sessions, study: str
    ) -> None:
        try_next(sessions, study, 2.0)
        with sessions.begin() as session:
            job = jobs(session, study)[1, 0]
            report(session, factories.running(session, job), [0.9, 0.9])
            factories.lost(session, job)
            report(session, factories.running(session, job), [0.6, 0.5, float("nan")])
        advance(sessions, study)
        with sessions.begin() as session:
            (trial,) = trials(session, study)
            assert [(r["epoch"], r["value"], r["kept"]) for r in trial.rungs] == [
                (1, 0.6, True),
                (2, 0.6, True),
            ]

    @SQLITE_ONLY
    def test_compares_the_mean_over_seeds_once_all_have_come_as_far(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            wanted = {**spec(), "seeds": [3, 5]}
            made = factories.study(session, project_id=project.id, **wanted).id
        try_next(sessions, made, 2.0)
        with sessions.begin() as session:
            report(session, factories.running(session, jobs(session, made)[1, 3]), [0.6])
        advance(sessions, made)
        with sessions.begin() as session:
            assert trials(session, made)[0].rungs == []
            report(session, factories.running(session, jobs(session, made)[1, 5]), [0.4])
        advance(sessions, made)
        with sessions.begin() as session:
            assert trials(session, made)[0].rungs[0]["value"] == 0.5

    @SQLITE_ONLY
    def test_a_pruned_job_is_retried_outside_of_the_study(
        self, sessions: database.Sessions, study: str, storage: Storage, project: tables.ProjectRow
    ) -> None:
        try_next(sessions, study, 2.0)
        train(sessions, storage, study, 1, [0.5, 0.6, 0.7, 0.8])
        try_next(sessions, study, 8.0)
        with sessions.begin() as session:
            lease = factories.running(session, jobs(session, study)[2, 0])
            report(session, lease, [0.4])
        advance(sessions, study)
        with sessions.begin() as session:
            leases.stopped(session, lease, log_tail=[])
            again = actions.retry(session, project_id=project.id, job_id=lease.job_id)
            assert again.study_id is None
            assert jobs(session, study)[2, 0].id == lease.job_id


def finish(
    sessions: database.Sessions,
    storage: Storage,
    study_id: str,
    accuracies: Mapping[int, Sequence[float]],
) -> None:
    """Run the jobs of the comparison, with these test accuracies by variant."""
    with sessions.begin() as session:
        places = [place for place in jobs(session, study_id) if place[0] in accuracies]
    for variant, seed in places:
        accuracy = accuracies[variant][seed - 1]
        train(sessions, storage, study_id, variant, [0.9], seed=seed, accuracy=accuracy)
    advance(sessions, study_id)


@SQLITE_ONLY
@pytest.mark.usefixtures("teacher")
class TestEnd:
    def all_trials(
        self,
        sessions: database.Sessions,
        storage: Storage,
        study_id: str,
        scores: Sequence[float] = (0.8, 0.9, 0.85, 0.7),
    ) -> None:
        for number, score in enumerate(scores, 1):
            try_next(sessions, study_id, float(number))
            train(sessions, storage, study_id, number, [score] * 4)
        assert advance(sessions, study_id) is None

    def test_trains_best_default_and_baseline_with_fresh_seeds(
        self, sessions: database.Sessions, study: str, storage: Storage
    ) -> None:
        self.all_trials(sessions, storage, study)
        with sessions.begin() as session:
            row = read(session, study)
            assert row.search_phase == SearchPhase.CONFIRMING
            assert row.search is not None
            assert row.search["best"]["trial"] == 2
            assert row.search["confirmation"] == {
                "seeds": [1, 2, 3],
                "baseline": 5,
                "default": 6,
                "best": 7,
            }
            assert [studies.label_of(v) for v in studies.variants_of(row)] == [
                "ce",
                "kd temperature=4.0 (default settings)",
                "kd temperature=2.0 (best trial)",
            ]
            found = jobs(session, study)
            assert {place for place in found if place[0] > 4} == {
                (variant, seed) for variant in (5, 6, 7) for seed in (1, 2, 3)
            }
            assert found[7, 1].spec["method"]["temperature"] == 2.0
            assert found[7, 1].spec["training"]["seed"] == 1
            assert studies.statuses(session, [row])[study].state == StudyState.RUNNING

    def test_calls_the_best_better_only_by_the_comparison(
        self, sessions: database.Sessions, study: str, storage: Storage
    ) -> None:
        self.all_trials(sessions, storage, study)
        best, default = (0.95, 0.96, 0.95), (0.9, 0.91, 0.9)
        finish(sessions, storage, study, {5: (0.8, 0.8, 0.8), 6: default, 7: best})
        with sessions.begin() as session:
            row = read(session, study)
            assert row.search_phase == SearchPhase.DONE
            board = studies.compare(session, row)
            # Trials are none of its rows: they were not compared on the test split.
            assert {one.variant.number for one in board.rows} == {5, 6, 7}
            sentence = str(searches.conclusion(row, board))
            assert sentence.startswith("Trial 2 is better than the default settings: +5.00 points")
            assert sentence.endswith("3 fresh seeds).")
            status = studies.statuses(session, [row])[study]
            assert (status.state, status.progress) == (StudyState.SUCCEEDED, 1.0)
            assert status.finished_at is not None

    def test_trains_default_settings_once_where_they_were_the_best(
        self, sessions: database.Sessions, project: tables.ProjectRow, storage: Storage
    ) -> None:
        choices = {"space": {"type": "categorical", "choices": [4.0, 8.0]}}
        wanted = spec(trials=2, parallel=2, pruning=None, confirm_seeds=1)
        wanted["methods"] = [{"name": "kd", "temperature": choices}]
        with sessions.begin() as session:
            made = factories.study(session, project_id=project.id, **wanted).id
        try_next(sessions, made, 0, 1)  # places of the choices
        for number, score in ((1, 0.9), (2, 0.8)):
            train(sessions, storage, made, number, [score])
        advance(sessions, made)
        with sessions.begin() as session:
            row = read(session, made)
            roles = (row.search or {})["confirmation"]
            assert roles == {"seeds": [1], "baseline": 3, "default": 4, "best": 4}
            assert {place for place in jobs(session, made) if place[0] > 2} == {(3, 1), (4, 1)}

    def test_without_confirmation_says_that_nothing_was_compared(
        self, sessions: database.Sessions, project: tables.ProjectRow, storage: Storage
    ) -> None:
        with sessions.begin() as session:
            made = factories.study(
                session, project_id=project.id, **spec(trials=1, confirm_seeds=0)
            ).id
        self.all_trials(sessions, storage, made, scores=(0.8,))
        with sessions.begin() as session:
            row = read(session, made)
            assert row.search_phase == SearchPhase.DONE
            sentence = searches.conclusion(row, studies.compare(session, row))
            assert "was not compared with the default settings" in str(sentence)

    def test_fails_where_no_trial_succeeds_and_a_retried_one_counts(
        self, sessions: database.Sessions, study: str, storage: Storage, project: tables.ProjectRow
    ) -> None:
        def fail(number: int) -> str:
            with sessions.begin() as session:
                lease = factories.running(session, jobs(session, study)[number, 0])
                leases.fail(
                    session, lease, code="diverged", message="NaN", retryable=False, log_tail=[]
                )
                return lease.job_id

        try_next(sessions, study, 1.0)
        first = fail(1)
        advance(sessions, study)
        with sessions.begin() as session:
            (trial,) = trials(session, study)
            assert trial.state == TrialState.FAILED
            assert trial.message == f"Job {first} failed: NaN"
            actions.retry(session, project_id=project.id, job_id=first)
        advance(sessions, study)
        with sessions.begin() as session:
            assert trials(session, study)[0].state == TrialState.RUNNING
        fail(1)
        for number in (2, 3, 4):
            try_next(sessions, study, float(number))
            fail(number)
        advance(sessions, study)
        with sessions.begin() as session:
            row = read(session, study)
            assert row.search_phase == SearchPhase.FAILED
            assert str((row.search or {})["message"]).startswith("No trial succeeded. The first")
            assert studies.statuses(session, [row])[study].state == StudyState.FAILED

    def test_makes_no_more_trials_once_it_is_cancelled(
        self, sessions: database.Sessions, study: str, project: tables.ProjectRow
    ) -> None:
        try_next(sessions, study, 1.0)
        with pytest.raises(errors.IllegalMove, match="cancel it"), sessions.begin() as session:
            studies.delete(session, project_id=project.id, study_id=study)
        with sessions.begin() as session:
            studies.cancel(session, project_id=project.id, study_id=study)
        assert advance(sessions, study) is None
        with sessions.begin() as session:
            row = read(session, study)
            assert row.search_phase == SearchPhase.CANCELLED
            assert studies.statuses(session, [row])[study].state == StudyState.CANCELLED
            assert all(lifecycle.is_final(State(j.state)) for j in jobs(session, study).values())
            studies.delete(session, project_id=project.id, study_id=study)

    def test_cannot_be_deleted_before_its_first_trial(
        self, sessions: database.Sessions, study: str, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session, pytest.raises(errors.IllegalMove):
            studies.delete(session, project_id=project.id, study_id=study)


class TestConclusion:
    def told(self, best: Sequence[float], *, number: int = 7) -> str | None:
        """Return what is said of a best trial with these accuracies; the default has 0.9 twice."""
        study = tables.StudyRow(
            search_phase=SearchPhase.DONE,
            search={
                "best": {"trial": 2},
                "confirmation": {"seeds": [1, 2, 3], "default": 6, "best": number},
            },
        )
        variants = [
            Variant(6, {"name": "kd"}, {}, True, None, "default"),
            Variant(7, {"name": "kd"}, {}, False, 6, "best"),
        ]
        runs = [
            Run(variant, seed, "job", State.SUCCEEDED, scores={"accuracy": accuracy})
            for variant, each in ((6, (0.9, 0.91, 0.9)), (7, best))
            for seed, accuracy in enumerate(each, 1)
        ]
        return searches.conclusion(study, leaderboard.make(variants, runs, metric="accuracy"))

    @pytest.mark.parametrize(
        ("best", "told"),
        [
            (
                (0.9, 0.97, 0.86),
                "Trial 2 is not told apart from the default settings: +0.67 points",
            ),
            ((0.8, 0.81, 0.8), "Trial 2 is worse than the default settings: -10.00 points"),
            (
                (0.95, 0.96),
                "Trial 2 against the default settings: +5.00 points of accuracy, 2 fresh",
            ),
            ((), "Trial 2 could not be compared"),
        ],
    )
    def test_follows_the_difference_alone(self, best: Sequence[float], told: str) -> None:
        assert str(self.told(best)).startswith(told)

    def test_says_where_nothing_better_was_found(self) -> None:
        assert self.told((), number=6) == (
            "Trial 2 is the best, and has the default settings: nothing better was found."
        )
