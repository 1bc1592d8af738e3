"""Federations, for the owner of a federated job: list, show, invite and revoke clients.

What a client does is in `federation.py`; it comes with a client key, not with the owner's.
"""

from collections.abc import Iterator, Sequence

from retort import transport, types


class Federations(transport.Resource):
    """The federations of the key's project."""

    def list(self, *, job: str | None = None, page_size: int = 100) -> Iterator[types.Federation]:
        """Walk through federations, newest first, or return that of one job."""
        return self._http.pages(
            types.Federation, "/v1/federations", query={"job": job}, size=page_size
        )

    def get(self, federation_id: str) -> types.Federation:
        """Return a federation as it is now."""
        return self._http.fetch(types.Federation, "GET", f"/v1/federations/{federation_id}")

    def invite(self, federation_id: str, name: str) -> types.InvitedClient:
        """Add a client and return it with its key, which no later call returns."""
        # Not repeated by itself: a lost response would lose the key, and the name is then taken.
        return self._http.fetch(
            types.InvitedClient,
            "POST",
            f"/v1/federations/{federation_id}/clients",
            body={"name": name},
        )

    def revoke(self, federation_id: str, client_id: str) -> None:
        """Revoke a client's key immediately."""
        self._http.request("DELETE", f"/v1/federations/{federation_id}/clients/{client_id}")

    def clients(self, federation_id: str) -> Iterator[types.FederationClient]:
        """Walk through the clients, the last invited first."""
        return self._http.pages(types.FederationClient, f"/v1/federations/{federation_id}/clients")

    def rounds(self, federation_id: str) -> Sequence[types.FederationRound]:
        """Return all rounds that were opened, in order."""
        path = f"/v1/federations/{federation_id}/rounds"
        return self._http.fetch(types.Page[types.FederationRound], "GET", path).data
