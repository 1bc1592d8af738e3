"""Bytes that no row needs: marked, and deleted after a grace, with those that have no row at all.

A blob belongs to no project: equal bytes are stored once, and stay while any row of any project
names them.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry.artifacts import uploads
from models_registry.persistence import counters, database, storage, tables
from models_registry.persistence.counters import Counter
from models_registry.persistence.storage import Storage

BATCH = 100

REFERENCES = (
    tables.UploadRow.blob_sha256,
    tables.ModelFileRow.sha256,
    tables.DatasetFileRow.sha256,
    tables.DatasetVersionRow.archive_sha256,
    tables.CheckpointRow.sha256,
    tables.FederationRow.open_set_sha256,
    tables.FederationRoundRow.consensus_sha256,
    tables.FederationReplyRow.blob_sha256,
)


@dataclass(frozen=True)
class BlobSummary:
    """Bytes that no row needs, and those of them that the next sweep deletes."""

    blobs: int
    size_bytes: int
    ready_blobs: int
    ready_bytes: int
    orphans: int
    """Keys of the store that no row names, and that are older than the grace."""
    orphan_bytes: int


def is_needed(blob: type[tables.BlobRow] = tables.BlobRow) -> sa.ColumnElement[bool]:
    """Return the condition that some row needs a blob."""
    return sa.or_(*(sa.exists().where(column == blob.sha256) for column in REFERENCES))


def preview(sessions: database.Sessions, storage: Storage, *, grace: timedelta) -> BlobSummary:
    """Return how much no row needs; nothing changes. The whole store is listed."""
    blob = tables.BlobRow
    with sessions() as session:
        before = database.now(session) - grace
        counts = []
        for conditions in ((), (blob.marked_at <= before,)):
            query = sa.select(sa.func.count(), sa.func.sum(blob.size_bytes))
            count, size_bytes = session.execute(query.where(~is_needed(), *conditions)).one()
            counts += [count, int(size_bytes or 0)]
    orphans, orphan_bytes = 0, 0
    stored = storage.stored_before(before)
    while some := list(itertools.islice(stored, BATCH)):
        for key in _unknown(sessions, some):
            orphans += 1
            orphan_bytes += storage.size(key) or 0
    return BlobSummary(counts[0], counts[1], counts[2], counts[3], orphans, orphan_bytes)


def sweep(sessions: database.Sessions, storage: Storage, *, grace: timedelta) -> int:
    """Delete blobs that no row has needed for `grace`, and older bytes without a row.

    The row is deleted first, in a transaction that looks again, then the bytes. A crash in between
    leaves bytes without a row, which the next sweep finds by listing the store. Return how many
    blobs and bytes without a row were deleted.
    """
    with sessions.begin() as session:
        before = database.now(session) - grace
        _mark(session)
    swept = 0
    after = ""
    while True:
        with sessions.begin() as session:
            taken, keys = _take_some(session, grace, after)
        for key in keys:
            storage.delete(key, unless_stored_since=before)
        swept += len(keys)
        if not taken:
            break
        after = taken[-1]
    storage.discard_unfinished(before)
    stored = storage.stored_before(before)
    while some := list(itertools.islice(stored, BATCH)):
        for key in _unknown(sessions, some):
            storage.delete(key, unless_stored_since=before)
            swept += 1
    return swept


def _mark(session: Session) -> None:
    blob = tables.BlobRow
    mark = sa.update(blob).execution_options(synchronize_session=False)
    session.execute(
        mark.where(blob.marked_at.is_(None), ~is_needed()).values(marked_at=database.now(session))
    )
    # Needed again, by a row that names a blob which was there before.
    session.execute(mark.where(blob.marked_at.is_not(None), is_needed()).values(marked_at=None))


def _take_some(
    session: Session, grace: timedelta, after: str
) -> tuple[Sequence[str], Sequence[str]]:
    """Delete the rows of some blobs; return those looked at, and the storage keys of the deleted.

    A row that names a blob waits for the blob's lock, or we wait for that row: so what is needed
    is asked after the lock, in a statement of its own, which sees what was committed meanwhile.
    """
    blob = tables.BlobRow
    long_marked = sa.select(blob.sha256).where(
        blob.marked_at <= database.now(session) - grace, blob.sha256 > after
    )
    locked = long_marked.order_by(blob.sha256).limit(BATCH).with_for_update(skip_locked=True)
    looked_at = session.scalars(locked).all()
    deleted = session.execute(
        sa.delete(blob)
        .where(blob.sha256.in_(looked_at), blob.marked_at.is_not(None), ~is_needed())
        .returning(blob.storage_key, blob.size_bytes)
        .execution_options(synchronize_session=False)
    ).all()
    if deleted:
        counters.add(session, Counter.COLLECTED_BLOBS, len(deleted))
        counters.add(session, Counter.COLLECTED_BYTES, sum(size for _, size in deleted))
    return looked_at, [key for key, _ in deleted]


def _unknown(sessions: database.Sessions, keys: list[str]) -> list[str]:
    """Return those of the storage's keys that no row names, nor belong to an open upload."""
    with sessions() as session:
        known = {
            key
            for column in (tables.BlobRow.storage_key, tables.UploadPartRow.storage_key)
            for key in session.scalars(sa.select(column).where(column.in_(keys)))
        }
        upload = tables.UploadRow
        # Parts that clients have put into the bucket themselves have no row until the end.
        sending = {
            storage.whole_key(upload_id)
            for upload_id in session.scalars(
                sa.select(upload.id).where(upload.state == uploads.OPEN)
            )
        }
    return [key for key in keys if key not in known and key.rpartition("/")[0] not in sending]
