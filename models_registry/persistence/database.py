"""Engine and session factory for PostgreSQL and SQLite, and the clock by which leases expire."""

import contextlib
import functools
import json
import math
import select
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import psycopg
import pydantic_core
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import (
    DeclarativeBase,
    Session,
    SessionTransaction,
    aliased,
    make_transient_to_detached,
    sessionmaker,
)
from sqlalchemy.types import TypeDecorator

Sessions = sessionmaker[Session]
Query = TypeVar("Query", bound=sa.Select[Any])
_DISK_FULL = "53100"  # PostgreSQL's code of the error
# Longer than the server's own limit, whose error tells more than a silence.
_NETWORK_SECONDS = 2.0
# Goes on while the machine sleeps, where the system has such a clock.
_ELAPSED = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class UTCDateTime(TypeDecorator[datetime]):
    """A time that is always aware and UTC; SQLite, which has no zones, stores it as UTC."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    # Any: as SQLAlchemy declares it.
    def result_processor(self, dialect: Dialect, coltype: Any) -> Any:
        """Return what makes a value of a column's; nothing on PostgreSQL, which answers in UTC."""
        if dialect.name == "postgresql":
            return None  # a list of 100 jobs has 1,100 times
        return super().result_processor(dialect, coltype)

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive times; hand UTC to the database."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a time without a zone reached the database: {value.isoformat()}")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Return an aware UTC time."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def connect(
    url: str,
    *,
    pool_size: int = 10,
    statement_timeout_seconds: float = 30,
    idle_transaction_seconds: float | None = None,
    connect_timeout_seconds: int = 5,
) -> sa.Engine:
    """Return an engine with the settings that this service relies on.

    SQLite: WAL, foreign keys on, and `BEGIN IMMEDIATE`, so that a transaction that will write
    waits for its turn at the start instead of failing in the middle. PostgreSQL: time limits on
    statements and locks, which the server keeps, and on every answer, which this side keeps: a
    server that is frozen, or a network that loses packets without a word, keeps none. What is not
    answered in time raises `OperationalError` and closes the connection.

    A transaction in which nothing happens for `idle_transaction_seconds` (by default the time that
    a statement may take) is rolled back by the server: whoever began it may be frozen or cut off,
    and would keep its locks. `connect_timeout_seconds` is 2 at least (psycopg knows no less).
    """
    if sa.make_url(url).get_backend_name() == "sqlite":
        engine = sa.create_engine(
            url,
            hide_parameters=True,
            connect_args={"timeout": 30},
            pool_size=pool_size,
            json_deserializer=pydantic_core.from_json,
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_immediate)
        return engine
    answer_seconds = statement_timeout_seconds + _NETWORK_SECONDS
    limits = {
        "statement_timeout": statement_timeout_seconds,
        "lock_timeout": 10.0,
        "idle_in_transaction_session_timeout": idle_transaction_seconds
        or statement_timeout_seconds,
    }
    options = " ".join(f"-c {name}={seconds * 1000:.0f}" for name, seconds in limits.items())
    options += " -c TimeZone=UTC"
    engine = sa.create_engine(
        url,
        hide_parameters=True,  # they hold secrets of webhooks, and errors are logged
        pool_size=pool_size,
        max_overflow=pool_size,
        json_deserializer=pydantic_core.from_json,  # half the time of Python's own
        # A request waits no longer for a connection than for an answer over one.
        pool_timeout=answer_seconds,
        connect_args={
            "options": options,
            "connect_timeout": connect_timeout_seconds,
            # Closes idle connections to a peer that is gone, and those whose packets are lost.
            "keepalives": 1,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": round(answer_seconds * 1000),
        },
    )

    @event.listens_for(engine, "do_connect")
    def connect_limited(
        _dialect: Dialect, _record: Any, arguments: list[Any], named: dict[str, Any]
    ) -> psycopg.Connection[Any]:
        connection = _LimitedConnection.connect(*arguments, **named)
        connection.answer_seconds = answer_seconds
        return connection

    event.listen(engine, "checkout", _refuse_closed)
    return engine


def _refuse_closed(connection: psycopg.Connection[Any], _record: Any, _proxy: Any) -> None:
    """Have the pool replace its connections where the server has closed this one meanwhile.

    The server hardly says anything to a connection without a statement but that it ends (and that
    its settings were loaded anew). To look for that costs microseconds; a statement that is sent to
    find out costs an exchange. A machine
    that is gone without a word is found by the keepalives, within 25 s.
    """
    waiting = select.poll()
    waiting.register(connection.fileno(), select.POLLIN | select.POLLERR | select.POLLHUP)
    if waiting.poll(0):
        raise sa.exc.InvalidatePoolError(
            "the server has closed the connection, or its settings have changed"
        )


