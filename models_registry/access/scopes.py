"""Scopes: what a key may touch, beside how much its role may do there.

A scope is `<area>:read` or `<area>:write`. The area of a route is the tag of its router, and what
changes nothing is read; so a route declares its scope where it is written, and nowhere else.
Whoever may write an area may read it too.
"""

from collections.abc import Collection, Iterator, Sequence

from models_registry import catalog, errors

READ, WRITE = "read", "write"
AREAS = {
    "audit": (READ,),
    "catalog": (READ,),
    "datasets": (READ, WRITE),
    "federations": (READ, WRITE),
    "jobs": (READ, WRITE),
    "keys": (READ, WRITE),
    "models": (READ, WRITE),
    "retention": (READ, WRITE),
    "studies": (READ, WRITE),
    "uploads": (READ, WRITE),
    "usage": (READ, WRITE),
    "webhooks": (READ, WRITE),
    "workers": (READ,),
}
SCOPES = tuple(f"{area}:{verb}" for area, verbs in AREAS.items() for verb in verbs)
# Sent with a body, so by POST, but they change nothing.
READ_BY_POST = frozenset({"preview_retention", "rank_methods", "validate_job", "validate_study"})


def of(*, area: str, method: str, operation_id: str) -> str:
    """Return the scope that an operation needs."""
    is_read = method in ("GET", "HEAD") or operation_id in READ_BY_POST
    return f"{area}:{READ if is_read else WRITE}"


def allows(held: Collection[str] | None, needed: str) -> bool:
    """Return whether a key with these scopes has a scope; None are all of them."""
    if held is None or needed in held:
        return True
    area, _, verb = needed.partition(":")
    return verb == READ and f"{area}:{WRITE}" in held


def covers(held: Collection[str] | None, wanted: Collection[str] | None) -> bool:
    """Return whether nothing in `wanted` goes beyond `held`; None are all scopes."""
    if held is None:
        return True
    return wanted is not None and all(allows(held, scope) for scope in wanted)


def check(scopes: Sequence[str]) -> None:
    """Raise Refused unless these are scopes, and at least one."""
    faults = list(_faults(scopes))
    if faults:
        raise errors.Refused(faults[0].detail, code="bad_scope", faults=faults)


def _faults(scopes: Sequence[str]) -> Iterator[errors.Fault]:
    if not scopes:
        detail = (
            "scopes is empty, and such a key could do nothing: name some, or leave scopes out for "
            "all that the role allows"
        )
        yield errors.Fault("/scopes", "bad_scope", detail)
    for place, scope in enumerate(scopes):
        if scope not in SCOPES:
            hint = catalog.nearest(scope, SCOPES) or f"; there are {', '.join(SCOPES)}"
            detail = f"scopes has {scope[:60]!r}, which is no scope{hint}"
            yield errors.Fault(f"/scopes/{place}", "bad_scope", detail)
