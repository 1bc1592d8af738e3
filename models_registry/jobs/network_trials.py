"""Networks of other libraries, built once by an inspector for the images that they are to take.

What such a network shows, and whether it takes images of a size, is known only where torch is. So
a job with one waits until an inspector has built it without weights, which takes seconds; the
answer is kept for all later jobs. The catalog could not hold it: it depends on arguments and on the
size of the images, and there are more than a thousand networks.
"""

import hashlib
import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry.persistence import database, outbox, tables

QUEUE = "inspect"
TASK = "networks.try"
MOST_ATTEMPTS = 2
"""After so many deaths of the process that builds it, a network is left to the engine."""
PENDING, READY, REJECTED = "pending", "ready", "rejected"


@dataclass(frozen=True)
class Wanted:
    """A network, and the images that it is to take."""

    network: str
    arguments: dict[str, Any]
    classes: int
    channels: int
    height: int
    width: int

    @property
    def sizes(self) -> dict[str, int]:
        """Return the number of classes, and channels, height and width of the images."""
        return {
            "classes": self.classes,
            "channels": self.channels,
            "height": self.height,
            "width": self.width,
        }

    @property
    def digest(self) -> str:
        """Return the key of its trial."""
        content = [self.network, self.arguments, self.sizes]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def find(session: Session, wanted: Wanted) -> tables.NetworkTrialRow | None:
    """Return the trial of a network, or None if nobody has asked for it."""
    return session.get(tables.NetworkTrialRow, wanted.digest, populate_existing=True)


def ask(session: Session, wanted: Wanted) -> tables.NetworkTrialRow:
    """Return the trial of a network; the first time, publish the message for it."""
    row = tables.NetworkTrialRow
    now = database.now(session)
    made = session.scalars(
        database.insert(session, row)
        .values(
            digest=wanted.digest,
            network=wanted.network,
            arguments=wanted.arguments,
            input=wanted.sizes,
            state=PENDING,
            attempts=0,
            announced_at=now,
            created_at=now,
        )
        .on_conflict_do_nothing()
        .returning(row.digest)
    ).one_or_none()
    if made is not None:
        _announce(session, made)
    return session.get_one(row, wanted.digest, populate_existing=True)


def finish(
    session: Session,
    digest: str,
    *,
    traits: dict[str, Any] | None = None,
    rejection: dict[str, Any] | None = None,
) -> tables.NetworkTrialRow:
    """Record the outcome of a trial; the first one counts.

    Without either, the process that built the network has died: it is tried once more, and then
    left to the engine, with nothing known of it.
    """
    trial = session.get_one(
        tables.NetworkTrialRow, digest, with_for_update=True, populate_existing=True
    )
    if trial.state != PENDING:
        return trial
    trial.attempts += 1
    if rejection is not None:
        trial.state, trial.rejection = REJECTED, rejection
    elif traits is not None or trial.attempts >= MOST_ATTEMPTS:
        trial.state, trial.traits = READY, traits
    else:
        trial.announced_at = database.now(session)
        _announce(session, digest)
    session.flush()
    return trial


def republish(session: Session, *, after_seconds: float) -> int:
    """Publish the message again for trials that nobody has finished; return how many."""
    row = tables.NetworkTrialRow
    now = database.now(session)
    early = now - timedelta(seconds=after_seconds)
    silent = sa.or_(row.announced_at.is_(None), row.announced_at < early)
    query = sa.select(row).where(row.state == PENDING, silent)
    count = 0
    for trial in session.scalars(query.with_for_update(skip_locked=True)):
        trial.announced_at = now
        _announce(session, trial.digest)
        count += 1
    return count


def _announce(session: Session, digest: str) -> None:
    outbox.add(session, task=TASK, queue=QUEUE, payload={"digest": digest})
