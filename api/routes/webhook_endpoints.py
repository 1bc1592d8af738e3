"""Webhook endpoints: who is told of a project's events, and what became of each delivery."""

from fastapi import APIRouter

from api.dependencies import (
    AdminDep,
    EditorDep,
    PageDep,
    PublishDep,
    ReadersDep,
    ServiceDep,
    SessionsDep,
)
from api.schemas import lists
from api.schemas import webhooks as bodies
from models_registry.access import audit
from models_registry.webhooks import addresses, deliveries, endpoints
from models_registry.webhooks.addresses import Rules

router = APIRouter(prefix="/v1/webhook-endpoints", tags=["webhooks"])


@router.post("", operation_id="create_webhook_endpoint", status_code=201)
def create(
    wanted: bodies.WebhookEndpointCreate,
    caller: AdminDep,
    sessions: SessionsDep,
    service: ServiceDep,
) -> bodies.WebhookEndpointWithSecret:
    """Create an endpoint. Only this response contains its secret."""
    # Before the transaction: it asks the DNS.
    addresses.check_url(wanted.url, Rules.of(service.settings))
    with sessions.begin() as session:
        row = endpoints.create(
            session,
            project_id=caller.project_id,
            url=wanted.url,
            events=wanted.events,
            description=wanted.description,
        )
        audit.record(session, caller, "webhook_endpoint.created", row.id, url=row.url)
    return bodies.WebhookEndpointWithSecret.from_row(row)


@router.get("", operation_id="list_webhook_endpoints")
def index(
    caller: EditorDep, readers: ReadersDep, wanted: PageDep
) -> lists.ListRead[bodies.WebhookEndpointRead]:
    """List the project's endpoints, newest first, without their secrets."""
    with readers() as session:
        page = endpoints.page(session, project_id=caller.project_id, wanted=wanted)
    return lists.ListRead.of(page, bodies.WebhookEndpointRead.from_row)


@router.get("/{endpoint_id}", operation_id="get_webhook_endpoint")
def show(endpoint_id: str, caller: EditorDep, readers: ReadersDep) -> bodies.WebhookEndpointRead:
    """Return an endpoint as it is now."""
    with readers() as session:
        row = endpoints.get(session, project_id=caller.project_id, endpoint_id=endpoint_id)
    return bodies.WebhookEndpointRead.from_row(row)


@router.patch("/{endpoint_id}", operation_id="update_webhook_endpoint")
def update(
    endpoint_id: str,
    body: bodies.WebhookEndpointChange,
    caller: AdminDep,
    sessions: SessionsDep,
    service: ServiceDep,
) -> bodies.WebhookEndpointRead:
    """Replace URL, filter or description; disable, or enable again."""
    if body.url is not None:
        addresses.check_url(body.url, Rules.of(service.settings))
    with sessions.begin() as session:
        row = endpoints.get(
            session, project_id=caller.project_id, endpoint_id=endpoint_id, lock=True
        )
        endpoints.change(
            session,
            row,
            url=body.url,
            events=body.events,
            all_events="events" in body.model_fields_set and body.events is None,
            description=body.description,
            enabled=body.enabled,
        )
        audit.record(session, caller, "webhook_endpoint.changed", row.id, url=row.url)
    return bodies.WebhookEndpointRead.from_row(row)


@router.delete("/{endpoint_id}", operation_id="delete_webhook_endpoint", status_code=204)
def delete(endpoint_id: str, caller: AdminDep, sessions: SessionsDep) -> None:
    """Delete an endpoint with the log of its deliveries; what waits for it is not sent."""
    with sessions.begin() as session:
        endpoints.delete(session, project_id=caller.project_id, endpoint_id=endpoint_id)
        audit.record(session, caller, "webhook_endpoint.deleted", endpoint_id)


@router.post("/{endpoint_id}/rotate-secret", operation_id="rotate_webhook_secret")
def rotate_secret(
    endpoint_id: str, caller: AdminDep, sessions: SessionsDep
) -> bodies.WebhookEndpointWithSecret:
    """Replace the secret. For 24 h, deliveries are signed with the former one as well."""
    with sessions.begin() as session:
        row = endpoints.get(
            session, project_id=caller.project_id, endpoint_id=endpoint_id, lock=True
        )
        endpoints.rotate_secret(session, row)
        audit.record(session, caller, "webhook_endpoint.rotated", row.id)
    return bodies.WebhookEndpointWithSecret.from_row(row)


@router.get("/{endpoint_id}/deliveries", operation_id="list_webhook_deliveries")
def list_deliveries(
    endpoint_id: str,
    caller: EditorDep,
    readers: ReadersDep,
    wanted: PageDep,
    state: bodies.DeliveryState | None = None,
) -> lists.ListRead[bodies.WebhookDeliveryRead]:
    """List an endpoint's deliveries of the last 30 days, newest first, with every attempt."""
    with readers() as session:
        row = endpoints.get(session, project_id=caller.project_id, endpoint_id=endpoint_id)
        page = deliveries.page(session, endpoint_id=row.id, wanted=wanted, state=state)
        made = deliveries.attempts(session, delivery_ids=[one.id for one in page.rows])
    return lists.ListRead.of(page, lambda one: bodies.WebhookDeliveryRead.of(one, made[one.id]))


@router.get("/{endpoint_id}/deliveries/{delivery_id}", operation_id="get_webhook_delivery")
def show_delivery(
    endpoint_id: str, delivery_id: str, caller: EditorDep, readers: ReadersDep
) -> bodies.WebhookDeliveryRead:
    """Return a delivery with every attempt."""
    with readers() as session:
        row = endpoints.get(session, project_id=caller.project_id, endpoint_id=endpoint_id)
        one = deliveries.get(session, endpoint_id=row.id, delivery_id=delivery_id)
        made = deliveries.attempts(session, delivery_ids=[one.id])
    return bodies.WebhookDeliveryRead.of(one, made[one.id])


@router.post(
    "/{endpoint_id}/deliveries/{delivery_id}/redeliver",
    operation_id="redeliver_webhook",
    status_code=202,
)
def redeliver(
    endpoint_id: str,
    delivery_id: str,
    caller: EditorDep,
    sessions: SessionsDep,
    publish: PublishDep,
) -> bodies.WebhookDeliveryRead:
    """Send a delivery again now, whatever became of it, under the same `webhook-id`."""
    with sessions.begin() as session:
        row = endpoints.get(session, project_id=caller.project_id, endpoint_id=endpoint_id)
        one = deliveries.redeliver(session, row, delivery_id=delivery_id)
        made = deliveries.attempts(session, delivery_ids=[one.id])
    publish()
    return bodies.WebhookDeliveryRead.of(one, made[one.id])
