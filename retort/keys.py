"""API keys of a project; for administrators."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from retort import transport, types


class Keys(transport.Resource):
    """The project's API keys."""

    def create(
        self,
        name: str,
        *,
        role: str = "editor",
        expires_at: datetime | None = None,
        scopes: Sequence[str] | None = None,
    ) -> types.NewApiKey:
        """Create a key; only this answer contains its text.

        `scopes` such as `jobs:write` limit it further than its role does.
        """
        body: dict[str, object] = {
            "name": name,
            "role": role,
            "expires_at": expires_at.isoformat() if expires_at else None,
        }
        if scopes is not None:  # an older server knows none
            body["scopes"] = list(scopes)
        return self._http.fetch(types.NewApiKey, "POST", "/v1/api-keys", body=body)

    def list(self, *, page_size: int = 100) -> Iterator[types.ApiKey]:
        """Walk through the keys, newest first, without their text."""
        return self._http.pages(types.ApiKey, "/v1/api-keys", size=page_size)

    def rotate(self, key_id: str, *, overlap_seconds: int = 86_400) -> types.NewApiKey:
        """Give a key a new secret; the old one opens the same for a while.

        Only this answer contains the new text.
        """
        body = {"overlap_seconds": overlap_seconds}
        path = f"/v1/api-keys/{key_id}/rotate"
        return self._http.fetch(types.NewApiKey, "POST", path, body=body)

    def revoke(self, key_id: str) -> None:
        """Revoke a key at once."""
        self._http.request("DELETE", f"/v1/api-keys/{key_id}")
