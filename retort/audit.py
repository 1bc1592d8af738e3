"""The audit log of a project; for administrators."""

from collections.abc import Iterator
from datetime import datetime

from retort import transport, types


class Audit(transport.Resource):
    """Who did what to keys, aliases, deletions and rules."""

    def list(
        self,
        *,
        action: str | None = None,
        subject: str | None = None,
        key_id: str | None = None,
        actor: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        page_size: int = 100,
    ) -> Iterator[types.AuditEntry]:
        """Walk through the entries, newest first; `action` may be a kind such as `key`."""
        query = {
            "action": action,
            "subject": subject,
            "key_id": key_id,
            "actor": actor,
            "since": since.isoformat() if since else None,
            "until": until.isoformat() if until else None,
        }
        return self._http.pages(types.AuditEntry, "/v1/audit", query=query, size=page_size)
