"""Bodies of the audit log."""

from datetime import datetime
from typing import Any

from pydantic import Field

from api.schemas import rows


class AuditRead(rows.RowRead):
    """One entry: who did what, when, and with which key."""

    id: str
    at: datetime
    action: str = Field(description="Such as `key.created`, `alias.moved`, `dataset.deleted`.")
    subject: str = Field(description="Id or reference of the thing.")
    actor: str = Field(
        description="Name of the key as it was, subject of the token, or `maintenance`."
    )
    key_id: str | None
    request_id: str | None
    facts: dict[str, Any] = Field(description="What else is known, other for each action.")
