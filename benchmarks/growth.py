"""What reads cost when there are many jobs and points, and how fast points are written.

    python -m benchmarks.growth [--jobs 1000000] [--points-each 50] [--reads 200] [--explain]

PostgreSQL from its wheel. First with 100 jobs, then in the same run with as many as wanted: each
with a stored spec, a result and points of five series, in eleven projects, the first of which has
half of them. Every kind of read is what a route does between its session and its body. Times are
of the clock; beside them stands the processor time of PostgreSQL's process, which other work on
the machine changes little.
"""

import argparse
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import rich.console
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler

from benchmarks import claims
from models_registry import logs
from models_registry.access import keys
from models_registry.jobs import actions, leases, queries
from models_registry.jobs.lifecycle import State
from models_registry.persistence import database, paging, storage, tables
from models_registry.studies import studies
from tests import factories, services

FEW = 100
PROJECTS = 10
"""Beside the one whose jobs are read."""
SERIES = ("learning_rate", "loss/kd", "loss/total", "throughput", "validation/accuracy")
BATCH = 50_000
POINTS_AT_ONCE = 500
RARE = 997
"""One in so many jobs has the rare name, the rare method or the rare label."""


@dataclass(frozen=True)
class Filled:
    """What there is to read."""

    project_id: str
    job_id: str
    """The pattern of all jobs that are made."""
    copy_id: str
    """One of those, with points."""
    study_id: str


def main() -> None:
    """Measure with few jobs and with many, and print tables in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth")
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--points-each", type=int, default=50, help="points of each job")
    parser.add_argument("--reads", type=int, default=200, help="of each kind")
    parser.add_argument("--points", type=int, default=40_000, help="points that are written")
    parser.add_argument("--explain", action="store_true", help="print the plans of lists")
    wanted = parser.parse_args()
    say = rich.console.Console(stderr=True).print
    logs.set_up(level="WARNING", as_json=False)
    with _sessions() as sessions:
        filled = _begin(sessions)
        say(f"reads with {FEW} jobs")
        before = _measure(sessions, filled, wanted.reads)
        written = [("few", _write(sessions, filled, wanted.points))]
        say(f"filling: {wanted.jobs} jobs, {wanted.jobs * wanted.points_each} points")
        began = time.perf_counter()
        for first in range(FEW, wanted.jobs, BATCH):
            _fill(sessions, filled, first, min(first + BATCH, wanted.jobs), wanted.points_each)
            say(f"  {min(first + BATCH, wanted.jobs)} jobs, {time.perf_counter() - began:.0f} s")
        _vacuum(sessions)
        say("reads with all of them")
        after = _measure(sessions, filled, wanted.reads)
        written.append(("many", _write(sessions, filled, wanted.points)))
        if wanted.explain:
            _explain(sessions, filled, say)
    sys.stdout.write(_table(before, after, wanted.jobs, wanted.jobs * wanted.points_each))
    for name, rates in written:
        sys.stdout.write(
            f"\nWith {name} jobs, {rates['clock']:.0f} points a second written in batches of "
            f"{POINTS_AT_ONCE}; {rates['worker']:.1f} us of the worker's processor and "
            f"{rates['database']:.1f} us of PostgreSQL's for each"
        )
        sys.stdout.write(".\n")


@contextmanager
def _sessions() -> Iterator[database.Sessions]:
    with tempfile.TemporaryDirectory(prefix="retort-growth-") as name:
        folder = pathlib.Path(name)
        with services.postgres(folder) as server_url, services.database(server_url) as url:
            # One connection, whose process at the server is the one that is measured.
            engine = database.connect(url, pool_size=1, statement_timeout_seconds=3600)
            tables.Row.metadata.create_all(engine)
            yield database.sessions(engine)
            engine.dispose()


# -- filling -----------------------------------------------------------------------------------


def _begin(sessions: database.Sessions) -> Filled:
    """Make projects, a study, and few jobs, of which the first is the pattern of all others."""
    with tempfile.TemporaryDirectory() as name, sessions.begin() as session:
        store = storage.LocalStorage(pathlib.Path(name))
        project_id = keys.create_project(session, name="measured").id
        for number in range(PROJECTS):
            keys.create_project(session, name=f"other {number}")
        factories.teacher(session, store, project_id=project_id)
        row = factories.job(session, project_id=project_id, labels={"team": "vision"})
        job_id = factories.succeeded(session, store, row).id
        study = factories.study(session, project_id=project_id)
        for member in factories.members(session, study):
            factories.succeeded(session, store, member)
        filled = Filled(project_id, job_id, f"job_{FEW - 1:026x}", study.id)
    _fill(sessions, filled, 1, FEW, 50)
    _vacuum(sessions)
    return filled


def _fill(
    sessions: database.Sessions, filled: Filled, first: int, end: int, points_each: int
) -> None:
    """Copy the pattern with numbers `first` to `end`, and give each copy points."""
    job = tables.JobRow.__table__
    numbers = _rows(sa.func.generate_series(first, end - 1), "number", sa.Integer())
    at = numbers.c.number
    others = (
        sa.select(sa.func.array_agg(tables.ProjectRow.id))
        .where(tables.ProjectRow.id != filled.project_id)
        .scalar_subquery()
    )
    is_rare = at % RARE == 0
    moment = job.c.created_at + at * sa.text("interval '1 second'")
    job_id = sa.func.concat("job_", sa.func.lpad(sa.func.to_hex(at), 26, "0"))
    label = sa.func.jsonb_build_object(
        "team", sa.case((is_rare, "rare"), else_="vision"), "run", sa.cast(at, sa.String)
    )
    made: dict[str, Any] = {
        "id": job_id,
        # The first of the projects has every other job, and all of the few.
        "project_id": sa.case(
            (sa.or_(at < FEW, at % 2 == 1), filled.project_id), else_=others[at / 2 % PROJECTS + 1]
        ),
        "name": sa.case((is_rare, "rare"), else_=sa.func.concat("run ", at % 1000)),
        "method": sa.case((is_rare, "rare"), else_=job.c.method),
        "state": sa.case((at % 50 == 1, State.FAILED), else_=State.SUCCEEDED),
        "labels": label,
        "created_at": moment,
        "claim_order_at": moment,
        "student_version_id": None,
    }
    columns = [column.name for column in job.columns]
    chosen = (
        sa.select(*(made.get(name, job.c[name]) for name in columns))
        .select_from(job.join(numbers, sa.true()))
        .where(job.c.id == filled.job_id)
    )
    steps = _rows(sa.func.generate_series(1, points_each // len(SERIES)), "step", sa.Integer())
    kind = sa.String(96)
    series = _rows(sa.func.unnest(sa.cast(list(SERIES), postgresql.ARRAY(kind))), "key", kind)
    step, key = steps.c.step, series.c.key
    # Any: columns and constants, of which a statement takes either.
    values: list[Any] = [job_id, key, step * 10, 1, step, 1.0 / step, sa.func.clock_timestamp()]
    points = sa.select(*values).select_from(numbers.join(series, sa.true()).join(steps, sa.true()))
    names = ("job_id", "key", "step", "attempt", "epoch", "value", "at")
    with sessions.begin() as session:
        session.execute(sa.insert(tables.JobRow).from_select(columns, chosen))
        session.execute(sa.insert(tables.MetricRow).from_select(names, points))


def _rows(
    function: sa.FunctionElement[Any], column: str, kind: sa.types.TypeEngine[Any]
) -> sa.TableValuedAlias:
    """Return a function that returns rows, with its only column, as something to select from."""
    return function.table_valued(sa.column(column, kind)).render_derived()


def _vacuum(sessions: database.Sessions) -> None:
    """Do what PostgreSQL's own maintenance does before long."""
    with sessions.kw["bind"].connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(sa.text("VACUUM ANALYZE"))


