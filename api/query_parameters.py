"""Refuses query parameters that a route does not read: a misspelt filter must not return all."""

import difflib

from fastapi import Request

from models_registry import errors
from models_registry.artifacts import input_checks

PREFIX = "x-query-prefix"
"""Field of an operation: how the names of its open set of parameters begin, as in `label.`."""


async def check(request: Request) -> None:
    """Refuse parameters of the URL that the route has no use for.

    Asynchronous, though it waits for nothing: a plain function would cost each request a thread.

    Raises: errors.Refused, naming each with the parameter that was probably meant.
    """
    described = request.app.openapi()["paths"].get(request.scope["route"].path)
    if described is None:  # a page for people
        return
    operation = described[request.method.lower()]
    known = [one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"]
    prefix = operation.get(PREFIX)
    faults = [
        errors.Fault(f"/query/{name}", "unknown_parameter", _sentence(name, known))
        for name in dict.fromkeys(request.query_params)
        if name not in known and not (prefix and name.startswith(prefix))
    ]
    if faults:
        raise errors.Refused(faults[0].detail, code="invalid_request", faults=faults)


def _sentence(name: str, known: list[str]) -> str:
    shown = input_checks.printable(name[:60])
    if not known:
        return f"{shown!r} is no parameter of this address, which has none"
    near = difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}"
    return f"{shown!r} is no parameter of this address: {meant}"
