"""Pictures that somebody tries a version with, and what its ONNX export says of them.

A request is a row with the pictures, a message to a worker, and minutes later nothing: the pictures
go with the answer, and the row when it expires. It is for trying out, not for serving, so what a
project may have waiting is bounded, and a request whose worker is lost is not repeated: its caller
has left by then, and sends it again.
"""

import base64
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import errors, ids
from models_registry.access import quotas
from models_registry.artifacts import exports, input_checks, models
from models_registry.errors import Fault
from models_registry.persistence import database, outbox, tables
from workers.distill.config import exports as rules

TASK, QUEUE = "models.predict", "inspect"
QUEUED, RUNNING, READY, FAILED = "queued", "running", "ready", "failed"
MOST_PICTURES = 32
MOST_BYTES = 8 * 2**20
"""Of all pictures of a request together, as files."""
MOST_WAITING = 4
KEPT_FOR = timedelta(minutes=5)


def request(
    session: Session, *, version: tables.ModelVersionRow, pictures: Sequence[str]
) -> tables.PredictionRow:
    """Ask a worker what a version says of pictures: files such as PNG and JPEG, in base64.

    Raises: errors.Refused for what are no such files; errors.Conflict for a version without an ONNX
    export, or whose network can have none; errors.RateLimited where too many of the project's
    requests wait.
    """
    input_checks.refuse(list(_faults(pictures)), code="bad_pictures")
    _check_exportable(version)
    export = exports.newest_onnx(session, version)
    if export is None:
        reference = models.reference_of(version)
        raise errors.Conflict(
            f"{reference} has no ONNX export that is ready, and answers come from one: POST "
            f'{{"format": "onnx"}} to its exports, or `retort export {reference} --wait`',
            code="export_needed",
        )
    # Of requests at the same time, the second counts the first.
    quotas.hold(session, version.project_id)
    row = tables.PredictionRow
    now = database.now(session)
    waiting = sa.select(sa.func.count()).where(
        row.project_id == version.project_id,
        row.state.in_((QUEUED, RUNNING)),
        row.expires_at > now,
    )
    if session.scalars(waiting).one() >= MOST_WAITING:
        raise errors.RateLimited(
            f"{MOST_WAITING} requests of the project wait for an answer already: wait for one",
            retry_after_seconds=2.0,
        )
    made = tables.PredictionRow(
        id=ids.new("prd"),
        project_id=version.project_id,
        version_id=version.id,
        export_id=export.id,
        pictures=list(pictures),
        state=QUEUED,
        created_at=now,
        expires_at=now + KEPT_FOR,
    )
    session.add(made)
    session.flush()
    # Before the inspections that wait in the same queue: somebody is looking.
    outbox.add(session, task=TASK, queue=QUEUE, payload={"prediction_id": made.id}, priority=9)
    session.flush()
    return made


def get(
    session: Session, *, version: tables.ModelVersionRow, prediction_id: str
) -> tables.PredictionRow:
    """Return a request of a version. Raises: errors.NotFound."""
    row = tables.PredictionRow
    query = sa.select(row).where(
        row.id == prediction_id,
        row.version_id == version.id,
        row.expires_at > database.now(session),
    )
    found = session.scalars(query).one_or_none()
    if found is None:
        shown = input_checks.printable(prediction_id[:60])
        raise errors.NotFound(
            f"{models.reference_of(version)} has no prediction {shown}; they are kept for "
            f"{KEPT_FOR.total_seconds():g} s"
        )
    return found


def find(session: Session, prediction_id: str) -> tables.PredictionRow | None:
    """Return a request by its id alone, or None."""
    return session.get(tables.PredictionRow, prediction_id)


def claim(session: Session, prediction_id: str) -> tables.PredictionRow | None:
    """Return a waiting request for its worker, once; None for one that is none any more."""
    row = tables.PredictionRow
    claimed = session.scalars(
        sa.update(row)
        .where(row.id == prediction_id, row.state == QUEUED, row.expires_at > database.now(session))
        .values(state=RUNNING)
        .returning(row.id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    return None if claimed is None else session.get_one(row, claimed, populate_existing=True)


# Any: JSON.
def finish(
    session: Session,
    prediction_id: str,
    *,
    answer: dict[str, Any] | None = None,
    failure: dict[str, Any] | None = None,
) -> None:
    """Record what was answered, or why nothing was, and let go of the pictures."""
    row = session.get(
        tables.PredictionRow, prediction_id, populate_existing=True, with_for_update=True
    )
    if row is None:
        return  # its version was deleted
    row.state = READY if failure is None else FAILED
    row.answer, row.failure, row.pictures = answer, failure, None
    session.flush()


def sweep(session: Session) -> int:
    """Delete requests that have expired; return how many."""
    row = tables.PredictionRow
    expired = sa.delete(row).where(row.expires_at <= database.now(session)).returning(row.id)
    return len(session.scalars(expired.execution_options(synchronize_session=False)).all())


def decoded(pictures: Sequence[str]) -> list[bytes]:
    """Return the files of a request."""
    return [base64.b64decode(picture, validate=True) for picture in pictures]


def _check_exportable(version: tables.ModelVersionRow) -> None:
    """Refuse a version whose network can have no ONNX export, rather than ask for one."""
    choice = rules.ExportChoice(format="onnx")
    for violation in rules.faults(choice, network=version.network, task=version.task):
        raise errors.Conflict(
            f"{models.reference_of(version)} cannot be tried, because answers come from an ONNX "
            f"export. {violation.message}",
            code=violation.code,
        )


def _faults(pictures: Sequence[str]) -> list[Fault]:
    if not 1 <= len(pictures) <= MOST_PICTURES:
        detail = f"pictures must be 1 to {MOST_PICTURES}, got {len(pictures)}: send several times"
        return [Fault("/pictures", "picture_count", detail)]
    faults, total = [], 0
    for place, picture in enumerate(pictures):
        try:
            content = base64.b64decode(picture, validate=True)
        except ValueError:
            detail = f"picture {place} is not base64: send the bytes of its file so encoded"
            faults.append(Fault(f"/pictures/{place}", "bad_base64", detail))
            continue
        total += len(content)
        if not content:
            detail = f"picture {place} is empty: send the bytes of its file"
            faults.append(Fault(f"/pictures/{place}", "empty", detail))
    if total > MOST_BYTES:
        detail = (
            f"pictures have {total} bytes together, and may have {MOST_BYTES}: send fewer, or "
            "smaller ones"
        )
        faults.append(Fault("/pictures", "too_large", detail))
    return faults
