"""API keys of a project; for administrators."""

from collections.abc import Iterator
from datetime import datetime

from retort import transport, types


class Keys(transport.Resource):
    """The project's API keys."""

    def create(
        self, name: str, *, role: str = "editor", expires_at: datetime | None = None
    ) -> types.NewApiKey:
        """Create a key; only this answer contains its text."""
        body = {
            "name": name,
            "role": role,
            "expires_at": expires_at.isoformat() if expires_at else None,
        }
        return self._http.fetch(types.NewApiKey, "POST", "/v1/api-keys", body=body)

    def list(self, *, page_size: int = 100) -> Iterator[types.ApiKey]:
        """Walk through the keys, newest first, without their text."""
        return self._http.pages(types.ApiKey, "/v1/api-keys", size=page_size)

    def revoke(self, key_id: str) -> None:
        """Revoke a key at once."""
        self._http.request("DELETE", f"/v1/api-keys/{key_id}")
