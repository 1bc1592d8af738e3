"""Quotas of a project, and what it uses of each."""

from collections.abc import Mapping

from retort import transport, types


class Quotas(transport.Resource):
    """The project's quotas."""

    def usage(self) -> types.Usage:
        """Return every quota, and what is used of it."""
        return self._http.fetch(types.Usage, "GET", "/v1/usage")

    def change(self, limits: Mapping[str, float | None]) -> types.Usage:
        """Set limits by name; None leaves one to the service's limit. For administrators."""
        return self._http.fetch(types.Usage, "PATCH", "/v1/quotas", body=dict(limits))