# -- reading -----------------------------------------------------------------------------------


def _lists(filled: Filled) -> dict[str, queries.JobFilters]:
    return {
        "list 100": queries.JobFilters(),
        "list 100 of one state": queries.JobFilters(states=(State.FAILED,)),
        "list 100 of a state that none has": queries.JobFilters(states=(State.RUNNING,)),
        "list 100 of a rare method": queries.JobFilters(method="rare"),
        "list 100 of a rare name": queries.JobFilters(name="rare"),
        "list 100 with a rare label": queries.JobFilters(labels={"team": "rare"}),
        "list 100 with a label that all have": queries.JobFilters(labels={"team": "vision"}),
        "list those with one label": queries.JobFilters(labels={"run": "11"}),
        "list 100 of a study": queries.JobFilters(study_id=filled.study_id),
    }


def _page(
    session: Session, filled: Filled, filters: queries.JobFilters, cursor: str | None
) -> paging.Page[tables.JobRow]:
    wanted = paging.PageRequest(b"benchmark", repr(filters), 100, cursor)
    page = queries.page(session, project_id=filled.project_id, filters=filters, wanted=wanted)
    queries.latest_metrics_of(session, page.rows)
    return page


def _reads(sessions: database.Sessions, filled: Filled) -> dict[str, Callable[[Session], int]]:
    """Return what is read, by name; each call is one read, and returns how many rows it found."""

    def one(session: Session) -> int:
        row = actions.get(session, project_id=filled.project_id, job_id=filled.copy_id)
        return len(queries.latest_metrics_of(session, [row]))

    def study(session: Session) -> int:
        found = studies.compare(session, session.get_one(tables.StudyRow, filled.study_id))
        return len(found.rows)

    def points(session: Session) -> int:
        found = queries.series(session, job_id=filled.copy_id)
        return sum(len(values) for values in found.values())

    def listed(filters: queries.JobFilters, cursor: str | None = None) -> Callable[[Session], int]:
        return lambda session: len(_page(session, filled, filters, cursor).rows)

    found: dict[str, Callable[[Session], int]] = {"read one": one}
    found |= {name: listed(filters) for name, filters in _lists(filled).items()}
    with sessions() as session:
        wanted = queries.JobFilters()
        cursor = None
        # Far down where there are many; the last page where there are few.
        for _ in range(20):
            cursor = _page(session, filled, wanted, cursor).next_cursor or cursor
    found["page 20 of the list, or the last"] = listed(wanted, cursor)
    found["points of one job"] = points
    found["leaderboard of a study"] = study
    return found


