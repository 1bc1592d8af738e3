"""Webhook endpoints: the addresses that a project has told of its events."""

from collections.abc import Sequence
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import errors, ids
from models_registry.artifacts import input_checks
from models_registry.errors import Fault
from models_registry.persistence import database, paging, tables
from models_registry.webhooks import signatures
from models_registry.webhooks.event_types import EVENT_TYPES

MOST_ENDPOINTS = 20
OVERLAP = timedelta(hours=24)
BY_CALLER = "disabled_by_caller"


def create(
    session: Session,
    *,
    project_id: str,
    url: str,
    events: Sequence[str] | None,
    description: str,
) -> tables.WebhookEndpointRow:
    """Create an endpoint, whose URL was checked by `addresses.check_url`, with a new secret.

    Raises: errors.Refused for an unknown event; errors.Conflict for too many endpoints.
    """
    _check_events(events)
    row = tables.WebhookEndpointRow
    # Held, so that of two at once the second counts the first.
    project = tables.ProjectRow
    mine = sa.select(project.id).where(project.id == project_id)
    session.scalars(mine.with_for_update(key_share=True)).one()
    count = session.scalars(
        sa.select(sa.func.count()).select_from(row).where(row.project_id == project_id)
    ).one()
    if count >= MOST_ENDPOINTS:
        raise errors.Conflict(
            f"the project has {count} webhook endpoints, and may have {MOST_ENDPOINTS}: delete "
            "one first",
            code="too_many_endpoints",
        )
    now = database.now(session)
    made = row(
        id=ids.new("whe"),
        project_id=project_id,
        url=url,
        description=input_checks.printable(description),
        events=_distinct(events),
        secret=signatures.new_secret(),
        enabled=True,
        created_at=now,
        updated_at=now,
    )
    session.add(made)
    session.flush()
    return made


def page(
    session: Session, *, project_id: str, wanted: paging.PageRequest
) -> paging.Page[tables.WebhookEndpointRow]:
    """Return a page of the project's endpoints, newest first."""
    row = tables.WebhookEndpointRow
    query = sa.select(row).where(row.project_id == project_id)
    return paging.take(session, query, by=(row.created_at, row.id), wanted=wanted)


def get(
    session: Session, *, project_id: str, endpoint_id: str, lock: bool = False
) -> tables.WebhookEndpointRow:
    """Return an endpoint of the project; with `lock`, held until the transaction ends.

    Raises: errors.NotFound, also for another project's endpoint.
    """
    row = tables.WebhookEndpointRow
    mine = sa.select(row).where(row.id == endpoint_id, row.project_id == project_id)
    found = session.scalars(mine.with_for_update(key_share=True) if lock else mine).one_or_none()
    if found is None:
        raise errors.NotFound(f"There is no webhook endpoint {endpoint_id[:60]!r}.")
    return found


def change(
    session: Session,
    endpoint: tables.WebhookEndpointRow,
    *,
    url: str | None = None,
    events: Sequence[str] | None = None,
    all_events: bool = False,
    description: str | None = None,
    enabled: bool | None = None,
) -> None:
    """Replace what is given; `all_events` takes the filter away.

    An endpoint that is enabled starts anew: what it failed at before no longer counts, and what
    waited for it is sent.

    Raises: errors.Refused for an unknown event.
    """
    now = database.now(session)
    if url is not None:
        endpoint.url = url
    if all_events:
        endpoint.events = None
    elif events is not None:
        _check_events(events)
        endpoint.events = _distinct(events)
    if description is not None:
        endpoint.description = input_checks.printable(description)
    if enabled and not endpoint.enabled:
        endpoint.enabled, endpoint.failing_since = True, None
        endpoint.disabled_at = endpoint.disabled_reason = endpoint.disabled_message = None
    elif enabled is False and endpoint.enabled:
        endpoint.enabled, endpoint.disabled_at = False, now
        endpoint.disabled_reason = BY_CALLER
        endpoint.disabled_message = "It was disabled by hand."
    endpoint.updated_at = now
    session.flush()


def rotate_secret(session: Session, endpoint: tables.WebhookEndpointRow) -> None:
    """Give an endpoint a new secret; deliveries are signed with the former one too for a day."""
    now = database.now(session)
    endpoint.former_secret, endpoint.former_secret_expires_at = endpoint.secret, now + OVERLAP
    endpoint.secret, endpoint.updated_at = signatures.new_secret(), now
    session.flush()


def delete(session: Session, *, project_id: str, endpoint_id: str) -> None:
    """Delete an endpoint with its deliveries, also those that were not sent yet.

    Raises: errors.NotFound.
    """
    get(session, project_id=project_id, endpoint_id=endpoint_id)
    delivery, row = tables.WebhookDeliveryRow, tables.WebhookEndpointRow
    # In this order, in which senders lock them as well.
    session.execute(sa.delete(delivery).where(delivery.endpoint_id == endpoint_id))
    session.execute(sa.delete(row).where(row.id == endpoint_id))


def count_disabled(session: Session) -> dict[str, int]:
    """Return how many endpoints are enabled, and how many are disabled, by reason."""
    row = tables.WebhookEndpointRow
    reason = sa.func.coalesce(row.disabled_reason, "")
    counted = session.execute(sa.select(reason, sa.func.count()).group_by(reason)).all()
    return {str(why): count for why, count in counted}


def _distinct(events: Sequence[str] | None) -> list[str] | None:
    return None if events is None else sorted(set(events))


def _check_events(events: Sequence[str] | None) -> None:
    faults = [
        Fault(
            f"/events/{place}",
            "unknown_event",
            f"events[{place}] must be one of {', '.join(EVENT_TYPES)}, got {name[:80]!r}",
        )
        for place, name in enumerate(events or ())
        if name not in EVENT_TYPES
    ]
    input_checks.refuse(faults, code="unknown_event")
