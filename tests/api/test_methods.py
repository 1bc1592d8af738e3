"""The catalog over HTTP: every method can be read, found again and used as it is described."""

import jsonschema
import pytest
from fastapi.testclient import TestClient

from models_registry import catalog
from tests import databases

pytestmark = databases.SQLITE_ONLY


class TestMethods:
    def test_are_listed_in_pages_and_in_full(self, client: TestClient) -> None:
        names, query = list[str](), {"limit": "2"}
        while True:
            body = client.get("/v1/methods", params=query).json()
            names += [method["name"] for method in body["data"]]
            if not body["has_more"]:
                break
            query["cursor"] = body["next_cursor"]
        assert names == list(catalog.load().methods)

    def test_can_be_read_one_by_one(self, client: TestClient) -> None:
        for name in catalog.load().methods:
            body = client.get(f"/v1/methods/{name}").json()
            assert body["name"] == name
            assert body["title"]
            assert body["source"]
            jsonschema.Draft202012Validator.check_schema(body["params_schema"])

    def test_that_do_not_exist_name_the_nearest(self, client: TestClient) -> None:
        answer = client.get("/v1/methods/dkdd")
        assert answer.status_code == 404
        assert "'dkd'" in answer.json()["detail"]


class TestRecipes:
    def test_satisfy_the_schema_beside_them(self, client: TestClient) -> None:
        body = client.get("/v1/recipes").json()
        assert {recipe["name"] for recipe in body["data"]} >= {"small", "cifar100", "imagenet"}
        for recipe in body["data"]:
            jsonschema.validate(recipe["training"], body["training_schema"])


@pytest.mark.parametrize("path", ["/v1/methods", "/v1/networks"])
class TestCursor:
    def test_is_checked(self, client: TestClient, path: str) -> None:
        assert client.get(path, params={"cursor": "x"}).json()["code"] == "bad_cursor"
