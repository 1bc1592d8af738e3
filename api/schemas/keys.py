"""Bodies of API keys."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from api.schemas import rows
from api.schemas.times import UtcTime
from models_registry.access import keys


class KeyCreate(BaseModel):
    """A key to create."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=96, description="What the key is for.")
    role: keys.Role = Field(default=keys.Role.EDITOR)
    expires_at: UtcTime | None = Field(default=None, description="Never, if null.")


class KeyRead(rows.RowRead):
    """A key, without its secret."""

    id: str
    name: str
    role: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


class KeyCreated(KeyRead):
    """A new key with its text, which no other response contains."""

    api_key: str = Field(description="Send it as `Authorization: Bearer <api_key>`.")
