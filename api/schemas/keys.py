"""Bodies of API keys."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from api.schemas import rows
from api.schemas.times import UtcTime
from models_registry.access import keys, scopes


class KeyCreate(BaseModel):
    """A key to create."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=96, description="What the key is for.")
    role: keys.Role = Field(default=keys.Role.EDITOR)
    expires_at: UtcTime | None = Field(default=None, description="Never, if null.")
    scopes: list[str] | None = Field(
        default=None,
        max_length=len(scopes.SCOPES),
        description="What it may touch, beside its role: `jobs:write`, `models:read`. Whoever may "
        "write an area may read it. All that the role allows, if null.",
        examples=[["jobs:write", "models:read"]],
    )


class KeyRotate(BaseModel):
    """How a key is given a new secret."""

    model_config = ConfigDict(extra="forbid")

    overlap_seconds: int = Field(
        default=int(keys.DEFAULT_OVERLAP.total_seconds()),
        ge=0,
        le=int(keys.LONGEST_OVERLAP.total_seconds()),
        description="For how long the old secret opens the same; 0 ends it at once.",
    )


class KeyRead(rows.RowRead):
    """A key, without its secret."""

    id: str
    name: str
    role: str
    scopes: list[str] | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    rotated_at: datetime | None
    former_expires_at: datetime | None = Field(
        description="Until when the secret before the last rotation opens the same."
    )
    former_last_used_at: datetime | None


class KeyCreated(KeyRead):
    """A new key with its text, which no other response contains."""

    api_key: str = Field(description="Send it as `Authorization: Bearer <api_key>`.")
