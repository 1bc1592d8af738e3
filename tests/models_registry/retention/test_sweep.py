"""What jobs leave behind goes when its time has come, and never while anything needs it."""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import errors, ids
from models_registry.jobs import lifecycle
from models_registry.jobs.lifecycle import State
from models_registry.persistence import database, tables, task_leases
from models_registry.persistence.storage import Storage
from models_registry.retention import blobs, expired, kinds, policies, sweep
from models_registry.retention.policies import RetentionPolicy
from tests import factories
from tests.databases import POSTGRES_ONLY, SQLITE_ONLY

NO_GRACE = timedelta(seconds=-1)
DAY = timedelta(days=1)
ROWS = {kind.name: kind.row for kind in kinds.KINDS}
Copy = Callable[..., str]


def run(sessions: database.Sessions, grace: timedelta = NO_GRACE) -> dict[str, sweep.Swept]:
    with task_leases.held(sessions, "collect") as lease:
        assert lease is not None
        return sweep.sweep(lease, grace=grace)


def left(session: Session, job_id: str) -> set[str]:
    """Return of which kinds a job has anything."""
    return {
        name
        for name, row in ROWS.items()
        if session.scalars(sa.select(row.job_id).where(row.job_id == job_id).limit(1)).first()
    }


@pytest.fixture
def copy(sessions: database.Sessions, storage: Storage, job: tables.JobRow) -> Copy:
    """Makes a job in a state that ended some days ago, with something of every kind."""
    with sessions.begin() as session:
        columns = dict(
            session.execute(sa.select(tables.JobRow.__table__).where(tables.JobRow.id == job.id))
            .mappings()
            .one()
        )

    def make(
        state: State, *, days: float = 0, checkpoints: int = 1, within: Session, **changes: Any
    ) -> str:
        job_id = ids.new("job")
        now = database.now(within)
        ended = now - timedelta(days=days) if state in lifecycle.FINAL else None
        row = {**columns, "id": job_id, "state": state, "finished_at": ended, **changes}
        within.execute(sa.insert(tables.JobRow), [row])
        within.add(tables.AttemptRow(job_id=job_id, number=1, fence=1, started_at=now))
        within.add(tables.EventRow(job_id=job_id, sequence=1, type="x", at=now, data={}))
        within.flush()
        within.add(
            tables.LogSliceRow(job_id=job_id, attempt=1, start=0, end=5, text="step\n", at=now)
        )
        for step in range(3):
            point = {"job_id": job_id, "attempt": 1, "key": "loss/total", "step": step}
            within.add(tables.MetricRow(**point, value=1.0, at=now))
        for step in range(checkpoints):
            file = factories.stored(within, storage, f"{job_id} {step}".encode())
            within.add(
                tables.CheckpointRow(
                    id=ids.new("ckp"),
                    job_id=job_id,
                    attempt=1,
                    step=step,
                    epoch=step,
                    phase="student",
                    path=f"{step}.pt",
                    sha256=file.sha256,
                    size_bytes=file.size_bytes,
                    created_at=now + timedelta(seconds=step),
                )
            )
        return job_id

    def copied(*given: Any, within: Session | None = None, **changes: Any) -> str:
        if within is not None:
            return make(*given, within=within, **changes)
        with sessions.begin() as session:
            return make(*given, within=session, **changes)

    return copied


