"""Counts that all processes share, and what the state of the service is measured from."""

from datetime import timedelta

import sqlalchemy as sa

from models_registry.artifacts import inspections
from models_registry.jobs import workers
from models_registry.persistence import counters, database, tables
from models_registry.persistence.counters import Counter
from models_registry.persistence.storage import Storage
from models_registry.retention import blobs
from tests import databases, factories


def test_of_two_sessions_are_added_up(sessions: database.Sessions) -> None:
    for amount in (2, 3):
        with sessions.begin() as session:
            counters.add(session, Counter.COLLECTED_BYTES, amount)
    with sessions() as session:
        found = counters.read(session)
    assert found[Counter.COLLECTED_BYTES].value == 5
    assert 0 <= found[Counter.COLLECTED_BYTES].age_seconds < 60
    assert Counter.SWEEPS not in found


@databases.SQLITE_ONLY
def test_collected_bytes_are_counted(sessions: database.Sessions, storage: Storage) -> None:
    with sessions.begin() as session:
        factories.stored(session, storage, b"orphan")
    blobs.sweep(sessions, storage, grace=timedelta(0))
    with sessions() as session:
        found = counters.read(session)
    assert found[Counter.COLLECTED_BLOBS].value == 1
    assert found[Counter.COLLECTED_BYTES].value == len(b"orphan")


def test_inspections_are_counted_by_state_and_reason(
    sessions: database.Sessions, teacher: tables.ModelVersionRow
) -> None:
    with sessions.begin() as session:
        before = inspections.count_states(session)
        assert before["models", "ready", ""] == 1
        assert inspections.pending_seconds(session)["models"] == 0
        changed = sa.update(tables.ModelVersionRow).values(
            state="rejected", rejection={"code": "damaged", "message": ""}
        )
        session.execute(changed)
        assert inspections.count_states(session)["models", "rejected", "damaged"] == 1


def test_workers_are_counted_by_queue_and_by_whether_they_are_busy(
    sessions: database.Sessions, job: tables.JobRow
) -> None:
    with sessions.begin() as session:
        for worker_id in ("wrk_1", "wrk_2"):
            workers.announce(
                session,
                worker_id=worker_id,
                name=worker_id,
                queues=["any", "cpu"],
                devices=[],
                memory_bytes=1,
                versions={},
            )
        factories.running(session, session.get_one(tables.JobRow, job.id), worker_id="wrk_2")
        for worker_id, share in (("wrk_1", 0.0), ("wrk_2", 0.75)):
            workers.seen(session, worker_id=worker_id, gpu_utilisation=share)
        assert workers.mean_gpu_utilisation(session) == {False: 0.0, True: 0.75}
        found = workers.count_by_queue(session)
    assert found == {
        ("any", False): 1,
        ("any", True): 1,
        ("cpu", False): 1,
        ("cpu", True): 1,
    }