class _LimitedConnection(psycopg.Connection[Any]):
    """A connection that is closed when the server does not answer in time.

    TCP's own limits do not notice a frozen server, whose kernel still acknowledges packets.
    """

    answer_seconds: float | None = None

    # Any: generators of psycopg's protocol, and what they return.
    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """Run one exchange with the server.

        Raises: psycopg.OperationalError when it takes too long; the connection is closed then.
        """
        limit = self.answer_seconds if timeout is None else timeout
        deadline = math.inf if limit is None else time.monotonic() + limit
        try:
            return super().wait(gen, interval, limit)
        except psycopg.errors.IdleInTransactionSessionTimeout as error:
            # Psycopg calls it internal; for us it is a connection that was lost.
            raise psycopg.OperationalError(str(error)) from error
        except psycopg.OperationalError as error:
            if timeout is not None or self.closed or time.monotonic() < deadline:
                raise
            self.pgconn.finish()  # the answer may come later, and would be taken for the next one
            raise psycopg.OperationalError(
                f"the database has not answered for {limit:g} s"
            ) from error


def sessions(engine: sa.Engine) -> Sessions:
    """Return the factory of sessions; rows stay readable after commit."""
    return sessionmaker(engine, expire_on_commit=False)


def readers(engine: sa.Engine) -> Sessions:
    """Return the factory of sessions that only read, and so wait for no writer.

    On PostgreSQL each statement is a transaction of its own: to those that read, a longer one
    promises no more there (READ COMMITTED), and costs two more exchanges with the server.
    """
    options: dict[str, Any] = {"read_only": True}
    if engine.dialect.name == "postgresql":
        options["isolation_level"] = "AUTOCOMMIT"
    return sessions(engine.execution_options(**options))


def now(session: Session, *, anew: bool = False) -> datetime:
    """Return the database's time: the one clock by which leases are granted and judged.

    It is asked once in a transaction; from then on, what has passed here is added, which is too
    little by as long as the answer took. `anew` asks again, for times that must be in the order in
    which a lock was held.
    """
    if session.get_bind().dialect.name == "sqlite":
        return datetime.now(UTC)
    reading: _ClockReading | None = session.info.get(_ClockReading)
    if anew or reading is None or reading.transaction is not session.get_transaction():
        return _note_clock(session, session.scalars(_CLOCK).one())
    return reading.moment + timedelta(seconds=time.clock_gettime(_ELAPSED) - reading.elapsed)


_CLOCK = sa.select(sa.func.clock_timestamp(type_=sa.DateTime(timezone=True)))


def _note_clock(session: Session, moment: datetime) -> datetime:
    transaction = session.get_transaction()
    reading = _ClockReading(moment.astimezone(UTC), time.clock_gettime(_ELAPSED), transaction)
    session.info[_ClockReading] = reading
    return reading.moment


# Any: the statement's row.
def first_with_clock(
    session: Session, query: sa.Select[Any], parameters: dict[str, Any]
) -> sa.Row[Any] | None:
    """Return a query's first row, read anew, and its clock, in the same exchange.

    `query` is of one kind of row; where it waits for a lock, the clock is that of its end.
    """
    if session.get_bind().dialect.name == "sqlite":
        return session.execute(query, parameters).first()
    found = session.execute(_with_clock(query), parameters).first()
    if found is not None:
        _note_clock(session, found[-1])
    return found


@functools.cache
def _with_clock(query: sa.Select[Any]) -> sa.Select[Any]:
    # Around the query: beside it, the clock would be read before a lock is waited for.
    found = aliased(query.column_descriptions[0]["entity"], query.subquery())
    around = sa.select(found, *_CLOCK.selected_columns)
    return around.execution_options(populate_existing=True)


@dataclass(frozen=True)
class _ClockReading:
    """What the database's clock showed in a transaction, and this machine's at the answer."""

    moment: datetime
    elapsed: float
    transaction: SessionTransaction | None