class TestSweep:
    def test_keeps_each_kind_for_as_long_as_the_policy_says(
        self, sessions: database.Sessions, copy: Copy
    ) -> None:
        of_age = {days: copy(State.FAILED, days=days) for days in (0.5, 2, 31, 181, 366)}
        done = run(sessions)
        with sessions() as session:
            assert {days: left(session, job_id) for days, job_id in of_age.items()} == {
                0.5: {"failed_attempts", "logs", "metrics", "events"},
                2: {"logs", "metrics", "events"},
                31: {"metrics", "events"},
                181: {"events"},
                366: set(),
            }
            told = session.get_one(tables.JobRow, of_age[31]).warnings or []
        assert {kind: one.entries for kind, one in done.items()} == {
            "checkpoints": 0,
            "failed_attempts": 4,
            "logs": 3,
            "metrics": 6,
            "events": 1,
        }
        assert (done["logs"].jobs, done["logs"].size_bytes) == (3, 15)
        assert [one["code"] for one in told] == ["failed_attempts_deleted", "logs_deleted"]
        assert "Its logs_days was 30." in told[1]["message"]
        assert all(one.entries == 0 for one in run(sessions).values())

    def test_leaves_a_job_the_checkpoints_that_its_spec_keeps(
        self, sessions: database.Sessions, copy: Copy, project: tables.ProjectRow
    ) -> None:
        kept = {None: 2, 1: 1, 3: 3, 9: 4}
        ids_of = {
            wanted: copy(State.RUNNING, checkpoints=4, checkpoints_last=wanted) for wanted in kept
        }
        with sessions() as session:
            found = sweep.preview(session, project_id=project.id, grace=NO_GRACE)
        entries = {one.kind: one.entries for one in found}["checkpoints"]
        assert entries == 4 * len(kept) - sum(kept.values())
        assert run(sessions)["checkpoints"].entries == entries
        row = tables.CheckpointRow
        with sessions() as session:
            for wanted, count in kept.items():
                query = sa.select(sa.func.count()).where(row.job_id == ids_of[wanted])
                assert session.scalars(query).one() == count, wanted

    @pytest.mark.slow
    def test_lists_beforehand_exactly_what_it_deletes(
        self, sessions: database.Sessions, copy: Copy, project: tables.ProjectRow
    ) -> None:
        for days in (2, 31, 366):
            copy(State.CANCELLED, days=days)
        copy(State.RUNNING, checkpoints=4)
        with sessions() as session:
            before = sweep.preview(session, project_id=project.id, grace=NO_GRACE)
        listed = {one.kind: (one.jobs, one.entries, one.size_bytes) for one in before}
        # Marked by nobody yet; only checkpoints of jobs that go on wait for no mark.
        assert {one.kind for one in before if one.ready_entries} == {"checkpoints"}
        run(sessions, grace=DAY)
        with sessions() as session:
            marked = sweep.preview(session, project_id=project.id, grace=NO_GRACE)
        ready = {one.kind: (one.ready_jobs, one.ready_entries, one.ready_bytes) for one in marked}
        done = run(sessions)
        deleted = {kind: (one.jobs, one.entries, one.size_bytes) for kind, one in done.items()}
        assert listed["checkpoints"] == (1, 2, listed["checkpoints"][2])
        for kind in ROWS:
            assert listed[kind] == ready[kind] == deleted[kind], kind
        with sessions() as session:
            [entry] = session.scalars(
                sa.select(tables.AuditRow).where(tables.AuditRow.subject == "logs")
            )
        assert (entry.actor, entry.action) == ("maintenance", "retention.swept")
        assert entry.facts == {"jobs": 2, "entries": 2, "size_bytes": 10}

    def test_asks_again_before_it_deletes(
        self, sessions: database.Sessions, copy: Copy, project: tables.ProjectRow
    ) -> None:
        job_id = copy(State.SUCCEEDED, days=400)
        run(sessions, grace=DAY)
        with sessions.begin() as session:
            changes = {"logs_days": None, "metrics_days": 500, "events_days": 500}
            policies.change(session, project_id=project.id, changes=changes)
        run(sessions)
        with sessions() as session:
            assert left(session, job_id) >= {"logs", "metrics", "events"}
            assert session.scalars(sa.select(tables.RetentionMarkRow)).all() == []

    @SQLITE_ONLY
    def test_goes_on_where_there_is_more_than_one_transaction_takes(
        self, sessions: database.Sessions, copy: Copy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sweep, "ENTRIES", 2)
        monkeypatch.setattr(sweep, "BATCH", 1)
        jobs = [copy(State.SUCCEEDED, days=200) for _ in range(2)]
        assert run(sessions)["metrics"].entries == 6
        with sessions() as session:
            marks = [
                session.get_one(tables.RetentionMarkRow, ("metrics", job_id)) for job_id in jobs
            ]
        assert [mark.entries for mark in marks] == [3, 3]

    @SQLITE_ONLY
    def test_takes_at_once_what_a_deleted_job_has_left(
        self, sessions: database.Sessions, copy: Copy
    ) -> None:
        with sessions() as session:
            now = database.now(session)
        job_id = copy(State.SUCCEEDED, deleted_at=now)
        run(sessions)
        with sessions() as session:
            assert left(session, job_id) == {"failed_attempts"}  # such jobs have no checkpoints

    @POSTGRES_ONLY
    def test_leaves_a_job_that_somebody_changes_just_now(
        self, sessions: database.Sessions, copy: Copy
    ) -> None:
        job_id = copy(State.FAILED, days=400)
        with sessions.begin() as session:
            session.get_one(tables.JobRow, job_id, with_for_update={"key_share": True})
            run(sessions)
        with sessions() as session:
            assert left(session, job_id) == set(ROWS)
        run(sessions)
        with sessions() as session:
            assert left(session, job_id) == set()


