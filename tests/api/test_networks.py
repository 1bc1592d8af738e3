"""Networks over HTTP: our own first, other libraries' names searchable."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests import databases

pytestmark = databases.SQLITE_ONLY


def names(client: TestClient, **query: Any) -> list[str]:
    """Return the names on the first page."""
    answer = client.get("/v1/networks", params={"limit": 100, **query})
    assert answer.status_code == 200, answer.text
    return [network["name"] for network in answer.json()["data"]]


class TestNetworks:
    def test_begin_with_our_own(self, client: TestClient) -> None:
        found = names(client)
        assert found[0].startswith("retort/")
        assert any(name.startswith("timm/") for name in found)

    @pytest.mark.parametrize("search", ["resnet8", "RESNET8", "retort/resnet8"])
    def test_can_be_searched(self, client: TestClient, search: str) -> None:
        found = names(client, search=search)
        assert "retort/resnet8" in found
        assert all(search.lower() in name.lower() for name in found)

    def test_of_other_libraries_can_be_searched(self, client: TestClient) -> None:
        assert "timm/resnet18" in names(client, search="timm/resnet18")
        assert "torchvision/resnet18" in names(client, search="torchvision/resnet18")

    def test_can_be_filtered_by_family(self, client: TestClient) -> None:
        assert all(name.startswith("retort/") for name in names(client, family="resnet"))
        assert names(client, family="no such family") == []

    def test_describe_their_arguments(self, client: TestClient) -> None:
        answer = client.get("/v1/networks", params={"search": "retort/resnet8", "limit": 1})
        [network] = answer.json()["data"]
        assert network["parameters_100"] > 0
        assert network["arguments_schema"]["type"] == "object"
