"""For how long a project keeps what jobs leave behind."""

from collections.abc import Mapping

from retort import transport, types


class Retention(transport.Resource):
    """The policy of the key's project."""

    def get(self) -> types.RetentionPolicy:
        """Return the policy."""
        return self._http.fetch(types.RetentionPolicy, "GET", "/v1/retention")

    def change(self, changes: Mapping[str, int | None]) -> types.RetentionPolicy:
        """Change fields of the policy, such as `logs_days`; None keeps for good."""
        return self._http.fetch(types.RetentionPolicy, "PATCH", "/v1/retention", body=dict(changes))

    def preview(self, changes: Mapping[str, int | None] | None = None) -> types.RetentionPreview:
        """Return what could be deleted, with the policy changed for this answer alone."""
        body = dict(changes or {})
        return self._http.fetch(types.RetentionPreview, "POST", "/v1/retention/preview", body=body)

    def sweep(self) -> types.RetentionPreview:
        """Ask for a sweep now; return what is due."""
        return self._http.fetch(types.RetentionPreview, "POST", "/v1/retention/sweep")