class TestAnything:
    @SQLITE_ONLY
    @pytest.mark.slow
    @pytest.mark.parametrize("seed", [1, 2])
    def test_that_is_needed_stays(
        self,
        sessions: database.Sessions,
        storage: Storage,
        copy: Copy,
        project: tables.ProjectRow,
        teacher: tables.ModelVersionRow,
        seed: int,
    ) -> None:
        chance = random.Random(seed)
        with sessions.begin() as session:
            study_that_goes_on = factories.study(session, project_id=project.id, seeds=[0]).id
            ended_study = ids.new("stu")
            shown = session.get_one(tables.StudyRow, study_that_goes_on)
            session.add(
                tables.StudyRow(
                    id=ended_study,
                    project_id=project.id,
                    name="ended",
                    spec=shown.spec,
                    variants=shown.variants,
                    created_at=shown.created_at,
                )
            )
        made: dict[str, tuple[State, float, str | None, int]] = {}
        with sessions.begin() as session:
            for number in range(16):
                study = chance.choice([None, study_that_goes_on, ended_study])
                state = chance.choice(sorted(lifecycle.FINAL if study == ended_study else State))
                days = chance.choice([0.0, 5.0, 100.0, 400.0])
                count = chance.randint(0, 3)
                place: dict[str, Any] = {}
                if study is not None:
                    place = {"study_id": study, "study_variant": 9, "study_seed": number}
                job_id = copy(state, days=days, checkpoints=count, within=session, **place)
                made[job_id] = (state, days, study, count)
        with sessions.begin() as session:
            for number in range(4):
                version = factories.teacher(
                    session, storage, project_id=project.id, content=f"{number}".encode()
                )
                if chance.random() < 0.5:
                    factories.alias(
                        session,
                        project_id=project.id,
                        name="digits-teacher",
                        alias=f"best-{number}",
                        version=version.version,
                    )
            factories.stored(session, storage, b"nobody names this")
        run(sessions)
        blobs.sweep(sessions, storage, grace=NO_GRACE)
        with sessions.begin() as session:
            for job_id, (state, days, study, count) in made.items():
                case = f"seed {seed}: {job_id} {state} after {days} days in {study}"
                goes_on = state not in lifecycle.FINAL or study == study_that_goes_on
                assert session.get(tables.JobRow, job_id) is not None, case
                has = left(session, job_id)
                if goes_on:
                    assert has >= {"logs", "metrics", "events"}, case
                    kept = session.query(tables.CheckpointRow).filter_by(job_id=job_id).count()
                    resumes = state not in lifecycle.FINAL
                    assert kept == (min(count, 2) if resumes else count), case
                else:
                    assert ("logs" in has, "metrics" in has, "events" in has) == (
                        days < 30,
                        days < 180,
                        days < 365,
                    ), case
                    if state != State.SUCCEEDED and days > 1:
                        assert "failed_attempts" not in has, case
            named = set(session.scalars(sa.select(tables.CheckpointRow.sha256)))
            named |= set(session.scalars(sa.select(tables.ModelFileRow.sha256)))
            assert len(session.query(tables.ModelFileRow).all()) == 5
            kept_blobs = {row.sha256: row for row in session.query(tables.BlobRow)}
        assert set(kept_blobs) == named
        assert all(storage.exists(row.storage_key) for row in kept_blobs.values())
        before = storage.stored_before(datetime.now(UTC) + DAY)
        assert {key.rpartition("/")[2] for key in before} == named


class TestLease:
    def test_lets_one_sweep_at_a_time(self, sessions: database.Sessions) -> None:
        with task_leases.held(sessions, "collect") as first:
            assert first is not None
            with task_leases.held(sessions, "collect") as second:
                assert second is None
            with task_leases.held(sessions, "another") as other:
                assert other is not None
        with task_leases.held(sessions, "collect") as later:
            assert later is not None

    @SQLITE_ONLY
    def test_stops_a_sweep_that_was_taken_for_dead(
        self, sessions: database.Sessions, copy: Copy
    ) -> None:
        job_id = copy(State.FAILED, days=400)
        with task_leases.held(sessions, "collect") as frozen:
            assert frozen is not None
            with sessions.begin() as session:
                row = session.get_one(tables.TaskLeaseRow, "collect")
                row.expires_at = database.now(session) - DAY
            with task_leases.held(sessions, "collect") as second:
                assert second is not None
                with pytest.raises(errors.StaleFence):
                    sweep.sweep(frozen, grace=NO_GRACE)
        with sessions() as session:
            assert left(session, job_id) == set(ROWS)


class TestRefuse:
    @SQLITE_ONLY
    def test_says_gone_for_a_month_and_unknown_afterwards(
        self, sessions: database.Sessions, copy: Copy
    ) -> None:
        job_id = copy(State.FAILED, days=200)
        with sessions() as session:
            expired.refuse(session, session.get_one(tables.JobRow, job_id), "metrics", "events")
        run(sessions)
        with sessions.begin() as session:
            job = session.get_one(tables.JobRow, job_id)
            expired.refuse(session, job, "events")
            with pytest.raises(errors.Gone, match="points of metrics"):
                expired.refuse(session, job, "metrics")
            mark = session.get_one(tables.RetentionMarkRow, ("metrics", job_id))
            mark.swept_at = database.now(session) - 31 * DAY
            session.flush()
            with pytest.raises(errors.NotFound) as unknown:
                expired.refuse(session, job, "metrics")
            assert not isinstance(unknown.value, errors.Gone)


class TestPolicy:
    @SQLITE_ONLY
    def test_of_a_project_is_the_default_until_it_is_changed(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            assert policies.of(session, project_id=project.id) == RetentionPolicy()
            former, policy = policies.change(
                session, project_id=project.id, changes={"logs_days": None}
            )
            assert (former.logs_days, policy.logs_days, policy.events_days) == (30, None, 365)
            policies.change(session, project_id=project.id, changes={"events_days": 9})
            policy = policies.of(session, project_id=project.id)
            assert (policy.logs_days, policy.events_days) == (None, 9)
