"""Webhook endpoints of a project, and what became of each delivery."""

from collections.abc import Iterator, Sequence

from retort import transport, types

_PATH = "/v1/webhook-endpoints"


class Webhooks(transport.Resource):
    """The project's webhook endpoints."""

    def create(
        self, url: str, *, events: Sequence[str] | None = None, description: str = ""
    ) -> types.NewWebhookEndpoint:
        """Create an endpoint that is told of `events`, or of all; only this answer has its secret.

        Verify deliveries with that secret and any library of Standard Webhooks.
        """
        body = {"url": url, "events": events, "description": description}
        return self._http.fetch(types.NewWebhookEndpoint, "POST", _PATH, body=body)

    def list(self, *, page_size: int = 100) -> Iterator[types.WebhookEndpoint]:
        """Walk through the endpoints, newest first."""
        return self._http.pages(types.WebhookEndpoint, _PATH, size=page_size)

    def get(self, endpoint_id: str) -> types.WebhookEndpoint:
        """Return an endpoint as it is now."""
        return self._http.fetch(types.WebhookEndpoint, "GET", f"{_PATH}/{endpoint_id}")

    def change(self, endpoint_id: str, **changes: object) -> types.WebhookEndpoint:
        """Replace `url`, `events` (None: all), `description` or `enabled`."""
        path = f"{_PATH}/{endpoint_id}"
        return self._http.fetch(types.WebhookEndpoint, "PATCH", path, body=changes)

    def rotate_secret(self, endpoint_id: str) -> types.NewWebhookEndpoint:
        """Replace the secret; for 24 h, deliveries are signed with the former one as well."""
        path = f"{_PATH}/{endpoint_id}/rotate-secret"
        return self._http.fetch(types.NewWebhookEndpoint, "POST", path)

    def delete(self, endpoint_id: str) -> None:
        """Delete an endpoint with its deliveries."""
        self._http.request("DELETE", f"{_PATH}/{endpoint_id}")

    def deliveries(
        self, endpoint_id: str, *, state: str | None = None, page_size: int = 100
    ) -> Iterator[types.WebhookDelivery]:
        """Walk through the deliveries of the last 30 days, newest first."""
        path = f"{_PATH}/{endpoint_id}/deliveries"
        query = {"state": state}
        return self._http.pages(types.WebhookDelivery, path, query=query, size=page_size)

    def redeliver(self, endpoint_id: str, delivery_id: str) -> types.WebhookDelivery:
        """Send a delivery again now, under the same `webhook-id`."""
        path = f"{_PATH}/{endpoint_id}/deliveries/{delivery_id}/redeliver"
        return self._http.fetch(types.WebhookDelivery, "POST", path)
