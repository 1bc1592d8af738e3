"""Counts of what happens in processes that have no `/metrics`: workers and maintenance.

They stand in the database, so that every api process reports the same and a restart loses nothing.
"""

from dataclasses import dataclass
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry.persistence import database, tables


class Counter(StrEnum):
    """What is counted."""

    SWEEPS = "sweeps"
    STALE_WRITES = "stale_writes"
    COLLECTED_BLOBS = "collected_blobs"
    COLLECTED_BYTES = "collected_bytes"


@dataclass(frozen=True)
class Count:
    """The value of a counter, and how long ago something was added to it."""

    value: int
    age_seconds: float


def add(session: Session, counter: Counter, amount: int = 1) -> None:
    """Add to a counter in the caller's transaction, which should end soon: it locks the row."""
    row, now = tables.CounterRow, database.now(session)
    new = database.insert(session, row).values(name=counter, value=amount, counted_at=now)
    session.execute(
        new.on_conflict_do_update(
            index_elements=[row.name],
            set_={"value": row.value + amount, "counted_at": now},
        )
    )


def read(session: Session) -> dict[Counter, Count]:
    """Return the counters that something was added to."""
    row, now = tables.CounterRow, database.now(session)
    known = sa.select(row.name, row.value, row.counted_at).where(row.name.in_(list(Counter)))
    return {
        Counter(name): Count(value, max((now - at).total_seconds(), 0.0))
        for name, value, at in session.execute(known)
    }
