"""Bodies of API keys."""

from datetime import datetime
from typing import Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from models_registry.access import keys
from models_registry.persistence import tables


class KeyCreate(BaseModel):
    """A key to create."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=96, description="What the key is for.")
    role: keys.Role = Field(default=keys.Role.EDITOR)
    expires_at: AwareDatetime | None = Field(default=None, description="Never, if null.")


class KeyRead(BaseModel):
    """A key, without its secret."""

    id: str
    name: str
    role: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None

    @classmethod
    def of(cls, key: tables.ApiKeyRow) -> Self:
        """Return the body of a row."""
        return cls(
            id=key.id,
            name=key.name,
            role=key.role,
            created_at=key.created_at,
            expires_at=key.expires_at,
            revoked_at=key.revoked_at,
            last_used_at=key.last_used_at,
        )


class KeyCreated(KeyRead):
    """A new key with its text, which no other response contains."""

    api_key: str = Field(description="Send it as `Authorization: Bearer <api_key>`.")
