"""Networks of the catalog, our own and those of other libraries."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.dependencies import PageDep
from api.schemas import lists
from api.schemas import methods as bodies
from models_registry import catalog
from models_registry.persistence import paging

router = APIRouter(prefix="/v1/networks", tags=["catalog"])


@router.get("", operation_id="list_networks")
def index(
    wanted: PageDep,
    search: Annotated[
        str | None, Query(max_length=100, description="Part of the reference.")
    ] = None,
    family: Annotated[str | None, Query(max_length=64)] = None,
) -> lists.ListRead[bodies.NetworkRead]:
    """List the networks, our own first; `search` includes those of other libraries."""
    part = (search or "").lower()
    matching = [
        network
        for network in (*_own(), *_foreign())
        if part in network.name.lower() and family in (None, network.family)
    ]
    return lists.ListRead.of(paging.cut(matching, wanted=wanted), lambda network: network)


def _own() -> list[bodies.NetworkRead]:
    return [bodies.NetworkRead.model_validate(entry) for entry in catalog.load().networks.values()]


def _foreign() -> list[bodies.NetworkRead]:
    return [
        bodies.NetworkRead(
            name=(reference := f"{library}/{name}"),
            family=library,
            task=catalog.task_of_network(reference),
        )
        for library, names in catalog.load().foreign_networks.items()
        for name in names
    ]
