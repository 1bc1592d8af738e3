"""Uploads: parts that are joined to one immutable blob, from which a version is made.

`receive` and `complete` open short transactions of their own, since no transaction may be held
while bytes are transferred. All other functions run in the caller's transaction.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session

from models_registry import errors, ids
from models_registry.access import quotas
from models_registry.artifacts import input_checks
from models_registry.errors import Fault
from models_registry.persistence import database, paging, storage, tables, tombstones
from models_registry.settings import Settings

log = structlog.get_logger()

OPEN, COMPLETED, EXPIRED, DELETED = "open", "completed", "expired", "deleted"
PURPOSES = ("model", "dataset")
MAX_PARTS = 10_000
_MEBIBYTE = 2**20
_ROOM_LOCK = 0x7265746F7274  # any number that no other lock of this database has
_BATCH = 100
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"upl_[0-9a-z]{26}")
# Characters that some programs take for a path separator.
_SEPARATORS = frozenset(
    "/\\\u2044\u2215\u2216\u2571\u2572\u29f5\u29f6\u29f8\u29f9\ufe68\uff0f\uff3c"
)


@dataclass(frozen=True)
class Slot:
    """A part that will be received: its upload, number and size."""

    upload_id: str
    number: int
    size_bytes: int
    offset: int

    @property
    def place(self) -> storage.PartPlace:
        """Where the part goes in the byte store."""
        return storage.PartPlace(self.upload_id, self.offset)


# -- one upload ------------------------------------------------------------------------------


def create(
    session: Session,
    *,
    project_id: str,
    filename: str,
    size_bytes: int,
    sha256: str,
    purpose: str,
    settings: Settings,
    free_bytes: Callable[[], int | None] = lambda: None,
) -> tables.UploadRow:
    """Open an upload; `free_bytes` asks for the room in the store, where it can be known.

    What open uploads have announced and not yet sent counts as taken.

    Raises: errors.Refused for a name, digest or purpose that is not acceptable; errors.TooLarge;
    errors.QuotaExceeded; errors.StorageFull where the file does not fit.
    """
    if size_bytes > settings.upload_max_bytes:
        detail = f"size_bytes must be at most {settings.upload_max_bytes}, got {size_bytes}"
        fault = Fault("/size_bytes", "too_large", detail)
        raise errors.TooLarge(detail, faults=[fault])
    faults = [*_faults_of_filename(filename), *_faults_of_size(size_bytes)]
    if not _SHA256.fullmatch(sha256.lower()):
        detail = f"sha256 must be the file's SHA-256 in 64 hexadecimal digits, got {sha256[:80]!r}"
        faults.append(Fault("/sha256", "bad_digest", detail))
    if purpose not in PURPOSES:
        detail = f"purpose must be one of {', '.join(PURPOSES)}, got {purpose[:80]!r}"
        faults.append(Fault("/purpose", "bad_purpose", detail))
    input_checks.refuse(faults, code="invalid_upload")
    limits = quotas.QuotaLimits.of_service(settings)
    quotas.check_upload(session, project_id=project_id, size_bytes=size_bytes, service=limits)
    part_size_bytes = _part_size(size_bytes, settings.upload_part_bytes)
    # While it is received, a part is beside its place.
    _check_room(session, size_bytes, min(part_size_bytes, size_bytes), free_bytes)
    now = database.now(session)
    row = tables.UploadRow(
        id=ids.new("upl"),
        project_id=project_id,
        filename=filename,
        purpose=purpose,
        size_bytes=size_bytes,
        sha256=sha256.lower(),
        part_size_bytes=part_size_bytes,
        state=OPEN,
        created_at=now,
        expires_at=now + timedelta(seconds=settings.upload_expiry_seconds),
    )
    session.add(row)
    session.flush()
    return row


def get(session: Session, *, project_id: str, upload_id: str) -> tables.UploadRow:
    """Return an upload that is open or completed.

    Raises: errors.NotFound; errors.Gone when it was deleted or has expired.
    """
    return _find(session, project_id=project_id, upload_id=upload_id, lock=False)


def page(
    session: Session, *, project_id: str, wanted: paging.PageRequest, state: str | None = None
) -> paging.Page[tables.UploadRow]:
    """Return a page of the uploads that are open or completed, newest first."""
    row = tables.UploadRow
    query = sa.select(row).where(
        row.project_id == project_id,
        row.state == state if state else row.state.in_((OPEN, COMPLETED)),
        (row.state != OPEN) | (row.expires_at > database.now(session)),
    )
    return paging.take(session, query, by=(row.created_at, row.id), wanted=wanted)


def parts(session: Session, upload: tables.UploadRow) -> dict[int, tables.UploadPartRow]:
    """Return the parts received so far, by number; none once the upload is completed."""
    row = tables.UploadPartRow
    query = sa.select(row).where(row.upload_id == upload.id).order_by(row.number)
    return {part.number: part for part in session.scalars(query)}


@dataclass(frozen=True)
class PartStatus:
    """One part of an upload: where to send it, and whether it is there."""

    number: int
    url: str
    size_bytes: int
    received: bool
    sha256: str | None
    """Of the bytes received; None before, and of those that were sent to the store itself."""


def statuses(
    store: storage.Storage,
    upload: tables.UploadRow,
    received: Mapping[int, tables.UploadPartRow],
    direct: Mapping[int, storage.StoredPart],
    *,
    at: datetime,
) -> list[PartStatus]:
    """Return all parts of an upload, given those that came through the API and the `direct` ones.

    A part that is not there yet is sent to the store itself where clients can reach it: to a URL
    that is valid until the upload expires, `at` being the present time.
    """
    is_open = upload.state == OPEN
    found = []
    for number in range(1, part_count(upload) + 1):
        slot = _slot_of(upload, number)
        is_there = not is_open or number in received or number in direct
        lifetime = max(upload.expires_at - at, timedelta(seconds=1))
        url = None if is_there else store.direct_url(slot.place, lifetime=lifetime)
        found.append(
            PartStatus(
                number,
                url or f"/v1/uploads/{upload.id}/parts/{number}",
                slot.size_bytes,
                is_there,
                received[number].sha256 if number in received else None,
            )
        )
    return found


def direct_parts(store: storage.Storage, upload: tables.UploadRow) -> dict[int, storage.StoredPart]:
    """Return the parts that are in the store without having passed the API, by number.

    It asks the store, so call it outside of transactions. Those of another size than their part
    are left out: they are missing.
    """
    found = {}
    for offset, part in store.direct_parts(upload.id).items():
        number, rest = divmod(offset, upload.part_size_bytes)
        if not rest and part.size_bytes == part_bytes(upload, number + 1):
            found[number + 1] = part
    return found


def part_count(upload: tables.UploadRow) -> int:
    """Return how many parts the upload has."""
    return -(-upload.size_bytes // upload.part_size_bytes)


def part_bytes(upload: tables.UploadRow, number: int) -> int:
    """Return the size of a part: all but the last are of the same size."""
    before = (number - 1) * upload.part_size_bytes
    return min(upload.part_size_bytes, upload.size_bytes - before)


def delete(session: Session, *, project_id: str, upload_id: str) -> list[str]:
    """Delete an upload; return the storage keys to delete once this is committed.

    Raises: errors.InUse while a version that was made from it waits for its inspection.
    """
    upload = _find(session, project_id=project_id, upload_id=upload_id, lock=True)
    if _is_awaited(session, upload):
        raise errors.InUse(
            f"{upload_id} is about to be inspected for a version: delete that version first"
        )
    upload.state, upload.blob_sha256 = DELETED, None
    upload.expires_at = database.now(session)
    return _drop_parts(session, upload)


def completed(
    session: Session, *, project_id: str, upload_id: str, purpose: str
) -> tables.UploadRow:
    """Return a completed upload, locked until the transaction ends.

    Raises: errors.Refused, pointing at `/upload`.
    """
    try:
        upload = _find(session, project_id=project_id, upload_id=upload_id, lock=True)
    except errors.NotFound as error:
        raise _refused_upload(error.code, error.message) from error
    if upload.state != COMPLETED:
        raise _refused_upload(
            "upload_not_completed",
            f"{upload_id} is {upload.state}: send its parts and POST "
            f"/v1/uploads/{upload_id}/complete first",
        )
    if upload.purpose != purpose:
        raise _refused_upload(
            "wrong_purpose",
            f"{upload_id} was made with purpose {upload.purpose!r}: a {purpose} needs an upload "
            f"with purpose {purpose!r}",
        )
    return upload


def adopt(session: Session, *, sha256: str, size_bytes: int, storage_key: str) -> tables.BlobRow:
    """Return the row of a blob whose bytes were just stored; create it if it is new.

    A mark of the sweep is taken away, and erasures see the time: they spare bytes that were put
    after it (`retention/erasures.py`).
    """
    row = tables.BlobRow
    now = database.now(session)
    session.execute(
        database.insert(session, row)
        .values(sha256=sha256, size_bytes=size_bytes, storage_key=storage_key, adopted_at=now)
        .on_conflict_do_update(
            index_elements=[row.sha256], set_={"adopted_at": now, "marked_at": None}
        )
    )
    return session.get_one(row, sha256, populate_existing=True)


# -- bytes -----------------------------------------------------------------------------------


def receive(
    sessions: database.Sessions,
    store: storage.Storage,
    *,
    project_id: str,
    upload_id: str,
    number: int,
    chunks: Iterable[bytes],
    announced_bytes: int | None,
    sha256: str | None,
    settings: Settings,
) -> None:
    """Store one part while it is received; the same part sent again changes nothing.

    Raises: errors.NotFound, errors.Gone, errors.Conflict for an upload that takes no parts;
    errors.TooLarge, errors.Refused, errors.DigestMismatch for other bytes than were announced.
    """
    with sessions.begin() as session:
        slot = _slot(session, project_id=project_id, upload_id=upload_id, number=number)
    if announced_bytes is not None:
        _check_size(slot, announced_bytes, is_whole=True)
    with store.put_part(_measured(slot, chunks), slot.place, expected=sha256) as stored:
        try:
            with sessions.begin() as session:
                superfluous = _record(session, project_id, slot, stored, settings)
        except errors.RegistryError:
            store.delete(stored.key)  # the upload was closed while its part was on the way
            raise
    forget(store, superfluous)


def complete(
    sessions: database.Sessions,
    store: storage.Storage,
    *,
    project_id: str,
    upload_id: str,
    settings: Settings,
) -> tables.UploadRow:
    """Join the parts to one verified blob; completing again returns the same.

    Parts of which the store has lost bytes, as after a loss of power, are forgotten: they are then
    missing like any that were never sent.

    Raises: errors.Conflict, naming the parts that are missing; errors.DigestMismatch.
    """
    with sessions() as session:
        upload = _find(session, project_id=project_id, upload_id=upload_id, lock=False)
    direct = direct_parts(store, upload)
    with sessions.begin() as session:
        upload = _find(session, project_id=project_id, upload_id=upload_id, lock=True)
        if upload.state == COMPLETED:
            return upload
        received = _all_parts(session, upload, direct)
        _prolong(session, upload, settings)
    try:
        stored = _assemble(store, upload, received)
    except errors.DigestMismatch:
        _forget_lost(sessions, store, upload)
        # Which of them differ cannot be known: they came without a digest.
        forget(store, (part.key for part in direct.values()))
        raise
    if stored is None:
        _forget_lost(sessions, store, upload)
    with sessions.begin() as session:
        upload = _find(session, project_id=project_id, upload_id=upload_id, lock=True)
        if upload.state == COMPLETED:  # by another request, with the same bytes
            return upload
        if stored is None:
            raise errors.Conflict(
                f"parts of {upload_id} changed while it was completed: complete it again",
                code="parts_changed",
            )
        adopt(
            session,
            sha256=stored.sha256,
            size_bytes=stored.size_bytes,
            storage_key=stored.key,
        )
        upload.state, upload.blob_sha256 = COMPLETED, stored.sha256
        upload.completed_at = _prolong(session, upload, settings)
        keys = _drop_parts(session, upload)
    forget(store, [*keys, *(part.key for part in direct.values())])
    log.info("upload_completed", upload_id=upload_id, size_bytes=stored.size_bytes)
    return upload


def forget(store: storage.Storage, keys: Iterable[str]) -> None:
    """Delete parts that no row names any more; what fails is left to the sweep of orphans."""
    try:
        for key in keys:
            store.delete(key)
    except errors.StorageDown as error:
        log.warning("parts_left_behind", reason=error.message)


def expire(session: Session, store: storage.Storage) -> int:
    """Close uploads that were idle for too long, and return how many.

    Their bytes go in the next call, when it is certain that the closing was committed. The blob
    of a completed upload is let go too, once no version waits for it: versions keep their own.
    """
    part, row = tables.UploadPartRow, tables.UploadRow
    closed = sa.select(row.id).where(row.state != OPEN)
    leftovers = session.scalars(
        sa.select(part)
        .where(part.upload_id.in_(closed))
        .limit(_BATCH)
        .with_for_update(skip_locked=True)
    ).all()
    for leftover in leftovers:
        store.delete(leftover.storage_key)
        session.delete(leftover)
    idle = session.scalars(
        sa.select(row)
        .where(row.state.in_((OPEN, COMPLETED)), row.expires_at < database.now(session))
        .order_by(row.expires_at)
        .limit(_BATCH)
        .with_for_update(skip_locked=True)
    ).all()
    expired = [upload for upload in idle if not _is_awaited(session, upload)]
    for upload in expired:
        upload.state, upload.blob_sha256 = EXPIRED, None
    session.flush()
    return len(expired)


# -- details ---------------------------------------------------------------------------------


def _find(session: Session, *, project_id: str, upload_id: str, lock: bool) -> tables.UploadRow:
    row = tables.UploadRow
    query = sa.select(row).where(row.id == upload_id, row.project_id == project_id)
    if lock:
        query = query.with_for_update()
    upload = session.scalars(query).one_or_none() if _ID.fullmatch(upload_id) else None
    is_closed = upload is not None and upload.state in (EXPIRED, DELETED)
    if upload is None or (is_closed and tombstones.is_forgotten(session, upload.expires_at)):
        raise errors.NotFound(f"no upload {input_checks.printable(upload_id[:60])} in this project")
    is_over = upload.state == OPEN and upload.expires_at <= database.now(session)
    if is_closed or is_over:
        what = "was deleted" if upload.state == DELETED else "has expired"
        raise errors.Gone(f"upload {upload_id} {what}: make a new one")
    return upload


def _slot(session: Session, *, project_id: str, upload_id: str, number: int) -> Slot:
    upload = _find(session, project_id=project_id, upload_id=upload_id, lock=False)
    if upload.state == COMPLETED:
        raise errors.Conflict(
            f"upload {upload_id} is completed and takes no more parts", code="upload_completed"
        )
    count = part_count(upload)
    if not 1 <= number <= count:
        raise errors.NotFound(f"upload {upload_id} has parts 1 to {count}, not {number}")
    return _slot_of(upload, number)


def _slot_of(upload: tables.UploadRow, number: int) -> Slot:
    offset = (number - 1) * upload.part_size_bytes
    return Slot(upload.id, number, part_bytes(upload, number), offset)


def _measured(slot: Slot, chunks: Iterable[bytes]) -> Iterator[bytes]:
    received = 0
    for chunk in chunks:
        received += len(chunk)
        _check_size(slot, received, is_whole=False)
        yield chunk
    _check_size(slot, received, is_whole=True)


def _check_size(slot: Slot, received: int, *, is_whole: bool) -> None:
    expected = f"part {slot.number} of {slot.upload_id} has {slot.size_bytes} bytes"
    if received > slot.size_bytes:
        raise errors.TooLarge(f"{expected}, got {received} or more", code="part_too_large")
    if is_whole and received < slot.size_bytes:
        raise errors.Refused(f"{expected}, got {received}: send it again", code="part_too_small")


def _record(
    session: Session, project_id: str, slot: Slot, stored: storage.StoredBlob, settings: Settings
) -> list[str]:
    """Write the row of a part; return the storage keys that it makes superfluous."""
    upload = _find(session, project_id=project_id, upload_id=slot.upload_id, lock=True)
    if upload.state == COMPLETED:
        raise errors.Conflict(
            f"upload {slot.upload_id} was completed meanwhile", code="upload_completed"
        )
    now = _prolong(session, upload, settings)
    part = session.get(tables.UploadPartRow, (slot.upload_id, slot.number), with_for_update=True)
    if part is None:
        part = tables.UploadPartRow(upload_id=slot.upload_id, number=slot.number)
        session.add(part)
        superfluous = []
    else:
        superfluous = [part.storage_key]
    part.size_bytes, part.sha256 = stored.size_bytes, stored.sha256
    part.storage_key, part.received_at = stored.key, now
    session.flush()
    return [key for key in superfluous if key != stored.key]


def _prolong(session: Session, upload: tables.UploadRow, settings: Settings) -> datetime:
    now = database.now(session)
    upload.expires_at = now + timedelta(seconds=settings.upload_expiry_seconds)
    session.flush()
    return now


def _all_parts(
    session: Session, upload: tables.UploadRow, direct: Mapping[int, storage.StoredPart]
) -> list[storage.StoredPart]:
    received = parts(session, upload)
    wanted = range(1, part_count(upload) + 1)
    missing = [n for n in wanted if n not in received and n not in direct]
    if missing:
        shown = ", ".join(str(number) for number in missing[:20])
        more = f" and {len(missing) - 20} more" if len(missing) > 20 else ""
        count = part_count(upload)
        raise errors.Conflict(
            f"{len(missing)} of {count} parts are missing: {shown}{more}; send them, then "
            "complete again",
            code="parts_missing",
            faults=[
                Fault(f"/parts/{number - 1}", "part_missing", f"part {number} is missing")
                for number in missing[:100]
            ],
        )
    return [
        storage.stored_part(
            received[number].storage_key,
            _slot_of(upload, number).place,
            part_bytes(upload, number),
        )
        if number in received
        else direct[number]
        for number in wanted
    ]


def _assemble(
    store: storage.Storage, upload: tables.UploadRow, received: list[storage.StoredPart]
) -> storage.StoredBlob | None:
    """Return the blob, or None where parts were taken away meanwhile."""
    try:
        return store.assemble(received, expected=upload.sha256)
    except storage.BytesNotFound:
        return None
    except errors.DigestMismatch as error:
        detail = (
            f"{error.message}. GET /v1/uploads/{upload.id} shows the SHA-256 of each part: send "
            "those that differ, then complete again"
        )
        fault = Fault("/sha256", error.code, detail)
        raise errors.DigestMismatch(detail, faults=[fault]) from error


def _forget_lost(
    sessions: database.Sessions, store: storage.Storage, upload: tables.UploadRow
) -> None:
    """Forget the parts whose bytes are no longer those that were received.

    Raises: errors.Conflict, naming them, if there are any and the upload is still open.
    """
    with sessions() as session:
        received = list(parts(session, upload).values())
    lost = [part for part in received if not _is_whole(store, upload, part)]
    with sessions.begin() as session:
        now = _find(session, project_id=upload.project_id, upload_id=upload.id, lock=True)
        if now.state != OPEN or not lost:
            return
        row = tables.UploadPartRow
        for part in lost:
            # One that was sent again in the meantime is another part.
            session.execute(
                sa.delete(row).where(
                    row.upload_id == upload.id,
                    row.number == part.number,
                    row.received_at == part.received_at,
                )
            )
    log.warning("parts_lost", upload_id=upload.id, parts=[part.number for part in lost])
    with sessions() as session:
        _all_parts(session, upload, direct_parts(store, upload))


def _is_whole(store: storage.Storage, upload: tables.UploadRow, part: tables.UploadPartRow) -> bool:
    """Return whether the store has the bytes of a part as they were received."""
    place = _slot_of(upload, part.number).place
    there = storage.stored_part(part.storage_key, place, part.size_bytes)
    digest = hashlib.sha256()
    try:
        with store.open(there.key, start=there.start, end=there.start + there.size_bytes) as stream:
            for chunk in stream:
                digest.update(chunk)
    except storage.BytesNotFound:
        return False
    return digest.hexdigest() == part.sha256


def _drop_parts(session: Session, upload: tables.UploadRow) -> list[str]:
    row = tables.UploadPartRow
    dropped = sa.delete(row).where(row.upload_id == upload.id).returning(row.storage_key)
    keys = list(set(session.scalars(dropped).all()))
    session.flush()
    return keys


def _is_awaited(session: Session, upload: tables.UploadRow) -> bool:
    model, dataset = tables.ModelVersionRow, tables.DatasetVersionRow
    return any(
        session.scalars(
            sa.select(row.id).where(row.upload_id == upload.id, row.state == "pending").limit(1)
        ).first()
        for row in (model, dataset)
    )


def _part_size(size_bytes: int, wanted: int) -> int:
    least = -(-size_bytes // MAX_PARTS)
    return max(wanted, -(-least // _MEBIBYTE) * _MEBIBYTE)


def _check_room(
    session: Session, size_bytes: int, part_bytes: int, free_bytes: Callable[[], int | None]
) -> None:
    if free_bytes() is None:
        return
    # Of two that fit only one by one, the second must see the first.
    database.one_at_a_time(session, _ROOM_LOCK)
    # In this order: a part that arrives in between is counted twice, not forgotten.
    promised = _outstanding_bytes(session)
    free = (free_bytes() or 0) - promised
    needed = size_bytes + part_bytes
    if free >= needed:
        return
    others = f", {promised} of its free bytes being promised to open uploads" if promised else ""
    detail = (
        f"size_bytes is {size_bytes}, for which the byte store needs {needed} free bytes: "
        f"{needed - free} are missing{others}; delete uploads, versions or jobs that nobody "
        "needs, or have the disk enlarged"
    )
    raise errors.StorageFull(detail, faults=[Fault("/size_bytes", "storage_full", detail)])


def _outstanding_bytes(session: Session) -> int:
    """Return what the open uploads of all projects have announced and not yet sent."""
    upload, part = tables.UploadRow, tables.UploadPartRow
    open_now = (upload.state == OPEN, upload.expires_at > database.now(session))
    announced = sa.select(sa.func.sum(upload.size_bytes)).where(*open_now)
    received = (
        sa.select(sa.func.sum(part.size_bytes))
        .join(upload, upload.id == part.upload_id)
        .where(*open_now)
    )
    whole, there = (session.scalars(query).one() or 0 for query in (announced, received))
    return int(whole) - int(there)


def _faults_of_size(size_bytes: int) -> Iterator[Fault]:
    if size_bytes < 1:
        detail = f"size_bytes must be at least 1, got {size_bytes}: an empty file holds nothing"
        yield Fault("/size_bytes", "out_of_range", detail)


def _faults_of_filename(filename: str) -> Iterator[Fault]:
    # Only kept as a label, but labels end up in headers, logs and somebody's shell.
    shown = input_checks.printable(filename[:100])
    why = None
    if not filename.strip() or len(filename.encode(errors="replace")) > 255:
        why = "a name has 1 to 255 bytes"
    elif any(unicodedata.category(character) in {"Cc", "Cf", "Cs"} for character in filename):
        why = "control and invisible characters are not allowed"
    elif any(character in _SEPARATORS for character in filename):
        why = "send the name of the file without its folders"
    elif _SEPARATORS & set(unicodedata.normalize("NFKC", filename)):
        why = "characters that look like a separator of folders are not allowed"
    elif ".." in filename or filename == ".":
        why = "'..' is not allowed"
    elif set("#?") & set(filename):
        why = "'#' and '?' are not allowed"
    if why:
        yield Fault("/filename", "bad_filename", f"filename {shown!r} is not acceptable: {why}")


def _refused_upload(code: str, detail: str) -> errors.Refused:
    return errors.Refused(detail, code=code, faults=[Fault("/upload", code, detail)])