def _measure(
    sessions: database.Sessions, filled: Filled, reads: int
) -> dict[str, dict[str, float]]:
    readers = database.readers(sessions.kw["bind"])
    with sessions() as session:
        backend = psutil.Process(session.scalars(sa.text("SELECT pg_backend_pid()")).one())
    found = {}
    for name, read in _reads(sessions, filled).items():
        clock = []
        for number in range(reads + 5):
            if number == 5:  # plans and pages are warm
                before = claims.seconds(backend)
            began = time.perf_counter()
            with readers() as session:
                rows = read(session)
            if number >= 5:
                clock.append(1000 * (time.perf_counter() - began))
        clock.sort()
        found[name] = {
            "rows": rows,
            "p50": statistics.median(clock),
            "p99": clock[min(len(clock) - 1, int(0.99 * len(clock)))],
            "database": 1000 * (claims.seconds(backend) - before) / reads,
        }
    return found


def _explain(sessions: database.Sessions, filled: Filled, say: Callable[[str], object]) -> None:
    with sessions() as session:
        for name, filters in _lists(filled).items():
            row = tables.JobRow
            query = queries.chosen(session, project_id=filled.project_id, filters=filters)
            query = query.order_by(row.created_at.desc(), row.id.desc()).limit(101)
            say(f"-- {name}")
            for line in session.scalars(_Explained(query)):
                say(line)


class _Explained(sa.Executable, sa.ClauseElement):
    """A query of which the plan is wanted, with the times of its steps."""

    inherit_cache = False

    def __init__(self, query: sa.Select[Any]) -> None:
        self.query = query


@compiles(_Explained)
def _explained(element: _Explained, compiler: SQLCompiler, **options: Any) -> str:
    return f"EXPLAIN ANALYZE {compiler.process(element.query, **options)}"


# -- writing -----------------------------------------------------------------------------------


def _write(sessions: database.Sessions, filled: Filled, count: int) -> dict[str, float]:
    """Report points as a worker does, and return rates: a second, and microseconds for each."""
    with sessions.begin() as session:
        row = factories.job(session, project_id=filled.project_id)
        lease = factories.running(session, row)
        backend = psutil.Process(session.scalars(sa.text("SELECT pg_backend_pid()")).one())
    batches = [
        [
            leases.MetricSample(SERIES[place % len(SERIES)], place // len(SERIES), 1, 0.5)
            for place in range(first, min(first + POINTS_AT_ONCE, count))
        ]
        for first in range(0, count, POINTS_AT_ONCE)
    ]
    before, own, began = claims.seconds(backend), time.process_time(), time.perf_counter()
    for batch in batches:
        with sessions.begin() as session:
            leases.report(session, lease, progress=0.5, estimated_end_at=None, samples=batch)
    clock = time.perf_counter() - began
    figures = {
        "clock": count / clock,
        "worker": 1e6 * (time.process_time() - own) / count,
        "database": 1e6 * (claims.seconds(backend) - before) / count,
    }
    with sessions.begin() as session:
        stored = session.scalars(
            sa.select(sa.func.count()).where(tables.MetricRow.job_id == lease.job_id)
        ).one()
    if stored != count:
        raise RuntimeError(f"{stored} of {count} points were stored")
    return figures


def _table(
    before: dict[str, dict[str, float]],
    after: dict[str, dict[str, float]],
    jobs: int,
    points: int,
) -> str:
    columns = [
        "read",
        "rows",
        "few jobs: p50 ms",
        "p99 ms",
        "many jobs: p50 ms",
        "p99 ms",
        "PostgreSQL's processor, ms",
        "times as much",
    ]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for name, few in before.items():
        many = after[name]
        # With another number of rows, how many times as much says nothing of growth.
        is_alike = few["rows"] == many["rows"] and few["database"]
        ratio = f"{many['database'] / few['database']:.2f}" if is_alike else ""
        cells = [
            name,
            f"{few['rows']} to {many['rows']}",
            *(f"{one[figure]:.2f}" for one in (few, many) for figure in ("p50", "p99")),
            f"{few['database']:.2f} to {many['database']:.2f}",
            ratio,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    about = f"Few jobs are {FEW}, many are {jobs:,} with {points:,} points."
    return "\n".join([about, "", *lines, ""])


if __name__ == "__main__":
    main()
