"""Bodies of webhook endpoints and deliveries."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from api.schemas import rows
from models_registry.persistence import tables
from models_registry.webhooks import addresses, deliveries
from models_registry.webhooks.event_types import EVENT_TYPES

DeliveryState = Literal["pending", "delivered", "failed"]
_EVENTS = f"Types of events to send: {', '.join(EVENT_TYPES)}. Null: all of them."


class WebhookEndpointCreate(BaseModel):
    """An address that is to be told of the project's events."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(
        min_length=1,
        max_length=addresses.MAX_URL_CHARACTERS,
        description="https:// and a host with public addresses. Redirects are not followed.",
    )
    events: list[str] | None = Field(
        default=None, min_length=1, max_length=len(EVENT_TYPES), description=_EVENTS
    )
    description: str = Field(default="", max_length=200, description="What the endpoint is for.")


class WebhookEndpointChange(BaseModel):
    """What to replace; what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    url: str | None = Field(default=None, min_length=1, max_length=addresses.MAX_URL_CHARACTERS)
    events: list[str] | None = Field(
        default=None, min_length=1, max_length=len(EVENT_TYPES), description=_EVENTS
    )
    description: str | None = Field(default=None, max_length=200)
    enabled: bool | None = Field(
        default=None,
        description="True starts a disabled endpoint anew: what waits for it is sent. Events that "
        "happen while it is disabled are not kept for it.",
    )


class WebhookEndpointRead(rows.RowRead):
    """A webhook endpoint, without its secret."""

    id: str
    url: str
    description: str
    events: list[str] | None = Field(description="Types of events that are sent; null: all.")
    enabled: bool
    disabled_reason: str | None = Field(
        description="`gone` (it answered 410), `failing` (for days) or `disabled_by_caller`."
    )
    disabled_message: str | None
    disabled_at: datetime | None
    failing_since: datetime | None = Field(
        description="The first failure since the last success; null while all is well."
    )
    last_delivered_at: datetime | None
    former_secret_expires_at: datetime | None = Field(
        description="Until then, deliveries are signed with the secret before the present one too."
    )
    created_at: datetime
    updated_at: datetime


class WebhookEndpointWithSecret(WebhookEndpointRead):
    """A webhook endpoint with its new secret, which no other response contains."""

    secret: str = Field(
        description="`whsec_...`: verify deliveries with any library of Standard Webhooks."
    )


class WebhookAttemptRead(rows.RowRead):
    """One request of a delivery."""

    number: int
    started_at: datetime
    ended_at: datetime | None = Field(
        description="Null while it is under way, and where its sender was lost."
    )
    status: int | None = Field(description="HTTP status of the response; null without one.")
    error: str | None = Field(description="Why it failed; null for a success.")
    excerpt: str | None = Field(
        description="The beginning of the response's body, control characters replaced."
    )


class WebhookDeliveryRead(rows.RowRead):
    """One event on its way to one endpoint."""

    id: str
    message_id: str = Field(description="`webhook-id`: of the event, the same in every attempt.")
    type: str
    payload: dict[str, Any]
    state: DeliveryState
    next_attempt_at: datetime | None = Field(description="Null once it has ended.")
    created_at: datetime
    ended_at: datetime | None
    attempts: list[WebhookAttemptRead] = Field(description="Oldest first.")

    @classmethod
    def of(
        cls, row: tables.WebhookDeliveryRow, attempts: Sequence[tables.WebhookAttemptRow]
    ) -> Self:
        """Return the body of a row."""
        is_pending = row.state == deliveries.PENDING
        return cls.from_row(
            row,
            next_attempt_at=row.next_attempt_at if is_pending else None,
            attempts=[WebhookAttemptRead.from_row(attempt) for attempt in attempts],
        )
