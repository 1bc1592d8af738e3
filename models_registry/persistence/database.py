"""Engine and session factory for PostgreSQL and SQLite, and the clock by which leases expire."""

import sqlite3
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.types import TypeDecorator

Sessions = sessionmaker[Session]
_DISK_FULL = "53100"  # PostgreSQL's code of the error


class UTCDateTime(TypeDecorator[datetime]):
    """A time that is always aware and UTC; SQLite, which has no zones, stores it as UTC."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

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


def connect(url: str, *, pool_size: int = 10, statement_timeout_seconds: int = 30) -> sa.Engine:
    """Return an engine with the settings that this service relies on.

    SQLite: WAL, foreign keys on, and `BEGIN IMMEDIATE`, so that a transaction that will write
    waits for its turn at the start instead of failing in the middle. PostgreSQL: time limits on
    statements and locks.
    """
    if sa.make_url(url).get_backend_name() == "sqlite":
        engine = sa.create_engine(url, connect_args={"timeout": 30}, pool_size=pool_size)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_immediate)
        return engine
    options = f"-c statement_timeout={statement_timeout_seconds * 1000} -c lock_timeout=10000"
    return sa.create_engine(
        url,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_pre_ping=True,
        connect_args={"options": options, "connect_timeout": 5},
    )


def sessions(engine: sa.Engine) -> Sessions:
    """Return the factory of sessions; rows stay readable after commit."""
    return sessionmaker(engine, expire_on_commit=False)


def now(session: Session) -> datetime:
    """Return the database's time: the one clock by which leases are granted and judged."""
    if session.get_bind().dialect.name == "sqlite":
        return datetime.now(UTC)
    moment: datetime = session.scalars(sa.select(sa.func.clock_timestamp())).one()
    return moment.astimezone(UTC)


def one_at_a_time(session: Session, lock: int) -> None:
    """Let one transaction pass here until it ends; others that name the same `lock` wait.

    SQLite has one writer at a time anyway.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))


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
