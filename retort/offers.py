"""What this server offers: its methods, networks and workers."""

from collections.abc import Iterator, Mapping

from retort import transport, types


class Offers(transport.Resource):
    """Methods, networks and workers of the server."""

    def methods(self) -> Iterator[types.Method]:
        """Walk through the methods, in the catalog's order."""
        return self._http.pages(types.Method, "/v1/methods")

    def method(self, name: str) -> types.Method:
        """Return one method with the schema of its hyper-parameters."""
        return self._http.fetch(types.Method, "GET", f"/v1/methods/{name}")

    def methods_for(self, spec: Mapping[str, object]) -> types.MethodRanking:
        """Return every method for a job's spec: those that fit first, best measured first.

        Of those that fit, the ones that did harm where they were measured come last.

        The spec's own `method` and `baseline` do not matter.
        """
        rest = {key: value for key, value in spec.items() if key not in ("method", "baseline")}
        return self._http.fetch(types.MethodRanking, "POST", "/v1/methods/rank", body=rest)

    def networks(self, *, search: str | None = None) -> Iterator[types.Network]:
        """Walk through the networks that students and teachers can have, our own first."""
        return self._http.pages(types.Network, "/v1/networks", query={"search": search})

    def recipes(self) -> types.Recipes:
        """Return every training recipe in full."""
        return self._http.fetch(types.Recipes, "GET", "/v1/recipes")

    def workers(self) -> Iterator[types.Worker]:
        """Walk through the registered workers."""
        return self._http.pages(types.Worker, "/v1/workers")
