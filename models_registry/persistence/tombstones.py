"""For how long a deleted thing is still known as deleted: 410 first, 404 later.

Rows of deleted things stay, since numbers are never given out twice and lineage names what was
used; only the answer to a request for them changes.
"""

from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from models_registry.persistence import database

GONE_FOR = timedelta(days=30)


def is_forgotten(session: Session, deleted_at: datetime | None) -> bool:
    """Return whether a thing was deleted so long ago that it counts as never made."""
    return deleted_at is not None and deleted_at < database.now(session) - GONE_FOR
