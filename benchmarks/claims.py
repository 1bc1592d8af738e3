"""What a worker's choice and claim of a job cost while many others wait.

    python -m benchmarks.claims [--database-url URL] [--jobs 10000] [--projects 10] [--claims 60]

Everything is counted in processor time, that of this process and that of PostgreSQL's, so that
other work on the machine does not count; the clock is told beside it. The database must be new: it
is filled. Without a URL, SQLite in a temporary folder is measured.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa

from models_registry import logs
from models_registry.access import keys
from models_registry.jobs import fair_share, leases
from models_registry.jobs.lifecycle import State
from models_registry.persistence import broker, database, tables

LEASE_SECONDS = 60.0
INSERTED_AT_ONCE = 1000


def main() -> None:
    """Fill a database, claim, and print the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims")
    parser.add_argument("--database-url", help="of an empty database on this machine")
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--projects", type=int, default=10)
    parser.add_argument("--claims", type=int, default=60)
    options = parser.parse_args()
    logs.set_up(level="WARNING", as_json=False)  # or each claim would write a line
    with tempfile.TemporaryDirectory(prefix="retort-claims-") as folder:
        url = options.database_url or f"sqlite:///{Path(folder) / 'claims.sqlite3'}"
        engine = database.connect(url, pool_size=1)
        tables.Row.metadata.create_all(engine)
        sessions = database.sessions(engine)
        fill(sessions, jobs=options.jobs, projects=options.projects)
        if engine.dialect.name == "postgresql":
            with engine.connect() as connection:  # as its own maintenance does before long
                connection.execution_options(isolation_level="AUTOCOMMIT")
                connection.execute(sa.text("ANALYZE"))
        figures = measure(sessions, claims=options.claims)
        engine.dispose()
    about = {"database": engine.dialect.name, "jobs": options.jobs, "projects": options.projects}
    sys.stdout.write(json.dumps({**about, **figures}, indent=2) + "\n")


def fill(sessions: database.Sessions, *, jobs: int, projects: int) -> None:
    """Make projects with queued jobs, all alike."""
    with sessions.begin() as session:
        ids = [keys.create_project(session, name=f"project {n}").id for n in range(projects)]
        now = database.now(session)
        rows = [
            {
                "id": f"job_{number:08d}",
                "project_id": ids[number % projects],
                "name": "waits",
                "task": "classification",
                "method": "ce",
                "queue": "any",
                "labels": {},
                "spec": {"method": {"name": "ce"}},
                "state": State.QUEUED,
                "not_before": now,
                "claim_order_at": now,
                "queued_at": now,
                "created_at": now,
            }
            for number in range(jobs)
        ]
        for first in range(0, jobs, INSERTED_AT_ONCE):
            session.execute(sa.insert(tables.JobRow), rows[first : first + INSERTED_AT_ONCE])


def measure(sessions: database.Sessions, *, claims: int) -> dict[str, Any]:
    """Return milliseconds for a choice and for a choice with its claim."""
    backend = _backend(sessions)
    found: dict[str, Any] = {"claims": claims}
    for name, work in (("choice", choose), ("choice_and_claim", choose_and_claim)):
        work(sessions)  # plans and pages are warm
        before = seconds(backend)
        own, clock = [], []
        for _ in range(claims):
            began, began_own = time.perf_counter(), time.process_time()
            work(sessions)
            own.append(1000 * (time.process_time() - began_own))
            clock.append(1000 * (time.perf_counter() - began))
        found[name] = {
            "worker_ms": round(statistics.median(own), 2),
            "database_ms": backend and round(1000 * (seconds(backend) - before) / claims, 2),
            "clock_ms": round(statistics.median(clock), 2),
        }
    return found


def choose(sessions: database.Sessions) -> str | None:
    """Find out whose turn it is."""
    with sessions.begin() as session:
        return fair_share.next_job(session, queues=broker.JOB_QUEUES)


def choose_and_claim(sessions: database.Sessions) -> None:
    """Claim the job whose turn it is, as a worker does."""
    chosen = choose(sessions)
    if chosen is None:
        raise RuntimeError("no job is left")
    with sessions.begin() as session:
        lease = leases.claim(session, job_id=chosen, worker_id="wrk_1", lease_seconds=LEASE_SECONDS)
    if lease is None:
        raise RuntimeError(f"{chosen} could not be claimed")


def _backend(sessions: database.Sessions) -> psutil.Process | None:
    """Return PostgreSQL's process for the one connection; None with SQLite, which has none."""
    with sessions() as session:
        if session.get_bind().dialect.name != "postgresql":
            return None
        return psutil.Process(session.scalars(sa.text("SELECT pg_backend_pid()")).one())


def seconds(process: psutil.Process | None) -> float:
    """Return the processor time that a process has used; 0 for none."""
    if process is None:
        return 0.0
    spent = process.cpu_times()
    return float(spent.user + spent.system)


if __name__ == "__main__":
    main()