def one_at_a_time(session: Session, lock: int) -> None:
    """Let one transaction pass here until it ends; others that name the same `lock` wait.

    SQLite has one writer at a time anyway.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))


def locked(query: Query, *, lock: bool, hold: bool = False) -> Query:
    """Return the query of a row as it is now, with its lock if that is wanted.

    With `lock` nobody else may change the row until the transaction ends; with `hold` nobody may
    delete it, which conflicts with the lock of a deletion and with nothing else.
    """
    if lock:
        query = query.with_for_update()
    elif hold:
        query = query.with_for_update(read=True, key_share=True)
    return query.execution_options(populate_existing=True)


def has_no_room(error: Exception) -> bool:
    """Return whether the database failed because its disk is full."""
    cause = getattr(error, "orig", None)
    return (
        getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        or getattr(cause, "sqlstate", None) == _DISK_FULL
    )


def insert(session: Session, row: type[DeclarativeBase]) -> postgresql.Insert | sqlite.Insert:
    """Return an INSERT that can say what happens on a conflict, in the database's own dialect."""
    if session.get_bind().dialect.name == "postgresql":
        return postgresql.insert(row)
    return sqlite.insert(row)


@contextlib.contextmanager
def one_statement(sessions: Sessions) -> Iterator[Session]:
    """Yield a session for a single statement, which is a transaction of its own.

    On PostgreSQL it is sent without a BEGIN and a COMMIT around it.
    """
    with sessions.begin() as session:
        if session.get_bind().dialect.name == "postgresql":
            session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        yield session


def add_rows(session: Session, rows: Sequence[DeclarativeBase]) -> None:
    """Insert new rows, each after those that it refers to; on PostgreSQL all in one exchange.

    Rows whose key is known belong to the session afterwards, as after a flush; those that the
    database numbers do not.
    """
    by_kind: dict[type[DeclarativeBase], list[DeclarativeBase]] = {}
    for row in rows:
        by_kind.setdefault(type(row), []).append(row)
    documents = [[_document(row) for row in each] for each in by_kind.values()]
    if session.get_bind().dialect.name == "postgresql":
        texts = [json.dumps(each, default=_in_json) for each in documents]
        parameters = {f"rows_{place}": text for place, text in enumerate(texts)}
        session.execute(_insert_of(tuple(by_kind)), parameters)
    else:
        for kind, each in zip(by_kind, documents, strict=True):
            session.execute(sa.insert(kind), each)
    for kind, written in by_kind.items():
        if kind.__table__.autoincrement_column is None:  # type: ignore[attr-defined]  # a Table
            for row in written:
                make_transient_to_detached(row)
            session.add_all(written)


@functools.cache
def _insert_of(kinds: tuple[type[DeclarativeBase], ...]) -> sa.TextClause:
    """Return one INSERT into the tables of these kinds, from a JSON array of rows of each."""
    inserts = []
    for place, kind in enumerate(kinds):
        table = str(kind.__table__.name)  # type: ignore[attr-defined]  # a Table
        columns = ", ".join(_columns(kind))
        inserts.append(
            f"INSERT INTO {table} ({columns}) SELECT {columns} "
            f"FROM jsonb_populate_recordset(NULL::{table}, CAST(:rows_{place} AS jsonb))"
        )
    *first, last = inserts
    before = ", ".join(f"written_{place} AS ({insert})" for place, insert in enumerate(first))
    return sa.text(f"WITH {before} {last}" if before else last)


@functools.cache
def _columns(kind: type[DeclarativeBase]) -> tuple[str, ...]:
    """Return the columns that a new row is written with: all but a number of the database's."""
    numbered = kind.__table__.autoincrement_column  # type: ignore[attr-defined]  # a Table
    return tuple(column.name for column in kind.__table__.columns if column is not numbered)


def _document(row: DeclarativeBase) -> dict[str, Any]:
    """Return what a new row is written with, after it was given its defaults."""
    table: Any = type(row).__table__
    values = vars(row)
    for name in _columns(type(row)):
        if name not in values:
            default = table.c[name].default
            value = default and (default.arg(None) if default.is_callable else default.arg)
            setattr(row, name, value)
    return {name: values[name] for name in _columns(type(row))}


def _in_json(value: Any) -> str:
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.isoformat()
    raise TypeError(f"{value!r} cannot be written into a row")


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver's own transaction control is switched off: `_begin_immediate` does it.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_immediate(connection: sa.Connection) -> None:
    # Read-only sections say so (`execution_options(read_only=True)`), and then do not queue
    # behind the one writer that SQLite allows.
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
